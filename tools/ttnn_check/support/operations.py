"""The operations that check_config.py knows, and the reading of its request files."""

import json
from pathlib import Path

# Operation -> (function under `ttnn`, argument names that "inputs" fill in order, argument names that "weights" fill
# in order). A name with a star takes all remaining tensors as a list. A tensor can name its argument with "arg".
OPS = {
    # matrix products and norms
    "linear": ("linear", "input_tensor_a", "input_tensor_b bias"),
    "matmul": ("matmul", "input_tensor_a input_tensor_b", "input_tensor_b"),
    "rms_norm": ("rms_norm", "input_tensor residual_input_tensor", "weight bias"),
    "rms_norm_pre_all_gather": ("rms_norm_pre_all_gather", "input_tensor residual_input_tensor", ""),
    "rms_norm_post_all_gather": ("rms_norm_post_all_gather", "input_tensor stats", "weight bias"),
    # collectives
    "all_gather": ("all_gather", "input_tensor", ""),
    "all_gather_async": ("experimental.all_gather_async", "input_tensor", ""),
    "reduce_scatter": ("reduce_scatter", "input_tensor", ""),
    "reduce_scatter_minimal_async": ("experimental.reduce_scatter_minimal_async", "input_tensor", ""),
    "all_reduce": ("all_reduce", "input_tensor", ""),
    "all_broadcast": ("all_broadcast", "input_tensor", ""),
    "all_to_all": ("experimental.all_to_all_async_generic", "input_tensor", ""),
    "all_to_all_dispatch": ("all_to_all_dispatch", "input_tensor expert_indices_tensor", "expert_mapping_tensor"),
    "all_to_all_combine": ("all_to_all_combine", "input_tensor expert_metadata_tensor", "expert_mapping_tensor"),
    "all_to_all_dispatch_metadata": (
        "experimental.all_to_all_dispatch_metadata",
        "input_tensor expert_indices_tensor expert_scores_tensor",
        "expert_mapping_tensor",
    ),
    "mesh_partition": ("mesh_partition", "input_tensor", ""),
    "point_to_point": ("point_to_point", "input_tensor", ""),
    "deepseek_moe_reduce_scatter": ("experimental.deepseek_moe_reduce_scatter", "*input_tensors", ""),
    # attention
    "rotary_embedding_llama": (
        "experimental.rotary_embedding_llama",
        "input_tensor",
        "cos_cache sin_cache trans_mat",
    ),
    "paged_update_cache": (
        "experimental.paged_update_cache",
        "cache_tensor input_tensor update_idxs_tensor page_table",
        "",
    ),
    "paged_fill_cache": (
        "experimental.paged_fill_cache",
        "cache_tensor input_tensor page_table batch_idx_tensor",
        "",
    ),
    "flash_mla_decode": (
        "transformer.paged_flash_multi_latent_attention_decode",
        "input_tensor_q input_tensor_k page_table_tensor cur_pos_tensor",
        "",
    ),
    "flash_mla_prefill": ("transformer.flash_mla_prefill", "input_tensor_q input_tensor_k", ""),
    "chunked_flash_mla_prefill": (
        "transformer.chunked_flash_mla_prefill",
        "input_tensor_q input_tensor_k page_table_tensor",
        "",
    ),
    # mixture of experts
    "deepseek_moe_gate": (
        "experimental.deepseek.moe.deepseek_moe_gate",
        "input_tensor input_indices_tensor output_tensor output_indices_tensor",
        "bias_tensor",
    ),
    "deepseek_grouped_gate": ("experimental.deepseek_grouped_gate", "scores", "bias"),
    "deepseek_moe_fast_reduce_nc": ("experimental.deepseek_moe_fast_reduce_nc", "input_tensor", ""),
    "deepseek_moe_post_combine_tilize": ("experimental.deepseek_moe_post_combine_tilize", "input_tensor", ""),
    "moe_compute": (
        "experimental.moe_compute",
        "tilize_input_tensor tilize_expert_indices_tensor tilize_expert_scores_tensor",
        "tilize_expert_mapping_tensor matmul_w0_w1_tensor matmul_w2_tensor",
    ),
    # elementwise, reductions, selection
    "mul": ("mul", "input_tensor_a input_tensor_b", "input_tensor_b"),
    "add": ("add", "input_tensor_a input_tensor_b", "input_tensor_b"),
    "silu": ("silu", "input_tensor", ""),
    "sigmoid": ("sigmoid", "input_tensor", ""),
    "sum": ("sum", "input_tensor", ""),
    "fast_reduce_nc": ("experimental.fast_reduce_nc", "input", ""),
    "topk": ("topk", "input_tensor indices_tensor", ""),
    "argmax": ("argmax", "input_tensor", ""),
    "sampling": ("sampling", "input_values_tensor input_indices_tensor k p temp", ""),
    "gather": ("gather", "input index", ""),
    "scatter": ("scatter", "input index src", ""),
    # data movement
    "embedding": ("embedding", "input_tensor", "weight"),
    "typecast": ("typecast", "input_tensor", ""),
    "to_memory_config": ("to_memory_config", "tensor", ""),
    "to_layout": ("to_layout", "tensor", ""),
    "tilize": ("tilize", "input_tensor", ""),
    "tilize_with_zero_padding": ("tilize_with_zero_padding", "input_tensor", ""),
    "untilize": ("untilize", "input_tensor", ""),
    "slice": ("slice", "input_tensor", ""),
    "slice_write": ("experimental.slice_write", "input_tensor output_tensor", ""),
    "concat": ("concat", "*tensors", ""),
    "split": ("split", "input_tensor", ""),
    "pad": ("pad", "input_tensor", ""),
    "repeat": ("repeat", "input_tensor", ""),
    "reshape": ("reshape", "input_tensor", ""),
    "view": ("experimental.view", "input_tensor", ""),
    "permute": ("permute", "input_tensor", ""),
    "transpose": ("transpose", "input_tensor", ""),
    "clone": ("clone", "input", ""),
}

OP_KEYS = {"name", "op", "inputs", "weights", "config", "expect", "note"}
TENSOR_KEYS = {"shape", "dtype", "layout", "memory_config", "tile", "arg"}
CHAINED_KEYS = {"from", "output", "arg"}
FILE_KEYS = {"mesh", "cluster", "fabric", "dispatch_axis", "l1_small_size", "operations", "note"}
DTYPES = "bfloat16 float32 uint32 int32 uint16 uint8 bfloat8_b bfloat4_b".split()


class RequestError(Exception):
    """The request is wrong, as opposed to refused by TT-NN."""


class SourceRefused(Exception):
    """An input comes from an operation that was not accepted."""


def only_keys(value, allowed, where):
    if not isinstance(value, dict):
        raise RequestError(f"{where}: expected an object, got {json.dumps(value)[:80]}")
    for key in value:
        if key not in allowed:
            raise RequestError(f"{where}: unknown field {key!r}; known fields: {', '.join(sorted(allowed))}")


def needs(value, keys, where):
    for key in keys:
        if key not in value:
            raise RequestError(f"{where}: {key} is missing")


def read_request(path):
    try:
        request = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise RequestError(f"{path}: {error}") from error
    if isinstance(request, list):
        request = {"operations": request}
    only_keys(request, FILE_KEYS, str(path))
    operations = request.get("operations")
    if not isinstance(operations, list) or not operations:
        raise RequestError(f"{path}: no operations")
    names = set()
    for index, op in enumerate(operations):
        where = f"operation {index}"
        only_keys(op, OP_KEYS, where)
        where += f" ({op.get('name', op.get('op'))})"
        if op.get("op") not in OPS:
            raise RequestError(f"{where}: unknown operation {op.get('op')!r}; --list-ops shows the known ones")
        expect, output = op.get("expect", {}), {"shape", "dtype", "layout", "memory_config"}
        if isinstance(expect, list):  # of all outputs
            for number, one in enumerate(expect):
                only_keys(one, output, f"{where}, expect[{number}]")
        else:
            only_keys(expect, {"error", *output}, f"{where}, expect")
        for group in ("inputs", "weights"):
            for number, tensor in enumerate(op.get(group, [])):
                here = f"{where}, {group}[{number}]"
                if isinstance(tensor, dict) and "from" in tensor:
                    only_keys(tensor, CHAINED_KEYS, here)
                    if tensor["from"] not in names:
                        raise RequestError(f"{here}: no earlier operation is named {tensor['from']!r}")
                    continue
                only_keys(tensor, TENSOR_KEYS, here)
                needs(tensor, ("shape", "dtype", "layout"), here)
                if tensor["dtype"] not in DTYPES:
                    raise RequestError(f"{here}: unknown dtype {tensor['dtype']!r}; known: {', '.join(DTYPES)}")
                if tensor["layout"] not in ("TILE", "ROW_MAJOR"):
                    raise RequestError(f"{here}: layout must be TILE or ROW_MAJOR")
        names.add(op.get("name", op["op"]))
    return request
