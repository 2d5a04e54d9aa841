"""The models by name: `python -m vit_jax.models [PATTERN]`."""

from __future__ import annotations

import fnmatch
import math

from vit_jax.architecture import ViTArchitecture, variants
from vit_jax.core import command
from vit_jax.core.errors import RunError, suggest
from vit_jax.costs import flops


def main(pattern: str) -> None:
  """Prints a table."""
  wanted = pattern if set(pattern) & set('*?[') else f'*{pattern}*'
  names = [name for name in variants.names() if fnmatch.fnmatchcase(name, wanted)]
  if not names:
    raise RunError(f'no model is called like {pattern!r}: {suggest(pattern, variants.names())}')
  print(f'{"model":<24}{"parameters":>15}{"GMACs":>10}{"tokens":>8}{"width":>7}{"depth":>7}  image')
  for name in names:
    config = ViTArchitecture(name).resolve()
    found = flops.costs(config)
    tokens = math.prod(config.grid) + config.prefix
    side = 'x'.join(map(str, config.image_size))
    print(
      f'{name:<24}{found.parameters():>15,}{found.total("macs") / 1e9:>10.2f}{tokens:>8}'
      f'{config.width:>7}{config.depth:>7}  {side}'
    )
  print(
    'Without a head, at the image size of their training. Other sizes of patches by name, S/8; any '
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
