"""Updates that are skipped, and runs that go back after a spike: controls beside everything."""

import contextlib
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import test_step, toys
from tests.conftest import tiers
from tests.runs import (
  assert_bit_identical,
  assert_close,
  checkpoints,
  cut_off,
  lines,
  run,
  together,
)
from vit_jax.core.errors import RESTART, DivergedError, RunError
from vit_jax.data import pipeline
from vit_jax.nn import tree
from vit_jax.optim import skipping
from vit_jax.optim.config import WINDOW
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training import experiment as experiment_lib
from vit_jax.training import lanes, loop
from vit_jax.training.config import RewindConfig
from vit_jax.training.experiment import Experiment
from vit_jax.training.spikes import SpikeError, Spikes

# --- updates ---


def test_what_is_skipped_is_what_numpy_says():
  """Norms that grow a hundredfold for good, spikes before and after, and what is not finite."""
  rng = np.random.default_rng(0)
  norms = rng.lognormal(0, 0.3, 500).astype(np.float32)
  norms[[5, 40, 100, 200]] *= 1000
  norms[300:] *= 100
  norms[[10, 250]] = np.nan, np.inf
  losses = np.ones(500, np.float32)
  losses[260] = np.nan
  judged = jax.jit(lambda *args: skipping.judged(*args, 10.0))
  seen, got = skipping.start(), []
  for step, (norm, loss) in enumerate(zip(norms, losses, strict=True)):
    skip, seen = judged(seen, step, norm, loss)
    got.append(bool(skip))
  window, want = {}, []
  for step, (norm, loss) in enumerate(zip(norms, losses, strict=True)):
    known = sorted([*window.values(), *[np.inf] * (WINDOW - len(window))])
    finite = np.isfinite(norm) and np.isfinite(loss)
    want.append(not finite or norm > 10 * known[WINDOW // 2 - 1])
    if np.isfinite(norm):
      window[step % WINDOW] = norm
  assert got == want
  assert got[:101].count(True) == 2  # what is not finite, and the spike once half is known
  assert 10 < sum(got[300:]) <= WINDOW // 2 + 1  # after a while that is what gradients are
  assert not any(got[370:])
  assert int(seen.count) == sum(got)
  assert int(seen.row) == 0


@pytest.mark.parametrize(
  ('layout', 'changes'),
  tiers([(None, {}), ((2, 2, 2), dict(optim__accumulate=2, model__scan=False))], 0),
)
def test_a_skipped_update_changes_nothing_and_another_is_what_it_was(mesh, layout, changes):
  """Parameters, moments and average stay bit for bit; else the step is that of a run without."""
  with mesh(*layout) if layout else contextlib.nullcontext():
    plain = Experiment(test_step.build(**changes))
    guarded = Experiment(test_step.build(optim__skip_above=2.0, **changes))
    batch = guarded.layout.place(test_step.batch_of(guarded.config, 0))
    step, results = guarded.train_step(), []
    for norm in (1e-6, 1e6):
      state = guarded.split(guarded.init())
      state.skipping.norms = jnp.full(WINDOW, norm)
      before = {n: np.asarray(x) for n, x in tree.flatten(state).items()}
      state, metrics = step(state, guarded.frozen, batch, guarded.hyper(0))
      results.append((before, {n: np.asarray(x) for n, x in tree.flatten(state).items()}, metrics))
    assert step._cache_size() == 1
    want, metrics = plain.train_step()(
      plain.split(plain.init()), plain.frozen, batch, plain.hyper(0)
    )
    want = {n: np.asarray(x) for n, x in tree.flatten(want).items()}
  before, after, said = results[0]
  changed = {name for name in after if not np.array_equal(before[name], after[name])}
  assert changed == {'step', 'skipping/norms', 'skipping/count', 'skipping/row'}
  assert (said['skipped_updates'], said['skipped_in_a_row']) == (1, 1)
  assert said['grad_norm'] == metrics['grad_norm']
  _, after, said = results[1]
  assert said['skipped_updates'] == 0
  assert {n for n in after if not n.startswith('skipping/')} == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(after[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


def test_each_lane_skips_its_own():
  cfg = test_step.build(optim__skip_above=2.0, lanes={'lr': (1e-2, 1e-3)})
  experiment = lanes.experiment(cfg)
  state = experiment.init()
  state.skipping.norms = jnp.stack([jnp.full(WINDOW, 1e-6), jnp.full(WINDOW, 1e6)])
  before = np.asarray(state.model.encoder.blocks.mlp.up.kernel[...])
  batch = experiment.layout.place(test_step.batch_of(cfg, 0))
  state, metrics = experiment.train_step()(state, experiment.frozen, batch, experiment.hyper(1))
  after = np.asarray(state.model.encoder.blocks.mlp.up.kernel[...])
  assert metrics['skipped_updates'].tolist() == [1, 0]
  assert np.array_equal(after[0], before[0])
  assert not np.array_equal(after[1], before[1])


def test_nothing_is_there_unless_it_is_asked_for(monkeypatch):
  """Neither in the state nor in the program, which does not come near it."""
  monkeypatch.setattr(skipping, 'judged', None)
  experiment = Experiment(test_step.build())
  batch = experiment.layout.place(test_step.batch_of(experiment.config, 0))
  experiment.train_step().lower(experiment.init(), experiment.frozen, batch, experiment.hyper(0))
  assert not [name for name in tree.flatten(experiment.abstract_state) if 'skipping' in name]


def poisoned(folder, left_out=-1, **changes):
  """Digits as float images in files, of which one overflows float32 when normalised."""
  from sklearn.datasets import load_digits

  digits = load_digits()
  for at, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
    if label < 3 and at != left_out:
      path = folder / ('test' if at % 5 == 0 else 'train') / str(label) / f'{at}.npy'
      path.parent.mkdir(parents=True, exist_ok=True)
      pixels = image.astype(np.float32)[..., None] / 16
      np.save(path, np.full_like(pixels, 3e38) if at == 11 else pixels)
  return toys.config(
    folder, model__variant='mu/4', model__image_size=(8, 8), model__in_channels=1,
    task__mean=(0.3,), task__std=(0.4,), total='150 steps', batch_size=32, optim__lr=3e-3,
    log__every='1 step', **changes,
  )  # fmt: skip


@pytest.mark.slow
def test_a_damaged_file_costs_a_step_an_epoch_and_not_the_run(tmp_path):
  """It ends like a run on the other files; without, it ends where the damaged one comes first.

  More than ten seconds: three runs.
  """
  with pytest.raises(DivergedError, match='loss nan'):
    train(poisoned(tmp_path / 'data'), str(tmp_path / 'without'))
  result = train(poisoned(tmp_path / 'data', optim__skip_above=10.0), str(tmp_path / 'with'))
  rows = lines(tmp_path / 'with')
  counts = [row['train/skipped_updates'] for row in rows if 'train/skipped_updates' in row]
  assert len(counts) == 150
  assert counts == sorted(counts)
  epochs = 150 * 32 / len(list((tmp_path / 'data' / 'train').rglob('*.npy')))
  assert counts[-1] == result['skipped_updates']
  assert 0 <= counts[-1] - int(epochs) <= 1
  control = train(poisoned(tmp_path / 'others', left_out=11), str(tmp_path / 'control'))['metrics']
  assert control['test/top1'] > 0.75
  assert result['metrics']['test/top1'] > control['test/top1'] - 0.1


def test_when_every_update_is_skipped_the_run_stops(tmp_path):
  config = poisoned(tmp_path / 'data', optim__skip_above=10.0).unlock()
  config.update(total='200 steps')
  for path in (tmp_path / 'data' / 'train').rglob('*.npy'):
    np.save(path, np.full((8, 8, 1), 3e38, np.float32))
  with pytest.raises(DivergedError, match=f'at step {WINDOW}'):
    train(config.lock(), str(tmp_path / 'run'))


# --- going back ---


def seen(spikes, losses, start=0):
  """The step at which there is a spike, and what becomes of it."""
  for step, loss in enumerate(losses, start + 1):
    try:
      stuck = spikes.see(step, loss, skipped=False, finite=bool(np.isfinite(loss)))
    except SpikeError as spike:
      return step, spike.rewind
    if stuck:
      return step, None
  return None


def test_what_a_spike_is():
  config = RewindConfig(most=2, above=1.5, patience=3, back='')
  flat = [1.0] * 70
  new = lambda: Spikes(config, 20)  # noqa: E731
  assert seen(new(), [*flat, *[1.6] * 2, 1.0, *[1.6] * 2]) is None
  step, rewind = seen(new(), [*flat, *[1.6] * 5])
  assert (step, rewind['to'], rewind['batch']) == (73, 40, 93)
  assert (rewind['loss'], rewind['usual']) == (1.6, 1.0)
  assert seen(new(), [*flat, float('nan')])[1] == {
    'step': 71, 'to': 40, 'batch': 91, 'loss': None, 'usual': 1.0
  }  # fmt: skip
  assert seen(new(), [9.0] * 30 + [12.0] * 30) is None  # too early to say what is usual
  assert seen(new(), [*[1.0] * 39, float('nan')]) == (40, None)  # no checkpoint to go back to
  assert seen(new(), [*[-1.0] * 70, *[-0.6] * 5]) is None
  assert seen(new(), [*[-1.0] * 70, *[-0.4] * 5])[0] == 73
  off = Spikes(RewindConfig(), 20)
  assert seen(off, [*flat, *[100.0] * 60]) is None
  assert seen(off, [*flat, float('nan')]) == (71, None)
  fork = new()
  fork.begun = 40
  assert seen(fork, [*flat, *[1.6] * 5]) == (73, None)


def test_what_it_may_go_back_to_is_kept():
  """Whatever comes next: of all checkpoints due, those that `holds` names include the target."""
  rng = random.Random(0)
  for _ in range(300):
    back, patience = rng.randint(1, 40), rng.randint(1, 32)
    spikes = Spikes(RewindConfig(most=1, patience=patience, back=''), back)
    begins = rng.randint(64, 300)
    found = seen(spikes, [*[1.0] * begins, *[2.0] * 40])
    assert found[0] == begins + patience
    if rewind := found[1]:
      assert begins - 2 * back < rewind['to'] <= begins - back
      for latest in range(rewind['to'], found[0] + 1):
        assert spikes.due(rewind['to'])
        assert spikes.holds(rewind['to'], latest)


BAD = range(80, 104)
PATCH = """
import contextlib
from vit_jax.training import experiment
plain = experiment.iterate
def iterate(batches, *, start=0, workers=0):
  with contextlib.closing(plain(batches, start=start, workers=workers)) as stream:
    for place, batch in enumerate(stream, start):
      if place in %r:
        batch['label'] = (batch['label'] + 1) %% 10
      yield batch
experiment.iterate = iterate
"""


@pytest.fixture
def bad_batches(monkeypatch):
  """Of these places in the stream all labels are wrong."""
  monkeypatch.setattr(experiment_lib, 'iterate', experiment_lib.iterate)  # to be put back
  exec(PATCH % BAD, {})


def spiking(digits, **changes):
  config = dict(
    total='120 steps', batch_size=32, optim__lr=1e-2, optim__warmup='10 steps', mesh='data',
    optim__schedule='wsd', evals__test__every='40 steps', checkpoint__every='30 steps',
    model__num_heads=2, log__every='10 steps',
  )  # fmt: skip
  return digits(**{**config, **changes})


BACK = dict(rewind__most=1, rewind__patience=4, rewind__back='20 steps')


@pytest.fixture
def asked(monkeypatch):
  """Numbers by which a process of several asks whether it is to stop."""
  numbers, plain = [], loop._stop_signal
  monkeypatch.setattr(
    loop.multihost_utils, 'reached_preemption_sync_point', lambda n: bool(numbers.append(n))
  )

  @contextlib.contextmanager
  def of_several():
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
      patch.setattr(jax, 'process_count', lambda: 2)
      stopped = stack.enter_context(plain())
      patch.undo()
      yield stopped

  monkeypatch.setattr(loop, '_stop_signal', of_several)
  return numbers


@pytest.mark.slow
def test_a_run_goes_back_and_on_with_other_data(tmp_path, digits, bad_batches, capsys, asked):
  """And ends as well as if those batches had never been, which the control does not.

  More than ten seconds: three runs.
  """
  still = {f'data__crop__{name}': 0.0 for name in ('degrees', 'shift', 'zoom')}
  spoilt = train(spiking(digits, **still), str(tmp_path / 'spoilt'))
  asked.clear()
  result = train(spiking(digits, **still, **BACK), str(tmp_path / 'back'))
  # JAX agrees on the number after the last one, which must come.
  assert asked == [*range(asked[0], asked[0] + 120 + 84 - 60)]
  (rewind,) = result['rewound']
  assert (rewind['step'], rewind['to'], rewind['batch']) == (84, 60, 104)
  said = capsys.readouterr().out
  assert 'going back to step 60, and on with other data (1 of 1 times)' in said
  assert result['metrics']['test/loss'] < 0.7 * spoilt['metrics']['test/loss']
  assert result['step'] == 120
  report = (tmp_path / 'back' / 'report.html').read_text()
  assert 'which went back from step 84 to 60 after a spike' in report
  # As a run whose stream never had them: the same numbers, bit for bit.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment_lib, 'iterate', pipeline.iterate)
    order = Experiment._order
    left_out = lambda places: places + 44 * 32 * (places >= 60 * 32)  # noqa: E731
    patch.setattr(Experiment, '_order', lambda self, seed: lambda p: order(self, seed)(left_out(p)))
    train(spiking(digits, **still), str(tmp_path / 'without'))
  assert_bit_identical(tmp_path / 'back', tmp_path / 'without')


@pytest.mark.slow
def test_kills_change_nothing_of_it(tmp_path, digits, bad_batches):
  """Where it begins to go back, half-way through deleting, and after it has gone back.

  More than ten seconds: six runs.
  """
  config = spiking(digits, **BACK)
  want = train(config, str(tmp_path / 'whole'))
  for place in ('in restore', 'before rename */checkpoints/80.deleted', 'at step 70'):
    cut_off(tmp_path / 'run', config, place)
    assert ('80' in checkpoints(tmp_path / 'run')) == (place != 'at step 70')
    if place == 'in restore':
      shutil.copytree(tmp_path / 'run', tmp_path / 'damaged')
  got = train(config, str(tmp_path / 'run'))
  assert got['rewound'] == want['rewound']
  assert_bit_identical(tmp_path / 'run', tmp_path / 'whole')
  # What it would go back to cannot be read: nothing is deleted for it.
  before = checkpoints(tmp_path / 'damaged')
  for path in (tmp_path / 'damaged' / 'checkpoints' / '60' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(b'0' * path.stat().st_size)
  with pytest.raises(RunError, match='spike at step 84 the run cannot go back to step 60:'):
    train(config, str(tmp_path / 'damaged'))
  assert {'60', '80'} <= before == checkpoints(tmp_path / 'damaged')


@pytest.mark.slow
def test_two_processes_go_back_together(tmp_path, digits):
  """And a signal to one of them stops both, although their steps began again."""
  config = spiking(digits, **BACK)
  first = PATCH % BAD
  assert run(tmp_path / 'one', config, devices=8, first=first).returncode == 0
  stop = dict(fault='sigterm at step 95', status=RESTART)
  together(tmp_path / 'two', config, first=first, **stop)
  assert not (tmp_path / 'two' / 'result.json').exists()
  assert '83' not in checkpoints(tmp_path / 'two')
  together(tmp_path / 'two', config, first=first)
  one, two = (json.loads((tmp_path / n / 'result.json').read_text()) for n in ('one', 'two'))
  assert two['processes'] == 2
  places = [[(r['step'], r['to'], r['batch']) for r in each['rewound']] for each in (one, two)]
  assert places == [[(84, 60, 104)]] * 2
  assert_close(tmp_path / 'two', tmp_path / 'one')


@pytest.mark.slow
def test_kills_anywhere_change_nothing_of_it(tmp_path, digits):
  """By SIGKILL, at steps and before operations on files that are drawn by lot; twice back."""
  config = spiking(digits, **{**BACK, 'rewind__most': 2, 'optim__skip_above': 20.0})
  first = PATCH % [*BAD, *range(125, 130)]
  assert run(tmp_path / 'whole', config, first=first).returncode == 0
  want = json.loads((tmp_path / 'whole' / 'result.json').read_text())
  assert len(want['rewound']) == 2
  rng = random.Random(0)
  for _ in range(12):
    place = f'before any {tmp_path}/run/* {rng.randint(1, 120)}'
    if rng.random() < 0.4:
      there = [int(name) for name in checkpoints(tmp_path / 'run') if name.isdecimal()]
      place = f'at step {max([0, *there]) + rng.randint(1, 25)}'
    process = run(tmp_path / 'run', config, fault=f'kill {place}', first=first)
    assert process.returncode in (0, -9), process.stderr
  assert run(tmp_path / 'run', config, first=first).returncode == 0
  got = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert got['rewound'] == want['rewound']
  assert_bit_identical(tmp_path / 'run', tmp_path / 'whole')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(optim__skip_above=0.5), 'skip_above=0.5 must be more than 1'),
    (dict(rewind__most=-1), 'rewind.most=-1'),
    (dict(rewind__above=1.0), 'rewind.above=1.0 must be more than 1'),
    (dict(rewind__patience=33), 'patience=33 must be from 1 to 32'),
    (dict(rewind__most=1, lanes={'lr': (1.0, 2.0)}), 'none can go back alone'),
    (dict(rewind__back='soon'), "rewind.back='soon' is not a duration"),
  ],
)
def test_what_makes_no_sense(digits, changes, message):
  with pytest.raises(RunError, match=message):
    config_lib.check(digits(**changes))


def test_a_run_that_could_never_go_back(tmp_path, digits):
  with pytest.raises(RunError, match='100 of 12 steps: the run could not go back'):
    train(digits(rewind__most=1), str(tmp_path / 'run'))
