"""What to train with a budget: the model and the number of images with the least expected loss."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vit_jax.architecture import encoders
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError
from vit_jax.costs import flops
from vit_jax.scaling.choice import Choice
from vit_jax.scaling.design import Cell, Passes, name_of, resized
from vit_jax.scaling.result import Fit, Prediction

JOINT, OPTIMA = 'joint', 'optima'
# Columns that a law may count a model's size in, and what each leaves out.
SIZES = {'parameters': (), 'parameters_non_embedding': ('embedding',)}
# Columns that it may count data in.
DATA = ('images', 'tokens')
STEP = 1.15  # from one size to the next of a dense family
NEAR = 1.5  # times beyond the data, or below them: as good as inside
APART = 2.0  # times the best size: costs a few percent of the loss


@dataclasses.dataclass(frozen=True)
class Advice:
  """What to train.

  Attributes:
    budget: training FLOPs by `flops.CONVENTION`.
    model: resolved.
    parameters: of it, all of them.
    images: to see in training, with repetition.
    tokens: of these images, see `design.Cell.tokens`.
    loss: to expect.
    low: lower end of the band that holds a new run, at the level of the law.
    high: its upper end.
    flat: models that may be as good, by increasing size, `model` among them: whose expected loss is
      within the noise of runs of the lowest, or whose size may be the best.
    factor: how far beyond the data, in compute.
    trusted: whether there is ground to believe it.
    reason: for the one or the other.
    method: 'joint' from a law in size and images, 'optima' from the best sizes of other budgets:
      approaches 3 and 2 of Hoffmann et al. 2022.
  """

  budget: float
  model: Any
  parameters: int
  images: int
  tokens: float
  loss: float
  low: float
  high: float
  flat: tuple[Any, ...]
  factor: float
  trusted: bool
  reason: str
  method: str


def between(models: Sequence[Any], *, beyond: float = 100.0) -> list[Any]:
  """The models, and many more sizes along their common trend.

  Width, depth and the ratio of MLP to width of each tower follow straight lines over the number of
  parameters, all in logarithms, and are rounded to whole heads, blocks and features.

  Args:
    models: resolved, of two sizes at least.
    beyond: how far the family goes on below the smallest and above the largest model, as a factor
      of parameters.

  Returns:
    Different models by increasing number of parameters.

  Raises:
    RunError: for fewer sizes.
  """
  models = sorted(models, key=_count)
  sizes = np.log([_count(model) for model in models])
  if not len(models) or np.ptp(sizes) < 1e-9:
    raise RunError(f'a family needs models of two sizes, found {len(models)} of one')
  lines = {}
  for name, tower in encoders(models[0]).items():
    if not isinstance(tower, ViTArchitecture):
      continue
    towers = [encoders(model)[name] for model in models]
    shapes = np.log([(m.width, m.depth, m.mlp_dim / m.width) for m in towers])
    lines[name] = [np.polynomial.Polynomial.fit(sizes, shape, 1) for shape in shapes.T]
  reach = math.log(beyond)
  found = {name_of(model): model for model in models}
  for size in np.arange(sizes[0] - reach, sizes[-1] + reach, math.log(STEP)):
    model = models[int(np.abs(sizes - size).argmin())]
    with contextlib.suppress(RunError):  # what cannot be built
      for name, shape in lines.items():
        width, depth, ratio = (float(np.exp(line(size))) for line in shape)
        model = resized(model, tower=name, width=width, depth=depth)
        model = resized(model, tower=name, mlp_dim=ratio * encoders(model)[name].width)
      found.setdefault(name_of(model), model)
  return sorted(found.values(), key=_count)


def advise(
  law: Fit, models: Sequence[Any], budget: float, *, reach: float = 10.0, tolerance: float = 0.1,
  passes: Passes | None = None,
) -> Advice:  # fmt: skip
  """The best of some models for a budget, each trained as long as the budget lasts.

  The law knows sizes, not shapes: of models with as many parameters it takes the cheapest. FLOPs
  are those of each model, not 6 x parameters x images.

  Args:
    law: of the loss in the model's size (a column named as in `SIZES`) and in data (as in `DATA`).
    models: candidates, resolved; see `between`.
    budget: training FLOPs by `flops.CONVENTION`.
    reach: how far beyond its data the law was shown to hold, as a factor of compute.
    tolerance: largest relative half-width of the band of the curve that is trusted.
    passes: of a step for an image, by the model: `Task.passes`.

  Raises:
    RunError: if the law is of other columns, or there are no models or no budget.
  """
  if len(law.x) != 2 or law.x[0] not in SIZES or law.x[1] not in DATA:
    raise RunError(
      f'advice needs a law in ({" or ".join(SIZES)}, {" or ".join(DATA)}), found '
      f'({", ".join(law.x)})'
    )
  runs, n = _counted(models, SIZES[law.x[0]], budget, passes)
  d = np.array([getattr(run, law.x[1]) for run in runs], float)
  known = np.exp(law._problem.x)
  found = law.predict({law.x[0]: n, law.x[1]: d})
  best = int(found.value.argmin())
  flat = found.value <= found.value[best] * math.exp(law.noise)
  # To parameters x data compute is proportional.
  factors = n[best] * d[best] / (known[0] * known[1])
  band = Prediction(*(each[best] for each in found))
  doubts = list(law.doubts)
  return _advice(JOINT, budget, runs, best, flat, band, factors, reach, tolerance, doubts)


def advise_by_optima(
  size: Fit, loss: Fit | Choice, models: Sequence[Any], budget: float, *, reach: float = 10.0,
  tolerance: float = 0.1, passes: Passes | None = None,
) -> Advice:  # fmt: skip
  """The model of the size that was the best at other budgets, scaled to this one.

  Unlike `advise` it needs no law of how the loss depends on the size.

  Args:
    size: the best size (a column named as in `SIZES`) over training FLOPs: `frontier.exponent`.
    loss: the lowest loss over training FLOPs.
    models: candidates, resolved; see `between`.
    budget: training FLOPs by `flops.CONVENTION`.
    reach: how far beyond its data the law of the loss was shown to hold, as a factor of compute.
    tolerance: largest relative half-width of the band of that law's curve that is trusted.
    passes: as for `advise`.

  Raises:
    RunError: if the laws are of other columns, or there are no models or no budget.
  """
  law = loss.fit if isinstance(loss, Choice) else loss
  if len(size.x) != 1 or size.y not in SIZES or law.x != size.x:
    raise RunError(
      f'advice needs laws of {" or ".join(SIZES)} and of the loss over FLOPs, found '
      f'{size.y} over {", ".join(size.x)} and {law.y} over {", ".join(law.x)}'
    )
  runs, n = _counted(models, SIZES[size.y], budget, passes)
  target = size.predict(budget)
  best = int(np.abs(np.log(n / target.value)).argmin())
  flat = (target.low <= n) & (n <= target.high)
  flat[best] = True
  spread = float(max(target.high / target.value, target.value / max(target.low, 1e-300)))
  doubts = [*size.doubts, *law.doubts]
  if spread > APART and not size.doubts:
    doubts.append(f'the best size is known to a factor of {spread:.2g} only')
  factors = budget / np.exp(law._problem.x[0])
  band = loss.predict(budget)
  return _advice(OPTIMA, budget, runs, best, flat, band, factors, reach, tolerance, doubts)


def _counted(
  models: Sequence[Any], without: tuple[str, ...], budget: float, passes: Passes | None
) -> tuple[list[Cell], np.ndarray]:
  """Models by increasing size, each trained one image a step for as long as the budget lasts.

  With them their sizes.
  """
  if not models or not 0 < budget < math.inf:
    raise RunError(f'advice needs models and a budget, found {len(models)} and {budget}')
  models = sorted(models, key=_count)
  runs = [Cell('', model, 1, 1, tuple(passes(model)) if passes else ()) for model in models]
  runs = [dataclasses.replace(run, steps=max(1, round(budget / run.flops))) for run in runs]
  return runs, np.array([_count(model, without) for model in models], float)


def _advice(
  method: str, budget: float, runs: list[Cell], best: int, flat: np.ndarray, band: Prediction,
  factors: np.ndarray, reach: float, tolerance: float, doubts: list[str],
) -> Advice:  # fmt: skip
  """From the run `best` and its compute over that of each one that was fitted."""
  factor, above = float(factors.min()), float(factors.max())
  value, low, high, new_low, new_high = map(float, band)
  half = max(value / low, high / value) - 1 if low > 0 else math.inf
  if factor > reach * 1.001:
    doubts.append(
      f'{factor:.3g} times the compute of the runs, and the law was shown to hold up to '
      f'{reach:.3g} times'
    )
  if above < 1 / NEAR:
    doubts.append(f'every run has had {1 / above:.3g} times as much compute, or more')
  if half > tolerance:
    known = f'known to {half:.0%} only' if half < math.inf else 'not known at all'
    doubts.append(f'the curve is {known}')
  if best in (0, len(runs) - 1):
    end = 'largest' if best else 'smallest'
    doubts.append(f'the best of these models is the {end}: there may be better ones beyond')
  if runs[best].images == 1:
    doubts.append('the budget lasts for one image')
  where = 'inside the data' if factor <= 1 else f'{factor:.3g} times the compute of the runs'
  ground = f'{where}, where the curve is known to {half:.1%}'
  return Advice(
    budget, runs[best].model, _count(runs[best].model), runs[best].images, runs[best].tokens,
    value, new_low, new_high,
    tuple(run.model for run, near in zip(runs, flat, strict=True) if near),
    factor, not doubts, '; '.join(doubts) or ground, method,
  )  # fmt: skip


def _count(model: Any, without: tuple[str, ...] = ()) -> int:
  return flops.costs(model).parameters(without)
