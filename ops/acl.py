"""Lines of a server's ACL file, from the roles in ops/deploy/acl."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources
from string import Template

from ops.errors import AclRefused
from producer.errors import InvalidSettings
from producer.settings import ProducerSettings

ROLES = ("producer", "canceller", "worker", "ops")
#: Whose replies are told apart by the name of the client.
CLIENT_ROLES = ("producer", "canceller")
_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PASSWORD_LENGTH_MIN = 16


def acl_line(role: str, *, queues: Sequence[str], user: str, password: str, client: str = "") -> str:
    """One `user` line; the password goes into it as its SHA-256.

    Args:
        role: One of `ROLES`.
        queues: Names of the queues, or of the partitions of one.
        client: For a producer: what its settings call `client`; "" for the user's own name.

    Raises:
        AclRefused: A name or the password cannot be used.
    """
    if not _USER.fullmatch(user):
        raise AclRefused(f"user {user!r} is not valid; use 1-64 letters, digits, '_', '.' or '-'")
    if len(password) < _PASSWORD_LENGTH_MIN:
        raise AclRefused(
            f"the password has {len(password)} characters; draw at least {_PASSWORD_LENGTH_MIN} at random"
        )
    client = client or (user if role in CLIENT_ROLES else "")
    try:
        for queue in queues:
            ProducerSettings(queue=queue, client=client)
    except InvalidSettings as error:
        raise AclRefused(str(error)) from None
    digest = sha256(password.encode()).hexdigest()
    rules = _rules("producer") + _rules("canceller") if role == "canceller" else _rules(role)
    words = [_for_each(word, queues) for word in " ".join(rules).split()]
    return Template(" ".join(words)).substitute(user=user, sha256=digest, client=client)


def _for_each(word: str, queues: Sequence[str]) -> str:
    """A key pattern once for each queue; a pattern for all of them would match others' keys too."""
    if "$queue" not in word:
        return word
    pattern = word.removesuffix(")")
    return " ".join(pattern.replace("$queue", queue) for queue in queues) + word[len(pattern) :]


def _rules(role: str) -> list[str]:
    text = resources.files("ops").joinpath("deploy", "acl", f"{role}.acl").read_text("utf-8")
    return [line.strip() for line in text.splitlines() if not line.startswith("#")]
