"""The walk of one real request through the house, function by function: `make walk`.

A server, an AMN worker and a fallback worker run in this process, the workers' loops in threads of
their own. After a warm-up one request is sent, and each function of ours that it passes is noted with
the time of its first call. The counts are held by tests/acceptance/test_walk.py.
"""

from __future__ import annotations

import ast
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import click
import numpy as np
import torch

from ops.local.server import Server, ServerSettings
from ops.sample import Sample
from producer import Producer
from producer.settings import ProducerSettings
from tests.alert_walk import alert_walk
from workers.kinds import build
from workers.settings import Artifacts, WorkerSettings

ROOT = Path(__file__).resolve().parents[1]
ROOMS = tuple(f"{ROOT}/{room}/" for room in ("amn", "producer", "workers", "ops"))
WARM_UP = 30
#: The worker's way to its next read belongs to the walk, too.
AFTERWARDS_S = 0.05


@dataclass(frozen=True, slots=True)
class Stop:
    """A function that the request passes.

    Attributes:
        thread: Whose thread called it first: `client`, `replies`, `amn`, `fallback`.
        at_us: Microseconds from the call of `predict` to its first call; the profile is part of them.
    """

    thread: str
    file: str
    name: str
    line: int
    at_us: float


@dataclass(slots=True)
class Walk:
    """The functions that something passes, in the order of their first calls."""

    stops: dict[tuple[str, str], Stop] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """The Python files that the functions are in."""
        return {stop.file for stop in self.stops.values()}

    @property
    def lines(self) -> int:
        """Source lines of all functions together, without docstrings, comments and blank lines."""
        return sum(lines_of(stop.file).get(stop.line, 0) for stop in self.stops.values())

    def beyond(self, other: Walk) -> Walk:
        """What this walk has and the other one has not."""
        return Walk({key: stop for key, stop in self.stops.items() if key not in other.stops})


@cache
def lines_of(file: str) -> dict[int, int]:
    """Lines of code of each function of a file, by the number of its first line."""
    text = (ROOT / file).read_text("utf-8")
    source, found = text.splitlines(), {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            docstring = ast.get_docstring(node, clean=False) is not None
            skipped = range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1) if docstring else ()
            found[first] = sum(
                bool(source[number - 1].strip()) and not source[number - 1].lstrip().startswith("#")
                for number in range(node.lineno, (node.end_lineno or 0) + 1)
                if number not in skipped
            )
    return found


class Recorder:
    """Notes the functions of ours that are called while `walk` is set, in the threads that it watches."""

    def __init__(self) -> None:
        self.walk: Walk | None = None
        self._since = 0.0

    def watch(self, thread: str) -> Callable[[FrameType, str, Any], None]:
        """A profile function for `sys.setprofile`."""
        known: dict[CodeType, str | None] = {}

        def profile(frame: FrameType, event: str, _: Any) -> None:
            walk, code = self.walk, frame.f_code
            if walk is None or event not in ("call", "return"):
                return
            if code not in known:
                ours = code.co_filename.startswith(ROOMS) and not code.co_name.startswith("<")
                known[code] = code.co_filename.removeprefix(f"{ROOT}/") if ours else None
            file = known[code]
            if file is not None and (file, code.co_qualname) not in walk.stops:
                at_us = 1e6 * (time.perf_counter() - self._since)
                stop = Stop(thread, file, code.co_qualname, code.co_firstlineno, at_us)
                walk.stops[file, code.co_qualname] = stop

        return profile

    @contextmanager
    def recording(self, thread: str = "client") -> Iterator[Walk]:
        """Notes what is called in the block, and for a moment afterwards."""
        walk = Walk()
        self._since, self.walk = time.perf_counter(), walk
        sys.setprofile(self.watch(thread))
        try:
            yield walk
        finally:
            sys.setprofile(None)
            time.sleep(AFTERWARDS_S)
            self.walk = None


@contextmanager
def service(recorder: Recorder, folder: Path) -> Iterator[str]:
    """A server and two workers, whose loops the recorder watches; gives the server's URL."""
    artifacts = ROOT / "artifacts" / "lvm"
    with Server(ServerSettings(data=folder)) as server:
        torch.set_num_interop_threads(1)
        torch.set_num_interop_threads = lambda _: (
            None
        )  # it may be set once in a process, here are two workers
        loops, threads = [], []
        for kind, model in (("amn", "production_model"), ("fallback", "fallback_accuracy")):
            settings = WorkerSettings(kind=kind, producer=ProducerSettings(url=server.url))
            parts = build(
                settings,
                Artifacts(
                    model=artifacts / model,
                    bank=artifacts / "reference_bank",
                    calibration=artifacts / "gate_calibration",
                ),
            )
            parts.loop.queue.ensure_group()
            for side in parts.sides:
                side.start()
            loops.append(parts)

            def work(run: Callable[[], None] = parts.loop.run, kind: str = kind) -> None:
                sys.setprofile(recorder.watch(kind))
                run()

            threads.append(threading.Thread(target=work))
        for thread in threads:
            thread.start()
        try:
            yield server.url
        finally:
            for parts in loops:
                parts.loop.stop()
            for thread in threads:
                thread.join()
            for parts in loops:
                for side in parts.sides:
                    side.stop()
                parts.loop.queue.close()


def walks() -> tuple[Walk, Walk]:
    """The walk of an ordinary request, and that of an escalated one."""
    recorder = Recorder()
    sample = Sample.load(ROOT / "artifacts" / "sample" / "sequences.npz")
    contexts = np.stack([sample.context(number) for number in range(WARM_UP)])
    with tempfile.TemporaryDirectory() as folder, service(recorder, Path(folder)) as url:
        threading.setprofile(recorder.watch("replies"))  # the reader's thread starts with the producer
        with Producer(url) as producer:
            threading.setprofile(None)  # type: ignore[arg-type]
            return _walk(recorder, producer, contexts, {}), _walk(
                recorder, producer, contexts, {"lane": "sci-fact"}
            )


def _walk(recorder: Recorder, producer: Producer, contexts: np.ndarray, options: dict[str, Any]) -> Walk:
    for number in range(WARM_UP):
        producer.predict(contexts[number], **options)
    with recorder.recording() as walk:
        producer.predict(contexts[0], **options)
    return walk


def alert() -> Walk:
    """The walk of a drift alert."""
    with tempfile.TemporaryDirectory() as folder:
        return alert_walk(Recorder(), Path(folder))


def table(walk: Walk) -> str:
    """The stops with their files and times, one line each."""
    rows = [f"{'us':>7}  {'lines':>5}  {'thread':8}  function"]
    for stop in walk.stops.values():
        lines = lines_of(stop.file).get(stop.line, 0)
        rows.append(f"{stop.at_us:7.0f}  {lines:5}  {stop.thread:8}  {stop.file}: {stop.name}")
    return "\n".join(rows)


def counts(walk: Walk) -> str:
    """The size of a walk in a sentence."""
    return f"{len(walk.stops)} functions, {walk.lines} lines, {len(walk.files)} Python files"


@click.command()
def main() -> None:
    """Print the walk of one request to its answer, what an escalation adds, and that of a drift alert."""
    answered, escalated = walks()
    more = escalated.beyond(answered)
    click.echo(f"From the context to the answer: {counts(answered)}\n{table(answered)}\n")
    click.echo(f"An escalation adds: {counts(more)}\n{table(more)}\n")
    paged = alert()
    click.echo(f"A drift alert, from the sums of the samples to the page: {counts(paged)}\n{table(paged)}")


if __name__ == "__main__":
    main()
