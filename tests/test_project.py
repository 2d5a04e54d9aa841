"""The project as a whole: its import graph, its README, its notebook, its numbers."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / 'vit_jax'

# What each module may import of the project, beside `errors` and `schema`.
ALLOWED = {
  '__init__': {'convert.bridge', 'models.vit'},
  'errors': set(),
  'schema': set(),
  'card': set(),
  'chips': set(),
  'parts': {'architecture', 'towers'},
  'footprint': {'architecture', 'parts', 'towers'},
  'flops': {'architecture', 'command', 'footprint', 'parts', 'schema', 'towers'},
  'variants': set(),
  'architecture': {'variants'},
  'towers': {'architecture', 'variants'},
  'tree': set(),
  'metrics': set(),
  'command': set(),
  'sharding': set(),
  'positions': set(),
  'layers': {'positions', 'sharding'},
  'resnet': {'architecture', 'layers', 'sharding'},
  'kernels.__init__': set(),
  'kernels.short': set(),
  'kernels.chunked': set(),
  'kernels.heads': set(),
  'kernels.choice': {'kernels', 'kernels.chunked', 'kernels.heads', 'kernels.short'},
  'attention': {'kernels', 'kernels.choice', 'kernels.short', 'layers', 'positions', 'sharding'},
  'encoder': {'architecture', 'attention', 'layers', 'sharding', 'tree'},
  'models.__init__': {'models.vit'},
  'models.map_head': {'architecture', 'attention', 'encoder', 'layers', 'sharding'},
  'models.vit': {
    'architecture', 'attention', 'encoder', 'layers', 'models', 'models.map_head', 'positions',
    'resnet', 'sharding'
  },
  'models.text': {'encoder', 'layers', 'sharding', 'towers'},
  'models.two_towers': {'layers', 'models.text', 'models.vit', 'sharding', 'towers'},
  'explore.__init__': set(),
  'explore.attention': {'encoder', 'models.vit'},
  'mup': set(),
  'optim': {'mup', 'tree'},
  'state': {'optim'},
  'tasks.__init__': {'tasks.classification'},
  'tasks.classification': set(),
  'data.__init__': set(),
  'data.sources': set(),
  'data.digits': set(),
  'data.fashion_mnist': set(),
  'data.jpeg': set(),
  'data.preprocess': {'data', 'data.jpeg'},
  'data.pipeline': {'data.preprocess', 'data.sources'},
  'data.pack': {'command', 'data', 'data.pipeline', 'data.preprocess', 'data.sources'},
  'evaluators.__init__': {'evaluators.classification'},
  'evaluators.classification': {'data.pipeline', 'data.preprocess', 'metrics', 'sharding'},
  'config': {'data.pipeline', 'evaluators', 'models', 'optim', 'tasks'},
  'checkpoint': {'sharding', 'tree'},
  'convert.__init__': set(),
  'convert.pickles': set(),
  'convert.files': {'convert', 'convert.pickles'},
  'convert.layout': set(),
  'convert.augreg': set(),
  'convert.source': {'convert.files'},
  'convert.adapt': {'card', 'layers', 'models', 'positions', 'tree'},
  'convert.npz': {'architecture', 'card', 'convert', 'models'},
  'convert.timm': {'architecture', 'card', 'convert', 'models'},
  'convert.transformers_names': {'convert', 'models'},
  'convert.transformers': {'card', 'convert', 'models'},
  'convert.transformers_config': {'card', 'convert', 'models'},
  'convert.openai': {'card', 'convert', 'models'},
  'convert.bridge': {
    'architecture', 'card', 'checkpoint', 'convert', 'models', 'sharding', 'tree'
  },
  'convert.__main__': {'command', 'convert'},
  'inspect': {'command', 'convert', 'models', 'variants'},
  'predict': {'card', 'command', 'convert', 'data', 'data.preprocess', 'models'},
  'experiment': {
    'card', 'config', 'convert', 'data.pipeline', 'encoder', 'optim', 'sharding', 'state',
  },
  'scaling.table': set(),
  'scaling.published': {'scaling.table'},
  'scaling.frontier': {'scaling.fitting', 'scaling.result', 'scaling.table'},
  'scaling.choice': {'scaling.fitting', 'scaling.laws', 'scaling.result', 'scaling.table'},
  'scaling.compare': {'scaling.forms', 'scaling.result'},
  'memory': set(),
  'cluster': set(),
  'launch': {'cluster', 'memory'},
  'train': {
    'card', 'checkpoint', 'config', 'convert', 'experiment', 'fork', 'lanes', 'launch', 'metrics',
    'optim', 'sharding', 'workdir',
  },
  'workdir': {'chips', 'config', 'experiment', 'flops', 'metrics', 'sharding'},
  'compiled': set(),
  'plan': {
    'chips', 'compiled', 'config', 'data', 'data.sources', 'encoder', 'experiment', 'flops',
    'launch', 'sharding', 'topology',
  },
  'topology': set(),
  'lanes': {'config', 'experiment', 'optim', 'state'},
  'fork': {'checkpoint', 'config', 'experiment', 'lanes', 'metrics', 'state', 'workdir'},
  'scaling.__init__': {'scaling.fitting', 'scaling.laws', 'scaling.result'},
  'scaling.forms': set(),
  'scaling.laws': {'scaling.forms'},
  'scaling.solve': {'scaling.forms'},
  'scaling.problem': {'scaling', 'scaling.forms'},
  'scaling.uncertainty': {'scaling.forms', 'scaling.problem'},
  'scaling.fit': {
    'command', 'scaling', 'scaling.fitting', 'scaling.laws', 'scaling.result'
  },
  'scaling.report': {'scaling.result'},
  'scaling.result': {'scaling', 'scaling.forms', 'scaling.problem'},
  'scaling.fitting': {
    'scaling', 'scaling.forms', 'scaling.laws', 'scaling.problem', 'scaling.result'
  },
  'scaling.design': {'architecture', 'flops'},
  'scaling.cost': {'architecture', 'flops'},
  'scaling.advise': {
    'architecture', 'flops', 'scaling.choice', 'scaling.design', 'scaling.result'
  },
  'scaling.shape': {
    'architecture', 'flops', 'scaling.design', 'scaling.laws', 'scaling.result'
  },
  'evaluate': {
    'checkpoint', 'config', 'convert', 'experiment', 'lanes', 'launch', 'metrics', 'sharding'
  },
}  # fmt: skip
PACKAGES = ('convert', 'data', 'kernels', 'models', 'scaling', 'tasks', 'evaluators')
# Who, beside `data` and `scaling`, does without JAX.
PLAIN = (
  'schema', 'errors', 'metrics', 'variants', 'architecture', 'towers', 'chips', 'parts',
  'footprint', 'flops', 'command',
)  # fmt: skip
# Who may import a package at all.
ONLY = {
  'orbax': {'checkpoint'},
  'grain': {'data.pipeline'},
  'tensorflow_datasets': {'data.sources', 'data.digits', 'data.fashion_mnist', 'data.pack'},
  'absl': {'evaluate', 'launch', 'plan', 'train'},
  'ml_collections': {'config', 'launch', 'plan', 'train'},
  'rich': {'metrics', 'plan'},
  'optax': {'optim', 'state'},
  'cv2': {'data.preprocess', 'data.digits', 'data.fashion_mnist', 'data.pack'},
  'simplejpeg': {'data.jpeg'},
  'safetensors': {'convert.files'},
  'PIL': {'predict'},
  'tensorflow': set(), 'torch': set(), 'matplotlib': set(), 'transformers': set(), 'timm': set(),
}  # fmt: skip


def imports(path):
  """Dotted names of everything a file imports, `from x import y` as both x and x.y."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def module(path):
  return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


MODULES = {module(path): path for path in PACKAGE.rglob('*.py')}


def test_every_module_has_its_place():
  assert MODULES.keys() == ALLOWED.keys()


@pytest.mark.parametrize('name', sorted(MODULES))
def test_imports_run_one_way(name):
  free = {'errors', 'schema'} - {name}
  for imported in imports(MODULES[name]):
    top, _, rest = imported.partition('.')
    if top == 'vit_jax':
      known = [m for m in (*MODULES, *PACKAGES) if f'{rest}.'.startswith(f'{m}.')]
      assert set(known) & (ALLOWED[name] | free), f'{name} imports {imported}'
    elif top in ONLY:
      assert name in ONLY[top], f'{name} imports {top}'
    if name.startswith(('data.', 'scaling.')) or name in PLAIN:
      assert top not in ('jax', 'flax'), f'{name} imports {top}'


def test_configs_and_package_keep_to_themselves():
  for path in (ROOT / 'configs').glob('*.py'):
    assert set(imports(path)) == {'vit_jax.config.complete'}
  for path in MODULES.values():
    assert not {i.partition('.')[0] for i in imports(path)} & {
      'configs',
      'experiments',
      'notebooks',
    }


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
from vit_jax import architecture, flops, towers, variants
config = architecture.ViTArchitecture('B/16', num_classes=1000).resolve()
both = towers.TwoTowersArchitecture('siglip:B/16').resolve()
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


# --- what the README says ---

BLOCKS = re.findall(r'^```(\w+)\n(.*?)^```', (ROOT / 'README.md').read_text(), re.M | re.S)


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  """A copy of the project, with some photos in it."""
  folder = tmp_path_factory.mktemp('checkout')
  ignore = shutil.ignore_patterns('.git', '.venv', '.parity', 'runs', '__pycache__', '*.egg-info')
  shutil.copytree(ROOT, folder, ignore=ignore, dirs_exist_ok=True)
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for label in ('bright', 'dark'):
      path = folder / 'photos' / split / label
      path.mkdir(parents=True)
      for i in range(8):
        image = rng.integers(0, 100, (40, 50, 3)) + (150 if label == 'bright' else 0)
        cv2.imwrite(str(path / f'{i}.jpg'), image.astype(np.uint8))
  return folder


def environment(checkout):
  env = {**os.environ, 'TFDS_DATA_DIR': str(checkout / 'data'), 'PYTHONPATH': str(checkout)}
  env['PATH'] = f'{pathlib.Path(sys.executable).parent}:{env["PATH"]}'
  env['XLA_FLAGS'] = env['XLA_FLAGS'].replace('device_count=8', 'device_count=1')
  return env


@pytest.mark.parametrize('number', range(len(BLOCKS)))
def test_readme(checkout, number):
  language, code = BLOCKS[number]
  command = {'bash': ['bash', '-euc', code], 'python': [sys.executable, '-c', code]}[language]
  done = subprocess.run(
    command, cwd=checkout, env=environment(checkout), capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  assert 'Traceback' not in done.stderr
  assert 'error:' not in done.stderr


def test_readme_has_no_dead_links():
  text = (ROOT / 'README.md').read_text()
  for target in re.findall(r'\]\((?!http)([^)#]+)\)', text) + re.findall(
    r'`((?:configs|notebooks)/[^`:]+)', text
  ):
    assert (ROOT / target).exists(), target


def test_make_demo_reaches_98_percent_and_then_rests(checkout):
  """The whole demo, in this environment instead of a new one."""
  command = ['make', 'demo', f'VENV={sys.prefix}', '-o', f'{sys.prefix}/.installed']
  env = {**environment(checkout), 'XLA_FLAGS': ''}  # at full speed
  done = subprocess.run(command, cwd=checkout, env=env,
                        capture_output=True, text=True)  # fmt: skip
  assert done.returncode == 0, done.stderr
  right = re.search(r'(\d+) of 360 test images right', done.stdout)
  assert right, done.stdout
  assert int(right[1]) >= 0.98 * 360
  picture = cv2.imread(str(checkout / 'runs' / 'digits' / 'predictions.png'))
  assert picture.shape[0] > 400
  assert picture.std() > 30
  again = subprocess.run(command, cwd=checkout, env=env,
                         capture_output=True, text=True)  # fmt: skip
  assert 'is complete' in again.stdout


@pytest.mark.filterwarnings('ignore')  # of the notebook machinery
def test_notebooks_run(checkout):
  import nbclient
  import nbformat

  for path in (checkout / 'notebooks').glob('*.ipynb'):
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells), (
      f'{path.name}: clear its outputs'
    )
    os.environ['TFDS_DATA_DIR'] = str(checkout / 'data')
    nbclient.NotebookClient(
      notebook, timeout=300, resources={'metadata': {'path': path.parent}}
    ).execute()


def test_one_machine_is_not_the_world():
  """No path of a home directory in anything that is tracked."""
  home = re.compile(rf'(?<!\w){re.escape(str(pathlib.Path.home()))}/')
  for path in ROOT.rglob('*'):
    tracked = path.suffix in ('.py', '.md', '.toml', '.yml', '.ipynb') and not {
      '.venv', '.parity', 'runs', '.git'} & set(path.relative_to(ROOT).parts)  # fmt: skip
    if tracked:
      assert not home.search(path.read_text()), path
