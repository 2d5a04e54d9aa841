"""Parts of a split that are held out by name."""

import collections
import itertools

import numpy as np
import pytest

from tests import toys
from vit_jax.core.errors import RunError
from vit_jax.data import folds, pack
from vit_jax.data.config import DataConfig
from vit_jax.data.examples import Source
from vit_jax.data.fields import Field
from vit_jax.data.sources import open_split
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.synthetic import Synthetic
from vit_jax.data.sources.tfds import Tfds
from vit_jax.training.loop import train


class Numbered(Source):
  """Examples of which nothing but the number is known, and perhaps the label."""

  name = 'numbers'

  def __init__(self, count, labels=None):
    self._count, self.labels = count, labels
    names = tuple(str(i) for i in range(max(labels or [0]) + 1))
    self.fields = {'image': Field('image', dtype='uint8'), 'label': Field('class', names)}

  def open(self, split):
    assert split == 'train'
    return self

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    return dict(image=None, label=self.labels[index] if self.labels else 0, name=index)

  def summary(self):
    return ['numbers: some', 'numbers: passed over: nothing']


def names(source):
  return [source[i]['name'] for i in range(len(source))]


def test_folds_are_disjoint_and_exhaustive_and_even():
  rng = np.random.default_rng(0)
  for _ in range(60):
    count = int(rng.integers(2, 400))
    parts = int(rng.integers(2, min(count, 40) + 1))
    labels = rng.integers(0, rng.integers(1, 12), count).tolist() if rng.random() < 0.7 else None
    source = Numbered(count, labels)
    seen = []
    for number in range(1, parts + 1):
      held_out = open_split(source, f'fold {number}/{parts} of train')
      rest = open_split(source, f'train without fold {number}/{parts}')
      assert sorted(names(held_out) + names(rest)) == list(range(count))
      for part in (held_out, rest):
        assert names(part) == sorted(names(part))  # the order of the source
        if labels:
          assert part.labels == [labels[i] for i in names(part)]
      seen.append(names(held_out))
    assert sorted(itertools.chain(*seen)) == list(range(count))
    assert max(map(len, seen)) - min(map(len, seen)) <= 1
    if labels:  # every class is shared out evenly, too
      shares = [collections.Counter(labels[i] for i in fold) for fold in seen]
      for label in set(labels):
        of_class = [share[label] for share in shares]
        assert max(of_class) - min(of_class) <= 2


def test_folds_never_change():
  """They are part of what a run was trained on: these are those of the first version."""
  source = Numbered(20, [0, 1] * 10)
  assert names(open_split(source, 'fold 1/10 of train')) == [13, 18]
  assert names(open_split(source, ' fold  3 / 10  of train')) == [0, 11]
  assert names(open_split(Numbered(7), 'fold 2/3 of train')) == [1, 4, 6]


def test_a_period_of_the_data_set_is_not_that_of_the_folds():
  """Of 1,000 examples with ten classes in turn and labels unknown, a tenth has not just one."""
  found = {i % 10 for i in names(open_split(Numbered(1000), 'fold 1/10 of train'))}
  assert len(found) == 10


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    ('fold 1 of train', 'write .fold 1/10 of train.'),
    ('fold 1/10', 'write'),
    ('fold 1/10 of', 'write'),
    ('without fold 1/10', 'write'),
    ('train without fold', 'write'),
    ('train without fold 1/10 of', 'write'),
    ('train fold 1/10', 'write'),
    ('fold one/10 of train', 'write'),
    ('fold -1/10 of train', 'write'),
    ('fold 1/99999999999999 of train', 'write'),
    ('Fold 1/10 of train', 'write'),
    ('fold1/10 of train', 'write'),
    ('train without 1/10', 'write'),
    ('fold 1/2 of train without fold 1/10', 'fold of a fold'),
    ('fold 1/2 of fold 1/2 of train', 'fold of a fold'),
    ('fold 0/10 of train', 'no fold 0 of 10'),
    ('fold 11/10 of train', 'no fold 11 of 10'),
    ('fold 1/1 of train', 'no fold 1 of 1'),
    ('train without fold 1/1', 'no fold 1 of 1'),
    ('fold 1/21 of train', 'has 20 examples, fewer than folds'),
    ('fold 1/999999999 of train', 'fewer than folds'),
  ],
)
def test_mistakes(split, message):
  with pytest.raises(RunError, match=rf'^[^\n]*{message}[^\n]*$'):
    open_split(Numbered(20), split)


def test_splits_that_are_called_so(tmp_path):
  for name in ('fold', 'fold-1', 'fold1', 'fold_2'):
    toys.toy(tmp_path / name, 1, 1)
    (tmp_path / name / 'test').rename(tmp_path / name / name)
    assert len(open_split(Folder(str(tmp_path / name)), name)) == 3
    assert len(open_split(Folder(str(tmp_path / name)), f'fold 1/3 of {name}')) == 1


def test_folds_of_every_source(data_dir, tmp_path):
  folder = toys.toy(tmp_path / 'toy', 5, 1)
  for source, count in (
    (Tfds('digits', dir=data_dir), 1437), (Folder(str(folder)), 15), (Synthetic(3, 100), 100)
  ):  # fmt: skip
    config = DataConfig(source=source)
    parts = [config.open(split) for split in ('fold 2/5 of train', 'train without fold 2/5')]
    assert sum(map(len, parts)) == count
    assert not set(names(parts[0])) & set(names(parts[1]))
    cached = DataConfig(source=source, cache=True).open('fold 2/5 of train')
    assert names(cached) == names(parts[0])
    together = parts[0].read(range(len(parts[0])))
    assert [example['name'] for example in together] == names(parts[0])
  digits = DataConfig(source=Tfds('digits', dir=data_dir))
  both = [digits.open(f'fold 1/4 of {split}') for split in ('train[:100]', 'train+test')]
  assert [len(part) for part in both] == [25, 449]


def test_what_is_said_of_a_fold():
  source = Numbered(20, [0] * 19 + [1])
  said = open_split(source, 'train without fold 1/10').summary()
  assert said[0] == 'numbers (without fold 1/10): 18 of 20 images of 2 classes: 0, 1'
  assert said[-1] == 'numbers: passed over: nothing'
  lacking = [
    open_split(source, f'fold {i}/10 of train').summary()[1].endswith('no images of 1')
    for i in range(1, 11)
  ]
  assert sum(lacking) == 9


@pytest.mark.parametrize(
  ('one', 'other', 'overlap'),
  [
    ('train', 'test', False),
    ('train', 'train', True),
    ('train', 'fold 1/10 of train', True),
    ('train', 'fold 1/10 of test', False),
    ('train without fold 1/10', 'fold 1/10 of train', False),
    ('train without fold 1/10', 'fold 2/10 of train', True),
    ('train without fold 1/10', 'fold 1/5 of train', True),
    ('fold 1/10 of train', 'fold 2/10 of train', False),
    ('fold 1/10 of train', 'fold 1/10 of train', True),
    ('train without fold 1/2', 'train without fold 2/2', False),
    ('train without fold 1/3', 'train without fold 2/3', True),
  ],
)
def test_overlap(one, other, overlap):
  assert folds.overlap(one, other) is folds.overlap(other, one) is overlap
  sets = [set(names(open_split(Numbered(60), s))) for s in (one, other) if 'test' not in s]
  if len(sets) == 2:
    assert bool(sets[0] & sets[1]) is overlap


def test_a_run_without_a_test_set(tmp_path, capsys):
  """The error names the flags; with them the run goes through."""
  folder = toys.toy(tmp_path / 'toy', 6, 0)
  with pytest.raises(RunError) as error:
    train(toys.config(folder), str(tmp_path / 'run'))
  assert '\n' not in str(error.value)
  rest, held_out = 'train without fold 1/10', 'fold 1/10 of train'
  flags = f"--config.data.split='{rest}' --config.evals.test.split='{held_out}'"
  assert str(error.value).endswith(flags)
  capsys.readouterr()
  result = train(
    toys.config(folder, data__split=rest, evals__test__split=held_out), str(tmp_path / 'held')
  )
  out = capsys.readouterr().out
  assert result['metrics']['test/examples'] == 2
  assert f'{folder}/train (without fold 1/10): 16 of 18 images' in out
  assert f'{folder}/train (fold 1/10): 2 of 18 images' in out
  assert 'trained on, too' not in out


def test_other_evaluations_that_are_not_there(tmp_path, data_dir):
  folder = toys.toy(tmp_path / 'toy', 3, 1)

  def wrong(split, data=None):
    changes = {'data__split': split}
    config = toys.config(folder, **changes).unlock()
    if data:
      config.data.source = data
    config.evals.valid = dict(config.evals.test, split='validation')
    del config.evals['test']
    with pytest.raises(RunError) as error:
      train(config.lock(), str(tmp_path / 'run'), overwrite=True)
    return str(error.value)

  assert wrong('train').endswith(
    "--config.data.split='train without fold 1/10' --config.evals.valid.split='fold 1/10 of train'"
  )
  assert wrong('train without fold 2/3').endswith(
    "To use what is held out of train: --config.evals.valid.split='fold 2/3 of train'"
  )
  digits = dict(name='tfds', dataset='digits', dir=data_dir, manual_dir='')
  assert "digits has no split 'validation': it has " in wrong('train', digits)


def test_folds_are_packed_under_names(tmp_path):
  folder = toys.toy(tmp_path / 'toy', 4, 0)
  given = dict(size=16, format='jpg', quality=90, on_corrupt='error')
  splits = 'train=train without fold 1/4,test=fold 1/4 of train'
  pack.main(str(folder), str(tmp_path / 'data' / 'toy'), splits, **given)
  packed = Tfds('toy', dir=str(tmp_path / 'data'))
  assert [len(packed.open(split)) for split in ('train', 'test')] == [9, 3]
  with pytest.raises(RunError, match='needs a name'):
    pack.main(str(folder), str(tmp_path / 'data' / 'other'), 'fold 1/4 of train', **given)
  # What is packed has the order of the folder, and so the folds of it.
  pack.main(str(folder), str(tmp_path / 'data' / 'whole'), 'train', **given)
  labels = [
    [part[i]['label'] for i in range(len(part))]
    for part in (
      open_split(Tfds('whole', dir=str(tmp_path / 'data')), 'fold 1/4 of train'),
      open_split(Folder(str(folder)), 'fold 1/4 of train'),
    )
  ]
  assert labels[0] == labels[1]
