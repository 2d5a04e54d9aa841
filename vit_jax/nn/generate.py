"""Tokens one after another: a prompt at once, then each by what came before, with a cache.

What is said of a prompt depends on it, the sampling and its own number alone: not on the others of
the batch, on which side they are padded, or on the mesh.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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


class _State(NamedTuple):
  step: Any
  token: jax.Array
  done: jax.Array
  said: Said
  cache: cache.Cache


def generate(
  model: Any, prompt: Prompt, sampling: Sampling, *, ends: tuple[int, ...] = (), pad: int = 0,
  sayable: Any = None,
) -> Said:  # fmt: skip
  """Continues each prompt until it ends.

  Args:
    model: a `models.language.Language`.
    prompt: of each row.
    sampling: static.
    ends: tokens that end what is said.
    pad: what stands behind them.
    sayable: which tokens may be said, bool (vocab_size,); all, if not given. Neither padding nor
      images should be, nor rows of a table that is longer than the vocabulary.

  Raises:
    ValueError: if prompt and answer may be longer than the context of the model.
  """
  length = prompt.x.shape[1] + sampling.most
  if length > model.config.context_length:
    raise ValueError(
      f'{prompt.x.shape[1]} tokens of a prompt and {sampling.most} of an answer are more than the '
      f'{model.config.context_length} of the context'
    )
  batch, prompt = len(prompt.x), _at_the_end(prompt)
  more = ((0, 0), (0, sampling.most))
  keys = jnp.pad(prompt.there, more, constant_values=True)
  prefix = None if prompt.prefix is None else jnp.pad(prompt.prefix & prompt.there, more)
  mask = Mask(causal=True, keys=keys, prefix=prefix)
  places = jnp.cumsum(keys, axis=1) - 1

  def through(x: jax.Array, at: Any, state: cache.Cache) -> tuple[jax.Array, cache.Cache]:
    own = jax.lax.dynamic_slice_in_dim(places, at, x.shape[1], axis=1)
    x, state = cache.extend(model.encoder, x, state, Context(model.angles(own), mask=mask))
    return model.logits(x[:, -1:])[:, 0], state

  def chosen(logits: jax.Array, step: Any, said: Said, done: jax.Array) -> Any:
    token = _choose(_only(logits, sayable), sampling, step, prompt.numbers)
    found = jax.nn.log_softmax(logits)
    log_prob = jax.vmap(lambda row, at: row[at])(found, token)
    token = jnp.where(done, pad, token)
    said = Said(
      said.tokens.at[:, step].set(token),
      said.lengths + ~done,
      said.log_probs.at[:, step].set(jnp.where(done, 0.0, log_prob)),
    )
    for end in ends:
      done = done | (token == end)
    return token, done, said

  of_row, of_token = spec('batch'), spec('batch', None)
  none = Said(
    jnp.full((batch, sampling.most), pad, jnp.int32, out_sharding=of_token),
    jnp.zeros(batch, jnp.int32, out_sharding=of_row),
    jnp.zeros((batch, sampling.most), out_sharding=of_token),
  )
  start = cache.empty(model.encoder, batch, length)
  logits, held = through(prompt.x, 0, start)
  token, done, said = chosen(logits, 0, none, jnp.zeros(batch, bool, out_sharding=of_row))

  def goes_on(state: _State) -> Any:
    return (state.step < sampling.most) & ~state.done.all()

  def step(state: _State) -> _State:
    x = model.read(state.token[:, None])
    logits, held = through(x, prompt.x.shape[1] + state.step - 1, state.cache)
    token, done, said = chosen(logits, state.step, state.said, state.done)
    return _State(state.step + 1, token, done, said, held)

  return jax.lax.while_loop(goes_on, step, _State(jnp.int32(1), token, done, said, held)).said


def _at_the_end(prompt: Prompt) -> Prompt:
  """With all padding in front, so that what is said is at the same places in all rows."""
  order = jnp.argsort(prompt.there, axis=1, stable=True)
  take = lambda x: None if x is None else jax.vmap(lambda row, at: row[at])(x, order)  # noqa: E731
  return prompt._replace(x=take(prompt.x), there=take(prompt.there), prefix=take(prompt.prefix))


def _only(logits: jax.Array, sayable: Any) -> jax.Array:
  return logits if sayable is None else jnp.where(sayable, logits, -jnp.inf)


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
