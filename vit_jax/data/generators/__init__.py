"""Data sets that are drawn: an example is a function of the seed, the split and its number.

A generator has `fields`, and `example(rng, split=...)`, which gives a value for each of them. It
may have `splits`, the names of those that there are; else any name makes one.
"""

from vit_jax.data.generators.objects import Objects
from vit_jax.data.generators.scenes import Scenes
from vit_jax.data.generators.shapes import Shapes
from vit_jax.data.generators.terrain import Terrain

GENERATORS = {'scenes': Scenes, 'shapes': Shapes, 'terrain': Terrain, 'objects': Objects}
