r"""YOLOS: a detector that is nothing but a ViT, with a hundred tokens more.

COCO (Lin et al. 2014), `annotations/instances_{train,val}2017.json` in a directory beside
{train,val}2017, from a DeiT:

    python -m vit_jax.train --config=configs/yolos.py:S,coco --workdir=runs/yolos_s \
        --config.inits.encoder=facebook/deit-small-patch16-224

Fang et al. 2021 (https://arxiv.org/abs/2106.00666), by hustvl/YOLOS: an average precision of 28.7
for Ti, 36.1 for S and 42.0 for B. Of those models, and others, the weights are read:

    python -m vit_jax.evaluate --config=configs/yolos.py:S,coco --checkpoint=yolos-small

Where this differs: images are put into frames of 1024 x 1024 pixels, larger or smaller by 0.6 to 1,
where theirs have a shorter side of 480 to 800 pixels and one batch one size, and half of them are
cropped before; classes are the 80 that there are, where theirs are 91 numbers; and positions are
those of these frames, theirs of 512 x 864 pixels in S and of 800 x 1344 in B. No run at this size
was made.
"""

from vit_jax.config import chosen, complete

# Learning rate, epochs, images of a batch, and whether there are positions between layers.
SIZES = {
  'Ti': (5e-5, 300, 16, False),
  'S': (2.5e-5, 150, 8, True),
  'B': (2.5e-5, 150, 8, True),
}


def get_config(argument='S,coco'):
  size, _, folder = argument.partition(',')
  lr, epochs, batch, middle = chosen(size, SIZES)
  source = dict(name='coco', dir=folder, annotations='annotations/instances_{split}.json')
  return complete(dict(
    total=f'{epochs} epochs',
    batch_size=batch,
    model=dict(name='yolos', middle=middle, encoder=dict(
      variant=f'deit:{size}/16', image_size=(1024, 1024), initial='deit',
      dtype='bfloat16', remat='names',
    )),
    task=dict(
      name='detection', class_weight=1.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
    data=dict(
      source=source, split='train2017', flip='horizontal',
      crop=dict(name='scale_jitter', min_scale=0.6, max_scale=1.0),
    ),
    optim=dict(lr=lr, lr_last=1e-7, weight_decay=1e-4, decay=(('.*', 1.0),), clip=0.1),
    evals=dict(val=dict(
      name='detection', split='val2017', every='10%', batch_size=8, crop=dict(name='fit'),
    )),
  ))  # fmt: skip
