"""Data sets that are drawn: an example is a function of the seed, the split and its number."""

from vit_jax.data.generators.scenes import Scenes
from vit_jax.data.generators.shapes import Shapes
from vit_jax.data.generators.terrain import Terrain

GENERATORS = {'scenes': Scenes, 'shapes': Shapes, 'terrain': Terrain}
