"""Tokenizers against the code they stand for, and what they refuse."""

import builtins
import dataclasses
import gzip
import itertools
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tests import golden
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.text import TOKENIZERS, clip, folders, forms, of_folder

CLIP = golden.FOLDER / 'clip.txt.gz'
KNOWN = json.loads((golden.FOLDER / 'text.json').read_text())
TEXT = 'a photo of the small red cat and two big dogs on grass near blue water with old trees'
WORDS = TEXT.split()
LONG = 100_000


def make(name, **fields):
  return schema.build(
    TOKENIZERS[name], {k: str(v) if k == 'file' else v for k, v in fields.items()}
  )


def corpus():
  rng = np.random.default_rng(0)
  return [' '.join(rng.choice(WORDS, rng.integers(3, 12))) for _ in range(300)]


def model(path, **options):
  """A vocabulary of SentencePiece, trained on few words; itself, as its own package reads it."""
  import sentencepiece

  with path.open('wb') as file:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(corpus()), model_writer=file, minloglevel=2, num_threads=1, **options
    )
  return sentencepiece.SentencePieceProcessor(model_file=str(path))


@pytest.fixture(scope='module')
def siglip(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'spiece.model'
  options = dict(vocab_size=40, model_type='unigram', pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
  return path, model(path, **options)


@pytest.fixture(scope='module')
def gemma(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'tokenizer.model'
  options = dict(
    vocab_size=320, model_type='bpe', byte_fallback=True, add_dummy_prefix=False, pad_id=0,
    eos_id=1, bos_id=2, unk_id=3, eos_piece='<eos>', bos_piece='<bos>',
    normalization_rule_name='identity', remove_extra_whitespaces=False,
  )  # fmt: skip
  return path, model(path, **options)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
  """A tokenizer.json of pairs of bytes, as GPT-2 and Qwen have them, with special tokens."""
  import tokenizers

  path = tmp_path_factory.mktemp('text') / 'tokenizer.json'
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  made.train_from_iterator(corpus(), tokenizers.trainers.BpeTrainer(
    vocab_size=300, special_tokens=['<|end|>', '<pad>'], show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  ))  # fmt: skip
  made.save(str(path))
  return path, made


def clip_files(folder):
  """The same vocabulary in all files that checkpoints have it in."""
  text = gzip.decompress(CLIP.read_bytes()).decode()
  merges = [line.split() for line in text.splitlines()[1:]]
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  letters = [*map(chr, shown), *(chr(256 + i) for i in range(256 - len(shown)))]
  pieces = [*letters, *(f'{letter}</w>' for letter in letters), *map(''.join, merges)]
  pieces += ['<|startoftext|>', '<|endoftext|>']
  numbers = {piece: i for i, piece in enumerate(pieces)}
  (folder / 'merges.txt').write_text(text)
  (folder / 'vocab.json').write_text(json.dumps(numbers))
  for name, listed in (('tokenizer.json', merges), ('old.json', [' '.join(m) for m in merges])):
    whole = {
      'added_tokens': [{'content': p, 'id': numbers[p], 'special': True} for p in pieces[-2:]],
      'model': {'type': 'BPE', 'end_of_word_suffix': '</w>', 'vocab': numbers, 'merges': listed},
    }
    (folder / name).write_text(json.dumps(whole))
  return [folder / name for name in ('merges.txt', 'vocab.json', 'tokenizer.json', 'old.json')]


def test_clip_is_that_of_openclip():
  """Their own numbers of 257 texts: broken, empty, in ten alphabets, hostile."""
  ours = make('clip', file=CLIP, length=24)
  assert (ours.size, ours.end) == (KNOWN['size'], KNOWN['end'])
  assert len(KNOWN['texts']) > 250
  for known in KNOWN['texts']:
    assert ours.ids(known['text']) == known['ids'], ascii(known['text'])
    row = ours.row(known['text'])
    assert row.dtype == np.int32
    assert row.tolist() == known['row'], ascii(known['text'])
  assert make('clip').length == 77


def test_clip_in_every_file(tmp_path):
  texts = [known['text'] for known in KNOWN['texts']][:60]
  first = make('clip', file=CLIP)
  for file in clip_files(tmp_path):
    other = make('clip', file=file)
    assert other.digest == first.digest
    assert [other.ids(text) for text in texts] == [first.ids(text) for text in texts]
    assert all((tmp_path / name).is_file() for name in other.files)
  assert len(make('clip', file=tmp_path / 'vocab.json').files) == 2


def test_texts_cannot_write_special_tokens(pairs, gemma):
  spelled = '<|endoftext|> <|end|> <eos> </s> <end_of_text> <pad>'
  for ours in (
    make('clip', file=CLIP), make('json', file=pairs[0], end_token='<|end|>', pad_token='<pad>'),
    make('siglip2', file=gemma[0]),
  ):  # fmt: skip
    assert not {*ours.frame.before, *ours.frame.after} & {*ours.ids(spelled)}
    assert ours.row(spelled).tolist().count(ours.end) == 1


def test_siglip_ends_where_it_is_cut_and_fills_with_its_end(siglip):
  path, theirs = siglip
  ours = make('siglip', file=path)
  for text in ('A photo, of the_small  RED cat!', '', 'water ' * 80, 'ünknown'):
    plain = text.replace('_', ' ').replace(',', '').replace('!', '').lower()
    want = theirs.encode(' '.join(plain.split()))
    assert ours.ids(text) == want
    assert ours.row(text).tolist() == (want[:63] + [1] * 64)[:64]
  assert (ours.size, ours.end, ours.length) == (40, 1, 64)
  assert ours.words(ours.row('Red, cat.')) == 'red cat'


def test_siglip2_keeps_punctuation_and_fills_with_0(gemma):
  path, theirs = gemma
  ours = make('siglip2', file=path)
  for text in ('A photo, of  the RED cat!', '', 'water ' * 80, '😀\x00'):
    want = theirs.encode(text.lower())
    assert ours.row(text).tolist() == (want[:63] + [1] + [0] * 64)[:64]
  assert ours.end == 1
  assert ours.words(ours.row('Red, cat.')) == 'red, cat.'


def test_sentencepiece_takes_its_frame_from_the_model(siglip, gemma):
  ours = make('sentencepiece', file=gemma[0], length=8, start=True)
  assert ours.row('red').tolist() == ([2, *gemma[1].encode('red'), 1] + [0] * 8)[:8]
  ours = make('sentencepiece', file=siglip[0], length=8)
  assert ours.row('Red').tolist() == ([*siglip[1].encode('Red'), 1] + [0] * 8)[:8]
  with pytest.raises(RunError, match='no token that begins a text'):
    make('sentencepiece', file=siglip[0], start=True).row('')


def test_json_is_that_of_its_package(pairs, tmp_path):
  import tokenizers

  path, theirs = pairs
  ours = make('json', file=path, length=12)
  assert (ours.end, ours.size) == (-1, 300)
  ended = make('json', file=path, length=12, end_token='<|end|>')
  framed = tokenizers.Tokenizer.from_str(theirs.to_str())
  framed.post_processor = tokenizers.processors.TemplateProcessing(
    single='<pad> $A <|end|>', special_tokens=[('<pad>', 1), ('<|end|>', 0)]
  )
  framed.enable_truncation(7)
  framed.enable_padding(length=7, pad_id=5)
  framed.save(str(tmp_path / 'framed.json'))
  as_given = make('json', file=tmp_path / 'framed.json', length=12)
  framed.enable_truncation(12)
  framed.enable_padding(length=12, pad_id=5)
  for text in ('a photo of', '', 'two dogs on grass ' * 9, 'ünknown 😀'):
    ids = theirs.encode(text).ids
    assert ours.ids(text) == ids
    assert ours.row(text).tolist() == (ids + [1] * 12)[:12]
    assert ended.row(text).tolist() == (ids[:11] + [0] + [1] * 12)[:12]
    assert as_given.row(text).tolist() == framed.encode(text).ids
  for text in ('a photo of the cat', 'ünknown 😀'):
    for each in (ours, ended, as_given):
      assert text.startswith(each.words(each.row(text)).rstrip('�'))
      assert each.words(each.ids(text)) == text


def test_bytes_need_no_vocabulary():
  ours = make('bytes', length=8)
  assert ours.row('aé\x00').tolist() == [98, 196, 170, 1, 257, 0, 0, 0]
  assert ours.row('a' * 99).tolist() == [98] * 7 + [257]
  assert ours.words(ours.row('aé')) == 'aé'
  assert (ours.size, ours.end, ours.files) == (258, 257, ())
  text = ''.join(map(chr, itertools.chain(range(0xD800), range(0xE000, 0x11000))))
  assert ours.words(ours.ids(text)) == text


def test_words_of_a_list():
  ours = make('words', vocabulary=['red', 'cat'], length=6)
  assert ours.row('A  Red\tcat').tolist() == [1, 2, 3, 4, 0, 0]
  assert ours.row('cat ' * 9).tolist() == [3] * 5 + [4]
  assert (ours.size, ours.end, ours.words(ours.row('A red cat'))) == (5, 4, '? red cat')


def every(siglip, gemma, pairs):
  return {
    'clip': make('clip', file=CLIP), 'siglip': make('siglip', file=siglip[0]),
    'siglip2': make('siglip2', file=gemma[0]),
    'sentencepiece': make('sentencepiece', file=gemma[0]),
    'json': make('json', file=pairs[0], end_token='<|end|>'), 'bytes': make('bytes'),
    'words': make('words', vocabulary=WORDS),
  }  # fmt: skip


def test_every_kind(siglip, gemma, pairs):
  """What all share: frames, hostile texts, numbers that are none, copies in other processes."""
  found = every(siglip, gemma, pairs)
  assert found.keys() == TOKENIZERS.keys()
  hostile = [*(known['text'] for known in KNOWN['texts']), *('a' * LONG, 'a b ' * LONG, ' ' * LONG)]
  for name, ours in found.items():
    pieces = [n for n in range(ours.size) if n not in {*ours.frame.after, *ours.frame.before}]
    for text in hostile:
      row = ours.row(text)
      assert row.shape == (ours.length,), name
      assert row.dtype == np.int32
      assert 0 <= row.min() <= row.max() < ours.size
      at = row.tolist().index(ours.end)
      assert set(row[at:].tolist()) <= {ours.end, ours.frame.pad}
      start = len(ours.frame.before)
      assert row[start:at].tolist() == ours.ids(text)[: ours.length - start - 1], name
    assert isinstance(ours.words(pieces), str)
    for number in (-1, ours.size, 2**31):
      with pytest.raises(RunError, match=f'no token {number}'):
        ours.words([number])
    assert len(ours.ids('a' * LONG)) >= LONG // 32 or name == 'words'
    for text in (b'a', None, 3, ['a']):
      with pytest.raises(RunError, match='a text is expected'):
        ours.row(text)
    again = pickle.loads(pickle.dumps(ours))
    assert again == ours
    assert (again.row('a cat') == ours.row('a cat')).all()
    with pytest.raises(RunError, match=r'length=\d leaves no place'):
      dataclasses.replace(ours, length=len(ours.frame.before) + 1).row('a')


def test_another_file_of_the_same_name_is_refused(siglip, gemma, pairs, tmp_path):
  for ours in every(siglip, gemma, pairs).values():
    bound = ours.named
    assert bound.known == ours.digest == bound.digest
    assert len({ours.digest, dataclasses.replace(ours, length=9).digest}) == 2
    assert (bound.row('a cat') == ours.row('a cat')).all()
    with pytest.raises(RunError, match='another tokenizer than the one'):
      dataclasses.replace(bound, length=9).row('a')
  assert len({ours.digest for ours in every(siglip, gemma, pairs).values()}) == len(TOKENIZERS)
  file = tmp_path / 'clip.txt'
  file.write_bytes(gzip.decompress(CLIP.read_bytes()))
  bound = make('clip', file=file).named
  assert bound.row('cat').any()
  lines = file.read_text().splitlines()
  file.write_text('\n'.join([lines[0], lines[2], lines[1], *lines[3:], '']))
  with pytest.raises(RunError, match=r'clip\.txt is .* is expected'):
    bound.row('cat')


@pytest.mark.parametrize(('name', 'data', 'message'), [
  ('clip', b'', '#version'),
  ('clip', b'\xff\xfe\x00', 'is no text'),
  ('clip', CLIP.read_bytes()[:5000], 'is damaged'),
  ('clip', b'#version: 0.2\ni n\nt h', 'ends in the middle of a line'),
  ('clip', b'#version: 0.2\ni n\nxx h\n', "merge 2, 'xx h', is not a pair"),
  ('clip', b'#version: 0.2\ni n\ni n n\n', "merge 2, 'i n n', is not a pair"),
  ('clip', b'#version: 0.2\ni n\ni n\n', 'a number of its own'),
  ('siglip', b'no model at all', 'no model of SentencePiece'),
  ('siglip', b'', 'no model of SentencePiece'),
  ('sentencepiece', bytes(1000), 'no model of SentencePiece'),
])  # fmt: skip
def test_files_that_are_none(name, data, message, tmp_path):
  file = tmp_path / 'file.bin'
  file.write_bytes(data)
  with pytest.raises(RunError, match=message):
    make(name, file=file).row('a')


@pytest.mark.parametrize(('name', 'data', 'message'), [
  ('clip', '{', 'is not JSON'), ('clip', '[]', 'JSON object'), ('clip', '{"a": 1}', 'no tokenizer'),
  ('clip', '{"model": {"type": "WordPiece"}}', "not CLIP's tokenizer, but .* kind WordPiece"),
  ('clip', '{"model": {"end_of_word_suffix": "</w>", "vocab": {}, "merges": []}}', 'of its own'),
  ('clip', '{"model": {"end_of_word_suffix": "</w>", "vocab": 1, "merges": [[1, 2]]}}',
   'no tokenizer'),
  ('json', '{', 'no tokenizer, or not all'), ('json', '[]', 'no tokenizer, or not all'),
  ('json', '{"model": {"type": "Strange"}}', 'of the kind Strange'),
  ('json', '{"model": 3}', r'of the kind \?'), ('siglip2', '{}', 'no tokenizer, or not all'),
])  # fmt: skip
def test_json_that_is_none(name, data, message, tmp_path):
  file = tmp_path / 'tokenizer.json'
  file.write_text(data)
  with pytest.raises(RunError, match=message):
    make(name, file=file).row('a')


def test_files_of_another_kind(siglip, gemma, pairs, tmp_path):
  other = {'siglip': gemma[0], 'siglip2': siglip[0], 'clip': pairs[0]}
  for name, file in other.items():
    with pytest.raises(RunError, match=r'is not (the vocabulary of SigLIP|CLIP)'):
      make(name, file=file).row('a')
  with pytest.raises(RunError, match='is not the vocabulary of SigLIP'):
    make('siglip', file=pairs[0]).row('a')
  for name in ('clip', 'siglip', 'siglip2', 'sentencepiece', 'json'):
    with pytest.raises(RunError, match=r'tokenizer\.file is missing'):
      make(name).row('a')
    with pytest.raises(RunError, match=r'there is no file .*nothing'):
      make(name, file=tmp_path / 'nothing').row('a')
    with pytest.raises(RunError, match='is a directory'):
      make(name, file=tmp_path).row('a')


def test_no_part_of_a_model_passes_for_one(siglip, pairs, tmp_path):
  """However a file is cut: nothing is read from it, rather than another vocabulary."""
  for name, path in (('siglip', siglip[0]), ('json', pairs[0])):
    data = path.read_bytes()
    ours = make(name, file=tmp_path / path.name)
    for size in (
      *range(0, 999, 9),
      *range(999, len(data), 1999),
      *range(len(data) - 60, len(data)),
    ):
      (tmp_path / path.name).write_bytes(data[:size])
      with pytest.raises(RunError, match=r'no (model|tokenizer)'):
        ours.row('a')


def test_fields_that_make_no_sense(pairs):
  with pytest.raises(RunError, match=r'end_token=.<no>.*no such token'):
    make('json', file=pairs[0], end_token='<no>').row('a')
  for words, message in (([], 'is empty'), (['A'], 'lower case'), (['a b'], 'without spaces'),
                         (['a', 'a'], "'a' twice")):  # fmt: skip
    with pytest.raises(RunError, match=message):
      make('words', vocabulary=words).row('a')
  with pytest.raises(RunError, match='must be at least 1'):
    make('bytes', length=-1)


def test_published_sizes_are_known_without_a_file():
  """So that models are planned before anything is fetched."""
  found = {name: (make(name).size, make(name).end) for name in ('clip', 'siglip', 'siglip2')}
  assert found == {'clip': (49408, 49407), 'siglip': (32_000, 1), 'siglip2': (256_000, 1)}


def checkpoint(path, files, config, says=None, name='config.json'):
  """A folder with files, given as paths or objects by name."""
  path.mkdir()
  for called, content in {**files, name: config, 'tokenizer_config.json': says or {}}.items():
    data = json.dumps(content).encode() if isinstance(content, dict) else content.read_bytes()
    (path / called).write_bytes(data)
  return path


def test_tokenizer_of_a_folder_of_clip(tmp_path, caplog):
  merges, vocab, whole, _ = clip_files(tmp_path)
  size = KNOWN['size']
  both = {'vocab.json': vocab, 'merges.txt': merges}
  text = {'vocab_size': size, 'max_position_embeddings': 24, 'eos_token_id': 2}
  config = {'model_type': 'clip', 'text_config': text}
  open_clip = {'model_cfg': {'text_cfg': {'context_length': 24, 'vocab_size': size}}}
  for number, (files, given, name) in enumerate((
    ({'tokenizer.json': whole}, config, 'config.json'),
    (both, config, 'config.json'), ({**both, 'tokenizer.json': whole}, config, 'config.json'),
    (both, {'model_type': 'clip_text_model', **text, 'eos_token_id': size - 1}, 'config.json'),
    (both, open_clip, 'open_clip_config.json'),
  )):  # fmt: skip
    says = {'model_max_length': 24, 'pad_token': '<|endoftext|>'}
    ours = of_folder(str(checkpoint(tmp_path / str(number), files, given, says, name)))
    assert ours == ours.named
    for known in KNOWN['texts'][:40]:
      assert ours.row(known['text']).tolist() == known['row']
  assert not caplog.records
  short = checkpoint(tmp_path / 'short', both, {'model_type': 'clip', 'text_config': {}},
                     {'model_max_length': 32, 'do_lower_case': False})  # fmt: skip
  assert of_folder(short).length == 77
  assert 'says model_max_length=32, do_lower_case=False: instead' in caplog.text
  for change, message in (({'vocab_size': 99}, f'has 99 tokens .* {size:,}'),
                          ({'eos_token_id': 7}, 'end with token 7')):  # fmt: skip
    wrong = {'model_type': 'clip', 'text_config': {**text, **change}}
    with pytest.raises(RunError, match=message):
      of_folder(checkpoint(tmp_path / message, both, wrong))
  alone = checkpoint(tmp_path / 'alone', {'vocab.json': vocab}, config)
  with pytest.raises(RunError, match=r'there is no file .*merges\.txt'):
    of_folder(alone)


def test_tokenizer_of_a_folder_of_siglip(siglip, gemma, tmp_path, caplog):
  """The first SigLIP 2 are called 'siglip': their vocabulary says what they are."""
  config = {'model_type': 'siglip', 'text_config': {'vocab_size': 320}}
  says = {'model_max_length': 64, 'padding_side': 'right', 'tokenizer_class': 'SiglipTokenizer'}
  ours = of_folder(checkpoint(tmp_path / '1', {'spiece.model': siglip[0]}, config, says))
  assert ours == make('siglip', file=tmp_path / '1' / 'spiece.model').named
  assert not caplog.records
  says = {'model_max_length': 10**30, 'padding_side': 'left', 'add_bos_token': True}
  for name, kind in (('2', 'siglip'), ('3', 'siglip2')):
    caplog.clear()
    given = {**config, 'model_type': kind}
    path = checkpoint(tmp_path / name, {'tokenizer.model': gemma[0]}, given, says)
    assert of_folder(path) == make('siglip2', file=path / 'tokenizer.model').named
    assert [record.message for record in caplog.records] == [
      f"{path}/tokenizer_config.json says padding_side='left', add_bos_token=True: instead, as in "
      'training, texts are in lower case, end with token 1 and are filled at the right to 64'
    ]
  small = {'model_type': 'siglip', 'text_config': {'vocab_size': 300}}
  with pytest.raises(RunError, match='has 300 tokens'):
    of_folder(checkpoint(tmp_path / '4', {'tokenizer.model': gemma[0]}, small))


def test_folders_without_a_tokenizer(siglip, pairs, tmp_path):
  none = [
    ({}, {'model_type': 'clip'}), ({}, {'model_type': 'siglip'}),
    ({'spiece.model': siglip[0]}, {'model_type': 'vit'}), ({'spiece.model': siglip[0]}, {}),
    ({'tokenizer.json': pairs[0]}, {'model_type': 'siglip'}),
    ({'tokenizer.json': pairs[0]}, {'model_type': ['clip']}),
  ]  # fmt: skip
  for number, (files, config) in enumerate(none):
    assert of_folder(checkpoint(tmp_path / str(number), files, config)) is None
  assert of_folder(tmp_path) is None
  assert of_folder(tmp_path / 'nothing') is None
  assert {'vocab.json', 'merges.txt', 'spiece.model', 'tokenizer.json'} < {*folders.FILES}


@pytest.mark.parametrize(('package', 'name', 'file'), [
  ('regex', 'clip', 'clip'), ('sentencepiece', 'siglip', 'siglip'), ('tokenizers', 'json', 'pairs'),
])  # fmt: skip
def test_a_missing_package_is_named(package, name, file, request, tmp_path, monkeypatch):
  path = CLIP if file == 'clip' else request.getfixturevalue(file)[0]
  copy = tmp_path / path.name
  copy.write_bytes(path.read_bytes())
  forget(monkeypatch, package)
  with pytest.raises(RunError, match=rf'package {package}: pip install .vit_jax\[text\]'):
    make(name, file=copy).row('a')


def forget(monkeypatch, package):
  """As if a package were not installed."""
  real = builtins.__import__
  monkeypatch.setattr(
    builtins, '__import__',
    lambda name, *rest: real('not there' if name == package else name, *rest),
  )  # fmt: skip
  forms._mend.cache_clear()
  clip._split.cache_clear()


def test_without_ftfy_it_is_said_once_where_it_matters(monkeypatch, caplog):
  forget(monkeypatch, 'ftfy')
  try:
    assert forms.cleaned("A  photo\tof 2 cats! it's {~}") == "a photo of 2 cats! it's {~}"
    assert not caplog.records
    for text in ('schön', 'a\x00', '&amp;'):
      forms.cleaned(text)
    assert [record.message[:30] for record in caplog.records] == ['the package ftfy is missing, w']
  finally:
    forms._mend.cache_clear()


def test_ftfy_changes_nothing_where_it_is_not_asked():
  import ftfy

  rng = np.random.default_rng(0)
  letters = [chr(i) for i in range(128) if forms._PLAIN.fullmatch(chr(i))]
  assert len(letters) > 95
  for _ in range(300):
    text = ''.join(rng.choice(letters, rng.integers(1, 60)))
    assert ftfy.fix_text(text).split() == text.split()


def test_nothing_is_imported_before_it_is_needed():
  code = (
    "import sys, vit_jax.text; print({'regex', 'ftfy', 'tokenizers', 'sentencepiece', 'jax'} & "
    'set(sys.modules))'
  )
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert run.stdout == 'set()\n'
