"""What recipes of augmentation cost on the host: `python -m experiments.benchmarks.augment`.

Photos as those of `loader`, from JPEG files to batches of 224x224 by the pipeline that training
reads, with the crop, colours and erasing of each published recipe. The best of all rounds counts,
in CPU-seconds of all threads. Where timm is installed its transforms are measured, too, in one
thread: the work of a worker of PyTorch's loader, less its copies. The last columns are the cores
that feed a chip: a TPU v5e at the rate that `plan` has predicted, and an H100 at half of its peak.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from PIL import Image

from experiments.augmentation import recipes
from experiments.benchmarks import report
from experiments.benchmarks.loader import BATCH, MFU, SIZE, Photos, cpu_seconds, photos
from vit_jax.costs import chips, flops
from vit_jax.data.order import Keyed
from vit_jax.data.pipeline import cores, iterate, train_batches
from vit_jax.data.rows.columns import labelled
from vit_jax.models.vit import ViTConfig

MODELS = ('S/16', 'B/16')
H100 = 'NVIDIA H100 80GB HBM3'
# The same of timm's create_transform; mean and standard deviation do not change the cost, nor does
# noise on the magnitude, with which timm asks for 0 bits now and then, which Pillow refuses.
TIMM: dict[str, dict[str, Any]] = {
  'DeiT': dict(
    auto_augment='rand-m9-mstd0-inc1', interpolation='bicubic', re_prob=0.25, re_mode='pixel'
  ),
  'DeiT III': dict(auto_augment='3a', color_jitter=0.3, interpolation='bicubic'),
  'MAE': dict(scale=(0.2, 1.0), color_jitter=None, interpolation='bicubic'),
}  # fmt: skip


def ours(name: str, images: list[bytes]) -> Callable[[], float]:
  """Images per CPU-second of a recipe; measured anew with each call."""
  source, batches = Photos(images), 12
  rows = labelled(recipes.data(name).view.sized(SIZE), 3, 1)
  stream = iterate(train_batches(rows, source, BATCH, range(BATCH), Keyed(len(source), 0), 0))

  def run() -> float:
    for _ in range(cores() + 6):  # as many batches come in as go out then
      next(stream)
    start = cpu_seconds()
    for _ in range(batches):
      next(stream)
    return batches * BATCH / (cpu_seconds() - start)

  return run


def timms(name: str, images: list[bytes]) -> Callable[[], float]:
  """The same of timm, in one thread."""
  # As in the workers of its loader: others would wait for work at full speed.
  torch: Any = importlib.import_module('torch')
  torch.set_num_threads(1)
  importlib.import_module('experiments.benchmarks.torchvision').define_operators()
  transform = importlib.import_module('timm.data').create_transform(
    SIZE[0], is_training=True, **TIMM[name]
  )
  stream = itertools.cycle(images)

  def run() -> float:
    start = time.process_time()
    for _ in range(2 * BATCH):
      transform(Image.open(io.BytesIO(next(stream))).convert('RGB'))
    return 2 * BATCH / (time.process_time() - start)

  return run


def rates() -> dict[str, float]:
  """Images per second of a chip in training, by its name and the model's."""
  found = {}
  for row in json.loads((report.RESULTS / 'plan.json').read_text())['rows']:
    if row['slice'] == 'v5e:2x2' and row['way'] == 'unrolled' and row['model'] in MODELS:
      found[f'v5e, {row["model"]}'] = row['img/s per chip']
  for model in MODELS:
    config = ViTConfig(model, image_size=SIZE, num_classes=1000).resolve()
    found[f'H100, {model}'] = MFU * chips.PEAKS[H100] / flops.train_flops(config)
  return found


def main(rounds: int) -> list[dict[str, Any]]:
  """Measures, prints and draws."""
  flags.FLAGS.mark_as_parsed()
  images = photos()
  made = {name: (ours, name) for name in recipes.RECIPES}
  if importlib.util.find_spec('timm'):
    made |= {f'timm, {name}': (timms, name) for name in TIMM}
  best = dict.fromkeys(made, 0.0)
  for _ in range(rounds):
    for title, (make, name) in made.items():
      best[title] = max(best[title], make(name, images)())
  needed = rates()
  rows = [
    {'recipe': title, 'images per CPU-second': rate, 'ms per image': 1e3 / rate}
    | {f'cores, {chip}': images_per_second / rate for chip, images_per_second in needed.items()}
    for title, rate in best.items()
  ]  # fmt: skip
  report.write(
    'augment', rows, title='Augmentation on the host, and cores that feed a chip',
    note='500x375 JPEG of 80 kB -> crop, flip, colours, boxes to erase -> 224x224 uint8. '
    + '; '.join(f'{chip}: {rate:,.0f} images/s' for chip, rate in needed.items()),
    facts={'rates': needed},
  )  # fmt: skip

  def draw(axes: Any) -> None:
    names, values = list(best), list(best.values())
    colours = ['tab:gray' if name.startswith('timm') else 'tab:blue' for name in names]
    axes.bar_label(axes.barh(names, values, color=colours), fmt='{:,.0f}', padding=3)
    axes.invert_yaxis()
    axes.set_xlabel('images per second and core')
    axes.set_title('500x375 JPEG to 224x224, augmented', loc='left')

  report.figure('augment', draw, width=8)
  return rows


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument('--rounds', type=int, default=4, help='of which the best counts')
  main(parser.parse_args().rounds)
