"""What models the programs of each dialect can hold, and a model's function in such a form.

The same function has many forms: fixed positions are a table that happens not to have been learned,
a missing bias is one of zeros. Whatever a dialect can compute is brought into the form that it has.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_jax.architecture import Backbone, Composition, ViTArchitecture, encoders
from vit_jax.convert.adapt import Leaves, abstract
from vit_jax.core.errors import RunError
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import positions, tree

Fields = Mapping[str, tuple | None]
GELUS = ('gelu', 'gelu_tanh', 'quick_gelu')
QKV = ('query', 'key', 'value')
# What a form takes of the fields that it does not mention. Numbers are allowed as such, or by
# whether they are zero; None: any.
PLAIN: Fields = dict(
  norm=('layernorm',), norm_place=('pre',), parallel=(False,), mlp_norm=(False,), qk_norm=(False,),
  layerscale=(False,), attention=('full',), relative_bias=('none',), rope=('none',),
  kv_heads=(False,), head_dim=(False,), softcap=(False,), rope_pairs=('halves',),
  class_token=(True,), distilled=(False,), registers=(False,), queries=(False,),
  embed_norm=(False,),
  posemb=('learned',), pool=('token',), pool_norm=(False,), representation_size=(False,),
  stem_width=(False,), mask_token=(False,),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Form:
  """The models that one class of another program can hold.

  Attributes:
    kind: of model, as the modules of the dialect call it; '' where there is one only.
    takes: values of fields; see `PLAIN`.
    without: sets of parts that may have no biases. The others get biases of zeros.
    rows: for which tokens learned positions may have rows; see `ViTArchitecture.posemb_tokens`.
    square: whether images must be.
  """

  kind: str
  takes: Fields
  without: tuple[tuple[str, ...], ...] = ((),)
  rows: tuple[str, ...] = ('class',)
  square: bool = False


def _subsets(*groups: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
  """Every union of some of the groups."""
  chosen = itertools.product(*(((), group) for group in groups))
  return tuple(tuple(itertools.chain(*some)) for some in chosen)


_JAX = dict(mlp=('gelu_tanh',), eps=(1e-6,), representation_size=None)
_STEM = dict(stem_width=None, stem_convention=('bit',))
_VIT = (
  Form('', {**_JAX, **_STEM}),
  Form('', {**_JAX, **_STEM, 'class_token': (False,), 'pool': ('mean',)}),
)
_FIXED = dict(posemb=('learned', 'sincos', 'sincos_mae'))
_BIG_VISION = (
  Form('', {**_JAX, **_FIXED}, rows=('patches',)),
  Form('', {**_JAX, **_FIXED, 'class_token': (False,), 'pool': ('mean', 'map')}),
)
_HEADLESS = dict(num_classes=(0,))
_HF = dict(mlp=GELUS)
_BEIT = dict(_HF, posemb=('learned', 'none'), relative_bias=None, layerscale=None, mask_token=None)
_DINO2 = dict(mlp=(*GELUS, 'swiglu'), layerscale=(True,), mask_token=None)
_DINO2_HEAD = dict(_DINO2, num_classes=(True,), pool=('token_mean',))
_DINO2_REG = dict(registers=(True,), mask_token=(True,))
_CLIP = dict(_HF, embed_norm=(True,))
_SIGLIP = dict(_HF, class_token=(False,))
_TRANSFORMERS = (
  Form('vit', _HF, _subsets(QKV)),
  Form('vit', {**_HF, **_HEADLESS, 'representation_size': None}, _subsets(QKV)),
  Form('deit', {**_HF, 'distilled': (True,)}, _subsets(QKV)),
  Form('dinov2', {**_DINO2, **_HEADLESS}, _subsets(QKV), square=True),
  Form('dinov2', _DINO2_HEAD, _subsets(QKV), square=True),
  Form('dinov2_with_registers', {**_DINO2, **_HEADLESS, **_DINO2_REG}, _subsets(QKV), square=True),
  Form('dinov2_with_registers', {**_DINO2_HEAD, **_DINO2_REG}, _subsets(QKV), square=True),
  Form('beit', {**_BEIT, 'pool': ('mean',), 'pool_norm': (True,)}, (('key',),), square=True),
  Form('beit', {**_BEIT, 'relative_bias': ('layer', 'shared')}, (('key',),), square=True),
  Form(
    'dinov3_vit',
    {**_DINO2, **_HEADLESS, 'registers': None, 'mask_token': (True,), 'rope': ('unit',),
     'posemb': ('none',)},
    _subsets(('query',), ('key',), ('value',), ('out',), ('mlp',)),
  ),
  Form('clip', {**_CLIP, 'num_classes': (True,)}, (('embed', 'head'),), square=True),
  Form('clip', {**_CLIP, **_HEADLESS}, (('embed',), ('embed', 'head')), square=True),
  Form('siglip', {**_SIGLIP, **_HEADLESS, 'pool': ('map',)}, square=True),
  Form('siglip', {**_SIGLIP, 'num_classes': (True,), 'pool': ('mean',)}, square=True),
)  # fmt: skip
_TIMM = dict(
  mlp=GELUS, eps=(1e-6, 1e-5), class_token=None, pool=('token', 'mean', 'map'),
  posemb=('learned', 'none'), norm=('layernorm', 'rmsnorm'), qk_norm=None, mlp_norm=None,
  layerscale=None, registers=None, pool_norm=None,
)  # fmt: skip
_TIMM_GATED = dict(_TIMM, mlp=('swiglu',), mlp_norm=(False,), pool=('token', 'mean'))
_TIMM_BIASES = _subsets(QKV, ('out', 'mlp'))
_TIMM_STEMS = ((), (2, 2, 2, 2), (3, 4, 9), (3, 4, 6, 3))
_EVA = dict(
  _TIMM, mlp=('gelu', 'swiglu'), norm=('layernorm',), rope=None, pool=('token', 'mean'),
)  # fmt: skip
_PRE = dict(embed_norm=(True,))
_PRE_BIASES = tuple((*parts, 'embed') for parts in _TIMM_BIASES)
_ROWS = ('patches', 'all')
_TIMM_FORMS = (
  Form('vit', _TIMM, _TIMM_BIASES, _ROWS),
  Form('vit', _TIMM_GATED, _TIMM_BIASES, _ROWS),
  Form('vit', {**_TIMM, **_PRE}, _PRE_BIASES, _ROWS),
  Form('vit', {**_TIMM_GATED, **_PRE}, _PRE_BIASES, _ROWS),
  Form('distilled', {**_TIMM, 'pool': ('token',), 'distilled': (True,), 'registers': (False,),
                     'posemb': ('learned',), 'pool_norm': (False,)}, _TIMM_BIASES),
  Form('hybrid', {**_TIMM, 'stem_width': (64,), 'stem_depths': _TIMM_STEMS,
                  'stem_convention': ('timm',)}, _TIMM_BIASES, _ROWS),
  Form('eva', _EVA, (('key',), QKV), _ROWS),
  Form('eva-rope', {**_EVA, 'rope': ('unit', 'grid'), 'mlp_norm': (False,)}, ((), QKV), _ROWS),
  Form('beit', {**_EVA, 'rope': ('none',), 'relative_bias': ('layer', 'shared'), 'eps': (1e-6,),
                'class_token': (True,), 'registers': (False,), 'qk_norm': (False,)},
       (('key',), QKV)),
)  # fmt: skip
_META = dict(mlp=('gelu', 'swiglu'), layerscale=None, registers=None, mask_token=(True,),
             num_classes=(0,))  # fmt: skip
_OPENAI = dict(mlp=('gelu', 'quick_gelu'), eps=(1e-5,), layerscale=None, embed_norm=(True,),
               num_classes=(True,), in_channels=(3,))  # fmt: skip
FORMS: dict[str, tuple[Form, ...]] = {
  'vit': _VIT, 'vit-linen': _VIT, 'big_vision': _BIG_VISION, 'big_vision-scan': _BIG_VISION,
  'transformers': _TRANSFORMERS, 'transformers-v5': _TRANSFORMERS, 'timm': _TIMM_FORMS,
  'openai': (Form('clip', _OPENAI, (('embed', 'head'),)),),
  'dinov2': (Form('dinov2', {**_META, 'eps': (1e-6,)}, square=True),),
  'dinov3': (
    Form('dinov3', {**_META, 'eps': (1e-5,), 'registers': (True,), 'rope': ('unit',),
                    'rope_base': (100.0,), 'posemb': ('none',)}, (('key',), QKV)),
  ),
}  # fmt: skip


# Of models that fill in hidden patches, the same by the kind of model and for each tower.
_MASKED = dict(_HF, **_HEADLESS, mask_token=(True,))
_MAE = dict(_HEADLESS, mask_token=None)
# Of models that learn from a teacher of their own.
_DINO = dict(_HEADLESS, mlp=('gelu',), eps=(1e-6,))


def _mae(fields: Fields, without: tuple[str, ...] = ()) -> dict[str, Form]:
  """An encoder, and a decoder whose class token is the first row of its positions."""
  form = Form('vit_mae', {**_MAE, **fields}, (without,), square=True)
  return {'encoder': form, 'decoder': dataclasses.replace(form, rows=('patches',))}


_OF_TRANSFORMERS: dict[str, tuple[dict[str, Form], ...]] = {
  'masked': (
    {'encoder': Form('vit', _MASKED, _subsets(QKV), square=True)},
    {'encoder': Form('deit', {**_MASKED, 'distilled': (True,)}, _subsets(QKV), square=True)},
    {'encoder': Form('beit', {**_BEIT, **_HEADLESS, 'relative_bias': ('layer', 'shared', 'none'),
                              'mask_token': (True,)}, (('key',),), square=True)},
  ),
  'mae': (_mae(_HF), _mae(_HF, QKV)),
  'yolos': (
    {'encoder': Form('yolos', {**_HF, **_HEADLESS, 'queries': (True,)}, _subsets(QKV),
                     rows=('all',))},
  ),
}  # fmt: skip
COMPOSED = {
  'transformers': _OF_TRANSFORMERS, 'transformers-v5': _OF_TRANSFORMERS,
  'mae': {'mae': (_mae(dict(mlp=('gelu',), eps=(1e-6,))),)},
  'dino': {'dino': ({'encoder': Form('dino', _DINO, square=True)},)},
  'ibot': {'dino': ({'encoder': Form('ibot', {**_DINO, 'mask_token': (True,)}, square=True)},)},
  'dinov2': {'dino': ({'encoder': FORMS['dinov2'][0]},)},
}  # fmt: skip


def fitted(
  config: Any, leaves: Leaves, dialect: str, *, of_classes: bool = False
) -> tuple[str, Any, Leaves]:
  """A model in the form in which a dialect can hold it, with the same function.

  Args:
    config: resolved, of a single tower or a composition in `COMPOSED`.
    leaves: parameters by name.
    dialect: one of `FORMS` or `COMPOSED`.
    of_classes: whether it says classes of hidden patches, and no pixels.

  Returns:
    Kind of the form, configuration and parameters of the model in it.

  Raises:
    RunError: if there is none, naming the fields.
  """
  if isinstance(config, Composition):
    choices = COMPOSED.get(dialect, {}).get(config.kind, ())
    if config.kind == 'masked':
      choices = [forms for forms in choices if (forms['encoder'].kind == 'beit') == of_classes]
  else:
    choices = [{'': form} for form in FORMS.get(dialect, ())]
  if not choices:
    raise RunError(f'{dialect} has no models of the kind {config.kind}')
  towers = {
    name: _without_mup(tower, tree.inside(leaves, name)) for name, tower in encoders(config).items()
  }
  found = []
  for forms in choices:
    wrong = [
      f'{name}.{field}'.lstrip('.')
      for name, (tower, _) in towers.items() for field in _misfits(tower, forms[name])
    ]  # fmt: skip
    found.append((forms, wrong))
  fitting = [forms for forms, wrong in found if not wrong]
  kind_of = lambda forms: next(iter(forms.values())).kind  # noqa: E731
  if not fitting:
    forms, wrong = min(found, key=lambda pair: len(pair[1]))
    nearest = f' (closest kind: {kind_of(forms)})' if kind_of(forms) else ''
    raise RunError(f'{dialect} cannot express {", ".join(wrong)}{nearest}')

  def apart(forms: dict[str, Form]) -> int:
    return sum(len(_biases(t, forms[n]) ^ set(t.without)) for n, (t, _) in towers.items())

  forms = min(fitting, key=apart)
  made = {name: _in_form(*pair, forms[name]) for name, pair in towers.items()}
  if '' in made:
    return kind_of(forms), *made['']
  own = {n: leaf for n, leaf in leaves.items() if n.partition('/')[0] not in made}
  for name, (_, inside) in made.items():
    own |= {f'{name}/{n}': leaf for n, leaf in inside.items()}
  config = dataclasses.replace(config, **{name: tower for name, (tower, _) in made.items()})
  return kind_of(forms), config, own


def _misfits(config: ViTConfig, form: Form) -> list[str]:
  """The fields of a model that a form does not have, with their values."""
  takes = {**PLAIN, **form.takes}
  found = []
  if len(config.image_size) != 2 or not isinstance(config.patch_size, int):
    found += [f'image_size={config.image_size}', f'patch_size={config.patch_size}']
  for name, allowed in takes.items():
    value = getattr(config, name)
    if name == 'mask_token' or allowed is None:
      continue
    if name == 'posemb' and 'learned' in allowed:  # the others become tables
      continue
    if name == 'pool' and allowed == ('token_mean',) and value in ('token', 'mean'):
      continue  # with a head that ignores the other half
    if name in ('stem_depths', 'stem_convention') and not config.stem_width:
      continue
    if name == 'eps':
      value = max(value, 1e-6)  # smaller ones cannot be told from rounding
    by_size = isinstance(value, int | float) and name != 'eps' and bool(value) in allowed
    if value not in allowed and not by_size:
      found.append(f'{name}={value!r}')
  if form.square and len(set(config.grid)) > 1 and len(config.grid) == 2:
    found.append(f'image_size={config.image_size}')
  if _biases(config, form) is None:
    found.append(f'no_bias={config.no_bias!r}')
  return found


def _biases(config: ViTConfig, form: Form) -> Any:
  """The largest set of parts without biases that a form has for a model, or None.

  A bias of keys moves no softmax, unless they are turned or normed.
  """
  without = set(config.without)
  if config.rope == 'none' and not config.qk_norm:
    without.add('key')
  fitting = [set(parts) for parts in form.without if set(parts) <= without]
  own = set(config.without)
  return min(fitting, key=lambda parts: (len(parts - own), -len(parts)), default=None)


def _in_form(config: ViTConfig, leaves: Leaves, form: Form) -> tuple[ViTConfig, Leaves]:
  takes = {**PLAIN, **form.takes}
  if takes['posemb'] and config.posemb not in takes['posemb']:
    config, leaves = _with_table(config, leaves)
  if config.posemb == 'learned':
    rows = {dataclasses.replace(config, posemb_tokens=tokens).posemb_prefix for tokens in form.rows}
    if config.posemb_prefix not in rows:
      config, leaves = _with_rows(config, leaves, form.rows[0])
  if takes['pool'] == ('token_mean',) and config.pool != 'token_mean':
    kernel = leaves['head/kernel']
    halves = [kernel, np.zeros_like(kernel)]
    leaves['head/kernel'] = np.concatenate(halves if config.pool == 'token' else halves[::-1])
    config = dataclasses.replace(config, pool='token_mean')
  mask = takes['mask_token']
  if mask is not None and config.mask_token not in mask:
    config = dataclasses.replace(config, mask_token=mask[0])
    leaves.pop('mask_token', None)
  without = _biases(config, form)
  ordered = [p for p in config.without if p in without] + sorted(without - set(config.without))
  config = dataclasses.replace(config, no_bias=','.join(ordered))
  shapes = abstract(config)
  # What is missing now is a bias or a mask token, and what is too much a bias of keys.
  zeros = {n: np.zeros(shape, np.float32) for n, shape in shapes.items() if n not in leaves}
  return config, {**{n: leaf for n, leaf in leaves.items() if n in shapes}, **zeros}


def _without_mup(config: ViTConfig, leaves: Leaves) -> tuple[ViTConfig, Leaves]:
  """With the factors of the maximal-update parametrisation multiplied into parameters."""

  def multiply(names: Iterable[str], factor: float) -> None:
    for name in names:
      for kind in ('kernel', 'scale', 'bias'):
        if (leaf := f'{name}/{kind}') in leaves:
          leaves[leaf] = leaves[leaf] * np.float32(factor)

  block = 'encoder/blocks'
  if config.score_scale != 1:
    multiply([f'{block}/attn/query{"_norm" if config.qk_norm else ""}', 'map_head/attn/query'],
             config.score_scale)  # fmt: skip
  if config.branch_scale != 1:
    if config.layerscale:
      for name in (f'{block}/scale1', f'{block}/scale2'):
        leaves[name] = leaves[name] * np.float32(config.branch_scale)
    else:
      multiply([f'{block}/attn/out', f'{block}/mlp/down'], config.branch_scale)
  return dataclasses.replace(config, mup_width=0, mup_depth=0), leaves


def _with_table(config: ViTConfig, leaves: Leaves) -> tuple[ViTConfig, Leaves]:
  """Positions as a table of which row is added to which patch."""
  shape = (1, math.prod(config.grid), config.width)
  table = np.zeros(shape, np.float32)
  if 'sincos' in config.posemb:
    mae = config.posemb == 'sincos_mae'
    table += positions.sincos(positions.grid_coords(*config.grid), config.width, mae=mae)
  elif config.posemb == 'factorised':
    rows, columns = leaves.pop('posemb_rows'), leaves.pop('posemb_columns')
    table += (rows[:, :, None] + columns[:, None]).reshape(shape)
  leaves['posemb'] = table
  return dataclasses.replace(config, posemb='learned', posemb_tokens='patches'), leaves


def _with_rows(config: ViTConfig, leaves: Leaves, tokens: str) -> tuple[ViTConfig, Leaves]:
  """Learned positions with rows for other tokens: of zeros, or added to the tokens themselves."""
  new = dataclasses.replace(config, posemb_tokens=tokens)
  have, want = config.posemb_prefix, new.posemb_prefix
  first, rest = leaves['posemb'][:, :have], leaves['posemb'][:, have:]
  zeros = np.zeros((1, max(want - have, 0), config.width), np.float32)
  leaves['posemb'] = np.concatenate([first[:, :want], zeros, rest], axis=1)
  at = 0
  for name in ('token', 'distill_token', 'registers', 'queries'):
    if name in leaves:
      count = leaves[name].shape[1]
      leaves[name] = leaves[name].copy()
      for i in range(count):
        if want <= at + i < have:
          leaves[name][:, i] += first[:, at + i]
      at += count
  return new, leaves


# Fields that change nothing in what a trained model computes on images of its own size.
_FREE = (
  'variant', 'dropout', 'drop_path', 'drop_path_mode', 'patch_dropout', 'dtype', 'scan', 'remat',
  'interpolation', 'mask_token', 'posemb_tokens', 'image_size', 'layerscale', 'no_bias',
  'initial', 'head_bias',
)  # fmt: skip


def signature(config: Any) -> dict[str, Any]:
  """What decides the function of a model, apart from its parameters."""
  if isinstance(config, Backbone):
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE}
  found = {k: v for k, v in dataclasses.asdict(config).items() if k not in _FREE}
  found['eps'] = max(config.eps, 1e-6)  # smaller ones cannot be told from rounding
  without = set(config.without)
  if not getattr(config, 'num_classes', 0):
    without.discard('head')
  if config.norm != 'layernorm':
    without.discard('norm')
  found['no_bias'] = ','.join(sorted(without))
  if isinstance(config, ViTArchitecture):
    if config.rope == 'none':
      del found['rope_base'], found['rope_grid']
    elif config.rope == 'unit':
      found.pop('rope_grid')
    if not config.stem_width:
      del found['stem_depths'], found['stem_convention']
    if config.posemb == 'learned':
      found['posemb_prefix'] = config.posemb_prefix
    if config.tables or config.relative_bias != 'none':
      found['grid'] = config.grid
  return found
