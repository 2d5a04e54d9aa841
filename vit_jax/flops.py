"""What a step costs: analytic FLOPs and the peaks to compare them with. Plain Python."""

from __future__ import annotations

from typing import Any, NamedTuple

# Named in every result, so that numbers from different codebases can be compared.
CONVENTION = (
  'training FLOPs = 3 x forward = 6 x multiply-accumulates of matrix products (patch embedding, '
  'convolutions, attention projections, scores, weighted sums, MLPs, pooling, head); what patch '
  'dropout and subsets of stochastic depth leave out, recomputation, norms, '
  'softmax, activations and the optimizer are not counted'
)

# Dense bfloat16 FLOP/s per chip, from the vendors' data sheets, by jax.Device.device_kind.
PEAKS = {
  'TPU v3': 123e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'NVIDIA A100-SXM4-40GB': 312e12,
  'NVIDIA A100-SXM4-80GB': 312e12,
  'NVIDIA H100 80GB HBM3': 989e12,
  'NVIDIA H200': 989e12,
}


class Chip(NamedTuple):
  """A TPU as its compiler sees it.

  Attributes:
    name: of the generation.
    peak: dense bfloat16 FLOP/s.
    clock: Hz: `peak` over the multiplications its matrix units do per cycle (TPU v4, v5e and v5p:
      units of 128 x 128, v6e: 256 x 256, four per core).
    hbm: bytes of memory.
    bandwidth: of it, bytes/s.
    link: bytes/s from all its neighbours together.
  """

  name: str
  peak: float
  clock: float
  hbm: float
  bandwidth: float
  link: float


# By the device kind of compile-only topologies.
CHIPS = {
  'TPU v4': Chip('v4', 275e12, 1.05e9, 32 * 2**30, 1228e9, 300e9),
  'TPU v5 lite': Chip('v5e', 197e12, 1.5e9, 16 * 2**30, 819e9, 200e9),
  'TPU v5': Chip('v5p', 459e12, 1.75e9, 95 * 2**30, 2765e9, 600e9),
  'TPU v6 lite': Chip('v6e', 918e12, 1.75e9, 32 * 2**30, 1640e9, 448e9),
}


def forward_macs(config: Any, *, training: bool = False, examples: int = 0) -> int:
  """Multiply-accumulates of the matrix products of one image's forward pass.

  Args:
    config: a resolved `vit_jax.architecture.ViTArchitecture`, for images of its own size.
    training: leave out what patch dropout and stochastic depth on a subset of the batch leave out.
    examples: on each device at a time, of which the subset is a whole number; 0 if not known.
  """
  width, patches = config.width, config.grid[0] * config.grid[1]
  channels, stem = config.in_channels, 0
  if config.stem_width:
    stem, channels = _stem_macs(config)
  embed = patches * config.patch_size**2 * channels * width
  if training and config.patch_dropout:
    patches = max(1, round(patches * (1 - config.patch_dropout)))
  tokens = patches + config.prefix
  mlp = (3 if config.mlp == 'swiglu' else 2) * width * config.mlp_dim
  blocks = config.depth * (tokens * (4 * width**2 + mlp) + 2 * tokens**2 * width)
  if training and config.drop_path_mode == 'subset':
    kept = 1 - config.drop_path
    blocks = round(blocks * (max(1, round(examples * kept)) / examples if examples else kept))
  pool = 0
  if config.pool == 'map':  # one query: keys and values of every patch, the rest once
    pool = 2 * patches * width**2 + 2 * patches * width + 2 * width**2 + mlp
  features = 2 * width if config.pool == 'token_mean' else width
  head = features * config.num_classes
  if config.representation_size:
    head = (features + config.num_classes) * config.representation_size
  return stem + embed + blocks + pool + head * (2 if config.distilled else 1)


def _stem_macs(config: Any) -> tuple[int, int]:
  """Of the ResNet in front, and the channels that it gives."""
  height, width = (-(-side // 2) for side in config.image_size)
  channels = config.stem_width
  macs = height * width * 49 * config.in_channels * channels
  height, width = -(-height // 2), -(-width // 2)
  for stage, depth in enumerate(config.stem_depths):
    inner = config.stem_width * 2**stage
    for unit in range(depth):
      before = height * width
      if stage and not unit:
        height, width = -(-height // 2), -(-width // 2)
      after = height * width
      macs += before * channels * inner + after * 9 * inner**2 + after * inner * 4 * inner
      if channels != 4 * inner or before != after:
        macs += after * channels * 4 * inner
      channels = 4 * inner
  return macs, channels


def train_flops(config: Any, *, examples: int = 0) -> int:
  """FLOPs to train on one image once, by `CONVENTION`; `examples` as for `forward_macs`."""
  return 6 * forward_macs(config, training=True, examples=examples)
