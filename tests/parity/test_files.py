"""The JAX dialects and Meta's, against the loaders that timm has for them."""

import argparse
import collections

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vit_jax
from tests.parity import references
from tests.parity.references import numpy, timm
from tests.parity.test_images import close, images, torch_images
from vit_jax.nn import tree

TINY = dict(patch_size=8, width=48, depth=3, mlp_dim=192, num_heads=3, image_size=(32, 32))


def random(variant, **config):
  """A model in which nothing is zero or one."""
  model = vit_jax.create(variant, **{**TINY, **config})
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda w: w + 0.1 * rng.normal(size=w.shape).astype(np.float32), model)


def compare(model, module, tolerance=1e-5):
  x = images((*model.config.image_size, 3))
  with torch.no_grad():
    want = module.eval()(torch_images(x))
  with jax.default_matmul_precision('highest'):
    close(model(x), numpy(want), tolerance, 'logits')


def create(name, size=32, **kwargs):
  kwargs = {'num_classes': 5, 'act_layer': 'gelu_tanh', **kwargs}  # as in JAX
  return timm.create_model(name, img_size=size, **kwargs)


SMALL = dict(patch_size=8, embed_dim=48, depth=3, num_heads=3)


@pytest.mark.parametrize('dialect', ['vit', 'vit-linen', 'big_vision'])
def test_npz_is_read_by_timm(tmp_path, dialect):
  tokens = 'patches' if dialect == 'big_vision' else 'class'
  model = random('S/8', num_classes=5, posemb_tokens=tokens)
  vit_jax.save(model, tmp_path / 'model.npz', dialect)
  module = create('vit_small_patch16_224', no_embed_class=dialect == 'big_vision', **SMALL)
  if dialect == 'vit-linen':  # timm knows the numbers of Linen from big_vision only
    with pytest.raises(KeyError):
      module.load_pretrained(str(tmp_path / 'model.npz'))
  else:
    module.load_pretrained(str(tmp_path / 'model.npz'))
    compare(model, module)
  again = vit_jax.load(tmp_path / 'model.npz')
  for name, leaf in tree.flatten(model).items():
    np.testing.assert_array_equal(tree.flatten(again)[name], leaf, name)


def test_big_vision_map_head_is_read_by_timm(tmp_path):
  model = random('siglip:B/8')
  vit_jax.save(model, tmp_path / 'model.npz', 'big_vision')
  module = create('vit_base_patch16_siglip_224', num_classes=0, **SMALL)
  module.load_pretrained(str(tmp_path / 'model.npz'))
  compare(model, module)


@pytest.mark.parametrize(
  ('name', 'depths'),
  [('vit_small_r26_s32_224', (2, 2, 2, 2)), ('vit_base_r50_s16_224', (3, 4, 9)),
   ('vit_tiny_r_s16_p8_224', ())],
)  # fmt: skip
def test_hybrid_npz_is_read_by_timm(tmp_path, name, depths):
  patch = 1 if depths else 8
  model = random(
    'S/16', patch_size=patch, image_size=(64, 64), stem_width=64, stem_depths=depths,
    num_classes=5,
  )  # fmt: skip
  vit_jax.save(model, tmp_path / 'model.npz', 'vit')
  model = vit_jax.load(tmp_path / 'model.npz', stem_convention='timm')
  module = create(name, 64, **{**SMALL, 'patch_size': patch})
  module.load_pretrained(str(tmp_path / 'model.npz'))
  compare(model, module)


@pytest.mark.parametrize(
  ('dialect', 'variant', 'name', 'config', 'kwargs'),
  [
    ('dinov2', 'dinov2:S/8', 'vit_small_patch14_dinov2', dict(posemb_tokens='class'), {}),
    ('dinov2', 'dinov2:g/8', 'vit_giant_patch14_dinov2', dict(mlp_dim=128), {}),
    ('dinov2', 'dinov2-reg:S/8', 'vit_small_patch14_reg4_dinov2', {}, {}),
    ('dinov3', 'dinov3:S/8', 'vit_small_patch16_dinov3_qkvb', {}, dict(global_pool='token')),
    ('dinov3', 'dinov3:S+/8', 'vit_small_plus_patch16_dinov3_qkvb', {}, dict(global_pool='token')),
  ],
)
def test_metas_state_dicts_are_read_by_timm(tmp_path, dialect, variant, name, config, kwargs):
  model = random(variant, **config)
  vit_jax.save(model, tmp_path / 'model.safetensors', dialect)
  state = load_file(str(tmp_path / 'model.safetensors'))
  module = timm.create_model(name, img_size=32, num_classes=0, **SMALL, **kwargs)
  if dialect == 'dinov2':
    from timm.models.vision_transformer import checkpoint_filter_fn
  else:
    from timm.models.eva import checkpoint_filter_fn

    state['rope_embed.periods'] = torch.ones(4)
    state['blocks.0.attn.qkv.bias_mask'] = torch.ones(144)
  torch.save(state, tmp_path / 'model.pth')
  module.load_state_dict(checkpoint_filter_fn(dict(state), module), strict=True)
  compare(model, module)
  for file in ('model.safetensors', 'model.pth'):
    again = vit_jax.load(tmp_path / file, num_heads=3)
    assert again.config.registers == model.config.registers
    for leaf, value in tree.flatten(model).items():
      np.testing.assert_array_equal(tree.flatten(again)[leaf], value, leaf)
    x = images((32, 32, 3))
    np.testing.assert_array_equal(again(x), model(x))


def state(seed):
  torch.manual_seed(seed)
  module = timm.create_model('vit_small_patch16_224', img_size=32, num_classes=5, **SMALL)
  return references.shake(module, seed)


def test_timm_and_we_take_the_same_weights_of_a_training_checkpoint(tmp_path):
  """As timm's own CheckpointSaver writes it, optimizer and arguments included."""
  raw, average = state(0), state(1)
  optimizer = torch.optim.AdamW(raw.parameters())
  raw(torch.zeros(1, 3, 32, 32)).sum().backward()
  optimizer.step()
  saved = {
    'epoch': 3, 'arch': 'vit_small_patch16_224', 'state_dict': raw.state_dict(),
    'optimizer': optimizer.state_dict(), 'version': 2, 'args': argparse.Namespace(lr=0.1),
    'state_dict_ema': average.state_dict(), 'metric': 81.2,
  }  # fmt: skip
  alone = {key: value for key, value in saved.items() if 'ema' not in key}
  for name, content in (('both', saved), ('raw', alone)):
    torch.save(content, tmp_path / f'{name}.pth.tar')
    theirs = timm.create_model('vit_small_patch16_224', img_size=32, num_classes=5, **SMALL)
    timm.models.load_checkpoint(theirs, str(tmp_path / f'{name}.pth.tar'))
    ours = vit_jax.load(tmp_path / f'{name}.pth.tar', num_heads=3)
    compare(ours, theirs)
  compare(vit_jax.load(tmp_path / 'both.pth.tar', num_heads=3, part='state_dict'), raw)


@pytest.mark.parametrize('wrap', ['module', 'lightning', 'compiled', 'parallel'])
def test_what_else_torch_saves(tmp_path, wrap):
  module = state(0)
  if wrap == 'module':
    torch.save(module, tmp_path / 'file.pt')
  elif wrap == 'lightning':
    task = torch.nn.Module()
    task.net, task.criterion = module, torch.nn.Linear(5, 5)
    task.register_buffer('seen', torch.zeros(3, dtype=torch.complex64))
    torch.save({'state_dict': task.state_dict(), 'hyper_parameters': {'lr': torch.tensor(0.1)},
                'callbacks': {torch.Size([2]): collections.defaultdict(list)}, 'lr_schedulers': []},
               tmp_path / 'file.pt')  # fmt: skip
  else:
    prefix = {'compiled': '_orig_mod.', 'parallel': 'module.'}[wrap]
    torch.save({f'{prefix}{k}': v for k, v in module.state_dict().items()}, tmp_path / 'file.pt')
  compare(vit_jax.load(tmp_path / 'file.pt', num_heads=3), module)
