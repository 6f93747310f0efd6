# SPDX-License-Identifier: Apache-2.0
"""Make tests/vectors/models/: tiny random models and what transformers makes of them.

    python3 tests/reader/make_models.py tests/vectors/models [llama] [qwen2] [qwen3] [rope]

Needs torch, transformers, safetensors; takes minutes. The weights are bf16, the arithmetic of the reference is fp32. Models of random
weights have many tokens of nearly the same logit: seeds are tried until each greedy token leads by MARGIN, so that the
arithmetic cannot change it.

Each folder holds the model in the Hugging Face layout and reference.json: "prompt" (tokens), "logits" (those of chosen
rows of the prompt), "greedy" (the tokens that follow). rope.json holds configurations with the frequencies and the
attention factor that transformers makes of them.
"""
import copy
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file

PROMPT, GREEDY, MARGIN = 40, 200, 0.002  # the margin is a share of the logits' standard deviation
ROWS = (0, 17, PROMPT - 1)

LLAMA = dict(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=64, max_position_embeddings=4096, rms_norm_eps=1e-5, tie_word_embeddings=False,
    rope_theta=500000.0, hidden_act="silu", attention_bias=False,
    rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=512))
QWEN3 = dict(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, max_position_embeddings=4096, rms_norm_eps=1e-6, tie_word_embeddings=True,
    rope_theta=1000000.0, hidden_act="silu", attention_bias=False,
    rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024))
QWEN2 = dict(
    vocab_size=128, hidden_size=128, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=4096, rms_norm_eps=1e-6, tie_word_embeddings=True,
    rope_theta=10000.0, hidden_act="silu", use_sliding_window=False, initializer_range=0.02)
MODELS = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, LLAMA),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, QWEN3),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, QWEN2),
}


def randomise(model, seed):
    """Weights that make attention matter: larger than a model's first ones, norms that differ from 1; all bf16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                p.copy_(0.5 * noise)
            elif "embed" in name or "lm_head" in name:  # some tokens are far likelier than others: fewer near ties
                p.copy_(noise * torch.exp(0.5 * torch.randn(p.shape[0], 1, generator=generator)))
                if model.config.tie_word_embeddings:
                    p.mul_(0.05)  # small beside what layers add: else each token would be followed by itself
            else:
                p.copy_(noise * 1.5 / p.shape[1] ** 0.5)
            p.copy_(p.to(torch.bfloat16).float())


def run(model, prompt):
    """Logits of the prompt's rows, greedy tokens, the smallest lead of one of them."""
    with torch.no_grad():
        output = model(torch.tensor([prompt]), use_cache=True)
        logits, cache = output.logits[0], output.past_key_values
        deviation, lead, tokens = logits.std().item(), float("inf"), []
        last = logits[-1]
        for _ in range(GREEDY):
            first, second = last.topk(2).values.tolist()
            lead = min(lead, (first - second) / deviation)
            if lead < MARGIN:
                break
            tokens.append(int(last.argmax()))
            output = model(torch.tensor([[tokens[-1]]]), past_key_values=cache, use_cache=True)
            cache, last = output.past_key_values, output.logits[0, -1]
    return logits, tokens, lead


def config_json(name, fields):
    """As published checkpoints have it: rope_theta beside rope_scaling for Llama, rope_parameters for Qwen 3."""
    fields = dict(fields, model_type=name, torch_dtype="bfloat16",
                  architectures=[MODELS[name][1].__name__])
    if name == "qwen3":
        fields["rope_parameters"] = dict(fields.pop("rope_scaling"), rope_theta=fields.pop("rope_theta"))
    return json.dumps(fields, indent=1) + "\n"


def save(folder, name, fields, model, reference):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config_json(name, fields))
    tensors = {key: p.detach().to(torch.bfloat16).contiguous() for key, p in model.named_parameters()}
    if name == "llama":  # two shards and their index
        shards = ({}, {})
        for key, tensor in tensors.items():
            shards["layers.1." in key or key.startswith("lm_head")][key] = tensor
        files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        for file, shard in zip(files, shards):
            save_file(shard, folder / file, metadata={"format": "pt"})
        index = {"metadata": {"total_size": sum(2 * t.numel() for t in tensors.values())},
                 "weight_map": {key: files[key in shards[1]] for key in tensors}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=0) + "\n")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for file in folder.iterdir():
        file.chmod(0o644)
    (folder / "reference.json").write_text(json.dumps(reference) + "\n")


ROPES = [
    dict(rope_theta=10000.0),
    dict(rope_theta=1000000.0, rope_scaling=dict(type="linear", factor=2.5)),
    dict(rope_theta=500000.0, head_dim=128,
         rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                           original_max_position_embeddings=8192)),
    dict(rope_theta=500000.0, head_dim=64,
         rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                           original_max_position_embeddings=8192)),
    dict(rope_theta=1000000.0, head_dim=128,
         rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)),
    dict(rope_theta=10000.0, head_dim=256,
         rope_scaling=dict(rope_type="yarn", factor=16.0, original_max_position_embeddings=4096, beta_fast=24,
                           beta_slow=2, attention_factor=1.25)),
    dict(rope_parameters=dict(rope_type="yarn", rope_theta=5000.0, factor=8.0, original_max_position_embeddings=1024,
                              mscale=0.7, mscale_all_dim=1.5)),
    dict(rope_parameters=dict(rope_type="default", rope_theta=25000.0)),
]


def make_ropes(path):
    rows = []
    for rope in ROPES:
        fields = dict(LLAMA, **{"max_position_embeddings": 131072})
        del fields["rope_scaling"], fields["rope_theta"]
        fields.update(rope)
        embedding = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(
            transformers.LlamaConfig(**copy.deepcopy(fields)))
        rows.append({"config": dict(fields, model_type="llama"), "attention_factor": embedding.attention_scaling,
                     "frequencies": embedding.inv_freq.tolist()})
    path.write_text(json.dumps(rows, indent=0) + "\n")


def main():
    torch.set_num_threads(1)
    out, wanted = pathlib.Path(sys.argv[1]), sys.argv[2:]
    if not wanted or "rope" in wanted:
        out.mkdir(parents=True, exist_ok=True)
        make_ropes(out / "rope.json")
    for name, (config_class, model_class, fields) in MODELS.items():
        if wanted and name not in wanted:
            continue
        for seed in range(10000):
            model = model_class(config_class(**copy.deepcopy(fields))).float().eval()
            randomise(model, seed)
            generator = torch.Generator().manual_seed(seed)
            prompt = torch.randint(0, fields["vocab_size"], (PROMPT,), generator=generator).tolist()
            logits, tokens, lead = run(model, prompt)
            print(name, seed, len(tokens), len(set(tokens)), file=sys.stderr)
            if len(tokens) == GREEDY and len(set(tokens)) > 20:
                break
        print(name, "seed", seed, "smallest lead", lead, "different tokens", len(set(tokens)), "deviation",
              logits.std().item())
        save(out / name, name, fields, model, {
            "made_by": f"transformers {transformers.__version__}, seed {seed}", "prompt": prompt,
            "rows": list(ROWS), "logits": [[round(x, 5) for x in logits[row].tolist()] for row in ROWS],
            "greedy": tokens})


main()
