"""What the tools of clusters accept, from their own parsers: `python -m tests.tools` writes it.

Where a tool is installed its parser is asked; where it is not, `golden/tools.json` stands for it.
gcloud needs no account for that, and xpk no cluster.
"""

import ast
import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'tools.json'
# What is called of them, and where that is said.
CALLED = {
  'xpk': ('workload create', 'workload list', 'workload delete', 'cluster create'),
  'gcloud': (
    'compute tpus queued-resources create', 'compute tpus queued-resources describe',
    'compute tpus queued-resources delete', 'compute tpus tpu-vm ssh', 'compute tpus tpu-vm scp',
    'storage buckets create', 'config set',
  ),
  'kubectl': ('logs', 'get'),
  'sbatch': ('',), 'srun': ('',), 'squeue': ('',), 'scancel': ('',),
}  # fmt: skip
# Read by a program of xpk's own Python: nothing of xpk is started.
_XPK = """
import argparse, json, sys
from xpk.parser.core import set_parser
parser = argparse.ArgumentParser(prog='xpk')
set_parser(parser=parser)
"""
_XPK_FLAGS = f"""{_XPK}
def flags(words):
  at = parser
  for word in words.split():
    (commands,) = (a for a in at._actions if isinstance(a, argparse._SubParsersAction))
    at = commands.choices[word]
  return sorted(f for a in at._actions for f in a.option_strings if f.startswith('--'))
print(json.dumps({{words: flags(words) for words in sys.argv[1:]}}))
"""
_XPK_PARSE = f"""{_XPK}
parser.parse_args(sys.argv[1:])
"""


def python_of_xpk():
  """The interpreter that xpk is installed for."""
  return str(pathlib.Path(shutil.which('xpk')).parent / 'python')


def quiet(folder):
  """An environment in which gcloud has no account and asks nobody, and kubectl no cluster."""
  return {
    **os.environ, 'CLOUDSDK_CONFIG': str(folder), 'CLOUDSDK_CORE_CHECK_GCE_METADATA': 'false',
    'CLOUDSDK_CORE_DISABLE_USAGE_REPORTING': 'true', 'CLOUDSDK_CORE_DISABLE_PROMPTS': 'true',
    'CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK': 'true', 'CLOUDSDK_CORE_PROJECT': 'none',
    'KUBECONFIG': '/dev/null', 'HOME': str(folder),
  }  # fmt: skip


def parsed_by_xpk(words):
  """What xpk's parser complains of; '' if it takes the words."""
  done = subprocess.run(
    [python_of_xpk(), '-c', _XPK_PARSE, *words[1:]], capture_output=True, text=True
  )
  return done.stderr if done.returncode else ''


def parsed_by_gcloud(words, folder):
  """The same of gcloud: it goes no further than to miss an account."""
  done = subprocess.run(words, capture_output=True, text=True, env=quiet(folder), cwd=folder)
  return '' if 'You do not currently have an active account' in done.stderr else done.stderr


def said(*words):
  with tempfile.NamedTemporaryFile('w') as conf:  # without one Slurm's do not even tell their help
    conf.write('ClusterName=none\nSlurmctldHost=localhost\n')
    conf.flush()
    env = {**os.environ, 'SLURM_CONF': conf.name}
    return subprocess.run(words, capture_output=True, text=True, check=True, env=env).stdout


def _help(tool, words):
  if tool == 'kubectl':
    text = said(tool, words, '--help') + said(tool, 'options')
  else:  # the help of Slurm's tools leaves some out
    text = gzip.decompress(pathlib.Path(f'/usr/share/man/man1/{tool}.1.gz').read_bytes()).decode()
    text = re.sub(r'\\f[BIR]', ' ', text).replace('\\-', '-')
  return sorted(set(re.findall(r'(?<![\w-])--[a-z][a-z-]+', text)))


def _gcloud(words):
  """From the table that completes its commands in a shell."""
  root = pathlib.Path(shutil.which('gcloud')).resolve().parent.parent
  text = (root / 'data' / 'cli' / 'gcloud_completions.py').read_text()
  tree = ast.literal_eval(text[text.index('{') :])
  own = set(tree['flags'])
  for word in words.split():
    tree = tree['commands'][word]
    own |= set(tree['flags'])
  return sorted(own)


def _joined(flags):
  return {words: ' '.join(each) for words, each in flags.items()}


def accepted(tool):
  """Version of an installed tool, and the flags of each of its commands."""
  if tool == 'xpk':
    flags = json.loads(said(python_of_xpk(), '-c', _XPK_FLAGS, *CALLED['xpk']))
    what = "import importlib.metadata as m; print(m.version('xpk'))"
    return {'version': said(python_of_xpk(), '-c', what).strip(), 'flags': _joined(flags)}
  if tool == 'gcloud':
    version = said('gcloud', 'version').split('\n')[0].split()[-1]
    flags = {words: _gcloud(words) for words in CALLED[tool]}
    return {'version': version, 'flags': _joined(flags)}
  version = said('kubectl', 'version', '--client') if tool == 'kubectl' else said(tool, '--version')
  return {
    'version': re.search(r'\d[\w.]+', version)[0],
    'flags': _joined({words: _help(tool, words) for words in CALLED[tool]}),
  }


def complaint(words, table):
  """What is wrong with a command by the table of what is accepted; '' if nothing is."""
  tool = words[0]
  plain = []
  for word in words[1:]:
    if word.startswith('-'):
      break
    plain.append(word)
  known = table[tool]['flags']
  command = max((c for c in known if ' '.join(plain).startswith(c)), key=len, default=None)
  if command is None:
    return f'{tool} {" ".join(plain)}: not among {", ".join(known)}'
  flags = [word.partition('=')[0] for word in words if word.startswith('--') and len(word) > 2]
  wrong = [flag for flag in flags if flag not in known[command].split()]
  return f'{tool} {command} has no {", ".join(wrong)}' if wrong else ''


def check(tool):
  """The table is what this version of a tool says, if it was made of the same."""
  found, kept = accepted(tool), table()[tool]
  assert found['version'] != kept['version'] or found == kept


def table():
  return json.loads(GOLDEN.read_text())


if __name__ == '__main__':
  found = {tool: accepted(tool) for tool in CALLED if shutil.which(tool)}
  if missing := CALLED.keys() - found.keys():
    raise SystemExit(f'not installed: {", ".join(sorted(missing))}')
  GOLDEN.write_text(json.dumps(found, indent=1) + '\n')
