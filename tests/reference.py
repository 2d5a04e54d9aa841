"""The generated parts of the reference pages: `python -m tests.reference` writes them.

What a page says below the marker is made from the code: fields of configurations from their
dataclasses and docstrings, sizes of models from `vit_jax.flops`.
"""

import dataclasses
import functools
import inspect
import pathlib
import re
import typing

from vit_jax.architecture import MODELS, named, names, variants
from vit_jax.architecture.vit import Sides
from vit_jax.core.schedule import Schedule
from vit_jax.costs import flops
from vit_jax.training import config as config_lib

ROOT = pathlib.Path(__file__).parent.parent
MARKER = '<!-- Everything below is written by `python -m tests.reference`. -->\n'
# Fields whose docstring is that of the whole run.
RUN = {
  'total': 'length of the run, a duration.',
  'batch_size': 'examples per step, over all devices.',
  'mesh': 'layout of the devices; see [Several devices](../how-to/several-devices.md).',
  'seed': 'of initialisation, order, crops and everything else that is random.',
}


def described(cls):
  """What docstrings say of the fields of a dataclass, those of its parents included."""
  found = {}
  for parent in reversed(cls.__mro__):
    # Python 3.13 takes the indentation away itself.
    _, _, attributes = inspect.cleandoc(parent.__doc__ or '').partition('Attributes:\n')
    for several, text in re.findall(
      r'^ {2}(\w[\w, ]*): (.*?)(?=^ {2}\w|\Z)', attributes, re.M | re.S
    ):
      found |= dict.fromkeys(several.split(', '), ' '.join(text.split()))
  return found


def summary(cls):
  """The first sentence of a docstring."""
  return ' '.join((cls.__doc__ or '').split('\n\n')[0].split())


def type_name(kind):
  """As in the source, without modules; None is not mentioned."""
  if kind in (Sides, int | Sides):
    return 'int, or one for each axis'
  text = kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
  return re.sub(r'\b(?:typing|[\w.]+)\.(?=\w)', '', text).replace(' | None', '')


def default_of(field):
  if {'tuples', 'texts'} & {*field.metadata}:
    return '`{}`'
  if field.default is dataclasses.MISSING:
    return 'required'
  if field.default is None:
    return 'unset'
  return f'`{getattr(field.default, "text", field.default)!r}`'


def cell(text):
  return text.replace('|', '\\|')


def section(cls, path, title, seen):
  """Lines of Markdown on a dataclass and on the sections inside it; those in `seen` only once."""
  types, said = typing.get_type_hints(cls), {**(RUN if not path else {}), **described(cls)}
  rows, inner = [], []
  yield f'## {title}\n'
  yield summary(cls) + '\n'
  for field in dataclasses.fields(cls):
    if not field.init:
      continue
    name = f'{path}{field.name}'
    registry = field.metadata.get('choice') or field.metadata.get('choices')
    if registry:
      key = f'{name}.KEY' if 'choices' in field.metadata else name
      default, text = field.metadata['default'], ', '.join(f'`{choice}`' for choice in registry)
      known = seen.setdefault(id(registry), key)
      where = 'below' if known == key else f'those of `{known}`'
      rows.append((f'{key}.name', 'str', f"`'{default}'`" if default else 'required',
                   f'one of {text}; further fields are {where}'))  # fmt: skip
      for choice, chosen in registry.items() if known == key else ():
        inner.append((chosen, f'{key}.', f'`{key}`, name `{choice}`'))
    elif dataclasses.is_dataclass(types[field.name]) and types[field.name] is not Schedule:
      inner.append((types[field.name], f'{name}.', f'`{name}`'))
    else:
      text = said.get(field.name) or ('' if 'Attributes:' in (cls.__doc__ or '') else 'see above')
      assert text, f'{cls.__name__} does not describe {field.name}'
      named = [kind for kind in ('tuples', 'texts') if kind in field.metadata]
      kind = f'{named[0]} by name' if named else type_name(types[field.name])
      rows.append((name, kind, default_of(field), text))
  if rows:
    yield '| field | type | default | meaning |'
    yield '|---|---|---|---|'
    for name, kind, default, text in rows:
      mark = '°' if config_lib.is_free(name) else ''
      yield f'| `{name}`{mark} | {cell(kind)} | {cell(default)} | {cell(text)} |'
    yield ''
  for other, where, heading in inner:
    yield from section(other, where, heading, seen)


def configuration():
  """Every field of `config_lib.Config`."""
  return '\n'.join(section(config_lib.Config, '', 'The run', {}))


def models():
  """Sizes and costs of every variant, without a head."""
  lines = ['| variant | width | depth | MLP | heads | image | parameters | GMACs |',
           '|---|---|---|---|---|---|---|---|']  # fmt: skip
  for name in names():
    kind, variant = named(name)
    config = MODELS[kind](variant).resolve()
    cost = flops.costs(config)
    sides = 'x'.join(map(str, config.image_size))
    numbers = ' | '.join(str(getattr(config, field, '')) for field in variants.NUMBERS)
    lines.append(
      f'| `{name}` | {numbers} | {sides} | {cost.parameters():,} | {cost.total("macs") / 1e9:.2f} |'
    )
  return '\n'.join(lines) + '\n'


def commands():
  """Modules that can be run, as `python -m` wants them named."""
  found = []
  for path in [*ROOT.glob('vit_jax/**/*.py'), ROOT / 'experiments/sweep.py',
               ROOT / 'experiments/report.py']:  # fmt: skip
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    if path.name == '__main__.py':
      found.append(name.removesuffix('.__main__'))
    elif "__name__ == '__main__'" in path.read_text():
      found.append(name)
  return sorted(found)


def written(page, generate):
  """The page with its generated part made anew."""
  head, marker, _ = (ROOT / page).read_text().partition(MARKER)
  assert marker, f'{page} lacks {MARKER}'
  return f'{head}{marker}\n{generate()}'


PAGES = {
  page: functools.partial(written, page, generate)
  for page, generate in {
    'docs/reference/configuration.md': configuration,
    'docs/reference/models.md': models,
  }.items()
}

if __name__ == '__main__':
  for page, make in PAGES.items():
    (ROOT / page).write_text(make())
