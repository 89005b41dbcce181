"""python -m bench beside: live traffic beside a file, and without it, in turns.

A file of documents goes through `amn predict`, a process of its own. It is stopped and let go again, so that
each phase beside it stands between two without it; requests at the level `normal` are sent at random times
all the while, and counted from when they were due, as `amn run` does.
"""

from __future__ import annotations

import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bench.curves import percentiles
from bench.files import SAMPLE, started, write_documents
from bench.machine import environment
from bench.report import out_option, write
from ops.local.server import ServerSettings
from ops.local.stack import Stack
from ops.run.traffic import TrafficSender, TrafficSettings
from ops.sample import Sample
from producer import Producer, ProducerSettings
from producer.keys import Keys
from producer.transport.connection import connect
from workers.pool.settings import PoolSettings

#: So long a phase settles before it is measured.
_SETTLE_S = 2.0
_DRAIN_S_MAX = 60.0


@click.command("beside")
@click.option("--rates", default="200,500", show_default=True, help="Live requests a second.")
@click.option("--seconds", default=15.0, show_default=True, help="Of each phase.")
@click.option("--rounds", default=3, show_default=True, help="Phases of each kind.")
@out_option
def command(rates: str, seconds: float, rounds: int, out: Path) -> None:
    """Measure live traffic beside a file; writes beside.json and beside.md."""
    surroundings = environment()
    phases: list[dict[str, Any]] = []
    ratios: list[dict[str, float]] = []
    counts = {"amn": 1, "fallback": 1}
    with (
        tempfile.TemporaryDirectory() as name,
        Stack(counts, PoolSettings(url=""), ServerSettings()) as service,
    ):
        documents, url = Path(name) / "documents.parquet", service.settings.url
        write_documents(documents, 1_000_000)
        with FileWork(url, documents, Path(name) / "out") as file:
            live(url, 100, _SETTLE_S, "warm")
            for rate in map(int, rates.split(",")):
                alone, beside = [], []
                for number in range(rounds):
                    alone.append(live(url, rate, seconds, f"{rate}-{number}-alone"))
                    with file.going():
                        rows, from_s = file.rows(), time.perf_counter()
                        figures = live(url, rate, seconds, f"{rate}-{number}-beside")
                        rows_per_s = (file.rows() - rows) / (time.perf_counter() - from_s)
                    beside.append(figures | {"file rows/s": rows_per_s})
                    phases += [{"rate": rate, "beside": "nothing", **alone[-1]}]
                    phases += [{"rate": rate, "beside": "a file", **beside[-1]}]
                    click.echo(phases[-2:], err=True)
                ratios.append({"rate": rate, **compared(alone, beside)})
    report = {"environment": surroundings, "phases": phases, "ratios": ratios}
    note = (
        f"Phases of {seconds:g} s in turns, in one run; one AMN and one fallback worker, all programs "
        "on the same cores. A ratio is of the medians of the phases; its noise is that of the phases without "
        "anything beside them."
    )
    write(out, "beside", report, phases, ratios, note)


def compared(alone: Sequence[Mapping[str, float]], beside: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return p50 and p95 beside a file over those without it, and how far these differ by themselves."""
    found = {}
    for name in ("ms_p50", "ms_p95"):
        both, own = ([one[name] for one in some] for some in (beside, alone))
        found[f"{name[3:]} ratio"] = statistics.median(both) / statistics.median(own)
        found[f"{name[3:]} noise"] = max(own) / min(own)
    return found


class FileWork:
    """A context manager: in it, an `amn predict` that stands still but within `going`."""

    def __init__(self, url: str, source: Path, out: Path) -> None:
        self._process = started(source, out, "--url", url)
        self._client, self._keys = connect(ProducerSettings(url=url)), Keys()

    def __enter__(self) -> FileWork:
        self._wait(lambda: self.rows() > 10_000, "begins")
        self._stop()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._client.close()

    def rows(self) -> int:
        """Return the rows that AMN answered so far, without those that came again for a fallback."""
        names = ["batch:contexts", "batch:reason:asked_for"]
        every, again = (int(n or 0) for n in self._client.hmget(self._keys.stats, names))
        return every - again

    @contextmanager
    def going(self) -> Iterator[None]:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)
        time.sleep(_SETTLE_S)
        try:
            yield
            if self._process.poll() is not None:
                raise click.ClickException("the file was done too early; use fewer or shorter phases")
        finally:
            self._stop()

    def _stop(self) -> None:
        """Stop it, and wait until the workers have done what it left."""
        self._process.send_signal(signal.SIGSTOP)
        keys = self._keys
        self._wait(lambda: not any(self._client.xlen(key) for key in (keys.low, keys.fallback)), "ends")
        time.sleep(_SETTLE_S)

    def _wait(self, is_true: Callable[[], bool], what: str) -> None:
        until_s = time.monotonic() + _DRAIN_S_MAX
        while not is_true():
            if time.monotonic() > until_s:
                raise click.ClickException(f"the file never {what}")
            time.sleep(0.1)


def live(url: str, rate: int, seconds: float, name: str) -> dict[str, float]:
    """Return percentiles of requests at the level `normal`, in milliseconds from due to AMN's answer."""
    settings = TrafficSettings(requests=int(rate * seconds), rate=rate, poisson=True, run_id=name)
    with Producer(settings=ProducerSettings(url=url)) as producer:
        record = TrafficSender(producer, Sample.load(SAMPLE), settings).run()
    return percentiles(record.amn_ms + record.send_lag_ms)
