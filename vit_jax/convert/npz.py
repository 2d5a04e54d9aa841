"""The JAX checkpoints: the original ViT and AugReg, big_vision, SigLIP and SigLIP 2, all as npz."""

from __future__ import annotations

import re
from typing import Any

from vit_jax.architecture import TwoTowersArchitecture
from vit_jax.architecture.card import Card
from vit_jax.architecture.vit import stem_stride
from vit_jax.convert import augreg, reading
from vit_jax.convert.layout import BLOCKS, Rule, Shapes, Table, To, rules
from vit_jax.convert.source import Source
from vit_jax.core.errors import RunError
from vit_jax.models.text import TextConfig
from vit_jax.models.two_towers import TwoTowersConfig
from vit_jax.models.vit import ViTConfig

PREFIXES = ('', 'params/', 'opt/target/', 'params/img/', 'opt/target/img/', 'img/')
# Of two towers, by how many tokens there are.
TOKENIZERS = {32_000: 'siglip', 256_000: 'siglip2'}
# Optimizer state and counters that training checkpoints have besides the parameters.
IGNORE = r'(opt|extra|states?|step|opt/state)(/.*)?'
POSEMB = ('pos_embedding', 'Transformer/posembed_input/pos_embedding', 'Transformer/pos_embedding')
# Where the parameters of a map head are when it is not a module of its own.
INLINED = ('probe', 'MultiHeadDotProductAttention_0', 'LayerNorm_0', 'MlpBlock_0')
STYLES: dict[str, dict[str, Any]] = {
  'vit': dict(linen=False, posemb=POSEMB[1], groupnorm=4),
  'vit-linen': dict(linen=True, posemb=POSEMB[1], groupnorm=1),
  'big_vision': dict(linen=True, posemb=POSEMB[0], groupnorm=1),
}


def recognise(source: Source) -> dict[str, Any] | None:
  """The style of a checkpoint; None if it is none of these."""
  for prefix in PREFIXES:
    if f'{prefix}embedding/kernel' in source:
      break
  else:
    return None
  if f'{prefix}probe' in source:
    source.arrays = {
      f'{prefix}MAPHead_0/{name[len(prefix):]}'
      if name.startswith(prefix) and name[len(prefix) :].split('/')[0] in INLINED else name: array
      for name, array in source.arrays.items()
    }  # fmt: skip
  posemb = next((p for p in POSEMB if f'{prefix}{p}' in source), POSEMB[0])
  shape = source.arrays[f'{prefix}{posemb}'].shape if f'{prefix}{posemb}' in source else ()
  linen = not any('MlpBlock_3/' in name for name in source.arrays)
  groups = source.arrays.get(f'{prefix}gn_root/scale')
  two = prefix.endswith('img/') and prefix.replace('img/', 'txt/Embed_0/embedding') in source
  return dict(
    prefix=prefix, posemb=posemb, linen=linen, two=two,
    scan=any('/encoderblock/' in name for name in source.arrays),
    groupnorm=len(groups.shape) if groups else 1,
    flat=len(source.arrays[f'{prefix}embedding/kernel'].shape) == 2,
    square=len(shape) == 3 and shape[0] > 1,
  )  # fmt: skip


def _blocks(base: str, style: dict[str, Any]) -> dict[str, Any]:
  base += 'encoderblock/' if style['scan'] else 'encoderblock_{}/'
  norm2, attention, mlp = (1, 0, 0) if style['linen'] else (2, 1, 3)
  attention = f'{base}MultiHeadDotProductAttention_{attention}/'
  return {
    f'{BLOCKS}norm1': f'{base}LayerNorm_0',
    **{f'{BLOCKS}attn/{n}': attention + n for n in ('query', 'key', 'value', 'out')},
    f'{BLOCKS}norm2': f'{base}LayerNorm_{norm2}',
    f'{BLOCKS}mlp/up': f'{base}MlpBlock_{mlp}/Dense_0',
    f'{BLOCKS}mlp/down': f'{base}MlpBlock_{mlp}/Dense_1',
  }


def table(config: Any, style: dict[str, Any]) -> Table:
  """From our names to theirs, for an image tower."""
  at = style['prefix']
  head = f'{at}MAPHead_0/'
  names: dict[str, Any] = {
    **_blocks(f'{at}Transformer/', style),
    'token': f'{at}cls', 'posemb': at + style['posemb'], 'embed/proj': f'{at}embedding',
    'encoder/norm': f'{at}Transformer/encoder_norm', 'pre_logits': f'{at}pre_logits',
    'head': f'{at}head', 'map_head/probe': f'{head}probe', 'map_head/norm': f'{head}LayerNorm_0',
    **{
      f'map_head/attn/{n}': f'{head}MultiHeadDotProductAttention_0/{n}'
      for n in ('query', 'key', 'value', 'out')
    },
    'map_head/mlp/up': f'{head}MlpBlock_0/Dense_0',
    'map_head/mlp/down': f'{head}MlpBlock_0/Dense_1',
  }  # fmt: skip
  if style.get('flat'):
    inputs = config.patch_size**2 * config.in_channels
    names['embed/proj/kernel'] = To(f'{at}embedding/kernel', shape=(inputs, config.width))
  if style.get('square'):
    names['posemb'] = To(at + style['posemb'], shape=(*config.grid, config.width))
  if config.stem_width:
    norm = lambda name: To(at + name, ndim=style['groupnorm'])  # noqa: E731
    names |= {'stem/root': f'{at}conv_root', 'stem/root_norm': norm('gn_root')}
    for stage, depth in enumerate(config.stem_depths):
      for unit in range(depth):
        ours, theirs = f'stem/stage{stage}_unit{unit}/', f'block{stage + 1}/unit{unit + 1}/'
        names |= {f'{ours}conv{i}': f'{at}{theirs}conv{i}' for i in (1, 2, 3)}
        names |= {f'{ours}norm{i}': norm(f'{theirs}gn{i}') for i in (1, 2, 3)}
        names |= {
          f'{ours}proj': f'{at}{theirs}conv_proj', f'{ours}proj_norm': norm(f'{theirs}gn_proj')
        }  # fmt: skip
  return names


def make_rules(config: Any, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read and written."""
  if not isinstance(config, TwoTowersArchitecture):
    return rules(table(config, style), shapes, torch=False)
  at = style['prefix'].removesuffix('img/')
  image = table(config.image, {**style, 'prefix': f'{at}img/'})
  text = {
    **_blocks(f'{at}txt/Encoder_0/', style), 'embed': f'{at}txt/Embed_0/embedding',
    'posemb': f'{at}txt/pos_embedding', 'encoder/norm': f'{at}txt/Encoder_0/encoder_norm',
    'head': f'{at}txt/head',
  }  # fmt: skip
  both = {
    **{f'image/{k}': v for k, v in image.items()},
    **{f'text/{k}': v for k, v in text.items()},
    'logit_scale': f'{at}t',
    'logit_bias': f'{at}b',
  }
  return rules(both, shapes, torch=False)


def architecture(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """The model of a checkpoint, by its arrays and by its name if it is of AugReg."""
  at, scan = style['prefix'], style['scan']
  has = lambda name: f'{at}{name}' in source  # noqa: E731
  block = f'{at}Transformer/encoderblock' + ('/' if scan else '_0/')
  attention = 'MultiHeadDotProductAttention_' + ('0' if style['linen'] else '1')
  mlp = 'MlpBlock_' + ('0' if style['linen'] else '3')
  kernel = source.shape(f'{at}embedding/kernel')
  found: dict[str, Any] = dict(variant='', width=kernel[-1], interpolation='corner')
  found |= _sizes(source, f'{block}{attention}/query/kernel', f'{block}{mlp}/Dense_0/kernel', scan,
                  f'{at}Transformer/')  # fmt: skip
  if style['flat']:
    patch = source.hints.get('patch_size') or 16
    if kernel[0] % patch**2:
      raise RunError(
        f'{source.where}: {kernel[0]} inputs do not make a patch of side {patch}: give patch_size'
      )
    found |= dict(patch_size=patch, in_channels=kernel[0] // patch**2, interpolation='bilinear_aa')
  else:
    patch, _, channels, _ = source.shape(f'{at}embedding/kernel', 4)
    found |= dict(patch_size=patch, in_channels=channels)
  if has('conv_root/kernel'):
    _, _, found['in_channels'], found['stem_width'] = source.shape(f'{at}conv_root/kernel', 4)
    stages = sum(
      any(name.startswith(f'{at}block{s}/') for name in source.arrays) for s in range(1, 9)
    )
    depths = tuple(
      len({m[1] for n in source.arrays if (m := re.match(rf'{at}block{s}/unit(\d+)/', n))})
      for s in range(1, stages + 1)
    )
    found['stem_depths'] = depths
    patch *= stem_stride(depths)
  found['class_token'] = has('cls')
  found['pool'] = 'map' if has('MAPHead_0/probe') else 'token' if has('cls') else 'mean'
  if f'{at}{style["posemb"]}' in source:
    shape = source.shape(f'{at}{style["posemb"]}', 3)
    if style['square']:
      found['image_size'] = shape[0] * patch, shape[1] * patch
    else:
      prefixes = {'class': 1, 'patches': 0} if found['class_token'] else {'patches': 0}
      found['image_size'], found['posemb_tokens'] = source.grid(shape[1], prefixes, patch)
  else:
    known = augreg.parse(source.where)
    side = known.resolution if known else 224
    found |= dict(posemb='sincos', image_size=(side, side))
  if has('pre_logits/kernel'):
    found['representation_size'] = source.shape(f'{at}pre_logits/kernel', 2)[1]
  if has('head/kernel'):
    found['num_classes'] = source.shape(f'{at}head/kernel', 2)[1]
  image = ViTConfig(**found)
  name = 'big_vision' if style['posemb'] == POSEMB[0] else 'vit'
  card = Card(name, image.image_size, resize='bilinear')
  if not style['two']:
    return image, card
  at = at.removesuffix('img/')
  block = f'{at}txt/Encoder_0/encoderblock' + ('/' if scan else '_0/')
  vocab, width = source.shape(f'{at}txt/Embed_0/embedding', 2)
  sizes = _sizes(source, f'{block}{attention}/query/kernel', f'{block}{mlp}/Dense_0/kernel', scan,
                 f'{at}txt/Encoder_0/')  # fmt: skip
  head = f'{at}txt/head/kernel'
  text = TextConfig(
    variant='', width=width, vocab_size=vocab, num_classes=source.shape(head, 2)[1],
    context_length=source.shape(f'{at}txt/pos_embedding', 3)[1], **sizes,
  )  # fmt: skip
  biased = f'{at}b' in source
  if kind := TOKENIZERS.get(vocab):
    card = reading.trained(card, source, kind, length=text.context_length, sigmoid=biased)
  return TwoTowersConfig('', image, text, logit_bias=biased), card


def _sizes(source: Source, query: str, up: str, scan: bool, base: str) -> dict[str, Any]:
  """Depth, heads and width of the MLP."""
  if scan:
    depth, _, heads, _ = source.shape(query, 4)
    return dict(depth=depth, num_heads=heads, mlp_dim=source.shape(up, 3)[2])
  depth = source.count(re.escape(base) + r'encoderblock_(\d+)/')
  return dict(depth=depth, num_heads=source.shape(query, 3)[1], mlp_dim=source.shape(up, 2)[1])


def style_for(config: Any, dialect: str) -> dict[str, Any]:
  """How a model is written in 'vit', 'vit-linen', 'big_vision' or 'big_vision-scan'."""
  base = dialect.removesuffix('-scan')
  two = isinstance(config, TwoTowersArchitecture)
  prefix = 'params/img/' if two else ''
  return dict(prefix=prefix, two=two, scan=dialect.endswith('-scan'), flat=False, square=False,
              **STYLES[base])  # fmt: skip
