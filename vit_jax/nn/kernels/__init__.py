"""Handwritten kernels, each next to a plain JAX implementation of the same function."""
