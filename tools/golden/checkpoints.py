"""Two small random checkpoints in the layout of the Hugging Face releases.

`odd_fp8` is DeepSeek-V3's format with dimensions that divide nothing: every block grid is ragged, every optional
field of config.json is set to something unusual. `moonlight_bf16` is Moonlight's format: bf16, tied embeddings,
no q_lora, no expert groups, no YaRN.
"""

import json
import struct
from pathlib import Path

import torch

BLOCK = 128
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", FP8: "F8_E4M3"}

ODD_FP8 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 160,
    "initializer_range": 0.02,
    "intermediate_size": 200,
    "kv_lora_rank": 48,
    "max_position_embeddings": 256,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 48,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 72,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    },
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 4,
        "mscale": 0.8,
        "mscale_all_dim": 0.6,
        "original_max_position_embeddings": 64,
        "type": "yarn",
    },
    "rope_theta": 5000,
    "routed_scaling_factor": 1.7,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 40,
    "vocab_size": 300,
}

MOONLIGHT_BF16 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 96,
    "initializer_range": 0.02,
    "intermediate_size": 160,
    "kv_lora_rank": 32,
    "max_position_embeddings": 128,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 32,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": True,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 16,
    "vocab_size": 256,
}


class Random:
    """Draws one tensor after another from one seed."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator) * std + mean

    def uniform(self, *shape: int, low: float, high: float) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator) * (high - low) + low

    def linear(self, rows: int, cols: int, gain: float = 1.25) -> torch.Tensor:
        return self.normal(rows, cols, std=gain / cols**0.5)

    def norm(self, size: int) -> torch.Tensor:
        return self.uniform(size, low=0.8, high=1.2).bfloat16()

    def signs(self, *shape: int) -> torch.Tensor:
        return (torch.rand(*shape, generator=self.generator) < 0.5).float() * 2 - 1


def block_scales(scale: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Spreads a [ceil(rows/128), ceil(cols/128)] grid over the weight's elements."""
    return scale.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :cols]


def quantize(weight: torch.Tensor, random: Random, widen: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 with one scale per block, amax / 448. About 2% of the elements become subnormal (below 2^-6 before
    scaling). `widen` multiplies the scale of the last block: at 2^14 all of that block is subnormal."""
    rows, cols = weight.shape
    grid = [-(-rows // BLOCK), -(-cols // BLOCK)]
    scale = torch.empty(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            block = weight[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
            scale[i, j] = block.abs().max() / FP8_MAX
    scale[-1, -1] *= widen
    values = weight / block_scales(scale, rows, cols)
    small = torch.randint(1, 8, weight.shape, generator=random.generator) * 2.0**-9 * random.signs(rows, cols)
    chosen = random.uniform(rows, cols, low=0, high=1) < 0.02
    values = torch.where(chosen, small, values).clamp(-FP8_MAX, FP8_MAX)
    return values.to(FP8), scale


def layer_tensors(config: dict, index: int, random: Random, bias_mean: float) -> dict[str, torch.Tensor]:
    """One decoder layer, float32 where the caller may still choose a format, bf16 / f32 where it may not."""
    hidden = config["hidden_size"]
    heads = config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    latent, q_rank = config["kv_lora_rank"], config["q_lora_rank"]
    experts, expert_size = config["n_routed_experts"], config["moe_intermediate_size"]
    tensors = {"input_layernorm.weight": random.norm(hidden), "post_attention_layernorm.weight": random.norm(hidden)}

    if q_rank is None:
        tensors["self_attn.q_proj.weight"] = random.linear(heads * (nope + rope), hidden)
    else:
        tensors["self_attn.q_a_proj.weight"] = random.linear(q_rank, hidden)
        tensors["self_attn.q_a_layernorm.weight"] = random.norm(q_rank)
        tensors["self_attn.q_b_proj.weight"] = random.linear(heads * (nope + rope), q_rank)
    tensors["self_attn.kv_a_proj_with_mqa.weight"] = random.linear(latent + rope, hidden)
    tensors["self_attn.kv_a_layernorm.weight"] = random.norm(latent)
    tensors["self_attn.kv_b_proj.weight"] = random.linear(heads * (nope + value), latent)
    tensors["self_attn.o_proj.weight"] = random.linear(hidden, heads * value, gain=1.5)
    if config["attention_bias"]:
        for name in ["q_a_proj", "kv_a_proj_with_mqa", "o_proj"]:
            rows = tensors[f"self_attn.{name}.weight"].shape[0]
            tensors[f"self_attn.{name}.bias"] = random.normal(rows, std=0.3).bfloat16()

    def mlp(prefix: str, size: int) -> None:
        tensors[f"{prefix}.gate_proj.weight"] = random.linear(size, hidden, gain=1.5)
        tensors[f"{prefix}.up_proj.weight"] = random.linear(size, hidden)
        tensors[f"{prefix}.down_proj.weight"] = random.linear(hidden, size, gain=1.5)

    if index < config["first_k_dense_replace"]:
        mlp("mlp", config["intermediate_size"])
    else:
        tensors["mlp.gate.weight"] = random.linear(experts, hidden).bfloat16()
        tensors["mlp.gate.e_score_correction_bias"] = random.normal(experts, std=0.25, mean=bias_mean)
        for expert in range(experts):
            mlp(f"mlp.experts.{expert}", expert_size)
        mlp("mlp.shared_experts", expert_size * config["n_shared_experts"])
    return tensors


def odd_fp8(folder: Path) -> None:
    config, random = ODD_FP8, Random(1)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    embedding = random.normal(vocab, hidden).bfloat16()
    head = random.linear(vocab, hidden, gain=2.0).bfloat16()
    base_layers = config["num_hidden_layers"]
    tensors = {"model.embed_tokens.weight": embedding}
    for index in range(base_layers + 1):
        prefix = f"model.layers.{index}"
        if index == base_layers:
            tensors[f"{prefix}.embed_tokens.weight"] = embedding
            tensors[f"{prefix}.enorm.weight"] = random.norm(hidden)
            tensors[f"{prefix}.hnorm.weight"] = random.norm(hidden)
            tensors[f"{prefix}.eh_proj.weight"] = random.linear(hidden, 2 * hidden).bfloat16()
        # Layer 2's biases are well below zero: a reader that masks groups with 0 instead of -inf picks other experts.
        bias_mean = -0.8 if index == 2 else 0.0
        for name, tensor in layer_tensors(config, index, random, bias_mean).items():
            if tensor.dtype == torch.float32 and name.endswith(".weight"):
                widen = 2.0**14 if (index, name) == (1, "mlp.experts.7.down_proj.weight") else 1.0
                values, scale = quantize(tensor, random, widen)
                tensors[f"{prefix}.{name}"] = values
                tensors[f"{prefix}.{name}_scale_inv"] = scale
            else:
                tensors[f"{prefix}.{name}"] = tensor
        if index == base_layers:
            tensors[f"{prefix}.shared_head.norm.weight"] = random.norm(hidden)
            tensors[f"{prefix}.shared_head.head.weight"] = head
    tensors["model.norm.weight"] = random.norm(hidden)
    tensors["lm_head.weight"] = head

    def shard(name: str) -> int:
        if name.endswith("_scale_inv") and ("o_proj" in name or "experts.5." in name):
            return 1 - shard(name.removesuffix("_scale_inv"))
        return 0 if name.startswith(("model.embed", "model.layers.0.", "model.layers.1.")) else 1

    write(folder, config, tensors, shard, aligned=False)


def moonlight_bf16(folder: Path) -> None:
    config, random = MOONLIGHT_BF16, Random(2)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    # Smaller than 1: with tied embeddings a large one would make every token predict itself.
    tensors = {"model.embed_tokens.weight": random.normal(vocab, hidden, std=0.25).bfloat16()}
    for index in range(config["num_hidden_layers"]):
        for name, tensor in layer_tensors(config, index, random, 0.0).items():
            keep = name.endswith("e_score_correction_bias")
            tensors[f"model.layers.{index}.{name}"] = tensor if keep else tensor.bfloat16()
    tensors["model.norm.weight"] = random.norm(hidden)
    # A leftover that readers must ignore; its values belong to another rope_theta.
    rope = config["qk_rope_head_dim"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = 10000.0 ** (-torch.arange(0, rope, 2) / rope)
    write(folder, config, tensors, lambda name: 0 if name.startswith(("model.embed", "model.layers.0.")) else 1)


def write(folder: Path, config: dict, tensors: dict[str, torch.Tensor], shard, aligned: bool = True) -> None:
    """`shard` says for a name which of the two files holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    names = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    weight_map = {name: names[shard(name)] for name in sorted(tensors)}
    for file in names:
        write_safetensors(folder / file, {n: tensors[n] for n, f in weight_map.items() if f == file}, aligned)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_safetensors(path: Path, tensors: dict[str, torch.Tensor], aligned: bool) -> None:
    """Tensors in the order of their names. Not `aligned`: the data starts at an odd byte, as the format allows, so
    that a reader that casts pointers fails."""
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, tensor in tensors.items():
        blob = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8 + (0 if aligned else 3))
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
