"""The config.json and preprocessor_config.json that Hugging Face transformers reads."""

from __future__ import annotations

from typing import Any

from vit_jax.architecture import (
  MaeArchitecture,
  MaskedArchitecture,
  TwoTowersArchitecture,
  YolosArchitecture,
)
from vit_jax.architecture.card import Card
from vit_jax.convert import images
from vit_jax.convert.transformers import ACTIVATIONS
from vit_jax.convert.transformers_names import TOWERS
from vit_jax.core.errors import RunError
from vit_jax.models.vit import ViTConfig


def sidecar(
  config: Any, card: Card, style: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """config.json and preprocessor_config.json of a model, and what these do not quite say."""
  kind, two = style['kind'], isinstance(config, TwoTowersArchitecture)
  hides, detects = isinstance(config, MaskedArchitecture), isinstance(config, YolosArchitecture)
  image: Any = config.image if two else config.encoder if hides or detects else config
  act = {v: k for k, v in reversed(ACTIVATIONS.items())}
  given: dict[str, Any] = dict(
    hidden_size=image.width, num_hidden_layers=image.depth, num_attention_heads=image.num_heads,
    intermediate_size=image.mlp_dim, hidden_act=act[image.mlp], layer_norm_eps=image.eps,
    patch_size=image.patch_size, num_channels=image.in_channels,
    image_size=image.image_size[0] if len(set(image.image_size)) == 1 else list(image.image_size),
  )  # fmt: skip
  architectures = {
    'vit': ('ViTModel', 'ViTForImageClassification'),
    'deit': ('DeiTModel', 'DeiTForImageClassificationWithTeacher'),
    'beit': ('BeitModel', 'BeitForImageClassification'),
    'dinov2': ('Dinov2Model', 'Dinov2ForImageClassification'),
    'dinov2_with_registers': (
      'Dinov2WithRegistersModel', 'Dinov2WithRegistersForImageClassification'
    ),
    'dinov3_vit': ('DINOv3ViTModel', 'DINOv3ViTModel'),
  }  # fmt: skip
  hiding = {
    'vit': 'ViTForMaskedImageModeling', 'deit': 'DeiTForMaskedImageModeling',
    'beit': 'BeitForMaskedImageModeling', 'vit_mae': 'ViTMAEForPreTraining',
  }  # fmt: skip
  without = image.without
  if kind in ('vit', 'vit_mae', 'deit', 'dinov2', 'dinov2_with_registers', 'yolos'):
    given['qkv_bias'] = 'query' not in without
  if kind == 'vit' and image.representation_size:
    given['pooler_output_size'] = image.representation_size
  if kind == 'beit':
    given |= dict(
      use_relative_position_bias=image.relative_bias == 'layer',
      use_shared_relative_position_bias=image.relative_bias == 'shared',
      use_absolute_position_embeddings=image.posemb == 'learned',
      use_mask_token=image.mask_token, use_mean_pooling=image.pool == 'mean',
      layer_scale_init_value=image.layerscale,
    )  # fmt: skip
  if hides:
    given |= _of_hidden(config, card, kind)
  if detects:
    given |= dict(
      num_detection_tokens=image.queries, use_mid_position_embeddings=config.middle,
      image_size=list(image.image_size),
    )  # fmt: skip
  if kind.startswith('dino'):
    given['layerscale_value'] = image.layerscale
  if kind.startswith('dinov2'):
    gated = image.mlp == 'swiglu'
    given |= dict(use_swiglu_ffn=gated, hidden_act='gelu' if gated else act[image.mlp],
                  mlp_ratio=_ratio(image))  # fmt: skip
    given.pop('intermediate_size')
    given |= (
      dict(num_register_tokens=image.registers)
      if image.registers
      else (dict(use_mask_token=image.mask_token))
    )
  if kind == 'dinov3_vit':
    given |= dict(
      num_register_tokens=image.registers, rope_theta=image.rope_base,
      use_gated_mlp=image.mlp == 'swiglu', mlp_bias='mlp' not in without,
      proj_bias='out' not in without,
      **{f'{n}_bias': n not in without for n in ('query', 'key', 'value')},
    )  # fmt: skip
  preprocessor, notes = images.for_transformers(card, kind)
  if len(set(card.class_names)) < len(card.class_names):
    notes.append('class names repeat: label2id has the last class of each, id2label all of them')
  if kind not in TOWERS:
    classes = config.num_classes if detects else image.num_classes
    name = hiding[kind] if hides else 'YolosForObjectDetection' if detects else ''
    name = name or architectures[kind][bool(classes)]
    given |= dict(model_type=kind, architectures=[name])
    given |= _labels(classes, card) if classes else {}
    return {'config.json': given, 'preprocessor_config.json': preprocessor}, notes
  if kind == 'siglip2':
    given.pop('image_size')
    given['num_patches'] = image.grid[0] * image.grid[1]
  names = {'clip': 'CLIP', 'siglip': 'Siglip', 'siglip2': 'Siglip2'}
  if kind == 'clip':
    given['projection_dim'] = image.num_classes
  if not two and image.pool == 'mean':
    whole = dict(
      model_type=kind, architectures=[f'{names[kind]}ForImageClassification'],
      vision_config={**given, 'model_type': f'{kind}_vision_model', 'vision_use_head': False},
      **_labels(image.num_classes, card),
    )  # fmt: skip
    return {'config.json': whole, 'preprocessor_config.json': preprocessor}, notes
  if not two:
    projected = 'WithProjection' if image.num_classes else ''
    given |= dict(
      model_type=f'{kind}_vision_model', architectures=[f'{names[kind]}VisionModel{projected}']
    )
    return {'config.json': given, 'preprocessor_config.json': preprocessor}, notes
  text = config.text
  words = dict(
    hidden_size=text.width, num_hidden_layers=text.depth, num_attention_heads=text.num_heads,
    intermediate_size=text.mlp_dim, hidden_act=act[text.mlp], layer_norm_eps=text.eps,
    vocab_size=text.vocab_size, max_position_embeddings=text.context_length,
    eos_token_id=2 if text.eot < 0 and kind == 'clip' else max(text.eot, 1),
    model_type=f'{kind}_text_model',
  )  # fmt: skip
  if kind == 'clip':
    words['projection_dim'] = text.num_classes
  else:
    words['projection_size'] = text.num_classes
  whole = dict(
    model_type=kind, architectures=[f'{names[kind]}Model'], text_config=words,
    vision_config={**given, 'model_type': f'{kind}_vision_model'},
  )  # fmt: skip
  if kind == 'clip':
    whole['projection_dim'] = text.num_classes
  return {'config.json': whole, 'preprocessor_config.json': preprocessor}, notes


def _of_hidden(config: Any, card: Card, kind: str) -> dict[str, Any]:
  """Of a model that fills in hidden patches: its head, its decoder and its task."""
  if isinstance(config, MaeArchitecture):
    decoder = config.decoder
    return dict(
      decoder_hidden_size=decoder.width, decoder_num_hidden_layers=decoder.depth,
      decoder_num_attention_heads=decoder.num_heads, decoder_intermediate_size=decoder.mlp_dim,
      mask_ratio=card.task.get('ratio', 0.75),
      norm_pix_loss=card.task.get('target') == 'normalized',
    )  # fmt: skip
  if kind == 'beit':
    return dict(vocab_size=config.outputs, use_mean_pooling=True)
  return dict(encoder_stride=config.encoder.patch_size)


def _labels(classes: int, card: Card) -> dict[str, Any]:
  """Names of the classes, of which there must be as many as there are classes."""
  labels = card.class_names or tuple(f'LABEL_{i}' for i in range(classes))
  return dict(
    id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)}
  )


def _ratio(config: ViTConfig) -> int:
  """DINOv2's mlp_ratio, from which its classes work out the width of the MLP."""
  for ratio in range(1, 17):
    hidden = config.width * ratio
    if config.mlp == 'swiglu':
      hidden = (hidden * 2 // 3 + 7) // 8 * 8
    if hidden == config.mlp_dim:
      return ratio
  raise RunError(f'no mlp_ratio of DINOv2 gives mlp_dim={config.mlp_dim} at width={config.width}')
