"""Whole runs: what they leave, what they start from, and everything that can be wrong with one."""

import functools
import gc
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import vit_jax
from tests import compiling
from tests.conftest import ROOT, tiers
from tests.runs import assert_bit_identical, command, cut_off, lines, run, with_fault
from vit_jax.checkpoints import formats
from vit_jax.core.errors import RunError
from vit_jax.data.preprocess import decode
from vit_jax.data.sources import Tfds
from vit_jax.evaluate import evaluate, restore
from vit_jax.nn import sharding
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment
from vit_jax.training.workdir import Workdir

# --- what a run leaves ---


def test_a_run_leaves_its_record(finished):
  workdir, result, config = finished
  assert {p.name for p in workdir.iterdir()} == {
    'config.json', 'command.json', 'metrics.jsonl', 'result.json', 'report.html', 'checkpoints',
    'evals',
  }  # fmt: skip
  assert json.loads((workdir / 'result.json').read_text()) == result
  record = {'format': formats.FORMAT, **config_lib.to_dict(config)}
  assert json.loads((workdir / 'config.json').read_text()) == record
  assert result['step'] == 12
  assert result['examples'] == 12 * 16
  assert result['devices'] == 8
  assert result['metrics']['test/examples'] == 360
  assert {'init', 'compile', 'step', 'input', 'eval', 'checkpoint'} <= set(result['seconds'])
  assert result['packages']['jax'] == jax.__version__
  assert result['mfu'] is None  # a CPU's peak is not known
  assert result['flops']['training_total'] == 192 * result['flops']['training_per_image']
  rows = lines(workdir)
  assert [r['step'] for r in rows if 'train/loss' in r] == list(range(1, 13))
  assert [r['step'] for r in rows if 'test/top1' in r] == [6, 12]
  assert sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir()) == [8, 12]


def test_a_finished_run_says_so(finished, capsys):
  workdir, result, config = finished
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.is_file()}
  assert train(config, str(workdir)) == result
  assert 'is complete: 12 steps' in capsys.readouterr().out
  assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.is_file()}


def test_standalone_evaluation_agrees_with_the_run(finished, capsys):
  workdir, result, config = finished
  assert evaluate(str(workdir)) == pytest.approx(result['metrics'], rel=1e-6)
  config = config.copy_and_resolve_references().unlock()
  config.evals.train = config.evals.test.copy_and_resolve_references()
  config.evals.train.split = 'train'
  assert evaluate(str(workdir), config)['train/examples'] == 1437
  assert 'test/top1' in capsys.readouterr().out


def test_a_run_is_a_checkpoint_to_load(finished):
  workdir, _, _ = finished
  model = vit_jax.load(workdir)
  with jax.set_mesh(sharding.make_mesh('data')):
    experiment, state = restore(str(workdir))
  judged = experiment.config.task.judged(state, experiment.frozen)
  for a, b in zip(jax.tree.leaves(judged), jax.tree.leaves(model), strict=True):
    np.testing.assert_array_equal(a, b)
  assert model.card.class_names == tuple('0123456789')
  assert (model.card.size, model.card.resize, model.card.mean) == ((8, 8), 'area', (0.5,))


def test_evaluation_is_what_a_plain_loop_computes(finished, data_dir):
  workdir, result, _ = finished
  experiment, state = restore(str(workdir))
  source = Tfds(dataset='digits', dir=data_dir).open('test')
  images = np.stack([decode(source[i]['image'], 1) for i in range(360)])
  logits = jax.jit(lambda m, x: m(x))(state.model, experiment.config.task.normalize(images))
  hits = np.argmax(logits, -1) == np.array([source[i]['label'] for i in range(360)])
  assert hits.mean() == result['metrics']['test/top1']


# --- what can be wrong ---


def test_a_run_of_an_older_version_goes_on(finished, tmp_path, digits):
  """Its record lacks the fields that came later: it had their defaults."""
  workdir, _, config = finished
  record = json.loads((workdir / 'config.json').read_text())
  del record['format'], record['lanes'], record['model']['mup_width']
  (tmp_path / 'config.json').write_text(json.dumps(record))
  assert not Workdir(tmp_path).changes(config_lib.to_dict(config))
  assert Workdir(tmp_path).changes(config_lib.to_dict(digits(model__mup_width=8))) == {
    'model.mup_width': (0, 8)
  }


def test_another_configuration_needs_overwrite(finished, tmp_path, digits):
  workdir, result, _ = finished
  shutil.copytree(workdir, tmp_path / 'run')
  with pytest.raises(RunError, match=r'optim\.lr: 0\.003 -> 0\.001\n  seed: 0 -> 1\n.*--overwrite'):
    train(digits(seed=1, optim__lr=1e-3), str(tmp_path / 'run'))
  assert json.loads((tmp_path / 'run' / 'result.json').read_text()) == result
  other = train(digits(seed=1), str(tmp_path / 'run'), overwrite=True)
  assert other['config_hash'] != result['config_hash']
  assert lines(tmp_path / 'run') != lines(workdir)


def test_a_non_finite_loss_stops_the_run(tmp_path, digits):
  config = digits(optim__lr=1e30, optim__warmup='0', optim__clip=0.0, checkpoint__every='1 step')
  with pytest.raises(RunError) as error:
    train(config, str(tmp_path / 'run'))
  message = str(error.value)
  assert 'nothing was overwritten' in message
  assert 'a lower optim.lr' in message
  good = sorted(int(p.name) for p in (tmp_path / 'run' / 'checkpoints').iterdir())
  assert f'Last good checkpoint: {tmp_path}/run/checkpoints/{good[-1]}' in message
  _, state = restore(str(tmp_path / 'run'))
  assert f'at step {good[-1] + 1}:' in message or 'at step 1:' in message
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.model))


def test_a_checkpoint_that_does_not_fit_is_compared(finished, digits):
  workdir, _, _ = finished
  with pytest.raises(RunError) as error:
    evaluate(str(workdir), digits(model__width=32))
  message = str(error.value)
  assert 'does not fit this model' in message
  assert 'misshapen   model/embed/proj/bias: float32(16,), expected float32(32,)' in message
  with pytest.raises(RunError, match='missing     ema/'):
    evaluate(str(workdir), digits(optim__ema=0.5))
  with pytest.raises(RunError, match=r'unexpected  model/token \(1, 1, 16\)'):
    evaluate(str(workdir), digits(model__class_token=False, model__pool='mean'))


@pytest.mark.parametrize(
  ('fault', 'message'),
  tiers(
    [
      (
        'fail before mkdir */checkpoints/8.*',
        r'step 8 could not be written .* last good one is step 4',
      ),
      ('fail before open */4.*/_CHECKPOINT_METADATA', 'step 4 could not be written'),
      ('fail before rename */checkpoints/4.deleted', 'step 12 could not be written'),
      ('fail before open */.config.json.partial', r'cannot write .*config\.json'),
      ('fail before rename */result.json', r'cannot write .*result\.json'),
      ('fail before mkdir */checkpoints', r'cannot write .*checkpoints'),
      ('fail before mkdir */run', r'cannot write to --workdir='),
    ], 0, 3, 6,
  ),
)  # fmt: skip
def test_a_disk_that_fills_up(finished, tmp_path, fault, message):
  with pytest.raises(RunError, match=message) as error:
    with_fault(tmp_path / 'run', finished[2], fault)
  assert 'No space left on device' in str(error.value)
  del error
  gc.collect()  # what Orbax has not begun, within this test


def test_the_run_goes_on_when_there_is_room(finished, tmp_path):
  workdir, _, config = finished
  with pytest.raises(RunError, match='step 8 could not be written'):
    with_fault(tmp_path / 'run', config, 'fail before rename */checkpoints/8')
  train(config, str(tmp_path / 'run'))
  assert_bit_identical(tmp_path / 'run', workdir)


@pytest.mark.slow
def test_a_full_disk(tmp_path, digits):
  """Files may not grow past 16 KiB: what a checkpoint needs, but not the metrics before it."""
  config = digits(checkpoint__every='8 steps', model__mlp_dim=512, model__depth=8)
  spec = command(tmp_path / 'run', config)
  spec['env']['JAX_COMPILATION_CACHE_DIR'] = ''
  spec['args'] = ['bash', '-c', 'ulimit -S -f 16; exec "$@"', 'bash', *spec['args']]
  process = subprocess.run(**spec, capture_output=True)
  assert process.returncode == 1, process.stderr
  assert 'error: the checkpoint of step 8 could not be written' in process.stderr
  assert 'there is none before it' in process.stderr
  assert 'Traceback' not in process.stderr
  assert run(tmp_path / 'run', config).returncode == 0


def test_a_start_that_failed_does_not_stand_in_the_way(finished, tmp_path, digits, capsys):
  """Of a run that never completed a step only the record is there; another one replaces it."""
  workdir, result, config = finished
  run = tmp_path / 'run'
  with pytest.raises(RunError, match='there is no file'):
    train(digits(init=str(tmp_path / 'none.npz')), str(run))
  with pytest.raises(RunError, match='tset'):
    train(digits(evals__test__split='tset'), str(run))
  assert not (run / 'config.json').exists()
  cut_off(run, digits(optim__lr=1.0), 'in compile')
  assert {p.name for p in run.iterdir()} == {'config.json', 'command.json', 'checkpoints'}
  cut_off(run, config, 'in compile')
  assert 'that had not trained a step: it is replaced' in capsys.readouterr().out
  (run / 'config.json').write_text('{"total": ')
  assert train(config, str(run))['config_hash'] == result['config_hash']
  assert 'it is replaced' in capsys.readouterr().out
  assert_bit_identical(run, workdir)


def test_a_finished_run_that_shall_be_longer(finished, tmp_path, digits):
  """The message has the way, and it works."""
  workdir, _, _ = finished
  longer = dict(total='14 steps', optim__schedule='wsd')
  with pytest.raises(RunError, match='They part after step 5') as error:
    train(digits(**longer), str(workdir))
  assert "total: '12 steps' -> '14 steps'" in str(error.value)
  assert f'--config.init={workdir} with another --workdir starts from its weights' in str(
    error.value
  )
  # With a constant learning rate both are the same to the end of the shorter one.
  shutil.copytree(workdir, tmp_path / 'run')
  record = json.loads((workdir / 'config.json').read_text())
  record['optim']['schedule'] = 'wsd'
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(record))
  with pytest.raises(RunError, match='Up to step 12') as error:
    train(digits(**longer), str(tmp_path / 'run'))
  assert f'--config.fork={tmp_path}/run with another --workdir' in str(error.value)
  result = train(digits(**longer, fork=f'{tmp_path}/run'), str(tmp_path / 'longer'))
  assert (result['step'], result['forked']['step']) == (14, 12)
  # What differs in more than its length is not offered for a fork.
  with pytest.raises(RunError, match='holds a run of another') as error:
    train(digits(**longer, seed=1), str(workdir))
  assert 'fork' not in str(error.value)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(optim__accumulate=4), 'accumulate=4 does not divide batch_size=16, of which each of 8 '
     'devices has 2: choose it from 1, 2, or a batch_size that is a multiple of 32'),
    (dict(optim__accumulate=3, mesh='1x1x8'), 'accumulate=3 does not divide batch_size=16: '
     'choose it from 1, 2, 4, 8, 16'),
    (dict(optim__accumulate=0), 'optim.accumulate=0 .* choose it from 1, 2, or'),
    (dict(batch_size=12), 'batch_size=12 cannot be divided among the 8 devices .*: try 8 or 16'),
    (dict(evals__test__batch_size=-8), 'evals.test: batch_size=-8 must be at least 1'),
    (dict(mesh='2x2'), "mesh='2x2': write data, fsdp, tensor or sizes"),
    (dict(mesh='0x2x4'), "mesh='0x2x4': write"),
    (dict(mesh='-1x-1x1'), "mesh='-1x-1x1': write"),
    (dict(mesh='-1x3x1'), "mesh='-1x3x1' is for 6 devices, but there are 8"),
    (dict(mesh='1x1x16'), 'is for 16 devices, but there are 8'),
    (dict(mesh='1x1x8', model__num_heads=4), 'num_heads=4 cannot be divided among the 8 devices'),
  ],
)  # fmt: skip
def test_what_the_devices_cannot_divide(tmp_path, digits, changes, message):
  with pytest.raises(RunError, match=message):
    train(digits(**changes), str(tmp_path / 'run'))
  assert not (tmp_path / 'run' / 'config.json').exists()


def test_accumulation_that_the_devices_cannot_divide(tmp_path, digits, typed):
  """Through the command: it ended in a traceback from within JAX."""
  arguments = command(tmp_path / 'run', digits(batch_size=8, mesh='4x1x2'))['args'][3:]
  status, _, error = typed('vit_jax.train', *arguments, '--config.optim.accumulate=4')
  assert status == 1
  error = error.removeprefix('starting JAX\n')
  assert error.startswith('error: optim.accumulate=4 does not divide batch_size=8, of which each')
  assert error.endswith('choose it from 1, 2, or a batch_size that is a multiple of 16\n')
  assert not (tmp_path / 'run').exists()


def test_a_workdir_that_cannot_be_written(tmp_path, digits):
  (tmp_path / 'file').write_text('not a directory')
  with pytest.raises(RunError, match='cannot write to --workdir'):
    train(digits(), str(tmp_path / 'file' / 'run'))


def test_evaluating_what_is_not_there(tmp_path):
  with pytest.raises(RunError, match=r'config\.json is missing'):
    evaluate(str(tmp_path))


def test_nothing_compiles_after_the_second_step(tmp_path, digits, monkeypatch):
  compiled, step = [], [0]
  lower = jax.stages.Lowered.compile
  monkeypatch.setattr(
    jax.stages.Lowered, 'compile', lambda *a, **k: compiled.append(step[0]) or lower(*a, **k)
  )
  listener = lambda event, *_, **__: compiled.append(step[0]) if 'compile' in event else None  # noqa: E731
  hyper = Experiment.hyper

  def count(self, number):
    step[0] = number + 1
    return hyper(self, number)

  monkeypatch.setattr(Experiment, 'hyper', count)
  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    train(digits(total='8 steps', checkpoint__every='100%'), str(tmp_path / 'run'))
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  assert 1 in compiled  # the step itself
  assert not {3, 4, 5, 7} & set(compiled)  # evaluations come after 6 and 8


def alone(code, *args, **options):
  """Python in a process of its own."""
  subprocess.run([sys.executable, '-c', code, *map(str, args)], check=True, **options)


TRAIN = """
import json, sys, ml_collections
from vit_jax.train import train
for text, folder in zip(sys.argv[1::2], sys.argv[2::2]):
  train(ml_collections.ConfigDict(json.loads(text)), folder)
"""


@pytest.mark.slow
def test_compiled_programs_are_kept(tmp_path, digits):
  """A process without a cache of its own writes one beside the run, unless it is told not to."""
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
  environment['XLA_FLAGS'] = compiling.flags(1)
  config = functools.partial(digits, total='1 step', optim__warmup='0', model__depth=1)
  without, own = config(compilation_cache='').to_json(), config().to_json()
  alone(TRAIN, without, tmp_path / 'a' / 'run', own, tmp_path / 'b' / 'run', env=environment)
  assert not (tmp_path / 'a' / 'compilation_cache').exists()
  assert list((tmp_path / 'b' / 'compilation_cache').iterdir())


@pytest.mark.slow
def test_a_profile_is_written(tmp_path, digits):
  """As people do, not after hundreds of programs: the profiler sometimes crashes there."""
  config = digits(total='4 steps', model__depth=1, profile__start=2, profile__steps=1)
  environment = {**os.environ, 'XLA_FLAGS': compiling.flags(1)}
  alone(TRAIN, config.to_json(), tmp_path / 'run', env=environment)
  assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (
      ['--config.data.source.dir=/nowhere/at/all', '--config.data.source.dataset=cifar'],
      "error: no data set 'cifar'",
    ),
    (['--config.mesh=3x1x1'], "error: mesh='3x1x1' is for 3 devices, but there are 8"),
  ],
)
def test_mistakes_that_need_jax_to_be_seen(tmp_path, typed, data_dir, flags, message):
  status, _, err = typed(
    'vit_jax.train', f'--config={ROOT}/configs/digits.py', f'--workdir={tmp_path}/run',
    f'--config.data.source.dir={data_dir}', *flags,
  )  # fmt: skip
  assert status == 1
  assert err.splitlines()[-1].startswith(message)
  assert not (tmp_path / 'run').exists()


# --- starting from a checkpoint ---


def test_a_run_starts_from_a_checkpoint(finished, tmp_path, digits):
  """Of another project's dialect, for another image size, with another head, on a mesh."""
  workdir, _, _ = finished
  model = vit_jax.load(workdir)
  vit_jax.save(model, tmp_path / 'start.npz', 'vit')
  same = digits(
    init=str(tmp_path / 'start.npz'), optim__lr=0.0, optim__warmup='0', total='1 step',
    model__num_classes=10,
  )  # fmt: skip
  train(same, str(tmp_path / 'same'))
  for a, b in zip(jax.tree.leaves(vit_jax.load(tmp_path / 'same')), jax.tree.leaves(model),
                  strict=True):  # fmt: skip
    np.testing.assert_array_equal(a, b)
  other = digits(
    init=str(tmp_path / 'start.npz'), model__image_size=(16, 16), model__num_classes=12,
    total='2 steps', mesh='2x2x2', optim__warmup='0',
  )  # fmt: skip
  train(other, str(tmp_path / 'other'))
  changed = vit_jax.load(tmp_path / 'other').config
  assert (changed.image_size, changed.num_classes, changed.width) == ((16, 16), 12, 16)
  # From here on the run needs nothing but itself.
  (tmp_path / 'start.npz').rename(tmp_path / 'moved.npz')
  assert evaluate(str(tmp_path / 'other'))['test/examples'] == 360
  (tmp_path / 'other' / 'result.json').unlink()
  train(other, str(tmp_path / 'other'))
  (tmp_path / 'moved.npz').rename(tmp_path / 'start.npz')
  heads = digits(init=str(tmp_path / 'start.npz'), model__num_heads=4)
  with pytest.raises(RunError, match='misshapen'):
    train(heads, str(tmp_path / 'heads'))
