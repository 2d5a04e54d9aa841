"""Dialogues as tokens and masks: beside texts written out by hand, and beside the packages' own."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest

from tests.test_text import corpus, make, model
from vit_jax.core.errors import RunError
from vit_jax.text import dialogues
from vit_jax.text.dialogues import IMAGE, MARKER, PADDING, TEMPLATES, encode, ends, prompt, sayable

SPECIALS = (
  '<unk>', '<s>', '</s>', '<bos>', '<eos>', '<start_of_turn>', '<end_of_turn>', '<|im_start|>',
  '<|im_end|>', '<|endoftext|>', '<pad>',
)  # fmt: skip
SMOL = 'You are a helpful AI assistant named SmolLM, trained by Hugging Face'
VICUNA = (
  'A chat between a curious user and an artificial intelligence assistant. The assistant gives '
  "helpful, detailed, and polite answers to the user's questions."
)
ONE = [('What is it?', 'a cat')]
TWO = [('What is it?', 'a cat'), ('Why?', 'It purrs.')]
# '▣' is a place of an image; in brackets is what is learned.
WRITTEN = {
  'plain': ('▣▣⟦a cat\n⟧', None),
  'vicuna': (
    f'<s>{VICUNA} USER: ▣▣\nWhat is it? ASSISTANT:⟦ a cat</s>⟧',
    'USER: Why? ASSISTANT:⟦ It purrs.</s>⟧',
  ),
  'chatml': (
    f'<|im_start|>system\n{SMOL}<|im_end|>\n<|im_start|>user\n▣▣\nWhat is it?<|im_end|>\n'
    '<|im_start|>assistant\n⟦a cat<|im_end|>⟧\n',
    '<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n⟦It purrs.<|im_end|>⟧\n',
  ),
  'gemma': (
    '<bos><start_of_turn>user\n▣▣\nWhat is it?<end_of_turn>\n<start_of_turn>model\n'
    '⟦a cat<end_of_turn>⟧\n',
    '<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n⟦It purrs.<end_of_turn>⟧\n',
  ),
  'paligemma': ('▣▣<bos>What is it?\n⟦a cat<eos>⟧', None),
  'answers': ('▣▣What is it?⟦a cat<|endoftext|>⟧', 'Why?⟦It purrs.<|endoftext|>⟧'),
}


def letters(path, **fields):
  """A tokenizer.json of bytes: what is a special token, and what is not, can be told by hand."""
  import tokenizers

  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  made.train_from_iterator([], tokenizers.trainers.BpeTrainer(
    vocab_size=256 + len(SPECIALS), special_tokens=list(SPECIALS), show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  ))  # fmt: skip
  made.save(str(path))
  return make('json', file=path, end_token='<|endoftext|>', **fields), made


@pytest.fixture(scope='module')
def every(tmp_path_factory):
  """Tokenizers, one of each way to put spaces before texts."""
  folder = tmp_path_factory.mktemp('dialogues')
  spaced = dict(
    vocab_size=330, model_type='bpe', byte_fallback=True, normalization_rule_name='identity',
    remove_extra_whitespaces=False,
  )  # fmt: skip
  model(folder / 'llama.model', **spaced)
  model(
    folder / 'gemma.model', **spaced, add_dummy_prefix=False, pad_id=0, eos_id=1, bos_id=2,
    unk_id=3, eos_piece='<eos>', bos_piece='<bos>',
    user_defined_symbols=['<start_of_turn>', '<end_of_turn>'],
  )  # fmt: skip
  return {
    'letters': letters(folder / 'letters.json')[0],
    'llama': make('sentencepiece', file=folder / 'llama.model', start=True),
    'gemma': make('sentencepiece', file=folder / 'gemma.model'),
    'bytes': make('bytes'),
    'words': make('words', vocabulary=('what', 'is', 'it', 'a', 'cat', 'why')),
  }


def spelled(text, package):
  """Numbers and mask of a text as in `WRITTEN`."""
  numbers, learned, inside = [], [], False
  for part in re.split(f'({"|".join(map(re.escape, SPECIALS))}|[▣⟦⟧])', text):
    if part in '⟦⟧' and part:
      inside = part == '⟦'
      continue
    if part == '▣':
      own = [IMAGE]
    elif part in SPECIALS:
      own = [SPECIALS.index(part)]
    else:
      own = package.encode(part, add_special_tokens=False).ids
      assert len(own) == len(part.encode())
    numbers += own
    learned += [inside] * len(own)
  return numbers, learned


def test_every_template_is_as_written(tmp_path):
  tokenizer, package = letters(tmp_path / 'letters.json')
  assert {*WRITTEN} == {*TEMPLATES} - {'qwen2', 'qwen2.5'}
  for name, (first, second) in WRITTEN.items():
    for turns, text in ((ONE, first), (TWO, first + (second or ''))):
      if turns is TWO and second is None:
        with pytest.raises(ValueError, match=f'has 2 turns, and the template {name!r} takes 1'):
          encode(TEMPLATES[name], tokenizer, turns, 2, 1000)
        continue
      numbers, learned = spelled(text, package)
      found = encode(TEMPLATES[name], tokenizer, turns, 2, 1000)
      assert found.tokens.dtype == np.int32, name
      assert found.answered.dtype == bool, name
      assert found.tokens.tolist() == numbers + [PADDING] * (1000 - len(numbers)), name
      assert found.answered.tolist() == learned + [False] * (1000 - len(numbers)), name
      assert found.cut == 0
      begins = prompt(TEMPLATES[name], tokenizer, [*turns[:-1], (turns[-1][0], '')], 2)
      assert begins == numbers[: len(begins)], name
      assert learned[len(begins)], name
      assert not learned[len(begins) - 1], name


def test_of_qwen_the_system_sentence_differs(tmp_path):
  tokenizer, _ = letters(tmp_path / 'letters.json')
  for name, sentence in (
    ('qwen2', 'You are a helpful assistant.'),
    ('qwen2.5', 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'),
  ):
    text = dialogues.said(TEMPLATES['gemma'], tokenizer, prompt(TEMPLATES[name], tokenizer, ONE, 0))
    assert text.startswith(f'<|im_start|>system\n{sentence}<|im_end|>\n<|im_start|>user\nWhat')
  bare = dataclasses.replace(TEMPLATES['chatml'], system='')
  text = tokenizer.words(prompt(bare, tokenizer, ONE, 0))
  assert text.startswith('<|im_start|>user\nWhat')


def test_spaces_of_sentencepiece_are_those_of_the_text(every):
  """Another one stands at the start, and behind the image, where LLaVA cuts the text."""
  tokenizer = every['llama']
  pieces = tokenizer.opened()._model.id_to_piece
  text = ''.join(
    '▣' if number == IMAGE else pieces(number)
    for number in prompt(TEMPLATES['vicuna'], tokenizer, TWO, 1)
  )
  text = re.sub('<0x(..)>', lambda found: chr(int(found[1], 16)), text)
  assert text == (
    f'<s>▁{VICUNA} USER: ▣▁\nWhat is it? ASSISTANT: a cat</s>USER: Why? ASSISTANT:'
  ).replace(' ', '▁')
  plain = encode(TEMPLATES['plain'], tokenizer, ONE, 1, 32)
  learned = plain.tokens[plain.answered].tolist()
  assert learned == [*tokenizer.ids('a cat'), tokenizer.opened().number('<0x0A>')]
  # Texts that are cut into tokens each by itself begin like others.
  answers = encode(TEMPLATES['answers'], tokenizer, ONE, 1, 32)
  assert answers.tokens[answers.answered].tolist() == [*tokenizer.ids('a cat'), tokenizer.end]


@pytest.mark.parametrize('kind', ['sentencepiece', 'prepend', 'metaspace', 'bytes'])
def test_texts_that_go_on_have_no_space_of_their_own(kind, every, tmp_path):
  import tokenizers as package

  if kind == 'sentencepiece':
    tokenizer = every['llama']
    pieces = tokenizer.opened()._model.id_to_piece
    for text in ('photo', ' photo', '  a b ', '\n', ''):
      shown = ''.join(map(pieces, tokenizer.ids(text, begins=False)))
      assert shown.replace('<0x0A>', '\n') == text.replace(' ', '▁')
      assert tokenizer.ids(text) != tokenizer.ids(text, begins=False) or not text
    return
  before, normal = package.pre_tokenizers, package.normalizers
  ways = {
    'prepend': (normal.Sequence([normal.Prepend('▁'), normal.Replace(' ', '▁')]), None),
    'metaspace': (None, before.Metaspace('▁', prepend_scheme='always', split=False)),
    'bytes': (None, before.Sequence([before.ByteLevel(add_prefix_space=True)])),
  }
  found = []
  for name, others in ((kind, True), ('plain', False)):
    if not others:
      ways['plain'] = {
        'prepend': (normal.Replace(' ', '▁'), None),
        'metaspace': (None, before.Metaspace('▁', prepend_scheme='never', split=False)),
        'bytes': (None, before.ByteLevel(add_prefix_space=False)),
      }[kind]
    made = package.Tokenizer(package.models.BPE())
    normalizer, pre_tokenizer = ways[name]
    if normalizer:
      made.normalizer = normalizer
    if pre_tokenizer:
      made.pre_tokenizer = pre_tokenizer
    made.add_tokens(['▁', 'Ġ', *'abcdefghijklmnopqrstuvwxyz'])
    made.save(str(tmp_path / f'{name}.json'))
    found.append(make('json', file=tmp_path / f'{name}.json'))
  for text in ('photo', ' photo', 'a b'):
    assert found[0].ids(text, begins=False) == found[1].ids(text)
    assert found[0].ids(text)
  first = json.loads((tmp_path / f'{kind}.json').read_text())
  assert first != json.loads((tmp_path / 'plain.json').read_text())


def test_prompts_begin_what_is_learned(every):
  """Of all templates and tokenizers, but for tokens that are missing."""
  rng, words = np.random.default_rng(0), corpus()
  odd = ['', ' ', '\n', ' a ', '</s>', '<|im_end|>', '<end_of_turn> a', 'ASSISTANT: é', '\ud800']
  texts, fits = [*words[:20], *odd], set()
  for name, kind in itertools.product(TEMPLATES, every):
    template, tokenizer = TEMPLATES[name], every[kind]
    try:
      stops = ends(template, tokenizer)
    except RunError:
      continue
    fits.add((name, kind))
    may = sayable(tokenizer, tokenizer.size + 3)
    assert may[list(stops)].all()
    special = [tokenizer.opened().number(token) for token in template.specials]
    for _ in range(6):
      count = int(rng.integers(1, 2 if template.most else 4))
      turns = [tuple(rng.choice(texts, 2).tolist()) for _ in range(count)]
      images, mark = int(rng.integers(name == 'plain', 3)), int(rng.integers(count))
      if images and rng.integers(2):
        turns[mark] = (f'{MARKER}\n{turns[mark][0]}', turns[mark][1])
      if name == 'answers' and not images:
        turns[0] = ('is a cat', turns[0][1])
      whole = encode(template, tokenizer, turns, images, 2000)
      begins = prompt(template, tokenizer, [*turns[:-1], (turns[-1][0], '')], images)
      assert whole.tokens[: len(begins)].tolist() == begins
      if name != 'answers' or turns[-1][0].replace(MARKER, '').strip():
        assert not whole.answered[len(begins) - 1]
      assert whole.answered[len(begins)]
      assert (whole.tokens == IMAGE).sum() == images
      assert not whole.answered[whole.tokens < 0].any()
      # One end for each answer, and no other special token that a text could have written.
      assert (whole.tokens[whole.answered] == stops[0]).sum() >= count
      if special:
        empty = encode(template, tokenizer, [('a', 'a')] * count, images, 2000)
        assert [np.isin(whole.tokens, n).sum() for n in special] == [
          np.isin(empty.tokens, n).sum() for n in special
        ]
      last = whole.tokens[len(begins) :][whole.answered[len(begins) :]]
      said, want = dialogues.said(template, tokenizer, last.tolist()), turns[-1][1]
      if kind in ('letters', 'bytes') and not template.strip and '\n' not in want:
        assert said == want.replace('\ud800', '\ufffd')
  assert fits == {
    *((name, 'letters') for name in TEMPLATES), ('plain', 'llama'), ('vicuna', 'llama'),
    ('answers', 'llama'), ('plain', 'gemma'), ('gemma', 'gemma'), ('paligemma', 'gemma'),
    ('answers', 'gemma'), ('plain', 'bytes'), ('answers', 'bytes'), ('answers', 'words'),
  }  # fmt: skip


def test_words_and_bytes_need_nothing_else(every):
  found = encode(TEMPLATES['answers'], every['words'], [('What is IT', 'a dog')], 2, 9)
  assert found.tokens.tolist() == [IMAGE, IMAGE, 2, 3, 4, 5, 1, 8, PADDING]
  assert found.answered.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0]
  found = encode(TEMPLATES['answers'], every['bytes'], [('ab', 'c')], 0, 5)
  assert found.tokens.tolist() == [98, 99, 100, 257, PADDING]
  assert ends(TEMPLATES['answers'], every['words']) == (8,)
  assert ends(TEMPLATES['plain'], every['bytes']) == (11, 257)
  assert sayable(every['words'], 11).tolist() == [False, *[True] * 8, False, False]


def test_places_of_the_image(tmp_path):
  tokenizer, _ = letters(tmp_path / 'letters.json')
  bare = dataclasses.replace(TEMPLATES['chatml'], system='')

  def shown(*asked, template=bare, images=2):
    ids = prompt(template, tokenizer, [(each, '') for each in asked], images)
    cut = [[*group] for _, group in itertools.groupby(ids, lambda n: n == IMAGE)]
    return ''.join('▣' * len(p) if p[0] == IMAGE else tokenizer.opened().words(p) for p in cut)

  def around(text):
    return f'<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n'

  assert shown('a b', images=0) == around('a b')
  for asked in ('a b', '<image>\na b', '<image> a b', 'a b\n<image>', ' a b<image>'):
    assert shown(asked) == around('▣▣\na b'), asked
  assert shown('<image>') == around('▣▣')
  assert shown('') == around('▣▣')
  assert shown('a <image> b') == around('a ▣▣ b')
  later = shown('a', 'b <image>')
  assert later == f'{around("a")}<|im_end|>\n{around("▣▣" + chr(10) + "b")}'
  pali = TEMPLATES['paligemma']
  assert shown('a <image>', template=pali) == '▣▣<bos>a\n'
  with pytest.raises(ValueError, match="inside of a question, and the template 'paligemma' puts"):
    shown('a <image> b', template=pali)
  with pytest.raises(ValueError, match='has 2 markers <image>, and there is one image at most'):
    shown('<image>', 'a <image>')
  with pytest.raises(ValueError, match='has the marker <image>, and there is no image'):
    shown('<image> a', images=0)
  with pytest.raises(ValueError, match='is a dialogue without a turn'):
    shown()
  with pytest.raises(ValueError, match='nothing before its first answer: neither a question nor'):
    shown('', template=TEMPLATES['answers'], images=0)


def test_what_is_too_long_is_cut_and_counted(every):
  tokenizer, template = every['bytes'], TEMPLATES['answers']
  turns = [('ask', 'answer'), ('on', 'yes')]
  whole = encode(template, tokenizer, turns, 2, 18)
  assert whole.cut == 0
  for length in range(6, 18):
    cut = encode(template, tokenizer, turns, 2, length)
    assert cut.cut == 18 - length
    np.testing.assert_array_equal(cut.tokens, whole.tokens[:length])
    np.testing.assert_array_equal(cut.answered, whole.answered[:length])
  with pytest.raises(ValueError, match='its first answer behind 5 tokens, and rows have 5: there'):
    encode(template, tokenizer, turns, 2, 5)
  late = dataclasses.replace(template, image='turn', behind='')
  with pytest.raises(ValueError, match='not all of its image within the 12 tokens of a row'):
    encode(late, tokenizer, [('ask', 'answer'), ('<image>on', 'yes')], 3, 12)


def test_tokens_that_are_missing_are_named(every, tmp_path):
  for name, kind, message in (
    ('vicuna', 'bytes', "the template 'vicuna' needs the token <s>, and the tokenizer bytes has"),
    ('chatml', 'llama', r"'chatml' needs the token <\|im_start\|>, .*llama.model has none like it"),
    ('plain', 'words', r"'plain' ends answers by '\\n', and the tokenizer words has no one token"),
  ):
    with pytest.raises(RunError, match=message):
      encode(TEMPLATES[name], every[kind], ONE, 0, 99)
    with pytest.raises(RunError, match=message):
      prompt(TEMPLATES[name], every[kind], ONE, 0)
    with pytest.raises(RunError, match=message):
      ends(TEMPLATES[name], every[kind])
  endless = dataclasses.replace(letters(tmp_path / 'letters.json')[0], end_token='')
  with pytest.raises(RunError, match='ends answers by the end token of the tokenizer, and'):
    ends(TEMPLATES['answers'], endless)
  with pytest.raises(RunError, match='the tokenizer has 9 tokens, and the model knows 8'):
    sayable(every['words'], 8)
  with pytest.raises(RunError, match='a text is expected, not 3'):
    prompt(TEMPLATES['answers'], every['bytes'], [(3, '')], 0)  # type: ignore
  with pytest.raises(RunError, match='the template gemma has no place for a system sentence'):
    dataclasses.replace(TEMPLATES['gemma'], system='Be good.')
  with pytest.raises(RunError, match="the template gemma has the image 'last': first or turn"):
    dataclasses.replace(TEMPLATES['gemma'], image='last')


def test_what_may_be_said(every, tmp_path):
  tokenizer, _ = letters(tmp_path / 'letters.json', pad_token='<|endoftext|>')
  may = sayable(tokenizer, tokenizer.size + 2)
  never = [n for n, token in enumerate(SPECIALS) if not may[n]]
  # Padding that ends texts, too, ends answers.
  assert [SPECIALS[n] for n in never] == [
    '<s>',
    '<bos>',
    '<start_of_turn>',
    '<|im_start|>',
    '<pad>',
  ]
  assert may[len(SPECIALS) : -2].all()
  assert not may[-2:].any()
  assert not sayable(every['llama'], 400)[1]
  assert sayable(every['gemma'], 400)[:4].tolist() == [False, True, False, True]
