"""Single-label classification."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.core.errors import RunError, suggest
from vit_jax.data.examples import Example
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Label
from vit_jax.data.views import View
from vit_jax.tasks import losses, mixing
from vit_jax.tasks.images import Images, insist_on_single
from vit_jax.tasks.task import Batch, Context, Fields, Prediction, Seen, Sums, picture_of

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.draw import pictures

UNSET: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Images):
  """Cross-entropy of one class for each image.

  Attributes:
    loss_of: 'softmax'; 'sigmoid_sum', binary cross-entropies of all classes added up, as in
      big_vision; 'sigmoid_mean', their mean, as in DeiT III and timm.
    threshold: with a sigmoid, targets above it become 1 and all others 0: 0 makes both classes of a
      mix right (DeiT III, Touvron et al. 2022); timm's recipes have 0.2. Unset: they stay as they
      were mixed.
    z_loss: with a softmax, the weight of the squared logarithm of its normaliser (Chowdhery et al.
      2022, section 5).
    label_smoothing: probability mass spread evenly over all classes (Szegedy et al. 2016).
    mixup: alpha of the Beta distribution of the shares in which pairs of images are mixed; 0 does
      not mix (Zhang et al. 2018). big_vision's takes the larger share, which makes no difference
      here: of a pair both mixes are in the batch.
    cutmix: alpha of the Beta distribution of the share of an image that stays where a box is
      replaced by that of another image; 0 does not cut (Yun et al. 2019).
    mix_prob: probability that images are mixed or cut.
    mix_switch: where mixup and cutmix are both given, the probability of cutmix.
    mix_mode: whether these are drawn for each 'batch', each 'pair' of it, or each example, 'elem'.
    flip: mirror half of the training images left to right on the devices, as runs of formats up to
      3 did; new ones say data.flip, which works for every task.
  """

  loss_of: str = 'softmax'
  threshold: float = UNSET
  z_loss: float = 0.0
  label_smoothing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0
  mix_prob: float = 1.0
  mix_switch: float = 0.5
  mix_mode: str = 'batch'
  flip: bool = False
  classed = 'label'
  traced = ('label_smoothing',)

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.label_smoothing < 1:
      raise RunError(f'task.label_smoothing={self.label_smoothing} must be in [0, 1)')
    if self.loss_of not in losses.KINDS:
      ways = suggest(self.loss_of, losses.KINDS)
      raise RunError(f'unknown task.loss_of {self.loss_of!r}: {ways}')
    if self.threshold is not None and (self.loss_of == 'softmax' or not 0 <= self.threshold < 1):
      raise RunError(
        f'task.threshold={self.threshold} must be in [0, 1), and is for sigmoids, not for '
        f'task.loss_of={self.loss_of}'
      )
    if not 0 <= self.z_loss < math.inf or (self.z_loss and self.loss_of != 'softmax'):
      raise RunError(
        f'task.z_loss={self.z_loss} must not be negative, and is for task.loss_of=softmax, not '
        f'{self.loss_of}'
      )
    self.mix  # noqa: B018

  @property
  def mix(self) -> mixing.Mix:
    """How images of a batch are mixed."""
    return mixing.Mix(self.mixup, self.cutmix, self.mix_prob, self.mix_switch, self.mix_mode)

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`: a logit for each class, unless the model has a number of them."""
    model = headed(self, model, fields)
    least = self.label_smoothing / max(model.num_classes, 1)
    if self.threshold is not None and least > self.threshold:
      raise RunError(
        f'task.label_smoothing={self.label_smoothing} gives each of {model.num_classes} classes '
        f'{least:.2g}, more than task.threshold={self.threshold}: all would be right; smooth less'
      )
    return super().adapt(model, fields)

  def notes(self, model: Any, fields: Fields) -> list[str]:
    """See `Task`."""
    names = fields[self.classed].names if self.classed in fields else ()
    lines = super().notes(model, fields)
    if names and model.num_classes != len(names):
      lines.append(
        f'model.num_classes={model.num_classes}, but the data have {len(names)} classes: the '
        'checkpoints will not name them'
      )
    return lines

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    del train
    return self.columns(model, fields, view, Label(model.num_classes))

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """float32 'logits' (batch, num_classes)."""
    return {'logits': model(batch['image'])}

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: the likeliest classes with their probabilities, by the sigmoid that was trained.

    Of a single class it is always the sigmoid.
    """
    del example
    logits = np.asarray(outputs['logits'], np.float64)
    names = seen.fields[self.classed].names if self.classed in seen.fields else ()
    chances = np.exp(logits - logits.max())
    softmax = len(logits) > 1 and self.loss_of == 'softmax'
    chances = chances / chances.sum() if softmax else 1 / (1 + np.exp(-logits))
    order = np.argsort(-chances, kind='stable')[: seen.top]
    named = len(names) == len(logits)
    return Prediction({
      'classes': [
        {'class': names[i] if named else f'class {i}', 'probability': float(chances[i])}
        for i in order.tolist()
      ]
    })  # fmt: skip

  def lines(self, prediction: Prediction) -> list[str]:
    """See `Task`."""
    return [f'{c["probability"]:6.1%}  {c["class"]}' for c in prediction.facts['classes']]

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """See `Task`: the image beside the likeliest classes; the true one is green."""
    picture = picture_of(example)
    picture = pictures.resized(picture, pictures.scale(*picture.shape[:2]))
    names = seen.fields[self.classed].names if self.classed in seen.fields else ()
    label = int(example.get(self.classed, -1))
    truth = names[label] if 0 <= label < len(names) else None

    def ink(name: str) -> tuple[int, int, int]:
      if truth is None:
        return pictures.colour(0)
      return pictures.RIGHT if name == truth else pictures.WRONG

    found = prediction.facts['classes']
    chart = pictures.bars([(c['class'], c['probability'], ink(c['class'])) for c in found])
    if truth is not None:
      right = found[0]['class'] == truth
      chart = pictures.captioned(
        chart, [(f'true: {truth}', pictures.RIGHT if right else pictures.WRONG)]
      )
    return pictures.beside(picture, chart)

  def augment(self, batch: Batch, key: jax.Array | None, hyper: Mapping[str, Any]) -> Batch:
    """Normalises, flips and mixes a batch of uint8 images; without a key only normalises."""
    batch = super().augment(batch, key, hyper)
    if key is None:
      return batch
    flip_key, mix_key = jax.random.split(key)
    if self.flip:
      image = batch['image']
      sharding = jax.typeof(batch['mask']).sharding
      mirrored = jax.random.bernoulli(flip_key, shape=image.shape[:1], out_sharding=sharding)
      batch['image'] = jnp.where(mirrored[:, None, None, None], image[:, :, ::-1], image)
    return self.mix(batch, mix_key) if self.mix else batch

  def targets(self, batch: Batch, num_classes: int) -> jax.Array:
    """(batch, num_classes) probabilities; those of a sigmoid need not add up to 1."""
    one_hot = jax.nn.one_hot(batch['label'], num_classes)
    if 'label2' in batch:
      share = batch['share'][:, None]
      one_hot = share * one_hot + (1 - share) * jax.nn.one_hot(batch['label2'], num_classes)
    smooth = one_hot * (1 - self.label_smoothing) + self.label_smoothing / num_classes
    return smooth if self.threshold is None else (smooth > self.threshold).astype(smooth.dtype)

  def each(self, logits: jax.Array, batch: Batch) -> jax.Array:
    """The loss of each example by its logits."""
    loss = losses.cross_entropy(logits, self.targets(batch, logits.shape[-1]), self.loss_of)
    return loss + self.z_loss * losses.z_loss(logits) if self.z_loss else loss

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The cross-entropy; reported with it is `top1`."""
    logits = model(part['image'], key=ctx.noise)
    loss = self.each(logits, part)
    top1 = (jnp.argmax(logits, axis=-1) == part['label']).astype(jnp.float32)
    loss, top1 = ((value * part['mask']).sum() for value in (loss, top1))
    sums = {'loss': (loss, 'examples'), 'top1': (top1, 'examples')}
    return loss / ctx.totals['examples'], sums, {}


def headed(task: Images, model: Any, fields: Fields) -> Any:
  """A model with a logit for each class of the field that a task classifies, unless it has some.

  Raises:
    RunError: for a model that does not give one vector for each image.
  """
  insist_on_single(type(task).__name__.lower(), model)
  names = fields[task.classed].names if task.classed in fields else ()
  return dataclasses.replace(model, num_classes=model.num_classes or len(names))
