"""Google Kubernetes Engine through xpk: a JobSet, which restarts all of its pods together."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.launch.engine import Command, Engine, Step, do, run
from experiments.launch.supervise import GRACE
from experiments.launch.tpus import hosts
from vit_jax.core.errors import RunError

# Of JobSet, out of the way: `attempt` counts, which knows whether restarts help.
MOST = 1000
_GPU = re.compile(r'(gb|[abhl])\d+-')  # one process a machine


class Xpk(Engine):
  """Options: cluster, tpu_type (or device_type), num_slices (1) and any other of `workload create`.

  The code is in an image: docker_image, in whose working directory the checkout is; or
  base_docker_image, which has the packages, and to which xpk adds script_dir (.).
  """

  shares_files = False

  def prepare(self) -> None:
    """See `Engine`."""
    self.cluster = self.take('cluster', needed='NAME')
    kinds = [name for name in ('tpu_type', 'device_type') if name in self.options]
    if len(kinds) != 1:
      raise RunError('--engine=xpk needs --tpu_type=v5litepod-256, or --device_type=... for GPUs')
    images = [name for name in ('docker_image', 'base_docker_image') if name in self.options]
    if len(images) != 1:
      raise RunError(
        '--engine=xpk needs the code in an image: --docker_image=IMAGE, which has it, or '
        '--base_docker_image=IMAGE, which has the packages, and to which this directory is added'
      )
    if images == ['base_docker_image']:
      self.options.setdefault('script_dir', '.')
    self.slices = self.count('num_slices', 1)
    kind = self.options[kinds[0]]
    if _GPU.match(kind) or 'num_nodes' in self.options:
      each = self.whole('num_nodes', self.options.get('num_nodes', '1'))
    else:
      each = hosts(kind)
    self.processes = each * self.slices
    self.where = {n: self.options[n] for n in ('project', 'zone') if n in self.options}

  def steps(self) -> Iterator[Step]:
    """See `Engine`."""
    environment = self.environment(self.processes)
    # One process and no shell around it, which would keep signals to itself.
    count = shlex.join(['python', '-m', 'experiments.launch.attempt', self.job.workdir])
    yield Command([
      'xpk', 'workload', 'create', f'--cluster={self.cluster}', f'--workload={self.job.name}',
      f'--num-slices={self.slices}', *self.flags(), f'--max-restarts={MOST}',
      f'--termination-grace-period-seconds={GRACE}',
      *(f'--env={name}={value}' for name, value in environment.items()),
      f'--command={count} {self.job.written("python")}',
    ])  # fmt: skip

  def _about(self, *words: str) -> Command:
    return Command(
      ['xpk', 'workload', *words, f'--cluster={self.cluster}', *self.flags(self.where)]
    )

  def submit(self) -> Mapping[str, Any]:
    """See `Engine`."""
    do(self.steps())
    return {'workload': self.job.name}

  def at_work(self) -> str:
    """See `Engine`."""
    # One that has ended keeps its name until it is deleted.
    lines = [line.split() for line in self.status().splitlines()]
    there = any(line[:1] == [self.job.name] for line in lines)
    return f'the workload {self.job.name} is in the cluster {self.cluster}' if there else ''

  def status(self) -> str:
    """See `Engine`."""
    return run(self._about('list', f'--filter-by-job={self.job.name}'))

  def logs(self) -> Command:
    """See `Engine`."""
    selector = f'--selector=xpk.google.com/workload={self.job.name}'
    most = f'--max-log-requests={self.processes or 64}'
    return Command(['kubectl', 'logs', selector, '--prefix', '--tail=50', most])

  def stop(self) -> None:
    """See `Engine`."""
    run(self._about('delete', f'--workload={self.job.name}', '--force'))
