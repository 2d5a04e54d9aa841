"""The formats of what runs leave, by number, and how an older one becomes the newest.

A field that is new gets, in the migration that introduces it, the value that runs had without it,
whatever its default is today. `tests/golden/runs` holds runs of every format.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

from vit_jax.core.errors import RunError

FORMAT = 10


class LaterFormatError(RunError):
  """A format that this version does not know."""


def _numbered(record: dict[str, Any]) -> None:
  """0 to 1: the number itself. Records of format 0 may be older than some fields."""
  record.setdefault('fork', '')
  record.setdefault('lanes', {name: [] for name in ('lr', 'weight_decay', 'b1', 'b2', 'seed')})
  record.setdefault('compilation_cache', '')
  record.get('model', {}).setdefault('mup_width', 0)
  record.get('model', {}).setdefault('mup_depth', 0)
  record.get('checkpoint', {}).setdefault('at', [])
  record.get('data', {}).setdefault('cache', False)
  if record.get('init'):  # which took the place of the variant
    record.get('model', {})['variant'] = ''
  sections = (record.get('data', {}), *record.get('evals', {}).values())
  for crop in (section['crop'] for section in sections if 'crop' in section):
    crop.setdefault('method', 'area')  # whatever the checkpoint was trained with
  source = record.get('data', {}).get('source', {})
  if source.get('name') == 'synthetic':
    source.setdefault('channels', 3)


def _with_hyperparameters(record: dict[str, Any]) -> None:
  """1 to 2: lanes of any hyperparameter by name; parameters that are not trained."""
  record['lanes'] = {name: list(values) for name, values in record['lanes'].items() if values}
  record['task']['frozen'] = []
  record['optim'] |= dict(
    name='adamw', decay_with='lr', clip_by='global', layer_decay=1.0, mu_dtype='float32'
  )
  for evaluation in record['evals'].values():
    evaluation['report'] = ['top1', 'top5', 'loss']


def _with_parts(record: dict[str, Any]) -> None:
  """2 to 3: checkpoints of single towers to start from, types of what is not trained."""
  record['inits'] = {}
  record['task']['frozen_dtype'] = 'float32'


def _with_fields(record: dict[str, Any]) -> None:
  """3 to 4: an order in constant memory, flips of all that belongs to an image, fields by name."""
  data = record['data']
  data |= dict(order='permutation', flip='none', audit=1000)
  record['log']['writers'] = []
  if data['source'].get('name') == 'tfds':
    data['source'] |= dict(fields={}, names={}, ignore=[])


def _with_attention(record: dict[str, Any]) -> None:
  """4 to 5: images of any number of axes, attention along them, fewer heads of keys."""
  _with_axes(record.get('model', {}))


def _with_health(record: dict[str, Any]) -> None:
  """5 to 6: when what does not get on is ended, skipped, or gone back from; low-rank changes."""
  record.get('optim', {})['skip_above'] = 0.0
  record['rewind'] = dict(most=0, above=1.5, patience=20, back='100 steps')
  record['health'] = dict(hang=0.0, wait=0.0, silent=60.0)
  record['checkpoint']['mtbf'] = 12.0
  for evaluation in record.get('evals', {}).values():
    evaluation['attention'] = False
  record['lora'] = dict(
    rank=0, alpha=16.0, patterns=['.*attn/(query|value)/kernel'],
    train=['(.*/)?(distill_)?head/.*'],
  )  # fmt: skip
  _with_augmentation(record)
  _with_recipes(record)


def _with_augmentation(record: dict[str, Any]) -> None:
  """Images were cut and mirrored, and mixed by mixup; nothing else."""
  data, task = record.get('data', {}), record.get('task', {})
  data |= dict(colour={'name': 'none'}, erase={'name': 'none'}, repeats=1)
  if data.get('crop', {}).get('name') == 'random_resized':
    data['crop'] |= dict(max_area=1.0, dialect='vit_jax')
  if 'mixup' in task:
    task |= dict(cutmix=0.0, mix_prob=1.0, mix_switch=0.5, mix_mode='batch')


def _with_recipes(record: dict[str, Any]) -> None:
  """Schedules fell to 0 from the end of the warm-up, losses were of the class, head biases 0."""
  record.get('optim', {}).update(
    lr_first=None, lr_last=0.0, fall_from='warmup', ema_warmup=True
  )  # fmt: skip
  if record.get('task', {}).get('name') in ('classification', 'packed'):
    record['task'] |= dict(loss_of='softmax', threshold=None, z_loss=0.0)
  _with_head_bias(record.get('model', {}))


def _with_head_bias(model: Any) -> None:
  for part in _described(model):
    if 'patch_dropout' in part:
      part['head_bias'] = 0.0


def _with_sizes(record: dict[str, Any]) -> None:
  """6 to 7: sizes of images and patches that change from step to step, or in evaluation."""
  _with_initial(record.get('model', {}))
  record['sizes'] = dict(images=[], patches=[], order='random')
  for evaluation in record.get('evals', {}).values():
    evaluation |= dict(image_size=0, patch_size=0)


def _with_initial(model: Any) -> None:
  for part in _described(model):
    if 'relative_bias' in part:  # an encoder
      part['dropout'] = 0.0
    if 'patch_dropout' in part:
      part['initial'] = 'vit'


def _with_axes(model: Any) -> None:
  for part in _described(model):
    if 'relative_bias' in part:  # an encoder, whose variant may say the rest
      new = dict(attention='full', kv_heads=0, head_dim=0, softcap=0.0, rope_pairs='halves')
      if 'registers' in part:
        new['queries'] = 0
      part |= dict.fromkeys(new) if part['relative_bias'] is None else new
    if part.get('posemb') == 'sincos2d':
      part['posemb'] = 'sincos'


def _described(model: Any) -> Iterator[dict[str, Any]]:
  """The description of a model, and those of its parts."""
  if isinstance(model, dict):
    yield model
    for part in model.values():
      yield from _described(part)


def meant(number: int, name: str, old: Any, new: Any, *, init: bool) -> bool:
  """Whether a run of format `number` had the value `old` of a field that its command leaves unset.

  In format 0 these fields had defaults, which its records hold; with `init` all fields of a
  configuration file were recorded, although the checkpoint decided.
  """
  if number < 4 and name == 'data.order':  # there was no other
    return new is None
  defaults = {'mean': [0.5], 'std': [0.5], 'method': 'area'}
  return number == 0 and new is None and (init or defaults.get(name.rpartition('.')[2]) == old)


def _decided(facts: dict[str, Any]) -> None:
  """0 to 1: what was decided beyond the record, and the classes of the data."""
  if 'card' in facts:
    images = {name: facts['card'][name] for name in ('mean', 'std')}
    facts['decided'] = {'model': facts['model'], 'task': images}
    facts['classes'] = facts['card']['class_names']


def _fields_known(facts: dict[str, Any]) -> None:
  """3 to 4: of the data only the classes were known."""
  if 'decided' in facts:
    facts['decided'].setdefault('data', {})['order'] = 'permutation'
  if 'classes' in facts:
    label = {'kind': 'class', 'names': facts.pop('classes')}
    facts['fields'] = {'image': {'kind': 'image', 'dtype': 'uint8'}, 'label': label}
  if 'task' in facts:
    facts['card'] |= dict(task=facts['task'], fields=facts['fields'])


def _with_losses(record: dict[str, Any]) -> None:
  """8 to 9: losses of maps besides the cross-entropy of all pixels alike."""
  if record.get('task', {}).get('name') == 'segmentation':
    record['task'] |= dict(class_weights=None, focal=0.0, dice=0.0, lovasz=0.0)


def _with_more(record: dict[str, Any]) -> None:
  """9 to 10: maps by windows, scores of edges; nothing was measured in images, all bands read."""
  for evaluation in record.get('evals', {}).values():
    if evaluation.get('name') in ('segmentation', 'change', 'damage'):
      evaluation |= dict(windows=False, overlap=0.5, shorter=0, boundary=0.0)
  if 'mean' in record.get('task', {}):
    record['task']['measure'] = False
  for part in _described(record):
    if part.get('name') == 'tiles':
      part['bands'] = []
  _with_masks(record)


def _with_masks(record: dict[str, Any]) -> None:
  """There were no masks beside boxes."""
  for part in _described(record.get('model')):
    if 'denoising' in part:  # a decoder, whose kind says the rest
      part['masks'] = None
  if record.get('task', {}).get('name') in ('panoptic', 'instances', 'semantic'):
    record['task'] |= dict(box_weight=5.0, overlap_weight=2.0)


def _axes_known(facts: dict[str, Any]) -> None:
  """4 to 5: what models were."""
  for place in (facts, facts.get('decided', {})):
    _with_axes(place.get('model', {}))


def _heads_known(facts: dict[str, Any]) -> None:
  """5 to 6: what models were."""
  _with_head_bias(facts.get('model', {}))


def _initial_known(facts: dict[str, Any]) -> None:
  """6 to 7: what models were."""
  _with_initial(facts.get('model', {}))


def _starts_known(facts: dict[str, Any]) -> None:
  """9 to 10: where scale and bias of two towers began, and that a decoder said no masks."""
  for place in (facts, facts.get('decided', {})):
    for part in _described(place.get('model')):
      if 'denoising' in part:
        part['masks'] = False
  if facts.get('kind') == 'two_towers':
    biased = facts['model']['logit_bias']
    facts['model'] |= dict(
      start_scale=10.0 if biased else 1 / 0.07, start_bias=-10.0 if biased else 0.0
    )


# What turns a configuration of format i into one of format i + 1.
RECORDS: tuple[Callable[[dict[str, Any]], None], ...] = (
  _numbered, _with_hyperparameters, _with_parts, _with_fields, _with_attention,
  _with_health, _with_sizes,
  lambda record: None,  # 7 to 8: see `otherwise`
  _with_losses, _with_more,
)  # fmt: skip
# The same for what checkpoints say of themselves.
FACTS: tuple[Callable[[dict[str, Any]], None], ...] = (
  _decided, lambda facts: None, lambda facts: None, _fields_known, _axes_known, _heads_known,
  _initial_known, lambda facts: None, lambda facts: None, _starts_known,
)  # fmt: skip


def otherwise(number: int, record: dict[str, Any]) -> list[str]:
  """What a run of format `number` does otherwise from here on; `record` is in today's format."""
  if number < 8 and any(part.get('dropout') for part in _described(record.get('model'))):
    return ['dropout draws other numbers than the earlier version, at the same rate']
  return []


def array(number: int, name: str) -> str:
  """Today's name of an array in a checkpoint of format `number`."""
  if number < 2:  # the optimizer was the second link of a chain
    name = re.sub('^opt/1/', 'opt/', name)
  if number < 10:  # of UPerNet; see `models.pyramid`
    name = re.sub('(^|/)(up4_first|up4_first_norm|up4|up2)/', r'\1pyramid/\2/', name)
  return name


def stamped(value: dict[str, Any]) -> dict[str, Any]:
  """A configuration, or the facts of a checkpoint, as they are written."""
  return {'format': FORMAT, **value}


def record(stored: dict[str, Any], where: str) -> dict[str, Any]:
  """A configuration of any format, as this version writes it, without the number.

  Raises:
    RunError: for one of a later version.
  """
  return _migrated(stored, RECORDS, where)


def facts(stored: dict[str, Any], where: str) -> dict[str, Any]:
  """As `record`, of what a checkpoint says of itself."""
  return _migrated(stored, FACTS, where)


def _migrated(stored: dict[str, Any], steps: Any, where: str) -> dict[str, Any]:
  value = copy.deepcopy(stored)
  number = value.pop('format', 0)
  if not isinstance(number, int) or not 0 <= number <= FORMAT:
    raise LaterFormatError(
      f'{where} has format {number!r}, and this version of vit_jax knows formats up to {FORMAT}: '
      'use the version that wrote it, or a later one'
    )
  for step in steps[number:]:
    step(value)
  return value
