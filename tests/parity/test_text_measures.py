"""Captions as pycocoevalcap measures them, its tokenizer (Java), and answers as m4c_evaluator."""

import importlib.util
import pathlib
import random
import runpy
import shutil
import string

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from tests.test_text_measures import NORMALISED, WORDS
from vit_jax.text import prompts
from vit_jax.text.measures import _RESTORED, bleu, cider, normalised, vqa_accuracy, words


def drawn(seed, count, letters):
  """References and hypotheses of up to 14 words; some hypotheses are references, or empty."""
  rng = random.Random(seed)
  text = lambda: ' '.join(rng.choices(letters, k=rng.randint(0, 14)))  # noqa: E731
  references = [[text() for _ in range(rng.randint(1, 6))] for _ in range(count)]
  copies = lambda own: rng.choice([*own, text(), text(), ''])  # noqa: E731
  return references, [copies(own) for own in references]


@pytest.mark.parametrize(('count', 'letters'), [(1, 5), (2, 3), (400, 3), (400, 8), (400, 26)])
def test_captions(count, letters):
  references, said = drawn(count + letters, count, string.ascii_lowercase[:letters])
  theirs = dict(enumerate(references)), {at: [text] for at, text in enumerate(said)}
  value, each = Cider().compute_score(*theirs)
  ours = cider(references, said)
  np.testing.assert_allclose(ours.each, each, rtol=1e-12, atol=1e-12)
  assert ours.value == pytest.approx(value, rel=1e-12)
  want, _ = Bleu().compute_score(*theirs, verbose=0)
  np.testing.assert_allclose(bleu(references, said), want, rtol=1e-12)


@pytest.mark.skipif(not shutil.which('java'), reason='java is not here')
def test_words():
  """All of CLIP's prompts with names of ImageNet, and what tests/test_text_measures.py holds."""
  names, texts = prompts.imagenet_names(), [*filter(None, WORDS)]
  templates = dict.fromkeys(text for own in prompts.templates().values() for text in own)
  for at, template in enumerate(templates):
    texts += [template.replace('{}', name) for name in names[at % 20 :: 20]]
  found = PTBTokenizer().tokenize({at: [{'caption': text}] for at, text in enumerate(texts)})
  wrong = {text: (words(text), own) for text, [own] in zip(texts, found.values(), strict=True)
           if words(text) != own}  # fmt: skip
  assert not wrong
  assert {text: own for text, [own] in zip(texts, found.values(), strict=True)
          if text in WORDS} == {text: own for text, own in WORDS.items() if text}  # fmt: skip


@pytest.fixture(scope='module')
def theirs():
  """EvalAIAnswerProcessor in lmms-eval, whose package wants much more than this file does."""
  place = importlib.util.find_spec('lmms_eval').submodule_search_locations[0]
  path = pathlib.Path(place, 'tasks', '_task_utils', 'vqa_eval_metric.py')
  return runpy.run_path(str(path))['EvalAIAnswerProcessor']()


def test_normalised(theirs):
  """Texts of what rules are about, joined with and without spaces."""
  table = {wrong: right for wrong, right in theirs.CONTRACTIONS.items()
           if "'s" not in wrong and wrong.islower()}  # fmt: skip
  assert table == {wrong: right for wrong, right in _RESTORED.items() if "'s" not in wrong}
  rng = random.Random(0)
  parts = [
    *theirs.CONTRACTIONS, *theirs.CONTRACTIONS.values(), *theirs.NUMBER_MAP, *theirs.PUNCTUATIONS,
    *theirs.ARTICLES, *'.,-?!\'"1234567890éÉßİ\t\n\u00a0', "'s", 'The', 'Red', '.' * 40,
  ]  # fmt: skip
  for text in NORMALISED:
    assert NORMALISED[text] == theirs(text)
  for _ in range(20_000):
    text = rng.choice(['', ' ']).join(rng.choices([*parts, ' '], k=rng.randint(0, 8)))
    assert normalised(text) == theirs(text), text


def test_accuracy(theirs):
  """The sets that leave out one, taken one by one."""
  rng = random.Random(0)
  for _ in range(500):
    answers = [rng.choice(['red', 'Red.', 'blue', 'the 2', 'two']) for _ in range(10)]
    said, forms = rng.choice(['a red', 'two', 'green']), [theirs(answer) for answer in answers]
    left = [forms[:at] + forms[at + 1 :] for at in range(10)]
    want = np.mean([min(own.count(theirs(said)) / 3, 1) for own in left])
    assert vqa_accuracy(answers, said) == pytest.approx(want)
