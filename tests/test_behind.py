"""Writing behind a run: when, in which order, and what happens to what cannot be written."""

import pytest

from vit_jax.core import behind, stores
from vit_jax.core.errors import PassingError, RunError


class Clock:
  """Time that goes on when somebody waits for it."""

  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def slow(monkeypatch):
  """Something that writes to a store; a clock; and work that takes so long, by the clock."""
  clock = Clock()
  monkeypatch.setattr(behind, 'time', clock)
  writing = behind.Behind(stores.parse('memory://bucket/run'))

  def work(seconds, *errors):
    left = list(errors)

    def do():
      clock.now += seconds
      if left:
        raise left.pop()

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


def test_what_may_pass_is_tried_again(slow):
  writing, clock, work = slow
  writing.do('a', work(0.0, PassingError('busy')))
  with writing._change:
    assert writing._change.wait_for(lambda: 'a' in writing._next, 60)
  assert writing._next['a'] == clock.now + behind.AGAIN
  assert 'a' in writing._waiting
  writing.flush()
  assert not writing._waiting
  writing.check()


def test_what_does_not_pass_is_said(slow):
  writing, _, work = slow
  writing.do('a', work(0.0, ZeroDivisionError('by mistake')))
  with pytest.raises(RunError, match='a: ZeroDivisionError: by mistake'):
    writing.flush()
  with pytest.raises(RunError, match='by mistake'):
    writing.do('b', work(0.0))
  writing._error = None
