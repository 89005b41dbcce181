"""A model card from a manifest and the record of an evaluation, by the template `card.md` beside this file.

The headings are those of the specification's card, with its numbers beside the measured ones; the
front matter is Hugging Face model-card metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amn.errors import DataError
from amn.evaluation.report import cosine_text, gain_text, markdown
from amn.model import checkpoint

TEMPLATE = Path(__file__).with_name("card.md")
#: Figures of the specification's card of AMN, by slice, quoted beside ours.
SPECIFIED = {"test": "0.5597 ± 0.0198", "unseen": "0.6375"}


def card_of(path: Path, evaluation: Path) -> str:
    """The card of a checkpoint, with the figures of an `evaluation.json` that judges it.

    Raises:
        DataError: The evaluation cannot be read, or does not judge this checkpoint.
    """
    manifest = checkpoint.load(path).manifest
    try:
        result = json.loads(evaluation.read_text("utf-8"))
        entry = result["models"][manifest.model_id]
    except (OSError, ValueError) as error:
        raise DataError(f"{evaluation} cannot be read ({error}); run `amn evaluate`") from error
    except KeyError as error:
        name = manifest.model_id
        raise DataError(f"{evaluation} does not judge {name}; evaluate this checkpoint first") from error
    counts = manifest.data.get("windows", {}).items()
    return TEMPLATE.read_text("utf-8").format(
        m=manifest,
        entry=entry,
        probe=entry["probes"]["test"],
        source=manifest.data.get("source", "unknown"),
        data_sha256=manifest.data.get("sha256", "unknown"),
        windows=", ".join(f"{name} {count:,}" for name, count in counts) or "unknown",
        recipe=markdown(["setting", "value"], manifest.training.items()),
        cosines=_cosines(entry, result["models"]),
        timing=_timing(entry.get("latency", []), result["threads"]),
        strengths="\n".join(_strengths(entry)),
    )


def _cosines(entry: dict[str, Any], models: dict[str, Any]) -> str:
    mean, last = (models[name]["cosine"] for name in ("context_mean", "last_vector"))
    head = ["slice", "cosine", "context mean", "last vector", "windows / articles", "AMN as specified"]
    rows = []
    for side, figures in entry["cosine"].items():
        baselines = [f"{mean[side]['mean']:.4f}", f"{last[side]['mean']:.4f}"]
        counts = f"{figures['n']:,} / {figures['articles']}"
        rows.append([side, cosine_text(figures), *baselines, counts, SPECIFIED.get(side, "-")])
    return markdown(head, rows)


def _timing(latency: list[dict[str, float]], threads: int) -> str:
    forms = {"batch": "d", "latency_ms_p50": ".3f", "latency_ms_p95": ".3f", "contexts_per_s": ",.0f"}
    rows = [[f"{row[name]:{form}}" for name, form in forms.items()] for row in latency]
    title = f"\n### Latency (CPU, {threads} thread; specification of AMN: 0.62 ms P50 on MPS)\n"
    return title + markdown(["batch", "P50 ms", "P95 ms", "contexts/s"], rows) if rows else ""


def _strengths(entry: dict[str, Any]) -> list[str]:
    """The verdicts that the intervals support, and nothing else."""
    gains = {side: found["context_mean"] for side, found in entry["gains"].items() if side != "train"}
    words = {(True, False): "above", (False, True): "below", (False, False): "not apart from"}
    return [
        f"- {side}: {words[gain['low'] > 0, gain['high'] < 0]} the context mean, {gain_text(gain)}"
        for side, gain in gains.items()
    ]
