"""How systems that read are measured."""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np

from experiments.gallery import ways
from experiments.gallery.ways import Asked, Measured
from vit_jax.nn import sharding
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
