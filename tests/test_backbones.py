"""Networks that are no transformers: sizes, costs, what they see, and through the loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from tests.conftest import make_digits, tiers
from tests.test_conformance import assert_same, stepped
from tests.test_costs import BATCH, assert_counted, inputs, products, traced
from vit_jax import models
from vit_jax.architecture import MODELS, named, names
from vit_jax.architecture.backbones import Layer, receptive_field
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.costs import flops, footprint
from vit_jax.nn import sharding, tree
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment

# Of timm 1.0.31, with 1000 classes.
PARAMETERS = {
  'resnet:R50x1': 25_549_352, 'resnet:R50x3': 217_319_080, 'resnet:R101x1': 44_541_480,
  'resnet:R101x3': 387_934_888, 'resnet:R152x2': 236_335_208, 'resnet:R152x4': 936_533_224,
  'convnext:T': 28_589_128, 'convnext:S': 50_223_688, 'convnext:B': 88_591_464,
  'convnext:L': 197_767_336, 'convnext:XL': 350_196_968,
  'mixer:S/32': 19_104_624, 'mixer:S/16': 18_528_264, 'mixer:B/32': 60_293_428,
  'mixer:B/16': 59_880_472, 'mixer:L/32': 206_939_264, 'mixer:L/16': 208_196_168,
}  # fmt: skip
# Of Liu et al. 2022, table 12 and section 4, for images of 224 pixels.
GMACS = {'T': 4.5, 'S': 8.7, 'B': 15.4, 'L': 34.4, 'XL': 60.9}
# Small ones, whose sides are even after each stride: then products are counted without rounding.
TINY = {
  'resnet': dict(width=32, depths=(2, 1), image_size=(32, 64)),
  'convnext': dict(widths=(16, 24), depths=(2, 1), image_size=(24, 32), drop_path=0.2),
  'mixer': dict(width=24, depth=2, mlp_dim=40, tokens_mlp_dim=16, patch_size=4,
                image_size=(20, 28), drop_path=0.2),
  'convnet': dict(widths=(16, 24, 24), kernels=(3, 3, 1), strides=(1, 2, 1), dilations=(2, 1, 1),
                  residual=True, image_size=(20, 28)),
}  # fmt: skip


def experiment(kind, **fields):
  cfg = config_lib.complete(dict(
    total='10 steps', batch_size=BATCH, log={}, checkpoint={},
    model=dict(name=kind, variant='', num_classes=7, **{**TINY[kind], **fields}),
    data=dict(source=dict(name='synthetic')), optim=dict(lr=1e-3, warmup='1 step'),
  ))  # fmt: skip
  return Experiment(schema.build(config_lib.Config, config_lib.to_dict(cfg)))


def tiny(kind, **fields):
  """A network in which nothing is zero or one."""
  config = {**TINY[kind], 'num_classes': 7, **fields}
  model = vit_jax.create(f'{kind}:', **config)
  rng = np.random.default_rng(7)
  return jax.tree.map(lambda w: jnp.asarray(w + 0.1 * rng.normal(size=w.shape), w.dtype), model)


# --- sizes and costs ---


def test_published_counts():
  for name, count in PARAMETERS.items():
    kind, variant = named(name)
    config = MODELS[kind](variant, num_classes=1000).resolve()
    cost = flops.costs(config)
    assert cost.parameters() == count, name
    assert config.name == variant
    if kind == 'convnext':
      assert cost.total('fvcore') / 1e9 == pytest.approx(GMACS[variant], abs=0.1)


@pytest.mark.parametrize('name', ['resnet:R50x1', 'convnext:T', 'mixer:S/32'])
def test_networks_have_as_many(name):
  kind, variant = named(name)
  config = models.config_of(kind)(variant, num_classes=1000)
  model = jax.eval_shape(lambda: config.create(nnx.Rngs(0)))
  assert sum(leaf.size for leaf in jax.tree.leaves(model)) == PARAMETERS[name]


def test_every_name_is_a_network():
  for name in names():
    kind, variant = named(name)
    config = MODELS[kind](variant).resolve()
    assert flops.costs(config).parameters() > 0
  with pytest.raises(RunError, match=r"unknown variant 'R51x1' of resnet: did you mean R50x1"):
    vit_jax.create('resnet:R51x1')


@pytest.mark.parametrize('more', [{}, dict(dtype='bfloat16'), dict(remat='full')], ids=str)
@pytest.mark.parametrize('kind', list(TINY))
def test_counted_exactly(kind, more):
  """And what checkpointing holds on top, and copies of weights."""
  it = experiment(kind, **more)
  config = it.config.model
  cost, kept, most, left = assert_counted(it)
  plain = dataclasses.replace(config, remat='none')
  assert (most > 0) == (config != plain)
  assert footprint.activations(plain)[0] >= kept + most
  whole = sum(array.size * array.dtype.itemsize for array in left)
  copies = flops.memory(config, BATCH).copies
  assert BATCH * kept + copies == pytest.approx(whole, rel=0.02)
  with pytest.raises(RunError, match='6nd counts tokens, which only a transformer has'):
    cost.total('6nd')


@pytest.mark.parametrize(
  ('kind', 'frozen'),
  [
    ('resnet', ('(?!head).*',)), ('resnet', ('body/(root|stage0).*',)),
    ('convnext', ('stage0_.*',)), ('mixer', ('(?!block1|norm|head).*',)),
    ('convnet', ('layer[01]/.*',)), ('convnet', ('layer1/.*',)),
  ],
)  # fmt: skip
def test_what_a_step_costs_where_some_is_frozen(kind, frozen):
  it = experiment(kind)
  cfg = dataclasses.replace(it.config, task=dataclasses.replace(it.config.task, frozen=frozen))
  it = Experiment(cfg)
  step = 2 * products(traced(it.train_step(), *inputs(it), it.hyper(0)))
  # Images have no gradient, which the convention counts.
  first = flops.costs(it.config.model).parts[0].macs * (kind == 'convnet' and '0' not in frozen[0])
  assert step / BATCH + 2 * first == pytest.approx(it.flops(), rel=0.02)


# --- what they see ---


@pytest.mark.parametrize(
  'layers',
  [
    [(3, 1, 1), (3, 2, 1), (1, 1, 1)], [(5, 2, 1), (3, 1, 3)], [(4, 4, 1), (2, 2, 1), (3, 1, 1)],
    [(3, 1, 1), (3, 1, 2), (3, 1, 4)],
  ],
)  # fmt: skip
def test_the_receptive_field_is_where_gradients_are(layers):
  kernels, strides, dilations = map(tuple, zip(*layers, strict=True))
  fields = dict(kernels=kernels, strides=strides, dilations=dilations, widths=(4,) * len(layers))
  model = tiny('convnet', **fields, residual=False, image_size=(48, 48), in_channels=1)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 48, 48, 1)), jnp.float32)
  places = model.features(x)['local'].shape[1:3]
  at = tuple(side // 2 for side in places)
  jacobian = jax.jit(jax.grad(lambda x: (model.features(x)['local'][0, at[0], at[1]] ** 2).sum()))
  seen = np.abs(np.asarray(jacobian(x)))[0, :, :, 0] > 0
  field = receptive_field(model.config.layers)
  for axis in (0, 1):
    found = np.flatnonzero(seen.any(1 - axis))
    first = field.first + at[axis] * field.stride
    assert (found.min(), found.max()) == (first, first + field.size - 1)
  # The whole is the mean of its places.
  out = model.features(x)
  np.testing.assert_allclose(out['local'].mean((1, 2)), out['logits'], rtol=1e-4, atol=1e-5)


def test_fields_of_the_variants_are_what_their_names_say():
  for size in (9, 17, 33):
    layers = MODELS['convnet'](f'field{size}').resolve().layers
    assert receptive_field(layers) == (size, 4, -(size // 2))
  assert receptive_field((Layer(1, 7, 4, 1), Layer(1, 3, 2, 1))).size == 7 + 2 * 4  # AlexNet-like


def test_stochastic_depth_drops_whole_examples():
  """Both that are kept and that are dropped occur, and evaluation drops nothing."""
  model = tiny('mixer', drop_path=0.9)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 20, 28, 3)), jnp.float32)
  run = jax.jit(lambda model, key: model.features(x, key=key))
  with_key, without = run(model, jax.random.key(0)), run(model, None)
  np.testing.assert_allclose(with_key['block00'], without['block00'], rtol=1e-5)  # its rate is 0
  step = np.asarray(with_key['block01'] - with_key['block00'])
  dropped = np.abs(step).max((1, 2)) == 0
  assert 0 < dropped.sum() < 16


# --- through the loop ---


@pytest.mark.parametrize('kind', tiers(list(TINY), 1, 3))
def test_a_step_is_the_same_on_a_mesh(kind, data_dir):
  """In parts and with parameters cut over devices; what a mesh does not divide stays whole.

  More than ten seconds: the backward pass of convolutions is slow to compile.
  """
  own = dict(
    resnet=dict(image_size=(32, 32)),
    convnext=dict(widths=(8, 12), patch_size=2, layerscale=0.1),
    mixer=dict(patch_size=2, width=16),
    convnet=dict(widths=(7, 8, 8)),
  )
  fields = {**TINY[kind], 'image_size': (8, 8), **own[kind], 'in_channels': 1, 'variant': ''}
  config = make_digits(data_dir, optim__lr=1e-2).to_dict()
  config |= dict(model=dict(name=kind, **fields), evals={})
  plain = stepped(config_lib.complete(config))
  config['optim'] |= dict(accumulate=2)
  assert_same(stepped(config_lib.complete(config), '2x2x2'), plain)
  with jax.set_mesh(sharding.make_mesh('2x2x2')):
    made = schema.build(config_lib.Config, config_lib.to_dict(config_lib.complete(config)))
    leaves = tree.flatten(Experiment(made).abstract_state.model)
  cut = {name for name, leaf in leaves.items() if any(leaf.sharding.spec)}
  assert {n for n in leaves if n.endswith('kernel')} - cut <= {'layer0/conv/kernel'}


def refused(config, message):
  with pytest.raises(RunError, match=message):
    Experiment(schema.build(config_lib.Config, config_lib.to_dict(config_lib.complete(config))))


def test_what_is_of_a_transformer_is_refused_by_name(data_dir):
  config = make_digits(data_dir).to_dict()
  config['model'] = dict(name='convnet', image_size=(8, 8), in_channels=1)
  refused({**config, 'optim': dict(layer_decay=0.7)}, r'layer_decay=0\.7: a convnet has no encoder')
  refused({**config, 'task': dict(name='packed')}, r'need model\.name=vit, not convnet')
  refused(
    {**config, 'model': {**config['model'], 'num_heads': 4}},
    r'unknown field config\.model\.num_heads',
  )
  refused({**config, 'model': {**config['model'], 'kernels': (3, 3)}}, 'kernels of a convnet has 2')


def test_files_are_read_and_changed(tmp_path):
  """Other channels and another head; what its weights cannot do is said."""
  model = tiny('convnext', widths=(8, 8, 12, 16), depths=(1, 1, 1, 1), image_size=(32, 32))
  vit_jax.save(model, tmp_path / 'theirs', 'timm')
  grey = vit_jax.load(tmp_path / 'theirs', in_channels=1, num_classes=3, image_size=40)
  kernels = [np.asarray(m.stage0_down.kernel[...]) for m in (model, grey)]
  np.testing.assert_allclose(kernels[1], kernels[0].sum(2, keepdims=True), rtol=1e-5)
  assert grey(jnp.zeros((1, 40, 40, 1))).shape == (1, 3)
  assert grey.card.size == (40, 40)
  with pytest.raises(RunError, match='a convnext with patch_size=4 cannot be changed to 8'):
    vit_jax.load(tmp_path / 'theirs', patch_size=8)
  with pytest.raises(RunError, match=r'dinov2 has no models of the kind convnext.*: timm, vit_jax'):
    vit_jax.save(model, tmp_path / 'ours.safetensors', 'dinov2')


@pytest.mark.parametrize('kind', ['resnet', 'mixer'])
def test_round_trips_of_big_vision(kind, tmp_path):
  """Bit by bit, and what timm has no arguments for is said."""
  own = dict(image_size=(16, 16)) if kind == 'mixer' else {}
  model = tiny(kind, **own)
  vit_jax.save(model, tmp_path / 'a.npz', 'big_vision')
  again = vit_jax.load(tmp_path / 'a.npz')
  for name, leaf in tree.flatten(model).items():
    np.testing.assert_array_equal(tree.flatten(again)[name], leaf, name)
  message = rf'timm has no {kind} of these sizes, only ' if kind == 'resnet' else "mlp='gelu_tanh'"
  with pytest.raises(RunError, match=message):
    vit_jax.save(model, tmp_path / 'b', 'timm')
  vit_jax.save(model, tmp_path / 'run', 'vit_jax')
  assert vit_jax.load(tmp_path / 'run').config.kind == kind


@pytest.mark.slow
def test_a_network_is_trained_resumed_and_predicts(data_dir, tmp_path, typed):
  """And another run starts from it."""
  from tests import runs
  from vit_jax.train import train

  config = make_digits(data_dir).to_dict()
  config['model'] = dict(
    name='convnet', image_size=(8, 8), in_channels=1, widths=(16, 32), kernels=(3,), strides=(1, 2),
    dilations=(1,),
  )  # fmt: skip
  config = config_lib.complete(config)
  train(config, str(tmp_path / 'whole'))
  runs.cut_off(tmp_path / 'cut', config, 'at step 6')
  train(config, str(tmp_path / 'cut'))
  runs.assert_bit_identical(tmp_path / 'whole', tmp_path / 'cut')
  image = tmp_path / 'seven.png'
  from PIL import Image

  Image.fromarray(np.uint8(np.eye(8) * 255)).save(image)
  status, said, _ = typed('vit_jax.predict', tmp_path / 'whole', image)
  assert status == 0
  assert said.count('%') == 5
  status, _, error = typed(
    'vit_jax.predict', tmp_path / 'whole', image, '--attention', f'--out={tmp_path / "drawn"}'
  )
  assert status == 1
  assert 'a model of the kind convnet has no attention over patches' in error
  given = config.to_dict() | {'init': str(tmp_path / 'whole'), 'total': '8 steps'}
  given['model'] = dict(name='convnet')
  result = train(config_lib.complete(given), str(tmp_path / 'second'))
  assert result['metrics']['test/top1'] > 0.1
  assert (tmp_path / 'second' / 'result.json').exists()
