"""Maps of images that are larger than the model's, and of scenes larger than the memory.

By windows of the size that the model was trained at, which overlap; see `nn.windows`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epy

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.data.misfit import MisfitError
from vit_jax.tasks.task import Prediction, Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.data import geotiff
  from vit_jax.draw import pictures
  from vit_jax.nn import windows

# Of the picture of a scene, the longer side at most.
_MOST = 1024


def says(task: Any) -> bool:
  """Whether a task has `scores` for single pixels, of which a map can be made."""
  return hasattr(task, 'scores')


class Mapper:
  """Probabilities of the classes of all pixels, of images of any size.

  Windows overlap, and what they say of a pixel is averaged.
  """

  def __init__(
    self, task: Any, window: tuple[int, int], *, batch: int, overlap: float,
    judged: Callable[[Any], Any] = lambda model: model, lanes: int = 0,
  ):  # fmt: skip
    """Compiles nothing yet.

    Args:
      task: of the model.
      window: the size of the images that the model takes.
      batch: windows at a time; the devices divide it.
      overlap: of neighbouring windows at least, as a share of a window.
      judged: gives the model of what `strips` gets in its place.
      lanes: how many models that stands for, by its leading axis; 0 for one.

    Raises:
      RunError: for a task that says nothing of pixels, or windows that overlap wholly.
    """
    if not says(task):
      raise RunError(
        f'{type(task).__name__.lower()} says nothing of single pixels: no map of a scene'
      )
    if not 0 <= overlap < 1:
      raise RunError(f'windows overlap by a share of at least 0 and less than 1: {overlap}')
    margin = tuple(min(math.ceil(side * overlap), side - 1) for side in window)

    def said(models: Any, parts: Mapping[str, Any]) -> jax.Array:
      one = lambda model: _scores(task, judged(model), parts)  # noqa: E731
      if not lanes:
        return one(models)
      every = jnp.moveaxis(jax.vmap(one)(models), 0, -2)
      return every.reshape(*every.shape[:-2], -1)

    self._windows = windows.Windows(said, tuple(window), margin, batch)  # type: ignore

  def strips(
    self, model: Any, read: Callable[[int, int], Mapping[str, np.ndarray]], size: tuple[int, int]
  ) -> Iterator[tuple[int, np.ndarray]]:
    """From top to bottom the first row of some rows, and their probabilities.

    Args:
      model: under the mesh that it is on.
      read: gives rows of all images of the example by their fields, from one on so many, and
        perhaps 'there', (rows, width): what is not is the mean of its band for the model.
      size: height and width of the images.

    Yields:
      float32 (rows, width, classes), or (rows, width, lanes * classes).
    """
    return self._windows.strips(model, read, size)


class Mapped(NamedTuple):
  """What is said of a scene.

  Attributes:
    prediction: its map is as small as a picture.
    example: its images likewise, by their fields; and `name`.
  """

  prediction: Prediction
  example: dict[str, Any]


def mapped(
  model: Any, task: Any, seen: Seen, files: Sequence[paths.AnyPath], *, map_file: paths.Path,
  scores_file: paths.Path, batch: int, overlap: float = 0.5, bands: Sequence[int] = (),
) -> Mapped:  # fmt: skip
  """Writes the map of a scene, and the probabilities of its classes, at the place of the scene.

  See `Mapper`. A pixel without data is the mean of its band for the model, and has no class.

  Args:
    model: under the mesh that it is on.
    task: of the model.
    seen: how its images are seen.
    files: of the scene, one for each image of an example, in their order.
    map_file: GeoTIFF of a class for each pixel, whose largest number is none.
    scores_file: GeoTIFF of a band for each class.
    batch: windows at a time; the devices divide it.
    overlap: of neighbouring windows at least, as a share of a window.
    bands: of the files, one for each channel of the model by its number from 1 on, or 0 where there
      is none; all of them in their order if none are given.

  Raises:
    RunError: if a file cannot be read, is not what the model takes, or not where the others are.
  """
  mapper = Mapper(task, model.config.image_size, batch=batch, overlap=overlap)
  images = seen.rows.images
  rasters = [
    geotiff.Raster(path, image.channels, bands, task.usual(image.channels, image.dtype))
    for path, image in zip(files, images, strict=True)
  ]
  for raster, image in zip(rasters, images, strict=True):
    try:
      raster.check(image.channels, image.dtype)
    except MisfitError as error:
      raise RunError(f'{raster.path} {error}') from None
    raster.lies_on(rasters[0])
  names = _names(seen, model.config.num_classes)
  read = _reader(rasters, task.images)
  size, few = rasters[0].size, len(names) <= 255
  dtype, void = ('uint8', 255) if few else ('uint16', 65535)
  by = -(-max(size) // _MOST)
  small = {'map': [], **{name: [] for name in task.images}}
  counts = np.zeros(len(names), np.int64)
  colours = [pictures.colour(i) for i in range(len(names))] if few else []
  with contextlib.ExitStack() as stack:
    write_map = stack.enter_context(
      geotiff.written(map_file, rasters[0], dtype, ('class',), void, colours)
    )
    write_scores = stack.enter_context(
      geotiff.written(scores_file, rasters[0], 'float32', names, math.nan)
    )
    for top, scores in mapper.strips(model, read, size):
      rows = read(top, len(scores))
      there = rows.pop('there')
      labels = np.where(there, task.decided(scores), void)
      counts += np.bincount(labels[there], minlength=len(names))
      write_map(top, labels[..., None])
      write_scores(top, np.where(there[..., None], scores, np.nan))
      first = -top % by
      small['map'].append(labels[first::by, ::by])
      for name, pixels in rows.items():
        small[name].append(pixels[first::by, ::by])
  shown = {name: np.concatenate(parts) for name, parts in small.items()}
  order = np.argsort(-counts, kind='stable')
  share = {names[i]: float(counts[i] / max(counts.sum(), 1)) for i in order if counts[i]}
  facts = {'share': share, 'missing': 1 - float(counts.sum() / math.prod(size))}
  return Mapped(
    Prediction(facts, {'map': shown.pop('map').astype(dtype)}),
    {**shown, 'name': str(files[0])},
  )


def _names(seen: Seen, classes: int) -> tuple[str, ...]:
  names = seen.fields['map'].names if 'map' in seen.fields else ()
  return names if len(names) == classes else tuple(f'class {i}' for i in range(classes))


def _reader(rasters: Sequence[Any], names: Sequence[str]) -> Callable[[int, int], dict[str, Any]]:
  """Gives rows of all images by their fields, and 'there', which pixels are in all of them."""

  def read(top: int, rows: int) -> dict[str, Any]:
    found, there = {}, True
    for name, raster in zip(names, rasters, strict=True):
      found[name], own = raster.read(top, rows)
      there = own & there
    return {**found, 'there': there}

  return read


def _scores(task: Any, model: Any, parts: Mapping[str, Any]) -> jax.Array:
  """Probabilities in windows."""
  return task.scores(model, task.augment(dict(parts), None, {}))
