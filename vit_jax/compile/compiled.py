"""What the TPU compiler says of a program: cycles, kernels and collectives, read from its text.

XLA for TPU writes into every fusion how many cycles it expects it to take. Their sum, with bodies
of loops times their trip counts, predicts the time of a step on one chip. Kernels written by hand
carry no such estimate, only what they declare of FLOPs; collectives carry none either.

A program for several slices is the program of one of them. What crosses the network between slices
is sent to the runtime and received from it, and computation goes on until it is needed.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_INSTRUCTION = re.compile(r'(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*)$')
_ARRAY = re.compile(r'\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?')
_BITS = {'pred': 8, 'bf16': 16}
# Products of queries and keys, or of scores and one of these, in JAX's splash attention.
_SPLASH = {'fwd': 2, 'dq': 3, 'dkv': 4}
# Cycles of what the compiler's model of costs has no answer for.
_UNKNOWN = 2**63 - 1
COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')


@dataclasses.dataclass(frozen=True)
class Operation:
  """An instruction that the compiler gave a number of cycles.

  Attributes:
    name: the instruction's.
    source: where in the traced program it comes from, '/'-separated.
    cycles: of one execution.
    count: executions in a step.
  """

  name: str
  source: str
  cycles: int
  count: int


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel written by hand, called `count` times with these FLOPs and bytes of HBM each."""

  name: str
  flops: int
  bytes: int
  count: int


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind in a step.

  Attributes:
    kind: one of `COLLECTIVES`.
    count: how many there are.
    bytes: that each device gets from others, rings being used (an all-reduce is a reduce-scatter
      and an all-gather).
    waited: of these, bytes that nothing else is computed behind.
  """

  kind: str
  count: int
  bytes: int
  waited: int


class _Transfer(NamedTuple):
  """A collective between slices, which the program sends to the runtime and receives from it."""

  kind: str
  bytes: int


class Program:
  """A compiled TPU program.

  Args:
    text: `compiled.as_text()`.

  Attributes:
    operations, kernels, collectives: what it does in one execution; collectives are those within
      a slice, see `transfers` for those between slices.
    untimed: names of operations whose cycles the compiler could not tell.

  Raises:
    ValueError: if the text has no entry computation, or a loop without a known trip count.
  """

  def __init__(self, text: str):
    self._bodies, entry = _computations(text)
    self.operations: list[Operation] = []
    self.kernels: list[Kernel] = []
    self.untimed: list[str] = []
    self._entry = entry
    self._transfers, self._channels = self._between_slices()
    self._timed: dict[str, Operation | Kernel] = {}  # by the instruction's name
    self._schedules: dict[str, list[tuple[str, Any]]] = {}
    moved: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for count, name, shape, opcode, line in self._walk(entry, 1):
      cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
      if cycles and int(cycles[1]) == _UNKNOWN:
        self.untimed.append(name)
      elif cycles:
        source = re.search(r'op_name="([^"]*)"', line)
        self.operations.append(Operation(name, source[1] if source else '', int(cycles[1]), count))
        self._timed[name] = self.operations[-1]
      if 'custom_call_target="tpu_custom_call"' in line:
        self.kernels.append(self._kernel(name, shape, line, count))
        self._timed[name] = self.kernels[-1]
      for kind, size, waited in self._collectives(name, shape, opcode, line):
        moved[kind][0] += count
        moved[kind][1] += count * size
        moved[kind][2] += count * size * waited
    self.collectives = [Collective(kind, *totals) for kind, totals in sorted(moved.items())]

  @property
  def cycles(self) -> int:
    """Of all operations that have an estimate."""
    return sum(o.cycles * o.count for o in self.operations)

  def transfers(
    self, seconds: Callable[[Operation | Kernel], float], bandwidth: float
  ) -> list[Collective]:
    """Collectives between slices in one execution; `waited`: bytes that a chip idles for.

    They follow one another on the network, and each begins as soon as its input is there.

    Args:
      seconds: that an operation or kernel takes, once.
      bandwidth: of the network between slices, bytes/s per chip and direction.
    """
    now = free = 0.0
    arrives: dict[str, float] = {}
    moved: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
    for opcode, event in self._events(self._entry) if self._transfers else ():
      if opcode == 'send':
        kind, size = self._transfers[event]
        arrives[event] = free = max(now, free) + size / bandwidth
        moved[kind][0] += 1
        moved[kind][1] += size
      elif opcode == 'recv-done':
        late = max(0.0, arrives.get(event, now) - now)
        moved[self._transfers[event].kind][2] += round(late * bandwidth)
        now += late
      else:
        now += seconds(event)
    return [Collective(kind, *totals) for kind, totals in sorted(moved.items())]

  def _between_slices(self) -> tuple[dict[str, _Transfer], dict[str, str]]:
    """Transfers by the name of their rendezvous, and these names by the channel received from."""
    sizes: dict[str, dict[str, int]] = collections.defaultdict(dict)
    lines, channels = {}, {}
    for line in (line for body in self._bodies.values() for line in body):
      match = _INSTRUCTION.match(line)
      if match and match[3] in ('send', 'recv') and '_xla_megascale_transfer_type' in line:
        name = _rendezvous(line)
        lines[name], sizes[name][match[3]] = line, _bytes(match[2].partition(', u32[]')[0])
        if match[3] == 'recv':
          channels[_channel(line)] = name
    found = {}
    for name, line in lines.items():
      called = re.search(r'_xla_megascale_transfer_type="(\w+)"', line)
      kind = called[1].lower().replace('_', '-') if called else ''
      kind = 'collective-permute' if kind == 'one-to-one' else kind
      # "{1,2,3,4}x{0:255}": the slices that take part, and the chips of each.
      group = re.search(r'_xla_megascale_target="\{([\d,]+)\}', line)
      if kind not in COLLECTIVES or not (group or kind == 'collective-permute'):
        raise ValueError(f'a transfer between slices that is not known: {line[:300]}')
      result = sizes[name]['send' if kind in ('all-reduce', 'all-to-all') else 'recv']
      found[name] = _Transfer(kind, _share(kind, result, len(group[1].split(',')) if group else 2))
    return found, channels

  def _events(self, name: str) -> Iterator[tuple[str, Any]]:
    """What a computation does, in order: opcodes with an operation, a kernel or a rendezvous."""
    if name not in self._schedules:
      schedule = self._schedules[name] = []
      for line in self._bodies[name]:
        match = _INSTRUCTION.match(line)
        if not match:
          continue
        instruction, _, opcode, _ = match.groups()
        if timed := self._timed.get(instruction):
          schedule.append((opcode, timed))
        elif opcode == 'send' and _rendezvous(line) in self._transfers:
          schedule.append((opcode, _rendezvous(line)))
        elif opcode == 'recv-done' and _channel(line) in self._channels:
          schedule.append((opcode, self._channels[_channel(line)]))
        elif opcode == 'while':
          schedule.append((opcode, (_called('body', line), self._trips(line))))
        elif opcode in ('call', 'async-start'):
          schedule.append((opcode, (_called('to_apply|calls', line), 1)))
    for opcode, event in self._schedules[name]:
      if isinstance(event, tuple):
        for _ in range(event[1]):
          yield from self._events(event[0])
      else:
        yield opcode, event

  def _walk(self, name: str, count: int) -> Iterator[tuple[int, str, str, str, str]]:
    for line in self._bodies[name]:
      match = _INSTRUCTION.match(line)
      if not match:
        continue
      instruction, shape, opcode, _ = match.groups()
      yield count, instruction, shape, opcode, line
      if opcode == 'while':
        yield from self._walk(_called('body', line), count * self._trips(line))
      elif opcode in ('call', 'async-start'):
        yield from self._walk(_called('to_apply|calls', line), count)
      elif opcode == 'conditional':
        raise ValueError(f'{instruction}: how often a branch is taken is not known')

  def _collectives(self, name, shape, opcode, line) -> Iterator[tuple[str, int, bool]]:
    """Kind, bytes and whether it is waited for, of the collectives in an instruction."""
    kind = opcode.removesuffix('-start')
    if kind in COLLECTIVES:
      yield kind, _received(kind, shape, line), kind == opcode
    elif opcode == 'fusion':
      called = _called('calls', line)
      # Spread over several fusions, of which the first and the last compute nothing else.
      if name.startswith('async-collective-done') or called.startswith('async_collective_fusion'):
        return
      for inner in self._bodies.get(called, ()):
        match = _INSTRUCTION.match(inner)
        if match and match[3] in COLLECTIVES:
          size = _received(match[3], match[2], inner)
          if called.startswith('all-reduce-scatter'):
            yield 'reduce-scatter', size // 2, True
          else:
            yield match[3], size, not name.startswith('async-collective-start')

  def _trips(self, line: str) -> int:
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
      return int(known[1])
    if said := re.findall(r'\babout_(\d+)_times\b', line):  # see `nn.assignment`
      return int(said[-1])
    condition = self._bodies[_called('condition', line)]
    limits = [int(m[1]) for body in condition if (m := re.search(r' constant\((\d+)\)', body))]
    if len(limits) != 1:
      match = _INSTRUCTION.match(line)
      if match and _bytes(re.sub(r'\{[^}]*\}', '', match[2])) <= _FEW:
        return 1
      raise ValueError(f'a loop whose trip count is not known: {line[:80]}')
    return limits[0]

  def _kernel(self, name: str, shape: str, line: str, count: int) -> Kernel:
    flops = re.search(r'"cost_estimate":\{"flops":"(\d+)"', line)
    declared = re.search(r'"cost_estimate":\{[^}]*"bytes_accessed":"(\d+)"', line)
    operands = re.search(r'custom-call\((.*?)\), custom_call_target', line)
    shapes = [self._shapes[o] for o in re.findall(r'%([\w.\-]+)', operands[1] if operands else '')]
    moved = _bytes(shape) + sum(_bytes(operand) for operand in shapes)
    given = re.search(r'op_name="[^"]*?([^/"]+)/pallas_call', line)
    # A kernel may read or write a small part of an operand, and says so.
    moved = min(moved, int(declared[1])) if declared else moved
    name = given[1] if given else name
    if not flops and (products := re.match(r'splash_mha_(\w+?)_', name)):
      # The one kernel that we use and did not write declares none.
      q = next(map(_dimensions, filter(lambda shape: shape.startswith('bf16'), shapes)))
      tokens, features = q[-2:]  # of one example on each device there is no axis of the batch
      flops = _SPLASH[products[1]] * 2 * math.prod(q) * tokens
      return Kernel(f'{name}_{features}', flops, moved, count)
    return Kernel(name, int(flops[1]) if flops else 0, moved, count)

  @property
  def _shapes(self) -> dict[str, str]:
    if not hasattr(self, '_shape_of'):
      lines = (line for body in self._bodies.values() for line in body)
      found = (_INSTRUCTION.match(line) for line in lines)
      self._shape_of = {m[1]: m[2] for m in found if m}
    return self._shape_of


# Bytes of the state of a loop that draws a number or two again until one is accepted, as those of a
# Beta distribution are: next to nothing, however often.
_FEW = 1024


def memory(compiled: Any) -> int:
  """Bytes that a compiled program needs on each device.

  Arguments, results that do not take their place, temporaries, and the program itself.

  Args:
    compiled: what `jax.jit(...).lower(...).compile()` gives.
  """
  stats = compiled.memory_analysis()
  arguments = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
  return arguments + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  bodies: dict[str, list[str]] = {}
  entry, lines = None, None
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$', line)
    if head:
      lines = bodies.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif line == '}':
      lines = None
    elif lines and not re.match(r' *(ROOT )?%', line):
      lines[-1] += line  # an instruction goes on: attributes of kernels have lines of their own
    elif lines is not None:
      lines.append(line.strip())
  if entry is None:
    raise ValueError('no entry computation in the text of the program')
  return bodies, entry


def _called(attribute: str, line: str) -> str:
  match = re.search(rf'\b(?:{attribute})=%([\w.\-]+)', line)
  if not match:
    raise ValueError(f'no {attribute} in {line[:80]}')
  return match[1]


def _received(kind: str, shape: str, line: str) -> int:
  """Bytes that each device gets by a collective with a result of this type."""
  size = sum(_bytes(array[0]) for array in re.finditer(_ARRAY, shape) if array[2])
  group = _group(line)
  if '-start(' in line:  # operands are there as well as results
    size *= {'all-gather': group / (group + 1), 'reduce-scatter': 1 / (group + 1),
             'collective-permute': 1 / 2}.get(kind, 1)  # fmt: skip
  return _share(kind, size, group)


def _share(kind: str, size: float, group: int) -> int:
  """Bytes that each of `group` devices gets by a collective with a result of `size` bytes."""
  times = {
    'all-gather': (group - 1) / group, 'all-to-all': (group - 1) / group,
    'all-reduce': 2 * (group - 1) / group, 'reduce-scatter': group - 1, 'collective-permute': 1,
  }  # fmt: skip
  return round(size * times[kind])


def _rendezvous(line: str) -> str:
  match = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', line)
  return match[1] if match else ''


def _channel(line: str) -> str:
  match = re.search(r'channel_id=(\d+)', line)
  return match[1] if match else ''


def _group(line: str) -> int:
  """How many devices take part in a collective."""
  if named := re.search(r'replica_groups=mesh\[([^\]]*)\][^{]* \{([^}]*)\}', line):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
    return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
  if listed := re.search(r'replica_groups=\{\{([\d,]*)\}', line):
    return len(listed[1].split(','))
  if counted := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
    return int(counted[1])
  if 'source_target_pairs' in line:
    return 2
  raise ValueError(f'no replica_groups in {line[:80]}')


def _dimensions(shape: str) -> tuple[int, ...]:
  match = _ARRAY.search(shape)
  return tuple(int(size) for size in match[2].split(',')) if match else ()


def _bytes(shape: str) -> int:
  """Of the arrays of a type, `bf16[128,197,768]{2,1,0:T(8,128)(2,1)}`, padded to whole tiles."""
  total = 0
  for kind, dims, layout in _ARRAY.findall(shape):
    bits = _BITS.get(kind) or int(re.sub(r'^\D+(\d+).*', r'\1', kind))
    sizes = [int(size) for size in dims.split(',') if size]
    order = re.match(r'\{([\d,]+)(?::T\(([\d,]+)\))?', layout or '')
    if order and order[2]:
      for axis, tile in zip(order[1].split(','), reversed(order[2].split(',')), strict=False):
        sizes[int(axis)] = -(-sizes[int(axis)] // int(tile)) * int(tile)
    total += math.prod(sizes) * bits // 8
  return total
