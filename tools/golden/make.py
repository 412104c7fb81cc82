"""Writes the test checkpoints and the golden files: python make.py [odd-fp8] [moonlight-bf16] [tiny]"""

import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

import checkpoints
import golden
import verify
from prompts import Prompts

ROOT = Path(__file__).resolve().parents[2]
TESTDATA = ROOT / "testdata"
# name: (checkpoint, how to write it)
TARGETS = {
    "odd-fp8": (TESTDATA / "odd-fp8", checkpoints.odd_fp8),
    "moonlight-bf16": (TESTDATA / "moonlight-bf16", checkpoints.moonlight_bf16),
    "tiny": (ROOT / "models" / "tiny", None),
}


@torch.inference_mode()
def make(name: str) -> None:
    folder, write_checkpoint = TARGETS[name]
    if write_checkpoint:
        write_checkpoint(folder)
    print(f"{name}: {folder.relative_to(ROOT)}")
    model, mtp = golden.load(folder)
    prompts = Prompts(name, folder, model.config)
    context = model.config.max_position_embeddings

    tensors = golden.record_layers(model, prompts.layers)
    tensors |= golden.record_rope(model, min(context, 256))
    if mtp:
        last = model.config.num_hidden_layers - 1
        before_norm, after_norm = tensors[f"layers.{last}.output"], tensors["norm.output"]
        tensors |= golden.record_mtp(mtp, "mtp", prompts.layers, before_norm)
        tensors |= golden.record_mtp(mtp, "mtp_normed", prompts.layers, after_norm)
    tensors |= golden.record_greedy(model, prompts.greedy)
    if prompts.long is not None:
        tensors |= golden.record_long(model, prompts.long)

    path = TESTDATA / name / "golden.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()}
    # One key only: safetensors writes several in any order.
    made_by = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    save_file(tensors, path, metadata={"made_by": made_by})
    path.chmod(0o644)
    print(f"  {path.relative_to(ROOT)}: {len(tensors)} tensors, {path.stat().st_size / 1e3:.0f} kB")
    verify.verify(folder, model, mtp, tensors)


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = sys.argv[1:] or list(TARGETS)
    for name in names:
        if name not in TARGETS:
            sys.exit(f"unknown checkpoint {name}; one of {', '.join(TARGETS)}")
        make(name)


if __name__ == "__main__":
    main()
