"""How fast a run goes: how long a step may take, when to save, who keeps the others waiting."""

from __future__ import annotations

import collections
import math
import statistics
import time
from typing import Any

from vit_jax.processes import health, peers
from vit_jax.training.progress import Chrono
from vit_jax.training.sessions import interval

# Steps before there is a usual one; how many of them must pass before a process is hung.
FEW, TIMES = 3, 10
# A process keeps others waiting if its input takes so many times theirs, and so much of a step.
SLOW, SHARE = 3.0, 0.1


class Pace:
  """Times of the steps of this session."""

  def __init__(self, chrono: Chrono, hang: float):
    """`hang`: of the configuration."""
    self._chrono, self._hang = chrono, hang
    self._times = collections.deque[float](maxlen=50)
    self._last = time.monotonic()
    self._before: dict[int, dict[str, Any]] = {}
    self._slow = -1

  @property
  def usual(self) -> float:
    """Seconds of a step, the median; 0 before there is one."""
    return statistics.median(self._times) if len(self._times) >= FEW else 0.0

  @property
  def limit(self) -> float | None:
    """Seconds after which a step hangs; None while nobody knows how long one takes."""
    if not self._hang:
      return math.inf
    return max(self._hang, TIMES * self.usual) if self.usual else None

  def step(self, *, compiled: bool) -> None:
    """One is over; the first, which was `compiled` on the way, does not count."""
    now = time.monotonic()
    if compiled:
      self._times.append(now - self._last)
    self._last = now
    self._chrono.limits.update(input=self.limit, step=self.limit)

  def hosts(self) -> tuple[dict[str, float], list[str]]:
    """What processes have spent per step since the last call, and lines about one that is slow.

    Returns:
      Of several processes seconds of input per step, the median and the largest, and whose that is;
      nothing for one alone, or in any but process 0.
    """
    now, before = health.others(), self._before
    waits, steps = {}, {}
    for number, said in now.items():
      old = before.get(number)
      done = said['step'] - old['step'] if old else 0
      if old and done > 0:
        waits[number] = (said['seconds']['input'] - old['seconds']['input']) / done
        steps[number] = (said['seconds']['step'] - old['seconds']['step']) / done
    if len(waits) < len(now):
      self._before = before or now
      return {}, []
    self._before = now
    if len(waits) < 2:
      return {}, []
    slowest = max(waits, key=lambda number: waits[number])
    middle = statistics.median(waits.values())
    found = {
      'hosts/input_median': middle, 'hosts/input_max': waits[slowest],
      'hosts/input_slowest': float(slowest), 'hosts/step_median': statistics.median(steps.values()),
    }  # fmt: skip
    others = statistics.median([wait for number, wait in waits.items() if number != slowest])
    whole = waits[slowest] + steps[slowest]
    slow = slowest if waits[slowest] > max(SLOW * others, SHARE * whole) else -1
    lines = []
    if slow != self._slow and slow >= 0:
      lines.append(
        f'process {slow} (host {now[slow]["host"]}) keeps the others waiting: it waits '
        f'{waits[slow]:.3f} s for the input of a step, and they {others:.3f} s'
      )
    self._slow = slow
    return found, lines


class Saves:
  """When the next checkpoint is due, by what the last ones cost; the same in all processes."""

  def __init__(self, mtbf: float, pace: Pace):
    """`mtbf`: seconds."""
    self._mtbf, self._pace = mtbf, pace
    self._cost = 0.0
    self._next: int | None = None
    self._begun: int | None = None

  def due(self, done: int) -> bool:
    """Whether one is, after `done` steps."""
    if self._begun is None:
      self._begun = done
    if self._next is None and done - self._begun >= 2 * FEW:
      # Nothing is known of the cost of a save before the first: one is made early.
      self._next = done
    return self._next is not None and done >= self._next

  def saved(self, done: int, cost: float, least: float) -> None:
    """One was begun.

    Args:
      done: after so many steps.
      cost: seconds that it has kept the run from its steps.
      least: seconds that the last one took in the background.
    """
    self._cost = cost if not self._cost else (self._cost + cost) / 2

    def steps() -> int:
      usual = self._pace.usual
      if not usual:  # nothing is known of the steps yet
        return 0
      return max(1, round(interval(self._cost, self._mtbf, least) / usual))

    ahead = peers.agreed('the next checkpoint', steps)
    self._next = done + ahead if ahead else None
    self._begun = done
