"""A small random DeepSeek-V3 checkpoint: FP8 weights with block scales, and what its tensors hold in float32."""

import json
import math
from pathlib import Path

import numpy as np

BLOCK = 128

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_size": 256,
    "num_hidden_layers": 3, "first_k_dense_replace": 2, "intermediate_size": 320, "vocab_size": 200,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "num_attention_heads": 8, "q_lora_rank": 64,
    "kv_lora_rank": 96, "qk_nope_head_dim": 40, "qk_rope_head_dim": 16, "v_head_dim": 24, "n_routed_experts": 256,
    "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "n_shared_experts": 1, "moe_intermediate_size": 48,
    "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
    "quantization_config": {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK],
    },
}


def e4m3_table():
    """The value of each byte: sign, four bits of exponent with bias 7, three of fraction; no infinity."""
    table = np.zeros(256, np.float32)
    for byte in range(256):
        exponent, fraction = byte >> 3 & 15, byte & 7
        value = math.ldexp(8 + fraction, exponent - 10) if exponent else math.ldexp(fraction, -9)
        table[byte] = math.nan if byte & 127 == 127 else -value if byte & 128 else value
    return table


class SmallModel:
    """Writes itself to a directory, and knows its tensors in float32."""

    def __init__(self, seed=3):
        self.config = CONFIG
        self.random = np.random.default_rng(seed)
        self.stored = {}  # name: (safetensors type, shape, bytes)
        self.values = {}  # name: float32
        self._make()

    def _make(self):
        c = self.config
        hidden, layers = c["hidden_size"], c["num_hidden_layers"]
        self._bf16("model.embed_tokens.weight", c["vocab_size"], hidden)
        for layer in range(layers + c["num_nextn_predict_layers"]):
            self._layer(f"model.layers.{layer}", layer >= c["first_k_dense_replace"])
        self._bf16("model.norm.weight", hidden)
        self._bf16("lm_head.weight", c["vocab_size"], hidden)
        for name in ("enorm", "hnorm", "shared_head.norm"):
            self._bf16(f"model.layers.{layers}.{name}.weight", hidden)
        self._bf16(f"model.layers.{layers}.eh_proj.weight", hidden, 2 * hidden)

    def _layer(self, at, is_moe):
        c = self.config
        hidden, heads, kv = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"]
        nope, rope, value = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            self._bf16(f"{at}.{norm}.weight", hidden)
        mla = f"{at}.self_attn"
        self._bf16(f"{mla}.q_a_layernorm.weight", c["q_lora_rank"])
        self._bf16(f"{mla}.kv_a_layernorm.weight", kv)
        self._fp8(f"{mla}.q_a_proj.weight", c["q_lora_rank"], hidden)
        self._fp8(f"{mla}.q_b_proj.weight", heads * (nope + rope), c["q_lora_rank"])
        self._fp8(f"{mla}.kv_a_proj_with_mqa.weight", kv + rope, hidden)
        self._fp8(f"{mla}.kv_b_proj.weight", heads * (nope + value), kv)
        self._fp8(f"{mla}.o_proj.weight", hidden, heads * value)
        if not is_moe:
            self._mlp(f"{at}.mlp", c["intermediate_size"])
            return
        self._bf16(f"{at}.mlp.gate.weight", c["n_routed_experts"], hidden)
        self._f32(f"{at}.mlp.gate.e_score_correction_bias", c["n_routed_experts"])
        for expert in range(c["n_routed_experts"]):
            self._mlp(f"{at}.mlp.experts.{expert}", c["moe_intermediate_size"])
        self._mlp(f"{at}.mlp.shared_experts", c["moe_intermediate_size"])

    def _mlp(self, at, width):
        hidden = self.config["hidden_size"]
        self._fp8(f"{at}.gate_proj.weight", width, hidden)
        self._fp8(f"{at}.up_proj.weight", width, hidden)
        self._fp8(f"{at}.down_proj.weight", hidden, width)

    def _normal(self, *shape):
        spread = np.exp2(self.random.integers(-6, 3, shape)).astype(np.float32)
        return self.random.standard_normal(shape).astype(np.float32) * spread

    def _f32(self, name, *shape):
        values = self._normal(*shape)
        self.stored[name] = ("F32", shape, values.tobytes())
        self.values[name] = values

    def _bf16(self, name, *shape):
        halves = (self._normal(*shape).view(np.uint32) >> 16).astype(np.uint16)
        self.stored[name] = ("BF16", shape, halves.tobytes())
        self.values[name] = (halves.astype(np.uint32) << 16).view(np.float32)

    def _fp8(self, name, rows, columns):
        elements = self.random.integers(0, 256, (rows, columns), np.uint8)
        elements[elements & 127 == 127] = 0
        grid = (-(-rows // BLOCK), -(-columns // BLOCK))
        scales = (1e-4 * (1 + self.random.random(grid))).astype(np.float32)
        self.stored[name] = ("F8_E4M3", (rows, columns), elements.tobytes())
        self.stored[f"{name}_scale_inv"] = ("F32", grid, scales.tobytes())
        spread = np.repeat(np.repeat(scales, BLOCK, 0), BLOCK, 1)[:rows, :columns]
        self.values[name] = e4m3_table()[elements] * spread

    def write(self, directory):
        """config.json and one file of weights, as Hugging Face lays them out."""
        directory = Path(directory)
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(self.config))
        header, start = {}, 0
        for name, (dtype, shape, data) in self.stored.items():
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + len(data)]}
            start += len(data)
        text = json.dumps(header).encode()
        with open(directory / "model.safetensors", "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, _, data in self.stored.values():
                file.write(data)
