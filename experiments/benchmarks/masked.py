"""What an MAE saves by hiding patches from its encoder: `python -m experiments.benchmarks.masked`.

Training steps of `configs/mae.py` in float32 on random images, whose encoder sees a quarter of the
patches, beside the same model whose encoder sees all but one, and beside a SimMIM of this encoder,
which sees all places and has no decoder: the same images, optimizer and layers, everyone in turn
with the others. A ratio is of two steps of one round, and its interval of all rounds: by the clock,
and in CPU-seconds of all threads, which other work on the machine disturbs less. FLOPs are those of
`Task.passes`. Before anything is timed, the loss must fall from step to step.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy import stats

from configs import mae, simmim
from experiments.benchmarks import report
from experiments.benchmarks.cpu import cpu_seconds
from vit_jax.core import schema
from vit_jax.costs import flops
from vit_jax.costs.step import step, tokens
from vit_jax.launch import memory
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment

STEPS = 3  # in which the loss must fall
# Of the encoder: what it sees, and what is changed in the configuration.
ALL, QUARTER, SIMMIM = 'MAE, all patches but one', 'MAE, a quarter of them', 'SimMIM'


@dataclasses.dataclass(frozen=True)
class Race:
  """What contestants have in common.

  Attributes:
    variant: of the encoder, 'B/16'.
    batch: images.
    decoder: blocks of 512 features; 8 as published.
    size: of images, pixels.
    depth: of the encoder, or 0 for that of the variant.
  """

  variant: str
  batch: int
  decoder: int
  size: int = 224
  depth: int = 0

  @classmethod
  def parse(cls, text: str) -> Race:
    """Of 'S/16,8,1': variant, batch and decoder."""
    variant, batch, decoder = text.split(',')
    return cls(variant, int(batch), int(decoder))


QUICK = Race('Ti/16', 4, 1, size=64, depth=2)


class Contestant:
  """A training step, compiled when it is first called.

  Attributes:
    config: of the run.
    flops: of a step on one image.
    tokens: that the encoder sees of one.
    decoder: share of the FLOPs that is the decoder's.
  """

  def __init__(self, race: Race, way: str):
    """`way` is one of `ALL`, `QUARTER` and `SIMMIM`."""
    record: Any = mae.get_config('B/16,800').to_dict()
    encoder = record['model']['encoder'] | dict(
      variant=race.variant, image_size=(race.size,) * 2, depth=race.depth or None,
      dtype='float32', remat='none',
    )  # fmt: skip
    decoder = record['model']['decoder'] | dict(depth=race.decoder, remat='none')
    model, task = dict(name='mae', encoder=encoder, decoder=decoder), record['task']
    if way == ALL:
      task |= dict(ratio=1e-3)
    if way == SIMMIM:
      model, task = dict(name='masked', encoder=encoder), simmim.get_config().to_dict()['task']
    record |= dict(
      total='100 steps', batch_size=race.batch, model=model, task=task, evals={},
      data=dict(source=dict(name='synthetic', image_size=race.size)),
      optim=record['optim'] | dict(lr=1e-4, warmup='1 step'),
    )  # fmt: skip
    record = config_lib.to_dict(config_lib.complete(record))
    self._experiment = it = Experiment(schema.build(config_lib.Config, record))
    stream = it.batches(0)
    self._batch = next(stream)
    stream.close()
    self._hyper = it.hyper(it.total // 2)
    self._state = it.split(it.init())
    passes = it.config.task.passes(it.config.model)
    self.flops, self.tokens = step(passes), tokens(passes)
    decoder = getattr(it.config.model, 'decoder', None)
    self.decoder = flops.train_flops(decoder) / self.flops if decoder else 0.0
    args = self._state, it.frozen, self._batch, self._hyper
    self._compiled = it.train_step().lower(*args).compile()

  def train(self) -> float:
    """One step; returns the loss before it."""
    self._state, metrics = self._compiled(
      self._state, self._experiment.frozen, self._batch, self._hyper
    )
    return float(metrics['loss'])


def compare(race: Race, rounds: int) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
  """Rows of a race, and the losses of the first steps of each."""
  contestants = {way: Contestant(race, way) for way in (ALL, QUARTER, SIMMIM)}
  losses = {way: [it.train() for _ in range(STEPS)] for way, it in contestants.items()}
  for way, values in losses.items():
    assert np.isfinite(values).all(), (way, values)
    assert (np.diff(values) < 0).all(), (way, values)
  seconds = np.zeros((2, len(contestants), rounds))
  for number in range(rounds):
    for at, it in enumerate(contestants.values()):
      start, cpu = time.perf_counter(), cpu_seconds()
      it.train()
      seconds[:, at, number] = time.perf_counter() - start, cpu_seconds() - cpu
  whole, rows = contestants[ALL], []
  for (way, it), clock, cpu in zip(contestants.items(), *seconds, strict=True):
    row = {
      'encoder': race.variant, 'batch': race.batch, 'decoder blocks': race.decoder, 'step': way,
      'tokens': it.tokens, 'GFLOP': it.flops / 1e9, 'of the decoder': it.decoder,
      'ms': 1e3 * float(np.median(clock)), 'CPU-ms': 1e3 * float(np.median(cpu)),
      'FLOPs, x': whole.flops / it.flops,
    }  # fmt: skip
    for name, own, base in (('x', clock, seconds[0, 0]), ('CPU, x', cpu, seconds[1, 0])):
      row[name], row[f'{name}, low'], row[f'{name}, high'] = ratio(base, own)
    rows.append(row)
  return rows, losses


def ratio(base: np.ndarray, own: np.ndarray) -> tuple[float, float, float]:
  """How many times as fast, of pairs: the geometric mean, and its interval of 95 %."""
  logs = np.log(base / own)
  half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs))
  low, mean, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half]).tolist()
  return mean, low, high


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
  """Measures, writes the report and returns its rows."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument(
    '--races', type=Race.parse, nargs='+', default=[Race('S/16', 8, 1), Race('B/16', 4, 8)],
    help='encoder, batch and blocks of the decoder: S/16,8,1',
  )  # fmt: skip
  parser.add_argument('--rounds', type=int, default=20)
  parser.add_argument('--folder', type=pathlib.Path, help='for results, if not the usual one')
  parser.add_argument('--quick', action='store_true', help='a small model, to see that it works')
  args = parser.parse_args(argv)
  if args.quick:
    args.races, args.rounds = [QUICK], 3
  facts: dict[str, Any] = {'memory kept': memory.keep(), 'load before': os.getloadavg()}
  rows, first = [], {}
  for race in args.races:
    found, losses = compare(race, args.rounds)
    rows += found
    first[f'{race.variant}, batch {race.batch}, decoder {race.decoder}'] = losses
    jax.clear_caches()
  facts |= {
    'load after': os.getloadavg(), 'rounds': args.rounds, 'convention': flops.CONVENTION,
    'first losses': first,
  }  # fmt: skip
  report.write(
    'masked', rows, title=f'Masked autoencoders, float32, {jax.devices()[0].device_kind}',
    note='GFLOP: of a step, an image. x: how many times as fast as with all patches, by FLOPs, by '
    'the clock and in CPU-seconds; low, high: interval of 95 % over rounds.',
    facts=facts, folder=args.folder,
  )  # fmt: skip
  return rows


if __name__ == '__main__':
  main()
