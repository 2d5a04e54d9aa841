"""Sweeps: expanded, interrupted, shared by several workers, with their failures on record."""

import dataclasses
import json
import pathlib
import subprocess

import numpy as np
import pytest

from experiments.launch import job as job_lib
from experiments.sweep import launched, load
from experiments.sweeps import runs as runs_lib
from experiments.sweeps import worker
from experiments.sweeps.jobs import Sweep, described, expand
from tests import runs
from tests.conftest import make_digits
from tests.sweeps import BASE, SMALL, sweep_of
from vit_jax.core import faults, modules
from vit_jax.core.errors import PassingError, RunError
from vit_jax.costs import flops
from vit_jax.costs.step import Pass
from vit_jax.scaling import cost, design
from vit_jax.train import train
from vit_jax.training import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent


# --- designs ---


def test_budgets_are_spaced_evenly():
  got = design.budgets(1e9, 1e12, per_decade=2)
  assert got[0] == 1e9
  assert got[-1] == pytest.approx(1e12)
  np.testing.assert_allclose(np.diff(np.log10(got)), 0.5)


@pytest.mark.parametrize(
  ('changes', 'want'),
  [
    (dict(width=61.0), dict(width=60, num_heads=15, mlp_dim=120)),
    (dict(width=61.0, mlp_dim=99.6), dict(width=60, mlp_dim=100)),
    (dict(num_heads=4), dict(width=8, num_heads=4, mlp_dim=16)),
    (dict(num_heads=3, width=32), dict(width=33, num_heads=3, mlp_dim=66)),
    (dict(depth=3.4), dict(depth=3, width=8, mlp_dim=16)),
    (dict(depth=0.2, width=1), dict(depth=1, width=4)),
    (dict(patch_size=2), dict(patch_size=2, image_size=8)),
    (dict(patch_size=3), dict(patch_size=3, image_size=9)),
    (dict(image_size=30), dict(patch_size=4, image_size=32)),
  ],
)
def test_models_are_resized_to_what_is_valid(changes, want):
  got = design.shape_of(design.resized(SMALL, **changes))
  assert {name: got[name] for name in want} == want


def test_unknown_dimensions():
  with pytest.raises(RunError, match='did you mean depth'):
    design.resized(SMALL, deph=2)
  with pytest.raises(RunError, match='give one of them'):
    design.resized(SMALL, num_heads=2, head_dim=4)


def test_isoflop_runs_cost_their_budget():
  models = [design.resized(BASE, head_dim=8, width=w, depth=2) for w in (16, 32, 64)]
  made = design.isoflop(models, [1e9, 1e10], 8, steps=10, images=(0, 30_000))
  for cell in made.cells:
    budget = float(cell.group.split()[1])
    assert cell.flops == pytest.approx(budget, rel=0.06)
    assert cell.flops == cell.steps * 8 * flops.train_flops(cell.model)
    assert cell.steps >= 10
    assert cell.images <= 30_000
  names = {(cell.group, design.name_of(cell.model)) for cell in made.cells}
  left = {(each.group, each.model) for each in made.left_out}
  assert names | left == {
    (f'isoflop {budget:.3g}', design.name_of(m)) for budget in (1e9, 1e10) for m in models
  }
  assert left
  assert not names & left


def test_a_star_changes_one_dimension_at_a_time():
  centre = design.resized(BASE, head_dim=8, width=32, depth=4)
  made = design.star(centre, dict(width=(16, 24), depth=(1, 2), mlp_dim=(8, 64), num_heads=(1, 2)),
                     [640], 32)  # fmt: skip
  centre_shape = design.shape_of(centre)
  changed = []
  for cell in made.cells:
    shape = design.shape_of(cell.model)
    different = {name for name in shape if shape[name] != centre_shape[name]}
    changed.append(different - {'num_heads'} or different)
    assert cell.steps == 20
  varied = ('width', 'depth', 'mlp_dim', 'num_heads')
  assert changed == [set(), *({name} for name in varied for _ in range(2))]


def test_a_grid_has_every_combination_once():
  made = design.grid(SMALL, dict(width=(8, 16, 9), depth=(1, 2)), [320, 640], 32)
  assert len(made.cells) == 2 * 2 * 2  # 8 and 9 round to one width
  assert len((made + made).cells) == len(made.cells)


def test_a_design_is_cut_to_what_can_be_paid():
  models = [design.resized(BASE, head_dim=8, width=w, depth=2) for w in (16, 32)]
  make = lambda top: design.isoflop(models, design.budgets(1e9, top, per_decade=2), 8)  # noqa: E731
  made = design.within(1e12, make, low=1e10)
  assert 0.3e12 < made.flops <= 1e12  # a budget more in each decade comes at once
  with pytest.raises(RunError, match='are not enough'):
    design.within(1e9, make, low=1e10)


def masked(**task):
  """A masked autoencoder of digits: 16 patches, of which 4 are seen."""
  return config_lib.complete(dict(
    total='1 step', batch_size=16,
    model=dict(
      name='mae', encoder=dict(variant='mu/2', image_size=(8, 8), in_channels=1, depth=1, width=8,
                               mlp_dim=16, num_heads=2, scan=False),
      decoder=dict(width=8, depth=1, num_heads=2),
    ),
    task=dict(name='masked', mean=(0.3,), **task),
    data=dict(source=dict(name='tfds', dataset='digits')),
    optim=dict(lr=3e-3, warmup='2 steps', schedule='wsd'), log=dict(every='4 steps'),
    evals=dict(
      test=dict(name='reconstruction', every='100%'),
      knn=dict(name='knn', train='train[:200]', every='100%', features='mean'),
    ),
  ))  # fmt: skip


def test_a_design_costs_what_the_passes_of_a_task_cost():
  base, passes = described(masked())
  large = design.resized(base, head_dim=4, width=16, depth=2)
  assert (large.encoder.width, large.encoder.mlp_dim, large.encoder.num_heads) == (16, 32, 4)
  assert large.decoder == dataclasses.replace(base.decoder, in_channels=16)
  both = design.resized(large, tower='decoder', width=12, head_dim=4)
  assert design.name_of(both) == 'w16-d2-m32-h4-p2-r8-decoder-w12-d1-m48-h3'
  assert design.named({**design.shape_of(both), 'task.temperature': 1}) == design.name_of(both)
  made = design.isoflop([base, large], [1e8, 1e9], 16, passes=passes)
  assert len(made.cells) == 4
  for cell in made.cells:
    assert cell.flops == pytest.approx(float(cell.group.split()[1]), rel=0.05)
    assert cell.tokens == 5 * cell.images  # and the class token
    # Multiply-accumulates of blocks, of 5 tokens and of all 17: 12 w^2, and 2 w for each pair.
    e, d = cell.model.encoder, cell.model.decoder
    own = e.depth * (5 * (4 * e.width**2 + 2 * e.width * e.mlp_dim) + 2 * e.width * 5**2)
    own += d.depth * (17 * (4 * d.width**2 + 2 * d.width * d.mlp_dim) + 2 * d.width * 17**2)
    own += 16 * (4 * e.width + e.width * d.width + d.width * 4)  # patches, and both ends
    assert cell.each == 6 * own
  # A teacher costs, and sees nothing new; another view is more data.
  extra = lambda model: [Pass(model, 2), Pass(model, grad='none')]  # noqa: E731
  cell = dataclasses.replace(design.Cell('x', SMALL, 8, 1), passes=tuple(extra(SMALL)))
  assert cell.each == 2 * flops.train_flops(SMALL) + flops.train_flops(SMALL) // 3
  assert cell.tokens == 8 * 2 * 4
  # Two views of 25 patches and two of 9, each with a class token.
  model, passes = described(modules.call(f'{ROOT}/configs/ssl.py:dino', 'get_config'))
  assert design.Cell('x', model, 8, 1, tuple(passes(model))).tokens == 8 * (2 * 26 + 2 * 10)
  with pytest.raises(RunError, match="has no tower 'head'"):
    design.resized(base, tower='head', width=8)


# --- what they cost ---


def test_a_machine_from_measurements():
  """Recovers coefficients that made the times; times in between are predicted."""
  models = [
    design.resized(BASE, head_dim=8, width=w, depth=d) for w, d in ((8, 1), (32, 2), (64, 6))
  ]
  true = cost.Machine('x', (1e-3, 2e-4, 1e-11, 3e-10))
  seconds = [true.step_seconds(m, 16, n) for m in models for n in (1, 4)]
  args = [m for m in models for _ in (1, 4)], [16] * 6, [1, 4] * 3
  found = cost.calibrated('x', *args, seconds, price=2.0, chips=4)
  between = design.resized(BASE, head_dim=8, width=48, depth=3)
  assert found.step_seconds(between, 16, 2) == pytest.approx(true.step_seconds(between, 16, 2))
  assert found.error == pytest.approx(1.0)
  assert cost.calibrated('x', *(each[:2] for each in args), seconds[:2]).error is None
  assert cost.Machine.from_json(found.to_json()) == found
  assert found.money(3600) == 8.0


def test_budgets_in_hours_and_money():
  machine = cost.Machine.assumed('v5e', 0.4 * 197e12, chips=8, price=1.2)
  assert machine.flops(chip_hours=10) == pytest.approx(10 * 3600 * 0.4 * 197e12)
  assert machine.flops(money=12) == machine.flops(chip_hours=10)
  cell = design.Cell('x', SMALL, 32, 100)
  seconds = 100 * machine.step_seconds(cell.model, 32)
  assert seconds == pytest.approx(cell.flops / (8 * 0.4 * 197e12))
  for wrong in ({}, dict(chip_hours=1, money=1)):
    with pytest.raises(RunError, match='either'):
      machine.flops(**wrong)
  with pytest.raises(RunError, match='price'):
    cost.Machine.assumed('x', 1e12).flops(money=1)


# --- jobs ---


@pytest.fixture(scope='module')
def sweep(data_dir):
  return sweep_of(make_digits(
    data_dir, model__pool='mean', optim__schedule='wsd', optim__warmup='2 steps', optim__clip=0.0,
    checkpoint__every='100 steps', evals__test__every='100%',
  ))  # fmt: skip


def test_jobs_of_a_sweep(sweep):
  jobs = expand(sweep)
  assert [job.name for job in jobs] == [job.name for job in expand(sweep)]
  assert len({job.name for job in jobs}) == 2 * (1 + 3)
  for model in (jobs[:4], jobs[4:]):
    trunk, *forks = model
    assert trunk.is_trunk
    assert trunk.config.total == '16 steps'
    assert trunk.config.checkpoint.at == ('4 steps', '8 steps', '16 steps')
    assert [fork.start for fork in forks] == [4, 8, 16]
    assert {fork.trunk for fork in forks} == {trunk.name}
    assert [fork.config.optim.cooldown for fork in forks] == ['1 steps', '2 steps', '4 steps']
    assert trunk.config.lanes.lr == (3e-3, 1e30)
  assert sum(job.flops for job in jobs) < 2 * sweep.design.flops


def test_the_names_of_jobs_follow_what_they_compute(sweep, digits):
  names = {job.name for job in expand(sweep)}
  other = digits(model__pool='mean', optim__schedule='wsd', seed=1)
  assert not names & {job.name for job in expand(Sweep(base=other, design=sweep.design))}


def test_combinations_that_one_program_can_train_are_lanes(sweep):
  lanes = dict(lr=(1e-3, 3e-3), mixup=(0.0, 0.2), clip=(0.0, 1.0), seed=(0, 1))
  mixed = dataclasses.replace(sweep, lanes=lanes, cooldown=0)
  jobs = expand(mixed)
  assert len({job.name for job in jobs}) == len(jobs) == 4 * len(sweep.design.cells)
  seen = set()
  for job in jobs[:4]:
    (clip,) = {lane['clip'] for lane in job.lanes}
    assert (
      list(job.config.lanes.lr) == [lane['lr'] for lane in job.lanes] == [1e-3] * 2 + [3e-3] * 2
    )
    assert job.config.task.mixup == job.lanes[0]['task.mixup']
    seen |= {(clip, lane['task.mixup'], lane['lr'], lane['seed']) for lane in job.lanes}
  assert len(seen) == 16
  for lanes, message in (
    (dict(width=(8, 16)), 'model.width is decided by its design'),
    (dict(mixupp=(0.1,)), "'mixupp' is not the name of one field: did you mean mixup"),
    (dict(every=('1%',)), "'every' is not the name of one field: write .*log/every or"),
  ):
    with pytest.raises(RunError, match=message):
      expand(dataclasses.replace(sweep, lanes=lanes))


@pytest.mark.slow
def test_a_sweep_without_labels(data_dir, tmp_path, monkeypatch):
  """Judged by what it fills in, and by neighbours; at a cost that the run confirms."""
  config = masked(ratio=0.75).unlock()
  config.data.source.dir = data_dir
  base, passes = described(config)
  model = design.resized(base, tower='decoder', width=12, mlp_dim=24)
  cell = design.Cell('grid', model, 16, 8, tuple(passes(model)))
  sweep = Sweep(base=config, design=design.Design((cell,)), lanes=dict(lr=(1e-3, 1e-2)))
  assert worker.work(tmp_path, expand(sweep), say=lambda text: None)
  rows = record(tmp_path).values()
  assert [row['status'] for row in rows] == ['finished'] * 2
  for row in rows:
    assert row['tokens'] == 5 * row['images'] == 5 * 128
    assert row['decoder.width'] == 12
    assert 0.2 < row['test_loss'] < 1.5
    assert 0.1 < row['knn_top1'] < 1
    assert 0.2 < row['train_loss'] < 1.5
  found = runs_lib.read(tmp_path, 'knn/top1', data='tokens')
  best = max(row['knn_top1'] for row in rows)
  assert found.cells['1 - knn_top1'].min() == pytest.approx(1 - best)
  known, _ = runs_lib.architectures(tmp_path, found)
  assert list(known.values()) == [model]
  # A design that counts something else than is computed.
  (job,) = expand(sweep)
  result = json.loads((tmp_path / 'runs' / job.name / 'result.json').read_text())
  monkeypatch.setattr(worker, 'train', lambda config, folder: result)
  job = dataclasses.replace(job, cell=dataclasses.replace(cell, passes=()))
  with pytest.raises(RunError, match='make it with the passes of the task'):
    worker.work(tmp_path / 'other', [job], say=lambda text: None)


def record(folder):
  rows = [json.loads(line) for line in (folder / 'table.jsonl').read_text().splitlines()]
  return {row['id']: row for row in rows}


def same(a, b):
  """Whether two rows say the same, less what depends on the clock and the machine."""
  known = ('id', 'status', 'flops', 'images', 'lr', 'test_loss', 'test_top1', 'diverged_at')
  return {k: a.get(k) for k in known} == {k: b.get(k) for k in known}


@pytest.fixture(scope='module')
def done(sweep, tmp_path_factory):
  """Directory of the sweep that one worker has trained."""
  folder = tmp_path_factory.mktemp('sweep') / 'done'
  assert worker.work(folder, expand(sweep), say=lambda text: None)
  return folder


def test_a_sweep_leaves_its_record(sweep, done, digits, tmp_path):
  rows, jobs = record(done), expand(sweep)
  assert rows.keys() == {f'{job.name}/{lane}' for job in jobs for lane in (0, 1)}
  for job in jobs:
    good, bad = rows[f'{job.name}/0'], rows[f'{job.name}/1']
    assert good['status'] == ('trunk' if job.is_trunk else 'finished')
    assert bad['status'] == 'diverged'
    assert bad['diverged_at'] is not None
    assert (good['lr'], bad['lr']) == (3e-3, 1e30)
    assert good['flops'] == job.cell.flops
    assert good['forked'] == job.start
    assert good['parameters'] == flops.costs(job.cell.model).parameters()
    if not job.is_trunk:
      assert bad['test_loss'] is None
      assert 0 < good['test_loss'] < 2.4
  # One of them, alone and from scratch.
  job = jobs[2]
  config = job.config.copy_and_resolve_references().unlock()
  config.lanes.lr, config.optim.lr = (), 3e-3
  alone = train(config, str(tmp_path / 'alone'))
  assert rows[f'{job.name}/0']['test_loss'] == pytest.approx(
    alone['metrics']['test/loss'], rel=1e-4
  )
  # Nothing is left to do.
  before = (done / 'table.jsonl').stat().st_mtime_ns
  worker.work(done, jobs, say=lambda text: pytest.fail(text))
  assert (done / 'table.jsonl').stat().st_mtime_ns == before


def test_failures_are_rows_and_can_be_retried(sweep, tmp_path):
  """A job that cannot be trained does not stop the others."""
  jobs = expand(Sweep(base=sweep.base, design=sweep.design, cooldown=0))[:2]
  jobs[0].config.data.source.dataset = 'nothing'
  worker.work(tmp_path, jobs, say=lambda text: None)
  rows = record(tmp_path)
  assert rows[f'{jobs[0].name}/0']['status'] == 'failed'
  assert 'nothing' in rows[f'{jobs[0].name}/0']['error']
  assert rows[f'{jobs[1].name}/0']['status'] == 'finished'
  jobs[0].config.data.source.dataset = 'digits'
  worker.work(tmp_path, jobs, say=lambda text: None)
  assert record(tmp_path)[f'{jobs[0].name}/0']['status'] == 'failed'
  worker.work(tmp_path, jobs, retry=True, say=lambda text: None)
  assert record(tmp_path)[f'{jobs[0].name}/0']['status'] == 'finished'


def test_what_nobody_has_thought_of_is_a_row(sweep, tmp_path, monkeypatch, capfd):
  jobs = expand(Sweep(base=sweep.base, design=sweep.design, cooldown=0))[:1]

  def broken(config, folder):
    raise ValueError('out of the blue')

  monkeypatch.setattr(worker, 'train', broken)
  assert worker.work(tmp_path, jobs, say=lambda text: None)
  (row,) = record(tmp_path).values()
  assert (row['status'], row['error']) == ('failed', 'ValueError: out of the blue')
  assert 'in broken' in capfd.readouterr().err


def test_a_store_that_does_not_serve_is_no_row(sweep, tmp_path, monkeypatch):
  jobs = expand(Sweep(base=sweep.base, design=sweep.design, cooldown=0))[:1]

  def busy(config, folder):
    raise PassingError('busy')

  monkeypatch.setattr(worker, 'train', busy)
  with pytest.raises(PassingError):
    worker.work(tmp_path, jobs, say=lambda text: None)
  assert list((tmp_path / 'rows').iterdir()) == []


def test_a_design_of_other_models_than_those_trained_is_refused(sweep, tmp_path):
  """Digits have ten classes: the head of the design's models is too large."""
  model = dataclasses.replace(SMALL, num_classes=11).resolve()
  cells = (design.Cell('grid', model, 16, 4),)
  jobs = expand(Sweep(base=sweep.base, design=design.Design(cells)))
  with pytest.raises(RunError, match='num_classes of the data'):
    worker.work(tmp_path, jobs, say=lambda text: None)


PROGRAM = """
import json, pathlib, sys
from experiments.sweeps import runs as runs_lib
from experiments.sweeps import worker
from experiments.sweeps.jobs import Sweep, described, expand
from tests.sweeps import rebuilt
folder, path, jobs = sys.argv[1:]
assert worker.work(pathlib.Path(folder), expand(rebuilt(path))[: int(jobs)], poll=0.2)
"""


def work(folder, path, fault='', jobs=8, workers=1):
  """Workers in processes of their own, which take the first jobs only."""
  env = {faults.VARIABLE: fault}
  command = runs.python('-c', PROGRAM, folder, path, jobs, devices=8, env=env)
  with runs.started(*[command] * workers) as processes:
    runs.finish(processes, -9 if fault else 0)


def test_what_a_killed_worker_has_begun_is_done_by_another(sweep, done, tmp_path):
  path, folder = tmp_path / 'config.json', tmp_path / 'shared'
  path.write_text(sweep.base.to_json())
  work(folder, path, 'kill before rename */result.json', jobs=2)
  jobs = expand(sweep)[:2]
  assert worker.work(folder, jobs, say=lambda text: None)
  got, want = record(folder), record(done)
  assert got.keys() == {f'{job.name}/{lane}' for job in jobs for lane in (0, 1)}
  assert all(same(got[name], want[name]) for name in got)


@pytest.mark.slow
def test_workers_share_a_sweep_and_survive_each_other(sweep, done, tmp_path):
  """Some are killed, then two go on at a time: the record is that of one worker."""
  path, folder = tmp_path / 'config.json', tmp_path / 'shared'
  path.write_text(sweep.base.to_json())
  for place in ('at step 3', 'in compile', 'before rename */result.json'):
    work(folder, path, f'kill {place}')
  work(folder, path, workers=2)
  got, want = record(folder), record(done)
  assert got.keys() == want.keys()
  assert all(same(got[name], want[name]) for name in want)
  assert not [p for p in (folder / 'rows').iterdir() if p.suffix != '.jsonl']


def test_the_command_shows(typed, tmp_path):
  """The committed sweep; nothing is trained."""
  study, to = ROOT / 'experiments' / 'scaling' / 'classification.py', f'--dir={tmp_path / "x"}'
  status, out, errors = typed('experiments.sweep', f'{study}:gpu', to, '--dry-run')
  assert status == 0, errors
  assert 'H200' in out
  assert 'left out: isoflop 1e+13' in out
  assert not (tmp_path / 'x').exists()
  assert typed('experiments.sweep', f'{study}:gpu', to, '--dry-rnu')[0] != 0
  _, _, errors = typed('experiments.sweep', f'{study}:gpuu', to, '--dry-run')
  assert errors.startswith('error: ')
  assert 'choose from cpu, noise, beyond, gpu, pod' in errors


def test_the_command_trains(typed, sweep, tmp_path, monkeypatch):
  """In this process, which is past joining others."""
  joined = []
  monkeypatch.setattr('vit_jax.launch.cluster.join', lambda *given: joined.append(given))
  path, study, folder = tmp_path / 'config.json', tmp_path / 'study.py', tmp_path / 'x'
  path.write_text(sweep.base.to_json())
  study.write_text(SWEEP)
  # As the engine 'local' starts one process of a worker.
  given = '--worker_number=3', '--coordinator=h:1', '--num_processes=2', '--process_id=0'
  status, _, errors = typed('experiments.sweep', f'{study}:{path}', f'--dir={folder}', *given)
  assert status == 0, errors
  assert joined == [('h:1', 2, 0)]
  rows = record(folder)
  assert [row['status'] for row in rows.values()] == ['finished'] * 2
  names = {row['run'] for row in rows.values()}
  taken = {file.name for file in (folder / 'workers' / '3' / 'taken').iterdir()}
  assert taken == names | {f'{name}.jsonl' for name in names}


SWEEP = """
import json
from experiments.sweeps.jobs import Sweep
from tests.sweeps import small
get_sweep = lambda path: small(path)
"""


@pytest.mark.slow
def test_the_command_measures_and_trains(sweep, tmp_path):
  path, study, folder = tmp_path / 'config.json', tmp_path / 'study.py', tmp_path / 'x'
  path.write_text(sweep.base.to_json())
  study.write_text(SWEEP)

  def run(*flags):
    words = '-m', 'experiments.sweep', f'{study}:{path}', f'--dir={folder}', '--calibrate', *flags
    return subprocess.run(**runs.python(*words, devices=8), capture_output=True)

  done = run()
  assert done.returncode == 0, done.stderr
  machine = cost.Machine.from_json((folder / 'machine.json').read_text())
  assert min(machine.seconds) >= 0 < machine.fixed
  rows = record(folder).values()
  assert [row['status'] for row in rows] == ['finished'] * 2
  for row in rows:  # on a machine that has other things to do as well
    assert 0.1 < row['seconds'] / row['predicted_seconds'] < 10
  elsewhere = run('--engine=slurm')
  assert 'leave --engine out' in elsewhere.stderr


@pytest.mark.parametrize(
  'study', [*(f'classification.py:{name}' for name in ('cpu', 'noise', 'beyond', 'gpu', 'pod')),
            'mae.py:cpu', 'mae.py:tiny'],
)  # fmt: skip
def test_committed_sweeps_expand(study):
  sweep = load(f'{ROOT}/experiments/scaling/{study}')
  jobs = expand(sweep)
  assert len({job.name for job in jobs}) == len(jobs)
  if not study.endswith(('noise', 'beyond', 'tiny')):
    assert len(sweep.design.cells) >= 40
    spread = [cell.flops for cell in sweep.design.cells]
    assert max(spread) / min(spread) > 10 ** (1.9 if study.startswith('mae') else 2.4)


def test_workers_are_jobs_of_the_engines(typed, tmp_path):
  study = f'{ROOT}/experiments/scaling/classification.py:pod'
  command = ('experiments.sweep', study, '--workers=2', '--name=pod')
  xpk = ('--engine=xpk', '--cluster=c', '--tpu_type=v5litepod-16', '--docker_image=i')
  status, out, err = typed(*command, '--dir=/shared/pod', *xpk)
  assert status == 0, err
  found = [line for line in out.splitlines() if line.startswith('xpk workload create')]
  assert ['--workload=pod-0' in found[0], '--workload=pod-1' in found[1]] == [True, True]
  assert 'python -m experiments.sweep' in found[1]
  assert '--dir=/shared/pod' in found[1]
  status, out, err = typed(*command, f'--dir={tmp_path}', '--engine=slurm', '--partition=p')
  assert status == 0, err
  assert out.count('#SBATCH --partition=p') == 2
  assert f'# {tmp_path}/workers/1/launch/job.sh:' in out
  assert list(tmp_path.iterdir()) == []
  status, _, err = typed(*command, '--dir=/shared/pod', '--engine=xpk')
  assert 'needs --cluster=NAME' in err


def test_a_worker_gets_on_by_rows_and_checkpoints_of_its_own(tmp_path, monkeypatch):
  monkeypatch.setattr(job_lib, 'pause', lambda _: None)
  job, other = launched(('python',), tmp_path, 'local', 2, {})
  assert [each.command[-1] for each in (job, other)] == ['--worker_number=0', '--worker_number=1']
  said = []
  vain = ', 1 without a new checkpoint'
  for path, more in (
    ('workers/0/launch', ''), ('workers/0/taken/a', vain), ('runs/a/checkpoints/4', ''),
    ('workers/0/taken/a.jsonl', ''), ('workers/1/taken/b.jsonl', vain),
  ):  # fmt: skip
    (tmp_path / path).mkdir(parents=True)
    job_lib.begin(job, said.append)
    assert said[-1] == f'attempt {len(said)}{more}'
  # What others do does not count.
  for path, count in (('runs/b/checkpoints/4', 2), ('rows/b.jsonl', 3)):
    (tmp_path / path).mkdir(parents=True)
    job_lib.begin(job, said.append)
    assert said[-1].endswith(f', {count} without a new checkpoint')
