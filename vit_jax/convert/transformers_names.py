"""What Hugging Face transformers calls our parameters, of old and since its version 5."""

from __future__ import annotations

from typing import Any

from vit_jax.architecture import (
  MaeArchitecture,
  MaskedArchitecture,
  TwoTowersArchitecture,
  ViTArchitecture,
  YolosArchitecture,
)
from vit_jax.convert import masked
from vit_jax.convert.layout import BLOCKS, Rule, Shapes, Table, To, rules

TOWERS = ('clip', 'siglip', 'siglip2')


def _block(base: str, names: tuple[str, ...]) -> dict[str, Any]:
  ours = (
    'norm1', 'attn/query', 'attn/key', 'attn/value', 'attn/out', 'norm2', 'mlp/up', 'mlp/down'
  )  # fmt: skip
  return {BLOCKS + a: base + b for a, b in zip(ours, names, strict=True)}


def table(config: ViTArchitecture, style: dict[str, Any]) -> Table:
  """From our names to theirs, for one image tower that is not of CLIP or SigLIP."""
  kind, old, prefix = style['kind'], style['old'], style['prefix']
  attention = (
    ('attention.attention.query', 'attention.attention.key', 'attention.attention.value',
     'attention.output.dense')
    if old and kind != 'dinov3_vit'
    else ('attention.q_proj', 'attention.k_proj', 'attention.v_proj', 'attention.o_proj')
  )  # fmt: skip
  names: dict[str, Any] = {
    'token': f'{prefix}embeddings.cls_token',
    'distill_token': f'{prefix}embeddings.distillation_token',
    'registers': f'{prefix}embeddings.register_tokens',
    'posemb': f'{prefix}embeddings.position_embeddings',
    'embed/proj': f'{prefix}embeddings.patch_embeddings.projection',
    'encoder/norm': f'{prefix}layernorm',
    'head': 'classifier',
    'pre_logits': f'{prefix}pooler.dense',
    'pool_norm': f'{prefix}pooler.layernorm',
  }
  dino2 = kind.startswith('dinov2')
  names['mask_token'] = To(f'{prefix}embeddings.mask_token', ndim=2 if dino2 else 3)
  if kind in ('vit', 'deit', 'beit', 'vit_mae'):
    base = f'{prefix}encoder.layer.{{}}.' if old else f'{prefix}layers.{{}}.'
    base = style.get('base', base)
    mlp = ('intermediate.dense', 'output.dense') if old else ('mlp.fc1', 'mlp.fc2')
    norms = ('layernorm_before', 'layernorm_after')
    scales = ('lambda_1', 'lambda_2')
  else:
    if kind == 'dinov3_vit':
      inner = 'layer.' if old else 'model.layer.'
      base = f'{prefix}{inner}{{}}.'
      names['embed/proj'] = f'{prefix}embeddings.patch_embeddings'
      names['encoder/norm'] = f'{prefix}norm'
      mlp = ('mlp.up_proj', 'mlp.down_proj')
    else:
      base, mlp = f'{prefix}encoder.layer.{{}}.', ('mlp.fc1', 'mlp.fc2')
    norms, scales = ('norm1', 'norm2'), ('layer_scale1.lambda1', 'layer_scale2.lambda1')
  names |= _block(base, (norms[0], *attention, norms[1], *mlp))
  names |= {f'{BLOCKS}scale{i}': base + scale for i, scale in enumerate(scales, 1)}
  if config.mlp == 'swiglu':
    if dino2 and old:
      names.pop(f'{BLOCKS}mlp/up')
      names[f'{BLOCKS}mlp/gate|up'] = f'{base}mlp.weights_in'
      names[f'{BLOCKS}mlp/down'] = f'{base}mlp.weights_out'
    else:
      names |= {f'{BLOCKS}mlp/{n}': f'{base}mlp.{n}_proj' for n in ('gate', 'up', 'down')}
  if kind == 'beit':
    bias = 'relative_position_bias.relative_position_bias_table'
    names[f'{BLOCKS}attn/relative/table'] = base + ('attention.attention.' if old else '') + bias
    names['encoder/relative/table'] = prefix + (
      f'encoder.{bias}' if old else 'shared_position_bias.relative_position_bias_table'
    )
  if config.distilled:
    names |= {'head': 'cls_classifier', 'distill_head': 'distillation_classifier'}
  return names


def yolos_table(config: YolosArchitecture, style: dict[str, Any]) -> Table:
  """The same for detectors that are ViTs, whose queries come behind the patches there."""
  encoder, prefix = config.encoder, style['prefix']
  # Of their version 5 only positions between layers are called otherwise in memory.
  inner = table(encoder, {**style, 'kind': 'vit', 'old': True})
  behind = (encoder.prefix - encoder.queries, encoder.queries)
  between = f'{prefix}encoder.' + 'interpolation.' * (not style['old'])
  shape = (encoder.depth - 1, 1, config.places, encoder.width)
  heads = {'head': 'class_labels_classifier', 'boxes': 'bbox_predictor'}
  return {
    **{f'encoder/{name}': to for name, to in inner.items()},
    'encoder/queries': f'{prefix}embeddings.detection_tokens',
    'encoder/posemb': To(f'{prefix}embeddings.position_embeddings', late=behind),
    'middle': To(f'{between}mid_position_embeddings', shape=shape, late=behind),
    **{f'{ours}/layers/{i}': f'{theirs}.layers.{i}' for ours, theirs in heads.items()
       for i in range(3)},
  }  # fmt: skip


def masked_table(config: Any, style: dict[str, Any]) -> Table:
  """The same for models that fill in hidden patches."""
  both: dict[str, Any] = {f'encoder/{n}': to for n, to in table(config.encoder, style).items()}
  if isinstance(config, MaeArchitecture):
    at = 'decoder.'
    theirs = {name: f'{at}decoder_{name}' for name in ('embed', 'norm')}
    theirs |= {'mask_token': f'{at}mask_token', 'posemb': f'{at}decoder_pos_embed'}
    blocks = table(config.decoder, {**style, 'base': f'{at}decoder_layers.{{}}.'})
    decoder = masked.decoder_table(blocks, theirs, config.decoder)
    both |= {f'decoder/{name}': to for name, to in decoder.items()}
    return {**both, 'head': f'{at}decoder_pred'}
  if style['kind'] == 'beit':
    return {**both, 'encoder/encoder/norm': 'layernorm', 'head': 'lm_head'}
  width, channels = config.encoder.width, config.encoder.in_channels
  return {
    **both,
    'head/kernel': To('decoder.0.weight', shape=(config.outputs, width, 1, 1), channels=channels),
    'head/bias': To('decoder.0.bias', channels=channels),
  }


def towers_table(config: Any, style: dict[str, Any]) -> tuple[Table, Table]:
  """The same for the image and the text tower of CLIP and SigLIP, without prefixes of ours."""
  kind, v = style['kind'], style['prefix']
  parts = ('layer_norm1', 'self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj',
           'self_attn.out_proj', 'layer_norm2', 'mlp.fc1', 'mlp.fc2')  # fmt: skip
  image: dict[str, Any] = {
    **_block(f'{v}encoder.layers.{{}}.', parts),
    'token': To(f'{v}embeddings.class_embedding', ndim=1),
    'posemb': To(f'{v}embeddings.position_embedding.weight', ndim=2),
    'embed/proj': f'{v}embeddings.patch_embedding',
    'embed_norm': f'{v}pre_layrnorm',
    'encoder/norm': f'{v}post_layernorm',
    'head': 'visual_projection' if kind == 'clip' else 'classifier',
    'map_head/probe': f'{v}head.probe',
    'map_head/attn/query|key|value/kernel': f'{v}head.attention.in_proj_weight',
    'map_head/attn/query|key|value/bias': f'{v}head.attention.in_proj_bias',
    'map_head/attn/out': f'{v}head.attention.out_proj',
    'map_head/norm': f'{v}head.layernorm',
    'map_head/mlp/up': f'{v}head.mlp.fc1',
    'map_head/mlp/down': f'{v}head.mlp.fc2',
  }
  if kind == 'siglip2':
    image['embed/proj/kernel'] = To(f'{v}embeddings.patch_embedding.weight', ndim=2)
  text = {
    **_block('text_model.encoder.layers.{}.', parts),
    'embed': 'text_model.embeddings.token_embedding.weight',
    'posemb': To('text_model.embeddings.position_embedding.weight', ndim=2),
    'encoder/norm': 'text_model.final_layer_norm',
    'head': 'text_projection' if kind == 'clip' else 'text_model.head',
  }
  return image, text


def make_rules(config: Any, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read and written."""
  if isinstance(config, TwoTowersArchitecture):
    image, text = towers_table(config.image, style)
    scalar = 0 if style['kind'] == 'clip' else 1
    both = {
      **{f'image/{k}': v for k, v in image.items()},
      **{f'text/{k}': v for k, v in text.items()},
      'logit_scale': To('logit_scale', ndim=scalar),
      'logit_bias': 'logit_bias',
    }
    return rules(both, shapes, torch=True)
  if isinstance(config, YolosArchitecture):
    return rules(yolos_table(config, style), shapes, torch=True)
  if isinstance(config, MaskedArchitecture):
    return rules(masked_table(config, style), shapes, torch=True)
  one = towers_table(config, style)[0] if style['kind'] in TOWERS else table(config, style)
  return rules(one, shapes, torch=True)
