"""Whole runs in tests: started as commands, cut off at named places, and compared."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest

from tests import compiling
from vit_jax.core import faults, paths
from vit_jax.evaluate import restore
from vit_jax.nn import sharding
from vit_jax.train import train

ROOT = pathlib.Path(__file__).parent.parent
TIMES = ('images_per_second',)


def lines(workdir):
  """metrics.jsonl, less what depends on the clock."""
  text = (paths.at(workdir) / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  timed = lambda name: name in TIMES or name.startswith('hosts/')  # noqa: E731
  return [{k: v for k, v in row.items() if not timed(k)} for row in rows]


def leaves(workdir, mesh='data'):
  with jax.set_mesh(sharding.make_mesh(mesh)):
    _, state = restore(str(workdir))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def checkpoints(workdir):
  """Names of what is in the directory of checkpoints."""
  folder = paths.at(workdir) / 'checkpoints'
  return {path.name for path in folder.iterdir()} if folder.exists() else set()


def assert_bit_identical(a, b):
  for x, y in zip(leaves(a), leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)
  assert lines(a) == lines(b)


def assert_close(a, b):
  for x, y in zip(lines(a), lines(b), strict=True):
    assert x == pytest.approx(y, rel=1e-3, abs=1e-4)


def python(*words, devices=1, env=None):
  """Of a Python in the checkout with so many devices: what `subprocess` is called with."""
  changed = {**(env or {}), 'XLA_FLAGS': compiling.flags(devices), 'PYTHONPATH': str(ROOT)}
  args = [sys.executable, *map(str, words)]
  return dict(args=args, env={**os.environ, **changed}, text=True, cwd=ROOT)


def written(path, config, first=''):
  """A file of a configuration; `first` is done when it is read."""
  path.write_text(
    f'import json, os\n{first}\nfrom vit_jax.config import complete\n'
    f'def get_config():\n  return complete(json.loads({config.to_json()!r}))\n'
  )
  return path


def command(
  workdir, config, *flags, devices=1, module='train', fault='', first='', slices=0, configs='',
  env=None,
):  # fmt: skip
  """Of a run, as `python`; `config` is written to a file, with `first` as in `written`.

  The run is on so many `slices`, if there are any. The file is called like `configs`, where
  `workdir` is in a store or is another process's, too.
  """
  path = written(pathlib.Path(configs or workdir).with_suffix('.py'), config, first)
  pretended = ['tests.slices', slices] if slices else []
  words = *pretended, f'vit_jax.{module}', f'--config={path}', f'--workdir={workdir}', *flags
  env = {**(env or {}), **({faults.VARIABLE: fault} if fault else {})}
  return python('-m', *words, devices=devices, env=env)


def run(workdir, config, *flags, **kwargs):
  return subprocess.run(**command(workdir, config, *flags, **kwargs), capture_output=True)


def killed(workdir, config, place, *flags, **kwargs):
  """Runs a command that is killed at a place, for real."""
  process = run(workdir, config, *flags, fault=f'kill {place}', **kwargs)
  assert process.returncode == -9, (place, process.stdout, process.stderr)


# --- several processes ---

# Seconds after which processes of a test hang, however slow the machine is.
PATIENCE = 1200


class Process(subprocess.Popen):
  """One that never waits for its output to be read: `out` and `err` are what it has said so far."""

  def __init__(self, **options):
    self._last = []
    self._said = [tempfile.TemporaryFile('a+') for _ in range(2)]  # noqa: SIM115
    super().__init__(stdout=self._said[0], stderr=self._said[1], **options)

  @property
  def out(self):
    return self._text(0)

  @property
  def err(self):
    return self._text(1)

  def _text(self, number):
    if self._last:
      return self._last[number]
    # Not by a seek: the process writes where the file stands.
    file = self._said[number].fileno()
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors='replace')

  def until(self, text, seconds=PATIENCE):
    """Returns once it has said that."""
    end = time.monotonic() + seconds
    while text not in self.out:
      late = self.poll() is not None or time.monotonic() > end
      assert not late or text in self.out, (text, self.returncode, self.out, self.err)
      time.sleep(0.02)  # between looks; what is tested does not depend on it

  def close(self):
    """It is over now."""
    self.kill()
    self.wait()
    self._last = [self._text(number) for number in range(2)]
    for file in self._said:
      file.close()


@contextlib.contextmanager
def started(*commands):
  """Processes, of which none outlives the context; what they have said does."""
  with contextlib.ExitStack() as stack:
    processes = []
    for each in commands:
      processes.append(Process(**each))
      stack.callback(processes[-1].close)
    yield processes


def finish(processes, status=0, seconds=PATIENCE):
  """Waits for all.

  Args:
    processes: that were started.
    status: that they must end with; a list for each its own, which may be a tuple of several.
    seconds: to wait; what has not ended then is shown, too.
  """
  end = time.monotonic() + seconds
  for process in processes:
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(max(0, end - time.monotonic()))
  codes = [process.poll() for process in processes]
  wanted = status if isinstance(status, list) else [status] * len(processes)
  good = [
    code in (w if isinstance(w, tuple) else (w,)) for code, w in zip(codes, wanted, strict=True)
  ]
  said = ''.join(
    f'\n== process {number}: {code}\n{process.out}\n-- stderr\n{process.err}'
    for number, (code, process) in enumerate(zip(codes, processes, strict=True))
  )
  assert all(good), f'ended with {codes}, and not with {wanted}{said}'


def free_port():
  """A port of this machine that nobody listens at."""
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


def several(count, make):
  """Commands of processes that find each other: `make` gives one for a number and more flags."""
  found = f'--coordinator=127.0.0.1:{free_port()}', f'--num_processes={count}'
  return [make(number, *found, f'--process_id={number}') for number in range(count)]


# At the head of a program.
_JOIN = """
import sys
from vit_jax.launch import cluster
address, count, own = (word.partition('=')[2] for word in sys.argv[1:4])
own, words = int(own), sys.argv[4:]
cluster.join(address, int(count), own)
"""


def programs(code, *words, count=2, devices=1):
  """Commands of a program that has joined the others, is number `own`, and is told `words`."""
  make = lambda _, *found: python('-c', _JOIN + code, *found, *words, devices=devices)  # noqa: E731
  return several(count, make)


def together(workdir, config, *flags, count=2, devices=8, fault='', configs='', status=0, **kwargs):
  """Processes of one run, which have ended.

  Args:
    workdir: of the run.
    config: of all of them, or a list: of each.
    *flags: more arguments.
    count: processes.
    devices: of all of them together.
    fault: of the last one.
    configs: as in `command`.
    status: as in `finish`.
    **kwargs: of `command`.
  """

  def make(number, *found):
    own = config[number] if isinstance(config, list) else config
    file, last = f'{configs or workdir}-{number}', number == count - 1
    return command(
      workdir, own, *flags, *found, devices=devices // count, configs=file,
      fault=fault if last else '', **kwargs,
    )  # fmt: skip

  with started(*several(count, make)) as processes:
    finish(processes, status)
  return processes


class CutOff(BaseException):
  """Raised where a run in this process is cut off."""


def cut_off(workdir, config, place):
  """Trains in this process up to a place; saves that were begun come to their end."""

  def stop(*_):
    raise CutOff

  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(faults.VARIABLE, f'kill {place}')
    patch.setattr(os, 'kill', stop)
    with pytest.raises(CutOff):
      train(config, str(workdir))


def with_fault(workdir, config, fault, **options):
  """Trains in this process with a fault."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv(faults.VARIABLE, fault)
    return train(config, str(workdir), **options)
