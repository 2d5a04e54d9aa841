"""A Slurm cluster of one node, on this machine, for as long as a context lasts.

From Debian's packages (slurmctld slurmd munge slurm-client), as root. It listens on loopback only.
"""

import contextlib
import os
import pathlib
import platform
import secrets
import shutil
import signal
import subprocess
import tempfile
import time

from tests.runs import free_port

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch')
# A job that is put back waits until its credentials have expired: two minutes, if nothing is said.
EXPIRE = 5
CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={d}/munge.sock,cred_expire={expire}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.pid
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool
SlurmctldLogFile={d}/log/slurmctld.log
SlurmdLogFile={d}/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=2
SlurmdTimeout=30
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes={host} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def missing():
  """What of it is not installed here."""
  return [name for name in PROGRAMS if not find(name)]


def find(name):
  return shutil.which(name) or shutil.which(name, path='/usr/sbin:/sbin')


def said(*words, env):
  done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
  return done.stdout.strip()


def until(what, seconds, reason):
  """Looks until something is there."""
  end = time.monotonic() + seconds
  while not (found := what()):
    assert time.monotonic() < end, reason()
    time.sleep(0.1)  # between looks; what is tested does not depend on it
  return found


@contextlib.contextmanager
def cluster():
  """The environment of the cluster's users."""
  # Munge wants a directory that everybody may pass through, which those of pytest are not.
  folder = pathlib.Path(tempfile.mkdtemp(prefix='slurm_'))
  folder.chmod(0o755)
  for name in ('state', 'spool', 'log'):
    (folder / name).mkdir(parents=True)
  conf, key = folder / 'slurm.conf', folder / 'munge.key'
  ports = free_port(), free_port()
  conf.write_text(CONF.format(d=folder, host=platform.node(), ports=ports, expire=EXPIRE))
  key.write_bytes(secrets.token_bytes(128))
  key.chmod(0o600)
  env = {**os.environ, 'SLURM_CONF': str(conf)}
  munge = [f'--{n}={folder}/munge.{n.partition("-")[0]}' for n in ('pid-file', 'log-file')]
  daemons = (
    [find('munged'), f'--key-file={key}', f'--socket={folder}/munge.sock',
     f'--seed-file={folder}/seed', *munge],
    [find('slurmctld'), '-c'],
    [find('slurmd')],
  )  # fmt: skip
  logs = lambda: ''.join(path.read_text()[-3000:] for path in (folder / 'log').iterdir())  # noqa: E731
  try:
    for words in daemons:
      subprocess.run(words, env=env, check=True)
    idle = lambda: said('sinfo', '-h', '-o', '%T', env=env).split()[:1] == ['idle']  # noqa: E731
    until(idle, 30, logs)
    yield env
  finally:
    with contextlib.suppress(Exception):  # else its steps would outlive it
      said('scancel', '--signal=KILL', '--full', '--user=root', env=env)
      said('scancel', '--user=root', env=env)
      until(lambda: not said('squeue', '-h', env=env), 60, logs)
    for name in ('slurmd', 'slurmctld', 'munge'):
      with contextlib.suppress(OSError, ValueError):
        os.kill(int((folder / f'{name}.pid').read_text()), signal.SIGTERM)
    shutil.rmtree(folder, ignore_errors=True)
