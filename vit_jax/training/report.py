"""The page of a run: report.html, made of what is in its directory alone. No JAX."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.checkpoints import formats
from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError
from vit_jax.core.intervals import wilson
from vit_jax.draw import page, plots
from vit_jax.draw.page import Html, facts, is_number, section, shown, table, tag
from vit_jax.training import config as config_lib
from vit_jax.training.left import Left

_COUNTS = ('examples', 'skipped')  # are reported beside the scores of every evaluation
_GROUPS = {'worst': 'Worst predictions', 'best': 'Best predictions', 'examples': 'Predictions'}
Path = tuple[str, ...]


def write(workdir: str | paths.Path, out: str | paths.Path = '') -> paths.Path:
  """Makes one page of a run, complete or not, that needs no other file.

  Args:
    workdir: directory of the run.
    out: the file to write; report.html in `workdir` if not given.

  Returns:
    Its path.

  Raises:
    RunError: if there is no run, or the file cannot be written.
  """
  run = Left(paths.at(workdir))
  path = paths.at(out) if out else run.folder / 'report.html'
  paths.write_text(path, _whole(run))
  return path


def _whole(run: Left) -> str:
  head, rest = [
    [run.part(what, functools.partial(make, run)) for what, make in parts]
    for parts in (
      (('the description', _about), ('the summary', _summary), ('the command', _command)),
      (
        ('the curves', _curves),
        *((f'evals/{name}', functools.partial(_evaluation, name=name)) for name in run.evals),
        ('the plan', _plan), ('the time', _time), ('the machine', _machine),
        ('the recipe', _recipe),
      ),
    )
  ]  # fmt: skip
  signs = run.result.get('signs', {}).get('found', {}).values()
  said = [*run.notes, *(f'From step {shown(s["step"])} on: {s["text"]}.' for s in signs)]
  notes = tag('ul', [tag('li', note) for note in said], class_='notes')
  name = run.folder.resolve().name
  return page.document(name, tag('h1', name), head, notes if said else None, rest)


def _about(run: Left) -> Html:
  """What it is, in a sentence, and whether it is complete."""
  config, model, data = run.config, run.section('model'), run.section('data')
  source, forked = run.section('data', 'source'), run.result.get('forked')
  total = str(config.get('total', ''))
  size = [f'{key} {model[key]}' for key in ('width', 'depth') if model.get(key)]
  if model.get('image_size'):
    size.append(f'images of {"×".join(map(str, model["image_size"]))}')
  where = [source[key] for key in ('dataset', 'dir', 'file', 'name') if source.get(key)]
  said = [
    f'{run.section("task").get("name", "a run")} with {model.get("name", "a model")}',
    f' {model["variant"]}' if model.get('variant') else '',
    f' ({", ".join(size)})' if size else '',
    f', trained on {where[0]}, split {data.get("split")}' if where else '',
    f', for {total} in batches of {config.get("batch_size")}' if total else '',
    f', from {config["init"]}' if config.get('init') else '',
    *(f' (commit {commit[:12]})' for commit in run.result.get('origins', {}).values()),
    f', forked from {forked["from"]} at step {shown(forked["step"])}' if forked else '',
    f', {len(run.lanes)} lanes side by side' if run.lanes else '',
    *(
      f', which went back from step {shown(back["step"])} to {shown(back["to"])} after a spike'
      for back in run.result.get('rewound', [])
    ),
  ]
  text = ''.join(said)
  if steps := next((s['total'] for s in reversed(run.sessions) if s.get('total')), None):
    total = shown(steps)
  elif re.fullmatch(r'[\d_]+(\s*steps?)?', total):
    total = shown(config_lib.steps(total, batch_size=1, epoch=1))
  state = f'Not complete: step {shown(run.step)}{" of " if total else ""}{total}.'
  done = tag('span', 'Complete.', class_='state done')
  return tag('p', f'{text[:1].upper()}{text[1:]}. ',
             done if run.result else tag('span', state, class_='state'))  # fmt: skip


def _summary(run: Left) -> Html:
  """The first scores of the evaluations, and what it took."""
  main, result, rows = [], run.result, {'steps': shown(run.step)}
  most = 1 if len(run.evals) > 1 else 3
  for name in run.evals:
    scores = [pair for pair in run.values(name).items() if pair[0] not in _COUNTS]
    values = run.values(name)
    main += [
      (f'{name}/{key}', f'{_spread(value)}{_interval(values, key)}') for key, value in scores[:most]
    ]
  if probe := run.plan.get('probe'):
    values = {'top1': probe[0], 'examples': probe[1]}
    main.append(('linear probe before', f'{_spread(probe[0])}{_interval(values, "top1")}'))
  if not main and 'train/loss' in run.curves:
    main = [('train/loss', _spread(run.curves['train/loss'].values[-1].tolist()))]
  if result:
    mfu = result.get('mfu')
    rows |= {
      'epochs': f'{result["epochs"]:.4g}', 'parameters': shown(result['parameters']),
      'images/s per chip': f'{result["images_per_second_per_chip"]:,.0f}',
      'MFU': f'{mfu:.1%}' if mfu else '', 'time': _duration(sum(result['seconds'].values())),
      'device': f'{result["devices"]} × {result["device"]}',
    }  # fmt: skip
  rows['started'] = _moment(run.sessions[0])[:10] if run.sessions else ''
  strip = [(name, value) for name, value in rows.items() if value]
  return tag('div', facts(main, 'strip main'), facts(strip, 'strip'))


# Shares of the examples of an evaluation that are right.
_SHARES = ('top1', 'top5')


def _interval(values: Mapping[str, Any], key: str) -> str:
  """Of a share of examples its 95 % interval, ' (0.79 to 0.9)'; '' of anything else."""
  share, count = values[key], values.get('examples')
  if key not in _SHARES or not is_number(share) or not is_number(count) or not count:
    return ''
  return f' ({" to ".join(shown(end) for end in wilson(share * count, count))})'


def _plan(run: Left) -> Html | None:
  """Why it is as it is, where something chose that."""
  lines = run.plan.get('lines') or []
  return section('Why it is so', tag('ul', [tag('li', each) for each in lines])) if lines else None


def _command(run: Left) -> Html:
  """To repeat it."""
  if not run.sessions or not run.sessions[-1]['command']:
    return tag('p', 'The command that started it is not known.', class_='soft')
  first, last = run.sessions[0], run.sessions[-1]
  said = f'Started {_moment(first)}.'
  if run.sessions[1:]:
    count, step = len(run.sessions), shown(last['step'])
    said += f' This is session {count}, which went on at step {step}, {_moment(last)}.'
  flags = re.split(" (?='?--)", last['command'])
  words = [page.join(' ' if at else None, tag('span', each)) for at, each in enumerate(flags)]
  return tag('div', tag('div', tag('pre', words), class_='command'),
             tag('p', said, class_='soft'))  # fmt: skip


def _curves(run: Left) -> Html:
  charts: dict[tuple[int, str], list[str]] = {}
  for key, curve in run.curves.items():
    name, _, metric = key.rpartition('/')
    if metric not in _COUNTS or np.nanmin(curve.values) < np.nanmax(curve.values):
      own = name in ('', 'train')  # else a chart has one metric of all evaluations
      place = 2 * (own and key != 'train/loss') + (not own)
      charts.setdefault((place, key if own or run.lanes else metric), []).append(key)
  made = []
  for (_, title), keys in sorted(charts.items(), key=lambda pair: pair[0][0]):
    lines: list[plots.Line] = []
    for key in keys:
      columns = run.curves[key].values.T
      names, count = run.lanes if columns[1:].size else [key], max(len(columns), len(keys))
      lines += [
        plots.Line(name, run.curves[key].steps, values, plots.tone(len(lines) + at, count))
        for at, (name, values) in enumerate(zip(names, columns, strict=False))
      ]
    noisy = title == 'images_per_second' or title.startswith('train/')
    title = title if keys[1:] else keys[0]
    made.append(plots.chart(title, lines, smooth=noisy, named=bool(keys[1:])))
  lanes = [(name, plots.tone(at, len(run.lanes))) for at, name in enumerate(run.lanes)]
  return section('Curves', plots.legend(lanes) if lanes else None,
                 tag('div', made, class_='grid') if made else None)  # fmt: skip


def _evaluation(run: Left, name: str) -> Html:
  """Scores, figures, tables and pictures."""
  known, values = run.evals[name], run.values(name)
  words = (('evaluator', ''), ('split', 'on split '), ('step', 'at step '))
  about = ' '.join(f'{word}{shown(known[key])}' for key, word in words if key in known)
  about = f'{about[:1].upper()}{about[1:]}.'
  parts: list[Any] = [tag('p', about, class_='soft') if known else None]
  if run.lanes:
    rows = [[lane, *(value[at] for value in values.values())] for at, lane in enumerate(run.lanes)]
    return section(f'Evaluation: {name}', parts, table(['lane', *values], rows))
  draw = functools.partial(run.part, f'evals/{name}')
  arrays = run.part(f'evals/{name}.npz', lambda: run.arrays(name)) or {}
  parts += [
    facts([(key, f'{shown(v)}{_interval(values, key)}') for key, v in values.items()], 'strip'),
    draw(lambda: _figures(known, arrays)), draw(lambda: _tables(known, arrays)),
    draw(lambda: _pictures(run, known)),
  ]  # fmt: skip
  return section(f'Evaluation: {name}', parts)


def _names(known: Mapping[str, Any], count: int) -> list[str]:
  """Of classes, from the first table if that has all of them."""
  rows = [row for each in (known.get('tables') or ())[:1] for row in each['rows']]
  given = known.get('classes') or [row[0] for row in rows if len(rows) == count]
  return [*map(shown, given[:count]), *(f'class {number}' for number in range(len(given), count))]


def _figures(known: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Html | None:
  made = []
  if 'confusion' in arrays:
    counts = arrays['confusion']
    made.append(plots.confusion(counts, _names(known, len(counts))))
  if 'bin_size' in arrays:
    bins = (arrays[f'bin_{each}'] for each in ('size', 'accuracy', 'confidence'))
    made.append(plots.reliability(*bins))
  return tag('div', made, class_='grid two') if made else None


def _tables(known: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Html]:
  """With the worst rows first."""
  tables: list[dict[str, Any]] = known.get('tables') or []
  if not tables and 'accuracy' in arrays:  # older runs left no more, or not even the examples
    there = {name: arrays[name].tolist() for name in ('examples', 'accuracy') if name in arrays}
    columns = {'class': _names(known, len(arrays['accuracy'])), **there}
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    tables = [dict(title='Accuracy by class', columns=[*columns], rows=rows, best='high')]
  made = []
  for each in tables:
    sign, order = {'high': (1, 'ascending'), 'low': (-1, 'descending')}.get(each['best'], (0, ''))
    badness = lambda row, sign=sign: (  # noqa: E731
      sign * row[-1] if is_number(row[-1]) and row[-1] == row[-1] else math.inf
    )
    rows = sorted(each['rows'], key=badness) if sign else each['rows']
    made.append(table(each['columns'], rows, each['title'], order))
  return made


def _pictures(run: Left, known: Mapping[str, Any]) -> list[Html]:
  groups: dict[str, list[Any]] = {}
  for each in known.get('pictures') or ():
    groups.setdefault(each['group'], []).append(
      run.part(f'evals/{each["file"]}', functools.partial(_picture, run, known, each))
    )
  return [
    tag('div', tag('h3', _GROUPS.get(group, group)), tag('div', figures, class_='pictures'))
    for group, figures in groups.items()
  ]


def _picture(run: Left, known: Mapping[str, Any], each: Mapping[str, Any]) -> Html:
  file, name = each['file'], each['name']
  if file.startswith('/') or '..' in file.split('/'):
    raise RunError(f'evals/{file} is not shown: it is not in evals/')
  alt = f'{name}: {shown(each.get("facts") or "a prediction")}'
  said = f' {known.get("score") or "score"} {shown(each["score"])}' if each.get('score') else ''
  data = (run.folder / 'evals' / file).read_bytes()
  return tag('figure', page.picture(data, alt[:300]), tag('figcaption', tag('b', name), said))


def _time(run: Left) -> Html:
  spent = {phase: value for phase, value in run.result.get('seconds', {}).items() if value > 0}
  return section('Time', plots.bar(spent, _duration) if spent else None)


def _machine(run: Left) -> Html:
  """Code, devices, and what is left to go on from."""
  rows: list[tuple[str, Any]] = []
  if result := run.result:
    work = result['flops']
    rows = [
      ('devices', f'{result["devices"]} × {result["device"]}, processes: {result["processes"]}'),
      ('mesh', ', '.join(f'{axis} {size}' for axis, size in result['mesh'].items())),
      ('FLOPs', f'{work["training_total"]:.3g}; {work["training_per_image"]:.3g} an image'),
      ('configuration', tag('code', result['config_hash'])),
      ('revision', tag('code', result['git'] or 'unknown')), ('Python', result['python']),
      *((name, version or 'unknown') for name, version in result['packages'].items()),
    ]  # fmt: skip
  if run.checkpoints:
    rows.append(('checkpoints', f'steps {", ".join(f"{step:,}" for step in run.checkpoints)}'))
  return section('Code and machine', facts(rows, 'facts columns'))


def _recipe(run: Left) -> Html:
  """The fields that differ from their defaults, and all of them."""
  whole = {key: value for key, value in run.config.items() if key != 'format'}
  found = run.part('the comparison of config.json with the defaults', lambda: _changed(run.config))
  if not found:
    return section('Recipe', _fields(dict(_leaves(whole)), ()) if whole else None)
  every, own = found
  return section(
    'Recipe', tag('p', 'What differs from the defaults.', class_='soft'),
    _fields({path: every[path] for path in own}, ()),
    tag('details', tag('summary', f'All {len(every)} fields'), _fields(every, own)),
  )  # fmt: skip


def _changed(config: Mapping[str, Any]) -> tuple[dict[Path, Any], list[Path]]:
  """All fields in today's format, and those that would be others if they were left out."""
  complete = lambda given: config_lib.to_plain(schema.complete(config_lib.Config, given))  # noqa: E731
  whole = complete(formats.record(dict(config), 'config.json'))

  def needed(path: Path) -> bool:
    try:
      return complete(_without(whole, path)) != whole
    except RunError:  # it has no default
      return True

  every = dict(_leaves(whole))
  return every, [path for path in every if needed(path)]


def _without(tree: Mapping[str, Any], path: Path) -> dict[str, Any]:
  first, rest = path[0], path[1:]
  return {key: _without(value, rest) if key == first else value
          for key, value in tree.items() if key != first or rest}  # fmt: skip


def _leaves(tree: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping) and value:
      yield from _leaves(value, (*path, key))
    else:
      yield (*path, key), value


def _fields(fields: Mapping[Path, Any], strong: Any) -> Html:
  """By section, those of `strong` emphasised."""
  cards: dict[str, list[tuple[str, Any]]] = {}
  for path, value in fields.items():
    text = value if isinstance(value, str) else 'unset' if value is None else json.dumps(value)
    text = '–' if value in ('', [], {}) else text
    title, name = (path[0], '.'.join(path[1:])) if path[1:] else ('run', path[0])
    cards.setdefault(title, []).append((name, tag('b', text) if path in strong else text))
  made = [tag('div', tag('h3', title), facts(rows)) for title, rows in cards.items()]
  return tag('div', made, class_='cards')


def _spread(value: Any) -> str:
  """A number, or the ends of several."""
  found = value if isinstance(value, list) else [value]
  there = sorted(each for each in found if is_number(each) and math.isfinite(each))
  return ' to '.join(dict.fromkeys(map(shown, there[:1] + there[-1:]))) or shown(None)


def _duration(seconds: float) -> str:
  if seconds < 100:
    return f'{seconds:.1f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours:,} h {minutes} min' if hours else f'{minutes} min'


def _moment(session: Mapping[str, Any]) -> str:
  return re.sub(r'^(.{10})T(.{5}).*', r'\1 \2', session['started'])
