"""What an encoder that learned without labels is worth, beside pixels and itself at random.

Nearest neighbours and a linear classifier with all labels, and logistic regression on a few labels
of each class, as `vit_jax.probe` does them. All methods of a data set are judged on the same labels
and the same features; each run of a method on labels of its own.

Where a GPU is to be left to runs that train, `apart` judges in another process:

    python -m experiments.ssl.judged RUN NUMBER TRAIN TEST
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import vit_jax
from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.launch import inputs
from vit_jax.nn import sharding
from vit_jax.probing import features as features_lib
from vit_jax.probing import judge, measures
from vit_jax.probing.embedder import Embedded, Embedder
from vit_jax.probing.settings import Settings

OURS, RANDOM, PIXELS, COMPONENTS = (
  'features', 'random parameters', 'raw pixels', 'principal components of pixels'
)  # fmt: skip
NAMES = {'pca': COMPONENTS}
# What a run that classifies says itself, among what its features are worth.
ANSWERS = 'answers'


class Rules(NamedTuple):
  """How everything is judged.

  Attributes:
    features: of the encoder, by their name; see `probing.features`.
    sizes: labels of a class, of each subset of the labels.
    subsets: of each size for a run.
    methods: see `probing.settings.METHODS`; without any, answers alone.
    k: neighbours that vote; of several numbers one is chosen.
  """

  features: str = 'class+mean'
  sizes: tuple[int, ...] = (1, 10, 60)
  subsets: int = 3
  methods: tuple[str, ...] = ('knn', 'linear', 'curve')
  k: tuple[int, ...] = Settings.k

  def settings(self, number: int) -> Settings:
    """Of a run by its number: no two runs share a subset."""
    return Settings(number * self.subsets, self.subsets, self.k, sizes=self.sizes)


# By whose features, and by method: whether each test example was right, bool (subsets, examples).
Found = Mapping[str, Mapping[str, np.ndarray]]


def judged(place: pathlib.Path, number: int, splits: Sequence[str], rules: Rules) -> Found:
  """Judges the encoder of a run, or reads what was found.

  Args:
    place: the directory of the run; what pixels are worth is kept beside it, for other runs.
    number: of the run.
    splits: whose labels are seen, and that it is judged on.
    rules: for all runs.
  """
  found: dict[str, dict[str, np.ndarray]] = {}
  for kind, file in _files(place, number).items():
    if not file.exists():
      data = _features(place, number, tuple(splits), rules)
      paths.write_npz(paths.at(str(file)), _outcomes(data, kind, number, rules))
    with np.load(file) as arrays:
      for key in arrays:
        whose, _, method = key.partition('/')
        found.setdefault(whose, {})[method] = arrays[key]
  return found


def _files(place: pathlib.Path, number: int) -> dict[str, pathlib.Path]:
  """Where it is kept what was found; what pixels are worth depends on how many the model gets."""
  model = paths.read_object(paths.at(str(place)) / 'config.json')['model']
  size = model.get('encoder', model).get('image_size') or ['usual']
  name = f'pixels{number}-{"x".join(map(str, size))}.npz'
  return {'ours': place / 'judged.npz', 'pixels': place.parent / name}


@functools.lru_cache(1)
def _features(
  place: pathlib.Path, number: int, splits: tuple[str, ...], rules: Rules
) -> judge.Data:
  """Features of both splits, at random too, and pixels."""
  own = judge.parts(rules.features)
  wanted = features_lib.several([*own, *(f'random:{part}' for part in own), 'pixels'])
  with jax.set_mesh(sharding.make_mesh('data')):
    sources = inputs.sources_of(inputs.data_of(str(place), ()), splits)
    model: Any = vit_jax.load(place)
    if getattr(model.config, 'num_classes', 0):
      wanted += features_lib.several('output')
    embedder = Embedder(model, wanted, batch_size=250, seed=number)
    train, test = (Embedded.joined(list(embedder(source))) for source in sources.values())
  one, two = (np.array(each.values['label'], np.int64) for each in (train, test))
  return judge.Data(train.features, test.features, one, two, len(sources[splits[0]].class_names))


def _outcomes(data: judge.Data, kind: str, number: int, rules: Rules) -> dict[str, np.ndarray]:
  """Of the encoder and of it at random, or of pixels: by whose features and method."""
  is_pixels = kind == 'pixels'
  part = [
    {name: array for name, array in split.items() if (name == 'pixels') == is_pixels}
    for split in (data.train, data.test)
  ]
  names = ['pixels'] if is_pixels else [rules.features]
  settings = rules.settings(number)
  found = {}
  if 'output' in part[1]:
    right = part[1]['output'].argmax(1) == data.test_labels
    found[f'{OURS}/{ANSWERS}'] = right[None]
  for line in judge.lines(
    data._replace(train=part[0], test=part[1]), names, rules.methods, settings
  ):
    found[f'{PIXELS if is_pixels else OURS}/{line.method}'] = line.found.right
    for other, each in line.controls.items():
      found[f'{NAMES.get(other, RANDOM)}/{line.method}'] = each.right
  return found


def summary(runs: Sequence[np.ndarray]) -> dict[str, Any]:
  """Of a measure of several runs, plain JSON: the mean, 95 % over runs and test examples, and each.

  Args:
    runs: of each whether test examples were right, (subsets, examples); subsets are averaged.
  """
  each = [right.mean(0) for right in runs]
  return {
    'top1': float(np.mean(each)), 'interval': list(measures.over_runs(each)),
    'runs': [float(one.mean()) for one in each],
  }  # fmt: skip


def scores(found: Sequence[Found]) -> dict[str, dict[str, Any]]:
  """Of several runs, by whose features and by method, as `summary` has it."""
  return {
    whose: {method: summary([each[whose][method] for each in found]) for method in every}
    for whose, every in found[0].items()
  }


def cell(score: Mapping[str, Any]) -> str:
  """Of a table, in percent."""
  low, high = score['interval']
  return f'{100 * score["top1"]:.1f} [{100 * low:.1f}, {100 * high:.1f}]'


def few(found: Mapping[str, np.ndarray], rules: Rules) -> np.ndarray:
  """How often an example is right with few labels: the mean over sizes and subsets, (examples,)."""
  return np.mean([found[f'{size} labels a class'].mean(0) for size in rules.sizes], 0)


def apart(place: pathlib.Path, number: int, splits: Sequence[str], rules: Rules) -> Found:
  """As `judged`, which then has only to read: another process has found it."""
  if not all(file.exists() for file in _files(place, number).values()):
    line = ['-m', 'experiments.ssl.judged', str(place), str(number), *splits]
    line.append(f'--rules={json.dumps(rules._asdict())}')
    if code := subprocess.run([sys.executable, *line]).returncode:
      sys.exit(code)
  return judged(place, number, splits, rules)


def main() -> None:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('place', type=pathlib.Path, help='directory of the run')
  parser.add_argument('number', type=int, help='of the run')
  parser.add_argument('splits', nargs=2, help='whose labels are seen, and that it is judged on')
  parser.add_argument('--rules', type=json.loads, default='{}', help='fields of Rules, as JSON')
  given = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  rules: Any = {n: tuple(v) if isinstance(v, list) else v for n, v in given.rules.items()}
  for whose, every in judged(given.place, given.number, given.splits, Rules(**rules)).items():
    for method, right in every.items():
      print(f'{given.place}: {method} of {whose}: {right.mean():.4f}', flush=True)


if __name__ == '__main__':
  try:
    main()
  except RunError as error:
    sys.exit(f'error: {error}')
