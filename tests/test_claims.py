"""Claims: one process at a time, on local file systems and in object stores."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from vit_jax.core import claims, stores
from vit_jax.core.errors import RunError

HOLD = """
import sys, time
from vit_jax.core import claims, paths
claim = claims.take(paths.at(sys.argv[1]))
print('held', flush=True)
sys.stdin.read()
claim.close()
"""


@pytest.fixture
def store():
  root = stores.parse('memory://bucket/claims')
  yield root / 'claim'
  stores.delete(root)


@pytest.fixture
def clock(monkeypatch):
  """Seconds that tests move on, in place of those of the machine."""
  now = [1000.0]
  monkeypatch.setattr(claims.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(claims.time, 'sleep', lambda seconds: now.__setitem__(0, now[0] + seconds))
  claims._seen.clear()
  return now


def holder(path):
  process = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  return process


def test_a_lock_goes_with_its_process(tmp_path):
  path = tmp_path / '.claim'
  process = holder(path)
  with pytest.raises(
    claims.HeldError, match=rf'in use by process {process.pid} on \S+ since 2'
  ) as e:
    claims.insist(path, print)
  assert e.value.alive
  process.send_signal(signal.SIGKILL)
  process.communicate()
  claim = claims.take(path)
  with pytest.raises(claims.HeldError):
    claims.take(path)
  claim.check()
  claim.close()
  assert not path.exists()
  process = holder(path)
  process.communicate()  # it ends, and gives it back
  assert not path.exists()
  claims.take(path).close()


def test_many_want_a_lock_at_once(tmp_path):
  path, inside, worst = tmp_path / '.claim', [], []

  def want():
    for _ in range(50):
      try:
        claim = claims.take(path)
      except claims.HeldError:
        continue
      inside.append(1)
      worst.append(len(inside))
      inside.pop()
      claim.close()

  threads = [threading.Thread(target=want) for _ in range(8)]
  [t.start() for t in threads]
  [t.join() for t in threads]
  assert worst
  assert max(worst) == 1


def forged(store, number=1, **changes):
  """The object of an owner elsewhere."""
  path = store.with_name(f'{store.name}.{number:06d}')
  owner = {
    'host': 'far',
    'pid': 7,
    'space': 'another boot',
    'begun': '1',
    'since': 'noon',
    'beats': 0,
  }
  path.write_bytes(json.dumps({**owner, **changes}).encode())
  return path


def test_an_owner_elsewhere_that_is_dead(store, clock):
  """It is taken over once it has been silent for long enough, and not before."""
  path, said = forged(store), []
  began = clock[0]
  claim = claims.insist(store, said.append)
  assert claims.DEAD <= clock[0] - began < claims.DEAD + 2
  assert said == [
    f'{store} was in use by process 7 on far since noon: waiting up to 60 s for a sign of life'
  ]
  assert [p.name for p in store.parent.iterdir()] == ['claim.000002']
  assert not path.exists()
  claim.close()
  assert not store.parent.exists()


def test_an_owner_elsewhere_that_lives(store, clock):
  forged(store)
  with pytest.raises(claims.HeldError) as error:
    claims.take(store)
  assert error.value.alive is None
  forged(store, beats=1)
  with pytest.raises(claims.HeldError, match='in use by process 7 on far since noon: stop'):
    claims.insist(store, print)
  clock[0] += claims.DEAD / 2
  with pytest.raises(claims.HeldError):
    claims.take(store)


def test_an_owner_on_this_machine_that_is_gone(store, clock):
  """Its process is looked for: nobody waits."""
  gone = subprocess.Popen([sys.executable, '-c', ''])
  gone.wait()
  began = clock[0]
  forged(store, **{**claims._self(), 'pid': gone.pid, 'begun': '123'})
  claims.insist(store, print).close()
  forged(store, **{**claims._self(), 'begun': '123'})  # its number is another's today
  claims.insist(store, print).close()
  assert clock[0] == began
  forged(store, **claims._self())
  with pytest.raises(claims.HeldError):
    claims.take(store)


def test_who_is_taken_over_hears_of_it(store, monkeypatch):
  monkeypatch.setattr(claims, 'BEAT', 0.01)
  claim = claims.take(store)
  claim.check()
  forged(store, 2)
  claim._thread.join(30)  # it ends by itself
  with pytest.raises(RunError, match='taken over by another process, which took this one for dead'):
    claim.check()
  claim.close()
  assert [p.name for p in store.parent.iterdir()] == ['claim.000001', 'claim.000002']


def test_who_was_frozen_asks_before_it_goes_on(store, clock):
  """Meanwhile others had the directory, and gave it back: its number is another's now."""
  first = claims.take(store)
  (store.with_name('claim.000001')).unlink()
  forged(store, 1)
  first.check()  # it has just been looked at
  clock[0] += claims.DEAD + 1
  with pytest.raises(RunError, match='taken over'):
    first.check()
  first.close()


def test_an_answer_that_was_lost(store, monkeypatch):
  """The object is made, the store says that it is there already: it is ours."""
  make = stores.StorePath.make

  def twice(self, data):
    make(self, data)
    make(self, data)

  monkeypatch.setattr(stores.StorePath, 'make', twice)
  claims.take(store).close()


def test_of_two_who_see_the_same_one_wins(store, clock, monkeypatch):
  forged(store)
  with pytest.raises(claims.HeldError):
    claims.take(store)
  clock[0] += claims.DEAD + 1
  real = claims._Lease._look

  def look(self, number):
    real(self, number)
    forged(store, 2)  # another one is faster

  monkeypatch.setattr(claims._Lease, '_look', look)
  with pytest.raises(claims.HeldError, match='came first'):
    claims.take(store)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
  """The run goes on, and says that nobody watches."""

  def flock(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(claims.fcntl, 'flock', flock)
  said = []
  claims.insist(tmp_path / '.claim', said.append).close()
  assert said == [
    f'{tmp_path} is on a file system without locks (No locks available): nobody notices if another '
    'run writes there'
  ]
