"""Converts a checkpoint: `python -m vit_jax.convert SOURCE TARGET --to=DIALECT`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epy

from vit_jax.convert import arguments
from vit_jax.convert.dialects import DIALECTS
from vit_jax.core import command
from vit_jax.core.errors import RunError

# Arguments are checked before JAX is there.
with epy.lazy_imports():
  from vit_jax.convert import notes, read, write


def main(
  source: str, target: str, to: str, choice: Mapping[str, Any], dtype: str = 'float32',
  tower: str = '', overwrite: bool = False,
) -> None:  # fmt: skip
  """Reads `source`, changes it, and writes `target`; prints what is not the same in both."""
  if to == 'changes':
    taken = {name: value for name, value in choice.items() if name in ('step', 'part')}
    given = {**choice, 'tower': tower, 'dtype': dtype.removeprefix('float32')}
    if wrong := [name for name, value in given.items() if value and name not in taken]:
      raise RunError(f'--to=changes writes what a run holds as it is: leave out --{wrong[0]}')
    with notes.printed():
      read.save_changes(source, target, overwrite=overwrite, **taken)
    print(f'{target}: what {source} has changed of its checkpoint')
    return
  with notes.printed():
    model = read.load(source, tower=tower, **choice)
    write.save(model, target, to, dtype=dtype, overwrite=overwrite)
  print(f'{target}: {to}, from {model.card.dialect}')


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.convert',
    'Converts any known checkpoint to any known dialect, and lists what the new one says\n'
    'otherwise or cannot say. Fields of the model can be changed: --num_classes=10 --patch_size=8.',
    ('runs/photos vit-photos --to=transformers', 'B_16.npz vit-b --to=timm --image_size=384'),
  )
  parser.add_argument('source', help='npz, safetensors or PyTorch file; folder; run directory')
  parser.add_argument('target', help='file or folder, depending on the dialect')
  parser.add_argument(
    '--to',
    required=True,
    choices=[*DIALECTS, 'changes'],
    metavar='DIALECT',
    help=f'{", ".join(DIALECTS)}; of a run, changes: what it has trained of its checkpoint',
  )
  parser.add_argument(
    '--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'), metavar='DTYPE',
    help='float32, bfloat16 or float16',
  )  # fmt: skip
  parser.add_argument(
    '--tower', default='', metavar='NAME',
    help="of a model of several towers, the one to convert alone, such as 'encoder'",
  )  # fmt: skip
  parser.switch('--overwrite', 'replace TARGET if it is there')
  arguments.run(parser, main)
