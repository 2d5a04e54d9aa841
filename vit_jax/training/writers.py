"""Where else a run writes its metrics and pictures while it goes on.

A writer is told what metrics.jsonl is told. For Weights & Biases, for example, it is a class with
`scalars` that calls `run.log(dict(values), step=step)`, `picture` that calls
`run.log({name: wandb.Image(picture)}, step=step)` and `close` that calls `run.finish()`, and a line
in `WRITERS`.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vit_jax.core import paths
from vit_jax.core.behind import Behind
from vit_jax.core.errors import RunError

if TYPE_CHECKING:
  import numpy as np


class Writer(Protocol):
  """Created with the directory of the run, and the step after which it goes on.

  Attributes:
    package: that it needs; '' for none.
  """

  package: str

  def __init__(self, folder: paths.Path, start: int): ...

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Numbers by name."""
    ...

  def picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """A picture, uint8 (height, width, 3)."""
    ...

  def close(self) -> None:
    """After this nothing is written."""
    ...


class TensorBoard:
  """Event files in tensorboard/ of the run, by tensorboardX: `tensorboard --logdir=RUNS`."""

  package = 'tensorboardX'

  def __init__(self, folder: paths.Path, start: int):
    import tensorboardX

    # What an earlier session wrote behind this step is taken back.
    self._writer = tensorboardX.SummaryWriter(str(folder / 'tensorboard'), purge_step=start + 1)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """See `Writer`."""
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """See `Writer`."""
    self._writer.add_image(name, picture, step, dataformats='HWC')

  def close(self) -> None:
    """See `Writer`."""
    self._writer.close()


_COPY = 'what other writers write'  # a name for what is done behind the run
WRITERS: dict[str, Any] = {'tensorboard': TensorBoard}


def check(names: Sequence[str]) -> None:
  """Raises RunError if what a writer is made of is not installed."""
  for name in names:
    if (package := WRITERS[name].package) and importlib.util.find_spec(package) is None:
      raise RunError(f"log.writers={name!r} needs {package}: pip install 'vit_jax[{name}]'")


class Writers:
  """Several writers as one that never stops a run: one that fails is left alone, and that is said.

  With lanes, numbers have the name of their lane behind them. What they write for a run in an
  object store is written on this machine first, and copied there behind the run.
  """

  def __init__(
    self, names: Sequence[str], folder: paths.Path, start: int, say: Callable[[str], None],
    behind: Behind,
  ):  # fmt: skip
    self._folder = self._place = folder
    if isinstance(folder, paths.StorePath):
      self._place = paths.temporary(f'{folder} for writers')
      paths.delete(self._place)
    self._say, self._behind = say, behind
    self._writers = {}
    for name in names:
      with self._left_alone(name):
        self._writers[name] = WRITERS[name](self._place, start)

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Numbers by name, or lists of them over lanes."""
    flat = {}
    for name, value in values.items():
      if isinstance(value, list):
        flat |= {f'{name}/{i}': each for i, each in enumerate(value) if each is not None}
      elif isinstance(value, int | float):
        flat[name] = value
    self._tell(lambda writer: writer.scalars(step, flat))

  def picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """See `Writer`."""
    self._tell(lambda writer: writer.picture(step, name, picture))

  def close(self) -> None:
    """See `Writer`."""
    self._tell(lambda writer: writer.close())
    if self._place != self._folder:
      self._behind.do(_COPY, self._move)

  def _tell(self, call: Callable[[Any], None]) -> None:
    for name, writer in list(self._writers.items()):
      with self._left_alone(name):
        call(writer)
    if self._place != self._folder and self._writers:
      self._behind.do(_COPY, self._copy)

  @contextlib.contextmanager
  def _left_alone(self, name: str) -> Iterator[None]:
    """Whatever goes wrong with a writer, it is not told anything any more."""
    try:
      yield
    except Exception as error:
      self._writers.pop(name, None)
      self._say(f'log.writers: {name} is left alone from here on: {error}')

  def _copy(self) -> None:
    assert isinstance(self._place, paths.LocalPath)
    assert isinstance(self._folder, paths.StorePath)
    with paths.writing(self._folder):
      paths.upload(self._place, self._folder)

  def _move(self) -> None:
    self._copy()
    paths.delete(self._place)
