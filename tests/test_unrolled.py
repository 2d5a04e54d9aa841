"""Unrolled layers and checkpoints: what the devices hold meanwhile, and what is on disk."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from tests import test_step
from tests.runs import assert_close, lines, together
from vit_jax.checkpoints import store
from vit_jax.evaluate import restore
from vit_jax.nn import sharding, tree
from vit_jax.nn.encoder import _map_encoders, _with_blocks
from vit_jax.train import train
from vit_jax.training import lanes
from vit_jax.training.experiment import Experiment

OTHERS = []


@pytest.fixture(autouse=True)
def others():
  """What other tests have left on the devices: kept, so that nothing else takes its place."""
  OTHERS[:] = jax.live_arrays()
  yield
  OTHERS.clear()


def on_devices():
  """Bytes of all arrays that are in the memory of devices, but for `OTHERS`.

  To look at the shards of an array makes arrays of them, which would count from then on.
  """
  left = set(map(id, OTHERS))
  live = [a for a in jax.live_arrays() if id(a) not in left]
  live = [a for a in live if a.sharding.memory_kind != 'pinned_host']
  return sum(shard.data.nbytes for a in live for shard in a.addressable_shards)


def size(held):
  shards = [shard for leaf in jax.tree.leaves(held) for shard in leaf.addressable_shards]
  return sum(shard.data.nbytes for shard in shards)


def as_before(state):
  """A state whose layers are stacked on the devices, by one program."""

  def stack(encoder):
    return _with_blocks(encoder, jax.tree.map(lambda *ws: jnp.stack(ws), *encoder.blocks))

  return jax.jit(lambda held: _map_encoders(stack, held))(state)


@pytest.mark.parametrize('layout', [None, (2, 2, 2)])
def test_saving_and_restoring_need_no_second_copy_on_the_devices(
  tmp_path, mesh, monkeypatch, layout
):
  """Looked at when all of the checkpoint is at hand; the control is what there was before."""
  with mesh(*layout) if layout else contextlib.nullcontext():
    experiment = Experiment(test_step.build(model__scan=False, model__depth=6))
    state = experiment.split(experiment.init())
    own, peak = size(state), []
    save_async = ocp.save_async

    def looked_at(*args, **kwargs):
      peak.append(on_devices())
      return save_async(*args, **kwargs)

    monkeypatch.setattr(ocp, 'save_async', looked_at)
    checkpoints = store.Checkpoints(tmp_path / 'checkpoints', keep=9)
    checkpoints.prepare()
    before = on_devices()
    checkpoints.save(1, experiment.stack(state), {})
    stacked = as_before(state)
    checkpoints.save(2, stacked, {})
    checkpoints.wait()
    assert peak[0] < before + 0.02 * own
    assert peak[1] > before + 0.9 * own
    program = jax.jit(as_before).lower(state).compile().memory_analysis()
    assert program.output_size_in_bytes * (8 if layout else 1) > 0.9 * own
    # Both are the same on disk, in content and by name.
    found = [checkpoints.peek(step)[0] for step in (1, 2)]
    assert {n: (a.shape, a.dtype) for n, a in found[0].items()} == {
      n: (a.shape, a.dtype) for n, a in found[1].items()
    }
    assert checkpoints._facts(1)[2] == checkpoints._facts(2)[2]  # checksums
    del stacked
    # Restored in place, and onto stacked layers.
    before = on_devices()
    again = experiment.split(checkpoints.restore(experiment.to_restore()[0], 1)[0])
    assert on_devices() < before + 1.02 * own
    for (name, a), b in zip(tree.flatten(again).items(), jax.tree.leaves(state), strict=True):
      np.testing.assert_array_equal(a, b, err_msg=name)
      assert a.sharding == b.sharding, name
    whole = checkpoints.restore(experiment.abstract_state, 1)[0]
    for name, leaf in tree.flatten(experiment.stack(state)).items():
      np.testing.assert_array_equal(tree.flatten(whole)[name], leaf, err_msg=name)


def test_cutting_layers_needs_room_for_one_parameter(mesh, monkeypatch):
  """The largest is a fifth of the state here; the control cuts all at once."""
  with mesh(2, 2, 2):
    experiment = Experiment(test_step.build(model__scan=False, model__depth=6))
    state = experiment.init()
    own, peak = size(state), []
    largest = max(size(leaf) for leaf in jax.tree.leaves(state))
    block = jax.block_until_ready

    def looked_at(held):
      peak.append(on_devices())
      return block(held)

    before = on_devices()
    monkeypatch.setattr(jax, 'block_until_ready', looked_at)
    experiment.split(state)
  assert max(peak) <= before + largest
  assert largest < own / 5


def test_lanes_are_saved_and_restored(tmp_path):
  cfg = test_step.build(model__scan=False, lanes={'lr': (1e-2, 1e-3), 'seed': (0, 1)})
  experiment = lanes.experiment(cfg)
  state = experiment.split(experiment.init())
  checkpoints = store.Checkpoints(tmp_path / 'checkpoints')
  checkpoints.prepare()
  checkpoints.save(1, experiment.stack(state), {})
  checkpoints.wait()
  again = experiment.split(checkpoints.restore(experiment.to_restore()[0])[0])
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)
  scanned = lanes.experiment(test_step.build(lanes={'lr': (1e-2, 1e-3), 'seed': (0, 1)}))
  whole = tree.flatten(checkpoints.restore(scanned.abstract_state)[0])
  for name, leaf in tree.flatten(experiment.stack(state)).items():
    np.testing.assert_array_equal(whole[name], leaf, err_msg=name)


@pytest.mark.parametrize(
  ('layout', 'owners', 'rows', 'axes'),
  [
    ('data', [0, 0, 0, 0, 1, 1, 1, 1], 2, ()),  # all of it on every device
    ('fsdp', [0, 0, 0, 0, 1, 1, 1, 1], 1, ('fsdp',)),
    ('2x4x1', [0, 0, 0, 0, 1, 1, 1, 1], 2, ('fsdp',)),
    ('4x2x1', [0, 0, 0, 0, 1, 1, 1, 1], 2, ('fsdp',)),
    ('4x2x1', [0, 1, 2, 3, 4, 5, 6, 7], 4, ('fsdp',)),
  ],
)
def test_each_process_has_what_its_devices_hold_once(monkeypatch, layout, owners, rows, axes):
  class Device:
    def __init__(self, number):
      self.number, self.process_index = number, owners[number]

  mesh = sharding.make_mesh(layout)
  fakes = {device: Device(device.id) for device in mesh.devices.flat}
  spec = jax.P(None, 'fsdp') if axes else jax.P()

  class Layout:
    pass

  given = Layout()
  given.mesh, given.spec = Layout(), spec
  given.mesh.devices = np.vectorize(fakes.get)(mesh.devices)
  given.mesh.axis_names, given.mesh.shape = mesh.axis_names, mesh.shape
  monkeypatch.setattr(sharding, 'NamedSharding', lambda mesh, spec: (mesh, spec))
  monkeypatch.setattr(jax.sharding, 'Mesh', lambda devices, names: (devices, names))
  firsts = set()
  for turn in range(rows):
    (devices, names), found = sharding._one_copy_each(given, turn)
    assert (devices.shape[0], names, found) == (rows, ('copies', *axes), spec)
    assert {d.process_index for d in devices.flat} == {*owners}
    for row in devices:  # each is the whole array, in its order
      numbers = [device.number for device in np.ravel(row)]
      whole = mesh.devices.reshape(-1, max(1, len(numbers)))
      assert numbers in [[d.id for d in each] for each in whole]
    firsts.add(devices.flat[0].number)
  assert len(firsts) == rows  # others write each time


def stored(workdir):
  """The state of a run by name, as its record has the layers."""
  with jax.set_mesh(sharding.make_mesh('data')):
    experiment, state = restore(str(workdir))
    leaves = tree.flatten(experiment.stack(state))
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


@pytest.mark.slow
def test_two_processes_save_what_one_continues(finished, tmp_path, digits):
  """Unrolled, with parameters cut and copied over both; then one process, scanned."""
  workdir, _, _ = finished
  config = digits(mesh='4x2x1', model__scan=False)
  together(tmp_path / 'two', config)
  assert json.loads((tmp_path / 'two' / 'result.json').read_text())['processes'] == 2
  assert_close(tmp_path / 'two', workdir)
  (tmp_path / 'two' / 'result.json').unlink()
  before, said = stored(tmp_path / 'two'), lines(tmp_path / 'two')
  train(digits(), str(tmp_path / 'two'))
  assert lines(tmp_path / 'two') == said
  after = stored(tmp_path / 'two')
  assert before.keys() == after.keys()
  for name, leaf in before.items():
    np.testing.assert_array_equal(after[name], leaf, err_msg=name)
