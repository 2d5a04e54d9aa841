"""Files of named arrays: npz, safetensors, PyTorch's zip format and GGUF.

Arrays are read one at a time, when they are asked for. Reading runs no code of theirs.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from vit_jax.convert import gguf, gguf_file, pickles
from vit_jax.convert.stubs import Arrays, Stub
from vit_jax.core import paths
from vit_jax.core.errors import RunError

WEIGHTS = ('model.safetensors', 'open_clip_model.safetensors', 'open_clip_pytorch_model.bin',
           'pytorch_model.bin')  # fmt: skip
# Of parameters.
TYPES = {np.dtype(t) for t in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)}


def read(path: paths.Path) -> Arrays:
  """All arrays in a file, by name; raises as `parts` does."""
  return parts(path)['']


def parts(path: paths.Path) -> dict[str, Arrays]:
  """The parts of a file, which are arrays by name.

  Returns:
    Under '' everything; of a file of PyTorch also each entry of its outermost dict ('state_dict',
    'optimizer') under its key.

  Raises:
    RunError: if it is missing, damaged, no file of named arrays, or holds Python objects.
  """
  if not path.is_file():
    raise RunError(f'there is no file {path}')
  try:
    if path.name.endswith('.index.json'):
      return {'': _sharded(path)}
    path = paths.fetched(path)
    with path.open('rb') as file:
      start = file.read(8)
    if path.suffix == '.safetensors':
      return {'': _safetensors(path)}
    if path.suffix == '.gguf' or start.startswith(gguf_file.MAGIC):
      return {'': gguf.opened(path)[0]}
    if not start.startswith(b'PK'):
      raise RunError(
        f'{path} is neither npz nor safetensors nor a zip file of PyTorch nor GGUF'
        + ('; save it again with a current torch.save' if start[:1] == b'\x80' else '')
      )
    with zipfile.ZipFile(path) as archive:
      if any(name.endswith('/data.pkl') for name in archive.namelist()):
        return {
          part: {name: Stub(*stub) for name, stub in tensors.items()}
          for part, tensors in pickles.read(path).items()
        }
    return {'': _npz(path)}
  except RunError:
    raise
  except Exception as error:  # a damaged file can ask for anything
    raise RunError(f'{path} is damaged: {error}') from None


def _npz(path: paths.LocalPath) -> Arrays:
  arrays = {}
  with zipfile.ZipFile(path) as archive:
    size = path.stat().st_size
    for info in archive.infolist():
      if not info.filename.endswith('.npy'):
        raise RunError(f'{path} holds {info.filename!r}, which is not an array')
      with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0}.get(
          version, np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = reader(file)
      name = info.filename.removesuffix('.npy')
      if dtype.hasobject:
        raise RunError(f'{path}: {name!r} holds Python objects; only plain arrays are read')
      if info.compress_size > size or np.prod(shape, dtype=float) * dtype.itemsize > info.file_size:
        raise RunError(f'{path} is damaged: {name!r} is shorter than its shape {shape}')
      # big_vision saves bfloat16, which NumPy does not know, as two bytes of anything.
      kind = ml_dtypes.bfloat16 if dtype == np.dtype('V2') else dtype
      arrays[name] = Stub(shape, kind, lambda n=info.filename, kind=kind: _member(path, n, kind))
  return arrays


def _member(path: paths.LocalPath, name: str, dtype: Any) -> np.ndarray:
  try:
    with zipfile.ZipFile(path) as archive, archive.open(name) as file:
      return np.lib.format.read_array(file, allow_pickle=False).view(dtype)
  except Exception as error:
    raise RunError(f'{path} is damaged: {name}: {error}') from None


def _safetensors(path: paths.LocalPath) -> Arrays:
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      arrays = {}
      for name in file.keys():  # noqa: SIM118
        part = file.get_slice(name)
        kind = _DTYPES.get(part.get_dtype())
        if kind is None:
          raise RunError(f'{path}: {name!r} has the unsupported type {part.get_dtype()}')
        arrays[name] = Stub(part.get_shape(), kind, lambda name=name: _tensor(path, name))
      return arrays
  except safetensors.SafetensorError as error:
    raise RunError(f'{path} is damaged: {error}') from None


_DTYPES = {
  'F64': np.float64, 'F32': np.float32, 'F16': np.float16, 'BF16': ml_dtypes.bfloat16,
  'I64': np.int64, 'I32': np.int32, 'I16': np.int16, 'I8': np.int8, 'U8': np.uint8, 'BOOL': np.bool,
}  # fmt: skip


def _tensor(path: paths.LocalPath, name: str) -> np.ndarray:
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      return file.get_tensor(name)
  except safetensors.SafetensorError as error:
    raise RunError(f'{path} is damaged: {name}: {error}') from None


def _sharded(path: paths.Path) -> Arrays:
  index = paths.read_object(path)
  names = index.get('weight_map')
  if not isinstance(names, Mapping) or any('/' in f for f in names.values()):
    raise RunError(f'{path} is not an index of a checkpoint in several parts')
  shards = {name: read(path.parent / name) for name in sorted(set(names.values()))}
  missing = [name for name, shard in names.items() if name not in shards[shard]]
  if missing:
    raise RunError(f'{path} promises {missing[0]!r}, which {names[missing[0]]} does not have')
  return {name: shards[shard][name] for name, shard in names.items()}


def weights(folder: paths.Path) -> paths.Path:
  """The file of weights in a folder as transformers, timm and OpenCLIP save them."""
  for name in WEIGHTS:
    for candidate in (folder / name, folder / f'{name}.index.json'):
      if candidate.exists():
        return candidate
  raise RunError(f'{folder} contains neither a run of vit_jax nor any of {", ".join(WEIGHTS)}')


def write_npz(path: paths.LocalPath, arrays: Mapping[str, np.ndarray]) -> None:
  """An npz file; bfloat16 becomes two bytes of anything, as in big_vision."""
  plain = {
    name: array.view('V2') if array.dtype == ml_dtypes.bfloat16 else array
    for name, array in arrays.items()
  }
  with path.open('wb') as file:
    np.savez(file, allow_pickle=False, **plain)


def write_safetensors(
  path: paths.LocalPath, arrays: Mapping[str, np.ndarray], facts: Mapping[str, str]
) -> None:
  """A safetensors file that says it is for PyTorch, with some facts in its header."""
  safetensors.numpy.save_file(dict(arrays), path, metadata={'format': 'pt', **facts})


def facts(path: paths.Path) -> dict[str, str]:
  """What the header of a safetensors file says in addition to its arrays."""
  try:
    with safetensors.safe_open(paths.fetched(path), 'numpy') as file:
      return file.metadata() or {}
  except safetensors.SafetensorError:
    return {}
