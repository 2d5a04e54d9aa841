"""Tasks: objectives of training; see `task`."""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_jax.architecture.card import Card
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data.fields import Field
from vit_jax.tasks.change import Change, Damage
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.contrastive import Contrastive
from vit_jax.tasks.detection import Detection
from vit_jax.tasks.dino import Dino
from vit_jax.tasks.distillation import Distillation
from vit_jax.tasks.instances import Instances
from vit_jax.tasks.language import LanguageModelling
from vit_jax.tasks.masked import MaskedImages
from vit_jax.tasks.multilabel import MultiLabel
from vit_jax.tasks.networks import Network
from vit_jax.tasks.packed import PackedClassification
from vit_jax.tasks.panoptic import Panoptic
from vit_jax.tasks.regression import Regression
from vit_jax.tasks.segmentation import Segmentation
from vit_jax.tasks.semantic import Semantic
from vit_jax.tasks.task import Fields, Task

TASKS = {
  'classification': Classification, 'multilabel': MultiLabel, 'regression': Regression,
  'segmentation': Segmentation, 'packed': PackedClassification, 'distillation': Distillation,
  'masked': MaskedImages, 'dino': Dino, 'change': Change, 'damage': Damage,
  'detection': Detection,
  'panoptic': Panoptic, 'instances': Instances, 'semantic': Semantic,
  'contrastive': Contrastive, 'language': LanguageModelling,
}  # fmt: skip


def described(task: Task) -> dict[str, Any]:
  """The name and the fields of a task, as a checkpoint keeps them."""
  name = next(name for name, kind in TASKS.items() if kind is type(task))

  chosen = {each.name: each.metadata.get('choice') for each in dataclasses.fields(task)}

  def plain(name: str, value: Any) -> Any:
    if isinstance(value, Network):  # what it is, predictions do not need
      return dataclasses.asdict(dataclasses.replace(value, found=None))
    if registry := chosen[name]:
      own = next(own for own, kind in registry.items() if kind is type(value))
      return {'name': own, **dataclasses.asdict(value)}
    return getattr(value, 'text', value)

  return {'name': name, **{n: plain(n, value) for n, value in vars(task).items()}}


def named(card: Card, names: tuple[str, ...]) -> Card:
  """A card with other names of the classes, if there are any."""
  if not names:
    return card
  task, fields = of(card)
  if not task.classed:
    raise RunError(f'--labels names classes, and {described(task)["name"]} predicts none')
  known = {n: dataclasses.asdict(field) for n, field in fields.items()}
  known[task.classed] = {**known.get(task.classed, {'kind': 'class'}), 'names': names}
  return dataclasses.replace(card, class_names=names, task=described(task), fields=known)


def of(card: Card) -> tuple[Task, Fields]:
  """The task that a model was trained for, and the fields of its data.

  Of a model that says nothing of it: classification of images as its card says.

  Raises:
    RunError: if the task is not known here.
  """
  fields = {name: Field.from_dict(field) for name, field in card.fields.items()}
  if card.task:
    given = {name: value for name, value in card.task.items() if name != 'name'}
    kind = schema.pick(TASKS, card.task['name'], 'task')
    return schema.build(kind, given, 'task'), fields
  task = Classification(mean=card.mean, std=card.std)
  names = tuple(card.class_names)
  return task, {'image': Field('image', dtype='uint8'), 'label': Field('class', names)}
