"""The page of a run says what is in its directory, whatever is there, and needs nothing else."""

import base64
import collections
import html.parser
import io
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import vit_jax.report
from vit_jax.checkpoints import formats
from vit_jax.core.errors import RunError
from vit_jax.draw import page, plots
from vit_jax.training import config as config_lib

VOID = {'meta', 'br', 'link', 'img'}
HOSTILE = ('<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "a' onclick='x", '&lt;',
           '\ud800', 'left\u202eright', '</style></title>', 'Ünïcödé 猫')  # fmt: skip
GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'runs'


class Page(html.parser.HTMLParser):
  """Checks that tags are balanced; collects elements, their texts, and all text."""

  def __init__(self, text):
    super().__init__(convert_charrefs=True)
    self.open, self.found, self.words = [], [], []
    self.feed(text)
    self.close()
    assert not self.open
    self.text = ' '.join(' '.join(self.words).split())

  def handle_starttag(self, tag, attrs):
    names = [name for name, _ in attrs]
    assert len(names) == len(set(names)), (tag, attrs)
    self.found.append((tag, dict(attrs), []))
    if tag not in VOID:
      self.open.append(self.found[-1])

  def handle_endtag(self, tag):
    assert self.open.pop()[0] == tag

  def handle_data(self, data):
    if not self.open or self.open[-1][0] not in ('style', 'script'):
      self.words.append(data)
      for _, _, inside in self.open:
        inside.append(data)

  def all(self, tag, class_=None):
    """Attributes and texts of elements."""
    return [
      (attrs, ' '.join(''.join(inside).split())) for name, attrs, inside in self.found
      if name == tag and (class_ is None or class_ in attrs.get('class', '').split())
    ]  # fmt: skip

  def tables(self):
    """Rows of texts, by table."""
    tables = []
    for tag, _, inside in self.found:
      if tag == 'table':
        tables.append([])
      elif tag == 'tr':
        tables[-1].append([])
      elif tag in ('th', 'td'):
        tables[-1][-1].append(''.join(inside))
    return tables

  def texts(self, tag, class_=None):
    return [text for _, text in self.all(tag, class_)]

  def curves(self, title):
    """Of a chart, by the name of the line: steps and values."""
    lines, own = {}, False
    for tag, attrs, _ in self.found:
      if tag == 'svg' and 'aria-label' in attrs:
        own = attrs['aria-label'].startswith(f'{title} over')
      if own and 'data-x' in attrs:
        lines[attrs['data-name']] = json.loads(attrs['data-x']), json.loads(attrs['data-y'])
    return lines


def png(size=8):
  file = io.BytesIO()
  Image.new('RGB', (size, size), (200, 30, 30)).save(file, 'PNG')
  return file.getvalue()


def configuration(**changes):
  given = dict(
    total='1000 steps', batch_size=32, model=dict(variant='Ti/16', image_size=(32, 32)),
    data=dict(source=dict(name='folder', dir='photos')), optim=dict(lr=0.003),
    evals=dict(test=dict(split='val')), **changes,
  )  # fmt: skip
  return formats.stamped(config_lib.to_dict(config_lib.complete(given)))


def result(step=1000, **changes):
  return dict(
    step=step, examples=32000, epochs=12.5, metrics={'test/top1': 0.875, 'test/loss': 0.4321},
    config_hash='0123456789ab', git='abcdef+', python='3.11.7', packages={'jax': '0.10.2'},
    device='TPU v4', devices=8, processes=1, mesh={'data': 8}, parameters=5_524_416,
    flops={'training_per_image': 2e9, 'training_total': 6.4e13, 'convention': ''},
    seconds={'init': 10.0, 'compile': 30.0, 'step': 160.0}, images_per_second_per_chip=1234.5,
    mfu=0.421, **changes,
  )  # fmt: skip


def evaluation(names, **changes):
  rows = [[name, 10 + at, 1 - at / 100] for at, name in enumerate(names)]
  table = dict(title='Accuracy by class', columns=['class', 'examples', 'accuracy'], rows=rows,
               best='high')  # fmt: skip
  shown = [
    dict(file=f'test/{group}_0.png', group=group, score=score, name=f'{group}.jpg',
         facts={'classes': [{'class': names[0], 'probability': 0.75}]})
    for group, score in (('worst', 3.21), ('best', 0.0123))
  ]  # fmt: skip
  return dict(
    evaluator='classification', split='val', step=1000, score='loss', tables=[table],
    values={'top1': 0.875, 'loss': 0.4321, 'examples': 90.0}, pictures=shown,
    **{'classes': names, **changes},
  )  # fmt: skip


def arrays(classes):
  rng = np.random.default_rng(0)
  bins = np.arange(15) / 15 + 0.03
  return dict(
    confusion=np.diag(np.full(classes, 9)) + np.eye(classes, k=1, dtype=int) * np.arange(classes),
    accuracy=rng.random(classes), examples=np.full(classes, 10), bin_size=np.arange(15),
    bin_accuracy=bins - 0.03, bin_confidence=bins,
  )  # fmt: skip


def metrics(steps=60, lanes=0, every=10):
  """Lines of training and evaluation, the values of which are never the same."""
  own = lambda value: [value + lane for lane in range(lanes)] if lanes else value  # noqa: E731
  for step in range(every, (steps + 1) * every, every):
    yield {'step': step, 'train/loss': own(2.5 - step / 1000), 'train/skipped': own(0.0),
           'lr': own(1e-5 * step), 'images_per_second': 5000.0 + step}  # fmt: skip
    if step % 200 == 0:
      yield {'step': step, 'test/top1': own(step / 1234), 'test/examples': own(90.0)}


def run(folder, *, classes=('cat', 'dog', 'owl'), lines=(), complete=True, lanes=0):
  """A directory of a run."""
  (folder / 'evals' / 'test').mkdir(parents=True)
  for step in ('600', '1000', '800.damaged', '.partial'):
    (folder / 'checkpoints' / step).mkdir(parents=True)
  command = f'python -m vit_jax.train --workdir={folder.name}'
  files = {
    'config.json': configuration(),
    'command.json': [
      {'command': command, 'started': '2025-03-01T10:20:30+00:00', 'step': 0},
      {'command': command, 'started': '2025-03-02T10:20:30+00:00', 'step': 600},
    ],
    'evals/test.json': evaluation(classes) if not lanes else dict(
      evaluator='classification', split='val', step=1000, tables=[], pictures=[],
      values={'top1': [0.5 + lane / 100 for lane in range(lanes)]}),
    **({'result.json': result()} if complete else {}),
  }  # fmt: skip
  for name, value in files.items():
    (folder / name).write_text(json.dumps(value))
  (folder / 'metrics.jsonl').write_text(
    ''.join(f'{json.dumps(line)}\n' for line in [*metrics(lanes=lanes), *lines])
  )
  np.savez(folder / 'evals' / 'test.npz', **arrays(len(classes)))
  for group in ('worst', 'best'):
    (folder / 'evals' / 'test' / f'{group}_0.png').write_bytes(png())
  return folder


def made(folder):
  path = vit_jax.report.write(folder)
  assert path == folder / 'report.html'
  return Page(path.read_text('ascii'))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  return run(tmp_path_factory.mktemp('run') / 'photos')


@pytest.fixture(scope='module')
def found(whole):
  return made(whole)


def test_a_complete_run(found):
  assert found.texts('title')[0] == 'photos'
  assert found.texts('h1') == ['photos']
  assert found.texts('span', 'state') == ['Complete.']
  assert 'Classification with vit Ti/16 (images of 32×32), trained on photos' in found.text
  assert found.texts('h2') == [
    'Curves', 'Evaluation: test', 'Time', 'Code and machine', 'Recipe'
  ]  # fmt: skip
  assert not found.all('ul', 'notes')
  assert found.texts('pre') == ['python -m vit_jax.train --workdir=photos']
  said = 'This is session 2, which went on at step 600, 2025-03-02 10:20.'
  assert f'Started 2025-03-01 10:20. {said}' in found.text
  facts = dict(zip(found.texts('dt')[::-1], found.texts('dd')[::-1], strict=True))  # the first win
  # The shares that a score test at 95 % of 90 examples does not tell from the one that was found.
  z = 1.959964**2 / 90
  ends = sorted(np.roots([1 + z, -2 * 0.875 - z, 0.875**2]))
  assert facts['test/top1'] == f'0.875 ({ends[0]:.4g} to {ends[1]:.4g})'
  assert facts['test/loss'] == '0.4321'
  assert (facts['steps'], facts['epochs'], facts['parameters']) == ('1,000', '12.5', '5,524,416')
  assert (facts['images/s per chip'], facts['MFU']) == ('1,234', '42.1%')
  assert (facts['time'], facts['device'], facts['started']) == ('3 min', '8 × TPU v4', '2025-03-01')
  assert (facts['checkpoints'], facts['jax']) == ('steps 600, 1,000', '0.10.2')
  assert found.texts('ul', 'legend')[-1] == (
    'step 3 min (80.0%)compile 30.0 s (15.0%)init 10.0 s (5.0%)'
  )


def test_curves_have_the_values_of_the_file(found):
  lines = list(metrics())
  for key, name in (('train/loss', 'train/loss'), ('lr', 'lr'), ('test/top1', 'test/top1')):
    steps, values = found.curves(key)[name]
    there = [(line['step'], line[key]) for line in lines if key in line]
    assert steps == [step for step, _ in there]
    np.testing.assert_allclose(values, [value for _, value in there], rtol=1e-5)
  assert set(found.curves('train/loss')) == {'train/loss', 'smoothed'}
  said = [attrs['aria-label'] for attrs, _ in found.all('svg', 'chart')]
  titles = [each.partition(' over')[0] for each in said]  # what never changes is left out
  assert titles == ['train/loss', 'test/top1', 'lr', 'images_per_second']


def test_long_curves_are_thinned_and_keep_their_peaks():
  y = np.random.default_rng(0).normal(size=100_000)
  line = plots.Line('a', np.arange(100_000), y, 'red')
  found = Page(plots.chart('a', [line]))
  steps, values = found.curves('a')['a']
  assert len(steps) <= plots.MOST
  assert steps == sorted(steps)
  np.testing.assert_allclose([min(values), max(values)], [y.min(), y.max()], rtol=1e-5)


def test_nothing_is_loaded_from_elsewhere(whole, found):
  text = (whole / 'report.html').read_text()
  assert not re.search(r'https?:|url\(|@import|//\w', text)
  for attrs, _ in found.all('img') + found.all('link'):
    assert attrs.get('src', attrs.get('href')).startswith('data:')
  policy = [attrs['content'] for attrs, _ in found.all('meta') if 'http-equiv' in attrs]
  assert policy[0].startswith("default-src 'none'")


def test_pictures_are_inside_with_texts(found):
  pictures = found.all('img')
  assert len(pictures) == 2
  for attrs, _ in pictures:
    assert base64.b64decode(attrs['src'].partition('base64,')[2]) == png()
    assert (attrs['width'], attrs['height'], attrs['class']) == ('8', '8', 'tiny')
    assert re.fullmatch(r'(worst|best)\.jpg: classes cat 0\.75', attrs['alt'])
  captions = found.texts('figcaption')
  assert 'worst.jpg loss 3.21' in captions
  assert 'best.jpg loss 0.0123' in captions


def test_accessible(found):
  assert found.all('html')[0][0]['lang'] == 'en'
  assert all(attrs['scope'] in ('col', 'row') for attrs, _ in found.all('th'))
  outer = [attrs for attrs, _ in found.all('svg') if 'x' not in attrs]
  assert all(attrs['role'] == 'img' and attrs['aria-label'] for attrs in outer)


def test_contrast():
  """Texts on their backgrounds, cells of the heat map at their darkest among them."""
  schemes = re.findall(r':root \{(.*?)\}', page.STYLE, re.S)
  assert len(schemes) == 2
  for scheme in schemes:
    colours = {
      name: np.array([int(digit * (2 if len(code) == 3 else 1), 16)
                      for digit in re.findall('.' * (len(code) // 3), code)]) / 255
      for name, code in re.findall(r'--(\w+): #(\w+)', scheme)
    }  # fmt: skip
    linear = lambda c: np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)  # noqa: E731
    light = lambda c: linear(c) @ [0.2126, 0.7152, 0.0722] + 0.05  # noqa: E731
    ratio = lambda a, b: max(light(a) / light(b), light(b) / light(a))  # noqa: E731
    for back in ('paper', 'faint'):
      assert all(ratio(colours[c], colours[back]) >= 4.5 for c in ('ink', 'soft', 'warn', 'done'))
      for fill in ('good', 'bad'):
        cell = 0.6 * colours[fill] + 0.4 * colours[back]
        assert ratio(colours['ink'], cell) >= 4.5, (fill, ratio(colours['ink'], cell))
    assert all(ratio(colours[f'c{i}'], colours['paper']) >= 3 for i in range(1, 9))


def test_worst_classes_come_first_and_thirty_are_seen(tmp_path):
  found = made(run(tmp_path / 'many', classes=[f'kind {n}' for n in range(50)]))
  mistakes, first, rest = found.tables()
  assert first[0] == rest[0] == ['class', 'examples', 'accuracy']
  assert [*first[1:], *rest[1:]] == [
    [f'kind {n}', f'{10 + n}', f'{1 - n / 100:.2f}'] for n in range(49, -1, -1)
  ]
  assert len(first) == 31
  assert '20 more' in found.texts('summary')
  assert [a['aria-sort'] for a, _ in found.all('th') if 'aria-sort' in a] == ['ascending'] * 2
  exact = [attrs['data-v'] for attrs, _ in found.all('td') if 'data-v' in attrs]
  assert exact[-1] == '1.0'
  assert exact[-2] == '10'
  # Of more than 40 classes only the commonest mistakes.
  assert mistakes[0] == ['class', 'taken for', 'count', 'of the class']
  assert len(mistakes) == 21
  assert mistakes[1] == ['kind 48', 'kind 49', '49', '0.8448']
  assert 'Confusion matrix' not in found.text


def test_low_numbers_may_be_good_and_some_may_be_missing(tmp_path):
  folder = run(tmp_path / 'low')
  rows = [['a', 0.5], ['b', float('nan')], ['c', 2.25], ['d', None]]
  table = dict(title='Errors', columns=['class', 'error'], rows=rows, best='low')
  (folder / 'evals/test.json').write_text(json.dumps(evaluation(['a']) | {'tables': [table]}))
  assert made(folder).tables() == [
    [['class', 'error'], ['c', '2.25'], ['a', '0.50'], ['b', 'nan'], ['d', '–']]
  ]


def test_figures_have_the_counts_of_the_file(found):
  counts = arrays(3)['confusion']
  assert found.texts('text', 'cell') == [str(count) for count in counts.ravel() if count]
  assert 'dog taken for owl: 2, 18.2% of the class' in found.texts('title')
  said = ' '.join(found.texts('p', 'soft'))
  assert 'Expected calibration error 0.03.' in said  # the bins err by that


def test_classes_are_called_as_in_the_table_that_has_all_of_them(tmp_path):
  folder = run(tmp_path / 'named')
  known = evaluation(['cat', 'dog', 'owl'], classes=None)
  (folder / 'evals/test.json').write_text(json.dumps(known))
  assert any(title.startswith('dog taken for owl') for title in made(folder).texts('title'))
  del known['tables'][0]['rows'][0]
  (folder / 'evals/test.json').write_text(json.dumps(known))
  assert any(title.startswith('class 1 taken for') for title in made(folder).texts('title'))


def test_what_is_not_predicted_has_a_column_of_its_own():
  counts = np.array([[5, 0, 2], [1, 7, 0]])
  found = Page(plots.confusion(counts, ['sky', 'sea']))
  assert found.texts('text', 'cell') == ['5', '2', '1', '7']
  assert 'sky taken for none: 2, 28.6% of the class' in found.texts('title')
  assert found.texts('text').count('none') == 1


def test_lanes(tmp_path):
  lines = [{'step': 700, 'train/loss': [1.0, None, 3.0]}]
  folder = run(tmp_path / 'lanes', lanes=3, lines=lines)
  (folder / 'config.json').write_text(json.dumps(configuration(lanes=dict(lr=(1e-3, 3e-3, 1e-2)))))
  (folder / 'result.json').write_text(json.dumps(result(diverged={'1': 650})))
  found = made(folder)
  names = ['lr 0.001', 'lr 0.003 (diverged at step 650)', 'lr 0.01']
  assert found.texts('ul', 'legend')[0] == ''.join(names)
  curves = found.curves('test/top1')
  assert [*curves] == names
  assert curves['lr 0.01'][1][0] == pytest.approx(200 / 1234 + 2, 1e-5)
  assert found.curves('train/loss')[names[1]][1][-1] is None
  assert [*found.curves('images_per_second')] == ['images_per_second', 'smoothed']
  assert found.tables() == [
    [['lane', 'top1'], *([name, f'{0.5 + at / 100:.2f}'] for at, name in enumerate(names))]
  ]
  assert '3 lanes side by side' in found.text
  assert '0.5 to 0.52' in found.text
  assert not found.all('ul', 'notes')


def test_a_run_that_is_not_complete(tmp_path):
  folder = run(tmp_path / 'half', complete=False)
  assert made(folder).texts('span', 'state') == ['Not complete: step 1,000 of 1,000.']
  (folder / 'checkpoints' / '1000').rmdir()
  assert made(folder).texts('span', 'state') == ['Not complete: step 600 of 1,000.']
  for name in ('command.json', 'metrics.jsonl'):
    (folder / name).unlink()
  (folder / 'config.json').write_text(json.dumps(configuration() | {'total': '9 epochs'}))
  found = made(folder)
  assert found.texts('span', 'state') == ['Not complete: step 600 of 9 epochs.']
  assert 'The command that started it is not known.' in found.text
  assert found.texts('li') == ['metrics.jsonl is missing: there are no curves']


def test_no_run(tmp_path):
  with pytest.raises(RunError, match='is not the directory of a run: there is no config'):
    vit_jax.report.write(tmp_path)
  with pytest.raises(RunError, match='is not the directory of a run'):
    vit_jax.report.write(tmp_path / 'missing')
  (tmp_path / 'config.json').write_text(json.dumps(configuration()))
  assert 'Not complete: step 0 of 1,000.' in made(tmp_path).text
  with pytest.raises(RunError, match='cannot write'):
    vit_jax.report.write(tmp_path, tmp_path / 'missing' / 'report.html')


def test_damage_is_said_and_costs_only_what_is_damaged(tmp_path):
  folder = run(tmp_path / 'damaged')
  lines = (folder / 'metrics.jsonl').read_text()
  bad = '{"step": 5, "train/l\n[1]\n{"step": "x"}\n\xff\n'
  (folder / 'metrics.jsonl').write_text(lines + bad + '{"step": 610, "train/loss": 0.5}\n{"step')
  (folder / 'result.json').write_text('{"step": 1000, "seconds": {"init": "long"}}')
  (folder / 'command.json').write_text('[]]')
  (folder / 'evals/test.npz').write_bytes(b'PK')
  (folder / 'evals/test/best_0.png').write_bytes(b'GIF89a')
  known = evaluation(['cat'])
  away = [known['pictures'][0] | {'file': file} for file in ('../../x.png', '/x.png', 'test/y.png')]
  known['pictures'] += away
  (folder / 'evals/test.json').write_text(json.dumps(known))
  (folder / 'evals/other.json').write_text('[]')
  found = made(folder)
  notes = found.texts('li')
  for said in (
    'metrics.jsonl: line 64, 65, 66, 67 cannot be read and is left out', 'command.json is not JSON',
    'evals/other.json does not contain a JSON object',
    'evals/test.npz is damaged: it is not an NPZ file',
    'evals/test/best_0.png cannot be shown: ValueError: it is not a PNG file',
    'evals/../../x.png is not shown', 'evals//x.png is not shown', 'evals/test/y.png',
    'the summary cannot be shown', 'the time cannot be shown', 'the machine cannot be shown',
  ):  # fmt: skip
    assert any(said in note for note in notes), (said, notes)
  assert found.curves('train/loss')['train/loss'][1][-1] == 0.5
  assert len(found.all('img')) == 1
  assert found.tables()[0][1] == ['cat', '10', '1']


@pytest.mark.parametrize('name', ['config.json', 'result.json', 'evals/test.json', 'command.json'])
def test_any_file_may_be_anything(tmp_path, name):
  folder = run(tmp_path / 'odd')
  if name != 'config.json':
    (folder / 'config.json').write_text('{}')
  for value in ('null', '[]', '{}', '[{}]', '"x"', '1e999', '{"a": [[1]]}', ''):
    (folder / name).write_text(value)
    assert made(folder).texts('h1') == ['odd']


def test_names_are_texts_whatever_is_in_them(tmp_path):
  folder = run(tmp_path / 'a <b>&"\'<', classes=HOSTILE, lines=[{'step': 5, '<i>"/\'>': 1.0}])
  (folder / 'config.json').write_text(json.dumps(configuration() | {'init': HOSTILE[1]}))
  (folder / 'command.json').write_text(json.dumps([dict(command=HOSTILE[0], started=HOSTILE[6])]))
  clean = made(run(tmp_path / 'plain', classes=[str(n) for n in range(len(HOSTILE))]))
  found = made(folder)
  assert found.texts('h1') == ['a <b>&"\'<']
  assert found.texts('pre') == [HOSTILE[0]]
  count = collections.Counter(tag for tag, _, _ in found.found)
  usual = collections.Counter(tag for tag, _, _ in clean.found)
  assert all(count[tag] == usual[tag] for tag in ('script', 'style', 'img', 'i', 'a', 'main'))
  assert not any(name.startswith('on') for _, attrs, _ in found.found for name in attrs)
  shown = [row[0] for row in found.tables()[0][1:]]
  expected = [re.sub('[\ud800\u202e]', '\ufffd', name) for name in HOSTILE]
  assert sorted(shown) == sorted(expected)


def test_the_recipe_says_what_differs_from_the_defaults(found):
  facts = [(name, value) for name, value in zip(found.texts('dt'), found.texts('dd'), strict=True)]
  own = facts[facts.index(('total', '1000 steps')) :]
  assert own[:8] == [
    ('total', '1000 steps'), ('batch_size', '32'), ('variant', 'Ti/16'), ('image_size', '[32, 32]'),
    ('source.name', 'folder'), ('source.dir', 'photos'), ('lr', '0.003'), ('test.split', 'val'),
  ]  # fmt: skip
  assert ('optim', '') not in own
  assert ('weight_decay', '0.1') not in own[:8]
  strong = found.texts('b')
  assert '0.003' in strong
  assert 'adamw' not in strong
  assert {('b2', '0.999'), ('rope', 'unset'), ('init', '–')} <= set(own)


def test_runs_of_every_format(tmp_path):
  folders = [*sorted(GOLDEN.glob('*/plain')), GOLDEN / '0/lanes']
  assert {folder.parent.name for folder in folders} >= set('0123')
  for folder in folders:
    page = Page(vit_jax.report.write(folder, tmp_path / 'page.html').read_text())
    assert not page.all('ul', 'notes'), folder
    assert page.texts('h2') == ['Curves', 'Evaluation: test', 'Code and machine', 'Recipe']


def test_the_command_makes_the_same_page_without_jax(whole, tmp_path):
  code = f"""
import runpy, sys
sys.argv = ['report', {str(whole)!r}, '--out={tmp_path}/page.html']
try:
  runpy.run_module('vit_jax.report', run_name='__main__')
except SystemExit as left:
  print(left.code, {{'jax', 'flax', 'matplotlib'}} & set(sys.modules))
"""
  out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert re.fullmatch(rf'{tmp_path}/page.html: \d+ kB\n0 set\(\)\n', out.stdout)
  assert vit_jax.report.write(whole).read_bytes() == (tmp_path / 'page.html').read_bytes()


@pytest.mark.parametrize(
  ('low', 'high', 'said'),
  [
    (0, 1, '0 0.2 0.4 0.6 0.8 1.0'), (0.21, 2.3, '0 0.5 1.0 1.5 2.0 2.5'),
    (0, 2000, '0 500 1,000 1,500 2,000'), (0, 300_000, '0 100k 200k 300k'),
    (0, 1e-5, '0 2·10⁻⁶ 4·10⁻⁶ 6·10⁻⁶ 8·10⁻⁶ 10·10⁻⁶'), (-3, 4, '−4 −2 0 2 4'),
    (0.97, 0.981, '0.970 0.975 0.980 0.985'), (0, 3.2e6, '0 1M 2M 3M 4M'),
  ],
)  # fmt: skip
def test_ticks_are_those_a_person_would_choose(low, high, said):
  assert ' '.join(plots.labels(plots.ticks(low, high))) == said


def test_a_curve_may_begin_anywhere_and_have_gaps():
  y = np.array([1.0, np.nan, 1.0])
  found = Page(plots.chart('a', [plots.Line('a', np.array([1001, 1500, 1999]), y, 'red')]))
  assert '1,500' in found.texts('text')
  assert found.curves('a')['a'][1] == [1, None, 1]
  assert plots.chart('a', [plots.Line('a', np.arange(2), np.full(2, np.nan), 'red')]) == ''


def test_smoothed_is_a_mean():
  y = np.array([1.0, 2.0, 3.0, np.nan, 5.0, 10.0])
  np.testing.assert_allclose(plots.smoothed(y, 1), [1.5, 2, 2.5, np.nan, 7.5, 7.5])
  np.testing.assert_allclose(plots.smoothed(np.arange(9.0), 2)[2:-2], np.arange(9.0)[2:-2])


def test_a_lane_far_above_the_others_does_not_flatten_them():
  steps = np.arange(10)
  lines = [plots.Line(str(at), steps, steps * scale + 1.0, 'red')
           for at, scale in enumerate((1, 2, 1e6))]  # fmt: skip
  found = Page(plots.chart('loss', lines))
  assert 'cut off above 25' in found.text
  assert 'cut off' not in plots.chart('loss', lines[:2])
