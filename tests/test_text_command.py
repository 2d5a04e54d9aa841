"""python -m vit_jax.text, on tables of texts."""

import json
import re

import numpy as np
import pytest
import tokenizers

from tests import golden
from vit_jax.text import TOKENIZERS

TEXT = 'vit_jax.text'
WORDS = ['red', 'blue', 'circle', 'square', 'above', 'left', 'of', 'a', 'the', 'schöne', 'Katze']


@pytest.fixture
def captions(tmp_path):
  """A table in which most examples have several texts."""
  rng = np.random.default_rng(0)
  path = tmp_path / 'captions.jsonl'
  lines = [
    [' '.join(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(rng.integers(1, 4))]
    for _ in range(60)
  ]
  path.write_text('\n'.join(json.dumps({'said': texts}) for texts in lines))
  return path, [text for texts in lines for text in texts]


def train(typed, path, out, *arguments):
  return typed(TEXT, 'train', path, f'--out={out}', '--data.source.fields.text=said', *arguments)


def test_a_vocabulary_of_ones_own(typed, captions, tmp_path):
  path, texts = captions
  out = tmp_path / 'new' / 'vocabulary.json'
  status, said, _ = train(typed, path, out, '--size=300')
  assert status == 0
  assert f'{out}: 300 tokens, from {len(texts)} texts' in said
  ours = TOKENIZERS['json'](file=str(out), length=30)
  theirs = tokenizers.Tokenizer.from_file(str(out))
  assert (ours.size, ours.end, ours.frame.pad) == (300, 299, 0)
  lengths = sorted(len(theirs.encode(text).ids) for text in texts)
  assert re.search(rf'has {np.mean(lengths):.1f} tokens; .*the longest {lengths[-1]}', said)
  for text in (*texts, 'Never seen: 日本 😀', ''):
    assert ours.ids(text) == theirs.encode(text).ids[:-1]
    assert ours.row(text)[min(len(ours.ids(text)), 29)] == 299
    assert ours.words(ours.ids(text)) == text.lower()
  # What occurs often is one token, so that texts are shorter than their bytes by far.
  assert sum(lengths) < sum(len(text.encode()) for text in texts) / 3
  first = out.read_bytes()
  assert train(typed, path, out, '--size=300', '--overwrite')[0] == 0
  assert out.read_bytes() == first
  assert train(typed, path, out, '--size=300', '--overwrite', '--cased')[0] == 0
  assert ours.words(ours.ids('Katze')) == 'Katze'


def test_fewer_tokens_than_were_asked_for(typed, captions, tmp_path):
  out = tmp_path / 'v.json'
  status, said, _ = train(typed, captions[0], out, '--size=9999')
  assert status == 0
  found = re.search(r'v\.json: (\d+) tokens \(asked for 9,999: the texts have no more\)', said)
  assert int(found[1]) == TOKENIZERS['json'](file=str(out)).size < 9999


def test_training_refuses(typed, captions, tmp_path):
  path, _ = captions
  (tmp_path / 'there.json').write_text('{}')
  bare = tmp_path / 'bare.csv'
  bare.write_text('label\ncat\ndog\n')
  for arguments, message in (
    ((path, '--out=v.txt'), 'a file NAME.json'), ((path,), '--out=NAME.json'),
    ((path, 'more', '--out=v.json'), '--out=NAME.json'),
    ((path, f'--out={tmp_path}/there.json'), 'already exists'),
    ((bare, '--out=v.json'), "no field 'text'"),
    ((tmp_path / 'no.csv', '--out=v.json'), 'there is no'),
    ((path, f'--out={tmp_path}/v.json', '--size=257', '--data.source.fields.text=said'),
     'at least 258 tokens'),
  ):  # fmt: skip
    status, _, said = typed(TEXT, 'train', *arguments)
    assert (status, message in said) == (1, True), said
  assert not (tmp_path / 'v.json').exists()
  assert (tmp_path / 'there.json').read_text() == '{}'


def test_show(typed, tmp_path):
  clip = golden.FOLDER / 'clip.txt.gz'
  status, said, _ = typed(TEXT, 'show', clip, 'A photo\tof a CAT', '--length=10')
  assert status == 0
  known = {each['text']: each['ids'] for each in golden_texts()}
  lines = said.splitlines()
  assert lines[1] == 'text: a photo of a cat'
  numbers = [int(line.split()[0]) for line in lines[2:-1]]
  assert numbers[1:-1] == known['a photo of a cat']
  assert [line.split()[1] for line in lines[2:-1]] == [
    'start',
    'a',
    'photo',
    'of',
    'a',
    'cat',
    'end',
  ]
  assert lines[-1] == 'filled with 3 times 0'
  status, said, _ = typed(TEXT, 'show', 'words', 'A b b\x00', '--vocabulary=a,b', '--length=3')
  assert said.splitlines()[1:] == [
    r"text: 'a b b\x00'", '       2  a', '       3  b', '       4  end',
    'cut: the text has 3 tokens, and there is room for 2',
  ]  # fmt: skip
  for arguments, message in (
    (('bytes',), 'show VOCABULARY TEXT'), (('what', 'a'), 'of which kind is it'),
    ((tmp_path, 'a'), 'has no tokenizer of a CLIP'), ((tmp_path, 'a', '--length=3'), '--length: '),
    (('bytes', 'a', '--lenth=3'), 'did you mean length'), ((clip, 'a', '--name=clap'), 'clip'),
    (('no.json', 'a'), 'there is no file no.json'),
  ):  # fmt: skip
    status, _, said = typed(TEXT, 'show', *arguments)
    assert (status, message in said) == (1, True), said


def golden_texts():
  return json.loads((golden.FOLDER / 'text.json').read_text())['texts']
