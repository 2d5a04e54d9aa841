"""Self-distillation: a student follows a teacher that is its own moving average."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from etils import epy

from vit_jax.architecture.dino import DinoArchitecture
from vit_jax.architecture.towers import Composition
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.schedule import Schedule
from vit_jax.costs.step import Pass
from vit_jax.data.colours import Jitter
from vit_jax.data.crops import RandomResized
from vit_jax.data.examples import Example
from vit_jax.data.rows import Rows
from vit_jax.data.rows.masked import Hiding
from vit_jax.data.rows.multicrop import MultiCrop, Partly
from vit_jax.data.views import View
from vit_jax.tasks.images import Images, image_of
from vit_jax.tasks.task import Batch, Context, Fields, Prediction, Seen, Sums, average

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.models import dino
  from vit_jax.nn import sharding, tree
  from vit_jax.tasks import prototypes

CENTERINGS = ('center', 'sinkhorn', 'none')
ON_COLLAPSE = ('warn', 'stop')
# The large views.
VIEWS = 2
_CENTER_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dino(Images):
  """Learns to say of one view of an image what a teacher says of another, without labels.

  The teacher is the moving average of the student. These are DINO (Caron et al. 2021), with a
  `patch_head` of the model iBOT (Zhou et al. 2022), and with centering=sinkhorn and koleo=0.1 what
  DINOv2 adds (Oquab et al. 2024). The teacher sees two large views, cropped as `data.crop` says,
  the student these and `local` small ones. What is evaluated and exported is the teacher.

  Attributes:
    local: how many small views; 0 for none.
    local_size: their side in pixels.
    local_area: smallest and largest share of the image's area that one shows.
    blur: probabilities of a blur in the first and the second large view and in small ones, in place
      of that of `data.colour`, which is a jitter; likewise.
    solarize: likewise.
    momentum: of the teacher.
    temperature: of the teacher.
    student_temperature: of the student.
    centering: what keeps the teacher from choosing the same prototypes for all: 'center', the
      moving average of its logits is subtracted, or 'sinkhorn', three iterations of Sinkhorn-Knopp
      (Caron et al. 2020) over all large views of the batch. With 'none' it will choose the same, as
      in DINO's appendix D.
    last_layer: factor on the learning rate of prototypes, and of their lengths where these are
      learned: '0 until 1 epoch then 1' in DINO.
    patch_weight: of the loss of hidden patches.
    patch_temperature: of the teacher, for patches; unset: that for images.
    masked: probability of a large view to have hidden patches.
    ratio: least and largest share of its patches that are; blocks may stop short of it.
    smallest: least number of patches of a block: 4 in DINOv2, 16 in iBOT at 224 pixels.
    koleo: weight of the regulariser of Sablayrolles et al. (2019), which spreads the class tokens
      of all examples of the batch: each moves away from its nearest neighbour.
    on_collapse: what happens when the signs say that all images come to look alike: 'warn', or
      'stop', which ends the run.
  """

  local: int = 8
  local_size: int = 96
  local_area: tuple[float, float] = (0.05, 0.4)
  blur: tuple[float, ...] = ()
  solarize: tuple[float, ...] = ()
  momentum: Schedule = Schedule('0.996->1 cosine')
  temperature: Schedule = Schedule(0.04)
  student_temperature: Schedule = Schedule(0.1)
  centering: str = 'center'
  last_layer: Schedule = Schedule(1.0)
  patch_weight: float = 1.0
  patch_temperature: Schedule | None = None
  masked: float = 0.5
  ratio: tuple[float, float] = (0.1, 0.5)
  smallest: int = 4
  koleo: float = 0.0
  on_collapse: str = 'warn'

  def __post_init__(self):
    super().__post_init__()
    for name, known in (('centering', CENTERINGS), ('on_collapse', ON_COLLAPSE)):
      if (value := getattr(self, name)) not in known:
        raise RunError(f'unknown task.{name} {value!r}: {suggest(value, known)}')
    if self.local < 0 or self.local_size < 1:
      raise RunError(
        f'task.local={self.local} and task.local_size={self.local_size} must not be negative'
      )
    for name in ('local_area', 'ratio'):
      low, high = getattr(self, name)
      if not 0 < low <= high <= 1:
        raise RunError(f'task.{name}={low, high}: expected 0 < least <= largest <= 1')
    for name in ('blur', 'solarize'):
      values = getattr(self, name)
      if len(values) not in (0, 3) or not all(0 <= value <= 1 for value in values):
        raise RunError(
          f'task.{name}={values}: expected three probabilities, of the first and second large view '
          'and of small ones, or none'
        )
    if not 0 <= self.masked <= 1 or self.smallest < 1:
      raise RunError(f'task.masked={self.masked} is a probability, task.smallest at least 1')
    if min(self.koleo, self.patch_weight) < 0:
      raise RunError(f'task.koleo={self.koleo} and task.patch_weight must not be negative')

  @property
  def coupled(self) -> bool:  # type: ignore
    """See `Task`: means over examples are sums, nearest neighbours and Sinkhorn's are not."""
    return bool(self.koleo) or self.centering == 'sinkhorn'

  # --- model and data ---

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`."""
    if not isinstance(model, DinoArchitecture):
      raise RunError(f'task.name=dino needs model.name=dino, not {model.kind}')
    patch = model.encoder.patch
    if self.local and any(self.local_size % side for side in patch):
      raise RunError(f'task.local_size={self.local_size} is no multiple of patches of {patch}')
    if model.patch_head != 'none':
      self._partly(model)
    return super().adapt(model, fields)

  def notes(self, model: Any, fields: Fields) -> list[str]:
    """See `Task`."""
    side = ' x '.join(map(str, model.image_size))
    small = f' and {self.local} of {self.local_size}' if self.local else ''
    lines = [f'views: {VIEWS} of {side}{small} pixels; the teacher sees the large ones']
    if model.patch_head != 'none':
      most = self._partly(model).hiding.count
      lines.append(f'hidden: up to {most} patches of {self.masked:.0%} of the large views')
    return lines + super().notes(model, fields)

  def _partly(self, model: Any) -> Partly:
    grid = model.encoder.grid
    patches = math.prod(grid)
    most = math.floor(self.ratio[1] * patches)
    if most < 1:
      raise RunError(f'task.ratio={self.ratio} hides none of {patches} patches')
    hiding = Hiding(grid, count=most, blocks=True, least=self.smallest)
    return Partly(hiding, self.masked, self.ratio[0])

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    if not train:
      return self.columns(model, fields, view)
    if view.erase.count:
      raise RunError('data.erase is for examples with one image, and here each has several views')
    if not view.crop.random:
      raise RunError(
        'data.crop draws nothing, so that all large views would be the same: use '
        '--config.data.crop.name=random_resized'
      )
    large = view.sized(model.image_size)
    views = tuple(self._coloured(large, number) for number in range(VIEWS))
    local: tuple[View, ...] = ()
    if self.local:
      if not isinstance(view.crop, RandomResized):
        raise RunError('task.local takes small views out of data.crop.name=random_resized')
      least, most = self.local_area
      crop = dataclasses.replace(view.crop, min_area=least, max_area=most)
      small = dataclasses.replace(view, crop=crop).sized((self.local_size, self.local_size))
      local = (self._coloured(small, VIEWS),) * self.local
    partly = self._partly(model) if model.patch_head != 'none' else None
    return MultiCrop(image_of(model, fields), views, local, partly)

  def _coloured(self, view: View, number: int) -> View:
    """A view with the probabilities of its number: two large ones, and all small ones."""
    own = {n: getattr(self, n)[number] for n in ('blur', 'solarize') if getattr(self, n)}
    if own and not isinstance(view.colour, Jitter):
      raise RunError(f'task.{next(iter(own))} is for data.colour.name=jitter')
    return dataclasses.replace(view, colour=dataclasses.replace(view.colour, **own))

  def passes(self, model: Any) -> list[Pass]:
    """See `Task`: the student on all views, the teacher on large ones, and heads of patches."""
    passes = [Pass(model, times=VIEWS), Pass(model, times=VIEWS, grad='none')]
    if self.local:
      encoder = dataclasses.replace(model.encoder, image_size=(self.local_size,) * 2)
      passes.append(Pass(dataclasses.replace(model, encoder=encoder).resolve(), times=self.local))
    if model.patch_head != 'none':
      name = 'patch_head' if model.patch_head == 'separate' else 'head'
      head = _Products(model.products(name) * self._partly(model).hiding.count)
      passes += [Pass(head, times=VIEWS), Pass(head, times=VIEWS, grad='none')]
    return passes

  # --- the step ---

  def start(self, model: Any, key: Any) -> dict[str, Any]:
    """See `Task`: the teacher, and the centre of each head."""
    del key
    centers = {name: jnp.zeros(count) for name, (_, count) in model.config.sizes.items()}
    if model.config.patch_head == 'shared':  # the same head, and other logits
      centers['patch_head'] = centers['head']
    extra = {'teacher': jax.tree.map(jnp.copy, model)}
    return extra | ({'center': centers} if self.centering == 'center' else {})

  def rates(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """See `Task`: prototypes may be kept where they are at first."""
    return {r'.*head/(last/kernel|scale)': hyper['task.last_layer']}

  def augment(self, batch: Batch, key: Any, hyper: Mapping[str, Any]) -> Batch:
    """See `Task`."""
    del key, hyper
    names = [name for name in ('image', 'global', 'local') if name in batch]
    return {**batch, **{name: self.normalize(batch[name]) for name in names}}

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The mean over examples of the cross-entropies; see the class."""
    mask, keys = part['mask'], ctx.noise.split()
    teacher, hidden = ctx.whole(ctx.extra['teacher']), part.get('hidden')
    if hidden is not None:
      hidden = _flat(hidden)
    large = _flat(part['global'])
    token, patches = model(large, hidden=hidden, key=keys[0])
    taught, taught_patches = jax.lax.stop_gradient(teacher(large))
    logits = _apart(jax.lax.stop_gradient(teacher.head(taught)[:, 0]), VIEWS)
    seen: dict[str, Any] = {}
    target = self._target(logits, ctx, 'head', 'temperature', mask[:, None])
    cool = ctx.hyper['task.student_temperature']
    said = [_apart(model.head(token)[:, 0], VIEWS)]
    if self.local:
      small = model(_flat(part['local']), key=keys[1])[0]
      said.append(_apart(model.head(small)[:, 0], self.local))
    each = _pairs(target, *(logits / cool for logits in said))
    entropy = -(target * jnp.log(jnp.maximum(target, 1e-30))).sum(-1).mean(-1)
    sums = {'images': each, 'entropy': entropy, 'kl': each - entropy}
    total = each
    if hidden is not None:
      of_patches = self._of_patches(model, teacher, patches, taught_patches, part, ctx, seen)
      sums['patches'] = of_patches
      total = total + self.patch_weight * of_patches
    if self.koleo:
      features = _apart(token[:, 0], VIEWS).astype(jnp.float32)
      sums['koleo'] = nearness(features[:, 0], mask) + nearness(features[:, 1], mask)
      total = total + self.koleo * sums['koleo']
    sums = {
      name: ((value * mask).sum(), 'examples') for name, value in {'loss': total, **sums}.items()
    }
    seen |= _statistics(logits, target, _apart(taught[:, 0], VIEWS).astype(jnp.float32), mask)
    return sums['loss'][0] / ctx.totals['examples'], sums, jax.lax.stop_gradient(seen)

  def _target(
    self, logits: jax.Array, ctx: Context, head: str, temperature: str, weight: jax.Array
  ) -> jax.Array:
    """What the teacher says, probabilities over the last axis of its logits.

    Args:
      logits: float32 (batch, ..., prototypes).
      head: whose centre it is.
      temperature: name of the field.
      weight: 0 for what is not there, (batch, ...).
    """
    warm = ctx.hyper[f'task.{temperature}']
    if self.centering == 'center':
      logits = logits - ctx.extra['center'][head]
    if self.centering == 'sinkhorn':
      return sinkhorn(logits / warm, weight > 0)
    return jax.nn.softmax(logits / warm)

  def _of_patches(
    self, model: Any, teacher: Any, patches: jax.Array, taught: jax.Array, part: Batch,
    ctx: Context, seen: dict[str, Any],
  ) -> jax.Array:  # fmt: skip
    """The cross-entropy of hidden patches, a mean of each view, of both views: (batch,)."""
    asked, share = _flat(part['asked']), part['share'] * part['mask'][:, None, None]
    pick = lambda tokens: jax.vmap(lambda x, index: x[index])(tokens, asked)  # noqa: E731
    apart = lambda x: _apart(x, VIEWS)  # noqa: E731
    ours, theirs, there = model.of_patches, teacher.of_patches, share > 0
    patches, taught = pick(patches), pick(taught)
    temperature = 'temperature' if self.patch_temperature is None else 'patch_temperature'
    cool = ctx.hyper['task.student_temperature']
    if prototypes.fit(jax.eval_shape(ours, patches)):
      logits = apart(jax.lax.stop_gradient(theirs(taught)))
      target = self._target(logits, ctx, 'patch_head', temperature, share)
      each = -(target * jax.nn.log_softmax(apart(ours(patches)) / cool)).sum(-1)
      total = (logits * there[..., None].astype(jnp.float32)).sum((0, 1, 2))
    else:
      said = prototypes.Said(apart(ours.features(patches)), ours.compared(), cool)
      known = apart(theirs.features(taught)), theirs.compared(), ctx.hyper[f'task.{temperature}']
      known = prototypes.Said(*jax.lax.stop_gradient(known))
      shift = jnp.zeros(known.compared.shape[1])
      if self.centering == 'center':
        shift = -ctx.extra['center']['patch_head'] / known.temperature
      if self.centering == 'sinkhorn':
        shift = prototypes.sinkhorn(known, there)
      each, total = prototypes.cross_entropy(said, known, there, shift)
    if self.centering == 'center':
      seen['patch_logits'], seen['patch_count'] = total, there.astype(jnp.float32).sum()
    return (each * share).sum((1, 2)) / VIEWS

  def update(self, extra: Any, model: Any, seen: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """See `Task`: centres move after they were used, the teacher after the student."""
    new = {'teacher': average(extra['teacher'], model, ctx.hyper['task.momentum'])}
    if self.centering == 'center':
      means = {'head': (seen['logits'], VIEWS * ctx.totals['examples'])}
      if 'patch_logits' in seen:
        means['patch_head'] = seen['patch_logits'], seen['patch_count']
      old = extra['center']
      for name, (total, count) in means.items():
        moved = average(old[name], total / jnp.maximum(count, 1), _CENTER_MOMENTUM)
        new['center'] = new.get('center', {}) | {name: jnp.where(count > 0, moved, old[name])}
    return new

  # --- what is watched ---

  def report(
    self, extra: Any, model: Any, seen: Mapping[str, Any], ctx: Context
  ) -> dict[str, jax.Array]:
    """See `Task`: the signs of a collapse, of the whole batch.

    Returns:
      'mean_entropy', in nats, of the mean of what the teacher says; 'used', how many prototypes are
      the likeliest of some view; 'spread', 1 for class tokens that point anywhere and 0 for equal
      ones (mean of the standard deviation of each feature at length 1, times the root of their
      number); 'rank', of their covariance, the squared sum of its eigenvalues by the sum of their
      squares; 'distance' of student and teacher, relative to the student; 'center', its length.
    """
    views = VIEWS * ctx.totals['examples']
    mean = seen['said'] / views
    middle, square = seen['features'] / views, seen['gram'] / views
    covariance = square - middle[:, None] * middle[None]
    deviation = jnp.sqrt(jnp.maximum(jnp.diag(covariance), 0.0))
    apart = jax.tree.map(jnp.subtract, model, extra['teacher'])
    length = lambda x: jnp.sqrt(sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(x)))  # noqa: E731
    found = {
      'mean_entropy': -(mean * jnp.log(jnp.maximum(mean, 1e-30))).sum(),
      'used': (seen['likeliest'] > 0).sum().astype(jnp.float32),
      'spread': deviation.mean() * math.sqrt(len(middle)),
      'rank': jnp.square(jnp.trace(covariance)) / jnp.maximum(jnp.square(covariance).sum(), 1e-30),
      'distance': length(apart) / length(model),
    }
    if self.centering == 'center':
      found['center'] = length(extra['center']['head'])
    return found

  def signs(self, model: Any, values: Mapping[str, float], examples: int) -> dict[str, str]:
    """See `Task`: what says that the run collapses; thresholds as in the explanation."""
    count = model.prototypes
    views = VIEWS * examples
    # A mean of so many distributions cannot have more.
    most = min(math.log(count), math.log(views) + values['entropy'])
    room = min(count, views)
    found = {}
    if values['mean_entropy'] < 0.6 * most:  # Sinkhorn's is as large as it can be
      found['mean_entropy'] = (
        f'the mean of what the teacher says has an entropy of {values["mean_entropy"]:.2f} of '
        f'{most:.2f} nats: few prototypes win'
      )
    if values['used'] < 0.1 * room:
      found['used'] = (
        f'{views} views choose {values["used"]:.0f} of {count} prototypes: few prototypes win'
      )
    if values['entropy'] > 0.98 * math.log(count):
      found['entropy'] = (
        f'what the teacher says of a view has an entropy of {values["entropy"]:.2f} of '
        f'{math.log(count):.2f} nats: it says nothing'
      )
    if values['kl'] < 0.02 * most:
      found['kl'] = (
        f'the student is {values["kl"]:.3g} nats from the teacher: views of an image cannot differ '
        'so little, unless all images are alike'
      )
    if values['spread'] < 0.2:
      found['spread'] = f'class tokens have a spread of {values["spread"]:.2f} of 1: all are alike'
    if values['rank'] < 1.5:
      found['rank'] = f'class tokens lie in {values["rank"]:.1f} dimensions'
    return found

  @property
  def stops(self) -> bool:
    """See `Task`."""
    return self.on_collapse == 'stop'

  remedy: ClassVar[str] = (
    'What has rescued others: a lower task.temperature (0.04), a momentum nearer to 1, fewer '
    'prototypes (8,192), task.centering=sinkhorn, larger batches (256 and more), a lower learning '
    'rate with a longer warm-up, optim.clip=3'
  )

  # --- what is judged ---

  def judged(self, state: Any, frozen: Any) -> Any:
    """See `Task`: the teacher."""
    return tree.merge(state.extra['teacher'], frozen)

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """What the teacher says: 'prototype', int32 (batch,), and 'entropy', float32 (batch,)."""
    logits = model.head(model(batch['image'])[0])[:, 0]
    said = jax.nn.softmax(logits / jnp.float32(self.student_temperature.values[-1]))
    entropy = -(said * jnp.log(jnp.maximum(said, 1e-30))).sum(-1)
    return {'prototype': logits.argmax(-1), 'entropy': entropy}

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`."""
    del example, seen
    return Prediction(
      {'prototype': int(outputs['prototype']), 'entropy': float(outputs['entropy'])}
    )


@dataclasses.dataclass(frozen=True)
class _Products(Composition):
  """Multiply-adds of something that has no parameters of its own, for `Pass`."""

  kind: ClassVar[str] = 'products'
  macs: int = 0

  @property
  def rest(self) -> tuple[tuple[str, int, int], ...]:
    """See `Composition`."""
    return (('products', 0, self.macs),)


def _flat(x: jax.Array) -> jax.Array:
  """(batch, views, ...) -> (batch * views, ...)."""
  return x.reshape(-1, *x.shape[2:], out_sharding=sharding.spec('batch', *(None,) * (x.ndim - 2)))


def _apart(x: jax.Array, views: int) -> jax.Array:
  """(batch * views, ...) -> (batch, views, ...)."""
  shape = (-1, views, *x.shape[1:])
  return x.reshape(shape, out_sharding=sharding.spec('batch', *(None,) * x.ndim))


def _pairs(target: jax.Array, large: jax.Array, small: jax.Array | None = None) -> jax.Array:
  """The mean cross-entropy over pairs of a teacher's view and another view of the student.

  Args:
    target: probabilities, (batch, 2, prototypes).
    large, small: logits of the student, (batch, views, prototypes); the large views are those of
      the teacher.

  Returns:
    (batch,).
  """
  logs = jax.nn.log_softmax(large)
  total = -(target * logs[:, ::-1]).sum((-1, -2))
  pairs = VIEWS
  if small is not None:
    both = target.sum(1, keepdims=True)
    total = total - (both * jax.nn.log_softmax(small)).sum((-1, -2))
    pairs += VIEWS * small.shape[1]
  return total / pairs


def sinkhorn(logits: jax.Array, there: jax.Array, iterations: int = 3) -> jax.Array:
  """Assigns samples to prototypes, equally many to each (Cuturi 2013; Caron et al. 2020).

  In logarithms: whatever logits are, nothing overflows.

  Args:
    logits: divided by the temperature, float32 (batch, ..., prototypes).
    there: which samples take part, bool (batch, ...).

  Returns:
    Probabilities of each sample; of those that take no part zeros.
  """
  x = jnp.where(there[..., None], logits, -jnp.inf)
  samples = tuple(range(x.ndim - 1))
  for _ in range(iterations):
    x = x - jax.nn.logsumexp(x, axis=samples, keepdims=True)
    x = jnp.where(there[..., None], x - jax.nn.logsumexp(x, axis=-1, keepdims=True), -jnp.inf)
  return jnp.exp(x)


def nearness(features: jax.Array, mask: jax.Array) -> jax.Array:
  """Minus the logarithm of the distance to the nearest other example, at length 1: (batch,).

  The regulariser of Kozachenko and Leonenko, as in Sablayrolles et al. 2019. Nearest of all
  examples of the batch, on all devices. Equal ones are as if they were 1e-6 apart, so that
  gradients stay finite.

  Args:
    features: float32 (batch, features).
    mask: 0 for examples that are none, (batch,).
  """
  x = dino.unit(features, -1)
  every, real = sharding.whole(x), sharding.whole(mask)
  layout = sharding.spec('batch', None)
  near = jnp.einsum('id,jd->ij', x, every, precision='highest', out_sharding=layout)
  rows = jnp.arange(len(x))
  itself = rows[:, None] == rows[None]
  best = jax.lax.stop_gradient(jnp.where(itself | (real[None] == 0), -2.0, near)).argmax(-1)
  other = every.at[best].get(out_sharding=layout)
  return -0.5 * jnp.log(jnp.square(x - other).sum(-1) + 1e-12)


def _statistics(
  logits: jax.Array, target: jax.Array, features: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
  """Sums over the batch that `Dino.update` and `Dino.report` need; both views count."""
  weight = mask[:, None, None]
  count = logits.shape[-1]
  unit = dino.unit(features, -1) * weight
  likeliest = jax.nn.one_hot(logits.argmax(-1), count, dtype=jnp.float32)
  return {
    'logits': (logits * weight).sum((0, 1)), 'said': (target * weight).sum((0, 1)),
    'likeliest': (likeliest * weight).sum((0, 1)), 'features': unit.sum((0, 1)),
    'gram': jnp.einsum('bvd,bve->de', unit, unit, out_sharding=sharding.spec(None, None)),
  }  # fmt: skip
