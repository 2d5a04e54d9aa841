"""Towers of a model that start from checkpoints of their own (`config.init`, `config.inits`)."""

import json
import shutil

import numpy as np
import pytest

import vit_jax
from tests import runs
from tests.test_conformance import OTHER, VIT, built, configured, one_device, registered  # noqa: F401
from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.train import train
from vit_jax.training import config as config_lib


@pytest.mark.slow
def test_towers_start_from_checkpoints_of_their_own(data_dir, tmp_path, capsys):
  """One from a run, with another size of images; one from a file of another dialect.

  What was decided from them is kept with the run, which goes on without them. More than ten
  seconds: three runs and a killed one.
  """
  plain = dict(name='classification', mean=(0.25,))
  config = lambda model: config_lib.complete(  # noqa: E731
    configured('toy_set', data_dir).to_dict() | {'task': plain, 'model': model, 'evals': {}}
  )
  train(config(VIT), str(tmp_path / 'one'))
  train(config(OTHER), str(tmp_path / 'other'))
  vit_jax.save(vit_jax.load(tmp_path / 'other'), tmp_path / 'other.npz', 'vit')
  given = configured('toy_pair', data_dir).to_dict() | {
    'inits': {'left': str(tmp_path / 'one'), 'right': f'{tmp_path}/other.npz'},
    'model': dict(name='toy_pair', left=dict(image_size=(16, 16), dtype='bfloat16'),
                  right=dict(scan=False, num_heads=2, patch_size=4, image_size=(16, 16))),
  }  # fmt: skip
  insisted = ('left.image_size', 'right.num_heads', 'right.patch_size', 'right.image_size')
  config, wishes = config_lib.started(
    config_lib.complete(given), [f'model.{name}' for name in insisted]
  )
  assert not wishes
  with one_device():
    experiment = built(config)
    assert experiment.config.model.left.dtype == 'bfloat16'
    assert experiment.config.task.mean == (0.25,)
    assert 'images are normalised with mean (0.25,)' in '\n'.join(experiment.notes)
    state = experiment.stack(experiment.init())
    model = tree.flatten(tree.merge(state.model, experiment.stacked_frozen()))
  left = tree.flatten(vit_jax.load(tmp_path / 'one', image_size=(16, 16), num_classes=0))
  right = tree.flatten(
    vit_jax.load(tmp_path / 'other.npz', patch_size=4, image_size=(16, 16), num_classes=0,
                 num_heads=2)
  )  # fmt: skip
  for name, leaf in model.items():
    tower, _, own = name.partition('/')
    if tower != 'bridge':
      want = np.asarray({'left': left, 'right': right}[tower][own])
      assert leaf.dtype == ('bfloat16' if name.startswith('right/embed') else 'float32')
      np.testing.assert_array_equal(leaf, want.astype(leaf.dtype), err_msg=name)
  assert {n for n in model if n.startswith('bridge')} == {'bridge/kernel', 'bridge/bias'}
  runs.cut_off(tmp_path / 'run', config, 'at step 3')
  said = capsys.readouterr().out
  assert 'inits.left: new' not in said
  shutil.rmtree(tmp_path / 'one')
  (tmp_path / 'other.npz').unlink()
  train(config, str(tmp_path / 'run'))
  assert json.loads((tmp_path / 'run' / 'result.json').read_text())['step'] == 6


def test_a_tower_of_another_model(data_dir, tmp_path):
  """A single model, and a tower, from a checkpoint of several; and what does not fit is refused."""
  image = dict(variant='mu/4', image_size=(8, 8), in_channels=1)
  small = {f'model__image__{name}': value for name, value in image.items()}
  train(configured('contrastive', data_dir, **small), str(tmp_path / 'lit'))
  towers, path = vit_jax.load(tmp_path / 'lit'), str(tmp_path / 'lit')

  def build(name, **given):
    config = configured(name, data_dir).to_dict() | {'evals': {}} | given
    return built(config_lib.complete(config))

  with one_device():
    single = build('toy_captions', model=dict(name='vit'), init=path)
    assert f"init: of {path} the tower 'image' is read" in single.notes
    got = tree.flatten(single.init().model)
    for name, leaf in tree.flatten(towers.image).items():
      if not name.startswith('head/'):
        np.testing.assert_array_equal(got[name], leaf, err_msg=name)
    classes = build('toy_set', model=dict(name='vit'), init=path, task=dict(name='classification'))
    assert classes.config.model.num_classes == 10
    assert any(note.startswith('head: new, for 10 classes') for note in classes.notes)
    assert not np.any(classes.init().model.head.kernel)
    again = build('contrastive', model=dict(name='two_towers'), init=path)
    state = tree.flatten(tree.merge(again.init().model, again.frozen))
    for name, leaf in tree.flatten(towers).items():
      np.testing.assert_array_equal(state[name], leaf, err_msg=name)
    pair = dict(name='toy_pair', left=dict(VIT, width=24), right=OTHER)
    own = dict(model=pair, task=dict(name='toy_pair'))
    with pytest.raises(RunError, match=r'Leave out what contradicts it: model\.right\.width=8'):
      build('toy_pair', **own, inits={'right': f'{path}?tower=image'})
    own['model'] = {**pair, 'right': dict(scan=False)}
    one = build('toy_pair', **own, inits={'right': f'{path}?tower=image'})
    assert one.config.model.left.width == 24
    assert one.config.model.right.width == 16
    with pytest.raises(RunError, match='of the kind two_towers, not of the kind toy_pair; a tower'):
      build('toy_pair', model=dict(name='toy_pair'), init=path)
    for wrong in ('text', 'imgae'):
      with pytest.raises(RunError, match=f'no tower {wrong!r} of the kind vit: '):
        build('toy_captions', model=dict(name='vit'), init=f'{path}?tower={wrong}')
    with pytest.raises(RunError, match=r'model\.logit_bias=True, which a run .* change to False'):
      build('contrastive', model=dict(name='two_towers', logit_bias=False), init=path)
    other = configured('toy_pair', data_dir, fork=path)
    with pytest.raises(RunError, match=r'fork=.* is a run of another configuration'):
      train(other, str(tmp_path / 'forked'))
    with pytest.raises(RunError, match=r'there is no file .*nowhere'):
      build('toy_pair', **own, inits={'left': f'{tmp_path}/nowhere'})
  for given, message in (
    ({'inits': {'lefd': 'x'}}, r'inits\.lefd: toy_pair has no tower of that name: did you mean le'),
    ({'inits': {'left': 'x'}, 'init': 'y'}, 'init and inits contradict each other'),
    ({'inits': {'left': ''}}, r'inits\.left is empty'),
  ):
    with pytest.raises(RunError, match=message):
      config_lib.check(configured('toy_pair', data_dir).to_dict() | given)
