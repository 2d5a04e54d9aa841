"""What a step costs: analytic FLOPs and the peaks to compare them with. Plain Python."""

from __future__ import annotations

from typing import Protocol

# Named in every result, so that numbers from different codebases can be compared.
CONVENTION = (
  'training FLOPs = 3 x forward = 6 x multiply-accumulates of matrix products (patch embedding, '
  'attention projections, scores, weighted sums, MLPs, pooling, head); recomputation, norms, '
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


class Sizes(Protocol):
  """A resolved `vit_jax.models.vit.ViTConfig`."""

  width: int
  depth: int
  mlp_dim: int
  patch_size: int
  in_channels: int
  num_classes: int
  pool: str

  @property
  def grid(self) -> tuple[int, int]:
    """Patches down and across."""
    ...


def forward_macs(config: Sizes) -> int:
  """Multiply-accumulates of the matrix products of one image's forward pass."""
  width, patches = config.width, config.grid[0] * config.grid[1]
  tokens = patches + (config.pool == 'token')
  linear = 4 * width**2 + 2 * width * config.mlp_dim
  blocks = config.depth * (tokens * linear + 2 * tokens**2 * width)
  embed = patches * config.patch_size**2 * config.in_channels * width
  pool = 0
  if config.pool == 'map':  # one query: keys and values of every token, the rest once
    pool = 2 * tokens * width**2 + 2 * tokens * width + 2 * width**2 + 2 * width * config.mlp_dim
  return blocks + embed + pool + width * config.num_classes


def train_flops(config: Sizes) -> int:
  """FLOPs to train on one image once, by `CONVENTION`."""
  return 6 * forward_macs(config)
