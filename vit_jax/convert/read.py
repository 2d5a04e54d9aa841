"""Reading a model out of any known checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from vit_jax.architecture.card import Card
from vit_jax.architecture.vit import INTERPOLATIONS
from vit_jax.checkpoints.store import Checkpoints
from vit_jax.convert import (
  adapt,
  files,
  layout,
  npz,
  openai,
  timm,
  transformers,
)
from vit_jax.convert.dialects import DIALECTS, SIDECARS
from vit_jax.convert.source import Source
from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.core.misfits import misfits, refuse
from vit_jax.models.text import TextConfig
from vit_jax.models.two_towers import TwoTowersConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import sharding, tree

READERS: dict[str, Any] = {
  'npz': npz, 'openai': openai, 'transformers': transformers, 'timm': timm
}  # fmt: skip
TYPES = {np.dtype(t) for t in (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Opened:
  """A recognised checkpoint, not read yet.

  Attributes:
    dialect: who wrote it.
    config: resolved, of the model in it.
    card: of the model.
    arrays: in the file by name, shapes and dtypes known.
    rules: from them to our parameters; none for our own.
    ignore: regular expression of names that are no parameters.
    where: it is.
    guessed: whether number of heads, kind of GELU and the like are only customary ones, because
      nothing beside the arrays says them.
  """

  dialect: str
  config: Any
  card: Card
  arrays: Mapping[str, Any]
  rules: list[layout.Rule] | None
  ignore: str
  where: str
  guessed: bool = False

  def problems(self, ignore: str = '') -> list[str]:
    """What would not fit: names missing, unexpected (unless ignored) and misshapen."""
    if self.rules is None:
      wanted = {name: tuple(leaf.shape) for name, leaf in abstract(self.config).items()}
    else:
      wanted = {rule.theirs: rule.shape for rule in self.rules}
    found = {name: tuple(array.shape) for name, array in self.arrays.items()}
    ignore = f'{self.ignore}|{ignore}' if ignore else self.ignore
    return misfits(wanted, found, ignore)

  def leaves(self, ignore: str = '') -> dict[str, np.ndarray]:
    """Our parameters by name, float32; raises RunError for what does not fit, or is no number."""
    refuse(self.problems(ignore), self.where)
    if self.rules is None:
      leaves = {name: np.asarray(self.arrays[name]) for name in abstract(self.config)}
    else:
      leaves = layout.read(self.rules, self.arrays)
    for name, leaf in leaves.items():
      if leaf.dtype not in TYPES:
        raise RunError(f'{self.where}: {name} holds {leaf.dtype}, not floating-point numbers')
      leaves[name] = leaf = leaf.astype(np.float32)
      if not np.isfinite(leaf).all():
        raise RunError(f'{self.where}: {name} has values that are not finite')
    return leaves


def open_checkpoint(path: str | paths.Path, *, step: int | None = None, **hints: Any) -> Opened:
  """Recognises the dialect and the architecture of a checkpoint without reading its arrays.

  Args:
    path: a file, or a folder of transformers, timm, OpenCLIP or a run of this project.
    step: of a run: which of its checkpoints; the newest if not given.
    **hints: fields of the model that the checkpoint cannot know, such as num_heads.

  Raises:
    RunError: if it is missing, damaged, of no known dialect, or contradicts itself.
  """
  return _open(paths.at(path), _checked(hints), step)


def _open(path: paths.Path, hints: dict[str, Any], step: int | None) -> Opened:
  if (path / 'checkpoints').is_dir():
    return _open_run(path, hints, step)
  if step is not None:
    raise RunError(f'step={step} picks a checkpoint of a run, but {path} is not the folder of one')
  folder = path if path.is_dir() else path.parent
  file = files.weights(path) if path.is_dir() else path
  source = Source(str(path), files.read(file), hints=hints)
  # A configuration lies beside weights of its own kind only.
  if path.is_dir() or file.suffix in ('.safetensors', '.bin') or file.name.endswith('.index.json'):
    for name in SIDECARS:
      if (folder / name).exists():
        source.config = paths.read_object(folder / name)
        break
    if (folder / 'preprocessor_config.json').exists():
      source.preprocessor = paths.read_object(folder / 'preprocessor_config.json')
  facts = files.facts(file) if file.suffix == '.safetensors' else {}
  if facts.get('num_heads', '').isdecimal():
    source.config.setdefault('model_args', {'num_heads': int(facts['num_heads'])})
  # A model without registers may still have an array of none.
  arrays = {name: a for name, a in source.arrays.items() if 0 not in a.shape}
  source.arrays = _without_wrapper(arrays)
  name, reader, style, config, card = recognise(source)
  channels = (config.image if isinstance(config, TwoTowersConfig) else config).in_channels
  card = adapt.card_for_channels(card, channels)
  try:
    shapes = {leaf: tuple(array.shape) for leaf, array in abstract(config).items()}
    made = reader.make_rules(config, shapes, style)
  except (ValueError, OverflowError, TypeError) as error:
    raise RunError(f'{path}: the configuration makes no sense: {error}') from None
  return Opened(card.dialect or name, config, card, source.arrays, made, reader.IGNORE, str(path),
                reader is not npz and not source.config)  # fmt: skip


def recognise(source: Source) -> tuple[str, Any, dict[str, Any], Any, Card]:
  """Who wrote a checkpoint, how, and what model is in it; raises RunError."""
  for name, reader in READERS.items():
    try:
      style = reader.recognise(source)
      if style is None:
        continue
      config, card = reader.architecture(source, style)
      config = _with_hints(config, source.hints, source.where)
      config = schema.build(type(config), dataclasses.asdict(config), 'the model').resolve()
    except (TypeError, ValueError, AttributeError, ArithmeticError, LookupError) as error:
      raise RunError(f'{source.where}: the configuration makes no sense: {error}') from None
    return name, reader, style, config, card
  names = ', '.join(list(source.arrays)[:5])
  raise RunError(
    f'{source.where} is of no known dialect ({", ".join(DIALECTS)}); its names begin with {names}'
  )


def _without_wrapper(arrays: files.Arrays) -> files.Arrays:
  """Less what data-parallel training and self-distillation put before every name."""
  for prefix in ('module.', '_orig_mod.', 'backbone.', 'teacher.backbone.', 'model.'):
    inside = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
    # transformers' DINOv3 begins its layers, but not its embeddings, with 'model.'.
    if inside and (len(inside) == len(arrays) or prefix.endswith('backbone.')):
      return _without_wrapper(inside)
  return arrays


def _with_hints(config: Any, hints: Mapping[str, Any], where: str) -> Any:
  """What the caller says about the file; what is to be changed after reading comes later.

  Raises:
    RunError: for fields of one tower where there are two, or the other way round.
  """
  two = isinstance(config, TwoTowersConfig)
  wrong = [name for name in hints if (name in ('image', 'text')) != two]
  if wrong:
    form = f'image={{{wrong[0]!r}: ...}}' if two else 'its fields by themselves'
    raise RunError(f'{where} has {"two towers" if two else "one tower"}: give {form}')

  def corrected(config: Any, hints: Mapping[str, Any]) -> Any:
    fields = {k: v for k, v in hints.items() if k not in adapt.CHANGES}
    return dataclasses.replace(config, **fields)

  if not isinstance(config, TwoTowersConfig):
    return corrected(config, hints)
  image = corrected(config.image, hints.get('image', {}))
  return dataclasses.replace(
    config, image=image, text=corrected(config.text, hints.get('text', {}))
  )


def abstract(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a model's parameters by name."""
  return tree.flatten(jax.eval_shape(lambda key: config.create(nnx.Rngs(key)), jax.random.key(0)))


def build(config: Any, leaves: Mapping[str, np.ndarray], card: Card | None) -> Any:
  """A model with these parameters, sharded over the mesh in context."""
  model = jax.eval_shape(lambda key: config.create(nnx.Rngs(key)), jax.random.key(0))
  filled = sharding.fill_shardings(model)
  place = lambda path, a: jax.device_put(  # noqa: E731
    np.asarray(leaves[tree.name(path)], a.dtype), a.sharding
  )
  model = jax.tree_util.tree_map_with_path(place, filled)
  model.card = card
  return model


def load(
  path: str | paths.Path, *, step: int | None = None, ignore: str = '',
  patch_method: str = 'bilinear', **changes: Any,
) -> Any:  # fmt: skip
  """A model from a checkpoint of any known dialect.

  Args:
    path: an npz, safetensors or PyTorch file; a folder of transformers, timm or OpenCLIP; or the
      directory of a run of this project.
    step: of a run: which of its checkpoints; the newest if not given.
    ignore: regular expression of names in the file that may be left out.
    patch_method: how the patch embedding is resampled if patch_size is changed; see
      `layers.resample_patches`.
    **changes: fields of the model's configuration. num_classes replaces the head by a fresh one (0
      removes it), image_size resamples learned positions, by the model's own interpolation or the
      one given, patch_size and in_channels resample and adapt the patch embedding; the other fields
      override what was inferred (num_heads, eps, mlp, dtype, remat, ...). For two towers: image and
      text, dicts of such fields.

  Returns:
    `models.vit.ViT`, or `models.two_towers.TwoTowers`; what it expects of images is its `card`.

  Raises:
    RunError: if the checkpoint is missing, damaged, not recognised, or does not fit.
  """
  methods = [method for method in INTERPOLATIONS if method not in ('corner', 'bicubic_offset')]
  if patch_method not in methods:
    raise RunError(f'unknown patch_method {patch_method!r}: {suggest(patch_method, methods)}')
  changes = _checked(changes)
  opened = _open(paths.at(path), changes, step)
  leaves = opened.leaves(ignore)
  config, card = opened.config, opened.card
  if isinstance(config, TwoTowersConfig):
    wanted = changes.get('image', {})
    image, card, part = adapt.adapt(
      config.image, card, _part(leaves, 'image/'), wanted, patch_method
    )
    leaves |= {f'image/{name}': leaf for name, leaf in part.items()}
    config = dataclasses.replace(config, image=image)
  else:
    config, card, leaves = adapt.adapt(config, card, leaves, changes, patch_method)
  return build(config, leaves, card)


def _part(leaves: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  return {n.removeprefix(prefix): leaf for n, leaf in leaves.items() if n.startswith(prefix)}


def _checked(changes: Mapping[str, Any]) -> dict[str, Any]:
  """Changes with their types checked; one number for an image size is a square."""
  changes = dict(changes)
  known = [f.name for f in dataclasses.fields(ViTConfig)] + ['image', 'text']
  for name in changes:
    if name not in known:
      raise RunError(f'unknown field {name!r} of a model: {suggest(name, known)}')
  towers = {name: changes.pop(name) for name in ('image', 'text') if name in changes}
  for name, fields in towers.items():
    if not isinstance(fields, Mapping):
      raise RunError(f'{name} must be a dict of fields, not {fields!r}')
  if type(size := changes.get('image_size')) is int:
    changes['image_size'] = (size, size)
  for name, value in changes.items():
    if value is None:
      raise RunError(f'{name} must not be None')
  schema.complete(ViTConfig, changes, 'the model')
  size = changes.get('image_size', (1, 1))
  if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
    raise RunError(f'image_size={size!r} must be a height and a width in pixels')
  if 'image' in towers:
    towers['image'] = _checked(towers['image'])
  schema.complete(TextConfig, towers.get('text', {}), 'text')
  return {**changes, **towers}


def _open_run(path: paths.Path, hints: Mapping[str, Any], step: int | None) -> Opened:
  if step is not None and (not isinstance(step, int) or isinstance(step, bool)):
    raise RunError(f'step={step!r} must be the number of a step')
  checkpoints = Checkpoints(path / 'checkpoints')
  shapes, extra = checkpoints.peek(step)
  if 'card' not in extra:
    raise RunError(f'{path} was written by an older version, without a description of its model')
  if extra.get('lanes'):
    raise RunError(
      f'{path} holds {extra["lanes"]} models side by side, of which none can be read alone: '
      'train the one that is wanted without config.lanes'
    )
  prefix = 'ema/' if any(name.startswith('ema/') for name in shapes) else 'model/'
  names = [name for name in shapes if name.startswith(prefix)]
  arrays = {
    name.removeprefix(prefix): files.Stub(
      shapes[name].shape, shapes[name].dtype, lambda name=name: loaded[name]
    )
    for name in names
  }
  loaded = checkpoints.part(names, step)
  kind = TwoTowersConfig if extra['kind'] == 'two_towers' else ViTConfig
  config = _with_hints(schema.build(kind, extra['model'], 'the model'), hints, str(path)).resolve()
  return Opened('vit_jax', config, Card.from_dict(extra['card']), arrays, None, '', str(path))
