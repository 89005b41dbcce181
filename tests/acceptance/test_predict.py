"""Batch predictions on a real service: every form of a file, kills, stalls, jobs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import redis
from command import SAMPLE, Amn, address
from pyarrow import feather, parquet
from waiting import wait_until

pytestmark = pytest.mark.timeout(300)


LENGTH, ROWS = 25, 2_750


def documents(rows: int = ROWS) -> pa.Table:
    """Rows of the shipped sample in documents of 25 vectors; after 110 they repeat under other ids."""
    stored = np.load(SAMPLE)
    number = np.arange(rows)
    return pa.table(
        {
            "doc_id": number // LENGTH,
            "position": number % LENGTH,
            "domain": np.where(number // LENGTH % 2, "news", "law"),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(stored["vectors"][number % ROWS].astype("f4").reshape(-1)), 768
            ),
        }
    )


def predictions(folder: Path) -> pa.Table:
    return parquet.read_table(folder)


def parts(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("_")}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    parquet.write_table(documents(), tmp_path / "in.parquet", row_group_size=500)
    return tmp_path / "in.parquet"


def test_a_file_has_the_same_answers_in_every_run_and_without_a_server(
    service: Amn, tmp_path: Path, source: Path
) -> None:
    summaries = []
    for name, extra in (("a", []), ("b", []), ("direct", ["--direct"])):
        ended = service("predict", source, "--out", tmp_path / name, "--json", *extra)
        assert ended.code == 0, ended.err
        summaries.append(json.loads(ended.out))
    assert parts(tmp_path / "a") == parts(tmp_path / "b") == parts(tmp_path / "direct")
    assert summaries[0]["models"] == summaries[2]["models"]
    assert 0 < summaries[0]["escalated"] <= 0.195 * summaries[0]["answered"]
    assert summaries[0]["failures"] == {"short_document": ROWS // LENGTH * 4}
    assert list(summaries[0]["cosines"]) == ["all", "law", "news"]
    found = summaries[0]["cosines"]["all"]
    assert found["rows"] == ROWS // LENGTH * (LENGTH - 5)
    assert found["cosine"] > found["cosine_amn"] > found["cosine_mean"] > found["cosine_last"]


def test_every_form_of_a_file_gives_the_same_predictions(service: Amn, tmp_path: Path, source: Path) -> None:
    table = documents()
    vectors = np.stack(table["vector"].to_numpy())
    feather.write_feather(table, tmp_path / "in.feather")
    np.savez(tmp_path / "in.npz", vectors=vectors, doc_id=table["doc_id"], position=table["position"])
    good = np.array([row for row in range(len(vectors)) if row % LENGTH >= 4])
    np.save(tmp_path / "in.npy", np.stack([vectors[row - 4 : row + 1] for row in good]))
    assert service("predict", source, "--out", tmp_path / "out", "--fast").code == 0
    wanted = np.stack(predictions(tmp_path / "out")["prediction"].take(pa.array(good)).to_numpy())
    for name in ("in.feather", "in.npz"):
        ended = service("predict", tmp_path / name, "--out", tmp_path / f"out-{name}", "--fast")
        assert ended.code == 0, ended.err
        found = predictions(tmp_path / f"out-{name}")["prediction"].take(pa.array(good))
        np.testing.assert_array_equal(np.stack(found.to_numpy()), wanted)
    ended = service("predict", tmp_path / "in.npy", "--out", tmp_path / "out.npy", "--fast")
    assert ended.code == 0, ended.err
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), wanted)
    assert not (tmp_path / ".out.npy.parts").exists()


def killed_often(service: Amn, source: Path, out: Path, kills: int, seed: int) -> int:
    """Kills `amn predict` at random moments, then lets it end; returns how often it was really killed."""
    draw, done = random.Random(seed), 0
    for _ in range(kills):
        wanted = len(list(out.glob("part-*"))) + draw.randrange(0, 30 // kills + 1)
        command = service.command("predict", source, "--out", out)
        process = subprocess.Popen(
            command, cwd=service.folder, env=service.environment, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and (
            not (out / "_manifest.json").exists() or len(list(out.glob("part-*"))) < wanted
        ):
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        done += process.poll() is None
        process.kill()
        process.wait()
    ended = service("predict", source, "--out", out)
    assert ended.code == 0, ended.err
    return done


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_at_random_moments_ends_with_the_bytes_of_an_unbroken_one(
    service: Amn, tmp_path: Path, kills: int
) -> None:
    parquet.write_table(documents(), tmp_path / "in.parquet", row_group_size=100)
    source = tmp_path / "in.parquet"
    assert service("predict", source, "--out", tmp_path / "whole").code == 0
    assert killed_often(service, source, tmp_path / "out", kills, seed=kills) >= kills // 2
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_a_run_waits_while_no_worker_answers_and_goes_on_by_itself(
    service: Amn, tmp_path: Path, source: Path
) -> None:
    workers = [one["pid"] for one in json.loads(service("doctor", "--json").out)["workers"]]
    assert service("predict", source, "--out", tmp_path / "whole").code == 0
    log = tmp_path / "log"
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        with log.open("w") as file:
            command = service.command("predict", source, "--out", tmp_path / "out")
            process = subprocess.Popen(command, cwd=service.folder, env=service.environment, stderr=file)
        wait_until(lambda: "waiting" in log.read_text())
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    assert process.wait(120) == 0, log.read_text()
    assert parts(tmp_path / "out") == parts(tmp_path / "whole")


def test_a_run_that_may_not_wait_stops_and_can_go_on(service: Amn, tmp_path: Path, source: Path) -> None:
    ended = service("predict", source, "--out", tmp_path / "out", "--queue", "nobody", "--on-stall", 3)
    assert ended.code == 1
    assert "no answers for" in ended.err
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["done"] == {}
    with redis.Redis.from_url(address(service.folder)) as client:  # nobody will ever take them
        client.delete(*client.scan_iter("amn:{nobody}:*", count=1000))
    assert service("predict", source, "--out", tmp_path / "out").code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.needs("mount")
def test_a_disk_without_room_is_refused_or_ends_with_what_is_done(
    service: Amn, tmp_path: Path, source: Path, small_disk: Path
) -> None:
    ended = service("predict", source, "--out", small_disk / "out")
    assert ended.code == 1
    assert "MB free, and 2,750 rows need about" in ended.err
    parquet.write_table(documents(1_800), tmp_path / "less.parquet", row_group_size=300)
    with (small_disk / "filler").open("wb") as file:
        command = service.command("predict", tmp_path / "less.parquet", "--out", small_disk / "out")
        process = subprocess.Popen(
            command, cwd=service.folder, env=service.environment, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: (small_disk / "out" / "_manifest.json").exists())
        file.write(bytes(5_000_000))
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "cannot be written: No space left on device; what is done stays" in said
    kept = parts(small_disk / "out")
    assert 0 < len(kept) < 6
    (small_disk / "filler").unlink()
    assert service("predict", tmp_path / "less.parquet", "--out", small_disk / "out").code == 0
    assert len(parts(small_disk / "out")) == 6
    assert kept.items() <= parts(small_disk / "out").items()


def test_a_job_predicts_is_watched_and_is_seen_by_rq_info(service: Amn, tmp_path: Path, source: Path) -> None:
    submitted = service("jobs", "submit", "predict", source, "--out", tmp_path / "job", "--fast")
    assert submitted.code == 0, submitted.err
    job = submitted.out.strip()
    watched = service("jobs", "watch", job)
    assert watched.code == 0, watched.err
    shown: dict[str, Any] = json.loads(service("jobs", "show", job, "--json").out)
    assert (shown["status"], shown["done"], shown["rows"]) == ("finished", ROWS, ROWS)
    assert shown["result"]["rows"] == ROWS
    assert service("predict", source, "--out", tmp_path / "command", "--fast").code == 0
    assert parts(tmp_path / "job") == parts(tmp_path / "command")
    assert job in service("jobs", "list").out
    url = address(service.folder)
    with redis.Redis.from_url(url) as client:
        stored = client.hget(f"rq:job:{job}", "data")
        assert json.loads(zlib.decompress(stored))[0] == "ops.jobs.predict"  # type: ignore[arg-type]
    command = [sys.executable, "-m", "rq.cli", "info", "--url", url]
    info = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "amn-jobs" in info.stdout + info.stderr
    ended = service("jobs", "cancel", job)
    assert ended.code == 1
    assert "waits or runs: it is finished" in ended.err


def test_shards_are_what_one_run_gives(service: Amn, tmp_path: Path, source: Path) -> None:
    started_s = time.monotonic()
    processes = [
        subprocess.Popen(
            service.command("predict", source, "--out", tmp_path / "shards", "--shard", f"{i}/3"),
            cwd=service.folder,
            env=service.environment,
            stderr=subprocess.DEVNULL,
        )
        for i in (1, 2, 3)
    ]
    assert [process.wait(120) for process in processes] == [0, 0, 0], time.monotonic() - started_s
    assert service("predict", source, "--out", tmp_path / "whole").code == 0
    assert parts(tmp_path / "shards") == parts(tmp_path / "whole")
