"""The commands: `python -m vit_jax`."""

import sys

from vit_jax import __version__

COMMANDS = {
  'train': 'train a model, or go on training it',
  'finetune': 'fine-tune a checkpoint on images, by a recipe that is chosen and explained',
  'evaluate': 'evaluate a run, or a checkpoint of any dialect',
  'predict': 'predict on images with a checkpoint of any dialect',
  'chat': 'answer questions about an image with a language model that sees',
  'embed': 'write features of a data set, by a checkpoint of any dialect, to a table',
  'probe': 'judge features beside raw pixels and random parameters',
  'report': 'make report.html of a run anew',
  'inspect': 'say what is in a checkpoint',
  'convert': 'convert a checkpoint from one dialect to another',
  'models': 'list models by name, with parameters and GMACs',
  'flops': 'say what a model costs, by part and by convention',
  'plan': 'compile a run for chips that are not there: does it fit, how fast is it',
  'text': 'train a vocabulary of texts, or show what a tokenizer makes of one',
  'doctor': 'examine the machines before a run',
  'data.pack': 'make the images of a data set smaller',
  'scaling.fit': 'fit a scaling law to a table of runs',
}

if __name__ == '__main__':
  if sys.argv[1:] and sys.argv[1] not in ('-h', '--help'):
    near = sys.argv[1] if sys.argv[1] in COMMANDS else 'COMMAND'
    sys.exit(f'error: commands are modules: python -m vit_jax.{near} ARGUMENT...')
  print(f'vit_jax {__version__}: Vision Transformers in JAX\n')
  for name, about in COMMANDS.items():
    print(f'  python -m vit_jax.{name:<12} {about}')
  print('\nEach of them explains itself with --help.')
