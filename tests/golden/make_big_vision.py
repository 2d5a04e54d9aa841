"""What big_vision's operators and crops give: `python tests/golden/make_big_vision.py CHECKOUT`.

Writes tests/golden/big_vision.npz. Needs a checkout of github.com/google-research/big_vision, and
in an environment of its own tensorflow-cpu==2.15.1, tensorflow-addons==0.23.0 and numpy<2. That
matters: with NumPy 2 a threshold of 256 is an error, before it becomes 0, as in all published runs.
"""

import inspect
import pathlib
import sys

import numpy as np

LEVELS = (0, 2, 9, 10, 15, 20)
SIZES = ((375, 500), (64, 64), (90, 400))
CENTRE = (5, 21)  # of what is cut out
DRAWS = 4000
MAGNITUDES = (5, 10, 15)
RESIZED = (13, 40)


def picture(height=20, width=27):
  """Colours that go up and down, with some noise."""
  y, x, c = np.mgrid[:height, :width, :3]
  smooth = np.sin(x / 5 + c) * np.cos(y / 4 - 2 * c) * 90 + 40 * np.sin(x * y / 90) + 110
  noise = np.random.RandomState(0).uniform(-25, 25, (height, width, 3))
  return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def measured(image):
  """What is compared of images that are changed at random."""
  x = np.asarray(image, float)
  steps = np.abs(np.diff(x, axis=1)).mean()
  return [x.mean(), x.std(), x[..., 0].mean() - x[..., 2].mean(), steps, x[:9, :9].std()]


def main(checkout):
  sys.path.insert(0, checkout)
  import tensorflow as tf
  from big_vision.pp import autoaugment, ops_image

  image = picture()
  found = {'image': image}
  negate = autoaugment._randomly_negate_tensor
  autoaugment._randomly_negate_tensor = lambda value: value
  place = iter(())
  uniform = tf.compat.v1.random_uniform
  autoaugment.tf.random_uniform = lambda *_, **__: tf.constant(next(place))
  arguments = autoaugment.level_to_arg(autoaugment.HParams(cutout_const=40, translate_const=100))
  for name, function in autoaugment.NAME_TO_FUNC.items():
    for level in LEVELS:
      place = iter(CENTRE)
      args = arguments[name](float(level))
      if 'replace' in inspect.signature(function).parameters:
        args = *args, [128] * 3
      # As a part of a graph, where numbers become those of the image's type.
      run = tf.data.Dataset.from_tensors(image).map(lambda x, f=function, a=args: f(x, *a))
      found[f'{name}/{level}'] = next(iter(run)).numpy()
      if args and not isinstance(args[0], list):
        found[f'{name}/{level}/value'] = np.float64(args[0])
  autoaugment.tf.random_uniform, autoaugment._randomly_negate_tensor = uniform, negate
  found['linear'] = ops_image.get_resize(RESIZED)({'image': tf.constant(image)})['image'].numpy()
  tf.random.set_seed(0)

  large = picture(96, 128)
  for magnitude in MAGNITUDES:
    many = tf.data.Dataset.from_tensors(large).repeat(DRAWS // 4)
    many = many.map(lambda x, m=magnitude: autoaugment.distort_image_with_randaugment(x, 2, m))
    found[f'randaugment/{magnitude}'] = np.float32([measured(each) for each in many])

  def box(_):
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      (*shape, 3), tf.zeros([0, 0, 4], tf.float32), area_range=(0.05, 1.0),
      aspect_ratio_range=(3 / 4, 4 / 3), min_object_covered=0, max_attempts=100,
      use_image_if_no_bounding_boxes=True,
    )  # fmt: skip
    return tf.concat([begin[:2], size[:2]], 0)

  for shape in SIZES:
    drawn = [b.numpy() for b in tf.data.Dataset.range(DRAWS).map(box)]
    found[f'boxes/{shape[0]}x{shape[1]}'] = np.array(drawn, np.int16)
  np.savez_compressed(pathlib.Path(__file__).parent / 'big_vision.npz', **found)


if __name__ == '__main__':
  main(sys.argv[1])
