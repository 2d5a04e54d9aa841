"""Texts as rows of token numbers: what text towers read, and what a person wrote.

A tokenizer is a frozen dataclass, picked by its name in a configuration; nothing is opened before
it is needed. Its file is read by packages that need neither PyTorch nor TensorFlow:
pip install 'vit_jax[text]'.
"""

from vit_jax.text.clip import Clip
from vit_jax.text.folders import of_folder
from vit_jax.text.jsons import Json
from vit_jax.text.plain import Bytes, Words
from vit_jax.text.sentencepieces import SentencePiece
from vit_jax.text.siglip import SigLip, SigLip2
from vit_jax.text.tokenizer import Frame, Tokenizer

TOKENIZERS: dict[str, type[Tokenizer]] = {
  'clip': Clip, 'siglip': SigLip, 'siglip2': SigLip2, 'sentencepiece': SentencePiece, 'json': Json,
  'bytes': Bytes, 'words': Words,
}  # fmt: skip

__all__ = ['TOKENIZERS', 'Frame', 'Tokenizer', 'of_folder']
