"""How programs of the tests are compiled. Asked before JAX is imported, which is not done here."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

# Code that is compiled in half the time, and runs once, slowly.
ANY = (
  '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 '
  '--xla_llvm_disable_expensive_passes=true'
)
# In a fifth of the time, for CPUs alone: the compiler of TPUs does not know these flags.
CPU = f'{ANY} --xla_cpu_parallel_codegen_split_count=1'
if importlib.metadata.version('jaxlib').startswith('0.10.'):  # later ones do not know it
  CPU += ' --xla_cpu_use_fusion_emitters=false'


def flags(devices, tpu=False):
  """XLA_FLAGS of a process with so many devices that is started by a test.

  Args:
    devices: CPUs.
    tpu: whether it compiles for TPUs, too.
  """
  return (ANY if tpu else CPU).replace('device_count=8', f'device_count={devices}')


def cache():
  """The compilation cache of all workers and subprocesses of a session.

  An older one would hide how long the tests take in a fresh clone; VIT_JAX_TEST_CACHE names one
  that is kept all the same.
  """
  if 'PYTEST_XDIST_WORKER' in os.environ:  # workers inherit what the first process has set
    return os.environ['JAX_COMPILATION_CACHE_DIR']
  kept = os.environ.get('VIT_JAX_TEST_CACHE')
  if kept:
    return kept
  folder = tempfile.mkdtemp(prefix='vit_jax_tests_')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder
