"""The command that judges features, and its evaluators during training."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import vit_jax
from tests import runs, toys
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.evaluate import evaluate_checkpoint
from vit_jax.evaluators import EVALUATORS
from vit_jax.probing import judge
from vit_jax.probing.table import Table
from vit_jax.train import train
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
  """A checkpoint without a head, and 30 + 15 images."""
  folder = tmp_path_factory.mktemp('probe')
  toys.toy(folder / 'data', train=10, test=5)
  vit_jax.save(toys.headless(), folder / 'model', 'transformers')
  return folder


FLAGS = ('--methods=knn,fewshot', '--shots=1,3', '--features=class,class+mean')


@pytest.fixture
def judged(toy, tmp_path, typed):
  out = tmp_path / 'probe.json'
  status, text, err = typed('vit_jax.probe', toy / 'model', toy / 'data', *FLAGS, f'--out={out}')
  assert status == 0, err
  return text, json.loads(out.read_text())


def test_a_checkpoint_is_judged_beside_its_controls(judged):
  text, record = judged
  assert '30 examples of train, 15 of test, 3 classes; the most frequent one: 0.3333' in text
  methods = [(line['method'], line['features']) for line in record['lines']]
  assert methods == [
    (method, name) for name in ('class', 'class+mean')
    for method in ('knn', '1-shot ridge', '3-shot ridge')
  ]  # fmt: skip
  for line in record['lines']:
    assert {*line['controls']} == {'pixels', 'pca', f'random:{line["features"]}'}
    assert line['interval'][0] <= line['top1'] <= line['interval'][1]
    gain, low, high = line['gain']
    best = max(each['top1'] for each in line['controls'].values())
    assert gain == pytest.approx(line['top1'] - best)
    assert low <= gain <= high
  assert record['digest'].startswith('sha256:')
  assert record['settings']['seeds'] == 3


def test_of_a_table_it_finds_the_same(toy, tmp_path, typed, judged):
  features = ','.join(['class', 'mean', 'random:class', 'random:mean', 'pixels'])
  out = tmp_path / 'f.parquet'
  status, _, err = typed(
    'vit_jax.embed', toy / 'model', toy / 'data', f'--out={out}', f'--features={features}'
  )
  assert status == 0, err
  status, _, err = typed('vit_jax.probe', out, *FLAGS, f'--out={tmp_path}/again.json')
  assert status == 0, err
  again = json.loads((tmp_path / 'again.json').read_text())
  assert again['lines'] == judged[1]['lines']
  assert again['digest'] == judged[1]['digest'] == Table(out).card['digest']


def test_labels_that_mean_nothing_are_at_chance(toy, tmp_path, typed):
  """Images of all classes, dealt at random to three directories."""
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    files = sorted((toy / 'data' / split).rglob('*.png'))
    for at, name in enumerate(rng.permutation(len(files))):
      folder = tmp_path / 'data' / split / 'abc'[at % 3]
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f'{at}.png').write_bytes(files[name].read_bytes())
  out = tmp_path / 'probe.json'
  status, _, err = typed(
    'vit_jax.probe', toy / 'model', tmp_path / 'data', '--methods=knn', '--features=class',
    f'--out={out}',
  )  # fmt: skip
  assert status == 0, err
  (line,) = json.loads(out.read_text())['lines']
  assert line['interval'][0] < 1 / 3 < line['interval'][1]


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['data', '--methods=svm'], "unknown method 'svm': choose from knn, logistic, linear"),
    (['data', '--test=train'], "--train and --test are both 'train': what is trained on proves"),
    (['data', '--shots=1,x'], '--shots=1,x must be whole numbers, such as 1,5,10'),
    (['data', '--seeds=0'], '--seeds and --epochs must be at least 1'),
    (['data', '--methods=fewshot', '--shots=99'], 'no class has as many examples in train as'),
    (['nowhere'], 'there is no directory'),
    ([], 'is no table of python -m vit_jax.embed: name the data behind it'),
  ],
)
def test_what_is_wrong_is_said_in_one_sentence(toy, typed, flags, message):
  data = [toy / flags[0], *flags[1:]] if flags else []
  status, _, err = typed('vit_jax.probe', toy / 'model', *data)
  assert status == 1
  errors = [line for line in err.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1
  assert message in errors[0]


# --- during training ---

PROBES = {
  'knn': dict(k=(3, 9)), 'fewshot': dict(shots=(1, 4)), 'logistic': {},
  'linear': dict(features='class,mean', rates=(1e-2, 1.0), epochs=2, examples=16),
}  # fmt: skip


@pytest.fixture(scope='module')
def experiment(toy):
  config = toys.config(toy / 'data', model__pool='token').unlock()
  config.evals = {
    name: dict(name=name, **{'features': 'class', **fields}) for name, fields in PROBES.items()
  }
  cfg = schema.build(config_lib.Config, config_lib.to_dict(config_lib.complete(config.to_dict())))
  return Experiment(cfg)


def test_evaluators_find_what_is_found_of_the_features_themselves(experiment, monkeypatch):
  """Each gets the features of every example in order, and is the same when it is asked again."""
  seen = []
  for name in ('knn', 'fewshot', 'by_logistic', 'by_gradients'):
    plain = getattr(judge, name)
    monkeypatch.setattr(
      judge, name, lambda *args, plain=plain: (seen.append(args), plain(*args))[1]
    )
  state, evaluators = experiment.init(), experiment.evaluators()
  scores, found = experiment.evaluate(evaluators, state)
  again, _ = experiment.evaluate(experiment.evaluators(), state)
  assert scores == again
  assert all(evaluation.drawn() == [] for evaluation in evaluators.values())
  data = seen[0][0]
  assert data.train_labels.tolist() == np.repeat([0, 1, 2], 10).tolist()
  assert data.test['class'].shape == (15, 16)
  want = LogisticRegression(C=scores['logistic/C'], tol=1e-10, max_iter=5000)
  train, test = judge.scaled(data, 'class')
  right = want.fit(train, data.train_labels).score(test, data.test_labels)
  assert scores['logistic/top1'] == pytest.approx(right, abs=1e-9)
  assert found['knn'].arrays['right'].shape == (15,)
  assert {'fewshot/top1_1', 'fewshot/top1_4', 'linear/top1', 'knn/k'} <= {*scores}
  assert scores['knn/examples'] == 15


def test_a_run_that_is_judged_by_probes_goes_on_as_if_it_had_not_been_killed(toy, tmp_path):
  config = toys.config(
    toy / 'data', model__pool='token', total='4 steps', log__every='1 step',
    checkpoint__every='2 steps',
  ).unlock()  # fmt: skip
  own = {'knn': PROBES['knn'], 'linear': PROBES['linear']}
  config.evals = {
    name: dict(name=name, every='2 steps', **{'features': 'class', **fields})
    for name, fields in own.items()
  }
  config = config_lib.complete(config.to_dict())
  result = train(config, str(tmp_path / 'whole'))
  assert {'knn/top1', 'linear/top1'} <= result['metrics'].keys()
  runs.cut_off(tmp_path / 'cut', config, 'at step 3')
  train(config, str(tmp_path / 'cut'))
  runs.assert_bit_identical(tmp_path / 'cut', tmp_path / 'whole')


def test_a_checkpoint_without_a_head_is_judged(toy):
  config = toys.config(toy / 'data').unlock()
  config.evals = {'near': dict(name='knn', features='class', k=(3,))}
  found = evaluate_checkpoint(
    str(toy / 'model'), config_lib.to_dict(config_lib.complete(config.to_dict()))
  )
  assert found['near/examples'] == 15
  assert found['near/top1'] > 0.5


def test_evaluators_refuse_what_they_cannot_do(digits):
  with pytest.raises(RunError, match='this evaluation is of one kind of features'):
    EVALUATORS['knn'](features='class,mean')
  with pytest.raises(RunError, match="unknown features 'clas': did you mean class"):
    EVALUATORS['logistic'](features='clas')
  with pytest.raises(RunError, match='must be positive'):
    EVALUATORS['fewshot'](shots=())
  config = digits().unlock()
  config.evals = {'near': dict(name='knn', train='dev')}
  cfg = schema.build(config_lib.Config, config_lib.to_dict(config_lib.complete(config.to_dict())))
  with pytest.raises(RunError, match=r'evals\.near\.train'):
    Experiment(cfg).evaluators()
