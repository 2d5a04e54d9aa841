"""TPU VMs that the launcher asks for, by a gcloud that is none: lost, kept, and never forgotten."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from experiments.launch import engine as engine_lib
from experiments.launch import engines, supervise, tpu_vm, tpus
from tests import tools
from tests.launching import USUAL, commands, job
from vit_jax.core.errors import RESTART, RunError

pytestmark = pytest.mark.usefixtures('paused')


def test_machines_get_a_python_of_ours_and_a_mark():
  words = '\n'.join(shlex.join(words) for words in commands('tpu-vm'))
  assert '--labels=vit_jax_job=bbbb ' in words
  assert 'uv venv --python=3.12 .venv' in words
  assert 'python3 -m venv' not in words
  options = {**USUAL['tpu-vm'], 'labels': 'team=x'}
  made = engines.ENGINES['tpu-vm'](job('tpu-vm', options=options))
  assert '--labels=team=x,vit_jax_job=bbbb' in made.create.words


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('gcloud'), reason='gcloud is not installed')
def test_gcloud_parses_them(tmp_path):
  tools.check('gcloud')
  for words in commands('tpu-vm'):
    if 'run-1' in ' '.join(words):  # as run-0
      continue
    words = [w if w.startswith('-') or '/' not in w or ':' in w else str(tmp_path) for w in words]
    assert tools.parsed_by_gcloud(words, tmp_path) == '', words
  wrong = ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'x', '--batch-size=all', '--zone=z']
  assert 'unrecognized arguments' in tools.parsed_by_gcloud(wrong, tmp_path)


def test_machines_of_slices():
  assert [tpus.hosts(n) for n in ('v5litepod-256', 'v5p-512', 'v4-8', 'v6e-16')] == [64, 64, 1, 4]
  assert [tpus.hosts(n) for n in ('v5litepod-8', 'h100-80gb-8', 'v5litepod-1')] == [0, 0, 1]
  with pytest.raises(RunError, match='v5p counts cores'):
    tpus.hosts('v5p-7')


# In every process of a job: the first attempt waits for its end, which is not its own doing, the
# second is stopped in one process, and the third does what it is told.
WORK = """
import json, os, pathlib, signal, sys
folder, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
attempt = json.loads((folder / 'launch' / 'attempts.json').read_text())['attempts']
assert os.environ['VIT_JAX_PROCESSES'] == '4' and os.environ['JAX_COORDINATOR_PORT'] == '8476'
assert pathlib.Path('configs/digits.py').exists() and os.environ['EPATH_USE_TF'] == '0'
where = pathlib.Path.cwd().parent
if attempt < 3:
  (folder / 'checkpoints' / str(attempt)).mkdir(parents=True, exist_ok=True)
if attempt == 1:
  print('waiting', flush=True)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
  (where / 'waits').touch()
  while True:
    signal.pause()
sys.exit({2: 42 * (where.name == '1'), 3: last * (where.name == '0')}[attempt])
"""


# Machines are directories. What it does not know it answers like gcloud, by an error.
GCLOUD = f"""#!{sys.executable}
import json, os, pathlib, shutil, signal, subprocess, sys
root = pathlib.Path(os.environ['FORGED'])
nodes, state = root / 'nodes', root / 'state'
words = [word for word in sys.argv[1:] if not word.startswith('--')]
flags = dict(word[2:].partition('=')[::2] for word in sys.argv[1:] if word.startswith('--'))
verb, names = ' '.join(words[2:4]), words[4:]
with open(root / 'calls', 'a') as calls:
  calls.write(verb + chr(10))
fails = root / ('fails ' + verb)  # so many times
if fails.exists() and (left := int(fails.read_text())):
  fails.write_text(str(left - 1))
  sys.exit('ERROR: 503')
def end():
  for path in nodes.glob('*/*/*/pid'):
    try:
      os.killpg(int(path.read_text()), signal.SIGKILL)
    except ProcessLookupError:
      pass
if verb == 'queued-resources create':
  if state.exists():
    sys.exit('ALREADY_EXISTS')
  for i in range(int(flags['node-count'])):
    for worker in range(2):
      (nodes / f"{{flags['node-prefix']}}-{{i}}" / str(worker)).mkdir(parents=True)
  state.write_text('ACTIVE' + chr(9) + flags['labels'].partition('vit_jax_job=')[2])
elif verb == 'queued-resources describe':
  if (root / 'preempt').exists():
    (root / 'preempt').unlink()
    end()
    state.write_text(state.read_text().replace('ACTIVE', 'SUSPENDED'))
  if not state.exists():
    sys.exit('ERROR: NOT_FOUND')
  print(state.read_text())
elif verb == 'queued-resources delete':
  end()
  shutil.rmtree(nodes, ignore_errors=True)
  state.unlink()
elif verb == 'tpu-vm ssh':
  for home in sorted((nodes / names[0]).iterdir()):
    if flags['worker'] in ('all', home.name):
      subprocess.run(['bash', '-c', flags['command']], cwd=home, check=True)
elif verb == 'tpu-vm scp':
  node, _, folder = names[-1].partition(':')
  for home in (nodes / node).iterdir():
    for source in map(pathlib.Path, names[:-1]):
      (shutil.copytree if source.is_dir() else shutil.copy)(source, home / folder / source.name)
else:
  sys.exit('Invalid choice')
"""


@pytest.fixture
def forged(tmp_path, monkeypatch):
  """A TPU VM engine of two slices of two machines each, by a gcloud that is not one."""
  (tmp_path / 'bin').mkdir()
  tool = tmp_path / 'bin' / 'gcloud'
  tool.write_text(GCLOUD)
  tool.chmod(0o755)
  path = f'{tmp_path}/bin:{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  monkeypatch.setenv('PATH', path)
  monkeypatch.setenv('FORGED', str(tmp_path))

  def make(last, work=WORK):
    options = dict(zone='z', accelerator_type='v4-16', node_count='2', setup='true')
    work = ('python', '-c', work, f'{tmp_path}/run', str(last))
    made = tpu_vm.TpuVm(job('tpu-vm', f'{tmp_path}/run', work, options=options))
    made.job.folder.mkdir(parents=True)
    file, _ = made.ready()
    file.path.write_text(file.text)
    wheel = made.job.folder / 'wheel'
    wheel.mkdir()  # which takes pip some time to make
    (wheel / 'vit_jax-0.1.0-py3-none-any.whl').touch()
    return made

  yield make
  subprocess.run([tool, 'compute', 'tpus', 'queued-resources', 'delete'], stderr=subprocess.DEVNULL)


def all_wait(folder):
  return len(list(folder.glob('nodes/*/*/waits'))) == 4


def count(folder, verb):
  return (folder / 'calls').read_text().splitlines().count(verb)


def fast(monkeypatch, look=lambda: None):
  """Looks follow each other closely; `look` is called before each."""

  def sleep(_):
    look()
    supervise.time.sleep(0.02)

  monkeypatch.setattr(tpu_vm, 'time', type('Time', (), dict(sleep=sleep, monotonic=lambda: 0.0)))


DONE = 'print(1)'


@pytest.mark.parametrize('last', [0, 1])
def test_lost_machines_are_made_anew(forged, tmp_path, monkeypatch, capsys, last):
  made, once = forged(last), []

  def look():
    """The time between two looks, in which the machines are lost once."""
    if all_wait(tmp_path) and not once:
      once.append((tmp_path / 'preempt').touch())

  fast(monkeypatch, look)
  assert supervise.supervise(made) == last
  out = capsys.readouterr().out
  assert 'the machines are lost: SUSPENDED' in out
  assert f'ended with status {RESTART}: starting it again' in out
  calls = (tmp_path / 'calls').read_text().splitlines()
  assert calls.count('queued-resources create') == 2  # a process that stopped loses no machine
  assert calls.count('queued-resources delete') == 2  # and at the end nothing is left to pay for
  assert not (tmp_path / 'nodes').exists()
  assert (tmp_path / 'run' / 'launch' / 'run-0.log').exists()


def test_nothing_is_asked_for_and_forgotten(forged, tmp_path, monkeypatch):
  """Asked to stop while it asks for machines, the supervisor ends when it knows of them."""
  made, done = forged(0), []

  def run(command):
    if 'create' in command.words:
      os.kill(os.getpid(), signal.SIGTERM)
    out = engine_lib.run(command)
    done.append(command.words[4])
    return out

  monkeypatch.setattr(tpu_vm, 'run', run)
  assert supervise.supervise(made) == 0
  assert done == ['create']
  assert not (tmp_path / 'state').exists()


def test_a_stopped_supervisor_stops_its_machines(forged, tmp_path, monkeypatch, capsys):
  made = forged(0)

  def look():
    if all_wait(tmp_path):
      os.kill(os.getpid(), signal.SIGTERM)

  fast(monkeypatch, look)
  assert supervise.supervise(made) == 0
  assert 'stopped: submit the same command' in capsys.readouterr().out
  assert not (tmp_path / 'nodes').exists()
  assert (tmp_path / 'run' / 'launch' / 'run-1.log').read_text() == 'waiting\n' * 2


@pytest.mark.parametrize('label', ['vit_jax_job=other', ''])
def test_machines_of_others_are_left_alone(forged, tmp_path, capsys, label):
  (tmp_path / 'state').write_text(f'ACTIVE\t{label.partition("=")[2]}\n')
  assert supervise.supervise(forged(0)) == 1
  assert 'is of another job' in capsys.readouterr().out
  assert (tmp_path / 'state').exists()
  assert count(tmp_path, 'queued-resources delete') == 0


def test_machines_of_an_earlier_submission_are_replaced(forged, tmp_path, monkeypatch):
  fast(monkeypatch)
  (tmp_path / 'state').write_text('ACTIVE\taaaa\n')
  assert supervise.supervise(forged(0, DONE)) == 0
  assert count(tmp_path, 'queued-resources delete') == 2
  assert count(tmp_path, 'queued-resources create') == 1


def test_machines_are_deleted_though_it_takes_tries(forged, tmp_path, monkeypatch, capsys, paused):
  fast(monkeypatch)
  (tmp_path / 'fails queued-resources delete').write_text('4')
  made = forged(0, DONE)
  assert supervise.supervise(made) == 0
  assert not (tmp_path / 'state').exists()
  assert paused == [0, 1, 2, 3]
  assert capsys.readouterr().out.count('BILLED: ERROR: 503') == 4
  # Nobody answers for long.
  monkeypatch.setattr(tpu_vm, 'DELETING', 3)
  (tmp_path / 'state').write_text('ACTIVE\tbbbb')
  (tmp_path / 'fails queued-resources describe').write_text('99')
  made.made = False
  made.finish()
  assert 'GIVEN UP' in capsys.readouterr().out.splitlines()[-1]


def test_what_nobody_sees_is_not_lost(forged, tmp_path, monkeypatch, capsys):
  """gcloud does not answer for longer than machines may be silent."""
  made, once = forged(0, DONE), []

  def look():
    if not once and (tmp_path / 'nodes').exists():
      once.append((tmp_path / 'fails queued-resources describe').write_text('30'))
      (tmp_path / 'fails tpu-vm ssh').write_text('5')

  fast(monkeypatch, look)
  assert supervise.supervise(made) == 0
  assert capsys.readouterr().out.count('does not answer') == 1
  assert count(tmp_path, 'queued-resources create') == 1


@pytest.mark.parametrize('verb', ['queued-resources create', 'tpu-vm ssh', 'tpu-vm scp'])
def test_one_command_that_fails_ends_no_job(forged, tmp_path, monkeypatch, capsys, verb):
  fast(monkeypatch)
  (tmp_path / f'fails {verb}').write_text('1')
  assert supervise.supervise(forged(0, DONE)) == 0
  assert 'ERROR: 503' in capsys.readouterr().out
  assert count(tmp_path, 'queued-resources delete') == 1  # what was made is kept


def test_a_machine_that_has_rebooted_runs_nothing(forged, tmp_path):
  made = forged(0, 'import signal; signal.pause()')
  assert made._make()
  for node in made.nodes:
    tpu_vm.run(made._say(node, 'start'))
  assert made._exits() == [None] * 4
  home = tmp_path / 'nodes' / 'run-0' / '1' / 'run'
  boot, pid = (home / 'boot').read_text(), (home / 'pid').read_text()
  (home / 'boot').write_text('another')
  (home / 'pid').write_text(f'{os.getpgrp()}\n')  # a stranger's now, which is not killed
  exits = made._exits()
  assert [each and each[1] for each in exits] == [None, 143, None, None]
  tpu_vm.run(made._say('run-0', 'start'))
  assert made._exits() == [None] * 4
  os.killpg(int(pid), signal.SIGKILL)
  os.killpg(int((home / 'pid').read_text()), signal.SIGKILL)
  while (exits := made._exits())[1] is None:  # the kernel takes its time
    pass
  assert exits[1][1] == 143
  assert (home / 'boot').read_text() == boot


def test_one_look_without_an_answer_ends_no_grace(forged, tmp_path, monkeypatch):
  made = forged(0, 'import sys; sys.exit(0)')
  answers = [None, [None], None, [(1.0, 42)]]
  monkeypatch.setattr(made, '_exits', lambda: answers.pop(0))
  fast(monkeypatch)

  def stopped():
    raise supervise.Stopped

  monkeypatch.setattr(made, '_watch', stopped)
  with pytest.raises(supervise.Stopped):
    made.attempt()
  assert answers == []
