"""What does not fit between the arrays a model wants and those a file has, as one table."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from typing import Any

from vit_jax.core.errors import RunError

Shapes = Mapping[str, tuple[int, ...]]
# Lines of a kind, before they are cut.
MOST = 10


def misfits(
  wanted: Shapes,
  found: Shapes,
  ignore: str = '',
  dtypes: Mapping[str, tuple[Any, Any]] | None = None,
) -> list[str]:
  """One line for each name that is missing, misshapen or unexpected.

  Args:
    wanted: shapes by name.
    found: likewise.
    ignore: regular expression of whole names that may be left over.
    dtypes: of names in both: what was found and what is wanted, where they must agree, too.
  """
  lines, dtypes = [], dtypes or {}
  extra = [n for n in found if n not in wanted and not (ignore and re.fullmatch(ignore, n))]
  for name, shape in wanted.items():
    if name not in found:
      near = difflib.get_close_matches(name, extra[:2000], n=1)
      hint = f'; nearest: {near[0]} {tuple(found[near[0]])}' if near else ''
      lines.append(f'  missing     {name} {tuple(shape)}{hint}')
      continue
    theirs, ours = dtypes.get(name, ('', ''))
    if tuple(found[name]) != tuple(shape) or theirs != ours:
      lines.append(
        f'  misshapen   {name}: {theirs}{tuple(found[name])}, expected {ours}{tuple(shape)}'
      )
  return lines + [f'  unexpected  {name} {tuple(found[name])}' for name in extra]


def refuse(lines: list[str], where: str) -> None:
  """Raises RunError with lines of `misfits`, if there are any."""
  if not lines:
    return
  shown = []
  for kind, same in itertools.groupby(sorted(lines, key=_kind), _kind):
    same = list(same)
    shown += same[:MOST]
    shown += [f'  {kind:<10}  and {len(same) - MOST} more'] * (len(same) > MOST)
  raise RunError(f'{where} does not fit this model:\n' + '\n'.join(shown))


def _kind(line: str) -> str:
  return line.split()[0]
