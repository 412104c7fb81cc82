#!/usr/bin/env python3
"""How fast dsv3 converts a layer for a Galaxy, beside a plain copy of the same bytes and beside TT-NN from Python.

    run.py DSV3 MODEL OUT [--layer N] [--mesh 4x8] [--ttnn PYTHON] [--experts N] [--rounds N]

DSV3 is a release binary, MODEL a checkpoint with layers of full size, OUT a directory on the same disk with room for the
layer's files (8 GB of DeepSeek-V3's MoE layer), which are removed again. PYTHON is that of an environment that
tools/ttnn_check/run.sh made. In rounds, one after the other in each, with the checkpoint's files dropped from the page cache
before each; all of them end when what they wrote is on the disk:

    copy    read as many bytes of the checkpoint as the layer has, write as many as its files have, wait for the disk
    dsv3    dsv3 convert --target galaxy --layers N, which waits for the disk too
    TT-NN   of some experts: dequantise with numpy, ttnn.Tensor(...) into tiles of the layer's types, ttnn.dump_tensor, wait
            for the disk; scaled up to all experts. The start of Python and TT-NN is not counted

The copy's and dsv3's rates are bytes read and written together, over the whole time. Medians over the rounds come last, and
the ratios of medians.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

CHUNK = 8 << 20


def drop_from_cache(paths):
    os.sync()
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def layer_bytes(model, layer):
    """Bytes of the layer's tensors, and where in which file they lie."""
    total, files = 0, {}
    for path in sorted(model.glob("*.safetensors")):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        spans = [t["data_offsets"] for name, t in header.items() if name.startswith(f"model.layers.{layer}.")]
        if spans:
            total += sum(end - start for start, end in spans)
            files[path] = [(8 + length + start, end - start) for start, end in sorted(spans)]
    return total, files


def copy(files, write, target):
    """Reads all of the spans, writes the first `write` bytes of them; gives seconds of the clock and of the processor."""
    start, busy = time.monotonic(), time.process_time()
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with open(target, "wb", buffering=0) as out:
        for path, spans in files.items():
            with open(path, "rb", buffering=0) as file:
                for offset, length in spans:
                    file.seek(offset)
                    while length:
                        got = file.readinto(view[: min(CHUNK, length)])
                        length -= got
                        part = min(got, write)
                        write -= part
                        if part:
                            out.write(view[:part])
        os.fsync(out.fileno())
    return time.monotonic() - start, time.process_time() - busy


def convert(args, output):
    """Gives seconds of the clock and of the processor, and the bytes written."""
    command = [args.dsv3, "convert", "--target", "galaxy", "--mesh", args.mesh, "--layers", str(args.layer),
               "--model", args.model, "--output", output]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    run = subprocess.run([str(part) for part in command], check=False, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    if run.returncode:
        sys.exit("galaxy_speed: dsv3 failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    written = sum(path.stat().st_size for path in output.rglob("*.tensorbin"))
    return seconds, after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, written


def planned_bytes(args, output):
    """Bytes that dsv3 will write."""
    command = [args.dsv3, "convert", "--target", "galaxy", "--mesh", args.mesh, "--layers", str(args.layer),
               "--model", args.model, "--output", output, "--dry-run"]
    text = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(re.search(r"^\s*(\d+)  \d+ files? in ", text, re.MULTILINE)[1])


def ttnn_seconds(args, scratch):
    """Seconds of an expert by TT-NN: of dequantising, of making tiles, of the file."""
    code = Path(__file__).with_name("ttnn_experts.py")
    command = [args.ttnn, code, args.model, str(args.layer), str(args.experts), scratch]
    run = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                         text=True)
    return json.loads(run.stdout.splitlines()[-1])


def one_copy(files, write, work):
    """A copy; seconds of the clock and of the processor."""
    drop_from_cache(files)
    seconds, busy = copy(files, write, work / "copy")
    (work / "copy").unlink()
    return {"clock": seconds, "processor": busy}


def one_conversion(args, files, work):
    """A conversion by dsv3; seconds, and bytes written."""
    drop_from_cache(files)
    output = work / "dsv3"
    wall, user, system, written = convert(args, output)
    shutil.rmtree(output)
    return {"clock": wall, "processor": user + system, "written": written}


def one_of_ttnn(args, files, work):
    """A conversion of some experts by TT-NN, scaled to all; seconds, by step too."""
    drop_from_cache(files)
    parts = ttnn_seconds(args, work)
    factor = parts["all_experts"] / args.experts
    clock = {name: seconds * factor for name, seconds in parts["seconds"].items()}
    return {"clock": sum(clock.values()), "processor": sum(parts["processor"].values()) * factor, **clock}


def medians(rounds):
    """The median of each figure."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def show(results, moved):
    """Prints the medians, and how they compare."""
    found = {name: medians(rounds) for name, rounds in results.items()}
    print(f"medians of {len(results['copy'])} rounds:")
    for name, figures in found.items():
        print(f"{name:6} {figures['clock']:7.1f} s, {figures['processor']:.1f} s of processor")
    mine, plain = found["dsv3"], found["copy"]
    rate = moved / mine["clock"] / 1e9
    print(f"dsv3 moves {rate:.2f} GB/s, {plain['clock'] / mine['clock']:.2f} of the copy's rate")
    if "TT-NN" in found:
        other = found["TT-NN"]
        print(f"TT-NN takes {other['clock'] / mine['clock']:.1f} times dsv3's time, {other['processor'] / mine['processor']:.1f}"
              f" times its processor time; without dequantising {(other['clock'] - other['dequantise']) / mine['clock']:.1f}"
              f" times; of it {other['dequantise']:.1f} s dequantising, {other['tiles']:.1f} s making tiles,"
              f" {other['file']:.1f} s writing to the disk")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dsv3", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--mesh", default="4x8")
    parser.add_argument("--ttnn", type=Path)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.rounds < 1 or args.experts < 1:
        parser.error("--rounds and --experts: 1 or more")
    read, files = layer_bytes(args.model, args.layer)
    work = args.out / "galaxy_speed"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        write = planned_bytes(args, work / "dsv3")
        print(f"layer {args.layer}: {read / 1e9:.2f} GB to read, {write / 1e9:.2f} GB to write, {os.cpu_count()} cores")
        results = {"copy": [], "dsv3": []} | ({"TT-NN": []} if args.ttnn else {})
        for number in range(args.rounds):
            results["copy"].append(one_copy(files, write, work))
            results["dsv3"].append(one_conversion(args, files, work))
            if args.ttnn:
                results["TT-NN"].append(one_of_ttnn(args, files, work))
            clocks = ", ".join(f"{name} {rounds[-1]['clock']:.1f} s" for name, rounds in results.items())
            print(f"round {number + 1}: {clocks}", flush=True)
        show(results, read + results["dsv3"][-1]["written"])
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
