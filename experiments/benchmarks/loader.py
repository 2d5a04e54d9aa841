"""Images per CPU-second from JPEG files to batches: `python -m experiments.benchmarks.loader`.

Every loader does the same work, in turn with the others, in one process: photos of 500x375 pixels,
a random resized crop of 8 to 100 % of the area, 224x224 uint8, batches of 128. The best of all
rounds counts, in CPU-seconds of all threads and processes. tf.data is measured where TensorFlow is
installed. A synthetic step shows how long training would wait, the last table how many cores feed
a chip.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import cv2
import jax
import numpy as np
from absl import flags
from PIL import Image
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import report
from vit_jax.costs import chips, flops
from vit_jax.data import crops, preprocess
from vit_jax.data.examples import Example, Source
from vit_jax.data.fields import Field
from vit_jax.data.order import Keyed
from vit_jax.data.pack import shrink
from vit_jax.data.pipeline import cores, iterate, train_batches
from vit_jax.data.rows.columns import labelled
from vit_jax.data.views import View
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import sharding

SIZE, BATCH, AREA, ASPECT = (224, 224), 128, (0.08, 1.0), (3 / 4, 4 / 3)
CROP = crops.RandomResized(min_area=AREA[0], max_aspect=ASPECT[1])
MFU, LOAD = 0.5, 0.6
CHIPS = ('NVIDIA H200', 'NVIDIA A100-SXM4-80GB', 'TPU v5e', 'TPU v5p', 'TPU v6e')
MODELS = ('S/16', 'B/16', 'L/16', 'H/14')


class Photos(Source):
  """A source in memory."""

  name = 'photos'
  fields = MappingProxyType({'image': Field('image', dtype='uint8'), 'label': Field('class')})

  def __init__(self, images: list[Any]):
    self._images = images

  def __len__(self) -> int:
    return 1 << 20

  def __getitem__(self, index: int) -> Example:
    return dict(image=self._images[index % len(self._images)], label=0, name=f'photo {index}')


def photos(count: int = 64, noise: float = 8.0) -> list[bytes]:
  """JPEG files of 500x375 pixels and quality 90, cut from the two photos in scikit-learn.

  Noise gives them the detail, and so the file size, that photos in ImageNet have.
  """
  from sklearn.datasets import load_sample_images

  rng, originals, made = np.random.default_rng(0), load_sample_images().images, []  # type: ignore
  for original in itertools.islice(itertools.cycle(originals), count):
    height = rng.integers(375, 428)
    width = height * 4 // 3
    top, left = rng.integers(428 - height), rng.integers(641 - width)
    image = cv2.resize(
      original[top : top + height, left : left + width], (500, 375), interpolation=cv2.INTER_AREA
    )
    image = np.clip(image + rng.normal(0, noise, (375, 500, 1)), 0, 255).astype(np.uint8)
    made.append(shrink(image, 375, 'jpg', 90))
  return made


# --- loaders: each returns a function that makes so many batches ---


def by_one(load: Callable[[bytes, np.random.Generator], np.ndarray], images: list[bytes]):
  """Images one after the other, put into a batch."""
  rng, stream = np.random.default_rng(0), itertools.cycle(images)

  def run(batches: int) -> None:
    for _ in range(batches):
      batch = np.empty((BATCH, *SIZE, 3), np.uint8)
      for row, image in zip(range(BATCH), stream, strict=False):
        batch[row] = load(image, rng)

  return run


def ours(image: bytes, rng: np.random.Generator) -> np.ndarray:
  """What the pipeline does with an image."""
  return preprocess.prepare(image, View(CROP, size=SIZE), 3, rng)


def full(image: bytes, rng: np.random.Generator) -> np.ndarray:
  """All of it by OpenCV, then the part, averaged."""
  pixels = preprocess.decode(image, 3)
  height, width = pixels.shape[:2]
  box = CROP.box(height, width, SIZE, rng)
  return preprocess.resize(preprocess.cut(pixels, box), SIZE)


def pillow(image: bytes, rng: np.random.Generator) -> np.ndarray:
  """As in torchvision and timm."""
  whole = Image.open(io.BytesIO(image)).convert('RGB')
  top, left, height, width = CROP.box(whole.height, whole.width, SIZE, rng)
  box = left, top, left + width, top + height
  return np.asarray(whole.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC, box))


def pipeline(images: list[Any], *, crop: crops.Crop = CROP, workers: int = 0):
  """Ours, from the source to the iterator that training reads."""
  source = Photos(images)
  rows = labelled(View(crop, size=SIZE), 3, 1)
  stream = iterate(
    train_batches(rows, source, BATCH, range(BATCH), Keyed(len(source), 0), 0),
    workers=workers,
  )
  return lambda batches: [next(stream) for _ in range(batches)]


def tf_data(images: list[bytes], *, antialias: bool):
  """TensorFlow's decoder, which skips what is outside the crop, as in big_vision."""
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  tf: Any = importlib.import_module('tensorflow')

  def load(image):
    box = tf.image.sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(image), tf.zeros((1, 0, 4)), area_range=AREA,
      aspect_ratio_range=ASPECT, max_attempts=10, use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    window = tf.concat([box[0][:2], box[1][:2]], 0)
    part = tf.io.decode_and_crop_jpeg(image, window, channels=3)
    return tf.cast(tf.image.resize(part, SIZE, antialias=antialias), tf.uint8)

  data = tf.data.Dataset.from_tensor_slices(images).repeat()
  data = data.map(load, num_parallel_calls=cores()).batch(BATCH).prefetch(2)
  stream = iter(data)
  return lambda batches: [next(stream).numpy() for _ in range(batches)]


# --- measurements ---


def cpu_seconds() -> float:
  """Of this process and those it started."""
  total = time.process_time()
  for child in multiprocessing.active_children():
    with open(f'/proc/{child.pid}/stat') as file:
      fields = file.read().rpartition(')')[2].split()
    total += (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
  return total


def check(images: list[bytes]) -> float:
  """The mean difference, in levels of 255, between our crops and those of a full decode."""
  pairs = []
  for seed, image in enumerate(images):
    a, b = (load(image, np.random.default_rng(seed)) for load in (ours, full))
    pairs.append(np.abs(a.astype(int) - b).mean())
  if np.mean(pairs) > 3:
    raise SystemExit(f'our pixels differ by {np.mean(pairs):.1f} levels from those of OpenCV')
  return float(np.mean(pairs))


def measure(loaders: dict[str, Any], rounds: int) -> dict[str, float]:
  """Images per CPU-second, of the best round."""
  best = dict.fromkeys(loaders, 0.0)
  for _ in range(rounds):
    for name, make in loaders.items():
      run = make()
      # Those that work ahead are measured once their buffers are full and for long, so that as many
      # batches come in as go out.
      alone = name.endswith('one thread')
      batches = 3 if alone else 16
      run(1 if alone else cores() + 6)
      start = cpu_seconds()
      run(batches)
      best[name] = max(best[name], batches * BATCH / (cpu_seconds() - start))
      del run
  return best


def waiting(images: list[bytes], rounds: int, steps: int = 30) -> float:
  """The share of a step spent waiting when making its batch takes `LOAD` of it."""
  shares = []
  with jax.set_mesh(sharding.make_mesh('data')):
    layout = sharding.BatchLayout(BATCH)
    for _ in range(rounds):
      run = pipeline(images)
      run(2 * cores() + 4)
      start = time.perf_counter()
      run(steps // 3)
      step = (time.perf_counter() - start) / (steps // 3) / LOAD
      time.sleep(4 * step)  # less than compiling takes: batches are ready when the first step is
      waited = 0.0
      for _ in range(steps):
        start = time.perf_counter()
        batch = layout.place(run(1)[0])
        waited += time.perf_counter() - start
        time.sleep(step)  # where the devices work
        del batch
      shares.append(waited / (waited + steps * step))
  return min(shares)


def main(rounds: int) -> None:
  """Measures, prints and draws."""
  flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask
  images = photos()
  difference = check(images)
  small = {f: [shrink(image, 256, f, 90) for image in images] for f in ('jpg', 'bmp')}
  ready = [full(image, np.random.default_rng(0)) for image in images]
  loaders: dict[str, Callable[[], Any]] = {
    'Pillow, one thread': lambda: by_one(pillow, images),
    'OpenCV full decode, one thread': lambda: by_one(full, images),
    'vit_jax, one thread': lambda: by_one(ours, images),
    'vit_jax': lambda: pipeline(images),
    'vit_jax, 2 processes': lambda: pipeline(images, workers=2),
    'vit_jax, packed JPEG': lambda: pipeline(small['jpg']),
    'vit_jax, packed BMP': lambda: pipeline(small['bmp']),
    'vit_jax, nothing to do': lambda: pipeline(ready, crop=crops.Resize()),
  }
  if importlib.util.find_spec('tensorflow'):
    loaders['tf.data'] = lambda: tf_data(images, antialias=False)
    loaders['tf.data, antialiased'] = lambda: tf_data(images, antialias=True)
  rates = measure(loaders, rounds)
  share = waiting(images, min(rounds, 3))
  kilobytes = {
    'JPEG': np.mean([len(i) for i in images]) / 1e3,
    **{f'packed {k}': np.mean([len(i) for i in v]) / 1e3 for k, v in small.items()},
  }
  needed = [
    {'chip': chip, 'model': model, 'images/s': rate}
    | {f'cores, {n}': rate / rates[f'vit_jax{s}'] for n, s in (
      ('JPEG', ''), ('packed JPEG', ', packed JPEG'), ('packed BMP', ', packed BMP'))}
    for chip in CHIPS for model in MODELS
    for rate in [MFU * chips.PEAKS[chip] / flops.train_flops(
      ViTConfig(model, image_size=SIZE, num_classes=1000).resolve())]
  ]  # fmt: skip
  table = Table(title=f'Cores that feed one chip at {MFU:.0%} MFU', title_justify='left')
  for column in needed[0]:
    table.add_column(column, justify='left' if column in ('chip', 'model') else 'right')
  for row in needed:
    table.add_row(*(v if isinstance(v, str) else f'{v:,.1f}' for v in row.values()))
  rows = [
    {'loader': name, 'images per CPU-second': rate, 'x Pillow': rate / rates['Pillow, one thread']}
    for name, rate in sorted(rates.items(), key=lambda item: item[1])
  ]
  if 'tf.data' in rates:
    for row in rows:
      row['x tf.data'] = row['images per CPU-second'] / rates['tf.data']
  report.write(
    'loader', rows, title='From JPEG files to batches',
    note=f'500x375 JPEG of {kilobytes["JPEG"]:.0f} kB -> random resized crop -> 224x224 uint8. '
    f'Our pixels differ by {difference:.1f} of 255 levels from a full decode with averaging; '
    f'a step whose batch takes {LOAD:.0%} of it to make waits {share:.1%} of the time.',
    facts={
      'kilobytes': kilobytes, 'difference': difference, 'waiting': share, 'cores needed': needed
    },
  )  # fmt: skip
  Console(width=120).print(table)

  def draw(axes: Any) -> None:
    shown = [row for row in rows if 'nothing' not in row['loader']]
    names, values = zip(*(tuple(row.values())[:2] for row in shown), strict=True)
    colours = ['tab:blue' if name.startswith('vit_jax') else 'tab:gray' for name in names]
    axes.bar_label(axes.barh(names, values, color=colours), fmt='{:,.0f}', padding=3)
    axes.set_xlabel('images per second and core')
    axes.set_title('500x375 JPEG, or packed to 256 pixels, to a random 224x224 crop', loc='left')

  report.figure('loader', draw, width=8)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument('--rounds', type=int, default=4, help='of which the best counts')
  main(parser.parse_args().rounds)
