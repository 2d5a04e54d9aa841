"""Spikes of the loss, and how a run goes back from them.

All of it is a function of the steps of the run, their losses and what a checkpoint keeps of them:
when a spike is noticed, to which checkpoint the run goes back, and which data it goes on with. So a
run that is killed does the same as one that is not, also if it has to go back a second time.
"""

from __future__ import annotations

import collections
import math
import statistics
from typing import Any

from vit_jax.optim.config import WINDOW
from vit_jax.training.config import RewindConfig


class SpikeError(Exception):
  """Raised where the run is to go back.

  Attributes:
    rewind: what becomes of it: see `Spikes.rewinds`.
  """

  def __init__(self, rewind: dict[str, Any]):
    super().__init__()
    self.rewind = rewind


class Spikes:
  """Watches the losses of a run.

  Attributes:
    rewinds: every time that the run went back, as result.json has it: after which `step`, `to`
      which, from which `batch` of the stream on, and the `loss` and what was `usual` then.
    begun: the step that a fork began with: what is before it is in another directory.
  """

  def __init__(self, config: RewindConfig, back: int):
    """Nothing seen yet; `back` is `config.back` in steps."""
    self._config, self.back = config, back
    self._losses: collections.deque[float] = collections.deque(maxlen=WINDOW)
    self._row = 0
    self.rewinds: list[dict[str, Any]] = []
    self.begun = 0

  @property
  def offset(self) -> int:
    """How many batches of the stream have been passed over."""
    return self.rewinds[-1]['batch'] - self.rewinds[-1]['to'] if self.rewinds else 0

  def kept(self) -> dict[str, Any]:
    """What a checkpoint keeps: plain JSON."""
    return {'losses': list(self._losses), 'row': self._row}

  def restore(self, kept: dict[str, Any]) -> None:
    """As it was at a checkpoint, but for `rewinds`."""
    self._losses.clear()
    self._losses.extend(kept['losses'])
    self._row = kept['row']

  def due(self, step: int) -> bool:
    """Whether there is to be a checkpoint to go back to."""
    return bool(self._config.most) and step % self.back == 0

  def holds(self, step: int, latest: int) -> bool:
    """Whether the run may have to go back to a checkpoint while that of `latest` is the newest."""
    # What is a spike after `latest` began at most so many steps before.
    return self.due(step) and step >= self._before(latest - self._config.patience)

  def see(self, step: int, loss: float, *, skipped: bool, finite: bool) -> bool:
    """Looks at the loss of a step, steps in order.

    Args:
      step: how many there have been.
      loss: of the last of them.
      skipped: whether its update was skipped.
      finite: whether loss and gradient were finite, or it was skipped.

    Returns:
      Whether this is a spike from which the run cannot go back.

    Raises:
      SpikeError: if the run is to go back.
    """
    if not self._config.most:
      return not finite
    usual = statistics.median(self._losses) if len(self._losses) >= WINDOW // 2 else math.inf
    far = usual + (self._config.above - 1) * abs(usual)
    self._row = self._row + 1 if skipped or not finite or loss > far else 0
    if math.isfinite(loss):
      self._losses.append(loss)
    if finite and self._row < self._config.patience:
      return False
    # Not behind where it went back to last: nothing else is sure to be there.
    target = max([self._before(step - self._row), *(each['to'] for each in self.rewinds[-1:])])
    if len(self.rewinds) < self._config.most and target > self.begun:
      batch = step + self.offset + self.back
      rewind = {'step': step, 'to': target, 'batch': batch}
      raise SpikeError({**rewind, 'loss': _known(loss), 'usual': _known(usual)})
    self._row = 0
    return True

  def _before(self, step: int) -> int:
    """The last checkpoint to go back to that is at least `back` before a step."""
    return (step - self.back) // self.back * self.back


def _known(value: float) -> float | None:
  return value if math.isfinite(value) else None
