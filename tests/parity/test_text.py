"""Tokenizers beside OpenCLIP's, those of transformers, and another reader of SentencePiece."""

import itertools
import json
import os
import pathlib
import random
import shutil
import zipfile

import pytest

from experiments.benchmarks.torchvision import define_operators

define_operators()

import open_clip  # noqa: E402
import sentencepiece  # noqa: E402
import tokenizers  # noqa: E402
import transformers as hf  # noqa: E402
from open_clip import tokenizer as theirs  # noqa: E402
from open_clip import zero_shot_metadata as shots  # noqa: E402

from tests.golden import texts  # noqa: E402
from tests.test_text import gemma, make, siglip  # noqa: E402, F401
from vit_jax.text import forms, of_folder, prompts  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore')
WHEELS = pathlib.Path(os.environ.get('VIT_JAX_PARITY_DIR', '.parity')).glob('mistral_common-*.whl')


def drawn(count):
  """More texts: of the letters of one alphabet, of several, of anything."""
  rng = random.Random(1)
  everything = [*map(chr, [*range(0xD800), *range(0xE000, 0x20000)])]
  for number in range(count):
    letters = ''.join(rng.choice(texts._ALPHABETS) for _ in range(rng.randint(1, 5)))
    letters = everything if number % 4 == 0 else letters
    yield ''.join(rng.choice(letters) for _ in range(rng.randint(1, 200)))


def test_clip():
  """All of the vocabulary, on 2,257 texts: numbers, rows, and back."""
  ours, reference = make('clip', file=theirs.default_bpe()), theirs.SimpleTokenizer()
  assert (ours.size, ours.end) == (reference.vocab_size, reference.eot_token_id) == (49408, 49407)
  for text in (*texts.TEXTS, *drawn(2000)):
    ids = reference.encode(text)
    assert ours.ids(text) == ids, ascii(text)
    assert ours.row(text).tolist() == reference(text)[0].tolist()
    assert ours.words(ids) == reference.decode(ids).strip()
  for text in ('ab' * 2000, '😀' * 500, 'é1' * 500, 'x' * 3000):  # theirs takes n^2 steps
    assert ours.ids(text) == reference.encode(text)


def test_every_word_of_clip():
  """Each piece of the vocabulary as a word of its own, and every two that follow each other."""
  ours, reference = make('clip', file=theirs.default_bpe()), theirs.SimpleTokenizer()
  pieces = [reference.decode([number]).strip() for number in range(0, 49406, 7)]
  for one, two in itertools.pairwise(pieces):
    assert ours.ids(one + two) == reference.encode(one + two)


def test_clip_as_transformers_writes_it(tmp_path):
  """Their files, with both orders of what is in them; their texts are not mended, though."""
  reference = theirs.SimpleTokenizer()
  numbers = {piece: number for piece, number in reference.encoder.items() if number < 49406}
  numbers |= {'<|startoftext|>': 49406, '<|endoftext|>': 49407}
  merges = [' '.join(pair) for pair in reference.bpe_ranks]
  (tmp_path / 'vocab.json').write_text(json.dumps(numbers))
  (tmp_path / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges, '']))
  tokenizer = hf.CLIPTokenizer.from_pretrained(tmp_path)
  tokenizer.save_pretrained(tmp_path / 'saved')
  config = hf.CLIPConfig().to_dict()
  for folder in (tmp_path, tmp_path / 'saved'):
    (folder / 'config.json').write_text(json.dumps(config))
    ours = of_folder(folder)
    assert ours is not None
    assert ours.digest == make('clip', file=theirs.default_bpe()).digest
    for text in filter(str.isascii, texts.TEXTS):
      if forms._PLAIN.fullmatch(text):
        padded = tokenizer(text, padding='max_length', max_length=77, truncation=True)
        want = [n if i <= padded['input_ids'].index(49407) else 0
                for i, n in enumerate(padded['input_ids'])]  # fmt: skip
        assert ours.row(text).tolist() == want, text


def test_siglip(siglip, tmp_path):  # noqa: F811
  shutil.copy(siglip[0], tmp_path / 'spiece.model')
  reference = hf.SiglipTokenizer(str(tmp_path / 'spiece.model'))
  ours = make('siglip', file=tmp_path / 'spiece.model')
  # They join words at '_', which big_vision, whose models these are, takes for a space.
  for text in (*texts.TEXTS, *drawn(500)):
    text = forms.whole(text).replace('_', ' ').replace('▁', ' ')
    if '</s>' in text or '<unk>' in text:
      continue
    want = reference(text, padding='max_length', max_length=64, truncation=True)['input_ids']
    assert ours.row(text).tolist() == want, ascii(text)


def test_canonical_form():
  for text in (*texts.TEXTS, *drawn(500)):
    text = forms.whole(text)
    assert forms.canonical(text) == theirs.canonicalize_text(text)
    for keep in ('{}', ','):
      assert forms.canonical(text, keep=keep) == theirs.canonicalize_text(
        text, keep_punctuation_exact_string=keep
      )


def merging(model):
  """The pieces of a model of SentencePiece, and the pairs that make them, the best ones first."""
  pieces = {model.id_to_piece(number): number for number in range(model.get_piece_size())}
  pairs = sorted(
    (-model.get_score(number), pieces[piece[:at]], piece[:at], piece[at:])
    for piece, number in pieces.items()
    if not (model.is_control(number) or model.is_byte(number) or model.is_unknown(number))
    for at in range(1, len(piece))
    if piece[:at] in pieces and piece[at:] in pieces
  )
  return {'vocab': pieces, 'merges': [(one, two) for *_, one, two in pairs]}


def test_siglip2(gemma, tmp_path):  # noqa: F811
  """A vocabulary of SentencePiece, read by the package of Gemma's tokenizer.json."""
  reference = hf.Siglip2Tokenizer(**merging(gemma[1]))
  reference.save_pretrained(tmp_path)
  given = {'model_type': 'siglip2', 'text_config': {'vocab_size': 400}}
  (tmp_path / 'config.json').write_text(json.dumps(given))
  ours = of_folder(tmp_path)
  assert ours is not None
  assert ours.files == (str(tmp_path / 'tokenizer.json'),)
  reference.padding_side = 'right'
  for text in (*texts.TEXTS, *drawn(500)):
    text = forms.whole(text)
    if 'Σ' in text or 'İ' in text:  # of which the lower case depends on who is asked
      continue
    ids = reference(text, add_special_tokens=False)['input_ids']
    assert ours.row(text).tolist() == (ids[:63] + [1] + [0] * 64)[:64], ascii(text)


@pytest.fixture(scope='module')
def mistral(tmp_path_factory):
  [wheel] = WHEELS
  path = tmp_path_factory.mktemp('mistral') / 'tokenizer.model'
  with zipfile.ZipFile(wheel) as file:
    path.write_bytes(file.read('mistral_common/data/tokenizer.model.v1'))
  return path


def test_sentencepiece(mistral):
  """32,000 real pieces, and the package tokenizers, which merges by code of its own.

  What transformers makes of the file is another tokenizer ('A  Photo' has the token of two spaces).
  """
  model = sentencepiece.SentencePieceProcessor(model_file=str(mistral))
  reference = tokenizers.Tokenizer(tokenizers.models.BPE(
    **merging(model), unk_token='<unk>', fuse_unk=True, byte_fallback=True
  ))  # fmt: skip
  reference.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.Prepend('▁'), tokenizers.normalizers.Replace(' ', '▁')]
  )
  ours = make('sentencepiece', file=mistral, start=True, length=32)
  assert (ours.size, ours.end, ours.frame.before) == (32_000, 2, (1,))
  for text in (*texts.TEXTS, *drawn(500)):
    ids = reference.encode(forms.whole(text), add_special_tokens=False).ids
    assert ours.ids(text) == ids, ascii(text)
    assert ours.row(text).tolist() == [1, *ids[:30], *[2] * 32][:32]


def test_templates():
  sets = prompts.templates()
  for name, want in (('imagenet', open_clip.OPENAI_IMAGENET_TEMPLATES),
                     ('imagenet7', open_clip.SIMPLE_IMAGENET_TEMPLATES)):  # fmt: skip
    assert sets[name] == tuple(template('{}') for template in want)
  assert prompts.imagenet_names() == tuple(shots.IMAGENET_CLASSNAMES)
