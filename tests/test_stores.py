"""Object stores as directories: in memory, on emulators, and on servers that fail."""

import concurrent.futures
import contextlib
import errno
import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest

from tests import emulators
from vit_jax.core import stores
from vit_jax.core.errors import RunError


@pytest.fixture
def folder():
  root = stores.parse('memory://bucket/run')
  yield root
  stores.delete(root)


def test_paths_are_like_those_of_pathlib(folder):
  path = folder / 'a/b.tar.json'
  assert (str(path), path.name, path.stem, path.suffix) == (
    'memory://bucket/run/a/b.tar.json', 'b.tar.json', 'b.tar', '.json'
  )  # fmt: skip
  assert path.parent.parent == folder == path.absolute().parent / '..'
  assert path.parts == ('memory://bucket', 'run', 'a', 'b.tar.json')
  assert path.with_name('c') == folder / 'a' / 'c'
  assert pickle.loads(pickle.dumps(path)) == path
  assert stores.parse('memory:///bucket//x/../run/') == folder  # as people write them
  assert stores.parse('file:///tmp/x') is None is stores.parse('runs/x')
  with pytest.raises(TypeError):
    os.fspath(path)  # or what opens files would make a local one


def test_what_is_written_is_there(folder):
  assert not folder.exists()
  assert list(folder.glob('*')) == []
  (folder / 'c').write_bytes(b'hello\nworld\n')
  (folder / 'a/b').write_bytes(b'1')
  assert (folder.exists(), folder.is_dir(), folder.is_file()) == (True, True, False)
  assert ((folder / 'c').is_file(), (folder / 'c').is_dir()) == (True, False)
  entries = {entry.name: (entry.is_dir(), entry.is_file()) for entry in folder.entries()}
  assert entries == {'a': (True, False), 'c': (False, True)}
  assert [path.name for path in folder.iterdir()] == ['a', 'c']
  assert [path.name for path in folder.glob('?')] == ['a', 'c']
  assert (folder / 'c').read_bytes(5) == b'hello'
  assert (folder / 'c').read_range(6, 9) == b'wor'
  assert list((folder / 'c').open()) == ['hello\n', 'world\n']
  with (folder / 'c').open('rb') as file:
    file.seek(-6, 2)
    assert file.read() == b'world\n'
  assert folder.files() == {'a/b': 1, 'c': 12}
  (folder / 'c').write_bytes(b'2')
  assert (folder / 'c').read_text() == '2'
  (folder / 'c').unlink()
  (folder / 'c').unlink(missing_ok=True)
  stores.move(folder, folder.with_name('other'), first='a/b')
  assert (folder.with_name('other') / 'a/b').read_bytes() == b'1'
  stores.delete(folder.with_name('other'), first='a/b')
  assert not folder.with_name('other').exists()
  assert not folder.exists()


def test_what_a_store_cannot_do(folder):
  for call in (
    lambda: (folder / 'no').read_bytes(), lambda: (folder / 'no').unlink(),
    lambda: list((folder / 'no').iterdir()),
  ):  # fmt: skip
    with pytest.raises(FileNotFoundError) as error:
      call()
    assert error.value.strerror == 'there is no such object, or no such bucket'
  (folder / 'lock').make(b'1')
  with pytest.raises(FileExistsError):
    (folder / 'lock').make(b'2')
  with pytest.raises(ValueError, match='written whole'):
    (folder / 'lock').open('ab')


@pytest.mark.parametrize(
  ('url', 'message'),
  [('gs://', 'which bucket'), ('gsx://bucket/x', 'is no store that can be read or written')],
)
def test_urls_that_are_wrong(url, message):
  with pytest.raises(RunError, match=message):
    stores.parse(url)


def test_what_may_pass_is_asked_again(folder, monkeypatch):
  class BusyError(Exception):
    code = 503

  (folder / 'c').write_bytes(b'1')
  system, asked = type(stores._filesystem('memory')), []
  real = system.cat_file

  def cat_file(self, *args, **options):
    asked.append(1)
    if len(asked) < 3:
      raise BusyError('come back later')
    return real(self, *args, **options)

  monkeypatch.setattr(system, 'cat_file', cat_file)
  monkeypatch.setattr(stores, '_FIRST_PAUSE', 0.001)
  before = stores.retries()
  assert (folder / 'c').read_bytes() == b'1'
  assert stores.retries() - before == 2
  # What a person must change is not.
  asked.clear()
  BusyError.code = 403
  with pytest.raises(PermissionError, match='not permitted: come back later') as error:
    (folder / 'c').read_bytes()
  assert error.value.errno == errno.EACCES
  assert len(asked) == 1


def test_long_listings(folder, monkeypatch):
  """One that does not end in time gets more of it where the store serves, and only there."""
  (folder / 'c').write_bytes(b'1')
  real, given, serves = stores._once, [], [True]

  class FSTimeoutError(Exception):
    pass

  def once(path, name, args, options, timeout):
    if name == 'info':
      if not serves[0]:
        raise FSTimeoutError
    elif name == 'ls':
      given.append(timeout)
      if timeout < 100:
        raise FSTimeoutError
    return real(path, name, args, options, timeout)

  monkeypatch.setattr(stores, '_once', once)
  monkeypatch.setattr(stores, '_FIRST_PAUSE', 0.001)
  assert [entry.name for entry in folder.entries()] == ['c']
  assert given == pytest.approx([stores.ONE, 4 * stores.ONE, 16 * stores.ONE])
  serves[0] = False
  monkeypatch.setattr(stores, 'TOGETHER', 0.0)
  with pytest.raises(stores.BusyError, match='it does not answer in time'):
    folder.entries()


# --- real servers ---


def script(code, changes):
  """Runs it with `root`, a path of each store; what it printed as JSON."""
  head = """
    import json, pathlib, resource, tempfile, time
    from vit_jax.core import stores
    roots = [stores.parse(f'{scheme}://bucket/run') for scheme in ('gs', 's3')]
  """
  text = textwrap.dedent(head) + textwrap.dedent(code)
  done = subprocess.run(
    [sys.executable, '-W', 'ignore', '-c', text], env=emulators.own(changes), text=True,
    capture_output=True, timeout=300,
  )  # fmt: skip
  assert not done.returncode, done.stderr
  return json.loads(done.stdout)


@pytest.mark.slow
def test_both_stores():
  code = """
    found = []
    here = pathlib.Path(tempfile.mkdtemp())
    for i in range(40):
      (here / str(i % 7)).mkdir(exist_ok=True)
      (here / f'{i % 7}/{i}').write_bytes(b'x' * i)
    for root in roots:
      stores.put(root, str(here), [str(path.relative_to(here)) for path in here.rglob('*/*')])
      (root / 'c').write_bytes(b'one')
      (root / 'c').write_bytes(b'other')
      (root / 'lock').make(b'1')
      said = []
      for call in (lambda: (root / 'lock').make(b'2'), lambda: (root / 'no').read_bytes(),
                   lambda: stores.parse(f'{root.scheme}://nothing-here/x').write_bytes(b'1')):
        try:
          call()
        except OSError as error:
          said.append([type(error).__name__, error.strerror])
      names = [entry.name for entry in root.entries()]
      read = [(root / 'c').read_text(), (root / '3/10').stat().st_size, root.is_dir(),
              root.is_file(), (root / 'lock').is_file(), len(root.files())]
      stores.move(root / '3', root / 'moved')
      read += [len((root / 'moved').files()), (root / '3').exists()]
      stores.delete(root, first='c')
      found.append([said, names, read, root.exists()])
    print(json.dumps(found))
  """
  with emulators.stores() as changes:
    for said, names, read, left in script(code, changes):
      absent = ['FileNotFoundError', 'there is no such object, or no such bucket']
      assert said == [['FileExistsError', 'there is one already'], absent, absent]
      assert names == [*'0123456', 'c', 'lock']
      assert read == ['other', 10, True, False, True, 42, 6, False]
      assert not left


@pytest.mark.slow
def test_large_files_go_in_pieces():
  code = """
    with tempfile.NamedTemporaryFile() as file:
      file.truncate(512 * 2**20)
      found = []
      for root in roots:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (root / 'large').upload(file.name)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        found.append([root.scheme, grown / 1024, (root / 'large').stat().st_size])
    print(json.dumps(found))
  """
  with emulators.stores() as changes:
    for scheme, grown, size in script(code, changes):
      assert size == 512 * 2**20
      assert grown < 256, scheme  # MiB


@pytest.mark.slow
def test_servers_that_fail():
  """One clear error within 30 seconds, whatever the library behind does."""
  code = """
    from concurrent.futures import ThreadPoolExecutor

    def ask(root):
      begun = time.monotonic()
      try:
        (root / 'c').read_bytes(3)
      except OSError as error:
        return [type(error).__name__, error.strerror, time.monotonic() - begun]

    with ThreadPoolExecutor(2) as pool:
      print(json.dumps(list(pool.map(ask, roots))))
  """
  with contextlib.ExitStack() as stack:
    urls = {'silent': stack.enter_context(emulators.silent()), 'refused': emulators.refused()}
    for status in (503, 429, 403):
      urls[str(status)] = stack.enter_context(emulators.answering(status))
    with concurrent.futures.ThreadPoolExecutor(len(urls)) as pool:
      ask = lambda url: script(code, emulators.environment(url, url))  # noqa: E731
      found = dict(zip(urls, pool.map(ask, urls.values()), strict=True))
  for kind, answers in found.items():
    for name, text, seconds in answers:
      assert seconds < 30
      if kind == '403':
        assert (name, seconds < 10) == ('DeniedError', True), text
      else:
        assert (name, 'tries in' in text) == ('BusyError', True), (kind, text)


@pytest.mark.slow
def test_a_store_that_comes_back():
  code = """
    begun = time.monotonic()
    roots[0].write_bytes(b'1')
    print(json.dumps([roots[0].read_text(), time.monotonic() - begun]))
  """
  with (
    emulators.stores() as changes,
    emulators.answering(503, times=3, then=changes['STORAGE_EMULATOR_HOST']) as url,
  ):
    text, seconds = script(code, {**changes, 'STORAGE_EMULATOR_HOST': url})
  assert text == '1'
  assert seconds < stores.TOGETHER
