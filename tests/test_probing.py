"""What is learned from features, against scikit-learn and NumPy; nothing is chosen by the test."""

import jax
import numpy as np
import pytest
from scipy import special, stats
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from vit_jax.core.errors import RunError
from vit_jax.core.intervals import wilson
from vit_jax.probing import judge, linear, logistic, measures, neighbours, ridge, subsets
from vit_jax.probing.settings import Settings

CLASSES = 5


def drawn(examples, features, seed, spread=1.0):
  """Features around a place for each class, and the classes."""
  places = np.random.default_rng(0).normal(size=(CLASSES, features))
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, CLASSES, examples)
  x = spread * places[labels] + rng.normal(size=(examples, features))
  return x.astype(np.float32), labels


def unit(x):
  return x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)


# --- nearest neighbours ---


@pytest.mark.parametrize('count', [1, 20])
def test_votes_are_those_of_scikit_learn(count):
  bank, labels = drawn(300, 12, 1, 0.3)
  queries, _ = drawn(70, 12, 2, 0.3)
  want = KNeighborsClassifier(
    count, weights=lambda apart: np.exp((1 - apart**2 / 2) / 0.07), algorithm='brute'
  ).fit(unit(bank), labels)
  # Parts of the bank and of the queries that divide neither.
  near = neighbours.nearest(queries, bank, count, chunk=32, bank_chunk=128)
  shares = neighbours.votes(labels, *near, count, CLASSES)
  np.testing.assert_allclose(shares, want.predict_proba(unit(queries)), atol=1e-5)
  np.testing.assert_array_equal(shares.argmax(1), want.predict(unit(queries)))
  whole = neighbours.nearest(queries, bank, count)
  np.testing.assert_array_equal(near[0], whole[0])


def test_an_example_is_no_neighbour_of_itself_and_the_first_of_equal_ones_comes_first():
  bank, _ = drawn(40, 6, 1)
  bank = np.concatenate([bank, bank])  # each is there twice
  own = np.arange(80)
  places, cosines = neighbours.nearest(bank, bank, 3, own=own, bank_chunk=16)
  np.testing.assert_array_equal(places[:, 0], (own + 40) % 80)  # the other one
  # As a stable sort says it.
  exact = unit(bank) @ unit(bank).T
  exact[own, own] = -np.inf
  np.testing.assert_allclose(cosines, -np.sort(-exact, 1)[:, :3], atol=1e-6)
  for row, found in zip(exact.round(6), places[:, 1:], strict=True):
    assert row[found[0]] == row[found[1]]
    assert found[0] < found[1]
  with pytest.raises(RunError, match='80 nearest neighbours are asked for, and there are 79'):
    neighbours.nearest(bank, bank, 80, own=own)


def test_no_mesh_changes_a_bit(mesh):
  bank, _ = drawn(50, 6, 1)
  alone = neighbours.nearest(bank[:9], bank, 4)
  with mesh(4, 2, 1):
    there = neighbours.nearest(bank[:9], bank, 4)
  for one, other in zip(alone, there, strict=True):
    np.testing.assert_array_equal(one, other)


# --- logistic regression ---


def test_logistic_regression_is_that_of_scikit_learn():
  """Problems of different strength and of different examples in one program."""
  x, labels = drawn(160, 8, 1, 0.5)
  inside = np.arange(160) % 4 > 0
  strengths = [0.01, 1.0, 1.0]
  weights = np.array([np.ones(160), np.ones(160), inside], np.float32)
  l2 = 1 / (np.array(strengths) * weights.sum(1))
  found = logistic.fit(x, labels, l2, CLASSES, weights=weights)
  assert (found.gradient < 1e-5).all()  # solved as far as float32 tells
  assert (found.steps < logistic.STEPS).all()
  for i, (strength, weight) in enumerate(zip(strengths, weights, strict=True)):
    there = weight > 0
    want = LogisticRegression(C=strength, tol=1e-12, max_iter=5000).fit(
      x[there].astype(np.float64), labels[there]
    )
    np.testing.assert_allclose(
      special.softmax(found.logits(i, x), 1), want.predict_proba(x), atol=1e-4
    )
    np.testing.assert_allclose(found.kernel[i].T, want.coef_, atol=1e-3 * abs(want.coef_).max())
  # The same in a program of fewer problems at a time.
  pairs = logistic.fit(x, labels, l2, CLASSES, weights=weights, lanes=2)
  np.testing.assert_allclose(pairs.kernel, found.kernel, atol=1e-5)


def test_with_more_features_than_examples_it_is_the_same():
  x, labels = drawn(24, 60, 1, 0.5)
  found = logistic.fit(x, labels, np.array([1 / (0.1 * 24)]), CLASSES)
  want = LogisticRegression(C=0.1, tol=1e-12, max_iter=5000).fit(x.astype(np.float64), labels)
  np.testing.assert_allclose(found.kernel[0].T, want.coef_, atol=1e-3 * abs(want.coef_).max())
  other, _ = drawn(30, 60, 2)
  np.testing.assert_allclose(found.logits(0, other), want.decision_function(other), atol=1e-3)


# --- linear classifiers by stochastic gradients ---


def test_linear_classifiers_are_trained_as_numpy_does_it():
  x, labels = drawn(64, 6, 1)
  choices = np.array([[True] * 6, [True] * 4 + [False] * 2])
  recipe = linear.Recipe(epochs=3, batch_size=24, seed=7)
  kernels, biases = linear.train(x, labels, CLASSES, [0.1, 1.0], choices, recipe)
  truth, at = np.eye(CLASSES)[labels], 0
  for rate in (0.1, 1.0):
    for choice in choices:
      own = x.astype(np.float64) * choice
      w, b = np.zeros((6, CLASSES)), np.zeros(CLASSES)
      vw, vb = np.zeros_like(w), np.zeros_like(b)
      for epoch in range(3):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(jax.random.key(7), epoch), 64))
        for step in range(2):
          rows = order[step * 24 : (step + 1) * 24]
          apart = (special.softmax(own[rows] @ w + b, 1) - truth[rows]) / 24
          vw, vb = 0.9 * vw + own[rows].T @ apart, 0.9 * vb + apart.sum(0)
          now = rate * 24 / 256 * (1 + np.cos(np.pi * (2 * epoch + step) / 6)) / 2
          w, b = w - now * vw, b - now * vb
      np.testing.assert_allclose(kernels[at], w, atol=1e-6)
      np.testing.assert_allclose(biases[at], b, atol=1e-6)
      at += 1
  assert not kernels[1][4:].any()


# --- few-shot ridge regression ---


@pytest.mark.parametrize('examples', [20, 90])  # fewer than features, and more
def test_few_shot_ridge_is_big_visions_law(examples):
  x, labels = drawn(examples, 30, 1)
  other, _ = drawn(40, 30, 2)
  found = ridge.fit(x, labels, CLASSES)
  exact = x.astype(np.float64)
  mean, std = exact.mean(0), exact.std(0) + 1e-5
  extended = lambda x: np.c_[(x - mean) / std, np.full(len(x), 100.0)]  # noqa: E731
  truth = 2 * np.eye(CLASSES)[labels] - 1
  a = extended(exact)
  want = np.linalg.solve(a.T @ a + 1024 * np.eye(31), a.T @ truth)
  np.testing.assert_allclose(found.kernel, want, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(found.scores(other), extended(other) @ want, rtol=1e-8, atol=1e-10)
  theirs = Ridge(alpha=1024, fit_intercept=False, solver='cholesky').fit(a, truth)
  np.testing.assert_allclose(found.kernel, theirs.coef_.T, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('examples', [20, 60])
def test_of_several_strengths_leaving_one_out_chooses(examples):
  x, labels = drawn(examples, 30, 1, 0.4)
  strengths = [1.0, 100.0, 1e4, 1e6]
  exact = x.astype(np.float64)
  a = np.c_[(exact - exact.mean(0)) / (exact.std(0) + 1e-5), np.full(examples, 100.0)]
  truth, errors = 2 * np.eye(CLASSES)[labels] - 1, []
  for strength in strengths:
    apart = []
    for out in range(examples):
      kept = np.arange(examples) != out
      gram = a[kept].T @ a[kept] + strength * np.eye(31)
      apart.append(truth[out] - a[out] @ np.linalg.solve(gram, a[kept].T @ truth[kept]))
    errors.append(np.square(apart).mean())
  assert ridge.fit(x, labels, CLASSES, strengths).l2 == strengths[int(np.argmin(errors))]


# --- subsets ---


def test_subsets_are_nested_balanced_and_drawn_as_big_vision_does():
  labels = np.random.default_rng(0).integers(0, CLASSES, 200)
  small, large = (subsets.shots(labels, count, 3, CLASSES) for count in (2, 10))
  assert {*small} < {*large}
  assert np.bincount(labels[large]).tolist() == [10] * CLASSES
  rng = np.random.default_rng(3)
  want = [rng.permutation(np.where(labels == c)[0])[:10] for c in range(CLASSES)]
  np.testing.assert_array_equal(large, np.concatenate(want))
  assert {*subsets.shots(labels, 10, 4, CLASSES)} != {*large}
  with pytest.raises(RunError, match='100 examples of each class are asked for, and class 0 has'):
    subsets.shots(labels, 100, 0, CLASSES)


def test_what_is_held_out_is_of_every_class():
  labels = np.repeat(np.arange(4), [1, 2, 30, 100])
  held = subsets.held_out(labels, 0.1, 0)
  assert np.bincount(labels[held], minlength=4).tolist() == [0, 1, 3, 10]
  assert subsets.held_out(labels, 0.5, 0, most=40).sum() == pytest.approx(40, abs=2)
  folds = subsets.folds(labels, 5, 0)
  assert np.bincount(folds[labels == 3]).tolist() == [20] * 5
  assert np.bincount(folds[labels == 2]).tolist() == [6] * 5


# --- measures ---


def test_intervals():
  counts = ((0, 5), (7, 7), (0, 10), (7, 10), (3, 100), (83, 100), (100, 100), (980, 1000))
  for right, count in (*counts, (9044, 10_000), (38_250, 50_000)):
    want = stats.binomtest(right, count).proportion_ci(0.95, method='wilson')
    assert wilson(right, count) == pytest.approx((want.low, want.high), abs=1e-12)
  rng = np.random.default_rng(0)
  runs = [rng.random(2000) < 0.7 for _ in range(4)]
  low, high = measures.over_runs(runs)
  # Of runs that do not differ but by chance, the interval of their examples.
  half = 1.96 * np.sqrt(0.7 * 0.3 / 2000 / 4)
  assert half * 0.8 < (high - low) / 2 < half * 2
  assert measures.over_runs(runs, runs) == (0, 0)


def test_calibration_is_guos():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, CLASSES, 500)
  logits = 3 * rng.normal(size=(500, CLASSES)) + 2 * np.eye(CLASSES)[labels]
  chances = special.softmax(logits, 1)
  sure, right, error = chances.max(1), chances.argmax(1) == labels, 0.0
  for low, high in zip(np.arange(15) / 15, np.arange(1, 16) / 15, strict=True):
    inside = (sure > low) & (sure <= high)
    if inside.any():
      error += inside.mean() * abs(right[inside].mean() - sure[inside].mean())
  found = measures.calibration(logits, labels)
  assert found['ece'] == pytest.approx(error, abs=1e-12)
  assert found['nll'] == pytest.approx(-np.log(chances[np.arange(500), labels]).mean())
  assert found['brier'] == pytest.approx(((chances - np.eye(CLASSES)[labels]) ** 2).sum(1).mean())
  # By the temperature nothing is more likely.
  best = measures.temperature(logits, labels)
  nll = lambda t: measures.calibration(logits / t, labels)['nll']  # noqa: E731
  assert nll(best) <= min(nll(best * 1.01), nll(best / 1.01))
  assert best > 1
  # Edges belong to the bin below, and nobody is surer than sure.
  assert measures.ece(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 1]), bins=2) == 0.25


# --- all of it ---

SETTINGS = Settings(
  k=(3, 10), shots=(1, 2), sizes=(1, 4), seeds=2, epochs=2, batch_size=32, rates=(1e-2, 1.0)
)


@pytest.fixture(scope='module')
def data():
  train, train_labels = drawn(120, 8, 1, 2.0)
  test, test_labels = drawn(60, 8, 2, 2.0)
  noise = np.random.default_rng(0)
  more = lambda x: {  # noqa: E731
    'class': 2 * x, 'mean': x[:, ::-1], 'random:class': x / 9 + noise.normal(size=x.shape),
    'random:mean': noise.normal(size=x.shape), 'pixels': noise.normal(size=x.shape),
  }  # fmt: skip
  return judge.Data(more(train), more(test), train_labels, test_labels, CLASSES)


@pytest.fixture(scope='module')
def lines(data):
  return judged(data)


def judged(data):
  """All features are as wide, so that they share programs."""
  return [
    *judge.lines(data, ['class'], ('knn', 'logistic', 'fewshot', 'curve'), SETTINGS),
    *judge.lines(data, ['class', 'class+mean'], ('linear',), SETTINGS),
  ]


def test_every_method_has_its_controls(data, lines):
  found = {(line.method, line.features): line for line in lines}
  assert [method for method, name in found if name == 'class'] == [
    'knn', 'logistic', '1-shot ridge', '2-shot ridge', '1 labels a class', '4 labels a class',
  ]  # fmt: skip
  assert {*found['knn', 'class'].controls} == {'pixels', 'pca', 'random:class'}
  assert judge.controls(data, 'class+mean') == ['pixels', 'random:class+mean']
  assert judge.controls(judge.with_components(data), 'pixels') == ['pca']
  line = found['linear', 'class, class+mean']
  assert {*line.controls} == {'pixels', 'pca', 'random'}
  for line in lines:
    if line.method in ('knn', 'logistic', 'linear'):
      assert line.found.top1 > 0.8
    gain, low, high = line.gain()
    assert low <= gain <= high
    assert gain == pytest.approx(
      line.found.top1 - max(each.top1 for each in line.controls.values())
    )
    low, high = line.found.interval()
    assert low <= line.found.top1 <= high


def test_nothing_is_chosen_by_the_test_examples(data, lines):
  """With other labels of the test examples all predictions and choices are the same."""
  other = data._replace(test_labels=(data.test_labels + 1) % CLASSES)
  again = judged(other)
  for one, two in zip(lines, again, strict=True):
    assert one.found.chosen == two.found.chosen
    assert not (one.found.right & two.found.right).any()  # what was said was right once only
    assert {n: c.chosen for n, c in one.controls.items()} == {
      n: c.chosen for n, c in two.controls.items()
    }


def test_components_are_those_of_scikit_learn(data):
  found = judge.with_components(data)
  pca = PCA(svd_solver='full').fit(data.train['pixels'].astype(np.float64))
  want = pca.transform(data.test['pixels'].astype(np.float64))
  assert found.test['pca'].shape == want.shape
  np.testing.assert_allclose(abs(found.test['pca']), abs(want), atol=1e-4)
  train, _ = judge.scaled(found, 'pca')
  assert np.square(train).mean() == pytest.approx(1, rel=1e-4)
  spread = train.std(0) / train.std(0)[0]
  np.testing.assert_allclose(
    spread, np.sqrt(pca.explained_variance_ / pca.explained_variance_[0]), rtol=1e-3
  )


def test_what_cannot_be_judged(data):
  with pytest.raises(RunError, match="there are no features 'pooled': there are class, mean"):
    judge.knn(data, 'pooled', SETTINGS)
  first = [int(np.flatnonzero(data.train_labels == c)[0]) for c in range(CLASSES)]
  few = data._replace(
    train={name: x[first] for name, x in data.train.items()}, train_labels=np.arange(CLASSES)
  )
  with pytest.raises(RunError, match='no class has two examples in train'):
    judge.by_logistic(few, 'class', SETTINGS)
  assert judge.fewshot(few, 'class', 1, SETTINGS).right.shape == (2, 60)
