"""A law for a table of runs: `python -m vit_jax.scaling.fit TABLE --x=COLUMN --y=COLUMN`."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.core import command
from vit_jax.core.errors import RunError
from vit_jax.scaling import choice
from vit_jax.scaling.fitting import INTERVALS, LOSSES, fit
from vit_jax.scaling.laws import LAWS
from vit_jax.scaling.report import number, plain
from vit_jax.scaling.result import Fit

BANDS = (('low', 'high'), ('new_low', 'new_high'))
CANDIDATES = ('power', 'power_floor', 'm3', 'zhai')  # what --law=best chooses from


def main(
  table: str, law: str, x: str, y: str, predict: list[str], unit: str, fixed: str, json_: bool,
  **options: Any,
) -> None:  # fmt: skip
  """Prints what the fit, or the choice of a law, says of itself."""
  laws, names = CANDIDATES if law == 'best' else law.split(','), x.split(',')
  options = _used(options) | {'x': names, 'y': y}
  if unit:
    options['units'] = _assignments(unit, '--unit', (*names, y))
  if fixed:
    given = _assignments(fixed, '--fixed')
    options['fixed'] = {name: _number(value, '--fixed') for name, value in given.items()}
  places = [_place(names, text) for text in predict]
  if len(laws) > 1:
    source = choice.choose(laws, table, **options)
    found, said, card = source.fit, f'{source.report()}\n\n', source.to_dict()
  else:
    source = found = fit(laws[0], table, **options)
    said, card = '', {}
  predictions = [row for place in places for row in _predictions(source, place)]
  if json_:
    card = card or found.to_dict()
    card['predictions'] = plain(predictions)
    print(json.dumps(card, indent=2, allow_nan=False))
  else:
    print(said + found.report() + _table(found, predictions))


def _used(options: dict[str, Any]) -> dict[str, Any]:
  """The options that were given; RunError if one of them changes nothing."""
  huber = options['loss'] == 'huber'
  drawn = options['interval'] == 'bootstrap' or (huber and options['interval'] == 'auto')
  needs = {'delta': (huber, '--loss=huber'), 'draws': (drawn, '--interval=bootstrap'),
           'seed': (drawn, '--interval=bootstrap')}  # fmt: skip
  for name, (used, instead) in needs.items():
    if options[name] is not None and not used:
      raise RunError(f'--{name} changes nothing without {instead}')
  return {name: value for name, value in options.items() if value is not None}


def _place(names: list[str], text: str) -> dict[str, list[float]]:
  """Of '1e21,1e22', or of 'n=1e9,d=1e11' where there are several inputs."""
  if len(names) == 1:
    columns = {names[0]: [_number(number, '--predict') for number in text.split(',')]}
  else:
    given = _assignments(text, '--predict', names)
    columns = {name: [_number(value, '--predict')] for name, value in given.items()}
  for name, values in columns.items():
    if min(values) <= 0:
      raise RunError(f'--predict takes positive numbers, found {name} {min(values):g}')
  return columns


def _predictions(
  source: Fit | choice.Choice, columns: dict[str, list[float]]
) -> list[dict[str, float]]:
  """A row for each place."""
  predicted = source.predict(columns)._asdict()
  rows = zip(*columns.values(), *predicted.values(), strict=True)
  return [dict(zip((*columns, *predicted), map(float, row), strict=True)) for row in rows]


def _table(found: Fit, predictions: list[dict[str, float]]) -> str:
  if not predictions:
    return ''
  lines = ['', '', f'  {found.y}, the {found.level:.0%} band of the curve, and that of a new run']
  for row in predictions:
    at = ', '.join(f'{name} {row[name]:.4g}' for name in found.x)
    bands = (f'[{number(row[low])}, {number(row[high])}]' for low, high in BANDS)
    lines.append(f'  {at}: {row["value"]:.4g} {" ".join(bands)}')
  return '\n'.join(lines)


def _assignments(text: str, argument: str, names: Sequence[str] = ()) -> dict[str, str]:
  """Of 'a=1,b=2'; RunError for a name that is not among `names`, if there are any."""
  pairs = [part.partition('=') for part in text.split(',')]
  if not all(name and value for name, _, value in pairs):
    raise RunError(f'{argument} is written {argument}=NAME=VALUE,NAME=VALUE, found {text!r}')
  found = {name.strip(): value.strip() for name, _, value in pairs}
  for name in found:
    if names and name not in names:
      raise RunError(f'{argument} is of {", ".join(names)}, found {name!r}')
  return found


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


def parser() -> command.Parser:
  """Of the command line."""
  found = command.Parser(
    'vit_jax.scaling.fit', 'Fits a scaling law to a table of runs, and says how far to trust it.',
    (
      'runs/sweep/table.jsonl --x=flops --y=test_loss --law=power_floor --predict=1e13',
      'runs.csv --x=parameters,images --y=loss --law=chinchilla --where="status=finished" --json',
    ),
  )  # fmt: skip
  add = found.add_argument
  add('table', help='.csv, .tsv, .jsonl or .parquet file, a row per point')
  add(
    '--law', default='best',
    help=f'one of {", ".join(LAWS)}; or several, from which the best at extrapolation is taken; '
    f'best: {",".join(CANDIDATES)}',
  )  # fmt: skip
  add('--x', required=True, help='column of the input, or columns: n,d')
  add('--y', required=True, help='column of the target')
  add('--where', help='rows to take: model=L/16,flops<=1e20')
  add('--group', help='column that names the run of a point')
  add('--loss', choices=LOSSES, default='squared')
  add('--delta', type=float, help="of Huber's loss, in log y (default 1e-3)")
  add('--interval', choices=INTERVALS, default='auto')
  add('--level', type=float, default=0.95, help='of intervals and bands')
  add('--starts', type=int, default=64, help='of the search')
  add('--draws', type=int, help='of the bootstrap (default 400)')
  add('--seed', type=int, help='of the bootstrap (default 0)')
  add('--unit', default='', help='units of columns: flops=FLOP')
  add('--fixed', default='', help='parameters that are given: c=1.69')
  add('--predict', action='append', default=[], metavar='X', help='1e21,1e22; or n=1e9,d=2e10')
  add('--json', action='store_true', dest='json_', help='print JSON instead')
  return found


if __name__ == '__main__':
  command.run(parser(), main)
else:
  sys.modules[__name__].__class__ = _Module
