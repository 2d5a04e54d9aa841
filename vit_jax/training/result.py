"""The facts that a run ends with."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

from vit_jax.core import paths
from vit_jax.core.text import plain
from vit_jax.costs import flops
from vit_jax.costs.chips import PEAKS
from vit_jax.nn import sharding
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment
from vit_jax.training.progress import Chrono
from vit_jax.training.state import State

COMPUTES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax')
PACKAGES = ('vit_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def facts(
  experiment: Experiment,
  config: Mapping[str, Any],
  state: State,
  scores: Mapping[str, Any],
  chrono: Chrono,
  history: Mapping[str, Any],
) -> dict[str, Any]:
  """The contents of result.json: what was run, on what, how long it took and what came out."""
  cfg, chips = experiment.config, jax.device_count()
  kind = jax.devices()[0].device_kind
  examples, lanes = experiment.total * experiment.examples, max(1, cfg.lane_count)
  steps = experiment.total - history.get('forked', {}).get('step', 0)
  steps += sum(each['step'] - each['to'] for each in history.get('rewound', []))
  seconds = chrono.seconds['step'] + chrono.seconds['input']
  rate = steps * experiment.examples_per_step / max(seconds, 1e-9) / chips
  at_a_time = cfg.batch_size // sharding.shards('batch') // cfg.optim.accumulate
  per_image = experiment.flops(examples=at_a_time)
  peak = PEAKS.get(kind)
  return {
    'step': experiment.total,
    'examples': examples,
    'epochs': examples / len(experiment.source),
    'metrics': dict(scores),
    **history,
    **({'skipped_updates': plain(state.skipping.count)} if state.skipping else {}),
    'config_hash': config_lib.run_hash(config),
    'git': revision(),
    'python': platform.python_version(),
    'packages': {name: _version(name) for name in PACKAGES},
    'device': kind,
    'devices': chips,
    'processes': jax.process_count(),
    'mesh': dict(jax.sharding.get_mesh().shape),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.model)) // lanes,
    'flops': {
      'training_per_image': per_image,
      'training_total': per_image * examples,
      'convention': flops.CONVENTION,
    },
    'seconds': {phase: round(seconds, 3) for phase, seconds in chrono.seconds.items()},
    'images_per_second_per_chip': rate,
    'mfu': rate * per_image / peak if peak else None,
    'peak_memory': _peak_memory(),
  }


def _peak_memory() -> int | None:
  """The most bytes that have been in use on a device of this process; None where nobody counts."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [each['peak_bytes_in_use'] for each in stats if 'peak_bytes_in_use' in each]
  return max(peaks, default=None)


def versions() -> dict[str, Any]:
  """Of what computes, by name: with others, devices would wait for each other."""
  own = {'Python': platform.python_version(), 'vit_jax': revision()}
  return own | {name: _version(name) for name in COMPUTES}


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


@functools.cache
def revision() -> str | None:
  """Of the code that ran, with + if it was changed; None outside a checkout."""
  package = paths.here(__file__)
  git = ['git', '-C', str(package), 'describe', '--always', '--abbrev=40', '--dirty=+']
  try:
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip() or None
  except (OSError, subprocess.CalledProcessError):
    return None
