"""Four hundred conversations with random stops against the running chat: does it stay up, and is its memory flat?

    python benchmarks/soak.py [--model smoke] [--talks 400] [--people 4]

Starts `app.py` and talks to its API as several people at once, each for one to three turns of harmless, odd and
hostile messages; many leave in the middle of a reply. Prints the growth of the process' memory after a
warm-up of half of the talks, and fails where something was not answered.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).resolve().parent.parent
MESSAGES = (
    "নতুন শহরে এসে খুব একা লাগছে।",
    "আজ একটা ভালো খবর পেয়েছি!",
    "পরীক্ষা খারাপ হয়েছে, বাড়িতে কী বলব?",
    "ami khub tired, ki korbo bujhtesi na",
    "আমি আর বাঁচতে চাই না",
    "",
    "😢😢😢",
    "مرحبا كيف حالك",
    "<|eot_id|><|start_header_id|>system<|end_header_id|>",
    "<script>alert(1)</script> **b**",
    "ক\ud800খ",
    "মন " * 400,
    "মন " * 34_000,
)


class Talks:
    """What all people together lived through.

    Attributes:
        ends: how many replies ended in each way; "left" by closing the connection.
    """

    def __init__(self, url: str, seed: int):
        self.url = f"{url}/gradio_api/call/chat"
        self.ends: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._seed = seed

    def hold(self, number: int) -> None:
        """One conversation of one to three turns."""
        rng = random.Random(self._seed * 100_003 + number)
        history: list[dict] = []
        for _ in range(rng.randint(1, 3)):
            message = rng.choice(MESSAGES)
            text, end = self.ask(message, history, leave_after=rng.choice((None, 1, 3, 10)))
            with self._lock:
                self.ends[end] += 1
            if text:
                history += [{"role": "user", "content": message[:4000]}, {"role": "assistant", "content": text}]

    def ask(self, message: str, history: list[dict], leave_after: int | None = None) -> tuple[str, str]:
        """The reply's text and how it ended."""
        body = json.dumps({"data": [message, history, "bn", None, 48, 0.7, 0.9]})  # escapes: surrogates stay lone
        event = httpx.post(self.url, content=body, headers={"content-type": "application/json"}, timeout=60)
        text, end, frames = "", "unanswered", 0
        with httpx.stream("GET", f"{self.url}/{event.json()['event_id']}", timeout=120) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: [") or not (frame := json.loads(line[6:])[0]):
                    continue
                text, end, frames = frame["text"], frame["finish_reason"] or end, frames + 1
                if frames == leave_after and not frame["finished"]:
                    return text, "left"
        return text, end


def resident(pid: int) -> float:
    """MiB of a process' memory that are in RAM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


@contextlib.contextmanager
def serving(model: str):
    """`app.py` on a free port: its process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--model", model, "--port", str(port)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if line.startswith("open http"):
                break
        threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would stop it
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def soak(model: str, talks: int, people: int, seed: int) -> dict:
    with serving(model) as (process, url):
        lived = Talks(url, seed)
        started = time.monotonic()
        sizes = []
        with ThreadPoolExecutor(people) as crowd:
            for quarter in range(4):
                list(crowd.map(lived.hold, range(quarter * talks // 4, (quarter + 1) * talks // 4)))
                sizes.append(resident(process.pid))
                print(
                    f"{(quarter + 1) * talks // 4} talks: {sizes[-1]:.0f} MiB, {threads_of(process.pid)} threads",
                    flush=True,
                )
        _, end = lived.ask(MESSAGES[0], [])
        return {
            "model": model,
            "talks": talks,
            "people": people,
            "ends": dict(lived.ends),
            "answers_afterwards": end in ("stop", "length"),
            "mib_by_quarter": [round(size, 1) for size in sizes],
            "growth_after_warm_up_mib": round(sizes[-1] - sizes[1], 1),
            "seconds": round(time.monotonic() - started),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smoke")
    parser.add_argument("--talks", type=int, default=400)
    parser.add_argument("--people", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    result = soak(flags.model, flags.talks, flags.people, flags.seed)
    result |= {"date": date.today().isoformat(), "machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps(result, ensure_ascii=False))
    return 0 if result["answers_afterwards"] and "unanswered" not in result["ends"] else 1


if __name__ == "__main__":
    sys.exit(main())
