"""The checkpoints, of any dialect, that a run starts from (`config.init` and `config.inits`)."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.architecture import SINGLE, Composition, ViTArchitecture, encoders
from vit_jax.architecture.card import Card, about
from vit_jax.convert import adapt, notes, read
from vit_jax.convert.opened import Opened
from vit_jax.convert.parts import CHOICE, chosen
from vit_jax.convert.recognise import HintsError
from vit_jax.core import schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.misfits import refuse
from vit_jax.data.fields import Field
from vit_jax.data.files import few
from vit_jax.nn import tree
from vit_jax.tasks.networks import Network
from vit_jax.tasks.task import Fields, Task
from vit_jax.training.config import OWN, Config

# Fields that no checkpoint can be loaded with other values of.
_SIZES = ('width', 'depth', 'mlp_dim', 'num_heads')
_HEADS = ('head/', 'distill_head/')


def starts(cfg: Config) -> list[Start]:
  """The checkpoints that a run starts from: one of the whole model, or of some of its towers."""
  if cfg.init:
    return [Start(cfg.init, cfg.model)]
  return [Start(path, cfg.model.towers[name], name) for name, path in cfg.inits.items()]


def said(
  every: Sequence[Start], wishes: Mapping[str, Any], model: Any, asked: Any, task: Any
) -> list[str]:
  """Settles what is taken over, and says so, a line for each fact.

  Args:
    every: the starts of a run.
    wishes: of `config.started`.
    model: what the run has made of all of them.
    asked: the task as it was configured.
    task: as it is.
  """
  lines = []
  seeing = [start for start in every if start.sees]
  decided = {**schema.leaves(model, 'model.'), **schema.leaves(task, 'task.')}
  for start in every:
    start.settle(model.towers[start.tower] if start.tower else model)
    sections = [f'model.{start.tower}.' if start.tower else 'model.']
    if seeing and start is seeing[0]:  # images are normalised as that one was trained
      sections.append('task.')
    own = {n: value for n, value in decided.items() if n.startswith(tuple(sections))}
    start.compare(wishes, own)
    lines += start.notes
  statistics = [(start.card.mean, start.card.std) for start in seeing]
  if len(set(statistics)) > 1 and getattr(asked, 'mean', ()) is None:
    mean, std = statistics[0]
    lines.append(
      f'images are normalised with mean {mean} and std {std}, as {seeing[0].path} was trained; '
      'the other towers were trained with others'
    )
  return lines


def owned(task: Task, model: Any, fields: Fields) -> list[Owned]:
  """The networks of a task's own, opened.

  Args:
    task: of the run.
    model: resolved, as the task has adapted it.
    fields: of the examples.
  """
  names = fields[task.classed].names if task.classed in fields else ()
  return [Owned(name, each, model, names) for name, each in task.networks.items()]


class Owned:
  """A network of a task's own, before anything but its description is read.

  Attributes:
    name: of the field of the task.
    network: that field, with what was found.
    note: on what was decided.
  """

  def __init__(self, name: str, network: Network, model: Any, names: Sequence[str]):
    """Opens its checkpoint.

    Args:
      name: of the field.
      network: the field.
      model: of the run, whose images the network sees.
      names: of the classes of the data.

    Raises:
      RunError: if it cannot be read, classifies no images, or has other classes.
    """
    self.name, field = name, f'task.{name}.init'
    path, choice = chosen(network.init, field)
    if 'tower' in choice:
      raise RunError(f'{field}={network.init}: a {name} classifies images, and has no towers')
    with notes.printed():
      opened = read.open_checkpoint(path, **choice)
    refuse(opened.problems(), path)
    config: Any = opened.config
    if not isinstance(config, SINGLE) or not config.num_classes:
      raise RunError(f'{field}={path} holds a {config.kind} without classes: a {name} needs some')
    if fresh := [leaf for leaf in opened.untrained if leaf.startswith(_HEADS)]:
      raise RunError(f'{field}={path} lacks {", ".join(sorted(fresh))}: it has nothing to say')
    self._order = _order(opened.card.class_names, config.num_classes, names, network, name)
    self._opened = opened
    self._changes: dict[str, Any] = {'in_channels': getattr(model, 'in_channels', 3)}
    if network.image_size:
      self._changes['image_size'] = network.image_size
    config = adapt.changed(config, self._changes)
    card = adapt.card_for_channels(opened.card, config.in_channels)
    card = dataclasses.replace(card, class_names=tuple(names), task={}, fields={})
    off = {n: 0.0 for n in ('dropout', 'drop_path', 'patch_dropout') if hasattr(config, n)}
    config = dataclasses.replace(
      config, num_classes=len(self._order), dtype=network.dtype, remat='none', **off
    ).resolve()
    found = json.dumps(about(config, card), sort_keys=True)
    self.network = dataclasses.replace(network, found=found)
    size = 'x'.join(map(str, config.image_size))
    which = 'taken for those of the same number' if network.by_number else 'matched by name'
    self.note = (
      f'{name}: {config.kind} of {path}, {network.dtype}, images of {size} with mean {card.mean} '
      f'and std {card.std}; {len(self._order)} of its {opened.config.num_classes} classes, {which}'
    )

  def leaves(self) -> dict[str, Any]:
    """Its parameters by name, with the classes of the data in their order."""
    opened = self._opened
    _, _, found = adapt.adapt(opened.config, opened.card, opened.leaves(), self._changes)
    heads = [name for name in found if name.startswith(_HEADS)]
    return found | {name: np.asarray(found[name])[..., self._order] for name in heads}


def _order(
  theirs: Sequence[str], count: int, names: Sequence[str], network: Network, name: str
) -> list[int]:
  """The class of a network for each class of the data; raises RunError if they are not matched."""
  where = f'task.{name}.init={network.init}'
  if theirs and network.by_number:
    raise RunError(f'{where} names its classes: leave out task.{name}.by_number')
  if not names:
    raise RunError(f'the classes of the data have no names, by which a {name} is asked for them')
  if not theirs:
    if network.by_number and count == len(names):
      return [*range(count)]
    way = '' if network.by_number else f'; task.{name}.by_number=true takes label i for its class i'
    raise RunError(
      f'{where} has {count} classes without names, and the data have {len(names)}'
      f'{way if count == len(names) else ": they cannot be matched"}'
    )
  if missing := [each for each in names if each not in theirs]:
    raise RunError(
      f'{where} does not know {few(missing, 5)}, classes of the data; it has {few([*theirs], 5)}'
    )
  return [list(theirs).index(each) for each in names]


class Start:
  """What a model, or one of its towers, takes over from a checkpoint, before anything is read.

  Attributes:
    tower: of the model, by name; '' for the whole.
    path: of the checkpoint.
    model: the architecture in it, with the fields that the run sets changed. A model that is not
      one of several towers has no head, unless the run says how many classes it has.
    card: what the checkpoint says of images and classes.
    notes: what was decided, a line each.
    field: of the configuration, that names it.
    revision: of a checkpoint on the hub, the commit.
    named: the path with all that was chosen, for others to read the same.
  """

  def __init__(self, path: str, fields: Any, tower: str = ''):
    """Opens a checkpoint.

    Args:
      path: of it.
      fields: an architecture of which the fields that are set change the checkpoint's.
      tower: of the model, by name; '' for the whole.

    Raises:
      RunError: if the checkpoint cannot be read, or cannot be changed like that.
    """
    self.tower, self.notes = tower, []
    self.field = f'inits.{tower}' if tower else 'init'
    self.path, choice = chosen(path, self.field)
    self.named = path
    try:
      opened, name = _open(self.path, choice, fields, tower, self.field)
      refuse(opened.problems(), self.path)
    except RunError as error:
      ways = _ways_out(str(error), self.path, self.field, _given(fields))
      raise RunError(f'{error}{ways}') from None
    self.revision, self._untrained = opened.revision, opened.untrained
    self._config, self._leaves = opened.config, opened.leaves()
    # What a tower projects to stays; a single model has the classes of its own data.
    keep = isinstance(self._config, Composition) and (tower or isinstance(fields, Composition))
    if self.revision:
      self.named = self.named.replace(self.path, f'{self.path.partition("@")[0]}@{self.revision}')
    if name:
      if 'tower=' not in self.named:
        self.named += f'{"&" if "?" in self.named else "?"}tower={name}'
      self.notes.append(f'{self.field}: of {self.path} the tower {name!r} is read')
      self._config, self._leaves = encoders(self._config)[name], tree.inside(self._leaves, name)
      self._untrained = {n.removeprefix(f'{name}/') for n in self._untrained}
    _refuse_own(fields, self._config, self.field, self.path)
    self.model: Any = adapt.changed(self._config, _given(fields, keep=bool(keep)))
    if (wanted := _fresh(fields).get('queries')) is not None:
      config: Any = self._config
      found = config.queries
      if found not in (0, wanted):
        section = f'model.{tower}'.rstrip('.')
        raise RunError(
          f'{self.field}={self.path} has {found} queries, which have learned: leave out '
          f'{section}.queries={wanted}'
        )
      self.model = dataclasses.replace(self.model, queries=wanted).resolve()
    self.card: Card = opened.card
    channels = [t.in_channels for t in encoders(self.model).values() if hasattr(t, 'in_channels')]
    if channels:
      self.card = adapt.card_for_channels(self.card, channels[0])
    self._order: list[int] | None = None
    self._fresh_head = False

  @property
  def sees(self) -> bool:
    """Whether its card is of images that the model gets."""
    return any(hasattr(tower, 'image_size') for tower in encoders(self.model).values())

  def within(self, model: Any) -> Any:
    """A model's configuration with what was found."""
    return dataclasses.replace(model, **{self.tower: self.model}) if self.tower else self.model

  def set_classes(self, names: Sequence[str]) -> tuple[str, ...]:
    """Decides what becomes of the head of a single model: kept for the same classes by name.

    Args:
      names: of the classes of the data. Their number is that of the model unless the run sets one.

    Returns:
      Names of the classes by label: the checkpoint's, where all of its classes are kept because the
      run sets their number and it knows those of the data.
    """
    if self.tower or not isinstance(self.model, SINGLE):
      return tuple(names)
    theirs, count = self.card.class_names, self._config.num_classes
    wanted, names = self.model.num_classes, tuple(names)
    self.model = dataclasses.replace(self.model, num_classes=wanted or len(names))
    known = bool(names) and {*names} <= {*theirs}
    if known and len(theirs) == len(names) and count == self.model.num_classes:
      self._order = [theirs.index(name) for name in names]
      self.notes.append(f'head: kept from {self.path}, which has the same {count} classes')
    elif wanted == count and known:
      self.notes.append(f'head: kept from {self.path} with its {count} classes, matched by name')
      return theirs
    elif wanted and wanted == count and not theirs:
      self.notes.append(
        f'head: kept from {self.path}, as model.num_classes={wanted} is set; its classes have no '
        'names, so label i of the data is its class i'
      )
    else:
      self._fresh_head = True
      reason = 'has no head' if not count else f'has {count} classes without names'
      reason = f'has the classes {few(list(theirs), 5)}' if theirs else reason
      by_number = not theirs and count == len(names)
      keep = f' (--config.model.num_classes={count} keeps it)' if known or by_number else ''
      self.notes.append(
        f'head: new, for {self.model.num_classes} classes, because {self.path} {reason}{keep}'
      )
    return names

  def set_outputs(self, task: str, target: Field | None) -> dict[str, Any]:
    """Decides what becomes of the head of a single model that gives no classes but numbers.

    Args:
      task: its name.
      target: the numbers of the data.

    Returns:
      Fields of the task without which a head that is kept would be read in another scale.
    """
    if self.tower or not isinstance(self.model, SINGLE):
      return {}
    theirs = self.card.fields.get('target', {})
    same = (
      target
      and self.card.task.get('name') == task
      and all(tuple(theirs.get(name, ())) == getattr(target, name) for name in ('names', 'units'))
    )
    if same:
      self.notes.append(f'head: kept from {self.path}, which was trained for the same numbers')
      return {name: tuple(self.card.task[name]) for name in ('center', 'spread')}
    self._fresh_head = True
    self.notes.append(f'head: new, because that of {self.path} is for something else than {task}')
    return {}

  def compare(self, wishes: Mapping[str, Any], decided: Mapping[str, Any]) -> None:
    """Notes where the checkpoint decided otherwise than a configuration file.

    Args:
      wishes: by dotted name, of `config.started`.
      decided: likewise.
    """
    other = {n: v for n, v in wishes.items() if n in decided and not _same(v, decided[n])}
    if not other:
      return
    lines = ', '.join(f'{n}={decided[n]} (not {value})' for n, value in other.items())
    self.notes.append(f'{self.path} decides {lines}')
    ways = ' '.join(
      f"--config.{n}='{value}'" for n, value in other.items() if n.rpartition('.')[2] not in _SIZES
    )
    if ways:
      self.notes.append(f'to have it as the configuration says: {ways}')

  def settle(self, model: Any) -> None:
    """Decides what is taken over for `model`, which the run has made of `self.model`."""
    mine, theirs = encoders(model), encoders(self._config)
    for name, tower in mine.items():
      classes = [getattr(each, 'num_classes', 0) for each in (tower, theirs[name])]
      if self._fresh_head or len(set(classes)) > 1:
        heads = tuple(f'{name}/{head}'.lstrip('/') for head in _HEADS)
        self._leaves = {n: leaf for n, leaf in self._leaves.items() if not n.startswith(heads)}
    said = () if self.tower or len(mine) > 1 else _HEADS
    new = [n for n in adapt.abstract(model) if n not in self._leaves and not n.startswith(said)]
    if new:
      self.notes.append(
        f'{self.field}: new, because {self.path} has nothing that fits: {notes.names(new)}'
      )
    self._settled = model

  @property
  def kept(self) -> bool:
    """Whether the head of a single model is kept, as `set_classes` has decided."""
    return not self._fresh_head

  @property
  def trained(self) -> set[str]:
    """Names, in the whole model, of what is taken over and has been trained."""
    return {f'{self.tower}/{name}'.lstrip('/') for name in self._leaves.keys() - self._untrained}

  def leaves(self) -> dict[str, Any]:
    """What is taken over, by its name in the whole model: arrays, or `Unread` ones."""
    changes = _changes(self._settled)
    _, _, found = adapt.adapt(self._config, self.card, self._leaves, changes)
    if self._order is not None:
      heads = [name for name in found if name.startswith(_HEADS)]
      found |= {name: np.asarray(found[name])[..., self._order] for name in heads}
    return {f'{self.tower}/{name}'.lstrip('/'): leaf for name, leaf in found.items()}


def _refuse_own(fields: Any, config: Any, field: str, path: str) -> None:
  """Raises RunError for fields of a composition, of no tower, that a checkpoint has otherwise."""
  if not isinstance(fields, Composition):
    return
  defaults = {each.name: each.default for each in dataclasses.fields(fields)}
  for name, value in fields.own.items():
    if value is not None and value != defaults[name] and value != config.own[name]:
      raise RunError(
        f'{field}={path} has model.{name}={config.own[name]}, which a run that starts from it '
        f'cannot change to {value}'
      )


def _given(fields: Any, *, keep: bool = False) -> dict[str, Any]:
  """The fields of an architecture that a run sets; those of towers by their names.

  With `keep` a number of classes of 0 is none that was set.
  """
  if isinstance(fields, Composition):
    return {name: _given(tower, keep=keep) for name, tower in fields.towers.items()}
  return {
    name: value for name, value in vars(fields).items()
    if name != 'variant' and value is not None and (value or name != 'num_classes' or not keep)
  }  # fmt: skip


def _fresh(fields: Any) -> dict[str, Any]:
  """What a run sets of one tower that a checkpoint need not have: tokens that are new then."""
  wanted = getattr(fields, 'queries', None) if isinstance(fields, ViTArchitecture) else None
  return {} if wanted is None else {'queries': wanted}


def _open(
  path: str, choice: dict[str, Any], fields: Any, tower: str, field: str
) -> tuple[Opened, str]:
  """Opens a checkpoint, and says which of its towers is of the wanted kind; '' for the whole."""
  chosen_tower, fresh = choice.pop('tower', ''), _fresh(fields)
  hints = {name: value for name, value in _given(fields).items() if name not in fresh}
  try:
    with notes.printed():
      opened = read.open_checkpoint(path, **choice, **hints)
    if opened.config.kind == fields.kind and not chosen_tower:
      return opened, ''
  except HintsError:
    with notes.printed(io.StringIO()):  # it is opened once more
      opened = read.open_checkpoint(path, **choice)
  name = _tower(opened.config, fields, chosen_tower, tower, f'{field}={path}')
  own: Any = hints
  for part in reversed(name.split('/')):
    own = {part: own}
  with notes.printed():
    return read.open_checkpoint(path, **choice, **own), name


def _tower(config: Any, fields: Any, wanted: str, own: str, where: str) -> str:
  """The name of the tower in a checkpoint that is of the kind of `fields`."""
  inside = f'{where} has a model of the kind {config.kind}'
  towers = {name: tower for name, tower in encoders(config).items() if name}
  if wanted and getattr(towers.get(wanted), 'kind', '') != fields.kind:
    raise RunError(f'{inside}, in which there is no tower {wanted!r} of the kind {fields.kind}: '
                   f'{suggest(wanted, towers) if towers else "it is a single one"}')  # fmt: skip
  if isinstance(fields, Composition) or not towers:
    way = '; a tower alone starts from --config.inits.TOWER=PATH' * isinstance(fields, Composition)
    raise RunError(f'{inside}, not of the kind {fields.kind}{way}')
  fitting = [name for name, tower in towers.items() if tower.kind == fields.kind]
  if (wanted or own or config.main) in fitting:
    return wanted or own or config.main
  if len(fitting) != 1:
    raise RunError(
      f'{inside} with the towers {", ".join(towers)}: choose one of the kind {fields.kind} by '
      '?tower=NAME behind the path'
    )
  return fitting[0]


def _changes(model: Any) -> dict[str, Any]:
  """What `adapt.adapt` makes of a checkpoint's model, heads apart."""
  if isinstance(model, Composition):
    return {name: _changes(tower) for name, tower in model.towers.items()}
  fields = [name for name in adapt.CHANGES if name != 'num_classes' and hasattr(model, name)]
  return {name: getattr(model, name) for name in fields}


def _ways_out(error: str, path: str, field: str, hints: Mapping[str, Any]) -> str:
  """What to add to the message of a checkpoint that cannot be read."""
  text = ''
  if hints and 'does not fit' in error:
    section = 'model' + f'.{field.removeprefix("inits.")}' * (field != 'init')
    fields = schema.leaves(hints, f'{section}.')
    given = ', '.join(f'{n}={v}' for n, v in fields.items() if n.rpartition('.')[2] not in OWN)
    text = f'\nThe checkpoint decides the model. Leave out what contradicts it: {given}' * bool(
      given
    )
  if 'does not fit' in error or any(f'--{name}' in error for name in CHOICE):
    text += f"\nA run chooses behind the path: --config.{field}='{path}?ignore=REGEX' names what "
    text += 'may differ; part=, prefix= and step= are written likewise, joined by &.'
  return text


def _same(a: Any, b: Any) -> bool:
  """Whether two values are equal; one number stands for all channels."""
  try:
    return bool(np.allclose(a, b, atol=1e-6))
  except (TypeError, ValueError):
    return a == b
