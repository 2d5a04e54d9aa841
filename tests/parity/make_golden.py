"""Writes what is in tests/golden but variants.json: `python -m tests.parity.make_golden`."""

import json
import pathlib
import tempfile
import zipfile

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from tests import golden
from tests.parity import references
from tests.parity.references import NETWORKS, REFERENCES, numpy, timm
from tests.parity.test_mask_head import segmentation
from tests.parity.test_queries import yolos
from tests.parity.test_towers import MODELS, packed

DROP = ('transformers_version', 'dtype', 'initializer_range', 'initializer_factor')


def rewrite(folder):
  """The golden weights in place of those in a folder; their shapes, and its configuration."""
  path = folder / 'model.safetensors'
  with safe_open(path, 'numpy') as file:
    shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
  save_file(golden.weights(shapes), path, metadata={'format': 'pt'})
  config = json.loads((folder / 'config.json').read_text())
  return shapes, {k: v for k, v in config.items() if k not in DROP}


def detector():
  """What YOLOS says of images."""
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / 'theirs'
    yolos(use_mid_position_embeddings=True).save_pretrained(folder, save_original_format=True)
    shapes, config = rewrite(folder)
    module = type(yolos()).from_pretrained(folder).eval()
  image = (32, 48, 3)
  with torch.no_grad():
    out = module(torch.from_numpy(golden.images(image)).permute(0, 3, 1, 2))
  outputs = {'logits': out.logits, 'boxes': out.pred_boxes}
  kept = {name: golden.digest(numpy(value)) for name, value in outputs.items()}
  return dict(image=image, config=config, shapes=shapes, outputs=kept)


def decoder():
  """What DETR's decoder says of tokens, masks included."""
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary) / 'theirs'
    segmentation().save_pretrained(folder, save_original_format=True)
    shapes, config = rewrite(folder)
    module = type(segmentation()).from_pretrained(folder).eval()
  given = {n: torch.from_numpy(x) for n, x in golden.inputs(golden.DECODED).items()}
  detr, there = module.detr, torch.from_numpy(golden.shown())
  position = detr.model.query_position_embeddings.weight[None].repeat(2, 1, 1)
  channels = lambda x: x.permute(0, 3, 1, 2)  # noqa: E731
  memory = channels(given['memory'].reshape(2, golden.ROWS, golden.COLUMNS, -1))
  for stage in module.mask_head.fpn_stages:  # what is added has their width already
    stage.fpn_adapter = torch.nn.Identity()
  with torch.no_grad():
    said = detr.model.decoder(
      inputs_embeds=torch.zeros_like(position), spatial_position_embeddings=given['position'],
      object_queries_position_embeddings=position, encoder_hidden_states=given['memory'],
      encoder_attention_mask=there.flatten(1),
    ).last_hidden_state  # fmt: skip
    hidden = torch.where(there[:, None, None], 0.0, torch.finfo(torch.float32).min)
    maps = module.bbox_attention(said, memory, attention_mask=hidden)
    levels = [channels(given[f'level{number}']) for number in range(3)]
    masks = module.mask_head(features=memory, attention_masks=maps, fpn_features=levels)
    outputs = {
      'logits': detr.class_labels_classifier(said), 'boxes': detr.bbox_predictor(said).sigmoid(),
      'masks': masks.reshape(2, -1, *masks.shape[2:]),
    }  # fmt: skip
  kept = {name: golden.digest(numpy(value)) for name, value in outputs.items()}
  # Of a ResNet and an encoder nothing is read.
  shapes = {n: s for n, s in shapes.items() if not n.startswith(('detr.model.b', 'detr.model.e'))}
  config = {name: config[name] for name in ('model_type', 'decoder_attention_heads', 'd_model')}
  return dict(config=config, shapes=shapes, outputs=kept)


def torch_files():
  """Two small files as PyTorch writes them: a state dict and a traced module."""
  weight = torch.from_numpy(np.float32(np.random.RandomState(0).standard_normal((3, 4))))
  module = torch.nn.Sequential()
  module.layer = torch.nn.Linear(4, 3)
  module.layer.weight.data = weight.clone()
  state = {**module.state_dict(), 'half': weight.T[1:].to(torch.bfloat16)}
  torch.save(state, golden.FOLDER / 'plain.pt')
  traced = golden.FOLDER / 'traced.pt'
  torch.jit.save(torch.jit.trace(module, torch.ones(1, 4)), traced)
  with zipfile.ZipFile(traced) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(traced, 'w') as archive:
    for name, data in members.items():
      if not name.endswith('.debug_pkl'):  # where PyTorch was installed
        archive.writestr(zipfile.ZipInfo(name), data)


def main():
  found = {}
  for name, reference in {**REFERENCES, **NETWORKS}.items():
    with tempfile.TemporaryDirectory() as temporary:
      folder = pathlib.Path(temporary) / 'theirs'
      module = reference.make()
      reference.save(module, folder)
      shapes, config = rewrite(folder)
      if name.startswith('hf/'):
        module = type(module).from_pretrained(folder)
      else:
        timm.models.load_checkpoint(module, str(folder / 'model.safetensors'), strict=True)
      x = golden.images(reference.image)
      module = module.eval()
      with torch.no_grad():
        x = torch.from_numpy(x).permute(0, 3, 1, 2)
        run = lambda: reference.run(module, x)  # noqa: E731
        out = run() if name in NETWORKS else references.watch(module, run)
      kept = {k: golden.digest(numpy(v)) for k, v in out.items() if not k.startswith('mid')}
      found[name] = dict(image=reference.image, config=config, shapes=shapes, outputs=kept)
  for name, make in MODELS.items():
    with tempfile.TemporaryDirectory() as temporary:
      folder = pathlib.Path(temporary) / 'theirs'
      make().save_pretrained(folder, save_original_format=True)
      shapes, config = rewrite(folder)
      module = type(make()).from_pretrained(folder).eval()
      inputs = {'input_ids': torch.from_numpy(golden.tokens(4, 10, 100))}
      if name == 'siglip2':
        grid, pixels, _, mask = packed(np.random.RandomState(4))
        inputs |= dict(
          pixel_values=torch.from_numpy(pixels), spatial_shapes=torch.from_numpy(grid),
          pixel_attention_mask=torch.from_numpy(mask.astype(np.int64)),
        )  # fmt: skip
      else:
        inputs['pixel_values'] = torch.from_numpy(golden.images((32, 32, 3))).permute(0, 3, 1, 2)
      with torch.no_grad():
        out = module(**inputs)
      found[f'towers/{name}'] = dict(
        config=config, shapes=shapes, outputs={'logits': golden.digest(out.logits_per_image)}
      )
  found |= {'queries/yolos': detector(), 'queries/detr': decoder()}
  torch_files()
  lines = (f'{json.dumps(name)}: {json.dumps(value)}' for name, value in found.items())
  (golden.FOLDER / 'references.json').write_text('{\n' + ',\n'.join(lines) + '\n}\n')


if __name__ == '__main__':
  main()
