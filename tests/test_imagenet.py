"""ImageNet's tests on folders that are laid out as they are published, against NumPy."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vit_jax.core.errors import RunError
from vit_jax.data.config import DataConfig
from vit_jax.data.fields import Field
from vit_jax.data.rows.columns import labelled
from vit_jax.data.sources.folder import Folder
from vit_jax.data.sources.imagenet import classes
from vit_jax.evaluators.evaluator import prepare
from vit_jax.evaluators.imagenet import ALEXNET, SEVERITIES, ImageNet, ImageNetC, ImageNetReal

DATA = DataConfig(source=Folder('nowhere'))
IDS = classes()


def image(path, said, other=0):
  """An image whose first pixel says which class a `Telling` model takes it for, and another one."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.zeros((2, 2, 3), np.uint8)
  pixels[0, 0] = said // 250, said % 250, 0
  pixels[0, 1] = other // 250, other % 250, 0
  Image.fromarray(pixels).save(path.with_suffix('.png'))
  path.with_suffix('.png').rename(path)  # what is in a file is seen, not what it is called


class Telling:
  """A task whose model says what is written in images: 2 for the one class, 1 for the other."""

  classed = 'label'

  def rows(self, model, fields, view, *, train):
    return labelled(view.sized((2, 2)), 3, 1000)

  def augment(self, batch, key, hyper):
    return batch

  def predict(self, model, batch):
    number = lambda pixel: pixel[:, 0].astype(jnp.int32) * 250 + pixel[:, 1]  # noqa: E731
    image = batch['image']
    said, other = number(image[:, 0, 0]), number(image[:, 0, 1])
    places = jnp.arange(1000)
    return {'logits': 2.0 * (places == said[:, None]) + (places == other[:, None])}

  def judged(self, state, frozen):
    return state


def scores(evaluator, names=IDS):
  fields = {'image': Field('image', dtype='uint8'), 'label': Field('class', tuple(names))}
  evaluation = prepare(evaluator, Telling(), None, DATA, batch_size=8, fields=fields)
  return evaluation({'nothing': jnp.zeros(1)}, None)


def test_classes_are_in_the_order_of_their_ids():
  assert len(IDS) == 1000
  assert list(IDS) == sorted(IDS)
  # Tench, goldfish, toilet tissue.
  assert (IDS[0], IDS[1], IDS[999]) == ('n01440764', 'n01443537', 'n15075141')


def test_validation_and_sketch_by_wordnet_id(tmp_path):
  for place, said in ((3, 3), (3, 4), (998, 998)):
    image(tmp_path / 'val' / IDS[place] / f'{said}.JPEG', said)
  found = scores(ImageNet(dir=str(tmp_path), split='val', report=('top1', 'top5')))
  assert found.values['top1'] == pytest.approx(2 / 3)
  assert found.values['examples'] == 3
  # Other names of the classes are taken to be in the same order.
  words = [f'class number {i}' for i in range(1000)]
  again = scores(ImageNet(dir=str(tmp_path / 'val'), variant='sketch'), words)
  assert again.values['top1'] == pytest.approx(2 / 3)
  # Ids in another order are matched.
  turned = scores(ImageNet(dir=str(tmp_path / 'val')), IDS[::-1])
  assert turned.values['top1'] == 0  # 3, 4 and 998 are said, and the classes are 996 and 1


def test_v2_is_numbered_and_not_in_the_order_of_texts(tmp_path):
  for number in (0, 1, 10, 2, 999):
    image(tmp_path / str(number) / 'a.jpeg', number)
  found = scores(ImageNet(dir=str(tmp_path), variant='v2'))
  assert found.values['top1'] == 1


def test_a_and_r_are_among_their_200_classes(tmp_path):
  """What is likelier than all of them does not count."""
  there = sorted(np.random.default_rng(0).permutation(1000)[:200].tolist())
  outside = next(i for i in range(1000) if i not in there)
  for at, place in enumerate(there):
    # A class that is none of theirs is likeliest; of theirs the right one, of every fourth another.
    image(tmp_path / IDS[place] / 'a.jpg', outside, place if at % 4 else there[at - 1])
  found = scores(ImageNet(dir=str(tmp_path), variant='a', report=('top1', 'loss')))
  assert found.values['top1'] == 0.75
  assert np.isfinite(found.values['loss'])
  assert scores(ImageNet(dir=str(tmp_path))).values['top1'] == 0
  next((tmp_path / IDS[there[0]]).iterdir()).unlink()
  with pytest.raises(RunError, match='has images of 199 classes, and ImageNet-R of 200'):
    scores(ImageNet(dir=str(tmp_path), variant='r'))


def test_real_labels(tmp_path):
  real: list = [[] for _ in range(50_000)]
  real[6], real[11], real[40] = [3, 8], [5], []
  for number, place, said in ((7, 3, 8), (12, 5, 6), (41, 9, 9)):
    image(tmp_path / 'val' / IDS[place] / f'ILSVRC2012_val_{number:08d}.JPEG', said)
  labels = tmp_path / 'real.json'
  labels.write_text(json.dumps(real))
  evaluator = ImageNetReal(dir=str(tmp_path / 'val'), labels=str(labels))
  found = scores(evaluator)
  assert found.values['real'] == 0.5  # one of two labels; wrong; without a label
  assert found.values['labelled'] == 2
  labels.write_text(json.dumps(real[:10]))
  with pytest.raises(RunError, match=r'expected are 50,000 lists of classes .*, found 10 entries'):
    scores(evaluator)
  labels.write_text(json.dumps(real))
  image(tmp_path / 'val' / IDS[3] / 'holiday.JPEG', 3)
  with pytest.raises(RunError, match=r'holiday\.JPEG: ReaL has labels by the number of an image'):
    scores(evaluator)


# As its authors give them: https://github.com/hendrycks/robustness/issues/10.
BY_SEVERITY = {
  'gaussian_noise': (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
  'shot_noise': (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
  'impulse_noise': (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
  'defocus_blur': (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
  'glass_blur': (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
  'motion_blur': (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
  'zoom_blur': (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
  'snow': (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
  'frost': (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
  'fog': (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
  'brightness': (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
  'contrast': (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
  'elastic_transform': (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
  'pixelate': (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
  'jpeg_compression': (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}


def test_alexnet_is_the_mean_of_its_severities():
  assert {n: round(float(np.mean(e)), 6) for n, e in BY_SEVERITY.items()} == ALEXNET


def test_the_mean_corruption_error(tmp_path):
  rng, errors = np.random.default_rng(0), {}
  for name in ALEXNET:
    for severity in SEVERITIES:
      wrong = rng.integers(0, 3)
      errors[name, severity] = wrong / 2
      for at in range(2):
        folder = tmp_path / name / str(severity) / IDS[7]
        image(folder / f'{at}.JPEG', 8 if at < wrong else 7)
  found = scores(ImageNetC(dir=str(tmp_path)))
  want = [sum(min(errors[n, s], 1) for s in SEVERITIES) / sum(BY_SEVERITY[n]) for n in ALEXNET]
  assert found.values['mce'] == pytest.approx(np.mean(want), rel=1e-6)
  assert found.values['error'] == pytest.approx(np.mean([*errors.values()]))
  assert found.arrays['errors'].shape == (15, 5)
  assert found.tables[0].rows[0][0] == 'gaussian_noise'


def test_what_is_wrong_is_said(tmp_path):
  image(tmp_path / 'holidays' / 'a.jpg', 1)
  with pytest.raises(RunError, match='has the directories holidays; of ImageNet they are called'):
    scores(ImageNet(dir=str(tmp_path)))
  with pytest.raises(RunError, match='need a model with its 1,000 classes, not 10'):
    scores(ImageNet(dir=str(tmp_path)), IDS[:10])
  with pytest.raises(RunError, match="unknown variant 'v3': did you mean v2"):
    ImageNet(dir='x', variant='v3')
  with pytest.raises(RunError, match='gaussian_noise/1'):
    scores(ImageNetC(dir=str(tmp_path)))
