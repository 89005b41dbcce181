"""python -m bench batch: contexts a second of batch jobs, one worker on one core.

Batches of contexts wait in the queue while the worker is stopped; then it drains them (a server and
this process share the other core). Once with a policy without rules, which is the model alone, once
by the calibrated score alone and once with the reference bank. Beside each run, on the worker's core
and in as many rows a call (256: the worker joins small messages), the same model and the same scores
without a queue. The share of it that the queue keeps is the headline. The CPU of both is told too: it
says more on a machine that is not idle.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from bench.machine import environment, pinned, spread
from bench.report import out_option, write
from bench.service import Service, sample_contexts
from producer import Producer

NO_RULES = 'format = 1\nname = "none"\nversion = 1\n'
#: Rows of a worker's call.
CALL_ROWS = 256
ARTIFACTS = Path("artifacts/lvm")
Contexts = NDArray[np.floating]


@click.command("batch")
@click.option("--contexts", default=20_480, show_default=True, help="In the queue, for each run.")
@click.option("--size", default=256, show_default=True, help="Contexts a message.")
@click.option("--policy", "policies", default=("none", "bankless", "calibrated"), multiple=True)
@click.option("--dtype", default="float32", show_default=True, help="float32 or float16.")
@click.option("--repeats", default=5, show_default=True)
@out_option
def command(policies: tuple[str, ...], size: int, dtype: str, out: Path, **options: int) -> None:
    """Measure; writes batch.json and batch.md."""
    report: dict[str, Any] = {"environment": environment(), **options, "runs": []}
    batch = np.resize(sample_contexts(), (size, 5, 768)).astype(dtype)
    with tempfile.TemporaryDirectory() as folder:
        none = Path(folder) / "none.toml"
        none.write_text(NO_RULES, "utf-8")
        for policy in policies:
            alone = Alone(str(none) if policy == "none" else policy)
            click.echo(f"{policy}, {size} {dtype} contexts a message", err=True)
            runs = [  # a drain and, right behind it, the same work without a queue
                drain(alone.policy, batch, options["contexts"]) | alone.run(batch)
                for _ in range(options["repeats"])
            ]
            report["runs"].append({"policy": policy, "size": size, "dtype": dtype, **summary(runs)})
    write(out, "batch", report, report["runs"], f"{report['repeats']} repeats: median (min, max).")


def summary(runs: list[dict[str, float]]) -> dict[str, object]:
    """Spreads, and the ratio of each pair of runs."""
    names = ("contexts_per_s", "alone_per_s", "enqueue_per_s", "worker_cpu_us", "alone_cpu_us")
    found: dict[str, object] = {name: spread([run[name] for run in runs]) for name in names}
    ratios = [run["contexts_per_s"] / run["alone_per_s"] for run in runs]
    return found | {"share_of_alone": spread(ratios, 3)}


class Alone:
    """The worker's model and scores in this process."""

    def __init__(self, policy: str) -> None:
        import torch
        from threadpoolctl import threadpool_limits

        from amn.gate.gain import load_calibration
        from amn.gate.scores import GateScores
        from amn.policy import load_policy
        from amn.predictor import Predictor

        torch.set_num_threads(1)
        threadpool_limits(1)
        self.policy = policy
        loaded = load_policy(policy)
        calibration = load_calibration(ARTIFACTS / "gate_calibration") if loaded.needs_calibration else None
        self._predictor = Predictor.open(ARTIFACTS / "production_model", ARTIFACTS / "reference_bank")
        self._scores = GateScores(loaded, self._predictor.bank, calibration)

    def run(self, batch: Contexts, calls: int = 60) -> dict[str, float]:
        """Contexts a second, in calls of one batch each; contexts of float32 from memory, not cache."""
        call = np.resize(batch, (CALL_ROWS, 5, 768)).astype(np.float32)
        batches = [call.copy() for _ in range(8)]
        with pinned({0}):
            for one in batches[:3]:
                self._call(one)
            cpu_s, started_s = time.process_time(), time.perf_counter()
            for i in range(calls):
                self._call(batches[i % len(batches)])
            took_s = time.perf_counter() - started_s
            cpu_s = time.process_time() - cpu_s
        total = calls * CALL_ROWS
        return {"alone_per_s": total / took_s, "alone_cpu_us": cpu_s / total * 1e6}

    def _call(self, batch: NDArray[np.float32]) -> None:
        self._scores(batch, self._predictor.forward(batch))


def alone_us() -> float:
    """CPU of the worker's model and scores for one context, in its batches, by the default policy."""
    return round(Alone("calibrated").run(sample_contexts(), calls=100)["alone_cpu_us"], 1)


def drain(policy: str, batch: Contexts, contexts: int) -> dict[str, float]:
    """Fills the queue while the worker is stopped, then lets it go."""
    messages = -(-contexts // len(batch))
    with Service(policy=policy) as service, Producer(settings=service.settings) as producer:
        for _ in range(3):
            producer.predict_batch(batch)  # the first ones touch new memory
        service.stop()
        started_s = time.perf_counter()
        for _ in range(messages):
            producer.submit_batch(batch)
        enqueue_s = time.perf_counter() - started_s
        drained = service.drain(messages)
    total = messages * len(batch)
    return {
        "contexts_per_s": total / drained.seconds,
        "enqueue_per_s": total / enqueue_s,
        "worker_cpu_us": drained.worker_cpu_s / total * 1e6,
    }
