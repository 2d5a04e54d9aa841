"""Names for the leaves of a tree, 'encoder/blocks/attn/query/kernel', and trees of layers."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.core.errors import RunError, suggest


@functools.partial(jax.tree_util.register_dataclass, data_fields=['parts'], meta_fields=['axis'])
@dataclasses.dataclass
class Layers:
  """Stands for `jnp.stack(parts, axis)`, which is never computed: a parameter of all layers.

  Attributes:
    parts: arrays of the same shape and layout, or ShapeDtypeStructs; one of each layer.
    axis: over the layers.
  """

  parts: list[Any]
  axis: int

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the whole."""
    own = self.parts[0].shape
    return *own[: self.axis], len(self.parts), *own[self.axis :]

  @property
  def dtype(self) -> Any:
    """Of the whole."""
    return self.parts[0].dtype

  @property
  def sharding(self) -> Any:
    """Of the whole: no device has a part of the layers."""
    own = self.parts[0].sharding
    if not isinstance(own, jax.sharding.NamedSharding):
      return own
    spec = [*own.spec, *(None,) * (self.axis - len(own.spec))]
    spec.insert(self.axis, None)
    return own.update(spec=jax.P(*spec))

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    return np.stack([np.asarray(part, dtype) for part in self.parts], self.axis)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['own', 'networks'], meta_fields=[]
)
@dataclasses.dataclass
class Beside:
  """Frozen parameters of a model, and networks of its task, which are all frozen.

  Attributes:
    own: in the tree of the model, None where one is trained.
    networks: by name.
  """

  own: Any
  networks: dict[str, Any]


def own(frozen: Any) -> Any:
  """What of frozen parameters is in the tree of the model."""
  return frozen.own if isinstance(frozen, Beside) else frozen


def is_layers(node: Any) -> bool:
  """Whether a node of a tree is one of these, which have one name."""
  return isinstance(node, Layers)


FACTORS = ('lora_a', 'lora_b')


@functools.partial(jax.tree_util.register_dataclass, data_fields=[*FACTORS], meta_fields=['scale'])
@dataclasses.dataclass
class LowRank:
  """What is trained of a parameter that is frozen: scale * lora_a @ lora_b is added to it.

  Hu et al. 2021, section 4.1; there A is `lora_b` and B `lora_a`, transposed as their weights are.

  Attributes:
    lora_a: (*inputs, rank), the axes of the parameter that are summed over; with an axis over the
      layers in front, where the parameter has one.
    lora_b: (rank, *outputs), likewise.
    scale: alpha / rank.
  """

  lora_a: Any
  lora_b: Any
  scale: float

  def added_to(self, base: Any) -> Any:
    """The parameter as it is used, laid out like `base`; NumPy's if all are."""
    stacked = self.lora_a.ndim + self.lora_b.ndim - 2 - base.ndim
    layer = 'l' * stacked
    ins = 'abcd'[: self.lora_a.ndim - 1 - stacked]
    outs = 'xyz'[: self.lora_b.ndim - 1 - stacked]
    equation = f'{layer}{ins}r,{layer}r{outs}->{layer}{ins}{outs}'
    if isinstance(base, np.ndarray):
      product = np.einsum(equation, self.lora_a, self.lora_b)
      return base.astype(product.dtype) + np.float32(self.scale) * product
    layout = None if jax.sharding.get_abstract_mesh().empty else jax.typeof(base).sharding
    product = jnp.einsum(
      equation, self.lora_a, self.lora_b, precision='highest', out_sharding=layout
    )
    return base.astype(product.dtype) + self.scale * product


def is_low_rank(node: Any) -> bool:
  """Whether a node of a tree stands for a parameter that is frozen."""
  return isinstance(node, LowRank)


def whole(name: str) -> str:
  """The name of a parameter, from its own or that of one of its factors."""
  head, _, last = name.rpartition('/')
  return head if last in FACTORS else name


def name(path: tuple[Any, ...]) -> str:
  """The name of a leaf, from its key path; how Flax stores a parameter does not show in it."""
  found = jax.tree_util.keystr(path, simple=True, separator='/')
  head, _, last = found.rpartition('/')
  if last in FACTORS:
    return f'{head.removesuffix("/value")}/{last}'
  return found.removesuffix('/value')


def group(path: tuple[Any, ...]) -> str:
  """The same name for the same parameter of all layers, whether they are one array or several."""
  return re.sub(r'(^|/)blocks/\d+/', r'\1blocks/', name(path))


def is_stacked(path: tuple[Any, ...]) -> bool:
  """Whether a leaf holds a parameter of all layers, with a leading axis over them."""
  return bool(re.search(r'(^|/)blocks/(?!\d+/)', name(path)))


def per_tensor(function: Any, first: Any, *rest: Any, outputs: int = 1) -> Any:
  """`function` of each parameter of each layer: the same whether layers are stacked or not.

  Args:
    function: of the name of a parameter and arrays of one layer; gives an array, or several.
    first: a tree in which layers may be stacked.
    *rest: trees of the same structure.
    outputs: how many arrays the function gives.

  Returns:
    A tree like `first`, or so many of them.
  """

  def one(path, *leaves):
    own = functools.partial(function, group(path))
    return (jax.vmap(own) if is_stacked(path) else own)(*leaves)

  found = jax.tree_util.tree_map_with_path(one, first, *rest)
  if outputs == 1:
    return found
  structure = jax.tree.structure(first)
  parts = zip(*structure.flatten_up_to(found), strict=True)
  return tuple(structure.unflatten(part) for part in parts)


def partition(tree: Any, patterns: Iterable[str], field: str = 'patterns') -> tuple[Any, Any]:
  """A tree as two: of leaves whose names match no pattern, and of the others.

  Args:
    tree: of parameters.
    patterns: regular expressions of whole names as `group` has them.
    field: names the patterns in messages.

  Returns:
    Two trees of the same structure, None where the other one has the leaf.

  Raises:
    RunError: for a pattern that matches nothing.
  """
  patterns = tuple(patterns)
  names = {group(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) for name in names):
      raise RunError(f'{field}: {pattern!r} matches no parameter: {suggest(pattern, names)}')
  chosen = {name for name in names if any(re.fullmatch(each, name) for each in patterns)}
  pick = lambda wanted: jax.tree_util.tree_map_with_path(  # noqa: E731
    lambda path, leaf: leaf if (group(path) in chosen) == wanted else None, tree
  )
  return pick(False), pick(True)


def merge(one: Any, other: Any) -> Any:
  """The inverse of `partition`; what is `LowRank` in `one` is added to what `other` has there.

  Networks of a task are no part of the model.
  """
  other = own(other)

  def both(a, b):
    if is_low_rank(a):
      return a.added_to(b)
    return b if a is None else a

  return jax.tree.map(both, one, other, is_leaf=lambda leaf: leaf is None or is_low_rank(leaf))


def flatten(tree: Any) -> dict[str, Any]:
  """Leaf by name; `Layers` are leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_layers)
  return {name(path): leaf for path, leaf in leaves}


def inside(leaves: Mapping[str, Any], tower: str) -> dict[str, Any]:
  """Those of a tower by their names in it; all of them, if it has no name."""
  prefix = f'{tower}/' if tower else ''
  return {n.removeprefix(prefix): leaf for n, leaf in leaves.items() if n.startswith(prefix)}


def unflatten(like: Any, leaves: dict[str, Any]) -> Any:
  """The inverse of `flatten`, for a tree of the structure of `like`."""
  return renamed(lambda name: leaves[name], like)


def renamed(function: Callable[[str], Any], tree: Any) -> Any:
  """A tree of what `function` gives for the name of each leaf."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: function(name(path)), tree, is_leaf=is_layers
  )


def unstack(items: Any, depth: int) -> list[Any]:
  """The layers of arrays with a leading layer axis; their gradients are put together as one."""
  leaves, structure = jax.tree.flatten(items)
  parts = [jax.lax.split(leaf, (1,) * depth) for leaf in leaves]
  return [structure.unflatten(part[i].squeeze(0) for part in parts) for i in range(depth)]
