"""python -m bench micro: the parts of a request's time, CPU microseconds of one thread.

model     by engine and batch: torch as written, folded (what workers run), folded without the compiled loops
gate      exact search on the shipped bank by batch, with and without the loops
features  of the expected gain, by batch, with and without the loops
wire      encode and decode of a request, encode of an answer
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from amn.gate.gain import features
from amn.gate.scores import GateScores
from amn.model.folded import fold
from amn.policy import DEFAULT, load_policy
from amn.predictor import Predictor
from bench.engines import WithoutLoops, eager
from bench.machine import environment
from bench.report import out_option, write
from bench.service import sample_contexts
from ops.sample import Sample
from producer import Options, ProducerSettings
from producer.messages import Reply
from producer.protocol.wire import decode_request, encode_reply
from producer.session.requests import prepare

BATCHES = (1, 8, 32, 64, 128, 256)
ROUNDS, TURN = 12, 4


@click.command("micro")
@out_option
def command(out: Path) -> None:
    """Engines, gate and wire; writes micro.json and micro.md."""
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
            "us": _wire(contexts),
            "serving": serving(predictor, sample_contexts()),
        }
    report = json.loads(json.dumps(report))  # sizes become text, as whoever reads the file finds them
    parts = [{"CPU us a context, by batch": name, **row} for name, row in report["us_per_context"].items()]
    steps = [{"step": name, "us": us} for name, us in report["us"].items()]
    serving_ = report["serving"]
    note = (
        f"What serves, against the network as written, in float32, for {serving_['requests']:,} requests: "
        f"an element differs by at most {serving_['difference_max']:.1e}, the least cosine is "
        f"{serving_['cosine_min']:.6f}, and the gate decides otherwise for "
        f"{serving_['decisions_changed']:.3%}."
    )
    write(out, "micro", report, parts, steps, note)


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
    named = {
        "torch as written": eager(model),
        "folded (what workers run)": fold(model).arrays,
        "folded, NumPy alone": plain.predictor.forward,
    }
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


def serving(predictor: Predictor, contexts: NDArray[np.float32]) -> dict[str, float]:
    """Compare what serves with the network as written, in float32, on the shipped sample.

    Returns:
        The most by which an element differs, the least cosine, and the share of requests for which a soft
        rule of the default policy fires in one of the two and not in the other.
    """
    policy, bank = load_policy(DEFAULT), predictor.bank
    assert bank is not None
    assert policy.confidence is not None
    assert policy.margin is not None
    low, thin, scores = policy.confidence.below, policy.margin.below, GateScores(policy, bank)

    def fired(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
        confidences, margins, _ = scores(contexts, vectors)
        return (confidences < low) | (margins < thin)

    written = eager(predictor.checkpoint.model)(contexts)
    parts = [predictor.forward(contexts[first : first + 256]) for first in range(0, len(contexts), 256)]
    vectors = np.concatenate(parts)
    return {
        "requests": len(contexts),
        "difference_max": float(np.abs(vectors - written).max()),
        "cosine_min": round(float(np.vecdot(vectors.astype(np.float64), written).min()), 6),
        "decisions_changed": round(float(np.mean(fired(vectors) != fired(written))), 5),
    }


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
