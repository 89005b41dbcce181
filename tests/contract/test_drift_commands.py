"""`amn drift` as a person types it, on real servers with two days of made-up sums."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ops.app import app
from ops.clock import server_now_ms
from ops.drift.lab.synthetic import Scenario, sums
from ops.drift.loop import Judge
from ops.drift.measures.statistics import N, X
from ops.drift.settings import JudgeSettings
from ops.errors import FileRefused
from ops.leader import leader_key
from producer.keys import Keys
from workers.shadow.scores import MILLION, Labels

KEYS = Keys("main")
MODEL = "amn@0123456789ab"
LANES = ("general", "policy/procedure")
BUSY = Scenario(rate_per_s=100, sample=0.02, ood_share=0.3, lanes=2, weekend=0.0, wander=0.0, mixture=0.0)
Amn = Callable[..., Result]


def fill(server: Any, drop: float) -> int:
    """A minute's sums in the first minute of each block of 30 h; the drop is in the last three."""
    now_ms = server_now_ms(server.admin)
    blocks = 30 * 12
    whole = sums(BUSY, 2, np.random.default_rng(0), (drop, 0.0), blocks - 36)[..., :blocks]
    with server.admin.pipeline(transaction=False) as pipe:
        for t in range(blocks):
            for offset in range(5):
                minute = (now_ms // 300_000 - blocks + t) * 5 + offset
                pipe.hset(f"{KEYS.drift_minute_prefix}{minute}", mapping=fields(whole[..., t]))
                pipe.zadd(KEYS.drift_minutes, {str(minute): minute})
        pipe.execute()
    return now_ms


def fields(block: Any) -> dict[str, int]:
    """A fifth of a block, as the shadow worker writes a minute."""
    found = {}
    for i, lane in enumerate(LANES):
        for s, name in enumerate(("ood", "id")):
            n = round(block[i, N, s] / 5)
            mean = block[i, X, s] / max(block[i, N, s], 1)
            label = Labels(MODEL, lane, name)
            stats = {"predictions": n, "n": n, "amn.sum": round(n * mean * MILLION)}
            stats |= {
                "amn.squares": round(n * (mean**2 + 0.0225) * MILLION),
                "h160": n // 2,
                "h155": n - n // 2,
            }
            found |= {label.field(stat): amount for stat, amount in stats.items()}
    return found | stand_ins() | inputs()


def stand_ins() -> dict[str, int]:
    """AMN against the fallback and against the nearest reference, in three requests of weight 20."""
    found = {}
    for tier, mean in (("model", 0.7), ("reference", 0.4)):
        label = Labels(MODEL, LANES[0], "id", tier)
        stats = {"n": 3, "w.sum": 60, "amn.wsum": round(60 * mean * MILLION), "amn.sum": 1, "h170": 3}
        found |= {label.field(stat): amount for stat, amount in stats.items()}
    return found


def inputs() -> dict[str, int]:
    """Ten scored inputs in two cells."""
    label = Labels(MODEL, "all", "all", "input")
    stats = {"n": 10, "s40": 160, "s70": 40, "c3": 160, "c17": 40}
    return {label.field(stat): amount for stat, amount in stats.items()}


@pytest.fixture
def amn(real_server: Any) -> Amn:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["drift", *arguments], env={"REDIS_URL": real_server.url})

    return run


def judged(server: Any, drop: float) -> None:
    """As if a judge had looked every half hour since a day had passed."""
    now_ms = fill(server, drop)
    judge = Judge(server.admin, KEYS, JudgeSettings())
    for minutes_ago in range(5 * 60, -1, -30):
        judge.turn(now_ms - minutes_ago * 60_000)
    judge.resign()


def test_status_says_it_in_one_line_and_in_json(real_server: Any, amn: Amn) -> None:
    judged(real_server, 0.07)
    shown = amn("status")
    assert shown.exit_code == 0, shown.output
    last = shown.output.strip().splitlines()[-1]
    assert re.match(
        r"PAGE fast_drop of amn@\w+: OOD delta fell by 0\.0\d+ \+- 0\.0\d+ since \d\d:\d\d UTC", last
    )
    plain = json.loads(amn("status", "--json").output)
    assert plain["verdict"] == last
    firing = [f["rule"] for f in plain["findings"] if f["state"] == "firing" and not f["beside"]]
    assert firing == ["fast_drop"]
    assert {(s["model"], s["lane"]) for s in plain["series"]} == {(MODEL, lane) for lane in ("", *LANES)}
    assert plain["judge_at_work"]
    shown_apart = {(one["tier"], one["slice"]): one["mean"] for one in plain["not_judged"]}
    assert shown_apart == {("model", "id"): pytest.approx(0.7), ("reference", "id"): pytest.approx(0.4)}
    assert "not judged: no truth" in shown.output


def test_status_of_health_names_the_drop_and_its_interval(real_server: Any, amn: Amn) -> None:
    judged(real_server, 0.0)
    last = amn("status").output.strip().splitlines()[-1]
    pattern = (
        r"OK: OOD delta 0\.0\d+, baseline 0\.0\d+: drop [+-]0\.0\d+ \(99 % CI [+-]0\.\d+ to [+-]0\.\d+\)"
    )
    assert re.match(pattern, last), last


def test_status_changes_nothing(real_server: Any, amn: Amn) -> None:
    fill(real_server, 0.0)
    before = set(real_server.admin.keys("*"))
    assert amn("status").exit_code == 0
    assert set(real_server.admin.keys("*")) == before


def test_status_of_an_empty_server_cannot_judge_yet(amn: Amn) -> None:
    shown = amn("status")
    assert "CANNOT JUDGE YET" in shown.output
    assert "has never looked" in shown.output


def test_check_by_hand_writes_and_its_exit_code_tells_of_a_page(real_server: Any, amn: Amn) -> None:
    judged(real_server, 0.07)
    assert amn("check").exit_code == 1
    assert real_server.admin.exists(leader_key(KEYS)) == 0  # it gave the leadership back


def test_check_beside_a_judge_only_looks(real_server: Any, amn: Amn) -> None:
    fill(real_server, 0.0)
    real_server.admin.set(leader_key(KEYS), "7")
    shown = amn("check")
    assert "another judge leads" in shown.output
    assert real_server.admin.exists(KEYS.drift_prefix + "judge") == 0


def test_rebaselining_needs_a_reason_and_a_model_that_is_known(real_server: Any, amn: Amn) -> None:
    judged(real_server, 0.07)
    assert amn("rebaseline").exit_code == 2
    assert amn("rebaseline", "--reason", "x", "--model", "nobody").exit_code == 2
    done = amn("rebaseline", "--reason", "new encoder", "--who", "ada", "--hours", "2")
    assert done.exit_code == 0, done.output
    assert amn("check").exit_code == 0
    entries = json.loads(amn("audit", "--json").output)
    assert {"what": "rebaseline", "who": "ada", "why": "new encoder"}.items() <= entries[0].items()
    assert "ada" in amn("audit").output


class Page(HTMLParser):
    """Collects what a page would load, its ids, and whether its tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.loads.append(value or "")

    handle_startendtag = handle_starttag


def test_the_report_is_one_page_that_loads_nothing(real_server: Any, amn: Amn, tmp_path: Path) -> None:
    judged(real_server, 0.07)
    out = tmp_path / "report.html"
    assert amn("report", "--out", str(out)).exit_code == 0
    text = out.read_text("utf-8")
    page = Page(text)
    assert page.tags.count("svg") == 2
    assert page.loads == []
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert "PAGE fast_drop" in text
    assert "Cells that grew most: none" in text
    assert 'the nearest reference</td><td>id</td><td class="right">0.4000</td>' in text
    assert "currentColor" in text
    assert "color-scheme: light dark" in text
    assert "#010203" not in text


def test_the_report_of_an_empty_server_says_so(amn: Amn, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert amn("report", "--out", str(out)).exit_code == 0
    assert "Nothing was sampled" in out.read_text("utf-8")
    refused = amn("report", "--out", str(out), "--model", "amn@9")
    assert isinstance(refused.exception, FileRefused)
    assert "'amn@9' in the last eight days; of these it was: none" in str(refused.exception)
