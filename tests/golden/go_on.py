"""Goes on with golden runs by the configurations that began them.

    python -m tests.golden.go_on OUT RUN...

The caller sets the flags of XLA that they were made with. OUT gets, as JSON, the kind of machine
that this is and what training returned for each run.
"""

import json
import pathlib
import sys

from absl import flags

from tests.golden import make_runs
from vit_jax.training import config as config_lib
from vit_jax.training.loop import train

if __name__ == '__main__':
  flags.FLAGS.mark_as_parsed()  # Grain's workers read flags
  out, *runs = sys.argv[1:]
  found = {'machine': make_runs.machine()}
  for run in runs:
    config, wishes = config_lib.started(make_runs.configuration(run), ())
    found[run] = train(config, run, wishes=wishes)['metrics']
  pathlib.Path(out).write_text(json.dumps(found))
