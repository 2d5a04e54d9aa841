"""Evaluators: measurements that are exact on every example; see `evaluator`."""

from vit_jax.evaluators.answers import Answers
from vit_jax.evaluators.change import Change, Damage
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.detection import Detection
from vit_jax.evaluators.imagenet import ImageNet, ImageNetC, ImageNetReal
from vit_jax.evaluators.instances import Instances
from vit_jax.evaluators.multilabel import MultiLabel
from vit_jax.evaluators.panoptic import Panoptic
from vit_jax.evaluators.probes import FewShot, Knn, Linear, Logistic
from vit_jax.evaluators.reconstruction import Reconstruction
from vit_jax.evaluators.regression import Regression
from vit_jax.evaluators.retrieval import Retrieval
from vit_jax.evaluators.segmentation import Segmentation
from vit_jax.evaluators.zeroshot import ZeroShot

EVALUATORS = {
  'classification': Classification, 'multilabel': MultiLabel, 'regression': Regression,
  'segmentation': Segmentation, 'knn': Knn, 'logistic': Logistic, 'linear': Linear,
  'fewshot': FewShot, 'imagenet': ImageNet, 'imagenet_real': ImageNetReal, 'imagenet_c': ImageNetC,
  'reconstruction': Reconstruction, 'change': Change, 'damage': Damage,
  'detection': Detection,
  'panoptic': Panoptic, 'instances': Instances,
  'retrieval': Retrieval, 'zeroshot': ZeroShot, 'answers': Answers,
}  # fmt: skip
