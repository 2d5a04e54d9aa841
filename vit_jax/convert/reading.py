"""What checkpoints say of the texts that their models read."""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_jax.architecture.card import Card
from vit_jax.convert.source import Source
from vit_jax.core import paths
from vit_jax.text import TOKENIZERS
from vit_jax.text.clip import Clip
from vit_jax.text.folders import of_folder
from vit_jax.text.jsons import Json
from vit_jax.text.sentencepieces import SentencePiece

# Published beside OpenAI's and OpenCLIP's code, not beside their weights.
MERGES = 'bpe_simple_vocab_16e6.txt.gz'


def trained(card: Card, source: Source, kind: str, *, length: int, sigmoid: bool) -> Card:
  """A card of a model that was trained to tell which texts belong to an image.

  Its tokenizer is that of the folder; where there is none it is known but for its file, which is
  asked for when it is needed.

  Args:
    card: of the images.
    source: the checkpoint.
    kind: of its tokenizer, one of `TOKENIZERS`.
    length: of its texts, in tokens.
    sigmoid: whether its loss was SigLIP's.
  """
  path = paths.at(source.where)
  folder = path if path.is_dir() else path.parent
  tokenizer = of_folder(folder)
  if tokenizer is None and kind == 'clip' and (folder / MERGES).is_file():
    tokenizer = Clip(file=str(folder / MERGES), length=length).named
  tokenizer = tokenizer or TOKENIZERS[kind](length=length)
  name = next(name for name, each in TOKENIZERS.items() if each is type(tokenizer))
  task = {
    'name': 'contrastive', 'loss_of': 'sigmoid' if sigmoid else 'softmax', 'mean': card.mean,
    'std': card.std, 'tokenizer': {'name': name, **dataclasses.asdict(tokenizer)},
  }  # fmt: skip
  fields = {'image': {'kind': 'image', 'dtype': 'uint8'}, 'text': {'kind': 'text'}}
  return dataclasses.replace(card, task=task, fields=fields)


def speaking(source: Source) -> dict[str, Any]:
  """The tokenizer in the folder of a language model, as a field of a task.

  Where there is none, its file is asked for when it is needed.
  """
  path = paths.at(source.where)
  folder = path if path.is_dir() else path.parent
  kinds = {'tokenizer.json': ('json', Json), 'tokenizer.model': ('sentencepiece', SentencePiece)}
  for file, (name, kind) in kinds.items():
    if (folder / file).is_file():
      found = kind(file=str(folder / file)).named
      return {'tokenizer': {'name': name, **dataclasses.asdict(found)}}
  return {'tokenizer': {'name': 'json', **dataclasses.asdict(Json())}}
