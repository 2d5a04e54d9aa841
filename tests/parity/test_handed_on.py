"""Models as runs leave them, in the programs of others: their loaders, processors and results."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image

import vit_jax
from tests.parity.references import hf, numpy, timm
from tests.parity.test_images import close, images, torch_images
from vit_jax.architecture.card import Card
from vit_jax.core.errors import RunError
from vit_jax.predict import prepare

pytestmark = pytest.mark.filterwarnings('ignore')
NAMES = ('Katze', 'größer', '"quoted"', 'cat', 'cat', '猫', "it's, a\tname")
SIZE = dict(patch_size=8, width=24, depth=2, mlp_dim=40, num_heads=3, image_size=(32, 32),
            num_classes=len(NAMES))  # fmt: skip
EVA = dict(mlp='swiglu', layerscale=0.1)
# What runs may be like, and who can hold it.
RUNS = {
  'plain': (dict(), {'transformers', 'timm'}),
  'defaults of image_folder': (dict(pool='mean', posemb='sincos'), {'transformers', 'timm'}),
  'grey': (dict(pool='mean', in_channels=1), {'transformers', 'timm'}),
  'digits': (dict(pool='map', in_channels=1), {'timm'}),
  'fixed positions': (dict(posemb='sincos'), {'transformers', 'timm'}),
  'factorised': (dict(posemb='factorised'), {'transformers', 'timm'}),
  'without positions': (dict(posemb='none'), {'transformers', 'timm'}),
  'not square': (dict(image_size=(24, 40)), {'transformers', 'timm'}),
  'not square, mean': (dict(image_size=(24, 40), pool='mean', posemb='sincos'), {'timm'}),
  'registers': (dict(registers=2), {'timm'}),
  'registers with positions': (dict(registers=2, posemb_tokens='all'), {'timm'}),
  'registers of the mean': (dict(registers=2, pool='mean', class_token=True), {'timm'}),
  'dinov2': (dict(layerscale=0.1, mask_token=True, mlp='gelu', mlp_dim=96),
             {'transformers', 'timm'}),
  'dinov2, mean': (dict(layerscale=0.1, registers=2, class_token=True, pool='mean', mlp_dim=96),
                   {'transformers', 'timm'}),
  'distilled': (dict(distilled=True, mlp='gelu'), {'transformers', 'timm'}),
  'no biases': (dict(no_bias='query,key,value,out,mlp,norm,head'), {'transformers', 'timm'}),
  'some biases': (dict(no_bias='key,mlp'), {'transformers', 'timm'}),
  'no key biases': (dict(no_bias='key', mlp='gelu'), {'transformers', 'timm'}),
  'rmsnorm': (dict(norm='rmsnorm', qk_norm=True), {'timm'}),
  'norm of the hidden layer': (dict(mlp_norm=True), {'timm'}),
  'norm after pooling': (dict(pool='mean', pool_norm=True), {'timm'}),
  'embedding norm': (dict(embed_norm=True, no_bias='embed'), {'timm'}),
  'embedding norm of CLIP': (dict(embed_norm=True, no_bias='embed,head', eps=1e-5),
                             {'transformers', 'timm'}),
  'coarse eps': (dict(eps=1e-5), {'transformers', 'timm'}),
  'gated': (dict(mlp='swiglu', registers=1), {'timm'}),
  'gated, mean': (dict(mlp='swiglu', layerscale=0.1, pool='mean'), {'timm'}),
  'rotary': (dict(EVA, rope='unit', posemb='none', registers=2), {'timm'}),
  'rotary, coarse eps': (dict(EVA, rope='unit', posemb='none', eps=1e-5), {'timm'}),
  'rotary, no key biases': (dict(rope='unit', mlp='gelu', no_bias='key'), {'timm'}),
  'rotary on a grid': (dict(rope='grid', mlp='gelu', pool='mean', rope_grid=(3, 5)), {'timm'}),
  'rotary, normed': (dict(EVA, rope='grid', mlp_norm=True, no_bias='key', qk_norm=True), {'timm'}),
  'rotary, not square': (dict(EVA, rope='grid', image_size=(24, 40)), {'timm'}),
  'relative': (dict(relative_bias='layer', mlp='gelu', posemb='none', pool_norm=True, pool='mean',
                    class_token=True), {'transformers', 'timm'}),
  'relative, shared': (dict(relative_bias='shared', mlp='gelu'), {'transformers', 'timm'}),
  'relative, gated': (dict(EVA, relative_bias='layer', posemb='sincos'), {'timm'}),
  'mup': (dict(mup_width=12, mup_depth=1), {'transformers', 'timm'}),
  'mup, pooled': (dict(mup_width=12, mup_depth=1, pool='map', qk_norm=True), {'timm'}),
  'mup, scaled': (dict(mup_depth=1, layerscale=0.1), {'timm'}),
  'parallel': (dict(parallel=True), set()),
  'norms after': (dict(norm_place='post'), set()),
  'one class': (dict(num_classes=1), {'transformers', 'timm'}),
}  # fmt: skip


def make(config, crop=0.875, resize='area'):
  """A model in which nothing is zero or one, and its card as runs have it."""
  model = vit_jax.create('S/8', **{**SIZE, **config})
  rng = np.random.default_rng(0)
  model = jax.tree.map(lambda w: w + 0.2 * rng.normal(size=w.shape).astype(np.float32), model)
  config = model.config
  stats = ((0.4, 0.5, 0.45), (0.2, 0.3, 0.25)) if config.in_channels == 3 else ((0.286,), (0.353,))
  names = NAMES if config.num_classes == len(NAMES) else ()
  model.card = Card('vit_jax', config.image_size, *stats, resize, crop, names)
  return model


def results(model, x):
  with jax.default_matmul_precision('highest'):
    return model(x)


@pytest.fixture(scope='module', params=list(RUNS))
def case(request, tmp_path_factory):
  config, able = RUNS[request.param]
  model = make(config)
  x = images((*model.config.image_size, model.config.in_channels))
  return request.param, model, x, able, tmp_path_factory.mktemp('case')


def save(model, path, dialect, able):
  if dialect in able:
    vit_jax.save(model, path, dialect)
    return path
  with pytest.raises(RunError, match='Dialects that can hold this model: ') as error:
    vit_jax.save(model, path, dialect)
  assert set(str(error.value).rpartition(': ')[2].split(', ')) >= able | {'vit_jax'}
  return None


def test_timm_makes_the_same_model(case):
  name, model, x, able, folder = case
  if not save(model, folder / 'timm', 'timm', able):
    return
  module = timm.create_model(f'local-dir:{folder / "timm"}', pretrained=True).eval()
  with torch.no_grad():
    close(results(model, x), numpy(module(torch_images(x))), 1e-5, name)
  again = vit_jax.load(folder / 'timm')
  close(results(again, x), results(model, x), 1e-5, name)
  assert again.card.class_names == model.card.class_names
  cfg = module.pretrained_cfg
  assert tuple(cfg.get('label_names') or ()) == model.card.class_names
  data = timm.data.resolve_data_config({}, model=module)
  assert tuple(data['input_size']) == (model.config.in_channels, *model.config.image_size)
  assert (tuple(data['mean']), tuple(data['std'])) == (model.card.mean, model.card.std)


def test_transformers_makes_the_same_model(case):
  name, model, x, able, folder = case
  for dialect in ('transformers', 'transformers-v5'):
    path = folder / dialect
    if not save(model, path, dialect, {dialect} if 'transformers' in able else set()):
      continue
    clip = model.config.embed_norm
    auto = hf.CLIPVisionModelWithProjection if clip else hf.AutoModelForImageClassification
    if model.config.distilled:  # both heads; the automatic class takes one
      auto = hf.DeiTForImageClassificationWithTeacher
    module, info = auto.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
      out = module.eval()(torch_images(x))
    close(results(model, x), numpy(out.image_embeds if clip else out.logits), 1e-5, name)
    again = vit_jax.load(path)
    close(results(again, x), results(model, x), 1e-5, name)
    if not clip and model.card.class_names:
      labels = [module.config.id2label[i] for i in range(model.config.num_classes)]
      assert tuple(labels) == model.card.class_names == again.card.class_names
    processor = hf.AutoImageProcessor.from_pretrained(path)
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (
      model.card.mean, model.card.std
    )  # fmt: skip


def pictures(channels):
  """Smooth random images of several shapes, larger and smaller than those of models."""
  rng = np.random.default_rng(0)
  for height, width in ((60, 90), (90, 60), (64, 64), (24, 31), (33, 120)):
    small = rng.integers(0, 255, (6, 6, channels), np.uint8)
    image = Image.fromarray(small[..., 0] if channels == 1 else small)
    yield np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(
      height, width, channels
    )


CROPS = {
  'as in training': dict(), 'whole': dict(crop=0.0), 'tight': dict(crop=0.6),
  'timm': dict(resize='bicubic', crop=0.9), 'all of the middle': dict(resize='bilinear', crop=1.0),
}  # fmt: skip


@pytest.mark.parametrize('shape', [(32, 32, 3), (32, 32, 1), (24, 40, 3)], ids=str)
@pytest.mark.parametrize('how', list(CROPS))
def test_images_are_prepared_as_the_folder_says(tmp_path, how, shape):
  """By their processors and by ours, from the same folder; and much as in our own evaluations."""
  model = make(dict(image_size=shape[:2], in_channels=shape[2]), **CROPS[how])
  vit_jax.save(model, tmp_path / 'timm', 'timm')
  vit_jax.save(model, tmp_path / 'hf', 'transformers')
  module = timm.create_model(f'local-dir:{tmp_path / "timm"}')
  transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=module))
  processor = hf.AutoImageProcessor.from_pretrained(tmp_path / 'hf')
  cards = {n: vit_jax.load(tmp_path / n).card for n in ('timm', 'hf')}
  errors = []
  for image in pictures(shape[2]):
    ours = prepare(image, model.card)
    picture = Image.fromarray(image[..., 0] if shape[2] == 1 else image)
    theirs = {
      'timm': numpy(transform(picture)).transpose(1, 2, 0),
      'hf': numpy(processor(picture, return_tensors='pt')['pixel_values'][0]).transpose(1, 2, 0),
    }
    for name, pixels in theirs.items():
      assert pixels.shape == ours.shape == shape
      distorted = name == 'hf' and shape[0] != shape[1] and model.card.crop
      if not distorted:  # up to the rounding to whole levels
        level = 1.01 / 255 / min(model.card.std)
        np.testing.assert_allclose(prepare(image, cards[name]), pixels, atol=level, rtol=0)
        errors.append(np.abs(pixels - ours).mean() * 255 * np.mean(model.card.std))
  if model.card.resize == 'area':  # of 255 levels, between random images shifted by half a pixel
    assert np.mean(errors) < 8


def test_a_folder_for_timm_is_one_for_transformers(tmp_path):
  model = make(dict(pool='mean', posemb='sincos'))
  vit_jax.save(model, tmp_path / 'timm', 'timm')
  module = hf.AutoModelForImageClassification.from_pretrained(tmp_path / 'timm').eval()
  x = images((32, 32, 3))
  with torch.no_grad():
    close(results(model, x), numpy(module(torch_images(x)).logits), 1e-5, 'logits')


def test_a_card_may_have_another_size_than_the_model(tmp_path):
  model = make(dict())
  model.card = dataclasses.replace(model.card, size=(64, 64))
  vit_jax.save(model, tmp_path / 'hf', 'transformers')
  config = json.loads((tmp_path / 'hf' / 'preprocessor_config.json').read_text())
  assert config['crop_size'] == dict(height=64, width=64)
