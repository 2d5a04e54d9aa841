"""Checkpoints: asynchronous, atomic, restored onto any mesh. The only file that imports Orbax.

A checkpoint is a flat dict from names ('model/encoder/blocks/attn/query/kernel') to arrays, so that
it does not depend on the classes that happen to hold them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from vit_jax.checkpoints import formats
from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.core.misfits import misfits, refuse
from vit_jax.nn import sharding, tree

# A failed save is raised as an exception, with a message of ours; Orbax logs each of its threads'
# tracebacks as well.
logging.getLogger('absl').addFilter(
  lambda record: record.levelno < logging.ERROR or 'orbax' not in record.pathname
)


class Checkpoints:
  """The checkpoints of one run, in `directory`, a subdirectory per step."""

  def __init__(
    self, directory: paths.Path, *, keep: int = 1, at: Collection[int] = (),
    read_only: bool = False,
  ):  # fmt: skip
    """Opens `directory`; unless `read_only`, makes it and clears away interrupted saves.

    Args:
      directory: of the checkpoints.
      keep: how many of the newest checkpoints to keep.
      at: steps whose checkpoints are kept as well.
      read_only: leave everything as it is; a run may be writing there.

    Raises:
      RunError: if the directory cannot be written.
    """
    self.directory = directory.absolute()
    self._pending: tuple[int, Any] | None = None
    try:
      policies: Any = ocp.training
      self._checkpointer = ocp.training.Checkpointer(
        str(self.directory),
        save_decision_policy=policies.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=policies.preservation_policies.AnyPreservationPolicy(
          [
            policies.preservation_policies.LatestN(keep),
            policies.preservation_policies.CustomSteps(tuple(at)),
          ]
        ),
        cleanup_tmp_directories=not read_only,
      )
    except OSError as error:
      raise RunError(f'cannot write checkpoints to {directory}: {error}') from None

  @property
  def latest(self) -> int | None:
    """The step of the newest finished checkpoint."""
    newest = self._checkpointer.latest
    return None if newest is None else newest.step

  @property
  def steps(self) -> list[int]:
    """Of all finished checkpoints."""
    return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

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
    try:
      response = self._checkpointer.save_async(
        step, tree.flatten(state), force=True, custom_metadata=formats.stamped(extra)
      )
    except Exception as error:
      raise self._failure(step, error) from error
    self._pending = (step, response)

  def wait(self, timeout: float | None = None) -> None:
    """Returns when the last save is on disk, or after `timeout` seconds.

    Raises:
      RunError: if it could not be written.
    """
    if self._pending is None:
      return
    step, response = self._pending
    try:
      response.result(timeout)
    except TimeoutError as error:
      if timeout is None:
        raise self._failure(step, error) from error
      return
    except Exception as error:
      self._pending = None
      raise self._failure(step, error) from error
    self._pending = None

  def restore(self, abstract: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
    """A checkpoint, laid out for the mesh in context, and its `extra`.

    Args:
      abstract: a tree of ShapeDtypeStructs, from `jax.eval_shape` under that mesh.
      step: of the checkpoint; the newest if not given.

    Raises:
      RunError: if names, shapes or dtypes differ from those in the checkpoint, listing them.
    """
    step = self.latest if step is None else step
    metadata = self._checkpointer.metadata(step)
    wanted = tree.flatten(sharding.fill_shardings(abstract))
    _compare(metadata.metadata, wanted, f'{self.directory}/{step}')
    leaves = self._checkpointer.load(step, wanted)
    return tree.unflatten(abstract, leaves), self._facts(step, metadata)

  def peek(self) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes and dtypes of the newest checkpoint by name, and its `extra`; raises RunError."""
    if self.latest is None:
      raise RunError(f'{self.directory} holds no finished checkpoint')
    metadata: Any = self._checkpointer.metadata(self.latest)
    return metadata.metadata, self._facts(self.latest, metadata)

  def _facts(self, step: int | None, metadata: Any) -> dict[str, Any]:
    return formats.facts(metadata.custom_metadata or {}, f'{self.directory}/{step}')

  def part(self, names: list[str]) -> dict[str, Any]:
    """Some arrays of the newest checkpoint by name, on one device."""
    shapes, _ = self.peek()
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
      name: jax.ShapeDtypeStruct(shapes[name].shape, shapes[name].dtype, sharding=device)
      for name in names
    }
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
      return self._checkpointer.load(self.latest, wanted)

  def close(self) -> None:
    """Waits for the last save and lets go of the directory."""
    try:
      self.wait()
    finally:
      # After a failed save this raises the same error once more.
      with contextlib.suppress(Exception):
        self._checkpointer.close()

  def _failure(self, step: int, error: Exception) -> RunError:
    good = [c.step for c in self._checkpointer.checkpoints if c.step != step]
    last = f'the last good one is step {max(good)}' if good else 'there is none before it'
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return RunError(
      f'the checkpoint of step {step} could not be written to {self.directory}; {last}.\n'
      f'{reason}\nMake room (or the directory writable), then run the same command again.'
    )


def _compare(found: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
  """Raises RunError unless names, shapes and dtypes agree."""
  shapes = lambda leaves: {name: tuple(leaf.shape) for name, leaf in sorted(leaves.items())}  # noqa: E731
  dtypes = {
    name: (jax.numpy.dtype(found[name].dtype), wanted[name].dtype)
    for name in found.keys() & wanted.keys()
  }
  refuse(misfits(shapes(wanted), shapes(found), dtypes=dtypes), f'the checkpoint {where}')
