"""Decoding with a cache, and attention to a memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.architecture import variants
from vit_jax.architecture.vit import EncoderConfig
from vit_jax.core.errors import RunError
from vit_jax.nn import cache, positions, sharding
from vit_jax.nn.attention import Context, Memory
from vit_jax.nn.encoder import Encoder, layer_of
from vit_jax.nn.masks import Mask

LENGTH, TOKENS, SEEN = 12, 9, 7


def encoder(memory=0, **fields):
  """One in which nothing is zero."""
  config = EncoderConfig(width=32, depth=3, mlp_dim=48, num_heads=4, **fields)
  config = config.filled(variants.ENCODER)
  config.check()
  made = Encoder(config, nnx.Rngs(0), memory=memory)
  rng = np.random.default_rng(3)
  return jax.tree.map(lambda w: w + jnp.asarray(0.3 * rng.normal(size=w.shape), w.dtype), made)


def inputs(memory=0, batch=2):
  rng = np.random.default_rng(4)
  x = rng.normal(size=(batch, TOKENS, 32)).astype(np.float32)
  seen = [rng.normal(size=(n, SEEN, memory)).astype(np.float32) for n in (batch, 1)]
  keys = np.ones((batch, SEEN), bool)
  keys[0, 3:] = False
  x = jnp.asarray(x)
  return x, (Memory(*map(jnp.asarray, seen), Mask(keys=jnp.asarray(keys))) if memory else None)


def mask(keys, length=LENGTH):
  """Prompts of 3 and 4 tokens that see each other whole, the first of which is padding."""
  places = np.arange(length)
  prefix = places < np.array([[3], [4]])
  there = np.ones((2, length), bool)
  there[0, 0] = not keys
  return Mask(causal=True, prefix=jnp.asarray(prefix), keys=jnp.asarray(there) if keys else None)


def decoded(model, x, memory, *, keys, parts, angles=None):
  """What the parts of `x` give, one after another."""
  whole = Context(memory=memory, mask=mask(keys))
  state, found, at = cache.empty(model, len(x), LENGTH, whole), [], 0
  step = jax.jit(cache.extend)
  for count in parts:
    own = None if angles is None else angles[:, at : at + count]
    y, state = step(model, x[:, at : at + count], state, whole.replace(angles=own))
    found.append(y)
    at += count
  assert state.position == at
  return np.concatenate(found, 1), state


CASES = [
  (dict(), 0),
  (dict(kv_heads=2, head_dim=16, softcap=5.0, qk_norm=True, rope_pairs='neighbours'), 0),
  (dict(kv_heads=1, norm='rmsnorm', mlp='swiglu', parallel=True, scan=False), 0),
  (dict(attention='full+memory', norm_place='post', kv_heads=1), 24),
  (dict(attention='memory+full', layerscale=0.5, scan=False), 24),
]


@pytest.mark.parametrize(('fields', 'memory'), CASES, ids=str)
def test_decoding_is_the_whole_forward_pass(fields, memory):
  model, (x, seen) = encoder(memory, **fields), inputs(memory)
  places = np.arange(TOKENS)[None, :, None]
  angles = positions.rope(places, np.ones(1), model.config.head_width, 'grid', 1e4, (0,))
  for keys in (False, True):
    own = mask(keys, TOKENS)
    context = Context(angles=angles, mask=own, memory=seen)
    want = jax.jit(lambda model, x, context: model(x, context)[0])(model, x, context)
    for parts in ((5, 1, 1, 2), (4, *(1,) * 5)):
      got, _ = decoded(model, x, seen, keys=keys, parts=parts, angles=angles)
      some = np.ones((2, TOKENS, 1), bool)
      some[0, 0] = not keys  # sees nothing, and gets something
      np.testing.assert_allclose(got * some, want * some, rtol=1e-4, atol=1e-5)


def test_a_token_is_nothing_to_those_before_it_and_to_other_sequences():
  model, (x, seen) = encoder(24, attention='full+memory'), inputs(24)
  other = x.at[1, 6].add(1)
  got, again = (decoded(model, y, seen, keys=False, parts=(4, 1, 1, 3))[0] for y in (x, other))
  changed = (got != again).any(-1)
  np.testing.assert_array_equal(changed[0], False)
  np.testing.assert_array_equal(changed[1], np.arange(TOKENS) >= 6)


def test_what_was_kept_is_written_in_place():
  """One token changes one place of the cache, and a step that may reuse it makes no copy."""
  model, (x, _) = encoder(kv_heads=2), inputs()
  whole = Context(mask=Mask(causal=True))
  step = jax.jit(cache.extend, donate_argnums=2)
  state = cache.empty(model, 2, LENGTH)
  _, state = step(model, x[:, :4], state, whole)
  before = jax.tree.map(np.asarray, state.entries)
  lowered = step.lower(model, x[:, 4:5], state, whole).compile()
  held = sum(a.nbytes for pair in before for a in pair)
  assert lowered.memory_analysis().alias_size_in_bytes >= held
  _, state = step(model, x[:, 4:5], state, whole)
  for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(state.entries), strict=True):
    changed = (old != new).any((0, 1, 3))
    assert changed.tolist() == [False] * 4 + [True] + [False] * (LENGTH - 5)
    assert old.shape == (3, 2, LENGTH, 16)


def test_decoding_on_a_mesh():
  found = []
  for layout in ('1x1x1', '2x1x2'):
    devices = jax.devices()[: 4 if layout[0] == '2' else 1]
    with jax.set_mesh(sharding.make_mesh(layout, devices)):
      config = EncoderConfig(
        width=32, depth=2, mlp_dim=48, num_heads=4, kv_heads=2, attention='full+memory'
      ).filled(variants.ENCODER)
      model = jax.jit(lambda config=config: Encoder(config, nnx.Rngs(0), memory=24))()
      x, seen = inputs(24)
      place = sharding.BatchLayout(2).place({'x': np.asarray(x), 'memory': np.asarray(seen.tokens)})
      context = Context(memory=Memory(place['memory']), mask=Mask(causal=True))
      state = jax.jit(functools.partial(cache.empty, batch=2, length=LENGTH))(
        model, context=context
      )
      parts = []
      for at, count in ((0, 5), (5, 1), (6, 1)):
        y, state = jax.jit(cache.extend)(model, place['x'][:, at : at + count], state, context)
        parts.append(np.asarray(y))
      found.append(np.concatenate(parts, 1))
  np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('fields', [dict(layerscale=1e-5), dict(mup_depth=1)], ids=str)
def test_every_branch_is_scaled(fields):
  """With LayerScale near zero a layer adds nothing; a depth of 3 times divides all it adds by 3."""
  config = EncoderConfig(width=32, depth=3, mlp_dim=48, num_heads=4, attention='full+memory')
  config = dataclasses.replace(config, **fields).filled(variants.ENCODER)
  x, seen = jnp.zeros((2, TOKENS, 32)), inputs(24)[1]
  model = Encoder(config, nnx.Rngs(0), memory=24, final_norm=False)
  block = layer_of(model.blocks, 0)
  for attention in block.attentions:
    attention.out.bias[...] += 1
  for branch in (block.attn.out, block.before1.attn.out, block.mlp.down):
    branch.kernel[...] *= 0
  block.mlp.down.bias[...] += 1
  y, _ = block(x, model.contexts(x, Context(memory=seen))[0])
  want = 3e-5 if config.layerscale else 1.0
  np.testing.assert_allclose(y, want, rtol=1e-5)


def test_what_has_no_cache():
  model, (x, _) = encoder(), inputs()
  state = cache.empty(model, 2, LENGTH)
  with pytest.raises(ValueError, match='need a causal mask'):
    cache.extend(model, x, state)
  config = EncoderConfig(width=32, depth=2, mlp_dim=48, num_heads=4, attention='h+w')
  windows = Encoder(config.filled(variants.ENCODER), nnx.Rngs(0), grid=(3, 3))
  with pytest.raises(ValueError, match=r"attention='h\+w'.*has no cache"):
    cache.empty(windows, 2, LENGTH)
  with pytest.raises(ValueError, match='9 tokens are more than the 4'):
    cache.extend(model, x, cache.empty(model, 2, 4), Context(mask=Mask(causal=True)))
  with pytest.raises(ValueError, match='leave start out'):
    cache.extend(model, x, state, Context(mask=Mask(causal=True, start=jnp.array(1))))


# --- memories ---


def test_a_memory_is_needed_where_it_is_attended_to():
  x, seen = inputs(24)
  with pytest.raises(ValueError, match='has a memory to attend to, and its context has none'):
    encoder(24, attention='full+memory')(x)
  with pytest.raises(ValueError, match='has no memory to attend to, and its context has one'):
    encoder()(x, Context(memory=seen))
  for pattern, memory, message in (
    ('full', 24, 'write full\\+memory'), ('memory', 0, 'no memory to attend to'),
    ('full+memory,memory+full', 24, 'in the same place'), ('full|memory', 24, 'cannot share'),
  ):  # fmt: skip
    with pytest.raises(RunError, match=message):
      encoder(memory, attention=pattern)


@pytest.mark.parametrize('remat', ['none', 'names', 'full'])
def test_gradients_reach_the_memory(remat):
  """Scanned and unrolled, whatever is kept, the same; hidden tokens of the memory get none."""
  grads = []
  for scan in (True, False):
    model = encoder(24, attention='full+memory', scan=scan, remat=remat if scan else 'none')
    x, seen = inputs(24)

    def loss(model, tokens, x=x, seen=seen):
      memory = Memory(tokens, seen.position, seen.mask)
      position = jnp.ones((1, TOKENS, 32)) / 3
      return jnp.square(model(x, Context(memory=memory, position=position))[0]).mean()

    grads.append(jax.jit(jax.grad(loss, (0, 1)))(model, seen.tokens))
  for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  of_memory = np.abs(grads[0][1]).max(-1)
  assert not of_memory[0, 3:].any()
  assert of_memory[1].all()
