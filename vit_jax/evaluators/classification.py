"""How well, and how honestly, images are classified."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.core.errors import RunError, suggest
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores, Table

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp

  from vit_jax.nn import sharding

REPORTS = ('top1', 'top5', 'loss', 'ece', 'brier', 'balanced')
# Of the reliability diagram; as in Guo et al. 2017.
BINS = 15
# With more classes there is no confusion matrix: 21,843 classes would make one of 2 GB.
MOST = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Evaluator):
  """Accuracy, loss and calibration on a split. Every class and bin is left in evals/NAME.npz.

  So is the confusion matrix, of up to 1,000 classes.

  Attributes:
    report: numbers to report. 'top1' and 'top5'; 'loss', the negative log-likelihood of the
      softmax of the logits, by whatever loss they were trained; of the same 'ece', the
      expected calibration error in 15 bins of equal width (Guo et al. 2017); 'brier', the squared
      distance of the probabilities to the truth (Brier 1950); 'balanced', the mean of the
      accuracies of the classes. top5 is left out where there are no more than five classes.
  """

  score = 'loss'
  of = ('label',)
  report: tuple[str, ...] = ('top1', 'top5', 'loss')

  def __post_init__(self):
    for name in self.report:
      if name not in REPORTS:
        raise RunError(f'unknown number to report {name!r}: {suggest(name, REPORTS)}')

  def sums(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`."""
    logits, label, mask = outputs['logits'], batch['label'], batch['mask']
    classes = logits.shape[-1]
    truth = jax.nn.one_hot(label, classes)
    top5 = jax.lax.top_k(logits, min(5, classes))[1]
    said = jnp.argmax(logits, axis=-1)
    chances = jax.nn.softmax(logits)
    counted = lambda hits: (hits * mask).sum().astype(jnp.int32)  # noqa: E731
    added = lambda values: (values * mask).sum()  # noqa: E731
    sums = {
      'top1': counted(said == label),
      'top5': counted((top5 == label[:, None]).any(-1)),
      'loss': added(-(truth * jax.nn.log_softmax(logits)).sum(-1)),
      'brier': added(jnp.square(chances - truth).sum(-1)),
    }
    # Small, and products along a batch that is cut over devices are not mapped over lanes.
    label, said, mask, sure = map(sharding.whole, (label, said, mask, chances.max(-1)))
    one_hot = jax.nn.one_hot
    of_classes = jnp.zeros((classes, 2), jnp.int32)
    counts = jnp.stack([mask, mask * (said == label)], -1).astype(jnp.int32)
    found = {'classes': of_classes.at[label].add(counts)}
    if classes <= MOST:
      confusion = (one_hot(label, classes) * mask[:, None]).T @ one_hot(said, classes)
      found['confusion'] = confusion.round().astype(jnp.int32)
    bins = one_hot(jnp.clip((sure * BINS).astype(jnp.int32), 0, BINS - 1), BINS)
    columns = jnp.stack([mask, mask * (said == label), mask * sure], -1)
    return sums | found | {'bins': bins.T @ columns}

  def badness(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
    """See `Evaluator`: the negative log-likelihood."""
    said = jax.nn.log_softmax(outputs['logits'])
    return -(jax.nn.one_hot(batch['label'], said.shape[-1]) * said).sum(-1)

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    totals, count = found['test'].totals, max(found['test'].examples, 1)
    values: dict[str, Any] = {
      name: totals[name] / count for name in ('top1', 'top5', 'loss', 'brier')
    }
    (there, hits), (size, right, sure) = totals['classes'].T, totals['bins'].T
    values['ece'] = np.abs(right - sure).sum() / count
    accuracy = np.divide(hits, there, out=np.full(len(there), np.nan), where=there > 0)
    values['balanced'] = np.nanmean(accuracy) if there.any() else 0.0
    few = len(there) <= 5
    values = {n: float(values[n]) for n in self.report if not (few and n == 'top5')}
    arrays = {
      'accuracy': accuracy, 'examples': there, 'bin_size': size,
      'bin_accuracy': right / np.maximum(size, 1), 'bin_confidence': sure / np.maximum(size, 1),
    }  # fmt: skip
    if 'confusion' in totals:
      arrays['confusion'] = totals['confusion']
    names = found['test'].source.class_names or [f'class {i}' for i in range(len(there))]
    rows = [
      [name, int(count), float(share)]
      for name, count, share in zip(names, there, accuracy, strict=False) if count
    ]  # fmt: skip
    tables = [Table('Accuracy by class', ('class', 'examples', 'accuracy'), rows, 'high')]
    return Scores(values, arrays, tables)
