"""What the training loop asks of an objective."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from etils import epy

from vit_jax.architecture.card import Card
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs.step import Pass
from vit_jax.data.examples import Example, Source
from vit_jax.data.fields import Field
from vit_jax.data.rows import Rows
from vit_jax.data.views import View
from vit_jax.tasks.networks import Network

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax

  from vit_jax.draw import pictures
  from vit_jax.nn import tree

if TYPE_CHECKING:
  import numpy as np

  from vit_jax.data.rows.columns import Image

DTYPES = ('float32', 'bfloat16')
Batch = dict[str, Any]  # of arrays whose leading axis is the batch
# Sums over a batch, each with the name of the total that it is divided by to be reported.
Sums = dict[str, tuple[Any, str]]
Fields = Mapping[str, Field]


class Prediction(NamedTuple):
  """What a model says of an example, in words and in the frame of its image.

  Attributes:
    facts: plain JSON.
    arrays: maps by name, of the height and width of the image, uint8 or uint16.
  """

  facts: dict[str, Any]
  arrays: Mapping[str, np.ndarray] = MappingProxyType({})


class Seen(NamedTuple):
  """How examples were seen that are predicted on.

  Attributes:
    rows: that were made of them.
    fields: of the data that the model was trained on.
    top: how many of the likeliest classes are named.
  """

  rows: Any
  fields: Fields
  top: int = 5


@dataclasses.dataclass(frozen=True)
class Context:
  """What a loss gets besides the model and a part of the batch.

  Attributes:
    extra: state of the task, of `Task.start` and `Task.update`.
    totals: of the whole batch, at least 1 each; see `Task.totals`.
    hyper: scalars by the dotted names of fields of type `Schedule`: 'task.temperature'.
    noise: `nn.noise.Noise` of what is dropped in the model.
    step: counted from 0.
    frozen: parameters that are not trained, and networks of the task.
    sized: makes of a model the one of the step's sizes of images and patches.
  """

  extra: Mapping[str, Any]
  totals: Mapping[str, Any]
  hyper: Mapping[str, Any]
  noise: Any
  step: Any
  frozen: Any
  sized: Callable[[Any], Any] = lambda model: model

  @property
  def networks(self) -> Mapping[str, Any]:
    """Those of the task, by the names of its fields; see `networks.Network`."""
    return self.frozen.networks

  def whole(self, model: Any) -> Any:
    """A tree of trainable parameters with the frozen ones, at the sizes of the step.

    It is what a loss gets as its model; a teacher in `extra` is made whole by it, too.
    """
    return self.sized(tree.merge(model, self.frozen))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """An objective: a frozen dataclass, whose fields are its configuration.

  What it draws at random (crops, masks, mixes) it draws in `augment`, for the whole batch; what
  is dropped in a model comes from `Context.noise`. Then a batch may be cut into parts, of any
  number, and nothing changes but rounding.

  Attributes:
    frozen: regular expressions of whole names of parameters that are not trained: they have no
      gradient and no optimizer state, do not count in the norm of the gradient, and are saved once.
    frozen_dtype: of these parameters; 'bfloat16' halves them.
    coupled: whether the loss of an example depends on the other examples of the batch. Such a task
      cannot be computed in parts, unless it is a `Coupled` one.
    remedy: what may be done about `signs`, a sentence.
    one_size: whether images are all brought to the size of the model.
    classed: the field whose classes the model has outputs for; '' for none.
    traced: its fields, numbers that are no `Schedule`, on which nothing depends but the arithmetic
      of its loss and its update, neither rows nor predictions: lanes may differ in them.
  """

  frozen: tuple[str, ...] = ()
  frozen_dtype: str = 'float32'
  coupled: ClassVar[bool] = False
  remedy: ClassVar[str] = ''
  one_size: ClassVar[bool] = True
  classed: ClassVar[str] = ''
  traced: ClassVar[tuple[str, ...]] = ()

  def __post_init__(self):
    if self.frozen_dtype not in DTYPES:
      raise RunError(
        f'unknown task.frozen_dtype {self.frozen_dtype!r}: {suggest(self.frozen_dtype, DTYPES)}'
      )

  @property
  def networks(self) -> dict[str, Network]:
    """Its fields that are networks of its own, by name."""
    return {name: value for name, value in vars(self).items() if isinstance(value, Network)}

  def measured(self, model: Any, fields: Fields) -> tuple[Image, ...]:
    """Images of which mean and spread of each band are to be in the fields that `settled` gets.

    Args:
      model: resolved.
      fields: of the examples, those of the first training data.
    """
    del model, fields
    return ()

  @property
  def files(self) -> tuple[str, ...]:
    """Paths of what belongs to the model: a run keeps copies."""
    return ()

  def without_files(self) -> Self:
    """The task with something of the same size for `files` that are needed and not given.

    For plans, in which only sizes matter.
    """
    return self

  def begun(self, theirs: Mapping[str, Any], path: str, tower: str) -> tuple[Self, list[str]]:
    """The task of a run that starts from a checkpoint, and lines for people about it.

    Args:
      theirs: what the checkpoint was trained for, its name and fields; empty if it does not say so.
      path: of the checkpoint.
      tower: of the model, that starts from it, by name; '' for the whole.

    Raises:
      RunError: if the checkpoint cannot do this.
    """
    del theirs, path, tower
    return self, []

  def again(self, theirs: Mapping[str, Any]) -> Self:
    """The task of a run that goes on, or is judged; `theirs` is what its checkpoints say of it."""
    del theirs
    return self

  def settled(self, fields: Fields) -> Self:
    """The task with what only the data can tell in fields that are unset.

    Args:
      fields: of the examples, those of the first training data.
    """
    del fields
    return self

  def fitted(self, model: Any, fields: Fields) -> Any:
    """The configuration of the model with what is unset, and neither its variant nor the model that

    the run starts from knows, filled in.

    Args:
      model: not resolved.
      fields: as for `adapt`, which is called next.
    """
    del fields
    return model

  def adapt(self, model: Any, fields: Fields) -> Any:
    """The configuration of the model, with what only the data can tell filled in.

    Args:
      model: resolved.
      fields: of the examples, those of the first training data.

    Raises:
      RunError: for a model, or data, that cannot do this.
    """
    del fields
    return model

  def notes(self, model: Any, fields: Fields) -> list[str]:
    """Lines for people about what was decided; arguments as for `card`."""
    del model, fields
    return []

  def card(self, model: Any, crop: Any, fields: Fields) -> Card:
    """What the trained model will expect of images.

    Args:
      model: its configuration, as `adapt` gave it.
      crop: of the first evaluation, or of training.
      fields: as for `adapt`.
    """
    del model, crop, fields
    return Card('vit_jax', (1, 1))

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """What becomes of an example: an object of `data.rows`.

    Args:
      model: its configuration, resolved.
      fields: as for `adapt`.
      view: of training or of an evaluation, without a size; see `data.views`.
      train: for which of the two.
    """
    raise NotImplementedError

  def passes(self, model: Any) -> list[Pass]:
    """What a step computes for an example, for MFU and plans.

    Args:
      model: its configuration, as `adapt` gave it.
    """
    return [Pass(model)]

  def verify(self, model: Callable[[], Any], source: Source) -> None:
    """Called once before the first step of a run.

    Args:
      model: gives the whole model.
      source: the training data.

    Raises:
      RunError: if they do not go together, as only values tell.
    """
    del model, source

  def start(self, model: Any, key: Any) -> dict[str, Any]:
    """State of the task before the first step.

    Args:
      model: its trainable parameters, a tree of which a copy may be kept.
      key: for random numbers.
    """
    del model, key
    return {}

  def augment(self, batch: Batch, key: Any, hyper: Mapping[str, Any]) -> Batch:
    """A batch as the loss wants it, on the devices; without a key as in evaluation."""
    del key, hyper
    return batch

  def totals(self, batch: Batch) -> dict[str, Any]:
    """What sums are divided by: numbers of examples, boxes, tokens in the whole batch."""
    return {'examples': batch['mask'].sum()}

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[Any, Sums, dict[str, Any]]:
    """The objective on a part of a batch.

    Returns:
      The scalar to be minimised, divided by totals already, so that parts add up; sums to report,
      among them 'loss'; and sums for `update`, of whatever is not reported.
    """
    raise NotImplementedError

  def kept(self, model: Any) -> Any:
    """Trainable parameters after a step of the optimizer, within their bounds."""
    return model

  def update(self, extra: Any, model: Any, seen: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """State of the task after a step.

    Args:
      extra: the state before.
      model: trainable parameters after the step of the optimizer.
      seen: the third result of `loss`, added up over the batch.
      ctx: of the step.
    """
    del model, seen, ctx
    return extra

  def rates(self, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Factors on learning rates in this step, by regular expressions of names of parameters."""
    del hyper
    return {}

  def report(self, extra: Any, model: Any, seen: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """What else is reported of a step: scalars that are no means over the batch.

    Args:
      extra: the state after the step.
      model, seen, ctx: as for `update`.
    """
    del extra, model, seen, ctx
    return {}

  def signs(self, model: Any, values: Mapping[str, float], examples: int) -> dict[str, str]:
    """What is wrong with a run, by name: a sentence each. Plain Python; two reports must agree.

    Args:
      model: its configuration, as `adapt` gave it.
      values: that are reported.
      examples: of a batch.
    """
    del model, values, examples
    return {}

  @property
  def stops(self) -> bool:
    """Whether `signs` end the run."""
    return False

  def predict(self, model: Any, batch: Batch) -> dict[str, Any]:
    """What the model says of a batch that went through `augment`: arrays of the batch's length."""
    raise NotImplementedError

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """What was predicted for an example, for people: names, units, places in the image. No JAX.

    Args:
      outputs: of `predict`, for this example.
      example: as its source has it, perhaps without what is predicted.
      seen: how it was seen.
    """
    raise NotImplementedError(f'{type(self).__name__} does not say what its outputs mean')

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """A picture of a prediction, uint8 (height, width, 3); with the truth, if the example has it.

    By default the image over the facts.
    """
    picture = picture_of(example)
    lines = [(line, pictures.INK) for line in self.lines(prediction)]
    return pictures.captioned(pictures.resized(picture, pictures.scale(*picture.shape[:2])), lines)

  def lines(self, prediction: Prediction) -> list[str]:
    """A prediction as lines of text."""
    return [f'{name}: {value}' for name, value in prediction.facts.items()]

  def judged(self, state: Any, frozen: Any) -> Any:
    """The model that is evaluated and exported, put together of what is in the state and frozen."""
    return tree.merge(state.model if state.ema is None else state.ema, frozen)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coupled(Task):
  """A task whose loss depends on all examples at once, by an embedding of each.

  Computed in parts, a step embeds all of them first, takes the gradient of `joint` with respect to
  the embeddings, and embeds them once more to pass that on (Gao et al. 2021, 'GradCache').
  """

  coupled = True

  def embed(self, model: Any, part: Batch, ctx: Context) -> Any:
    """Of each example what `joint` needs: float arrays with the leading axis of the batch."""
    raise NotImplementedError

  def joint(self, model: Any, z: Any, ctx: Context) -> tuple[Any, Sums, dict[str, Any]]:
    """As `Task.loss`, of the embeddings of the whole batch."""
    raise NotImplementedError

  def loss(self, model: Any, part: Batch, ctx: Context) -> tuple[Any, Sums, dict[str, Any]]:
    """See `Task`."""
    return self.joint(model, self.embed(model, part, ctx), ctx)


def picture_of(example: Example, field: str = 'image') -> np.ndarray:
  """The image of an example as people look at it: uint8 (height, width, 3)."""
  from vit_jax.data import preprocess

  return pictures.shown(preprocess.whole(example[field]))


def average(old: Any, new: Any, decay: Any) -> Any:
  """decay * old + (1 - decay) * new, leaf by leaf: a moving average of parameters."""
  return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, old, new)
