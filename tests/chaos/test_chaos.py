"""The short form of `make chaos`: a fixed seed, every kind of fault, every request accounted for."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from .settings import KINDS

ROOT = __file__.rsplit("/tests/", 1)[0]
SEED = 7


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_request_ends_once_whatever_is_killed_stopped_or_cut_off() -> None:
    command = [sys.executable, "-m", "tests.chaos", "--json", "--seed", str(SEED), "--seconds", "26"]
    command += ["--rate", "150", "--every", "0.7"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=560, check=False)
    assert ended.stdout, ended.stderr[-4000:]
    report = json.loads(ended.stdout)
    broken = [name for name, held in report["checks"].items() if not held]
    assert not broken, ended.stderr[-6000:]
    assert ended.returncode == 0
    assert set(report["faults"]) - {"nobody"} == set(KINDS)
    accepted = sum(producer["accepted"] for producer in report["producers"])
    assert accepted > 500
    assert any(name == "submit:queue_full" for one in report["producers"] for name in one["counts"])
