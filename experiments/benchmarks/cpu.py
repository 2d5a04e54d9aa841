"""ViT-S/16 on a CPU beside timm's eager PyTorch: `python -m experiments.benchmarks.cpu`.

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
import contextlib
import importlib
import importlib.util
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import vit_jax
from experiments.benchmarks import report
from vit_jax import config as config_lib
from vit_jax import memory, schema, tree
from vit_jax.convert import layout
from vit_jax.convert.bridge import open_checkpoint
from vit_jax.experiment import Experiment

MODEL, BATCH, CLASSES = 'vit_small_patch16_224', 16, 1000
WAYS = {
  'scanned': {},
  'scanned, remat=names': dict(remat='names'),
  'scanned, remat=full': dict(remat='full'),
  'unrolled': dict(scan=False),
  'unrolled, remat=names': dict(scan=False, remat='names'),
}
Run = Callable[[], Any]


def draw_batch() -> dict[str, np.ndarray]:
  """Of random images, as `data.pipeline` makes them."""
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8),
    'label': rng.integers(0, CLASSES, BATCH, dtype=np.int32),
    'mask': np.ones(BATCH, np.float32),
  }


def pixels(batch: dict[str, np.ndarray]) -> np.ndarray:
  """Its images as float32 in [-1, 1]."""
  return batch['image'].astype(np.float32) / 127.5 - 1


class Ours:
  """One way to run the model, compiled."""

  def __init__(self, folder: str, **model: Any):
    """The model in `folder`, or S/16 if that is empty, with other fields of it changed."""
    names = {} if folder else dict(variant='S/16', pool='token', num_classes=CLASSES)
    config = config_lib.complete(dict(
      total='100 steps', batch_size=BATCH, init=folder, model={**names, **model},
      data=dict(source=dict(name='synthetic')), optim=dict(lr=1e-4, warmup='10 steps'),
      log=dict(every='10 steps'), checkpoint=dict(every='100%'),
    ))  # fmt: skip
    experiment = Experiment(schema.build(config_lib.Config, config))
    batch = draw_batch()
    self.images = jax.numpy.asarray(pixels(batch))
    self.args = experiment.layout.place(batch), experiment.hyper(0)
    self.state = experiment.init()
    start = time.perf_counter()
    self._step = experiment.train_step().lower(self.state, *self.args).compile()
    self.compile_seconds = time.perf_counter() - start
    self._model = experiment.init().model
    self._infer = jax.jit(lambda model, x: model(x)).lower(self._model, self.images).compile()

  @property
  def temporary(self) -> float:
    """MiB that a training step needs beside its arguments."""
    return self._step.memory_analysis().temp_size_in_bytes / 2**20

  def infer(self) -> jax.Array:
    """Logits."""
    return self._infer(self._model, self.images).block_until_ready()

  def train(self) -> None:
    """One step."""
    self.state, metrics = self._step(self.state, *self.args)
    jax.block_until_ready((self.state, metrics))


class Theirs:
  """timm's model in eager PyTorch, with the AdamW that PyTorch runs fastest on CPUs."""

  def __init__(self, folder: pathlib.Path):
    """Saves its weights to `folder`."""
    self.torch = torch = importlib.import_module('torch')
    # Wheels of torchvision for CUDA lack their operators beside PyTorch for CPUs, and timm could
    # not be imported. None of them is called here.
    self._operators = torch.library.Library('torchvision', 'DEF')
    for name in ('roi_align', '_roi_align_backward', 'ps_roi_align', '_ps_roi_align_backward',
                 'roi_pool', '_roi_pool_backward', 'ps_roi_pool', '_ps_roi_pool_backward',
                 'deform_conv2d', '_deform_conv2d_backward', 'nms', 'qnms'):  # fmt: skip
      with contextlib.suppress(RuntimeError):
        self._operators.define(f'{name}(Tensor x) -> Tensor')
    timm = importlib.import_module('timm')
    torch.manual_seed(0)
    self.model = timm.create_model(MODEL, num_classes=CLASSES).train()
    importlib.import_module('timm.models').save_for_hf(
      self.model, str(folder), safe_serialization=True
    )
    batch = draw_batch()
    self.images = torch.from_numpy(pixels(batch)).permute(0, 3, 1, 2).contiguous()
    self.labels = torch.from_numpy(batch['label']).long()
    self._adamw = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

  def infer(self) -> Any:
    """Logits."""
    self.model.eval()
    with self.torch.inference_mode():
      logits = self.model(self.images)
    self.model.train()
    return logits

  def backward(self) -> None:
    """Fills in gradients."""
    self._adamw.zero_grad()
    self.torch.nn.functional.cross_entropy(self.model(self.images), self.labels).backward()

  def train(self) -> None:
    """One step."""
    self.backward()
    self._adamw.step()


def check(theirs: Theirs, folder: pathlib.Path) -> dict[str, float]:
  """The largest differences of our logits and gradients from theirs, relative to their largest.

  Raises:
    AssertionError: if they are not those of one model.
  """
  batch, model = draw_batch(), vit_jax.load(folder)
  labels = jax.nn.one_hot(batch['label'], CLASSES)

  @jax.jit
  def run(model, images):
    def loss(model):
      logits = model(images)
      return -(labels * jax.nn.log_softmax(logits)).sum(-1).mean(), logits

    return jax.grad(loss, has_aux=True)(model)

  grad, logits = run(model, pixels(batch))
  theirs.backward()
  want = theirs.infer().numpy()
  worst = {'logits': float(np.abs(logits - want).max() / np.abs(want).max())}
  got = layout.write(open_checkpoint(folder).rules, tree.flatten(grad))
  wanted = {name: p.grad.numpy() for name, p in theirs.model.named_parameters()}
  assert got.keys() == wanted.keys(), got.keys() ^ wanted.keys()
  worst['gradients'] = max(
    float(np.abs(got[name] - g).max() / np.abs(g).max()) for name, g in wanted.items()
  )
  assert worst['logits'] < 1e-4, worst
  assert worst['gradients'] < 1e-3, worst
  return worst


def cpu_seconds() -> float:
  """Of all threads of this process."""
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime


def measure(runs: dict[str, Run], rounds: int) -> dict[str, tuple[float, float]]:
  """The least seconds and CPU-seconds of each, everyone in turn with the others."""
  best = dict.fromkeys(runs, (np.inf, np.inf))
  for number in range(rounds + 1):
    for name, run in runs.items():
      start, cpu = time.perf_counter(), cpu_seconds()
      run()
      once = time.perf_counter() - start, cpu_seconds() - cpu
      if number:  # the first is to warm up
        best[name] = min(best[name][0], once[0]), min(best[name][1], once[1])
  return best


def main(rounds: int) -> None:
  """Times everything and writes the report."""
  facts: dict[str, Any] = {'memory kept': memory.keep(), 'load before': os.getloadavg()}
  contestants: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    if importlib.util.find_spec('timm'):
      contestants['timm, eager PyTorch'] = theirs = Theirs(folder)
      facts['difference'] = check(theirs, folder)
    for way, fields in WAYS.items():
      contestants[f'vit_jax, {way}'] = Ours(name if contestants else '', **fields)
  rows = []
  for what in ('infer', 'train'):
    best = measure({name: getattr(it, what) for name, it in contestants.items()}, rounds)
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
        'temporary MiB': it.temporary if step else None,
        'compile s': it.compile_seconds if step else None,
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
