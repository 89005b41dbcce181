"""From findings to a person: alerts with hysteresis, and a sender that tells each sink what it does not know.

The judge calls `apply` with every finding once a minute; `amn alerts run` compares the told alerts with
what each sink acknowledged, and sends the difference.
"""

from __future__ import annotations

from ops.alerts.alert import Alert
from ops.alerts.settings import AlertSettings
from ops.alerts.store import Transition, apply

__all__ = ["Alert", "AlertSettings", "Transition", "apply"]
