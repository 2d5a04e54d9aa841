"""The page of the gallery, from the results."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from experiments.gallery.rows import ROWS

HEAD = """# Gallery

Every system of this project, trained from its recipe on two cores, measured beside the best of its
controls, and drawn. `make gallery` trains what is missing here and makes this page; the numbers are
those of `results/`. A gain is the mean over runs less the control, with an interval of 95 % over
test examples and runs.
"""


def write(results: pathlib.Path) -> None:
  """Writes README.md beside the results."""
  rows = [json.loads(path.read_text()) for path in sorted(results.glob('*.json'))]
  order = {'path': 0, 'recipes': 1, 'ssl': 2, 'dense': 3, 'text': 4}
  rows.sort(key=lambda row: (order.get(row['group'], 99), row['name']))
  lines = [
    HEAD,
    '| system | data | metric | value | control | gain | target | seconds a run |',
    '|---|---|---|---|---|---|---|---|',
    *map(_line, rows),
    '',
    *(text for row in rows for text in _section(row, results)),
  ]
  (results.parent / 'README.md').write_text('\n'.join(lines))


def _line(row: dict[str, Any]) -> str:
  spread = f' ± {row["sd"]:.4f}' if row['sd'] is not None else ''
  low, high = row['interval']
  target = f'{row["target"]:g} {"gain" if row["aims_at"] == "gain" else ""}'.strip()
  there = row['gain' if row['aims_at'] == 'gain' else 'value'] >= row['target']
  met = 'reached' if row['reached'] else 'reached, but the gain may be 0' if there else 'missed'
  return (
    f'| [{row["name"]}](#{row["name"]}) | {row["data"]} | {row["metric"]} | {row["value"]:.4f}'
    f'{spread} (n={row["n"]}) | {row["controls"][row["control"]]:.4f} | {row["gain"]:+.4f} '
    f'[{low:+.4f}, {high:+.4f}] | {target}: {met} | {row["seconds"]:.0f} |'
  )


def _section(row: dict[str, Any], results: pathlib.Path) -> list[str]:
  controls = ', '.join(f'{name} {value:.4f}' for name, value in row['controls'].items())
  values = ', '.join(f'{value:.4f}' for value in row['values'])
  beside = ''.join(f' Beside: {name} {value:.4f}.' for name, value in row.get('beside', {}).items())
  shown = f'![The best and the worst of its predictions](results/{row["name"]}.png)'
  caveat = next((each.caveat for each in ROWS if each.name == row['name']), '')
  has_picture = (results / f'{row["name"]}.png').exists()
  return [
    f'## {row["name"]}', '',
    f'{row["metric"]} on {row["examples"]:,} test examples: {values}. Controls: {controls}.'
    f'{beside} Measured {row["date"]}.', '',
    *([caveat, ''] if caveat else []),
    '```console', f'$ {row["command"]}', '```', '',
    *([shown, '', 'Above the two best of its predictions, below the two worst.', '']
      if has_picture else []),
  ]  # fmt: skip
