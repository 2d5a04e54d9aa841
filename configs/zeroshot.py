r"""Images of classes, by the names of these alone, for `vit_jax.evaluate`; and captions of COCO.

    python -m vit_jax.evaluate --checkpoint=hf:openai/clip-vit-base-patch32 \
      --config=configs/zeroshot.py:DIR

DIR has a directory for each class, called like it. ImageNet's validation images, in directories by
WordNet id, with the names and the 80 templates of CLIP, which has 63.2 % for B/32, 68.3 % for B/16:

      --config=configs/zeroshot.py:DIR,imagenet

COCO, 5,000 images with the first five captions of each, val2017/ beside
annotations/captions_val2017.json: the share of images with a caption of theirs among the most
similar one, five and ten (text_1 ...), and of captions likewise (image_1 ...):

      --config=configs/zeroshot.py:DIR,coco

How images are prepared, and how texts are read, is the checkpoint's.
"""

from vit_jax.config import chosen, complete

KINDS = {
  '': dict(name='zeroshot', templates='photo'),
  'imagenet': dict(name='zeroshot', templates='imagenet', names='imagenet'),
  'coco': dict(name='retrieval', split='val2017'),
}


def get_config(argument):
  folder, _, kind = argument.partition(',')
  test = chosen(kind, KINDS)
  coco = dict(
    name='coco', dir=folder, annotations='', captions='annotations/captions_{split}.json'
  )  # fmt: skip
  images = dict(name='folder', dir=folder)
  return complete(dict(
    total='1 step',
    batch_size=64,
    model=dict(name='two_towers', variant='clip:B/32'),
    task=dict(name='contrastive', tokenizer=dict(name='clip')),
    data=dict(source=coco if kind == 'coco' else images),
    evals={kind or 'classes': test if kind == 'coco' else {**test, 'dir': folder, 'split': '.'}},
  ))  # fmt: skip
