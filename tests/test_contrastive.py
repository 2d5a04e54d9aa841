"""Images and texts: rows, what does not fit, retrieval, classes by their names."""

import contextlib
import dataclasses
import itertools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vit_jax
from tests import runs
from tests.test_text import clip_files
from vit_jax import config as config_lib
from vit_jax.architecture.card import Card
from vit_jax.core import schema
from vit_jax.core.errors import RunError
from vit_jax.data.fields import Field
from vit_jax.data.rows.texts import Caption, Captions, key
from vit_jax.data.sources.embedded import Features
from vit_jax.evaluate import evaluate, evaluate_checkpoint
from vit_jax.evaluators.retrieval import Looked, Retrieval, ranked
from vit_jax.models.text import TextConfig
from vit_jax.models.two_towers import TwoTowersConfig
from vit_jax.models.vit import ViTConfig
from vit_jax.nn import sharding, tree
from vit_jax.tasks import naming
from vit_jax.tasks.contrastive import Contrastive
from vit_jax.text import TOKENIZERS
from vit_jax.text.plain import Blank, Bytes, Words
from vit_jax.train import train
from vit_jax.training import config as training_config
from vit_jax.training import lanes
from vit_jax.training.evaluation import restore
from vit_jax.training.workdir import Workdir

TINY = dict(width=16, depth=1, mlp_dim=32, num_heads=2)
IMAGE = dict(variant='mu/8', image_size=(16, 16), posemb='sincos', **TINY)
WORDS = Words(vocabulary=('a', 'red', 'disc', 'and', 'blue', 'ring'), length=6)
SOURCE = dict(name='generated', examples=64, held_out=24, generator=dict(
  name='objects', size=(24, 24), small=(2.0, 3.0), large=(4.0, 5.0), most=2))  # fmt: skip


def configured(**changes):
  """A run of a few steps on drawn objects."""
  config = dict(
    total='4 steps', batch_size=16,
    model=dict(name='two_towers', variant='', image=IMAGE, text=dict(variant='clip:B', **TINY)),
    task=dict(name='contrastive', loss_of='sigmoid', tokenizer=dict(name='words', length=14)),
    data=dict(source=SOURCE), optim=dict(lr=1e-2, warmup='1 step'),
    evals=dict(
      two=dict(name='retrieval', split='test_two', wrong='swapped', every='100%'),
      one=dict(name='zeroshot', split='seen_one', templates='a {};the {}', every='100%'),
    ),
    log=dict(every='1 step'), compilation_cache='',
  )  # fmt: skip
  config = config_lib.complete(config).unlock()
  config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return config_lib.complete(config.to_dict())


def one_device():
  return jax.set_mesh(jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1]))


def built(**changes):
  given = training_config.to_dict(configured(**changes))
  with one_device():
    return lanes.experiment(schema.build(training_config.Config, given))


# --- rows ---


def test_captions_are_drawn_and_known_by_their_tokens():
  example = {'text': ('a red disc', 'a blue ring', 'a red disc')}
  caption, rng = Caption(WORDS), np.random.default_rng(0)
  made = [caption.make(example, rng) for _ in range(90)]
  assert {n: (np.shape(x), x.dtype) for n, x in made[0].items()} == {
    n: (array.shape, array.dtype) for n, array in caption.arrays().items()
  }
  rows = {text: WORDS.row(text) for text in example['text']}
  drawn = [next(t for t, row in rows.items() if (row == each['tokens']).all()) for each in made]
  assert 45 <= drawn.count('a red disc') <= 75
  for one, text in zip(made, drawn, strict=True):
    assert (one['same'] == key(rows[text])).all()
  assert caption.make({'text': 'a red disc'}, rng)['tokens'].tolist() == rows['a red disc'].tolist()
  # Whole numbers of 24 bits, which float32 has exactly, and different for different rows.
  keys = np.stack([key(np.array([i, 7])) for i in range(4000)])
  assert keys.dtype == np.float32
  assert (keys == np.floor(keys)).all()
  assert keys.max() < 2**24
  assert len(np.unique(keys, axis=0)) == 4000


def test_captions_of_evaluations():
  row = Captions(WORDS, 3).make({'text': ('a red disc', '', 'a ring', 'a disc')}, None)
  assert row['tokens_known'].tolist() == [1, 0, 1]
  assert row['tokens'][2].tolist() == WORDS.row('a ring').tolist()
  row = Captions(WORDS, 3, 'wrong', 'other').make({'wrong': 'a ring'}, None)
  assert row['other_known'].tolist() == [1, 0, 0]
  assert not row['other'][1:].any()


def test_examples_without_a_text():
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match='has no text'):
    Caption(WORDS).make({'text': ()}, rng)
  drawn = [Caption(WORDS).make({'text': ('', 'a disc')}, rng)['tokens'].tolist() for _ in range(9)]
  assert drawn == [WORDS.row('a disc').tolist()] * 9
  assert Caption(WORDS).make({'text': ''}, rng)['tokens'].tolist() == WORDS.row('').tolist()
  bare = Looked(np.ones(1, np.float32), np.zeros((0, 1), np.float32), (), float('nan'))
  found = types.SimpleNamespace(records=[bare], source=types.SimpleNamespace(name='photos'))
  with pytest.raises(RunError, match='photos: no example has a text'):
    Retrieval().finish({'test': found})
  row = {'image': bare.image, 'text': np.ones((2, 1), np.float32), 'known': np.zeros(2),
         'wrong': np.ones((1, 1), np.float32), 'wrong_known': np.ones(1)}  # fmt: skip
  seen = types.SimpleNamespace(rows=types.SimpleNamespace(needs={'text': 'text'}))
  assert np.isnan(Retrieval(wrong='other').record(row, {'text': ''}, seen).preferred)


# --- what does not fit ---


def test_the_text_tower_is_made_for_the_tokens():
  experiment = built()
  text, tokenizer = experiment.config.model.text, experiment.config.task.tokenizer
  assert tokenizer.vocabulary == experiment.fields['text'].names
  assert (text.vocab_size, text.context_length, text.eot) == (
    tokenizer.size, 14, tokenizer.end
  )  # fmt: skip
  assert tokenizer.known == tokenizer.digest


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (dict(model__text__vocab_size=9), r'the tokenizer has [\d,]+ tokens, and the text tower 9 \('),
    (dict(model__text__context_length=8), r'tokenizer\.length=14 is more than the 8 tokens'),
    (dict(model__text__eot=3), r'looks at token 3 \(model\.text\.eot\), and texts .* end with \d'),
    (dict(task__loss_of='softmax'), r'logit_bias: a softmax does not feel a bias'),
    (dict(task__loss_of='hinge'), "unknown task.loss_of 'hinge'"),
    (dict(task__block=4), r'task\.block=4 is a number of texts of task\.form=ring'),
    (dict(task__most_scale=0.5), r'task\.most_scale=0\.5 must be at least 1'),
    (dict(task__captions=0), r'task\.captions=0 must be at least 1'),
    (dict(task__duplicates='same'), "unknown task.duplicates 'same'"),
    (dict(model__start_scale=-1.0), r'start_scale=-1\.0 must be positive'),
    (dict(model__logit_bias=False, model__start_bias=-3.0), r'start_bias=-3\.0 is of .*logit_bias'),
    (dict(evals__two__k=(0,)), r'k=\(0,\) must be positive'),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_said(changes, message):
  with pytest.raises(RunError, match=message):
    built(**changes)


def test_a_tower_that_looks_at_the_largest_token():
  """As old CLIPs: the end of a text must be that one."""
  model = TwoTowersConfig(
    '', vit_config(), dataclasses.replace(text_config(), vocab_size=300, eot=-1), logit_bias=False
  ).resolve()  # fmt: skip
  fields = {'image': Field('image', dtype='uint8'), 'text': Field('text')}
  for tokenizer, message in (
    (WORDS, None),
    (Blank(size=9, end=2), 'end with 2'),
    (Blank(size=9, end=-1), 'no end'),
  ):
    task = Contrastive(tokenizer=dataclasses.replace(tokenizer, length=6))
    if message is None:
      task.adapt(model, fields)
      continue
    with pytest.raises(RunError, match=f'looks at the largest token .* {message}'):
      task.adapt(model, fields)


def test_tokens_that_are_none():
  with one_device():
    tower = text_config().create(jax_rngs())
    for number in (-1, 9):
      with pytest.raises(ValueError, match=f'no token {number}: this model has those from 0 to 8'):
        tower(jnp.full((1, 6), number))
    with pytest.raises(ValueError, match='7 tokens are more than the 6'):
      tower(jnp.zeros((1, 7), jnp.int32))


def test_images_are_measured():
  experiment = built(task__measure=True)
  task = experiment.config.task
  assert len(task.mean) == len(task.std) == 3
  assert all(0 < value < 0.5 for value in task.mean)
  assert any('task.measure' in note for note in experiment.notes)
  with pytest.raises(RunError, match=r'task\.measure is of images, and task\.vectors are there'):
    built(task__measure=True, task__vectors='vector')


def test_other_models_and_data_without_words():
  fields = {'image': Field('image'), 'text': Field('text')}
  with pytest.raises(RunError, match='name=words needs words, and the data do not say theirs'):
    Contrastive(tokenizer=Words()).settled(fields)
  with pytest.raises(RunError, match=r'needs model\.name=two_towers, not vit'):
    Contrastive(tokenizer=WORDS).fitted(vit_jax.architecture.ViTArchitecture('mu/4'), fields)


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_where_scale_and_bias_begin_and_end(loss):
  """As in the papers, or as given; a scale that grows stops at its bound, and may come back."""
  with one_device():
    model = TwoTowersConfig('', vit_config(), text_config(), logit_bias=loss == 'sigmoid')
    towers = model.create(jax_rngs())
    assert float(towers.scale) == pytest.approx(10 if loss == 'sigmoid' else 1 / 0.07)
    assert float(towers.bias) == (-10 if loss == 'sigmoid' else 0)
    own = dict(start_scale=5.0, **(dict(start_bias=-2.0) if loss == 'sigmoid' else {}))
    towers = dataclasses.replace(model, **own).create(jax_rngs())
    assert float(towers.scale) == pytest.approx(5)
    assert float(towers.bias) == (-2 if loss == 'sigmoid' else 0)
    task = Contrastive(tokenizer=WORDS, most_scale=4.0)
    kept = task.kept(towers)
    assert float(kept.scale) == pytest.approx(4)
    assert float(dataclasses.replace(task, most_scale=0.0).kept(towers).scale) == pytest.approx(5)
    large = dataclasses.replace(model, start_scale=117.0).create(jax_rngs())  # as of a SigLIP
    usual = Contrastive(tokenizer=WORDS, loss_of=loss).kept(large)
    assert float(usual.scale) == pytest.approx(117 if loss == 'sigmoid' else 100)
    others = {n: x for n, x in tree.flatten(towers).items() if n != 'logit_scale'}
    assert all((tree.flatten(kept)[n] == x).all() for n, x in others.items())


def vit_config():
  return ViTConfig(**IMAGE)


def text_config():
  return TextConfig('clip:B', vocab_size=9, context_length=6, **TINY)


def jax_rngs():
  from flax import nnx

  return nnx.Rngs(0)


# --- retrieval ---


def by_hand(images, texts, said):
  """Ranks by the definition, one comparison at a time."""
  flat = [(i, text, s) for i, own in enumerate(texts) for text, s in zip(own, said[i], strict=True)]
  like = lambda a, b: float(np.float64(a) @ np.float64(b))  # noqa: E731
  of_texts, of_images = [], []
  for i, image in enumerate(images):
    if len(texts[i]):
      right = [like(image, t) for _, t, s in flat if s in said[i]]
      wrong = [like(image, t) for _, t, s in flat if s not in said[i]]
      of_texts.append(sum(x >= max(right) - 1e-6 for x in wrong))
  for _, text, s in flat:
    right = [like(image, text) for image, own in zip(images, said, strict=True) if s in own]
    wrong = [like(image, text) for image, own in zip(images, said, strict=True) if s not in own]
    of_images.append(sum(x >= max(right) - 1e-6 for x in wrong))
  return of_texts, of_images


def test_ranks_are_those_of_the_definition(monkeypatch):
  """Several captions or none, the same caption of several images, ties, and little memory."""
  rng = np.random.default_rng(0)
  unit = lambda x: np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))  # noqa: E731
  images = unit(rng.normal(size=(30, 4)).round())
  counts = rng.integers(0, 4, 30)
  texts = [unit(rng.normal(size=(n, 4)).round() + 0.1) for n in counts]
  said = [tuple(f'text {rng.integers(25)}' for _ in range(n)) for n in counts]
  wanted = by_hand(images, texts, said)
  for chunk in (1 << 24, 64):
    monkeypatch.setattr('vit_jax.evaluators.retrieval._CHUNK', chunk)
    found = ranked(images, texts, said)
    assert found.texts.tolist() == wanted[0]
    assert found.images.tolist() == wanted[1]


def test_a_model_that_makes_all_the_same_finds_nothing():
  same = np.full((50, 7), 7**-0.5, np.float32)
  found = ranked(same, list(same[:, None]), [(f'text {i}',) for i in range(50)])
  assert found.texts.tolist() == found.images.tolist() == [49] * 50


# --- a run ---


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('contrastive') / 'run'
  return workdir, train(configured(), str(workdir))


def test_scores_are_those_of_the_vectors(run):
  """Zero-shot and retrieval, computed from the model by hand in float64."""
  workdir, result = run
  with one_device():
    experiment, state = restore(str(workdir))
    model = tree.merge(state.model, experiment.frozen)
    task, fields = experiment.config.task, experiment.fields
    names = fields['label'].names
    told = [[task.tokenizer.row(t.format(name)) for t in ('a {}', 'the {}')] for name in names]
    read = np.float64(model.encode_text(jnp.array(told).reshape(-1, 14))).reshape(len(names), 2, -1)
    classes = read.mean(1) / np.linalg.norm(read.mean(1), axis=-1, keepdims=True)
    source = experiment.config.data.open('seen_one')
    examples = [source[i] for i in range(len(source))]
    see = lambda some: jnp.array(np.stack([make(example['image']) for example in some]))  # noqa: E731
    seen = np.float64(model.encode_image(see(examples)))
    right = (seen @ classes.T).argmax(1) == [example['label'] for example in examples]
    assert result['metrics']['one/top1'] == pytest.approx(right.mean())
    source = experiment.config.data.open('test_two')
    examples = [source[i] for i in range(len(source))]
    seen = np.float64(model.encode_image(see(examples)))
    rows = lambda field: jnp.array([task.tokenizer.row(each[field]) for each in examples])  # noqa: E731
    own, wrong = (np.float64(model.encode_text(rows(field))) for field in ('text', 'swapped'))
  ranks = by_hand(seen, list(own[:, None]), [(example['text'],) for example in examples])
  for name, of in zip(('text', 'image'), ranks, strict=True):
    for k in (1, 5, 10):
      assert result['metrics'][f'two/{name}_{k}'] == pytest.approx((np.array(of) < k).mean())
  more = (own * seen).sum(-1) - (wrong * seen).sum(-1)
  assert result['metrics']['two/preferred'] == pytest.approx((more > 1e-6).mean())
  assert result['metrics']['two/alignment'] == pytest.approx(((own - seen) ** 2).sum(-1).mean())
  apart = ((seen[:, None] - seen) ** 2).sum(-1)[~np.eye(len(seen), dtype=bool)]
  assert result['metrics']['two/uniformity'] == pytest.approx(
    np.log(np.exp(-2 * apart).mean()), abs=1e-5
  )


def make(image):
  """As evaluations see it."""
  import cv2

  return cv2.resize(image, (16, 16), interpolation=cv2.INTER_AREA).astype(np.float32) / 127.5 - 1


def test_predictions_by_names(run, tmp_path, typed):
  """Of any classes; the probabilities are those of the model, and a picture shows them."""
  workdir, _ = run
  rng = np.random.default_rng(0)
  Image.fromarray(rng.integers(256, size=(24, 24, 3), dtype=np.uint8)).save(tmp_path / 'x.png')
  out = tmp_path / 'out'
  status, said, _ = typed(
    'vit_jax.predict', workdir, tmp_path / 'x.png', '--templates=a {}', f'--out={out}',
    '--classes=red circle,blue star, a white square',
  )  # fmt: skip
  assert status == 0
  (row,) = json.loads((out / 'predictions.json').read_text())
  assert {each['class'] for each in row['classes']} == {'red circle', 'blue star', 'a white square'}
  assert (out / row['picture']).exists()
  assert '%' in said
  with one_device():
    model = vit_jax.load(workdir)
    task, _ = vit_jax.tasks.of(model.card)
    named = naming.classifier(model, task, ('red circle', 'blue star'), 'a {}')
    logits = np.asarray(named(jnp.array(make(np.asarray(Image.open(tmp_path / 'x.png'))))[None]))
  chances = {each['class']: each['probability'] for each in row['classes']}
  wanted = 1 / (1 + np.exp(-np.float64(logits[0])))
  assert [chances['red circle'], chances['blue star']] == pytest.approx(wanted, rel=1e-4)
  status, _, error = typed('vit_jax.predict', workdir, tmp_path / 'x.png')
  assert status
  assert '--classes="a cat,a dog"' in error
  status, _, error = typed(
    'vit_jax.predict', workdir, tmp_path / 'x.png', '--classes=a,b', '--vocabulary=v.json'
  )
  assert status
  assert '--vocabulary=v.json: words, by which this model reads texts, is in no file' in error


# --- tokenizers that go with a model ---


def test_a_text_tower_keeps_its_tokenizer(run):
  """What a run leaves unset is that of the checkpoint it starts from; another one is refused."""
  path = str(run[0])
  with one_device():
    wanted = vit_jax.load(path).card.task['tokenizer']
  words = tuple(wanted['vocabulary'])
  for given in ({}, dict(task__tokenizer__vocabulary=words)):
    experiment = built(init=path, **given)
    found = experiment.config.task.tokenizer
    assert (found.vocabulary, found.length, found.known) == (words, 14, wanted['known'])
    assert not any('tokens' in note for note in experiment.notes)
  short = built(init=path, task__tokenizer__length=9)
  assert f'texts have 9 tokens, those that {path} was trained with 14' in short.notes
  alone = built(inits={'image': path}, task__tokenizer__vocabulary=words[::-1])
  assert alone.config.task.tokenizer.vocabulary == words[::-1]
  with pytest.raises(RunError, match=r'another one than that of .*run.* leave out its vocabulary'):
    built(init=path, task__tokenizer__vocabulary=words[::-1])
  task = {'name': 'contrastive', 'tokenizer': wanted}
  with pytest.raises(RunError, match=r'by the tokenizer words, and .* not bytes'):
    Contrastive(tokenizer=Bytes()).begun(task, path, 'text')


def vocabulary(file, *texts):
  """Writes one of 270 tokens."""
  from vit_jax.text import jsons

  file.write_text(jsons.trained(texts, 270))
  return file.read_bytes()


def test_a_run_goes_on_with_the_vocabulary_it_began_with(tmp_path):
  """Whatever has become of the file; and a new run in the same place has that which is there."""
  place, file = tmp_path / 'run', tmp_path / 'v.json'
  first, copy = vocabulary(file, 'a red circle above a blue square'), place / 'vocabulary/v.json'
  config = configured(total='2 steps').to_dict()
  config['task']['tokenizer'] = dict(name='json', file=str(file), length=14)
  config = config_lib.complete({**config, 'evals': {'two': config['evals']['two']}})
  scores = {n: v for n, v in train(config, str(place))['metrics'].items() if n.startswith('two/')}
  known = Workdir(str(place)).checkpoints().facts()['task']['tokenizer']['known']
  other = vocabulary(file, 'zebras quietly juggle mangos')
  assert evaluate(str(place)) == pytest.approx(scores)
  with one_device():
    assert restore(str(place))[0].config.task.tokenizer.known == known
    assert vit_jax.load(place).card.task['tokenizer']['file'] == str(copy)
  copy.unlink()
  with pytest.raises(RunError, match='this is another tokenizer than the one'):
    evaluate(str(place))
  copy.write_bytes(first)
  train(config_lib.complete({**config.to_dict(), 'seed': 1}), str(place), overwrite=True)
  assert copy.read_bytes() == other


def test_a_vocabulary_goes_along(tmp_path, caplog, typed):
  """With whatever is written of a model; what readers are not told of is said."""
  (tmp_path / 'files').mkdir()
  _, vocab, whole, _ = clip_files(tmp_path / 'files')
  fields = {'image': {'kind': 'image', 'dtype': 'uint8'}, 'text': {'kind': 'text'}}
  small = dict(width=16, depth=1, mlp_dim=32, num_heads=2)

  def towers(name, **given):
    tokenizer = TOKENIZERS[name](length=24, **given).named
    model = TwoTowersConfig(
      '', ViTConfig('clip:B/4', image_size=(8, 8), num_classes=6, mlp='quick_gelu', **small),
      TextConfig('clip:B', vocab_size=tokenizer.size, context_length=24, num_classes=6,
                 mlp='quick_gelu', **small), logit_bias=False,
    ).create(jax_rngs())  # fmt: skip
    task = {'name': 'contrastive', 'tokenizer': {'name': name, **dataclasses.asdict(tokenizer)}}
    model.card = Card('vit_jax', (8, 8), (0.5,) * 3, (0.5,) * 3, task=task, fields=fields)
    return model, tokenizer

  with one_device():
    for file, dialect in itertools.product((vocab, whole), ('vit_jax', 'transformers', 'openai')):
      model, tokenizer = towers('clip', file=str(file))
      place = tmp_path / f'{dialect}-{file.stem}'
      vit_jax.save(model, place, dialect)
      read, _ = vit_jax.tasks.of(vit_jax.load(place).card)
      assert read.tokenizer.known == tokenizer.known
      assert all(str(path).startswith(str(place)) for path in read.tokenizer.files)
      assert (read.tokenizer.row('the cat') == tokenizer.row('the cat')).all()
    caplog.clear()
    vit_jax.save(towers('words', vocabulary=('a', 'cat'))[0], tmp_path / 'words', 'transformers')
    assert 'the tokenizer words is dropped: transformers has no place for it' in caplog.text
    model, _ = towers('clip', file=str(vocab))
    vocab.unlink()
    for dialect in ('vit_jax', 'transformers'):
      caplog.clear()
      vit_jax.save(model, tmp_path / f'without-{dialect}', dialect)
      assert f'its vocabulary is not taken along: there is no file {vocab}' in caplog.text
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'x.png')
  bare = tmp_path / 'without-transformers'
  status, _, error = typed('vit_jax.predict', bare, tmp_path / 'x.png', '--classes=a,b')
  assert status
  assert 'there is no vocabulary by the checkpoint: --vocabulary=FILE, for clip' in error
  for name in ('cat', 'dog'):
    (tmp_path / 'photos' / name).mkdir(parents=True)
    (tmp_path / 'photos' / name / 'x.png').write_bytes((tmp_path / 'x.png').read_bytes())
  judged = dict(name='zeroshot', dir=str(tmp_path / 'photos'), split='.')
  config = dict(
    total='1 step', batch_size=8, model=dict(name='two_towers', variant='clip:B/32'),
    data=dict(source=dict(name='folder', dir=str(tmp_path / 'photos'))), evals={'photos': judged},
  )  # fmt: skip
  for file, message in ((str(whole), ''), ('', r'tokenizer\.file is missing')):
    task = dict(name='contrastive', tokenizer=dict(name='clip', file=file))
    with pytest.raises(RunError, match=message) if message else contextlib.nullcontext():
      scores = evaluate_checkpoint(str(bare), config_lib.complete({**config, 'task': task}))
      assert scores['photos/top1'] in (0, 0.5)  # both pictures are the same


def test_a_digest_in_a_configuration_is_that_of_its_file():
  with pytest.raises(RunError, match='this is another tokenizer than the one'):
    built(task__tokenizer__known='0' * 16)


# --- features instead of images ---


def test_training_from_features_is_training_from_images(tmp_path, typed):
  """Of a locked tower: losses, evaluations and parameters are the same; the run sees images."""
  with one_device():
    vit = vit_jax.create('mu/8', image_size=(16, 16), posemb='sincos', **TINY)
    vit_jax.save(vit, tmp_path / 'tower', 'vit_jax')
  (tmp_path / 'data.py').write_text(
    f'from vit_jax.config import complete\n'
    f'def get_config():\n  return complete(dict(data=dict(source={SOURCE!r}), total="1 step",\n'
    f'    batch_size=8, model=dict(variant="mu/8")))\n'
  )
  table = tmp_path / 'features.parquet'
  status, _, error = typed(
    'vit_jax.embed', tmp_path / 'tower', tmp_path / 'data.py', f'--out={table}',
    '--split=train,test_two', '--features=pooled',
  )  # fmt: skip
  assert status == 0, error
  own = dict(
    model__logit_bias=True, task__frozen=('image/.*',), inits={'image': str(tmp_path / 'tower')},
    evals__two__wrong='',
  )  # fmt: skip
  images = configured(**own).to_dict()
  images['evals'].pop('one')
  given = json.loads(json.dumps(images))
  given['data']['source'] = dict(name='features', file=str(table))
  given['task']['vectors'] = 'vector'
  results = [
    train(config_lib.complete(each), str(tmp_path / name))
    for name, each in (('images', images), ('features', given))
  ]
  lines = [runs.lines(tmp_path / name) for name in ('images', 'features')]
  for one, two in zip(*lines, strict=True):
    shared = one.keys() & two.keys() - {'images_per_second'}
    assert {n: one[n] for n in shared} == pytest.approx({n: two[n] for n in shared}, rel=1e-4)
  for name, value in results[0]['metrics'].items():
    assert results[1]['metrics'][name] == pytest.approx(value, abs=1e-4), name
  assert results[1]['flops']['training_total'] < results[0]['flops']['training_total']
  with one_device():
    both = [tree.flatten(vit_jax.load(tmp_path / name)) for name in ('images', 'features')]
  for name, leaf in both[0].items():
    np.testing.assert_allclose(both[1][name], leaf, atol=1e-5, err_msg=name)
  Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(tmp_path / 'x.png')
  status, said, _ = typed(
    'vit_jax.predict', tmp_path / 'features', tmp_path / 'x.png', '--classes=red circle,blue star'
  )
  assert status == 0
  assert 'red circle' in said
  # Another tower of the same shape, and one from random values, are not that of the features.
  with one_device():
    other = vit_jax.create('mu/8', image_size=(16, 16), posemb='sincos', seed=1, **TINY)
    vit_jax.save(other, tmp_path / 'other', 'vit_jax')
  for inits in ({'image': str(tmp_path / 'other')}, {}):
    wrong = {**given, 'inits': inits, 'model': {**given['model'], 'image': IMAGE}, 'seed': 5}
    cfg = training_config.to_dict(config_lib.complete(wrong))
    with one_device():
      experiment = lanes.experiment(schema.build(training_config.Config, cfg))
      with pytest.raises(RunError, match=r'et/train has no features of the image tower: of a test'):
        experiment.init()
  for changes, message in (
    (dict(frozen=()), r'features stand for an image tower that is not trained: --config'),
    (dict(vectors='features'), r"the data has no field 'features' of the kind vector"),
  ):
    wrong = json.loads(json.dumps(given))
    wrong['task'] |= changes
    cfg = schema.build(
      training_config.Config, training_config.to_dict(config_lib.complete(wrong))
    )  # fmt: skip
    with pytest.raises(RunError, match=message), one_device():
      lanes.experiment(cfg)
  for source, message in (
    (dict(file=str(tmp_path / 'no.parquet')), 'there is no file'),
    (dict(file=str(table), features='cls'), "has no features 'cls'"),
  ):
    with pytest.raises(RunError, match=message):
      Features(**source).open('train')
  with pytest.raises(RunError, match="has no split 'val'"):
    Features(file=str(table)).open('val')
