"""What ggml's blocks mean: `testdata/dequantize/ggml.safetensors`, for each format that stage 1 decodes `NAME.blocks`
(uint8) and `NAME.values` (f32, as `gguf.quants.dequantize` gives them).

    python dequantize.py

Blocks are random bytes. Their scales in half precision are set: of either sign, the largest, the smallest normal ones,
subnormal ones and zeros. What is left of a block takes every value of its fields by chance; the first block has all bits
set and the second none.
"""

from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = 12
# Where the halves of a block lie.
HALVES = {
    "q4_0": [0],
    "q4_1": [0, 2],
    "q5_0": [0],
    "q5_1": [0, 2],
    "q2_K": [80, 82],
    "q3_K": [108],
    "q5_K": [0, 2],
    "q6_K": [208],
    "iq4_nl": [0],
    "iq4_xs": [0],
}
SCALES = np.array([1, -0.37, 65504, -65504, 2**-14, -(2**-24), 2**-24 * 1023, -(2**-24) * 511, 0, -0.0, 0.0123, -1.9e-4], np.float16)


def main() -> None:
    random = np.random.default_rng(1)
    tensors = {}
    for name, halves in HALVES.items():
        kind = gguf.GGMLQuantizationType[name.upper()]
        blocks = random.integers(0, 256, (BLOCKS, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        blocks[0], blocks[1] = 255, 0
        for index, at in enumerate(halves):
            # Minima come in another order, so that they meet other scales.
            scales = np.roll(SCALES, 5 * index)
            blocks[:, at : at + 2] = scales.view(np.uint8).reshape(BLOCKS, 2)
        values = gguf.quants.dequantize(blocks, kind)
        assert np.isfinite(values).all()
        tensors[f"{name}.blocks"], tensors[f"{name}.values"] = blocks, values.astype(np.float32)
    folder = ROOT / "testdata/dequantize"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "ggml.safetensors")


if __name__ == "__main__":
    main()
