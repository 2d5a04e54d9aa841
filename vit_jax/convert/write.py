"""Writing a model as a checkpoint of any dialect."""

from __future__ import annotations

import json
from typing import Any

import jax
import ml_dtypes
import numpy as np

from vit_jax.architecture.card import Card, about
from vit_jax.checkpoints.store import Checkpoints
from vit_jax.convert import (
  adapt,
  files,
  layout,
  npz,
  openai,
  timm,
  transformers,
  transformers_config,
)
from vit_jax.convert.dialects import DIALECTS, SIDECARS
from vit_jax.convert.read import recognise
from vit_jax.convert.source import Source
from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.models.two_towers import TwoTowersConfig
from vit_jax.nn import tree


def save(
  model: Any, path: str | paths.Path, dialect: str, *, dtype: str = 'float32',
  overwrite: bool = False,
) -> None:  # fmt: skip
  """Writes a model so that the programs which speak `dialect` can read it.

  Args:
    model: `models.vit.ViT` or `models.two_towers.TwoTowers`.
    path: of a file, or of a folder where the dialect has a configuration beside the weights. It
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
  suffix = DIALECTS[dialect]
  if suffix != 'folder' and path.suffix != suffix:
    raise RunError(f'a checkpoint of {dialect} is a file that ends in {suffix}, not {path.name}')
  if suffix == 'folder' and path.suffix in ('.npz', '.safetensors'):
    raise RunError(f'a checkpoint of {dialect} is a folder: {path.with_suffix("")}')
  leaves = {n: np.asarray(jax.device_get(leaf)) for n, leaf in tree.flatten(model).items()}
  card = model.card or _plain_card(model.config)
  if dialect == 'vit_jax':
    return _save_run(path, model, card, overwrite)
  config, leaves = adapt.for_dialect(model.config, leaves, dialect)
  shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
  beside: dict[str, Any] = {}
  if dialect.startswith('transformers'):
    style = transformers.style_for(config, old=dialect == 'transformers')
    made = transformers.make_rules(config, shapes, style)
    beside = transformers_config.sidecar(config, card, style)
  elif dialect == 'openai':
    made = openai.make_rules(config, shapes, openai.style_for(config))
    beside = openai.sidecar(config, card)
  elif dialect in ('timm', 'dinov2', 'dinov3'):
    if isinstance(config, TwoTowersConfig):
      raise RunError(f'{dialect} has no text towers')
    made = timm.make_rules(config, shapes, timm.style_for(config, dialect))
    beside = {'config.json': timm.sidecar(config, card)} if dialect == 'timm' else {}
  else:
    made = npz.make_rules(config, shapes, npz.style_for(config, dialect))
  kind = {'float32': np.float32, 'float16': np.float16, 'bfloat16': ml_dtypes.bfloat16}
  if dtype not in kind:
    raise RunError(f'unknown dtype {dtype!r}: {suggest(dtype, kind)}')
  arrays = {n: a.astype(kind[dtype]) for n, a in layout.write(made, leaves).items()}
  _check_expressed(config, arrays, beside, dialect)
  if beside.get('config.json', {}).get('num_register_tokens') == 0:  # an array of none
    arrays['embeddings.register_tokens'] = np.zeros((1, 0, config.width), kind[dtype])
  with paths.target(path, overwrite=overwrite) as place:
    if suffix == '.npz':
      files.write_npz(place, arrays)
    elif suffix == '.safetensors':
      # Their state dicts do not say how many heads there are.
      files.write_safetensors(place, arrays, {'num_heads': str(config.num_heads)})
    else:
      place.mkdir()
      name = 'open_clip_model.safetensors' if dialect == 'openai' else 'model.safetensors'
      files.write_safetensors(place / name, arrays, {})
      for name, value in beside.items():
        (place / name).write_text(json.dumps(value, indent=2) + '\n')
  return None


def _check_expressed(
  config: Any, arrays: dict[str, np.ndarray], beside: dict[str, Any], dialect: str
) -> None:
  """Raises RunError unless what is about to be written would be read as the same model."""
  stubs = {n: files.Stub(a.shape, a.dtype, lambda a=a: a) for n, a in arrays.items()}
  # The number of heads goes into the header of the file.
  hints = {'num_heads': config.num_heads} if dialect in ('dinov2', 'dinov3') else {}
  known = next((beside[name] for name in SIDECARS if name in beside), {})
  try:
    back = recognise(Source(dialect, stubs, json.loads(json.dumps(known)), hints=hints))[3]
  except RunError as error:
    raise RunError(f'{dialect} cannot express this model. Read back, {error}') from None
  pairs = [(config, back)]
  if isinstance(config, TwoTowersConfig):
    pairs = [
      (config.image, getattr(back, 'image', None)),
      (config.text, getattr(back, 'text', None)),
    ]
  for ours, theirs in pairs:
    a, b = adapt.signature(ours), adapt.signature(theirs) if theirs else {}
    for name, value in a.items():
      if b.get(name) != value:
        raise RunError(
          f'{dialect} cannot express {name}={value!r}: it would be read as {b.get(name)!r}. To '
          f'write it all the same, load it with {name}={b.get(name)!r}.'
        )


def _plain_card(config: Any) -> Card:
  image = config.image if isinstance(config, TwoTowersConfig) else config
  channels = image.in_channels
  return Card('vit_jax', image.image_size, (0.5,) * channels, (0.5,) * channels)


def _save_run(path: paths.Path, model: Any, card: Card, overwrite: bool) -> None:
  with paths.target(path, overwrite=overwrite) as place:
    checkpoints = Checkpoints(place / 'checkpoints')
    try:
      checkpoints.save(0, {'model': model}, about(model.config, card))
    finally:
      checkpoints.close()
