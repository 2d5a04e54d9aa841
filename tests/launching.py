"""Jobs of the launcher, as tests ask for them."""

from experiments.launch import engine as engine_lib
from experiments.launch import engines
from experiments.launch.job import Job
from tests import tools
from tests.conftest import ROOT

DIGITS = f'--config={ROOT}/configs/digits.py'
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
