"""Options that several commands share."""

from __future__ import annotations

import functools
import getpass
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import redis

from amn.errors import ConfigError
from amn.policy import DEFAULT, load_policy
from ops.settings import artifacts_folder, producer_settings
from producer.partitions import PARTITIONS_MAX
from producer.sampling import RATE_MAX, RATE_MIN
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors
from workers.pool.settings import PoolSettings

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
PATH, FILE = click.Path(path_type=Path), click.Path(path_type=Path, dir_okay=False)


def login_name() -> str:
    """Returns the user who runs this; the number of one without a name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f"uid {os.getuid()}"


@contextmanager
def client(settings: ProducerSettings, *, block_ms: int = 0) -> Iterator[redis.Redis]:
    """A connection for the length of a block, in which the driver's errors become ours.

    Args:
        block_ms: Longest wait of a blocking read.
    """
    with driver_errors(settings.url), connect(settings, block_ms=block_ms) as opened:
        yield opened


url = click.option(
    "--url",
    metavar="URL",
    help="Server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (docs/deploy.md). "
    "[env: REDIS_URL; else an `amn up` in this folder]",
)
url_or_own = click.option(
    "--url", metavar="URL", help="Server to use. [env: REDIS_URL; else an embedded one is started]"
)
queue = click.option("--queue", envvar="AMN_QUEUE", metavar="NAME", help="Queue name. [default: main]")


def server(command: Callable[..., None]) -> Callable[..., None]:
    """The options --url and --queue of a command, which takes the `settings` of a client of that service."""

    @functools.wraps(command)
    def with_settings(*arguments: Any, url: str | None, queue: str | None, **more: Any) -> None:
        command(*arguments, settings=producer_settings(url, queue), **more)

    return url(queue(with_settings))


partitions = click.option(
    "--partitions",
    type=click.IntRange(1, PARTITIONS_MAX),
    metavar="N",
    help="The queue is NAME.p0 to NAME.p<N-1>. [default: one queue]",
)
artifacts = click.option(
    "--artifacts",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="AMN_ARTIFACTS",
    help="Folder with production_model and the others. [default: artifacts/lvm, or the shipped ones]",
)


def _known_policy(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        load_policy(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from error
    return value


policy = click.option(
    "--policy",
    metavar="NAME|FILE",
    default=DEFAULT,
    callback=_known_policy,
    help="A preset (`amn policy list`), such as card: its rules to the letter; or a TOML file.",
)


def together(*options: Decorator) -> Decorator:
    """Return one decorator for several options and arguments, in their order."""
    return lambda command: functools.reduce(lambda inner, option: option(inner), reversed(options), command)


log_level = click.option("--log-level", envvar="AMN_LOG_LEVEL", default="info")
as_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output, nothing else."
)


def _checked_rate(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if value and not RATE_MIN <= value <= RATE_MAX:
        raise click.BadParameter(f"{value:g} is not {RATE_MIN} to {RATE_MAX}, nor 0 for no shadow worker.")
    return value


sample_rate = click.option(
    "--sample-rate",
    type=float,
    default=RATE_MAX,
    callback=_checked_rate,
    help="Share of requests for the shadow worker, 0.01 to 0.05; 0 for none.",
)


def pool_settings(choices: Mapping[str, Any], **more: Any) -> PoolSettings:
    """Return the settings of workers from the options that `amn run` and `amn up` share, and more."""
    return PoolSettings(
        policy=choices["policy"],
        artifacts=artifacts_folder(choices["artifacts"]),
        sample_rate=choices["sample_rate"],
        **more,
    )


def worker_counts(choices: Mapping[str, Any], fallbacks: int) -> dict[str, int]:
    """Return how many workers of each kind are to run; a shadow worker where requests are sampled."""
    return {"amn": choices["workers"], "fallback": fallbacks, "shadow": int(choices["sample_rate"] > 0)}
