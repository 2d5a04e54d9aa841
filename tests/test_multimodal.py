"""Language models that see: what reaches which token, costs, the loss in pieces, checkpoints."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from vit_jax.convert import adapt
from vit_jax.core.errors import RunError
from vit_jax.costs import flops
from vit_jax.costs.step import Pass, step
from vit_jax.models.language import LanguageConfig
from vit_jax.models.multimodal import MultimodalConfig, there
from vit_jax.models.vit import ViTConfig
from vit_jax.nn.generate import Prompt, Rules, Sampling, generate
from vit_jax.tasks import words
from vit_jax.text.dialogues import IMAGE, PADDING

SIZES = dict(width=16, depth=3, mlp_dim=24, num_heads=2, image_size=(16, 16))
CLIP = ViTConfig('clip:B/4', **SIZES)
SIGLIP = ViTConfig('siglip:B/4', **SIZES)
WORDS = dict(width=24, depth=2, mlp_dim=40, num_heads=4, vocab_size=50, context_length=40)
KINDS = {
  'llava': dict(vision=CLIP, layer=-2, projector='mlp'),
  'paligemma': dict(vision=SIGLIP, projector='linear', prefix=True),
  'idefics3': dict(vision=SIGLIP, projector='linear', bias=False, shuffle=2),
}
GEMMA = dict(
  kv_heads=1, head_dim=8, tied=True, scaled_embed=True, norm='rmsnorm1p', mlp='geglu_tanh'
)


@functools.cache
def model(kind):
  """One in which nothing is zero."""
  more = GEMMA if kind == 'paligemma' else {}
  fields = {**KINDS[kind], 'language': LanguageConfig('', **WORDS, **more)}
  made = MultimodalConfig(**fields).create(nnx.Rngs(0))
  rng = np.random.default_rng(3)
  return jax.tree.map(lambda w: w + jnp.asarray(0.3 * rng.normal(size=w.shape), w.dtype), made)


def inputs(kind):
  """Images, tokens of which the image is the third and following, and which are of the prompt."""
  rng = np.random.default_rng(5)
  images = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
  places = model(kind).config.places
  text = rng.integers(1, 50, (2, 8))
  tokens = np.concatenate([text[:, :2], np.full((2, places), IMAGE), text[:, 2:]], 1)
  return images, tokens, np.broadcast_to(np.arange(tokens.shape[1]) < 5 + places, tokens.shape)


@pytest.mark.parametrize('kind', KINDS)
def test_what_reaches_which_token(kind):
  """A token of an answer reaches none before it; one of a prompt all of it, if it is a prefix."""
  images, tokens, asked = inputs(kind)
  run = jax.jit(lambda model, *args: model(*args))
  plain = np.asarray(run(model(kind), images, tokens, asked))
  places = model(kind).config.places

  def moved(other):
    found = np.asarray(run(model(kind), images, other, asked))
    return np.abs(found - plain).max((0, 2)) > 1e-6

  for at in (6 + places, 3 + places):
    other = tokens.copy()
    other[:, at] = (other[:, at] + 7) % 50
    first = 0 if kind == 'paligemma' and at < 5 + places else at
    np.testing.assert_array_equal(moved(other), np.arange(len(plain[0])) >= first)
  padded = tokens.copy()
  padded[:, -2:] = PADDING
  assert not moved(padded)[:-2].any()
  dark = np.asarray(run(model(kind), images * 0, tokens, asked))
  changed = np.abs(dark - plain).max((0, 2)) > 1e-6
  np.testing.assert_array_equal(changed, np.arange(len(changed)) >= (kind != 'paligemma') * 2)


def test_squares_of_patches_become_tokens():
  """Row by row within a square, then all features of a patch."""
  made = model('idefics3')
  patches = np.random.default_rng(0).normal(size=(2, 16, 16)).astype(np.float32)
  found = made._shuffled(jnp.asarray(patches))
  on_grid = patches.reshape(2, 4, 4, 16)
  square = on_grid[1, 2:4, 0:2].reshape(-1)
  np.testing.assert_array_equal(found[1, 2], square)


def test_only_what_is_read_is_computed():
  """Neither the last block nor the norm of LLaVA's image tower has a gradient."""
  images, tokens, _ = inputs('llava')
  grads = jax.jit(jax.grad(lambda model: model(images, tokens).sum()))(model('llava'))
  blocks = grads.vision.encoder.blocks.attn.query.kernel[...]
  assert not blocks[-1].any()
  assert blocks[0].any()
  assert not grads.vision.encoder.norm.scale[...].any()


def test_padding_on_either_side_says_the_same():
  made = model('paligemma')
  images, tokens, _ = inputs('paligemma')
  right = np.concatenate([tokens, np.full((2, 3), PADDING)], 1)
  left = np.concatenate([np.full((2, 3), PADDING), tokens], 1)

  @jax.jit
  def say(made, tokens):
    x, known = made.read(made.see(images), tokens), there(tokens)
    rules = Rules(sampling=Sampling(most=5), ends=(7,))
    return generate(made.language, Prompt(x, known, known, jnp.arange(2)), rules)

  one, two = say(made, right), say(made, left)
  np.testing.assert_array_equal(one.tokens, two.tokens)
  np.testing.assert_array_equal(one.log_probs, two.log_probs)


@pytest.mark.parametrize('piece', [2**28, 4 * 50 * 5, 4 * 50], ids=['one', 'of 5', 'of 1'])
def test_loss_in_pieces(piece, monkeypatch):
  """Values and gradients of the plain cross-entropy, whatever the size of pieces."""
  monkeypatch.setattr(words, 'PIECE', piece)
  rng = np.random.default_rng(1)
  x, table = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 7, 24), (24, 50)))
  follows, counts = rng.integers(0, 50, (3, 7)), rng.random((3, 7)) < 0.4

  def plain(x, table):
    log_probs = jax.nn.log_softmax(jnp.einsum('btd,dv->btv', x, table, precision='highest'))
    own = -jnp.take_along_axis(log_probs, follows[..., None], -1)[..., 0]
    return jnp.where(counts, own, 0)

  found = words.cross_entropy(x, table, jnp.asarray(follows), jnp.asarray(counts))
  np.testing.assert_allclose(found.loss, plain(x, table), atol=1e-5)
  likeliest = np.argmax(np.asarray(x) @ np.asarray(table), -1)
  np.testing.assert_array_equal(found.right, (likeliest == follows) & counts)
  weights = jnp.asarray(rng.normal(size=(3, 7)), jnp.float32)
  own = jax.grad(
    lambda *args: (words.cross_entropy(*args, follows, counts).loss * weights).sum(), (0, 1)
  )(x, table)
  other = jax.grad(lambda *args: (plain(*args) * weights).sum(), (0, 1))(x, table)
  for a, b in zip(own, other, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_checkpoints_come_back(kind, tmp_path):
  made, folder = model(kind), tmp_path / 'model'
  vit_jax.save(made, folder, 'transformers')
  said = json.loads((folder / 'config.json').read_text())
  assert said['model_type'] == kind
  read = vit_jax.load(folder)
  assert read.config.own == made.config.own
  for one, two in zip(jax.tree.leaves(made), jax.tree.leaves(read), strict=True):
    np.testing.assert_array_equal(one, two)
  alone = vit_jax.load(folder, tower='language')
  tokens = np.arange(5)[None]
  np.testing.assert_array_equal(alone(tokens), made.language(tokens))


def test_bad_checkpoints(tmp_path):
  folder = tmp_path / 'model'
  vit_jax.save(model('llava'), folder, 'transformers')
  said = json.loads((folder / 'config.json').read_text())
  for change, message in (
    ({'vision_feature_layer': -1}, 'vision_feature_layer=-1 is not supported'),
    ({'vision_feature_layer': [-2, -5]}, 'is not supported'),
    ({'vision_feature_select_strategy': 'full'}, "strategy='full' is not supported"),
    ({'projector_hidden_act': 'relu'}, "projector_hidden_act='relu' is not supported"),
    ({'model_type': 'kosmos'}, "model_type='kosmos' is not supported"),
    ({'text_config': {**said['text_config'], 'model_type': 'phi'}}, "model_type='phi' is not"),
  ):
    (folder / 'config.json').write_text(json.dumps({**said, **change}))
    with pytest.raises(RunError, match=message):
      vit_jax.load(folder)
  odd = MultimodalConfig(CLIP, LanguageConfig('', **WORDS), prefix=True).create(nnx.Rngs(0))
  with pytest.raises(RunError, match='transformers has no model with'):
    vit_jax.save(odd, tmp_path / 'odd', 'transformers')


def test_costs():
  for kind in KINDS:
    config = model(kind).config
    shapes = adapt.abstract(config)
    assert flops.costs(config).parameters() == sum(map(np.prod, shapes.values()))
  config = model('llava').config
  names = [*adapt.abstract(config)]
  vision, language = flops.forward_macs(config.vision), flops.forward_macs(config.language)
  projector = 16 * (16 * 24 + 24 * 24)

  def of(*parts):
    trained = [name for name in names if name.startswith(parts)]
    return step([Pass(config, trained=trained)]) // 2

  assert of('vision', 'projector', 'language') == 3 * (vision + projector + language)
  # LLaVA's two stages: gradients go through a language model that is not trained, whose scores and
  # weighted sums are products of activations on both sides.
  products = 2 * 2 * 40**2 * 24
  assert of('projector') == vision + 2 * projector + 2 * language + products
  assert of('projector', 'language') == vision + 2 * projector + 3 * language


@pytest.mark.parametrize(('fields', 'message'), [
  (dict(layer=0), 'model.layer=0 must be between -1'),
  (dict(layer=-4), 'model.layer=-4 must be between -1'),
  (dict(shuffle=3), 'model.shuffle=3 does not divide 4 x 4 patches'),
  (dict(projector='conv'), "unknown model.projector 'conv'"),
  (dict(vision=ViTConfig('clip:B/4', **SIZES, num_classes=3)), 'model.vision.num_classes'),
  (dict(vision=ViTConfig('clip:B/4', **SIZES, patch_dropout=0.5)), 'all of their patches'),
])  # fmt: skip
def test_bad_fields(fields, message):
  config = MultimodalConfig(**{'vision': CLIP, 'language': LanguageConfig('', **WORDS), **fields})
  with pytest.raises(RunError, match=message):
    config.resolve()
