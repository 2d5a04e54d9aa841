"""The directory of a run: whose it is, and the facts it ends with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

from vit_jax import config as config_lib
from vit_jax import flops, schema, sharding
from vit_jax.chips import PEAKS
from vit_jax.errors import RunError
from vit_jax.experiment import Experiment
from vit_jax.metrics import Chrono, read_json, write_json

PACKAGES = ('vit_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def changes(folder: pathlib.Path, config: Mapping[str, Any]) -> dict[str, tuple]:
  """The fields in which the run in `folder`, if there is one, differs from `config`.

  Fields that are newer than the run have had their defaults in it.
  """
  path = folder / 'config.json'
  if not path.exists():
    return {}
  stored = read_json(path)
  with contextlib.suppress(RunError):
    stored = json.loads(json.dumps(schema.complete(config_lib.Config, stored)))
  return schema.differences(config_lib.without_free(stored), config_lib.without_free(config))


def use_compilation_cache(folder: pathlib.Path, directory: str) -> None:
  """Keeps compiled programs in `directory`, relative to `folder`; '' leaves JAX as it is."""
  if directory and not getattr(jax.config, 'jax_compilation_cache_dir'):  # noqa: B009
    path = os.path.normpath(folder.absolute() / directory)
    jax.config.update('jax_compilation_cache_dir', path)
    compilation_cache.reset_cache()  # or a program compiled before this would have decided


def claim(folder: pathlib.Path, config: Mapping[str, Any], *, delete: bool) -> None:
  """Makes `folder` the directory of this run, deleting the run that is there if told to.

  Raises:
    RunError: if it cannot be written.
  """
  if jax.process_index() == 0:
    try:
      # Last what says which run this is: an interrupted deletion is repeated.
      for name in ('result.json', 'checkpoints', 'profile', 'metrics.jsonl', 'config.json'):
        if delete:
          _delete(folder / name)
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise RunError(f'cannot write to --workdir={folder}: {error.strerror}') from None
    write_json(folder / 'config.json', config)
  multihost_utils.sync_global_devices('workdir is ready')


def _delete(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


def result(
  experiment: Experiment,
  config: Mapping[str, Any],
  model: Any,
  scores: Mapping[str, Any],
  chrono: Chrono,
  history: Mapping[str, Any],
) -> dict[str, Any]:
  """The contents of result.json: what was run, on what, how long it took and what came out."""
  cfg, chips = experiment.config, jax.device_count()
  kind = jax.devices()[0].device_kind
  examples, lanes = experiment.total * cfg.batch_size, max(1, cfg.lanes.count)
  steps = experiment.total - history.get('forked', {}).get('step', 0)
  seconds = chrono.seconds['step'] + chrono.seconds['input']
  rate = steps * experiment.examples_per_step / max(seconds, 1e-9) / chips
  at_a_time = cfg.batch_size // sharding.shards('batch') // cfg.optim.accumulate
  per_image = flops.train_flops(cfg.model, examples=at_a_time)
  peak = PEAKS.get(kind)
  return {
    'step': experiment.total,
    'examples': examples,
    'epochs': examples / len(experiment.source),
    'metrics': dict(scores),
    **history,
    'config_hash': config_lib.run_hash(config),
    'git': _git_revision(),
    'python': platform.python_version(),
    'packages': {name: _version(name) for name in PACKAGES},
    'device': kind,
    'devices': chips,
    'processes': jax.process_count(),
    'mesh': dict(jax.sharding.get_mesh().shape),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(model)) // lanes,
    'flops': {
      'training_per_image': per_image,
      'training_total': per_image * examples,
      'convention': flops.CONVENTION,
    },
    'seconds': {phase: round(seconds, 3) for phase, seconds in chrono.seconds.items()},
    'images_per_second_per_chip': rate,
    'mfu': rate * per_image / peak if peak else None,
  }


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _git_revision() -> str | None:
  """Of the code that ran, with + if it was changed; None outside a checkout."""
  package = pathlib.Path(__file__).parent
  git = ['git', '-C', str(package), 'describe', '--always', '--abbrev=40', '--dirty=+']
  try:
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip() or None
  except (OSError, subprocess.CalledProcessError):
    return None
