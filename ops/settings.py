"""The places of the server, data and artifacts; the only reader of the environment in this room."""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ops.errors import ServerFailed, ServerUnknown
from ops.local.private import write_privately
from producer.address import CLUSTER, parse_address
from producer.settings import ProducerSettings, masked
from workers.settings import artifacts_root, shipped

#: Data folder of `amn up`, below the current folder.
DATA_DEFAULT = Path("var") / "amn"
#: Name of the file in the data folder that says what a running `amn up` serves.
SERVICE_FILE = "service.json"
#: Most AMN workers that `amn run` and `amn up` start.
WORKERS_MAX = 64
#: The default of `workers_default` in help.
WORKERS_SHOWN = "cores - 1"
#: Port of the page of `amn dashboard`.
PAGE_PORT = 9465
#: Ports of `amn gateway` and `amn metrics`.
GATEWAY_PORT, METRICS_PORT = 9466, 9464
_TOKEN_LENGTH_MIN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """A service, as its `amn up` describes it to the commands in the same folder.

    Attributes:
        url: Address of its server, with the password where there is one; "" in no record.
        queue: Name of its queue.
        artifacts: Folder of models and banks that its workers read.
        found: Source of the address: `--url`, `REDIS_URL`, or the file.
    """

    url: str = field(repr=False)
    queue: str = ""
    artifacts: str = ""
    found: str = ""

    def write(self, data: Path) -> Path:
        """Writes it into the data folder, for this user alone; returns the file."""
        file = data / SERVICE_FILE
        write_privately(file, json.dumps({n: text for n, text in asdict(self).items() if n != "found"}))
        return file


def external_url(url: str | None) -> str | None:
    """The server that the user named: flag > REDIS_URL; None when an embedded one is wanted."""
    return url or os.environ.get("REDIS_URL") or None


def service(url: str | None = None, data: Path | None = None) -> ServiceRecord:
    """Return the service to talk to: flag > REDIS_URL > the `amn up` of this folder.

    What the folder's file says of queue and artifacts holds when its server is the one that was named.

    Args:
        data: Data folder of `amn up`; None for AMN_UP_DATA, or the default one.

    Raises:
        ServerUnknown: Nobody named a server, and no `amn up` runs in this folder.
    """
    file = (data or Path(os.environ.get("AMN_UP_DATA") or DATA_DEFAULT)) / SERVICE_FILE
    named, known = external_url(url), None
    try:
        known = ServiceRecord(**json.loads(file.read_text("utf-8")), found=str(file))
        why = ""
    except FileNotFoundError:
        why = (
            f"no server is named, and no `amn up` runs here ({file} does not exist): give --url, set "
            "REDIS_URL, or go to the folder in which `amn up` was started"
        )
    except (OSError, ValueError, TypeError) as error:
        why = f"{file} cannot be read ({error}); start `amn up` again, or give --url"
    if named:
        known = known if known is not None and known.url == named else ServiceRecord(url=named)
        return replace(known, found="--url" if url else "REDIS_URL")
    if known is None:
        raise ServerUnknown(why)
    return known


def is_here(host: str) -> bool:
    """True if an address is this machine's alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listening_token(variable: str, host: str, *, needed: bool = False) -> str:
    """The token of whatever listens on `host`: a variable, or the file that the variable and `_FILE` name.

    Args:
        needed: True if there must be one also on an address of this machine alone.

    Raises:
        ServerFailed: It is needed and missing, too short, or its file cannot be read.
    """
    token, file = os.environ.get(variable, "").strip(), os.environ.get(f"{variable}_FILE", "")
    if file and not token:
        try:
            token = Path(file).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ServerFailed(f"cannot read the token in {file} ({variable}_FILE): {error}") from None
    if (token or needed or not is_here(host)) and len(token) < _TOKEN_LENGTH_MIN:
        raise ServerFailed(
            f"{host} is reached from other machines, or a token is set or needed: draw one of at least "
            f"{_TOKEN_LENGTH_MIN} characters into {variable} (openssl rand -hex 24), or into the file that "
            f"{variable}_FILE names"
        )
    return token


def with_origin(text: str) -> str:
    """Return an error's text, and the origin of the address in it when the user has not named it."""
    try:
        found = service()
    except ServerUnknown:
        return text
    if external_url(None) or masked(found.url) not in text:
        return text
    return f"{text} (so says {found.found}: does the `amn up` that wrote it still run?)"


def producer_settings(url: str | None, queue: str | None) -> ProducerSettings:
    """Return the settings of a client of that `service`, on its queue or another one that is named."""
    found = service(url)
    queue = queue or os.environ.get("AMN_QUEUE") or found.queue or None
    return ProducerSettings.from_environment(url=found.url, queue=queue)


def jobs_possible(url: str) -> bool:
    """True if RQ can use this server; on the nodes of a cluster, its keys would lie apart."""
    return parse_address(url).kind != CLUSTER


def artifacts_folder(artifacts: Path | None) -> Path:
    """The folder with `production_model`, `fallback_accuracy` and `reference_bank`."""
    return artifacts or artifacts_root()


def sample_path(sample: Path | None) -> Path:
    """The shipped sample of real sequences."""
    return sample or shipped("sample/sequences.npz")


def cores() -> int:
    """Cores that this process may run on; where nobody tells, those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers_default() -> int:
    """AMN workers of this machine: one for each core but one, which is for everything else.

    Under load a worker keeps its core busy, and the server, the producer and the slower workers
    need one too.
    """
    return min(max(cores() - 1, 1), WORKERS_MAX)
