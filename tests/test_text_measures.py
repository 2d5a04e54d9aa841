"""Values of papers, of the reference implementations, and such as can be seen by hand."""

import math
import random

import numpy as np
import pytest

from vit_jax.core.errors import RunError
from vit_jax.text import measures
from vit_jax.text.measures import bleu, cider, exact, normalised, vqa_accuracy, words

REFERENCES = [
  ('a red square left of a blue circle', 'a square to the left of a circle'),
  ('two green triangles', 'two triangles that are green'),
  ('a yellow circle above a black square', 'a circle above a square'),
]
SAID = [
  'a red square left of a blue circle', 'two triangles', 'a yellow circle above a black square',
]  # fmt: skip


def drawn(seed, count=50):
  """References and hypotheses of few words, some of none."""
  rng = random.Random(seed)
  text = lambda: ' '.join(rng.choice('abcdefg') for _ in range(rng.randint(0, 9)))  # noqa: E731
  return [[text() for _ in range(rng.randint(1, 5))] for _ in range(count)], [
    text() for _ in range(count)
  ]


def test_golden():
  """What pycocoevalcap 1.2 says."""
  found = cider(REFERENCES, SAID)
  assert found.value == pytest.approx(5.122763, abs=1e-6)
  np.testing.assert_allclose(found.each, [6.350883, 2.255779, 6.761628], atol=1e-6)
  np.testing.assert_allclose(bleu(REFERENCES, SAID), np.full(4, 0.942873), atol=1e-6)


def test_bleu_of_papineni():
  """Section 2.1 of the paper: 2 of 7, as one reference has 'the' twice; and its two candidates."""
  own = ['the cat is on the mat', 'there is a cat on the mat']
  assert bleu([own], ['the the the the the the the'])[0] == pytest.approx(2 / 7)
  own = [
    'it is a guide to action that ensures that the military will forever heed party commands',
    'it is the guiding principle which guarantees the military forces always being under the '
    'command of the party',
    'it is the practical guide for the army always to heed the directions of the party',
  ]
  one = (
    'it is a guide to action which ensures that the military always obeys the commands of the party'
  )
  two = 'it is to insure the troops forever hearing the activity guidebook that party direct'
  found = bleu([own], [one])  # its length, 18, is that of a reference
  assert found[:2] == pytest.approx([17 / 18, math.sqrt(17 / 18 * 10 / 17)])
  found = bleu([own], [two])  # 14, where 16 is nearest
  assert found[:2] == pytest.approx(math.exp(1 - 16 / 14) * np.sqrt([(8 / 14) ** 2, 8 / 14 / 13]))


def test_bleu_of_short_texts():
  """Where there are no n-grams, a factor of 1e-15 / 1e-9 stands for the precision."""
  found = bleu([['a b c d']], ['a b'])
  np.testing.assert_allclose(found, np.exp(-1) * np.array([1, 1, 1e-2, 1e-3]), rtol=1e-6)
  assert not bleu([['a b'], ['c']], ['', '']).any()
  assert bleu([['a b c d'], ['a b c d']], ['', 'a b c d'])[3] == pytest.approx(np.exp(-1))
  assert np.isfinite(bleu([['']], [''])).all()


@pytest.mark.parametrize('own', [['a b', 'a b x y'], ['a b x y', 'a b']])
def test_of_two_references_as_near_the_shorter_counts(own):
  assert bleu([own], ['a b c'])[0] == pytest.approx(2 / 3)
  assert bleu([[*own, 'x y z']], ['a b c'])[0] == pytest.approx(2 / 3)
  assert bleu([['a b x y', 'c']], ['a b c'])[0] == pytest.approx(math.exp(1 - 4 / 3))


def test_lengths_are_summed_before_the_penalty():
  """One text is as much too long as the other is too short."""
  assert bleu([['a b c'], ['a']], ['a b', 'a a'])[0] == pytest.approx(3 / 4)


def test_cider_by_hand():
  """Two examples, so that a word that one of them has weighs ln 2, and one of both nothing."""
  found = cider([['a b'], ['c d']], ['a b', 'a b'])
  np.testing.assert_allclose(found.each, [5, 0])  # 1 for words and pairs, 0 for longer ones
  assert found.value == pytest.approx(2.5)
  # What is said twice counts once, but its vector is longer.
  one = cider([['a b'], ['c d']], ['a a', 'c'])
  near = math.exp(-1 / 72) / math.sqrt(2)  # one word where there are two
  np.testing.assert_allclose(one.each, [2.5 / (2 * math.sqrt(2)), 2.5 * near])
  # A word that no reference has weighs as much as one that a single set has.
  new = cider([['a b'], ['c d']], ['a x', 'c d'])
  np.testing.assert_allclose(new.each, [2.5 / 2, 5])
  np.testing.assert_allclose(cider([['a b'], ['a c']], ['a', 'a c']).each, [0, 5])
  # Of several references the mean.
  np.testing.assert_allclose(cider([['a', ''], ['c']], ['a', '']).each, [1.25, 0])
  # How often a word is in one set does not matter.
  np.testing.assert_allclose(cider([['a', 'a a'], ['c']], ['c', 'c']).each, [0, 2.5])


def test_cider_of_little():
  assert cider([['a b c d e']], ['a b c d e']).each.tolist() == [0]  # weights are ln 1
  assert cider([[''], ['']], ['', '']).value == 0
  assert cider([['a b'], ['c d']], ['', '']).value == 0


@pytest.mark.parametrize('seed', range(5))
def test_measures_of_equal_texts(seed):
  references, said = drawn(seed)
  references = [[f'u v w x{at} {text}' for text in own] for at, own in enumerate(references)]
  same = [own[-1] for own in references]
  assert bleu(references, same) == pytest.approx(np.ones(4))
  alone = cider([own[-1:] for own in references], same)
  np.testing.assert_allclose(alone.each, 10)
  among = cider(references, same).each
  assert ((among > 2) & (among < 10 + 1e-9)).all()
  assert (cider(references, said).each < among).all()
  assert (bleu(references, said) < 1).all()


@pytest.mark.parametrize('seed', range(5))
def test_orders_do_not_matter(seed):
  references, said = drawn(seed)
  rng = random.Random(seed)
  order = rng.sample(range(len(said)), len(said))
  other = (
    [rng.sample(references[at], len(references[at])) for at in order],
    [said[at] for at in order],
  )
  np.testing.assert_allclose(bleu(references, said), bleu(*other))
  one, two = cider(references, said), cider(*other)
  np.testing.assert_allclose(one.each[order], two.each)
  assert one.value == pytest.approx(two.value) == one.each.mean()
  assert (one.each >= 0).all()


@pytest.mark.parametrize(
  ('count', 'value'), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)]
)
def test_accuracy_of_ten_answers(count, value):
  answers = ['Red.'] * count + ['blue'] * (10 - count)
  random.Random(count).shuffle(answers)
  assert vqa_accuracy(answers, 'the red') == pytest.approx(value)


def test_accuracy_of_other_numbers_of_answers():
  assert vqa_accuracy(['two'], '2') == 1
  assert vqa_accuracy(['two'], '3') == 0
  assert vqa_accuracy(['a', 'b'], 'b') == pytest.approx(1 / 6)
  assert vqa_accuracy(['x', 'x', 'x'], 'x') == pytest.approx(2 / 3)
  assert vqa_accuracy(['x', 'x', 'x', 'y'], 'x') == pytest.approx((3 * 2 / 3 + 1) / 4)


# What EvalAIAnswerProcessor says, which is the class in m4c_evaluator; see tests/parity.
NORMALISED = {
  'The  Red\tBus.\n': 'red bus', 'A': '', 'an apple a day': 'apple day', 'Yes!': 'yes',
  'none': '0', 'ten Zero': '10 0', 'eleven': 'eleven', 'two-two': '2 2', 'two -two': '2 2',
  '1,000': '1000', '3.5': '3.5', '3.': '3', '.5': '.5', 'U.S.': 'us', 'a.b': 'ab',
  'black/white': 'black white', 'black / white': 'black white', 'red/ white/blue': 'red whiteblue',
  "dont": "don't", "Don't": "don't", "couldnt've": "couldn't've", "couldn'tve": "couldn't've",
  "couldntve": 'couldntve', "yalldve": 'yalldve', "y'alldve": "y'alldve", "yall'd've": "y'all'd've",
  "hes": "he's", "he's": "he 's", "im": 'im', "oclock": "o'clock", "lets": 'lets',
  "somebody'd": 'somebodyd', "twas": "'twas", 'what?': 'what', '(none)': '0', '"it"': 'it',
  '.' * 40: '.' * 8,
}  # fmt: skip


@pytest.mark.parametrize('text', NORMALISED)
def test_normalised(text):
  assert normalised(text) == NORMALISED[text]
  assert exact(text, NORMALISED[text].replace(' ', '  the ')) == (
    normalised(NORMALISED[text]) == NORMALISED[text]
  )


def test_exact():
  assert exact('Two cats.', 'the 2 cats')
  assert not exact('two cats', 'two cat')
  assert not exact('yes', '')


# What PTBTokenizer of pycocoevalcap 1.2 says under Java 17; see tests/parity.
WORDS = {
  "A man's hat -- it isn't (very) red.": "a man 's hat it is n't -lrb- very -rrb- red",
  'Mr. Smith met Dr. Jones on St. John St. at 5 p.m. yesterday.':
    'mr. smith met dr. jones on st. john st. at 5 p.m. yesterday',
  "He's got two-year-old twins, hasn't he?": "he 's got two-year-old twins has n't he",
  "gotta gonna wanna cannot 'tis": "got ta gon na wan na can not 't is",
  '50% off! $1,000.50 -5 +3 5\'10" 6ft 3rd': '50 % off $ 1,000.50 -5 +3 5 10 6ft 3rd',
  'dash - dash -- dash --- a–b a — b a-b a- -b': 'dash dash dash a b a b a-b a b',
  'don’t it’s “quoted” ‘single’': "do n't it 's quoted single",
  '...leading dots.. two dots . . . spaced': 'leading dots two dots spaced',
  '!!! ??? ?! !? wow!!': '!!! ??? ?! !? wow !!',
  'a,b a, b a ,b 1,2 1, 2': 'a b a b a b 1,2 1 2',
  "I'd've shouldn't've who's": "i 'd 've should n't 've who 's",
  "HE'S DON'T CAN'T O'Brien o'clock": "he 's do n't ca n't o'brien o'clock",
  "the dogs' bowls in the '90s": "the dogs bowls in the '90s",
  'one/two 3/4 10:30 R&B #tag @user': 'one/two 3/4 10:30 r&b #tag @user',
  'table.the man, x = y': 'table.the man x = y', 'a ford model t. in red': 'a ford model t. in red',
  'A no. 5 bus says no.': 'a no. 5 bus says no', 'wait… what…': 'wait what',
  'café naïve 日本語': 'café naïve 日本語', '.': '', '': '',
}  # fmt: skip


@pytest.mark.parametrize('text', WORDS)
def test_words(text):
  assert words(text) == WORDS[text]


@pytest.mark.parametrize(('references', 'said', 'message'), [
  ([], [], 'there are no examples to measure'),
  ([['a']], [], 'references for 1 examples and hypotheses for 0: give as many'),
  ([['a'], []], ['a', 'b'], 'example 1 has no references: give at least one'),
  (['a b'], ['a b'], "references of example 0 are one text, 'a b': give a list of texts"),
  ([['a b']], 'a b', "hypotheses are one text, 'a b': give a list with one per example"),
  ([['a', None]], ['b'], 'a text is expected, not None'),
  ([['a']], [7], r'a text is expected, not 7 \(int\)'),
])  # fmt: skip
def test_bad_captions(references, said, message):
  for measure in bleu, cider:
    with pytest.raises(RunError, match=message):
      measure(references, said)


def test_bad_answers():
  with pytest.raises(RunError, match='has no answers: give at least one'):
    vqa_accuracy([], 'a')
  with pytest.raises(RunError, match="answers are one text, 'red': give a list of texts"):
    vqa_accuracy('red', 'a')
  for call in (lambda: vqa_accuracy(['a'], None), lambda: exact('a', 1.5), lambda: words(None),
               lambda: vqa_accuracy([None], 'a')):  # fmt: skip
    with pytest.raises(RunError, match='a text is expected, not'):
      call()


def test_contractions_are_restored():
  """All entries of VQA's table that can apply: none has 's, which is cut off, or a capital."""
  alive = {wrong for wrong in measures._RESTORED if "'s" not in wrong}
  assert all(normalised(wrong) == measures._RESTORED[wrong] for wrong in alive)
  assert len(alive) == 112
