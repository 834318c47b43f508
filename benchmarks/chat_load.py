"""Fifty people at once in front of the running chat: does everybody get their own reply, and is memory flat?

    python benchmarks/chat_load.py                              minutes of load on the tiny model
    python benchmarks/chat_load.py --model outputs/RUN --minutes 10 --browsers 3

Starts `app.py` and sits in front of it as pages do (the same requests and streams), as programs do, and, with
`--browsers`, as real Chromium pages. Every reply is compared with the one that the same conversation gets from an idle
server. Among the people some stop a reply, some close the page in the middle of it, some read a byte a second or
nothing, and some send what no page would send. Prints a table; fails where a reply was lost, was not the one expected,
or memory grew by more than `--growth` after the first quarter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import httpx

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from chat_people import TALKS, Crowd, Told, browsing, settle  # noqa: E402


def decided_smoke(folder: Path) -> Path:
    """The tiny random model with so much larger scores that a draw is always its best token, so replies repeat."""
    from safetensors.torch import load_file, save_file

    from bnft.models import find_model

    shutil.copytree(find_model("smoke").base, folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 100
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def resident(pid: int) -> float:
    """MiB of a process' memory that are in RAM."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1)) / 1024


@contextlib.contextmanager
def serving(model: str | Path, outputs: Path):
    """`app.py` on a free port: its process and its address. What it says besides goes to `outputs`/log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "app.py", "--model", str(model), "--port", str(port), "--output-dir", str(outputs)]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def keep():
        with (outputs / "log").open("w", encoding="utf-8") as log:
            log.writelines(process.stdout)

    try:
        for line in process.stdout:
            if line.startswith("open http"):
                break
        threading.Thread(target=keep, daemon=True).start()  # a full pipe would stop it
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


async def watch(pid: int, seconds: float, sizes: list[tuple[float, float, int]]) -> None:
    """Notes when, MiB and threads, about two hundred times."""
    started = time.monotonic()
    while True:
        sizes.append((time.monotonic() - started, resident(pid), len(os.listdir(f"/proc/{pid}/task"))))
        await asyncio.sleep(max(0.2, seconds / 200))


async def load(process, url: str, flags) -> dict:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        crowd = await Crowd.meet(http, flags.tokens, flags.talks)
        print("asking alone", flush=True)
        seconds = await settle(crowd, flags.settle)
        print(f"alone: {seconds:.2f} s a reply; {flags.people} people for {flags.minutes:g} minutes", flush=True)
        told, sizes = Told(), []
        end = time.monotonic() + flags.minutes * 60
        watching = asyncio.create_task(watch(process.pid, flags.minutes * 60, sizes))
        people = [crowd.person(number, end, told) for number in range(flags.people - flags.browsers)]
        if flags.browsers:
            people.append(browsing(flags.browsers, url, end, told))
        await asyncio.gather(*people)
        watching.cancel()
        again = Told()
        await crowd.program(random.Random(), again)
    return report(told, sizes, flags.minutes * 60, seconds) | {
        "answers_afterwards": again.counts["right"] == sum(again.counts.values())
    }


def report(told: Told, sizes: list[tuple[float, float, int]], seconds: float, alone: float) -> dict:
    quarters = [[] for _ in range(4)]
    for when, size, _ in sizes:
        quarters[min(3, int(4 * when / seconds))].append(size)
    means = [sum(quarter) / max(1, len(quarter)) for quarter in quarters]
    return {
        "replies": dict(sorted(told.counts.items())),
        "seconds_alone": round(alone, 2),
        "first_text_s": percentiles(told.first),
        "whole_reply_s": percentiles(told.whole),
        "longest_place_told": told.furthest,
        "mib_by_quarter": [round(mean, 1) for mean in means],
        "growth_percent": round(100 * (means[3] / means[0] - 1), 2) if means[0] else 0.0,
        "mib_every_twentieth": [round(size) for _, size, _ in sizes[:: max(1, len(sizes) // 20)]],
        "most_threads": max((threads for *_, threads in sizes), default=0),
        "faults": told.faults[:20],
    }


def percentiles(values: list[float]) -> dict[str, float]:
    values = sorted(values) or [0.0]
    return {f"p{share}": round(values[min(len(values) - 1, len(values) * share // 100)], 2) for share in (50, 90, 99)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smoke")
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--browsers", type=int, default=0, help="how many of the people are Chromium pages")
    parser.add_argument("--talks", type=int, default=len(TALKS), help="how many different ones")
    parser.add_argument("--tokens", type=int, default=16, help="longest reply")
    parser.add_argument("--settle", type=float, default=20, help="seconds of single questions before the crowd comes")
    parser.add_argument("--growth", type=float, default=3, help="per cent of memory after the first quarter, allowed")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = decided_smoke(Path(folder) / "model") if flags.model == "smoke" else flags.model
        outputs = Path(folder) / "outputs"
        outputs.mkdir()
        with serving(model, outputs) as (process, url):
            result = asyncio.run(load(process, url, flags))
        told = (outputs / "log").read_text(encoding="utf-8")
        result["server_tracebacks"] = told.count("Traceback")
        print(told[-4000:] if "Traceback" in told else "", end="", flush=True)
    result |= {"model": flags.model, "people": flags.people, "minutes": flags.minutes}
    result |= {"date": date.today().isoformat(), "machine": platform.machine(), "cores": os.cpu_count()}
    print(json.dumps(result, ensure_ascii=False, indent=1))
    return 0 if not result["faults"] and result["answers_afterwards"] and result["growth_percent"] < flags.growth else 1


if __name__ == "__main__":
    sys.exit(main())
