"""What aiperf has measured, as rows of a table; fails where a request did.

    load.py DIR REQUESTS

DIR has aiperf's artifacts. Needs Python's own library only.
"""

import json
import sys
from pathlib import Path

ROWS = [
    ("time to the first token", "time_to_first_token", "ms"),
    ("between two tokens of an answer", "inter_token_latency", "ms"),
    ("a whole answer", "request_latency", "ms"),
]


def main():
    [path] = Path(sys.argv[1]).glob("*/profile_export_aiperf.json")
    found = json.loads(path.read_text())
    count, errors = found["request_count"]["avg"], found["error_summary"]
    if count != int(sys.argv[2]) or errors:
        sys.exit(f"FAILED: {count:.0f} of {sys.argv[2]} requests were answered: {errors}")
    tokens, requests = (found[name]["avg"] for name in ["output_token_throughput", "request_throughput"])
    lengths = [found[name]["avg"] for name in ["input_sequence_length", "output_sequence_length"]]
    print(f"{count:.0f} requests of {lengths[0]:.0f} tokens, answers of {lengths[1]:.0f}")
    print(f"{requests:.1f} requests/s, {tokens:.0f} tokens/s")
    print("| | mean | p50 | p90 | p99 |\n|---|---|---|---|---|")
    for label, name, unit in ROWS:
        values = " | ".join(f"{found[name][of]:.0f} {unit}" for of in ["avg", "p50", "p90", "p99"])
        print(f"| {label} | {values} |")


if __name__ == "__main__":
    main()
