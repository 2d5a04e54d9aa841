"""Arrays of a checkpoint: read into their layout, and their checksums.

They are Zarr in OCDBT, whichever version of Orbax wrote them. TensorStore reads them, so that each
process gets what it needs and finds what is damaged without waiting for others.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore

from vit_jax.core import paths
from vit_jax.nn import sharding, tree

FOLDER = 'state'  # of the arrays, in the directory of a checkpoint, as Orbax names it
# TensorStore would wait for ever for a host that is silent, also where Orbax writes by it.
for _name, _value in (('CONNECT_TIMEOUT_SECONDS', '10'), ('LOW_SPEED_TIME_SECONDS', '20'),
                      ('LOW_SPEED_LIMIT_BYTES', '1')):  # fmt: skip
  os.environ.setdefault(f'TENSORSTORE_CURL_{_name}', _value)
_AT_A_TIME = 2**26  # bytes that are read at once, but for an array that is larger


def checksums(leaves: Mapping[str, Any]) -> dict[str, int]:
  """`checksum` of each array, by the devices that hold them, however they are laid out."""
  names = sorted(leaves)
  layers = [name for name in names if isinstance(leaves[name], tree.Layers)]
  arrays = [name for name in names if name not in set(layers)]
  sums = _device_checksums([leaves[name] for name in arrays])
  found = dict(zip(arrays, np.asarray(sums).tolist(), strict=True))
  for name in layers:  # alike ones share a program; each is waited for: devices exchange sums in it
    found[name] = sum(np.asarray(_device_checksums(leaves[name].parts)).tolist()) % 2**32
  return found


@jax.jit
def _device_checksums(leaves: list[jax.Array]) -> jax.Array:

  def one(leaf: jax.Array) -> jax.Array:
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    bits = jax.lax.bitcast_convert_type(leaf, f'uint{8 * leaf.dtype.itemsize}')
    return bits.astype(jnp.uint32).sum(dtype=jnp.uint32)

  return jnp.stack([one(leaf) for leaf in leaves])


def checksum(array: Any) -> int:
  """The sum of the bit patterns of the elements modulo 2**32.

  It does not depend on their order, so that every device can add up what it has. Any one bit that
  flips changes it.
  """
  array = np.asarray(array)
  return int(array.view(f'u{array.dtype.itemsize}').sum(dtype=np.uint32))


def _open(index: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
  """The arrays of a checkpoint."""
  context = _context()  # one copy of the index for all
  opening = {
    name: tensorstore.open(
      {
        'driver': 'zarr3', 'kvstore': {**index, 'path': f'{name}/'},
        'fill_missing_data_reads': False,
      },
      open=True, read=True, context=context,
    )
    for name in names
  }  # fmt: skip
  return {name: array.result() for name, array in opening.items()}


def _context() -> tensorstore.Context:
  # Its own defaults go on for a quarter of an hour.
  retries = {'max_retries': 6, 'initial_delay': '200ms', 'max_delay': '4s'}
  return tensorstore.Context({'gcs_request_retries': retries, 's3_request_retries': retries})


@contextlib.contextmanager
def _index(path: paths.Path) -> Iterator[dict[str, Any]]:
  """Where the arrays are, as TensorStore has it; what it cannot reach is copied from there."""
  if isinstance(path, paths.StorePath) and path.scheme not in ('gs', 's3'):
    with paths.copied(path) as copy, _index(copy) as index:
      yield index
    return
  # TensorStore takes no '..'.
  base: dict[str, Any] = {'driver': 'file', 'path': f'{(path / FOLDER).resolve()}/'}
  if isinstance(path, paths.StorePath):
    bucket, _, name = path.key.partition('/')
    base = {'driver': 'gcs', 'bucket': bucket, 'path': f'{name}/{FOLDER}/'}
    if path.scheme == 's3':
      base |= {'driver': 's3', 'aws_credentials': {'type': 'default'}}
      # What other libraries take from there themselves.
      for key, variables in (('endpoint', ('AWS_ENDPOINT_URL_S3', 'AWS_ENDPOINT_URL')),
                             ('aws_region', ('AWS_REGION', 'AWS_DEFAULT_REGION'))):  # fmt: skip
        if given := next(filter(None, map(os.environ.get, variables)), None):
          base[key] = given
  yield {'driver': 'ocdbt', 'base': base}


def shapes(path: paths.Path) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes by name, of a checkpoint whose facts do not say them."""
  with _index(path) as index:
    keys = tensorstore.KvStore.open(index, context=_context()).result().list().result()
    names = [key.decode().removesuffix('/zarr.json') for key in keys if key.endswith(b'/zarr.json')]
    return {
      name: jax.ShapeDtypeStruct(array.shape, array.dtype.numpy_dtype)
      for name, array in _open(index, names).items()
    }


def load(
  path: paths.Path, wanted: Mapping[str, jax.ShapeDtypeStruct], stored: Mapping[str, str],
  finite: bool,
) -> tuple[dict[str, Any], dict[str, int], list[str]]:  # fmt: skip
  """Reads arrays.

  Args:
    path: of the checkpoint.
    wanted: by name.
    stored: their names on disk.
    finite: whether to look for values that are not.

  Returns:
    By name this process's parts of global arrays, as their shardings say, or NumPy's; checksums of
    which those of all processes add up; and names of what is not finite.
  """
  with _index(path) as index:
    opened = _open(index, [stored[name] for name in wanted])
    for name, leaf in wanted.items():
      array = opened[stored[name]]
      if (array.shape, array.dtype.numpy_dtype) != (leaf.shape, leaf.dtype):
        raise ValueError(f'{name} is {array.dtype.numpy_dtype}{array.shape} on disk')
    leaves, sums, odd = {}, {}, []
    for names in _windows(wanted):
      reading = {name: _begin(opened[stored[name]], wanted[name]) for name in names}
      for name in names:
        leaf, blocks = wanted[name], reading.pop(name)()
        own = _counted_here(leaf)
        sums[name] = sum(checksum(block) for key, block in blocks.items() if key in own) % 2**32
        if finite and not all(np.isfinite(block).all() for block in blocks.values()):
          odd.append(name)
        leaves[name] = sharding.assembled(leaf, blocks)
      jax.block_until_ready([leaves[name] for name in names])
    return leaves, sums, odd


def _begin(
  array: Any, leaf: jax.ShapeDtypeStruct
) -> Callable[[], dict[sharding.Bounds, np.ndarray]]:
  """Begins to read this process's parts of an array; what is returned waits for them.

  Parts that make up one block are read as that: what lies on disk as one piece is decoded once.
  """
  parts = sharding.parts(leaf)
  around = [
    (min(start for start, _ in axis), max(stop for _, stop in axis))
    for axis in zip(*parts, strict=True)
  ]
  if _volume(around) > sum(map(_volume, parts)):
    reading = {part: array[sharding.slices(part)].read() for part in parts}
    return lambda: {part: block.result() for part, block in reading.items()}
  whole, first = array[sharding.slices(around)].read(), [start for start, _ in around]

  def inside(part: sharding.Bounds) -> tuple[slice, ...]:
    return sharding.slices((a - at, b - at) for (a, b), at in zip(part, first, strict=True))

  return lambda: {part: whole.result()[inside(part)] for part in parts}


def _volume(bounds: Collection[tuple[int, int]]) -> int:
  return math.prod(stop - start for start, stop in bounds)


def _windows(wanted: Mapping[str, jax.ShapeDtypeStruct]) -> list[list[str]]:
  """Names of arrays to be read at once: as many as make up `_AT_A_TIME`, and at least one."""
  windows, room = [], 0
  for name, leaf in wanted.items():
    here = sum(map(_volume, sharding.parts(leaf))) * leaf.dtype.itemsize
    if here > room:
      windows.append([])
      room = _AT_A_TIME
    windows[-1].append(name)
    room -= here
  return windows


def _counted_here(leaf: jax.ShapeDtypeStruct) -> set[sharding.Bounds]:
  """Of the parts that several processes hold, each is counted by the first of them."""
  if leaf.sharding is None:
    return set(sharding.parts(leaf)) if jax.process_index() == 0 else set()
  first: dict[sharding.Bounds, int] = {}
  for device, part in leaf.sharding.devices_indices_map(leaf.shape).items():
    if part is not None:
      process, where = int(device.process_index or 0), sharding.bounds(part, leaf.shape)
      first[where] = min(first.get(where, process), process)
  return {where for where, process in first.items() if process == jax.process_index()}
