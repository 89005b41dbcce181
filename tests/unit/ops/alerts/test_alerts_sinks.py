"""What each sink sends and how it reads answers; secrets; the file of sinks."""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import logging
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from receiver import Receiver, running

from ops.alerts.alert import Alert
from ops.alerts.config import FILE_VARIABLE, AlertsConfig, configured, load, load_usable
from ops.alerts.receipts import pause_ms
from ops.alerts.secret import Secret, resolve
from ops.alerts.sender import send_trial
from ops.alerts.settings import AlertSettings
from ops.alerts.sinks import apprise as apprise_module
from ops.alerts.sinks import http
from ops.alerts.sinks.apprise import Apprise
from ops.alerts.sinks.base import Message, Sink, SinkAnswer, shown
from ops.alerts.sinks.http import of_response, retry_after_ms
from ops.alerts.sinks.services import PagerDuty, Slack, Webhook, signature_headers
from ops.clock import parse_span, span
from ops.commands.alerts import alerts as command
from ops.errors import SinksRefused

NOW = 1_800_000_000_000
KEY = base64.b64encode(b"a" * 32).decode()
OTHER = base64.b64encode(b"b" * 32).decode()
SETTINGS = AlertSettings(environment="prod", runbook_url="https://wiki.example.com/amn")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running() as one:
        yield one


def envelope(kind: Any = "trigger", **values: Any) -> Message:
    common = {
        "id": "f" * 32,
        "incident": "1",
        "rule": "ood_delta",
        "severity": "page",
        "model": "v12",
        "lane": "text",
        "summary": "OOD delta 0.078 -> 0.041 <x> & y",
        "latest": "OOD delta 0.080",
        "values": {"drop": 0.037, "n_ood": 4310},
        "runbook": "ood_delta",
        "since_ms": NOW - 300_000,
        "fired_ms": NOW - 180_000,
        "told_ms": NOW,
        "resolved_ms": NOW if kind == "resolve" else 0,
        "phase": "ok" if kind == "resolve" else "firing",
    }
    alert = Alert(**{**common, **values})
    return Message(kind=kind, alert=alert, now_ms=NOW, queue="main", settings=SETTINGS)


def send(sink: Sink, *kinds: str, **values: Any) -> list[SinkAnswer]:
    return [sink.send(envelope(kind, **values)) for kind in kinds]


def test_pagerduty_gets_a_trigger_and_a_resolve_of_one_key(receiver: Receiver) -> None:
    sink = PagerDuty(name="p", routing_key=Secret("R" * 32), url=receiver.url + "/v2/enqueue")
    assert [answer.outcome for answer in send(sink, "trigger", "resolve")] == ["accepted"] * 2
    trigger, resolve_ = (call.json for call in receiver.calls)
    assert resolve_ == {"routing_key": "R" * 32, "event_action": "resolve", "dedup_key": "f" * 32}
    assert trigger["payload"]["severity"] == "critical"
    assert trigger["payload"]["custom_details"]["drop"] == 0.037
    assert trigger["links"] == [{"href": "https://wiki.example.com/amn#ood_delta", "text": "runbook"}]


def test_pagerduty_limits_are_kept(receiver: Receiver) -> None:
    sink = PagerDuty(name="p", routing_key=Secret("R" * 32), url=receiver.url)
    send(sink, "trigger", summary="x" * 5000, severity="ticket")
    [call] = receiver.calls
    assert len(call.json["payload"]["summary"]) == 1024
    assert len(call.json["dedup_key"]) <= 255
    assert call.json["payload"]["severity"] == "warning"


def test_slack_says_what_happened_and_escapes_it(receiver: Receiver) -> None:
    sink = Slack(name="s", url=Secret(receiver.url + "/services/T/B/SECRET"))
    send(sink, "trigger", "resolve")
    first, last = (call.json["text"] for call in receiver.calls)
    assert "[PAGE] ood_delta of v12 in lane text" in first
    assert "&lt;x&gt; &amp; y" in first
    assert "runbook: https://wiki.example.com/amn#ood_delta" in first
    assert "resolved:" in last
    assert "for 5 min" in last
    assert "now: OOD delta 0.080" in last
    assert not sink.wants("reminder", "page")


def test_a_webhook_is_a_signed_cloud_event(receiver: Receiver) -> None:
    sink = Webhook(name="w", url=receiver.url + "/hook", keys=(Secret("whsec_" + KEY), Secret(OTHER)))
    send(sink, "trigger", "trigger")
    first, again = receiver.calls
    assert first.headers["content-type"] == "application/cloudevents+json"
    event = first.json
    assert (event["specversion"], event["type"], event["id"]) == (
        "1.0",
        "amn.alert.v1",
        "ffffffff-1-trigger-page",
    )
    assert event["source"] == "/amn/prod/main"
    assert event["data"]["values"] == {"drop": 0.037, "n_ood": 4310}
    signed = f"{event['id']}.{first.headers['webhook-timestamp']}.".encode() + first.body
    for key, mark in zip((b"a" * 32, b"b" * 32), first.headers["webhook-signature"].split(), strict=True):
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        assert mark == f"v1,{expected}"
    assert again.headers["webhook-id"] == first.headers["webhook-id"] == event["id"]


def test_the_signature_is_that_of_the_standards_own_example() -> None:
    # Source: the Standard Webhooks specification, reference test vector.
    key = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signature_headers([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("key", ["", "short", "whsec_", base64.b64encode(b"x" * 23).decode(), "!" * 40])
def test_a_weak_signing_key_is_refused(key: str) -> None:
    with pytest.raises(SinksRefused, match="openssl rand"):
        Webhook(name="w", url="http://x", keys=(Secret(key),))


@pytest.mark.filterwarnings("ignore:.imghdr:DeprecationWarning")  # apprise, on Python 3.11 and 3.12
def test_apprise_delivers_to_what_it_knows(receiver: Receiver) -> None:
    sink = Apprise(name="a", url=Secret(f"json://127.0.0.1:{receiver.port}/x"))
    receiver.answers = [200, 500]
    assert [answer.outcome for answer in send(sink, "trigger", "resolve")] == ["accepted", "again"]
    assert receiver.calls[0].json["title"] == "[PAGE] ood_delta of v12 in lane text, on queue main of prod"
    with pytest.raises(SinksRefused, match="does not understand"):
        Apprise(name="a", url=Secret("nonsense"))


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, "accepted"), (202, "accepted"), (204, "accepted"),
        (400, "refused"), (413, "refused"), (422, "refused"),
        (301, "again"), (401, "again"), (403, "again"), (404, "again"), (408, "again"), (410, "again"),
        (429, "again"), (500, "again"), (503, "again"),
    ],
)  # fmt: skip
def test_an_answer_is_read_by_its_status(status: int, outcome: str) -> None:
    assert of_response(status).outcome == outcome


def test_overload_asks_for_minutes_when_it_does_not_say_how_long() -> None:
    assert of_response(429).wait_ms == 60_000
    assert of_response(503).wait_ms == 0
    assert of_response(429, headers={"retry-after": "7"}).wait_ms == 7_000


@pytest.mark.parametrize(
    ("header", "wait_ms"),
    [("120", 120_000), ("0", 0), ("", 0), ("soon", 0), ("-5", 0), ("999999999", 3_600_000),
     ("9" * 5_000, 3_600_000), ("0" * 5_000, 3_600_000), ("\u0661\u0662", 0), ("1.5", 0), ("120, 120", 0),
     ("Thu, 01 Jan 2026 00:01:00 GMT", 60_000), ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
     ("Wed, 21 Oct 2099 07:28:00 GMT", 3_600_000), ("Thu, 01 Jan 2026 00:01:00 -0000", 0),
     ("Thu, 01 Jan 2026 00:01:00 +99999999999999", 0), ("Thu, 99 Jan 99999 99:99:99 GMT", 0), (",." * 99, 0)],
)  # fmt: skip
def test_retry_after_has_two_forms_and_an_end(header: str, wait_ms: int) -> None:
    assert retry_after_ms(header, datetime(2026, 1, 1, tzinfo=UTC)) == wait_ms


def test_nobody_there_a_hang_up_and_a_time_out_are_tried_again(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = PagerDuty(name="p", routing_key=Secret("R" * 32), url=receiver.url)
    receiver.answers = [0]
    assert send(sink, "trigger")[0].outcome == "again"
    receiver.delay_s = 1.0
    monkeypatch.setattr(http, "DEADLINE_S", 0.5)
    [answer] = send(sink, "trigger")
    assert (answer.outcome, answer.detail) == ("again", "no answer within 0.5 s")
    receiver.stop()
    assert send(sink, "trigger")[0].outcome == "again"


class Odd:
    """A receiver on bare sockets: sends a head, and then a piece again and again until nobody listens."""

    def __init__(self, head: bytes, piece: bytes, pause_s: float) -> None:
        self._head, self._piece, self._pause_s = head, piece, pause_s
        self.sent = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(caller,), daemon=True).start()

    def _answer(self, caller: socket.socket) -> None:
        with caller, suppress(OSError):
            caller.recv(65_536)
            caller.sendall(self._head)
            while True:
                caller.sendall(self._piece)
                self.sent += len(self._piece)
                time.sleep(self._pause_s)

    def __enter__(self) -> Odd:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()


_OK, _NO = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 no\r\n"


@pytest.mark.parametrize(
    ("head", "piece", "pause_s", "outcome"),
    [
        (b"", b"", 0.1, "again"),
        (_OK, b"x: y\r\n", 0.1, "again"),
        (_OK + b"\r\n", b"x", 0.1, "accepted"),
        (_NO + b"\r\n", b"x", 0.1, "again"),
        (_OK + b"Content-Length: 9\r\n\r\n", b"", 0.1, "accepted"),
        (_NO + b"\r\n", b"x" * 1_000_000, 0.0, "again"),
        (_OK + b"Transfer-Encoding: chunked\r\n\r\n", b"8\r\nxxxxxxxx\r\n", 0.0, "accepted"),
        (_NO + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(9**8)), b"", 0.1, "again"),
        (_OK + b"x: " + b"y" * 10_000_000, b"y", 0.0, "again"),
        (_OK, b"HTTP/1.1 100 Continue\r\n\r\n", 0.0, "again"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01, "again"),
        (_NO + b"Retry-After: " + b"9" * 5_000 + b"\r\n\r\n", b"x", 0.1, "again"),
        (_NO[:-2] + b"\x1b[2J\xff\r\n\r\n", b"\x1b[2J\xff", 0.0, "again"),
        (b"HTTP/1.1 302 see\r\nLocation: file:///etc/passwd\r\n\r\n", b"", 0.1, "again"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"x", 0.1, "again"),
    ],
)
def test_a_receiver_has_little_time_and_is_read_little(
    head: bytes, piece: bytes, pause_s: float, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DEADLINE_S", 1.5)
    with Odd(head, piece, pause_s) as odd:
        sink = PagerDuty(name="p", routing_key=Secret("R" * 32), url=f"http://127.0.0.1:{odd.port}/x")
        began_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        [answer] = send(sink, "trigger")
        assert time.monotonic() - began_s < 4
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000
        assert answer.outcome == outcome, answer
        assert answer.detail.isprintable()
        assert len(answer.detail) <= 200
        assert odd.sent < 10_000_000


@pytest.mark.filterwarnings("ignore:.imghdr:DeprecationWarning")
@pytest.mark.parametrize(("piece", "pause_s"), [(b"x: y\r\n", 0.1), (b"", 0.1)])
def test_apprise_has_no_more_time_than_the_others(
    piece: bytes, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apprise_module, "DEADLINE_S", 3.0)
    with Odd(_OK, piece, pause_s) as odd:
        began_s = time.monotonic()
        [answer] = send(Apprise(name="a", url=Secret(f"json://127.0.0.1:{odd.port}/x")), "trigger")
        assert (answer.outcome, time.monotonic() - began_s < 8) == ("again", True)


def test_whatever_is_raised_on_the_way_is_an_outcome(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = PagerDuty(name="p", routing_key=Secret("R" * 32), url=receiver.url)
    for value in ("socks5://127.0.0.1:1", "carrier-pigeon://x", "http://[::1", "\u2100"):
        monkeypatch.setenv("ALL_PROXY", value)
        [answer] = send(sink, "trigger")
        assert (answer.outcome, bool(answer.detail)) == ("again", True)
        monkeypatch.delenv("ALL_PROXY")
    odd = ("http://a..b/", "http://[::1", "http://x" * 100, f"http://{'a' * 70}.example/", "http://\u2100.x/")
    for url in odd:
        [answer] = send(PagerDuty(name="p", routing_key=Secret("R" * 32), url=url), "trigger")
        assert (answer.outcome, bool(answer.detail)) == ("again", True)
    monkeypatch.setattr(PagerDuty, "event", lambda *_: {}["gone"])
    assert send(sink, "trigger")[0].outcome == "again"
    monkeypatch.undo()
    assert send(sink, "trigger", values={"drop": float("nan")})[0].outcome == "accepted"


@pytest.mark.parametrize("more", ["", "fd07:b51a:cc66:f0::/64", "[::1]", "10.0.0.0/8", " *.x ,,"])
def test_what_no_proxy_names_is_reached_whatever_else_is_in_it(
    more: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    sink = PagerDuty(name="p", routing_key=Secret("R" * 32), url=receiver.url)
    monkeypatch.setenv("NO_PROXY", more)
    assert send(sink, "trigger")[0].outcome == "again"
    monkeypatch.setenv("NO_PROXY", f"{more},127.0.0.1")
    assert send(sink, "trigger")[0].outcome == "accepted"


def test_an_answer_or_an_error_shows_no_part_of_a_secret() -> None:
    secrets = [
        Secret("https://hooks.example.com/services/T0000000/B1111111?token=abcdefghij"),
        Secret("R" * 32),
    ]
    said = shown(f"no route to /services/T0000000/B1111111 with abcdefghij for {'R' * 32}\n\x1b[2J", secrets)
    assert not any(part in said for part in ("T0000000", "B1111111", "abcdefghij", "RRRR", "\x1b", "\n"))


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080"),
        ("HTTP_PROXY", "carrier-pigeon://x"),
        ("SSL_CERT_FILE", "/nowhere/ca.pem"),
    ],
)
def test_an_environment_in_which_nothing_can_be_sent_is_refused_at_the_start(
    variable: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, '[sinks.am]\ntype = "alertmanager"\nurl = "http://127.0.0.1:9"')
    http._trusted.cache_clear()
    assert load_usable(path).sinks
    http._trusted.cache_clear()
    monkeypatch.setenv(variable, value)
    with pytest.raises(SinksRefused, match=r"nothing could be sent .* HTTP_PROXY"):
        load_usable(path)
    http._trusted.cache_clear()


def test_back_off_doubles_and_scatters() -> None:
    waits = [pause_ms(n, 1.0) for n in range(1, 10)]
    assert waits == [5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000, 300_000]
    assert pause_ms(3, 0.0) == 10_000
    assert pause_ms(1_000_000, 1.0) == 300_000


def write(folder: Path, text: str) -> Path:
    path = folder / "alerts.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.filterwarnings("ignore:.imghdr:DeprecationWarning")  # apprise, on Python 3.11 and 3.12
def test_a_file_of_every_kind_of_sink_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook").write_text(KEY + "\n", "utf-8")
    monkeypatch.setenv("AMN_ENVIRONMENT", "staging")
    monkeypatch.setenv("PD", "R" * 32)
    monkeypatch.setenv("HOOK", "https://hooks.example.com/s")
    monkeypatch.setenv("MAIL", "json://127.0.0.1:9/x")
    path = write(
        tmp_path,
        f"""
        [sinks.pager]
        type = "pagerduty"
        routing_key = {{ env = "PD" }}
        severities = ["page"]
        [sinks.chat]
        type = "slack"
        url = {{ env = "HOOK" }}
        [sinks.am]
        type = "alertmanager"
        url = "http://127.0.0.1:9093"
        [sinks.hook]
        type = "webhook"
        url = "https://example.com/hook"
        keys = [{{ file = "{tmp_path / "hook"}" }}]
        [sinks.mail]
        type = "apprise"
        url = {{ env = "MAIL" }}
        secondary = true
        """,
    )
    found = load(path)
    assert list(found.sinks) == ["pager", "chat", "am", "hook", "mail"]
    assert found.settings.environment == "staging"
    assert found.sinks["mail"].secondary
    assert found.sinks["pager"].wants("trigger", "page")
    assert not found.sinks["pager"].wants("trigger", "ticket")
    for secret in ("R" * 32, "hooks.example.com/s", KEY, "127.0.0.1:9/x"):
        assert secret not in repr(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[sinks.p]\ntype = "pagerduty"\nrouting_key = "RRRR"', "where the secret is"),
        ('[sinks.p]\ntype = "pagerduty"\nrouting_key = { env = "UNSET" }', "UNSET is empty or not set"),
        ('[sinks.p]\ntype = "slack"\nurl = { file = "/nowhere/x" }', "cannot read file /nowhere/x"),
        ('[sinks.p]\ntype = "pagerduty"', "routing_key is missing"),
        ('[sinks.p]\ntype = "carrier-pigeon"', "must be one of pagerduty"),
        ('[sinks.p]\ntype = "alertmanager"\nurl = "ftp://x"', "no http or https"),
        ('[sinks.p]\ntype = "alertmanager"\nurl = "http://x"\nport = 1', "port is not known"),
        ('[sinks.p]\ntype = "alertmanager"\nurl = "http://x"\nseverities = ["loud"]', "list of ticket, page"),
        ('[sinks.p]\ntype = "alertmanager"\nurl = "http://x"\nsecondary = true', "every sink is secondary"),
        ('[sinks."a b"]\ntype = "slack"', "a name has"),
        ("sinks = 3", "sinks is not known"),
        ("colour = 3", "colour is not known"),
        ("not toml", "is not TOML"),
        ("a = " + "[" * 10_000, "is not TOML"),
        ("a = " + "9" * 10_000, "is not TOML"),
        ('[sinks.p]\ntype = ["slack"]', "must be one of pagerduty"),
        ('[sinks.p]\ntype = "alertmanager"\nurl = "http://x"\nseverities = [["page"]]', "list of ticket"),
        ('[sinks.p]\ntype = "alertmanager"\nurl = 5', "no http or https"),
        ('[sinks.p]\ntype = "slack"\nurl = { file = "/dev/zero" }', "no regular file"),
    ],
)
def test_a_file_that_cannot_be_used_says_where_and_why(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SinksRefused) as refused:
        load(write(tmp_path, text))
    assert said in str(refused.value)
    assert "RRRR" not in str(refused.value)


def test_the_environment_alone_makes_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not configured()
    assert load().sinks == {}
    (tmp_path / "key").write_text("R" * 32, "utf-8")
    monkeypatch.setenv("AMN_ALERTS_PAGERDUTY_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("AMN_ALERTS_ALERTMANAGER_URL", "http://user:pass@127.0.0.1:9093")
    monkeypatch.setenv("AMN_ALERTS_WEBHOOK_URL", "https://example.com/x")
    monkeypatch.setenv("AMN_ALERTS_WEBHOOK_KEY", KEY)
    found = load()
    assert configured()
    assert sorted(found.sinks) == ["alertmanager", "pagerduty", "webhook"]
    assert "pass" not in repr(found)
    monkeypatch.setenv(
        FILE_VARIABLE, str(write(tmp_path, '[sinks.am]\ntype = "alertmanager"\nurl = "http://x"'))
    )
    assert sorted(load().sinks) == ["alertmanager", "am", "pagerduty", "webhook"]
    refused = CliRunner().invoke(command, ["test", "pager"]).exception
    assert isinstance(refused, SinksRefused)
    assert "configured: alertmanager, am" in str(refused)


def test_a_secret_shows_nothing() -> None:
    assert "hush" not in f"{Secret('hush')!r} {Secret('hush')} {[Secret('hush')]}"
    for reference in ("hush", {"env": "A", "file": "B"}, {"value": "hush"}, 3):
        with pytest.raises(SinksRefused) as refused:
            resolve(reference, "sink x: key")
        assert "hush" not in str(refused.value)


def test_no_address_is_logged(receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sink = Slack(name="s", url=Secret(receiver.url + "/services/HUSH"))
    answers = send_trial(AlertsConfig(settings=SETTINGS, sinks={}), sink, "main")
    assert [answer.outcome for answer in answers.values()] == ["accepted"] * 2
    assert "HUSH" not in caplog.text


def test_the_command_tries_a_sink_out(receiver: Receiver, tmp_path: Path) -> None:
    path = str(write(tmp_path, f'[sinks.am]\ntype = "alertmanager"\nurl = "{receiver.url}"'))
    done = CliRunner().invoke(command, ["test", "am", "--config", path])
    assert (done.exit_code, done.output) == (0, "trigger: accepted 202 {}\nresolve: accepted 202 {}\n")
    receiver.answers = [503]
    done = CliRunner().invoke(command, ["test", "am", "--config", path, "--json"])
    assert done.exit_code == 1
    assert json.loads(done.output)["trigger"]["outcome"] == "again"


def test_lengths_of_time_are_read_and_shown() -> None:
    lengths = {"90s": 90_000, "30m": 1_800_000, "2h": 7_200_000, "3d": 259_200_000}
    assert {text: parse_span(text) for text in lengths} == lengths
    shown = {5_000: "5 s", 300_000: "5 min", 7_260_000: "2 h 1 min", 90_000_000: "1 d 1 h"}
    assert {ms: span(ms) for ms in shown} == shown
    for wrong in ("", "0h", "2", "h", "-1h", "1w", "1.5h"):
        with pytest.raises(ValueError, match="no length of time"):
            parse_span(wrong)
