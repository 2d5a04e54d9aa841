"""What the encoder does besides images: videos, decoders with a memory, language models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.parity.references import hf, numpy, shake
from tests.parity.test_images import close
from vit_jax.architecture import variants
from vit_jax.architecture.vit import EncoderConfig
from vit_jax.nn import cache, positions, tree
from vit_jax.nn.attention import Context, Memory
from vit_jax.nn.encoder import Encoder
from vit_jax.nn.masks import Mask

WIDTH, HEADS, HIDDEN, DEPTH = 32, 4, 48, 3


def state(module):
  """Parameters by name; matrices as (inputs, outputs)."""
  return {n: numpy(p).T if p.ndim == 2 else numpy(p) for n, p in module.named_parameters()}


def stacked(layers):
  """The parameters of each layer, with an axis of layers in front."""
  return {f'blocks/{n}': np.stack([layer[n] for layer in layers]) for n in layers[0]}


def norm(theirs, at, ours):
  found = {f'{ours}/scale': theirs[f'{at}.weight']}
  return found | ({f'{ours}/bias': theirs[f'{at}.bias']} if f'{at}.bias' in theirs else {})


def dense(theirs, at, ours):
  found = {f'{ours}/kernel': theirs[f'{at}.weight']}
  return found | ({f'{ours}/bias': theirs[f'{at}.bias']} if f'{at}.bias' in theirs else {})


def attention(q, k, v, out, ours):
  """Of four pairs of a matrix (inputs, outputs) and a bias."""
  found = {}
  for name, (kernel, bias) in zip(('query', 'key', 'value'), (q, k, v), strict=True):
    heads = (-1, HEADS, WIDTH // HEADS)
    found |= {f'{ours}/{name}/kernel': kernel.reshape(heads),
              f'{ours}/{name}/bias': bias.reshape(heads[1:])}  # fmt: skip
  kernel, bias = out
  kernel = kernel.reshape(HEADS, WIDTH // HEADS, WIDTH)
  return found | {f'{ours}/out/kernel': kernel, f'{ours}/out/bias': bias}


def thirds(kernel, bias):
  return zip(np.split(kernel, 3, 1), np.split(bias, 3), strict=True)


def filled(model, arrays):
  """The model with these parameters, all of them."""
  assert arrays.keys() == tree.flatten(model).keys()
  put = lambda path, w: jnp.asarray(arrays[tree.name(path)]).reshape(w.shape)  # noqa: E731
  return jax.tree_util.tree_map_with_path(put, model)


def test_divided_attention_is_that_of_timesformer():
  frames, patches = 4, 16
  module = shake(hf.TimesformerForVideoClassification(hf.TimesformerConfig(
    image_size=32, patch_size=8, num_frames=frames, hidden_size=WIDTH, num_hidden_layers=DEPTH,
    num_attention_heads=HEADS, intermediate_size=HIDDEN, num_labels=5,
    attention_type='divided_space_time',
  )), 0)  # fmt: skip
  p, at = state(module), 'timesformer.embeddings'
  layers = []
  for i in range(DEPTH):
    own = f'timesformer.encoder.layer.{i}'
    time, space = f'{own}.temporal_attention', f'{own}.attention'
    pair = lambda n: (p[f'{n}.weight'], p[f'{n}.bias'])  # noqa: E731
    kernel, bias = pair(f'{time}.output.dense')
    last, added = pair(f'{own}.temporal_dense')  # the second of two products in a row
    layers.append({
      **norm(p, f'{own}.temporal_layernorm', 'before1/norm'),
      **attention(
        *thirds(*pair(f'{time}.attention.qkv')), (kernel @ last, bias @ last + added),
        'before1/attn',
      ),
      **norm(p, f'{own}.layernorm_before', 'norm1'),
      **attention(*thirds(*pair(f'{space}.attention.qkv')), pair(f'{space}.output.dense'), 'attn'),
      **norm(p, f'{own}.layernorm_after', 'norm2'),
      **dense(p, f'{own}.intermediate.dense', 'mlp/up'),
      **dense(p, f'{own}.output.dense', 'mlp/down'),
    })  # fmt: skip
  kernel = numpy(module.timesformer.embeddings.patch_embeddings.projection.weight)
  arrays = {
    'token': p[f'{at}.cls_token'], 'posemb': p[f'{at}.position_embeddings'],
    'posemb_frames': p[f'{at}.time_embeddings'],
    'embed/proj/kernel': kernel.transpose(2, 3, 1, 0)[None],
    'embed/proj/bias': p[f'{at}.patch_embeddings.projection.bias'],
    **{f'encoder/{n}': w for n, w in stacked(layers).items()},
    **norm(p, 'timesformer.layernorm', 'encoder/norm'), **dense(p, 'classifier', 'head'),
  }  # fmt: skip
  model = filled(vit_jax.create(
    '', image_size=(frames, 32, 32), patch_size=(1, 8, 8), width=WIDTH, depth=DEPTH,
    mlp_dim=HIDDEN, num_heads=HEADS, mlp='gelu', num_classes=5, posemb='space_time',
    attention='t+hw*',
  ), arrays)  # fmt: skip
  assert model.config.grid == (frames, 4, 4)
  clips = np.random.default_rng(0).normal(size=(2, frames, 32, 32, 3)).astype(np.float32)
  with torch.no_grad():
    given = torch.from_numpy(clips).permute(0, 1, 4, 2, 3)
    want = module(given, output_hidden_states=True)
  got = model.features(clips)
  # Their tokens have time fastest.
  tokens = numpy(want.hidden_states[-1])
  order = np.arange(frames * patches).reshape(patches, frames).T.ravel()
  tokens = np.concatenate([tokens[:, :1], tokens[:, 1 + order]], axis=1)
  close(got[f'block{DEPTH - 1:02d}'], tokens, 1e-5, 'tokens')
  close(got['logits'], numpy(want.logits), 1e-5, 'logits')


@pytest.mark.parametrize('first', [True, False])
def test_decoders_are_those_of_torch(first):
  layer = torch.nn.TransformerDecoderLayer(
    WIDTH, HEADS, HIDDEN, dropout=0, activation='gelu', batch_first=True, norm_first=first
  )
  end = torch.nn.LayerNorm(WIDTH) if first else None
  module = shake(torch.nn.TransformerDecoder(layer, DEPTH, end), 1)
  p, layers = state(module), []
  for i in range(DEPTH):
    at = f'layers.{i}'
    made = {}
    for theirs, ours in (('self_attn', 'before1/attn'), ('multihead_attn', 'attn')):
      q, k, v = thirds(p[f'{at}.{theirs}.in_proj_weight'], p[f'{at}.{theirs}.in_proj_bias'])
      out = (p[f'{at}.{theirs}.out_proj.weight'], p[f'{at}.{theirs}.out_proj.bias'])
      made |= attention(q, k, v, out, ours)
    for theirs, ours in (('norm1', 'before1/norm'), ('norm2', 'norm1'), ('norm3', 'norm2')):
      made |= norm(p, f'{at}.{theirs}', ours)
    made |= dense(p, f'{at}.linear1', 'mlp/up') | dense(p, f'{at}.linear2', 'mlp/down')
    layers.append(made)
  config = EncoderConfig(
    width=WIDTH, depth=DEPTH, mlp_dim=HIDDEN, num_heads=HEADS, mlp='gelu', eps=1e-5,
    norm_place='pre' if first else 'post', attention='full+memory',
  ).filled(variants.ENCODER)  # fmt: skip
  arrays = stacked(layers) | (norm(p, 'norm', 'norm') if first else {})
  model = filled(Encoder(config, nnx.Rngs(0), memory=WIDTH), arrays)
  rng = np.random.default_rng(0)
  x, memory = (rng.normal(size=(2, n, WIDTH)).astype(np.float32) for n in (6, 9))
  there = np.arange(9) < np.array([[9], [5]])
  with torch.no_grad():
    want = module(
      torch.from_numpy(x), torch.from_numpy(memory),
      tgt_mask=torch.nn.Transformer.generate_square_subsequent_mask(6), tgt_is_causal=True,
      memory_key_padding_mask=torch.from_numpy(~there),
    )  # fmt: skip
  seen = Memory(jnp.asarray(memory), mask=Mask(keys=jnp.asarray(there)))
  got, _ = model(x, Context(mask=Mask(causal=True), memory=seen))
  close(got, numpy(want), 1e-5, 'decoder')


def test_added_positions_are_those_of_detr():
  """Queries are positions: of queries and keys, not of values; those of the memory likewise."""
  config = hf.DetrConfig(
    use_timm_backbone=False, backbone_config=hf.ResNetConfig(), d_model=WIDTH,
    decoder_layers=DEPTH, decoder_ffn_dim=HIDDEN, decoder_attention_heads=HEADS, dropout=0.0,
    activation_function='gelu',
  )  # fmt: skip
  from transformers.models.detr.modeling_detr import DetrDecoder

  module = shake(DetrDecoder(config), 2)
  p, layers = state(module), []
  for i in range(DEPTH):
    at, made = f'layers.{i}', {}
    for theirs, ours in (('self_attn', 'before1/attn'), ('encoder_attn', 'attn')):
      names = [n for n in ('q_proj', 'k_proj', 'v_proj', 'out_proj', 'o_proj')
               if f'{at}.{theirs}.{n}.weight' in p]  # fmt: skip
      pairs = [(p[f'{at}.{theirs}.{n}.weight'], p[f'{at}.{theirs}.{n}.bias']) for n in names]
      made |= attention(*pairs, ours)
    norms = ('self_attn_layer_norm', 'encoder_attn_layer_norm', 'final_layer_norm')
    for theirs, ours in zip(norms, ('before1/norm', 'norm1', 'norm2'), strict=True):
      made |= norm(p, f'{at}.{theirs}', ours)
    fc = f'{at}.mlp.fc' if f'{at}.mlp.fc1.weight' in p else f'{at}.fc'
    made |= dense(p, f'{fc}1', 'mlp/up') | dense(p, f'{fc}2', 'mlp/down')
    layers.append(made)
  ours = EncoderConfig(
    width=WIDTH, depth=DEPTH, mlp_dim=HIDDEN, num_heads=HEADS, mlp='gelu', eps=1e-5,
    norm_place='post', attention='full+memory',
  ).filled(variants.ENCODER)  # fmt: skip
  model = filled(Encoder(ours, nnx.Rngs(0), memory=WIDTH), stacked(layers))
  rng = np.random.default_rng(0)
  queries, memory, where = (
    rng.normal(size=(b, n, WIDTH)).astype(np.float32) for b, n in ((1, 6), (2, 9), (1, 9))
  )
  tensor = lambda a: torch.from_numpy(np.broadcast_to(a, (2, *a.shape[1:])).copy())  # noqa: E731
  with torch.no_grad():
    want = module(
      inputs_embeds=torch.zeros(2, 6, WIDTH), encoder_hidden_states=tensor(memory),
      object_queries_position_embeddings=tensor(queries),
      spatial_position_embeddings=tensor(where),
    )  # fmt: skip
  got, _ = model(
    jnp.zeros((2, 6, WIDTH)),
    Context(position=jnp.asarray(queries), memory=Memory(jnp.asarray(memory), jnp.asarray(where))),
  )
  # They have a norm at the end that is a part of the model around the decoder here.
  weight, bias = (p[f'layernorm.{n}'] for n in ('weight', 'bias'))
  got = np.asarray(got, np.float64)
  got = got - got.mean(-1, keepdims=True)
  got = got / np.sqrt(got.var(-1, keepdims=True) + 1e-5) * weight + bias
  close(got, numpy(want.last_hidden_state), 1e-5, 'decoder')


def test_grouped_queries_norms_and_rotations_are_those_of_qwen3():
  """Heads of another width than the model's share; decoded with a cache, too."""
  heads, groups, head_dim, base = 4, 2, 16, 1e6
  config = hf.Qwen3Config(
    vocab_size=19, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=DEPTH,
    num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim, rms_norm_eps=1e-6,
    rope_parameters={'rope_type': 'default', 'rope_theta': base}, max_position_embeddings=64,
  )  # fmt: skip
  module = shake(hf.Qwen3Model(config), 3)
  p, layers = state(module), []
  for i in range(DEPTH):
    at = f'layers.{i}'
    weight = lambda n: p[f'{at}.self_attn.{n}.weight']  # noqa: E731
    layers.append({
      'attn/query/kernel': weight('q_proj').reshape(WIDTH, heads, head_dim),
      'attn/key/kernel': weight('k_proj').reshape(WIDTH, groups, head_dim),
      'attn/value/kernel': weight('v_proj').reshape(WIDTH, groups, head_dim),
      'attn/out/kernel': weight('o_proj').reshape(heads, head_dim, WIDTH),
      'attn/query_norm/scale': weight('q_norm'), 'attn/key_norm/scale': weight('k_norm'),
      **norm(p, f'{at}.input_layernorm', 'norm1'),
      **norm(p, f'{at}.post_attention_layernorm', 'norm2'),
      **dense(p, f'{at}.mlp.gate_proj', 'mlp/gate'), **dense(p, f'{at}.mlp.up_proj', 'mlp/up'),
      **dense(p, f'{at}.mlp.down_proj', 'mlp/down'),
    })  # fmt: skip
  ours = EncoderConfig(
    width=WIDTH, depth=DEPTH, mlp_dim=HIDDEN, num_heads=heads, kv_heads=groups, head_dim=head_dim,
    mlp='swiglu', norm='rmsnorm', qk_norm=True, no_bias='query,key,value,out,mlp',
  ).filled(variants.ENCODER)  # fmt: skip
  model = filled(Encoder(ours, nnx.Rngs(0)), stacked(layers) | norm(p, 'norm', 'norm'))
  words = np.random.default_rng(0).integers(0, 19, (2, 7))
  with torch.no_grad():
    want = numpy(module(torch.from_numpy(words)).last_hidden_state)
  x = p['embed_tokens.weight'].T[words]
  places = np.arange(7)[None, :, None]
  angles = positions.rope(places, np.ones(1), head_dim, 'grid', base, (0,))
  got, _ = model(jnp.asarray(x), Context(angles=angles, mask=Mask(causal=True)))
  close(got, want, 1e-5, 'whole')
  kept, found = cache.empty(model, 2, 8), []
  for first, last in ((0, 4), (4, 5), (5, 7)):
    own = Context(angles=angles[:, first:last], mask=Mask(causal=True))
    y, kept = cache.extend(model, jnp.asarray(x[:, first:last]), kept, own)
    found.append(y)
  close(np.concatenate(found, 1), want, 1e-5, 'one by one')
