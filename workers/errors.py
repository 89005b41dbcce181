"""Errors that stop a worker.

WorkerError
└── NotReady       the worker may not start (model, bank or policy do not hold)
"""

from __future__ import annotations

from producer.errors import AuthenticationFailed, ServerError, TlsFailed


class WorkerError(Exception):
    """Base of this room's errors; `code` is stable."""

    code = "worker_error"


class NotReady(WorkerError):
    """The worker refuses to start: what it would serve does not hold."""

    code = "not_ready"


def refused(error: ServerError) -> bool:
    """True when the server refused for good: it will not say otherwise soon."""
    return not (error.retryable or isinstance(error, AuthenticationFailed | TlsFailed))
