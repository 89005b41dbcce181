"""Makes the pictures of the page in docs/img anew: `make screenshots`.

A service, its load and its faults are real, and run for two minutes. The day before is made up: the sums
that a shadow worker would have written, which a judge then reads, and the rows of the history.
"""

from __future__ import annotations

import io
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import redis
from PIL import Image

from ops.alerts import AlertSettings, apply
from ops.alerts.silences import Silence, add_silence
from ops.drift.loop import Judge
from ops.drift.service import history
from ops.drift.settings import JudgeSettings
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys
from tests.alert_walk import sums
from tests.servers import Server, free_port
from tests.viewer import start_page, viewer

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "img"
KEYS = Keys("main")
MINUTES, JUDGED_EVERY = 25 * 60, 15
RATE = 120
#: Requests of the level low that a job sends.
ROWS = 16_000


def main() -> None:
    """Starts everything, and takes the pictures one after the other."""
    environment = {**os.environ, "AMN_RUNBOOK_URL": "https://wiki.example.com/amn"}
    environment.pop("REDIS_URL", None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="amn-page-")))
        server = Server("valkey", arguments=("--appendonly", "yes")).start()
        stack.callback(server.close)
        client = stack.enter_context(server.client())
        pretend_a_day(client)
        environment["REDIS_URL"] = server.url
        port = free_port()
        stack.enter_context(running(folder, environment, "up", "--workers", "2", "--no-dashboard"))
        page_process = start_page(folder, port, server.url, environment)
        stack.callback(page_process.wait)
        stack.callback(page_process.terminate)
        words = ("run", "--workers", "0", "--rate", str(RATE), "--requests", str(RATE * 600))
        stack.enter_context(running(folder, environment, *words))
        wait_for(folder / "page.log", str(port))
        page = stack.enter_context(viewer(port)).page
        time.sleep(75)  # the judge has judged, and the rates are those of the load
        page.get_by_text("24 h", exact=True).click()
        shoot(page, "page-well", height=1210)
        page.get_by_text("1 h", exact=True).click()
        trouble(folder, environment, client, page)
        server.kill()
        page.locator("#old", has_text="old").wait_for()
        page.emulate_media(color_scheme="light")
        shoot(page, "page-away", height=420)


def trouble(folder: Path, environment: dict[str, str], client: redis.Redis, page: Any) -> None:
    """Stops a worker, poisons the queue, raises an alert, silences another, and sends a job."""
    workers = page.locator("#workers tr", has_text="amn-").all_inner_texts()
    stopped = int(workers[0].split("-")[2])
    os.kill(stopped, signal.SIGSTOP)
    for number in range(3):
        client.xadd(KEYS.requests, {"request": b"noise %d" % number})
    alert(client)
    source = folder / "contexts.npy"
    with np.load(ROOT / "artifacts" / "sample" / "sequences.npz") as sample:
        windows = np.lib.stride_tricks.sliding_window_view(sample["vectors"], 5, axis=0).swapaxes(1, 2)
    np.save(source, windows[np.arange(ROWS) % len(windows)].astype("f2"))
    command(folder, environment, "jobs", "submit", "predict", str(source), "--out", str(folder / "out"))
    page.locator("#jobs progress").wait_for(timeout=30_000)
    time.sleep(3)
    page.emulate_media(color_scheme="dark")
    shoot(page, "page-trouble-dark", height=1960)
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="light")
    shoot(page, "page-phone", height=1500)
    page.set_viewport_size({"width": 1280, "height": 900})
    os.kill(stopped, signal.SIGCONT)


def alert(client: redis.Redis) -> None:
    """Writes what the judge would at the end of a bad day, and holds another rule back."""
    now_ms = int(time.time() * 1000)
    finding = Finding(
        rule="fast_drop",
        severity="page",
        state="firing",
        model="amn@76f3cdc0a075",
        summary="OOD delta fell by 0.041 since 02:10 (99 % interval 0.022 to 0.060)",
        runbook="fast_drop",
        evaluations=1,
    )
    fence = int(client.get(leader_key(KEYS)) or 0)
    apply(client, KEYS, [finding], now_ms=now_ms, fence=fence, settings=AlertSettings())
    until_ms = now_ms + 5_400_000
    silence = Silence(
        until_ms=until_ms, made_ms=now_ms, reason="a second core comes", author="kim", rule="slo_latency"
    )
    add_silence(client, KEYS, silence)


def pretend_a_day(client: redis.Redis) -> None:
    """Writes a day of sampled sums, lets a judge read them, and writes the rows of the history."""
    now_min = int(time.time() // 60)
    model = "amn@76f3cdc0a075"
    with client.pipeline(transaction=False) as pipe:
        for minute in range(now_min - MINUTES, now_min):
            pipe.hset(f"{KEYS.drift_minute_prefix}{minute}", mapping=sums(0.0, model))
            pipe.zadd(KEYS.drift_minutes, {str(minute): minute})
        pipe.execute()
    judge = Judge(client, KEYS, JudgeSettings(), lambda *_: None)
    for minute in range(now_min - MINUTES + JUDGED_EVERY, now_min, JUDGED_EVERY):
        judge.turn(minute * 60_000)
    judge.resign()
    client.delete(f"{KEYS.drift_prefix}history")
    *kept, now = rows(now_min)  # the live counters begin where a minute more would have ended
    for row in kept:
        for words in history.commands(KEYS, row):
            client.execute_command(*words)
    named = {
        "accepted:normal": "submitted",
        **{name: name for name in ("answered", "escalated", "timed", "slow", "shed")},
    }
    client.hset(KEYS.stats, mapping={field: int(now[name]) for field, name in named.items()})


def rows(now_min: int) -> Iterator[dict[str, float]]:
    """The rows of a day with its hours of much and little traffic; the counters only grow."""
    chance = random.Random(11)
    total = dict.fromkeys(
        ("submitted", "refused", "answered", "failed", "dead", "shed", "timed", "slow"), 0.0
    )
    total |= {"escalated": 0.0, "decided": 0.0}
    for minute in range(now_min - 1440, now_min + 1):
        more = 60 * (95 + 45 * math.sin((minute % 1440) / 1440 * 2 * math.pi - 2.2) + chance.gauss(0, 3))
        shares = {"shed": 0.68, "timed": 0.84, "slow": 0.84 * (0.06 + abs(chance.gauss(0, 0.015)))}
        shares |= {"escalated": 0.16 + chance.gauss(0, 0.006)}
        for name in total:
            total[name] += int(more * shares.get(name, 0 if name in ("refused", "failed", "dead") else 1))
        p50_ms = 0.95 + abs(chance.gauss(0, 0.05)) + (2.5 if 600 < minute % 1440 < 615 else 0)
        yield {
            "at_ms": minute * 60_000,
            **total,
            "depth_amn": max(0, round(chance.gauss(1, 1.5))),
            "depth_fallback": max(0, round(chance.gauss(3, 3))),
            "oldest_ms": 2,
            "amn_workers": 2,
            "fallback_workers": 1,
            "shadow_workers": 1,
            "p50_ms": p50_ms,
            "p95_ms": p50_ms * 1.5,
            "p99_ms": p50_ms * 2.3 + abs(chance.gauss(0, 0.4)),
            "delta": 0.1 + 0.0008 * math.sin(minute / 170) + chance.gauss(0, 0.0001),
        }


@contextmanager
def running(folder: Path, environment: dict[str, str], *words: str) -> Iterator[None]:
    """A command of ours in the background."""
    log = folder / f"{words[0]}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ops.cli", *words],
            cwd=folder,
            env={**environment, "PYTHONUNBUFFERED": "1"},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        if words[0] == "up":
            wait_for(log, "Ctrl-C drains")
        yield
    finally:
        process.terminate()
        process.wait(60)


def command(folder: Path, environment: dict[str, str], *words: str) -> None:
    subprocess.run([sys.executable, "-P", "-m", "ops.cli", *words], cwd=folder, env=environment, check=True)


def wait_for(log: Path, words: str) -> None:
    give_up_at_s = time.monotonic() + 90
    while words not in log.read_text():
        if time.monotonic() > give_up_at_s:
            raise SystemExit(f"{log.name} never said {words!r}:\n{log.read_text()}")
        time.sleep(0.2)


def shoot(page: Any, name: str, height: int | None = None) -> None:
    """Saves the page, down to a height or whole, with few colours: small enough for a repository."""
    width = page.viewport_size["width"]
    page.evaluate("scrollTo(0, 0)")
    time.sleep(1.5)
    clip = None if height is None else {"x": 0, "y": 0, "width": width, "height": height}
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
    path = IMAGES / f"{name}.png"
    few(taken.convert("RGB")).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {taken.width} x {taken.height}, {path.stat().st_size // 1000} kB")


def few(image: Image.Image) -> Image.Image:
    """The picture in the 256 colours that most of it has; what else there is are the edges of letters."""
    found = sorted(image.getcolors(image.width * image.height) or (), reverse=True)[:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette([part for _, colour in found for part in cast("tuple[int, ...]", colour)])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main()
