r"""The report of a sweep: `python -m experiments.report runs/fashion --budget=1e12,1e13`.

Reads table.jsonl and the configurations in the sweep's directory, and writes report.html, one page
for people that needs nothing else, report.png, its main pictures, and card.json, the same for
programs. May be run while the sweep goes on.
"""

from __future__ import annotations

import json
import math

from experiments.sweeps import target
from vit_jax.core import command, paths
from vit_jax.core.errors import RunError


def budgets_of(text: str) -> list[float]:
  """'1e12,1e13' as numbers.

  Raises:
    RunError: if they are none.
  """
  try:
    found = [float(part) for part in text.split(',') if part.strip()]
  except ValueError:
    raise RunError(f'--budget={text}: write FLOPs, such as 1e12,1e13') from None
  if not all(math.isfinite(budget) and budget > 0 for budget in found):
    raise RunError(f'--budget={text}: budgets are positive')
  return found


def main(
  dir: paths.Path, budget: str, out: paths.Path | None, y: str, better: str, best: float | None,
  data: str,
) -> None:  # fmt: skip
  """The command."""
  asked = budgets_of(budget)
  # Matplotlib is asked for before anything is computed.
  from experiments.sweeps import page, plots, words
  from experiments.sweeps.analysis import analyse
  from experiments.sweeps.record import card

  analysis = analyse(dir, budgets=asked, y=y, better=better, best=best, data=data)
  record = card(analysis, dir)
  out = out or dir
  out.mkdir(parents=True, exist_ok=True)
  paths.write_text(out / 'card.json', json.dumps(record, indent=1, allow_nan=False) + '\n')
  paths.write_text(out / 'report.html', page.render(analysis, record))
  plots.save(analysis, out / 'report.png')
  print('\n'.join(words.answers(analysis)))
  print(f'{out}/report.html, {out}/card.json')


if __name__ == '__main__':
  parser = command.Parser(
    'experiments.report', 'Writes the report of a sweep, which may still be running.',
    ('runs/fashion', 'runs/fashion --budget=1e12,1e13 --out=report',
     'runs/mae --y=knn/top1 --data=tokens --out=report'),
  )  # fmt: skip
  parser.add_argument('dir', type=paths.at, help='directory of the sweep')
  parser.add_argument(
    '--budget', default='', metavar='FLOPS', help='training FLOPs to give advice for, by commas'
  )
  parser.add_argument(
    '--out', type=paths.at, metavar='DIR', help="where to write (the sweep's directory)"
  )
  parser.add_argument(
    '--y', default='', metavar='NAME', help='what runs are judged by, such as knn/top1 (test/loss)'
  )
  parser.add_argument(
    '--better', default='', choices=('', *target.WAYS), metavar='low|high',
    help='which numbers of it are better (by its name)',
  )  # fmt: skip
  parser.add_argument(
    '--best', type=float, metavar='NUMBER',
    help='which none is better than (1 of shares, 0 of losses)',
  )  # fmt: skip
  parser.add_argument(
    '--data', default='images', metavar='images|tokens', help='what data are counted in (images)'
  )
  command.run(parser, main)
