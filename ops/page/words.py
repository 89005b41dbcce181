"""The rules of docs/runbook.md in words, for somebody who reads their names for the first time."""

from __future__ import annotations

from collections.abc import Mapping

RULES: Mapping[str, str] = {
    "ood_delta": "Answers on text that the model has not seen got worse over a day",
    "fast_drop": "Answers got worse within hours",
    "level": "Answers got worse, on known or unknown text",
    "canary": "The same inputs give other answers than before",
    "input_drift": "Other things are asked than before",
    "slo_fallback": "Too many requests go to a fallback",
    "slo_latency": "Too many answers take longer than the objective",
    "slo_error": "Too many requests end in an error",
    "slo_bulk_latency": "Too much bulk work takes longer than a minute",
    "slo_bulk_error": "Too much bulk work fails",
    "no_worker": "No worker is there for what waits or will come",
    "backlog_age": "Requests wait for too long",
    "backlog_size": "The queue is nearly full",
    "refused": "The queue is full and refuses requests",
    "crash_loop": "Workers die again and again",
    "persistence_failed": "The server cannot write its files",
    "server_memory": "The server's memory is nearly full",
    "dead_letters": "Requests become dead letters",
    "unanswered": "A request vanished without an answer",
    "monitor_health": "The measuring of quality is in trouble itself",
    "judge_dead": "The drift judge is not at work",
    "delivery_failed": "Alerts do not reach their receivers",
    "sender_dead": "The sender of alerts is not at work",
    "server_down": "The queue's server does not answer",
}


def told(rule: str) -> str:
    """The words for a rule, or its name where it is unknown here."""
    return RULES.get(rule, f"Alert {rule}")
