"""Images of other sizes: every convention by which positions are interpolated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import torch

import vit_jax
from tests.parity import references
from tests.parity.references import REFERENCES, hf, numpy
from tests.parity.test_images import close, images, torch_images
from vit_jax.nn.layers import resample_patches
from vit_jax.nn.positions import resample, resize_weights

SIZES = [(4, 7), (7, 4), (9, 13), (16, 16), (37, 16)]


def theirs(table, new, **kwargs):
  x = torch.from_numpy(table).permute(2, 0, 1)[None]
  return numpy(
    torch.nn.functional.interpolate(
      x, **({} if 'scale_factor' in kwargs else {'size': new}), **kwargs
    )
  )[0].transpose(1, 2, 0)


@pytest.mark.parametrize('old', [(4, 4), (14, 14), (37, 37), (5, 8)])
@pytest.mark.parametrize('new', SIZES)
def test_interpolation_is_that_of_torch_and_scipy(old, new):
  table = np.random.default_rng(0).normal(size=(*old, 3)).astype(np.float32)
  got = {m: resample(table, new, m) for m in ('bilinear', 'bilinear_aa', 'bicubic', 'bicubic_aa')}
  for method, value in got.items():
    mode, _, aa = method.partition('_')
    close(value, theirs(table, new, mode=mode, antialias=bool(aa)), 1e-5, method)
  zoom = scipy.ndimage.zoom(table, (new[0] / old[0], new[1] / old[1], 1), order=1)
  close(resample(table, new, 'corner'), zoom, 1e-5, 'corner')
  if old != new:
    factor = tuple((n + 0.1) / o for n, o in zip(new, old, strict=True))
    want = theirs(table, new, mode='bicubic', scale_factor=factor)
    close(resample(table, new, 'bicubic_offset'), want, 1e-5, 'bicubic_offset')


@pytest.mark.parametrize('method', ['bilinear', 'bicubic', 'bilinear_aa', 'bicubic_aa', 'corner'])
def test_positions_known_at_run_time_only(method):
  for old, new in ((4, 7), (16, 5), (3, 3)):
    want = resize_weights(np.arange(new), new, old, method)
    got = jax.jit(lambda n, old=old: resize_weights(jnp.arange(10), n, old, method, jnp))(new)
    np.testing.assert_allclose(got[:new], want, atol=1e-6)


@pytest.mark.parametrize(
  ('method', 'kwargs'),
  [('bicubic_aa', {}), ('bilinear', dict(interpolation='bilinear', antialias=False))],
)
@pytest.mark.parametrize('size', [5, 12, 32])
def test_patches_of_other_sizes(method, kwargs, size):
  from timm.layers import resample_patch_embed

  kernel = np.random.default_rng(0).normal(size=(16, 16, 3, 4)).astype(np.float32)
  want = resample_patch_embed(
    torch.from_numpy(kernel.transpose(3, 2, 0, 1)), [size, size], **kwargs
  )
  got = resample_patches(kernel, (size, size), method)
  close(got, numpy(want).transpose(2, 3, 1, 0), 2e-5, method)


OTHER = {
  'hf/vit': (24, 48), 'hf/deit': (40, 24), 'hf/dinov2': (24, 40), 'hf/dinov2-registers': (72, 40),
  'hf/dinov3': (24, 48), 'hf/clip-vision': (40, 48), 'hf/siglip-vision': (48, 24),
  'hf/beit': (40, 40), 'timm/augreg': (40, 24), 'timm/deit3': (24, 48), 'timm/dinov3': (24, 40),
  'timm/so150m-gap': (48, 40), 'timm/eva02-base': (35, 49),
}  # fmt: skip


@pytest.mark.parametrize('name', list(OTHER))
def test_other_sizes_at_call_time(name, tmp_path):
  """A model made for one size, called on another."""
  reference, size = REFERENCES[name], OTHER[name]
  torch.manual_seed(0)
  module = references.shake(reference.make(), 0)
  reference.save(module, tmp_path / 'theirs')
  x = images((*size, 3))
  if name.startswith('timm/'):
    source = reference.make

    def dynamic():
      import timm

      real = timm.create_model
      try:
        timm.create_model = lambda n, **kw: real(n, dynamic_img_size=True, **kw)
        return source()
      finally:
        timm.create_model = real

    other = dynamic().eval()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
      want = other(torch_images(x))
  else:
    kwargs = dict(interpolate_pos_encoding=True) if name in (
      'hf/vit', 'hf/deit', 'hf/clip-vision', 'hf/siglip-vision') else {}  # fmt: skip
    with torch.no_grad():
      out = module(torch_images(x), **kwargs)
    want = getattr(out, 'logits', None)
    if want is None:
      want = out.image_embeds if name == 'hf/clip-vision' else out.pooler_output
  model = vit_jax.load(tmp_path / 'theirs')
  with jax.default_matmul_precision('highest'):
    close(model(x), numpy(want), 1e-5, name)
    # Or made for the other size for good.
    fixed = vit_jax.load(tmp_path / 'theirs', image_size=size)
    assert fixed.config.image_size == size
    close(fixed(x), numpy(want), 1e-5, name)


def test_masked_patches(tmp_path):
  torch.manual_seed(0)
  config = hf.BeitConfig(**references.PLAIN, vocab_size=50, use_mask_token=True,
                         use_relative_position_bias=True)  # fmt: skip
  module = references.shake(hf.BeitModel(config), 0)
  references.save_hf(module, tmp_path / 'theirs')
  x, masked = images((32, 32, 3)), np.random.default_rng(0).random((3, 16)) < 0.4
  with torch.no_grad():
    want = module(torch_images(x), bool_masked_pos=torch.from_numpy(masked)).last_hidden_state
  model = vit_jax.load(tmp_path / 'theirs')
  with jax.default_matmul_precision('highest'):
    got = model.features(x, masked=jnp.asarray(masked))['encoded']
  close(got, numpy(want), 1e-5, 'masked')
