"""Settings of a pool of workers, and the command line of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from amn.policy import DEFAULT
from workers.pool.child import our_environment, our_python
from workers.settings import artifacts_root


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Settings of every child.

    Attributes:
        url: Server address; goes to the children by environment, never on a command line.
        queue: Queue name.    policy: Escalation policy of the AMN workers.
        artifacts: Folder of models and banks.
        lease_ms, sample_rate: As in `workers.settings`.
        log_level: Of the children.    log_file: Where their logs go; None for standard error.
    """

    url: str = field(repr=False)
    queue: str = "main"
    policy: str = DEFAULT
    artifacts: Path = field(default_factory=artifacts_root)
    lease_ms: int = 3_000
    sample_rate: float = 0.05
    log_level: str = "warning"
    log_file: Path | None = None

    def command(self, kind: str, artifacts: Path) -> list[str]:
        """The child's command line."""
        words = our_python("workers", kind, "--queue", self.queue)
        words += ["--artifacts", str(artifacts), "--log-level", self.log_level]
        words += ["--lease-ms", str(self.lease_ms)]
        if kind != "shadow":
            words += ["--policy", self.policy]
        if kind == "amn":
            words += ["--sample-rate", str(self.sample_rate)]
        return words

    def environment(self) -> dict[str, str]:
        """The child's environment: one thread per numeric library, since a process has one core."""
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        folder = str(self.artifacts.resolve())
        return our_environment(**one_thread, REDIS_URL=self.url, AMN_ARTIFACTS=folder, PYTHONUNBUFFERED="1")
