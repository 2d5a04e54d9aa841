"""What people type: fields and flags, mistakes in them, and what commands say of themselves."""

import json
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

from vit_jax.__main__ import COMMANDS
from vit_jax.architecture import ViTArchitecture, variants
from vit_jax.core import overrides
from vit_jax.core.errors import RunError
from vit_jax.launch import start
from vit_jax.training import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
DIGITS = f'--config={ROOT}/configs/digits.py'


@pytest.fixture
def refused(typed):
  """The one line with which a command ends."""

  def call(module, *arguments):
    status, _, err = typed(module, *arguments)
    assert status == 1
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    return err

  return call


@pytest.fixture
def configured(monkeypatch):
  """The configuration that `vit_jax.train` would train with; JAX is not started."""

  def call(*arguments):
    found = {}
    monkeypatch.setattr(start, '_start', lambda *_: None)
    monkeypatch.setattr(
      'vit_jax.training.loop.train', lambda config, *_, **options: found.update(
        config=config_lib.to_dict(config), **options) or {'step': 1}
    )  # fmt: skip
    monkeypatch.setattr(sys, 'argv', ['train', '--workdir=runs/none', *arguments])
    monkeypatch.delitem(sys.modules, 'vit_jax.train', raising=False)
    runpy.run_module('vit_jax.train', run_name='__main__')
    return found

  return call


# --- fields ---


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--config.model.widht=3'], r'unknown field config.model.widht: did you mean width'),
    (['--config.modle.width=3'], r'unknown field config.modle: did you mean model'),
    (['--config.model.width=big'], "config.model.width='big': a whole number is expected"),
    (['--config.model.width=1.5'], "config.model.width='1.5': a whole number is expected"),
    (['--config.optim.lr=nan'], "config.optim.lr='nan': a number is expected"),
    (['--config.model.scan=maybe'], 'true or false is expected'),
    (['--config.model.image_size=1,2,3,4'], '2 whole numbers or 3 whole numbers or a whole number'),
    (['--config.model.image_size=a'], '3 whole numbers or a whole number is expected'),
    (['--config.model.patch_size=a'], 'a whole number or 2 whole numbers or 3 whole numbers'),
    (['--config.model=3'], 'config.model is a section: choose with config.model.name=vit'),
    (
      ['--config.optim=3'],
      'config.optim is a section: choose with config.optim.name=adamw|sgd|',
    ),
    (['--config.total.steps=3'], "config.total is not a section: it has no field 'steps'"),
    (['--config.batch_size=None'], 'config.batch_size cannot be unset'),
    (['--config.batch_size='], 'config.batch_size cannot be unset'),
    (['--config.batch_size=0'], 'batch_size=0 must be at least 1'),
    (['--config.model.variant=Q/16'], "unknown model variant 'Q/16'"),
    (['--config.model.name=vti'], "unknown config.model.name 'vti': did you mean vit"),
    (['--config.data.crop.name=centre'], 'did you mean center'),
    (['--config.data.crop.fraction=0.5'], 'unknown field config.data.crop.fraction'),
    (['--config.evals.tset.every=1'], "config.evals has no 'tset': did you mean test"),
    (['--config.evals.test=x'], 'config.evals.test=None removes it'),
    (['--config.evals.tset=None'], "config.evals has no 'tset': did you mean test"),
    (['--config.optim.warmup=soon'], "optim.warmup='soon' is not a duration"),
    (['--config.log.every=soon'], "log.every='soon' is not a duration"),
    (['--config.evals.test.every=soon'], "evals.test.every='soon' is not a duration"),
    (['--config.total=5%'], 'the total length cannot be in percent'),
    (['--config.optim.schedule=cosin'], "unknown optim.schedule 'cosin': did you mean cosine"),
    (['extra'], "unexpected argument 'extra'"),
    (['--confg=x'], 'unknown argument --confg: did you mean --config'),
    (['--overwrit'], 'unknown argument --overwrit: did you mean --overwrite'),
    (['--config.seed=-1'], 'seed=-1 must be at least 0 and less than 2^32'),
    (['--config.lanes.seed=0,-1'], 'seed=-1 must be at least 0'),
    (
      ['--config.evals.test.crop.name=center', '--config.evals.test.crop.fraction=2'],
      'the fraction of a central crop is more than 0 and at most 1: 2.0',
    ),
    (['--config.data.crop.name=random_resized', '--config.data.crop.min_area=2'], '0 < min_area'),
    (['--config.optim.lr=-1'], 'optim.lr=-1.0 must be at least 0'),
    (['--config.optim.b2=1'], 'optim.b2=1.0 must be at least 0 and less than 1'),
    (['--config.model.image_size=32xx48'], "model.image_size='32xx48'"),
    (['--overwrite=maybe'], '--overwrite=maybe: write --overwrite, --overwrite=true or'),
    (['--process_id=1'], 'must be given together'),
    (['--num_processes=two'], "argument --num_processes: invalid int value: 'two'"),
  ],
)
def test_mistakes_are_one_line(refused, tmp_path, flags, message):
  found = refused('vit_jax.train', DIGITS, f'--workdir={tmp_path}/run', *flags)
  assert message in found
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    ('configs/digit.py', 'there is no file .*configs/digit.py: did you mean .*configs/digits.py'),
    ('nowhere/none.py', 'there is no file nowhere/none.py: nowhere has no Python files'),
    ('configs/digits', 'there is no file'),
    ('configs/digits.py:foo', 'configs/digits.py takes no argument: leave :foo out'),
    ('configs/fashion_mnist.py:quik', "unknown recipe 'quik': choose from quick, full"),
    ('Makefile', 'Makefile is not a Python file'),
  ],
)
def test_configurations_that_are_not_there(refused, tmp_path, config, message):
  path = ROOT / config if (ROOT / config.partition('/')[0]).exists() else config
  assert re.search(message, refused('vit_jax.train', f'--config={path}', '--workdir=x'))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('def get_config():\n  return missing\n', r"c.py, line 2: NameError: name 'missing'"),
    ('def get_config(:\n', r'c.py, line 1: SyntaxError'),
    ('import nothing_like_it\n', r'c.py, line 1: ModuleNotFoundError'),
    ('x = 1\n', 'c.py has no function get_config'),
    ('def get_config():\n  return {}\n', 'config.total is missing'),
    ('def get_config():\n  return None\n', 'c.py: get_config returns None'),
  ],
)
def test_configurations_with_mistakes_inside(refused, tmp_path, text, message):
  (tmp_path / 'c.py').write_text(text)
  assert re.search(message, refused('vit_jax.train', f'--config={tmp_path}/c.py', '--workdir=x'))


def test_missing_flags(refused):
  assert 'required: --workdir' in refused('vit_jax.train', DIGITS)
  assert 'required: --config' in refused('vit_jax.train', '--workdir=x')
  assert 'required: --topology' in refused('vit_jax.plan', DIGITS)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (
      ('train', DIGITS, '--workdir=x', '--config.model.variant=Q/16'),
      "unknown model variant 'Q/16'",
    ),
    (('inspect', 'x', '--partt=1'), 'unknown argument --partt: did you mean --part'),
    (('predict', 'x', 'y', '--tpo=1'), 'unknown argument --tpo: did you mean --top'),
    (('embed', 'x', 'y'), 'required: --out'),
    (('probe', 'x', 'y', '--controls=some'), "argument --controls: invalid choice: 'some'"),
    (('convert', 'x', 'y', '--to=timn'), "argument --to: invalid choice: 'timn'"),
    (('convert', 'x', 'y', '--to=vit', '--imagesize=1'), 'did you mean --image_size'),
    (
      ('evaluate', '--workdr=x'),
      'one of the arguments --workdir --checkpoint --follow is required',
    ),
  ],
)
def test_mistakes_are_answered_before_jax_is_there(arguments, message):
  """Nothing that takes long is imported on the way to an answer."""
  code = (
    'import runpy, sys\n'
    f'sys.argv = {list(arguments)!r}\n'
    f'try: runpy.run_module("vit_jax.{arguments[0]}", run_name="__main__", alter_sys=True)\n'
    'except SystemExit as end: print(end.code)\n'
    'heavy = ("jax", "flax", "optax", "orbax", "grain", "scipy", "tensorflow_datasets")\n'
    'print([name for name in heavy if getattr(sys.modules.get(name), "__file__", None)])\n'
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert done.stdout == '1\n[]\n'
  assert done.stderr.startswith('error: ')
  assert message in done.stderr


def test_what_reads_like_nothing_is_a_value(configured):
  """posemb='none' is a kind of positions; only None unsets."""
  found = configured(
    DIGITS, '--config.model.posemb=none', '--config.model.image_size=8x16',
    '--config.model.rope=None',
  )['config']['model']  # fmt: skip
  assert found['posemb'] == 'none'
  assert found['image_size'] == [8, 16]
  assert found['rope'] is None


def test_commands_are_modules():
  done = subprocess.run(
    [sys.executable, '-m', 'vit_jax', 'train', '--workdir=x'], capture_output=True, text=True
  )
  assert done.returncode == 1
  assert 'python -m vit_jax.train' in done.stderr


def test_a_name_and_its_fields_in_one_line(configured):
  found = configured(
    DIGITS, '--config.evals.test.crop.fraction=0.5', '--config.evals.test.crop.name=center',
    '--config.data.crop.name=random_resized', '--config.data.crop.min_area=0.3',
    '--config.data.source.name=folder', '--config.data.source.dir=photos',
  )['config']  # fmt: skip
  crop = found['evals']['test']['crop']
  assert (crop['name'], crop['fraction']) == ('center', 0.5)
  assert found['data']['crop']['min_area'] == 0.3
  assert 'degrees' not in found['data']['crop']  # of the class before
  source = found['data']['source']
  assert (source['name'], source['dir']) == ('folder', 'photos')
  assert 'dataset' not in source
  same = configured(DIGITS, '--config.data.crop.name=affine', '--config.data.crop.shift=0.2')
  assert same['config']['data']['crop']['degrees'] == 8.0  # as the file says


def test_values(configured):
  found = configured(
    DIGITS, '--config.model.image_size=16', '--config.model.width=1_024', '--config.total=1e3',
    '--config.model.scan=false', '--config.optim.lr=1', '--config.lanes.lr=0.1',
    '--config.lanes.seed=(1,)', '--config.checkpoint.at=5 steps,10 steps',
    "--config.optim.decay=(('head.*', 2), ('.*', 0.0))", '--config.model.rope_grid=(8, 4)',
    '--config.seed=1e3',
  )['config']  # fmt: skip
  assert found['model']['image_size'] == [16, 16]
  assert found['model']['width'] == 1024
  assert found['total'] == '1e3'
  assert found['model']['scan'] is False
  assert found['optim']['lr'] == 1.0
  assert found['lanes']['lr'] == [0.1]
  assert found['lanes']['seed'] == [1]
  assert found['checkpoint']['at'] == ['5 steps', '10 steps']
  assert found['optim']['decay'] == [['head.*', 2.0], ['.*', 0.0]]
  assert found['model']['rope_grid'] == [8, 4]
  assert found['seed'] == 1000


def test_unsetting(configured):
  for nothing in ('', 'None'):
    found = configured(
      DIGITS, f'--config.model.pool={nothing}', f'--config.init={nothing}',
      f'--config.model.width={nothing}', f'--config.lanes.lr={nothing}',
    )['config']  # fmt: skip
    assert found['model']['pool'] is None
    assert found['model']['width'] is None
    assert found['init'] == ''
    assert found['lanes'] == {}
    assert found['model']['depth'] == 4


def test_evaluations_come_and_go(configured):
  assert configured(DIGITS, '--config.evals.test=None')['config']['evals'] == {}
  assert configured(DIGITS, '--config.evals=None')['config']['evals'] == {}
  one = ('--config.evals.val.name=classification', '--config.evals.val.split=train')
  found = configured(DIGITS, *one, '--config.evals=None')['config']['evals']
  assert [(name, section['split']) for name, section in found.items()] == [('val', 'train')]
  found = configured(
    DIGITS, '--config.evals.held.split=train', '--config.evals.held.name=classification'
  )['config']['evals']  # fmt: skip
  assert found.keys() == {'test', 'held'}
  assert found['held']['split'] == 'train'


def test_the_last_of_two_values_counts(configured):
  found = configured(DIGITS, '--config.seed=1', '--config.seed=2')
  assert found['config']['seed'] == 2


def test_every_field_can_be_set_to_what_it_is(configured):
  """Text of every value of every configuration, through the command line."""
  for name in ('digits.py', 'fashion_mnist.py', 'image_folder.py:x', 'synthetic.py:B/16'):
    before = config_lib.to_dict(config_lib.load(str(ROOT / 'configs' / name)))
    items = [(field, '' if value is None else str(value)) for field, value in flat(before)]
    after = config_lib.to_dict(config_lib.override(before, items))
    assert after == before


def flat(tree, path=''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, f'{path}{key}.')
    else:
      yield f'{path}{key}', tuple(value) if isinstance(value, list) else value


def test_with_init_the_checkpoint_decides_what_the_command_line_does_not(configured):
  found = configured(
    f'--config={ROOT}/configs/image_folder.py:photos', '--config.init=model.pth',
    '--config.model.pool=token', '--config.model.drop_path=0.1',
  )  # fmt: skip
  model, task = found['config']['model'], found['config']['task']
  assert model['pool'] == 'token'  # said on the command line
  assert (model['posemb'], model['variant'], task['mean'], task['std']) == (None, '', None, None)
  assert (model['drop_path'], model['dtype'], model['remat']) == (0.1, 'bfloat16', 'names')
  assert found['wishes'] == {
    'model.posemb': 'sincos',
    'task.mean': (0.485, 0.456, 0.406),
    'task.std': (0.229, 0.224, 0.225),
  }


# --- what commands say ---


@pytest.mark.parametrize(
  'module', [*(f'vit_jax.{name}' for name in COMMANDS), 'experiments.sweep', 'experiments.report']
)
def test_help(module, typed):
  status, out, _ = typed(module, '--help')
  assert status == 0
  assert f'usage: python -m {module}' in out
  assert out.count(f'\n  python -m {module}') in (2, 3), 'two or three examples'
  assert out.index('examples:') < out.index('options:')


def test_the_list_of_commands_is_whole():
  there = {
    '.'.join(path.relative_to(ROOT / 'vit_jax').with_suffix('').parts).removesuffix('.__main__')
    for path in (ROOT / 'vit_jax').rglob('*.py')
    if "if __name__ == '__main__'" in path.read_text()
  }
  assert there - {'__main__'} == set(COMMANDS)


def test_models_are_listed_with_what_they_cost(typed):
  status, out, _ = typed('vit_jax.models', 'dinov2:*')
  assert status == 0
  # facebookresearch/dinov2 publishes 21 M, 86 M, 300 M and 1,100 M parameters; timm 46.76 GMACs.
  rows = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith('dinov2:')}
  assert list(rows) == ['dinov2:S/14', 'dinov2:B/14', 'dinov2:L/14', 'dinov2:g/14']
  assert rows['dinov2:S/14'][1] == '22,056,576'
  assert float(rows['dinov2:S/14'][2]) == pytest.approx(46.76, rel=2e-3)
  status, _, err = typed('vit_jax.models', 'inception')
  assert status == 1
  assert 'no model is called like' in err


def test_every_listed_model_exists():
  for name in variants.names():
    assert ViTArchitecture(name).resolve().depth
  assert len(set(variants.names())) == len(variants.names())


def test_a_model_of_another_kind_keeps_the_encoder():
  given = {'model': {'name': 'segmenter', 'encoder': {'width': 8}, 'num_classes': 5}}
  found = overrides.apply(config_lib.Config, given, [('model.name', 'upernet')])
  assert found == {'model': {'name': 'upernet', 'encoder': {'width': 8}}}
  found = overrides.apply(config_lib.Config, given, [('model.name', 'vit')])
  assert found == {'model': {'name': 'vit'}}


def test_overrides_leave_what_they_are_given_alone():
  given = json.loads(json.dumps({'total': '1', 'batch_size': 1, 'model': {'name': 'vit'}}))
  overrides.apply(config_lib.Config, given, [('model.width', '3')])
  assert given['model'] == {'name': 'vit'}
  with pytest.raises(RunError, match='unknown field'):
    overrides.apply(config_lib.Config, given, [('a', '3')])
