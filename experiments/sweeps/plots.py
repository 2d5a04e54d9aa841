"""Pictures of a sweep: text stays text on a page, colours are told apart by everybody."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.sweeps.analysis import Analysis
from experiments.sweeps.laws import FLOPS, SIZE
from vit_jax.core import paths
from vit_jax.core.errors import RunError
from vit_jax.scaling import frontier

try:
  import matplotlib
  from matplotlib import cm, colors, ticker
  from matplotlib.figure import Figure
except ImportError:
  raise RunError('pictures of a sweep need Matplotlib: pip install matplotlib') from None

WIDTH, HEIGHT = 5.4, 4.0  # inches; text of 9 points is then readable on a phone, too
INK, FAINT, LAW, ADVICE = '#1c2733', '#b4bcc6', '#b3432b', '#d97706'
STYLE: Any = {
  'svg.fonttype': 'none', 'font.size': 9, 'font.family': 'sans-serif',
  'font.sans-serif': ['Helvetica', 'Arial', 'DejaVu Sans', 'sans-serif'],
  'axes.spines.top': False, 'axes.spines.right': False, 'axes.edgecolor': '#5b6672',
  'axes.labelcolor': INK, 'xtick.color': '#5b6672', 'ytick.color': '#5b6672', 'text.color': INK,
  'axes.grid': True, 'grid.color': '#e8ebef', 'grid.linewidth': 0.7, 'axes.axisbelow': True,
  'legend.frameon': False, 'legend.fontsize': 8, 'svg.hashsalt': 'vit_jax',
}  # fmt: skip


def svg(draw: Callable[[Analysis, Any], None], analysis: Analysis, height: float = HEIGHT) -> str:
  """What a function of this module draws, to be put into HTML as it is."""
  name = draw.__name__
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(WIDTH, height), layout='constrained')
    draw(analysis, figure)
    file = io.StringIO()
    figure.savefig(file, format='svg', metadata={'Date': None, 'Creator': None})
  text = file.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'<svg ([^>]*?)\s?width="[^"]*"', r'<svg \1', text, count=1)
  text = re.sub(r'<svg ([^>]*?)\s?height="[^"]*"', r'<svg role="img" \1', text, count=1)
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.S)
  # Several pictures share a page: each has ids of its own.
  return re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', text)


def save(analysis: Analysis, path: paths.Path) -> None:
  """Loss against compute, and against size where budgets have minima, as a PNG file."""
  draws = [compute] if analysis.optima is None else [compute, isoflop]
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(WIDTH * len(draws), HEIGHT), layout='constrained')
    for draw, part in zip(draws, figure.subfigures(1, len(draws), squeeze=False)[0], strict=True):
      draw(analysis, part)
    file = io.BytesIO()
    figure.savefig(file, dpi=140, format=path.suffix[1:])
  paths.write_bytes(path, file.getvalue())


def compute(a: Analysis, figure: Any) -> None:
  """Loss against compute: all runs, the frontier, its law, what was held out, what is advised."""
  axes, cells = figure.add_subplot(), a.runs.cells
  every = [(row[FLOPS], row[a.y]) for row in a.runs.finished]
  axes.plot(*np.array(every).T, '.', ms=2.5, color=FAINT, label='every run', zorder=1)
  dots = axes.scatter(cells[FLOPS], cells[a.y], c=cells[SIZE], s=14, zorder=2, **_by_size(a))
  axes.plot(a.frontier[FLOPS], a.frontier[a.y], 'o', ms=7, mfc='none', mec=INK, mew=1,
            label='best at its budget', zorder=4)  # fmt: skip
  if not a.used.all():
    axes.plot(a.frontier[FLOPS][~a.used], a.frontier[a.y][~a.used], 'x', ms=5, color=INK, mew=1,
              label='not fitted: best is the end of the sizes', zorder=4)  # fmt: skip
  top = max([cells[FLOPS].max(), *(advice.budget for advice in a.advice)])
  if a.choice:
    law = a.choice.fit
    grid = np.geomspace(cells[FLOPS].min(), top, 60)
    band = a.choice.predict(grid)
    axes.fill_between(grid, band.new_low, band.new_high, color=LAW, alpha=0.10, lw=0)
    axes.fill_between(grid, band.low, band.high, color=LAW, alpha=0.18, lw=0)
    seen = grid <= cells[FLOPS].max()
    axes.plot(grid[seen], band.value[seen], color=LAW, lw=1.4, zorder=3,
              label=f'{law.law.name}, {law.level:.0%} bands: curve, new run')  # fmt: skip
    axes.plot(grid[~seen], band.value[~seen], color=LAW, lw=1.4, ls=(0, (4, 2)), zorder=3)
  if a.advice:
    _interval(axes, [i.budget for i in a.advice], [i.loss for i in a.advice],
              [i.low for i in a.advice], [i.high for i in a.advice], fmt='D', ms=4, color=ADVICE,
              label='expected of what is advised')  # fmt: skip
  held = a.holdout
  if held and held.law:
    _interval(axes, [held.budget / 1.12], [held.value], [held.low], [held.high], fmt='_', ms=7,
              color='#2563a8', label='predicted from smaller budgets')  # fmt: skip
  axes.set(xlabel='training compute, FLOPs', ylabel=_loss(a))
  _log(axes.xaxis, axes.yaxis)
  _bar(figure, axes, dots)
  _legend(figure, axes)


def isoflop(a: Analysis, figure: Any) -> None:
  """Loss against size at equal compute, with the parabolas and their minima."""
  axes, cells, optima = figure.add_subplot(), a.runs.cells, a.optima
  assert optima is not None
  norm, shades = colors.LogNorm(*_ends(cells['budget'])), _by_size(a)['cmap']
  good = optima['flag'] == ''
  for budget in np.unique(cells['budget']):
    group = cells.take(cells['budget'] == budget)
    group = group.take(np.argsort(group[SIZE]))
    shade, found = shades(norm(budget)), np.isclose(optima[FLOPS], budget, rtol=0.01)
    axes.plot(group[SIZE], group[a.y], 'o', ms=3.5, color=shade)
    axes.plot(group[SIZE], group[a.y], color=shade, lw=0.6, alpha=0.4)
    x, y = frontier._one_per_size(np.log(group[SIZE]), np.log(group[a.y]), 'lowest')
    near = frontier._window(y, a.tolerance)
    if a.method == 'parabola' and near.sum() >= 3:
      line = np.polynomial.Polynomial.fit(x[near], y[near], 2)
      grid = np.linspace(x[near][0], x[near][-1], 40)
      style = '-' if (found & good).any() else ':'
      axes.plot(np.exp(grid), np.exp(line(grid)), style, color=shade, lw=1.1)
  axes.plot(optima[SIZE][good], optima[a.y][good], '*', ms=9, mfc=LAW, mec='white', mew=0.6,
            label='minimum', zorder=5)  # fmt: skip
  axes.plot([], [], ':', color=INK, lw=1.1, label='has no usable minimum')
  axes.set(xlabel='parameters', ylabel=_loss(a))
  _log(axes.xaxis, axes.yaxis)
  _bar(figure, axes, cm.ScalarMappable(norm, shades), 'training compute, FLOPs')
  _legend(figure, axes)


def optimal(a: Analysis, figure: Any) -> None:
  """The best size, and the data it sees, against compute."""
  top, bottom = figure.subplots(2, 1, sharex=True)
  assert a.optima is not None
  good = a.optima['flag'] == ''
  for axes, name, what in ((top, SIZE, 'N'), (bottom, a.data, 'D')):
    x, y = a.optima[FLOPS][good], a.optima[name][good]
    spread = np.nan_to_num(np.exp(a.optima['std_log_size'][good]))
    ends = (y - y / np.maximum(spread, 1), y * np.maximum(spread, 1) - y)
    axes.errorbar(x, y, ends, fmt='o', ms=4.5, color=INK, elinewidth=0.8, label='isoFLOP minimum')
    law = a.exponents.get(name)
    if law:
      far = max([x.max(), *(i.budget for i in a.advice)])
      grid = np.geomspace(x.min(), far, 40)
      band = law.predict(grid)
      low, high = law.ci['c']
      axes.plot(grid, band.value, color=LAW, lw=1.4,
                label=f'{what} = {law.params["beta"]:.3g} C^{law.params["c"]:.3f}, '
                f'exponent {low:.3f} to {high:.3f}')  # fmt: skip
      axes.fill_between(grid, band.low, band.high, color=LAW, alpha=0.18, lw=0)
    if a.advice:
      values = [i.parameters if name == SIZE else getattr(i, name) for i in a.advice]
      axes.plot([i.budget for i in a.advice], values, 'D', ms=4.5, color=ADVICE,
                label='advised')  # fmt: skip
    axes.set_ylabel('parameters' if name == SIZE else f'{name} seen')
    _log(axes.xaxis, axes.yaxis)
    axes.legend(loc='upper left')
  bottom.set_xlabel('training compute, FLOPs')


def joint(a: Analysis, figure: Any) -> None:
  """The law in size and data: what it says against what was seen, and what is left."""
  assert a.joint is not None
  top, bottom = figure.subplots(2, 1, height_ratios=(3, 2))
  cells = a.runs.cells
  said = a.joint.predict({SIZE: cells[SIZE], a.data: cells[a.data]}).value
  ends = min(said.min(), cells[a.y].min()), max(said.max(), cells[a.y].max())
  top.plot(ends, ends, color=FAINT, lw=1, zorder=1)
  dots = top.scatter(said, cells[a.y], c=cells[SIZE], s=14, zorder=2, **_by_size(a))
  top.set(xlabel=f'{_loss(a)}, by the law', ylabel='observed')
  _log(top.xaxis, top.yaxis)
  rest = 100 * np.expm1(np.log(cells[a.y] / said))
  noise = 100 * a.joint.noise
  bottom.axhspan(-noise, noise, color=LAW, alpha=0.12, lw=0)
  bottom.axhline(0, color=FAINT, lw=1)
  bottom.scatter(cells[FLOPS], rest, c=cells[SIZE], s=14, zorder=2, **_by_size(a))
  bottom.set(xlabel='training compute, FLOPs', ylabel='observed − law, %')
  _log(bottom.xaxis)
  _bar(figure, [top, bottom], dots)


def rates(a: Analysis, figure: Any) -> None:
  """Loss against learning rate, each shape at its longest duration with all rates tried."""
  axes = figure.add_subplot()
  most = max(len(t.rates) for t in a.runs.tuning)
  longest: dict[str, Any] = {}
  for tuned in sorted(a.runs.tuning, key=lambda t: (t.parameters, t.images)):
    if len(tuned.rates) == most:
      longest[tuned.shape] = tuned
  norm, shades = _by_size(a)['norm'], _by_size(a)['cmap']
  for tuned in longest.values():
    shade = shades(norm(tuned.parameters))
    axes.plot(tuned.rates, tuned.losses, '-o', ms=3.5, lw=1.1, color=shade)
    axes.plot(tuned.best, min(tuned.finite), 'o', ms=8, mfc='none', mec=INK, mew=0.9)
    gone = [r for r, loss in zip(tuned.rates, tuned.losses, strict=True) if not np.isfinite(loss)]
    axes.plot(gone, [max(tuned.finite)] * len(gone), 'x', ms=6, color=shade)
  axes.plot([], [], 'o', ms=8, mfc='none', mec=INK, mew=0.9, label='best')
  if any(len(t.finite) < len(t.losses) for t in longest.values()):
    axes.plot([], [], 'x', ms=6, color=INK, label='diverged')
  axes.set(xlabel='learning rate', ylabel=_loss(a))
  _log(axes.xaxis, axes.yaxis)
  every = sorted({rate for t in longest.values() for rate in t.rates})
  _ticks(axes.xaxis, every)
  _bar(figure, axes, cm.ScalarMappable(norm, shades))
  _legend(figure, axes)


def transfer(a: Analysis, figure: Any) -> None:
  """The best learning rate against width: whether it stays where it is."""
  axes = figure.add_subplot()
  tuning = [t for t in a.runs.tuning if len(t.rates) > 1]
  norm = colors.LogNorm(*_ends(np.array([t.images for t in tuning])))
  shades = _by_size(a)['cmap']
  for tuned in tuning:
    # Beside each other instead of on top: by duration.
    shift = np.exp(0.16 * (norm(tuned.images) - 0.5))
    shade = shades(norm(tuned.images))
    axes.plot(tuned.width * shift, tuned.star, 'o', ms=5, mec=shade, mew=1.1,
              mfc='white' if tuned.edge else shade)  # fmt: skip
  axes.plot([], [], 'o', ms=5, color=INK, label='minimum of a parabola in log rate')
  axes.plot([], [], 'o', ms=5, mec=INK, mfc='white', label='end of the rates that were tried')
  axes.set(xlabel='width', ylabel='best learning rate')
  _log(axes.xaxis, axes.yaxis)
  _ticks(axes.xaxis, sorted({t.width for t in tuning}))
  every = sorted({rate for t in tuning for rate in t.rates})
  axes.set_ylim(every[0] / 1.2, every[-1] * 1.2)
  _ticks(axes.yaxis, every)
  _bar(figure, axes, cm.ScalarMappable(norm, shades), 'images seen')
  _legend(figure, axes)


def seconds(a: Analysis, figure: Any) -> None:
  """Seconds of training steps, measured against predicted."""
  axes = figure.add_subplot()
  said, took = np.array([(t.predicted, t.measured) for t in a.times]).T
  ends = min(said.min(), took.min()), max(said.max(), took.max())
  axes.plot(ends, ends, color=FAINT, lw=1, label='equal')
  dots = axes.scatter(said, took, c=[t.parameters for t in a.times], s=14, zorder=2, **_by_size(a))
  axes.set(xlabel='predicted seconds of a run', ylabel='measured')
  _log(axes.xaxis, axes.yaxis)
  _bar(figure, axes, dots)
  _legend(figure, axes)


def _loss(a: Analysis) -> str:
  return a.y.replace('_', ' ')


def _ends(values: Any) -> tuple[float, float]:
  low, high = float(np.min(values)), float(np.max(values))
  return low, max(high, 1.001 * low)


def _by_size(a: Analysis) -> dict[str, Any]:
  """Colours by parameters; the palest end of viridis is left out."""
  shades = matplotlib.colormaps['viridis'](np.linspace(0, 0.92, 256))
  norm = colors.LogNorm(*_ends(a.runs.cells[SIZE]))
  return dict(norm=norm, cmap=colors.ListedColormap(shades))


def _bar(figure: Any, axes: Any, mappable: Any, label: str = 'parameters') -> None:
  if mappable.norm.vmax < 1.01 * mappable.norm.vmin:  # one value alone
    return
  bar = figure.colorbar(mappable, ax=axes, label=label, aspect=35, pad=0.02)
  bar.outline.set_visible(False)
  _log(bar.ax.yaxis)


def _interval(axes: Any, x: Any, y: Any, low: Any, high: Any, **style: Any) -> None:
  y, low, high = (np.asarray(v, float) for v in (y, low, high))
  ends = np.maximum(y - low, 0), np.maximum(high - y, 0)
  axes.errorbar(x, y, ends, elinewidth=1.2, capsize=2.5, zorder=5, **style)


def _legend(figure: Any, axes: Any) -> None:
  """Above the axes, where it hides nothing."""
  figure.legend(*axes.get_legend_handles_labels(), loc='outside upper left', ncols=2)


def _ticks(axis: Any, values: Any) -> None:
  """At these values alone, as far as there is room."""
  kept: list[float] = []
  room = np.log(max(values) / min(values)) / 12
  for value in values:
    if not kept or np.log(value / kept[-1]) > room:
      kept.append(value)
  axis.set_ticks(kept, [f'{value:g}' for value in kept])
  axis.set_ticks([], minor=True)


def _log(*axis: Any) -> None:
  """Logarithmic; numbers at powers of ten, between them where there are few, never crowded."""
  for each in axis:
    if each.get_scale() != 'log':
      getattr(each.axes, f'set_{each.axis_name}scale')('log')
    low, high = each.get_view_interval()
    decades = np.log10(high / low)
    rows = ((0.15, None), (0.35, (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9)),
            (0.6, (1, 1.5, 2, 3, 4, 5, 6, 8)), (2.2, (1, 2, 5)), (np.inf, (1,)))  # fmt: skip
    subs = next(subs for most, subs in rows if decades < most)
    locator = ticker.LogLocator(subs=subs, numticks=99) if subs else ticker.MaxNLocator(5)
    each.set_major_locator(locator)
    each.set_major_formatter(ticker.FuncFormatter(_short))
    each.set_minor_formatter(ticker.NullFormatter())


def _short(value: float, place: int) -> str:
  """0.05, 200, 2·10⁶."""
  if 1e-3 <= value < 1e4:
    return f'{value:g}'
  digits, _, exponent = f'{value:e}'.partition('e')
  power = str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))
  return f'{"" if float(digits) == 1 else f"{float(digits):g}·"}10{power}'
