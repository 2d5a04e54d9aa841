"""Detectors with queries against transformers: YOLOS, and DETR's decoder behind its own encoder."""

import argparse
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

import vit_jax
from tests.parity.references import hf, numpy, shake
from tests.parity.test_images import close, images, torch_images
from vit_jax.convert import layout
from vit_jax.convert.read import open_checkpoint
from vit_jax.models.vit import ViTConfig
from vit_jax.models.yolos import YolosConfig
from vit_jax.nn import positions, tree
from vit_jax.tasks import denoising
from vit_jax.tasks.detection import Detection
from vit_jax.tasks.matching import Targets
from vit_jax.tasks.task import Context

WIDTH, QUERIES, CLASSES = 32, 7, 5
CONFIG = dict(
  hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48,
  image_size=[32, 48], patch_size=8, num_detection_tokens=QUERIES, num_labels=CLASSES,
)  # fmt: skip


def yolos(**changes):
  torch.manual_seed(0)
  return shake(hf.YolosForObjectDetection(hf.YolosConfig(**{**CONFIG, **changes})), 0)


def published(name):
  """The name in files of what version 5 calls otherwise in memory."""
  return name.replace('interpolation.mid_position', 'mid_position')


def write(module, folder, rename=published):
  """A folder of theirs, made of what is in memory."""
  folder.mkdir()
  module.config.architectures = [type(module).__name__]
  module.config.save_pretrained(folder)
  arrays = {rename(name): numpy(value).copy() for name, value in module.state_dict().items()}
  save_file(arrays, folder / 'model.safetensors', metadata={'format': 'pt'})
  return folder


@pytest.mark.parametrize('middle', [True, False])
def test_yolos(tmp_path, middle):
  """Logits, boxes and gradients, of images of another size, too; written back bit by bit."""
  module = yolos(use_mid_position_embeddings=middle, qkv_bias=middle)
  folder = write(module, tmp_path / 'theirs')
  opened, model = open_checkpoint(folder), vit_jax.load(folder)
  assert model.config.kind == 'yolos'
  assert model.config.middle == middle
  run = jax.jit(lambda model, x: model(x))
  for size in ((32, 48), (48, 32), (24, 40)):
    x = images((*size, 3))
    with torch.no_grad():
      want = module(torch_images(x))
    with jax.default_matmul_precision('highest'):
      got = run(model, jnp.asarray(x))
    assert got['logits'].shape == (len(x), 1, QUERIES, CLASSES + 1)
    close(got['logits'][:, 0], numpy(want.logits), 1e-5, f'logits {size}')
    close(got['boxes'][:, 0], numpy(want.pred_boxes), 1e-5, f'boxes {size}')
  x = images((48, 32, 3))
  out = module(torch_images(x))
  (out.logits.sin().sum() + out.pred_boxes.square().sum()).backward()

  @jax.jit
  def gradient(model):
    def said(model):
      out = model(jnp.asarray(x))
      return jnp.sin(out['logits']).sum() + jnp.square(out['boxes']).sum()

    return jax.grad(said)(model)

  with jax.default_matmul_precision('highest'):
    found = layout.write(opened.rules, tree.flatten(gradient(model)))
  for name, p in module.named_parameters():
    name, want = published(name), numpy(p.grad)
    # Biases of keys have no gradient but rounding.
    scale = np.abs(numpy(dict(module.named_parameters())[name.replace('.key.', '.query.')].grad)
                   if '.key.bias' in name else want).max()  # fmt: skip
    np.testing.assert_allclose(found[name] / scale, want / scale, atol=1e-4, err_msg=name)
  for dialect in ('transformers', 'transformers-v5'):
    vit_jax.save(model, tmp_path / dialect, dialect)
    written = load_file(tmp_path / dialect / 'model.safetensors')
    names = published if dialect == 'transformers' else lambda name: name
    theirs = {names(name): numpy(value) for name, value in module.state_dict().items()}
    assert written.keys() == theirs.keys()
    for name, value in theirs.items():
      np.testing.assert_array_equal(written[name], value, name)
    again, info = type(module).from_pretrained(tmp_path / dialect, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
      close(numpy(again.eval()(torch_images(x)).logits), numpy(out.logits), 1e-6, dialect)
  other = vit_jax.load(folder, encoder=dict(image_size=(48, 32)))
  assert other.config.encoder.grid == (6, 4)
  with jax.default_matmul_precision('highest'):
    close(other(jnp.asarray(x))['logits'][:, 0], numpy(out.logits), 1e-5, 'read for another size')


def of_hustvl(module):
  """What YOLOS's own code would have saved."""
  state = {}
  for name, value in module.state_dict().items():
    name = published(name)
    for pattern, new in (
      (r'^vit\.embeddings\.cls_token', 'backbone.cls_token'),
      (r'^vit\.embeddings\.detection_tokens', 'backbone.det_token'),
      (r'^vit\.embeddings\.position_embeddings', 'backbone.pos_embed'),
      (r'^vit\.embeddings\.patch_embeddings\.projection', 'backbone.patch_embed.proj'),
      (r'^vit\.encoder\.mid_position_embeddings', 'backbone.mid_pos_embed'),
      (r'^vit\.encoder\.layer', 'backbone.blocks'), (r'^vit\.layernorm', 'backbone.norm'),
      (r'layernorm_before', 'norm1'), (r'layernorm_after', 'norm2'),
      (r'attention\.output\.dense', 'attn.proj'), (r'intermediate\.dense', 'mlp.fc1'),
      (r'(?<=\d\.)output\.dense', 'mlp.fc2'), (r'^class_labels_classifier', 'class_embed'),
      (r'^bbox_predictor', 'bbox_embed'), (r'attention\.attention\.', 'attn.'),
    ):  # fmt: skip
      name = re.sub(pattern, new, name)
    state[name] = value
  for name in [n for n in state if '.attn.query.' in n]:
    parts = [state.pop(name.replace('query', part)) for part in ('query', 'key', 'value')]
    state[name.replace('query', 'qkv')] = torch.cat(parts)
  return state


@pytest.mark.parametrize('middle', [True, False])
def test_files_of_hustvl(tmp_path, middle):
  """Their names and packed products; sizes that nobody says have to be said."""
  module = yolos(use_mid_position_embeddings=middle, layer_norm_eps=1e-6)
  saved = {'model': of_hustvl(module), 'epoch': 299, 'args': argparse.Namespace(lr=1e-4)}
  torch.save(saved, tmp_path / 'checkpoint.pth')
  said = dict(image_size=(32, 48), num_heads=4)
  model = vit_jax.load(tmp_path / 'checkpoint.pth', encoder=said)
  assert (model.config.kind, model.config.middle) == ('yolos', middle)
  assert (model.config.encoder.queries, model.card.task['name']) == (QUERIES, 'detection')
  x = images((24, 40, 3))
  with torch.no_grad():
    want = module(torch_images(x))
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda model, x: model(x))(model, jnp.asarray(x))
  close(got['logits'][:, 0], numpy(want.logits), 1e-5, 'logits')
  close(got['boxes'][:, 0], numpy(want.pred_boxes), 1e-5, 'boxes')
  with pytest.raises(vit_jax.RunError, match='24 patches are no square: give encoder'):
    vit_jax.load(tmp_path / 'checkpoint.pth', encoder=dict(num_heads=4))
  if middle:
    saved['model']['backbone.mid_pos_embed'] = torch.zeros(2, 1, 40, WIDTH)
    torch.save(saved, tmp_path / 'other.pth')
    with pytest.raises(vit_jax.RunError, match='between layers are of 40 tokens'):
      vit_jax.load(tmp_path / 'other.pth', encoder=said)


def test_own_detectors_become_yolos(tmp_path):
  """Tokens without positions get zeros; a sigmoid is refused."""
  config = dict(variant='', image_size=(32, 48), patch_size=8, width=WIDTH, depth=2, mlp_dim=48,
                num_heads=4, mlp='gelu', queries=QUERIES, class_token=True)  # fmt: skip
  made = YolosConfig(ViTConfig(**config), CLASSES, middle=True)
  model = made.create(nnx.Rngs(0))
  vit_jax.save(model, tmp_path / 'ours', 'transformers')
  module = hf.YolosForObjectDetection.from_pretrained(tmp_path / 'ours').eval()
  x = images((32, 48, 3))
  with torch.no_grad(), jax.default_matmul_precision('highest'):
    close(model(jnp.asarray(x))['logits'][:, 0], numpy(module(torch_images(x)).logits), 1e-5, '')
  sigmoid = dataclasses.replace(made, nothing=False).create(nnx.Rngs(0))
  with pytest.raises(vit_jax.RunError, match='cannot express nothing=False'):
    vit_jax.save(sigmoid, tmp_path / 'sigmoid', 'transformers')


def detr():
  torch.manual_seed(0)
  backbone = hf.ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type='basic',
    out_features=['stage1', 'stage2', 'stage3', 'stage4'],
  )  # fmt: skip
  config = hf.DetrConfig(
    use_timm_backbone=False, backbone_config=backbone, d_model=64, encoder_layers=1,
    decoder_layers=3, encoder_ffn_dim=48, decoder_ffn_dim=80, encoder_attention_heads=8,
    decoder_attention_heads=8, num_queries=QUERIES, num_labels=CLASSES,
  )  # fmt: skip
  return shake(hf.DetrForObjectDetection(config), 1)


def of_meta(name):
  """The names in Meta's own files, by those of transformers in memory."""
  for pattern, new in (
    (r'^model\.decoder\.layers', 'transformer.decoder.layers'),
    (r'^model\.decoder\.layernorm', 'transformer.decoder.norm'),
    (r'^model\.query_position_embeddings', 'query_embed'),
    (r'^class_labels_classifier', 'class_embed'), (r'^bbox_predictor', 'bbox_embed'),
    (r'\.self_attn_layer_norm', '.norm1'), (r'\.encoder_attn_layer_norm', '.norm2'),
    (r'\.final_layer_norm', '.norm3'), (r'\.encoder_attn\.', '.multihead_attn.'),
    (r'\.mlp\.fc', '.linear'), (r'\.o_proj', '.out_proj'),
  ):  # fmt: skip
    name = re.sub(pattern, new, name)
  return name


def meta(module):
  """What Meta's code would have saved."""
  state = {of_meta(name): value for name, value in module.state_dict().items()}
  for name in [n for n in state if '.q_proj.' in n and n.startswith('transformer')]:
    parts = [state.pop(name.replace('.q_proj.', f'.{part}_proj.')) for part in 'qkv']
    state[name.replace('.q_proj.', '.in_proj_')] = torch.cat(parts)
  return state


def test_decoder_of_detr(tmp_path):
  """Behind their own encoder, with padding; auxiliary answers; from all names they have."""
  module = detr()
  module.save_pretrained(tmp_path / 'saved', save_original_format=True)
  write(module, tmp_path / 'memory', lambda name: name)
  torch.save({'model': meta(module), 'epoch': 499}, tmp_path / 'detr.pth')
  decoder = vit_jax.load(tmp_path / 'saved')
  assert decoder.config.kind == 'decoder'
  config = decoder.config
  assert (config.depth, config.num_heads, config.mlp_dim) == (3, 8, 80)
  assert (config.queries, config.num_classes, config.nothing) == (QUERIES, CLASSES, True)
  for other in ('memory', 'detr.pth'):
    again = vit_jax.load(tmp_path / other, num_heads=8)
    assert again.config == config
    for name, leaf in tree.flatten(decoder).items():
      np.testing.assert_array_equal(tree.flatten(again)[name], leaf, name)
  x = images((96, 128, 3))
  mask = torch.ones(len(x), 96, 128)
  mask[1, 64:], mask[1, :, 96:] = 0, 0
  seen, outputs = {}, []
  for layer in module.model.decoder.layers:
    layer.register_forward_hook(lambda module, args, out: outputs.append(out))
  module.model.decoder.register_forward_pre_hook(
    lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
  )
  with torch.no_grad():
    out = module(torch_images(x), pixel_mask=mask)
    # With auxiliary_loss theirs puts the norm between layers, where Meta's code has none.
    hidden = module.model.decoder.layernorm(torch.stack(outputs))
    want = module.class_labels_classifier(hidden), module.bbox_predictor(hidden).sigmoid()
  there = numpy(seen['encoder_attention_mask']).astype(bool).reshape(len(x), -1)
  assert there.all(1).tolist() == [True, False, True]
  memory, position = (
    jnp.asarray(numpy(seen[name]))
    for name in ('encoder_hidden_states', 'spatial_position_embeddings')
  )
  with jax.default_matmul_precision('highest'):
    got = jax.jit(lambda d, *args: d(args[0], None, there=args[1], position=args[2]))(
      decoder, memory, jnp.asarray(there), position
    )
  for name, all_layers, last in (
    ('logits', want[0], out.logits), ('boxes', want[1], out.pred_boxes)
  ):  # fmt: skip
    close(got[name], numpy(all_layers).swapaxes(0, 1), 1e-5, name)
    close(got[name][:, -1], numpy(last), 1e-5, name)


def test_positions_are_sines_of_detr():
  """Theirs count from 1: at the far edge of a cell."""
  theirs = hf.models.detr.modeling_detr.DetrSinePositionEmbedding(16, normalize=True)
  want = theirs(torch.Size([1, 32, 4, 6]), 'cpu', torch.float32)
  rows, columns = np.mgrid[1:5, 1:7]
  at = np.stack([rows / 4, columns / 6], -1)
  got = positions.sines(at, 16, 10_000.0)
  np.testing.assert_allclose(got, numpy(want)[0].transpose(1, 2, 0), atol=2e-5)


def test_noisy_queries_are_those_of_rt_detr(monkeypatch):
  """Labels, boxes and who sees whom, with the same draws; the number of groups is ours to fix."""
  rng = np.random.default_rng(3)
  batch, most, groups = 2, 3, 2
  queries = 2 * groups * most
  flip, label = rng.random((2, batch, queries)).astype(np.float32)
  side = rng.integers(0, 2, (batch, queries, 4))
  part = rng.random((batch, queries, 4)).astype(np.float32)
  box = rng.uniform(0.2, 0.6, (batch, most, 4)).astype(np.float32)
  classes = rng.integers(0, CLASSES, (batch, most))
  there = np.array([[True, True, True], [True, False, False]])
  integers = iter([np.minimum(label * CLASSES, CLASSES - 1).astype(np.int32), side])
  numbers = iter([flip, part])
  tensor = lambda values: torch.from_numpy(np.asarray(next(values)))  # noqa: E731
  monkeypatch.setattr(torch, 'randint_like', lambda *_, **__: tensor(integers))
  monkeypatch.setattr(torch, 'rand_like', lambda *_, **__: tensor(numbers))
  targets = [
    {'class_labels': torch.from_numpy(c[t]), 'boxes': torch.from_numpy(b[t])}
    for c, b, t in zip(classes, box, there, strict=True)
  ]
  module = hf.models.rt_detr.modeling_rt_detr
  embed = lambda labels: labels  # noqa: E731
  theirs, boxes, hidden, meta = module.get_contrastive_denoising_training_group(
    targets, CLASSES, 5, embed, num_denoising_queries=groups * most
  )
  assert meta['dn_num_group'] == groups
  known = Targets(jnp.asarray(box), jnp.asarray(classes, jnp.int32), jnp.asarray(there),
                  jnp.ones(batch))  # fmt: skip
  draws = denoising.Draws(*map(jnp.asarray, (flip, label, 2.0 * side - 1, part)))
  got_label, got_box, group = denoising.noisy(known, groups, draws, CLASSES, 0.5, 1.0)
  seen = np.asarray(group) > 0
  np.testing.assert_array_equal(got_label[seen], numpy(theirs)[seen])
  want = numpy(boxes.sigmoid())
  np.testing.assert_allclose(np.asarray(got_box)[seen], want[seen], atol=2e-5)
  # Of queries that are there: theirs see those of their group, too, and no others of these.
  mask = numpy(hidden)[:queries, :queries] == 0
  for own, at in zip(np.asarray(group), seen, strict=True):
    same = own[at][:, None] == own[at]
    np.testing.assert_array_equal(same, mask[np.ix_(at, at)])
  # Which query is for which object, in the loss.
  _, _, place = denoising.by_group(
    jnp.zeros((batch, 1, queries, CLASSES)), jnp.zeros((batch, 1, queries, 4)), known, groups,
    nothing=False,
  )  # fmt: skip
  for image, positive in enumerate(meta['dn_positive_idx']):
    own = np.asarray(place)[image]
    first = 2 * most * np.arange(groups)[:, None]
    np.testing.assert_array_equal((own + first)[own >= 0], numpy(positive))


def test_yolos_learns_as_theirs(tmp_path):
  """Loss of a batch, an image without objects among them, and its gradient by every parameter."""
  module = yolos()
  folder = write(module, tmp_path / 'theirs')
  opened, model = open_checkpoint(folder), vit_jax.load(folder)
  rng = np.random.default_rng(4)
  x, most = images((32, 48, 3)), 4
  counts = [3, 0, 2][: len(x)]
  centres, sides = (
    rng.uniform(0.3, 0.7, (len(x), most, 2)),
    rng.uniform(0.1, 0.5, (len(x), most, 2)),
  )
  boxes = np.concatenate([centres, sides], -1).astype(np.float32)
  corners = np.concatenate([centres - sides / 2, centres + sides / 2], -1)
  classes = rng.integers(0, CLASSES, (len(x), most))
  labels = [
    {'class_labels': torch.from_numpy(c[:n]), 'boxes': torch.from_numpy(b[:n])}
    for c, b, n in zip(classes, boxes, counts, strict=True)
  ]
  out = module(torch_images(x), labels=labels)
  out.loss.backward()
  batch = {
    'image': jnp.asarray(x), 'boxes_label': jnp.asarray(classes, jnp.int32),
    'boxes': jnp.asarray(corners, jnp.float32),
    'boxes_known': jnp.asarray(np.arange(most) < np.array(counts)[:, None], jnp.float32),
    'mask': jnp.ones(len(x)), 'boxes_left_out': jnp.zeros(len(x)),
  }  # fmt: skip
  task = Detection(most=most, class_weight=1.0)

  @jax.jit
  def learned(model):
    totals = {name: jnp.maximum(total, 1) for name, total in task.totals(batch).items()}
    context = Context({}, totals, {}, None, 0, None)
    return jax.value_and_grad(lambda model: task.loss(model, batch, context)[0])(model)

  with jax.default_matmul_precision('highest'):
    loss, gradient = learned(model)
  np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)
  found = layout.write(opened.rules, tree.flatten(gradient))
  theirs = {published(name): numpy(p.grad) for name, p in module.named_parameters()}
  for name, want in theirs.items():
    scale = np.abs(theirs[name.replace('.key.', '.query.')] if '.key.bias' in name else want).max()
    np.testing.assert_allclose(found[name] / scale, want / scale, atol=1e-4, err_msg=name)
