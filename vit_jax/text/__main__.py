"""A vocabulary of one's own, and what tokenizers do: `python -m vit_jax.text train|show ...`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from vit_jax.core import command, overrides, paths, schema
from vit_jax.core.errors import RunError
from vit_jax.data.examples import Source
from vit_jax.data.fields import require
from vit_jax.data.sources import guess
from vit_jax.text import TOKENIZERS, Tokenizer, jsons, of_folder

# Examples that are read together.
_TOGETHER = 256
_SUFFIXES = {'.json': 'json', '.model': 'sentencepiece', '.txt': 'clip', '.gz': 'clip'}


def texts_of(source: Source) -> Iterator[str]:
  """Each text of the field 'text', of all examples in order; raises RunError without the field."""
  require(source.fields, {'text': 'text'}, source.name)
  for start in range(0, len(source), _TOGETHER):
    for example in source.read(range(start, min(start + _TOGETHER, len(source)))):
      found = example['text']
      yield from (found,) if isinstance(found, str) else found


def train(
  data: str, out: str, size: int, *, cased: bool, overwrite: bool, given: Mapping[str, str]
) -> None:
  """Trains a vocabulary on all texts of the data, and writes it."""
  if not out.endswith('.json'):
    raise RunError(f'--out={out}: the vocabulary is a file NAME.json')
  path = paths.at(out)
  if path.exists() and not overwrite:
    raise RunError(f'{out} already exists; use --overwrite to replace it')
  source = guess.guess(data, list(given.items())).opened
  for line in source.summary():
    print(line)
  made = jsons.trained(texts_of(source), size, lower=not cased)
  path.parent.mkdir(parents=True, exist_ok=True)
  paths.write_text(path, made)
  tokenizer = jsons.Json(file=out)
  lengths = np.array([len(tokenizer.ids(text)) + 1 for text in texts_of(source)] or [1])
  asked = '' if tokenizer.size == size else f' (asked for {size:,}: the texts have no more)'
  print(f'{out}: {tokenizer.size:,} tokens{asked}, from {len(lengths):,} texts')
  print(
    f'with its end a text has {lengths.mean():.1f} tokens; 99 % have at most '
    f'{np.percentile(lengths, 99, method="higher"):.0f}, the longest {lengths.max():,}'
  )


def opened(place: str, given: Mapping[str, str]) -> Tokenizer:
  """A tokenizer that a person names: a kind, a file, or the folder of a checkpoint.

  Args:
    place: name of a kind that needs no file; a file; or a folder.
    given: its fields as texts; `name` for its kind.

  Raises:
    RunError: if nobody knows what it is.
  """
  fields = dict(given)
  name = fields.pop('name', '')
  if not name and paths.at(place).is_dir():
    if fields:
      raise RunError(f'--{next(iter(fields))}: what the tokenizer of a checkpoint does is settled')
    if found := of_folder(place):
      return found
    raise RunError(f'{place} has no tokenizer of a CLIP, SigLIP or SigLIP 2')
  filed = place not in TOKENIZERS
  name = name or ('' if filed else place) or _SUFFIXES.get(paths.at(place).suffix, '')
  if not name:
    raise RunError(f'{place}: of which kind is it? Add --name={"|".join(TOKENIZERS)}')
  cls = schema.pick(TOKENIZERS, name, 'tokenizer')
  tree = overrides.apply(cls, {'file': place} if filed else {}, [*fields.items()], 'tokenizer')
  return schema.build(cls, tree, 'tokenizer')


def show(tokenizer: Tokenizer, text: str) -> None:
  """Prints the tokens of a row, one in a line."""
  before, after, pad = tokenizer.frame
  row, pieces = tokenizer.row(text).tolist(), tokenizer.opened()
  ids = tokenizer.ids(text)
  room = tokenizer.length - len(before) - len(after)
  kept = ids[:room]
  files = ' '.join(['', *tokenizer.files])
  print(
    f'{tokenizer.kind}{files}: {tokenizer.size:,} tokens, {tokenizer.length} in a row; digest '
    f'{tokenizer.digest}'
  )
  print(f'text: {_line(tokenizer.form(text))}')
  said = [*('start' for _ in before), *(_line(pieces.words([n])) for n in kept)]
  said += ['end' for _ in after]
  for number, each in zip(row, said, strict=False):
    print(f'{number:>8}  {each}')
  if len(ids) > room:
    print(f'cut: the text has {len(ids):,} tokens, and there is room for {room:,}')
  elif len(said) < tokenizer.length:
    print(f'filled with {tokenizer.length - len(said):,} times {pad}')


def _line(text: str) -> str:
  """A text as it is; as in Python, if that would not show it."""
  return text if text.isprintable() and text == text.strip() else repr(text)


def main(
  action: str, place: str, text: str | None, out: str, size: int, cased: bool, overwrite: bool,
  texts: Mapping[str, str],
) -> None:  # fmt: skip
  """Trains or shows."""
  if action == 'train':
    if text is not None or not out:
      raise RunError('write: python -m vit_jax.text train DATA --out=NAME.json')
    train(place, out, size, cased=cased, overwrite=overwrite, given=texts)
  else:
    if text is None:
      raise RunError('write: python -m vit_jax.text show VOCABULARY TEXT')
    show(opened(place, texts), text)


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.text',
    'Trains a vocabulary of pairs of bytes on the texts of a data set, for the tokenizer json; or\n'
    'shows what a tokenizer makes of a text.',
    (
      'train captions.csv --size=4096 --out=vocabulary.json',
      "show vocabulary.json 'a red cat' --length=16",
      "show CHECKPOINT 'a red cat'",
    ),
  )
  parser.add_argument('action', choices=('train', 'show'))
  parser.add_argument(
    'place', metavar='DATA|VOCABULARY',
    help='to train on: a directory, table or name of TFDS with texts; to show: a file, the folder '
    'of a CLIP, SigLIP or SigLIP 2, or a kind without a file, bytes',
  )  # fmt: skip
  parser.add_argument('text', nargs='?', metavar='TEXT', help='to show')
  parser.add_argument('--out', default='', metavar='FILE', help='NAME.json, the vocabulary')
  parser.add_argument('--size', type=int, default=4096, help='tokens (4096)')
  parser.switch('--cased', 'keep capital letters')
  parser.switch('--overwrite', 'replace an existing file')
  command.run(parser, main)
