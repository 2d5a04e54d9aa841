"""What features are worth: classifiers on top of them, each beside the same on its controls.

Whatever is chosen (neighbours, regularisation, learning rate, features) is chosen on a part of the
training examples that is held out, or by cross-validation within the labels that a classifier may
see, never on the test examples. Controls are judged in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from vit_jax.core.errors import RunError
from vit_jax.core.intervals import wilson
from vit_jax.probing import linear, logistic, measures, neighbours, ridge, subsets
from vit_jax.probing.settings import Settings

# Of scikit-learn's C; DINOv2's grid is of quarters of these decades, which are looked for around
# the best of them.
DECADES = tuple(10.0**e for e in range(-6, 6))
QUARTERS = tuple(10 ** (e / 4) for e in (-3, -2, -1, 1, 2, 3))
# With one label of each class nothing can be chosen.
FIXED_C = 0.1
HELD_OUT, MOST_HELD_OUT = 0.1, 10_000
FOLDS = 5
COMPONENTS = 128
# Problems of a program of `logistic`.
_LANES = len(QUARTERS)
# Products of a step beyond which idle lanes cost more than another program.
_IDLE = 1 << 22


class Data(NamedTuple):
  """Features of two splits.

  Attributes:
    train, test: features by name, (examples, features).
    train_labels, test_labels: int (examples,).
    classes: how many there are.
  """

  train: Mapping[str, np.ndarray]
  test: Mapping[str, np.ndarray]
  train_labels: np.ndarray
  test_labels: np.ndarray
  classes: int


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How well a classifier does on the test examples.

  Attributes:
    right: whether each was right, bool (runs, examples): a run for each subset of the labels.
    chosen: of each run, plain JSON.
    more: further numbers, by name.
  """

  right: np.ndarray
  chosen: list[dict[str, Any]]
  more: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def top1(self) -> float:
    """The mean over runs."""
    return float(self.right.mean())

  def interval(self) -> tuple[float, float]:
    """95 %: of a share, or over runs and test examples."""
    if len(self.right) == 1:
      return wilson(float(self.right.sum()), self.right.shape[1])
    return measures.over_runs(list(self.right))


def column(features: Mapping[str, np.ndarray], name: str) -> np.ndarray:
  """Features by name; those of several parts may be there as their parts.

  Raises:
    RunError: if they are not there.
  """
  if name in features:
    return features[name]
  own = parts(name)
  if lacking := [part for part in own if part not in features]:
    raise RunError(f'there are no features {lacking[0]!r}: there are {", ".join(features)}')
  return np.concatenate([features[part] for part in own], 1)


def scaled(data: Data, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Features of both splits, standardised by all images of train; float32.

  Principal components keep their proportions: they have a mean square of 1 together.
  """
  train, test = (column(part, name).astype(np.float32) for part in (data.train, data.test))
  mean, std = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64)
  if name == 'pca':
    std = np.full_like(std, np.sqrt(np.square(std).mean()))
  std = np.where(std > 0, std, 1)
  return ((train - mean) / std).astype(np.float32), ((test - mean) / std).astype(np.float32)


def with_components(data: Data) -> Data:
  """With the features 'pca', principal components of 'pixels', if these are there."""
  if 'pixels' not in data.train:
    return data
  train, test = data.train['pixels'].astype(np.float64), data.test['pixels'].astype(np.float64)
  mean = train.mean(0)
  count = min(COMPONENTS, len(train) - 1, train.shape[1])
  _, axes = np.linalg.eigh((train - mean).T @ (train - mean))
  axes = axes[:, ::-1][:, :count]
  project = lambda x: ((x - mean) @ axes).astype(np.float32)  # noqa: E731
  return data._replace(
    train={**data.train, 'pca': project(train)}, test={**data.test, 'pca': project(test)}
  )


def controls(data: Data, name: str) -> list[str]:
  """Names of the features that some are compared with: pixels, their components, random ones."""
  there = [each for each in ('pixels', 'pca') if each in data.train and each != name]
  random = f'random:{name}'
  if random in data.train or all(part in data.train for part in parts(random)):
    there.append(random)
  return there


def majority(data: Data) -> float:
  """The share of the test examples that are of the most frequent class of train."""
  most = np.bincount(data.train_labels, minlength=data.classes).argmax()
  return float((data.test_labels == most).mean())


def knn(data: Data, name: str, settings: Settings) -> Outcome:
  """Weighted nearest neighbours; how many vote is chosen on examples of train, each left out."""
  bank, labels = column(data.train, name), data.train_labels
  held = _held(labels, settings)
  counts = neighbours.usable(settings.k, len(bank) - 1)
  asked = np.flatnonzero(held)
  places, cosines = neighbours.nearest(bank[asked], bank, max(counts), own=asked)
  found = neighbours.nearest(column(data.test, name), bank, max(counts))

  def said(near: tuple[np.ndarray, np.ndarray], count: int) -> np.ndarray:
    return neighbours.votes(labels, *near, count, data.classes, settings.temperature).argmax(1)

  best = max(
    counts, key=lambda count: float((said((places, cosines), count) == labels[asked]).mean())
  )
  right = {count: said(found, count) == data.test_labels for count in counts}
  more = {f'k={count}': float(each.mean()) for count, each in right.items()}
  return Outcome(right[best][None], [{'k': best}], more)


def by_logistic(data: Data, name: str, settings: Settings) -> Outcome:
  """Logistic regression on all labels."""
  train, test = scaled(data, name)
  labels, held = data.train_labels, _held(data.train_labels, settings)
  kept = (~held).astype(np.float32)
  lanes = _LANES if train.size * data.classes <= _IDLE else 0

  def judged(choices: Sequence[float]) -> dict[float, tuple[float, float]]:
    l2 = 1 / (np.array(choices) * kept.sum())
    weights = np.broadcast_to(kept, (len(choices), len(kept)))
    fitted = logistic.fit(train, labels, l2, data.classes, weights=weights, lanes=lanes)
    found = {}
    for i, choice in enumerate(choices):
      logits = fitted.logits(i, train[held])
      found[choice] = _good(logits, labels[held])
    return found

  good = judged(DECADES)
  best = max(good, key=good.__getitem__)
  good |= judged([best * quarter for quarter in QUARTERS])
  best = max(good, key=good.__getitem__)
  l2 = np.array([1 / (best * len(labels))])
  last = logistic.fit(train, labels, l2, data.classes, lanes=lanes)
  logits = last.logits(0, test)
  # The temperature is of a classifier that has not seen what is held out.
  l2, part = np.array([1 / (best * kept.sum())]), kept[None]
  partly = logistic.fit(train, labels, l2, data.classes, weights=part, lanes=lanes)
  heat = measures.temperature(partly.logits(0, train[held]), labels[held])
  more = measures.calibration(logits, data.test_labels)
  more |= {
    'temperature': heat, 'ece_scaled': measures.calibration(logits / heat, data.test_labels)['ece']
  }  # fmt: skip
  right = logits.argmax(1) == data.test_labels
  return Outcome(right[None], [{'C': best}], more)


def by_gradients(data: Data, names: Sequence[str], settings: Settings) -> Outcome:
  """A linear classifier; learning rate and which of several features are chosen together."""
  every = list(dict.fromkeys(part for name in names for part in parts(name)))
  both = [scaled(data, part) for part in every]
  train, test = (np.concatenate([pair[i] for pair in both], 1) for i in (0, 1))
  widths = [pair[0].shape[1] for pair in both]
  masks = np.array([np.repeat([part in parts(name) for part in every], widths) for name in names])
  labels, held = data.train_labels, _held(data.train_labels, settings)
  recipe = linear.Recipe(settings.epochs, settings.batch_size, settings.seed)
  kernels, biases = linear.train(
    train[~held], labels[~held], data.classes, settings.rates, masks, recipe
  )
  pairs = [(rate, i) for rate in settings.rates for i in range(len(names))]
  good = [
    _good(train[held] @ kernel + bias, labels[held])
    for kernel, bias in zip(kernels, biases, strict=True)
  ]
  rate, which = pairs[max(range(len(pairs)), key=good.__getitem__)]
  (kernel,), (bias,) = linear.train(
    train, labels, data.classes, [rate], masks[which : which + 1], recipe
  )
  logits = test @ kernel + bias
  more = measures.calibration(logits, data.test_labels)
  right = logits.argmax(1) == data.test_labels
  return Outcome(right[None], [{'lr': rate, 'features': names[which]}], more)


def fewshot(data: Data, name: str, shots: int, settings: Settings) -> Outcome:
  """Ridge regression on a few examples of each class, for several subsets."""
  train, test = column(data.train, name), column(data.test, name)
  right, chosen = [], []
  for seed in _seeds(settings):
    few = subsets.shots(data.train_labels, shots, seed, data.classes)
    fitted = ridge.fit(train[few], data.train_labels[few], data.classes, settings.l2)
    right.append(fitted.scores(test).argmax(1) == data.test_labels)
    chosen.append({'l2': fitted.l2})
  return Outcome(np.array(right), chosen)


def curve(data: Data, name: str, settings: Settings) -> dict[int, Outcome]:
  """Logistic regression on nested subsets of each size, C chosen by folds of the subset alone."""
  train, test = scaled(data, name)
  sizes = subsets.sizes(settings.sizes, data.train_labels, data.classes)
  found: dict[int, tuple[list, list]] = {size: ([], []) for size in sizes}
  for seed in _seeds(settings):
    for size in sizes:  # alone: of fewer examples than features a problem is smaller, see `fit`
      few = subsets.shots(data.train_labels, size, seed, data.classes)
      x, y = train[few], data.train_labels[few]
      good = by_folds(x, y, min(FOLDS, size), DECADES, seed, data.classes)
      best = max(good, key=good.__getitem__) if good else FIXED_C
      fitted = logistic.fit(x, y, np.array([1 / (best * len(y))]), data.classes)
      found[size][0].append(fitted.logits(0, test).argmax(1) == data.test_labels)
      found[size][1].append({'C': best})
  return {size: Outcome(np.array(right), chosen) for size, (right, chosen) in found.items()}


def by_folds(
  x: np.ndarray, y: np.ndarray, count: int, choices: Sequence[float], seed: int, classes: int
) -> dict[float, tuple[float, float]]:
  """How good each C is, by folds of some examples.

  Args:
    x: features, float (examples, features).
    y: labels, int (examples,).
    count: of the folds.
    choices: of C.
    seed: of the folds.
    classes: how many there are.

  Returns:
    The mean accuracy and log-likelihood of each C; of none with less than two folds.
  """
  if count < 2:
    return {}
  fold = subsets.folds(y, count, seed)
  problems = [(choice, number) for number in range(count) for choice in choices]
  weights = np.array([fold != number for _, number in problems], np.float32)
  l2 = 1 / (np.array([choice for choice, _ in problems]) * weights.sum(1))
  fitted = logistic.fit(x, y, l2, classes, weights=weights)
  good: dict[float, list[tuple[float, float]]] = {choice: [] for choice in choices}
  for i, (choice, number) in enumerate(problems):
    asked = fold == number
    good[choice].append(_good(fitted.logits(i, x[asked]), y[asked]))
  return {choice: tuple(np.mean(pairs, 0).tolist()) for choice, pairs in good.items()}


def _good(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
  """Accuracy, and where that is equal the mean log-likelihood."""
  right = float((logits.argmax(1) == labels).mean())
  said = special.log_softmax(logits.astype(np.float64), axis=1)
  return right, float(said[np.arange(len(labels)), labels].mean())


def _held(labels: np.ndarray, settings: Settings) -> np.ndarray:
  held = subsets.held_out(labels, HELD_OUT, settings.seed, most=MOST_HELD_OUT)
  if not held.any():
    raise RunError(
      'no class has two examples in train, so that none can be held out to choose by: ask for '
      'fewshot or curve alone'
    )
  return held


def _seeds(settings: Settings) -> range:
  return range(settings.seed, settings.seed + settings.seeds)


def parts(name: str) -> list[str]:
  """Of features that are several, one behind the other: 'random:a+b' is 'random:a', 'random:b'."""
  random = 'random:' if name.startswith('random:') else ''
  return [f'{random}{part}' for part in name.removeprefix('random:').split('+')]


Judge = Callable[[str], Outcome]


@dataclasses.dataclass(frozen=True)
class Line:
  """A method on some features, beside its controls.

  Attributes:
    method: one of `settings.METHODS`, with the number of labels of a class.
    features: their name; of 'linear' the names that were to choose from.
    found: with them.
    controls: the same method with other features, by name.
  """

  method: str
  features: str
  found: Outcome
  controls: Mapping[str, Outcome]

  def gain(self) -> tuple[float, float, float] | None:
    """Over the best control, with 95 % over test examples and subsets; None without a control."""
    if not self.controls:
      return None
    best = max(self.controls.values(), key=lambda each: each.top1)
    low, high = measures.over_runs(list(self.found.right), list(best.right))
    return self.found.top1 - best.top1, low, high


def lines(
  data: Data, names: Sequence[str], methods: Sequence[str], settings: Settings,
  say: Callable[[str], None] = lambda text: None,
) -> list[Line]:  # fmt: skip
  """Judges features by every method.

  Args:
    data: with the controls that there are.
    names: of the features.
    methods: out of `settings.METHODS`.
    settings: for all of them.
    say: is told what is computed.
  """
  data, found = with_components(data), []
  judges: dict[str, Judge] = {
    'knn': lambda each: knn(data, each, settings),
    'logistic': lambda each: by_logistic(data, each, settings),
  }
  judges = {method: judge for method, judge in judges.items() if method in methods}
  if 'fewshot' in methods:
    for shots in subsets.sizes(settings.shots, data.train_labels, data.classes):
      judges[f'{shots}-shot ridge'] = lambda each, s=shots: fewshot(data, each, s, settings)
  # Once each: features have controls in common.
  judges = {method: functools.cache(judge) for method, judge in judges.items()}
  curve_of = functools.cache(lambda each: curve(data, each, settings))
  for name in names:
    others = controls(data, name)
    for method, judge in judges.items():
      say(f'{method}: {name}')
      found.append(Line(method, name, judge(name), {other: judge(other) for other in others}))
    if 'curve' in methods:
      say(f'curve: {name}')
      curves = {each: curve_of(each) for each in (name, *others)}
      found += [
        Line(f'{size} labels a class', name, own, {other: curves[other][size] for other in others})
        for size, own in curves[name].items()
      ]
  if 'linear' in methods:
    say(f'linear: {", ".join(names)}')
    plain = [each for each in ('pixels', 'pca') if each in data.train and each not in names]
    compare = {each: by_gradients(data, [each], settings) for each in plain}
    random = [f'random:{name}' for name in names if f'random:{name}' in controls(data, name)]
    if random:
      compare['random'] = by_gradients(data, random, settings)
    found.append(Line('linear', ', '.join(names), by_gradients(data, names, settings), compare))
  return found
