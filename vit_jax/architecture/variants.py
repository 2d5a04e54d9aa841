"""Vision Transformers by name, one table per family.

A variant is 'size/patch', with the family before it where it is not the original one: 'B/16',
'R50+B/16', 'dinov2:S/14'. Everything a family or a size does not say is as in `BASE`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_jax.core.errors import RunError, suggest

# Of every encoder, as in the Vision Transformer of Dosovitskiy et al. 2021.
ENCODER: dict[str, Any] = dict(
  attention='full', relative_bias='none', norm='layernorm', eps=1e-6, norm_place='pre', kv_heads=0,
  head_dim=0, mlp='gelu_tanh', mlp_norm=False, parallel=False, qk_norm=False, softcap=0.0,
  rope_pairs='halves', layerscale=0.0, no_bias='',
)  # fmt: skip
# The Vision Transformer itself.
BASE: dict[str, Any] = dict(
  **ENCODER, image_size=(224, 224), in_channels=3, stem_width=0, stem_depths=(),
  stem_convention='bit', class_token=False, distilled=False, registers=0, queries=0,
  mask_token=False, embed_norm=False, posemb='learned', posemb_tokens='class',
  interpolation='bicubic_aa', rope='none', rope_base=100.0, rope_grid=(0, 0), pool='token',
  pool_norm=False, representation_size=0,
)  # fmt: skip
NUMBERS = ('width', 'depth', 'mlp_dim', 'num_heads')

# Ti to G: Dosovitskiy et al. 2021, Touvron et al. 2021 and Zhai et al. 2022 (table 2); So150m and
# So400m: Alabdulmohsin et al. 2023; 22B: Dehghani et al. 2023; mu, M, g-opt, G-opt: big_vision.
SIZES: dict[str, tuple[int, int, int, int]] = {
  'mu': (32, 1, 128, 2),
  'Ti': (192, 12, 768, 3),
  'S': (384, 12, 1536, 6),
  'M': (512, 12, 2048, 8),
  'B': (768, 12, 3072, 12),
  'So150m': (896, 18, 2304, 14),
  'L': (1024, 24, 4096, 16),
  'So400m': (1152, 27, 4304, 16),
  'H': (1280, 32, 5120, 16),
  'g': (1408, 40, 6144, 16),
  'g-opt': (1536, 40, 6144, 16),
  'G': (1664, 48, 8192, 16),
  'G-opt': (1536, 48, 8192, 16),
  'e': (1792, 56, 15360, 16),
  '22B': (6144, 48, 24576, 48),
}
# ResNets in front, by the patch in the name: width, units of each stage, and the size of patches of
# their output. 'R+Ti/16' has its name from the stride after the first convolution.
STEMS: dict[str, dict[str, tuple[int, tuple[int, ...], int]]] = {
  'R': {'16': (64, (), 8)},
  'R26': {'32': (64, (2, 2, 2, 2), 1)},
  'R50': {'16': (64, (3, 4, 9), 1), '32': (64, (3, 4, 6, 3), 1)},
}


@dataclasses.dataclass(frozen=True)
class Family:
  """Sizes that share options.

  Attributes:
    sizes: name to width, depth, mlp_dim, num_heads.
    options: fields in which the family differs from `BASE`.
    special: further options of single sizes.
  """

  sizes: dict[str, tuple[int, int, int, int]]
  options: dict[str, Any] = dataclasses.field(default_factory=dict)
  special: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

  def fields(self, size: str) -> dict[str, Any]:
    """All that the family says of one of its sizes."""
    numbers = zip(NUMBERS, self.sizes[size], strict=True)
    return {**self.options, **self.special.get(size, {}), **dict(numbers)}


def _some(*names: str) -> dict[str, tuple[int, int, int, int]]:
  return {name: SIZES[name] for name in names}


_DINO_SIZES = {**_some('S', 'B', 'L'), 'g': (1536, 40, 4096, 24)}
_DINO2 = dict(
  image_size=(518, 518), mlp='gelu', layerscale=1e-5, mask_token=True,
  interpolation='bicubic_offset',
)  # fmt: skip
_EVA = dict(
  mlp='swiglu', no_bias='key', rope='grid', rope_base=10_000.0, rope_grid=(16, 16), pool='mean',
  pool_norm=True, class_token=True,
)  # fmt: skip
_CLIP = dict(
  mlp='quick_gelu', eps=1e-5, embed_norm=True, no_bias='embed,head', interpolation='bicubic_aa'
)  # fmt: skip
_SIGLIP = dict(pool='map', interpolation='bicubic')

FAMILIES: dict[str, Family] = {
  '': Family(
    SIZES,
    special={
      '22B': dict(parallel=True, qk_norm=True, no_bias='query,key,value,norm', pool='map')
    },
  ),
  # Touvron et al. 2021: with a distillation token or without.
  'deit': Family(_some('Ti', 'S', 'B'), dict(mlp='gelu')),
  'deit-distilled': Family(_some('Ti', 'S', 'B'), dict(mlp='gelu', distilled=True)),
  # Touvron et al. 2022.
  'deit3': Family(
    _some('S', 'M', 'B', 'L', 'H'), dict(mlp='gelu', layerscale=1e-6, posemb_tokens='patches')
  ),
  # Bao et al. 2022.
  'beit': Family(
    _some('B', 'L'),
    dict(mlp='gelu', posemb='none', relative_bias='layer', no_bias='key', layerscale=0.1,
         class_token=True, pool='mean', pool_norm=True, interpolation='bicubic', eps=1e-12),
    {'L': dict(layerscale=1e-5)},
  ),
  # Oquab et al. 2023; with registers: Darcet et al. 2024.
  'dinov2': Family(_DINO_SIZES, _DINO2, {'g': dict(mlp='swiglu')}),
  'dinov2-reg': Family(
    _DINO_SIZES, {**_DINO2, 'registers': 4, 'interpolation': 'bicubic_aa'},
    {'g': dict(mlp='swiglu')},
  ),
  # Simeoni et al. 2025.
  'dinov3': Family(
    {**_some('S', 'B', 'L'), 'S+': (384, 12, 1536, 6), 'H+': (1280, 32, 5120, 20),
     '7B': (4096, 40, 8192, 32)},
    dict(posemb='none', rope='unit', registers=4, mask_token=True, mlp='gelu', eps=1e-5,
         layerscale=1e-5, no_bias='key'),
    {'S+': dict(mlp='swiglu'), 'H+': dict(mlp='swiglu'),
     '7B': dict(mlp='swiglu', no_bias='query,key,value')},
  ),
  # Radford et al. 2021 up to L; H, g and G: OpenCLIP (Cherti et al. 2023). num_classes is the width
  # of the space shared with text.
  'clip': Family(
    {**_some('B', 'L', 'H', 'g'), 'G': SIZES['G']}, _CLIP,
    {size: dict(mlp='gelu') for size in ('H', 'g', 'G')},
  ),
  # Zhai et al. 2023 and Tschannen et al. 2025; 'siglip2-naflex' keeps the aspect ratio of images.
  'siglip': Family(_some('B', 'L', 'So400m'), _SIGLIP),
  'siglip2': Family(_some('B', 'L', 'So400m', 'g-opt'), _SIGLIP),
  'siglip2-naflex': Family(
    _some('B', 'So400m'),
    {**_SIGLIP, 'image_size': (256, 256), 'interpolation': 'bilinear_aa'},
  ),
  # Fang et al. 2023.
  'eva02': Family(
    {'Ti': (192, 12, 512, 3), 'S': (384, 12, 1024, 6), 'B': (768, 12, 2048, 12),
     'L': (1024, 24, 2730, 16)},
    {**_EVA, 'mlp_norm': True},
    {'Ti': dict(mlp_norm=False), 'S': dict(mlp_norm=False)},
  ),
}  # fmt: skip


# Sizes, families, and sizes of one family that are published with patches of 14 pixels.
_FOURTEEN = {'So400m', 'H', 'g', 'G', 'e', '22B', 'dinov2', 'dinov2-reg', 'eva02', 'clip:L'}


def names() -> list[str]:
  """Every size of every family with its usual patches, and every stem."""
  found = []
  for family, table in FAMILIES.items():
    for size in table.sizes:
      fourteen = bool(_FOURTEEN & {size, family, f'{family}:{size}'})
      patch = 14 if fourteen and family != 'siglip2-naflex' else 16
      found.append(f'{family}:{size}/{patch}'.removeprefix(':'))
  return [*found, 'R+Ti/16', 'R26+S/32', 'R26+B/32', 'R50+B/16', 'R50+L/32']


def options(variant: str) -> dict[str, Any]:
  """Every field of `ViTConfig` that a variant decides; without a name, only those of `BASE`.

  Raises:
    RunError: for an unknown family, stem or size, or a missing patch size.
  """
  if not variant:
    return dict(BASE)
  name, _, size = variant.rpartition(':')
  if name not in FAMILIES:
    raise RunError(f'unknown model family {name!r}: {suggest(name, [f for f in FAMILIES if f])}')
  family = FAMILIES[name]
  size, _, patch = size.partition('/')
  stem, _, size = size.rpartition('+') if size not in family.sizes else ('', '', size)
  if size not in family.sizes:
    raise RunError(f'unknown model variant {variant!r}: {suggest(size, family.sizes)}')
  if not patch.isdigit() or not int(patch):
    raise RunError(f'model variant {variant!r} lacks a patch size: write {size}/16')
  found = {**BASE, **family.fields(size), 'patch_size': int(patch)}
  if stem:
    if name or stem not in STEMS:
      raise RunError(f'unknown stem {stem!r} in {variant!r}: {suggest(stem, STEMS)}')
    if patch not in STEMS[stem]:
      raise RunError(f'{stem} comes with patches of {", ".join(STEMS[stem])}, not {patch}')
    found |= zip(('stem_width', 'stem_depths', 'patch_size'), STEMS[stem][patch], strict=True)
  return found


def name_of(config: Any) -> str:
  """The variant that a resolved `ViTConfig` is, whatever its images and classes; '' for none."""
  free = ('image_size', 'in_channels', 'interpolation', 'stem_convention')
  if len(config.image_size) != 2 or not isinstance(config.patch_size, int):
    return ''
  if config.stem_width:
    names = [
      f'{stem}+{size}/{patch}'
      for size in SIZES for stem, patches in STEMS.items() for patch in patches
    ]  # fmt: skip
  else:
    names = [
      f'{family}:{size}/{config.patch_size}'.removeprefix(':')
      for family, table in FAMILIES.items() for size in table.sizes
    ]  # fmt: skip
  for name in names:
    found = options(name)
    # What `ViTConfig.resolve` does.
    found['class_token'] |= found['pool'] in ('token', 'token_mean')
    if all(getattr(config, k) == v for k, v in found.items() if k not in free):
      return name
  return ''


# The text towers of two-tower models. Everything not said is as in `TEXT_BASE`.
TEXT_BASE: dict[str, Any] = dict(
  **ENCODER, vocab_size=32_000, context_length=64, causal=False, eot=-1, pool='last'
)  # fmt: skip
_SIGLIP_TEXT = _some('B', 'L', 'So400m')
TEXT_FAMILIES: dict[str, Family] = {
  'clip': Family(
    {'B': (512, 12, 2048, 8), 'L': (768, 12, 3072, 12), 'H': (1024, 24, 4096, 16),
     'g': (1024, 24, 4096, 16), 'G': (1280, 32, 5120, 20)},
    dict(vocab_size=49_408, context_length=77, causal=True, pool='eot', mlp='quick_gelu', eps=1e-5,
         no_bias='head'),
    {size: dict(mlp='gelu') for size in ('H', 'g', 'G')},
  ),
  'siglip': Family(_SIGLIP_TEXT),
  'siglip2': Family(
    {**_SIGLIP_TEXT, 'g-opt': SIZES['So400m']}, dict(vocab_size=256_000)
  ),
  'siglip2-naflex': Family(_some('B', 'So400m'), dict(vocab_size=256_000)),
}  # fmt: skip
# Width of the space that CLIP's towers share; SigLIP's is the width of the image tower.
CLIP_SPACE = {'B': 512, 'L': 768, 'H': 1024, 'g': 1024, 'G': 1280}


def text_options(variant: str) -> dict[str, Any]:
  """Every field of `TextConfig` that a variant ('clip:B') decides.

  Raises:
    RunError: for an unknown family or size.
  """
  return _options_of('text tower', variant, TEXT_FAMILIES, TEXT_BASE)


# Decoder-only language models. Everything not said is as in `LANGUAGE_BASE`.
LANGUAGE_BASE: dict[str, Any] = {
  **ENCODER, 'norm': 'rmsnorm', 'mlp': 'swiglu', 'no_bias': 'query,key,value,out,mlp',
  'vocab_size': 32_000, 'context_length': 2048, 'tied': False, 'scaled_embed': False,
  'rope_base': 10_000.0, 'rope_scaling': (),
}  # fmt: skip
LANGUAGE_FAMILIES: dict[str, Family] = {
  # Allal et al. 2025.
  'smollm2': Family(
    {'135M': (576, 30, 1536, 9), '360M': (960, 32, 2560, 15), '1.7B': (2048, 24, 8192, 32)},
    dict(vocab_size=49_152, context_length=8192, tied=True, rope_base=100_000.0, eps=1e-5),
    {'135M': dict(kv_heads=3), '360M': dict(kv_heads=5), '1.7B': dict(rope_base=130_000.0)},
  ),
  # Touvron et al. 2023.
  'llama2': Family(
    {'7B': (4096, 32, 11008, 32), '13B': (5120, 40, 13824, 40)},
    dict(context_length=4096, eps=1e-5),
  ),
  # Grattafiori et al. 2024.
  'llama3.1': Family(
    {'8B': (4096, 32, 14336, 32)},
    dict(vocab_size=128_256, context_length=131_072, kv_heads=8, rope_base=500_000.0, eps=1e-5,
         rope_scaling=(8.0, 1.0, 4.0, 8192.0)),
  ),
  # Yang et al. 2024.
  'qwen2': Family(
    {'0.5B': (896, 24, 4864, 14), '1.5B': (1536, 28, 8960, 12), '7B': (3584, 28, 18944, 28)},
    dict(vocab_size=151_936, context_length=32_768, tied=True, rope_base=1e6, no_bias='out,mlp',
         kv_heads=2),
    {'7B': dict(vocab_size=152_064, tied=False, kv_heads=4)},
  ),
  # Gemma Team 2024.
  'gemma': Family(
    {'2B': (2048, 18, 16384, 8), '7B': (3072, 28, 24576, 16)},
    dict(vocab_size=256_000, context_length=8192, tied=True, scaled_embed=True, head_dim=256,
         norm='rmsnorm1p', mlp='geglu_tanh'),
    {'2B': dict(kv_heads=1)},
  ),
}  # fmt: skip


def language_options(variant: str) -> dict[str, Any]:
  """Every field of `LanguageConfig` that a variant ('smollm2:135M') decides.

  Raises:
    RunError: for an unknown family or size.
  """
  return _options_of('language model', variant, LANGUAGE_FAMILIES, LANGUAGE_BASE)


def _options_of(
  what: str, variant: str, families: dict[str, Family], base: dict[str, Any]
) -> dict[str, Any]:
  if not variant:
    return dict(base)
  name, _, size = variant.partition(':')
  if name not in families:
    raise RunError(f'unknown family of {what}s {name!r}: {suggest(name, families)}')
  if size not in families[name].sizes:
    raise RunError(f'unknown {what} {variant!r}: {suggest(size, families[name].sizes)}')
  return {**base, **families[name].fields(size)}
