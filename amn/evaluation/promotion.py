"""Moving the links that workers load models from: promote and roll back.

A link is replaced by renaming a new one over it, so a reader sees the old model or the new
one, never none. The link's earlier targets are kept in `<link>.history`, newest last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from amn.bank.files import read_manifest
from amn.errors import PromotionError
from amn.evaluation import latency
from amn.files import write_whole
from amn.gate.gain import load_calibration
from amn.manifest import MANIFEST, check_one_encoder
from amn.model import checkpoint
from amn.model.checkpoint import Checkpoint

AMN, CALIBRATION, BANK = "production_model", "gate_calibration", "reference_bank"
#: The role that a calibration gives the model of a link; the secondary tier has no part in it.
ROLES = {AMN: "amn", "fallback_accuracy": "fallback"}
WINDOWS_MIN = 1_000
COSINE_LOSS_MAX = 0.003
LATENCY_FACTOR_MAX = 1.5


def promote(
    path: Path,
    link: Path,
    *,
    calibration: Path | None = None,
    bank: Path | None = None,
    windows_min: int = WINDOWS_MIN,
    with_latency: bool = True,
) -> str:
    """Points `link` at the checkpoint `path`, if it passes every gate.

    Workers refuse a model whose gate calibration was fitted for another one. So `calibration`, if it was
    fitted for this model, is linked with it; without one, the linked calibration has to fit. A bank is linked
    with it too, if its vectors are of the model's encoder. A fallback has to be of the linked AMN's encoder.

    Raises:
        CheckpointError: Hash, count or golden vectors of the candidate do not hold, or encoders differ.
        PromotionError: It was judged on too little, is worse or slower than the present, or the
            calibration is another model's.
    """
    if link.is_dir() and not link.is_symlink():
        raise PromotionError(f"{link} is a folder; a promotion moves a link, so make it one to that folder")
    candidate = checkpoint.load(path)
    if link.resolve() == candidate.path:
        raise PromotionError(f"{link} already names {candidate.path.name}; nothing to do")
    if link.name != AMN and (link.with_name(AMN) / MANIFEST).is_file():
        amn = checkpoint.read_manifest(link.with_name(AMN))
        check_one_encoder({amn.model_id: amn, candidate.manifest.model_id: candidate.manifest})
    present = checkpoint.load(link) if link.is_symlink() and (link / MANIFEST).is_file() else None
    for refusal in _refusals(candidate, present, windows_min, with_latency):
        raise PromotionError(refusal)
    fitted = fitting(link, candidate.manifest.model_id, calibration)
    said = _link_bank(link.with_name(BANK), bank, candidate) if bank else ""
    _remember(link)
    return _point(link, candidate, fitted) + said


def _link_bank(link: Path, bank: Path, model: Checkpoint) -> str:
    manifest = read_manifest(bank)
    check_one_encoder({manifest.bank_id: manifest, model.manifest.model_id: model.manifest})
    _remember(link)
    move(link, bank.resolve())
    return f", {link.name} -> {bank.name}"


def rollback(link: Path) -> str:
    """Points `link` at its target before the last promotion, with the linked calibration or an earlier one.

    Raises:
        PromotionError: There is nothing to go back to, or no calibration fits.
        CheckpointError: The earlier model no longer holds.
    """
    history = _history(link)
    if not history:
        raise PromotionError(f"{link} has no earlier target; promote one explicitly")
    earlier = checkpoint.load(link.parent / history[-1])
    refusals = []
    for name in (None, *reversed(_history(link.with_name(CALIBRATION)))):
        try:
            fitted = fitting(link, earlier.manifest.model_id, link.parent / name if name else None)
        except PromotionError as error:
            refusals.append(error)
        else:
            _write_history(link, history[:-1])
            return _point(link, earlier, fitted)
    raise refusals[0]


def copy_with_links(shipped: Path, root: Path) -> None:
    """Makes the folder `root` from the shipped models, which a wheel holds without links.

    Each is copied to `root/shipped`, and gets a link that a promotion can move.
    """
    for folder in sorted(path for path in shipped.iterdir() if (path / MANIFEST).is_file()):
        copied = root / "shipped" / folder.name
        shutil.copytree(folder, copied, dirs_exist_ok=True)
        move(root / folder.name, copied)


def fitting(link: Path, model_id: str, calibration: Path | None) -> Path | None:
    """The calibration that has to be linked with the model; None when the linked one stays."""
    role, linked = ROLES.get(link.name), link.with_name(CALIBRATION)
    if role is None or not (calibration or linked).is_dir():
        if calibration is None:
            return None
        raise PromotionError(f"{link.name} has no part in calibration {calibration}, or that is no folder")
    folder = (calibration or linked).resolve()
    fitted_for = getattr(load_calibration(folder), role)
    if fitted_for != model_id:
        raise PromotionError(
            f"calibration {folder.name} was fitted for {role} {fitted_for}, and {link.name} is to be "
            f"{model_id}: workers refuse the two together; fit one with `amn calibrate`, and name it with "
            "--calibration"
        )
    return None if linked.is_symlink() and linked.resolve() == folder else folder


def _refusals(
    candidate: Checkpoint, present: Checkpoint | None, windows_min: int, with_latency: bool
) -> Iterator[str]:
    """The gates that a candidate does not pass: on its own, and beside the present model."""
    name, figures = candidate.manifest.model_id, candidate.manifest.metrics
    for side in ("test", "unseen"):
        n = figures[side]["cosine"]["n"] if figures.get(side) else 0
        if n < windows_min:
            yield (
                f"{name} was judged on {n} {side} windows, the gate wants {windows_min}; train it with `amn "
                "train`, which judges it, on more text"
            )
    mean, baseline = figures["test"]["cosine"]["mean"], figures["test"]["context_mean"]
    if mean <= baseline:
        yield f"{name} has cosine {mean:.4f} on test articles, a plain mean {baseline:.4f}; a mean is cheaper"
    if present is None:
        return
    for side in ("test", "unseen"):
        before = present.manifest.metrics.get(side, {}).get("cosine", {}).get("mean", -1.0)
        after = figures[side]["cosine"]["mean"]
        if after < before - COSINE_LOSS_MAX:
            yield (
                f"{name} has cosine {after:.4f} on {side}, {present.manifest.model_id} has {before:.4f}; the "
                f"gate allows a loss of {COSINE_LOSS_MAX}"
            )
    if with_latency:
        slow, fast = 1e3 * np.median(latency.times([candidate.model, present.model], 1), axis=0)
        if slow > fast * LATENCY_FACTOR_MAX:
            yield (
                f"{name} takes {slow:.3f} ms a context, the present model {fast:.3f} ms; the gate allows "
                f"{LATENCY_FACTOR_MAX} times"
            )


def _point(link: Path, model: Checkpoint, calibration: Path | None) -> str:
    """Moves the model's link, then the calibration's.

    A worker that starts in between refuses the two together, and its pool starts it again.
    """
    move(link, model.path)
    moved = f"{link} -> {model.path.name} ({model.manifest.model_id})"
    if calibration is None:
        return moved
    linked = link.with_name(CALIBRATION)
    _remember(linked)
    move(linked, calibration)
    return f"{moved}, {linked.name} -> {calibration.name}"


def move(link: Path, target: Path) -> None:
    """Replaces the link in one step, with a target relative to it."""
    link.parent.mkdir(parents=True, exist_ok=True)
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(target, link.parent.resolve()))
    part.replace(link)


def _history(link: Path) -> list[str]:
    path = link.with_name(link.name + ".history")
    return list(json.loads(path.read_text("utf-8"))) if path.is_file() else []


def _write_history(link: Path, targets: list[str]) -> None:
    write_whole(link.with_name(link.name + ".history"), json.dumps(targets) + "\n")


def _remember(link: Path) -> None:
    if link.is_symlink():
        _write_history(link, [*_history(link), os.readlink(link)])
