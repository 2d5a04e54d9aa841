"""Kernels written by hand, each beside the plain JAX that says what it computes."""
