"""Files of runs that are cut, emptied, deleted or changed: found out, said, and got over."""

import json
import re
import shutil

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_jax
from tests.runs import assert_bit_identical, checkpoints, leaves, lines
from vit_jax.checkpoints import reading, store
from vit_jax.core.errors import RunError
from vit_jax.evaluate import evaluate
from vit_jax.nn import sharding
from vit_jax.train import train
from vit_jax.training.workdir import Workdir

DAMAGE = {
  'deleted': lambda path: path.unlink(),
  'emptied': lambda path: path.write_bytes(b''),
  'cut': lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}


def flip(path, at, bit=1):
  """One bit of one byte; `at` from 0 to 1."""
  data = bytearray(path.read_bytes())
  data[int(at * (len(data) - 1))] ^= bit
  path.write_bytes(data)


def files(folder):
  return sorted(path for path in folder.rglob('*') if path.is_file())


# --- any file of a checkpoint ---


def arrays(step):
  """Large ones, which lie in files of their own, and small ones, which lie in the index."""
  rng = np.random.default_rng(step)
  return {
    'large': rng.standard_normal((64, 256)).astype(np.float32),
    'half': rng.standard_normal((256, 64)).astype(jnp.bfloat16),
    'small': rng.integers(0, 100, 3, np.int32),
    'yes': rng.random(8) > 0.5,
    'step': np.int32(step),
  }


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Two checkpoints, the arrays split over eight devices where they can be."""
  folder = tmp_path_factory.mktemp('saved')
  checkpoints = store.Checkpoints(folder, keep=2)
  with jax.set_mesh(sharding.make_mesh('fsdp')):
    for step in (4, 8):
      checkpoints.save(step, jax.tree.map(jax.device_put, arrays(step), shardings()), extra(step))
    checkpoints.close()
  return folder


def shardings():
  mesh, P = jax.sharding.get_mesh(), jax.sharding.PartitionSpec  # noqa: N806
  specs = {'large': P('fsdp'), 'half': P(None, 'fsdp')}
  return {name: jax.sharding.NamedSharding(mesh, specs.get(name, P())) for name in arrays(0)}


def extra(step):
  return {'seconds': {'step': step / 3}, 'names': ['é', None], 'nested': {'b': (1, 2), 'a': {}}}


def found(folder):
  """The newest sound checkpoint, after comparing what it holds with what was saved."""
  with jax.set_mesh(sharding.make_mesh('fsdp')):
    abstract = {
      name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=shardings()[name])
      for name, a in arrays(0).items()
    }
    found = store.Checkpoints(folder).newest(abstract)
  for name, array in arrays(found.step).items():
    got = np.asarray(found.state[name])
    assert (got.dtype, got.tobytes()) == (array.dtype, array.tobytes()), name
  assert found.extra == json.loads(json.dumps(extra(found.step)))
  return found


def test_every_damage_to_every_file_is_found_or_harmless(saved, tmp_path, capfd):
  """The exact state of step 8, or that of step 4 and why; nothing else is ever said."""
  reasons, rng = [], np.random.default_rng(0)
  assert found(saved).step == 8
  for path in files(saved / '8'):
    flips = {f'bit {bit} at {at:.3f}': (at, 1 << bit) for at, bit in
             zip(rng.random(12), rng.integers(0, 8, 12), strict=True)}  # fmt: skip
    for how in (*DAMAGE, *flips):
      shutil.rmtree(tmp_path, ignore_errors=True)
      shutil.copytree(saved, tmp_path)
      target = tmp_path / path.relative_to(saved)
      if how in DAMAGE:
        DAMAGE[how](target)
      elif path.stat().st_size:
        flip(target, *flips[how])
      got = found(tmp_path)
      assert (got.step == 4) == bool(got.damage), (path, how)
      reasons += got.damage.values()
  assert len(reasons) > 20
  # Of numbers that changed nobody tells but their checksums.
  assert any('not the numbers that were written' in reason for reason in reasons)
  assert any('_CHECKPOINT_METADATA' in reason for reason in reasons)
  assert all('\n' not in reason for reason in reasons)
  assert capfd.readouterr() == ('', '')


def test_checksums_do_not_depend_on_the_mesh():
  """They are the sum of the bit patterns, by definition."""
  for name, array in arrays(1).items():
    bits = np.frombuffer(array.tobytes(), f'u{array.dtype.itemsize}').astype(object)
    want = int(sum(bits)) % 2**32
    assert reading.checksum(array) == want
    for mesh in ('data', 'fsdp'):
      with jax.set_mesh(sharding.make_mesh(mesh)):
        assert reading.checksums({name: jax.device_put(array, shardings()[name])}) == {name: want}


def test_what_is_no_checkpoint_is_no_step(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run')
  for name in ('12.orbax-checkpoint-tmp', '16.deleted', 'best', '012', '²', '-3'):
    shutil.copytree(saved / '8', tmp_path / 'run' / name)
  assert found(tmp_path / 'run' / 'best' / '..').step == 8  # however it is called
  opened = store.Checkpoints(tmp_path / 'run')
  assert opened.steps == [4, 8]
  opened.prepare()
  assert {p.name for p in (tmp_path / 'run').iterdir()} == {'4', '8', 'best', '012', '²', '-3'}
  (tmp_path / 'run' / '12').write_text('a file')
  got = found(tmp_path / 'run')
  assert (got.step, got.damage) == (8, {12: 'it is not a directory'})
  for name in ('12.damaged', '12.damaged1'):
    assert [p.name for p in opened.set_aside([12])] == [name]
    (tmp_path / 'run' / '12').write_text('again')


# --- runs ---


@pytest.fixture
def run(finished, tmp_path):
  """A copy of the finished run, without its result."""
  shutil.copytree(finished[0], tmp_path / 'run')
  (tmp_path / 'run' / 'result.json').unlink()
  return tmp_path / 'run'


def damage(run, step=12):
  """The largest file of a checkpoint is cut, as by a disk that was full."""
  path = max(files(run / 'checkpoints' / str(step)), key=lambda path: path.stat().st_size)
  (copy,) = (run / 'checkpoints' / str(step) / 'state' / 'd').iterdir()
  for each in {path, copy}:
    DAMAGE['cut'](each)


def test_training_goes_on_from_the_checkpoint_before(finished, run, capsys):
  workdir, result, config = finished
  damage(run)
  again = train(config, str(run))
  out = capsys.readouterr().out
  assert re.search(r'the checkpoint of step 12 is damaged: .* renamed to 12\.damaged,', out)
  assert 'at step 8 of 12' in out
  assert again['metrics'] == result['metrics']
  assert checkpoints(run) == {'8', '12', '12.damaged'}
  assert_bit_identical(run, workdir)


def test_everything_else_names_the_checkpoint_before(finished, run, typed, tmp_path):
  """evaluate, inspect, predict, convert and Python; and then they take it."""
  workdir, _, _ = finished
  damage(run)
  cv2.imwrite(str(tmp_path / 'image.png'), np.zeros((8, 8), np.uint8))
  one = re.compile(
    r'(?:starting JAX\n)?error: the checkpoint .*/12 is damaged: .*\. The last good one before it '
    r'is that of step 8: .* --step=8 .*\n'
  )
  for module, *arguments in (
    ('evaluate', f'--workdir={run}'),
    ('inspect', run),
    ('predict', run, tmp_path / 'image.png'),
    ('convert', run, tmp_path / 'x.npz', '--to=vit'),
  ):
    status, _, error = typed(f'vit_jax.{module}', *arguments)
    assert status == 1
    assert one.fullmatch(error)
    status, out, error = typed(f'vit_jax.{module}', *arguments, '--step=8')
    assert (status, 'error' in error) == (0, False)
    assert 'step 8' in out or module != 'evaluate'
    status, _, error = typed(f'vit_jax.{module}', *arguments, '--step=9')
    assert (status, 'has no checkpoint of step 9: there are 8, 12' in error) == (1, True)
  with pytest.raises(RunError, match=r'is damaged'):
    vit_jax.load(run)
  before = vit_jax.load(workdir, step=8)
  for x, y in zip(jax.tree.leaves(vit_jax.load(run, step=8)), jax.tree.leaves(before), strict=True):
    np.testing.assert_array_equal(x, y)
  with pytest.raises(RunError, match='step=8 picks a checkpoint of a run'):
    vit_jax.load(tmp_path / 'x.npz', step=8)
  assert checkpoints(run) == {'8', '12'}  # who only reads changes nothing


def test_a_run_without_a_sound_checkpoint_says_how_to_begin_again(finished, run):
  workdir, _, config = finished
  damage(run, 8)
  damage(run, 12)
  with pytest.raises(RunError, match=r'no checkpoint in .* is sound: step 12: .*; step 8: .*begin'):
    train(config, str(run))
  with pytest.raises(RunError, match='There is no good one before it'):
    evaluate(str(run))
  assert checkpoints(run) == {'8', '12'}
  (run / 'checkpoints').rename(run / 'old')
  train(config, str(run))
  assert_bit_identical(run, workdir)


def test_a_fork_takes_the_checkpoint_before(finished, run, digits, tmp_path, capsys):
  """The trunk is another run's: nothing is renamed there."""
  damage(run)
  result = train(digits(fork=str(run)), str(tmp_path / 'fork'))
  assert result['forked']['step'] == 8
  assert 'the checkpoint of step 12 is damaged' in capsys.readouterr().out
  assert checkpoints(run) == {'8', '12'}
  assert_bit_identical(tmp_path / 'fork', finished[0])


def test_damaged_metrics(finished, run, capsys):
  """A line that cannot be read is left out, and that is said; the rest is kept."""
  path = run / 'metrics.jsonl'
  damage(run)
  rows = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join([rows[0], b'\xff' + rows[1], rows[2], b'[7]\n', *rows[3:]]))
  train(finished[2], str(run))
  assert 'metrics.jsonl: line 2, 4 cannot be read' in capsys.readouterr().out
  want = lines(finished[0])
  assert lines(run) == [want[0], *want[2:]]


def test_a_damaged_record(finished, run):
  """Not to be guessed; what it takes to go on is in the message."""
  workdir, _, config = finished
  path = run / 'config.json'
  whole = path.read_text()
  for text in (
    whole[: len(whole) // 2], '', '[]', '{}', whole.replace('"seed"', '"sefd"'), '{"model": 3}',
    whole.replace('"batch_size": 16', '"batch_size": "16"'), '{"format": 1, "model": {"name": []}}',
  ):  # fmt: skip
    path.write_text(text)
    for use in (evaluate, lambda folder: train(config, folder)):
      with pytest.raises(RunError, match=r'config\.json, the record of the run, is damaged: '):
        use(str(run))
  path.unlink()
  train(config, str(run))
  assert Workdir(run).record() == Workdir(workdir).record()
  assert_bit_identical(run, workdir)


def test_a_damaged_result(finished, run):
  _, result, config = finished
  (run / 'result.json').write_text('{"step": 1')
  with pytest.raises(RunError, match=r'result\.json is not JSON: .* Delete it: training writes it'):
    train(config, str(run))
  (run / 'result.json').unlink()
  assert train(config, str(run))['metrics'] == result['metrics']


def test_what_others_do_while_we_read(run):
  """A run deletes its old checkpoints while somebody evaluates it: there is a newer one then."""
  opened = Workdir(run).checkpoints()
  facts = opened._facts

  def deleted(step):
    if (run / 'checkpoints' / '12').exists():
      shutil.copytree(run / 'checkpoints' / '12', run / 'checkpoints' / '16')
      shutil.rmtree(run / 'checkpoints' / '12')
    return facts(step)

  opened._facts = deleted
  assert opened.peek()[1]['lanes'] == 0


def test_a_mesh_of_another_shape_reads_the_same(run):
  for x, y in zip(leaves(run), leaves(run, '2x2x2'), strict=True):
    np.testing.assert_array_equal(x, y)
