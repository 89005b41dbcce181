"""The click group `worker`: one subcommand a kind. `python -m workers` and `amn worker` share it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from amn.policy import DEFAULT
from producer.errors import QueueError
from producer.sampling import RATE_MAX
from producer.settings import ProducerSettings
from workers.errors import NotReady
from workers.logs import configure_logs
from workers.pool.child import parent_pid
from workers.pool.failures import last_words
from workers.settings import Artifacts, QueueSettings, WorkerSettings, artifacts_root

_DEFAULT_MODELS = {
    "amn": "production_model",
    "shadow": "fallback_accuracy",
    "accuracy": "fallback_accuracy",
    "secondary": "fallback_secondary",
}
_LOG_HELP = "Append the sampled requests' scores and decisions, as JSON lines (`amn policy replay`)."
_policy = click.option(
    "--policy", default=DEFAULT, show_default=True, help="A preset (`amn policy list`), or a TOML file."
)
_LIMITS = ("lease_ms", "stall_ms", "fallback_entries_max", "fallback_bytes_max")
#: A matrix product per request is cheapest from 256 rows on; a slow model is to finish within a lease.
_BATCH_MAX = {"amn": 256, "fallback": 64, "shadow": 64}
#: A slow model costs a third per request in a batch of eight, and takes less of the memory's
#: bandwidth from the fast path. Who waits for a fallback waits for a slower model anyway.
_LINGER_MS = {"fallback": 25, "shadow": 250}
_OPTIONS = [
    click.option("--url", envvar="REDIS_URL", help="Server address. [env: REDIS_URL]"),
    click.option("--queue", envvar="AMN_QUEUE", default="main", show_default=True, help="Queue name."),
    click.option(
        "--artifacts",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="AMN_ARTIFACTS",
        help="Folder of models. [env: AMN_ARTIFACTS; default: artifacts/lvm, or the shipped ones]",
    ),
    click.option("--model", type=click.Path(path_type=Path), help="Checkpoint folder instead of the link."),
    click.option("--batch-max", type=int, help="Requests taken in one read. [default: amn 256, others 64]"),
    click.option("--lease-ms", default=3000, show_default=True, help="Lease of a batch."),
    click.option(
        "--stall-ms",
        envvar="AMN_STALL_MS",
        default=20_000,
        show_default=True,
        help="A worker that makes no step for this long ends itself. [env: AMN_STALL_MS]",
    ),
    click.option("--fallback-entries-max", default=20_000, help="Entries that may wait for a fallback."),
    click.option("--fallback-bytes-max", default=512 * 1024**2, help="Payload bytes that may wait for it."),
    click.option(
        "--stages/--no-stages",
        envvar="AMN_STAGES",
        default=True,
        help="Count the times of the stages. [env: AMN_STAGES]",
    ),
    click.option("--log-level", envvar="AMN_LOG_LEVEL", default="info", show_default=True),
    click.option("--log-json/--log-text", default=False, help="Logs as JSON lines."),
]


@click.group()
def worker() -> None:
    """Run one worker until Ctrl-C or SIGTERM; the batch at hand is finished first."""


def _with_options(function: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@worker.command()
@_with_options
@_policy
@click.option("--decision-log", type=click.Path(path_type=Path, dir_okay=False), help=_LOG_HELP)
@click.option("--sample-rate", default=0.05, show_default=True, help="Share for the shadow, 0.01-0.05.")
@click.option(
    "--recheck-one-in",
    envvar="AMN_RECHECK_ONE_IN",
    default=1000,
    show_default=True,
    help="Search one request in so many again exactly, where the bank is approximate; 0 for none.",
)
def amn(policy: str, decision_log: Path | None, **common: Any) -> None:
    """Answer requests with the AMN model, and escalate what the policy flags."""
    _run("amn", common, {"policy": policy, "decision_log": decision_log})


@worker.command()
@_with_options
@_policy
@click.option(
    "--tier",
    type=click.Choice(["accuracy", "secondary"]),
    default="accuracy",
    show_default=True,
    help="Place in the chain; each has its own queue and model link.",
)
def fallback(policy: str, tier: str, **common: Any) -> None:
    """Answer escalated requests with the slower model."""
    _run("fallback", common, {"policy": policy, "tier": tier})


@worker.command()
@_with_options
def shadow(**common: Any) -> None:
    """Score sampled traffic against the true next vectors."""
    _run("shadow", common)


def _run(kind: str, common: dict[str, Any], gate: dict[str, Any] | None = None) -> None:
    try:
        configure_logs(common["log_level"], as_json=common["log_json"])
        root, parent = common["artifacts"] or artifacts_root(), parent_pid()
        settings = WorkerSettings(
            kind=kind,
            producer=ProducerSettings.from_environment(url=common["url"], queue=common["queue"]),
            queue=QueueSettings(
                batch_max=_BATCH_MAX[kind] if common["batch_max"] is None else common["batch_max"],
                linger_ms=_LINGER_MS.get(kind, 0),
                **{name: common[name] for name in _LIMITS},
            ),
            sample_rate=common.get("sample_rate", RATE_MAX),
            recheck_one_in=common.get("recheck_one_in", 0),
            parent_pid=parent,
            stages=common["stages"],
            background=kind != "amn",
        )
        artifacts = Artifacts(
            model=common["model"] or root / _DEFAULT_MODELS[(gate or {}).get("tier", kind)],
            bank=root / "reference_bank",
            calibration=root / "gate_calibration",
            slices=root / "ood_slices",
            # A pool has its workers read links of its own; the environment names the folder behind them.
            origin=str((artifacts_root() if parent else root).resolve()),
            **(gate or {}),
        )
        with last_words(settings.producer, kind):
            from workers.runtime import run_worker  # the model's libraries are for the process that serves

            run_worker(settings, artifacts)
    except (QueueError, NotReady, ValueError) as error:
        raise click.ClickException(str(error)) from error
