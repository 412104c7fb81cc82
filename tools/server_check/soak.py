"""Many clients at once, some of which do not behave: what `dsv3 serve` must bear.

    python soak.py URL --seconds 600 --clients 64 --pid PID

Each client asks one thing after another: most ask greedily for a whole answer or a stream, which must equal what the same
request got when it ran alone; others go away in the middle, read slowly, send bodies that are too large or nonsense. In the
end no page of the cache may be held, nothing may wait, and the server may not have grown. Needs Python's own library only.
"""

import argparse
import http.client
import json
import random
import sys
import threading
import time
import urllib.parse

JSON = {"Content-Type": "application/json"}


def requests():
    """The greedy requests that are compared: conversations of several lengths, with a beginning in common."""
    system = {"role": "system", "content": "You add whole numbers. " * 10}
    for number in range(40):
        question = {"role": "user", "content": f"What is {17 + number} + {58 - number}?"}
        messages = [system, question] if number % 3 else [question]
        yield {"messages": messages, "temperature": 0, "max_tokens": 40 + 7 * (number % 9)}


class Failure(Exception):
    pass


class Client:
    def __init__(self, url, timeout=120):
        parts = urllib.parse.urlsplit(url)
        self.address = (parts.hostname, parts.port)
        self.timeout = timeout

    def open(self):
        return http.client.HTTPConnection(*self.address, timeout=self.timeout)

    def post(self, body, path="/v1/chat/completions"):
        connection = self.open()
        connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), JSON)
        return connection, connection.getresponse()

    def get(self, path):
        connection = self.open()
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        connection.close()
        return text

    def metrics(self):
        lines = (line.split(" ") for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        return {line[0]: float(line[1]) for line in lines}

    def whole(self, request):
        connection, response = self.post(request)
        text = response.read()
        connection.close()
        if response.status != 200:
            raise Failure(f"{response.status}: {text[:300]}")
        return said(json.loads(text)["choices"][0]["message"])

    def stream(self, request, pause=0.0, leave_after=None):
        """The streamed answer; None if left before its end."""
        connection, response = self.post({**request, "stream": True})
        if response.status != 200:
            raise Failure(f"{response.status}: {response.read()[:300]}")
        message = {}
        events = 0
        while True:
            line = response.readline()
            if not line:
                raise Failure("a stream without an end")
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                break
            event = json.loads(line[6:])
            if "error" in event:
                raise Failure(f"in a stream: {event}")
            for choice in event["choices"]:
                for field in ["content", "reasoning_content"]:
                    message[field] = message.get(field, "") + (choice["delta"].get(field) or "")
            events += 1
            if leave_after is not None and events >= leave_after:
                connection.close()
                return None
            time.sleep(pause)
        connection.close()
        return said(message)


def said(message):
    return (message.get("reasoning_content") or "", message.get("content") or "")


class Soak:
    def __init__(self, client, seconds):
        self.client = client
        self.requests = list(requests())
        self.end = time.monotonic() + seconds
        self.alone = [client.whole(request) for request in self.requests]
        self.counts = {}
        self.failures = []
        self.lock = threading.Lock()

    def count(self, what):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def compare(self, index, answer):
        if answer != self.alone[index]:
            raise Failure(f"request {index}: {answer} but alone {self.alone[index]}")

    def one(self, chance):
        index = chance.randrange(len(self.requests))
        request = self.requests[index]
        kind = chance.choices(
            ["whole", "stream", "leave", "slow", "too large", "nonsense", "hang up"], [30, 30, 12, 6, 4, 10, 8]
        )[0]
        if kind == "whole":
            self.compare(index, self.client.whole(request))
        elif kind == "stream":
            self.compare(index, self.client.stream(request))
        elif kind == "slow":
            self.compare(index, self.client.stream(request, pause=0.05))
        elif kind == "leave":
            self.client.stream({**request, "n": chance.randrange(1, 4)}, leave_after=chance.randrange(1, 12))
        elif kind == "too large":
            self.too_large()
        elif kind == "nonsense":
            self.nonsense(chance)
        else:
            connection = self.client.open()
            connection.request("POST", "/v1/chat/completions", json.dumps(request), JSON)
            time.sleep(chance.random() * 0.1)
            connection.close()
        self.count(kind)

    def too_large(self):
        try:
            connection, response = self.client.post(b'{"prompt": "' + b"x" * (5 << 20) + b'"}')
        except (BrokenPipeError, ConnectionResetError):
            return  # The server need not read all of it before it says no.
        if response.status != 413:
            raise Failure(f"a body of 5 MiB: {response.status}")
        connection.close()

    def nonsense(self, chance):
        body, status = chance.choice([
            (b"{", 400), ({"messages": 5}, 400), ({"messages": []}, 400),
            ({"messages": [{"role": "user", "content": "1 + 1 " * 4000}]}, 400),
            ({**self.requests[0], "temperature": -1}, 400), ({**self.requests[0], "model": "gpt"}, 404),
        ])
        connection, response = self.client.post(body)
        if response.status != status:
            raise Failure(f"{body if isinstance(body, bytes) else list(body)}: {response.status}, not {status}")
        response.read()
        connection.close()

    def run(self, seed):
        chance = random.Random(seed)
        while time.monotonic() < self.end and not self.failures:
            try:
                self.one(chance)
            except Exception as error:  # noqa: BLE001: whatever it is, it was not asked for
                with self.lock:
                    self.failures.append(f"{type(error).__name__}: {error}")


def resident(pid):
    with open(f"/proc/{pid}/status") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pid", type=int, help="the server's process, whose memory is watched")
    parser.add_argument("--growth", type=float, default=64, help="MiB that it may grow after the first third")
    args = parser.parse_args()
    client = Client(args.url)
    soak = Soak(client, args.seconds)
    threads = [threading.Thread(target=soak.run, args=(seed,)) for seed in range(args.clients)]
    for thread in threads:
        thread.start()
    memory = []
    while any(thread.is_alive() for thread in threads):
        if args.pid:
            memory.append(resident(args.pid))
        time.sleep(min(1.0, args.seconds / 20))
    for thread in threads:
        thread.join()
    failures = soak.failures
    for _ in range(100):
        counts = client.metrics()
        left = {name: counts[f"dsv3_{name}"] for name in
                ["cache_pages_held", "waiting_requests", "decoding_sequences", "prefilling_sequences", "open_streams"]}
        if not any(left.values()):
            break
        time.sleep(0.1)
    else:
        failures.append(f"something is left: {left}")
    if counts["dsv3_requests_failed_total"]:
        failures.append(f"{counts['dsv3_requests_failed_total']} requests failed")
    third = memory[len(memory) // 3:] or [0]
    if max(third) - third[0] > args.growth:
        failures.append(f"the server grew from {third[0]:.0f} to {max(third):.0f} MiB")
    total = sum(soak.counts.values())
    print(f"{total} requests of {args.clients} clients in {args.seconds:.0f} s: {dict(sorted(soak.counts.items()))}")
    print(f"the engine: {counts['dsv3_requests_finished_total']:.0f} finished, "
          f"{counts['dsv3_requests_cancelled_total']:.0f} cancelled, "
          f"{counts['dsv3_generated_tokens_total']:.0f} tokens, {counts['dsv3_preemptions_total']:.0f} preemptions, "
          f"{counts['dsv3_cached_prompt_tokens_total']:.0f} of {counts['dsv3_prompt_tokens_total']:.0f} prompt tokens cached")
    if memory:
        print(f"memory: {memory[0]:.0f} MiB at first, {third[0]:.0f} after a third, {max(memory):.0f} at most, {memory[-1]:.0f} at last")
    for failure in failures[:10]:
        print(f"FAILED: {failure}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
