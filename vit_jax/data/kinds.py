"""Kinds of image files: what they are called, how they begin, which are read here."""

from __future__ import annotations

import dataclasses
import functools
import mimetypes
import os
import re

from vit_jax.core import paths

# Of the beginning of a file, enough to tell its kind.
HEAD = 64


@dataclasses.dataclass(frozen=True)
class Kind:
  """Image files of one format.

  Attributes:
    name: of the format.
    suffixes: of file names, in lower case; OpenCV tells by the first whether it has the codec.
    begins: regular expression of the first bytes.
  """

  name: str
  suffixes: tuple[str, ...]
  begins: bytes


KINDS = (
  Kind('JPEG', ('.jpg', '.jpeg', '.jpe', '.jfif'), rb'\xff\xd8\xff'),
  Kind('PNG', ('.png', '.apng'), rb'\x89PNG\r\n\x1a\n'),
  Kind('WebP', ('.webp',), rb'RIFF....WEBP'),
  Kind('BMP', ('.bmp', '.dib'), rb'BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0'),
  Kind('GIF', ('.gif',), rb'GIF8[79]a'),
  Kind('TIFF', ('.tif', '.tiff'), rb'II[*+]\0|MM\0[*+]'),
  Kind('PNM', ('.ppm', '.pgm', '.pbm', '.pnm'), rb'P[1-6]\s(?:\s|#[^\n]*\n)*\d+\s'),
  Kind('JPEG 2000', ('.jp2', '.j2k', '.jpc'), rb'\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51'),
  Kind('AVIF', ('.avif',), rb'....ftyp(?:....){0,8}?avi[fs]'),
  Kind('NumPy', ('.npy',), rb'\x93NUMPY'),
)
_BEGINS = tuple((kind, re.compile(kind.begins, re.DOTALL)) for kind in KINDS)
# Suffixes of other files, whatever the tables of the machine say.
_OTHERS = mimetypes.MimeTypes(filenames=())


def kind_of(data: bytes) -> str:
  """The name of the kind that `data`, or the first `HEAD` bytes of it, begins as; '' for none."""
  return next((kind.name for kind, begins in _BEGINS if begins.match(data)), '')


@functools.cache
def readable() -> dict[str, str]:
  """The name of the kind by suffix, of those kinds that the installed OpenCV can decode."""
  import cv2

  return {
    suffix: kind.name
    for kind in KINDS
    if kind.name == 'NumPy' or cv2.haveImageWriter(kind.suffixes[0])
    for suffix in kind.suffixes
  }


def is_image(path: str) -> bool:
  """Whether a file counts as an image: by its suffix, or by how it begins if that says nothing."""
  suffix = os.path.splitext(path)[1].lower()
  if suffix in readable():
    return True
  known = _OTHERS.guess_type(f'x{suffix}')[0] or 'application/octet-stream'
  if not known.startswith('image/') and known != 'application/octet-stream':
    return False
  return kind_of(paths.head(paths.inside(path), HEAD)) in readable().values()
