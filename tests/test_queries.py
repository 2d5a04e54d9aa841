"""Detectors with queries: sizes as published, costs, anchors, padding, queries of noisy boxes."""

import dataclasses
import json
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

import vit_jax
from tests.conftest import tiers
from tests.test_costs import products, traced
from vit_jax import models
from vit_jax.architecture.card import Card
from vit_jax.architecture.detr import ANCHORS
from vit_jax.convert import adapt, layout, timm
from vit_jax.convert import detr as detr_dialect
from vit_jax.convert import yolos as yolos_dialect
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.costs import flops
from vit_jax.costs.parts import parts
from vit_jax.data import crops, preprocess
from vit_jax.data.fields import Boxes, Field
from vit_jax.data.views import View
from vit_jax.models.detr import SIDE, DecoderConfig, DetrConfig, Noisy
from vit_jax.models.token_detector import TokenDetectorConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.models.yolos import YolosConfig
from vit_jax.nn import sharding, tree
from vit_jax.predict import Inputs, Predictor
from vit_jax.tasks.detection import Detection
from vit_jax.tasks.matching import Targets
from vit_jax.tasks.task import Seen
from vit_jax.training import config as config_lib
from vit_jax.training import lanes

VIT = dict(variant='', image_size=(16, 24), patch_size=4, width=16, depth=2, num_heads=2,
           mlp_dim=32)  # fmt: skip
DECODER = dict(width=16, depth=2, num_heads=2, queries=5)
PLACES = 24


def yolos(**changes):
  return YolosConfig(ViTConfig(**VIT, queries=5), 3, middle=True, **changes)


def detr(anchors='tokens', **changes):
  decoder = DecoderConfig(**{**DECODER, 'anchors': anchors, **changes})
  return DetrConfig(ViTConfig(**VIT), decoder, 3)


def make(config, seed=7):
  """A model in which nothing is zero or one, so that every parameter matters."""
  model = config.create(nnx.Rngs(0))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda w: jnp.asarray(w + 0.1 * rng.normal(size=w.shape), w.dtype), model)


def images(batch=2):
  return jnp.asarray(np.random.default_rng(1).normal(size=(batch, 16, 24, 3)), jnp.float32)


def count(config):
  config = config.resolve()
  model = jax.eval_shape(lambda: models.create(config, nnx.Rngs(jax.random.key(0))))
  found = sum(leaf.size for leaf in jax.tree.leaves(model))
  assert found == sum(part.params for part in parts(config))
  return found


@pytest.mark.parametrize(
  ('size', 'image', 'middle', 'parameters'),
  [
    ('Ti', (800, 1328), False, 6_488_736), ('S', (512, 864), True, 30_684_768),
    ('B', (800, 1344), True, 127_798_368),
  ],
)  # fmt: skip
def test_yolos_has_as_many_parameters_as_published(size, image, middle, parameters):
  encoder = ViTConfig(f'deit:{size}/16', image_size=image, posemb_tokens='all')
  assert count(YolosConfig(encoder, 91, middle=middle)) == parameters


def test_decoder_has_as_many_parameters_as_published():
  """18,069,856 of DETR with 91 classes behind its ResNet, less projection and encoder."""
  attention, mlp = 4 * (256 * 256 + 256), 2 * 256 * 2048 + 2048 + 256
  encoder = 6 * (attention + mlp + 2 * 2 * 256)
  assert count(DecoderConfig(num_classes=91)) == 18_069_856 - encoder - (2048 * 256 + 256)


@pytest.mark.parametrize(
  'config', [yolos(), *map(detr, ANCHORS), detr('none', masks=True)],
  ids=('yolos', *ANCHORS, 'masks'),
)  # fmt: skip
def test_costs_are_those_of_the_program(config):
  model = make(config)
  assert count(config) == sum(leaf.size for leaf in jax.tree.leaves(model))
  program = traced(lambda model, x: model(x), model, images())
  assert products(program) == 2 * flops.forward_macs(model.config)


def loss_and_grad(config):
  @jax.jit
  def run(model, x):
    def loss(model):
      out = model(x, key=jax.random.key(3))
      return jnp.sin(out['logits']).mean() + jnp.square(out['boxes']).mean()

    return jax.value_and_grad(loss)(model)

  return run(make(config), images())


@pytest.mark.parametrize(
  'changes', tiers([dict(scan=False, remat='full'), dict(scan=False), dict(remat='full')], 0)
)
def test_scan_and_remat_change_nothing(changes):
  """Of what happens between layers: boxes that are corrected, and positions that are added."""
  more = dict(drop_path=0.2)
  for plain, other in (
    (detr(**more), detr(**more, **changes)),
    (yolos(), dataclasses.replace(yolos(), encoder=ViTConfig(**VIT, queries=5, **changes))),
  ):
    (loss, grad), (same, again) = map(loss_and_grad, (plain, other))
    np.testing.assert_allclose(same, loss, rtol=1e-6)
    again = tree.flatten(again)
    for name, value in tree.flatten(grad).items():
      np.testing.assert_allclose(again[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
      assert np.abs(value).max() > 0 or 'key/bias' in name, name


def test_what_is_filled_up_is_not_looked_at():
  """Another filling changes nothing, and all of an image is an image."""
  extent = jnp.array([[1.0, 1.0], [0.5, 5 / 6]])
  x = np.array(images())
  other = x.copy()
  other[1, 8:], other[1, :, 20:] = 9, -9
  dense = TokenDetectorConfig(ViTConfig(**VIT), 3)
  for config in (*map(detr, ANCHORS), detr('none', masks=True), dense):
    model = make(config)
    run = jax.jit(lambda model, x, extent: model(x, extent=extent))
    one, two = (run(model, jnp.asarray(each), extent) for each in (x, other))
    whole = jax.jit(lambda model, x: model(x))(model, jnp.asarray(x))
    for name in config.says:
      there = np.ones(one[name].shape[2], bool)
      if config == dense:  # what patches say that are no image is not asked
        there = np.arange(PLACES) % 6 < 5
        there &= np.arange(PLACES) < 12
      np.testing.assert_allclose(one[name][1, :, there], two[name][1, :, there], atol=1e-6)
      np.testing.assert_allclose(one[name][0], whole[name][0], atol=1e-5)
      assert np.abs(one[name][1] - whole[name][1]).max() > 1e-3
    if config == dense:
      assert (one['logits'][1, :, ~there] < -20).all()


def test_anchors_before_anything_is_learned():
  """Learned ones stay where they are; of tokens they are boxes around the patches, in the image."""
  model = detr('learned').create(nnx.Rngs(0))
  said = model(images())['boxes']
  assert said.shape == (2, 2, 5, 4)
  want = jax.nn.sigmoid(model.decoder.anchors[...])
  np.testing.assert_allclose(said, np.broadcast_to(want[:, None], said.shape), atol=1e-6)
  model = detr('tokens', queries=PLACES).create(nnx.Rngs(0))
  # Of the second image the left upper quarter is there: 2 x 3 patches.
  extent = jnp.array([[1.0, 1.0], [0.5, 0.5]])
  said = np.asarray(model(images(), extent=extent)['boxes'])
  assert said.shape == (2, 3, PLACES, 4)
  centres = np.stack(np.meshgrid((np.arange(6) + 0.5) / 6, (np.arange(4) + 0.5) / 4), -1)
  for image, size, there in ((0, (4, 6), PLACES), (1, (2, 3), 6)):
    own = centres[: size[0], : size[1]].reshape(-1, 2) * (4 / size[0])
    for layer in said[image]:
      found = layer[:there]
      found = found[np.lexsort(found[:, :2].T)]
      np.testing.assert_allclose(found[:, :2], own, atol=1e-5)
      np.testing.assert_allclose(found[:, 2:], SIDE, atol=1e-6)


def test_the_tokens_most_like_an_object_are_asked():
  model = make(detr('tokens', nothing=False))
  out = model(images())
  # By their own head, on their normed projections.
  decoder, x = model.decoder, model.encoder.features(images())['patches'].reshape(2, PLACES, 16)
  memory = x @ model.project.kernel[...] + model.project.bias[...]
  logits = (
    decoder.token_norm(memory) @ decoder.token_head.kernel[...] + decoder.token_head.bias[...]
  )
  best = np.sort(np.asarray(logits.max(-1)), axis=1)[:, ::-1][:, :5]
  np.testing.assert_allclose(out['logits'][:, 0].max(-1), best, rtol=1e-5)


def test_a_sigmoid_begins_with_few_objects():
  for config in (detr(nothing=False), dataclasses.replace(yolos(), nothing=False)):
    model = config.create(nnx.Rngs(0))
    bias = (model.decoder.head if config.kind == 'detr' else model.head.layers[-1]).bias[...]
    np.testing.assert_allclose(jax.nn.sigmoid(bias), 0.01, rtol=1e-5)
    assert bias.shape == (3,)


def test_noisy_queries_are_among_themselves():
  """They change no other query, and no other group; what is not there changes nothing."""
  model = make(detr('learned', denoising=True))
  rng = np.random.default_rng(0)
  box = rng.uniform(0.2, 0.7, (2, 6, 4)).astype(np.float32)
  label = rng.integers(0, 3, (2, 6))
  group = np.array([[1, 1, -1, 2, 2, 2]] * 2)
  run = jax.jit(lambda label, box, group: model(images(), noisy=Noisy(label, box, group)))
  plain = model(images())
  out = run(label, box, group)
  assert out['noisy_logits'].shape == (2, 2, 6, 3 + 1)
  assert out['noisy_boxes'].shape == (2, 2, 6, 4)
  changed = box.copy()
  changed[:, 2], changed[:, 3] = 0.9, 0.1
  other = run(label, changed, group)
  for name in ('logits', 'boxes'):
    np.testing.assert_allclose(out[name], plain[name], atol=1e-6)
    np.testing.assert_allclose(other[name], plain[name], atol=1e-6)
    ours, theirs = out[f'noisy_{name}'], other[f'noisy_{name}']
    np.testing.assert_allclose(ours[:, :, :2], theirs[:, :, :2], atol=1e-6)
    assert np.abs(ours[:, -1, 4:] - theirs[:, -1, 4:]).max() > 1e-4
  # Before anything is learned boxes stay as noisy as they are.
  fresh = detr('learned', denoising=True).create(nnx.Rngs(0))
  said = fresh(images(), noisy=Noisy(label, box, group))['noisy_boxes']
  np.testing.assert_allclose(said, np.broadcast_to(box[:, None], said.shape), atol=1e-6)
  with pytest.raises(ValueError, match='create it with denoising=True'):
    make(detr('learned'))(images(), noisy=Noisy(label, box, group))


@pytest.mark.parametrize(
  ('build', 'message'),
  [
    (lambda: detr('none', denoising=True), 'noisy boxes are anchors: use anchors=learned'),
    (lambda: detr(queries=25), 'queries=25 are more than the 24 tokens that are to be anchors'),
    (lambda: detr(masks=True, width=24), 'width=24 of a decoder with masks must be a multiple of'),
    (lambda: detr('anchor'), "unknown model.anchors 'anchor'"),
    (lambda: detr(attention='full'), 'does not attend to the memory that there is'),
    (lambda: detr(width=18, num_heads=2), 'width=18 of a decoder must be a multiple of 4'),
    (lambda: detr(queries=0), 'queries=0 of a decoder must be at least 1'),
    (lambda: dataclasses.replace(yolos(), num_classes=-1), 'num_classes=-1 must not be negative'),
    (lambda: dataclasses.replace(yolos(), encoder=ViTConfig(**VIT, patch_dropout=0.1)),
     'objects may be on any patch'),
    (lambda: dataclasses.replace(detr(), encoder=ViTConfig(**VIT, num_classes=2)),
     'the head is that of queries: leave it out'),
  ],
)  # fmt: skip
def test_what_makes_no_detector_is_refused(build, message):
  with pytest.raises(RunError, match=message):
    build().resolve()


def test_a_detector_without_tokens_to_read_gets_a_hundred():
  encoder = YolosConfig(ViTConfig(**VIT), 3).resolve().encoder
  assert encoder.queries == 100
  assert math.prod(encoder.grid) == PLACES


def test_published_yolos_predicts(tmp_path):
  """In the frame of an image of another shape, which is not squeezed."""
  model = make(yolos())
  names = ('person', 'bicycle', 'car')
  model.card = Card('vit_jax', (16, 24), resize='bilinear', class_names=names, fills=True)
  vit_jax.save(model, tmp_path / 'theirs', 'transformers')
  again = vit_jax.load(tmp_path / 'theirs')
  assert again.card.task['name'] == 'detection'
  assert (again.card.class_names, again.card.fills) == (names, True)
  predictor = Predictor(again, batch_size=1)
  task = dataclasses.replace(predictor.task, threshold=0.0)
  pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
  cv2.imwrite(str(tmp_path / 'a.png'), pixels[..., ::-1])
  (found,) = predictor(Inputs([tmp_path / 'a.png']))
  # 16 x 12 pixels in the frame of 16 x 24; what is filled up is 0 of normalised images.
  small = np.asarray(preprocess._pillow(pixels, (16, 12), 'bilinear')) / 255
  frame = np.zeros((1, 16, 24, 3), np.float32)
  frame[0, :, :12] = (small - again.card.mean) / again.card.std
  with jax.default_matmul_precision('highest'):
    said = again(jnp.asarray(frame))
  x, y, w, h = np.asarray(said['boxes'][0, 0]).T * np.array([30, 40, 30, 40])[:, None]
  want = np.clip(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1), 0, [30, 40, 30, 40])
  scores = np.asarray(jax.nn.softmax(said['logits'][0, 0]))[:, :-1]
  order = np.argsort(-scores.max(1))
  objects = task.decode(found.outputs, found.example, predictor.seen).facts['objects']
  assert [each['class'] for each in objects] == [names[i] for i in scores.argmax(1)[order]]
  np.testing.assert_allclose([each['box'] for each in objects], want[order], atol=0.02)


def test_files_of_its_own_code_are_yolos(tmp_path):
  """With queries behind the patches, and products of queries, keys and values in one array."""
  encoder = ViTConfig(**VIT, queries=5, posemb_tokens='all')
  model = make(YolosConfig(encoder, 3, middle=True))
  style = dict(encoder=timm.STYLES['timm'])
  rules = yolos_dialect.make_rules(model.config, adapt.abstract(model.config), style)
  arrays = layout.write(rules, tree.flatten(model))
  assert arrays['backbone.mid_pos_embed'].shape == (1, 1, 1 + 5 + PLACES, 16)
  assert arrays['backbone.blocks.1.attn.qkv.weight'].shape == (3 * 16, 16)
  save_file(arrays, tmp_path / 'yolos.safetensors')
  said = dict(image_size=(16, 24), num_heads=2)
  again = vit_jax.load(tmp_path / 'yolos.safetensors', encoder=said)
  assert (again.config.kind, again.config.encoder.queries) == ('yolos', 5)
  for name, leaf in tree.flatten(model).items():
    np.testing.assert_array_equal(tree.flatten(again)[name], leaf, name)
  with pytest.raises(RunError, match='24 patches are no square'):
    vit_jax.load(tmp_path / 'yolos.safetensors', encoder=dict(num_heads=2))


def test_a_decoder_of_detr_starts_one_behind_a_vit(tmp_path):
  """Its classes are new; all else of it is that of the file, whose sizes decide."""
  theirs = make(DecoderConfig(width=16, depth=3, num_heads=2, queries=6, num_classes=4))
  arrays, own = {}, tree.flatten(theirs)
  wanted = detr_dialect.make_rules(
    theirs.config, adapt.abstract(theirs.config), dict(dialect='transformers')
  )
  arrays = layout.write(wanted, own)
  arrays['model.backbone.conv1.weight'] = np.zeros((8, 3, 7, 7), np.float32)
  (tmp_path / 'detr').mkdir()
  save_file(arrays, tmp_path / 'detr' / 'model.safetensors')
  facts = dict(model_type='detr', decoder_attention_heads=2, d_model=16)
  (tmp_path / 'detr' / 'config.json').write_text(json.dumps(facts))
  config = config_lib.complete(dict(
    total='2 steps', batch_size=8, inits=dict(decoder=str(tmp_path / 'detr')),
    model=dict(name='detr', encoder=VIT), task=dict(name='detection', most=3, class_weight=1.0),
    data=dict(source=dict(
      name='generated', examples=32, generator=dict(name='shapes')
    )),
  ))  # fmt: skip
  blank, _ = config_lib.started(config, ())  # as the command line makes it
  config = config_lib.complete(blank.to_dict())
  with jax.set_mesh(sharding.make_mesh('data')):
    experiment = lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))
    assert experiment.config.model.decoder.queries == 6
    assert experiment.config.model.decoder.depth == 3
    found = tree.flatten(experiment.init().model)
  for name, leaf in own.items():
    if name.startswith('head/'):
      assert found[f'decoder/{name}'].shape[-1] == 5 + 1
    else:
      np.testing.assert_array_equal(found[f'decoder/{name}'], leaf, name)


def published_decoder(path, config):
  """A folder as DETR's with masks is written, and what is in it; a layer of a ResNet, too."""
  model = make(config)
  rules = detr_dialect.make_rules(
    model.config, adapt.abstract(model.config), dict(dialect='transformers')
  )
  arrays = {'mask_head.adapter1.weight': np.zeros((8, 3, 1, 1), np.float32)}
  for name, array in layout.write(rules, tree.flatten(model)).items():
    inner = not name.startswith(('mask_head', 'bbox_attention'))
    arrays['detr.' * inner + name] = array
  path.mkdir()
  save_file(arrays, path / 'model.safetensors')
  facts = dict(model_type='detr', decoder_attention_heads=config.num_heads, d_model=config.width)
  (path / 'config.json').write_text(json.dumps(facts))
  return tree.flatten(model)


@pytest.mark.slow
def test_a_published_decoder_says_masks(tmp_path):
  """If the task asks for them, and those of a file without are new; else they are not read."""
  config = DecoderConfig(width=32, depth=1, num_heads=4, queries=6, num_classes=4, masks=True)
  own = published_decoder(tmp_path / 'with', config)
  other = published_decoder(tmp_path / 'without', dataclasses.replace(config, masks=False))
  panoptic = dict(name='panoptic', lifted=1, most=6)

  def started(name, task, **decoder):
    config = config_lib.complete(dict(
      total='2 steps', batch_size=8, inits=dict(decoder=str(tmp_path / name)),
      model=dict(name='detr', encoder=VIT, decoder=decoder), task=task,
      data=dict(source=dict(name='generated', examples=32, generator=dict(name='shapes'))),
    ))  # fmt: skip
    return lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))

  with jax.set_mesh(sharding.make_mesh('data')):
    for name in ('with', 'without'):
      experiment = started(name, panoptic)
      assert experiment.config.model.says == ('logits', 'boxes', 'masks')
      merge = tree.flatten(experiment.abstract_state.model)['decoder/masks/merge/kernel']
      assert merge.shape == (3, 3, 32 + 4, 16)
    found = tree.flatten(experiment.init().model)
    assert 0.5 < found['decoder/masks/merge/kernel'].std() * (9 * 36) ** 0.5 < 1.5
    np.testing.assert_array_equal(found['decoder/queries'], other['queries'])
    found = tree.flatten(started('with', panoptic).init().model)
    for leaf in (name for name in own if not name.startswith('head/')):
      np.testing.assert_array_equal(found[f'decoder/{leaf}'], own[leaf], leaf)
    detection = dict(name='detection', most=3)
    assert started('with', detection, masks=False).config.model.says == ('logits', 'boxes')
    with pytest.raises(RunError, match='detection has no use for masks'):
      started('with', detection)


def test_boxes_go_through_filled_frames_and_back():
  """What a model must say is in shares of the image, and what it says is in its pixels again."""
  task, config = Detection(most=3, threshold=0.0), yolos().resolve()
  corners = np.array([[3.0, 4, 20, 30], [0, 0, 30, 40], [10, 20, 29, 39]])
  label, none = np.array([0, 2, 1]), np.zeros(3, bool)
  example = {
    'name': 'a', 'image': np.zeros((40, 30, 3), np.uint8),
    'boxes': Boxes(corners, label, none, np.ones(3)),
  }  # fmt: skip
  fields = {'image': Field('image', dtype='uint8'), 'boxes': Field('boxes', ('a', 'b', 'c'))}
  rows = task.rows(config, fields, View(crops.Fit()), train=False)
  row = rows.make(example, np.random.default_rng(0))
  batch = {name: np.asarray(value)[None] for name, value in row.items()} | {'mask': np.ones(1)}
  targets = Targets.of(jax.tree.map(jnp.asarray, batch))
  shares = corners / np.array([30, 40, 30, 40])
  want = np.concatenate([(shares[:, :2] + shares[:, 2:]) / 2, shares[:, 2:] - shares[:, :2]], 1)
  np.testing.assert_allclose(targets.boxes[0], want, atol=1e-6)

  class Says:
    """Exactly that."""

    def __init__(self, config):
      self.config = config

    def __call__(self, images, *, key=None, extent=None):
      logits = 20.0 * jax.nn.one_hot(jnp.asarray(label), 4) - jnp.arange(3)[:, None]
      return {'logits': logits[None, None], 'boxes': targets.boxes[:, None]}

  found = task.predict(Says(config), {n: jnp.asarray(v) for n, v in batch.items()})
  outputs = {name: np.asarray(value)[0] for name, value in found.items()}
  objects = task.decode(outputs, example, Seen(rows, fields)).facts['objects']
  own = {each['class']: each['box'] for each in objects}
  for name, box in zip('acb', corners, strict=True):
    np.testing.assert_allclose(own[name], box, atol=0.01)


def test_a_classifier_starts_a_yolos(tmp_path):
  """Its positions are resampled, and tokens that are read are new: a hundred."""
  theirs = vit_jax.create(
    '', image_size=(32, 32), patch_size=8, width=32, depth=2, mlp_dim=64, num_heads=2,
    class_token=True, mlp='gelu', num_classes=7,
  )  # fmt: skip
  vit_jax.save(theirs, tmp_path / 'vit', 'transformers')
  config = config_lib.complete(dict(
    total='2 steps', batch_size=8, inits=dict(encoder=str(tmp_path / 'vit')),
    model=dict(name='yolos', middle=True, encoder=dict(variant='deit:S/16', image_size=(48, 64))),
    task=dict(name='detection', most=3, class_weight=1.0),
    data=dict(source=dict(name='generated', examples=32, generator=dict(name='shapes')),
              crop=dict(name='fit')),
  ))  # fmt: skip
  with jax.set_mesh(sharding.make_mesh('data')):
    experiment = lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))
    found = tree.flatten(experiment.init().model)
  encoder = experiment.config.model.encoder
  assert (encoder.grid, encoder.width, encoder.queries) == ((6, 8), 32, 100)
  blocks = 'encoder/blocks/mlp/up/kernel'
  np.testing.assert_array_equal(found[f'encoder/{blocks}'], tree.flatten(theirs)[blocks])
  assert found['encoder/posemb'].shape == (1, 1 + 48, 32)
  np.testing.assert_array_equal(found['encoder/posemb'][:, 0], theirs.posemb[:, 0])
  assert found['middle'].shape == (1, 1 + 100 + 48, 32)
  assert np.asarray(found['encoder/queries']).std() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize('name', ['yolos', 'eomt'])
def test_queries_that_a_checkpoint_lacks_are_new(tmp_path, name):
  """As many as are asked for; and those that it has stay."""
  theirs = vit_jax.create('', image_size=(32, 32), patch_size=8, width=32, depth=2, mlp_dim=64,
                          num_heads=2, class_token=True, mlp='gelu')  # fmt: skip
  vit_jax.save(theirs, tmp_path / 'vit', 'transformers')
  tasks = {'yolos': dict(name='detection', most=3, class_weight=1.0), 'eomt': dict(name='panoptic')}
  more = dict(middle=True) if name == 'yolos' else dict(blocks=1)

  def started(path, queries):
    config = config_lib.complete(dict(
      total='2 steps', batch_size=8, inits=dict(encoder=str(tmp_path / path)), task=tasks[name],
      model=dict(name=name, **more, encoder=dict(variant='deit:S/16', queries=queries)),
      data=dict(source=dict(name='generated', examples=32, generator=dict(name='shapes'))),
    ))  # fmt: skip
    with jax.set_mesh(sharding.make_mesh('data')):
      return lanes.experiment(schema.build(config_lib.Config, config_lib.to_dict(config)))

  experiment = started('vit', 7)
  assert experiment.config.model.encoder.queries == 7
  assert experiment.config.model.encoder.width == 32
  leaves = tree.flatten(experiment.abstract_state.model)
  assert leaves['encoder/queries'].shape == (1, 7, 32)
  assert any('has nothing that fits: queries' in note for note in experiment.notes)
  own = YolosConfig(ViTConfig(**VIT, queries=5), 3).create(nnx.Rngs(0))
  own.card = Card('vit_jax', (16, 24), resize='bilinear')
  vit_jax.save(own, tmp_path / 'yolos', 'transformers')
  if name == 'yolos':
    assert started('yolos', 5).config.model.encoder.queries == 5
    with pytest.raises(RunError, match='has 5 queries, which have learned: leave out'):
      started('yolos', 7)
