"""Decoder-only language models of Hugging Face transformers: Llama and those that are like it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from vit_jax.architecture.card import Card
from vit_jax.architecture.language import LanguageArchitecture
from vit_jax.convert.layout import BLOCKS, Rule, Shapes, Table, rules
from vit_jax.convert.source import Source
from vit_jax.core.errors import RunError, suggest
from vit_jax.models.language import LanguageConfig

IGNORE = r'(.*\.)?rotary_emb\.inv_freq'


class Kind(NamedTuple):
  """What all models of a model_type have in common.

  Attributes:
    name: of its classes, before 'ForCausalLM'.
    options: fields of `LanguageArchitecture`.
    heads, context: what a config.json that does not say them means.
    act: of config.json.
  """

  name: str
  options: dict[str, Any]
  heads: int
  context: int
  act: str = 'silu'


EPS = 1e-6  # likewise


_LLAMA: dict[str, Any] = dict(norm='rmsnorm', mlp='swiglu')
_GEMMA: dict[str, Any] = dict(norm='rmsnorm1p', mlp='geglu_tanh', scaled_embed=True)
TYPES = {
  'llama': Kind('Llama', _LLAMA, 32, 2048),
  'qwen2': Kind('Qwen2', _LLAMA, 32, 32_768),
  'qwen3': Kind('Qwen3', dict(_LLAMA, qk_norm=True), 32, 32_768),
  'gemma': Kind('Gemma', _GEMMA, 16, 8192, act='gelu_pytorch_tanh'),
}
# What old files of Gemma say, and mean the other one by.
_TANH = ('gelu', 'gelu_pytorch_tanh')
# By their fields in config.json.
_SIZES = {
  'hidden_size': 'width', 'num_hidden_layers': 'depth', 'intermediate_size': 'mlp_dim',
  'vocab_size': 'vocab_size',
}  # fmt: skip
_PARTS = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}


def recognise(source: Source) -> dict[str, Any] | None:
  """Where a language model is in a checkpoint; None if there is none, or more than that."""
  for prefix in ('model.', ''):
    if f'{prefix}embed_tokens.weight' in source:
      kind = source.config.get('model_type') or _by_names(source, prefix)
      if kind not in TYPES:
        raise RunError(
          f'{source.where}: model_type={kind!r} is not supported: {suggest(str(kind), TYPES)}'
        )
      return dict(kind=kind, prefix=prefix, head='lm_head')
  return None


def _by_names(source: Source, prefix: str) -> str:
  """Which of them have these names, where no file next to the weights says it."""
  block = f'{prefix}layers.0.self_attn.'
  if f'{block}q_norm.weight' in source:
    return 'qwen3'
  return 'qwen2' if f'{block}q_proj.bias' in source else 'llama'


def architecture(source: Source, style: dict[str, Any]) -> tuple[Any, Card]:
  """The model of a checkpoint, by its arrays and its config.json."""
  kind, prefix, given = TYPES[style['kind']], style['prefix'], source.config
  block = f'{prefix}layers.0.'
  vocabulary, width = source.shape(f'{prefix}embed_tokens.weight', 2)
  queries, keys = (
    source.shape(f'{block}self_attn.{name}_proj.weight', 2)[0] for name in ('q', 'k')
  )
  heads = _heads(source, kind, block, queries)
  head_dim = queries // heads
  if queries % heads or keys % head_dim:
    raise RunError(
      f'{source.where}: {queries} features of queries and {keys} of keys are not of {heads} heads'
    )
  without = [
    name for name, letter in _PARTS.items() if f'{block}self_attn.{letter}_proj.bias' not in source
  ]
  if f'{block}mlp.down_proj.bias' not in source:
    without.append('mlp')
  act = given.get('hidden_activation') or given.get('hidden_act') or kind.act
  if act != kind.act and not (kind.act in _TANH and act in _TANH):
    raise RunError(f'{source.where}: hidden_act={act!r} is not supported in a {kind.name}')
  if given.get('use_sliding_window'):
    raise RunError(f'{source.where}: use_sliding_window=true is not supported')
  base, scaling = _rotary(source)
  found: dict[str, Any] = dict(
    variant='', width=width, depth=source.count(re.escape(prefix) + r'layers\.(\d+)\.'),
    mlp_dim=source.shape(f'{block}mlp.gate_proj.weight', 2)[0], num_heads=heads,
    kv_heads=keys // head_dim, head_dim=head_dim, eps=float(given.get('rms_norm_eps', EPS)),
    vocab_size=vocabulary, tied=f'{style["head"]}.weight' not in source, no_bias=','.join(without),
    context_length=int(given.get('max_position_embeddings', kind.context)), rope_base=base,
    rope_scaling=scaling, **kind.options,
  )  # fmt: skip
  for name, ours in _SIZES.items():
    if given.get(name, found[ours]) != found[ours]:
      raise RunError(
        f'{source.where}: config.json says {name}={given[name]}, but the weights have {found[ours]}'
      )
  if not given:
    source.notes.append(
      f'no configuration next to the weights; guessing model_type={style["kind"]}, '
      f'eps={found["eps"]}, rope_base={base}, context_length={found["context_length"]}'
    )
  return LanguageConfig(**found), Card('transformers', (1, 1))


def _heads(source: Source, kind: Kind, block: str, queries: int) -> int:
  """Of the queries."""
  given = source.hints.get('num_heads', source.config.get('num_attention_heads'))
  if given is not None:
    return source.integer(given, 'num_heads')
  if (norm := f'{block}self_attn.q_norm.weight') in source:
    return queries // source.shape(norm, 1)[0]
  if source.config:
    return kind.heads
  raise RunError(f'{source.where} does not say how many heads it has: give num_heads')


def _rotary(source: Source) -> tuple[float, tuple[float, ...]]:
  """Base and scaling of rotary positions, as config.json has said them at different times."""
  given = source.config
  rope = given.get('rope_parameters') or given.get('rope_scaling') or {}
  base = given.get('rope_theta') or rope.get('rope_theta') or 10_000.0
  kind = rope.get('rope_type', rope.get('type', 'default'))
  if kind == 'default':
    return float(base), ()
  if kind == 'linear':
    return float(base), (float(rope['factor']),)
  if kind == 'llama3':
    names = ('factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings')
    return float(base), tuple(float(rope[name]) for name in names)
  raise RunError(f'{source.where}: rotary positions of the kind {kind!r} are not supported')


def table(prefix: str, head: str) -> Table:
  """From our names to theirs.

  Args:
    prefix: of theirs but the head.
    head: name of that.
  """
  base = f'{prefix}layers.{{}}.'
  return {
    'embed': f'{prefix}embed_tokens.weight', 'encoder/norm': f'{prefix}norm', 'head': head,
    f'{BLOCKS}norm1': f'{base}input_layernorm',
    f'{BLOCKS}norm2': f'{base}post_attention_layernorm',
    **{f'{BLOCKS}attn/{ours}': f'{base}self_attn.{q}_proj' for ours, q in _PARTS.items()},
    **{f'{BLOCKS}attn/{ours}_norm': f'{base}self_attn.{q}_norm'
       for ours, q in _PARTS.items() if ours in ('query', 'key')},
    **{f'{BLOCKS}mlp/{name}': f'{base}mlp.{name}_proj' for name in ('gate', 'up', 'down')},
  }  # fmt: skip


def make_rules(config: LanguageArchitecture, shapes: Shapes, style: dict[str, Any]) -> list[Rule]:
  """The rules by which a model is read and written."""
  return rules(table(style['prefix'], style['head']), shapes, torch=True)


def kind_of(config: LanguageArchitecture) -> str:
  """The model_type that a resolved model is of.

  Raises:
    RunError: if it is of none, naming what is like no other.
  """
  without, near = set(config.without), []
  plain = {'out', 'mlp'} <= without
  for name, kind in TYPES.items():
    # Of the first three no norm or attention of another kind is told apart by a field.
    wanted = {
      'qk_norm': False, 'scaled_embed': False, 'norm_place': 'pre', 'parallel': False,
      'softcap': 0.0, 'layerscale': 0.0, 'mlp_norm': False, 'rope_pairs': 'halves',
      'mup_width': 0, 'mup_depth': 0, **kind.options,
    }  # fmt: skip
    wrong = [
      f'{field}={getattr(config, field)!r}' for field, value in wanted.items()
      if getattr(config, field) != value
    ]  # fmt: skip
    biased = {'query', 'key', 'value'} - without
    fits = len(biased) == 3 if name == 'qwen2' else not biased
    if not (plain and fits):
      wrong.append(f'no_bias={config.no_bias!r}')
    if not wrong:
      return name
    near.append(wrong)
  raise RunError(f'transformers cannot express {", ".join(min(near, key=len))}')


def sidecar(config: LanguageArchitecture) -> dict[str, Any]:
  """The config.json of a resolved model.

  Raises:
    RunError: as `kind_of`.
  """
  name = kind_of(config)
  kind, scaling = TYPES[name], config.rope_scaling
  rope: dict[str, Any] = {'rope_theta': config.rope_base, 'rope_type': 'default'}
  if len(scaling) == 1:
    rope |= {'rope_type': 'linear', 'factor': scaling[0]}
  elif scaling:
    factor, low, high, length = scaling
    rope |= {
      'rope_type': 'llama3', 'factor': factor, 'low_freq_factor': low, 'high_freq_factor': high,
      'original_max_position_embeddings': int(length),
    }  # fmt: skip
  old = {k: v for k, v in rope.items() if k != 'rope_theta'} if scaling else None
  return {
    'model_type': name, 'architectures': [f'{kind.name}ForCausalLM'],
    'hidden_size': config.width, 'num_hidden_layers': config.depth,
    'num_attention_heads': config.num_heads, 'num_key_value_heads': config.key_heads,
    'head_dim': config.head_width, 'intermediate_size': config.mlp_dim, 'hidden_act': kind.act,
    'hidden_activation': kind.act, 'rms_norm_eps': config.eps, 'vocab_size': config.vocab_size,
    'max_position_embeddings': config.context_length, 'tie_word_embeddings': config.tied,
    'attention_bias': False, 'rope_theta': config.rope_base, 'rope_scaling': old,
    'rope_parameters': rope,
  }  # fmt: skip
