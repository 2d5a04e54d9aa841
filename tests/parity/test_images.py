"""Image models: outputs, everything inside, gradients, and the way back, bit by bit."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import vit_jax
from tests.parity import references
from tests.parity.references import NETWORKS, REFERENCES, hf, numpy, timm
from vit_jax.convert import layout
from vit_jax.convert.read import open_checkpoint
from vit_jax.nn import tree

SEED = 3


def images(shape, batch=3, seed=SEED):
  return np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32)


@pytest.fixture(scope='module', params=[*REFERENCES, *NETWORKS])
def case(request, tmp_path_factory):
  reference = {**REFERENCES, **NETWORKS}[request.param]
  torch.manual_seed(SEED)
  module = references.shake(reference.make(), SEED)
  folder = tmp_path_factory.mktemp(request.param.replace('/', '-'))
  reference.save(module, folder / 'theirs')
  return request.param, reference, module, folder


def close(got, want, tolerance, what):
  got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
  assert got.shape == want.shape, (what, got.shape, want.shape)
  error = np.abs(got - want).max() / np.abs(want).max()
  assert error < tolerance, f'{what}: {error:.2e}'


def torch_images(x):
  return torch.from_numpy(x).permute(0, 3, 1, 2)


def test_outputs_and_everything_inside(case):
  name, reference, module, folder = case
  x = images(reference.image)
  if name in NETWORKS:
    with torch.no_grad():  # theirs in float32 is nearly 1e-5 from that in a ResNet
      want = reference.run(module.double(), torch_images(x).double())
    module.float()
    model = vit_jax.load(folder / 'theirs')
    with jax.default_matmul_precision('highest'):
      got = jax.jit(lambda model, x: model.features(x))(model, x)
    assert len(want) > 3
    for name, value in want.items():
      close(got[name], numpy(value), 1e-5, name)
    return
  with torch.no_grad():
    want = references.watch(module, lambda: reference.run(module, torch_images(x)))
  model = vit_jax.load(folder / 'theirs')
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda model, x: model.features(x))(model, x)
  before = got['tokens']
  for number in range(model.config.depth):
    got[f'mid{number:02d}'] = before + got[f'block{number:02d}/attn']
    before = got[f'block{number:02d}']
  assert {'tokens', 'block00', 'mid00', 'block02', 'output'} <= want.keys()
  for name, value in want.items():
    close(got[name], numpy(value), 1e-5, name)


def gradient_error(name, reference, module, folder, seed):
  """The largest relative error of any parameter's gradient, and whose it is."""
  x = images(reference.image, seed=seed)
  shape = reference.run(module, torch_images(x))['output'].shape
  weight = np.random.default_rng(5).normal(size=shape).astype(np.float32)
  module.zero_grad()
  (reference.run(module, torch_images(x))['output'] * torch.from_numpy(weight)).sum().backward()
  if name.startswith('hf/'):  # the names in memory are the new ones
    module.save_pretrained(folder / 'new', save_original_format=False)
  opened = open_checkpoint(folder / ('new' if name.startswith('hf/') else 'theirs'))
  model = vit_jax.load(folder / 'theirs')

  @jax.jit
  def gradient(model, x):
    return jax.grad(lambda model: (model(x) * weight).sum())(model)

  with jax.default_matmul_precision('highest'):
    ours = layout.write(opened.rules, tree.flatten(gradient(model, jnp.asarray(x))))
  errors = []
  for key, p in module.named_parameters():
    theirs = key if key in ours else f'{module.base_model_prefix}.{key}'
    if p.grad is None:
      assert 'mask_token' in key or key.endswith('k_bias') or not np.abs(ours[theirs]).any(), key
      continue
    want = numpy(p.grad)
    if not want.size:  # the registers of a model without any
      continue
    scale = np.abs(want).max()
    if key.endswith(('k_proj.bias', 'key.bias')):
      # It moves no softmax: its gradient is rounding, to be measured by that of its neighbour.
      scale = np.abs(ours[theirs.replace('k_proj', 'q_proj').replace('key', 'query')]).max()
    if key.endswith('mlp_tokens.fc2.bias'):  # nor does this move any norm behind it
      scale = np.abs(ours[theirs.replace('fc2', 'fc1')]).max()
    errors.append((np.abs(ours[theirs] - want).max() / scale, key))
  assert len(errors) > 10
  return max(errors)


def test_gradients(case):
  name, reference, module, folder = case
  # Where rounding moves a ReLU of a ResNet across its kink the gradient jumps, so that these
  # may disagree at some inputs; everything else must agree at the first.
  relus = 'hybrid' in name or 'resnet' in name
  seeds = range(SEED, SEED + (4 if relus else 1))
  errors = [gradient_error(name, reference, module, folder, seed) for seed in seeds]
  assert min(errors)[0] < 1e-4, errors


def test_written_back_bit_by_bit_and_read_by_their_loader(case):
  name, reference, module, folder = case
  model = vit_jax.load(folder / 'theirs')
  if reference.dialect == 'big_vision':
    pytest.skip('timm has no arguments for these sizes')
  vit_jax.save(model, folder / 'ours', reference.dialect)
  weights = [load_file(folder / side / 'model.safetensors') for side in ('theirs', 'ours')]
  assert weights[0].keys() == weights[1].keys()
  for key, value in weights[0].items():
    np.testing.assert_array_equal(weights[1][key], value, key)
  x = torch_images(images(reference.image))
  if name.startswith('hf/'):
    loaded, info = type(module).from_pretrained(folder / 'ours', output_loading_info=True)
    assert not any(info.values()), info
  else:
    config = json.loads((folder / 'theirs' / 'config.json').read_text())
    loaded = reference.make()
    timm.models.load_checkpoint(loaded, str(folder / 'ours' / 'model.safetensors'), strict=True)
    assert config['num_classes'] == 5
  with torch.no_grad():
    want = reference.run(module, x)['output']
    got = reference.run(loaded.eval(), x)['output']
  assert torch.equal(got, want)


@pytest.mark.parametrize('case', [n for n in REFERENCES if n.startswith('hf/')], indirect=True)
def test_new_names_of_transformers(case):
  _, _, module, folder = case
  module.save_pretrained(folder / 'v5', save_original_format=False)
  old, new = vit_jax.load(folder / 'theirs'), vit_jax.load(folder / 'v5')
  for key, value in tree.flatten(old).items():
    np.testing.assert_array_equal(tree.flatten(new)[key], value, key)
  vit_jax.save(new, folder / 'ours-v5', 'transformers-v5')
  weights = [load_file(folder / side / 'model.safetensors') for side in ('v5', 'ours-v5')]
  assert weights[0].keys() == weights[1].keys()
  for key, value in weights[0].items():
    np.testing.assert_array_equal(weights[1][key], value, key)
  assert hf.AutoConfig.from_pretrained(folder / 'ours-v5').model_type


@pytest.mark.parametrize('name', ['resnetv2_50x1_bit', 'mixer_s32_224'])
def test_networks_of_published_sizes_are_read_by_their_loader(name, tmp_path):
  torch.manual_seed(SEED)
  module = timm.create_model(name, num_classes=7).eval()
  references.shake(module, SEED)
  references.save_timm(module, tmp_path / 'theirs')
  model = vit_jax.load(tmp_path / 'theirs')
  vit_jax.save(model, tmp_path / 'ours', 'timm')
  loaded = timm.create_model(f'local-dir:{tmp_path / "ours"}', pretrained=True).eval()
  x = torch_images(images((224, 224, 3), batch=1))
  with torch.no_grad():
    assert torch.equal(loaded(x), module(x))
  assert loaded.pretrained_cfg['crop_pct'] == module.pretrained_cfg['crop_pct']


def test_the_files_of_bit(tmp_path):
  """As timm reads them, and with the numbers that some have in their names."""
  make = references.NETWORKS['networks/resnet'].make
  module, shapes = make().eval(), {}
  names = {'conv': 'standardized_conv2d/kernel', 'weight': 'group_norm/gamma',
           'bias': 'group_norm/beta'}  # fmt: skip
  arrays = {}
  rng = np.random.default_rng(0)
  for key, p in module.named_parameters():
    value = rng.normal(size=p.shape).astype(np.float32) * (
      p[0].numel() ** -0.5 if p.ndim > 1 else 1
    )
    value = value.transpose(2, 3, 1, 0) if p.ndim == 4 else value
    if match := re.fullmatch(r'stages\.(\d+)\.blocks\.(\d+)\.(\w+?)(\d?)\.(?:conv\.)?(\w+)', key):
      stage, unit, what, number, leaf = match.groups()
      at = f'resnet/block{int(stage) + 1}/unit{int(unit) + 1:02d}'
      part = f'{"abc"[int(number or 1) - 1]}' + '/proj' * (what == 'downsample')
      end = names[leaf] if what == 'norm' else names['conv']
      key = f'{at}/{part}/{end}'
    else:
      key = {
        'stem.conv.weight': 'resnet/root_block/standardized_conv2d/kernel',
        'norm.weight': 'resnet/group_norm/gamma', 'norm.bias': 'resnet/group_norm/beta',
        'head.fc.weight': 'resnet/head/conv2d/kernel', 'head.fc.bias': 'resnet/head/conv2d/bias',
      }[key]  # fmt: skip
    arrays[key] = value
  del shapes
  np.savez(tmp_path / 'bit.npz', **arrays)
  with torch.no_grad():
    module.load_pretrained(str(tmp_path / 'bit.npz'))
  numbered = {
    k.replace('conv2d/', 'conv2d_7/') if 'unit02/b' in k else k: v for k, v in arrays.items()
  }
  np.savez(tmp_path / 'numbered.npz', **numbered)
  x = images((57, 70, 3))
  with torch.no_grad():
    want = numpy(module(torch_images(x)))
  for file in ('bit', 'numbered'):
    model = vit_jax.load(tmp_path / f'{file}.npz')
    with jax.default_matmul_precision('highest'):
      close(jax.jit(lambda model, x: model(x))(model, x), want, 1e-5, file)
