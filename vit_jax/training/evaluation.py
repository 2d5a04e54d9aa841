"""Evaluation of a run on one of its checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax import tasks
from vit_jax.convert import notes, read
from vit_jax.convert.parts import chosen
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.core.misfits import refuse
from vit_jax.data import crops
from vit_jax.data.examples import Source
from vit_jax.data.sources import opened_by
from vit_jax.evaluators.evaluator import prepare
from vit_jax.nn import sharding
from vit_jax.processes import exchange
from vit_jax.tasks.task import Fields
from vit_jax.text.tokenizer import Filed
from vit_jax.training import config as config_lib
from vit_jax.training import lanes
from vit_jax.training.experiment import Experiment
from vit_jax.training.progress import Reporter
from vit_jax.training.workdir import Workdir


def restore(
  workdir: str, config: Mapping[str, Any] | None = None, *, step: int | None = None
) -> tuple[Experiment, Any]:
  """A run's experiment and the state in a checkpoint as steps have it, on the mesh in context.

  Args:
    workdir: of the run.
    config: the run's own if not given.
    step: of the checkpoint; the newest if not given.

  Raises:
    RunError: if there is no checkpoint, it is damaged, or does not fit the model of `config`.
  """
  run = Workdir(workdir)
  cfg = run.config() if config is None else schema.build(config_lib.Config, config)
  experiment = lanes.experiment(cfg, run.known(), training=False)
  try:
    wanted, frozen = experiment.to_restore()
    state, _ = run.checkpoints().restore(wanted, step)
  except RunError as error:
    if config is None or 'does not fit' not in str(error):
      raise
    raise RunError(
      f'{error}\nThe configuration is of another model than {workdir}. Leave it out to evaluate as '
      "the run does; single fields can be changed, such as --config.data.source.dir='DIR'."
    ) from None
  experiment.adopt(run.frozen(frozen))
  return experiment, experiment.split(state)


def evaluate_checkpoint(
  checkpoint: str, config: Mapping[str, Any], *, insisted: Collection[str] = ()
) -> dict[str, float]:
  """Runs the evaluations of a configuration on a checkpoint of any dialect.

  The checkpoint decides the model, its task where it knows it, and how images are prepared.

  Args:
    checkpoint: its path; what of it to read is written behind, as for `config.init`.
    config: with data and evaluations.
    insisted: dotted names of fields that come before what the checkpoint says: of the crops.

  Returns:
    As `evaluate`.

  Raises:
    RunError: if the checkpoint cannot be read or has no head that was trained, or the data have
      classes that it does not know.
  """
  cfg: config_lib.Config = schema.build(config_lib.Config, config)
  path, choice = chosen(checkpoint, '--checkpoint')
  with jax.set_mesh(sharding.make_mesh(cfg.mesh)), opened_by(exchange.from_first):
    with notes.printed():
      opened = read.open_checkpoint(path, **choice)
      refuse(opened.problems(), path)
      model = read.model_of(opened)
    card, lines = model.card, []
    task, fields = tasks.of(card)
    if not card.task and type(task) is not type(cfg.task):
      task = dataclasses.replace(cfg.task, mean=card.mean, std=card.std)
    own, given = (getattr(each, 'tokenizer', None) for each in (task, cfg.task))
    if isinstance(own, Filed) and isinstance(given, Filed) and not own.file:
      # Of a checkpoint without a vocabulary beside it.
      file = given.file if own.kind == given.kind else ''
      task = dataclasses.replace(task, tokenizer=dataclasses.replace(own, file=file))
    evaluations = {}
    for name, evaluator in cfg.evals.items():
      if not any(field.startswith(f'evals.{name}.crop.') for field in insisted):
        crop = crops.of_card(card)
        evaluator = dataclasses.replace(evaluator, crop=crop)
        how = f'the middle {card.crop:g}' if card.crop else 'the whole image'
        how += ', its shape kept' * card.fills
        lines.append(f'evals.{name}: as the checkpoint says, {how}, {card.resize}')
      elif evaluator.crop.method is None:
        crop = dataclasses.replace(evaluator.crop, method=card.resize)
        evaluator = dataclasses.replace(evaluator, crop=crop)
      first = next(iter(evaluator.splits().values()))
      source, said = evaluator.open(cfg.data, first), []
      named = source.fields  # features can be judged on any classes
      if not evaluator.headless:
        named, said = _with_classes(fields, task, source, model, path)
      lines += said
      evaluations[name] = prepare(
        evaluator, task, model.config, cfg.data, batch_size=cfg.batch_size, fields=named,
        judged=lambda model, _: model,
      )  # fmt: skip
    if not evaluations:
      raise RunError('the configuration has no evaluations: there is nothing to do')
    reporter = Reporter(1, 0, visible=jax.process_index() == 0)
    reporter.close()
    reporter.lines([*(line for each in evaluations.values() for line in each.summary), *lines])
    scores = {
      f'{name}/{key}': value for name, evaluation in evaluations.items()
      for key, value in evaluation(model, None).values.items()
    }  # fmt: skip
  reporter.table(checkpoint, scores)
  return scores


def _with_classes(
  fields: Fields, task: Any, source: Source, model: Any, path: str
) -> tuple[Fields, list[str]]:
  """The fields of a model whose classes have those of the data, and lines that say how."""
  classed = task.classed
  if classed not in source.fields:
    return fields or source.fields, []
  own, classes = source.fields[classed].names, getattr(model.config, 'num_classes', 0)
  theirs = fields[classed].names if classed in fields else model.card.class_names
  if not classes:
    raise RunError(f'{path} has no head for classification: it only gives features')
  if theirs:  # `matched` refuses what it does not know
    named = dataclasses.replace(source.fields[classed], names=tuple(theirs))
    return {**source.fields, **fields, classed: named}, []
  if len(own) != classes:
    raise RunError(
      f'{path} has {classes} classes without names, and {source.name} has {len(own)}: they cannot '
      'be matched'
    )
  return source.fields, [
    f'{path} does not name its {classes} classes: label i of the data is taken for its class i'
  ]


def evaluate(
  workdir: str, config: Mapping[str, Any] | None = None, *, step: int | None = None
) -> dict[str, float]:
  """Runs the evaluations of `config` on a checkpoint; arguments as for `restore`.

  Returns:
    Values by name, {'test/top1': 0.98, ...}.
  """
  mesh = config['mesh'] if config is not None else 'data'
  with jax.set_mesh(sharding.make_mesh(mesh)):
    experiment, state = restore(workdir, config, step=step)
    done, evaluators = int(np.max(state.step)), experiment.evaluators()
    if not evaluators:
      raise RunError('the configuration has no evaluations: there is nothing to do')
    reporter = Reporter(done, done, visible=jax.process_index() == 0)
    reporter.close()
    reporter.lines(experiment.summary(evaluators))
    scores, _ = experiment.evaluate(evaluators, state)
  reporter.table(f'{workdir}: step {done}', scores)
  return scores
