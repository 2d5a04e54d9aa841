"""Where small problems are solved: on one device of this process, whatever the mesh is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from vit_jax.nn import sharding


@contextlib.contextmanager
def alone() -> Iterator[None]:
  """A context with one device: all processes find the same, and no mesh changes a bit of it."""
  with jax.set_mesh(sharding.make_mesh('data', jax.local_devices()[:1])):
    yield
