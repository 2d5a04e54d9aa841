"""What to train with a budget: the model and the number of images with the least expected loss."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from vit_jax import flops
from vit_jax.architecture import ViTArchitecture
from vit_jax.errors import RunError
from vit_jax.scaling.design import name_of, resized
from vit_jax.scaling.result import Fit

# Columns that a law may count a model's size in, and what each leaves out.
SIZES = {'parameters': (), 'parameters_non_embedding': ('embedding',)}
STEP = 1.15  # from one size to the next of a dense family


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
    flat: models whose expected loss is within the noise of runs of the best, which is among them,
      by increasing size.
    factor: how far beyond the data: parameters x images over the most of any run that was fitted,
      to which compute is proportional.
    trusted: whether there is ground to believe it.
    reason: for the one or the other.
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
  if not models or not 0 < budget < math.inf:
    raise RunError(f'advice needs models and a budget, found {len(models)} and {budget}')
  models = sorted(models, key=_count)
  n = np.array([_count(model, SIZES[law.x[0]]) for model in models], float)
  d = np.array([max(1, round(budget / flops.train_flops(model))) for model in models], float)
  known = np.exp(law._problem.x)
  found = law.predict({law.x[0]: n, law.x[1]: d})
  best = int(found.value.argmin())
  flat = found.value <= found.value[best] * math.exp(law.noise)
  factor = float(n[best] * d[best] / (known[0] * known[1]).max())
  value, low, high = (float(a[best]) for a in (found.value, found.low, found.high))
  half = max(value / low, high / value) - 1 if low > 0 else math.inf
  doubts = []
  if factor > reach * 1.001:
    doubts.append(
      f'{factor:.3g} times the compute of the runs, and the law was shown to hold up to '
      f'{reach:.3g} times'
    )
  if half > tolerance:
    doubts.append(f'the curve is known to {half:.0%} only')
  if best in (0, len(models) - 1):
    end = 'largest' if best else 'smallest'
    doubts.append(f'the best of these models is the {end}: there may be better ones beyond')
  if d[best] == 1:
    doubts.append('the budget lasts for one image')
  where = 'inside the data' if factor <= 1 else f'{factor:.3g} times the compute of the runs'
  ground = f'{where}, where the curve is known to {half:.1%}'
  return Advice(
    budget, models[best], _count(models[best]), int(d[best]), value,
    float(found.new_low[best]), float(found.new_high[best]),
    tuple(model for model, near in zip(models, flat, strict=True) if near),
    factor, not doubts, '; '.join(doubts) or ground,
  )  # fmt: skip


def _count(model: ViTArchitecture, without: tuple[str, ...] = ()) -> int:
  return flops.costs(model).parameters(without)
