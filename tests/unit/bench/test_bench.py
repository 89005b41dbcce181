"""What the benchmarks compute from their measurements; no test here measures anything."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest

from amn.bank.bank import ReferenceBank
from amn.predictor import Predictor
from bench.compare import ratios, turned
from bench.cost import decades, medians
from bench.curves import fast_until, per_second, percentiles, rows_shown
from bench.engines import WithoutLoops
from bench.everything import QUICK, steps
from bench.goals import GOALS, goals_table
from bench.machine import cpu_seconds
from bench.overhead import compared
from bench.peers import work
from bench.publish import command as publish
from bench.publish import filled, neutral, sentences
from bench.report import table
from bench.service import sample_contexts
from bench.shares import classify, titled
from bench.systems import BARE, OURS, REQUESTS, TUNED, Run, System, contexts_file, run_one

PEERS = Path("bench/peers")
LVM = Path("artifacts/lvm")


def test_a_sample_belongs_to_the_innermost_known_frame() -> None:
    stacks = [
        "run (workers/loop.py:80);handle (workers/x.py:9);__call__ (amn/model/folded.py:3);addmm (x.py:1) 5",
        "run (workers/engine/loop.py:80);top2 (amn/bank/bank.py:3);dot (numpy/_core.py:1) 4",
        "run (workers/engine/loop.py:80);lease (workers/engine/queue.py:3);read (redis/connection.py:1) 3",
        "run (workers/loop.py:80);assemble (workers/engine/batch.py:3);decode (/me/producer/wire.py:1) 2",
        "run (workers/engine/loop.py:80) 1",
        "boot (threading.py:900);wait (threading.py:331) 50",
        "not a line",
    ]
    assert classify(stacks) == {"model": 5, "gate": 4, "Redis": 3, "wire": 2, "other Python": 1}


def test_a_flame_graph_names_no_folder_of_the_machine_that_drew_it() -> None:
    flame = (
        f'<text id="title" x="1">py-spy record --pid 1</text><title>{Path.cwd()}/amn/model/folded.py</title>'
    )
    assert titled(flame) == (
        '<text id="title" x="1">An AMN worker that drains a full queue</text>'
        "<title>amn/model/folded.py</title>"
    )


def test_publishing_fills_the_sections_it_has_texts_for_and_leaves_the_others() -> None:
    page = "a\n<!-- begin: drain -->\nold\n<!-- end: drain -->\n"
    page += "b\n<!-- begin: cost -->\nkept\n<!-- end: cost -->\n"
    once = filled(page, {"drain": "new \\1"}, {"drain": "img/d.svg", "cost": "img/c.svg"})
    assert "old" not in once
    assert "new \\1\n\n![drain](img/d.svg)\n<!-- end: drain -->" in once
    assert "kept" in once
    assert "img/c.svg" not in once
    assert filled(once, {"drain": "new \\1"}, {"drain": "img/d.svg"}) == once


def test_goals_say_what_held_what_did_not_and_what_was_not_measured() -> None:
    rates = [
        {"rate": rate, "ms_p95": {"median": p95}, "ms_p99": {"median": 3.0}}
        for rate, p95 in ((1000, 1.0), (3000, 1.1))
    ]
    table = goals_table({"latency-bank": {"rates": rates, "saturation_per_s": 6000}}).splitlines()
    assert len(table) == len(GOALS) + 2
    assert "| p95 at 1,000/s, large bank | at most 1.2 ms | 1 ms | yes | `latency --bank` |" in table
    assert "| p99 at 1,000/s, large bank | at most 2.5 ms | 3 ms | **no** | `latency --bank` |" in table
    share = "share of saturation up to which p95 holds, large bank"
    assert f"| {share} | at least 0.6 | 0.5 | **no** | `latency --bank` |" in table
    assert "| model, one context | at most 60 us | not run |  | `micro` |" in table


def test_what_is_published_names_no_folder_of_the_machine() -> None:
    text = '"--bank", "/srv/data/bank", a/b/c, 5 / 6, redis://127.0.0.1:1/0, answered/s'
    assert neutral(text) == '"--bank", "bank", a/b/c, 5 / 6, redis://127.0.0.1:1/0, answered/s'


def test_a_full_run_and_a_quick_one_fill_the_whole_page() -> None:
    page = Path("docs/benchmarks.md").read_text("utf-8")
    names = re.findall("<!-- begin: (.*) -->", page)
    assert names == re.findall("<!-- end: (.*) -->", page)
    assert len(names) == len({*names}) == 7
    for plan in steps(), QUICK:
        assert {*names} <= {"goals", *(words.split()[0] for words, _ in plan)}


def test_the_page_shows_the_sentences_of_a_step_without_its_tables() -> None:
    assert sentences("1 x\n\n| a |\n|---|\n| 1 |\n\nmachine m.\n") == "1 x\n\nmachine m."


def test_what_a_worker_drains_is_compared_with_bare_commands_and_then_model_and_gate() -> None:
    median = {"median": 10_000.0}
    limits = {"drain_per_s": {"median": 25_000.0}, "enqueue_per_s": {"median": 40_000.0}}
    drained = {"workers": {"1": {"drain_per_s": median, "enqueue_per_s": median}}, "alone_us": 20.0}
    rows = [{"rate": 1000.0, "ms_p95": {"median": ms}} for ms in (3.0, 2.0)]
    reports = {"drain": drained | {"bare": limits}, "latency-alone": {"rates": rows[:1]}}
    table = goals_table(reports | {"peer-latency": {"systems": {BARE: {"rates": rows[1:]}}}})
    assert "bare drain, then model and gate | at least 0.7 x | 0.6 x | **no** |" in table
    assert "bare XADD of the same bytes | at least 0.65 x | 0.25 x | **no** |" in table
    assert "over a bare loop | at most 1.5 x | 1.5 x | yes |" in table


def test_a_full_run_is_planned_within_its_minutes_and_a_quick_one_within_fifteen() -> None:
    assert sum(minutes for _, minutes in steps(Path("bank"), Path("data"))) <= 45
    assert sum(minutes for _, minutes in steps(Path("bank"), Path("data"), long=True)) <= 90
    assert sum(minutes for _, minutes in QUICK) <= 15


def test_every_step_is_a_command_with_its_options() -> None:
    for words, _ in (*steps(Path("bank"), Path("data")), *QUICK):
        name, *options = words.split()
        command = importlib.import_module(f"bench.{name.replace('-', '_')}").command
        known = {option for parameter in command.params for option in parameter.opts}
        assert {one for one in options if one.startswith("--")} | {"--out"} <= known


def test_reports_of_two_commits_are_no_page(tmp_path: Path) -> None:
    for name in ("abc", "def"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"environment": {"commit": name}}), "utf-8")
    with pytest.raises(click.ClickException, match=r"of the commits abc, def: one page is one run; .*--out"):
        publish.callback(tmp_path)


def test_a_bare_loop_answers_every_request_with_the_vector_of_the_model() -> None:
    """The runner compares answers with direct predictions, and measures latencies of the same loop."""
    system = System.load(BARE)
    with contexts_file() as contexts:
        drained = run_one(Run(system=system, contexts=contexts, words=("--requests", "128")), {})
        words = ("--rates", "200", "--seconds", "0.2")
        paced = run_one(Run(system=system, contexts=contexts, words=words), {"BENCH_STAMP": "1"})
    assert (drained["requests"], drained["checked"]) == (128, 32)
    [row] = paced["rates"]
    assert len(row["ms"]) == 100
    assert min(row["ms"]) > 0


def test_a_percentile_with_few_requests_beyond_it_is_not_shown() -> None:
    row = {"rate": 100.0, "ms_p50": 1.0, "ms_p95": 2.0, "ms_p99": 3.0}
    assert rows_shown([row], 2.0, loop="model") == [
        {"loop": "model", "offered/s": 100.0, "ms_p50": 1.0, "ms_p95": 2.0, "ms_p99": "-"}
    ]


def test_publishing_keeps_the_reports_that_a_run_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`amn capacity` reads some that a quick run does not measure."""
    monkeypatch.chdir(tmp_path)
    kept = Path("artifacts/reports/benchmarks.json")
    for folder in (kept.parent, Path("docs"), Path("run")):
        folder.mkdir(parents=True)
    Path("docs/benchmarks.md").write_text("nothing to fill")
    kept.write_text(json.dumps({"capacity": {"kinds": 1}, "batch": {"runs": 1}}))
    Path("run/batch.json").write_text(json.dumps({"runs": 2, "environment": {"commit": "a"}}))
    publish.callback(Path("run"))
    assert json.loads(kept.read_text()) == {
        "capacity": {"kinds": 1},
        "batch": {"runs": 2, "environment": {"commit": "a"}},
    }


def test_percentiles_leave_out_requests_without_an_answer() -> None:
    assert percentiles([1.0, float("nan"), 3.0]) == {"ms_p50": 2.0, "ms_p95": 2.9, "ms_p99": 2.98}


def test_a_table_has_a_column_for_each_name_and_shows_spreads() -> None:
    spread = {"median": 1234.5, "min": 99.04, "max": 1.0}
    assert table([{"what": "x", "a_b": spread}, {"what": "y", "n": 12_000}]).splitlines() == [
        "| what | a b | n |",
        "|---|---:|---:|",
        "| x | 1,234 (99.0, 1) |  |",
        "| y |  | 12,000 |",
    ]


def test_ratios_are_those_of_medians_against_the_best_other_one() -> None:
    def run(repeat: int, drain: float, enqueue: float) -> dict[str, float]:
        return {"repeat": repeat, "drain_per_s": drain, "enqueue_per_s": enqueue}

    runs = {
        OURS: [run(0, 1000, 50), run(1, 1200, 60), run(2, 1100, 40)],
        "slow": [run(0, 10, 100), run(1, 10, 100), run(2, 10, 100)],
        "good": [run(0, 100, 10), run(1, 120, 10), run(2, 100, 10)],
    }
    found = ratios(runs)
    assert found["drain_per_s"] == {
        "best": "good",
        "of_medians": 11.0,
        "least": 10.0,
        "most": 11.0,
        "repeats": 3,
    }
    assert found["enqueue_per_s"]["best"] == "slow"
    assert found["enqueue_per_s"]["of_medians"] == 0.5
    assert ratios({OURS: runs[OURS]}) == {}


def test_each_repeat_begins_with_another_system() -> None:
    systems = ["a", "b", "c"]
    assert [turned(systems, by)[0] for by in range(4)] == ["a", "b", "c", "a"]  # type: ignore[type-var,arg-type]
    assert sorted(turned(systems, 2)) == systems  # type: ignore[type-var,arg-type]


def test_a_rate_may_be_a_share_of_what_saturates() -> None:
    assert per_second("500", 7_777) == 500
    assert per_second("60%", 7_777) == 4_700


def test_the_objective_holds_up_to_the_first_rate_that_breaks_it() -> None:
    rows = [
        {"rate": rate, "ms_p95": {"median": p95}}
        for rate, p95 in ((500, 0.9), (100, 0.8), (900, 1.3), (2000, 1.1))
    ]
    assert fast_until(rows) == 500
    assert fast_until(rows[2:3]) == 0


def test_a_process_is_asked_for_its_cpu_time_and_one_that_ended_has_none() -> None:
    before_s = time.process_time()
    asked_s = cpu_seconds(os.getpid())
    assert before_s <= asked_s <= time.process_time()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert np.isnan(cpu_seconds(ended.pid))


def test_decades_end_with_what_was_asked_for() -> None:
    assert decades(1_000, 300_000) == [1_000, 10_000, 100_000, 300_000]
    assert decades(1_000, 500) == [500]


def test_rows_of_several_rounds_are_medians_and_the_longest_round_goes_on_alone() -> None:
    short = [[{"requests": 1_000, "worker_cpu_us": value}] for value in (80.0, 120.0)]
    long = [{"requests": 1_000, "worker_cpu_us": 99.0}, {"requests": 10_000, "worker_cpu_us": 70.0}]
    assert medians([*short, long]) == long
    assert medians([short[1], short[0], short[1]]) == short[1]


def test_every_other_system_runs_with_a_concurrency_that_was_swept() -> None:
    tuned = json.loads(TUNED.read_text("utf-8"))["systems"]
    for name in set(REQUESTS) - {OURS}:
        tree = ast.parse((PEERS / f"{name}.py").read_text("utf-8"))
        constants = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        if "CHOICES" in constants:
            choices = ast.literal_eval(constants["CHOICES"])
            assert tuned[name]["choice"] in choices
            assert set(tuned[name]["drain_per_s"]) == set(choices)


def test_without_loops_means_numpy_and_leaves_the_loops_to_everybody_else() -> None:
    before = sys.modules["amn.kernel.bindings"]
    plain = WithoutLoops(LVM / "production_model", LVM / "reference_bank")
    assert sys.modules["amn.kernel.bindings"] is before
    assert type(plain.predictor) is not Predictor
    assert not plain.features.__globals__["kernel"].READY
    ours = Predictor.open(LVM / "production_model", LVM / "reference_bank")
    few = sample_contexts()[:2]
    vectors = plain.predictor.forward(few)
    np.testing.assert_allclose(vectors, ours.forward(few), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(plain.predictor.bank.top2(vectors).ids, ours.bank.top2(vectors).ids)


def test_what_others_would_write_themselves_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    context = sample_contexts()[0].astype("<f4").tobytes()
    fast = np.frombuffer(work.answer(context), "<f4")
    monkeypatch.setattr(work, "WRITTEN", True)
    monkeypatch.setattr(ReferenceBank, "top2", None)  # not even asked
    np.testing.assert_allclose(np.frombuffer(work.answer(context), "<f4"), fast, rtol=0, atol=1e-5)


def test_an_overhead_is_the_change_against_the_same_round_without_the_part() -> None:
    def run(worker_us: float) -> dict[str, float]:
        return {"worker_us": worker_us, "server_us": 10.0, "answered_per_s": 1_000.0}

    rows = compared(
        {"off": [run(100), run(200)], "off again": [run(100), run(200)], "on": [run(110), run(230)]}
    )
    assert rows["off"]["worker CPU, us"] == 150
    assert rows["off again"]["worker CPU, us"] == "+0.0% (+0.0% to +0.0%)"
    assert rows["on"]["worker CPU, us"].startswith("+12.5% (+10.0% to +15.0%")
