"""What other tokenizers make of `texts.TEXTS`: `python -m tests.golden.make_text`.

Writes tests/golden/clip.txt.gz, the first merges of CLIP's vocabulary, and tests/golden/text.json.
Needs OpenCLIP (3.3.0 then), from whose package the vocabulary is. Copyright (c) 2021 OpenAI, under
the MIT licence: see the LICENSE of github.com/openai/CLIP.
"""

import gzip
import json
import pathlib
import tempfile

from experiments.benchmarks.torchvision import define_operators

define_operators()

from open_clip import tokenizer  # noqa: E402

from tests import golden  # noqa: E402
from tests.golden import texts  # noqa: E402

MERGES, LENGTH = 4000, 24


def main():
  whole = gzip.decompress(pathlib.Path(tokenizer.default_bpe()).read_bytes()).decode()
  lines = whole.split('\n')[: MERGES + 1]
  path = golden.FOLDER / 'clip.txt.gz'
  path.write_bytes(gzip.compress('\n'.join([*lines, '']).encode(), 9, mtime=0))
  with tempfile.NamedTemporaryFile(suffix='.gz') as file:
    # Theirs would take an empty last line for a pair.
    file.write(gzip.compress('\n'.join(lines).encode()))
    file.flush()
    theirs = tokenizer.SimpleTokenizer(file.name, context_length=LENGTH)
  found = [
    {'text': text, 'ids': theirs.encode(text), 'row': theirs(text)[0].tolist()}
    for text in texts.TEXTS
  ]
  known = {'size': theirs.vocab_size, 'end': theirs.eot_token_id, 'texts': found}
  (golden.FOLDER / 'text.json').write_text(json.dumps(known, separators=(',', ':')) + '\n')


if __name__ == '__main__':
  main()
