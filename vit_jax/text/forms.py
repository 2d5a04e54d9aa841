"""How texts are written before they are cut into pieces: a checkpoint expects that of its training.

`canonical` is that of big_vision's prompts (Zhai et al. 2023), `cleaned` that of CLIP (Radford et
al. 2021), for which the package ftfy mends what was once decoded wrongly.
"""

from __future__ import annotations

import functools
import html
import logging
import re
import string
from collections.abc import Callable
from typing import Any

from vit_jax.core.errors import RunError

_HALVES = re.compile('[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]')
# What ftfy leaves as it is: there are no entities, no control characters, nothing but ASCII.
_PLAIN = re.compile(r"[\t\n\f\r -%'-~]*")
_PUNCTUATION = str.maketrans('', '', string.punctuation)


def whole(text: str) -> str:
  """A text that can be written in UTF-8: pairs of surrogates are joined, others are U+FFFD.

  Raises:
    RunError: for what is no text.
  """
  if not isinstance(text, str):
    raise RunError(f'a text is expected, not {text!r:.60} ({type(text).__name__})')
  return text if text.isascii() else _HALVES.sub(_joined, text)


def _joined(found: re.Match[str]) -> str:
  return found[0].encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')


def canonical(text: str, keep: str = '') -> str:
  """Lower case without ASCII's punctuation; '_' and all white space are single spaces.

  Args:
    text: whatever.
    keep: a text that stays wherever it occurs, as '{}' does in templates.
  """
  text = whole(text).replace('_', ' ')
  parts = text.split(keep) if keep else [text]
  return ' '.join(keep.join(part.translate(_PUNCTUATION) for part in parts).lower().split())


def cleaned(text: str) -> str:
  """Mended, entities of HTML resolved twice, single spaces, lower case."""
  text = whole(text)
  if not _PLAIN.fullmatch(text):
    text = _mend()(text)
  return ' '.join(html.unescape(html.unescape(text)).split()).lower()


@functools.cache
def _mend() -> Callable[[str], str]:
  """`ftfy.fix_text`, or, said once, nothing."""
  try:
    import ftfy
  except ImportError:
    logging.getLogger(__name__).warning(
      'the package ftfy is missing, which mends texts that were decoded wrongly: texts that are '
      "not plain ASCII may get other tokens than CLIP was trained with. pip install 'vit_jax[text]'"
    )
    return lambda text: text
  fix: Any = ftfy.fix_text
  return fix
