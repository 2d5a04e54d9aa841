"""Workloads of xpk: its parser takes them, and those of others are left alone."""

import os
import shutil
import sys

import pytest

from experiments.launch import engines, tpus
from tests import tools
from tests.conftest import ROOT
from tests.launching import commands, job


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('xpk'), reason='xpk is not on PATH; as CONTRIBUTING')
def test_xpk_parses_them():
  found = commands('xpk')
  assert [tools.parsed_by_xpk(words) for words in found if words[0] == 'xpk'] == [''] * 3
  assert 'required' in tools.parsed_by_xpk(['xpk', 'workload', 'create', '--cluster=c'])
  tools.check('xpk')


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
