"""Dialogues beside the text that the templates of published checkpoints make of them."""

import itertools

import jinja2
import pytest

from tests.test_dialogues import SPECIALS, letters
from vit_jax.text.dialogues import PADDING, TEMPLATES, encode, prompt

CHATML = (
  "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nSYSTEM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + "
  "'\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# In tokenizer_config.json of SmolLM2-135M-Instruct, Qwen2-0.5B-Instruct and gemma-2b-it.
PUBLISHED = {
  'chatml': CHATML.replace(
    'SYSTEM', 'You are a helpful AI assistant named SmolLM, trained by Hugging Face'
  ),
  'qwen2': CHATML.replace('SYSTEM', 'You are a helpful assistant.'),
  'gemma': (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == "
    "'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
  ),
}
TEXTS = ('What is it?', ' It is  a cat.\nIt purrs. ', 'é 1234', '"why"\t{{x}}', '你好')


@pytest.mark.parametrize('name', PUBLISHED)
def test_chat_templates(name, tmp_path):
  """A text that is whole gives the same tokens as its parts, where each byte is a token."""
  tokenizer, package = letters(tmp_path / 'letters.json')
  package.encode_special_tokens = False
  # As transformers sets it up in `render_jinja_template`.
  template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(PUBLISHED[name])
  for count, first in itertools.product((1, 2, 3), range(len(TEXTS))):
    said = [TEXTS[(first + number) % len(TEXTS)] for number in range(2 * count)]
    turns = [*zip(said[::2], said[1::2], strict=True)]
    roles = ('user', 'assistant') * count
    messages = [dict(role=role, content=text) for role, text in zip(roles, said, strict=True)]

    def theirs(messages, **options):
      text = template.render(messages=messages, bos_token='<bos>', **options)
      return package.encode(text, add_special_tokens=False).ids

    whole = encode(TEMPLATES[name], tokenizer, turns, 0, 2000)
    assert [n for n in whole.tokens.tolist() if n != PADDING] == theirs(messages)
    begins = prompt(TEMPLATES[name], tokenizer, turns, 0)
    assert begins == theirs(messages[:-1], add_generation_prompt=True)
    learned = [whole.tokens[at] for at in whole.answered.nonzero()[0]]
    end = SPECIALS.index(TEMPLATES[name].end or '')
    text = tokenizer.opened().words(learned).replace(SPECIALS[end], '|')
    strip = TEMPLATES[name].strip
    assert text == ''.join(f'{text.strip() if strip else text}|' for text in said[1::2])


def test_vicuna_is_that_of_fastchat(tmp_path):
  """LLaVA's `Conversation.get_prompt` of the style TWO, whose separators are ' ' and '</s>'."""
  tokenizer, package = letters(tmp_path / 'letters.json')
  package.encode_special_tokens = False
  template = TEMPLATES['vicuna']
  for count in (1, 2):
    said = [f'{text} {number}' for number, text in enumerate(TEXTS)][: 2 * count]
    text = template.system + ' '
    for number, each in enumerate(said):
      role, seps = ('USER', 'ASSISTANT')[number % 2], (' ', '</s>')
      text += f'{role}: {each}{seps[number % 2]}'
    turns = [*zip(said[::2], said[1::2], strict=True)]
    whole = encode(template, tokenizer, turns, 0, 2000)
    numbers = [n for n in whole.tokens.tolist() if n != PADDING]
    assert numbers == package.encode(f'<s>{text}', add_special_tokens=False).ids
    text = text[: text.rindex('ASSISTANT:')] + 'ASSISTANT:'
    begins = prompt(template, tokenizer, turns, 0)
    assert begins == package.encode(f'<s>{text}', add_special_tokens=False).ids
