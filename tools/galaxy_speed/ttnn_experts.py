"""Some experts of a checkpoint, converted by TT-NN: dequantised with numpy, made into tiles, dumped, and on the disk. Prints
the seconds as JSON, of the clock and of the processor. For run.py.

    ttnn_experts.py MODEL LAYER EXPERTS SCRATCH
"""

import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ttnn_check"))

from check_tensorbin import load_ttnn  # noqa: E402
from support.small_model import BLOCK, e4m3_table  # noqa: E402

PROJECTIONS = (("gate_proj", "bfloat4_b"), ("down_proj", "bfloat8_b"), ("up_proj", "bfloat4_b"))


class Checkpoint:
    """Tensors of a directory of safetensors files, mapped."""

    def __init__(self, model):
        self.places = {}
        for path in Path(model).glob("*.safetensors"):
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            data = np.memmap(path, np.uint8, "r")
            for name, tensor in header.items():
                start, end = tensor["data_offsets"]
                self.places[name] = (data[8 + length + start : 8 + length + end], tensor["shape"])

    def dequantised(self, name, table):
        data, shape = self.places[name]
        scales, grid = self.places[f"{name}_scale_inv"]
        values = table[data].reshape(grid[0], BLOCK, grid[1], BLOCK)
        values *= scales.view(np.float32).reshape(grid[0], 1, grid[1], 1)
        return values.reshape(shape)


def to_disk(path):
    """Waits until a file and its name are on the disk, as dsv3 does of each of its files."""
    for each in (path, path.parent):
        descriptor = os.open(each, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def main():
    model, layer, count, scratch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever TT-NN prints goes to standard error
    checkpoint, table, ttnn = Checkpoint(model), e4m3_table(), load_ttnn()
    at = f"model.layers.{layer}.mlp.experts."
    numbers = {int(re.match(r"\d+", name[len(at) :])[0]) for name in checkpoint.places if name.startswith(at)}
    seconds, processor = (dict.fromkeys(("dequantise", "tiles", "file"), 0.0) for _ in range(2))
    now = lambda: (time.monotonic(), time.process_time())  # noqa: E731
    for projection, dtype in PROJECTIONS:
        marks = [now()]
        values = np.stack([checkpoint.dequantised(f"{at}{e}.{projection}.weight", table) for e in range(count)])[None]
        marks.append(now())
        tensor = ttnn.Tensor(values, getattr(ttnn, dtype), layout=ttnn.TILE_LAYOUT)
        marks.append(now())
        path = scratch / f"{projection}.tensorbin"
        ttnn.dump_tensor(str(path), tensor)
        to_disk(path)
        marks.append(now())
        path.unlink()
        for name, start, end in zip(seconds, marks, marks[1:]):
            seconds[name] += end[0] - start[0]
            processor[name] += end[1] - start[1]
    out.write(json.dumps({"all_experts": len(numbers), "seconds": seconds, "processor": processor}) + "\n")


if __name__ == "__main__":
    main()
