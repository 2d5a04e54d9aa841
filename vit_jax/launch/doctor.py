"""Is this machine, with its neighbours, fit to train: one line on each thing, and the mend.

What is found is shared through the service that the processes joined, not through devices: these
may be what is wrong. Every wait has an end.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax import __version__
from vit_jax.core import paths, schema
from vit_jax.core.errors import RESTART, PassingError, RunError
from vit_jax.core.text import number
from vit_jax.launch import memory
from vit_jax.processes import peers

PASS, WARN, FAIL = 'pass', 'warn', 'fail'
GIB = 2**30
# Of which all machines must have the same.
PACKAGES = (
  'jax', 'jaxlib', 'libtpu', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'flax', 'optax',
  'orbax-checkpoint', 'grain', 'numpy',
)  # fmt: skip
# The oldest driver of a build for CUDA: https://docs.nvidia.com/deploy/cuda-compatibility, 'Minor
# Version Compatibility'.
DRIVERS = {'jax-cuda12-plugin': (525, 60, 13), 'jax-cuda13-plugin': (580,)}
SKEW = 1.0  # seconds between clocks that go unremarked
FILES = 4096  # open at once: shards of the data, checkpoints, connections
_SIZE = 128  # of the matrices that are multiplied


class Finding(NamedTuple):
  """What was found of one thing.

  Attributes:
    level: PASS, WARN or FAIL.
    what: the thing.
    found: of it.
    mend: what to do about it.
    passing: whether a failure may pass by itself.
  """

  level: str
  what: str
  found: str
  mend: str = ''
  passing: bool = False


@dataclasses.dataclass
class _Patient:
  """What the checks know; `state` is its bytes, all of it and on one device."""

  config: Any = None
  workdir: str = ''
  overwrite: bool = False
  state: tuple[int, int] = (0, 0)


Check = Callable[[_Patient], Iterator[Finding]]


def examine(config: Any = None, workdir: str | None = None, *, overwrite: bool = False) -> int:
  """Looks at everything a run needs and prints a line on each; all processes call it together.

  Args:
    config: a ConfigDict: its data are read, its state is held against the memory of the devices.
    workdir: that all processes must be able to write, and see.
    overwrite: whether a run that is there may be deleted.

  Returns:
    The exit status: 0 if nothing fails in any process, `RESTART` if what fails may pass, else 1.
  """
  patient, failed, passing = _Patient(config, workdir or '', overwrite), set(), True
  for check, needs in _CHECKS.items():
    if needs & failed:
      continue
    own = list(_guarded(check, patient))
    said = peers.shared(f'doctor: {check.__name__[1:]}', json.dumps(own))
    everyone = [[Finding(*each) for each in json.loads(text)] for text in said]
    if peers.index() == 0:
      for line in _lines(everyone):
        print(line, flush=True)
    if fails := [finding for each in everyone for finding in each if finding.level == FAIL]:
      failed.add(check)
      passing = passing and all(finding.passing for finding in fails)
  if failed and peers.index() == 0:
    print('error: not fit to train, see the lines with fail', file=sys.stderr, flush=True)
  return (RESTART if passing else 1) if failed else 0


def _guarded(check: Check, patient: _Patient) -> Iterator[Finding]:
  """What a check finds; what it raises is found, too."""
  what = check.__name__[1:]
  try:
    yield from check(patient)
  except RunError as error:
    yield Finding(FAIL, what, str(error), passing=isinstance(error, PassingError))
  except TimeoutError as error:
    yield Finding(FAIL, what, str(error), passing=True)
  except Exception as error:
    yield Finding(FAIL, what, f'{type(error).__name__}: {error}')


def _lines(everyone: Sequence[Sequence[Finding]]) -> Iterator[str]:
  """For people: what all processes found, and beside it what only some did."""
  by_what: dict[str, dict[Finding, list[int]]] = {}
  for process, findings in enumerate(everyone):
    for finding in findings:
      by_what.setdefault(finding.what, {}).setdefault(finding, []).append(process)
  for found in by_what.values():
    # Of what is in order the first process speaks for the others.
    fine = [finding for finding in found if finding.level == PASS][1:]
    for finding, processes in found.items():
      if finding not in fine:
        some = len(processes) < len(everyone) and finding.level != PASS
        who = f'process {", ".join(map(str, processes[:8]))}{" ..." * (len(processes) > 8)}: '
        mend = f' -> {finding.mend}' if finding.mend else ''
        yield f'{finding.level}  {finding.what:<9} {who * some}{finding.found}{mend}'


def _software(patient: _Patient) -> Iterator[Finding]:
  del patient
  versions = {'python': platform.python_version(), 'vit_jax': __version__}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  driver = paths.head(paths.at('/proc/driver/nvidia/version'), 200).decode(errors='replace')
  if driver:
    versions['driver'] = next(word for word in driver.split() if word[:1].isdecimal())
    yield from _driver(versions)
  own = ', '.join(f'{name} {version}' for name, version in versions.items())
  said = peers.shared('software', own)
  usual, _ = collections.Counter(said).most_common(1)[0]
  if own == usual:
    yield Finding(PASS, 'software', own)
  else:
    others = set(usual.split(', '))
    mine = ', '.join(text for text in own.split(', ') if text not in others) or 'less'
    theirs = ', '.join(text for text in usual.split(', ') if text not in own.split(', '))
    yield Finding(
      FAIL, 'software', f'has {mine}, most others {theirs}', 'install the same on all machines'
    )


def _driver(versions: Mapping[str, str]) -> Iterator[Finding]:
  driver = tuple(int(part) for part in versions['driver'].split('.') if part.isdecimal())
  for name, least in DRIVERS.items():
    if name in versions and driver < least:
      needs = '.'.join(map(str, least))
      found = f'{versions["driver"]} of NVIDIA, and {name} needs {needs}'
      yield Finding(WARN, 'driver', found, 'a newer driver, or a JAX for an older CUDA')


def _host(patient: _Patient) -> Iterator[Finding]:
  del patient
  ram = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  limit = paths.head(paths.at('/sys/fs/cgroup/memory.max'), 30).strip()
  if limit.isdigit() and int(limit) < ram:
    yield Finding(PASS, 'host', f'{os.cpu_count()} CPUs, {int(limit) / GIB:.0f} GiB of memory '
                  f'for this container, of {ram / GIB:.0f} GiB')  # fmt: skip
  else:
    yield Finding(PASS, 'host', f'{os.cpu_count()} CPUs, {ram / GIB:.0f} GiB of memory')
  files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
  if 0 <= files < FILES:
    mend = 'raise it' if 0 <= most < FILES else f'ulimit -n {FILES if most < 0 else most}'
    yield Finding(WARN, 'files', f'at most {files} may be open at once', mend)


def _clock(patient: _Patient) -> Iterator[Finding]:
  del patient
  peers.shared('presence', '')  # the answers are written within a moment of each other
  clocks = [float(text) for text in peers.shared('time', repr(time.time()))]
  skew = max(clocks) - min(clocks)
  if len(clocks) > 1:
    level = PASS if skew < SKEW else WARN
    mend = 'start chrony or ntpd: logs of different hosts tell no order' * (level == WARN)
    yield Finding(level, 'clock', f'{skew:.1f} s at most between {len(clocks)} processes', mend)


def _devices(patient: _Patient) -> Iterator[Finding]:
  del patient
  import jax

  devices = jax.devices()
  kinds = ', '.join(sorted({device.device_kind for device in devices}))
  counts = collections.Counter(device.process_index for device in devices)
  each = sorted({counts[process] for process in range(jax.process_count())})
  shown = f'{len(devices)} x {kinds}'
  if jax.process_count() > 1:
    shown += f', {" or ".join(map(str, each))} in each of {jax.process_count()} processes'
  if len(each) > 1:
    few = [process for process in range(jax.process_count()) if counts[process] == each[0]]
    yield Finding(
      FAIL, 'devices', f'{shown}: {each[0]} in process {few[0]}', 'look at the machine it runs on'
    )
  elif jax.default_backend() == 'cpu' and memory.accelerators():
    mend = "unset JAX_PLATFORMS, or install 'vit_jax[gpu]' or 'vit_jax[tpu]'"
    level = WARN if os.environ.get('JAX_PLATFORMS') == 'cpu' else FAIL
    yield Finding(level, 'devices', f'{shown}, though the machine has accelerators', mend)
  else:
    yield Finding(PASS, 'devices', shown)
  if limit := _limit():
    yield Finding(PASS, 'memory', f'{limit / GIB:.1f} GiB for arrays on each device')


def _limit() -> int:
  """Bytes that JAX may use on the smallest device of this process; 0 if it does not say."""
  import jax

  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  return min(stat.get('bytes_limit', 0) for stat in stats)


def _step(patient: _Patient) -> Iterator[Finding]:
  """Products of small whole numbers, exact in every precision, and their sum over all devices."""
  del patient
  import jax
  import jax.numpy as jnp
  import numpy as np

  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('all',))
  parts = np.random.default_rng(0).integers(0, 4, (mesh.size, _SIZE, _SIZE)).astype(np.float32)
  right = parts @ parts
  layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('all'))
  placed = jax.make_array_from_callback(parts.shape, layout, lambda index: parts[index])

  def step(x: Any) -> Any:
    y = jnp.einsum('nij,njk->nik', x, x)
    return y, jax.lax.psum(y, 'all')

  spec = jax.sharding.PartitionSpec
  mapped = jax.shard_map(step, mesh=mesh, in_specs=spec('all'), out_specs=(spec('all'), spec()))
  start = time.perf_counter()
  compiled = jax.jit(mapped).lower(placed).compile()
  jax.block_until_ready(compiled(placed))
  middle = time.perf_counter()
  products, total = jax.block_until_ready(compiled(placed))
  end = time.perf_counter()
  wrong = [
    str(shard.device) for shard in products.addressable_shards
    if not np.array_equal(shard.data, right[shard.index])
  ]  # fmt: skip
  if wrong:
    yield Finding(
      FAIL, 'step', f'wrong products on {", ".join(wrong)}', 'leave this machine out and report it'
    )
  elif not np.array_equal(total.addressable_data(0)[0], right.sum(0)):
    yield Finding(FAIL, 'step', 'the sum over all devices is wrong', 'look at the network')
  else:
    yield Finding(
      PASS, 'step', f'compiled and run in {middle - start:.1f} s, right on every device, '
      f'then {(end - middle) * 1e3:.1f} ms with a sum over all of them',
    )  # fmt: skip


def _decoder(patient: _Patient) -> Iterator[Finding]:
  del patient
  from vit_jax.data import trial

  wrong, rate = trial.decoders()
  if wrong:
    mend = 'pip install --force-reinstall simplejpeg opencv-python-headless'
    yield Finding(FAIL, 'decoder', f'{wrong} does not give back an image', mend)
  else:
    shown = number(round(rate, -1))
    height, width = trial.SIZE
    yield Finding(
      PASS, 'decoder', f'{shown} JPEG files of {width}x{height} a second on one CPU, by simplejpeg'
    )


def _data(patient: _Patient) -> Iterator[Finding]:
  if patient.config is None:
    return
  import jax

  from vit_jax.nn import sharding
  from vit_jax.training import config as config_lib
  from vit_jax.training import lanes
  from vit_jax.training.workdir import Workdir

  cfg: config_lib.Config = schema.build(config_lib.Config, config_lib.to_dict(patient.config))
  with jax.set_mesh(sharding.make_mesh(cfg.mesh)):
    keeps = patient.workdir and not patient.overwrite
    known = Workdir(patient.workdir).known() if keeps else None
    if not known and cfg.fork:
      known = Workdir(cfg.fork).known()
    start = time.perf_counter()
    experiment = lanes.experiment(cfg, known)
    evaluations = ', '.join(experiment.evaluators()) or 'nothing'
    opened = time.perf_counter()
    batches = experiment.batches(0)
    next(batches)
    batches.close()
    end = time.perf_counter()
    leaves = jax.tree.leaves(sharding.fill_shardings(experiment.abstract_state))
  yield Finding(
    PASS, 'data', f'{experiment.source.name} and what is evaluated ({evaluations}) opened in '
    f'{opened - start:.1f} s, a batch of {cfg.batch_size} read in {end - opened:.1f} s',
  )  # fmt: skip
  size = lambda leaf, shape: math.prod(shape) * leaf.dtype.itemsize  # noqa: E731
  whole = sum(size(leaf, leaf.shape) for leaf in leaves)
  part = sum(size(leaf, leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves)
  patient.state = whole, part
  limit, shown = _limit(), f'{part / GIB:.2g} GiB of state on each device'
  if not limit:
    yield Finding(PASS, 'state', shown)
  elif part < limit:
    yield Finding(PASS, 'state', f'{shown}, of {limit / GIB:.1f} GiB')
  else:
    mend = 'more devices, or --config.mesh=fsdp; vit_jax.plan says what fits'
    yield Finding(FAIL, 'state', f'{shown}, which has {limit / GIB:.1f} GiB', mend)


def _workdir(patient: _Patient) -> Iterator[Finding]:
  if not patient.workdir:
    return
  folder, own = paths.at(patient.workdir), peers.index()
  # Named by the first process, so that a directory that each host has for itself is noticed.
  name = peers.shared('mark', f'.doctor-{os.getpid()}-{time.time_ns()}')[0]
  new, start = not folder.exists(), time.perf_counter()
  peers.shared('look', '')  # nobody makes it before all have looked
  try:
    folder.mkdir(parents=True, exist_ok=True)
    paths.write_text(folder / f'{name}-{own}', name)
  except OSError as error:
    problem = f'{folder} cannot be written: {error.strerror or error}'
    passing = isinstance(error, TimeoutError)
  except RunError as error:
    problem, passing = str(error), isinstance(error, PassingError)
  else:
    problem, passing = '', False
  written = peers.shared('written', problem)
  seen = (folder / f'{name}-0').exists()
  took = time.perf_counter() - start
  peers.shared('seen', '')
  if not problem:
    paths.delete(folder / f'{name}-{own}')
  peers.shared('deleted', '')
  if own == 0 and new and folder.is_dir() and not any(True for _ in folder.iterdir()):
    paths.delete(folder)  # the doctor leaves nothing behind
  if problem:
    mend = 'another --workdir, or the right to write there' * (not passing)
    yield Finding(FAIL, 'workdir', problem, mend, passing)
  elif not written[0] and not seen:
    yield Finding(
      FAIL, 'workdir', f'{folder} is not the directory that process 0 has under this name',
      'a --workdir that all machines share',
    )  # fmt: skip
  else:
    yield Finding(PASS, 'workdir', f'{folder}: written, read and deleted in {took:.1f} s')
  yield from _space(patient, folder)


def _space(patient: _Patient, folder: paths.Path) -> Iterator[Finding]:
  free = paths.free(folder)
  if free is None:
    return
  shown, needs = f'{free / GIB:,.0f} GiB free for {folder}', 0
  if patient.config is not None:
    # While one is written the old ones are still there.
    needs = patient.state[0] * (patient.config.checkpoint.keep + 1)
    shown += f', {needs / GIB:,.2g} GiB needed for checkpoints'
  mend = 'free some, or fewer checkpoint.keep' * (free < needs)
  yield Finding(PASS if free >= needs else WARN, 'disk', shown, mend)


# In this order; each is left out if one that it needs has failed.
_CHECKS: Mapping[Check, set[Check]] = {
  _software: set(), _host: set(), _clock: set(), _devices: {_software},
  _step: {_software, _devices}, _decoder: set(), _data: {_software, _devices, _step},
  _workdir: set(),
}  # fmt: skip
