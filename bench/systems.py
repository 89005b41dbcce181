"""The systems that are compared, each in an environment of its own, and one run of one of them."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import click

from bench.machine import free_port, pinned
from bench.service import sample_contexts
from ops.local.server import Server, ServerSettings

#: Ours, and what is no queue: only the latter's latency says something.
OURS, BARE = "amn_queue", "bare_loop"
#: Ours first; the requests of a run, so that each takes some seconds.
REQUESTS = {
    OURS: 20_000,
    "dramatiq_threads": 2_500,
    "huey_thread": 2_500,
    "saq_loop": 2_000,
    "celery_solo": 1_500,
    "rq_simple": 1_000,
    "rq_forked": 150,
}
PEERS = Path(__file__).parent / "peers"
TUNED = PEERS / "tuned.json"
ENVIRONMENTS = Path(".venv-bench")


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One of them.

    Attributes:
        name: Of its module in bench/peers.
        package: The one that it is about; empty for ours.
        choice: How many jobs it computes at once, in its own words.
        note: How it is set up.
        python: Its interpreter.
    """

    name: str
    package: str
    choice: str
    note: str
    python: Path

    @classmethod
    def load_all(cls, names: str, choice: str = "") -> list[Self]:
        """Read the constants of comma-separated systems, and install what they need.

        Raises:
            BadParameter: One is not known.
            CalledProcessError: pip could not install one.
        """
        if unknown := set(names.split(",")) - {*REQUESTS, BARE}:
            known = ", ".join([*REQUESTS, BARE])
            raise click.BadParameter(f"unknown systems {sorted(unknown)}; known: {known}")
        return [cls.load(name, choice) for name in names.split(",")]

    @classmethod
    def load(cls, name: str, choice: str = "") -> Self:
        """Read the constants of one; without a choice it has the best known one."""
        constants = _constants(PEERS / f"{name}.py")
        # rq_forked takes them from its sister.
        requirements = constants.get("REQUIREMENTS", ("rq", "msgpack", "redis"))
        swept = json.loads(TUNED.read_text("utf-8"))["systems"]
        choice = choice or str(swept.get(name, {}).get("choice", ""))
        return cls(
            name=name,
            package=re.split(r"[\[<>=]", requirements[0])[0] if requirements else "",
            choice=choice,
            note=str(constants.get("NOTE", "")).format(choice=choice),
            python=interpreter(requirements),
        )

    @property
    def version(self) -> str:
        """Name and version of its package."""
        if not self.package:
            return "this checkout"
        code = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        done = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=True)
        return f"{self.package} {done.stdout.strip()}"


def label(system: str) -> str:
    """Return the name for people: rq has two systems, and the others need no second word."""
    if system == OURS:
        return "amn-queue"
    return system.replace("_", " ") if system.startswith(("rq_", "bare_")) else system.partition("_")[0]


def interpreter(requirements: Sequence[str]) -> Path:
    """Return the interpreter of a system, and install what it lacks.

    The requirements of the systems exclude each other. Each environment sees the packages of the interpreter
    that runs this (torch, numpy, this project) behind its own.

    Raises:
        CalledProcessError: pip could not install it.
    """
    if not requirements:
        return Path(sys.executable)
    home = ENVIRONMENTS / re.split(r"[\[<>=]", requirements[0])[0]
    python, stamp = home / "bin" / "python", home / ".installed"
    wanted = "\n".join(requirements)
    if not stamp.is_file() or stamp.read_text("utf-8") != wanted:
        click.echo(f"installing {' '.join(requirements)}", err=True)
        venv.create(home, with_pip=True, clear=True)
        quiet = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*quiet, *requirements], check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        behind = home / "lib" / version / "site-packages" / "behind.pth"
        behind.write_text(f"{sysconfig.get_paths()['purelib']}\n", "utf-8")
        stamp.write_text(wanted, "utf-8")
    return python.absolute()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The settings of one run.

    Attributes:
        system: Which.
        contexts: File of raw contexts.
        workers: Processes.
        words: More arguments of bench/peers/runner.py.
    """

    system: System
    contexts: Path
    workers: int = 1
    words: Sequence[str] = ()


def run_one(run: Run, surroundings: Mapping[str, str]) -> dict[str, Any]:
    """Measure one run with a server of its own, on loopback TCP, which all systems speak.

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
        command = [str(run.system.python), "-m", "bench.peers.runner", run.system.name, *run.words]
        command += ["--contexts", str(run.contexts), "--log", str(log)]
        given = {"BENCH_CHOICE": run.system.choice} if run.system.choice else {}
        given |= {"BENCH_URL": f"redis://127.0.0.1:{port}/0", "BENCH_CORE": "0" if alone else ""}
        environment = {**os.environ, **given, **surroundings}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            tail = (done.stderr.strip().splitlines() or ["no message"])[-1]
            more = log.read_text("utf-8", "replace").strip().splitlines()[-1:] if log.is_file() else []
            raise RuntimeError(" | ".join(line[:300] for line in [tail, *more]))
        row: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return row


@contextmanager
def contexts_file() -> Iterator[Path]:
    """Write 512 contexts of the shipped sample, raw float32, for programs of other environments."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contexts.f4"
        sample_contexts()[:512].astype("<f4").tofile(path)
        yield path


def _constants(path: Path) -> dict[str, Any]:
    """Read the literal constants of a peer's module, which cannot be imported here."""
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
