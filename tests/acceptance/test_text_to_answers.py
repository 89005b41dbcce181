"""The page docs/text-to-answers.md, run as it stands on a small set, with a tiny encoder made here."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner
from command import Amn, wait_until
from documents import blocks
from encoders import document, make_encoder
from pyarrow import parquet

from amn.errors import CheckpointError
from ops.app import app

#: Less of everything than a person would take.
SMALL = {
    "AMN_TRAIN_EPOCHS": "3",
    "AMN_TRAIN_BATCH_SIZE": "16",
    "AMN_PROMOTE_WINDOWS_MIN": "20",
    "AMN_PROMOTE_NO_LATENCY": "1",
}
SMALL |= {"AMN_EVALUATE_NO_LATENCY": "1", "AMN_UP_WORKERS": "1"}

pytestmark = pytest.mark.needs("data")


def run_here(line: str) -> str:
    """Runs a command of the page in this process, which has torch loaded already."""
    words = shlex.split(line)[1:]
    ended = CliRunner().invoke(app, words, auto_envvar_prefix="AMN", catch_exceptions=False)
    assert ended.exit_code == 0, f"{line}\n{ended.output}"
    return ended.stdout


def write_texts(folder: Path) -> None:
    """Three folders, as on the page; the fewest articles of which a tenth is some."""
    for subject, (name, count) in enumerate({"handbook": 12, "manual": 12, "forum": 3}.items()):
        (folder / name).mkdir(parents=True)
        for seed in range(count):
            (folder / name / f"{seed}.md").write_text(document(subject, seed, 40))


def _vectors_of_another_encoder_are_refused(amn: Amn) -> None:
    with pytest.raises(
        CheckpointError, match=r"is of encoder 'sentence-transformers@.*, and --encoder of 'another'"
    ):
        run_here("amn predict vectors --out other --encoder another --direct")
    table = parquet.read_table(amn.folder / "vectors").slice(0, 80).replace_schema_metadata()
    parquet.write_table(table, amn.folder / "nameless.parquet")
    with pytest.raises(CheckpointError, match=r"the data is of encoder 'another', and \w+@\w+ of 'sent"):
        run_here("amn predict nameless.parquet --out other --encoder another --direct")
    ended = amn("predict", "nameless.parquet", "--out", "other", "--encoder", "another")
    assert ended.code == 1
    assert "of encoder 'another'; this service was trained on 'sentence-transformers@" in ended.err


def _quickstart_shows_the_page_and_makes_what_is_missing(folder: Path, lines: list[str]) -> None:
    command = "amn quickstart texts --encoder encoder --unseen-domain forum"
    assert sorted(run_here(f"{command} --show").splitlines()) == sorted(lines)
    (folder / "models" / "fallback_accuracy").unlink()
    run_here(command)
    assert (folder / "models" / "fallback_accuracy" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_folder_of_text_becomes_a_service_of_its_own_models(
    amn: Amn, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks("docs/text-to-answers.md", "sh")
    lines = "".join(block.text for block in found if block.verb == "by").splitlines()
    steps = "data train train evaluate AMN_ARTIFACTS=models bank calibrate promote promote up predict"
    assert " ".join(line.split()[1] for line in lines) == steps
    write_texts(amn.folder / "texts")
    make_encoder(amn.folder / "made").rename(amn.folder / "encoder")
    monkeypatch.chdir(amn.folder)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    for line in lines[:-2]:
        if line.startswith("export"):
            monkeypatch.setenv(*line.split()[1].split("=", 1))
        else:
            run_here(line)
    _quickstart_shows_the_page_and_makes_what_is_missing(amn.folder, lines)
    amn.environment |= {**SMALL, "AMN_ARTIFACTS": "models"}
    process = amn.start("up")
    try:
        wait_until(lambda: "Ctrl-C drains" in (amn.folder / "up.log").read_text(), 60)
        _the_service_answers_by_these_models(amn, lines[-1])
        _vectors_of_another_encoder_are_refused(amn)
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(40)
    assert code == 0


def _the_service_answers_by_these_models(amn: Amn, line: str) -> None:
    ended = amn(*shlex.split(line)[1:], "--json")
    assert ended.code == 0, ended.err
    summary = json.loads(ended.out)
    assert (summary["rows"], summary["answered"]) == (27 * 40, 27 * 36)
    assert set(summary["failures"]) == {"short_document"}
    trained = json.loads((amn.folder / "runs/amn/checkpoint/manifest.json").read_text())
    assert summary["models"]["model"] == f"amn@{trained['sha256'][:12]}"
    assert trained["encoder_id"].startswith("sentence-transformers@")
