"""Every variant by name: its parameters, name by name, and the published counts."""

import json
import math

import jax
import pytest
from flax import nnx

from tests import golden
from vit_jax.architecture.variants import CLIP_SPACE, STEMS, TEXT_FAMILIES, name_of, names
from vit_jax.core.errors import RunError
from vit_jax.models.two_towers import TwoTowersConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import tree

PATH = golden.FOLDER / 'variants.json'


def towers():
  for family, table in TEXT_FAMILIES.items():
    for size in table.sizes:
      yield f'{family}:{size}/16'


def shapes(config):
  model = jax.eval_shape(lambda key: config.create(nnx.Rngs(key)), jax.random.key(0))
  return {name: list(leaf.shape) for name, leaf in tree.flatten(model).items()}


def entry(config):
  found = shapes(config)
  return {'parameters': sum(map(math.prod, found.values())), 'shapes': found}


def both(name):
  """A model with two towers; the names of `names` are single ones."""
  return entry(TwoTowersConfig(name))


GOLDEN = json.loads(PATH.read_text()) if PATH.exists() else {}


@pytest.mark.parametrize('name', list(names()))
def test_names_shapes_and_count(name):
  assert name in GOLDEN, 'run: python -m tests.test_variants'
  assert entry(ViTConfig(name)) == GOLDEN[name]


@pytest.mark.parametrize('name', list(towers()))
def test_names_shapes_and_count_of_two_towers(name):
  assert f'{name}+text' in GOLDEN, 'run: python -m tests.test_variants'
  assert both(name) == GOLDEN[f'{name}+text']


def test_the_golden_file_has_nothing_else():
  assert GOLDEN.keys() == {*names(), *(f'{name}+text' for name in towers())}
  assert set(STEMS) == {
    name.partition('+')[0] for name in names() if '+' in name and name[0] == 'R'
  }


@pytest.mark.parametrize(
  ('name', 'config', 'count'),
  [
    ('mu/16', dict(pool='mean'), 76_648),
    ('Ti/16', {}, 5_717_416),
    ('Ti/16', dict(posemb_tokens='patches'), 5_717_032 + 192),
    ('S/16', {}, 22_050_664),
    ('S/32', {}, 22_878_952),
    ('S/16', dict(pool='mean', posemb='sincos'), 21_974_632),
    ('M/16', dict(pool='mean'), 38_836_712),
    ('B/8', {}, 86_576_872),
    ('B/16', {}, 86_567_656),
    ('B/16', dict(posemb_tokens='patches'), 86_566_888),
    ('B/16', dict(pool='mean', posemb='sincos', representation_size=768), 87_006_184),
    ('B/16', dict(pool='map'), 92_884_224 + 769_000),
    ('B/32', {}, 88_224_232),
    ('L/16', {}, 304_326_632),
    ('L/32', {}, 306_535_400),
    ('So400m/14', dict(pool='map'), 428_833_704),
    ('H/14', {}, 632_045_800),
    ('g/14', dict(pool='map'), 1_037_857_384),
    ('g-opt/16', dict(pool='map'), 1_164_613_096),
    ('G/14', dict(pool='map'), 1_882_797_416),
    ('G-opt/16', dict(pool='map'), 1_699_646_952),
    ('e/14', dict(pool='map'), 3_875_135_720),
    ('R+Ti/16', {}, 6_337_704),
    ('R26+S/32', {}, 36_431_912),
    ('R26+B/32', {}, 101_383_976),
    ('R50+B/16', {}, 98_659_112),
    ('R50+L/32', {}, 328_994_856),
    ('deit-distilled:Ti/16', {}, 5_910_800),
    ('deit-distilled:S/16', {}, 22_436_432),
    ('deit-distilled:B/16', {}, 87_338_192),
    ('deit3:S/16', {}, 22_059_496),
    ('deit3:B/16', {}, 86_585_320),
    ('deit3:L/16', {}, 304_374_760),
    ('deit3:H/14', {}, 632_126_440),
    ('beit:B/16', {}, 86_530_984),
    ('beit:L/16', {}, 304_430_568),
    ('dinov2:S/14', dict(num_classes=0), 22_056_576),
    ('dinov2:B/14', dict(num_classes=0), 86_580_480),
    ('dinov2:L/14', dict(num_classes=0), 304_368_640),
    ('dinov2:g/14', dict(num_classes=0), 1_136_480_768),
    ('clip:B/32', dict(num_classes=512), 87_849_216),
  ],
)
def test_published_counts(name, config, count):
  found = shapes(ViTConfig(name, **{'num_classes': 1000, **config}))
  assert sum(map(math.prod, found.values())) == count


@pytest.mark.parametrize(
  ('name', 'count'),
  [('clip:B/32', 151_277_313), ('clip:B/16', 149_620_737), ('clip:L/14', 427_616_513),
   ('clip:H/14', 986_109_441), ('siglip:B/16', 203_155_970)],
)  # fmt: skip
def test_published_counts_of_two_towers(name, count):
  assert both(name)['parameters'] == count


@pytest.mark.parametrize('name', ['22B/14', 'dinov3:7B/16'])
def test_the_largest_are_as_large_as_their_papers_say(name):
  billions = {'22B/14': 21.743, 'dinov3:7B/16': 6.716}[name]
  pool = {'pool': 'mean'} if name == '22B/14' else {}
  found = shapes(ViTConfig(name, **pool))
  assert sum(map(math.prod, found.values())) / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize('name', list(names()))
def test_a_configuration_knows_its_name(name):
  config = ViTConfig(name).resolve()
  again = ViTConfig(name_of(config)).resolve()
  # Some families are the same model under two names.
  assert {k: v for k, v in vars(again).items() if k != 'variant'} == {
    k: v if k not in ('image_size', 'interpolation') else vars(again)[k]
    for k, v in vars(config).items()
    if k != 'variant'
  }


def test_every_tower_of_clip_has_a_space():
  assert CLIP_SPACE.keys() == TEXT_FAMILIES['clip'].sizes.keys()


@pytest.mark.parametrize(
  ('name', 'message'),
  [('clop:B/16', 'did you mean clip'), ('clip:X/16', 'choose from B, L, H, g, G')],
)
def test_unknown_towers(name, message):
  with pytest.raises(RunError, match=message):
    TwoTowersConfig(name).resolve()


if __name__ == '__main__':
  table = {name: entry(ViTConfig(name)) for name in names()}
  table |= {f'{name}+text': both(name) for name in towers()}
  lines = (f'{json.dumps(name)}: {json.dumps(value)}' for name, value in table.items())
  PATH.write_text('{\n' + ',\n'.join(lines) + '\n}\n')
