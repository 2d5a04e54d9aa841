"""What training has changed of a checkpoint, as a small file beside it: low-rank changes, a head.

A safetensors file, whose header says what it changes. Wherever a checkpoint is taken it may be one:
the rest comes from its base, which `base` names if it has moved.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.architecture import MODELS, encoders
from vit_jax.architecture.card import Card, about
from vit_jax.convert import adapt, changes, files, parts
from vit_jax.convert.opened import Opened, Wanted
from vit_jax.convert.recognise import with_hints
from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError, suggest
from vit_jax.nn import tree

KEY = 'vit_jax'  # in the header of the file
# How far the norm of a parameter may be from what it was, relative: in its type and that of half.
_NEAR = {'float32': 1e-4, 'bfloat16': 2**-6}


def write(
  path: str | paths.Path, arrays: Mapping[str, Any], config: Any, card: Card, *, base: str,
  scale: float = 0.0, norms: Mapping[str, float] | None = None, dtype: str = 'float32',
  said: Sequence[str] = (), overwrite: bool = False,
) -> None:  # fmt: skip
  """Writes a file of what is not as in `base`.

  Args:
    path: of the file, which ends in .safetensors.
    arrays: parameters by name, and factors of low-rank changes.
    config: of the whole model, resolved.
    card: of it.
    base: the checkpoint, with what of it is read behind its path; a local path is made absolute.
    scale: of low-rank changes.
    norms: of parameters of the base, by name, by which it is known again.
    dtype: in which these were compared.
    said: lines for people, of where it comes from.
    overwrite: replace what is there.
  """
  path = paths.at(path)
  if path.suffix != '.safetensors':
    raise RunError(f'a file of changes ends in .safetensors, not {path.name}')
  facts = {
    **header(config, card, base), 'scale': scale, 'norms': dict(norms or {}), 'dtype': dtype,
    'said': [*said],
  }  # fmt: skip
  held = {name: np.ascontiguousarray(np.asarray(jax.device_get(a))) for name, a in arrays.items()}
  with paths.target(path, overwrite=overwrite) as target:
    files.write_safetensors(target, held, {KEY: json.dumps(facts)})


def header(config: Any, card: Card, base: str) -> dict[str, Any]:
  """What a file says of the model and its base; arguments as for `write`."""
  place, query, rest = base.partition('?')
  if not place.startswith('hf:') and isinstance(local := paths.at(place), paths.LocalPath):
    place = str(local.absolute())
  return {**about(config, card), 'base': f'{place}{query}{rest}'}


def of_run(
  source: str, target: str | paths.Path, places: Mapping[str, str],
  fetch: Callable[[Wanted], dict[str, Any]], shapes: Mapping[str, Any], facts: Mapping[str, Any],
  overwrite: bool,
) -> None:  # fmt: skip
  """Writes what a run has trained; see `write`.

  Args:
    source: the run.
    target: the file.
    places: where parameters are stored, by name; 'frozen/' those that were not trained.
    fetch: reads them.
    shapes: of them.
    facts: of its checkpoint.
    overwrite: replace what is there.

  Raises:
    RunError: for a run that has trained everything, or started from no checkpoint.
  """
  own = {n: shapes[n] for n, place in places.items() if not place.startswith('frozen/')}
  base, inits = facts['recipe']['init'], facts['recipe']['inits']
  if len(own) == len(places):
    raise RunError(f'{source} has trained all of its parameters: what it has changed is the whole')
  if not base:
    several = 'several checkpoints' if inits else 'no checkpoint'
    raise RunError(f'{source} started from {several}, so that there is nothing that it has changed')
  if commit := facts.get('history', {}).get('origins', {}).get('init', ''):
    name, query, rest = base.partition('?')
    base = f'{name.partition("@")[0]}@{commit}{query}{rest}'
  kept = {name: array for name, array in shapes.items() if name not in own}
  read = lambda named: fetch({n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in named.items()})  # noqa: E731
  norms = {name: _norm(read({name: array})[name]) for name, array in kept.items()}
  kinds = {str(np.dtype(array.dtype)) for array in kept.values()}
  config = schema.build(models.config_of(facts['kind']), facts['model'], 'the model').resolve()
  write(
    target, read(own), config, Card.from_dict(facts['card']), base=base, norms=norms,
    scale=facts.get('lora', {}).get('scale', 0.0), dtype='/'.join(kinds), overwrite=overwrite,
  )  # fmt: skip


def facts_of(path: paths.Path) -> dict[str, Any] | None:
  """What the header of a file of changes says; None if it is none."""
  if path.suffix != '.safetensors' or not path.is_file():
    return None
  text = files.facts(path).get(KEY)
  return json.loads(text) if text else None


def opened(
  path: paths.Path, facts: Mapping[str, Any], hints: Mapping[str, Any], base: str,
  open_checkpoint: Callable[..., Opened],
) -> Opened:  # fmt: skip
  """A file of changes as the model that it makes of its base.

  Args:
    path: of the file.
    facts: of its header.
    hints: fields of the model to change after reading.
    base: the checkpoint, if it is not where it was.
    open_checkpoint: opens it.

  Raises:
    RunError: if the base is not there, or another one than it was.
  """
  if facts['kind'] not in MODELS:
    raise RunError(f'{path} is of a model of the kind {facts["kind"]!r}, which is not known here: '
                   f'{suggest(facts["kind"], MODELS)}')  # fmt: skip
  config = schema.build(models.config_of(facts['kind']), facts['model'], 'the model')
  config = with_hints(config, hints, str(path)).resolve()
  where, choice = parts.chosen(base or facts['base'], 'base')
  tower = choice.pop('tower', '')
  try:
    below = open_checkpoint(where, **choice)
  except RunError as error:
    raise RunError(
      f'{path} holds what was changed of {base or facts["base"]}, which cannot be read: {error}\n'
      'If it has moved, say where it is: --base=PATH, or ?base=PATH behind the path'
    ) from None
  own = files.read(path)
  held = _adapted(below, tower, config)
  norms, near = facts['norms'], max(_NEAR[kind] for kind in facts['dtype'].split('/'))

  def read(wanted: Wanted) -> dict[str, Any]:
    found = {}
    for name, struct in wanted.items():
      array: Any = np.asarray(own[name] if name in own else held[name], struct.dtype)
      if name not in own and name in norms:
        _check(f'{path}: {where}', name, _norm(array), norms[name], near)
      found[name] = array if struct.sharding is None else jax.device_put(array, struct.sharding)
    return found

  arrays = {n: jax.ShapeDtypeStruct(a.shape, np.float32) for n, a in {**held, **own}.items()}
  arrays, fetch = changes.applied(arrays, read, facts['scale'])
  return Opened('vit_jax', config, Card.from_dict(facts['card']), arrays, None, '', str(path),
                changes=hints, fetch=fetch, revision=below.revision)  # fmt: skip


def _adapted(below: Opened, tower: str, config: Any) -> dict[str, Any]:
  """Parameters of a base by name, of the sizes of the model that was made of it."""
  known, leaves = below.config, below.leaves()
  if tower:
    known, leaves = encoders(known)[tower], tree.inside(leaves, tower)
  if type(known) is not type(config) and known.kind != config.kind:
    raise RunError(f'{below.where} is a model of the kind {known.kind}, not {config.kind}')
  wanted = {n: getattr(config, n) for n in adapt.CHANGES if hasattr(config, n)}
  if hasattr(known, 'interpolation'):
    known = dataclasses.replace(known, interpolation=config.interpolation)
  _, _, held = adapt.adapt(known, below.card, leaves, wanted)
  return {name: held[name] for name in adapt.abstract(config) if name in held}


def _norm(array: Any) -> float:
  """The Euclidean norm of all numbers."""
  return float(jnp.linalg.norm(jnp.asarray(array, jnp.float32)))


def _check(where: str, name: str, norm: float, wanted: float, near: float) -> None:
  if not math.isclose(norm, wanted, rel_tol=near, abs_tol=1e-6):
    raise RunError(
      f'{where} is not the checkpoint that was changed: its {name} has a norm of {norm:.5g}, and '
      f'had {wanted:.5g}'
    )
