"""What a run has left in its directory, complete or not, damaged or not. No JAX."""

from __future__ import annotations

import io
import json
import operator
import re
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.draw.page import is_number, shown

FOLLOWED = 'followed'  # the directory in which `training.follow` leaves STEP.json


class Curve(NamedTuple):
  """A metric: its steps, and values (steps, lanes), NaN where they are not finite."""

  steps: np.ndarray
  values: np.ndarray


class Left:
  """What is there, and what of it is missing or damaged.

  Attributes:
    folder: the directory.
    notes: a sentence for everything that is damaged, or missing although every run has it.
    config: of config.json.
    result: of result.json; empty if the run is not complete.
    plan: of plan.json, which vit_jax.finetune leaves; empty without.
    curves: of metrics.jsonl, and of what followed the run, by metric.
    sessions: of command.json, oldest first: command, when it was started, and from which step on.
    evals: of evals/NAME.json, by name; empty for an evaluation that left arrays or metrics alone.
    checkpoints: steps.
    lanes: names of models that were trained side by side; none for one alone.
    step: how far the run has come.
  """

  def __init__(self, folder: paths.Path):
    """Reads a directory.

    Raises:
      RunError: if there is no run in it.
    """
    self.folder, self.notes = folder, []
    if not any((folder / f).is_file() for f in ('config.json', 'metrics.jsonl', 'result.json')):
      raise RunError(
        f'{folder} is not the directory of a run: there is no config.json, no metrics.jsonl and no '
        'result.json in it; give the --workdir of a training'
      )
    self.config = self.object('config.json', needed=True)
    self.result = self.object('result.json')
    self.plan = self.object('plan.json')
    self.curves: dict[str, Curve] = self.part('metrics.jsonl', self._curves) or {}
    self.sessions: list[dict[str, Any]] = self.part('command.json', self._sessions) or []
    ends = r'\.(json|npz)$'
    names = {re.sub(ends, '', name) for name in self._names('evals') if re.search(ends, name)}
    names |= {key.rpartition('/')[0] for key in self.curves} - {'', 'train'}
    order = [name for name in self.section('evals') if name in names]
    order += sorted(names - {*order})
    self.evals = {
      name: self.object(f'evals/{name}.json') for name in dict.fromkeys([*order, *sorted(names)])
    }
    found = (re.fullmatch('[0-9]{1,18}', name) for name in self._names('checkpoints'))
    self.checkpoints = sorted(int(match[0]) for match in found if match)
    self.lanes: list[str] = self.part('the names of the lanes', self._lanes) or []
    steps = [int(curve.steps[-1]) for curve in self.curves.values()]
    self.step = self.result.get('step', max([0, *steps, *self.checkpoints]))

  def part(self, what: str, make: Callable[[], Any]) -> Any:
    """What `make` makes of a part of the run; None, and a note, if that is damaged."""
    try:
      return make()
    except RunError as error:
      self.notes.append(str(error))
    except Exception as error:  # a damaged file leads to anything, and must not cost the rest
      self.notes.append(f'{what} cannot be shown: {type(error).__name__}: {error}')

  def object(self, name: str, *, needed: bool = False) -> dict[str, Any]:
    """The contents of a file; nothing if it is missing, which is noted if it is `needed`."""
    path = self.folder / name
    if path.is_file():
      return self.part(name, lambda: paths.read_object(path)) or {}
    if needed:
      self.notes.append(f'{name} is missing')
    return {}

  def section(self, *names: str) -> dict[str, Any]:
    """A section of the configuration; empty if there is none."""
    found: Any = self.config
    for name in names:
      found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}

  def arrays(self, name: str) -> dict[str, np.ndarray]:
    """Of evals/NAME.npz; none if it is missing."""
    path = self.folder / 'evals' / f'{name}.npz'
    if not path.is_file():
      return {}
    data = io.BytesIO(path.read_bytes())
    if not zipfile.is_zipfile(data):
      raise RunError(f'evals/{name}.npz is damaged: it is not an NPZ file')
    with np.load(data, allow_pickle=False) as file:
      return dict(file)

  def values(self, name: str) -> dict[str, Any]:
    """The numbers that an evaluation found last, lists if there are lanes."""
    if found := self.evals.get(name, {}).get('values'):
      return found
    lines = {key: curve.values[-1].tolist() for key, curve in self.curves.items()}
    found = {key: row if self.lanes else row[0] for key, row in lines.items()}
    found |= self.result.get('metrics', {})
    return {key.removeprefix(f'{name}/'): value for key, value in found.items()
            if key.rpartition('/')[0] == name}  # fmt: skip

  def _names(self, folder: str) -> list[str]:
    path = self.folder / folder
    return [entry.name for entry in paths.entries(path)] if path.is_dir() else []

  def _sessions(self) -> list[dict[str, Any]]:
    path = self.folder / 'command.json'
    found = paths.read_json(path) if path.is_file() else []
    return [{'command': str(each['command']), 'started': str(each['started']),
             'step': int(each.get('step', 0))} for each in found]  # fmt: skip

  def _curves(self) -> dict[str, Curve]:
    path = self.folder / 'metrics.jsonl'
    if not path.is_file():
      raise RunError('metrics.jsonl is missing: there are no curves')
    found: dict[str, dict[int, list[float]]] = {}
    damaged = []
    lines = path.read_bytes().decode('utf-8', 'replace').split('\n')
    if not lines[-1].endswith('}'):  # a kill cuts the last one short, which is no damage
      lines.pop()
    for number, line in enumerate(lines, 1):
      try:
        values = json.loads(line)
        step = operator.index(values.pop('step'))
      except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        damaged.append(str(number))
        continue
      for name, value in values.items():
        row = value if isinstance(value, list) else [value]
        if row and all(each is None or is_number(each) for each in row):
          row = [np.nan if each is None else float(each) for each in row]
          found.setdefault(name, {})[step] = row
    for name, values in self._followed().items():
      found[name] = values | found.get(name, {})  # what the run found itself comes first
    if damaged:
      numbers = ', '.join([*damaged[:5], *(['...'] if damaged[5:] else [])])
      self.notes.append(f'metrics.jsonl: line {numbers} cannot be read and is left out')
    return {name: _curve(rows) for name, rows in found.items()}

  def _followed(self) -> dict[str, dict[int, list[float]]]:
    """Scores that were found elsewhere, by name and step."""
    found: dict[str, dict[int, list[float]]] = {}
    for step, values in followed(self.folder, self.result).items():
      for name, value in values.items():
        row = value if isinstance(value, list) else [value]
        found.setdefault(name, {})[step] = [np.nan if v is None else v for v in row]
    return found

  def _lanes(self) -> list[str]:
    given = [(name, values) for name, values in self.section('lanes').items() if values]
    count = max([curve.values.shape[1] for curve in self.curves.values()], default=1)
    count = max([count if count > 1 else 0, *(len(values) for _, values in given)])
    names = [
      ', '.join(f'{name} {shown(values[lane])}' for name, values in given if lane < len(values))
      for lane in range(count)
    ]
    for lane, step in self.result.get('diverged', {}).items():
      names[int(lane)] += f' (diverged at step {shown(step)})'
    return [name or f'lane {lane}' for lane, name in enumerate(names)]


def followed(folder: paths.Path, result: dict[str, Any]) -> dict[int, dict[str, Any]]:
  """Scores by step that `training.follow` has left in the directory of a run.

  Those of steps behind which the run went back later are of another course, and left out.
  """
  place = folder / FOLLOWED
  names = [entry.name for entry in paths.entries(place)] if place.is_dir() else []
  left = [paths.read_object(place / name) for name in names if re.fullmatch(r'\d+\.json', name)]
  return {
    each['step']: each['values'] for each in sorted(left, key=lambda each: each['step'])
    if all(back['to'] >= each['step'] for back in result.get('rewound', [])[each['rewound'] :])
  }  # fmt: skip


def _curve(rows: dict[int, list[float]]) -> Curve:
  values = np.full((len(rows), max(map(len, rows.values()))), np.nan)
  for at, step in enumerate(sorted(rows)):
    values[at, : len(rows[step])] = rows[step]
  return Curve(np.array(sorted(rows)), np.where(np.isfinite(values), values, np.nan))
