"""A model that is promoted while a file is under way, by a real `amn up`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from command import Amn
from recalibrated import recalibrated
from test_predict import documents, parts, predictions
from waiting import wait_until

from workers.pool.served import identity

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
GROUPS, GROUP = 8, 1_250
ROWS = GROUPS * GROUP


@pytest.fixture
def up(tmp_path: Path, artifacts: Path) -> Iterator[Amn]:
    """A service of its own, whose models a test may move."""
    running = Amn(tmp_path)
    running.environment["AMN_ARTIFACTS"] = str(artifacts)
    process = running.start("up", "--workers", 1)
    try:
        wait_until(lambda: "Ctrl-C drains" in (tmp_path / "up.log").read_text() or process.poll() is not None)
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


def models_served(up: Amn) -> set[str]:
    return {one["model"] for one in json.loads(up("doctor", "--json").out)["workers"] if one["kind"] == "amn"}


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    return found


def test_a_model_that_is_promoted_while_a_file_is_under_way_is_named_by_part(
    up: Amn, tmp_path: Path, artifacts: Path, twin: Path
) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out"
    parquet.write_table(documents(ROWS), source, row_group_size=GROUP)
    before, after = identity(artifacts / "production_model"), identity(twin)
    assert up("predict", source, "--out", tmp_path / "before").code == 0
    process = subprocess.Popen(
        up.command("predict", source, "--out", out, "--json"),
        cwd=up.folder,
        env=up.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (out / "part-000000.parquet").exists())
    process.send_signal(signal.SIGSTOP)  # before it sent the last row groups
    calibration = recalibrated(tmp_path / "gate_twin", amn=after)
    promoted = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "ops.cli", "promote", twin, "--root", artifacts),
            *("--calibration", calibration, "--no-latency"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert promoted.returncode == 0, promoted.stderr
    wait_until(lambda: models_served(up) == {after})
    process.send_signal(signal.SIGCONT)
    said, noted = process.communicate(timeout=200)
    assert process.returncode == 0, noted
    sets = json.loads(said)["answers_of"]
    assert {one["models"]["calibration"] for one in sets}.isdisjoint({"", "none"})
    assert [(one["models"]["model"], one["rows"]) for one in sets] == [
        (before, sets[0]["parts"] * GROUP),
        (after, ROWS - sets[0]["parts"] * GROUP),
    ]
    stored = manifest(out)
    assert stored["models"]["model"] == before
    later = {int(number) for number, row in stored["done"].items() if "models" in row}
    assert {stored["done"][str(number)]["models"]["model"] for number in later} == {after}
    assert later == set(range(sets[0]["parts"], GROUPS))
    assert predictions(out).num_rows == ROWS
    # Each part is as a run by its models alone makes it.
    again = up("predict", source, "--out", tmp_path / "after", "--on-change", "stop")
    assert again.code == 0, again.err
    wanted = [parts(tmp_path / ("after" if number in later else "before")) for number in range(GROUPS)]
    names = [f"part-{number:06}.parquet" for number in range(GROUPS)]
    assert [parts(out)[name] for name in names] == [
        whole[name] for whole, name in zip(wanted, names, strict=True)
    ]
