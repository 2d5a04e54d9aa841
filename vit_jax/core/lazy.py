"""Names of modules that are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def getter(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
  """A module's `__getattr__` (PEP 562).

  Args:
    module: its name.
    names: what it offers, and the module in which that is defined.
  """

  def get(name: str) -> Any:
    if name not in names:
      raise AttributeError(f'module {module!r} has no attribute {name!r}')
    return getattr(importlib.import_module(names[name]), name)

  return get
