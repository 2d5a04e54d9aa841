"""Python files that a person names on a command line: configurations, sweeps."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest


def call(name: str, function: str) -> Any:
  """What a function in a file returns.

  Args:
    name: 'configs/tfds.py', or 'configs/tfds.py:imagenet2012' to give the function an argument.
    function: its name.

  Raises:
    RunError: if there is no such file or function, or whatever goes wrong inside, with its line.
  """
  stem, dot, argument = name.partition('.py')
  path = paths.at(stem + dot)
  if not path.is_file():
    others = (
      sorted(str(other) for other in path.parent.glob('*.py')) if path.parent.is_dir() else []
    )
    hint = suggest(str(path), others) if others else f'{path.parent} has no Python files'
    raise RunError(f'there is no file {path}: {hint}')
  spec = importlib.util.spec_from_file_location(path.stem, paths.fetched(path))
  if not dot or not spec or not spec.loader or argument[:1] not in ('', ':'):
    raise RunError(f'{name} is not a Python file: write FILE.py or FILE.py:ARGUMENT')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    if not hasattr(module, function):
      raise RunError(f'{path} has no function {function}')
    call = getattr(module, function)
    if argument[1:] and not inspect.signature(call).parameters:
      raise RunError(f'{path} takes no argument: leave {argument} out')
    return call(*([argument[1:]] if argument[1:] else []))
  except RunError:
    raise
  except ValueError as error:
    raise RunError(str(error)) from None
  except Exception as error:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    lines = [getattr(error, 'lineno', None)] if isinstance(error, SyntaxError) else lines
    at = f', line {lines[-1]}' if lines else ''
    raise RunError(f'{path}{at}: {type(error).__name__}: {error}') from None
