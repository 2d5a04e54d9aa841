"""Whole models that are raced: ours and those of others, on the same images from the same weights.

All of them normalise uint8 images that are on the device already, and train with the same AdamW:
weight decay on matrices alone, gradients clipped to a global norm of 1.
"""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import importlib.util
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vit_jax
from configs import synthetic
from experiments.benchmarks.timing import Timed
from vit_jax.compile.compiled import memory
from vit_jax.convert.read import open_checkpoint
from vit_jax.core import schema
from vit_jax.training import config as config_lib
from vit_jax.training.experiment import Experiment

CLASSES = 1000
# timm's names of our sizes.
TIMM = {
  'Ti': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large', 'H': 'huge', 'g': 'giant', 'G': 'gigantic',
}  # fmt: skip


def draw_batch(batch: int, size: int) -> dict[str, np.ndarray]:
  """Of random images, as `data.pipeline` makes them."""
  rng = np.random.default_rng(0)
  return {
    'image': rng.integers(0, 256, (batch, size, size, 3), dtype=np.uint8),
    'label': rng.integers(0, CLASSES, batch, dtype=np.int32),
    'mask': np.ones(batch, np.float32),
  }


def pixels(images: Any) -> Any:
  """uint8 -> float32 in [-1, 1]."""
  return images.astype(np.float32) / 127.5 - 1


class Ours:
  """One way to run a model, compiled when it is first called.

  Attributes:
    config: of the model.
    compile_seconds: by what was compiled, 'train' or 'infer'.
    memory: bytes that the program needs, arguments included, likewise.
    temporary: those of them that are not arguments, likewise.
  """

  def __init__(
    self, variant: str, batch: int, size: int, folder: str = '',
    xla: dict[str, Any] | None = None, **model: Any,
  ):  # fmt: skip
    """With the settings of `configs.synthetic`.

    Args:
      variant: 'B/16'.
      batch: images.
      size: of their sides, pixels.
      folder: with the checkpoint to start from, whose architecture then counts; or none.
      xla: options of the compiler.
      **model: fields in which the model differs.
    """
    record = config_lib.to_dict(synthetic.get_config(variant))
    # A head whose classes have no names is kept if the run says how many there are.
    record['model'] |= {'num_classes': CLASSES} | (dict(pool=None, posemb=None) if folder else {})
    record['model'] |= {'image_size': [size, size], **model}
    record |= {'batch_size': batch, 'init': folder}
    self._experiment = Experiment(schema.build(config_lib.Config, record))
    self.config = self._experiment.config.model
    self._xla = xla
    self._batch = self._experiment.layout.place(draw_batch(batch, size))
    # Of a step after the warm-up.
    self._hyper = self._experiment.hyper(10)
    self.compile_seconds: dict[str, float] = {}
    self.memory: dict[str, int] = {}
    self.temporary: dict[str, int] = {}

  def train(self) -> jax.Array:
    """One step; returns the loss before it."""
    self._state, metrics = self._train(
      self._state, self._experiment.frozen, self._batch, self._hyper
    )
    return metrics['loss']

  def infer(self) -> jax.Array:
    """Logits; under bfloat16 from weights in bfloat16, as one serves them."""
    return self._infer(self._model, self._batch['image'])

  def timed(self, what: str) -> Timed:
    """'train' or 'infer', for `timing.measure`."""
    return Timed(getattr(self, what), jax.block_until_ready)

  @functools.cached_property
  def _state(self) -> Any:
    return self._experiment.split(self._experiment.init())

  @functools.cached_property
  def _train(self) -> Any:
    args = self._state, self._experiment.frozen, self._batch, self._hyper
    return self._compile('train', self._experiment.train_step(), *args)

  @functools.cached_property
  def _model(self) -> Any:
    model = self._experiment.split(self._experiment.init()).model
    return jax.tree.map(lambda w: w.astype(self.config.dtype), model)

  @functools.cached_property
  def _infer(self) -> Any:
    run = jax.jit(lambda model, images: model(pixels(images)))
    return self._compile('infer', run, self._model, self._batch['image'])

  def _compile(self, what: str, function: Any, *args: Any) -> Any:
    start = time.perf_counter()
    compiled = function.lower(*args).compile(self._xla)
    self.compile_seconds[what] = time.perf_counter() - start
    self.temporary[what] = compiled.memory_analysis().temp_size_in_bytes
    self.memory[what] = memory(compiled)
    return compiled


class Theirs:
  """A model in PyTorch: eager in float32 on a CPU; on a GPU compiled, and bfloat16 by autocast.

  Attributes:
    model: a module from float images (batch, 3, height, width) to logits.
    config: of the same model as one of ours.
    images: uint8, on the device.
  """

  def __init__(self, model: Any, folder: pathlib.Path, batch: int, size: int):
    """On the GPU if there is one, with the AdamW that PyTorch runs fastest.

    Args:
      model: see above.
      folder: with its weights.
      batch: images.
      size: of their sides, pixels.
    """
    self._torch = torch = importlib.import_module('torch')
    self.config = open_checkpoint(folder).config
    self._gpu = gpu_of_torch()
    device = 'cuda' if self._gpu else 'cpu'
    drawn = draw_batch(batch, size)
    self.images = torch.from_numpy(drawn['image']).permute(0, 3, 1, 2).contiguous().to(device)
    self._labels = torch.from_numpy(drawn['label']).long().to(device)
    self.model = model.to(device).train()
    names = dict(self.model.named_parameters())
    decayed = [p for name, p in names.items() if name.endswith('weight') and p.ndim > 1]
    others = [p for p in names.values() if all(p is not d for d in decayed)]
    groups = [dict(params=decayed, weight_decay=1e-4), dict(params=others, weight_decay=0.0)]
    self._adamw = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    self._loss, self._logits = self._compute_loss, self._compute_logits
    if self._gpu:
      torch.cuda.reset_peak_memory_stats()
      self._loss, self._logits = torch.compile(self._loss), torch.compile(self._logits)

  def backward(self) -> Any:
    """Fills in gradients; returns the loss."""
    self._adamw.zero_grad()
    with self._torch.autocast('cuda', self._torch.bfloat16, enabled=self._gpu):
      loss = self._loss(self.images)
    loss.backward()
    return loss.detach()

  def train(self) -> Any:
    """One step; returns the loss before it."""
    loss = self.backward()
    self._torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
    self._adamw.step()
    return loss

  def infer(self) -> Any:
    """Logits of the model as it was at the first call, on a GPU from weights in bfloat16."""
    served = self._served
    with self._torch.inference_mode():
      return self._logits(served, self.images)

  @property
  def peak_memory(self) -> int | None:
    """The most bytes in use on the GPU since this object was made."""
    return self._torch.cuda.max_memory_allocated() if self._gpu else None

  def timed(self, what: str) -> Timed:
    """'train' or 'infer', for `timing.measure`."""
    wait = self._torch.cuda.synchronize if self._gpu else lambda: None
    return Timed(getattr(self, what), lambda _: wait())

  def _compute_loss(self, images: Any) -> Any:
    logits = self.model(images.float() / 127.5 - 1)
    return self._torch.nn.functional.cross_entropy(logits.float(), self._labels)

  def _compute_logits(self, model: Any, images: Any) -> Any:
    images = images.float() / 127.5 - 1
    return model(images.bfloat16() if self._gpu else images)

  @functools.cached_property
  def _served(self) -> Any:
    model = copy.deepcopy(self.model).eval()
    return model.bfloat16() if self._gpu else model


def gpu_of_torch() -> bool:
  """Whether PyTorch is installed and sees a GPU."""
  found = importlib.util.find_spec('torch') is not None
  return found and importlib.import_module('torch').cuda.is_available()


def give_back() -> None:
  """Frees the memory of a GPU that PyTorch, or what it has compiled, holds on to."""
  if gpu_of_torch():
    importlib.import_module('torch._dynamo').reset()
    gc.collect()
    importlib.import_module('torch').cuda.empty_cache()


def timm_model(variant: str, size: int, folder: pathlib.Path, **options: Any) -> Any:
  """timm's model of a variant, freshly drawn, its weights saved to `folder`.

  Args:
    variant: 'B/16'.
    size: of images, pixels.
    folder: is made.
    **options: of timm's model.
  """
  torch: Any = importlib.import_module('torch')
  importlib.import_module('experiments.benchmarks.torchvision').define_operators()
  timm = importlib.import_module('timm')
  torch.manual_seed(0)
  name, patch = variant.split('/')
  model = timm.create_model(
    f'vit_{TIMM[name]}_patch{patch}_224', img_size=size, num_classes=CLASSES, **options
  )
  save: Any = importlib.import_module('timm.models').save_for_hf
  save(model, str(folder), safe_serialization=True)
  return model


def transformers_model(checkpoint: pathlib.Path, folder: pathlib.Path) -> Any:
  """The ViT of transformers with the weights of any checkpoint, which `folder` gets as well."""
  torch: Any = importlib.import_module('torch')
  transformers: Any = importlib.import_module('transformers')
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    vit_jax.save(vit_jax.load(checkpoint), folder, 'transformers')

  class Logits(torch.nn.Module):
    """Without what the model returns beside them."""

    def __init__(self):
      super().__init__()
      self.vit = transformers.ViTForImageClassification.from_pretrained(
        folder, attn_implementation='sdpa'
      )

    def forward(self, images: Any) -> Any:
      return self.vit(images).logits

  return Logits()


def to_numpy(x: Any) -> np.ndarray:
  """float32, of an array of JAX or PyTorch on any device."""
  if isinstance(x, jax.Array):
    return np.asarray(x.astype(jnp.float32))
  return x.detach().float().cpu().numpy()
