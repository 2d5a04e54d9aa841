"""Writing behind a run: when, in which order, and what happens to what cannot be written."""

import pytest

from vit_jax.core import behind, paths, stores
from vit_jax.core.errors import PassingError, RunError

STORE = stores.parse('memory://bucket/run')


class Clock:
  """Time that goes on when somebody waits for it."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def slow(monkeypatch):
  """What writes to a store; a clock; and work that takes so long by the clock."""
  clock = Clock()
  monkeypatch.setattr(behind, 'time', clock)
  writing = behind.Behind(STORE)

  def work(seconds):
    def do():
      clock.now += seconds

    return do

  yield writing, clock, work
  writing.close()


def next_at(writing, key):
  """When it may be written again."""
  with writing._change:
    assert writing._change.wait_for(lambda: not (writing._waiting or writing._busy), 60)
    return writing._next[key]


def test_what_takes_long_is_written_less_often(slow):
  """So that what grows, and is written whole, takes a bounded share of the time."""
  writing, clock, work = slow
  writing.do('a', work(0.01))
  assert next_at(writing, 'a') == pytest.approx(clock.now + behind.SPACING)
  writing.do('b', work(7.0))
  assert next_at(writing, 'b') == pytest.approx(clock.now + 7.0 * behind.TIMES)


def test_what_is_done_behind_the_run(monkeypatch):
  """In order, the newest under each name, tried again while the store does not serve."""
  monkeypatch.setattr(behind, 'AGAIN', 0.0)
  done, fails = [], [2]
  later = behind.Behind(STORE)

  def work(name):
    def act():
      if fails[0]:
        fails[0] -= 1
        raise PassingError('busy')
      done.append(name)

    return act

  later.do('a', work('a'))
  later.do('b', work('b'))
  later.close()
  assert sorted(done) == ['a', 'b']
  later = behind.Behind(STORE)

  def denied():
    raise RunError('cannot write: not permitted')

  later.do('a', denied)
  with pytest.raises(RunError, match='not permitted'):
    later.close()
  with pytest.raises(RunError, match='not permitted'):
    later.do('b', work('c'))
  monkeypatch.setattr(behind, 'LAST', 0.01)
  later, fails[0] = behind.Behind(STORE), 10**9
  later.do('a', work('a'))
  with pytest.raises(PassingError, match='not written after 0 s'):
    later.close()
  fails[0] = 0
  at_once = behind.Behind(paths.at('/'))
  at_once.do('a', work('now'))
  assert done[-1] == 'now'
