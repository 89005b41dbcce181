"""The environment that the figures depend on, and the state that a run leaves behind."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ops.local.server import find_program


def pin(process: int, cores: set[int]) -> None:
    """Keeps a process, with all its threads, on these cores, where the system can and has them."""
    if not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2:
        return
    for thread in os.listdir(f"/proc/{process}/task"):
        os.sched_setaffinity(int(thread), cores)


@contextmanager
def pinned(cores: set[int]) -> Iterator[None]:
    """Keeps this process, and what it starts meanwhile, on these cores."""
    everywhere = set(range(os.cpu_count() or 1))
    pin(os.getpid(), cores)
    try:
        yield
    finally:
        pin(os.getpid(), everywhere)


def cpu_seconds(process: int) -> float:
    """User and system time of all its threads so far, to the microsecond; NaN where that cannot be asked."""
    clock = ctypes.c_int()
    try:  # as `man 3 clock_getcpuclockid` has it; /proc counts in hundredths of a second
        if ctypes.CDLL(None).clock_getcpuclockid(process, ctypes.byref(clock)) == 0:
            return time.clock_gettime(clock.value)
    except (AttributeError, OSError, TypeError):  # TypeError: Windows
        pass
    return float("nan")


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """Median, least and most."""
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def free_port() -> int:
    """A loopback TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment() -> dict[str, object]:
    """Machine, versions, what was measured and when, and the load before the first run."""
    import torch

    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "torch": torch.__version__,
        "server": _said([str(find_program()), "--version"], r"v=(\S+)"),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load_before": load,
    }


def _commit() -> str:
    """Returns the commit of this checkout, marked if its code was changed since."""
    commit = _said(["git", "rev-parse", "--short", "HEAD"], r"(\w+)")
    changed = _said(["git", "diff", "--name-only", "HEAD", "--", "*.py", "*.c", "*.h", "*.lua"], r"(\S+)")
    return commit if changed == "unknown" else f"{commit} with changes"


def _said(command: Sequence[str], pattern: str) -> str:
    """A word of what a program prints; "unknown" when there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    found = re.search(pattern, done.stdout)
    return found.group(1) if found else "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def resident_mb(process: int) -> float:
    """Resident memory now; NaN where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
