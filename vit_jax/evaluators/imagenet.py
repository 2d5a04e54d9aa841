"""How classifiers of ImageNet do on what was made to test them. The data are the user's.

| name | variant | measures | images |
|---|---|---|---|
| `imagenet` | `val` | top-1 | the validation set |
| `imagenet` | `v2` | top-1 | ImageNet-V2 (Recht et al. 2019), directories 0 to 999 |
| `imagenet` | `sketch` | top-1 | ImageNet-Sketch (Wang et al. 2019) |
| `imagenet` | `a`, `r` | top-1 among its 200 classes | ImageNet-A and -R (Hendrycks et al. 2021) |
| `imagenet_real` | | a class that is right | the validation set with ReaL labels |
| `imagenet_c` | | mean corruption error | ImageNet-C (Hendrycks and Dietterich 2019) |
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.core import paths
from vit_jax.core.errors import RunError, suggest
from vit_jax.data.config import DataConfig
from vit_jax.data.examples import Example, Source, with_names
from vit_jax.data.fields import Field
from vit_jax.data.sources import open_split
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.imagenet import classes, standard
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.evaluator import Evaluator, Found, Scores, Table
from vit_jax.tasks.task import Seen

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax.numpy as jnp

VARIANTS = ('val', 'v2', 'sketch', 'a', 'r')
# Of A and R, which have images of these classes alone.
AMONG = 200
# Mean top-1 errors of AlexNet over the five severities of a corruption, as Hendrycks and Dietterich
# measured them: https://github.com/hendrycks/robustness/issues/10 has those of each severity.
ALEXNET = {
  'gaussian_noise': 0.886428, 'shot_noise': 0.894468, 'impulse_noise': 0.922640,
  'defocus_blur': 0.819880, 'glass_blur': 0.826268, 'motion_blur': 0.785948, 'zoom_blur': 0.798360,
  'snow': 0.866816, 'frost': 0.826572, 'fog': 0.819324, 'brightness': 0.564592,
  'contrast': 0.853204, 'elastic_transform': 0.646056, 'pixelate': 0.717840,
  'jpeg_compression': 0.606500,
}  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
# Of the validation set, in the order of whose files ReaL has its labels.
IMAGES = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class _OnImageNet(Evaluator):
  """Images of ImageNet's classes in a directory of their own.

  Attributes:
    dir: has a directory for each class, {dir}/{split}/CLASS/.
    split: a directory in `dir`; '.' is `dir` itself.
  """

  of = ('label',)
  dir: str
  split: str = '.'

  def open(self, data: DataConfig, split: str) -> Source:
    """See `Evaluator`."""
    del data
    return standard(open_split(Folder(self.dir), split))

  def known(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
    """See `Evaluator`: classes by WordNet id; under other names they are in this order."""
    names = fields['label'].names if 'label' in fields else ()
    ids = classes()
    if len(names) != len(ids):
      raise RunError(
        f'evaluations on ImageNet need a model with its {len(ids):,} classes, not {len(names):,}'
      )
    return fields if {*names} == {*ids} else with_names(fields, 'label', ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNet(_OnImageNet, Classification):
  """Accuracy on a directory of images by class; the rest is as of `classification`.

  Attributes:
    variant: 'val', 'v2', 'sketch', 'a' or 'r'. With 'a' and 'r' the likeliest of the 200 classes
      that are there counts, as in their papers.
  """

  variant: str = 'val'

  def __post_init__(self):
    super().__post_init__()
    if self.variant not in VARIANTS:
      raise RunError(f'unknown variant {self.variant!r}: {suggest(self.variant, VARIANTS)}')

  def on(self, sources: Mapping[str, Source]) -> Evaluator:
    """See `Evaluator`: among which classes A and R are classified."""
    if self.variant not in ('a', 'r'):
      return self
    (source,) = sources.values()
    there = tuple(sorted({*(source.labels or ())}))
    if len(there) != AMONG:
      raise RunError(
        f'{source.name} has images of {len(there)} classes, and ImageNet-{self.variant.upper()} of '
        f'{AMONG}: among fewer the accuracy would be another one'
      )
    return _Among(**vars(self), among=there)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Among(ImageNet):
  """See `ImageNet`: among some of the classes.

  Attributes:
    among: their places among those of the model.
  """

  among: tuple[int, ...]

  def outputs(self, task: Any, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`: logits of other classes are far below all others."""
    found = super().outputs(task, model, batch)
    there = np.isin(np.arange(found['logits'].shape[-1]), self.among)
    # Finite, so that no loss is 0 times infinity.
    return {**found, 'logits': jnp.where(there, found['logits'], -1e30)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetReal(_OnImageNet):
  """'real', accuracy by the reassessed labels of the validation set (Beyer et al. 2020).

  The likeliest class is right if it is among the labels of an image; images without a label count
  for nothing. 'labelled' says how many have one.

  Attributes:
    dir: has the images by class, {dir}/{split}/CLASS/ILSVRC2012_val_00000001.JPEG.
    labels: real.json of https://github.com/google-research/reassessed-imagenet.
  """

  labels: str

  def on(self, sources: Mapping[str, Source]) -> Evaluator:
    """See `Evaluator`: with the labels."""
    del sources
    return _Real(**vars(self), real=_real_labels(self.labels))

  def outputs(self, task: Any, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`: the likeliest class is enough."""
    logits = super().outputs(task, model, batch)['logits']
    return {'logits': logits, 'said': jnp.argmax(logits, -1)}

  def record(self, row: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Any:
    """See `Evaluator`: the number of the image, and the class that was said, by its id."""
    match = re.search(r'ILSVRC2012_val_(\d{8})\.', str(example['name']))
    if not match or not 0 < int(match[1]) <= IMAGES:
      raise RunError(
        f'{example["name"]}: ReaL has labels by the number of an image, that is in the name of its '
        'file, ILSVRC2012_val_00000001.JPEG'
      )
    return int(match[1]) - 1, seen.fields['label'].names[int(row['said'])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Real(ImageNetReal):
  """See `ImageNetReal`.

  Attributes:
    real: labels of each image of the validation set.
  """

  real: list[list[int]] = dataclasses.field(repr=False, compare=False)

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    place = {name: number for number, name in enumerate(classes())}
    right = [
      place[said] in self.real[image] for image, said in found['test'].records if self.real[image]
    ]  # fmt: skip
    return Scores({'real': float(np.mean(right)) if right else 0.0, 'labelled': float(len(right))})


def _real_labels(path: str) -> list[list[int]]:
  found = paths.read_json(paths.at(path))
  lists = isinstance(found, list) and all(isinstance(each, list) for each in found)
  whole = lists and all(0 <= i < len(classes()) for each in found for i in each)
  if not whole or len(found) != IMAGES:
    count = f'{len(found):,} entries' if isinstance(found, list) else 'no list'
    raise RunError(
      f'{path} is not real.json: expected are {IMAGES:,} lists of classes from 0 to 999, found '
      f'{count}'
    )
  return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetC(_OnImageNet):
  """'mce', the mean corruption error: errors over those of AlexNet, and 'error', their plain mean.

  Of each of 15 corruptions the errors at five severities are added and divided by those of AlexNet
  (Hendrycks and Dietterich 2019, section 4.2). The images are meant to be used as they are
  published; corrupting others gives other numbers.

  Attributes:
    dir: has the images, {dir}/{split}/gaussian_noise/1/CLASS/.
  """

  def splits(self) -> dict[str, str]:
    """See `Evaluator`: a pass for each corruption and severity."""
    return {f'{c}/{s}': f'{self.split}/{c}/{s}' for c in ALEXNET for s in SEVERITIES}

  def sums(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`."""
    right = (jnp.argmax(outputs['logits'], -1) == batch['label']) * batch['mask']
    return {'top1': right.sum().astype(jnp.int32)}

  def finish(self, found: Mapping[str, Found]) -> Scores:
    """See `Evaluator`."""
    error = {
      name: 1 - float(each.totals['top1']) / max(each.examples, 1) for name, each in found.items()
    }
    errors = np.array([[error[f'{c}/{s}'] for s in SEVERITIES] for c in ALEXNET])
    ce = errors.mean(1) / np.array([*ALEXNET.values()])
    rows = [
      [name, *map(float, own), float(each)]
      for name, own, each in zip(ALEXNET, errors, ce, strict=True)
    ]  # fmt: skip
    columns = ('corruption', *(f'error at {s}' for s in SEVERITIES), 'corruption error')
    return Scores(
      {'mce': float(ce.mean()), 'error': float(errors.mean())}, {'errors': errors, 'ce': ce},
      [Table('Errors by corruption', columns, rows, 'low')],
    )  # fmt: skip
