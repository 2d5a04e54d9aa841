"""Classification that is learned from a teacher."""

from __future__ import annotations

import dataclasses
from typing import Any

from etils import epy

from vit_jax.core.errors import RunError, suggest
from vit_jax.core.schedule import Schedule
from vit_jax.costs.step import Pass
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.networks import Network
from vit_jax.tasks.task import Batch, Context, Fields, Sums

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.nn import positions
  from vit_jax.tasks import losses

MATCHES = ('soft', 'soft_mean', 'hard')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(Classification):
  """Classification by labels and by what a teacher says of the same view.

  The teacher sees the images that the model sees, cropped, mixed and erased as they are, in its own
  normalisation. A model with a distillation token learns from labels with one head and from the
  teacher with the other, and gives the mean of both (Touvron et al. 2021); any other learns both
  with its only head (Hinton et al. 2015). With alpha=1 labels are not looked at: the model matches
  the function of the teacher, best on mixed images and for long (Beyer et al. 2022).

  Attributes:
    teacher: the network that is learned from.
    match: 'soft', the Kullback-Leibler divergence from the teacher to the model, both at
      `temperature`, times its square; 'soft_mean', the same divided by the number of classes, as
      DeiT's code has it; 'hard', the cross-entropy with the likeliest class of the teacher.
    alpha: weight of that; the loss of the labels has 1 - alpha.
    temperature: divides the logits of both.
  """

  teacher: Network = dataclasses.field(default_factory=Network)
  match: str = 'soft'
  alpha: Schedule = Schedule(0.5)
  temperature: Schedule = Schedule(1.0)

  def __post_init__(self):
    super().__post_init__()
    if self.match not in MATCHES:
      raise RunError(f'unknown task.match {self.match!r}: {suggest(self.match, MATCHES)}')
    for name in ('alpha', 'temperature'):
      schedule = Schedule.of(getattr(self, name))
      schedule.check(f'task.{name}')
      object.__setattr__(self, name, schedule)
    if any(value > 1 for value in self.alpha.values):
      raise RunError(f'task.alpha={self.alpha.text} must be from 0 to 1')
    if not all(self.temperature.values):
      raise RunError(f'task.temperature={self.temperature.text} must be above 0')
    if self.match == 'hard' and set(self.temperature.values) != {1.0}:
      raise RunError(
        f'task.temperature={self.temperature.text} changes nothing about the likeliest class of '
        'the teacher: leave it out with task.match=hard'
      )

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`: as many logits as the data have classes, which are those of the teacher."""
    model = super().adapt(model, fields)
    names = fields[self.classed].names if self.classed in fields else ()
    if names and model.num_classes != len(names):
      raise RunError(
        f'model.num_classes={model.num_classes}, and the data have {len(names)} classes, of which '
        'the teacher says something: leave num_classes out'
      )
    return model

  def passes(self, model: Any) -> list[Pass]:
    """See `Task`: the teacher has no gradient."""
    return [Pass(model), Pass(self.teacher.config, grad='none')]

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The weighted sum; reported are `top1`, `teacher`, the loss of matching, and `agreement`.

    That is the share of the views of which model and teacher say the same class.
    """
    heads = _heads(model, part['image'], ctx.noise)
    said = self.taught(ctx.networks['teacher'], part['image'])
    matching = self.matching(heads['distill'], said, ctx.hyper['task.temperature'])
    alpha = ctx.hyper['task.alpha']
    loss = (1 - alpha) * self.each(heads['class'], part) + alpha * matching
    own = jnp.argmax(heads['output'], -1)
    each = {
      'loss': loss, 'top1': own == part['label'], 'teacher': matching,
      'agreement': own == jnp.argmax(said, -1),
    }  # fmt: skip
    sums = {n: ((value * part['mask']).sum(), 'examples') for n, value in each.items()}
    return sums['loss'][0] / ctx.totals['examples'], sums, {}

  def matching(self, logits: jax.Array, said: jax.Array, temperature: Any) -> jax.Array:
    """The loss of each example by the logits of model and teacher, (batch, classes)."""
    if self.match == 'hard':
      target = jax.nn.one_hot(jnp.argmax(said, -1), said.shape[-1])
      return losses.cross_entropy(logits, target, 'softmax')
    ours, theirs = (jax.nn.log_softmax(x / temperature) for x in (logits, said))
    apart = jnp.square(temperature) * (jnp.exp(theirs) * (theirs - ours)).sum(-1)
    return apart / said.shape[-1] if self.match == 'soft_mean' else apart

  def taught(self, teacher: Any, images: jax.Array) -> jax.Array:
    """What the teacher says of images that are normalised for the model: (batch, classes)."""
    channels, card = images.shape[-1], self.teacher.card
    mean, std = (jnp.array(values) for values in self.statistics(channels))
    pixels = positions.resized(images * std + mean, self.teacher.config.image_size)
    return teacher((pixels - jnp.array(card.mean)) / jnp.array(card.std)).astype(jnp.float32)


def _heads(model: Any, images: jax.Array, noise: Any) -> dict[str, jax.Array]:
  """Logits that learn from labels, 'class', and from the teacher, 'distill'; and the 'output'."""
  if not getattr(model.config, 'distilled', False):
    return dict.fromkeys(('class', 'distill', 'output'), model(images, key=noise))
  out = model.heads(images, key=noise)
  return {
    'class': out['logits_class'], 'distill': out['logits_distill'], 'output': out['output']
  }  # fmt: skip
