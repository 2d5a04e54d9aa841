"""The sessions of a run: how each was started, how far it came, and what its time was spent on."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.core import paths
from vit_jax.core.behind import Behind
from vit_jax.core.errors import RunError

EVERY = 60.0  # seconds between two notes: what a kill leaves unknown
# Phases in which no step is made.
BAD = ('init', 'compile', 'input', 'eval', 'checkpoint')


class Sessions:
  """command.json: a list of sessions, the last of which is this one.

  Of each: command, started and ended (ISO 8601; the second is the last sign of life), the step it
  began at, the one it has reached, the last of the run, and its seconds by phase.
  """

  def __init__(
    self, path: paths.Path, behind: Behind, seconds: Mapping[str, float], *, command: str,
    step: int, total: int, started: float, before: Mapping[str, float],
  ):  # fmt: skip
    """Adds a session to those in `path`.

    Args:
      path: of the file.
      behind: writes it if it is in a store.
      seconds: by phase, of all sessions, which the run goes on to count.
      command: how this one was started.
      step: it goes on from.
      total: of the run.
      started: seconds since 1970.
      before: what of the seconds is of earlier sessions.
    """
    try:
      earlier = paths.read_json(path) if path.exists() else []
    except RunError as error:
      if isinstance(error.__cause__, OSError):  # it is there, and may be read the next time
        raise
      earlier = []
    self._path, self._behind, self._seconds = path, behind, seconds
    self._before = dict(before)
    self._own = {'command': command, 'started': _iso(started), 'step': step, 'total': total}
    self.all = [*earlier, self._own]
    self._noted = time.monotonic()
    self.note(step, now=True)

  def lost(self, seconds: float) -> None:
    """Steps that took so long have come to nothing: the run has gone back."""
    self._own['lost'] = round(self._own.get('lost', 0.0) + seconds, 3)

  def note(self, step: int, *, now: bool = False) -> None:
    """This session has reached a step; written once a minute, or now."""
    if not now and time.monotonic() - self._noted < EVERY:
      return
    self._noted = time.monotonic()
    spent = {n: round(s - self._before.get(n, 0.0), 3) for n, s in self._seconds.items()}
    self._own |= {'reached': step, 'ended': _iso(time.time()), 'seconds': spent}
    if asked_again := paths.retries():
      self._own['retries'] = asked_again
    sessions = [dict(each) for each in self.all]
    self._behind.do(self._path.name, lambda: paths.write_json(self._path, sessions))


def goodput(sessions: Sequence[Mapping[str, Any]], now: float) -> dict[str, Any] | None:
  """What share of the time since a run was begun its steps took, those that counted.

  The rest is by cause: phases without steps; 'repeated', steps that were done again because the
  session ended after a checkpoint, or the run went back; 'between' sessions, from the last sign of
  life to the next start; and 'other'.

  Args:
    sessions: as in command.json.
    now: seconds since 1970.

  Returns:
    share, hours, restarts, how often a store was asked again, and seconds by cause; None where an
    older version kept no account.
  """
  if not sessions or any('ended' not in each for each in sessions):
    return None
  began = _seconds(sessions[0]['started'])
  bad: dict[str, float] = dict.fromkeys((*BAD, 'repeated', 'between'), 0.0)
  good = 0.0
  for number, each in enumerate(sessions):
    last = number == len(sessions) - 1
    spent, done = each['seconds'], each['reached'] - each['step']
    kept = done if last else min(done, max(0, sessions[number + 1]['step'] - each['step']))
    share = kept / done if done else 0.0
    good += share * spent.get('step', 0.0)
    bad['repeated'] += (1 - share) * (spent.get('step', 0.0) if done else 0.0)
    lost = min(each.get('lost', 0.0), good)
    good, bad['repeated'] = good - lost, bad['repeated'] + lost
    for cause in BAD:
      bad[cause] += spent.get(cause, 0.0)
    if not last:
      gap = _seconds(sessions[number + 1]['started']) - _seconds(each['ended'])
      bad['between'] += max(0.0, gap)
  whole = max(now - began, 1e-9)
  bad['other'] = max(0.0, whole - good - sum(bad.values()))
  return {
    'share': round(good / whole, 4), 'hours': round(whole / 3600, 4),
    'restarts': len(sessions) - 1, 'retries': sum(each.get('retries', 0) for each in sessions),
    'seconds': {name: round(s, 1) for name, s in bad.items()},
  }  # fmt: skip


def interval(cost: float, mtbf: float, least: float = 0.0) -> float:
  """Seconds between checkpoints that cost the least time (Young, CACM 17(9), 1974).

  A save every T seconds costs a share C / T of the time, a failure T / 2 on average: together least
  at T = sqrt(2 C M).

  Args:
    cost: seconds in which a save keeps the run from its steps, C.
    mtbf: mean seconds between failures of the whole run, M.
    least: seconds that a save takes in the background, which it must be done with before the next.
  """
  return max((2 * cost * mtbf) ** 0.5, least)


def _iso(seconds: float) -> str:
  moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
  return moment.isoformat(timespec='seconds')


def _seconds(iso: str) -> float:
  return datetime.datetime.fromisoformat(iso).timestamp()
