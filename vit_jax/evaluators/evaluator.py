"""What an evaluator is, and the one loop over data that all of them share."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from etils import epy

from vit_jax.architecture import SINGLE
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data import rows as rows_lib
from vit_jax.data.classes import matched
from vit_jax.data.config import DataConfig
from vit_jax.data.crops import CROPS
from vit_jax.data.examples import Example, NoSplitError, Source, Wrapped, read
from vit_jax.data.fields import Field, require
from vit_jax.data.views import View
from vit_jax.processes import health
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.convert import adapt
  from vit_jax.data import pipeline
  from vit_jax.draw import pictures
  from vit_jax.explore import attention as maps
  from vit_jax.nn import sharding
  from vit_jax.processes import exchange


# Of the best and of the worst predictions, each.
SHOWN = 4


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


class Table(NamedTuple):
  """Rows of plain values under the names of their columns.

  Attributes:
    best: whether 'high' or 'low' numbers in the last column are good; '' if neither.
  """

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Any]]
  best: str = ''


class Over(NamedTuple):
  """A split, and what an evaluator needs to go over it.

  Attributes:
    source: the split.
    seen: how its examples are seen.
    task: of the model.
    model: its configuration.
    judged: gives the model of a state and what is frozen.
    batch_size: the devices divide it.
    skip: is told of examples that cannot be used; without it they are refused.
    lanes: how many models are evaluated, with stacked parameters; 0 for one.
  """

  source: Source
  seen: Seen
  task: Any
  model: Any
  judged: Callable[[Any, Any], Any]
  batch_size: int
  skip: Any
  lanes: int


class Scores(NamedTuple):
  """Numbers by name; and what is left in the run's directory: arrays, and tables for the report."""

  values: dict[str, Any]
  arrays: Mapping[str, np.ndarray] = MappingProxyType({})
  tables: Sequence[Table] = ()


class Shown(NamedTuple):
  """A prediction that is worth a look.

  Attributes:
    group: 'worst', 'best', or 'examples' where there is no telling.
    score: how bad it is.
    number: of the example in the split.
    outputs: for this example.
  """

  group: str
  score: float
  number: int
  outputs: dict[str, np.ndarray]


class Drawn(NamedTuple):
  """A prediction as people see it.

  Attributes:
    shown: the prediction.
    name: of the example.
    facts: what was predicted, plain JSON.
    picture: uint8 (height, width, 3).
  """

  shown: Shown
  name: str
  facts: dict[str, Any]
  picture: np.ndarray


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
    image_size: side of the images in pixels; 0 for that of the model, whose positions are resampled
      for another one.
    patch_size: side of the patches likewise.
    attention: whether pictures of predictions show beside them which patches they drew on; of
      models with attention over patches.
    score: what `badness` is, in a word.
    of: arrays of a batch that it reads.
    from_batch: whether `record` gets the rows of the batch in place of the example, which is then
      not read a second time.
    headless: whether it looks at features, so that a model needs no head for the classes.
  """

  score: ClassVar[str] = ''
  of: ClassVar[tuple[str, ...]] = ()
  from_batch: ClassVar[bool] = False
  headless: ClassVar[bool] = False
  split: str = 'test'
  crop: Any = schema.choice(CROPS, 'resize')
  every: str = '10%'
  batch_size: int = 0
  image_size: int = 0
  patch_size: int = 0
  attention: bool = False

  def splits(self) -> dict[str, str]:
    """Names of passes over data, each with its split."""
    return {'test': self.split}

  def open(self, data: DataConfig, split: str) -> Source:
    """The examples of a split, of the data of the run if the evaluator has none of its own."""
    return data.open(split)

  def known(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
    """The fields that the model was trained on, as this evaluation calls their classes."""
    return fields

  def rows(self, task: Any, model: Any, fields: Mapping[str, Field]) -> Any:
    """What becomes of an example; arguments as for `Task.rows`."""
    return task.rows(model, fields, View(self.crop), train=False)

  def on(self, sources: Mapping[str, Source]) -> Evaluator:
    """This evaluator, with what it has to know of its data: by the names of passes."""
    del sources
    return self

  def once(self, task: Any, model: Any) -> dict[str, Any]:
    """What every batch of a pass needs of the model; compiled. `outputs` gets it with the batch."""
    del task, model
    return {}

  def outputs(self, task: Any, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Of a batch as `rows` makes it; compiled. Leading axes are that of the batch."""
    return task.predict(model, task.augment(batch, None, {}))

  def sums(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Sums over the examples of a batch that are not masked; compiled. None: see `record`."""
    del outputs, batch

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """What is kept of an example: picklable. On the host that has it.

    Args:
      row: outputs of the example.
      example: as its source has it.
      seen: how it was seen: `seen.rows.placement(example)` brings places back into the image.
    """
    raise NotImplementedError

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """How bad the prediction for each example is, float (batch,), compiled; None if unknown.

    By this the best and the worst are chosen that a report shows.
    """
    del outputs, batch

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """The scores, from what each pass over data has found."""
    raise NotImplementedError

  def going(self, over: Over) -> Any:
    """What goes over a split in another way than by batches of rows; None if that is the way.

    It is called with a state and what is frozen, gives `Found`, and has `source`, `seen`, `shown`
    and `looked`, see `_Pass`.
    """
    del over


class Evaluation:
  """An evaluator with its data.

  Attributes:
    summary: lines for people about the data.
    sources: of each pass over data, by its name.
  """

  def __init__(
    self, evaluator: Evaluator, task: Any, passes: dict[str, Any], summary: list[str], lanes: int
  ):  # fmt: skip
    """See `prepare`."""
    self.summary = summary
    self._evaluator, self._task, self._passes, self._lanes = evaluator, task, passes, lanes
    self.sources = {name: each.source for name, each in passes.items()}

  def __call__(self, state: Any, frozen: Any) -> Scores:
    """Scores of the model in a state; with lanes lists of values, and no tables."""
    finish = self._evaluator.finish
    found = {name: run(state, frozen) for name, run in self._passes.items()}
    if not self._lanes:
      return _counted(finish(found), found)
    every = [
      _counted(finish(each), each)
      for each in ({name: _lane(f, i) for name, f in found.items()} for i in range(self._lanes))
    ]
    stack = lambda field: {  # noqa: E731
      name: [getattr(scores, field)[name] for scores in every] for name in getattr(every[0], field)
    }
    return Scores(stack('values'), {n: np.stack(a) for n, a in stack('arrays').items()})

  def drawn(self) -> list[Drawn]:
    """Predictions of the last call that are worth a look; none if the task cannot draw."""
    (last,) = list(self._passes.values())[-1:]
    drawn = []
    if self._evaluator.headless:  # nothing is predicted
      return []
    for shown in last.shown:
      example = last.source[shown.number]
      try:
        prediction = self._task.decode(shown.outputs, example, last.seen)
        picture = self._task.draw(prediction, example, last.seen)
      except NotImplementedError:  # a task that does not say what its outputs mean
        return []
      if shown.number in last.looked:
        picture = pictures.beside(picture, pictures.seen(*last.looked[shown.number]))
      drawn.append(Drawn(shown, str(example['name']), prediction.facts, picture))
    return drawn


def prepare(
  evaluator: Evaluator, task: Any, model: Any, data: DataConfig, *, batch_size: int,
  fields: Mapping[str, Field], lanes: int = 0, judged: Callable[[Any, Any], Any] | None = None,
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
    judged: the model in what is evaluated; by default that of the task.

  Raises:
    RunError: if the data are not there, or cannot be used.
  """
  judge, fields = judged or task.judged, evaluator.known(fields)
  if sizes := {n: v for n in ('image_size', 'patch_size') if (v := getattr(evaluator, n))}:
    if evaluator.image_size and not task.one_size:
      raise RunError(
        f'image_size={evaluator.image_size}: each image of this task has a size of its own'
      )
    model, judge = _resized(model, sizes, judge)
  rows = evaluator.rows(task, model, fields)
  if evaluator.crop.random:
    raise RunError(
      f'crop.name: a {type(evaluator.crop).__name__} crop is random, and what is evaluated must be '
      'the same each time: resize or center'
    )
  if lacking := [name for name in evaluator.of if name not in rows.arrays()]:
    raise RunError(
      f'name={type(evaluator).__name__.lower()} needs {lacking[0]}, which the task '
      f'{type(task).__name__.lower()} does not have: choose an evaluation of that task'
    )
  if evaluator.attention:
    maps.looking(model)
    if 'image' not in rows.arrays():
      raise RunError('attention=True: a model that sees rows of patches has none that can be drawn')
  asked = evaluator.batch_size or batch_size
  layout = sharding.BatchLayout.of_at_least(asked, together=rows_lib.group(rows)[1])
  skip = pipeline.log if data.on_corrupt == 'skip' else None
  sources, summary, seen = {}, [], Seen(rows, fields)
  for name, split in evaluator.splits().items():
    try:
      source = evaluator.open(data, split)
    except NoSplitError as error:
      named = [n for n, value in vars(evaluator).items() if value == split]
      raise NoSplitError(str(error), named[0] if named else 'split') from None
    require(source.fields, rows.needs, source.name)
    sources[name] = source = matched(source, fields, rows.needs)
    summary += [*source.summary(), *pipeline.probe(rows, source, skip=skip)]
    if layout.batch_size != asked:
      summary.append(
        f'{source.name}: evaluated in batches of {layout.batch_size}; the devices cannot divide '
        f'{asked}'
      )
  evaluator = evaluator.on(sources)
  compute = _Compute(evaluator, task, judge, lanes)
  passes = {}
  for name, source in sources.items():
    over = Over(source, seen, task, model, judge, layout.batch_size, skip, lanes)
    passes[name] = evaluator.going(over) or _Pass(evaluator, compute, over, layout, data.workers)
  return Evaluation(evaluator, task, passes, list(dict.fromkeys(summary)), lanes)


def _resized(model: Any, sizes: Mapping[str, int], judged: Any) -> tuple[Any, Any]:
  """An architecture of other sizes, and what gives the model of that."""
  if not isinstance(model, SINGLE) and not getattr(model, 'sized', False):
    raise RunError(f'image_size and patch_size are of models of one tower, not of a {model.kind}')
  new = adapt.of_sizes(model, sizes)
  return new, lambda state, frozen: adapt.resized(judged(state, frozen), new)


def _counted(scores: Scores, found: Mapping[str, Found]) -> Scores:
  """With the number of examples of the last pass, and of those that could not be used."""
  last = list(found.values())[-1]
  counts = {'examples': last.examples, 'skipped': len(last.source) - last.examples}
  values = {**scores.values, **{n: float(c) for n, c in counts.items()}}
  return scores._replace(values=values)


def _lane(found: Found, lane: int) -> Found:
  totals = {name: total[lane] for name, total in found.totals.items()}
  records = [record[lane] for record in found.records]
  return found._replace(totals=totals, records=records, examples=found.examples[lane])


class _Compute:
  """What is compiled of an evaluator, once for all its passes.

  Attributes:
    adds: whether it gives sums; known once it was called.
    once: of a state, what all batches need.
    look: what predictions of a batch draw on, by patch.
  """

  def __init__(self, evaluator: Evaluator, task: Any, judged: Any, lanes: int):
    self.adds = False

    def compute(state, frozen, batch, once):
      outputs = evaluator.outputs(task, judged(state, frozen), {**batch, **once})
      sums = evaluator.sums(outputs, batch)
      self.adds = sums is not None
      if sums is not None:
        sums = {**sums, 'examples': batch['mask'].sum().astype(jnp.int32)}
      bad = None if lanes else evaluator.badness(outputs, batch)
      # What nobody asks for stays on the devices until the next batch.
      return None if lanes and self.adds else outputs, sums, bad

    once = lambda state, frozen: evaluator.once(task, judged(state, frozen))  # noqa: E731
    self.once = jax.jit(jax.vmap(once, in_axes=(0, None)) if lanes else once)
    self._compiled = jax.jit(jax.vmap(compute, in_axes=(0, None, None, 0)) if lanes else compute)
    self.look = jax.jit(
      lambda state, frozen, batch: maps.drawn_on(
        judged(state, frozen), task.augment(batch, None, {})['image']
      )
    )

  def __call__(self, state: Any, frozen: Any, batch: Any, once: Any) -> Any:
    """Outputs, sums and how bad they are, of a batch on the devices."""
    return self._compiled(state, frozen, batch, once)


class _Pass:
  """An evaluator's pass over a split.

  Attributes:
    source: the split.
    seen: how its examples are seen.
    shown: predictions of the last pass that are worth a look, on every process.
    looked: of these by number the image as it was seen, and which patches were drawn on.
  """

  def __init__(self, evaluator, compute, over: Over, layout, workers):
    self.source, self.seen, self.shown, self.looked = over.source, over.seen, [], {}
    self._evaluator, self._compute = evaluator, compute
    self._layout, self._workers, self._lanes = layout, workers, over.lanes
    self._batches = pipeline.eval_batches(
      self.seen.rows, self.source, layout.batch_size, layout.rows, skip=over.skip
    )

  def __call__(self, state: Any, frozen: Any) -> Found:
    whole: dict[str, Any] = {}
    parts: dict[str, np.ndarray] = {}
    records: dict[int, Any] = {}
    extremes = Extremes(self._layout.local)
    pending: list[Any] = []

    def settle(batch, outputs, sums, bad):
      if not self._lanes:
        extremes.see(batch, outputs, bad)
      if sums is None:
        self._keep(records, batch, outputs)
      else:
        _add(parts, sums)

    once = self._compute.once(state, frozen)
    for batch in pipeline.iterate(self._batches, workers=self._workers):
      health.reached('eval')
      outputs, sums, bad = self._compute(state, frozen, self._layout.place(batch), once)
      # Whole numbers are added on the devices, exactly; others in double precision.
      for name, value in (sums or {}).items():
        if jnp.issubdtype(value.dtype, jnp.integer):
          whole[name] = whole[name] + value if name in whole else value
      left = sums if sums is None else {n: v for n, v in sums.items() if n not in whole}
      pending.append((batch, outputs, left, bad))
      if len(pending) > 2:  # keeps the host from running far ahead of the devices
        settle(*pending.pop(0))
    for item in pending:
      settle(*item)
    self.shown = extremes.gathered()
    if self._evaluator.attention and not self._lanes:
      self.looked = self._looked(state, frozen)
    totals = {name: np.asarray(v, np.int64) for name, v in jax.device_get(whole).items()} | parts
    if self._compute.adds:
      return Found(self.source, totals, [], np.zeros(0, np.int64), totals.pop('examples'))
    return recorded(self.source, records, self._lanes)

  def _looked(self, state: Any, frozen: Any) -> dict[int, Any]:
    """What `looked` is."""
    numbers = sorted({shown.number for shown in self.shown})
    if not numbers:
      return {}
    layout, rows = sharding.BatchLayout.of_at_least(2 * SHOWN), self.seen.rows
    batches = pipeline.eval_batches(rows, _Some(self.source, numbers), layout.batch_size,
                                    layout.rows)  # fmt: skip
    own: dict[int, Any] = {}
    for batch in pipeline.iterate(batches):
      found = layout.local(self._compute.look(state, frozen, layout.place(batch)))
      for at in np.flatnonzero(batch['mask'] > 0):
        own[numbers[int(batch['index'][at])]] = batch['image'][at], found[at]
    return {number: each for part in exchange.gathered(own) for number, each in part.items()}

  def _keep(self, records: dict[int, Any], batch: Any, outputs: Any) -> None:
    """Records of the examples of a batch that this process has; with lanes a list for each."""
    lanes = [{name: value[lane] for name, value in outputs.items()} for lane in range(self._lanes)]
    own = [{n: self._layout.local(x) for n, x in each.items()} for each in lanes or [outputs]]
    numbers = np.where(batch['mask'] > 0, batch['index'], -1)
    places = [*zip(*np.nonzero(numbers >= 0), strict=True)]
    wanted = [int(numbers[place]) for place in places]
    if self._evaluator.from_batch:
      examples = [{n: x[place[: x.ndim]] for n, x in batch.items()} for place in places]
    else:
      examples = read(self.source, wanted)

    def record(place: Any, example: Any) -> Any:
      found = [
        self._evaluator.record({n: x[place] for n, x in e.items()}, example, self.seen) for e in own
      ]
      return found if self._lanes else found[0]

    with concurrent.futures.ThreadPoolExecutor(pipeline.cores()) as pool:
      records |= dict(zip(wanted, pool.map(record, places, examples), strict=True))


def recorded(source: Source, own: Mapping[int, Any], lanes: int) -> Found:
  """What a pass has found, from records by the number of the example: those of this process."""
  records = {index: found for part in exchange.gathered(own) for index, found in part.items()}
  order = sorted(records)
  count = np.full(lanes, len(order)) if lanes else len(order)
  return Found(source, {}, [records[index] for index in order], np.array(order), count)


class _Some(Wrapped):
  """Some examples of a source, by number."""

  def __init__(self, source: Source, numbers: Sequence[int]):
    super().__init__(source)
    self._numbers, self.labels = numbers, None

  def __len__(self) -> int:
    return len(self._numbers)

  def read(self, indices: Sequence[int]) -> list[Example]:
    """See `Source`."""
    return self.source.read([self._numbers[index] for index in indices])


def _add(parts: dict[str, np.ndarray], computed: Mapping[str, Any]) -> None:
  for name, value in jax.device_get(dict(computed)).items():
    parts[name] = parts.get(name, 0.0) + value.astype(np.float64)


class Extremes:
  """The best and the worst predictions of those that were seen; without scores the first."""

  def __init__(self, local: Callable[[Any], np.ndarray]):
    """Args: local, which gives of an array over a batch the rows of this process."""
    self._local = local
    self._held: dict[str, list[Shown]] = {}

  def see(self, batch: Mapping[str, np.ndarray], outputs: Mapping[str, Any], bad: Any) -> None:
    """Looks at a batch of this process."""
    index, mask = batch['index'], batch['mask']
    if index.ndim > 1:  # rows of several examples have outputs of their own kind
      return
    if bad is None:
      self._take('examples', index, mask > 0, index.astype(float), outputs)
      return
    bad = np.asarray(self._local(bad), np.float64)
    there = (mask > 0) & np.isfinite(bad)
    self._take('worst', index, there, -bad, outputs)
    self._take('best', index, there, bad, outputs)

  def _take(self, group, index, there, rank, outputs) -> None:
    held = self._held.setdefault(group, [])
    bar = held[-1].score if len(held) == SHOWN else np.inf
    places = np.flatnonzero(there & (rank < bar))
    places = places[np.argsort(rank[places], kind='stable')][:SHOWN]
    if not len(places):
      return
    own = {name: self._local(value) for name, value in outputs.items()}
    held += [
      Shown(group, float(rank[at]), int(index[at]), {n: np.array(x[at]) for n, x in own.items()})
      for at in places
    ]
    held.sort(key=lambda shown: (shown.score, shown.number))
    del held[SHOWN:]

  def gathered(self) -> list[Shown]:
    """Those of all processes."""
    found: dict[str, list[Shown]] = {}
    for part in exchange.gathered(self._held):
      for group, held in part.items():
        found.setdefault(group, []).extend(held)
    return [
      shown._replace(score=_score(group, shown.score))
      for group, held in found.items()
      for shown in sorted(held, key=lambda shown: (shown.score, shown.number))[:SHOWN]
    ]


def _score(group: str, rank: float) -> float:
  """How bad a prediction is, by its rank in its group; NaN where that is not known."""
  return {'worst': -rank, 'best': rank}.get(group, float('nan'))
