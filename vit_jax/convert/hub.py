"""Checkpoints on the Hugging Face hub: hf:OWNER/NAME, hf:OWNER/NAME/FILE, each with @REVISION.

What is fetched stays in the cache of huggingface_hub, which serves where there is no network. Only
arrays and JSON are fetched: a pickle is, and read without running it, if it is named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from vit_jax.convert import files
from vit_jax.convert.dialects import SIDECARS
from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.processes import exchange
from vit_jax.text.folders import FILES

PREFIX = 'hf:'
_NAME = re.compile(r'hf:(?P<repo>[\w.-]+/[\w.-]+)(/(?P<file>[^@]+))?(@(?P<revision>[^@]+))?')
_BESIDE = (*SIDECARS, 'preprocessor_config.json', *FILES)
_PLAIN = ('.safetensors', '.npz')
_INDEX = '.index.json'


class Fetched(NamedTuple):
  """Where a checkpoint is on this machine, and the commit that it is of."""

  path: paths.Path
  revision: str


def fetched(text: str) -> Fetched:
  """A checkpoint of the hub: a folder with its weights and what says how to read them, or a file.

  Args:
    text: hf:OWNER/NAME[/FILE][@REVISION]; the revision is a branch, a tag or a commit, 'main' if
      none is given. In a run of several processes all have the commit that the first one finds.

  Raises:
    RunError: if it cannot be had; with the reason, and what the repository has instead.
  """
  match = _NAME.fullmatch(text)
  if not match:
    raise RunError(f'{text}: write hf:OWNER/NAME, hf:OWNER/NAME/FILE, and @REVISION behind it')
  repo, file = match['repo'], match['file'] or ''
  try:
    import huggingface_hub  # noqa: F401
  except ImportError:
    raise RunError(
      f"{text} needs the package huggingface_hub: pip install 'vit_jax[hub]'"
    ) from None
  wanted = match['revision'] or 'main'
  revision, names, kept = exchange.from_first(lambda: _found(text, repo, file, wanted))
  found = [_file(text, repo, name, revision, kept) for name in names]
  weights = found[0]
  if names[0].endswith(_INDEX):
    shards = set(paths.read_object(weights).get('weight_map', {}).values())
    for name in sorted(shards):
      _file(text, repo, f'{names[0].rpartition("/")[0]}/{name}'.lstrip('/'), revision, kept)
  # A folder is read by the names that its files usually have.
  usual = weights.name.removesuffix(_INDEX) in files.WEIGHTS and not file
  return Fetched(weights.parent if usual else weights, revision)


def _found(text: str, repo: str, file: str, revision: str) -> tuple[str, list[str], bool]:
  """The commit; the files to fetch, of which it fetches the weights, the first; if kept ones do."""
  import huggingface_hub
  from huggingface_hub import errors

  kept = False
  try:
    info = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=30)
    there = [each.rfilename for each in info.siblings or ()]
  except errors.GatedRepoError:
    raise RunError(f'{text}: access must be asked for on its page, and HF_TOKEN be set') from None
  except errors.RevisionNotFoundError:
    raise RunError(f'{text}: the repository has no revision {revision!r}') from None
  except errors.RepositoryNotFoundError:
    raise RunError(
      f'{text}: the hub has no such repository, or it is private and HF_TOKEN is not set'
    ) from None
  except Exception as error:  # of the network, of whatever client is below
    there = _kept(repo, revision)
    kept = True
    if not there:
      raise RunError(
        f'{text} cannot be fetched, and is not in the cache at {_cache()}: {_reason(error)}'
      ) from None
  weights = _weights(text, there, file)
  folder = weights.rpartition('/')[0]
  beside = [f'{folder}/{name}'.lstrip('/') for name in _BESIDE]
  first = _file(text, repo, weights, revision, kept)
  commit = first.parts[-1 - len(weights.split('/'))]  # in the cache, snapshots/COMMIT/NAME
  return commit, [weights, *(name for name in beside if name in there)], kept


def _weights(text: str, there: Sequence[str], file: str) -> str:
  """The file of weights among those of a repository; raises RunError."""
  if file:
    if file not in there:
      raise RunError(f'{text}: the repository has no file {file}; it has {_listed(there)}')
    return file
  for name in files.WEIGHTS:
    for candidate in (name, f'{name}{_INDEX}'):
      if candidate in there and name.endswith(_PLAIN):
        return candidate
  own = [name for name in there if name.endswith(_PLAIN)]
  if len(own) == 1:
    return own[0]
  base = text.partition('@')[0]
  if own:
    raise RunError(f'{text} has several files of weights: name one, {base}/{own[0]}: '
                   f'{_listed(own)}')  # fmt: skip
  pickles = [name for name in there if name.endswith(('.bin', '.pt', '.pth'))]
  way = (
    f'; a pickle is read, without running it, if it is named: {base}/{pickles[0]}'
    if pickles
    else ''
  )
  raise RunError(f'{text} has no weights as safetensors or npz{way}; it has {_listed(there)}')


def _file(text: str, repo: str, name: str, revision: str, kept: bool) -> paths.LocalPath:
  """A file of the repository, from the cache if it is there; from there alone if it is `kept`."""
  import huggingface_hub

  try:
    found = huggingface_hub.hf_hub_download(repo, name, revision=revision, local_files_only=kept)
  except Exception as error:
    raise RunError(f'{text}: {name} cannot be fetched: {_reason(error)}') from None
  return paths.local(paths.at(found), 'the cache')


def _kept(repo: str, revision: str) -> list[str]:
  """Names of the files of a repository that the cache has."""
  folder = paths.at(_cache()) / '--'.join(('models', *repo.split('/')))
  named = folder / 'refs' / revision
  commit = paths.read_text(named).strip() if named.is_file() else revision
  place = folder / 'snapshots' / commit
  return sorted(paths.below(place)) if place.is_dir() else []


def _cache() -> str:
  """Where huggingface_hub keeps what it has fetched."""
  from huggingface_hub import constants

  return str(constants.HF_HUB_CACHE)


def _reason(error: Exception) -> str:
  """The first line of what a client says."""
  lines = str(error).strip().splitlines()
  return lines[0] if lines else type(error).__name__


def _listed(names: Sequence[str], most: int = 8) -> str:
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more if names else 'no files'
