"""Checkpoints of self-distillation with their heads: DINO, iBOT, and DINOv2 as it trains."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np

from vit_jax.architecture import DinoArchitecture
from vit_jax.architecture.card import Card
from vit_jax.convert import timm
from vit_jax.convert.adapt import Leaves
from vit_jax.convert.files import Stub
from vit_jax.convert.layout import Rule, Shapes, To, behind, rules
from vit_jax.convert.source import IMAGENET, Source
from vit_jax.core.errors import RunError
from vit_jax.models.dino import DinoConfig

BACKBONE = 'backbone.'
IGNORE = rf'{re.escape(BACKBONE)}({timm.IGNORE})'
# What heads are called, by our names. iBOT's prototypes of patches are behind the same MLP.
_HEADS = {
  'dino': {'head': 'head'}, 'ibot': {'head': 'head'},
  'dinov2': {'head': 'dino_head', 'patch_head': 'ibot_head'},
}  # fmt: skip
_LAST, _PATCHES = 'last_layer', 'last_layer2'
# Of teachers that never see hidden patches, as iBOT's.
_HIDDEN = f'{BACKBONE}masked_embed'
# PyTorch's newer names of a weight that is normed: its length and its direction.
_NORMED = re.compile(r'(.*\.last_layer2?)\.parametrizations\.weight\.original([01])')


def recognise(source: Source) -> dict[str, Any] | None:
  """Whose training wrote a checkpoint, and how its encoder is called; None if it has no heads."""
  arrays = {
    _NORMED.sub(lambda m: f'{m[1]}.weight_{"gv"[int(m[2])]}', name): array
    for name, array in source.arrays.items()
  }
  has = lambda head: f'{head}.{_LAST}.weight_v' in arrays  # noqa: E731
  dialect = 'dinov2' if has('dino_head') else 'dino' if has('head') else ''
  if not dialect:
    return None
  if f'head.{_PATCHES}.weight_v' in arrays:
    dialect = 'ibot'
  inner = _encoder(dataclasses.replace(source, arrays=arrays))
  encoder = timm.recognise(inner)
  if encoder is None:
    return None
  rest = {n: a for n, a in arrays.items() if n == _HIDDEN or not n.startswith(BACKBONE)}
  # Blocks that were in chunks are not any more.
  source.arrays = {**{f'{BACKBONE}{n}': a for n, a in inner.arrays.items()}, **rest}
  return dict(dialect=dialect, encoder=encoder)


def _encoder(source: Source) -> Source:
  """The same of the encoder alone."""
  inner = source.behind(BACKBONE, 'encoder')
  inner.arrays.pop(_HIDDEN.removeprefix(BACKBONE), None)
  return dataclasses.replace(inner, computed=[])


def architecture(source: Source, style: dict[str, Any]) -> tuple[DinoConfig, Card]:
  """The model of a checkpoint, by its arrays."""
  inner = _encoder(source)
  encoder, _ = timm.architecture(inner, style['encoder'])
  source.computed += [f'{BACKBONE}{name}' for name in inner.computed]
  dialect = style['dialect']
  if dialect != 'dinov2':
    encoder = dataclasses.replace(encoder, interpolation='bicubic_offset')
  name = _HEADS[dialect]['head']
  found = _head(source, name)
  patch_head = 'none' if dialect == 'dino' else 'shared'
  lengths = [f'{name}.{_LAST}.weight_g']
  if dialect == 'ibot':
    _insist_on_shared(source, name)
    lengths.append(f'{name}.{_PATCHES}.weight_g')
    if _HIDDEN not in source:
      shape = (1, encoder.width)
      source.arrays[_HIDDEN] = Stub(shape, np.float32, lambda: np.zeros(shape, np.float32))
      source.notes.append('no mask token, which in iBOT only students have: it starts at zero')
  own = _HEADS[dialect].get('patch_head', '')
  if f'{own}.{_LAST}.weight_v' in source:
    patch_head, other = 'separate', _head(source, own)
    if differ := [n for n in ('hidden', 'layers') if other.get(n) != found.get(n)]:
      raise RunError(f'{source.where}: {own} and {name} differ in {", ".join(differ)}')
    found |= {
      f'patch_{n}': other[n] for n in ('prototypes', 'bottleneck') if other[n] != found[n]
    }  # fmt: skip
    lengths.append(f'{own}.{_LAST}.weight_g')
  scaled = not _frozen(source, lengths)
  if not scaled:
    source.computed += lengths
  card = Card(
    dialect, encoder.image_size, *IMAGENET, crop=0.875,
    task={'name': 'dino', 'mean': IMAGENET[0], 'std': IMAGENET[1]},
  )  # fmt: skip
  return DinoConfig(encoder, scaled=scaled, patch_head=patch_head, **found), card


def _head(source: Source, name: str) -> dict[str, int]:
  """Sizes of a head, as fields of `DinoArchitecture`."""
  at, mlp = f'{name}.{_LAST}.weight_v', re.compile(rf'{name}\.mlp\.(\d+)\.weight')
  numbers = sorted(int(m[1]) for own in source.arrays if (m := mlp.fullmatch(own)))
  normed = any(own.startswith(f'{name}.last_norm') for own in source.arrays)
  if normed or numbers != [*range(0, 2 * len(numbers), 2)]:
    raise RunError(
      f'{source.where}: {name} has norms between its layers, which no model here has; '
      f'prefix={BACKBONE} reads the encoder alone'
    )
  prototypes, bottleneck = source.shape(at, 2)
  found = dict(prototypes=prototypes, bottleneck=bottleneck, layers=max(1, len(numbers)))
  if len(numbers) > 1:
    found['hidden'] = source.shape(f'{name}.mlp.0.weight', 2)[0]
  return found


def _values(source: Source, name: str) -> np.ndarray | None:
  """An array, or None of one that is not written yet."""
  shape, array = source.shape(name), np.asarray(source.arrays[name])
  return array if array.shape == shape else None


def _insist_on_shared(source: Source, name: str) -> None:
  """Raises RunError for patches with prototypes of their own behind the MLP of the head."""
  for kind in ('weight_g', 'weight_v'):
    own, other = (f'{name}.{last}.{kind}' for last in (_LAST, _PATCHES))
    same = source.shape(own, 2) == source.shape(other, 2)
    one, two = _values(source, own), _values(source, other)
    if not same or not (one is None or two is None or np.array_equal(one, two)):
      raise RunError(
        f'{source.where}: {name} has prototypes for patches that are not those for images, behind '
        'one MLP (shared_head=False), which no model here has; another part may share them, and '
        f'prefix={BACKBONE} reads the encoder alone'
      )


def _frozen(source: Source, lengths: list[str]) -> bool:
  """Whether all prototypes have length 1: by the header of the file, or because they do."""
  told = (source.config.get('model_args') or {}).get('norm_last_layer')
  found = [_values(source, name) for name in lengths]
  ones = all(values is not None and (values == 1).all() for values in found)
  return ones and told != 0


def make_rules(config: DinoArchitecture, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read and written."""
  dialect = style['dialect']
  inner = timm.table(config.encoder, style['encoder'])
  table: dict[str, Any] = {**behind(inner, 'encoder/', BACKBONE)}
  if dialect == 'ibot':
    table['encoder/mask_token'] = To(_HIDDEN, ndim=2)
  names = _HEADS[dialect]
  for ours, (_, prototypes) in config.sizes.items():
    if ours not in names:
      raise RunError(f'{dialect} has no {ours} of its own')
    theirs = names[ours]
    for at in range(config.layers):
      table[f'{ours}/layers/{at}'] = f'{theirs}.mlp' + f'.{2 * at}' * (config.layers > 1)
    table[f'{ours}/last/kernel'] = f'{theirs}.{_LAST}.weight_v'
    table[f'{ours}/scale'] = To(f'{theirs}.{_LAST}.weight_g', shape=(prototypes, 1))
  found = rules(table, shapes, torch=True)
  if dialect == 'ibot':  # the same arrays once more
    last = [rule for rule in found if f'.{_LAST}.' in rule.theirs]
    found += [
      dataclasses.replace(rule, theirs=rule.theirs.replace(f'.{_LAST}.', f'.{_PATCHES}.'))
      for rule in last
    ]
  return found


def style_for(dialect: str) -> dict[str, Any]:
  """How a model is written."""
  encoder = 'dinov2' if dialect == 'dinov2' else 'timm'
  return dict(dialect=dialect, encoder=dict(timm.STYLES[encoder]))


def with_lengths(config: Any, leaves: Leaves) -> tuple[Any, Leaves]:
  """A model as it is written: with lengths of its prototypes, and each size said in one way."""
  changes = {
    f'patch_{name}': 0 for name in ('prototypes', 'bottleneck')
    if getattr(config, f'patch_{name}') == getattr(config, name)
  }  # fmt: skip
  if config.layers == 1:
    changes['hidden'] = DinoArchitecture.hidden
  if not config.scaled:
    ones = {f'{n}/scale': np.ones(count, np.float32) for n, (_, count) in config.sizes.items()}
    leaves = {**leaves, **ones}
  return dataclasses.replace(config, scaled=True, **changes), leaves


def facts(config: DinoArchitecture) -> dict[str, int]:
  """What the header of a file says, in the words of their classes."""
  return dict(num_heads=config.encoder.num_heads, norm_last_layer=int(not config.scaled))
