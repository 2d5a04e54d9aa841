"""What a run will cost, before it runs.

Compiles the real training step with the compiler of TPUs, which needs no TPU (`pip install
vit_jax[tpu]`), and reads from the result whether it fits and how fast it will be. The compiler of
GPUs (`pip install vit_jax[gpu]`, `--topology=h100:8`) needs none either, but predicts no times.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vit_jax.architecture import Backbone, encoders
from vit_jax.architecture.backbones import REMAT
from vit_jax.compile import compiled as compiled_lib
from vit_jax.compile import topology
from vit_jax.compile.compiled import Collective, Kernel, Operation, Program
from vit_jax.core import paths, schema
from vit_jax.core.errors import RunError
from vit_jax.costs import chips
from vit_jax.costs.step import step as step_flops
from vit_jax.data.examples import NoDataError
from vit_jax.data.sources.synthetic import Synthetic
from vit_jax.nn import sharding
from vit_jax.nn.encoder import split_layers
from vit_jax.nn.noise import Noise
from vit_jax.tasks.task import Context
from vit_jax.training import config as config_lib
from vit_jax.training import hyper as hyper_lib
from vit_jax.training import lanes, sizes
from vit_jax.training.experiment import Experiment

# A kernel of ours is expected to reach this share of its roofline.
KERNEL_EFFICIENCY = 0.5
GIB = 2**30
# Of a step, in a `Plan`.
TIMES = (
  'compiler_time', 'kernel_time', 'collective_time', 'transfer_time', 'transfer_wait', 'step_time',
)  # fmt: skip
# From fastest to smallest, as the compiler sees it.
POLICIES = ('none', 'names', 'attn,hidden', 'context,attn', 'full')


@dataclasses.dataclass(frozen=True)
class Plan:
  """Memory in bytes per chip, times in seconds per step.

  Attributes:
    topology, chips, slices, mesh, batch_size, remat, scan: what was compiled; chips are those of
      all slices.
    parameters, optimizer: of the state that lives between steps, the moving average with the
      optimizer.
    frozen: of the parameters, those that are not trained: a teacher, and frozen parts.
    teacher: share of the FLOPs of a step, by `flops.CONVENTION`, of networks without a gradient.
    activations: kept by the forward for the backward pass, copies of weights in the compute dtype
      among them, as traced: the compiler may keep less.
    temporaries: the most that a step needs in addition to its arguments, activations included.
    memory: arguments, temporaries and program together.
    capacity: of a chip; of a GPU what JAX takes of it, `topology.gpu_memory`.
    fits: whether the compiler found room.
    compiler_time: sum of the compiler's estimates.
    kernel_time: of kernels written by hand, at `KERNEL_EFFICIENCY` of their roofline.
    collective_time: of the collectives that nothing is computed behind, at the full speed of all
      links; not part of `step_time`.
    transfer_time: of the collectives between slices, one after another.
    transfer_wait: of this, what is not hidden: a chip has nothing else to do.
    step_time: compiler_time + kernel_time + transfer_wait.
    images_per_second: per chip.
    mfu: share of the peak FLOP/s, by `flops.CONVENTION`.
    collectives: within a slice: kinds, counts and bytes that each chip receives, hidden ones too.
    transfers: the same between slices.
    link, dcn: bytes/s of a chip that these times assume: all links together, and its share of the
      network between slices.
    kernels: names, counts, FLOPs and bytes of kernels written by hand.
    untimed: operations that the compiler gives no estimate of, which are in none of the times.
    sizes: where steps have several sizes of images and patches, the plan of each by its name.
      Then memory and what else is of one program are of the size that needs most, and times are of
      an average step.
    trace_time, compile_time: on this machine.
  """

  topology: str
  chips: int
  slices: int
  mesh: str
  batch_size: int
  remat: str
  scan: bool
  parameters: int
  frozen: int
  optimizer: int
  activations: int
  teacher: float
  temporaries: int
  memory: int
  capacity: int
  fits: bool
  compiler_time: float | None = None
  kernel_time: float | None = None
  collective_time: float | None = None
  transfer_time: float | None = None
  transfer_wait: float | None = None
  step_time: float | None = None
  images_per_second: float | None = None
  mfu: float | None = None
  collectives: tuple[Collective, ...] = ()
  transfers: tuple[Collective, ...] = ()
  link: float | None = None
  dcn: float | None = None
  kernels: tuple[Kernel, ...] = ()
  untimed: tuple[str, ...] = ()
  sizes: dict[str, Plan] = dataclasses.field(default_factory=dict)
  trace_time: float = 0.0
  compile_time: float = 0.0


def plan(config: ConfigDict, where: str, hlo: str = '') -> Plan:
  """Compiles the training step of `config` for all chips of a topology.

  Args:
    config: of a run. If its data set is not there, random images stand for it.
    where: generation and shape of a slice or several, or GPUs; see `topology.devices`.
    hlo: a file for the text of the compiled program, or none.

  Raises:
    RunError: if there is no such topology or no compiler for it, or the configuration is wrong.
  """
  devices = topology.devices(where)
  cfg: config_lib.Config = schema.build(config_lib.Config, config_lib.to_dict(config))
  mesh = sharding.make_mesh(cfg.mesh, devices)
  with jax.set_mesh(mesh):
    experiment = _experiment(cfg)
  count = len(experiment.models)
  files = [f'{hlo}.{size}' if hlo and count > 1 else hlo for size in range(count)]
  plans = [
    _of_size(experiment, where, devices, mesh, size, file) for size, file in enumerate(files)
  ]
  if count == 1:
    return plans[0]
  names = map(sizes.shown, experiment.models)
  return _average(plans, cfg.sizes.shares(experiment.total), names)


def _average(plans: Sequence[Plan], shares: Sequence[float], names: Iterable[str]) -> Plan:
  """The plan of steps of several sizes, each with its share of the run."""
  most = max(plans, key=lambda plan: plan.memory)
  times: dict[str, Any] = {
    'trace_time': sum(plan.trace_time for plan in plans),
    'compile_time': sum(plan.compile_time for plan in plans),
  }
  if all(plan.step_time for plan in plans):
    mean = lambda values: sum(s * value for s, value in zip(shares, values, strict=True))  # noqa: E731
    each = {name: [getattr(plan, name) for plan in plans] for name in (*TIMES, 'mfu')}
    times |= {name: mean(each[name]) for name in TIMES}
    per_step = (plans[0].images_per_second or 0.0) * each['step_time'][0]
    times['images_per_second'] = per_step / times['step_time']
    work = [mfu * time for mfu, time in zip(each['mfu'], each['step_time'], strict=True)]
    times['mfu'] = mean(work) / times['step_time']
  return dataclasses.replace(most, **times, sizes=dict(zip(names, plans, strict=True)))


def _of_size(
  experiment: Experiment, where: str, devices: Any, mesh: Any, size: int, hlo: str
) -> Plan:
  """The plan of steps of one size of images and patches."""
  kind, cfg = devices[0].device_kind, experiment.config
  # The compiler of GPUs predicts no times.
  chip = chips.CHIPS.get(kind)
  capacity = int(chip.hbm) if chip else topology.gpu_memory(kind)
  with jax.set_mesh(mesh):
    state = sharding.fill_shardings(jax.eval_shape(experiment.split, experiment.abstract_state))
    frozen = sharding.fill_shardings(jax.eval_shape(split_layers, experiment.frozen))
    batch = experiment.abstract_batch(size)
    held = functools.partial(_per_device_bytes, mesh)
    towers = encoders(experiment.config.model).values()
    at_a_time = max(1, cfg.batch_size // sharding.shards('batch') // cfg.optim.accumulate)
    work = experiment.flops(examples=at_a_time, size=size)
    passes = cfg.task.passes(experiment.models[size])
    teacher = step_flops((one for one in passes if one.grad == 'none'), examples=at_a_time)
    facts: dict[str, Any] = dict(
      topology=where, chips=len(devices), slices=len(sharding.by_slice(devices)),
      mesh='x'.join(map(str, mesh.shape.values())), batch_size=cfg.batch_size,
      remat=', '.join(dict.fromkeys(t.remat for t in towers)),
      scan=all(getattr(tower, 'scan', False) for tower in towers),
      parameters=held((state.model, frozen)), frozen=held(frozen),
      optimizer=held((state.opt, state.ema, state.extra)), teacher=teacher / work,
      activations=_activations(experiment, state, frozen, batch, mesh, size), capacity=capacity,
    )  # fmt: skip
    start = time.perf_counter()
    lowered = experiment.train_step(size).lower(state, frozen, batch, experiment.hyper(0))
    traced = time.perf_counter()
    try:
      with no_cache():
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
      used = re.search(r'(?:Used |temporaries \()([\d.]+)([KMGT])', str(error))
      if 'RESOURCE_EXHAUSTED' not in str(error) or 'space vmem' in str(error) or not used:
        raise
      memory = int(float(used[1]) * 1024 ** ('KMGT'.index(used[2]) + 1))
      return Plan(**facts, temporaries=memory - held((state, frozen)), memory=memory, fits=False)
    done = time.perf_counter()
  text = compiled.as_text()
  if hlo:
    paths.write_text(paths.at(hlo), text)
  program = Program(text)
  memory = compiled_lib.memory(compiled)
  facts |= dict(
    temporaries=compiled.memory_analysis().temp_size_in_bytes, memory=memory,
    fits=memory <= capacity,
    collectives=tuple(program.collectives), trace_time=traced - start, compile_time=done - traced,
  )  # fmt: skip
  if not chip:
    return Plan(**facts)
  per_chip = experiment.examples_per_step / len(devices)
  compiler_time = program.cycles / chip.clock
  kernel_time = sum(k.count * kernel_seconds(k, chip) for k in program.kernels)
  transfers = program.transfers(functools.partial(_seconds, chip=chip), chip.dcn)
  transfer_wait = sum(t.waited for t in transfers) / chip.dcn
  step_time = compiler_time + kernel_time + transfer_wait
  return Plan(
    **facts,
    compiler_time=compiler_time,
    kernel_time=kernel_time,
    collective_time=sum(c.waited for c in program.collectives) / chip.link,
    transfer_time=sum(t.bytes for t in transfers) / chip.dcn,
    transfer_wait=transfer_wait,
    step_time=step_time,
    images_per_second=per_chip / step_time,
    mfu=work * per_chip / step_time / chip.peak,
    transfers=tuple(transfers),
    link=chip.link,
    dcn=chip.dcn,
    kernels=tuple(dict.fromkeys(_merged(program.kernels))),
    untimed=tuple(program.untimed),
  )


def _seconds(what: Operation | Kernel, chip: chips.Chip) -> float:
  """Of one execution."""
  return kernel_seconds(what, chip) if isinstance(what, Kernel) else what.cycles / chip.clock


def kernel_seconds(kernel: Kernel, chip: chips.Chip) -> float:
  """What a kernel is expected to take, once: its roofline over `KERNEL_EFFICIENCY`.

  The matrix units are 128 wide: a head of half that width has half the peak.
  """
  width = re.search(r'_(\d+)$', kernel.name)
  share = min(1.0, int(width[1]) / 128) if width else 1.0
  roofline = max(kernel.flops / (chip.peak * share), kernel.bytes / chip.bandwidth)
  return roofline / KERNEL_EFFICIENCY


def alternatives(config: ConfigDict, where: str) -> Iterator[tuple[dict[str, Any], Plan]]:
  """Changes that need less memory than `config`, each with its plan, until one fits.

  First the policies of recomputation that keep less, then the state cut over all chips (mesh
  'fsdp'), then smaller batches, all with the least memory that came before; what is refused is left
  out.
  """
  current: Any = config.copy_and_resolve_references()
  cfg: config_lib.Config = schema.build(config_lib.Config, config_lib.to_dict(config))
  smaller, steps = {}, []
  for name, tower in encoders(cfg.model).items():
    policies = REMAT if isinstance(tower, Backbone) else POLICIES
    at = policies.index(tower.remat) if tower.remat in policies else 1
    smaller[f'model.{name.replace("/", ".")}.remat'.replace('..', '.')] = policies[at + 1 :]
  for policy in POLICIES:
    wanted = {name: policy for name, policies in smaller.items() if policy in policies}
    steps += [wanted] if wanted else []
  if current.mesh != 'fsdp':
    steps.append({'mesh': 'fsdp'})
  batch = current.batch_size
  chips = len(topology.devices(where))
  while batch // 2 >= chips and (batch // 2) % chips == 0:
    batch //= 2
    steps.append({'batch_size': batch})
  changes: dict[str, Any] = {}
  for step in steps:
    changed = current.copy_and_resolve_references()
    changed.update_from_flattened_dict(step)
    try:
      result = plan(changed, where)
    except RunError:
      if step.keys() & {'mesh', 'batch_size'}:  # what does not divide this model is no way out
        continue
      raise
    current, changes = changed, {**changes, **step}
    yield changes, result
    if result.fits:
      return


@contextlib.contextmanager
def no_cache() -> Iterator[None]:
  """Programs for devices that are not there can be written to the cache, but not read from it."""
  before = getattr(jax.config, 'jax_enable_compilation_cache')  # noqa: B009
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)
    compilation_cache.reset_cache()


def _experiment(cfg: config_lib.Config) -> Experiment:
  """Of the data set only its size and classes matter; a missing one is replaced."""
  cfg = dataclasses.replace(cfg, task=cfg.task.without_files())
  try:
    return lanes.experiment(cfg)
  except NoDataError as error:
    said = lambda field: next(  # noqa: E731
      filter(None, (getattr(tower, field, None) for tower in encoders(cfg.model).values())), None
    )
    classes = said('num_classes') or 1000
    source = Synthetic(classes, channels=said('in_channels') or 3)
    data = dataclasses.replace(cfg.data, source=source)
    experiment = lanes.experiment(dataclasses.replace(cfg, data=data))
    print(f'({error}\n planned with random images of {classes:,} classes)', file=sys.stderr)
    return experiment


def residuals(experiment: Experiment, size: int = 0) -> Any:
  """A function of trainable parameters, the task's state, frozen parameters and a batch.

  It gives what the forward pass leaves for the backward pass, of one part of the batch.
  """
  cfg = experiment.config
  task, accumulate, sized = cfg.task, cfg.optim.accumulate, experiment.sized(size)
  hyper = Experiment.hyper(experiment, 0).named(hyper_lib.names(cfg))  # of one lane

  def left(model, extra, frozen, batch):
    key = jax.random.key(0)
    batch = task.augment(batch, key, hyper)
    ctx = Context(extra, task.totals(batch), hyper, Noise(key), 0, frozen, sized)
    part = jax.tree.map(lambda x: x[: x.shape[0] // accumulate], batch)
    loss = lambda model: task.loss(ctx.whole(model), part, ctx)[0]  # noqa: E731
    return jax.vjp(loss, model)[1]

  return left


def _activations(
  experiment: Experiment, state: Any, frozen: Any, batch: Any, mesh: Any, size: int
) -> int:
  """Bytes per chip that the forward pass leaves for the backward pass, without its arguments."""
  count = max(1, experiment.config.lane_count)

  def one(axes):
    """What a leaf is without its first axes."""

    def cut(leaf):
      layout = NamedSharding(mesh, P(*leaf.sharding.spec[axes:]))
      return leaf.update(shape=leaf.shape[axes:], sharding=layout) if axes else leaf

    return cut

  state = jax.tree.map(one(bool(experiment.config.lane_count)), state)
  batch = jax.tree.map(one(len(experiment.batch_axes)), batch)
  traced = jax.make_jaxpr(residuals(experiment, size))(
    state.model, state.extra, frozen, batch
  ).jaxpr
  given = {id(variable) for variable in traced.invars}
  return count * _per_device_bytes(mesh, [v.aval for v in traced.outvars if id(v) not in given])


def _per_device_bytes(mesh: Any, arrays: Any) -> int:
  total = 0
  for leaf in jax.tree.leaves(arrays):
    names = [n for axis in getattr(leaf.sharding, 'spec', None) or () if axis
             for n in (axis if isinstance(axis, tuple) else (axis,))]  # fmt: skip
    parts = math.prod(mesh.shape[name] for name in names)
    total += leaf.size * leaf.dtype.itemsize // parts
  return total


def _merged(kernels: list[Kernel]) -> list[Kernel]:
  """Calls of the same kernel as one, with the sum of their counts."""
  counts: dict[Kernel, int] = {}
  for kernel in kernels:
    key = dataclasses.replace(kernel, count=0)
    counts[key] = counts.get(key, 0) + kernel.count
  return [dataclasses.replace(kernel, count=count) for kernel, count in counts.items()]


def to_json(result: Plan) -> dict[str, Any]:
  """Plain types."""
  return dataclasses.asdict(result)
