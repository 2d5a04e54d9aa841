r"""Pictures and their captions: a small image tower and a small text tower that agree on them.

Pictures are drawn: coloured forms on dark ground, with captions that name one of them, or two and
how they lie. Eight of the 48 pairs of a colour and a form are never shown in training.

    python -m vit_jax.train --config=configs/contrastive.py --workdir=runs/contrastive

With CLIP's loss: `contrastive.py:softmax`. Judged by names of classes alone: the 48 pairs, of
pictures with one thing, of pairs that were seen (test) and that were not (held_out); by retrieval
among 1,000 captions of two things (two); and by how often a picture of two things is more like its
caption than like the one that has them exchanged (two/preferred; 0.5 is chance).

Images of your own with texts beside them, KEY.jpg and KEY.txt in a directory, of which a tenth is
held out; texts are read byte by byte unless there is another tokenizer:

    python -m vit_jax.train --config=configs/contrastive.py:pairs,DIR --workdir=runs/pairs

A ViT-S/16 and a text tower of the same width, from random weights or, with --config.inits.image,
those of a checkpoint. What it scores has not been measured.

A text tower alone, for features of images that `vit_jax.embed` has put into a table with splits
train and test, of the checkpoint that the image tower is:

    python -m vit_jax.train --config=configs/contrastive.py:features,TABLE --workdir=runs/locked \
      --config.inits.image=CHECKPOINT
"""

from vit_jax.config import chosen, complete

# Whether there is a bias.
LOSSES = {'sigmoid': True, 'softmax': False}


def get_config(argument='sigmoid'):
  kind, _, place = argument.partition(',')
  if kind in (others := {'pairs': own, 'features': locked}):
    return complete(others[kind](place))
  return complete(drawn(chosen(kind, {**LOSSES, **others})))


def drawn(biased):
  image = dict(
    variant='mu/8', image_size=(48, 48), width=96, depth=4, mlp_dim=384, num_heads=3, pool='mean',
    posemb='sincos',
  )  # fmt: skip
  text = dict(variant='clip:B', width=96, depth=2, mlp_dim=384, num_heads=3, causal=False)
  return dict(
    total='1500 steps',
    batch_size=256,
    model=dict(name='two_towers', variant='', image=image, text=text, logit_bias=biased),
    task=dict(
      name='contrastive', loss_of='sigmoid' if biased else 'softmax',
      tokenizer=dict(name='words', length=16),
    ),
    data=dict(source=dict(name='generated', examples=400_000, generator=dict(name='objects'))),
    optim=dict(lr=1.5e-3, weight_decay=0.05, b2=0.98, warmup='5%', clip=1.0),
    evals=dict(
      test=dict(name='zeroshot', split='seen_one', templates='a {};an {}', every='20%'),
      held_out=dict(name='zeroshot', split='held_out_one', templates='a {};an {}', every='20%'),
      two=dict(name='retrieval', split='test_two', wrong='swapped', every='20%'),
    ),
  )  # fmt: skip


def own(folder):
  text = dict(variant='clip:B', width=384, depth=6, mlp_dim=1536, num_heads=6)
  return dict(
    total='30 epochs',
    batch_size=256,
    model=dict(name='two_towers', variant='', image=dict(variant='S/16'), text=text),
    task=dict(name='contrastive', loss_of='sigmoid', tokenizer=dict(name='bytes')),
    data=dict(
      source=dict(name='paired', dir=folder, fields=dict(image='.', text='.')),
      split='train without fold 1/10', crop=dict(name='random_resized', min_area=0.5),
    ),
    optim=dict(lr=5e-4, weight_decay=0.1, b2=0.98, warmup='5%', clip=1.0),
    evals=dict(held_out=dict(name='retrieval', split='fold 1/10 of train', every='10%')),
  )  # fmt: skip


def locked(table):
  text = dict(variant='clip:B', width=192, depth=3, mlp_dim=768, num_heads=3)
  return dict(
    total='60 epochs',
    batch_size=256,
    model=dict(name='two_towers', variant='', text=text, logit_bias=False),
    task=dict(
      name='contrastive', tokenizer=dict(name='bytes', length=64), vectors='vector',
      frozen=('image/.*',),
    ),
    data=dict(source=dict(name='features', file=table)),
    optim=dict(lr=1e-3, weight_decay=0.1, b2=0.98, warmup='10%', clip=1.0),
    evals=dict(test=dict(name='retrieval', every='20%')),
  )  # fmt: skip
