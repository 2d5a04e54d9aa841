"""ViT-S/16 on a CPU, compared with timm in eager PyTorch: `python -m experiments.benchmarks.cpu`.

The same weights in both: timm's freshly drawn model is saved, read by `vit_jax.load`, and must give
equal logits and gradients before anything is timed. Then inference and whole training steps
(forward, backward, AdamW) in float32, everyone in turn with the others, in one process. The best of
all rounds counts, in seconds and in CPU-seconds of all threads, which other work on the machine
disturbs less. Seconds are only to be compared on an idle machine: on a busy one PyTorch, whose
threads wait for each other at every operation, loses more than XLA. The load is in the results.
Without timm only ours are timed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pathlib
import resource
import tempfile
import time
from typing import Any

import jax
import numpy as np

import vit_jax
from experiments.benchmarks import report
from experiments.benchmarks.contestants import CLASSES, Ours, Theirs, draw_batch, pixels, timm_model
from experiments.benchmarks.timing import Timed
from vit_jax.convert import layout
from vit_jax.convert.read import open_checkpoint
from vit_jax.launch import memory
from vit_jax.nn import tree

VARIANT, BATCH, SIZE = 'S/16', 16, 224
MODEL = dict(dtype='float32', pool='token', posemb='learned')
WAYS = {
  'scanned': dict(remat='none'),
  'scanned, remat=names': dict(remat='names'),
  'unrolled': dict(scan=False, remat='none'),
}
# XLA's own options for products of matrices, beside its defaults. With these a program cannot be
# kept on disk.
ONEDNN = {
  'xla_cpu_use_onednn': True,
  'xla_cpu_experimental_onednn_fusion_type': 'LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT',
  'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE',
}


def check(theirs: Theirs, folder: pathlib.Path) -> dict[str, float]:
  """The largest differences of our logits and gradients from theirs, relative to their largest.

  Raises:
    AssertionError: if they are not those of one model.
  """
  batch, model = draw_batch(BATCH, SIZE), vit_jax.load(folder)
  labels = jax.nn.one_hot(batch['label'], CLASSES)

  @jax.jit
  def run(model, images):
    def loss(model):
      logits = model(images)
      return -(labels * jax.nn.log_softmax(logits)).sum(-1).mean(), logits

    return jax.grad(loss, has_aux=True)(model)

  grad, logits = run(model, pixels(batch['image']))
  theirs.backward()
  want = theirs.infer().numpy()
  worst = {'logits': float(np.abs(logits - want).max() / np.abs(want).max())}
  rules = open_checkpoint(folder).rules
  assert rules
  got = layout.write(rules, tree.flatten(grad))
  wanted = {name: p.grad.numpy() for name, p in theirs.model.named_parameters()}
  assert got.keys() == wanted.keys(), got.keys() ^ wanted.keys()
  worst['gradients'] = max(
    float(np.abs(got[name] - g).max() / np.abs(g).max()) for name, g in wanted.items()
  )
  assert worst['logits'] < 1e-4, worst
  assert worst['gradients'] < 1e-3, worst
  return worst


def compare_losses(contestants: dict[str, Any]) -> list[float]:
  """The losses of the first two steps, of which the second tells whether the first was right.

  Raises:
    AssertionError: if contestants differ in them.
  """
  losses = np.array([[float(it.train()) for _ in range(2)] for it in contestants.values()])
  assert np.allclose(losses, losses[0], rtol=1e-4, atol=0), losses
  return losses[0].tolist()


def cpu_seconds() -> float:
  """Of all threads of this process."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime


def measure(runs: dict[str, Timed], rounds: int) -> dict[str, tuple[float, float]]:
  """The least seconds and CPU-seconds of each, everyone in turn with the others."""
  best = dict.fromkeys(runs, (np.inf, np.inf))
  for number in range(rounds + 1):
    for name, run in runs.items():
      start, cpu = time.perf_counter(), cpu_seconds()
      run.wait(run.run())
      once = time.perf_counter() - start, cpu_seconds() - cpu
      if number:  # the first is to warm up
        best[name] = min(best[name][0], once[0]), min(best[name][1], once[1])
  return best


def main(rounds: int) -> None:
  """Times everything and writes the report."""
  facts: dict[str, Any] = {'memory kept': memory.keep(), 'load before': os.getloadavg()}
  contestants: dict[str, Any] = {}
  rows = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if importlib.util.find_spec('timm'):
      theirs = Theirs(timm_model(VARIANT, SIZE, folder), folder, BATCH, SIZE)
      contestants['timm, eager PyTorch'] = theirs
      facts['difference'] = check(theirs, folder)
    start = name if contestants else ''
    for way, fields in WAYS.items():
      for suffix, xla in (('', None), (', oneDNN', ONEDNN)):
        contestants[f'vit_jax, {way}{suffix}'] = Ours(
          VARIANT, BATCH, SIZE, start, xla, **MODEL, **fields
        )
    facts['first losses'] = compare_losses(contestants)
    for what in ('infer', 'train'):
      best = measure({name: it.timed(what) for name, it in contestants.items()}, rounds)
      base = best.get('timm, eager PyTorch')
      for name, (seconds, cpu) in best.items():
        it = contestants[name]
        step = what == 'train' and isinstance(it, Ours)
        rows.append({
          'work': {'infer': 'inference', 'train': 'training step'}[what],
          'model': name,
          'ms': 1e3 * seconds,
          'CPU-ms': 1e3 * cpu,
          'x timm': base[0] / seconds if base else None,
          'x timm, CPU': base[1] / cpu if base else None,
          'temporary MiB': it.temporary[what] / 2**20 if step else None,
          'compile s': it.compile_seconds[what] if step else None,
        })  # fmt: skip
  facts['load after'] = os.getloadavg()
  report.write(
    'cpu', rows, title=f'ViT-S/16, float32, {BATCH} images of 224 px',
    note='x timm: how many times as fast. Logits and gradients agree: '
    + ', '.join(f'{k} to {v:.0e}' for k, v in facts.get('difference', {}).items()) + '.',
    facts=facts,
  )  # fmt: skip

  def draw(axes: Any) -> None:
    names = list(contestants)
    for offset, work in ((0.2, 'inference'), (-0.2, 'training step')):
      images = [1e3 * BATCH / row['ms'] for row in rows if row['work'] == work]
      at = np.arange(len(names))[::-1] + offset
      axes.bar_label(axes.barh(at, images, 0.38, label=work), fmt='{:.1f}', padding=3)
    axes.set_yticks(np.arange(len(names))[::-1], names)
    axes.set_xlabel('images per second')
    axes.set_title(f'ViT-S/16, float32, {BATCH} images of 224 px', loc='left')
    axes.legend(frameon=False)

  report.figure('cpu', draw, width=8)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument('--rounds', type=int, default=10, help='of which the best counts')
  main(parser.parse_args().rounds)
