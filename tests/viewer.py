"""The page of a service in a browser, for its tests and its screenshots."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: What a page with actions asks for.
TOKEN = "the-token-of-a-test-and-no-secret"


@dataclass
class Viewer:
    """A page in Chromium.

    Attributes:
        page: Of playwright.    asked: Addresses that it asked for.    said: What it logged.
    """

    page: Any
    asked: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


def start_page(folder: Path, port: int, url: str, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Starts `amn dashboard` in a folder, with actions, and its output in `page.log`."""
    words = ["dashboard", "--url", url, "--port", str(port), "--actions"]
    with (folder / "page.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ops.cli", *words],
            cwd=folder,
            env={**environment, "PYTHONUNBUFFERED": "1", "AMN_DASHBOARD_TOKEN": TOKEN},
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
        )


@contextmanager
def viewer(port: int) -> Iterator[Viewer]:
    """Opens the page on this port of this machine, and logs in as people do."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        # Containers have neither the rights nor the need for Chromium's own sandbox: the page is ours.
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(color_scheme="light", viewport={"width": 1280, "height": 900})
        seen = Viewer(page)
        page.on("request", lambda request: seen.asked.append(request.url))
        page.on("console", lambda message: seen.said.append(message.text))
        page.on("pageerror", lambda error: seen.said.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/")  # leads to the form that asks for the token
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"http://127.0.0.1:{port}/")
        try:
            yield seen
        finally:
            chromium.close()
