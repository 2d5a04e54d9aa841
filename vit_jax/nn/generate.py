"""Tokens one after another: a prompt at once, then each by what came before, with a cache.

What is said of a prompt depends on it, the sampling and its own number alone: not on the others of
the batch, on which side they are padded, or on the mesh.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.core.errors import RunError
from vit_jax.nn import cache
from vit_jax.nn.attention import Context
from vit_jax.nn.masks import Mask
from vit_jax.nn.sharding import reshard, spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How a token is chosen.

  Attributes:
    temperature: logits are divided by it; 0 takes the likeliest.
    top_p: of the likeliest tokens as many as have this probability together, the one that reaches
      it included (Holtzman et al. 2020, section 3.1), after the temperature.
    most: tokens that are said, the one that ends an answer included.
    seed: of what is drawn.
  """

  temperature: float = 0.0
  top_p: float = 1.0
  most: int = 64
  seed: int = 0

  def __post_init__(self):
    if not 0 <= self.temperature < float('inf'):
      raise RunError(f'temperature={self.temperature} must be a number, at least 0')
    if not 0 < self.top_p <= 1:
      raise RunError(f'top_p={self.top_p} must be in (0, 1]')
    if self.most < 1:
      raise RunError(f'most={self.most} tokens must be at least 1')


class Prompt(NamedTuple):
  """What is there before anything is said.

  Attributes:
    x: what enters the first block, (batch, tokens, width).
    there: which of the tokens there are, bool (batch, tokens), at least one of each row; the others
      are padding, wherever they are.
    prefix: which of them all others see, whatever their order, bool (batch, tokens); or None.
    numbers: of the rows, by which what is drawn for them differs, int (batch,).
  """

  x: jax.Array
  there: jax.Array
  prefix: jax.Array | None
  numbers: jax.Array


class Said(NamedTuple):
  """What is said of a batch.

  Attributes:
    tokens: int32 (batch, most); `pad` behind the one that ends a row.
    lengths: of each row how many there are, int32 (batch,).
    log_probs: of these by the model, without temperature and `top_p`, float32 (batch, most); 0 of
      padding.
  """

  tokens: jax.Array
  lengths: jax.Array
  log_probs: jax.Array


class State(NamedTuple):
  """Between one token and the next.

  Attributes:
    step: tokens that were said.
    token: the last one of each row, int32 (batch,).
    done: which rows have ended, bool (batch,).
    said: so far.
    cache: of all that was read.
    keys, prefix: of the prompt and of all that may be said, see `Prompt`, bool (batch, length).
    numbers: of the rows.
  """

  step: Any
  token: jax.Array
  done: jax.Array
  said: Said
  cache: cache.Cache
  keys: jax.Array
  prefix: jax.Array | None
  numbers: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
  """What does not change from token to token.

  Attributes:
    sampling: of each.
    ends: tokens that end what is said.
    pad: what stands behind them.
    sayable: which tokens may be said, (vocab_size,); all, if not given. Neither padding nor images
      should be, nor rows of a table that is longer than the vocabulary.
  """

  sampling: Sampling
  ends: tuple[int, ...] = ()
  pad: int = 0
  sayable: tuple[bool, ...] | None = None


def generate(model: Any, prompt: Prompt, rules: Rules) -> Said:
  """Continues each prompt until it ends.

  Args:
    model: a `models.language.Language`.
    prompt: of each row.
    rules: static.

  Raises:
    ValueError: if prompt and answer may be longer than the context of the model.
  """
  state = begin(model, prompt, rules)

  def goes_on(state: State) -> Any:
    return (state.step < rules.sampling.most) & ~state.done.all()

  return jax.lax.while_loop(goes_on, lambda state: advance(model, state, rules), state).said


def begin(model: Any, prompt: Prompt, rules: Rules) -> State:
  """Reads prompts, and says the first token of each; arguments as for `generate`."""
  most, batch = rules.sampling.most, len(prompt.x)
  length = prompt.x.shape[1] + most
  if length > model.config.context_length:
    raise ValueError(
      f'{prompt.x.shape[1]} tokens of a prompt and {most} of an answer are more than the '
      f'{model.config.context_length} of the context'
    )
  prompt = _at_the_end(prompt)
  more = ((0, 0), (0, most))
  of_row, of_token = spec('batch'), spec('batch', None)
  none = Said(
    jnp.full((batch, most), rules.pad, jnp.int32, out_sharding=of_token),
    jnp.zeros(batch, jnp.int32, out_sharding=of_row),
    jnp.zeros((batch, most), out_sharding=of_token),
  )
  state = State(
    jnp.int32(0), jnp.zeros(batch, jnp.int32, out_sharding=of_row),
    jnp.zeros(batch, bool, out_sharding=of_row), none, cache.empty(model.encoder, batch, length),
    jnp.pad(prompt.there, more, constant_values=True),
    None if prompt.prefix is None else jnp.pad(prompt.prefix & prompt.there, more), prompt.numbers,
  )  # fmt: skip
  return _said(model, prompt.x, 0, state, rules)


def advance(model: Any, state: State, rules: Rules) -> State:
  """Says one more token; arguments as for `generate`."""
  at = state.keys.shape[1] - rules.sampling.most + state.step - 1
  return _said(model, model.read(state.token[:, None]), at, state, rules)


def _said(model: Any, x: jax.Array, at: Any, state: State, rules: Rules) -> State:
  """What follows `x`, (batch, tokens, width), which begins at a place of the cache."""
  mask = Mask(causal=True, keys=state.keys, prefix=state.prefix)
  places = jnp.cumsum(state.keys, axis=1) - 1
  own = jax.lax.dynamic_slice_in_dim(places, at, x.shape[1], axis=1)
  context = Context(model.angles(own), mask=mask)
  x, held = cache.extend(model.encoder, x, state.cache, context)
  logits = model.logits(x[:, -1:])[:, 0]
  only = logits
  if rules.sayable is not None:
    only = jnp.where(np.array(rules.sayable), logits, -jnp.inf)
  token = _choose(only, rules.sampling, state.step, state.numbers)
  log_prob = jax.vmap(lambda row, at: row[at])(jax.nn.log_softmax(logits), token)
  token = jnp.where(state.done, rules.pad, token)
  tokens, lengths, log_probs = state.said
  said = Said(
    tokens.at[:, state.step].set(token), lengths + ~state.done,
    log_probs.at[:, state.step].set(jnp.where(state.done, 0.0, log_prob)),
  )  # fmt: skip
  done = state.done
  for end in rules.ends:
    done = done | (token == end)
  return state._replace(step=state.step + 1, token=token, done=done, said=said, cache=held)


def _at_the_end(prompt: Prompt) -> Prompt:
  """With all padding in front, so that what is said is at the same places in all rows."""
  order = jnp.argsort(prompt.there, axis=1, stable=True)
  take = lambda x: None if x is None else jax.vmap(lambda row, at: row[at])(x, order)  # noqa: E731
  return prompt._replace(x=take(prompt.x), there=take(prompt.there), prefix=take(prompt.prefix))


def _choose(logits: jax.Array, sampling: Sampling, step: Any, numbers: jax.Array) -> jax.Array:
  """A token of each row, int32 (batch,)."""
  if not sampling.temperature:
    return logits.argmax(-1).astype(jnp.int32)
  logits = logits / sampling.temperature
  if sampling.top_p < 1:
    logits = jnp.where(_likeliest(logits, sampling.top_p), logits, -jnp.inf)
  key = jax.random.fold_in(jax.random.key(sampling.seed), step)

  def drawn(number: Any) -> jax.Array:
    return jax.random.gumbel(jax.random.fold_in(key, number), logits.shape[-1:])

  noise = reshard(jax.vmap(drawn)(numbers), 'batch', None)
  return (logits + noise).argmax(-1).astype(jnp.int32)


def _likeliest(logits: jax.Array, share: float) -> jax.Array:
  """Which tokens have this probability together, the fewest that do, bool as `logits`."""
  order = jnp.argsort(-logits, axis=-1, stable=True)
  probs = jax.nn.softmax(logits)
  sorted_probs = jnp.take_along_axis(probs, order, axis=-1)
  before = jnp.cumsum(sorted_probs, axis=-1) - sorted_probs
  back = jnp.argsort(order, axis=-1, stable=True)
  return jnp.take_along_axis(before < share, back, axis=-1)
