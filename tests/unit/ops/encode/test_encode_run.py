"""Runs that encode: what is stored, what goes on after a kill, and encoders that are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import make_encoder, write_documents
from numpy.typing import NDArray
from pyarrow import parquet

import ops.encode.run
from amn.data.readers import read_vectors
from amn.errors import FileRefused
from ops.encode.encoder import Encoder
from ops.encode.run import EncodeRun
from ops.encode.settings import EncodeSettings
from ops.predict.files import open_data
from ops.predict.settings import PredictSettings


class FakeEncoder:
    """Vectors that depend on the text alone; it may be told to break."""

    id, sha256 = "fake", "0" * 64
    breaks_after = 10**9
    texts: list[str]

    def __init__(self, *_: Any) -> None:
        FakeEncoder.texts = []

    def cut(self, texts: Sequence[str]) -> int:
        return sum("long" in text for text in texts)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if len(self.texts) >= self.breaks_after:
            raise KeyboardInterrupt
        self.texts.extend(texts)
        rows = [np.random.default_rng(list(text.encode())).normal(size=768) for text in texts]
        return (np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Encodes the folder `text` with small parts."""
    monkeypatch.setattr(ops.encode.run, "Encoder", FakeEncoder)
    monkeypatch.setattr(ops.encode.run, "PART_ROWS", 100)

    def encode(out: str = "out", **chosen: Any) -> dict[str, Any]:
        names = {"sources": [str(tmp_path / "text")], "out": str(tmp_path / out), "encoder": tmp_path}
        return EncodeRun(EncodeSettings(**(names | chosen)), lambda _: None).work()

    return encode


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.parquet"))}


def test_one_layout_serves_predictions_and_training(tmp_path: Path, run: Run) -> None:
    write_documents(tmp_path / "text", subjects=2, each=4, sentences=30)
    (tmp_path / "text" / "subject0" / "short.txt").write_text("word " * 40)
    summary = run(dtype="float16", keep=["text", "offsets"])
    assert (summary["documents"], summary["rows"]) == (9, 241)
    table = parquet.read_table(tmp_path / "out")
    assert table.column_names == ["doc_id", "position", "domain", "words", "text", "start", "end", "vector"]
    row = table.slice(31, 1).to_pylist()[0]
    text = (tmp_path / "text" / row["doc_id"]).read_text()
    assert row["text"] == " ".join(text[row["start"] : row["end"]].split())
    data = open_data(PredictSettings(sources=[str(tmp_path / "out")], out=str(tmp_path / "predictions")))
    assert (data.form, data.check_order()) == ("documents", 9)
    vectors = read_vectors(tmp_path / "out")
    assert (vectors.encoder_id, len(vectors.vectors)) == ("fake", 240)  # the short one has no window
    assert dict(zip(vectors.article_name.tolist(), vectors.article_domain.tolist(), strict=True)) == {
        f"subject{subject}/{seed:03}.txt": f"subject{subject}" for subject in range(2) for seed in range(4)
    }
    wide = FakeEncoder().encode([row["text"]])[0]
    stored = np.asarray(row["vector"], np.float64)
    assert stored @ wide / np.linalg.norm(stored) > 0.999999


def test_a_run_that_is_broken_off_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(tmp_path / "text", subjects=2, each=5, sentences=30)
    run("whole")
    with monkeypatch.context() as broken:
        broken.setattr(FakeEncoder, "breaks_after", 200)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert list(bytes_of(tmp_path / "out")) == ["part-000000.parquet", "part-000001.parquet"]
    summary = run()
    assert (summary["resumed_rows"], len(FakeEncoder.texts)) == (200, 100)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    run()
    assert FakeEncoder.texts == []


#: A run whose encoder takes its time, as a process of its own.
SLOW = """
import sys, time
import ops.encode.run as run
from test_encode_run import FakeEncoder
from pathlib import Path

class SlowEncoder(FakeEncoder):
    def encode(self, texts):
        time.sleep(0.05)
        return super().encode(texts)

run.Encoder, run.PART_ROWS = SlowEncoder, 100
text, out = sys.argv[1:]
settings = run.EncodeSettings(sources=[text], out=out, encoder=Path(text))
run.EncodeRun(settings, lambda _: None).work()
"""


def test_a_process_that_is_killed_at_any_moment_goes_on_with_the_same_command(
    tmp_path: Path, run: Run
) -> None:
    write_documents(tmp_path / "text", subjects=2, each=10, sentences=30)
    run("whole")
    command = [sys.executable, "-c", SLOW, str(tmp_path / "text"), str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    draw, kills = np.random.default_rng(0), 0
    for _ in range(3):
        process, before = subprocess.Popen(command, env=environment), len(bytes_of(tmp_path / "out"))
        while process.poll() is None and len(bytes_of(tmp_path / "out")) <= before:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        kills += process.wait(30) == -signal.SIGKILL
    assert kills == 3
    assert run()["resumed_rows"] >= 200
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix != ".parquet") == [
        "_manifest.json"
    ]


def test_another_source_or_option_is_no_resumption(tmp_path: Path, run: Run) -> None:
    write_documents(tmp_path / "text", subjects=1, each=2, sentences=30)
    run()
    with pytest.raises(FileRefused, match=r"options.dtype was 'float32' and is 'float16'"):
        run(dtype="float16")
    (tmp_path / "text" / "subject0" / "000.txt").write_text("word " * 20)
    with pytest.raises(FileRefused, match=r"000.txt was .* and is"):
        run()
    assert run(restart=True)["rows"] == 31


@pytest.mark.parametrize("charset", ["utf8x", "hex"])  # the second is a codec, but of no text
def test_an_unknown_charset_is_refused_before_any_work(tmp_path: Path, run: Run, charset: str) -> None:
    write_documents(tmp_path / "text", subjects=1, each=2, sentences=30)
    with pytest.raises(FileRefused, match=f"charset '{charset}' is unknown; use utf-8 or cp1252"):
        run(charset=charset)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("look_s", [0.0, 60.0])  # at the next part, or at the end of a short run
def test_a_source_that_changes_meanwhile_stops_the_run(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, look_s: float
) -> None:
    monkeypatch.setattr(ops.encode.run, "_LOOK_S", look_s)
    write_documents(tmp_path / "text", subjects=2, each=10, sentences=30)
    encode = FakeEncoder.encode

    def with_an_editor(encoder: FakeEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
        if len(encoder.texts) < 100 <= len(encoder.texts) + len(texts):
            (tmp_path / "text" / "subject1" / "009.txt").write_text("word " * 99)
        return encode(encoder, texts)

    monkeypatch.setattr(FakeEncoder, "encode", with_an_editor)
    with pytest.raises(FileRefused, match=r"009.txt was changed while .*; run it again with --restart"):
        run()
    assert (len(FakeEncoder.texts) == 100) == (look_s == 0)


def test_sources_are_looked_at_now_and_then_and_not_for_each_part(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_documents(tmp_path / "text", subjects=2, each=10, sentences=30)
    looks, state_of = [], ops.encode.run.state_of

    def noted(path: Path) -> tuple[int, int]:
        looks.append(path)
        return state_of(path)

    monkeypatch.setattr(ops.encode.run, "PART_ROWS", 3)
    monkeypatch.setattr(ops.encode.run, "state_of", noted)
    run()
    assert len(looks) == 3 * 20  # at first, before the first part, and at the end


def test_chunks_that_are_longer_than_the_encoder_takes_are_counted_also_of_an_earlier_run(
    tmp_path: Path, run: Run
) -> None:
    write_documents(tmp_path / "text", subjects=1, each=2, sentences=30)
    (tmp_path / "text" / "subject0" / "000.txt").write_text("long " * 120)
    assert [run()["cut_rows"], run()["cut_rows"]] == [2, 2]


def test_refused_documents_are_in_the_manifest_and_nothing_else_is_lost(tmp_path: Path, run: Run) -> None:
    write_documents(tmp_path / "text", subjects=1, each=2, sentences=30)
    (tmp_path / "text" / "binary.txt").write_bytes(b"\0")
    (tmp_path / "text" / "empty.txt").write_bytes(b"\n")
    (tmp_path / "text" / "short.txt").write_text("few words")
    summary = run()
    assert summary["codes"] == {"binary": 1, "empty_document": 1, "short_document": 1}
    assert (summary["rows"], summary["documents"]) == (60, 5)
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert [one["name"] for one in manifest["done"]["0"]["refused"]] == [
        "binary.txt",
        "empty.txt",
        "short.txt",
    ]


def test_a_folder_without_any_text_is_refused_with_the_first_reason(tmp_path: Path, run: Run) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"\0")
    with pytest.raises(FileRefused, match=r"hold nothing to encode: a.txt: byte 0 is zero"):
        run()


def test_a_folder_that_names_code_of_others_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="is no folder of sentence-transformers"):
        Encoder(tmp_path)
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "os.path"}]')
    with pytest.raises(FileRefused, match=r"asks for os.path, which is not of sentence-transformers"):
        Encoder(tmp_path)


@pytest.mark.needs("data")
def test_an_encoder_is_known_by_its_files_and_refused_with_another_width(tmp_path: Path) -> None:
    with pytest.raises(FileRefused, match="makes vectors of 64 numbers, and models here take 768"):
        Encoder(make_encoder(tmp_path / "narrow", width=64))
    folder = make_encoder(tmp_path / "wide")
    first = Encoder(folder)
    (folder / "README.md").write_text("a card decides no vectors")
    copy = folder.rename(tmp_path / "elsewhere")
    assert Encoder(copy).id == first.id == f"sentence-transformers@{first.sha256[:12]}"
    assert Encoder(copy, "mine").id == "mine"
    texts = ["bada bede bido.", "fobu fuba lala " * 9]
    assert first.cut([*texts, "bada " * 200]) == 1  # of 96 tokens
    alone, together = np.concatenate([first.encode([text]) for text in texts]), first.encode(texts)
    assert together.shape == (2, 768)
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() < 1e-6
    assert np.abs(alone - together).max() < 1e-5
    (copy / "config.json").write_text("{}")
    with pytest.raises(FileRefused, match="cannot be loaded as an encoder"):
        Encoder(copy)
