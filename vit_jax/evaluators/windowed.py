"""A pass over a split whose images are seen whole, by windows of the size that the model takes."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data.crops import Resize
from vit_jax.data.examples import Example
from vit_jax.data.rows.columns import Whole
from vit_jax.data.views import View
from vit_jax.evaluators.evaluator import Extremes, Found, Over, recorded
from vit_jax.processes import health
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax

  from vit_jax.data import pipeline, preprocess
  from vit_jax.tasks import scenes


class Windowed:
  """One image after the other, each by windows that overlap; see `scenes.Mapper`.

  The windows of an image are cut over the devices, so every process reads every image. Where images
  are brought to another size first, probabilities are brought back, bilinearly, before it is
  decided.

  Attributes:
    source: the split.
    seen: how its examples are seen: maps are in the frame of the image at its own size.
    shown: predictions of the last pass that are worth a look, on every process.
    looked: nothing: attention is that of a window.
  """

  def __init__(self, evaluator: Any, over: Over, *, overlap: float, shorter: int):
    """Compiles nothing yet.

    Args:
      evaluator: has `record`, of which `wrong` makes how bad a prediction is.
      over: the split, and all that goes with it.
      overlap: of neighbouring windows at least, as a share of a window.
      shorter: side of the images before windows are cut; 0 leaves them as they are.

    Raises:
      RunError: for a task that says nothing of single pixels.
    """
    rows = over.seen.rows
    if not isinstance(rows.view.crop, Resize):
      raise RunError('windows=True sees images whole: crop.name must be resize')
    self._rows = Whole(View(rows.view.crop), rows.images, rows.columns, shorter=shorter)
    self.source, self.seen = over.source, Seen(self._rows, over.seen.fields, over.seen.top)
    self.shown, self.looked = [], {}
    self._evaluator, self._over = evaluator, over
    self._mapper = scenes.Mapper(
      over.task, over.model.image_size, batch=over.batch_size, overlap=overlap, lanes=over.lanes,
      judged=lambda both: over.judged(*both),
    )  # fmt: skip

  def __call__(self, state: Any, frozen: Any) -> Found:
    """Records of all examples, of the model in a state."""
    records: dict[int, Any] = {}
    extremes = Extremes(np.asarray)
    for number, example, (own, pixels) in self._read():
      health.reached('eval')
      maps = self._maps((state, frozen), pixels, own)
      if number % jax.process_count() != jax.process_index():
        continue
      found = [self._evaluator.record({'map': each}, example, self.seen) for each in maps]
      if self._over.lanes:
        records[number] = found
        continue
      (records[number],) = found
      row = {'index': np.array([number]), 'mask': np.ones(1)}
      extremes.see(row, {'map': maps[0][None]}, np.array([self._evaluator.wrong(found[0])]))
    self.shown = extremes.gathered()
    return recorded(self.source, records, self._over.lanes)

  def _read(self) -> Iterator[tuple[int, Example, Any]]:
    """Numbers, examples that can be used, and their images; each is read while others are seen."""

    def opened(number: int) -> tuple[Example, Any]:
      example = self.source[number]
      try:
        return example, self._rows.pixels(example)
      except ValueError as error:
        pipeline.tell(self._over.skip, example['name'], error)
        return example, None

    count = len(self.source)
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
      coming = reader.submit(opened, 0) if count else None
      for number in range(count):
        example, images = coming.result()  # type: ignore
        coming = reader.submit(opened, number + 1) if number + 1 < count else None
        if images is not None:
          yield number, example, images

  def _maps(
    self, model: Any, pixels: Mapping[str, np.ndarray], own: tuple[int, int]
  ) -> list[np.ndarray]:
    """The classes of an image, (height, width), for each lane."""
    size = next(iter(pixels.values())).shape[:2]

    def read(top: int, rows: int) -> dict[str, np.ndarray]:
      return {name: image[top : top + rows] for name, image in pixels.items()}

    lanes = max(1, self._over.lanes)
    # Where nothing is brought back no more is held than what is decided.
    kept = self._decided if size == own else lambda each: each
    strips = [
      [kept(each) for each in np.split(scores, lanes, axis=-1)]
      for _, scores in self._mapper.strips(model, read, size)
    ]
    whole = [np.concatenate(parts) for parts in zip(*strips, strict=True)]
    if size == own:
      return whole
    return [self._decided(preprocess.resized(each, own, 'linear')) for each in whole]

  def _decided(self, scores: np.ndarray) -> np.ndarray:
    return self._over.task.decided(scores).astype(np.int32)
