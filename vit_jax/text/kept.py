"""Vocabularies that belong to a checkpoint, and go with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError
from vit_jax.text import TOKENIZERS

# In the directory of a run.
FOLDER = 'vocabulary'


def files_of(task: Mapping[str, Any]) -> tuple[str, ...]:
  """Files of the tokenizer of a task, given as its name and fields."""
  told = dict(task.get('tokenizer') or {})
  if not told:
    return ()
  kind = schema.pick(TOKENIZERS, told.pop('name'), 'tokenizer')
  return schema.build(kind, told, 'tokenizer').files


def keep(files: Sequence[str], folder: paths.Path, *, anew: bool = False) -> None:
  """Copies files of a tokenizer into the directory of a run.

  Args:
    files: of the tokenizer.
    folder: the directory of the run.
    anew: whether copies that are there are of an earlier run, and are replaced; else they stay.

  Raises:
    RunError: for one that cannot be read, or written.
  """
  for file in files:
    path, copy = paths.at(file), folder / FOLDER / paths.at(file).name
    if path == copy or (copy.is_file() and not anew):
      continue
    try:
      data = path.read_bytes()
      copy.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise RunError(f'cannot keep a copy of {file} in {copy.parent}: {error.strerror}') from None
    paths.write_bytes(copy, data)


def found(task: Mapping[str, Any], folder: paths.Path) -> dict[str, Any]:
  """A task, as its name and fields, with the copy of its vocabulary if there is one.

  The original may be gone, or be another one by now.

  Args:
    task: of a run.
    folder: the directory of that run.
  """
  tokenizer = task.get('tokenizer')
  if not isinstance(tokenizer, Mapping) or not tokenizer.get('file'):
    return dict(task)
  copy = folder / FOLDER / paths.at(tokenizer['file']).name
  if not copy.is_file():
    return dict(task)
  return {**task, 'tokenizer': {**tokenizer, 'file': str(copy)}}
