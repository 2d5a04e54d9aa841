"""Predictions of a checkpoint on images: `python -m vit_jax.predict CHECKPOINT IMAGE...`."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epy

from vit_jax.architecture import SINGLE, ViTArchitecture, encoders
from vit_jax.convert import arguments
from vit_jax.core import command, paths
from vit_jax.core.errors import RunError
from vit_jax.core.paths import AnyPath, Path, at, inside
from vit_jax.data.examples import Example, Source
from vit_jax.data.fields import Field, named
from vit_jax.data.rows.columns import Columns
from vit_jax.data.views import View
from vit_jax.tasks.contrastive import Contrastive
from vit_jax.tasks.images import Images
from vit_jax.tasks.images import prepare as prepare
from vit_jax.tasks.task import Prediction, Seen
from vit_jax.text.tokenizer import Filed

# Arguments are checked before JAX is there.
with epy.lazy_imports():
  import jax
  import numpy as np

  from vit_jax import tasks
  from vit_jax.convert import notes, read
  from vit_jax.data import crops, files, geotiff, pipeline, preprocess
  from vit_jax.draw import pictures
  from vit_jax.explore import attention as maps
  from vit_jax.nn import sharding
  from vit_jax.tasks import naming, scenes

FORMATS = ('json', 'csv')


class Inputs(Source):
  """Image files, of which nothing else is known."""

  name = 'inputs'

  def __init__(
    self, files: Sequence[AnyPath | tuple[AnyPath, ...]], names: Sequence[str] = ('image',),
    made: Callable[[bytes], Any] = bytes,
  ):  # fmt: skip
    """Files of images.

    Args:
      files: of each example its file, or those of several images.
      names: of the fields that these are.
      made: what becomes of the bytes of a file.
    """
    self.fields, self._made = dict.fromkeys(names, Field('image')), made
    self._files = [own if isinstance(own, tuple) else (own,) for own in files]

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, index: int) -> Example:
    example: dict[str, Any] = {'name': str(self._files[index][0])}
    for name, path in zip(self.fields, self._files[index], strict=True):
      try:
        example[name] = self._made(path.read_bytes())
      except OSError as error:
        raise RunError(f'cannot read {path}: {error.strerror}') from None
      except ValueError as error:
        raise RunError(f'{path} {error}') from None
    return example


class Predicted(NamedTuple):
  """What a model says of an example.

  Attributes:
    example: as its source has it.
    prediction: in words, and in the frame of the image.
    outputs: of the task, for this example.
    image: as the model saw it, (height, width, channels), before it was normalised; None where it
      saw patches.
  """

  example: Example
  prediction: Any
  outputs: dict[str, Any]
  image: Any


class Predictor:
  """A model with its task, that predicts as in evaluations.

  Attributes:
    task: that the model was trained for.
    seen: how examples are seen.
  """

  def __init__(self, model: Any, *, top: int = 5, batch_size: int = 32, attention: bool = False):
    """Create it under the mesh that the model is on.

    Args:
      model: with a card; see `vit_jax.load`.
      top: how many classes are named, where classes are predicted.
      batch_size: images at a time; rounded up to a multiple of the devices.
      attention: whether outputs have 'attention' over the patches; see `explore.attention`.

    Raises:
      RunError: if the model cannot predict, or has no attention to show.
    """
    card = model.card
    self.task, fields = tasks.of(card)
    view = View(crops.of_card(card))
    rows = self.task.rows(model.config, fields, view, train=False)
    self.seen = Seen(rows, fields, top)
    devices = sharding.shards('batch')
    self.batch_size = -(-batch_size // devices) * devices
    if attention and 'image' not in rows.arrays():
      raise RunError('a model that sees rows of patches has no attention that can be drawn')
    if attention:
      maps.looking(model.config)
    self._model = model

    def predict(model: Any, batch: Any) -> Any:
      batch = self.task.augment(batch, None, {})
      outputs = dict(self.task.predict(model, batch))
      if attention:
        outputs['attention'] = maps.drawn_on(model, batch['image'])
      return outputs

    self._predict = jax.jit(predict)

  def __call__(
    self, source: Source, *, broken: Callable[[str, ValueError], None] | None = None
  ) -> Iterator[Predicted]:
    """Predictions in the order of a source of images.

    Args:
      source: whose examples have the images that the task needs; the rest is the truth, if there.
      broken: is told of examples that cannot be used; without it, RunError.
    """
    layout = sharding.BatchLayout(self.batch_size)
    rows = self.seen.rows.given(source.fields)
    batches = pipeline.eval_batches(rows, source, layout.batch_size, layout.rows, skip=broken)
    waiting: list[Any] = []
    for batch in pipeline.iterate(batches):
      waiting.append((batch, self._predict(self._model, layout.place(batch))))
      if len(waiting) > 1:  # what is on the devices is computed while this is drawn
        yield from self._decoded(source, layout, *waiting.pop(0))
    for item in waiting:
      yield from self._decoded(source, layout, *item)

  def _decoded(self, source: Source, layout: Any, batch: Any, outputs: Any) -> Iterator[Predicted]:
    own = {name: layout.local(value) for name, value in outputs.items()}
    for place in np.flatnonzero(batch['mask'] > 0):
      example = source[int(batch['index'][place])]
      row = {name: value[place] for name, value in own.items()}
      prediction = self.task.decode(row, example, self.seen)
      image = batch['image'][place] if 'image' in batch else None
      yield Predicted(example, prediction, row, image)

  def chosen(self, bands: Sequence[int]) -> Callable[[bytes], Any]:
    """What makes of a file its bands of these numbers, 0 where it has none; see `Inputs`.

    Raises:
      RunError: unless there are as many as the model takes, and some are in the file.
    """
    if not isinstance(self.task, Images) or not isinstance(self.seen.rows, Columns):
      raise RunError('--bands is for models that see an image as it is')
    image = self.seen.rows.images[0]
    check_bands(bands, image.channels)
    fill = self.task.usual(image.channels, image.dtype)
    return lambda data: preprocess.chosen(data, bands, fill)

  def mapped(
    self, files: Sequence[AnyPath], map_file: Path, scores_file: Path, overlap: float = 0.5,
    bands: Sequence[int] = (),
  ) -> tuple[Prediction, np.ndarray]:  # fmt: skip
    """Writes maps of a scene of any size; see `scenes.mapped`. What they say, and a picture."""
    found = scenes.mapped(
      self._model, self.task, self.seen, files, map_file=map_file, scores_file=scores_file,
      batch=self.batch_size, overlap=overlap, bands=bands,
    )  # fmt: skip
    return found.prediction, self.task.draw(found.prediction, found.example, self.seen)

  def drawn(self, predicted: Predicted) -> np.ndarray:
    """A picture of a prediction, uint8 (height, width, 3), and of what it drew on, if asked for."""
    picture = self.task.draw(predicted.prediction, predicted.example, self.seen)
    if 'attention' not in predicted.outputs:
      return picture
    return pictures.beside(picture, pictures.seen(predicted.image, predicted.outputs['attention']))


def images_in(paths: Iterable[str]) -> list[AnyPath]:
  """Image files, those in folders and zip files included; what else is there is said on stderr.

  Raises:
    RunError: for a path that is not there, or a folder without images.
  """
  found = []
  for path in map(inside, paths):
    if path.is_dir():
      passed = files.Passed()
      images = [inside(image) for image in files.images(path, passed)]
      text = f'passed over: {passed}' if str(passed) else ''
      if not images:
        raise RunError(f'{path} holds no images' + f'; {text}' * bool(text))
      if text:
        print(f'{path}: {text}', file=sys.stderr)
      found += images
    elif path.is_file():
      found.append(path)
    else:
      raise RunError(f'there is no file {path}')
  return found


def together(given: Sequence[str], names: Sequence[str]) -> list[tuple[AnyPath, ...]]:
  """Of each example the files of its images.

  Args:
    given: image files, or folders or zip files of them, one for each name in turn; of folders the
      files of the same name belong together.
    names: of the images of an example.

  Raises:
    RunError: where one has no counterpart, and as `images_in`.
  """
  if len(names) == 1:
    return [(path,) for path in images_in(given)]
  order = ', '.join(names)
  if len(given) % len(names):
    raise RunError(
      f'the model takes {len(names)} images for each prediction, in the order {order}: '
      f'{len(given)} paths are given'
    )
  found: list[tuple[AnyPath, ...]] = []
  for first in range(0, len(given), len(names)):
    several = [images_in([path]) for path in given[first : first + len(names)]]
    if any(len(images) > 1 for images in several):
      every = [{image.name: image for image in images} for images in several]
      for path, own in zip(given[first:], every, strict=False):
        for one, other in ((own, every[0]), (every[0], own)):
          if lone := sorted({*one} - {*other}):
            raise RunError(
              f'{given[first]} and {path} hold images of a place by the same name, and of '
              f'{files.few(lone, 3)} there is only one'
            )
      several = [[own[name] for name in every[0]] for own in every]
    found += zip(*several, strict=True)
  return found


class _Folder:
  """Where predictions are written: one table, and pictures beside it."""

  def __init__(self, folder: str, format: str):
    self.path, self._format = at(folder), format
    self._rows: list[dict[str, Any]] = []
    self._names: set[str] = set()
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise RunError(f'cannot write to --out={self.path}: {error.strerror}') from None

  def add(self, predicted: Predicted, picture: np.ndarray) -> None:
    """Writes the pictures of a prediction, and notes the rest."""
    arrays = {'picture': picture, **predicted.prediction.arrays}
    files = self._free(at(predicted.example['name']).stem, arrays)
    for kind, array in arrays.items():
      paths.write_bytes(self.path / files[kind], pictures.png(array))
    self._rows.append({'image': predicted.example['name'], **files, **predicted.prediction.facts})

  def add_scene(self, name: str, write: Callable[[dict[str, Path]], tuple[Any, np.ndarray]]) -> Any:
    """Writes the maps of a scene, at the places that `write` gets; returns the prediction."""
    files = self._free(at(name).stem, ('picture', 'map', 'scores'), {'map': 'tif', 'scores': 'tif'})
    prediction, picture = write({kind: self.path / file for kind, file in files.items()})
    paths.write_bytes(self.path / files['picture'], pictures.png(picture))
    self._rows.append({'image': name, **files, **prediction.facts})
    return prediction

  def _free(
    self, stem: str, kinds: Iterable[str], suffixes: Mapping[str, str] | None = None
  ) -> dict[str, str]:
    """Names of files for an image, of which none was written before: STEM.png, STEM_map.png."""
    ends = {k: ('' if k == 'picture' else f'_{k}') for k in kinds}
    for number in itertools.count(1):
      name = stem if number == 1 else f'{stem}_{number}'
      files = {k: f'{name}{end}.{(suffixes or {}).get(k, "png")}' for k, end in ends.items()}
      if not self._names & {*files.values()}:
        self._names |= {*files.values()}
        return files
    raise AssertionError

  def finish(self) -> Path:
    """Writes the table."""
    file = self.path / f'predictions.{self._format}'
    if self._format == 'json':
      paths.write_json(file, self._rows)
      return file
    flat = [_flat(row) for row in self._rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator='\n')
    table.writeheader()
    table.writerows(flat)
    paths.write_text(file, text.getvalue())
    return file


def _flat(value: Any, name: str = '') -> dict[str, Any]:
  """Nested values by dotted name."""
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parts = (_flat(inner, f'{name}.{key}' if name else str(key)) for key, inner in items)
    return {key: each for part in parts for key, each in part.items()}
  return {name: value}


def main(
  checkpoint: str, image: list[str], top: int, batch_size: int, labels: str | None,
  choice: Mapping[str, Any], out: str = '', format: str = 'json', attention: bool = False,
  windows: bool = False, overlap: float = 0.5, bands: str = '', classes: str = '',
  templates: str = 'photo', vocabulary: str = '',
) -> int:  # fmt: skip
  """Prints, and perhaps writes, what is predicted for each image."""
  if top < 1 or batch_size < 1:
    raise RunError('--top and --batch_size must be at least 1')
  if attention and not out:
    raise RunError('--attention is drawn: give a folder for pictures, --out=DIR')
  numbers = _numbers(bands)
  folder = _Folder(out, format) if out else None
  with jax.set_mesh(sharding.make_mesh('data')):
    with notes.printed(sys.stderr):
      opened = read.open_checkpoint(checkpoint, **choice)
      _check_head(opened)
      names = getattr(tasks.of(opened.card)[0], 'images', ('image',))
      inputs = together(image, names)
      model = read.model_of(opened)
      model = _reading(model, classes, templates, vocabulary)
      model.card = tasks.named(model.card, _names(labels, model))
    _check_size(checkpoint, model)
    if getattr(model.config, 'num_classes', 0) == 1:
      print('note: one class: the sigmoid of its logit', file=sys.stderr)
    failed, done = [], 0

    def broken(name: str, error: ValueError) -> None:
      failed.append(name)
      print(f'error: {name}: {error}', file=sys.stderr)

    predictor = Predictor(model, top=top, batch_size=batch_size, attention=attention)
    made = predictor.chosen(numbers) if numbers else bytes
    said = scenes.says(predictor.task)
    large = [own for own in inputs if windows or (said and all(map(geotiff.is_placed, own)))]
    small = [own for own in inputs if own not in large]
    if large and not folder:
      raise RunError(f'the map of {large[0][0]} is written: give a folder for it, --out=DIR')
    began = start = time.perf_counter()
    try:
      for scene in large:
        assert folder
        print(*scene)
        prediction = folder.add_scene(
          str(scene[0]),
          lambda f, scene=scene: predictor.mapped(scene, f['map'], f['scores'], overlap, numbers),
        )
        done += 1
        for line in predictor.task.lines(prediction):
          print(f'  {line}')
      for predicted in predictor(Inputs(small, names, made), broken=broken) if small else ():
        start = start if done else time.perf_counter()  # the first batch was compiled
        done += 1
        print(predicted.example['name'])
        for line in predictor.task.lines(predicted.prediction):
          print(f'  {line}')
        if folder:
          folder.add(predicted, predictor.drawn(predicted))
    finally:
      if folder and done:
        print(f'written: {folder.finish()}', file=sys.stderr)
    now = time.perf_counter()
    later = max(0, done - predictor.batch_size)
    rate = f', {later / (now - start):,.1f} behind the first batch' if later else ''
    devices = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    text = f'{done:,} images in {now - began:.1f} s on {devices}'
    print(f'{text}: {done / (now - began):,.1f} images/s{rate}', file=sys.stderr)
  return 1 if failed else 0


def _numbers(bands: str) -> tuple[int, ...]:
  """Of bands, as the command has them."""
  try:
    return tuple(int(number) for number in bands.split(',')) if bands else ()
  except ValueError:
    raise RunError(f'--bands={bands!r}: write numbers, such as 4,3,2') from None


def check_bands(bands: Sequence[int], channels: int) -> None:
  """Raises RunError unless there is one for each channel, and some are not 0."""
  if len(bands) != channels or min(bands) < 0 or not max(bands):
    raise RunError(
      f'--bands={",".join(map(str, bands))}: the model takes {channels}; give the number of each '
      'in the files, from 1 on, or 0 for one that they do not have'
    )


def _reading(model: Any, classes: str, templates: str, vocabulary: str) -> Any:
  """A model that reads texts as a classifier of the classes they name; any other as it is."""
  task: Any = tasks.of(model.card)[0]
  reads = isinstance(task, Contrastive)
  if reads and not classes:
    raise RunError(
      'this model reads texts: say among which classes it is to choose, --classes="a cat,a dog"'
    )
  if not classes:
    return model
  if not reads:
    raise RunError(
      f'--classes is for a model that reads texts, and this is a {model.config.kind} trained for '
      f'{tasks.described(task)["name"]}'
    )
  if vocabulary and not isinstance(task.tokenizer, Filed):
    raise RunError(f'--vocabulary={vocabulary}: {task.tokenizer.kind}, by which this model reads '
                   'texts, is in no file')  # fmt: skip
  if not vocabulary and isinstance(task.tokenizer, Filed) and not task.tokenizer.file:
    raise RunError(
      f'there is no vocabulary by the checkpoint: --vocabulary=FILE, for {task.tokenizer.kind}'
    )
  if vocabulary:
    tokenizer = dataclasses.replace(task.tokenizer, file=vocabulary)
    task = dataclasses.replace(task, tokenizer=tokenizer)
  return naming.classifier(model, task, named(classes), templates)


def _check_head(opened: Any) -> None:
  """Raises RunError unless a checkpoint has a head that was trained, where it needs one."""
  config, changes = opened.config, opened.changes
  if not isinstance(config, SINGLE):
    if not opened.card.task:
      raise RunError(f'{opened.where} holds a model of the kind {config.kind}, and does not say '
                     'what it was trained for')  # fmt: skip
    return
  classes = config.num_classes
  wanted = changes.get('num_classes', classes)
  if changes.get('num_classes') == 0:
    raise RunError('num_classes=0 takes away the head that predictions come from: leave it out')
  if not classes:
    raise RunError(f'{opened.where} has no head for classification: it only gives features')
  if wanted != classes:
    raise RunError(
      f'{opened.where} has a head for {classes or "no"} classes, and num_classes={wanted} would '
      'predict with one that was never trained: leave num_classes out, or train with '
      f'config.init={opened.where}'
    )
  if head := sorted(n for n in opened.untrained if n.startswith(('head/', 'distill_head/'))):
    raise RunError(
      f'{opened.where} lacks {", ".join(head)}: it would predict with a head that was never trained'
    )


def _check_size(checkpoint: str, model: Any) -> None:
  for tower in encoders(model.config).values():
    if isinstance(tower, ViTArchitecture) and len(tower.image_size) != 2:
      raise RunError(
        f'{checkpoint} is a model for images of size {tower.image_size}: pictures have two axes'
      )
    if isinstance(tower, ViTArchitecture) and any(
      side % stride for side, stride in zip(tower.image_size, tower.stride, strict=True)
    ):
      raise RunError(
        f'{checkpoint} asks for images of {tower.image_size}, which patches of {tower.stride} do '
        'not cut evenly: give image_size'
      )


def _names(path: str | None, model: Any) -> tuple[str, ...]:
  """Of the classes, in a file; nothing without one."""
  if path is None:
    return ()
  names = tuple(paths.read_text(at(path)).removesuffix('\n').split('\n'))
  count, known = getattr(model.config, 'num_classes', 0), model.card.class_names
  if len(names) != count:
    raise RunError(f'{path} has {len(names)} lines for the {count} classes of the model')
  if known and known != names:
    notes.say(f"class names are those of {path}, not the checkpoint's: {notes.shown(known)}")
  return names


if __name__ == '__main__':
  parser = command.Parser(
    'vit_jax.predict', 'Predicts what a model was trained for on images.',
    (
      'runs/photos new --out=predicted --attention',
      'runs/land scene.tif --bands=4,3,2,8 --out=maps',
      "clip photos --classes='a cat,a dog'",
    ),
  )  # fmt: skip
  parser.add_argument('checkpoint', help='npz, safetensors or PyTorch file; folder; run directory')
  parser.add_argument('image', nargs='+', help='image files, or folders or zip files of them')
  parser.add_argument(
    '--out', default='', metavar='DIR', help='for a table of all predictions and a picture of each'
  )
  parser.add_argument('--format', default='json', choices=FORMATS, help='of the table (json)')
  parser.switch('--attention', 'beside the pictures which patches a prediction drew on')
  parser.switch(
    '--windows', 'maps of images as of GeoTIFF: by windows of their own resolution that overlap'
  )
  parser.add_argument(
    '--overlap', type=float, default=0.5, metavar='SHARE', help='of these windows (0.5)'
  )
  parser.add_argument(
    '--bands', default='', metavar='N,N,...',
    help='of the files, one for each channel of the model, from 1 on; 0 for one that is not there',
  )  # fmt: skip
  parser.add_argument('--top', type=int, default=5, metavar='N', help='how many classes')
  parser.add_argument('--batch_size', type=int, default=32, metavar='N', help='images at a time')
  parser.add_argument(
    '--classes', default='', metavar='NAMES',
    help='of a model that reads texts: names of classes, separated by commas, or a file of them',
  )  # fmt: skip
  parser.add_argument(
    '--templates', default='photo', metavar='SENTENCES',
    help="with {} for the name, separated by ';', or one of the sets of vit_jax.text.prompts",
  )  # fmt: skip
  parser.add_argument(
    '--vocabulary',
    default='',
    metavar='FILE',
    help='of its texts, if none is by the checkpoint',
  )
  parser.add_argument(
    '--labels', metavar='FILE', help="class names, one per line, instead of the checkpoint's"
  )
  arguments.run(parser, main)
