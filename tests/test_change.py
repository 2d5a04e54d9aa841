"""Changes and damage between two pictures: models, losses and scores, against other numbers."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image as Image_
from sklearn import metrics

from configs import change as change_config
from vit_jax.architecture.change import ChangeArchitecture
from vit_jax.convert import adapt
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data import preprocess
from vit_jax.data.fields import VOID, Field
from vit_jax.data.rows.columns import Columns, Image, Map, Marked
from vit_jax.data.sources import SOURCES, open_split
from vit_jax.data.sources.xbd import Xbd
from vit_jax.data.views import View
from vit_jax.evaluators.change import Change as ChangeScores
from vit_jax.evaluators.change import Damage as DamageScores
from vit_jax.evaluators.evaluator import Found
from vit_jax.models import change
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import tree
from vit_jax.tasks.change import Change, Damage
from vit_jax.tasks.task import Seen

LEVELS = ('none', 'no damage', 'minor', 'major', 'destroyed')
ENCODER: dict[str, Any] = dict(
  variant='mu/4', image_size=(12, 16), in_channels=3, depth=1, width=16, mlp_dim=32, num_heads=2
)


def model_of(**fields):
  """A model in which nothing is zero or one."""
  config = change.ChangeConfig(**{'encoder': ViTConfig(**ENCODER), 'num_classes': 2, **fields})
  model = change.Change(config, nnx.Rngs(0))
  rng = np.random.default_rng(7)
  return jax.tree.map(lambda w: jnp.asarray(w + 0.1 * rng.normal(size=w.shape), w.dtype), model)


def pairs(batch=2):
  return jnp.asarray(np.random.default_rng(1).normal(size=(batch, 2, 12, 16, 3)), jnp.float32)


@pytest.mark.parametrize('compare', ['both', 'symmetric'])
def test_logits_are_those_of_a_head_on_both_dates(compare):
  """Written in float64 on the features of the encoder; parts of a patch lie where they belong."""
  model, images = model_of(compare=compare, detail=2, num_classes=3), pairs()
  f, g = (np.asarray(model.encoder.features(images[:, i])['patches'], np.float64) for i in (0, 1))
  seen = {'both': (f, g, abs(f - g)), 'symmetric': (f + g, abs(f - g))}[compare]
  kernel, bias = (
    np.asarray(leaf[...], np.float64) for leaf in (model.head.kernel, model.head.bias)
  )
  each = np.concatenate(seen, -1) @ kernel + bias
  want = np.zeros((2, 6, 8, 3))
  for y in range(2):
    for x in range(2):
      want[:, y::2, x::2] = each[..., 3 * (2 * y + x) : 3 * (2 * y + x) + 3]
  np.testing.assert_allclose(model(images), want, rtol=2e-5, atol=2e-5)


def softmax(x, axis=-1):
  e = np.exp(x - x.max(axis, keepdims=True))
  return e / e.sum(axis, keepdims=True)


def block(x, memory, p):
  """A pre-norm block of two heads in float64, as in Vaswani et al. 2017; memory None: its own."""

  def norm(x, at):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p[f'{at}/scale'] + p[f'{at}/bias']

  y = norm(x, 'norm1')
  source = y if memory is None else memory
  q, k, v = (np.einsum('nd,dhk->nhk', s, p[f'attn/{n}/kernel']) + p[f'attn/{n}/bias']
             for n, s in (('query', y), ('key', source), ('value', source)))  # fmt: skip
  scores = softmax(np.einsum('nhk,mhk->hnm', q, k) / np.sqrt(q.shape[-1]))
  y = np.einsum('hnm,mhk->nhk', scores, v)
  x = x + np.einsum('nhk,hkd->nd', y, p['attn/out/kernel']) + p['attn/out/bias']
  h = norm(x, 'norm2') @ p['mlp/up/kernel'] + p['mlp/up/bias']
  h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
  return x + h @ p['mlp/down/kernel'] + p['mlp/down/bias']


def test_tokens_of_dates_are_those_of_bit():
  """Picked, mixed and read as in Chen et al. 2021, section III, written in float64."""
  model = model_of(compare='tokens', tokens=3, depth=2)
  patches = np.random.default_rng(3).normal(size=(2, 2, 3, 4, 16))
  p = {n: np.asarray(w, np.float64) for n, w in tree.flatten(model.tokens).items()}

  def layer(name, i):
    start = f'{name}/blocks/'
    return {n.removeprefix(start): w[i] for n, w in p.items() if n.startswith(start)}

  def last(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p[f'{name}/norm/scale'] + p[f'{name}/norm/bias']

  want = np.zeros_like(patches)
  for example, dates in enumerate(patches.reshape(2, 2, 12, 16)):
    tokens = [softmax(x @ p['pick/kernel'] + p['pick/bias'], 0).T @ x + p['position'][0]
              for x in dates]  # fmt: skip
    mixed = last(block(np.concatenate(tokens), None, layer('mixer', 0)), 'mixer')
    for date, x in enumerate(dates):
      for i in range(2):
        x = block(x, mixed[3 * date : 3 * date + 3], layer('reader', i))
      want[example, date] = last(x, 'reader').reshape(3, 4, 16)
  got = model.tokens(jnp.asarray(patches, jnp.float32))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_dates_may_be_swapped_where_the_model_says_so():
  images = pairs()
  for compare, same in (('symmetric', True), ('tokens', True), ('both', False)):
    model = model_of(compare=compare)
    one, other = model(images), model(images[:, ::-1])
    assert np.allclose(one, other, atol=1e-6) == same


@pytest.mark.parametrize('compare', ['both', 'tokens'])
def test_a_model_of_another_size_has_the_encoder_of_that_size(compare):
  """Whose learned positions are resampled, and nothing else."""
  model = model_of(compare=compare, encoder=ViTConfig(**ENCODER, posemb='learned'))
  config = adapt.of_sizes(model.config, {'image_size': (24, 20)})
  assert config.image_size == (24, 20)
  large = adapt.resized(model, config)
  alone = adapt.resized(model.encoder, config.encoder)
  images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2, 24, 20, 3)), jnp.float32)
  for date in range(2):
    one, other = (m.features(images[:, date])['patches'] for m in (large.encoder, alone))
    np.testing.assert_array_equal(one, other)
  own, new = tree.flatten(model), tree.flatten(large)
  changed = [name for name in own if own[name].shape != new[name].shape]
  assert changed == ['encoder/posemb']
  assert large(images).shape == (2, 6, 5, 2)


def test_buildings_are_of_the_first_date_alone():
  model, images = model_of(num_classes=5, located=True), pairs()
  other = images.at[:, 1].set(0)
  one, two = model(images), model(other)
  np.testing.assert_allclose(one[..., 0], two[..., 0], atol=1e-6)
  assert (jnp.abs(one[..., 1:] - two[..., 1:]) > 1e-3).all(-1).mean() > 0.9


@pytest.mark.parametrize(
  'fields',
  [dict(), dict(located=True, num_classes=5, detail=2), dict(compare='tokens', depth=3, tokens=5)],
)
def test_parameters_are_as_many_as_the_architecture_says(fields):
  model = model_of(**fields)
  size = lambda held: sum(leaf.size for leaf in jax.tree.leaves(held))  # noqa: E731
  rest = {name: count for name, count, _ in model.config.rest}
  assert size(model) == size(model.encoder) + sum(rest.values())
  assert size(model.head) == rest['head']
  if 'reader' in rest:
    assert size(model.tokens.reader) == rest['reader']
    assert size(model.tokens.mixer) + size(model.tokens.position) == rest['mixer']


# --- losses ---


def part_of(task, labels) -> Any:
  mask = np.ones(len(labels), np.float32)
  part = {'image': None, 'map': labels, 'mask': mask}
  return part, type('Context', (), {'noise': None, 'totals': task.totals(part)})


def test_a_loss_of_damage_is_that_of_buildings_and_of_their_levels():
  """In float64; what has no class has no gradient, and what is no building none of its level."""
  rng = np.random.default_rng(0)
  task = Damage(weights=(1.0, 2.0, 3.0, 5.0))
  labels = rng.integers(0, 5, (2, 12, 16)).astype(np.uint8)
  labels[:, :3] = 255
  logits = rng.normal(0, 2, (2, 12, 16, 5))
  part, ctx = part_of(task, labels)

  def loss(logits):
    value, sums, _ = task.loss(lambda image, key: logits, part, ctx)
    return value, sums

  (value, sums), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logits, jnp.float32))
  there = labels != 255
  p = 1 / (1 + np.exp(-logits[..., 0]))
  located = -np.where(labels > 0, np.log(p), np.log(1 - p))[there].mean()
  level = np.where(there & (labels > 0), labels, 1) - 1
  said = np.log(np.exp(logits[..., 1:]) / np.exp(logits[..., 1:]).sum(-1, keepdims=True))
  weight = np.array([1.0, 2, 3, 5])[level] * (there & (labels > 0))
  each = -np.take_along_axis(said, level[..., None], -1)[..., 0]
  damage = (each * weight).sum() / weight.sum()
  assert float(value) == pytest.approx(located + damage, rel=1e-5)
  shares = {name: float(total / ctx.totals[of]) for name, (total, of) in sums.items()}
  house = there & (labels > 0)
  right = (logits[..., 1:].argmax(-1) == level)[house].mean()
  want = {'loss': located + damage, 'located': located, 'damage': damage, 'accuracy': right}
  assert shares == pytest.approx(want, rel=1e-5)
  assert not np.asarray(grad)[~there].any()
  assert not np.asarray(grad)[labels == 0][:, 1:].any()
  assert np.asarray(grad)[house].all()


def test_probabilities_of_damage_add_up_and_decide():
  task = Damage()
  model = model_of(num_classes=5, located=True)
  scores = np.asarray(task.scores(model, {'image': pairs()}))
  np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-6)
  said = np.asarray(task.predict(model, {'image': pairs()})['map'])
  np.testing.assert_array_equal(said > 0, scores[..., 0] < 0.5)
  level = scores[..., 1:].argmax(-1) + 1
  np.testing.assert_array_equal(said[said > 0], level[said > 0])
  # A building is one although no level by itself is likelier than none.
  assert task.decided(jnp.array([0.4, 0.15, 0.2, 0.15, 0.1])) == 2


def test_dates_are_normalised_and_swapped_by_pair():
  rng = np.random.default_rng(0)
  batch = {name: jnp.asarray(rng.integers(0, 256, (64, 4, 4, 3), np.uint8))
           for name in ('before', 'after')}  # fmt: skip
  task = Change(mean=(0.5,), std=(0.25,), swap=True)
  plain = task.augment(dict(batch), None, {})['image']
  want = np.stack([batch['before'], batch['after']], 1) / 255
  np.testing.assert_allclose(plain, (want - 0.5) / 0.25, atol=1e-6)
  drawn = np.asarray(task.augment(dict(batch), jax.random.key(0), {})['image'])
  same, swapped = (np.isclose(drawn, x).all((1, 2, 3, 4)) for x in (plain, plain[:, ::-1]))
  assert (same ^ swapped).all()
  assert 16 < swapped.sum() < 48
  assert {*task.augment(dict(batch), None, {})} == {'image'}


# --- scores ---


def scored(evaluator, said, truth, names, ignore=(255,)):
  rows = Columns(View(size=said.shape[1:]), (Image(3, field='before'), Image(3, field='after')),
                 (Map(len(names), (*ignore, VOID)),))  # fmt: skip
  seen = Seen(rows, {})
  blank = np.zeros((*truth.shape[1:], 3), np.uint8)
  records = [
    evaluator.record({'map': s}, {'before': blank, 'after': blank, 'map': t, 'name': ''}, seen)
    for s, t in zip(said, truth, strict=True)
  ]
  source = type('Known', (), {'fields': {'map': Field('map', names)}})
  return evaluator.finish({'test': Found(source, {}, records, np.arange(len(records)), 0)})  # type: ignore


def test_scores_of_changes_are_those_of_scikit_learn():
  rng = np.random.default_rng(0)
  truth = (rng.random((5, 20, 30)) < 0.2).astype(np.uint8)
  said = np.where(rng.random(truth.shape) < 0.1, 1 - truth, truth).astype(np.uint8)
  truth[:, :4] = 255
  scores = scored(ChangeScores(), said, truth, ('same', 'changed'))
  there = truth != 255
  a, b = truth[there], said[there]
  want = {
    'f1': metrics.f1_score(a, b), 'iou': metrics.jaccard_score(a, b),
    'precision': metrics.precision_score(a, b), 'recall': metrics.recall_score(a, b),
    'accuracy': metrics.accuracy_score(a, b), 'changed': a.mean(),
  }  # fmt: skip
  assert scores.values == pytest.approx(want)
  assert scores.values['iou'] == pytest.approx(want['f1'] / (2 - want['f1']))
  nothing = scored(ChangeScores(), said * 0, truth * 0, ('same', 'changed')).values
  assert nothing['f1'] == nothing['changed'] == 0
  assert nothing['accuracy'] == 1
  # Of several kinds everything but the first has changed.
  kinds = np.where(truth == 1, rng.integers(1, 3, truth.shape), truth)
  assert scored(ChangeScores(), said, kinds, ('same', 'new', 'gone')).values['f1'] == want['f1']


def maps(seed):
  """Predictions and truths of six images."""
  rng = np.random.default_rng(seed)
  found = []
  for n in range(6):
    truth = rng.integers(0, 5, (20, 30))
    if n % 2:
      truth[truth == 3 + n // 2 % 2] = 0
    said = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 5, truth.shape))
    found.append((said.astype(np.uint8), truth.astype(np.uint8)))
  return (np.stack(each) for each in zip(*found, strict=True))


@pytest.mark.parametrize(
  ('seed', 'score', 'damage', 'localisation', 'levels'),
  [
    (0, 0.8271082858018204, 0.7866057167865688, 0.9216142801707411,
     [0.7857142857142857, 0.7895878524945771, 0.7704590818363273, 0.8012769353551477]),
    (1, 0.8238357384461596, 0.7852580428950664, 0.9138503613987107,
     [0.8014760147601476, 0.81203007518797, 0.744278606965174, 0.7867132867132868]),
  ],
)  # fmt: skip
def test_scores_of_damage_are_those_of_xview2(seed, score, damage, localisation, levels):
  """Of its own program (DIUx-xView/xView2_scoring, ea0793d) on the same maps."""
  said, truth = maps(seed)
  found = scored(DamageScores(), said, truth, LEVELS)
  assert found.values['score'] == pytest.approx(score, rel=1e-12)
  assert found.values['damage'] == pytest.approx(damage, rel=1e-12)
  assert found.values['localisation'] == pytest.approx(localisation, rel=1e-12)
  np.testing.assert_allclose(found.arrays['f1'], levels, rtol=1e-12)
  assert found.values['damage_there'] == found.values['damage']


def test_a_level_that_is_nowhere_makes_the_score_of_damage_nothing():
  truth = np.tile(np.arange(4, dtype=np.uint8), (2, 4, 4))
  found = scored(DamageScores(), truth, truth, LEVELS).values
  assert found['localisation'] == 1
  assert found['damage'] == pytest.approx(4e-6, rel=0.01)
  assert found['damage_there'] == pytest.approx(1, abs=1e-5)


# --- data ---


def saved(path, pixels):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image_.fromarray(pixels).save(path)


def xbd(root, names=('a', 'b')):
  """A split as it is given out: of each disaster two images, and outlines for each."""
  blank = np.zeros((20, 30, 3), np.uint8)
  outlines = [
    ('POLYGON ((2 3, 8 3, 8 9, 2 9, 2 3), (4 5, 6 5, 6 7, 4 7, 4 5))', 'destroyed'),
    ('POLYGON ((20.0 10.0, 29.5 10.0, 29.5 19.0, 20.0 19.0, 20.0 10.0))', 'un-classified'),
    ('MULTIPOLYGON (((10 0, 12 0, 12 2, 10 2, 10 0)), ((14 0, 16 0, 16 2, 14 2, 14 0)))',
     'minor-damage'),
  ]  # fmt: skip
  for name in names:
    for date in ('pre', 'post'):
      saved(root / 'train' / 'images' / f'{name}_{date}_disaster.png', blank + (date == 'post'))
      of = lambda kind, date=date: {'subtype': kind} if date == 'post' else {}  # noqa: E731
      features = [
        {'properties': {'feature_type': 'building', 'uid': f'{i}', **of(kind)}, 'wkt': text}
        for i, (text, kind) in enumerate(outlines)
      ]
      label = {'features': {'lng_lat': [], 'xy': features}, 'metadata': {'width': 30, 'height': 20}}
      path = root / 'train' / 'labels' / f'{name}_{date}_disaster.json'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(json.dumps(label))
  return root


def outlined(root, subtype, text):
  feature = {'properties': {'subtype': subtype}, 'wkt': text}
  label = {'features': {'xy': [feature]}, 'metadata': {'width': 30, 'height': 20}}
  (root / 'labels' / 'a_post_disaster.json').write_text(json.dumps(label))


def test_xbd_is_read_as_it_is_given_out(tmp_path):
  source = open_split(Xbd(dir=str(xbd(tmp_path))), 'train')
  assert len(source) == 2
  assert source.fields['map'].names[1:] == ('no damage', 'minor', 'major', 'destroyed')
  example = source[1]
  assert example['name'].endswith('b_pre_disaster.png')
  assert preprocess.decode(example['before'], 3).max() == 0
  assert preprocess.decode(example['after'], 3).max() == 1
  want = np.zeros((20, 30), np.uint8)
  want[3:9, 2:8], want[5:7, 4:6] = 4, 0  # with its yard
  want[10:19, 20:29] = 1
  want[0:2, 10:12] = want[0:2, 14:16] = 2
  np.testing.assert_array_equal(example['map'][:, :29], want[:, :29])


@pytest.mark.parametrize(
  ('spoil', 'message'),
  [
    (lambda root: (root / 'labels' / 'a_post_disaster.json').unlink(),
     r'of a there is no labels/a_post_disaster\.json'),
    (lambda root: (root / 'images' / 'b_post_disaster.png').unlink(),
     'of b there is no b_post_disaster'),
    (lambda root: (root / 'labels' / 'a_post_disaster.json').write_text('{}'),
     'is not like the files of xBD after a disaster'),
    (lambda root: outlined(root, 'gone', 'POLYGON ((0 0, 1 1, 0 1))'),
     "unknown damage 'gone': there are no-damage"),
    (lambda root: outlined(root, 'destroyed', 'POINT (0 0)'), r"'POINT \(0 0\)' is no POLYGON"),
  ],
)  # fmt: skip
def test_what_xbd_lacks_is_named(tmp_path, spoil, message):
  spoil(xbd(tmp_path) / 'train')
  with pytest.raises(RunError, match=message):
    open_split(Xbd(dir=str(tmp_path)), 'train')[0]


def test_a_split_of_xbd_that_is_not_there(tmp_path):
  with pytest.raises(RunError, match=r"no split 'test'.*: it has train"):
    open_split(Xbd(dir=str(xbd(tmp_path))), 'test')


def test_levir_is_read_by_its_configuration(tmp_path):
  """A, B and label, of 0 and 255."""
  rng = np.random.default_rng(0)
  label = (rng.random((20, 20)) < 0.2).astype(np.uint8)
  for folder in 'AB':
    saved(tmp_path / 'train' / folder / 'train_1.png', rng.integers(0, 255, (20, 20, 3), np.uint8))
  saved(tmp_path / 'train' / 'label' / 'train_1.png', 255 * label)
  given = change_config.get_config(str(tmp_path)).to_dict()['data']['source']
  source = open_split(
    schema.build(SOURCES['paired'], {n: v for n, v in given.items() if n != 'name'}), 'train'
  )
  example = source[0]
  assert {*example} == {'before', 'after', 'map', 'name'}
  rows: Any = Change().rows(model_of().config, source.fields, View(), train=False)
  np.testing.assert_array_equal(rows.columns[0].whole(example), label)


# --- maps and people ---


def test_masks_of_0_and_255_are_two_classes():
  example = {'map': np.array([[0, 255, 1], [7, 0, 9]]), 'name': 'x'}
  np.testing.assert_array_equal(Marked(ignore=(9,)).whole(example), [[0, 1, 1], [1, 0, 255]])
  config = model_of().config
  fields = {'map': Field('map', ('same', 'changed'), ignore=(9,))}
  for train in (True, False):
    columns: Any = Change().rows(config, fields, View(), train=train)
    assert columns.columns == (Marked(2, (9, VOID)),)
  columns = Damage().rows(dataclasses.replace(config, num_classes=5), fields, View(), train=True)
  assert columns.columns == (Map(5, (9, VOID)),)


@pytest.mark.parametrize('task', [Change(), Damage()], ids=['change', 'damage'])
def test_a_prediction_is_words_and_both_pictures(task):
  rng = np.random.default_rng(0)
  names = LEVELS if isinstance(task, Damage) else ('same', 'changed')
  fields = {'map': Field('map', names)}
  config = task.adapt(model_of(num_classes=len(names)).config, fields)
  seen = Seen(task.rows(config, fields, View(), train=False), fields)
  example = {n: rng.integers(0, 256, (12, 16, 3), np.uint8) for n in ('before', 'after')}
  example = {**example, 'name': 'x'}
  said = np.zeros((12, 16), np.uint8)
  said[:3] = 1
  prediction = task.decode({'map': said}, example, seen)
  assert json.loads(json.dumps(prediction.facts)) == {'share': {names[0]: 0.75, names[1]: 0.25}}
  picture = task.draw(prediction, example, seen)
  by = 22  # to 256 pixels at least
  for number, name in enumerate(('before', 'after')):
    left = number * (16 * by + 6)
    np.testing.assert_array_equal(
      picture[by // 2 : 12 * by : by, left + by // 2 : left + 16 * by : by], example[name]
    )
  # Of the map what there is to tell is coloured, and nothing else.
  left = 2 * (16 * by + 6)
  drawn = picture[by // 2 : 12 * by : by, left + by // 2 : left + 16 * by : by]
  np.testing.assert_array_equal((drawn != example['after']).any(-1), said > 0)
  truth = said if isinstance(task, Damage) else 255 * said
  with_truth = task.draw(prediction, {**example, 'map': truth}, seen)
  assert with_truth.shape[1] > picture.shape[1]
  left = 3 * (16 * by + 6)
  again = with_truth[by // 2 : 12 * by : by, left + by // 2 : left + 16 * by : by]
  np.testing.assert_array_equal(again, drawn)


def bad(**changes):
  return lambda: ChangeArchitecture(encoder=ViTConfig(**ENCODER), **changes).resolve()


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (bad(compare='sym'), "unknown model.compare 'sym': did you mean symmetric"),
    (bad(detail=0), 'detail, tokens and depth at least 1'),
    (lambda: ChangeArchitecture(encoder=ViTConfig(num_classes=3)).resolve(), 'head is on the patc'),
    (lambda: ChangeArchitecture(encoder=ViTConfig(patch_dropout=0.1)).resolve(), 'patch_dropout'),
    (lambda: Change().adapt(ViTConfig('mu/4'), {}), r'task\.name=change needs model\.name=change'),
    (lambda: Damage().adapt(ViTConfig('mu/4'), {}), r'task\.name=damage needs model\.name=change'),
    (lambda: Change().adapt(bad()(), {'map': Field('map', ('one',))}), '1 class of changes'),
    (lambda: Damage().adapt(bad()(), {'map': Field('map', ('a', 'b'))}), 'at least two levels'),
    (lambda: Damage(weights=(1.0, -1.0)), 'weights=.* must be positive'),
    (lambda: Damage(weights=(1.0, 2.0)).adapt(bad()(), {'map': Field('map', LEVELS)}),
     'has 2 values for 4 levels'),
  ],
)  # fmt: skip
def test_what_does_not_go_together(make, message):
  with pytest.raises(RunError, match=message):
    make()
