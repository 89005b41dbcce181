"""The configured sinks: a TOML file, environment variables, or both. Read anew for every attempt.

    [sinks.pager]
    type = "pagerduty"
    routing_key = { env = "PAGERDUTY_KEY" }       # or { file = "/run/secrets/pagerduty" }
    severities = ["page"]                         # default: ["ticket", "page"]
    secondary = false

A secret is never written into the file. Without a file, each of the variables below makes a sink, and
each can end in `_FILE` to name a file that holds the value.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import httpx
import structlog

from ops.alerts.alert import SEVERITIES
from ops.alerts.secret import Secret, plain, read_small, resolve
from ops.alerts.settings import AlertSettings
from ops.alerts.sinks.apprise import Apprise
from ops.alerts.sinks.base import Sink
from ops.alerts.sinks.http import client
from ops.alerts.sinks.services import Alertmanager, PagerDuty, Slack, Webhook
from ops.errors import SinksRefused
from producer.settings import masked

_LOG = structlog.get_logger("amn.alerts")
FILE_VARIABLE = "AMN_ALERTS_FILE"
TYPES: Mapping[str, type[Any]] = {
    "pagerduty": PagerDuty,
    "slack": Slack,
    "alertmanager": Alertmanager,
    "webhook": Webhook,
    "apprise": Apprise,
}
_NAME = re.compile(r"[a-z0-9_-]{1,32}")
#: Variables of a sink made of the environment alone: sink type, field, variable.
_VARIABLES = (
    ("pagerduty", "routing_key", "AMN_ALERTS_PAGERDUTY_KEY"),
    ("slack", "url", "AMN_ALERTS_SLACK_URL"),
    ("alertmanager", "url", "AMN_ALERTS_ALERTMANAGER_URL"),
    ("apprise", "url", "AMN_ALERTS_APPRISE_URL"),
    ("webhook", "url", "AMN_ALERTS_WEBHOOK_URL"),
    ("webhook", "keys", "AMN_ALERTS_WEBHOOK_KEY"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsConfig:
    """The configuration of a sender: times, name and links; and the sinks by name."""

    settings: AlertSettings
    sinks: Mapping[str, Sink]


class Sinks:
    """The sinks as they are described now; while that cannot be used, as they last were.

    Attributes:
        last: The configuration that was read last.
        trouble: Why the description of now cannot be used; "" when it can.
    """

    def __init__(self, read: Callable[[], AlertsConfig]) -> None:
        self._read = read
        self.last = read()
        self.trouble = ""

    def now(self) -> AlertsConfig:
        """Reads them anew, and never raises: a page must go out whatever somebody does to a file."""
        try:
            self.last, trouble = self._read(), ""
        except Exception as error:
            trouble = f"{type(error).__name__}: {error}"
        if trouble and trouble != self.trouble:
            _LOG.error("sinks_not_read", detail=trouble, instead="those of before are used")
        self.trouble = trouble
        return self.last


def configured(path: Path | None = None) -> bool:
    """True if anything names a sink."""
    names = (FILE_VARIABLE, *(variable for _, _, variable in _VARIABLES))
    return path is not None or any(os.environ.get(n) or os.environ.get(f"{n}_FILE") for n in names)


def load(path: Path | None = None) -> AlertsConfig:
    """Reads the sinks of a file (flag > AMN_ALERTS_FILE), and those of the environment beside it.

    Raises:
        SinksRefused: File, sink and field that cannot be used.
    """
    named = os.environ.get(FILE_VARIABLE, "")
    file = path or (Path(named) if named else None)
    stored = _read(file) if file else {}
    unknown = ", ".join(sorted(set(stored) - {"sinks"}))
    if unknown or not isinstance(stored.get("sinks", {}), dict):
        raise SinksRefused(f"{file}: {unknown or 'sinks'} is not known here; write [sinks.NAME] tables")
    tables = {**_from_environment(), **stored.get("sinks", {})}
    sinks = {name: _sink(name, table) for name, table in tables.items()}
    if sinks and all(sink.secondary for sink in sinks.values()):
        raise SinksRefused("every sink is secondary; at least one must be told first")
    return AlertsConfig(settings=AlertSettings.from_environment(), sinks=sinks)


def load_usable(path: Path | None = None) -> AlertsConfig:
    """Works like `load`, for a start: also refuses an environment in which a request could not even begin."""
    config = load(path)
    for sink in config.sinks.values():
        try:
            if not isinstance(sink, Apprise):
                client(plain(sink.url))  # type: ignore[attr-defined]
        except Exception as error:
            raise SinksRefused(
                f"sink {sink.name}: nothing could be sent with this environment ({type(error).__name__}: "
                f"{error}); look at HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
            ) from None
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_small(path, "the file of sinks"))
    except (ValueError, RecursionError) as error:
        raise SinksRefused(f"{path} is not TOML: {error}") from None


def _from_environment() -> dict[str, dict[str, Any]]:
    """Returns the sinks of the environment by type; each value is a reference, so secrets stay hidden."""
    found: dict[str, dict[str, Any]] = {}
    for kind, field, variable in _VARIABLES:
        file = os.environ.get(f"{variable}_FILE")
        if file or os.environ.get(variable):
            reference = {"file": file} if file else {"env": variable}
            found.setdefault(kind, {"type": kind})[field] = reference
    return found


def _sink(name: str, table: Any) -> Sink:
    where = f"sink {name}"
    if not _NAME.fullmatch(name):
        raise SinksRefused(f"{where}: a name has 1-32 of a-z, 0-9, '_' and '-'")
    if not isinstance(table, dict) or str(table.get("type")) not in TYPES:
        raise SinksRefused(f"{where}: type must be one of {', '.join(TYPES)}")
    kind = TYPES[table["type"]]
    known = {field.name: field for field in fields(kind) if field.name != "name"}
    for field in table:
        if field not in known and field != "type":
            raise SinksRefused(f"{where}: {field} is not known; it may have {', '.join(known)}")
    missing = [n for n, one in known.items() if n not in table and one.default is MISSING]
    if missing:
        raise SinksRefused(f"{where}: {', '.join(missing)} is missing")
    values = {n: _value(f"{where}: {n}", n, value, kind) for n, value in table.items() if n != "type"}
    sink: Sink = kind(name=name, **values)
    return sink


def _value(what: str, field: str, value: Any, kind: type[Any]) -> Any:
    if field == "severities":
        if not isinstance(value, list) or not value or any(one not in SEVERITIES for one in value):
            raise SinksRefused(f"{what} must be a list of {', '.join(SEVERITIES)}")
        return tuple(value)
    if field == "secondary":
        if not isinstance(value, bool):
            raise SinksRefused(f"{what} must be true or false")
        return value
    if field == "keys":
        return tuple(resolve(one, what) for one in (value if isinstance(value, list) else [value]))
    if field in kind.secrets or isinstance(value, dict):
        value = resolve(value, what)
    if field == "url" and kind is not Apprise:
        _check_url(what, value)
    return value


def _check_url(what: str, value: Any) -> None:
    said = "its value" if isinstance(value, Secret) else masked(repr(value))
    try:
        url = httpx.URL(plain(value))
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError
    except (TypeError, ValueError, httpx.InvalidURL):
        raise SinksRefused(f"{what}: {said} is no http or https address") from None
