"""Self-distillation: encoders and heads of DINO, iBOT and DINOv2 in PyTorch, logits and files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn.utils import parametrizations

import vit_jax
from tests.parity import references
from tests.parity.references import numpy, timm
from tests.parity.test_images import close, images, torch_images
from vit_jax.convert import layout
from vit_jax.convert.read import open_checkpoint
from vit_jax.nn import tree

# Theirs were written with the older of two ways to norm a weight.
pytestmark = pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
WIDTH, PROTOTYPES, PATCHES = 64, 24, 16
HIDDEN = np.random.default_rng(1).random((3, PATCHES)) < 0.4
NORMS = {'older': torch.nn.utils.weight_norm, 'newer': parametrizations.weight_norm}
FORMS = [('dino', False), ('dino', True), ('ibot', False), ('ibot', True), ('dinov2', True)]


class Backbone(timm.models.vision_transformer.VisionTransformer):
  """Of timm, with a token in place of hidden patches under the name that a dialect has for it."""

  def __init__(self, mask_token):
    scale = 1e-5 if mask_token == 'mask_token' else None
    super().__init__(img_size=32, patch_size=8, embed_dim=WIDTH, depth=2, num_heads=1,
                     num_classes=0, init_values=scale)  # fmt: skip
    self.named, self.hidden = mask_token, None
    if mask_token:
      self.register_parameter(mask_token, torch.nn.Parameter(torch.zeros(1, WIDTH)))

  def _pos_embed(self, x):
    if self.hidden is not None:
      x = torch.where(self.hidden[..., None], getattr(self, self.named), x)
    return super()._pos_embed(x)


class Head(torch.nn.Module):
  """Three layers, features of length 1, and prototypes with a length and a direction."""

  def __init__(self, norm, *, twice=False, bottleneck=12):
    super().__init__()
    linear, gelu = torch.nn.Linear, torch.nn.GELU
    self.mlp = torch.nn.Sequential(
      linear(WIDTH, 32), gelu(), linear(32, 32), gelu(), linear(32, bottleneck)
    )
    self.last_layer = NORMS[norm](linear(bottleneck, PROTOTYPES, bias=False))
    if twice:
      self.last_layer2 = self.last_layer

  def forward(self, x):
    return self.last_layer(torch.nn.functional.normalize(self.mlp(x), dim=-1))


class Network(torch.nn.Module):
  """An encoder and its heads."""

  def __init__(self, dialect, norm, *, teacher=False):
    super().__init__()
    token = {'dino': '', 'ibot': '' if teacher else 'masked_embed', 'dinov2': 'mask_token'}
    self.backbone = Backbone(token[dialect])
    if dialect == 'dinov2':
      self.dino_head, self.ibot_head = Head(norm), Head(norm, bottleneck=10)
    else:
      self.head = Head(norm, twice=dialect == 'ibot')

  def forward(self, x, hidden):
    """Logits of the class token, and of patches, if they have a head."""
    self.backbone.hidden = hidden
    x = self.backbone.forward_features(x)
    if hasattr(self, 'dino_head'):
      return self.dino_head(x[:, :1]), self.ibot_head(x[:, 1:])
    if hasattr(self.head, 'last_layer2'):
      return self.head(x[:, :1]), self.head(x[:, 1:])
    return (self.head(x[:, :1]),)


def made(dialect, norm, scaled, seed, **kwargs):
  module = references.shake(Network(dialect, norm, **kwargs), seed)
  for name, p in module.named_parameters():
    if name.endswith(('weight_g', 'original0')):
      p.data.copy_(p.data + 0.5 if scaled else torch.ones_like(p))
  return module


@functools.partial(jax.jit, static_argnums=2)
def logits(model, x, masked):
  token, patches = model(x, hidden=jnp.asarray(HIDDEN) if masked else None)
  both = model.config.patch_head != 'none'
  return (model.head(token), *((model.of_patches(patches),) if both else ()))


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize(('dialect', 'scaled'), FORMS)
def test_logits_and_files(tmp_path, dialect, scaled, norm):
  """Of a student, which sees hidden patches, and of its teacher, out of one file and back."""
  torch.manual_seed(0)
  student, teacher = made(dialect, norm, scaled, 0), made(dialect, norm, scaled, 1, teacher=True)
  torch.save({
    'student': {f'module.{name}': value for name, value in student.state_dict().items()},
    'teacher': teacher.state_dict(), 'epoch': 7, 'dino_loss': {'center': torch.zeros(1, 24)},
  }, tmp_path / 'checkpoint.pth')  # fmt: skip
  x = images((32, 32, 3))
  for part, module in (('student', student), ('teacher', teacher)):
    model = vit_jax.load(tmp_path / 'checkpoint.pth', part=part)
    assert (model.config.scaled, model.card.dialect) == (scaled, dialect)
    masked = part == 'student' and dialect != 'dino'
    with torch.no_grad():
      want = module(torch_images(x), torch.from_numpy(HIDDEN) if masked else None)
    with jax.default_matmul_precision('highest'):
      found = logits(model, jnp.asarray(x), masked)
    assert len(found) == len(want)
    for ours, theirs in zip(found, want, strict=True):
      close(ours, numpy(theirs), 1e-5, part)
    path = tmp_path / f'{part}.safetensors'
    vit_jax.save(model, path, dialect)
    written = {name: torch.from_numpy(array) for name, array in load_file(path).items()}
    if part == 'teacher' and dialect == 'ibot':
      assert not written.pop('backbone.masked_embed').any()
    again = Network(dialect, 'older', teacher=part == 'teacher')
    again.load_state_dict(written, strict=True)
    with torch.no_grad():
      for ours, theirs in zip(again.eval()(torch_images(x), module.backbone.hidden), want,
                              strict=True):  # fmt: skip
        close(numpy(ours), numpy(theirs), 1e-6, f'{part} again')


@pytest.mark.parametrize(('dialect', 'scaled'), FORMS)
def test_gradients_of_every_parameter(tmp_path, dialect, scaled):
  """Of a sum of logits, weighted at random; lengths that are not trained have none."""
  torch.manual_seed(0)
  module = made(dialect, 'older', scaled, 2)
  torch.save({'student': module.state_dict()}, tmp_path / 'student.pth')
  opened, model = (f(tmp_path / 'student.pth') for f in (open_checkpoint, vit_jax.load))
  x, masked = images((32, 32, 3)), dialect != 'dino'
  said = module(torch_images(x), torch.from_numpy(HIDDEN) if masked else None)
  rng = np.random.default_rng(0)
  weights = [rng.normal(size=part.shape).astype(np.float32) for part in said]
  sum((part * torch.from_numpy(w)).sum() for part, w in zip(said, weights, strict=True)).backward()

  @jax.jit
  def gradient(model):
    parts = logits(model, jnp.asarray(x), masked)
    return sum((part * w).sum() for part, w in zip(parts, weights, strict=True))

  with jax.default_matmul_precision('highest'):
    found = layout.write(opened.rules, tree.flatten(jax.grad(gradient)(model)))
  compared = [name for name, p in module.named_parameters() if name in found]
  left = {name for name, _ in module.named_parameters()} - {*compared}
  assert left == (set() if scaled else {'head.last_layer.weight_g'})
  for name, p in module.named_parameters():
    if name in found:
      grad = numpy(p.grad)
      assert np.abs(found[name] - grad).max() < 1e-4 * np.abs(grad).max(), name
