"""Optimizers, their schedules, and groups of parameters."""
