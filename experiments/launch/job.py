"""A job: one command that engines start, what of it is kept beside the run, and its restarts.

The record of a job is WORKDIR/launch/job.json; attempts.json beside it counts. Scripts and output
of the processes are there, too, or, if WORKDIR is on an object store, in launch/NAME of the
directory that the job was submitted from.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from vit_jax.core import paths
from vit_jax.core.errors import RESTART, PassingError, RunError

# Of all engines: TensorFlow, where somebody has installed it, is not to open our files.
ENVIRONMENT = {'EPATH_USE_TF': '0'}
_T = TypeVar('_T')
_NAME = re.compile(r'[a-z]([-a-z0-9]{0,26}[a-z0-9])?')


@dataclasses.dataclass(frozen=True)
class Job:
  """One command on some machines.

  Attributes:
    name: for schedulers: at most 28 small letters, digits and hyphens.
    engine: that starts it; see `engines.ENGINES`.
    command: 'python' and its arguments, the same in every process.
    workdir: beside which the record is kept; a path or a URL.
    watched: directories in which names come and go while the job gets on; '/*/' is any one that
      the first of them names.
    options: of the engine.
    max_restarts: how often it may be restarted without having got on.
    root: the directory that it is started in.
    submitted: what the engine calls it, once it is submitted.
    tokens: of all submissions in this directory, the newest last: machines are marked by them.
  """

  name: str
  engine: str
  command: tuple[str, ...]
  workdir: str
  watched: tuple[str, ...]
  options: Mapping[str, str]
  max_restarts: int = 10
  root: str = ''
  submitted: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  tokens: tuple[str, ...] = ()

  def __post_init__(self):
    if not _NAME.fullmatch(self.name):
      raise RunError(
        f'--name={self.name}: at most 28 small letters, digits and hyphens are expected, the first '
        'a letter'
      )

  @property
  def folder(self) -> paths.LocalPath:
    """The local directory of its scripts and of the output of its processes."""
    path = paths.at(self.workdir)
    if isinstance(path, paths.LocalPath):
      return path.absolute() / 'launch'
    root = paths.local(paths.at(self.root), 'the directory that a job is submitted from')
    return root / 'launch' / self.name

  def written(self, python: str) -> str:
    """The command for a shell, with the path of an interpreter."""
    words = [python if word == 'python' else word for word in self.command]
    return shlex.join(words)

  def known_as(self, submitted: Mapping[str, Any]) -> Job:
    """The same, submitted."""
    return dataclasses.replace(self, submitted=submitted)

  def save(self) -> None:
    """Writes the record."""
    folder = paths.at(self.workdir) / 'launch'
    folder.mkdir(parents=True, exist_ok=True)
    paths.write_json(folder / 'job.json', dataclasses.asdict(self))


def is_url(path: str) -> bool:
  """Whether it is on an object store."""
  return '://' in path


def name_of(workdir: str) -> str:
  """A name for what is in a directory."""
  last = workdir.rstrip('/').rpartition('/')[2].lower()
  name = re.sub(r'[^a-z0-9]+', '-', last).strip('-')
  return (name if name[:1].isalpha() else f'run-{name}'.rstrip('-'))[:28].rstrip('-')


def recorded(workdir: str) -> bool:
  """Whether a job was submitted there."""
  return (paths.at(workdir) / 'launch' / 'job.json').exists()


def load(workdir: str) -> Job:
  """The job whose record is beside a run.

  Raises:
    RunError: if there is none.
  """
  path = paths.at(workdir) / 'launch' / 'job.json'
  if not recorded(workdir):
    raise RunError(f'{workdir}: nothing was submitted with this --workdir ({path} is not there)')
  record = paths.read_object(path)
  known = {field.name for field in dataclasses.fields(Job)}
  fields: dict[str, Any] = {
    k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in known
  }
  return Job(**fields)


def is_complete(job: Job) -> bool:
  """Whether the run has its result."""
  return (paths.at(job.workdir) / 'result.json').exists()


def helps(code: int) -> bool:
  """Whether to start again what has ended with this status: stopped, or killed by a signal.

  Everything else, a mistake in the configuration or an exception, would come again.
  """
  return code == RESTART or code >= 128


def shell_status(code: int) -> int:
  """As shells have it: 128 and the number of the signal, which subprocess has as -number."""
  return code if code >= 0 else 128 - code


def _seen(job: Job) -> Iterator[str]:
  first = paths.at(job.watched[0])
  for pattern in job.watched:
    base, star, rest = pattern.partition('/*/')
    folders = [paths.at(base)]
    if star:
      found = [each.name for each in first.iterdir()] if first.exists() else []
      names = [name for name in found if not name.endswith('.jsonl')]
      folders = [folders[0] / name / rest for name in names]
    for folder in folders:
      if folder.exists():
        yield from (f'{folder}/{path.name}' for path in folder.iterdir() if _counts(path.name))


def _counts(name: str) -> bool:
  """A checkpoint, which has a longer name while it is written; or the rows of a sweep."""
  return name.isdecimal() or name.endswith('.jsonl')


def pause(tries: int) -> None:
  """The longer, the more often something has been tried in vain: at most ten minutes."""
  time.sleep(min(600, 10 * 2**tries))


def begin(job: Job, say: Any = print) -> None:
  """Counts an attempt; call it before each. Pauses if the one before was in vain.

  Raises:
    RunError: if the last ones have brought the job no further, or the store serves no longer.
  """
  if vain := patiently(lambda: _count(job, say), say, job.max_restarts):
    pause(vain)


def patiently(ask: Callable[[], _T], say: Any = print, most: int = Job.max_restarts) -> _T:
  """What a store answers, with longer and longer pauses while it does not serve.

  Raises:
    RunError: after so many tries.
  """
  for tries in itertools.count(1):
    try:
      return ask()
    except (PassingError, TimeoutError) as error:
      if tries > most:
        raise RunError(f'{error}, {tries} times in a row') from None
      say(f'an attempt cannot begin yet: {error}')
      pause(tries)
  raise AssertionError


def _count(job: Job, say: Any) -> int:
  """How many attempts in a row have been in vain."""
  path = paths.at(job.workdir) / 'launch' / 'attempts.json'
  earlier = paths.read_object(path) if path.exists() else {}
  seen = sorted(_seen(job))
  number = earlier.get('attempts', 0) + 1
  vain = earlier.get('in_vain', 0) + 1 if number > 1 and seen == earlier.get('seen') else 0
  if vain > job.max_restarts:
    raise RunError(
      f'{job.workdir}: {vain} attempts in a row have brought no new checkpoint '
      f'(--max_restarts={job.max_restarts}): look at {job.folder}, then submit it again'
    )
  paths.write_json(path, {'attempts': number, 'in_vain': vain, 'seen': seen})
  say(f'attempt {number}' + f', {vain} without a new checkpoint' * bool(vain))
  return vain


def discard(job: Job) -> None:
  """Deletes the record."""
  paths.delete(paths.at(job.workdir) / 'launch' / 'job.json')


def forget(job: Job) -> None:
  """Counts from the start again."""
  paths.delete(paths.at(job.workdir) / 'launch' / 'attempts.json')


def progress(job: Job) -> str:
  """How far it is, for people."""
  if is_complete(job):
    return 'the run is complete'
  path = paths.at(job.workdir) / 'launch' / 'attempts.json'
  attempts = paths.read_object(path).get('attempts', 0) if path.exists() else 0
  steps = [int(name) for s in _seen(job) if (name := s.rpartition('/')[2]).isdecimal()]
  last = f'newest checkpoint: step {max(steps)}' if steps else 'no checkpoint yet'
  return f'{last}; attempts: {attempts}'
