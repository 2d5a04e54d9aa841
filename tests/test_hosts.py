"""Many hosts: who lists files, and who evaluates what. Two run here, others are counted."""

import json
import os
import pickle
import random
import tracemalloc

import jax
import numpy as np
import pytest

from tests import runs, toys
from vit_jax.core import schema
from vit_jax.data import files, pipeline
from vit_jax.data.examples import Source
from vit_jax.data.fields import Field
from vit_jax.data.rows import Array
from vit_jax.data.sources import Folder, Mixture, Synthetic, open_split, opened_by
from vit_jax.nn import sharding
from vit_jax.nn.sharding import BatchLayout
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment

# --- evaluation ---


class Numbers(Source):
  """So many examples, of which each is its number."""

  name, fields = 'numbers', {'image': Field('image', dtype='uint8', channels=1)}

  def __init__(self, count):
    self.count = count

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    return {'number': index, 'name': str(index)}


class Rows:
  """Rows of numbers; those of every seventh example cannot be made."""

  needs = {'image': 'image'}  # noqa: RUF012

  def arrays(self):
    return {'number': Array((), np.int64)}

  def make(self, example, rng):
    if example['number'] % 7 == 6:
      raise ValueError('no')
    return {'number': example['number']}


class Hosts:
  """A mesh of devices of several hosts, as far as a layout of batches asks."""

  def __init__(self, hosts, devices, own):
    self.count, self.own = hosts * devices, range(own * devices, (own + 1) * devices)

  def addressable_devices_indices_map(self, shape):
    size = shape[0] // self.count
    return {device: (slice(device * size, (device + 1) * size),) for device in self.own}


def layout_of(monkeypatch, hosts, devices, own, batch_size):
  """What host `own` would find."""
  monkeypatch.setattr(sharding, 'shards', lambda axis: hosts * devices)
  monkeypatch.setattr(sharding, 'NamedSharding', lambda mesh, spec: Hosts(hosts, devices, own))
  monkeypatch.setattr(jax.sharding, 'get_mesh', lambda: type('Mesh', (), {'empty': False})())
  return BatchLayout.of_at_least(batch_size)


@pytest.mark.parametrize('case', range(12))
def test_every_example_is_evaluated_once(monkeypatch, case):
  """Of any number, on any number of hosts, in batches of any size, with as many steps on each."""
  rng = random.Random(case)
  hosts, devices = rng.choice([(1, 1), (2, 4), (3, 1), (16, 4), (256, 4)]), None
  hosts, devices = hosts
  count = rng.choice([1, hosts - 1 or 1, hosts + 1, 10_000, rng.randint(1, 3000)])
  asked = rng.choice([1, 100, hosts, 1000, rng.randint(1, 4096)])
  if case == 0:
    hosts, devices, count, asked = 256, 4, 10_000, 1000
  seen, masked, steps, sizes = [], 0, set(), set()
  for own in range(hosts):
    with monkeypatch.context() as patch:
      layout = layout_of(patch, hosts, devices, own, asked)
    batches = pipeline.eval_batches(
      Rows(), Numbers(count), layout.batch_size, layout.rows, skip=lambda *_: None
    )
    steps.add(len(batches))
    sizes.add(layout.batch_size)
    assert len(layout.rows) == layout.batch_size // hosts
    for number in range(len(batches)):
      batch = batches[number]
      assert len(batch['mask']) == len(layout.rows)  # the last is filled up
      there = batch['index'] >= 0
      seen += batch['index'][there].tolist()
      assert not batch['mask'][~there].any()
      good = batch['mask'] > 0
      np.testing.assert_array_equal(batch['number'][good], batch['index'][good])
      masked += int(good.sum())
  assert sorted(seen) == list(range(count))
  assert masked == sum(number % 7 != 6 for number in range(count))
  (size,) = sizes
  assert asked <= size < asked + hosts * devices
  assert steps == {-(-count // size)}


def test_batches_the_devices_cannot_divide_give_the_same_scores(digits, mesh):
  """360 images in batches of 100 and of 7, which 8 devices hold as 104 and 8; it is said."""
  scores = []
  for size in (256, 100, 7):
    with mesh(2, 2, 2):
      cfg = schema.build(config_lib.Config, digits(evals__test__batch_size=size))
      experiment = Experiment(cfg)
      evaluators = experiment.evaluators()
      said = f'batches of {-(-size // 4) * 4}; the devices cannot divide {size}'
      assert any(said in line for line in evaluators['test'].summary) == bool(size % 4)
      scores.append(experiment.evaluate(evaluators, experiment.init())[0])
  assert scores[0]['test/examples'] == 360
  for other in scores[1:]:
    assert other == pytest.approx(scores[0], rel=1e-5)


def test_rows_that_are_made_together_stay_on_one_host(monkeypatch):
  for hosts, devices, together in ((1, 8, 4), (4, 2, 4), (2, 4, 3)):
    monkeypatch.setattr(sharding, 'shards', lambda axis, n=hosts * devices: n)
    monkeypatch.setattr(
      sharding, 'NamedSharding', lambda mesh, spec, h=hosts, d=devices: Hosts(h, d, h - 1)
    )
    monkeypatch.setattr(jax.sharding, 'get_mesh', lambda: type('Mesh', (), {'empty': False})())
    for asked in range(1, 40):
      layout = BatchLayout.of_at_least(asked, together=together)
      assert layout.batch_size >= asked
      assert len(layout.rows) % together == 0
      assert layout.rows[0] % together == 0
      assert layout.batch_size % (hosts * devices) == 0


# --- listings ---


def test_texts_in_one_piece(tmp_path):
  texts = ['', 'a/b.jpg', 'größe.png', os.fsdecode(b'\xff\xfe.jpg'), 'x' * 300]
  names = files.Names(iter(texts))
  assert list(names) == texts
  assert names[-1] == texts[-1]
  assert names[1:3] == texts[1:3]
  assert 'a/b.jpg' in names
  with pytest.raises(IndexError):
    names[5]
  assert len(files.Names([])) == 0


def test_names_take_their_bytes_and_little_more():
  """As docs/how-to/several-devices.md says; as a list of paths they would take over a hundred."""
  count = 200_000
  tracemalloc.start()
  names = files.Names(f'n{i % 1000:08}_{i:09}.JPEG' for i in range(count))
  labels = [label for label in range(1000) for _ in range(count // 1000)]
  kept, peak = tracemalloc.get_traced_memory()
  assert round(kept / count) == 36
  assert peak / count < 72
  assert len(pickle.dumps(names)) / count < 30
  del names, labels
  before, _ = tracemalloc.get_traced_memory()
  paths = [f'/data/imagenet/train/n{i % 1000:08}/n{i % 1000:08}_{i:09}.JPEG' for i in range(count)]
  assert (tracemalloc.get_traced_memory()[0] - before) / count > 100
  tracemalloc.stop()
  assert len(paths) == count


def test_one_opens_for_all(tmp_path):
  """Whatever is listed goes through it, parts of a mixture one by one; what is drawn does not."""
  root, opened = str(toys.toy(tmp_path)), []

  def once(make):
    opened.append(make())
    return opened[-1]

  mixture = Mixture(sources={'a': Folder(root), 'b': Folder(root)})
  with opened_by(once):
    assert open_split(Folder(root), 'train') is opened[0]
    open_split(mixture, 'train')
    assert len(opened) == 3
    open_split(Synthetic(), 'train')
  open_split(Folder(root), 'test')
  assert len(opened) == 3


TWO = """
import json
import jax
from vit_jax.data import files
from vit_jax.nn import sharding
from vit_jax.processes import exchange
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment
exchange._CHUNK = 1000  # bytes at a time: less than a source takes
config = json.loads(words[0])
listed, plain = [], files.images
files.images = lambda root, passed: listed.append(str(root)) or plain(root, passed)
with jax.set_mesh(sharding.make_mesh('data')):
  experiment = Experiment(schema.build(config_lib.Config, config))
  evaluators = experiment.evaluators()
  state = experiment.init()
  scores, _ = experiment.evaluate(evaluators, state)
  names = [experiment.source[i]['name'] for i in range(len(experiment.source))]
  config['data']['source']['dir'] += '/nowhere'
  try:
    Experiment(schema.build(config_lib.Config, config))
  except RunError as error:
    said = str(error)
print('found', json.dumps([len(listed), names, experiment.source.labels, scores, said]))
"""


def test_one_of_two_processes_lists(tmp_path):
  """Six directories of classes; both have the same order, scores, and complaints.

  The nine images that are evaluated are in batches of 8: of the second one process has nothing.
  """
  root = toys.toy(tmp_path / 'data')
  config = toys.config(root, evals__test__batch_size=6, mesh='data')
  with runs.started(*runs.programs(TWO, config.to_json(), devices=2)) as processes:
    runs.finish(processes)
  first, second = (
    json.loads(line.removeprefix('found '))
    for each in processes for line in each.out.splitlines() if line.startswith('found ')
  )  # fmt: skip
  assert (first[0], second[0]) == (6, 0)
  assert first[1:] == second[1:]
  assert first[1] == sorted(str(path) for path in (root / 'train').rglob('*.png'))
  assert first[3]['test/examples'] == 9
  assert 'there is no directory' in first[4]
