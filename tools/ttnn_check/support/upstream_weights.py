"""What tt-metal's models/demos/deepseek_v3 makes of a checkpoint's tensors, in numpy: for each leaf of the weight tree the
whole tensor, how it is spread over the mesh, and its type, layout and memory config. Written from a description of
upstream's modules, not from dsv3's code."""

import numpy as np

BANKS, TILE, CORES = 12, 32, (8, 9)


def roundup(number, multiple):
    return -(-number // multiple) * multiple


class Weight:
    """A leaf: `placements` per mesh axis (a dimension, or None for a copy), or `spread` over all devices at once."""

    def __init__(self, whole, dtype, placements=None, spread=None, layout="TILE", memory=None, squeeze=None):
        self.whole, self.dtype, self.layout = np.ascontiguousarray(whole, np.float32), dtype, layout
        self.placements, self.spread = placements, spread
        self.memory = memory or {"memory_layout": 0, "buffer_type": 0}
        self.squeeze = squeeze  # the shape on a device, where dimensions that were split away are removed

    def part(self, mesh, device):
        """What one device holds."""
        (rows, columns), (row, column) = mesh, device
        part = self.whole
        if self.spread is not None:
            part = np.split(part, rows * columns, axis=self.spread)[row * columns + column]
        else:
            for dimension, count, index in zip(self.placements, (rows, columns), (row, column)):
                if dimension is not None:
                    part = np.split(part, count, axis=dimension)[index]
        return np.ascontiguousarray(part.reshape(self.squeeze) if self.squeeze else part)


def over_banks(layout, shape):
    grid = [{"start": {"x": 0, "y": 0}, "end": {"x": BANKS - 1, "y": 0}}]
    return {"memory_layout": layout, "buffer_type": 0, "shard_spec": {"grid": grid, "shape": shape, "orientation": 0}}


def width_sharded(k, n):
    return over_banks(3, [roundup(k, TILE), roundup(n, TILE * BANKS) // BANKS])


def height_sharded(batch, k, n):
    return over_banks(2, [roundup(batch, BANKS) // BANKS * roundup(k, TILE), roundup(n, TILE)])


class Weights:
    """The tree of a model on a mesh, as {"key.in.config.json": Weight}."""

    def __init__(self, model, mesh, has_mtp):
        self.tensors, self.config, (self.rows, self.columns) = model.values, model.config, mesh
        self.tree = {}
        self._model(has_mtp)

    def _model(self, has_mtp):
        c, t = self.config, self.tensors
        vocab, hidden, layers = c["vocab_size"], c["hidden_size"], c["num_hidden_layers"]
        part = hidden // (self.rows * self.columns)
        embedding = Weight(t["model.embed_tokens.weight"].reshape(vocab, self.columns, self.rows, part), "bfloat16",
                           (2, 1), layout="ROW_MAJOR", squeeze=(1, 1, vocab, part))
        head = Weight(t["lm_head.weight"][None, None], "bfloat8_b", (None, -2))
        self.tree["embedding.embedding.weight"] = embedding
        self.tree["lm_head.linear.input_tensor_b"] = head
        self._norm("norm", "model.norm")
        for layer in range(layers):
            dense = layer < c["first_k_dense_replace"]
            index = layer if dense else layer - c["first_k_dense_replace"]
            self._block(f"{'mlp' if dense else 'moe'}_decoder_block.{index}", f"model.layers.{layer}", dense)
        if has_mtp:
            at = f"model.layers.{layers}"
            self.tree["mtp.embedding.embedding.weight"] = embedding
            self.tree["mtp.head.linear.input_tensor_b"] = head
            for key, name in (("hidden_norm", "hnorm"), ("token_norm", "enorm"), ("head_norm", "shared_head.norm")):
                self._norm(f"mtp.{key}", f"{at}.{name}")
            self.tree["mtp.eh_proj.linear.input_tensor_b"] = Weight(t[f"{at}.eh_proj.weight"][None, None],
                                                                    "bfloat8_b", (None, -2))
            self._block("mtp.decoder_block", at, False)

    def _norm(self, key, name):
        sticks = self.tensors[f"{name}.weight"].reshape(1, 1, -1, TILE)
        self.tree[f"{key}.rms_norm_post_all_gather.weight"] = Weight(sticks, "bfloat16", (None, -2),
                                                                     layout="ROW_MAJOR")

    def _block(self, key, at, dense):
        self._norm(f"{key}.mla_norm", f"{at}.input_layernorm")
        self._norm(f"{key}.mlp_norm", f"{at}.post_attention_layernorm")
        self._mla(f"{key}.mla.mla1d", f"{at}.self_attn")
        if dense:
            self._mlp(f"{key}.mlp", f"{at}.mlp")
            return
        self._mlp(f"{key}.mlp.shared_expert", f"{at}.mlp.shared_experts")
        self._gate(f"{key}.mlp.moe.moe_gate", f"{at}.mlp.gate")
        for name, source, dtype in (("w1", "gate_proj", "bfloat4_b"), ("w2", "down_proj", "bfloat8_b"),
                                    ("w3", "up_proj", "bfloat4_b")):
            experts = range(self.config["n_routed_experts"])
            stack = np.stack([self.tensors[f"{at}.mlp.experts.{e}.{source}.weight"] for e in experts])
            self.tree[f"{key}.mlp.moe.moe_experts.{name}_experts.input_tensor_b"] = Weight(stack[None], dtype, spread=1)

    def _linear(self, key, matrix, dimension):
        """An [in, out] matrix; `dimension` of it lies over the columns."""
        k, n = matrix.shape
        local = [k, n]
        local[dimension] //= self.columns
        self.tree[f"{key}.input_tensor_b"] = Weight(matrix[None], "bfloat8_b", (None, dimension + 1),
                                                    memory=width_sharded(*local))

    def _mla(self, key, at):
        c, weight = self.config, lambda name: self.tensors[f"{at}.{name}.weight"]
        heads, nope, value, rank = (c[n] for n in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank"))
        for name, source in (("q_norm", "q_a_layernorm"), ("kv_norm", "kv_a_layernorm")):
            sticks = weight(source).reshape(1, 1, -1, TILE)
            self.tree[f"{key}.{name}.weight"] = Weight(sticks, "bfloat16", (None, None), layout="ROW_MAJOR")
        self._linear(f"{key}.wq_kv_a", np.concatenate([weight("q_a_proj"), weight("kv_a_proj_with_mqa")]).T, 0)
        self._linear(f"{key}.wq_b", weight("q_b_proj").T, 1)
        self._linear(f"{key}.wo", weight("o_proj").T, 1)
        kv_b = weight("kv_b_proj").reshape(1, heads, nope + value, rank)
        self.tree[f"{key}.wkv_b1.input_tensor_b"] = Weight(
            kv_b[:, :, :nope], "bfloat8_b", (None, -3), memory=height_sharded(heads // self.columns, nope, rank))
        self.tree[f"{key}.wkv_b2.input_tensor_b"] = Weight(
            kv_b[:, :, nope:].transpose(0, 1, 3, 2), "bfloat8_b", (None, None), memory=height_sharded(heads, rank, value))

    def _mlp(self, key, at):
        for name, source, dimension in (("w1", "gate_proj", 1), ("w2", "down_proj", 0), ("w3", "up_proj", 1)):
            self._linear(f"{key}.{name}", self.tensors[f"{at}.{source}.weight"].T, dimension)

    def _gate(self, key, at):
        self.tree[f"{key}.gate_proj.input_tensor_b"] = Weight(self.tensors[f"{at}.weight"][None, None], "bfloat16",
                                                              (None, None))
        bias = self.tensors[f"{at}.e_score_correction_bias"]
        bias = bias - np.float32(bias.astype(np.float64).mean())
        face = np.pad(bias.reshape(16, 16), ((0, 16), (0, 16))).T
        grid = [{"start": {"x": 0, "y": 0}, "end": {"x": CORES[0] - 1, "y": CORES[1] - 1}}]
        memory = {"memory_layout": 2, "buffer_type": 1,
                  "shard_spec": {"grid": grid, "shape": [TILE, TILE], "orientation": 0}}
        self.tree[f"{key}.add_score_correction_bias.input_tensor_b"] = Weight(
            np.repeat(face[None], CORES[0] * CORES[1], 0), "bfloat16", (None, None), memory=memory)
