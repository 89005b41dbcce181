"""The parts of a worker of each kind: its artifacts, loaded and checked to belong together, and its loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import structlog
import torch
from threadpoolctl import threadpool_limits

from amn.bank.bank import CellBank
from amn.errors import AmnError
from amn.gate.escalation import Allowance
from amn.gate.gain import Calibration, load_calibration
from amn.policy import ACCURACY, BLEND, EscalationPolicy, load_policy
from amn.predictor import Predictor
from amn.slices import Slicer, load_slices
from producer.keys import Keys
from producer.session.tracing import tracer
from workers.engine.loop import Loop
from workers.engine.queue import LeasedQueue
from workers.engine.stages import StageTimes
from workers.engine.traces import WorkerTraces
from workers.errors import NotReady
from workers.gate.budget import GateThread
from workers.gate.tiers import Tally, TierThread
from workers.handlers.amn import AmnHandler, Gate
from workers.handlers.decisions import DecisionLog
from workers.handlers.fallback import FallbackHandler, Tier
from workers.handlers.recheck import RecheckThread
from workers.settings import Artifacts, WorkerSettings, worker_name
from workers.shadow.handler import ShadowHandler
from workers.shadow.queue import ShadowQueue
from workers.shadow.sampler import Sampler, SamplerThread
from workers.shadow.settings import ShadowSettings
from workers.shadow.turns import ShadowTurns
from workers.side import SideThread

_LOG = structlog.get_logger("amn.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A worker, put together: its loop, with the model warmed up, and what runs beside it.

    Attributes:
        decides: Ids of the policy and the calibration by which it decides, for its presence.
    """

    loop: Loop
    sides: tuple[SideThread, ...] = ()
    decides: Mapping[str, str] = field(default_factory=dict)


def build(settings: WorkerSettings, artifacts: Artifacts) -> Parts:
    """A worker of `settings.kind`, not started.

    Raises:
        NotReady: Model, bank, policy or calibration do not hold, or do not belong together.
    """
    torch.set_num_threads(1)  # one worker for each core
    torch.set_num_interop_threads(1)
    threadpool_limits(1)  # NumPy's library has threads of its own
    kinds = {"amn": _amn, "fallback": _fallback, "shadow": _shadow}
    try:
        predictor = _predictor(settings, artifacts)
        # A worker serves the encoder of its model, and refuses requests of another one.
        settings = replace(settings, encoder=predictor.checkpoint.manifest.encoder_id)
        return kinds[settings.kind](settings, artifacts, predictor)
    except AmnError as error:
        raise NotReady(str(error)) from error


def _amn(settings: WorkerSettings, artifacts: Artifacts, predictor: Predictor) -> Parts:
    policy, calibration = _policy(artifacts, "AMN", predictor)
    path, allowance = artifacts.decision_log, Allowance()
    log = DecisionLog(path, policy, settings.sample_rate, settings.sample_salt) if path else None
    gate = Gate(policy=policy, calibration=calibration, allowance=allowance, log=log)
    sampler = Sampler(settings.sample_rate, settings.sample_salt)
    sides: list[SideThread] = [GateThread(settings, policy, allowance), SamplerThread(settings, sampler)]
    if settings.recheck_one_in and isinstance(predictor.bank, CellBank):
        sides.append(RecheckThread(settings, predictor.bank))
    queue = LeasedQueue(settings, Keys(settings.producer.queue).requests, worker_name("amn"))
    handler = AmnHandler(predictor, gate, settings, sampler)
    loop = Loop(queue, handler, stages=_stages(settings), traces=_traces(settings, queue))
    return Parts(loop=loop, sides=tuple(sides), decides=_decides(policy, calibration))


def _fallback(settings: WorkerSettings, artifacts: Artifacts, predictor: Predictor) -> Parts:
    policy, calibration = _policy(artifacts, "fallback", predictor)
    name, keys, tally = artifacts.tier, Keys(settings.producer.queue), Tally()
    side = TierThread(settings, name, tally)
    tier = Tier(
        name=name, policy=policy, calibration=calibration, next_is_up=lambda: side.next_is_up, tally=tally
    )
    stream = keys.fallback if name == ACCURACY else keys.secondary
    queue = LeasedQueue(settings, stream, worker_name("fallback"))
    handler, stages = FallbackHandler(predictor, tier), _stages(settings)
    loop = Loop(queue, handler, stages=stages, traces=_traces(settings, queue))
    return Parts(loop=loop, sides=(side,), decides=_decides(policy, calibration))


def _decides(policy: EscalationPolicy, calibration: Calibration | None) -> dict[str, str]:
    fitted = calibration.calibration_id if calibration else ""
    return {"policy": policy.policy_id(fitted), "calibration": fitted}


def _stages(settings: WorkerSettings) -> StageTimes | None:
    return StageTimes() if settings.stages else None


def _traces(settings: WorkerSettings, queue: LeasedQueue) -> WorkerTraces | None:
    found = tracer("amn-worker", decides=False) if settings.stages else None
    return None if found is None else WorkerTraces(found, settings.kind, queue.name)


def _shadow(settings: WorkerSettings, artifacts: Artifacts, predictor: Predictor) -> Parts:
    shadow = ShadowSettings()
    handler = ShadowHandler(shadow, predictor, _slicer(settings, artifacts))
    queue = ShadowQueue(settings, worker_name("shadow"), shadow)
    return Parts(loop=Loop(queue, handler, handler.assemble), sides=(ShadowTurns(settings, shadow),))


def _slicer(settings: WorkerSettings, artifacts: Artifacts) -> Slicer | None:
    """The OOD score, or None if these artifacts have none."""
    if not artifacts.slices.is_dir():
        _LOG.warning("slices_missing", slices=str(artifacts.slices))
        return None
    return load_slices(artifacts.slices, settings.encoder)


def _policy(
    artifacts: Artifacts, role: str, predictor: Predictor
) -> tuple[EscalationPolicy, Calibration | None]:
    """The policy, and the calibration if it asks for one.

    Raises:
        NotReady: What serves would use a calibration of another model, which says nothing of this one.
    """
    policy = load_policy(artifacts.policy)
    if not policy.needs_calibration:
        return policy, None
    calibration = load_calibration(artifacts.calibration)
    fitted_for = calibration.amn if role == "AMN" else calibration.fallback
    used = role == "AMN" or (artifacts.tier == ACCURACY and policy.answer.rule == BLEND)
    if used and fitted_for != predictor.model_id:
        raise NotReady(
            f"calibration {calibration.calibration_id} in {artifacts.calibration} was fitted for {role} "
            f"{fitted_for}, and {artifacts.model} is {predictor.model_id}; promote the model with a "
            "calibration that was fitted for it (`amn promote --calibration`), go back with `amn "
            "rollback`, or serve a policy without [gain] and blend, such as card"
        )
    return policy, calibration


def _predictor(settings: WorkerSettings, artifacts: Artifacts) -> Predictor:
    """The model, ready for its first micro-batch.

    Raises:
        AmnError: It does not hold.
    """
    predictor = Predictor.open(artifacts.model, artifacts.bank if settings.kind == "amn" else None)
    predictor.warm_up(settings.queue.batch_max)
    return predictor
