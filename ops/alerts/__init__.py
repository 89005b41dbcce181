"""From findings to a person: states with hysteresis, an outbox, and what delivers it.

The judge calls `apply` with every finding once a minute. Whatever changed is written in one step
together with the messages that tell it; `amn alerts run` delivers those.
"""

from __future__ import annotations

from ops.alerts.alert import Alert, Message, Transition
from ops.alerts.settings import AlertSettings
from ops.alerts.store import apply

__all__ = ["Alert", "AlertSettings", "Message", "Transition", "apply"]
