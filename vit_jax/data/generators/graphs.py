"""What is in a picture of coloured forms, and what can be said of it.

All that is said comes from the `Graph`, so that it is true; where several words mean the same, one
of them is drawn. No sentence says more than tells things apart: sizes are named only where two
things have the same colour and the same form.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
  import numpy as np

COLOURS = ('red', 'green', 'blue', 'yellow', 'purple', 'orange', 'cyan', 'white')
# What each form is called, first as in the names of classes.
FORMS = {
  'circle': ('circle', 'disc'), 'square': ('square', 'box'), 'triangle': ('triangle',),
  'star': ('star',), 'cross': ('cross', 'plus'), 'ring': ('ring',),
}  # fmt: skip
SIZES = ('small', 'large')
PAIRS = tuple(f'{colour} {form}' for colour, form in itertools.product(COLOURS, FORMS))
# How a thing lies to another one.
RELATIONS = {
  'left': ('left of', 'to the left of', 'on the left of'),
  'right': ('right of', 'to the right of', 'on the right of'),
  'above': ('above', 'over', 'higher than'),
  'below': ('below', 'under', 'lower than'),
}
FRAMES = ('{}', 'there is {}', 'a picture of {}', 'an image with {}')
_ARTICLES = ('a', 'an')


def _words() -> tuple[str, ...]:
  phrases = itertools.chain(
    _ARTICLES, (frame.replace('{}', '') for frame in FRAMES), SIZES, COLOURS, *FORMS.values(),
    *RELATIONS.values(),
  )  # fmt: skip
  return tuple(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


# All that captions are made of, in a fixed order.
WORDS = _words()


@dataclasses.dataclass(frozen=True)
class Thing:
  """An object.

  Attributes:
    colour: one of `COLOURS`.
    form: one of `FORMS`.
    large: or small.
    at: x and y of its centre, in pixels.
    radius: of the circle around it, in pixels.
  """

  colour: str
  form: str
  large: bool
  at: tuple[float, float]
  radius: float

  @property
  def pair(self) -> str:
    """Colour and form, one of `PAIRS`."""
    return f'{self.colour} {self.form}'


class Caption(NamedTuple):
  """What is said of a picture.

  Attributes:
    text: names one thing, or two and how they lie.
    swapped: the same words with the two things exchanged, which is wrong; '' where one is named.
    first: number of the thing that is named first.
  """

  text: str
  swapped: str
  first: int


@dataclasses.dataclass(frozen=True)
class Graph:
  """All things of a picture; no two have the same colour, form and size.

  Whatever of x and y sets two of them further apart sets them apart as a whole.
  """

  things: tuple[Thing, ...]

  def relation(self, one: int, other: int) -> str:
    """How one thing lies to another, on the axis on which they are further apart."""
    (x, y), (u, v) = self.things[one].at, self.things[other].at
    if abs(x - u) >= abs(y - v):
      return 'left' if x < u else 'right'
    return 'above' if y < v else 'below'

  def named(self, number: int, rng: np.random.Generator) -> str:
    """'a red circle', or, where there is another of them, 'a small red circle'."""
    thing = self.things[number]
    alike = sum(each.pair == thing.pair for each in self.things) > 1
    words = [SIZES[thing.large]] * alike + [thing.colour, _one_of(FORMS[thing.form], rng)]
    return f'{_ARTICLES[words[0][0] in "aeiou"]} {" ".join(words)}'

  def caption(self, rng: np.random.Generator, count: int) -> Caption:
    """Says something of `count` things, 1 or 2, that are drawn, too."""
    numbers = rng.permutation(len(self.things))[:count].tolist()
    names, frame = [self.named(number, rng) for number in numbers], _one_of(FRAMES, rng)
    if count == 1:
      return Caption(frame.format(*names), '', numbers[0])
    how = _one_of(RELATIONS[self.relation(*numbers)], rng)
    text, swapped = (frame.format(f'{a} {how} {b}') for a, b in (names, names[::-1]))
    return Caption(text, swapped, numbers[0])


def _one_of(words: Sequence[str], rng: np.random.Generator) -> str:
  return words[int(rng.integers(len(words)))]
