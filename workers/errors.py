"""Errors that stop a worker."""

from __future__ import annotations

from producer.errors import AuthenticationFailed, ServerError, TlsFailed


class NotReady(Exception):
    """The worker refuses to start: model, bank, policy or calibration do not hold."""

    code = "not_ready"


def refused(error: ServerError) -> bool:
    """True when the server refused for good: it will not say otherwise soon."""
    return not (error.retryable or isinstance(error, AuthenticationFailed | TlsFailed))
