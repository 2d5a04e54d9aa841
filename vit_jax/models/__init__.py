"""Models: thin compositions over the encoder."""

from __future__ import annotations

from typing import Any

from vit_jax.architecture import TextArchitecture, TwoTowersArchitecture, ViTArchitecture


def create(config: Any, rngs: Any) -> Any:
  """The module that an architecture describes, sharded over the mesh in context.

  Args:
    config: a resolved `ViTArchitecture`, `TextArchitecture` or `TwoTowersArchitecture`.
    rngs: `nnx.Rngs` for the initial parameters.
  """
  # Listing models needs no JAX.
  from vit_jax.models.text import Text
  from vit_jax.models.two_towers import TwoTowers
  from vit_jax.models.vit import ViT

  modules = {ViTArchitecture: ViT, TextArchitecture: Text, TwoTowersArchitecture: TwoTowers}
  return next(module for kind, module in modules.items() if isinstance(config, kind))(config, rngs)
