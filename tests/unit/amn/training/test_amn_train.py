"""Training: repeatable, resumable, and by the card's recipe unless told otherwise."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from amn_helpers import amn, articles, made, vector_set, write_npz

from amn.config import ModelConfig, TrainConfig
from amn.data.dataset import split_by_article
from amn.data.vectors import VectorSet
from amn.errors import ConfigError, DataError
from amn.model import checkpoint
from amn.model.checkpoint import load
from amn.training.recipes import recipe
from amn.training.run import RunSettings, run_training, write_config
from amn.training.train import Run, after_epoch, learning_rate, start_run, train

CPU = "cpu"
QUICK = TrainConfig(loss="cosine", batch_size=32, epochs=3, schedule="one-cycle", ema_decay=0.9)
BOUNDED = ModelConfig(layout="bounded", dropout=0.2, distrust=0.3)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def documents():
    data = vector_set()
    return data, split_by_article(data)


class Killed(Exception):
    """Stands for SIGKILL between two batches."""


def run_to_end(documents, folder, config=QUICK, model=BOUNDED, tick=None):
    folder.mkdir(exist_ok=True)
    run = start_run(model, config, CPU)
    run.resume(folder)
    more = {} if tick is None else {"tick": tick}
    return train(run, *documents, config, folder=folder, **more), run


def same_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_one_seed_gives_the_same_weights_twice(documents, tmp_path):
    first, _ = run_to_end(documents, tmp_path / "a")
    second, _ = run_to_end(documents, tmp_path / "b")
    assert same_weights(first, second)


def test_another_seed_gives_other_weights(documents, tmp_path):
    one = TrainConfig(epochs=1, batch_size=64, seed=0)
    two = TrainConfig(epochs=1, batch_size=64, seed=1)
    card = ModelConfig(layout="card")
    first, _ = run_to_end(documents, tmp_path / "a", one, card)
    second, _ = run_to_end(documents, tmp_path / "b", two, card)
    assert not same_weights(first, second)


def test_a_killed_run_that_is_resumed_ends_with_the_same_weights_and_curve(documents, tmp_path):
    whole, run = run_to_end(documents, tmp_path / "whole")

    def kill(epoch, batch, batches):
        if epoch == 1 and batch == 2:
            raise Killed

    with pytest.raises(Killed):
        run_to_end(documents, tmp_path / "cut", tick=kill)
    resumed, again = run_to_end(documents, tmp_path / "cut")
    assert same_weights(whole, resumed)
    assert again.history == run.history


def test_a_stacked_run_that_is_resumed_ends_with_the_same_weights_on_the_same_first_stage(
    documents, tmp_path
):
    first, _ = run_to_end(documents, tmp_path / "first")
    config = TrainConfig(batch_size=64, epochs=2, reversed_share=0.5, first_stage="amn@0")
    stacked = ModelConfig(layout="stacked", dropout=0.5)

    def go(folder, tick=None):
        folder.mkdir(exist_ok=True)
        run = start_run(stacked, config, CPU, first)
        run.resume(folder)
        more = {} if tick is None else {"tick": tick}
        return train(run, *documents, config, folder=folder, **more)

    def kill(epoch, batch, batches):
        if epoch == 1:
            raise Killed

    whole = go(tmp_path / "whole")
    with pytest.raises(Killed):
        go(tmp_path / "cut", kill)
    assert same_weights(whole, go(tmp_path / "cut"))
    assert same_weights(whole.first, first)


def test_batches_are_read_backwards_only_if_asked(documents, tmp_path):
    card = ModelConfig(layout="card")
    runs = [
        run_to_end(documents, tmp_path / str(share), TrainConfig(epochs=1, reversed_share=share), card)[0]
        for share in (0.0, 1.0)
    ]
    assert not same_weights(*runs)


def test_the_command_stacks_on_a_finished_amn_and_says_which(tmp_path):
    common = ["--data", str(write_npz(tmp_path)), "--preset", "robust", "--batch-size", "64", "--epochs", "1"]
    first, out = tmp_path / "first", tmp_path / "stacked"
    assert amn("train", "--model", "amn", "--out", str(first), *common) == 0
    options = ["--first-stage", str(first / "checkpoint"), "--storage", "float16", "--out", str(out)]
    assert amn("train", "--model", "stacked", *options, *common) == 0
    manifest = load(out / "checkpoint").manifest
    assert manifest.layout == "stacked"
    assert manifest.training["first_stage"] == load(first / "checkpoint").manifest.model_id


def test_a_stacked_run_without_a_first_stage_is_refused(tmp_path, capsys):
    options = ["--data", str(write_npz(tmp_path)), "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert amn("train", "--model", "stacked", "--preset", "robust", *options) == 1
    assert "--first-stage do not fit" in capsys.readouterr().err


def test_training_beats_the_context_mean_on_held_out_articles(documents, tmp_path):
    _, run = run_to_end(documents, tmp_path / "a")
    assert run.best_score > 0.5  # 40 articles whose topics are new; chance is 0


def test_patience_ends_a_run_that_no_longer_improves(documents, tmp_path, monkeypatch):
    monkeypatch.setattr("amn.training.train.measure_epoch", lambda *_: {"score": 0.5})
    config = TrainConfig(epochs=9, patience_epochs=2, batch_size=128)
    _, run = run_to_end(documents, tmp_path / "a", config, ModelConfig(layout="card"))
    assert (run.best_epoch, run.epoch) == (1, 3)


def test_a_loss_that_is_not_finite_stops_the_run(documents, tmp_path):
    config = TrainConfig(epochs=2, batch_size=64)
    run = start_run(ModelConfig(layout="card"), config, CPU)
    with torch.no_grad():
        run.model.residual[7].weight.fill_(float("inf"))
    with pytest.raises(DataError, match="lower the learning rate"):
        train(run, *documents, config, folder=tmp_path)


def test_the_familiar_subspace_is_fitted_and_not_trained(documents, tmp_path):
    model, _ = run_to_end(documents, tmp_path / "a")
    data, split = documents
    means = torch.from_numpy(data.windows(split.train)[:, :5].mean(1))
    assert model.trust(means).mean() > 0.9
    torch.testing.assert_close(model.familiar @ model.familiar.T, torch.eye(90), atol=1e-5, rtol=0)


def test_the_card_is_the_default_recipe():
    chosen = recipe("amn-card", "card").train
    assert chosen == TrainConfig()
    assert (chosen.loss, chosen.learning_rate, chosen.weight_decay) == ("mse", 5e-4, 0.01)
    assert (chosen.epochs, chosen.batch_size, chosen.gradient_norm_max) == (20, 32, 1.0)


@pytest.mark.parametrize(("model", "preset"), [("lstm", "card"), ("amn", "magic")])
def test_unknown_models_and_presets_are_refused_with_the_known_ones(model, preset):
    with pytest.raises(ConfigError, match="choose one of"):
        recipe(model, preset)


def make_run() -> Run:
    return start_run(ModelConfig(layout="card"), TrainConfig(), CPU)


def test_one_cycle_warms_up_and_falls_to_zero():
    config = TrainConfig(schedule="one-cycle", warmup_fraction=0.1)
    run = make_run()
    rates = []
    for run.step in range(100):
        rates.append(learning_rate(config, run, 100))
    assert np.argmax(rates) in (9, 10)
    assert rates[0] < 1e-4
    assert rates[-1] < 1e-6


def test_a_plateau_halves_the_learning_rate_after_four_epochs_without_gain():
    config, run = TrainConfig(), make_run()
    for score in (0.5, 0.4, 0.4, 0.4):
        after_epoch(run, {"score": score})
    assert learning_rate(config, run, 1) == 5e-4
    after_epoch(run, {"score": 0.4})
    assert learning_rate(config, run, 1) == 2.5e-4


def test_a_run_folder_takes_no_second_run_with_other_settings(tmp_path):
    write_config(tmp_path, {"seed": 0})
    write_config(tmp_path, {"seed": 0})
    with pytest.raises(DataError, match="other settings"):
        write_config(tmp_path, {"seed": 1})


def test_the_command_leaves_a_checkpoint_a_log_and_a_curve(tmp_path):
    out = tmp_path / "run"
    options = ["--data", str(write_npz(tmp_path)), "--out", str(out), "--epochs", "2"]
    assert amn("train", "--model", "amn", "--preset", "robust", "--batch-size", "64", *options) == 0
    manifest = load(out / "checkpoint").manifest
    assert manifest.layout == "bounded"
    assert manifest.training["epochs"] == 2
    assert manifest.metrics["test"]["cosine"]["n"] > 0
    assert "context_mean" in manifest.metrics["unseen"]
    assert json.loads((out / "config.json").read_text())["train"]["batch_size"] == 64
    with (out / "log.csv").open() as stream:
        assert [row["epoch"] for row in csv.DictReader(stream)] == ["1", "2"]
    assert "<svg" in (out / "curve.svg").read_text()


def test_the_command_says_in_one_line_what_is_wrong(tmp_path, capsys):
    options = ["--data", str(tmp_path / "nothing.npz"), "--out", str(tmp_path / "run")]
    assert amn("train", "--model", "gru", *options) == 1
    error = capsys.readouterr().err
    assert error.startswith("amn: ")
    assert error.count("\n") == 1


def test_a_memory_is_filed_on_the_cpu_whatever_the_device_and_its_manifest_tells_of_no_epochs(tmp_path):
    given = articles(count=60, length=14)
    data = VectorSet(encoder_id=str(given.pop("encoder")), source="synthetic", **given)
    first = tmp_path / "amn"
    checkpoint.save(made("bounded"), first, name="amn", encoder_id=data.encoder_id, records={})
    settings = RunSettings(out=tmp_path / "out", device="meta", first_stage=first)
    quiet = lambda *_: None  # noqa: E731
    run_training(recipe("retrieval", "robust"), data, settings, say=quiet, tick=quiet)
    made_of = load(tmp_path / "out" / "checkpoint")
    assert len(made_of.model.memory)
    told = {"preset", "seed", "unseen_domain", "selection_domain", "first_stage"}
    assert made_of.manifest.training.keys() == told  # there were no epochs


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--dropout", "--learning-rate"])
def test_an_option_that_would_change_nothing_in_a_memory_is_refused(option, tmp_path, capsys):
    options = ["--data", str(write_npz(tmp_path)), "--out", str(tmp_path / "run"), option, "1"]
    assert amn("train", "--model", "retrieval", *options) == 1
    assert f"{option} changes nothing in a memory" in capsys.readouterr().err
