"""Tasks that are hard on the loop, as small as they can be: `test_conformance` trains them.

None of them is good at anything. Each uses what others do not: state of its own, another size of
images, a loss over pairs, frozen parameters, several totals, records joined with the source, a
queue, a model that is made of two.
"""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax import architecture, evaluators, models, tasks
from vit_jax.architecture import Composition, ViTArchitecture
from vit_jax.architecture.card import Card
from vit_jax.core.schedule import Schedule
from vit_jax.costs.step import Pass
from vit_jax.data import crops
from vit_jax.data.preprocess import prepare
from vit_jax.data.rows import Array
from vit_jax.data.rows.columns import labelled
from vit_jax.data.views import View
from vit_jax.evaluators.evaluator import Evaluator, Scores
from vit_jax.models.vit import ViT
from vit_jax.nn import tree
from vit_jax.nn.layers import Dense
from vit_jax.nn.sharding import spec, whole
from vit_jax.tasks.images import Images
from vit_jax.tasks.task import Coupled, average

VIEW, WHOLE = View(crops.RandomResized(min_area=0.4)), View(size=(8, 8))


# --- rows ---


@dataclasses.dataclass(frozen=True)
class Views:
  """Two views of an image, and two smaller ones."""

  train: bool
  needs: ClassVar = {'image': 'image'}

  def arrays(self):
    if not self.train:
      return {'image': Array((8, 8, 1), np.uint8)}
    return {'global': Array((2, 8, 8, 1), np.uint8), 'local': Array((2, 4, 4, 1), np.uint8)}

  def make(self, example, rng):
    if not self.train:
      return {'image': prepare(example['image'], WHOLE, 1, rng)}
    cut = lambda side: np.stack([prepare(example['image'], VIEW.sized((side, side)), 1, rng)] * 2)  # noqa: E731
    return {'global': cut(8), 'local': cut(4)}

  def about(self, example):
    return []


@dataclasses.dataclass(frozen=True)
class Spots:
  """An image and the brightest pixel of each of its quarters, of those that are bright at all."""

  needs: ClassVar = {'image': 'image'}

  def arrays(self):
    return {
      'image': Array((8, 8, 1), np.uint8), 'spots': Array((4, 2), np.float32),
      'real': Array((4,), np.float32),
    }  # fmt: skip

  def make(self, example, rng):
    image = prepare(example['image'], WHOLE, 1, rng)
    spots, real = spots_of(image)
    return {'image': image, 'spots': spots, 'real': real}

  def about(self, example):
    return []


def spots_of(image):
  """(4, 2) coordinates in [0, 1], and whether each is there."""
  spots, real = np.zeros((4, 2), np.float32), np.zeros(4, np.float32)
  for i, (y, x) in enumerate(itertools.product((0, 4), (0, 4))):
    quarter = image[y : y + 4, x : x + 4, 0]
    at = np.unravel_index(quarter.argmax(), quarter.shape)
    spots[i], real[i] = (np.array([y, x]) + at) / 8, quarter.max() > 200
  return spots, real


@dataclasses.dataclass(frozen=True)
class Captioned:
  """An image and words on it: its class, and whether that is even."""

  needs: ClassVar = {'image': 'image', 'label': 'class'}

  def arrays(self):
    return {'image': Array((8, 8, 1), np.uint8), 'words': Array((4,), np.int32)}

  def make(self, example, rng):
    image = prepare(example['image'], WHOLE, 1, rng)
    return {'image': image, 'words': words_of(example['label'])}

  def about(self, example):
    return []


def words_of(label):
  return np.array([1, 2 + label, 12 + label % 2, 19], np.int32)


# --- tasks ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dino(Images):
  """Self-distillation: a teacher that follows, a centre, two sizes of images."""

  momentum: Schedule = Schedule('0.9->1 cosine 4 steps')
  temperature: Schedule = Schedule(0.1)

  def adapt(self, model, fields):
    return dataclasses.replace(super().adapt(model, fields), num_classes=16)

  def rows(self, model, fields, view, *, train):
    return Views(train)

  def passes(self, model):
    teacher = Pass(model, times=2, grad='none')
    return [Pass(model, times=2), Pass(model, times=2, size=(4, 4)), teacher]

  def start(self, model, key):
    return {'teacher': jax.tree.map(jnp.copy, model), 'center': jnp.zeros(16)}

  def augment(self, batch, key, hyper):
    names = [name for name in ('image', 'global', 'local') if name in batch]
    batch = {**batch, **{name: self.normalize(batch[name]) for name in names}}
    if key is not None:
      noise = 0.1 * jax.random.normal(
        key, batch['global'].shape, out_sharding=jax.typeof(batch['global']).sharding
      )
      batch['global'] = batch['global'] + noise
    return batch

  def loss(self, model, part, ctx):
    def run(model, views, key):
      flat = views.reshape(-1, *views.shape[2:], out_sharding=spec('batch', None, None, None))
      out = model(flat, key=key)
      return out.reshape(*views.shape[:2], 16, out_sharding=spec('batch', None, None))

    teacher = jax.lax.stop_gradient(run(ctx.whole(ctx.extra['teacher']), part['global'], None))
    noise = ctx.noise.split()
    student = [run(model, part[n], key) for n, key in zip(('global', 'local'), noise, strict=True)]
    target = jax.nn.softmax((teacher - ctx.extra['center']) / ctx.hyper['task.temperature'])
    each = 0.0
    for views in student:
      said = jax.nn.log_softmax(views / 0.2)
      each -= (target[:, :, None] * said[:, None]).sum(-1).mean((1, 2))
    total = (each * part['mask']).sum()
    logits = (teacher.sum(1) * part['mask'][:, None]).sum(0)
    return total / ctx.totals['examples'], {'loss': (total, 'examples')}, {'logits': logits}

  def update(self, extra, model, seen, ctx):
    mean = seen['logits'] / (2 * ctx.totals['examples'])
    return {
      'teacher': average(extra['teacher'], model, ctx.hyper['task.momentum']),
      'center': 0.9 * extra['center'] + 0.1 * mean,
    }

  def judged(self, state, frozen):
    return tree.merge(state.extra['teacher'], frozen)

  def predict(self, model, batch):
    return {'logits': model(batch['image'])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetPrediction(Images):
  """Four guesses, matched to what is there; three totals."""

  def adapt(self, model, fields):
    return dataclasses.replace(super().adapt(model, fields), num_classes=12)

  def rows(self, model, fields, view, *, train):
    return Spots()

  def totals(self, batch):
    mask = batch['mask']
    return {
      'examples': mask.sum(), 'spots': (batch['real'] * mask[:, None]).sum(),
      'guesses': 4 * mask.sum(),
    }  # fmt: skip

  def predict(self, model, batch):
    guesses = model(batch['image']).reshape(-1, 4, 3, out_sharding=spec('batch', None, None))
    return {'score': guesses[..., 0], 'spot': jax.nn.sigmoid(guesses[..., 1:])}

  def loss(self, model, part, ctx):
    found = self.predict(model, part)
    orders = list(itertools.permutations(range(4)))
    apart = jnp.abs(found['spot'][:, :, None] - part['spots'][:, None]).sum(-1)
    apart = apart * part['real'][:, None]
    chosen = jax.nn.one_hot(jnp.array(orders), 4).swapaxes(1, 2)  # (orders, guesses, spots)
    costs = jnp.einsum('bij,pij->bp', apart, chosen, out_sharding=spec('batch', None))
    best = jnp.argmin(jax.lax.stop_gradient(costs), -1)
    order = jnp.array(orders).at[best].get(out_sharding=spec('batch', None))
    pick = lambda x: jax.vmap(lambda row, index: row[index])(x, order)  # noqa: E731
    near = jnp.abs(pick(found['spot']) - part['spots']).sum(-1) * part['real']
    score = pick(found['score'])
    there = -jax.nn.log_sigmoid(jnp.where(part['real'] > 0, score, -score))
    mask = part['mask'][:, None]
    distance, unsure = (near * mask).sum(), (there * mask).sum()
    loss = distance / ctx.totals['spots'] + unsure / ctx.totals['guesses']
    sums = {
      'loss': (loss * ctx.totals['examples'], 'examples'), 'distance': (distance, 'spots'),
      'unsure': (unsure, 'guesses'),
    }  # fmt: skip
    return loss, sums, {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Captions(Images):
  """Words one after another, written down when they are evaluated."""

  def adapt(self, model, fields):
    return dataclasses.replace(super().adapt(model, fields), num_classes=20)

  def rows(self, model, fields, view, *, train):
    return Captioned()

  def totals(self, batch):
    return {'examples': batch['mask'].sum(), 'words': 3 * batch['mask'].sum()}

  def _next(self, logits, word):
    """Of the image and the word before: a shifted look at the same logits."""
    shift = jax.nn.one_hot(word, 20)
    return logits + 0.1 * shift

  def loss(self, model, part, ctx):
    logits, words = model(part['image'], key=ctx.noise), part['words']
    total = 0.0
    for i in range(3):
      said = jax.nn.log_softmax(self._next(logits, words[:, i]))
      total -= ((said * jax.nn.one_hot(words[:, i + 1], 20)).sum(-1) * part['mask']).sum()
    return total / ctx.totals['words'], {'loss': (total, 'words')}, {}

  def predict(self, model, batch):
    logits = model(batch['image'])

    def step(word, _):
      word = jnp.argmax(self._next(logits, word), -1)
      return word, word

    first = jnp.zeros_like(batch['mask'], jnp.int32)
    _, words = jax.lax.scan(step, first, length=3)
    return {'words': words.T}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moco(Images, Coupled):
  """A queue of keys: state that is no sum over the batch, of a teacher that follows."""

  temperature: Schedule = Schedule(0.2)
  momentum: Schedule = Schedule('0.9->1 cosine 6 steps')
  queue: int = 40

  def adapt(self, model, fields):
    return dataclasses.replace(super().adapt(model, fields), num_classes=0)

  def rows(self, model, fields, view, *, train):
    return Views(train)

  def passes(self, model):
    return [Pass(model), Pass(model, grad='none')]

  def start(self, model, key):
    keys = unit(jax.random.normal(key, (self.queue, model.config.width)))
    return {'key': jax.tree.map(jnp.copy, model), 'queue': keys, 'at': jnp.int32(0)}

  def augment(self, batch, key, hyper):
    names = [name for name in ('image', 'global') if name in batch]
    return {**batch, **{name: self.normalize(batch[name]) for name in names}}

  def embed(self, model, part, ctx):
    one, other = ctx.noise.split()
    teacher = ctx.whole(ctx.extra['key'])
    key = jax.lax.stop_gradient(unit(teacher(part['global'][:, 1], key=other)))
    return {'query': unit(model(part['global'][:, 0], key=one)), 'key': key, 'mask': part['mask']}

  def joint(self, model, z, ctx):
    own = (z['query'] * z['key']).sum(-1, keepdims=True)
    others = jnp.einsum('bd,kd->bk', z['query'], ctx.extra['queue'],
                        out_sharding=spec('batch', None))  # fmt: skip
    logits = jnp.concatenate([own, others], -1) / ctx.hyper['task.temperature']
    total = ((jax.nn.logsumexp(logits, -1) - logits[:, 0]) * z['mask']).sum()
    seen = {'keys': whole(z['key'])}
    return total / ctx.totals['examples'], {'loss': (total, 'examples')}, seen

  def update(self, extra, model, seen, ctx):
    places = (extra['at'] + jnp.arange(len(seen['keys']))) % self.queue
    return {
      'key': average(extra['key'], model, ctx.hyper['task.momentum']),
      'queue': extra['queue'].at[places].set(seen['keys']),
      'at': (extra['at'] + len(seen['keys'])) % self.queue,
    }  # fmt: skip

  def judged(self, state, frozen):
    return tree.merge(state.extra['key'], frozen)

  def predict(self, model, batch):
    return {'features': unit(model(batch['image']))}


def unit(x):
  """Rows of length 1."""
  return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)


# --- a model of two ---


@dataclasses.dataclass(frozen=True)
class PairArchitecture(Composition):
  """Two encoders that look at the same image.

  Attributes:
    left, right: without heads.
    num_classes: of both together.
  """

  kind: ClassVar[str] = 'toy_pair'
  left: ViTArchitecture = dataclasses.field(default_factory=lambda: ViTArchitecture(''))
  right: ViTArchitecture = dataclasses.field(default_factory=lambda: ViTArchitecture(''))
  num_classes: int = 10

  @property
  def rest(self):
    products = (self.left.width + self.right.width) * self.num_classes
    return (('bridge', products + self.num_classes, products),)


class Pair(nnx.Module):
  """Logits from the features of both."""

  def __init__(self, config, rngs):
    config = config.resolve()
    self.config, self.card = config, None
    self.left, self.right = (ViT(tower, rngs) for tower in config.towers.values())
    width = config.left.width + config.right.width
    self.bridge = Dense(rngs, (width, config.num_classes), (None, None))

  def __call__(self, images, *, key=None):
    keys = (None, None) if key is None else key.split()
    both = [tower(images, key=k) for tower, k in zip((self.left, self.right), keys, strict=True)]
    return self.bridge(jnp.concatenate(both, -1), 'bd,dc->bc', ('batch', None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together(Images):
  """Classification by two encoders; reports how the harder half does, too."""

  def adapt(self, model, fields):
    return model

  def card(self, model, crop, fields):
    return Card('vit_jax', model.left.image_size, (0.5,), (0.5,), 'area')

  def rows(self, model, fields, view, *, train):
    return labelled(WHOLE, 1, model.num_classes)

  def loss(self, model, part, ctx):
    logits = model(part['image'], key=ctx.noise)
    each = -jax.nn.log_softmax(logits) * jax.nn.one_hot(part['label'], logits.shape[-1])
    total = (each.sum(-1) * part['mask']).sum()
    return total / ctx.totals['examples'], {'loss': (total, 'examples')}, {}

  def predict(self, model, batch):
    return {'logits': model(batch['image'])}


# --- evaluators ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision(Evaluator):
  """Average precision of spots: all guesses are ranked, and the source knows what is there."""

  def record(self, row, example, seen):
    spots, real = spots_of(Spots().make(example, None)['image'])
    near = np.abs(row['spot'][:, None] - spots[real > 0][None]).sum(-1) < 0.3
    hits = near.any(1) if real.any() else np.zeros(4, bool)
    return {'score': row['score'].tolist(), 'hit': hits.tolist(), 'real': int(real.sum())}

  def finish(self, found):
    records = found['test'].records
    scores = np.concatenate([record['score'] for record in records])
    hits = np.concatenate([record['hit'] for record in records])[np.argsort(-scores, kind='stable')]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    ap = float((precision * hits).sum() / max(1, sum(record['real'] for record in records)))
    return Scores({'ap': ap}, {'scores': scores, 'indices': found['test'].indices})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spoken(Evaluator):
  """The share of captions whose first word is the class, by text."""

  def record(self, row, example, seen):
    return ' '.join(map(str, row['words'])), str(words_of(example['label'])[1])

  def finish(self, found):
    records = found['test'].records
    right = [text.split()[0] == want for text, want in records]
    return Scores({'right': float(np.mean(right))}, {'texts': np.array([t for t, _ in records])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread(Evaluator):
  """How different outputs are, by sums on the devices."""

  output: str = 'logits'

  def sums(self, outputs, batch):
    weighted = outputs[self.output] * batch['mask'][:, None]
    return {'first': weighted.sum(0), 'second': jnp.square(weighted).sum(0)}

  def finish(self, found):
    count = found['test'].examples
    first, second = (found['test'].totals[name] / count for name in ('first', 'second'))
    return Scores({'spread': float(np.sqrt(np.maximum(second - first**2, 0)).mean())}, {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbour(Evaluator):
  """Accuracy of the class of the nearest image of another split."""

  fit: str = 'train'

  def splits(self):
    return {'fit': self.fit, 'test': self.split}

  def record(self, row, example, seen):
    return row['features'], example['label']

  def finish(self, found):
    (known, labels), (asked, truth) = (
      map(np.array, zip(*found[name].records, strict=True)) for name in ('fit', 'test')
    )
    near = (asked @ known.T).argmax(1)
    arrays = {'nearest': found['fit'].indices[near], 'said': labels[near]}
    return Scores({'top1': float((labels[near] == truth).mean())}, arrays)


def register():
  """Makes all of this known; in a process of its own, before it reads its configuration."""
  for there, ours in REGISTRIES:
    there.update(ours)


MODELS: dict[str, Any] = {'toy_pair': PairArchitecture}
MODULES: dict[type, str] = {PairArchitecture: 'tests.toy_tasks:Pair'}
TASKS: dict[str, Any] = {
  'toy_dino': Dino, 'toy_set': SetPrediction, 'toy_captions': Captions,
  'toy_moco': Moco, 'toy_pair': Together,
}  # fmt: skip
EVALUATORS: dict[str, Any] = {
  'toy_precision': Precision, 'toy_spoken': Spoken, 'toy_spread': Spread,
  'toy_neighbour': Neighbour,
}  # fmt: skip
REGISTRIES: tuple[tuple[dict[Any, Any], dict[Any, Any]], ...] = (
  (tasks.TASKS, TASKS), (evaluators.EVALUATORS, EVALUATORS), (architecture.MODELS, MODELS),
  (models.MODULES, MODULES),
)  # fmt: skip
