"""The formats of what runs leave, by number, and how an older one becomes the newest.

A field that is new gets, in the migration that introduces it, the value that runs had without it,
whatever its default is today. `tests/golden/runs` holds runs of every format.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from vit_jax.core.errors import RunError

FORMAT = 1


class LaterFormatError(RunError):
  """A format that this version does not know."""


def _numbered(record: dict[str, Any]) -> None:
  """0 to 1: a number. Records of 0 may be older than some fields."""
  record.setdefault('fork', '')
  record.setdefault('lanes', {name: [] for name in ('lr', 'weight_decay', 'b1', 'b2', 'seed')})
  record.setdefault('compilation_cache', '')
  record.get('model', {}).setdefault('mup_width', 0)
  record.get('model', {}).setdefault('mup_depth', 0)
  record.get('checkpoint', {}).setdefault('at', [])
  record.get('data', {}).setdefault('cache', False)
  for name in ('mean', 'std'):  # what is unset now was this
    if record.get('task', {}).get(name) == [0.5]:
      record['task'][name] = None
  # Crops resampled by area, whatever the checkpoint was trained with.
  sections = (record.get('data', {}), *record.get('evals', {}).values())
  for crop in (section['crop'] for section in sections if 'crop' in section):
    crop.setdefault('method', 'area' if record.get('init') else None)
  source = record.get('data', {}).get('source', {})
  if source.get('name') == 'synthetic':
    source.setdefault('channels', 3)


# What turns a configuration of format i into one of format i + 1.
RECORDS: tuple[Callable[[dict[str, Any]], None], ...] = (_numbered,)
# The same for what checkpoints say of themselves.
FACTS: tuple[Callable[[dict[str, Any]], None], ...] = (lambda facts: None,)


def stamped(value: dict[str, Any]) -> dict[str, Any]:
  """A configuration, or the facts of a checkpoint, as they are written."""
  return {'format': FORMAT, **value}


def record(stored: dict[str, Any], where: str) -> dict[str, Any]:
  """A configuration of any format, as this version writes it, without the number.

  Raises:
    RunError: for one of a later version.
  """
  return _migrated(stored, RECORDS, where)


def facts(stored: dict[str, Any], where: str) -> dict[str, Any]:
  """As `record`, of what a checkpoint says of itself."""
  return _migrated(stored, FACTS, where)


def _migrated(stored: dict[str, Any], steps: Any, where: str) -> dict[str, Any]:
  value = copy.deepcopy(stored)
  number = value.pop('format', 0)
  if not isinstance(number, int) or not 0 <= number <= FORMAT:
    raise LaterFormatError(
      f'{where} has format {number!r}, and this version of vit_jax knows formats up to {FORMAT}: '
      'use the version that wrote it, or a later one'
    )
  for step in steps[number:]:
    step(value)
  return value
