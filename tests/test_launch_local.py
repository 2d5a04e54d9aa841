"""Processes that the launcher starts on this machine."""

import contextlib
import os
import subprocess
import time

import pytest

from experiments.launch import engines, local, supervise
from tests import runs
from tests.launching import job


@pytest.mark.parametrize(
  ('ends', 'code'), [('os.kill(os.getpid(), 9)', 137), ('sys.exit(1)', 1), ('sys.exit(42)', 42)]
)
def test_the_first_process_that_ends_badly_decides(tmp_path, monkeypatch, ends, code):
  """The other one would never end: it is killed."""
  monkeypatch.setattr(local, 'ALONE', 0.1)
  monkeypatch.setattr(supervise, 'GRACE', 0.1)
  work = f"""
import os, pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[-1] == '--process_id=1':
  {ends}
pathlib.Path('{tmp_path}/pid').write_text(str(os.getpid()))
while True:
  signal.pause()
"""
  made = local.Local(job('local', tmp_path, ('python', '-c', work)))
  made.job.folder.mkdir()
  assert made.attempt() == code
  if (tmp_path / 'pid').exists():
    with pytest.raises(ProcessLookupError):
      os.kill(int((tmp_path / 'pid').read_text()), 0)


@pytest.mark.slow
def test_local_processes_are_restarted_and_outlive_their_terminal(tmp_path, digits):
  """Two processes, of which each is stopped by a signal once, end as if nothing had happened."""
  path = runs.written(tmp_path / 'config.py', digits(total='12 steps'))

  def launch(name, *arguments, **env):
    words = '-m', 'experiments.launch', f'--workdir={tmp_path}/{name}', *arguments
    done = subprocess.run(**runs.python(*words, env=env), capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout

  ask = (f'--config={path}', '--engine=local', '--processes=2', '--submit')
  for name, more in (('whole', {}), ('cut', dict(VIT_JAX_FAULT='sigterm at step 5'))):
    launch(name, *ask, **more)
  for name in ('whole', 'cut'):
    made = engines.of(str(tmp_path / name))
    with contextlib.suppress(ChildProcessError):
      os.waitpid(made.job.submitted['pid'], 0)
    until = time.time() + 300
    while made.pid:  # it is nobody's child here
      assert time.time() < until
      time.sleep(0.1)
  log = (tmp_path / 'cut' / 'launch' / 'supervisor.log').read_text()
  assert 'attempt 2' in log, log
  assert 'the run is complete' in launch('cut', '--status')
  assert 'stopped by a signal at step' in launch('cut', '--logs')
  runs.assert_bit_identical(tmp_path / 'cut', tmp_path / 'whole')
