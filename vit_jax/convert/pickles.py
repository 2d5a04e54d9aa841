"""PyTorch's zip files without PyTorch: tensors and dicts of them, nothing else is brought to life.

Covers `torch.save` of a state dict, of a whole module, or of a dict that holds several of them, and
TorchScript archives, in which OpenAI published CLIP. Every class that a file asks for is either one
of a short list or an inert stand-in; no code of the file runs.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import pickletools
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax.core import paths
from vit_jax.core.errors import RunError

_STORAGES = {
  'DoubleStorage': np.float64, 'FloatStorage': np.float32, 'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': np.int64, 'IntStorage': np.int32,
  'ShortStorage': np.int16, 'CharStorage': np.int8, 'ByteStorage': np.uint8,
  'BoolStorage': np.bool, 'ComplexFloatStorage': np.complex64,
  'ComplexDoubleStorage': np.complex128,
}  # fmt: skip
# Entries of the outermost dict that are looked into.
MOST_PARTS = 100
# Where a module keeps its tensors and its children: no part of their names.
_MODULE = ('_parameters', '_buffers', '_modules')
Tensor = collections.namedtuple('Tensor', 'shape dtype fetch')


class _Inert:
  """Stands in for an object of any other class, and keeps its state to look into."""

  def __init__(self, *args):
    self.args = args

  def __setstate__(self, state):
    self.state = state

  def __call__(self, *args):
    return _Inert(*args)

  def __setitem__(self, key, value):
    pass

  def append(self, value):
    pass

  def extend(self, values):
    pass


class _Unpickler(pickle.Unpickler):
  """Knows tensors, storages and ordered dicts."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if module == 'torch._utils' and name in ('_rebuild_tensor_v2', '_rebuild_tensor'):
      return _tensor
    if module == 'torch._utils' and name in (
      '_rebuild_parameter', '_rebuild_parameter_with_state'
    ):  # fmt: skip
      return lambda data, *_: data
    if (module, name) == ('torch._tensor', '_rebuild_from_type_v2'):
      return lambda function, kind, args, state: function(*args)
    if module in ('torch', 'torch.storage') and name in _STORAGES:
      return np.dtype(_STORAGES[name])
    return type(name, (_Inert,), {})

  def persistent_load(self, pid: Any) -> Any:
    if not (isinstance(pid, tuple) and len(pid) >= 5 and isinstance(pid[1], np.dtype)):
      raise pickle.UnpicklingError('a storage of an unknown kind')
    return pid[1], str(pid[2]), int(pid[4])


def _tensor(storage, offset, shape, stride, *_) -> Tensor:
  dtype, key, count = storage
  shape, stride = tuple(map(int, shape)), tuple(map(int, stride))
  last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
  size = math.prod(shape)
  if offset < 0 or min((*shape, *stride, 0)) < 0 or size > count or (size and last >= count):
    raise pickle.UnpicklingError(f'a tensor of shape {shape} reaches beyond its storage')
  return Tensor(shape, dtype, (key, int(offset), stride, count))


def read(path: paths.LocalPath) -> dict[str, dict[str, Tensor]]:
  """The parts of a file: tensors by name for each key of the outermost dict that holds any.

  The part '' is everything in the file, named by the way to it. `fetch` of each tensor is a
  function that returns the array.

  Raises:
    RunError: if the file is damaged or holds no tensors.
  """
  with zipfile.ZipFile(path) as archive:
    [pickled] = [n for n in archive.namelist() if n.endswith('/data.pkl')][:1]
    if archive.getinfo(pickled).file_size > 1 << 28:
      raise RunError(f'{path} has more than names in its index')
    root = pickled.removesuffix('data.pkl')
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    members = set(sizes)
    try:
      data = archive.read(pickled)  # whole: only then is its checksum looked at
      # The unpickler makes room for as many objects as the largest index that it is given.
      for code, argument, _ in pickletools.genops(data):
        if code.name in ('PUT', 'BINPUT', 'LONG_BINPUT') and int(argument or 0) > len(data):
          raise RunError(f'{path} is damaged: {code.name} {argument}')
      top = _Unpickler(io.BytesIO(data)).load()
    except RunError:
      raise
    except Exception as error:  # whatever a damaged pickle makes of the machine
      raise RunError(f'{path} is damaged: {error}') from None
    order = f'{root}byteorder'
    if order in members and archive.read(order) != b'little':
      raise RunError(f'{path} was written on a big-endian machine')
  parts = {'': _tensors(top)}
  if not parts['']:
    raise RunError(f'{path} holds no tensors by name')
  if isinstance(top, dict):
    nodes = [(str(k), v) for k, v in top.items() if isinstance(v, dict | _Inert)]
    parts |= {name: found for name, node in nodes[:MOST_PARTS] if (found := _tensors(node))}

  def bound(tensor: Tensor) -> Tensor:
    key, offset, stride, count = tensor.fetch
    member = f'{root}data/{key}'
    if member not in members:
      raise RunError(f'{path} is damaged: {member} is missing')
    if sizes[member] > path.stat().st_size:
      raise RunError(f'{path} is damaged: {member} is larger than the file')

    def fetch() -> np.ndarray:
      try:
        with zipfile.ZipFile(path) as archive:
          data = np.frombuffer(archive.read(member), tensor.dtype)
      except Exception as error:
        raise RunError(f'{path} is damaged: {member}: {error}') from None
      if len(data) < count:
        raise RunError(f'{path} is damaged: {member} has {len(data)} of {count} numbers')
      strides = [s * tensor.dtype.itemsize for s in stride]
      return np.lib.stride_tricks.as_strided(data[offset:], tensor.shape, strides).copy()

    return tensor._replace(fetch=fetch)

  return {
    part: {name: bound(tensor) for name, tensor in tensors.items()}
    for part, tensors in parts.items()
  }


def _tensors(node: Any) -> dict[str, Tensor]:
  """Every tensor below a node by the way to it; what is shared is named once."""
  found: dict[str, Tensor] = {}
  _collect(node, '', found, set())
  return found


def _collect(node: Any, name: str, found: dict[str, Tensor], above: set[int]) -> None:
  if isinstance(node, Tensor):
    found[name] = node
    return
  module = isinstance(node, _Inert)
  if module:
    node = getattr(node, 'state', None)
  if isinstance(node, dict) and id(node) not in above and len(name) < 1000:
    above.add(id(node))
    for key, value in node.items():
      way = (name,) if module and key in _MODULE else (name, str(key))
      _collect(value, '.'.join(filter(None, way)), found, above)
