"""The artifacts of a worker: loaded, and checked to belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from workers.errors import NotReady
from workers.settings import WorkerSettings

if TYPE_CHECKING:  # the model's libraries are loaded by whoever serves
    from amn.gate.gain import Calibration
    from amn.policy import EscalationPolicy
    from amn.predictor import Predictor
    from amn.slices import Slicer

_LOG = structlog.get_logger("amn.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """Models, banks and policy of a worker.

    Attributes:
        model: Checkpoint folder.
        bank: Reference bank folder; only the AMN worker reads it.
        calibration: Of the gate and the blend; read when the policy asks for it.
        policy: Escalation policy: name of a preset, or a file.
        tier: Of a fallback worker: `accuracy` or `secondary`.
        decision_log: Where a sample of the AMN worker's decisions goes; None for nowhere.
        slices: Of the shadow worker: slices requests that name no domain; may be missing.
        origin: Folder of models and banks that they come from, for the doctor.
    """

    model: Path
    bank: Path
    calibration: Path = Path("gate_calibration")
    policy: str = "calibrated"
    tier: str = "accuracy"
    decision_log: Path | None = None
    slices: Path = Path("ood_slices")
    origin: str = ""


def open_slicer(settings: WorkerSettings, artifacts: Artifacts) -> Slicer | None:
    """The OOD score, if these artifacts have one for this encoder."""
    from amn.slices import load_slices

    if not artifacts.slices.is_dir():
        _LOG.warning("slices_missing", slices=str(artifacts.slices))
        return None
    slicer = load_slices(artifacts.slices)
    if slicer.manifest.encoder_id != settings.encoder:
        _LOG.warning("slices_of_another_encoder", fitted=slicer.manifest.encoder_id, serves=settings.encoder)
        return None
    return slicer


def open_policy(artifacts: Artifacts) -> tuple[EscalationPolicy, Calibration | None]:
    """The policy, and the calibration if it asks for one."""
    from amn.gate.gain import load_calibration
    from amn.policy import load_policy

    policy = load_policy(artifacts.policy)
    return policy, load_calibration(artifacts.calibration) if policy.needs_calibration else None


def check_calibration(
    calibration: Calibration, artifacts: Artifacts, role: str, fitted_for: str, predictor: Predictor
) -> None:
    """Refuses a calibration that was fitted for another model: its gain would say nothing of this one.

    Raises:
        NotReady: It was.
    """
    if fitted_for != predictor.model_id:
        raise NotReady(
            f"calibration {calibration.calibration_id} in {artifacts.calibration} was fitted for {role} "
            f"{fitted_for}, and {artifacts.model} is {predictor.model_id}; promote the model with a "
            "calibration that was fitted for it (`amn promote --calibration`), go back with `amn "
            "rollback`, or serve a policy without [gain] and blend, such as card"
        )


def open_predictor(settings: WorkerSettings, artifacts: Artifacts) -> Predictor:
    """The model, ready for its first micro-batch.

    Raises:
        NotReady: It was trained on vectors of another encoder.
        AmnError: It does not hold.
    """
    from amn.predictor import Predictor

    predictor = Predictor.open(artifacts.model, artifacts.bank if settings.kind == "amn" else None)
    trained_on = predictor.checkpoint.manifest.encoder_id
    if trained_on != settings.encoder:
        raise NotReady(
            f"model {predictor.model_id} was trained on encoder {trained_on!r}, this worker is to serve "
            f"{settings.encoder!r}; name the right model with --model"
        )
    predictor.warm_up(settings.queue.batch_max)
    return predictor
