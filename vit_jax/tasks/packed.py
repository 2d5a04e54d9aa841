"""Classification of images at their own aspect ratio, several in a row of tokens (NaViT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.architecture import ViTArchitecture
from vit_jax.core.errors import RunError
from vit_jax.costs.step import Pass
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Label
from vit_jax.data.rows.packed import Alone, Packed
from vit_jax.data.views import View
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.images import image_of
from vit_jax.tasks.task import Batch, Context, Fields, Sums

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.models import vit


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedClassification(Classification):
  """Softmax cross-entropy of every image, whatever its size (Dehghani et al. 2023, 'NaViT').

  A row of a batch is a sequence of several images, which do not see each other. `batch_size` counts
  rows; each image weighs the same in the loss, in whatever row it is. The model has no class token,
  and pools each image by itself: pool=mean or pool=map.

  Attributes:
    tokens: patches of a row.
    least, most: patches of an image, drawn evenly; in evaluation `most`.
    group: rows that are packed together; larger ones leave less room empty.
    full: images of a group, as a share of what fills it on average without changing their sizes.
    slots: images of a row, at most.
  """

  tokens: int = 512
  least: int = 64
  most: int = 256
  group: int = 8
  full: float = 1.0
  slots: int = 16
  one_size = False

  def __post_init__(self):
    super().__post_init__()
    if self.mix or self.flip:
      raise RunError('task.mixup, cutmix and flip are of images of one size: use data.flip')
    if min(self.group, self.slots) < 1 or not 0 < self.full <= 1.5:
      raise RunError(
        'task.group and task.slots must be at least 1, task.full above 0 and up to 1.5'
      )

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`."""
    if not isinstance(model, ViTArchitecture):
      raise RunError(f'rows of patches need model.name=vit, not {model.kind}')
    model = super().adapt(model, fields)
    if model.prefix or model.pool not in ('mean', 'map') or model.stem_width:
      raise RunError(
        'rows of several images need a model without class token, registers and stem, and '
        f'pool=mean or map; it has {model.prefix} such tokens and model.pool={model.pool}'
      )
    if model.attention != 'full':
      raise RunError(f'rows of several images have no grid for model.attention={model.attention!r}')
    if not isinstance(model.patch_size, int):
      raise RunError(f'rows of several images need square patches: {model.patch_size}')
    if model.patch_dropout:
      raise RunError('rows of several images need model.patch_dropout=0')
    return model

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    common: Any = dict(
      image=image_of(model, fields), label=Label(model.num_classes), patch=model.patch_size,
      view=view, most=self.most,
    )  # fmt: skip
    if not train:
      return Alone(Packed(**common, tokens=self.most, least=self.most, gives=1, takes=1, slots=1))
    takes = max(1, round(self.full * self.group * self.tokens / self._mean))
    return Packed(
      **common, tokens=self.tokens, least=self.least, gives=self.group, takes=takes,
      slots=self.slots,
    )  # fmt: skip

  @property
  def _mean(self) -> float:
    """Patches of an image on average: grids are a little smaller than what is drawn."""
    return (self.least + self.most) / 2 * 0.975

  def passes(self, model: Any) -> list[Pass]:
    """See `Task`: attention is over whole rows."""
    patch = model.patch_size
    return [Pass(model, times=self._mean / self.tokens, size=(patch, patch * self.tokens))]

  def augment(self, batch: Batch, key: jax.Array | None, hyper: Mapping[str, Any]) -> Batch:
    """See `Task`: normalises the pixels of patches."""
    del key, hyper
    pixels, channels = batch['pixels'], max(map(len, self.statistics(1)))
    if channels > 1:
      shape = *pixels.shape[:2], pixels.shape[2] // channels, channels
      whole = self.normalize(pixels.reshape(shape)).reshape(pixels.shape)
    else:
      whole = self.normalize(pixels)
    return {**batch, 'pixels': whole}

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The mean over images; reported with it are `top1` and `used`, the share of tokens in use."""
    logits = model(_patches(part), key=ctx.noise)
    loss = self.each(logits, part)
    top1 = (jnp.argmax(logits, axis=-1) == part['label']).astype(jnp.float32)
    loss, top1 = ((value * part['mask']).sum() for value in (loss, top1))
    used = (part['segment'] > 0).astype(jnp.float32).sum()
    sums = {'loss': (loss, 'examples'), 'top1': (top1, 'examples'), 'used': (used, 'tokens')}
    return loss / ctx.totals['examples'], sums, {}

  def totals(self, batch: Batch) -> dict[str, Any]:
    """See `Task`."""
    return {'examples': batch['mask'].sum(), 'tokens': jnp.float32(batch['segment'].size)}

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """float32 'logits' (batch, num_classes) of rows of one image."""
    return {'logits': model(_patches(batch))[:, 0]}


def _patches(batch: Batch) -> Any:
  label = batch['label'] if batch['label'].ndim > 1 else batch['label'][:, None]
  images = jnp.zeros_like(label) + 1 + jnp.arange(label.shape[1])
  segment = batch['segment']
  return vit.Patches(batch['pixels'], batch['coords'], segment > 0, segment, images)
