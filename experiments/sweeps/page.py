"""The report of a sweep as one HTML page that needs nothing else: answers, then the evidence."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.sweeps import plots, words
from experiments.sweeps.analysis import Analysis
from experiments.sweeps.laws import SIZE
from vit_jax.architecture import encoders
from vit_jax.scaling.advise import Advice
from vit_jax.scaling.design import varied

STYLE = """
:root { color-scheme: light; --ink: #1c2733; --soft: #5b6672; --line: #dfe4ea; --mark: #b3432b; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: #fff;
  color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.answers { border-left: 4px solid var(--mark); padding: .1rem 0 .1rem 1rem; margin: 1rem 0; }
.doubt { color: var(--mark); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; }
.numbers td { white-space: nowrap; }
.figures { display: grid; gap: 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure svg { width: 100%; height: auto; display: block; }
pre { overflow-x: auto; background: #f6f8fa; padding: .75rem; font-size: .78rem; line-height: 1.4; }
summary { cursor: pointer; }
dl { margin: 0; } dt { font-weight: 600; margin-top: .75rem; } dd { margin: 0; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2 { break-after: avoid; } tr { break-inside: avoid; }
  .figures { grid-template-columns: 1fr 1fr; gap: 1rem; }
  pre { white-space: pre-wrap; }
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { padding-right: .5rem; }
  details::details-content { content-visibility: visible; display: block; }
}
"""


def render(a: Analysis, card: dict[str, Any]) -> str:
  """The page.

  Args:
    a: what was found.
    card: the same as `record.card` says it, of which the page shows checklist and failures.
  """
  cells = a.runs.cells
  title = f'{a.y.replace("_", " ")} against compute: {cells.rows} shapes and durations'
  parts = [
    f'<h1>{_text(title)}</h1>',
    f'<p class="soft">{_text(_summary(a))}</p>',
    f'<section class="answers">{_paragraphs(words.answers(a))}</section>',
    _advice_table(a.advice, a.y.replace('_', ' ')),
    '<h2>How far this can be trusted</h2>', _paragraphs(words.trust(a)),
    '<h2>Evidence</h2>', f'<div class="figures">{"".join(_figures(a))}</div>',
    '<h2>Fits</h2>', *_fits(a),
    '<h2>Runs that are not fitted</h2>', _left_out(a),
    '<h2>What papers leave out</h2>', _checklist(card['checklist']),
    '<p class="soft">card.json next to this page holds everything, including every run.</p>',
  ]  # fmt: skip
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{_text(title)}</title><style>{STYLE}</style></head><body>\n'
    + '\n'.join(parts) + '\n</body></html>\n'
  )  # fmt: skip


def _summary(a: Analysis) -> str:
  counts = ', '.join(f'{count} {state}' for state, count in a.runs.counts.items())
  cells, shapes = a.runs.cells, len(np.unique(a.runs.cells['shape']))
  return (
    f'{counts}; {shapes} shape{"s" * (shapes > 1)} of {_range(cells[SIZE], words.number)} '
    f'parameters, {_range(cells["budget"], words.work)} FLOPs a run.'
  )


def _range(values: np.ndarray, say: Callable[[float], str]) -> str:
  return ' to '.join(dict.fromkeys((say(values.min()), say(values.max()))))


def _advice_table(advice: Sequence[Advice], judged: str) -> str:
  if not advice:
    return ''
  names = ('FLOPs', 'width', 'depth', 'MLP', 'heads', 'parameters', 'images', judged, 'interval',
           'as good', 'trusted')  # fmt: skip
  rows = []
  for i in advice:
    model, *others = (encoders(m)[varied(m)] for m in (i.model, *i.flat))
    widths = [m.width for m in others]
    flat = f'{min(widths)} to {max(widths)} wide' if len(set(widths)) > 1 else ''
    rows.append((
      words.work(i.budget), model.width, model.depth, model.mlp_dim, model.num_heads,
      f'{i.parameters:,}', f'{i.images:,}', f'{i.loss:.4g}', f'{i.low:.4g} to {i.high:.4g}', flat,
      'yes' if i.trusted else 'no',
    ))  # fmt: skip
  return _table(names, rows, numbers=8)


def _figures(a: Analysis) -> list[str]:
  judged = a.y.replace('_', ' ')
  judged = judged[0].upper() + judged[1:]
  law, optima = a.choice and a.choice.fit, a.optima
  said = f'The law: {law.law.formula}, {_params(law)}. ' if law else ''
  said += 'Dashed beyond the data. Dark band: the curve; pale: a new run. ' if law else ''
  if a.choice and len(a.choice.plausible) > 1:
    said += f'Bands hold all laws that the data do not reject: {", ".join(a.choice.plausible)}.'
  out = [_figure(plots.compute, a, f'{judged} against compute', said)]
  if optima is not None:
    flags = [flag for flag in optima['flag'].tolist() if flag]
    said = 'Parabolas' if a.method == 'parabola' else 'Akima splines'
    said += ' in log size through the points near each minimum.'
    if flags:
      said += f' {len(flags)} budgets have no usable minimum ({", ".join(sorted(set(flags)))}).'
    out.append(_figure(plots.isoflop, a, f'{judged} against size at equal compute', said))
    if len(flags) < optima.rows:
      said = '; '.join(
        f'{"size" if name == SIZE else a.data} as C^{fit.params["c"]:.3f} '
        f'[{fit.ci["c"][0]:.3f}, {fit.ci["c"][1]:.3f}]'
        for name, fit in a.exponents.items()
      )
      said = f'They grow: {said}.' if said else 'Too few to say how they grow.'
      out.append(_figure(plots.optimal, a, f'Best size and {a.data}', said, height=5.6))
  if a.joint:
    said = f'{a.joint.law.formula}, {_params(a.joint)}. Band: its noise, {a.joint.noise:.2%}.'
    out.append(_figure(plots.joint, a, f'The law in size and {a.data}', said, height=5.6))
  if any(len(t.rates) > 1 for t in a.runs.tuning):
    said = 'Each shape at its longest duration with all rates.'
    out.append(_figure(plots.rates, a, 'Learning rates', said))
    said = 'Level: yes. Shapes of one width are moved apart by duration.'
    out.append(_figure(plots.transfer, a, 'Does the best learning rate transfer?', said))
  if a.times:
    ratio = np.log([t.measured / t.predicted for t in a.times])
    said = f'median {np.exp(np.median(ratio)):.2f}, spread {np.exp(ratio.std()):.2f}x'
    out.append(_figure(plots.seconds, a, 'Time', f'Measured over predicted: {said}.'))
  return out


def _figure(draw: Any, a: Analysis, title: str, caption: str, **size: float) -> str:
  picture = plots.svg(draw, a, **size)
  return (f'<figure><h3>{_text(title)}</h3>{picture}'
          f'<figcaption>{_text(caption)}</figcaption></figure>')  # fmt: skip


def _params(fit: Any) -> str:
  return ', '.join(f'{name} = {value:.3g}' for name, value in fit.params.items())


def _fits(a: Analysis) -> list[str]:
  found = {
    'The frontier': a.choice and a.choice.fit, f'Size and {a.data}': a.joint,
    'Best size': a.exponents.get(SIZE), f'Best {a.data}': a.exponents.get(a.data),
  }  # fmt: skip
  out = [
    f'<details><summary>{name}: {_text(fit.law.formula)}</summary><pre>{_text(fit.report())}</pre>'
    '</details>'
    for name, fit in found.items() if fit
  ]  # fmt: skip
  for name, choice in (('of the frontier', a.choice), (f'in size and {a.data}', a.backtest)):
    if choice:
      said = f'<summary>Back-test of the law {name}</summary><pre>{_text(choice.report())}</pre>'
      out.append(f'<details>{said}</details>')
  return out or ['<p>There are too few runs for any.</p>']


def _left_out(a: Analysis) -> str:
  if not a.runs.left_out:
    return '<p>None.</p>'
  rows = [
    (reason, len(ids), ', '.join(ids[:6]) + (', ...' if len(ids) > 6 else ''))
    for reason, ids in a.runs.left_out.items()
  ]
  return _table(('why', 'rows', 'which'), rows)


def _checklist(items: Sequence[dict[str, Any]]) -> str:
  said = [
    f'<dt>{_text(i["question"])}</dt><dd{"" if i["filled"] else chr(32) + "class=doubt"}>'
    f'{_text(i["answer"])}</dd>' for i in items
  ]  # fmt: skip
  return f'<dl>{"".join(said)}</dl>'


def _table(names: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int = 0) -> str:
  """The first `numbers` columns are numbers."""
  cell = lambda tag, i, value: (  # noqa: E731
    f'<{tag}{" class=n" if i < numbers else ""}>{_text(value)}</{tag}>'
  )
  head = ''.join(cell('th', i, name) for i, name in enumerate(names))
  body = ''.join(
    f'<tr>{"".join(cell("td", i, value) for i, value in enumerate(row))}</tr>' for row in rows
  )
  kind = 'wide numbers' if numbers else 'wide'
  table = f'<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
  return f'<div class="{kind}">{table}</div>'


def _paragraphs(lines: Sequence[str]) -> str:
  bad = ('OUTSIDE', 'TOO NARROW', 'Do not rely', 'Do not extrapolate')
  return ''.join(
    f'<p{" class=doubt" if any(word in line for word in bad) else ""}>{_text(line)}</p>'
    for line in lines
  )


def _text(value: Any) -> str:
  return html.escape(str(value))
