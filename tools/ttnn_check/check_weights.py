#!/usr/bin/env python3
"""Let dsv3 convert a small DeepSeek-V3 for a Galaxy, and hold every weight to what TT-NN itself makes of the same numbers.

    check_weights.py DSV3 [--mesh 2x4,4x8] [--keep DIR]

Run it with the Python of the environment that run.sh made; DSV3 is the binary. The weight cache's config.json is read by
the rules of upstream's loader. Then each file is loaded with ttnn.load_tensor, and on every device of the mesh

    - the values must be those that TT-NN's own mesh mapper and conversion make of the dequantised checkpoint, bit for bit,
    - the stored bytes must be those of the file that ttnn.dump_tensor writes of that tensor,
    - the memory config must be upstream's, in the file and in config.json.

Exit status: 0 all is as it should be, 1 something is not, 2 the command line is wrong.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath

import numpy as np

from check_tensorbin import Mismatch, by_coordinate, compare, container_faults, load_ttnn, values
from support.common import reason_of
from support.small_model import SmallModel
from support.upstream_weights import Weights
from tensorbin_header import decode

LEAF_KEYS = {"memory_layout", "buffer_type", "created_with_nd_shard_spec"}


def leaves(node, key=""):
    """The saved weights of a tree, as upstream's loader finds them."""
    if node is None:
        return
    if isinstance(node, list):
        for index, part in enumerate(node):
            yield from leaves(part, f"{key}.{index}")
    elif isinstance(node, dict):
        config = node.get("memory_config")
        if isinstance(node.get("path"), str) and isinstance(config, dict) and LEAF_KEYS <= config.keys():
            yield key.removeprefix("."), node
            return
        for name, part in node.items():
            yield from leaves(part, f"{key}.{name}")
    else:
        raise Mismatch(f"config.json: {key} is {node!r}, neither a weight nor a part of the tree")


def read_config(directory):
    """config.json by the rules of upstream's loader: {key: leaf}."""
    config = json.loads((directory / "config.json").read_text())
    if config.get("deepseek_weight_cache_metadata", {}).get("format_version") != 2:
        raise Mismatch("config.json: format_version is not 2")
    tree = config["weight_config"]
    for name in ("mlp_decoder_block", "moe_decoder_block"):
        if not isinstance(tree.get(name), list):
            raise Mismatch(f"config.json: {name} is no list")
    found = dict(leaves(tree))
    named = set()
    for key, leaf in found.items():
        path = PurePosixPath(leaf["path"])
        if path.is_absolute() or ".." in path.parts or path.suffix != ".tensorbin":
            raise Mismatch(f"config.json: {key} has the path {path}")
        if not (directory / path).is_file():
            raise Mismatch(f"config.json: {key}: {path} does not exist")
        named.add(str(path))
    orphans = {str(p.relative_to(directory)) for p in directory.rglob("*.tensorbin")} - named
    if orphans:
        raise Mismatch(f"no leaf names {sorted(orphans)[0]}")
    return found


def made_by_ttnn(ttnn, weight, mesh):
    """TT-NN's own tensor: its mapper, its conversion."""
    shape = ttnn.MeshShape(*mesh)
    if weight.spread is not None:
        kinds, override = [ttnn.PlacementShard(weight.spread)], ttnn.MeshShape([mesh[0] * mesh[1]])
    else:
        kinds = [ttnn.PlacementReplicate() if p is None else ttnn.PlacementShard(p) for p in weight.placements]
        override = None
    config = ttnn.MeshMapperConfig(kinds, override) if override else ttnn.MeshMapperConfig(kinds)
    layout = getattr(ttnn, f"{weight.layout}_LAYOUT")
    mapper = ttnn.create_mesh_mapper(shape, config)
    return ttnn.Tensor(weight.whole, getattr(ttnn, weight.dtype), layout=layout, mesh_mapper=mapper)


def stored(path):
    """A file's bytes for each device, by coordinate."""
    data = path.read_bytes()
    header = decode(data)
    start = header["data_start"]
    return header, {tuple(s["coordinate"]): data[start + s["offset"] :][: s["bytes"]] for s in header["shards"]}


def check_memory(ttnn, weight, leaf, tensor):
    wanted = {**weight.memory, "created_with_nd_shard_spec": False}
    if leaf["memory_config"] != wanted:
        raise Mismatch(f"config.json has the memory config {leaf['memory_config']}, expected {wanted}")
    if ttnn.MemoryConfig.from_json(json.dumps(wanted)) != tensor.memory_config():
        raise Mismatch(f"the file's memory config is {tensor.memory_config()}, expected {wanted}")


def check_leaf(ttnn, directory, leaf, weight, mesh, scratch):
    """One weight on all devices; gives how many buffers its file has."""
    path = directory / leaf["path"]
    try:
        tensor = ttnn.load_tensor(str(path))
    except Exception as error:
        raise Mismatch(f"TT-NN does not load it: {reason_of(error)}") from error
    header, bytes_of = stored(path)
    faults, strict = container_faults(header)
    if faults + strict:
        raise Mismatch("; ".join(faults + strict))
    if header["mesh_shape"] != list(mesh):
        raise Mismatch(f"the mesh is {header['mesh_shape']}")
    if tensor.dtype.name.lower() != weight.dtype or tensor.layout.name != weight.layout:
        raise Mismatch(f"is {tensor.dtype.name} {tensor.layout.name}, expected {weight.dtype} {weight.layout}")
    check_memory(ttnn, weight, leaf, tensor)
    made = made_by_ttnn(ttnn, weight, mesh)
    ttnn.dump_tensor(str(scratch / "made.tensorbin"), made)
    _, made_bytes = stored(scratch / "made.tensorbin")
    places = [tuple(s["coordinate"]) for s in by_coordinate(header)]
    for place, got, wanted in zip(places, ttnn.get_device_tensors(tensor), ttnn.get_device_tensors(made), strict=True):
        # TT-NN's mapper is held to numpy's slices too, so that both would have to be wrong.
        part = weight.part(mesh, place)
        if list(got.shape) != list(part.shape):
            raise Mismatch(f"device {place} has the shape {list(got.shape)}, expected {list(part.shape)}")
        mine, theirs = values(ttnn, got), values(ttnn, wanted).reshape(part.shape)
        difference = compare(np, mine, theirs)
        if difference:
            raise Mismatch(f"device {place}: {difference}")
        if bytes_of[place] != made_bytes[place]:
            raise Mismatch(f"device {place}: the values are right, the stored bytes are not TT-NN's")
        scale = float(np.abs(part).max()) or 1.0
        step = {"bfloat16": 2**-8, "bfloat8_b": 2**-6, "bfloat4_b": 2**-2}[weight.dtype]
        if float(np.abs(mine - part).max()) > step * scale:
            raise Mismatch(f"device {place}: a value is farther from the checkpoint's than its type explains")
    return len({s["offset"] for s in header["shards"]})


def check_mesh(ttnn, binary, model, checkpoint, mesh, root):
    """Converts for one mesh and checks all leaves; gives the faults."""
    name = f"{mesh[0]}x{mesh[1]}"
    command = [binary, "convert", "--target", "galaxy", "--mesh", name, "--mtp", "--model", checkpoint, "--output", root]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if run.returncode:
        return [f"dsv3 failed: {run.stderr.strip()}"], 0
    directory = root / f"{model.config['num_hidden_layers']}_layers_mtp" / f"mesh_{name}"
    faults, count = [], 0
    expected = Weights(model, mesh, has_mtp=True).tree
    found = read_config(directory)
    if found.keys() != expected.keys():
        odd = sorted(found.keys() ^ expected.keys())
        faults.append(f"config.json: these keys are missing or too many: {', '.join(odd[:5])}")
    buffers = 0
    with tempfile.TemporaryDirectory(prefix="check_weights.") as scratch:
        for key in sorted(found.keys() & expected.keys()):
            try:
                buffers += check_leaf(ttnn, directory, found[key], expected[key], mesh, Path(scratch))
                count += 1
            except Mismatch as fault:
                faults.append(f"{key}: {fault}")
    return faults, (count, buffers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dsv3", type=lambda p: Path(p).resolve(strict=True))
    parser.add_argument("--mesh", default="2x4,4x8,8x8,16x8", help="meshes, RxC with commas between")
    parser.add_argument("--keep", type=Path, help="leave the checkpoint and the caches in this directory")
    args = parser.parse_args()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever TT-NN prints goes to standard error
    ttnn = load_ttnn()
    model, failed = SmallModel(), 0
    with tempfile.TemporaryDirectory(prefix="check_weights.") as scratch:
        root = (args.keep or Path(scratch)).resolve()
        model.write(root / "checkpoint")
        for mesh in args.mesh.split(","):
            rows, columns = map(int, mesh.split("x"))
            try:
                faults, done = check_mesh(ttnn, args.dsv3, model, root / "checkpoint", (rows, columns), root / "cache")
            except Mismatch as fault:
                faults, done = [str(fault)], None
            failed += bool(faults)
            for fault in faults:
                out.write(f"FAIL mesh {mesh}: {fault}\n")
            if not faults:
                out.write(f"ok   mesh {mesh}: {done[0]} weights in {done[1]} buffers, values and bytes as TT-NN's own\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
