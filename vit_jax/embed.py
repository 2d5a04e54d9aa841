"""Features of a data set, in a table: `python -m vit_jax.embed CHECKPOINT DATA --out=FILE`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epy

from vit_jax.core import faults
from vit_jax.core.errors import RunError
from vit_jax.data.sources import guess
from vit_jax.probing import features as features_lib
from vit_jax.probing.settings import DTYPES

# Arguments are checked before JAX is there.
with epy.lazy_imports():
  import jax

  from vit_jax.launch import inputs
  from vit_jax.nn import sharding
  from vit_jax.probing import embedder as embedder_lib
  from vit_jax.probing import table


def main(
  checkpoint: str, data: str, out: str, split: str, features: str, dtype: str, most: float,
  overwrite: bool, batch_size: int | None, on_corrupt: str, seed: int, choice: Mapping[str, Any],
  overrides: Sequence[tuple[str, str]],
) -> None:  # fmt: skip
  """Computes the table, or what is missing of it."""
  faults.arm()
  wanted = features_lib.several(features)
  if not out.endswith('.parquet'):
    raise RunError(f'--out={out}: the table is a Parquet file, NAME.parquet')
  if batch_size is not None and batch_size < 1:
    raise RunError(f'--batch_size={batch_size} must be at least 1')
  primary = jax.process_index() == 0
  say = lambda text: print(text, file=sys.stderr, flush=True) if primary else None  # noqa: E731
  config = inputs.data_of(data, overrides)
  asked = split.split(',') if split else [name for name in guess.there(config)[:2] if name]
  failed: list[str] = []
  with jax.set_mesh(sharding.make_mesh('data')):
    sources = inputs.sources_of(config, asked)
    model, dialect = inputs.model_of(checkpoint, choice)
    batch_size = batch_size or (None if overwrite else table.begun(out)) or 64
    embedder = embedder_lib.Embedder(model, wanted, batch_size=batch_size, seed=seed)
    examples = sum(map(len, sources.values()))
    size = table.size(embedder.widths, examples, dtype) / 1e9
    widths = ', '.join(f'{name} ({width:,})' for name, width in embedder.widths.items())
    text = f'{out}: {examples:,} examples of {widths} in {dtype}, {size:,.3g} GB'
    if size > most:
      raise RunError(f'{text}: more than --most={most:g} GB')
    say(text)
    card = table.card_of(
      embedder, sources, checkpoint=checkpoint, dialect=dialect, data=data, dtype=dtype, seed=seed
    )
    skip = inputs.broken(failed) if on_corrupt == 'skip' else None
    if table.write(out, embedder, sources, card, overwrite=overwrite, broken=skip, say=say):
      say(f'{out}: complete')


if __name__ == '__main__':
  from vit_jax.core import command

  parser = command.Parser(
    'vit_jax.embed',
    'Features of all images of a data set, with their names and labels, in one Parquet file. '
    'Killed,\nthe same command goes on where it was.',
    (
      'dinov2_vits14.pth photos --out=features.parquet --features=class,mean',
      "runs/mae configs/fashion_mnist.py --out=fashion.parquet --features='class+mean,mean@-4'",
    ),
  )
  parser.add_argument('checkpoint', help='of any dialect; directory of a run')
  parser.add_argument('data', help=inputs.DATA)
  parser.add_argument('--out', required=True, metavar='FILE', help='NAME.parquet')
  parser.add_argument(
    '--split', default='', metavar='NAMES',
    help="with commas (train, and test or validation; without splits 'all')",
  )  # fmt: skip
  parser.add_argument(
    '--features', default='pooled', metavar='NAMES',
    help=f'with commas (pooled): {", ".join(features_lib.KINDS)}; class+mean, class@-4, '
    'random:class',
  )  # fmt: skip
  parser.add_argument('--dtype', default='float32', choices=DTYPES, help='of features (float32)')
  parser.add_argument(
    '--most', type=float, default=10.0, metavar='GB', help='more features are refused (10)'
  )
  parser.switch('--overwrite', 'replace a file of another command')
  inputs.run(parser, main)
