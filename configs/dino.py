r"""DINO: S/16 and B/16 on the images of ImageNet, without their labels.

    python -m vit_jax.train --config=configs/dino.py:S/16,800 --workdir=runs/dino_s16
    python -m vit_jax.probe runs/dino_s16 configs/dino.py:S/16,800 --train=train --test=validation \
      --features=class --methods=knn

Caron et al. 2021 (https://arxiv.org/abs/2104.14294), by facebookresearch/dino's main_dino.py.
Nearest neighbours and a linear layer find, behind the comma the epochs:

- S/16,100: 69.3 and 74.0 %, what main_dino.py does unless told otherwise, on 8 GPUs;
- S/16,800: 74.5 and 77.0 %, by the arguments of the model that was released;
- B/16,400: 76.1 and 78.2 %, likewise.

By our plan S/16,800 takes 49 hours on 16 chips of TPU v5e (docs/how-to/recipes.md).

On the way neighbours are looked for among a tenth of the training images, which costs less and
finds less. The learning rate is 5e-4, of B 7.5e-4, for each 256 images of a batch. What has two
axes is decayed, tokens and positions too.

Where this differs: rates and temperatures follow the step, where the temperature of the teacher is
of the epoch, and reaches its last value one epoch earlier. Prototypes that are kept where they are
gather moments there, of which PyTorch knows nothing. Permutations are gone through to their end,
where there the last incomplete batch is left out. Activations are bfloat16; theirs were float32 in
the models that were released, and float16 by autocast in S/16,100.
"""

from vit_jax.config import chosen, complete, multicrop

# Images of a batch; learning rate of 256 of them, and the last one; largest gradient of a
# parameter; temperature of the teacher; epochs without learning prototypes; whether these have
# lengths.
RECIPES = {
  'S/16,100': (512, 5e-4, 1e-6, 3.0, 0.04, 1, False),
  'S/16,800': (1024, 5e-4, 1e-5, 0.0, '0.04->0.07 linear 30 epochs', 1, True),
  'B/16,400': (1024, 7.5e-4, 2e-6, 0.3, '0.04->0.07 linear 50 epochs', 3, False),
}


def get_config(argument='S/16,800'):
  batch, lr, last, clip, temperature, kept, scaled = chosen(argument, RECIPES)
  variant, epochs = argument.split(',')
  vanilla = epochs == '100'
  views = multicrop('imagenet2012', apart=0.4 if vanilla else 0.25, local=8 if vanilla else 10)
  lengths = '|head/scale' if scaled else ''
  return complete(dict(
    total=f'{epochs} epochs',
    batch_size=batch,
    model=dict(name='dino', scaled=scaled, encoder=dict(
      variant=f'deit:{variant}', interpolation='bicubic_offset', drop_path=0.1, initial='deit',
      dtype='bfloat16', remat='names',
    )),
    task=dict(
      **views.pop('task'), momentum='0.996->1 cosine', temperature=temperature,
      last_layer=f'0 until {kept} epochs then 1',
    ),
    optim=dict(
      lr=lr * batch / 256, lr_first=0.0, lr_last=last, warmup='10 epochs',
      weight_decay='0.04->0.4 cosine', clip=clip, clip_by='parameter',
      decay=((f'.*kernel|encoder/(token|posemb){lengths}', 1.0), ('.*', 0.0)),
    ),
    **views,
  ))  # fmt: skip
