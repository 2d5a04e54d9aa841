"""What tasks have in common whose models read texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.tasks.images import Images
from vit_jax.tasks.task import Fields
from vit_jax.text import TOKENIZERS
from vit_jax.text.plain import Blank, Words
from vit_jax.text.tokenizer import Filed, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading(Images):
  """A task on images and texts, which keeps the tokenizer that its model was trained with.

  Attributes:
    tokenizer: of the texts.
  """

  tokenizer: Any = schema.choice(TOKENIZERS, 'words')

  @property
  def files(self) -> tuple[str, ...]:
    """See `Task`."""
    return self.tokenizer.files

  def without_files(self) -> Self:
    """See `Task`."""
    missing = isinstance(self.tokenizer, Filed) and not self.tokenizer.files
    return dataclasses.replace(self, tokenizer=Blank.like(self.tokenizer)) if missing else self

  def again(self, theirs: Mapping[str, Any]) -> Self:
    """See `Task`: with the tokenizer that it had, and no other."""
    it = tokenizer_of(theirs)
    if it is None:
      return self
    own = dataclasses.replace(like(self.tokenizer, it), known=it.known)
    return dataclasses.replace(self, tokenizer=own)

  def words(self, fields: Fields) -> tuple[str, ...]:
    """All words of the texts of examples, where the data say them; fields as for `settled`."""
    known = [word for field in fields.values() if field.kind == 'text' for word in field.names]
    return tuple(dict.fromkeys(known))

  def settled(self, fields: Fields) -> Self:
    """See `Task`: the tokenizer as its file is now, with the words of the data if it has none."""
    tokenizer = self.tokenizer
    if isinstance(tokenizer, Words) and not tokenizer.vocabulary:
      if not (words := self.words(fields)):
        raise RunError(
          'task.tokenizer.name=words needs words, and the data do not say theirs: '
          '--config.task.tokenizer.name=bytes reads any text, clip and others read a vocabulary'
        )
      tokenizer = dataclasses.replace(tokenizer, vocabulary=words)
    return dataclasses.replace(super().settled(fields), tokenizer=tokenizer.named)


def tokenizer_of(task: Mapping[str, Any]) -> Tokenizer | None:
  """Of a task as a checkpoint keeps it, if it has one."""
  told = dict(task.get('tokenizer') or {})
  kind = schema.pick(TOKENIZERS, told.pop('name'), 'tokenizer') if told else None
  return schema.build(kind, told, 'tokenizer') if kind else None


def like(own: Tokenizer, other: Tokenizer) -> Tokenizer:
  """A tokenizer with what it leaves unset as it is of another one of its kind."""
  if type(own) is not type(other):
    return own
  length = other.length if own.length == own.usual else own.length
  unset = not getattr(own, 'file', True) or not getattr(own, 'vocabulary', True)
  return dataclasses.replace(other if unset else own, length=length)
