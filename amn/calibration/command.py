"""`python -m amn calibrate`: fit the gate's score and blend, and show what they are worth.

Writes to `--out`: `manifest.json` (what a worker loads), `report.md` and `report.json`, one plot a
judged slice, `suggested_policy.toml` and `decisions.jsonl` (every judged window with its scores and
cosines, for `amn policy replay`). Nothing that is live changes: a person promotes a calibration by
moving the link `gate_calibration`, and a policy by naming it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amn.bank.exact import load_bank
from amn.calibration import report as shown
from amn.calibration.fit import fit_constant, fit_linear, fit_weights
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the calibrate command."""
    parser.add_argument("amn", type=Path, help="checkpoint folder or link of AMN")
    parser.add_argument("fallback", type=Path, help="of the fallback")
    parser.add_argument("--bank", type=Path, required=True, help="reference bank folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the artifact and the report")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a tenth of the windows")


def run_calibrate(options: argparse.Namespace) -> int:
    """Fit, write, print the report."""
    torch.set_num_threads(options.threads)
    fast, slow = checkpoint.load(options.amn), checkpoint.load(options.fallback)
    encoder_id, bank = common_encoder([fast, slow]), load_bank(options.bank)
    if bank.manifest.encoder_id != encoder_id:
        raise DataError(
            f"{bank.bank_id} holds vectors of encoder {bank.manifest.encoder_id!r}, the models were trained "
            f"on {encoder_id!r}; give the bank of that encoder"
        )
    data = read_vectors(options.data, encoder_id)
    every = 10 if options.quick else 1
    slices = {s.name: s for s in score_slices(data, fold(fast.model), fold(slow.model), bank, every)}
    models = {"amn": fast.manifest.model_id, "fallback": slow.manifest.model_id, "bank": bank.bank_id}
    report = calibrate(slices, models, data, options.out)
    write_whole(options.out / "report.json", strict_json(report, indent=1) + "\n")
    write_whole(options.out / "report.md", shown.text(report))
    for side in JUDGED:
        write_whole(options.out / f"{side}.svg", shown.plot(report, side))
    sys.stdout.write(shown.text(report) + f"\n{options.out}\n")
    return 0


def calibrate(slices: dict[str, Slice], models: dict[str, str], data: VectorSet, out: Path) -> dict[str, Any]:
    """Fits on the fitted slices, writes the artifact, and judges it on the others."""
    fitted = join([slices[name] for name in FITTED])
    edges, weights = fit_weights(fitted)
    # Where the fallback has no weight there is no gain, and nothing to rank.
    weighted = fitted.part(weight_of(fitted, edges, weights) > 0)
    gain = final_gain(weighted, edges, weights)
    # A fallback that never certainly helps leaves next to nothing to fit on: then nothing ranks.
    enough = len(np.unique(weighted.articles)) >= ARTICLES_MIN
    columns = slice(len(FEATURES))
    content: dict[str, Any] = {
        "format": FORMAT,
        **models,
        "encoder_id": data.encoder_id,
        "data": {"source": data.source, "sha256": data.sha256()},
        "score": "linear" if enough else "constant",
        "model": fit_linear(weighted.rows[:, columns], gain) if enough else fit_constant(gain),
        "expected": [fit_linear(fitted.rows[:, columns], target) for target in (fitted.fast, fitted.slow)],
        "weight_edges": edges,
        "weights": weights,
    }
    save_calibration(content, out)
    calibration = load_calibration(out)
    report: dict[str, Any] = {
        "calibration_id": calibration.calibration_id,
        **models,
        "score": content["score"],
    }
    report |= {"weight_edges": edges, "weights": weights, "curves": {}, "firing": {}, "n": {}}
    lines: list[str] = []
    for side in JUDGED:
        judged = slices[side]
        reached = final_gain(judged, edges, weights)
        own = calibration.gain(judged.rows)
        report["n"][side] = len(judged)
        report["curves"][side] = shown.curves(judged, shown.rankings(judged, own, reached), reached)
        report["firing"][side] = shown.firing(judged, own)
        lines += decisions(judged, own, reached)
    report["whole"] = {name: shown.whole(one, weight_of(one, edges, weights)) for name, one in slices.items()}
    validation = slices["validation"]
    report["rate_bound"] = shown.rate_bound(validation, calibration.gain(validation.rows), RATE)
    write_whole(out / "decisions.jsonl", "\n".join(lines) + "\n")
    write_whole(out / "suggested_policy.toml", suggested_policy(report["rate_bound"]))
    return report


def suggested_policy(bound: dict[str, float]) -> str:
    """The default policy with the threshold that holds the rate, for a person to promote.

    Where equal gains make a threshold take next to nothing, it stays as it is: the budget chooses.
    """
    text = (PRESETS_FOLDER / f"{DEFAULT}.toml").read_text("utf-8")
    if bound["rate"] >= RATE / 2:
        text = text.replace("min = 0.0", f"min = {max(bound['threshold'], 0.0):.8f}")
    return text.replace(f'name = "{DEFAULT}"', 'name = "suggested"')


def weight_of(data: Slice, edges: list[float], weights: list[float]) -> NDArray[np.float64]:
    """The fallback's weight for each window, as `Calibration.weight`."""
    place = np.searchsorted(edges, data.rows[:, 0], side="right")
    made: NDArray[np.float64] = np.concatenate(([0.0], weights))[place]
    return made


def final_gain(data: Slice, edges: list[float], weights: list[float]) -> Cosines:
    """What escalating a window brings: cosine of the blended answer minus AMN's."""
    return data.final(weight_of(data, edges, weights)) - data.fast


def decisions(data: Slice, predicted: Cosines, gain: Cosines) -> Iterator[str]:
    """One line a window, in the format of a worker's decision log, with the truth."""
    for b in range(len(data)):
        row = data.rows[b]
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
