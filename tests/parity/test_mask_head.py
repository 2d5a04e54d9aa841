"""Masks of DETR's queries against transformers: the head, its gradients, files of it, the loss."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.parity.references import hf, numpy, shake
from tests.parity.test_images import close, images, torch_images
from tests.parity.test_queries import CLASSES, QUERIES, meta, write
from vit_jax.convert import adapt, layout
from vit_jax.convert import detr as dialect
from vit_jax.convert.read import open_checkpoint
from vit_jax.core.schedule import Schedule
from vit_jax.models.detr import DecoderConfig, DetrConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import tree
from vit_jax.tasks.panoptic import Panoptic
from vit_jax.tasks.task import Context

HIDDEN, HEADS = 64, 8


def segmentation():
  torch.manual_seed(0)
  backbone = hf.ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type='basic',
    out_features=['stage1', 'stage2', 'stage3', 'stage4'],
  )  # fmt: skip
  config = hf.DetrConfig(
    use_timm_backbone=False, backbone_config=backbone, d_model=HIDDEN, encoder_layers=1,
    decoder_layers=2, encoder_ffn_dim=48, decoder_ffn_dim=80, encoder_attention_heads=HEADS,
    decoder_attention_heads=HEADS, num_queries=QUERIES, num_labels=CLASSES,
  )  # fmt: skip
  return shake(hf.DetrForSegmentation(config), 1)


def of_meta(module):
  """What Meta's code would have saved."""
  state = {f'detr.{name}': value for name, value in meta(module.detr).items()}
  for name, value in module.state_dict().items():
    if name.startswith(('mask_head', 'bbox_attention')):
      for pattern, new in (
        (r'_proj\.', '_linear.'), (r'output_conv', 'out_lay'), (r'conv(\d)\.conv', r'lay\1'),
        (r'conv(\d)\.norm', r'gn\1'), (r'fpn_stages\.(\d)\.fpn_adapter', r'adapter1\1'),
        (r'fpn_stages\.(\d)\.refine\.conv', r'lay3\1'),
        (r'fpn_stages\.(\d)\.refine\.norm', r'gn3\1'),
      ):  # fmt: skip
        name = re.sub(pattern, new, name)
      # 'lay31' is the layer 3 + 1.
      name = re.sub(r'(?<=[a-y])([13])(\d)(?=\.)', lambda m: str(int(m[1]) + int(m[2])), name)
      state[name] = value
  return state


def test_decoder_with_masks(tmp_path):
  """Behind their own encoder, with padding, from all names they have; gradients of the head."""
  module = segmentation()
  module.save_pretrained(tmp_path / 'saved', save_original_format=True)
  write(module, tmp_path / 'memory', lambda name: name)
  torch.save({'model': of_meta(module), 'epoch': 24}, tmp_path / 'detr.pth')
  opened, decoder = open_checkpoint(tmp_path / 'saved'), vit_jax.load(tmp_path / 'saved')
  config = decoder.config
  assert (config.kind, config.masks, config.queries) == ('decoder', True, QUERIES)
  for other in ('memory', 'detr.pth'):
    again = vit_jax.load(tmp_path / other, num_heads=HEADS)
    assert again.config == config
    for name, leaf in tree.flatten(decoder).items():
      np.testing.assert_array_equal(tree.flatten(again)[name], leaf, name)
  assert not vit_jax.load(tmp_path / 'saved', masks=False).config.masks
  x = images((96, 128, 3))
  mask = torch.ones(len(x), 96, 128)
  mask[1, 64:], mask[1, :, 96:] = 0, 0
  seen = {}
  module.detr.model.decoder.register_forward_pre_hook(
    lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
  )
  module.bbox_attention.register_forward_hook(
    lambda module, args, kwargs, out: seen.update(said=args[0], seen=args[1], maps=out),
    with_kwargs=True,
  )
  module(torch_images(x), pixel_mask=mask)
  memory, maps = seen['seen'], seen['maps']
  rows, columns = memory.shape[-2:]
  rng = np.random.default_rng(5)
  levels = [
    torch.from_numpy(rng.normal(size=(len(x), width, by * rows, by * columns)).astype(np.float32))
    for width, by in ((24, 1), (16, 2), (8, 4))
  ]
  # Their head reads features of before the encoder, and ours of what is attended to: of that.
  module.zero_grad()
  want = module.mask_head(features=memory, attention_masks=maps, fpn_features=levels)
  want = want.reshape(len(x), QUERIES, *want.shape[-2:])
  want.sin().sum().backward()
  adapters = [stage.fpn_adapter for stage in module.mask_head.fpn_stages]
  added = [
    jnp.asarray(numpy(adapter(level)).transpose(0, 2, 3, 1))
    for adapter, level in zip(adapters, levels, strict=True)
  ]
  there = jnp.asarray(numpy(seen['encoder_attention_mask']).astype(bool).reshape(len(x), -1))
  tokens, position = (
    jnp.asarray(numpy(seen[name]))
    for name in ('encoder_hidden_states', 'spatial_position_embeddings')
  )
  run = lambda model: model(tokens, None, there=there, position=position, levels=added)  # noqa: E731
  with jax.default_matmul_precision('highest'):
    got = jax.jit(run)(decoder)
    looks = jax.jit(lambda head, *args: head.looks(*args))(
      decoder.masks, jnp.asarray(numpy(seen['said'])), tokens, there
    )
    gradient = jax.jit(jax.grad(lambda model: jnp.sin(run(model)['masks']).sum()))(decoder)
  own = numpy(maps).reshape(len(x), QUERIES, HEADS, -1).swapaxes(2, 3)
  close(looks, own, 1e-5, 'where queries look')
  close(got['masks'][:, 0], numpy(want), 1e-5, 'masks')
  found = layout.write(opened.rules, tree.flatten(gradient))
  parameters = {**dict(module.named_parameters())}
  checked = 0
  for name, p in parameters.items():
    known = dialect._old(name)
    if known.startswith(('mask_head', 'bbox_attention')) and known in found:
      grad, other = numpy(p.grad), name
      if name.endswith('k_proj.bias'):  # nothing but rounding
        other = name.replace('k_proj', 'q_proj')
      elif re.search(r'stages\.[12]\.refine\.conv\.bias', name):  # a norm of each feature follows
        other = name.replace('bias', 'weight')
      scale = np.abs(numpy(parameters[other].grad)).max()
      np.testing.assert_allclose(found[known] / scale, grad / scale, atol=1e-4, err_msg=name)
      checked += 1
  assert checked == 4 + 2 * 5 + 2 * 5 + 2


def test_masks_behind_a_plain_encoder():
  """Of a whole model, with their modules in place of ours, on our pyramid, which is restated."""
  encoder = ViTConfig('', image_size=(16, 24), patch_size=4, width=16, depth=1, num_heads=2,
                      mlp_dim=32)  # fmt: skip
  decoder = DecoderConfig(width=HIDDEN, depth=1, num_heads=HEADS, queries=QUERIES, masks=True)
  model = DetrConfig(encoder, decoder, CLASSES).create(nnx.Rngs(0))
  rng = np.random.default_rng(7)
  model = jax.tree.map(
    lambda w: jnp.asarray(w + 0.1 * rng.normal(size=w.shape), jnp.float32), model
  )
  leaves = {name: np.asarray(leaf) for name, leaf in tree.flatten(model).items()}
  own = tree.inside(leaves, 'decoder')
  wanted = dialect.make_rules(
    model.config.decoder, adapt.abstract(model.config.decoder), dict(dialect='transformers')
  )
  arrays = layout.write(wanted, own)
  head = hf.models.detr.modeling_detr.DetrMaskHeadSmallConv(HIDDEN + HEADS, [16] * 3, HIDDEN)
  looks = hf.models.detr.modeling_detr.DetrMHAttentionMap(HIDDEN, HEADS)
  tensor = lambda x: torch.from_numpy(np.array(x))  # noqa: E731
  state = {
    name: tensor(arrays[dialect._old(f'mask_head.{name}')]) for name in head.state_dict()
    if 'adapter' not in name
  }  # fmt: skip
  for stage in range(3):
    at = f'fpn_stages.{stage}.fpn_adapter.'
    state[f'{at}weight'] = tensor(leaves[f'lateral{stage}/kernel'].transpose(3, 2, 0, 1))
    state[f'{at}bias'] = tensor(leaves[f'lateral{stage}/bias'])
  head.load_state_dict(state)
  looks.load_state_dict({
    name: tensor(arrays[dialect._old(f'bbox_attention.{name}')]) for name in looks.state_dict()
  })  # fmt: skip
  x = jnp.asarray(images((16, 24, 3)))
  with jax.default_matmul_precision('highest'):
    said = jax.jit(lambda model, x: model(x))(model, x)
    patches = model.encoder.features(x)['patches']
    memory = model.project(patches, 'bhwd,de->bhwe', ('batch', None, None, None))
    kept = {}
    model.decoder.masks.looks = lambda queries, *args: (
      kept.update(queries=queries)
      or (type(model.decoder.masks).looks(model.decoder.masks, queries, *args))
    )
    model(x)
  channels = lambda x: tensor(x).permute(0, 3, 1, 2)  # noqa: E731
  functional = torch.nn.functional

  def up(name, x):
    inputs, outputs = leaves[f'pyramid/{name}/kernel'].shape
    kernel = leaves[f'pyramid/{name}/kernel'].reshape(inputs, 2, 2, outputs // 4)
    bias = leaves.get(f'pyramid/{name}/bias')
    return functional.conv_transpose2d(
      x, tensor(kernel.transpose(0, 3, 1, 2)), None if bias is None else tensor(bias), stride=2
    )

  places = channels(patches)
  middle = functional.group_norm(
    up('up4_first', places), 16, tensor(leaves['pyramid/up4_first_norm/scale']),
    tensor(leaves['pyramid/up4_first_norm/bias']),
  )  # fmt: skip
  pyramid = [places, up('up2', places), up('up4', functional.gelu(middle))]
  with torch.no_grad():
    maps = looks(tensor(kept['queries']), channels(memory))
    want = head(channels(memory), maps, pyramid)
  assert said['masks'].shape == (len(x), 1, QUERIES, 16, 24)
  close(said['masks'][:, 0], numpy(want).reshape(len(x), QUERIES, 16, 24), 1e-5, 'masks')


@pytest.mark.parametrize('auxiliary', [True, False])
def test_loss_and_its_gradient(auxiliary):
  """By what queries say, of a batch with an image in which nothing is."""
  rng, batch, layers, most, size = np.random.default_rng(2), 3, 2 if auxiliary else 1, 4, (16, 24)
  said = {
    'logits': rng.normal(size=(batch, layers, QUERIES, CLASSES + 1)),
    'boxes': rng.uniform(0.1, 0.6, (batch, layers, QUERIES, 4)),
    'masks': rng.normal(size=(batch, 1, QUERIES, 8, 12)),
  }  # fmt: skip
  said = {name: value.astype(np.float32) for name, value in said.items()}
  ids = np.kron(rng.integers(0, 4, (batch, 4, 6)), np.ones((4, 4), int)).astype(np.uint8)
  ids[2] = 0
  known = np.array([[n + 1 in ids[i] for n in range(most)] for i in range(batch)], np.float32)
  label = rng.integers(0, CLASSES, (batch, most)).astype(np.int32)
  corners = np.zeros((batch, most, 4), np.float32)
  labels = []
  for image in range(batch):
    own = np.flatnonzero(known[image])
    for at in own:
      y, x = np.nonzero(ids[image] == at + 1)
      corners[image, at] = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / (24, 16, 24, 16)
    boxes = corners[image, own]
    centres = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    masks = np.reshape([ids[image] == at + 1 for at in own], (-1, *size))
    labels.append({
      'class_labels': torch.from_numpy(label[image, own]).long(),
      'boxes': torch.from_numpy(centres), 'masks': torch.from_numpy(masks),
    })  # fmt: skip
  tensors = {n: torch.from_numpy(value).requires_grad_() for n, value in said.items()}
  config = segmentation().config
  config.decoder_layers, config.auxiliary_loss = layers, auxiliary
  theirs = hf.DetrForSegmentation(config).loss_function
  stacked = [tensors[n].transpose(0, 1) for n in ('logits', 'boxes')] if auxiliary else ()
  loss, terms, _ = theirs(
    tensors['logits'][:, -1], labels, 'cpu', tensors['boxes'][:, -1], tensors['masks'][:, 0],
    config, *stacked,
  )  # fmt: skip
  loss.backward()
  task = Panoptic(
    most=most, points=0, lifted=Schedule(1.0), class_weight=1.0, mask_weight=1.0, dice_weight=1.0
  )
  part = {
    'image': jnp.zeros((batch, *size, 3)), 'mask': jnp.ones(batch), 'segments': jnp.asarray(ids),
    'segments_label': jnp.asarray(label), 'segments_known': jnp.asarray(known),
    'segments_box': jnp.asarray(corners), 'segments_left_out': jnp.array([0.0, 2, 1]),
  }  # fmt: skip
  about = types.SimpleNamespace(says=('logits', 'boxes', 'masks'), queries=QUERIES)

  class Says:
    config = about

    def __init__(self, said):
      self.said = said

    def __call__(self, images, *, key):
      return self.said

  @jax.jit
  def both(said):
    context = Context({}, task.totals(part), {}, None, 0, None)

    def run(said):
      loss, sums, _ = task.loss(Says(said), part, context)
      return loss, {n: value / context.totals[of] for n, (value, of) in sums.items()}

    return jax.value_and_grad(run, has_aux=True)(said)

  with jax.default_matmul_precision('highest'):
    (value, sums), gradient = both(said)
  assert float(value) == pytest.approx(loss.item(), rel=1e-5)
  for ours, own in (
    ('classes', 'loss_ce'), ('distance', 'loss_bbox'), ('overlap', 'loss_giou'),
    ('masks', 'loss_mask'), ('dice', 'loss_dice'),
  ):  # fmt: skip
    assert float(sums[ours]) == pytest.approx(terms[own].item(), rel=1e-5), ours
  assert float(sums['left_out']) == 1  # of an example
  for name, tensor in tensors.items():
    close(gradient[name], numpy(tensor.grad), 1e-4, name)
