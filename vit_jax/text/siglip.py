"""The tokenizers of SigLIP (Zhai et al. 2023) and SigLIP 2 (Tschannen et al. 2025).

Both pool the last token of a row without a mask, so that rows must have the length of training and
be filled as in training: anything else costs accuracy, and no error says so.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vit_jax.core.errors import RunError
from vit_jax.text import forms, jsons, sentencepieces
from vit_jax.text.tokenizer import Filed, Frame, Vocabulary

_WHAT = 'it is the SentencePiece model of the checkpoint, or its tokenizer.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sticky(Filed):
  """What both do: texts always end, also where they are cut.

  `usual_size` is that of the published vocabulary, `marks` are its first pieces by their numbers.
  """

  usual_size: ClassVar[int]
  pad: ClassVar[int]
  marks: ClassVar[dict[int, str]]
  called: ClassVar[str]

  def opened(self) -> Vocabulary:
    """See `Tokenizer`."""
    (path,) = self.there(_WHAT)
    found = (jsons if path.suffix == '.json' else sentencepieces).read(path)
    for number, piece in self.marks.items():
      if found.number(piece) != number:
        raise RunError(
          f'{self.file} is not the vocabulary of {self.called}, whose token {number} is {piece}. '
          "For any other: name='sentencepiece' or name='json'"
        )
    return found

  @property
  def size(self) -> int:
    """See `Tokenizer`; where no file is named, that of the published one."""
    return self.opened().size if self.file else self.usual_size

  def framed(self, pieces: Vocabulary) -> Frame:
    """See `Tokenizer`."""
    return self.frame

  @property
  def frame(self) -> Frame:
    """See `Tokenizer`; the same for every file."""
    return Frame((), (1,), self.pad)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLip(_Sticky):
  """The tokenizer of SigLIP: lower case without punctuation; 64 tokens, ended and filled with 1.

  Attributes:
    file: spiece.model of a checkpoint of transformers, or its tokenizer.json.
  """

  kind: ClassVar[str] = 'siglip'
  usual_size: ClassVar[int] = 32_000
  pad: ClassVar[int] = 1
  marks: ClassVar[dict[int, str]] = {1: '</s>'}
  called: ClassVar[str] = 'SigLIP'

  def form(self, text: str) -> str:
    """See `Tokenizer` and `forms.canonical`."""
    return forms.canonical(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigLip2(_Sticky):
  """The tokenizer of SigLIP 2, Gemma's: lower case; 64 tokens, ended with 1 and filled with 0.

  Punctuation stays: where a checkpoint is judged, prompts are made without it; see `prompts`.

  Attributes:
    file: tokenizer.json of a checkpoint of transformers, or Gemma's tokenizer.model.
  """

  kind: ClassVar[str] = 'siglip2'
  usual_size: ClassVar[int] = 256_000
  pad: ClassVar[int] = 0
  marks: ClassVar[dict[int, str]] = {0: '<pad>', 1: '<eos>'}
  called: ClassVar[str] = 'SigLIP 2'

  def form(self, text: str) -> str:
    """See `Tokenizer`."""
    return forms.whole(text).lower()
