"""Each part is of one set of models, which the manifest names, whatever happens to the workers meanwhile."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_predict_run import FakeEngine, bytes_of, data_set, done

from ops.errors import RunStopped
from ops.predict import run as run_module
from ops.predict.answers import Answers
from ops.predict.engines import Waits
from ops.predict.models import ModelsChanged


class ChangingEngine(FakeEngine):
    """Its model depends on how many rows were asked for before."""

    def __init__(self, model_at: Callable[[int], str]) -> None:
        super().__init__()
        self._model_at = model_at

    def fast(self, contexts: NDArray[np.floating]) -> Waits:
        self.model = self._model_at(self.seen)
        return super().fast(contexts)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "_CHANGING_S", (0.0,) * 4)


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "_manifest.json").read_text())
    return found


def test_a_model_that_changes_in_the_middle_of_a_row_group_answers_all_of_it(tmp_path: Path) -> None:
    data = data_set(tmp_path, rows=6_000, group=2_000)
    done(data, tmp_path / "whole")
    run = done(data, tmp_path / "out", ChangingEngine(lambda seen: "m@1" if seen < 2_000 else "m@2"))
    stored = manifest(tmp_path / "out")
    assert stored["models"] == {"model": "m@1"}
    assert [row.get("models") for row in stored["done"].values()] == [
        None,
        {"model": "m@2"},
        {"model": "m@2"},
    ]
    assert run.manifest.answers_of() == [
        {"models": {"model": "m@1"}, "parts": 1, "rows": 2_000},
        {"models": {"model": "m@2"}, "parts": 2, "rows": 4_000},
    ]
    assert (run.progress.done, run.progress.failed) == (6_000, 6_000 // 20 * 4)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")  # the fake models answer alike


def test_whoever_insists_has_a_run_stopped_by_the_first_answer_of_another_model(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    engine = ChangingEngine(lambda seen: "m@1" if seen < 200 else "m@2")
    with pytest.raises(RunStopped, match="model was m@1 and is m@2 now"):
        done(data, tmp_path / "out", engine, on_change="stop")
    assert len(bytes_of(tmp_path / "out")) == 3


def test_an_earlier_run_is_taken_up_by_another_model_only_where_that_is_asked_for(tmp_path: Path) -> None:
    data = data_set(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        done(data, tmp_path / "out", FakeEngine(300))
    with pytest.raises(RunStopped, match="with --on-change name"):
        done(data, tmp_path / "out", FakeEngine(model="m@2"))
    done(data, tmp_path / "out", FakeEngine(model="m@2"), on_change="name")
    assert [row.get("models") for row in manifest(tmp_path / "out")["done"].values()].count(None) == 2


@pytest.mark.parametrize("model", ["m@1", "m@2"])
def test_a_run_that_saw_a_change_goes_on_with_either_of_its_models_and_no_third(
    tmp_path: Path, model: str
) -> None:
    data, engine = data_set(tmp_path), ChangingEngine(lambda seen: "m@1" if seen < 200 else "m@2")
    engine.die_after = 460
    with pytest.raises(KeyboardInterrupt):
        done(data, tmp_path / "out", engine)
    with pytest.raises(RunStopped, match="and is m@3 now"):
        done(data, tmp_path / "out", FakeEngine(model="m@3"))
    done(data, tmp_path / "out", FakeEngine(model=model))
    assert len(bytes_of(tmp_path / "out")) == 6


def test_two_models_that_answer_in_turn_stop_the_run_after_some_tries(tmp_path: Path) -> None:
    data, models = data_set(tmp_path, rows=2_000, group=2_000), itertools.cycle(["m@1", "m@2"])
    with pytest.raises(RunStopped, match="different models serve this queue"):
        done(data, tmp_path / "out", ChangingEngine(lambda _: next(models)))
    assert bytes_of(tmp_path / "out") == {}
    assert not list((tmp_path / "out").glob(".part*"))


def test_answers_of_two_models_are_not_put_into_one_block() -> None:
    first, second, hard = Answers(1), Answers(1), Answers(1)
    first.models = {"model": "m@1", "bank": "b"}
    hard.models = {"model": "m@1", "bank": "", "fallback": "f@1"}  # what a hard rule decides asks no bank
    assert Answers.joined([first, hard]).models == {"model": "m@1", "bank": "b", "fallback": "f@1"}
    second.models = {"model": "m@2", "bank": "b"}
    with pytest.raises(ModelsChanged, match="model was m@1 and is m@2 now"):
        Answers.joined([first, second])


def test_an_old_fallback_that_does_not_blend_with_a_new_amn_is_waited_for() -> None:
    answers, other = Answers(1), Answers(1)
    other.models = {"model": "m@2", "fallback": "f@1", "calibration": "none"}
    with pytest.raises(ModelsChanged, match="fitted for another AMN"):
        Answers.joined([answers, other])
