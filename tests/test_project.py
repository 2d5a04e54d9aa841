"""The project as a whole: its demo and its notebooks; its pages are in `test_docs`."""

import os
import re
import subprocess
import sys

import cv2
import pytest

from tests import checkouts

ROOT = checkouts.ROOT


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
  """A copy of the project."""
  return checkouts.copy(tmp_path_factory.mktemp('checkout'))


@pytest.mark.slow
def test_make_demo_reaches_98_percent_and_then_rests(checkout):
  """The whole demo, in this environment instead of a new one."""
  command = ['make', 'demo', f'VENV={sys.prefix}', '-o', f'{sys.prefix}/.installed']
  env = {**checkouts.environment(checkout), 'XLA_FLAGS': ''}  # at full speed
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


@pytest.mark.slow
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


def test_no_file_names_a_home_directory():
  home = re.compile(r'(?<![\w.])/(?:home|Users|root)/\w')
  for path in ROOT.rglob('*'):
    tracked = path.suffix in ('.py', '.md', '.toml', '.yml', '.ipynb') and not {
      '.venv', '.parity', 'runs', '.git'} & set(path.relative_to(ROOT).parts)  # fmt: skip
    if tracked:
      assert not home.search(path.read_text()), path
