"""Evaluation, model cards, and moving the links that workers load from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from amn_helpers import ENCODER, amn, articles, contexts, made, write_npz
from pyarrow import parquet
from recalibrated import recalibrated

from amn.bank.build import BankSettings, build_bank
from amn.errors import CheckpointError, DataError, PromotionError
from amn.evaluation import promotion
from amn.evaluation.evaluate import without
from amn.evaluation.metrics import estimate
from amn.model import checkpoint
from amn.predictor import Predictor
from ops.commands.models import evaluate
from ops.predict.direct import DirectEngine

ARTIFACTS = Path("artifacts/lvm").absolute()


def metrics(test=0.58, unseen=0.63, n=4000, mean=0.55):
    return {
        side: {"cosine": {"mean": value, "n": n}, "context_mean": mean}
        for side, value in (("test", test), ("unseen", unseen))
    }


def candidate(root, name, layout="card", data=None, **figures):
    model = made(layout)
    with torch.no_grad():  # every candidate has a hash of its own
        next(model.parameters()).add_(1e-4 * (1 + sum(name.encode())))
    records = {"metrics": metrics(**figures), "data": data or {}}
    checkpoint.save(model, root / "models" / name, name="amn", encoder_id=ENCODER, records=records)
    return root / "models" / name


def test_the_interval_of_a_mean_counts_articles_and_not_windows():
    draw = np.random.default_rng(0)
    articles = np.repeat(np.arange(20), 50)
    values = draw.standard_normal(20)[articles] + 0.01 * draw.standard_normal(1000)
    found = estimate(values, articles)
    assert found.n == 1000
    assert found.articles == 20
    naive = values.std() / np.sqrt(len(values))
    assert found.standard_error > 5 * naive
    assert found.low < found.mean < found.high


def test_judging_nothing_is_an_error():
    with pytest.raises(DataError, match="n = 0"):
        estimate(np.zeros(0), np.zeros(0, int))
    with pytest.raises(DataError, match="article ids"):
        estimate(np.zeros(2), np.zeros(3, int))


def test_leaving_a_position_out_puts_the_mean_of_the_others_there():
    x = contexts(2)
    changed = without(1)(x)
    expected = torch.nn.functional.normalize(x[:, [0, 2, 3, 4]].mean(1), dim=-1)
    torch.testing.assert_close(changed[:, 1], expected)
    torch.testing.assert_close(changed[:, 0], x[:, 0])


@pytest.fixture(autouse=True, scope="module")
def _few_rounds():
    """Latency is measured here only to see that it is reported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amn.evaluation.latency.ROUNDS", 3)
        patch.setattr("amn.evaluation.latency.WARM_UP_ROUNDS", 1)
        yield


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    data = write_npz(folder)
    first, second = candidate(folder, "amn_1"), candidate(folder, "amn_2", "bounded")
    options = ["--data", str(data), "--out", str(folder / "out")]
    assert amn("evaluate", str(first), str(second), *options) == 0
    return folder, json.loads((folder / "out" / "evaluation.json").read_text())


def test_an_evaluation_holds_every_figure_for_models_and_baselines(evaluated):
    _, result = evaluated
    assert [e["layout"] for e in result["models"].values()] == ["card", "bounded", "baseline", "baseline"]
    for name, entry in result["models"].items():
        assert set(entry["cosine"]) == {"train", "validation", "test", "unseen"}
        assert entry["cosine"]["test"]["articles"] > 1
        assert set(entry["hits"]["unseen"]) == {"hit@1", "hit@5", "hit@10"}
        assert len(entry["probes"]["test"]["without_position"]) == 5
        assert name not in entry["gains"]["test"]
        if entry["layout"] != "baseline":
            assert [row["batch"] for row in entry["latency"]] == [1, 8, 32, 128]
    mean = result["models"]["context_mean"]["probes"]["test"]
    assert abs(mean["shuffled"]) < 1e-6
    assert result["models"]["last_vector"]["probes"]["test"]["without_position"][:4] == [0, 0, 0, 0]


def test_the_page_is_one_file_that_loads_nothing(evaluated):
    folder, _ = evaluated
    page = (folder / "out" / "evaluation.html").read_text()
    assert page.count("<svg") == 4
    for word in ("<script", "src=", "<link", "@import"):
        assert word not in page


def test_the_page_shows_each_part_of_the_record_with_a_column_for_each_model(evaluated):
    folder, result = evaluated
    page = (folder / "out" / "evaluation.html").read_text()
    for row in ("test context mean", "unseen hit@10", "test nearer to last share", "batch 32 latency ms p95"):
        assert page.count(f"<td>{row}</td>") == 1
    share = next(iter(result["models"].values()))["probes"]["test"]["nearer_to_last_share"]
    assert f"<td>test nearer to last share</td><td>{share:.4f}</td>" in page
    assert all(f"<th>{name}</th>" in page for name in result["models"])


def test_a_card_has_the_specified_headings_and_figures_beside_ours(evaluated):
    folder, result = evaluated
    out = folder / "CARD.md"
    evaluation = str(folder / "out" / "evaluation.json")
    first = str(folder / "models" / "amn_1")
    assert amn("card", first, "--evaluation", evaluation, "--out", str(out)) == 0
    text = out.read_text()
    for heading in ("Model Information", "Training Details", "Performance Metrics", "Key Strengths"):
        assert f"## {heading}" in text
    for heading in ("Use Cases", "Escalation Criteria", "Limitations", "Deployment Configuration"):
        assert f"## {heading}" in text
    ours = next(iter(result["models"].values()))["cosine"]["test"]["mean"]
    assert f"{ours:.4f}" in text
    assert "0.6375" in text
    assert text.startswith("---\nlicense: apache-2.0")


def test_a_card_of_a_model_that_was_not_judged_is_refused(evaluated, tmp_path, capsys):
    folder, _ = evaluated
    other = candidate(tmp_path, "amn_9")
    evaluation = str(folder / "out" / "evaluation.json")
    assert amn("card", str(other), "--evaluation", evaluation) == 1
    assert "evaluate this checkpoint first" in capsys.readouterr().err


def test_one_checkpoint_twice_is_refused(evaluated, capsys):
    folder, _ = evaluated
    first = str(folder / "models" / "amn_1")
    options = ["--data", str(folder / "vectors.npz"), "--out", str(folder / "twice")]
    assert amn("evaluate", first, first, *options) == 1
    assert "given twice" in capsys.readouterr().err


def test_promotion_moves_a_relative_link_and_rollback_moves_it_back(tmp_path):
    link = tmp_path / "production_model"
    first, second = candidate(tmp_path, "amn_1"), candidate(tmp_path, "amn_2")
    promotion.promote(first, link, with_latency=False)
    promotion.promote(second, link, with_latency=False)
    assert link.readlink().as_posix() == "models/amn_2"
    promotion.rollback(link)
    assert link.readlink().as_posix() == "models/amn_1"
    with pytest.raises(PromotionError, match="no earlier target"):
        promotion.rollback(link)


def test_a_model_and_a_calibration_that_fits_it_are_promoted_and_rolled_back_together(tmp_path):
    link, linked = tmp_path / "production_model", tmp_path / "gate_calibration"
    first, second = candidate(tmp_path, "amn_1"), candidate(tmp_path, "amn_2")
    for folder in (first, second):
        recalibrated(tmp_path / f"gate_{folder.name}", amn=checkpoint.load(folder).manifest.model_id)
    assert checkpoint.load(first).manifest.model_id != checkpoint.load(second).manifest.model_id
    promotion.promote(first, link, calibration=tmp_path / "gate_amn_1", with_latency=False)
    with pytest.raises(PromotionError, match=r"gate_amn_1 was fitted for amn amn@.*--calibration"):
        promotion.promote(second, link, with_latency=False)
    assert (link.readlink().name, linked.readlink().name) == ("amn_1", "gate_amn_1")
    promotion.promote(second, link, calibration=tmp_path / "gate_amn_2", with_latency=False)
    assert (link.readlink().name, linked.readlink().name) == ("amn_2", "gate_amn_2")
    promotion.rollback(link)
    assert (link.readlink().name, linked.readlink().name) == ("amn_1", "gate_amn_1")


def test_a_bank_of_the_models_encoder_is_linked_with_it_and_no_other_one(tmp_path):
    link, rows = tmp_path / "production_model", np.eye(4, 768, dtype=np.float32)
    for name in (ENCODER, "another"):
        build_bank(rows, tmp_path / name.replace("/", "-"), BankSettings(encoder_id=name, source="rows"))
    first = candidate(tmp_path, "amn_1")
    with pytest.raises(CheckpointError, match=r"bank@.* is of encoder 'another', and amn@.* of 'a-test"):
        promotion.promote(first, link, bank=tmp_path / "another", with_latency=False)
    assert not link.is_symlink()
    promotion.promote(first, link, bank=tmp_path / ENCODER.replace("/", "-"), with_latency=False)
    assert (tmp_path / "reference_bank").readlink().as_posix() == ENCODER.replace("/", "-")


def test_a_fallback_of_another_encoder_than_the_linked_amn_is_not_promoted(tmp_path):
    mine = candidate(tmp_path, "amn_1")
    other = candidate(tmp_path, "amn_2", data={"encoder_sha256": "2" * 64})
    third = candidate(tmp_path, "amn_3", data={"encoder_sha256": "3" * 64})
    link = tmp_path / "fallback_accuracy"
    promotion.promote(mine, link, with_latency=False)  # no AMN is linked
    promotion.promote(other, tmp_path / "production_model", with_latency=False)
    with pytest.raises(CheckpointError, match=r"of encoder .*\(222222222222\).* of .*\(333333333333\)"):
        promotion.promote(third, link, with_latency=False)
    assert link.resolve() == mine.resolve()


def test_promoting_the_present_model_again_is_refused(tmp_path):
    link = tmp_path / "production_model"
    first = candidate(tmp_path, "amn_1")
    promotion.promote(first, link, with_latency=False)
    with pytest.raises(PromotionError, match="already names amn_1"):
        promotion.promote(first, link, with_latency=False)


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"n": 10}, "judged on 10 test windows"),
        ({"test": 0.54}, "a mean is cheaper"),
        ({"test": 0.57}, "the gate allows a loss"),
        ({"unseen": 0.60}, "on unseen"),
    ],
)
def test_a_candidate_that_fails_a_gate_leaves_the_link_where_it_is(tmp_path, figures, words):
    link = tmp_path / "production_model"
    promotion.promote(candidate(tmp_path, "amn_1"), link, with_latency=False)
    with pytest.raises(PromotionError, match=words):
        promotion.promote(candidate(tmp_path, "amn_2", **figures), link, with_latency=False)
    assert link.readlink().name == "amn_1"


def test_a_tampered_candidate_is_never_promoted(tmp_path):
    bad = candidate(tmp_path, "amn_1")
    (bad / checkpoint.WEIGHTS_FILE).write_bytes(b"other weights")
    with pytest.raises(CheckpointError):
        promotion.promote(bad, tmp_path / "production_model")
    assert not (tmp_path / "production_model").is_symlink()


def test_a_much_slower_candidate_is_refused(tmp_path, monkeypatch):
    link = tmp_path / "production_model"
    promotion.promote(candidate(tmp_path, "amn_1"), link, with_latency=False)
    monkeypatch.setattr("amn.evaluation.latency.times", lambda *_: np.array([[3e-3, 1e-3]]))
    with pytest.raises(PromotionError, match=r"takes 3\.000 ms"):
        promotion.promote(candidate(tmp_path, "amn_2"), link)


def test_the_commands_promote_and_roll_back(tmp_path, capsys):
    first, second = candidate(tmp_path, "amn_1"), candidate(tmp_path, "amn_2")
    root = ["--root", str(tmp_path), "--link", "fallback_accuracy"]
    assert amn("promote", str(first), "--no-latency", *root) == 0
    assert amn("promote", str(second), "--no-latency", *root) == 0
    assert amn("rollback", *root) == 0
    assert "-> amn_1 (amn@" in capsys.readouterr().out.splitlines()[-1]
    assert amn("rollback", *root) == 1


def test_a_first_promotion_beside_shipped_models_makes_a_folder_whose_links_can_be_moved(
    tmp_path, monkeypatch, capsys
):
    first, second = candidate(tmp_path, "amn_1"), candidate(tmp_path, "amn_2")
    shipped, own = tmp_path / "package" / "lvm", tmp_path / "artifacts" / "lvm"
    for name in ("production_model", "fallback_accuracy"):
        shutil.copytree(first, shipped / name)  # as a wheel holds them
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AMN_ARTIFACTS", raising=False)
    monkeypatch.setattr(evaluate, "artifacts_folder", lambda _: own if own.exists() else shipped)
    assert amn("promote", str(second), "--no-latency") == 0
    assert f"copied the shipped models from {shipped}" in capsys.readouterr().out
    assert (own / "production_model").resolve() == second
    assert (own / "fallback_accuracy").resolve() == own / "shipped" / "fallback_accuracy"
    assert not (shipped / "production_model").is_symlink()
    assert amn("rollback") == 0
    assert (own / "production_model").resolve() == own / "shipped" / "production_model"
    assert amn("promote", str(second), "--no-latency", "--root", str(shipped)) == 1
    assert "is a folder; a promotion moves a link" in capsys.readouterr().err


def test_the_quick_reproduction_trains_the_small_networks_and_prints_one_table(tmp_path, capsys):
    options = ["--data", str(write_npz(tmp_path)), "--out", str(tmp_path / "runs"), "--quick"]
    assert amn("reproduce", *options) == 0
    table = capsys.readouterr().out
    for layout in ("bounded", "retrieval", "card", "published", "baseline"):
        assert f"({layout})" in table
    assert (tmp_path / "runs" / "report" / "evaluation.html").is_file()
    assert amn("reproduce", *options) == 0  # everything is there: only the table is made again


def test_leaving_each_domain_out_judges_on_it(tmp_path, capsys):
    data = str(write_npz(tmp_path, **articles(count=80)))
    options = ["--data", data, "--out", str(tmp_path / "runs"), "--epochs", "1"]
    assert amn("leave-out", *options) == 0
    assert "gain over context_mean" in capsys.readouterr().out
    result = json.loads((tmp_path / "runs" / "leave_out.json").read_text())
    assert set(result) == {"alpha", "beta", "gamma"}
    assert result["beta"]["gain_over_context_mean"]["n"] == 140
    options = ["--data", data, "--out", str(tmp_path / "second"), "--model", "retrieval"]
    assert amn("leave-out", *options, "--first-stages", str(tmp_path / "runs")) == 0
    assert "gain over first_stage" in capsys.readouterr().out
    # Another AMN than the one inside is not what is gained over, nor is one that has seen the domain.
    manifest = tmp_path / "runs" / "without_alpha" / "checkpoint" / "manifest.json"
    stored = manifest.read_text()
    manifest.write_text(json.dumps(json.loads(stored) | {"name": "another"}))
    assert amn("leave-out", *options, "--first-stages", str(tmp_path / "runs")) == 1
    assert "is on another first stage than" in capsys.readouterr().err
    changed = json.loads(stored)
    changed["training"]["selection_domain"] = ""
    manifest.write_text(json.dumps(changed))
    assert amn("leave-out", *options, "--first-stages", str(tmp_path / "runs")) == 1
    assert "was trained with alpha; name a folder of" in capsys.readouterr().err
    second = json.loads((tmp_path / "second" / "leave_out.json").read_text())
    gained = second["beta"]["cosine"]["mean"] - result["beta"]["cosine"]["mean"]
    assert second["beta"]["gain_over_first_stage"]["mean"] == pytest.approx(gained, abs=2e-5)


def test_the_ratio_of_two_models_names_both_sizes(capsys):
    assert amn("ratio", "bounded", "transformer", "--rounds", "1") == 0
    batch_1, batch_32, sizes = capsys.readouterr().out.splitlines()
    assert batch_1.startswith("batch   1: ")
    assert batch_32.startswith("batch  32: ")
    assert sizes == "parameters: 1,472,768 and 17,867,520, 12.1 times"


def test_the_encoder_of_the_data_is_that_of_the_model_and_of_what_is_fitted_beside_it(tmp_path):
    data = write_npz(tmp_path, **(articles(count=80) | {"encoder": np.array("another/mean/l2")}))
    common = ["--data", data, "--preset", "robust", "--epochs", "1", "--batch-size", "128"]
    assert amn("train", "--model", "amn", "--out", tmp_path / "run", *common) == 0
    assert amn("slices", "--data", data, "--references", "50", "--out", tmp_path / "slices") == 0
    assert amn("training-vectors", "--data", data, "--out", tmp_path / "training.npz") == 0
    assert amn("sample", "--data", data, "--vectors", "60", "--out", tmp_path / "sample.npz") == 0
    assert amn("bank", "build", tmp_path / "training.npz", "--out", tmp_path / "bank") == 0
    refused = ["bank", "build", tmp_path / "training.npz", "--out", tmp_path / "x", "--encoder", ENCODER]
    assert amn(*refused) == 1
    for folder in (tmp_path / "run" / "checkpoint", tmp_path / "slices", tmp_path / "bank"):
        assert json.loads((folder / "manifest.json").read_text())["encoder_id"] == "another/mean/l2"
    for name in ("training.npz", "sample.npz"):
        assert str(np.load(tmp_path / name)["encoder"]) == "another/mean/l2"


def test_encoders_of_one_name_and_other_files_are_told_apart_by_their_hash_from_training_to_predictions(
    tmp_path, capsys
):
    (tmp_path / "other").mkdir()
    first = write_npz(tmp_path, **articles(count=80), encoder_sha256=np.array("1" * 64))
    other = write_npz(tmp_path / "other", **articles(count=80), encoder_sha256=np.array("2" * 64))
    common = ["--data", first, "--preset", "robust", "--epochs", "1", "--batch-size", "128"]
    model, root = tmp_path / "own" / "production_model", tmp_path / "own"
    assert amn("train", "--model", "amn", "--out", tmp_path / "run", *common) == 0
    shutil.copytree(tmp_path / "run" / "checkpoint", model)
    shutil.copytree(model, root / "fallback_accuracy")
    assert json.loads((model / "manifest.json").read_text())["data"]["encoder_sha256"] == "1" * 64
    for data in (first, other):
        assert amn("training-vectors", "--data", data, "--out", data.parent / "training.npz") == 0
        assert amn("bank", "build", data.parent / "training.npz", "--out", data.parent / "bank") == 0
        assert json.loads((data.parent / "bank" / "manifest.json").read_text())["encoder_sha256"] in (
            "1" * 64,
            "2" * 64,
        )
    shutil.copytree(tmp_path / "bank", root / "reference_bank")
    stacked = ["--model", "stacked", "--preset", "robust", "--first-stage", model]
    rows = pa.table(
        {
            "vector": articles()["vectors"].astype("f4").tolist(),
            "doc_id": ["a"] * 480,
            "position": range(480),
        },
        metadata={"encoder": ENCODER, "encoder_sha256": "2" * 64},
    )
    parquet.write_table(rows, tmp_path / "rows.parquet")
    out = ["--out", tmp_path / "x"]
    bank = ["--bank", tmp_path / "bank"]
    for command in (
        ["evaluate", model, "--data", other, *out],
        ["train", *stacked, "--data", other, *out],
        ["calibrate", model, model, *bank, "--data", other, *out],
        ["calibrate", model, model, "--bank", tmp_path / "other" / "bank", "--data", first, *out],
        ["bank", "build", tmp_path / "other" / "training.npz", "--model", model, "--queries", first, *out],
        ["data", "join", first, other, *out],
        ["predict", tmp_path / "rows.parquet", "--direct", "--policy", "card", "--artifacts", root, *out],
    ):
        capsys.readouterr()
        assert amn(*command) == 1, command
        assert "mean nothing to each other" in capsys.readouterr().err, command
    with pytest.raises(CheckpointError, match=r"bank@.* \(222222222222\), and amn@.* \(111111111111\)"):
        Predictor.open(model, tmp_path / "other" / "bank")
    manifest = root / "fallback_accuracy" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("1" * 64, "2" * 64).replace('"amn"', '"fallback"'))
    with pytest.raises(CheckpointError, match=r"fallback@.* \(222222222222\)"):
        DirectEngine(root, "card")
    promoted = candidate(tmp_path, "amn_1", data={"encoder_sha256": "1" * 64})
    with pytest.raises(CheckpointError, match="mean nothing to each other"):
        promotion.promote(promoted, tmp_path / "link", bank=tmp_path / "other" / "bank", with_latency=False)
    assert not (tmp_path / "link").is_symlink()


def test_models_banks_and_vectors_of_different_encoders_are_not_measured_together(tmp_path, capsys):
    ours, data = candidate(tmp_path, "amn_1"), write_npz(tmp_path)
    shipped, bank = ARTIFACTS / "production_model", ARTIFACTS / "reference_bank"
    out = ["--data", data, "--out", tmp_path / "out"]
    assert amn("evaluate", ours, shipped, *out) == 1
    assert "mean nothing to each other" in capsys.readouterr().err
    assert amn("evaluate", shipped, *out) == 1
    assert f"of encoder '{ENCODER}', not 'all-mpnet-base-v2/mean/l2'" in capsys.readouterr().err
    assert amn("calibrate", ours, ours, "--bank", bank, *out) == 1
    assert "bank@" in capsys.readouterr().err
    stacked = ["--model", "stacked", "--preset", "robust", "--first-stage", shipped]
    assert amn("train", *stacked, *out) == 1
    assert "mean nothing to each other" in capsys.readouterr().err
