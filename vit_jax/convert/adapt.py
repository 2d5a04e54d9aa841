"""Changing a model between reading and using it: other heads, image sizes, patches, channels."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax import models
from vit_jax.architecture import SINGLE, Backbone, Composition, MixerArchitecture, ViTArchitecture
from vit_jax.architecture.card import Card
from vit_jax.architecture.vit import on_axes
from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.nn.encoder import is_split, split_layers
from vit_jax.nn.layers import resample_patches
from vit_jax.nn.positions import resample, resample_rows, resize_relative

# Fields that change the shape of parameters after they have been read.
CHANGES = ('num_classes', 'image_size', 'patch_size', 'in_channels')
Leaves = dict[str, Any]  # arrays, or what `np.asarray` makes one of


@functools.lru_cache(64)  # a conversion asks for the same few again and again
def abstract(config: Any) -> Mapping[str, tuple[int, ...]]:
  """Shapes of a model's parameters by name."""
  # The key is made inside, too: devices need not be there, as where a run is planned.
  model = jax.eval_shape(lambda: models.create(config, nnx.Rngs(jax.random.key(0))))
  return types.MappingProxyType({n: tuple(leaf.shape) for n, leaf in tree.flatten(model).items()})


def adapt(
  config: Any, card: Card, leaves: Leaves, changes: Mapping[str, Any],
  patch_method: str = 'bilinear',
) -> tuple[Any, Card, Leaves]:  # fmt: skip
  """A model with `CHANGES` made to it, or to its towers by their names; see `read.load`.

  Parameters that stay as they are are not read.

  Raises:
    RunError: if what is asked for makes no model.
  """
  leaves = dict(leaves)
  if isinstance(config, Composition):
    before: Any = config
    for name, tower in config.towers.items():
      own = tree.inside(leaves, name)
      new, card, own = adapt(tower, card, own, changes.get(name, {}), patch_method)
      config = dataclasses.replace(config, **{name: new})
      leaves = {n: leaf for n, leaf in leaves.items() if not n.startswith(f'{name}/')}
      leaves |= {f'{name}/{n}': leaf for n, leaf in own.items()}
    after: Any = config
    if 'middle' in leaves and before.encoder.grid != after.encoder.grid:
      old, new = before.encoder, after.encoder
      leaves['middle'] = np.asarray(resample_rows(
        jnp.asarray(leaves['middle']), old.prefix, old.grid, new.grid, new.interpolation
      ))  # fmt: skip
    return config, card, leaves
  new = changed(config, changes)
  if not isinstance(config, SINGLE):
    if new != config:
      _replace_head(new, leaves)
    return new, card, leaves
  if isinstance(config, ViTArchitecture):
    for name in (name for name in leaves if _is_sized(config, new, name)):
      leaves[name] = np.asarray(_resampled(config, new, name, leaves[name], patch_method))
  if new.in_channels != config.in_channels:
    name = getattr(config, 'FIRST', 'embed/proj/kernel')
    name = 'stem/root/kernel' if getattr(config, 'stem_width', 0) else name
    leaves[name] = adapt_channels(np.asarray(leaves[name]), new.in_channels)
    card = card_for_channels(card, new.in_channels)
  if new.num_classes != config.num_classes:
    _replace_head(new, leaves)
    card = dataclasses.replace(card, class_names=())
  return new, dataclasses.replace(card, size=new.image_size), leaves


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
  """A resolved configuration with `CHANGES` made to it, or to its towers by their names.

  Other patches without another image size keep the grid, and with it learned positions.
  """
  if isinstance(config, Composition):
    towers = {n: changed(tower, changes.get(n, {})) for n, tower in config.towers.items()}
    return dataclasses.replace(config, **towers)
  resized, changes = 'image_size' in changes, dict(changes)
  if isinstance(config, ViTArchitecture):
    axes = len(config.image_size)
    if resized and isinstance(changes['image_size'], int):
      changes['image_size'] = (changes['image_size'],) * axes
    if 'patch_size' in changes:
      own = on_axes(changes['patch_size'], axes)
      changes['patch_size'] = own[0] if len(set(own)) == 1 else own
  elif isinstance(config, Backbone):
    if isinstance(size := changes.get('image_size'), int):
      changes['image_size'] = (size, size)
    _refuse(config, changes)
  changes = {
    k: v for k, v in changes.items()
    if k in CHANGES and hasattr(config, k) and v != getattr(config, k)
  }  # fmt: skip
  if not changes:
    return config
  if 'image_size' in changes:
    changes['image_size'] = size = tuple(changes['image_size'])
    if len(size) != len(config.image_size):
      raise RunError(
        f'image_size={size} has {len(size)} axes, and the model is for images of '
        f'{len(config.image_size)}, {config.image_size}'
      )
  elif isinstance(config, ViTArchitecture) and not resized and config.posemb != 'none':
    patch, times = changes.get('patch_size', config.patch_size), config.stride[0] // config.patch[0]
    sides = zip(config.grid, on_axes(patch, len(config.grid)), strict=True)
    changes['image_size'] = tuple(count * side * times for count, side in sides)
  return dataclasses.replace(config, **changes).resolve()


def _refuse(config: Backbone, changes: Mapping[str, Any]) -> None:
  """Raises RunError for changes that the weights of such a network do not allow."""
  for name in ('patch_size', *(('image_size',) if isinstance(config, MixerArchitecture) else ())):
    old = getattr(config, name, None)
    if name in changes and changes[name] != old:
      raise RunError(
        f'a {config.kind} with {name}={old} cannot be changed to {changes[name]}: train one '
        'of that size'
      )


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """A (*patch, channels, features) kernel for images with other channels.

  One channel gets the sum of all: a grey image then gives what it gave as a coloured one. More
  channels repeat the old ones, scaled so that the sum over channels stays (as timm does).
  """
  old = kernel.shape[-2]
  if channels == 1:
    return kernel.sum(-2, keepdims=True)
  repeated = np.tile(kernel, (-(-channels // old), 1))[..., :channels, :]
  return repeated * np.float32(old / channels)


def card_for_channels(card: Card, channels: int) -> Card:
  """A card whose mean and standard deviation are of so many channels."""
  if len(card.mean) == channels:
    return card

  def spread(values: tuple[float, ...]) -> tuple[float, ...]:
    if channels == 1:
      return (float(np.mean(values)),)
    return tuple(values[i % len(values)] for i in range(channels))

  return dataclasses.replace(card, mean=spread(card.mean), std=spread(card.std))


def of_sizes(config: Any, sizes: Mapping[str, Any]) -> Any:
  """A resolved configuration of one tower with 'image_size', 'patch_size' or both changed.

  Unlike with `changed`, images keep their size where only that of patches is given. Of a
  `Composition` that is `sized` they are those of its encoder.
  """
  if sizes and isinstance(config, Composition):
    return dataclasses.replace(config, encoder=of_sizes(config.encoder, sizes)).resolve()  # type: ignore
  return changed(config, {'image_size': config.image_size, **sizes}) if sizes else config


def resized(model: Any, config: Any) -> Any:
  """A model for images or patches of other sizes, a function of its parameters with a gradient.

  Args:
    model: any tree of a model of one tower, or of a `Composition` that is `sized`.
    config: its own, with sizes that `changed` has changed.
  """
  old = model.config
  if config == old:
    return model
  like = jax.eval_shape(lambda: models.create(config, nnx.Rngs(jax.random.key(0))))
  if is_split(model):
    like = jax.eval_shape(split_layers, like)
  leaves = tree.flatten(model)
  prefix = ''
  if isinstance(old, Composition):
    prefix, old, config = 'encoder/', old.encoder, config.encoder  # type: ignore
  for name in leaves if isinstance(old, ViTArchitecture) else ():
    own = name.removeprefix(prefix)
    if name.startswith(prefix) and _is_sized(old, config, own):
      leaves[name] = jax.tree.map(lambda x, n=own: _resampled(old, config, n, x), leaves[name])
  return tree.unflatten(like, leaves)


def _is_sized(old: ViTArchitecture, new: ViTArchitecture, name: str) -> bool:
  """Whether a parameter depends on the sizes that differ."""
  if name == 'embed/proj/kernel':
    return new.patch != old.patch
  return new.grid != old.grid and (name in old.tables or name.endswith('relative/table'))


def _resampled(
  old: ViTArchitecture, new: ViTArchitecture, name: str, leaf: Any, patch_method: str = 'bilinear'
) -> jax.Array:  # fmt: skip
  """Such a parameter for the new sizes."""
  leaf = jnp.asarray(leaf)
  if name == 'embed/proj/kernel':
    return resample_patches(leaf, new.patch, patch_method)
  if name.endswith('relative/table'):
    resize = functools.partial(resize_relative, old=old.grid, new=new.grid)
    return jax.vmap(resize)(leaf) if leaf.ndim == 3 else resize(leaf)
  axes, prefix = old.tables[name], old.posemb_prefix * (name == 'posemb')
  rows = leaf[0, prefix:].reshape(*(old.grid[axis] for axis in axes), old.width)
  rows = resample(rows, tuple(new.grid[axis] for axis in axes), new.interpolation)
  return jnp.concatenate([leaf[:, :prefix], rows.reshape(1, -1, old.width)], axis=1)


def _replace_head(config: Any, leaves: Leaves) -> None:
  """Heads start at zero."""
  for name in [n for n in leaves if n.split('/')[0] in ('head', 'distill_head')]:
    shape = (*leaves.pop(name).shape[:-1], config.num_classes)
    if config.num_classes:
      leaves[name] = np.zeros(shape, np.float32)
  for name, shape in abstract(config).items():
    if name not in leaves:  # a head where there was none
      leaves[name] = np.zeros(shape, np.float32)
