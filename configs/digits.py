r"""A tiny ViT on the 1,797 handwritten digits that ship with scikit-learn, 360 of them held out.

python -m vit_jax.train --config=configs/digits.py --workdir=runs/digits
"""

from vit_jax.config import complete


def get_config():
  return complete(dict(
    total='100 epochs',
    batch_size=128,
    model=dict(
      variant='mu/2', image_size=(8, 8), in_channels=1, width=64, depth=4, mlp_dim=256, num_heads=4,
      pool='map', remat='full',
    ),
    task=dict(name='classification', label_smoothing=0.1),
    data=dict(
        source=dict(name='tfds', dataset='digits'),
        crop=dict(name='affine', degrees=8.0, shift=0.06),
      ),
    optim=dict(lr=3e-3, weight_decay=0.1, warmup='10%', schedule='cosine'),
    evals=dict(test=dict(name='classification', split='test', every='20%')),
  ))  # fmt: skip
