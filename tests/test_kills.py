"""Runs that are killed, stopped and continued at places that `core.faults` names, not by clocks."""

import json
import random
import shutil
import signal

import pytest

from tests import runs
from tests.conftest import tiers
from tests.runs import (
  assert_bit_identical,
  assert_close,
  checkpoints,
  cut_off,
  killed,
  lines,
  run,
  together,
  with_fault,
)
from vit_jax.core import faults
from vit_jax.core.errors import RESTART, RunError
from vit_jax.train import train

# Where one run is killed, place after place, and what is then in its directory of checkpoints.
# Each costs a start: in saving and in deleting first, where most can be left behind.
PLACES = {
  'before rename */checkpoints/4': {'4.orbax-checkpoint-tmp'},
  'before rmdir */checkpoints/4.deleted/state': {'4.deleted', '8', '12'},
}
MORE = {
  'before open */4.orbax-checkpoint-tmp/_CHECKPOINT_METADATA': {'4.orbax-checkpoint-tmp'},
  'before mkdir */checkpoints/8.*': {'4'},
  'in restore': {'4'},
  'at step 7': {'4'},
  'before rename */result.json': {'8', '12'},
}
LAST = {
  'before rename */config.json': set(),
  'in compile': set(),
  'before open */metrics.jsonl': set(),
  'in eval': None,  # step 4 is being saved meanwhile
  'before rename */checkpoints/8': {'4', '8.orbax-checkpoint-tmp'},
  'before rename */checkpoints/4.deleted': {'4', '8', '12'},
}


@pytest.mark.parametrize('places', tiers([PLACES, MORE, LAST], 0))
def test_kills_change_nothing(finished, tmp_path, places):
  """SIGKILL to the process of a run, start-up, saving and deleting included, then the next.

  More than ten seconds: three processes.
  """
  workdir, _, config = finished
  for place, left in places.items():
    killed(tmp_path / 'run', config, place, devices=8)
    assert left is None or checkpoints(tmp_path / 'run') == left, place
  last = run(tmp_path / 'run', config, devices=8)
  assert last.returncode == 0, last.stderr
  assert 'continuing' in last.stdout
  assert_bit_identical(tmp_path / 'run', workdir)


@pytest.mark.slow
def test_kills_anywhere_change_nothing(finished, tmp_path):
  """At steps and before operations on files that are drawn by lot."""
  config = finished[2].copy_and_resolve_references().unlock()
  config.update(total='400 steps', mesh='data')
  config.checkpoint.every = '5 steps'
  config.evals.test.every = '40 steps'
  config = config.lock()
  assert run(tmp_path / 'whole', config).returncode == 0
  rng = random.Random(0)
  for _ in range(20):
    place = f'before any {tmp_path}/run/* {rng.randint(1, 60)}'
    if rng.random() < 0.3:
      place = f'at step {max([0, *map(int, steps(tmp_path / "run"))]) + rng.randint(1, 12)}'
    killed(tmp_path / 'run', config, place)
  assert run(tmp_path / 'run', config).returncode == 0
  assert_bit_identical(tmp_path / 'run', tmp_path / 'whole')


def steps(workdir):
  return [name for name in checkpoints(workdir) if name.isdecimal()]


def test_a_signal_saves_and_exits_cleanly(finished, tmp_path):
  workdir, _, config = finished
  process = run(tmp_path / 'run', config, devices=8, fault='sigterm at step 5')
  assert process.returncode == RESTART, process.stderr
  assert 'stopped by a signal at step 5 of 12' in process.stdout
  assert max(map(int, steps(tmp_path / 'run'))) == 5
  assert not (tmp_path / 'run' / 'result.json').exists()
  train(config, str(tmp_path / 'run'))
  assert_bit_identical(tmp_path / 'run', workdir)


def test_so_does_the_keyboard(finished, tmp_path, capsys):
  before = signal.getsignal(signal.SIGINT)
  assert with_fault(tmp_path / 'run', finished[2], 'sigint at step 3') is None
  assert 'stopped by a signal at step 3 of 12' in capsys.readouterr().out
  assert checkpoints(tmp_path / 'run') == {'3'}
  assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize('mesh', ['2x2x2', pytest.param('1x8x1', marks=pytest.mark.slow)])
def test_resuming_on_another_mesh(finished, tmp_path, digits, mesh):
  workdir, _, config = finished
  cut_off(tmp_path / 'run', config, 'at step 7')
  train(digits(mesh=mesh, model__remat='full', optim__accumulate=2), str(tmp_path / 'run'))
  assert_close(tmp_path / 'run', workdir)


def test_a_restart_drops_what_came_after_the_checkpoint(finished, tmp_path):
  workdir, _, config = finished
  cut_off(tmp_path / 'run', config, 'at step 7')
  assert lines(tmp_path / 'run')[-1]['step'] > 4
  with (tmp_path / 'run' / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 7, "train/lo')  # a line cut short
  train(config, str(tmp_path / 'run'))
  assert_bit_identical(tmp_path / 'run', workdir)


def test_a_run_without_its_result_computes_it_again(finished, tmp_path):
  workdir, result, config = finished
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'result.json').unlink()
  again = train(config, str(tmp_path / 'run'))
  assert again['metrics'] == result['metrics']
  assert_bit_identical(tmp_path / 'run', workdir)


@pytest.mark.parametrize(
  'fault',
  ['kill at noon', 'kill at step x', 'fail at step 3', 'kill in bed', 'kill before read *', 'kill',
   'sigkill at step 3', 'kill before any * 0', 'kill before any * 3 4'],
)  # fmt: skip
def test_faults_that_make_no_sense(finished, tmp_path, fault):
  with pytest.raises(RunError, match=r'VIT_JAX_FAULT=.* cannot be read'):
    with_fault(tmp_path / 'run', finished[2], fault)
  assert not (tmp_path / 'run').exists()


def test_faults_are_announced_and_count(tmp_path, monkeypatch, finished, capsys):
  """The run says what it was asked for; operations are counted one by one."""
  with pytest.raises(RunError, match=r'cannot write .*metrics\.jsonl: No space left on device'):
    with_fault(tmp_path / 'run', finished[2], 'fail before open */metrics.jsonl')
  assert 'VIT_JAX_FAULT: fail before open */metrics.jsonl' in capsys.readouterr().out
  monkeypatch.setenv(faults.VARIABLE, f'fail before any {tmp_path}/x/* 3')
  faults.arm()
  (tmp_path / 'x').mkdir()  # not inside
  (tmp_path / 'x' / 'a').write_text('1')
  assert (tmp_path / 'x' / 'a').read_text() == '1'  # reading does not count
  (tmp_path / 'x' / 'a').rename(tmp_path / 'x' / 'b')
  with pytest.raises(OSError, match='No space left'):
    shutil.rmtree(tmp_path / 'x')
  assert (tmp_path / 'x' / 'b').exists()
  shutil.rmtree(tmp_path / 'x')  # once only


# --- several processes ---


@pytest.mark.slow
@pytest.mark.parametrize('mesh', ['4x2x1', '1x1x8'])
def test_two_processes_get_the_losses_of_one(finished, tmp_path, digits, mesh):
  """Each with half of the rows of a batch, and (1x1x8) both with all of them."""
  workdir, result, _ = finished
  together(tmp_path / 'two', digits(mesh=mesh))
  two = json.loads((tmp_path / 'two' / 'result.json').read_text())
  assert two['processes'] == 2
  assert_close(tmp_path / 'two', workdir)
  assert two['metrics'] == pytest.approx(result['metrics'], rel=1e-3)


@pytest.mark.slow
def test_one_process_continues_what_two_began(tmp_path, digits):
  """One of two hears a signal; both stop at the same step, however long they take to agree."""
  endless = dict(
    total='1e9 steps', optim__schedule='wsd', checkpoint__every='0', evals__test__every='0'
  )
  first, _ = together(
    tmp_path / 'run', digits(**endless, mesh='4x2x1'), fault='sigterm at step 3', status=RESTART
  )
  (saved,) = map(int, checkpoints(tmp_path / 'run'))
  assert saved >= 3
  assert f'stopped by a signal at step {saved} of 1000000000' in first.out
  for name in ('run', 'whole'):
    with_fault(tmp_path / name, digits(**endless), f'sigterm at step {saved + 3}')
  one, two = lines(tmp_path / 'whole'), lines(tmp_path / 'run')
  assert [row['step'] for row in one] == [row['step'] for row in two]
  for x, y in zip(one[:30], two[:30], strict=True):
    assert x == pytest.approx(y, rel=5e-3, abs=1e-3)


@pytest.mark.slow
def test_two_slices_of_two_processes_get_the_losses_of_one(finished, tmp_path, digits):
  """Stopped in the middle and continued, then evaluated, all on two slices."""
  workdir, result, _ = finished
  config, four = digits(mesh='fsdp'), dict(count=4, slices=2)
  out = together(tmp_path / 'whole', config, **four)[0].out
  assert (
    '8 x cpu in 4 processes, 2 slices of 4, mesh 2 data x 4 fsdp x 1 tensor (data across' in out
  )
  assert_close(tmp_path / 'whole', workdir)
  whole = json.loads((tmp_path / 'whole' / 'result.json').read_text())
  assert whole['processes'] == 4
  assert whole['metrics'] == pytest.approx(result['metrics'], rel=1e-3)
  stopped = together(tmp_path / 'run', config, **four, fault='sigterm at step 5', status=RESTART)
  assert 'stopped by a signal at step' in stopped[0].out
  assert 'continuing' in together(tmp_path / 'run', config, **four)[0].out
  assert_bit_identical(tmp_path / 'run', tmp_path / 'whole')
  found = together(tmp_path / 'run', config, **four, module='evaluate')[0].out
  top1 = whole['metrics']['test/top1']
  assert f'{top1:.4g}' in found


HALVES = """
import pathlib, shutil
import jax, jax.numpy as jnp, numpy as np
from vit_jax.checkpoints.store import Checkpoints
from vit_jax.nn import sharding
folder = pathlib.Path(words[0])
with jax.set_mesh(sharding.make_mesh('fsdp')) as mesh:
  layout = jax.sharding.NamedSharding(jax.sharding.get_mesh(), jax.sharding.PartitionSpec('fsdp'))
  make = lambda step: step * np.arange(512 * 64, dtype=np.float32).reshape(512, 64)
  place = lambda a: jax.make_array_from_callback(a.shape, layout, lambda index: a[index])
  checkpoints = Checkpoints(folder, keep=2)
  checkpoints.prepare()
  for step in (4, 8):
    checkpoints.save(step, {'x': place(make(step))}, {'step': step})
  checkpoints.wait()
  multihost = jax.experimental.multihost_utils
  multihost.sync_global_devices('saved')
  if own == 0:  # what only the other one needs
    shutil.rmtree(folder / '8' / 'state' / 'ocdbt.process_1')
  multihost.sync_global_devices('damaged')
  found = checkpoints.newest({'x': jax.ShapeDtypeStruct((512, 64), np.float32, sharding=layout)})
  for shard in found.state['x'].addressable_shards:
    np.testing.assert_array_equal(shard.data, make(4)[shard.index])
  print(own, found.step, found.damage)
  checkpoints.set_aside(found.damage)
  assert checkpoints.steps == [4]
"""


@pytest.mark.slow
def test_damage_that_one_of_two_processes_sees(tmp_path):
  """Both go back to the same checkpoint, and neither waits for the other in vain."""
  with runs.started(*runs.programs(HALVES, tmp_path, devices=4)) as processes:
    runs.finish(processes)
  assert "0 4 {8: 'another process could not read it'}" in processes[0].out
  assert "1 4 {8: 'Error reading" in processes[1].out
