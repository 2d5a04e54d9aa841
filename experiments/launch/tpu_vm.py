"""TPU VMs by queued resources: made, filled, started, watched, and made anew when they are lost."""

from __future__ import annotations

import itertools
import re
import shlex
import sys
import time
from collections.abc import Iterator

from experiments.launch import job as job_lib
from experiments.launch import supervise
from experiments.launch.engine import (
  Command,
  FailedError,
  File,
  Note,
  Step,
  attempted,
  do,
  exports,
  run,
)
from experiments.launch.tpus import GENERATIONS, hosts
from vit_jax import __version__
from vit_jax.core.errors import RunError

# Of JAX's coordinator: the one that it takes by itself is closed on some networks of TPUs.
PORT = '8476'
LOST = 128 + 15  # the status of an attempt whose machines are gone
REFILLS = 3  # tries to fill the same machines
PATIENCE = 10  # looks in a row without an answer, after which machines count as lost
DELETING = 150  # tries to delete the machines: with the pauses between them a day
GONE = ('', 'FAILED', 'SUSPENDING', 'SUSPENDED')
LABEL = 'vit_jax_job'
# What every machine is asked: to `start` the job, which goes on when the connection ends, how it
# `look`s, and to `stop`. The number of its process means nothing after a reboot.
SCRIPT = """#!/bin/bash
cd "$(dirname "$0")"
boot=$(cat /proc/sys/kernel/random/boot_id)
signal() {{ [ "$(cat boot 2> /dev/null)" = "$boot" ] && kill -$1 -- "-$(cat pid)" 2> /dev/null; }}
case $1 in
start)
  signal KILL  # what is left of an earlier attempt would hold the TPU
  rm -f exited
  echo "$boot" > boot
  setsid nohup bash run.sh run > /dev/null 2>&1 < /dev/null &
  echo $! > pid ;;
stop)
  signal TERM ;;
look)
  # Once more at the end: it may have exited meanwhile.
  cat exited 2> /dev/null || {{ signal 0 && echo running; }} || cat exited 2> /dev/null ||
    echo "exited {lost} $(date +%s.%N)" ;;
run)
  trap : TERM
  {exports}
  export PATH="$PWD/.venv/bin:$PATH"
  {command} >> log 2>&1
  echo "exited $? $(date +%s.%N)" > exited.partial
  mv exited.partial exited ;;
esac
"""


class TakenError(RunError):
  """There are machines of this name that are not ours."""


class TpuVm(supervise.Supervised):
  """Options: zone, accelerator_type, and any other of gcloud's `queued-resources create`.

  Of our own are setup, which makes a machine ready in the directory that the wheel is in, and poll
  (30), seconds between looks. Several slices are node_count.
  """

  shares_files = False

  def prepare(self) -> None:
    """See `Engine`."""
    self.where = [f'--zone={self.take("zone", needed="ZONE")}']
    if project := self.take('project'):
      self.where.append(f'--project={project}')
    kind = self.take('accelerator_type', needed='v5litepod-256')
    generation = GENERATIONS.get(kind.partition('-')[0])
    runtime = self.take('runtime_version', generation.runtime if generation else '')
    if not runtime:
      raise RunError(f'--accelerator_type={kind} needs --runtime_version=NAME')
    slices, name = self.count('node_count', 1), self.job.name
    self.poll = self.count('poll', 30)
    self.setup = self.take(
      'setup',
      # Python of the machines is older than ours.
      'python3 -m pip install --user --quiet uv && python3 -m uv venv --python=3.12 .venv && '
      'python3 -m uv pip install --quiet --python=.venv/bin/python "$(echo ./*.whl)[tpu,gcs]"',
    )
    self.nodes = [name] if slices == 1 else [f'{name}-{i}' for i in range(slices)]
    self.hosts = hosts(kind)
    which = (
      [f'--node-id={name}'] if slices == 1 else [f'--node-count={slices}', f'--node-prefix={name}']
    )
    mark = f'{LABEL}={self.job.tokens[-1] if self.job.tokens else "TOKEN"}'
    labels = ','.join(filter(None, [self.take('labels'), mark]))
    self.create = self._resource(
      'create', f'--accelerator-type={kind}', f'--runtime-version={runtime}', *which,
      f'--labels={labels}', *self.flags(),
    )  # fmt: skip
    self.made = self.current = False
    self.unfilled = 0

  def _resource(self, verb: str, *words: str) -> Command:
    tool = ('gcloud', 'compute', 'tpus', 'queued-resources', verb)
    return Command([*tool, self.job.name, *self.where, *words, '--quiet'])

  def _ssh(self, node: str, text: str, worker: str = 'all') -> Command:
    tool = ('gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh')
    return Command([*tool, node, *self.where, f'--worker={worker}', f'--command={text}', '--quiet'])

  def ready(self) -> Iterator[Step]:
    """See `Supervised`."""
    job = self.job
    environment = self.environment(self.hosts * len(self.nodes), JAX_COORDINATOR_PORT=PORT)
    script = SCRIPT.format(
      exports=exports(environment).strip().replace('\n', '\n  '), command=job.written('python'),
      lost=LOST,
    )  # fmt: skip
    yield File(job.folder / 'run.sh', script)
    yield Command(
      [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
       f'--wheel-dir={job.folder}/wheel', job.root]
    )  # fmt: skip

  def _filled(self, node: str) -> Iterator[Command]:
    folder, root = self.job.folder, self.job.root
    wheel = f'{folder}/wheel/vit_jax-{__version__}-py3-none-any.whl'
    yield self._ssh(node, f'rm -rf {self.job.name} && mkdir {self.job.name}')
    yield Command(
      ['gcloud', 'compute', 'tpus', 'tpu-vm', 'scp', '--recurse', '--worker=all', *self.where,
       '--quiet', wheel, f'{folder}/run.sh', f'{root}/configs', f'{root}/experiments',
       f'{node}:{self.job.name}/']
    )  # fmt: skip
    yield self._ssh(node, f'cd {self.job.name} && {self.setup}')

  def _say(self, node: str, word: str) -> Command:
    return self._ssh(node, f'bash {self.job.name}/run.sh {word}')

  @property
  def _describe(self) -> Command:
    what = f'state.state,tpu.nodeSpec[0].node.labels.{LABEL}'
    return self._resource('describe', f'--format=value({what})')

  @property
  def _delete(self) -> Command:
    return self._resource('delete', '--force')

  def each(self) -> Iterator[Step]:
    """See `Supervised`."""
    yield Note('unless the machines of the attempt before are still there:')
    yield self._delete
    if not self.job.tokens:
      yield Note('TOKEN is drawn for this submission: what is not marked by one of ours is left')
    yield self.create
    yield Note('and when it is ACTIVE:')
    for node in self.nodes:
      yield from self._filled(node)
    yield Note('in any case:')
    for node in self.nodes:
      yield self._say(node, 'start')
    yield Note(f'then every {self.poll} s, until all have exited or the machines are lost:')
    yield self._describe
    for node in self.nodes:
      yield self._say(node, 'look')
    yield Note('after the last attempt the ends of all logs are fetched, and the machines deleted')

  def _state(self) -> str:
    """Of our queued resource; '' if there is none, '?' if nobody answers.

    Raises:
      TakenError: if one of this name is not of this directory.
    """
    done = attempted(self._describe)
    if done.returncode:
      return '' if 'NOT_FOUND' in done.stderr or 'not found' in done.stderr.lower() else '?'
    state, _, token = done.stdout.strip().partition('\t')
    if token not in self.job.tokens:
      raise TakenError(
        f'the queued resource {self.job.name} is of another job ({LABEL}={token or "none"}), and '
        'is left alone: give this one another --name'
      )
    self.current = token == self.job.tokens[-1]
    return state

  def _known(self) -> str:
    """As `_state`, when somebody answers: what nobody can see is not lost."""
    for tries in itertools.count():
      if (state := self._state()) != '?':
        return state
      if not tries:
        supervise.say(f'waiting for gcloud: {shlex.join(self._describe.words)} does not answer')
      time.sleep(self.poll)
    raise AssertionError

  def _make(self) -> bool:
    """Machines that are ready; False if they are lost before."""
    state = self._known()
    if not (state == 'ACTIVE' and self.current):
      if state:
        run(self._delete)
      supervise.say('asking for the machines')
      with supervise.undisturbed():  # or it would be billed, and nobody know of it
        run(self.create)
    while (state := self._known()) != 'ACTIVE':
      if state == 'FAILED':
        raise RunError(
          f'the queued resource {self.job.name} has failed: see {shlex.join(self._describe.words)}'
        )
      if state in GONE:
        return False
      time.sleep(self.poll)
    supervise.say('the machines are there: filling them')
    try:
      for node in self.nodes:
        do(self._filled(node))
    except FailedError:
      self.unfilled += 1
      if self.unfilled % REFILLS == 0:  # others may be better
        run(self._delete)
      raise
    return True

  def attempt(self) -> int:
    """See `Supervised`."""
    try:
      if not (self.made and self._known() == 'ACTIVE'):
        self.made = False
        self.made = self._make()
      if not self.made:
        return LOST
      for node in self.nodes:
        run(self._say(node, 'start'))
      supervise.say('started')
      return self._watch()
    except FailedError as error:
      supervise.say(str(error))
      return LOST
    except supervise.Stopped:
      if self.made:
        for node in self.nodes:
          attempted(self._say(node, 'stop'))
        end = time.monotonic() + supervise.GRACE
        while time.monotonic() < end and None in (self._exits() or (None,)):
          time.sleep(min(self.poll, 5))
      raise

  def _exits(self) -> list[tuple[float, int] | None] | None:
    """When and how each process has exited, None for one that runs; None if nobody answers."""
    out: list[tuple[float, int] | None] = []
    for node in self.nodes:
      done = attempted(self._say(node, 'look'))
      lines = re.findall(r'^(?:running|exited (\d+) ([\d.]+))\s*$', done.stdout, re.M)
      if done.returncode or len(lines) < max(1, self.hosts):
        return None
      out += [(float(when), int(code)) if code else None for code, when in lines]
    return out

  def _watch(self) -> int:
    silent = waited = 0
    while True:
      time.sleep(self.poll)
      state, exits = self._known(), self._exits()
      if state in GONE:
        supervise.say(f'the machines are lost: {state or "gone"}')
        return LOST
      if exits is None:
        silent += state == 'ACTIVE'
        if silent > PATIENCE:
          supervise.say('the machines do not answer: they count as lost')
          self.made = False
          run(self._delete)
          return LOST
        continue
      silent = 0
      ended = sorted(each for each in exits if each)
      bad = [code for _, code in ended if code]  # the others may only suffer from the first
      if bad and (None not in exits or waited * self.poll > supervise.GRACE):
        return bad[0]
      waited += bool(bad)
      if len(ended) == len(exits) and not bad:
        return 0

  def finish(self) -> None:
    """See `Supervised`."""
    try:
      for node in self.nodes if self.made else ():
        done = attempted(self._ssh(node, f'tail -n 200 {self.job.name}/log'))
        do([File(self.job.folder / f'{node}.log', done.stdout)])
    finally:
      self._release()

  def _release(self) -> None:
    """Deletes the machines, and does not give up soon."""
    by_hand = shlex.join(self._delete.words)
    for tries in range(DELETING):
      try:
        state = self._state()
      except TakenError as error:
        supervise.say(f'nothing of ours is left to delete: {error}')
        return
      if not state:
        return
      problem = 'gcloud does not answer'
      if state != '?':
        supervise.say('deleting the machines')
        done = attempted(self._delete)
        if not done.returncode:
          return
        problem = done.stderr.strip()
      supervise.say(f'THE MACHINES MAY STILL BE THERE, AND BILLED: {problem}. By hand: {by_hand}')
      job_lib.pause(tries)
    supervise.say(f'GIVEN UP: THE MACHINES MAY STILL BE THERE, AND BILLED. Delete them: {by_hand}')

  def logs(self) -> Command:
    """See `Engine`."""
    return self._ssh(self.nodes[0], f'tail -n 50 {self.job.name}/log', worker='0')
