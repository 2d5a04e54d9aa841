"""Every kind of task through everything the loop does: none of it knows what a task is."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests import runs, teachers, toy_tasks
from tests.conftest import tiers
from tests.test_costs import products, traced
from vit_jax import tasks
from vit_jax.compile.plan import plan
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data.pipeline import arrays
from vit_jax.data.views import View
from vit_jax.nn import sharding, tree
from vit_jax.tasks import prototypes
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training import hyper, lanes
from vit_jax.training.evaluation import evaluate, restore
from vit_jax.training.workdir import Workdir

VIT = dict(variant='mu/4', image_size=(8, 8), in_channels=1, depth=2, width=16, mlp_dim=32,
           num_heads=2, posemb='sincos', pool='mean', drop_path=0.2, dropout=0.1)  # fmt: skip
TEXT = dict(variant='clip:B', width=16, depth=1, mlp_dim=32, num_heads=2)
SPEAKING = dict(variant='', width=16, depth=2, mlp_dim=32, num_heads=2)
WORDS = ('a', 'and', 'nothing', *'0123456789')
# Of drawn pictures.
SEEN = {**VIT, 'image_size': (16, 16), 'in_channels': 3, 'variant': 'mu/8', 'drop_path': 0.0}
DRAWN = dict(name='scenes', size=(16, 16), most=2, pieces=1)
SCENES = dict(source=dict(name='generated', examples=96, held_out=40, generator=DRAWN))
FORMS = dict(name='shapes', size=(16, 16), radius=(3.0, 6.0), most=3, void=0.2)
SHAPES = dict(source=dict(name='generated', examples=96, held_out=40, generator=FORMS))
OTHER = {**VIT, 'variant': 'mu/2', 'patch_size': 2, 'depth': 1, 'width': 8, 'mlp_dim': 16,
         'drop_path': 0.0}  # fmt: skip


def land(of):
  """Data of land that is drawn."""
  drawn = dict(name='terrain', of=of, size=(16, 16))
  return dict(source=dict(name='generated', examples=96, held_out=40, generator=drawn))


MOMENTUM = '0.9->1 cosine 4 steps'
CROPPED = dict(crop=dict(name='random_resized', min_area=0.4))
FEW = 'query,key,value'  # gradients of biases are products, and many where features are so few
# Of each task: its model and evaluation; what lanes may be over, one of them as without lanes;
# fields with which a layer is not scanned; whether its evaluation leaves arrays; fields with which
# its costs are known; its data, if they are not the digits: 40 examples to test on; its view;
# whether it cannot be computed in parts; a parameter that rests for three steps.
CASES = {
  'toy_dino': dict(
    costs=dict(model__drop_path=0.0),  # what is dropped costs nothing, and is drawn
    evals=dict(test=dict(name='toy_spread', every='100%', batch_size=64)), model=VIT,
    lanes={'temperature': (0.05, 0.1)},
  ),
  'toy_set': dict(
    arrays=True,
    evals=dict(test=dict(name='toy_precision', every='100%', batch_size=64)), model=VIT,
    lanes={'lr': (1e-3, 1e-2)},
  ),
  'contrastive': dict(
    arrays=True, evals=dict(test=dict(name='retrieval', every='100%', batch_size=64)),
    model=dict(name='two_towers', variant='', image={**SEEN, 'pool': None}, text=TEXT),
    lanes={'lr': (1e-3, 1e-2)}, unrolled=dict(model__image__scan=False), data=SCENES,
    costs=dict(model__text__no_bias=FEW),
    task=dict(name='contrastive', loss_of='sigmoid', form='ring', frozen=('image/.*',),
              tokenizer=dict(name='words', vocabulary=WORDS, length=8)),
  ),
  'language': dict(
    arrays=True,
    evals=dict(test=dict(name='answers', every='100%', batch_size=64, measure=('exact', 'cider'))),
    model=dict(name='multimodal', vision={**SEEN, 'pool': None}, language=SPEAKING, layer=-2),
    lanes={'lr': (1e-3, 1e-2)}, unrolled=dict(model__language__scan=False), data=SCENES,
    costs=dict(task__most=1),
    task=dict(name='language', frozen=('vision/.*',), length=24, most=8,
              tokenizer=dict(name='words', vocabulary=WORDS)),
  ),
  'toy_captions': dict(
    arrays=True,
    evals=dict(test=dict(name='toy_spoken', every='100%', batch_size=64)), model=VIT,
    lanes={'seed': (0, 1)},
  ),
  'toy_moco': dict(
    arrays=True, costs=dict(model__drop_path=0.0, task__queue=16),
    evals=dict(test=dict(name='toy_neighbour', every='100%', batch_size=64)), model=VIT,
    lanes={'seed': (0, 1)},
  ),
  'toy_pair': dict(
    arrays=True, unrolled=dict(model__left__scan=False),
    costs=dict(model__left__drop_path=0.0, model__left__no_bias=FEW, model__right__no_bias=FEW),
    evals=dict(test=dict(name='classification', every='100%', batch_size=64)),
    model=dict(name='toy_pair', left=VIT, right=OTHER), lanes={'weight_decay': (0.0, 0.1)},
    task=dict(name='toy_pair', frozen=('right/embed/.*',), frozen_dtype='bfloat16'),
  ),
  'multilabel': dict(
    arrays=True, evals=dict(test=dict(name='multilabel', every='100%', batch_size=64)),
    model=SEEN, lanes={'seed': (0, 1)}, data=SCENES, task=dict(name='multilabel', gamma=1.5),
  ),
  'regression': dict(
    arrays=True, evals=dict(test=dict(name='regression', every='100%', batch_size=64)),
    model=SEEN, lanes={'lr': (1e-3, 1e-2)}, data=SCENES,
    task=dict(name='regression', loss_of='huber'),
  ),
  'segmentation': dict(
    arrays=True, evals=dict(test=dict(name='segmentation', every='100%', batch_size=64)),
    model=dict(name='segmenter', encoder={**SEEN, 'pool': None}), lanes={'lr': (1e-3, 1e-2)},
    unrolled=dict(model__encoder__scan=False), data=SCENES,
    task=dict(name='segmentation', stride=2, frozen=('encoder/embed/.*',)),
  ),
  'change': dict(
    arrays=True, evals=dict(test=dict(name='change', every='100%', batch_size=64)),
    model=dict(name='change', detail=2, compare='tokens', depth=1, encoder={**SEEN, 'pool': None}),
    lanes={'seed': (0, 1)},
    unrolled=dict(model__encoder__scan=False), data=land('change'),
    costs=dict(model__encoder__no_bias=FEW, model__encoder__width=64, model__encoder__mlp_dim=256),
    task=dict(name='change', swap=True),
  ),
  'damage': dict(
    arrays=True, evals=dict(test=dict(name='damage', every='100%', batch_size=64)),
    model=dict(name='change', compare='both', encoder={**SEEN, 'pool': None}),
    lanes={'lr': (1e-3, 1e-2)}, unrolled=dict(model__encoder__scan=False), data=land('damage'),
    costs=dict(model__encoder__no_bias=FEW),
    task=dict(name='damage', stride=2, weights=(1.0, 3.0, 4.0, 5.0), frozen=('encoder/embed/.*',)),
  ),
  'detection': dict(
    arrays=True, evals=dict(test=dict(name='detection', every='100%', batch_size=64)),
    model=dict(name='token_detector', encoder={**SEEN, 'patch_size': 4, 'pool': None}),
    lanes={'overlap_weight': (1.0, 2.0)}, unrolled=dict(model__encoder__scan=False), data=SCENES,
    costs=dict(model__encoder__no_bias=FEW), task=dict(name='detection', most=3),
  ),
  'upernet': dict(
    evals=dict(test=dict(name='segmentation', every='100%', batch_size=64)),
    model=dict(name='upernet', channels=8, auxiliary_channels=8, bins=(1, 2),
               encoder={**SEEN, 'pool': None, 'depth': 4}), lanes={'lr': (1e-3, 1e-2)},
    unrolled=dict(model__encoder__scan=False), data=SCENES,
    task=dict(name='segmentation', stride=2, class_weights=(0.5, *(1.0,) * 9, 2.0), dice=0.5,
              lovasz=0.5),
  ),
  'mask_transformer': dict(
    evals=dict(test=dict(name='segmentation', every='100%', batch_size=64)),
    model=dict(name='mask_transformer', decoder=dict(width=8, depth=1, num_heads=2, no_bias=FEW),
               encoder={**SEEN, 'pool': None}), lanes={'seed': (0, 1)},
    unrolled=dict(model__encoder__scan=False), data=SCENES,
    task=dict(name='segmentation', stride=2, focal=2.0),
  ),
  'detr': dict(
    arrays=True, evals=dict(test=dict(name='detection', every='100%', batch_size=64)),
    model=dict(
      name='detr', encoder={**SEEN, 'patch_size': 4, 'pool': None},
      decoder=dict(width=16, depth=2, num_heads=2, mlp_dim=32, queries=6, anchors='tokens',
                   nothing=False),
    ),
    lanes={'box_weight': (1.0, 5.0)}, data=SCENES, view=dict(crop=dict(name='scale_jitter')),
    unrolled=dict(model__encoder__scan=False, model__decoder__scan=False),
    costs=dict(model__encoder__no_bias=FEW, model__decoder__no_bias=FEW),
    task=dict(name='detection', most=3, denoising=2),
  ),
  'yolos': dict(
    arrays=True, evals=dict(test=dict(name='detection', every='100%', batch_size=64)),
    model=dict(name='yolos', middle=True,
               encoder={**SEEN, 'patch_size': 4, 'pool': None, 'queries': 5}),
    lanes={'nothing': (0.1, 0.3)}, data=SCENES, view=dict(crop=dict(name='fit')),
    unrolled=dict(model__encoder__scan=False), costs=dict(model__encoder__no_bias=FEW),
    task=dict(name='detection', most=3, class_weight=1.0),
  ),
  'detr_masks': dict(
    arrays=True, evals=dict(test=dict(name='panoptic', every='100%', batch_size=64)),
    model=dict(name='detr', encoder={**SEEN, 'patch_size': 4, 'pool': None},
               decoder=dict(width=16, depth=2, num_heads=2, mlp_dim=32, queries=5)),
    lanes={'mask_weight': (1.0, 5.0)}, data=SHAPES, view=dict(crop=dict(name='scale_jitter')),
    unrolled=dict(model__encoder__scan=False, model__decoder__scan=False),
    costs=dict(model__encoder__no_bias=FEW, model__decoder__no_bias=FEW),
    task=dict(name='panoptic', most=6, points=0, lifted=1),
  ),
  'packed': dict(
    arrays=True, costs=dict(model__drop_path=0.0),
    evals=dict(test=dict(name='classification', every='100%', batch_size=64)),
    model=VIT, lanes={'seed': (0, 1)},
    task=dict(name='packed', tokens=8, least=1, most=4, group=2, slots=6),
  ),
  'distillation': dict(
    arrays=True, costs=dict(model__drop_path=0.0, model__no_bias=FEW),
    evals=dict(test=dict(name='classification', every='100%', batch_size=64)),
    model={**VIT, 'pool': 'token', 'distilled': True}, lanes={'temperature': (1.0, 3.0)},
    task=lambda data_dir: dict(
      name='distillation', teacher=dict(init=teachers.saved(data_dir)), frozen=('embed/.*',)
    ),
  ),
  'masked': dict(
    evals=dict(test=dict(name='reconstruction', every='100%', batch_size=64)),
    model=dict(name='masked', encoder={**VIT, 'pool': None}), lanes={'lr': (1e-3, 1e-2)},
    unrolled=dict(model__encoder__scan=False),
    costs=dict(model__encoder__drop_path=0.0, model__encoder__no_bias=FEW),
    task=dict(name='masked', target='colours', ratio=0.5, swapped=0.2, left=0.1),
  ),
  'mae': dict(
    evals=dict(test=dict(name='reconstruction', every='100%', batch_size=64)),
    model=dict(name='mae', encoder={**VIT, 'pool': None},
               decoder=dict(width=8, depth=1, num_heads=2, no_bias=FEW)), lanes={'seed': (0, 1)},
    unrolled=dict(model__encoder__scan=False),
    costs=dict(model__encoder__drop_path=0.0, model__encoder__no_bias=FEW),
    task=dict(name='masked', ratio=0.5),
  ),
  'dino': dict(
    arrays=True, evals=dict(test=dict(name='knn', features='class', every='100%', batch_size=64)),
    model=dict(name='dino', prototypes=24, hidden=16, bottleneck=8, patch_head='shared',
               encoder={**VIT, 'pool': None}), lanes={'temperature': (0.04, 0.1)},
    unrolled=dict(model__encoder__scan=False),
    costs=dict(model__encoder__drop_path=0.0, model__encoder__no_bias=FEW),
    view=CROPPED, task=dict(name='dino', local=2, local_size=4, momentum=MOMENTUM,
                            last_layer='0 until 3 steps then 1'),
    rests='head/last/kernel',
  ),
  'dinov2': dict(
    arrays=True, coupled=True, view=CROPPED, lanes={'seed': (0, 1)},
    evals=dict(test=dict(name='knn', features='class', every='100%', batch_size=64)),
    model=dict(name='dino', prototypes=24, hidden=16, bottleneck=8, patch_head='separate',
               patch_prototypes=16, scaled=True, encoder={**VIT, 'pool': None}),
    unrolled=dict(model__encoder__scan=False),
    costs=dict(model__encoder__drop_path=0.0, model__encoder__no_bias=FEW),
    task=dict(name='dino', local=2, local_size=4, koleo=0.1, centering='sinkhorn', smallest=1,
              momentum=MOMENTUM),
  ),
  'panoptic': dict(
    arrays=True, evals=dict(test=dict(name='panoptic', every='100%', batch_size=64)),
    model=dict(name='eomt', queries=5, blocks=1, upscale=1, pixel_head=True,
               encoder={**SEEN, 'pool': None}), lanes={'lifted': (0.0, 0.7)},
    unrolled=dict(model__encoder__scan=False), costs=dict(model__encoder__no_bias=FEW),
    data=SHAPES, task=dict(name='panoptic', most=6, points=24, lifted='0->1 linear 4 steps'),
  ),
  'instances': dict(
    arrays=True, evals=dict(test=dict(name='instances', every='100%', batch_size=64)),
    model=dict(name='eomt', queries=5, blocks=2, upscale=1, encoder={**SEEN, 'pool': None}),
    lanes={'lr': (1e-3, 1e-2)}, unrolled=dict(model__encoder__scan=False),
    data=SHAPES, task=dict(name='instances', most=6, points=0, top=6, frozen=('encoder/embed/.*',)),
  ),
  'semantic': dict(
    arrays=True, evals=dict(test=dict(name='segmentation', every='100%', batch_size=64)),
    model=dict(name='eomt', queries=9, blocks=1, upscale=0, encoder={**SEEN, 'pool': None}),
    lanes={'seed': (0, 1)}, unrolled=dict(model__encoder__scan=False),
    data=SHAPES, task=dict(name='semantic', most=8, points=16, tried=2.0),
  ),
}  # fmt: skip
NAMES = tuple(CASES)


def but(*slow):
  """All cases; these, which differ from the others in what is tested elsewhere, are slow."""
  rest = (
    'masked', 'dino', 'detr', 'detr_masks', 'yolos', 'damage', 'upernet', 'toy_dino',
    'segmentation',
  )  # fmt: skip
  return only(*(name for name in NAMES if name not in (*slow, *rest)))


def only(*quick):
  """All cases; all but these are slow."""
  return tiers(NAMES, *map(NAMES.index, quick))


@pytest.fixture(autouse=True)
def registered(monkeypatch):
  for there, ours in toy_tasks.REGISTRIES:
    for name, cls in ours.items():
      monkeypatch.setitem(there, name, cls)


def configured(name, data_dir, optimizer='adamw', **changes):
  """A run of a few steps."""
  case = CASES[name]
  task = case.get('task', dict(name=name))
  config = dict(
    total='6 steps', batch_size=16, model=json.loads(json.dumps(case['model'])),
    task=task(data_dir) if callable(task) else task,
    data=case.get('data', dict(source=dict(name='tfds', dataset='digits', dir=data_dir)))
    | case.get('view', {}),
    optim=dict(name=optimizer, lr=1e-2, warmup='2 steps', schedule='wsd',
               **({'eps': 1e-3} if optimizer in ('adamw', 'lamb', 'muon') else {})),
    evals=case['evals'],
    log=dict(every='1 step'), checkpoint=dict(every='2 steps', at=('2 steps',)),
    compilation_cache='',
  )  # fmt: skip
  config = config_lib.complete(config).unlock()
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config_lib.complete(config.to_dict())


def one_device():
  return jax.set_mesh(jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1]))


def built(config):
  """The experiment of a configuration, on the mesh in context."""
  return lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))


def stepped(config, layout=None, steps=3):
  """Metrics of some steps, and the state at their end, of an experiment under a mesh."""
  with jax.set_mesh(sharding.make_mesh(layout)) if layout else one_device():
    experiment = built(config)
    state = experiment.split(experiment.init())
    every = [experiment.train_step(size) for size in range(len(experiment.models))]
    history, stream = [], experiment.batches(0)
    for number, batch in zip(range(steps), stream, strict=False):
      step = every[experiment.size(number)]
      state, metrics = step(state, experiment.frozen, batch, experiment.hyper(number))
      history.append({name: np.asarray(value) for name, value in metrics.items()})
    stream.close()
    leaves = tree.flatten(experiment.stack(state))
    return history, {name: np.asarray(leaf) for name, leaf in leaves.items()}, every[0]


_known = {}


def known(config):
  """`stepped` on one device, once for all tests that compare with it."""
  key = config.to_json()
  if key not in _known:
    _known[key] = stepped(config)
  return _known[key]


def assert_same(a, b, rtol=2e-4):
  for x, y in zip(a[0], b[0], strict=True):
    assert x.keys() == y.keys()
    for name, value in x.items():
      np.testing.assert_allclose(value, y[name], rtol=rtol, atol=1e-5, err_msg=name)
  assert a[1].keys() == b[1].keys()
  for name, leaf in a[1].items():
    # Numbers that are stored with 8 bits differ by one of the last.
    rtol = 2**-7 if leaf.dtype == jnp.bfloat16 else 2e-3
    leaf, other = np.float32(leaf), np.float32(b[1][name])
    np.testing.assert_allclose(leaf, other, rtol=rtol, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
  'name',
  but('multilabel', 'regression', 'instances', 'semantic', 'toy_moco', 'toy_pair'),
)
def test_a_step_is_the_same_in_parts_on_a_mesh(name, data_dir):
  plain = known(configured(name, data_dir))
  assert all(np.isfinite(line['loss']) for line in plain[0])
  parts = 1 if 'coupled' in CASES[name] else 2
  assert_same(stepped(configured(name, data_dir, optim__accumulate=parts), '2x2x2'), plain)


@pytest.mark.parametrize(
  ('name', 'layout'),
  tiers([('dinov2', '2x2x2'), ('dinov2', None), ('dino', '2x2x2'), ('dino', '8x1x1')], 0, 1),
)
def test_a_step_is_the_same_with_logits_in_pieces(name, layout, data_dir, monkeypatch):
  """Those of hidden patches, three or four tokens at a time on each device."""
  plain = known(configured(name, data_dir))
  monkeypatch.setattr(prototypes, 'PIECE', 3 * 4 * 24)
  assert_same(stepped(configured(name, data_dir), layout), plain)


@pytest.mark.parametrize('name', only('toy_dino', 'contrastive', 'toy_pair'))
def test_a_step_is_the_same_unrolled(name, data_dir):
  plain = known(configured(name, data_dir))
  unrolled = CASES[name].get('unrolled', dict(model__scan=False))
  parts = 1 if 'coupled' in CASES[name] else 4
  assert_same(stepped(configured(name, data_dir, optim__accumulate=parts, **unrolled)), plain)


@pytest.mark.parametrize('optimizer', tiers(['sgd', 'lamb', 'adafactor', 'muon'], 2, 3))
def test_every_optimizer_on_a_mesh(optimizer, data_dir):
  """Unrolled, too: what an optimizer does to a layer does not depend on where it lies.

  Without biases of keys, whose gradients are rounding errors, which Adafactor makes large.
  """
  own = dict(optim__layer_decay=0.7, model__no_bias='key')
  plain = stepped(configured('toy_set', data_dir, optimizer, **own))
  own |= dict(optim__accumulate=2, model__scan=False)
  assert_same(stepped(configured('toy_set', data_dir, optimizer, **own), '2x2x2'), plain)


@pytest.mark.parametrize(
  'name',
  only('toy_dino', 'toy_set', 'contrastive', 'toy_moco', 'packed', 'distillation'),
)
def test_lanes_are_the_runs_alone(name, data_dir):
  """Over the seed, the learning rate, and a hyperparameter that only this task has."""
  own = CASES[name]['lanes']
  together = stepped(config_lib.complete({**configured(name, data_dir).to_dict(), 'lanes': own}))
  cfg = schema.build(config_lib.Config, configured(name, data_dir).to_dict() | {'lanes': own})
  step = None
  for lane, alone in enumerate(hyper.lanes(cfg)):
    name_of, values = next(iter(own.items()))
    fields = {'lr': 'optim__lr', 'weight_decay': 'optim__weight_decay', 'seed': 'seed'}
    field = fields.get(name_of, f'task__{name_of}')
    got = known(configured(name, data_dir, **{field: values[lane]}))
    one = ([{n: v[lane] for n, v in line.items()} for line in together[0]],
           {n: leaf[lane] for n, leaf in together[1].items()})  # fmt: skip
    assert_same(one, got[:2])
    assert alone.lane_count == 0
    step = got[2]
  assert step._cache_size() == 1


@pytest.mark.parametrize('name', only('contrastive'))
def test_a_run_is_forked(name, data_dir, tmp_path):
  """With another end, from the checkpoint before the cooldown begins."""
  train(configured(name, data_dir), str(tmp_path / 'whole'))
  cooled = dict(total='4 steps', optim__cooldown='2 steps')
  alone = train(configured(name, data_dir, **cooled), str(tmp_path / 'alone'))
  forked = train(
    configured(name, data_dir, fork=str(tmp_path / 'whole'), **cooled), str(tmp_path / 'fork')
  )
  runs.assert_bit_identical(tmp_path / 'alone', tmp_path / 'fork')
  assert alone['metrics'] == forked['metrics']


def first_and_last(workdir, name):
  """A parameter before the first step of a run, and in its last checkpoint."""
  with one_device():
    experiment, state = restore(str(workdir))
    return [np.asarray(tree.flatten(s.model)[name]) for s in (experiment.init(), state)]


@pytest.mark.parametrize('name', only('toy_set', 'contrastive', 'distillation'))
def test_a_run_is_killed_resumed_and_exported(name, data_dir, tmp_path):
  config = configured(name, data_dir)
  result = train(config, str(tmp_path / 'whole'))
  runs.cut_off(tmp_path / 'cut', config, 'at step 3')
  if rests := CASES[name].get('rests'):
    first, cut = first_and_last(tmp_path / 'cut', rests)
    np.testing.assert_array_equal(cut, first)
  train(config, str(tmp_path / 'cut'))
  runs.assert_bit_identical(tmp_path / 'whole', tmp_path / 'cut')
  if rests:
    first, last = first_and_last(tmp_path / 'cut', rests)
    assert (last != first).mean() > 0.9
  # What an evaluation left, and what is exported: the model that is judged.
  again = evaluate(str(tmp_path / 'whole'))
  assert {n: float(v) for n, v in again.items()} == pytest.approx(
    {n: v for n, v in result['metrics'].items() if n in again}, rel=1e-5
  )
  scores = {key: value for key, value in result['metrics'].items() if key.startswith('test/')}
  assert scores['test/examples'] == (40 if 'data' in CASES[name] else 360)
  with jax.set_mesh(sharding.make_mesh('data')):
    experiment, state = restore(str(tmp_path / 'whole'))
    judged = tree.flatten(experiment.config.task.judged(state, experiment.frozen))
  facts = Workdir(tmp_path / 'whole').checkpoints().facts()
  assert facts['task'].pop('name') == config.task.name
  assert facts['task'].keys() == vars(experiment.config.task).keys()
  rows = experiment.config.task.rows(
    experiment.config.model, experiment.fields, View(), train=False
  )
  assert facts['rows']['arrays'].keys() == rows.arrays().keys()
  exported = tree.flatten(vit_jax.load(tmp_path / 'whole'))
  assert exported.keys() == judged.keys()
  for path, leaf in exported.items():
    np.testing.assert_array_equal(leaf, np.float32(judged[path]), err_msg=path)
  if CASES[name].get('arrays'):
    assert np.load(tmp_path / 'whole' / 'evals' / 'test.npz').files


@pytest.mark.parametrize('name', only('contrastive'))
def test_a_plan(name, data_dir):
  """The step compiled for a slice; frozen parameters are held, and nothing is held for them."""
  config = configured(name, data_dir, mesh='2x2x1')
  found = plan(config, 'v5e:2x2')
  assert found.fits
  assert found.step_time
  with one_device():
    experiment = built(config)
  size = lambda held: sum(leaf.size for leaf in jax.tree.leaves(held))  # noqa: E731
  trained, frozen = size(experiment.abstract_state.model), size(experiment.frozen)
  task = experiment.config.task
  assert bool(frozen) == bool(task.frozen or task.networks)
  assert found.parameters <= 4 * (trained + frozen)
  assert found.optimizer <= 4 * (3 * trained + size(experiment.abstract_state.extra)) + 4


def test_what_does_not_go_together_is_refused(data_dir, monkeypatch):
  """A coupled task without `embed` and `joint`; patterns that match nothing; another model."""
  monkeypatch.setattr(toy_tasks.Dino, 'coupled', True)
  build = lambda *args, **kwargs: lanes.experiment(  # noqa: E731
    schema.build(config_lib.Config, config_lib.to_dict(configured(*args, data_dir, **kwargs)))
  )
  with pytest.raises(RunError, match='couples the examples of a batch'):
    build('toy_dino', optim__accumulate=2)
  with pytest.raises(RunError, match='Dino evaluates and exports a network of its own'):
    build('toy_dino', optim__ema=0.9)
  with pytest.raises(RunError, match=r"task\.frozen: 'haed.*' matches no parameter"):
    build('toy_set', task__frozen=('haed.*',))
  config = configured('contrastive', data_dir).to_dict() | {'evals': {}}
  config = config_lib.complete(config | {'task': dict(name='classification')})
  cfg = schema.build(config_lib.Config, config_lib.to_dict(config))
  with pytest.raises(RunError, match=r'needs model\.name=vit, resnet, .*, not two_towers'):
    lanes.experiment(cfg)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sloppy(toy_tasks.SetPrediction):
  """Gives what no step can use."""

  fault: str = ''

  def start(self, model, key):
    return {'seen': jnp.zeros(16)}

  def loss(self, model, part, ctx):
    loss, sums, _ = super().loss(model, part, ctx)
    if self.fault == 'total':
      sums['distance'] = (sums['distance'][0], 'spot')
    if self.fault == 'no loss':
      del sums['loss']
    if self.fault == 'name':
      ctx.hyper['temperature']
    return loss, sums, {'rows': part['mask']} if self.fault == 'rows' else {}

  def update(self, extra, model, seen, ctx):
    return {} if self.fault == 'state' else extra


@pytest.mark.parametrize(
  ('fault', 'message'),
  [
    ('total', r"what is reported as 'distance' must be a sum and the name of its total, one of ex"),
    ('no loss', "among the sums that are reported must be 'loss'"),
    ('name', 'temperature is not a hyperparameter: choose from optim.lr'),
    (
      'rows',
      r'no sum over the batch: a Coupled task may keep examples apart: rows is float32',
    ),
    ('state', r'update gives another state than it got: seen is missing, not float32\[16\]'),
  ],
)
def test_what_a_task_returns_is_checked(fault, message, data_dir, monkeypatch):
  monkeypatch.setitem(toy_tasks.TASKS, 'sloppy', Sloppy)
  monkeypatch.setitem(tasks.TASKS, 'sloppy', Sloppy)
  monkeypatch.setitem(CASES, 'sloppy', CASES['toy_set'])
  config = configured('sloppy', data_dir, optim__accumulate=2, task__fault=fault)
  with one_device():
    it = built(config)
    batch = next(it.batches(0))
    with pytest.raises((TypeError, KeyError), match=message):
      jax.eval_shape(it.train_step(), it.abstract_state, it.frozen, batch, it.hyper(0))


@pytest.mark.slow
def test_frozen_parameters_cost_nothing(data_dir, tmp_path):
  """No gradient, no moments, one copy for all lanes and one for all checkpoints."""
  config = configured('contrastive', data_dir)
  train(config, str(tmp_path / 'run'))
  names = {path.name for path in (tmp_path / 'run').iterdir()}
  assert 'frozen' in names
  many = config_lib.complete({**config.to_dict(), 'lanes': {'lr': (0.1,) * 4}})
  compiled, held = [], []
  for each in (config, many):
    with one_device():
      experiment = built(each)
      state = experiment.split(experiment.init())
      batch = next(experiment.batches(0))
      step = experiment.train_step().lower(state, experiment.frozen, batch, experiment.hyper(0))
      compiled.append(step.compile().memory_analysis().argument_size_in_bytes)
      size = lambda held: sum(leaf.nbytes for leaf in jax.tree.leaves(held))  # noqa: E731
      held.append((size(state), size(experiment.frozen), size(batch)))
      trained = tree.flatten(state.model)
      assert not any(name.startswith('image/') for name in trained)
      assert not any('/image/' in name for name in tree.flatten(state.opt))
  (state, frozen, batch), (states, same, _) = held
  assert frozen == same > 0
  assert states == 4 * state
  for found, own in zip(compiled, (state, states), strict=True):
    assert found == pytest.approx(own + frozen + batch, rel=0.02)


def test_frozen_parameters_are_those_of_the_run(data_dir, tmp_path):
  """Not those of another one that was killed before its first checkpoint."""
  runs.cut_off(tmp_path / 'run', configured('contrastive', data_dir), 'at step 1')
  assert not runs.checkpoints(tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'frozen', ignore_errors=True)
  with one_device():
    experiment = lanes.experiment(
      schema.build(config_lib.Config, config_lib.to_dict(configured('contrastive', data_dir)))
    )
    experiment.init()
    Workdir(tmp_path / 'run').save_frozen(experiment.frozen)
  (tmp_path / 'run' / 'metrics.jsonl').unlink(missing_ok=True)
  train(configured('contrastive', data_dir, seed=1), str(tmp_path / 'run'))
  with one_device():
    config = config_lib.to_dict(configured('contrastive', data_dir, seed=1))
    experiment = lanes.experiment(schema.build(config_lib.Config, config))
    saved = Workdir(tmp_path / 'run').frozen(experiment.frozen)
    experiment.init()
    jax.tree.map(np.testing.assert_array_equal, saved, experiment.frozen)


@pytest.mark.slow
def test_evaluations_by_record_with_lanes(data_dir, tmp_path):
  """Of each lane what the run alone leaves."""
  config = configured('toy_moco', data_dir)
  train(config, str(tmp_path / 'alone'))
  two = config_lib.complete({**config.to_dict(), 'lanes': {'seed': (1, 0)}})
  found = train(two, str(tmp_path / 'two'))['metrics']
  alone, both = (np.load(tmp_path / name / 'evals' / 'test.npz') for name in ('alone', 'two'))
  assert both['said'].shape == (2, *alone['said'].shape)
  assert (both['said'][1] == alone['said']).mean() > 0.99
  assert found['test/examples'] == [360.0, 360.0]
  assert (both['said'][0] != alone['said']).any()


@pytest.mark.slow
def test_two_processes_leave_what_one_does(data_dir, tmp_path):
  """Records of two splits gathered, and parameters of a file read by both, cut over eight devices.

  More than ten seconds: three processes.
  """
  train(configured('toy_moco', data_dir), str(tmp_path / 'first'))
  vit_jax.save(vit_jax.load(tmp_path / 'first'), tmp_path / 'first.npz', 'vit')
  given = configured('toy_moco', data_dir, total='2 steps', checkpoint__at=()).to_dict()
  given |= {'model': dict(name='vit', image_size=(8, 8), num_heads=2, drop_path=0.2),
            'init': f'{tmp_path}/first.npz', 'mesh': '1x8x1'}  # fmt: skip
  config, first = config_lib.complete(given), 'import tests.toy_tasks as t; t.register()'
  runs.together(tmp_path / 'two', config, first=first)
  train(config, str(tmp_path / 'one'))
  results = [json.loads((tmp_path / n / 'result.json').read_text()) for n in ('one', 'two')]
  assert [result['processes'] for result in results] == [1, 2]
  assert results[0]['metrics'] == pytest.approx(results[1]['metrics'], abs=0.01)
  one, two = (np.load(tmp_path / name / 'evals' / 'test.npz') for name in ('one', 'two'))
  assert one['said'].shape == two['said'].shape == (360,)
  assert (one['nearest'] == two['nearest']).mean() > 0.99
  runs.assert_close(tmp_path / 'one', tmp_path / 'two')


@pytest.mark.slow
def test_frozen_parameters_of_unrolled_lanes(data_dir, tmp_path):
  """In checkpoints they lie as those of one scanned run, and such a run goes on from there.

  More than ten seconds: two runs, one of them killed, of two towers each.
  """
  rolled = configured('contrastive', data_dir)
  config = configured('contrastive', data_dir, model__image__scan=False)
  config = config_lib.complete({**config.to_dict(), 'lanes': {'lr': (0.05, 0.2)}})
  train(config, str(tmp_path / 'whole'))
  runs.cut_off(tmp_path / 'cut', config, 'at step 3')
  result = train(config, str(tmp_path / 'cut'))
  runs.assert_bit_identical(tmp_path / 'whole', tmp_path / 'cut')
  again = evaluate(str(tmp_path / 'cut'))
  for name, values in again.items():
    np.testing.assert_allclose(values, result['metrics'][name], rtol=1e-5)
  with one_device():
    experiment = built(rolled)
    saved = Workdir(tmp_path / 'cut').frozen(experiment.frozen)
    experiment.init()
    jax.tree.map(np.testing.assert_array_equal, saved, experiment.frozen)


@pytest.mark.parametrize(
  'frozen',
  [
    ('(?!head).*',),  # a linear probe
    ('embed/.*', 'encoder/blocks/(attn|norm.)/.*'), ('embed/.*',), ('head/.*',),
    ('encoder/.*',), ('encoder/blocks/mlp/.*',), ('.*kernel',), ('(?!registers).*',),
    ('(?!encoder/blocks/mlp/down).*',),
  ],
)  # fmt: skip
def test_what_a_step_costs_where_some_is_frozen(frozen, data_dir):
  """As the traced program counts its products, of every kind of part."""
  case = CASES['toy_set']
  task = dict(name='classification', frozen=frozen)
  model = {**case['model'], 'no_bias': FEW, 'drop_path': 0.0, 'width': 32, 'mlp_dim': 128,
           'registers': 1, 'posemb': 'factorised'}  # fmt: skip
  config = configured('toy_set', data_dir).to_dict() | {'task': task, 'model': model, 'evals': {}}
  assert_costs(config_lib.complete(config))


@pytest.mark.parametrize('name', [name for name, case in CASES.items() if 'costs' in case])
def test_what_a_step_costs(name, data_dir):
  """By passes, and as the traced program counts its products: teachers, frozen towers."""
  assert_costs(configured(name, data_dir, **CASES[name]['costs']))


def assert_costs(config):
  """The count of a step is that of its program."""
  experiment = built(config)
  program = program_of(experiment)
  counted = experiment.flops() * experiment.examples
  assert 2 * products(program) == pytest.approx(counted, rel=0.05)


def program_of(experiment, size=0):
  """The traced step."""
  batch = {
    n: jax.ShapeDtypeStruct((experiment.config.batch_size, *array.shape), array.dtype)
    for n, array in arrays(experiment.rows[size]).items()
  }
  step, state = experiment.train_step(size), experiment.abstract_state
  return traced(step, state, experiment.frozen, batch, experiment.hyper(0))
