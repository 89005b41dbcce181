"""python -m bench shares: where a worker's CPU goes while it drains a full queue, with a flame graph.

py-spy samples the worker (it must be allowed to: root, or a kernel.yama.ptrace_scope of 0) without
stopping it: a thread that is stopped while it waits for a socket can look as if it computed. What the
samples add up to stands beside what the worker's clock says, so that it shows when they do not agree.
Each sample belongs to the innermost of its frames that a part below claims; frames of numpy or torch
belong to whoever called them.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from bench.machine import environment
from bench.report import out_option, write
from bench.service import Service

#: A part, and what the paths of its files begin with. The first that fits counts.
PARTS = {
    "model": ("amn/model/", "amn/predictor"),
    "gate": ("amn/bank/", "amn/gate/scores", "amn/gate/gain"),
    "decisions": ("amn/gate/escalation", "amn/policy"),
    "Redis": ("redis/", "hiredis/", "producer/transport/", "workers/engine/queue"),
    "wire": ("producer/", "workers/engine/microbatch", "workers/engine/outcomes", "msgpack/"),
}
#: The loop, the threads, the interpreter.
REST = "other Python"
_WAITS = re.compile(r"(threading|concurrent/futures/thread|selectors)\.py[^;]*$")


@click.command("shares")
@click.option("--requests", default=40_000, show_default=True)
@click.option("--rate", default=400, show_default=True, help="Samples a second.")
@out_option
def command(requests: int, rate: int, out: Path) -> None:
    """Share of a worker's CPU by part; writes shares.json, shares.md and shares-flame.svg."""
    surroundings = environment()
    out.mkdir(parents=True, exist_ok=True)
    with Service(1) as service:
        stacks, cpu_s = record(service, requests, rate, "raw")
        flame, _ = record(service, requests, rate, "flamegraph")
    (out / "shares-flame.svg").write_text(titled(flame), "utf-8")
    counts = classify(stacks.splitlines())
    total = sum(counts.values())
    report = {
        "environment": surroundings,
        "samples": total,
        "sampled_s": round(total / rate, 2),
        "worker_cpu_s": round(cpu_s, 2),
        "shares": {part: round(counts[part] / total, 4) for part in [*PARTS, REST]},
    }
    rows = [
        {"part": part, "share of the worker's CPU": f"{share:.1%}"}
        for part, share in report["shares"].items()
    ]
    write(out, "shares", report, rows, note(report))


def record(service: Service, requests: int, rate: int, form: str) -> tuple[str, float]:
    """Samples one drain; what py-spy wrote, and the seconds of CPU that the worker spent.

    Raises:
        ClickException: It could not.
    """
    total, _ = service.fill(requests)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "samples"
        command = [str(Path(sys.executable).with_name("py-spy")), "record", "--nonblocking"]
        command += ["--pid", str(service.pids[0]), "--format", form, "--output", str(file)]
        command += ["--rate", str(rate), "--duration", "600"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as spy:
            drained = service.drain(total)
            spy.send_signal(signal.SIGINT)
            _, errors = spy.communicate(timeout=60)
        service.forget()
        if not file.is_file():
            raise click.ClickException(f"py-spy recorded nothing: {errors.decode(errors='replace').strip()}")
        return file.read_text("utf-8"), drained.worker_cpu_s


def titled(flame: str) -> str:
    """The picture without the command line and the folders of this machine."""
    title = r"\g<1>An AMN worker that drains a full queue\g<2>"
    return re.sub(r'(<text id="title"[^>]*>).*?(</text>)', title, flame.replace(f"{Path.cwd()}/", ""))


def classify(stacks: Iterable[str]) -> Counter[str]:
    """Samples by part, of lines "outer (file:line);inner (file:line) count"."""
    counts: Counter[str] = Counter()
    for line in stacks:
        stack, _, number = line.rpartition(" ")
        # A thread that waits uses no CPU, whatever a busy machine makes it look like.
        if number.isdigit() and not _WAITS.search(stack):
            counts[part_of(stack)] += int(number)
    return counts


def part_of(stack: str) -> str:
    """The part that the innermost known frame belongs to."""
    for frame in reversed(stack.split(";")):
        file = frame.rpartition("(")[2]
        for part, beginnings in PARTS.items():
            if any(file.startswith(b) or f"/{b}" in file for b in beginnings):
                return part
    return REST


def note(report: Mapping[str, Any]) -> str:
    """Return the share of model and gate, and what was sampled."""
    both = report["shares"]["model"] + report["shares"]["gate"]
    return (
        f"Model and gate: **{both:.0%}**. {report['samples']:,} samples of a worker that drains a queue, "
        f"batches of 256: {report['sampled_s']} s of sampled CPU, and {report['worker_cpu_s']} s by its "
        "clock."
    )
