"""The page of a run: report.html, made of what is in its directory alone. No JAX."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from vit_jax.checkpoints import formats
from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError
from vit_jax.core.schedule import Schedule
from vit_jax.draw import plots
from vit_jax.draw.page import Html, document, facts, is_number, picture, section, shown, table, tag
from vit_jax.training.config import Config, steps

NAME = 'report.html'


def write(workdir: str | paths.Path, out: str | paths.Path = '') -> paths.Path:
  """Makes one page of a run, complete or not, that needs no other file.

  Args:
    workdir: directory of the run.
    out: the file to write; report.html in `workdir` if not given.

  Returns:
    Its path.

  Raises:
    RunError: if there is no run, or the file cannot be written.
  """
  folder = paths.at(workdir)
  if not any((folder / name).is_file() for name in ('config.json', 'metrics.jsonl', 'result.json')):
    raise RunError(
      f'{folder} is not the directory of a run: it has neither config.json nor metrics.jsonl nor '
      'result.json. Give the --workdir of a training.'
    )
  path = paths.at(out) if out else folder / NAME
  paths.write_text(path, _Report(folder).page())
  return path


class _Curve(NamedTuple):
  """A metric: its steps, and values (steps, lanes) of which those that are not finite are NaN."""

  steps: np.ndarray
  values: np.ndarray


class _Report:
  """What was found in a directory, and what of it is missing or damaged."""

  def __init__(self, folder: paths.Path):
    self.folder = folder
    self.notes: list[str] = []
    self.config = self._read('config.json')
    self.result = self._read('result.json', needed=False)
    self.curves = self._part('metrics.jsonl', self._metrics) or {}
    self.checkpoints = sorted(
      int(name) for name in self._names('checkpoints') if re.fullmatch(r'[0-9]{1,18}', name)
    )
    left = [
      name.removesuffix(end)
      for name in self._names('evals') for end in ('.json', '.npz') if name.endswith(end)
    ]  # fmt: skip
    self.evals = list(dict.fromkeys((*(n for n in self._section('evals') if n in left), *left)))
    self.lanes = self._lanes()
    reached = [int(curve.steps[-1]) for curve in self.curves.values()] + self.checkpoints
    self.step = self.result.get('step', max(reached, default=0))

  # What is there.

  def _part(self, what: str, make: Callable[[], Any]) -> Any:
    """What `make` makes of a part of the run; None, and a note, if that is damaged."""
    try:
      return make()
    except RunError as error:
      self.notes.append(str(error))
    except Exception as error:  # whatever a damaged file leads to must not cost the page
      self.notes.append(f'{what} cannot be shown: {type(error).__name__}: {error}')
    return None

  def _read(self, name: str, *, needed: bool = True) -> dict[str, Any]:
    """An object in a file; nothing if it is missing, which is noted if it is `needed`."""
    path = self.folder / name
    if not path.is_file():
      if needed:
        self.notes.append(f'{name} is missing')
      return {}
    return self._part(name, lambda: paths.read_object(path)) or {}

  def _names(self, folder: str) -> list[str]:
    path = self.folder / folder
    entries = self._part(folder, lambda: paths.entries(path)) if path.is_dir() else None
    return [entry.name for entry in entries or ()]

  def _section(self, name: str) -> dict[str, Any]:
    """A section of the configuration; empty if it is none."""
    found = self.config.get(name)
    return found if isinstance(found, dict) else {}

  def _metrics(self) -> dict[str, _Curve]:
    """The lines of metrics.jsonl by metric."""
    path = self.folder / 'metrics.jsonl'
    if not path.is_file():
      raise RunError('metrics.jsonl is missing: there are no curves')
    *lines, cut = path.read_bytes().decode('utf-8', 'replace').split('\n')
    found: dict[str, dict[int, list[float]]] = {}
    damaged = []
    for number, line in enumerate([*lines, *([cut] if cut.endswith('}') else [])], 1):
      try:
        values = json.loads(line)
        step = values.pop('step')
        if type(step) is not int:
          raise TypeError
      except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        damaged.append(str(number))
        continue
      for name, value in values.items():
        row = value if isinstance(value, list) else [value]
        if row and all(each is None or is_number(each) for each in row):
          numbers = [np.nan if each is None else float(each) for each in row]
          found.setdefault(name, {})[step] = numbers
    if damaged:
      many = f'lines {", ".join(damaged[:5])}' if damaged[1:] else f'line {damaged[0]}'
      more = f' and {len(damaged) - 5} more' if damaged[5:] else ''
      self.notes.append(f'metrics.jsonl: {many}{more} cannot be read and is left out')
    curves = {}
    for name, by_step in found.items():
      values = np.full((len(by_step), max(map(len, by_step.values()))), np.nan)
      for at, step in enumerate(sorted(by_step)):
        values[at, : len(by_step[step])] = by_step[step]
      values[~np.isfinite(values)] = np.nan
      curves[name] = _Curve(np.array(sorted(by_step)), values)
    return curves

  def _lanes(self) -> list[str]:
    """Names of the lanes; none for a run alone."""
    given = {name: values for name, values in self._section('lanes').items() if values}
    count = max([1, *(curve.values.shape[1] for curve in self.curves.values())])
    if count == 1 and not given:
      return []
    sets = [v if isinstance(v, list) else [v] for v in given.values()]
    gone = self.result.get('diverged')
    gone = gone if isinstance(gone, dict) else {}
    names = []
    for lane in range(max([count, *map(len, sets)])):
      said = ', '.join(f'{n}={shown(v[lane])}' for n, v in zip(given, sets, strict=True)
                       if lane < len(v))  # fmt: skip
      bad = f' (diverged at step {shown(gone[str(lane)])})' if str(lane) in gone else ''
      names.append((said or f'lane {lane}') + bad)
    return names

  # What is shown.

  def page(self) -> str:
    """The whole page."""
    name = self.folder.resolve().name or str(self.folder)
    evaluations = [self._part(f'evals/{n}', lambda n=n: self._evaluation(n)) for n in self.evals]
    parts = [
      self._part(what, make) for what, make in (
        ('the curves', self._curves), *((f'evals/{n}', lambda h=html: h)
          for n, html in zip(self.evals, evaluations, strict=True)),
        ('the time', self._time), ('the versions', self._versions),
        ('the recipe', self._recipe), ('the checkpoints', self._checkpoints),
      )
    ]  # fmt: skip
    head = [
      self._part(what, make) for what, make in (
        ('the description', self._about), ('the summary', self._summary),
        ('command.json', self._command),
      )
    ]  # fmt: skip
    notes = tag('ul', [tag('li', note) for note in self.notes], class_='notes')
    return document(
      name, tag('header', tag('h1', name), head), notes if self.notes else None, parts
    )
