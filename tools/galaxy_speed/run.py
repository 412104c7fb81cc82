#!/usr/bin/env python3
"""How fast dsv3 converts a layer for a Galaxy, beside a plain copy of the same bytes and beside TT-NN from Python.

    run.py DSV3 MODEL OUT [--layer N] [--mesh 4x8] [--ttnn PYTHON] [--experts N] [--repeat N]

DSV3 is a release binary, MODEL a checkpoint with layers of full size, OUT a directory on the same disk with room for the
layer's files (8 GB of DeepSeek-V3's MoE layer), which are removed again. PYTHON is that of an environment that
tools/ttnn_check/run.sh made. In turn, with the checkpoint's files dropped from the page cache each time:

    copy    read as many bytes of the checkpoint as the layer has, write as many as its files have, wait for the disk
    dsv3    dsv3 convert --target galaxy --layers N, which waits for the disk too
    TT-NN   of some experts: dequantise with numpy, ttnn.Tensor(...) into tiles of the layer's types, ttnn.dump_tensor;
            scaled up to all experts

The copy's and dsv3's rates are bytes read and written together, over the whole time.
"""

import argparse
import json
import os
import re
import resource
import shutil
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dsv3", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--mesh", default="4x8")
    parser.add_argument("--ttnn", type=Path)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()
    read, files = layer_bytes(args.model, args.layer)
    work = args.out / "galaxy_speed"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        write = planned_bytes(args, work)
        print(f"layer {args.layer}: {read / 1e9:.2f} GB to read, {write / 1e9:.2f} GB to write, {os.cpu_count()} cores")
        for _ in range(args.repeat):
            drop_from_cache(files)
            seconds, busy = copy(files, write, work / "copy")
            (work / "copy").unlink()
            rate = (read + write) / seconds / 1e9
            print(f"copy   {seconds:7.1f} s  {rate:5.2f} GB/s; {busy:.1f} s of processor", flush=True)
            drop_from_cache(files)
            wall, user, system, written = convert(args, work)
            shutil.rmtree(work)
            work.mkdir()
            mine = (read + written) / wall / 1e9
            print(f"dsv3   {wall:7.1f} s  {mine:5.2f} GB/s  {mine / rate:.2f} of the copy's; {user:.1f} s of processor"
                  f" in dsv3, {system:.1f} s in the system", flush=True)
        if args.ttnn:
            parts = ttnn_seconds(args, work)
            factor = parts["all_experts"] / args.experts
            clock, processor = (
                {name: seconds * factor for name, seconds in parts[kind].items()} for kind in ("seconds", "processor")
            )
            whole, busy = sum(clock.values()), sum(processor.values())
            print(f"TT-NN  {whole:7.1f} s  ({args.experts} of {parts['all_experts']} experts, scaled):"
                  f" {clock['dequantise']:.1f} s dequantising, {clock['tiles']:.1f} s making tiles, {clock['file']:.1f} s"
                  f" writing; {busy:.1f} s of processor, {processor['tiles'] + processor['file']:.1f} s without dequantising")
            print(f"TT-NN takes {whole / wall:.1f} times dsv3's time, {busy / (user + system):.1f} times its processor time;"
                  f" without dequantising {(whole - clock['dequantise']) / wall:.1f} and"
                  f" {(busy - processor['dequantise']) / (user + system):.1f} times")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
