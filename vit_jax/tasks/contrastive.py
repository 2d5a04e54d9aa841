"""Images and the texts that belong to them: which belong together, of all pairs of a batch."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from etils import epy

from vit_jax.architecture.towers import TwoTowersArchitecture
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs.step import Pass
from vit_jax.data.examples import Example, Source
from vit_jax.data.fields import require
from vit_jax.data.rows import Rows
from vit_jax.data.rows.columns import Vector
from vit_jax.data.rows.texts import Caption, Captions, Described, texts_of
from vit_jax.data.sources import embedded
from vit_jax.data.views import View
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.images import UNSET
from vit_jax.tasks.reading import Reading, like, tokenizer_of
from vit_jax.tasks.task import Batch, Context, Coupled, Fields, Prediction, Seen, Sums
from vit_jax.text.plain import Blank

# Configurations are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import jax.numpy as jnp
  import numpy as np

  from vit_jax.models import two_towers
  from vit_jax.nn import pairs, sharding, tree

LOSSES = ('softmax', 'sigmoid')
FORMS = ('dense', 'ring')
DUPLICATES = ('left_out', 'apart')
_ALIKE = 0.99  # cosine of the same features, computed in another type


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrastive(Reading, Coupled):
  """Trains an image and a text tower to agree on pairs that belong together, and on no others.

  Whatever the mesh, the loss is one number of the whole batch: that of all images with all texts.
  With `--config.optim.accumulate` it still is, at the price of a second forward pass.

  With task.frozen=('image/.*',) the image tower has no gradient and no optimizer state (LiT, Zhai
  et al. 2022); with model.image.patch_dropout it sees a part of the patches (FLIP, Li et al. 2023).

  Attributes:
    loss_of: 'softmax' (CLIP, Radford et al. 2021) or 'sigmoid' (SigLIP, Zhai et al. 2023).
    form: 'dense', with the logits of the images of a device with all texts, or 'ring', in which
      texts go from device to device, and the logits are those of a block.
    block: of a ring, texts whose logits are there at a time on a device; 0 for those of one device.
    duplicates: two texts of a batch that are the same are 'left_out' of what does not belong
      together, or kept 'apart' like others, as in the papers.
    most_scale: the scale of the logits stays below; 0 for no limit; unset: 100 with a softmax, as
      in CLIP, and no limit with a sigmoid: published SigLIPs have 110 and more.
    captions: of an example, that evaluations look at, the first so many. Training draws one of all.
    vectors: a field with what the locked image tower has made of images, which are then not looked
      at: of a table that `vit_jax.embed` has written, 'vector'.
  """

  loss_of: str = 'softmax'
  form: str = 'dense'
  block: int = 0
  duplicates: str = 'left_out'
  most_scale: float = UNSET
  captions: int = 5
  vectors: str = ''
  field: ClassVar[str] = 'text'

  def __post_init__(self):
    super().__post_init__()
    for name, known in (('loss_of', LOSSES), ('form', FORMS), ('duplicates', DUPLICATES)):
      if (value := getattr(self, name)) not in known:
        raise RunError(f'unknown task.{name} {value!r}: {suggest(value, known)}')
    if self.block < 0 or (self.block and self.form != 'ring'):
      raise RunError(f'task.block={self.block} is a number of texts of task.form=ring')
    if self.most_scale and not 1 <= self.most_scale < math.inf:
      raise RunError(f'task.most_scale={self.most_scale} must be at least 1, or 0 for no limit')
    if self.vectors and self.measure:
      raise RunError('task.measure is of images, and task.vectors are there instead of them')
    if self.captions < 1:
      raise RunError(f'task.captions={self.captions} must be at least 1')

  def begun(self, theirs: Mapping[str, Any], path: str, tower: str) -> tuple[Self, list[str]]:
    """See `Task`: a text tower keeps its tokenizer, whose file need not be given.

    Raises:
      RunError: for another tokenizer.
    """
    it = tokenizer_of(theirs)
    if it is None or tower not in ('', 'text') or isinstance(self.tokenizer, Blank):
      return self, []
    if type(self.tokenizer) is not type(it):
      raise RunError(
        f'{path} reads texts by the tokenizer {it.kind}, and its text tower does not know the '
        f'numbers of another one: --config.task.tokenizer.name={it.kind}, not '
        f'{self.tokenizer.kind}'
      )
    own = like(self.tokenizer, it)
    if it.known and dataclasses.replace(own, length=it.length, known='').digest != it.known:
      raise RunError(
        f'task.tokenizer is another one than that of {path}, whose text tower does not know its '
        f'numbers: leave out {"task.tokenizer.file" if own.files else "its vocabulary"}'
      )
    lines = [] if own.length == it.length else [
      f'texts have {own.length} tokens, those that {path} was trained with {it.length}'
    ]  # fmt: skip
    return dataclasses.replace(self, tokenizer=dataclasses.replace(own, known='')), lines

  def words(self, fields: Fields) -> tuple[str, ...]:
    """See `Reading`: of its field."""
    return fields[self.field].names if self.field in fields else ()

  def fitted(self, model: Any, fields: Fields) -> Any:
    """See `Task`: a text tower for the tokens there are."""
    del fields
    if not isinstance(model, TwoTowersArchitecture):
      raise RunError(f'task.name=contrastive needs model.name=two_towers, not {model.kind}')
    own = dict(
      vocab_size=self.tokenizer.size, context_length=self.tokenizer.length, eot=self.tokenizer.end
    )
    unset = {name: value for name, value in own.items() if getattr(model.text, name) is None}
    return dataclasses.replace(model, text=dataclasses.replace(model.text, **unset))

  def adapt(self, model: Any, fields: Fields) -> Any:
    """See `Task`; raises RunError for towers that cannot read the tokens, and an idle bias."""
    text, tokenizer = model.text, self.tokenizer
    if tokenizer.size > text.vocab_size:
      raise RunError(
        f'the tokenizer has {tokenizer.size:,} tokens, and the text tower {text.vocab_size:,} '
        '(model.text.vocab_size): it was trained with another one'
      )
    if tokenizer.length > text.context_length:
      raise RunError(
        f'task.tokenizer.length={tokenizer.length} is more than the {text.context_length} tokens '
        'of the text tower (model.text.context_length)'
      )
    if text.pool == 'eot' and text.eot >= 0 and text.eot != tokenizer.end:
      raise RunError(
        f'the text tower looks at token {text.eot} (model.text.eot), and texts of the tokenizer '
        f'end with {tokenizer.end}'
      )
    if text.pool == 'eot' and text.eot < 0 and tokenizer.end != tokenizer.size - 1:
      ends = f'end with {tokenizer.end}' if tokenizer.end >= 0 else 'have no end'
      raise RunError(
        'the text tower looks at the largest token of a text (model.text.eot=-1), and texts of the '
        f'tokenizer {ends}: --config.model.text.pool=last, or an end that is token '
        f'{tokenizer.size - 1:,}'
      )
    if model.logit_bias and self.loss_of == 'softmax':
      raise RunError(
        'model.logit_bias: a softmax does not feel a bias, which would never be trained: '
        '--config.model.logit_bias=False, or --config.task.loss_of=sigmoid'
      )
    if self.vectors:
      self._check_vectors(model, fields)
    return super().adapt(model, fields)

  def _check_vectors(self, model: Any, fields: Fields) -> None:
    require(fields, {self.vectors: 'vector'}, 'the data')
    if not any(re.fullmatch(pattern, 'image/embed/kernel') for pattern in self.frozen):
      raise RunError(
        f'task.vectors={self.vectors}: features stand for an image tower that is not trained: '
        '--config.task.frozen="(\'image/.*\',)"'
      )
    width, there = model.image.num_classes or model.image.width, len(fields[self.vectors].names)
    if there != width:
      raise RunError(
        f'task.vectors={self.vectors}: {there} numbers stand for what the image tower gives, which '
        f'are {width}: features of another model, or of another kind'
      )

  def notes(self, model: Any, fields: Fields) -> list[str]:
    """See `Task`."""
    lines = super().notes(model, fields)
    if self.vectors:
      lines.append(
        f'images are not looked at: {self.vectors} is what the image tower has made of them'
      )
    return lines

  def verify(self, model: Callable[[], Any], source: Source) -> None:
    """See `Task`: features of a table are those of the image tower, or RunError."""
    table = embedded.table_of(source) if self.vectors else None
    if table is None or table.sample is None:
      return
    towers = model()
    tower = towers.config.image
    pixels = embedded.sample_image((*tower.image_size, tower.in_channels))
    pixels = np.stack([pixels] * sharding.shards('batch'))

    def see(towers: Any) -> jax.Array:
      images = sharding.reshard(jnp.asarray(pixels), 'batch', None, None, None)
      return sharding.whole(towers.encode_image(self.normalize(images)))

    wanted = np.array(table.sample)
    like = float(np.asarray(jax.jit(see)(towers))[0] @ wanted / max(np.linalg.norm(wanted), 1e-12))
    if not like > _ALIKE:
      size = 'x'.join(map(str, table.card['preprocessing']['size']))
      raise RunError(
        f'{table.name} has no features of the image tower: of a test image theirs have a cosine of '
        f'{like:.2f}. They are the {table.feature} of {table.card["checkpoint"]}, for images of '
        f'{size}, and the tower must start from it: --config.inits.image'
      )

  def rows(self, model: Any, fields: Fields, view: View, *, train: bool) -> Rows:
    """See `Task`."""
    texts: Any = Captions(self.tokenizer, self.captions, self.field)
    drawn = (Caption(self.tokenizer, self.field),)
    if self.vectors:
      vector = Vector(len(fields[self.vectors].names), self.vectors)
      return Described((vector,), drawn) if train else Described((vector, texts))
    if train:
      return self.columns(model, fields, view, drawn=drawn)
    return self.columns(model, fields, view, texts)

  def passes(self, model: Any) -> list[Pass]:
    """See `Task`: of both towers, or of that which reads. All pairs together are far less."""
    return [Pass(model.text if self.vectors else model)]

  def augment(self, batch: Batch, key: Any, hyper: Mapping[str, Any]) -> Batch:
    """See `Task`."""
    return super().augment(batch, key, hyper) if 'image' in batch else batch

  def see(self, model: Any, batch: Batch, noise: Any = None) -> jax.Array:
    """Unit vectors of the images of a batch, which may be there already."""
    if self.vectors and self.vectors in batch:
      return two_towers.unit(batch[self.vectors])
    return model.encode_image(batch['image'], key=noise)

  def embed(self, model: Any, part: Batch, ctx: Context) -> Any:
    """See `Coupled`."""
    of_image, of_text = ctx.noise.split()
    return {
      'image': self.see(model, part, of_image),
      'text': model.encode_text(part['tokens'], key=of_text),
      'key': part['same'] if self.duplicates == 'left_out' else part['same'][:, :0],
      'real': part['mask'],
    }  # fmt: skip

  def joint(self, model: Any, z: Any, ctx: Context) -> tuple[jax.Array, Sums, dict[str, Any]]:
    """The loss; reported with it are the shares of images, and of texts, whose own is the first."""
    scale, bias = model.scale, model.bias
    given = pairs.Pairs(z['image'], z['text'], z['key'], z['real'])
    if self.form == 'dense':
      found = pairs.dense(self.loss_of, given, scale, bias)
    else:
      found = pairs.around(self.loss_of, self.block, given, scale, bias)
    examples = ctx.totals['examples']
    total = found.loss.sum()
    sums = {
      'loss': (total, 'examples'),
      'text_right': (found.text_right.sum(), 'examples'),
      'image_right': (found.image_right.sum(), 'examples'),
    }
    return total / examples, sums, {}

  def report(self, extra: Any, model: Any, seen: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
    """See `Task`: the scale of the logits, and their bias."""
    del extra, seen
    whole = ctx.whole(model)
    found = {'scale': whole.scale}
    return found | ({'bias': whole.bias} if whole.config.logit_bias else {})

  def kept(self, model: Any) -> Any:
    """See `Task`: the scale of the logits stays below `most_scale` (Radford et al. 2021, 2.5).

    A bound within the loss would leave no gradient to come back from it.
    """
    leaves, most = tree.flatten(model), self.most_scale
    if most is None:
      most = 100.0 if self.loss_of == 'softmax' else 0.0
    if most and 'logit_scale' in leaves:
      leaves['logit_scale'] = jnp.minimum(leaves['logit_scale'], math.log(most))
    return tree.unflatten(model, leaves)

  def predict(self, model: Any, batch: Batch) -> dict[str, jax.Array]:
    """Unit vectors: 'image', float32 (batch, width), and 'text' (batch, captions, width)."""
    found = {'image': self.see(model, batch)}
    if 'tokens' in batch:
      found |= {'text': self.read(model, batch['tokens']), 'known': batch['tokens_known']}
    return found

  def read(self, model: Any, tokens: jax.Array) -> jax.Array:
    """Unit vectors of several texts of each example: (batch, n, length) -> (batch, n, width)."""
    flat = tokens.reshape(-1, tokens.shape[-1], out_sharding=sharding.spec('batch', None))
    vectors = model.encode_text(flat)
    shape = *tokens.shape[:2], vectors.shape[-1]
    return vectors.reshape(shape, out_sharding=sharding.spec('batch', None, None))

  def decode(self, outputs: Mapping[str, np.ndarray], example: Example, seen: Seen) -> Prediction:
    """See `Task`: how much the image is like each of its texts; or its class."""
    if 'logits' in outputs:
      return self._classes.decode(outputs, example, seen)
    texts = texts_of(example, self.field) if self.field in example else ()
    like = outputs['text'] @ outputs['image'] if texts else ()
    return Prediction({
      'texts': [{'text': text, 'cosine': float(x)} for text, x in zip(texts, like, strict=False)]
    })  # fmt: skip

  def lines(self, prediction: Prediction) -> list[str]:
    """See `Task`."""
    if 'classes' in prediction.facts:
      return self._classes.lines(prediction)
    return [f'{each["cosine"]:6.3f}  {each["text"]}' for each in prediction.facts['texts']]

  def draw(self, prediction: Prediction, example: Example, seen: Seen) -> np.ndarray:
    """See `Task`."""
    if 'image' not in example:
      raise NotImplementedError('there is no image to draw on')
    if 'classes' in prediction.facts:
      return self._classes.draw(prediction, example, seen)
    return super().draw(prediction, example, seen)

  @property
  def _classes(self) -> Classification:
    """What is predicted by names of classes."""
    loss = 'softmax' if self.loss_of == 'softmax' else 'sigmoid_mean'
    return Classification(loss_of=loss, mean=self.mean, std=self.std)
