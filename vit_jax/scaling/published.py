"""Results of published runs that come with the package, as tables to fit and to compare with."""

from __future__ import annotations

import importlib.resources

import numpy as np

from vit_jax.core.errors import RunError, suggest
from vit_jax.scaling.table import Table, read


def load(name: str) -> Table:
  """A table of `TABLES` by its name; `metadata` of it has source, licence and units.

  Args:
    name: 'zhai2022', say.

  Returns:
    The table, as its function here describes it.

  Raises:
    RunError: there is none of that name.
  """
  if name not in TABLES:
    raise RunError(f'unknown published table {name!r}; {suggest(name, TABLES)}')
  return TABLES[name]()


def zhai2022() -> Table:
  """ViTs from s/28 to G/14 on JFT data of 30M to 3B images, for 20 thousand to 6.3 million steps.

  265 runs of Zhai et al. 2022, 'Scaling Vision Transformers' (arXiv:2106.04560), appendix tables 4
  to 22, models from Table 2. Columns: `model`, `width`, `depth`, `mlp`, `heads`, `mparams` (1e6),
  `gflops224` (1e9 FLOP per image forward at 224 px, two per multiply-add), `data` ('30M'),
  `data_size` (images), `steps_bs4096`, `images_seen`, and accuracies in percent on ImageNet, linear
  on 10 images per class (`inet10shot_top1`) and fine-tuned (`inet_finetune_top1`).

  Three more follow from them: `flops`, of training, 3 * gflops224 * 1e9 * images_seen;
  `error_10shot` and `error_finetune`, 1 - top1 / 100.

  The numbers were copied by hand. The order of models in the appendix was inferred (by accuracy, by
  which rows are missing, by what the text says); s/16 and S/32 are the least certain pair. The
  paper fits measured core-days, not FLOPs: its exponents are not those of this table.
  """
  table = _read('zhai2022')
  table['flops'] = 3e9 * table['gflops224'] * table['images_seen']
  table['error_10shot'] = 1 - table['inet10shot_top1'] / 100
  table['error_finetune'] = 1 - table['inet_finetune_top1'] / 100
  table.metadata |= {
    'unit flops': 'FLOP',
    'unit error_10shot': 'share',
    'unit error_finetune': 'share',
  }
  return table


def vit2020_table5() -> Table:
  """What pre-training data does to ViTs: accuracies of 14 pairs of data and model.

  Dosovitskiy et al. 2020 (arXiv:2010.11929v2), Table 5: `pretrain` (ImageNet, ImageNet-21k or
  JFT-300M), `model`, and accuracy in percent after fine-tuning on `cifar10`, `cifar100`,
  `imagenet`, `imagenet_real`, `flowers`, `pets`.
  """
  return _read('vit2020_table5')


def vit2020_table6() -> Table:
  """ViTs, ResNets and hybrids of 50 to 4262 exaFLOPs: 18 models trained on JFT-300M.

  Dosovitskiy et al. 2020 (arXiv:2010.11929v2), Table 6: `name`, `epochs` of pre-training,
  `exaflops` of it (1e18 FLOP, two per multiply-add), and accuracy in percent after fine-tuning on
  `imagenet`, `imagenet_real`, `cifar10`, `cifar100`, `pets`, `flowers`.

  Two more follow from them: `family` (ViT, ResNet or hybrid) and `error`, 1 - imagenet / 100. No
  run was repeated, and models of a family differ in shape as well as in size.
  """
  table = _read('vit2020_table6')
  names = table['name']
  table['family'] = np.where(
    np.char.startswith(names, 'ViT'),
    'ViT',
    np.where(np.char.startswith(names, 'ResNet'), 'ResNet', 'hybrid'),
  )
  table['error'] = 1 - table['imagenet'] / 100
  table.metadata['unit error'] = 'share'
  return table


def revisiting_nmt() -> Table:
  """Five learning curves of translation models, as their last point is to be predicted.

  The NMT part of the benchmark of Alabdulmohsin et al. 2022, 'Revisiting Neural Scaling Laws in
  Language and Vision' (arXiv:2209.06640): 53 rows of `domain`, `task`, `model`, `seen_examples`,
  `loss` (nat per token), and `training`, 1 for points to fit and 0 for the one to predict.

  Points of a curve come from one run. In the paper's table of NMT the row of 6Enc-6Dec repeats that
  of Dec-only for the laws M2 to M4.
  """
  return _read('revisiting_nmt')


def porian_points() -> Table:
  """Language models of 11 experiments at equal FLOPs: what isoFLOP curves are drawn through.

  Porian et al. 2024, 'Resolving Discrepancies in Compute-Optimal Scaling of Language Models'
  (arXiv:2406.19146): `flops` of training, `n` (parameters) and `tokens` as the experiment counts
  them, `loss` (nat per token). `experiment` joins what tells one from another: `dataset`, `hparams`
  (base or tuned), `warmup`, `decay`, `param_count` (of 'kaplan' the head is left out, of 'standard'
  it counts), `split` of the loss. `src` is the file they come from.

  Losses at a budget are read off training curves, so that those of one model are not independent.
  The three experiments of 'kaplan' have no run at the largest budget.
  """
  table = _named(_read('porian_points'))
  return table.take(np.isfinite(table['loss']))


def porian_optima() -> Table:
  """The compute-optimal sizes that Porian et al. 2024 found in `porian_points`.

  As published: `n_star`, `tokens_star`, `loss_star` per `experiment` and `flops`, `n_star_std_log`
  (the standard deviation of log n_star when the losses get the noise of other seeds), and
  `pub_n_exponent`, a of n_star = k flops^a. They minimise an Akima spline through the logarithms;
  their n_star is the median over noise.
  """
  return _named(_read('porian_optima'))


def _named(table: Table) -> Table:
  parts = ('dataset', 'hparams', 'warmup', 'decay', 'param_count', 'split')
  table['experiment'] = np.array(
    ['/'.join(row) for row in zip(*map(table.get, parts), strict=True)]
  )
  return table


def _read(name: str) -> Table:
  file = importlib.resources.files('vit_jax.scaling') / 'data' / f'{name}.csv'
  with importlib.resources.as_file(file) as path:
    return read(path)


TABLES = {
  table.__name__: table
  for table in (
    zhai2022,
    vit2020_table5,
    vit2020_table6,
    revisiting_nmt,
    porian_points,
    porian_optima,
  )
}
