"""Examines the machines: `python -m vit_jax.doctor`."""

from __future__ import annotations

from typing import Any


def main(config: Any, workdir: str | None) -> int:
  """The command; returns its exit status."""
  from vit_jax.launch.doctor import examine

  return examine(config, workdir)


if __name__ == '__main__':
  from vit_jax.core import command
  from vit_jax.launch import start

  parser = command.Parser(
    'vit_jax.doctor',
    'Examines what a run needs: software, devices, memory, decoder, data, directory. Each line is\n'
    'pass, warn or fail, what was found, and the mend; exit status 1 if anything fails, 42\n'
    'if that may pass. Several processes examine each other: start it as the run will be started.',
    ('', '--config=configs/digits.py --workdir=runs/digits'),
  )
  parser.add_argument('--workdir', metavar='DIR', help='directory of the run')
  start.run(parser, main)
