"""Videos, large images and decoding on TPUs: `python -m experiments.benchmarks.encoders`.

Videos with divided and joint attention, large images with and without windows, and a decoder with a
cache, each as the compiler of TPUs predicts it on one slice; nothing runs, and no TPU is needed. Of
the first two it is the gradient of a loss of all parameters, of the decoder a prompt and then one
token.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks import report
from vit_jax.architecture import variants
from vit_jax.architecture.vit import EncoderConfig
from vit_jax.compile import compiled as compiled_lib
from vit_jax.compile import plan, topology
from vit_jax.costs import chips, flops, parts
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import cache, sharding
from vit_jax.nn.attention import Context
from vit_jax.nn.encoder import Encoder
from vit_jax.nn.masks import Mask

SLICE = 'v5e:2x2'
COMMON: dict[str, Any] = dict(num_classes=400, dtype='bfloat16', remat='names', class_token=True)
# Name, examples on each chip, and the model; TimeSformer of Bertasius et al. 2021, ViTDet of Li et
# al. 2022, whose windows are 14 wide with global attention in every third layer.
MODELS = [
  *(
    (f'TimeSformer-B, {frames} x 224', images, dict(
      variant='B/16', image_size=(frames, 224, 224), patch_size=(1, 16, 16), attention=attention,
      posemb='space_time', **COMMON,
    ))
    for frames, images in ((8, 8), (16, 4), (32, 2))
    for attention in ('t+hw*', 'full')
  ),
  *(
    ('ViT-B/16, 1024 x 1024', 2, dict(
      variant='B/16', image_size=(1024, 1024), attention=attention, **COMMON,
    ))
    for attention in ('h14w14*,h14w14*,full', 'full')
  ),
]  # fmt: skip
# A language model of the shape of Gemma 2B (Gemma Team 2024), with a prompt of 256 patches and 32
# words, of which later words see everything and the prompt itself.
DECODER = EncoderConfig(
  width=2048, depth=18, mlp_dim=16384, num_heads=8, kv_heads=1, head_dim=256, mlp='swiglu',
  norm='rmsnorm', no_bias='query,key,value,out,mlp', dtype='bfloat16',
)  # fmt: skip
PROMPT, LENGTH, SEQUENCES = 288, 512, (1, 32)


def predicted(function: Callable[..., Any], args: Sequence[Any], donated: Any = ()) -> dict:
  """Milliseconds, and GiB on a chip, of a compiled program, and seconds of the compiler."""
  kind = jax.sharding.get_mesh().devices.flat[0].device_kind
  chip = chips.CHIPS[kind]
  start = time.perf_counter()
  with plan.no_cache():
    compiled = jax.jit(function, donate_argnums=donated).lower(*args).compile()
  taken = time.perf_counter() - start
  program = compiled_lib.Program(compiled.as_text() or '')
  kernels = sum(each.count * plan.kernel_seconds(each, chip) for each in program.kernels)
  seconds = program.cycles / chip.clock + kernels
  return {
    'ms': 1e3 * seconds, 'kernels_ms': 1e3 * kernels,
    'gib': compiled_lib.memory(compiled) / 2**30, 'compile_s': taken,
  }  # fmt: skip


def gradient(images: int, fields: dict[str, Any]) -> dict[str, Any]:
  """Of a model with so many images on each chip."""
  config = ViTConfig(**fields).resolve()
  mesh = jax.sharding.get_mesh()
  model = sharding.fill_shardings(jax.eval_shape(lambda: config.create(nnx.Rngs(0))))
  place = NamedSharding(mesh, P(sharding.RULES['batch']))
  x = jax.ShapeDtypeStruct((images * mesh.size, *config.image_size, 3), jnp.float32, sharding=place)
  loss = lambda model, x: jnp.square(model(x)).mean()  # noqa: E731
  found = predicted(jax.grad(loss), (model, x))
  chip = chips.CHIPS[mesh.devices.flat[0].device_kind]
  cost = flops.costs(config)
  (attention,) = (part.macs for part in cost.parts if part.name == 'attention')
  speed = images * cost.total('train') / (found['ms'] / 1e3)
  return {
    'tokens': cost.tokens[''], 'gmacs': cost.total('macs') / 1e9,
    'attention_gmacs': attention / 1e9, 'a_chip': images, **found, 'mfu': speed / chip.peak,
  }  # fmt: skip


def decoding(sequences: int) -> list[dict[str, Any]]:
  """A prompt, and one token after it, of so many sequences on each chip."""
  config = DECODER.filled(variants.ENCODER)
  mesh, rows = jax.sharding.get_mesh(), []
  model = sharding.fill_shardings(jax.eval_shape(lambda: Encoder(config, nnx.Rngs(0))))
  # Weights for decoding are kept as they are used.
  model = jax.tree.map(lambda w: w.update(dtype=jnp.bfloat16), model)
  batch = sequences * mesh.size
  place = NamedSharding(mesh, P(sharding.RULES['batch']))
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=place)
  state = jax.eval_shape(lambda model: cache.empty(model, batch, LENGTH), model)
  state = sharding.fill_shardings(state)
  mask = Mask(causal=True, prefix=shape((batch, LENGTH), bool))
  chip = chips.CHIPS[mesh.devices.flat[0].device_kind]
  for what, tokens in (('prompt', PROMPT), ('token', 1)):
    x = shape((batch, tokens, config.width), jnp.bfloat16)
    angles = jax.ShapeDtypeStruct((1, tokens, config.head_width // 2), jnp.float32)
    found = predicted(cache.extend, (model, x, state, Context(angles, mask=mask)), donated=2)
    run = parts.blocks_on(config, (tokens,))
    macs: dict[str, float] = {part.name: part.macs for part in parts.blocks(config, run)}
    # Every query looks at the whole cache, of which the mask hides what is not there yet.
    macs['attention'] *= LENGTH / tokens
    total = sum(macs.values())
    rows.append({
      'model': f'decoder of 2 B, {what}', 'attention': 'prefix', 'tokens': tokens,
      'gmacs': total / 1e9, 'attention_gmacs': macs['attention'] / 1e9, 'a_chip': sequences,
      **found, 'mfu': sequences * 2 * total / (found['ms'] / 1e3) / chip.peak,
    })  # fmt: skip
  return rows


def main(only: str) -> None:
  """Compiles what has `only` in its name, prints it and writes it down."""
  rows = []
  with jax.set_mesh(sharding.make_mesh('data', topology.devices(SLICE))):
    for name, images, fields in MODELS:
      if only in name:
        rows.append({'model': name, 'attention': fields['attention'], **gradient(images, fields)})
        print(rows[-1], flush=True)
    for sequences in SEQUENCES:
      if only in 'decoder':
        rows += decoding(sequences)
        print(rows[-2:], flush=True)
  report.write(
    'encoders', rows, title=f'The encoder compiled for {SLICE}',
    note='predicted milliseconds and GiB of a chip, for a_chip examples on each; gmacs of one '
    'example, forward; ms of the gradient, of the decoder of one call; kernels_ms of kernels '
    'written by hand, which are part of ms; mfu of what is not recomputed',
    facts={'slice': SLICE, 'cache': LENGTH},
  )  # fmt: skip
  if not only:
    draw(rows)


def draw(rows: Sequence[dict[str, Any]]) -> None:
  """Time and memory of a clip by its frames."""
  clips = [row for row in rows if row['model'].startswith('TimeSformer')]

  def lines(axes: Any) -> None:
    for attention, label, colour in (
      ('full', 'joint', '#b3541e'), ('t+hw*', 'divided', '#1f6f8b')
    ):  # fmt: skip
      own = [row for row in clips if row['attention'] == attention]
      frames = [(row['tokens'] - 1) // 196 for row in own]
      axes.plot(frames, [row['ms'] / row['a_chip'] for row in own], 'o-', color=colour, label=label)
    axes.set(
      xlabel='frames of a clip, 224 x 224', ylabel=f'ms per clip on a chip of {SLICE}', ylim=0,
      title='Gradient of TimeSformer-B by attention in space and time',
    )  # fmt: skip
    axes.set_xticks(frames)
    axes.legend(frameon=False)

  report.figure('encoders', lines)


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--only', default='', help='part of the names of rows')
  main(parser.parse_args().only)
