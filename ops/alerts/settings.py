"""Times of the alerts, and who they speak for; the environment is read here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_MIN_MS, _HOUR_MS = 60_000, 3_600_000
#: In a checkout it is a document like the others; a wheel holds a copy (setup.py).
_FILES = (
    Path(__file__).resolve().parents[2] / "docs" / "runbook.md",
    Path(__file__).resolve().with_name("runbook.md"),
)
_SHIPPED = next((file.as_uri() for file in _FILES if file.exists()), "docs/runbook.md")
_VARIABLES = {"environment": "AMN_ENVIRONMENT", "runbook_url": "AMN_RUNBOOK_URL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertSettings:
    """The settings of the state machine and the sender.

    Attributes:
        environment: Name of this installation; part of every alert's identity.
        runbook_url: Page of docs/runbook.md; "" names the file that came with this package.
        apart_ms: Evaluations closer than this count once, so that a judge that starts again, or a
            person who checks by hand, does not hurry an alert.
        broken_off_ms: After this long without a look, the count of firing evaluations begins anew.
        firing_min_ms: An alert that fired does so for this long at least.
        hold_ms: It must rest for this long before it is resolved.
        gone_ms: A firing alert that nobody judges any more (a model that was replaced) ends after this.
        renotify_ms: A firing alert is told again after this.
        kept_ms: How long a resolved alert is still listed.
        second_after_ms: Without a primary sink's acceptance for this long, the secondary ones are told.
        give_up_ms: A delivery is tried for this long.
        late_ms: A delivery that takes longer than this is itself worth an alert.
        judge_silent_ms: A judge that was not heard for this long is dead.
        server_silent_ms: A server that does nothing for the sender for this long is told by itself.
    """

    environment: str = ""
    runbook_url: str = ""
    apart_ms: int = 30_000
    broken_off_ms: int = 15 * _MIN_MS
    firing_min_ms: int = 30 * _MIN_MS
    hold_ms: int = 10 * _MIN_MS
    gone_ms: int = _HOUR_MS
    renotify_ms: int = 4 * _HOUR_MS
    kept_ms: int = 24 * _HOUR_MS
    second_after_ms: int = 5 * _MIN_MS
    give_up_ms: int = 24 * _HOUR_MS
    late_ms: int = 15 * _MIN_MS
    judge_silent_ms: int = 3 * _MIN_MS
    server_silent_ms: int = 2 * _MIN_MS

    @classmethod
    def from_environment(cls) -> Self:
        """Returns the defaults, with `AMN_ENVIRONMENT` and `AMN_RUNBOOK_URL` where they are set."""
        return cls(**{name: os.environ.get(variable, "") for name, variable in _VARIABLES.items()})  # type: ignore[arg-type]

    def runbook(self, heading: str) -> str:
        """Returns the link to a heading of the runbook."""
        return f"{self.runbook_url or _SHIPPED}#{heading}"
