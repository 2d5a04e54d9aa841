"""How every command starts: flags, processes, and errors as one clear message.

Importing this module defines flags, so only commands import it, when they run as one.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from vit_jax.core.errors import RunError
from vit_jax.launch import memory
from vit_jax.launch.cluster import join

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'The run: configs/NAME.py or configs/NAME.py:ARGUMENT.', lock_config=True
)
WORKDIR: flags.FlagHolder[Any] = flags.DEFINE_string('workdir', None, 'Directory of the run.')
_COORDINATOR = flags.DEFINE_string(
  'coordinator', None,
  'HOST:PORT of process 0. Not needed on one machine, on TPU pods, under Slurm or on Kubernetes.',
)  # fmt: skip
_NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'With --coordinator.')
_PROCESS_ID = flags.DEFINE_integer('process_id', None, 'With --coordinator, from 0.')


def run(main: Callable[[], object]) -> None:
  """Parses flags, joins the other processes, if any, and runs `main`; exits 1 on RunError."""

  def start(argv: list[str]) -> None:
    if len(argv) > 1:
      raise RunError(f'unexpected argument {argv[1]!r}: flags are written --name=value')
    if not any(arg.lstrip('-').startswith(('v=', 'verbosity')) for arg in sys.argv):
      logging.set_verbosity(logging.WARNING)  # absl's own default is to show everything
    try:
      getattr(CONFIG.value, 'fields', None)  # a file that is not there is only noticed on use
    except OSError as error:
      raise RunError(str(error).strip().splitlines()[-1].strip()) from None
    memory.keep()
    join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    main()

  try:
    app.run(start, flags_parser=_parse)
  except RunError as error:
    _fail(str(error))


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    # An exception in a configuration file arrives as text, its traceback included.
    known = re.search(r'^(?:ValueError|vit_jax\.errors\.RunError): (.*)', str(error), re.M | re.S)
    _fail(known[1].strip() if known else str(error))
  except RunError as error:
    _fail(str(error))
  except (AttributeError, KeyError) as error:  # ml_collections on a --config.field of no such name
    while error.args and isinstance(error.args[0], Exception):
      error = error.args[0]
    _fail(str(error.args[0]).replace('\n', ': '))


def _fail(message: str) -> NoReturn:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(1)
