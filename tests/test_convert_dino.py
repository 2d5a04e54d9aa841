"""Checkpoints of self-distillation, without the programs that they are of."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vit_jax
from tests import torch_files
from tests.test_convert import assert_equal, place, refused
from tests.test_convert_masked import PLAIN, make, said, written_and_read  # noqa: F401
from vit_jax.architecture import DinoArchitecture, ViTArchitecture
from vit_jax.architecture.card import Card
from vit_jax.convert import forms, read
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.models.dino import DinoConfig
from vit_jax.nn import sharding, tree
from vit_jax.training import config as config_lib
from vit_jax.training import initial
from vit_jax.training.experiment import Experiment

SIZES: dict[str, Any] = dict(prototypes=11, hidden=20, bottleneck=7)
ENCODER = dataclasses.replace(PLAIN, interpolation='bicubic_offset')
SCALED = dataclasses.replace(PLAIN, layerscale=1e-5, registers=2)
DINO = DinoConfig(ENCODER, **SIZES)
IBOT = DinoConfig(ENCODER, **SIZES, patch_head='shared', scaled=True)
DINO2 = DinoConfig(SCALED, **SIZES, patch_head='separate', patch_prototypes=13, scaled=True)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEADS = dict(encoder=dict(num_heads=3))


def state_of(config, dialect, tmp_path):
  """The arrays of a model in the names of their code, without what our file says beside them."""
  path = tmp_path / 'state.safetensors'
  vit_jax.save(make(config), path, dialect, overwrite=True)
  return load_file(path)


def other(state):
  """The same arrays with other values, where prototypes of length 1 keep it."""
  return {
    name: array if array.shape[1:] == (1,) and (array == 1).all() else array * np.float32(0.5)
    for name, array in state.items()
  }


@pytest.fixture(scope='module')
def published(tmp_path_factory):
  """What `main_dino` saves: a student in DistributedDataParallel, its teacher, and more."""
  folder = tmp_path_factory.mktemp('published')
  state = state_of(DINO, 'dino', folder)
  module = {f'module.{name}': array for name, array in other(state).items()}
  return torch_files.write(folder / 'checkpoint.pth', {
    'student': module, 'teacher': state, 'optimizer': {'state': {}, 'param_groups': []},
    'epoch': 100, 'dino_loss': {'center': np.zeros((1, 11), np.float32)},
  })  # fmt: skip


# --- round trips ---

HOLDS = [
  ('dino', DINO), ('dino', dataclasses.replace(DINO, scaled=True)),
  ('dino', dataclasses.replace(DINO, layers=1)), ('dino', dataclasses.replace(DINO, layers=2)),
  ('ibot', IBOT), ('ibot', dataclasses.replace(IBOT, scaled=False)), ('dinov2', DINO2),
  ('dinov2', dataclasses.replace(DINO2, patch_head='shared', patch_prototypes=0)),
  ('dinov2', dataclasses.replace(DINO2, patch_prototypes=11, patch_bottleneck=5, scaled=False)),
  ('vit_jax', DINO2),
]  # fmt: skip


@pytest.mark.parametrize(('dialect', 'config'), HOLDS,
                         ids=[f'{d}-{i}' for i, (d, _) in enumerate(HOLDS)])  # fmt: skip
def test_round_trips_are_exact(tmp_path, dialect, config):
  model, again = written_and_read(tmp_path, dialect, config)
  assert again.config.sizes == model.config.sizes
  for name in ('layers', 'scaled', 'patch_head'):
    assert getattr(again.config, name) == getattr(model.config, name)
  assert forms.signature(again.config.encoder) == forms.signature(model.config.encoder)


def test_names_of_heads(tmp_path):
  """Of DINO; of iBOT, which has the same prototypes twice; and of DINOv2."""
  mlp = [f'mlp.{at}.{kind}' for at in (0, 2, 4) for kind in ('weight', 'bias')]
  last = ['last_layer.weight_g', 'last_layer.weight_v']
  twice = [name.replace('layer', 'layer2') for name in last]
  for dialect, config, heads in (
    ('dino', DINO, {'head': [*mlp, *last]}),
    ('ibot', IBOT, {'head': [*mlp, *last, *twice]}),
    ('dinov2', DINO2, {'dino_head': [*mlp, *last], 'ibot_head': [*mlp, *last]}),
  ):
    state = state_of(config, dialect, tmp_path)
    own = {name for name in state if not name.startswith('backbone.')}
    assert own == {f'{head}.{name}' for head, names in heads.items() for name in names}
    model, head = make(config), next(iter(heads))
    for at, layer in enumerate(model.head.layers):
      np.testing.assert_array_equal(state[f'{head}.mlp.{2 * at}.weight'], layer.kernel[...].T)
    np.testing.assert_array_equal(state[f'{head}.last_layer.weight_v'], model.head.last.kernel.T)
    lengths = model.head.scale[...] if config.scaled else np.ones(11)
    np.testing.assert_array_equal(state[f'{head}.last_layer.weight_g'][:, 0], lengths)
    if dialect == 'ibot':
      for name, same in zip(twice, last, strict=True):
        np.testing.assert_array_equal(state[f'head.{name}'], state[f'head.{same}'])
      np.testing.assert_array_equal(state['backbone.masked_embed'], model.encoder.mask_token[0])
  assert state['ibot_head.last_layer.weight_v'].shape == (13, 7)


# --- which model ---


def test_published_training_checkpoints(published, tmp_path, said):  # noqa: F811
  """A teacher, unless the student is asked for; the encoder alone as it always was."""
  teacher = vit_jax.load(published, **HEADS)
  assert_equal(teacher, make(DINO))
  assert not teacher.config.scaled
  assert (teacher.card.dialect, teacher.card.mean, teacher.card.std) == ('dino', *IMAGENET)
  assert teacher.card.task['name'] == 'dino'
  assert teacher.config.encoder.interpolation == 'bicubic_offset'
  assert "part 'teacher' is read; other parts: student" in said()
  student = vit_jax.load(published, part='student', **HEADS)
  want = {name: 0.5 * leaf for name, leaf in tree.flatten(make(DINO)).items()}
  for name, leaf in tree.flatten(student).items():
    np.testing.assert_array_equal(leaf, want[name])
  for choice in (dict(tower='encoder'), dict(prefix='backbone.')):
    alone = vit_jax.load(published, num_heads=3, **choice)
    assert alone.config.kind == 'vit'
    assert_equal(alone, make(DINO).encoder)
  bare = {
    name.removeprefix('backbone.'): array for name, array in load_file(
      published.parent / 'state.safetensors').items() if name.startswith('backbone.')
  }  # fmt: skip
  alone = vit_jax.load(torch_files.write(tmp_path / 'pretrain.pth', bare), num_heads=3)
  assert alone.config.kind == 'vit'
  assert_equal(alone, make(DINO).encoder)
  refused(published, 'does not say how many heads its encoder has: give num_heads')


def test_newer_names_of_normed_weights(tmp_path, published):
  """PyTorch's parametrizations; and blocks in chunks, as DINOv2 saves them."""
  state = state_of(DINO, 'dino', tmp_path)
  for letter, number in (('g', 0), ('v', 1)):
    own = state.pop(f'head.last_layer.weight_{letter}')
    state[f'head.last_layer.parametrizations.weight.original{number}'] = own
  path = torch_files.write(tmp_path / 'new.pth', {'teacher': state})
  assert_equal(vit_jax.load(path, **HEADS), make(DINO))
  chunks = {
    re.sub(r'blocks\.(\d+)\.', r'blocks.\1.\1.', name): array
    for name, array in state_of(DINO2, 'dinov2', tmp_path).items()
  }
  path = torch_files.write(tmp_path / 'teacher_checkpoint.pth', {'teacher': chunks})
  assert_equal(vit_jax.load(path, **HEADS), make(DINO2))


def test_teachers_of_ibot_have_no_mask_token(tmp_path, said):  # noqa: F811
  state = state_of(IBOT, 'ibot', tmp_path)
  teacher = {name: array for name, array in state.items() if name != 'backbone.masked_embed'}
  student = {f'module.{name}': array for name, array in state.items()}
  path = torch_files.write(tmp_path / 'ibot.pth', {'student': student, 'teacher': teacher})
  assert_equal(vit_jax.load(path, part='student', **HEADS), make(IBOT))
  assert 'no mask token' not in said()
  model = vit_jax.load(path, **HEADS)
  assert not np.asarray(model.encoder.mask_token[...]).any()
  assert 'no mask token, which in iBOT only students have: it starts at zero' in said()
  leaves, want = tree.flatten(model), tree.flatten(make(IBOT))
  for name in want.keys() - {'encoder/mask_token'}:
    np.testing.assert_array_equal(leaves[name], want[name])


def test_lengths_of_prototypes(tmp_path):
  """Those that are all 1 were not trained, unless the file says that they are to be."""
  model = make(dataclasses.replace(DINO, scaled=True))
  model.head.scale[...] = np.ones(11, np.float32)
  path = tmp_path / 'said.safetensors'
  vit_jax.save(model, path, 'dino')
  assert vit_jax.load(path).config.scaled
  state = load_file(path)
  bare = tmp_path / 'bare.safetensors'
  save_file(state, bare)
  assert not vit_jax.load(bare, **HEADS).config.scaled
  state['head.last_layer.weight_g'][3] = 1.001
  save_file(state, bare)
  again = vit_jax.load(bare, **HEADS)
  assert again.config.scaled
  np.testing.assert_array_equal(again.head.scale[...], state['head.last_layer.weight_g'][:, 0])


def test_images_of_another_size(published):
  model = vit_jax.load(published, encoder=dict(num_heads=3, image_size=24))
  assert model.encoder.posemb.shape == (1, 37, 24)
  assert model.config.image_size == (24, 24)


# --- runs ---


def test_pre_training_goes_on(tmp_path, data_dir):
  """Student and teacher start from the same part of a file; a classifier from the encoder."""
  small = dict(image_size=(8, 8), in_channels=1)
  config = dataclasses.replace(DINO, encoder=dataclasses.replace(ENCODER, **small))
  state = state_of(config, 'dino', tmp_path)
  parts = {'teacher': state, 'student': {f'module.{n}': a for n, a in other(state).items()}}
  path = torch_files.write(tmp_path / 'dino.pth', parts)
  for part in ('teacher', 'student'):
    cfg = schema.build(config_lib.Config, config_lib.to_dict(config_lib.complete(dict(
      total='4 steps', batch_size=8, init=f'{path}?part={part}', compilation_cache='',
      model=dict(name='dino', encoder=dict(num_heads=3)),
      task=dict(name='dino', local=1, local_size=4, momentum='0.9->1 cosine'),
      data=dict(source=dict(name='tfds', dataset='digits', dir=data_dir),
                crop=dict(name='random_resized')),
    ))))  # fmt: skip
    with jax.set_mesh(jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])):
      run = Experiment(cfg)
      begun = run.init()
    want = vit_jax.load(path, part=part, **HEADS)
    assert_equal(want, begun.model)
    assert_equal(want, begun.extra['teacher'])
    assert run.config.model.sizes == config.sizes
  path = tmp_path / 'ours.safetensors'
  vit_jax.save(make(config), path, 'dino')
  start = initial.Start(str(path), ViTArchitecture(''))
  assert start.notes == [f"init: of {path} the tower 'encoder' is read"]
  with pytest.raises(RunError, match=r'has model\.prototypes=11, which .* cannot change to 512'):
    initial.Start(str(path), DinoArchitecture(ViTArchitecture(''), prototypes=512))


# --- refusals ---


@pytest.mark.parametrize(
  ('dialect', 'config', 'message'),
  [
    ('timm', DINO, 'timm has no models of the kind dino. Dialects that can hold this model: dino, '
                   'vit_jax'),
    ('dino', IBOT, "dino cannot express patch_head='shared': it would be read as 'none'. Dialects "
                   'that can hold this model: dinov2, ibot, vit_jax'),
    ('ibot', DINO, "ibot cannot express patch_head='none'"),
    ('ibot', dataclasses.replace(DINO2, encoder=PLAIN), 'ibot has no patch_head of its own'),
    ('dino', dataclasses.replace(DINO, encoder=SCALED), r'cannot express encoder\.layerscale'),
    ('dino', PLAIN, 'dino has no models of the kind vit'),
  ],
)  # fmt: skip
def test_what_a_dialect_cannot_say_is_refused(tmp_path, dialect, config, message):
  with pytest.raises(RunError, match=message):
    vit_jax.save(make(config), place(tmp_path, dialect), dialect)
  assert not list(tmp_path.iterdir())


def test_what_a_file_has_and_no_model_is_refused(tmp_path):
  """Always with the way to the encoder alone, where there is one."""
  state, shared = state_of(DINO, 'dino', tmp_path), state_of(IBOT, 'ibot', tmp_path)
  both = state_of(DINO2, 'dinov2', tmp_path)
  path = tmp_path / 'changed.safetensors'

  def changed(state, message, **arrays):
    whole = {**state, **{n.replace('/', '.'): array for n, array in arrays.items()}}
    save_file({n: a for n, a in whole.items() if a is not None}, path)
    refused(path, message, **HEADS)

  apart = r'prototypes for patches that are not those for images.*prefix=backbone\. reads the'
  two = shared['head.last_layer2.weight_v']
  changed(shared, apart, **{'head/last_layer2/weight_v': two + np.float32(1e-3)})
  changed(shared, apart, **{'head/last_layer2/weight_v': np.concatenate([two, two]),
                            'head/last_layer2/weight_g': np.ones((22, 1), np.float32)})  # fmt: skip
  alone = vit_jax.load(path, prefix='backbone.', num_heads=3)
  assert (alone.config.kind, alone.config.mask_token) == ('vit', False)
  norms = {'head/mlp/1/weight': np.ones(20, np.float32),
           'head/mlp/2/weight': None, 'head/mlp/3/weight': state['head.mlp.2.weight']}  # fmt: skip
  changed(state, 'head has norms between its layers', **norms)
  changed(shared, 'head has norms between', **{'head/last_norm/running_mean': np.zeros(11)})
  wide = np.zeros((8, 24), np.float32)
  changed(both, 'ibot_head and dino_head differ in hidden', **{'ibot_head/mlp/0/weight': wide})
  changed(state, r'missing +head\.mlp\.4\.bias', **{'head/mlp/4/bias': None})
  changed(state, r'lacks head\.last_layer\.weight_g', **{'head/last_layer/weight_g': None})


def test_the_task_is_known_again(tmp_path, said):  # noqa: F811
  """What was normalised otherwise is said, and what was to be learned is not lost."""
  model = make(DINO, Card('vit_jax', (16, 16), task=dict(name='dino', ratio=(0.1, 0.5))))
  vit_jax.save(model, tmp_path / 'm.safetensors', 'dino')
  assert 'mean=(0.5, 0.5, 0.5) is dropped: dino has no place for it' in said()
  assert 'is lost' not in said()
  assert read.open_checkpoint(tmp_path / 'm.safetensors').card.task['name'] == 'dino'
