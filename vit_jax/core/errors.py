"""Errors that the user can fix: one clear message, no traceback."""

import difflib
from collections.abc import Iterable


class RunError(Exception):
  """Something is wrong with the configuration, the data, the disk or the run itself."""


class DivergedError(RunError):
  """A loss or gradient that is not finite."""


def suggest(name: str, options: Iterable[str]) -> str:
  """The end of a message about an unknown `name`: the nearest right ones, or all of them."""
  options = list(options)
  near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
  return f'did you mean {", ".join(near)}?' if near else f'choose from {", ".join(options)}'
