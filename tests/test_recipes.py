"""Published recipes: what configurations make of them, against a table typed from their sources."""

import collections
import dataclasses
import functools
import importlib
import json
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vit_jax
from vit_jax import models
from vit_jax.convert import adapt
from vit_jax.convert import dialects as convert_dialects
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.optim import schedules, transforms
from vit_jax.training import config as config_lib
from vit_jax.training import hyper as hyper_lib

ROOT = pathlib.Path(__file__).parent.parent
ROWS = json.loads((ROOT / 'tests' / 'golden' / 'recipes.json').read_text())['rows']
FILES = (
  'vit', 'vit_s16', 'augreg', 'deit', 'deit3', 'flexivit', 'bit', 'mae', 'simmim', 'dino', 'ibot',
  'dinov2',
)  # fmt: skip
# Images of an epoch, by split.
EPOCHS = {
  'train': 1_281_167, 'train[:98%]': 1_255_544, 'train[:99%]': 1_268_355,
  'full[51200:]': 13_103_041, 'train[:90%]': 3312,
}  # fmt: skip


def built(name):
  """The configuration with what its file says of a model that a checkpoint may decide."""
  file, _, argument = name.partition('.py:')
  config = importlib.import_module(f'configs.{file}').get_config(argument).to_dict()
  return schema.build(config_lib.Config, config)


def sizes(cfg):
  """What durations are multiples of."""
  each = dict(batch_size=cfg.batch_size, epoch=EPOCHS.get(cfg.data.split, 1))
  return dict(**each, total=config_lib.steps(cfg.total, **each))


def steps(cfg):
  """Of a duration."""
  return functools.partial(config_lib.steps, **sizes(cfg))


def durations(cfg):
  return dict(total=sizes(cfg)['total'], warmup=steps(cfg)(cfg.optim.warmup), cooldown=0)


def colour(section):
  name = {
    'Colour': 'none', 'RandAugment': 'randaugment', 'ThreeAugment': 'three_augment',
    'Jitter': 'jitter',
  }  # fmt: skip
  fields = {
    'randaugment': ('dialect', 'magnitude', 'count'), 'three_augment': ('jitter',),
    'jitter': ('brightness', 'contrast', 'saturation', 'hue', 'prob', 'grey'),
  }  # fmt: skip
  kind = name[type(section).__name__]
  return [kind, *(getattr(section, field) for field in fields.get(kind, ()))]


def crop(section):
  if hasattr(section, 'pad'):
    return ['simple', section.pad, section.method]
  dialect = 'big_vision' if section.method == 'linear' else 'torchvision'
  assert section.dialect == dialect
  assert section.max_aspect == pytest.approx(4 / 3)
  return ['random_resized', section.min_area, section.method]


def encoder(model):
  """The tower that is pre-trained, of a model of several."""
  return getattr(model, 'encoder', model)


def counted(model):
  """Parameters of each part of a model."""
  found = collections.Counter()
  for name, shape in adapt.abstract(model).items():
    found[name.split('/')[0]] += math.prod(shape)
  return dict(found)


def first(cfg):
  """The first evaluation."""
  return next(iter(cfg.evals.values()))


# What a configuration says of each entry of a row.
READ = {
  'optimizer': lambda c: type(c.optim).__name__.lower(), 'b1': lambda c: c.optim.b1.constant,
  'b2': lambda c: c.optim.b2.constant, 'eps': lambda c: c.optim.eps,
  'momentum': lambda c: c.optim.momentum.constant, 'mu_dtype': lambda c: c.optim.mu_dtype,
  'batch': lambda c: c.batch_size, 'clip': lambda c: c.optim.clip,
  'epochs': lambda c: float(c.total.removesuffix(' epochs')),
  'steps': lambda c: float(c.total.removesuffix(' steps')), 'loss': lambda c: c.task.loss_of,
  'threshold': lambda c: c.task.threshold,
  'smoothing': lambda c: c.task.label_smoothing, 'mixup': lambda c: c.task.mixup,
  'cutmix': lambda c: c.task.cutmix, 'colour': lambda c: colour(c.data.colour),
  'erase': lambda c: getattr(c.data.erase, 'prob', 0.0), 'repeats': lambda c: c.data.repeats,
  'crop': lambda c: crop(c.data.crop), 'train': lambda c: c.data.split,
  'eval': lambda c: [
    'center' if first(c).crop.fraction else 'resize', first(c).crop.fraction
  ],
  'ema': lambda c: c.optim.ema, 'images': lambda c: list(c.sizes.images),
  'patches': lambda c: sorted(c.sizes.patches), 'sizes': lambda c: c.sizes.order,
  'matching': lambda c: [c.task.match, c.task.alpha.constant, c.task.temperature.constant],
  'hidden': lambda c: [c.task.shape, c.task.unit, c.task.ratio], 'target': lambda c: c.task.target,
  'normalized': lambda c: [*c.task.mean, *c.task.std],
  'clip_by': lambda c: c.optim.clip_by, 'layer_decay': lambda c: c.optim.layer_decay,
  'local': lambda c: [c.task.local, c.task.local_size, *c.task.local_area],
  'blur': lambda c: list(c.task.blur), 'solarize': lambda c: list(c.task.solarize),
  'blocks': lambda c: [c.task.masked, *c.task.ratio, c.task.smallest],
  'weights': lambda c: [c.task.patch_weight, c.task.koleo],
  'centering': lambda c: c.task.centering, 'scaled': lambda c: c.model.scaled,
  'patch_head': lambda c: c.model.patch_head,
  'student': lambda c: c.task.student_temperature.constant,
  'heads': lambda c: {n: [*c.model.widths(b)[1:], k] for n, (b, k) in c.model.sizes.items()},
}  # fmt: skip
# And of those that are of the model as it is resolved.
OF_MODEL = {
  'dropout': lambda m: m.dropout, 'initial': lambda m: m.initial,
  'layerscale': lambda m: m.layerscale, 'head_bias': lambda m: m.head_bias,
  'pool': lambda m: m.pool, 'posemb': lambda m: m.posemb, 'size': lambda m: m.image_size[0],
  'representation': lambda m: m.representation_size, 'distilled': lambda m: m.distilled,
  'drop_path': lambda m: [0.0 if m.drop_path_mode == 'linear' else m.drop_path, m.drop_path],
  'shape': lambda m: [m.width, m.depth, m.num_heads, m.mlp_dim, m.mlp], 'eps_norm': lambda m: m.eps,
  'relative_bias': lambda m: m.relative_bias, 'no_bias': lambda m: m.no_bias,
  'drop_path_mode': lambda m: m.drop_path_mode, 'interpolation': lambda m: m.interpolation,
}  # fmt: skip


# Entries that are compared otherwise.
BESIDES = (
  'config', 'source', 'lr', 'last_lr', 'decayed', 'over_time', 'patch_rate', 'kept'
)  # fmt: skip


def hyper_of(cfg, step):
  """What changes during a run, at a step, by dotted name."""
  table = hyper_lib.Table(cfg, steps(cfg), **durations(cfg))
  return table(step).named(hyper_lib.names(cfg))


@pytest.mark.parametrize('row', ROWS, ids=[row['config'] for row in ROWS])
def test_a_recipe_is_as_published(row):
  cfg = built(row['config'])
  found = {name: READ[name](cfg) for name in row if name in READ}
  if cfg.init:  # the checkpoint decides the rest
    found |= {'size': cfg.model.image_size[0]} if 'size' in row else {}
    if 'drop_path' in row:
      found['drop_path'] = OF_MODEL['drop_path'](cfg.model)
  else:
    model = cfg.model.resolve()
    found |= {name: OF_MODEL[name](encoder(model)) for name in row if name in OF_MODEL}
    if 'decoder' in row:
      found['decoder'] = [OF_MODEL[n](model.decoder) for n in ('shape', 'posemb', 'initial')]
    if 'parameters' in row:
      every = counted(cfg.task.adapt(model, {}))
      found['parameters'] = {part: every[part] for part in row['parameters']}
  if 'decay' in row:
    assert cfg.optim.decay_with == 'lr'
    found['decay'] = cfg.optim.weight_decay.constant
  assert row.keys() - found.keys() <= set(BESIDES)
  for name, values in row.get('over_time', {}).items():
    for step, want in values.items():
      assert hyper_of(cfg, int(step))[name] == pytest.approx(want, rel=1e-4), (name, step)
  for name, value in found.items():
    exact = name in ('colour', 'decoder', 'heads')  # names, or lists in lists
    assert value == (row[name] if exact else pytest.approx(row[name])), name
  rate = lambda step: schedules.learning_rate(step, cfg.optim, steps(cfg), **durations(cfg))  # noqa: E731
  for step, want in row.get('lr', {}).items():
    assert rate(int(step)) == pytest.approx(want, rel=1e-4), step
  if 'last_lr' in row:
    assert rate(durations(cfg)['total']) == pytest.approx(row['last_lr'], rel=1e-6, abs=1e-12)


OF_EACH_FAMILY = (
  'vit_s16.py:90', 'augreg.py:B/16,1k', 'vit.py:B/16,21k', 'vit.py:B/16,cifar10', 'deit.py:B/16',
  'deit.py:B/16,distilled', 'deit3.py:S/16,800', 'mae.py:L/16,1600', 'simmim.py:B/16,800',
  'dino.py:S/16,800', 'dino.py:B/16,400', 'ibot.py:S/16,800', 'dinov2.py:L/16,1k',
  'dinov2.py:L/14,22k',
)  # fmt: skip


def small(model):
  """The same with two narrow layers, and the same parameters by name."""
  tower = dict(width=8, depth=2, mlp_dim=16, num_heads=2)
  inside = {n: dataclasses.replace(e, **tower) for n, e in getattr(model, 'towers', {}).items()}
  if not inside:  # what a checkpoint decides of one that is tuned is not here
    given = dict(patch_size=16, image_size=(64, 64), num_classes=3)
    return dataclasses.replace(model, **tower, **given)
  side = 4 * inside['encoder'].resolve().patch[0]
  inside['encoder'] = dataclasses.replace(inside['encoder'], image_size=(side, side))
  few = dict(prototypes=5, hidden=6, bottleneck=4, patch_prototypes=7, patch_bottleneck=3)
  given = {n: few[n] for n in few if getattr(model, n, 0)}  # what there is at all
  return dataclasses.replace(model, **inside, **given)


def slower(row, param):
  """What layer-wise decay leaves of the rate of a parameter, and less of embeddings of patches."""
  decay, factor = row.get('layer_decay', 1.0), 1.0
  if param.startswith('encoder/encoder/blocks/'):
    factor = decay ** np.array([2.0, 1.0])  # by layer
  elif param.startswith('encoder/') and not param.startswith('encoder/encoder/norm'):
    factor = decay**3
  return factor * (row.get('patch_rate', 1.0) if param.startswith('encoder/embed/') else 1.0)


def along(factor, values):
  """A factor by layer, for arrays of all layers."""
  return np.reshape(factor, (-1, *(1,) * (np.ndim(values) - 1))) if np.ndim(factor) else factor


@pytest.mark.parametrize('name', OF_EACH_FAMILY)
def test_rates_and_decay_of_every_parameter(name):
  """By what the optimizer of a step does to them, whatever the configuration says.

  Kernels alone are decayed: in DeiT what has two axes, but for the tokens and positions that timm
  knows, in big_vision `.*/kernel$`; and what a row names besides.
  """
  row, cfg = next(row for row in ROWS if row['config'] == name), built(name)
  config = small(cfg.model).resolve()
  if config.kind != 'vit':
    config = cfg.task.adapt(config, {})
  model = models.create(config, nnx.Rngs(0))
  params = jax.tree.map(lambda p: p + 0.5, model)
  step = int(max(row['lr'], key=int))
  named = hyper_of(cfg, step)
  tx = transforms.optimizer(cfg.optim, params, named, cfg.task.rates(named))
  state, little = tx.init(params), 1e-3  # nothing is clipped
  decay = row['decay'] if 'decay' in row else row['over_time']['optim.weight_decay'][str(step)]
  still, _ = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
  moved, _ = tx.update(jax.tree.map(lambda p: jnp.full_like(p, little), params), state, params)
  lr, values = row['lr'][str(step)], tree.flatten(params)
  moves = tree.flatten(moved)
  for param, update in tree.flatten(still).items():
    decayed = param.endswith('kernel') or param in row.get('decayed', ())
    decayed &= bool(decay)
    own = lr * along(slower(row, param), update)
    # LAMB makes an update as long as the parameter: with no gradient that is the parameter itself.
    factor = (1.0 if row['optimizer'] == 'lamb' else decay) * decayed
    want = -own * factor * np.asarray(values[param])
    np.testing.assert_allclose(update, want, rtol=1e-3, atol=1e-12, err_msg=param)
    if not decayed:  # Adam's first update is 1
      want = -own * (little if row['optimizer'] == 'sgd' else 1.0) + np.zeros(update.shape)
      np.testing.assert_allclose(moves[param], want, rtol=1e-3, err_msg=param)
  for step, kept in row.get('kept', {}).items():
    named = hyper_of(cfg, int(step))
    tx = transforms.optimizer(cfg.optim, params, named, cfg.task.rates(named))
    moves = tree.flatten(tx.update(jax.tree.map(jnp.ones_like, params), state, params)[0])
    assert {param for param, update in moves.items() if not update.any()} == set(kept)


# Whose programs can read what a recipe makes.
DIALECTS = (
  ('mae.py:L/16,1600', 'mae'), ('dino.py:S/16,800', 'dino'), ('dino.py:B/16,400', 'dino'),
  ('ibot.py:B/16,400', 'ibot'), ('dinov2.py:L/14,22k', 'dinov2'),
)  # fmt: skip


@pytest.mark.parametrize(('name', 'dialect'), DIALECTS)
def test_published_programs_read_what_a_recipe_makes(name, dialect, tmp_path):
  """And so theirs is a checkpoint of the same architecture."""
  cfg = built(name)
  model = models.create(cfg.task.adapt(small(cfg.model).resolve(), {}), nnx.Rngs(0))
  path = str(tmp_path / f'there{convert_dialects.DIALECTS[dialect]}')
  vit_jax.save(model, path, dialect)
  found = vit_jax.load(path).config.towers
  for tower, made in model.config.towers.items():
    other = {n for n, value in vars(made).items() if value != getattr(found[tower], n)}
    # Fixed positions are of all tokens, whatever posemb_tokens says.
    assert other <= {*config_lib.OWN, 'variant', 'posemb_tokens'}, tower


@pytest.mark.parametrize('file', FILES)
def test_every_recipe_is_sound_and_others_are_answered(file):
  module = importlib.import_module(f'configs.{file}')
  for argument in module.RECIPES:
    config: Any = module.get_config(argument)
    if config.task.name == 'distillation' and not config.task.teacher.init:
      with pytest.raises(RunError, match=r'task\.teacher\.init is empty: give the path'):
        config_lib.check(config)
      config.task.teacher.init = 'teacher.npz'
    config_lib.check(config)
  with pytest.raises(RunError, match=r'unknown recipe .*(did you mean|choose from)'):
    config_lib.load(str(ROOT / 'configs' / f'{file}.py:B/17,900'))
