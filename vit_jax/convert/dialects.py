"""The dialects by name."""

# Dialects to write, and what they are written as: one file, or a folder with a configuration.
DIALECTS = {
  'vit': '.npz', 'vit-linen': '.npz', 'big_vision': '.npz', 'big_vision-scan': '.npz',
  'timm': 'folder', 'dinov2': '.safetensors', 'dinov3': '.safetensors',
  'mae': '.safetensors', 'dino': '.safetensors', 'ibot': '.safetensors',
  'transformers': 'folder', 'transformers-v5': 'folder', 'openai': 'folder', 'vit_jax': 'folder',
}  # fmt: skip
# Files next to the weights that describe the model.
SIDECARS = ('config.json', 'open_clip_config.json')
