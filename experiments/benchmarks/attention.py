"""Every implementation of attention, alone: `python -m experiments.benchmarks.attention`.

Each is first compared with float64, values and gradients, in the programs and on the arrays that
are timed; what is wrong, not finite or an error is recorded as such and not timed. Then forward
alone, and forward and backward together, everyone in turn with the others, the median of all
rounds. With `--write-table` the times go into the table from which `kernels.choice` chooses.
Where PyTorch sees a GPU, its scaled_dot_product_attention takes part. Ctrl-C ends with what there
is.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import report
from experiments.benchmarks.contestants import give_back, gpu_of_torch
from experiments.benchmarks.timing import Timed, complaint, measure
from vit_jax.costs import chips
from vit_jax.nn import attention
from vit_jax.nn.kernels import choice
from vit_jax.nn.masks import Mask

LENGTHS = (50, 196, 197, 256, 257, 576, 577, 729, 1025, 2305, 4097)
# With bias, with mask, with one query: even, because there every implementation that takes a bias
# at all takes part.
SPECIAL = (50, 196, 256, 576, 1024)
WIDTHS = (64, 72, 80, 88, 104, 112, 128)
# Of the largest result, as errors are those of sums; the same as in the tests.
TOLERANCE = {'float32': 2e-5, 'bfloat16': 2e-2}
RESULTS = ('y', 'dq', 'dk', 'dv', 'dbias')
PEER = 'torch sdpa'
MASKS = ('keys', 'causal', 'window', 'prefix', 'segments')


class Case(NamedTuple):
  """A shape of attention; `mask` is one of `MASKS`, or '' for none."""

  queries: int
  keys: int
  head_dim: int
  bias: bool = False
  mask: str = ''

  @property
  def name(self) -> str:
    """What is special about it."""
    if self.queries == 1:
      return 'pooling'
    return 'bias' if self.bias else self.mask or 'plain'


class Size(NamedTuple):
  """How much work there is in a call: heads; at most so many tokens and scores per head."""

  heads: int
  tokens: int
  scores: int

  def batch(self, case: Case) -> int:
    """Examples; as many for long sequences as make a call last about as long as for short ones."""
    pairs = case.queries * case.keys
    return max(2, min(self.tokens // case.keys, self.scores // pairs))


QUICK, CPU, ACCELERATOR = Size(2, 2**8, 2**16), Size(6, 2**11, 2**18), Size(16, 2**17, 2**24)


class Inputs(NamedTuple):
  """Queries, keys, values and the gradient of the result, packed, in the dtype of the benchmark.

  Tokens are padded as a model would pad them; `bias` (1, heads, queries, keys) or None and `mask`
  are not.
  """

  q: Any
  k: Any
  v: Any
  dy: Any
  bias: Any
  mask: Mask


class Contestant(NamedTuple):
  """Programs without arguments.

  Attributes:
    forward: gives [y].
    both: gives y and the gradients, in the order of `RESULTS`.
    wait: until results are there.
    finite: whether all numbers of a result are.
    last: a result of the last example, or of the bias, float64 as Inputs are packed.
  """

  forward: Callable[[], list[Any]]
  both: Callable[[], list[Any]]
  wait: Callable[[Any], Any]
  finite: Callable[[Any], bool]
  last: Callable[[Any], np.ndarray]


def cases(lengths: Sequence[int], widths: Sequence[int], special: Sequence[int]) -> list[Case]:
  """All lengths and widths; the special cases are of the first width only."""
  return [
    *(Case(n, n, width) for width in widths for n in lengths),
    *(Case(n, n, widths[0], bias=True) for n in special),
    *(Case(n, n, widths[0], mask=mask) for mask in MASKS for n in special),
    *(Case(1, n, widths[0]) for n in special),
  ]


def draw(case: Case, size: Size, dtype: str) -> Inputs:
  """Random numbers, on the device."""
  batch, heads, width = size.batch(case), size.heads, size.heads * case.head_dim
  queries, keys = (n + _padding(case) for n in (case.queries, case.keys))
  rngs = iter(jax.random.split(jax.random.key(0), 5))
  normal = lambda *shape: jax.random.normal(next(rngs), shape, dtype)  # noqa: E731
  q, k, v, dy = (normal(batch, length, width) for length in (queries, keys, keys, queries))
  bias = normal(1, heads, case.queries, case.keys) if case.bias else None
  return Inputs(q, k, v, dy, bias, _mask(case, batch))


def _mask(case: Case, batch: int) -> Mask:
  """Of keys three in ten are missing, and all of the first example; prefixes are a third long."""
  rng, keys = np.random.default_rng(0), case.keys
  if case.mask == 'keys':
    there = rng.random((batch, keys)) < 0.7
    there[0], there[1:, 0] = False, True
    return Mask(keys=jnp.asarray(there))
  if case.mask == 'window':
    return Mask(causal=True, window=(keys // 4, 0))
  if case.mask == 'prefix':
    return Mask(causal=True, prefix=jnp.broadcast_to(jnp.arange(keys) < keys // 3, (batch, keys)))
  if case.mask == 'segments':
    numbers = jnp.asarray(np.sort(rng.integers(0, 3, (batch, keys))))
    return Mask(segments=(numbers, numbers))
  return Mask(causal=case.mask == 'causal')


def _padding(case: Case) -> int:
  same = case.queries == case.keys
  return attention.padding(case.keys, case.head_dim) if same else 0


def exact(case: Case, inputs: Inputs, heads: int) -> list[np.ndarray]:
  """`RESULTS` in float64 of the first and last head: of the last example, and of the bias."""
  results = [[], [], [], [], []]
  scale = case.head_dim**-0.5
  # The gradient of a bias is a sum over all examples.
  packed = [np.asarray(x if case.bias else x[-1:]) for x in inputs[:4]]
  lengths = (case.queries, case.keys, case.keys, case.queries)
  seen = inputs.mask.rows(lambda x: x[-1:]).visible(case.queries, case.keys)
  keep = np.ones((case.queries, case.keys), bool) if seen is None else np.asarray(seen)[0]
  for head in (0, heads - 1):
    lanes = slice(head * case.head_dim, (head + 1) * case.head_dim)
    parts = [_wide(x[:, :n, lanes]) for x, n in zip(packed, lengths, strict=True)]
    bias = _wide(inputs.bias[0, head]) if case.bias else 0.0
    one, dbias = [], 0.0
    for q, k, v, dy in zip(*parts, strict=True):
      scores = np.where(keep, q @ k.T * scale + bias, -np.inf)
      p = np.exp(scores - scores.max(-1, keepdims=True))
      p /= p.sum(-1, keepdims=True)
      dp = dy @ v.T
      ds = p * (dp - (p * dp).sum(-1, keepdims=True))
      one = [p @ v, ds @ k * scale, ds.T @ q * scale, p.T @ dy]
      dbias = dbias + ds
    for result, value in zip(results, [*one, dbias], strict=True):
      result.append(value)
  together = [np.stack(result, -2) for result in results[:4]]
  return [*together, np.stack(results[4])] if case.bias else together


def _wide(x: Any) -> np.ndarray:
  return np.asarray(x).astype(np.float64)


def ours(way: choice.Implementation, case: Case, inputs: Inputs, heads: int) -> Contestant:
  """One of `IMPLEMENTATIONS`, compiled."""
  length = case.queries if _padding(case) else None
  run = functools.partial(way.run, num_heads=heads, cap=0.0, length=length)
  forward = jax.jit(lambda x: [run(x.q, x.k, x.v, x.bias, x.mask)])

  @jax.jit
  def both(x):
    y, back = jax.vjp(lambda q, k, v, bias: run(q, k, v, bias, x.mask), x.q, x.k, x.v, x.bias)
    return [y, *(grad for grad in back(x.dy) if grad is not None)]

  return Contestant(
    lambda: forward(inputs), lambda: both(inputs), jax.block_until_ready,
    lambda x: bool(_finite(x)), lambda x: _wide(x[-1]),
  )  # fmt: skip


@jax.jit
def _finite(x):
  return jnp.isfinite(x).all()


def theirs(case: Case, inputs: Inputs, heads: int) -> Contestant:
  """PyTorch's attention, on the same arrays without padding, by the kernel that it chooses."""
  torch: Any = importlib.import_module('torch')
  give = lambda x: torch.from_dlpack(x).detach()  # noqa: E731
  lengths = (case.queries, case.keys, case.keys, case.queries)
  own = (give(x)[:, :n].contiguous() for x, n in zip(inputs[:4], lengths, strict=True))
  split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)  # noqa: E731
  merge = lambda x: x.transpose(1, 2).flatten(-2)  # noqa: E731
  *operands, dy = map(split, own)
  add = None
  if case.bias:
    operands.append(give(inputs.bias))
  elif case.mask == 'keys':
    add = give(inputs.mask.keys)[:, None, None, :]
  elif case.mask != 'causal':
    seen = inputs.mask.visible(case.queries, case.keys)
    add = None if seen is None else give(seen)[:, None]
  for x in operands:
    x.requires_grad_()

  def attend(q, k, v, bias=None):
    mask = add if bias is None else bias
    return torch.nn.functional.scaled_dot_product_attention(
      q, k, v, attn_mask=mask, is_causal=case.mask == 'causal'
    )

  def forward():
    with torch.no_grad():
      return [merge(attend(*operands))]

  def both():
    y = attend(*operands)
    grads = torch.autograd.grad(y, operands, dy)
    return [*map(merge, (y.detach(), *grads[:3])), *grads[3:]]

  return Contestant(
    forward, both, lambda _: torch.cuda.synchronize(),
    lambda x: bool(x.isfinite().all()), lambda x: x[-1].double().cpu().numpy(),
  )  # fmt: skip


def check(it: Contestant, case: Case, want: list[np.ndarray], dtype: str) -> float:
  """The largest error relative to the largest number, over all results of both programs.

  Raises:
    ArithmeticError: if it is too large, or anything is not finite.
  """
  worst = 0.0
  for results in (it.forward(), it.both()):
    for name, got, exactly in zip(RESULTS, results, want, strict=False):
      if not it.finite(got):
        raise ArithmeticError(f'{name} is not finite')
      part = it.last(got)
      if name == 'dbias':
        part = part[[0, -1]]
      else:
        part = part[: exactly.shape[0]]
        part = part.reshape(len(part), -1, case.head_dim)[:, [0, -1]]
      # A single key has gradients of 0.
      error = float(np.abs(part - exactly).max() / max(np.abs(exactly).max(), 1e-2))
      if not error < TOLERANCE[dtype]:
        raise ArithmeticError(f'{name} is wrong by {error:.1e}')
      worst = max(worst, error)
  return worst


def compare(case: Case, size: Size, dtype: str, rounds: int, least: float) -> list[dict[str, Any]]:
  """A row for every implementation that takes part in a case."""
  device, heads = jax.devices()[0], size.heads
  inputs = draw(case, size, dtype)
  problem = choice.Problem(
    device.platform, device.device_kind, dtype, *case[:3], 'shared' * case.bias, inputs.mask.kinds
  )
  makers: dict[str, Callable[..., Contestant]] = {
    name: functools.partial(ours, way)
    for name, way in choice.IMPLEMENTATIONS.items()
    if way.accepts(problem)
  }
  if device.platform == 'gpu' and gpu_of_torch():
    makers[PEER] = theirs
  want = exact(case, inputs, heads)
  right: dict[str, Contestant] = {}
  rows: dict[str, dict[str, Any]] = {}
  for name, make in makers.items():
    row = rows[name] = dict(
      case=case.name, tokens=case.keys, head_dim=case.head_dim, batch=size.batch(case),
      implementation=name, status='right', error=None,
    )  # fmt: skip
    try:
      it = make(case, inputs, heads)
      row['error'] = check(it, case, want, dtype)
      right[name] = it
    except Exception as error:  # of whatever kind: the others go on
      row['status'] = complaint(error)
  work = 4 * size.batch(case) * heads * case.queries * case.keys * case.head_dim
  peak = chips.PEAKS.get(device.device_kind)
  for what, times in (('forward', 1), ('both', 3)):
    timed = {name: Timed(getattr(it, what), it.wait) for name, it in right.items()}
    seconds = measure(timed, rounds=rounds, least=least)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, row in rows.items():
      once, base = median.get(name), median.get('xla')
      row[f'{what} ms'] = once and 1e3 * once
      row[f'{what} TFLOP/s'] = once and times * work / once / 1e12
      row[f'{what} of peak'] = once and peak and times * work / once / peak
      row[f'{what} x xla'] = once and base and base / once
  return list(rows.values())


def table(rows: Sequence[dict[str, Any]], device: str, dtype: str) -> list[dict[str, Any]]:
  """Rows for `choice.TABLE`: milliseconds of forward and backward pass where they are right."""
  found: dict[tuple[Any, ...], dict[str, float]] = {}
  for row in rows:
    ms = row['both ms']
    if ms and row['case'] != 'pooling' and row['implementation'] in choice.IMPLEMENTATIONS:
      mask = row['case'] if row['case'] in MASKS else ''
      case = Case(row['tokens'], row['tokens'], row['head_dim'], row['case'] == 'bias', mask)
      key = 'shared' * case.bias, _mask(case, 1).kinds, case.keys, case.head_dim
      found.setdefault(key, {})[row['implementation']] = float(f'{ms:.4g}')
  return [
    dict(
      device=device,
      dtype=dtype,
      bias=bias,
      masks=masks,
      cap=False,
      tokens=tokens,
      head_dim=width,
      ms=ms,
    )
    for (bias, masks, tokens, width), ms in found.items()
  ]


def write_table(new: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
  """Puts rows into a table, in place of those of the same problems."""
  key = lambda row: json.dumps({**row, 'ms': None})  # noqa: E731
  rows = {key(row): row for row in (*json.loads(path.read_text())['rows'], *new)}
  lines = ',\n '.join(json.dumps(row) for row in rows.values())
  path.write_text(f'{{"rows": [\n {lines}\n]}}\n')


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
  """Measures, writes the report and returns its rows."""
  numbers = lambda text: tuple(int(n) for n in text.split(','))  # noqa: E731
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])  # type: ignore
  parser.add_argument('--lengths', type=numbers, default=LENGTHS, help='tokens: 197,256')
  parser.add_argument('--widths', type=numbers, default=WIDTHS, help='of heads: 64,80')
  parser.add_argument('--special', type=numbers, default=SPECIAL, help='with bias, mask, one query')
  parser.add_argument('--rounds', type=int, default=9, help='of which the median counts')
  parser.add_argument('--least', type=float, default=0.02, help='seconds of a measurement')
  parser.add_argument('--write-table', action='store_true', help=f'into {choice.TABLE.name}')
  parser.add_argument('--tag', default='', help='at the end of the names of results')
  parser.add_argument('--folder', type=pathlib.Path, help='for results, if not the usual one')
  parser.add_argument('--quick', action='store_true', help='two lengths, to see that it works')
  args = parser.parse_args(argv)
  if args.quick:
    args.lengths, args.widths, args.special = (50, 197), (64,), (50,)
    args.rounds, args.least = 3, 0.0
  # PyTorch needs some of the memory, too.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  device = jax.devices()[0]
  on_cpu = device.platform == 'cpu'
  size, dtype = (CPU, 'float32') if on_cpu else (ACCELERATOR, 'bfloat16')
  size = QUICK if args.quick else size
  rows: list[dict[str, Any]] = []
  try:
    for case in cases(args.lengths, args.widths, args.special):
      rows += compare(case, size, dtype, args.rounds, args.least)
      give_back()
      print(f'{case.name}, {case.keys} tokens, heads {case.head_dim} wide', flush=True)
  except KeyboardInterrupt:
    print('stopped')
  if args.write_table:
    write_table(table(rows, device.device_kind, dtype), choice.TABLE)
  name = report.on_device('attention', device.device_kind, args.tag)
  title = f'Attention, {dtype}'
  report.write(
    name, rows, title=f'{title}, {size.heads} heads, {device.device_kind}',
    note='TFLOP/s: forward 4 x batch x heads x queries x keys x head_dim, both passes 3 x that. '
    'error: the largest against float64, relative to the largest number.',
    facts={'device': device.device_kind, 'dtype': dtype, 'heads': size.heads},
    folder=args.folder,
  )  # fmt: skip

  def show(axes: Any) -> None:
    shown = [r for r in rows if r['case'] == 'plain' and r['head_dim'] == args.widths[0]]
    for way in dict.fromkeys(row['implementation'] for row in shown):
      points = [(r['tokens'], r['both TFLOP/s']) for r in shown
                if r['implementation'] == way and r['both ms']]  # fmt: skip
      axes.plot(*zip(*points, strict=True) if points else ([], []), marker='o', label=way)
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlabel('tokens')
    axes.set_ylabel('TFLOP/s, forward and backward')
    axes.set_title(f'{title}, heads {args.widths[0]} wide, {device.device_kind}', loc='left')
    axes.legend(frameon=False)

  report.figure(name, show, folder=args.folder)
  return rows


if __name__ == '__main__':
  main()
