"""64 clients ask a real server for two minutes, some leave half way: every answer is the one alone.

    python experiments/acceptance/serve_load.py [--clients=64] [--seconds=120]

A process of `llmasos serve` with SmolLM2-135M-Instruct answers clients that ask for completions and
conversations of random prompts (pieces of Python's own documentation), lengths, options and seeds,
streamed or not; half of the conversations begin alike, and there are too few pages for all. A third
of the clients hang up after a random time. Then every answer that came to its
end is asked for once more, alone, in the batch size that its fingerprint names, and has to be the
same text. No page may be in use in the end, no program may have been compiled since the start, and
the server's memory must not have grown. Writes serve_load.json beside this file. About fifteen
minutes on two quiet cores, most of them for the answers alone.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import platform
import random
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2 as httpx

HERE = Path(__file__).parent
MODEL = "smollm2-135m-instruct"


def texts() -> list[str]:
    """Docstrings of the standard library's modules, long ones."""
    found = []
    for module in sorted(pkgutil.iter_modules([str(Path(platform.__file__).parent)])):
        path = Path(platform.__file__).parent / f"{module.name}.py"
        if path.is_file():
            found += re.findall(
                r'"""(.{200,2000}?)"""', path.read_text(encoding="utf-8"), re.DOTALL
            )
    return found


class Client(threading.Thread):
    """Asks until the time is over."""

    def __init__(self, number: int, url: str, sources: list[str], end_s: float) -> None:
        super().__init__(daemon=True)
        self._rng = random.Random(number)
        self._url, self._sources, self._end_s = url, sources, end_s
        self.finished: list[tuple[str, dict, list[str], int]] = []
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        """One request after the other."""
        while time.monotonic() < self._end_s:
            path, body = self._request()
            leaves = self._rng.random() < 1 / 3
            try:
                self._ask(path, body, self._rng.uniform(0, 8) if leaves else None)
            except httpx.TransportError as error:
                self.faults.append(repr(error))

    def _request(self) -> tuple[str, dict]:
        rng = self._rng
        start = rng.randrange(200)
        text = rng.choice(self._sources)[start : start + rng.choice([20, 200, 1000])] or "a"
        body = {
            "model": MODEL,
            "max_tokens": rng.randint(1, 40),
            "temperature": rng.choice([0, 0.7, 1.0]),
            "top_p": rng.choice([1.0, 0.9]),
            "frequency_penalty": rng.choice([0, 0, 0.5]),
            "seed": rng.randrange(2**32),
            "stream": rng.random() < 0.5,
            "stop": rng.choice([None, None, ["\n\n"]]),
        }
        if rng.random() < 0.5:
            return "/v1/completions", {**body, "prompt": text}
        told = {"role": "system", "content": self._sources[0][:1500]}
        messages = [{"role": "user", "content": text}]
        if rng.random() < 0.5:
            messages.insert(0, told)
        return "/v1/chat/completions", {**body, "messages": messages}

    def _ask(self, path: str, body: dict, leave_after_s: float | None) -> None:
        leave_s = None if leave_after_s is None else time.monotonic() + leave_after_s
        timeout = 600 if leave_after_s is None or body["stream"] else leave_after_s
        try:
            if body["stream"]:
                text, size = self._stream(path, body, leave_s)
            else:
                answer = httpx.post(self._url + path, json=body, timeout=timeout)
                if answer.status_code != 200:
                    self.faults.append(answer.text)
                    return
                text, size = _read(answer.json())
        except (httpx.ReadTimeout, LeftError):
            self.counts["left"] += 1
            return
        self.counts["finished"] += 1
        self.finished.append((path, body, [text], size))

    def _stream(self, path: str, body: dict, leave_s: float | None) -> tuple[str, int]:
        text, size = "", 0
        with httpx.stream("POST", self._url + path, json=body, timeout=600) as lines:
            for line in lines.iter_lines():
                if leave_s is not None and time.monotonic() > leave_s:
                    raise LeftError
                if line.startswith("data: {"):
                    piece, size = _read(json.loads(line[6:]))
                    text += piece
        return text, size


class LeftError(Exception):
    """The client hangs up."""


def _read(answer: dict) -> tuple[str, int]:
    """Text and batch size of an answer or a piece of one."""
    if "error" in answer:
        raise RuntimeError(answer["error"]["message"])
    (choice,) = answer["choices"]
    part = choice.get("message") or choice.get("delta") or {"content": choice.get("text")}
    return part.get("content") or "", int(answer["system_fingerprint"].rsplit("-b", 1)[1])


def metrics(url: str) -> dict[str, float]:
    """The server's own counts."""
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def resident_mb(pid: int) -> float:
    """Of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def idle(url: str) -> dict[str, float]:
    """The counts once nothing runs."""
    for _ in range(600):
        found = metrics(url)
        if not found["llmasos_texts_running"] + found["llmasos_texts_waiting"]:
            return found
        time.sleep(0.2)
    raise SystemExit("the server does not come to rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120)
    args = parser.parse_args()
    command = [sys.executable, "-m", "llmasos", "serve", MODEL, "--port=0", "--context=1024"]
    server = subprocess.Popen([*command, "--num-pages=40"], stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in server.stderr if "http://" in line)
        threading.Thread(target=server.stderr.read, daemon=True).start()
        report(args, line.split(" at ")[1].split()[0], server)
    finally:
        server.terminate()
        status = server.wait(60)
    print("the server ended with", status)


def report(args: argparse.Namespace, url: str, server: subprocess.Popen) -> None:
    """Asks, compares, writes."""
    before = metrics(url)
    end_s = time.monotonic() + args.seconds
    sources = texts()
    clients = [Client(number, url, sources, end_s) for number in range(args.clients)]
    for client in clients:
        client.start()
    memory = []
    while any(client.is_alive() for client in clients):
        memory.append(resident_mb(server.pid))
        time.sleep(2)
    after = idle(url)
    finished = [entry for client in clients for entry in client.finished]
    faults = [fault for client in clients for fault in client.faults]
    counts = sum((client.counts for client in clients), Counter())
    print(dict(counts), "faults", len(faults), faults[:3], flush=True)
    different = []
    for number, (path, body, (text,), size) in enumerate(finished):
        alone = {**body, "stream": False, "batch_size": size}
        answer = httpx.post(url + path, json=alone, timeout=600)
        if _read(answer.json()) != (text, size):
            different.append(body)
        if number % 50 == 49:
            print(f"{number + 1} of {len(finished)} alone, {len(different)} different", flush=True)
    last = idle(url)
    half = len(memory) // 2
    first_half, second_half = (statistics.median(part) for part in (memory[:half], memory[half:]))
    figures = {
        "clients": args.clients,
        "seconds": args.seconds,
        "finished": counts["finished"],
        "left_half_way": counts["left"],
        "refused_or_broken": len(faults),
        "different_from_alone": len(different),
        "batch_sizes": dict(Counter(str(size) for *_, size in finished)),
        "set_aside_for_want_of_pages": int(after["llmasos_texts_preempted_total"]),
        "tokens_drawn": int(after["llmasos_generated_tokens_total"]),
        "prompt_tokens_found_in_pages": int(after["llmasos_cached_tokens_total"]),
        "pages_in_use_in_the_end": int(last["llmasos_pages_in_use"]),
        "programs_compiled_since_the_start": int(
            last["llmasos_programs_compiled"] - before["llmasos_programs_compiled"]
        ),
        "resident_mb_first_half": round(first_half, 1),
        "resident_mb_second_half": round(second_half, 1),
        "python": platform.python_version(),
    }
    (HERE / "serve_load.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
