"""A configuration that fine-tunes a checkpoint on a data set, and why it is as it is.

`python -m experiments.finetune` compares these defaults with others, and with a linear probe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax import tasks
from vit_jax.architecture import ViTArchitecture
from vit_jax.architecture.vit import on_axes
from vit_jax.convert import adapt, delta, read
from vit_jax.core import overrides, paths, schema
from vit_jax.core.errors import RunError
from vit_jax.core.text import number
from vit_jax.data import folds, preprocess
from vit_jax.data.audit import sample
from vit_jax.data.examples import Source
from vit_jax.data.fields import Field
from vit_jax.data.files import few
from vit_jax.data.sources.guess import Guess, guess, held_out, opened
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import sharding, tree
from vit_jax.probing import features, head
from vit_jax.probing.embedder import Embedded, Embedder
from vit_jax.training.config import Config
from vit_jax.training.initial import Start

FILE, HEAD, PLAN = 'finetune.py', 'start.safetensors', 'plan.json'
_LOOKED_AT = 200  # images
_LEAST_SIDE = 8  # patches
# Of how many training images so many epochs are made; between them it is interpolated.
EPOCHS = ((300, 6), (3000, 5), (30_000, 4), (300_000, 3))
_CACHED = 20_000  # that are kept in memory
_MOST = 20_000  # of which features are computed for the head
# Beside those of the model, what a checkpoint decides unless a file insists.
_OF_CHECKPOINTS = ('task.mean', 'task.std')


class Choice(NamedTuple):
  """A field of the configuration."""

  value: Any
  why: str


@dataclasses.dataclass(frozen=True)
class Facts:
  """What choices are made from.

  Attributes:
    count: of training images.
    classes: their names.
    side: the median of the longer sides of images, in pixels.
    model: the architecture of the checkpoint.
    lora: whether low-rank changes are asked for.
    accelerated: whether it is not trained on CPUs.
  """

  count: int
  classes: tuple[str, ...]
  side: int
  model: ViTArchitecture
  lora: bool = False
  accelerated: bool = False


@dataclasses.dataclass
class Plan:
  """What a run will be.

  Attributes:
    choices: by dotted name of the field.
    given: fields that a person has set, dotted names and texts.
    start: the checkpoint.
    data: that it is trained on.
    facts: of both.
    said: lines for people, beyond the choices.
    probe: share of the test images that are right before anything but a head is trained, and how
      many these are; None if that is not known.
  """

  choices: dict[str, Choice]
  given: Sequence[tuple[str, str]]
  start: Start
  data: Guess
  facts: Facts
  said: list[str]
  probe: tuple[float, int] | None = None

  @property
  def fields(self) -> dict[str, Any]:
    """Of the configuration, nested: what was chosen, and over it what was given."""
    tree: dict[str, Any] = {}
    for name, choice in self.choices.items():
      node = tree
      *path, last = name.split('.')
      for part in path:
        node = node.setdefault(part, {})
      node[last] = choice.value
    return overrides.apply(Config, tree, self.given)

  @property
  def lines(self) -> list[str]:
    """All that is to be said: each choice with its reason, and the rest."""
    given = {name for name, _ in self.given}
    lines = [
      f'{name}={_shown(choice.value)}: {choice.why}' for name, choice in self.choices.items()
      if name not in given and not any(each.startswith(f'{name}.') for each in given)
    ]  # fmt: skip
    return [*self.said, *lines, *(f'{name}={text}: as it was given' for name, text in self.given)]


def _shown(value: Any) -> str:
  if isinstance(value, Mapping):
    return ', '.join(f'{name} {each}' for name, each in value.items())
  return str(value)


def planned(checkpoint: str, folder: str, given: Sequence[tuple[str, str]]) -> Plan:
  """Chooses what is not given, and says why.

  Args:
    checkpoint: of any dialect, as for `config.init`.
    folder: see `data.sources.guess`.
    given: fields of the configuration, dotted names and texts.

  Raises:
    RunError: if either cannot be read, or is nothing that can be fine-tuned for classification.
  """
  asked: Any = overrides.apply(Config, {'model': {'name': 'vit'}}, _of('model.', given))
  data = guess(folder, _of('data.source.', given))
  if 'label' not in data.opened.fields:
    raise RunError(
      f'{data.opened.name} has no classes (a field label), but {few(list(data.opened.fields))}: '
      'vit_jax.finetune classifies; for other tasks vit_jax.train --config.init=PATH starts from a '
      'checkpoint'
    )
  if len(data.opened.class_names) < 2:
    raise RunError(
      f'{data.opened.name} has the class {", ".join(data.opened.class_names) or "none"} alone: '
      'there is nothing to tell apart'
    )
  why, data = _with_a_test(data, dict(given))
  model = {name: value for name, value in asked['model'].items() if name != 'name'}
  start = Start(checkpoint, schema.build(ViTConfig, model, 'model'))
  if not isinstance(start.model, ViTArchitecture):
    raise RunError(f'{checkpoint} is a model of the kind {start.model.kind}: a ViT is needed')
  facts = Facts(
    len(data.opened), data.opened.class_names, _side(data.opened), start.model,
    lora=any(name == 'lora.rank' and text != '0' for name, text in given),
    accelerated=jax.default_backend() != 'cpu',
  )  # fmt: skip
  said = [
    f'{facts.count:,} images of {len(facts.classes):,} classes to train on, with sides of about '
    f'{facts.side} pixels'
  ]
  choices = {
    'init': Choice(checkpoint, 'the checkpoint'),
    'data.source': Choice(data.source, 'the images'),
    'data.split': Choice(data.split, 'to train on'),
    'evals.test.split': Choice(data.test, why),
    **chosen(facts),
  }
  return Plan(choices, list(given), start, data, facts, said)


def _of(section: str, given: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
  """Fields of a section."""
  return [item for item in given if item[0].startswith(section)]


def _with_a_test(data: Guess, given: Mapping[str, str]) -> tuple[str, Guess]:
  """Data with something to test on, and why that; splits that are given come first."""
  split, test = given.get('data.split'), given.get('evals.test.split')
  if split or test or data.test:
    data = data._replace(split=split or data.split, test=test or data.test)
    if not data.test:
      raise RunError(f'data.split={split} leaves nothing to test on: give evals.test.split, too')
    if folds.overlap(data.split, data.test):
      raise RunError(
        f'evals.test.split={data.test} has images of data.split={data.split}: '
        f'{folds.way_out(data.split, "evals.test.split")}'
      )
    return 'is there to test on', data._replace(opened=opened(data.source, data.split))
  data, count = held_out(data)
  return f'held out, as there is no split to test on: one of {count} folds', data


def _side(source: Source) -> int:
  """The median of the longer sides of some images."""
  sides = []
  for example in sample(source, _LOOKED_AT):
    with contextlib.suppress(ValueError):
      sides.append(max(preprocess.described(example['image'])[0]))
  if not sides:
    raise RunError(f'{source.name}: none of the first images can be used')
  return int(np.median(sides))


def chosen(facts: Facts) -> dict[str, Choice]:
  """The recipe, by what is known."""
  count, parts = facts.count, sharding.shards('batch')
  batch = 32 if count < 3000 else 64 if count < 30_000 else 128
  batch = max(min(batch, count), 1)
  batch = -(-batch // parts) * parts
  epochs = _epochs(count)
  lr = 3e-4 if facts.lora else 1e-4
  lr *= math.sqrt(batch / 32)
  found = {
    'total': Choice(f'{epochs} epochs', f'of {count:,} images'),
    'batch_size': Choice(batch, 'small for few images, so that there are enough steps'),
    **_size(facts),
    'data.crop': Choice(
      {'name': 'random_resized', 'min_area': 0.4},
      'crops of at least 40 % of an image: less would lose what few images show',
    ),
    'data.flip': _flip(facts),
    'data.cache': Choice(
      count <= _CACHED, 'files stay in memory' if count <= _CACHED else 'too many to stay in memory'
    ),
    'optim.lr': Choice(
      float(f'{lr:.2g}'),
      'for low-rank changes' if facts.lora else '1e-4 for batches of 32, more for larger ones',
    ),
    'optim.layer_decay': Choice(
      1.0 if facts.lora else 0.75,
      'changes of low rank are small in every layer' if facts.lora else
      'layers near the pixels change least: they know most',
    ),
    'optim.weight_decay': Choice(0.05, 'as in most recipes of fine-tuning'),
    'optim.warmup': Choice('10%', 'the head is trained already, the moments of Adam are not'),
    'optim.ema': Choice(
      _average(epochs * count // batch), 'about the last fifth of the steps is averaged'
    ),
    'evals.test.crop': Choice({'name': 'resize'}, 'the whole image, as nothing may be lost'),
    'evals.test.report': Choice(
      ('top1', 'loss', 'ece', 'balanced'), 'balanced is the mean over classes'
    ),
    'evals.test.attention': Choice(
      True, 'the report shows beside the worst mistakes what they drew on'
    ),
    'evals.test.every': Choice('20%', 'five times'),
    'checkpoint.every': Choice('20%', 'likewise'),
    'log.every': Choice('2%', 'fifty points of each curve'),
  }  # fmt: skip
  if facts.accelerated:
    found['model.dtype'] = Choice('bfloat16', 'for an accelerator')
  return found


def _average(steps: int) -> float:
  """The decay of a moving average over a fifth of so many steps."""
  return round(min(max(1 - 5 / max(steps, 1), 0.0), 0.9999), 4)


def _epochs(count: int) -> int:
  """Interpolated between the logarithms."""
  sizes, epochs = zip(*EPOCHS, strict=True)
  at = np.interp(math.log(max(count, 1)), np.log(sizes), np.log(epochs))
  return round(math.exp(at))


def _size(facts: Facts) -> dict[str, Choice]:
  """The size of images, if it is not that of the checkpoint."""
  size, stride = facts.model.image_size, on_axes(facts.model.stride, 2)
  least = [max(_LEAST_SIDE, math.ceil(facts.side / step)) * step for step in stride]
  if any(small >= side for small, side in zip(least, size, strict=True)):
    return {}
  tokens = math.prod(size) / math.prod(least)
  return {
    'model.image_size': Choice(
      tuple(least),
      f'images are about {facts.side} pixels large, and the checkpoint is for '
      f'{"x".join(map(str, size))}, which has {number(round(tokens, 1))} times as many patches',
    )
  }


def _flip(facts: Facts) -> Choice:
  """Mirrored or not."""
  if all(len(name) == 1 or name.isdecimal() for name in facts.classes):
    return Choice('none', 'classes are called like digits or letters, which mirrored are others')
  return Choice('horizontal', 'half of the images are mirrored')


def with_head(plan: Plan, workdir: paths.Path) -> Plan:
  """The plan with a head that is fitted first, beside the run, unless that is there already.

  Nothing is done where the checkpoint has a head for these classes.

  Args:
    plan: of the run.
    workdir: its directory.
  """
  target, start, data = workdir / HEAD, plan.start, plan.data
  fields, classes = plan.fields, plan.facts.classes
  start.set_classes(classes)
  if start.kept:
    return plan
  if start.model.distilled:
    plan.said.append('the heads begin at zero: there are two, and a probe is of one')
    return plan
  changes = {n: fields['model'][n] for n in ('image_size',) if n in fields.get('model', {})}
  model = start.model = adapt.changed(start.model, changes)
  start.settle(model)
  card = dataclasses.replace(start.card, class_names=classes, size=model.image_size)
  choice = Choice(str(target), f'{plan.choices["init"].value} with a head that was fitted first')
  plan = dataclasses.replace(plan, choices={**plan.choices, 'init': choice})
  known, own = delta.facts_of(target), delta.header(model, card, start.named)
  if known and all(known[name] == value for name, value in own.items()):
    plan.said += known['said']
    print(f'{target} is there: the run begins with that head', flush=True)
    return plan
  backbone = _backbone(start, data.opened.fields)
  embedder = Embedder(backbone, features.several('output'))
  print(f'computing features of {len(data.opened):,} images for the head', flush=True)
  left: dict[str, None] = {}  # names in their order
  skips = fields.get('data', {}).get('on_corrupt') == 'skip'
  broken = (lambda name, _: left.setdefault(name)) if skips else None
  fitted = head.fitted(*_embedded(embedder, data.opened, broken), len(classes))
  said = [f'head: logistic regression of frozen features, C={fitted.strength:g}']
  if fitted.accuracy is not None:
    said[0] += f', {fitted.accuracy:.1%} right in folds of what is trained on'
  test = opened(data.source, data.test)
  if test.class_names == classes:
    x, labels = _embedded(embedder, test, broken)
    right = float(((x @ fitted.kernel + fitted.bias).argmax(1) == labels).mean())
    said.append(f'linear probe: {right:.2%} right of {len(labels):,} images of {data.test}')
    plan.probe = right, len(labels)
    if absent := [name for i, name in enumerate(classes) if i not in labels]:
      said.append(f'nothing is known of {few(absent)}: no image of {data.test} is of it')
  said += [f'left out: {each}' for each in left]
  plan.said += said
  norms = {
    name: float(np.linalg.norm(np.asarray(leaf, np.float64)))
    for name, leaf in tree.flatten(backbone).items()
  }
  workdir.mkdir(parents=True, exist_ok=True)
  delta.write(
    target, {'head/kernel': fitted.kernel, 'head/bias': fitted.bias}, model, card,
    base=start.named, norms=norms, said=said, overwrite=True,
  )  # fmt: skip
  return plan


def _backbone(start: Start, fields: Mapping[str, Field]) -> Any:
  """The model without its head, for whole images as the data have them."""
  config = dataclasses.replace(start.model, num_classes=0).resolve()
  leaves = {name: leaf for name, leaf in start.leaves().items() if not name.startswith('head/')}
  task = tasks.Classification(mean=start.card.mean, std=start.card.std)
  known = {name: dataclasses.asdict(field) for name, field in fields.items()}
  card = dataclasses.replace(start.card, crop=0.0, task=tasks.described(task), fields=known)
  return read.build(config, leaves, card)


def _embedded(
  embedder: Embedder, source: Source, broken: Callable[[str, ValueError], None] | None
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
  """What a head reads of up to `_MOST` examples: float32 (examples, features); and their labels."""
  with contextlib.closing(embedder(source, broken=broken)) as batches:
    count = -(-_MOST // embedder.batch_size)
    found = Embedded.joined(list(itertools.islice(batches, count)))
  return found.features['output'], np.array(found.values['label'])


def text(plan: Plan, workdir: paths.Path) -> str:
  """The configuration as a file in the directory of the run."""
  names = [*(name for name, _ in plan.given), *plan.choices]
  # Fields of the model in which the file comes before the checkpoint.
  insisted = [n for n in dict.fromkeys(names) if n.startswith('model.') or n in _OF_CHECKPOINTS]
  reasons = {name: choice.why for name, choice in plan.choices.items()}
  reasons |= {name: 'as it was given' for name, _ in plan.given}
  return '\n'.join([
    'r"""Fine-tuning, as vit_jax.finetune has planned it: change what you like.', '',
    f'    python -m vit_jax.train --config={workdir / FILE} --workdir={workdir}', '',
    *plan.said, '"""', '', 'from vit_jax.config import complete', '', '', 'def get_config():',
    '  return complete(', *_rendered(plan.fields, reasons, '    ', ''),
    f'    insisted={tuple(insisted)!r},', '  )', '',
  ])  # fmt: skip


def _rendered(
  tree: Mapping[str, Any], reasons: Mapping[str, str], indent: str, path: str
) -> list[str]:
  """Lines of a `dict(...)`, with a comment for each reason."""
  lines = [f'{indent}dict(']
  for name, value in tree.items():
    own = f'{path}{name}'
    if own in reasons:
      lines.append(f'{indent}  # {reasons[own]}')
    if isinstance(value, Mapping) and all(key.isidentifier() for key in value):
      first, *rest = _rendered(value, reasons, f'{indent}  ', f'{own}.')
      lines += [f'{indent}  {name}={first.strip()}', *rest]
    else:
      lines.append(f'{indent}  {name}={value!r},')
  return [*lines, f'{indent}),']
