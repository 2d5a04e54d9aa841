"""Whole runs: kills, signals, restarts elsewhere, and everything that can be wrong with one."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import vit_jax
from tests.conftest import make_digits
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

ROOT = pathlib.Path(__file__).parent.parent
TIMES = ('images_per_second',)
KILLS = int(os.environ.get('VIT_JAX_TEST_KILLS', '3'))


def lines(workdir):
  """metrics.jsonl, less what depends on the clock."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def leaves(workdir, mesh='data'):
  with jax.set_mesh(sharding.make_mesh(mesh)):
    _, state = restore(str(workdir))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def assert_bit_identical(a, b):
  for x, y in zip(leaves(a), leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)
  assert lines(a) == lines(b)


def assert_close(a, b):
  for x, y in zip(lines(a), lines(b), strict=True):
    assert x == pytest.approx(y, rel=1e-3, abs=1e-4)


def command(workdir, config, *flags, devices=1, module='train'):
  """A command line and environment; `config` is written to a file that returns it."""
  path = pathlib.Path(workdir).with_suffix('.py')
  path.write_text(
    'import json\nfrom vit_jax.config import complete\n'
    f'def get_config():\n  return complete(json.loads({config.to_json()!r}))\n'
  )
  flag = f'--xla_force_host_platform_device_count={devices}'
  level = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  env = {**os.environ, 'XLA_FLAGS': f'{flag} {level}', 'PYTHONPATH': str(ROOT)}
  args = [
    sys.executable,
    '-m',
    f'vit_jax.{module}',
    f'--config={path}',
    f'--workdir={workdir}',
    *flags,
  ]
  return dict(args=args, env=env, text=True, cwd=ROOT)


def run(workdir, config, *flags, **kwargs):
  return subprocess.run(**command(workdir, config, *flags, **kwargs), capture_output=True)


def start(workdir, config, *flags, **kwargs):
  return subprocess.Popen(
    **command(workdir, config, *flags, **kwargs), stdout=subprocess.PIPE, stderr=subprocess.PIPE
  )


def wait_for_step(workdir, step, process):
  """Returns once the run has written metrics of `step`."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  deadline = time.time() + 120
  while time.time() < deadline and process.poll() is None:
    if path.exists() and f'"step": {step},' in path.read_text():
      return
    time.sleep(0.01)
  raise AssertionError(f'never reached step {step}: {process.communicate()}')


@pytest.fixture(scope='module')
def finished(tmp_path_factory, data_dir):
  """An uninterrupted run of 12 steps in this process."""
  config = make_digits(data_dir)
  workdir = tmp_path_factory.mktemp('run') / 'finished'
  return workdir, train(config, str(workdir)), config


# --- what a run leaves ---


def test_a_run_leaves_its_record(finished):
  workdir, result, config = finished
  assert {p.name for p in workdir.iterdir()} == {
    'config.json', 'metrics.jsonl', 'result.json', 'checkpoints'
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
    _, state = restore(str(workdir))
  for a, b in zip(jax.tree.leaves(state.eval_model), jax.tree.leaves(model), strict=True):
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


# --- interruptions ---


def test_kills_change_nothing(finished, tmp_path):
  """kill -9 at random moments of one run, start-up and saving included."""
  _, _, config = finished
  config = config.copy_and_resolve_references().unlock()
  total = 40 + 20 * KILLS
  config.update(total=f'{total} steps', mesh='data')
  config.checkpoint.every = '5 steps'
  config.evals.test.every = '100 steps'
  config = config.lock()
  assert run(tmp_path / 'whole', config).returncode == 0
  rng, kills, furthest = random.Random(0), 0, []
  while kills < KILLS:
    process = start(tmp_path / 'killed', config)
    # Most kills hit the loop; some hit imports, restoring and compiling.
    if kills % 4:
      step = (furthest[-1] if furthest else 0) + rng.randint(1, 12)
      wait_for_step(tmp_path / 'killed', min(step, total - 20), process)
      time.sleep(rng.uniform(0, 0.1))
    else:
      time.sleep(rng.uniform(1, 8))
    assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    kills += 1
    path = tmp_path / 'killed' / 'metrics.jsonl'
    done = (
      [json.loads(row)['step'] for row in path.read_text().splitlines()[:-1]]
      if path.exists()
      else []
    )
    furthest.append(max(done, default=0))
  last = run(tmp_path / 'killed', config)
  assert last.returncode == 0, last.stderr
  assert 'continuing' in last.stdout
  assert_bit_identical(tmp_path / 'killed', tmp_path / 'whole')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_cleanly(finished, tmp_path, number):
  _, _, config = finished
  config = config.copy_and_resolve_references().unlock()
  config.update(total='300 steps')
  config.checkpoint.every = '300 steps'
  config.evals.test.every = '300 steps'
  process = start(tmp_path / 'run', config)
  wait_for_step(tmp_path / 'run', 20, process)
  process.send_signal(number)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 0, err
  assert 'stopped by a signal at step' in out
  saved = [int(p.name) for p in (tmp_path / 'run' / 'checkpoints').iterdir()]
  assert len(saved) == 1
  assert 20 <= saved[0] < 300
  assert not (tmp_path / 'run' / 'result.json').exists()
  if number == signal.SIGTERM:
    assert run(tmp_path / 'run', config).returncode == 0
    assert run(tmp_path / 'whole', config).returncode == 0
    assert_bit_identical(tmp_path / 'run', tmp_path / 'whole')


class Stop(BaseException):
  """Raised where a run is to be cut off."""


def cut_off(config, workdir, step, monkeypatch):
  """Runs in this process up to `step`, which is not saved."""
  from vit_jax.training import loop as module

  original = module._Session._boundary

  def boundary(self, done, stop):
    if done == step:
      self.checkpoints.wait()
      raise Stop
    return original(self, done, stop)

  with monkeypatch.context() as patch:
    patch.setattr(module._Session, '_boundary', boundary)
    with pytest.raises(Stop):
      train(config, str(workdir))


@pytest.mark.parametrize('mesh', ['1x8x1', '2x2x2'])
def test_resuming_on_another_mesh(finished, tmp_path, monkeypatch, digits, mesh):
  workdir, _, config = finished
  cut_off(config, tmp_path / 'run', 7, monkeypatch)
  train(digits(mesh=mesh, model__remat='full', optim__accumulate=2), str(tmp_path / 'run'))
  assert_close(tmp_path / 'run', workdir)


def test_a_restart_drops_what_came_after_the_checkpoint(finished, tmp_path, monkeypatch):
  workdir, _, config = finished
  cut_off(config, tmp_path / 'run', 7, monkeypatch)
  assert lines(tmp_path / 'run')[-1]['step'] > 4
  with (tmp_path / 'run' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 7, "train/lo')  # a line cut short
  train(config, str(tmp_path / 'run'))
  assert_bit_identical(tmp_path / 'run', workdir)


def test_a_run_killed_between_last_checkpoint_and_result(finished, tmp_path):
  import shutil

  workdir, result, config = finished
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'result.json').unlink()
  again = train(config, str(tmp_path / 'run'))
  assert again['metrics'] == result['metrics']
  assert_bit_identical(tmp_path / 'run', workdir)


# --- several processes ---


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start_two(workdir, config):
  port = free_port()
  return [
    start(
      workdir, config, f'--coordinator=127.0.0.1:{port}', '--num_processes=2', f'--process_id={i}',
      devices=4,
    )
    for i in range(2)
  ]  # fmt: skip


def finish(processes):
  for process, (out, err) in [(p, p.communicate(timeout=240)) for p in processes]:
    assert process.returncode == 0, (out, err)


@pytest.mark.parametrize('mesh', ['4x2x1', '1x1x8'])
def test_two_processes_get_the_losses_of_one(finished, tmp_path, digits, mesh):
  """Each with half of the rows of a batch, and (1x1x8) both with all of them."""
  workdir, result, _ = finished
  finish(start_two(tmp_path / 'two', digits(mesh=mesh)))
  two = json.loads((tmp_path / 'two' / 'result.json').read_text())
  assert two['processes'] == 2
  assert_close(tmp_path / 'two', workdir)
  assert two['metrics'] == pytest.approx(result['metrics'], rel=1e-3)


def test_one_process_continues_what_two_began(tmp_path, digits):
  long = digits(total='200 steps', checkpoint__every='200 steps', evals__test__every='200 steps')
  processes = start_two(tmp_path / 'run', long)
  wait_for_step(tmp_path / 'run', 10, processes[0])
  processes[1].send_signal(signal.SIGTERM)  # one of them hears it, both stop at the same step
  finish(processes)
  saved = [int(p.name) for p in (tmp_path / 'run' / 'checkpoints').iterdir()]
  assert len(saved) == 1
  assert 10 <= saved[0] < 200
  train(long, str(tmp_path / 'run'))
  train(long, str(tmp_path / 'whole'))
  for x, y in zip(lines(tmp_path / 'run')[:60], lines(tmp_path / 'whole')[:60], strict=True):
    assert x == pytest.approx(y, rel=2e-2, abs=1e-3)


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
  import shutil

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
    evaluate(str(workdir), digits(model__width=32, model__pool='map', optim__ema=0.5))
  message = str(error.value)
  assert 'does not fit this model' in message
  assert 'misshapen   model/embed/proj/bias: float32(16,), expected float32(32,)' in message
  assert 'missing     ema/' in message
  assert 'unexpected  model/token (1, 1, 16)' in message


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


def test_a_workdir_that_cannot_be_written(tmp_path, digits):
  (tmp_path / 'file').write_text('not a directory')
  with pytest.raises(RunError, match='cannot write to --workdir'):
    train(digits(), str(tmp_path / 'file' / 'run'))


def test_evaluating_what_is_not_there(tmp_path):
  with pytest.raises(RunError, match='there is no config'):
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


def train_alone(config, folder, **options):
  """In a process of its own."""
  code = (
    'import json, sys; import ml_collections; from vit_jax.train import train\n'
    'train(ml_collections.ConfigDict(json.loads(sys.argv[1])), sys.argv[2])'
  )
  command = [sys.executable, '-c', code, config.to_json(), str(folder)]
  subprocess.run(command, check=True, **options)


def test_compiled_programs_are_kept(tmp_path, digits):
  """A process without a cache of its own writes one beside the run."""
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
  for name, cache in (('a', '../compilation_cache'), ('b', '')):
    config = digits(total='1 step', optim__warmup='0', compilation_cache=cache)
    folder = tmp_path / name / 'run'
    train_alone(config, folder, env=environment)
    assert (folder.parent / 'compilation_cache').is_dir() == bool(cache)


def test_a_profile_is_written(tmp_path, digits):
  """As people do, not after hundreds of programs: the profiler sometimes crashes there."""
  train_alone(digits(total='6 steps', profile__start=2, profile__steps=2), tmp_path / 'run')
  assert list((tmp_path / 'run' / 'profile').rglob('*.xplane.pb'))


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--config.model.widht=3'], 'Did you mean "width"'),
    (['--config.model.width=big'], 'width'),
    (['--config.model.variant=Q/16'], "unknown model variant 'Q/16'"),
    (['--config.batch_size=0'], 'batch_size'),
    (
      ['--config.data.source.dir=/nowhere/at/all', '--config.data.source.dataset=cifar'],
      'no data set',
    ),
    (['--config.mesh=2x2x2'], 'for 8 devices, but there are 1'),
    (['--config.optim.warmup=soon'], 'is no duration'),
    (['extra'], "unexpected argument 'extra'"),
    (['--config=configs/fashion_mnist.py:quik'], "error: unknown recipe 'quik': choose from quick"),
    (['--config=configs/none.py'], "No such file or directory: 'configs/none.py'"),
    (['--confg=x'], "Unknown command line flag 'confg'"),
    (['--process_id=1'], 'given together'),
  ],
)
def test_mistakes_on_the_command_line(tmp_path, digits, flags, message):
  process = run(tmp_path / 'run', digits(), *flags)
  assert process.returncode == 1
  assert process.stderr.startswith('error: '), process.stderr
  assert message in process.stderr
  assert 'Traceback' not in process.stderr
  assert not (tmp_path / 'run').exists()


# --- starting from a checkpoint ---


def test_a_run_starts_from_a_checkpoint(finished, tmp_path, digits):
  """Of another project's dialect, for another image size, with another head, on a mesh."""
  workdir, _, _ = finished
  model = vit_jax.load(workdir)
  vit_jax.save(model, tmp_path / 'start.npz', 'vit')
  same = digits(init=str(tmp_path / 'start.npz'), optim__lr=0.0, optim__warmup='0',
                total='1 step')  # fmt: skip
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
  dark = digits(init=str(tmp_path / 'start.npz'), task__mean=(0.1,))
  with pytest.raises(RunError, match=r'task.mean=.*expects \(0.5,\)'):
    train(dark, str(tmp_path / 'dark'))
