"""Checkpoints of the Hugging Face hub, from a server here that speaks what is used of it."""

import hashlib
import http.server
import json
import sys
import threading

import huggingface_hub.constants
import jax
import numpy as np
import pytest

import vit_jax
from tests import toys
from vit_jax.convert import hub, notes
from vit_jax.core.errors import RunError
from vit_jax.nn import tree
from vit_jax.predict import main as predict
from vit_jax.train import train
from vit_jax.training import config as config_lib

OLD, NEW = 'a' * 40, 'b' * 40


class Hub(http.server.ThreadingHTTPServer):
  """Serves `files`: by repository and commit, contents by name; `main` is the newest commit."""

  def __init__(self):
    super().__init__(('127.0.0.1', 0), Handler)
    self.files, self.asked = {}, []

  @property
  def address(self):
    return f'http://127.0.0.1:{self.server_address[1]}'


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.0'  # no connection outlives the server

  def log_message(self, *_):
    pass

  def _say(self, status, body=b'', **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(body)

  def do_GET(self):
    self.server.asked.append((self.command, self.path))
    parts = self.path.partition('?')[0].strip('/').split('/')
    model = parts[:2] == ['api', 'models']
    repo = '/'.join(parts[2:4] if model else parts[:2])
    commits = self.server.files.get(repo)
    if commits is None:
      return self._say(404, X_Error_Code='RepoNotFound')
    revision = parts[5] if model and parts[4:] else parts[3] if not model else 'main'
    commit = list(commits)[-1] if revision == 'main' else revision
    if commit not in commits:
      return self._say(404, X_Error_Code='RevisionNotFound')
    files = commits[commit]
    if model:
      known = [{'rfilename': name} for name in files]
      body = json.dumps({'id': repo, 'modelId': repo, 'sha': commit, 'siblings': known, 'tags': [],
                         'private': False, 'downloads': 0, 'likes': 0}).encode()  # fmt: skip
      return self._say(200, body, Content_Type='application/json')
    name = '/'.join(parts[4:])
    if name not in files:
      return self._say(404, X_Error_Code='EntryNotFound', X_Repo_Commit=commit)
    body = files[name]
    etag = f'"{hashlib.sha256(body).hexdigest()}"'
    return self._say(200, body, ETag=etag, X_Repo_Commit=commit)

  do_HEAD = do_GET  # noqa: N815


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
  """Files of a model as transformers has it, in one and in several parts, and as npz."""
  folder = tmp_path_factory.mktemp('models')
  model = vit_jax.create('mu/8', image_size=(16, 16), num_classes=3, width=16, depth=2, mlp_dim=32,
                         num_heads=2)  # fmt: skip
  rng = np.random.default_rng(0)
  card = model.card
  model = jax.tree.map(lambda x: np.asarray(rng.normal(0, 0.1, x.shape), np.float32), model)
  model.card = card
  with notes.printed(sys.stderr):
    vit_jax.save(model, folder / 'hf', 'transformers')
    vit_jax.save(model, folder / 'B.npz', 'vit')
  files = {path.name: path.read_bytes() for path in (folder / 'hf').iterdir()}
  return model, files, (folder / 'B.npz').read_bytes(), folder


@pytest.fixture
def served(contents, tmp_path, monkeypatch):
  """The server with a repository, and an empty cache."""
  _, files, npz, _ = contents
  server = Hub()
  threading.Thread(target=server.serve_forever, daemon=True).start()
  server.files = {
    'us/plain': {OLD: {**files, 'config.json': b'{}'}, NEW: {**files, 'README.md': b'hello'}},
    'us/npz': {NEW: {'sub/B.npz': npz}},
    'us/pickled': {NEW: {'pytorch_model.bin': b'\x80\x04.', 'config.json': b'{}'}},
    'us/several': {NEW: {'a.npz': npz, 'b.npz': npz}},
  }
  for name, value in (  # as HF_ENDPOINT and HF_HOME make them, when the package is imported
    ('ENDPOINT', server.address), ('HF_HUB_CACHE', str(tmp_path / 'cache')),
    ('HUGGINGFACE_CO_URL_TEMPLATE', server.address + '/{repo_id}/resolve/{revision}/{filename}'),
  ):  # fmt: skip
    monkeypatch.setattr(huggingface_hub.constants, name, value)
  yield server
  server.shutdown()
  server.server_close()


def test_it_is_read_wherever_a_checkpoint_is(served, contents, tmp_path, typed, photos, capsys):
  """Loaded, inspected, converted, predicted with, started from; each time as the file itself is."""
  model, *_ = contents
  for text in ('hf:us/plain', f'hf:us/plain@{NEW}', 'hf:us/npz', 'hf:us/npz/sub/B.npz'):
    read = tree.flatten(vit_jax.load(text))
    for name, leaf in tree.flatten(model).items():
      np.testing.assert_array_equal(read[name], leaf, err_msg=f'{text} {name}')
  assert not any('README' in path for _, path in served.asked)
  status, out, _ = typed('vit_jax.inspect', 'hf:us/plain', '--no-names')
  assert status == 0
  assert f'commit        {NEW}' in out
  assert typed('vit_jax.convert', 'hf:us/plain', tmp_path / 'x.npz', '--to=vit')[0] == 0
  image = next((photos / 'test' / 'cat').iterdir())
  assert predict('hf:us/plain', [str(image)], 1, 1, None, {}) == 0
  config = toys.config(photos, init='hf:us/plain').to_dict()
  config['model'] = {'name': 'vit', 'dtype': 'float32'}
  result = train(config_lib.complete(config), str(tmp_path / 'run'))
  assert result['origins'] == {'init': NEW}
  record = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert record['init'] == 'hf:us/plain'
  status, out, _ = typed('vit_jax.report', tmp_path / 'run')
  assert f'commit {NEW[:12]}' in (tmp_path / 'run' / 'report.html').read_text()
  capsys.readouterr()


def test_shards_are_fetched(served, contents, tmp_path):
  model, files, *_ = contents
  (tmp_path / 'whole').mkdir()
  (tmp_path / 'whole' / 'model.safetensors').write_bytes(files['model.safetensors'])
  from safetensors.numpy import load_file, save

  arrays = load_file(tmp_path / 'whole' / 'model.safetensors')
  names = sorted(arrays)
  shards = {f'part-{i}.safetensors': {n: arrays[n] for n in names[i::2]} for i in range(2)}
  index = {'weight_map': {name: shard for shard, own in shards.items() for name in own}}
  served.files['us/shards'] = {NEW: {
    'config.json': files['config.json'],
    'model.safetensors.index.json': json.dumps(index).encode(),
    **{shard: save(own) for shard, own in shards.items()},
  }}  # fmt: skip
  read = tree.flatten(vit_jax.load('hf:us/shards'))
  for name, leaf in tree.flatten(model).items():
    np.testing.assert_array_equal(read[name], leaf, err_msg=name)


def test_the_cache_serves_where_there_is_no_network(served, contents):
  """By branch and by commit; what is not there is one sentence."""
  vit_jax.load('hf:us/plain')
  served.shutdown()
  served.server_close()
  model, *_ = contents
  for text in ('hf:us/plain', f'hf:us/plain@{NEW}'):
    place = hub.fetched(text)
    assert place.revision == NEW
    read = tree.flatten(vit_jax.load(text))
    for name, leaf in tree.flatten(model).items():
      np.testing.assert_array_equal(read[name], leaf, err_msg=name)
  for text in ('hf:us/npz', f'hf:us/plain@{OLD}'):
    with pytest.raises(RunError, match=f'{text} cannot be fetched, and is not in the cache at '):
      vit_jax.load(text)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('hf:us', r'hf:us: write hf:OWNER/NAME'),
    ('hf:us/none', 'the hub has no such repository, or it is private'),
    ('hf:us/plain@none', "has no revision 'none'"),
    ('hf:us/plain/none.npz', r'has no file none\.npz; it has .*config\.json'),
    ('hf:us/pickled', r'no weights as safetensors or npz; a pickle is read, without running it'),
    ('hf:us/several', r'several files of weights: name one, hf:us/several/a\.npz: a\.npz, b\.npz'),
  ],
)
def test_what_cannot_be_had_is_one_sentence(served, text, message):
  with pytest.raises(RunError, match=message):
    vit_jax.load(text)
  assert not [path for _, path in served.asked if path.endswith('.bin')]


def test_a_pickle_is_fetched_if_it_is_named(served):
  with pytest.raises(RunError, match='neither npz nor safetensors nor a zip file of PyTorch'):
    vit_jax.load('hf:us/pickled/pytorch_model.bin')
  assert [path for _, path in served.asked if path.endswith('.bin')]


def test_the_package_may_be_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(
    RunError, match=r"hf:us/plain needs the package .* pip install 'vit_jax\[hub\]"
  ):
    vit_jax.load('hf:us/plain')
  assert huggingface_hub
