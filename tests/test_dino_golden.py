"""Self-distillation beside DINO, iBOT and DINOv2: what their classes gave is in tests/golden."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests import golden
from vit_jax.core.schedule import Schedule
from vit_jax.models.dino import Head
from vit_jax.nn import tree
from vit_jax.tasks import prototypes
from vit_jax.tasks.dino import Dino, nearness, sinkhorn

with np.load(golden.FOLDER / 'dino.npz') as file:
  THEIRS = dict(file)
HIDDEN = THEIRS['hidden'].swapaxes(0, 1)


def close(got, want, rtol=1e-5):
  np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


def ours(name):
  """Theirs, examples first."""
  return jnp.asarray(THEIRS[name].swapaxes(0, 1))


class Repeats:
  """A network whose images are its outputs: those of the student and of the teacher, one by one."""

  def __init__(self, who):
    self.who = who

  def __call__(self, x, *, hidden=None, key=None):
    return x[:, self.who, :1], x[:, self.who, 1:]

  class Head:
    def __call__(self, tokens):
      return tokens

    features = __call__

    def compared(self):
      return jnp.eye(THEIRS['taught'].shape[-1])

  head = of_patches = Head()


def part_of(large, local, patches):
  """A batch for `Repeats`."""
  said = jnp.concatenate([large[:, :, None], patches], 2)
  taught = jnp.concatenate([ours('teacher')[:, :, None], ours('taught')], 2)
  count = HIDDEN.sum(-1)
  asked = np.argsort(~HIDDEN, axis=-1, kind='stable')[..., : count.max()]
  there = np.take_along_axis(HIDDEN, asked, -1)
  found = {
    'global': jnp.stack([said, taught], 2), 'local': local[:, :, None, None],
    'hidden': HIDDEN, 'asked': asked, 'share': there / np.maximum(count, 1)[..., None],
    'mask': np.ones(len(HIDDEN), np.float32),
  }  # fmt: skip
  return {name: jnp.asarray(x) for name, x in found.items()}


STUDENT = {name: ours(name) for name in ('large', 'local', 'patches')}
CENTER = {'head': THEIRS['center'], 'patch_head': THEIRS['patch_center']}


@functools.partial(jax.jit, static_argnums=0)
def both(task, student, center, temperature, patch_temperature):
  """The losses, centres after the step, and the gradients of the loss by the student's outputs."""
  hyper = {
    'task.temperature': temperature, 'task.patch_temperature': patch_temperature,
    'task.student_temperature': 0.1, 'task.momentum': 0.9,
  }  # fmt: skip

  def loss(student):
    part = part_of(**student)
    part = part if task.local else {name: x for name, x in part.items() if name != 'local'}
    context = types.SimpleNamespace(
      extra={'teacher': Repeats(1), 'center': center}, totals=task.totals(part), hyper=hyper,
      noise=types.SimpleNamespace(split=lambda: (None, None)), whole=lambda model: model,
    )  # fmt: skip
    value, sums, seen = task.loss(Repeats(0), part, context)
    context.extra['teacher'] = {}
    extra = task.update(context.extra, {}, seen, context)
    means = {name: total / context.totals[by] for name, (total, by) in sums.items()}
    return value, (means, extra.get('center'))

  return jax.grad(loss, has_aux=True)(student)


def test_losses_with_centres():
  """DINO's with and without small views, and that of patches, of iBOT and of DINOv2."""
  task = Dino(local=3, patch_temperature=Schedule(0.06))
  gradients, (means, center) = both(task, STUDENT, CENTER, THEIRS['dino/temperature'][2], 0.06)
  close(means['images'], THEIRS['dino'])
  close(means['patches'], THEIRS['ibot/patch'])
  close(means['loss'], means['images'] + means['patches'])
  for name in ('large', 'local'):
    close(gradients[name].swapaxes(0, 1), THEIRS[f'dino/{name}'])
  close(gradients['patches'].swapaxes(0, 1), THEIRS['ibot/patch/patches'])
  close(center['head'], THEIRS['dino/center'])
  close(center['patch_head'], THEIRS['dinov2/patch_center'])
  _, (means, _) = both(task, STUDENT, center, 0.07, 0.07)
  close(means['images'], THEIRS['dino/next'])
  gradients, (means, center) = both(task, STUDENT, CENTER, 0.07, 0.07)
  close(means['images'], THEIRS['ibot/cls'])
  close(center['head'], THEIRS['ibot/center'])
  for name in ('large', 'local'):
    close(gradients[name].swapaxes(0, 1), THEIRS[f'ibot/cls/{name}'])
  close(means['patches'], THEIRS['dinov2/patch/center'])
  close(gradients['patches'].swapaxes(0, 1), THEIRS['dinov2/patch/center/patches'])
  _, (means, _) = both(task, STUDENT, CENTER, 0.07, 0.06)
  close(means['loss'], THEIRS['ibot/loss'])
  _, (means, _) = both(Dino(local=0), STUDENT, CENTER, 0.04, 0.04)
  close(means['images'], THEIRS['dino/without_local'])


def test_sinkhorn():
  """Both views of all examples are one matrix, and hidden patches another."""
  logits = ours('teacher') / 0.07
  close(sinkhorn(logits, jnp.ones(logits.shape[:2], bool)).swapaxes(0, 1).reshape(-1, 12),
        THEIRS['sinkhorn'])  # fmt: skip
  found = sinkhorn(ours('taught') / 0.07, jnp.asarray(HIDDEN))
  close(found.swapaxes(0, 1)[THEIRS['hidden']], THEIRS['patch_sinkhorn'])
  task = Dino(local=3, centering='sinkhorn', patch_temperature=Schedule(0.07))
  gradients, (means, _) = both(task, STUDENT, CENTER, 0.07, 0.07)
  close(means['patches'], THEIRS['dinov2/patch/sinkhorn'])
  close(gradients['patches'].swapaxes(0, 1), THEIRS['dinov2/patch/sinkhorn/patches'])


@pytest.mark.parametrize('centering', ['center', 'sinkhorn'])
def test_patches_in_pieces(centering, monkeypatch):
  """The same, with the logits of three tokens at a time."""
  monkeypatch.setattr(prototypes, 'PIECE', 3 * 4 * THEIRS['taught'].shape[-1])
  both.clear_cache()  # it knows nothing of pieces
  task = Dino(local=3, centering=centering, patch_temperature=Schedule(0.07))
  with jax.default_matmul_precision('highest'):
    gradients, (means, center) = both(task, STUDENT, CENTER, 0.07, 0.07)
  both.clear_cache()
  close(means['patches'], THEIRS[f'dinov2/patch/{centering}'])
  close(gradients['patches'].swapaxes(0, 1), THEIRS[f'dinov2/patch/{centering}/patches'])
  if center:
    close(center['patch_head'], THEIRS['dinov2/patch_center'])


def test_nearest_neighbours():
  """Examples that are none are nobody's neighbours, though they are as near as can be."""
  x = THEIRS['features']
  padded = np.concatenate([x, x[:2] * 1.001])
  mask = jnp.asarray([1.0] * len(x) + [0.0] * 2)
  mean = lambda x: (nearness(x, mask) * mask).sum() / mask.sum()  # noqa: E731
  value, gradient = jax.jit(jax.value_and_grad(mean))(jnp.asarray(padded))
  close(value, THEIRS['koleo'])
  close(gradient[: len(x)], THEIRS['koleo/features'])


@pytest.mark.parametrize('name', ['head', 'scaled'])
def test_heads(name):
  """Of DINO, whose prototypes have length 1, and of DINOv2, whose have a learned one."""
  get = lambda key: THEIRS[f'{name}/{key}']  # noqa: E731
  kernel = get('last_layer.weight_v').T
  sizes = (*(get(f'mlp.{at}.weight').shape[1] for at in (0, 2, 4)), len(kernel))
  head = Head(sizes, kernel.shape[1], nnx.Rngs(0), scaled=name == 'scaled')
  leaves = {f'layers/{at // 2}/kernel': get(f'mlp.{at}.weight').T for at in (0, 2, 4)}
  leaves |= {f'layers/{at // 2}/bias': get(f'mlp.{at}.bias') for at in (0, 2, 4)}
  leaves |= {'last/kernel': kernel}
  leaves |= {'scale': get('last_layer.weight_g')[:, 0]} if name == 'scaled' else {}
  head = tree.unflatten(head, {key: jnp.asarray(value) for key, value in leaves.items()})
  with jax.default_matmul_precision('highest'):
    close(head(jnp.asarray(get('x'))[:, None])[:, 0], get('logits'))


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('dino/momentum', '0.996->1 cosine'), ('dino/decay', '0.04->0.4 cosine'),
    ('dinov2/momentum', '0.992->1 cosine'),
    # Theirs take 14 values from the first to the last, which is one way less.
    ('dinov2/temperature', '0.04->0.07 linear 13 steps'),
  ],
)  # fmt: skip
def test_schedules(name, text):
  want = THEIRS[name]
  schedule = Schedule(text)
  got = [schedule.at(s, len(want), lambda over: int(over.split()[0])) for s in range(len(want))]
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_temperature_of_epochs():
  """DINO warms up epoch by epoch, we step by step; where epochs begin, that is the same."""
  schedule, want = Schedule('0.04->0.07 linear 3 epochs'), THEIRS['dino/temperature']
  got = [schedule.at(50 * e, 500, lambda over: 50 * int(over.split()[0])) for e in range(10)]
  np.testing.assert_allclose(got, want, rtol=1e-12)
