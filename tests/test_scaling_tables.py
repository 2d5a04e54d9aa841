"""Tables of runs: what is read, what is refused, which rows are picked."""

import json

import numpy as np
import pytest

from vit_jax.core.errors import RunError
from vit_jax.scaling.table import Table, numbers, read, where

CSV = """\
# source: a paper: with a colon
# unit flops: FLOP
#
model,flops,error,seed
L/16,1e19, 0.25 ,1
"B/16, long",2.5e18,,2

G/14,1e21,none,x
"""


@pytest.fixture
def make(tmp_path):
  def make(text, name='runs.csv', encoding='utf-8'):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path

  return make


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig'])
@pytest.mark.parametrize('newline', ['\n', '\r\n'])
def test_csv(make, encoding, newline):
  table = read(make(CSV.replace('\n', newline), encoding=encoding))
  assert list(table) == ['model', 'flops', 'error', 'seed']
  assert table['model'].tolist() == ['L/16', 'B/16, long', 'G/14']
  assert table['flops'].dtype == np.float64
  np.testing.assert_array_equal(table['flops'], [1e19, 2.5e18, 1e21])
  np.testing.assert_array_equal(table['error'], [0.25, np.nan, np.nan])
  assert table['seed'].tolist() == ['1', '2', 'x']  # one word makes a column of words
  assert table.metadata['source'] == 'a paper: with a colon'
  assert table.units == {'flops': 'FLOP'}
  assert table.rows == 3


def test_jsonl(make):
  lines = [
    {'step': 1, 'loss': 2.5, 'done': False, 'config': {'width': 64, 'optim': {'name': 'adam'}}},
    {'step': 2, 'loss': None, 'done': True, 'config': {'width': 128}, 'extra': 3},
  ]
  text = '\n\n'.join(json.dumps(line) for line in lines) + '\n'
  for tail in ('', '{"step": 3, "lo'):
    table = read(make(text + tail, 'runs.jsonl'))
    np.testing.assert_array_equal(table['step'], [1, 2])
    np.testing.assert_array_equal(table['loss'], [2.5, np.nan])
    np.testing.assert_array_equal(table['extra'], [np.nan, 3])
    np.testing.assert_array_equal(table['done'], [0, 1])
    np.testing.assert_array_equal(table['config.width'], [64, 128])
    assert table['config.optim.name'].tolist() == ['adam', '']
    assert table.metadata == ({'cut off': 'line 4'} if tail else {})


def test_parquet(tmp_path, make):
  parquet = pytest.importorskip('pyarrow.parquet')
  import pyarrow

  columns = {'model': ['a', None, 'c'], 'flops': [1, 2, 3], 'error': [0.5, None, 0.25]}
  parquet.write_table(pyarrow.table(columns), tmp_path / 'runs.parquet')
  table = read(tmp_path / 'runs.parquet')
  assert table['model'].tolist() == ['a', '', 'c']
  np.testing.assert_array_equal(table['flops'], [1.0, 2.0, 3.0])
  np.testing.assert_array_equal(table['error'], [0.5, np.nan, 0.25])
  with pytest.raises(RunError, match='is not Parquet'):
    read(make('a,b', 'no.parquet'))


def test_parquet_without_pyarrow_says_how(make, monkeypatch):
  import sys

  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  with pytest.raises(RunError, match='pip install pyarrow'):
    read(make('', 'runs.parquet'))


@pytest.mark.parametrize(
  ('text', 'name', 'message'),
  [
    (CSV + 'L/16,1,2\n', 'runs.csv', 'line 9 has 3 cells, the header 4'),
    ('a,b\n1,2,3\n', 'runs.csv', 'line 2 has 3 cells, the header 2'),
    ('a,b,a\n1,2,3\n', 'runs.csv', 'a name each'),
    ('a,,b\n1,2,3\n', 'runs.csv', 'a name each'),
    ('a,b\n1,"2\n', 'runs.csv', 'line 2'),
    ('a,b\n', 'runs.csv', 'no rows'),
    ('', 'runs.csv', 'no rows'),
    ('# only: this\n', 'runs.csv', 'no rows'),
    (b'a,b\n\xff\xfe,2\n', 'runs.csv', 'is not text'),
    ('{"a": 1}\n{"a": \n{"a": 2}\n', 'runs.jsonl', 'line 2 is not JSON'),
    ('{"a": 1}\n[1]\n', 'runs.jsonl', 'line 2 is no JSON object'),
    ('{"a": 1, "a": 2}\n', 'runs.jsonl', 'line 1: a key comes twice'),
    ('{"a"', 'runs.jsonl', 'no rows'),
    ('a,b\n1,2\n', 'runs.xlsx', r"\.csv, .*\.parquet files, by their ending, .*'\.xlsx'"),
    ('a,b\n1,2\n', 'runs', "here is ''"),
    (b'\x1f\x8b', 'runs.csv.gz', 'is compressed; unpack it and give .*runs.csv$'),
    ('a,b\n1,2\n'.encode('utf-16'), 'runs.csv', 'is not text in UTF-8 .byte 0xff at 0'),
    ('a,b\n1,2\n'.encode('utf-16-le'), 'runs.csv', 'it holds zero bytes'),
  ],
)
def test_what_cannot_be_read_says_where(make, text, name, message):
  with pytest.raises(RunError, match=message):
    read(make(text, name))


@pytest.mark.parametrize(('name', 'mark'), [('A.CSV', ','), ('a.Tsv', '\t')])
def test_endings_in_capitals(make, name, mark):
  assert read(make(f'a{mark}b\n1{mark}2\n', name))['b'].tolist() == [2]


def test_a_byte_order_mark(make):
  for text, name in (('a\n1\n', 'runs.csv'), ('{"a": 1}\n', 'runs.jsonl')):
    assert read(make(text, name, encoding='utf-8-sig'))['a'].tolist() == [1]


def test_a_word_among_numbers():
  table = Table({'flops': ['1e18', 'about 2e18', '', '4e18'], 'n': [1, 2, 3, 4]})
  with pytest.raises(RunError, match=r"holds text: about 2e18 in row 1 .*where='flops>0'"):
    numbers(table, 'flops')
  np.testing.assert_array_equal(numbers(where(table, 'flops>0'), 'flops')[0], [1e18, 4e18])
  assert where(table, 'flops>=2e18')['n'].tolist() == [4]
  with pytest.raises(RunError, match='holds text'):
    numbers({'flops': ['1_000', '2']}, 'flops')  # a number to Python, a name to people


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(RunError, match='is a directory'):
    read(tmp_path)
  with pytest.raises(RunError, match='No such file'):
    read(tmp_path / 'none.csv')


RUNS = Table({
  'model': ['L/16', 'B/16', 'L/16', 'G/14'], 'data': ['30M', '3B', '3B', ''],
  'flops': [1e19, 1e20, 1.5e20, 1e21], 'error': [0.3, np.nan, 0.2, 0.1],
})  # fmt: skip


@pytest.mark.parametrize(
  ('conditions', 'rows'),
  [
    ('model=L/16', [0, 2]),
    ('model == L/16 , data != 30M', [2]),
    ('flops<=1e20', [0, 1]),
    ('flops<1e20', [0]),
    ('flops>1e20,flops!=1e21', [2]),
    ('flops=1.5e20', [2]),
    ('error!=', [0, 2, 3]),
    ('error=nan', [1]),
    ('data=', [3]),
    ('error>=0', [0, 2, 3]),
  ],
)
def test_where(conditions, rows):
  picked = where(RUNS, conditions)
  assert picked['model'].tolist() == RUNS['model'][rows].tolist()
  np.testing.assert_array_equal(picked['error'], RUNS['error'][rows])


def test_where_takes_any_mapping_and_keeps_metadata():
  assert where({'a': [1, 2], 'b': ['x', 'y']}, 'b=y')['a'].tolist() == [2]
  assert where(Table({'a': [1.0]}, {'unit a': 'm'}), 'a=1').units == {'a': 'm'}


@pytest.mark.parametrize(
  ('conditions', 'message'),
  [
    ('modle=L/16', 'did you mean model'),
    ('model', 'not a condition'),
    ('', 'not a condition'),
    ('model=L/16,', 'not a condition'),
    ('flops<=big', "'big' is none"),
    ('model<L', 'holds text'),
    ('flops>1e30', 'none of 4 rows'),
    ('0<flops<1', 'not a condition'),
  ],
)
def test_where_refuses(conditions, message):
  with pytest.raises(RunError, match=message):
    where(RUNS, conditions)


@pytest.mark.parametrize(('mark', 'name'), [(',', 'a.csv'), (';', 'a.csv'), ('\t', 'a.tsv')])
def test_csv_as_others_write_it(make, mark, name):
  """With an index as of pandas, with semicolons as of spreadsheets."""
  text = ',flops,note\n0,1e18,"a, b"\n1,2e18,c\n'.replace('"a, b"', 'a').replace(',', mark)
  table = read(make(text, name=name))
  assert list(table) == ['index', 'flops', 'note']
  np.testing.assert_array_equal(table['flops'], [1e18, 2e18])


def test_numbers_of_any_size_and_type():
  """Integers beyond 64 bits, and numbers that are written as words."""
  large = [10**17, 10**19, 10**21]
  assert np.asarray(large).dtype == object
  for column in (large, np.array(['1e17', '1e19', '1e21'])):
    np.testing.assert_array_equal(numbers({'flops': column}, 'flops')[0], [1e17, 1e19, 1e21])
  with pytest.raises(RunError, match='not of shape'):
    numbers({'flops': np.ones((2, 2))}, 'flops')


def test_numbers():
  flops, again = numbers(RUNS, 'flops', 'flops')
  np.testing.assert_array_equal(flops, again)
  with pytest.raises(
    RunError, match=r"'error' must be positive and finite, .* 1 of 4 rows: nan in row 1"
  ):
    numbers(RUNS, 'flops', 'error')
  with pytest.raises(RunError, match=r'holds text: L/16 in row 0 .from 0; 4 of 4 rows.$'):
    numbers(RUNS, 'model')
  with pytest.raises(RunError, match='differ in length'):
    numbers({'a': [1, 2], 'b': [1]}, 'a', 'b')
