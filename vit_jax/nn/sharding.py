"""Where arrays live: the only file that names mesh axes.

Models speak of logical axes ('batch', 'embed', 'heads', 'mlp'); RULES says which mesh axes each of
them is split over. Meshes are Explicit: shardings are part of every array's type, so a layout that
does not fit is an error at trace time, and optimizer state inherits its layout from the parameters.
Without a mesh in context every helper here degrades to plain single-device JAX.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from vit_jax.core.errors import RunError
from vit_jax.nn import tree

AXES = ('data', 'fsdp', 'tensor')
# data: batch only. fsdp: batch and parameters. tensor: heads and MLP features.
RULES = {'batch': ('data', 'fsdp'), 'embed': 'fsdp', 'heads': 'tensor', 'mlp': 'tensor'}


def slice_of(device: Any) -> int:
  """Which TPU slice a device is in; 0 for all that is not a TPU."""
  # GPUs number their machines so. There, a layout such as 4x8x1 says what stays within a machine.
  return getattr(device, 'slice_index', 0) if device.platform == 'tpu' else 0


def by_slice(devices: Sequence[Any] | None = None) -> list[list[Any]]:
  """Devices, those of all processes if not given, as one list for each TPU slice."""
  found: dict[int, list[Any]] = {}
  for each in devices or jax.devices():
    found.setdefault(slice_of(each), []).append(each)
  return [found[number] for number in sorted(found)]


def make_mesh(layout: str, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
  """The mesh over all devices.

  The network between TPU slices is much slower than the links within them: only 'data' crosses it,
  with its outermost part, so that nothing but sums of gradients and metrics go through it.

  Args:
    layout: 'data', 'fsdp' or 'tensor' to put every device of a slice on that axis, and the slices
      on 'data'; or the sizes of the three axes in this order, '2x4x1', one of which may be -1.
    devices: those of all processes if not given.

  Raises:
    RunError: if the sizes do not multiply to the number of devices, the slices do not divide
      'data', or the sizes do not fit the torus of a slice.
  """
  groups = by_slice(devices)
  several, each = len(groups), len(groups[0])
  count = several * each
  if layout in AXES:
    sizes = [each if axis == layout else 1 for axis in AXES]
    sizes[0] *= several
  else:
    try:
      sizes = [int(size) for size in layout.split('x')]
    except ValueError:
      sizes = []
    if len(sizes) != len(AXES) or sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
      raise RunError(f'mesh={layout!r}: write data, fsdp, tensor or sizes such as 2x4x1')
    if -1 in sizes:
      sizes[sizes.index(-1)] = count // -math.prod(sizes)
  if math.prod(sizes) != count:
    raise RunError(f'mesh={layout!r} is for {math.prod(sizes)} devices, but there are {count}')
  data, *rest = sizes
  if data % several:
    raise RunError(
      f'mesh={layout!r}: the first size, data, must be a multiple of the {several} slices, because '
      f'the other axes cannot cross them: {several}x{each}x1, for example'
    )
  try:
    parts = [jax.make_mesh((data // several, *rest), AXES, devices=group) for group in groups]
  except NotImplementedError:
    # An axis that wound through parts of two sides of the torus would have slow collectives.
    sides = 'x'.join(str(side + 1) for side in groups[0][-1].coords)
    own = 'x'.join(map(str, (data // several, *rest)))
    within = f', {own} in each of {several} slices' if several > 1 else ''
    raise RunError(
      f'mesh={layout!r}{within}: each size must be a product of sides of the chips, which are '
      f'{sides}'
    ) from None
  joined = np.concatenate([part.devices for part in parts])
  return jax.sharding.Mesh(joined, AXES, axis_types=parts[0].axis_types)


def spec(*axes: str | None) -> P | None:
  """Logical axis names, one per dimension -> PartitionSpec on the mesh in context (or None)."""
  if jax.sharding.get_abstract_mesh().empty:
    return None
  return P(*(RULES[axis] if axis else None for axis in axes))


def shards(axis: str) -> int:
  """Into how many parts the mesh in context cuts a logical axis."""
  mesh = jax.sharding.get_abstract_mesh()
  names = RULES[axis]
  names = (names,) if isinstance(names, str) else names
  return 1 if mesh.empty else math.prod(mesh.shape[name] for name in names)


def einsum(eqn: str, x: jax.Array, w: jax.Array, *, out: tuple[str | None, ...]) -> jax.Array:
  """Einsum in the dtype of `x` whose result is laid out as the logical axes `out`."""
  return jnp.einsum(eqn, x, w.astype(x.dtype), out_sharding=spec(*out))


def gather(w: jax.Array, *axes: str | None) -> jax.Array:
  """`w`, whose logical axes are `axes`, with the whole 'embed' axis on each device.

  Its gradient is summed and cut up again. Left to itself the compiler of TPUs cuts each product in
  as many parts as there are devices, to hide the exchange behind them, and makes them slower.
  """
  if 'embed' not in axes or shards('embed') == 1:
    return w
  return jax.sharding.reshard(w, spec(*(None if axis == 'embed' else axis for axis in axes)))


def whole(x: jax.Array) -> jax.Array:
  """`x` with all of it on every device."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.sharding.reshard(x, P(*(None,) * x.ndim))


def reshard(x: jax.Array, *axes: str | None) -> jax.Array:
  """`x` laid out as its logical axes say."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.sharding.reshard(x, spec(*axes))


def device() -> Any:
  """What kind of device the mesh in context is made of: has `platform` and `device_kind`."""
  abstract = jax.sharding.get_abstract_mesh().abstract_device
  return jax.devices()[0] if abstract is None else abstract


def per_shard(function: Any, inputs: Sequence[Any], out: Any) -> Any:
  """`function` applied to each device's part of its arguments.

  Args:
    function: of arrays or trees of arrays, or None where there is no argument.
    inputs: logical axes of each argument, or a tree of them, or None.
    out: logical axes of the result, or a tree of them.
  """
  if jax.sharding.get_abstract_mesh().empty:
    return function

  def axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(name is None or isinstance(name, str) for name in x)

  specs = jax.tree.map(lambda names: spec(*names), tuple(inputs), is_leaf=axes)
  out_specs = jax.tree.map(lambda names: spec(*names), out, is_leaf=axes)
  return jax.shard_map(function, in_specs=specs, out_specs=out_specs, check_vma=False)


def ring(visit: Any, own: Any, moving: Any) -> tuple[Any, Any]:
  """Within `per_shard`: a part of the batch that each device has goes around all of them.

  Args:
    visit: called on every device with `own`, the `moving` that has come to it, and the number of
      the turn, which is 0 where that is its own; returns both, changed.
    own: arrays of the device.
    moving: arrays that are passed on.

  Returns:
    `own`; and `moving`, at home again.
  """
  count = shards('batch')
  if count == 1:
    return visit(own, moving, 0)
  onward = [(at, (at + 1) % count) for at in range(count)]

  def turn(both: Any, number: jax.Array) -> Any:
    own, moving = visit(*both, number)
    passed = jax.tree.map(lambda x: jax.lax.ppermute(x, RULES['batch'], onward), moving)
    return (own, passed), None

  return jax.lax.scan(turn, (own, moving), jnp.arange(count))[0]


def total(x: jax.Array) -> jax.Array:
  """Within `per_shard`: the sum over all parts of the batch."""
  return x if shards('batch') == 1 else jax.lax.psum(x, RULES['batch'])


def param(init, rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> nnx.Param:
  """A float32 parameter, born sharded.

  Args:
    init: called as init(key, shape, sharding).
    rngs: source of the key.
    shape: of the parameter.
    axes: logical axis name of each dimension, or None.

  Raises:
    RunError: if the mesh does not divide a dimension.
  """
  for size, axis in zip(shape, axes, strict=True):
    if axis and size % shards(axis):
      raise RunError(
        f'a parameter of shape {shape} has {size} {axis!r} features, which the mesh cannot cut '
        f'into {shards(axis)} equal parts: choose another mesh or model size'
      )
  return nnx.Param(init(rngs.params(), shape, spec(*axes)))


def fill_shardings(abstract: Any) -> Any:
  """ShapeDtypeStructs with a concrete sharding each, as restoring a checkpoint wants them."""
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: a.update(sharding=device), abstract)
  return jax.tree.map(
    lambda a: a.update(sharding=NamedSharding(mesh, a.sharding.spec if a.sharding else P())),
    abstract,
  )


Bounds = tuple[tuple[int, int], ...]  # where a part of an array begins and ends along each axis


def bounds(part: Any, shape: tuple[int, ...]) -> Bounds:
  """Of a part that is given by slices."""
  return tuple(cut.indices(size)[:2] for cut, size in zip(part, shape, strict=True))


def slices(part: Iterable[tuple[int, int]]) -> tuple[slice, ...]:
  """The inverse of `bounds`."""
  return tuple(slice(start, stop) for start, stop in part)


def parts(leaf: jax.ShapeDtypeStruct) -> list[Bounds]:
  """The different parts of an array that this process holds; without a sharding all of it."""
  if leaf.sharding is None:
    return [tuple((0, size) for size in leaf.shape)]
  own = leaf.sharding.addressable_devices_indices_map(leaf.shape).values()
  return list(dict.fromkeys(bounds(part, leaf.shape) for part in own if part is not None))


def assembled(leaf: jax.ShapeDtypeStruct, blocks: Mapping[Bounds, np.ndarray]) -> Any:
  """An array from its `parts`: a global one as its sharding says, or NumPy's.

  Of `tree.Layers` one for each layer.
  """
  if isinstance(leaf, tree.Layers):
    at = leaf.axis
    layers = []
    for number, part in enumerate(leaf.parts):
      own = {(*b[:at], *b[at + 1 :]): block.take(number, at) for b, block in blocks.items()}
      layers.append(assembled(part, own))
    return tree.Layers(layers, at)
  if leaf.sharding is None:
    (block,) = blocks.values()
    return block
  return jax.make_array_from_callback(
    leaf.shape, leaf.sharding, lambda part: blocks[bounds(part, leaf.shape)]
  )


def on_hosts(leaf: tree.Layers, turn: int) -> jax.Array:
  """Layers as one array, in the memory of hosts: the devices need no room for it.

  Args:
    leaf: on the devices.
    turn: processes that hold the same are listed in an order that begins with another one for each
      number: the first is the one that writes.

  Returns:
    An array of which each process has what its devices hold, once.
  """
  whole = leaf.sharding
  if isinstance(whole, NamedSharding):
    whole = _one_copy_each(whole, turn)
  whole = whole.with_memory_kind('pinned_host')
  shards = [{shard.device: shard.data for shard in part.addressable_shards} for part in leaf.parts]
  blocks = []
  for device in whole.addressable_devices_indices_map(leaf.shape):
    there = SingleDeviceSharding(device, memory_kind='pinned_host')
    # Not `np.asarray` of what is on the device: it would be kept as long as that.
    parts = jax.device_put([held[device] for held in shards], there)
    blocks.append(jax.device_put(np.stack(jax.device_get(parts), leaf.axis), there))
  return jax.make_array_from_single_device_arrays(leaf.shape, whole, blocks)


def _one_copy_each(layout: NamedSharding, turn: int) -> NamedSharding:
  """A layout without the devices that hold what another one of the same process holds, too."""
  mesh: Any = layout.mesh
  axes = [(part,) if isinstance(part, str) else part or () for part in layout.spec]
  used = [axis for part in axes for axis in part]
  rest = [axis for axis in mesh.axis_names if axis not in used]
  order = [mesh.axis_names.index(axis) for axis in (*rest, *used)]
  copies = mesh.devices.transpose(order).reshape(-1, *(mesh.shape[axis] for axis in used))
  kept: list[np.ndarray] = []
  seen: set[int] = set()
  for number in range(len(copies)):
    copy = copies[number : number + 1]
    owners = {device.process_index for device in copy.flat}
    if owners - seen:
      kept.append(copy)
      seen |= owners
  devices = np.roll(np.concatenate(kept), turn, axis=0)
  return NamedSharding(jax.sharding.Mesh(devices, ('copies', *used)), layout.spec)


class BatchLayout:
  """Which rows of a global batch this process holds, and how they become one global array."""

  def __init__(self, batch_size: int):
    """Raises RunError unless the mesh in context divides `batch_size`, which must be positive."""
    if batch_size < 1:
      raise RunError(f'batch_size={batch_size} must be at least 1')
    parts = shards('batch')
    if batch_size % parts:
      lower = batch_size - batch_size % parts
      raise RunError(
        f'batch_size={batch_size} cannot be divided among the {parts} devices of the data and '
        f'fsdp axes: try {f"{lower} or " if lower else ""}{lower + parts}'
      )
    mesh = jax.sharding.get_mesh()
    self.batch_size = batch_size
    self._sharding = None if mesh.empty else NamedSharding(mesh, P(RULES['batch']))
    blocks = {(0, batch_size)}
    if self._sharding:
      indices = self._sharding.addressable_devices_indices_map((batch_size,))
      blocks = {index[0].indices(batch_size)[:2] for index in indices.values() if index}
    self.rows: list[int] = [row for start, stop in sorted(blocks) for row in range(start, stop)]

  @classmethod
  def of_at_least(cls, batch_size: int, *, together: int = 1) -> BatchLayout:
    """The smallest batch of at least so many rows that the mesh in context divides.

    Args:
      batch_size: in rows.
      together: how many rows are made at once, and must be of one process.
    """
    if batch_size < 1:
      return cls(batch_size)
    parts = shards('batch')
    processes = parts // len(cls(parts).rows)  # that hold different rows
    unit = math.lcm(parts, processes * together)
    return cls(-(-batch_size // unit) * unit)

  def local(self, x: jax.Array) -> np.ndarray:
    """Of an array over the global batch the rows that this process holds, in their order."""
    if self._sharding is None or x.is_fully_addressable:
      return np.asarray(x)[self.rows] if len(self.rows) != len(x) else np.asarray(x)
    found: dict[int, np.ndarray] = {}
    for shard in x.addressable_shards:
      start, _, _ = shard.index[0].indices(self.batch_size)
      found |= {start + at: row for at, row in enumerate(np.asarray(shard.data))}
    return np.stack([found[row] for row in self.rows])

  def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows, on host -> the global batch, on the devices of the mesh.

    Numbers of examples stay on the host: they may be too large for 32 bits.
    """
    batch = {name: value for name, value in batch.items() if name != 'index'}
    sharding = self._sharding
    if sharding is None:
      return {key: jnp.asarray(value) for key, value in batch.items()}
    first = {row: at for at, row in enumerate(self.rows)}

    def put(x: np.ndarray) -> jax.Array:
      def block(index: Any) -> np.ndarray:
        start, stop, _ = index[0].indices(self.batch_size)
        return x[first[start] : first[start] + stop - start]

      shape = (self.batch_size, *x.shape[1:])
      return jax.make_array_from_callback(shape, sharding, block)

    return {key: put(value) for key, value in batch.items()}
