"""What papers on scaling laws leave out, answered from the table of a sweep where it can be.

The questions follow Li et al. 2025, (Mis)Fitting: A Survey of Scaling Laws (arXiv:2502.18969),
which found that most papers cannot be reproduced for want of the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.sweeps.analysis import Analysis
from experiments.sweeps.runs import DIVERGED, FINISHED, TRUNK
from vit_jax.costs import flops

UNKNOWN = 'Not recorded: say it yourself.'


def fill(a: Analysis, config: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Questions with answers, in the order of their topics.

  Args:
    a: of the sweep.
    config: of one of its runs, {} if none is there.

  Returns:
    A dict for each: `topic`, `question`, `answer`, and `filled`, False where the table cannot say.
  """
  parts = {
    'Counting': _counting(a), 'Runs': _runs(a, config), 'Training': _training(a, config),
    'Evaluation': _evaluation(a, config), 'Fit': _fit(a),
  }  # fmt: skip
  return [
    {'topic': topic, 'question': question, 'answer': answer or UNKNOWN, 'filled': bool(answer)}
    for topic, found in parts.items()
    for question, answer in found.items()
  ]


def _counting(a: Analysis) -> dict[str, str]:
  cells = a.runs.cells
  return {
    'How is the size of a model counted?': 'All parameters: embedding, positions and head among '
    f'them; {_range(cells["parameters"])}.',
    'How is the amount of data counted?': 'Images seen in training, each repetition counted: '
    f'batch size x steps; {_range(cells["images"])}.'
    + (
      f' Laws are in tokens of them that what is trained sees; {_range(cells["tokens"])}.'
      if a.data == 'tokens'
      else ''
    ),
    'By which formula are FLOPs counted?': f'{flops.CONVENTION}; {_range(cells["flops"])}.',
  }


def _runs(a: Analysis, config: Mapping[str, Any]) -> dict[str, str]:
  counts, cells = a.runs.counts, a.runs.cells
  said = ', '.join(f'{count} {state}' for state, count in counts.items())
  left = '; '.join(f'{len(ids)} x {reason}' for reason, ids in a.runs.left_out.items())
  dropped = int((~a.used).sum())
  edge = (
    f' The law of the frontier leaves out {dropped} budgets whose best size is the smallest or the '
    'largest that was trained there, without a minimum between them.' if dropped else ''
  )  # fmt: skip
  shapes = len(np.unique(cells['shape']))
  ratio = cells['width'] / cells['depth']
  return {
    'Which runs are there?': f'{said}. {cells.rows} combinations of {shapes} shapes and durations.',
    'Which were left out of the fits, and why?': (
      f'{left or "None"}. Of each shape and duration only the best hyperparameters are '
      f'fitted.{edge}'
    ),
    'Which shapes?': f'width over depth from {ratio.min():.3g} to {ratio.max():.3g}; patches of '
    f'{_values(cells["patch_size"])} pixels in images of {_values(cells["image_size"])}.',
    'How many seeds, how large is the noise?': (
      f'{a.runs.repeated} settings with several seeds: losses differ by {a.runs.noise:.2%} '
      '(standard deviation).' if a.runs.noise is not None else
      f'One seed for each setting ({_column(a, "seed")}): the noise between seeds is not known.'
    ),
  }  # fmt: skip


def _training(a: Analysis, config: Mapping[str, Any]) -> dict[str, str]:
  optim, tuning = config.get('optim', {}), [t for t in a.runs.tuning if len(t.rates) > 1]
  tried = sorted({len(t.rates) for t in a.runs.tuning})
  edges = sum(t.edge for t in tuning)
  others = ', '.join(
    f'{name} {_column(a, name)}' for name in a.runs.hyper[1:] if len(_set(a, name)) > 1
  )  # fmt: skip
  own = (
    f'Learning rates: {", ".join(map(str, tried))} tried for each shape and duration '
    f'({_column(a, "lr")}); the best of {edges} of {len(tuning)} is at the end of those tried.'
    if tuning else f'No: one learning rate for all ({_column(a, "lr")}).'
  ) + (f' Also tried: {others}.' if others else '')  # fmt: skip
  widths = _set(a, 'mup_width') - {0}
  own += ' Sizes share them by muP.' if widths else ''
  schedule = _column(a, 'schedule')
  forked = any(row.get('forked') for row in a.runs.rows)
  cooled = {row.get('cooldown') for row in a.runs.rows if row.get('status') == FINISHED}
  lasting = (
    f'{schedule}, warm-up {_column(a, "warmup")}. '
    + ('Every duration has its own cooldown from a shared trunk.' if forked else
       'Every run was trained from scratch for its own duration'
       + (f' ({len(cooled)} different cooldowns).' if cooled - {None} else '.'))
    if schedule else ''
  )  # fmt: skip
  settings = ', '.join(
    f'{name} {optim[name]}' for name in ('b1', 'b2', 'eps', 'clip', 'weight_decay', 'ema',
                                         'accumulate') if name in optim
  )  # fmt: skip
  return {
    'Were hyperparameters tuned for each size?': own,
    'Which schedule, and did every duration have its own?': lasting,
    'Which optimizer, with which settings?': f'{optim.get("name", "adamw")}: {settings}.'
    if settings
    else '',
    'Which batch size?': f'{_values(a.runs.cells["batch_size"])} images.',
  }


def _evaluation(a: Analysis, config: Mapping[str, Any]) -> dict[str, str]:
  source = config.get('data', {}).get('source', {})
  data = ' '.join(str(source[key]) for key in ('name', 'dataset', 'dir') if source.get(key))
  evals = config.get('evals', {})
  column = a.runs.target.column
  name = next((name for name in evals if column.startswith(f'{name}_')), '')
  epochs = [float(passes) for passes in _set(a, 'epochs')]
  return {
    'Trained on what?': f'{data}, split {config["data"].get("split", "?")}.' if data else '',
    'How often is data repeated?': (
      f'{min(epochs):.2g} to {max(epochs):.2g} passes over the training split.' if epochs else ''
    ),
    'Evaluated on what?': f'{column}: split {evals[name].get("split", "?")}.' if name else '',
    'Which numbers are better, and where do they end?': (
      f'High ones of {column}, up to {a.runs.target.best:g}: laws are of {a.y}.'
      if a.runs.target.rises else
      f'Low ones of {column}; where they end, the floor, is fitted'
      + (f', from {a.runs.target.best:g} up.' if a.runs.target.best else '.')
    ),
    'Is the evaluation set independent of the choice of hyperparameters?': (
      f'No: learning rates were chosen by {a.y} itself.'
      if any(len(t.rates) > 1 for t in a.runs.tuning) else f'Nothing was chosen by {a.y}.'
    ),
  }  # fmt: skip


def _fit(a: Analysis) -> dict[str, str]:
  laws = [fit for fit in (a.choice and a.choice.fit, a.joint) if fit]
  each = lambda say: ' '.join(f'{fit.law.name}: {say(fit)}.' for fit in laws)  # noqa: E731
  reach = [
    f'{name}: right within {a.tolerance:.1%} up to {choice.factor:.3g} times beyond '
    'what it was fitted to.'
    for name, choice in (('frontier', a.choice), (f'size and {a.data}', a.backtest)) if choice
  ]  # fmt: skip
  return {
    'Which form?': each(lambda fit: f'{fit.law.formula}, {len(fit.residuals)} points'),
    'Which loss, on what?': each(
      lambda fit: f'{fit.settings["loss"]}'
      + (f' (delta {fit.settings["delta"]:g})' if fit.settings['delta'] else '')
      + f', summed over residuals of log {fit.y}'
    ),
    'Which grid of starts?': each(
      lambda fit: f'{fit.settings["starts"]} starts, points of a Sobol sequence over the ranges of '
      'the law'
    ),
    'Which optimizer?': 'Levenberg and Marquardt with analytic gradients in float64, reweighted '
    'for Huber losses.' if laws else '',
    'Did it converge?': each(
      lambda fit: f'{fit.convergence.share:.0%} of the starts reached the best fit, gradient '
      f'{fit.convergence.gradient:.0e}'
      + (f', at a bound: {", ".join(fit.convergence.at_bound)}' if fit.convergence.at_bound else '')
    ),
    'How sure are the parameters?': each(
      lambda fit: f'{fit.level:.0%} intervals, {fit.interval}: '
      + ', '.join(f'{name} {fit.params[name]:.3g} [{low:.3g}, {high:.3g}]'
                  for name, (low, high) in fit.ci.items())
    ),
    'How far can it be extrapolated?': ' '.join(reach),
  }  # fmt: skip


def _range(values: np.ndarray) -> str:
  return f'{values.min():.3g} to {values.max():.3g}'


def _set(a: Analysis, name: str) -> set[Any]:
  states = (FINISHED, DIVERGED, TRUNK)
  found = {row.get(name) for row in a.runs.rows if row.get('status') in states}
  return found - {None}


def _column(a: Analysis, name: str) -> str:
  return ', '.join(f'{v:g}' if isinstance(v, float) else str(v)
                   for v in sorted(_set(a, name), key=lambda v: (str(type(v)), v)))  # fmt: skip


def _values(values: np.ndarray) -> str:
  return ', '.join(f'{value:g}' for value in np.unique(values))
