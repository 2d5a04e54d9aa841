"""The tokenizer that a published checkpoint was trained with, from what is in its folder.

What a folder says of its tokenizer is often wrong (padding at the left, another length, no lower
case), and costs accuracy without an error. So the kind is found out from the files themselves,
frame and form are those of training, and what the folder says otherwise is logged, in one line.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.text import jsons, sentencepieces
from vit_jax.text.clip import Clip
from vit_jax.text.siglip import SigLip, SigLip2
from vit_jax.text.tokenizer import Tokenizer, Vocabulary

# Files of vocabularies, the first that is there.
CLIP_FILES = ('tokenizer.json', 'vocab.json')
SIGLIP_FILES = ('spiece.model', 'tokenizer.model', 'tokenizer.json')
# All that may belong to a tokenizer, for whoever fetches a checkpoint.
FILES = (*dict.fromkeys((*CLIP_FILES, 'merges.txt', *SIGLIP_FILES)), 'tokenizer_config.json')
_KINDS = {
  'clip': 'clip', 'clip_text_model': 'clip', 'siglip': 'siglip', 'siglip_text_model': 'siglip',
  'siglip2': 'siglip', 'siglip2_text_model': 'siglip',
}  # fmt: skip
# Fields that old configurations of CLIP leave at a number which is no end of a text.
_OLD_END = 2
# From here on, a length says that there is none.
_ENDLESS = 1_000_000


def of_folder(folder: str | paths.Path) -> Tokenizer | None:
  """The tokenizer of a checkpoint of transformers, or of OpenCLIP's in one of its folders.

  Args:
    folder: with the files of a CLIP, SigLIP or SigLIP 2.

  Returns:
    a tokenizer with the length of training, bound to its file (`known`); or None, where the model
    reads no texts, or those of another kind, or no vocabulary is there.

  Raises:
    RunError: for a vocabulary that is damaged, or not that of this model.
  """
  path = paths.at(folder)
  found = _facts(path)
  if found is None:
    return None
  kind, text = found
  tokenizer = _clip(path, text) if kind == 'clip' else _siglip(path, text)
  if tokenizer is None:
    return None
  _compare(path, tokenizer, text, kind)
  _say_what_differs(path, tokenizer)
  return tokenizer.named


def _facts(path: paths.Path) -> tuple[str, Mapping[str, Any]] | None:
  """Whether the model is a 'clip' or a 'siglip', and what its configuration says of its texts."""
  if (path / 'config.json').is_file():
    config = paths.read_object(path / 'config.json')
    kind = _KINDS.get(str(config.get('model_type')))
    if kind is None:
      return None
    text = config if str(config['model_type']).endswith('text_model') else config.get('text_config')
    return kind, text if isinstance(text, Mapping) else {}
  if (path / 'open_clip_config.json').is_file():
    config = paths.read_object(path / 'open_clip_config.json').get('model_cfg')
    text = config.get('text_cfg') if isinstance(config, Mapping) else None
    if not isinstance(text, Mapping) or 'hf_model_name' in text:
      return None
    sizes = {'max_position_embeddings': text.get('context_length', 77),
             'vocab_size': text.get('vocab_size', 49408)}  # fmt: skip
    return 'siglip' if 'hf_tokenizer_name' in text else 'clip', sizes
  return None


def _there(path: paths.Path, names: tuple[str, ...]) -> Iterator[str]:
  return (str(path / name) for name in names if (path / name).is_file())


def _clip(path: paths.Path, text: Mapping[str, Any]) -> Tokenizer | None:
  file = next(_there(path, CLIP_FILES), None)
  return Clip(file=file, length=_whole(text, 'max_position_embeddings', 0)) if file else None


def _siglip(path: paths.Path, text: Mapping[str, Any]) -> Tokenizer | None:
  """Which of both a checkpoint is, its first pieces say: all but the newest are called 'siglip'."""
  file = next(_there(path, SIGLIP_FILES), None)
  if file is None:
    return None
  read = jsons.read if file.endswith('.json') else sentencepieces.read
  pieces: Vocabulary = read(paths.fetched(paths.at(file)))
  length = _whole(text, 'max_position_embeddings', 0)
  for kind in (SigLip, SigLip2):
    if all(pieces.number(piece) == number for number, piece in kind.marks.items()):
      return kind(file=file, length=length)
  return None


def _whole(text: Mapping[str, Any], name: str, default: int) -> int:
  found = text.get(name, default)
  return found if isinstance(found, int) and 0 < found < _ENDLESS else default


def _compare(path: paths.Path, found: Tokenizer, text: Mapping[str, Any], kind: str) -> None:
  """Raises RunError if the model cannot have been trained with a tokenizer."""
  size = _whole(text, 'vocab_size', (Clip if kind == 'clip' else SigLip)().size)
  if found.size > size:
    raise RunError(
      f'{path}: the model has {size:,} tokens and {found.files[0]} {found.size:,}: it is not the '
      'tokenizer that the model was trained with'
    )
  end = text.get('eos_token_id', _OLD_END)
  if kind == 'clip' and isinstance(end, int) and end not in (_OLD_END, found.end):
    raise RunError(
      f'{path}: texts of the model end with token {end} and those of {found.files[0]} with '
      f'{found.end}: it is not the tokenizer that the model was trained with'
    )


def _say_what_differs(path: paths.Path, found: Tokenizer) -> None:
  """Logs what the folder says otherwise, and does not count."""
  if not (path / 'tokenizer_config.json').is_file():
    return
  said = paths.read_object(path / 'tokenizer_config.json')
  length = said.get('model_max_length')
  wrong = {
    'padding_side': said.get('padding_side') == 'left',
    'model_max_length': (
      isinstance(length, int | float) and length < _ENDLESS and length != found.length
    ),
    'do_lower_case': said.get('do_lower_case') is False,
    'add_bos_token': not isinstance(found, Clip) and said.get('add_bos_token') is True,
    'add_eos_token': said.get('add_eos_token') is False,
  }
  if any(wrong.values()):
    listed = ', '.join(f'{name}={said[name]!r}' for name, is_so in wrong.items() if is_so)
    logging.getLogger(__name__).warning(
      '%s/tokenizer_config.json says %s: instead, as in training, texts are in lower case, end '
      'with token %d and are filled at the right to %d', path, listed, found.end, found.length,
    )  # fmt: skip
