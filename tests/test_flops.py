"""Costs against what others have published; conventions; the command."""

import json
import subprocess
import sys

import pytest

from vit_jax import flops
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core.errors import RunError

# --- what others have published ---

# infer_gmacs of the file results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv in
# huggingface/pytorch-image-models.
TIMM = [
  ('S/16', 224, 1000, 4.61), ('B/16', 224, 1000, 17.58), ('B/16', 384, 1000, 55.54),
  ('B/8', 224, 1000, 78.22), ('L/16', 224, 1000, 61.60), ('L/14', 224, 1000, 81.08),
  ('H/14', 224, 1000, 167.40), ('g/14', 224, 1000, 267.18), ('G/14', 224, 1000, 483.95),
  ('R50+B/16', 384, 1000, 67.43), ('R50+L/32', 384, 1000, 57.43),
  ('deit-distilled:B/16', 384, 1000, 55.65), ('deit3:L/16', 384, 1000, 191.21),
  ('dinov2:S/14', 518, 0, 46.76), ('dinov2-reg:L/14', 518, 0, 508.90),
  ('dinov2:g/14', 518, 0, 1784.2), ('dinov2-reg:g/14', 518, 0, 1790.08),
  ('siglip:B/16', 512, 0, 108.22), ('siglip:So400m/14', 224, 0, 110.26),
  ('siglip:So400m/14', 378, 0, 335.40), ('clip:L/14', 336, 1000, 191.11),
  ('clip:H/14', 336, 1000, 390.97), ('clip:G/14', 224, 1000, 483.96),
  ('beit:L/16', 512, 1000, 362.24), ('eva02:B/14', 448, 1000, 107.11),
  ('eva02:L/14', 448, 1000, 362.33),
]  # fmt: skip


def of(variant, side=224, classes=1000, **fields):
  config = ViTArchitecture(variant, image_size=(side, side), num_classes=classes, **fields)
  return flops.costs(config.resolve())


@pytest.mark.parametrize(('variant', 'side', 'classes', 'gmacs'), TIMM)
def test_timm(variant, side, classes, gmacs):
  """To the last digit."""
  counted = of(variant, side, classes).total('fvcore')
  assert counted / 1e9 == pytest.approx(gmacs, abs=0.0051)


@pytest.mark.parametrize(
  ('variant', 'epochs', 'exaflops'),
  # Dosovitskiy et al. 2021, table 6. (55 for B/32, where we count 56.1.)
  [('B/16', 7, 224), ('L/32', 7, 196), ('L/16', 7, 783), ('L/16', 14, 1567), ('H/14', 14, 4262)],
)  # fmt: skip
def test_the_vit_paper(variant, epochs, exaflops):
  images = 303e6 * epochs  # of JFT-300M
  assert of(variant).total('train') * images / 1e18 == pytest.approx(exaflops, rel=0.003)


@pytest.mark.parametrize(
  ('variant', 'fields', 'gflops'),
  # Zhai et al. 2022, table 2, without a head.
  [('L/16', {}, 122.9), ('B/16', {}, 35.1), ('S/16', {}, 9.2), ('Ti/16', {}, 2.5),
   ('g/14', {}, 533.1), ('G/14', {}, 965.3), ('S/32', {}, 2.3),
   ('', dict(width=256, depth=6, mlp_dim=1024, num_heads=8, patch_size=16), 2.2),
   ('', dict(width=256, depth=6, mlp_dim=1024, num_heads=8, patch_size=28), 0.7)],
)  # fmt: skip
def test_scaling_vision_transformers(variant, fields, gflops):
  counted = of(variant, classes=0, **fields).total('flops') / 1e9
  assert counted == pytest.approx(gflops, rel=0.003, abs=0.051)


def test_two_sizes_that_they_count_differently():
  """Neither with a class token nor without one are these within their rounding."""
  for patch, gflops in ((28, 11.3), (32, 8.7)):
    with_token = of(f'B/{patch}', classes=0).total('flops') / 1e9
    without = of(f'B/{patch}', classes=0, pool='mean').total('flops') / 1e9
    assert without < gflops - 0.04
    assert gflops < with_token - 0.1
    assert with_token == pytest.approx(gflops, rel=0.014)


# --- conventions ---


def test_conventions_of_one_model():
  cost, tokens, params = of('S/16'), 197, 22_050_664
  embedding = 16 * 16 * 3 * 384 + 384 + 197 * 384 + 384
  attention = 12 * 2 * tokens**2 * 384
  assert cost.total('6nd') == 6 * params * tokens
  assert cost.total('6nd_non_embedding') == 6 * (params - embedding) * tokens
  assert cost.total('palm') == 6 * params * tokens + 12 * 12 * 384 * tokens**2
  assert cost.parameters(('embedding',)) == params - embedding
  assert cost.total('macs', ('attention',)) == cost.total('macs') - attention
  assert cost.total('macs', ('head',)) == cost.total('macs') - 384_000
  assert cost.total('macs', ('embedding',)) == cost.total('macs') - 196 * 768 * 384
  # What 6ND misses is what grows with the square of the tokens, the images and the norms.
  bare = ('embedding', 'attention', 'head', 'norms')
  kernels = 12 * (4 * 384**2 + 2 * 384 * 1536)
  assert cost.total('train', bare) == 6 * kernels * tokens
  assert set(flops.CONVENTIONS) == {
    'macs', 'flops', 'fvcore', 'train', 'train_exact', '6nd', '6nd_non_embedding', 'palm'
  }  # fmt: skip


def test_the_share_of_attention():
  """Tokens / (6 width + tokens) of the blocks."""
  for side, share in ((224, 197 / (6 * 768 + 197)), (384, 577 / (6 * 768 + 577))):
    cost = of('B/16', side)
    blocks = cost.total('macs', ('embedding', 'head'))
    assert 1 - cost.total('macs', ('embedding', 'head', 'attention')) / blocks == pytest.approx(
      share
    )
  assert of('B/16', 448).total('macs') / of('B/16').total('macs') == pytest.approx(4.47, abs=0.005)


def test_what_training_leaves_out_is_left_out_of_training_only():
  plain, dropped = of('B/16'), of('B/16', patch_dropout=0.5)
  assert plain.tokens == {'': 197}
  assert dropped.tokens == {'': 1 + 98}
  assert dropped.total('macs') == plain.total('macs')
  assert dropped.total('train') < 0.52 * plain.total('train')
  config = ViTArchitecture('B/16', drop_path=0.4, drop_path_mode='subset', num_classes=10).resolve()
  for examples in (0, 4, 10):  # 2 of 4 are kept
    share = {0: 0.6, 4: 0.5, 10: 0.6}[examples]
    cost = flops.costs(config, examples=examples)
    blocks = ('embedding', 'head', 'norms')
    assert cost.total('train', blocks) == pytest.approx(3 * share * cost.total('flops', blocks))
    assert flops.train_flops(config, examples=examples) == cost.total('train')


def test_unknown_names_are_answered():
  cost = of('S/16')
  with pytest.raises(RunError, match=r"unknown convention 'mac'.*macs"):
    cost.total('mac')
  with pytest.raises(RunError, match=r"unknown part 'atention'.*attention"):
    cost.total('macs', ('atention',))
  with pytest.raises(RunError, match="unknown part 'words/x'"):
    cost.parameters(('words/x',))


# --- the command ---


def command(*arguments):
  run = [sys.executable, '-m', 'vit_jax.flops', *arguments]
  return subprocess.run(run, capture_output=True, text=True)


def test_the_command_prints_what_is_published():
  done = command('S/16', '--image=224', '--images=2.1e9', '--batch=32', '--registers=0')
  assert done.returncode == 0, done.stderr
  lines = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
  assert lines['total'][1:3] == ['22,050,664', '4.5989']
  assert lines['fvcore'][1] == '4.608'
  assert lines['mlp'][3] == '60.64%'
  assert lines['full'][4] == '1.226'
  assert all(name in lines for name in flops.CONVENTIONS)


def test_the_command_prints_json(capsys):
  flops.main('siglip:B/16', '', None, True, 8, 0.0, True, {'dtype': 'bfloat16', 'text.depth': 6})
  found = json.loads(capsys.readouterr().out)
  assert found['model']['text']['depth'] == 6
  assert found['tokens'] == {'image/': 196, 'text/': 64}
  assert found['parameters'] == sum(part['params'] for part in found['parts'])
  assert found['memory']['full']['activations'] < found['memory']['none']['activations'] / 10
  assert found['memory']['full']['copies'] > 0


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [(('S/16', '--widht=3'), 'did you mean width'), (('S/16', '--image=big'), '224x384'),
   (('S/16', '--text.depth=3'), '--text'), (('S/17x',), 'S/16'), (('S/16', '--batch=0'), '--batch'),
   (('S/16', '--image=225'), 'patch_size=16'), (('S/16', '--depth=x'), 'of type int')],
)  # fmt: skip
def test_mistakes_on_the_command_line(arguments, message):
  done = command(*arguments)
  assert done.returncode == 1
  assert done.stderr.startswith('error: ')
  assert message in done.stderr
