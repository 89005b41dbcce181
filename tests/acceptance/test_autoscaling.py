"""The sample of an autoscaler: more workers for a backlog, no oscillation, and fewer when it is over."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.autoscaling import Controller, simulate


def figures(backlog_s: float, busy_ratio: float = 0.0) -> dict[str, Any]:
    return {"kinds": {"amn": {"backlog_s": backlog_s, "busy_ratio": busy_ratio}}}


def test_the_controller_does_the_documented_arithmetic() -> None:
    controller = Controller("amn")
    assert controller.turn(0, 1, figures(2.1)) == 1  # within a tenth of the target of two seconds
    assert controller.turn(15, 1, figures(2.5)) == 2
    assert controller.turn(30, 2, figures(60)) == 6  # sixty are asked for; four more, or twice as many
    assert controller.turn(45, 6, figures(60)) == 12
    assert controller.turn(60, 12, figures(0, 0.7)) == 12  # busy as they should be, and nothing waits
    assert controller.turn(120, 12, figures(0)) == 12  # 32 were asked for within five minutes
    assert controller.turn(400, 12, figures(0)) == 11  # one a minute
    assert controller.turn(415, 11, figures(0)) == 11
    assert controller.turn(461, 11, figures(0)) == 10


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_real_workers_come_for_a_real_backlog_and_go_when_it_is_over(
    make_server: Any, tmp_path: Path
) -> None:
    outcome = simulate(make_server().url, tmp_path, pace=20, load_s=25, say=print, replicas_max=4)
    assert outcome.answered == outcome.submitted > 3_000  # whoever came and went, nothing was lost
    loaded = [look for look in outcome.looks if look.at_s <= outcome.load_ended_s]
    assert max(look.backlog_s for look in loaded) > 2
    assert max(look.replicas for look in loaded) >= 3
    assert loaded[-1].backlog_s < 0.5
    counts = [look.replicas for look in outcome.looks]
    directions = [later > earlier for earlier, later in pairwise(counts) if later != earlier]
    assert directions == sorted(directions, reverse=True)  # up, and then down: never up again
    assert counts[-1] == 1
