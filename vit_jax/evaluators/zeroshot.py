"""Classification by nothing but the names of the classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.core.errors import RunError
from vit_jax.data.config import DataConfig
from vit_jax.data.examples import Source
from vit_jax.data.fields import Field, named
from vit_jax.data.rows.columns import Label
from vit_jax.data.sources import open_split
from vit_jax.data.sources.folder import Folder
from vit_jax.data.views import View
from vit_jax.evaluators.classification import Classification
from vit_jax.evaluators.evaluator import Evaluator
from vit_jax.text import prompts

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  from vit_jax.tasks import naming


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZeroShot(Classification):
  """Accuracy of an image tower and a text tower that gets the names of classes in sentences.

  A class is the mean of the unit vectors of its sentences, of unit length again (Radford et al.
  2021, section 3.1.4). What else there is is as of `classification`.

  Attributes:
    templates: sentences with {} for the name, one of the sets of `text.prompts`, or separated by ;.
    names: of the classes, in their order, where those of the data do not say what they are:
      'imagenet', CLIP's names in the order of ImageNet; separated by commas; or a file with a name
      in each line. Of 'a, b' the first is taken.
    dir: images in a directory for each class, {dir}/{split}/CLASS/; the data of the run, if not
      given.
  """

  templates: str = 'photo'
  names: str = ''
  dir: str = ''

  def __post_init__(self):
    super().__post_init__()
    prompts.chosen(self.templates)

  def open(self, data: DataConfig, split: str) -> Source:
    """See `Evaluator`."""
    return open_split(Folder(self.dir), split) if self.dir else data.open(split)

  def known(self, fields: Mapping[str, Field]) -> Mapping[str, Field]:
    """See `Evaluator`: classes are those of the images."""
    if self.dir:
      fields = {**fields, 'label': open_split(Folder(self.dir), self.split).fields['label']}
    if 'label' not in fields:
      raise RunError(
        f'name=zeroshot judges images with classes, and the data have the fields '
        f'{", ".join(fields)}: give the directory of some, dir=DIR'
      )
    return fields

  def rows(self, task: Any, model: Any, fields: Mapping[str, Field]) -> Any:
    """See `Evaluator`: the image and its class."""
    if not hasattr(task, 'tokenizer'):
      raise RunError('name=zeroshot needs a model that reads texts: task.name=contrastive')
    return task.columns(model, fields, View(self.crop), Label(len(fields['label'].names)))

  def on(self, sources: Mapping[str, Source]) -> Evaluator:
    """See `Evaluator`."""
    (source,) = sources.values()
    names = source.fields['label'].names
    if self.names:
      names = prompts.imagenet_names() if self.names == 'imagenet' else named(self.names)
    if len(names) != len(source.fields['label'].names):
      raise RunError(
        f'names={self.names!r} are {len(names)}, and {source.name} has '
        f'{len(source.fields["label"].names)} classes'
      )
    return _Named(**vars(self), called=tuple(names))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Named(ZeroShot):
  """See `ZeroShot`.

  Attributes:
    called: names of the classes.
  """

  called: tuple[str, ...]

  def once(self, task: Any, model: Any) -> dict[str, Any]:
    """See `Evaluator`: a vector for each class."""
    return {'classes': naming.vectors(model, task.tokenizer, self.called, self.templates)}

  def outputs(self, task: Any, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """See `Evaluator`."""
    batch = dict(batch)
    classes = batch.pop('classes')
    images = model.encode_image(task.augment(batch, None, {})['image'])
    return {'logits': model.logits(images, classes)}
