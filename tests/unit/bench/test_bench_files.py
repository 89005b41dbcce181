"""The figures of a file's run come from the moments at which its parts appear."""

from __future__ import annotations

import pytest

from bench.files import GROUP_ROWS, Reading, figures


def readings(*parts: int, megabytes: float = 300.0) -> list[Reading]:
    """One a second; the processes of client and server spend 0.5 and 0.25 s of it."""
    return [
        Reading(count, float(i), megabytes, {"client": 0.5 * i, "server": 0.25 * i}, 1_000 * i)
        for i, count in enumerate(parts)
    ]


@pytest.mark.parametrize(
    ("parts", "rows", "rate"),
    [
        ((0, 1), 5_000, 5_000.0),
        ((0, 1, 2), 2 * GROUP_ROWS, GROUP_ROWS),
        ((0, 0, 2), 2 * GROUP_ROWS, GROUP_ROWS),
        ((0, 0, 0, 0, 1, 2, 3, 4, 5, 5), 5 * GROUP_ROWS, GROUP_ROWS),
    ],
)
def test_a_file_of_few_row_groups_has_a_rate_too(parts: tuple[int, ...], rows: int, rate: float) -> None:
    found = figures(readings(*parts), rows)
    assert found["shown"]["rows/s"] == rate
    assert found["cpu_us"]["client"] == pytest.approx(0.5e6 / rate)
    assert found["shown"]["bytes a row through the server"] == pytest.approx(1_000 / rate)


def test_memory_after_the_first_rows_stands_beside_the_most() -> None:
    early = readings(0, 1)
    late = [one._replace(resident_mb=340.0) for one in readings(0, 1, 2, 3, 4)[2:]]
    shown = figures([*early, *late], 4 * GROUP_ROWS)["shown"]
    assert (shown["MB after 20,000 rows"], shown["most MB"]) == (300.0, 340.0)
