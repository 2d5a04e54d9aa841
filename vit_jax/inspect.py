"""What is in a checkpoint: `python -m vit_jax.inspect CHECKPOINT`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epy

from vit_jax.architecture import Backbone, Composition, ViTArchitecture, variants
from vit_jax.architecture.backbones import ConvNetArchitecture, receptive_field
from vit_jax.convert import arguments
from vit_jax.core import command
from vit_jax.core.errors import RunError
from vit_jax.core.text import number

# Arguments are checked before JAX is there.
with epy.lazy_imports():
  from vit_jax.convert import adapt, notes, read


def describe(config: Any) -> list[str]:
  """The architecture, one line per fact; of an image tower only what differs from the original."""
  if isinstance(config, Composition):
    lines = [
      f'{name:<6} {line}' for name, tower in config.towers.items() for line in describe(tower)
    ]
    return [*lines, *(f'{name} {value}' for name, value in config.own.items())]
  if isinstance(config, Backbone):
    name = f'{config.kind}:{config.name}' if config.name else config.kind
    fields = {n: value for n, value in dataclasses.asdict(config).items() if n != 'variant'}
    lines = [f'variant {name}', *(f'{field} {value}' for field, value in fields.items())]
    if isinstance(config, ConvNetArchitecture):
      seen = receptive_field(config.layers)
      lines.append(f'receptive field {seen.size}x{seen.size}, one every {seen.stride} pixels')
    return lines
  if not isinstance(config, ViTArchitecture):
    text = dataclasses.asdict(config)
    shown = ('width', 'depth', 'mlp_dim', 'num_heads', 'mlp', 'vocab_size', 'context_length',
             'num_classes', 'causal', 'pool')  # fmt: skip
    return [f'{name} {text[name]}' for name in shown]
  name = variants.name_of(config)
  lines = [f'variant {name}'] if name else []
  always = (*variants.NUMBERS, 'patch_size', 'image_size', 'num_classes')
  for field, value in dataclasses.asdict(config).items():
    if field in always or (field in variants.BASE and value != variants.BASE[field]):
      lines.append(f'{field} {value}')
  return lines


def _run(run: Mapping[str, Any], *, recipe: bool) -> list[str]:
  """What a checkpoint says of the run that it is of: how far, by which code, how good, how made."""
  if not run:
    return []
  busy = sum(run.get('seconds', {}).values())
  lines = [f'step {run["step"]}' + f', after {busy:,.0f} s' * bool(busy)]
  if 'revision' in run:
    lines.append(f'revision {run["revision"] or "not known"}')
  for scores in run.get('evaluated', ()):
    values = '  '.join(f'{n} {number(v)}' for n, v in scores.items() if n != 'step')
    lines.append(f'evaluated at step {scores["step"]}: {values}')
  if recipe and 'recipe' in run:
    lines += [f'{name}={value!r}' for name, value in sorted(_leaves(run['recipe']).items())]
  return lines


def _leaves(tree: Mapping[str, Any], path: str = '') -> dict[str, Any]:
  """Values by dotted name."""
  found = {}
  for name, value in tree.items():
    inner = isinstance(value, Mapping)
    found |= _leaves(value, f'{path}{name}.') if inner else {f'{path}{name}': value}
  return found


def main(checkpoint: str, names: bool, choice: Mapping[str, Any], recipe: bool = False) -> int:
  """Prints dialect, architecture, names, shapes, dtypes and what would not fit."""
  if wrong := [name for name in choice if name in adapt.CHANGES and name != 'patch_size']:
    raise RunError(
      f'{wrong[0]} is changed when a checkpoint is loaded; inspect shows what is in it'
    )
  with notes.printed():
    opened = read.open_checkpoint(checkpoint, **choice)
  card, arrays = opened.card, opened.arrays
  count = sum(map(math.prod, adapt.abstract(opened.config).values()))
  print(f'dialect       {opened.dialect}')
  for at, (name, inside) in enumerate(opened.parts.items()):
    chosen = ' (this one)' if name == opened.part else ''
    print(f'{"" if at else "parts":<13} {name}, {inside} arrays{chosen}')
  if opened.revision:
    print(f'commit        {opened.revision}')
  if opened.prefix:
    print(f'prefix        {opened.prefix}')
  for at, line in enumerate(describe(opened.config)):
    print(f'{"" if at else "architecture":<13} {line}')
  print(f'parameters    {count:,}')
  print(f'images        {"x".join(map(str, card.size))}, mean {card.mean}, std {card.std}')
  how = f'central crop of {card.crop:.3g}' if card.crop else 'aspect ratio not kept'
  how = 'aspect ratio kept, the rest filled up' if card.fills else how
  print(f'              {card.resize}, {how}')
  print(f'class names   {notes.shown(card.class_names) if card.class_names else "none"}')
  if card.task:
    print(f'task          {card.task["name"]}')
  for at, line in enumerate(_run(opened.run, recipe=recipe)):
    print(f'{"" if at else "run":<13} {line}')
  if names:
    print(f'\n{len(arrays)} arrays')
    for name, array in sorted(arrays.items()):
      print(f'  {name}  {tuple(array.shape)}  {array.dtype}')
  problems = opened.problems()
  if not problems and opened.fetch is not None:
    for leaf in opened.leaves().values():  # a damaged one is found
      np.asarray(leaf)
  print('\neverything fits' if not problems else '\nwhat does not fit')
  print('\n'.join(problems), end='\n' if problems else '')
  return 1 if problems else 0


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.inspect', 'Says what is in a checkpoint: dialect, architecture, arrays, what fits.',
    ('B_16.npz', 'runs/photos --no-names --recipe'),
  )  # fmt: skip
  parser.add_argument('checkpoint', help='npz, safetensors or PyTorch file; folder; run directory')
  parser.switch('--recipe', 'of a run: all fields of its configuration')
  parser.add_argument('--no-names', dest='names', action='store_false', help='not every array')
  arguments.run(parser, main)
