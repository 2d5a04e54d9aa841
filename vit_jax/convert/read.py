"""Reading a model out of any known checkpoint."""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from vit_jax import models
from vit_jax.architecture import (
  MODELS,
  SINGLE,
  Backbone,
  DecoderArchitecture,
  DinoArchitecture,
  LanguageArchitecture,
  MaskedArchitecture,
  TextArchitecture,
  ViTArchitecture,
  encoders,
)
from vit_jax.architecture.card import Card
from vit_jax.architecture.vit import INTERPOLATIONS
from vit_jax.checkpoints.store import Checkpoints
from vit_jax.convert import adapt, delta, files, gguf, hub, notes, parts
from vit_jax.convert import changes as changes_lib
from vit_jax.convert.dialects import SIDECARS
from vit_jax.convert.opened import Opened, Unread, Wanted
from vit_jax.convert.recognise import UnrecognisedError, search, with_hints
from vit_jax.convert.source import Source
from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.nn import sharding, tree
from vit_jax.text import kept

# Dialects in which parameters say everything about the model.
JAX = ('vit', 'vit-linen', 'big_vision', 'big_vision-scan')
# Numbers in the header of a safetensors file, see `timm.facts`.
FACTS = ('num_heads', 'decoder_num_heads', 'norm_pix_loss', 'norm_last_layer')


def load(
  path: str | paths.Path, *, step: int | None = None, part: str = '', prefix: str | None = None,
  ignore: str = '', base: str = '', tower: str = '', patch_method: str = 'bilinear', **changes: Any,
) -> Any:  # fmt: skip
  """A model from a checkpoint of any known dialect.

  What is chosen, guessed or left out on the way is logged as a warning; see `notes`.

  Args:
    path: an npz, safetensors or PyTorch file; a folder of transformers, timm or OpenCLIP; the
      directory of a run of this project; or hf:OWNER/NAME of the Hugging Face hub, see `hub`.
    step: of a run: which of its checkpoints; the newest if not given.
    part: entry of the file's outermost dict ('state_dict', 'teacher'), or of a run ('model',
      'ema'); if not given, averages come before what they are averages of, see `parts.ORDER`.
    prefix: of the names to read ('model.'); if not given, the one with which a model fits.
    ignore: regular expression of names, without the prefix, that may be missing, unexpected or
      misshapen. Parameters that are not read for that get the values of a fresh model.
    base: of a file of changes (see `delta`) the checkpoint that is changed, if it has moved.
    tower: of a model of several, the one to read alone, whose fields the changes are then.
    patch_method: how the patch embedding is resampled if patch_size is changed; see
      `layers.resample_patches`.
    **changes: fields of the model's configuration. num_classes replaces the head by a fresh one (0
      removes it), image_size (one number, or one for each axis) resamples learned positions, by the
      model's own interpolation or the one given, patch_size and in_channels resample and adapt the
      patch embedding; the other fields override what was inferred (num_heads, eps, mlp, dtype,
      remat, ...). For several towers dicts of such fields by their names: image and text, or
      encoder and decoder.

  Returns:
    `models.vit.ViT`, `models.two_towers.TwoTowers`, `models.masked.Masked` or `Mae`,
    `models.dino.Dino`, or another of `architecture.MODELS`; what it expects of images is its
    `card`.

  Raises:
    RunError: if the checkpoint is missing, damaged, not recognised, or does not fit.
  """
  if tower:
    others = {name: value for name, value in changes.items() if isinstance(value, Mapping)}
    changes = {name: value for name, value in changes.items() if name not in others}
    for name in reversed(tower.split('/')):
      changes = {name: changes}
    changes = {**others, **changes}
  opened = open_checkpoint(
    path, step=step, part=part, prefix=prefix, ignore=ignore, base=base, **changes
  )
  return model_of(opened, patch_method, tower)


def model_of(opened: Opened, patch_method: str = 'bilinear', tower: str = '') -> Any:
  """The model in a checkpoint, with the changes with which it was opened; see `load`."""
  methods = [method for method in INTERPOLATIONS if method not in ('corner', 'bicubic_offset')]
  if patch_method not in methods:
    raise RunError(f'unknown patch_method {patch_method!r}: {suggest(patch_method, methods)}')
  leaves = opened.leaves()
  config, card, changes = opened.config, opened.card, opened.changes
  if tower:
    config, leaves, changes = _alone(tower, config, leaves, changes, opened.where)
    card = dataclasses.replace(card, task={}, fields={})
  elif isinstance(config, MaskedArchitecture):
    changes = _followed(config, changes, opened.where)
  classes = changes.get('num_classes')
  if classes and classes != getattr(config, 'num_classes', classes):
    names = ', and class names are dropped' if card.class_names else ''
    notes.say(f'{opened.where}: the head for {classes} classes is new, initialised to zero{names}')
  towers: dict[str, Any] = getattr(config, 'towers', {})
  for name, one in towers.items():
    own = getattr(one, 'num_classes', 0)
    wanted = changes.get(name, {}).get('num_classes', own)
    if wanted != own:
      raise RunError(
        f'{opened.where}: {name} projects to {own} features, as the other towers '
        f'need it: its num_classes cannot be {wanted}'
      )
  config, card, leaves = adapt.adapt(config, card, leaves, changes, patch_method)
  return build(config, leaves, card)


def _alone(
  tower: str, config: Any, leaves: Mapping[str, Any], changes: Mapping[str, Any], where: str
) -> tuple[Any, dict[str, Any], Mapping[str, Any]]:
  """Of one tower: its configuration, parameters and changes."""
  towers = {name: one for name, one in encoders(config).items() if name}
  if tower not in towers:
    known = suggest(tower, towers) if towers else 'it is a single one'
    raise RunError(
      f'{where} has a model of the kind {config.kind}, without a tower {tower!r}: {known}'
    )
  for name in tower.split('/'):
    changes = changes.get(name, {})
  return towers[tower], tree.inside(leaves, tower), changes


def _followed(
  config: MaskedArchitecture, changes: Mapping[str, Any], where: str
) -> Mapping[str, Any]:
  """Changes of a model that fills in hidden patches: of its images alone, which all of it follows.

  Raises:
    RunError: for others, by which the head would be of other patches.
  """
  for name, tower in config.towers.items():
    for field in adapt.CHANGES:
      value = changes.get(name, {}).get(field, old := getattr(tower, field))
      if value != old and (name, field) != ('encoder', 'image_size'):
        raise RunError(
          f'{where} fills in patches, by which {name}.{field}={old} is decided: it cannot be '
          f'{value}; the encoder can be changed where it is read alone, with tower=encoder'
        )
  if 'decoder' not in config.towers:
    return changes
  grid = adapt.changed(config.encoder, changes.get('encoder', {})).grid
  return {**changes, 'decoder': {**changes.get('decoder', {}), 'image_size': grid}}


def build(config: Any, leaves: Mapping[str, Any], card: Card | None) -> Any:
  """A model with these parameters, sharded over the mesh in context.

  Args:
    config: resolved.
    leaves: arrays by name, or `Unread` ones.
    card: of the model.
  """
  model = jax.eval_shape(lambda key: models.create(config, nnx.Rngs(key)), jax.random.key(0))
  filled = sharding.fill_shardings(model)
  model = tree.unflatten(filled, placed(leaves, tree.flatten(filled)))
  model.card = card
  return model


def placed(
  leaves: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """Parameters on the devices.

  Args:
    leaves: arrays by name, or `Unread` ones, which are read part by part.
    wanted: types and layouts by name, of as many as are to be placed.
  """
  found, unread = {}, {}
  for name, struct in wanted.items():
    if isinstance(leaves[name], Unread):
      unread.setdefault(id(leaves[name].opened), []).append(name)
    else:
      found[name] = jax.device_put(np.asarray(leaves[name], struct.dtype), struct.sharding)
  for names in unread.values():
    own = {leaves[name].name: name for name in names}
    read = leaves[names[0]].opened.read({there: wanted[name] for there, name in own.items()})
    found |= {own[there]: array for there, array in read.items()}
  return found


def open_checkpoint(
  path: str | paths.Path, *, step: int | None = None, part: str = '', prefix: str | None = None,
  ignore: str = '', base: str = '', **hints: Any,
) -> Opened:  # fmt: skip
  """Recognises the dialect and the architecture of a checkpoint without reading its arrays.

  Args:
    path: a file, a folder of transformers, timm, OpenCLIP or a run of this project, or hf:NAME.
    step, part, prefix, ignore, base: as for `load`.
    **hints: fields of the model that the checkpoint cannot know, such as num_heads, and changes
      that `model_of` will make.

  Raises:
    RunError: if it is missing, damaged, of no known dialect, or contradicts itself.
  """
  text, hints, revision = str(path), _checked(hints), ''
  if text.startswith(hub.PREFIX):
    path, revision = hub.fetched(text)
    notes.say(f'{text}: commit {revision}')
  path = paths.at(path)
  try:
    re.compile(ignore)
  except re.error as error:
    raise RunError(f'ignore={ignore!r} is not a regular expression: {error}') from None
  if (path / 'checkpoints').is_dir():
    if prefix:
      raise RunError(f'{path} is a run, whose parameters have no prefix: choose with part')
    opened = _open_run(path, hints, part, step).ignoring(ignore)
    source = Source(str(path), dict(opened.arrays))
  elif (changed := delta.facts_of(path)) is not None:
    if part or prefix or step is not None:
      raise RunError(f'{path} holds what was changed of a checkpoint, whole: it has no parts')
    opened = delta.opened(path, changed, hints, base, open_checkpoint).ignoring(ignore)
    source = Source(str(path), dict(opened.arrays))
  elif base:
    raise RunError(f'base={base} is of a file of changes, and {path} is none')
  elif step is not None:
    raise RunError(f'step={step} picks a checkpoint of a run, but {path} is not the folder of one')
  else:
    opened, source = _open_file(path, hints, part, prefix, ignore)
  if revision:
    opened = dataclasses.replace(opened, where=text, revision=revision)
  opened = _with_right_names(opened)
  _say_what_is_read(opened, source)
  if opened.rules is not None:
    _say_what_is_guessed(opened, source)
  return opened


def _open_file(
  path: paths.Path, hints: dict[str, Any], part: str, prefix: str | None, ignore: str
) -> tuple[Opened, Source]:
  folder = path if path.is_dir() else path.parent
  file = files.weights(path) if path.is_dir() else path
  whole = files.parts(file)
  config: dict[str, Any] = {}
  preprocessor: dict[str, Any] = {}
  # A configuration counts only next to weights of its own kind.
  if path.is_dir() or file.suffix in ('.safetensors', '.bin') or file.name.endswith('.index.json'):
    beside = [folder / name for name in SIDECARS if (folder / name).exists()]
    config = paths.read_object(beside[0]) if beside else {}
    if (folder / 'preprocessor_config.json').exists():
      preprocessor = paths.read_object(folder / 'preprocessor_config.json')
  if file.suffix == '.gguf':
    config = gguf.opened(file)[1]
  said = files.facts(file) if file.suffix == '.safetensors' else {}
  if facts := {name: int(said[name]) for name in FACTS if said.get(name, '').isdecimal()}:
    config.setdefault('model_args', facts)
  chosen = parts.pick(whole, part, str(path))
  # A model without registers may still have an array of none.
  arrays = {name: a for name, a in whole[chosen].items() if 0 not in a.shape}

  def attempt(prefix: str) -> Source:
    inside = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    return Source(str(path), inside, copy.deepcopy(config), preprocessor, hints)

  try:
    opened, source = search(arrays, prefix, ignore, attempt, str(path))
  except UnrecognisedError as error:
    raise RunError(f'{error}{_others(whole, chosen)}') from None
  outside = [name for name in arrays if not name.startswith(opened.prefix)]
  if outside:
    source.notes.append(
      f'only names that begin with {opened.prefix!r} are read; not read: {notes.names(outside)}'
    )
  counts = {name: len(inside) for name, inside in whole.items() if name}
  if len(counts) > 1 and not part:
    which = f'part {chosen!r}' if chosen else 'what is in no part'
    source.notes.append(f'{which} is read{_others(counts, chosen)}')
  return dataclasses.replace(opened, part=chosen, parts=counts), source


def _others(whole: Mapping[str, Any], chosen: str) -> str:
  names = [name for name in whole if name not in ('', chosen)]
  return f'; other parts: {", ".join(names)} (choose with part)' if names else ''


def _open_run(path: paths.Path, hints: Mapping[str, Any], part: str, step: int | None) -> Opened:
  stored = _stored(path, part, step)
  extra = stored.facts
  arrays, fetch = changes_lib.applied(
    stored.shapes, stored.fetch, extra.get('lora', {}).get('scale', 0.0)
  )
  if extra['kind'] not in MODELS:
    raise RunError(f'{path} holds a model of the kind {extra["kind"]!r}, which is not known here: '
                   f'{suggest(extra["kind"], MODELS)}')  # fmt: skip
  kind = models.config_of(extra['kind'])
  whole = schema.complete(kind, extra['model'], 'the model')
  if missing := schema.missing(extra['model'], whole):  # of which today's default says nothing
    raise RunError(f'{path} does not say what model it holds: it lacks {", ".join(missing)}')
  config = with_hints(schema.build(kind, extra['model'], 'the model'), hints, str(path)).resolve()
  about = ('recipe', 'revision', 'evaluated', 'seconds')
  run = {'step': stored.step, **{name: extra[name] for name in about if name in extra}}
  card = Card.from_dict(extra['card'])
  card = dataclasses.replace(card, task=kept.found(card.task, path))
  return Opened('vit_jax', config, card, arrays, None, '', str(path),
                changes=hints, parts=stored.counts, part=stored.part, fetch=fetch,
                run=run)  # fmt: skip


class _Stored(NamedTuple):
  """One of the models in the checkpoints of a run.

  Attributes:
    step: of the checkpoint.
    part: its name.
    counts: of the arrays of all parts.
    places: where its arrays are, by their names in the model.
    shapes: of them, by these names.
    fetch: reads them.
    facts: of the checkpoint.
  """

  step: int | None
  part: str
  counts: dict[str, int]
  places: dict[str, str]
  shapes: dict[str, Any]
  fetch: Callable[[Wanted], dict[str, Any]]
  facts: dict[str, Any]


def _stored(path: paths.Path, part: str, step: int | None) -> _Stored:
  checkpoints = Checkpoints(path / 'checkpoints')
  step = checkpoints.agreed() if step is None else step  # the run may go on while this one is read
  shapes, extra = checkpoints.peek(step)
  frozen_store = Checkpoints(path / 'frozen')
  frozen = frozen_store.peek()[0] if frozen_store.steps else {}
  all_shapes = {**shapes, **{f'frozen/{name}': shape for name, shape in frozen.items()}}
  if 'card' not in extra:
    raise RunError(f'{path} was written by an older version, without a description of its model')
  if extra.get('lanes'):
    raise RunError(
      f'{path} holds {extra["lanes"]} models trained side by side (config.lanes), which '
      'cannot be loaded separately: train the one you want without config.lanes'
    )
  inside = _parts(shapes, extra, frozen)
  for places in inside.values():  # what low-rank changes are added to
    bases = {tree.whole(name) for name in places}
    places |= {name: place for name, place in _own(frozen).items() if name in bases}
  if part and part not in inside:
    raise RunError(f'{path} has no part {part!r}: {suggest(part, inside)}')
  chosen = part or next(iter(inside))
  if len(inside) > 1 and not part:
    what = 'the moving average of the parameters' if chosen == 'ema' else f'{chosen!r}'
    notes.say(
      f'{path}: {what} is read, as in evaluations; part=model reads the parameters themselves'
    )
  places = inside[chosen]

  def fetch(wanted: Wanted) -> dict[str, Any]:
    there = {places[name]: (name, struct) for name, struct in wanted.items()}
    found = {}
    for store, prefix, at in ((checkpoints, '', step), (frozen_store, 'frozen/', None)):
      own = {name.removeprefix(prefix): value for name, value in there.items()
             if name.startswith('frozen/') == bool(prefix)}  # fmt: skip
      if own:
        read = store.part({name: struct for name, (_, struct) in own.items()}, at)
        found |= {own[name][0]: array for name, array in read.items()}
    return found

  counts = {part: len({*map(tree.whole, names)}) for part, names in inside.items()}
  own = {name: all_shapes[there] for name, there in places.items()}
  return _Stored(step, chosen, counts, places, own, fetch, extra)


def save_changes(
  path: str | paths.Path, target: str | paths.Path, *, part: str = '', step: int | None = None,
  overwrite: bool = False,
) -> None:  # fmt: skip
  """Writes what a run has changed of the checkpoint that it started from; see `delta`.

  Args:
    path: of the run.
    target: a file that ends in .safetensors.
    part, step: as for `load`.
    overwrite: replace what is there.

  Raises:
    RunError: if it is no such run.
  """
  path = paths.at(path)
  if not (path / 'checkpoints').is_dir():
    raise RunError(f'{path} is not the directory of a run, of which changes are known')
  stored = _stored(path, part, step)
  delta.of_run(
    str(path), target, stored.places, stored.fetch, stored.shapes, stored.facts, overwrite
  )


def _parts(
  shapes: Mapping[str, Any], facts: Mapping[str, Any], frozen: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
  """The models in a checkpoint, the one that is judged first: stored names by the model's own."""
  judged: dict[str, str] = {}
  places = [*shapes, *(f'frozen/{name}' for name in frozen)]
  averaged = any(name.startswith('ema/') for name in shapes)
  wanted = facts.get('judged') or ['ema/' if averaged else 'model/']
  for where in wanted:
    judged |= {name.removeprefix(where): name for name in places if name.startswith(where)}
  own = [where for where in wanted if not where.startswith('frozen/')]
  found = {(own or wanted)[0].rstrip('/'): judged}
  for part in ('ema', 'model'):
    own = {n.removeprefix(f'{part}/'): n for n in shapes if n.startswith(f'{part}/')}
    if own and part not in found:
      found[part] = {**own, **_own(frozen)}
  return found


def _own(frozen: Iterable[str]) -> dict[str, str]:
  """Where the frozen parameters of a model are stored, by its own names.

  Networks that a task has of its own are beside them; see `tree.Beside`.
  """
  prefix = 'own/' if any(name.startswith('networks/') for name in frozen) else ''
  return {n.removeprefix(prefix): f'frozen/{n}' for n in frozen if n.startswith(prefix)}


def _with_right_names(opened: Opened) -> Opened:
  """Without class names if there are not as many as classes."""
  classes, names = getattr(opened.config, 'num_classes', 0), opened.card.class_names
  if not names or len(names) == classes:
    return opened
  notes.say(
    f'{opened.where}: {len(names)} class names for {classes} classes are dropped: '
    f'{notes.shown(names)}'
  )
  return dataclasses.replace(opened, card=dataclasses.replace(opened.card, class_names=()))


def _say_what_is_read(opened: Opened, source: Source) -> None:
  """Notes on what was chosen and what was left out."""
  for text in source.notes:
    notes.say(f'{opened.where}: {text}')
  if left := [*source.dropped, *opened.unread]:
    notes.say(f'{opened.where}: not read: {notes.names(left)}')
  if opened.fresh:
    notes.say(
      f'{opened.where}: missing or misshapen, so initialised as in a fresh model: '
      f'{notes.names(opened.fresh)}'
    )


def _say_what_is_guessed(opened: Opened, source: Source) -> None:
  """Notes on what no file next to the weights says."""
  config, card = opened.config, opened.card
  fields = (
    ('num_heads', 'mlp', 'pool') if isinstance(config, ViTArchitecture) else ('num_heads', 'mlp')
  )
  told = ViTArchitecture | MaskedArchitecture | DinoArchitecture
  towers = encoders(config) if isinstance(config, told) else {}
  if opened.dialect not in JAX and not source.config:
    values = ', '.join(
      f'{tower}.{field}={getattr(one, field)!r}'.lstrip('.')
      for tower, one in towers.items() for field in fields
      if field not in (opened.changes.get(tower, {}) if tower else opened.changes)
    )  # fmt: skip
    if values:
      notes.say(f'{opened.where}: no configuration next to the weights; guessing {values}')
  if isinstance(config, ViTArchitecture) and source.computed:
    notes.say(
      f'{opened.where}: {source.computed[0]} holds the fixed positions of MAE, which are computed '
      'instead, for images of other sizes, too; posemb=learned reads them as a table'
    )
  given = source.config.get('pretrained_cfg') or source.config
  sees = any(isinstance(tower, SINGLE) for tower in encoders(config).values())
  if sees and not (source.preprocessor or source.config.get('preprocess_cfg') or given.get('mean')):
    height, width = card.size
    notes.say(
      f'{opened.where}: no file next to the weights says how images are prepared; assuming '
      f'{height}x{width}, mean {card.mean}, std {card.std}, resize={card.resize!r}, '
      f'crop={card.crop:.3g}'
    )


def _checked(changes: Mapping[str, Any], tower: str = '') -> dict[str, Any]:
  """Fields, or dicts of fields by tower, with their types checked.

  One number for an image size is a square.
  """
  towers = {n: _checked(fields, n) for n, fields in changes.items() if isinstance(fields, Mapping)}
  changes = {name: value for name, value in changes.items() if name not in towers}
  for name, value in changes.items():
    if value is None:
      raise RunError(f'{name} must not be None')
  if 'image_size' in changes:
    changes['image_size'] = _size(changes['image_size'])
  # Whether the model in question has these fields is known when it is.
  kinds: dict[str, Any] = {
    field.name: kind
    for kind in (*(kind for kind in MODELS.values() if issubclass(kind, Backbone)),
                 DecoderArchitecture, LanguageArchitecture, ViTArchitecture, TextArchitecture)
    for field in dataclasses.fields(kind)
  }  # fmt: skip
  for name, value in changes.items():
    if name not in kinds:
      field = f'{tower}.{name}' if tower else repr(name)
      raise RunError(f'unknown field {field} of a model: {suggest(name, kinds)}')
    schema.complete(kinds[name], {name: value}, 'the model')
  return {**changes, **towers}


def _size(value: Any) -> Any:
  """An image size, given as one number or several, or as they are written."""
  given: Any = value
  if isinstance(value, str):
    with contextlib.suppress(ValueError, SyntaxError):
      value = ast.literal_eval(value.replace('x', ','))
  sides: Any = value if isinstance(value, list | tuple) else (value,)
  with contextlib.suppress(TypeError):
    sides = tuple(operator.index(side) for side in sides if not isinstance(side, bool))
    if 1 <= len(sides) <= 3 and min(sides) > 0:
      return sides if isinstance(value, list | tuple) else sides[0]
  raise RunError(
    f'image_size={given!r} must be one number, or height and width, after frames if there are '
    'some, of pixels'
  )
