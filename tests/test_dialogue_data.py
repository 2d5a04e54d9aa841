"""Dialogues, questions and captions from files, and what becomes of them in rows."""

import dataclasses
import json
import pickle
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vit_jax.core.errors import RunError
from vit_jax.data import audit, pipeline
from vit_jax.data.examples import NoDataError, NoSplitError
from vit_jax.data.fields import Field
from vit_jax.data.misfit import MisfitError
from vit_jax.data.rows.dialogues import Dialogue, kind_of
from vit_jax.data.rows.texts import Described
from vit_jax.data.sources import Manifest, Parquet, open_split
from vit_jax.data.sources.llava import Llava
from vit_jax.text import Bytes, Words
from vit_jax.text.dialogues import IMAGE, PADDING, TEMPLATES, encode, prompt

ASKS, SAYS = '<image>\nWhat is it?', 'A cat 😀, é.'
TWO = ((ASKS, SAYS), ('Why?', 'It purrs.'))


def conversation(*texts, who=('human', 'gpt'), keys=('from', 'value')):
  return [dict(zip(keys, (who[at % 2], text), strict=True)) for at, text in enumerate(texts)]


EXAMPLES = [
  {'id': 'one', 'image': 'a/1.png', 'conversations': conversation(ASKS, SAYS, 'Why?', 'It purrs.')},
  {'id': 2, 'image': '2.png', 'conversations': conversation('Is it red?\n<image>', 'yes')},
  {'image': 'a/1.png', 'conversations': conversation(ASKS, '\ud800')},
]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'images' / 'a').mkdir(parents=True)
  for name in ('a/1', '2', '3'):
    Image.new('RGB', (4, 3)).save(tmp_path / 'images' / f'{name}.png')
  return tmp_path


def written(folder, data, name='train.json'):
  path = folder / name
  path.write_text(data if isinstance(data, str) else json.dumps(data))
  return path


def opened(folder, data, split='train', **fields):
  path = written(folder, data)
  return open_split(Llava(file=str(path), images=str(folder / 'images'), **fields), split)


def test_files_of_llava(folder):
  source = opened(folder, EXAMPLES)
  source = pickle.loads(pickle.dumps(source))
  assert len(source) == 3
  assert {name: field.kind for name, field in source.fields.items()} == {
    'image': 'image', 'dialogue': 'dialogue',
  }  # fmt: skip
  first, second, third = source.read(range(3))
  assert first['dialogue'] == TWO
  assert first['id'] == 'one'
  assert first['image'] == (folder / 'images/a/1.png').read_bytes()
  assert first['name'].endswith('images/a/1.png')
  assert second['dialogue'] == (('Is it red?\n<image>', 'yes'),)
  assert (third['id'], third['dialogue']) == (2, ((ASKS, '\ud800'),))
  lines = source.summary()
  assert lines[0].endswith('train.json/train: 3 examples of image, dialogue')
  assert lines[1].endswith(
    '1 images in ' + str(folder / 'images') + ' are not listed, and passed over'
  )
  assert [line.partition(': ')[2] for line in audit.audit({'train': source}, 100)][1:3] == [
    'dialogue: 1.3 questions a dialogue, 2 at most',
    'dialogue: answers of 6 characters in the median, 11 at most',
  ]


def test_splits_of_llava_and_zips(folder):
  written(folder, EXAMPLES, 'some.json')
  with zipfile.ZipFile(folder / 'all.zip', 'w') as file:
    for name in ('a/1', '2'):
      file.write(folder / f'images/{name}.png', f'{name}.png')
  config = Llava(file=f'{folder}/{{split}}.json', images=f'{folder}/all.zip')
  assert open_split(config, 'some')[1]['image'] == (folder / 'images/2.png').read_bytes()
  with pytest.raises(
    NoSplitError, match=r"no split 'test', as there is no file .*: there are some"
  ):
    open_split(config, 'test')
  with pytest.raises(
    NoSplitError, match=r"has no split 'test': without \{split\} in it all is train"
  ):
    opened(folder, EXAMPLES, 'test')
  with pytest.raises(NoDataError, match=r'there is no file .*none.json: set data\.source\.file'):
    open_split(Llava(file=f'{folder}/none.json'), 'train')


def test_examples_without_an_image(folder):
  bare = {'id': 'x', 'conversations': conversation('Hi', 'Hello')}
  with pytest.raises(RunError, match='1 of 4 examples have no image, such as number 3'):
    opened(folder, [*EXAMPLES, bare])
  source = opened(folder, [*EXAMPLES, bare], missing='skip')
  assert len(source) == 3
  assert '1 examples without an image are left out' in '\n'.join(source.summary())
  alone = opened(folder, [bare])
  assert {*alone.fields} == {'dialogue'}
  assert alone[0] == {'dialogue': (('Hi', 'Hello'),), 'id': 'x', 'name': f'{alone.name} x'}
  with pytest.raises(RunError, match=r"unknown data.source.missing 'skp': did you mean skip\?"):
    Llava(file='', missing='skp')


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    ('{', r'train\.json is not JSON: '),
    ('{}', 'is no list of dialogues: it is a list of {"image": "a.jpg", "conversations": '),
    ('[]', 'is no list of dialogues'),
    ([3], 'number 0 has no conversations: it is a list of'),
    ([{'id': 1, 'image': '2.png'}], 'number 0 has no conversations'),
    ([{**EXAMPLES[0], 'image': ['2.png', '3.png']}], r"has the image \['2.png', '3.png'\]"),
    ([{**EXAMPLES[0], 'image': 'b.png'}], 'lacks 1 of 1 images: b.png'),
    (conversation('a'), 'number 0 has no conversations'),
  ],
)  # fmt: skip
def test_files_that_are_none_of_llava(folder, data, message):
  with pytest.raises(RunError, match=message):
    opened(folder, data)


@pytest.mark.parametrize(
  ('said', 'message'),
  [
    ('text', 'is no list of messages'),
    ([], 'is no list of messages'),
    (['text'], 'has no {"from": ..., "value": ...} as its message number 0'),
    ([{'from': 'human'}], 'as its message number 0'),
    (conversation('a', 'b', who=('human', 'bot')), "has a message of 'bot', who is none of"),
    (conversation('a', None), 'has the message None, which is no text'),
    (conversation('a', 'b', 'c'), 'ends with a question'),
    (conversation('a', who=('gpt', '')), 'has no question'),
    (conversation('a', 'b', who=('human', 'user')), 'has two messages of the person in a row'),
    (conversation('a', 'b', 'c') + conversation('d', who=('human', '')), 'has two messages of'),
    (conversation('a', 'b') + conversation('d', who=('gpt', '')), 'two messages of the model in a'),
  ],
)  # fmt: skip
def test_conversations_that_are_none(folder, said, message):
  with pytest.raises(RunError, match=f'train.json: the dialogue number 0 .*{message}'):
    opened(folder, [{'image': '2.png', 'conversations': said}])
  line = json.dumps({'talk': said})
  config = Manifest(str(written(folder, line, 'a.jsonl')), fields={'dialogue': 'talk'})
  with pytest.raises(RunError, match=f'a.jsonl line 1: talk .*{message}'):
    open_split(config, 'train')


def test_an_answer_that_nobody_asked_for_is_left_out(folder):
  said = conversation('Hi!', 'a', 'b', who=('gpt', 'human'))
  assert opened(folder, [{'conversations': said}])[0]['dialogue'] == (('a', 'b'),)


def test_tables_of_questions(folder):
  table = folder / 'vqa.csv'
  table.write_text('image,Question,answer\n2.png,"What, is it?",cat\n2.png,why,3\n')
  source = open_split(Manifest(str(table), root=str(folder / 'images')), 'train')
  assert {name: field.kind for name, field in source.fields.items()} == {
    'image': 'image', 'question': 'text', 'answer': 'text',
  }  # fmt: skip
  assert [source[1][name] for name in ('question', 'answer')] == ['why', '3']
  lines = [
    {'image': '2.png', 'q': ['What?', 'What is it?'], 'answers': ['cat', 'a cat'], 'answer': 7},
    {'image': '2.png', 'q': 'Why?', 'answers': ['purrs'], 'answer': 8},
  ]
  table = folder / 'vqa.jsonl'
  table.write_text('\n'.join(map(json.dumps, lines)))
  asked = {'question': 'q', 'answer': 'answers'}
  source = open_split(Manifest(str(table), root=str(folder / 'images'), fields=asked), 'train')
  assert source[0]['question'] == ('What?', 'What is it?')
  assert source[0]['answer'] == ('cat', 'a cat')
  # A number is no answer, unless it is asked for.
  unasked = open_split(Manifest(str(table), root=str(folder / 'images')), 'train')
  assert {*unasked.fields} == {'image'}
  talk = [
    {'conversations': conversation('a', 'b', who=('user', 'assistant'), keys=('role', 'content'))}
  ]
  source = open_split(Manifest(str(written(folder, json.dumps(talk[0]), 'talk.jsonl'))), 'train')
  assert source.fields == {'dialogue': Field('dialogue')}
  assert source[0]['dialogue'] == (('a', 'b'),)


def test_parquet_of_questions(tmp_path):
  columns = {'question': ['a', 'b'], 'answer': [['c'], ['d', 'e']], 'other': ['f', 'g']}
  pq.write_table(pa.table(columns), tmp_path / 'train.parquet')
  source = open_split(Parquet(dir=str(tmp_path)), 'train')
  assert {name: field.kind for name, field in source.fields.items()} == {
    'question': 'text', 'answer': 'text',
  }  # fmt: skip
  assert source[1]['answer'] == ('d', 'e')
  pq.write_table(pa.table({'question': ['a']}), tmp_path / 'train.parquet')
  assert {*open_split(Parquet(dir=str(tmp_path)), 'train').fields} == {'question'}


LEARN = Dialogue(tokenizer=Bytes(), template=TEMPLATES['answers'], length=24, images=2)


def drawn(rows, example, count=40):
  seen = [rows.make(example, np.random.default_rng(seed)) for seed in range(count)]
  return {rows.tokenizer.words([n for n in row['tokens'].tolist() if 0 < n < 257]) for row in seen}


def test_rows_to_learn_from():
  rows = pickle.loads(pickle.dumps(LEARN))
  rng = np.random.default_rng(0)
  example = {'dialogue': (('<image>\nhow many?', 'two'), ('red?', 'no')), 'name': 'x'}
  row = rows.make(example, rng)
  want = encode(rows.template, rows.tokenizer, example['dialogue'], 2, 24)
  np.testing.assert_array_equal(row['tokens'], want.tokens)
  np.testing.assert_array_equal(row['answered'], want.answered)
  assert row['tokens_left_out'] == 0
  assert row['tokens'][:3].tolist() == [IMAGE, IMAGE, 105]
  short = dataclasses.replace(rows, length=16).make(example, rng)
  assert short['tokens_left_out'] == 6
  assert {n: (a.shape, a.dtype) for n, a in rows.arrays().items()} == {
    'tokens': ((24,), np.int32), 'answered': ((24,), np.float32),
    'tokens_left_out': ((), np.float32),
  }  # fmt: skip
  with pytest.raises(
    MisfitError, match='its first answer behind 11 tokens, and rows have 8'
  ) as found:
    dataclasses.replace(rows, length=8).make(example, rng)
  with pytest.raises(
    RunError, match=r'^x has its .* to learn\. Change it, give rows more tokens, or'
  ):
    pipeline.tell(None, 'x', found.value)


def test_rows_of_questions_and_captions():
  rows = dataclasses.replace(LEARN, kind='question')
  example = {'question': ('how?', 'why?'), 'answer': ('so', 'so', '', 'thus'), 'name': 'x'}
  assert drawn(rows, example) == {'how?so', 'how?thus', 'why?so', 'why?thus'}
  rows = dataclasses.replace(rows, asked='answer en {}\n')
  assert drawn(rows, {**example, 'question': 'how?'}) == {
    'answer en how?\nso',
    'answer en how?\nthus',
  }
  caption = dataclasses.replace(LEARN, kind='text')
  assert drawn(caption, {'text': ('a', 'b', ' '), 'name': 'x'}) == {'a', 'b'}
  assert drawn(dataclasses.replace(caption, asked='say: '), {'text': 'a'}) == {'say: a'}
  with pytest.raises(MisfitError, match='has no answer: there is nothing to learn'):
    drawn(rows, {**example, 'answer': ''})
  with pytest.raises(MisfitError, match='has no text'):
    drawn(caption, {'text': ()})
  with pytest.raises(RunError, match=r"asked='answer en' needs one \{\}, where the question goes"):
    dataclasses.replace(rows, asked='answer en')
  with pytest.raises(RunError, match="asked='say': dialogues say what is asked"):
    dataclasses.replace(LEARN, asked='say')


def test_rows_to_be_answered():
  """The prompt alone, of the first question; what is asked for need not be there."""
  rng = np.random.default_rng(0)
  rows = dataclasses.replace(LEARN, train=False)
  assert rows.arrays() == {'tokens': ((24,), np.int32)}
  turns = (('how many?', 'two'), ('red?', 'no'))
  made = rows.make({'dialogue': turns, 'name': 'x'}, rng)
  begins = prompt(rows.template, rows.tokenizer, turns, 2)
  assert made['tokens'].tolist() == begins + [PADDING] * (24 - len(begins))
  assert made['tokens'].dtype == np.int32
  asked = dataclasses.replace(rows, kind='question', asked='{} yes or no')
  assert drawn(asked, {'question': ('how?', 'why?')}) == {'how? yes or no'}
  assert drawn(dataclasses.replace(rows, kind='text'), {}) == {''}
  with pytest.raises(MisfitError, match='asks with 19 tokens, and rows have 18'):
    dataclasses.replace(rows, length=18).make({'dialogue': turns}, rng)
  needs = {kind: [
    dict(dataclasses.replace(LEARN, kind=kind, train=train).needs) for train in (True, False)
  ] for kind in ('dialogue', 'question', 'text')}  # fmt: skip
  assert needs == {
    'dialogue': [{'dialogue': 'dialogue'}] * 2,
    'question': [{'question': 'text', 'answer': 'text'}, {'question': 'text'}],
    'text': [{'text': 'text'}, {}],
  }
  described = Described((), (LEARN,))
  assert dict(described.arrays()) == dict(LEARN.arrays())


def test_which_fields_there_are():
  text, dialogue = Field('text'), Field('dialogue')
  assert kind_of({'text': text, 'dialogue': dialogue}, 'x') == 'dialogue'
  assert kind_of({'text': text, 'question': text, 'answer': text}, 'x') == 'question'
  assert kind_of({'text': text, 'question': text, 'answer': Field('class')}, 'x') == 'text'
  with pytest.raises(
    RunError, match=r'x has no field dialogue, .* it has label \(class\). Where a'
  ):
    kind_of({'label': Field('class')}, 'x')


def test_words_of_questions():
  rows = Dialogue(
    tokenizer=Words(vocabulary=('how', 'many', 'two')), template=TEMPLATES['answers'], length=8,
    images=1, kind='question',
  )  # fmt: skip
  row = rows.make({'question': 'How many', 'answer': 'two'}, np.random.default_rng(0))
  assert row['tokens'].tolist() == [IMAGE, 2, 3, 4, 5, *[PADDING] * 3]
  assert row['answered'].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
