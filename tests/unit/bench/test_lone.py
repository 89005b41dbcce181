"""What a lone request costs, beside another commit's: the figures of turns, and their ratios."""

from __future__ import annotations

from typing import Any

import pytest

from bench.lone import HERE, figures, in_turns, ratios, rows


class Spoken:
    """A side that notes when it is asked, and answers with a figure a turn."""

    def __init__(self, name: str, asked: list[str], each: list[float]) -> None:
        self._name, self._asked, self._each = name, asked, each

    def run(self, *words: Any) -> dict[str, Any]:
        self._asked.append(f"{self._name} {words[0]}")
        spent = self._each.pop(0)
        return {"worker_us": spent, "server_us": 1.0, "client_us": 2.0, "ms": [spent] * 19 + [99.0]}


def test_commits_take_turns_and_each_begins_as_often() -> None:
    asked: list[str] = []
    sides: Any = {HERE: Spoken("a", asked, [1.0, 2.0, 9.0]), "old": Spoken("b", asked, [4.0, 4.0, 4.0])}
    found = {"one at a time": in_turns(sides, ("closed", 20), 3)}
    assert [one[0] for one in asked] == ["a", "b", "b", "a", "a", "b"]
    [first, second] = rows(found)
    assert (first["of"], first["cpu_us"], first["ms_p50"]) == (HERE, 5.0, 2.0)
    assert (second["of"], second["cpu_us"]) == ("old", 7.0)
    [ratio] = rows(ratios(found))
    assert ratio["of"] == f"{HERE} over old"
    assert ratio["cpu_us"] == pytest.approx(5 / 7)
    assert ratio["ms_p50"] == 0.5


def test_a_drain_has_its_own_figures_and_a_checkout_alone_no_ratios() -> None:
    assert figures({"drain_per_s": 5.0}) == {"drain_per_s": 5.0}
    assert ratios({"full queue": {HERE: {"drain_per_s": 5.0}}}) == {}
