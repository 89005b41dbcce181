"""A model card from a manifest and an evaluation, as Markdown.

The headings are those of the specification's card, with its numbers beside the measured
ones; the front matter is Hugging Face model-card metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from amn.errors import DataError
from amn.evaluation.report import gain_text, markdown
from amn.model import checkpoint
from amn.model.checkpoint import Manifest

#: Figures of the specification's card of AMN, by slice, quoted beside ours.
SPECIFIED = {"test": "0.5597 ± 0.0198", "unseen": "0.6375"}

CARD = """---
license: apache-2.0
library_name: pytorch
tags: [latent-vector-model, next-vector-prediction, attention-mixture]
model-index:
  - name: {m.model_id}
    results:
    - task: {{type: feature-extraction, name: next-vector prediction}}
      dataset: {{type: text-embeddings, name: {source}}}
      metrics:
      - {{type: cosine, value: {entry[cosine][test][mean]:.4f}, name: test}}
      - {{type: cosine, value: {entry[cosine][unseen][mean]:.4f}, name: unseen}}
---

# Model Card: {m.model_id}

## Model Information
- **Name**: {m.name}, layout `{m.layout}`
- **Type**: latent vector model: five vectors of 768 numbers in, the expected next one out
- **Parameters**: {m.parameters:,} (specification of AMN: 1,472,768)
- **Encoder**: `{m.encoder_id}`; vectors of another encoder give noise
- **Weights**: {m.storage}, sha256 `{m.sha256}`
- **Created**: {m.created_utc}

## Training Details
- **Dataset**: {source}, sha256 `{data_sha256}`
- **Windows**: {windows}; split by article, near-duplicates of judged vectors dropped
- **Context Size**: 5 vectors of 768

{recipe}

## Performance Metrics
Cosine with the true next vector; ± is one standard error over articles.

{cosines}

OOD delta {entry[ood_delta]:+.4f} (specification of AMN: +0.0778). Figures of the specification are
of another data set and encoder, so only the distance to the baselines compares.
{timing}

## Key Strengths
{strengths}

## Use Cases
- Fast first answer for most requests, with a slower model or a person behind it
- A cheap expectation to compare the next vector with

## Escalation Criteria (Use Fallback Instead)
- Low confidence (best cosine to the reference bank below 0.70)
- High-stakes lanes: sci-fact, math-derivation, med-guideline, policy/procedure
- Long context (above 384 tokens)
- Margin between the two best bank vectors below 0.02

## Limitations
- {probe[nearer_to_last_share]:.0%} of the predictions on test articles are nearer to the last context
  vector (cosine {probe[cosine_to_last]:.3f}) than to the next one: it tells the topic, not the next thought
- hit@10 on test articles is {entry[hits][test][hit@10]:.1%}: do not use it as a retriever
- Exactly five vectors of the named encoder; other lengths and encoders are refused or give noise

## Deployment Configuration
- **Load path**: a checkpoint folder behind `artifacts/lvm/production_model` or a fallback link
- **Checked at every start**: sha256, parameter count, keys, golden vectors within 1e-5
- **Objectives**: P95 latency at most 1.2 ms, at most 20 % of queries to the fallback
- **Monitoring**: shadow evaluation of 1-5 %, alert if the OOD delta drops by more than 0.03 in 24 h

## Model Card Version
- **Version**: manifest {m.version}
- **Created**: {m.created_utc}
"""


def card_of(path: Path, evaluation: Path) -> str:
    """The card of a checkpoint, with the figures of an `evaluation.json` that judges it.

    Raises:
        DataError: The evaluation cannot be read, or does not judge this checkpoint.
    """
    manifest = checkpoint.load(path).manifest
    try:
        result = json.loads(evaluation.read_text())
        entry = result["models"][manifest.model_id]
    except (OSError, ValueError) as error:
        raise DataError(f"{evaluation} cannot be read ({error}); run `amn evaluate`") from error
    except KeyError as error:
        raise DataError(
            f"{evaluation} does not judge {manifest.model_id}; evaluate this checkpoint first"
        ) from error
    return model_card(manifest, entry, result)


def model_card(manifest: Manifest, entry: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """The whole card."""
    counts = manifest.data.get("windows", {}).items()
    return CARD.format(
        m=manifest,
        entry=entry,
        probe=entry["probes"]["test"],
        source=manifest.data.get("source", "unknown"),
        data_sha256=manifest.data.get("sha256", "unknown"),
        windows=", ".join(f"{name} {count:,}" for name, count in counts) or "unknown",
        recipe=markdown(["setting", "value"], manifest.training.items()),
        cosines=_cosines(entry, evaluation["models"]),
        timing=_timing(entry, evaluation["threads"]),
        strengths=_strengths(entry),
    )


def _cosines(entry: dict[str, Any], models: dict[str, Any]) -> str:
    """Figures of every slice with their uncertainty, the baselines and the specification."""
    mean, last = (models[name]["cosine"] for name in ("context_mean", "last_vector"))
    head = ["slice", "cosine", "context mean", "last vector", "windows / articles", "AMN as specified"]
    rows = [
        [
            side,
            f"{figures['mean']:.4f} ± {figures['standard_error']:.4f}",
            f"{mean[side]['mean']:.4f}",
            f"{last[side]['mean']:.4f}",
            f"{figures['n']:,} / {figures['articles']}",
            SPECIFIED.get(side, "-"),
        ]
        for side, figures in entry["cosine"].items()
    ]
    return markdown(head, rows)


def _timing(entry: dict[str, Any], threads: int) -> str:
    if "latency" not in entry:
        return ""
    rows = [
        [
            str(row["batch"]),
            f"{row['latency_ms_p50']:.3f}",
            f"{row['latency_ms_p95']:.3f}",
            f"{row['contexts_per_s']:,.0f}",
        ]
        for row in entry["latency"]
    ]
    title = f"\n### Latency (CPU, {threads} thread; specification of AMN: 0.62 ms P50 on MPS)\n"
    return title + markdown(["batch", "P50 ms", "P95 ms", "contexts/s"], rows)


def _strengths(entry: dict[str, Any]) -> str:
    """The verdicts that the intervals support, and nothing else."""
    lines = []
    for side, gains in entry["gains"].items():
        gain = gains.get("context_mean")
        if side != "train" and gain:
            verdict = "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "not apart from"
            lines.append(f"- {side}: {verdict} the context mean, {gain_text(gain)}")
    return "\n".join(lines)
