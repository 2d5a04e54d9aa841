"""Methods without labels on Imagenette, all under the same rules, to one table.

    python -m experiments.reproduce.imagenette_ssl                          # what there is
    python -m experiments.reproduce.imagenette_ssl --data=imagenette2-320   # everything
    python -m experiments.reproduce.imagenette_ssl labels mae dino --data=imagenette/320px-v2

Everything runs on the devices of this machine, one after the other; what is there already is kept,
and the same command goes on. Rows are one file for each method, and README.md beside them is the
table: both are written by this and by nobody else. With --set they say which fields were changed,
and that it is no reproduction of these rules.
"""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments.ssl.judged import ANSWERS, OURS, Found, Rules, apart, cell, scores
from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs.step import step as step_flops
from vit_jax.data.fields import Field
from vit_jax.data.sources.guess import guess
from vit_jax.training import config as config_lib

RESULTS = pathlib.Path(__file__).parent / 'results' / 'imagenette_ssl'
# With labels, and so beside the controls that need no training; then without.
METHODS = ('labels', 'colours', 'simmim', 'mae', 'dino', 'ibot', 'dinov2')
IMAGES, TESTED, CLASSES = 9469, 3925, 10
SEEDS = 3
# The same for every method, and how one of them is chosen: on a tenth of train.
RATES = ('1.5e-4', '5e-4', '1.5e-3')
CHOICE = ('train without fold 1/10', 'fold 1/10 of train')
# The recipe of `labels`, from a checkpoint.
TUNED = {'total': '100 epochs', 'optim.lr': '5e-4', 'optim.layer_decay': '0.75'}
JUDGED = Rules(sizes=(1, 10, 100), k=(20,))
ALL = 'all labels'
# Fields that this says itself.
OWN = ('optim.lr', 'seed', 'init', 'data.split')
# Linear probes of ViT-S/16 after 200 epochs in batches of 128 or 256, the best of all epochs on the
# images that are reported; a learning rate for each method, not tuned; DINOv2 was not at its end.
PUBLISHED = {'dino': 0.861, 'mae': 0.841, 'ibot': 0.579, 'dinov2': 0.421, 'simmim': 0.225}
SOURCE = 'https://github.com/galilai-group/stable-pretraining, README.md of June 2026'
RULES = f"""
- Data: Imagenette at 320 pixels, {IMAGES:,} images to train on, {TESTED:,} to judge by, no others.
- A ViT-S/16 with exact GELU and a class token at 224 pixels; 200 epochs in batches of 256; AdamW,
  a warm-up of a tenth, cosine. What else makes a method (crops, colours, weight decay, positions,
  heads) is as published for ImageNet, or fitted to fewer images: `configs/ssl.py`.
- Learning rates: {', '.join(RATES)}, for every method. Each is trained on nine tenths of train, and
  judged by a linear probe on the last tenth; then the best is trained on all of train. Images to
  judge by take no part in a choice; of every run the last checkpoint counts.
- Frozen features are the class token beside the mean of the patches, of the middle of each image
  (bicubic, 87.5 %), without augmentation: 20 nearest neighbours; a linear classifier whose learning
  rate is chosen on a tenth of train; logistic regression on 1, 10 and 100 labels of each class,
  three subsets, the same for all methods.
- All labels: fine-tuned for {TUNED['total']} by one recipe for all, learning rate
  {TUNED['optim.lr']}, layer decay {TUNED['optim.layer_decay']}. Of the row `labels`, which is that
  recipe from scratch for 200 epochs, its own answers. Random parameters are those of its encoder.
- Intervals: 95 %, by drawing runs and images to judge by again. Epochs are the same, work is not:
  exaFLOPs and hours are of one run before fine-tuning.
"""  # fmt: skip


def config_of(method: str) -> str:
  """Its configuration, as --config takes it."""
  return f'configs/ssl.py:{method},imagenette'


def exaflops(method: str) -> float:
  """Of a run, by `flops.CONVENTION`, from its configuration alone."""
  cfg = config_lib.check(config_lib.load(config_of(method)))
  names = tuple(str(number) for number in range(CLASSES))
  fields = {'image': Field('image'), 'label': Field('class', names)}
  model = cfg.task.adapt(cfg.model.resolve(), fields)
  steps = config_lib.steps(cfg.total, batch_size=cfg.batch_size, epoch=IMAGES)
  each = step_flops(cfg.task.passes(model), examples=cfg.batch_size)
  return each * steps * cfg.batch_size / 1e18


class Asked(NamedTuple):
  """What is to be measured.

  Attributes:
    source: fields of `data.source`.
    test: split to judge by.
    images: how many there are to train on.
    folder: where runs are kept.
    seeds: how many runs of each.
    changes: fields, and their texts; of every run that has them.
  """

  source: Mapping[str, Any]
  test: str
  images: int
  folder: pathlib.Path
  seeds: int
  changes: Mapping[str, str]


def fields_of(
  asked: Asked, method: str, splits: tuple[str, str], own: Mapping[str, str]
) -> dict[str, str]:  # fmt: skip
  """Fields of a run, and their texts.

  Args:
    asked: what is to be measured.
    method: whose configuration is changed.
    splits: to train on, and to look at on the way.
    own: of this run.
  """
  config: Any = config_lib.load(config_of(method))
  train, test = splits
  found = {f'data.source.{name}': str(value) for name, value in asked.source.items()}
  found['data.split'] = train
  for name, evaluator in config.evals.items():
    found |= {f'evals.{name}.split': test}
    if 'train' in evaluator:
      found |= {f'evals.{name}.train': train}
  of_model = lambda name: name.startswith('model.') and 'init' in own  # noqa: E731
  changes = {n: t for n, t in asked.changes.items() if _has(config, n) and not of_model(n)}
  return {**found, **own, **changes}


def _has(config: Any, name: str) -> bool:
  """Whether a configuration has a field of this dotted name."""
  for part in name.split('.'):
    if not hasattr(config, 'keys') or part not in config:
      return False
    config = config[part]
  return True


def trained(
  asked: Asked, method: str, place: pathlib.Path, splits: tuple[str, str], own: Mapping[str, str]
) -> pathlib.Path:  # fmt: skip
  """A run, trained or continued."""
  fields = fields_of(asked, method, splits, own)
  line = [f'--config={config_of(method)}', f'--workdir={place}']
  line += [f'--config.{name}={text}' for name, text in fields.items()]
  if code := subprocess.run([sys.executable, '-m', 'vit_jax.train', *line]).returncode:
    sys.exit(code)
  return place


def chosen(asked: Asked, method: str) -> tuple[str, dict[str, float]]:
  """The learning rate, and what each scored on the tenth of train that is held out."""
  tried = {}
  for rate in RATES:
    place = asked.folder / 'rates' / f'{method}-{rate}'
    trained(asked, method, place, CHOICE, {'optim.lr': rate})
    right = apart(place, 0, CHOICE, JUDGED._replace(methods=('linear',)))[OURS]
    tried[rate] = float(right['linear'].mean())
    print(f'{method}, {rate}: {tried[rate]:.4f} of {CHOICE[1]}', flush=True)
  return max(tried, key=lambda rate: tried[rate]), tried


def measured(asked: Asked, method: str) -> dict[str, Any]:
  """A row."""
  rate, tried = chosen(asked, method)
  splits = ('train', asked.test)
  found: list[Found] = []
  places = []
  for seed in range(asked.seeds):
    own = {'optim.lr': rate, 'seed': str(seed)}
    place = trained(asked, method, asked.folder / 'runs' / f'{method}-{seed}', splits, own)
    judged = apart(place, seed, splits, JUDGED)
    right = dict(judged[OURS])
    if method != 'labels':
      tuned, own = asked.folder / 'tuned' / f'{method}-{seed}', {'init': str(place)}
      trained(asked, 'labels', tuned, splits, {**TUNED, **own, 'seed': str(seed)})
      right |= apart(tuned, seed, splits, JUDGED._replace(methods=()))[OURS]
    right[ALL] = right.pop(ANSWERS)
    said = ', '.join(f'{name} {each.mean():.4f}' for name, each in right.items())
    print(f'{method}, seed {seed}: {said}', flush=True)
    # Controls are those of one encoder, for all.
    controls = {name: judged[name] for name in judged if method == 'labels' and name != OURS}
    found.append({method: right, **controls})
    places.append(place)
  results = [paths.read_object(paths.at(str(place)) / 'result.json') for place in places]
  last, examples = results[-1], [asked.images, found[0][method][ALL].shape[1]]
  free = all(config_lib.is_free(name) for name in asked.changes)  # they change no result
  ruled = free and asked.seeds == SEEDS and examples == [IMAGES, TESTED]
  return {
    'method': method, 'config': config_of(method), 'changed': dict(asked.changes),
    'reproduction': ruled, 'rate': rate, 'tried': tried, 'seeds': asked.seeds, 'examples': examples,
    'settings': JUDGED._asdict(), 'scores': scores(found),
    'published': PUBLISHED.get(method), 'source': SOURCE if method in PUBLISHED else None,
    'exaflops': last['flops']['training_total'] / 1e18,
    'hours': float(np.mean([sum(each['seconds'].values()) for each in results])) / 3600,
    'images_per_second_per_chip': last['images_per_second_per_chip'], 'mfu': last['mfu'],
    'peak_memory': last['peak_memory'], 'device': last['device'], 'devices': last['devices'],
    'epochs': last['epochs'], 'steps': last['step'], 'packages': last['packages'],
    'python': last['python'], 'revision': last['git'], 'date': datetime.date.today().isoformat(),
  }  # fmt: skip


def page(rows: Sequence[Mapping[str, Any]]) -> str:
  """README.md."""
  few = [f'{size} labels a class' for size in JUDGED.sizes]
  titles = ['method', 'kNN', 'linear', *few, ALL, 'rate', 'exaFLOP', 'hours', 'linear, published']
  lines = [
    '# Without labels on Imagenette', '',
    'Top-1 in percent, written by `python -m experiments.reproduce.imagenette_ssl`.', '',
    f'| {" | ".join(titles)} |', f'|{"---|" * len(titles)}',
  ]  # fmt: skip
  for row in rows:
    published = f'{100 * row["published"]:.1f}' if row['published'] else ''
    cost = [row['rate'], f'{row["exaflops"]:.3g}', f'{row["hours"]:.2g} on {row["device"]}']
    for name, each in row['scores'].items():
      own = [cell(each[m]) if m in each else '' for m in ('knn', 'linear', *few, ALL)]
      rest = [*cost, published] if name == row['method'] else [''] * (len(cost) + 1)
      mark = '' if row['reproduction'] else ', changed'
      lines.append(f'| {name}{mark} | {" | ".join([*own, *rest])} |')
  for row in rows:
    if not row['reproduction']:
      changed = ''.join(f', {name}={text}' for name, text in row['changed'].items())
      images = '{:,} and {:,} images'.format(*row['examples'])
      about = f'{row["method"]}: {images}, {row["seeds"]} seeds{changed}.'
      lines += ['', f'No reproduction by these rules, {about}']
  said = f'Published: linear probes of {SOURCE}. They are the best of all epochs by the images to'
  lines += ['', '## Rules', RULES, said, 'judge by, with the rates of ImageNet.', '']
  return '\n'.join(lines)


def main(given: argparse.Namespace) -> None:
  """The command."""
  methods = given.methods or METHODS
  for name in methods:
    if name not in METHODS:
      raise RunError(f'unknown method {name!r}: {suggest(name, METHODS)}')
  file = lambda method: given.results / f'{method}.json'  # noqa: E731
  if not given.data:
    for method in methods:
      known = f', {PUBLISHED[method]:.1%} published' if method in PUBLISHED else ''
      work, done = exaflops(method), ', has a row' if file(method).exists() else ''
      hours = work * 1e18 / 1e14 / 3600
      print(f'{method}: {work:.3f} exaFLOP, {hours:.2f} hours at 100 TFLOP/s{known}{done}')
    print('a run of each, of which a method has six, and three are fine-tuned; start: --data=DIR')
    return
  changes = dict(text.split('=', 1) for text in given.set)
  for name in changes:
    if name in OWN:
      raise RunError(f'--set {name}: this command says {", ".join(OWN)} itself, by its rules')
    # Of the recipe of `labels` all have what is not of its model: it fine-tunes them.
    where = methods if name.startswith('model.') else [*methods, 'labels']
    if not any(_has(config_lib.load(config_of(method)), name) for method in where):
      raise RunError(f'--set {name}: none of {", ".join(methods)} has this field')
  found = guess(given.data, [item for item in changes.items() if item[0].startswith('data.source')])
  if (found.split, len(found.opened.class_names)) != ('train', CLASSES) or not found.test:
    raise RunError(
      f'{given.data} is not Imagenette: expected train and val, or validation, of {CLASSES} '
      f'classes, and found {found.split} of {len(found.opened.class_names)} classes and '
      f'{found.test or "nothing to judge by"}'
    )
  folder = pathlib.Path(given.workdir).absolute()
  asked = Asked(found.source, found.test, len(found.opened), folder, given.seeds, changes)
  given.results.mkdir(parents=True, exist_ok=True)
  for method in methods:
    file(method).write_text(json.dumps(measured(asked, method), indent=1) + '\n')
    rows = [json.loads(file(each).read_text()) for each in METHODS if file(each).exists()]
    (given.results / 'README.md').write_text(page(rows))
    print(f'{file(method)} is written', flush=True)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('methods', nargs='*', help=f'of {", ".join(METHODS)}; all, if none is given')
  parser.add_argument('--data', default='', help='imagenette2-320, or a name of TFDS')
  parser.add_argument('--workdir', default='runs/imagenette_ssl', help='where runs are kept')
  parser.add_argument('--seeds', type=int, default=SEEDS, help=f'runs of each ({SEEDS})')
  parser.add_argument('--results', type=pathlib.Path, default=RESULTS, help='for rows and table')
  parser.add_argument(
    '--set', action='append', default=[], metavar='FIELD=VALUE', help='of every run that has it'
  )
  arguments = parser.parse_args()
  flags.FLAGS.mark_as_parsed()
  try:
    main(arguments)
  except RunError as error:
    sys.exit(f'error: {error}')
