"""Benchmarks say what is wrong, time what is right, and leave what the project reads."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dinov2
from experiments.augmentation import recipes as augmentations
from experiments.benchmarks import (
  assignment,
  attention,
  masked,
  memory,
  plan,
  recipes,
  report,
  timing,
  train_step,
)
from experiments.benchmarks import compile as compile_
from vit_jax.core import schema
from vit_jax.costs import flops
from vit_jax.costs.step import step
from vit_jax.models.vit import ViTConfig
from vit_jax.nn.kernels import choice, heads
from vit_jax.training import config as config_lib


@pytest.fixture
def results():
  """Checks that nothing is written where the results of the project are."""
  before = {path: path.stat().st_mtime for path in report.RESULTS.iterdir()}
  yield
  assert {path: path.stat().st_mtime for path in report.RESULTS.iterdir()} == before


def plain(p):
  return p.queries == p.keys == 50 and not (p.bias or p.masks)


def wrong(q, k, v, bias, mask, *, num_heads, cap, length):
  return heads.attention(q, k, 1.01 * v, bias, mask, num_heads=num_heads, cap=cap)


def wrong_gradient(q, k, v, bias, mask, *, num_heads, cap, length):
  k = jax.lax.stop_gradient(k)
  return heads.attention(q, k, v, bias, mask, num_heads=num_heads, cap=cap)


def no_number(q, k, v, bias, mask, *, num_heads, cap, length):
  """Right but for the first example."""
  y = heads.attention(q, k, v, bias, mask, num_heads=num_heads, cap=cap)
  return y.at[0, 0, 0].set(jnp.nan)


def impossible(*args, **kwargs):
  raise ValueError('not for such heads\nand more')


@pytest.mark.slow
def test_attention(tmp_path, monkeypatch, results):
  other = dict(device='TPU v4', dtype='bfloat16', bias='', masks=[], cap=False, tokens=50,
               head_dim=64, ms={'short': 1.0})  # fmt: skip
  stale = {**other, 'device': 'cpu', 'dtype': 'float32', 'ms': {'xla': 1e-9}}
  table = tmp_path / 'measured.json'
  table.write_text(json.dumps({'rows': [other, stale]}))
  monkeypatch.setattr(choice, 'TABLE', table)
  broken = {
    wrong: 'y is wrong by 1.0e-02', wrong_gradient: 'dk is wrong by', no_number: 'y is not finite',
    impossible: 'ValueError: not for such heads',
  }  # fmt: skip
  for function in broken:
    way = choice.Implementation(plain, function)
    monkeypatch.setitem(choice.IMPLEMENTATIONS, function.__name__, way)
  rows = attention.main(['--quick', f'--folder={tmp_path}', '--write-table'])
  record = json.loads((tmp_path / 'attention-cpu.json').read_text())
  assert record['rows'] == rows
  assert record['command'].startswith('python -m experiments.benchmarks.attention')

  found = {}
  for row in rows:
    found.setdefault((row['case'], row['tokens']), {})[row['implementation']] = row
  assert found.keys() == {
    ('plain', 50), ('plain', 197), ('bias', 50), ('pooling', 50),
    *((mask, 50) for mask in attention.MASKS),
  }  # fmt: skip
  for case in found.values():
    for name in ('chunked', 'heads', 'xla'):
      row = case[name]
      assert row['status'] == 'right'
      assert 0 < row['error'] < 2e-5
      assert row['forward ms'] > 0
      assert row['both x xla'] == pytest.approx(case['xla']['both ms'] / row['both ms'])
  row = found['plain', 197]['heads']
  work = 3 * 4 * row['batch'] * attention.QUICK.heads * 197**2 * 64
  assert row['both TFLOP/s'] == pytest.approx(work / row['both ms'] / 1e9)
  for function, status in broken.items():
    row = found['plain', 50][function.__name__]
    assert status in row['status']
    assert row['forward ms'] is row['both ms'] is None

  written = json.loads(table.read_text())['rows']
  assert other in written
  assert len(written) == 1 + 3 + len(attention.MASKS)  # pooling is not in the table
  choice._table.cache_clear()
  try:
    for row in written[1:]:
      assert row['ms'].keys() == {'chunked', 'heads', 'xla'}
      problem = choice.Problem(
        'cpu', 'cpu', 'float32', row['tokens'], row['tokens'], 64, row['bias'], tuple(row['masks'])
      )
      assert choice.choose(problem) == min(row['ms'], key=row['ms'].get)
  finally:
    choice._table.cache_clear()


def test_the_full_table_covers_what_it_says():
  cases = attention.cases(attention.LENGTHS, attention.WIDTHS, attention.SPECIAL)
  assert len(set(cases)) == len(cases) == 11 * 7 + (2 + len(attention.MASKS)) * 5
  for case in cases:
    batch = attention.ACCELERATOR.batch(case)
    assert batch >= 2
    assert 4 * batch * case.queries * case.keys <= max(2**26, 8 * 4097**2)


@pytest.mark.parametrize('what', ['train', 'infer'])
def test_train_step(what, tmp_path, results):
  inference = ['--inference', '--ways=scanned/none'] * (what == 'infer')
  rows = train_step.main(['--quick', '--peers=', f'--folder={tmp_path}', *inference])
  (path,) = tmp_path.glob('*.json')
  assert path.stem == 'train_step-cpu' + '-inference' * (what == 'infer')
  record = json.loads(path.read_text())
  assert record['rows'] == rows
  assert record['command'].startswith('python -m experiments.benchmarks.train_step')
  assert len(rows) == (2 if what == 'train' else 1)
  config = ViTConfig(
    'Ti/16', image_size=(32, 32), depth=2, pool='mean', posemb='sincos', num_classes=1000
  ).resolve()
  work = 2 * flops.forward_macs(config) * (3 if what == 'train' else 1)
  for row in rows:
    assert row['status'] == 'right'
    assert row['off by'] < 1e-4
    assert row['img/s'] == pytest.approx(4e3 / row['ms'])
    assert row['TFLOP/s'] == pytest.approx(work * row['img/s'] / 1e12)
    assert row['GiB'] > 0
    assert row['compile s'] > 0
  for losses in record['first losses'].values():
    assert len(losses) == train_step.STEPS
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 100 * train_step.TOLERANCE['train']['float32']
  assert len(record['first losses']) == (2 if what == 'train' else 0)


class Fake:
  """A contestant with given losses."""

  config = ViTConfig('Ti/16', num_classes=1000).resolve()

  def __init__(self, losses):
    self.losses = [*losses]

  def timed(self, what):
    return timing.Timed(lambda: jnp.float32(self.losses.pop(0)), jax.block_until_ready)


@pytest.mark.slow
def test_the_judge():
  judge = train_step.Judge(rounds=3, least=0.0)
  race = train_step.Race('Ti/16', 32, 4, 'train', 'float32', 2)
  falling = [7.0, 6.9, 6.8, 6.7, 6.6]

  def no_memory():
    raise RuntimeError('INTERNAL: while running\nRESOURCE_EXHAUSTED: 3 TiB')

  judge.try_out(race, 'first', lambda: Fake(falling + [6.5] * 99))
  judge.try_out(race, 'equal', lambda: Fake([x + 1e-4 for x in falling] + [6.5] * 99))
  judge.try_out(race, 'other', lambda: Fake([7.0, 6.9, 6.8, 6.8, 6.8]))
  judge.try_out(race, 'no number', lambda: Fake([7.0, 6.9, 6.8, 6.7, jnp.nan]))
  judge.try_out(race, 'too large', no_memory)
  status = {row['contestant']: row['status'] for row in judge.rows}
  assert status['first'] == status['equal'] == 'right'
  assert 'another result than first: off by 2.9e-02' in status['other']
  assert 'another result than first' in status['no number']
  assert status['too large'] == 'out of memory'
  assert [row['ms'] is None for row in judge.rows] == [False, False, True, True, True]


def test_calls_fill_the_time_that_is_asked_for(monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(timing.time, 'perf_counter', lambda: clock[0])

  def contestant(seconds, first):
    queue = []

    def run():
      queue.append(seconds if contestant.calls[seconds] else first)
      contestant.calls[seconds] += 1

    def wait(_):
      clock[0] += sum(queue)
      queue.clear()

    return timing.Timed(run, wait)

  contestant.calls = {0.25: 0, 2.0: 0}
  got = timing.measure({'fast': contestant(0.25, 30.0), 'slow': contestant(2.0, 60.0)},
                       rounds=3, least=1.0)  # fmt: skip
  assert got == {'fast': [0.25] * 3, 'slow': [2.0] * 3}
  # One to warm up; one, two and four to find the number; four in each round.
  assert contestant.calls == {0.25: 1 + 7 + 12, 2.0: 1 + 1 + 3}


def test_memory_of_attention_is_linear_where_scores_are_not_kept():
  """The statement of the report, from programs that are as long as those there."""
  device, sizes = jax.devices('cpu')[0], (1024, 2048, 4096)
  grows = lambda name: memory.exponent(  # noqa: E731
    sizes, [memory.attention_bytes(name, n, device, jnp.float32) for n in sizes]
  )
  assert grows('chunked') < 1.1
  assert grows('xla') > 1.9


def test_full_recomputation_keeps_the_inputs_of_layers():
  depths = (2, 4)
  one = memory.BATCH * memory.PATCHES * memory.WIDTH * 4
  slopes = {
    policy: memory.slope(depths, [memory.model_bytes(depth, policy) for depth in depths]) / one
    for policy in memory.POLICIES
  }
  assert slopes['full'] == pytest.approx(1, abs=0.1)
  assert slopes['none'] > slopes['names'] + 2 > slopes['full'] + 4


@pytest.mark.slow
def test_a_second_start_finds_its_programs(tmp_path):
  first, second = (compile_.measure('vit_jax, scanned', 'Ti/16', 2, tmp_path) for _ in range(2))
  assert first.keys() == second.keys() == set(compile_.PHASES)
  assert any((tmp_path / 'programs').iterdir())
  assert second['compile s'] < first['compile s'] / 2


PAGES = report.RESULTS.parents[2] / 'docs' / 'how-to'


def test_the_page_on_plans_has_the_numbers_of_the_results():
  of = {(r['slice'], r['model'], r['way']): r
        for r in json.loads((report.RESULTS / 'plan.json').read_text())['rows']}  # fmt: skip
  page = (PAGES / 'plan-a-run.md').read_text()
  lines = [line for line in page.splitlines() if re.match(r'\| v\d\w+:\S+ ', line)]
  assert len(lines) == 6
  for line in lines:
    case, images, ms, mfu, memory, *peers = (cell.strip() for cell in line.split('|')[1:-1])
    case, _, way = case.partition(', ')
    row = of[*case.split(), way or 'unrolled, mesh=fsdp']
    assert int(images) == row['images per chip']
    assert (ms, mfu, memory) == (
      f'{row["ms"]:.1f} ms', f'{row["MFU %"]:.1f} %', f'{row["GiB"]:.1f} GiB'
    )  # fmt: skip
    if any(peers):
      rows = [of[*case.split(), f'linen, {way}'] for way in ('unrolled', 'scanned')]
      assert peers == [f'{r["ms"]:.1f} ms, {r["GiB"]:.1f} GiB' for r in rows]
      assert row['GiB'] <= rows[0]['GiB']
      assert row['ms'] < rows[0]['ms']


def test_the_page_on_plans_has_the_recipes_for_pods():
  rows = json.loads((report.RESULTS / 'plan.json').read_text())['rows']
  found = re.findall(r'^\| (\S+/14) \|(.*)\|$', (PAGES / 'plan-a-run.md').read_text(), re.M)
  recipes = [r for r in rows if r['way'] == plan.RECIPE]
  for row, (model, line) in zip(recipes, found, strict=True):
    assert model == row['model']
    assert [cell.strip() for cell in line.split('|')] == plan.cells(row)


def test_the_page_on_recipes_has_the_numbers_of_the_results():
  results = json.loads((report.RESULTS / 'recipes.json').read_text())['rows']
  page = (PAGES / 'recipes.md').read_text()
  lines = re.findall(r'^\| (`configs/.*?\| v\d\w+:.*) \|$', page, re.M)
  assert [[cell.strip() for cell in line.split('|')] for line in lines] == [
    recipes.cells(row) for row in results
  ]
  for name, price in recipes.PRICES.items():
    assert re.search(rf'{price:.2f} \$ [^.]*{name}', ' '.join(page.split()))


@pytest.mark.slow
def test_masked(tmp_path, results):
  """Three training steps of two layers; FLOPs are six for each of their multiply-adds."""
  rows = masked.main(['--quick', f'--folder={tmp_path}'])
  record = json.loads((tmp_path / 'masked.json').read_text())
  assert record['rows'] == rows
  blocks = lambda n, width: n * (12 * width**2 + 2 * n * width)  # noqa: E731
  pixels = 16 * 16 * 16 * 3  # of 16 patches
  decoder = 16 * 192 * 512 + blocks(17, 512) + 512 * pixels
  want = [2 * blocks(n, 192) + 192 * pixels + decoder for n in (16, 5)]
  want.append(2 * blocks(17, 192) + 2 * 192 * pixels)
  for row, macs, tokens in zip(rows, want, (16, 5, 17), strict=True):
    assert row['tokens'] == tokens
    assert row['GFLOP'] == pytest.approx(6e-9 * macs)
    assert row['FLOPs, x'] == pytest.approx(rows[0]['GFLOP'] / row['GFLOP'])
    assert row['ms'] > 0
    for name in ('x', 'CPU, x'):
      assert row[f'{name}, low'] <= row[name] <= row[f'{name}, high']
  assert rows[2]['of the decoder'] == 0
  assert 0.5 < rows[0]['of the decoder'] < rows[1]['of the decoder'] < 0.9


@pytest.mark.slow
def test_assignment(tmp_path, results):
  rows = assignment.main(['--quick', f'--folder={tmp_path}'])
  assert json.loads((tmp_path / 'assignment.json').read_text())['rows'] == rows
  assert len(rows) == 2 * len(assignment.CONTESTANTS)
  assert all(row['ms'] > 0 for row in rows)
  assert {row['contestant'] for row in rows if row['status'] != 'right'} <= {'greedy, vmap'}
  assert assignment.Race.parse('48,100,300,20,trained') == (48, 100, 300, 20, True)


def test_what_is_wrong_with_an_assignment():
  """By hand: the diagonal costs 2, the other one 1; the third row is padding."""
  cost, there = np.array([[[1, 0.5], [0.5, 1], [9, 9]]]), np.array([[True, True, False]])
  wrong = [[0, 0, -1], [0, -1, 1]]
  assert [assignment.excess(cost, there, np.array([p])) for p in wrong] == [np.inf, np.inf]
  for places, more in (([1, 0, -1], 0), ([0, 1, -1], 1)):
    assert assignment.excess(cost, there, np.array([places])) == more


def test_the_assignment_that_is_used_is_the_best_where_targets_are_padded():
  """What `nn.assignment` says of itself, by the committed results."""
  rows = json.loads((report.RESULTS / 'assignment.json').read_text())['rows']
  races = {}
  for row in rows:
    key = tuple(row[name] for name in ('problems', 'targets', 'queries', 'real', 'trained'))
    races.setdefault(key, {})[row['contestant']] = row
  assert len(races) == len(assignment.RACES)
  for (_, targets, _, real, _), of in races.items():
    assert all(row['status'] == 'right' for name, row in of.items() if 'greedy' not in name)
    if real < targets:
      assert 10 * of['ours, vmap']['ms'] < of['optax, vmap']['ms']
  assert any(row['status'] == 'not the least' for row in rows)


def test_ratios_of_pairs():
  """Student's interval of the logarithm: of four rounds 3.182 standard errors."""
  own = np.array([1.0, 2.0, 4.0, 1.0])
  mean, low, high = masked.ratio(own * np.exp([0.9, 1.1, 0.9, 1.1]), own)
  half = 3.18245 * np.std([0.9, 1.1, 0.9, 1.1], ddof=1) / 2
  np.testing.assert_allclose([mean, low, high], np.exp([1, 1 - half, 1 + half]), rtol=1e-5)


def test_the_page_on_training_without_labels_has_the_numbers_of_the_results():
  rows = json.loads((report.RESULTS / 'masked.json').read_text())['rows']
  of = {(row['encoder'], row['step']): row for row in rows}
  page = ' '.join((PAGES / 'pretrain-without-labels.md').read_text().split())
  for encoder, decoder in (('S/16', 'one block'), ('B/16', 'eight as published')):
    row, other = (of[encoder, step] for step in (masked.QUARTER, masked.SIMMIM))
    low, high = (f'{row[f"x, {end}"]:.2f}' for end in ('low', 'high'))
    cells = f'{row["FLOPs, x"]:.2f} | {row["x"]:.2f}, {low} to {high} | {row["CPU, x"]:.2f}'
    share = f'{100 * row["of the decoder"]:.0f} %'
    assert f'| {encoder}, {decoder} | {share} | {cells} | {row["x"] / other["x"]:.2f} |' in page
  # Logits of half of the patches of two views: the teacher's four times more, the student's once.
  record = config_lib.to_dict(dinov2.get_config('L/14,22k'))
  cfg = schema.build(config_lib.Config, record)
  more = 5 * 2 * (2 * 128) * 256 * 131_072 / step(cfg.task.passes(cfg.model.resolve()))
  assert f'at most another {100 * more:.0f} % of the FLOPs' in page


def test_the_page_on_cpus_has_the_numbers_of_the_results():
  of = {(r['work'], r['model']): r['x timm']
        for r in json.loads((report.RESULTS / 'cpu.json').read_text())['rows']}  # fmt: skip
  page = (PAGES / 'cpu.md').read_text()
  for work in ('training step', 'inference'):
    plain, fast = (of[work, f'vit_jax, scanned{end}'] for end in ('', ', oneDNN'))
    assert f'| {work} | {plain:.2g} | {fast:.2g} |' in page


def test_the_page_on_large_data_sets_has_the_numbers_of_the_results():
  results = json.loads((report.RESULTS / 'loader.json').read_text())
  of = {row['loader']: row['images per CPU-second'] for row in results['rows']}
  page = ' '.join((PAGES / 'large-data-sets.md').read_text().split())
  found = re.findall(r'\| ([^|]+) \| ([\d,]+) \|', page)
  assert len(found) == 7
  for loader, images in found:
    assert images == f'{of[loader]:,.0f}'
  space = results['kilobytes']['packed bmp'] / results['kilobytes']['packed jpg']
  assert round(space) == 9
  assert 3.5 < of['vit_jax, packed BMP'] / of['vit_jax, packed JPEG'] < 4
  assert f'waited for {100 * results["waiting"]:.1f} % of it' in page


def test_the_page_on_augmentation_has_the_numbers_of_the_results():
  results = json.loads((report.RESULTS / 'augment.json').read_text())
  page = (PAGES / 'augmentation.md').read_text()
  head = '| recipe | images per CPU-second | ' + ' | '.join(f'cores, {c}' for c in results['rates'])
  assert f'{head} |' in page
  lines = page.partition(f'{head} |')[2].splitlines()[2:]
  assert {row['recipe'] for row in results['rows']} >= {*augmentations.RECIPES}
  for row, line in zip(results['rows'], lines, strict=False):
    cores = ' | '.join(f'{row[f"cores, {chip}"]:.1f}' for chip in results['rates'])
    assert line == f'| {row["recipe"]} | {row["images per CPU-second"]:,.0f} | {cores} |'


def test_the_page_on_checkpoints_has_the_numbers_of_the_results():
  rows = json.loads((report.RESULTS / 'loading.json').read_text())['rows']
  of = {(r['model'], r['from'], r['processes']): r for r in rows if r['code'] == 'this'}
  page = (PAGES.parent / 'explanation' / 'checkpoints.md').read_text()
  lines = [line for line in page.splitlines() if re.match(r'\| (B/16|22B/14)', line)]
  assert len(lines) == len(of) == 5
  for line in lines:
    model, source, processes, share, growth = (cell.strip() for cell in line.split('|')[1:-1])
    row = of[model, source, int(processes)]
    assert (share, growth) == (f'{row["held_mib"]:,.0f}', f'{row["peak_mib"]:,.0f}')
    assert row['peak_mib'] < 1.05 * row['held_mib'] + 2000


def test_the_targets_of_training_steps():
  rows = json.loads((report.RESULTS / 'plan.json').read_text())['rows']
  of = {(r['slice'], r['model'], r['way']): r for r in rows}
  for model, least in {'S/16': 35, 'B/16': 50, 'L/16': 65}.items():
    assert of['v5e:2x2', model, 'unrolled, mesh=fsdp']['MFU %'] >= least
  trillium = [of['v6e:2x2', 'B/16', way]['Mcycles'] for way in (
    'unrolled, mesh=fsdp', 'linen, unrolled')]  # fmt: skip
  assert 2 * trillium[0] <= trillium[1]
