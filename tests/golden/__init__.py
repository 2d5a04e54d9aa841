"""Results of the reference implementations, kept so that they need not be installed.

references.json holds names, shapes and results of transformers and timm; the weights and images
themselves are drawn here, from a generator whose stream NumPy has frozen. plain.pt and traced.pt
are small files of torch.save and torch.jit.save. `python -m tests.parity.make_golden` makes all of
these anew, `python -m tests.test_variants` variants.json. big_vision.npz, dino.npz, clip.txt.gz
and text.json come from the code of others, see make_big_vision.py, make_dino.py and make_text.py.
"""

import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent


def weights(shapes):
  """Arrays by name; nothing is zero or one.

  Norms have scales near one, but near zero where a ResNet starts its residual branches with that.
  """
  found = {}
  for name, shape in shapes.items():
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) < 2:
      one = name.endswith('weight') or 'gamma' in name or 'logit' in name
      found[name] = 0.1 * noise + (one and 'norm3' not in name)
    else:
      found[name] = 0.7 * noise / np.sqrt(np.prod(shape[1:]))
  return {name: np.asarray(value, np.float32) for name, value in found.items()}


def images(shape, batch=2):
  """float32 (batch, height, width, channels)."""
  return np.float32(np.random.RandomState(1).standard_normal((batch, *shape)))


def inputs(shapes):
  """Arrays by name, float32, each of a generator of its own."""
  return {
    name: np.float32(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape))
    for name, shape in shapes.items()
  }


# Of DETR's decoder: tokens of 4 x 6 patches, and what is added to features of masks on the way up.
ROWS, COLUMNS, WIDTH = 4, 6, 64
DECODED = {
  'memory': (2, ROWS * COLUMNS, WIDTH), 'position': (2, ROWS * COLUMNS, WIDTH),
  **{f'level{n}': (2, 2**n * ROWS, 2**n * COLUMNS, WIDTH // 2 ** (n + 1)) for n in range(3)},
}  # fmt: skip


def shown():
  """Which of the tokens are of the image: all of the first, of the second 3 x 4 of them."""
  found = np.ones((2, ROWS, COLUMNS), bool)
  found[1, 3:], found[1, :, 4:] = False, False
  return found


def tokens(batch, length, vocabulary):
  """int (batch, length); the largest number ends each text."""
  found = np.random.RandomState(2).randint(3, vocabulary - 1, (batch, length))
  found[np.arange(batch), np.arange(batch) % length] = vocabulary - 1
  return found


def digest(x):
  """Size and eight random projections of an array: enough to notice any change."""
  x = np.asarray(x, np.float64).reshape(-1)
  directions = np.random.RandomState(3).standard_normal((8, x.size))
  return [float(np.abs(x).max()), *map(float, directions @ x / np.sqrt(x.size))]
