"""Writes a trained model in the form of the original release: FP8 blocks with their scales, bf16 for the rest.

    python export.py --work work --out ../../models/tiny
"""
import argparse
import json
import os
import shutil

import torch
from safetensors.torch import save_file

import data
from model import Config, Model, fp8_blocks

HERE = os.path.dirname(os.path.abspath(__file__))
SHARDS = 2


def config_json(c):
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "ep_size": 1,
        "first_k_dense_replace": c.dense_layers,
        "hidden_act": "silu",
        "hidden_size": c.hidden,
        "initializer_range": 0.02,
        "intermediate_size": c.intermediate,
        "kv_lora_rank": c.kv_rank,
        "max_position_embeddings": c.max_positions,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": c.moe_intermediate,
        "moe_layer_freq": 1,
        "n_group": c.groups,
        "n_routed_experts": c.experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": c.heads,
        "num_experts_per_tok": c.top_k,
        "num_hidden_layers": c.layers,
        "num_key_value_heads": c.heads,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": c.q_rank,
        "qk_nope_head_dim": c.nope,
        "qk_rope_head_dim": c.rope,
        "quantization_config": {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
        },
        "rms_norm_eps": c.eps,
        "rope_scaling": {
            "beta_fast": c.beta_fast, "beta_slow": c.beta_slow, "factor": int(c.yarn_factor), "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": c.yarn_original, "type": "yarn",
        },
        "rope_theta": int(c.theta),
        "routed_scaling_factor": c.routed_scale,
        "scoring_func": "sigmoid",
        "seq_aux": True,
        "tie_word_embeddings": False,
        "topk_group": c.top_groups,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "use_cache": True,
        "v_head_dim": c.v,
        "vocab_size": c.vocab,
    }


# Greedy, unlike R1's temperature of 0.6: sums have one right answer.
GENERATION_CONFIG = {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": False,
                     "transformers_version": "4.46.3"}


def tokenizer_config_json(c):
    def token(content):
        return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    with open(os.path.join(HERE, "chat_template.jinja"), encoding="utf-8") as f:
        template = f.read().rstrip("\n")
    return {"add_bos_token": True, "add_eos_token": False, "bos_token": token(data.BOS), "clean_up_tokenization_spaces": False,
            "eos_token": token(data.EOS), "legacy": True, "model_max_length": c.max_positions, "pad_token": token(data.EOS),
            "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "LlamaTokenizerFast", "chat_template": template}


def layer_tensors(prefix, layer):
    """Yields (released name, f32 tensor, stored as FP8?) of one decoder layer."""
    yield prefix + "input_layernorm.weight", layer.input_layernorm.weight, False
    for name in ("q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj"):
        yield f"{prefix}self_attn.{name}.weight", getattr(layer.self_attn, name).weight, name.endswith(("_proj", "_mqa"))
    yield prefix + "post_attention_layernorm.weight", layer.post_attention_layernorm.weight, False
    mlp = layer.mlp
    if not hasattr(mlp, "gate"):
        yield from mlp_tensors(prefix + "mlp.", mlp)
        return
    yield prefix + "mlp.gate.weight", mlp.gate.weight, False
    yield prefix + "mlp.gate.e_score_correction_bias", mlp.bias, False
    for e in range(mlp.c.experts):
        gate, up = mlp.gate_up.weight[e]
        for name, w in (("gate_proj", gate), ("up_proj", up), ("down_proj", mlp.down.weight[e])):
            yield f"{prefix}mlp.experts.{e}.{name}.weight", w, True
    yield from mlp_tensors(prefix + "mlp.shared_experts.", mlp.shared)


def mlp_tensors(prefix, mlp):
    for name in ("gate_proj", "up_proj", "down_proj"):
        yield f"{prefix}{name}.weight", getattr(mlp, name).weight, True


def all_tensors(model):
    yield "model.embed_tokens.weight", model.embed.weight, False
    for i, layer in enumerate(model.layers):
        yield from layer_tensors(f"model.layers.{i}.", layer)
    yield "model.norm.weight", model.norm.weight, False
    yield "lm_head.weight", model.head.weight, False
    # The MTP layer carries copies of the embedding and of the head, as the original does.
    mtp = f"model.layers.{model.c.layers}."
    yield mtp + "embed_tokens.weight", model.embed.weight, False
    yield mtp + "enorm.weight", model.enorm.weight, False
    yield mtp + "hnorm.weight", model.hnorm.weight, False
    yield mtp + "eh_proj.weight", model.eh_proj.weight, False
    yield from layer_tensors(mtp, model.mtp_layer)
    yield mtp + "shared_head.norm.weight", model.mtp_norm.weight, False
    yield mtp + "shared_head.head.weight", model.head.weight, False


def stored(model):
    """-> [(name, tensor as stored)], each FP8 weight directly before its scale"""
    out = []
    for name, w, fp8 in all_tensors(model):
        w = w.detach()
        if fp8:
            values, scale = fp8_blocks(w)
            out += [(name, values), (name + "_scale_inv", scale)]
        else:
            out.append((name, w.float() if name.endswith("e_score_correction_bias") else w.bfloat16()))
    return out


def split(tensors, shards):
    """Cuts at equal sizes, and always between an FP8 weight and its scale: the original's shards have such places too."""
    size = sum(t.nbytes for _, t in tensors)
    out, current, done = [], [], 0
    for name, t in tensors:
        if len(out) < shards - 1 and done >= size * (len(out) + 1) / shards and name.endswith("_scale_inv"):
            out.append(current)
            current = []
        current.append((name, t))
        done += t.nbytes
    return out + [current]


def export(work, out):
    os.makedirs(out, exist_ok=True)
    model = Model(Config())
    model.load_state_dict(torch.load(os.path.join(work, "checkpoint.pt"), weights_only=True)["model"])
    tensors = stored(model)
    parts = split(tensors, SHARDS)
    weight_map = {}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        path = os.path.join(out, file)
        save_file({name: t.contiguous().clone() for name, t in part}, path, metadata={"format": "pt"})
        os.chmod(path, 0o644)
        weight_map |= {name: file for name, _ in part}
    index = {"metadata": {"total_size": sum(t.nbytes for _, t in tensors)}, "weight_map": weight_map}
    files = {"model.safetensors.index.json": index, "config.json": config_json(model.c), "generation_config.json": GENERATION_CONFIG,
             "tokenizer_config.json": tokenizer_config_json(model.c)}
    for name, value in files.items():
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            json.dump(value, f, indent=2, ensure_ascii=False)
            f.write("\n")
    shutil.copy(os.path.join(work, "tokenizer.json"), os.path.join(out, "tokenizer.json"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", default="work")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    export(args.work, args.out)
