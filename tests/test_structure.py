"""The import graph: rooms on floors, arrows that run down, no circles."""

import ast
import importlib
import inspect
import pathlib
import pickle
import re
import subprocess
import sys

import pytest

from vit_jax.core.errors import RunError

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'vit_jax'

# From the ground up. A room imports rooms of floors below its own; a new file costs no entry here.
FLOORS = (
  # Without JAX: these are read on laptops, and in the processes that prepare data.
  ('core',),
  ('architecture', 'draw', 'text'),
  ('costs', 'data'),
  ('scaling',),
  # With it.
  ('nn', 'processes'),
  ('optim', 'checkpoints', 'models'),
  ('convert', 'explore', 'tasks'),
  ('probing',),
  ('evaluators',),
  ('training',),
  ('compile',),
  ('launch',),
)
PLAIN = {room for floor in FLOORS[:4] for room in floor}
FLOOR = {room: at for at, floor in enumerate(FLOORS) for room in floor}
TOP = len(FLOORS)  # commands, which nobody imports, and `vit_jax` itself
# Modules, or rooms, that alone may import a package.
ONLY = {
  'orbax': ('checkpoints.store',),
  'tensorstore': ('checkpoints.reading',),
  'grain': ('data.pipeline',),
  'tensorflow_datasets': (
    'data.sources.features', 'data.sources.tfds', 'data.builders', 'data.pack',
  ),
  'absl': ('launch',),
  'ml_collections': ('training', 'compile'),
  'rich': ('training.progress', 'compile.show'),
  'optax': ('optim', 'training.state', 'probing.logistic'),
  'cv2': ('data',),
  'simplejpeg': ('data.jpeg',),
  'rasterio': ('data.geotiff',),
  'pyarrow': ('data.sources', 'probing.table'),
  'tensorboardX': ('training.writers',),
  'pycocotools': ('evaluators',),
  'sklearn': ('data.builders', 'data.generators', 'evaluators'),
  'safetensors': ('convert.files',),
  'huggingface_hub': ('convert.hub',),
  'tokenizers': ('text.jsons',),
  'sentencepiece': ('text.sentencepieces',),
  'regex': ('text.clip',),
  'ftfy': ('text.forms',),
  'PIL': ('data.preprocess', 'data.operators', 'data.masks', 'draw'),
  'pathlib': ('core.paths',),
  'shutil': ('core.paths',),
  'tempfile': ('core.paths',),
  'fsspec': ('core.stores',),
  'tensorflow': (), 'torch': (), 'matplotlib': (), 'transformers': (), 'timm': (),
}  # fmt: skip
HEAVY = ('jax', 'flax', 'optax', 'orbax')


def imports(path):
  """Dotted names of everything a file imports, `from x import y` as both x and x.y."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def module(path):
  return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__')


MODULES = {module(path): path for path in PACKAGE.rglob('*.py')}


def room(name):
  """'nn' for nn.kernels.short; '' for what is on the top floor, a room's own command included."""
  first, _, rest = name.partition('.')
  return first if first in FLOOR and rest != '__main__' else ''


def inside(name):
  """Modules of the project that a module imports."""
  for imported in imports(MODULES[name]):
    top, _, rest = imported.partition('.')
    if top == 'vit_jax':
      yield max((m for m in MODULES if f'{rest}.'.startswith(f'{m}.')), key=len, default='__init__')


def test_rooms_are_those_that_are_there():
  folders = {path.name for path in PACKAGE.iterdir() if (path / '__init__.py').exists()}
  assert folders == FLOOR.keys()
  assert len([name for name in MODULES if '.' not in name and name not in FLOOR]) <= 15


@pytest.mark.parametrize('name', sorted(MODULES))
def test_imports_run_down(name):
  own = room(name)
  for imported in inside(name):
    other = room(imported)
    assert other or imported == '__init__', f'{name} imports {imported}, on the top floor'
    if other not in ('', own):
      assert FLOOR[other] < FLOOR.get(own, TOP), f'{name} imports {imported}'
  for imported in imports(MODULES[name]):
    top = imported.partition('.')[0]
    allowed = ONLY.get(top, ('',))
    assert any(not a or f'{name}.'.startswith(f'{a}.') for a in allowed), f'{name} imports {top}'
    assert own not in PLAIN or top not in HEAVY, f'{name} imports {top}'
    assert top not in ('configs', 'experiments', 'notebooks', 'tests'), f'{name} imports {top}'


def test_there_are_no_circles():
  graph = {name: set(inside(name)) - {name} for name in MODULES}
  while free := [name for name, needs in graph.items() if not needs & graph.keys()]:
    for name in free:
      del graph[name]
  assert not graph


def test_only_paths_opens_files():
  """So that whatever is a path may be in an object store."""
  for name, path in MODULES.items():
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        assert node.func.id != 'open' or name == 'core.paths', f'{name} line {node.lineno}'


def test_configs_import_one_module():
  for path in (ROOT / 'configs').glob('*.py'):
    assert {name.rpartition('.')[0] for name in imports(path)} == {'vit_jax.config'}


def python(code):
  return subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout


def test_importing_the_package_is_light():
  assert (
    python("import sys, vit_jax; print('jax' in sys.modules or 'numpy' in sys.modules)")
    == 'False\n'
  )


def test_models_are_described_and_counted_without_jax():
  code = """
import sys
from vit_jax.architecture import ViTArchitecture, TwoTowersArchitecture, variants
from vit_jax import flops
config = ViTArchitecture('B/16', num_classes=1000).resolve()
both = TwoTowersArchitecture('siglip:B/16').resolve()
print(variants.name_of(config), config.grid, both.text.num_classes,
      f'{flops.forward_macs(config) / 1e9:.1f}', {'jax', 'numpy'} & set(sys.modules))
"""
  assert python(code) == 'B/16 (14, 14) 768 17.6 set()\n'


def test_training_needs_no_tensorflow_and_touches_no_device_on_import():
  code = """
import sys, vit_jax.train, vit_jax.evaluate
from jax._src import xla_bridge
print([m for m in ('tensorflow', 'torch', 'matplotlib') if m in sys.modules],
      xla_bridge.backends_are_initialized())
"""
  assert python(code) == '[] False\n'


def errors(kind):
  for each in kind.__subclasses__():
    yield from errors(each)
  yield kind


def test_errors_reach_other_processes():
  """Each of ours is there as it was: message, attributes and kind."""
  for name, path in MODULES.items():
    if re.search(r'^class \w+\(\w*Error\)', path.read_text(), re.M):
      importlib.import_module(f'vit_jax.{name}')
  ours = {kind for kind in errors(RunError) if kind.__module__.startswith('vit_jax.')}
  assert {'RunError', 'PassingError', 'DamagedError', 'HeldError'} <= {k.__name__ for k in ours}
  for kind in ours:
    needed = ['message']
    if inspect.isfunction(kind.__init__):
      _, *parameters = inspect.signature(kind.__init__).parameters.values()
      needed = [p.name for p in parameters if p.default is p.empty]
    error = kind(*needed)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error)) != ('', {})
