"""Which activations the backward pass finds; it computes the others again (Chen et al. 2016).

A layer names its activations by `keep`. Of unrolled layers and on most devices `jax.checkpoint`
then keeps those that a policy names. Scanned on a TPU it would copy each of them: once to where
those of all layers are, and once from there for kernels written by hand, which take whole arrays.
There `scan` keeps them itself: products and kernels write to, and read from, the place where an
activation stays.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from vit_jax.architecture.vit import kept_names
from vit_jax.nn import tree
from vit_jax.nn.sharding import device

_tape: contextvars.ContextVar[Any] = contextvars.ContextVar('tape', default=None)


def keep(y: jax.Array, name: str) -> jax.Array:
  """`y`, which policies may keep under this name, out of `architecture.NAMES`."""
  tape = _tape.get()
  return checkpoint_name(y, name) if tape is None else tape.keep(y, name)


class Operation(Protocol):
  """What can work on activations where they stay: in arrays with those of all layers."""

  def __call__(self, y: jax.Array, *rest: Any) -> jax.Array:
    """The result for an activation by itself."""
    ...

  def store(self, stack: jax.Array, results: jax.Array, layer: jax.Array, *rest: Any) -> jax.Array:
    """`results` with that of a layer, whose activation is read from `stack`."""
    ...

  def gradient(self, stack: jax.Array, layer: jax.Array, dy: jax.Array, *rest: Any) -> tuple:
    """Cotangents of the activation and of `rest`, None for what has none, by that of the result."""
    ...


def keep_through(operation: Operation, y: jax.Array, *rest: Any, names: tuple[str, str]) -> Any:
  """operation(y, *rest); `y` and the result may be kept, under these names."""
  tape = _tape.get()
  if tape is not None and set(names) <= set(tape.names):
    return tape.through(operation, y, *rest)
  return keep(operation(keep(y, names[0]), *rest), names[1])


def checkpoint(body: Callable[..., Any], policy: str, *, scan: bool) -> Callable[..., Any]:
  """Wraps the body of a loop over layers so that the backward pass finds what a policy says.

  Args:
    body: the function of one layer.
    policy: 'none' keeps every activation for the backward pass; 'dots' the results of matrix
      products with weights; 'names' those that its own products need, and what attention gives, so
      that only norms, activations and attention weights are computed again; 'full' only the
      block's input. Or the names to keep, out of `architecture.NAMES`, separated by commas.
    scan: whether the body is scanned; without a scan the compiler must be kept from undoing the
      recomputation by common-subexpression elimination.

  Raises:
    RunError: for an unknown policy or name.
  """
  if policy == 'none':
    return body
  policies = jax.checkpoint_policies
  if policy == 'full':
    saved = policies.nothing_saveable
  elif policy == 'dots':
    saved = policies.dots_with_no_batch_dims_saveable
  else:
    saved = policies.save_only_these_names(*kept_names(policy))
  return jax.checkpoint(body, policy=saved, prevent_cse=not scan)


def stays(policy: str) -> bool:
  """Whether `scan` is the way to keep what a policy says on the devices of the mesh in context."""
  return device().platform == 'tpu' and policy not in ('none', 'dots')


def scan(
  layer: Callable[[int, Any, Any, Any], jax.Array], x: jax.Array, items: Any, shared: Any,
  policy: str, count: int = 1,
) -> jax.Array:  # fmt: skip
  """The last of x = layer(number, x, item, shared), whose backward pass finds activations in place.

  Args:
    layer: of one of the layers that take turns, by its number; may call `keep` and `keep_through`.
    x: input of the first layer; others have inputs of the same shape and dtype, which are kept.
    items: tree of arrays as `in_periods` makes them.
    shared: tree of arrays that all layers take.
    policy: as for `checkpoint`: 'full' or names.
    count: of layers that take turns.
  """
  names = () if policy == 'full' else kept_names(policy)
  periods = jax.tree.leaves(items)[0].shape[0]
  numbers = jnp.arange(periods)

  @jax.custom_vjp
  def run(x, items, shared):
    def body(x, item):
      for number, own in enumerate(apart(item, count)):
        x = layer(number, x, own, shared)
      return x, None

    return jax.lax.scan(body, x, items)[0]

  def forward(x, items, shared):
    # Layers that take turns may keep different things.
    stacks = []
    for number, own in enumerate(apart(jax.tree.map(lambda w: w[0], items), count)):
      notes = _Notes(names)
      _with_tape(notes, functools.partial(jax.eval_shape, functools.partial(layer, number)))(
        x, own, shared
      )
      stacks.append([_empty(kept, periods) for kept in notes.found])
    inputs = _put(_empty(jax.typeof(x), periods * count + 1), x, 0)

    def body(carry, item):
      inputs, stacks = carry
      i, item = item
      stacks = [*stacks]
      for number, own in enumerate(apart(item, count)):
        store = _Store(names, stacks[number], i)
        # Read once, for the norm and the sum: fusions would each read it from its place.
        x = jax.lax.optimization_barrier(_get(inputs, i * count + number))
        y = _with_tape(store, layer)(number, x, own, shared)
        inputs, stacks[number] = _put(inputs, y, i * count + number + 1), store.stacks
      return (inputs, stacks), None

    (inputs, stacks), _ = jax.lax.scan(body, (inputs, stacks), (numbers, items))
    return _get(inputs, periods * count), (inputs, stacks, items, shared)

  def backward(saved, dx):
    inputs, stacks, items, shared = saved
    weights, rebuild = _differentiable(items)
    common, rebuild_common = _differentiable(shared)

    def body(carry, item):
      dx, dcommon, dweights = carry
      i, item = item
      of_layers = []
      for number, own in reversed([*enumerate(apart(item, count))]):
        load = _Load(names, stacks[number], i)

        def apply(x, weights, common, number=number, own=own, load=load):
          given = rebuild(weights, own), rebuild_common(common, shared)
          return _with_tape(load, layer)(number, x, *given)

        x = _get(inputs, i * count + number)
        _, back = jax.vjp(apply, x, _differentiable(own)[0], common)
        dx, found, more = back(dx)
        of_layers.insert(0, found)
        dcommon = jax.tree.map(jnp.add, dcommon, more)
      found = of_layers[0]
      if count > 1:
        found = [jnp.stack(parts) for parts in zip(*of_layers, strict=True)]
      dweights = [_put(stack, y, i) for stack, y in zip(dweights, found, strict=True)]
      return (dx, dcommon, dweights), None

    room = [_empty(jax.typeof(w[0]), periods) for w in weights]
    start = dx, jax.tree.map(jnp.zeros_like, common), room
    (dx, dcommon, dweights), _ = jax.lax.scan(body, start, (numbers, items), reverse=True)
    return dx, rebuild(dweights, _none(items)), rebuild_common(dcommon, _none(shared))

  run.defvjp(forward, backward)
  return run(x, items, shared)


def in_periods(items: Any, count: int) -> Any:
  """Arrays (layers, ...) as (periods, layers of one, ...), without the second axis if that is 1."""
  return jax.tree.map(lambda w: w if count == 1 else w.reshape(-1, count, *w.shape[1:]), items)


def apart(item: Any, count: int) -> list[Any]:
  """The layers of a period of `in_periods`."""
  return [item] if count == 1 else tree.unstack(item, count)


def _with_tape(tape: Any, function: Callable[..., Any]) -> Callable[..., Any]:
  """`function`, in which `keep` and `keep_through` are those of `tape`."""

  def run(*args):
    token = _tape.set(tape)
    try:
      return function(*args)
    finally:
      _tape.reset(token)

  return run


class _Notes:
  """Finds out what a layer keeps: types in the order in which it does."""

  def __init__(self, names: Sequence[str]):
    self.names, self.found = names, []

  def keep(self, y, name):
    if name in self.names:
      self.found.append(jax.typeof(y))
    return y

  def through(self, operation, y, *rest):
    result = operation(y, *rest)
    self.found += [jax.typeof(y), jax.typeof(result)]
    return result


class _Store:
  """Puts what a layer keeps where it stays, and gives it to the layer from there."""

  def __init__(self, names: Sequence[str], stacks: Sequence[jax.Array], layer: jax.Array):
    self.names, self.stacks, self.layer, self.next = names, [*stacks], layer, 0

  def _put(self, y) -> int:
    number, self.next = self.next, self.next + 1
    self.stacks[number] = _put(self.stacks[number], y, self.layer)
    return number

  def keep(self, y, name):
    return _get(self.stacks[self._put(y)], self.layer) if name in self.names else y

  def through(self, operation, y, *rest):
    number, self.next = self._put(y), self.next + 1
    stack, results = self.stacks[number : number + 2]
    self.stacks[number + 1] = results = operation.store(stack, results, self.layer, *rest)
    return _get(results, self.layer)


class _Load:
  """Gives a layer that is computed again what it kept; gradients flow as if it were new."""

  def __init__(self, names: Sequence[str], stacks: Sequence[jax.Array], layer: jax.Array):
    self.names, self.stacks, self.layer, self.next = names, stacks, layer, 0

  def _take(self) -> jax.Array:
    stack, self.next = self.stacks[self.next], self.next + 1
    return stack

  def keep(self, y, name):
    return _instead(y, _get(self._take(), self.layer)) if name in self.names else y

  def through(self, operation, y, *rest):
    stack, results = self._take(), self._take()

    @jax.custom_vjp
    def run(y, rest, stack, result, layer):
      del y, rest, stack, layer
      return result

    def forward(y, rest, stack, result, layer):
      del y
      return result, (rest, stack, layer)

    def backward(saved, dy):
      rest, stack, layer = saved
      dy, *others = operation.gradient(stack, layer, dy, *rest)
      return dy, tuple(others), None, None, None

    run.defvjp(forward, backward)
    return run(y, rest, stack, _get(results, self.layer), self.layer)


@jax.custom_vjp
def _instead(y, kept):
  """`kept`, the value of `y` that was computed before: all of the gradient goes to `y`."""
  del y
  return kept


_instead.defvjp(lambda y, kept: (kept, None), lambda _, dy: (dy, None))


def _get(stack: jax.Array, layer: Any) -> jax.Array:
  return jax.lax.dynamic_index_in_dim(stack, layer, 0, keepdims=False, allow_negative_indices=False)


def _put(stack: jax.Array, y: jax.Array, layer: Any) -> jax.Array:
  stack = jax.lax.dynamic_update_index_in_dim(stack, y, layer, 0, allow_negative_indices=False)
  # Or who reads it would be given y itself, which would then exist twice.
  return jax.lax.optimization_barrier(stack)


def _empty(kept: Any, count: int) -> jax.Array:
  """Room for `count` arrays of a type; on a TPU nothing is written to it."""
  shape, mesh = (count, *kept.shape), kept.sharding.mesh
  if device().platform != 'tpu':
    zeros = jnp.zeros if mesh.empty else lambda *args: jnp.zeros(*args, out_sharding=laid)
    laid = jax.sharding.PartitionSpec(None, *kept.sharding.spec)
    return zeros(shape, kept.dtype)

  def room(shape):
    return pl.pallas_call(
      lambda _: None,
      out_shape=jax.ShapeDtypeStruct(shape, kept.dtype),
      out_specs=pl.BlockSpec(memory_space=pl.ANY),
      cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=0),
      name='room',
    )()

  if mesh.empty:
    return room(shape)
  laid = jax.sharding.PartitionSpec(None, *kept.sharding.spec)
  local = jax.sharding.NamedSharding(mesh, laid).shard_shape(shape)
  return jax.shard_map(lambda: room(local), in_specs=(), out_specs=laid, check_vma=False)()


def _differentiable(held: Any) -> tuple[list[jax.Array], Callable[[Sequence[Any], Any], Any]]:
  """The leaves that have gradients, and what puts such leaves into a tree of the same structure."""
  leaves, structure = jax.tree.flatten(held)
  places = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

  def rebuild(new: Sequence[Any], other: Any) -> Any:
    filled = structure.flatten_up_to(other)
    for i, leaf in zip(places, new, strict=True):
      filled[i] = leaf
    return structure.unflatten(filled)

  return [leaves[i] for i in places], rebuild


def _none(held: Any) -> Any:
  """What stands for the gradient of leaves that have none."""
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), held)
