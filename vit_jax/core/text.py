"""Numbers and errors as people and JSON read them."""

from __future__ import annotations

from typing import Any

import numpy as np


def number(value: Any) -> str:
  """For people: counts in full, everything else to four digits; of several the first eight."""
  if value is None:
    return '-'
  if isinstance(value, list):
    return ' '.join([*map(number, value[:8]), *(['...'] if value[8:] else [])])
  return f'{value:,.0f}' if float(value).is_integer() else f'{value:,.4g}'


def plain(value: Any) -> Any:
  """An array as JSON: a number, or a list in which None stands for what is not finite."""
  value = np.asarray(value, np.float64)
  if not value.ndim:
    return float(value)
  return [float(item) if np.isfinite(item) else None for item in value]


def first_line(error: BaseException) -> str:
  """Of what an error says; its class if it says nothing."""
  return (str(error).strip() or type(error).__name__).partition('\n')[0]
