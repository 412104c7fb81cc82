"""How long a short prompt waits for its first token while a long one runs, by the long one's chunks.

    dsv3 serve --model DIR --context 16384 &
    python first_token.py http://127.0.0.1:8080 --long 8192 --tries 5

Prompts are token ids, new ones each time, so that nothing is in the cache. Needs Python's own library only.
"""

import argparse
import random
import threading
import time

from soak import Client


def first_token(client, prompt):
    """Seconds from the request to the first event of its stream."""
    start = time.monotonic()
    connection, response = client.post({"prompt": prompt, "max_tokens": 1, "stream": True, "temperature": 0}, "/v1/completions")
    assert response.status == 200, response.read()
    while not response.readline().startswith(b"data: "):
        pass
    seconds = time.monotonic() - start
    response.read()
    connection.close()
    return seconds


def chunks(client):
    counts = client.metrics()
    return counts["dsv3_prompt_chunk_seconds_sum"], counts["dsv3_prompt_chunk_seconds_count"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--long", type=int, default=8192)
    parser.add_argument("--short", type=int, default=16)
    parser.add_argument("--tries", type=int, default=5)
    args = parser.parse_args()
    client = Client(args.url, timeout=600)
    ids = lambda count: [random.randrange(10, 900) for _ in range(count)]
    print(f"alone: {first_token(client, ids(args.short)):.2f} s to the first token of {args.short}")
    before = chunks(client)
    done = []
    long = threading.Thread(target=lambda: done.append(first_token(client, ids(args.long))))
    long.start()
    waits = []
    while len(waits) < args.tries:
        time.sleep(0.7)
        if not long.is_alive():
            break
        start = chunks(client)
        wait = first_token(client, ids(args.short))
        waits.append((wait, chunks(client)[1] - start[1]))
    long.join()
    after = chunks(client)
    print(f"the prompt of {args.long} took {done[0]:.1f} s in {after[1] - before[1] - len(waits):.0f} chunks, later ones longer")
    # A chunk that had begun, and the short prompt's own: two. The next chunk of the long one may end before it is asked.
    for wait, ended in waits:
        print(f"beside it: {wait:.2f} s to the first token, in which {ended:.0f} chunks ended, its own included")


if __name__ == "__main__":
    main()
