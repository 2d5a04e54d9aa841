"""What a model costs, by part and by convention: `python -m vit_jax.flops S/16 --image=224`."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from vit_jax.architecture import MODELS, Backbone, named
from vit_jax.architecture.backbones import REMAT
from vit_jax.architecture.towers import (
  Composition,
  TextArchitecture,
  TwoTowersArchitecture,
  encoders,
)
from vit_jax.architecture.vit import ViTArchitecture
from vit_jax.core import command, schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs.flops import (
  CONVENTION,
  CONVENTIONS,
  GROUPS,
  Costs,
  Memory,
  costs,
  forward_macs,
  memory,
  train_flops,
)  # fmt: skip

__all__ = [
  'CONVENTION', 'CONVENTIONS', 'GROUPS', 'Costs', 'Memory', 'costs', 'forward_macs', 'memory',
  'train_flops',
]  # fmt: skip

# Policies of `encoder.remat` from fastest to smallest, as the command shows them.
POLICIES = ('none', 'names', 'dots', 'attn,hidden', 'context,attn', 'full')


def model(variant: str, image: str, classes: int | None, text: bool, changes: dict) -> Any:
  """The resolved description of the model that a command line names.

  Args:
    variant: of `architecture.variants`, or of another kind, 'convnext:T'.
    image: side of the images, or height and width, '224x384', after frames if there are some; ''
      for the variant's own.
    classes: of the head; None for 1000, and for the width of the shared space with `text`.
    text: whether there is a text tower, too.
    changes: fields of the image tower, and with 'text.' before them of the text tower.

  Raises:
    RunError: for anything that is unknown or contradictory.
  """
  fields = {k: v for k, v in changes.items() if not k.startswith('text.')}
  words = {k.removeprefix('text.'): v for k, v in changes.items() if k.startswith('text.')}
  if words and not text:
    raise RunError(f'text.{next(iter(words))} is of a text tower: add --text')
  if image:
    if not re.fullmatch(r'\d+(x\d+){0,2}', image):
      raise RunError(f'--image={image}: write 224, or height and width, 224x384, or 8x224x224')
    sides = tuple(int(side) for side in image.split('x'))
    fields['image_size'] = sides if len(sides) > 1 else sides * 2
  if classes is not None or not text:
    fields['num_classes'] = 1000 if classes is None else classes
  name, variant = named(variant)
  image_kind = MODELS[name]
  if text and image_kind is not ViTArchitecture:
    raise RunError(f'--text is beside a ViT, not a {name}')
  for kind, given in ((image_kind, fields), (TextArchitecture, words)):
    known = [field.name for field in dataclasses.fields(kind)]
    for name, value in given.items():
      if name not in known:
        raise RunError(f'unknown field {name!r} of a model: {suggest(name, known)}')
      if isinstance(value, list):
        given[name] = tuple(value)
  if not text:
    return schema.build(image_kind, {'variant': variant, **fields}, 'model').resolve()
  towers = (
    schema.build(ViTArchitecture, {'variant': '', **fields}, 'model'),
    schema.build(TextArchitecture, {'variant': '', **words}, 'text'),
  )
  return TwoTowersArchitecture(variant, *towers).resolve()


def record(config: Any, batch: int, images: float) -> dict[str, Any]:
  """Everything that the command says, as plain types."""
  cost = costs(config, examples=batch)
  by_policy = {}
  for policy in policies(config):
    changed = _with_remat(config, policy)
    held = memory(changed, batch)
    step = costs(changed, examples=batch).total('train_exact')
    by_policy[policy] = {**held._asdict(), 'total': held.total, 'train_exact': step}
  return {
    'model': dataclasses.asdict(config), 'tokens': cost.tokens,
    'parameters': cost.parameters(),
    'parts': [part._asdict() for part in cost.parts],
    'conventions': {name: cost.total(name) for name in cost.conventions},
    'images': images, 'batch': batch, 'memory': by_policy,
  }  # fmt: skip


def policies(config: Any) -> tuple[str, ...]:
  """Those of `POLICIES` that a model has."""
  return REMAT if isinstance(config, Backbone) else POLICIES


def _with_remat(config: Any, policy: str) -> Any:
  if not isinstance(config, Composition):
    return dataclasses.replace(config, remat=policy)
  return dataclasses.replace(
    config, **{n: _with_remat(t, policy) for n, t in config.towers.items()}
  )


def main(
  variant: str, image: str, classes: int | None, text: bool, batch: int, images: float,
  as_json: bool, changes: dict,
) -> None:  # fmt: skip
  """Prints the costs of a model."""
  if batch < 1 or images < 0:
    raise RunError('--batch must be at least 1 and --images not negative')
  config = model(variant, image, classes, text, changes)
  found = record(config, batch, images)
  if as_json:
    print(json.dumps(found, indent=1))
    return
  print('\n'.join(describe(config, found)))


def describe(config: Any, found: dict[str, Any]) -> list[str]:
  """The lines of a `record` for people."""
  macs, batch, images = (found['conventions']['macs'], found['batch'], found['images'])
  lines = [f'{"part":<17}{"parameters":>16}{"GMACs":>11}{"share":>9}']
  rows = [(part['name'], part['params'], part['macs']) for part in found['parts']]
  for name, params, products in (*rows, ('total', found['parameters'], macs)):
    if params or products:
      lines.append(f'{name:<17}{params:>16,}{products / 1e9:>11.4f}{products / macs:>9.2%}')
  tokens = ' and '.join(
    f'{n} {name.replace("/", " ")}tokens' for name, n in found['tokens'].items()
  )
  many = f'{"of " + format(images, "g"):>15}' if images else ''
  lines += ['', f'{"G per image":<19}{"":>12}{many}  {tokens}']
  for name, value in found['conventions'].items():
    total = f'{value * images / 1e18:>13.4g} E' if images else ''
    lines.append(f'{name:<19}{value / 1e9:>12.3f}{total}  {CONVENTIONS[name]}')
  tower = next(iter(encoders(config).values()))
  gib = lambda size: f'{size / 2**30:12.3f}'  # noqa: E731
  state = found['memory']['none']
  lines += ['', f'GiB to train with AdamW on {batch} at a time, {tower.dtype}']
  lines += [
    f'{name:<17}{gib(state[name])}' for name in ('parameters', 'gradients', 'optimizer', 'copies')
  ]
  lines += ['', f'{"remat":<17}{"activations":>12}{"one block":>12}{"total":>12}{"FLOPs":>9}']
  for name, row in found['memory'].items():
    sizes = ''.join(gib(row[key]) for key in ('activations', 'recomputed', 'total'))
    more = row['train_exact'] / state['train_exact']
    lines.append(f'{name:<17}{sizes}{more:>9.3f}')
  return lines


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.flops',
    'Says what a model costs, by part and by convention. Any field of the model can be given as '
    '--field=value.',
    (
      'S/16 --image=224 --batch=256 --images=1.28e9',
      'siglip:B/16 --text --dtype=bfloat16 --registers=4 --json',
    ),
  )
  parser.add_argument(
    'variant', help="like S/16, dinov2:B/14 or convnext:T; '' takes sizes from fields only"
  )
  parser.add_argument('--image', default='', help='side of the images, or 224x384, 8x224x224')
  parser.add_argument('--classes', type=int, help='of the head; 1000 if not given')
  parser.switch('--text', 'with the text tower of CLIP or SigLIP')
  parser.add_argument('--batch', type=int, default=128, help='images at a time on a device')
  parser.add_argument('--images', type=float, default=0.0, help='seen in training, for totals')
  parser.add_argument('--json', dest='as_json', action='store_true', help='everything as JSON')
  command.run(parser, main)
