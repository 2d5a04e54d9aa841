"""Losses of detection by set prediction, beside those of transformers."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from experiments.benchmarks.torchvision import define_operators
from vit_jax.tasks import boxes, matching

define_operators()

from transformers.loss import loss_deformable_detr as deformable  # noqa: E402
from transformers.loss import loss_for_object_detection as detr  # noqa: E402

BATCH, LAYERS, QUERIES, TARGETS, CLASSES = 3, 3, 7, 5, 4


def drawn(near, seed=0):
  """What queries say, float32 NumPy, and targets, one of which has none."""
  rng = np.random.default_rng(seed)
  there = np.arange(TARGETS) < np.array([[5], [0], [2]])
  label = rng.integers(0, CLASSES, (BATCH, TARGETS)).astype(np.int32)
  centre = rng.uniform(0.2, 0.8, (BATCH, TARGETS, 4)) * [1, 1, 0.5, 0.5]
  said = rng.uniform(0.1, 0.9, (BATCH, LAYERS, QUERIES, 4))
  if near:
    for layer in range(LAYERS):
      for image in range(BATCH):
        said[image, layer, rng.permutation(QUERIES)[:TARGETS]] = centre[image]
    said = np.clip(said + rng.normal(scale=0.02, size=said.shape), 0.01, 0.99)
  logits = rng.normal(scale=2, size=(BATCH, LAYERS, QUERIES, CLASSES + 1))
  found = logits.astype(np.float32), said.astype(np.float32)
  return found, matching.Targets(centre.astype(np.float32), label, there, np.ones(BATCH))


def theirs(function, logits, said, targets):
  """Their loss, its terms by name, and gradients."""
  logits, said = (torch.tensor(x, requires_grad=True) for x in (logits, said))
  config = types.SimpleNamespace(
    class_cost=1, bbox_cost=5, giou_cost=2, num_labels=CLASSES, eos_coefficient=0.1,
    focal_alpha=0.25, auxiliary_loss=True, bbox_loss_coefficient=5, giou_loss_coefficient=2,
    decoder_layers=LAYERS,
  )  # fmt: skip
  labels = [
    {'class_labels': torch.tensor(label[there]).long(), 'boxes': torch.tensor(box[there])}
    for box, label, there in zip(targets.boxes, targets.label, targets.there, strict=True)
  ]
  every = logits.unbind(1), said.unbind(1)
  loss, terms, _ = function(
    every[0][-1], labels, 'cpu', every[1][-1], config, outputs_class=every[0],
    outputs_coord=every[1],
  )  # fmt: skip
  loss.backward()
  return loss.item(), {n: t.item() for n, t in terms.items()}, (logits.grad, said.grad)


@pytest.mark.parametrize('near', [False, True])
@pytest.mark.parametrize('nothing', [True, False])
def test_losses_of_sets(nothing, near):
  """DETR's, of a softmax with no object, and Deformable DETR's, which is focal."""
  (logits, said), targets = drawn(near)
  logits = logits if nothing else logits[..., :CLASSES]
  weights = matching.Weights(1.0, 5.0, 2.0)
  objects = int(targets.there.sum())

  @jax.jit
  def ours(logits, said):
    place = matching.matched(logits, said, targets, weights, nothing=nothing)
    found = matching.losses(logits, said, targets, place, weights, nothing=nothing)
    total = matching.class_total(QUERIES, BATCH, objects, weights) if nothing else objects
    terms = found.classes / total, found.distance / objects, found.overlap / objects
    whole = sum(w * term.sum() for w, term in zip(weights[:3], terms, strict=True))
    return whole, terms

  function = deformable.DeformableDetrForObjectDetectionLoss
  function = detr.ForObjectDetectionLoss if nothing else function
  want, named, gradients = theirs(function, logits, said, targets)
  (got, terms), own = jax.value_and_grad(ours, (0, 1), has_aux=True)(logits, said)
  assert float(got) == pytest.approx(want, rel=1e-5)
  for name, each in zip(('loss_ce', 'loss_bbox', 'loss_giou'), terms, strict=True):
    they = [named[f'{name}_{layer}'] for layer in range(LAYERS - 1)] + [named[name]]
    np.testing.assert_allclose(each, they, rtol=1e-5, err_msg=name)
  for mine, their in zip(own, gradients, strict=True):
    np.testing.assert_allclose(mine, their.numpy(), rtol=1e-4, atol=1e-7)


def test_generalised_overlap():
  """Of any pairs of boxes, and the gradient of it."""
  rng = np.random.default_rng(0)
  a, b = (np.sort(rng.random((40, 2, 2)), axis=1).reshape(40, 4).astype(np.float32) for _ in 'ab')
  a[:4], b[:4] = [0.1, 0.1, 0.9, 0.9], [0.2, 0.3, 0.5, 0.6]  # one inside the other
  tensor = torch.tensor(a, requires_grad=True)
  want = detr.generalized_box_iou(tensor, torch.tensor(b)).diag()
  want.sum().backward()
  got, pull = jax.vjp(lambda x: boxes.overlaps(x, jnp.asarray(b))[1], jnp.asarray(a))
  np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-5, atol=1e-6)
  assert tensor.grad is not None
  np.testing.assert_allclose(pull(jnp.ones(40))[0], tensor.grad.numpy(), rtol=1e-4, atol=1e-5)
