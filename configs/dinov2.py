r"""DINOv2: L/16 on ImageNet and L/14 on ImageNet-22k, without labels and from random weights.

    python -m vit_jax.train --config=configs/dinov2.py:L/16,1k --workdir=runs/dinov2_l16
    python -m vit_jax.train --config=configs/dinov2.py:L/14,22k --workdir=runs/dinov2_l14
    python -m vit_jax.probe runs/dinov2_l14 configs/dinov2.py:L/16,1k --train=train \
      --test=validation --features=class --methods=knn

Oquab et al. 2024 (https://arxiv.org/abs/2304.07193), by facebookresearch/dinov2's
ssl_default_config.yaml, vitl16_short.yaml and vitl14.yaml. Nearest neighbours among the training
images of ImageNet, and the best of 52 linear layers, find 81.6 and 82.9 % for L/16 from ImageNet,
and 82.0 and 84.5 % for L/14 from ImageNet-22k. What is published as DINOv2 ViT-L/14 is another one:
its teacher was the g/14 of 142 million images, which are not public, and its MLPs are not gated.

An epoch is 1,250 steps there, whatever the data: 100 and 500 of them. The learning rate is 4e-3 and
2e-4, times the root of how many 1,024 images are in a batch. Embeddings of patches learn at a fifth
of it, and those of L/16 with 0.9 for each block above them. All but biases, norms and LayerScale is
decayed. Encoder and heads are clipped apart. On the way neighbours are looked for among a tenth of
the training images of the same data.

Where this differs: a view has hidden patches with probability 1/2, where there exactly half of a
batch has them, with bounds that are spread evenly. The nearest neighbour of KoLeo is of the whole
batch, theirs of a GPU. The class token begins as normal noise of 0.02, theirs of 1e-6. ImageNet-21k
of TFDS has 13.1 million images to train on, their ImageNet-22k 14.2 million. Activations are
bfloat16, theirs float16 by autocast; heads and losses are float32 here.
"""

from vit_jax.config import chosen, complete, multicrop

# What vitl14.yaml changes of the defaults.
LARGE = dict(
  patch_head='separate', prototypes=131_072, bottleneck=384, patch_bottleneck=256
)  # fmt: skip
RECIPES = {
  'L/16,1k': dict(
    dataset='imagenet2012', epochs=100, batch=2048, lr=4e-3, warmup=10, decay=0.4, momentum=0.992,
    layer_decay=0.9, heads=dict(patch_head='shared'), centering='center', local_size=96,
    mesh='data', encoder=dict(drop_path=0.3),
  ),
  'L/14,22k': dict(
    dataset='imagenet21k', epochs=500, batch=3072, lr=2e-4, warmup=80, decay=0.2, momentum=0.994,
    layer_decay=1.0, heads=LARGE, centering='sinkhorn', local_size=98,
    mesh='fsdp', encoder=dict(drop_path=0.4, mlp='swiglu', mlp_dim=2736),
  ),
}  # fmt: skip
EPOCH = 1250  # steps


def get_config(argument='L/16,1k'):
  recipe, variant = chosen(argument, RECIPES), argument.split(',')[0]
  views = multicrop(recipe['dataset'], apart=0.32, local=8)
  batch = recipe['batch']
  return complete(dict(
    total=f'{EPOCH * recipe["epochs"]} steps',
    batch_size=batch,
    mesh=recipe['mesh'],
    model=dict(
      name='dino', scaled=True, **recipe['heads'],
      encoder=dict(
        variant=f'dinov2:{variant}', image_size=(224, 224), drop_path_mode='subset',
        initial='deit', dtype='bfloat16', remat='names', **recipe['encoder'],
      ),
    ),
    task=dict(
      **views.pop('task'), local_size=recipe['local_size'], centering=recipe['centering'],
      koleo=0.1, masked=0.5, ratio=(0.1, 0.5), smallest=4,
      momentum=f'{recipe["momentum"]}->1 cosine',
      temperature=f'0.04->0.07 linear {30 * EPOCH} steps',
      last_layer=f'0 until {EPOCH} steps then 1',
    ),
    optim=dict(
      lr=recipe['lr'] * (batch / 1024) ** 0.5, lr_first=0.0, lr_last=1e-6,
      warmup=f'{EPOCH * recipe["warmup"]} steps', clip=3.0, clip_by='part',
      weight_decay=f'0.04->{recipe["decay"]} cosine', layer_decay=recipe['layer_decay'],
      lr_scale=(('encoder/embed/.*', 0.2), ('.*', 1.0)),
      decay=(
        ('.*kernel|encoder/(token|mask_token|posemb)|(patch_)?head/scale', 1.0), ('.*', 0.0)
      ),
    ),
    **views,
  ))  # fmt: skip
