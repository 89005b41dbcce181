"""The systems that are compared, and one run of one of them in processes of its own."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.environments import interpreter, package
from bench.machine import free_port, pinned
from bench.service import sample_contexts
from ops.local.server import Server, ServerSettings

OURS = "amn_queue"
#: Ours first; the requests of a run, so that each takes some seconds.
REQUESTS = {
    OURS: 20_000,
    "dramatiq_threads": 2_500,
    "huey_thread": 2_500,
    "taskiq_stream": 2_000,
    "streaq_loop": 2_000,
    "saq_loop": 2_000,
    "arq_loop": 2_000,
    "celery_solo": 1_500,
    "rq_simple": 1_000,
    "rq_forked": 150,
}
PEERS = Path(__file__).parent / "peers"
TUNED = PEERS / "tuned.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One of them.

    Attributes:
        name: Of its module in bench/peers.
        requirements: For pip; empty for ours.
        choice: How many jobs it computes at once, in its own words.
        note: How it is set up.    python: Its interpreter.
    """

    name: str
    requirements: tuple[str, ...]
    choice: str
    note: str
    python: Path

    @classmethod
    def load(cls, name: str, choice: str = "") -> System:
        """Reads its constants, and installs what it needs; without a choice it has the best known one.

        Raises:
            CalledProcessError: pip could not install it.
        """
        constants = _constants(PEERS / f"{name}.py")
        # rq_forked takes them from its sister.
        requirements = constants.get("REQUIREMENTS", ("rq", "msgpack", "redis"))
        swept = json.loads(TUNED.read_text("utf-8"))["systems"]
        choice = choice or str(swept.get(name, {}).get("choice", ""))
        return cls(
            name=name,
            requirements=requirements,
            choice=choice,
            note=str(constants.get("NOTE", "")).format(choice=choice),
            python=interpreter(requirements),
        )

    @property
    def version(self) -> str:
        """Name and version of its package."""
        if not self.requirements:
            return "this checkout"
        name = package(self.requirements)
        code = f"import importlib.metadata as m; print(m.version({name!r}))"
        done = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=True)
        return f"{name} {done.stdout.strip()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The settings of one run.

    Attributes:
        system: Which.    contexts: File of raw contexts.    program: Module in bench.peers that runs it.
        workers: Processes.    words: More arguments of the program.    surroundings: More environment.
    """

    system: System
    contexts: Path
    program: str = "runner"
    workers: int = 1
    words: Sequence[str] = ()
    surroundings: Mapping[str, str] = field(default_factory=dict)


def run_one(run: Run) -> dict[str, Any]:
    """One run with a server of its own, on loopback TCP, which all systems speak.

    One worker goes to core 0 by itself (BENCH_CORE), all else stays on core 1; of more, nothing is pinned.

    Raises:
        RuntimeError: It did not come to its end; the text is the last of its output.
    """
    port, alone = free_port(), run.workers == 1
    with (
        tempfile.TemporaryDirectory() as folder,
        pinned({1}) if alone else nullcontext(),
        Server(ServerSettings(data=Path(folder), port=port)),
    ):
        log = Path(folder) / "workers.log"
        command = [str(run.system.python), "-m", f"bench.peers.{run.program}", run.system.name]
        command += [
            "--contexts",
            str(run.contexts),
            "--workers",
            str(run.workers),
            "--log",
            str(log),
            *run.words,
        ]
        surroundings = {"BENCH_CHOICE": run.system.choice} if run.system.choice else {}
        surroundings |= {"BENCH_URL": f"redis://127.0.0.1:{port}/0", "BENCH_CORE": "0" if alone else ""}
        done = subprocess.run(
            command, env={**os.environ, **surroundings, **run.surroundings}, capture_output=True, text=True
        )
        if done.returncode:
            tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
            more = log.read_text("utf-8", "replace").strip().splitlines()[-1:] if log.is_file() else []
            raise RuntimeError(" | ".join(line[:300] for line in [tail, *more]))
        row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return row


@contextmanager
def contexts_file() -> Iterator[Path]:
    """512 contexts of the shipped sample, raw float32, for programs of other environments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contexts.f4"
        sample_contexts()[:512].astype("<f4").tofile(path)
        yield path


def _constants(path: Path) -> dict[str, Any]:
    """The literal constants of a peer's module, which cannot be imported here."""
    found: dict[str, Any] = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant | ast.Tuple):
            try:
                found[target.id] = ast.literal_eval(value)
            except ValueError:
                continue
    return found
