"""The calibration of the gate: fits its score and blend on held-out articles, and shows their worth.

A calibration's folder gets `manifest.json` (the artifact that a worker loads), `report.md`, `report.json`,
one plot a judged slice, `suggested_policy.toml` and `decisions.jsonl` (every judged window with its scores
and cosines, for `amn policy replay`). Nothing that is live changes: a person promotes a calibration by
moving the link `gate_calibration`, and a policy by naming it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from amn.bank.bank import load_bank
from amn.calibration import report as shown
from amn.calibration.fit import fit_linear, fit_threshold, fit_weights, weight_of
from amn.calibration.windows import FITTED, JUDGED, Slice, join, score_slices
from amn.data.readers import read_vectors
from amn.data.vectors import VectorSet
from amn.errors import DataError
from amn.evaluation.evaluate import common_encoder
from amn.evaluation.metrics import Cosines
from amn.files import write_whole
from amn.gate.gain import FEATURES, FORMAT, load_calibration, save_calibration
from amn.model import checkpoint
from amn.model.folded import fold
from amn.output import strict_json
from amn.policy import DEFAULT, PRESETS_FOLDER

RATE = 0.20
#: With a weight above 0; fewer say nothing about others.
ARTICLES_MIN = 10


def calibrate_models(models: tuple[Path, Path], bank_folder: Path, path: Path, out: Path, every: int) -> str:
    """Calibrates AMN and a fallback on a vector file; returns the report as Markdown.

    Args:
        models: Checkpoint folders of AMN and of the fallback.
        every: Takes each n-th window only, for a quick look.

    Raises:
        DataError: Models, bank and vectors are not of one encoder.
    """
    fast, slow = (checkpoint.load(model) for model in models)
    encoder_id, bank = common_encoder([fast, slow]), load_bank(bank_folder)
    if bank.manifest.encoder_id != encoder_id:
        raise DataError(
            f"{bank.bank_id} holds vectors of encoder {bank.manifest.encoder_id!r}, the models were trained "
            f"on {encoder_id!r}; give the bank of that encoder"
        )
    data = read_vectors(path, encoder_id)
    slices = {s.name: s for s in score_slices(data, fold(fast.model), fold(slow.model), bank, every)}
    ids = {"amn": fast.manifest.model_id, "fallback": slow.manifest.model_id, "bank": bank.bank_id}
    report = calibrate(slices, ids, data, out)
    write_whole(out / "report.json", strict_json(report, indent=1) + "\n")
    write_whole(out / "report.md", shown.text(report))
    for side in JUDGED:
        write_whole(out / f"{side}.svg", shown.plot(report, side))
    return shown.text(report)


def calibrate(slices: dict[str, Slice], models: dict[str, str], data: VectorSet, out: Path) -> dict[str, Any]:
    """Fits on the fitted slices, writes the artifact, and judges it on the others."""
    fitted = join([slices[name] for name in FITTED])
    edges, weights = fit_weights(fitted)
    content = fit_score(fitted, edges, weights) | {
        "format": FORMAT,
        **models,
        "encoder_id": data.encoder_id,
        "data": {"source": data.source, "sha256": data.sha256()},
        "weight_edges": edges,
        "weights": weights,
    }
    save_calibration(content, out)
    calibration = load_calibration(out)
    report: dict[str, Any] = {
        "calibration_id": calibration.calibration_id,
        **models,
        "score": content["score"],
        "weight_edges": edges,
        "weights": weights,
        "curves": {},
        "n": {side: len(slices[side]) for side in JUDGED},
    }
    lines: list[str] = []
    for side in JUDGED:
        judged = slices[side]
        reached, predicted = final_gain(judged, edges, weights), calibration.gain(judged.rows)
        report["curves"][side] = shown.curves(judged, predicted, reached)
        lines += decisions(judged, predicted, reached)
    report["whole"] = {name: shown.whole(one, weight_of(one, edges, weights)) for name, one in slices.items()}
    validation = slices["validation"]
    report["rate_bound"] = fit_threshold(validation, calibration.gain(validation.rows), RATE)
    write_whole(out / "decisions.jsonl", "\n".join(lines) + "\n")
    write_whole(out / "suggested_policy.toml", suggested_policy(report["rate_bound"]))
    return report


def fit_score(fitted: Slice, edges: list[float], weights: list[float]) -> dict[str, Any]:
    """The score of the gain and the expected cosines, as they are stored.

    Where the fallback has no weight there is no gain, and nothing to rank. One that never certainly helps
    leaves next to nothing to fit on: then a constant says where it has a weight at all.
    """
    weighted = fitted.part(weight_of(fitted, edges, weights) > 0)
    gain = final_gain(weighted, edges, weights)
    enough = len(np.unique(weighted.articles)) >= ARTICLES_MIN
    mean = float(gain.mean()) if len(gain) else 0.0
    constant = {"kind": "linear", "coefficients": [], "intercept": mean}
    columns = slice(len(FEATURES))
    return {
        "score": "linear" if enough else "constant",
        "model": fit_linear(weighted.rows[:, columns], gain) if enough else constant,
        "expected": [fit_linear(fitted.rows[:, columns], target) for target in (fitted.fast, fitted.slow)],
    }


def suggested_policy(bound: dict[str, float]) -> str:
    """The default policy with the threshold that holds the rate, for a person to promote.

    Where equal gains make a threshold take next to nothing, it stays as it is: the budget chooses.
    """
    text = (PRESETS_FOLDER / f"{DEFAULT}.toml").read_text("utf-8")
    if bound["rate"] >= RATE / 2:
        text = text.replace("min = 0.0", f"min = {max(bound['threshold'], 0.0):.8f}")
    return text.replace(f'name = "{DEFAULT}"', 'name = "suggested"')


def final_gain(data: Slice, edges: list[float], weights: list[float]) -> Cosines:
    """The gain of escalating a window: cosine of the blended answer minus AMN's."""
    return data.final(weight_of(data, edges, weights)) - data.fast


def decisions(data: Slice, predicted: Cosines, gain: Cosines) -> Iterator[str]:
    """One line a window, in the format of a worker's decision log, with the truth."""
    for b, row in enumerate(data.rows):
        yield strict_json(
            {
                "domain": data.name,
                "lane": "general",
                "tokens": 0,
                "article": int(data.articles[b]),
                "confidence": {"top1": round(row[5], 6), "mean_top_50": round(float(data.mean_top[b]), 6)},
                "margin": {"distinct": round(row[6], 6)},
                "gain": round(float(predicted[b]), 8),
                "amn_cosine": round(float(data.fast[b]), 6),
                "fallback_cosine": round(float(data.slow[b]), 6),
                "final_cosine": round(float(data.fast[b] + gain[b]), 6),
            }
        )
