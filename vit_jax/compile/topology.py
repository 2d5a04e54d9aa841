"""Devices that are not there, for compilers that do not need them."""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

from vit_jax.core.errors import RunError
from vit_jax.costs import chips

# Without these the library of TPUs looks for the machine it would run on, and complains; that of
# GPUs refuses to compile without a driver.
_ENVIRONMENT = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'TPU_SKIP_MDS_QUERY': '1', 'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5e-4', 'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
}  # fmt: skip


class Gpu(NamedTuple):
  """A GPU as its compiler wants it described, from NVIDIA's data sheets.

  Attributes:
    kind: as `jax.Device.device_kind`.
    capability: of CUDA.
    cores: streaming multiprocessors.
    fpus: for float32, in each of them.
    shared: bytes of memory shared in each of them, of which a block gets all but 1 KiB.
    l2: bytes of cache.
    clock: GHz.
    memory: bytes.
    bandwidth: of it, bytes/s.
  """

  kind: str
  capability: tuple[int, int]
  cores: int
  fpus: int
  shared: int
  l2: int
  clock: float
  memory: int
  bandwidth: int


GPUS = {
  'a100': Gpu(
    'NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 164 * 1024, 40 * 2**20, 1.41, 80 * 2**30,
    2_039_000_000_000,
  ),
  'h100': Gpu(
    'NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 228 * 1024, 50 * 2**20, 1.98, 80 * 2**30,
    3_352_000_000_000,
  ),
  'h200': Gpu(
    'NVIDIA H200', (9, 0), 132, 128, 228 * 1024, 50 * 2**20, 1.98, 140 * 2**30, 4_800_000_000_000
  ),
}  # fmt: skip


def devices(name: str) -> list[Any]:
  """The devices of a TPU slice or of machines with GPUs, to compile for.

  Args:
    name: 'v5e:16x16', 'v5p:4x4x8': generation and shape of a slice; 'v5p:4x4x8*4': of four of them;
      'h100:8', 'h100:4x8': kind and number of GPUs, or of machines and the GPUs of each.

  Raises:
    RunError: if there is no such topology, or no compiler for it.
  """
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies

  one, several, number = name.partition('*')
  kind, _, shape = one.partition(':')
  slices = int(number) if re.fullmatch(r'[1-9]\d*', number) else 0 if several else 1
  sides = [int(side) for side in shape.split('x')] if re.fullmatch(r'\d+(x\d+)*', shape) else []
  options: dict[str, Any]
  if kind in GPUS and 1 <= len(sides) <= 2 and all(sides) and not several:
    hosts, each = (1, *sides)[-2:]
    platform, extra = 'cuda', 'gpu'
    options = dict(target_config=_description(GPUS[kind]), topology=f'1x{hosts}x{each}')
  elif re.fullmatch(r'v\d\w*', kind) and 2 <= len(sides) <= 3 and slices:
    platform, extra, options = 'tpu', 'tpu', dict(num_slices=slices) if slices > 1 else {}
    if sides[0] % 2 or sides[1] % 2:
      # Slices smaller than a host's board have hosts of one chip.
      options['chips_per_host_bounds'] = (1, 1, 1)
    if kind == 'v4':
      options['chip_config_name'] = 'megacore'  # both cores of a chip as one device
  else:
    kinds = ', '.join(GPUS)
    raise RunError(
      f'--topology={name}: write a generation of TPUs and a shape, v5e:16x16 or v5p:8x4x8, of four'
      f' slices v5p:8x4x8*4; or one of {kinds} and a number of GPUs, h100:8 or (machines first) '
      'h100:4x8'
    )
  try:
    topology = topologies.get_topology_desc(platform=platform, topology_name=one, **options)
  except Exception as error:
    lines = str(error).strip().splitlines() or [repr(error)]
    known = ', '.join(chip.name for chip in chips.CHIPS.values())
    raise RunError(
      f'--topology={name}: {lines[0]}\nKnown TPUs: {known}. Its '
      f'compiler is in pip install "vit_jax[{extra}]".'
    ) from None
  return list(topology.devices)


def gpu_memory(kind: str) -> int:
  """Bytes of a GPU that JAX takes for its arrays: XLA_PYTHON_CLIENT_MEM_FRACTION, by default 75 %.

  Args:
    kind: as `jax.Device.device_kind`.
  """
  (memory,) = (gpu.memory for gpu in GPUS.values() if gpu.kind == kind)
  return int(memory * float(os.environ.get('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.75')))


def _description(gpu: Gpu) -> str:
  """A `GpuTargetConfigProto` of XLA, as text."""
  major, minor = gpu.capability
  return f"""
    platform_name: "CUDA"
    device_description_str: "{gpu.kind}"
    dnn_version_info {{ major: 9 minor: 10 }}
    gpu_device_info {{
      cuda_compute_capability {{ major: {major} minor: {minor} }}
      core_count: {gpu.cores}
      fpus_per_core: {gpu.fpus}
      clock_rate_ghz: {gpu.clock}
      device_memory_size: {gpu.memory}
      memory_bandwidth: {gpu.bandwidth}
      l2_cache_size: {gpu.l2}
      shared_memory_per_core: {gpu.shared}
      shared_memory_per_block_optin: {gpu.shared - 1024}
      shared_memory_per_block: 49152
      threads_per_warp: 32
      threads_per_block_limit: 1024
      threads_per_core_limit: 2048
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
    }}
  """
