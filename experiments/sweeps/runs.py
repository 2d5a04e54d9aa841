"""The table of a sweep as the runs that laws are fitted to: the best of each shape and duration."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs import flops
from vit_jax.scaling.design import DIMENSIONS, named
from vit_jax.scaling.table import Table

Row = dict[str, Any]
FINISHED, DIVERGED, TRUNK = 'finished', 'diverged', 'trunk'
# Hyperparameters of which the best is taken.
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
    finished: those that count.
    y: column of the loss.
    cells: a row for each shape, batch size and duration, with the best hyperparameters; `budget` is
      the FLOPs of those that cost alike, `seeds` how many losses were averaged.
    tuning: learning rates of each cell, in the order of `cells`.
    counts: rows by what became of them.
    left_out: ids of rows that are in no cell, by reason.
    noise: standard deviation of log loss between seeds, None where no cell has two.
    repeated: settings that were trained with several seeds.
  """

  rows: list[Row]
  finished: list[Row]
  y: str
  cells: Table
  tuning: list[Tuned]
  counts: dict[str, int]
  left_out: dict[str, list[str]]
  noise: float | None
  repeated: int


def read(folder: paths.Path, y: str = '') -> Runs:
  """The runs of a sweep's directory.

  Raises:
    RunError: if there is no table, or no finished run with a loss in it.
  """
  rows, broken = _lines(folder / 'table.jsonl')
  y = y or _loss_column(rows)
  if not any(y in row for row in rows):
    known = {name for row in rows for name in row}
    raise RunError(f'{folder}: there is no column {y!r}; {suggest(y, sorted(known))}')
  usable, left_out = _usable(rows, y)
  left_out |= {'not a JSON object': broken} if broken else {}
  finished = [row for row in usable if row['status'] == FINISHED]
  if not finished:
    raise RunError(f'{folder}/table.jsonl: none of {len(rows)} rows is a finished run with {y}')
  by_cell: dict[tuple, list[Row]] = {}
  for row in usable:
    by_cell.setdefault((named(row), row['batch_size'], row['steps']), []).append(row)
  by_cell = {k: v for k, v in by_cell.items() if any(r['status'] == FINISHED for r in v)}
  best, spread = zip(*(_best(members, y) for members in by_cell.values()), strict=True)
  cells = Table({name: np.array([row[name] for row in best]) for name in best[0]})
  cells |= {name: cells[name].astype(float) for name in ('parameters', 'images', 'flops')}
  cells['budget'] = _budgets(cells['flops'])
  tuning = [
    _tuned(members, y, budget)
    for members, budget in zip(by_cell.values(), cells['budget'].tolist(), strict=True)
  ]
  squares, freedom = np.sum([each for cell in spread for each in cell] or [(0, 0)], axis=0)
  states = [str(row.get('status')) for row in rows]
  return Runs(
    rows, finished, y, cells, tuning, {state: states.count(state) for state in sorted({*states})},
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


def _usable(rows: Sequence[Row], y: str) -> tuple[list[Row], dict[str, list[str]]]:
  """Runs that count, those that diverged among them, and the ids of others by reason."""
  latest = {str(row.get('id', number)): row for number, row in enumerate(rows)}
  out, left_out = [], {}
  for number, row in enumerate(rows):
    name, state = str(row.get('id', number)), row.get('status')
    lacking = [key for key in (*NEEDED, 'lr') if not _positive(row.get(key))]
    if latest[name] is not row:
      reason = 'the same id comes again further down'
    elif state == TRUNK:
      reason = 'trunk that others fork from'
    elif state not in (FINISHED, DIVERGED):
      reason = f'{state}'
    elif lacking:
      reason = f'no {", ".join(lacking)}'
    elif state == FINISHED and not _positive(row.get(y)):
      reason = f'no {y}'
    else:
      out.append(row)
      reason = f'{DIVERGED}' if state == DIVERGED else ''
    if reason:
      left_out.setdefault(reason, []).append(name)
  return out, left_out


def _positive(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _settings(members: Sequence[Row], y: str) -> dict[tuple, list[float]]:
  """Losses of the seeds, by hyperparameters; of a run that diverged NaN."""
  found: dict[tuple, list[float]] = {}
  for row in members:
    loss = row[y] if row['status'] == FINISHED else math.nan
    found.setdefault(tuple(row.get(name) for name in HYPER), []).append(loss)
  return found


def _mean(losses: Sequence[float]) -> float:
  """Geometric, over the seeds that did not diverge."""
  finite = [math.log(loss) for loss in losses if math.isfinite(loss)]
  return math.exp(sum(finite) / len(finite)) if finite else math.nan


def _best(members: Sequence[Row], y: str) -> tuple[Row, list[tuple[float, int]]]:
  """A cell, and sums of squares between seeds with their degrees of freedom."""
  settings = {hyper: losses for hyper, losses in _settings(members, y).items()
              if math.isfinite(_mean(losses))}  # fmt: skip
  hyper = min(settings, key=lambda key: _mean(settings[key]))
  first = next(row for row in members if tuple(row.get(name) for name in HYPER) == hyper)
  names = (*NEEDED, 'group', 'run', *(name for name in HYPER if first.get(name) is not None))
  cell = {name: first.get(name, '') for name in names}
  cell |= {'shape': named(first), y: _mean(settings[hyper]),
           'seeds': sum(map(math.isfinite, settings[hyper]))}  # fmt: skip
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


def _tuned(members: Sequence[Row], y: str, budget: float) -> Tuned:
  found: dict[float, float] = {}
  for hyper, losses in _settings(members, y).items():
    found[hyper[0]] = float(np.fmin(found.get(hyper[0], math.nan), _mean(losses)))
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


def architectures(folder: paths.Path, runs: Runs) -> dict[str, ViTArchitecture]:
  """The models by shape, from the configurations of their runs.

  Raises:
    RunError: if one has no configuration, or its FLOPs or parameters are not those of the table.
  """
  out = {}
  # Of a record without the runs: what models share is on the card of an earlier report.
  card = folder / 'card.json'
  shared = json.loads(card.read_text())['config'].get('model') if card.exists() else None
  for shape, run in zip(runs.cells['shape'].tolist(), runs.cells['run'].tolist(), strict=True):
    if shape in out:
      continue
    row = next(row for row in runs.rows if row.get('run') == run)
    record = config_of(folder, run).get('model')
    if not record and shared:
      record = {**shared, **{name: row[name] for name in DIMENSIONS},
                'image_size': [row['image_size']] * 2}  # fmt: skip
    if not record:
      raise RunError(f'{folder}/runs/{run}/config.json is not there')
    known = {field.name for field in dataclasses.fields(ViTArchitecture)}
    fields: dict[str, Any] = {
      k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in known
    }
    model = ViTArchitecture(**fields).resolve()
    # Training takes the number of classes from the data: what is missing is the head.
    lacking = row['parameters'] - flops.costs(model).parameters()
    if not model.num_classes and lacking > 0:
      model = dataclasses.replace(model, num_classes=lacking // (model.width + 1)).resolve()
    found = flops.costs(model).parameters(), flops.train_flops(model) * row['images']
    if found != (row['parameters'], row['flops']):
      raise RunError(
        f'{run}: its configuration has {found[0]:,} parameters and {found[1]:.6g} training FLOPs, '
        f'the table {row["parameters"]:,} and {row["flops"]:.6g}'
      )
    out[shape] = model
  return out
