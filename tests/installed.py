"""The wheels alone, in three empty environments and as an ordinary user: `python -m tests.installed DIST`.

A client, a worker and a service are installed as their users would, without the checkout: the client's
environment asks the service of the third, beside whose workers one of the second works. Prints what each
takes on disk and how long its import lasts. Only torch and what it needs are lent by the environment that
runs this, since they are large; a folder of links to them stands in each path.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

EXTRAS = {"client": "", "worker": "[worker]", "ops": "[ops]"}
IMPORTS = {"client": "producer", "worker": "workers.runtime", "ops": "ops.app"}
#: An import that lasts longer, in ms, brings something that it should not: measured 90 for the client.
CLIENT_IMPORT_MS_MAX = 1_000
MODELS_MIB_MAX = 28
#: Of a machine that has other things to do too; a fallback starts when nobody needs a core.
PATIENCE_S = 180
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-warn-script-location")
ASK = """
import sys, numpy as np
from producer import Producer, __version__
rng = np.random.default_rng(0)
context = rng.normal(size=(5, 768)).astype("f4")
with Producer() as producer:
    replies = [producer.predict(context, normalize=True) for _ in range(200)]
assert "torch" not in sys.modules and __version__
print(replies[0])
"""
ALONE = """
import importlib.util, numpy as np
from producer.testing import FakeProducer
with FakeProducer() as producer:
    assert producer.predict(np.eye(5, 768, dtype="f4")).vector.shape == (768,)
assert not importlib.util.find_spec("torch")
"""
BEST_IMPORT = """
import os, subprocess, sys
def lasts(text):
    begun = os.times()
    subprocess.run([sys.executable, "-c", text], check=True)
    return sum(os.times()[2:4]) - sum(begun[2:4])  # of a core: the machine may be busy
print(round(1e3 * (min(lasts("import {0}") for _ in range(3)) - min(lasts("pass") for _ in range(3)))))
"""


class Installed:
    """An environment, and an ordinary user with a folder who knows nothing else.

    Args:
        folder: Where both are made.
        wheels: Folder of wheels.
        python: Of which the environment is made.
        lent: Folder of distributions that it may import; None for none.
    """

    def __init__(self, name: str, folder: Path, wheels: Path, python: str, lent: Path | None) -> None:
        self.name, self._venv, self.home = name, folder / name, folder / f"{name}-home"
        self.home.mkdir()
        if os.geteuid() == 0:
            shutil.chown(self.home, "nobody")
        subprocess.run([python, "-m", "venv", str(self._venv)], check=True)
        [site] = self._venv.glob("lib/python*/site-packages")
        before = _mib(site)
        if lent is not None:
            (site / "lent.pth").write_text(f"{lent}\n", "utf-8")
        requirement = f"amn-queue{EXTRAS[name]}"
        self._checked([self.program("python"), *PIP, "--find-links", str(wheels), requirement], None)
        self.mib = _mib(site) - before
        self.dependencies = len(list(site.glob("*.dist-info"))) - 2  # itself and pip

    def program(self, name: str) -> str:
        return str(self._venv / "bin" / name)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Starts a program of the environment as the user, in the user's folder."""
        kept = {name: os.environ[name] for name in ("LANG", "TZ", "OPENBLAS_CORETYPE") if name in os.environ}
        every = {"PATH": f"{self._venv / 'bin'}:/usr/bin:/bin", "HOME": str(self.home), **kept, **environment}
        return subprocess.Popen(
            [self.program(command[0]), *command[1:]],
            cwd=self.home,
            env=every,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **_ordinary(),
        )

    def run(self, *command: str, code: int = 0, **environment: str) -> tuple[str, str]:
        """Runs one to its end, which has to be `code`; returns what it wrote to output and errors."""
        with self.start(*command, **environment) as process:
            try:
                output, errors = process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.terminate()  # it stops what it has started
                raise
        assert process.returncode == code, f"{command} ended with {process.returncode}: {output}{errors}"
        return output, errors

    def import_ms(self) -> int:
        return int(self.run("python", "-c", BEST_IMPORT.format(IMPORTS[self.name]))[0])

    @staticmethod
    def _checked(command: list[str], cwd: Path | None) -> None:
        ended = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr


def _ordinary() -> dict[str, Any]:
    """Whom a process belongs to: root stands in for nobody."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


def _python() -> str:
    """A Python of this version that an ordinary user can run: this one, or the system's."""
    version = f"python3.{sys.version_info.minor}"
    for found in (f"{sys.base_prefix}/bin/{version}", f"/usr/bin/{version}"):
        command = [found, "-c", "import ensurepip, venv"]
        try:
            if subprocess.run(command, capture_output=True, check=False, **_ordinary()).returncode == 0:
                return found
        except OSError:
            continue
    raise SystemExit(f"no {version} with the module venv that an ordinary user can run")


def _mib(path: Path) -> float:
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_file()) / 1024**2


def lend(folder: Path) -> Path:
    """Fills a folder with torch and what it requires, as hard links where possible."""
    waiting, taken = ["torch"], set()
    while waiting:
        name = waiting.pop()
        if name in taken:
            continue
        taken.add(name)
        found = metadata.distribution(name)
        needs = map(Requirement, found.requires or ())
        waiting += [one.name for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
        for file in found.files or ():
            if ".." not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(Path(str(file.locate())), target)
    return folder


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def served(installed: Installed) -> Iterator[str]:
    """`amn up` on a socket of the user's; gives its address."""
    process = installed.start("amn", "up")
    try:
        until_s = time.monotonic() + PATIENCE_S
        while not (record := installed.home / "var" / "amn" / "service.json").is_file():
            assert process.poll() is None, f"amn up ended: {process.communicate()}"
            assert time.monotonic() < until_s, "amn up was not ready in time"
            time.sleep(0.2)
        yield str(json.loads(record.read_text("utf-8"))["url"])
    finally:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, f"amn up ended with {process.returncode}: {output}{errors}"


def check_client(client: Installed) -> None:
    """A client has what it needs, and is told what the command takes."""
    client.run("python", "-c", ALONE)
    assert "pip install 'amn-queue[ops]'" in client.run("amn", "doctor", code=1)[1]


def check_ops(ops: Installed, worker: Installed, client: Installed) -> None:
    """The main job, a service, its doctor, an evaluation, and the three environments together."""
    run = json.loads(ops.run("amn", "run", "--requests", "500", "--rate", "500", "--json")[0])
    assert run["answered"] == 500, run
    ops.run("python", "-m", "amn", "evaluate", "--out", "report", "--no-latency")
    assert "'--out'" in ops.run("python", "-m", "amn", "evaluate", code=2)[1]
    ask = "from ops.alerts import AlertSettings; print(AlertSettings().runbook('no_worker'))"
    runbook = ops.run("python", "-c", ask)[0].strip().removeprefix("file://")
    assert "## no_worker" in Path(runbook.split("#")[0]).read_text("utf-8"), runbook
    with served(ops) as url:
        # The fallback starts when nobody needs a core, and some processors have no AVX2.
        report = _report(
            ops, lambda found: all(x["level"] == "ok" or x["check"] == "loops" for x in found["findings"])
        )
        count = len(report["workers"])
        beside = worker.start("python", "-m", "workers", "amn", REDIS_URL=url)
        _report(ops, lambda found: len(found["workers"]) > count)
        print("  a client of both:", client.run("python", "-c", ASK, REDIS_URL=url)[0].strip())
        beside.terminate()
        output, errors = beside.communicate(timeout=PATIENCE_S)
        assert beside.returncode == 0, output + errors


def _report(ops: Installed, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What the doctor says once it is as wanted, in time."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        process = ops.start("amn", "doctor", "--json")
        output, errors = process.communicate(timeout=PATIENCE_S)
        report = dict(json.loads(output))
        if wanted(report):
            return report
        assert time.monotonic() < until_s, errors


def main(wheels: Path) -> None:
    """Installs and checks all three; raises AssertionError where something does not hold."""
    [models] = wheels.glob("amn_queue_models-*.whl")
    assert models.stat().st_size < MODELS_MIB_MAX * 1024**2
    for wheel in sorted(wheels.glob("*.whl")):
        print(f"{wheel.stat().st_size / 1024**2:6.2f} MiB  {wheel.name}")
    with tempfile.TemporaryDirectory() as name:
        folder, python = Path(name), _python()
        folder.chmod(0o755)
        lent = lend(folder / "lent")
        made = {
            kind: Installed(kind, folder, wheels, python, lent if kind != "client" else None)
            for kind in EXTRAS
        }
        lasts_ms = {kind: one.import_ms() for kind, one in made.items()}
        for kind, one in made.items():
            beside = "" if kind == "client" else ", and torch"
            print(
                f"{kind}: {one.mib:.0f} MiB, {one.dependencies} dependencies{beside}; "
                f"`import {IMPORTS[kind]}` {lasts_ms[kind]} ms"
            )
        check_client(made["client"])
        check_ops(made["ops"], made["worker"], made["client"])
        assert lasts_ms["client"] < CLIENT_IMPORT_MS_MAX
    print("all held")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
