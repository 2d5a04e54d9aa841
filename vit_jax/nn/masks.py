"""Which tokens may attend to which, described instead of written out.

An array of queries times keys is as large as the scores that fused kernels never write to memory. A
`Mask` says the same in a few words and at most one number per token; each implementation of
attention works out what it needs where it needs it, and `Mask.visible` is what they must agree on.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['keys', 'prefix', 'segments', 'start', 'pairs'],
  meta_fields=['causal', 'window'],
)
@dataclasses.dataclass(frozen=True)
class Mask:
  """A query sees a key if everything that is said here allows it; `Mask()` allows all.

  Attributes:
    causal: only keys at its own place or before it (and those of `prefix`).
    window: only keys at most so many places before and after it, or None for any.
    keys: which keys there are, bool (batch, keys), or None for all: False for padding.
    prefix: keys that `causal` does not apply to, bool (batch, keys): the image and the question of
      a prefix language model (Raffel et al. 2020, section 3.2.1).
    segments: of queries and of keys, the image or document they belong to, int (batch, queries)
      and (batch, keys): only keys of the same number. Places count on across segments.
    start: place of the first query among the keys, int () or (batch,), or None for 0.
    pairs: what nothing shorter says: which keys each of the first so many queries sees, bool (1 or
      batch, some, keys); it holds for no later ones. `attention.attend` keeps these apart.
  """

  causal: bool = False
  window: tuple[int, int] | None = None
  keys: Any = None
  prefix: Any = None
  segments: tuple[Any, Any] | None = None
  start: Any = None
  pairs: Any = None

  @property
  def kinds(self) -> tuple[str, ...]:
    """Names of what it says, without the numbers."""
    said = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
    return tuple(name for name, value in said if value is not None and value is not False)

  def replace(self, **changes: Any) -> Mask:
    """One that differs in these attributes."""
    return dataclasses.replace(self, **changes)

  def visible(self, queries: int, keys: int) -> jax.Array | None:
    """The array that is described: bool (1 or batch, queries, keys), or None if all is allowed."""
    parts = []
    if self.causal or self.window:
      start = 0 if self.start is None else jnp.asarray(self.start)[..., None, None]
      apart = jnp.arange(keys) - (jnp.arange(queries)[:, None] + start)
      apart = apart.reshape(-1, queries, keys)
      if self.causal:
        past = apart <= 0
        parts.append(past if self.prefix is None else past | self.prefix[:, None, :])
      if self.window:
        before, after = self.window
        parts.append((apart >= -before) & (apart <= after))
    if self.keys is not None:
      parts.append(self.keys[:, None, :])
    if self.segments is not None:
      of_queries, of_keys = self.segments
      parts.append(of_queries[:, :, None] == of_keys[:, None, :])
    if self.pairs is not None:
      others = ((0, 0), (0, queries - self.pairs.shape[1]), (0, 0))
      parts.append(jnp.pad(self.pairs, others, constant_values=True))
    if not parts:
      return None
    seen = functools.reduce(jnp.logical_and, parts)
    return jnp.broadcast_to(seen, (seen.shape[0], queries, keys))

  def part(self, first: Any, count: int) -> Mask:
    """That of `count` queries from number `first` on, which may be known only at run time."""
    start = first if self.start is None else self.start + first
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, count, axis=1)  # noqa: E731
    segments = None if self.segments is None else (cut(self.segments[0]), self.segments[1])
    pairs = None if self.pairs is None else cut(self.pairs)
    return self.replace(start=start, segments=segments, pairs=pairs)

  def rows(self, take: Any) -> Mask:
    """`take` applied to everything that has a batch axis."""
    picked = lambda x: take(x) if x is not None and jnp.ndim(x) else x  # noqa: E731
    segments = None if self.segments is None else tuple(map(take, self.segments))
    pairs = self.pairs if self.pairs is None or len(self.pairs) == 1 else take(self.pairs)
    return self.replace(
      keys=picked(self.keys), prefix=picked(self.prefix), segments=segments,
      start=picked(self.start), pairs=pairs,
    )  # fmt: skip

  def halves(self, count: int) -> tuple[Mask, Mask]:
    """That of the first `count` queries, which `pairs` is of, and that of the others."""
    start = count if self.start is None else self.start + count
    before = after = self.segments
    if self.segments is not None:
      of_queries, of_keys = self.segments
      before, after = (of_queries[:, :count], of_keys), (of_queries[:, count:], of_keys)
    placed = self.causal or self.window
    return self.replace(segments=before), self.replace(
      segments=after, pairs=None, start=start if placed else self.start
    )


FULL = Mask()
