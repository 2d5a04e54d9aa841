"""The report of a sweep finds the law behind its table, and says plainly what it does not know."""

import collections
import copy
import html.parser
import json
import pathlib
import re
import runpy
import sys
import xml.etree.ElementTree as ET

import cv2
import numpy as np
import pytest

from experiments.sweeps import analysis, laws, page, record, runs, target, words
from tests import sweeps
from vit_jax.core.errors import RunError
from vit_jax.costs import flops
from vit_jax.scaling import design
from vit_jax.scaling.advise import between
from vit_jax.scaling.cost import Machine

BUDGETS = design.budgets(1e9, 1e12, per_decade=2.67)
VOID = {'meta', 'br', 'link', 'img', 'input', 'hr'}


class Page(html.parser.HTMLParser):
  """Checks that tags are balanced; collects ids, links and text."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.ids, self.links, self.words = [], [], [], []
    self.tags = collections.Counter()
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attrs):
    if tag not in VOID:
      self.open.append(tag)
    self.note(tag, attrs)

  def handle_startendtag(self, tag, attrs):
    self.note(tag, attrs)

  def note(self, tag, attrs):
    self.tags[tag] += 1
    for name, value in attrs:
      if name == 'id':
        self.ids.append(value)
      if name in ('href', 'src', 'xlink:href', 'data', 'action'):
        self.links.append(value)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.words.append(data)

  @property
  def text(self):
    return ' '.join(self.words)


def strict(path):
  def refuse(name):
    raise AssertionError(f'{name} in JSON')

  return json.loads(path.read_text(), parse_constant=refuse)


def run(folder, *options):
  """The command, as from a shell; its exit status."""
  argv = [sys.argv[0], str(folder), *options]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', argv)
    with pytest.raises(SystemExit) as end:
      runpy.run_module('experiments.report', run_name='__main__')
  return end.value.code


@pytest.fixture(scope='module')
def table():
  return sweeps.rows(BUDGETS, noise=0.003)


@pytest.fixture(scope='module')
def made(table, tmp_path_factory):
  """A table with everything in it that can go wrong, and its report."""
  folder = tmp_path_factory.mktemp('sweep')
  rows = copy.deepcopy(table)
  last = rows[-1]
  gone = [row for row in rows if row['lr'] == 1e-2][:3]
  for row in gone:
    row |= {'status': 'diverged', 'test_loss': None, 'test_top1': None, 'diverged_at': 17}
  failed = {**last, 'id': 'oom/0', 'run': 'oom', 'status': 'failed', 'test_loss': None,
            'error': 'out of <memory>', 'steps': 77}  # fmt: skip
  bare = {'id': 'bare/0', 'run': 'bare', 'status': 'finished', 'test_loss': 0.1}
  no_loss = {**last, 'id': 'silent/0', 'steps': 78, 'test_loss': None}
  trunk = {**last, 'id': 'w8-trunk/0', 'run': 'w8-trunk', 'status': 'trunk', 'test_loss': None}
  stale = {**last, 'test_loss': 1e-3}  # the same id as a row below it
  sweeps.write(folder, [failed, stale, *rows, bare, no_loss, trunk])
  with (folder / 'table.jsonl').open('a') as file:
    file.write('[1, 2]\n{"id": "cut o')
  models = {design.name_of(model): model for model in sweeps.models()}
  machine = Machine('cpu', (0.0, 0.0, 2e-9, 0.0))
  (folder / 'machine.json').write_text(machine.to_json())
  assert run(folder, '--budget=1e12,1e13,1e15', f'--out={folder / "out"}') == 0
  found = strict(folder / 'out' / 'card.json')
  text = (folder / 'out' / 'report.html').read_text()
  assert cv2.imread(str(folder / 'out' / 'report.png')).std() > 10
  return dict(folder=folder, card=found, html=text, page=Page(text), models=models)


def test_the_law_is_recovered(made):
  card = made['card']
  law = card['joint']['law']
  for name in ('a', 'b', 'E'):
    low, high = law['ci'][name]
    assert low < sweeps.TRUTH[name] < high, name
    assert high - low < 0.4 * sweeps.TRUTH[name]
  # The best size by the true law, among many sizes, at each budget.
  family = between(sweeps.models(), beyond=3)
  n = np.array([flops.costs(model).parameters() for model in family], float)
  each = np.array([flops.train_flops(model) for model in family], float)
  grid = np.geomspace(3e9, 1e12, 12)
  best = [n[sweeps.loss(n, budget / each).argmin()] for budget in grid]
  slope = np.polyfit(np.log(grid), np.log(best), 1)[0]
  fitted = card['isoflop']['exponents']
  assert fitted['parameters']['params']['c'] == pytest.approx(slope, abs=0.03)
  both = sum(fitted[name]['params']['c'] for name in ('parameters', 'images'))
  assert both == pytest.approx(1, abs=0.02)


def test_the_largest_budget_is_predicted(made):
  held = made['card']['holdout']
  assert held['budget'] == pytest.approx(1e12, rel=0.01)
  assert held['factor'] == pytest.approx(10 ** (3 / 8), rel=0.02)
  assert held['passed'] is True
  assert held['inside'] >= held['runs'] - 1
  assert held['runs'] == 8
  assert held['rmse'] < 0.01
  assert 'inside.' in made['page'].text
  assert 'OUTSIDE' not in made['page'].text
  assert 'TOO NARROW' not in made['page'].text


def test_the_answers_come_first_and_are_right(made):
  near, far, furthest = made['card']['advice']
  for advice, budget in ((near, 1e12), (far, 1e13), (furthest, 1e15)):
    model = advice['model']
    like = design.resized(
      sweeps.models()[-1], head_dim=8, width=model['width'], depth=model['depth'],
      mlp_dim=model['mlp_dim'],
    )  # fmt: skip
    assert like.num_heads == model['num_heads']
    assert flops.costs(like).parameters() == advice['parameters']
    assert flops.train_flops(like) * advice['images'] == pytest.approx(budget, rel=1e-3)
    truth = sweeps.loss(advice['parameters'], advice['images'])
    assert advice['low'] < truth < advice['high']
    assert advice['low'] < advice['loss'] < advice['high']
    rate = advice['learning_rate']
    assert (rate['lr'], rate['tried'], rate['edge']) == (4e-3, 3, False)
    assert rate['at'] == pytest.approx(1e12, rel=0.01)
    said = (
      f'Learning rate 0.004, as for the best run of 1e12 FLOPs. Expect test loss '
      f'{advice["loss"]:.4g} at the best of 3 learning rates; 95% of such runs between '
      f'{advice["low"]:.4g}'
    )
    assert said in made['page'].text
  assert near['trusted']
  assert not furthest['trusted']
  text = made['page'].text
  assert text.index('Expect test loss') < text.index('Evidence')
  assert '1e15 FLOPs (1e+03 times' in text or '1e15 FLOPs (1000 times' in text
  assert 'Learning rate 0.004 was the best for' in text


def test_broken_rows_are_kept_and_counted(made, table):
  card = made['card']
  assert card['counts'] == {
    'diverged': 3, 'failed': 1, 'finished': len(table), 'trunk': 1
  }  # fmt: skip
  left = {reason: len(ids) for reason, ids in card['left_out'].items()}
  assert left.pop('not a JSON object') == 2
  assert left.pop('diverged') == 3
  assert left.pop('failed') == left.pop('no test_loss') == 1
  assert left.pop('trunk that others fork from') == 1
  assert left.pop('the same id comes again further down') == 1
  ((reason, count),) = left.items()
  assert reason.startswith('no width, depth')
  assert count == 1
  assert len(card['runs']) == len(table) + 5
  assert min(cell['test_loss'] for cell in card['cells']) > 0.4
  assert len(card['cells']) == len(table) / 3
  assert 'oom/0' in made['page'].text
  assert 'bare/0' in made['page'].text


def test_the_page_needs_nothing_else(made):
  found = made['page']
  assert found.tags['svg'] == 7
  assert found.tags['script'] == found.tags['img'] == found.tags['link'] == 0
  assert all(link.startswith(('#', 'data:image/png')) for link in found.links)
  ids = set(found.ids)
  assert len(ids) == len(found.ids)
  assert {link[1:] for link in found.links if link[0] == '#'} <= ids
  assert set(re.findall(r'url\(#([^)]*)\)', made['html'])) <= ids
  assert 'url(http' not in made['html']
  assert '<meta name="viewport"' in made['html']
  assert '@media print' in made['html']
  pictures = re.findall(r'<svg.*?</svg>', made['html'], re.S)
  for picture in pictures:
    root = ET.fromstring(picture)
    assert 'viewBox' in root.attrib
    assert 'width' not in root.attrib
    assert len(list(root.iter('{http://www.w3.org/2000/svg}text'))) > 5
  text = ' '.join(''.join(ET.fromstring(p).itertext()) for p in pictures)
  for label in ('training compute, FLOPs', 'test loss', 'learning rate', 'images seen', 'minimum'):
    assert label in text


def test_the_card_has_it_all(made):
  card = made['card']
  assert card['format'] == record.FORMAT
  assert card['flop_convention'] == flops.CONVENTION
  assert set(card['design']['shapes']) == set(made['models'])
  assert sum(card['design']['groups'].values()) == len(card['runs']) - 1 + 1
  assert card['design']['lanes']['lr'] == [1e-2, 1.6e-3, 4e-3]
  assert card['versions']['packages'] == [{'jax': '0.10.2'}]
  assert card['settings']['joint']['loss'] == 'huber'
  assert card['settings']['joint']['group'] == 'shape'
  assert card['joint']['law']['interval'] == 'bootstrap'
  assert card['frontier']['choice']['verdicts'].keys() >= {'power', 'power_floor'}
  assert card['frontier']['choice']['fit']['law'] == card['frontier']['choice']['law']
  topics = {item['topic'] for item in card['checklist']}
  assert topics == {'Counting', 'Runs', 'Training', 'Evaluation', 'Fit'}
  by_question = {item['question']: item for item in card['checklist']}
  unknown = [q for q, item in by_question.items() if not item['filled']]
  assert unknown == ['How often is data repeated?']
  assert 'fashion_mnist' in by_question['Trained on what?']['answer']
  assert '3 x diverged' in by_question['Which were left out of the fits, and why?']['answer']
  assert 'noise between seeds is not known' in str(by_question)
  assert 'chosen by test_loss itself' in str(by_question)
  times = card['times']
  assert len(times) > 50
  step = made['models'][card['design']['shapes'][0]]
  first = next(t for t in times if t['parameters'] == flops.costs(step).parameters())
  # 3 lanes at 2e-9 s a FLOP; the table has 1e-9 s a FLOP and a second.
  assert first['predicted'] == pytest.approx(6 * (first['measured'] - 1), rel=0.01)


def test_learning_rates(tmp_path):
  """Small models like 4e-3 best, the others another end of the rates."""
  rows = sweeps.rows([1e10, 1e11], noise=0)
  for row in rows:
    if row['width'] >= 32:
      row['test_loss'] *= np.exp(-0.1 * np.log(row['lr'] / 4e-3))
  rows.append({**rows[-1], 'id': 'x/9', 'lr': 3e-2, 'status': 'diverged', 'test_loss': None})
  found = runs.read(sweeps.write(tmp_path, rows))
  for tuned in found.tuning:
    wide = tuned.width >= 32
    assert tuned.best == (1e-2 if wide else 4e-3)
    last = (tuned.shape, tuned.images) == (design.named(rows[-1]), rows[-1]['images'])
    # Beyond the best rate of one of them everything diverges: that is no end of what was tried.
    assert tuned.edge == (wide and not last)
    assert tuned.star == pytest.approx(tuned.best, rel=1e-6)
  moved = analysis.transfer(found)
  wide = sum(t.width >= 32 for t in found.tuning)
  assert moved['cells'] == len(found.tuning) - 2
  assert moved['same'] == pytest.approx(1 - wide / moved['cells'])
  # From 4e-3 to 1e-2 the loss falls by this much.
  rise = np.exp(0.1 * np.log(2.5) - 0.05 * np.log(2.5) ** 2) - 1
  assert moved['worst'] == pytest.approx(rise, rel=1e-6)


def test_any_number_is_a_target(table, tmp_path):
  """A share of what is right is judged by its error, data may be counted in tokens."""
  folder = sweeps.write(tmp_path, table)  # in which top1 is 1 - loss / 3, and an image 16 tokens
  assert run(folder, '--y=test/top1', '--data=tokens', '--budget=1e12') == 0
  card = strict(folder / 'card.json')
  assert card['target'] == {'column': 'test_top1', 'rises': True, 'best': 1.0}
  law, truth = card['joint']['law'], sweeps.TRUTH
  for name, value in dict(
    a=truth['a'], b=truth['b'], E=truth['E'] / 3, A=truth['A'] / 3,
    B=truth['B'] / 3 * 16 ** truth['b'],
  ).items():  # fmt: skip
    low, high = law['ci'][name]
    assert low < value < high, name
  (advice,) = card['advice']
  assert advice['tokens'] == 16 * advice['images']
  assert card['holdout']['passed']
  text = Page((folder / 'report.html').read_text()).text
  said = (
    f'Expect 1 - test top1 {advice["loss"]:.4g} (test top1 {1 - advice["loss"]:.4g}) at the best'
  )
  assert said in text
  assert f'images, {words.number(advice["tokens"])} tokens. Learning rate' in text
  assert '1 - test top1 against compute' in text
  assert 'tokens seen' in text
  plain = runs.read(folder).cells
  np.testing.assert_allclose(runs.read(folder, 'test/top1').cells['1 - test_top1'],
                             plain['test_loss'] / 3)  # fmt: skip


@pytest.mark.parametrize(
  ('options', 'name', 'value'),
  [
    (dict(column='test/loss'), 'test_loss', 0.7),
    (dict(column='few_top1_5'), '1 - few_top1_5', 0.3),
    (dict(column='psnr', better='high', best=40.0), '40 - psnr', 39.3),
    (dict(column='nll', better='low', best=-3.0), 'nll + 3', 3.7),
    (dict(column='top1', best=100.0), '100 - top1', 99.3),
  ],
)  # fmt: skip
def test_what_laws_are_fitted_to(options, name, value):
  got = target.target(**options)
  assert got.name == name
  assert got.of(0.7) == pytest.approx(value)
  assert got.back(got.of(0.7)) == pytest.approx(0.7)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (dict(column='psnr'), 'which numbers are better is not known'),
    (dict(column='psnr', better='high'), 'how far it is from the best'),
    (dict(column='test_loss', better='hihg'), 'did you mean high'),
  ],
)
def test_targets_of_which_too_little_is_known(options, message):
  with pytest.raises(RunError, match=message):
    target.target(**options)


def test_what_is_close_where_most_is_a_floor():
  """Of the loss of pixels, that falls by 12% in all, a tenth of itself says nothing."""
  cells = {'loss': np.array([0.45, 0.42, 0.40])}
  assert laws.tolerance_of(cells, 'loss') == pytest.approx((0.45 / 0.4) ** 0.1 - 1)
  assert laws.tolerance_of({'loss': np.array([1.5, 0.4])}, 'loss') == 0.1


def test_the_best_of_all_hyperparameters_is_taken(tmp_path):
  rows = sweeps.rows([1e10, 1e11], noise=0, rates=(4e-3,))
  other = [{**row, 'id': f'{row["id"]}x', 'test_loss': 0.9 * row['test_loss']} for row in rows]
  for part, value in ((rows, 0.1), (other, 0.2)):
    for row in part:
      row |= {'varied': ['lr', 'task.temperature'], 'task.temperature': value}
  found = runs.read(sweeps.write(tmp_path, rows + other))
  assert found.repeated == 0  # they are no seeds of each other
  assert set(found.cells['task.temperature']) == {0.2}
  for row in other:  # what makes a step dearer is no better at equal compute
    row['flops'] *= 2
  dearer = runs.read(sweeps.write(tmp_path, rows + other))
  assert dearer.cells.rows == 2 * found.cells.rows


def test_seeds_are_averaged_and_give_the_noise(tmp_path):
  rows = sweeps.rows([1e10, 1e11], noise=0.02, seeds=range(6))
  found = runs.read(sweeps.write(tmp_path, rows))
  assert found.noise == pytest.approx(0.02, rel=0.1)
  assert found.repeated == 3 * found.cells.rows
  assert (found.cells['seeds'] == 6).all()
  truth = sweeps.loss(found.cells['parameters'], found.cells['images'])
  assert np.std(np.log(found.cells['test_loss'] / truth)) < 0.02
  several = dict(zip(found.cells['shape'], found.cells['lr'], strict=True))
  assert set(several.values()) <= set(sweeps.RATES)


def test_a_law_that_fails_is_said_to_fail(table, tmp_path):
  rows = copy.deepcopy(table)
  for row in rows:
    row['test_loss'] *= 1.15 if row['group'] == 'isoflop 1e+12' else 1
  found = analysis.analyse(sweeps.write(tmp_path, rows), budgets=[1e12])
  assert not found.holdout.passed
  assert found.holdout.inside == 0
  assert found.holdout.observed > found.holdout.high
  said = '\n'.join(words.trust(found))
  assert 'OUTSIDE' in said
  assert 'TOO NARROW' in said
  assert 'Do not extrapolate chinchilla' in said
  assert found.reach == 1
  assert [advice.trusted for advice in found.advice] == [False]


@pytest.mark.parametrize(
  ('loss', 'said'),
  [(lambda row: 2.3, 'is the same in all rows'), (lambda row: row['flops'] ** 0.1, 'grows with')],
)
def test_a_sweep_without_a_law(tmp_path, loss, said, capsys):
  """A loss that does not depend on anything, or that grows: no advice that sounds sure."""
  rows = sweeps.rows(BUDGETS[:4], rates=(4e-3,))
  for row in rows:
    row['test_loss'] = loss(row)
  assert run(sweeps.write(tmp_path, rows)) == 0
  answers = capsys.readouterr().out.splitlines()[:-1]
  assert len(answers) == 3
  for answer in answers:
    assert f'Do not rely on it: {"test_loss " if "same" in said else ""}' in answer
    assert said in answer
    assert 'inf' not in answer
  card = json.loads((tmp_path / 'card.json').read_text())
  assert said in card['frontier']['choice']['sentence']
  assert said in card['missing']['holdout']


def test_advice_without_a_law_in_size_and_images(table, tmp_path):
  """Where half of the shapes are worse than their size says, the best sizes still tell."""
  rows = copy.deepcopy(table)
  for row in rows:
    row['test_loss'] *= 1.3 if row['depth'] == 1 else 1
  found = analysis.analyse(sweeps.write(tmp_path, rows), budgets=[1e12])
  (advice,) = found.advice
  assert advice.method == 'optima'
  assert advice.trusted
  family = between(list(found.models.values()))
  losses = [sweeps.loss(flops.costs(m).parameters(), 1e12 / flops.train_flops(m)) for m in family]
  truth = losses[family.index(advice.model)]
  assert truth < 1.01 * min(losses)
  assert advice.low < truth < advice.high
  assert 'from the best sizes at equal compute' in words.answers(found)[0]


def test_data_that_would_be_repeated_more_than_ever(tmp_path):
  rows = sweeps.rows(BUDGETS, rates=(4e-3,), noise=0.001)
  largest = max(row['parameters'] for row in rows)
  examples = max(row['images'] for row in rows if row['parameters'] == largest) / 2
  for row in rows:  # of the others it is not known
    row['epochs'] = row['images'] / examples if row['parameters'] == largest else None
  found = analysis.analyse(sweeps.write(tmp_path, rows), budgets=[1e10, 1e12])
  low, high = found.advice
  assert low.trusted
  assert low.images < 3 * examples < high.images
  assert not high.trusted
  said = f'would be seen {high.images / examples:.3g} times, and were seen 2 times at most'
  assert said in high.reason


def few(rows, *, shapes=99, budgets=99):
  names = list(dict.fromkeys((row['width'], row['depth']) for row in rows))[:shapes]
  groups = list(dict.fromkeys(row['group'] for row in rows))[-budgets:]
  return [r for r in rows if (r['width'], r['depth']) in names and r['group'] in groups]


@pytest.mark.parametrize(
  ('shapes', 'budgets', 'rates', 'figures', 'missing'),
  [
    (1, 1, 1, 1, {'frontier', 'isoflop', 'joint', 'holdout', 'advice'}),
    (99, 1, 3, 4, {'frontier', 'joint', 'exponents', 'holdout', 'advice'}),
    (2, 4, 3, 3, {'isoflop', 'joint', 'advice'}),
    (4, 3, 1, 3, set()),
    (3, 99, 1, 3, set()),
  ],
)
def test_small_tables_give_what_they_can(tmp_path, shapes, budgets, rates, figures, missing):
  rows = sweeps.rows(
    design.budgets(3e10, 3e11, per_decade=4), rates=sweeps.RATES[:rates], noise=0.001
  )
  folder = sweeps.write(tmp_path, few(rows, shapes=shapes, budgets=budgets))
  found = analysis.analyse(folder)
  card = record.card(found, folder)
  assert missing <= found.missing.keys()
  text = Page(page.render(found, card))
  assert text.tags['svg'] >= figures
  for part in missing & {'frontier', 'joint', 'advice'}:
    assert found.missing[part].partition(':')[0] in text.text
  if 'advice' in missing:
    assert 'There is no advice on what to train' in words.answers(found)[0]
  json.dumps(card, allow_nan=False)


def test_durations_without_budgets_have_a_frontier(tmp_path):
  """A grid of shapes and durations shares no compute."""
  rows = []
  for row in sweeps.rows(design.budgets(1e10, 1e11, per_decade=2), rates=(4e-3,), noise=0.001):
    for steps in (100, 1000, 10000):
      images = 32 * steps
      same = {**row, 'id': f'{row["run"]}-{steps}', 'group': 'grid', 'steps': steps,
              'images': images, 'flops': row['flops'] // row['images'] * images,
              'test_loss': sweeps.loss(row['parameters'], images)}  # fmt: skip
      rows.append(same)
  rows = list({(r['width'], r['depth'], r['steps']): r for r in rows}.values())
  found = analysis.analyse(sweeps.write(tmp_path, rows))
  assert found.missing['isoflop'] == 'no budget is shared by three sizes'
  assert (np.diff(found.frontier['test_loss']) < 0).all()
  assert found.choice is not None
  assert found.joint is not None
  assert len(found.advice) == 3


def test_models_that_are_not_those_of_the_table(tmp_path):
  rows = sweeps.rows([1e10, 1e11], rates=(4e-3,))
  folder = sweeps.write(tmp_path, rows)
  path = folder / 'runs' / rows[0]['run'] / 'config.json'
  config = json.loads(path.read_text())
  config['model']['depth'] += 1
  path.write_text(json.dumps(config))
  with pytest.raises(RunError, match=r'its configuration has .* the table'):
    runs.architectures(folder, runs.read(folder))
  path.unlink()
  with pytest.raises(RunError, match='is not there'):
    runs.architectures(folder, runs.read(folder))


def test_what_people_get_wrong(tmp_path, capsys, monkeypatch):
  assert run(tmp_path / 'nothing') == 1
  assert 'table.jsonl: cannot be read' in capsys.readouterr().err
  folder = sweeps.write(tmp_path / 'sweep', few(sweeps.rows([1e10]), shapes=1))
  for option, message in (
    ('--budget=much', 'write FLOPs'), ('--budget=-1', 'positive'),
    ('--colour=red', 'unknown argument --colour'), ('--y=tset_loss', 'did you mean test_loss'),
  ):  # fmt: skip
    assert run(folder, option) == 1
    assert message in capsys.readouterr().err
  assert not (folder / 'report.html').exists()
  rows = [{**row, 'status': 'failed'} for row in sweeps.rows([1e10])]
  assert run(sweeps.write(tmp_path / 'failed', rows)) == 1
  assert 'is a finished run' in capsys.readouterr().err
  for name in ('matplotlib', 'experiments.sweeps.plots', 'experiments.sweeps.page'):
    monkeypatch.setitem(sys.modules, name, None if name == 'matplotlib' else sys.modules[name])
    if name != 'matplotlib':
      monkeypatch.delitem(sys.modules, name)
      monkeypatch.delattr(f'experiments.sweeps.{name.rpartition(".")[2]}')
  assert run(folder) == 1
  assert 'pip install matplotlib' in capsys.readouterr().err


def test_numbers_for_people():
  said = [words.number(value) for value in (5.62e11, 46_761, 1_011_746, 12, 5.6e13, 999_999)]
  assert said == ['5.62e11', '46.8 thousand', '1.01 million', '12', '5.6e13', '1 million']


def test_the_report_knows_no_machine():
  """Nothing of JAX is needed to read a table."""
  for name in ('analysis', 'laws', 'runs', 'plots', 'page', 'words', 'record', 'checklist'):
    text = pathlib.Path(f'experiments/sweeps/{name}.py').read_text()
    assert not re.search(r'^(import|from) (jax|flax)', text, re.M)
