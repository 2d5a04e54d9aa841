"""Counts an attempt at a job: `python -m experiments.launch.attempt WORKDIR [COMMAND...]`.

Exit status 1 if there is no use in another one; else this process becomes the command, if there is
one. Of the pods of a JobSet the first counts.
"""

import functools
import os
import sys

from experiments.launch import job
from vit_jax.core import command

# Of a pod: its number within a slice, and that of its slice.
PLACE = ('JOB_COMPLETION_INDEX', 'MEGASCALE_SLICE_ID')

if __name__ == '__main__':
  workdir, *words = sys.argv[1:]
  if all(os.environ.get(name, '0') == '0' for name in PLACE):
    with command.errors():
      say = functools.partial(print, flush=True)
      job.begin(job.patiently(lambda: job.load(workdir), say), say)
  if words:
    os.execvp(words[0], words)
