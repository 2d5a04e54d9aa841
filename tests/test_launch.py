"""The launcher and the doctor: what is printed is done, restarts end, and mistakes are one line."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import jax
import pytest

from experiments.launch import engine as engine_lib
from experiments.launch import engines, local, supervise, tpu_vm, tpus
from experiments.launch import job as job_lib
from experiments.launch.job import Job
from tests import compiling, runs, tools
from tests.conftest import ROOT
from tests.test_kills import free_port
from vit_jax.core.errors import RESTART, PassingError, RunError
from vit_jax.launch import cluster, doctor, memory

DIGITS = f'--config={ROOT}/configs/digits.py'
PAUSE = job_lib.pause  # which no test makes
# Options of each engine as one would give them.
USUAL = {
  'local': dict(processes='2'),
  'slurm': dict(nodes='4', gpus='8', partition='big', time='24:00:00', exclusive='true'),
  'xpk': dict(
    cluster='c', tpu_type='v5litepod-256', num_slices='2', docker_image='i', project='p', zone='z',
    priority='high', spot='true',
  ),
  'tpu-vm': dict(
    zone='z', project='p', accelerator_type='v5litepod-256', node_count='2', spot='true',
    valid_until_duration='6h',
  ),
}  # fmt: skip


def job(engine, workdir='gs://bucket/run', command=('python', '-c', 'pass'), **fields):
  options = fields.pop('options', USUAL[engine])
  watched = (f'{workdir}/checkpoints',)
  fields = dict(root=str(ROOT), tokens=('aaaa', 'bbbb')) | fields
  return Job('run', engine, command, str(workdir), watched, options, **fields)


def commands(engine):
  """All commands that an engine names, those of --status and --logs included."""
  made = engines.ENGINES[engine](job(engine, submitted={'job': '7'}))
  found = [step.words for step in made.steps() if isinstance(step, engine_lib.Command)]
  found.append(made.logs().words)
  if engine == 'xpk':
    found += [made._about('list', '--filter-by-job=run').words]
    found += [made._about('delete', '--workload=run', '--force').words]
  return [words for words in found if words[0] in tools.CALLED]


def directives(text):
  """The options that a batch script gives to sbatch, as its command line."""
  return ['sbatch', *re.findall(r'^#SBATCH (.*)$', text, re.M)]


# --- what is printed ---


@pytest.mark.parametrize('engine', ['xpk', 'tpu-vm'])
def test_tools_accept_their_commands(engine):
  table, found = tools.table(), commands(engine)
  assert len(found) >= 3
  assert [tools.complaint(words, table) for words in found] == [''] * len(found)


def test_machines_get_a_python_of_ours_and_a_mark():
  words = '\n'.join(shlex.join(words) for words in commands('tpu-vm'))
  assert '--labels=vit_jax_job=bbbb ' in words
  assert 'uv venv --python=3.12 .venv' in words
  assert 'python3 -m venv' not in words
  options = {**USUAL['tpu-vm'], 'labels': 'team=x'}
  made = engines.ENGINES['tpu-vm'](job('tpu-vm', options=options))
  assert '--labels=team=x,vit_jax_job=bbbb' in made.create.words


@pytest.mark.parametrize(('code', 'calls'), [(42, 'requeue 7\n'), (1, '')])
def test_slurm_goes_by_the_count_of_attempts(tmp_path, code, calls):
  script = next(step.text for step in engines.ENGINES['slurm'](job('slurm', tmp_path)).steps()
                if isinstance(step, engine_lib.File) and step.path.name == 'job.sh')  # fmt: skip
  script = script.replace(shlex.quote(sys.executable), f'{tmp_path}/python')
  for name, text in dict(python=f'exit {code}', scontrol=f'echo $* >> {tmp_path}/calls', sleep='',
                         srun='echo srun').items():  # fmt: skip
    (tmp_path / name).write_text(f'#!/bin/bash\n{text}\n')
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'calls').touch()
  env = {**os.environ, 'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7'}
  done = subprocess.run(['bash', '-c', script], env=env, capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (code, '')
  assert (tmp_path / 'calls').read_text() == calls


def test_slurm_accepts_its_script():
  files = {s.path.name: s.text for s in engines.ENGINES['slurm'](job('slurm', '/x')).steps()
           if isinstance(s, engine_lib.File)}  # fmt: skip
  words, table = directives(files['job.sh']), tools.table()
  assert {'--nodes=4', '--requeue', '--signal=TERM@120', '--partition=big', '--exclusive'} <= {
    *words
  }
  assert not tools.complaint(words, table)
  srun = shlex.split(files['job.sh'].split('srun ')[1].split(' bash ')[0].replace('\\\n', ''))
  assert not tools.complaint(['srun', *srun], table)
  for name, text in files.items():
    done = subprocess.run(['bash', '-n'], input=text, text=True, capture_output=True)
    assert not done.stderr, (name, done.stderr)
  # A task for all GPUs of a node, of which JAX would take one by itself.
  assert 'export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7\n' in files['job.sh']
  assert 'export VIT_JAX_PROCESSES=4\n' in files['job.sh']


def test_the_table_complains():
  table = tools.table()
  assert 'no --batch-size' in tools.complaint(
    ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'x', '--batch-size=all'], table
  )
  assert 'not among' in tools.complaint(['xpk', 'workload', 'logs'], table)


def current(tool):
  """The table is what this version of a tool says, if it was made of the same."""
  found, kept = tools.accepted(tool), tools.table()[tool]
  assert found['version'] != kept['version'] or found == kept


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('xpk'), reason='xpk is not on PATH; as CONTRIBUTING')
def test_xpk_parses_them():
  found = commands('xpk')
  assert [tools.parsed_by_xpk(words) for words in found if words[0] == 'xpk'] == [''] * 3
  assert 'required' in tools.parsed_by_xpk(['xpk', 'workload', 'create', '--cluster=c'])
  current('xpk')


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('xpk'), reason='xpk is not on PATH; as CONTRIBUTING')
def test_xpk_counts_machines_as_we_do():
  code = (
    'from xpk.core.system_characteristics import UserFacingNameToSystemCharacteristics as table\n'
    "print({k: v.vms_per_slice for k, v in table.items() if 'x' not in k})"
  )
  theirs = eval(tools.said(tools.python_of_xpk(), '-c', code))
  ours = {name: tpus.hosts(name) for name in theirs if tpus.chips(name)}
  assert len(ours) > 40
  assert {n: c for n, c in ours.items() if c and c != theirs[n]} == {}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('gcloud'), reason='gcloud is not installed')
def test_gcloud_parses_them(tmp_path):
  current('gcloud')
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


@pytest.mark.parametrize(
  ('options', 'processes'),
  [
    (dict(tpu_type='v5litepod-256', num_slices='2'), 128),
    ({'tpu-type': 'v5p-512', 'num-slices': '4'}, 256),
    (dict(device_type='v6e-8'), 0),  # one or two
    (dict(device_type='v5p-4x4x4'), 0),
    (dict(device_type='tpu7x-128'), 0),
    (dict(device_type='v5p-512'), 64),
    (dict(device_type='h100-80gb-8'), 1),
    (dict(device_type='gb200-4', num_nodes='16'), 16),
  ],
)
def test_as_many_processes_are_promised_as_are_known(options, processes):
  made = engines.ENGINES['xpk'](job('xpk', options=dict(cluster='c', docker_image='i') | options))
  words = next(iter(made.steps())).words
  promise = [word for word in words if word.startswith('--env=VIT_JAX_PROCESSES')]
  assert promise == [f'--env=VIT_JAX_PROCESSES={processes}'] * bool(processes)


XPK = f"""#!{sys.executable}
import pathlib, sys
there = pathlib.Path(__file__).parent / 'there'
names = there.read_text().split()
flags = dict(word[2:].partition('=')[::2] for word in sys.argv[1:] if word.startswith('--'))
if 'list' in sys.argv:
  print('[XPK] Workload List Output:', 'Jobset Name   Created Time', sep=chr(10))
  print(*(f'{{name}}   now' for name in names), sep=chr(10))
elif 'delete' in sys.argv:
  names.remove(flags['workload'])
elif flags['workload'] in names:
  sys.exit('already exists')
else:
  names.append(flags['workload'])
there.write_text(' '.join(names))
"""


def test_a_workload_of_others_is_not_stopped(typed, tmp_path, monkeypatch):
  tool = tmp_path / 'xpk'
  tool.write_text(XPK)
  tool.chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
  monkeypatch.chdir(ROOT)
  there, where = tmp_path / 'there', f'--workdir={tmp_path}/run'
  there.write_text('run')
  ask = (
    '--config=configs/digits.py',
    '--engine=xpk',
    '--cluster=c',
    '--tpu-type=v5litepod-16',
    '--docker-image=i',
  )

  def say(*words):
    status, out, err = typed('experiments.launch', where, *words)
    return status, out + err

  status, said = say(*ask, '--submit')
  assert (status, 'already exists' in said) == (1, True)
  assert 'on a disk of this machine' in said
  status, said = say('--stop')
  assert (status, 'nothing was submitted' in said) == (1, True)
  assert there.read_text() == 'run'
  assert say(*ask, '--submit', '--name=mine')[0] == 0
  # The same directory again, under any name: the first is not forgotten.
  for name in ('mine', 'other'):
    status, said = say(*ask, '--submit', f'--name={name}')
    assert (status, 'the workload mine is in the cluster c; end that first' in said) == (1, True)
  there.write_text('run')
  assert say(*ask, '--submit')[0] == 1
  assert engines.of(f'{tmp_path}/run').job.name == 'mine'  # still
  there.write_text('run mine')
  assert say('--stop')[0] == 0
  assert there.read_text() == 'run'


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
    PAUSE(tries)
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
def test_the_supervisor_knows_what_a_restart_mends(tmp_path, capsys, codes, status, left, said):
  (tmp_path / 'launch').mkdir()
  forged = Forged(job('local', tmp_path, options=dict(codes=codes), max_restarts=3))
  before = signal.getsignal(signal.SIGTERM)
  assert supervise.supervise(forged) == status
  assert signal.getsignal(signal.SIGTERM) is before
  assert (len(forged.codes), forged.finished) == (left, 1)
  assert said in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
  ('ends', 'code'), [('os.kill(os.getpid(), 9)', 137), ('sys.exit(1)', 1), ('sys.exit(42)', 42)]
)
def test_the_first_process_that_ends_badly_decides(tmp_path, monkeypatch, ends, code):
  """The other one would never end: it is killed."""
  monkeypatch.setattr(local, 'ALONE', 0.1)
  monkeypatch.setattr(supervise, 'GRACE', 0.1)
  work = f"""
import os, pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[-1] == '--process_id=1':
  {ends}
pathlib.Path('{tmp_path}/pid').write_text(str(os.getpid()))
while True:
  signal.pause()
"""
  made = local.Local(job('local', tmp_path, ('python', '-c', work)))
  made.job.folder.mkdir()
  assert made.attempt() == code
  if (tmp_path / 'pid').exists():
    with pytest.raises(ProcessLookupError):
      os.kill(int((tmp_path / 'pid').read_text()), 0)


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


@pytest.fixture(autouse=True)
def paused(monkeypatch):
  """The pauses that would have been made."""
  tries = []
  monkeypatch.setattr(job_lib, 'pause', tries.append)
  return tries


def all_wait(folder):
  return len(list(folder.glob('nodes/*/*/waits'))) == 4


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


def fast(monkeypatch, look=lambda: None):
  """Looks follow each other closely; `look` is called before each."""

  def sleep(_):
    look()
    supervise.time.sleep(0.02)

  monkeypatch.setattr(tpu_vm, 'time', type('Time', (), dict(sleep=sleep, monotonic=lambda: 0.0)))


def count(folder, verb):
  return (folder / 'calls').read_text().splitlines().count(verb)


DONE = 'print(1)'


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


@pytest.mark.slow
def test_local_processes_are_restarted_and_outlive_their_terminal(tmp_path, digits):
  """Two processes, of which each is stopped by a signal once, end as if nothing had happened."""
  config, path = digits(total='12 steps'), tmp_path / 'config.py'
  path.write_text(
    'import json\nfrom vit_jax.config import complete\n'
    f'def get_config():\n  return complete(json.loads({config.to_json()!r}))\n'
  )
  env = {**os.environ, 'XLA_FLAGS': compiling.flags(1), 'PYTHONPATH': str(ROOT)}

  def launch(name, *arguments, **more):
    done = subprocess.run(
      [sys.executable, '-m', 'experiments.launch', f'--workdir={tmp_path}/{name}', *arguments],
      cwd=ROOT, env={**env, **more}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout

  ask = (f'--config={path}', '--engine=local', '--processes=2', '--submit')
  for name, more in (('whole', {}), ('cut', dict(VIT_JAX_FAULT='sigterm at step 5'))):
    launch(name, *ask, **more)
  for name in ('whole', 'cut'):
    made = engines.of(str(tmp_path / name))
    with contextlib.suppress(ChildProcessError):
      os.waitpid(made.job.submitted['pid'], 0)
    while made.pid:  # it is nobody's child here
      supervise.time.sleep(0.1)
  log = (tmp_path / 'cut' / 'launch' / 'supervisor.log').read_text()
  assert 'attempt 2' in log, log
  assert 'the run is complete' in launch('cut', '--status')
  assert 'stopped by a signal at step' in launch('cut', '--logs')
  runs.assert_bit_identical(tmp_path / 'cut', tmp_path / 'whole')


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


# --- the doctor ---


@pytest.fixture
def examined(typed, data_dir):
  """Exit status and lines of the doctor."""

  def call(*arguments):
    status, out, err = typed('vit_jax.doctor', *arguments)
    assert ('error:' in err) == (status == 1), err
    return status, {line[6:].split()[0]: line for line in out.splitlines() if line[4:6] == '  '}

  return call


def test_a_sound_machine_passes(examined, tmp_path, data_dir):
  where = f'--config.data.source.dir={data_dir}', f'--workdir={tmp_path}/run'
  status, lines = examined(DIGITS, *where)
  assert status == 0
  assert [*lines] == [
    'software', 'host', *(['files'] if 'files' in lines else []), 'devices', 'step', 'decoder',
    'data', 'state', 'workdir', 'disk',
  ]  # fmt: skip
  assert f'jax {jax.__version__},' in lines['software']
  assert '8 x cpu' in lines['devices']
  assert 'digits/train and what is evaluated (test)' in lines['data']
  assert list(tmp_path.iterdir()) == []  # it leaves nothing behind
  # By hand, without a run.
  status, lines = examined()
  assert (status, 'data' in lines, 'workdir' in lines) == (0, False, False)


def test_what_fails_is_named_with_its_mend(examined, tmp_path, monkeypatch, data_dir):
  (tmp_path / 'file').touch()
  status, lines = examined(
    f'--config={ROOT}/configs/image_folder.py:{tmp_path}/none', f'--workdir={tmp_path}/file/run'
  )
  assert status == 1
  assert re.match(r'fail  data .*none', lines['data'])
  assert re.match(
    r'fail  workdir .*cannot be written: Not a directory -> another', lines['workdir']
  )
  monkeypatch.setattr(doctor, '_limit', lambda: 2**20)
  monkeypatch.setattr(doctor.paths, 'free', lambda _: 2**20)
  monkeypatch.setattr(doctor.resource, 'getrlimit', lambda _: (256, 8192))
  status, lines = examined(
    DIGITS, f'--config.data.source.dir={data_dir}', f'--workdir={tmp_path}/run'
  )
  assert status == 1
  assert '-> more devices, or --config.mesh=fsdp' in lines['state']
  assert lines['disk'].startswith('warn')
  assert lines['files'].endswith('at most 256 may be open at once -> ulimit -n 8192')


@pytest.mark.parametrize(
  ('part', 'wrong', 'message'),
  [
    ('numpy.einsum', lambda *_: 0 * _[1] + 1, 'fail  step      wrong products on cpu:0,'),
    ('lax.psum', lambda x, _: jax.lax.pmax(x, _), 'the sum over all devices is wrong'),
  ],
)
def test_devices_that_compute_wrong(examined, monkeypatch, part, wrong, message):
  monkeypatch.setattr(f'jax.{part}', wrong)
  status, lines = examined()
  assert status == 1
  assert message in lines['step']


def test_a_decoder_that_is_broken(examined, monkeypatch):
  monkeypatch.setattr('simplejpeg.decode_jpeg', lambda *_, buffer, **__: buffer.fill(0))
  status, lines = examined()
  assert status == 1
  assert 'simplejpeg does not give back an image -> pip install' in lines['decoder']


def test_accelerators_that_jax_does_not_see(examined, monkeypatch):
  monkeypatch.setattr(memory, 'accelerators', lambda: True)
  status, lines = examined()
  assert status == 0  # JAX_PLATFORMS=cpu, as these tests say
  assert lines['devices'].startswith('warn')
  monkeypatch.delenv('JAX_PLATFORMS')
  status, lines = examined()
  assert status == 1
  assert "install 'vit_jax[gpu]' or 'vit_jax[tpu]'" in lines['devices']
  assert 'step' not in lines  # it would only say the same


def test_other_software_on_one_machine(monkeypatch):
  monkeypatch.setattr(
    doctor.peers, 'shared', lambda _, text: [text.replace(', jax 0', ', jax 9')] * 2 + [text]
  )
  (finding,) = doctor._software(doctor._Patient())
  mine, theirs = jax.__version__, f'9{jax.__version__[1:]}'
  assert finding.level == doctor.FAIL
  assert finding.found == f'has jax {mine}, most others jax {theirs}'


@pytest.mark.parametrize(
  ('plugin', 'driver', 'found'),
  [
    ('jax-cuda12-plugin', '525.60.11', 'jax-cuda12-plugin needs 525.60.13'),
    ('jax-cuda13-plugin', '575.57.08', 'jax-cuda13-plugin needs 580'),
    ('jax-cuda12-plugin', '535.104.05', ''),
    ('jax-cuda13-plugin', '580.65.06', ''),
  ],
)
def test_drivers_that_are_too_old(monkeypatch, plugin, driver, found):
  head = f'NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Wed Nov 30 00:00:00 UTC 2022'
  monkeypatch.setattr(doctor.paths, 'head', lambda *_: head.encode())
  version = doctor.importlib.metadata.version
  monkeypatch.setattr(
    doctor.importlib.metadata, 'version', lambda name: '1' if name == plugin else version(name)
  )
  *warned, software = doctor._software(doctor._Patient())
  assert f'driver {driver}' in software.found
  assert [(each.level, each.found) for each in warned] == [
    ('warn', f'{driver} of NVIDIA, and {found}')
  ] * bool(found)


def test_failures_that_may_pass(monkeypatch, tmp_path):
  def busy(patient):
    raise PassingError('busy')

  def wrong(patient):
    raise RunError('wrong')

  def slow(*_):
    raise TimeoutError(110, 'it does not serve')

  for checks, status in (([busy], RESTART), ([busy, wrong], 1), ([], 0)):
    monkeypatch.setattr(doctor, '_CHECKS', {check: set() for check in checks})
    assert doctor.examine() == status
  monkeypatch.setattr(doctor, '_CHECKS', {doctor._workdir: set()})
  monkeypatch.setattr(doctor.paths, 'write_text', slow)
  assert doctor.examine(workdir=f'{tmp_path}/run') == RESTART


def test_a_run_that_is_to_be_deleted_is_not_asked(monkeypatch, tmp_path):
  from vit_jax.training import config as config_lib
  from vit_jax.training import lanes
  from vit_jax.training.workdir import Workdir

  seen = []

  def experiment(_, known):
    seen.append(known)
    raise RunError('as far as that')

  monkeypatch.setattr(lanes, 'experiment', experiment)
  monkeypatch.setattr(Workdir, 'known', lambda _: {'old': True})
  config = config_lib.load(DIGITS.partition('=')[2])
  for overwrite in (False, True):
    patient = doctor._Patient(config, f'{tmp_path}', overwrite)
    with pytest.raises(RunError, match='as far as that'):
      list(doctor._data(patient))
  assert seen == [{'old': True}, None]


def test_findings_of_many_processes_are_few_lines():
  fine = doctor.Finding('pass', 'step', '1 s')
  slow, bad = fine._replace(found='2 s'), doctor.Finding('fail', 'step', 'wrong', 'look')
  assert [*doctor._lines([[fine], [slow], [fine]])] == ['pass  step      1 s']
  assert [*doctor._lines([[fine], [bad], [slow], [bad]])] == [
    'pass  step      1 s', 'fail  step      process 1, 3: wrong -> look',
  ]  # fmt: skip
  assert [*doctor._lines([[bad], [bad]])] == ['fail  step      wrong -> look']


def test_two_processes_examine_each_other(tmp_path):
  """One of them has another directory under the name that both were given."""
  flags = f'--coordinator=127.0.0.1:{free_port()}', '--num_processes=2'
  env = {**os.environ, 'XLA_FLAGS': compiling.flags(1), 'PYTHONPATH': str(ROOT)}
  processes = [
    subprocess.Popen(
      [sys.executable, '-m', 'vit_jax.doctor', *flags, f'--process_id={i}',
       f'--workdir={tmp_path}/{"ab"[i]}'],
      env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )
    for i in range(2)
  ]  # fmt: skip
  (out, err), _ = (process.communicate() for process in processes)
  assert [process.returncode for process in processes] == [1, 1], (out, err)
  assert '2 x cpu, 1 in each of 2 processes' in out
  assert 'pass  clock ' in out
  assert 'fail  workdir   process 1: ' in out
  assert 'is not the directory that process 0 has under this name' in out


def test_training_begins_with_the_doctor(typed, tmp_path, monkeypatch):
  monkeypatch.setattr('vit_jax.training.loop.train', lambda *_, **__: {'step': 1})
  flags = DIGITS, f'--workdir={tmp_path}/run', '--doctor'
  calls = []
  monkeypatch.setattr(doctor, 'examine', lambda *a, **b: calls.append((a[1], b)))
  assert typed('vit_jax.train', *flags)[0] == 0
  assert typed('vit_jax.train', *flags, '--overwrite')[0] == 0
  assert calls == [(flags[1][10:], dict(overwrite=overwrite)) for overwrite in (False, True)]
  for status in (1, RESTART):
    monkeypatch.setattr(doctor, 'examine', lambda *_, code=status, **__: code)
    assert typed('vit_jax.train', *flags)[0] == status
  assert typed('vit_jax.train', *flags[:2])[0] == 0
  monkeypatch.setattr('vit_jax.training.loop.train', lambda *_, **__: None)
  assert typed('vit_jax.train', *flags[:2])[0] == RESTART


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
