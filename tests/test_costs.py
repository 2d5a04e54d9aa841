"""Costs against JAX's traces of models and training steps, and against the compiler."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr

import vit_jax
from tests.test_variants import GOLDEN
from vit_jax.architecture import variants
from vit_jax.architecture.towers import TwoTowersArchitecture
from vit_jax.architecture.vit import EncoderConfig, ViTArchitecture
from vit_jax.compile import plan
from vit_jax.core import schema
from vit_jax.costs import flops, footprint
from vit_jax.costs.parts import BIAS_COLUMNS, blocks, blocks_on, sequence
from vit_jax.data.pipeline import arrays
from vit_jax.models.two_towers import TwoTowersConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn.attention import Context, Memory
from vit_jax.nn.encoder import Encoder, split_layers
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment

# Twice a prime that divides no other size below: what a batch has is told from what it has not.
BATCH = 26
SIZES = dict(
  variant='', width=48, depth=3, mlp_dim=80, num_heads=4, patch_size=4, image_size=(20, 28),
  num_classes=7,
)  # fmt: skip
STEM = dict(stem_width=32, stem_depths=(2, 1), patch_size=1, image_size=(32, 48))
ALL_BIASES = 'query,key,value,out,mlp,norm,embed,head'
OPTIONS = [
  {},
  dict(scan=False),
  dict(dtype='bfloat16'),
  dict(mlp='swiglu', mlp_norm=True, dtype='bfloat16'),
  dict(mlp='gelu', no_bias=ALL_BIASES),
  dict(no_bias='key,mlp', norm='rmsnorm', qk_norm=True, dtype='bfloat16'),
  dict(norm='rmsnorm', qk_norm=True, mlp_norm=True, pool='map', pool_norm=True),
  dict(norm_place='post', layerscale=0.1),
  dict(parallel=True, layerscale=0.1, rope='unit', dtype='bfloat16'),
  dict(parallel=True, qk_norm=True, pool='map', no_bias='query,key,value,norm'),
  dict(relative_bias='layer', no_bias='key', posemb='none', class_token=True, pool='mean'),
  dict(relative_bias='shared', pool='mean', pool_norm=True, dtype='bfloat16'),
  dict(rope='grid', pool='mean', posemb='none', registers=3, mask_token=True),
  dict(distilled=True, registers=2, posemb_tokens='all', mask_token=True),
  dict(distilled=True, pool_norm=True, representation_size=20),
  dict(posemb='sincos', pool='token_mean', pool_norm=True, embed_norm=True, dtype='bfloat16'),
  dict(posemb='factorised', pool='map', mlp='swiglu', class_token=True, dtype='bfloat16'),
  dict(posemb_tokens='patches', representation_size=20, in_channels=1),
  dict(patch_dropout=0.5, pool='mean'),
  dict(attention='h2w2*', relative_bias='layer', posemb='none', class_token=True),
  dict(attention='h+w', qk_norm=True, pool='mean', dtype='bfloat16'),
  dict(attention='h2w2~1*', rope='grid', pool='map'),
  dict(kv_heads=2, head_dim=16, softcap=5.0, pool='map', dtype='bfloat16'),
  dict(kv_heads=1, qk_norm=True, rope='grid', posemb='none', queries=4, no_bias='key'),
  dict(patch_size=(2, 7), posemb='factorised'),
  dict(patch_dropout=0.5, drop_path=0.5),
  dict(dropout=0.1, mlp='swiglu'),
  dict(drop_path=0.5, drop_path_mode='subset'),
  dict(drop_path=0.5, drop_path_mode='subset', patch_dropout=0.3, dtype='bfloat16', parallel=True),
  STEM,
  {**STEM, 'dtype': 'bfloat16'},
  {**STEM, 'stem_depths': (), 'patch_size': 4},
]
# What changes which products and activations are needed again.
BLOCKS = [
  *((dict(dtype='bfloat16'), remat) for remat in ('dots', 'names', 'full', 'attn,hidden')),
  *((dict(mlp='swiglu', layerscale=0.1), remat) for remat in ('dots', 'names', 'qkv,mlp,gate')),
  *((dict(norm_place='post', mlp_norm=True), remat) for remat in ('dots', 'full', 'mlp')),
  *((dict(parallel=True, pool='map', qk_norm=True), remat) for remat in ('names', 'context,attn')),
  *((dict(parallel=True, layerscale=0.1), remat) for remat in ('dots', 'hidden')),
  (dict(drop_path=0.5, drop_path_mode='subset', patch_dropout=0.3), 'names'),
  (dict(dropout=0.1, drop_path=0.5), 'names'),
  *((dict(attention='h+w', pool='mean'), remat) for remat in ('names', 'full')),
  *((dict(attention='h5w4,w*,full'), remat) for remat in ('names', 'full')),
  (dict(kv_heads=2, head_dim=8), 'names'),
]


def inner(equation):
  """The programs that an operation runs."""
  for value in equation.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      item = getattr(item, 'jaxpr', item)
      if hasattr(item, 'eqns'):
        yield item


def products(jaxpr):
  """Multiply-accumulates of the matrix products and convolutions of a traced program."""
  total = 0
  for equation in jaxpr.eqns:
    params, shapes = equation.params, [v.aval.shape for v in equation.invars]
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      given = math.prod(equation.outvars[0].aval.shape)
      total += given * math.prod(shapes[0][axis] for axis in contracted)
    elif equation.primitive.name == 'conv_general_dilated':
      _, inputs, *window = params['dimension_numbers'].rhs_spec
      each = math.prod(shapes[1][axis] for axis in (inputs, *window))
      # Zeros between the numbers of a dilated input are not multiplied.
      total += math.prod(equation.outvars[0].aval.shape) * each // math.prod(params['lhs_dilation'])
    times = params['length'] if equation.primitive.name == 'scan' else 1
    total += times * sum(map(products, inner(equation)))
  return total


def traced(function, *args):
  """Its program, without what its results do not need."""
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def experiment(**fields):
  cfg = config_lib.complete(dict(
    total='10 steps', batch_size=BATCH, model={**SIZES, **fields},
    data=dict(source=dict(name='synthetic')), optim=dict(lr=1e-3, warmup='1 step'), log={},
    checkpoint={},
  ))  # fmt: skip
  return Experiment(schema.build(config_lib.Config, config_lib.to_dict(cfg)))


def inputs(it):
  """State, frozen parameters and batch of a step, as shapes."""
  batch = {
    name: jax.ShapeDtypeStruct((BATCH, *array.shape), array.dtype)
    for name, array in arrays(it.rows[0]).items()
  }
  state, frozen = (jax.eval_shape(split_layers, tree) for tree in (it.abstract_state, it.frozen))
  return state, frozen, batch


def residuals(it):
  """The arrays that the forward pass leaves for the backward pass."""
  state, frozen, batch = inputs(it)
  program = jax.make_jaxpr(plan.residuals(it))(state.model, state.extra, frozen, batch).jaxpr
  given = {id(variable) for variable in program.invars}
  return [v.aval for v in program.outvars if id(v) not in given]


def of_images(arrays):
  """Bytes for each image of the arrays that a batch makes larger, indices aside."""
  sizes = [
    array.size * array.dtype.itemsize
    for array in arrays
    if array.size % (BATCH // 2) == 0 and array.dtype != np.int32
  ]
  return sum(sizes) / BATCH


# --- exactly, for every part ---


@pytest.mark.parametrize('name', list(GOLDEN))
def test_parameters_of_every_variant(name):
  config = TwoTowersArchitecture(name[:-5]) if '+text' in name else ViTArchitecture(name)
  assert flops.costs(config.resolve()).parameters() == GOLDEN[name]['parameters']


def assert_counted(it):
  """Parameters, products of the forward pass and of the step, bytes of activations."""
  config = it.config.model
  cost = flops.costs(config, examples=BATCH)
  state, _, batch = inputs(it)
  assert cost.parameters() == sum(leaf.size for leaf in jax.tree.leaves(state.model))
  images = jax.ShapeDtypeStruct(batch['image'].shape, jnp.float32)
  forward = products(traced(lambda model, x: model(x), state.model, images))
  assert BATCH * cost.total('macs') == forward == BATCH * cost.total('flops') // 2
  step = products(traced(it.train_step(), *inputs(it), it.hyper(0)))
  assert BATCH * cost.total('train_exact') == 2 * step
  left = residuals(it)
  kept, most = footprint.activations(config, examples=BATCH)
  assert kept == of_images(left)
  return cost, kept, most, left


@pytest.mark.parametrize('fields', OPTIONS, ids=str)
def test_every_option_is_counted_exactly(fields):
  assert_counted(experiment(**fields))


def counted(function, model, *inputs):
  """Products of the forward pass and of that with the gradient, and bytes that are kept."""
  inputs = [jax.ShapeDtypeStruct((BATCH, *shape), jnp.float32) for shape in inputs]
  forward = products(traced(function, model, *inputs))
  back = lambda model, *inputs: jax.vjp(lambda model: function(model, *inputs), model)  # noqa: E731
  step = lambda *args: (pair := back(*args))[1](pair[0])  # noqa: E731
  program = jax.make_jaxpr(lambda *args: jax.tree.leaves(back(*args)[1]))(model, *inputs).jaxpr
  given = {id(variable) for variable in program.invars}
  kept = of_images([v.aval for v in program.outvars if id(v) not in given])
  return forward, products(traced(step, model, *inputs)), kept


@pytest.mark.parametrize(
  'fields',
  [
    dict(posemb='space_time', attention='t+hw*', class_token=True, posemb_tokens='class'),
    dict(posemb='factorised', attention='t|hw', pool='mean', kv_heads=2),
    dict(posemb='learned', patch_size=(1, 4, 4), pool='map', dtype='bfloat16', remat='names'),
    dict(image_size=(60,), patch_size=5, posemb='sincos', rope='grid', pool='mean'),
    dict(image_size=(60,), patch_size=5, attention='w4', pool='mean', remat='full'),
  ],
  ids=str,
)
def test_other_axes_are_counted_exactly(fields):
  config = ViTConfig(**{**SIZES, 'image_size': (8, 20, 12), **fields}).resolve()
  model = jax.eval_shape(lambda: config.create(nnx.Rngs(0)))
  cost, images = flops.costs(config), (*config.image_size, 3)
  assert cost.parameters() == sum(leaf.size for leaf in jax.tree.leaves(model))
  forward, step, kept = counted(lambda model, x: model(x), model, images)
  assert BATCH * cost.total('macs') == forward
  assert BATCH * cost.total('train_exact') == 2 * step
  loss = 4 * (2 * config.num_classes + 1)
  assert footprint.activations(config)[0] - loss == kept


@pytest.mark.parametrize(
  'fields',
  [
    dict(attention='full+memory', layerscale=0.1),
    dict(attention='memory+full', norm_place='post', kv_heads=2, head_dim=8),
    dict(attention='memory', qk_norm=True, no_bias='key,value', remat='names'),
  ],
  ids=str,
)
def test_decoders_are_counted_exactly(fields):
  config = EncoderConfig(width=48, depth=3, mlp_dim=80, num_heads=4, **fields)
  config = config.filled(variants.ENCODER)
  model = jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0), memory=20))
  run = blocks_on(config, (9,), memory=(14, 20))
  found = list(blocks(config, run))
  assert sum(part.params for part in found) == sum(leaf.size for leaf in jax.tree.leaves(model))
  # What enters the first layer and the memory have gradients, too.
  given = [jax.ShapeDtypeStruct((BATCH, *shape), jnp.float32) for shape in ((9, 48), (14, 20))]

  def decode(parts):
    model, x, memory = parts
    return model(x, Context(memory=Memory(memory)))[0]

  forward, step, kept = counted(decode, (model, *given))
  assert BATCH * sum(part.macs for part in found) == forward
  assert BATCH * sum(part.macs + part.backward + part.recomputed for part in found) == step
  norm = 4 * 9 * (3 * 48 + 2) * hasattr(model, 'norm')
  assert round(footprint.of_blocks(config, run)[0]) + norm == kept


@pytest.mark.parametrize(('fields', 'remat'), BLOCKS, ids=str)
def test_what_is_kept_and_what_is_computed_again(fields, remat):
  it = experiment(**fields, remat=remat)
  config = it.config.model
  cost = flops.costs(config, examples=BATCH)
  step = products(traced(it.train_step(), *inputs(it), it.hyper(0)))
  assert BATCH * cost.total('train_exact') == 2 * step
  kept, more = footprint.activations(config, examples=BATCH)
  assert kept == of_images(residuals(it))
  # Of a block that is computed again, as much as if it had been kept.
  plain = dataclasses.replace(config, remat='none')
  most, none = footprint.activations(plain, examples=BATCH)
  assert none == 0
  marks = sequence(config).marks  # once for all layers
  assert (most - marks - kept) / config.depth == pytest.approx(more, abs=1)


def test_unrolled_layers_compute_the_same_again():
  steps = []
  for scan in (True, False):
    it = experiment(scan=scan, remat='full')
    steps.append(products(traced(it.train_step(), *inputs(it), it.hyper(0))))
  assert steps[0] == steps[1] == BATCH * flops.costs(it.config.model).total('train_exact') // 2


def test_bias_gradients_are_all_that_is_more_than_three_times_the_forward_pass():
  """And what is less: images need no gradient. Scores are made once more by fused attention."""
  config = ViTArchitecture(**SIZES).resolve()
  cost = flops.costs(config)
  tokens, width = 36, 48
  sums = 3 * 3 * BIAS_COLUMNS * tokens * width
  scores = 3 * tokens**2 * width
  images = 35 * 48 * width
  assert cost.total('train_exact') - cost.total('train') == 2 * (sums + scores - images)


@pytest.mark.parametrize('name', ['clip:B/16', 'siglip:B/16', 'siglip2:B/16'])
def test_both_towers(name):
  sizes = dict(image_size=(32, 32), depth=2)
  config = TwoTowersConfig(
    name, ViTConfig('', **sizes), dataclasses.replace(TwoTowersConfig().text, depth=2)
  ).resolve()
  model = jax.eval_shape(lambda key: config.create(nnx.Rngs(key)), jax.random.key(0))
  cost = flops.costs(config)
  assert cost.parameters() == sum(leaf.size for leaf in jax.tree.leaves(model))
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  texts = jax.ShapeDtypeStruct((2, config.text.context_length), jnp.int32)
  counted = products(traced(lambda model, *args: model(*args), model, images, texts))
  # Similarities are of pairs, not of images.
  assert counted == 2 * cost.total('macs') + 2 * 2 * config.text.num_classes
  assert cost.tokens == {'image/': 4 + (name[0] == 'c'), 'text/': config.text.context_length}


# --- compilers ---


@pytest.mark.parametrize('pool', ['token', 'mean', 'map'])
def test_the_compiler_counts_little_more(pool):
  config = dict(image_size=(32, 32), num_classes=10, pool=pool, width=128, mlp_dim=512, depth=3)
  model = vit_jax.create('mu/4', scan=False, **config)
  run = jax.jit(lambda model, x: model(x)).lower(model, np.zeros((1, 32, 32, 3), np.float32))
  # Norms, softmax and activations are what the compiler counts beyond ours.
  counted = run.compile().cost_analysis()['flops'] / 2
  assert 1 <= counted / flops.forward_macs(model.config) < 1.1


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_the_compiler_counts_little_more_of_a_step(remat):
  it = experiment(width=192, mlp_dim=768, scan=False, remat=remat)
  compiled = it.train_step().lower(*inputs(it), it.hyper(0)).compile()
  exact = BATCH * flops.costs(it.config.model).total('train_exact')
  assert 1 <= compiled.cost_analysis()['flops'] / exact < 1.1


def test_what_a_step_takes_is_at_least_what_is_kept():
  """Of real sizes the whole of what is traced, copies of weights included, within 2 %."""
  fields = dict(variant='S/16', image_size=(224, 224), dtype='bfloat16', remat='names')
  sizes = dict.fromkeys(('width', 'depth', 'mlp_dim', 'num_heads', 'patch_size'))
  it = experiment(**{**sizes, **fields})
  found = flops.memory(it.config.model, BATCH)
  arrays = sum(array.size * array.dtype.itemsize for array in residuals(it))
  assert found.copies + found.activations == pytest.approx(arrays, rel=0.02)
  state, _, _ = inputs(it)
  held = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))  # noqa: E731
  assert found.parameters == found.gradients == held(state.model)
  assert found.optimizer + 4 == held(state.opt)  # and a count of steps
  assert flops.memory(it.config.model, BATCH, ema=True).optimizer == 3 * found.parameters
  assert found.total == sum(found)
