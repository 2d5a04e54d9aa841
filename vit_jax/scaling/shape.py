"""How to grow the shape of a model: width, depth and MLP at their own rates (SoViT).

Alabdulmohsin et al. 2023, Getting ViT in Shape (arXiv:2305.13035), fit the law 'sovit' to one
dimension at a time. The best value of a dimension then grows as compute^s with s = c / (a + b). A
model is scaled by growing all dimensions together in these proportions until its compute is spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs import flops
from vit_jax.scaling.design import resized
from vit_jax.scaling.laws import sovit_exponent
from vit_jax.scaling.result import Fit

# Of the paper: from 10-shot error on ImageNet after pre-training on JFT-3B.
SOVIT = {'width': 0.22, 'depth': 0.45, 'mlp_dim': 0.6}
FURTHEST = 1e12  # of compute, as a factor


def exponents(fits: Mapping[str, Fit]) -> dict[str, float]:
  """s of each dimension, for `scaled`; `Fit.ci_of(sovit_exponent)` has the interval of one.

  Args:
    fits: of the law 'sovit' in a dimension and in compute, by the dimension: width, depth, mlp_dim.

  Raises:
    RunError: for another law, or an exponent that is not positive.
  """
  found = {}
  for name, fit in fits.items():
    if name not in SOVIT:
      raise RunError(f'{name!r} is not a dimension that is scaled: {suggest(name, SOVIT)}')
    if fit.law.name != 'sovit':
      raise RunError(f"{name} needs a fit of 'sovit', not of {fit.law.name!r}")
    found[name] = float(sovit_exponent(fit.params))
    if not (math.isfinite(found[name]) and found[name] > 0):
      raise RunError(f'{name} has the exponent {found[name]:.3g}, which does not grow')
  return found


def scaled(
  model: ViTArchitecture, compute: float, exponents: Mapping[str, float] = SOVIT, *,
  head_dim: int = 0,
) -> ViTArchitecture:  # fmt: skip
  """A model of a given cost, by growing or shrinking the dimensions of another one together.

  Every dimension is multiplied by tau^s with its own s and a common tau, and rounded to what is
  valid. Only ratios of exponents matter: those of compute in all of training do as well as those of
  the compute of an image.

  Args:
    model: resolved; a good shape at its own size.
    compute: training FLOPs of one image by `flops.CONVENTION`, to be met as closely as widths of
      whole heads and whole blocks allow.
    exponents: s of width, depth and mlp_dim; a dimension that is not named stays as it is.
    head_dim: features of a head, by default those of `model`.

  Raises:
    RunError: if nothing grows, or no such model has that cost.
  """
  for name in exponents:
    if name not in SOVIT:
      raise RunError(f'{name!r} is not a dimension that is scaled: {suggest(name, SOVIT)}')
  if not exponents or min(exponents.values()) < 0 or max(exponents.values()) <= 0:
    raise RunError(f'exponents must not be negative, and one positive, found {dict(exponents)}')
  unit = max(exponents.values())

  def at(log: float) -> ViTArchitecture:
    # The MLP stays as wide as it was unless it is to grow, whatever becomes of the width.
    sizes = {name: getattr(model, name) for name in SOVIT}
    grown = {name: size * math.exp(exponents.get(name, 0.0) / unit * log)
             for name, size in sizes.items()}  # fmt: skip
    return resized(model, head_dim=head_dim, **grown)

  def excess(log: float) -> float:
    return math.log(flops.train_flops(at(log)) / compute)

  if not compute > 0:
    raise RunError(f'compute must be positive, found {compute}')
  low, high = -math.log(FURTHEST), math.log(FURTHEST)
  if excess(low) > 0 or excess(high) < 0:
    ends = flops.train_flops(at(low)), flops.train_flops(at(high))
    raise RunError(
      f'{compute:.3g} training FLOPs of an image are not between {ends[0]:.3g} and {ends[1]:.3g}'
    )
  # Rounding makes steps of the cost: the last one below, or the first one above.
  while high - low > 1e-9:
    middle = (low + high) / 2
    low, high = (low, middle) if excess(middle) > 0 else (middle, high)
  return at(min((low, high), key=lambda log: abs(excess(log))))
