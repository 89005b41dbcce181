"""A file that reports its truths: the judge sees it in a lane of its own, and that says who is paged."""

from __future__ import annotations

import pytest

from drift.world import Increments, Sample, Scorer, Service

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]


def in_files(scores: list[Increments]) -> list[Increments]:
    """The same in the lane of files, in which the shadow worker counts them."""
    return [[(field.replace("|general|", "|files|"), amount) for field, amount in one] for one in scores]


def beside(live: list[Increments], file: list[Increments]) -> list[Increments]:
    """Live traffic as ever, and four times as much of a file."""
    few = file[:: max(len(file) // 300, 1)]
    return [
        one + [pair for k in range(4) for pair in few[(4 * i + k) % len(few)]] for i, one in enumerate(live)
    ]


def test_one_bad_file_is_a_ticket_since_the_live_lanes_are_as_ever(
    service: Service, sample: Sample, scored: Scorer, pools: dict[str, list[Increments]]
) -> None:
    """Its documents have another text order, so that what comes next is hard to tell."""
    bad = {name: in_files(scored(sample.windows(name, stride=3), name)) for name in ("ood", "id")}
    mixed = {name: beside(pools[name], bad[name]) for name in ("ood", "id")}
    service.live(2, mixed["ood"], mixed["id"])
    assert service.begun == []
    seen = {(one.rule, one.severity) for one in service.findings if one.state == "firing"}
    assert ("level", "ticket") in seen
    service.live(6, pools["ood"], pools["id"])
    assert service.receiver.pages() == []
