"""What a sweep has found, in sentences."""

from __future__ import annotations

import numpy as np

from experiments.sweeps import analysis as analysis_lib
from experiments.sweeps.analysis import Analysis
from experiments.sweeps.laws import LEVEL, SHAPES
from vit_jax.architecture import encoders
from vit_jax.costs import flops
from vit_jax.scaling.advise import JOINT, OPTIMA
from vit_jax.scaling.design import varied

METHODS = {JOINT: 'the law in size and data', OPTIMA: 'the best sizes at equal compute'}


def answers(a: Analysis) -> list[str]:
  """What to train, a sentence or two for each budget; why there is none if so."""
  out = []
  top = float(a.runs.cells['budget'].max())
  for i in a.advice:
    model, times = encoders(i.model)[varied(i.model)], i.budget / top
    where = (
      'the largest budget of the sweep' if abs(times - 1) < 0.01
      else f'{times:.3g} times the largest of the sweep'
    )  # fmt: skip
    ends = [number(flops.costs(each).parameters()) for each in (i.flat[0], i.flat[-1])]
    flat = f'; {" to ".join(ends)} may be as good' if len(i.flat) > 1 else ''
    rate = analysis_lib.rate_for(a.runs, i.budget)
    tuned = f' at the best of {rate["tried"]} learning rates' if rate else ''
    taken = (
      f' Learning rate {rate["lr"]:g}, as for the best run of {work(rate["at"])} FLOPs'
      f'{", the end of those tried" if rate["edge"] else ""}.' if rate else ''
    )  # fmt: skip
    tokens = f', {number(i.tokens)} tokens' if a.data == 'tokens' else ''
    goal = a.runs.target
    shown = f' ({goal.column.replace("_", " ")} {goal.back(i.loss):.4g})'
    score = shown if goal.name != goal.column else ''
    heads = f'{model.num_heads} head{"s" * (model.num_heads > 1)}'
    band = (
      f'; {LEVEL:.0%} of such runs between {i.low:.4g} and {i.high:.4g}' if np.isfinite(i.high)
      else ', with no end to how wrong that may be'
    )  # fmt: skip
    said = f'Trust it: {i.reason}.' if i.trusted else f'Do not rely on it: {i.reason}.'
    out.append(
      f'With {work(i.budget)} FLOPs ({where}): a model of width {model.width}, depth '
      f'{model.depth}, MLP {model.mlp_dim} and {heads} ({number(i.parameters)} '
      f'parameters{flat}), trained on {number(i.images)} images{tokens}.{taken} Expect '
      f'{a.y.replace("_", " ")} {i.loss:.4g}{score}{tuned}{band}. {said} It comes from '
      f'{METHODS[i.method]}.'
    )
  if not out:
    reason = a.missing.get('advice', 'the table is too small')
    out.append(f'There is no advice on what to train: {reason}.')
  rate = _rate(a)
  return out + ([rate] if rate else [])


def _rate(a: Analysis) -> str:
  """Which learning rate."""
  tuning = [t for t in a.runs.tuning if len(t.rates) > 1]
  if not tuning:
    return ''
  best, count = max(
    ((rate, sum(t.best == rate for t in tuning)) for rate in {t.best for t in tuning}),
    key=lambda pair: pair[1],
  )
  edges = sum(t.edge for t in tuning)
  said = f'Learning rate {best:g} was the best for {count} of {len(tuning)} shapes and durations.'
  if edges:
    said += f' At {edges} the best is an end of those tried: a better one may lie beyond.'
  moved = analysis_lib.transfer(a.runs)
  if moved:
    worst = f'{moved["worst"]:.1%}' if np.isfinite(moved['worst']) else 'divergence'
    said += (
      f' Taking the best rate of the smallest model for the others of a budget costs '
      f'{moved["median"]:.1%} of {a.y.replace("_", " ")} in the median, {worst} at worst.'
    )
  return said


def trust(a: Analysis) -> list[str]:
  """What was tested, and what came out."""
  out, held = [], a.holdout
  if held and held.law:
    out.append(
      f'Hold-out: fitted without the largest budget ({work(held.budget)} FLOPs, '
      f'{held.factor:.3g} times the next), the law of the frontier ({held.law.law.name}) '
      f'predicted {held.value:.4g}, {held.low:.4g} to {held.high:.4g} for a new run. '
      f'Observed: {held.observed:.4g}, '
      + ('inside.' if held.passed else 'OUTSIDE: this law does not hold up to there.')
      + (' It is the loss of the smallest or the largest size there; '
         + ('a better one may be missing.' if held.edge else
            'the parabola through the losses has its minimum within the sizes.')
         if held.end else '')
      + ''.join(
        f' {name}, which was not chosen, predicted {value:.4g} ({low:.4g} to {high:.4g}).'
        for name, (value, low, high) in held.others.items()
      )
    )  # fmt: skip
  if held and held.joint:
    out.append(
      f'The law in size and {a.data}, fitted likewise, has {held.inside} of the {held.runs} runs '
      f'of that budget inside its {held.joint.level:.0%} bands (root mean square error '
      f'{held.rmse:.1%})'
      + (': fewer than its bands promise. They are TOO NARROW, or the law is not the right one.'
         if held.narrow else '.')
    )  # fmt: skip
  for name, choice, fit in (
    ('of the frontier', a.choice, a.choice and a.choice.fit),
    (f'in size and {a.data}', a.backtest, a.joint),
  ):
    out += [f'The law {name}: {choice.sentence()}'] if choice else []
    out += [f'The law {name}: {flag}.' for flag in fit.flags()] if fit else []
  if a.joint and a.joint.settings['group'] is None:
    out.append(
      f'There are fewer than {SHAPES} shapes: intervals take runs of one shape for independent, '
      'and are probably TOO NARROW.'
    )
  words = {'frontier': 'law of the frontier', 'isoflop': 'best sizes', 'exponents': 'exponents',
           'joint': f'law in size and {a.data}', 'backtest': 'back-test of that law',
           'holdout': 'hold-out', 'models': 'shapes', 'advice': 'advice'}  # fmt: skip
  out += [f'No {words[part]}: {reason}.' for part, reason in a.missing.items() if part in words]
  return out


def number(value: float) -> str:
  """12, 46.8 thousand, 1.01 million, 5.6e13."""
  value = float(f'{value:.3g}')
  for size, word in ((1e6, 'million'), (1e3, 'thousand')):
    if size <= value < 1000 * size:
      return f'{value / size:.3g} {word}'
  return f'{value:.3g}' if value < 1000 else work(value)


def work(flops: float) -> str:
  """5.62e11."""
  digits, _, exponent = f'{flops:.2e}'.partition('e')
  return f'{float(digits):g}e{int(exponent)}'
