"""Hidden patches of an image, filled in: masked image modelling in its several kinds."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.architecture.masked import MaeArchitecture, MaskedArchitecture
from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs.step import Pass
from vit_jax.data.examples import Example
from vit_jax.data.rows import Rows
from vit_jax.data.rows.masked import Hiding
from vit_jax.data.views import View
from vit_jax.tasks.images import Images
from vit_jax.tasks.task import Batch, Context, Fields, Prediction, Seen, Sums, picture_of

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.draw import pictures
  from vit_jax.nn import sharding

TARGETS = ('pixels', 'normalized', 'colours', 'codes')
LOSSES = ('l2', 'l1')
SHAPES = ('random', 'blocks')
# In the variance of a patch, as MAE has it.
_EPS = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedImages(Images):
  """Predicts hidden patches from the others, without labels.

  With a model 'masked' these are masked patch prediction (Dosovitskiy et al. 2021, B.1.2:
  target=colours, ratio=0.5, swapped=0.1, left=0.1), SimMIM (Xie et al. 2022: loss_of=l1, ratio=0.6,
  unit=32) and BEiT (Bao et al. 2022: target=codes, shape=blocks, ratio=0.4); with a model 'mae' a
  masked autoencoder (He et al. 2022: target=normalized, ratio=0.75). Masks are drawn for each view
  of an image, like its crop.

  Attributes:
    ratio: share of the patches that are hidden, rounded up; of blocks the most.
    unit: side in pixels of what is hidden together; 0 for a patch.
    shape: 'random', each unit by itself and equally many in each image, or 'blocks', rectangles.
    target: 'pixels', normalised as the model gets them; 'normalized', these with mean and variance
      of each patch removed; 'colours', the mean colour of a patch in 3 bits for each channel;
      'codes', the number of the nearest in a list of patches, see `codebook`.
    loss_of: distance of pixels: 'l2', squared, or 'l1', absolute, the mean over a patch. Of colours
      and codes the loss is the cross-entropy.
    swapped: share of the hidden patches that show another patch of the image.
    left: share of the hidden patches that show themselves.
    codebook: a file .npy of float32 (codes, pixels of a patch), normalised likewise, the last axis
      of a patch the channels: centres of k-means, for example.
  """

  ratio: float = 0.75
  unit: int = 0
  shape: str = 'random'
  target: str = 'normalized'
  loss_of: str = 'l2'
  swapped: float = 0.0
  left: float = 0.0
  codebook: str = ''

  def __post_init__(self):
    super().__post_init__()
    for name, known in (('target', TARGETS), ('loss_of', LOSSES), ('shape', SHAPES)):
      if (value := getattr(self, name)) not in known:
        raise RunError(f'unknown task.{name} {value!r}: {suggest(value, known)}')
    if not 0 < self.ratio < 1:
      raise RunError(f'task.ratio={self.ratio} must be between 0 and 1')
    if min(self.swapped, self.left) < 0 or self.swapped + self.left > 1:
      raise RunError(
        f'task.swapped={self.swapped} and task.left={self.left} are shares of what is hidden: '
        'together from 0 to 1'
      )
    if self.unit < 0:
      raise RunError(f'task.unit={self.unit} must not be negative')
    if self.unit and self.shape == 'blocks':
      raise RunError('task.unit is of task.shape=random: blocks are of patches')
    if self.loss_of != 'l2' and self.target in ('colours', 'codes'):
      raise RunError(
        f'task.loss_of={self.loss_of} is of pixels, and task.target={self.target} has a '
        'cross-entropy: leave it out'
      )
    if bool(self.codebook) != (self.target == 'codes'):
      raise RunError(
        'task.codebook is the file of the patches that task.target=codes takes its numbers from: '
        'give both or neither'
      )

  @property
  def of_classes(self) -> bool:
    """Whether the target is one of several, and not pixels."""
    return self.target in ('colours', 'codes')

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`: as many outputs for each patch as the target has numbers, or classes."""
    if not isinstance(model, MaskedArchitecture):
      raise RunError(f'task.name=masked needs model.name=masked or mae, not {model.kind}')
    uneven = self.shape == 'blocks' or self.swapped or self.left
    if isinstance(model, MaeArchitecture) and uneven:
      raise RunError(
        'a model mae leaves out what is hidden, equally many patches of each image: it needs '
        'task.shape=random, task.swapped=0 and task.left=0'
      )
    outputs = self._outputs(model.encoder)
    if model.outputs not in (0, outputs):
      raise RunError(f'model.outputs={model.outputs}, and task.target={self.target} has {outputs}')
    model = super().adapt(dataclasses.replace(model, outputs=outputs), fields)
    self._hiding(model)
    return model

  def _outputs(self, encoder: Any) -> int:
    pixels = math.prod(encoder.patch) * encoder.in_channels
    if self.target == 'colours':
      if encoder.in_channels > 4:
        raise RunError(
          f'task.target=colours of {encoder.in_channels} channels are {8**encoder.in_channels:,} '
          'classes: use pixels'
        )
      return 8**encoder.in_channels
    if self.target == 'codes':
      _codes.cache_clear()  # a run begins, and the file may be another one than for the last
      codes = _codes(self.codebook).shape
      if len(codes) != 2 or codes[1] != pixels:
        raise RunError(f'{self.codebook} is {codes}, and a patch has {pixels} numbers')
      return codes[0]
    return pixels

  def _hiding(self, model: Any) -> Hiding:
    """What is hidden of the model's images."""
    grid, patch = model.encoder.grid, model.encoder.patch
    if len(set(patch)) > 1 or self.unit % patch[0]:
      raise RunError(f'task.unit={self.unit} must be a multiple of patches of {patch} pixels')
    unit = self.unit // patch[0] or 1
    if any(side % unit for side in grid):
      raise RunError(f'task.unit={self.unit} does not divide images of {model.image_size}')
    units = math.prod(grid) // unit**2
    count = math.ceil(self.ratio * units - 1e-9)
    if count == units:
      raise RunError(
        f'task.ratio={self.ratio} hides all {units} of {"patches" if unit == 1 else "units"}'
      )
    blocks = self.shape == 'blocks'
    return Hiding(grid, unit, count, blocks, swapped=self.swapped, left=self.left)

  def visible(self, model: Any) -> int:
    """How many patches a model 'mae' sees of each image."""
    hiding = self._hiding(model)
    return hiding.patches - hiding.count * hiding.unit**2

  def notes(self, model: Any, fields: Fields) -> list[str]:
    """See `Task`."""
    hiding = self._hiding(model)
    count = hiding.count * hiding.unit**2
    most = 'up to ' if hiding.blocks else ''
    lines = [f'hidden: {most}{count} of {hiding.patches} patches, target {self.target}']
    if self.target == 'colours' and model.encoder.in_channels == 1:
      lines.append('colours of grey images have 3 bits in all: 8 classes')
    return lines + super().notes(model, fields)

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    del train
    return self.columns(model, fields, view, drawn=(self._hiding(model),))

  def passes(self, model: Any) -> list[Pass]:
    """See `Task`: an encoder in front of a decoder sees what is not hidden."""
    if isinstance(model, MaeArchitecture):
      share = 1 - self.visible(model) / self._hiding(model).patches
      encoder = dataclasses.replace(model.encoder, patch_dropout=share)
      model = dataclasses.replace(model, encoder=encoder)
    return [Pass(model)]

  def totals(self, batch: Batch) -> dict[str, Any]:
    """See `Task`: examples, and patches that are predicted."""
    return {'examples': batch['mask'].sum(), 'patches': _asked(batch).sum()}

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The mean over patches that are asked for; of classes `accuracy`, too."""
    found = self._judged(model, self._said(model, part, key=ctx.noise), part)
    sums: Sums = {name: (each.sum(), 'patches') for name, each in found.items()}
    return sums['loss'][0] / ctx.totals['patches'], sums, {}

  def _judged(self, model: Any, said: jax.Array, part: Batch) -> dict[str, jax.Array]:
    """Of patches that are asked for, float32 (batch, patches): loss, and which are right."""
    asked = _asked(part)
    wanted = self.wanted(part['image'], model.config.encoder)
    if self.of_classes:
      loss = -jnp.take_along_axis(jax.nn.log_softmax(said), wanted[..., None], axis=-1)[..., 0]
      return {'loss': loss * asked, 'accuracy': (said.argmax(-1) == wanted) * asked}
    apart = said - wanted
    each = jnp.abs(apart) if self.loss_of == 'l1' else jnp.square(apart)
    return {'loss': each.mean(-1) * asked}

  def _said(self, model: Any, part: Batch, key: Any = None) -> jax.Array:
    images, how = part['image'], {}
    if isinstance(model.config, MaeArchitecture):
      how = {'visible': self.visible(model.config)}
    if 'source' in part:
      images = swapped(images, part['source'], model.config.encoder.patch)
    return model(images, part['hidden'], key=key, **how)

  def wanted(self, images: jax.Array, encoder: Any) -> jax.Array:
    """The targets of all patches of normalised images.

    Returns:
      float32 (batch, patches, pixels of one * channels), the channels last; of colours and codes
      int32 (batch, patches).
    """
    patches = cut(images.astype(jnp.float32), encoder.patch)
    if self.target == 'pixels':
      return patches
    if self.target == 'normalized':
      mean, deviation = _moments(patches)
      return (patches - mean) / deviation
    if self.target == 'colours':
      mean, std = map(jnp.array, self.statistics(encoder.in_channels))
      colour = patches.reshape(*patches.shape[:2], -1, encoder.in_channels).mean(2) * std + mean
      bins = jnp.clip(jnp.floor(colour * 8).astype(jnp.int32), 0, 7)
      return (bins * 8 ** np.arange(encoder.in_channels)[::-1]).sum(-1)
    codes = jnp.asarray(_codes(self.codebook), jnp.float32)
    layout = sharding.spec('batch', None, None)
    near = jnp.einsum('bnp,kp->bnk', patches, codes, precision='highest', out_sharding=layout)
    return jnp.argmax(near - 0.5 * jnp.square(codes).sum(-1), -1)

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """What is filled in, and how well.

    Returns:
      'filled' and 'shown', uint8 (batch, height, width, channels): the view with predictions in
      place of hidden patches, and with grey there; 'loss', float32 (batch,), the mean over patches
      that are asked for, of which 'patches' says how many; of classes 'accuracy' likewise, and
      'wanted', int32 (batch, classes), how many patches are of each.
    """
    config, image = model.config.encoder, batch['image']
    said = self._said(model, batch)
    count = jnp.maximum(batch['asked'].sum(-1), 1)
    found = {name: each.sum(-1) / count for name, each in self._judged(model, said, batch).items()}
    if self.of_classes:
      count_each = lambda at, asked: jnp.zeros(said.shape[-1], jnp.int32).at[at].add(asked)  # noqa: E731
      asked = batch['asked'].astype(jnp.int32)
      found['wanted'] = jax.vmap(count_each)(self.wanted(image, config), asked)
    mean, std = map(jnp.array, self.statistics(config.in_channels))

    def picture(patches: jax.Array) -> jax.Array:
      pixels = joined(patches, config.grid, config.patch) * std + mean
      return jnp.clip(255 * pixels, 0, 255).round().astype(jnp.uint8)

    patches, there = cut(image, config.patch), batch['asked'][..., None]
    return {
      **found, 'patches': batch['asked'].sum(-1).astype(jnp.float32),
      'filled': picture(jnp.where(there, self._pixels(said, patches, config), patches)),
      'shown': picture(jnp.where(there, 0.0, patches)),
    }  # fmt: skip

  def _pixels(self, said: jax.Array, patches: jax.Array, config: Any) -> jax.Array:
    """Predictions as normalised pixels of patches; what they do not say is taken from the truth."""
    if self.target == 'pixels':
      return said
    if self.target == 'normalized':
      mean, deviation = _moments(patches)
      return said * deviation + mean
    likeliest = said.argmax(-1)
    if self.target == 'codes':
      layout = sharding.spec('batch', None, None)
      return jnp.asarray(_codes(self.codebook), jnp.float32).at[likeliest].get(out_sharding=layout)
    mean, std = map(jnp.array, self.statistics(config.in_channels))
    digits = likeliest[..., None] // 8 ** np.arange(config.in_channels)[::-1] % 8
    colour = ((digits + 0.5) / 8 - mean) / std
    return jnp.tile(colour, (1, 1, patches.shape[-1] // config.in_channels))

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: how well it was filled in; the view itself is in `arrays`."""
    del example, seen
    facts = {n: float(outputs[n]) for n in ('loss', 'accuracy') if n in outputs}
    facts['hidden'] = int(outputs['patches'])
    arrays = {name: outputs[name].squeeze() for name in ('shown', 'filled')}  # grey has no axis
    return Prediction(facts, arrays)

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """See `Task`: what is seen of the view, what is filled in, and the image."""
    titles = ['seen', 'filled in']
    if self.target == 'normalized':
      titles[1] += ', brightness and contrast of each patch as they are'
    views = [pictures.shown(np.atleast_3d(prediction.arrays[n])) for n in ('shown', 'filled')]
    by = pictures.scale(*views[0].shape[:2])
    drawn = [
      pictures.captioned(pictures.resized(view, by), [(title, pictures.INK)])
      for title, view in zip(titles, views, strict=True)
    ]  # fmt: skip
    whole = picture_of(example)
    return pictures.beside(pictures.resized(whole, pictures.scale(*whole.shape[:2])), *drawn)


@functools.cache
def _codes(codebook: str) -> np.ndarray:
  """Those of a file, read once: every program of a run has the same, whatever becomes of it."""
  try:
    return np.load(paths.fetched(paths.at(codebook)), allow_pickle=False)
  except (OSError, ValueError) as error:
    raise RunError(f'task.codebook={codebook} cannot be read: {error}') from None


def cut(images: jax.Array, patch: tuple[int, ...]) -> jax.Array:
  """Images (batch, height, width, channels) -> (batch, patches, pixels of one * channels)."""
  batch, height, width, channels = images.shape
  rows, columns = height // patch[0], width // patch[1]
  layout = lambda count: sharding.spec('batch', *(None,) * (count - 1))  # noqa: E731
  x = images.reshape(batch, rows, patch[0], width, channels, out_sharding=layout(5))
  x = x.reshape(batch, rows, patch[0], columns, patch[1], channels, out_sharding=layout(6))
  x = x.transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(batch, rows, columns, -1, out_sharding=layout(4))
  return x.reshape(batch, rows * columns, x.shape[-1], out_sharding=layout(3))


def joined(patches: jax.Array, grid: tuple[int, ...], patch: tuple[int, ...]) -> jax.Array:
  """The inverse of `cut`."""
  batch, (rows, columns), (height, width) = len(patches), grid, patch
  layout = lambda count: sharding.spec('batch', *(None,) * (count - 1))  # noqa: E731
  channels = patches.shape[-1] // (height * width)
  x = patches.reshape(batch, rows, columns, -1, out_sharding=layout(4))
  x = x.reshape(batch, rows, columns, height, width * channels, out_sharding=layout(5))
  x = x.reshape(batch, rows, columns, height, width, channels, out_sharding=layout(6))
  x = x.transpose(0, 1, 3, 2, 4, 5)
  x = x.reshape(batch, rows * height, columns, width, channels, out_sharding=layout(5))
  return x.reshape(batch, rows * height, columns * width, channels, out_sharding=layout(4))


def swapped(images: jax.Array, source: jax.Array, patch: tuple[int, ...]) -> jax.Array:
  """Images in which patch i shows what was in patch source[i]."""
  grid = tuple(side // step for side, step in zip(images.shape[1:3], patch, strict=True))
  return joined(jax.vmap(lambda x, index: x[index])(cut(images, patch), source), grid, patch)


def _moments(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and standard deviation of each patch, unbiased, of all its pixels and channels."""
  return (
    patches.mean(-1, keepdims=True), jnp.sqrt(patches.var(-1, keepdims=True, ddof=1) + _EPS)
  )  # fmt: skip


def _asked(batch: Batch) -> jax.Array:
  """Patches that are predicted, of examples that are there: float32 (batch, patches)."""
  return batch['asked'].astype(jnp.float32) * batch['mask'][:, None]
