"""What every benchmark leaves behind: a table on the terminal, a JSON file and a picture."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = pathlib.Path(__file__).parent / 'results'
PACKAGES = (
  'jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'numpy', 'grain', 'opencv-python-headless',
  'simplejpeg', 'pillow', 'tensorflow', 'tensorflow-cpu', 'torch', 'timm', 'transformers',
  'tokamax',
)  # fmt: skip
Row = Mapping[str, Any]


def machine() -> dict[str, Any]:
  """Processor, cores and memory of this machine, and the packages that decide its speed."""
  return {
    'processor': _processor(),
    'cores': len(os.sched_getaffinity(0)),
    'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30, 1),
    'system': f'{platform.system()} {platform.machine()}',
    'python': platform.python_version(),
    'packages': {name: version for name in PACKAGES if (version := _version(name))},
  }


def on_device(benchmark: str, device: str, tag: str = '') -> str:
  """The name of a benchmark's results on a kind of device: 'train_step-nvidia-h200'.

  Args:
    benchmark: the module that was run.
    device: kind of device.
    tag: tells apart results of several runs.
  """
  words = re.findall('[a-z0-9]+', f'{device} {tag}'.lower())
  return '-'.join([benchmark, *words])


def write(
  name: str, rows: Sequence[Row], *, title: str, note: str = '', facts: Row | None = None,
  folder: pathlib.Path | None = None,
) -> pathlib.Path:  # fmt: skip
  """Prints `rows` and writes them to `folder`/`name`.json.

  Args:
    name: of the benchmark, and of its file; may be one of `on_device`.
    rows: results, a dict per line with the same keys; numbers unrounded.
    title: of the table.
    note: what the numbers mean, units included.
    facts: anything else worth keeping: settings, an accelerator's name, fitted slopes.
    folder: `RESULTS` if not given.

  Returns:
    The path of the file.
  """
  table = Table(title=title, caption=note or None, title_justify='left', caption_justify='left')
  for column in rows[0] if rows else ():
    numeric = isinstance(rows[0][column], int | float)
    table.add_column(column, justify='right' if numeric else 'left')
  for row in rows:
    table.add_row(*(_cell(value) for value in row.values()))
  Console(width=None if sys.stdout.isatty() else 160).print(table)
  benchmark = name.partition('-')[0]
  record = {
    'benchmark': benchmark,
    'title': title,
    'note': note,
    'date': datetime.datetime.now(datetime.UTC).date().isoformat(),
    'command': ' '.join(['python', '-m', f'experiments.benchmarks.{benchmark}', *sys.argv[1:]]),
    'machine': machine(),
    **(facts or {}),
    'rows': [dict(row) for row in rows],
  }
  folder = folder or RESULTS
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f'{name}.json'
  path.write_text(json.dumps(record, indent=1) + '\n')
  return path


def figure(name: str, draw: Any, *, folder: pathlib.Path | None = None, **size: float) -> None:
  """Saves a picture as `folder`/`name`.png if Matplotlib is installed.

  Args:
    name: as for `write`.
    draw: called with Matplotlib axes.
    folder: `RESULTS` if not given.
    size: `width` and `height` in inches.
  """
  try:
    from matplotlib.figure import Figure
  except ImportError:
    print(f'no picture of {name}: pip install matplotlib')
    return
  picture = Figure(figsize=(size.get('width', 7), size.get('height', 4)), layout='constrained')
  axes = picture.add_subplot()
  axes.spines[['top', 'right']].set_visible(False)
  draw(axes)
  folder = folder or RESULTS
  folder.mkdir(parents=True, exist_ok=True)
  picture.savefig(folder / f'{name}.png', dpi=130)


def _cell(value: Any) -> str:
  if value is None:
    return ''
  if isinstance(value, float):
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.3g}'
  return f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _processor() -> str:
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.processor()
