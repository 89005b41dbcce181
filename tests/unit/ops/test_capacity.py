"""The capacity of a plant: arithmetic on the published constants, each of which a command measures."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.__main__ import main as bench
from ops.capacity import SOURCES, Demand, constants, plant
from ops.commands.capacity import capacity
from ops.errors import FileRefused

ROOT = Path(__file__).resolve().parents[3]
REPORT = ROOT / "artifacts" / "reports" / "benchmarks.json"
ROUND = dict.fromkeys(SOURCES, 1.0) | {
    "amn_per_s": 10_000,
    "producer_per_s": 20_000,
    "fallback_us": 200,
    "shadow_us": 100,
    "server_us": 100,
    "server_mb": 500,
    "waiting_mb": 20_500,
    "waiting": 1_000_000,
    "request_bytes": 16_000,
    "answer_bytes": 4_000,
}


def test_a_plant_by_hand() -> None:
    demand = Demand(rate_per_s=35_000, escalated=0.2, sampled=0.1, busy=0.5, outage_s=10)
    found = plant(demand, ROUND)
    assert (found.amn, found.producers, found.partitions) == (7, 4, 7)
    assert found.fallback == 3  # 7,000 a second of 200 us are 1.4 cores, half of each in use
    assert found.shadow == 1
    assert found.cores == 7 + 4 + 7 + 3 + 1
    assert found.server_gb == pytest.approx(7 * 0.5 + 350_000 * 20e-6)  # 20 kB for each that waits
    assert found.in_gbit_s == pytest.approx((35_000 * 20_000 + 7_000 * 4_000) * 8e-9)


def test_twice_the_rate_takes_no_less_of_anything() -> None:
    known = constants(REPORT)
    rates = [1_000 * 2**n for n in range(11)]
    plants = [plant(Demand(rate_per_s=rate), known) for rate in rates]
    for less, more in itertools.pairwise(plants):
        assert all(getattr(less, name) <= getattr(more, name) for name in less.__dataclass_fields__)
    assert plants[0].amn == plants[0].partitions == 1


def test_every_constant_is_in_the_published_report_and_names_a_command_that_exists() -> None:
    assert constants(REPORT).keys() == SOURCES.keys()
    assert {command for _, _, command in SOURCES.values()} <= set(bench.commands)


@pytest.mark.parametrize("text", ["", "{}", '{"compare": {"systems": []}}'])
def test_a_report_that_lacks_a_constant_is_refused_with_the_command_that_measures_it(
    text: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    report.write_text(text)
    with pytest.raises(FileRefused, match="python -m bench compare" if text else "cannot be read"):
        constants(report)


def run(*words: str) -> str:
    done = CliRunner().invoke(capacity, ["--report", str(REPORT), *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_table_of_the_document_is_what_the_command_says() -> None:
    text = (ROOT / "docs" / "capacity.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*?\| (.*) \|$", text, re.M))
    rates = [1_000, 10_000, 20_000, 100_000, 1_000_000]
    known = constants(REPORT)
    plants = [plant(Demand(rate_per_s=rate), known) for rate in rates]
    assert rows.keys() == set(plants[0].__dataclass_fields__)
    for name, cells in rows.items():
        shown = [float(cell.replace(",", "")) for cell in cells.split(" | ")]
        assert shown == pytest.approx([getattr(one, name) for one in plants], rel=0.01), name


def test_the_command_shows_a_column_for_each_rate_and_json_for_programs() -> None:
    text = run("--rate", "1000", "--rate", "20000", "--constants")
    assert re.search(r"^amn +1 +3", text, re.M)
    assert "python -m bench cost" in text
    found: dict[str, Any] = json.loads(run("--rate", "20000", "--json"))
    assert found["plants"][0]["amn"] == 3
    assert found["constants"]["request_bytes"] > 15_360
