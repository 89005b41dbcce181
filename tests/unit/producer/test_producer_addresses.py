"""The server's URL and the way to the right node; no I/O."""

from __future__ import annotations

import ssl
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions as driver

from producer import ProducerSettings
from producer.address import Address, parse_address
from producer.errors import AuthenticationFailed, InvalidSettings, ServerError, ServerUnavailable, TlsFailed
from producer.settings import Tls
from producer.transport.connection import connect, connect_async, options, translated
from producer.transport.routes import Elsewhere, cluster_route, sentinel_route

SEEDS = (("a", 1), ("b", 2))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", Address(kind="tcp", hosts=(("h", 6379),))),
        ("redis://", Address(kind="tcp", hosts=(("localhost", 6379),))),
        ("redis://h:1/3", Address(kind="tcp", hosts=(("h", 1),), db=3)),
        ("redis://:p%40w@h/0", Address(kind="tcp", hosts=(("h", 6379),), password="p@w")),
        ("redis://[::1]:7/0", Address(kind="tcp", hosts=(("::1", 7),))),
        ("unix:///run/s?db=2", Address(kind="unix", path="/run/s", db=2)),
        ("unix://u:p@/run/s", Address(kind="unix", path="/run/s", username="u", password="p")),
        (
            "rediss://u:p@h/1?ssl_ca_certs=/c&ssl_certfile=/d&ssl_keyfile=/k&ssl_check_hostname=false",
            Address(
                kind="tcp", tls=True, hosts=(("h", 6379),), username="u", password="p", db=1,
                ca="/c", certificate="/d", key="/k", check_hostname=False,
            ),
        ),
        (
            "redis+sentinel://u:p@a:1,b/mymaster/2?sentinel_username=s&sentinel_password=t",
            Address(
                kind="sentinel", hosts=(("a", 1), ("b", 26379)), service="mymaster", db=2, username="u",
                password="p", sentinel_username="s", sentinel_password="t",
            ),
        ),
        ("rediss+cluster://a:1,[::2]:3", Address(kind="cluster", tls=True, hosts=(("a", 1), ("::2", 3)))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_url_says_which_servers(url, expected):
    assert parse_address(url) == expected


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://a:1", "mymaster"),
        ("redis+cluster://a:1/2", "only database 0"),
        ("redis://h:port", "numbers"),
        ("redis://h:0", "1 to 65535"),
        ("redis://h:70000", "1 to 65535"),
        ("redis://::1", r"\[brackets\]"),
        ("redis+cluster://a,", "a host is missing"),
        ("redis://h/0/1", "too many parts"),
        ("redis://u:p?w@h", "%3F"),
        ("redis://h?socket_timeout=1", "'socket_timeout' is not known"),
        ("rediss://h?ssl_cert_reqs=none", "'ssl_cert_reqs' is not known"),
        ("rediss://h?ssl_check_hostname=maybe", "true or false"),
        ("redis://u:p#w@h", "%23"),
        ("redis://a,b/0", "one host only"),
        ("valkey://h", "begins with one of"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_with_the_reason(url, why):
    with pytest.raises(InvalidSettings, match=why):
        ProducerSettings(url=url)


@given(before=st.text(max_size=20), after=st.text(max_size=20))
def test_any_text_is_an_address_or_an_error_that_does_not_quote_the_password(before, after):
    for url in (f"redis+sentinel://user:{before}SECRET{after}@h:1/m/0", f"redis:{before}SECRET{after}"):
        try:
            parse_address(url)
        except ValueError as error:
            text = str(error)
        else:
            text = ""
        assert "SECRET" not in text


def test_a_password_is_in_no_repr():
    assert "p-w" not in repr(parse_address("redis+sentinel://u:p-w@a/m?sentinel_password=p-w"))


@pytest.mark.parametrize("block_ms", [0, 500, 90_000])
def test_every_socket_waits_longer_than_its_longest_blocking_read(block_ms):
    settings = ProducerSettings()
    assert options(settings, block_ms)["socket_timeout"] * 1000 == settings.command_timeout_ms + block_ms


@pytest.mark.parametrize(
    "url", ["redis://h", "rediss://h", "unix:///s", "redis+cluster://h", "redis+sentinel://h/m"]
)
def test_the_driver_repeats_nothing_by_itself(url):
    for client in (connect(ProducerSettings(url=url)), connect_async(ProducerSettings(url=url))):
        retry = client.connection_pool.connection_kwargs["retry"]
        assert retry._retries == 0
        assert client.connection_pool.connection_kwargs["protocol"] == 2


def test_the_url_comes_before_the_settings_of_tls(tmp_path):
    ours, theirs = tmp_path / "settings", tmp_path / "url"
    for file in (ours, theirs):
        file.touch()
    tls = Tls(ca=str(ours), check_hostname=False)
    settings = ProducerSettings(url=f"rediss://h?ssl_ca_certs={theirs}&ssl_check_hostname=yes", tls=tls)
    found = connect(settings).connection_pool.connection_kwargs
    assert (found["ssl_ca_certs"], found["ssl_check_hostname"]) == (str(theirs), True)
    found = connect(replace(settings, url="rediss://h")).connection_pool.connection_kwargs
    assert (found["ssl_ca_certs"], found["ssl_check_hostname"]) == (str(ours), False)


def test_the_sentinels_get_their_own_credentials_and_the_master_its():
    url = "redis+sentinel://u:p@a/m?sentinel_username=s&sentinel_password=t"
    found = connect(ProducerSettings(url=url)).connection_pool.connection_kwargs
    assert (found["username"], found["password"]) == ("u", "p")
    assert (found["ask"]["username"], found["ask"]["password"]) == ("s", "t")


def test_a_sentinel_names_the_master_or_nobody():
    route = sentinel_route(SEEDS, "m")
    assert route.heard(("a", 1), [b"h", b"7"]) == ("h", 7)
    assert route.heard(("b", 2), None) is None


def test_the_owner_of_the_slot_is_found_among_the_ranges():
    route = cluster_route(SEEDS, 100)
    ranges = [[0, 99, [b"x", 1, b"id"]], [100, 200, [b"y", 2, b"id"], [b"z", 3, b"id"]]]
    assert route.heard(("a", 1), ranges) == ("y", 2)
    assert cluster_route(SEEDS, 300).heard(("a", 1), ranges) is None


@pytest.mark.parametrize("nothing", [None, b""])
def test_a_node_without_an_address_is_the_one_that_was_asked(nothing):
    assert cluster_route(SEEDS, 5).heard(("a", 1), [[0, 9, [nothing, 7, b"id"]]]) == ("a", 7)


def test_whoever_answered_is_asked_last_the_next_time_and_new_nodes_are_asked_too():
    route = cluster_route(SEEDS, 5)
    route.heard(("a", 1), [[0, 9, [b"y", 2, b"id"]]])
    assert route.nodes == [("b", 2), ("y", 2), ("a", 1)]
    for _ in range(3):
        route.heard(route.nodes[0], [[0, 9, [b"y", 2, b"id"]]])
    assert sorted(route.nodes) == [("a", 1), ("b", 2), ("y", 2)]


def test_a_route_that_may_not_ask_says_so_and_one_that_finds_nobody_names_what_it_looked_for():
    route = sentinel_route(SEEDS, "m")
    refused = driver.AuthenticationError("WRONGPASS")
    assert route.nobody(refused) is refused
    assert "as master of 'm'" in str(route.nobody(None))
    assert "refused" in str(route.nobody(OSError("refused")))


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (driver.ResponseError("CLUSTERDOWN The cluster is down"), ServerUnavailable),
        (driver.ClusterDownError("The cluster is down"), ServerUnavailable),
        (driver.MasterDownError("Link with MASTER is down"), ServerUnavailable),
        (driver.TryAgainError("Multiple keys request during rehashing of slot"), ServerUnavailable),
        (driver.ResponseError("TRYAGAIN Multiple keys"), ServerUnavailable),
        (driver.ResponseError("NOREPLICAS Not enough good replicas to write."), ServerUnavailable),
        (
            driver.ResponseError("Script attempted to access a non local key in a"),
            ServerUnavailable,
        ),
        (Elsewhere("MOVED 1 a:1"), ServerUnavailable),
        (driver.MovedError("1 a:1"), ServerError),
        (driver.ResponseError("MOVED 1 a:1"), ServerError),
        (driver.ResponseError("The user executing the script can't run this command"), AuthenticationFailed),
        (driver.ResponseError("ACL failure in script: User u has no permissions"), AuthenticationFailed),
        (driver.InvalidResponse("Protocol Error"), ServerError),
    ],
    ids=str,
)
def test_what_topologies_say_has_a_name(raised, expected):
    assert type(translated(raised, "redis://h")) is expected


def test_only_a_refusal_is_a_failure_of_tls():
    pairs = ((ssl.SSLCertVerificationError("x"), TlsFailed), (ssl.SSLEOFError("x"), ServerUnavailable))
    for inner, expected in pairs:
        error = driver.ConnectionError("connecting")
        error.__context__ = inner
        assert type(translated(error, "rediss://h")) is expected
