"""The command line: help that helps, and errors of one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ops import settings
from ops.app import run
from ops.commands.options import login_name
from ops.errors import FileRefused, ServerUnknown
from ops.settings import SERVICE_FILE, ServiceRecord, producer_settings, service, workers_default
from producer import Producer
from producer.errors import QueueError

COMMANDS = ["run", "up", "predict", "doctor", "dlq", "jobs", "bank"]


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_an_option_is_set_by_the_variable_of_its_own_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMN_DLQ_REPLAY_WAIT", "for ever")
    code, _, err = outcome(capsys, "dlq", "replay", "--all")
    assert code == 2
    assert "--wait" in err
    monkeypatch.setenv("AMN_DEBUG", "1")
    monkeypatch.setattr("ops.commands.policy.load_policy", _broken)
    with pytest.raises(ZeroDivisionError):
        run(["policy", "show", "card"])


def _broken(*_: object) -> None:
    raise ZeroDivisionError


def test_a_run_without_workers_of_its_own_kills_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = outcome(capsys, "run", "--workers", "0", "--kill-worker")
    assert code == 2
    assert "--workers 0 starts none" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = outcome(capsys, command, "--help")
    assert code == 0
    assert f"amn {command}" in out.split("Example")[1]


def test_the_command_list_is_not_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = outcome(capsys, "--help")
    assert code == 0
    for command in COMMANDS:
        (line,) = [line for line in out.splitlines() if line.startswith(f"  {command} ")]
        assert line.endswith("." if "?" not in line else "?")
        assert "..." not in line


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["nonsense"], "nonsense"),
        (["run", "--requests", "0"], "--requests"),
        (["run", "--sample-rate", "0.5"], "0.01 to 0.05"),
        (["run", "--policy", "mine"], "mine"),
        (["predict", "in.npy"], "--out"),
        (["predict", "a", "--out", "b", "--lane", "fast"], "fast"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = outcome(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("amn: ")
    assert err.count("\n") == 1
    assert what in err
    assert "--help" in err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["run", "--sample", "nowhere.npz"], "nowhere.npz"),
        (["run", "--url", "redis://127.0.0.1:1"], "127.0.0.1:1"),
        (["run", "--url", "redis://:secret@127.0.0.1:1"], ":***@"),
        (["run", "--url", "http://example"], "http://example"),
        (["doctor", "--url", "unix:///nowhere/redis.sock"], "/nowhere/redis.sock"),
        (["doctor", "--alive", "amn", "--url", "redis://127.0.0.1:1"], "127.0.0.1:1"),
        (["predict", "nowhere.npy", "--out", "out.npy"], "nowhere.npy"),
        (["bank", "info", "nowhere"], "nowhere"),
        (["bank", "build", "nowhere.npy", "--out", "bank"], "nowhere.npy"),
        (["jobs", "submit", "predict", "no.npy", "--out", "o", "--url", "redis://127.0.0.1:1"], "no.npy"),
        (["jobs", "list", "--url", "redis://127.0.0.1:1"], "127.0.0.1:1"),
    ],
)
def test_a_failure_is_one_line_and_code_1(
    arguments: list[str],
    what: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    sample = Path("artifacts/sample/sequences.npz").resolve()
    monkeypatch.chdir(tmp_path)
    if "--sample" not in arguments and arguments[0] == "run":
        arguments = [*arguments, "--sample", str(sample)]
    code, out, err = outcome(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith("amn: ")
    assert err.count("\n") == 1
    assert what in err
    assert "secret" not in err


def test_without_the_extra_one_sentence_says_what_to_install() -> None:
    code = "import sys; sys.modules['click'] = None; from ops.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("pip install 'amn-queue[ops]'")
    assert ended.stderr.count("\n") == 1


def test_ctrl_c_while_the_command_is_loaded_is_one_line() -> None:
    code = (
        "import sys\n"
        "class Interrupted:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'ops.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupted())\n"
        "from ops import cli\n"
        "cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "amn: interrupted\n")


def test_options_come_from_the_environment_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMN_RUN_RATE", "fast")
    code, _, err = outcome(capsys, "run")
    assert code == 2
    assert "'fast'" in err


def test_the_server_is_flag_then_environment_then_the_one_of_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ServiceRecord(url="unix:///here", queue="mine", artifacts="/models").write(tmp_path)
    assert service(None, tmp_path).url == "unix:///here"
    assert service(None, tmp_path).found == str(file)
    monkeypatch.setenv("REDIS_URL", "redis://environment")
    assert service(None, tmp_path) == ServiceRecord(url="redis://environment", found="REDIS_URL")
    assert service("redis://flag", tmp_path) == ServiceRecord(url="redis://flag", found="--url")
    monkeypatch.setenv("REDIS_URL", "unix:///here")  # what `amn up` tells one to export
    assert service(None, tmp_path).artifacts == "/models"


def test_nobody_is_asked_when_no_server_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = (
        ["doctor"], ["alerts", "list"], ["metrics", "--once"], ["dlq", "list"], ["drift", "status"],
        ["policy", "status"], ["jobs", "list"], ["jobs", "worker"], ["worker", "amn"],
    )  # fmt: skip
    for words in commands:
        code, out, err = outcome(capsys, *words)
        assert (code, out) == (1, ""), words
        assert "give --url, set REDIS_URL" in err
        assert err.count("\n") == 1
    (tmp_path / SERVICE_FILE).write_text("{half")
    with pytest.raises(ServerUnknown, match=r"cannot be read.*start `amn up` again"):
        service(None, tmp_path)


def test_the_record_of_a_service_is_for_its_user_alone_and_names_its_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMN_UP_DATA", str(tmp_path))
    (tmp_path / SERVICE_FILE).touch(0o644)
    file = ServiceRecord(url="redis://:secret@127.0.0.1:27001/0", queue="mine").write(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [SERVICE_FILE]
    assert "secret" not in repr(service())
    assert producer_settings(None, None).queue == "mine"
    assert producer_settings(None, "other").queue == "other"
    monkeypatch.setenv("AMN_QUEUE", "another")
    assert producer_settings(None, None).queue == "another"


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 1), (4, 3), (256, 64)])
def test_a_core_is_left_for_the_rest(cores: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "cores", lambda: cores)
    assert workers_default() == workers


@pytest.mark.parametrize("command", ["run", "up"])
def test_the_help_tells_how_many_workers_there_are_by_default(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = outcome(capsys, command, "--help")
    assert "default: (cores - 1)" in " ".join(out.split())


def test_a_bank_is_built_and_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    vectors = np.random.default_rng(0).standard_normal((50, 768)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(tmp_path / "v.npy", np.vstack([vectors, vectors[:5]]))
    folder = str(tmp_path / "bank")
    code, out, _ = outcome(
        capsys, "bank", "build", str(tmp_path / "v.npy"), "--out", folder, "--encoder", "e"
    )
    assert code == 0
    assert "50 vectors, 5 merged away" in out
    code, out, _ = outcome(capsys, "bank", "info", folder)
    assert code == 0
    assert "bank@" in out
    code, _, err = outcome(
        capsys, "bank", "build", str(tmp_path / "v.npy"), "--out", folder, "--encoder", "e"
    )
    assert code == 1
    assert "exists already" in err


@pytest.mark.parametrize("name", ["AMN_UP_PORT", "AMN_METRICS_PORT", "AMN_WORKER_AMN_QUEUE_PORT"])
def test_what_kubernetes_sets_for_a_service_of_its_own_is_no_option(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "tcp://10.96.3.7:9464")
    code, _, err = outcome(capsys, "metrics", "--port", "nonsense")
    assert (code, "tcp://" in err) == (2, False)
    code, _, err = outcome(capsys, "up", "--workers", "0")
    assert (code, "tcp://" in err) == (2, False)
    monkeypatch.setenv("AMN_METRICS_PORT", "http")
    assert "'http' is not a valid integer" in outcome(capsys, "metrics", "--once")[2]


def test_bytes_of_another_encoding_are_replaced_where_text_comes_in_and_kept_in_paths(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []

    def refuse(**how: Any) -> None:
        seen.append(how)
        raise FileRefused("seen")

    monkeypatch.setattr("ops.commands.predict.PredictSettings", refuse)
    outcome(capsys, "predict", "caf\udce9.npy", "--out", str(tmp_path / "\udce9"), "--carry", "d\udce9")
    [how] = seen
    assert how["sources"] == ("caf\udce9.npy",)
    assert how["out"] == str(tmp_path / "\udce9")
    assert how["carry"] == ("d\ufffd",)


@pytest.mark.parametrize("command", [["alerts", "silence"], ["drift", "rebaseline"]], ids=" ".join)
def test_a_user_without_a_name_is_a_number(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert login_name() == f"uid {os.getuid()}"
    words = [*command, "--reason", "x", "--url", "redis://127.0.0.1:1"]
    words += ["--rule", "level", "--for", "1h"] if command[0] == "alerts" else []
    code, _, err = outcome(capsys, *words)
    assert (code, "127.0.0.1:1" in err) == (1, True)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rediss://127.0.0.1:1?ssl_ca_certs=/nowhere/ca.pem", "ssl_ca_certs names /nowhere/ca.pem"),
        ("rediss://127.0.0.1:1?ssl_certfile=/nowhere/c.pem", "ssl_certfile names /nowhere/c.pem"),
        ("rediss://127.0.0.1:1?ssl_keyfile=/", "ssl_keyfile names /, which cannot be read: Is a directory"),
        (f"unix:///{'s' * 120}/redis.sock", "the path of a socket takes at most 107 bytes"),
    ],
)
def test_an_address_that_no_waiting_mends_is_refused_at_once(url: str, said: str) -> None:
    with pytest.raises((QueueError, ValueError), match=re.escape(said)) as refused:
        Producer(url).submit([], block=True)
    assert not getattr(refused.value, "retryable", False)


FOLDERS = {
    "read-only": "chmod 500 .",
    "without HOME": "unset HOME",
    "without TMPDIR": "export TMPDIR=/nowhere",
    "with few files": "ulimit -n 16",
    "without input": "exec <&-",
}


@pytest.mark.parametrize("around", FOLDERS)
def test_an_odd_place_to_run_is_one_clear_line_or_none(around: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    for words in ("up --data f", "doctor --url redis://127.0.0.1:1"):
        script = f'{FOLDERS[around]}; exec "{sys.executable}" -P -m ops.cli {words}'
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, 1, 2)
        assert done.stderr.count("\n") == (done.returncode != 0)
        assert "Traceback" not in done.stderr
