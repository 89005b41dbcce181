"""The page in a browser, on a running service under load: each fault is told in words, and its end too."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import redis
from command import Amn
from numpy.typing import NDArray
from servers import Server, free_port
from viewer import Viewer, start_page, viewer
from waiting import wait_until

from ops.alerts import AlertSettings, apply
from ops.findings import Finding
from ops.leader import leader_key
from producer import Producer
from producer.errors import QueueError, QueueFull
from producer.keys import Keys
from producer.settings import ProducerSettings

pytestmark = [pytest.mark.slow, pytest.mark.needs("chromium"), pytest.mark.timeout(240)]

KEYS = Keys("main")
#: What must be seen on the page is seen within this.
SEEN_MS = 5_000
Contexts = NDArray[np.float32]


@dataclass
class Shown:
    """The page of a service in a browser, and what else the test needs of both."""

    viewer: Viewer
    amn: Amn
    server: Server
    client: redis.Redis
    port: int
    dashboards: list[subprocess.Popen[str]]
    loads: threading.Event

    @property
    def page(self) -> Any:
        return self.viewer.page

    def sees(self, words: str, where: str = "main", within_ms: int = SEEN_MS) -> None:
        self.page.locator(where, has_text=re.compile(words, re.IGNORECASE)).first.wait_for(timeout=within_ms)

    def sees_no_more(self, words: str, where: str = "main", within_ms: int = 30_000) -> None:
        found = self.page.locator(where, has_text=re.compile(words, re.IGNORECASE))
        wait_until(lambda: found.count() == 0, within_ms / 1000)

    def snapshot(self) -> dict[str, Any]:
        found: dict[str, Any] = self.page.request.get(f"http://127.0.0.1:{self.port}/api/snapshot").json()
        return found

    def workers(self, kind: str) -> list[int]:
        """Process ids of the workers that are alive."""
        rows = self.snapshot()["workers"]
        return [one["pid"] for one in rows if one["kind"] == kind and one["state"] in ("working", "idle")]

    def rows(self, section: str) -> list[dict[str, str]]:
        """The texts of a section's first table, row by row, by the titles of its columns."""
        table = self.page.locator(f"#{section} .now table").first
        titles = table.locator("thead th").all_inner_texts()
        found = [row.locator("th, td").all_inner_texts() for row in table.locator("tbody tr").all()]
        return [dict(zip(titles, row, strict=True)) for row in found]


@contextmanager
def load(url: str, contexts: Contexts) -> Iterator[threading.Event]:
    """Sends about fifty requests a second while the event is set, whatever becomes of the service."""
    ended, wanted = threading.Event(), threading.Event()
    wanted.set()

    def send() -> None:
        with Producer(url) as producer:
            number = 0
            while not ended.wait(0.02):
                number += 1
                if not wanted.is_set():
                    continue
                try:
                    producer.submit(contexts[number % len(contexts)], deadline_ms=20_000)
                except QueueError:
                    continue

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    try:
        yield wanted
    finally:
        ended.set()
        sender.join(30)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, real_contexts: Contexts) -> Iterator[Shown]:
    amn, port = Amn(tmp_path_factory.mktemp("page")), free_port()
    server = Server("valkey", arguments=("--appendonly", "yes")).start()
    up = amn.start("up", "--url", server.url, "--workers", 2, "--no-dashboard")
    dashboards = [start_page(amn.folder, port, server.url, amn.environment)]
    log = amn.folder / "up.log"
    try:
        wait_until(lambda: "Ctrl-C drains" in log.read_text() or up.poll() is not None)
        assert up.poll() is None, log.read_text()
        wait_until(lambda: f":{port}" in (amn.folder / "page.log").read_text())
        with (
            closing(server.client()) as client,
            load(server.url, real_contexts) as loads,
            viewer(port) as seen,
        ):
            yield Shown(seen, amn, server, client, port, dashboards, loads)
    finally:
        for process in (up, *dashboards):
            process.send_signal(signal.SIGTERM)
        for process in (up, *dashboards):
            process.wait(40)
        server.close()


def violations(page: Any) -> list[tuple[str, list[str]]]:
    """Rules of axe-core that the page breaks, each with the first place."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["target"]) for one in found]


def test_a_service_that_is_well_is_said_to_be_well(shown: Shown) -> None:
    shown.sees("Well", "#state")
    shown.sees(r"\d/s", "#tiles", 10_000)
    assert shown.page.title() == "Well: main"


def test_the_numbers_of_the_page_are_those_of_the_server(shown: Shown) -> None:
    def held(worker: str) -> int:
        return int(shown.client.hget(KEYS.workers_prefix + worker, "finished") or -1)

    def compared() -> bool:
        rows = shown.rows("workers")
        return len(rows) == 4 and all(count(row["answered"]) == held(row["worker"]) for row in rows)

    def count(text: str) -> int:
        return int(text.replace(",", ""))

    shown.loads.clear()
    try:
        wait_until(compared, 20)
        waits = {row["stream"]: count(row["waiting"]) for row in shown.rows("streams")}
        assert waits["amn"] == shown.client.xlen(KEYS.requests)
        assert waits["fallback"] == shown.client.xlen(KEYS.fallback)
    finally:
        shown.loads.set()


def test_a_worker_that_was_killed_is_told_and_another_one_takes_its_place(shown: Shown) -> None:
    [pid, *_] = shown.workers("amn")
    os.kill(pid, signal.SIGKILL)
    shown.sees("worker.*(died|went silent)", "#verdict")
    wait_until(lambda: pid not in shown.workers("amn") and len(shown.workers("amn")) == 2)


def test_a_worker_that_was_stopped_is_named_until_it_goes_on(shown: Shown) -> None:
    [pid, *_] = shown.workers("amn")
    os.kill(pid, signal.SIGSTOP)
    try:
        shown.sees("went silent.*killed, stopped or cut off", "#verdict")
        shown.sees(f"-{pid}-.*(stuck|gone)", "#workers tr")
    finally:
        os.kill(pid, signal.SIGCONT)
    shown.sees_no_more("went silent", "#verdict")
    shown.sees(f"-{pid}-.*(working|idle)", "#workers tr")


def test_a_poison_message_is_told_with_its_reason_and_gone_when_it_is_purged(shown: Shown) -> None:
    shown.client.xadd(KEYS.requests, {"request": b"no message of this wire format"})
    shown.sees("dead letter", "#verdict")
    shown.sees("undecodable.*its bytes could not be read", "#dead tr")
    dialog = shown.page.get_by_role("dialog")
    shown.page.get_by_text("Look at the newest").click()
    shown.page.get_by_role("button", name="Look …").click()
    dialog.get_by_text("undecodable").first.wait_for(timeout=SEEN_MS)
    time.sleep(1.5)  # a snapshot comes meanwhile, and closes nothing
    assert shown.page.get_by_text("Look at the newest").locator("..").get_attribute("open") is not None
    dialog.get_by_role("button", name="Close").click()
    shown.page.get_by_role("button", name="Purge").click()
    dialog.get_by_text(re.compile("1 ")).first.wait_for(timeout=SEEN_MS)
    assert violations(shown.page) == []
    dialog.get_by_role("checkbox").check()
    dialog.get_by_role("button", name="Purge for good").click()
    dialog.get_by_role("button", name="Close").click(timeout=SEEN_MS)
    assert shown.client.xlen(KEYS.dead) == 0
    shown.sees_no_more("dead letter", "#verdict")
    shown.sees("None: every request got an answer", "#dead")


def test_a_full_queue_is_told_while_it_refuses_requests(shown: Shown, real_contexts: Contexts) -> None:
    settings = ProducerSettings(url=shown.server.url, entries_max=1)
    full_until_s = time.monotonic() + 4
    with Producer(settings=settings) as producer:
        refused = 0
        while time.monotonic() < full_until_s:
            try:
                producer.submit_many(real_contexts[:64])
            except QueueFull:
                refused += 1
            if refused == 3:
                shown.sees("queue is full", "#verdict")
                refused += 1
    assert refused > 3
    shown.sees_no_more("queue is full", "#verdict")


def test_a_drift_alert_is_told_until_it_ends(shown: Shown) -> None:
    def judged(state: Any, minutes: int) -> None:
        """Writes what a judge's evaluation so many minutes from now would, in place of the one that runs."""
        finding = Finding(
            rule="ood_delta",
            severity="page",
            state=state,
            model="amn@test",
            summary="the OOD delta is 0.041 below its baseline",
            runbook="ood_delta",
            evaluations=1,
        )
        fence = int(shown.client.get(leader_key(KEYS)) or 0)
        now_ms = int(time.time() * 1000) + minutes * 60_000
        apply(shown.client, KEYS, [finding], now_ms=now_ms, fence=fence, settings=AlertSettings())

    judged("firing", 0)
    shown.sees("Broken", "#state")
    shown.sees("the OOD delta is 0.041 below its baseline", "#verdict")
    shown.sees("firing.*ood delta", "#alerts li")
    dialog = shown.page.get_by_role("dialog")
    shown.page.get_by_role("button", name="Silence …").click()
    dialog.get_by_label("Why").fill("it is known, and <b>somebody</b> works on it")
    dialog.get_by_role("button", name="Silence", exact=True).click()
    dialog.get_by_role("button", name="Close").click(timeout=SEEN_MS)
    shown.sees("silenced.*ood delta", "#alerts li")
    shown.sees("<b>somebody</b>", "#alerts table")
    shown.page.get_by_role("button", name="End …").click()
    dialog.get_by_role("button", name="End it").click()
    dialog.get_by_role("button", name="Close").click(timeout=SEEN_MS)
    shown.sees("firing.*ood delta", "#alerts li")
    judged("ok", 31)
    judged("ok", 45)
    shown.sees_no_more("0.041 below", "#verdict")


def test_nothing_on_the_page_is_closed_to_a_keyboard_or_a_screen_reader_in_either_theme(shown: Shown) -> None:
    page = shown.page
    for theme, width in (("light", 1280), ("dark", 360)):
        page.emulate_media(color_scheme=theme)
        page.set_viewport_size({"width": width, "height": 900})
        assert violations(page) == [], theme
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.set_viewport_size({"width": 1280, "height": 900})
    page.get_by_text("Skip to the verdict").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.get_by_label("1 h", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_label("6 h", exact=True).is_checked()


def test_a_server_that_is_away_is_told_and_the_page_goes_on_when_it_is_back(shown: Shown) -> None:
    shown.server.kill()
    shown.sees("server cannot be reached", "#verdict")
    shown.sees("numbers below are old", "#old")
    shown.server.start()
    shown.sees_no_more("cannot be reached", "#verdict")
    shown.sees_no_more("are old", "#old", 1_000)


def test_a_service_in_which_everything_is_over_is_said_to_be_well_again(shown: Shown) -> None:
    shown.sees("Well", "#state", 40_000)
    shown.sees_no_more("worker.*(died|went silent)", "#verdict", 40_000)


def test_a_page_to_which_nothing_comes_says_that_it_is_old(shown: Shown) -> None:
    os.kill(shown.dashboards[0].pid, signal.SIGSTOP)
    try:
        shown.sees("Nothing has come", "#old")
        shown.sees("what you see is old", "#verdict")
        shown.sees(r"\d s old", "#freshness")
    finally:
        os.kill(shown.dashboards[0].pid, signal.SIGCONT)
    shown.sees_no_more("Nothing has come", "#old")


def test_a_page_whose_process_is_away_says_so_itself(shown: Shown) -> None:
    shown.dashboards[0].kill()
    shown.dashboards[0].wait()
    shown.sees("amn dashboard, does not answer", "#old")
    shown.sees("Unknown", "#state")
    shown.dashboards.append(start_page(shown.amn.folder, shown.port, shown.server.url, shown.amn.environment))
    shown.sees_no_more("does not answer", "#old", 20_000)
    shown.sees("Live", "#freshness")


def test_no_request_left_the_machine_and_no_rule_of_the_browser_was_broken(shown: Shown) -> None:
    own = f"http://127.0.0.1:{shown.port}/"
    assert len(shown.viewer.asked) > 5
    assert [address for address in shown.viewer.asked if not address.startswith(own)] == []
    failed = re.compile(r"Failed to load resource: (net::ERR_|the server responded with a status of 50[03])")
    assert [text for text in shown.viewer.said if not failed.match(text)] == []
