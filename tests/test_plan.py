"""Plans: what is read from compiled programs, and the compiler of TPUs itself."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import vit_jax
from configs import pretraining
from experiments.benchmarks import plan as benchmark
from experiments.benchmarks import report
from tests.conftest import ROOT, tiers
from vit_jax.compile import plan, show, topology
from vit_jax.compile.compiled import Collective, Kernel, Program, _bytes
from vit_jax.core.errors import RunError
from vit_jax.costs import chips
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import layers, sharding
from vit_jax.nn.kernels import choice, short
from vit_jax.nn.masks import Mask
from vit_jax.training import config as config_lib

PROGRAM = """HloModule step, is_scheduled=true

%body.1 (arg.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %arg.1 = (s32[], f32[8]{0}) parameter(0)
  %fusion.7 = f32[8]{0:T(1024)} fusion(%x), kind=kLoop, calls=%inner, metadata={op_name="jit(step)/while/body/add"}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-reduce-start.1 = bf16[4,256]{1,0:T(8,128)(2,1)} all-reduce-start(%y), replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, to_apply=%sum
  %all-reduce-done.1 = bf16[4,256]{1,0:T(8,128)(2,1)} all-reduce-done(%all-reduce-start.1)
}

%cond.1 (arg.2: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%fused.1 (p: bf16[4,1024]) -> bf16[8,1024] {
  %all-gather.1 = bf16[8,1024]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=[2,2]<=[4], dimensions={0}
}

%async_collective_fusion.2 (p: bf16[4,1024]) -> bf16[8,1024] {
  %all-gather.2 = bf16[8,1024]{1,0:T(8,128)(2,1)} all-gather(%p), replica_groups=[2,2]<=[4], dimensions={0}
}

%all-reduce-scatter.1 (p: bf16[8,1024]) -> bf16[4,1024] {
  %all-reduce.1 = bf16[8,1024]{1,0:T(8,128)(2,1)} all-reduce(%p), replica_groups={{0,1},{2,3}}, to_apply=%sum
}

ENTRY %main.9 (p.1: f32[8]) -> f32[8] {
  %p.1 = bf16[2,197,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %gather = bf16[8,1024]{1,0:T(8,128)(2,1)} all-gather(%p.2), replica_groups={{0,1},{2,3}}, dimensions={0}
  %permute = (bf16[8,128]{1,0:T(8,128)}, bf16[8,128]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p.2), source_target_pairs={{0,1},{1,0}}
  %async-collective-start.4 = (bf16[8,1024]{1,0}) fusion(%p.2), kind=kCustom, calls=%fused.1
  %fusion.4 = (bf16[8,1024]{1,0}) fusion(%p.2), kind=kOutput, calls=%async_collective_fusion.2
  %async-collective-done.4 = bf16[8,1024]{1,0} fusion(%p.2), kind=kCustom, calls=%fused.1
  %fusion.5 = bf16[4,1024]{1,0} fusion(%p.2), kind=kCustom, calls=%all-reduce-scatter.1
  %loop = (s32[], f32[8]{0}) while(%init), condition=%cond.1, body=%body.1
  %attention_forward_64.3 = bf16[2,197,128]{2,1,0:T(8,128)(2,1)} custom-call(%p.1, %p.1), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/attention_forward_64/pallas_call"}, backend_config={"custom_call_config":{"cost_estimate":{"flops":"1000","transcendentals":"1","bytes_accessed":"7"}}}
  ROOT %fusion.9 = f32[8]{0:T(1024)} fusion(%x), kind=kLoop, calls=%inner, backend_config={"window_config":{"estimated_cycles":"11"}}
}
"""  # noqa: E501


def test_reading_a_program():
  program = Program(PROGRAM)
  assert program.cycles == 12 * 100 + 11
  assert [(o.name, o.count) for o in program.operations] == [('fusion.7', 12), ('fusion.9', 1)]
  reduced, gathered = 12 * 8 * 256 * 2 * 3 // 2, 8 * 1024 * 2 // 2
  assert program.collectives == [
    Collective('all-gather', 2, 2 * gathered, gathered),
    Collective('all-reduce', 12, reduced, 0),
    Collective('collective-permute', 1, 8 * 128 * 2, 0),
    Collective('reduce-scatter', 1, gathered, gathered),
  ]
  assert not program.untimed
  unknown = Program(PROGRAM.replace('"estimated_cycles":"11"', f'"estimated_cycles":"{2**63 - 1}"'))
  assert (unknown.cycles, unknown.untimed) == (12 * 100, ['fusion.9'])
  # Of its operands a kernel may read a part, and then says so.
  assert program.kernels == [Kernel('attention_forward_64', 1000, 7, 1)]
  whole = Program(PROGRAM.replace(',"bytes_accessed":"7"', ''))
  assert whole.kernels == [Kernel('attention_forward_64', 1000, 3 * 2 * 200 * 128 * 2, 1)]


def test_kernels_whose_attributes_have_lines_of_their_own():
  """As those of JAX's splash attention, which declare no FLOPs."""
  kernel = """  %splash.1 = bf16[2,12,256,64]{3,2,1,0} custom-call(%mask, %q, %q, %q), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof": {"block": 128
}}, metadata={op_name="jit(step)/splash_mha_dq_segmented/pallas_call"}
  %mask = s8[1,2,2]{2,1,0} parameter(1)
  %q = bf16[2,12,256,64]{3,2,1,0} parameter(2)
"""
  first, last = PROGRAM.split('  ROOT %fusion.9')
  program = Program(f'{first}{kernel}  ROOT %fusion.9{last}')
  assert program.cycles == 12 * 100 + 11
  size = 2 * 12 * 256 * 64
  assert program.kernels[1] == Kernel(
    'splash_mha_dq_segmented_64', 3 * 2 * size * 256, 4 * 2 * size + 4, 1
  )


def test_collectives_that_gpus_start():
  """Their types have operands and results, of several arrays at once."""
  text = """
ENTRY %main (p: f32[8]) -> f32[8] {
  %a = ((f32[8], f32[16]), (f32[64], f32[128])) all-gather-start(%p, %p), replica_groups=[1,8]<=[8]
  %b = ((bf16[64]{0}), bf16[8]{0}) reduce-scatter-start(%p), replica_groups=[1,8]<=[8]
  %c = f32[64] all-reduce-start(%p), replica_groups=[1,8]<=[8]
}
"""
  assert Program(text).collectives == [
    Collective('all-gather', 1, 7 * (8 + 16) * 4, 0),
    Collective('all-reduce', 1, 2 * 7 * 8 * 4, 0),
    Collective('reduce-scatter', 1, 7 * 8 * 2, 0),
  ]


# Sends a sum of 4 KiB and, in each of three turns of a loop, one of 1 KiB, which is needed in the
# same turn. 'recv' and 'recv-done' have the channel in common, 'send' and 'recv' the rendezvous.
SLICES = """
%body (arg: (s32[])) -> (s32[]) {
  %fusion.1 = f32[8]{0:T(1024)} fusion(%x), kind=kLoop, calls=%inner, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %send.1 = (bf16[4,128]{1,0:T(4,128)(2,1)}, u32[], token[]) send(%y, %after), channel_id=11, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="in the loop",_xla_megascale_target="{1,2,3,4}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.1 = (bf16[4,128]{1,0:T(4,128)(2,1)}, u32[], token[]) recv(%after), channel_id=12, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="in the loop",_xla_megascale_target="{1,2,3,4}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %fusion.2 = f32[8]{0:T(1024)} fusion(%x), kind=kLoop, calls=%inner, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %send-done.1 = token[] send-done(%send.1), channel_id=11, is_host_transfer=true
  %recv-done.1 = (bf16[4,128]{1,0:T(4,128)(2,1)}, token[]) recv-done(%recv.1), channel_id=12, is_host_transfer=true
}

%cond (arg.2: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %send.2 = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) send(%z, %after), channel_id=3, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="before it",_xla_megascale_target="{1,2,3,4}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv.2 = (f32[8,128]{1,0:T(8,128)}, u32[], token[]) recv(%after), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="before it",_xla_megascale_target="{1,2,3,4}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %loop = (s32[]) while(%init), condition=%cond, body=%body
  %recv-done.2 = (f32[8,128]{1,0:T(8,128)}, token[]) recv-done(%recv.2), channel_id=4, is_host_transfer=true
}
"""  # noqa: E501


@pytest.mark.parametrize(
  ('bandwidth', 'waited'),
  [
    # Nothing is late.
    (1e9, 0),
    # 6144 and 1536 bytes at 1 a cycle. The first of the loop waits for the one before it: it is
    # sent at 1000, begins at 6144, comes at 7680, where 2000 were computed. The next ones are sent
    # after 1000 of computing, take 1536, and are needed 1000 later.
    (1.0, (7680 - 2000) + 2 * (1536 - 1000)),
    # Twice as fast: 3072 and 768. The first comes at 3840, the next ones in time.
    (2.0, (3840 - 2000) * 2),
  ],
)
def test_reading_a_program_for_several_slices(bandwidth, waited):
  """Four slices: of every sum a chip gets 2 * 3 / 4 times its size."""
  (found,) = Program(SLICES).transfers(lambda operation: operation.cycles, bandwidth)
  assert found == Collective('all-reduce', 1 + 3, 6144 + 3 * 1536, waited)
  assert Program(SLICES).collectives == []


@pytest.mark.parametrize(
  ('kind', 'called', 'sent', 'received', 'size'),
  [
    ('ALL_GATHER', 'all-gather', 'f32[128]', 'f32[4,128]', 3 * 512),
    ('REDUCE_SCATTER', 'reduce-scatter', 'f32[4,128]', 'f32[128]', 3 * 512),
    ('ALL_TO_ALL', 'all-to-all', 'f32[4,128]', 'f32[4,128]', 3 * 512),
    ('ONE_TO_ONE', 'collective-permute', 'f32[128]', 'f32[128]', 512),
  ],
)
def test_other_transfers_between_slices(kind, called, sent, received, size):
  text = SLICES.replace('ALL_REDUCE', kind)
  text = text.replace('(f32[8,128]{1,0:T(8,128)}, u32[], token[]) send', f'({sent}, u32[]) send')
  text = text.replace('(f32[8,128]{1,0:T(8,128)}, u32[]', f'({received}, u32[]')
  text = text.replace('constant(3)', 'constant(0)')
  # Nothing is computed meanwhile.
  assert Program(text).transfers(lambda _: 0, 1e9) == [Collective(called, 1, size, size)]


def test_a_transfer_that_is_not_known():
  with pytest.raises(ValueError, match='between slices that is not known'):
    Program(SLICES.replace('ALL_REDUCE', 'SOME_REDUCE'))


def test_a_loop_that_draws_a_number_again_is_counted_once():
  """As it does for a Beta distribution, of mixup, until it is accepted."""
  whole, once = Program(PROGRAM), Program(PROGRAM.replace('constant(12)', 'parameter(0)'))
  assert whole.cycles - once.cycles == 11 * 100


def test_a_loop_may_say_in_its_name_how_often_it_goes_round():
  """Of several names the innermost one counts; the one that JAX writes where a loop is vmapped."""
  unknown = PROGRAM.replace('constant(12)', 'parameter(0)')
  name = 'metadata={op_name="jit(f)/vmap(about_7_times)/while/body/vmap(about_5_times)/while"}'
  named = unknown.replace('body=%body.1', f'body=%body.1, {name}')
  assert named != unknown
  assert Program(named).cycles - Program(unknown).cycles == 4 * 100


def test_a_program_that_cannot_be_counted():
  unknown = PROGRAM.replace('constant(12)', 'parameter(0)')
  with pytest.raises(ValueError, match='trip count'):
    Program(unknown.replace('%loop = (s32[], f32[8]{0})', '%loop = (s32[], f32[4096]{0})'))
  with pytest.raises(ValueError, match='branch'):
    Program(PROGRAM.replace('while(%init)', 'conditional(%init)'))
  with pytest.raises(ValueError, match='replica_groups'):
    Program(PROGRAM.replace('replica_groups={{0,1},{2,3}}', ''))
  with pytest.raises(ValueError, match='no entry'):
    Program('')


@pytest.mark.parametrize(
  ('shape', 'size'),
  [
    ('f32[]', 4),
    ('f32[3,5]{1,0}', 60),
    ('f32[3,5]{1,0:T(8,128)}', 8 * 128 * 4),
    ('f32[3,5]{0,1:T(8,128)}', 8 * 128 * 4),
    ('bf16[2,197,768]{2,0,1:T(8,128)(2,1)S(1)}', 8 * 197 * 768 * 2),
    ('(s32[2]{0:T(128)}, u8[2,3]{1,0})', 512 + 6),
    ('f8e4m3fn[16]', 16),
  ],
)
def test_bytes_of_shapes(shape, size):
  assert _bytes(shape) == size


def test_kernels_are_expected_to_reach_half_their_roofline():
  chip = chips.CHIPS['TPU v5 lite']
  compute = Kernel('attention_forward_64', flops=int(1e12), bytes=1, count=1)
  assert plan.kernel_seconds(compute, chip) == pytest.approx(2 * 1e12 / (197e12 / 2))
  wide = dataclasses.replace(compute, name='attention_forward_128')
  assert plan.kernel_seconds(wide, chip) == pytest.approx(2 * 1e12 / 197e12)
  memory = dataclasses.replace(compute, bytes=int(1e12))
  assert plan.kernel_seconds(memory, chip) == pytest.approx(2 * 1e12 / 819e9)


def config(**changes):
  base = config_lib.complete(dict(
    total='10 steps', batch_size=32,
    model=dict(variant='Ti/16', depth=2, image_size=(64, 64), pool='mean', dtype='bfloat16'),
    data=dict(source=dict(name='synthetic')), optim=dict(lr=1e-3, warmup='1 step'), log={},
    checkpoint={},
  )).unlock()  # fmt: skip
  base.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return base.lock()


@pytest.fixture(scope='module')
def small():
  return plan.plan(config(), 'v5e:2x2')


def test_a_plan(small):
  assert small.fits
  assert small.chips == 4
  model = ViTConfig(
    variant='Ti/16', depth=2, image_size=(64, 64), pool='mean', num_classes=1000
  ).resolve()  # fmt: skip
  leaves = jax.tree.leaves(jax.eval_shape(lambda: model.create(nnx.Rngs(jax.random.key(0)))))
  parameters = 4 * sum(leaf.size for leaf in leaves)
  assert small.parameters == parameters
  assert small.frozen == small.teacher == 0
  assert small.optimizer == pytest.approx(2 * parameters, rel=1e-3)
  assert small.memory > 3 * parameters + small.temporaries
  assert small.step_time == pytest.approx(small.compiler_time + small.kernel_time)
  assert small.images_per_second == pytest.approx(8 / small.step_time)
  assert 0 < small.mfu < 1
  # Two kernels in each of two layers; gradients of all parameters reach every chip.
  assert {k.name: k.count for k in small.kernels} == {
    'attention_forward_64': 2, 'attention_backward_64': 2
  }  # fmt: skip
  assert sum(c.bytes for c in small.collectives) > parameters / 2


def test_a_teacher_is_counted(tmp_path):
  """Of the same network it is a quarter: a step is three times a forward pass, and one more."""
  sizes = dict(widths=(8, 12), kernels=(3,), strides=(1, 2), dilations=(1,), image_size=(16, 16))
  teacher = vit_jax.create('convnet:', **sizes, num_classes=10)
  vit_jax.save(teacher, tmp_path / 'teacher', 'vit_jax')
  result = plan.plan(
    config_lib.complete(dict(
      total='10 steps', batch_size=32, model=dict(name='convnet', variant='', **sizes),
      task=dict(
        name='distillation', teacher=dict(init=str(tmp_path / 'teacher'), by_number=True)
      ),
      data=dict(source=dict(name='synthetic', num_classes=10)), optim=dict(warmup='1 step'),
      log={}, checkpoint={},
    )),
    'v5e:1x1',
  )  # fmt: skip
  assert result.teacher == pytest.approx(1 / 4)
  assert result.frozen == 4 * sum(leaf.size for leaf in jax.tree.leaves(teacher))
  assert result.parameters == 2 * result.frozen
  said = show.describe(result)
  assert said['teacher'].startswith('25.0% of the FLOPs of a step')
  assert said['parameters'].endswith('GiB of them not trained')


@pytest.mark.parametrize(
  ('where', 'count'), tiers([('v4:2x2x1', 4), ('v5p:2x2x1', 4), ('v6e:1x1', 1)])
)
def test_other_generations(where, count, small):
  result = plan.plan(config(), where)
  assert result.chips == count
  assert result.fits
  assert result.parameters == small.parameters
  assert (
    0.5
    < result.step_time
    * count
    / (small.step_time * small.chips)
    * (chips.CHIPS[topology.devices(where)[0].device_kind].peak / chips.CHIPS['TPU v5 lite'].peak)
    < 5
  )


def test_a_plan_with_the_state_cut_over_chips(small):
  cut = plan.plan(config(mesh='fsdp', model__remat='full'), 'v5e:2x2')
  assert cut.parameters < small.parameters / 3
  assert cut.activations < small.activations / 3
  assert {c.kind for c in cut.collectives} >= {'all-gather'}


@pytest.mark.slow
def test_sizes_that_change_are_planned_each(small):
  """Of the model's own size as without others; memory is of the largest, times are averages."""
  both = plan.plan(
    config(sizes__images=(64, 96), sizes__order='stages', total='9 steps'), 'v5e:2x2'
  )
  own, large = both.sizes.values()
  assert list(both.sizes) == [
    '64x64 in patches of 16 (16 tokens)', '96x96 in patches of 16 (36 tokens)'
  ]  # fmt: skip
  untimed = dict(trace_time=0.0, compile_time=0.0)
  assert dataclasses.replace(own, **untimed) == dataclasses.replace(small, **untimed)
  assert both.memory == large.memory > own.memory
  assert both.step_time == pytest.approx((5 * own.step_time + 4 * large.step_time) / 9)
  assert both.images_per_second == pytest.approx(8 / both.step_time)
  work = [each.mfu * each.step_time for each in (own, large)]
  assert both.mfu == pytest.approx((5 * work[0] + 4 * work[1]) / 9 / both.step_time)
  assert list(both.sizes)[1] in show.describe(both)


def test_what_does_not_fit_is_replaced(monkeypatch, capsys, small):
  """A chip with no room for a batch of 64 without recomputation."""

  def limited(config, where, hlo=''):
    del where, hlo
    return dataclasses.replace(small, fits=config.model.remat == 'full')

  monkeypatch.setattr(plan, 'plan', limited)
  monkeypatch.setattr(plan, 'POLICIES', ('none', 'full'))
  show.main(config(), 'v5e:2x2', as_json=False)
  out = capsys.readouterr().out
  assert 'DOES NOT FIT' in out
  assert '--config.model.remat=full' in out


def test_what_is_refused_is_no_way_out(monkeypatch, small):
  """A mesh that does not divide the model, where half the batch fits."""

  def limited(config, where, hlo=''):
    del where, hlo
    if config.mesh == 'fsdp':
      raise RunError('it does not divide')
    return dataclasses.replace(small, fits=config.batch_size == half)

  monkeypatch.setattr(plan, 'plan', limited)
  monkeypatch.setattr(plan, 'POLICIES', ('none', 'full'))
  half = config().batch_size // 2
  tried = [changes for changes, _ in plan.alternatives(config(), 'v5e:2x2')]
  assert tried == [{'model.remat': 'full'}, {'model.remat': 'full', 'batch_size': half}]


@pytest.mark.slow
def test_towers_and_lanes_are_planned():
  """Two towers without data, whose policies are looked for; lanes, which take room each."""
  tower = dict(width=64, depth=1, mlp_dim=128, num_heads=2, image_size=(32, 32))
  text = dict(width=64, depth=1, mlp_dim=128, num_heads=2, vocab_size=64, context_length=8)
  towers = config_lib.complete({
    **config().to_dict(), 'evals': {},
    'model': dict(name='two_towers', variant='clip:B/16', image=tower, text=text),
  })  # fmt: skip
  changes = plan.alternatives(towers, 'v5e:2x2')
  with pytest.raises(RunError, match=r'needs model\.name=vit'):  # asked when it is planned
    next(changes)
  one, two = (
    plan.plan(config(model__depth=1, lanes=lanes), 'v5e:2x2')
    for lanes in ({}, {'lr': (1e-3, 1e-4)})
  )
  assert two.optimizer > 1.9 * one.optimizer
  assert two.activations == 2 * one.activations
  assert two.step_time > 1.3 * one.step_time


@pytest.mark.parametrize('layout', ['data', 'fsdp', 'tensor', '8x4x1', '-1x2x4'])
def test_meshes_of_several_slices(layout):
  """As JAX lays out its hybrid meshes."""
  devices = topology.devices('v5p:2x2x2*4')
  made = sharding.make_mesh(layout, devices)
  own = {'data': (8, 1, 1), 'fsdp': (1, 8, 1), 'tensor': (1, 1, 8), '8x4x1': (2, 4, 1)}
  expected = mesh_utils.create_hybrid_device_mesh(own.get(layout, (1, 2, 4)), (4, 1, 1), devices)
  np.testing.assert_array_equal(made.devices, expected)
  assert set(made.axis_types) == {jax.sharding.AxisType.Explicit}
  assert [{d.slice_index for d in row.flat} for row in np.split(made.devices, 4)] == [
    {i} for i in range(4)
  ]


def test_meshes_that_several_slices_do_not_have():
  devices = topology.devices('v5p:4x4x4*2')
  with pytest.raises(RunError, match='data, must be a multiple of the 2 slices'):
    sharding.make_mesh('1x128x1', devices)
  with pytest.raises(RunError, match=r'2x32x1 in each of 2 slices: .* sides .* 4x4x4'):
    sharding.make_mesh('4x32x1', devices)


@pytest.mark.parametrize(('slices', 'layout'), tiers([(2, 'fsdp'), (2, 'data'), (4, '8x2x1')], 0))
def test_parts_of_gradients_go_from_slice_to_slice(slices, layout):
  """Each chip sends what it has of the sum of its slice: a fourth of all gradients, in float32.

  At their full width, so that nothing of it is padding.
  """
  sizes = dict(width=512, depth=1, mlp_dim=1024, num_heads=4)
  changes = {f'model__{name}': size for name, size in sizes.items()}
  result = plan.plan(
    config(**changes, model__dtype='float32', batch_size=16 * slices, mesh=layout),
    f'v5e:2x2*{slices}',
  )
  assert (result.slices, result.chips) == (slices, 4 * slices)
  model = ViTConfig(
    variant='Ti/16', **sizes, image_size=(64, 64), pool='mean', num_classes=1000
  ).resolve()
  leaves = jax.tree.leaves(jax.eval_shape(lambda: model.create(nnx.Rngs(jax.random.key(0)))))
  gradients = 4 * sum(leaf.size for leaf in leaves)
  (moved,) = result.transfers
  assert moved.kind == 'all-reduce'
  assert moved.bytes == pytest.approx(2 * (slices - 1) / slices * gradients / 4, rel=0.05)
  assert 0 < moved.waited <= moved.bytes
  dcn = chips.CHIPS['TPU v5 lite'].dcn
  assert result.transfer_time == pytest.approx(moved.bytes / dcn)
  assert result.transfer_wait == pytest.approx(moved.waited / dcn)
  assert result.step_time == pytest.approx(
    result.compiler_time + result.kernel_time + result.transfer_wait
  )
  assert result.images_per_second == pytest.approx(4 / result.step_time)
  lines = show.describe(result)
  assert f'{slices} of 4 chips' in lines['slice']
  assert '3.125 GB/s per chip, which are assumed' in lines['between slices']
  assert 'waiting for other slices' in lines['step']


def test_several_slices_do_not_slow_down_sums_of_gradients(monkeypatch):
  """As the compiler expects it of an MLP whose gradients cross slices, with biases and without."""
  mesh = sharding.make_mesh('data', topology.devices('v5e:2x2*2'))

  def cycles():
    def loss(state, x):
      return jnp.square(nnx.merge(graph, state)(x).astype(jnp.float32)).sum()

    with jax.set_mesh(mesh), plan.no_cache():
      abstract = nnx.eval_shape(lambda: layers.Mlp(256, 1024, nnx.Rngs(jax.random.key(0))))
      graph, state = nnx.split(abstract)
      x = jax.ShapeDtypeStruct(
        (256, 64, 256), 'bfloat16', sharding=NamedSharding(mesh, P(sharding.RULES['batch']))
      )
      step = jax.jit(jax.grad(loss, (0, 1))).lower(sharding.fill_shardings(state), x)
      return Program(step.compile().as_text()).cycles

  summed = cycles()
  monkeypatch.setattr(layers, 'add_bias', lambda x, bias, axis, alone: x + bias)
  assert summed < 0.9 * cycles()


def test_the_page_on_plans_has_the_bandwidths_that_are_assumed():
  page = (ROOT / 'docs' / 'how-to' / 'plan-a-run.md').read_text()
  for chip in chips.CHIPS.values():
    assert f'| {chip.name} | {chip.dcn / 1e9:g} GB/s | {chip.link / 1e9:g} GB/s |' in page


def test_running_out_of_memory_is_a_result():
  result = plan.plan(config(batch_size=4 * 2**16, model__remat='none'), 'v5e:2x2')
  assert not result.fits
  assert result.memory > result.capacity
  assert 'DOES NOT FIT' in show.describe(result)['memory']


def test_json(small):
  text = json.dumps(plan.to_json(small))
  assert json.loads(text)['topology'] == 'v5e:2x2'


@pytest.mark.parametrize(
  'name',
  [
    'v5e',
    'h100',
    'h100:2x2x2',
    'v9:2x2',
    'gtx:8',
    'v5e:2x2*',
    'v5e:2x2*0',
    'v5e:2x2*x',
    'h100:8*2',
  ],
)
def test_unknown_topologies(name):
  with pytest.raises(RunError, match='topology'):
    topology.devices(name)


@pytest.mark.parametrize('where', tiers(['v4:2x2x1', 'v5e:2x2'], 1))
@pytest.mark.parametrize(
  ('tokens', 'heads', 'head_dim', 'options'),
  tiers(
    [(197, 12, 64, {}), (257, 2, 72, {}), (50, 3, 64, dict(mask=('keys',))),
     (197, 4, 128, dict(bias=1, mask=('keys', 'segments'))),
     (197, 2, 64, dict(mask=('causal', 'window', 'segments'), cap=30.0)),
     (257, 8, 80, dict(mask=('causal', 'prefix'))), (577, 2, 64, dict(bias=2))], 0, 1, 2, 3, 4,
  ),
)  # fmt: skip
def test_the_compiler_takes_the_kernels(tokens, heads, head_dim, options, where):
  device = topology.devices(where)[:1]
  mesh = jax.make_mesh((1,), ('x',), devices=device)
  make = lambda *shape, dtype='bfloat16': jax.ShapeDtypeStruct(  # noqa: E731
    shape, dtype, sharding=NamedSharding(mesh, P())
  )
  width = heads * head_dim
  args = [make(2, tokens, width) for _ in range(3)]
  bias, said = options.get('bias'), options.get('mask', ())
  args += [make(bias, heads, tokens, tokens)] if bias else []
  numbers = make(2, tokens, dtype=bool), make(2, tokens, dtype='int32')

  def loss(q, k, v, *rest):
    there, number = rest[-2:]
    mask = Mask(
      'causal' in said, (30, 20) if 'window' in said else None, there if 'keys' in said else None,
      there if 'prefix' in said else None, (number, number) if 'segments' in said else None,
    )  # fmt: skip
    more = dict(num_heads=heads, cap=options.get('cap', 0.0))
    y = short.attention(q, k, v, rest[0] if bias else None, mask, **more)
    if short.packs(tokens, heads, head_dim, bias=bool(bias)):
      qkv = jnp.concatenate([q, k, v], axis=-1)
      y += short.self_attention(qkv, rest[0] if bias else None, mask, **more)
    return jnp.square(y.astype(jnp.float32)).sum()

  with jax.set_mesh(mesh), plan.no_cache():
    compiled = jax.jit(jax.grad(loss, range(4 if bias else 3))).lower(*args, *numbers).compile()
    both = short.packs(tokens, heads, head_dim, bias=bool(bias))
  scores = 2 * heads * tokens**2 * 4
  assert compiled.memory_analysis().temp_size_in_bytes < scores / (1 if bias else 2)
  assert len(Program(compiled.as_text()).kernels) == (4 if both else 2)


def test_the_compiler_takes_attention_over_long_sequences():
  device = topology.devices('v5e:2x2')[:1]
  mesh = jax.make_mesh((1,), ('x',), devices=device)
  x = jax.ShapeDtypeStruct((1, 4097, 128), 'bfloat16', sharding=NamedSharding(mesh, P()))
  run = choice.IMPLEMENTATIONS['splash'].run
  loss = lambda q, k, v: jnp.square(  # noqa: E731
    run(q, k, v, None, Mask(causal=True, window=(99, 0)), num_heads=2, cap=9.0, length=None).astype(
      np.float32
    )
  ).sum()
  with jax.set_mesh(mesh), plan.no_cache():
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(x, x, x).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * 4097**2


def golden():
  """The giants of the committed benchmark, by model and slice."""
  rows = json.loads((report.RESULTS / 'plan.json').read_text())['rows']
  return {(r['model'], r['slice']): r for r in rows if r['way'].endswith('x64x1')}


def test_giants_fit_and_reach_half_of_the_peak():
  found = golden()
  assert found.keys() == {
    (model, where) for model in ('G/14', '22B/14') for where in ('v5p:8x8x4', 'v5p:8x8x16')
  }  # fmt: skip
  for row in found.values():
    assert row['MFU %'] > 50
    assert row['GiB'] < chips.CHIPS['TPU v5'].hbm / 2**30


def test_recipes_fit_pods_and_four_slices_are_faster():
  rows = json.loads((report.RESULTS / 'plan.json').read_text())['rows']
  found = {(r['model'], r['slice']): r for r in rows if r['way'] == benchmark.RECIPE}
  cases = [case for case in benchmark.cases() if case.way == benchmark.RECIPE]
  assert found.keys() == {(case.model, case.topology) for case in cases}
  assert {case.model for case in cases} == pretraining.RECIPES.keys()
  for case in cases:
    row = found[case.model, case.topology]
    shape, _, several = case.topology.partition('*')
    generation, _, sides = shape.partition(':')
    (chip,) = (chip for chip in chips.CHIPS.values() if chip.name == generation)
    assert row['GiB'] < chip.hbm / 2**30
    count = math.prod(map(int, sides.split('x'))) * int(several or 1)
    assert case.images * count == pretraining.RECIPES[case.model]['batch_size']
    assert 0 <= row['of it waiting'] <= row['between slices ms']
    assert (row['between slices ms'] > 0) == bool(several)
    if several:
      assert 2.5 < found[case.model, shape]['ms'] / row['ms'] < 4


@pytest.mark.slow
def test_the_plan_of_a_giant_is_still_the_golden_one():
  (case,) = (c for c in benchmark.cases() if c.name == 'G/14 v5p:8x8x4 scanned, mesh=4x64x1')
  row = golden()[case.model, case.topology]
  result = plan.plan(benchmark.config(case), case.topology)
  assert result.fits
  assert result.mfu > 0.5
  record = json.loads((report.RESULTS / 'plan.json').read_text())
  packages = record['machine']['packages']
  if all(importlib.metadata.version(name) == packages[name] for name in ('jax', 'libtpu')):
    assert 1e3 * result.step_time == pytest.approx(row['ms'], rel=0.02)
    assert result.memory / 2**30 == pytest.approx(row['GiB'], rel=0.02)


def test_gpus():
  """Runs where the compiler of GPUs is installed."""
  pytest.importorskip('jax_cuda12_plugin')
  result = plan.plan(config(mesh='fsdp'), 'h100:8')
  assert result.fits
  assert result.chips == 8
  assert result.memory > result.temporaries + 3 * result.parameters
  assert result.step_time is result.mfu is None
  # Each of 8 devices gets 7 parts of all weights, in bfloat16, from the others.
  moved = {c.kind: c.bytes for c in result.collectives}
  assert moved['all-gather'] == pytest.approx(7 * result.parameters / 2, rel=0.1)


def test_no_compiler_of_gpus():
  if importlib.util.find_spec('jax_cuda12_plugin'):
    pytest.skip('it is installed')
  with pytest.raises(RunError, match=r'vit_jax\[gpu\]'):
    topology.devices('h100:8')


def test_memory_of_gpus(monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  assert topology.gpu_memory('NVIDIA H200') == 105 * 2**30
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.9')
  assert topology.gpu_memory('NVIDIA H100 80GB HBM3') == 72 * 2**30
