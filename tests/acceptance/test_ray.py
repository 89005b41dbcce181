"""The example for Ray, as docs/files.md calls it: the rows of `amn predict`, by a pool of actors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, Amn
from pyarrow import parquet
from test_predict import LENGTH, ROWS, documents

pytestmark = [pytest.mark.slow, pytest.mark.needs("ray"), pytest.mark.timeout(180)]


def by_ray(folder: Path, source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Runs the example on a Ray of its own with two workers, which ends with it."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    local = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    example = ROOT / "examples" / "ray_predict.py"
    return subprocess.run(
        [sys.executable, example, source, "--out", out, "--actors", "2"],
        cwd=folder,
        env={**local, **quiet, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_two_actors_of_ray_write_the_rows_of_a_direct_run_although_row_groups_cut_documents(
    tmp_path: Path,
) -> None:
    source = tmp_path / "in.parquet"
    group = 8 * LENGTH + 7
    parquet.write_table(documents(), source, row_group_size=group)
    ended = Amn(tmp_path)("predict", source, "--out", tmp_path / "direct", "--direct")
    assert ended.code == 0, ended.err
    ran = by_ray(tmp_path, source, tmp_path / "ray")
    assert ran.returncode == 0, ran.stderr
    wanted, found = parquet.read_table(tmp_path / "direct"), parquet.read_table(tmp_path / "ray")
    assert found.sort_by("row").equals(wanted)
    assert wanted["prediction"].null_count == ROWS // LENGTH * 4
    assert len(list((tmp_path / "ray").glob("*.parquet"))) > 2

    again = by_ray(tmp_path, source, tmp_path / "ray")
    assert again.returncode != 0
    assert "name a new or an empty folder" in again.stderr
