"""What to train with a budget: the model and the number of images with the least expected loss."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError
from vit_jax.costs import flops
from vit_jax.scaling.choice import Choice
from vit_jax.scaling.design import name_of, resized
from vit_jax.scaling.result import Fit, Prediction

JOINT, OPTIMA = 'joint', 'optima'
# Columns that a law may count a model's size in, and what each leaves out.
SIZES = {'parameters': (), 'parameters_non_embedding': ('embedding',)}
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
  model: ViTArchitecture
  parameters: int
  images: int
  loss: float
  low: float
  high: float
  flat: tuple[ViTArchitecture, ...]
  factor: float
  trusted: bool
  reason: str
  method: str


def between(models: Sequence[ViTArchitecture], *, beyond: float = 100.0) -> list[ViTArchitecture]:
  """The models, and many more sizes along their common trend.

  Width, depth and the ratio of MLP to width follow straight lines over the number of parameters,
  all in logarithms, and are rounded to whole heads, blocks and features.

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
  shapes = np.log([(m.width, m.depth, m.mlp_dim / m.width) for m in models])
  lines = [np.polynomial.Polynomial.fit(sizes, shape, 1) for shape in shapes.T]
  reach = math.log(beyond)
  found = {name_of(model): model for model in models}
  for size in np.arange(sizes[0] - reach, sizes[-1] + reach, math.log(STEP)):
    nearest = models[int(np.abs(sizes - size).argmin())]
    width, depth, ratio = (float(np.exp(line(size))) for line in lines)
    with contextlib.suppress(RunError):  # what cannot be built
      model = resized(nearest, width=width, depth=depth)
      model = resized(model, mlp_dim=ratio * model.width)
      found.setdefault(name_of(model), model)
  return sorted(found.values(), key=_count)


def advise(
  law: Fit, models: Sequence[ViTArchitecture], budget: float, *, reach: float = 10.0,
  tolerance: float = 0.1,
) -> Advice:  # fmt: skip
  """The best of some models for a budget, each trained as long as the budget lasts.

  The law knows sizes, not shapes: of models with as many parameters it takes the cheapest. FLOPs
  are those of each model, not 6 x parameters x images.

  Args:
    law: of the loss in the model's size (a column named as in `SIZES`) and in images.
    models: candidates, resolved; see `between`.
    budget: training FLOPs by `flops.CONVENTION`.
    reach: how far beyond its data the law was shown to hold, as a factor of compute.
    tolerance: largest relative half-width of the band of the curve that is trusted.

  Raises:
    RunError: if the law is of other columns, or there are no models or no budget.
  """
  if len(law.x) != 2 or law.x[0] not in SIZES:
    raise RunError(
      f'advice needs a law in ({" or ".join(SIZES)}, images), found ({", ".join(law.x)})'
    )
  models, n, d = _counted(models, SIZES[law.x[0]], budget)
  known = np.exp(law._problem.x)
  found = law.predict({law.x[0]: n, law.x[1]: d})
  best = int(found.value.argmin())
  flat = found.value <= found.value[best] * math.exp(law.noise)
  # To parameters x images compute is proportional.
  factors = n[best] * d[best] / (known[0] * known[1])
  band = Prediction(*(each[best] for each in found))
  doubts = list(law.doubts)
  return _advice(JOINT, budget, models, best, d, flat, band, factors, reach, tolerance, doubts)


def advise_by_optima(
  size: Fit, loss: Fit | Choice, models: Sequence[ViTArchitecture], budget: float, *,
  reach: float = 10.0, tolerance: float = 0.1,
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

  Raises:
    RunError: if the laws are of other columns, or there are no models or no budget.
  """
  law = loss.fit if isinstance(loss, Choice) else loss
  if len(size.x) != 1 or size.y not in SIZES or law.x != size.x:
    raise RunError(
      f'advice needs laws of {" or ".join(SIZES)} and of the loss over FLOPs, found '
      f'{size.y} over {", ".join(size.x)} and {law.y} over {", ".join(law.x)}'
    )
  models, n, d = _counted(models, SIZES[size.y], budget)
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
  return _advice(OPTIMA, budget, models, best, d, flat, band, factors, reach, tolerance, doubts)


def _counted(
  models: Sequence[ViTArchitecture], without: tuple[str, ...], budget: float
) -> tuple[list[ViTArchitecture], np.ndarray, np.ndarray]:
  """Models by increasing size; their sizes; for how many images the budget lasts."""
  if not models or not 0 < budget < math.inf:
    raise RunError(f'advice needs models and a budget, found {len(models)} and {budget}')
  models = sorted(models, key=_count)
  n = np.array([_count(model, without) for model in models], float)
  d = np.array([max(1, round(budget / flops.train_flops(model))) for model in models], float)
  return models, n, d


def _advice(
  method: str, budget: float, models: list[ViTArchitecture], best: int, images: np.ndarray,
  flat: np.ndarray, band: Prediction, factors: np.ndarray, reach: float, tolerance: float,
  doubts: list[str],
) -> Advice:  # fmt: skip
  """From the model `best` and its compute over that of each run that was fitted."""
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
  if best in (0, len(models) - 1):
    end = 'largest' if best else 'smallest'
    doubts.append(f'the best of these models is the {end}: there may be better ones beyond')
  if images[best] == 1:
    doubts.append('the budget lasts for one image')
  where = 'inside the data' if factor <= 1 else f'{factor:.3g} times the compute of the runs'
  ground = f'{where}, where the curve is known to {half:.1%}'
  return Advice(
    budget, models[best], _count(models[best]), int(images[best]), value, new_low, new_high,
    tuple(model for model, near in zip(models, flat, strict=True) if near),
    factor, not doubts, '; '.join(doubts) or ground, method,
  )  # fmt: skip


def _count(model: ViTArchitecture, without: tuple[str, ...] = ()) -> int:
  return flops.costs(model).parameters(without)
