"""Errors that the user can fix: one clear message, no traceback."""

import difflib
from collections.abc import Iterable
from typing import Any

# Exit status of what goes on if it is started again: a signal has stopped it in good order, or the
# network did not serve. 0 is the end, 1 a mistake that a person must mend. Schedulers on Kubernetes
# restart after this number by default.
RESTART = 42


class RunError(Exception):
  """Something is wrong with the configuration, the data, the disk or the run itself."""

  def __reduce__(self) -> tuple[Any, ...]:
    """For another process: the message and all attributes, whatever `__init__` makes them of."""
    return _made, (type(self), self.args), self.__dict__


def _made(kind: type[RunError], args: tuple[Any, ...]) -> RunError:
  return kind.__new__(kind, *args)


class PassingError(RunError):
  """Something that may pass by itself: the same command may go on later, and exits by `RESTART`."""


class DivergedError(RunError):
  """A loss or gradient that is not finite."""


def suggest(name: str, options: Iterable[str]) -> str:
  """The end of a message about an unknown `name`: the nearest right ones, or all of them."""
  options = list(options)
  near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
  return f'did you mean {", ".join(near)}?' if near else f'choose from {", ".join(options)}'
