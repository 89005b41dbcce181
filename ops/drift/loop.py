"""The judge at work: reads, judges, writes under its fence, tells the alerts; once a minute."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import redis
import structlog

from ops.clock import BLOCK_MIN, server_now_ms
from ops.drift.measures.blocks import Traffic
from ops.drift.memory import BLOCKS_KEPT, Memory
from ops.drift.rules.baselines import rebaseline
from ops.drift.rules.drift import evaluate_drift
from ops.drift.rules.health import canary, monitor_health
from ops.drift.service.history import commands, last_minute, row_of
from ops.drift.service.live import Service, read_service
from ops.drift.service.objectives import objectives
from ops.drift.service.table import evaluate_conditions
from ops.drift.settings import JudgeSettings
from ops.drift.state import Evaluation, JudgeState
from ops.findings import Finding
from ops.leader import Leadership, leader_key, write
from producer.errors import ServerError
from producer.keys import Keys
from producer.transport.connection import driver_errors
from workers.pulse import Pulse

_LOG = structlog.get_logger("amn.judge")
#: A judge that dies is replaced within three quarters of a minute.
LEASE_MS, _RENEW_S, _EVERY_MS = 45_000, 10.0, 60_000
#: Takes a full list of findings: `apply(findings, now_ms, fence)`.
Notify = Callable[[Sequence[Finding], int, int], None]


def evaluate(
    client: redis.Redis, keys: Keys, memory: Memory, settings: JudgeSettings, now_ms: int | None = None
) -> Evaluation:
    """Evaluates every rule now; writes nothing.

    Args:
        now_ms: Server's clock when None.
    """
    now_ms = server_now_ms(client) if now_ms is None else now_ms
    open_block = now_ms // 60_000 // BLOCK_MIN
    end = (now_ms // 60_000 - settings.closed_after_min) // BLOCK_MIN
    orders, state = memory.orders(), memory.state()
    if (back_ms := memory.evaluated_at_ms() - now_ms) > 0:
        _rewind(memory, state, end, back_ms)
    traffic = Traffic.of(end - BLOCKS_KEPT, memory.blocks(end))
    audit = [rebaseline(state.models, order, end, now_ms) for order in orders]
    found = evaluate_drift(traffic, state, now_ms, settings)
    models = sorted({one.model for one in found.findings})
    counts, canaries = memory.counts(open_block), memory.canary(models)
    service = replace(read_service(client, keys), now_ms=now_ms, counts=counts, canary=canaries)
    findings = [*found.findings, *(canary(model, service, settings) for model in models)]
    findings += [*objectives(service, open_block, settings), *evaluate_conditions(service)]
    findings.append(monitor_health(found.state, traffic, service, settings))
    row, audits = partial(_row, client, keys, service, traffic), [*audit, *found.audit]
    return replace(found, findings=findings, audit=audits, counters=service.counters, minute=row)


def _rewind(memory: Memory, state: JudgeState, end: int, back_ms: int) -> None:
    """Takes back what was judged in a time that the server's clock says is to come."""
    _LOG.warning("server_clock_went_back", seconds=back_ms // 1000)
    state.rewind(back_ms)
    memory.rewind(end, back_ms // 60_000 // BLOCK_MIN)


class Judge:
    """The process: leads if nobody else does, evaluates once a minute, renews between."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        settings: JudgeSettings,
        alert: Notify | None = None,
        url: str = "",
    ) -> None:
        self._fence = self._evaluated_at_ms = 0
        self._client, self._keys, self._settings, self._url = client, keys, settings, url
        self._alert = alert
        self._memory = Memory(client, keys)
        self._leadership = Leadership(client, keys, LEASE_MS)

    @property
    def leads(self) -> bool:
        """True if it led at the last turn."""
        return self._fence > 0

    def turn(self, now_ms: int | None = None) -> Evaluation | None:
        """One step of the leadership and, when a minute is over, one evaluation.

        The alerts get the findings before the state is written: a judge that dies between the two
        says the same again, which the alerts know already; the other way round a page could be lost.

        Returns:
            What was evaluated and written; None when it was not time, or another judge leads.
        """
        fence = self._leadership.lead()
        if fence != self._fence:
            self._note_lead(fence)
        clock_ms = server_now_ms(self._client) if now_ms is None else now_ms
        # A clock that went back says nothing about when the next minute is over: it is now.
        if not fence or 0 <= clock_ms - self._evaluated_at_ms < _EVERY_MS:
            return None
        found = evaluate(self._client, self._keys, self._memory, self._settings, clock_ms)
        if self._alert is not None:
            self._alert(found.findings, clock_ms, fence)
        if not self._memory.commit(fence, found):
            _LOG.warning("judge_was_replaced", fence=fence)
            return None
        self._evaluated_at_ms = clock_ms
        return found

    def _note_lead(self, fence: int) -> None:
        """Leads from now on, or anew, or follows another one."""
        if self.leads != bool(fence):
            _LOG.info("judge_leads" if fence else "judge_follows", fence=fence)
        self._fence = fence
        self._memory = Memory(self._client, self._keys)  # another judge may have written since

    def keep_minute(self, found: Evaluation) -> None:
        """Adds a row to the history. That is done when the alerts are told, so that no page waits for it."""
        row = found.minute()
        write(self._client, leader_key(self._keys), self._fence, commands(self._keys, row))

    def resign(self) -> None:
        """Lets another judge lead at once. Idempotent."""
        self._leadership.resign()

    def run(self, stopping: threading.Event, pulse: Pulse) -> None:
        """Turns until told to stop; waits for the server when it is away."""
        down = False
        while not stopping.is_set():
            try:
                with driver_errors(self._url):
                    found = self.turn()
                    if found is not None:
                        _log(found)
                        self.keep_minute(found)
                down = False
            except ServerError as error:
                if not down:
                    _LOG.warning("judge_waits_for_server", error=str(error))
                down = True
            pulse.wait(stopping, _RENEW_S)
        pulse.close()
        try:
            with driver_errors(self._url):
                self.resign()
        except ServerError:
            pass  # the lease runs out by itself


def _row(client: redis.Redis, keys: Keys, service: Service, traffic: Traffic) -> dict[str, float | None]:
    """The row of this minute for the history: the service, and the sampled traffic of the last day."""
    model = traffic.main_model()
    quality = traffic.day_values(model) if model else {}
    return row_of(service, last_minute(client, keys, service.now_ms), quality)


def _log(found: Evaluation) -> None:
    firing = [f"{one.rule}/{one.lane or 'all'}" for one in found.findings if one.state == "firing"]
    _LOG.info("judged", findings=len(found.findings), firing=firing)
    for entry in found.audit:
        _LOG.info("drift_audit", **entry)
