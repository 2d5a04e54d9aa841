"""The launcher: what is printed is done, restarts end, and mistakes are one line."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import jax
import pytest

from experiments.launch import engines, local, supervise
from experiments.launch import job as job_lib
from tests import tools
from tests.conftest import ROOT
from tests.launching import DIGITS, USUAL, commands, job
from vit_jax.core.errors import PassingError, RunError
from vit_jax.launch import cluster

# --- what is printed ---


@pytest.mark.parametrize('engine', ['xpk', 'tpu-vm'])
def test_tools_accept_their_commands(engine):
  table, found = tools.table(), commands(engine)
  assert len(found) >= 3
  assert [tools.complaint(words, table) for words in found] == [''] * len(found)


def test_the_table_complains():
  table = tools.table()
  assert 'no --batch-size' in tools.complaint(
    ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'x', '--batch-size=all'], table
  )
  assert 'not among' in tools.complaint(['xpk', 'workload', 'logs'], table)


@pytest.mark.parametrize(
  ('engine', 'changes', 'message'),
  [
    ('local', dict(processes='two'), '--processes=two: a whole number is expected'),
    ('local', dict(nodes='2'), '--engine=local has no option --nodes'),
    ('slurm', dict(gpus='8', tasks_per_node='4'), 'one task for all GPUs of a node, or 8'),
    ('xpk', dict(cluster=''), '--engine=xpk needs --cluster=NAME'),
    ('xpk', dict(device_type='h100-80gb-8'), 'needs --tpu_type=v5litepod-256, or --device_type'),
    ('slurm', {'gpus': '8', 'tasks-per-node': '4'}, 'one task for all GPUs of a node, or 8'),
    ('xpk', {'num-slices': '0'}, '--num_slices=0: a whole number is expected'),
    ('xpk', dict(num_nodes='two'), '--num_nodes=two: a whole number is expected'),
    ('xpk', dict(base_docker_image='b'), 'needs the code in an image'),
    ('tpu-vm', dict(zone=''), '--engine=tpu-vm needs --zone=ZONE'),
    ('tpu-vm', dict(accelerator_type='v9-8'), 'needs --runtime_version=NAME'),
  ],
)
def test_options_that_make_no_sense(engine, changes, message):
  with pytest.raises(RunError, match=re.escape(message)):
    engines.ENGINES[engine](job(engine, options={**USUAL[engine], **changes}))


def test_what_was_not_submitted_has_no_status(typed, tmp_path):
  job('slurm', tmp_path).save()
  status, _, err = typed('experiments.launch', f'--workdir={tmp_path}', '--status')
  assert (status, 'no job was submitted' in err) == (1, True)


def test_a_job_is_taken_over_from_a_machine_that_is_gone(tmp_path, monkeypatch):
  monkeypatch.setattr(local.Local, 'submit', lambda _: {'pid': 1, 'host': 'here'})
  old = job('local', tmp_path, submitted=dict(pid=1, host='gone'))
  old.save()
  new = job('local', tmp_path)
  with pytest.raises(RunError, match=r'process 1 of gone: ask there; .* --take_over'):
    engines.launch(new, submit=True)
  assert job_lib.load(str(tmp_path)) == old
  engines.launch(new, submit=True, take_over=True)
  taken = job_lib.load(str(tmp_path))
  assert taken.submitted['host'] == 'here'
  assert (taken.tokens[:-1], len(taken.tokens)) == (old.tokens, 3)


def test_directories_that_the_machines_do_not_see():
  with pytest.raises(RunError, match='the machines of xpk do not see this directory'):
    engines.ENGINES['xpk'](job('xpk', 'runs/x'))
  engines.ENGINES['xpk'](job('xpk', '/mnt/shared/x'))
  with pytest.raises(RunError, match=r'/srv/me/c\.py: the machines of tpu-vm have this checkout'):
    engines.ENGINES['tpu-vm'](job('tpu-vm', command=('python', '--config=/srv/me/c.py')))
  with pytest.raises(RunError, match='at most 28 small letters'):
    dataclasses.replace(job('local'), name='Übung')


@pytest.mark.parametrize(
  ('workdir', 'name'),
  [('gs://b/ViT_G14/', 'vit-g14'), ('runs/14', 'run-14'), ('x/' + 'a' * 40, 'a' * 28)],
)
def test_names_are_made_of_workdirs(workdir, name):
  assert job_lib.name_of(workdir) == name


def test_the_command_prints_and_does_nothing(typed, tmp_path):
  status, out, err = typed(
    'experiments.launch', DIGITS, '--engine=slurm', f'--workdir={tmp_path}/run',
    '--config.total=3 epochs', '--nodes=2',
  )  # fmt: skip
  assert status == 0, err
  assert '--doctor --config=' in out
  assert "'--config.total=3 epochs'" in out
  assert 'nothing is done yet' in out
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([DIGITS, '--engine=slurm', '--config.totl=1'], 'unknown field config.totl'),
    ([DIGITS, '--engine=slurm', '--config.total=soon'], 'is not a duration'),
    ([DIGITS], 'give --engine and --config'),
    (['--status'], 'nothing was submitted with this --workdir'),
    (['--status', DIGITS], 'give nothing else'),
  ],
)
def test_mistakes_are_found_before_anything_is_submitted(typed, tmp_path, arguments, message):
  status, _, err = typed('experiments.launch', f'--workdir={tmp_path}/run', *arguments, '--submit')
  if '--status' in arguments:
    status, _, err = typed('experiments.launch', f'--workdir={tmp_path}/run', *arguments)
  assert status == 1
  assert message in err
  assert err.count('\n') == 1
  assert not (tmp_path / 'run').exists()


# --- restarts ---


def test_attempts_are_counted_until_they_are_in_vain(tmp_path, paused):
  folder = tmp_path / 'run'
  (folder / 'launch').mkdir(parents=True)
  (folder / 'checkpoints').mkdir()
  made, said = job('local', folder, max_restarts=2), []
  for step in ('', '', '4', '4.partial', '4'):
    if step:
      (folder / 'checkpoints' / step).mkdir(exist_ok=True)
    job_lib.begin(made, said.append)
  assert said == [
    'attempt 1', 'attempt 2, 1 without a new checkpoint', 'attempt 3',
    'attempt 4, 1 without a new checkpoint', 'attempt 5, 2 without a new checkpoint',
  ]  # fmt: skip
  assert paused == [1, 1, 2]
  assert job_lib.progress(made) == 'newest checkpoint: step 4; attempts: 5'
  with pytest.raises(RunError, match=r'3 attempts in a row have brought no new checkpoint'):
    job_lib.begin(made, said.append)
  job_lib.forget(made)
  job_lib.begin(made, said.append)
  assert said[-1] == 'attempt 1'


def test_pauses_grow_to_ten_minutes(monkeypatch):
  slept = []
  monkeypatch.setattr(job_lib, 'time', type('Time', (), dict(sleep=slept.append)))
  for tries in range(9):
    job_lib.pause(tries)
  assert slept == [10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_a_store_that_does_not_serve_ends_no_job(tmp_path, monkeypatch, paused):
  made, said, write = job('local', tmp_path, max_restarts=2), [], job_lib.paths.write_json
  answers = [TimeoutError('503'), PassingError('busy'), None]

  def written(*arguments):
    if error := answers.pop(0):
      raise error
    write(*arguments)

  monkeypatch.setattr(job_lib.paths, 'write_json', written)
  (tmp_path / 'launch').mkdir()
  job_lib.begin(made, said.append)
  assert paused == [1, 2]
  assert said[-1] == 'attempt 1'
  answers += [PassingError('busy')] * 3
  with pytest.raises(RunError, match='busy, 3 times in a row'):
    job_lib.begin(made, said.append)


@pytest.mark.parametrize(
  ('place', 'counts'),
  [
    ({}, True), (dict(JOB_COMPLETION_INDEX='0', MEGASCALE_SLICE_ID='0'), True),
    (dict(JOB_COMPLETION_INDEX='3'), False),
    (dict(JOB_COMPLETION_INDEX='0', MEGASCALE_SLICE_ID='1'), False),
  ],
)  # fmt: skip
def test_the_first_pod_counts(tmp_path, place, counts):
  """And the process becomes the command, until that has been in vain."""
  job('local', tmp_path, max_restarts=0).save()
  words = [sys.executable, '-m', 'experiments.launch.attempt', tmp_path, 'echo', 'runs']
  env = {**os.environ, 'PYTHONPATH': str(ROOT), **place}
  first, second = (
    subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True) for _ in range(2)
  )
  assert first.stdout == 'attempt 1\n' * counts + 'runs\n'
  assert second.returncode == counts
  assert ('1 attempts in a row' in second.stderr) == counts
  assert second.stdout == 'runs\n' * (not counts)


class Forged(supervise.Supervised):
  """Attempts that end as they are told."""

  def prepare(self):
    self.codes, self.finished = [int(text) for text in self.take('codes').split(',')], 0

  def each(self):
    yield from ()

  def attempt(self):
    code = self.codes.pop(0)
    if code == 42:
      (pathlib.Path(self.job.workdir) / 'checkpoints' / str(len(self.codes))).mkdir(parents=True)
    if code < 0:
      os.kill(os.getpid(), signal.SIGTERM)
    return code

  def finish(self):
    self.finished += 1

  def logs(self):
    raise NotImplementedError


@pytest.mark.parametrize(
  ('codes', 'status', 'left', 'said'),
  [
    ('0,9', 0, 1, 'done'),
    ('42,137,143,0', 0, 0, 'done'),
    ('42,1,0', 1, 1, 'failed with status 1, which a restart does not mend'),
    ('2,0', 2, 1, 'failed with status 2'),
    ('134,134,134,134,0', 1, 1, '4 attempts in a row have brought no new checkpoint'),
    ('134,134,42,134,134,42,0', 0, 0, 'done'),
    ('-1,0', 0, 1, 'stopped: submit the same command to go on'),
  ],
)
@pytest.mark.usefixtures('paused')
def test_the_supervisor_knows_what_a_restart_mends(tmp_path, capsys, codes, status, left, said):
  (tmp_path / 'launch').mkdir()
  forged = Forged(job('local', tmp_path, options=dict(codes=codes), max_restarts=3))
  before = signal.getsignal(signal.SIGTERM)
  assert supervise.supervise(forged) == status
  assert signal.getsignal(signal.SIGTERM) is before
  assert (len(forged.codes), forged.finished) == (left, 1)
  assert said in capsys.readouterr().out.splitlines()[-1]


# --- the number of processes ---


@pytest.mark.parametrize(
  ('promised', 'message'),
  [
    (dict(SLURM_NTASKS='4'), 'SLURM_NTASKS=4, but JAX has found 1 process here'),
    (dict(VIT_JAX_PROCESSES='64'), 'or set VIT_JAX_PROCESSES=1 if this is meant'),
    (dict(SLURM_NTASKS='4', VIT_JAX_PROCESSES='1'), ''),
    (dict(SLURM_NTASKS='1'), ''),
    ({}, ''),
  ],
)
def test_processes_are_as_many_as_promised(monkeypatch, promised, message):
  def none(**times):
    raise ValueError

  for name in cluster.PROMISES:
    monkeypatch.delenv(name, raising=False)
  for name, value in promised.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(jax.distributed, 'initialize', none)
  with pytest.raises(RunError, match=message) if message else contextlib.nullcontext():
    cluster.join()


# --- the page ---


def page():
  text = (ROOT / 'docs' / 'how-to' / 'pods.md').read_text()
  for block in re.findall(r'^```(?:console|bash)\n(.*?)^```\n', text, re.M | re.S):
    for line in block.replace('\\\n', ' ').splitlines():
      if line and not line.startswith('#'):
        yield shlex.split(line)


def test_every_command_of_the_page_is_one(typed, monkeypatch, tmp_path):
  monkeypatch.chdir(ROOT)
  table, seen = tools.table(), set()
  for words in page():
    seen.add(words[0] if words[0] != 'python' else words[2])
    if words[:3] == ['python', '-m', 'experiments.launch']:
      given = [word for word in words[3:] if word != '--submit']
      if any(word.startswith('--engine') for word in given):
        status, _, err = typed('experiments.launch', *given)
        assert status == 0, err
      else:
        assert {w.partition('=')[0] for w in given} <= {'--workdir', '--status', '--logs', '--stop'}
    elif words[0] in table:
      assert not tools.complaint(words, table)
    else:
      assert words[0] in ('python', 'docker', 'export', 'pip', 'ssh-add'), words
  assert seen >= {'experiments.launch', 'vit_jax.doctor', 'vit_jax.plan', 'gcloud', 'xpk'}


def test_every_engine_is_on_the_page():
  text = (ROOT / 'docs' / 'how-to' / 'pods.md').read_text()
  for tool in ('xpk', 'gcloud'):
    assert f'`{tool}` {tools.table()[tool]["version"]}' in text
  for name in engines.ENGINES:
    assert f'--engine={name}' in text
