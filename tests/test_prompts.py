"""What is said of classes, against big_vision's own words and counts of CLIP's authors."""

import pytest

from vit_jax.core.errors import RunError
from vit_jax.text import forms, prompts


def test_sets_are_whole():
  """Counts as their authors state them; each template has one place, and none is there twice."""
  found = prompts.templates()
  # Stated in the notebook and in the paper, section 3.1.4.
  assert (len(found['imagenet']), len(found['imagenet7'])) == (80, 7)
  assert {*found['imagenet7']} < {*found['imagenet']}
  assert len(found) == 2 + 2 + 26  # as docs/how-to/images-and-text.md says
  assert found['photo'] == ('a photo of a {}.',)
  assert {'food101', 'oxford_iiit_pet', 'eurosat', 'cifar10', 'cifar100', 'dtd'} < found.keys()
  for name, texts in found.items():
    assert len({*texts}) == len(texts), name
    for text in texts:
      assert text.count('{}') == 1, text
      assert prompts.chosen(text) == (text,)
    assert prompts.chosen(name) == texts


def test_names_of_imagenet():
  found = prompts.imagenet_names()
  assert len(found) == 1000
  assert len({*found}) == 998
  # In the order of WordNet's numbers, as in every copy of the data set.
  assert [found[i] for i in (0, 1, 134, 517, 999)] == [
    'tench', 'goldfish', 'crane bird', 'construction crane', 'toilet paper',
  ]  # fmt: skip


def test_prompts():
  found = prompts.prompts(['tench, Tinca tinca', "St_Bernard's  {dog}"], 'photo; the {}?')
  assert found == [
    ['a photo of a tench.', 'the tench?'],
    ["a photo of a St Bernard's {dog}.", "the St Bernard's {dog}?"],
  ]
  found = prompts.prompts(['tench, Tinca tinca', "St_Bernard's  {dog}"], 'A close-up: {}!', True)
  assert found == [['a closeup tench'], ['a closeup st bernards dog']]
  assert len(prompts.prompts(prompts.imagenet_names(), 'imagenet; {}')[999]) == 81
  assert prompts.chosen('photo;a photo of a {}.; photo') == ('a photo of a {}.',)


def test_canonical_form_is_that_of_big_vision():
  """Examples of the docstring of their `canonicalize_text`, and what its code says."""
  assert forms.canonical('Hello_World,  {}!\t{x}', keep='{}') == 'hello world {} x'
  assert forms.canonical('Hello_World,  {}!') == 'hello world'
  assert forms.canonical('a, b', keep=',') == 'a, b'
  assert forms.canonical('“Ünï” – ÇA!') == '“ünï” – ça'


@pytest.mark.parametrize(('names', 'templates', 'message'), [
  (['cat'], '', 'no templates are given'), (['cat'], ' ; ', 'no templates are given'),
  (['cat'], 'imagnet', 'did you mean imagenet'), (['cat'], 'a photo', 'is no template'),
  (['cat'], '{} and {}', 'is no template'), (['cat', ''], 'plain', "class 1 is called ''"),
  ([', b'], 'plain', "class 0 is called ', b'"), ([3], 'plain', 'a text is expected, not 3'),
])  # fmt: skip
def test_what_says_nothing_is_refused(names, templates, message):
  with pytest.raises(RunError, match=message):
    prompts.prompts(names, templates)


def test_punctuation_alone_is_no_name():
  assert prompts.prompts(['?'], 'plain') == [['?']]
  with pytest.raises(RunError, match='says nothing'):
    prompts.prompts(['?'], 'plain', canonical=True)
