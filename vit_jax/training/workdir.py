"""The directory of a run: which run it belongs to, and what it holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

from vit_jax.checkpoints import formats
from vit_jax.checkpoints.store import Checkpoints
from vit_jax.core import claims, paths, schema
from vit_jax.core.behind import Behind
from vit_jax.core.errors import PassingError, RunError
from vit_jax.data.fields import Field
from vit_jax.draw import pictures
from vit_jax.evaluators.evaluator import SHOWN, Drawn, Scores
from vit_jax.processes import peers
from vit_jax.text import kept
from vit_jax.training import config as config_lib
from vit_jax.training.progress import MetricsFile
from vit_jax.training.sessions import Sessions


class Known(NamedTuple):
  """What the checkpoints of a run say of it where its record leaves something open.

  Attributes:
    decided: values of unset fields, nested; see `schema.decided`.
    fields: of the examples that it was trained on.
    model: its configuration, as plain JSON.
    task: likewise.
  """

  decided: Mapping[str, Any]
  fields: dict[str, Field]
  model: Mapping[str, Any]
  task: Mapping[str, Any] = MappingProxyType({})


class Workdir:
  """A directory that holds a run, or will hold one.

  In it are config.json, the record of the run; metrics.jsonl; checkpoints/, one per step; frozen/,
  the parameters that are not trained, if there are any; evals/, what the last evaluations left;
  followed/, scores that `training.follow` found elsewhere; profile/ if one was asked for; health/
  with the stacks of processes that were ended; and, once the run is complete, result.json and
  report.html.
  """

  def __init__(self, folder: str | paths.Path):
    self.path = paths.at(folder)
    self._claim: claims.Claim | None = None  # of process 0, while it trains
    self.has_frozen = False  # or there is nothing to be saved

  def __str__(self) -> str:
    return str(self.path)

  @property
  def exists(self) -> bool:
    """Whether there is a run."""
    return (self.path / 'config.json').exists()

  def record(self) -> dict[str, Any]:
    """The configuration the run was started with, as plain JSON in today's format.

    Raises:
      RunError: if there is no run, or its record is damaged or of a later version.
    """
    path = self.path / 'config.json'
    if not path.exists():
      raise RunError(f'{self} is not the directory of a run: config.json is missing')
    stored, damage = None, ''
    try:
      stored = formats.record(self._stored(), str(path))
      whole = config_lib.to_plain(schema.complete(config_lib.Config, stored))
      if missing := schema.missing(stored, whole):
        damage = f'it lacks {", ".join(missing)}'
      else:
        return whole
    except (formats.LaterFormatError, OSError, PassingError):
      raise
    except (RunError, ValueError, TypeError, AttributeError, KeyError) as error:
      if isinstance(error.__cause__, OSError):  # it could not be read: nothing is known of it
        raise
      damage = str(error)
    raise RunError(
      f'{path}, the record of the run, is damaged: {damage}. If it is deleted, training '
      'writes it again, and assumes that what it is asked to train is what was trained there.'
    )

  def _stored(self) -> dict[str, Any]:
    return paths.read_object(self.path / 'config.json')

  def config(self) -> config_lib.Config:
    """The same, built."""
    return schema.build(config_lib.Config, self.at_home(self.record()))

  def at_home(self, record: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of this run, with its own copies of files that belong to the model."""
    return {**record, 'task': kept.found(record['task'], self.path)}

  def keep(self, files: Sequence[str], *, anew: bool) -> None:
    """Keeps copies of files that belong to the model, see `kept.keep`; raises RunError."""
    if files:
      peers.agreed(
        'copies of the vocabulary are there', lambda: kept.keep(files, self.path, anew=anew)
      )

  def changes(self, record: Mapping[str, Any]) -> dict[str, tuple]:
    """The fields in which this run, if there is one, would compute something else than `record`."""
    if not self.exists:
      return {}
    found = schema.differences(
      config_lib.without_free(self.record()), config_lib.without_free(record)
    )
    number = self._stored().get('format', 0)
    return {
      name: (old, new) for name, (old, new) in found.items()
      if not formats.meant(number, name, old, new, init=bool(record['init']))
    }  # fmt: skip

  @property
  def otherwise(self) -> list[str]:
    """What this run, begun by an earlier version, does otherwise when it goes on."""
    if not self.exists:
      return []
    return formats.otherwise(self._stored().get('format', 0), self.record())

  @property
  def trained(self) -> bool:
    """Whether anything is here that training has left: metrics, checkpoints or a result."""
    metrics = self.metrics_path
    return (
      bool(self.checkpoints().steps)
      or (self.path / 'result.json').exists()
      or (metrics.is_file() and metrics.stat().st_size > 0)
    )

  def probe(self) -> None:
    """Writes to the directory, and deletes that again; before devices are looked for.

    A local directory that is not there is tried by its nearest parent: nothing is made yet.

    Raises:
      RunError: if that is not possible.
    """
    peers.agreed('the directory of the run', lambda: self._probe())

  def _probe(self) -> None:
    place = self.path.absolute()
    while isinstance(place, paths.LocalPath) and not place.exists():
      place = place.parent
    probe = place / '.probe'
    try:
      probe.write_bytes(b'vit_jax')
      probe.unlink(missing_ok=True)
    except OSError as error:
      raise paths.failure(f'cannot write to --workdir={self}', error) from error

  def prepare(self) -> None:
    """Makes the directory, for this run alone until it is closed.

    Raises:
      RunError: if that is not possible, or another run is writing there.
    """

    def make() -> None:
      try:
        self.path.mkdir(parents=True, exist_ok=True)
      except OSError as error:
        raise paths.failure(f'cannot write to --workdir={self}', error) from None
      self._claim = claims.insist(self.path / '.claim', print)

    peers.agreed('the directory of the run is there', make)

  def check(self) -> None:
    """Raises RunError if another run has taken the directory over."""
    if self._claim:
      self._claim.check()

  def close(self) -> None:
    """Lets others have the directory."""
    if self._claim:
      self._claim.close()

  def claim(self, record: Mapping[str, Any], *, delete: bool) -> bool:
    """Makes this the directory of the run of `record`, deleting the run that is there if told to.

    Returns:
      Whether there was another record; without `delete` it must be one of which nothing is trained.

    Raises:
      RunError: if it cannot be written.
    """

    def write() -> bool:
      try:
        replaced = bool(self.changes(record))
      except RunError:
        replaced = True
      new = not self.checkpoints().steps  # whatever is in frozen/ is not of this run
      try:
        # Last what says which run this is: an interrupted deletion is repeated.
        for name in (
          'result.json', 'report.html', 'command.json', 'tensorboard', 'checkpoints', 'frozen',
          'evals', 'followed', 'profile', 'health', 'metrics.jsonl', 'config.json',
        ):  # fmt: skip
          if delete or (new and name == 'frozen'):
            paths.delete(self.path / name)
      except OSError as error:
        raise paths.failure(f'cannot delete the run in --workdir={self}', error) from None
      paths.write_json(self.path / 'config.json', formats.stamped(dict(record)))
      return replaced

    return peers.agreed('the directory of the run is its own', write)

  @property
  def metrics_path(self) -> paths.Path:
    """Of metrics.jsonl."""
    return self.path / 'metrics.jsonl'

  def metrics(self, behind: Behind, **options: Any) -> MetricsFile:
    """metrics.jsonl, open to be continued, with the options of `MetricsFile`."""
    return MetricsFile(self.metrics_path, behind, **options)

  def sessions(self, *given: Any, **options: Any) -> Sessions:
    """command.json with this session in it, by what `Sessions` is given."""
    return Sessions(self.path / 'command.json', *given, **options)

  def checkpoints(self, **options: Any) -> Checkpoints:
    """The run's checkpoints, opened with the options of `Checkpoints`."""
    return Checkpoints(self.path / 'checkpoints', **options)

  def leave(
    self, name: str, facts: Mapping[str, Any], scores: Scores, drawn: Sequence[Drawn]
  ) -> None:
    """Writes what an evaluation leaves: evals/NAME.json, NAME.npz, and pictures in NAME/.

    Args:
      name: of the evaluation.
      facts: of it, plain JSON.
      scores: what came out.
      drawn: predictions that are worth a look.
    """
    folder = self.path / 'evals'
    folder.mkdir(exist_ok=True)
    if scores.arrays:
      paths.write_npz(folder / f'{name}.npz', scores.arrays)
    with paths.writing(folder / name):
      paths.delete(folder / name)
    shown = []
    for number, each in enumerate(drawn):
      (folder / name).mkdir(exist_ok=True)
      file = f'{name}/{each.shown.group}_{number % SHOWN}.png'
      paths.write_bytes(folder / file, pictures.png(each.picture))
      shown.append({
        'file': file, 'group': each.shown.group, 'score': each.shown.score, 'name': each.name,
        'facts': each.facts,
      })  # fmt: skip
    tables = [table._asdict() for table in scores.tables]
    paths.write_json(
      folder / f'{name}.json',
      {**facts, 'values': scores.values, 'tables': tables, 'pictures': shown},
    )

  def save_frozen(self, frozen: Any) -> None:
    """Writes the parameters that are not trained, once for all checkpoints."""
    if jax.tree.leaves(frozen):
      store = Checkpoints(self.path / 'frozen')
      store.prepare()
      if not store.steps:
        store.save(0, frozen, {})
      store.close()
    self.has_frozen = True

  def frozen(self, abstract: Any) -> Any:
    """The parameters that are not trained, laid out for the mesh in context.

    Raises:
      RunError: if they are missing, damaged, or do not fit.
    """
    if not jax.tree.leaves(abstract):
      return abstract
    return Checkpoints(self.path / 'frozen').restore(abstract)[0]

  def known(self) -> Known | None:
    """What the newest checkpoint says that can be read; None if there is none."""
    facts = self.checkpoints().facts()
    if not facts:
      return None
    fields = {name: Field.from_dict(field) for name, field in facts['fields'].items()}
    return Known(
      facts['decided'], fields, facts['model'], kept.found(facts.get('task', {}), self.path)
    )

  def result(self) -> dict[str, Any] | None:
    """The contents of result.json; None if the run is not complete.

    Raises:
      RunError: if it is damaged.
    """
    path = self.path / 'result.json'
    if not path.exists():
      return None
    try:
      return paths.read_object(path)
    except RunError as error:
      raise RunError(
        f'{error}. Delete it: training writes it again from the last checkpoint.'
      ) from None

  def finish(self, result: Mapping[str, Any]) -> None:
    """Writes result.json: the run is complete."""
    paths.write_json(self.path / 'result.json', dict(result))

  def keep_compiled(self, directory: str) -> None:
    """Keeps compiled programs in `directory`, relative to the run's; '' leaves JAX as it is."""
    if not directory or getattr(jax.config, 'jax_compilation_cache_dir'):  # noqa: B009
      return
    path = paths.at(directory)
    if isinstance(path, paths.LocalPath) and not path.is_absolute():
      path = self.path.absolute() / directory
    if isinstance(path, paths.StorePath) and path.scheme not in ('gs', 's3'):
      if peers.index() == 0:
        print(
          f'compiled programs are not kept: JAX cannot write {path} (set compilation_cache to a '
          'local directory, or one at gs:// or s3://)'
        )
      return
    place = os.path.normpath(path) if isinstance(path, paths.LocalPath) else str(path)
    jax.config.update('jax_compilation_cache_dir', place)
    compilation_cache.reset_cache()  # or a program compiled before this would have decided
