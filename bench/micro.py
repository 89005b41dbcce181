"""python -m bench micro: the parts of a request's time, CPU microseconds of one thread.

model     by engine, dtype and batch: torch as written, folded (what workers run), folded without the
          compiled loops, ONNX Runtime where it is installed, float16, bfloat16
gate      exact search on the shipped bank by batch, with and without the loops
features  of the expected gain, by batch, with and without the loops
wire      encode and decode of a request, encode of an answer
finish    the script that ends a batch, on a real server, by batch: time on the clock
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from amn.gate.gain import features
from amn.gate.scores import GateScores
from amn.kernel import bindings as kernel
from amn.model.folded import fold
from amn.policy import DEFAULT, load_policy
from amn.predictor import Predictor
from bench.engines import HALVES, WithoutLoops, eager, engines
from bench.machine import environment
from bench.report import facts, markdown, write
from bench.service import sample_contexts
from ops.local.server import Server, ServerSettings
from ops.sample import Sample
from producer import Options, ProducerSettings
from producer.messages import Reply
from producer.protocol.wire import decode_request, encode_reply
from producer.session.requests import prepare
from workers.engine.outcomes import answered
from workers.engine.queue import LeasedQueue
from workers.settings import WorkerSettings

BATCHES = (1, 8, 32, 64, 128, 256)
ROUNDS, TURN = 12, 4
#: By `amn.kernel.bindings.LEVEL`.
INSTRUCTIONS = ("", "AVX2", "AVX-512 VNNI", "AMX for five vectors and more, AVX-512 VNNI or AVX2 for fewer")
HALF_FLAGS = {"avx512_bf16", "avx512_fp16", "amx_bf16"}


@click.command("micro")
@click.option("--out", type=click.Path(path_type=Path), default=Path("var/bench"), show_default=True)
def command(out: Path) -> None:
    """Engines, gate, wire and finish step; writes micro.json and micro.md."""
    torch.set_num_threads(1)
    root = Path("artifacts/lvm")
    folders = root / "production_model", root / "reference_bank"
    predictor, plain = Predictor.open(*folders), WithoutLoops(*folders)
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    contexts = np.stack([sample.context(i) for i in range(max(BATCHES))]).astype(np.float32)
    with threadpool_limits(1):
        report = {
            "environment": environment(),
            "us_per_context": _parts(predictor, plain, contexts),
            "us": {**_wire(contexts), **_finish(contexts)},
            "half": half(predictor, sample_contexts()),
            "difference_max": difference(predictor, sample_contexts()),
        }
    report = json.loads(json.dumps(report))  # sizes become text, as whoever reads the file finds them
    write(out, "micro", report, table(report))


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median CPU seconds of this thread for each call.

    The calls take turns of some calls each, so that a busy moment hits all; the first of a turn, which
    finds the weights of the others in the cache, is not counted.
    """
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            for _ in range(TURN):
                started_s = time.thread_time()
                call()
                took[name].append(time.thread_time() - started_s)
    return {name: statistics.median(values) for name, values in took.items()}


def _parts(
    predictor: Predictor, plain: WithoutLoops, contexts: NDArray[np.float32]
) -> dict[str, dict[int, float]]:
    """Microseconds a context by part and batch size; the parts of a kind take turns."""
    model, bank = predictor.checkpoint.model, predictor.bank
    assert bank is not None
    named = engines(model, fold(model).arrays, plain.predictor.forward)
    answers = predictor.forward(contexts)
    kinds: tuple[dict[str, Callable[[int], object]], ...] = (
        {f"model, {name}": lambda n, run=run: run(contexts[:n]) for name, run in named.items()},
        {
            "gate, exact": lambda n: bank.top2(answers[:n]),
            "gate, NumPy alone": lambda n: plain.predictor.bank.top2(answers[:n]),
        },
        {
            "features of the gain": lambda n: features(contexts[:n], answers[:n]),
            "features of the gain, NumPy alone": lambda n: plain.features(contexts[:n], answers[:n]),
        },
    )
    rows: dict[str, dict[int, float]] = {name: {} for kind in kinds for name in kind}
    for kind in kinds:
        for size in BATCHES:
            took = in_turns({name: lambda run=run, n=size: run(n) for name, run in kind.items()})
            for name, seconds in took.items():
                rows[name][size] = round(seconds / size * 1e6, 1)
    return rows


def half(predictor: Predictor, contexts: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Measures the change by 16-bit forms of the network on the shipped sample.

    The one that serves is among them: in the loops weights and vectors are int16.

    Returns:
        By format the least and the mean cosine with the float32 prediction, and the share of requests
        for which a soft rule of the default policy fires in one of the two and not in the other.
    """
    policy, model, bank = load_policy(DEFAULT), predictor.checkpoint.model, predictor.bank
    assert bank is not None
    assert policy.confidence is not None
    assert policy.margin is not None
    scores = GateScores(policy, bank)

    def flags(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        confidences, margins = scores(vectors)
        low = confidences < policy.confidence.below  # type: ignore[union-attr]
        return low | (margins < policy.margin.below)  # type: ignore[union-attr,no-any-return]

    exact = eager(model)(contexts)  # as written, in float32
    forms = {str(dtype).removeprefix("torch."): (eager(model, dtype), 256) for dtype in HALVES}
    if kernel.READY:
        forms["int16 in compiled loops (what serves)"] = predictor.forward, 256
    fired, found = flags(exact), {}
    for name, (run, size) in forms.items():
        vectors = np.concatenate([run(contexts[i : i + size]) for i in range(0, len(contexts), size)])
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = np.vecdot(vectors.astype(np.float64), exact)
        found[name] = {
            "cosine_min": round(float(cosines.min()), 6),
            "cosine_mean": round(float(cosines.mean()), 6),
            "decisions_changed": round(float(np.mean(flags(vectors) != fired)), 5),
            "requests": len(contexts),
        }
    return found


def difference(predictor: Predictor, contexts: NDArray[np.float32]) -> float:
    """The most by which an element of what serves differs from the network as written, in float32."""
    written, found = eager(predictor.checkpoint.model, torch.float32), 0.0
    for first in range(0, len(contexts), 256):
        some = contexts[first : first + 256]
        found = max(found, float(np.abs(predictor.forward(some) - written(some)).max()))
    return found


def _wire(contexts: NDArray[np.float32]) -> dict[str, float]:
    settings = ProducerSettings()
    raw = prepare(contexts[0], Options(), "client", settings).payload
    reply = example_reply(contexts)
    calls: dict[str, Callable[[], object]] = {
        "check and encode a request": lambda: prepare(contexts[0], Options(), "client", settings),
        "decode a request": lambda: decode_request(raw),
        "encode an answer": lambda: encode_reply(reply),
    }
    return {name: round(s * 1e6, 1) for name, s in in_turns(calls, 100).items()}


def example_reply(contexts: NDArray[np.float32]) -> Reply:
    """An answer as AMN workers give it."""
    return Reply(
        id="r",
        vector=contexts[0, 0],
        confidence=0.7,
        margin=0.1,
        served_by="amn",
        model="m",
        bank="b",
        policy="p",
        confidence_method="top1",
        margin_method="distinct",
    )


def _finish(contexts: NDArray[np.float32]) -> dict[str, float]:
    """Milliseconds are the server's too: a round trip with the script, per request of the batch."""
    from producer import Producer

    found = {}
    with tempfile.TemporaryDirectory() as folder, Server(ServerSettings(data=Path(folder))) as server:
        settings = ProducerSettings(url=server.url)
        queue = LeasedQueue(WorkerSettings(kind="amn", producer=settings), "amn:{main}:requests", "micro")
        queue.ensure_group()
        reply = example_reply(contexts)
        with Producer(settings=settings) as producer:
            for size in (1, 32, 256):
                took = []
                for _ in range(20):
                    producer.submit_many(list(contexts[:size]))
                    entries = []
                    while len(entries) < size:
                        entries += queue.lease()
                    outcomes = [answered(entry, producer.client_id, reply) for entry in entries]  # type: ignore[arg-type]
                    started_s = time.perf_counter()
                    queue.finish(outcomes)
                    took.append(time.perf_counter() - started_s)
                found[f"finish, a request of {size}"] = round(statistics.median(took) / size * 1e6, 1)
        queue.close()
    return found


def table(report: Mapping[str, Any]) -> str:
    """Markdown."""
    sizes = [str(size) for size in BATCHES]
    parts = [(name, *(f"{row[n]:,.1f}" for n in sizes)) for name, row in report["us_per_context"].items()]
    steps = [(name, f"{value:,.1f}") for name, value in report["us"].items()]
    halves = [
        (
            name,
            f"{row['cosine_min']:.6f}",
            f"{row['cosine_mean']:.6f}",
            f"{row['decisions_changed']:.3%} of {row['requests']:,}",
        )
        for name, row in report["half"].items()
    ]
    lines = ["CPU microseconds a context, one thread, by batch size:", "", *markdown(("", *sizes), parts), ""]
    lines += [*markdown(("step", "us"), steps), ""]
    heads = ("16-bit network", "cosine with float32, least", "mean", "gate decisions changed")
    lines += markdown(heads, halves)
    most = "An element of an answer differs from the network as written, in float32, by at most "
    lines += ["", f"{most}{report['difference_max']:.1e}.", "", abilities(), "", facts(report), ""]
    return "\n".join(lines)


def abilities() -> str:
    """Says in words the number formats that this CPU multiplies by itself, and those that serve."""
    serves = "Float32 is what serves."
    if kernel.READY:
        serves = (
            "What serves are integers of 16 bits, with a scale for each row of weights and each vector, by "
            f"{INSTRUCTIONS[kernel.LEVEL]}."
        )
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split()
    except (OSError, IndexError):
        return f"What this CPU multiplies in 16 bits is not known here. {serves}"
    has = sorted(({"avx2", "avx512f", "avx512_vnni", "amx_int8"} | HALF_FLAGS) & set(flags))
    if HALF_FLAGS & set(flags):
        return (
            f"This CPU has {', '.join(has)}: it multiplies 16-bit floating-point numbers by itself. {serves}"
        )
    return (
        f"This CPU has {', '.join(has)}, and nothing that multiplies 16-bit floating-point numbers: torch "
        f"widens them one by one, and takes more time than in float32. {serves}"
    )
