"""Batch scripts for Slurm. `test_slurm` submits them to a cluster."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from experiments.launch import engine as engine_lib
from experiments.launch import engines
from tests import tools
from tests.launching import job


def directives(text):
  """The options that a batch script gives to sbatch, as its command line."""
  return ['sbatch', *re.findall(r'^#SBATCH (.*)$', text, re.M)]


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
