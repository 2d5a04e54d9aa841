"""Which runs to train: designs over the shape of a model and how long it is trained.

Of a model of several towers the first is what designs vary, unless they say otherwise. What a step
costs is what the passes of its task cost, `Task.passes`: of an encoder that sees a quarter of the
tokens, of a teacher. Without them it is a forward and a backward pass of the model.

Three kinds, as in the literature: isoFLOP profiles (Hoffmann et al. 2022, section 3.2: many sizes
for each of several budgets), stars (Alabdulmohsin et al. 2023: one dimension at a time around a
centre) and grids. What cannot be run is left out with its reason, never silently.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.architecture import Composition, EncoderConfig, encoders
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs import step as costs
from vit_jax.costs.step import Pass

# Fields of a model that designs vary, and that its name is made of.
DIMENSIONS = {
  'width': 'w', 'depth': 'd', 'mlp_dim': 'm', 'num_heads': 'h', 'patch_size': 'p',
  'image_size': 'r',
}  # fmt: skip
# Of the towers behind the first, whose images follow from it.
INNER = ('width', 'depth', 'mlp_dim', 'num_heads')
Passes = Callable[[Any], Iterable[Pass]]


@dataclasses.dataclass(frozen=True)
class Cell:
  """A model and how long to train it.

  Attributes:
    group: of the design, such as 'isoflop 1e+10'.
    model: resolved.
    batch_size: images per step.
    steps: of training.
    passes: what a step computes for an image; one of the model, if not given.
  """

  group: str
  model: Any
  batch_size: int
  steps: int
  passes: tuple[Pass, ...] = ()

  @property
  def work(self) -> tuple[Pass, ...]:
    """What a step computes for an image."""
    return self.passes or (Pass(self.model),)

  @property
  def images(self) -> int:
    """Seen in training, with repetition."""
    return self.batch_size * self.steps

  @property
  def tokens(self) -> float:
    """Seen in training, with repetition; see `costs.step.tokens`."""
    return self.images * costs.tokens(self.work)

  @property
  def each(self) -> int:
    """FLOPs of training on an image once, by `flops.CONVENTION`."""
    return costs.step(self.work)

  @property
  def flops(self) -> int:
    """Of training, by `flops.CONVENTION`."""
    return self.images * self.each

  @property
  def shape(self) -> dict[str, int]:
    """The dimensions of the model; see `shape_of`."""
    return shape_of(self.model)


class LeftOut(NamedTuple):
  """A run that a design does not hold: its group, the model's name and why."""

  group: str
  model: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Design:
  """Runs, and what was left out."""

  cells: tuple[Cell, ...]
  left_out: tuple[LeftOut, ...] = ()

  def __add__(self, other: Design) -> Design:
    """Both together; a run that is in both is there once."""
    key = lambda cell: (name_of(cell.model), cell.batch_size, cell.steps)  # noqa: E731
    known = set(map(key, self.cells))
    new = tuple(cell for cell in other.cells if key(cell) not in known)
    return Design(self.cells + new, self.left_out + other.left_out)

  @property
  def flops(self) -> int:
    """Of all runs, each from scratch."""
    return sum(cell.flops for cell in self.cells)


def varied(model: Any) -> str:
  """The name of the tower that designs vary, the first of images; '' if there is one only.

  Raises:
    RunError: if no tower is a ViT.
  """
  for name, tower in encoders(model).items():
    if isinstance(tower, ViTArchitecture):
      return name
  raise RunError(f'designs are of Vision Transformers, and {model.kind} has none')


def shape_of(model: Any) -> dict[str, int]:
  """The `DIMENSIONS` of a model, of images the height; of other towers as 'decoder.width'."""
  own, towers = varied(model), encoders(model)
  shape = {
    name: towers[own].image_size[0] if name == 'image_size' else getattr(towers[own], name)
    for name in DIMENSIONS
  }
  return shape | {
    f'{tower}.{name}': getattr(config, name) for tower, config in towers.items()
    if tower != own and isinstance(config, EncoderConfig) for name in INNER
  }  # fmt: skip


def name_of(model: Any) -> str:
  """'w64-d4-m256-h4-p7-r28', with another tower '-decoder-w32-d1-m128-h2' behind it."""
  return named(shape_of(model))


def named(shape: Mapping[str, Any]) -> str:
  """The name of a model with these dimensions, whatever else there is."""
  own = '-'.join(f'{letter}{shape.get(name)}' for name, letter in DIMENSIONS.items())
  parts = (name.rpartition('.') for name in dimensions(shape) if '.' in name)
  others: dict[str, str] = {}
  for tower, _, name in parts:
    others[tower] = f'{others.get(tower, "")}-{DIMENSIONS[name]}{shape[f"{tower}.{name}"]}'
  return own + ''.join(f'-{tower.replace("/", "_")}{text}' for tower, text in others.items())


def dimensions(row: Mapping[str, Any]) -> list[str]:
  """The names in a row that are dimensions of a model, in the order of a model's name."""
  others = [n for n in row if n.rpartition('.')[2] in INNER and '.' in n and row[n] is not None]
  return [*DIMENSIONS, *others]


def budgets(low: float, high: float, *, per_decade: float) -> list[float]:
  """Evenly spaced in the logarithm, `low` and `high` among them."""
  if not 0 < low < high:
    raise RunError(f'budgets from {low:g} to {high:g}: the first must be smaller, and positive')
  count = max(1, round(per_decade * math.log10(high / low)))
  return [low * (high / low) ** (i / count) for i in range(count + 1)]


def resized(model: Any, *, tower: str | None = None, head_dim: int = 0, **dimensions: Any) -> Any:
  """`model` in other dimensions, rounded to the nearest that are valid.

  Args:
    model: resolved.
    tower: of several, the one that is changed; see `varied`.
    head_dim: features of a head, kept by changing the number of heads; that of `model` if neither
      is given. The width is a multiple of it.
    **dimensions: `DIMENSIONS`, fractions allowed; image_size is one number. num_heads changes the
      features of a head instead. Without mlp_dim its ratio to the width is kept.

  Raises:
    RunError: for a name that is not a dimension, head_dim and num_heads at once, a tower that there
      is not, or a model whose images are not square.
  """
  first, _, rest = (varied(model) if tower is None else tower).partition('/')
  if isinstance(model, Composition):
    if first not in model.towers:
      raise RunError(f'{model.kind} has no tower {first!r}: {suggest(first, model.towers)}')
    inside = resized(model.towers[first], tower=rest or None, head_dim=head_dim, **dimensions)
    return dataclasses.replace(model, **{first: inside}).resolve()
  if not isinstance(model, ViTArchitecture):
    raise RunError(f'designs are of Vision Transformers, not of {model.kind}')
  if len(model.image_size) != 2 or not isinstance(model.patch_size, int):
    raise RunError(f'designs are of square images and patches: image_size={model.image_size}')
  if model.head_dim:
    raise RunError(f'designs are of models whose heads share the width: head_dim={model.head_dim}')
  for name in dimensions:
    if name not in DIMENSIONS:
      raise RunError(f'unknown dimension {name!r}: {suggest(name, DIMENSIONS)}')
  width = dimensions.get('width', model.width)
  if 'num_heads' in dimensions:
    if head_dim:
      raise RunError('num_heads and head_dim: give one of them')
    heads = max(1, round(dimensions['num_heads']))
    head_dim = max(1, round(width / heads))
  else:
    head_dim = head_dim or model.head_width
    heads = max(1, round(width / head_dim))
  width = heads * head_dim
  mlp_dim = dimensions.get('mlp_dim', model.mlp_dim * width / model.width)
  patch = max(1, round(dimensions.get('patch_size', model.patch_size)))
  side = dimensions.get('image_size', model.image_size[0])
  side = patch * max(1, round(side / patch))
  changed = dataclasses.replace(
    model, width=width, num_heads=heads, mlp_dim=max(1, round(mlp_dim)), patch_size=patch,
    depth=max(1, round(dimensions.get('depth', model.depth))), image_size=(side, side),
  )  # fmt: skip
  return changed.resolve()


def isoflop(
  models: Sequence[Any], budgets: Sequence[float], batch_size: int, *,
  images: tuple[float, float] = (0, math.inf), steps: int = 1, passes: Passes | None = None,
) -> Design:  # fmt: skip
  """Every model for each budget of training FLOPs, as long as the budget lasts.

  Args:
    models: resolved.
    budgets: in FLOPs, by `flops.CONVENTION`.
    batch_size: of all runs.
    images: fewest and most to be seen; the second says how often data may be repeated.
    steps: fewest of a run.
    passes: of a step for an image, by the model: `Task.passes`.
  """
  cells, left_out = [], []
  for budget, model in itertools.product(budgets, models):
    group = f'isoflop {budget:.3g}'
    one = _cell(group, model, batch_size, 1, passes)
    cell = dataclasses.replace(one, steps=round(budget / one.flops))
    low, high = images
    if cell.steps < steps:
      reason = f'{cell.steps} steps are less than {steps}'
    elif not low <= cell.images <= high:
      reason = f'{cell.images:,} images are not between {low:,.0f} and {high:,.0f}'
    else:
      cells.append(cell)
      continue
    left_out.append(LeftOut(group, name_of(model), reason))
  return Design(tuple(cells), tuple(left_out))


def within(total: float, make: Callable[[float], Design], *, low: float) -> Design:
  """The largest design that costs no more than `total` training FLOPs.

  Args:
    total: to be spent; `cost.Machine.flops` says how many an amount of time or money buys.
    make: gives the design whose largest budget is its argument.
    low: a largest budget that is affordable.

  Raises:
    RunError: if it is not.
  """
  if make(low).flops > total:
    raise RunError(f'{total:.3g} FLOPs are not enough for a design up to {low:.3g}')
  high = max(low, total)
  for _ in range(40):
    middle = math.sqrt(low * high)
    low, high = (middle, high) if make(middle).flops <= total else (low, middle)
  return make(low)


def star(
  centre: Any, dimensions: Mapping[str, Iterable[float]], durations: Sequence[int],
  batch_size: int, passes: Passes | None = None,
) -> Design:  # fmt: skip
  """One dimension at a time around `centre`, the others being large enough not to matter.

  Args:
    centre: resolved; trained as well.
    dimensions: values of each dimension to vary; see `resized`.
    durations: images seen.
    batch_size: of all runs.
    passes: as for `isoflop`.
  """
  design = _every('centre', [centre], durations, batch_size, passes)
  for name, values in dimensions.items():
    models = [resized(centre, **_alone(centre, name, value)) for value in values]
    design += _every(f'star {name}', models, durations, batch_size, passes)
  return design


def _alone(centre: Any, name: str, value: float) -> dict[str, Any]:
  """Changing the width leaves the hidden layer of the MLP as wide as it is."""
  return {'mlp_dim': encoders(centre)[varied(centre)].mlp_dim, name: value}


def grid(
  model: Any, dimensions: Mapping[str, Iterable[float]], durations: Sequence[int],
  batch_size: int, passes: Passes | None = None,
) -> Design:  # fmt: skip
  """Every combination; arguments as for `star`."""
  models = []
  for values in itertools.product(*dimensions.values()):
    changed: dict[str, Any] = dict(zip(dimensions, values, strict=True))
    models.append(resized(model, **changed))
  return _every('grid', models, durations, batch_size, passes)


def _every(
  group: str, models: Sequence[Any], durations: Sequence[int], batch_size: int,
  passes: Passes | None,
) -> Design:  # fmt: skip
  # Several values may round to one model.
  different = {name_of(model): model for model in models}
  cells = [
    _cell(group, model, batch_size, max(1, round(images / batch_size)), passes)
    for model, images in itertools.product(different.values(), durations)
  ]
  return Design(tuple(cells))


def _cell(group: str, model: Any, batch_size: int, steps: int, passes: Passes | None) -> Cell:
  return Cell(group, model, batch_size, steps, tuple(passes(model)) if passes else ())
