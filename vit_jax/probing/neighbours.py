"""Weighted nearest neighbours, as DINO judges features (Caron et al. 2021, appendix F.1).

Features are compared by the cosine of the angle between them. Each of the k nearest neighbours in
the bank votes for its class with exp(cosine / temperature).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.probing.alone import alone
from vit_jax.probing.settings import Settings

# Similarities that are held at a time: queries, and examples of the bank.
QUERIES, BANK = 1024, 1 << 16


def nearest(
  queries: np.ndarray, bank: np.ndarray, count: int, *, own: np.ndarray | None = None,
  chunk: int = QUERIES, bank_chunk: int = BANK,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
  """The nearest neighbours of each query, exactly, the nearest first.

  Args:
    queries: (queries, features).
    bank: (examples, features).
    count: how many neighbours.
    own: where each query itself is in the bank, int (queries,), -1 where it is not: that is no
      neighbour.
    chunk: queries at a time.
    bank_chunk: examples of the bank at a time.

  Returns:
    Their places in the bank, int64 (queries, count), and cosines, float32 (queries, count). Of
    equal ones the first in the bank comes first.

  Raises:
    RunError: if the bank has not as many.
  """
  most = len(bank) - (own is not None)
  if count > most:
    raise RunError(f'{count} nearest neighbours are asked for, and there are {most} examples')
  own = np.full(len(queries), -1) if own is None else own
  places = np.zeros((len(queries), count), np.int64)
  cosines = np.zeros((len(queries), count), np.float32)
  chunk, bank_chunk = min(chunk, len(queries)), min(bank_chunk, len(bank))
  with alone():
    parts = [
      (first, _put(bank[first : first + bank_chunk], bank_chunk))
      for first in range(0, len(bank), bank_chunk)
    ]
    for at in range(0, len(queries), chunk):
      rows = slice(at, at + chunk)
      here = _put(queries[rows], chunk)
      left_out = jnp.asarray(np.pad(own[rows], (0, chunk - len(own[rows])), constant_values=-1))
      best = jnp.full((chunk, count), -jnp.inf), jnp.zeros((chunk, count), jnp.int32)
      for first, part in parts:
        best = _merge(*best, here, part, left_out, first, len(bank))
      found, which = jax.device_get(best)
      size = len(queries[rows])
      cosines[rows], places[rows] = found[:size], which[:size]
  return places, cosines


def _put(x: np.ndarray, rows: int) -> jax.Array:
  """Unit vectors on the device, with more rows of zeros."""
  return _unit(jnp.asarray(np.pad(np.asarray(x, np.float32), ((0, rows - len(x)), (0, 0)))))


@jax.jit
def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _merge(cosines, places, queries, part, own, first, total):
  """The nearest of those that were found and of a part of the bank."""
  own_places = first + jnp.arange(len(part))
  found = jnp.einsum('qd,bd->qb', queries, part, precision='highest')
  there = (own_places < total) & (own_places != own[:, None])
  found = jnp.where(there, found, -jnp.inf)
  # What was found before is of earlier examples: of equal ones it comes first.
  both = jnp.concatenate([cosines, found], 1)
  where = jnp.concatenate([places, jnp.broadcast_to(own_places, found.shape)], 1)
  best, at = jax.lax.top_k(both, cosines.shape[1])
  return best, jnp.take_along_axis(where, at, 1)


def votes(
  labels: np.ndarray, places: np.ndarray, cosines: np.ndarray, count: int, classes: int,
  temperature: float = Settings.temperature,
) -> np.ndarray:  # fmt: skip
  """Shares of the votes of each class, float64 (queries, classes).

  Args:
    labels: of the bank.
    places, cosines: of `nearest`.
    count: of the neighbours that vote.
    classes: how many there are.
    temperature: of the votes.
  """
  near = cosines[:, :count].astype(np.float64)
  weights = np.exp((near - near[:, :1]) / temperature)
  of = labels[places[:, :count]]
  flat = np.arange(len(places))[:, None] * classes + of
  found = np.bincount(flat.ravel(), weights.ravel(), len(places) * classes)
  return found.reshape(len(places), classes) / weights.sum(1, keepdims=True)


def usable(counts: Sequence[int], examples: int) -> list[int]:
  """Those of the counts for which a bank has enough examples; all of it if none is."""
  return [count for count in counts if count <= examples] or [examples]
