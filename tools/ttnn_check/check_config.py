#!/usr/bin/env python3
"""Ask the host-side checks of TT-NN whether they accept operations with given shapes and configurations.

    check_config.py OPS.json [--mesh 4x8] [--cluster FILE] [--fabric FABRIC_1D] [--only SUBSTRING]
    check_config.py --list-ops

Run it with the Python of the environment that run.sh made. No Tenstorrent hardware is used: the mesh is a
mock device, so an accepted operation passed TT-NN's argument checks, program creation and memory allocation;
nothing was computed. One JSON line per operation goes to standard output. The format of OPS.json is described
in README.md. Exit status: 0 every operation met its expectation (default: accepted), 1 at least one did not,
2 the request itself is wrong (unknown operation, unknown field, bad value, unreadable file).
"""

import argparse
import json
import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from support.common import BEGIN_MARK, CLUSTERS, KIT, mock_environment
from support.operations import OPS, RequestError, read_request


def records_of(process, timeout):
    """The JSON lines that a process prints; raises TimeoutError if it falls silent."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(timeout=timeout):
                raise TimeoutError
            data = os.read(process.stdout.fileno(), 65536)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            yield from map(json.loads, lines)


def cause_of_death(status, log):
    """What can be said about a runner that ended by itself."""
    reason = f"with {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    last = Path(log).read_text(errors="replace").split(BEGIN_MARK)[-1]  # not what earlier operations provoked
    telling = [line for line in last.splitlines() if re.search(r"TT_FATAL|TT_THROW|what\(\):|Error:", line)]
    return f"TT-NN ended the process {reason}" + (f": {telling[-1].strip()}" if telling else "")


def run(request, todo, args, scratch):
    """Yield the runner's records; start it again after a crash or a hang, past the operation that caused it."""
    operations, todo, outputs = request["operations"], list(todo), {}
    job, log = Path(scratch) / "job.json", Path(scratch) / "log.txt"
    settings = {key: getattr(args, key) for key in ("mesh", "fabric", "dispatch_axis", "l1_small_size")}
    while todo:
        job.write_text(json.dumps({**settings, "operations": operations, "todo": todo, "outputs": outputs}))
        current = None
        with open(log, "w") as messages:
            process = subprocess.Popen(
                [sys.executable, str(KIT / "support" / "runner.py"), str(job)],
                stdout=subprocess.PIPE,
                stderr=None if args.verbose else messages,
                cwd=scratch,
                env=mock_environment(args.cluster, args.verbose),
            )
            try:
                for record in records_of(process, args.timeout):
                    if "begin" in record:
                        current = record["begin"]
                        continue
                    if "done" in record:
                        return
                    if "index" in record:
                        todo.remove(record["index"])
                        current = None
                        if "result" in record:
                            outputs[record["result"]["name"]] = record["result"].get("outputs")
                    yield record
                    if "fatal" in record:
                        return
                reason = cause_of_death(process.wait(), log)
            except TimeoutError:
                reason = f"no answer within {args.timeout:g} s"
            finally:
                process.kill()
                process.wait()
        if current is None:
            yield {"fatal": f"{reason} (not in an operation)"}
            return
        todo.remove(current)
        op = operations[current]
        result = {"name": op.get("name", op["op"]), "op": op["op"], "accepted": False, "stage": "crash"}
        yield {"index": current, "result": {**result, "error": reason}}


def judge(op, result):
    """Why the result does not meet the operation's expectation, or None."""
    expect = op.get("expect", {})
    if isinstance(expect, dict) and "error" in expect:
        if result["accepted"]:
            return f"accepted, but expected an error with {expect['error']!r}"
        if expect["error"] not in result["error"]:
            return f"refused, but not with {expect['error']!r}"
        return None
    if not result["accepted"]:
        return "refused"
    outputs = result["outputs"]
    if isinstance(expect, dict):  # of the first output only
        outputs, expect = (outputs or [{}])[:1], [expect]
    if len(outputs) != len(expect):
        return f"{len(outputs)} outputs, expected {len(expect)}"
    for index, (output, wanted) in enumerate(zip(outputs, expect)):
        complaint = differs(output, wanted)
        if complaint:
            return f"output {index}: {complaint}"
    return None


def differs(output, expect):
    """In what an output is not as expected, or None."""
    for key, wanted in expect.items():
        got = output.get(key)
        same = same_place(got, wanted) if key == "memory_config" else got == wanted
        if not same:
            return f"{key} {got}, expected {wanted}"
    return None


def place_of(config):
    """What of a memory config two forms of it have in common: memory, layout, a shard's last two sides, number of cores."""
    if isinstance(config, str):
        return (config, "INTERLEAVED", None, None) if config in ("DRAM", "L1") else (config, None, None, None)
    layout = config.get("memory_layout", "INTERLEAVED")
    spec = config.get("shard_spec") or config.get("nd_shard_spec")
    if spec is None:
        return config["buffer_type"], layout, None, None
    grid = spec["grid"]
    if grid == "dram_workers":
        cores = 12
    elif isinstance(grid, dict):
        cores = grid["cores"]
    else:
        cores = sum((x1 - x0 + 1) * (y1 - y0 + 1) for (x0, y0), (x1, y1) in grid)
    return config["buffer_type"], layout, tuple((spec.get("shape") or spec["shard_shape"])[-2:]), cores


def same_place(got, wanted):
    """TT-NN names shards in all dimensions by the plainer layout that is the same, where there is one."""
    got, wanted = place_of(got), place_of(wanted)
    if wanted[1] == "ND_SHARDED":
        return (got[0], *got[2:]) == (wanted[0], *wanted[2:])
    return got == wanted


def parse_mesh(text):
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError("expected ROWSxCOLUMNS, for example 4x8")
    return [int(match.group(1)), int(match.group(2))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="?", help="JSON file with the operations")
    parser.add_argument("--mesh", type=parse_mesh, help="rows x columns, default from the file, else 4x8")
    parser.add_argument("--cluster", help="cluster descriptor, default from the file, else clusters/galaxy_4x8.yaml")
    parser.add_argument("--fabric", help="a ttnn.FabricConfig name, default from the file, else FABRIC_1D")
    parser.add_argument(
        "--dispatch-axis", choices=("ROW", "COL"), help="cores kept for dispatch: a row (default) or a column"
    )
    parser.add_argument("--l1-small-size", type=int, help="bytes of L1_SMALL per core, default from the file, else 0")
    parser.add_argument("--only", metavar="SUBSTRING", help="only operations whose name contains this")
    parser.add_argument("--timeout", type=float, default=300, help="seconds allowed per operation (default 300)")
    parser.add_argument("--list-ops", action="store_true", help="list the known operations and stop")
    parser.add_argument("--verbose", action="store_true", help="let TT-NN's own messages through to standard error")
    args = parser.parse_args()
    if args.list_ops:
        for name, (path, inputs, weights) in OPS.items():
            print(f"{name:34} ttnn.{path}  inputs: {inputs or '-'}  weights: {weights or '-'}")
        return 0
    try:
        if not args.ops:
            raise RequestError("no OPS.json given")
        request = read_request(args.ops)
        args.mesh = args.mesh or parse_mesh(request.get("mesh", "4x8"))
        args.fabric = args.fabric or request.get("fabric", "FABRIC_1D")
        args.dispatch_axis = args.dispatch_axis or request.get("dispatch_axis")
        if args.l1_small_size is None:
            args.l1_small_size = request.get("l1_small_size", 0)
        if args.cluster is None:
            args.cluster = CLUSTERS / request.get("cluster", "galaxy_4x8.yaml")
        if not Path(args.cluster).is_file():
            raise RequestError(f"{args.cluster}: no such cluster descriptor")
    except (RequestError, argparse.ArgumentTypeError) as error:
        print(f"check_config: {error}", file=sys.stderr)
        return 2

    operations = request["operations"]
    todo = [i for i, op in enumerate(operations) if not args.only or args.only in op.get("name", op["op"])]
    if not todo:
        print(f"check_config: no operation has {args.only!r} in its name", file=sys.stderr)
        return 2
    failed = wrong = accepted = 0
    started = time.monotonic()
    scratch = tempfile.mkdtemp(prefix="check_config.")  # TT-NN writes ./generated into its working directory
    try:
        for record in run(request, todo, args, scratch):
            if "fatal" in record:
                print(f"check_config: {record['fatal']}", file=sys.stderr)
                return 2
            if "opened" in record:
                print(json.dumps(record), flush=True)
                continue
            op = operations[record["index"]]
            if "request_error" in record:
                wrong += 1
                name = op.get("name", op["op"])
                print(
                    json.dumps({"name": name, "op": op["op"], "request_error": record["request_error"]}), flush=True
                )
                print(f"check_config: {name}: {record['request_error']}", file=sys.stderr)
                continue
            result = record["result"]
            complaint = judge(op, result)
            result["as_expected"] = complaint is None
            if complaint:
                failed += 1
                result["complaint"] = complaint
            accepted += result["accepted"]
            same = result.get("outputs", [])
            if len(same) > 1 and all(o == same[0] for o in same):
                result["outputs"] = [{**same[0], "count": len(same)}]
            print(json.dumps(result), flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = time.monotonic() - started
    print(
        f"check_config: {len(todo)} operations, {accepted} accepted, {failed} not as expected, "
        f"{wrong} wrong requests, {seconds:.1f} s",
        file=sys.stderr,
    )
    return 2 if wrong else 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
