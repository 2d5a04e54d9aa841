"""Accelerators: the peaks that a step is compared with. Plain Python."""

from __future__ import annotations

from typing import NamedTuple

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
    dcn: bytes/s of a chip's share of the network between slices, each way: assumed, since the
      compiler knows nothing of it. 50 Gbit/s a chip of v5p, 6.4 and 25.6 Tbit/s for the 256 chips
      of a pod of v5e and v6e, from the pages of Cloud TPU; that of v4 is not published, and taken
      to be that of v5p, which has as many chips a host.
  """

  name: str
  peak: float
  clock: float
  hbm: float
  bandwidth: float
  link: float
  dcn: float


# By the device kind of compile-only topologies.
CHIPS = {
  'TPU v4': Chip('v4', 275e12, 1.05e9, 32 * 2**30, 1228e9, 300e9, 6.25e9),
  'TPU v5 lite': Chip('v5e', 197e12, 1.5e9, 16 * 2**30, 819e9, 200e9, 3.125e9),
  'TPU v5': Chip('v5p', 459e12, 1.75e9, 95 * 2**30, 2765e9, 600e9, 6.25e9),
  'TPU v6 lite': Chip('v6e', 918e12, 1.75e9, 32 * 2**30, 1640e9, 448e9, 12.5e9),
}
