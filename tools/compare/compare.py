#!/usr/bin/env python3
"""dsv3 beside llama.cpp on one machine: the same work in alternating rounds, medians, ratios.

  python compare.py --model HF_DIR --gguf FILE --llama-bench PATH      llama.cpp or ik_llama.cpp, built from source
  python compare.py --model HF_DIR --gguf FILE                         llama.cpp from the package llama-cpp-python

README.md says how to get them.
"""
import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path


class Failed(Exception):
    """A program that did not do what it was asked for; the message names it."""


def run_json(command):
    """Runs a command and parses what it writes to stdout."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failed(f"{shlex.join(command)}: exit code {done.returncode}: {last}")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise Failed(f"{shlex.join(command)}: its output is no JSON: {error}") from error


class Dsv3:
    """`dsv3 bench run`."""

    def __init__(self, args):
        self.base = [args.dsv3, "bench", "run", "--model", args.model, "--threads", str(args.threads)]
        self.base += ["--repeat", "1", "--json", *shlex.split(args.dsv3_args)]
        if args.format:
            self.base += ["--format", args.format]

    def measure(self, prompt, generate, depths):
        """Tokens per second by (work, depth)."""
        numbers = ["--prompt", str(prompt), "--generate", str(generate), "--depths", ",".join(map(str, depths))]
        report = run_json(self.base + numbers)
        return {(m["work"], m["depth"]): m["tokens_per_second"]["median"] for m in report["measurements"]}


class LlamaBench:
    """llama.cpp's `llama-bench`, or ik_llama.cpp's, which has no depth of its own for a prefill."""

    def __init__(self, args):
        self.base = [args.llama_bench, "-m", args.gguf, "-t", str(args.threads), "-r", "1", "-o", "json"]
        self.base += shlex.split(args.llama_args)
        try:
            usage = subprocess.run([args.llama_bench, "--help"], capture_output=True, text=True)
        except OSError as error:
            raise Failed(f"{args.llama_bench}: {error.strerror}") from error
        self.has_depth = "--n-depth" in usage.stdout + usage.stderr

    def measure(self, prompt, generate, depths):
        """Tokens per second by (work, depth)."""
        command = self.base + ["-p", str(prompt), "-n", str(generate)]
        if self.has_depth:
            command += ["-d", ",".join(map(str, depths))]
        else:
            for depth in filter(None, depths):
                command += ["-gp", f"{depth},{generate}"]
        speeds = {}
        for test in run_json(command):
            speeds[self.key(test, generate)] = statistics.median(test["samples_ts"])
        return speeds

    def key(self, test, generate):
        if self.has_depth:
            return ("decode" if test["n_gen"] else "prefill", test["n_depth"])
        if test["n_gen"] == generate:
            return ("decode", test["n_prompt"])
        return ("prefill", 0)


class LlamaPython:
    """llama.cpp through llama-cpp-python, in a process of its own."""

    def __init__(self, args):
        self.base = [sys.executable, os.path.abspath(__file__), "--worker"]
        self.job = {"gguf": args.gguf, "threads": args.threads}

    def measure(self, prompt, generate, depths):
        """Tokens per second by (work, depth)."""
        job = dict(self.job, prompt=prompt, generate=generate, depths=list(depths))
        return {(work, depth): speed for work, depth, speed in run_json(self.base + [json.dumps(job)])}


def worker(job):
    """What `LlamaPython` runs."""
    try:
        from llama_cpp import Llama
    except ImportError as error:
        raise Failed("llama-cpp-python is not installed: pip install it, or give --llama-bench PATH") from error
    longest = max(job["depths"]) + max(job["prompt"], job["generate"])
    model = Llama(
        model_path=job["gguf"], n_ctx=longest + 64, n_batch=512, n_ubatch=512, n_threads=job["threads"],
        n_threads_batch=job["threads"], flash_attn=True, verbose=False,
    )
    draw = random.Random(0)
    tokens = lambda count: [draw.randrange(model.n_vocab()) for _ in range(count)]
    model.eval(tokens(4))
    found = []
    for depth in sorted(job["depths"]):
        def timed(batches):
            # What was evaluated behind the depth before is dropped.
            model.n_tokens = depth
            start = time.perf_counter()
            for batch in batches:
                model.eval(batch)
            return sum(map(len, batches)) / (time.perf_counter() - start)

        model.reset()
        if depth:
            model.eval(tokens(depth))
        if job["prompt"]:
            found.append(("prefill", depth, timed([tokens(job["prompt"])])))
        if job["generate"]:
            found.append(("decode", depth, timed([tokens(1) for _ in range(job["generate"])])))
    print(json.dumps(found))


@contextmanager
def busy_core(core):
    """Another process that keeps a core busy."""
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.2)
        if process.poll() is not None:
            raise Failed(f"no process can be kept on core {core}")
        yield
    finally:
        process.kill()
        process.wait()


def reread(paths):
    """Reads files into the page cache anew: what a program has written stays there in scattered pages of 4 kB, and is read
    slower by everyone than what came from the disk in large ones."""
    for path in paths:
        print(f"reading {path} anew", file=sys.stderr, flush=True)
        with open(path, "rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(16 << 20):
                pass


def alternate(programs, rounds, work):
    """Samples by program and test: A B, B A, A B, ... so that neither always comes first."""
    samples = {name: {} for name in programs}
    for number in range(rounds):
        order = list(programs) if number % 2 == 0 else list(reversed(programs))
        for name in order:
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
            for key, speed in work(programs[name]).items():
                samples[name].setdefault(key, []).append(speed)
    return samples


def spread(samples):
    """As dsv3's reports have it; none for a test that a program does not know."""
    if not samples:
        return None
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "samples": samples}


def compare(name, ours, theirs):
    """One line of the table."""
    ours, theirs = spread(ours), spread(theirs)
    ratio = ours["median"] / theirs["median"] if ours and theirs else None
    return {"test": name, "dsv3": ours, "llama": theirs, "ratio": ratio}


def quiet_tests(args, samples):
    """The lines of the quiet machine."""
    deepest = max(args.depths)
    wanted = [("prefill", 0), *(("decode", depth) for depth in args.depths), ("prefill", deepest)]
    for work, depth in dict.fromkeys(wanted):
        tokens = args.prompt if work == "prefill" else args.generate
        name = f"{work} {tokens}" + (f" at {depth}" if depth else "")
        yield compare(name, samples["dsv3"].get((work, depth)), samples["llama"].get((work, depth)))


def show(value):
    return "-" if value is None else f"{value['median']:.1f} ({value['min']:.1f}..{value['max']:.1f})"


def print_table(tests):
    rows = [("tokens/s", "dsv3", "llama", "ratio")]
    for test in tests:
        ratio = "-" if test["ratio"] is None else f"{test['ratio']:.2f}"
        rows.append((test["test"], show(test["dsv3"]), show(test["llama"]), ratio))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print(row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:])), sep="  ")


def positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected 1 or more")
    return value


def depth_list(text):
    depths = sorted({int(depth) for depth in text.split(",")} | {0})
    if depths[0] < 0:
        raise argparse.ArgumentTypeError("expected depths of 0 or more")
    return depths


def parse_arguments():
    release = Path(__file__).resolve().parents[2] / "target/release/dsv3"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the checkpoint that dsv3 runs")
    parser.add_argument("--gguf", required=True, help="the same weights for llama.cpp")
    parser.add_argument("--dsv3", default=str(release), help="the binary [default: %(default)s]")
    parser.add_argument("--dsv3-args", default="", help="more options for `dsv3 bench run`, in one string")
    parser.add_argument("--format", help="what dsv3 runs in, as `dsv3 bench run --format` [default: the checkpoint's]")
    parser.add_argument("--llama-bench", help="llama-bench's path [default: llama-cpp-python]")
    parser.add_argument("--llama-args", default="", help="more options for it, in one string: '-fa 1 -mla 3'")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--prompt", type=positive, default=512)
    parser.add_argument("--generate", type=positive, default=64)
    parser.add_argument("--depths", type=depth_list, default=[0, 2048, 4096], help="[default: 0,2048,4096]")
    parser.add_argument("--reread", action="store_true", help="first read both models into the page cache anew")
    parser.add_argument("--busy", action="store_true", help="also decode while another process keeps core 0 busy")
    parser.add_argument("--json", help="write everything to this file, samples included")
    return parser.parse_args()


def main():
    args = parse_arguments()
    llama = LlamaBench(args) if args.llama_bench else LlamaPython(args)
    programs = {"dsv3": Dsv3(args), "llama": llama}
    if args.reread:
        reread([*sorted(Path(args.model).glob("*.safetensors")), args.gguf])
    quiet = alternate(programs, args.rounds, lambda it: it.measure(args.prompt, args.generate, args.depths))
    tests = list(quiet_tests(args, quiet))
    if args.busy:
        with busy_core(0):
            busy = alternate(programs, args.rounds, lambda it: it.measure(0, args.generate, [0]))
        key = ("decode", 0)
        tests.append(compare(f"decode {args.generate}, core 0 busy", *(busy[name].get(key) for name in programs)))
        shares = []
        for name in programs:
            ours = statistics.median(quiet[name][key])
            shares.append([speed / ours for speed in busy[name][key]])
            print(f"{name}: {statistics.median(shares[-1]):.0%} of its quiet speed with core 0 busy", file=sys.stderr)
        tests[-1]["share_of_quiet"] = dict(zip(programs, map(spread, shares)))
    print_table(tests)
    if args.json:
        report = {
            "dsv3": programs["dsv3"].base, "llama": llama.base, "threads": args.threads, "rounds": args.rounds,
            "tests": tests,
        }
        Path(args.json).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--worker"]:
            worker(json.loads(sys.argv[2]))
        else:
            main()
    except Failed as failure:
        sys.exit(f"compare.py: error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
