"""What features are worth: `python -m vit_jax.probe CHECKPOINT DATA`, or of a table of `embed`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epy

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.text import number
from vit_jax.data.sources import guess
from vit_jax.probing import features as features_lib
from vit_jax.probing.settings import METHODS, Settings

# Arguments are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import numpy as np

  from vit_jax.launch import inputs
  from vit_jax.nn import sharding
  from vit_jax.probing import embedder as embedder_lib
  from vit_jax.probing import judge
  from vit_jax.probing import table as table_lib
  from vit_jax.processes import exchange

USUAL = ('knn', 'logistic', 'linear', 'fewshot')


def main(
  source: str, data: str | None, train: str, test: str, features: str, methods: str, out: str,
  seeds: int, shots: str, sizes: str, epochs: int, controls: str, batch_size: int | None,
  on_corrupt: str, seed: int, choice: Mapping[str, Any], overrides: Sequence[tuple[str, str]],
) -> None:  # fmt: skip
  """Judges features and prints a table."""
  asked = [name.strip() for name in methods.split(',')]
  for name in asked:
    if name not in METHODS:
      raise RunError(f'unknown method {name!r}: {suggest(name, METHODS)}')
  settings = Settings(
    seed, seeds, shots=_numbers('shots', shots), sizes=_numbers('sizes', sizes), epochs=epochs
  )
  if seeds < 1 or epochs < 1:
    raise RunError('--seeds and --epochs must be at least 1')
  primary = jax.process_index() == 0
  say = lambda text: print(text, file=sys.stderr, flush=True) if primary else None  # noqa: E731
  if data is None:
    if not source.endswith('.parquet'):
      raise RunError(f'{source} is no table of python -m vit_jax.embed: name the data behind it')
    train, test = _apart(train or 'train', test or 'test')
    names, found, about = _of_table(source, train, test, features)
  else:
    failed: list[str] = []
    skip = inputs.broken(failed) if on_corrupt == 'skip' else None
    config = inputs.data_of(data, overrides)
    usual = guess.usual(config) if not (train and test) else (train, test)
    train, test = _apart(train or usual[0], test or usual[1])
    with jax.set_mesh(sharding.make_mesh('data')):
      sources = inputs.sources_of(config, (train, test))
      model, dialect = inputs.model_of(source, choice)
      names = _names(features, model)
      wanted = _parts(names, controls == 'all')
      embedder = embedder_lib.Embedder(model, wanted, batch_size=batch_size or 64, seed=seed)
      say(f'features of {sum(map(len, sources.values())):,} images: {", ".join(embedder.widths)}')
      found = _data(source, {split: _embedded(embedder, s, skip) for split, s in sources.items()},
                    len(sources[train].class_names))  # fmt: skip
      about = {
        'checkpoint': source, 'dialect': dialect, 'digest': f'sha256:{embedder.digest()}',
        'preprocessing': embedder.preprocessing, 'data': data,
      }  # fmt: skip
  lines = judge.lines(found, names, asked, settings, say)
  if not lines:
    raise RunError('no class has as many examples in train as --shots or --sizes ask for')
  if primary:
    _show(lines, found, train, test)
    if out:
      record = _record(lines, found, settings, {**about, 'train': train, 'test': test})
      paths.write_json(paths.at(out), record)
      say(f'written: {out}')


def _apart(train: str, test: str) -> tuple[str, str]:
  if train == test:
    raise RunError(
      f'--train and --test are both {train!r}: what is trained on proves nothing. Without a split '
      f"to test on: --train='{train} without fold 1/10' --test='fold 1/10 of {train}'"
    )
  return train, test


def _numbers(flag: str, text: str) -> tuple[int, ...]:
  try:
    found = tuple(int(part) for part in text.split(','))
  except ValueError:
    found = (0,)
  if min(found) < 1:
    raise RunError(f'--{flag}={text} must be whole numbers, such as 1,5,10')
  return found


def _names(features: str, model: Any) -> list[str]:
  """Of the features that are judged: those that are asked for, or what the model has."""
  if features:
    return [feature.name for feature in features_lib.several(features)]
  config = features_lib.tower(model).config
  if 'class' in getattr(config, 'special', {}):
    return ['class', 'mean', 'class+mean']
  return ['pooled'] + ['mean'] * (getattr(config, 'pool', 'mean') != 'mean')


def _parts(names: Sequence[str], controls: bool) -> tuple[features_lib.Feature, ...]:
  """What is computed for features of these names, and for their controls."""
  parts = list(dict.fromkeys(part for name in names for part in judge.parts(name)))
  if controls:
    plain = [part for part in parts if not part.startswith(('random:', 'pixels'))]
    parts += [f'random:{part}' for part in plain] + ['pixels'] * ('pixels' not in parts)
  return features_lib.several(parts)


def _embedded(embedder: Any, source: Any, skip: Any) -> Any:
  """All examples of a source, in every process."""
  own = embedder_lib.Embedded.joined(list(embedder(source, broken=skip)))
  return embedder_lib.Embedded.joined(exchange.gathered(own))


def _data(where: str, splits: Mapping[str, Any], classes: int) -> judge.Data:
  for split, each in splits.items():
    if 'label' not in each.values:
      raise RunError(f'{where}: {split} has no classes (the field label) to judge features by')
  train, test = splits.values()
  one, other = (np.array(each.values['label'], np.int64) for each in (train, test))
  return judge.Data(train.features, test.features, one, other, classes)


def _of_table(
  path: str, train: str, test: str, features: str
) -> tuple[list[str], judge.Data, dict[str, Any]]:  # fmt: skip
  """Names of features, the features, and the card, of a table."""
  table = table_lib.Table(path)
  names = [feature.name for feature in features_lib.several(features)] if features else [
    name for name in table.features if not name.startswith(('random:', 'pixels'))
  ]  # fmt: skip
  first, second = table.rows(train), table.rows(test)
  if first.labels is None or second.labels is None:
    raise RunError(f'{path} has no column label to judge features by')
  data = judge.Data(
    first.features, second.features, first.labels, second.labels, len(table.classes)
  )
  return names, data, {'table': path, **table.card}


def _show(lines: Sequence[judge.Line], data: judge.Data, train: str, test: str) -> None:
  """A table for people."""
  classes = data.classes
  print(
    f'{len(data.train_labels):,} examples of {train}, {len(data.test_labels):,} of {test}, '
    f'{classes} classes; the most frequent one: {judge.majority(data):.4f}'
  )
  print('chosen on a tenth of the training examples, or by folds of the few labels; never on test')
  rows = [['method', 'features', 'chosen', 'top-1 [95 %]', 'controls', 'gain [95 %]', 'more']]
  for line in lines:
    low, high = line.found.interval()
    gain = line.gain()
    chosen = {name: sorted({str(each[name]) for each in line.found.chosen})
              for name in line.found.chosen[0]}  # fmt: skip
    rows.append([
      line.method, line.features,
      ', '.join(f'{name}={"|".join(map(_short, values))}' for name, values in chosen.items()),
      f'{line.found.top1:.4f} [{low:.4f}, {high:.4f}]',
      ', '.join(f'{name} {each.top1:.4f}' for name, each in line.controls.items()) or 'none',
      f'{gain[0]:+.4f} [{gain[1]:+.4f}, {gain[2]:+.4f}]' if gain else '',
      ', '.join(f'{name} {number(value)}' for name, value in line.found.more.items()),
    ])  # fmt: skip
  widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
  for row in rows:
    print('  '.join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
  if not any(line.controls for line in lines):
    print(
      'no controls: embed with --features=...,pixels,random:class, or probe the checkpoint itself'
    )


def _short(value: str) -> str:
  try:
    return f'{float(value):.4g}'
  except ValueError:
    return value


def _record(
  lines: Sequence[judge.Line], data: judge.Data, settings: Settings, about: Mapping[str, Any]
) -> dict[str, Any]:
  """Everything that was found, plain JSON."""

  def outcome(found: Any) -> dict[str, Any]:
    return {
      'top1': found.top1, 'interval': list(found.interval()), 'chosen': found.chosen,
      'runs': [float(run.mean()) for run in found.right], **found.more,
    }  # fmt: skip

  return {
    **about, 'settings': dataclasses.asdict(settings), 'classes': data.classes,
    'examples': [len(data.train_labels), len(data.test_labels)], 'majority': judge.majority(data),
    'lines': [
      {
        'method': line.method, 'features': line.features, **outcome(line.found),
        'controls': {name: outcome(each) for name, each in line.controls.items()},
        'gain': line.gain(),
      } for line in lines
    ],
  }  # fmt: skip


if __name__ == '__main__':
  from vit_jax.core import command

  parser = command.Parser(
    'vit_jax.probe',
    'Judges features by nearest neighbours, linear classifiers and few-shot regression, each\n'
    'beside raw pixels, their principal components and the same architecture at random.',
    (
      'dinov2_vits14.pth photos',
      'runs/mae configs/fashion_mnist.py --methods=knn,curve --sizes=1,10,60 --out=probe.json',
      'features.parquet --features=class',
    ),
  )
  parser.add_argument('source', help='checkpoint of any dialect, or a table of vit_jax.embed')
  parser.add_argument('data', nargs='?', help=inputs.DATA)
  parser.add_argument(
    '--train', default='', metavar='SPLIT',
    help="whose labels are seen (train; without splits what is not in the fold to judge by)",
  )  # fmt: skip
  parser.add_argument(
    '--test', default='', metavar='SPLIT',
    help='that is judged by (test or validation, or a fold that is held out)',
  )  # fmt: skip
  parser.add_argument(
    '--features', default='', metavar='NAMES', help='with commas; class, mean and both if not given'
  )
  parser.add_argument(
    '--methods', default=','.join(USUAL), metavar='NAMES',
    help=f'with commas, out of {", ".join(METHODS)} ({",".join(USUAL)})',
  )  # fmt: skip
  listed = lambda numbers: ','.join(map(str, numbers))  # noqa: E731
  parser.add_argument(
    '--shots', default=listed(Settings.shots), metavar='N,N', help='of fewshot, by class'
  )
  parser.add_argument(
    '--sizes', default=listed(Settings.sizes), metavar='N,N', help='of curve, by class'
  )
  for name, of in (('seeds', 'subsets of a size'), ('epochs', 'of linear')):
    usual = getattr(Settings, name)
    parser.add_argument(f'--{name}', type=int, default=usual, metavar='N', help=f'{of} ({usual})')
  parser.add_argument(
    '--controls', default='all', choices=('all', 'none'), help='pixels and random parameters (all)'
  )
  parser.add_argument('--out', default='', metavar='FILE', help='for all numbers, as JSON')
  inputs.run(parser, main)
