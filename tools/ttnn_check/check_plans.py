#!/usr/bin/env python3
"""Ask TT-NN whether it accepts every operation of a step of DeepSeek-V3, as this project's planner configures them.

    check_plans.py DSV3 CONFIG.json [--quick] [--only PART] [--keep DIR]

DSV3 is the binary, CONFIG.json the model's. For each case of CASES the binary writes the operations (dsv3 config --target
galaxy --operations), and check_config.py tries them on a mock mesh, each fed by what the ones before left. What each leaves
must be, in shape, type, layout and place, what the planner says. Run it with the Python of the environment that run.sh made.
Prints a table, and exits with 1 if TT-NN refused one operation or left something else.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Name, mesh, mode, users of a row, positions, fabric.
CASES = [
    ("decode-4x8", "4x8", "decode", 32, 2048, "line"),
    ("prefill-4x8-128", "4x8", "prefill", 32, 128, "line"),
    ("prefill-4x8-1024", "4x8", "prefill", 32, 1024, "line"),
    ("prefill-4x8-8192", "4x8", "prefill", 32, 8192, "line"),
    ("prefill-4x8-7808", "4x8", "prefill", 32, 7808, "line"),
    ("prefill-4x8-8192-chunked", "4x8", "prefill", 8, 8192, "line"),
    ("decode-4x8-ring", "4x8", "decode", 32, 2048, "ring"),
    ("decode-4x8-8-users", "4x8", "decode", 8, 32768, "line"),
    ("decode-8x8", "8x8", "decode", 32, 2048, "line"),
    ("decode-16x8", "16x8", "decode", 32, 2048, "line"),
    ("decode-16x8-ring", "16x8", "decode", 32, 2048, "ring"),
]
# Those that --quick takes: minutes, not half an hour.
QUICK = ("decode-4x8", "prefill-4x8-128", "prefill-4x8-1024", "prefill-4x8-8192", "decode-8x8")
# Seconds for an operation. One of 128 devices can take minutes where the machine is busy.
TIMEOUT = 1500


def operations_of(binary, config, case, directory):
    """Lets the binary write a case's operations; the path of the list."""
    name, mesh, mode, users, length, fabric = case
    path = directory / f"{name}.json"
    subprocess.run(
        [binary, "config", "--target", "galaxy", "--model", config, "--mesh", mesh, "--mode", mode]
        + ["--users-per-row", str(users), "--sequence-length", str(length), "--fabric", fabric]
        + ["--operations", path, "--output", directory / f"{name}.config.json"],
        check=True,
    )
    return path


def module_of(name):
    """The part of the model that an operation belongs to: two names deep in a block."""
    parts = name.split(".")
    later = parts[0] == "later_chunk"
    parts = parts[later:]
    depth = 3 if parts[:2] == ["mtp", "decoder_block"] else 2 if "decoder_block" in parts[0] else 1
    module = ".".join(parts[: min(depth, len(parts) - 1)])
    return ("later_chunk." if later else "") + (module or "model")


def check(path, case, keep):
    """Tries a list; the records of its operations, and how long it took."""
    started = time.monotonic()
    run = subprocess.run(
        [sys.executable, HERE / "check_config.py", path, "--timeout", str(TIMEOUT)], stdout=subprocess.PIPE, text=True
    )
    if keep:
        (keep / f"{case[0]}.jsonl").write_text(run.stdout)
    if run.returncode not in (0, 1):
        sys.exit(f"check_plans: {case[0]}: check_config.py ended with status {run.returncode}")
    try:
        records = [json.loads(line) for line in run.stdout.splitlines()]
    except ValueError as error:
        sys.exit(f"check_plans: {case[0]}: check_config.py printed what is no JSON: {error}")
    records = [record for record in records if "opened" not in record]
    # A checker that dies by an exception ends with 1 too, in the middle of the list.
    wanted = len(json.loads(path.read_text())["operations"])
    if len(records) != wanted:
        sys.exit(f"check_plans: {case[0]}: expected records of {wanted} operations, got {len(records)}")
    are_good = all(record.get("as_expected", False) for record in records)
    if are_good != (run.returncode == 0):
        sys.exit(f"check_plans: {case[0]}: check_config.py ended with {run.returncode} against its own records")
    return records, time.monotonic() - started


def table(case, records, seconds):
    """Prints a case's rows; how many operations were not as expected."""
    modules = {}
    for record in records:
        modules.setdefault(module_of(record["name"]), []).append(record)
    failed = 0
    for module, of_module in modules.items():
        good = sum(record.get("as_expected", False) for record in of_module)
        failed += len(of_module) - good
        print(f"| {case[0]} | {module} | {len(of_module)} | {good} | {peak(of_module)} |", flush=True)
    good = len(records) - failed
    print(f"| {case[0]} | **all** ({seconds:.0f} s) | {len(records)} | {good} | {peak(records)} |", flush=True)
    for record in records:
        if not record.get("as_expected"):
            why = record.get("complaint") or record.get("request_error")
            print(f"check_plans: {record['name']}: {why}: {record.get('error', '')}", file=sys.stderr)
    return failed


def peak(records):
    """The most bytes of L1 that an operation took on a core, its inputs included."""
    known = [record["l1_per_core"] for record in records if record.get("l1_per_core")]
    return max((numbers["peak_total"] + numbers["inputs_held"] for numbers in known), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("config", type=Path)
    parser.add_argument("--only", metavar="PART", default="", help="only cases whose name contains this")
    parser.add_argument("--quick", action="store_true", help="only " + ", ".join(QUICK))
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the lists and TT-NN's answers there")
    args = parser.parse_args()
    cases = [case for case in CASES if args.only in case[0] and (case[0] in QUICK or not args.quick)]
    if not cases:
        sys.exit(f"check_plans: no case has {args.only!r} in its name")
    print("| case | module | operations | accepted as planned | peak L1 bytes a core |\n|---|---|---|---|---|")
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        directory = args.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        for case in cases:
            path = operations_of(args.binary, args.config, case, directory)
            records, seconds = check(path, case, args.keep)
            failed += table(case, records, seconds)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
