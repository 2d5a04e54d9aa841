"""A page about a run: `python -m vit_jax.report WORKDIR`."""

from __future__ import annotations

from vit_jax.core import command
from vit_jax.training.report import write

__all__ = ['write']


def main(workdir: str, out: str) -> None:
  """Writes the page and says where it is."""
  path = write(workdir, out)
  print(f'{path}: {path.stat().st_size / 1000:,.0f} kB')


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.report',
    'Makes one page of a run, complete or not, that needs no other file: scores, curves, mistakes, '
    'recipe.',
    ('runs/digits', 'runs/digits --out=digits.html'),
  )
  parser.add_argument('workdir', help='directory of the run')
  parser.add_argument('--out', default='', metavar='FILE', help='instead of WORKDIR/report.html')
  command.run(parser, main)
