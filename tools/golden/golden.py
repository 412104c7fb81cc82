"""Runs transformers' DeepSeek-V3 in float32 on a checkpoint and records what every part of it computes."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig, DeepseekV3ForCausalLM, GenerationConfig
from transformers.modeling_layers import MtpModel

from checkpoints import FP8, block_scales

GREEDY_TOKENS = 64


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint in float32; FP8 weights multiplied by their scales."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    raw = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(folder / file, "pt") as shard:
            for name in shard.keys():
                raw[name] = shard.get_tensor(name)
    tensors = {}
    for name, tensor in raw.items():
        if name.endswith("_scale_inv"):
            continue
        if tensor.dtype == FP8:
            tensors[name] = tensor.float() * block_scales(raw[f"{name}_scale_inv"], *tensor.shape)
        else:
            tensors[name] = tensor.float()
    return tensors


def fuse_experts(tensors: dict[str, torch.Tensor], prefix: str, count: int) -> None:
    """transformers keeps the experts of a layer in two tensors, [expert, gate rows then up rows, hidden] and
    [expert, hidden, intermediate]."""
    if f"{prefix}.0.gate_proj.weight" not in tensors:
        return
    parts = {
        part: torch.stack([tensors.pop(f"{prefix}.{i}.{part}_proj.weight") for i in range(count)])
        for part in ["gate", "up", "down"]
    }
    tensors[f"{prefix}.gate_up_proj"] = torch.cat([parts["gate"], parts["up"]], dim=1)
    tensors[f"{prefix}.down_proj"] = parts["down"]


def load(folder: Path) -> tuple[DeepseekV3ForCausalLM, MtpModel | None]:
    """The base model and, where the checkpoint has one, its MTP layer, with transformers' own classes."""
    config = AutoConfig.from_pretrained(folder)
    config.dtype = torch.float32
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    # The weights are already float32: without this the classes would expect FP8 linears.
    if hasattr(config, "quantization_config"):
        del config.quantization_config

    tensors = read(folder)
    base_layers, mtp_layers = config.num_hidden_layers, config.num_mtp_layers
    for layer in range(base_layers + mtp_layers):
        fuse_experts(tensors, f"model.layers.{layer}.mlp.experts", config.n_routed_experts)
    mtp_prefix = f"model.layers.{base_layers}."
    base = {k: v for k, v in tensors.items() if not k.startswith(mtp_prefix) and not k.endswith("inv_freq")}
    if config.tie_word_embeddings:
        base["lm_head.weight"] = base["model.embed_tokens.weight"]
    model = DeepseekV3ForCausalLM(config).float().eval()
    model.load_state_dict(base, strict=True)
    # generate() would fill in a missing eos from here; generation must not stop at one.
    model.generation_config.eos_token_id = None
    if mtp_layers == 0:
        return model, None

    mtp = MtpModel(model, mtp_layers).float().eval()
    own = {"eh_proj.weight", "enorm.weight", "hnorm.weight"}
    state = {}
    for name, tensor in tensors.items():
        if not name.startswith(mtp_prefix):
            continue
        name = name.removeprefix(mtp_prefix)
        if name == "shared_head.norm.weight":
            state["layers.0.post_norm.weight"] = tensor
        elif name == "shared_head.head.weight":
            state["shared_head.weight"] = tensor
        elif name == "embed_tokens.weight":
            state["embed_tokens.weight"] = tensor
        else:
            state["layers.0." + (name if name in own else f"mtp_block.{name}")] = tensor
    # The checkpoint's copies must be copies: MtpModel shares these two with the base model.
    assert torch.equal(state.pop("embed_tokens.weight"), base["model.embed_tokens.weight"])
    assert torch.equal(state.pop("shared_head.weight"), base["lm_head.weight"])
    missing, unexpected = mtp.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert set(missing) <= {"embed_tokens.weight", "shared_head.weight"}, missing
    return model, mtp


class Recorder:
    """Forward hooks that store the first input or the output of a module under a name."""

    def __init__(self):
        self.tensors: dict[str, torch.Tensor] = {}
        self.hooks = []

    def store(self, name: str, tensor: torch.Tensor) -> None:
        self.tensors[name] = tensor.detach().reshape(-1, tensor.shape[-1]).clone()

    def input(self, name: str, module: torch.nn.Module) -> None:
        def hook(_module, args, kwargs):
            self.store(name, args[0] if args else kwargs["hidden_states"])

        self.hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def output(self, name: str, module: torch.nn.Module) -> None:
        def hook(_module, _args, result):
            self.store(name, result[0] if isinstance(result, tuple) else result)

        self.hooks.append(module.register_forward_hook(hook))

    def gate(self, name: str, module: torch.nn.Module) -> None:
        def hook(_module, _args, result):
            _logits, weights, indices = result
            indices, order = indices.sort(dim=-1)
            self.store(f"{name}.indices", indices.int())
            self.store(f"{name}.weights", weights.gather(1, order))

        self.hooks.append(module.register_forward_hook(hook))

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()


def record_layers(model: DeepseekV3ForCausalLM, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    recorder = Recorder()
    recorder.output("embedding.output", model.model.embed_tokens)
    for i, layer in enumerate(model.model.layers):
        name = f"layers.{i}"
        recorder.input(f"{name}.input", layer)
        recorder.output(f"{name}.mla_norm.output", layer.input_layernorm)
        recorder.output(f"{name}.mla.output", layer.self_attn)
        recorder.input(f"{name}.mlp_norm.input", layer.post_attention_layernorm)
        recorder.output(f"{name}.mlp_norm.output", layer.post_attention_layernorm)
        recorder.output(f"{name}.mlp.output", layer.mlp)
        if i >= model.config.first_k_dense_replace:
            recorder.gate(f"{name}.gate", layer.mlp.gate)
            recorder.output(f"{name}.shared_experts.output", layer.mlp.shared_experts)
            recorder.output(f"{name}.experts.output", layer.mlp.experts)
        recorder.output(f"{name}.output", layer)
    recorder.output("norm.output", model.model.norm)
    logits = model(tokens[None].long(), use_cache=False).logits[0]
    recorder.close()
    return {"tokens": tokens.int(), **recorder.tensors, "logits": logits}


def record_rope(model: DeepseekV3ForCausalLM, positions: int) -> dict[str, torch.Tensor]:
    """transformers repeats the columns (pairs 0..n, then 0..n again); one of each is kept."""
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(positions)[None])
    pairs = model.config.qk_rope_head_dim // 2
    assert torch.equal(cos[..., :pairs], cos[..., pairs:]) and torch.equal(sin[..., :pairs], sin[..., pairs:])
    scale = model.model.layers[0].self_attn.scaling
    return {
        "rope.cos": cos[0, :, :pairs],
        "rope.sin": sin[0, :, :pairs],
        "softmax_scale": torch.tensor([scale], dtype=torch.float32),
    }


def record_mtp(mtp: MtpModel, name: str, tokens: torch.Tensor, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    """Row t predicts token t+2 from token t+1 and `hidden` of token t, at position t."""
    following, hidden = tokens[1:], hidden[:-1]
    recorder = Recorder()
    recorder.output(f"{name}.eh_proj.output", mtp.layers[0].eh_proj)
    recorder.gate(f"{name}.gate", mtp.layers[0].mtp_block.mlp.gate)
    output = mtp.forward_layer(
        0, hidden[None], torch.arange(len(following))[None], None, input_ids=following[None].long()
    )
    recorder.close()
    return {
        f"{name}.input_tokens": following.int(),
        f"{name}.hidden": hidden,
        **recorder.tensors,
        f"{name}.output": output[0],
        f"{name}.logits": mtp._project_to_logits(output)[0],
    }


def greedy(model: DeepseekV3ForCausalLM, prompt: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """The tokens, the smallest gap between the two best logits, and the smallest gap relative to the best one."""
    config = GenerationConfig(do_sample=False, max_new_tokens=GREEDY_TOKENS, pad_token_id=0, use_cache=True)
    result = model.generate(
        prompt[None].long(),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=config,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = result.sequences[0, len(prompt) :]
    assert len(tokens) == GREEDY_TOKENS
    logits = torch.cat(result.logits)
    assert torch.equal(tokens, logits.argmax(-1))
    best = logits.topk(2, dim=-1).values
    gaps = best[:, 0] - best[:, 1]
    return tokens, gaps.min().item(), (gaps / logits.abs().amax(-1)).min().item()


def record_greedy(model: DeepseekV3ForCausalLM, prompts: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Takes the prompt whose closest decision is the clearest, so that rounding does not change it."""
    results = [(prompt, *greedy(model, prompt)) for prompt in prompts]
    prompt, tokens, margin, relative = max(results, key=lambda result: result[3])
    print(f"  greedy: prompt {len(prompt)} tokens, smallest gap {margin:.4g} ({relative:.2g} of the largest logit)")
    return {
        "greedy.prompt": prompt.int(),
        "greedy.tokens": tokens.int(),
        "greedy.margin": torch.tensor([margin], dtype=torch.float32),
    }


def record_long(model: DeepseekV3ForCausalLM, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    logits = model(tokens[None].long(), use_cache=False, logits_to_keep=1).logits[0, -1]
    return {"long.tokens": tokens.int(), "long.logits_last": logits}
