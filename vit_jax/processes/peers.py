"""What processes tell each other through the service that they found each other by.

No device takes part, so that this works before any is looked for, in background threads, and when
one process is in trouble. Every process must come to the same calls in the same order, by name.
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from etils import epy

from vit_jax.core import text
from vit_jax.core.errors import PassingError, RunError

# Configurations are read before JAX is there.
with epy.lazy_imports():
  import jax
  from jax._src import distributed  # the only door to the service's client

LONG = 1800.0  # seconds to wait for others; `health` notices sooner if one is gone
_calls = collections.Counter[str]()


def index() -> int:
  """The number of this process, from 0; does not look for devices."""
  return distributed.global_state.process_id or 0


def count() -> int:
  """How many processes there are; does not look for devices."""
  return distributed.global_state.num_processes or 1


def agreed(what: str, make: Callable[[], Any], *, seconds: float = LONG) -> Any:
  """What process 0 has made, for all of them.

  Args:
    what: is going on, in a few words.
    make: gives something that is plain JSON; called in process 0 alone.
    seconds: that the others wait for it.

  Raises:
    RunError: in all of them, if `make` raises one, or process 0 does not come.
  """
  if count() == 1:
    return make()
  key = _name(what)
  if index() == 0:
    try:
      said = {'value': make()}
    except RunError as error:
      passing = isinstance(error, PassingError)
      client().key_value_set(key, json.dumps({'error': str(error), 'passing': passing}))
      raise
    client().key_value_set(key, json.dumps(said))
    return said['value']
  try:
    said = json.loads(client().blocking_key_value_get(key, int(seconds * 1000)))
  except jax.errors.JaxRuntimeError as error:
    raise RunError(
      f'{what}: nothing from process 0 in {seconds:.0f} s ({text.first_line(error)})'
    ) from error
  if 'error' in said:
    raise (PassingError if said['passing'] else RunError)(said['error'])
  return said['value']


def meet(what: str, *, seconds: float = LONG) -> None:
  """Returns when all processes have come here.

  Raises:
    RunError: if some have not after `seconds`, with their numbers.
  """
  if count() == 1:
    return
  try:
    client().wait_at_barrier(_name(what), int(seconds * 1000))
  except jax.errors.JaxRuntimeError as error:
    missing = re.findall(r'/task:(\d+)', str(error))
    who = f'process {", ".join(sorted(set(missing), key=int))}' if missing else 'a process'
    raise RunError(f'{what}: {who} did not come in {seconds:.0f} s') from error


def client() -> Any:
  """Of the service; only where there are several processes."""
  return distributed.global_state.client


def shared(what: str, own: str, *, seconds: float = LONG) -> list[str]:
  """What each process says, by process.

  Raises:
    RunError: if one says nothing.
  """
  if count() == 1:
    return [own]
  key, found = _name(what), []
  client().key_value_set(f'{key}/{index()}', own)
  for other in range(count()):
    try:
      found.append(client().blocking_key_value_get(f'{key}/{other}', int(seconds * 1000)))
    except jax.errors.JaxRuntimeError as error:
      raise RunError(
        f'{what}: process {other} of {count()} has said nothing in {seconds:.0f} s: look at its '
        f'output ({text.first_line(error)})'
      ) from None
  return found


def same(what: str, own: Mapping[str, Any], *, seconds: float = LONG) -> None:
  """Compares what every process says of itself, by name, with what process 0 says.

  Raises:
    RunError: in all of them, if one says something else.
  """
  ours, *others = map(json.loads, shared(what, json.dumps(own), seconds=seconds))
  for number, theirs in enumerate(others, 1):
    for name, value in ours.items():
      if theirs.get(name) != value:
        raise RunError(
          f'{what}: process {number} has {name} {theirs.get(name)}, and process 0 has {value}'
        )


def _name(what: str) -> str:
  """Of a call: barriers and keys are used once."""
  _calls[what] += 1
  return f'vit_jax/{what}/{_calls[what]}'
