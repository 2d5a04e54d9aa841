"""Masked image modelling: MAE, SimMIM and BEiT of transformers, losses and files both ways."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import vit_jax
from tests.parity import references
from tests.parity.references import hf, numpy, timm
from tests.parity.test_images import close, images, torch_images
from vit_jax.convert import layout
from vit_jax.convert.read import open_checkpoint
from vit_jax.nn import tree
from vit_jax.tasks.masked import MaskedImages, cut
from vit_jax.tasks.task import Context

PLAIN = {**references.PLAIN, 'layer_norm_eps': 1e-6}
DECODER = dict(decoder_hidden_size=24, decoder_num_hidden_layers=2, decoder_num_attention_heads=2,
               decoder_intermediate_size=40)  # fmt: skip
BEIT = dict(**PLAIN, vocab_size=11, use_mask_token=True, layer_scale_init_value=0.1)
PATCHES, VISIBLE = 16, 4


@dataclasses.dataclass
class Reference:
  """A model of theirs, and what it learns, in our words.

  Attributes:
    kind: class.
    config: of it.
    task: fields of ours.
    fixed: whether its positions stay as they are made.
  """

  kind: type
  config: object
  task: dict
  fixed: bool = False

  def make(self):
    torch.manual_seed(0)
    module = self.kind(self.config)
    tables = []
    if isinstance(module, hf.ViTMAEForPreTraining):
      module.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
      module.vit.embeddings.initialize_weights()  # which leaves it out otherwise
      module.decoder.initialize_weights(PATCHES)
      tables = [module.vit.embeddings.position_embeddings, module.decoder.decoder_pos_embed]
    as_made = [table.detach().clone() for table in tables]
    references.shake(module, 0)
    if self.fixed:
      for table, value in zip(tables, as_made, strict=True):
        table.data.copy_(value)
    return module


def mae(*, normalized, fixed=True, **config):
  config = hf.ViTMAEConfig(**PLAIN, **DECODER, norm_pix_loss=normalized, **config)
  task = dict(target='normalized' if normalized else 'pixels', ratio=0.75)
  return Reference(hf.ViTMAEForPreTraining, config, task, fixed)


SIMMIM = dict(target='pixels', loss_of='l1', ratio=0.6)
MODELS = {
  'mae': mae(normalized=True),
  'mae-pixels': mae(normalized=False, qkv_bias=False),
  'mae-learned': mae(normalized=True, fixed=False),
  'simmim': Reference(
    hf.ViTForMaskedImageModeling, hf.ViTConfig(**PLAIN, encoder_stride=8), SIMMIM
  ),
  'simmim-grey': Reference(
    hf.ViTForMaskedImageModeling, hf.ViTConfig(**PLAIN, encoder_stride=8, num_channels=1), SIMMIM
  ),
  'simmim-deit': Reference(
    hf.DeiTForMaskedImageModeling, hf.DeiTConfig(**PLAIN, encoder_stride=8), SIMMIM
  ),
  'beit': Reference(
    hf.BeitForMaskedImageModeling,
    hf.BeitConfig(**BEIT, use_shared_relative_position_bias=True),
    dict(target='codes', ratio=0.4),
  ),
  'beit-layers': Reference(
    hf.BeitForMaskedImageModeling,
    hf.BeitConfig(**BEIT, use_relative_position_bias=True, use_absolute_position_embeddings=True),
    dict(target='codes', ratio=0.4),
  ),
}  # fmt: skip


def published(name):
  """The name in files of what version 5 calls so in memory."""
  name = re.sub(r'^(vit|deit|beit)\.layers\.', r'\1.encoder.layer.', name)
  name = re.sub(r'attention\.(q|k|v)_proj', _attention, name)
  for new, old in (
    ('attention.o_proj', 'attention.output.dense'), ('mlp.fc1', 'intermediate.dense'),
    ('mlp.fc2', 'output.dense'), ('shared_position_bias', 'encoder.relative_position_bias'),
  ):  # fmt: skip
    name = name.replace(new, old)
  return re.sub(r'(layer\.\d+)\.(relative_position)', r'\1.attention.attention.\2', name)


def _attention(match):
  return 'attention.attention.' + {'q': 'query', 'k': 'key', 'v': 'value'}[match[1]]


def write(module, folder, rename=lambda name: name):
  """A folder of theirs, made of what is in memory."""
  folder.mkdir()
  module.config.architectures = [type(module).__name__]
  module.config.save_pretrained(folder)
  arrays = {rename(name): numpy(value).copy() for name, value in module.state_dict().items()}
  save_file(arrays, folder / 'model.safetensors', metadata={'format': 'pt'})


def made(name, folder):
  """A model of theirs, written to a folder in all of its names, and our task."""
  reference = MODELS[name]
  module = reference.make()
  write(module, folder / 'memory')
  write(module, folder / 'published', published)
  module.save_pretrained(folder / 'saved', save_original_format=True)
  task = dict(reference.task)
  if task['target'] == 'codes':
    codes = np.random.default_rng(5).normal(size=(11, 8 * 8 * 3)).astype(np.float32)
    np.save(folder / 'codes.npy', codes)
    task['codebook'] = str(folder / 'codes.npy')
  return name, module, folder, MaskedImages(**task)


@pytest.fixture(scope='module', params=list(MODELS))
def case(request, tmp_path_factory):
  return made(request.param, tmp_path_factory.mktemp(request.param))


def inputs(module, task, model):
  """Of theirs and of ours: images, and what of them is hidden."""
  channels = module.config.num_channels
  x = images((32, 32, channels))
  draw = np.random.default_rng(1).random((len(x), PATCHES)).astype(np.float32)
  rank = draw.argsort(1).argsort(1)
  theirs = {'pixel_values': torch_images(x)}
  if isinstance(module, hf.ViTMAEForPreTraining):
    hidden = rank >= VISIBLE
    theirs['noise'] = torch.from_numpy(draw)
  else:
    hidden = rank < np.array([3, 7, 10])[:, None]  # other counts, too
    theirs['bool_masked_pos'] = torch.from_numpy(hidden)
  if task.target == 'codes':
    codes = np.asarray(task.wanted(jnp.asarray(x), model.config.encoder))
    assert len(np.unique(codes)) > 3
    theirs['labels'] = torch.from_numpy(codes[hidden]).long()
  return theirs, {
    'image': x,
    'hidden': hidden,
    'asked': hidden,
    'mask': np.ones(len(x), np.float32),
  }


def loss(task, model, batch):
  context = Context({}, task.totals(batch), {}, None, 0, None)
  return task.loss(model, batch, context)[0]


def errors(name, module, folder, task):
  """The largest of predictions, of the loss, and of the gradients of every parameter."""
  opened = open_checkpoint(folder / 'published')
  model = vit_jax.load(folder / 'published')
  theirs, batch = inputs(module, task, model)
  module.zero_grad()
  out = module(**theirs)
  out.loss.backward()
  if name.startswith('simmim'):
    want = cut(jnp.asarray(numpy(out.reconstruction.permute(0, 2, 3, 1))), (8, 8))
  else:
    want = numpy(out.logits)

  @jax.jit
  def both(model, batch):
    value, gradient = jax.value_and_grad(lambda model: loss(task, model, batch))(model)
    how = {'visible': VISIBLE} if name.startswith('mae') else {}
    return model(batch['image'], batch['hidden'], **how), value, gradient

  with jax.default_matmul_precision('highest'):
    said, value, gradient = both(model, batch)
  assert said.shape == want.shape
  found = layout.write(opened.rules, tree.flatten(gradient))
  worst = {}
  for key, p in module.named_parameters():
    key = published(key)
    if p.grad is None or key not in found:  # fixed positions
      assert 'pos' in key, key
      continue
    grad = numpy(p.grad)
    scale = np.abs(grad).max()
    if re.search(r'\.key\.bias$', key):  # nothing but rounding
      scale = np.abs(found[key.replace('.key.', '.query.')]).max()
    worst[key] = np.abs(found[key] - grad).max() / scale
  assert len(worst) > 30
  return {
    'predictions': np.abs(said - want).max() / np.abs(want).max(),
    'loss': abs(float(value) / out.loss.item() - 1),
    'gradients': max(worst.values()),
  }


def test_predictions_loss_and_gradients(case):
  found = errors(*case)
  assert found['predictions'] < 1e-5
  assert found['loss'] < 1e-5
  assert found['gradients'] < 1e-4


def test_all_names_of_theirs_are_the_same_model(case):
  name, _, folder, _ = case
  model = vit_jax.load(folder / 'published')
  assert model.config.kind == ('mae' if name.startswith('mae') else 'masked')
  if name.startswith('mae'):
    fixed = 'learned' if name == 'mae-learned' else 'sincos_mae'
    towers = model.config.towers.values()
    assert [tower.posemb for tower in towers] == [fixed, fixed]
  for other in ('memory', 'saved'):
    again = vit_jax.load(folder / other)
    assert again.config == model.config
    for leaf, value in tree.flatten(model).items():
      np.testing.assert_array_equal(tree.flatten(again)[leaf], value, leaf)


@pytest.mark.parametrize('dialect', ['transformers', 'transformers-v5'])
def test_written_back_bit_by_bit_and_read_by_their_loader(case, dialect):
  name, module, folder, task = case
  model = vit_jax.load(folder / 'published')
  vit_jax.save(model, folder / dialect, dialect)
  names = 'published' if dialect == 'transformers' else 'memory'
  weights = [load_file(folder / side / 'model.safetensors') for side in (names, dialect)]
  assert weights[0].keys() == weights[1].keys()
  for key, value in weights[0].items():
    if name != 'mae-learned' and 'pos' in key and name.startswith('mae'):
      np.testing.assert_allclose(weights[1][key], value, atol=1e-7, err_msg=key)  # computed anew
    else:
      np.testing.assert_array_equal(weights[1][key], value, key)
  loaded, info = type(module).from_pretrained(folder / dialect, output_loading_info=True)
  assert not any(info.values()), info
  theirs, _ = inputs(module, task, model)
  with torch.no_grad():
    again, want = loaded.eval()(**theirs), module(**theirs)
  what = 'reconstruction' if name.startswith('simmim') else 'logits'
  close(numpy(again[what]), numpy(want[what]), 1e-6, what)
  np.testing.assert_allclose(again.loss.item(), want.loss.item(), rtol=1e-6)


class Mae(torch.nn.Module):
  """Masked autoencoders with the names of Meta's code (github.com/facebookresearch/mae)."""

  def __init__(self, width=64, decoder=32, patches=PATCHES, pixels=192):
    super().__init__()
    block = timm.models.vision_transformer.Block
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    zeros = lambda *shape: torch.nn.Parameter(torch.zeros(*shape))  # noqa: E731
    self.patch_embed = timm.layers.PatchEmbed(32, 8, 3, width)
    self.cls_token, self.mask_token = zeros(1, 1, width), zeros(1, 1, decoder)
    self.pos_embed, self.decoder_pos_embed = (zeros(1, 1 + patches, n) for n in (width, decoder))
    blocks = lambda *sizes: torch.nn.ModuleList(  # noqa: E731
      block(*sizes, qkv_bias=True, norm_layer=norm) for _ in range(2)
    )
    self.blocks, self.decoder_blocks = blocks(width, 4), blocks(decoder, 2)
    self.norm, self.decoder_norm = norm(width), norm(decoder)
    self.decoder_embed = torch.nn.Linear(width, decoder)
    self.decoder_pred = torch.nn.Linear(decoder, pixels)

  def encoded(self, x, hidden):
    x = self.patch_embed(x) + self.pos_embed[:, 1:]
    x = torch.stack([patches[~own] for patches, own in zip(x, hidden, strict=True)])
    x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], 1)
    return self.norm(torch.nn.Sequential(*self.blocks)(x))

  def forward(self, x, hidden):
    x = self.decoder_embed(self.encoded(x, hidden))
    grid = self.mask_token.repeat(len(x), hidden.shape[1], 1)
    grid[~hidden] = x[:, 1:].flatten(0, 1)
    x = torch.cat([x[:, :1], grid], 1) + self.decoder_pos_embed
    x = self.decoder_norm(torch.nn.Sequential(*self.decoder_blocks)(x))
    return self.decoder_pred(x)[:, 1:]


@pytest.mark.parametrize('fixed', [True, False])
def test_names_of_meta(tmp_path, fixed):
  """Below 'model', as published; an encoder alone is one of timm."""
  torch.manual_seed(0)
  module = references.shake(Mae(), 0)
  if fixed:
    for table in (module.pos_embed, module.decoder_pos_embed):
      table.data.copy_(_table(table.shape[2]))
  state = {name: value.clone() for name, value in module.state_dict().items()}
  torch.save({'model': state, 'epoch': 799}, tmp_path / 'mae.pth')
  model = vit_jax.load(tmp_path / 'mae.pth', encoder=dict(num_heads=4), decoder=dict(num_heads=2))
  kinds = {tower.posemb for tower in model.config.towers.values()}
  assert kinds == {'sincos_mae' if fixed else 'learned'}
  x = images((32, 32, 3))
  hidden = np.random.default_rng(1).random((3, PATCHES)).argsort(1).argsort(1) >= VISIBLE
  with torch.no_grad():
    want = numpy(module(torch_images(x), torch.from_numpy(hidden)))
  with jax.default_matmul_precision('highest'):
    close(model(jnp.asarray(x), jnp.asarray(hidden), visible=VISIBLE), want, 1e-5, 'predictions')
  vit_jax.save(model, tmp_path / 'ours.safetensors', 'mae')
  written = {n: torch.from_numpy(a) for n, a in load_file(tmp_path / 'ours.safetensors').items()}
  Mae().load_state_dict(written, strict=True)
  for name, value in state.items():
    np.testing.assert_allclose(written[name], value, rtol=0, atol=1e-7 if fixed else 0)
  vit_jax.save(model.encoder, tmp_path / 'timm', 'timm')
  encoder = timm.create_model(f'local-dir:{tmp_path / "timm"}', pretrained=True)
  with torch.no_grad():
    want = numpy(module.encoded(torch_images(x), torch.zeros(3, PATCHES, dtype=torch.bool)))
    close(numpy(encoder.eval().forward_features(torch_images(x))), want, 1e-5, 'encoder')


def _table(width):
  """As transformers makes the positions of MAE: columns come first there."""
  rows = hf.models.vit_mae.modeling_vit_mae.build_2d_sinusoidal_position_embedding(
    4, 4, width, cls_token=True
  )
  return torch.cat([rows[:, width // 2 :], rows[:, : width // 2]], 1)[None]
