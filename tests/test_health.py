"""Processes that die, hang, fail or are slow: who it was is said, and nobody waits for them."""

import json
import signal
import socket
import time

import numpy as np
import pytest

from tests import runs
from vit_jax.core.behind import Behind
from vit_jax.core.errors import RESTART
from vit_jax.processes import health, peers
from vit_jax.training import pace as pace_lib
from vit_jax.training.pace import Pace, Saves
from vit_jax.training.progress import Chrono
from vit_jax.training.sessions import Sessions, goodput, interval

# Of a process of two: it does what `own` says, a few lines of Python.
PROCESS = """
import os, threading, time
from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.processes import health, peers
folder, beat, silent, *roles = words
role, health.BEAT = roles[own], float(beat)
health.start()
health.configure(paths.at(folder), {}, silent=float(silent))
health.reached('step', 7, limit=5.0)
if role in ('holds', 'hangs'):
  health.reached('input', 7, limit=600.0 if role == 'holds' else 5.0)
if role == 'works':
  health.reached('step', 8, limit=60.0)
health._own._speak()
peers.meet('here')
print('ready', flush=True)
try:
  if role == 'works':
    while True:
      health.reached('step', 8, limit=60.0)
      time.sleep(0.1)
  if role == 'waits':  # as on its devices
    health.reached('step', 8, limit=5.0)
    threading.Event().wait()
  if role == 'hangs':
    health.reached('input', 7, limit=5.0)
    threading.Event().wait()
  if role == 'holds':  # the lock of Python, inside of something that never ends
    health.reached('input', 7, limit=600.0)
    import re
    re.match(r'(a+)+$', 'a' * 64 + 'b')
  if role == 'refuses':
    raise RunError('the disk is full')
  if role == 'breaks':
    raise ZeroDivisionError('by mistake')
  if role == 'ends':
    health.stop()
    os._exit(0)
except Exception as error:
  health.fail(error)
"""


# Seconds: between two signs of life, and without any; not to wait for those that runs have.
BEAT, SILENT = 0.5, 5.0


def together(folder, roles, act=lambda processes: None, status=RESTART, times=(BEAT, SILENT)):
  """Three processes to their end; `act` is told of them once all are there."""
  with runs.started(*runs.programs(PROCESS, folder, *times, *roles, count=3)) as processes:
    for process in processes:
      process.until('ready\n')
    began = time.monotonic()
    act(processes)
    runs.finish(processes, status)
    assert time.monotonic() - began < 60
  return processes


def told(process):
  """The one error that it names."""
  (line,) = [line for line in process.err.splitlines() if line.startswith('error: ')]
  return line


@pytest.mark.slow
@pytest.mark.parametrize(
  ('way', 'times'), [('killed', (health.BEAT, health.SILENT)), ('holds', (BEAT, SILENT))]
)
def test_a_process_that_is_gone(tmp_path, way, times):
  """Killed, or stuck where not even its own watch can speak."""

  def act(processes):
    if way == 'holds':
      processes[0].wait(60)
    processes[1].kill()

  roles = ['works', 'holds' if way == 'holds' else 'works', 'works']
  # JAX's own end, when the others have gone, is as good.
  status = [(RESTART, -signal.SIGABRT), -signal.SIGKILL, RESTART]
  processes = together(tmp_path, roles, act, status, times)
  where = 'input at step 7' if way == 'holds' else 'step at step 8'
  for number in (0, 2):
    line = told(processes[number])
    assert f'process 1 of 3 (host {socket.gethostname()}), in {where}, gave no' in line
    assert f'process {number} was in step at step 8: the stacks of its threads are in' in line
    stacks = (tmp_path / 'health' / f'stacks-{number}.txt').read_text()
    assert 'Current thread' in stacks
    assert 'process 1 of 3' in stacks
    assert '<module>' in stacks  # of the main thread


@pytest.mark.slow
def test_a_process_that_hangs(tmp_path):
  """It is named although all of them wait; it leaves its stacks, too."""
  processes = together(tmp_path, ['waits', 'waits', 'hangs'])
  for number, process in enumerate(processes):
    assert 'process 2 of 3' in told(process)
    assert 'in input at step 7, has not got on for' in told(process)
    assert (tmp_path / 'health' / f'stacks-{number}.txt').exists()
  assert 'wait' in (tmp_path / 'health' / 'stacks-2.txt').read_text()
  processes = together(tmp_path, ['waits', 'waits', 'waits'])
  assert 'and all others: has not got on' in told(processes[1])


@pytest.mark.slow
@pytest.mark.parametrize(('role', 'said'), [
  ('refuses', 'error: process 1: the disk is full'), ('breaks', 'ZeroDivisionError: by mistake'),
])  # fmt: skip
def test_a_process_that_fails(tmp_path, role, said):
  processes = together(tmp_path, ['works', role, 'works'], status=1)
  assert said in processes[1].err
  for number in (0, 2):
    assert 'process 1 of 3' in told(processes[number])
    assert 'failed: ' in told(processes[number])


@pytest.mark.slow
def test_a_process_that_has_ended_is_not_dead(tmp_path):
  """The others may go on for as long as they like."""

  def later(processes):
    processes[1].wait(60)
    end = time.monotonic() + SILENT + 5 * BEAT
    while time.monotonic() < end:
      assert processes[0].poll() is None
      time.sleep(BEAT)
    processes[2].kill()

  together(tmp_path, ['works', 'ends', 'works'], later, [RESTART, 0, -signal.SIGKILL])


def test_a_process_alone_is_not_ended(tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(health, 'BEAT', 0.01)
  assert peers.count() == 1
  health.start()
  try:
    health.configure(tmp_path, {})
    health.reached('input', 3, limit=0.05)
    deadline = time.monotonic() + 30
    while not (tmp_path / 'health' / 'stacks-0.txt').exists() and time.monotonic() < deadline:
      time.sleep(0.01)
  finally:
    health.stop()
  said = capfd.readouterr().err
  assert 'no progress in input for 0 s, at step 3: the stacks of its threads are in' in said
  assert 'test_a_process_alone_is_not_ended' in (tmp_path / 'health' / 'stacks-0.txt').read_text()


# --- where the time goes ---


def session(began, at, ended, reached, **seconds):
  return {'command': '', 'started': iso(began), 'step': at, 'total': 100, 'reached': reached,
          'ended': iso(ended), 'seconds': seconds}  # fmt: skip


def iso(seconds):
  return time.strftime('%Y-%m-%dT%H:%M:%S+00:00', time.gmtime(1e9 + seconds))


def test_goodput_is_the_time_of_steps_that_count():
  """Two sessions: the first was killed at step 60, after a checkpoint of step 40."""
  first = session(0, 0, 100, 60, init=10.0, compile=5.0, step=60.0, input=20.0, checkpoint=5.0)
  second = session(130, 40, 230, 100, init=10.0, step=60.0, input=20.0, eval=8.0, checkpoint=2.0)
  found = goodput([first, second], 1e9 + 230)
  assert found['share'] == pytest.approx((40 + 60) / 230, abs=1e-4)
  assert found['restarts'] == 1
  assert found['hours'] == pytest.approx(230 / 3600, abs=1e-4)
  assert found['seconds'] == {
    'init': 20.0, 'compile': 5.0, 'input': 40.0, 'eval': 8.0, 'checkpoint': 7.0, 'repeated': 20.0,
    'between': 30.0, 'other': 0.0,
  }  # fmt: skip
  assert sum(found['seconds'].values()) + found['share'] * 230 == pytest.approx(230, abs=0.1)
  del first['ended']  # of an older version
  assert goodput([first, second], 1e9 + 230) is None
  assert goodput([], 0.0) is None


def test_sessions_are_noted(tmp_path):
  path, chrono = tmp_path / 'command.json', Chrono({'step': 4.0})
  options = dict(command='x', total=9, started=time.time())
  before = {'step': 4.0}
  Sessions(path, Behind(tmp_path), chrono.seconds, step=0, before={}, **options)
  chrono.seconds['step'] = 7.0
  sessions = Sessions(path, Behind(tmp_path), chrono.seconds, step=3, before=before, **options)
  sessions.note(5)  # less than a minute after the last one
  assert json.loads(path.read_text())[1]['reached'] == 3
  sessions.note(6, now=True)
  first, second = json.loads(path.read_text())
  assert (first['reached'], first['seconds']) == (0, {'step': 4.0})
  assert (second['step'], second['reached'], second['seconds']) == (3, 6, {'step': 3.0})


def test_the_interval_is_the_best_one():
  """Of all that are tried out in a year of failures at random, none wastes less."""
  rng, cost, mtbf = np.random.default_rng(0), 5.0, 3600.0
  gaps = rng.exponential(mtbf, 20_000)

  def wasted(every):
    saves = np.floor(gaps / (every + cost))
    return (gaps - saves * every).sum() / gaps.sum()

  best = interval(cost, mtbf)
  assert best == pytest.approx((2 * cost * mtbf) ** 0.5)
  tried = {factor: wasted(best * factor) for factor in (0.25, 0.5, 0.8, 1.0, 1.25, 2, 4)}
  assert min(tried, key=tried.get) in (0.8, 1.0, 1.25), tried
  assert tried[1.0] < 0.95 * min(tried[0.25], tried[4])
  assert interval(cost, mtbf, least=1000.0) == 1000.0


def test_saves_come_as_often_as_they_pay(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(pace_lib.time, 'monotonic', lambda: now[0])
  pace = Pace(Chrono(), 60.0)
  saves = Saves(3600.0, pace)
  due = []
  for step in range(1, 1000):
    now[0] += 1.0
    pace.step(compiled=step > 1)
    if saves.due(step):
      due.append(step)
      saves.saved(step, 2.0, 10.0)
  every = (2 * 2.0 * 3600.0) ** 0.5  # a step takes a second
  assert due[0] == 7
  assert np.diff(due) == pytest.approx(every, abs=1)
  early = Saves(3600.0, Pace(Chrono(), 60.0))
  early.saved(2, 2.0, 10.0)  # for another reason, before a step has been timed
  assert not any(map(early.due, range(3, 8)))
  assert early.due(8)


def test_a_slow_process_is_named_once(monkeypatch):
  pace = Pace(Chrono(), 60.0)
  said = lambda step, waits: {  # noqa: E731
    number: {'host': f'host{number}', 'step': step, 'seconds': {'input': w, 'step': 1.0 * step}}
    for number, w in enumerate(waits)
  }
  lines = []
  reports = (0, (0, 0, 0)), (10, (0.1, 0.1, 5.0)), (20, (0.2, 0.2, 10.0)), (30, (0.3, 0.3, 10.1))
  for step, waits in reports:
    monkeypatch.setattr(health, 'others', lambda: said(step, waits))
    found, more = pace.hosts()
    lines += more
  assert lines == [
    'process 2 (host host2) keeps the others waiting: it waits 0.500 s for the input of a step, '
    'and they 0.010 s'
  ]
  assert found['hosts/input_max'] == pytest.approx(0.01)
  assert found['hosts/input_slowest'] in (0.0, 1.0, 2.0)


def test_limits_follow_the_usual_step(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(pace_lib.time, 'monotonic', lambda: now[0])
  chrono = Chrono()
  pace = Pace(chrono, 60.0)
  assert pace.limit is None  # the first steps may take what they take
  for number, seconds in enumerate((100.0, 30.0, 30.0, 30.0)):
    now[0] += seconds
    pace.step(compiled=number > 0)
  assert pace.limit == 300.0 == chrono.limits['input']
  assert Pace(Chrono(), 0.0).limit == float('inf')


# --- whole runs ---


@pytest.mark.slow
def test_runs_of_two_that_differ_say_so(digits, tmp_path):
  """Another configuration, or a second run in a directory: both end, and soon."""
  each = [digits(seed=number) for number in range(2)]
  for process in runs.together(tmp_path / 'run', each, devices=2, status=1):
    assert 'the run: process 1 has configuration' in process.err


@pytest.mark.slow
def test_a_second_run_is_refused(digits, tmp_path):
  config = digits(total='1e9 steps', optim__schedule='wsd')
  command = runs.command(tmp_path / 'run', config, configs=tmp_path / 'a')
  with runs.started(command) as (first,):
    first.until('\nstep 1/')
    second = runs.run(tmp_path / 'run', config, configs=tmp_path / 'b')
    first.send_signal(signal.SIGTERM)
    runs.finish([first], RESTART)
  assert second.returncode == 1
  assert f'{tmp_path}/run/.claim is in use by process {first.pid} on' in second.stderr


# Done by a configuration: the second of two processes does something to its input.
FORGED = """
import sys, time
from vit_jax.processes import health
from vit_jax.training import experiment
health.BEAT = {beat}
_batches = experiment.Experiment.batches
def batches(self, start):
  for number, batch in enumerate(_batches(self, start)):
    if '--process_id=1' in sys.argv:
      {what}
    yield batch
experiment.Experiment.batches = batches
"""


def forged(tmp_path, digits, what, status, **changes):
  config = digits(mesh='data', health__hang=3.0, checkpoint__every='0', **changes)
  first = FORGED.format(what=what, beat=BEAT)
  return runs.together(tmp_path / 'run', config, devices=2, first=first, status=status)


@pytest.mark.slow
def test_a_run_with_a_host_that_hangs(digits, tmp_path):
  processes = forged(
    tmp_path, digits, 'if number == 30: time.sleep(10**6)', RESTART, total='1e6 steps',
    optim__schedule='wsd', evals__test__every='0',
  )  # fmt: skip
  for number, process in enumerate(processes):
    assert 'process 1 of 2' in told(process)
    assert 'in input at step 30, has not got on for' in told(process)
    stacks = (tmp_path / 'run' / 'health' / f'stacks-{number}.txt').read_text()
    assert ('in batches' in stacks) == (number == 1)


@pytest.mark.slow
def test_a_run_with_a_host_that_is_slow(digits, tmp_path):
  first, _ = forged(tmp_path, digits, 'time.sleep(0.25)', 0, total='40 steps', log__every='5 steps')
  assert 'process 1 (host' in first.out
  assert 'keeps the others waiting: it waits 0.' in first.out
  rows = map(json.loads, (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines())
  found = [row for row in rows if 'hosts/input_slowest' in row]
  assert found[-1]['hosts/input_slowest'] == 1.0
  assert found[-1]['hosts/input_max'] > 0.2 > found[-1]['hosts/step_median'] - 0.3
