"""How many machines a slice of TPUs has, by the name that Google Cloud gives it."""

from __future__ import annotations

import re
from typing import NamedTuple

from vit_jax.core.errors import RunError


class Generation(NamedTuple):
  """Of TPUs: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm.

  Attributes:
    cores: how many of what names count make a chip.
    runtime: the software of TPU VMs.
  """

  cores: int
  runtime: str


GENERATIONS = {
  'v4': Generation(2, 'tpu-ubuntu2204-base'),
  'v5litepod': Generation(1, 'v2-alpha-tpuv5-lite'),
  'v5p': Generation(2, 'v2-alpha-tpuv5'),
  'v6e': Generation(1, 'v2-alpha-tpuv6e'),
}
_CHIPS = 4  # of a machine


def chips(name: str) -> int:
  """Of 'v5litepod-256' or 'v5p-512'; 0 for what is no TPU that we know.

  Raises:
    RunError: for a number of cores that is none of whole chips.
  """
  found = re.fullmatch(r'(\w+)-(\d+)', name)
  if not found or found[1] not in GENERATIONS:
    return 0
  generation = GENERATIONS[found[1]]
  if not int(found[2]) or int(found[2]) % generation.cores:
    raise RunError(f'{name}: {found[1]} counts cores, of which a chip has {generation.cores}')
  return int(found[2]) // generation.cores


def hosts(name: str) -> int:
  """Machines, and so processes, of a slice; 0 if that is not known.

  Eight chips of v5e or v6e are one machine or two, by how they were asked for.
  """
  count = chips(name)
  if count == 8 and name.startswith(('v5litepod', 'v6e')):
    return 0
  return -(-count // _CHIPS)
