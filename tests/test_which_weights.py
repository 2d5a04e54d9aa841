"""Which weights of a file are read: parts, prefixes, ignored names; and what is said of it."""

import logging
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vit_jax
from tests import torch_files
from tests.test_convert import assert_equal, make, npz
from vit_jax import inspect, predict
from vit_jax.convert import __main__ as convert
from vit_jax.convert import files, read
from vit_jax.core.errors import RunError
from vit_jax.nn import tree

TIMM = dict(mlp='gelu', width=64, num_heads=1)


@pytest.fixture(scope='module')
def states(tmp_path_factory):
  """Two models, and their state dicts in the names of timm and of transformers."""
  folder, found = tmp_path_factory.mktemp('states'), {}
  for seed in (0, 1):
    model = _scaled(make(**TIMM), seed)
    found[f'model{seed}'] = model
    for dialect in ('timm', 'transformers'):
      vit_jax.save(model, folder / f'{dialect}{seed}', dialect)
      found[f'{dialect}{seed}'] = load_file(folder / f'{dialect}{seed}' / 'model.safetensors')
  return found


def _scaled(model, seed):
  return jax.tree.map(lambda w: w * (1 + seed / 4), model)


def prefixed(prefix, state):
  return {f'{prefix}{name}': value for name, value in state.items()}


@pytest.fixture
def said(caplog):
  caplog.set_level(logging.WARNING, 'vit_jax')
  return lambda: ' | '.join(r.getMessage() for r in caplog.records if 'convert' in r.name)


OPTIMIZER = {'state': {0: {'exp_avg': np.ones((2, 3), np.float32), 'step': 3}}}


@pytest.mark.parametrize(
  ('parts', 'taken', 'others'),
  [
    # The rule of timm.models.load_state_dict: averages first.
    (('state_dict', 'state_dict_ema', 'optimizer'), 'state_dict_ema', 'state_dict, optimizer'),
    (('model', 'model_ema'), 'model_ema', 'model'),
    (('state_dict', 'model_ema'), 'model_ema', 'state_dict'),
    (('model', 'state_dict'), 'state_dict', 'model'),
    (('student', 'teacher', 'optimizer'), 'teacher', 'student, optimizer'),
    (('encoder', 'target_encoder'), 'target_encoder', 'encoder'),
    (('weights', 'optimizer'), 'weights', 'optimizer'),
  ],
)
def test_parts(tmp_path, states, said, parts, taken, others):
  tree = {'epoch': 3, 'args': None}
  for name in parts:
    tree[name] = OPTIMIZER if name == 'optimizer' else states[f'timm{int(name == taken)}']
  path = torch_files.write(tmp_path / 'file.pth', tree)
  assert_equal(vit_jax.load(path), states['model1'])
  assert f'part {taken!r} is read; other parts: {others} (choose with part)' in said()
  for name in parts:
    if name != 'optimizer':
      chosen = vit_jax.load(path, part=name)
      assert_equal(chosen, states[f'model{int(name == taken)}'])
  with pytest.raises(RunError, match=r"has no part 'modle'"):
    vit_jax.load(path, part='modle')


def test_a_file_with_an_average_alone(tmp_path, states):
  path = torch_files.write(tmp_path / 'file.pth', {'state_dict_ema': states['timm0'], 'epoch': 1})
  assert_equal(vit_jax.load(path), states['model0'])


def test_two_unknown_parts_are_not_guessed(tmp_path, states):
  path = torch_files.write(tmp_path / 'f.pth', {'a': states['timm0'], 'b': states['timm1']})
  with pytest.raises(RunError, match='a model in each of a, b: choose one with part'):
    vit_jax.load(path)
  assert_equal(vit_jax.load(path, part='b'), states['model1'])


def test_parts_in_parts_and_whole_modules(tmp_path, states):
  nested = {'model': {'module': states['timm0']}, 'optimizer': OPTIMIZER}
  assert_equal(vit_jax.load(torch_files.write(tmp_path / 'a.pth', nested)), states['model0'])
  root = {}
  for name, value in states['timm0'].items():
    *way, last = name.split('.')
    node = root
    for step in way:
      node = node.setdefault(step, {})
    node[last] = value

  def module(node):
    arrays = {n: v for n, v in node.items() if isinstance(v, np.ndarray)}
    return torch_files.Module(arrays, {n: module(v) for n, v in node.items() if n not in arrays})

  assert_equal(vit_jax.load(torch_files.write(tmp_path / 'b.pth', module(root))), states['model0'])
  both = {'net': module(root), 'step': 7}
  assert_equal(vit_jax.load(torch_files.write(tmp_path / 'c.pth', both)), states['model0'])


CRITERION = {'criterion.weight': np.ones(7, np.float32), 'criterion.scale': np.ones((), np.float32)}


@pytest.mark.parametrize('dialect', ['timm', 'transformers'])
@pytest.mark.parametrize('prefix', ['model.', 'net.', 'encoder.', 'module.backbone.', '_orig_mod.'])
def test_the_only_prefix_that_fits_is_found(tmp_path, states, said, dialect, prefix):
  state = {**CRITERION, **prefixed(prefix, states[f'{dialect}0'])}
  path = torch_files.write(
    tmp_path / 'last.ckpt',
    {'state_dict': state, 'optimizer_states': [OPTIMIZER], 'loops': {}, 'hparams_name': 'kwargs'},
  )
  model = vit_jax.load(path, num_heads=1)
  assert_equal(model, states['model0'])
  assert f'only names that begin with {prefix!r} are read; not read: criterion.weight' in (said())
  save_file(state, tmp_path / 'last.safetensors')
  assert_equal(vit_jax.load(tmp_path / 'last.safetensors', num_heads=1), states['model0'])


def test_two_prefixes_that_fit_are_not_guessed(tmp_path, states):
  state = {**prefixed('model.', states['timm0']), **prefixed('ema_model.', states['timm1'])}
  path = torch_files.write(tmp_path / 'last.ckpt', {'state_dict': {**state, **CRITERION}})
  with pytest.raises(RunError, match=r'each of the prefixes model\., ema_model\.: choose one'):
    vit_jax.load(path)
  assert_equal(vit_jax.load(path, prefix='model.'), states['model0'])
  assert_equal(vit_jax.load(path, prefix='ema_model.'), states['model1'])
  with pytest.raises(RunError, match=r"no names that begin with prefix='net\.'.*ema_model\."):
    vit_jax.load(path, prefix='net.')


def test_a_prefix_that_would_cut_a_part_of_the_model_off_is_not_taken(tmp_path, states, said):
  """Without its classifier, what is left of a model of transformers would fit."""
  state = {**states['transformers0'], 'classifier.extra': np.ones(3, np.float32)}
  save_file(state, tmp_path / 'model.safetensors')
  with pytest.raises(RunError, match=r'unexpected  classifier.extra'):
    vit_jax.load(tmp_path / 'model.safetensors')
  encoder = {n: a for n, a in state.items() if not n.startswith('classifier')}
  save_file({**encoder, 'decoder.0.weight': state['classifier.extra']}, tmp_path / 'b.safetensors')
  assert vit_jax.load(tmp_path / 'b.safetensors').config.num_classes == 0
  assert 'not read: decoder.0.weight' in said()


def test_heads_of_pretraining(tmp_path, states):
  """MoCo: two encoders with projections, of which the names are said."""
  state = prefixed('module.base_encoder.', states['timm0'])
  state |= prefixed('module.momentum_encoder.', states['timm1'])
  for encoder in ('base', 'momentum'):
    for name in ('weight', 'bias'):
      state[f'module.{encoder}_encoder.head.0.{name}'] = state.pop(
        f'module.{encoder}_encoder.head.{name}'
      )
  path = torch_files.write(tmp_path / 'moco.pth', {'state_dict': state})
  with pytest.raises(RunError) as error:
    vit_jax.load(path)
  for text in ("(part 'state_dict', prefix 'module.base_encoder.')", 'unexpected  head.0.weight',
               '--ignore=REGEX'):  # fmt: skip
    assert text in str(error.value)
  model = vit_jax.load(path, prefix='module.momentum_encoder.', ignore='head.*')
  assert model.config.num_classes == 0
  np.testing.assert_array_equal(model.token[...], states['model1'].token[...])


def test_a_teacher_comes_before_its_student(tmp_path, states):
  state = {
    **prefixed('student.backbone.', states['timm0']), 'student.dino_head.w': np.ones(3, np.float32),
    **prefixed('teacher.backbone.', states['timm1']), 'teacher.dino_head.w': np.ones(3, np.float32),
  }  # fmt: skip
  save_file(state, tmp_path / 'both.safetensors')
  assert_equal(vit_jax.load(tmp_path / 'both.safetensors'), states['model1'])
  assert_equal(vit_jax.load(tmp_path / 'both.safetensors', prefix='student.backbone.'),
               states['model0'])  # fmt: skip


def test_the_encoder_of_something_like_mae(tmp_path, states, said):
  """An encoder without a head, and a decoder that says nothing of pixels."""
  encoder = {n: a for n, a in states['timm0'].items() if not n.startswith('head.')}
  rng = np.random.default_rng(0)
  decoder = {
    'mask_token': rng.normal(size=(1, 1, 32)), 'decoder_pos_embed': rng.normal(size=(1, 17, 32)),
    'decoder_embed.weight': rng.normal(size=(32, 64)), 'decoder_embed.bias': rng.normal(size=32),
    **{f'decoder_blocks.{i}.norm1.weight': rng.normal(size=32) for i in range(8)},
  }  # fmt: skip
  decoder = {n: np.float32(a) for n, a in decoder.items()}
  path = torch_files.write(
    tmp_path / 'mae.pth', {'model': {**encoder, **decoder}, 'optimizer': OPTIMIZER, 'epoch': 799}
  )
  model = vit_jax.load(path)
  assert model.config.num_classes == 0
  assert not hasattr(model, 'mask_token')
  want = tree.flatten(states['model0'])
  for name, leaf in tree.flatten(model).items():
    np.testing.assert_array_equal(leaf, want[name], name)
  assert 'decoder_blocks.{0-7}.norm1.weight' in said()
  assert 'mask_token' in said()


# --- ignore ---


def test_ignored_names_may_be_missing_unexpected_or_misshapen(tmp_path, states, said):
  state = dict(states['timm0'])
  state['blocks.0.mlp.fc1.bais'] = state.pop('blocks.0.mlp.fc1.bias')
  state['norm.weight'] = np.ones(63, np.float32)
  state['projector.0.weight'] = np.ones((3, 3), np.float32)
  path = torch_files.write(tmp_path / 'file.pth', {'state_dict': state})
  with pytest.raises(RunError) as error:
    vit_jax.load(path)
  for line in ('missing     blocks.0.mlp.fc1.bias', 'misshapen   norm.weight',
               'unexpected  projector.0.weight'):  # fmt: skip
    assert line in str(error.value)
  with pytest.raises(RunError, match=r'missing     blocks\.0\.mlp\.fc1\.bias'):
    vit_jax.load(path, ignore=r'projector.*|norm\.weight|.*bais')
  model = vit_jax.load(path, ignore=r'projector.*|norm\.weight|.*fc1\.b(ia|ai)s')
  text = said()
  assert 'not read: blocks.0.mlp.fc1.bais, projector.0.weight' in text
  fresh = text.rpartition('as in a fresh model: ')[2].partition(' | ')[0]
  assert set(fresh.split(', ')) == {'norm.weight', 'blocks.0.mlp.fc1.bias'}
  want = tree.flatten(states['model0'])
  for name, leaf in tree.flatten(model).items():
    if name == 'encoder/norm/scale':
      np.testing.assert_array_equal(leaf, np.ones(64))  # as norms start
    elif name == 'encoder/blocks/mlp/up/bias':
      np.testing.assert_array_equal(leaf[0], np.zeros(40))  # as biases start
      np.testing.assert_array_equal(leaf[1], want[name][1])
    else:
      np.testing.assert_array_equal(leaf, want[name], name)


def test_ignoring_names_that_fit_changes_nothing(tmp_path, states):
  path = torch_files.write(tmp_path / 'file.pth', states['timm0'])
  assert_equal(vit_jax.load(path, ignore='.*'), states['model0'])
  state = {**states['timm0'], 'visual.conv1.weight': np.ones((1, 1, 5), np.float32)}
  path = torch_files.write(tmp_path / 'more.pth', state)
  assert_equal(vit_jax.load(path, ignore='visual.*|norm.*'), states['model0'])


def test_ignored_parameters_of_runs_and_npz(tmp_path, said):
  vit_jax.save(make(), tmp_path / 'run', 'vit_jax')
  with pytest.raises(RunError, match='misshapen   encoder/blocks/attn/key/kernel'):
    vit_jax.load(tmp_path / 'run', num_heads=4)
  model = vit_jax.load(tmp_path / 'run', num_heads=4, ignore='.*/attn/.*')
  assert model.encoder.blocks.attn.key.kernel.shape == (2, 24, 4, 6)
  assert 'encoder/blocks/attn/key/kernel' in said()
  vit_jax.save(make(), tmp_path / 'model.npz', 'vit')
  arrays = {n: np.asarray(a) for n, a in files.read(tmp_path / 'model.npz').items()}
  arrays['head/bias'] = np.zeros(3, np.float32)
  path = npz(tmp_path / 'bad.npz', arrays)
  assert not np.asarray(vit_jax.load(path, ignore='head/bias').head.bias[...]).any()
  with pytest.raises(RunError, match='is not a regular expression'):
    vit_jax.load(path, ignore='(')


# --- the commands ---


def test_commands_take_part_prefix_and_ignore(tmp_path, states, capsys):
  state = {**prefixed('net.', states['timm1']), **prefixed('old.', states['timm0'])}
  state['net.projector.weight'] = np.ones(3, np.float32)
  path = str(torch_files.write(tmp_path / 'f.ckpt', {'state_dict': state, 'ema': states['timm0']}))
  options = dict(part='state_dict', prefix='net.', ignore='projector.*')
  convert.main(path, str(tmp_path / 'out'), 'timm', options)
  out = capsys.readouterr().out
  assert 'note: ' in out
  assert 'projector.weight' in out
  assert_equal(vit_jax.load(tmp_path / 'out'), states['model1'])
  assert inspect.main(path, True, options) == 0
  out = capsys.readouterr().out
  for line in ('parts         state_dict, ', '(this one)', 'ema, ', 'prefix        net.',
               'everything fits', 'num_heads=1'):  # fmt: skip
    assert line in out
  assert inspect.main(path, False, {'part': 'ema'}) == 0
  image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
  cv2.imwrite(str(tmp_path / 'a.png'), image[..., ::-1])
  predict.main(path, [str(tmp_path / 'a.png')], 1, 1, None, options)
  out = capsys.readouterr().out
  model = states['model1']
  model.card = read.open_checkpoint(path, **options).card
  x = predict.prepare(image, model.card)[None]
  best = int(np.argmax(model(jnp.asarray(x))[0]))
  assert f'class {best}' in out


def test_typed(tmp_path, states):
  path = torch_files.write(
    tmp_path / 'f.pth', {'student': states['timm0'], 'teacher': states['timm1']}
  )
  target = tmp_path / 'out'
  command = [sys.executable, '-m', 'vit_jax.convert', str(path), str(target), '--to=timm',
             '--part=student', '--ignore=nothing', '--image_size=24']  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '')
  assert 'note: ' in done.stdout
  model = vit_jax.load(target)
  assert model.config.image_size == (24, 24)
  np.testing.assert_array_equal(model.token[...], states['model0'].token[...])
