"""What a run is made of: the one schema behind every file in `configs/`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from vit_jax.architecture import MODELS
from vit_jax.core import modules, overrides, schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.data.config import DataConfig
from vit_jax.evaluators import EVALUATORS
from vit_jax.optim.config import OPTIMIZERS, WINDOW
from vit_jax.tasks import TASKS
from vit_jax.training import hyper
from vit_jax.training.sizes import SizesConfig
from vit_jax.training.writers import WRITERS


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """How often the run reports its training metrics, and where to besides metrics.jsonl.

  Attributes:
    every: how often.
    writers: 'tensorboard' writes event files with curves and drawn predictions.
  """

  every: str = '50 steps'
  writers: tuple[str, ...] = ()

  def __post_init__(self):
    for name in self.writers:
      if name not in WRITERS:
        raise RunError(f'unknown log.writers {name!r}: {suggest(name, WRITERS)}')


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """A checkpoint every `every`, the newest `keep` of them kept.

  Attributes:
    every: how often; 'auto': as often as costs the least time, by what a save is measured to cost
      and by `mtbf` (Young, CACM 17(9), 1974).
    mtbf: hours from one failure of the whole job to the next, on average: those of one machine,
      over the number of machines.
    keep: how many.
    at: when else; these are kept for good, for other runs to `fork` from.
  """

  every: str = '10%'
  mtbf: float = 12.0
  keep: int = 2
  at: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.mtbf > 0:
      raise RunError(f'checkpoint.mtbf={self.mtbf} must be hours')
    if self.keep < 1:
      raise RunError(f'checkpoint.keep={self.keep} must be at least 1')


@dataclasses.dataclass(frozen=True)
class HealthConfig:
  """When processes that wait for one that does not get on are ended.

  Attributes:
    hang: seconds that a step, or the wait for its input, may take; ten usual steps, if that is
      more; 0: as long as it takes. A process alone is not ended: it says so.
    wait: seconds that anything else may take at a time: compiling, restoring, evaluating; 0: as
      long as it takes.
    silent: seconds without a sign of life, from 10 to 60, after which a process is taken for dead.
  """

  hang: float = 60.0
  wait: float = 1800.0
  silent: float = 20.0

  def __post_init__(self):
    for name in ('hang', 'wait'):
      if (value := getattr(self, name)) < 0:
        raise RunError(f'health.{name}={value} must be seconds, or 0')
    if not 10 <= self.silent <= 60:  # five signs of life; JAX's own patience
      raise RunError(f'health.silent={self.silent} must be from 10 to 60 seconds')


@dataclasses.dataclass(frozen=True)
class RewindConfig:
  """Going back after a spike: to an earlier checkpoint, and on with other data.

  PaLM (Chowdhery et al. 2022, section 5.1) went back to about 100 steps before a spike and passed
  over 200 to 500 batches, and the loss did not spike there again. Here the batches since that
  checkpoint are passed over, and as many more as `back` says. See `training.spikes`.

  Attributes:
    most: how often in a run; 0 for never.
    above: the loss is far up while it is more than this many times the median of the last 128.
    patience: steps in a row in which the loss is far up, or the update was skipped, that are a
      spike. A loss that is not finite is one at once.
    back: the run goes back to a checkpoint at least so far before the spike, and less than twice as
      far. It saves every so often, besides `checkpoint.every`, and keeps what it may go back to.
  """

  most: int = 0
  above: float = 1.5
  patience: int = 20
  back: str = '100 steps'

  def __post_init__(self):
    if self.most < 0:
      raise RunError(f'rewind.most={self.most} must be at least 0')
    if not 1 < self.above < math.inf:
      raise RunError(f'rewind.above={self.above} must be more than 1')
    if not 0 < self.patience <= WINDOW // 4:
      raise RunError(
        f'rewind.patience={self.patience} must be from 1 to {WINDOW // 4}: the median of '
        f'{WINDOW} losses would follow a longer spike'
      )


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank changes of frozen matrices are trained instead of these (LoRA, Hu et al. 2021).

  All else but `train` is frozen, as by task.frozen: saved once, without gradient and optimizer
  state. What task.frozen names itself gets no change either. The model is the sum of both wherever
  it is evaluated, saved or exported.

  Attributes:
    rank: of the changes; 0 for none.
    alpha: a change is alpha / rank times the product of its factors. Rank-stabilised scaling
      (Kalajdzievski 2023), alpha / sqrt(rank), is alpha * sqrt(rank) here.
    patterns: regular expressions of whole names of matrices that are changed.
    train: likewise of parameters that are trained in full: whatever no checkpoint has.
  """

  rank: int = 0
  alpha: float = 16.0
  patterns: tuple[str, ...] = ('.*attn/(query|value)/kernel',)
  train: tuple[str, ...] = ('(.*/)?(distill_)?head/.*',)

  def __post_init__(self):
    if self.rank < 0:
      raise RunError(f'lora.rank={self.rank} must be at least 0')
    if not 0 < self.alpha < math.inf:
      raise RunError(f'lora.alpha={self.alpha} must be more than 0')

  @property
  def scale(self) -> float:
    """Of the product of factors."""
    return self.alpha / self.rank


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
  """A jax.profiler trace of `steps` steps after the first `start` ones of this process; 0: none."""

  start: int = 10
  steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A run. Durations are strings: '500 steps', '1e6 examples', '90 epochs', '5%' of the total.

  Attributes:
    mesh: how the devices are laid out: 'data', every one of them works on a part of the batch;
      'fsdp', parameters and optimizer are cut over them, too; 'tensor', each works on a part of the
      heads and MLP features; or the sizes of these three axes, '2x4x1', one of which may be -1. Of
      several TPU slices each is laid out like that, with a part of the batch for each slice, so
      that 'fsdp' on four slices of 64 chips is '4x64x1'; of sizes, data must be a multiple of the
      slices.
    init: a checkpoint of any dialect to start from instead of random parameters. Its architecture
      takes the place of model.variant; the fields of model that are set change it as `vit_jax.load`
      does, and the head is replaced unless it is for the same classes by name. What of a file to
      read is written behind its path: 'dino.pth?part=teacher&prefix=backbone.&ignore=head.*'; of a
      run '?step=500'.
    inits: the same for single towers of a model that has several, by their names
      (`inits.image=clip.npz`): a checkpoint of such a tower, or of a model with one tower of that
      kind ('?tower=NAME' chooses among several). What is in none of them begins as without.
    fork: directory of a run that is identical up to some step, for example one that has not begun
      its cooldown: this run starts from the newest checkpoint that both have in common, and ends as
      if it had been trained from the start.
    lanes: runs of one model, trained side by side by one program. Lane i has the i-th of the values
      given for a hyperparameter: the seed, the learning rate and its ends (lr_first, lr_last), any
      field of type Schedule, and eps, clip, ema, skip_above and label_smoothing, by the end of its
      name (`lanes.lr=1e-3,3e-3`). Lanes of one seed share their batches.
    compilation_cache: directory, relative to the run's, where compiled programs are kept for the
      next start; '' for none. Where JAX_COMPILATION_CACHE_DIR is set, that is used.
  """

  total: str
  batch_size: int
  model: Any = schema.choice(MODELS, 'vit')
  task: Any = schema.choice(TASKS, 'classification')
  data: DataConfig
  optim: Any = schema.choice(OPTIMIZERS, 'adamw')
  evals: dict[str, Any] = schema.choices(EVALUATORS, 'classification')
  mesh: str = 'data'
  seed: int = 0
  init: str = ''
  inits: dict[str, str] = schema.texts()
  fork: str = ''
  lora: LoraConfig
  sizes: SizesConfig
  lanes: dict[str, Any] = schema.tuples()
  compilation_cache: str = '../compilation_cache'
  log: LogConfig
  checkpoint: CheckpointConfig
  health: HealthConfig
  rewind: RewindConfig
  profile: ProfileConfig

  def __post_init__(self):
    if not 0 <= self.seed < 2**32:
      raise RunError(f'seed={self.seed} must be at least 0 and less than 2^32')

  @property
  def lane_count(self) -> int:
    """How many lanes there are; 0 for a run alone."""
    return max(map(len, self.lanes.values()), default=0)


# Fields that decide where and how fast a run goes, not what it computes (beyond rounding): a run
# may be continued with other values of these. Those of the model are of its towers, too.
FREE = (
  'mesh', 'model.scan', 'model.remat', 'optim.accumulate', 'data.workers', 'data.cache',
  'data.on_corrupt', 'data.audit', 'data.source.dir', 'data.source.manual_dir', 'fork',
  'compilation_cache', 'log', 'checkpoint', 'health', 'profile',
)  # fmt: skip


def complete(
  config: Mapping[str, Any], insisted: Collection[str] = ()
) -> ml_collections.ConfigDict:
  """The locked ConfigDict of a whole run from the fields a config file sets.

  Every field of `Config` is present, so that each can be changed on the command line.

  Args:
    config: the fields.
    insisted: dotted names of those in which the file comes before a checkpoint that the run starts
      from, as the command line does.
  """
  # Fields keep the type that they have, but for those that are numbers or texts.
  stand = schema.StandIns(
    config_dict.placeholder, lambda value: config_dict.FieldReference(value, field_type=object)
  )
  tree = schema.complete(Config, config, stand=stand)
  for _, section, _ in _started(tree):
    if 'variant' in section:
      section['variant'] = ''  # the checkpoint takes its place
  tree = ml_collections.ConfigDict(tree)
  object.__setattr__(tree, _INSISTED, tuple(insisted))  # it is no field
  return tree.lock()


_INSISTED = '_insisted'


def insisted(config: ml_collections.ConfigDict) -> set[str]:
  """The second argument of `complete`, of what `load` gives."""
  return set(vars(config).get(_INSISTED, ()))


def load(name: str) -> ml_collections.ConfigDict:
  """The configuration of a file, 'configs/tfds.py' or 'configs/tfds.py:ARGUMENT'."""
  found = modules.call(name, 'get_config')
  if not isinstance(found, Mapping | ml_collections.ConfigDict):
    raise RunError(f'{name}: get_config returns {found!r}, not the result of `complete`')
  own = insisted(found) if isinstance(found, ml_collections.ConfigDict) else ()
  return complete(_plain(found), own)


def override(config: Any, items: Sequence[tuple[str, str]]) -> ml_collections.ConfigDict:
  """`config` with fields set by text, ('model.width', '64'); see `core.overrides`."""
  return complete(overrides.apply(Config, _plain(config), items))


# Of a run that starts from a checkpoint: fields of the model that the checkpoint does not decide,
# and fields of other sections that it does.
OWN = (
  'name', 'num_classes', 'dtype', 'scan', 'remat', 'dropout', 'drop_path', 'drop_path_mode',
  'patch_dropout', 'mup_width', 'mup_depth', 'initial', 'head_bias', 'memory',
)  # fmt: skip
_TAKEN = ('mean', 'std')


def _started(tree: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
  """The sections that checkpoints decide: dotted names, fields, and which checkpoint."""
  if path := tree['init']:
    return [(name, section, f'init={path}') for name, section in _sections(tree['model'], 'model')]
  return [
    (name, section, f'inits.{tower}={path}')
    for tower, path in tree['inits'].items() if isinstance(tree['model'].get(tower), Mapping)
    for name, section in _sections(tree['model'][tower], f'model.{tower}')
  ]  # fmt: skip


def _sections(tree: Any, name: str) -> list[tuple[str, Any]]:
  """A section and all those in it, by dotted name."""
  inner = [(key, each) for key, each in tree.items() if isinstance(each, Mapping)]
  return [(name, tree), *(found for key, e in inner for found in _sections(e, f'{name}.{key}'))]


def started(
  config: ml_collections.ConfigDict, given: Collection[str]
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """With `init` the checkpoint decides what the model is, and the command line what changes.

  Args:
    config: of a file, with the fields of the command line set.
    given: dotted names of these fields, and of those in which the file insists.

  Returns:
    The configuration without what the checkpoint decides, and what the file said of that: wishes,
    of which the start of the run names those that did not come true.
  """
  tree, wishes = _plain(config), {}
  sections = _started(tree)
  if any('image_size' in section for _, section, _ in sections):
    sections.append(('task', {name: tree['task'].get(name) for name in _TAKEN}, ''))
  for section, fields, where in sections:
    if f'{section}.variant' in given:
      raise RunError(
        f'{section}.variant and {where} contradict each other: the checkpoint decides the '
        'architecture; leave one of them out'
      )
    node = functools.reduce(operator.getitem, section.split('.'), tree)
    several = any(isinstance(value, Mapping) for value in fields.values())
    for field, value in fields.items():
      name = f'{section}.{field}'
      # What a composition has beside its towers is compared when the checkpoint is open.
      own = field in OWN or (several and field != 'variant')
      if name not in given and value is not None and not (own and section != 'task'):
        node[field] = '' if field == 'variant' else None
        if field != 'variant':
          wishes[name] = value
  return complete(tree), wishes


def check(config: Any) -> Config:
  """A configuration, built, with all that can be checked before JAX is there and data are open.

  Raises:
    RunError: for unknown names, values of a wrong type, durations that cannot be read.
  """
  cfg: Config = schema.build(Config, config)
  towers = getattr(cfg.model, 'towers', {})
  for name, path in cfg.inits.items():
    if not path:
      raise RunError(f'inits.{name} is empty: give the path of a checkpoint, or leave it out')
    if name not in towers:
      inside = suggest(name, towers) if towers else 'it is one tower; start it from init'
      raise RunError(f'inits.{name}: {cfg.model.kind} has no tower of that name: {inside}')
  if cfg.init and cfg.inits:
    raise RunError('init and inits contradict each other: all towers start from init')
  if not cfg.init and not cfg.inits:
    cfg.model.resolve()
  for name, network in cfg.task.networks.items():
    if not network.init:
      raise RunError(f'task.{name}.init is empty: give the path of the checkpoint of the {name}')
  if cfg.rewind.most and cfg.lane_count:
    raise RunError(
      f'rewind.most={cfg.rewind.most}: lanes go through the data together, and none can go back '
      'alone; optim.skip_above works on each'
    )
  if cfg.batch_size < 1:
    raise RunError(f'batch_size={cfg.batch_size} must be at least 1')
  durations = {
    'optim.warmup': cfg.optim.warmup, 'optim.cooldown': cfg.optim.cooldown,
    'log.every': cfg.log.every, 'checkpoint.every': cfg.checkpoint.every,
    'rewind.back': cfg.rewind.back,
    **{f'checkpoint.at[{i}]': at for i, at in enumerate(cfg.checkpoint.at)},
    **{f'evals.{name}.every': evaluator.every for name, evaluator in cfg.evals.items()},
  }  # fmt: skip
  sizes = dict(batch_size=cfg.batch_size, epoch=1)
  steps(cfg.total, **sizes, total=None, field='total')
  for field, duration in durations.items():
    steps(duration, **sizes, total=1, field=field)
  for lane in [cfg, *hyper.lanes(cfg)]:
    written = {'optim.schedule': lane.optim.written} if lane.optim.written else {}
    for name, schedule in (schema.scheduled(lane) | written).items():
      for piece in schedule.pieces:
        if piece.duration:
          steps(piece.duration, **sizes, total=1, field=name)
  return cfg


def _plain(config: Any) -> dict[str, Any]:
  """A ConfigDict or any mapping as nested dicts, tuples kept."""
  return config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)


def run_hash(config: Mapping[str, Any]) -> str:
  """A short name for everything in `config` that decides what the run computes."""
  text = json.dumps(without_free(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def without_free(config: Mapping[str, Any], path: str = '') -> dict[str, Any]:
  """`config` as a plain dict, less the fields of `FREE`."""
  return {
    key: without_free(value, f'{path}{key}.') if isinstance(value, Mapping) else value
    for key, value in config.items()
    if not is_free(f'{path}{key}')
  }


def is_free(name: str) -> bool:
  """Whether a run may be continued with another value of a field."""
  name = re.sub(r'^model\.(\w+\.)*', 'model.', name)  # of a tower as of a model
  return any(f'{name}.'.startswith(f'{known}.') for known in FREE)


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """`config` as plain JSON types: tuples become lists."""
  return to_plain(config.to_dict())


def to_plain(config: Mapping[str, Any]) -> dict[str, Any]:
  """Likewise, of a mapping."""
  return json.loads(json.dumps(config))


_UNITS = {'': 'step', 'step': 'step', 'example': 'example', 'epoch': 'epoch', '%': '%'}


def steps(
  duration: str, *, batch_size: int, epoch: int, total: int | None = None, field: str = 'duration'
) -> int:
  """A duration in optimizer steps, rounded to the nearest, and at least 1 unless it is 0.

  Args:
    duration: a number and a unit: step(s), example(s), epoch(s) or %; no unit means steps.
    batch_size: examples per step.
    epoch: examples per epoch.
    total: steps in the whole run, for durations in percent.
    field: named in errors.

  Raises:
    RunError: if the duration cannot be read, or is in percent with no total to refer to.
  """
  match = re.fullmatch(r'(\d[\d_]*(?:\.\d+)?(?:e\d+)?)\s*(%|[a-z]*?)s?', duration.strip())
  if not match or match[2] not in _UNITS:
    raise RunError(
      f'{field}={duration!r} is not a duration: write 500 steps, 1e6 examples, 90 epochs or 5%'
    )
  number, unit = float(match[1]), _UNITS[match[2]]
  if unit == '%' and total is None:
    raise RunError(f'{field}={duration!r}: the total length cannot be in percent')
  scale = {
    'step': 1,
    'example': 1 / batch_size,
    'epoch': epoch / batch_size,
    '%': (total or 0) / 100,
  }
  return max(math.floor(number * scale[unit] + 0.5), 1 if number else 0)
