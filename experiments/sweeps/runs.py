"""The table of a sweep as the runs that laws are fitted to: the best of each shape and duration."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.sweeps.jobs import described, section
from experiments.sweeps.target import Target, target
from vit_jax.architecture import MODELS
from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs import flops
from vit_jax.costs import step as costs
from vit_jax.scaling.advise import DATA
from vit_jax.scaling.design import DIMENSIONS, Passes, dimensions, named, varied
from vit_jax.scaling.table import Table
from vit_jax.tasks import TASKS

Row = dict[str, Any]
FINISHED, DIVERGED, TRUNK = 'finished', 'diverged', 'trunk'
# Hyperparameters of which the best is taken, with what else a row says that combinations differ in.
HYPER = ('lr', 'weight_decay', 'b1', 'b2')
NEEDED = (*DIMENSIONS, 'batch_size', 'steps', 'images', 'parameters', 'flops')
TOLERANCE = 0.05  # relative difference of FLOPs within a budget


@dataclasses.dataclass(frozen=True)
class Tuned:
  """What the learning rate does to one shape at one duration.

  Attributes:
    shape: its name.
    width: of the model.
    parameters: of the model.
    budget: training FLOPs.
    images: seen.
    rates: tried, increasing.
    losses: of each, means over seeds; NaN where the run diverged.
    best: the rate with the lowest loss.
    star: the minimum of the parabola through it and its neighbours, `best` where one is missing.
    edge: whether `best` is the lowest or the highest rate tried: a better one may lie beyond.
  """

  shape: str
  width: int
  parameters: int
  budget: float
  images: int
  rates: tuple[float, ...]
  losses: tuple[float, ...]
  best: float
  star: float
  edge: bool

  @property
  def finite(self) -> list[float]:
    """Losses of the runs that did not diverge."""
    return [loss for loss in self.losses if math.isfinite(loss)]


@dataclasses.dataclass(frozen=True)
class Runs:
  """A sweep.

  Attributes:
    rows: as written, all of them.
    finished: those that count, with the column `y`.
    target: what they are judged by.
    data: the column in which data are counted, one of `advise.DATA`.
    hyper: columns of hyperparameters of which the best is taken, the learning rate first.
    cells: a row for each shape, batch size, duration and cost, with the best hyperparameters;
      `budget` is the FLOPs of those that cost alike, `seeds` how many losses were averaged.
    tuning: learning rates of each cell, in the order of `cells`.
    counts: rows by what became of them.
    left_out: ids of rows that are in no cell, by reason.
    noise: standard deviation of log loss between seeds, None where no cell has two.
    repeated: settings that were trained with several seeds.
  """

  rows: list[Row]
  finished: list[Row]
  target: Target
  data: str
  hyper: tuple[str, ...]
  cells: Table
  tuning: list[Tuned]
  counts: dict[str, int]
  left_out: dict[str, list[str]]
  noise: float | None
  repeated: int

  @property
  def y(self) -> str:
    """Column of what laws are fitted to: the loss, or how far a score is from the best."""
    return self.target.name


def read(
  folder: paths.Path, y: str = '', *, better: str = '', best: float | None = None,
  data: str = 'images',
) -> Runs:  # fmt: skip
  """The runs of a sweep's directory.

  Args:
    folder: of the sweep.
    y: any number of its runs, 'knn/top1'; by default the loss on the test set.
    better, best: as for `target`.
    data: the column in which data are counted, one of `advise.DATA`.

  Raises:
    RunError: if there is no table, or no finished run with that number in it.
  """
  rows, broken = _lines(folder / 'table.jsonl')
  column = (y or _loss_column(rows)).replace('/', '_')
  if data not in DATA:
    raise RunError(f'--data={data}: {suggest(data, DATA)}')
  for name in (column, data):
    if not any(name in row for row in rows):
      known = {name for row in rows for name in row}
      raise RunError(f'{folder}: there is no column {name!r}; {suggest(name, sorted(known))}')
  judge = target(column, better, best)
  usable, left_out = _usable(rows, judge, data)
  y, more = judge.name, [name for row in rows for name in row.get('varied', ())]
  hyper = tuple(dict.fromkeys((*HYPER, *(name for name in more if name != 'seed'))))
  left_out |= {'not a JSON object': broken} if broken else {}
  finished = [row for row in usable if row['status'] == FINISHED]
  if not finished:
    raise RunError(f'{folder}/table.jsonl: none of {len(rows)} rows is a finished run with {y}')
  by_cell: dict[tuple, list[Row]] = {}
  for row in usable:
    cell = named(row), row['batch_size'], row['steps'], row['flops']
    by_cell.setdefault(cell, []).append(row)
  by_cell = {k: v for k, v in by_cell.items() if any(r['status'] == FINISHED for r in v)}
  found = [_best(members, y, hyper, data) for members in by_cell.values()]
  chosen, spread = zip(*found, strict=True)
  cells = Table({name: np.array([row[name] for row in chosen]) for name in chosen[0]})
  cells |= {name: cells[name].astype(float) for name in ('parameters', 'images', data, 'flops')}
  cells['budget'] = _budgets(cells['flops'])
  tuning = [
    _tuned(members, y, hyper, budget)
    for members, budget in zip(by_cell.values(), cells['budget'].tolist(), strict=True)
  ]
  squares, freedom = np.sum([each for cell in spread for each in cell] or [(0, 0)], axis=0)
  states = [str(row.get('status')) for row in rows]
  return Runs(
    rows, finished, judge, data, hyper, cells, tuning,
    {state: states.count(state) for state in sorted({*states})},
    left_out, math.sqrt(squares / freedom) if freedom else None, sum(map(len, spread)),
  )  # fmt: skip


def _lines(path: paths.Path) -> tuple[list[Row], list[str]]:
  """The rows, and the lines that are none."""
  try:
    lines = path.read_text().splitlines()
  except OSError as error:
    raise RunError(f'{path}: cannot be read: {error.strerror or error}') from None
  rows, broken = [], []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      row = None
    if isinstance(row, dict):
      rows.append(row)
    elif line.strip():
      broken.append(f'line {number}')
  if not rows:
    raise RunError(f'{path}: holds no rows')
  return rows, broken


def _loss_column(rows: Sequence[Row]) -> str:
  names = [name for row in rows for name in row if name.endswith('_loss')]
  return 'test_loss' if 'test_loss' in names or not names else names[0]


def _usable(
  rows: Sequence[Row], judge: Target, data: str
) -> tuple[list[Row], dict[str, list[str]]]:
  """Runs that count, those that diverged among them, and the ids of others by reason."""
  latest = {str(row.get('id', number)): row for number, row in enumerate(rows)}
  out, left_out = [], {}
  for number, row in enumerate(rows):
    name, state = str(row.get('id', number)), row.get('status')
    lacking = [key for key in (*NEEDED, data, 'lr') if not _positive(row.get(key))]
    value = row.get(judge.column)
    if latest[name] is not row:
      reason = 'the same id comes again further down'
    elif state == TRUNK:
      reason = 'trunk that others fork from'
    elif state not in (FINISHED, DIVERGED):
      reason = f'{state}'
    elif lacking:
      reason = f'no {", ".join(lacking)}'
    elif state == FINISHED and not _finite(value):
      reason = f'no {judge.column}'
    elif state == FINISHED and not _positive(judge.of(value)):
      reason = f'no {judge.name} above 0'
    else:
      out.append({**row, judge.name: judge.of(value)} if state == FINISHED else row)
      reason = f'{DIVERGED}' if state == DIVERGED else ''
    if reason:
      left_out.setdefault(reason, []).append(name)
  return out, left_out


def _finite(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)


def _positive(value: Any) -> bool:
  return _finite(value) and value > 0


def _settings(members: Sequence[Row], y: str, hyper: Sequence[str]) -> dict[tuple, list[float]]:
  """Losses of the seeds, by hyperparameters; of a run that diverged NaN."""
  found: dict[tuple, list[float]] = {}
  for row in members:
    loss = row[y] if row['status'] == FINISHED else math.nan
    found.setdefault(tuple(row.get(name) for name in hyper), []).append(loss)
  return found


def _mean(losses: Sequence[float]) -> float:
  """Geometric, over the seeds that did not diverge."""
  finite = [math.log(loss) for loss in losses if math.isfinite(loss)]
  return math.exp(sum(finite) / len(finite)) if finite else math.nan


def _best(
  members: Sequence[Row], y: str, hyper: Sequence[str], data: str
) -> tuple[Row, list[tuple[float, int]]]:
  """A cell, and sums of squares between seeds with their degrees of freedom."""
  settings = {values: losses for values, losses in _settings(members, y, hyper).items()
              if math.isfinite(_mean(losses))}  # fmt: skip
  best = min(settings, key=lambda key: _mean(settings[key]))
  first = next(row for row in members if tuple(row.get(name) for name in hyper) == best)
  names = dict.fromkeys((*NEEDED, data, 'group', 'run'))
  cell = {name: first.get(name, '') for name in names}
  cell |= {name: first[name] for name in hyper if first.get(name) is not None}
  cell |= {'shape': named(first), y: _mean(settings[best]),
           'seeds': sum(map(math.isfinite, settings[best]))}  # fmt: skip
  spread = []
  for losses in settings.values():
    logs = np.log([loss for loss in losses if math.isfinite(loss)])
    if len(logs) > 1:
      spread.append((float(((logs - logs.mean()) ** 2).sum()), len(logs) - 1))
  return cell, spread


def _budgets(values: np.ndarray) -> np.ndarray:
  """Geometric means of neighbours that differ by less than `TOLERANCE`, for each value."""
  order = np.argsort(values, kind='stable')
  logs = np.log(values[order].astype(float))
  part = np.concatenate([[0], np.cumsum(np.diff(logs) > math.log1p(TOLERANCE))])
  means = np.bincount(part, logs) / np.bincount(part)
  wide = np.array([np.ptp(logs[part == i]) > 2 * math.log1p(TOLERANCE) for i in range(len(means))])
  out = np.empty(len(values))
  out[order] = np.exp(np.where(wide[part], logs, means[part]))
  return out


def _tuned(members: Sequence[Row], y: str, hyper: Sequence[str], budget: float) -> Tuned:
  found: dict[float, float] = {}
  for (rate, *_), losses in _settings(members, y, hyper).items():
    found[rate] = float(np.fmin(found.get(rate, math.nan), _mean(losses)))
  rates = sorted(found)
  losses = [found[rate] for rate in rates]
  place = int(np.nanargmin(losses))
  star = rates[place]
  around = slice(max(0, place - 1), place + 2)
  if len(rates[around]) == 3 and np.isfinite(losses[around]).all():
    _, b, a = np.polynomial.polynomial.polyfit(np.log(rates[around]), np.log(losses[around]), 2)
    star = math.exp(-b / (2 * a)) if a > 0 else star
  first = members[0]
  return Tuned(
    named(first), first['width'], first['parameters'], budget, first['images'], tuple(rates),
    tuple(losses), rates[place], star, len(rates) > 1 and place in (0, len(rates) - 1),
  )  # fmt: skip


def config_of(folder: paths.Path, run: str) -> dict[str, Any]:
  """What a run was configured by, {} if its directory is not there."""
  try:
    return json.loads((folder / 'runs' / run / 'config.json').read_text())
  except (OSError, json.JSONDecodeError):
    return {}


def architectures(folder: paths.Path, runs: Runs) -> tuple[dict[str, Any], Passes]:
  """The models by shape, from the configurations of their runs; and the passes of the first.

  Raises:
    RunError: if one has no configuration, or its FLOPs or parameters are not those of the table.
  """
  out = {}
  passes: Passes | None = None
  # Of a record without the runs: what models share is on the card of an earlier report.
  card = folder / 'card.json'
  shared = json.loads(card.read_text())['config'] if card.exists() else {}
  for shape, run in zip(runs.cells['shape'].tolist(), runs.cells['run'].tolist(), strict=True):
    if shape in out:
      continue
    row = next(row for row in runs.rows if row.get('run') == run)
    config = config_of(folder, run)
    record = config.get('model') or shared.get('model')
    if not record:
      raise RunError(f'{folder}/runs/{run}/config.json is not there')
    kind, task = MODELS[record.get('name', 'vit')], (config or shared).get('task', {})
    task = _built(TASKS[task.get('name', 'classification')], task)
    record = record if config else _shaped(kind, record, row)
    model = task.adapt(_built(kind, record).resolve(), {})
    # Training takes the number of classes from the data: what is missing is the head.
    lacking = row['parameters'] - flops.costs(model).parameters()
    if not getattr(model, 'num_classes', 1) and lacking > 0:
      model = dataclasses.replace(model, num_classes=lacking // (model.width + 1)).resolve()
    own = described(config)[1] if task.networks else task.passes
    each, passes = costs.step(own(model)), passes or own
    found = flops.costs(model).parameters(), each * row['images']
    if found != (row['parameters'], row['flops']):
      raise RunError(
        f'{run}: its configuration has {found[0]:,} parameters and {found[1]:.6g} training FLOPs, '
        f'the table {row["parameters"]:,} and {row["flops"]:.6g}'
      )
    out[shape] = model
  assert passes is not None
  return out, passes


def _shaped(kind: Any, record: Any, row: Row) -> dict[str, Any]:
  """The record of a model with the dimensions of a row in the table."""
  record = copy.deepcopy(dict(record))
  tower = varied(_built(kind, record))
  for name in dimensions(row):
    inside, _, field = name.rpartition('.')
    value = [row[name]] * 2 if name == 'image_size' else row[name]
    section(record, (inside or tower).replace('.', '/'))[field] = value
  return record


def _built(kind: Any, record: Any) -> Any:
  """A dataclass of what JSON holds of it, without what later formats no longer know."""
  types, known = schema.types_of(kind), {}
  for field in dataclasses.fields(kind):
    if field.name not in record or not field.init:
      continue
    value, inside = record[field.name], types[field.name]
    if isinstance(value, dict) and dataclasses.is_dataclass(inside):
      value = {n: v for n, v in value.items() if n in {f.name for f in dataclasses.fields(inside)}}
    known[field.name] = value
  return schema.build(kind, known)
