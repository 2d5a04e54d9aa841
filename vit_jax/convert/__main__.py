"""Converts a checkpoint: `python -m vit_jax.convert SOURCE TARGET --to=DIALECT`."""

from __future__ import annotations

import argparse

from vit_jax.convert import arguments, notes, read, write
from vit_jax.convert.dialects import DIALECTS
from vit_jax.core import command


def main(
  source: str, target: str, to: str, changes: dict, dtype: str = 'float32',
  overwrite: bool = False, part: str = '', prefix: str | None = None, ignore: str = '',
) -> None:  # fmt: skip
  """Reads `source`, changes it, and writes `target`; prints what is not the same in both."""
  with notes.printed():
    model = read.load(source, part=part, prefix=prefix, ignore=ignore, **changes)
    write.save(model, target, to, dtype=dtype, overwrite=overwrite)
  print(f'{target}: {to}, from {model.card.dialect}')


if __name__ == '__main__':
  parser = argparse.ArgumentParser(
    prog='python -m vit_jax.convert',
    description='Any known checkpoint to any known dialect. Fields of the model that shall change '
    'are written --num_classes=10, --image_size=384, --patch_size=8. What the new checkpoint says '
    'otherwise, or does not say, is printed.',
  )
  parser.add_argument('source', help='npz, safetensors or PyTorch file; folder; run directory')
  parser.add_argument('target', help='a file or a folder, as the dialect has it')
  parser.add_argument('--to', required=True, choices=DIALECTS, help='the dialect')
  parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'))
  parser.add_argument('--overwrite', action='store_true', help='replace TARGET if it is there')
  arguments.add_choice(parser)
  command.run(parser, main)
