"""GGUF files, written here byte by byte: blocks, names, rotary rows, config, tokenizer, damage."""

import json
import math
import re
import struct
import tracemalloc

import numpy as np
import pytest

import vit_jax
from vit_jax.convert import files, gguf, gguf_file
from vit_jax.core.errors import RunError
from vit_jax.text import jsons

# Types of facts by number (docs/gguf.md of ggml), as struct has them.
FORMATS = {
  0: 'B',
  1: 'b',
  2: 'H',
  3: 'h',
  4: 'I',
  5: 'i',
  6: 'f',
  7: '?',
  10: 'Q',
  11: 'q',
  12: 'd',
}
U32, I32, F32, BOOL, TEXT, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def text(value):
  data = value if isinstance(value, bytes) else value.encode()
  return struct.pack('<Q', len(data)) + data


def fact(kind, value):
  if kind == TEXT:
    return text(value)
  if kind == ARRAY:
    inside, values = value
    head = struct.pack('<IQ', inside, len(values))
    return head + b''.join(fact(inside, each) for each in values)
  return struct.pack(f'<{FORMATS[kind]}', value)


def described(name, shape, kind, offset):
  axes = struct.pack(f'<I{len(shape)}Q', len(shape), *shape[::-1])
  return text(name) + axes + struct.pack('<IQ', kind, offset)


def header(facts, count, version=3):
  said = b''.join(text(n) + struct.pack('<I', k) + fact(k, v) for n, (k, v) in facts.items())
  return b'GGUF' + struct.pack('<IQQ', version, count, len(facts)) + said


def gguf_bytes(facts, arrays, version=3, alignment=32):
  """A file of facts, (type, value) by name, and arrays, (type, shape, bytes) by name."""
  infos, data = b'', b''
  for name, (kind, shape, blocks) in arrays.items():
    data += bytes(-len(data) % alignment)
    infos += described(name, shape, kind, len(data))
    data += blocks
  head = header(facts, len(arrays), version) + infos
  return head + bytes(-len(head) % alignment) + data


def plain(array):
  return 0, array.shape, array.astype('<f4').tobytes()


@pytest.fixture
def write(tmp_path):
  def write(*args, **kwargs):
    path = tmp_path / 'model.gguf'
    path.write_bytes(args[0] if isinstance(args[0], bytes) else gguf_bytes(*args, **kwargs))
    return path

  return write


# --- numbers ---


def half(value):
  return struct.pack('<e', value)


def bits(values):
  return np.asarray(values, np.float32).view(np.uint32).tolist()


NIBBLES = [(7 * i + 3) % 16 for i in range(32)]
# The first half of a block is in the low halves of its bytes.
PAIRS = bytes(low | high << 4 for low, high in zip(NIBBLES[:16], NIBBLES[16:], strict=True))
BYTES = [(37 * i) % 256 - 128 for i in range(32)]
SCALE, LEAST = np.float16(0.1), np.float16(-0.7)
BLOCKS = {
  'F32': (0, struct.pack('<4f', 1.5, -0.0, 1e-42, math.inf), [1.5, -0.0, 1e-42, math.inf]),
  # 0x0001 is the smallest number of float16, 2^-24.
  'F16': (1, b'\x01\x00' + half(-1.5) + half(65504), [2.0**-24, -1.5, 65504]),
  'BF16': (30, b'\x80\x3f\x49\xc0\x00\x00', [1.0, -3.140625, 0]),
  'Q8_0': (8, half(SCALE) + struct.pack('32b', *BYTES),
           [np.float32(SCALE) * np.float32(n) for n in BYTES]),
  'Q4_0': (2, half(SCALE) + PAIRS, [np.float32(SCALE) * np.float32(n - 8) for n in NIBBLES]),
  'Q4_1': (3, half(SCALE) + half(LEAST) + PAIRS,
           [np.float32(SCALE) * np.float32(n) + np.float32(LEAST) for n in NIBBLES]),
}  # fmt: skip


@pytest.mark.parametrize('name', BLOCKS)
def test_every_bit_of_a_type(write, name):
  kind, block, want = BLOCKS[name]
  path = write(
    {}, {'one': (kind, (len(want),), block), 'six': (kind, (3, 2 * len(want)), block * 6)}
  )
  _, found = gguf_file.read(path)
  assert [(stub.shape, stub.dtype) for stub in found.values()] == [
    ((len(want),), np.float32), ((3, 2 * len(want)), np.float32)
  ]  # fmt: skip
  assert bits(found['one']) == bits(want)
  assert bits(found['six']) == [bits(want) * 2] * 3


def test_blocks_follow_each_other_along_a_row(write):
  """The first axis of a file is the last one here."""
  rows = np.arange(2 * 64).reshape(2, 64) - 64
  blocks = b''.join(half(2) + struct.pack('32b', *row) for row in rows.reshape(4, 32))
  _, found = gguf_file.read(write({}, {'a': (8, (2, 64), blocks)}))
  np.testing.assert_array_equal(found['a'], 2 * rows)


@pytest.mark.parametrize('alignment', [1, 8, 32, 256])
@pytest.mark.parametrize('version', [2, 3])
def test_alignment_and_versions(write, alignment, version):
  arrays = {f'a{i}': np.arange(1, 4 + i, dtype=np.float32) for i in range(3)}
  said = {} if alignment == 32 else {'general.alignment': (U32, alignment)}
  written = {name: plain(array) for name, array in arrays.items()}
  path = write({'x': (TEXT, 'y'), **said}, written, version=version, alignment=alignment)
  facts, found = gguf_file.read(path)
  assert (facts['x'], list(found)) == ('y', list(arrays))
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array)


def test_facts_of_every_type(write):
  values = {0: 255, 1: -128, 2: 65535, 3: -32768, 4: 2**32 - 1, 5: -(2**31), 7: True, 10: 2**64 - 1,
            11: -(2**63), 12: 1e-300, 8: 'é\n\x00𝒜'}  # fmt: skip
  said = {str(kind): (kind, value) for kind, value in values.items()}
  said |= {f'[{kind}]': (ARRAY, (kind, [value] * 3)) for kind, value in values.items()}
  said |= {
    '6': (F32, 1e-5), 'none': (ARRAY, (TEXT, [])), 'empty': (TEXT, ''),
    'nested': (ARRAY, (ARRAY, [(I32, [1, 2]), (TEXT, ['a'])])),
  }  # fmt: skip
  found = gguf_file.facts(write(said, {}))
  for kind, value in values.items():
    assert found[str(kind)] == value
    assert type(found[str(kind)]) is type(value)
    assert list(found[f'[{kind}]']) == [value] * 3
  assert found['6'] == np.float32(1e-5)
  assert (found['none'], found['empty']) == ([], '')
  assert [list(inside) for inside in found['nested']] == [[1, 2], ['a']]


# --- models ---

HEADS, GROUPS, WIDTH, OUTSIDE = 4, 2, 6, 24
SIZES = {
  'attn_q': (HEADS * WIDTH, OUTSIDE), 'attn_k': (GROUPS * WIDTH, OUTSIDE),
  'attn_v': (GROUPS * WIDTH, OUTSIDE), 'attn_output': (OUTSIDE, HEADS * WIDTH),
  'ffn_gate': (10, OUTSIDE), 'ffn_up': (10, OUTSIDE), 'ffn_down': (OUTSIDE, 10),
  'attn_norm': (OUTSIDE,), 'ffn_norm': (OUTSIDE,),
}  # fmt: skip


def weights(biases=False, head=False):
  rng = np.random.default_rng(0)
  shapes = {'token_embd.weight': (7, OUTSIDE), 'output_norm.weight': (OUTSIDE,)}
  for layer in range(2):
    shapes |= {f'blk.{layer}.{name}.weight': shape for name, shape in SIZES.items()}
    if biases:
      shapes |= {f'blk.{layer}.attn_{n}.bias': SIZES[f'attn_{n}'][:1] for n in 'qkv'}
  shapes |= {'output.weight': (7, OUTSIDE)} if head else {}
  return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def said(kind='llama', **more):
  numbers = {
    'embedding_length': OUTSIDE, 'block_count': 2, 'attention.head_count': HEADS,
    'attention.head_count_kv': GROUPS, 'feed_forward_length': 10, 'context_length': 64,
  }  # fmt: skip
  return {
    'general.architecture': (TEXT, kind),
    **{f'{kind}.{name}': (U32, number) for name, number in numbers.items()},
    f'{kind}.attention.layer_norm_rms_epsilon': (F32, 1e-5),
    f'{kind}.rope.freq_base': (F32, 1e5),
    **more,
  }


NAMES = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
  **{
    f'blk.{layer}.{ours}.{kind}': f'model.layers.{layer}.{theirs}.{kind}'
    for layer in range(2)
    for kind in ('weight', 'bias')
    for ours, theirs in {
      'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj',
      'attn_output': 'self_attn.o_proj', 'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj',
      'ffn_down': 'mlp.down_proj', 'attn_norm': 'input_layernorm',
      'ffn_norm': 'post_attention_layernorm',
    }.items()
  },
}  # fmt: skip


@pytest.mark.parametrize(
  ('kind', 'biases', 'head'), [('llama', False, True), ('qwen2', True, False)]
)
def test_arrays_have_the_names_of_transformers(write, kind, biases, head):
  arrays = weights(biases, head)
  path = write(said(kind), {name: plain(array) for name, array in arrays.items()})
  found, config = gguf.opened(path)
  assert {*found} == {NAMES[name] for name in arrays}
  assert config['tie_word_embeddings'] is not head
  for name, array in arrays.items():
    if kind == 'qwen2' or not re.search('attn_[qk]', name):
      np.testing.assert_array_equal(found[NAMES[name]], array)
  model = vit_jax.load(path)
  embed = 'model.embed_tokens.weight'
  np.testing.assert_array_equal(model.embed[...], found[embed])
  assert (model.config.tied, model.config.rope_base) == (not head, 1e5)
  assert np.isfinite(model(np.arange(5)[None])).all()
  [(part, read)] = files.parts(path).items()
  assert (part, {*read}) == ('', {*found})
  for name, stub in read.items():
    np.testing.assert_array_equal(stub, found[name])


def rotated(heads, position, pairs):
  """Each pair of numbers of a head, turned by an angle of its own (Su et al. 2021)."""
  heads = heads.copy()
  for number, (one, two) in enumerate(pairs):
    angle = position * 100.0 ** (-number / len(pairs))
    x, y = heads[:, one].copy(), heads[:, two].copy()
    heads[:, one] = x * np.cos(angle) - y * np.sin(angle)
    heads[:, two] = y * np.cos(angle) + x * np.sin(angle)
  return heads


def test_rows_are_permuted_back(write):
  """Neighbours are turned in llama.cpp, halves in transformers: scores must be the same."""
  arrays = weights()
  arrays['blk.0.attn_k.bias'] = np.arange(GROUPS * WIDTH, dtype=np.float32)
  found, config = gguf.opened(write(said(), {n: plain(array) for n, array in arrays.items()}))
  assert 'attention_bias' not in config
  neighbours = [(i, i + 1) for i in range(0, WIDTH, 2)]
  halves = [(i, i + WIDTH // 2) for i in range(WIDTH // 2)]
  x, y = np.random.default_rng(1).standard_normal((2, OUTSIDE))
  bias = np.asarray(found['model.layers.0.self_attn.k_proj.bias'])
  scores = [
    rotated((query @ x).reshape(HEADS, WIDTH), 3, pairs)
    @ rotated((key @ y + shift).reshape(GROUPS, WIDTH), 11, pairs).T
    for query, key, shift, pairs in (
      (arrays['blk.0.attn_q.weight'], arrays['blk.0.attn_k.weight'], arrays['blk.0.attn_k.bias'],
       neighbours),
      (np.asarray(found['model.layers.0.self_attn.q_proj.weight']),
       np.asarray(found['model.layers.0.self_attn.k_proj.weight']), bias, halves),
    )
  ]  # fmt: skip
  np.testing.assert_allclose(*scores, rtol=1e-6)
  assert bias.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_config(write):
  want = {
    'model_type': 'llama', 'hidden_act': 'silu', 'hidden_size': 24, 'num_hidden_layers': 2,
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'intermediate_size': 10, 'vocab_size': 7,
    'rms_norm_eps': 1e-5, 'rope_theta': 100000, 'max_position_embeddings': 64,
    'tie_word_embeddings': True,
  }  # fmt: skip
  arrays = {name: plain(array) for name, array in weights().items()}
  assert gguf.opened(write(said(), arrays))[1] == want
  more = {
    'llama.attention.key_length': (U32, 6), 'llama.rope.dimension_count': (U32, 6),
    **{f'tokenizer.ggml.{n}_token_id': (U32, i) for i, n in enumerate(['bos', 'eos', 'padding'])},
  }  # fmt: skip
  ids = {'head_dim': 6, 'bos_token_id': 0, 'eos_token_id': 1, 'pad_token_id': 2}
  assert gguf.opened(write(said(**more), arrays))[1] == {**want, **ids}
  less = said()
  del less['llama.attention.head_count_kv'], less['llama.rope.freq_base']
  other = {'num_key_value_heads': 4, 'rope_theta': 10000}
  narrow = {n: a for n, a in arrays.items() if 'attn_k' not in n}
  assert gguf.opened(write(less, narrow))[1] == {**want, **other}
  biases = {name: plain(array) for name, array in weights(biases=True).items()}
  assert gguf.opened(write(said(), biases))[1] == {**want, 'attention_bias': True}
  assert gguf.opened(write(said('qwen2'), biases))[1] == {**want, 'model_type': 'qwen2'}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'general.architecture': (TEXT, 'gemma')}, "a 'gemma', and of GGUF only llama and qwen2"),
    ({'general.architecture': (U32, 1)}, 'general.architecture is of the type int'),
    ({'llama.block_count': (U32, 0)}, 'llama.block_count is 0, and must be at least 1'),
    ({'llama.block_count': (BOOL, True)}, 'llama.block_count is of the type bool'),
    ({'llama.attention.head_count': (ARRAY, (U32, [4, 4]))}, 'head_count is of the type ndarray'),
    ({'llama.attention.head_count': (U32, 5)}, '24 rows, which are not 5 heads'),
    ({'llama.rope.freq_base': (F32, math.nan)}, 'freq_base is nan'),
    ({'llama.rope.freq_base': (TEXT, '1')}, 'freq_base is of the type str'),
    ({'llama.rope.scaling.type': (TEXT, 'yarn')}, "scaled rotary positions .'yarn'"),
    ({'llama.expert_count': (U32, 8)}, 'a mixture of experts'),
    ({'llama.attention.key_length': (U32, 6), 'llama.rope.dimension_count': (U32, 4)}, 'differ'),
    ({'llama.context_length': None}, 'does not say llama.context_length'),
    ({'token_embd.weight': None}, 'lacks token_embd.weight'),
    ({'rope_freqs.weight': plain(np.ones(3))}, 'scaled rotary positions .*rope_freqs'),
  ],
)  # fmt: skip
def test_models_that_are_not_read(write, change, message):
  arrays = {name: plain(array) for name, array in weights().items()}
  facts = said()
  for name, value in change.items():
    where = arrays if name.endswith('.weight') else facts
    where[name] = value
    if value is None:
      del where[name]
  refused(write(facts, arrays), message)


def test_arrays_of_something_else_keep_their_names(write):
  arrays = {name: plain(array) for name, array in weights().items()}
  more = ['blk.0.ffn_gate_inp.weight', 'adapter', 'blk.0.output.weight', 'attn_q.weight']
  found, _ = gguf.opened(write(said(), {**arrays, **{name: plain(np.ones(4)) for name in more}}))
  assert {*found} == {*(NAMES[name] for name in arrays), *more}


# --- tokenizers ---

# As in a file of llama.cpp: bytes as letters ('Ġ' is a space), then what is merged of them.
MERGES = ['a b', 'Ġ ab', '1 2', 'Ã ©']
LETTERS = ['a', 'b', 'Ġ', '1', '2', '<', '|', '>', 'Ã', '©', "'", 's']
TOKENS = ['<|start|>', '<|end|>', *LETTERS, *(m.replace(' ', '') for m in MERGES), '[PAD]', '<use>']
KINDS = [3, 3, *[1] * (len(LETTERS) + len(MERGES)), 5, 4]


def words(split='smollm', **more):
  return {
    'general.architecture': (TEXT, 'llama'),
    'tokenizer.ggml.model': (TEXT, 'gpt2'),
    'tokenizer.ggml.pre': (TEXT, split),
    'tokenizer.ggml.tokens': (ARRAY, (TEXT, TOKENS)),
    'tokenizer.ggml.token_type': (ARRAY, (I32, KINDS)),
    'tokenizer.ggml.merges': (ARRAY, (TEXT, MERGES)),
    **more,
  }


@pytest.fixture
def pieces(write, tmp_path):
  def pieces(*args, **kwargs):
    (tmp_path / 'tokenizer.json').write_text(gguf.tokenizer_json(write(words(*args, **kwargs), {})))
    return jsons.Json(file=str(tmp_path / 'tokenizer.json'))

  return pieces


def numbers(*tokens):
  return [TOKENS.index(token) for token in tokens]


@pytest.mark.parametrize(
  ('split', 'words', 'want'),
  [
    ('smollm', 'ab ab', ['ab', 'Ġab']),
    ('smollm', 'é', ['Ã©']),
    # Digits one by one, and no space before them.
    ('smollm', 'a 12', ['a', 'Ġ', '1', '2']),
    ('gpt-2', 'a 12', ['a', 'Ġ', '12']),
    ('llama-bpe', 'a 12', ['a', 'Ġ', '12']),
    ('llama-bpe', '1212', ['12', '1', '2']),
    ('gpt-2', '1212', ['12', '12']),
    ('qwen2', 'a 12', ['a', 'Ġ', '1', '2']),
    # Brought together (NFC) by Qwen 2 alone, whose vocabulary has it so.
    ('qwen2', 'e\u0301', ['Ã©']),
    # Two letters and a mark that a word may begin with.
    ('gpt-2', '|ab', ['|', 'ab']),
    # What spells a token of control is text, what spells one of users is not.
    ('smollm', '<|s>', ['<', '|', 's', '>']),
    ('smollm', 'a<use>b', ['a', '<use>', 'b']),
  ],
)
def test_tokenizer(pieces, split, words, want):
  tokenizer = pieces(split, **{'tokenizer.ggml.bos_token_id': (U32, 0)})
  assert tokenizer.ids(words) == numbers(*want)
  assert tokenizer.words(tokenizer.ids(words)) == words.replace('e\u0301', 'é')


def test_frames_of_texts(pieces):
  id_of = {f'tokenizer.ggml.{n}_token_id': (U32, i) for n, i in {'bos': 0, 'eos': 1}.items()}
  pad = {'tokenizer.ggml.padding_token_id': (U32, 1)}
  starts, ends = ({f'tokenizer.ggml.add_{n}_token': (BOOL, True)} for n in ('bos', 'eos'))
  assert pieces().frame == ((), (), 0)
  assert pieces('smollm', **id_of, **pad).frame == ((), (), 1)
  assert pieces('smollm', **id_of, **starts).frame == ((0,), (), 0)
  assert pieces('smollm', **id_of, **starts, **ends, **pad).frame == ((0,), (1,), 1)
  # As llama.cpp has it, where the file does not say it.
  assert pieces('llama-bpe', **id_of).frame == ((0,), (), 0)
  assert pieces().size == TOKENS.index('<use>') + 1


def test_what_of_a_vocabulary_is_special(write):
  found = json.loads(gguf.tokenizer_json(write(words(), {})))
  assert [(t['id'], t['content'], t['special']) for t in found['added_tokens']] == [
    (0, '<|start|>', True), (1, '<|end|>', True), (len(TOKENS) - 1, '<use>', False),
  ]  # fmt: skip
  assert found['model']['vocab'] == {t: i for i, t in enumerate(TOKENS) if t != '[PAD]'}


def test_template(write):
  template = '{% for message in messages %}{{ message.content }}\n{% endfor %}'
  said = words(**{'tokenizer.chat_template': (TEXT, template)})
  assert gguf.chat_template(write(said, {})) == template
  assert gguf.chat_template(write(words(), {})) == ''


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model': (TEXT, 'llama')}, "of the kind 'llama', and only gpt2"),
    ({'model': None}, 'does not say tokenizer.ggml.model'),
    ({'pre': (TEXT, 'tekken')}, "parts texts like 'tekken', and only smollm, gpt-2"),
    ({'pre': None}, 'does not say tokenizer.ggml.pre'),
    ({'tokens': (TEXT, 'a')}, 'tokens is of the type str'),
    ({'tokens': (ARRAY, (ARRAY, [(TEXT, ['a'])]))}, 'tokens are not texts'),
    ({'token_type': (ARRAY, (I32, [1]))}, '20 tokens and 1 types'),
    ({'token_type': (TEXT, 'a')}, 'token_type is of the type str'),
    ({'tokens': (ARRAY, (TEXT, [*TOKENS[:-1], 'ab']))}, "tokens 14 and 19 are both 'ab'"),
    ({'merges': (ARRAY, (TEXT, ['ab']))}, "do not fit the merge 'ab'"),
    ({'merges': (ARRAY, (TEXT, ['b a']))}, "do not fit the merge 'b a'"),
    ({'merges': (ARRAY, (TEXT, ['a b c']))}, "do not fit the merge 'a b c'"),
    ({'padding_token_id': (U32, 20)}, 'padding_token_id is 20, and there are 20 tokens'),
    ({'add_bos_token': (BOOL, True)}, 'does not say tokenizer.ggml.bos_token_id'),
  ],
)  # fmt: skip
def test_tokenizers_that_are_not_read(write, change, message):
  facts = words(**{f'tokenizer.ggml.{name}': value for name, value in change.items()})
  path = write({name: value for name, value in facts.items() if value is not None}, {})
  with pytest.raises(RunError, match=message):
    gguf.tokenizer_json(path)


# --- damage ---


def refused(path, message=''):
  """One sentence, of reasonable length, from every way in."""
  for way in (gguf.opened, files.parts):
    with pytest.raises(RunError, match=message) as caught:
      way(path)
    told = str(caught.value).replace(str(path), '')
    assert '\n' not in told
    assert len(told) < 500


def whole():
  """A file in which every part of the format occurs."""
  arrays = {name: plain(a) for name, a in weights().items() if a.ndim == 1 or 'blk' not in name}
  for name, (kind, block, want) in BLOCKS.items():
    arrays[name] = kind, (len(want),), block
  return gguf_bytes({**said(), **words()}, arrays)


def test_cut_anywhere(write):
  data = whole()
  gguf.opened(write(data))
  assert 2000 < len(data) < 5000
  for size in range(0, len(data), 50):
    refused(write(data[:size]), 'damaged|no GGUF file')


def test_bytes_that_are_others(write):
  """Whatever it is then, it is read, or refused in one sentence."""
  data, rng, told = whole(), np.random.default_rng(0), []
  for at in rng.integers(0, len(data), 200):
    path = write(data[:at] + bytes([data[at] ^ 1 << rng.integers(8)]) + data[at + 1 :])
    for way in (gguf.opened, gguf.tokenizer_json, gguf.chat_template):
      try:
        found = way(path)
        if way is gguf.opened:
          [np.asarray(stub) for stub in found[0].values()]
      except RunError as error:
        told.append(str(error))
  assert len(told) > 50
  assert not any('\n' in each for each in told)


def of_one(shape=(4,), kind=0, offset=0, name='a', data=bytes(16), count=1):
  head = header(said(), count) + described(name, shape, kind, offset) * count
  return head + bytes(-len(head) % 32) + data


HUGE = 1 << 60
HOSTILE = {
  'no magic': (b'GGML' + bytes(100), 'does not begin with GGUF'),
  'nothing': (b'', 'does not begin with GGUF'),
  'version 1': (header({}, 0, version=1), 'of version 1, and versions 2 and 3'),
  'version 4': (header({}, 0, version=4), 'of version 4'),
  'other byte order': (b'GGUF' + struct.pack('>IQQ', 3, 0, 0), 'for big-endian machines'),
  'arrays without end': (b'GGUF' + struct.pack('<IQQ', 3, HUGE, 0), 'damaged'),
  'facts without end': (b'GGUF' + struct.pack('<IQQ', 3, 0, HUGE), 'damaged'),
  'a text without end': (b'GGUF' + struct.pack('<IQQQ', 3, 0, 1, HUGE), f'of {HUGE:,} bytes'),
  'a list without end': (
    b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + text('a') + struct.pack('<IIQ', 9, 8, HUGE), 'damaged'
  ),
  'numbers without end': (
    b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + text('a') + struct.pack('<IIQ', 9, 12, HUGE), 'damaged'
  ),
  'lists in lists': (
    b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + text('a') + struct.pack('<I', 9)
    + struct.pack('<IQ', 9, 1) * 10_000, 'arrays in more than 4 others'
  ),
  'an unknown type': (
    b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + text('a') + struct.pack('<IQ', 13, 0),
    'no type 13 of facts',
  ),
  'an unknown type of a list': (
    b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + text('a') + struct.pack('<IIQQ', 9, 77, 1, 0),
    'no type 77 of facts',
  ),
  'a name twice': (
    b'GGUF' + struct.pack('<IQQ', 3, 0, 2) + (text('a') + struct.pack('<IB', 0, 0)) * 2,
    "says 'a' twice",
  ),
  'not UTF-8': (header({'a': (TEXT, b'\xff')}, 0), 'is not UTF-8'),
  'neither true nor false': (
    b'GGUF' + struct.pack('<IQQ', 3, 0, 1) + text('a') + struct.pack('<IB', 7, 2), 'is neither'
  ),
  'a long name': (of_one(name='a' * 100_000, kind=12), "'aaa.*[.]{3}a+' is of type Q4_K, and only"),
  'no alignment': (gguf_bytes(said(**{'general.alignment': (U32, 0)}), {}), 'alignment is 0'),
  'alignment to 3': (gguf_bytes(said(**{'general.alignment': (U32, 3)}), {}), 'not a power of two'),
  'a text as alignment': (gguf_bytes(said(**{'general.alignment': (TEXT, '8')}), {}), "is '8'"),
  'outside': (of_one(offset=32), 'should end at byte'),
  'far outside': (of_one(offset=(1 << 64) - 32), 'should end at byte'),
  'not aligned': (of_one(offset=4), 'begins at byte 4'),
  'huge': (of_one(shape=(HUGE,)), 'should end at byte'),
  'huge and huge': (of_one(shape=(HUGE,) * 4), 'should end at byte'),
  'no axes': (of_one(shape=()), "'a' has 0 axes"),
  'many axes': (of_one(shape=(1,) * 1000), "'a' has 1000 axes"),
  'empty': (of_one(shape=(0, HUGE)), 'no array'),
  'half a block': (of_one(kind=8, shape=(2, 16), data=bytes(34)), 'type Q8_0 and shape .2, 16.'),
  'a type that is not read': (of_one(kind=14), "'a' is of type Q6_K, and only F32, F16, BF16"),
  'no type at all': (of_one(kind=1 << 31), f"'a' is of the unknown type {1 << 31}"),
  'an array twice': (of_one(count=2), 'same name'),
}  # fmt: skip


@pytest.mark.parametrize('name', HOSTILE)
def test_files_that_were_made_to_harm(write, name):
  data, message = HOSTILE[name]
  path = write(data)
  tracemalloc.start()
  try:
    refused(path, message)
    assert tracemalloc.get_traced_memory()[1] < 2e6
  finally:
    tracemalloc.stop()


def test_arrays_do_not_share_bytes(write):
  head = header(said(), 2) + described('a', (9,), 0, 0) + described('b', (8,), 0, 32)
  refused(write(head + bytes(-len(head) % 32) + bytes(64)), "'b' and 'a' lie upon each other")


def test_no_file_and_one_that_shrinks(write, tmp_path):
  with pytest.raises(RunError, match='there is no file'):
    gguf.opened(tmp_path / 'none.gguf')
  path = write(whole())
  found, _ = gguf.opened(path)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(RunError, match="'Q4_1' is not all there any more"):
    np.asarray(found['Q4_1'])


def test_known_by_its_first_bytes(write):
  path = write(said(), {name: plain(array) for name, array in weights().items()})
  other = path.rename(path.with_name('model'))
  assert 'model.norm.weight' in files.read(other)
