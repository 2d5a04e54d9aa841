"""Vocabularies in a tokenizer.json, read and trained by the package tokenizers."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.core.text import first_line
from vit_jax.text import forms
from vit_jax.text.tokenizer import Filed, Frame, digest_of, once, without

WHAT = 'it is the tokenizer.json of the package tokenizers, as in checkpoints of transformers'
# How the token is called that fills rows, where a file does not say it.
_PADS = ('<pad>', '[PAD]', '<|pad|>', '<|padding|>')
# Of those that are trained here.
_PAD, _END = '<|pad|>', '<|end|>'
LEAST = 258


def tokenizers() -> Any:
  """The package; raises RunError without it."""
  try:
    import tokenizers
  except ImportError:
    raise without('tokenizers') from None
  return tokenizers


def _opened(data: bytes) -> tuple[Any, Any]:
  """The package's own, of the bytes of a file, and the padding that this says."""
  model = tokenizers().Tokenizer.from_buffer(data)
  padding = model.padding
  model.no_padding()
  model.no_truncation()
  # A text that spells a special token does not become one.
  model.encode_special_tokens = True
  return model, padding


def _unspaced(part: Any) -> Any:
  """A normalizer or pre_tokenizer of a file that puts no space before texts; None for nothing."""
  if not isinstance(part, dict):
    return part
  for name in ('normalizers', 'pretokenizers'):
    if isinstance(several := part.get(name), list):
      return {**part, name: [kept for each in several if (kept := _unspaced(each)) is not None]}
  if part.get('type') == 'Prepend':
    return None
  if part.get('type') == 'Metaspace':
    return {**{k: v for k, v in part.items() if k != 'add_prefix_space'}, 'prepend_scheme': 'never'}
  return {**part, 'add_prefix_space': False} if part.get('add_prefix_space') else part


class Tokens:
  """See `Vocabulary`.

  Attributes:
    before, after: numbers that the file puts around texts.
    pad: number that fills rows, as far as the file says it; -1 if it does not.
  """

  def __init__(self, data: bytes):
    """Of the bytes of a file; raises what the package does."""
    self._data, (self._model, padding) = data, _opened(data)
    numbers = self._model.get_vocab(with_added_tokens=True)
    self.size, self.digest = max(numbers.values(), default=-1) + 1, digest_of(data)
    named = [numbers[name] for name in _PADS if name in numbers]
    self.pad = padding['pad_id'] if padding else [*named, -1][0]
    self.before, self.after = self._around(['a', *numbers])

  def _around(self, probes: Iterable[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers that stand before and behind the first of these texts that has pieces."""
    if not self._model.num_special_tokens_to_add(False):
      return (), ()
    for text in probes:
      if inside := self.ids(text, 0):
        framed = self._model.encode(text).ids
        for at in range(len(framed) - len(inside) + 1):
          if framed[at : at + len(inside)] == inside:
            return tuple(framed[:at]), tuple(framed[at + len(inside) :])
    raise ValueError('no text can be written with its pieces')

  def ids(self, text: str, most: int, *, begins: bool = True) -> list[int]:
    """See `Vocabulary`."""
    model = self._model if begins else self._inner
    return model.encode(text, add_special_tokens=False).ids

  @functools.cached_property
  def _inner(self) -> Any:
    """The model, without a space that it puts before texts."""
    data = json.loads(self._data)
    parts = {name: _unspaced(data.get(name)) for name in ('normalizer', 'pre_tokenizer')}
    if all(parts[name] == data.get(name) for name in parts):
      return self._model
    return _opened(json.dumps({**data, **parts}).encode())[0]

  def words(self, ids: Sequence[int]) -> str:
    """See `Vocabulary`."""
    return self._model.decode(list(ids), skip_special_tokens=False)

  def number(self, piece: str) -> int:
    """See `Vocabulary`."""
    found = self._model.token_to_id(piece)
    return -1 if found is None else found


@once
def read(path: paths.LocalPath) -> Tokens:
  """What is in a file; raises RunError if it is no whole tokenizer."""
  data = path.read_bytes()
  try:
    model = json.loads(data)['model']
  except (ValueError, KeyError, TypeError, RecursionError):
    raise RunError(f'{path} is no tokenizer, or not all of one: {WHAT}') from None
  try:
    return Tokens(data)
  except RunError:
    raise
  except Exception as error:  # that is what the package raises
    kind = model.get('type', '?') if isinstance(model, dict) else '?'
    raise RunError(
      f'{path} is no tokenizer that can be read (of the kind {kind}): {first_line(error)}'
    ) from None


def trained(texts: Iterable[str], size: int, *, lower: bool = True) -> str:
  """Pairs of bytes, merged in words, of texts (Sennrich et al. 2016): a tokenizer.json.

  Nothing is unknown to it. Rows end with <|end|>, its largest number, and are filled with <|pad|>,
  0.

  Args:
    texts: of the kind that it is meant for.
    size: how many tokens there are; fewer, where the texts have no more that are worth it.
    lower: texts are in lower case.

  Raises:
    RunError: for a size that does not hold the bytes.
  """
  if size < LEAST:
    raise RunError(f'size={size:,}: there are at least {LEAST} tokens, for 256 bytes, end and pad')
  package = tokenizers()
  model = package.Tokenizer(package.models.BPE())
  form = package.normalizers
  model.normalizer = form.Sequence([form.NFC(), *([form.Lowercase()] if lower else [])])
  model.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = package.decoders.ByteLevel()
  trainer = package.trainers.BpeTrainer(
    vocab_size=size - 1, special_tokens=[_PAD], show_progress=False,
    initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  model.train_from_iterator(map(forms.whole, texts), trainer)
  model.add_special_tokens([_END])
  end = model.token_to_id(_END)
  model.post_processor = package.processors.TemplateProcessing(
    single=f'$A {_END}', special_tokens=[(_END, end)]
  )
  model.enable_padding(pad_id=0, pad_token=_PAD)
  return model.to_str(pretty=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Json(Filed):
  """Any tokenizer.json. Texts are as they are, but for what the file itself does to them.

  Attributes:
    file: the tokenizer.json.
    start_token, end_token: tokens around texts, such as '<|im_end|>'; '' for those that the file
      puts there, or none. That a text spells one does not make it one.
    pad_token: token that fills rows; '' for the one of the file, or else its end token, or 0.
  """

  kind: ClassVar[str] = 'json'

  start_token: str = ''
  end_token: str = ''
  pad_token: str = ''

  def opened(self) -> Tokens:
    """See `Tokenizer`."""
    return read(*self.there(WHAT))

  def framed(self, pieces: Tokens) -> Frame:
    """See `Tokenizer`."""
    before = (self._number(pieces, 'start_token'),) if self.start_token else pieces.before
    after = (self._number(pieces, 'end_token'),) if self.end_token else pieces.after
    pad = self._number(pieces, 'pad_token') if self.pad_token else pieces.pad
    return Frame(before, after, pad if pad >= 0 else [*after, 0][0])

  def _number(self, pieces: Tokens, field: str) -> int:
    token = getattr(self, field)
    number = pieces.number(token)
    if number < 0:
      raise RunError(f'tokenizer.{field}={token!r}: {self.file} has no such token')
    return number
