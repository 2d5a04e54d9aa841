"""The pages: what they show is run, what they link to is there, what they count is counted.

Every block of bash and python on a page runs, in order, in one copy of the project. A block of text
right behind one is what it prints: each of its lines must occur, in this order, '...' standing for
anything. Whatever cannot run here is a block of another language.
"""

import itertools
import re
import subprocess
import sys

import pytest

from tests import checkouts, reference

ROOT = checkouts.ROOT
PAGES = sorted(
  str(path.relative_to(ROOT)) for path in [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]
)
STUDIES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('experiments/*/README.md'))
LINKED = [*PAGES, *STUDIES, 'CONTRIBUTING.md', 'CHANGELOG.md']
# Pages that take more than ten seconds, and why.
SLOW = {
  'docs/explanation/views-and-fields.md': 'a run of packed images',
  'docs/getting-started/first-run.md': 'three runs and a picture',
  'docs/getting-started/notebook.md': 'a run',
  'docs/getting-started/your-own-images.md': 'a run and its predictions',
  'docs/how-to/augmentation.md': 'a run',
  'docs/how-to/convert-checkpoints.md': 'six programs that start JAX',
  'docs/how-to/detection.md': 'a run and a prediction',
  'docs/how-to/distillation.md': 'five runs and a plan',
  'docs/how-to/evaluate.md': 'a run and three evaluations',
  'docs/how-to/fine-tune.md': 'two runs from a checkpoint',
  'docs/how-to/hold-out-a-fold.md': 'a run',
  'docs/how-to/images-and-text.md': 'two runs, a vocabulary and a prediction',
  'docs/how-to/language-models.md': 'a run, a prediction and an answer',
  'docs/how-to/large-data-sets.md': 'a run from a packed data set',
  'docs/how-to/multi-label.md': 'a run and a prediction',
  'docs/how-to/plan-a-run.md': 'compiles for a slice of TPUs',
  'docs/how-to/pods.md': 'six programs, and devices that are examined',
  'docs/how-to/panoptic.md': 'a run and a prediction',
  'docs/how-to/predict.md': 'a run and three predictions',
  'docs/how-to/pretrain-without-labels.md': 'four runs and a judgement',
  'docs/how-to/probe.md': 'a run, a table and two judgements',
  'docs/how-to/recipes.md': 'a run',
  'docs/how-to/regression.md': 'a run and predictions',
  'docs/how-to/remote-sensing.md': 'four runs and two maps',
  'docs/how-to/reports.md': 'a run, twice',
  'docs/how-to/resume-fork-cooldown.md': 'a trunk and its fork',
  'docs/how-to/scaling-sweeps.md': 'a run of three lanes, and two fits',
  'docs/how-to/segmentation.md': 'a run and a prediction',
  'docs/how-to/several-devices.md': 'a run on eight devices, and one of two processes',
  'docs/how-to/several-sizes.md': 'two runs',
  'docs/how-to/train.md': 'two runs',
  'docs/how-to/your-own-data.md': 'two runs, and a source of every kind',
  'docs/reference/files-of-a-run.md': 'a run, and its model',
  'docs/reference/models.md': 'four programs that start JAX',
}
BLOCK = re.compile(r'^```(\w*)\n(.*?)^```\n', re.M | re.S)
README_LINES = 110


def text_of(page):
  return (ROOT / page).read_text()


def blocks(text):
  """Language, code and line of each block, and of its output, if that is shown right behind it."""
  found = list(BLOCK.finditer(text))
  for block, after in itertools.pairwise([*found, None]):
    shown = after and after[1] == 'text' and not text[block.end() : after.start()].strip()
    yield block[1], block[2], text.count('\n', 0, block.start()) + 1, after[2] if shown else ''


def missing_line(shown, printed):
  """The first line of `shown` that is not in `printed` behind the lines before it."""
  at = 0
  for line in filter(str.strip, shown.splitlines()):
    pattern = '.*?'.join(re.escape(part.strip()) for part in line.split('...'))
    match = re.compile(pattern).search(printed, at)
    if not match:
      return line
    at = match.end()
  return None


RUN = [page for page in PAGES if any(b[0] in ('bash', 'python') for b in blocks(text_of(page)))]


@pytest.fixture(scope='session')
def data(tmp_path_factory):
  """Where data sets are prepared, once for all pages."""
  return tmp_path_factory.mktemp('pages_data')


@pytest.mark.parametrize(
  'page', [pytest.param(p, marks=[pytest.mark.slow] if p in SLOW else []) for p in RUN]
)
def test_a_page_runs(tmp_path, data, page):
  folder = checkouts.copy(tmp_path)
  for language, code, line, shown in blocks(text_of(page)):
    if language not in ('bash', 'python'):
      continue
    command = {'bash': ['bash', '-euc', code], 'python': [sys.executable, '-c', code]}[language]
    env = checkouts.environment(folder, data, tpu='--topology' in code)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    where = f'{page}, line {line}:\n{done.stdout}\n{done.stderr}'
    assert done.returncode == 0, where
    assert 'Traceback' not in done.stderr, where
    assert 'error:' not in done.stderr, where
    lost = missing_line(shown, f'{done.stdout}\n{done.stderr}')
    assert lost is None, f'{lost!r} is not printed by {where}'


def anchors(page):
  """What headings of a page can be linked to by, as forges make it."""
  prose = BLOCK.sub('', text_of(page))
  headings = re.findall(r'^#+ (.*)$', prose, re.M)
  slug = lambda text: re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-')  # noqa: E731
  return {slug(re.sub(r'[`*]', '', heading)) for heading in headings}


@pytest.mark.parametrize('page', LINKED)
def test_links_lead_somewhere(page):
  prose = BLOCK.sub('', text_of(page))
  for link in re.findall(r'\]\((?!https?:|gs:)([^)\s]+)\)', prose):
    target, _, anchor = link.partition('#')
    path = (ROOT / page).parent / target if target else ROOT / page
    assert path.exists(), f'{page}: {link}'
    if anchor:
      known = anchors(path.resolve().relative_to(ROOT))
      assert anchor in known, f'{page}: {link}, of {sorted(known)}'
  for name in re.findall(
    r'`((?:configs|notebooks|docs|experiments|tests|vit_jax)/[\w./-]+)`', prose
  ):
    assert (ROOT / name).exists(), f'{page}: {name}'


@pytest.mark.parametrize('page', LINKED)
def test_tables_have_as_many_cells_in_every_row(page):
  prose = BLOCK.sub('\n', text_of(page))
  for table in re.findall(r'(?:^\|.*\n)+', prose, re.M):
    cells = {len(re.findall(r'(?<!\\)\|', row)) for row in table.splitlines()}
    assert len(cells) == 1, f'{page}:\n{table}'


def test_every_page_is_found_from_the_index():
  index = (ROOT / 'docs' / 'README.md').read_text()
  for page in PAGES:
    if page.startswith('docs/') and page != 'docs/README.md':
      assert f']({page.removeprefix("docs/")})' in index, page
  assert '(docs/README.md)' in text_of('README.md')


def test_slow_pages_are_pages():
  assert SLOW.keys() <= set(RUN)


def test_the_readme_is_short():
  lines = text_of('README.md').splitlines()
  assert len(lines) <= README_LINES
  assert len(re.findall(r'!\[', text_of('README.md'))) == 1


def test_the_readme_counts_right():
  from vit_jax.convert.dialects import DIALECTS
  from vit_jax.scaling.laws import LAWS

  text = text_of('README.md')
  assert set(re.findall(r'(\d+) dialects', text)) == {str(len(DIALECTS))}
  assert re.findall(r'(\d+) laws', text) == [str(len(LAWS))]


@pytest.mark.parametrize('page', sorted(reference.PAGES))
def test_generated_pages_are_current(page):
  """`python -m tests.reference` writes them."""
  assert (ROOT / page).read_text() == reference.PAGES[page]()


def test_every_command_has_an_entry():
  commands = reference.commands()
  assert len(commands) >= 8
  page = text_of('docs/reference/commands.md')
  for command in commands:
    assert f'python -m {command}' in page, command


def test_every_target_of_make_is_there():
  targets = re.search(r'^\.PHONY: (.*)$', (ROOT / 'Makefile').read_text(), re.M)[1].split()
  named = {t for page in LINKED for t in re.findall(r'(?:`| {4})make ([a-z-]+)', text_of(page))}
  assert named == set(targets)


def test_every_dialect_has_an_entry():
  from vit_jax.convert.dialects import DIALECTS

  page = text_of('docs/reference/checkpoint-dialects.md')
  for dialect in DIALECTS:
    assert re.search(rf'^\| .*`{dialect}`', page, re.M), dialect


def test_every_configuration_file_has_an_entry():
  page = text_of('docs/how-to/train.md')
  for path in (ROOT / 'configs').glob('*.py'):
    assert f'`configs/{path.name}' in page, path


def test_shown_lines_are_looked_for():
  assert missing_line('step 1\nloss ... end\n', 'a step 1 b\nloss 0.3 end') is None
  assert missing_line('loss ... end\nstep 1', 'a step 1 b\nloss 0.3 end') == 'step 1'
  assert missing_line('step 2', 'step 1') == 'step 2'
