"""The launcher on a real cluster of one node: found, preempted, put back, and continued."""

import json
import os
import subprocess
import sys

import pytest

from experiments.launch import engines
from tests import compiling, runs, slurm
from tests.conftest import ROOT

LACKING = slurm.missing()
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(bool(LACKING), reason=f'not installed: {", ".join(LACKING)}; as CONTRIBUTING'),
  pytest.mark.skipif(os.getuid() != 0, reason='the daemons of the cluster need root'),
]


@pytest.fixture(scope='module')
def env():
  with slurm.cluster() as env:
    yield {**env, 'XLA_FLAGS': compiling.flags(1), 'PYTHONPATH': str(ROOT)}


@pytest.fixture
def launch(env, tmp_path):
  """`python -m experiments.launch ...` in the checkout; its output."""

  def call(*arguments, status=0):
    done = subprocess.run(
      [sys.executable, '-m', 'experiments.launch', *map(str, arguments)], cwd=ROOT, env=env,
      capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout + done.stderr

  return call


def log(workdir, name='slurm'):
  path = workdir / 'launch' / f'{name}.log'
  return path.read_text() if path.exists() else ''


def everything(workdir):
  """For a message."""
  return '\n'.join(f'== {p}\n{p.read_text()[-3000:]}' for p in workdir.glob('launch/*.log'))


def state(env, number):
  return slurm.said('squeue', f'--job={number}', '-h', '-o', '%T', env=env)


def number(workdir):
  return str(engines.of(str(workdir)).job.submitted['job'])


def waits(env, workdir, what):
  slurm.until(what, 300, lambda: everything(workdir))


def ended(env, workdir):
  """Waits until the job has left the queue."""
  queue = lambda: slurm.said('squeue', '-h', '-o', '%A', env=env).split()  # noqa: E731
  waits(env, workdir, lambda: number(workdir) not in queue())


# The second of two tasks is killed, when the job is started for the first time.
DIES = """
if os.environ.get('SLURM_PROCID') == '1' and 'SLURM_RESTART_COUNT' not in os.environ:
  os.environ['VIT_JAX_FAULT'] = 'kill at step 50'
"""
FAILS = """
if os.environ.get('SLURM_PROCID') == '1':
  raise ValueError('only here')
"""


def test_a_killed_and_preempted_run_ends_as_if_nothing_had_happened(env, launch, tmp_path, digits):
  config = digits(
    total='400 steps', checkpoint__every='40 steps', evals__test__every='200 steps',
    log__every='20 steps',
  )  # fmt: skip
  ask = ('--engine=slurm', '--tasks_per_node=2', '--submit')
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  file = runs.written(tmp_path / 'config.py', config)
  launch(*ask, f'--config={file}', f'--workdir={whole}', '--partition=high')
  ended(env, whole)
  assert json.loads((whole / 'result.json').read_text())['processes'] == 2, everything(whole)
  assert '2 x cpu, 1 in each of 2 processes' in log(whole, 'process-0')  # said the doctor

  ask = (*ask, f'--config={runs.written(tmp_path / "dies.py", config, DIES)}', f'--workdir={cut}')
  launch(*ask, '--partition=low')
  assert 'end that first' in launch(*ask, status=1)
  # One task dies, and Slurm ends the other; the job is put back and gets on: now somebody more
  # important wants the node.
  waits(env, cut, lambda: '80' in runs.checkpoints(cut))
  assert 'ended with status 137' in log(cut), everything(cut)
  assert f'continuing {cut} at step 40 of 400' in log(cut, 'process-0')
  door = tmp_path / 'door'
  urgent = tmp_path / 'urgent.sh'
  urgent.write_text(f'#!/bin/bash\nwhile [ ! -e {door} ]; do sleep 0.1; done\n')
  slurm.said('sbatch', '--partition=high', '--exclusive', '--output=/dev/null', urgent, env=env)
  waits(env, cut, lambda: state(env, number(cut)) == 'PENDING')
  assert 'stopped by a signal' in log(cut, 'process-0'), everything(cut)
  saved = max(int(name) for name in runs.checkpoints(cut) if name.isdecimal())
  assert 80 <= saved < 400
  assert 'PENDING' in launch(f'--workdir={cut}', '--status')
  door.touch()
  ended(env, cut)
  assert f'continuing {cut} at step {saved} of 400' in log(cut, 'process-0'), everything(cut)
  runs.assert_bit_identical(cut, whole)
  status = launch(f'--workdir={cut}', '--status')
  assert 'no longer in the queue\nthe run is complete' in status


def test_a_mistake_is_not_repeated(env, launch, tmp_path, digits):
  """One of two tasks fails: the job ends, although Slurm ends the other one by a signal."""
  file = runs.written(tmp_path / 'config.py', digits(total='10 steps'), FAILS)
  run = tmp_path / 'run'
  launch(f'--config={file}', '--engine=slurm', '--tasks_per_node=2', '--submit', f'--workdir={run}')
  ended(env, run)
  assert 'ended with status 1\n' in log(run), everything(run)
  assert log(run).count('attempt') == 1
  assert 'error: only here' in log(run, 'process-1')
  assert not (run / 'result.json').exists()


def test_restarts_in_vain_come_to_an_end(env, launch, tmp_path, digits, monkeypatch):
  monkeypatch.setitem(env, 'VIT_JAX_FAULT', 'kill at step 3')
  file = runs.written(tmp_path / 'config.py', digits(total='10 steps'))
  run = tmp_path / 'run'
  launch(f'--config={file}', '--engine=slurm', f'--workdir={run}', '--submit', '--max_restarts=2')
  ended(env, run)
  assert log(run).count('ended with status 137') == 3, everything(run)
  assert '3 attempts in a row have brought no new checkpoint' in log(run)


def test_stop_saves(env, launch, tmp_path, digits):
  config = digits(
    total='1000000 steps', optim__schedule='wsd', checkpoint__every='0', evals__test__every='0'
  )
  run = tmp_path / 'run'
  file = runs.written(tmp_path / 'config.py', config)
  launch(f'--config={file}', '--engine=slurm', f'--workdir={run}', '--submit')
  waits(env, run, lambda: (run / 'metrics.jsonl').exists())
  launch(f'--workdir={run}', '--stop')
  ended(env, run)
  (saved,) = (int(name) for name in runs.checkpoints(run))
  assert f'stopped by a signal at step {saved}' in launch(f'--workdir={run}', '--logs')


def test_tasks_that_do_not_find_each_other_are_refused(env, tmp_path, digits):
  """Without srun a job of two tasks would be one process that thinks it is alone."""
  env = {**env, 'SLURM_NTASKS': '2', 'SLURM_JOB_ID': '7'}
  done = runs.run(tmp_path / 'run', digits(), env=env)
  assert done.returncode == 1
  assert 'SLURM_NTASKS=2, but JAX has found 1 process here' in done.stderr
  assert not (tmp_path / 'run').exists()
