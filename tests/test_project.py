"""The project as a whole: its README, its notebook, its demo."""

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
