"""Language models in GGUF files, as Hugging Face transformers has them: arrays, config, tokenizer.

What llama.cpp changes when it writes such a file, it does in convert_hf_to_gguf.py; here it is
undone.
"""

from __future__ import annotations

import functools
import json
import math
import re
from typing import Any

import numpy as np

from vit_jax.convert import gguf_file
from vit_jax.convert.gguf_file import short
from vit_jax.convert.stubs import Arrays, Stub
from vit_jax.core import paths
from vit_jax.core.errors import RunError

ARCHITECTURES = ('llama', 'qwen2')
_OUTSIDE = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
_INSIDE = {
  'attn_norm': 'input_layernorm', 'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm', 'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}  # fmt: skip
_TOKENIZER = 'tokenizer.ggml.'
# Types of tokens in llama.h that are not pieces of texts: control, defined by users, not used.
_CONTROL, _USERS, _UNUSED = 3, 4, 5


def opened(path: paths.Path) -> tuple[Arrays, dict[str, Any]]:
  """A language model of the architecture 'llama' or 'qwen2'.

  llama.cpp permutes the rows of queries and keys of a 'llama', so that the two numbers that rotary
  positions turn together are neighbours. Here they are half a head apart again, as in transformers.

  Returns:
    The arrays under the names of transformers ('model.layers.0.self_attn.q_proj.weight'), those
    that a model of this architecture does not have under the file's own; and what config.json says.

  Raises:
    RunError: as `gguf_file.read` does; for another architecture; or for facts that are missing, do
      not fit the arrays, or ask for something that is not read, such as scaled positions.
  """
  facts, found = gguf_file.read(path)
  config = _config(_Said(path, facts), found)
  heads = {'attn_q': config['num_attention_heads'], 'attn_k': config['num_key_value_heads']}
  named, other = {}, {}
  for name, stub in found.items():
    layer, piece, kind = _split(name)
    if layer and piece in _INSIDE:
      if config['model_type'] == 'llama' and piece in heads:
        stub = _unpermuted(stub, heads[piece], f'{path}: {short(name)}')
      named[f'model.layers.{layer}.{_INSIDE[piece]}.{kind}'] = stub
    elif not layer and piece in _OUTSIDE:
      named[f'{_OUTSIDE[piece]}.{kind}'] = stub
    else:
      other[name] = stub
  return {**other, **named}, config


def _split(name: str) -> tuple[str, str, str]:
  """Layer, piece and kind of 'blk.0.attn_q.weight'; no layer outside of the layers."""
  match = re.fullmatch(r'(?:blk\.([0-9]+)\.)?(\w+)\.(weight|bias)', name)
  return (match[1] or '', match[2], match[3]) if match else ('', '', '')


def _unpermuted(stub: Stub, heads: int, where: str) -> Stub:
  rows, *rest = stub.shape
  if rows % (2 * heads):
    raise RunError(f'{where} has {rows:,} rows, which are not {heads} heads of an even width')

  def fetch() -> np.ndarray:
    pairs = np.asarray(stub).reshape(heads, rows // heads // 2, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(stub.shape)

  return Stub(stub.shape, stub.dtype, fetch)


class _Said:
  """Facts of a file, of the types that they must have."""

  def __init__(self, path: paths.Path, facts: gguf_file.Facts):
    self.path, self.facts = path, facts

  def there(self, name: str) -> bool:
    return name in self.facts

  def get(self, name: str, kind: type, default: Any = None) -> Any:
    """RunError if it is of another type, or missing without a default."""
    found = self.facts.get(name, default)
    if found is None:
      raise RunError(f'{self.path} does not say {name}')
    if type(found) is not kind:
      other = type(found).__name__
      raise RunError(f'{self.path}: {name} is of the type {other}, not {kind.__name__}')
    return found

  def whole(self, name: str, default: int | None = None, least: int = 1) -> int:
    found = self.get(name, int, default)
    if found < least:
      raise RunError(f'{self.path}: {name} is {found}, and must be at least {least}')
    return found

  def real(self, name: str, default: float | None = None) -> float:
    """The shortest decimal that means a float32 of the file, which config.json is likely to say."""
    found = self.facts.get(name, default)
    found = float(str(found)) if isinstance(found, np.floating) else self.get(name, float, default)
    if not (math.isfinite(found) and found > 0):
      raise RunError(f'{self.path}: {name} is {found}, and must be above 0')
    return found


def _config(said: _Said, arrays: Arrays) -> dict[str, Any]:
  """What transformers' config.json says of a model."""
  kind = said.get('general.architecture', str)
  if kind not in ARCHITECTURES:
    raise RunError(
      f'{said.path} holds a {short(kind)}, and of GGUF only {" and ".join(ARCHITECTURES)} are read'
    )
  for name in ('token_embd.weight', 'output_norm.weight'):
    if name not in arrays:
      raise RunError(f'{said.path} is not all of a model: it lacks {name}')
  if said.get(f'{kind}.expert_count', int, 0):
    raise RunError(f'{said.path} is a mixture of experts, which is not read')
  scaling = said.get(f'{kind}.rope.scaling.type', str, 'none')
  scaling = 'rope_freqs.weight' if 'rope_freqs.weight' in arrays else scaling
  if scaling != 'none':
    raise RunError(
      f'{said.path} has scaled rotary positions ({short(scaling)}), which are not read from GGUF: '
      'use the safetensors of the model'
    )
  heads = said.whole(f'{kind}.attention.head_count')
  widths = {
    name: said.whole(f'{kind}.{name}')
    for name in ('attention.key_length', 'attention.value_length', 'rope.dimension_count')
    if said.there(f'{kind}.{name}')
  }
  if len({*widths.values()}) > 1:
    raise RunError(f'{said.path}: queries, values and rotary positions of a head differ: {widths}')
  ids = {'bos_token_id': 'bos', 'eos_token_id': 'eos', 'pad_token_id': 'padding'}
  return {
    'model_type': kind,
    'hidden_act': 'silu',
    'hidden_size': said.whole(f'{kind}.embedding_length'),
    'num_hidden_layers': said.whole(f'{kind}.block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': said.whole(f'{kind}.attention.head_count_kv', heads),
    'intermediate_size': said.whole(f'{kind}.feed_forward_length'),
    'vocab_size': arrays['token_embd.weight'].shape[0],
    'rms_norm_eps': said.real(f'{kind}.attention.layer_norm_rms_epsilon'),
    'rope_theta': said.real(f'{kind}.rope.freq_base', 10_000.0),
    'max_position_embeddings': said.whole(f'{kind}.context_length'),
    'tie_word_embeddings': 'output.weight' not in arrays,
    **({'attention_bias': True} if kind == 'llama' and 'blk.0.attn_q.bias' in arrays else {}),
    **({'head_dim': next(iter(widths.values()))} if widths else {}),
    **{
      ours: said.whole(f'{_TOKENIZER}{theirs}_token_id', least=0)
      for ours, theirs in ids.items()
      if said.there(f'{_TOKENIZER}{theirs}_token_id')
    },
  }


def chat_template(path: paths.Path) -> str:
  """The Jinja template by which a dialogue becomes one text; '' if the file has none.

  Raises:
    RunError: as `gguf_file.facts` does.
  """
  return _Said(path, gguf_file.facts(path)).get('tokenizer.chat_template', str, '')


def _words(digits: str) -> list[dict[str, Any]]:
  """Words as Llama 3 and Qwen 2 part them, with `digits` for the numbers among them."""
  pattern = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits +
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )  # fmt: skip
  return [
    {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False},
    _bytes(regex=False),
  ]


def _bytes(*, regex: bool = True) -> dict[str, Any]:
  """Bytes as letters; with `regex`, of words as GPT-2 parts them."""
  return {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': regex}


# How texts are parted before pairs are merged, as in the tokenizer.json of SmolLM 2, GPT-2, Llama 3
# and Qwen 2, under the names that llama.cpp has for it (llama-vocab.cpp).
_SPLITS = {
  'smollm': [{'type': 'Digits', 'individual_digits': True}, _bytes()],
  'gpt-2': [_bytes()],
  'llama-bpe': _words(r'\p{N}{1,3}'),
  'qwen2': _words(r'\p{N}'),
}


def tokenizer_json(path: paths.Path) -> str:
  """The tokenizer of a file, as a tokenizer.json of the package tokenizers: pairs of bytes (BPE).

  Tokens of control are special there, those that users defined are found whole in texts, and those
  that are not used are left out. The token that fills rows is its padding.

  Raises:
    RunError: as `gguf_file.facts` does; for a tokenizer of another kind, or one that parts texts
      in an unknown way; or for pieces that do not fit each other.
  """
  said = _Said(path, gguf_file.facts(path))
  model = said.get(f'{_TOKENIZER}model', str)
  if model != 'gpt2':
    raise RunError(
      f'{path} has a tokenizer of the kind {short(model)}, and only gpt2 (pairs of bytes) is read: '
      'use the tokenizer.json or tokenizer.model of the model'
    )
  split = said.get(f'{_TOKENIZER}pre', str)
  if split not in _SPLITS:
    raise RunError(
      f'{path} parts texts like {short(split)}, and only {", ".join(_SPLITS)} are known: use the '
      'tokenizer.json of the model'
    )
  tokens = _texts(said, f'{_TOKENIZER}tokens')
  kinds = said.get(f'{_TOKENIZER}token_type', np.ndarray, np.ones(len(tokens), int)).tolist()
  if len(kinds) != len(tokens):
    raise RunError(f'{path} is damaged: it has {len(tokens):,} tokens and {len(kinds):,} types')
  vocab: dict[str, int] = {}
  for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
    if kind != _UNUSED and vocab.setdefault(token, number) != number:
      raise RunError(
        f'{path} is damaged: tokens {vocab[token]} and {number} are both {short(token)}'
      )
  merges = _texts(said, f'{_TOKENIZER}merges')
  for merge in merges:
    one, space, two = merge.partition(' ')
    if not space or not {one, two, one + two} <= vocab.keys():
      raise RunError(f'{path} is damaged: the tokens do not fit the merge {short(merge)}')
  number = functools.partial(_number, said, tokens)
  # llama.cpp begins texts of Llama 3 with a token even where the file does not say so.
  starts = said.get(f'{_TOKENIZER}add_bos_token', bool, split == 'llama-bpe')
  around = (
    [number('bos')] if starts else [],
    [number('eos')] if said.get(f'{_TOKENIZER}add_eos_token', bool, False) else [],
  )
  padding = number('padding') if said.there(f'{_TOKENIZER}padding_token_id') else None
  whole = {
    'version': '1.0',
    'truncation': None,
    'padding': None if padding is None else {
      'strategy': 'BatchLongest', 'direction': 'Right', 'pad_to_multiple_of': None,
      'pad_id': padding[0], 'pad_type_id': 0, 'pad_token': padding[1],
    },
    'added_tokens': [
      {'id': number, 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False,
       'normalized': False, 'special': kind == _CONTROL}
      for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
      if kind in (_CONTROL, _USERS)
    ],
    'normalizer': {'type': 'NFC'} if split == 'qwen2' else None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': _SPLITS[split]},
    'post_processor': _framed(*around) if any(around) else None,
    'decoder': {**_bytes(), 'add_prefix_space': True},
    'model': {
      'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
      'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
      # A word that is a token is that token, whichever pairs would be merged.
      'ignore_merges': split == 'llama-bpe',
      'vocab': vocab, 'merges': merges,
    },
  }  # fmt: skip
  return json.dumps(whole, ensure_ascii=False)


def _texts(said: _Said, name: str) -> list[str]:
  found = said.get(name, list)
  if not all(isinstance(text, str) for text in found):
    raise RunError(f'{said.path}: {name} are not texts')
  return found


def _number(said: _Said, tokens: list[str], meaning: str) -> tuple[int, str]:
  """The token with a meaning: its number, and itself."""
  name = f'{_TOKENIZER}{meaning}_token_id'
  number = said.whole(name, least=0)
  if number >= len(tokens):
    raise RunError(f'{said.path}: {name} is {number}, and there are {len(tokens):,} tokens')
  return number, tokens[number]


def _framed(before: list[tuple[int, str]], after: list[tuple[int, str]]) -> dict[str, Any]:
  """A post-processor that puts tokens around texts."""

  def around(text: str, kind: int) -> list[dict[str, Any]]:
    special = lambda token: {'SpecialToken': {'id': token[1], 'type_id': kind}}  # noqa: E731
    piece = {'Sequence': {'id': text, 'type_id': kind}}
    return [*map(special, before), piece, *map(special, after)]

  return {
    'type': 'TemplateProcessing', 'single': around('A', 0), 'pair': around('A', 0) + around('B', 1),
    'special_tokens': {
      token: {'id': token, 'ids': [number], 'tokens': [token]}
      for number, token in (*before, *after)
    },
  }  # fmt: skip
