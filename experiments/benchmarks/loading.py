"""Memory to load a checkpoint: `python -m experiments.benchmarks.loading [--against=REVISION]`.

Each case is a process of its own, on a mesh of eight devices of a CPU that cut the parameters
(fsdp). Counted is by how much its resident memory is larger at most, while `vit_jax.load` reads the
model, than before; the model itself, which stays, is a part of that. Pages of files that are mapped
into memory count although the system can take them back. With `--against` another revision of this
project is measured in turn. The last rows are what one of several processes reads of a model as
large as ViT-22B and holds of it: its file is sparse, all zeros, and takes no room.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

from experiments.benchmarks import report

ROOT = pathlib.Path(__file__).parent.parent.parent
MIB = 2**20
KINDS = {'run of vit_jax': 'vit_jax', 'safetensors (timm)': 'timm', 'npz': 'vit'}
# Of ViT-22B (Dehghani et al. 2023), as an encoder in timm's names: no checkpoint of it is public.
GIANT = dict(width=6144, depth=48, mlp=24576, heads=48, patch=14, grid=16)

LOAD = """
import json, sys, threading
import jax
jax.config.update('jax_num_cpu_devices', 8)
import vit_jax
from vit_jax.nn import sharding

def status(field):
  text = open('/proc/self/status').read().split(field + ':')[1]
  return int(text.split()[0]) * 1024

with jax.set_mesh(sharding.make_mesh('fsdp')):
  vit_jax.load(sys.argv[2])  # everything is imported, and what must be compiled is
  open('/proc/self/clear_refs', 'w').write('5')
  before = status('VmRSS')
  model = vit_jax.load(sys.argv[1])
  jax.block_until_ready(model)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
print(json.dumps({'peak': status('VmHWM') - before, 'size': size}))
"""

SHARE = """
import json, sys, time
import jax, numpy as np
from vit_jax.convert.read import open_checkpoint

def status(field):
  text = open('/proc/self/status').read().split(field + ':')[1]
  return int(text.split()[0]) * 1024

path, of = sys.argv[1], int(sys.argv[2])

def share(shape):
  # What the first of `of` processes holds: a part of the longest axis.
  axis = max(range(len(shape)), key=lambda i: (i > 0 or len(shape) == 1, shape[i]))
  size = shape[axis] // of if shape[axis] % of == 0 else shape[axis]
  return tuple((0, size if i == axis else n) for i, n in enumerate(shape))

opened = open_checkpoint(path)
leaves, arrays = opened.leaves(), {**opened.arrays}
open('/proc/self/clear_refs', 'w').write('5')
before, start, held, total = status('VmRSS'), time.perf_counter(), [], 0
for name, leaf in leaves.items():
  total += 4 * int(np.prod(leaf.shape))
  wanted = jax.ShapeDtypeStruct(leaf.shape, np.float32)
  held.append(opened._blocks(name, wanted, opened._pieces[name], arrays, [share(leaf.shape)]))
size = sum(block.nbytes for blocks in held for block in blocks.values())
print(json.dumps({'peak': status('VmHWM') - before, 'size': size, 'total': total,
                  'seconds': time.perf_counter() - start}))
"""


def child(code: str, *arguments: object, checkout: pathlib.Path = ROOT) -> dict:
  """What a process prints as its last line."""
  env = {**os.environ, 'PYTHONPATH': str(checkout), 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', code, *map(str, arguments)]
  done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def sparse(path: pathlib.Path, shapes: dict[str, tuple[int, ...]]) -> None:
  """A safetensors file of zeros that takes no room."""
  header, at = {}, 0
  for name, shape in shapes.items():
    size = 4
    for n in shape:
      size *= n
    header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [at, at + size]}
    at += size
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  with path.open('wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    file.truncate(8 + len(text) + at)


def giant() -> dict[str, tuple[int, ...]]:
  """Shapes of a model by timm's names."""
  width, mlp = GIANT['width'], GIANT['mlp']
  shapes = {
    'cls_token': (1, 1, width), 'pos_embed': (1, GIANT['grid'] ** 2 + 1, width),
    'patch_embed.proj.weight': (width, 3, GIANT['patch'], GIANT['patch']),
    'patch_embed.proj.bias': (width,), 'norm.weight': (width,), 'norm.bias': (width,),
  }  # fmt: skip
  for i in range(GIANT['depth']):
    for name, shape in (
      ('norm1', (width,)), ('attn.qkv', (3 * width, width)), ('attn.proj', (width, width)),
      ('norm2', (width,)), ('mlp.fc1', (mlp, width)), ('mlp.fc2', (width, mlp)),
    ):  # fmt: skip
      shapes |= {f'blocks.{i}.{name}.weight': shape, f'blocks.{i}.{name}.bias': shape[:1]}
  return shapes


def main() -> None:
  """Measures and writes."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('--against', default='', help='another revision to measure')
  parser.add_argument('--variant', default='B/16')
  parser.add_argument('--processes', default='8,64', help='of which one reads its part of 22B')
  args = parser.parse_args()
  rows = []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    child(
      'import sys, vit_jax\n'
      'for name in ("model", "small"):\n'
      '  model = vit_jax.create(sys.argv[1] if name == "model" else "Ti/16", num_classes=1000)\n'
      '  vit_jax.save(model, f"{sys.argv[2]}/{name}-vit_jax", "vit_jax")\n'
      '  vit_jax.save(model, f"{sys.argv[2]}/{name}-timm", "timm")\n'
      '  vit_jax.save(model, f"{sys.argv[2]}/{name}-vit.npz", "vit")\n'
      'print(0)',
      args.variant, folder,
    )  # fmt: skip
    checkouts = {'this': ROOT}
    if args.against:
      checkouts[args.against] = folder / 'other'
      git = ['git', '-C', str(ROOT), 'worktree', 'add', '--detach', str(folder / 'other')]
      subprocess.run([*git, args.against], check=True, capture_output=True)
    for kind, dialect in KINDS.items():
      ending = f'{dialect}.npz' if dialect == 'vit' else dialect
      for which, checkout in checkouts.items():
        found = child(LOAD, folder / f'model-{ending}', folder / f'small-{ending}',
                      checkout=checkout)  # fmt: skip
        rows.append({
          'model': args.variant, 'from': kind, 'code': which, 'processes': 1,
          'parameters_mib': found['size'] / MIB, 'held_mib': found['size'] / MIB,
          'peak_mib': found['peak'] / MIB, 'peak_over_held': found['peak'] / found['size'],
        })  # fmt: skip
    sparse(folder / 'giant.safetensors', giant())
    for processes in map(int, args.processes.split(',')) if args.processes else ():
      found = child(SHARE, folder / 'giant.safetensors', processes)
      rows.append({
        'model': '22B/14', 'from': 'safetensors (timm)', 'code': 'this', 'processes': processes,
        'parameters_mib': found['total'] / MIB, 'held_mib': found['size'] / MIB,
        'peak_mib': found['peak'] / MIB, 'peak_over_held': found['peak'] / found['size'],
      })  # fmt: skip
  subprocess.run(['git', '-C', str(ROOT), 'worktree', 'prune'], check=True)
  report.write(
    'loading', rows, title='Memory of a process that loads a model',
    note='peak: growth of resident memory at most; held: the parameters of this process, float32',
  )  # fmt: skip


if __name__ == '__main__':
  main()
