"""What published recipes do to training images, in the fields of a configuration.

Each is the sections `data` and `task` of a run, as far as they are about augmentation. Sources:
big_vision's configs/vit_s16_i1k.py and vit_i1k.py, DeiT's main.py and README_revenge.md, MAE's
main_finetune.py and main_pretrain.py, torchvision's references/classification, DINO's main_dino.py.
"""

from __future__ import annotations

from typing import Any

from vit_jax.core import schema
from vit_jax.data.config import DataConfig

_BIG_VISION = dict(name='random_resized', dialect='big_vision', min_area=0.05, method='linear')
_BICUBIC = dict(name='random_resized', dialect='torchvision', method='bicubic')
_BILINEAR = _BICUBIC | dict(method='bilinear')
_TIMM = dict(name='randaugment', dialect='timm', magnitude=9)
_NOISE = dict(name='random', prob=0.25, mode='pixel')

RECIPES: dict[str, dict[str, Any]] = {
  'crop and flip': dict(data=dict(crop=dict(name='random_resized'))),
  'big_vision S/16': dict(
    data=dict(
      crop=_BIG_VISION, colour=dict(name='randaugment', dialect='big_vision', magnitude=10)
    ),
    task=dict(mixup=0.2),
  ),
  'AugReg strong2': dict(
    data=dict(
      crop=_BIG_VISION, colour=dict(name='randaugment', dialect='big_vision', magnitude=20)
    ),
    task=dict(mixup=0.8),
  ),
  'DeiT': dict(
    data=dict(crop=_BICUBIC, colour=_TIMM, erase=_NOISE, repeats=3),
    task=dict(mixup=0.8, cutmix=1.0, label_smoothing=0.1),
  ),
  'MAE, fine-tuned': dict(
    data=dict(crop=_BICUBIC, colour=_TIMM, erase=_NOISE),
    task=dict(mixup=0.8, cutmix=1.0, label_smoothing=0.1),
  ),
  'DeiT III': dict(
    data=dict(crop=_BICUBIC, colour=dict(name='three_augment'), repeats=3),
    task=dict(mixup=0.8, cutmix=1.0),
  ),
  'DeiT III, 21k': dict(
    data=dict(crop=dict(name='simple', method='bicubic'), colour=dict(name='three_augment')),
    task=dict(cutmix=1.0, label_smoothing=0.1),
  ),
  'torchvision, RandAugment': dict(
    data=dict(
      crop=_BILINEAR, colour=dict(name='randaugment', dialect='torchvision', magnitude=9),
      erase=dict(name='random', prob=0.1, max_area=0.33, max_aspect=3.3),
    ),
    task=dict(mixup=0.2, cutmix=1.0, label_smoothing=0.11),
  ),
  'torchvision, AutoAugment': dict(
    data=dict(crop=_BILINEAR, colour=dict(name='autoaugment', dialect='torchvision'))
  ),
  'MAE': dict(data=dict(crop=_BICUBIC | dict(min_area=0.2))),
  'DINO, first global crop': dict(
    data=dict(
      crop=_BICUBIC | dict(min_area=0.4),
      colour=dict(
        name='jitter', brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, prob=0.8, grey=0.2,
        blur=1.0,
      ),
    )
  ),
}  # fmt: skip


def data(name: str) -> DataConfig:
  """The section `data` of a recipe, of a source that stands for any."""
  return schema.build(
    DataConfig, dict(source=dict(name='synthetic'), flip='horizontal', **RECIPES[name]['data'])
  )
