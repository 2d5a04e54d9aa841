r"""Runs and checkpoints as this version leaves them, for later versions to go on with.

    python -m tests.golden.make_runs

Each run is trained to its end. Kept are its record, its metrics up to the checkpoint that it is
resumed from, that checkpoint, and in `expected.json` what must come out: all metrics, and a digest
of every array at the checkpoint and at the end. What is committed is never made anew.
"""

import hashlib
import json
import os
import pathlib
import platform
import shutil
import tempfile

if __name__ == '__main__':  # as the tests that go on with these runs
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = (
    '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 '
    '--xla_llvm_disable_expensive_passes=true --xla_cpu_use_fusion_emitters=false '
    '--xla_cpu_parallel_codegen_split_count=1'
  )

import jax
import numpy as np
from absl import flags

import vit_jax
from vit_jax import config as config_lib
from vit_jax.checkpoints import formats

STEP = 6
BASE = dict(
  total='10 steps', batch_size=16,
  model=dict(variant='mu/4', image_size=(8, 8), in_channels=1, depth=2, width=16, mlp_dim=32,
             num_heads=4),
  data=dict(source=dict(name='tfds', dataset='digits', dir='data')),
  optim=dict(lr=3e-3, weight_decay=0.1, warmup='2 steps', eps=1e-3),
  evals=dict(test=dict(every='5 steps', batch_size=256)),
  log=dict(every='1 step'), checkpoint=dict(every='100%', keep=1, at=(f'{STEP} steps',)),
  compilation_cache='',
)  # fmt: skip
ENCODER = dict(variant='mu/4', image_size=(16, 16), depth=2, width=16, mlp_dim=32, num_heads=4)
SCENES = dict(name='generated', examples=64, generator=dict(name='scenes', size=(16, 16), most=1))
# One run for each kind of state and of record. What is here is what was written; add, never change.
RUNS = {
  'plain': {
    'optim.ema': 0.9, 'optim.accumulate': 2, 'batch_size': 32, 'data.crop': dict(name='affine'),
    'task.mixup': 0.3, 'task.flip': True, 'task.label_smoothing': 0.1,
  },
  'unrolled': {
    'model.scan': False, 'model.remat': 'names', 'model.dtype': 'bfloat16', 'model.pool': 'map',
    'model.registers': 2, 'model.mlp': 'swiglu', 'model.rope': 'unit', 'model.posemb': 'none',
    'model.drop_path': 0.1, 'model.mup_width': 8, 'optim.schedule': 'rsqrt',
    'optim.lr_scale': (('embed.*', 0.5), ('.*', 1.0)), 'seed': 3,
    'data.crop': dict(name='random_resized', min_area=0.5),
  },
  'lanes': {'lanes': {'lr': (1e-3, 3e-3), 'seed': (0, 1)}},
  'trunk': {'optim.schedule': 'wsd', 'optim.cooldown': '2 steps',
            'checkpoint.at': ('4 steps', f'{STEP} steps')},
  'fork': {'optim.schedule': 'wsd', 'optim.cooldown': '4 steps', 'fork': 'trunk',
           'checkpoint.at': ('8 steps',)},
  'started': {'init': 'start.npz', 'model.variant': 'mu/4', 'optim.warmup': '0'},
  # Since format 2.
  'locked': {
    'task.frozen': ('embed.*',), 'optim.weight_decay': '0.05->0.2 cosine', 'optim.ema': 0.9,
    'optim.mu_dtype': 'bfloat16', 'optim.clip_by': 'part', 'optim.layer_decay': 0.8,
  },
  'muon': {'optim.name': 'muon', 'optim.accumulate': 2, 'lanes': {'momentum': (0.9, 0.95)}},
  # Since format 5.
  'grouped': {
    'model.kv_heads': 2, 'model.head_dim': 8, 'model.softcap': 20.0, 'model.attention': 'h*,full',
  },
  # Since format 6.
  'adapted': {
    'init': 'start.npz', 'model.variant': 'mu/4', 'lora.rank': 2, 'lora.patterns': ('.*kernel',),
    'optim.warmup': '0',
  },
  'mixed': {
    'task.mixup': 0.8, 'task.cutmix': 1.0, 'task.loss_of': 'sigmoid_mean', 'task.threshold': 0.0,
    'data.erase': dict(name='random', mode='pixel'), 'data.repeats': 2, 'optim.name': 'lamb',
    'optim.skip_above': 1.01, 'model.head_bias': -2.0,
    'evals.test.report': ('top1', 'top5', 'loss'),
  },
  # Since format 7.
  'sized': {
    'sizes.images': (8, 12), 'sizes.patches': (4, 2), 'sizes.order': 'stages',
    'model.initial': 'deit', 'evals.test.image_size': 12,
  },
  # Since format 8.
  'mapped': {
    'model': dict(name='segmenter', encoder=ENCODER), 'task.name': 'segmentation',
    'task.stride': 2, 'data.source': SCENES, 'data.crop': dict(name='random_resized', min_area=0.5),
    'evals.test.name': 'segmentation', 'batch_size': 32, 'optim.accumulate': 2,
  },
  'filled': {
    'model': dict(name='mae', encoder={**ENCODER, 'in_channels': 1},
                  decoder=dict(width=16, depth=1, num_heads=2)),
    'task.name': 'masked', 'evals.test.name': 'reconstruction',
  },
  'taught': {
    'model': dict(name='dino', encoder={**ENCODER, 'in_channels': 1, 'drop_path': 0.1},
                  prototypes=16, hidden=16, bottleneck=8, patch_head='separate'),
    'task.name': 'dino', 'task.local': 2, 'task.local_size': 8, 'task.koleo': 0.1,
    'task.last_layer': '0 until 20% then 1', 'data.crop': dict(name='random_resized', min_area=0.5),
    'data.colour': dict(name='jitter'),
    'evals.test.name': 'knn',
  },
  # Since format 9.
  'boxed': {
    'model': dict(name='detr', encoder=ENCODER,
                  decoder=dict(depth=2, width=16, mlp_dim=32, num_heads=2, queries=4,
                               anchors='learned', denoising=True, nothing=False)),
    'task.name': 'detection', 'task.most': 2, 'task.denoising': 1, 'data.source': SCENES,
    'evals.test.name': 'detection',
  },
  'segmented': {
    'model': dict(name='eomt', encoder=ENCODER, queries=4, blocks=1, upscale=1),
    'task.name': 'panoptic', 'task.most': 3, 'data.source': SCENES,
    'evals.test.name': 'panoptic',
  },
  'compared': {
    'model': dict(name='change', encoder=ENCODER), 'task.name': 'change', 'task.swap': True,
    'data.source': dict(name='generated', examples=64,
                        generator=dict(name='terrain', of='change', size=(16, 16))),
    'evals.test.name': 'change',
  },
}  # fmt: skip
AT = {'fork': 8}
UNSET = ('depth', 'width', 'mlp_dim', 'num_heads', 'in_channels', 'image_size')


def machine():
  """Where arithmetic is expected to be the same bit for bit."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    cpu = next(line for line in lines if line.startswith('model name'))
  except (OSError, StopIteration):
    cpu = platform.processor()
  import jaxlib

  return {'cpu': cpu.partition(':')[2].strip(), 'jaxlib': jaxlib.__version__,
          'jax': jax.__version__, 'flags': os.environ['XLA_FLAGS']}  # fmt: skip


def digest(array):
  """Of the numbers, dtype and shape of an array."""
  array = np.asarray(array)
  head = f'{array.dtype} {array.shape} '.encode()
  return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def arrays(folder, step):
  """All arrays of a checkpoint by name, read with Orbax alone."""
  from orbax.checkpoint import v1 as ocp

  with ocp.training.Checkpointer(str(folder.absolute())) as checkpointer:
    found = checkpointer.metadata(step).metadata
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device) for n, a in found.items()}
    return checkpointer.load(step, wanted)


def configuration(name):
  """As a configuration file and a command line make it."""
  given, changes = json.loads(json.dumps(BASE)), dict(RUNS[name])
  for field in ('crop', 'erase', 'source', 'colour'):
    if section := changes.pop(f'data.{field}', None):
      given['data'][field] = section
  given['lanes'] = changes.pop('lanes', {})
  given['model'] = changes.pop('model', given['model'])
  for name in [each for each in changes if each.endswith('.name')]:  # decides on other fields
    section = given
    for step in name.split('.')[:-1]:
      section = section.setdefault(step, {})
    section['name'] = changes.pop(name)
  if 'init' in changes:
    for field in UNSET:
      del given['model'][field]
  config = config_lib.complete(given).unlock()
  config.update_from_flattened_dict(changes)
  return config_lib.complete(config.to_dict())


def make(name, target):
  """One run."""
  from vit_jax.train import train

  at = AT.get(name, STEP)
  result = train(configuration(name), name)
  run = pathlib.Path(name)
  expected = {
    'step': at, 'total': result['step'], 'metrics': result['metrics'], 'machine': machine(),
    'lines': [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()],
    'arrays': {
      str(step): {n: digest(a) for n, a in arrays(run / 'checkpoints', step).items()}
      for step in (at, result['step'])
    },
  }  # fmt: skip
  for line in expected['lines']:
    line.pop('images_per_second', None)
  out = target / name
  shutil.copytree(run, out)
  shutil.rmtree(out / 'checkpoints' / str(result['step']))
  for other in (out / 'checkpoints').iterdir():
    if other.name != str(at) and not (name == 'trunk' and other.name == '4'):
      shutil.rmtree(other)
  pictures = () if name == 'plain' else out.glob('evals/**/*.png')  # one page with them is enough
  for made in (out / 'result.json', out / 'report.html', *pictures):
    made.unlink(missing_ok=True)
  kept = [line for line in (run / 'metrics.jsonl').read_text().splitlines()
          if json.loads(line)['step'] <= at]  # fmt: skip
  (out / 'metrics.jsonl').write_text(''.join(f'{line}\n' for line in kept))
  (out / 'expected.json').write_text(json.dumps(expected, indent=1) + '\n')


def saved(target):
  """Models as `vit_jax.save` writes them in its own dialect."""
  from flax import nnx

  from vit_jax.models.two_towers import TwoTowersConfig
  from vit_jax.nn import tree

  rng = np.random.default_rng(0)
  small = dict(width=16, depth=2, mlp_dim=32, num_heads=2)
  vit = vit_jax.create('dinov2-reg:S/14', image_size=(28, 28), num_classes=3, **small)
  from vit_jax.models.text import TextConfig
  from vit_jax.models.vit import ViTConfig

  towers = TwoTowersConfig(
    'siglip:B/16', ViTConfig('siglip:B/16', image_size=(32, 32), **small),
    TextConfig('siglip:B', vocab_size=50, context_length=8, **small),
  ).create(nnx.Rngs(0))  # fmt: skip
  for name, model in (('saved_vit', vit), ('saved_towers', towers)):
    model = jax.tree.map(lambda x: np.asarray(x) + rng.normal(0, .02, x.shape).astype(x.dtype),
                         model)  # fmt: skip
    vit_jax.save(model, target / name, 'vit_jax')
    expected = {n: digest(a) for n, a in tree.flatten(model).items()}
    (target / name / 'expected.json').write_text(json.dumps(expected, indent=1) + '\n')


if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()
  target = (pathlib.Path(__file__).parent / 'runs' / str(formats.FORMAT)).absolute()
  target.mkdir(parents=True)  # nothing is made twice
  os.chdir(tempfile.mkdtemp())
  vit_jax.save(vit_jax.create('mu/4', image_size=(8, 8), in_channels=1, num_classes=10, depth=2,
                              width=16, mlp_dim=32, num_heads=2), 'start.npz', 'vit')  # fmt: skip
  for name in RUNS:
    make(name, target)
  saved(target)
  for path in target.rglob('commit_success.txt'):  # says where this was
    path.write_text('Checkpoint commit was successful to here')
