"""Copies of the project in which its pages, notebooks and demo are run."""

import os
import pathlib
import shutil
import sys

import cv2
import numpy as np

from tests import compiling

ROOT = pathlib.Path(__file__).parent.parent
IGNORED = ('.git', '.venv', '.parity', 'runs', '__pycache__', '*.egg-info', 'golden', '.*_cache')


def copy(folder):
  """The project in `folder`, with some photos of two classes."""
  shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*IGNORED), dirs_exist_ok=True)
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    for label in ('bright', 'dark'):
      path = folder / 'photos' / split / label
      path.mkdir(parents=True)
      for i in range(8):
        image = rng.integers(0, 100, (40, 50, 3)) + (150 if label == 'bright' else 0)
        cv2.imwrite(str(path / f'{i}.jpg'), image.astype(np.uint8))
  return folder


def environment(folder, data=None, tpu=False):
  """Of commands in a copy: one device, and prepared data sets in `data`.

  Args:
    folder: of the copy.
    data: by default inside it.
    tpu: whether the commands compile for TPUs, too.
  """
  env = {**os.environ, 'TFDS_DATA_DIR': str(data or folder / 'data'), 'PYTHONPATH': str(folder)}
  env['PATH'] = f'{pathlib.Path(sys.executable).parent}:{env["PATH"]}'
  env['XLA_FLAGS'] = compiling.flags(1, tpu)
  return env
