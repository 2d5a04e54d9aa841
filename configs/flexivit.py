r"""FlexiViT: one model for many sizes of patches, distilled on ImageNet or trained on ImageNet-21k.

    python -m vit_jax.train --config=configs/flexivit.py:S/16,90 --workdir=runs/flexivit_s \
      --config.init=deit_3_small_384_1k.pth --config.task.teacher.init=deit_3_small_384_1k.pth
    python -m vit_jax.train --config=configs/flexivit.py:B/32,21k --workdir=runs/flexivit_b_21k

Beyer et al. 2023 (https://arxiv.org/abs/2212.08013), by big_vision's
configs/proj/flexivit/i1k_deit3_distill.py and i21k_sup.py. Every step cuts its images, of 240
pixels, into patches of a side of its own, between 8 and 48; what is evaluated is that side which
the name of an evaluation has. Behind the comma: the epochs, 90, 300, 600 or 1200, of distillation
on ImageNet from a DeiT III of the same size at 384 px, with which the model begins, too; or 21k, 90
epochs with labels on ImageNet-21k. Accuracy by patch is in the paper's appendix; S for 90 epochs
took the authors 10.3 hours on 32 cores of TPU v3, of which 4.7 were evaluation.

Positions are stored for a grid of 7 x 7 and the embedding for one size of patches (of 32 pixels on
ImageNet-21k, of 16 with DeiT III): to use the model at one size, give both,
`vit_jax.load(PATH, image_size=240, patch_size=16)`.

Where this differs: the teacher sees the model's 240 pixels enlarged to 384, not a crop of 384; the
batch is mixed with its mirror image and not with its neighbours; positions are shrunk with
antialiasing for fewer than 7 patches, as JAX does, and enlarged bilinearly. Activations are
bfloat16. ImageNet-21k is not in TFDS: --config.data.source names another source.
"""

from vit_jax.config import big_vision, chosen, complete

PATCHES = (48, 40, 30, 24, 20, 16, 15, 12, 10, 8)
# Of DeiT III, whose parameters the model begins with.
NAMES = {'S/16': 'small', 'B/16': 'base', 'L/16': 'large'}
RECIPES = {
  **{f'{v},{epochs}': epochs for v in NAMES for epochs in ('90', '300', '600', '1200')},
  'B/32,21k': '21k',
}  # fmt: skip


def get_config(argument='S/16,90'):
  name, variant = chosen(argument, RECIPES), argument.split(',')[0]
  sizes = dict(images=(240,), patches=PATCHES)
  recipe: dict
  if name == '21k':
    shared = big_vision('imagenet21k', randaugment=10)
    recipe = dict(
      total='90 epochs', batch_size=4096,
      model=dict(variant=variant, image_size=(224, 224), pool='token', head_bias=-10.0),
      task=dict(loss_of='sigmoid_sum', mixup=0.2, mean=(0.5,), std=(0.5,)),
      optim=dict(lr=1e-3, weight_decay=0.1, warmup='10000 steps'),
    )  # fmt: skip
  else:
    shared, file = big_vision('imagenet2012', train='train[:99%]'), NAMES[variant]
    recipe = dict(
      init=f'deit_3_{file}_384_1k.pth', total=f'{name} epochs', batch_size=1024,
      model=dict(variant=f'deit3:{variant}', image_size=(112, 112)),
      task=dict(
        name='distillation', teacher=dict(init=f'deit_3_{file}_384_1k.pth', dtype='bfloat16'),
        alpha=1.0, mixup=1.0,
      ),
      optim=dict(lr=1e-4, weight_decay=0.1, warmup='5000 steps'),
    )  # fmt: skip
  recipe['model'] |= dict(interpolation='bilinear_aa', dtype='bfloat16', remat='names')
  recipe['optim'] |= dict(mu_dtype='bfloat16', clip=1.0, lr_first=0.0)
  test = shared['evals'].pop('test')
  for patch in PATCHES:
    own = dict(image_size=240, patch_size=patch, every='5 epochs')
    shared['evals'][f'patch{patch:02d}'] = {**test, **own}
  return complete(
    dict(**shared, **recipe, sizes=sizes), insisted=('model.image_size', 'model.interpolation')
  )
