"""Heads and losses of maps, against their definitions; published sizes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.architecture import MaskTransformerArchitecture, UPerNetArchitecture, ViTArchitecture
from vit_jax.core.errors import RunError
from vit_jax.costs import flops
from vit_jax.data.fields import Field
from vit_jax.models.segmenter import MaskTransformerConfig
from vit_jax.models.upernet import UPerNetConfig, averaged
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import tree
from vit_jax.tasks import pixels
from vit_jax.tasks.segmentation import Segmentation

SMALL = dict(
  variant='mu/4', image_size=(16, 24), depth=4, width=16, mlp_dim=32, num_heads=2,
)  # fmt: skip
MAP = {'image': Field('image', dtype='uint8', channels=3), 'map': Field('map', tuple('abcde'))}


def said(seed=0, batch=3):
  """Logits, labels of four of five classes, which pixels have one: none of the last image."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 2, (batch, 6, 5, 5)).astype(np.float32)
  label = rng.integers(0, 4, (batch, 6, 5))
  valid = (rng.random(label.shape) < 0.8).astype(np.float32)
  valid[-1] = 0
  return logits, label, valid


def softmax(x):
  e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_dice_is_that_of_the_classes_of_an_image():
  logits, label, valid = said()
  want = []
  for p, t, there in zip(softmax(logits), label, valid > 0, strict=True):
    each = [
      1 - (2 * p[..., c][there & (t == c)].sum() + 1)
      / (p[..., c][there].sum() + (there & (t == c)).sum() + 1)
      for c in range(5) if (there & (t == c)).any()
    ]  # fmt: skip
    want.append(np.mean(each) if each else 0)
  np.testing.assert_allclose(pixels.dice(logits, label, valid), want, rtol=1e-5)


def test_lovasz_is_the_extension_of_the_jaccard_loss():
  """By its definition: of sets of mispredicted pixels that grow, the gain of the loss of each."""
  logits, label, valid = said(1)
  want = []
  for p, t, there in zip(softmax(logits), label, valid > 0, strict=True):
    each = []
    for c in range(5):
      own = set(zip(*np.nonzero(there & (t == c)), strict=True))
      if not own:
        continue
      error = {at: abs((at in own) - p[(*at, c)]) for at in zip(*np.nonzero(there), strict=True)}
      order = sorted(error, key=error.get, reverse=True)
      sets = [set(order[:n]) for n in range(len(order) + 1)]
      each.append(sum(
        error[at] * (len(after) / len(own | after) - len(before) / len(own | before))
        for at, (before, after) in zip(order, itertools.pairwise(sets), strict=True)
      ))  # fmt: skip
    want.append(np.mean(each) if each else 0)
  np.testing.assert_allclose(pixels.lovasz(logits, label, valid), want, rtol=1e-4)
  # Right and certain, of whole classes: nothing is left.
  sure = 50.0 * np.eye(5, dtype=np.float32)[label]
  for loss in (pixels.dice, pixels.lovasz):
    np.testing.assert_allclose(loss(sure, label, valid), 0, atol=1e-6)


@pytest.mark.parametrize('scale', [0.0, 1.0, 300.0])
def test_gradients_are_finite(scale):
  logits, label, valid = said(2)

  def total(x):
    each = [pixels.dice(x, label, valid), pixels.lovasz(x, label, valid)]
    points = [(pixels.crossentropy(x, label, gamma) * valid).sum() for gamma in (0.0, 0.5, 2.0)]
    return sum(map(jnp.sum, each)) + sum(points)

  value, slope = jax.value_and_grad(total)(jnp.asarray(logits * scale))
  assert np.isfinite(value)
  assert np.isfinite(slope).all()
  assert scale == 300 or np.abs(slope[:2]).max() > 1e-3
  assert not slope[2].any()  # an image without labels


def test_weights_of_classes():
  """The weighted mean over pixels; a batch in parts has the same loss, in all its terms."""
  logits, label, valid = said(3)
  task = Segmentation(class_weights=(1.0, 2.0, 0.0, 4.0, 1.0), focal=1.5, dice=0.5, lovasz=0.25)
  labels = np.where(valid > 0, label, 255).astype(np.uint8)
  batch = {'image': np.zeros((3, 1)), 'map': labels, 'mask': np.ones(3, np.float32)}

  class Model:
    config = None

    def said(self, images, key):
      return [jnp.asarray(logits[: len(images)] if len(images) > 1 else logits[self.at][None])]

  totals = {n: jnp.maximum(t, 1) for n, t in task.totals(batch).items()}
  weight = np.array(task.class_weights)[label] * valid
  assert float(totals['weight']) == pytest.approx(weight.sum())
  ctx = type('Ctx', (), dict(totals=totals, noise=None))
  model = Model()
  whole, sums, _ = task.loss(model, batch, ctx)
  p = np.take_along_axis(softmax(logits), label[..., None], -1)[..., 0]
  want = ((1 - p) ** 1.5 * -np.log(p) * weight).sum() / weight.sum()
  assert float(sums['loss'][0] / totals['weight']) == pytest.approx(want, rel=1e-5)
  parts = 0
  for model.at in range(3):
    one = {n: x[model.at : model.at + 1] for n, x in batch.items()}
    parts += task.loss(model, one, ctx)[0]
  assert float(parts) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.slow
def test_heads_give_what_they_count():
  """Parameters as counted, logits of every place, and a second head that only training has."""
  images = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
  for config, shapes in (
    (MaskTransformerConfig(ViTConfig(**SMALL), 5), [(2, 4, 6, 5)]),
    (UPerNetConfig(ViTConfig(**SMALL), 5, channels=8, auxiliary_channels=8),
     [(2, 16, 24, 5), (2, 4, 6, 5)]),
    (UPerNetConfig(ViTConfig(**SMALL), 5, channels=8, auxiliary=0.0, norm='none'),
     [(2, 16, 24, 5)]),
  ):  # fmt: skip
    model = config.create(nnx.Rngs(0))
    found = model.said(images)
    assert [each.shape for each in found] == shapes
    np.testing.assert_array_equal(model(images), found[0])
    count = sum(leaf.size for leaf in tree.flatten(model).values())
    assert count == flops.costs(model.config).parameters()
    # Any other size of whole patches.
    assert model(images[:, :8, :12]).shape[0] == 2


def test_a_published_size():
  """BEiT-B of 640 pixels with UPerNet has 163,407,980 parameters in transformers.

  There the first transposed convolution has a bias besides its norm, and the encoder no last norm.
  """
  encoder = ViTArchitecture('beit:B/16', image_size=(640, 640))
  config = UPerNetArchitecture(encoder, 150, layers=(3, 5, 7, 11), channels=768).resolve()
  assert flops.costs(config).parameters() == 163_407_980 - 768 + 2 * 768
  # Seg-L-Mask/16 has 334 M by its README, of which 1 M are a head for ImageNet that nothing reads.
  encoder = ViTArchitecture('L/16', image_size=(640, 640))
  config = MaskTransformerArchitecture(encoder, 150).resolve()
  assert round((flops.costs(config).parameters() + 1000 * 1025) / 1e6) == 334
  assert (config.decoder.num_heads, config.decoder.queries) == (16, 150)


def test_bins_overlap_where_they_do_not_divide():
  x = np.arange(5.0).reshape(1, 5, 1, 1).repeat(2, 2)
  np.testing.assert_allclose(averaged(jnp.asarray(x), 2)[0, :, 0, 0], [1, 3])  # 0-2, 2-4
  np.testing.assert_allclose(averaged(jnp.asarray(x), 3)[0, :, 1, 0], [0.5, 2, 3.5])


def test_what_is_refused():
  for make, message in (
    (lambda: Segmentation(class_weights=(0.0, 0.0)), 'some positive'),
    (lambda: Segmentation(lovasz=-1.0), 'must not be negative'),
    (lambda: Segmentation(class_weights=(1.0,) * 3).adapt(
      UPerNetArchitecture(ViTArchitecture(**SMALL)).resolve(), MAP), 'has 3 values.*5 classes'),
    (lambda: UPerNetArchitecture(ViTArchitecture(**SMALL), layers=(0, 1, 2, 4)).resolve(),
     'of the 4'),
    (lambda: UPerNetArchitecture(ViTArchitecture(**SMALL), norm='batch').resolve(),
     'unknown model.norm'),
    (lambda: MaskTransformerArchitecture(
      ViTArchitecture(**SMALL), decoder=ViTArchitecture('', num_classes=3)).resolve(),
     'neither classes'),
  ):  # fmt: skip
    with pytest.raises(RunError, match=message):
      make()
  adapted = Segmentation().adapt(
    MaskTransformerArchitecture(ViTArchitecture(**SMALL)).resolve(), MAP
  )
  assert adapted.decoder.queries == 5
