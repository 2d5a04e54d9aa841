"""How a command that computes starts: configuration, processes, memory. JAX comes last."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Collection
from typing import Any

from vit_jax.core import command
from vit_jax.core.errors import RunError
from vit_jax.processes import health, peers
from vit_jax.training import config as config_lib

FIELDS = (
  'Any field of the configuration is set with --config.SECTION.FIELD=VALUE, and unset with =None:\n'
  '--config.model.variant=B/16 --config.data.crop.name=center --config.data.crop.fraction=0.9'
)


def run(parser: command.Parser, main: Callable[..., int | None], *, config: bool = False) -> None:
  """Parses arguments, checks the configuration, joins the other processes and calls `main`.

  Leaves with the exit status that it returns, or 1 on RunError.

  `main` gets the parser's arguments by name, and of these what it has parameters for: config, a
  ConfigDict or None; overrides, (field, text) pairs, already part of a config; wishes, see
  `config.started`.

  Args:
    parser: gets the flags that all such commands have.
    main: the command. It imports JAX, not before.
    config: whether --config must be given.
  """
  parser.add_argument(
    '--config', required=config, metavar='FILE', help='configs/NAME.py or configs/NAME.py:ARGUMENT'
  )
  several(parser)
  parser.epilog = FIELDS
  with command.errors():
    known, rest = parser.known()
    arguments = vars(known)
    join_with = tuple(arguments.pop(n) for n in ('coordinator', 'num_processes', 'process_id'))
    arguments |= _configured(arguments.pop('config'), command.pairs(rest, parser), parser)
    wanted = inspect.signature(main).parameters
    for name in ('overrides', 'wishes'):
      if name not in wanted:
        arguments.pop(name)
    if any(value is not None for value in join_with) and None in join_with:
      raise RunError('--coordinator, --num_processes and --process_id must be given together')
    if join_with[2] in (None, 0):
      print('starting JAX', file=sys.stderr, flush=True)
    _start(*join_with)
    if status := _watched(lambda: main(**arguments)):
      sys.exit(status)


def plain(
  parser: command.Parser, main: Callable[..., int | None], *, fields: Collection[str] | None = None
) -> None:  # fmt: skip
  """As `command.run`, of a command without a configuration that may be several processes."""
  several(parser)

  @functools.wraps(main)
  def started(
    *, coordinator: str | None, num_processes: int | None, process_id: int | None, **given: Any
  ) -> int | None:
    _start(coordinator, num_processes, process_id)
    return _watched(lambda: main(**given))

  command.run(parser, started, fields=fields)


def several(parser: command.Parser) -> None:
  """Adds the flags of one process of several, which are the arguments of `cluster.join`."""
  group = parser.add_argument_group(
    'several processes', 'not needed on one machine, on TPU pods, under Slurm or on Kubernetes'
  )
  group.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0')
  group.add_argument('--num_processes', type=int, metavar='N', help='how many there are')
  group.add_argument('--process_id', type=int, metavar='I', help='of this one, from 0')


def _watched(main: Callable[[], Any]) -> Any:
  """What a command gives, while somebody watches over its process and the others of it."""
  health.start()
  try:
    return main()
  except BaseException as error:
    if peers.count() > 1 and not isinstance(error, SystemExit):
      health.fail(error)
    raise
  finally:
    health.stop()


def _configured(
  file: str | None, fields: list[tuple[str, str]], parser: command.Parser
) -> dict[str, Any]:
  items = []
  for name, text in fields:
    if not name.startswith('config.'):
      command.refuse(name, parser)
    items.append((name.removeprefix('config.'), text))
  if file is None:
    return dict(config=None, overrides=items, wishes={})
  config, wishes = configured(file, items)
  return dict(config=config, overrides=items, wishes=wishes)


def configured(file: str, items: list[tuple[str, str]]) -> tuple[Any, dict[str, Any]]:
  """The configuration of a file with fields set by text, checked; and `config.started`'s wishes."""
  loaded = config_lib.load(file)
  given = {name for name, _ in items} | config_lib.insisted(loaded)
  config, wishes = config_lib.started(config_lib.override(loaded, items), given)
  config_lib.check(config)
  return config, wishes


def _start(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  from absl import flags, logging

  from vit_jax.launch import memory
  from vit_jax.launch.cluster import join

  flags.FLAGS.mark_as_parsed()  # Grain's worker processes ask for them
  logging.set_verbosity(logging.WARNING)  # absl's own default is to show everything
  memory.keep()
  join(coordinator, num_processes, process_id)
