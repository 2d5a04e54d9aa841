"""Lets timm and transformers be imported with PyTorch for CPUs."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from typing import Any

import torch  # type: ignore


@functools.cache  # the operators are there as long as what is returned
def define_operators() -> Any:
  """Defines the operators of torchvision, without code, where its wheel lacks them.

  Wheels for CUDA lack them with PyTorch for CPUs, and then nothing that imports torchvision can
  be imported. None of them is called here. Where torchvision works nothing is defined: a second
  definition aborts the process, and so another process finds out.
  """
  trial = [sys.executable, '-c', 'import torchvision']
  if not subprocess.run(trial, capture_output=True, check=False).returncode:
    return None
  operators = torch.library.Library('torchvision', 'FRAGMENT')
  for name in ('roi_align', '_roi_align_backward', 'ps_roi_align', '_ps_roi_align_backward',
               'roi_pool', '_roi_pool_backward', 'ps_roi_pool', '_ps_roi_pool_backward',
               'deform_conv2d', '_deform_conv2d_backward', 'nms', 'qnms'):  # fmt: skip
    with contextlib.suppress(RuntimeError):
      operators.define(f'{name}(Tensor x) -> Tensor')
  return operators
