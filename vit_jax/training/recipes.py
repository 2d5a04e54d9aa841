"""What published recipes have in common: sections of a configuration, as nested dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from vit_jax.core.errors import suggest

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# Splits of TFDS: to train on, and to report.
SPLITS = {
  'imagenet2012': ('train', 'validation'), 'imagenet21k': ('full[51200:]', 'full[25600:51200]'),
}  # fmt: skip
_Recipe = TypeVar('_Recipe')


def chosen(argument: str, recipes: Mapping[str, _Recipe]) -> _Recipe:
  """The recipe that the argument of a configuration file names.

  Raises:
    ValueError: for another name, with those that there are.
  """
  if argument not in recipes:
    raise ValueError(f'unknown recipe {argument!r}: {suggest(argument, recipes)}')
  return recipes[argument]


def big_vision(
  dataset: str, *, train: str = '', randaugment: float | None = None, squash: bool = False,
  every: str = '2500 steps',
) -> dict[str, Any]:  # fmt: skip
  """Data, evaluation and pixels of big_vision and of the original Vision Transformer.

  Crops of 5 to 100 % of the area, read without antialiasing, half of them mirrored; pixels in
  [-1, 1]; evaluation on the middle 224 of a shorter side of 256, or in this proportion.

  Args:
    dataset: of TFDS.
    train: the split to train on, if not all of it.
    randaugment: magnitude of two of its operators; none without.
    squash: evaluate the whole image at the model's size, whatever its aspect ratio.
    every: how often to evaluate.
  """
  own, test = SPLITS.get(dataset, ('train', 'test'))
  colour = dict(name='none')
  if randaugment is not None:
    colour = dict(name='randaugment', dialect='big_vision', magnitude=randaugment)
  crop = dict(name='resize', method='linear') if squash else dict(name='center', method='area')
  return dict(
    data=dict(
      source=dict(name='tfds', dataset=dataset), split=train or own, flip='horizontal',
      crop=dict(name='random_resized', dialect='big_vision', min_area=0.05, method='linear'),
      colour=colour,
    ),
    evals=dict(test=dict(split=test, crop=crop, every=every)),
  )  # fmt: skip


def by_names(folder: str, crop: Mapping[str, Any]) -> dict[str, Any]:
  """Evaluations of images of ImageNet by CLIP's names and templates; none without their directory.

  Args:
    folder: has a directory for each class.
    crop: of the images.
  """
  test = dict(name='zeroshot', dir=folder, templates='imagenet', names='imagenet', every='5%')
  return dict(imagenet=dict(test, crop=dict(crop))) if folder else {}


def torchvision(
  dataset: str, *, least: float = 0.08, method: str = 'bicubic', **more: Any
) -> dict[str, Any]:
  """Data of those who take random crops from torchvision, and mirror half of them.

  Args:
    dataset: of TFDS.
    least: share of the image's area in the smallest crop.
    method: by which a crop is resized.
    **more: fields of the section besides.
  """
  return dict(
    source=dict(name='tfds', dataset=dataset), split=SPLITS.get(dataset, ('train', 'test'))[0],
    crop=dict(name='random_resized', dialect='torchvision', method=method, min_area=least),
    flip='horizontal', **more,
  )  # fmt: skip


def multicrop(dataset: str, *, apart: float, local: int) -> dict[str, Any]:
  """Data, task and evaluation of DINO and those who took its views over.

  Args:
    dataset: of TFDS.
    apart: share of the image's area that is the least of a large view, and the most of a small one.
    local: how many small views there are.
  """
  colour = dict(name='jitter', saturation=0.2, hue=0.1, prob=0.8, grey=0.2)
  train, test = SPLITS.get(dataset, ('train', 'test'))
  return dict(
    data=torchvision(dataset, least=apart, colour=colour),
    task=dict(
      name='dino', local=local, local_area=(0.05, apart), blur=(1.0, 0.1, 0.5),
      solarize=(0.0, 0.2, 0.0), **IMAGENET,
    ),
    evals=dict(
      knn=dict(
        name='knn', split=test, train=f'fold 1/10 of {train}', features='class', every='10%',
        crop=dict(name='center', method='bicubic'),
      )
    ),
  )  # fmt: skip


def timm(
  dataset: str, *, fraction: float, colour: Mapping[str, Any], simple: bool = False,
  erase: float = 0.0, repeats: int = 1,
) -> dict[str, Any]:  # fmt: skip
  """Data and evaluation of DeiT and its successors, which take them from timm and torchvision.

  Args:
    dataset: of TFDS.
    fraction: of the shorter side that evaluation keeps.
    colour: section of what is done to pixels.
    simple: the 'simple random crop' of DeiT III instead of one of 8 to 100 % of the area.
    erase: probability that a box is filled with noise.
    repeats: views of an image in a batch.
  """
  data = torchvision(
    dataset, repeats=repeats, colour=dict(colour),
    erase=dict(name='random', prob=erase, mode='pixel') if erase else dict(name='none'),
  )  # fmt: skip
  if simple:
    data['crop'] = dict(name='simple', method='bicubic')
  crop = dict(name='center', fraction=fraction, method='bicubic')
  test = SPLITS.get(dataset, ('train', 'test'))[1]
  return dict(data=data, evals=dict(test=dict(split=test, every='5 epochs', crop=crop)))
