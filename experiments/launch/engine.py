"""What engines have in common: steps that are shown, and then done."""

from __future__ import annotations

import abc
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.launch.job import ENVIRONMENT, Job
from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.launch.cluster import VARIABLE


class FailedError(RunError):
  """A program has failed, which it may not do again."""


class File(NamedTuple):
  """A file to write."""

  path: paths.Path
  text: str


class Command(NamedTuple):
  """A program to run and wait for."""

  words: Sequence[str]


class Note(NamedTuple):
  """What is said and not done."""

  text: str


Step = File | Command | Note


class Engine(abc.ABC):
  """Starts a job. Making one checks its options; nothing else happens before `submit`.

  Attributes:
    job: to start.
    options: of the job that have not been taken yet: they go to the tool that the engine calls.
  """

  # Whether the machines see the files of the one that submits.
  shares_files = True

  def __init__(self, job: Job):
    self.job = job
    self.options = {name.replace('-', '_'): text for name, text in job.options.items()}
    if not self.shares_files and not job.workdir.startswith('/') and '://' not in job.workdir:
      raise RunError(
        f'--workdir={job.workdir}: the machines of {job.engine} do not see this directory; give a '
        'store (gs://BUCKET/DIR), or the absolute path of a file system that they mount'
      )
    for word in job.command if not self.shares_files else ():
      if word.startswith('--config=/'):
        raise RunError(
          f'{word}: the machines of {job.engine} have this checkout somewhere else; give a path '
          'relative to it'
        )
    self.prepare()

  @abc.abstractmethod
  def prepare(self) -> None:
    """Takes and checks options; raises RunError."""

  @abc.abstractmethod
  def steps(self) -> Iterator[Step]:
    """What submitting does, in order."""

  @abc.abstractmethod
  def status(self) -> str:
    """What the scheduler says of the job."""

  @abc.abstractmethod
  def at_work(self) -> str:
    """Why the job cannot be submitted again yet; '' if it has ended."""

  @abc.abstractmethod
  def logs(self) -> Command:
    """Shows the end of the output."""

  @abc.abstractmethod
  def stop(self) -> None:
    """Ends the job for good; a run saves its state first."""

  def submit(self) -> Mapping[str, Any]:
    """Does the steps; returns what the job is known by."""
    return {'said': do(self.steps())}

  def unseen(self) -> str:
    """A warning if the directory seems to be on a disk that only this machine has."""
    path = paths.at(self.job.workdir)
    if self.shares_files or not isinstance(path, paths.LocalPath):
      return ''
    if any(each.is_mount() for each in (path, *path.parents) if each != each.parent):
      return ''
    return (
      f'{path} is on a disk of this machine, as far as can be seen: the job is recorded there, and '
      f'the machines of {self.job.engine} must mount the same'
    )

  def take(self, name: str, default: str = '', *, needed: str = '') -> str:
    """An option of the engine's own; `needed` is an example of what must be given."""
    if needed and not self.options.get(name):
      raise RunError(f'--engine={self.job.engine} needs --{name}={needed}')
    return self.options.pop(name, default)

  def count(self, name: str, default: int) -> int:
    """As `take`, of a number."""
    return self.whole(name, self.take(name, str(default)), 1 if default else 0)

  def whole(self, name: str, text: str, least: int = 1) -> int:
    """The number that the text of an option is."""
    if not text.isdecimal() or int(text) < least:
      raise RunError(f'--{name}={text}: a whole number is expected')
    return int(text)

  def no_more(self) -> None:
    """Raises RunError if there are options that nobody has taken."""
    if self.options:
      raise RunError(f'--engine={self.job.engine} has no option --{next(iter(self.options))}')

  def flags(self, options: Mapping[str, str] | None = None) -> list[str]:
    """Options as flags of a tool: --num_slices=2 is --num-slices=2, --spot=true is --spot."""
    out = []
    for name, value in (self.options if options is None else options).items():
      flag = f'--{name.replace("_", "-")}'
      out.append(flag if value.lower() == 'true' else f'{flag}={value}')
    return out

  def environment(self, processes: int = 0, **more: str) -> dict[str, str]:
    """Of every process; `processes` is how many there must be, 0 if nobody knows."""
    return {**ENVIRONMENT, **({VARIABLE: str(processes)} if processes else {}), **more}


def shown(steps: Iterable[Step]) -> Iterator[str]:
  """Lines for people: files whole, commands as a shell takes them."""
  for step in steps:
    if isinstance(step, File):
      yield f'# {step.path}:'
      yield from (f'  {line}' if line else '' for line in step.text.splitlines())
    elif isinstance(step, Command):
      yield shlex.join(step.words)
    else:
      yield f'# {step.text}'


def do(steps: Iterable[Step]) -> str:
  """Writes and runs; returns what the last program prints."""
  out = ''
  for step in steps:
    if isinstance(step, File):
      step.path.parent.mkdir(parents=True, exist_ok=True)
      paths.write_text(step.path, step.text)
    elif isinstance(step, Command):
      out = run(step)
  return out


def attempted(command: Command) -> subprocess.CompletedProcess[str]:
  """A program that has been run; raises RunError if it is not installed."""
  words = list(command.words)
  if not shutil.which(words[0]):
    raise RunError(f'{words[0]} is not installed here: submit from where it is')
  return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def run(command: Command) -> str:
  """What a program prints; raises RunError if it is not installed, FailedError if it fails."""
  done = attempted(command)
  if done.returncode:
    said = (done.stderr or done.stdout).strip() or f'exit status {done.returncode}'
    raise FailedError(f'{shlex.join(command.words)} has failed: {said}')
  return done.stdout.strip()


def exports(environment: Mapping[str, str]) -> str:
  """Lines of a shell script."""
  return ''.join(f'export {name}={shlex.quote(value)}\n' for name, value in environment.items())
