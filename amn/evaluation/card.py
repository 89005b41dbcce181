"""`python -m amn card`: a model card from a manifest and an evaluation.

The headings are those of the specification's card, with its numbers beside the measured
ones; the front matter is Hugging Face model-card metadata.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from amn.errors import DataError
from amn.files import write_whole
from amn.model import checkpoint
from amn.model.checkpoint import Manifest

#: What the specification's card says of AMN, quoted beside our figures.
SPECIFIED = {
    "parameters": "1,472,768",
    "in_distribution": "0.5597 ± 0.0198",
    "out_of_distribution": "0.6375",
    "ood_delta": "+0.0778",
    "latency_ms_p50": "0.62",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the card command."""
    parser.add_argument("path", type=Path, help="checkpoint folder or link")
    parser.add_argument("--evaluation", type=Path, required=True, help="evaluation.json")
    parser.add_argument("--out", type=Path, help="file to write; standard output without it")


def run_card(options: argparse.Namespace) -> int:
    """Write the card."""
    manifest = checkpoint.load(options.path).manifest
    try:
        evaluation = json.loads(options.evaluation.read_text())
        entry = evaluation["models"][manifest.model_id]
    except (OSError, ValueError) as error:
        raise DataError(f"{options.evaluation} cannot be read ({error}); run `amn evaluate`") from error
    except KeyError as error:
        raise DataError(
            f"{options.evaluation} does not judge {manifest.model_id}; evaluate this checkpoint first"
        ) from error
    text = model_card(manifest, entry, evaluation)
    if options.out is None:
        sys.stdout.write(text)
    else:
        write_whole(options.out, text)
    return 0


def model_card(manifest: Manifest, entry: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """The whole card as Markdown."""
    parts = [
        front_matter(manifest, entry),
        f"# Model Card: {manifest.model_id}",
        information(manifest),
        training(manifest),
        performance(manifest, entry, evaluation),
        strengths(entry),
        USE,
        limitations(entry),
        deployment(manifest),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def front_matter(manifest: Manifest, entry: dict[str, Any]) -> str:
    """Metadata block that model hubs read."""
    results = "\n".join(
        f"      - {{type: cosine, value: {entry['cosine'][side]['mean']:.4f}, name: {side}}}"
        for side in ("test", "unseen")
    )
    return f"""---
license: apache-2.0
library_name: pytorch
tags: [latent-vector-model, next-vector-prediction, attention-mixture]
model-index:
  - name: {manifest.model_id}
    results:
    - task: {{type: feature-extraction, name: next-vector prediction}}
      dataset: {{type: text-embeddings, name: {manifest.data.get("source", "unknown")}}}
      metrics:
{results}
---"""


def information(manifest: Manifest) -> str:
    """Name, size, layout."""
    specified = SPECIFIED["parameters"] if manifest.name.startswith("amn") else "-"
    return f"""## Model Information
- **Name**: {manifest.name}, layout `{manifest.layout}`
- **Type**: latent vector model: five vectors of 768 numbers in, the expected next one out
- **Parameters**: {manifest.parameters:,} (specification: {specified})
- **Encoder**: `{manifest.encoder_id}`; vectors of another encoder give noise
- **Weights**: {manifest.storage}, sha256 `{manifest.sha256}`
- **Created**: {manifest.created_utc}"""


def training(manifest: Manifest) -> str:
    """Recipe and data, from the manifest."""
    recipe = "\n".join(f"| {name} | {value} |" for name, value in manifest.training.items())
    windows = manifest.data.get("windows", {})
    counts = ", ".join(f"{name} {count:,}" for name, count in windows.items())
    return f"""## Training Details
- **Dataset**: {manifest.data.get("source", "unknown")}, sha256 `{manifest.data.get("sha256", "unknown")}`
- **Windows**: {counts or "unknown"}; split by article, near-duplicates of judged vectors dropped
- **Context Size**: 5 vectors of 768

| setting | value |
|---|---|
{recipe}"""


def performance(manifest: Manifest, entry: dict[str, Any], evaluation: dict[str, Any]) -> str:
    """Measured figures with their uncertainty, the baselines and the specification."""
    ours = manifest.name.startswith("amn")
    specified = {
        "test": SPECIFIED["in_distribution"] if ours else "-",
        "unseen": SPECIFIED["out_of_distribution"] if ours else "-",
    }
    mean = evaluation["models"]["context_mean"]["cosine"]
    last = evaluation["models"]["last_vector"]["cosine"]
    rows = "\n".join(
        f"| {side} | {figures['mean']:.4f} ± {figures['standard_error']:.4f} | {mean[side]['mean']:.4f} | "
        f"{last[side]['mean']:.4f} | {figures['n']:,} / {figures['articles']} | {specified.get(side, '-')} |"
        for side, figures in entry["cosine"].items()
    )
    timing = ""
    if "latency" in entry:
        lines = "\n".join(
            f"| {row['batch']} | {row['latency_ms_p50']:.3f} | {row['latency_ms_p95']:.3f} | "
            f"{row['contexts_per_s']:,.0f} |"
            for row in entry["latency"]
        )
        timing = f"""

### Latency (CPU, {evaluation["threads"]} thread; specification: {SPECIFIED["latency_ms_p50"]} ms P50 on MPS)
| batch | P50 ms | P95 ms | contexts/s |
|---|---|---|---|
{lines}"""
    delta = f"{entry['ood_delta']:+.4f}"
    return f"""## Performance Metrics
Cosine with the true next vector; ± is one standard error over articles.

| slice | cosine | context mean | last vector | windows / articles | specification |
|---|---|---|---|---|---|
{rows}

OOD delta {delta} (specification: {SPECIFIED["ood_delta"] if ours else "-"}). Figures of the specification are
of another data set and encoder, so only the distance to the baselines compares.{timing}"""


def strengths(entry: dict[str, Any]) -> str:
    """What the intervals support, and nothing else."""
    lines = []
    for side, gains in entry["gains"].items():
        gain = gains.get("context_mean")
        if side != "train" and gain:
            verdict = "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "not apart from"
            lines.append(
                f"- {side}: {verdict} the context mean, {gain['mean']:+.4f} "
                f"[{gain['low']:+.4f}, {gain['high']:+.4f}]"
            )
    return "## Key Strengths\n" + "\n".join(lines)


USE = """## Use Cases
- Fast first answer for most requests, with a slower model or a person behind it
- A cheap expectation to compare the next vector with

## Escalation Criteria (Use Fallback Instead)
- Low confidence (best cosine to the reference bank below 0.70)
- High-stakes lanes: sci-fact, math-derivation, med-guideline, policy/procedure
- Long context (above 384 tokens)
- Margin between the two best bank vectors below 0.02"""


def limitations(entry: dict[str, Any]) -> str:
    """Where the figures say that the model should not be trusted."""
    probe = entry["probes"]["test"]
    return f"""## Limitations
- {probe["nearer_to_last_share"]:.0%} of the predictions on test articles are nearer to the last context
  vector (cosine {probe["cosine_to_last"]:.3f}) than to the next one: it tells the topic, not the next thought
- hit@10 on test articles is {entry["hits"]["test"]["hit@10"]:.1%}: do not use it as a retriever
- Exactly five vectors of the named encoder; other lengths and encoders are refused or give noise"""


def deployment(manifest: Manifest) -> str:
    """Where it is loaded from and what is checked."""
    return f"""## Deployment Configuration
- **Load path**: a checkpoint folder behind `artifacts/lvm/production_model` or a fallback link
- **Checked at every start**: sha256, parameter count, keys, golden vectors within 1e-5
- **Objectives**: P95 latency at most 1.2 ms, at most 20 % of queries to the fallback
- **Monitoring**: shadow evaluation of 1-5 %, alert if the OOD delta drops by more than 0.03 in 24 h

## Model Card Version
- **Version**: manifest {manifest.version}
- **Created**: {manifest.created_utc}"""
