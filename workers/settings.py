"""Settings of a worker."""

from __future__ import annotations

import importlib.util
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from producer.messages import DEFAULT_ENCODER, LANES
from producer.sampling import DEFAULT_SALT, RATE_MAX, RATE_MIN
from producer.settings import ProducerSettings

#: An escalation that has less time left than this is not sent: 95 % of the fallback's answers take
#: less on a machine that keeps up (`amn run`), and one that comes too late is no answer at all.
FALLBACK_MS_MIN = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """Leases, limits and retention of one queue, as its workers see it.

    Attributes:
        batch_max: Requests taken in one read.
        lease_ms: A worker that does not renew for this long has lost its entries.
        deliveries_max: An entry that would be begun more often than this goes to the dead letters. A
            delivery that no worker received is none; only the first cannot be told from one.
        stall_ms: A worker whose loop makes no step for this long ends itself; a quarter of it while
            it works on entries that were delivered before, of which it takes an eighth at a time.
        reply_ttl_ms: A reply stream that nobody reads is removed after this.
        reply_entries_max, reply_bytes_max: Of answers that wait for one client; it loses the oldest
            ones, and learns of it. Looked at every two MiB, so that each worker may add that much.
        fallback_entries_max, fallback_bytes_max: Limits of the fallback stream.
        secondary_entries_max, secondary_bytes_max: Limits of the secondary fallback stream.
        shadow_entries_max: Cap of the shadow stream; the oldest samples are dropped.
        dead_entries_max: Cap of the dead letter stream.
        linger_ms: Pause between two reads, so that slow work comes in larger batches. 0 where
            latency counts: what is there is taken at once.
        block_ms: How long an idle read waits; also how soon a stop is noticed.
    """

    batch_max: int = 256
    lease_ms: int = 3_000
    deliveries_max: int = 5
    reply_ttl_ms: int = 600_000
    reply_entries_max: int = 65_536
    reply_bytes_max: int = 48 * 1024**2
    fallback_entries_max: int = 20_000
    fallback_bytes_max: int = 512 * 1024**2
    secondary_entries_max: int = 5_000
    secondary_bytes_max: int = 128 * 1024**2
    shadow_entries_max: int = 20_000
    dead_entries_max: int = 10_000
    linger_ms: int = 0
    block_ms: int = 500
    stall_ms: int = 20_000

    def __post_init__(self) -> None:
        # An answer has to wait somewhere.
        least = {
            "batch_max": 1,
            "reply_entries_max": 1,
            "reply_bytes_max": 1,
            "lease_ms": 100,
            "stall_ms": 1000,
        }
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ValueError(f"{name} is {getattr(self, name)}; use at least {value}")
        if self.batch_max > 4096:
            raise ValueError(f"batch_max is {self.batch_max}; use at most 4096")


def worker_name(kind: str) -> str:
    """Unique per process, and readable: kind, host (cut off, as it may be long), process id."""
    host = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname())[:24]
    return f"{kind}-{host}-{os.getpid()}-{os.urandom(3).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """One worker.

    Attributes:
        kind: "amn", "fallback" or "shadow".
        producer: Server and queue; shared with the client side.
        queue: Leases and limits.
        encoder: Encoder whose vectors are served, others are refused: that of the model, once it is loaded.
        lanes: Lanes that are served.
        sample_rate: Highest share of a lane's requests that the shadow worker sees, 0.01 to 0.05, or
            0 for none; busy lanes are sampled at less (workers/shadow/rates.py).
        recheck_one_in: One request in so many is searched again exactly, where the bank is approximate;
            0 for none (workers/handlers/recheck.py).
        parent_pid: Stop when this process is not the parent any more; 0 for a worker of its own.
        stages: Whether it counts the times of the stages (workers/engine/stages.py).
        background: Run only when nothing else wants the core, so that a slow model never makes
            the fast path of the same machine wait.
    """

    kind: str
    producer: ProducerSettings = field(default_factory=ProducerSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    encoder: str = DEFAULT_ENCODER
    lanes: tuple[str, ...] = LANES
    sample_rate: float = RATE_MAX
    sample_salt: str = DEFAULT_SALT
    recheck_one_in: int = 1000
    parent_pid: int = 0
    stages: bool = True
    background: bool = False

    def __post_init__(self) -> None:
        if self.sample_rate and not RATE_MIN <= self.sample_rate <= RATE_MAX:
            raise ValueError(
                f"sample_rate is {self.sample_rate}; use {RATE_MIN} to {RATE_MAX}, or 0 to switch it off"
            )
        if self.recheck_one_in < 0:
            raise ValueError(f"recheck_one_in is {self.recheck_one_in}; use a count, or 0 to switch it off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """Models, banks and policy of a worker.

    Attributes:
        model: Checkpoint folder.
        bank: Reference bank folder; only the AMN worker reads it.
        calibration: Of the gate and the blend; read when the policy asks for it.
        policy: Escalation policy: name of a preset, or a file.
        tier: Of a fallback worker: `accuracy` or `secondary`.
        decision_log: Where a sample of the AMN worker's decisions goes; None for nowhere.
        slices: Of the shadow worker: slices requests that name no domain; may be missing.
        origin: Folder of models and banks that they come from, for the doctor.
    """

    model: Path
    bank: Path
    calibration: Path = Path("gate_calibration")
    policy: str = "calibrated"
    tier: str = "accuracy"
    decision_log: Path | None = None
    slices: Path = Path("ood_slices")
    origin: str = ""


def artifacts_root() -> Path:
    """Folder of models and banks: the one that AMN_ARTIFACTS names, else the `shipped` one."""
    return Path(os.environ.get("AMN_ARTIFACTS") or shipped("lvm"))


def shipped(name: str) -> Path:
    """A file or folder of `artifacts`: of the current folder, of the checkout, or of the package of models.

    The first one that exists; where there is none, the path in the current folder.
    """
    folders = [Path("artifacts"), Path(__file__).resolve().parents[1] / "artifacts"]
    package = importlib.util.find_spec("amn_queue_models")
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent)
    return next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name)
