"""Language models that see, of Hugging Face transformers: LLaVA, PaliGemma, SmolVLM, Idefics 3."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from vit_jax.architecture.card import Card
from vit_jax.architecture.multimodal import MultimodalArchitecture
from vit_jax.convert import language, reading, transformers, transformers_config
from vit_jax.convert.layout import Rule, Shapes, behind, rules
from vit_jax.convert.source import Source
from vit_jax.convert.transformers_names import towers_table
from vit_jax.core.errors import RunError, suggest
from vit_jax.models.multimodal import MultimodalConfig

IGNORE = rf'{language.IGNORE}|{transformers.IGNORE}'


class Names(NamedTuple):
  """Where the parts of a model are, by what their names begin with.

  Attributes:
    language: of the language model but for its head.
    head: the name of that.
    vision: of the image tower.
    projector: of that.
  """

  language: str
  head: str
  vision: str
  projector: str


# As files are written, as models are in memory since version 5, and of Idefics 3.
PLACES = (
  Names('language_model.model.', 'language_model.lm_head', 'vision_tower.',
        'multi_modal_projector.'),
  Names('model.language_model.', 'lm_head', 'model.vision_tower.', 'model.multi_modal_projector.'),
  Names('model.text_model.', 'lm_head', 'model.vision_model.',
        'model.connector.modality_projection.'),
)  # fmt: skip
PATCHES = 'embeddings.patch_embedding.weight'
# Layers of the projector, by what a model is.
LAYERS = {'llava': ('linear_1', 'linear_2'), 'paligemma': ('linear',), 'idefics3': ('proj',)}
ALIASES = {'smolvlm': 'idefics3'}
# How they write dialogues, with how many tokens beside those of the image.
TEMPLATES = {
  'llava': ('vicuna', 1024),
  'paligemma': ('paligemma', 128),
  'idefics3': ('chatml', 512),
}


def recognise(source: Source) -> dict[str, Any] | None:
  """What a checkpoint of an image tower, a projector and a language model is; None if not one."""
  sees = any('vision_tower' in name for name in source.arrays)
  if 'model.mm_projector.0.weight' in source and not sees:
    raise RunError(
      f'{source.where} is a LLaVA as its own code writes it, without its image tower: read the one '
      'of transformers (llava-hf)'
    )
  for names in PLACES:
    if f'{names.language}embed_tokens.weight' not in source:
      continue
    for inside in ('vision_model.', ''):
      if f'{names.vision}{inside}{PATCHES}' in source:
        kind = str(source.config.get('model_type') or _by_layers(source, names))
        kind = ALIASES.get(kind, kind)
        if kind not in LAYERS:
          raise RunError(
            f'{source.where}: model_type={kind!r} is not supported: {suggest(kind, LAYERS)}'
          )
        return dict(kind=kind, names=names, inside=inside)
  return None


def _by_layers(source: Source, names: Names) -> str:
  """What it is, where no file next to the weights says it."""
  found = [k for k, layers in LAYERS.items() if f'{names.projector}{layers[0]}.weight' in source]
  return [*found, ''][0]


def architecture(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """The model of a checkpoint, by its arrays and its config.json."""
  kind, names, given = style['kind'], style['names'], source.config
  tower, vision, card = _vision(source, style)
  words = dataclasses.replace(
    source, config=given.get('text_config', {}), hints=source.hints.get('language', {})
  )
  style['language'] = dict(
    kind=words.config.get('model_type') or ('gemma' if kind == 'paligemma' else 'llama'),
    prefix=names.language, head=names.head,
  )  # fmt: skip
  style['vision'] = dict(kind=tower, two=False, old=True, prefix=style['inside'])
  if style['language']['kind'] not in language.TYPES:
    raise RunError(
      f'{source.where}: a language model of model_type={style["language"]["kind"]!r} is not '
      f'supported: {suggest(style["language"]["kind"], language.TYPES)}'
    )
  speaking, _ = language.architecture(words, style['language'])
  shuffle = int(given.get('scale_factor', 1)) if kind == 'idefics3' else 1
  first = f'{names.projector}{LAYERS[kind][0]}'
  config = MultimodalConfig(
    vision, speaking, layer=_layer(source, kind, vision.depth),
    projector='mlp' if kind == 'llava' else 'linear', bias=f'{first}.bias' in source,
    shuffle=shuffle, prefix=kind == 'paligemma',
  )  # fmt: skip
  if source.shape(f'{first}.weight', 2)[1] != vision.width * shuffle**2:
    raise RunError(
      f'{source.where}: the projector takes {source.shape(f"{first}.weight", 2)[1]} features, and '
      f'the image tower gives {vision.width * shuffle**2}'
    )
  template, room = TEMPLATES[kind]
  places = config.resolve().places
  task = {
    'name': 'language', 'template': template, 'length': places + room, 'most': 64,
    'average': 'examples' if kind == 'paligemma' else 'tokens', 'mean': card.mean, 'std': card.std,
    **reading.speaking(source),
  }  # fmt: skip
  fields = {'image': {'kind': 'image', 'dtype': 'uint8'}, 'question': {'kind': 'text'}}
  return config, dataclasses.replace(card, task=task, fields=fields)


def _vision(source: Source, style: dict[str, Any]) -> tuple[str, Any, Card]:
  """Of the image tower its kind, what it is, and what it expects of images."""
  given = source.config.get('vision_config', {})
  inner = dataclasses.replace(
    source.behind(style['names'].vision, 'vision'), config=given, preprocessor=source.preprocessor
  )
  tower = 'clip' if f'{style["inside"]}pre_layrnorm.weight' in inner else 'siglip'
  vision, card = transformers.architecture(
    inner, dict(kind=tower, two=False, old=True, prefix=style['inside'])
  )
  return tower, vision, card


def _layer(source: Source, kind: str, depth: int) -> int:
  """Of the image tower, whose output is projected, from the last, -1, which the norm is behind."""
  if kind != 'llava':
    return -1
  given = source.config
  layer, kept = given.get('vision_feature_layer', -2), given.get('vision_feature_select_strategy')
  act = given.get('projector_hidden_act', 'gelu')
  if act != 'gelu':
    raise RunError(f'{source.where}: projector_hidden_act={act!r} is not supported')
  if kept not in (None, 'default'):
    raise RunError(f'{source.where}: vision_feature_select_strategy={kept!r} is not supported')
  # Theirs counts what enters the first block, too, and has no norm behind the last.
  behind = layer - 1 - depth if isinstance(layer, int) and layer >= 0 else layer
  if not isinstance(behind, int) or behind == -1 or behind < -depth:
    raise RunError(f'{source.where}: vision_feature_layer={layer} is not supported')
  return behind


def make_rules(config: MultimodalArchitecture, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read and written."""
  names = style['names']
  projector = {
    f'layers/{number}': f'{names.projector}{layer}'
    for number, layer in enumerate(LAYERS[style['kind']])
  }
  image, _ = towers_table(config.vision, style['vision'])
  table = {
    **behind(image, 'vision/', names.vision),
    **behind(projector, 'projector/', ''),
    **behind(language.table(names.language, names.head), 'language/', ''),
  }
  return rules(table, shapes, torch=True)


def style_for(config: MultimodalArchitecture) -> dict[str, Any]:
  """How a model is written.

  Raises:
    RunError: if transformers has no model like it.
  """
  plain = config.projector == 'linear' and config.layer == -1
  clip = config.vision.embed_norm
  if config.projector == 'mlp' and config.layer < -1 and clip and not config.prefix:
    kind, names = 'llava', PLACES[0]
  elif plain and config.bias and config.prefix and config.shuffle == 1 and not clip:
    kind, names = 'paligemma', PLACES[0]
  elif plain and not config.bias and not config.prefix and not clip:
    kind, names = 'idefics3', PLACES[2]
  else:
    found = ', '.join(f'{name}={value!r}' for name, value in config.own.items())
    raise RunError(f'transformers has no model with {found} on such an image tower')
  if kind == 'llava' and config.shuffle > 1:
    raise RunError(f'transformers cannot express shuffle={config.shuffle} in a LLaVA')
  return dict(
    kind=kind, names=names, inside='',
    vision=dict(kind='clip' if clip else 'siglip', two=False, old=True, prefix=''),
    language=dict(kind=language.kind_of(config.language), prefix=names.language, head=names.head),
  )  # fmt: skip


def sidecar(
  config: MultimodalArchitecture, card: Card, style: dict[str, Any], image_token: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """config.json and preprocessor_config.json of a model, and what these do not quite say."""
  of_image = dict(style['vision'])
  beside, notes = transformers_config.sidecar(config.vision, card, of_image)
  # Without anything that pools it is written as one that classifies by the mean of its patches.
  vision = dict(beside['config.json']['vision_config'])
  del vision['vision_use_head']
  words = {k: v for k, v in language.sidecar(config.language).items() if k != 'architectures'}
  kind = style['kind']
  said: dict[str, Any] = {
    'model_type': kind, 'text_config': words, 'vision_config': vision,
    'tie_word_embeddings': config.language.tied,
  }  # fmt: skip
  if kind == 'llava':
    said |= {
      'architectures': ['LlavaForConditionalGeneration'], 'image_token_index': image_token,
      'image_seq_length': config.places, 'multimodal_projector_bias': config.bias,
      'projector_hidden_act': 'gelu', 'vision_feature_layer': config.layer,
      'vision_feature_select_strategy': 'default',
    }  # fmt: skip
  elif kind == 'paligemma':
    vision |= {'vision_use_head': False, 'projection_dim': config.language.width}
    said |= {
      'architectures': ['PaliGemmaForConditionalGeneration'], 'image_token_index': image_token,
      'projection_dim': config.language.width, 'hidden_size': config.language.width,
      'vocab_size': config.language.vocab_size,
    }  # fmt: skip
    words['num_image_tokens'] = config.places
  else:
    vision['model_type'] = 'idefics3_vision'
    said |= {
      'architectures': ['Idefics3ForConditionalGeneration'], 'image_token_id': image_token,
      'scale_factor': config.shuffle,
    }  # fmt: skip
  return {
    'config.json': said,
    'preprocessor_config.json': beside['preprocessor_config.json'],
  }, notes
