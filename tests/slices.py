"""`python -m tests.slices N MODULE ARGUMENT...`: a command on N TPU slices that are not there.

Devices stand for chips, and the processes with the first of them for the hosts of the first slice.
"""

import runpy
import sys

import jax

from vit_jax.nn import sharding


def of(count):
  """What takes the place of `sharding.slice_of`."""

  def slice_of(device):
    return jax.devices().index(device) * count // jax.device_count()

  return slice_of


if __name__ == '__main__':
  number, module, *arguments = sys.argv[1:]
  sharding.slice_of = of(int(number))
  sys.argv = [module, *arguments]
  runpy.run_module(module, run_name='__main__', alter_sys=True)
