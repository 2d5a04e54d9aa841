"""Processes that tests start: all of them are shown when one fails, and none outlives its test."""

import os
import subprocess

import pytest

from tests import runs

WAITS = 'import sys; print("waits", flush=True); sys.stdin.read()'
FAILS = 'import sys; print("tries"); sys.exit("in vain")'


def test_what_all_have_said_is_shown_and_none_is_left():
  commands = [dict(runs.python('-c', WAITS), stdin=subprocess.PIPE), runs.python('-c', FAILS)]
  with runs.started(*commands) as processes:
    processes[0].until('waits\n')
    processes[1].wait()
    with pytest.raises(AssertionError) as error:
      runs.finish(processes, [0, (0, 2)], seconds=0)
    runs.finish(processes[1:], [(1, 2)], seconds=0)
  processes[0].stdin.close()
  said = str(error.value)
  assert 'ended with [None, 1], and not with [0, (0, 2)]' in said
  assert said.index('waits') < said.index('tries') < said.index('in vain')
  assert (processes[0].out, processes[1].err) == ('waits\n', 'in vain\n')
  with pytest.raises(ProcessLookupError):
    os.kill(processes[0].pid, 0)
