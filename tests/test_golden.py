"""The results of transformers and timm, without either: see tests/golden."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import vit_jax
from tests import golden
from vit_jax.models.vit import Patches

REFERENCES = json.loads((golden.FOLDER / 'references.json').read_text())


def folder(path, known):
  save_file(golden.weights(known['shapes']), path / 'model.safetensors')
  (path / 'config.json').write_text(json.dumps(known['config']))
  return path


def close(got, want, name):
  # Projections of arrays with entries of size `want[0]`.
  np.testing.assert_allclose(golden.digest(got), want, rtol=0, atol=2e-5 * want[0], err_msg=name)


@pytest.mark.parametrize(
  'name', [n for n in REFERENCES if not n.startswith(('towers/', 'queries/'))]
)
def test_everything_inside(name, tmp_path):
  known = REFERENCES[name]
  model = vit_jax.load(folder(tmp_path, known))
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda model, x: model.features(x))(model, golden.images(known['image']))
  for part, want in known['outputs'].items():
    close(got[part], want, part)


@pytest.mark.parametrize('name', [n for n in REFERENCES if n.startswith('towers/')])
def test_similarities(name, tmp_path):
  known = REFERENCES[name]
  model = vit_jax.load(folder(tmp_path, known))
  x = jnp.asarray(golden.images((32, 32, 3)))
  if name == 'towers/siglip2':
    x = naflex(np.random.RandomState(4))
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda model, *a: model(*a))(model, x, golden.tokens(4, 10, 100))
  close(got, known['outputs']['logits'], name)


def test_a_detector(tmp_path):
  """YOLOS, with positions between its layers."""
  known = REFERENCES['queries/yolos']
  model = vit_jax.load(folder(tmp_path, known))
  assert model.config.middle
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda model, x: model(x))(model, golden.images(known['image']))
  for name, want in known['outputs'].items():
    close(got[name], want, name)


def test_a_decoder_with_masks(tmp_path):
  """DETR's, of tokens some of which are no image."""
  known, given = REFERENCES['queries/detr'], golden.inputs(golden.DECODED)
  decoder = vit_jax.load(folder(tmp_path, known))
  levels = [given[f'level{number}'] for number in range(3)]

  @jax.jit
  def run(decoder, memory, position, there, levels):
    return decoder(memory, None, there=there, position=position, levels=levels)

  there = golden.shown().reshape(2, -1)
  with jax.default_matmul_precision('highest'):
    got = run(decoder, given['memory'], given['position'], there, levels)
  assert known['outputs'].keys() == got.keys()
  for name, want in known['outputs'].items():
    close(got[name][:, -1], want, name)


def naflex(rng):
  """Three images of different shapes, padded to 20 patches."""
  pixels = jnp.asarray(rng.normal(size=(3, 20, 8 * 8 * 3)), jnp.float32)
  coords, mask = np.zeros((3, 20, 2), np.int32), np.zeros((3, 20), bool)
  for i, (h, w) in enumerate([(4, 4), (2, 9), (5, 3)]):
    coords[i, : h * w] = np.mgrid[:h, :w].reshape(2, -1).T
    mask[i, : h * w] = True
  return Patches(pixels, jnp.asarray(coords), jnp.asarray(mask))
