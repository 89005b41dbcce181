"""Where the command looks for a server, data and artifacts; reads the environment for this room."""

from __future__ import annotations

import os
from pathlib import Path

from producer.settings import DEFAULT_URL, ProducerSettings
from workers.settings import artifacts_root

#: Data folder of `amn up`, below the current folder.
DATA_DEFAULT = Path("var") / "amn"
#: Name of the file in the data folder that holds the address of a running `amn up`.
URL_FILE = "url"
#: Most AMN workers that `amn run` and `amn up` start.
WORKERS_MAX = 64
#: How help shows the default of `workers_default`.
WORKERS_SHOWN = "cores - 1"


def external_url(url: str | None) -> str | None:
    """The server that the user named: flag > REDIS_URL; None when an embedded one is wanted."""
    return url or os.environ.get("REDIS_URL") or None


def server_url(url: str | None, data: Path = DATA_DEFAULT) -> str:
    """The server to talk to: flag > REDIS_URL > an `amn up` in this folder > the default port."""
    named = external_url(url)
    if named:
        return named
    try:
        return (data / URL_FILE).read_text("utf-8").strip() or DEFAULT_URL
    except OSError:
        return DEFAULT_URL


def producer_settings(url: str | None, queue: str | None) -> ProducerSettings:
    """Settings of a client of the server that `server_url` finds."""
    return ProducerSettings.from_environment(url=server_url(url), queue=queue)


def artifacts_folder(artifacts: Path | None) -> Path:
    """The folder with `production_model`, `fallback_accuracy` and `reference_bank`."""
    return artifacts or artifacts_root()


def sample_path(sample: Path | None) -> Path:
    """The shipped sample of real sequences; it lies beside the folder of models."""
    return sample or artifacts_root().parent / "sample" / "sequences.npz"


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
