"""Arguments of the commands that read checkpoints."""

from __future__ import annotations

import argparse


def add_choice(parser: argparse.ArgumentParser) -> None:
  """What of a file or a run to read: `step`, `part`, `prefix` and `ignore` of `read.load`."""
  parser.add_argument(
    '--step', type=int, metavar='N', help='of a run: which checkpoint, if not the newest'
  )
  parser.add_argument(
    '--part', default='', help="entry of the file to read, such as 'state_dict' or 'teacher'"
  )
  parser.add_argument('--prefix', help="of the names to read, such as 'model.'")
  parser.add_argument(
    '--ignore', default='', metavar='REGEX',
    help='names that may be missing, unexpected or misshapen',
  )  # fmt: skip
