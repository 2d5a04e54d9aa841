"""A configuration brought to life: data opened, sizes known, state restored or initialised."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import zlib
from collections.abc import Callable, Generator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vit_jax import models, tasks
from vit_jax.architecture import Composition, EncoderConfig, encoders
from vit_jax.architecture.card import Card, about
from vit_jax.convert import notes, read
from vit_jax.convert.adapt import of_sizes, resized
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.costs.step import Pass
from vit_jax.costs.step import step as step_flops
from vit_jax.data import folds, pipeline
from vit_jax.data.audit import audit, with_bands, with_statistics
from vit_jax.data.classes import matched
from vit_jax.data.config import ORDERS
from vit_jax.data.examples import NoSplitError, check_classes, with_names
from vit_jax.data.fields import Field, require
from vit_jax.data.order import Order, drawn
from vit_jax.data.pipeline import iterate, probe, train_batches
from vit_jax.data.rows import group
from vit_jax.data.sources import opened_by
from vit_jax.data.views import View
from vit_jax.evaluators import EVALUATORS
from vit_jax.evaluators.evaluator import Evaluation, Scores, prepare
from vit_jax.nn import lora, sharding, tree
from vit_jax.nn.encoder import is_unrolled, split_layers, stack_layers
from vit_jax.nn.sharding import BatchLayout
from vit_jax.optim import schedules
from vit_jax.processes import exchange
from vit_jax.tasks.task import Coupled, Task
from vit_jax.training import config as config_lib
from vit_jax.training import hyper as hyper_lib
from vit_jax.training.hyper import Hyper
from vit_jax.training.initial import owned, said, starts
from vit_jax.training.state import State, init_state, train_step
from vit_jax.training.workdir import Known

_FACTORS = zlib.crc32(b'lora')  # of the key that draws them
# What was said of data in this process, by what they are.
_AUDITED: dict[str, list[str]] = {}


class Experiment:
  """Everything that training and evaluating share. Create it under the mesh that it will use.

  Attributes:
    config: the typed configuration, the model's sizes resolved.
    source: the training data, where it trains.
    models: the model at each of the sizes that steps have; one, unless there are several sizes.
    rows: what becomes of an example, at each of these sizes.
    layout: of training batches over processes and devices.
    decided: what the configuration leaves unset, as it was decided; see `schema.decided`.
    total: steps of the run.
    abstract_state: shapes, dtypes and layouts of the state as checkpoints hold it.
    frozen: parameters that are not trained, in the tree of the model, None where one is, with
      networks of the task, if it has some; their shapes until `init` or `adopt`.
    fields: of the examples, with the classes that the model has.
    notes: what was decided about the run's start, a line each.
    layer_axis: of arrays of the state that hold all layers.
  """

  layer_axis = 0

  def __init__(
    self, cfg: config_lib.Config, known: Known | None = None,
    wishes: Mapping[str, Any] | None = None, *, training: bool = True,
  ):  # fmt: skip
    """Opens everything but checkpoints.

    Args:
      cfg: of the run.
      known: of the run's checkpoints, if it has any: what `cfg` leaves open was decided then, from
        files that may be gone by now, and classes keep the numbers that they had.
      wishes: see `config.started`.
      training: whether the training data are opened and durations counted; not needed to evaluate a
        run that is `known`.

    Raises:
      RunError: for anything in `cfg` that is contradictory or not there.
    """
    asked = cfg
    if known:
      cfg = schema.filled(cfg, known.decided)
      cfg = dataclasses.replace(cfg, task=cfg.task.again(known.task))
    self._starts, self._new = [] if known else starts(cfg), not known
    self.layout = BatchLayout(cfg.batch_size)
    classed = cfg.task.classed
    if training or not known:
      with opened_by(exchange.from_first):
        self.source = cfg.data.open(cfg.data.split)
    self.fields: dict[str, Field] = known.fields if known else {}
    if not self.fields:
      own = type(cfg.task).settled is not Task.settled
      self.fields = with_statistics(self.source) if own else dict(self.source.fields)
    model, card = cfg.model, Card('vit_jax', (1, 1), (0.5,), (0.5,), 'area')
    for start in self._starts:
      if classed in self.fields:
        names = start.set_classes(self.fields[classed].names)
        self.fields = with_names(self.fields, classed, names)
      else:
        name = tasks.described(cfg.task)['name']
        kept = start.set_outputs(name, self.fields.get('target'))
        kept = {n: v for n, v in kept.items() if getattr(cfg.task, n) is None}
        cfg = dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, **kept))
      model = start.within(model)
      task, lines = cfg.task.begun(start.card.task, start.path, start.tower)
      start.notes += lines
      cfg = dataclasses.replace(cfg, task=task)
    card = next((start.card for start in self._starts if start.sees), card)
    if known:
      model = _with_classes(model, known.model)
    if not known and (images := cfg.task.measured(model.resolve(), self.fields)):
      skip = pipeline.log if cfg.data.on_corrupt == 'skip' else None
      self.fields = exchange.from_first(lambda: with_bands(self.source, self.fields, images, skip))
    cfg = dataclasses.replace(cfg, task=cfg.task.settled(self.fields))
    model = cfg.task.fitted(model, self.fields)
    model = cfg.task.adapt(model.resolve(), self.fields)
    self._owned = [] if known else owned(cfg.task, model, self.fields)
    found = {each.name: each.network for each in self._owned}
    cfg = dataclasses.replace(cfg, task=dataclasses.replace(cfg.task, **found))
    self.config = dataclasses.replace(_prepared(cfg, card), model=model)
    self.decided = schema.decided(asked, self.config)
    self.notes: list[str] = [
      *cfg.task.notes(model, self.fields),
      *said(self._starts, wishes or {}, model, cfg.task, self.config.task),
      *(each.note for each in self._owned),
    ]
    data = self.config.data
    cfg.sizes.check(model, cfg.task)
    self.models = [of_sizes(model, sizes) for sizes in cfg.sizes.every]
    self.rows = [
      self.config.task.rows(each, self.fields, data.view, train=True) for each in self.models
    ]
    if training:
      require(self.source.fields, self._needs, self.source.name)
      if 'label' in self._needs:
        check_classes(self.source)
    self.abstract_state: State
    self.abstract_state, self.frozen = jax.eval_shape(self._init, self._seeds())
    self._check_new()
    self._about_data: list[str] = []
    if training:
      self._prepare_training(cfg)

  def _prepare_training(self, cfg: config_lib.Config) -> None:
    self.source = matched(self.source, self.fields, self._needs)
    self._skip = pipeline.log if cfg.data.on_corrupt == 'skip' else None
    self._about_data = [*self.source.summary(), *probe(self.rows[0], self.source, skip=self._skip)]
    self.total = self._steps(cfg.total, 'total', total=None)
    if self.total < 1:
      raise RunError(f'total={cfg.total!r} is less than one step')
    self._durations = dict(
      total=self.total,
      warmup=self.steps(cfg.optim.warmup, 'optim.warmup'),
      cooldown=self.steps(cfg.optim.cooldown, 'optim.cooldown'),
    )
    if still := [pattern for pattern, factor in cfg.optim.lr_scale if not factor]:
      self.notes.append(
        f'optim.lr_scale is 0 for {", ".join(still)}: that still has a gradient and optimizer '
        'state, which task.frozen saves'
      )
    towers = encoders(self.config.model).values()
    if cfg.optim.layer_decay < 1 and not any(isinstance(t, EncoderConfig) for t in towers):
      raise RunError(
        f'optim.layer_decay={cfg.optim.layer_decay}: a {self.config.model.kind} has no encoder '
        'whose layers it could count; optim.lr_scale is for any parameters by name'
      )
    task = self.config.task
    if cfg.optim.accumulate > 1 and task.coupled and not isinstance(task, Coupled):
      raise RunError(
        f'optim.accumulate={cfg.optim.accumulate}: the loss of {type(task).__name__} couples the '
        'examples of a batch, and cannot be computed in parts'
      )
    if cfg.optim.ema and type(task).judged is not Task.judged:
      raise RunError(
        f'optim.ema={cfg.optim.ema}: {type(task).__name__} evaluates and exports a network of its '
        'own, and nobody would look at the average: leave it out'
      )
    if len(self.models) > 1:
      self.notes.append(cfg.sizes.described(self.models, self.total))
    count = lambda duration: self.steps(duration, 'a schedule')  # noqa: E731
    own = hyper_lib.varied(self.config)
    self._tables = [hyper_lib.Table(each, count, own, **self._durations) for each in self._alone()]
    schedules.check(
      cfg.optim, **self._durations, batch_size=cfg.batch_size, devices=sharding.shards('batch')
    )

  def steps(self, duration: str, field: str) -> int:
    """A duration in steps; at least 1, unless it is 0."""
    return self._steps(duration, field, total=self.total)

  def _steps(self, duration: str, field: str, *, total: int | None) -> int:
    return config_lib.steps(
      duration, batch_size=self.examples, epoch=len(self.source), total=total, field=field
    )

  @property
  def _needs(self) -> Mapping[str, Any]:
    return self.rows[0].needs

  def size(self, step: int) -> int:
    """Which of `models`, and of `rows`, step number `step` has."""
    return self.config.sizes.at(step, self.total)

  @property
  def examples(self) -> int:
    """How many examples a batch takes, those included that cannot be used."""
    takes, gives, _ = group(self.rows[0])
    if self.config.batch_size % gives:
      raise RunError(
        f'batch_size={self.config.batch_size} is no multiple of {gives}, the rows that are made '
        'together'
      )
    return self.config.batch_size // gives * takes

  @property
  def examples_per_step(self) -> int:
    """How many the compiled step trains on."""
    return self.examples

  @property
  def batch_axes(self) -> tuple[int, ...]:
    """Sizes of the axes that batches have before that of the examples."""
    return ()

  def hyper(self, step: int) -> Hyper:
    """The hyperparameters of step number `step`, an argument of the compiled step."""
    return self._tables[0](step)

  def _alone(self) -> list[config_lib.Config]:
    """The configuration of each run that is trained."""
    return [self.config]

  def batches(self, start: int) -> Generator[dict[str, jax.Array], None, None]:
    """The training batches from step `start` on, on the devices; `close()` when done."""
    return self._batches(self.config.seed, start)

  def _batches(self, seed: int, start: int) -> Generator[dict[str, jax.Array], None, None]:
    cfg, layout = self.config, self.layout
    batches = train_batches(
      self.rows, self.source, cfg.batch_size, layout.rows, self._order(seed), seed, skip=self._skip,
      size=functools.partial(cfg.sizes.at, total=self.total),
    )  # fmt: skip
    with contextlib.closing(iterate(batches, start=start, workers=cfg.data.workers)) as stream:
      for batch in stream:
        yield layout.place(batch)

  def _order(self, seed: int) -> Order:
    data = self.config.data
    return drawn(self.source, seed, data.order, data.repeats)

  def init(self) -> State:
    """The initial state; equal seeds give equal values on any mesh. Sets `frozen`."""
    taken = self._taken() if self._starts or self._owned else {}
    state, frozen = jax.jit(self._init)(self._seeds(), taken)
    if self._new:
      model = lambda: tree.merge(self._of_one(state.model), frozen)  # noqa: E731
      self.config.task.verify(model, self.source)
    self.adopt(frozen)
    return state

  def _of_one(self, model: Any) -> Any:
    """Trainable parameters of a run alone."""
    return model

  def _taken(self) -> dict[str, jax.Array]:
    """Parameters that come from checkpoints, on the devices, by name."""
    leaves: dict[str, Any] = {}
    for start in self._starts:
      leaves |= start.leaves()
    for each in self._owned:
      leaves |= {f'networks/{each.name}/{name}': leaf for name, leaf in each.leaves().items()}
    whole = jax.eval_shape(lambda: tree.merge(*self._divided(self._model())))
    networks = jax.eval_shape(lambda: {'networks': self._networks({})})
    wanted = tree.flatten(sharding.fill_shardings(whole))
    wanted |= tree.flatten(sharding.fill_shardings(networks))
    return read.placed(leaves, {name: wanted[name] for name in leaves})

  def adopt(self, frozen: Any) -> None:
    """Takes frozen parameters, as checkpoints hold them, for the steps and evaluations to come."""
    self.frozen = split_layers(frozen)

  def stacked_frozen(self) -> Any:
    """The inverse of `adopt`: frozen parameters as checkpoints hold them."""
    return stack_layers(self.frozen)

  def to_restore(self) -> tuple[State, Any]:
    """Shapes of state and frozen parameters as checkpoints are read for `split` and `adopt`."""

    def apart(held: Any, axis: int) -> Any:
      if not is_unrolled(held):
        return held
      return stack_layers(jax.eval_shape(lambda held: split_layers(held, axis), held), axis)

    return apart(self.abstract_state, self.layer_axis), apart(self.frozen, 0)

  def _seeds(self) -> Any:
    """The argument of `_init`."""
    return np.uint32(self.config.seed)

  def _check_new(self) -> None:
    """Raises RunError if low-rank changes freeze what has never been trained."""
    if not self.config.lora.rank or not self._starts:
      return
    known = {name for start in self._starts for name in start.trained}
    own = set(tree.flatten(tree.own(self.frozen))) - known
    if new := [n for n in own if not any(re.fullmatch(p, n) for p in self.config.task.frozen)]:
      raise RunError(
        f'lora.rank={self.config.lora.rank} would freeze what is new, and has random values: '
        f'{notes.names(sorted(new))}. Name it in lora.train, which is {self.config.lora.train}'
      )

  def _init(self, seed: Any, taken: Mapping[str, jax.Array] = MappingProxyType({})) -> Any:
    """The initial state, and the frozen parameters; those of `taken` are not drawn."""
    cfg = self.config
    networks = self._networks(taken)
    own = {name: leaf for name, leaf in taken.items() if not name.startswith('networks/')}
    model, frozen = self._divided(self._model(seed, own), seed)
    frozen = tree.Beside(frozen, networks) if networks else frozen
    return init_state(model, cfg.optim, cfg.task, jax.random.key(seed)), frozen

  def _networks(self, taken: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Those of the task by name: parameters are those of `taken`, or only shapes count."""
    found = {}
    for name, network in self.config.task.networks.items():
      made = models.create(network.config, nnx.Rngs(0))
      leaves = {**tree.flatten(made), **tree.inside(taken, f'networks/{name}')}
      made = tree.unflatten(made, leaves)
      found[name] = jax.tree.map(lambda leaf, to=network.dtype: leaf.astype(to), made)
    return found

  def _divided(self, model: Any, seed: Any = 0) -> tuple[Any, Any]:
    """Parameters that are trained, and frozen ones in the type in which they are kept."""
    task, change = self.config.task, self.config.lora
    model, frozen = tree.partition(model, task.frozen, 'task.frozen')
    if change.rank:
      model, frozen = lora.divided(
        model, frozen, rank=change.rank, scale=change.scale, patterns=change.patterns,
        train=change.train, key=jax.random.fold_in(jax.random.key(seed), _FACTORS),
      )  # fmt: skip
    return model, jax.tree.map(lambda leaf: leaf.astype(task.frozen_dtype), frozen)

  def _model(self, seed: Any = 0, taken: Mapping[str, jax.Array] = MappingProxyType({})) -> Any:
    model = models.create(self.config.model, nnx.Rngs(jax.random.key(seed)))
    return tree.unflatten(model, {**tree.flatten(model), **taken})

  def split(self, state: State) -> State:
    """A state as `train_step` is fastest with: see `encoder.split_layers`."""
    return split_layers(state, self.layer_axis)

  def stack(self, state: State) -> State:
    """The inverse of `split`, as checkpoints hold a state; computes nothing."""
    return stack_layers(state, self.layer_axis)

  def abstract_batch(self, size: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and layouts of the batches of steps of a size."""
    mesh, lead = jax.sharding.get_mesh(), self.batch_axes
    place = NamedSharding(mesh, P(*(None,) * len(lead), sharding.RULES['batch']))
    shape = (*lead, self.config.batch_size)
    return {
      name: jax.ShapeDtypeStruct((*shape, *array.shape), array.dtype, sharding=place)
      for name, array in pipeline.arrays(self.rows[size]).items()
    }

  def train_step(self, size: int = 0) -> Any:
    """The jitted step: (state, frozen, batch, hyper) -> (state, metrics); donates the state.

    Args:
      size: of its images and patches: which of `models`.
    """
    return jax.jit(functools.partial(self._step, size), donate_argnums=0)

  def _step(
    self, size: int, state: State, frozen: Any, batch: Any, hyper: Hyper
  ) -> tuple[State, dict[str, Any]]:
    names = hyper_lib.names(self.config)
    cfg = hyper_lib.within(self.config, hyper.named(names))
    return train_step(
      state, frozen, batch, hyper, task=cfg.task, config=cfg.optim, names=names,
      sized=self.sized(size),
    )  # fmt: skip

  def sized(self, size: int) -> Callable[[Any], Any]:
    """What makes of the model of the run that of steps of a size."""
    if self.models[size] == self.config.model:
      return lambda model: model
    return lambda model: resized(model, self.models[size])

  def flops(self, *, examples: int = 0, size: int | None = None) -> float:
    """FLOPs of training on one example once, by the passes of the task.

    Args:
      examples: on each device at a time; see `costs.step.step`.
      size: of images and patches; by default the average over the run.
    """
    if size is None:
      every = [self.flops(examples=examples, size=size) for size in range(len(self.models))]
      if len(every) == 1:
        return every[0]
      shares = self.config.sizes.shares(self.total)
      return sum(share * flops for share, flops in zip(shares, every, strict=True))
    model = self.models[size]
    passes = self.config.task.passes(model)
    leaves = jax.tree_util.tree_leaves_with_path(self.abstract_state.model)
    # The gradient of a factor is made of that of the whole matrix.
    trained = {tree.whole(tree.group(path)): leaf for path, leaf in leaves}

    def own(one: Pass) -> Pass:
      """With the names of what is trained, where it is of the model or one of its towers.

      A composition may be passed through in part, as one of fewer layers.
      """
      if one.grad == 'full' and isinstance(model, Composition) and type(one.model) is type(model):
        return one._replace(trained=trained)
      for name, tower in {'': model, **encoders(model)}.items():
        if one.model is tower:
          return one._replace(trained=tree.inside(trained, name))
      return one

    some = self.config.task.frozen or self.config.lora.rank
    return step_flops(map(own, passes) if some else passes, examples=examples)

  @property
  def origins(self) -> dict[str, str]:
    """Commits of the checkpoints on the hub that the run starts from, by the field of each."""
    return {start.field: start.revision for start in self._starts if start.revision}

  @property
  def card(self) -> Card:
    """What the trained model will expect of images."""
    cfg = self.config
    crops = [evaluator.crop for evaluator in cfg.evals.values()]
    card = cfg.task.card(cfg.model, crops[0] if crops else cfg.data.crop, self.fields)
    fields = {name: dataclasses.asdict(field) for name, field in self.fields.items()}
    return dataclasses.replace(card, task=tasks.described(cfg.task), fields=fields)

  def described(self) -> dict[str, Any]:
    """What a checkpoint says: the model that is judged, where its arrays are, task and rows."""
    state = jax.tree_util.tree_map_with_path(
      lambda path, _: tree.name(path), self.abstract_state, is_leaf=tree.is_low_rank
    )
    frozen = tree.renamed('frozen/{}'.format, stack_layers(self.frozen))
    model = self.config.task.judged(state, frozen)
    where = [there.removesuffix(own) for own, there in tree.flatten(model).items()]
    change = self.config.lora
    return {
      **about(model.config, self.card), 'judged': list(dict.fromkeys(where)), **self._purpose(),
      **({'lora': {'scale': change.scale}} if change.rank else {}),
    }  # fmt: skip

  def _purpose(self) -> dict[str, Any]:
    """What a checkpoint says of its task, and of the rows that the task judges by."""
    cfg = self.config
    crop = next((evaluator.crop for evaluator in cfg.evals.values()), cfg.data.crop)
    rows = cfg.task.rows(cfg.model, self.fields, View(crop), train=False)
    return {
      'task': tasks.described(cfg.task),
      'rows': {
        'name': type(rows).__name__, 'needs': dict(rows.needs),
        'arrays': {n: [np.dtype(a.dtype).name, list(a.shape)] for n, a in rows.arrays().items()},
      },
    }  # fmt: skip

  def evaluators(self) -> dict[str, Evaluation]:
    """The evaluations of the run by name, their data opened.

    Raises:
      RunError: if their data are not there, or cannot be used.
    """
    config, prepared = self.config, {}
    for name, evaluator in config.evals.items():
      try:
        with opened_by(exchange.from_first):
          prepared[name] = prepare(
            evaluator, config.task, config.model, config.data, batch_size=config.batch_size,
            fields=self.fields, lanes=config.lane_count,
          )  # fmt: skip
      except NoSplitError as error:
        raise RunError(
          f'{error}. {folds.way_out(config.data.split, f"evals.{name}.{error.field}")}'
        ) from None
      except RunError as error:
        raise RunError(f'evals.{name}: {error}') from None
    return prepared

  def evaluation_facts(self, name: str) -> dict[str, Any]:
    """What an evaluation is, plain JSON."""
    evaluator = self.config.evals[name]
    kind = next(n for n, each in EVALUATORS.items() if each is type(evaluator))
    classed = self.fields.get(self.config.task.classed)
    return {
      'evaluator': kind, 'split': evaluator.split, 'score': evaluator.score,
      'classes': list(classed.names) if classed else [],
    }  # fmt: skip

  def summary(self, evaluators: dict[str, Any]) -> list[str]:
    """Lines about the data that are trained and evaluated on: what is there, what is done to it."""
    lines = list(self._about_data)
    for name, evaluator in self.config.evals.items():
      lines += evaluators[name].summary
      if folds.overlap(self.config.data.split, getattr(evaluator, 'split', '')):
        lines.append(f'evals.{name} uses images that are trained on, too')
    return list(dict.fromkeys(lines))

  def audit(self, evaluators: dict[str, Evaluation]) -> list[str]:
    """Lines about what the data look like, and what is in several splits."""
    sources = {self.source.name: self.source}
    for evaluation in evaluators.values():
      sources |= {source.name: source for source in evaluation.sources.values()}
    key = repr((self.config.data.source, self.config.data.audit, *sources))
    if key not in _AUDITED:
      _AUDITED[key] = audit(sources, self.config.data.audit)
    return _AUDITED[key]

  def evaluate(
    self, evaluators: dict[str, Evaluation], state: State
  ) -> tuple[dict[str, Any], dict[str, Scores]]:
    """Runs `evaluators` on what `state` would be judged by.

    Returns:
      Values by name, {'test/top1': 0.98, ...}, lists over lanes if there are any; and the scores of
      each evaluation by its name.
    """
    scores = {name: evaluator(state, self.frozen) for name, evaluator in evaluators.items()}
    values = {f'{n}/{key}': v for n, each in scores.items() for key, v in each.values.items()}
    return values, scores


def _prepared(cfg: config_lib.Config, card: Card) -> config_lib.Config:
  """A run that prepares images as a card says, where it does not say how itself."""

  def known(section: Any, **values: Any) -> Any:
    unset = {n: value for n, value in values.items() if getattr(section, n, value) is None}
    return dataclasses.replace(section, **unset)

  crop = lambda section: dataclasses.replace(section, crop=known(section.crop, method=card.resize))  # noqa: E731
  return dataclasses.replace(
    cfg, task=known(cfg.task, mean=card.mean, std=card.std),
    data=known(crop(cfg.data), order=ORDERS[0]),
    evals={name: crop(evaluator) for name, evaluator in cfg.evals.items()},
  )  # fmt: skip


def _with_classes(model: Any, known: Mapping[str, Any]) -> Any:
  """An architecture with the numbers of classes that a checkpoint has.

  Of a composition with all that is in no tower.
  """
  if isinstance(model, Composition):
    own = {n: tuple(v) if isinstance(v, list) else v for n, v in known.items() if n in model.own}
    towers = {n: _with_classes(t, known[n]) for n, t in model.towers.items() if n in known}
    return dataclasses.replace(model, **towers, **own)
  if not hasattr(model, 'num_classes'):
    return model
  return dataclasses.replace(model, num_classes=known.get('num_classes', 0) or model.num_classes)
