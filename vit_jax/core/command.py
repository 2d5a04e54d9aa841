"""Commands: arguments, fields written --name=value, and errors as one clear sentence."""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from vit_jax.core.errors import RESTART, PassingError, RunError, suggest


class Parser(argparse.ArgumentParser):
  """Arguments of a command. Mistakes are RunErrors; flags cannot be abbreviated."""

  def __init__(self, module: str, about: str, examples: Sequence[str]):
    """Its --help says what it is about, gives examples, and then lists the flags.

    Args:
      module: that is run, 'vit_jax.train'.
      about: what it does.
      examples: arguments of real command lines.
    """
    self.switches: list[str] = []
    lines = [f'  python -m {module} {example}' for example in examples]
    super().__init__(
      prog=f'python -m {module}', description=about + '\n\nexamples:\n' + '\n'.join(lines),
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip

  def switch(self, name: str, help: str) -> None:
    """A flag that is given or not: --name, which may also be written --name=true or =false."""
    self.add_argument(name, action='store_true', help=help)
    self.switches.append(name)

  def known(self) -> tuple[argparse.Namespace, list[str]]:
    """The arguments of this process that have a flag, and the others; raises RunError."""
    found = []
    for text in sys.argv[1:]:
      name, equals, value = text.partition('=')
      if not equals or name not in self.switches:
        found.append(text)
      elif value.lower() not in ('true', 'false', '1', '0'):
        self.error(f'{text}: write {name}, {name}=true or {name}=false')
      elif value.lower() in ('true', '1'):
        found.append(name)
    return self.parse_known_args(found)

  def error(self, message: str) -> Any:
    """Raises RunError."""
    raise RunError(f'{message} (--help lists all arguments)')


def run(
  parser: Parser, main: Callable[..., int | None], *, fields: Collection[str] | None = None
) -> None:
  """Calls `main` with the parsed arguments and leaves with its exit status, or 1 on RunError.

  Args:
    parser: of the arguments.
    main: gets them by name. Those that the parser does not know but that are written --field=value
      reach it as `changes`, a dict of values, or as `texts`, unread; without either
      parameter it takes none.
    fields: names that `changes` may have; any, if not given.
  """
  with errors():
    known, rest = parser.known()
    arguments = dict(vars(known))
    takes = {'changes', 'texts'} & inspect.signature(main).parameters.keys()
    given = pairs(rest, parser, fields=bool(takes))
    unknown = [name for name, _ in given if fields is not None and name not in fields]
    if unknown:
      refuse(unknown[0], parser, fields or ())
    if 'changes' in takes:
      arguments['changes'] = {name: literal(value) for name, value in given}
    elif 'texts' in takes:
      arguments['texts'] = dict(given)
    elif given:
      refuse(given[0][0], parser)
    sys.exit(main(**arguments) or 0)


class errors:  # noqa: N801  it is used as a function
  """A context in which a RunError is one line on stderr, and the end of the process."""

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
    if isinstance(error, RunError):
      print(f'error: {error}', file=sys.stderr)
      sys.exit(RESTART if isinstance(error, PassingError) else 1)
    if isinstance(error, BrokenPipeError):  # the reader of our output closed the pipe
      sys.stderr.close()
      sys.exit(0)
    return False


def pairs(
  rest: Sequence[str], parser: argparse.ArgumentParser, *, fields: bool = True
) -> list[tuple[str, str]]:
  """Names and texts of arguments written --name=value; raises RunError for others.

  `fields`: whether there are names that the parser does not know.
  """
  out = []
  for text in rest:
    name, equals, value = text.removeprefix('--').partition('=')
    if not text.startswith('--'):
      raise RunError(f'unexpected argument {text!r}: flags are written --name=value')
    if not equals:
      near = suggest(text, _flags(parser))
      written = f' (fields are written {text}=VALUE)' if fields else ''
      raise RunError(f'unknown argument {text}: {near}{written}')
    out.append((name, value))
  return out


def refuse(name: str, parser: argparse.ArgumentParser, fields: Collection[str] = ()) -> None:
  """Raises RunError: there is no such flag, or field."""
  there = [*_flags(parser), *(f'--{field}' for field in fields)]
  raise RunError(f'unknown argument --{name}: {suggest(f"--{name}", there)}')


def _flags(parser: argparse.ArgumentParser) -> list[str]:
  return [name for action in parser._actions for name in action.option_strings]


def literal(value: str) -> Any:
  """What a text says in Python, or the text itself."""
  try:
    return ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return value
