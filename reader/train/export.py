# SPDX-License-Identifier: Apache-2.0
"""Writes a checkpoint as a model folder in Hugging Face's Qwen3 layout.

    python3 export.py CHECKPOINT.pt FOLDER [--tokenizer T.json]

The folder appears whole or not at all if it does not exist yet; else its files are replaced one by one.
"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from model import EPSILON, RANGE, SIZES, THETA, Reader, share_spaces

HERE = os.path.dirname(os.path.abspath(__file__))
LAYER_NAMES = {'norm1': 'input_layernorm', 'norm2': 'post_attention_layernorm', 'q_norm': 'self_attn.q_norm', 'k_norm': 'self_attn.k_norm',
               'q': 'self_attn.q_proj', 'k': 'self_attn.k_proj', 'v': 'self_attn.v_proj', 'o': 'self_attn.o_proj',
               'gate': 'mlp.gate_proj', 'up': 'mlp.up_proj', 'down': 'mlp.down_proj'}


def load(checkpoint, tokenizer):
    saved = torch.load(checkpoint, map_location='cpu', weights_only=False)
    model = Reader(SIZES[saved['size']], *share_spaces(tokenizer))
    model.load_state_dict(saved['model'])
    return model.eval(), saved


def tensors(model):
    found = {'model.embed_tokens.weight': model.table(), 'model.norm.weight': model.norm}
    for i, layer in enumerate(model.layers):
        for ours, theirs in LAYER_NAMES.items():
            found['model.layers.%d.%s.weight' % (i, theirs)] = getattr(layer, ours)
    return {name: t.detach().to(torch.bfloat16).contiguous() for name, t in found.items()}


def read_back(folder, tokenizer):
    """The weights of an exported model, of as many layers as it has, as a checkpoint holds them: as exact as bf16 is. What tokens with and
    without a space before them share, and what those of digits do, is worked out of the table."""
    found = {name: t.float() for name, t in load_file(os.path.join(folder, 'model.safetensors')).items()}
    with open(os.path.join(folder, 'config.json')) as file:
        layers = json.load(file)['num_hidden_layers']
    hidden, _, heads, kv, dim, mlp = {size[0]: size for size in SIZES.values()}[found['model.norm.weight'].shape[0]]
    bases, spaced, numbers = share_spaces(tokenizer)
    model = Reader((hidden, layers, heads, kv, dim, mlp), bases, spaced, numbers)
    table, rows = found['model.embed_tokens.weight'], torch.as_tensor(bases)
    spaced = torch.as_tensor(spaced, dtype=torch.bool)
    plain = torch.zeros_like(model.base).index_copy(0, rows[~spaced], table[~spaced])
    with torch.no_grad():
        model.base.copy_(plain)
        model.space.copy_((table[spaced] - plain[rows[spaced]]).mean(0))
        model.number_mix.copy_(torch.linalg.lstsq(model.number_features.double(), plain[model.number_rows].double(), driver='gelsd').solution)
        model.norm.copy_(found['model.norm.weight'])
        for i, layer in enumerate(model.layers):
            for ours, theirs in LAYER_NAMES.items():
                getattr(layer, ours).copy_(found['model.layers.%d.%s.weight' % (i, theirs)])
    return model.state_dict()


def config(model, tokenizer):
    hidden, layers, heads, kv, dim, mlp = model.size
    return {'architectures': ['Qwen3ForCausalLM'], 'model_type': 'qwen3', 'vocab_size': len(model.base_of), 'hidden_size': hidden,
            'intermediate_size': mlp, 'num_hidden_layers': layers, 'num_attention_heads': heads, 'num_key_value_heads': kv,
            'head_dim': dim, 'hidden_act': 'silu', 'max_position_embeddings': 16 * RANGE, 'rms_norm_eps': EPSILON,
            'rope_theta': THETA, 'rope_scaling': None, 'attention_bias': False, 'attention_dropout': 0.0,
            'tie_word_embeddings': True, 'use_sliding_window': False, 'torch_dtype': 'bfloat16', 'bos_token_id': None,
            'eos_token_id': tokenizer.token_to_id('<|end|>'), 'pad_token_id': tokenizer.token_to_id('<|pad|>')}


READER = {'version': 1, 'document': '<|doc|>{text}<|end|>', 'question': '<|ask|>{question}<|answer|>', 'stop': ['<|end|>'],
          'positions': 'shared', 'range': RANGE,
          'heads': [[3, 0], [4, 0]]}  # those that look facts up in a model of size cpu


def main():
    p = argparse.ArgumentParser()
    p.add_argument('checkpoint')
    p.add_argument('folder')
    p.add_argument('--tokenizer', default=os.path.join(HERE, '..', 'model', 'tokenizer.json'))
    a = p.parse_args()
    tokenizer = Tokenizer.from_file(a.tokenizer)
    model, saved = load(a.checkpoint, tokenizer)
    part = a.folder.rstrip('/') + '.part'
    os.makedirs(part, exist_ok=True)
    save_file(tensors(model), os.path.join(part, 'model.safetensors'), metadata={'format': 'pt'})
    for name, what in (('config.json', config(model, tokenizer)), ('reader.json', READER)):
        with open(os.path.join(part, name), 'w') as out:
            json.dump(what, out, indent=2)
            out.write('\n')
    shutil.copyfile(a.tokenizer, os.path.join(part, 'tokenizer.json'))
    if os.path.isdir(a.folder):
        for name in os.listdir(part):
            os.replace(os.path.join(part, name), os.path.join(a.folder, name))
        os.rmdir(part)
    else:
        os.rename(part, a.folder)
    print('step %d, %.1f minutes -> %s' % (saved['state']['step'], saved['state']['seconds'] / 60, a.folder))


if __name__ == '__main__':
    main()
