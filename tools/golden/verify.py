"""Checks a golden file against other ways of computing the same, and prints how well it catches mistakes."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, FineGrainedFP8Config
from transformers.cache_utils import MtpCache
from transformers.integrations import finegrained_fp8

from checkpoints import BLOCK, block_scales

# What two float32 computations of the same may differ by, relative.
TOLERANCE = 1e-5


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def verify(folder: Path, model, mtp, tensors: dict[str, torch.Tensor]) -> None:
    tokens = tensors["tokens"].long()
    check_from_pretrained(folder, tokens, tensors["logits"])
    check_cached_decode(model, tokens, tensors["logits"])
    if mtp:
        check_mtp(mtp, tensors)
    for layer in range(model.config.first_k_dense_replace, model.config.num_hidden_layers):
        report_gate(model, layer, tensors)
    if mtp:
        report_mtp(tensors)


def check_from_pretrained(folder: Path, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    fp8 = '"quant_method": "fp8"' in (folder / "config.json").read_text()
    quantization = {"quantization_config": FineGrainedFP8Config(dequantize=True)} if fp8 else {}

    def load() -> str:
        """How the logits differ, as text: loading or computing may fail, and that is worth knowing too."""
        try:
            other = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", **quantization
            )
        except Exception as error:
            return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
        difference = relative(other(tokens[None], use_cache=False).logits[0], logits)
        return f"logits differ by {difference:.2g}" + (" (WRONG)" if difference > TOLERANCE else "")

    print(f"  from_pretrained: {load()}")
    if fp8:
        # transformers takes the block size to be rows / scale rows, which is wrong for ragged grids.
        original = finegrained_fp8.Fp8Dequantize._dequantize_one

        def dequantize(self, quantized, scales, output_dtype=None):
            spread = block_scales(scales.float(), *quantized.shape)
            return (quantized.float() * spread).to(output_dtype or torch.float32)

        finegrained_fp8.Fp8Dequantize._dequantize_one = dequantize
        print(f"  from_pretrained with {BLOCK}x{BLOCK} blocks: {load()}")
        finegrained_fp8.Fp8Dequantize._dequantize_one = original


def check_cached_decode(model, tokens: torch.Tensor, logits: torch.Tensor) -> None:
    cache, rows = None, []
    for token in tokens:
        result = model(token[None, None], cache=cache, use_cache=True)
        cache = result.cache
        rows.append(result.logits[0, -1])
    difference = relative(torch.stack(rows), logits)
    print(f"  decoding token by token: logits differ by {difference:.2g}")
    assert difference < TOLERANCE


def check_mtp(mtp, tensors: dict[str, torch.Tensor]) -> None:
    """transformers' own drafting numbers the positions from 1 and uses a cache; neither changes the result."""
    tokens = tensors["mtp.input_tokens"].long()
    output = mtp.forward_layer(
        0,
        tensors["mtp.hidden"][None],
        torch.arange(1, len(tokens) + 1)[None],
        MtpCache(config=mtp.config),
        input_ids=tokens[None],
    )[0]
    difference = relative(output, tensors["mtp.output"])
    print(f"  mtp with positions from 1 and a cache: output differs by {difference:.2g}")
    assert difference < TOLERANCE


def report_mtp(tensors: dict[str, torch.Tensor]) -> None:
    base = tensors["logits"][1:].argmax(-1)
    for name in ["mtp", "mtp_normed"]:
        agree = (tensors[f"{name}.logits"].argmax(-1) == base).float().mean().item()
        print(f"  {name}: agrees with the base model's next choice on {agree:.0%} of the tokens")
    difference = relative(tensors["mtp_normed.output"], tensors["mtp.output"])
    print(f"  mtp_normed.output differs from mtp.output by {difference:.2g}")


def report_gate(model, layer: int, tensors: dict[str, torch.Tensor]) -> None:
    """How many tokens would choose other experts if a reader got one rule wrong, and the closest decision."""
    gate = model.model.layers[layer].mlp.gate
    scores = (tensors[f"layers.{layer}.mlp_norm.output"] @ gate.weight.float().T).sigmoid()
    biased = scores + gate.e_score_correction_bias
    count, groups, kept = gate.top_k, gate.num_group, gate.topk_group
    size = gate.num_experts // groups
    group_scores = biased.view(-1, groups, size).topk(2, dim=-1).values.sum(-1)
    chosen_groups = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(
        1, group_scores.topk(kept, dim=-1).indices, True
    )
    allowed = chosen_groups.repeat_interleave(size, dim=1)
    masked = biased.masked_fill(~allowed, float("-inf"))
    truth = tensors[f"layers.{layer}.gate.indices"].long()

    def choose(values: torch.Tensor) -> torch.Tensor:
        return values.topk(count, dim=-1).indices.sort(dim=-1).values

    def differs(values: torch.Tensor) -> str:
        return f"{(choose(values) != truth).any(-1).float().mean().item():.0%}"

    assert torch.equal(choose(masked), truth)
    ordered = masked.sort(dim=-1, descending=True).values
    gap = (ordered[:, count - 1] - ordered[:, count]).min().item()
    text = f"no bias {differs(scores.masked_fill(~allowed, float('-inf')))}"
    if groups > 1:
        best = group_scores.sort(dim=-1, descending=True).values
        gap = min(gap, (best[:, kept - 1] - best[:, kept]).min().item())
        text += f", no groups {differs(biased)}, groups masked with 0 {differs(biased.masked_fill(~allowed, 0.0))}"
    print(f"  layer {layer} gate: closest decision {gap:.2g}; tokens that change with {text}")
