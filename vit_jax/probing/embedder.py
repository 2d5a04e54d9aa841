"""Features of all examples of a source, in its order, on any devices and in any processes."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from vit_jax import models, tasks
from vit_jax.core.errors import RunError
from vit_jax.data import crops, pipeline
from vit_jax.data.examples import Example, Source, Wrapped
from vit_jax.data.sources.embedded import sample_image
from vit_jax.data.views import View
from vit_jax.nn import sharding, tree
from vit_jax.probing import features as features_lib
from vit_jax.probing.features import Feature
from vit_jax.tasks.classification import Classification

# Fields whose values stand beside the features.
KEPT = ('class', 'classes', 'vector', 'text')
_SAMPLED = 8192  # numbers of a feature, at most, of which a sample is kept


@dataclasses.dataclass(frozen=True)
class Embedded:
  """Some examples of a source, those that could be used.

  Attributes:
    index: their numbers, int64 (examples,).
    names: of them.
    values: of fields of the kinds `KEPT`, by name: one for each example.
    features: by name, float32 (examples, features).
  """

  index: np.ndarray
  names: list[str]
  values: dict[str, list[Any]]
  features: dict[str, np.ndarray]

  @classmethod
  def joined(cls, parts: Sequence[Embedded]) -> Embedded:
    """Several as one, in the order of their numbers."""
    index = np.concatenate([part.index for part in parts])
    order = np.argsort(index, kind='stable')
    listed = lambda texts: [texts[at] for at in order.tolist()]  # noqa: E731
    return cls(
      index[order],
      listed([name for part in parts for name in part.names]),
      {f: listed([v for part in parts for v in part.values[f]]) for f in parts[0].values},
      {f: np.concatenate([p.features[f] for p in parts])[order] for f in parts[0].features},
    )


class Embedder:
  """A model that gives features of images, which are prepared as its card says.

  Attributes:
    features: that are computed.
    widths: of the features of an image, by name.
    batch_size: images at a time.
  """

  def __init__(
    self, model: Any, features: Iterable[Feature], *, batch_size: int = 64, seed: int = 0
  ):
    """Create it under the mesh that the model is on.

    Args:
      model: with a card; see `vit_jax.load`.
      features: see `probing.features`.
      batch_size: rounded up to a multiple of the devices.
      seed: of random parameters, where features ask for them.

    Raises:
      RunError: if the model has no such features.
    """
    self.features = tuple(features)
    self._card, self._model, self._seed = model.card, model, seed
    self._layout = sharding.BatchLayout.of_at_least(batch_size)
    self.batch_size = self._layout.batch_size
    _, fields = tasks.of(model.card)
    self._task = Classification(mean=model.card.mean, std=model.card.std)
    card = model.card
    view = View(crops.of_card(card))
    self._rows = self._task.columns(model.config, fields, view)
    if len(self._rows.view.size) != 2:
      raise RunError(f'a model for images of size {self._rows.view.size}: pictures have two axes')
    random = any(feature.random for feature in self.features)
    self._fresh = self._random() if random else None
    self._compute = jax.jit(self._of_batch)
    [image] = self._rows.arrays().values()
    shape = jax.ShapeDtypeStruct((self.batch_size, *image.shape), image.dtype)
    shapes = jax.eval_shape(self._of_batch, self._model, self._fresh, shape)
    self.widths = {f.name: shapes[f.name].shape[1] for f in self.features}

  def _random(self) -> Any:
    """The model with random parameters, as at the start of a training."""
    config = self._model.config
    fresh = jax.jit(lambda key: models.create(config, nnx.Rngs(key)))(jax.random.key(self._seed))
    fresh.card = None
    return fresh

  def _of_batch(self, model: Any, fresh: Any, images: Any) -> dict[str, jax.Array]:
    images = self._task.normalize(images)
    found: dict[str, jax.Array] = {}
    for one, random in ((model, False), (fresh, True)):
      own = [feature for feature in self.features if feature.random == random]
      if own:
        found |= features_lib.compute(features_lib.tower(one), own, images)
    return found

  @property
  def preprocessing(self) -> dict[str, Any]:
    """How images are prepared, plain JSON."""
    card = self._card
    return {
      'size': list(self._rows.view.size), 'resize': card.resize, 'crop': card.crop,
      'mean': list(card.mean), 'std': list(card.std),
    }  # fmt: skip

  def digest(self) -> str:
    """Of all parameters by name, SHA-256 of their float32 values: the same for every dialect."""
    found = hashlib.sha256()
    for name, leaf in sorted(tree.flatten(self._model).items()):
      array = np.asarray(jax.device_get(leaf), np.float32)
      found.update(f'{name} {array.shape}\n'.encode())
      found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()

  def sample(self) -> dict[str, list[float]]:
    """Features of `embedded.sample_image` by name, but for those of very many numbers."""
    [image] = self._rows.arrays().values()
    names = [name for name, width in self.widths.items() if width <= _SAMPLED]
    if image.dtype != np.uint8 or not names:
      return {}
    rows = np.stack([sample_image(image.shape)] * len(self._layout.rows))
    placed = self._layout.place({'image': rows})
    found = self._compute(self._model, self._fresh, placed['image'])
    return {name: self._layout.local(found[name])[0].astype(float).tolist() for name in names}

  def steps(self, source: Source) -> int:
    """How many batches a source has."""
    return -(-len(source) // self.batch_size)

  def __call__(
    self, source: Source, *, start: int = 0,
    broken: Callable[[str, ValueError], None] | None = None,
  ) -> Generator[Embedded, None, None]:  # fmt: skip
    """Batch after batch what this process has of it: all of it, if it is the only one.

    Args:
      source: with images.
      start: the batch to begin with.
      broken: is told of examples that cannot be used; without it, RunError.
    """
    noted, layout = _Noted(source), self._layout
    batches = pipeline.eval_batches(self._rows, noted, layout.batch_size, layout.rows, skip=broken)
    waiting: list[Any] = []
    for batch in pipeline.iterate(batches, start=start):
      placed = layout.place({'image': batch['image']})
      waiting.append((batch, self._compute(self._model, self._fresh, placed['image'])))
      if len(waiting) > 1:
        yield self._taken(noted, *waiting.pop(0))
    for item in waiting:
      yield self._taken(noted, *item)

  def _taken(self, noted: _Noted, batch: Mapping[str, Any], found: Mapping[str, Any]) -> Embedded:
    there = np.flatnonzero(batch['mask'] > 0)
    index = batch['index'][there]
    notes = noted.taken(batch['index'])
    own = [notes[number] for number in index.tolist()]
    fields = [name for name, field in noted.fields.items() if field.kind in KEPT]
    return Embedded(
      index, [name for name, _ in own], {f: [values[f] for _, values in own] for f in fields},
      {name: self._layout.local(x)[there] for name, x in found.items()},
    )  # fmt: skip


class _Noted(Wrapped):
  """A source that notes names and values of what is read, so that nothing is read twice."""

  def __init__(self, source: Source):
    super().__init__(source)
    self._notes: dict[int, tuple[str, dict[str, Any]]] = {}
    self._lock = threading.Lock()

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`."""
    found = self.source.read(indices)
    kept = [name for name, field in self.fields.items() if field.kind in KEPT]
    with self._lock:
      for index, example in zip(indices, found, strict=True):
        self._notes[index] = str(example['name']), {name: example[name] for name in kept}
    return found

  def taken(self, indices: np.ndarray) -> dict[int, tuple[str, dict[str, Any]]]:
    """The notes on some examples, which are forgotten."""
    with self._lock:
      return {i: self._notes.pop(i) for i in indices.tolist() if i >= 0}
