"""How well hidden patches are filled in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.evaluators.evaluator import Evaluator, Found, Scores

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Evaluator):
  """'loss' of the patches that are asked for, the mean over them; masks are the same every time.

  Of classes also 'accuracy', and beside it what needs no model: 'majority', the share of the most
  frequent class, and 'entropy' of the classes in nats, with which the loss compares.
  """

  score = 'loss'

  def sums(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`."""
    weight = outputs['patches'] * batch['mask']
    found = {'patches': weight.sum(), 'loss': (outputs['loss'] * weight).sum()}
    if 'wanted' in outputs:
      found['accuracy'] = (outputs['accuracy'] * weight).sum()
      found['wanted'] = (outputs['wanted'] * batch['mask'][:, None]).sum(0).astype(jnp.int32)
    return found

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> jax.Array:
    """See `Evaluator`: the loss."""
    del batch
    return outputs['loss']

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    totals = found['test'].totals
    patches = max(float(totals['patches']), 1.0)
    values = {
      name: float(totals[name]) / patches for name in ('loss', 'accuracy') if name in totals
    }
    if 'wanted' in totals:
      share = totals['wanted'] / patches
      values['majority'] = float(share.max())
      values['entropy'] = float(-(share[share > 0] * np.log(share[share > 0])).sum())
    return Scores(values)
