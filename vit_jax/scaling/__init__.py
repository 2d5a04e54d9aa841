"""Scaling laws: fits that say how far they can be trusted. NumPy and SciPy only.

>>> from vit_jax.scaling import fit
>>> law = fit('power_floor', {'flops': flops, 'loss': loss}, x='flops', y='loss')
>>> print(law.report())
"""

from vit_jax.scaling.fitting import fit
from vit_jax.scaling.laws import LAWS, sovit_exponent, sovit_optimum
from vit_jax.scaling.result import Fit, Prediction

__all__ = ['LAWS', 'Fit', 'Prediction', 'fit', 'sovit_exponent', 'sovit_optimum']
