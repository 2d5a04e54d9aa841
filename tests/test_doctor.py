"""The doctor: a sound machine passes, and what is wrong is named with its mend."""

import re

import jax
import pytest

from tests import runs
from tests.conftest import ROOT
from tests.launching import DIGITS
from vit_jax.core.errors import RESTART, PassingError, RunError
from vit_jax.launch import doctor, memory
from vit_jax.training import config as config_lib
from vit_jax.training import lanes
from vit_jax.training.workdir import Workdir


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

  def command(number, *flags):
    where = f'--workdir={tmp_path}/{"ab"[number]}'
    return runs.python('-m', 'vit_jax.doctor', *flags, where)

  with runs.started(*runs.several(2, command)) as processes:
    runs.finish(processes, 1)
  out = processes[0].out
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
