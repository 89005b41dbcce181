"""The samples of deployments start what `amn up` starts, start again what hangs, and are valid."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ops.commands import options
from ops.commands.up import _beside
from ops.local.parts import BESIDE, PARTS, WORKERS

ROOT = Path(__file__).resolve().parents[4]
DEPLOY = ROOT / "ops" / "deploy"
WORDS = {part.name: list(part.words) for part in PARTS}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    assert found.pop("server")
    return found


def manifests(name: str = "amn.yaml") -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text("utf-8")))


def deployments() -> dict[str, dict[str, Any]]:
    """The pods' templates by part."""
    found = {one["metadata"]["name"]: one["spec"] for one in manifests() if one["kind"] == "Deployment"}
    return {name.removeprefix("amn-"): spec["template"]["spec"] for name, spec in found.items()}


def units() -> dict[str, configparser.ConfigParser]:
    """Each unit by part, with what is common to all of them."""
    found = {}
    for file in (DEPLOY / "systemd").glob("*.service"):
        unit = configparser.ConfigParser(strict=True, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read([DEPLOY / "systemd" / "amn-.service.d" / "common.conf", file])
        found[file.stem.removeprefix("amn-").rstrip("@")] = unit
    return found


def bare(words: list[str]) -> list[str]:
    """A command without the address that a container listens on."""
    return words[: words.index("--host")] if "--host" in words else words


def test_all_lists_of_what_a_service_consists_of_are_one() -> None:
    assert {name: bare(one["command"].split()) for name, one in compose().items()} == WORDS
    assert {name: bare(spec["containers"][0]["args"]) for name, spec in deployments().items()} == WORDS
    assert {name: unit["Service"]["ExecStart"].split()[1:] for name, unit in units().items()} == WORDS


def test_amn_up_starts_every_part_whose_needs_are_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMN_ALERTS_SLACK_URL", "https://hooks.slack.com/services/x")
    counts = options.worker_counts({"workers": 1, "sample_rate": 0.05}, 1)
    assert set(counts) == {part.name for part in WORKERS}
    started = _beside(None, None, {"metrics": 9464, "page": 9465})
    by_title = {part.title: list(part.words) for part in BESIDE}
    assert {title: words[: len(by_title[title])] for title, words in started.items()} == by_title
    monkeypatch.delenv("AMN_ALERTS_SLACK_URL")
    assert list(_beside(None, "redis+cluster://127.0.0.1:1", {"metrics": 0, "page": 0})) == ["the judge"]


def test_the_words_of_every_part_are_a_command_of_amn() -> None:
    for part in PARTS:
        words = [sys.executable, "-m", "ops.cli", *part.words, "--help"]
        assert subprocess.run(words, cwd=ROOT, capture_output=True, check=False).returncode == 0, part.name


def test_every_part_is_started_again_when_it_ended_and_looked_at_while_it_lives() -> None:
    for name, one in compose().items():
        assert one["restart"] == "unless-stopped", name
        assert one["healthcheck"]["test"][0] == "CMD", name
    for name, spec in deployments().items():
        [container] = spec["containers"]
        assert spec.get("restartPolicy", "Always") == "Always"
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        for probe in ("startupProbe", "livenessProbe"):
            assert environment["AMN_PULSE_FILE"] in " ".join(container[probe]["exec"]["command"]), name
    for name, unit in units().items():
        service = unit["Service"]
        assert (service["Type"], service["Restart"]) == ("notify", "always"), name
        # The process's own watchdog comes first: it says where the process hung.
        assert 60 < int(service["WatchdogSec"]) < 120


def test_each_is_told_what_it_must_know_and_no_secret_is_on_a_command_line() -> None:
    for name, one in compose().items():
        environment = one["environment"]
        assert (
            environment["REDIS_URL"]
            == "redis://:${AMN_PASSWORD:?draw one and put it into .env}@server:6379/0"
        )
        if "--host" in one["command"]:
            assert f"AMN_{name.upper()}_TOKEN" in environment
        assert not re.search("TOKEN|PASSWORD", one["command"])
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", ()))
    for name, spec in deployments().items():
        [container] = spec["containers"]
        secrets = [one["name"] for one in container["env"] if "valueFrom" in one]
        assert secrets == ["AMN_PASSWORD"] + [f"AMN_{name.upper()}_TOKEN"] * ("--host" in container["args"])


DOCUMENTS = [pytest.param(one, id=f"{one['kind']}-{one['metadata']['name']}") for one in manifests()]


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_manifests_hold_against_the_schemas_of_kubernetes(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_the_validation_finds_a_word_that_kubernetes_does_not_know() -> None:
    document = next(one for one in manifests() if one["kind"] == "Deployment")
    document["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.37", strict=True)


def test_the_scaled_objects_name_deployments_that_exist_and_secrets_that_the_manifests_use() -> None:
    names = {(one["kind"], one["metadata"]["name"]) for one in manifests()}
    authentication, *scaled = manifests("keda.yaml")
    [secret] = authentication["spec"]["secretTargetRef"]
    assert (secret["name"], secret["key"]) == ("amn", "metrics-token")
    for one in scaled:
        assert ("Deployment", one["spec"]["scaleTargetRef"]["name"]) in names
        for trigger in one["spec"]["triggers"]:
            assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
            assert trigger["metadata"]["url"] == "http://amn-metrics:9464/backlog"
            assert ("Service", "amn-metrics") in names


def verified(folder: Path, *names: str) -> str:
    """What systemd says of these units."""
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{folder}:"}
    words = ["systemd-analyze", "verify", *(str(folder / name) for name in names)]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=60)
    return "\n".join(line for line in (ended.stdout + ended.stderr).splitlines() if "amn" in line)


@pytest.mark.needs("systemd-analyze")
def test_the_units_hold_before_systemd(tmp_path: Path) -> None:
    folder = tmp_path / "units"
    shutil.copytree(DEPLOY / "systemd", folder)
    for file in folder.glob("*.service"):
        file.write_text(file.read_text("utf-8").replace("/opt/amn/bin/amn", sys.executable), "utf-8")
    names = [file.name.replace("@.", "@1.") for file in folder.glob("*.service")]
    assert verified(folder, "amn.target", *names) == ""
    common = folder / "amn-.service.d" / "common.conf"
    common.write_text(common.read_text("utf-8").replace("WatchdogSec=75", "WatchdogSec=soon"), "utf-8")
    assert "common.conf" in verified(folder, "amn-judge.service")  # what is common is looked at as well
