"""Panoptic quality as COCO's panopticapi has it, and segments merged as transformers' EoMT does."""

from typing import ClassVar

import jax
import numpy as np
import pytest
import torch
from panopticapi.evaluation import PQStat, pq_compute_single_core
from PIL import Image

from tests.parity.references import hf
from vit_jax.data.fields import Field
from vit_jax.data.fields import Panoptic as Truth
from vit_jax.evaluators import panoptic as quality
from vit_jax.evaluators.evaluator import Found
from vit_jax.tasks import merging

CLASSES = 6  # of which the last one is nowhere, and the first three are stuff


def scene(rng, count, cells):
  """Segments that are blocks of pixels, some void, as numbers and {number: class}."""
  blocks = rng.integers(0, count + 1, (cells, cells))
  ids = np.kron(blocks, np.ones((12 // cells, 12 // cells), int)) * 1000
  return ids, {int(n): int(rng.integers(CLASSES - 1)) for n in np.unique(ids) if n}


def cases(seed, images=40):
  """Truth and predictions: copies with changes, and others; crowds, void, empty images."""
  rng = np.random.default_rng(seed)
  for number in range(images):
    truth, labels = scene(rng, 5, 4)
    said, own = scene(rng, 6, 6)
    if number % 2:
      said, own = truth.copy(), dict(labels)
      said[:, : rng.integers(1, 8)] = 0
      for n in [*own][:1]:
        own[n] = int(rng.integers(CLASSES - 1))
      own = {n: c for n, c in own.items() if (said == n).any()}
    if number == 4:
      said, own = np.zeros_like(said), {}
    if number == 7:
      truth, labels = np.zeros_like(truth), {}
    about = {n: (c, bool(rng.random() < 0.25)) for n, c in labels.items()}
    yield truth, about, said, own


def tool(found, tmp_path):
  """What panopticapi says of files."""
  pairs, folders = [], [tmp_path / 'truth', tmp_path / 'said']
  for folder in folders:
    folder.mkdir()
  for number, (truth, about, said, own) in enumerate(found):
    name = f'{number}.png'
    for folder, ids in zip(folders, (truth, said), strict=True):
      pixels = np.stack([ids % 256, ids // 256, ids // 65536], -1).astype(np.uint8)
      Image.fromarray(pixels).save(folder / name)
    segments = [
      dict(id=n, category_id=c, iscrowd=int(crowd), area=int((truth == n).sum()))
      for n, (c, crowd) in about.items()
    ]
    predicted = [dict(id=n, category_id=c) for n, c in own.items()]
    both = (dict(image_id=number, file_name=name, segments_info=each)
            for each in (segments, predicted))  # fmt: skip
    pairs.append(tuple(both))
  categories = {c: dict(id=c, isthing=int(c >= 3)) for c in range(CLASSES)}
  total = PQStat()
  total += pq_compute_single_core(0, pairs, *map(str, folders), categories)
  return {group: total.pq_average(categories, kind)[0]
          for group, kind in (('', None), ('_things', True), ('_stuff', False))}  # fmt: skip


class Named:
  """A source with names."""

  fields: ClassVar[dict] = {'panoptic': Field('panoptic', tuple('abcdef'), stuff=tuple('abc'))}


@pytest.mark.parametrize('seed', range(4))
def test_panoptic_quality(seed, tmp_path):
  found = list(cases(seed))
  want = tool(found, tmp_path)
  records = [
    quality.counted(truth, Truth(None, about), said, own, CLASSES)
    for truth, about, said, own in found
  ]
  scores = quality.Panoptic().finish({'test': Found(Named(), {}, records, np.arange(40), 40)})
  for group, values in want.items():
    for name in ('pq', 'sq', 'rq'):
      assert scores.values[name + group] == pytest.approx(values[name], rel=1e-12)
  assert scores.values['classes'] == want['']['n'] == CLASSES - 1
  assert 0.05 < scores.values['pq'] < 0.95


@pytest.mark.parametrize(('threshold', 'overlap'), [(0.5, 0.8), (0.2, 0.3), (0.8, 0.5)])
def test_segments_are_merged(threshold, overlap):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(12, 9, 5)).astype(np.float32) * 3
  coarse = rng.normal(size=(12, 9, 4, 4)).astype(np.float32) * 6
  masks = torch.nn.functional.interpolate(torch.from_numpy(coarse), (16, 16), mode='bicubic')
  outputs = hf.models.eomt.modeling_eomt.EomtForUniversalSegmentationOutput(
    masks_queries_logits=masks, class_queries_logits=torch.from_numpy(logits)
  )
  want = hf.EomtImageProcessor().post_process_panoptic_segmentation(
    outputs,
    [(64, 64)] * 12,
    threshold,
    0.5,
    overlap,
    [0, 2],
    dict(shortest_edge=64, longest_edge=64),
  )
  got = jax.jit(
    lambda a, b: merging.panoptic(
      a, b, (64, 64), stuff=(0, 2), threshold=threshold, overlap=overlap
    )
  )(logits, masks.numpy())
  count = 0
  for i, each in enumerate(want):
    theirs = each['segmentation'].numpy()
    ours = np.asarray(got['segments'][i]).astype(int)
    own = [n for n in np.unique(ours) if n]
    infos = {info['id']: info for info in each['segments_info']}
    assert len(infos) == len(own)
    # In the order of queries, both.
    for number, n in zip(sorted(infos), own, strict=True):
      assert ((ours == n) != (theirs == number)).mean() < 1e-3
      assert infos[number]['label_id'] == int(got['segments_label'][i][n - 1])
      assert infos[number]['score'] == pytest.approx(
        float(got['segments_score'][i][n - 1]), abs=1e-5
      )
      count += 1
  assert count > 4
