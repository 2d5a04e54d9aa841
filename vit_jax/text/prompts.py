"""Texts that say what is in an image, for classes that a model was never trained on.

Sets of templates by name are in `templates.json`. 'imagenet' are the 80 of CLIP (Radford et al.
2021, section 3.1.4), 'imagenet7' the seven that its authors chose from them later: both as in
notebooks/Prompt_Engineering_for_ImageNet.ipynb of github.com/openai/CLIP. Those of other data sets,
called as TFDS calls these, are in its data/prompts.md. `imagenet_names` are the 1,000 names of that
notebook. Terms: LICENSES.md.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.text import forms

PLACE = '{}'
_FOLDER = paths.here(__file__)


@functools.cache
def templates() -> dict[str, tuple[str, ...]]:
  """The sets by name: texts with '{}' where the name of a class belongs."""
  found = json.loads(paths.read_text(_FOLDER / 'templates.json'))
  own = {'plain': (PLACE,), 'photo': ('a photo of a {}.',)}
  return own | {name: tuple(texts) for name, texts in found.items()}


def imagenet_names() -> tuple[str, ...]:
  """Of the 1,000 classes of ImageNet, in its order, as CLIP's authors call them.

  Two names are there twice, missile and sunglasses.
  """
  return tuple(paths.read_text(_FOLDER / 'imagenet_names.txt').splitlines())


def chosen(text: str) -> tuple[str, ...]:
  """Templates as a person asks for them.

  Args:
    text: names of sets and templates of one's own, separated by ';': 'imagenet7; {}'.

  Raises:
    RunError: for what is neither.
  """
  known, found = templates(), []
  for part in filter(None, map(str.strip, text.split(';'))):
    if part not in known and part.count(PLACE) != 1:
      raise RunError(
        f'{part!r} is no template, which has {PLACE} once, where the name of a class belongs, nor '
        f'a set of them: {suggest(part, known)}'
      )
    found += known.get(part, (part,))
  if not found:
    raise RunError(f'no templates are given: write {PLACE!r}, or {", ".join(known)}')
  return tuple(dict.fromkeys(found))


def prompts(names: Iterable[str], templates: str, canonical: bool = False) -> list[list[str]]:
  """What is said of each class: its name in every template.

  Of a name with aliases, 'tench, Tinca tinca', the first one is taken, as by big_vision. '_' is a
  space.

  Args:
    names: of the classes.
    templates: see `chosen`.
    canonical: names and templates are in lower case and without punctuation, as big_vision judges
      SigLIP and SigLIP 2.

  Raises:
    RunError: for a class without a name, or as `chosen` does.
  """
  form = forms.canonical if canonical else lambda text, keep='': text
  wanted = [form(template, keep=PLACE).split(PLACE) for template in chosen(templates)]
  found = []
  for number, name in enumerate(names):
    first = ' '.join(form(forms.whole(name), keep=',').partition(',')[0].replace('_', ' ').split())
    if not first:
      raise RunError(f'class {number} is called {name!r}, which says nothing of it')
    found.append([first.join(parts) for parts in wanted])
  return found
