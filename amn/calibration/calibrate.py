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

from amn.bank.bank import load_bank
from amn.calibration import report as reports
from amn.calibration.fit import fit_gate, fit_threshold
from amn.calibration.windows import FITTED, JUDGED, Slice, join, score_slices
from amn.data.dataset import split_by_article
from amn.data.readers import read_vectors
from amn.data.vectors import VectorSet
from amn.evaluation.evaluate import common_encoder, common_unseen
from amn.evaluation.metrics import Cosines
from amn.files import write_whole
from amn.gate.gain import FORMAT, load_calibration, save_calibration
from amn.manifest import check_one_encoder
from amn.model import checkpoint
from amn.model.folded import fold
from amn.output import strict_json
from amn.policy import DEFAULT, PRESETS_FOLDER

RATE = 0.20


def calibrate_models(models: tuple[Path, Path], bank_folder: Path, path: Path, out: Path, every: int) -> str:
    """Calibrates AMN and a fallback on a vector file; returns the report as Markdown.

    Args:
        models: Checkpoint folders of AMN and of the fallback, of one encoder with bank and vectors.
        every: Takes each n-th window only, for a quick impression.
    """
    fast, slow = (checkpoint.load(model) for model in models)
    encoder_id, bank = common_encoder([fast, slow]), load_bank(bank_folder)
    data = read_vectors(path, encoder_id)
    models_of = {one.manifest.model_id: one.manifest for one in (fast, slow)}
    check_one_encoder(models_of | {bank.bank_id: bank.manifest, data.source: data})
    split = split_by_article(data, unseen_domain=common_unseen([fast, slow]))
    slices = score_slices(data, split, (fold(fast.model), fold(slow.model)), bank, every)
    ids = {"amn": fast.manifest.model_id, "fallback": slow.manifest.model_id, "bank": bank.bank_id}
    report = calibrate(slices, ids, data, out)
    write_whole(out / "report.json", strict_json(report, indent=1) + "\n")
    write_whole(out / "report.md", reports.text(report))
    for side in JUDGED:
        write_whole(out / f"{side}.svg", reports.plot(report, side))
    return reports.text(report)


def calibrate(slices: dict[str, Slice], models: dict[str, str], data: VectorSet, out: Path) -> dict[str, Any]:
    """Fits on the fitted slices, writes the artifact, and judges it on the others."""
    fitted = fit_gate(join([slices[name] for name in FITTED]))
    source = {"source": data.source, "sha256": data.sha256()}
    about = {"format": FORMAT, **models, "encoder_id": data.encoder_id, "data": source}
    save_calibration(about | fitted, out)
    calibration = load_calibration(out)
    curves: dict[str, Any] = {}
    lines: list[str] = []
    for side in JUDGED:
        judged, predicted = slices[side], calibration.gain(slices[side].rows)
        gain = judged.gain(calibration.weight(judged.rows))
        curves[side] = reports.curves(judged, predicted, gain)
        lines += decisions(judged, predicted, gain)
    validation = slices["validation"]
    bound = fit_threshold(validation, calibration.gain(validation.rows), RATE)
    write_whole(out / "decisions.jsonl", "\n".join(lines) + "\n")
    write_whole(out / "suggested_policy.toml", suggested_policy(bound))
    return {
        "calibration_id": calibration.calibration_id,
        **models,
        **{name: fitted[name] for name in ("score", "weight_edges", "weights")},
        "curves": curves,
        "n": {side: len(slices[side]) for side in JUDGED},
        "whole": {name: reports.whole(one, calibration.weight(one.rows)) for name, one in slices.items()},
        "rate_bound": bound,
    }


def suggested_policy(bound: dict[str, float]) -> str:
    """The default policy with the threshold that holds the rate, for a person to promote.

    Where equal gains make a threshold take next to nothing, it stays as it is: the budget chooses.
    """
    text = (PRESETS_FOLDER / f"{DEFAULT}.toml").read_text("utf-8")
    if bound["rate"] >= RATE / 2:
        text = text.replace("min = 0.0", f"min = {max(bound['threshold'], 0.0):.8f}")
    return text.replace(f'name = "{DEFAULT}"', 'name = "suggested"')


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
