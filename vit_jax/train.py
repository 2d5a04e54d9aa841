"""Training: `python -m vit_jax.train --config=configs/NAME.py --workdir=DIR`.

Invariants of the loop: the batch of a step depends on seed and step alone; metrics and evaluations
of a step are on disk before its checkpoint is begun; a checkpoint is begun only from a state whose
loss and gradient were finite. So a run that is killed anywhere and started again with the same
command ends as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import pathlib
import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vit_jax import config as config_lib
from vit_jax import flops, schema, sharding
from vit_jax.checkpoint import Checkpoints
from vit_jax.data.pipeline import iterate, train_batches
from vit_jax.errors import RunError
from vit_jax.experiment import Experiment
from vit_jax.metrics import Chrono, MetricsFile, Reporter, read_json, write_json


def train(config: ConfigDict, workdir: str, *, overwrite: bool = False) -> dict[str, Any] | None:
  """Trains, or goes on training, until the run is complete.

  Args:
    config: from a file in `configs/`.
    workdir: gets config.json, metrics.jsonl, checkpoints/ and, at the end, result.json.
    overwrite: whether a run of another configuration in `workdir` may be deleted.

  Returns:
    The contents of result.json, or None if a signal stopped the run (it can be continued).

  Raises:
    RunError: for anything that the person who started the run can mend.
  """
  folder = pathlib.Path(workdir)
  cfg: config_lib.Config = schema.build(config_lib.Config, config)
  chrono = Chrono()
  with jax.set_mesh(sharding.make_mesh(cfg.mesh)):
    with chrono('init'):
      changed = _changes(folder, config)
      if changed and not overwrite:
        listing = '\n'.join(f'  {name}: {old!r} -> {new!r}' for name, (old, new) in changed.items())
        raise RunError(
          f'{folder} holds a run of another configuration:\n{listing}\n'
          'Use another --workdir, or --overwrite to delete that run.'
        )
      if not changed and (folder / 'result.json').exists():
        result = read_json(folder / 'result.json')
        if jax.process_index() == 0:
          print(f'{folder} is complete: {result["step"]} steps. Nothing to do.')
        return result
      experiment = Experiment(cfg)
      _claim(folder, config, delete=bool(changed))
    return _Loop(experiment, config, folder, chrono).run()


class _Loop:
  """One session of a run: from the last checkpoint to the end, or to a signal."""

  def __init__(self, experiment: Experiment, config: ConfigDict, folder: pathlib.Path, chrono: Chrono):
    self.experiment, self.config, self.folder = experiment, config, folder
    self.chrono = chrono
    every = experiment.steps
    cfg = experiment.config
    self.log_every = every(cfg.log.every, 'log.every')
    self.save_every = every(cfg.checkpoint.every, 'checkpoint.every')
    self.eval_every = {n: every(e.every, f'evals.{n}.every') for n, e in cfg.evals.items()}
    self.primary = jax.process_index() == 0
    self.checkpoints = Checkpoints(folder / 'checkpoints', keep=cfg.checkpoint.keep)

  def run(self) -> dict[str, Any] | None:
    with contextlib.ExitStack() as stack:
      stack.callback(self.checkpoints.close)
      with self.chrono('init'):
        self._start(stack)
      stopped = stack.enter_context(_stop_signal())
      return self._steps(stopped, stack)

  def _start(self, stack: contextlib.ExitStack) -> None:
    """Restores or initialises the state and opens whatever the loop writes to."""
    experiment = self.experiment
    self.start = self.checkpoints.latest or 0
    if self.checkpoints.latest is not None:
      self.state, extra = self.checkpoints.restore(experiment.abstract_state)
      for phase, seconds in extra['seconds'].items():
        self.chrono.seconds[phase] += seconds
    else:
      self.state = experiment.init()
    self.evaluators = experiment.evaluators()
    self.metrics = None
    if self.primary:
      self.metrics = MetricsFile(self.folder / 'metrics.jsonl', after=self.start)
      stack.callback(self.metrics.close)
    self.reporter = Reporter(experiment.total, self.start, visible=self.primary)
    stack.callback(self.reporter.close)
    if self.start:
      self.reporter.say(f'continuing {self.folder} at step {self.start} of {experiment.total}')

  def _steps(self, stopped, stack: contextlib.ExitStack) -> dict[str, Any] | None:
    experiment, chrono, total = self.experiment, self.chrono, self.experiment.total
    cfg = experiment.config
    batches = train_batches(
      cfg.data, experiment.source, experiment.shape, cfg.batch_size, experiment.layout.rows, cfg.seed
    )
    stream = iterate(batches, start=self.start, workers=cfg.data.workers)
    stack.callback(stream.close)
    step_fn = None
    self.pending: tuple[int, Any] | None = None
    self.scores: dict[str, float] = {}
    self._mark()
    for step in range(self.start, total):
      with chrono('input'):
        batch = experiment.layout.place(next(stream))
      hyper = experiment.hyper(step)
      if step_fn is None:
        with chrono('compile'):
          step_fn = experiment.train_step().lower(self.state, batch, hyper).compile()
      self._profile(step - self.start)
      with chrono('step'), jax.profiler.StepTraceAnnotation('train', step_num=step):
        self.state, metrics = step_fn(self.state, batch, hyper)
        # While this step runs, the metrics of the one before come to the host.
        self._flush()
        self.checkpoints.wait(timeout=0)  # a failed save is news at once
        self.pending = (step + 1, (metrics, hyper))
      if self._boundary(step + 1, stopped(step + 1)):
        self.reporter.say(
          f'stopped by a signal at step {step + 1} of {total}, which is saved: '
          'run the same command to continue'
        )
        return None
    if not self.scores:  # restored after the last step
      with chrono('eval'):
        self.scores = experiment.evaluate(self.evaluators, self.state)
    return self._finish()

  def _boundary(self, done: int, stop: bool) -> bool:
    """Evaluates and saves where due after `done` steps; whether to leave the loop now."""
    total = self.experiment.total
    last = done == total
    evals = {n: self.evaluators[n] for n, every in self.eval_every.items() if last or _due(done, every)}
    save = last or stop or _due(done, self.save_every)
    if evals or save:
      with self.chrono('step'):
        self._flush()
    if evals:
      with self.chrono('eval'):
        scores = self.experiment.evaluate(evals, self.state)
      self.scores |= scores
      self._write(done, scores)
      text = '  '.join(f'{name} {value:.4g}' for name, value in scores.items())
      self.reporter.say(f'step {done}/{total}  {text}')
    if save:
      with self.chrono('checkpoint'):
        self.checkpoints.save(done, self.state, {'seconds': dict(self.chrono.seconds)})
        if stop:
          self.checkpoints.wait()
    self.reporter.advance(done)
    return stop and not last

  def _flush(self) -> None:
    """Brings the metrics of the last dispatched step to the host; stops the run if not finite."""
    if self.pending is None:
      return
    (step, (metrics, hyper)), self.pending = self.pending, None
    values = {f'train/{name}': float(value) for name, value in jax.device_get(metrics).items()}
    if not (math.isfinite(values['train/loss']) and math.isfinite(values['train/grad_norm'])):
      self._diverged(step, values)
    if step == self.experiment.total or _due(step, self.log_every):
      rate = self._mark(step)
      self._write(step, {**values, 'lr': float(hyper.lr), 'images_per_second': rate})
      self.reporter.train(step, values, rate)

  def _diverged(self, step: int, values: dict[str, float]) -> None:
    with contextlib.suppress(RunError):
      self.checkpoints.wait()
    latest = self.checkpoints.latest
    good = f'{self.checkpoints.directory}/{latest}' if latest is not None else 'none yet'
    raise RunError(
      f'loss {values["train/loss"]} and gradient norm {values["train/grad_norm"]} at step {step}: '
      f'the run has stopped, nothing was overwritten.\nLast good checkpoint: {good}\n'
      'Try, in another --workdir: a lower optim.lr, a longer optim.warmup, optim.clip=1, '
      'model.dtype=float32, another seed.'
    )

  def _mark(self, step: int | None = None) -> float:
    """Images per second of stepping and waiting for input since the last mark."""
    busy = self.chrono.seconds['step'] + self.chrono.seconds['input']
    step = self.start if step is None else step
    rate = 0.0
    if hasattr(self, 'marked') and busy > self.marked[1]:
      rate = (step - self.marked[0]) * self.experiment.config.batch_size / (busy - self.marked[1])
    self.marked = (step, busy)
    return rate

  def _write(self, step: int, values: dict[str, float]) -> None:
    if self.metrics:
      self.metrics.write(step, values)

  def _profile(self, session_step: int) -> None:
    profile = self.experiment.config.profile
    if profile.steps and session_step == profile.start:
      jax.profiler.start_trace(str(self.folder / 'profile'))
    if profile.steps and session_step == profile.start + profile.steps:
      jax.profiler.stop_trace()

  def _finish(self) -> dict[str, Any]:
    with self.chrono('checkpoint'):
      self.checkpoints.wait()
    result = _result(self.experiment, self.config, self.state, self.scores, self.chrono)
    if self.primary:
      write_json(self.folder / 'result.json', result)
    rows = dict(self.scores)
    rows['parameters'] = f'{result["parameters"]:,}'
    rows['images/s per chip'] = result['images_per_second_per_chip']
    if result['mfu'] is not None:
      rows['MFU'] = f'{result["mfu"]:.1%}'
    rows['seconds'] = ', '.join(f'{k} {v:.1f}' for k, v in result['seconds'].items())
    self.reporter.close()
    self.reporter.table(f'{self.folder}: {result["step"]} steps', rows)
    return result


def _due(step: int, every: int) -> bool:
  return bool(every) and step % every == 0


def _changes(folder: pathlib.Path, config: ConfigDict) -> dict[str, tuple]:
  """The fields in which the run in `folder`, if there is one, differs from `config`."""
  path = folder / 'config.json'
  if not path.exists():
    return {}
  theirs, mine = read_json(path), config_lib.to_dict(config)
  return schema.differences(config_lib.without_free(theirs), config_lib.without_free(mine))


def _claim(folder: pathlib.Path, config: ConfigDict, *, delete: bool) -> None:
  """Makes `folder` the directory of this run, deleting the one that is there if told to."""
  try:
    if jax.process_index() == 0:
      # Last what says which run this is: an interrupted deletion is repeated.
      for name in ('result.json', 'checkpoints', 'profile', 'metrics.jsonl', 'config.json'):
        if delete:
          _delete(folder / name)
      folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise RunError(f'cannot write to --workdir={folder}: {error.strerror}') from None
  if jax.process_index() == 0:
    write_json(folder / 'config.json', config_lib.to_dict(config))
  multihost_utils.sync_global_devices('workdir is ready')


def _delete(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


@contextlib.contextmanager
def _stop_signal() -> Iterator[Any]:
  """A function of the step: whether all processes are to stop there, after SIGTERM or Ctrl-C."""
  if jax.process_count() > 1:
    # JAX listens for SIGTERM and agrees on a step that no process has passed.
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = threading.Event()
  in_main = threading.current_thread() is threading.main_thread()
  previous = {}
  for number in (signal.SIGTERM, signal.SIGINT) if in_main else ():
    previous[number] = signal.signal(number, lambda *_: asked.set())
  try:
    yield lambda step: asked.is_set()
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def _result(experiment: Experiment, config: ConfigDict, state, scores, chrono: Chrono) -> dict[str, Any]:
  """The facts of a finished run."""
  cfg = experiment.config
  device = jax.devices()[0]
  examples = experiment.total * cfg.batch_size
  rate = examples / (chrono.seconds['step'] + chrono.seconds['input']) / jax.device_count()
  per_image = flops.train_flops(cfg.model)
  peak = flops.PEAKS.get(device.device_kind)
  packages = ('vit_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')
  return {
    'step': experiment.total,
    'examples': examples,
    'metrics': scores,
    'config_hash': config_lib.run_hash(config_lib.to_dict(config)),
    'git': _git_revision(),
    'python': platform.python_version(),
    'packages': {name: _version(name) for name in packages},
    'device': device.device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
    'mesh': dict(jax.sharding.get_mesh().shape),
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.model)),
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
  git = ['git', '-C', str(pathlib.Path(__file__).parent), 'describe', '--always', '--abbrev=40', '--dirty=+']
  try:
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip() or None
  except (OSError, subprocess.CalledProcessError):
    return None


if __name__ == '__main__':
  from absl import flags

  from vit_jax import launch

  OVERWRITE = flags.DEFINE_bool(
    'overwrite', False, 'Delete the run of another configuration that is in --workdir.'
  )
  flags.mark_flag_as_required('config')
  launch.run(
    lambda: train(launch.CONFIG.value, launch.WORKDIR.value, overwrite=OVERWRITE.value)
  )
