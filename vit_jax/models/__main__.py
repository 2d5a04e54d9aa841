"""The models by name: `python -m vit_jax.models [PATTERN]`."""

from __future__ import annotations

import fnmatch
import math

from vit_jax.architecture import MODELS, named, names
from vit_jax.core import command
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs import flops


def main(pattern: str) -> None:
  """Prints a table."""
  wanted = pattern if set(pattern) & set('*?[') else f'*{pattern}*'
  found = [name for name in names() if fnmatch.fnmatchcase(name, wanted)]
  if not found:
    raise RunError(f'no model is called like {pattern!r}: {suggest(pattern, names())}')
  print(f'{"model":<24}{"parameters":>15}{"GMACs":>10}{"tokens":>8}{"width":>7}{"depth":>7}  image')
  for name in found:
    kind, variant = named(name)
    config = MODELS[kind](variant).resolve()
    cost = flops.costs(config)
    shape = f'{"":>22}'
    if kind == 'vit':
      tokens = math.prod(config.grid) + config.prefix
      shape = f'{tokens:>8}{config.width:>7}{config.depth:>7}'
    side = 'x'.join(map(str, config.image_size))
    print(f'{name:<24}{cost.parameters():>15,}{cost.total("macs") / 1e9:>10.2f}{shape}  {side}')
  print(
    'Without a head, at the image size of their training. Other patches of ViTs by name, S/8; any '
    'other field: python -m vit_jax.flops --help'
  )


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.models', 'Lists models by name, with parameters and multiply-accumulates.',
    ('', "'dinov2*'"),
  )  # fmt: skip
  parser.add_argument(
    'pattern', nargs='?', default='', help="part of a name, or a pattern such as 'deit3:*'"
  )
  command.run(parser, main)
