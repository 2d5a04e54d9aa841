"""The loop.

Invariants: the batch of a step depends on seed and step alone; metrics and evaluations of a step
are on disk before its checkpoint is begun, or, where that is an object store, in it; a checkpoint
is begun only from a state whose loss and gradient were finite, or from which such an update was
kept away. So a run that is killed anywhere and started again with the same command ends as if
nothing had happened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import signal
import threading
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vit_jax.architecture import Backbone, ViTArchitecture, variants
from vit_jax.checkpoints.store import Found, NoneSoundError
from vit_jax.core import faults, schema
from vit_jax.core.errors import DivergedError, PassingError, RunError
from vit_jax.core.text import number, plain
from vit_jax.nn import sharding
from vit_jax.optim.config import WINDOW
from vit_jax.processes import exchange, health, peers
from vit_jax.training import config as config_lib
from vit_jax.training import fork, lanes, writers
from vit_jax.training.books import Books
from vit_jax.training.experiment import Experiment
from vit_jax.training.hyper import Hyper
from vit_jax.training.pace import Pace, Saves
from vit_jax.training.progress import Chrono, Reporter, say
from vit_jax.training.result import facts, revision, versions
from vit_jax.training.spikes import SpikeError, Spikes
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
  started = time.time()
  cfg: config_lib.Config = schema.build(config_lib.Config, workdir.at_home(record))
  workdir.probe()
  peers.same('the run', versions() | {'configuration': config_lib.run_hash(record)})
  workdir.keep_compiled(cfg.compilation_cache)
  with contextlib.closing(workdir), jax.set_mesh(sharding.make_mesh(cfg.mesh)):
    with chrono('init'):
      delete = peers.agreed(
        'whose directory it is', lambda: _is_of_another_run(workdir, cfg, record)
      )
      if delete and not overwrite:
        raise RunError(delete)
      if not delete and (result := workdir.result()):
        if jax.process_index() == 0:
          print(f'{workdir} is complete: {result["step"]} steps. Nothing to do.')
        return result
      say(_devices())
      say(f'opening the data: {cfg.data.split} and what is evaluated on')
      known = None if delete else exchange.from_first(workdir.known)
      if new := not known:
        cfg = schema.build(config_lib.Config, record)
      if new and cfg.fork:
        known = exchange.from_first(Workdir(cfg.fork).known)
        cfg = schema.build(config_lib.Config, Workdir(cfg.fork).at_home(record))
      experiment = lanes.experiment(cfg, known, wishes or {})
      workdir.prepare()
      workdir.keep(experiment.config.task.files, anew=new)
      health.configure(workdir.path, chrono.seconds, silent=cfg.health.silent, wait=cfg.health.wait)
    session = _Session(experiment, workdir, record, chrono, started, delete=bool(delete))
    result = None
    with session:
      if session.run():
        result = facts(experiment, record, session.state, session.scores, chrono, session.history)
        session.finish(result)
    # Process 0 has more to write; without it the others would be ended.
    peers.meet('the end of the run')
    return result


def _is_of_another_run(workdir: Workdir, cfg: config_lib.Config, record: dict[str, Any]) -> str:
  """Why the run in `workdir` cannot be continued as `record`; '' if it can, or there is none."""
  try:
    changed = workdir.changes(record) if workdir.trained else {}  # else nothing would be lost
  except (OSError, PassingError):
    raise
  except RunError as error:
    if isinstance(error.__cause__, OSError):
      raise
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
    self, experiment: Experiment, workdir: Workdir, record: dict[str, Any], chrono: Chrono,
    started: float, *, delete: bool,
  ):  # fmt: skip
    self.experiment, self.workdir, self.chrono = experiment, workdir, chrono
    self.record, self.started, self.delete = record, started, delete
    self.start, self.primary = 0, jax.process_index() == 0
    self.trunk: Workdir | None = None
    cfg, steps = experiment.config, experiment.steps
    self.log_every = steps(cfg.log.every, 'log.every')
    self.pace = Pace(chrono, cfg.health.hang)
    auto = cfg.checkpoint.every == 'auto'
    self.save_every = 0 if auto else steps(cfg.checkpoint.every, 'checkpoint.every')
    self.saves = Saves(cfg.checkpoint.mtbf * 3600, self.pace) if auto else None
    self.save_at = {steps(at, 'checkpoint.at') for at in cfg.checkpoint.at}
    self.spikes = Spikes(cfg.rewind, steps(cfg.rewind.back, 'rewind.back'))
    if cfg.rewind.most and not 0 < self.spikes.back <= experiment.total // 2:
      raise RunError(
        f'rewind.back={cfg.rewind.back!r} is {self.spikes.back} of {experiment.total} steps: the '
        'run could not go back; give at least one step, and at most half of the run'
      )
    self.eval_every = {k: steps(e.every, f'evals.{k}.every') for k, e in cfg.evals.items()}
    self.scores: dict[str, Any] = {}
    self.evaluated: list[dict[str, Any]] = []  # in all sessions: steps and scores
    # In all sessions: where the run was forked, which lanes diverged when, where it went back, and
    # the commits of checkpoints on the hub that it started from.
    self.history: dict[str, Any] = {}
    self.pending: tuple[int, Any, Hyper] | None = None
    self.carried: dict[str, Any] = {}
    self.before: dict[str, float] = {}  # seconds by phase, of earlier sessions
    self.step_fns: list[Any] = []  # of each size of images and patches
    self.resources = contextlib.ExitStack()
    self.books = Books(workdir, lambda text: self.reporter.say(text))
    self.resources.callback(self.books.close)
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
      self.checkpoints = self.workdir.checkpoints(
        keep=cfg.checkpoint.keep, at=self.save_at, held=self.spikes.holds
      )
      self.resources.callback(self.checkpoints.close)
      found = self._found()
      if found:
        for line in (self.trunk or self.workdir).otherwise if self.primary else ():
          say(line)
        self.start, self.history = found.step, found.extra.get('history', {})
        self.carried = found.extra.get('metrics', {})
        self.evaluated = found.extra.get('evaluated', [])
        self._remember(found.extra)
      elif experiment.origins:
        self.history['origins'] = experiment.origins
      self.state = experiment.split(found.state if found else experiment.init())
      if found:
        _, frozen = experiment.to_restore()
        experiment.adopt((self.trunk or self.workdir).frozen(frozen))
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
        self.books.begin(
          self.chrono, cfg, step=self.start, total=experiment.total, started=self.started,
          before=self.before, trunk=self.trunk, carried=self.carried,
        )  # fmt: skip
      self.resources = self.resources.pop_all()
    for step, reason in found.damage.items() if found else ():
      done = f' It is renamed to {aside[step]}, and its steps are repeated.' if aside else ''
      self.reporter.say(f'the checkpoint of step {step} is damaged: {reason}.{done}')
    self.marked = self.start, self._busy()
    return self

  def _found(self) -> Found | None:
    """The state to begin with, if it is in a checkpoint."""
    cfg, (abstract, _) = self.experiment.config, self.experiment.to_restore()
    if not self.delete and self.checkpoints.steps:
      found = self.checkpoints.newest(abstract)
      self.before = dict(found.extra['seconds'])
      for phase, seconds in self.before.items():
        self.chrono.seconds[phase] += seconds
      return found
    if cfg.fork:
      self.trunk = Workdir(cfg.fork)
      return fork.restore(self.experiment, self.record, self.trunk, self.workdir)
    return None

  def __exit__(self, kind: Any, *error: Any) -> None:
    if not kind:
      self.resources.close()
      return
    if peers.count() > 1:
      # Others may never come to the end of a save that waits for all.
      self.checkpoints.give_up()
    try:
      self.resources.close()
    except RunError as also:  # what ended the run comes first
      self.reporter.say(f'besides: {also}')

  def run(self) -> bool:
    """Trains to the end (True) or to a signal (False)."""
    if self.start:
      self.reporter.say(
        f'continuing {self.workdir} at step {self.start} of {self.experiment.total}'
      )
    with _stop_signal() as stopped:
      while True:
        try:
          return self._train(stopped)
        except SpikeError as spike:
          self._go_back(spike.rewind)

  def _train(self, stopped: Callable[[], bool]) -> bool:
    """From step `start` on, as `run`; raises SpikeError where the run is to go back."""
    experiment, chrono, total = self.experiment, self.chrono, self.experiment.total
    batches = experiment.batches(self.start + self.spikes.offset)
    with contextlib.closing(batches):
      for step in range(self.start, total):
        health.reached('input', step, self.pace.limit)
        with chrono('input'):
          batch = next(batches)
        hyper = experiment.hyper(step)
        if not self.step_fns:
          self._compile(hyper)
        step_fn = self.step_fns[experiment.size(step + self.spikes.offset)]
        self._profile(step - self.start)
        with chrono('step'), jax.profiler.StepTraceAnnotation('train', step_num=step):
          self.state, metrics = step_fn(self.state, experiment.frozen, batch, hyper)
          # While this step runs, the metrics of the one before come to the host.
          self._flush()
          self.pending = step + 1, metrics, hyper
        self.checkpoints.wait(timeout=0)  # a failed save is news at once
        self.books.check()
        faults.reached(f'at step {step + 1}', self.checkpoints.wait)
        self.pace.step(compiled=step > self.start)
        self.books.note(step)
        stop = stopped()
        self._boundary(step + 1, stop)
        if stop and step + 1 < total:
          self.books.stopped(step + 1)
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

  def _compile(self, hyper: Hyper) -> None:
    """The step, for every size: one that does not fit is known before hours have passed."""
    experiment, count = self.experiment, len(self.experiment.models)
    several = f' for {count} sizes of images and patches' if count > 1 else ''
    self.reporter.say(f'compiling the training step{several}')
    before = self.chrono.seconds['compile']
    with self.chrono('compile'):
      for size in range(count):
        args = self.state, experiment.frozen, experiment.abstract_batch(size), hyper
        self.step_fns.append(experiment.train_step(size).lower(*args).compile())
    self.reporter.say(f'compiled in {self.chrono.seconds["compile"] - before:.0f} s')

  def _remember(self, extra: Mapping[str, Any]) -> None:
    """What a checkpoint says of spikes."""
    self.spikes.rewinds = self.history.get('rewound', [])
    self.spikes.begun = self.history.get('forked', {}).get('step', 0)
    if 'spikes' in extra:
      self.spikes.restore(extra['spikes'])

  def _go_back(self, rewind: dict[str, Any]) -> None:
    """To an earlier checkpoint; what came after it is then deleted, the newest first.

    Killed meanwhile, the run goes on from what is the newest then, comes to the same spike and goes
    back again.
    """
    to, spikes = rewind['to'], self.spikes
    why = 'is not finite' if rewind['loss'] is None else f'is {rewind["loss"]:.4g}'
    usual = '' if rewind['usual'] is None else f' and was {rewind["usual"]:.4g}'
    self.reporter.say(
      f'a spike: the loss {why} at step {rewind["step"]}{usual}; going back to step {to}, and on '
      f'with other data ({len(spikes.rewinds) + 1} of {self.experiment.config.rewind.most} times)'
    )
    with self.chrono('profile'):
      self.trace.close()
    lost = self.pace.usual * (rewind['step'] - to)
    self.pace = Pace(self.chrono, self.experiment.config.health.hang)
    self.pending, self.state = None, typing.cast(Any, None)  # frees it, for the other one
    with self.chrono('restore'):
      self.checkpoints.wait()
      try:
        found = self.checkpoints.newest(self.experiment.to_restore()[0], [to])
      except NoneSoundError as error:
        raise RunError(
          f'after the spike at step {rewind["step"]} the run cannot go back to step {to}: {error}. '
          'Nothing has been deleted: another run can begin with the parameters of a later one '
          f'(--config.init={self.workdir}?step=N)'
        ) from error
      self.checkpoints.drop_after(to)
      self.state = self.experiment.split(found.state)
    self.start, self.evaluated = to, found.extra['evaluated']
    spikes.restore(found.extra['spikes'])
    self.history['rewound'] = spikes.rewinds = [*spikes.rewinds, rewind]
    self.books.back(to, lost)
    self.trunk = None  # of which all lines that count are here by now
    self.marked = to, self._busy()

  def finish(self, result: dict[str, Any]) -> None:
    """Writes result.json and shows what is in it."""
    self.books.complete(self.experiment.total, result)
    rows: dict[str, Any] = dict(self.scores)
    rows['parameters'] = f'{result["parameters"]:,}'
    rows['images/s per chip'] = result['images_per_second_per_chip']
    if result['mfu'] is not None:
      rows['MFU'] = f'{result["mfu"]:.1%}'
    rows['seconds'] = ', '.join(f'{k} {v:.1f}' for k, v in result['seconds'].items())
    self.reporter.table(f'{self.workdir}: {result["step"]} steps', rows)

  def _boundary(self, done: int, stop: bool) -> None:
    """After `done` steps: evaluates and saves where that is due, in this order."""
    total = self.experiment.total
    last = done == total
    names = [name for name, every in self.eval_every.items() if last or _due(done, every)]
    save = last or stop or done in self.save_at or _due(done, self.save_every)
    save = save or bool(self.saves and self.saves.due(done)) or self.spikes.due(done)
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
      self.books.scalars(done, scores)
      text = '  '.join(f'{name} {number(value)}' for name, value in scores.items())
      self.reporter.say(f'step {done}/{total}  {text}')
    if save:
      carried = self.books.unwritten()
      before = self.chrono.seconds['checkpoint']
      with self.chrono('checkpoint'):
        described = self.experiment.described()
        extra = {
          'seconds': dict(self.chrono.seconds), 'history': self.history, **described,
          'decided': self.experiment.decided,
          'fields': {n: dataclasses.asdict(f) for n, f in self.experiment.fields.items()},
          'lanes': self.experiment.config.lane_count, 'recipe': self.record,
          'evaluated': self.evaluated, 'revision': revision(),
        }  # fmt: skip
        if carried:
          extra['metrics'] = carried
        if self.experiment.config.rewind.most:
          extra['spikes'] = self.spikes.kept()
        state = self.experiment.stack(self.state)
        if not self.workdir.has_frozen:
          self.workdir.save_frozen(self.experiment.stacked_frozen())
        self.checkpoints.save(done, state, extra)
        if stop:
          self.checkpoints.wait()
      if self.saves:
        cost = self.chrono.seconds['checkpoint'] - before
        self.saves.saved(done, cost, self.checkpoints.seconds)
    self.reporter.advance(done)

  def _evaluated(self, evaluators: Mapping[str, Any], step: int) -> dict[str, Any]:
    """Scores; what the last evaluations leave is in evals/."""
    values, scores = self.experiment.evaluate(dict(evaluators), self.state)
    if self.primary:
      for name, found in scores.items():
        facts = self.experiment.evaluation_facts(name) | {'step': step}
        drawn = self._drawn(name, evaluators[name])
        self.books.evaluated(step, name, facts, found, drawn)
    return values

  def _drawn(self, name: str, evaluation: Any) -> list[Any]:
    """Pictures of predictions; what goes wrong with them does not stop a run."""
    try:
      return evaluation.drawn()
    except Exception as error:
      self.reporter.say(f'evals.{name}: predictions are not drawn: {type(error).__name__}: {error}')
      return []

  def _flush(self) -> None:
    """Brings the metrics of the last dispatched step to the host.

    Stops the run if they are not finite; raises SpikeError if it is to go back.
    """
    if self.pending is None:
      return
    (step, metrics, hyper), self.pending = self.pending, None
    metrics = jax.device_get(metrics)
    row = metrics.pop('skipped_in_a_row', np.int32(0))
    sound = np.isfinite(metrics['loss']) & np.isfinite(metrics['grad_norm'])
    sound |= (row > 0) & (row < WINDOW)  # nothing has come of it
    values = {f'train/{name}': plain(value) for name, value in metrics.items()}
    if not self.experiment.config.lane_count:
      loss = float(metrics['loss'])
      if self.spikes.see(step, loss, skipped=bool(row), finite=bool(sound)) and sound:
        self.reporter.say(
          f'a spike: the loss is {loss:.4g} at step {step}; the run goes on, as it '
          + ('has gone back often enough' if self.spikes.rewinds else 'has nothing to go back to')
        )
    if not sound.any():
      self._diverged(step, metrics)
    for lane in np.flatnonzero(~sound):
      self.history.setdefault('diverged', {}).setdefault(str(lane), step)
    if step == self.experiment.total or _due(step, self.log_every):
      rate = self._rate(step)
      hosts, lines = self.pace.hosts()
      self.reporter.lines(lines)
      own = {'lr': plain(hyper.values[..., 0]), 'images_per_second': rate}
      self.books.scalars(step, {**values, **own, **hosts})
      self.reporter.train(step, values, rate)
      self._watch(step, metrics)

  def _watch(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Says what two reports in a row agree is wrong, once; stops the run if that is asked for."""
    cfg, lanes = self.experiment.config, self.experiment.config.lane_count
    known = self.history.get('signs', {'now': [], 'found': {}})
    now: dict[str, str] = {}
    for lane in range(max(1, lanes)):
      values = {name: float(np.ravel(value)[lane]) for name, value in metrics.items()}
      prefix = f'lane {lane}: ' * bool(lanes)
      signs = cfg.task.signs(cfg.model, values, cfg.batch_size)
      now |= {f'{prefix}{name}': f'{prefix}{text}' for name, text in signs.items()}
    new = [sign for sign in now if sign in known['now'] and sign not in known['found']]
    if not now and not known['now']:
      return
    found = known['found'] | {sign: {'step': step, 'text': now[sign]} for sign in new}
    self.history['signs'] = {'now': [*now], 'found': found}
    for sign in new:
      self.reporter.say(f'warning: step {step}: {now[sign]}')
    if new and not known['found']:
      self.reporter.say(cfg.task.remedy)
    if new and cfg.task.stops:
      raise RunError(f'stopped at step {step}: {now[new[0]]}. {cfg.task.remedy}')

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

  def _profile(self, session_step: int) -> None:
    profile = self.experiment.config.profile
    if profile.steps and session_step == profile.start:
      self.trace.enter_context(self.books.profile())
    if profile.steps and session_step == profile.start + profile.steps:
      jax.block_until_ready(self.state)
      with self.chrono('profile'):
        self.trace.close()


def _devices() -> str:
  """What a run is on."""
  mesh = ' x '.join(f'{size} {axis}' for axis, size in jax.sharding.get_mesh().shape.items())
  several = f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''
  if len(slices := sharding.by_slice()) > 1:
    several += f', {len(slices)} slices of {len(slices[0])}'
    mesh += ' (data across the slices, the others within each)'
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
  elif isinstance(cfg.model, Backbone):
    name = f'{name}:{cfg.model.name}' if cfg.model.name else name
    size = f', images of {"x".join(map(str, cfg.model.image_size))}x{cfg.model.in_channels}'
  left = f', and {frozen:,} that are not trained' if frozen else ''
  return f'model: {name}, {trained:,} parameters{left}{size}'


def _due(step: int, every: int) -> bool:
  return bool(every) and step % every == 0


_boundaries = itertools.count(1)  # of all sessions of this process


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[], bool]]:
  """A function for each boundary: whether all processes stop there, after SIGTERM or Ctrl-C."""
  if jax.process_count() > 1:
    # JAX listens for SIGTERM and agrees on the number of a call that no process has made: none may
    # be left out, as steps are where a run goes back.
    yield lambda: multihost_utils.reached_preemption_sync_point(next(_boundaries))
    return
  asked = threading.Event()
  signals = (signal.SIGTERM, signal.SIGINT)
  if threading.current_thread() is not threading.main_thread():
    signals = ()  # only the main thread may listen
  previous = {number: signal.signal(number, lambda *_: asked.set()) for number in signals}
  try:
    yield asked.is_set
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)
