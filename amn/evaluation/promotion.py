"""Moving the links that workers load models from: promote and roll back.

A link is replaced by renaming a new one over it, so a reader sees the old model or the new
one, never none. The link's earlier target is kept in `<link>.history`, newest last.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from amn.errors import PromotionError
from amn.files import write_whole
from amn.gate.gain import load_calibration
from amn.manifest import MANIFEST
from amn.model import checkpoint

LINKS = ("production_model", "fallback_accuracy", "fallback_secondary")
CALIBRATION = "gate_calibration"
#: How a calibration calls the model of a link; the secondary tier has no part in it.
ROLES = {"production_model": "amn", "fallback_accuracy": "fallback"}
WINDOWS_MIN = 1_000
COSINE_LOSS_MAX = 0.003
LATENCY_FACTOR_MAX = 1.5


def promote(path: Path, link: Path, *, calibration: Path | None = None, with_latency: bool = True) -> str:
    """Point `link` at the checkpoint `path`, if it passes every gate.

    Workers refuse a model whose gate calibration was fitted for another one. So `calibration`, if it was
    fitted for this model, is linked with it; without one, the linked calibration has to fit.

    Raises:
        CheckpointError: hash, count or golden vectors of the candidate do not hold.
        PromotionError: it was judged on too little, is worse or slower than the present, or the
            calibration is another model's.
    """
    candidate = checkpoint.load(path)
    check_figures(candidate)
    present = link.resolve() if link.is_symlink() else None
    if present == candidate.path:
        raise PromotionError(f"{link} already names {candidate.path.name}; nothing to do")
    if present is not None and (present / MANIFEST).is_file():
        compare(candidate, checkpoint.load(present), with_latency)
    new = fitting(link, candidate.manifest.model_id, calibration)
    if present is not None:
        remember(link, os.readlink(link))
    return point(link, candidate, new)


def fitting(link: Path, model_id: str, calibration: Path | None) -> Path | None:
    """The calibration that has to be linked with the model; None when the linked one stays.

    Raises:
        PromotionError: it was fitted for another model.
    """
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


def point(link: Path, model: checkpoint.Checkpoint, calibration: Path | None) -> str:
    """Moves the model's link, then the calibration's: a worker that starts in between refuses the two
    together, and its pool starts it again."""
    move(link, model.path)
    said = f"{link} -> {model.path.name} ({model.manifest.model_id})"
    if calibration is None:
        return said
    linked = link.with_name(CALIBRATION)
    if linked.is_symlink():
        remember(linked, os.readlink(linked))
    move(linked, calibration)
    return f"{said}, {linked.name} -> {calibration.name}"


def check_figures(candidate: checkpoint.Checkpoint) -> None:
    """Refuse a model that was not judged, or that a plain mean of the context beats."""
    manifest = candidate.manifest
    for side in ("test", "unseen"):
        figures = manifest.metrics.get(side)
        n = figures["cosine"]["n"] if figures else 0
        if n < WINDOWS_MIN:
            raise PromotionError(
                f"{manifest.model_id} was judged on {n} {side} windows, the gate wants "
                f"{WINDOWS_MIN}; train it with `amn train`, which judges it"
            )
    test = manifest.metrics["test"]
    if test["cosine"]["mean"] <= test["context_mean"]:
        raise PromotionError(
            f"{manifest.model_id} has cosine {test['cosine']['mean']:.4f} on test articles, "
            f"the context mean {test['context_mean']:.4f}; a mean is cheaper"
        )


def compare(candidate: checkpoint.Checkpoint, present: checkpoint.Checkpoint, with_latency: bool) -> None:
    """Refuse a candidate that loses cosine on a slice, or is much slower."""
    new, old = candidate.manifest, present.manifest
    for side in ("test", "unseen"):
        before = old.metrics.get(side, {}).get("cosine", {}).get("mean")
        after = new.metrics[side]["cosine"]["mean"]
        if before is not None and after < before - COSINE_LOSS_MAX:
            raise PromotionError(
                f"{new.model_id} has cosine {after:.4f} on {side}, {old.model_id} has "
                f"{before:.4f}; the gate allows a loss of {COSINE_LOSS_MAX}"
            )
    if with_latency:
        check_latency(candidate, present)


def check_latency(candidate: checkpoint.Checkpoint, present: checkpoint.Checkpoint) -> None:
    """Time both models in turn at batch 1, and refuse one that is 1.5 times slower."""
    from amn.evaluation import latency

    both = [latency.measure(item.model, (1,))[0]["latency_ms_p50"] for item in (candidate, present)]
    if both[0] > both[1] * LATENCY_FACTOR_MAX:
        raise PromotionError(
            f"{candidate.manifest.model_id} takes {both[0]:.3f} ms a context, the present model "
            f"{both[1]:.3f} ms; the gate allows {LATENCY_FACTOR_MAX} times"
        )


def rollback(link: Path) -> str:
    """Point `link` at the target it had before the last promotion, with a calibration that fits it: the
    linked one, or one that was linked before.

    Raises:
        PromotionError: there is nothing to go back to, or no calibration fits.
        CheckpointError: the earlier model no longer holds.
    """
    history = read_history(link)
    if not history:
        raise PromotionError(f"{link} has no earlier target; promote one explicitly")
    earlier = checkpoint.load(link.parent / history[-1])
    before = reversed(read_history(link.with_name(CALIBRATION)))
    refusals: list[PromotionError] = []
    for calibration in (None, *(link.parent / name for name in before)):
        try:
            new = fitting(link, earlier.manifest.model_id, calibration)
            break
        except PromotionError as error:
            refusals.append(error)
    else:
        raise refusals[0]
    write_whole(history_file(link), json.dumps(history[:-1]) + "\n")
    return point(link, earlier, new)


def move(link: Path, target: Path) -> None:
    """Replace the link in one step, with a target relative to it."""
    link.parent.mkdir(parents=True, exist_ok=True)
    part = link.with_name(f".{link.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.symlink_to(os.path.relpath(target, link.parent.resolve()))
    part.replace(link)


def history_file(link: Path) -> Path:
    """Returns the file that keeps the earlier targets of a link."""
    return link.with_name(link.name + ".history")


def read_history(link: Path) -> list[str]:
    """Earlier targets of a link, newest last."""
    path = history_file(link)
    return list(json.loads(path.read_text())) if path.is_file() else []


def remember(link: Path, target: str) -> None:
    """Add a target to the link's history."""
    write_whole(history_file(link), json.dumps([*read_history(link), target]) + "\n")
