r"""Captions of pictures: a small image tower and a small language model, from random weights.

Pictures are drawn: coloured forms on dark ground, with captions that name one of them, or two and
how they lie. Eight of the 48 pairs of a colour and a form are never shown in training.

    python -m vit_jax.train --config=configs/language.py --workdir=runs/captions

Judged by whole captions that are right, by BLEU-4 and CIDEr-D, on pairs that were seen (test) and
that were not (held_out), and with the pictures of others beside the captions (others): what a model
says that does not look. It has not been measured.
"""

from vit_jax.config import complete


def get_config():
  vision = dict(
    variant='mu/8', image_size=(48, 48), width=96, depth=4, mlp_dim=384, num_heads=3,
    posemb='sincos', scan=False,
  )  # fmt: skip
  language = dict(variant='', width=96, depth=2, mlp_dim=256, num_heads=3, tied=True, scan=False)
  judged = dict(name='answers', measure=('exact', 'bleu', 'cider'), every='50%')
  return complete(dict(
    total='1500 steps',
    batch_size=256,
    model=dict(name='multimodal', vision=vision, language=language, projector='linear'),
    task=dict(name='language', length=56, tokenizer=dict(name='words')),
    data=dict(source=dict(name='generated', examples=400_000, generator=dict(name='objects'))),
    optim=dict(lr=1.5e-3, weight_decay=0.05, b2=0.98, warmup='5%', clip=1.0),
    evals=dict(
      test=dict(judged, split='seen_one'), held_out=dict(judged, split='held_out_one'),
      others=dict(judged, split='seen_one', images='others'),
    ),
  ))  # fmt: skip
