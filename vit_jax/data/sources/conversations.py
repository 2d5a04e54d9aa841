"""Dialogues as files have them: who says what, one message after the other."""

from __future__ import annotations

from typing import Any

# Who speaks, as LLaVA calls them, and as chat templates do.
_ASKS, _ANSWERS = ('human', 'user'), ('gpt', 'assistant')
_KEYS = (('from', 'value'), ('role', 'content'))


def turns(value: Any) -> tuple[tuple[str, str], ...]:
  """Pairs of what is asked and what is answered, of a list of messages.

  An answer at the start, which nobody asked for, is left out, as in LLaVA.

  Args:
    value: [{'from': 'human', 'value': TEXT}, {'from': 'gpt', 'value': TEXT}, ...], or the same with
      'role', 'content', 'user' and 'assistant'.

  Raises:
    ValueError: for anything else, as the end of a sentence about it.
  """
  if not isinstance(value, list) or not value:
    raise ValueError('is no list of messages')
  said = [_message(number, each) for number, each in enumerate(value)]
  if not said[0][0]:
    del said[0]
  for number, (asks, _) in enumerate(said):
    if asks == bool(number % 2):
      who = 'the person' if asks else 'the model'
      raise ValueError(f'has two messages of {who} in a row: questions and answers take turns')
  if not said or len(said) % 2:
    raise ValueError('ends with a question' if said else 'has no question')
  return tuple((said[at][1], said[at + 1][1]) for at in range(0, len(said), 2))


def _message(number: int, value: Any) -> tuple[bool, str]:
  """Whether a message asks, and its text."""
  for who, what in _KEYS:
    if isinstance(value, dict) and value.keys() >= {who, what}:
      speaker, text = value[who], value[what]
      if speaker not in (*_ASKS, *_ANSWERS):
        known = ', '.join((*_ASKS, *_ANSWERS))
        raise ValueError(f'has a message of {speaker!r:.40}, who is none of {known}')
      if not isinstance(text, str):
        raise ValueError(f'has the message {text!r:.40}, which is no text')
      return speaker in _ASKS, text
  raise ValueError(f'has no {{"from": ..., "value": ...}} as its message number {number}')
