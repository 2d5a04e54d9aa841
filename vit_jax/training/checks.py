"""What the processes of a run must have in common."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from vit_jax.training.result import revision

# Another version of one of these may compile another program: devices would wait for each other.
PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax')


def versions() -> dict[str, Any]:
  """Of what computes, by name."""
  found: dict[str, Any] = {'Python': platform.python_version(), 'vit_jax': revision()}
  for package in PACKAGES:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      found[package] = None
  return found
