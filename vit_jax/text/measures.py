"""How near captions and answers come to those that people gave: BLEU, CIDEr-D, accuracy of VQA.

BLEU and CIDEr count words between white space, as pycocoevalcap does: give them texts that `words`
has written. Answers are given as they are.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.text import forms

_LONGEST = 4  # n-grams have up to so many words
_SIGMA = 6.0  # of CIDEr-D's penalty for lengths

_Grams = list[Counter[tuple[str, ...]]]


def bleu(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> np.ndarray:
  """BLEU-1 to BLEU-4 of a corpus (Papineni et al. 2002, section 2.3), as pycocoevalcap's `Bleu`.

  Matches and lengths are summed over the corpus. The length that hypotheses should have is that of
  the reference nearest in length, of two equally near the shorter one.

  Args:
    references: of each example one text or more.
    hypotheses: of each example what a model says; may be empty.

  Returns:
    float64 (4,) in [0, 1]: with n-grams of one word, of up to two, three and four words.

  Raises:
    RunError: without examples, for an example without references, for unequal counts, or for what
      is no text.
  """
  right, made, length, wanted = np.zeros(_LONGEST), np.zeros(_LONGEST), 0, 0
  for own, said in _read(references, hypotheses):
    # & and | of counters are the minimum and the maximum.
    most = [functools.reduce(operator.or_, same) for same in zip(*own, strict=True)]
    right += [(some & limit).total() for some, limit in zip(said, most, strict=True)]
    made += [some.total() for some in said]
    own_length = said[0].total()
    length += own_length
    wanted += min((abs(n - own_length), n) for n in (each[0].total() for each in own))[1]
  # The reference's two small numbers: without a match the result is not quite 0, and not NaN.
  precisions = (right + 1e-15) / (made + 1e-9)
  ratio = (length + 1e-15) / (wanted + 1e-9)
  brevity = math.exp(min(0.0, 1 - 1 / ratio))
  return brevity * np.cumprod(precisions) ** (1 / np.arange(1, _LONGEST + 1))


class Cider(NamedTuple):
  """What `cider` finds.

  Attributes:
    value: of the corpus, the mean; papers print 100 times this.
    each: by example, float64 (examples,).
  """

  value: float
  each: np.ndarray


def cider(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> Cider:
  """CIDEr-D (Vedantam et al. 2015, section "CIDEr-D"), as pycocoevalcap's `Cider`.

  Rare n-grams count more. How rare they are is counted in the references given here, so that values
  of a subset cannot be compared with those of the whole, and a single example has the value 0.

  Args:
    references: of each example one text or more.
    hypotheses: of each example what a model says; may be empty.

  Returns:
    values in [0, 10].

  Raises:
    RunError: see `bleu`.
  """
  corpus = _read(references, hypotheses)
  sets = Counter(
    gram for own, _ in corpus for gram in {gram for text in own for same in text for gram in same}
  )
  weights = {gram: math.log(len(corpus)) - math.log(count) for gram, count in sets.items()}

  def vectors(text: _Grams) -> list[dict[tuple[str, ...], float]]:
    other = math.log(len(corpus))  # what no reference has weighs as much as what is in one set
    return [{gram: n * weights.get(gram, other) for gram, n in same.items()} for same in text]

  each = []
  for own, said in corpus:
    ours, value = vectors(said), 0.0
    for text in own:
      # In words. The reference counts pairs, which comes to the same: only a text of no word has as
      # many as one of one, and nothing in common with any.
      apart = said[0].total() - text[0].total()
      cosines = map(_clipped_cosine, ours, vectors(text))
      value += math.exp(-(apart**2) / (2 * _SIGMA**2)) * sum(cosines) / _LONGEST
    each.append(10 * value / len(own))
  return Cider(float(np.mean(each)), np.array(each))


def _clipped_cosine(ours: dict[tuple[str, ...], float], own: dict[tuple[str, ...], float]) -> float:
  """The cosine, but that no entry of a hypothesis counts for more than the reference has."""
  lengths = math.hypot(*ours.values()) * math.hypot(*own.values())
  product = sum(min(value, own[gram]) * own[gram] for gram, value in ours.items() if gram in own)
  return product / lengths if lengths else 0.0


def _read(
  references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> list[tuple[list[_Grams], _Grams]]:
  """By example the n-grams of its references and of its hypothesis; raises as `bleu` says."""
  if isinstance(hypotheses, str):
    raise RunError(f'hypotheses are one text, {hypotheses!r:.60}: give a list with one per example')
  if len(references) != len(hypotheses):
    raise RunError(
      f'there are references for {len(references):,} examples and hypotheses for '
      f'{len(hypotheses):,}: give as many'
    )
  if not len(references):
    raise RunError('there are no examples to measure')
  for number, own in enumerate(references):
    if isinstance(own, str):
      raise RunError(
        f'the references of example {number} are one text, {own!r:.60}: give a list of texts'
      )
    if not len(own):
      raise RunError(f'example {number} has no references: give at least one')
  return [([_grams(text) for text in own], _grams(said))
          for own, said in zip(references, hypotheses, strict=True)]  # fmt: skip


def _grams(text: str) -> _Grams:
  """How often each n-gram is in a text, by n."""
  words = forms.whole(text).split()
  return [Counter(zip(*(words[at:] for at in range(n)), strict=False))
          for n in range(1, _LONGEST + 1)]  # fmt: skip


def vqa_accuracy(answers: Sequence[str], said: str) -> float:
  """How right an answer is by those of several people (Antol et al. 2015, section 3).

  The mean over all sets of answers that leave out one of min(matches / 3, 1), as in the evaluation
  of VQA: of ten answers 0, 1, 2, 3, 4 or more that match give 0, 0.3, 0.6, 0.9, 1. With two or
  three answers the best is 1/3 or 2/3. A single answer, which leaves none, is right or wrong.

  Args:
    answers: to one question, as people gave them.
    said: what a model says.

  Returns:
    in [0, 1].

  Raises:
    RunError: without answers, or for what is no text.
  """
  if isinstance(answers, str):
    raise RunError(f'answers are one text, {answers!r:.60}: give a list of texts')
  if not len(answers):
    raise RunError('the question has no answers: give at least one')
  own = normalised(said)
  count, same = len(answers), sum(normalised(answer) == own for answer in answers)
  if count == 1:
    return float(same)
  return (same * min((same - 1) / 3, 1) + (count - same) * min(same / 3, 1)) / count


def exact(answer: str, said: str) -> bool:
  """Whether two answers are the same once both are `normalised`.

  Raises:
    RunError: for what is no text.
  """
  return normalised(answer) == normalised(said)


# The tables are those of the evaluation of VQA. Each contraction is restored where one of its
# apostrophes is missing; those with 'I' are not, as they are looked up in lower case.
_CONTRACTIONS = """
  ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
  haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
  might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
  shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
  someone's something'd something'd've something'll that's there'd there'd've there're there's
  they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
  what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
  won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_RESTORED = {
  form[:at] + form[at + 1 :]: form
  for form in _CONTRACTIONS.split()
  for at, letter in enumerate(form)
  if letter == "'"
}
_RESTORED["somebody'd"] = 'somebodyd'  # the wrong way round there, too
_NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten')
_DIGITS = {'none': '0', **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {'a', 'an', 'the'}
_MARKS = ';/[]"{}()=+\\_-><@`!'
_STOP = re.compile(r'\.(?!\d)')
# The reference hands over a flag, re.UNICODE, where the number of replacements belongs.
_STOPS = 32


def normalised(answer: str) -> str:
  """An answer as evaluations of VQA compare it, as m4c_evaluator of Pythia and LLaVA writes it.

  Lower case; commas, question marks and full stops that no digit follows are left out; 's is a word
  of its own; any other mark is left out where the text has one beside a space, and otherwise a
  space. Then by word: zero to ten and none are digits, articles are left out, and the apostrophe of
  contractions is restored. An answer of nothing but articles is empty. VQA's own script leaves 's
  where it is, and has another rule for commas.

  Raises:
    RunError: for what is no text.
  """
  text = forms.whole(answer).lower().replace(',', '').replace('?', '').replace("'s", " 's")
  text = read = text.replace('\n', ' ').replace('\t', ' ').strip()
  for mark in _MARKS:
    text = text.replace(mark, '' if f'{mark} ' in read or f' {mark}' in read else ' ')
  numbers = (_DIGITS.get(word, word) for word in _STOP.sub('', text, _STOPS).split())
  return ' '.join(_RESTORED.get(word, word) for word in numbers if word not in _ARTICLES)


_PLAIN = str.maketrans({**dict.fromkeys('‘’', "'"), **dict.fromkeys('“”', '"'),
                        **dict.fromkeys('–—', ' '), '…': ' '})  # fmt: skip
# Two words that are written as one: isn't, she's, cannot, gonna.
_PAIRS = re.compile(r"""
    (?<=\w) (?= (?: n't | '(?:s|m|d|ll|re|ve) ) (?!\w) )
  | (?<= \bcan) (?=not\b) | (?<= \bgon | \bwan) (?=na\b) | (?<= \bgot) (?=ta\b)
  | (?<= \bgim | \blem) (?=me\b) | (?<= (?<!\w)'t) (?=is\b|was\b)
""", re.X)  # fmt: skip
_WORD = re.compile(r"""
    (?: mr | mrs | ms | dr | prof | st | mt | jr | sr | vs | etc | inc | co | ltd | ft | ave ) \.
    (?!\w)
  | no\. (?=\s*\d)
  | (?: [^\W\d_] \. )+ (?!\w)                        # p.m., initials
  | n't (?!\w) | ' (?: s | m | d | ll | re | ve | t | em ) (?!\w)
  | (?<!\w) '\d\ds? (?!\w)                           # '90s
  | (?: [#@] (?=[^\W\d_]) | (?<!\S) [-+] (?=\d) )?
    \w+ (?: [-&/.] \w+ | (?<=[^\W\d_]) ' [^\W\d_]+ | (?<=\d) [,:] \d+ )*
  | [!?]+ | \.+ | -+ | \S
""", re.X)  # fmt: skip
_LEFT_OUT = frozenset('\'"`.?!,:;')
_BRACKETS = {'(': '-lrb-', ')': '-rrb-', '[': '-lsb-', ']': '-rsb-', '{': '-lcb-', '}': '-rcb-'}


def words(text: str) -> str:
  """The words of a text as captions are compared, with single spaces between them.

  This is what pycocoevalcap makes of texts first, with Stanford's PTBTokenizer in Java: lower case,
  no punctuation, "isn't" is "is n't", "she's" is "she 's", brackets are words ('-lrb-'). For plain
  sentences, as the prompts of CLIP with names of ImageNet, both write the same. They differ for
  addresses, entities and tags of HTML, smileys and emoji, currencies but the dollar, decimals
  behind letters ('v2.1'), unspaced '?' and '!' between words, foreign apostrophes, and for
  abbreviations beyond a few ('Mr.', 'St.', initials). There, whether a single letter at the end of
  a text keeps its full stop, as here, depends on the text that is read next. Texts with many of
  these get values that are a little off those of papers.

  Raises:
    RunError: for what is no text.
  """
  text = _PAIRS.sub(' ', forms.whole(text).lower().translate(_PLAIN))
  found: list[str] = _WORD.findall(text)
  kept = (word for word in found if word not in _LEFT_OUT and word.strip('.-'))
  return ' '.join(_BRACKETS.get(word, word) for word in kept)
