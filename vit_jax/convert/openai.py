"""State dicts of OpenAI's CLIP and of OpenCLIP."""

from __future__ import annotations

from typing import Any

import numpy as np

from vit_jax.architecture import TwoTowersArchitecture
from vit_jax.architecture.card import Card
from vit_jax.convert import images, reading
from vit_jax.convert.layout import BLOCKS, Rule, Shapes, To, rules
from vit_jax.convert.source import OPENAI, Source, pair
from vit_jax.core.errors import RunError
from vit_jax.models.text import TextConfig
from vit_jax.models.two_towers import TwoTowersConfig
from vit_jax.models.vit import ViTConfig

IGNORE = r'input_resolution|context_length|vocab_size|(.*\.)?attn_mask'


def recognise(source: Source) -> dict[str, Any] | None:
  """The style of a checkpoint: whether there is text, and where; None if it is of another kind."""
  if 'visual.conv1.weight' not in source or 'visual.class_embedding' not in source:
    return None
  text = 'text.' if 'text.positional_embedding' in source else ''
  return dict(text=text, two=f'{text}positional_embedding' in source)


def _blocks(base: str) -> dict[str, Any]:
  base += 'transformer.resblocks.{}.'
  return {
    f'{BLOCKS}norm1': f'{base}ln_1',
    f'{BLOCKS}attn/query|key|value/kernel': f'{base}attn.in_proj_weight',
    f'{BLOCKS}attn/query|key|value/bias': f'{base}attn.in_proj_bias',
    f'{BLOCKS}attn/out': f'{base}attn.out_proj',
    f'{BLOCKS}scale1': f'{base}ls_1.gamma',
    f'{BLOCKS}norm2': f'{base}ln_2',
    f'{BLOCKS}mlp/up': f'{base}mlp.c_fc',
    f'{BLOCKS}mlp/down': f'{base}mlp.c_proj',
    f'{BLOCKS}scale2': f'{base}ls_2.gamma',
  }


def make_rules(config: Any, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read and written."""
  image = {
    **_blocks('visual.'),
    'token': To('visual.class_embedding', ndim=1),
    'posemb': To('visual.positional_embedding', ndim=2),
    'embed/proj': 'visual.conv1',
    'embed_norm': 'visual.ln_pre',
    'encoder/norm': 'visual.ln_post',
    'head/kernel': To('visual.proj', plain=True),
  }
  if not isinstance(config, TwoTowersArchitecture):
    return rules(image, shapes, torch=True)
  at = style['text']
  text = {
    **_blocks(at),
    'embed': f'{at}token_embedding.weight',
    'posemb': To(f'{at}positional_embedding', ndim=2),
    'encoder/norm': f'{at}ln_final',
    'head/kernel': To(f'{at}text_projection', plain=True),
  }
  both = {
    **{f'image/{k}': v for k, v in image.items()},
    **{f'text/{k}': v for k, v in text.items()},
    'logit_scale': To('logit_scale', ndim=0),
    'logit_bias': To('logit_bias', ndim=0),
  }
  return rules(both, shapes, torch=True)


def architecture(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """The model of a checkpoint, by its arrays and by open_clip_config.json."""
  given = source.config.get('model_cfg', source.config)
  vision, words = given.get('vision_cfg', {}), given.get('text_cfg', {})
  width, channels, patch, _ = source.shape('visual.conv1.weight', 4)
  block = 'visual.transformer.resblocks.'
  # OpenAI trained, and published in float16, with the quick approximation; OpenCLIP without it.
  half = source.arrays['visual.conv1.weight'].dtype == np.float16
  quick = given.get('quick_gelu', 'input_resolution' in source or half)
  common: dict[str, Any] = dict(variant='', mlp='quick_gelu' if quick else 'gelu', eps=1e-5)
  size, _ = source.grid(
    source.shape('visual.positional_embedding', 2)[0], {'class': 1}, patch,
    pair(vision.get('image_size')),
  )  # fmt: skip
  head = vision.get('head_width')
  image = ViTConfig(
    width=width, depth=source.count(r'visual\.transformer\.resblocks\.(\d+)\.'), patch_size=patch,
    num_heads=source.heads(width, width // head if head else None), in_channels=channels,
    mlp_dim=source.shape(f'{block}0.mlp.c_fc.weight', 2)[0], image_size=size, class_token=True,
    layerscale=1e-5 if f'{block}0.ls_1.gamma' in source else 0.0,
    embed_norm='visual.ln_pre.weight' in source, pool='token', no_bias='embed,head',
    num_classes=source.shape('visual.proj', 2)[1], **common,
  )  # fmt: skip
  stats = source.config.get('preprocess_cfg', {})
  resize = stats.get('interpolation', 'bicubic')
  if resize not in ('bilinear', 'bicubic'):
    source.notes.append(f'interpolation={resize!r} is not supported: bicubic')
    resize = 'bicubic'
  card = Card(
    'openai',
    size,
    tuple(stats.get('mean', OPENAI[0])),
    tuple(stats.get('std', OPENAI[1])),
    resize=resize,
    crop=0.0 if stats.get('resize_mode') == 'squash' else 1.0,
  )
  if not style['two']:
    return image, card
  at = style['text']
  if f'{at}text_projection' not in source:
    raise RunError(f"{source.where}: only CLIP's own text towers are supported")
  vocab, width = source.shape(f'{at}token_embedding.weight', 2)
  block = f'{at}transformer.resblocks.'
  text = TextConfig(
    width=width, depth=source.count(block.replace('.', r'\.') + r'(\d+)\.'), vocab_size=vocab,
    num_heads=source.heads(width, words.get('heads'), tower='text'),
    mlp_dim=source.shape(f'{block}0.mlp.c_fc.weight', 2)[0],
    context_length=source.shape(f'{at}positional_embedding', 2)[0],
    num_classes=source.shape(f'{at}text_projection', 2)[1], causal=True, pool='eot',
    no_bias='head', layerscale=1e-5 if f'{block}0.ls_1.gamma' in source else 0.0, **common,
  )  # fmt: skip
  biased = 'logit_bias' in source
  card = reading.trained(card, source, 'clip', length=text.context_length, sigmoid=biased)
  return TwoTowersConfig('', image, text, logit_bias=biased), card


def style_for(config: Any) -> dict[str, Any]:
  """How a model is written."""
  return dict(text='', two=isinstance(config, TwoTowersArchitecture))


def sidecar(config: Any, card: Card) -> dict[str, dict[str, Any]]:
  """The open_clip_config.json of a model; one without text says nothing of it."""
  two = isinstance(config, TwoTowersArchitecture)
  image = config.image if two else config
  model = {
    'embed_dim': image.num_classes,
    'quick_gelu': image.mlp == 'quick_gelu',
    'vision_cfg': {
      'image_size': image.image_size[0] if len(set(image.image_size)) == 1 else image.image_size,
      'layers': image.depth, 'width': image.width,
      'head_width': image.width // image.num_heads, 'mlp_ratio': image.mlp_dim / image.width,
      'patch_size': image.patch_size,
      **({'ls_init_value': image.layerscale} if image.layerscale else {}),
    },
  }  # fmt: skip
  if two:
    text = config.text
    model['text_cfg'] = {
      'context_length': text.context_length, 'vocab_size': text.vocab_size, 'width': text.width,
      'heads': text.num_heads, 'layers': text.depth,
    }  # fmt: skip
  return {'open_clip_config.json': {'model_cfg': model, 'preprocess_cfg': images.for_openai(card)}}
