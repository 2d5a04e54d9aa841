"""Evaluations elsewhere, of the checkpoints of a run as they appear."""

import json
import shutil
import time
from types import SimpleNamespace

import pytest

from tests.runs import CutOff, lines, with_fault
from tests.test_spikes import BACK, bad_batches, spiking  # noqa: F401
from vit_jax.checkpoints import reading, store
from vit_jax.core.errors import RunError
from vit_jax.evaluate import follow
from vit_jax.processes import health
from vit_jax.report import write
from vit_jax.train import train
from vit_jax.training import left
from vit_jax.training.workdir import Workdir


def found_by(workdir):
  """Scores of the run itself, by step."""
  return {
    row.pop('step'): {n: v for n, v in row.items() if n.startswith('test/')}
    for row in lines(workdir)
    if 'test/loss' in row
  }


class Course:
  """What happens while a follower waits, one thing after another."""

  def __init__(self, *steps):
    self.steps = list(steps)

  def __call__(self, seconds):
    assert seconds > 0
    self.steps.pop(0)()


def same(scores, want):
  assert scores.keys() == want.keys()
  for step, values in want.items():
    assert scores[step] == pytest.approx(values, rel=1e-6), step


@pytest.mark.slow
def test_a_run_without_evaluations_of_its_own_is_followed(tmp_path, digits, capsys):
  """From before it begins; it evaluates itself at its end, and waits for nobody."""
  there = tmp_path / 'run'
  config = digits(checkpoint__every='2 steps', evals__test__every='0', mesh='data')
  train(digits(checkpoint__every='2 steps', evals__test__every='2 steps', mesh='data'),
        str(tmp_path / 'control'))  # fmt: skip
  want = found_by(tmp_path / 'control')
  course = Course(
    lambda: None,
    lambda: with_fault(there, config, 'sigterm at step 3'),
    lambda: with_fault(there, config, 'sigterm at step 6'),
    lambda: train(config, str(there)),
  )
  scores = follow(str(there), pause=course)
  assert not course.steps
  assert found_by(there).keys() == {12}
  assert {2, 3, 4, 6, 10, 12} >= scores.keys() >= {2, 3, 6, 10, 12}
  same({step: values for step, values in scores.items() if step != 3},
       {step: want[step] for step in scores if step != 3})  # fmt: skip
  said = capsys.readouterr().out
  assert said.count('waiting for the next checkpoint, 120 minutes at most') == 3
  assert f'{there} is complete: {len(scores)} checkpoints are evaluated' in said
  # The report has the curve, and a second time there is nothing to do.
  curve = left.Left(there).curves['test/loss']
  assert curve.steps.tolist() == sorted(scores)
  assert 'test/loss' in (there / 'report.html').read_text()
  before = {path.name: path.stat().st_mtime_ns for path in (there / 'followed').iterdir()}
  assert follow(str(there), pause=None) == scores
  assert {p.name: p.stat().st_mtime_ns for p in (there / 'followed').iterdir()} == before
  # Other evaluations are done again.
  again = follow(str(there), [('evals.test.batch_size', '100')], pause=None)
  assert again.keys() == scores.keys()
  same({12: again[12]}, {12: scores[12]})
  assert (there / 'followed' / '12.json').stat().st_mtime_ns > before['12.json']


@pytest.fixture
def copy(finished, tmp_path):
  """A finished run, with checkpoints of steps 8 and 12."""
  shutil.copytree(finished[0], tmp_path / 'run')
  return tmp_path / 'run'


def test_checkpoints_that_vanish_while_they_are_read(copy, monkeypatch, capsys):
  """Their run has kept one: the follower takes what is there then."""
  load, gone = reading.load, []

  def slow(path, *args):
    if not gone:
      gone.append(path.name)
      shutil.rmtree(path)
    return load(path, *args)

  monkeypatch.setattr(store.reading, 'load', slow)
  scores = follow(str(copy), pause=None)
  assert gone == ['12']
  assert list(scores) == [8]
  assert 'the checkpoint of step 12 was deleted before it was read' in capsys.readouterr().out
  assert found_by(copy).keys() == {6, 12}  # none of its files is touched


def test_a_damaged_checkpoint_is_passed_over(copy, capsys):
  for path in (copy / 'checkpoints' / '12' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(b'0' * path.stat().st_size)
  assert list(follow(str(copy), pause=None)) == [8]
  assert 'no sound checkpoint to choose: step 12' in capsys.readouterr().out
  assert (copy / 'checkpoints' / '12').exists()


def test_the_wait_is_bounded(copy, tmp_path):
  (copy / 'result.json').unlink()
  course = Course(*[lambda: None] * 3)
  with pytest.raises(RunError, match='is not complete, and for 1 minutes no checkpoint'):
    follow(str(copy), wait=60.0, pause=course)
  assert not course.steps
  assert {path.name for path in (copy / 'followed').iterdir()} == {'8.json', '12.json'}
  with pytest.raises(RunError, match='nowhere is not complete'):
    follow(str(tmp_path / 'nowhere'), wait=0.0, pause=None)


def test_waiting_is_no_hanging(tmp_path, monkeypatch, capsys):
  """However long: the watch over processes sees that it looks again and again."""
  clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, strftime=time.strftime,
                          gmtime=time.gmtime)  # fmt: skip
  monkeypatch.setattr(health, 'time', clock)
  own = health._Health()
  own.folder = tmp_path
  monkeypatch.setattr(health, '_own', own)

  def pause(seconds):
    clock.now += seconds
    own._alone(clock.now)

  with pytest.raises(RunError, match='nowhere is not complete'):
    follow(str(tmp_path / 'nowhere'), wait=3 * health.WAIT, pause=pause)
  assert clock.now >= 3 * health.WAIT
  assert own.place.phase == 'wait'
  assert 'no progress' not in capsys.readouterr().err
  pause(2 * health.WAIT)
  assert 'no progress in wait' in capsys.readouterr().err


def test_what_checkpoints_say_is_asked_of_the_first_process(copy, monkeypatch):
  """One that could not read it alone would not come to what all do together."""
  asked, known = [], Workdir.known

  def from_first(make):
    asked.append(True)
    try:
      return make()
    finally:
      asked.pop()

  def only_there(self):
    assert asked
    return known(self)

  monkeypatch.setattr('vit_jax.processes.exchange.from_first', from_first)
  monkeypatch.setattr(Workdir, 'known', only_there)
  assert sorted(follow(str(copy), pause=None)) == [8, 12]


def test_a_follower_that_is_killed_goes_on(copy, monkeypatch):
  write_json = store.paths.write_json

  def killed(path, value):
    if path.parent.name == 'followed' and path.name == '8.json':
      raise CutOff
    write_json(path, value)

  with monkeypatch.context() as patch:
    patch.setattr('vit_jax.core.paths.write_json', killed)
    with pytest.raises(CutOff):
      follow(str(copy), pause=None)
  assert [path.name for path in (copy / 'followed').iterdir()] == ['12.json']
  before = (copy / 'followed' / '12.json').stat().st_mtime_ns
  scores = follow(str(copy), pause=None)
  assert sorted(scores) == [8, 12]
  assert (copy / 'followed' / '12.json').stat().st_mtime_ns == before
  assert scores[12] == pytest.approx(found_by(copy)[12])


@pytest.mark.slow
def test_a_run_that_went_back_is_followed_again(tmp_path, digits, bad_batches):  # noqa: F811
  """Steps of its first course are evaluated anew, or left out."""
  there = tmp_path / 'run'
  config = spiking(digits, **BACK, evals__test__every='0', checkpoint__keep=9)
  course = Course(
    lambda: with_fault(there, config, 'sigterm at step 83'), lambda: train(config, str(there))
  )
  scores = follow(str(there), pause=course)
  assert sorted(scores) == [20, 30, 40, 60, 80, 90, 100, 120]
  assert (there / 'followed' / '83.json').exists()
  train(spiking(digits, **BACK, evals__test__every='20 steps'), str(tmp_path / 'control'))
  want = found_by(tmp_path / 'control')
  same({step: scores[step] for step in want}, want)
  write(there)
  assert 83 not in left.Left(there).curves['test/loss'].steps


def test_the_command(copy, typed):
  status, out, _ = typed('vit_jax.evaluate', f'--follow={copy}', '--wait=1')
  assert status == 0
  assert 'is complete: 2 checkpoints are evaluated' in out
  assert json.loads((copy / 'followed' / '12.json').read_text())['step'] == 12
  status, _, error = typed('vit_jax.evaluate', f'--follow={copy}', '--step=3')
  assert status == 1
  assert '--follow takes neither --config=FILE nor --step' in error
