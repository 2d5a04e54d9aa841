"""Whole training steps: `python -m experiments.benchmarks.train_step --models=B/16,L/16`.

The step of a real `Experiment` with the settings of `configs/synthetic.py`, on uint8 images that
are on the device already: forward, backward and AdamW, in bfloat16 (on CPUs float32), every way to
run the layers with every batch size. Where timm or transformers are installed they take part: ours
then starts from timm's freshly drawn weights and is timm's model, with a class token, learned
positions and exact GELU. Before anything is timed, the losses of the first steps must be those of
the first contestant with this batch, and with `--inference` the logits. PyTorch goes first and
gives its memory back. What does not fit into memory is recorded as such.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import report
from experiments.benchmarks.contestants import (
  Ours,
  Theirs,
  give_back,
  gpu_of_torch,
  timm_model,
  to_numpy,
  transformers_model,
)
from experiments.benchmarks.timing import complaint, measure
from vit_jax.costs import chips, flops

STEPS = 5
# Of losses, which fall from step to step, and of logits, relative to the largest.
TOLERANCE = {
  'train': {'float32': 1e-4, 'bfloat16': 1e-2}, 'infer': {'float32': 1e-4, 'bfloat16': 5e-2},
}  # fmt: skip
PEERS = ('timm', 'transformers')
WAYS = ('unrolled/none', 'unrolled/names', 'scanned/none', 'scanned/names')
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Race:
  """What contestants have in common.

  Attributes:
    variant: 'B/16'.
    size: of images, pixels.
    batch: images.
    what: 'train' or 'infer'.
    dtype: of activations.
    depth: layers, or 0 for those of the variant.
  """

  variant: str
  size: int
  batch: int
  what: str
  dtype: str
  depth: int

  def row(self, name: str) -> dict[str, Any]:
    """Of a contestant that has not run yet."""
    return {
      'work': {'train': 'training step', 'infer': 'inference'}[self.what],
      'model': self.variant, 'pixels': self.size, 'batch': self.batch, 'contestant': name,
      'img/s': None, 'ms': None, 'spread': None, 'TFLOP/s': None, 'MFU': None, 'GiB': None,
      'peak GiB': None, 'compile s': None, 'off by': None, 'status': 'right',
    }  # fmt: skip


class Judge:
  """Compares what contestants compute, and times those that compute the same.

  Attributes:
    rows: of the report, in order.
    losses: of the first steps, by contestant.
  """

  def __init__(self, rounds: int, least: float):
    """With that many rounds of at least so many seconds."""
    self.rows: list[dict[str, Any]] = []
    self.losses: dict[str, list[float]] = {}
    self._rounds, self._least = rounds, least
    self._expected: dict[Race, np.ndarray] = {}
    self._peak = 0

  def try_out(self, race: Race, name: str, make: Callable[[], Any]) -> None:
    """Adds a row for the contestant that `make` gives; errors become its status."""
    row = race.row(name)
    self.rows.append(row)
    try:
      self._try_out(race, row, make())
    except Exception as error:  # of whatever kind: the others go on
      row['status'] = complaint(error)
    # Exceptions and cycles hold on to arrays.
    gc.collect()
    print(*(f'{value:.4g}' if isinstance(value, float) else value for value in row.values()
            if value is not None), sep=', ', flush=True)  # fmt: skip

  def _try_out(self, race: Race, row: dict[str, Any], it: Ours | Theirs) -> None:
    run, wait = it.timed(race.what)
    start = time.perf_counter()
    first = run()
    wait(first)
    row['compile s'] = time.perf_counter() - start
    results = [first, *(run() for _ in range(STEPS - 1))] if race.what == 'train' else [first]
    results = np.stack([to_numpy(x) for x in results])
    if isinstance(it, Ours):
      row['compile s'] = it.compile_seconds[race.what]
      row['GiB'] = it.memory[race.what] / GIB
    if race.what == 'train':
      label = f'{race.variant}, {race.size} px, batch {race.batch}: {row["contestant"]}'
      self.losses[label] = results.tolist()
    expected = self._expected.setdefault(race, results)
    # Without a peer the head gives logits of 0.
    off = np.abs(results - expected).max() / max(np.abs(expected).max(), 1e-2)
    row['off by'] = float(off)
    if not off < TOLERANCE[race.what][race.dtype]:
      raise ArithmeticError(f'another result than {self._first(race)}: off by {off:.1e}')
    (seconds,) = measure({'': it.timed(race.what)}, rounds=self._rounds, least=self._least).values()
    median = statistics.median(seconds)
    training = race.what == 'train'
    work = flops.train_flops(it.config) if training else 2 * flops.forward_macs(it.config)
    rate, peak = race.batch / median, chips.PEAKS.get(jax.devices()[0].device_kind)
    used = self._used(it)
    row |= {
      'img/s': rate, 'ms': 1e3 * median, 'spread': (max(seconds) - min(seconds)) / median,
      'TFLOP/s': rate * work / 1e12, 'MFU': rate * work / peak if peak else None,
      'peak GiB': used / GIB if used else None,
    }  # fmt: skip

  def _first(self, race: Race) -> str:
    row = race.row('')
    same = ('work', 'model', 'pixels', 'batch')
    return next(r['contestant'] for r in self.rows if all(r[name] == row[name] for name in same))

  def _used(self, it: Any) -> int | None:
    """The most bytes that were in use, where the device counts them and they were never more."""
    if isinstance(it, Theirs):
      return it.peak_memory
    stats = jax.devices()[0].memory_stats() or {}
    before, self._peak = self._peak, stats.get('peak_bytes_in_use', 0)
    return self._peak if self._peak > before else None


def peers(
  names: Sequence[str], variant: str, size: int, folder: pathlib.Path, depth: int
) -> Iterator[tuple[str, Callable[[], Any]]]:
  """Names of PyTorch's models and what makes them; timm's leaves its weights in `folder`/timm."""
  options = {'depth': depth} if depth else {}
  if 'timm' in names:
    yield 'timm', lambda: timm_model(variant, size, folder / 'timm', **options)
  if 'transformers' in names and (folder / 'timm').exists():
    yield 'transformers', lambda: transformers_model(folder / 'timm', folder / 'transformers')


def run_peers(judge: Judge, races: Sequence[Race], names: Sequence[str], folder: Any) -> None:
  """All batch sizes of one model in PyTorch."""
  first = races[0]
  how = 'compiled' if gpu_of_torch() else 'eager'
  for name, make in peers(names, first.variant, first.size, folder, first.depth):
    for race in races:
      judge.try_out(
        race, f'{name}, {how}',
        lambda: Theirs(make(), folder / 'timm', race.batch, race.size),  # noqa: B023
      )  # fmt: skip
      give_back()


def run_ours(judge: Judge, race: Race, ways: Sequence[str], folder: pathlib.Path) -> None:
  """Every way to run the layers; at inference nothing is recomputed."""
  start = folder / 'timm'
  for way in dict.fromkeys(w if race.what == 'train' else w.partition('/')[0] for w in ways):
    layers, _, remat = way.partition('/')
    fields: dict[str, Any] = dict(scan=layers == 'scanned', remat=remat.replace('+', ',') or 'none')
    if race.depth and not start.exists():
      fields['depth'] = race.depth
    judge.try_out(
      race, f'vit_jax, {layers}' + f', remat={remat}' * bool(remat),
      lambda: Ours(
        race.variant, race.batch, race.size, str(start) if start.exists() else '',
        dtype=race.dtype, **fields,  # noqa: B023
      ),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
  """Measures, writes the report and returns its rows."""
  names = lambda text: tuple(text.split(',')) if text else ()  # noqa: E731
  numbers = lambda text: tuple(int(n) for n in text.split(','))  # noqa: E731
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument('--models', type=names, default=('B/16',), help='B/16,L/16,H/14,g/14')
  parser.add_argument('--image', type=numbers, default=(224,), help='sides in pixels: 224,384')
  parser.add_argument('--batches', type=numbers, default=(128, 256), help='images, ascending')
  parser.add_argument('--ways', type=names, default=WAYS, help='scanned/attn+hidden: remat names')
  parser.add_argument('--peers', type=names, default=PEERS, help='empty for none')
  parser.add_argument('--inference', action='store_true', help='instead of training')
  parser.add_argument('--depth', type=int, default=0, help='layers, if not all of them')
  parser.add_argument('--rounds', type=int, default=5, help='of which the median counts')
  parser.add_argument('--least', type=float, default=0.5, help='seconds of a round')
  parser.add_argument('--tag', default='', help='at the end of the names of results')
  parser.add_argument('--folder', type=pathlib.Path, help='for results, if not the usual one')
  parser.add_argument('--quick', action='store_true', help='a small model, to see that it works')
  args = parser.parse_args(argv)
  if args.quick:
    args.models, args.image, args.batches, args.depth = ('Ti/16',), (32,), (4,), 2
    args.ways, args.rounds, args.least = (args.ways[0], args.ways[-1]), 2, 0.0
  # PyTorch needs the memory first.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  device = jax.devices()[0]
  dtype = 'float32' if device.platform == 'cpu' else 'bfloat16'
  what = 'infer' if args.inference else 'train'
  present = [name for name in args.peers if importlib.util.find_spec(name)]
  judge = Judge(args.rounds, args.least)
  with tempfile.TemporaryDirectory() as name:
    plan = {
      pathlib.Path(name) / f'{model.replace("/", "_")}_{size}': [
        Race(model, size, batch, what, dtype, args.depth) for batch in args.batches
      ]
      for model in args.models
      for size in args.image
    }
    for folder, races in plan.items() if present else ():
      folder.mkdir()
      run_peers(judge, races, present, folder)
    for folder, races in plan.items():
      for race in races:
        run_ours(judge, race, args.ways, folder)
  rows = sorted(judge.rows, key=lambda row: (args.models.index(row['model']), row['pixels']))
  tag = 'inference ' * args.inference + args.tag
  name = report.on_device('train_step', device.device_kind, tag)
  title = f'{"Training steps" if what == "train" else "Inference"}, {dtype}, {device.device_kind}'
  report.write(
    name, rows, title=title,
    note='spread: of all rounds, relative to their median. GiB: as the compiler plans it; peak: as '
    f'the device counts it. off by: {"first losses" if what == "train" else "logits"} against the '
    'first contestant of the same batch.',
    facts={
      'device': device.device_kind, 'dtype': dtype, 'convention': flops.CONVENTION,
      'first losses': judge.losses,
    },
    folder=args.folder,
  )  # fmt: skip

  def draw(axes: Any) -> None:
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
      label = f'{row["model"]}, {row["pixels"]} px: {row["contestant"]}'
      if row['img/s'] and row['img/s'] > best.get(label, {'img/s': 0})['img/s']:
        best[label] = row
    labels, values = [*best][::-1], [row['TFLOP/s'] for row in best.values()][::-1]
    colours = ['tab:blue' if 'vit_jax' in label else 'tab:gray' for label in labels]
    axes.bar_label(axes.barh(labels, values, color=colours), fmt='{:.3g}', padding=3)
    axes.set_xlabel('TFLOP/s, with the best batch')
    axes.set_title(title, loc='left')

  report.figure(name, draw, folder=args.folder, width=9, height=2 + 0.2 * len(rows))
  return rows


if __name__ == '__main__':
  main()
