"""A law for a table of runs: `python -m vit_jax.scaling.fit TABLE --x=COLUMN --y=COLUMN`."""

from __future__ import annotations

import argparse
import json
import sys
import types
from typing import Any

import numpy as np

from vit_jax.core import command
from vit_jax.core.errors import RunError
from vit_jax.scaling import choice
from vit_jax.scaling.fitting import INTERVALS, LOSSES, fit
from vit_jax.scaling.laws import LAWS
from vit_jax.scaling.result import Fit

CANDIDATES = ('power', 'power_floor', 'm3', 'zhai')  # what --law=best chooses from


def main(
  table: str, law: str, x: str, y: str, predict: list[str], unit: str, fixed: str, json_: bool,
  changes: dict[str, Any], **options: Any,
) -> None:  # fmt: skip
  """Prints what the fit, or the choice of a law, says of itself."""
  if changes:
    raise RunError(f'unknown argument --{next(iter(changes))}')
  laws = CANDIDATES if law == 'best' else law.split(',')
  options |= {'x': x.split(','), 'y': y}
  if unit:
    options['units'] = _assignments(unit, '--unit')
  if fixed:
    options['fixed'] = {k: _number(v, '--fixed') for k, v in _assignments(fixed, '--fixed').items()}
  if len(laws) > 1:
    chosen = choice.choose(laws, table, **options)
    found, said, card = chosen.fit, f'{chosen.report()}\n\n', chosen.to_dict()
    source = chosen
  else:
    source = found = fit(laws[0], table, **options)
    said, card = '', {}
  predictions = [row for text in predict for row in _predictions(found, source, text)]
  if json_:
    card = card or found.to_dict()
    card['predictions'] = [
      {name: value if np.isfinite(value) else None for name, value in row.items()}
      for row in predictions
    ]
    print(json.dumps(card, indent=2, allow_nan=False))
  else:
    print(said + found.report() + _table(found, predictions))


def _predictions(found: Fit, source: Fit | choice.Choice, text: str) -> list[dict[str, float]]:
  """Of '1e21,1e22', or of 'n=1e9,d=1e11' where the law has several inputs."""
  if len(found.x) == 1:
    columns = {found.x[0]: [_number(number, '--predict') for number in text.split(',')]}
  else:
    columns = {k: [_number(v, '--predict')] for k, v in _assignments(text, '--predict').items()}
  predicted = source.predict(columns)._asdict()
  rows = zip(*columns.values(), *predicted.values(), strict=True)
  return [dict(zip((*columns, *predicted), map(float, row), strict=True)) for row in rows]


def _table(found: Fit, predictions: list[dict[str, float]]) -> str:
  if not predictions:
    return ''
  lines = ['', '', f'  {found.y}, the {found.level:.0%} band of the curve, and that of a new run']
  for row in predictions:
    at = ', '.join(f'{name} {row[name]:.4g}' for name in found.x)
    lines.append(
      f'  {at}: {row["value"]:.4g} [{row["low"]:.4g}, {row["high"]:.4g}] '
      f'[{row["new_low"]:.4g}, {row["new_high"]:.4g}]'
    )
  return '\n'.join(lines)


def _assignments(text: str, argument: str) -> dict[str, str]:
  pairs = [part.partition('=') for part in text.split(',')]
  if not all(name and value for name, _, value in pairs):
    raise RunError(f'{argument} is written {argument}=NAME=VALUE,NAME=VALUE, found {text!r}')
  return {name.strip(): value.strip() for name, _, value in pairs}


def _number(text: str, argument: str) -> float:
  try:
    number = float(text)
  except ValueError:
    number = np.nan
  if not np.isfinite(number):
    raise RunError(f'{argument} takes numbers, found {text!r}')
  return number


class _Module(types.ModuleType):
  """Importing this module puts it where the package has the function of the same name."""

  __call__ = staticmethod(fit)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    prog='python -m vit_jax.scaling.fit', description='A scaling law for a table of runs.'
  )
  parser.add_argument('table', help='.csv, .jsonl or .parquet file, a row per point')
  parser.add_argument(
    '--law', default='best',
    help=f'one of {", ".join(LAWS)}; or several, from which the best at extrapolation is taken; '
    f'best: {",".join(CANDIDATES)}',
  )  # fmt: skip
  parser.add_argument('--x', required=True, help='column of the input, or columns: n,d')
  parser.add_argument('--y', required=True, help='column of the target')
  parser.add_argument('--where', help='rows to take: model=L/16,flops<=1e20')
  parser.add_argument('--group', help='column that names the run of a point')
  parser.add_argument('--loss', choices=LOSSES, default='squared')
  parser.add_argument('--delta', type=float, default=1e-3, help="of Huber's loss, in log y")
  parser.add_argument('--interval', choices=INTERVALS, default='auto')
  parser.add_argument('--level', type=float, default=0.95, help='of intervals and bands')
  parser.add_argument('--starts', type=int, default=64, help='of the search')
  parser.add_argument('--draws', type=int, default=400, help='of the bootstrap')
  parser.add_argument('--seed', type=int, default=0, help='of the bootstrap')
  parser.add_argument('--unit', default='', help='units of columns: flops=FLOP')
  parser.add_argument('--fixed', default='', help='parameters that are given: c=1.69')
  parser.add_argument(
    '--predict', action='append', default=[], metavar='X', help='1e21,1e22; or n=1e9,d=2e10'
  )
  parser.add_argument('--json', action='store_true', dest='json_', help='print JSON instead')
  command.run(parser, main)
else:
  sys.modules[__name__].__class__ = _Module
