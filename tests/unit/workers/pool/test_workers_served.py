"""What the links name, and copies of them that do not move."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from amn.evaluation.promotion import move
from workers.commands import worker
from workers.pool.served import Served, identity, pin, read_links, served_by
from workers.pool.settings import PoolSettings


def model(folder: Path, digest: str = "0123456789abcdef") -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"name": "amn", "sha256": digest}))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two links, a folder of models, a history, a broken link and a half-made one."""
    root = tmp_path / "lvm"
    model(root / "models" / "a")
    model(root / "models" / "b")
    (root / "production_model").symlink_to("models/a")
    (root / "fallback_accuracy").symlink_to("models/b")
    (root / "fallback_secondary").symlink_to("models/nothing")
    (root / ".production_model.17").symlink_to("models/b")
    (root / "production_model.history").write_text("[]")
    return root


def test_only_links_to_something_count(root: Path) -> None:
    names = {name: target for name, target, _ in read_links(root).links}
    assert names == {
        "production_model": str(root / "models" / "a"),
        "fallback_accuracy": str(root / "models" / "b"),
    }


def test_a_moved_link_concerns_those_who_read_it(root: Path) -> None:
    before = read_links(root)
    move(root / "production_model", root / "models" / "b")
    after = read_links(root)
    assert after.of("amn") != before.of("amn")
    assert after.of("shadow") != before.of("shadow")
    assert after.of("fallback") == before.of("fallback")
    move(root / "production_model", root / "models" / "a")
    assert read_links(root) == before


def test_a_model_that_is_replaced_in_place_is_another_one(root: Path) -> None:
    before = read_links(root)
    os.utime(root / "models" / "a" / "manifest.json", (1, 1))
    assert read_links(root).of("amn") != before.of("amn")


def test_a_pinned_copy_stays_when_the_links_move(root: Path, tmp_path: Path) -> None:
    pinned = pin(read_links(root), root, tmp_path / "pins" / "0")
    move(root / "production_model", root / "models" / "b")
    assert (pinned / "production_model").resolve() == root / "models" / "a"
    (pinned / "production_model").unlink()
    pin(Served(read_links(root).links), root, pinned)  # somebody tidied up: it is made again
    assert (pinned / "production_model").resolve() == root / "models" / "b"
    # What is missing leads to where it should be, so that a worker's message names that place.
    assert os.path.realpath(pinned / "reference_bank") == str(root / "reference_bank")


def test_a_folder_that_is_not_there_names_nothing(tmp_path: Path) -> None:
    assert read_links(tmp_path / "nowhere").links == ()


def test_models_and_banks_say_who_they_are(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bank").mkdir()
    (tmp_path / "bank" / "manifest.json").write_text('{"bank_id": "bank_1"}')
    assert identity(root / "production_model") == "amn@0123456789ab"
    assert served_by(root / "production_model", tmp_path / "bank") == {
        "model": "amn@0123456789ab",
        "bank": "bank_1",
    }


def test_a_pool_tells_its_workers_their_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1")
    settings = PoolSettings(url="redis://127.0.0.1", lease_ms=700, sample_rate=0.02)
    command = settings.command("amn", tmp_path)
    parsed = worker.commands["amn"].make_context("amn", command[command.index("amn") + 1 :])
    assert (parsed.params["lease_ms"], parsed.params["sample_rate"]) == (700, 0.02)
