"""How memory grows with tokens and with depth: `python -m experiments.benchmarks.memory`.

Nothing runs: the compiler says what memory a gradient needs. Attention alone for growing numbers of
tokens, in every implementation of this machine's backend and, where the compiler of TPUs is
installed, in those of a TPU; then a whole model of growing depth, by policy of recomputation.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks import report
from vit_jax.compile import plan, topology
from vit_jax.core.errors import RunError
from vit_jax.models.vit import ViTConfig
from vit_jax.nn.kernels import choice
from vit_jax.nn.masks import FULL

MIB = 2**20
TOKENS, DEPTHS = (512, 1024, 2048, 4096, 8192), (2, 4, 8, 16, 32)
HEADS, HEAD_DIM = 6, 64
POLICIES = ('none', 'names', 'full')
SEQUENCES = 4
BATCH, WIDTH, PATCHES = 8, 384, 196


def attention_bytes(name: str, tokens: int, device: Any, dtype: Any) -> int:
  """All memory that the gradient of attention needs, with `SEQUENCES` and 6 heads of 64.

  Args:
    name: of an implementation in `choice.IMPLEMENTATIONS`.
    tokens: queries and keys.
    device: to compile for, which need not be there.
    dtype: of queries, keys and values.
  """
  way = functools.partial(
    choice.IMPLEMENTATIONS[name].run, bias=None, mask=FULL, num_heads=HEADS, cap=0.0,
    length=None,
  )  # fmt: skip

  def loss(q, k, v):
    return way(q, k, v).astype(jnp.float32).sum()

  mesh = Mesh(np.array([device]), 'x')
  sharding = NamedSharding(mesh, P())
  x = jax.ShapeDtypeStruct((SEQUENCES, tokens, HEADS * HEAD_DIM), dtype, sharding=sharding)
  # Kernels look at the mesh for the kind of device.
  with plan.no_cache(), jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x).compile()
  stats: Any = compiled.memory_analysis()
  return stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes


def model_bytes(depth: int, policy: str) -> int:
  """Temporaries of the gradient of a scanned S/16 of another depth, in float32, on this machine."""
  model = ViTConfig(
    variant='S/16', depth=depth, pool='mean', num_classes=10, image_size=(224, 224), remat=policy
  ).resolve()  # fmt: skip
  weights = jax.eval_shape(lambda: model.create(nnx.Rngs(jax.random.key(0))))
  images = jax.ShapeDtypeStruct((BATCH, 224, 224, 3), jnp.float32)
  gradient = jax.jit(jax.grad(lambda model, images: model(images).sum()))
  stats: Any = gradient.lower(weights, images).compile().memory_analysis()
  return stats.temp_size_in_bytes


def exponent(sizes: Sequence[int], values: Sequence[int]) -> float:
  """Of the power law between the upper half of `sizes` and their `values`, where it has set in."""
  half = len(sizes) // 2
  return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def slope(sizes: Sequence[int], values: Sequence[int]) -> float:
  """Of the straight line through `values`."""
  return float(np.polyfit(sizes, values, 1)[0])


def devices() -> dict[str, tuple[Any, Any, tuple[str, ...]]]:
  """By name: a device, the dtype to use there and the implementations to compare."""
  here = jax.devices()[0]
  found: dict[str, Any] = {}
  if here.platform == 'cpu':
    found['CPU'] = here, jnp.float32, ('xla', 'heads', 'chunked')
  elif here.platform == 'gpu':
    found[here.device_kind] = here, jnp.bfloat16, ('xla', 'cudnn', 'chunked')
  try:
    tpu = topology.devices('v5p:2x2x1')[0]
  except RunError as error:
    print(error)
  else:
    found['TPU v5p'] = tpu, jnp.bfloat16, ('xla', 'short', 'splash', 'chunked')
  return found


def main(tokens: Sequence[int], depths: Sequence[int]) -> None:
  """Measures, fits and writes the reports."""
  rows, curves = [], {}
  for where, (device, dtype, names) in devices().items():
    for name in names:
      sizes = [n for n in tokens if name != 'short' or n <= 2048]
      values = [attention_bytes(name, n, device, dtype) for n in sizes]
      power = exponent(sizes, values)
      curves[f'{where}, {name}'] = sizes, values, power
      cells = {f'{n} tokens': None for n in tokens}
      cells |= {f'{n} tokens': v / MIB for n, v in zip(sizes, values, strict=True)}
      rows.append({'device': where, 'attention': name, **cells, 'exponent': power})
  report.write(
    'memory_tokens', rows, title='Memory of attention and its gradient, MiB',
    note=f'{SEQUENCES} sequences, {HEADS} heads of {HEAD_DIM}. exponent: of the power law that '
    'the longer half of the lengths follow: 1 is linear. short: up to 2,048 tokens.',
  )  # fmt: skip

  def draw_tokens(axes: Any) -> None:
    for label, (sizes, values, power) in curves.items():
      axes.loglog(sizes, np.divide(values, MIB), 'o-', label=f'{label}: n^{power:.2f}')
    axes.set_xticks(tokens, [f'{n:,}' for n in tokens])
    axes.minorticks_off()
    axes.set_xlabel('tokens')
    axes.set_ylabel('MiB')
    axes.set_title('Memory of attention and its gradient', loc='left')
    axes.legend(frameon=False)

  report.figure('memory_tokens', draw_tokens)
  one = BATCH * PATCHES * WIDTH * 4
  rows = []
  for policy in POLICIES:
    values = [model_bytes(depth, policy) for depth in depths]
    rows.append({
      'remat': policy, **{f'depth {d}': v / MIB for d, v in zip(depths, values, strict=True)},
      'MiB per layer': slope(depths, values) / MIB, 'inputs per layer': slope(depths, values) / one,
    })  # fmt: skip
  report.write(
    'memory_depth', rows, title='Temporary memory of the gradient of S/16 by depth, MiB',
    note=f'{BATCH} images of 224 px, float32, scanned layers. inputs per layer: how many arrays of '
    'the size of its input, (batch, tokens, width), each layer adds.',
    facts={'input MiB': one / MIB},
  )  # fmt: skip

  def draw_depths(axes: Any) -> None:
    for row in rows:
      label = f'{row["remat"]}: {row["inputs per layer"]:.1f} inputs per layer'
      axes.plot(depths, [row[f'depth {d}'] for d in depths], 'o-', label=label)
    axes.set_xticks(depths)
    axes.set_ylim(0)
    axes.set_xlabel('depth')
    axes.set_ylabel('MiB')
    axes.set_title('Temporary memory of the gradient of S/16, by remat', loc='left')
    axes.legend(frameon=False)

  report.figure('memory_depth', draw_depths)


if __name__ == '__main__':
  argparse.ArgumentParser(description=__doc__.partition('\n')[0]).parse_args()  # type: ignore
  # TPUs are only compiled for.
  jax.config.update('jax_platforms', 'cpu')
  main(TOKENS, DEPTHS)
