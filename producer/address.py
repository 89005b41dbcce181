"""Reads the server's URL: which servers, whose keys, over what.

    redis://user:password@host:6379/0                                 one server
    unix:///path/to/socket?db=0                                       the same, on this machine
    redis+sentinel://user:password@host1:26379,host2:26379/mymaster/0 what the sentinels call master
    redis+cluster://user:password@host1:6379,host2:6379               the node that has the queue's slot

`rediss` in place of `redis` is the same over TLS. User and password are the data servers'; a
sentinel's own go into the parameters. Reserved characters in them are percent-encoded.

| parameter | meaning |
|---|---|
| `db` | number of the database, where the path does not say it |
| `username`, `password` | instead of `user:password@` |
| `sentinel_username`, `sentinel_password` | for the sentinels themselves |
| `ssl_ca_certs` | file of the CA certificates to trust; without it, the system's |
| `ssl_certfile`, `ssl_keyfile` | the client's certificate and key |
| `ssl_check_hostname` | `false`: a certificate of the right CA is enough, whatever name it bears |
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

TCP, UNIX, SENTINEL, CLUSTER = "tcp", "unix", "sentinel", "cluster"
_KINDS = {"": TCP, "sentinel": SENTINEL, "cluster": CLUSTER}
_PORTS = {TCP: 6379, SENTINEL: 26379, CLUSTER: 6379}
SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
_PARAMETERS = {
    **{name: name for name in ("db", "username", "password", "sentinel_username", "sentinel_password")},
    "ssl_ca_certs": "ca",
    "ssl_certfile": "certificate",
    "ssl_keyfile": "key",
    "ssl_check_hostname": "check_hostname",
}
#: The room of sun_path on Linux beside its final zero; macOS has four fewer.
_SOCKET_BYTES_MAX = 107
_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server's URL, taken apart.

    Attributes:
        kind: "tcp", "unix", "sentinel" or "cluster".
        hosts: Host and port: of the server, of sentinels, or of cluster nodes to begin with.
        service: The name of the servers among the sentinels.
        ca, certificate, key: Files; "" where the URL names none.
        check_hostname: Whether the certificate's name is compared; None where the URL does not say.
    """

    kind: str
    tls: bool = False
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    ca: str = ""
    certificate: str = ""
    key: str = ""
    check_hostname: bool | None = None


def parse_address(url: str) -> Address:
    """Takes a URL apart.

    Raises:
        ValueError: It cannot be used. The text never quotes a part that may hold a secret.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ValueError(f"it begins with one of {', '.join(f'{name}://' for name in SCHEMES)}")
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError("host or password holds characters that must be percent-encoded") from None
    if parts.fragment or "#" in url:
        raise ValueError("`#` must be percent-encoded as %23")
    if "@" in parts.query:  # it may be the rest of a password, and must not be quoted below
        raise ValueError("`?` and `@` must be percent-encoded as %3F and %40")
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    found: dict[str, Any] = {"username": unquote(username), "password": unquote(password)}
    if scheme == "unix":
        found |= {"kind": UNIX, "path": unquote(parts.path)}
        if len(os.fsencode(found["path"])) > _SOCKET_BYTES_MAX:
            raise ValueError(
                f"the path of a socket takes at most {_SOCKET_BYTES_MAX} bytes; use a shorter link to it"
            )
    else:
        kind = _KINDS[scheme.partition("+")[2]]
        if kind == TCP and "," in hosts:
            raise ValueError("one host only; several go with redis+sentinel:// or redis+cluster://")
        each = hosts.split(",") if hosts else ["localhost"]
        found |= {"kind": kind, "tls": scheme.startswith("rediss"), **_place(kind, parts.path)}
        found["hosts"] = tuple(_host(one, _PORTS[kind]) for one in each)
    return Address(**found | _parameters(parts.query))


def _parameters(query: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name == "ssl_cert_reqs" and value == "required":
            continue
        if name not in _PARAMETERS:
            raise ValueError(f"parameter {name!r} is not known; known are {', '.join(_PARAMETERS)}")
        found[_PARAMETERS[name]] = value
    if "db" in found:
        found["db"] = _number(found["db"])
    if "check_hostname" in found:
        found["check_hostname"] = _BOOLEANS.get(found["check_hostname"].lower())
        if found["check_hostname"] is None:
            raise ValueError("ssl_check_hostname is true or false")
    return found


def _place(kind: str, path: str) -> dict[str, object]:
    """Service and database from the path."""
    words = [unquote(word) for word in path.split("/") if word]
    place: dict[str, object] = {}
    if kind == SENTINEL:
        if not words:
            raise ValueError(
                "the path names what the sentinels watch: redis+sentinel://host:26379/mymaster/0"
            )
        place["service"] = words.pop(0)
    if words:
        place["db"] = _number(words.pop(0))
    if words:
        raise ValueError("the path has too many parts")
    if kind == CLUSTER and place.get("db"):
        raise ValueError("a cluster has only database 0")
    return place


def _host(text: str, default: int) -> tuple[str, int]:
    """`host`, `host:port`, `[::1]` or `[::1]:port`."""
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif ":" in text:
        host, _, port = text.rpartition(":")
    if not host or (":" in host and not text.startswith("[")):
        raise ValueError("a host is missing, or an IPv6 address without [brackets]")
    number = _number(port) if port else default
    if not 0 < number < 65_536:
        raise ValueError("a port is a number from 1 to 65535")
    return unquote(host), number


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError("port and database are numbers")
    return int(text)
