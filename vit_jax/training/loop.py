"""The loop.

Invariants: the batch of a step depends on seed and step alone; metrics and evaluations
of a step are on disk before its checkpoint is begun; a checkpoint is begun only from a state whose
loss and gradient were finite. So a run that is killed anywhere and started again with the same
command ends as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vit_jax.architecture import ViTArchitecture, variants
from vit_jax.checkpoints.store import Found
from vit_jax.core import faults, schema
from vit_jax.core.errors import DivergedError, RunError
from vit_jax.core.text import number, plain
from vit_jax.evaluators.evaluator import SHOWN
from vit_jax.nn import sharding
from vit_jax.training import config as config_lib
from vit_jax.training import fork, lanes, report, writers
from vit_jax.training.experiment import Experiment
from vit_jax.training.hyper import Hyper
from vit_jax.training.progress import Chrono, MetricsFile, Reporter, say
from vit_jax.training.result import facts, revision
from vit_jax.training.workdir import Workdir


def train(
  config: ConfigDict,
  folder: str,
  *,
  overwrite: bool = False,
  wishes: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
  """Trains, or goes on training, until the run is complete.

  Args:
    config: from a file in `configs/`.
    folder: the run's directory: gets config.json, metrics.jsonl, checkpoints/ and, at the end,
      result.json.
    overwrite: whether a run of another configuration in `folder` may be deleted.
    wishes: of `config.started`, named where the checkpoint decided otherwise.

  Returns:
    The contents of result.json, or None if a signal stopped the run (it can be continued).

  Raises:
    RunError: for anything that the person who started the run can fix.
  """
  if fault := faults.arm():
    print(f'{faults.VARIABLE}: {fault}')
  record, workdir, chrono = config_lib.to_dict(config), Workdir(folder), Chrono()
  cfg: config_lib.Config = schema.build(config_lib.Config, record)
  workdir.keep_compiled(cfg.compilation_cache)
  with jax.set_mesh(sharding.make_mesh(cfg.mesh)):
    with chrono('init'):
      delete = _is_of_another_run(workdir, cfg, record)
      if delete and not overwrite:
        raise RunError(delete)
      if not delete and (result := workdir.result()):
        if jax.process_index() == 0:
          print(f'{workdir} is complete: {result["step"]} steps. Nothing to do.')
        return result
      say(_devices())
      say(f'opening the data: {cfg.data.split} and what is evaluated on')
      known = None if delete else workdir.known()
      if not known and cfg.fork:
        known = Workdir(cfg.fork).known()
      experiment = lanes.experiment(cfg, known, wishes or {})
      workdir.prepare()
    with _Session(experiment, workdir, record, chrono, delete=bool(delete)) as session:
      if not session.run():
        return None
      result = facts(
        experiment, record, session.state.model, session.scores, chrono, session.history
      )
      session.finish(result)
      return result


def _is_of_another_run(workdir: Workdir, cfg: config_lib.Config, record: dict[str, Any]) -> str:
  """Why the run in `workdir` cannot be continued as `record`; '' if it can, or there is none."""
  try:
    changed = workdir.changes(record) if workdir.trained else {}  # else nothing would be lost
  except RunError as error:
    return str(error)
  if not changed:
    return ''
  lines = (f'  {name}: {old!r} -> {new!r}\n' for name, (old, new) in changed.items())
  return (
    f'{workdir} holds a run of another configuration:\n{"".join(lines)}'
    f'{fork.ways_on(cfg, workdir, changed)}'
    'Use another --workdir, or --overwrite to delete that run.'
  )


class _Session:
  """One session of a run: from the last checkpoint to the end, or to a signal."""

  def __init__(
    self, experiment: Experiment, workdir: Workdir, record: dict[str, Any], chrono: Chrono, *,
    delete: bool,
  ):  # fmt: skip
    self.experiment, self.workdir, self.chrono = experiment, workdir, chrono
    self.record, self.delete = record, delete
    self.start, self.primary = 0, jax.process_index() == 0
    self.trunk: Workdir | None = None
    self.metrics: MetricsFile | None = None
    cfg, steps = experiment.config, experiment.steps
    self.log_every = steps(cfg.log.every, 'log.every')
    self.save_every = steps(cfg.checkpoint.every, 'checkpoint.every')
    self.save_at = {steps(at, 'checkpoint.at') for at in cfg.checkpoint.at}
    self.eval_every = {k: steps(e.every, f'evals.{k}.every') for k, e in cfg.evals.items()}
    self.scores: dict[str, Any] = {}
    self.evaluated: list[dict[str, Any]] = []  # in all sessions: steps and scores
    self.writers: writers.Writers | None = None
    # In all sessions: where the run was forked, which lanes diverged when.
    self.history: dict[str, Any] = {}
    self.pending: tuple[int, Any, Hyper] | None = None
    self.resources = contextlib.ExitStack()
    self.trace = contextlib.ExitStack()
    self.resources.callback(self.trace.close)

  def __enter__(self) -> _Session:
    """Restores or initialises the state, and only then makes the directory that of this run."""
    experiment, cfg = self.experiment, self.experiment.config
    aside: dict[int, str] = {}
    writers.check(cfg.log.writers)  # before anything is deleted
    with self.resources, self.chrono('init'):
      self.evaluators = experiment.evaluators()
      about = experiment.summary(self.evaluators)
      about += experiment.audit(self.evaluators) if self.primary else []
      for line in (*about, _described(experiment), *experiment.notes):
        say(line)
      self.checkpoints = self.workdir.checkpoints(keep=cfg.checkpoint.keep, at=self.save_at)
      self.resources.callback(self.checkpoints.close)
      found = self._found()
      if found:
        self.start, self.history = found.step, found.extra.get('history', {})
        self.evaluated = found.extra.get('evaluated', [])
      self.state = experiment.split(found.state if found else experiment.init())
      if found:
        experiment.adopt((self.trunk or self.workdir).frozen(experiment.frozen))
      self.reporter = Reporter(experiment.total, self.start, visible=self.primary)
      self.resources.callback(self.reporter.close)
      if found and not self.trunk:
        renamed = self.checkpoints.set_aside(found.damage)
        aside = {step: path.name for step, path in zip(found.damage, renamed, strict=True)}
      if self.workdir.claim(self.record, delete=self.delete) and not self.delete:
        self.reporter.say(
          f'{self.workdir} held the record of another configuration that had not trained a step: '
          'it is replaced'
        )
      self.checkpoints.prepare()
      if self.primary:
        self.workdir.note_session(_command(), self.start, experiment.total)
        self.writers = writers.Writers(
          cfg.log.writers, self.workdir.path, self.start, self.reporter.say
        )
        self.resources.callback(self.writers.close)
      self.resources = self.resources.pop_all()
    for step, reason in found.damage.items() if found else ():
      done = f' It is renamed to {aside[step]}, and its steps are repeated.' if aside else ''
      self.reporter.say(f'the checkpoint of step {step} is damaged: {reason}.{done}')
    self.marked = self.start, self._busy()
    return self

  def _found(self) -> Found | None:
    """The state to begin with, if it is in a checkpoint."""
    cfg, abstract = self.experiment.config, self.experiment.abstract_state
    if not self.delete and self.checkpoints.steps:
      found = self.checkpoints.newest(abstract)
      for phase, seconds in found.extra['seconds'].items():
        self.chrono.seconds[phase] += seconds
      return found
    if cfg.fork:
      self.trunk = Workdir(cfg.fork)
      return fork.restore(self.experiment, self.record, self.trunk, self.workdir)
    return None

  def __exit__(self, *error: Any) -> None:
    self.resources.close()

  def run(self) -> bool:
    """Trains to the end (True) or to a signal (False)."""
    experiment, chrono, total = self.experiment, self.chrono, self.experiment.total
    if self.start:
      self.reporter.say(f'continuing {self.workdir} at step {self.start} of {total}')
    step_fn, batches = None, experiment.batches(self.start)
    with contextlib.closing(batches), _stop_signal() as stop_at:
      for step in range(self.start, total):
        with chrono('input'):
          batch = next(batches)
        hyper = experiment.hyper(step)
        if step_fn is None:
          self.reporter.say('compiling the training step')
          before = chrono.seconds['compile']
          with chrono('compile'):
            lowered = experiment.train_step().lower(self.state, experiment.frozen, batch, hyper)
            step_fn = lowered.compile()
          self.reporter.say(f'compiled in {chrono.seconds["compile"] - before:.0f} s')
        self._profile(step - self.start)
        with chrono('step'), jax.profiler.StepTraceAnnotation('train', step_num=step):
          self.state, metrics = step_fn(self.state, experiment.frozen, batch, hyper)
          # While this step runs, the metrics of the one before come to the host.
          self._flush()
          self.pending = step + 1, metrics, hyper
        self.checkpoints.wait(timeout=0)  # a failed save is news at once
        faults.reached(f'at step {step + 1}', self.checkpoints.wait)
        stop = stop_at(step + 1)
        self._boundary(step + 1, stop)
        if stop and step + 1 < total:
          if self.primary:
            self._report()
          self.reporter.say(
            f'stopped by a signal at step {step + 1} of {total}, which is saved: '
            'run the same command to continue'
          )
          return False
    if not self.scores:  # restored after the last step
      with chrono('eval'):
        self.scores = self._evaluated(self.evaluators, total)
    with chrono('checkpoint'):
      self.checkpoints.wait()
    return True

  def finish(self, result: dict[str, Any]) -> None:
    """Writes result.json and shows what is in it."""
    if self.primary:
      self.workdir.finish(result)
      self._report()
    rows: dict[str, Any] = dict(self.scores)
    rows['parameters'] = f'{result["parameters"]:,}'
    rows['images/s per chip'] = result['images_per_second_per_chip']
    if result['mfu'] is not None:
      rows['MFU'] = f'{result["mfu"]:.1%}'
    rows['seconds'] = ', '.join(f'{k} {v:.1f}' for k, v in result['seconds'].items())
    self.reporter.table(f'{self.workdir}: {result["step"]} steps', rows)

  def _report(self) -> None:
    """Writes report.html; what goes wrong with it does not stop a run."""
    try:
      report.write(self.workdir.path)
    except Exception as error:
      self.reporter.say(f'report.html is not written: {type(error).__name__}: {error}')

  def _boundary(self, done: int, stop: bool) -> None:
    """After `done` steps: evaluates and saves where that is due, in this order."""
    total = self.experiment.total
    last = done == total
    names = [name for name, every in self.eval_every.items() if last or _due(done, every)]
    save = last or stop or done in self.save_at or _due(done, self.save_every)
    if names or save:
      with self.chrono('step'):
        self._flush()
    if names:
      evaluators = {name: self.evaluators[name] for name in names}
      with self.chrono('eval'):
        scores = self._evaluated(evaluators, done)
      scores = {name: self._of_sound_lanes(values) for name, values in scores.items()}
      self.scores |= scores
      self.evaluated.append({'step': done, **scores})
      self._write(done, scores)
      text = '  '.join(f'{name} {number(value)}' for name, value in scores.items())
      self.reporter.say(f'step {done}/{total}  {text}')
    if save:
      self._open_metrics()  # the lines of the steps before, which may be those of a trunk
      with self.chrono('checkpoint'):
        described = self.experiment.described()
        extra = {
          'seconds': dict(self.chrono.seconds), 'history': self.history, **described,
          'decided': self.experiment.decided,
          'fields': {n: dataclasses.asdict(f) for n, f in self.experiment.fields.items()},
          'lanes': self.experiment.config.lane_count, 'recipe': self.record,
          'evaluated': self.evaluated, 'revision': revision(),
        }  # fmt: skip
        state = self.experiment.stack(self.state)
        if not self.workdir.has_frozen:
          self.workdir.save_frozen(self.experiment.stacked_frozen())
        self.checkpoints.save(done, state, extra)
        if stop:
          self.checkpoints.wait()
    self.reporter.advance(done)

  def _evaluated(self, evaluators: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Scores; what the last evaluations leave is in evals/."""
    values, scores = self.experiment.evaluate(dict(evaluators), self.state)
    if self.primary:
      for name, found in scores.items():
        facts = self.experiment.evaluation_facts(name) | {'step': step}
        drawn = self._drawn(name, evaluators[name])
        self.workdir.leave(name, facts, found, drawn)
        for number, each in enumerate(drawn):
          if self.writers:
            title = f'{name}/{each.shown.group}/{number % SHOWN}'
            self.writers.picture(step, title, each.picture)
    return values

  def _drawn(self, name: str, evaluation: Any) -> list[Any]:
    """Pictures of predictions; what goes wrong with them does not stop a run."""
    try:
      return evaluation.drawn()
    except Exception as error:
      self.reporter.say(f'evals.{name}: predictions are not drawn: {type(error).__name__}: {error}')
      return []

  def _flush(self) -> None:
    """Brings the metrics of the last dispatched step to the host; stops the run if not finite."""
    if self.pending is None:
      return
    (step, metrics, hyper), self.pending = self.pending, None
    metrics = jax.device_get(metrics)
    sound = np.isfinite(metrics['loss']) & np.isfinite(metrics['grad_norm'])
    values = {f'train/{name}': plain(value) for name, value in metrics.items()}
    if not sound.any():
      self._diverged(step, metrics)
    for lane in np.flatnonzero(~sound):
      self.history.setdefault('diverged', {}).setdefault(str(lane), step)
    if step == self.experiment.total or _due(step, self.log_every):
      rate = self._rate(step)
      self._write(step, {**values, 'lr': plain(hyper.values[..., 0]), 'images_per_second': rate})
      self.reporter.train(step, values, rate)

  def _of_sound_lanes(self, values: Any) -> Any:
    """Scores, None where a lane has diverged."""
    bad = self.history.get('diverged', {})
    if not isinstance(values, list):
      return values
    return [None if str(lane) in bad else value for lane, value in enumerate(values)]

  def _diverged(self, step: int, values: dict[str, Any]) -> None:
    with contextlib.suppress(RunError):
      self.checkpoints.wait()
    latest = self.checkpoints.latest
    good = 'none yet' if latest is None else f'{self.checkpoints.directory}/{latest}'
    raise DivergedError(
      f'loss {values["loss"]} and gradient norm {values["grad_norm"]} at step {step}: '
      f'the run has stopped, nothing was overwritten.\nLast good checkpoint: {good}\n'
      'Try, in another --workdir: a lower optim.lr, a longer optim.warmup, optim.clip=1, '
      'model.dtype=float32, another seed.'
    )

  def _rate(self, step: int) -> float:
    """Images per second of stepping and waiting for input since the last call."""
    (before, busy), self.marked = self.marked, (step, self._busy())
    images = (step - before) * self.experiment.examples_per_step
    return images / max(self.marked[1] - busy, 1e-9)

  def _busy(self) -> float:
    return self.chrono.running('step') + self.chrono.running('input')

  def _write(self, step: int, values: dict[str, Any]) -> None:
    if metrics := self._open_metrics():
      metrics.write(step, values)
    if self.writers:
      self.writers.scalars(step, values)

  def _open_metrics(self) -> MetricsFile | None:
    """Of the primary process; made when something is written: until then nothing was trained."""
    if self.primary and self.metrics is None:
      source = self.trunk.metrics_path if self.trunk else None
      self.metrics = self.workdir.metrics(after=self.start, source=source)
      self.resources.callback(self.metrics.close)
      if lines := ', '.join(map(str, self.metrics.damaged)):
        path = source or self.workdir.metrics_path
        self.reporter.say(f'{path}: line {lines} cannot be read and is left out')
    return self.metrics

  def _profile(self, session_step: int) -> None:
    profile = self.experiment.config.profile
    if profile.steps and session_step == profile.start:
      options = jax.profiler.ProfileOptions()
      # Recording every call of Python in every thread slows the step down that is to be seen.
      options.python_tracer_level = 0
      folder = str(self.workdir.path / 'profile')
      self.trace.enter_context(jax.profiler.trace(folder, profiler_options=options))
    if profile.steps and session_step == profile.start + profile.steps:
      jax.block_until_ready(self.state)
      self.trace.close()


def _command() -> str:
  """The command line of this process, if it is one of ours."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  if spec is None or not spec.name.startswith('vit_jax.'):
    return ''
  return f'python -m {spec.name} {shlex.join(sys.argv[1:])}'


def _devices() -> str:
  """What a run is on."""
  mesh = ' x '.join(f'{size} {axis}' for axis, size in jax.sharding.get_mesh().shape.items())
  several = f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''
  return f'devices: {jax.device_count()} x {jax.devices()[0].device_kind}{several}, mesh {mesh}'


def _described(experiment: Experiment) -> str:
  """The model of a run."""
  cfg, count = experiment.config, lambda held: sum(leaf.size for leaf in jax.tree.leaves(held))
  trained = count(experiment.abstract_state.model) // max(1, cfg.lane_count)
  frozen = count(experiment.frozen)
  name, size = cfg.model.kind, ''
  if isinstance(cfg.model, ViTArchitecture):
    model, name = cfg.model, variants.name_of(cfg.model) or 'ViT'
    side, tokens = 'x'.join(map(str, model.image_size)), math.prod(model.grid) + model.prefix
    size = (
      f', images of {side}x{model.in_channels}, {tokens} tokens of '
      f'{model.width}, depth {model.depth}'
    )
  left = f', and {frozen:,} that are not trained' if frozen else ''
  return f'model: {name}, {trained:,} parameters{left}{size}'


def _due(step: int, every: int) -> bool:
  return bool(every) and step % every == 0


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[int], bool]]:
  """A function of the step: whether all processes are to stop there, after SIGTERM or Ctrl-C."""
  if jax.process_count() > 1:
    # JAX listens for SIGTERM and agrees on a step that no process has passed.
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = threading.Event()
  signals = (signal.SIGTERM, signal.SIGINT)
  if threading.current_thread() is not threading.main_thread():
    signals = ()  # only the main thread may listen
  previous = {number: signal.signal(number, lambda *_: asked.set()) for number in signals}
  try:
    yield lambda step: asked.is_set()
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
