"""Runs in object stores: killed there and continued elsewhere, they end as if nothing had been."""

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import traceback

import fsspec.asyn
import pytest

from tests import emulators, runs
from tests.conftest import make_digits
from tests.runs import assert_bit_identical, checkpoints, lines, with_fault
from vit_jax.core import behind, paths, stores
from vit_jax.core.errors import RESTART
from vit_jax.train import train
from vit_jax.training import loop
from vit_jax.training.progress import MetricsFile


@pytest.fixture
def store(monkeypatch, tmp_path):
  monkeypatch.setattr(behind, 'SPACING', 0.0)
  monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
  root = stores.parse('memory://bucket/runs')
  yield root
  stores.delete(root)


def test_a_run_in_a_store(finished, store, tmp_path, capsys):
  """Stopped by a signal, continued, reported, forked, initialised from, and evaluated."""
  workdir, result, config = finished
  config = config.copy_and_resolve_references().unlock()
  config.compilation_cache = ''
  path = store / 'run'
  assert with_fault(path, config, 'sigterm at step 7') is None
  assert checkpoints(path) == {'4', '7'}
  assert len(lines(path)) == 8
  again = train(config, str(path))
  assert again['metrics'] == result['metrics']
  assert_bit_identical(path, workdir)
  assert {e.name for e in path.entries()} == {p.name for p in workdir.iterdir()}
  assert (path / 'evals/test.npz').read_bytes()[:2] == b'PK'
  assert not os.path.exists('memory:')
  # Nothing is left where checkpoints were made.
  assert not paths.temporary(str(path / 'checkpoints')).exists()
  config.fork, config.checkpoint.at = str(path), ()
  fork = train(config, str(store / 'fork'))
  assert fork['forked']['step'] == 12
  assert 'nothing to do' in (train(config, str(store / 'fork')), capsys.readouterr().out.lower())[1]


def test_a_damaged_checkpoint_in_a_store(finished, store, capsys):
  workdir, _, config = finished
  path = store / 'run'
  with_fault(path, config, 'sigterm at step 9')
  part = path / 'checkpoints/9/state/ocdbt.process_0'
  (file,) = [part / name for name in part.files() if name.startswith('d/')]
  whole = file.read_bytes()
  file.write_bytes(whole[: len(whole) // 4] + bytes(len(whole) // 2) + whole[-(len(whole) // 4) :])
  train(config, str(path))
  assert 'the checkpoint of step 9 is damaged' in capsys.readouterr().out
  assert checkpoints(path) == {'8', '9.damaged', '12'}
  assert_bit_identical(path, workdir)


def test_what_an_upload_left_behind_is_no_checkpoint(finished, store):
  path = store / 'run'
  with_fault(path, finished[2], 'sigterm at step 5')
  (path / 'checkpoints/6/state/d/half').write_bytes(b'1')
  (path / 'checkpoints/5/_CHECKPOINT_METADATA').unlink()
  train(finished[2], str(path))
  assert_bit_identical(path, finished[0])
  assert checkpoints(path) == {'8', '12'}


def test_metrics_that_are_on_their_way(store, monkeypatch):
  """Lines that a kill keeps from the store are in the checkpoint, and come back in their place."""
  path = store / 'metrics.jsonl'

  class Later:
    """Does nothing until it is told to."""

    def __init__(self):
      self.work = None

    def do(self, key, work):
      self.work = work

  first = Later()
  file = MetricsFile(path, first, after=0)
  for step in (1, 2):
    file.write(step, {'loss': step})
  first.work()
  assert file.missing() == {}
  file.write(3, {'loss': 3})
  carried = file.missing()
  assert carried == {'before': 2, 'lines': ['{"step": 3, "loss": 3}']}
  file.write(4, {'loss': 4})
  # Killed here; a run before this one has left lines of its own behind.
  path.write_bytes(path.read_bytes() + b'{"step": 3, "loss": 30}\n{"step": 4, "loss": 40}\n')
  second = Later()
  file = MetricsFile(path, second, after=3, carried=carried)
  file.write(4, {'loss': 44})
  second.work()
  assert [json.loads(line)['loss'] for line in path.read_text().splitlines()] == [1, 2, 3, 44]


# --- real servers, real processes ---

SCHEMES = ['gs', 's3']


@pytest.fixture(scope='module')
def servers():
  with emulators.stores() as changes, emulators.here(changes):
    yield changes


def through(changes, scheme, look):
  """The environment of a process whose requests `look` is told of, and its context."""
  name = 'STORAGE_EMULATOR_HOST' if scheme == 'gs' else 'AWS_ENDPOINT_URL'
  return emulators.between(changes[name], look), lambda url: {
    **changes,
    **(emulators.environment(url, changes['AWS_ENDPOINT_URL']) if scheme == 'gs'
       else emulators.environment(changes['STORAGE_EMULATOR_HOST'], url)),
  }  # fmt: skip


@pytest.fixture(scope='module')
def small(data_dir):
  """A run with many saves."""
  return make_digits(
    data_dir, total='60 steps', mesh='data', checkpoint__every='4 steps', checkpoint__keep=2,
    evals__test__every='20 steps', compilation_cache='',
  )  # fmt: skip


@pytest.fixture(scope='module')
def whole(small, tmp_path_factory):
  """That run in a local directory."""
  path = tmp_path_factory.mktemp('store') / 'whole'
  assert runs.run(path, small).returncode == 0
  return path


# Done by a configuration: a store that does not serve is not asked again for as long as always.
IMPATIENT = """
from vit_jax.core import behind, stores
stores.TOGETHER, stores.ONE, behind.LAST = 4.0, 2.0, 10.0
"""


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_kills_at_any_request(servers, small, whole, tmp_path, scheme):
  """SIGKILL before a request drawn by lot, whoever makes it; continued elsewhere."""
  rng, url = random.Random(0), f'{scheme}://bucket/kills'
  kills = 0
  for number in itertools.count():
    running, limit = [], rng.randint(5, 150) if number < 8 else 10**9

    def look(count, *_, running=running, limit=limit):
      if count >= limit:
        [process.kill() for process in running]
      return None

    context, environment = through(servers, scheme, look)
    elsewhere = tmp_path / f'machine{number}'
    elsewhere.mkdir()
    with context as address:
      env = {**environment(address), 'TMPDIR': str(elsewhere)}
      command = runs.command(url, small, configs=tmp_path / f'{number}', env=env)
      with runs.started(command) as (process,):
        running.append(process)
        runs.finish([process], [(0, -9)])
    if process.returncode == 0:
      break
    kills += 1
  assert kills >= 4, kills
  assert 'continuing' in process.out
  assert_bit_identical(url, whole)
  left = paths.at(url).files()
  steps = {name.split('/')[1] for name in left if name.startswith('checkpoints/')}
  assert steps == {'56', '60'}
  assert not any(name.startswith('.') for name in left), left


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_store_that_stops_serving(servers, small, whole, tmp_path, scheme):
  """For a while: it is asked again, and the run goes on. For good: one sentence."""

  def go(name, status, numbers):
    context, environment = through(
      servers, scheme, lambda count, *_: status if count in numbers else None
    )
    with context as address:
      return runs.run(f'{scheme}://bucket/{name}', small, configs=tmp_path / name,
                      env=environment(address))  # fmt: skip

  done = go('busy', 503, range(40, 50))  # as many as one request may need
  assert done.returncode == 0, done.stderr
  assert_bit_identical(f'{scheme}://bucket/busy', whole)
  done = go('denied', 403, range(60, 10**9))
  assert done.returncode == 1, (done.stdout, done.stderr)
  (line,) = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
  assert 'could not be written' in line or 'cannot write' in line
  assert '/vit_jax/' not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_two_processes_in_a_store(servers, digits, tmp_path, scheme):
  """They share what is saved; one continues what both began."""
  config = digits(mesh='1x8x1', compilation_cache='')
  url, stop = f'{scheme}://bucket/two', dict(fault='sigterm at step 6', status=RESTART)
  runs.together(url, config, env=servers, configs=tmp_path / 'two', **stop)
  saved = max(map(int, checkpoints(url)))
  halves = {
    n.split('/')[1] for n in (paths.at(url) / f'checkpoints/{saved}').files() if '.process' in n
  }
  assert halves == {'ocdbt.process_0', 'ocdbt.process_1'}
  done = runs.run(url, config, devices=8, env=servers, configs=tmp_path / 'one')
  assert done.returncode == 0, done.stderr
  assert f'continuing {url} at step {saved}' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_every_command_knows_the_way(servers, digits, tmp_path, scheme):
  """A run in a store is evaluated, looked at, reported, converted, forked and begun from."""
  config, url = digits(compilation_cache=f'{scheme}://bucket/compiled'), f'{scheme}://bucket/way'
  env = {
    **servers,
    'JAX_COMPILATION_CACHE_DIR': '',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  assert runs.run(url, config, env=env, configs=tmp_path / 'a').returncode == 0
  compiled = paths.at(f'{scheme}://bucket/compiled').files()
  assert compiled

  def call(*words):
    done = subprocess.run(
      [sys.executable, '-m', *words], env=emulators.own(servers), cwd=tmp_path, text=True,
      capture_output=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout

  assert 'top1' in call('vit_jax.evaluate', f'--workdir={url}')
  assert 'everything fits' in call('vit_jax.inspect', url)
  call('vit_jax.report', url)
  call('vit_jax.convert', url, f'{url}-out/x.npz', '--to=vit')
  assert (paths.at(f'{url}-out') / 'x.npz').is_file()
  assert not any((tmp_path / f'{scheme}:').exists() for scheme in SCHEMES)
  with config.unlocked():
    config.init = f'{url}-out/x.npz'
  done = runs.run(f'{url}-new', config, env=servers, configs=tmp_path / 'b')
  assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_no_step_waits_for_the_network(servers, small, scheme, monkeypatch):
  """From the first step to the last, no request is made by the thread that trains."""
  asked, running = [], []
  ask, run = fsspec.asyn.sync, loop._Session.run

  def sync(system, function, *args, **options):
    if running and threading.current_thread() is threading.main_thread():
      asked.append(''.join(traceback.format_stack(limit=6)))
    return ask(system, function, *args, **options)

  def watched(self):
    running.append(1)
    try:
      return run(self)
    finally:
      running.clear()

  monkeypatch.setattr(fsspec.asyn, 'sync', sync)
  monkeypatch.setattr(loop._Session, 'run', watched)
  url = f'{scheme}://bucket/waits'
  assert train(small, url)['step'] == 60
  assert not asked, asked[0]
  assert len(lines(url)) == 63


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_what_is_killed_at_its_end_has_all_lines(servers, small, tmp_path, scheme):
  """Where there is a result, there are the metrics and evaluations, too."""
  url = f'{scheme}://bucket/end'
  done = runs.run(url, small, configs=tmp_path / 'a', env=servers,
                  fault=f'kill before put {url}/report.html')  # fmt: skip
  assert done.returncode == -9, done.stderr
  assert (paths.at(url) / 'result.json').exists()
  assert [row['step'] for row in lines(url) if 'train/loss' in row] == list(range(1, 61))
  assert (paths.at(url) / 'evals/test.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_store_that_does_not_serve_at_a_restart(servers, small, tmp_path, scheme):
  """It is never taken for damage: nothing is deleted, and the same command asks to be repeated."""
  url, found = f'{scheme}://bucket/restart', {}
  stopped = runs.run(url, small, configs=tmp_path / 'a', env=servers, fault='sigterm at step 10')
  assert stopped.returncode == RESTART
  before = sorted(paths.at(url).files())
  for first in (0, 4, 9, 14):
    context, environment = through(
      servers, scheme, lambda count, *_, first=first: 503 if count >= first else None
    )
    with context as address:
      done = runs.run(url, small, '--overwrite', configs=tmp_path / 'b', env=environment(address),
                      first=IMPATIENT)  # fmt: skip
    found[first] = done.returncode, done.stderr
    assert done.returncode == RESTART, found
    assert '/vit_jax/' not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert 'damaged' not in line
  after = [name for name in sorted(paths.at(url).files()) if not name.startswith('.')]
  assert after == before
