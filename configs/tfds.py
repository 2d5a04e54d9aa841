r"""Any image classification data set of TFDS that has been prepared as ArrayRecord.

    python -m vit_jax.train --config=configs/tfds.py:imagenet2012 --workdir=runs/imagenet

Preparing most of them needs TensorFlow, once, in a separate virtual environment:

    pip install tensorflow-cpu tensorflow-datasets
    tfds build imagenet2012 --file_format=array_record

The recipe is ViT-S/16 of Beyer et al. 2022 (https://arxiv.org/abs/2205.01580, 90 epochs) less
RandAugment, which configs/vit_s16.py has, on 8 chips of 16 GiB or more.
"""

from vit_jax.config import complete


def get_config(dataset='imagenet2012'):
  return complete(dict(
    total='90 epochs',
    batch_size=1024,
    model=dict(variant='S/16', pool='mean', posemb='sincos', dtype='bfloat16', remat='names'),
    task=dict(flip=True, mixup=0.2, mean=(0.5,), std=(0.5,)),
    data=dict(
      source=dict(name='tfds', dataset=dataset), crop=dict(name='random_resized', min_area=0.05)
    ),
    optim=dict(lr=1e-3, weight_decay=0.1, warmup='10000 steps'),
    evals=dict(
      test=dict(
        split='validation' if dataset.startswith('imagenet2012') else 'test',
        crop=dict(name='center'), every='5%',
      )
    ),
    log=dict(every='100 steps'),
  ))  # fmt: skip
