"""Files of torch.save without PyTorch, as training scripts write them."""

import contextlib
import pickle
import sys
import types
import zipfile

import numpy as np

KINDS = {'float32': 'FloatStorage', 'float16': 'HalfStorage', 'int64': 'LongStorage'}


class Module:
  """A `torch.nn.Module` with parameters and children, by name."""

  def __init__(self, parameters, children=()):
    self.training = True
    self._parameters, self._buffers = dict(parameters), {}
    self._modules = dict(children)


@contextlib.contextmanager
def _torch():
  """The names that a pickle refers to."""
  modules = {name: types.ModuleType(name) for name in ('torch', 'torch._utils')}
  modules['torch._utils']._rebuild_tensor_v2 = rebuild = lambda *_: None
  rebuild.__module__, rebuild.__qualname__ = 'torch._utils', '_rebuild_tensor_v2'
  for name in KINDS.values():
    setattr(modules['torch'], name, type(name, (), {'__module__': 'torch'}))
  before = {name: sys.modules.get(name) for name in modules}
  sys.modules.update(modules)
  try:
    yield modules
  finally:
    for name, module in before.items():
      sys.modules.pop(name)
      if module is not None:
        sys.modules[name] = module


def write(path, tree):
  """Writes dicts, lists, numbers, `Module`s and NumPy arrays, which become tensors."""
  storages = []

  class Storage:
    def __init__(self, array):
      self.array = array

  with _torch() as modules, zipfile.ZipFile(path, 'w') as archive:

    class Pickler(pickle.Pickler):
      def reducer_override(self, value):
        if not isinstance(value, np.ndarray):
          return NotImplemented
        strides = tuple(s // value.itemsize for s in np.empty(value.shape, value.dtype).strides)
        arguments = (Storage(np.ascontiguousarray(value)), 0, value.shape, strides, False, None)
        return modules['torch._utils']._rebuild_tensor_v2, arguments

      def persistent_id(self, value):
        if not isinstance(value, Storage):
          return None
        storages.append(value.array)
        kind = getattr(modules['torch'], KINDS[str(value.array.dtype)])
        return 'storage', kind, str(len(storages) - 1), 'cpu', value.array.size

    with archive.open('archive/data.pkl', 'w') as file:
      Pickler(file, protocol=2).dump(tree)
    archive.writestr('archive/byteorder', 'little')
    for number, array in enumerate(storages):
      archive.writestr(f'archive/data/{number}', array.tobytes())
  return path
