"""What a sweep is judged by: any number that its runs report, made into what laws are fitted to.

Laws are of what falls, is positive, and ends at a floor that they find by themselves. A loss is
that as it is, whatever its floor. A share of what is right is not: of it laws get the error,
1 - share.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from vit_jax.core.errors import RunError, suggest

# By the end of a name, for a count behind it too ('fewshot_top1_5').
FALLS = ('loss', 'error', 'mce', 'brier', 'ece', 'mae', 'rmse', 'teacher')
SHARES = (
  'top1', 'top5', 'accuracy', 'real', 'map', 'f1', 'r2', 'miou', 'recall', 'agreement',
)  # fmt: skip
WAYS = {'low': False, 'high': True}


@dataclasses.dataclass(frozen=True)
class Target:
  """A column of the table of a sweep.

  Attributes:
    column: its name.
    rises: whether higher numbers are better.
    best: the number than which none is better: 1 for shares, 0 for losses. Of losses that may be
      negative it is any number below them.
  """

  column: str
  rises: bool = False
  best: float = 0.0

  @property
  def name(self) -> str:
    """Of what laws are fitted to."""
    if self.rises:
      return f'{self.best:g} - {self.column}'
    shift = f' {"-" if self.best > 0 else "+"} {abs(self.best):g}' if self.best else ''
    return f'{self.column}{shift}'

  def of(self, value: Any) -> Any:
    """What laws are fitted to, positive unless the number is as good as `best`."""
    return self.best - value if self.rises else value - self.best

  def back(self, value: Any) -> Any:
    """The inverse of `of`."""
    return self.best - value if self.rises else value + self.best


def target(column: str, better: str = '', best: float | None = None) -> Target:
  """The target of a name, 'test/loss' or 'test_loss'.

  Args:
    column: of the table.
    better: 'low' or 'high'; '' goes by the name.
    best: see `Target`; None is 0 for what falls, and 1 for shares of what is right.

  Raises:
    RunError: if the name does not say which numbers are better, or how high they can be.
  """
  column = column.replace('/', '_')
  if better and better not in WAYS:
    raise RunError(f'--better={better}: {suggest(better, WAYS)}')
  known = lambda words: re.search(rf'(^|_)({"|".join(words)})(_\d+)?$', column)  # noqa: E731
  falls, share = bool(known(FALLS)), bool(known(SHARES))
  if not (better or falls or share):
    raise RunError(
      f'{column}: which numbers are better is not known: --better=low, or --better=high with the '
      'highest that can be, --best=1'
    )
  rises = WAYS[better] if better else share
  if rises and not share and best is None:
    raise RunError(
      f'{column}: laws are fitted to how far it is from the best that can be: --best=1 for shares, '
      '100 for percent'
    )
  return Target(column, rises, (1.0 if rises else 0.0) if best is None else best)
