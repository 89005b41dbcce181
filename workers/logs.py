"""Structured logs: one event a line on standard error, stable names, fields beside them."""

from __future__ import annotations

import logging
import sys
from typing import TextIO, cast

import structlog

from amn.output import Lossy, plain, strict_json


def configure_logs(level: str = "info", *, as_json: bool = False) -> None:
    """Sets structlog up for this process; the driver's own log lines come along.

    Raises:
        ValueError: Not a level's name.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"log level {level!r} is not known; use debug, info, warning or error")
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(serializer=lambda event, **_: strict_json(event))
        if as_json
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _as_data,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, Lossy(sys.stderr))),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=number, handlers=[handler])


class _Lines(logging.Formatter):
    """Lines that give no orders to the terminal that shows them."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record), lines=True)


def _as_data(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Text of others stays on the event's line; only a traceback has several."""
    return {
        name: plain(value, lines=name == "exception") if isinstance(value, str) else value
        for name, value in event.items()
    }
