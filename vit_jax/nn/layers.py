"""The small parts of a Vision Transformer."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from vit_jax.architecture.vit import GATED
from vit_jax.nn.positions import resize_weights
from vit_jax.nn.remat import keep
from vit_jax.nn.sharding import device, einsum, gather, param, per_shard, shards, spec


def zeros(key: jax.Array, shape, sharding) -> jax.Array:
  """An initialiser, as all of these: key, shape and sharding to a float32 array."""
  del key
  return jnp.zeros(shape, out_sharding=sharding)


def ones(key: jax.Array, shape, sharding) -> jax.Array:
  """As `zeros`."""
  del key
  return jnp.ones(shape, out_sharding=sharding)


def constant(value: float):
  """The same number everywhere."""

  def init(key, shape, sharding):
    return value * ones(key, shape, sharding)

  return init


def normal(stddev: float):
  """Normal with the given standard deviation."""

  def init(key, shape, sharding):
    return jax.random.normal(key, shape, out_sharding=sharding) * stddev

  return init


def uniform(limit: float):
  """Uniform on [-limit, limit)."""

  def init(key, shape, sharding):
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit, out_sharding=sharding)

  return init


class Norm(nnx.Module):
  """Layer normalisation (Ba et al. 2016) or RMS normalisation (Zhang & Sennrich 2019).

  Args:
    width: of the last axis, over which it works; statistics are float32.
    kind: 'layernorm', or 'rmsnorm' (no mean, no bias), or 'rmsnorm1p', whose factors are 1 + what
      is learned, and so decay to 1 (Gemma).
    eps: added to the variance.
    bias: whether layer normalisation adds one.
    axis: logical name of that axis, if it is sharded.
  """

  def __init__(
    self, width: int, rngs: nnx.Rngs, *, kind: str = 'layernorm', eps: float = 1e-6,
    bias: bool = True, axis: str | None = None,
  ):  # fmt: skip
    self.scale = param(zeros if kind == 'rmsnorm1p' else ones, rngs, (width,), (axis,))
    if bias and kind == 'layernorm':
      self.bias = param(zeros, rngs, (width,), (axis,))
    self.kind, self.eps = kind, eps

  def __call__(self, x: jax.Array) -> jax.Array:
    """(..., width) -> the same, in the dtype of `x`."""
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True) if self.kind == 'layernorm' else 0.0
    if x.dtype == jnp.float32:
      mean = _kept(mean)
      y = y - mean
      variance = jnp.square(y).mean(-1, keepdims=True)
    else:
      # Both statistics from one reading of x: what the difference of squares loses, bfloat16 never
      # had.
      variance = jnp.square(y).mean(-1, keepdims=True) - jnp.square(mean)
      mean = _kept(mean)
      y = y - mean
    variance = _kept(variance)
    scale = 1 + self.scale[...] if self.kind == 'rmsnorm1p' else self.scale[...]
    y = y * jax.lax.rsqrt(variance + self.eps) * scale
    if hasattr(self, 'bias'):
      y = y + self.bias[...]
    return y.astype(x.dtype)


def _kept(statistic):
  """Of rows, (rows, 1): one number each, which the backward pass need not sum up again."""
  return keep(statistic[:, 0], 'norm')[:, None] if jnp.ndim(statistic) == 2 else statistic


class Dense(nnx.Module):
  """An affine map whose axes keep their meaning: (embed) -> (heads, head_dim), for example.

  Args:
    shape: of the kernel, contracted axes first.
    axes: logical name of each kernel axis, or None.
    contracted: how many leading axes of the kernel are summed over.
    kernel_init: Xavier uniform if not given.
    bias: whether there is one.
    bias_init: of it.
  """

  def __init__(
    self, rngs: nnx.Rngs, shape, axes, *, contracted: int = 1, kernel_init=None, bias: bool = True,
    bias_init=zeros,
  ):  # fmt: skip
    fan_in, fan_out = math.prod(shape[:contracted]), math.prod(shape[contracted:])
    kernel_init = kernel_init or uniform(math.sqrt(6 / (fan_in + fan_out)))
    self.kernel = param(kernel_init, rngs, shape, axes)
    self.axes, self.contracted = tuple(axes), contracted
    if bias:
      # Biases are added to activations, whose embed axis is never sharded.
      bias_axes = tuple(None if axis == 'embed' else axis for axis in axes[contracted:])
      self.bias = param(bias_init, rngs, shape[contracted:], bias_axes)

  def __call__(self, x: jax.Array, eqn: str, out: tuple[str | None, ...]) -> jax.Array:
    """Einsum `eqn` of `x` and the kernel, plus the bias if any, laid out as `out`."""
    y = einsum(eqn, x, self.kernel[...], out=out)
    return y + self.bias[...].astype(x.dtype) if hasattr(self, 'bias') else y

  def rows(self, x: jax.Array, *, alone: bool = False) -> jax.Array:
    """(rows, in) -> (rows, out): a product of two matrices, each side's axes being one.

    Args:
      x: rows, as `flatten` makes them.
      alone: whether nothing else is computed from the gradient of the result than those of `x` and
        the kernel, so that the gradient of the bias is better a product, too; see `add_bias`.
    """
    kernel, bias, out = self.matrix(x.dtype)
    y = einsum('ni,io->no', x, row_major(kernel), out=('batch', out))
    if bias is None:
      return y
    return add_bias(y, bias, out, alone) if alone or device().platform == 'tpu' else y + bias

  def matrix(self, dtype) -> tuple[jax.Array, jax.Array | None, str | None]:
    """The kernel as a matrix (in, out), the bias as a vector or None, and the axis of both."""
    axes = self.axes[0], self.axes[self.contracted]
    fan_in = math.prod(self.kernel.shape[: self.contracted])
    kernel = self.kernel[...].reshape(fan_in, -1, out_sharding=spec(*axes)).astype(dtype)
    _, out = (None if axis == 'embed' else axis for axis in axes)
    bias = None
    if hasattr(self, 'bias'):
      bias = self.bias[...].astype(dtype).reshape(-1, out_sharding=spec(out))
    return gather(kernel, *axes), bias, out


def joined_rows(denses: Sequence[Dense], x: jax.Array) -> jax.Array:
  """What `Dense.rows` gives for each of `denses`, side by side, by one product that reads x once.

  Their features must not be cut into parts.
  """
  kernels, biases, (out, *_) = zip(*(dense.matrix(x.dtype) for dense in denses), strict=True)
  y = einsum('ni,io->no', x, row_major(jnp.concatenate(kernels, 1)), out=('batch', out))
  if all(bias is None for bias in biases):
    return y
  biases = [
    jnp.zeros(kernel.shape[1], x.dtype, out_sharding=spec(out)) if bias is None else bias
    for kernel, bias in zip(kernels, biases, strict=True)
  ]
  return add_bias(y, jnp.concatenate(biases), out, True)


def row_major(w: jax.Array) -> jax.Array:
  """`w`; on TPU its gradient is in the layout that parameters are kept in.

  Left to itself the compiler makes the gradients of some matrices transposed, and then copies
  parameters and optimizer state back and forth around the update.
  """
  if device().platform != 'tpu':
    return w
  return with_layout_constraint(w, Layout(tuple(range(w.ndim))))


def flatten(x: jax.Array, axis: str | None = None) -> jax.Array:
  """(batch, tokens, features) -> (batch * tokens, features): tokens of all examples as rows.

  Matrices are what every backend has its fastest products and simplest layouts for. What is
  computed between two products must be computed on rows as well, or compilers do not fuse it.

  Args:
    x: tokens.
    axis: logical name of the features, if they are sharded.
  """
  return x.reshape(-1, x.shape[-1], out_sharding=spec('batch', axis))


def unflatten(x: jax.Array, batch: int, axis: str | None = None) -> jax.Array:
  """(batch * tokens, features) -> (batch, tokens, features)."""
  return x.reshape(batch, -1, x.shape[-1], out_sharding=spec('batch', None, axis))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def add_bias(x: jax.Array, bias: jax.Array, axis: str | None, alone: bool) -> jax.Array:
  """x + bias, whose gradient is summed in float32.

  Of several TPU slices the compiler would do a sum in bfloat16 apart from what computes its terms,
  which takes a quarter of a step.

  Args:
    x: (rows, features).
    bias: (features,).
    axis: logical name of the features.
    alone: whether the sum is a matrix product, since nothing is computed from the gradient with
      which it could be one operation: on TPU the vector unit sums columns slowly.
  """
  del axis, alone
  return x + bias


def _bias_gradient(axis, alone, _, dy):
  if not alone:
    return dy, dy.astype(jnp.float32).sum(0).astype(dy.dtype)
  # Eight times the sum, so that no compiler turns the product back into a reduction.
  ones = jnp.ones((dy.shape[0], 8), dy.dtype, out_sharding=spec('batch', None))
  total = jnp.einsum(
    'no,ns->so', dy, ones, out_sharding=spec(None, axis), preferred_element_type=jnp.float32
  )
  return dy, total[0].astype(dy.dtype)


add_bias.defvjp(lambda x, bias, axis, alone: (x + bias, None), _bias_gradient)


def quick_gelu(x: jax.Array) -> jax.Array:
  """x sigmoid(1.702 x), the approximation of CLIP's original models (Radford et al. 2021)."""
  return x * jax.nn.sigmoid(1.702 * x)


# By the names in `architecture.OPTIONS`. GELU: Hendrycks & Gimpel 2016, exact and with tanh.
# SwiGLU and GeGLU: Shazeer 2020.
ACTIVATIONS = {
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
  'quick_gelu': quick_gelu,
  'relu': jax.nn.relu,
  'swiglu': jax.nn.silu,
  'geglu_tanh': functools.partial(jax.nn.gelu, approximate=True),
}


class Mlp(nnx.Module):
  """width -> mlp_dim -> width.

  Args:
    width, mlp_dim: features outside and inside.
    kind: of activation; one of `architecture.vit.GATED` gates a second projection.
    norm: makes a norm of that width for the hidden layer (NormFormer, EVA-02), or None.
    bias: of the projections.
  """

  def __init__(
    self, width: int, mlp_dim: int, rngs: nnx.Rngs, *, kind: str = 'gelu_tanh', norm=None,
    bias: bool = True,
  ):  # fmt: skip
    self.up = Dense(rngs, (width, mlp_dim), ('embed', 'mlp'), bias=bias)
    if kind in GATED:
      self.gate = Dense(rngs, (width, mlp_dim), ('embed', 'mlp'), bias=bias)
    if norm:
      self.norm = norm(mlp_dim, rngs, axis='mlp')
    self.down = Dense(rngs, (mlp_dim, width), ('mlp', 'embed'), bias=bias)
    self.kind = kind

  def __call__(
    self, x: jax.Array, drop: Callable[[jax.Array], jax.Array] = lambda y: y
  ) -> jax.Array:
    """(batch, tokens, width) -> the same; `drop` leaves out some of the hidden (rows, mlp_dim)."""
    # Derivatives of activations would keep several arrays as large as their argument.
    rows, activation = flatten(x), jax.checkpoint(ACTIVATIONS[self.kind], prevent_cse=False)
    y = keep(self.up.rows(rows), 'hidden')
    if hasattr(self, 'gate'):
      y = activation(keep(self.gate.rows(rows), 'gate')) * y
    else:
      y = activation(y)
    if hasattr(self, 'norm'):
      y = self.norm(y)
    return unflatten(self.down.rows(drop(y)), x.shape[0])


class Perceptron(nnx.Module):
  """Layers one after another, ReLU between them: heads that read single tokens, in float32.

  Args:
    widths: features, those of the input first.
    last: initial values of the last kernel; Xavier uniform if not given, as all others.
    bias: of the last bias.
  """

  def __init__(self, widths: Sequence[int], rngs: nnx.Rngs, *, last=None, bias=zeros):
    *hidden, end = itertools.pairwise(widths)
    make = functools.partial(Dense, rngs, axes=('embed', None))
    ending = make(shape=end, kernel_init=last, bias_init=bias)
    self.layers = nnx.List([*(make(shape=shape) for shape in hidden), ending])

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, tokens, features) of any dtype -> float32 (batch, tokens, outputs)."""
    x = x.astype(jnp.float32)
    for number, layer in enumerate(self.layers):
      x = layer(jax.nn.relu(x) if number else x, 'btd,dh->bth', ('batch', None, None))
    return x


class PatchEmbed(nnx.Module):
  """Patches side by side along one to three axes, each mapped linearly to `width` features."""

  def __init__(
    self, patch: tuple[int, ...], channels: int, width: int, rngs: nnx.Rngs, *, bias: bool = True
  ):
    shape = (*patch, channels, width)
    # LeCun normal, as for a convolution with these patches as its receptive fields.
    init = normal(math.prod(shape[:-1]) ** -0.5)
    axes = (*(None,) * (len(patch) + 1), 'embed')
    self.proj = Dense(rngs, shape, axes, contracted=len(patch) + 1, kernel_init=init, bias=bias)
    self.patch = patch

  def __call__(self, images: jax.Array, patch: tuple[int, ...] | None = None) -> jax.Array:
    """(batch, *sides, channels) -> (batch, *sides / patch, features).

    With another `patch` than its own the kernel is resampled (see `resample_patches`).
    """
    patch, x = patch or self.patch, images
    # One axis at a time: an explicitly sharded array cannot be cut along several in one reshape.
    for axis, size in enumerate(patch):
      at = 1 + 2 * axis
      x = x.reshape(*x.shape[:at], x.shape[at] // size, size, *x.shape[at + 1 :])
    ours, theirs = 'thw'[-len(patch) :], 'opq'[-len(patch) :]
    cut = ''.join(map(''.join, zip(ours, theirs, strict=True)))
    return self._project(x, f'b{cut}c,{theirs}cd->b{ours}d', patch)

  def flat(self, patches: jax.Array) -> jax.Array:
    """(batch, patches, pixels of one * channels), the last axis first to vary -> features."""
    x = patches.reshape(*patches.shape[:2], *self.patch, -1)
    sides = 'opq'[-len(self.patch) :]
    return self._project(x, f'bn{sides}c,{sides}cd->bnd', self.patch)

  def _project(self, x: jax.Array, eqn: str, patch: tuple[int, ...]) -> jax.Array:
    out = ('batch', *(None,) * (len(eqn.split('->')[1]) - 1))
    if patch == self.patch:
      return self.proj(x, eqn, out)
    kernel = resample_patches(self.proj.kernel[...], patch)
    y = einsum(eqn, x, kernel, out=out)
    return y + self.proj.bias[...].astype(y.dtype) if hasattr(self.proj, 'bias') else y


class Conv(nnx.Module):
  """A convolution over rows and columns.

  Its kernel is cut like other matrices, by its outputs, where the mesh divides them.

  Args:
    window: side of the kernel.
    inputs, outputs: features.
    stride: places from one output to the next.
    dilation: places from one row or column of the kernel to the next.
    pad: zeros before and behind along each axis; 'SAME', as few as give ceil(side / stride) places.
    groups: of features that see only each other; as many as there are, a depthwise convolution.
    init: of the kernel; LeCun normal if not given.
    bias: whether there is one.
  """

  def __init__(
    self, window: int, inputs: int, outputs: int, rngs: nnx.Rngs, *, stride: int = 1,
    dilation: int = 1, pad: str | tuple[int, int] = (0, 0), groups: int = 1, init=None,
    bias: bool = True,
  ):  # fmt: skip
    shape = (window, window, inputs // groups, outputs)
    self.axes = (None, None, None, None if outputs % shards('embed') else 'embed')
    self.kernel = param(init or normal(math.prod(shape[:3]) ** -0.5), rngs, shape, self.axes)
    if bias:
      self.bias = param(zeros, rngs, (outputs,), (None,))
    self.stride, self.dilation, self.groups = stride, dilation, groups
    self.pad = pad if isinstance(pad, str) else (pad, pad)

  def weights(self) -> jax.Array:
    """What is multiplied, float32 (window, window, inputs / groups, outputs)."""
    return self.kernel[...].astype(jnp.float32)

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, height, width, inputs) -> (batch, height, width, outputs), in the dtype of `x`."""

    def convolved(x, w):
      return jax.lax.conv_general_dilated(
        x, w, (self.stride,) * 2, self.pad, rhs_dilation=(self.dilation,) * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=self.groups,
      )  # fmt: skip

    # Left to itself XLA adds up the gradients of a depthwise kernel that devices have of the same
    # examples, and gathers the batch (openxla/xla#47945); and of several models at once JAX cannot
    # tell how the batch lies.
    if jax.typeof(x).sharding.spec[0] is not None:
      batch, kernel = ('batch', None, None, None), self.axes
      convolved = per_shard(
        convolved, (batch, kernel if shards('embed') == 1 else (None,) * 4), batch
      )
    y = convolved(x, gather(self.weights().astype(x.dtype), *self.axes))
    return y + self.bias[...].astype(x.dtype) if hasattr(self, 'bias') else y


class Deconv(nnx.Module):
  """A transposed convolution with windows of 2 x 2 that do not overlap: twice the rows and columns.

  Args:
    inputs, outputs: features.
    bias: whether there is one.
  """

  def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, *, bias: bool = True):
    self.axes = (None if inputs % shards('embed') else 'embed', None)
    # To the features of four places, those of the upper left one first.
    self.kernel = param(normal(inputs**-0.5), rngs, (inputs, 4 * outputs), self.axes)
    if bias:
      self.bias = param(zeros, rngs, (outputs,), (None,))

  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, height, width, inputs) -> (batch, 2 height, 2 width, outputs), its dtype kept."""
    laid = ('batch', None, None, None)
    (batch, height, width, inputs), outputs = x.shape, self.kernel.shape[1] // 4
    kernel = gather(self.kernel[...], *self.axes).reshape(inputs, 2, 2, outputs)
    y = einsum('bhwd,dije->bhiwje', x, kernel, out=(*laid, None, None))
    # One axis at a time: an explicitly sharded array cannot be cut along several in one reshape.
    y = y.reshape(batch, 2 * height, width, 2, outputs, out_sharding=spec(*laid, None))
    y = y.reshape(batch, 2 * height, 2 * width, outputs, out_sharding=spec(*laid))
    return y + self.bias[...].astype(y.dtype) if hasattr(self, 'bias') else y


def resample_patches(
  kernel: jax.Array, patch: tuple[int, ...], method: str = 'bilinear'
) -> jax.Array:
  """A (*patch, channels, features) kernel for patches of another size.

  The pseudo-inverse of resizing the patch: resized patches have the inner products with the new
  kernel that they had with the old one, where this can be (FlexiViT, Beyer et al. 2023, section
  3.4, which resizes bilinearly; timm uses 'bicubic_aa'). Methods are those of
  `positions.resize_weights`.
  """
  old = kernel.shape[:-2]
  if old == tuple(patch):
    return kernel
  # The pseudo-inverse of a Kronecker product is that of its factors.
  inverses = [
    np.linalg.pinv(resize_weights(np.arange(new), new, size, method).astype(np.float64).T)
    for new, size in zip(patch, old, strict=True)
  ]
  ours, theirs = 'opq'[-len(old) :], 'hij'[-len(old) :]
  sides = ','.join(map(''.join, zip(ours, theirs, strict=True)))
  return jnp.einsum(
    f'{sides},{theirs}cd->{ours}cd', *(each.astype(np.float32) for each in inverses), kernel,
    precision='highest',
  )  # fmt: skip


def prepend_tokens(tokens: jax.Array, x: jax.Array) -> jax.Array:
  """(1, some, width) and (batch, tokens, width) -> (batch, some + tokens, width)."""
  shape = (x.shape[0], *tokens.shape[1:])
  tokens = jnp.broadcast_to(tokens.astype(x.dtype), shape, out_sharding=spec('batch', None, None))
  return jnp.concatenate([tokens, x], axis=1)
