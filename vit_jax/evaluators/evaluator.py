"""What an evaluator is, and the one loop over data that all of them share."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from vit_jax.core import schema
from vit_jax.data.classes import aligned
from vit_jax.data.config import DataConfig
from vit_jax.data.crops import CROPS
from vit_jax.data.examples import Example, NoSplitError, Source, read
from vit_jax.data.fields import Field, require
from vit_jax.data.views import View

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  from jax.experimental import multihost_utils

  from vit_jax.data import pipeline
  from vit_jax.nn import sharding


class Found(NamedTuple):
  """What a pass over a split has found.

  Attributes:
    source: the split.
    totals: sums by name, float64, or int64 where they are of whole numbers; empty with records.
    records: of every example that could be used, in the order of the split; empty with sums.
    indices: of these examples in the split, int (records,).
    examples: how many could be used; with lanes of each.
  """

  source: Source
  totals: dict[str, np.ndarray]
  records: list[Any]
  indices: np.ndarray
  examples: Any


class Scores(NamedTuple):
  """Numbers by name, and arrays that are left in the run's directory."""

  values: dict[str, Any]
  arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
  """A measurement that is exact on every example, on any mesh and any number of processes.

  A subclass says what is computed for a batch, and either what is added up over batches (`sums`) or
  what is kept of each example (`record`, for what needs more of an example than is in a batch, or
  all predictions at once), and what follows from that (`finish`).

  Attributes:
    split: to evaluate on; what is held out of another one may be it, see `DataConfig`.
    crop: as for training data.
    every: how often; the end of the run always.
    batch_size: 0 uses that of training.
  """

  split: str = 'test'
  crop: Any = schema.choice(CROPS, 'resize')
  every: str = '10%'
  batch_size: int = 0

  def splits(self) -> dict[str, str]:
    """Names of passes over data, each with its split."""
    return {'test': self.split}

  def outputs(self, task: Any, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Of a batch as `task.rows` makes it; compiled. Leading axes are that of the batch."""
    return task.predict(model, task.augment(batch, None, {}))

  def sums(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Sums over the examples of a batch that are not masked; compiled. None: see `record`."""
    del outputs, batch

  def record(self, row: Mapping[str, np.ndarray], example: Example) -> Any:
    """What is kept of an example: picklable. On the host that has it.

    Args:
      row: outputs of the example.
      example: as its source has it.
    """
    raise NotImplementedError

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """The scores, from what each pass over data has found."""
    raise NotImplementedError


class Evaluation(NamedTuple):
  """An evaluator with its data.

  Attributes:
    function: of the state and the frozen parameters; its values are lists over lanes, if there are
      any.
    summary: lines for people about the data.
  """

  function: Callable[[Any, Any], Scores]
  summary: list[str]


def prepare(
  evaluator: Evaluator, task: Any, model: Any, data: DataConfig, *, batch_size: int,
  fields: Mapping[str, Field], lanes: int = 0,
) -> Evaluation:  # fmt: skip
  """Opens the data of an evaluator.

  Args:
    evaluator: of the run.
    task: of the run.
    model: its configuration, resolved.
    data: of training.
    batch_size: of training.
    fields: of the examples that the model was trained on.
    lanes: how many models are evaluated, with stacked parameters; 0 for one.

  Raises:
    RunError: if the data are not there, or cannot be used.
  """
  rows = task.rows(model, fields, View(evaluator.crop), train=False)
  layout = sharding.BatchLayout(evaluator.batch_size or batch_size)
  skip, passes, summary = data.on_corrupt == 'skip', {}, []
  for name, split in evaluator.splits().items():
    try:
      source = data.open(split)
    except NoSplitError as error:
      named = [n for n, value in vars(evaluator).items() if value == split]
      raise NoSplitError(str(error), named[0] if named else 'split') from None
    require(source.fields, rows.needs, source.name)
    if task.classed in source.fields and task.classed in fields:
      source = aligned(source, fields[task.classed].names, task.classed)
    summary += [*source.summary(), *pipeline.probe(rows, source, skip=skip)]
    batches = pipeline.eval_batches(rows, source, layout.batch_size, layout.rows, skip=skip)
    passes[name] = _Pass(evaluator, task, source, batches, layout, data.workers, lanes)

  def evaluate(state: Any, frozen: Any) -> Scores:
    found = {name: run(state, frozen) for name, run in passes.items()}
    if not lanes:
      return _counted(evaluator.finish(found), found)
    every = [
      _counted(evaluator.finish(each), each)
      for each in ({name: _lane(f, i) for name, f in found.items()} for i in range(lanes))
    ]
    stack = lambda field: {  # noqa: E731
      name: [getattr(scores, field)[name] for scores in every] for name in getattr(every[0], field)
    }
    return Scores(stack('values'), {n: np.stack(a) for n, a in stack('arrays').items()})

  return Evaluation(evaluate, list(dict.fromkeys(summary)))


def _counted(scores: Scores, found: Mapping[str, Found]) -> Scores:
  """With the number of examples of the last pass, and of those that could not be used."""
  last = list(found.values())[-1]
  counts = {'examples': last.examples, 'skipped': len(last.source) - last.examples}
  return Scores({**scores.values, **{n: float(c) for n, c in counts.items()}}, scores.arrays)


def _lane(found: Found, lane: int) -> Found:
  totals = {name: total[lane] for name, total in found.totals.items()}
  records = [record[lane] for record in found.records]
  return found._replace(totals=totals, records=records, examples=found.examples[lane])


class _Pass:
  """An evaluator's pass over a split."""

  def __init__(self, evaluator, task, source, batches, layout, workers, lanes):
    self._evaluator, self._source, self._batches = evaluator, source, batches
    self._layout, self._workers, self._lanes = layout, workers, lanes
    self._sums: bool | None = None

    def compute(state, frozen, batch):
      outputs = evaluator.outputs(task, task.judged(state, frozen), batch)
      sums = evaluator.sums(outputs, batch)
      self._sums = sums is not None
      if sums is None:
        return outputs
      return {**sums, 'examples': batch['mask'].sum().astype(jnp.int32)}

    self._compute = jax.jit(jax.vmap(compute, in_axes=(0, None, None)) if lanes else compute)

  def __call__(self, state: Any, frozen: Any) -> Found:
    whole: dict[str, Any] = {}
    parts: dict[str, np.ndarray] = {}
    records: dict[int, Any] = {}
    pending: list[Any] = []
    for batch in pipeline.iterate(self._batches, workers=self._workers):
      computed = self._compute(state, frozen, self._layout.place(batch))
      if not self._sums:
        pending.append((batch, computed))
        if len(pending) > 2:  # keeps the host from running far ahead of the devices
          self._keep(records, *pending.pop(0))
        continue
      # Whole numbers are added on the devices, exactly; others in double precision.
      for name, value in computed.items():
        if jnp.issubdtype(value.dtype, jnp.integer):
          whole[name] = whole[name] + value if name in whole else value
      pending.append({n: v for n, v in computed.items() if n not in whole})
      if len(pending) > 2:
        _add(parts, pending.pop(0))
    for item in pending:
      if self._sums:
        _add(parts, item)
      else:
        self._keep(records, *item)
    totals = {name: np.asarray(v, np.int64) for name, v in jax.device_get(whole).items()} | parts
    if self._sums:
      return Found(self._source, totals, [], np.zeros(0, np.int64), totals.pop('examples'))
    records = _gathered(records)
    order = sorted(records)
    count = np.full(self._lanes, len(order)) if self._lanes else len(order)
    return Found(self._source, {}, [records[index] for index in order], np.array(order), count)

  def _keep(self, records: dict[int, Any], batch: Any, outputs: Any) -> None:
    """Records of the examples of a batch that this process has; with lanes a list for each."""
    lanes = [{name: value[lane] for name, value in outputs.items()} for lane in range(self._lanes)]
    own = [{n: self._layout.local(x) for n, x in each.items()} for each in lanes or [outputs]]
    numbers = np.where(batch['mask'] > 0, batch['index'], -1)
    places = [*zip(*np.nonzero(numbers >= 0), strict=True)]
    wanted = [int(numbers[place]) for place in places]
    for place, index, example in zip(places, wanted, read(self._source, wanted), strict=True):
      found = [self._evaluator.record({n: x[place] for n, x in e.items()}, example) for e in own]
      records[index] = found if self._lanes else found[0]


def _add(parts: dict[str, np.ndarray], computed: Mapping[str, Any]) -> None:
  for name, value in jax.device_get(dict(computed)).items():
    parts[name] = parts.get(name, 0.0) + value.astype(np.float64)


def _gathered(records: dict[int, Any]) -> dict[int, Any]:
  """The records of all processes."""
  if jax.process_count() == 1:
    return records
  own = np.frombuffer(pickle.dumps(records), np.uint8)
  sizes = multihost_utils.process_allgather(np.int64(own.size))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: own.size] = own
  every = multihost_utils.process_allgather(padded)
  found: dict[int, Any] = {}
  for size, part in zip(sizes, every, strict=True):
    found |= pickle.loads(part[: int(size)].tobytes())
  return found
