"""Templates and names of CLIP's authors: `python -m tests.golden.make_prompts DIRECTORY`.

Writes vit_jax/text/templates.json and vit_jax/text/imagenet_names.txt. The directory is a clone of
github.com/openai/CLIP, a bare one too; the commit is below.
"""

import ast
import json
import pathlib
import re
import subprocess
import sys

from tests import golden

COMMIT = 'd05afc436d78f1c48dc0dbf8e5980a9d471f35f6'
PROMPTS = 'data/prompts.md'
NOTEBOOK = 'notebooks/Prompt_Engineering_for_ImageNet.ipynb'
# Sections of their page whose data set has another name with TFDS.
CALLED = {
  'clevrcounts': 'clevr_counts', 'describabletextures': 'dtd', 'fgvcaircraft': 'fgvc_aircraft',
  'facialemotionrecognition2013': 'fer2013', 'flowers102': 'oxford_flowers102',
  'hatefulmemes': 'hateful_memes', 'oxfordpets': 'oxford_iiit_pet', 'pascalvoc2007': 'voc2007',
  'patchcamelyon': 'patch_camelyon', 'stanfordcars': 'cars196',
}  # fmt: skip


def shown(directory, path):
  show = ['git', '-C', directory, 'show', f'{COMMIT}:{path}']
  return subprocess.check_output(show, text=True)


def listed(code, name):
  """The list that has this name in a piece of Python."""
  for node in ast.parse(code).body:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
      return ast.literal_eval(node.value)


def main(directory):
  cells = [''.join(cell['source']) for cell in json.loads(shown(directory, NOTEBOOK))['cells']]
  names, templates = (
    listed(next(cell for cell in cells if cell.startswith(name)), name)
    for name in ('imagenet_classes', 'imagenet_templates')
  )
  seven = re.findall(r'^\d\. (.*\{\}.*)$', next(c for c in cells if 'locked' in c), re.M)
  sets = {'imagenet': templates, 'imagenet7': seven}
  for name, code in re.findall(
    r'^## (\w+)\n+```bash\n(.*?)^```', shown(directory, PROMPTS), re.M | re.S
  ):
    sets[CALLED.get(name.lower(), name.lower())] = listed(code, 'templates')
  folder = golden.FOLDER.parent.parent / 'vit_jax' / 'text'
  lines = [f'{json.dumps(n)}: {json.dumps(s, ensure_ascii=False)}' for n, s in sets.items()]
  (folder / 'templates.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')
  (folder / 'imagenet_names.txt').write_text('\n'.join(names) + '\n')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
