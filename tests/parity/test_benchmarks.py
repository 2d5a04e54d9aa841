"""Benchmarks against other libraries race the same model."""

import pytest

from experiments.benchmarks import train_step


@pytest.mark.parametrize('inference', [False, True])
def test_contestants_compute_the_same(inference, tmp_path):
  rows = train_step.main(['--quick', f'--folder={tmp_path}', *['--inference'] * inference])
  names = {row['contestant'].partition(',')[0]: row for row in rows}
  assert names.keys() == {'timm', 'transformers', 'vit_jax'}
  assert [row['status'] for row in rows] == ['right'] * len(rows)
  assert names['vit_jax']['off by'] > 0  # or it was compared with itself
