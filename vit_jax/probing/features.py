"""Features of images by name: what of an encoder is looked at.

| name | features |
|---|---|
| `pooled` | what the head of the model reads |
| `class` | the class token |
| `mean` | the mean of the patches |
| `patches` | all patches, one after the other |
| `output` | what the model gives: logits, or projections into a space that is shared with texts |
| `pixels` | the image as the model gets it, at most 32 pixels wide and high; `pixels@28`: 28 |
| `class@8`, `mean@-4` | of the output of a block, counted from 0 or, negative, from the end |
| `class+mean` | one behind the other |
| `random:class` | of the same architecture with random parameters |

Tokens of all blocks have gone through the norm that follows the last one, if there is one, as in
the linear evaluations of DINO (Caron et al. 2021, appendix F.1) and DINOv2.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from etils import epy

from vit_jax.architecture import encoders
from vit_jax.core.errors import RunError, suggest

# Names are read before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.nn import positions, sharding

KINDS = ('pooled', 'class', 'mean', 'patches', 'output', 'pixels')
RANDOM = 'random:'
# Of `pixels`, if no other number is given: raw pixels of photographs would be more than features.
SIDE = 32


class Part(NamedTuple):
  """A kind of features, and the number of a block, or of pixels, if one is given."""

  kind: str
  at: int | None


class Feature(NamedTuple):
  """Features that are one column.

  Attributes:
    name: as it was asked for.
    parts: one behind the other.
    random: whether they are of random parameters.
  """

  name: str
  parts: tuple[Part, ...]
  random: bool


def parse(text: str) -> Feature:
  """Features by their name.

  Raises:
    RunError: if it cannot be read.
  """
  name = text.strip()
  random = name.startswith(RANDOM)
  parts = []
  for piece in name.removeprefix(RANDOM).split('+'):
    match = re.fullmatch(r'([a-z_]+)(?:@(-?\d+))?', piece.strip())
    if not match:
      raise RunError(
        f"features {text!r} cannot be read: write names such as 'class', 'mean@-4', 'class+mean' "
        "or 'random:class', separated by commas"
      )
    kind, at = match[1], None if match[2] is None else int(match[2])
    if kind not in KINDS:
      raise RunError(f'unknown features {kind!r}: {suggest(kind, KINDS)}')
    if at is not None and kind in ('pooled', 'output'):
      raise RunError(f'features {piece!r}: {kind} is of the whole model, and of no block')
    if kind == 'pixels' and (random or (at is not None and at < 1)):
      raise RunError(f'features {text!r}: pixels are of the image, at least one wide: pixels@28')
    parts.append(Part(kind, at))
  return Feature(name, tuple(parts), random)


def several(texts: str | Iterable[str]) -> tuple[Feature, ...]:
  """Features by their names, in a text separated by commas; raises RunError as `parse`."""
  names = texts.split(',') if isinstance(texts, str) else list(texts)
  found = tuple(map(parse, names))
  given = [feature.name for feature in found]
  if twice := [name for name in given if given.count(name) > 1]:
    raise RunError(f'features {twice[0]!r} are asked for twice')
  return found


def tower(model: Any) -> Any:
  """The encoder of images in a model.

  Raises:
    RunError: if it has none.
  """
  names = [name for name, each in encoders(model.config).items() if hasattr(each, 'image_size')]
  if not names:
    raise RunError(f'a model of the kind {model.config.kind} has no encoder of images')
  return functools.reduce(getattr, filter(None, names[0].split('/')), model)


def compute(encoder: Any, features: Iterable[Feature], images: Any) -> dict[str, jax.Array]:
  """Features of a batch, by name.

  Args:
    encoder: of images, see `tower`.
    features: all of this encoder's parameters, or all of random ones.
    images: normalised, as the encoder takes them: (batch, height, width, channels).

  Returns:
    float32 (batch, features of an image).

  Raises:
    RunError: for features that the encoder does not have.
  """
  every = encoder.features(images)
  return {
    feature.name: jnp.concatenate(
      [_part(encoder, every, part, images) for part in feature.parts], axis=-1
    )
    for feature in features
  }


def _part(encoder: Any, every: Mapping[str, Any], part: Part, images: Any) -> jax.Array:
  if part.kind == 'pixels':
    size = tuple(min(old, part.at or SIDE) for old in images.shape[1:3])
    return _flat(positions.resized(images.astype(jnp.float32), size))
  if part.kind in ('pooled', 'output'):
    # A hidden layer before the head belongs to what the head reads.
    name = 'pre_logits' if part.kind == 'pooled' and 'pre_logits' in every else part.kind
    return _flat(_known(every, name).astype(jnp.float32))
  if part.at is None:
    tokens = _known(every, 'patches' if part.kind in ('mean', 'patches') else part.kind)
  else:
    tokens = _of_block(encoder, every, part)
  tokens = tokens.astype(jnp.float32)
  if part.kind == 'mean':
    return tokens.mean(axis=tuple(range(1, tokens.ndim - 1)))
  return _flat(tokens)


def _known(every: Mapping[str, Any], name: str) -> jax.Array:
  if name not in every:
    there = [kind for kind in KINDS if kind in every] + ['mean'] * ('patches' in every)
    raise RunError(f'this model has no features {name!r}: it has {", ".join(there)} and pixels')
  return every[name]


def _of_block(encoder: Any, every: Mapping[str, Any], part: Part) -> jax.Array:
  """Tokens of the output of a block, normed as those of the last one."""
  depth = sum(bool(re.fullmatch(r'block\d+', name)) for name in every)
  at: Any = part.at
  if not depth:
    raise RunError(f'features {part.kind}@{at}: this model has no blocks that are numbered')
  if not -depth <= at < depth:
    raise RunError(f'features {part.kind}@{at}: the model has the blocks 0 to {depth - 1}')
  config = encoder.config
  if part.kind == 'class' and 'class' not in config.special:
    _known(every, 'class')
  x = every[f'block{at % depth:02d}']
  if hasattr(encoder.encoder, 'norm'):
    x = encoder.encoder.norm(x)
  return x[:, :1] if part.kind == 'class' else x[:, config.prefix :]


def _flat(x: jax.Array) -> jax.Array:
  return x.reshape(x.shape[0], -1, out_sharding=sharding.spec('batch', None))
