"""Configurations: every file builds, every mistake is answered."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from configs import pretraining
from tests import slices, teachers
from tests.conftest import tiers
from tests.runs import lines
from vit_jax.architecture import TwoTowersArchitecture
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data.pipeline import arrays
from vit_jax.nn import sharding
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = [
  'digits.py', 'fashion_mnist.py', 'fashion_mnist.py:quick', 'image_folder.py:somewhere',
  'synthetic.py:B/16', 'tfds.py:imagenet2012', 'multilabel.py', 'multilabel.py:tags.csv',
  'regression.py', 'regression.py:people.csv', 'segmentation.py', 'segmentation.py:ade20k',
  'segmentation.py:segmenter,ade20k', 'segmentation.py:upernet,ade20k',
  'pretraining.py:G/14', 'pretraining.py:So400m/14', 'pretraining.py:22B/14,imagenet2012',
  'vit.py:B/16,21k', 'vit.py:B/16,cifar10', 'vit_s16.py:90', 'augreg.py:S/16,1k', 'deit.py:Ti/16',
  'deit.py:Ti/16,distilled', 'deit3.py:S/16,800', 'flexivit.py:B/32,21k', 'distillation.py:teacher',
  'distillation.py:student', 'bit.py:pet,fast', 'ssl.py:mae', 'ssl.py:simmim', 'ssl.py:colours',
  'ssl.py:dino', 'ssl.py:ibot', 'ssl.py:dinov2', 'ssl.py:collapse', 'ssl.py:labels',
  'ssl.py:mae,imagenette', 'ssl.py:dinov2,imagenette', 'ssl.py:labels,imagenette',
  'mae.py:H/14,800', 'simmim.py:B/16,800', 'dino.py:S/16,800', 'ibot.py:B/16,400',
  'dinov2.py:L/14,22k', 'land_cover.py', 'land_cover.py:tiles', 'change.py', 'change.py:levir',
  'contrastive.py', 'contrastive.py:softmax', 'contrastive.py:pairs,DIR',
  'clip.py:B/16', 'clip.py:L/14,DIR', 'siglip.py:B/16', 'siglip.py:So400m/14', 'lit.py:B/16',
  'zeroshot.py:DIR', 'zeroshot.py:DIR,imagenet', 'zeroshot.py:DIR,coco',
  'damage.py', 'damage.py:xbd', 'detection.py', 'detection.py:photos', 'panoptic.py',
  'detr.py', 'detr.py:coco', 'detr.py:original,coco', 'detr.py:masks', 'detr.py:masks,coco',
  'yolos.py:Ti,coco', 'yolos.py:B,coco', 'panoptic.py:L,coco',
  'panoptic.py:instances', 'language.py',
]  # fmt: skip


# Of segments by queries.
MASKS = 'accuracy', 'classes', 'masks', 'dice', 'left_out'
# Of self-distillation.
WATCHED = 'images', 'entropy', 'kl', 'mean_entropy', 'used', 'spread', 'rank', 'distance'


def load(name):
  return config_lib.load(str(ROOT / 'configs' / name))


def test_no_config_is_forgotten():
  files = {path.name for path in (ROOT / 'configs').glob('*.py')}
  assert files == {name.partition(':')[0] for name in CONFIGS}


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_build_lock_and_survive_json(name):
  config = load(name)
  assert config.is_locked
  built = schema.build(config_lib.Config, config)
  again = schema.build(config_lib.Config, json.loads(config.to_json()))
  assert again == built
  if not built.init:  # else the checkpoint says what the model is
    built.model.resolve()
  doc = (ROOT / 'configs' / name.partition(':')[0]).read_text()
  assert f'--config=configs/{name.partition(":")[0]}' in doc


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_trace_a_step(name, data_dir):
  tree = load(name).to_dict()
  channels = tree['model'].get('encoder', {}).get('in_channels') or 3
  classes = 5 if tree['task']['name'] == 'damage' else 7
  tree['data']['source'] = dict(name='synthetic', num_classes=classes, channels=channels)
  tree['data']['cache'] = False
  if tree['init']:  # which is not here
    tree['init'], tree['model']['variant'] = '', 'mu/16'
  if tree['task']['name'] == 'distillation':  # neither is the teacher, which knows ten classes
    tree['data']['source']['num_classes'] = 10
    tree['task']['teacher'] |= dict(init=teachers.saved(data_dir), by_number=False)
  config = schema.build(config_lib.Config, tree)
  experiment = Experiment(dataclasses.replace(config, task=config.task.without_files()))
  batch = {
    name: jax.ShapeDtypeStruct((tree['batch_size'], *array.shape), array.dtype)
    for name, array in arrays(experiment.rows[0]).items()
  }
  step = experiment.train_step()
  state, metrics = jax.eval_shape(
    step, experiment.abstract_state, experiment.frozen, batch, experiment.hyper(0)
  )
  assert jax.tree.structure(state) == jax.tree.structure(experiment.abstract_state)
  own = {
    'classification': {'top1'}, 'segmentation': {'accuracy'},
    'detection': {'classes', 'distance', 'overlap', 'iou', 'accuracy', 'left_out',
                  *metrics.keys() & {'dense', 'denoising'}},
    'change': {'accuracy'},
    'damage': {'accuracy', 'located', 'damage'},
    'panoptic': {*MASKS, *metrics.keys() & {'pixels', 'distance', 'overlap', 'iou'}},
    'instances': {*MASKS, 'pixels'},
    'distillation': {'top1', 'teacher', 'agreement'},
    'dino': {*WATCHED, *metrics.keys() & {'center', 'patches', 'koleo'}},
    'language': {'token_loss', 'right', 'tokens_left_out'},
    'contrastive': {'text_right', 'image_right', 'scale', *metrics.keys() & {'bias'}},
    'masked': {'accuracy'} & {'accuracy' * (tree['task'].get('target') == 'colours')},
  }.get(tree['task']['name'], set())  # fmt: skip
  assert {'loss', 'grad_norm', 'skipped', *own} == metrics.keys()


@pytest.mark.parametrize('variant', tiers([*pretraining.RECIPES], 2))
def test_recipes_for_pods_train(variant, tmp_path, monkeypatch):
  """Two narrow layers, on two slices of four devices; nothing else of the model is changed."""
  monkeypatch.setattr(sharding, 'slice_of', slices.of(2))
  tree = load(f'pretraining.py:{variant}').to_dict()
  tree |= dict(total='30 steps', batch_size=16, mesh='-1x2x1')
  tree['model'] |= dict(width=16, depth=2, mlp_dim=32, num_heads=2, image_size=(28, 28))
  tree['data']['source'] = dict(name='synthetic', num_classes=4, image_size=(28, 28), examples=16)
  tree['data'] |= dict(crop=dict(name='resize'), flip='none')  # what can be learned by heart
  tree['optim'] |= dict(lr=0.03, warmup='5 steps', cooldown='5 steps')
  tree['evals']['test']['batch_size'] = 16
  tree['log'] = dict(every='1 step')
  train(config_lib.complete(tree), str(tmp_path / 'run'))
  losses = [row['train/loss'] for row in lines(tmp_path / 'run') if 'train/loss' in row]
  assert losses[0] == pytest.approx(np.log(4), rel=1e-3)
  assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(modle={}), r'unknown field config\.modle: did you mean model'),
    (dict(model=dict(widht=3)), r'unknown field config\.model\.widht: did you mean width'),
    (dict(model=dict(name='vti')), r"unknown config\.model\.name 'vti': did you mean vit"),
    (dict(model=dict(width=1.5)), r'config\.model\.width must be of type int, not 1\.5'),
    (dict(name='x'), r'unknown field config\.name'),
    (dict(optim=dict(name='adam')), r'unknown config\.optim\.name .*did you mean adamw'),
    (dict(batch_size=True), 'config.batch_size must be of type int'),
    (dict(data=dict(source=dict(name='tdfs'))), 'did you mean tfds'),
    (dict(data=dict(source={})), 'source.name is missing: choose from tfds, folder, manifest'),
    (dict(data=dict(source=dict(name='tfds'))), r'config\.data\.source\.dataset is missing'),
    (dict(evals=dict(x=dict(name='clasification'))), 'did you mean classification'),
    (dict(optim=dict(lr='fast')), r'config\.optim\.lr must be of type float'),
    (dict(checkpoint=dict(keep=0)), 'keep=0 must be at least 1'),
    (dict(task=dict(label_smoothing=1.0)), r'must be in \[0, 1\)'),
    (dict(task=dict(mixup=-0.1)), 'must not be negative'),
    (dict(task=dict(loss_of='sigmoids')), 'unknown task.loss_of .*did you mean sigmoid'),
  ],
)
def test_mistakes_are_named(changes, message):
  config = dict(total='1', batch_size=1, data=dict(source=dict(name='synthetic')))
  with pytest.raises(RunError, match=message):
    schema.build(config_lib.Config, config_lib.complete({**config, **changes}))


def test_missing_fields_are_named():
  with pytest.raises(RunError, match=r'config\.total is missing'):
    config_lib.complete({})


@pytest.mark.parametrize(
  ('duration', 'steps'),
  [
    ('100', 100), ('100 steps', 100), ('1 step', 1), ('1e3 steps', 1000), ('640 examples', 20),
    ('2 epochs', 63), ('0.5 epoch', 16), ('5%', 10), ('0', 0), ('1 example', 1), ('1_000', 1000),
  ],
)  # fmt: skip
def test_durations(duration, steps):
  assert config_lib.steps(duration, batch_size=32, epoch=1000, total=200) == steps


@pytest.mark.parametrize(
  'duration', ['', 'ten steps', '5 weeks', '-3', '1.2.3', '_1', 'e5', '5 %%']
)
def test_bad_durations(duration):
  with pytest.raises(RunError, match='is not a duration'):
    config_lib.steps(duration, batch_size=32, epoch=1000, total=200)


def test_the_total_is_not_a_percentage():
  with pytest.raises(RunError, match='cannot be in percent'):
    config_lib.steps('5%', batch_size=32, epoch=1000)


def test_free_fields_do_not_name_another_run(digits):
  config, moved = digits().to_dict(), digits(mesh='fsdp', model__remat='full').to_dict()
  assert config_lib.run_hash(config) == config_lib.run_hash(moved)
  assert config_lib.run_hash(config) != config_lib.run_hash(digits(seed=1).to_dict())


def test_free_fields_of_towers_do_not_name_another_run(digits):
  config = {**digits().to_dict(), 'model': dict(name='two_towers', text=dict(context_length=8))}
  moved = {**config, 'model': {**config['model'], 'image': dict(scan=False, remat='full')}}
  one, other, third = (
    config_lib.run_hash(config_lib.complete(each).to_dict())
    for each in (config, moved, {**moved, 'model': dict(name='two_towers')})
  )
  assert one == other != third


def test_a_section_in_another_has_that_ones_defaults(digits):
  """A tower without a variant has the variant of both."""
  config = config_lib.complete({**digits().to_dict(), 'model': dict(name='two_towers')})
  model = schema.build(config_lib.Config, config.to_dict()).model.resolve()
  assert model == TwoTowersArchitecture('clip:B/16').resolve()


def test_free_fields_exist(digits):
  config = digits()
  for name in config_lib.FREE:
    node = config
    for part in name.split('.'):
      node = node[part]
