"""Which arrays of a file may be a model: its parts, and what comes before every name in one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.convert.files import Arrays
from vit_jax.core.errors import RunError, suggest

# Parts with a model in them, the one to take first. Averages come before what they are averages of,
# as in timm, and teachers before their students, as in DINO.
ORDER = (
  'state_dict_ema', 'model_ema', 'ema_state_dict', 'ema', 'teacher', 'target_encoder', 'state_dict',
  'model_state_dict', 'model', 'module', 'net', 'encoder', 'student',
)  # fmt: skip
# How the name of an array ends that every model of some dialect has.
_MARK = re.compile(
  r'(.*[./])?(embedding/kernel|visual\.conv1\.weight|embeddings\.patch_embedding\.weight'
  r'|embeddings\.cls_token|patch_embed\.proj\.weight|stages\.0\.blocks\.0\.conv(_dw|3)\.weight'
  r'|blocks\.0\.mlp_tokens\.fc1\.weight|resnet/root_block/standardized_conv2d/kernel'
  r'|root_block/conv_root/kernel|model\.query_position_embeddings\.weight|query_embed\.weight'
  r'|MixerBlock_0/token_mixing/Dense_0/kernel)'
)


# What may be said behind a path; see `read.load`.
CHOICE = ('part', 'prefix', 'ignore', 'step', 'tower', 'base')


def chosen(text: str, field: str = 'init') -> tuple[str, dict[str, Any]]:
  """A path, and what of it to read, from 'PATH?part=teacher&prefix=module.&ignore=head.*&step=9'.

  Raises:
    RunError: for other names, or a step that is no number.
  """
  path, _, query = text.partition('?')
  choice: dict[str, Any] = {}
  for item in query.split('&') if query else ():
    name, _, value = item.partition('=')
    if name not in CHOICE:
      raise RunError(f'{field}={text}: unknown {name!r} behind the path: {suggest(name, CHOICE)}')
    choice[name] = value
  if not str(choice.get('step', '0')).isdigit():
    raise RunError(f'{field}={text}: step must be a number')
  if 'step' in choice:
    choice['step'] = int(choice['step'])
  return path, choice


def pick(parts: Mapping[str, Arrays], part: str, where: str) -> str:
  """The name of the part of a file to read.

  Args:
    parts: of `files.parts`.
    part: the one that is wanted, or ''.
    where: the file is.

  Raises:
    RunError: if it does not have that part, or has several that might be meant.
  """
  if part:
    if part not in parts:
      known = [name for name in parts if name]
      hint = suggest(part, known) if known else 'it has none; names in it are chosen with prefix'
      raise RunError(f'{where} has no part {part!r}: {hint}')
    return part
  models = [name for name, arrays in parts.items() if name and prefixes(arrays)]
  known = [name for name in ORDER if name in models]
  if not known and len(models) > 1:
    raise RunError(
      f'{where} has a model in each of {", ".join(models)}: choose one with part (--part=NAME)'
    )
  return (*known, *models, '')[0]


def prefixes(names: Iterable[str]) -> list[str]:
  """What may come before every name of a model, shortest first; '' for nothing."""
  found = set()
  for name in names:
    if match := _MARK.fullmatch(name):
      before = match[1] or ''
      found |= {before[: end.end()] for end in re.finditer(r'^|[./]', before)}
  return sorted(found, key=lambda prefix: (len(prefix), prefix))


def maximal(fitting: list[str]) -> list[str]:
  """Those of the prefixes that extend no other; a teacher's instead of its student's."""
  found = [p for p in fitting if not any(p != q and p.startswith(q) for q in fitting)]
  teachers = [p for p in found if 'teacher' in p]
  others = [p for p in found if p not in teachers]
  return teachers if teachers and all('student' in p for p in others) else found
