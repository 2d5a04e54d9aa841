"""Fine-tuning in one command: `python -m vit_jax.finetune CHECKPOINT FOLDER`."""

from __future__ import annotations

import re
from typing import Any

from vit_jax.core import paths
from vit_jax.core.errors import RESTART, RunError


def main(
  config: Any, checkpoint: str, folder: str, workdir: str, overwrite: bool, plan: bool,
  overrides: list[tuple[str, str]],
) -> int:  # fmt: skip
  """Plans a run, says why it is as it is, writes it down, and trains it; its exit status."""
  import jax

  from vit_jax.launch import start
  from vit_jax.nn import sharding
  from vit_jax.training import config as config_lib
  from vit_jax.training import finetune
  from vit_jax.training.loop import train
  from vit_jax.training.workdir import Workdir

  if config is not None:
    raise RunError('--config=FILE is of vit_jax.train: vit_jax.finetune makes a configuration')
  if jax.process_count() > 1:
    raise RunError(
      'vit_jax.finetune plans a run in one process: write it down with --plan, and train in '
      f'several by vit_jax.train --config=DIR/{finetune.FILE}'
    )
  run = Workdir(workdir or f'runs/{_name(folder)}-{_name(checkpoint)}')
  asked = {'checkpoint': checkpoint, 'folder': folder, 'given': [list(item) for item in overrides]}
  file, kept = run.path / finetune.FILE, run.path / finetune.PLAN
  old = paths.read_object(kept) if kept.is_file() else {}
  mesh = dict(overrides).get('mesh', 'data')
  with jax.set_mesh(sharding.make_mesh(mesh)):
    planned = finetune.planned(checkpoint, folder, overrides)
    config_lib.check(config_lib.complete(planned.fields))
    if run.trained and not overwrite and old.get('asked', asked) != asked:
      raise RunError(_another(run, file))
    planned = finetune.with_head(planned, run.path)
  text = finetune.text(planned, run.path)
  for line in planned.lines:
    print(line)
  if run.trained and not overwrite and (not file.exists() or paths.read_text(file) != text):
    raise RunError(_another(run, file))
  run.path.mkdir(parents=True, exist_ok=True)
  paths.write_text(file, text)
  probe = planned.probe or old.get('probe')
  paths.write_json(kept, {'asked': asked, 'probe': probe, 'lines': planned.lines})
  print(f'written: {file}')
  if plan:
    return 0
  made, wishes = start.configured(str(file), [])
  result = train(made, str(run), overwrite=overwrite, wishes=wishes)
  if result is not None:
    if probe and 'test/top1' in result['metrics']:
      before, count = probe
      print(_compared(result['metrics']['test/top1'], before, count, run.path / finetune.HEAD))
    print(f'look at it: {run.path / "report.html"}')
  return RESTART if result is None else 0


def _another(run: Any, file: paths.AnyPath) -> str:
  return (
    f'{run} holds another run: to go on with that, python -m vit_jax.train --config={file} '
    f'--workdir={run}; for this one another --workdir, or --overwrite to delete that run'
  )


def _compared(share: float, before: float, count: int, head: paths.AnyPath) -> str:
  """What fine-tuning has gained over the probe that it began with."""
  text = (
    f'{share:.2%} of {count:,} test images are right; of the linear probe that it began with '
    f'{before:.2%}'
  )
  if share > before:
    return text
  return f'{text}: fine-tuning has gained nothing here, and {head} is as good'


def _name(text: str) -> str:
  """A word for a path."""
  last = text.partition('?')[0].partition('@')[0].rstrip('/').rpartition('/')[2]
  return re.sub(r'[^\w.-]+', '-', last.rpartition('.')[0] or last)


if __name__ == '__main__':
  from vit_jax.core import command
  from vit_jax.launch import start

  parser = command.Parser(
    'vit_jax.finetune',
    'Fine-tunes a checkpoint on images: chooses how by what they are, says why, writes that down '
    'as a\nconfiguration, and trains. The same command continues what was interrupted.',
    (
      'vit_base.safetensors photos',
      'hf:facebook/dinov2-small photos.zip --workdir=runs/photos --config.optim.lr=3e-5',
    ),
  )
  parser.add_argument('checkpoint', help='of any dialect, as for config.init; hf:OWNER/NAME')
  parser.add_argument(
    'folder', help='of images by class, with or without splits; zip, table, Parquet; name of TFDS'
  )
  parser.add_argument('--workdir', default='', metavar='DIR', help='of the run (runs/NAMES)')
  parser.switch('--overwrite', 'delete the run of another configuration that is in --workdir')
  parser.switch('--plan', 'write the configuration, and do not train')
  start.run(parser, main)
