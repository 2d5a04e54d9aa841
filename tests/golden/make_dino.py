"""What the losses of DINO, iBOT and DINOv2 give: `python -m tests.golden.make_dino DIRECTORY`.

Writes tests/golden/dino.npz, inputs and results. Needs PyTorch (2.13.0 then), and in the directory
clones of github.com/facebookresearch/dino, facebookresearch/dinov2 and bytedance/ibot by the names
dino, dinov2 and ibot, bare ones too; the commits are below. Their modules want GPUs and several
processes when they are imported, so classes and functions are taken out of them by name and run as
they stand, in one process.
"""

import ast
import pathlib
import subprocess
import sys
import types
import warnings

import numpy as np
import torch
from torch import nn

COMMITS = {
  'dino': '7c446df5b9f45747937fb0d72314eb9f7b66930a',
  'dinov2': 'b8931f7bf91576930313be2c6d6af376033b35f0',
  'ibot': 'da316d82636a7a7356835ef224b13d5f3ace0489',
}
EXAMPLES, PROTOTYPES, LOCAL, PATCHES = 5, 12, 3, 9
WIDTHS = (8, 16, 16, 6)


def taken(directory, repository, path, *names):
  """What has these names in a file of theirs."""
  show = f'{COMMITS[repository]}:{path}'
  text = subprocess.check_output(['git', '-C', directory / repository, 'show', show], text=True)
  module = ast.parse(text)
  module.body = [node for node in module.body if getattr(node, 'name', '') in names]
  # Of a single process.
  alone = types.SimpleNamespace(
    is_initialized=lambda: False, get_world_size=lambda: 1, all_reduce=lambda *_, **__: None
  )
  functional = nn.functional
  found = {
    'np': np, 'torch': torch, 'nn': nn, 'F': functional, 'dist': alone,
    'trunc_normal_': nn.init.trunc_normal_, 'weight_norm': nn.utils.weight_norm,
    # DINOv2 computes the loss of patches like this where xformers is not installed.
    'lossfunc': lambda t, s, temp: (t * functional.log_softmax(s / temp, dim=-1)).sum(-1),
  }  # fmt: skip
  exec(compile(module, path, 'exec'), found)
  return [found[name] for name in names]


def main(directory):
  directory, rng, found = pathlib.Path(directory), np.random.RandomState(0), {}
  warnings.simplefilter('ignore', FutureWarning)

  def drawn(name, *shape, scale=1.0):
    found[name] = np.float32(scale * rng.standard_normal(shape))
    return torch.from_numpy(found[name].copy())

  leaves = {}

  def leaf(name, *shape, scale=1.0):
    leaves[name] = drawn(name, *shape, scale=scale).requires_grad_()
    return leaves[name]

  def kept(name, value, *by):
    """A result, and its gradients by leaves."""
    found[name] = value.detach().numpy()
    inputs = [leaves[leaf] for leaf in by]
    own = torch.autograd.grad(value, inputs, retain_graph=True) if by else ()
    found.update({f'{name}/{leaf}': g.numpy() for leaf, g in zip(by, own, strict=True)})

  # Views come first in all of theirs.
  large = leaf('large', 2, EXAMPLES, PROTOTYPES, scale=0.3)
  local = leaf('local', LOCAL, EXAMPLES, PROTOTYPES, scale=0.3)
  teacher = drawn('teacher', 2, EXAMPLES, PROTOTYPES, scale=0.2)
  center = drawn('center', PROTOTYPES, scale=0.1)
  flat = lambda x: x.flatten(0, 1)  # noqa: E731
  student = torch.cat([flat(large), flat(local)])

  (dino_loss,) = taken(directory, 'dino', 'main_dino.py', 'DINOLoss')
  loss = dino_loss(PROTOTYPES, 2 + LOCAL, 0.04, 0.07, 4, 10)
  loss.center = center[None]
  found['dino/temperature'] = loss.teacher_temp_schedule
  kept('dino', loss(student, flat(teacher), 2), 'large', 'local')
  kept('dino/center', loss.center[0])
  kept('dino/next', loss(student, flat(teacher), 9))  # with the centre that has moved
  loss = dino_loss(PROTOTYPES, 2, 0.04, 0.04, 0, 10)
  loss.center = center[None]
  kept('dino/without_local', loss(flat(large), flat(teacher), 0))

  # Hidden patches; one view has none.
  said = leaf('patches', 2, EXAMPLES, PATCHES, PROTOTYPES, scale=0.3)
  taught = drawn('taught', 2, EXAMPLES, PATCHES, PROTOTYPES, scale=0.2)
  patch_center = drawn('patch_center', PROTOTYPES, scale=0.1)
  hidden = rng.random_sample((2, EXAMPLES, PATCHES)) < 0.4
  hidden[0, 1] = False
  found['hidden'], mask = hidden, torch.from_numpy(hidden)
  (ibot_loss,) = taken(directory, 'ibot', 'main_ibot.py', 'iBOTLoss')
  loss = ibot_loss(PROTOTYPES, PROTOTYPES, 2, LOCAL, 0.04, 0.07, 0.05, 0.06, 4, 10)
  loss.center, loss.center2 = center[None], patch_center[None, None]
  out = loss((flat(large), flat(said)), (flat(teacher), flat(taught)), flat(local),
             [each[:, None] for each in mask], 9)  # fmt: skip
  kept('ibot/cls', out['cls'], 'large', 'local')
  kept('ibot/patch', out['patch'], 'patches')
  kept('ibot/loss', out['loss'])
  kept('ibot/center', loss.center[0])

  (dino_loss,) = taken(directory, 'dinov2', 'dinov2/loss/dino_clstoken_loss.py', 'DINOLoss')
  loss = dino_loss(PROTOTYPES)
  kept('sinkhorn', loss.sinkhorn_knopp_teacher(flat(teacher), 0.07))
  (patch_loss,) = taken(directory, 'dinov2', 'dinov2/loss/ibot_patch_loss.py', 'iBOTPatchLoss')
  loss = patch_loss(PROTOTYPES)
  loss.center = patch_center[None, None]
  of_hidden = taught[mask]
  target = loss.sinkhorn_knopp_teacher(of_hidden, 0.07, torch.tensor(len(of_hidden)))
  kept('patch_sinkhorn', target)
  kept('dinov2/patch/sinkhorn', loss.forward_masked(said[mask], target, flat(mask)), 'patches')
  target = loss.softmax_center_teacher(of_hidden[None], 0.07)[0]
  kept('dinov2/patch/center', loss.forward_masked(said[mask], target, flat(mask)), 'patches')
  loss.update_center(of_hidden[None])
  loss.apply_center_update()
  kept('dinov2/patch_center', loss.center[0, 0])

  (koleo,) = taken(directory, 'dinov2', 'dinov2/loss/koleo_loss.py', 'KoLeoLoss')
  features = leaf('features', 7, 4)
  kept('koleo', koleo()(features), 'features')

  for name, repository, path in (
    ('head', 'dino', 'vision_transformer.py'), ('scaled', 'dinov2', 'dinov2/layers/dino_head.py')
  ):  # fmt: skip
    needed = ('DINOHead', '_build_mlp') if repository == 'dinov2' else ('DINOHead',)
    make = taken(directory, repository, path, *needed)[0]
    head = make(WIDTHS[0], PROTOTYPES, hidden_dim=WIDTHS[1], bottleneck_dim=WIDTHS[-1])
    x = drawn(f'{name}/x', 4, WIDTHS[0])
    with torch.no_grad():
      for key, p in head.named_parameters():
        factor = key.endswith('weight_g')
        if factor and name == 'head':  # it stays at one
          p.fill_(1)
        else:
          p.copy_(drawn(f'{name}/{key}', *p.shape, scale=0.4) + factor)
        found[f'{name}/{key}'] = p.numpy().copy()
      kept(f'{name}/logits', head(x))

  (cosine,) = taken(directory, 'dino', 'utils.py', 'cosine_scheduler')
  found['dino/momentum'] = cosine(0.996, 1.0, 3, 7)
  found['dino/decay'] = cosine(0.04, 0.4, 3, 7)
  (scheduler,) = taken(directory, 'dinov2', 'dinov2/utils/utils.py', 'CosineScheduler')
  found['dinov2/momentum'] = scheduler(0.992, 1.0, 21).schedule
  rising = scheduler(0.07, 0.07, 14, warmup_iters=14, start_warmup_value=0.04)
  found['dinov2/temperature'] = np.array([rising[step] for step in range(21)])
  np.savez_compressed(pathlib.Path(__file__).parent / 'dino.npz', **found)


if __name__ == '__main__':
  main(sys.argv[1])
