"""Evaluation of the checkpoints of a run as they appear, on other devices than those that train."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from vit_jax.checkpoints.store import NoneSoundError
from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError
from vit_jax.nn import sharding
from vit_jax.processes import exchange, health
from vit_jax.training import config as config_lib
from vit_jax.training import lanes, report
from vit_jax.training.experiment import Experiment
from vit_jax.training.left import FOLLOWED, followed
from vit_jax.training.progress import Reporter, say
from vit_jax.training.workdir import Workdir

_EVERY = 20.0  # seconds, between two looks at the run


def follow(
  workdir: str, overrides: Sequence[tuple[str, str]] = (), *, wait: float = 7200.0,
  pause: Callable[[float], object] = time.sleep,
) -> dict[int, dict[str, Any]]:  # fmt: skip
  """Evaluates each checkpoint of a run as it appears, until the run is complete.

  Scores of step N go to followed/N.json in the directory of the run, whose other files are not
  touched; what is there is not done again. The newest comes first: an older one may be deleted
  before it is read, and is then passed over.

  Args:
    workdir: of the run, which may not have begun.
    overrides: fields of its configuration that are other for these evaluations, by text.
    wait: for how many seconds nothing new may appear.
    pause: called with the seconds until the next look.

  Returns:
    Values by name, {'test/top1': 0.98, ...}, by step.

  Raises:
    RunError: if nothing appears for too long, or the run and its data cannot be read.
  """
  mesh = dict(overrides).get('mesh', 'data')
  with jax.set_mesh(sharding.make_mesh(mesh)):
    return _Follower(Workdir(workdir), overrides).run(wait, pause)


class _Follower:
  """Evaluates the checkpoints of one run."""

  def __init__(self, run: Workdir, overrides: Sequence[tuple[str, str]]):
    self.workdir, self.overrides = run, overrides
    self.checkpoints = run.checkpoints()
    self.experiment: Experiment | None = None
    self.how: dict[str, Any] = {}  # what decides the scores besides the checkpoint
    self.useless: set[int] = set()

  def run(self, wait: float, pause: Callable[[float], object]) -> dict[int, dict[str, Any]]:
    """See `follow`."""
    say(f'following {self.workdir}: its checkpoints are evaluated as they appear')
    waited = 0.0
    while True:
      health.reached('wait')
      complete, step = exchange.from_first(self._next)
      if step is not None and self._evaluated(step):
        waited = 0.0
      elif step is None and complete:
        return self._end()
      elif waited >= wait:
        raise RunError(
          f'{self.workdir} is not complete, and for {wait / 60:.0f} minutes no checkpoint has '
          'appeared: see whether the run is still there. The same command goes on from here.'
        )
      elif step is None:
        if not waited:
          say(f'waiting for the next checkpoint, {wait / 60:.0f} minutes at most')
        pause(_EVERY)
        waited += _EVERY

  def _next(self) -> tuple[bool, int | None]:
    """Whether the run is complete, and the newest step that is to be evaluated, if there is one."""
    if not self.workdir.exists:
      return False, None
    complete = bool(self.workdir.result())  # asked first: whatever it saved is there by then
    if not self.how:
      config = config_lib.override(self.workdir.record(), self.overrides)
      record = config_lib.to_dict(config)
      self.how = {name: record[name] for name in ('evals', 'data', 'task')}
    steps = self.checkpoints.steps
    self.useless.intersection_update(steps)
    for step in reversed(steps):
      if step not in self.useless and not self._is_done(step):
        return complete, step
    return complete, None

  def _is_done(self, step: int) -> bool:
    path = self._path(step)
    if not path.exists():
      return False
    left = paths.read_object(path)
    return left['how'] == self.how and left['rewound'] == self._rewound(step)

  def _rewound(self, step: int) -> int:
    """How often a run had gone back: its steps of the same number may be others since then."""
    try:
      return len(self.checkpoints.peek(step)[1].get('history', {}).get('rewound', []))
    except RunError:  # it is gone, or damaged, which reading it will show
      return -1

  def _evaluated(self, step: int) -> bool:
    """Evaluates a checkpoint, unless it is no longer there."""
    health.reached('restore', step)
    try:
      experiment = self.experiment or self._opened(step)
      found = self.checkpoints.newest(experiment.to_restore()[0], [step])
    except NoneSoundError as error:
      gone = exchange.from_first(lambda: step not in self.checkpoints.steps)
      if gone:
        say(f'the checkpoint of step {step} was deleted before it was read')
      else:
        say(str(error))
        self.useless.add(step)
      return False
    scores, _ = experiment.evaluate(self.evaluators, experiment.split(found.state))
    if jax.process_index() == 0:
      path = self._path(step)
      with paths.writing(path):
        path.parent.mkdir(exist_ok=True)
      rewound = len(found.extra.get('history', {}).get('rewound', []))
      paths.write_json(path, {'step': step, 'values': scores, 'rewound': rewound, 'how': self.how})
    self.reporter.table(f'{self.workdir}: step {step}', scores)
    return True

  def _opened(self, step: int) -> Experiment:
    """The data, once there is a checkpoint that says what the model is."""
    known = exchange.from_first(self.workdir.known)  # what is there may change between two looks
    if known is None:
      raise NoneSoundError(f'no checkpoint of {self.workdir} can be read, that of {step} neither')
    config = config_lib.override(self.workdir.record(), self.overrides)
    cfg = schema.build(config_lib.Config, config_lib.to_dict(config))
    experiment = lanes.experiment(cfg, known, training=False)
    experiment.adopt(self.workdir.frozen(experiment.to_restore()[1]))
    self.experiment, self.evaluators = experiment, experiment.evaluators()
    if not self.evaluators:
      raise RunError(
        f'{self.workdir} has no evaluations: add one, such as --config.evals.test.name='
        'classification'
      )
    self.reporter = Reporter(1, 0, visible=jax.process_index() == 0)
    self.reporter.close()
    self.reporter.lines(experiment.summary(self.evaluators))
    return experiment

  def _path(self, step: int) -> paths.Path:
    return self.workdir.path / FOLLOWED / f'{step}.json'

  def _end(self) -> dict[int, dict[str, Any]]:
    """All scores; the report of the run gets them."""
    if jax.process_index() == 0:
      try:
        report.write(self.workdir.path)
      except Exception as error:
        say(f'report.html is not written: {type(error).__name__}: {error}')
    found = exchange.from_first(lambda: followed(self.workdir.path, self.workdir.result() or {}))
    say(f'{self.workdir} is complete: {len(found)} checkpoints are evaluated')
    return found
