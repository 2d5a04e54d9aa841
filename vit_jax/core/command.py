"""Commands on checkpoints: arguments, fields of models, and errors as one clear message."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable
from typing import Any

from vit_jax.core.errors import RunError


def run(parser: argparse.ArgumentParser, main: Callable[..., int | None]) -> None:
  """Calls `main` with the parsed arguments and leaves with its exit status, or 1 on RunError.

  Arguments that the parser does not know but that are written --field=value reach `main` as
  `changes`, a dict for `vit_jax.load`.
  """
  known, rest = parser.parse_known_args()
  try:
    status = main(**vars(known), changes=dict(_field(text, parser) for text in rest))
  except RunError as error:
    print(f'error: {error}', file=sys.stderr)
    status = 1
  except BrokenPipeError:  # the reader of our output has seen enough
    sys.stderr.close()
    status = 0
  sys.exit(status or 0)


def _field(text: str, parser: argparse.ArgumentParser) -> tuple[str, Any]:
  name, equals, value = text.removeprefix('--').partition('=')
  if not text.startswith('--') or not equals:
    parser.error(f'unexpected argument {text!r}; fields of the model are written --field=value')
  try:
    return name, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return name, value
