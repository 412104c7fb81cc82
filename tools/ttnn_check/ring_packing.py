#!/usr/bin/env python3
"""Where TT-NN's own functions put each tile of experts' weights for the fused operators: testdata/galaxy/ring_packing.json.

    ring_packing.py SITE_PACKAGES > testdata/galaxy/ring_packing.json

SITE_PACKAGES is that of an environment with TT-NN 0.81.1 (tools/ttnn_check/run.sh). Needs torch, which that environment does
not have, and nothing of TT-NN but the file ttnn/_experimental/moe_compute_utils.py. The functions move whole tiles: here a tile
is one number, its place in gates, ups or downs as [inputs, outputs], from one on; 0 is padding.
"""

import json
import sys
import types
from pathlib import Path

import torch

TILE, CORES = 32, 12
# Hidden width, an expert's width; whether all tiles are written, or a hash of them only.
CASES = [(14 * TILE, 40 * TILE, True), (50 * TILE, 70 * TILE, False), (7168, 2048, False)]


def load(site_packages):
    """TT-NN's functions, for tiles of one element."""
    stub = types.ModuleType("ttnn")
    stub.TILE_SIZE = 1
    sys.modules["ttnn"] = stub
    path = Path(site_packages) / "ttnn" / "_experimental" / "moe_compute_utils.py"
    functions = types.ModuleType("moe_compute_utils")
    exec(compile(path.read_text(), path, "exec"), functions.__dict__)
    return functions


def fnv1a(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def described(packed, show):
    """A packed weight: its shape in elements, and its tiles in order."""
    *before, rows, columns = packed.shape
    tiles = packed.reshape(-1).to(torch.int32)
    found = {"shape": [*before, rows * TILE, columns * TILE], "fnv1a": fnv1a(tiles.numpy().astype("<u4").tobytes())}
    return {**found, "tiles": tiles.tolist()} if show else found


def main():
    utils = load(sys.argv[1])
    cases = []
    for hidden, width, show in CASES:
        k, n = hidden // TILE, width // TILE
        up = [utils._shard_tiles(n, core, CORES) for core in range(CORES)]
        # As get_weight_core_shard_maps has it, which wants a device.
        groups = -(-(-(-k // CORES)) // 4)
        down = [utils._w2_shard_tiles(k, core, n, CORES) for core in range(CORES)]
        down = [(tiles - (groups - 1) * 4, groups * 4 - tiles) for tiles in down]
        numbers = torch.arange(1, 2 * k * n + 1).view(2, 1, 1, k, n)
        w0_w1 = utils.prepare_w0_w1_tensor_for_moe_compute(numbers[0], numbers[1], 1, 1, k, n, up)
        w2 = utils.prepare_w2_tensor_for_moe_compute(torch.arange(1, k * n + 1).view(1, 1, n, k), 1, 1, n, k, down, up)
        cases.append({"hidden": hidden, "width": width, "w0_w1": described(w0_w1, show), "w2": described(w2, show)})
    print(json.dumps({"made_by": "tools/ttnn_check/ring_packing.py, TT-NN 0.81.1", "cases": cases}))


if __name__ == "__main__":
    main()
