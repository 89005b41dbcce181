"""Receipts of sinks whose receiver may have heard what it never acknowledged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ops.alerts import AlertSettings
from ops.alerts.alert import Alert
from ops.alerts.config import AlertsConfig
from ops.alerts.receipts import Receipt, begun, compare, settled
from ops.alerts.secret import Secret
from ops.alerts.sinks.base import SinkAnswer
from ops.alerts.sinks.services import PagerDuty

NOW_MS = 1_800_000_000_000
PRIMARY = PagerDuty(name="primary", routing_key=Secret("k" * 32))
PAGE = Alert(
    id="a" * 32,
    incident="1",
    rule="level",
    severity="page",
    summary="",
    runbook="",
    phase="firing",
    since_ms=NOW_MS,
    told_ms=NOW_MS,
)


def owed(alert: Alert, sink: PagerDuty, **receipts: Receipt) -> Any:
    """What the other sink is owed of an alert."""
    config = AlertsConfig(settings=AlertSettings(), sinks={"primary": PRIMARY, "other": sink})
    found = compare(config, [alert], {f"{n}|{alert.name}": one for n, one in receipts.items()}, NOW_MS)
    return next(one for one in found if one.sink is sink)


@pytest.mark.parametrize(
    ("how", "other", "alert", "primary"),
    [
        ({"secondary": True}, Receipt(), PAGE, Receipt(severity="page", told_ms=NOW_MS)),
        ({"severities": ("page",)}, Receipt(), replace(PAGE, severity="ticket"), Receipt()),
    ],
    ids=["the primary sink took it meanwhile", "it is no page any more"],
)
@pytest.mark.parametrize("refused", [False, True], ids=["killed", "answered 503"])
def test_a_beginning_that_may_have_been_heard_is_told_until_it_is_acknowledged_and_then_its_end(
    how: dict[str, Any], other: Receipt, alert: Alert, primary: Receipt, refused: bool
) -> None:
    sink = PagerDuty(name="other", routing_key=Secret("k" * 32), **how)
    assert owed(alert, sink, primary=primary, other=other).kind == ""
    tried = begun(Receipt(owed="trigger", owed_ms=NOW_MS), NOW_MS, 0.5)
    if refused:
        one = owed(alert, sink, primary=primary, other=tried)
        tried = settled(replace(one, receipt=tried), SinkAnswer(outcome="again"), NOW_MS, AlertSettings())
    for phase in ("firing", "ok"):
        again = owed(replace(alert, phase=phase), sink, primary=primary, other=tried)
        assert (again.kind, again.receipt.attempts) == ("trigger", 1)
    heard = settled(again, SinkAnswer(outcome="accepted"), NOW_MS, AlertSettings())
    assert owed(replace(alert, phase="ok"), sink, primary=primary, other=heard).kind == "resolve"
