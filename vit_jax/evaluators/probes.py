"""How good features are during training, by what little is learned from them; see `probing`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data.fields import Field
from vit_jax.data.rows.columns import Label
from vit_jax.data.views import View
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores
from vit_jax.probing import features as features_lib
from vit_jax.probing.settings import Settings
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  from vit_jax.probing import judge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(Evaluator):
  """Something that is trained on features of one split, and measured on another.

  It is a function of the features and `seed`: a run that is resumed finds the same. The data need
  the field label, whatever the task of the run is.

  Attributes:
    features: by their name, see `probing.features`; several with commas.
    train: split whose labels it sees; 'fold 1/10 of train' makes it cheaper.
    seed: of what is drawn.
  """

  of = ('label',)
  from_batch = True
  headless = True
  features: str = 'pooled'
  train: str = 'train'
  seed: int = 0

  def __post_init__(self):
    features_lib.several(self.features)

  def splits(self) -> dict[str, str]:
    """See `Evaluator`."""
    return {'train': self.train, 'test': self.split}

  def rows(self, task: Any, model: Any, fields: Mapping[str, Field]) -> Any:
    """See `Evaluator`: the image and its class."""
    if 'label' not in fields or not hasattr(task, 'columns'):
      raise RunError(
        f'name={type(self).__name__.lower()} judges features of images with classes, and the data '
        f'have the fields {", ".join(fields)}'
      )
    return task.columns(model, fields, View(self.crop), Label(len(fields['label'].names)))

  def outputs(self, task: Any, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`: features by name."""
    images = task.augment(dict(batch), None, {})['image']
    wanted = features_lib.several(self.features)
    if any(feature.random for feature in wanted):
      raise RunError(f'features={self.features!r}: random ones are for python -m vit_jax.probe')
    return features_lib.compute(features_lib.tower(model), wanted, images)

  def record(self, row: Mapping[str, np.ndarray], example: Any, seen: Seen) -> Any:
    """See `Evaluator`: features and class."""
    del seen
    return dict(row), int(example['label'])

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    parts = []
    for split in ('train', 'test'):
      records = found[split].records
      if not records:
        raise RunError(f'{found[split].source.name}: no example can be used')
      parts.append({n: np.stack([row[n] for row, _ in records]) for n in records[0][0]})
      parts.append(np.array([label for _, label in records]))
    train, train_labels, test, test_labels = parts
    classes = len(found['test'].source.class_names)
    return self.judged(judge.Data(train, test, train_labels, test_labels, classes))

  def judged(self, data: judge.Data) -> Scores:
    """The scores, from the features of both splits."""
    raise NotImplementedError

  @property
  def names(self) -> list[str]:
    """Of the features."""
    return [feature.name for feature in features_lib.several(self.features)]

  def _one(self) -> str:
    if len(self.names) > 1:
      raise RunError(f'features={self.features!r}: this evaluation is of one kind of features')
    return self.names[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knn(Probe):
  """Weighted nearest neighbours, as in DINO: 'top1'; see `probing.neighbours`.

  Attributes:
    k: how many vote; of several numbers one is chosen on examples of `train`, each left out.
    temperature: of the votes.
  """

  k: tuple[int, ...] = (20,)
  temperature: float = Settings.temperature

  def __post_init__(self):
    super().__post_init__()
    self._one()
    if not self.k or min(self.k) < 1 or not self.temperature > 0:
      raise RunError(f'k={self.k} and temperature={self.temperature} must be positive')

  def judged(self, data: judge.Data) -> Scores:
    """See `Probe`."""
    settings = Settings(self.seed, k=self.k, temperature=self.temperature)
    found = judge.knn(data, self._one(), settings)
    return _scores(found, 'k')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logistic(Probe):
  """Logistic regression by L-BFGS, as in CLIP and DINOv2: 'top1', 'ece'; see `probing.logistic`.

  Its regularisation is chosen on a tenth of `train` that is held out.
  """

  def __post_init__(self):
    super().__post_init__()
    self._one()

  def judged(self, data: judge.Data) -> Scores:
    """See `Probe`."""
    return _scores(judge.by_logistic(data, self._one(), Settings(self.seed)), 'C', 'ece')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Probe):
  """A linear classifier trained by stochastic gradients: 'top1'; see `probing.linear`.

  Learning rate and, of several, the features are chosen on a tenth of `train` that is held out.

  Attributes:
    rates: learning rates, for 256 examples a step.
    epochs: over `train`.
    examples: of a step.
  """

  rates: tuple[float, ...] = Settings.rates
  epochs: int = Settings.epochs
  examples: int = Settings.batch_size

  def judged(self, data: judge.Data) -> Scores:
    """See `Probe`."""
    settings = Settings(self.seed, epochs=self.epochs, batch_size=self.examples, rates=self.rates)
    return _scores(judge.by_gradients(data, self.names, settings), 'lr', 'ece')


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot(Probe):
  """Ridge regression on a few examples of each class, as in big_vision: 'top1_5' for five of them.

  See `probing.ridge`.

  Attributes:
    shots: examples of each class.
    seeds: subsets that are drawn, of which the mean is reported.
    l2: weight of the sum of squares; of several one is chosen by leaving out one example after the
      other.
  """

  shots: tuple[int, ...] = Settings.shots
  seeds: int = Settings.seeds
  l2: tuple[float, ...] = Settings.l2

  def __post_init__(self):
    super().__post_init__()
    self._one()
    if not self.shots or min(self.shots) < 1 or self.seeds < 1 or not self.l2 or min(self.l2) <= 0:
      raise RunError(f'shots={self.shots}, seeds={self.seeds} and l2={self.l2} must be positive')

  def judged(self, data: judge.Data) -> Scores:
    """See `Probe`."""
    settings = Settings(self.seed, self.seeds, l2=self.l2)
    values, arrays = {}, {}
    for shots in self.shots:
      found = judge.fewshot(data, self._one(), shots, settings)
      values[f'top1_{shots}'] = found.top1
      arrays[f'right_{shots}'] = found.right
    return Scores(values, arrays)


def _scores(found: judge.Outcome, choice: str, *more: str) -> Scores:
  values = {'top1': found.top1, choice: float(found.chosen[0][choice])}
  return Scores(values | {name: found.more[name] for name in more}, {'right': found.right[0]})
