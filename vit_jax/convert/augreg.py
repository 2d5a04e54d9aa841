"""The checkpoints of 'How to train your ViT?' (Steiner et al. 2022): file names and catalogue."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest

NAME = re.compile(
  r'(?P<model>[A-Za-z0-9]+(?:_[A-Za-z0-9]+)*)_(?P<patch>\d+)-(?P<dataset>i1k|i21k_30|i21k)'
  r'-(?P<epochs>\d+)ep-lr_(?P<lr>[\d.e-]+)-aug_(?P<aug>\w+)-wd_(?P<wd>[\d.e-]+)-do_(?P<dropout>[\d.]+)'
  r'-sd_(?P<drop_path>[\d.]+?)(?:--(?P<adapt>\w+)-steps_(?P<steps>\d+k?)-lr_(?P<adapt_lr>[\d.e-]+)'
  r'-res_(?P<resolution>\d+))?(?:\.npz)?'
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a checkpoint was trained.

  Attributes:
    variant: as in `variants`, 'R26+S/32'.
    dataset: of pre-training, 'i1k', 'i21k' (300 epochs) or 'i21k_30'.
    epochs, lr, aug, weight_decay, dropout, drop_path: of pre-training.
    adapt: data set of fine-tuning, '' if there was none.
    adapt_steps, adapt_lr: likewise.
    resolution: of the last images it saw.
  """

  variant: str
  dataset: str
  epochs: int
  lr: float
  aug: str
  weight_decay: float
  dropout: float
  drop_path: float
  adapt: str = ''
  adapt_steps: int = 0
  adapt_lr: float = 0.0
  resolution: int = 224


def parse(path: str | paths.Path) -> Recipe | None:
  """The recipe in a file name of AugReg; None for other names."""
  match = NAME.fullmatch(paths.at(path).name)
  if not match:
    return None
  found = match.groupdict()
  steps = found['steps'] or '0'
  return Recipe(
    variant=f'{found["model"].replace("_", "+")}/{found["patch"]}', dataset=found['dataset'],
    epochs=int(found['epochs']), lr=float(found['lr']), aug=found['aug'],
    weight_decay=float(found['wd']), dropout=float(found['dropout']),
    drop_path=float(found['drop_path']), adapt=found['adapt'] or '',
    adapt_steps=int(steps.removesuffix('k')) * (1000 if steps.endswith('k') else 1),
    adapt_lr=float(found['adapt_lr'] or 0), resolution=int(found['resolution'] or 224),
  )  # fmt: skip


def catalogue(index: str | paths.Path) -> list[dict[str, Any]]:
  """The rows of a copy of the published index.csv, numbers as numbers.

  Raises:
    RunError: if it is not that file.
  """
  try:
    with paths.at(index).open(newline='') as file:
      rows = list(csv.DictReader(file))
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise RunError(f'cannot read {index}: {error}') from None
  if not rows or not {'name', 'ds', 'final_val', 'filename'} <= rows[0].keys():
    raise RunError(
      f"{index} is not AugReg's index: it lacks one of name, ds, final_val or filename"
    )
  return [{key: _number(value) for key, value in row.items()} for row in rows]


def recommended(rows: Iterable[dict[str, Any]], name: str) -> str:
  """File name, without '.npz', of the best checkpoint of a model before fine-tuning.

  As its authors do: the one pre-trained on ImageNet-21k with the best final validation accuracy
  there.

  Raises:
    RunError: for a model ('B/16', 'R26+S/32') that the catalogue does not have.
  """
  rows = list(rows)
  fitting = [row for row in rows if row['name'] == name and row['ds'] == 'i21k']
  if not fitting:
    raise RunError(f'no model {name!r}: {suggest(name, sorted({row["name"] for row in rows}))}')
  return str(max(fitting, key=lambda row: row['final_val'])['filename'])


def _number(text: str | None) -> Any:
  try:
    return float(text) if text else text
  except ValueError:
    return text
