"""Checkpoints: asynchronous, atomic, verified, restored onto any mesh.

A checkpoint is a flat dict from names ('model/encoder/blocks/attn/query/kernel') to arrays, so that
it does not depend on the classes that happen to hold them. It is a directory whose name is its
step, there only once it is complete; whatever else lies beside it does not count. It also keeps
facts: what the caller says, a checksum of every array, and a digest of all that.

Orbax writes, and `reading` reads. In an object store, where nothing can be renamed, a directory is
a checkpoint when its facts are there, which are written last and deleted first. Orbax writes to
gs:// itself; what goes to other stores is staged (`staging`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from vit_jax.checkpoints import formats, reading
from vit_jax.checkpoints.staging import FACTS, Staging, patiently
from vit_jax.core import faults, paths
from vit_jax.core.errors import PassingError, RunError
from vit_jax.core.misfits import misfits, refuse
from vit_jax.core.text import first_line
from vit_jax.nn import sharding, tree
from vit_jax.processes import exchange

# A failed save or restore is raised as an exception, with a message of ours; Orbax logs each of its
# threads' tracebacks as well.
logging.getLogger('absl').addFilter(
  lambda record: record.levelno < logging.ERROR or 'orbax' not in record.pathname
)

_SMALL = 2**20  # bytes of an array that one replica writes alone
# As TensorStore says of an object store that it does not serve, for now or to this account.
_PASSING = '(ABORTED|UNAVAILABLE|DEADLINE_EXCEEDED)'
_DENIED = '(PERMISSION_DENIED|UNAUTHENTICATED)'
# Directories that a kill leaves behind.
_PARTIAL = ('.orbax-checkpoint-tmp', '.deleted')


class DamagedError(RunError):
  """A checkpoint that cannot be read, or does not hold what was saved.

  Attributes:
    reason: in a few words.
  """

  def __init__(self, where: str, reason: str):
    super().__init__(f'the checkpoint {where} is damaged: {reason}')
    self.reason = reason


class NoneSoundError(RunError):
  """Checkpoints of which none can be read, or holds what was saved."""


class Found(NamedTuple):
  """What `Checkpoints.newest` returns.

  Attributes:
    step: of the checkpoint.
    state: laid out for the mesh in context.
    extra: the facts that were saved with it.
    damage: what is wrong with newer ones, by step.
  """

  step: int
  state: Any
  extra: dict[str, Any]
  damage: dict[int, str]


class Checkpoints:
  """The checkpoints of one run, in `directory`, a subdirectory per step."""

  def __init__(
    self, directory: paths.Path, *, keep: int = 1, at: Collection[int] = (),
    held: Callable[[int, int], bool] = lambda step, latest: False,
  ):  # fmt: skip
    """Touches nothing yet: a run may be writing there.

    Args:
      directory: of the checkpoints.
      keep: how many of the newest checkpoints to keep.
      at: steps whose checkpoints are kept as well.
      held: whether that of a step is, while another one is the newest.
    """
    self.directory = directory.absolute()
    self._keep, self._at, self._held = keep, frozenset(at), held
    self._staging: Staging | None = None
    self._begun = 0.0
    self.seconds = 0.0  # that the last save took, from its beginning to its end in the background
    self._pending: tuple[int, concurrent.futures.Future[None]] | None = None
    self._worker = concurrent.futures.ThreadPoolExecutor(1, 'checkpoints')

  def prepare(self) -> None:
    """Makes the directory and deletes what interrupted saves have left there.

    Raises:
      RunError: if it cannot be written.
    """
    if jax.process_index() == 0:
      with paths.writing(self.directory):
        self.directory.mkdir(parents=True, exist_ok=True)
        steps = {str(step) for step in self.steps}
        for name in self._names():
          if name.endswith(_PARTIAL) or (_is_step(name) and name not in steps):
            paths.delete(self.directory / name)
    multihost_utils.sync_global_devices('checkpoints can be written')
    if isinstance(self.directory, paths.StorePath) and self.directory.scheme != 'gs':
      self._staging = Staging(self.directory)

  @property
  def latest(self) -> int | None:
    """The step of the newest finished checkpoint."""
    return max(self.steps, default=None)

  def agreed(self) -> int | None:
    """As `latest`, the same for all processes, whatever is saved meanwhile."""
    return exchange.from_first(lambda: self.latest)

  @property
  def steps(self) -> list[int]:
    """Of all finished checkpoints, in order."""
    found = [name for name in self._names() if _is_step(name)]
    if isinstance(self.directory, paths.StorePath):
      found = [name for name in found if (self.directory / name / FACTS).is_file()]
    return sorted(map(int, found))

  def _names(self) -> list[str]:
    """Of what is in the directory."""
    return [path.name for path in self.directory.iterdir()] if self.directory.is_dir() else []

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Starts writing `state`; returns once it may be changed or donated.

    Args:
      step: of the checkpoint.
      state: a tree of arrays.
      extra: JSON-serialisable facts to keep with it.

    Raises:
      RunError: if this save, or the one before, could not be written.
    """
    self.wait()
    self._begun = time.monotonic()
    leaves = tree.flatten(state)
    sums = reading.checksums(leaves)
    arrays = {name: [str(a.dtype), list(a.shape), sums[name]] for name, a in leaves.items()}
    facts = _sealed(formats.stamped({**extra, 'arrays': arrays}))
    # Replicas share the writing of an array, but for small ones: a cut is a program to compile.
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = _SMALL
    layers = [name for name, leaf in leaves.items() if isinstance(leaf, tree.Layers)]
    if layers:  # they are made whole on the hosts, and are not to be cut on devices
      context.array.saving.use_replica_parallel = False
      leaves |= {n: sharding.on_hosts(leaves[n], turn) for turn, n in enumerate(layers)}
    try:
      with context:
        place = (self._staging.place if self._staging else self.directory) / str(step)
        response = ocp.save_async(str(place), leaves, custom_metadata=facts)
    except Exception as error:
      raise self._failure(step, error) from error
    self._pending = step, self._worker.submit(self._finish, step, response)

  def _finish(self, step: int, response: Any) -> None:
    """In the background: waits until all processes have written, then deletes what is too old."""
    response.result()
    if self._staging:
      self._staging.upload(step)
    self.seconds = time.monotonic() - self._begun
    if jax.process_index() == 0:
      patiently(self._rotate)

  def _rotate(self) -> None:
    steps = self.steps
    for old in steps[: -self._keep]:
      if old not in self._at and not self._held(old, steps[-1]):
        self._delete(old)

  def _delete(self, step: int) -> None:
    path = self.directory / str(step)
    if not isinstance(path, paths.StorePath):
      # Under a name that is not a step's: nobody can take half of it for a checkpoint.
      path = path.rename(path.with_name(f'{step}.deleted'))
    paths.delete(path, FACTS)

  def drop_after(self, step: int) -> None:
    """Deletes the checkpoints of later steps, the newest first."""
    if jax.process_index() == 0:
      with paths.writing(self.directory):
        for later in reversed(self.steps):
          if later > step:
            self._delete(later)
    multihost_utils.sync_global_devices('later checkpoints are gone')

  def wait(self, timeout: float | None = None) -> None:
    """Returns when the last save is on disk, or after `timeout` seconds.

    Raises:
      RunError: if it could not be written.
    """
    if self._pending is None:
      return
    step, future = self._pending
    if not concurrent.futures.wait([future], timeout).done:
      return
    self._pending = None
    if error := future.exception():
      raise self._failure(step, error) from error

  def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """A checkpoint, laid out for the mesh in context, and its `extra`.

    Args:
      abstract: a tree of ShapeDtypeStructs, from `jax.eval_shape` under that mesh.
      step: of the checkpoint; the newest if not given.

    Raises:
      RunError: if there is no such checkpoint, it is damaged (naming the last good one), or names,
        shapes or dtypes differ from those in the checkpoint, listing them.
    """
    return self._or_name_a_good_one(step, lambda step: self._restore(abstract, step))

  def newest(self, abstract: Any, steps: Collection[int] | None = None) -> Found:
    """The newest checkpoint that is sound: what newer ones held can be computed again from it.

    Args:
      abstract: as for `restore`.
      steps: those to choose from, all if not given; there must be some.

    Raises:
      NoneSoundError: if none is sound.
      RunError: if it does not fit.
    """
    damage: dict[int, str] = {}
    for step in sorted(self.steps if steps is None else steps, reverse=True):
      try:
        return Found(step, *self._restore(abstract, step), damage)
      except DamagedError as error:
        damage[step] = error.reason
    which = '; '.join(f'step {step}: {reason}' for step, reason in damage.items())
    if steps is not None:
      raise NoneSoundError(f'{self.directory} holds no sound checkpoint to choose: {which}')
    raise NoneSoundError(
      f'no checkpoint in {self.directory} is sound: {which}. Rename that directory to begin again '
      'without them.'
    )

  def set_aside(self, steps: Collection[int]) -> list[paths.Path]:
    """Renames checkpoints, so that they are none any more; returns their new names."""
    targets = []
    for step in steps:
      path = self.directory / str(step)
      taken = {other.name for other in self.directory.glob(f'{step}.damaged*')}
      names = (f'{step}.damaged{number or ""}' for number in itertools.count())
      targets.append(path.with_name(next(name for name in names if name not in taken)))
      if jax.process_index() == 0:
        with paths.writing(path):
          paths.move(path, targets[-1], FACTS)
    multihost_utils.sync_global_devices('checkpoints are set aside')
    return targets

  def peek(self, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes and dtypes of a checkpoint by name, and its `extra`; arguments as for `restore`."""
    shapes, facts, *_ = self._or_name_a_good_one(step, self._facts)
    return shapes, facts

  def facts(self) -> dict[str, Any] | None:
    """The `extra` of the newest checkpoint of which it can be read; None if there is none."""
    for step in reversed(self.steps):
      with contextlib.suppress(DamagedError):
        return self._facts(step)[1]
    return None

  def part(
    self, wanted: Mapping[str, jax.ShapeDtypeStruct], step: int | None = None
  ) -> dict[str, Any]:
    """Some arrays of a checkpoint by name, all of them finite; raises as `restore` does.

    Args:
      wanted: shapes, dtypes and layouts; what has no sharding is returned as NumPy's array.
      step: of the checkpoint; the newest if not given.
    """
    return self._or_name_a_good_one(step, lambda step: self._verified(wanted, step, finite=True)[0])

  def give_up(self, seconds: float = 20.0) -> None:
    """Waits for the last save for so long, and no longer when it is closed."""
    with contextlib.suppress(RunError):
      self.wait(seconds)
    self._pending = None
    self._worker.shutdown(wait=False, cancel_futures=True)

  def close(self) -> None:
    """Waits for the last save and lets go of the directory."""
    try:
      self.wait()
    finally:
      self._worker.shutdown(wait=self._pending is not None)
      if self._staging:
        self._staging.close()

  def _or_name_a_good_one(self, step: int | None, read: Callable[[int], Any]) -> Any:
    """`read(step)`; if that checkpoint is damaged, the error says which one is not."""
    steps = self.steps
    if not steps:
      raise RunError(f'{self.directory} holds no finished checkpoint')
    if step is not None and step not in steps:
      raise RunError(
        f'{self.directory} has no checkpoint of step {step}: there are {_listed(steps)}'
      )
    chosen = steps[-1] if step is None else step
    try:
      return read(chosen)
    except DamagedError as error:
      damaged = str(error)
    if step is None and chosen not in self.steps:  # its run has deleted it: there is a newer one
      return self._or_name_a_good_one(None, read)
    for good in reversed(steps[: steps.index(chosen)]):
      try:
        read(good)
      except DamagedError:
        continue
      raise RunError(
        f'{damaged}. The last good one before it is that of step {good}: evaluate, predict, '
        f'inspect and convert take --step={good} (and init ?step={good} behind the path); training '
        'that is started again goes on from it.'
      )
    raise RunError(f'{damaged}. There is no good one before it.')

  def _restore(self, abstract: Any, step: int) -> tuple[Any, dict[str, Any]]:
    wanted = tree.flatten(sharding.fill_shardings(abstract))

    def fits(found: dict[str, Any]) -> None:
      _compare(found, wanted, f'{self.directory}/{step}')
      faults.reached('in restore')

    leaves, facts = self._verified(wanted, step, fits=fits)
    return tree.unflatten(abstract, leaves), facts

  def _verified(
    self, wanted: Mapping[str, jax.ShapeDtypeStruct], step: int, *,
    fits: Callable[[dict[str, Any]], None] = lambda found: None, finite: bool = False,
  ) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Sound arrays by name, and `extra`.

    `fits` looks at all shapes before anything is read; `finite` refuses other numbers.
    """
    problem, leaves, facts, saved, own, odd = None, {}, {}, None, {}, []
    try:
      found, facts, saved, names = self._facts(step)
      fits(found)
      leaves, own, odd = self._read(step, lambda path: reading.load(path, wanted, names, finite))
    except RunError as error:
      problem = error
    # Before anything that all processes do together: one of them alone may have a problem.
    worst = exchange.largest(
      0 if problem is None else 1 if isinstance(problem, DamagedError) else 2
    )
    if worst == 1 and problem is None:
      problem = self._damaged(step, 'another process could not read it')
    if worst == 2 and (problem is None or isinstance(problem, DamagedError)):
      problem = RunError(f'another process cannot read {self.directory}/{step}')
    if problem:
      raise problem
    if saved is not None:
      read = _added(own)
      bad = [name for name, value in read.items() if value != saved[name]]
      if exchange.largest(len(bad)):
        which = _listed(bad) if bad else 'arrays that another process reads'
        raise self._damaged(step, f'{which}: not the numbers that were written')
    if finite and exchange.largest(len(odd)):
      name = odd[0] if odd else 'an array'
      raise RunError(f'{self.directory}/{step}: {name} has values that are not finite')
    return leaves, facts

  def _facts(
    self, step: int
  ) -> tuple[dict[str, Any], dict[str, Any], dict[str, int] | None, dict[str, str]]:
    """Shapes by name, `extra`, checksums by name if the checkpoint has any, and names on disk."""
    stored = self._read(step, lambda path: paths.read_object(path / FACTS)['custom_metadata'])
    if not isinstance(stored, dict) or not stored:
      raise self._damaged(step, f'{FACTS} lacks what the run wrote there')
    if ('digest' in stored or stored.get('format')) and _sealed(stored) != stored:
      raise self._damaged(step, f'{FACTS} is not what the run wrote')
    facts = formats.facts(stored, f'{self.directory}/{step}')
    facts.pop('digest', None)
    arrays = facts.pop('arrays', None)
    today = functools.partial(formats.array, stored.get('format', 0))
    if arrays is None:
      shapes = self._read(step, reading.shapes)
      named = {today(name): shape for name, shape in shapes.items()}
      return named, facts, None, {today(name): name for name in shapes}
    shapes = {
      today(name): jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
      for name, (dtype, shape, _) in arrays.items()
    }
    sums = {today(name): value for name, (_, _, value) in arrays.items()}
    return shapes, facts, sums, {today(name): name for name in arrays}

  def _read(self, step: int, read: Callable[[paths.Path], Any]) -> Any:
    """`read` of the directory of a step, whose failures are the checkpoint's."""
    path = self.directory / str(step)
    try:
      if not path.is_dir():
        raise NotADirectoryError('it is not a directory')
      return read(path)
    except (MemoryError, jax.errors.JaxRuntimeError):
      raise
    except Exception as error:
      reason = _said(error)
      if _is_out_of_reach(error):
        raise RunError(f'cannot read the checkpoint {path}: {reason}') from error
      raise self._damaged(step, reason) from error

  def _damaged(self, step: int, reason: str) -> DamagedError:
    return DamagedError(f'{self.directory}/{step}', reason)

  def _failure(self, step: int, error: BaseException) -> RunError:
    try:
      good = [other for other in self.steps if other != step]
    except OSError:
      good = []
    last = f'the last good one is step {max(good)}' if good else 'there is none before it'
    # One for everything that Orbax had not begun by then.
    warnings.filterwarnings('ignore', r'coroutine .* was never awaited', RuntimeWarning)
    kind = PassingError if _is_passing(error) else RunError
    how = 'Free some space (or make the directory writable)'
    if isinstance(self.directory, paths.StorePath):
      how = 'See to the store'
    return kind(
      f'the checkpoint of step {step} could not be written to {self.directory}; {last}.\n'
      f'{_said(error)}\n{how}, then run the same command again.'
    )


def _is_step(name: str) -> bool:
  return name.isdecimal() and str(int(name)) == name


def _is_passing(error: BaseException) -> bool:
  """Whether it is of a store that may serve later."""
  return paths.is_passing(error) or bool(re.match(_PASSING, str(error)))


def _is_out_of_reach(error: Exception) -> bool:
  """Whether an error is of the file system, rather than of what is, or is not, in it."""
  missing = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
  for each in (error, error.__cause__):
    if isinstance(each, OSError) and not isinstance(each, missing):
      return True
  number = re.search(r'OS error (\d+)', str(error))  # as TensorStore writes it
  absent = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
  of_store = re.match(f'{_PASSING}|{_DENIED}', str(error))
  return bool(of_store) or (bool(number) and int(number[1]) not in absent)


def _sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
  """`facts`, as they come back from JSON, with a digest of them."""
  plain = json.loads(json.dumps({name: v for name, v in facts.items() if name != 'digest'}))
  text = json.dumps(plain, sort_keys=True)
  return {**plain, 'digest': hashlib.sha256(text.encode()).hexdigest()}


def _added(own: Mapping[str, int]) -> dict[str, int]:
  """Checksums, of which every process has seen a part."""
  if jax.process_count() == 1:
    return dict(own)
  every = multihost_utils.process_allgather(np.array(list(own.values()), np.uint32))
  return dict(zip(own, every.sum(0, dtype=np.uint32).tolist(), strict=True))


def _said(error: BaseException) -> str:
  """What an error says, of TensorStore's chains of causes the last one."""
  kind, *causes = re.split(r': (?=Error )', first_line(error).partition(' [tensorstore_spec=')[0])
  return f'{causes[-1]} ({kind})' if causes else kind


def _listed(items: Collection[Any], most: int = 3) -> str:
  shown = ', '.join(map(str, list(items)[:most]))
  return f'{shown} and {len(items) - most} more' if len(items) > most else shown


def _compare(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
  """Raises RunError unless names, shapes and dtypes agree."""
  shapes = lambda leaves: {name: tuple(leaf.shape) for name, leaf in sorted(leaves.items())}  # noqa: E731
  dtypes = {
    name: (jax.numpy.dtype(found[name].dtype), wanted[name].dtype)
    for name in found.keys() & wanted.keys()
  }
  refuse(misfits(shapes(wanted), shapes(found), dtypes=dtypes), f'the checkpoint {where}')
