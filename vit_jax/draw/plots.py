"""Charts as SVG inside a page: lines, a stacked bar, a heat map, a reliability diagram."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vit_jax.draw.page import Html, shown, table, tag

COLOURS = 8  # of the style sheet, --c1 and so on
MOST = 400  # points of a line, at most
_SUPERSCRIPT = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
_WIDTH, _HEIGHT, _TOP, _RIGHT = 360, 200, 8, 14


class Line(NamedTuple):
  """A curve.

  Attributes:
    x: steps, ascending.
    y: values; those that are not finite are gaps.
    tone: a colour of CSS.
  """

  name: str
  x: np.ndarray
  y: np.ndarray
  tone: str


def tone(number: int, count: int = COLOURS) -> str:
  """The colour of one of `count` things: told apart if they are few, a scale if they are many."""
  if count <= COLOURS:
    return f'var(--c{number % COLOURS + 1})'
  return f'oklch(0.62 0.15 {260 - 230 * number / (count - 1):.0f})'


def legend(names: Sequence[tuple[str, str]]) -> Html:
  """Names behind squares of their colours."""
  return tag('ul', [tag('li', tag('i', style=f'background:{c}'), n) for n, c in names],
             class_='legend')  # fmt: skip


def ticks(low: float, high: float, most: int = 5) -> list[float]:
  """Round numbers that enclose what is from low to high: multiples of 1, 2 or 5 times 10^n."""
  least = (high - low) / most
  unit = 10.0 ** math.floor(math.log10(least))
  step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= least * (1 - 1e-9))
  first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
  return [number * step for number in range(first, last + 1)]


def labels(values: Sequence[float]) -> list[str]:
  """Ticks as people write them: 0, 0.5, 1,000, 20k, 2·10⁻⁶."""
  top = max(map(abs, values))
  step = (values[-1] - values[0]) / max(len(values) - 1, 1) or top or 1.0
  power, unit = 0, ''
  if top >= 1e15 or top < 2e-3:
    power = math.floor(math.log10(step * 1.000001))
    unit = f'·10{str(power).translate(_SUPERSCRIPT)}'
  elif top >= 1e4:
    power, unit = next(each for each in ((12, 'T'), (9, 'G'), (6, 'M'), (3, 'k'))
                       if top >= 10 ** each[0])  # fmt: skip
  digits = max(0, -math.floor(math.log10(step / 10.0**power * 1.000001)))
  said = (f'{value / 10.0**power:,.{digits}f}{unit}' if value else '0' for value in values)
  return [text.replace('-', '\N{MINUS SIGN}') for text in said]


def smoothed(y: np.ndarray, reach: int) -> np.ndarray:
  """Means over up to `reach` neighbours on each side, without those that are not finite."""
  there = np.isfinite(y)
  total = np.concatenate([[0.0], np.cumsum(np.where(there, y, 0.0))])
  count = np.concatenate([[0], np.cumsum(there)])
  place = np.arange(len(y))
  first, last = np.maximum(place - reach, 0), np.minimum(place + reach + 1, len(y))
  mean = (total[last] - total[first]) / np.maximum(count[last] - count[first], 1)
  return np.where(there, mean, np.nan)


def chart(title: str, lines: Sequence[Line], *, smooth: bool = False, named: bool = True) -> Html:
  """Lines over the steps of a run.

  Values far above all others are cut off, and the caption says so.

  Args:
    title: what the values are.
    lines: one or more.
    smooth: whether a mean is drawn over lines of many points, which are pale then.
    named: whether several lines get a legend here.
  """
  lines = [line for line in lines if np.isfinite(line.y).any()]
  if not lines:
    return Html()
  finite = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
  steps = np.concatenate([line.x for line in lines])
  low, high = float(finite.min()), float(finite.max())
  peaks = sorted(float(np.nanpercentile(np.where(np.isfinite(line.y), line.y, np.nan), 98))
                 for line in lines)  # fmt: skip
  steep = itertools.pairwise([*peaks[(len(peaks) - 1) // 2 :], high])
  cut = next((peak for peak, above in steep if above > 30 * peak > 0), None)
  high = high if cut is None else 1.1 * cut
  low = 0.0 if 0 < low < 0.4 * high else low
  room = (high - low) or abs(high) or 1.0
  rows = ticks(low, high if high > low else low + 0.2 * room)
  ends = float(steps.min()), float(steps.max())
  ends = (0.0 if ends[0] < 0.2 * ends[1] else ends[0]), ends[1]
  ends = ends if ends[1] > ends[0] else (ends[0] - 1, ends[0] + 1)
  columns = [v for v in ticks(*ends, 4) if ends[0] <= v <= ends[1] and v == round(v)]
  left = 12 + 6.3 * max(4, *map(len, labels(rows)))
  width, bottom = _WIDTH - _RIGHT - left, _HEIGHT - 22

  def across(x: Any) -> Any:
    return left + (x - ends[0]) / (ends[1] - ends[0]) * width

  def up(y: Any) -> Any:
    return bottom - (y - rows[0]) / (rows[-1] - rows[0]) * (bottom - _TOP)

  drawn = []
  for line in lines:
    paths = [(line, 'line')]
    if smooth and np.isfinite(line.y).sum() >= 40:
      mean = line._replace(y=smoothed(line.y, max(2, len(line.y) // 50)))
      paths = [(line, 'line raw'), (mean._replace(name='smoothed'), 'line')]
      paths = paths if len(lines) == 1 else [(mean, 'line')]
    drawn += [_path(_thinned(each), across, up, kind) for each, kind in paths]
  grid = [
    *(tag('line', x1=f'{left:.1f}', x2=_WIDTH - _RIGHT, y1=f'{up(v):.1f}', y2=f'{up(v):.1f}',
          class_='rule') for v in rows),
    *(tag('text', said, x=f'{left - 6:.1f}', y=f'{up(v) + 4:.1f}', text_anchor='end')
      for v, said in zip(rows, labels(rows), strict=True)),
    *(tag('text', said, x=f'{across(v):.1f}', y=_HEIGHT - 5, text_anchor='middle')
      for v, said in zip(columns, labels(columns), strict=True)),
    tag('text', 'step', x=f'{left - 14:.1f}', y=_HEIGHT - 5, text_anchor='end'),
  ]  # fmt: skip
  box = f'{left - 4:.1f} {_TOP - 4} {width + 8:.1f} {bottom - _TOP + 8}'
  inner = dict(zip(('x', 'y', 'width', 'height'), box.split(), strict=True))
  pointer = tag('line', y1=_TOP, y2=bottom, class_='axis pointer', visibility='hidden')
  frame = [*ends, round(left, 1), _WIDTH - _RIGHT, _WIDTH]
  svg = tag('svg', grid, pointer, tag('svg', drawn, viewBox=box, **inner),
            viewBox=f'0 0 {_WIDTH} {_HEIGHT}', class_='chart', role='img',
            aria_label=_in_words(title, lines), data_frame=json.dumps(frame))  # fmt: skip
  last = [shown(float(line.y[np.isfinite(line.y)][-1])) for line in lines]
  said = f' {last[0]}' if len(lines) == 1 else ''
  said += '' if cut is None else f', cut off above {shown(rows[-1])}'
  names = None
  if named and len(lines) > 1:
    names = legend([(f'{x.name} {y}', x.tone) for x, y in zip(lines, last, strict=True)])
  return tag('figure', tag('figcaption', tag('b', title), said, names), svg)


def _in_words(title: str, lines: Sequence[Line]) -> str:
  said = []
  for line in lines:
    y = line.y[np.isfinite(line.y)]
    first, last, low, high = (shown(float(v)) for v in (y[0], y[-1], y.min(), y.max()))
    whose = f'{line.name} ' if len(lines) > 1 else ''
    said.append(f'{whose}from {first} to {last}, lowest {low}, highest {high}')
  return f'{title} over steps: {"; ".join(said)}'


def _thinned(line: Line) -> Line:
  """Of every stretch of a long line only the least, the greatest and what is not there."""
  if len(line.y) <= MOST:
    return line
  low, high = (np.where(np.isfinite(line.y), line.y, gone) for gone in (np.inf, -np.inf))
  kept = {
    int(part[find(y[part])])
    for part in np.array_split(np.arange(len(line.y)), MOST // 2)
    for find, y in ((np.argmin, low), (np.argmax, high))
  }
  return line._replace(x=line.x[sorted(kept)], y=line.y[sorted(kept)])


def _path(line: Line, across: Any, up: Any, kind: str) -> Html:
  """A line; dots where it has few points, or one alone between gaps."""
  there = np.isfinite(line.y)
  pieces, moves = [], True
  for x, y, seen in zip(line.x, line.y, there, strict=True):
    if seen:
      pieces.append(f'{"M" if moves else "L"}{across(x):.1f} {up(y):.1f}')
    moves = not seen
  values = json.dumps([float(f'{y:.6g}') if seen else None
                       for y, seen in zip(line.y, there, strict=True)])  # fmt: skip
  path = tag(
    'path', d=''.join(pieces), class_=kind, style=f'stroke:{line.tone}', data_name=line.name,
    data_x=json.dumps(line.x.tolist()), data_y=values,
  )  # fmt: skip
  if there.sum() > 40:
    return path
  dots = [
    tag('circle', cx=f'{across(x):.1f}', cy=f'{up(y):.1f}', r=2.2)
    for x, y in zip(line.x[there], line.y[there], strict=True)
  ]
  return tag('g', path, tag('g', dots, style=f'fill:{line.tone}'))


def bar(parts: Mapping[str, float], say: Callable[[float], str]) -> Html:
  """Parts of a whole in one bar, the largest first; `say` makes a text of a value."""
  total, at, pieces, names = sum(parts.values()), 0.0, [], []
  for number, (name, value) in enumerate(sorted(parts.items(), key=lambda part: -part[1])):
    width, said = 1000 * value / total, f'{name} {say(value)} ({value / total:.1%})'
    pieces.append(tag('rect', tag('title', said), x=f'{at:.2f}', width=f'{width:.2f}', height=20,
                      style=f'fill:{tone(number)}'))  # fmt: skip
    names.append((said, tone(number)))
    at += width
  label = ', '.join(said for said, _ in names)
  svg = tag('svg', pieces, viewBox='0 0 1000 20', preserveAspectRatio='none', class_='bar',
            role='img', aria_label=label)  # fmt: skip
  return tag('div', svg, legend(names))


def confusion(counts: np.ndarray, names: Sequence[str]) -> Html:
  """Who is taken for whom: a heat map of up to 40 classes, of more the commonest mistakes.

  Args:
    counts: (classes, classes), rows are true classes; one more column for no prediction.
    names: of the classes.
  """
  n, m = counts.shape
  names = [*names, 'none'][:m]
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  if n > 40:
    wrong = counts * (1 - np.eye(n, m, dtype=int))
    worst = [divmod(int(at), m) for at in np.argsort(-wrong, axis=None, kind='stable')[:20]]
    rows = [[names[i], names[j], int(counts[i, j]), float(shares[i, j])]
            for i, j in worst if wrong[i, j]]  # fmt: skip
    return table(('class', 'taken for', 'count', 'of the class'), rows, 'Commonest mistakes')
  side = max(15, min(31, 480 // n))
  short = [name if len(name) <= 14 else f'{name[:13]}…' for name in names]
  room = max(map(len, short)) * 7 + 8
  left, top = room + 18, (18 if room <= side else room) + 18
  body = [
    tag('text', 'predicted', x=left, y=11),
    tag('text', 'true', transform=f'translate(11 {top}) rotate(-90)', text_anchor='end'),
    tag('rect', x=left, y=top, width=side * m, height=side * n, style='fill:var(--faint)'),
  ]
  for i, name in enumerate(short):
    middle = (i + 0.5) * side
    if i < n:
      body.append(tag('text', name, x=left - 6, y=top + middle + 4, text_anchor='end'))
    place = f'translate({left + middle} {top - 6})'
    flat = dict(transform=place, text_anchor='middle')
    upright = dict(transform=f'{place} rotate(-90)', dy=4)
    body.append(tag('text', name, **(flat if room <= side else upright)))
  for i, j in np.argwhere(counts).tolist():
    count, share, x, y = int(counts[i, j]), float(shares[i, j]), left + j * side, top + i * side
    strength = 0.1 + 0.5 * (share if i == j else math.sqrt(share))
    fill = f'fill:var(--{"good" if i == j else "bad"});fill-opacity:{strength:.2f}'
    said = f'{names[i]} taken for {names[j]}: {count:,}, {share:.1%} of the class'
    cell = tag('rect', x=x + 0.5, y=y + 0.5, width=side - 1, height=side - 1, style=fill)
    text = tag('text', count, x=x + side / 2, y=y + side / 2 + 4, class_='cell')
    body.append(tag('g', tag('title', said), cell, text if len(str(count)) * 7 < side else None))
  label = f'Confusion matrix: {int(np.trace(counts)):,} of {int(counts.sum()):,} are right'
  svg = tag('svg', body, width=left + side * m + 2, height=top + side * n + 2, role='img',
            aria_label=label)  # fmt: skip
  said = 'The shade is the share of the true class; of mistakes, its square root.'
  return tag('div', tag('h3', 'Confusion matrix'), tag('div', svg, class_='wide'),
             tag('p', said, class_='soft'))  # fmt: skip


def reliability(size: np.ndarray, accuracy: np.ndarray, confidence: np.ndarray) -> Html:
  """How often predictions are right, by how sure they are, over a histogram of that.

  Args:
    size: examples in each bin.
    accuracy: of these.
    confidence: mean of these.
  """
  left, side, total = 46, 280, max(float(size.sum()), 1)
  floor = _TOP + side + 60  # of the histogram
  at = lambda share: round(left + share * side, 1)  # noqa: E731
  up = lambda share: round(_TOP + (1 - share) * side, 1)  # noqa: E731
  body = [
    tag('line', x1=left, x2=left + side, y1=up(0), y2=_TOP, class_='axis', stroke_dasharray='3 4'),
    tag('line', x1=left, x2=left + side, y1=floor, y2=floor, class_='rule'),
    tag('text', 'confidence', x=left + side, y=floor + 32, text_anchor='end'),
    tag('text', 'accuracy', transform=f'translate(11 {_TOP}) rotate(-90)', text_anchor='end'),
  ]
  for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
    body += [
      tag('line', x1=left, x2=left + side, y1=up(share), y2=up(share), class_='rule'),
      tag('text', f'{share:g}', x=left - 6, y=up(share) + 4, text_anchor='end'),
      tag('text', f'{share:g}', x=at(share), y=floor + 16, text_anchor='middle'),
    ]
  full = [int(bin) for bin in np.flatnonzero(size > 0)]
  line = 'L'.join(f'{at(confidence[i])} {up(accuracy[i])}' for i in full)
  body.append(tag('path', d=f'M{line}' if line else '', class_='line', style='stroke:var(--c1)'))
  for i in full:
    said = f'sure to {confidence[i]:.1%}, right {accuracy[i]:.1%}: {int(size[i]):,} examples'
    high, wide, share = 44 * size[i] / size.max(), side / len(size), size[i] / total
    body += [
      tag('circle', tag('title', said), cx=at(confidence[i]), cy=up(accuracy[i]),
          r=f'{2.5 + 7 * math.sqrt(share):.1f}', style='fill:var(--c1)'),
      tag('rect', tag('title', said), x=f'{left + i * wide + 1:.1f}', y=f'{floor - high:.1f}',
          width=f'{wide - 2:.1f}', height=f'{high:.1f}', style='fill:var(--c7)'),
    ]  # fmt: skip
  error = shown(float((np.abs(accuracy - confidence) * size).sum() / total))
  svg = tag('svg', body, width=_WIDTH - 20, height=floor + 38, role='img',
            aria_label=f'Reliability diagram, expected calibration error {error}')  # fmt: skip
  said = (
    f'Expected calibration error {error}. On the dashed line, predictions are right as often as '
    'they are sure; bars count the examples.'
  )
  return tag('div', tag('h3', 'Reliability'), tag('div', svg, class_='wide'),
             tag('p', said, class_='soft'))  # fmt: skip
