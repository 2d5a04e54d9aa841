"""Checkpoints of YOLOS's own code (hustvl/YOLOS): read, not written."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from vit_jax.architecture.card import Card
from vit_jax.convert import timm
from vit_jax.convert.files import Stub
from vit_jax.convert.layout import Rule, Shapes, To, behind, rules
from vit_jax.convert.source import IMAGENET, Source
from vit_jax.core.errors import RunError
from vit_jax.data.fields import Field
from vit_jax.models.yolos import YolosConfig

IGNORE = timm.IGNORE
_BACKBONE = 'backbone.'
_QUERIES, _MIDDLE = f'{_BACKBONE}det_token', f'{_BACKBONE}mid_pos_embed'
# Patches of the published models, whose images are no squares: Ti, S and its variants, B.
_SIZES = {50 * 83: (800, 1328), 32 * 54: (512, 864), 50 * 84: (800, 1344)}


def recognise(source: Source) -> dict[str, Any] | None:
  """How the encoder is called; None if nothing in it is a token to detect with."""
  if _QUERIES not in source or 'class_embed.layers.2.weight' not in source:
    return None
  encoder = timm.recognise(source.behind(_BACKBONE, 'encoder'))
  return encoder and dict(encoder=encoder)


def architecture(source: Source, style: dict[str, Any]) -> tuple[YolosConfig, Card]:
  """The model of a checkpoint, by its arrays."""
  queries, inner = source.shape(_QUERIES, 3)[1], source.behind(_BACKBONE, 'encoder')
  _, rows, width = inner.shape('pos_embed', 3)
  table, said = inner.arrays['pos_embed'], {'img_size': _size(inner, rows - queries - 1)}
  inner.arrays['pos_embed'] = Stub(
    (1, rows - queries, width), table.dtype, lambda: np.asarray(table)[:, :-queries]
  )
  if width == 330:  # the S that is less wide and deeper
    said['num_heads'] = 6
  inner = dataclasses.replace(inner, config={'model_args': said}, computed=[])
  encoder, _ = timm.architecture(inner, style['encoder'])
  encoder = dataclasses.replace(
    encoder, queries=queries, posemb_tokens='all', interpolation='bicubic'
  )
  if _MIDDLE in source and source.shape(_MIDDLE, 4)[2] != rows:
    raise RunError(
      f'{source.where}: positions between layers are of {source.shape(_MIDDLE)[2]} tokens, and '
      f'those before them of {rows}: only of as many can be read'
    )
  classes = source.shape('class_embed.layers.2.weight', 2)[0] - 1
  config = YolosConfig(encoder, classes, middle=_MIDDLE in source)
  return config, detecting(Card('yolos', encoder.image_size, *IMAGENET, 'bilinear'))


def _size(inner: Source, patches: int) -> Any:
  """Height and width of the images of an encoder with so many patches."""
  patch, side = inner.shape('patch_embed.proj.weight', 4)[2], math.isqrt(max(patches, 0))
  square = (side * patch,) * 2 if side and side * side == patches else None
  found = inner.hints.get('image_size') or _SIZES.get(patches) or square
  if not found:
    raise RunError(
      f'{inner.where}: {patches} patches are no square: give encoder.image_size=(height, width)'
    )
  return found


def detecting(card: Card) -> Card:
  """A card of images that keep their shape, in which boxes are found."""
  # Numbers that no class has are called N/A in COCO's, all of them alike: nobody looks for these.
  fields = {'image': Field('image', dtype='uint8'), 'boxes': Field('boxes', card.class_names)}
  return dataclasses.replace(
    card, fills=True,
    task={'name': 'detection', 'class_weight': 1.0, 'mean': card.mean, 'std': card.std},
    fields={name: dataclasses.asdict(field) for name, field in fields.items()},
  )  # fmt: skip


def make_rules(config: YolosConfig, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read; queries come behind the patches there."""
  encoder = config.encoder
  late = (encoder.prefix - encoder.queries, encoder.queries)
  shape = (encoder.depth - 1, 1, config.places, encoder.width)
  inner = behind(timm.table(encoder, style['encoder']), '', _BACKBONE)
  table: dict[str, Any] = {f'encoder/{name}': to for name, to in inner.items()}
  table |= {
    'encoder/queries': _QUERIES, 'encoder/posemb': To(f'{_BACKBONE}pos_embed', late=late),
    'middle': To(_MIDDLE, shape=shape, late=late),
  }  # fmt: skip
  for ours, theirs in (('head', 'class_embed'), ('boxes', 'bbox_embed')):
    table |= {f'{ours}/layers/{i}': f'{theirs}.layers.{i}' for i in range(3)}
  return rules(table, shapes, torch=True)
