"""Methods without labels beside their controls: runs, and what judges them."""

import json
import sys
import types

import numpy as np
import pytest

from experiments.gallery import ways
from experiments.gallery.metrics import TOP1
from experiments.ssl import compare, finetune
from experiments.ssl.judged import COMPONENTS, OURS, PIXELS, RANDOM, Rules, few

TINY = {
  'total': '2 steps', 'batch_size': '8', 'data.source.dataset': 'digits',
  'data.source.manual_dir': '', 'model.encoder.image_size': '8', 'model.encoder.patch_size': '2',
  'model.encoder.depth': '1', 'evals': 'None',
}  # fmt: skip
RULES = Rules(sizes=(1, 2), subsets=2, methods=('knn', 'curve'))


def test_few_labels_weigh_the_same():
  found = {
    'knn': np.zeros((1, 3), bool),
    '1 labels a class': np.array([[True, False, False], [True, True, False]]),
    '2 labels a class': np.array([[True, True, False], [True, True, False]]),
  }
  assert few(found, RULES).tolist() == [1.0, 0.75, 0.0]


@pytest.mark.slow
def test_runs_beside_their_controls(tmp_path, monkeypatch):
  """The gallery's row and the table are of the same runs, which are trained and judged once."""
  way = ways.Pretrained('configs/ssl.py:mae', rules=RULES)
  options = {**TINY, 'data.source.dir': str(tmp_path / 'data')}
  found = way.measured(ways.Asked('mae', TOP1, tmp_path / 'runs', 2, options))
  assert [*found.records] == [RANDOM]
  assert sorted(found.beside) == sorted([PIXELS, COMPONENTS])
  assert len(found.ours) == 2
  assert found.records[RANDOM].shape == (2, 360)
  # Labels of the second run are others, and pixels are judged again with them.
  assert (found.beside[PIXELS][0] != found.beside[PIXELS][1]).any()

  files = sorted((tmp_path / 'runs').rglob('*.npz'))
  assert len([path for path in files if path.name in ('judged.npz', 'pixels0-8x8.npz')]) == 3
  when = [path.stat().st_mtime_ns for path in files]
  monkeypatch.setattr(ways, 'Pretrained', lambda config: way)
  line = ['compare', 'mae', '--seeds=2', f'--runs={tmp_path / "runs"}']
  line += [f'--results={tmp_path / "results"}', *(f'--set={n}={t}' for n, t in options.items())]
  monkeypatch.setattr(sys, 'argv', line)
  compare.main()
  assert [path.stat().st_mtime_ns for path in files] == when
  row = json.loads((tmp_path / 'results' / 'mae.json').read_text())
  assert row['scores'][OURS][compare.FEW]['runs'] == pytest.approx(found.values)
  assert [*row['scores'][OURS]] == ['knn', '1 labels a class', '2 labels a class', compare.FEW]
  page = (tmp_path / 'README.md').read_text()
  assert [line.split('|')[1].strip() for line in page.splitlines() if line.startswith('| ')] == [
    '', 'mae', RANDOM, PIXELS, COMPONENTS
  ]  # fmt: skip

  # And fine-tuned, beside the same from scratch.
  found = {'HERE': tmp_path, 'IMAGES': 1200, 'SIZES': {100: '2 steps'}, 'RATES': ('1e-3',)}
  found |= {'PARTS': range(1, 2), 'CHOICE': 'train[1200:]'}
  found['named'] = lambda names: [types.SimpleNamespace(way=way)]
  for name, value in found.items():
    monkeypatch.setattr(finetune, name, value)
  own = {n: t for n, t in options.items() if n not in ('total', 'evals')}
  own = {n.replace('model.encoder', 'model'): t for n, t in own.items()}
  line = ['finetune', f'--runs={tmp_path / "runs"}', *(f'--set={n}={t}' for n, t in own.items())]
  monkeypatch.setattr(sys, 'argv', line)
  finetune.main()
  (row,) = json.loads((tmp_path / 'finetune.json').read_text())['rows']
  assert row['gain'] == row['fine-tuned'][0] - row['from scratch'][0]
  folder = tmp_path / 'runs' / 'ssl' / 'tuned'
  configs = {path.name: json.loads((path / 'config.json').read_text()) for path in folder.iterdir()}
  tuned, scratch = configs['mae-0-100-part1'], configs['scratch-100-part1']
  assert tuned['init'].endswith('mae-0')
  assert not scratch['init']
  assert tuned['data']['split'] == scratch['data']['split'] == 'fold 1/12 of train[:1200]'
  assert tuned['evals']['test']['split'] == 'test'
  assert configs['mae-0-100-1e-3']['evals']['test']['split'] == 'train[1200:]'
