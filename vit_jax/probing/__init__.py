"""Judging a representation: features of images, and what little can be learned from them."""
