"""A run writes parts that appear whole, goes on where it was broken off, and answers each file in one way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from amn.errors import FileRefused
from ops.errors import RunStopped
from ops.predict import parts, sources
from ops.predict.answers import Answers
from ops.predict.columns import ColumnNames
from ops.predict.dataset import DataSet
from ops.predict.engines import Waits, chosen
from ops.predict.files import open_data, predict_files
from ops.predict.parts import Target, differences
from ops.predict.report import cosines_by_domain
from ops.predict.run import FileRun
from ops.predict.settings import PredictSettings
from ops.predict.windows import RowBlock
from producer import Windows


class FakeEngine:
    """AMN gives the last vector of a context, a fallback the mean; a gain is the first number of a context.

    Attributes:
        seen: Rows that were asked for.    die_after: Rows after which it raises.
    """

    def __init__(self, die_after: int = 10**9, model: str = "m@1") -> None:
        self.seen, self.die_after, self.model = 0, die_after, model
        self.models: dict[str, str] = {}

    def fast(self, windows: Windows) -> Waits:
        contexts = windows.contexts()
        self.seen += len(contexts)
        if self.seen > self.die_after:
            raise KeyboardInterrupt
        answers = Answers(len(contexts))
        answers.vectors = np.ascontiguousarray(contexts[:, -1], np.float32)
        answers.gains = contexts[:, 0, 0].astype(np.float32)
        answers.confidences[:] = 0.5
        answers.candidates = answers.gains > 0
        answers.served_by[:] = "amn"
        answers.sheds[answers.candidates] = "batch"
        answers.models = {"model": self.model}
        return lambda: answers

    def slow(self, windows: Windows) -> Waits:
        contexts = windows.contexts()
        answers = Answers(len(contexts))
        mean = contexts.mean(axis=1, dtype=np.float32)
        answers.vectors = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        answers.served_by[:] = "slow"
        return lambda: answers


def units(count: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(count, 768)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def data_set(folder: Path, rows: int = 600, group: int = 100, **changes: Any) -> DataSet:
    lengths = [20] * (rows // 20)
    columns: dict[str, Any] = {
        "doc_id": np.repeat([f"d{i}" for i in range(len(lengths))], lengths),
        "position": np.concatenate([np.arange(length) for length in lengths]),
        "domain": np.repeat(["news", "law"], rows // 2),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(units(rows).reshape(-1)), 768),
        "title": [f"t{i}" for i in range(rows)],
    }
    parquet.write_table(pa.table({**columns, **changes}), folder / "in.parquet", row_group_size=group)
    return DataSet.of([sources.open_file(folder / "in.parquet")], ColumnNames(carried=("title",)))


def done(data: DataSet, folder: Path, engine: Any = None, **settings: Any) -> FileRun:
    chosen = PredictSettings(sources=["in.parquet"], out="out", **settings)
    with Target(folder, chosen.shard) as target:
        run = FileRun(data, target, engine or FakeEngine(), chosen)
        run.begin()
        run.work(lambda _: None)
    return run


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*"))}


def test_a_part_has_a_row_for_each_row_of_the_input_in_its_order(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    run = done(data, tmp_path / "out")
    table = parquet.read_table(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("part-*"))) == 6
    assert table["row"].to_pylist() == list(range(600))
    assert table["title"].to_pylist() == [f"t{i}" for i in range(600)]
    short = np.array(table["error_code"].to_pylist()) == "short_document"
    assert short.sum() == run.progress.failed == 30 * 4
    assert table["prediction"].is_null().to_numpy().tolist() == short.tolist()
    good = table.filter(table["error_code"].is_null())
    amn = good.filter(pa.compute.equal(good["served_by"], "amn"))
    vectors = np.stack(amn["prediction"].to_pylist())
    np.testing.assert_array_equal(vectors, units(600)[np.array(amn["row"].to_pylist())])


def test_the_share_of_a_block_goes_to_a_fallback_the_best_by_gain(tmp_path: Path) -> None:
    run = done(data_set(tmp_path, group=600), tmp_path / "out", share=0.1)
    table = parquet.read_table(tmp_path / "out")
    slow = table.filter(pa.compute.equal(table["served_by"], "slow"))
    assert slow.num_rows == run.progress.escalated == 48, "a tenth of the 480 rows that have an answer"
    gains = np.array([units(600)[row - 4, 0] for row in range(4, 600)])
    good = np.array([row for row in range(4, 600) if row % 20 >= 4])
    best = good[np.argsort(-gains[good - 4])[:48]]
    assert sorted(slow["row"].to_pylist()) == sorted(best.tolist())
    assert set(slow["shed"].to_pylist()) == {""}


def test_equal_gains_are_chosen_by_confidence_then_by_row() -> None:
    answers = Answers(5)
    answers.candidates[:] = [True, True, False, True, True]
    answers.gains[:] = 0.25
    answers.confidences[:] = [0.9, 0.2, 0.0, 0.2, 0.3]
    assert chosen(answers, 0.6).tolist() == [1, 3, 4]
    assert chosen(answers, 0.2).tolist() == [1]
    assert chosen(answers, 0.0).tolist() == []


@pytest.mark.parametrize("die_after", [1, 90, 150, 310, 479])
def test_a_run_that_was_broken_off_goes_on_and_gives_the_same_bytes(tmp_path: Path, die_after: int) -> None:
    data = data_set(tmp_path)
    done(data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        done(data, tmp_path / "out", FakeEngine(die_after))
    assert not list((tmp_path / "out").glob(".part*"))
    engine, before = FakeEngine(), len(bytes_of(tmp_path / "out"))
    run = done(data, tmp_path / "out", engine)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert run.progress.skipped == before * 100
    assert engine.seen == (600 - before * 100) // 20 * 16
    manifests = [json.loads((tmp_path / name / "_manifest.json").read_text()) for name in ("out", "whole")]
    assert manifests[0] == manifests[1]


def test_what_is_done_is_kept_by_a_line_a_part_however_many_parts_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, written = data_set(tmp_path, group=10), []
    monkeypatch.setattr(parts, "write_whole", lambda path, text: written.append(path.write_text(text)))
    done(data, tmp_path / "whole")
    assert len(written) == 2, "at the begin and at the end, and not for each of 60 parts"
    assert not list((tmp_path / "whole").glob("*.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        done(data, tmp_path / "out", FakeEngine(die_after=300))
    [lines] = (tmp_path / "out").glob("_manifest.jsonl")
    finished = len(lines.read_text().splitlines())
    with lines.open("a") as file:
        file.write('{"number": 55, "row": {"ro')  # killed while it wrote
    again = FakeEngine(model="m@2")
    with pytest.raises(RunStopped, match="model was m@1 and is m@2 now"):
        done(data, tmp_path / "out", again)
    assert 25 < finished < 40
    engine = FakeEngine()
    run = done(data, tmp_path / "out", engine)
    assert (run.progress.skipped, run.progress.done) == (10 * finished, 600)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert sorted(json.loads((tmp_path / "out" / "_manifest.json").read_text())["done"], key=int) == [
        str(number) for number in range(60)
    ]


def test_a_vector_of_zeros_is_named_as_such_where_others_are_scaled(tmp_path: Path) -> None:
    contexts = units(50 * 5).reshape(50, 5, 768)
    contexts[3, 2] = 0
    np.save(tmp_path / "in.npy", contexts)
    done(
        DataSet.of([sources.open_file(tmp_path / "in.npy")], ColumnNames()), tmp_path / "out", normalize=True
    )
    told = parquet.read_table(tmp_path / "out")["error_message"].to_pylist()
    assert [text for text in told if text] == ["context vector 2 is all zeros; it has no direction"]


def test_what_was_read_before_a_row_group_that_cannot_be_read_is_answered_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, read = data_set(tmp_path), DataSet.blocks

    def blocks(self: DataSet, group: sources.RowGroup) -> Iterator[RowBlock]:
        if group.number == 3:
            raise FileRefused("row group 3 cannot be read")
        return read(self, group)

    done(data, tmp_path / "whole")
    monkeypatch.setattr(DataSet, "blocks", blocks)
    with pytest.raises(FileRefused, match="row group 3 cannot be read"):
        done(data, tmp_path / "out")
    assert bytes_of(tmp_path / "out") == dict(list(bytes_of(tmp_path / "whole").items())[:3])


def test_a_file_that_is_written_while_it_is_read_ends_the_run_and_only_whole_earlier_parts_stay(
    tmp_path: Path,
) -> None:
    data = data_set(tmp_path)

    class Engine(FakeEngine):
        def fast(self, windows: Windows) -> Waits:
            if self.seen > 250:
                os.utime(tmp_path / "in.parquet", ns=(0, 0))
            return super().fast(windows)

    done(data, tmp_path / "whole")
    with pytest.raises(FileRefused, match=r"in.parquet was changed while it was read; .* --restart"):
        done(data, tmp_path / "out", Engine())
    kept = bytes_of(tmp_path / "out")
    assert 0 < len(kept) < 6
    assert kept.items() <= bytes_of(tmp_path / "whole").items()
    assert not list((tmp_path / "out").glob(".part-*"))
    with pytest.raises(FileRefused, match=r"inputs\[0\].mtime_ns was .* begin anew with --restart"):
        done(DataSet.of([sources.open_file(tmp_path / "in.parquet")], data.columns), tmp_path / "out")


def test_no_more_than_two_row_groups_are_under_way_at_once(tmp_path: Path) -> None:
    data, seen = data_set(tmp_path), []

    class Engine(FakeEngine):
        def fast(self, windows: Windows) -> Waits:
            seen.append(len(bytes_of(tmp_path / "out")))
            return super().fast(windows)

    done(data, tmp_path / "out", Engine())
    assert seen == [0, 0, 1, 2, 3, 4]


def test_shards_together_give_what_one_run_gives(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    done(data, tmp_path / "whole")
    for i in range(3):
        done(data, tmp_path / "out", shard=f"{i + 1}/3")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_another_input_or_other_options_are_refused_and_restart_begins_anew(tmp_path: Path) -> None:
    first = data_set(tmp_path)
    done(first, tmp_path / "out")
    with pytest.raises(
        FileRefused, match=r"holds a run of something else: options.share was 0.195 and is 0.1"
    ):
        done(first, tmp_path / "out", share=0.1)
    other = data_set(tmp_path, rows=400)
    with pytest.raises(FileRefused, match=r"inputs\[0\].bytes was .* begin anew with --restart"):
        done(other, tmp_path / "out")
    done(other, tmp_path / "out", restart=True)
    assert len(bytes_of(tmp_path / "out")) == 4


def test_answers_of_another_model_are_not_mixed_in(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        done(data, tmp_path / "out", FakeEngine(200))
    for on_change in ("", "stop"):
        with pytest.raises(
            RunStopped, match=r"model was m@1 and is m@2 now, and the target holds .* --restart"
        ):
            done(data, tmp_path / "out", FakeEngine(model="m@2"), on_change=on_change)
    done(data, tmp_path / "out", FakeEngine())


def test_a_row_that_breaks_the_contract_fails_alone_and_says_why(tmp_path: Path) -> None:
    contexts = units(50 * 5).reshape(50, 5, 768)
    contexts[3, 2, 5], contexts[7] = np.nan, contexts[7] * 3
    np.save(tmp_path / "in.npy", contexts)
    data = DataSet.of([sources.open_file(tmp_path / "in.npy")], ColumnNames())
    run = done(data, tmp_path / "out")
    rows = parquet.read_table(tmp_path / "out").drop(["prediction"]).to_pylist()
    failed = {row["row"]: (row["error_code"], row["error_message"]) for row in rows if row["error_code"]}
    assert {row: code for row, (code, _) in failed.items()} == {3: "not_finite", 7: "bad_norm"}
    assert "norm" in failed[7][1]
    assert run.progress.codes == {"not_finite": 1, "bad_norm": 1}
    assert done(data, tmp_path / "scaled", normalize=True).progress.codes == {"not_finite": 1}


def test_a_bad_vector_of_a_document_spoils_the_contexts_that_hold_it_unless_it_can_be_scaled(
    tmp_path: Path,
) -> None:
    vectors = units(60)
    vectors[30] *= 2
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 768)
    data = data_set(tmp_path, 60, 60, vector=column)
    for normalize, spoilt in ((False, [30, 31, 32, 33, 34]), (True, [])):
        out = tmp_path / f"out-{normalize}"
        done(data, out, normalize=normalize, share=0.0)
        rows = parquet.read_table(out)
        bad = rows.filter(pa.compute.equal(rows["error_code"], "bad_norm"))
        assert bad["row"].to_pylist() == spoilt
        assert all("norm 2; it must be 1" in text for text in bad["error_message"].to_pylist())
        good = rows.filter(pa.compute.is_null(rows["error_code"]))
        found = np.stack(good["prediction"].to_pylist())
        np.testing.assert_allclose(found, units(60)[np.array(good["row"].to_pylist())], atol=1e-6)


def test_too_many_failed_rows_stop_a_run_that_can_go_on(tmp_path: Path) -> None:
    contexts = units(60 * 5).reshape(60, 5, 768) * 2
    np.save(tmp_path / "in.npy", contexts)
    data = DataSet.of([sources.open_file(tmp_path / "in.npy")], ColumnNames())
    for limit in ("10", "50%"):
        with pytest.raises(
            RunStopped, match=r"60 rows failed \(bad_norm 60\), more than the \d+ of --failures-max"
        ):
            done(data, tmp_path / f"out{limit}", failures_max=limit)
    done(data, tmp_path / "out10", failures_max="60")


def test_two_runs_into_one_target_at_once_are_refused(tmp_path: Path) -> None:
    with (
        Target(tmp_path / "out"),
        pytest.raises(FileRefused, match="another run writes to"),
        Target(tmp_path / "out"),
    ):
        pass
    with Target(tmp_path / "out"):
        pass


def test_a_disk_without_room_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    engine = FakeEngine()
    with pytest.raises(FileRefused, match=r"has 1 MB free, and 600 rows need about 2 MB"):
        done(data_set(tmp_path), tmp_path / "out", engine)
    assert engine.seen == 0


def test_an_array_needs_room_beside_the_parts_that_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=int(60 * (768 * 4 + 120) * 1.05) + 60 * 768 * 2)
    monkeypatch.setattr("ops.predict.parts.shutil.disk_usage", lambda _: free)
    np.save(tmp_path / "in.npy", units(60 * 5).reshape(60, 5, 768))
    settings = PredictSettings(sources=[str(tmp_path / "in.npy")], out=str(tmp_path / "out.npy"))
    with pytest.raises(FileRefused, match="60 rows need about"):
        predict_files(settings, open_data(settings), FakeEngine(), lambda _: None)
    parts = PredictSettings(sources=[str(tmp_path / "in.npy")], out=str(tmp_path / "out"))
    predict_files(parts, open_data(parts), FakeEngine(), lambda _: None)


def test_cosines_are_told_by_domain_with_intervals_by_document(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    done(data, tmp_path / "out", share=0.0)
    found = cosines_by_domain(sorted((tmp_path / "out").glob("part-*")), "doc_id", "domain")
    assert list(found) == ["all", "news", "law"]
    vectors, rows = units(600), np.array([row for row in range(599) if 4 <= row % 20 < 19])
    truth = np.einsum("nd,nd->n", vectors[rows], vectors[rows + 1])
    assert found["all"]["rows"] == len(rows)
    assert found["all"]["documents"] == 30
    assert found["all"]["cosine"] == found["all"]["cosine_last"] == pytest.approx(truth.mean(), abs=1e-5)
    low, high = found["all"]["interval"]
    by_document = truth.reshape(30, 15).mean(axis=1)
    error = by_document.std() / np.sqrt(30)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.01)


def test_begins_of_documents_are_no_failures_that_stop_a_run(tmp_path: Path) -> None:
    run = done(data_set(tmp_path), tmp_path / "out", failures_max="0")
    assert run.progress.codes == {"short_document": 120}


def test_a_run_that_failures_stopped_stops_again_before_any_work(tmp_path: Path) -> None:
    parquet.write_table(
        pa.table({"context": pa.FixedSizeListArray.from_arrays(pa.array(units(300).reshape(-1) * 2), 3840)}),
        tmp_path / "in.parquet",
        row_group_size=20,
    )
    data = DataSet.of([sources.open_file(tmp_path / "in.parquet")], ColumnNames())
    for _ in range(2):
        with pytest.raises(RunStopped, match="20 rows failed"):
            done(data, tmp_path / "out", failures_max="10")
    assert len(bytes_of(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("text", "limit"), [("", None), ("0", 0), ("7", 7), ("0%", 0), ("2%", 0.02), ("100%", None)]
)
def test_a_limit_of_failures_is_a_number_or_a_share(text: str, limit: float | None) -> None:
    assert PredictSettings(sources=["a"], out="b", failures_max=text).failures_limit() == limit


@pytest.mark.parametrize(
    "wrong",
    [{"failures_max": text} for text in ("x", "-1", "nan", "inf", "1.5", "101%")]
    + [{"stall_s": value} for value in (float("nan"), float("inf"), -1.0)],
)
def test_a_setting_without_a_meaning_is_refused(wrong: Any) -> None:
    with pytest.raises(FileRefused):
        PredictSettings(sources=["a"], out="b", **wrong)


def test_a_target_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(FileRefused, match="cannot be written: Not a directory"),
        Target(tmp_path / "file" / "out"),
    ):
        pass


@pytest.mark.parametrize("name", ["row", "prediction", "file"])
def test_a_column_with_a_name_of_the_target_is_refused_before_any_work_where_it_would_be_lost(
    tmp_path: Path, name: str
) -> None:
    data_set(tmp_path, 600, 100, **{name: list(range(600))})
    settings = PredictSettings(
        sources=[str(tmp_path / "in.parquet")], out=str(tmp_path / "out"), carry=[name]
    )
    if name == "file":  # one file has no name in the target
        predict_files(settings, open_data(settings), FakeEngine(), lambda _: None)
        assert parquet.read_table(tmp_path / "out")["file"].to_pylist() == list(range(600))
        return
    with pytest.raises(FileRefused, match=f"a column of its own named {name}; rename yours"):
        open_data(settings)


def test_a_target_under_a_glob_of_all_folders_is_refused(tmp_path: Path) -> None:
    data_set(tmp_path)
    with pytest.raises(FileRefused, match="lies in the source"):
        open_data(PredictSettings(sources=[f"{tmp_path}/**/*.parquet"], out=str(tmp_path / "out")))


@pytest.mark.parametrize("done_row", [{}, {"rows": "x", "failed": 0, "escalated": 0}])
def test_a_manifest_whose_counts_are_damaged_is_refused(tmp_path: Path, done_row: Any) -> None:
    data = data_set(tmp_path)
    done(data, tmp_path / "out")
    path = tmp_path / "out" / "_manifest.json"
    stored = json.loads(path.read_text())
    stored["done"]["0"] = done_row
    path.write_text(json.dumps(stored))
    with pytest.raises(FileRefused, match=r"cannot be read .*; --restart begins anew"):
        done(data, tmp_path / "out")


def test_a_part_that_is_damaged_or_that_the_input_does_not_have_is_not_counted(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    done(data, tmp_path / "out")
    whole, path = bytes_of(tmp_path / "out"), tmp_path / "out" / "_manifest.json"
    (tmp_path / "out" / "part-000002.parquet").write_bytes(b"PAR1")
    stored = json.loads(path.read_text())
    stored["done"]["99"] = stored["done"]["0"]
    path.write_text(json.dumps(stored))
    run = done(data, tmp_path / "out")
    assert (run.progress.done, run.progress.skipped) == (600, 500)
    assert bytes_of(tmp_path / "out") == whole


def test_another_model_is_refused_also_where_all_is_done(tmp_path: Path) -> None:
    data, engine = data_set(tmp_path), FakeEngine(model="other@1")
    done(data, tmp_path / "out")
    engine.models = {"model": "other@1"}
    with pytest.raises(RunStopped, match=r"model was m@1 and is other@1 now"):
        done(data, tmp_path / "out", engine)


def test_a_shard_begins_anew_without_the_parts_of_others(tmp_path: Path) -> None:
    data, out = data_set(tmp_path), tmp_path / "out"
    for i in range(2):
        done(data, out, shard=f"{i + 1}/2")
    whole, engine = bytes_of(out), FakeEngine()
    with Target(out, "1/2") as target:
        FileRun(
            data,
            target,
            engine,
            PredictSettings(sources=["in.parquet"], out="out", shard="1/2", restart=True),
        ).begin()
    assert list(bytes_of(out)) == list(whole)[1::2]


@pytest.mark.parametrize("other", [{}, {"shard": "1/3"}, {"shard": "2/2", "share": 0.1}])
def test_runs_of_other_shards_or_options_do_not_write_into_one_target(tmp_path: Path, other: Any) -> None:
    data, out = data_set(tmp_path), tmp_path / "out"
    done(data, out, shard="1/2")
    for restart in (False, True):
        with pytest.raises(FileRefused, match=r"_manifest-1-of-2.json is of a run of something else"):
            done(data, out, restart=restart, **other)


def test_shards_have_answers_of_one_model(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    done(data, tmp_path / "out", shard="1/2")
    with pytest.raises(RunStopped, match=r"model was m@1 and is other@1 now"):
        done(data, tmp_path / "out", FakeEngine(model="other@1"), shard="2/2")


def test_another_number_of_files_is_told_as_such() -> None:
    stored, now = {"inputs": [{"path": "a"}]}, {"inputs": [{"path": "a"}, {"path": "b"}]}
    assert differences(stored, now) == ["inputs were 1 and are 2"]


def test_a_column_of_domains_without_any_is_no_fault(tmp_path: Path) -> None:
    run = done(data_set(tmp_path, domain=pa.nulls(600)), tmp_path / "out")
    found = cosines_by_domain(run.parts, "doc_id", "domain")
    assert found["(none)"] == found["all"]


def test_a_domain_that_is_called_all_is_not_counted_twice(tmp_path: Path) -> None:
    domains = np.repeat(["all", None], 300)
    run = done(data_set(tmp_path, 600, 100, domain=pa.array(domains)), tmp_path / "out", share=0.0)
    found = cosines_by_domain(run.parts, "doc_id", "domain")
    assert {name: row["rows"] for name, row in found.items()} == {
        "all": 450,
        "domain all": 225,
        "(none)": 225,
    }
