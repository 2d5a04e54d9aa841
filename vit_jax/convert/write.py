"""Writing a model as a checkpoint of any dialect."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from vit_jax.architecture import (
  SINGLE,
  Backbone,
  Composition,
  DinoArchitecture,
  LanguageArchitecture,
  MaskedArchitecture,
  MultimodalArchitecture,
  TwoTowersArchitecture,
  YolosArchitecture,
  encoders,
)
from vit_jax.architecture.card import Card, about
from vit_jax.checkpoints.staging import FACTS
from vit_jax.checkpoints.store import Checkpoints
from vit_jax.convert import (
  backbones,
  dino,
  files,
  forms,
  language,
  layout,
  masked,
  multimodal,
  notes,
  npz,
  openai,
  reading,
  timm,
  timm_config,
  transformers,
  transformers_config,
)
from vit_jax.convert.adapt import Leaves, card_for_channels
from vit_jax.convert.dialects import DIALECTS, SIDECARS
from vit_jax.convert.recognise import recognise
from vit_jax.convert.source import Source
from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.nn import tree
from vit_jax.text import folders, kept

# Dialects of a file alone, whose header says what names and shapes do not.
HEADERS = ('dinov2', 'dinov3', 'mae', 'dino', 'ibot')
DTYPES = {'float32': np.float32, 'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}


def save(
  model: Any, path: str | paths.Path, dialect: str, *, dtype: str = 'float32',
  overwrite: bool = False,
) -> None:  # fmt: skip
  """Writes a model so that the programs which speak `dialect` can read it.

  What the files say otherwise than the model, or not at all, is logged as warnings; see `notes`.

  Args:
    model: `models.vit.ViT`, `models.two_towers.TwoTowers`, `models.dino.Dino`,
      `models.yolos.Yolos`, or one of `models.masked`.
    path: of a file, or of a folder where the dialect has a configuration next to the weights. It
      appears when it is complete.
    dialect: one of `DIALECTS`.
    dtype: 'float32', 'bfloat16' or 'float16'.
    overwrite: replace what is there.

  Raises:
    RunError: if the dialect cannot express the model, or the target cannot be written.
  """
  path = paths.at(path)
  if dialect not in DIALECTS:
    raise RunError(f'unknown dialect {dialect!r}: {suggest(dialect, DIALECTS)}')
  if dtype not in DTYPES:
    raise RunError(f'unknown dtype {dtype!r}: {suggest(dtype, DTYPES)}')
  suffix = DIALECTS[dialect]
  if suffix != 'folder' and path.suffix != suffix:
    raise RunError(f'a checkpoint of {dialect} is a file that ends in {suffix}, not {path.name}')
  if suffix == 'folder' and path.suffix in ('.npz', '.safetensors'):
    raise RunError(f'a checkpoint of {dialect} is a folder: {path.with_suffix("")}')
  if overwrite and (path / 'metrics.jsonl').exists():
    raise RunError(f'{path} is the directory of a run, which is not overwritten: choose another')
  card = model.card or _plain_card(model.config)
  if dialect == 'vit_jax':
    return _save_run(path, model, card, overwrite)
  leaves = {n: np.asarray(jax.device_get(leaf)) for n, leaf in tree.flatten(model).items()}
  try:
    plan = _plan(model.config, leaves, card, dialect)
  except RunError as error:
    able = ', '.join(_able(model.config, leaves, card, dialect))
    raise RunError(f'{error}. Dialects that can hold this model: {able}') from None
  kind = DTYPES[dtype]
  arrays = {n: a.astype(kind) for n, a in layout.write(plan.rules, plan.leaves).items()}
  if plan.beside.get('config.json', {}).get('num_register_tokens') == 0:  # an array of none
    arrays['embeddings.register_tokens'] = np.zeros((1, 0, plan.config.width), kind)
  with paths.target(path, overwrite=overwrite) as place:
    if suffix == '.npz':
      files.write_npz(place, arrays)
    elif suffix == '.safetensors':
      files.write_safetensors(place, arrays, plan.facts)
    else:
      place.mkdir()
      name = 'open_clip_model.safetensors' if dialect == 'openai' else 'model.safetensors'
      files.write_safetensors(place / name, arrays, {})
      for name, value in plan.beside.items():
        (place / name).write_text(json.dumps(value, indent=2) + '\n')
      for file in plan.vocabulary:
        (place / paths.at(file).name).write_bytes(paths.at(file).read_bytes())
  for text in plan.notes:
    notes.say(f'{path}: {text}')
  return None


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is to be written.

  Attributes:
    config, leaves: of the model in a form of the dialect.
    rules: from the leaves to its arrays.
    beside: contents of the JSON files next to the weights, by name.
    facts: in the header of a safetensors file.
    notes: on what the files say otherwise than the model, or not at all.
    vocabulary: files of the tokenizer, which go along.
  """

  config: Any
  leaves: Leaves
  rules: list[layout.Rule]
  beside: dict[str, Any]
  facts: dict[str, str]
  notes: list[str]
  vocabulary: Sequence[str] = ()


def _able(config: Any, leaves: Leaves, card: Card, but: str) -> list[str]:
  """The dialects that can hold a model."""
  found = []
  for dialect in DIALECTS:
    try:
      if dialect != 'vit_jax' and dialect != but:
        _plan(config, leaves, card, dialect)
    except RunError:
      continue
    if dialect != but:
      found.append(dialect)
  return found


def _plan(model: Any, leaves: Leaves, card: Card, dialect: str) -> _Plan:
  """How a model is written; raises RunError if it cannot be."""
  config: Any
  two = isinstance(model, TwoTowersArchitecture)
  if isinstance(model, Backbone):
    return _plan_backbone(model, leaves, card, dialect)
  if isinstance(model, LanguageArchitecture):
    return _plan_language(model, leaves, dialect)
  if isinstance(model, MultimodalArchitecture):
    return _plan_multimodal(model, leaves, card, dialect)
  if isinstance(model, MaskedArchitecture | DinoArchitecture | YolosArchitecture):
    model = _not_pooled(model)
  if two and dialect in ('timm', *HEADERS):
    raise RunError(f'{dialect} has no text towers')
  if two and model.image.pool == 'map' and dialect in ('openai', 'vit', 'vit-linen'):
    raise RunError(f'{dialect} cannot express towers with a map head')
  kind, config = '', model
  if not two:
    kind, config, leaves = forms.fitted(
      model, leaves, dialect, of_classes=_says_classes(model, card)
    )
  if len(card.class_names) != getattr(config, 'num_classes', 0):
    card = dataclasses.replace(card, class_names=())
  shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
  beside: dict[str, Any] = {}
  facts: dict[str, str] = {}
  found: list[str] = []
  if dialect.startswith('transformers'):
    style = transformers.style_for(config, kind, old=dialect == 'transformers')
    made = transformers.make_rules(config, shapes, style)
    beside, found = transformers_config.sidecar(config, card, style)
  elif dialect == 'openai':
    made = openai.make_rules(config, shapes, openai.style_for(config))
    beside = openai.sidecar(config, card)
  elif isinstance(config, DinoArchitecture):
    facts = {n: str(value) for n, value in dino.facts(config).items()}
    config, leaves = dino.with_lengths(config, leaves)
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    made = dino.make_rules(config, shapes, dino.style_for(dialect))
  elif dialect in ('timm', *HEADERS):
    style = timm.style_for(config, dialect, kind)
    made = timm.make_rules(config, shapes, style)
    if dialect == 'timm':
      beside = {'config.json': timm_config.sidecar(config, card, kind, style)}
    else:
      facts = {n: str(value) for n, value in timm.facts(config, card).items()}
  else:
    made = npz.make_rules(config, shapes, npz.style_for(config, dialect))
  read, its_card = _read_back(config, made, beside, dialect)
  found += _differences(model, config, read, card, its_card, dialect, told=bool(beside))
  found += _lost(card, its_card, dialect)
  vocabulary, said = _vocabulary(card, its_card, dialect) if two else ((), [])
  return _Plan(config, leaves, made, beside, facts, found + said, vocabulary)


def _vocabulary(card: Card, its_card: Card, dialect: str) -> tuple[Sequence[str], list[str]]:
  """Files of the tokenizer that readers find beside a model, and what they are not told of it."""
  ours, theirs = card.task.get('tokenizer'), its_card.task.get('tokenizer')
  if not ours or not theirs:
    return (), []
  if ours['name'] != theirs['name']:
    return (), [f'the tokenizer {ours["name"]} is dropped: {dialect} has no place for it, and '
                f'readers assume {theirs["name"]}']  # fmt: skip
  found = [] if ours['length'] == theirs['length'] else [
    f'texts of {ours["length"]} tokens become {theirs["length"]}: {dialect} has no place for that'
  ]  # fmt: skip
  files = kept.files_of(card.task)
  if lacking := [file for file in files if not paths.at(file).is_file()]:
    return (), [*found, f'its vocabulary is not taken along: there is no file {lacking[0]}']
  if other := [f for f in files if paths.at(f).name not in (*folders.FILES, reading.MERGES)]:
    return (), [*found, f'its vocabulary is not taken along: no reader looks for {other[0]}']
  return files, found


def _not_pooled(model: Any) -> Any:
  """The one way to say a model whose towers pool nothing."""
  towers = {
    name: dataclasses.replace(tower, pool='token' if tower.class_token else 'mean')
    for name, tower in model.towers.items()
  }
  return dataclasses.replace(model, **towers)


def _says_classes(model: Any, card: Card) -> bool:
  """Whether a model says classes of hidden patches, and no pixels, by its task or its outputs."""
  if not isinstance(model, MaskedArchitecture):
    return False
  encoder = model.encoder
  if target := card.task.get('target'):
    return target in ('colours', 'codes')
  return model.outputs != math.prod(encoder.patch) * encoder.in_channels


def _plan_backbone(config: Backbone, leaves: Leaves, card: Card, dialect: str) -> _Plan:
  """As `_plan`, of a network that is no transformer."""
  style = backbones.style_for(config, dialect)
  if len(card.class_names) != config.num_classes:
    card = dataclasses.replace(card, class_names=())
  shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
  made = backbones.make_rules(config, shapes, style)
  beside = {'config.json': backbones.sidecar(config, card)} if dialect == 'timm' else {}
  read, its_card = _read_back(config, made, beside, dialect)
  found = _differences(config, config, read, card, its_card, dialect, told=bool(beside))
  return _Plan(config, leaves, made, beside, {}, found + _lost(card, its_card, dialect))


def _plan_language(config: LanguageArchitecture, leaves: Leaves, dialect: str) -> _Plan:
  """As `_plan`, of a language model."""
  if not dialect.startswith('transformers'):
    raise RunError(f'{dialect} has no language models')
  style = dict(kind=language.kind_of(config), prefix='model.', head='lm_head')
  shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
  made = language.make_rules(config, shapes, style)
  beside = {'config.json': language.sidecar(config)}
  _read_back(config, made, beside, dialect)
  found = []
  if config.dtype != 'float32':
    found.append(f'dtype={config.dtype!r} of activations is dropped: readers choose their own')
  return _Plan(config, leaves, made, beside, {}, found)


def _plan_multimodal(
  config: MultimodalArchitecture, leaves: Leaves, card: Card, dialect: str
) -> _Plan:  # fmt: skip
  """As `_plan`, of a language model that sees."""
  if not dialect.startswith('transformers'):
    raise RunError(f'{dialect} has no language models')
  style = multimodal.style_for(config)
  shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
  made = multimodal.make_rules(config, shapes, style)
  # What stands for the image in texts, other programs alone read.
  token = config.language.vocab_size - 1
  beside, found = multimodal.sidecar(config, card, style, token)
  read, its_card = _read_back(config, made, beside, dialect)
  found += _differences(config, config, read, card, its_card, dialect, told=True)
  found.append(f'the token of images is {token}, the last of the vocabulary')
  return _Plan(config, leaves, made, beside, {}, found)


def _read_back(
  config: Any, made: list[layout.Rule], beside: dict[str, Any], dialect: str
) -> tuple[Any, Card]:
  """What is written as it would be read; raises RunError unless that is the same model."""
  stubs = {rule.theirs: files.Stub(rule.shape, np.float32, lambda: None) for rule in made}
  # The number of heads goes into the header of the file, the shape of images nowhere.
  hints: dict[str, Any] = {}
  if not isinstance(config, TwoTowersArchitecture):
    hints = {name: _told(tower, dialect) for name, tower in encoders(config).items()}
    hints = hints.get('', hints)
  known = json.loads(json.dumps(next((beside[name] for name in SIDECARS if name in beside), {})))
  images = json.loads(json.dumps(beside.get('preprocessor_config.json', {})))
  try:
    _, _, _, back, card = recognise(Source(dialect, stubs, known, images, hints))
  except RunError as error:
    raise RunError(f'{dialect} cannot express this model. Read back, {error}') from None
  ours, theirs = encoders(config), encoders(back)
  pairs = [
    (tower, forms.signature(one), forms.signature(theirs[tower]) if tower in theirs else {})
    for tower, one in ours.items()
  ]
  if isinstance(config, Composition) and not isinstance(config, TwoTowersArchitecture):
    pairs.append(('', config.own, back.own))
  for tower, a, b in pairs:
    for name, value in a.items():
      if b.get(name) != value:
        name = name if isinstance(config, TwoTowersArchitecture) else f'{tower}.{name}'.lstrip('.')
        raise RunError(
          f'{dialect} cannot express {name}={value!r}: it would be read as {b.get(name)!r}'
        )
  seeing = _seeing(back)
  return back, card_for_channels(card, seeing.in_channels) if seeing else card


def _seeing(config: Any) -> Any:
  """The tower of a model that sees images, or None."""
  return next((tower for tower in encoders(config).values() if isinstance(tower, SINGLE)), None)


def _told(config: Any, dialect: str) -> dict[str, Any]:
  """What a reader is told of a tower by the header of a file, or by people."""
  known = {'image_size': config.image_size} if hasattr(config, 'image_size') else {}
  return {**known, 'num_heads': config.num_heads} if dialect in HEADERS else known


# Of a card, in the words of notes.
IMAGES = ('size', 'mean', 'std', 'resize', 'crop', 'fills', 'class_names')


def _differences(
  model: Any, config: Any, back: Any, card: Card, its_card: Card, dialect: str, *, told: bool
) -> list[str]:
  """Notes on what a written model is told otherwise, or is not told."""
  found = []
  towers = {n: t for n, t in encoders(model).items() if isinstance(t, SINGLE)}
  for name, ours in towers.items():
    if isinstance(ours, Backbone):
      continue
    written, theirs = encoders(config)[name], encoders(back)[name]
    at = '' if isinstance(model, TwoTowersArchitecture) else f'{name}.'.lstrip('.')
    if ours.posemb != written.posemb:
      sides = 'x'.join(map(str, ours.grid))
      found.append(f'{at}posemb={ours.posemb!r} is written as a learned table of {sides} '
                   'positions with the same values')  # fmt: skip
    if ours.pool != written.pool:
      found.append(f'pool={ours.pool!r} is written as pool={written.pool!r} with zeros in the head')
    for field in ('mup_width', 'mup_depth'):
      if getattr(ours, field) != getattr(written, field):
        found.append(f'{at}{field}={getattr(ours, field)} is multiplied into the parameters')
    if ours.mask_token and not written.mask_token:
      found.append('mask_token is dropped: only pre-training uses it')
    if written.posemb == 'learned' and ours.interpolation != theirs.interpolation:
      found.append(
        f'{at}interpolation={ours.interpolation!r} of positions, for images of other sizes, '
        f'becomes {theirs.interpolation!r}'
      )
  ours, theirs = _seeing(model), _seeing(back)
  return found + _differences_of_images(ours, theirs, card, its_card, dialect, told=told)


def _differences_of_images(
  ours: Any, theirs: Any, card: Card, its_card: Card, dialect: str, *, told: bool
) -> list[str]:
  """As `_differences`, of what is known of every network of images."""
  found = []
  if ours.dtype != theirs.dtype:
    found.append(f'dtype={ours.dtype!r} of activations is dropped: other programs compute in '
                 f'{theirs.dtype} unless told otherwise')  # fmt: skip
  for name in IMAGES:
    value, other = getattr(card, name), getattr(its_card, name)
    if name == 'size' and not told and (value != other or value[0] != value[1]):
      found.append(f'size={value} is dropped: {dialect} has no place for it; pass '
                   f'image_size={value} to read it')  # fmt: skip
    elif value == other:
      continue
    elif told and other != ():
      found.append(f'{name}={notes.shown(value)} becomes {notes.shown(other)}, the closest that '
                   f'{dialect} offers')  # fmt: skip
    else:
      assumed = f', and readers assume {notes.shown(other)}' if other != () else ''
      found.append(f'{name}={notes.shown(value)} is dropped: {dialect} has no place for it'
                   f'{assumed}')  # fmt: skip
  return found


def _lost(card: Card, its_card: Card, dialect: str) -> list[str]:
  """What a written model does not say, or says otherwise, of the task that it was trained for."""
  ours, theirs = card.task, its_card.task
  task = ours.get('name', 'classification')
  if task in ('classification', 'distillation'):
    return []
  if theirs.get('name') != task:
    read = '' if task == 'masked' else ', and predictions would be read as classes'
    return [f'{dialect} does not say what a model was trained for: that it is {task} is lost'
            f'{read}; the dialect vit_jax keeps it']  # fmt: skip
  return [
    f'task.{name}={ours[name]!r} is dropped: {dialect} has no place for it, and readers assume '
    f'{theirs[name]!r}'
    for name in masked.TASK if name in ours and name in theirs and ours[name] != theirs[name]
  ]  # fmt: skip


def _plain_card(config: Any) -> Card:
  image = _seeing(config)
  if image is None:
    return Card('vit_jax', (1, 1))
  channels = image.in_channels
  return Card('vit_jax', image.image_size, (0.5,) * channels, (0.5,) * channels)


def _save_run(path: paths.Path, model: Any, card: Card, overwrite: bool) -> None:
  files = kept.files_of(card.task)
  if lacking := [file for file in files if not paths.at(file).is_file()]:
    notes.say(f'{path}: its vocabulary is not taken along: there is no file {lacking[0]}')
    files = ()
  with paths.target(path, overwrite=overwrite, last=FACTS) as place:
    kept.keep(files, place)
    checkpoints = Checkpoints(place / 'checkpoints')
    try:
      checkpoints.save(0, {'model': model}, about(model.config, card))
    finally:
      checkpoints.close()
