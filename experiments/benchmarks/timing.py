"""Clocks for work that is dispatched to a device and runs on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Timed(NamedTuple):
  """Something to be timed.

  Attributes:
    run: dispatches one call and returns its results.
    wait: given these, returns when they are there.
  """

  run: Callable[[], Any]
  wait: Callable[[Any], Any]


def measure(
  contestants: Mapping[str, Timed], *, rounds: int, least: float
) -> dict[str, list[float]]:
  """Seconds of one call, a number for every round, everyone in turn with the others.

  Each number is of as many calls as take `least` seconds, dispatched one after another and waited
  for once, so that the host's part of a call hides behind the device's. How many that are is found
  out first, which warms up.
  """
  counts = {name: _count(it, least) for name, it in contestants.items()}
  seconds: dict[str, list[float]] = {name: [] for name in contestants}
  for _ in range(rounds):
    for name, it in contestants.items():
      seconds[name].append(_run(it, counts[name]) / counts[name])
  return seconds


def _count(it: Timed, least: float) -> int:
  _run(it, 1)  # whatever is compiled or allocated once
  count = 1
  while _run(it, count) < least:
    count *= 2
  return count


def _run(it: Timed, count: int) -> float:
  start, result = time.perf_counter(), None
  for _ in range(count):
    result = it.run()
  it.wait(result)
  return time.perf_counter() - start


def complaint(error: BaseException) -> str:
  """What went wrong, in one line."""
  text = str(error).strip()
  if 'RESOURCE_EXHAUSTED' in text or 'out of memory' in text.lower():
    return 'out of memory'
  return f'{type(error).__name__}: {(text.splitlines() or [""])[0]}'[:120]
