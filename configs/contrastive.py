r"""Pictures and their captions: a small image tower and a small text tower that agree on them.

Pictures are drawn: coloured forms on dark ground, with captions that name one of them, or two and
how they lie. Eight of the 48 pairs of a colour and a form are never shown in training.

    python -m vit_jax.train --config=configs/contrastive.py --workdir=runs/contrastive

Judged by names of classes alone: the 48 pairs, of pictures with one thing, of pairs that were seen
(seen) and that were not (held_out); by retrieval among 1,000 captions of two things (two); and by
how often a picture of two things is more like its caption than like the one that has them exchanged
(two/preferred; 0.5 is chance).
"""

from vit_jax.config import complete


def get_config(loss='sigmoid'):
  image = dict(
    variant='mu/8', image_size=(48, 48), width=96, depth=4, mlp_dim=384, num_heads=3, pool='mean',
    posemb='sincos',
  )  # fmt: skip
  text = dict(variant='clip:B', width=96, depth=2, mlp_dim=384, num_heads=3, causal=False)
  return complete(
    dict(
      total='1500 steps',
      batch_size=256,
      model=dict(
        name='two_towers', variant='', image=image, text=text, logit_bias=loss == 'sigmoid'
      ),
      task=dict(name='contrastive', loss_of=loss, tokenizer=dict(name='words', length=16)),
      data=dict(
        source=dict(name='generated', examples=400_000, generator=dict(name='objects')),
      ),
      optim=dict(lr=1.5e-3, weight_decay=0.05, b2=0.98, warmup='5%', clip=1.0),
      evals=dict(
        seen=dict(name='zeroshot', split='seen_one', templates='a {}', every='20%'),
        held_out=dict(name='zeroshot', split='held_out_one', templates='a {}', every='20%'),
        two=dict(name='retrieval', split='test_two', wrong='swapped', every='20%'),
      ),
    )
  )
