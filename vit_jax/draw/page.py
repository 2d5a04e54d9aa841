"""Pages of HTML that need nothing else: elements made of escaped texts, a style, a small script."""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.core import text

# Cannot be in a page, or would turn the text around them.
_UNSEEN = re.compile('[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]')
_VOID = {'meta', 'link', 'img', 'br'}
_PNG = b'\x89PNG\r\n\x1a\n'
_TINY = 128  # pixels: smaller pictures are enlarged without smoothing
# Rows of a table that are seen at once.
MOST = 30


class Html(str):
  """Text that is markup already; any other is escaped where it becomes part of a page."""


def join(*parts: Any) -> Html:
  """Texts, markup and lists of both, one after another; None is nothing."""
  out = []
  for part in parts:
    if isinstance(part, Html):
      out.append(part)
    elif isinstance(part, list | tuple):
      out.append(join(*part))
    elif part is not None:
      out.append(html.escape(_UNSEEN.sub('\ufffd', str(part))))
  return Html(''.join(out))


def tag(name: str, /, *inside: Any, **attributes: Any) -> Html:
  """An element. `class_` is class, `data_x` is data-x; None leaves an attribute out."""
  said = ''.join(
    f' {key.rstrip("_").replace("_", "-")}="{join(value)}"'
    for key, value in attributes.items() if value is not None
  )  # fmt: skip
  return Html(f'<{name}{said}>' + ('' if name in _VOID else f'{join(*inside)}</{name}>'))


def shown(value: Any) -> str:
  """A value from a JSON file as people read it."""
  if isinstance(value, str):
    return value
  if isinstance(value, Mapping):
    return ', '.join(f'{key} {shown(each)}' for key, each in value.items())
  if isinstance(value, list | tuple):
    return ', '.join(
      ' '.join(map(shown, each.values())) if isinstance(each, Mapping) else shown(each)
      for each in value
    )
  if isinstance(value, bool) or not is_number(value):
    return '\N{EN DASH}' if value is None else str(value).lower()
  large = 1e4 <= abs(value) < 1e15
  return re.sub('^-', '\N{MINUS SIGN}', f'{value:,.0f}' if large else text.number(value))


def is_number(value: Any) -> bool:
  """Whether a value is a number that a float can hold; NaN is one."""
  return type(value) is float or (type(value) is int and abs(value) < 1e300)


def section(title: str, *inside: Any) -> Html:
  """A part of a page under a heading, if anything is in it."""
  found = join(*inside)
  return tag('section', tag('h2', title), found) if found else found


def facts(pairs: Sequence[tuple[str, Any]], class_: str = 'facts') -> Html:
  """Names and what they stand for."""
  rows = [tag('div', tag('dt', name), tag('dd', value)) for name, value in pairs]
  return tag('dl', rows, class_=class_) if rows else Html()


def table(
  columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = '', order: str = ''
) -> Html:
  """A table whose rows a click on a column sorts, the first `MOST` of them seen at once.

  Args:
    columns: their names.
    rows: plain values, one for each column; the first says what the row is about.
    title: over the table.
    order: 'ascending' or 'descending' if the rows are sorted by the last column.
  """
  last, heads, cells = len(columns) - 1, [], []
  for at, name in enumerate(columns):
    values = [row[at] for row in rows]
    number = all(value is None or is_number(value) for value in values)
    kind, made = 'n' if number else None, []
    for value, said in zip(values, _aligned(values) if number else map(shown, values), strict=True):
      exact = ('' if value is None else repr(value)) if number else None
      scope = None if at else 'row'
      made.append(tag('td' if at else 'th', said, scope=scope, class_=kind, data_v=exact))
    cells.append(made)
    sort = order if at == last and order else None
    heads.append(tag('th', name, scope='col', class_=kind, aria_sort=sort))
  lines = [tag('tr', line) for line in zip(*cells, strict=True)]
  seen, more = [
    tag('div', tag('table', tag('thead', tag('tr', heads)), tag('tbody', some),
                   aria_label=title or None), class_='wide')
    for some in (lines[:MOST], lines[MOST:])
  ]  # fmt: skip
  summary = tag('summary', f'{len(lines) - MOST:,} more')
  rest = tag('details', summary, more) if lines[MOST:] else None
  return tag('div', tag('h3', title) if title else None, seen, rest, class_='rows')


def _aligned(values: Sequence[Any]) -> list[str]:
  """Numbers with as many decimals as any of them needs, but no more than four."""
  said = [shown(value) for value in values]
  digits = min(4, max([0, *(len(each.partition('.')[2]) for each in said)]))
  for at, value in enumerate(values):
    if value is not None and math.isfinite(value) and 'e' not in said[at]:
      said[at] = re.sub('^-', '\N{MINUS SIGN}', f'{value:,.{digits}f}')
  return said


def picture(data: bytes, alt: str) -> Html:
  """A PNG file inside the page.

  Raises:
    ValueError: if it is something else.
  """
  if not data.startswith(_PNG) or len(data) < 24:
    raise ValueError('it is not a PNG file')
  width, height = (int.from_bytes(data[at : at + 4], 'big') for at in (16, 20))
  return tag(
    'img', src=f'data:image/png;base64,{base64.b64encode(data).decode()}', alt=alt, width=width,
    height=height, class_='tiny' if max(width, height) < _TINY else None,
  )  # fmt: skip


def document(title: str, *inside: Any) -> str:
  """A whole page, in ASCII, which no encoding can damage. Nothing outside of it may be loaded."""
  own = "'unsafe-inline'"
  policy = f"default-src 'none'; img-src data:; style-src {own}; script-src {own}"
  head = tag(
    'head', tag('meta', charset='utf-8'),
    tag('meta', http_equiv='Content-Security-Policy', content=policy),
    tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
    tag('meta', name='color-scheme', content='light dark'),
    tag('title', title), tag('link', rel='icon', href='data:,'), tag('style', Html(STYLE)),
  )  # fmt: skip
  body = tag('body', tag('main', *inside), tag('script', Html(SCRIPT)))
  page = f'<!DOCTYPE html>\n{tag("html", head, body, lang="en")}\n'
  return page.encode('ascii', 'xmlcharrefreplace').decode()


STYLE = """
:root { color-scheme: light; --paper: #fff; --ink: #17202a; --soft: #55616e; --line: #dde2e8;
  --faint: #f4f6f8; --good: #2a78b5; --bad: #d9622b; --warn: #8f4a00; --done: #1d7a46;
  --c1: #1f6fb2; --c2: #c8501f; --c3: #1b8558; --c4: #8a4fb0; --c5: #96690a; --c6: #c2397e;
  --c7: #5a6773; --c8: #0c8496; }
@media screen and (prefers-color-scheme: dark) { :root { color-scheme: dark; --paper: #12161b;
  --ink: #e4e8ec; --soft: #9ba6b2; --line: #2b323a; --faint: #1b2026; --good: #4a9ad8;
  --bad: #e0703a; --warn: #f0b060; --done: #63c78e; --c1: #62adef; --c2: #f08c5e; --c3: #55c18f;
  --c4: #c193e8; --c5: #dfb143; --c6: #f080b9; --c7: #a8b4c0; --c8: #4ec3d5; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 74rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.15; margin: 0; letter-spacing: -.015em; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 3rem 0 .9rem; padding-top: .7rem;
  border-top: 1px solid var(--line); break-after: avoid; }
h3 { font-size: .95rem; margin: 1.6rem 0 .4rem; break-after: avoid; }
p { margin: .4rem 0; max-width: 44rem; }
.soft, figcaption, summary { color: var(--soft); font-size: .875rem; }
td, th, dt, dd, figcaption, text { unicode-bidi: isolate; }
.state { font-weight: 600; color: var(--warn); }
.state.done { color: var(--done); }
.notes { margin: 1.2rem 0 0; padding: .6rem 1rem .6rem 1.9rem; border-left: 3px solid var(--warn);
  background: var(--faint); font-size: .875rem; }
dl { margin: 0; } dd { margin: 0; }
.strip { display: grid; gap: 1.1rem 1rem; margin: 1.6rem 0 0; padding: 1rem 0;
  grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr));
  border: solid var(--line); border-width: 1px 0; }
.strip dt { color: var(--soft); font-size: .8rem; }
.strip dd { font-size: 1.1rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
.strip.main { border: 0; padding: 0; display: flex; flex-wrap: wrap; column-gap: 3rem; }
.strip.main dd { font-size: 2rem; line-height: 1.15; letter-spacing: -.02em; }
.facts { font-size: .875rem; }
.columns { columns: 24rem 2; column-gap: 2.5rem; }
.facts > div { display: grid; grid-template-columns: minmax(7rem, 11rem) 1fr; gap: 1rem;
  padding: .22rem 0; border-bottom: 1px solid var(--line); break-inside: avoid; }
.facts dt { color: var(--soft); } .facts dd { font-variant-numeric: tabular-nums; }
.command { position: relative; margin: 1.4rem 0 0; }
pre { margin: 0; padding: .8rem 1rem; background: var(--faint); border-radius: 6px;
  font: .8125rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  white-space: pre-wrap; }
pre span { display: inline-block; max-width: 100%; }
h2 + .legend { margin-bottom: 1rem; }
button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
.command button { position: absolute; top: .45rem; right: .45rem; padding: .15rem .6rem;
  background: var(--paper); border: 1px solid var(--line); border-radius: 5px; font-size: .8rem; }
.command:has(button) pre { padding-right: 5rem; }
.grid { display: grid; gap: 1.75rem 1.5rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.grid > * { min-width: 0; }
.grid.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 2rem; }
.cards { columns: 20rem 3; column-gap: 1.5rem; }
.cards > div { break-inside: avoid; padding-bottom: 1.4rem; }
.grid h3, .grid .rows, .cards h3 { margin-top: 0; }
.strip + .grid { margin-top: 1.6rem; }
figure { margin: 0; position: relative; min-width: 0; break-inside: avoid; }
figcaption b { color: var(--ink); font-weight: 600; }
figure > svg { display: block; width: 100%; height: auto; margin-top: .2rem; }
.chart { touch-action: pan-y; overflow: visible; }
text { font-size: 11px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.rule { stroke: var(--line); } .axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.line.raw { stroke-width: 1; opacity: .38; }
.cell { fill: var(--ink); font-size: 10.5px; text-anchor: middle; }
.tip { position: absolute; z-index: 1; pointer-events: none; padding: .3rem .55rem;
  background: var(--ink); color: var(--paper); border-radius: 4px; font-size: .78rem;
  line-height: 1.4; font-variant-numeric: tabular-nums; max-width: 16rem; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .2rem 0; padding: 0;
  list-style: none; font-size: .8125rem; color: var(--soft); }
.legend i { display: inline-block; width: .75rem; height: .75rem; margin-right: .4rem;
  border-radius: 2px; vertical-align: -1px; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
.bar { display: block; width: 100%; height: 1.4rem; border-radius: 4px; margin: .2rem 0 .6rem; }
.wide { overflow-x: auto; }
.rows { max-width: 46rem; margin-top: 1.2rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: .28rem 1.5rem .28rem 0; text-align: left; border-bottom: 1px solid var(--line);
  font-weight: 400; vertical-align: top; }
thead th { color: var(--soft); white-space: nowrap; font-size: .8125rem; }
th.n, td.n { text-align: right; white-space: nowrap; }
th button::after { content: ' \\2195\\fe0e'; opacity: .55; }
th[aria-sort=ascending] button::after { content: ' \\2191'; opacity: 1; }
th[aria-sort=descending] button::after { content: ' \\2193'; opacity: 1; }
summary { cursor: pointer; margin: .6rem 0; }
.pictures { display: grid; gap: 1.2rem 1.5rem; align-items: end;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
img { display: block; max-width: 100%; height: auto; border-radius: 3px; margin-bottom: .3rem; }
img.tiny { image-rendering: pixelated; width: 8rem; }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
:focus-visible { outline: 2px solid var(--c1); outline-offset: 2px; }
@media (max-width: 40rem) { main { padding-top: 1.2rem; } h1 { font-size: 1.5rem; }
  .strip { grid-template-columns: repeat(2, 1fr); } .strip.main dd { font-size: 1.6rem; } }
@page { margin: 14mm; }
@media print { body { font-size: 10pt; } main { max-width: none; padding: 0; }
  .grid { grid-template-columns: 1fr 1fr; } .pictures { grid-template-columns: 1fr 1fr; }
  h2 { margin-top: 1.5rem; } .wide { overflow: visible; } tr { break-inside: avoid; }
  .command button, th button::after { display: none; } pre { background: none; padding: 0; }
  summary { list-style: none; }
  details::details-content { content-visibility: visible; display: block; } }
"""

# Nothing is missing without it: it copies, sorts, and shows the values under the pointer.
SCRIPT = """
'use strict';
const make = (name, where, text = '') => {
  const made = document.createElement(name);
  made.textContent = text;
  return where.appendChild(made);
};
for (const box of navigator.clipboard ? document.querySelectorAll('.command') : []) {
  const button = make('button', box, 'copy');
  button.onclick = () => navigator.clipboard.writeText(box.querySelector('pre').textContent)
    .then(() => { button.textContent = 'copied'; });
}
for (const box of document.querySelectorAll('.rows')) {
  const bodies = [...box.querySelectorAll('tbody')];
  const heads = [...box.querySelectorAll('thead tr')].map(row => [...row.children]);
  const sort = at => {
    const up = heads[0][at].getAttribute('aria-sort') !== 'ascending';
    const rows = bodies.flatMap(body => [...body.rows]), sizes = bodies.map(b => b.rows.length);
    const value = row => row.children[at].dataset.v ?? row.children[at].textContent;
    const gone = text => text === '' || text === 'nan';
    rows.sort((a, b) => {
      const x = value(a), y = value(b);
      if (gone(x) || gone(y)) return gone(x) - gone(y);
      const by = isNaN(x) || isNaN(y) ? x.localeCompare(y, 'en', {numeric: true}) : x - y;
      return up ? by : -by;
    });
    for (const [i, body] of bodies.entries()) body.append(...rows.splice(0, sizes[i]));
    for (const head of heads) for (const [i, cell] of head.entries()) {
      if (i === at) cell.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      else cell.removeAttribute('aria-sort');
    }
  };
  for (const head of heads) for (const [at, cell] of head.entries()) {
    const text = cell.textContent;
    cell.textContent = '';
    make('button', cell, text).onclick = () => sort(at);
  }
}
for (const chart of document.querySelectorAll('.chart')) {
  const [x0, x1, left, right, width] = JSON.parse(chart.dataset.frame);
  const lines = [...chart.querySelectorAll('[data-x]')].map(path => ({
    name: path.dataset.name, x: JSON.parse(path.dataset.x), y: JSON.parse(path.dataset.y)}));
  const rule = chart.querySelector('.pointer'), tip = make('div', chart.parentNode);
  tip.className = 'tip';
  tip.hidden = true;
  chart.onpointermove = event => {
    const box = chart.getBoundingClientRect(), zoom = width / box.width;
    const at = x0 + ((event.clientX - box.left) * zoom - left) / (right - left) * (x1 - x0);
    let step = null;
    for (const {x} of lines) for (const each of x) {
      if (step === null || Math.abs(each - at) < Math.abs(step - at)) step = each;
    }
    const place = left + (step - x0) / (x1 - x0) * (right - left);
    rule.setAttribute('x1', place);
    rule.setAttribute('x2', place);
    rule.setAttribute('visibility', 'visible');
    tip.textContent = '';
    make('div', tip, `step ${step.toLocaleString('en')}`);
    for (const {name, x, y} of lines.slice(0, 16)) {
      const i = x.indexOf(step);
      if (i >= 0 && y[i] !== null) make('div', tip, `${name} ${+y[i].toPrecision(5)}`);
    }
    tip.hidden = false;
    const line = place / zoom, before = line > box.width / 2;
    tip.style.left = `${before ? Math.max(0, line - tip.offsetWidth - 10) : line + 10}px`;
    tip.style.top = `${box.top - chart.parentNode.getBoundingClientRect().top}px`;
  };
  chart.onpointerleave = () => {
    tip.hidden = true;
    rule.setAttribute('visibility', 'hidden');
  };
}
"""
