"""The examples that no page runs: a model of one's own, and Grafana with Prometheus."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.parse
from pathlib import Path

import httpx
import pytest
import yaml
from command import ROOT, Amn
from documents import blocks, environment
from servers import free_port
from waiting import wait_until

GRAFANA = ROOT / "examples" / "grafana"


@pytest.mark.slow
@pytest.mark.timeout(600)  # it trains two models
def test_a_model_of_one_s_own_is_trained_promoted_and_asked(tmp_path: Path) -> None:
    script = ROOT / "examples" / "own_model.sh"
    text = script.read_text("utf-8").replace("\\\n", " ")
    shown = [block.text for block in blocks("docs/train-your-own.md", "sh") if block.verb == "by"]
    page = "".join(shown).replace("\\\n", " ")
    said = [" ".join(line.split()) for line in text.splitlines()]
    assert [line for line in page.splitlines() if " ".join(line.split()) not in said] == []
    with subprocess.Popen(
        ["bash", script],
        cwd=tmp_path,
        env=environment() | {"AMN_EVALUATE_NO_LATENCY": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=580)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, printed
    link = (tmp_path / "models" / "production_model" / "manifest.json").read_text("utf-8")
    assert f"answered by amn@{json.loads(link)['sha256'][:12]} with confidence 0." in printed


def test_every_example_is_short() -> None:
    files = [file for file in (ROOT / "examples").iterdir() if file.suffix in (".py", ".sh", ".mjs")]
    files += GRAFANA.rglob("*.yml")
    assert len(files) == 11
    assert [file.name for file in files if file.read_text("utf-8").count("\n") >= 80] == []


def test_what_grafana_gets_fits_the_dashboard_and_listens_on_loopback_alone() -> None:
    services = yaml.safe_load((GRAFANA / "compose.yml").read_text("utf-8"))["services"]
    mounted = {}
    for service in services.values():
        assert service["network_mode"] == "host"
        for volume in service["volumes"]:
            source, target, mode = volume.split(":")
            assert (GRAFANA / source).exists(), volume
            assert mode == "ro"
            mounted[target] = (GRAFANA / source).resolve()
    folder = GRAFANA / "provisioning"
    [source] = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    [dashboards] = yaml.safe_load((folder / "dashboards" / "amn.yml").read_text("utf-8"))["providers"]
    [file] = [
        file for name, file in mounted.items() if Path(name).parent == Path(dashboards["options"]["path"])
    ]
    variables = {one["name"]: one for one in json.loads(file.read_text("utf-8"))["templating"]["list"]}
    assert variables["source"]["query"] == source["type"] == "prometheus"
    listens = services["prometheus"]["command"].partition("--web.listen-address=")[2]
    assert source["url"] == f"http://{listens}"
    assert listens.startswith("127.0.0.1:")
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


@pytest.mark.needs("promtool")
def test_prometheus_scrapes_a_service_by_these_files(service: Amn, tmp_path: Path) -> None:
    """A real Prometheus, which Debian's package of promtool brings."""
    metrics, port = free_port(), free_port()
    text = (GRAFANA / "prometheus.yml").read_text("utf-8")
    assert "127.0.0.1:9464" in text
    text = text.replace("127.0.0.1:9464", f"127.0.0.1:{metrics}").replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(text, "utf-8")
    (tmp_path / "amn-rules.yml").symlink_to(ROOT / "ops" / "deploy" / "prometheus" / "amn-rules.yml")
    address = f"http://127.0.0.1:{port}/api/v1/query?query=" + urllib.parse.quote('amn_server_up{job="amn"}')
    words = ["--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    exporter = subprocess.Popen(
        service.command("metrics", "--port", metrics), cwd=service.folder, env=service.environment, **quiet
    )
    prometheus = subprocess.Popen(["prometheus", *words, "--storage.tsdb.path=data"], cwd=tmp_path, **quiet)

    def scraped() -> bool:
        try:
            found = httpx.get(address, trust_env=False).json()["data"]["result"]
        except (httpx.HTTPError, ValueError, KeyError):  # it is starting
            return False
        return [one["value"][1] for one in found] == ["1"]

    try:
        wait_until(scraped, 30)
    finally:
        for process in (prometheus, exporter):
            process.terminate()
            process.wait(20)
