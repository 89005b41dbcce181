"""`amn acl`: a line for the server's ACL file, from the roles in ops/deploy/acl."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from hashlib import sha256
from importlib import resources
from string import Template

import click

from ops import console
from ops.commands import options
from ops.errors import AclRefused
from producer.errors import InvalidSettings
from producer.partitions import partition_queues
from producer.settings import ProducerSettings

#: Whose replies are told apart by the name of the client; each has the rights of those before it.
CLIENT_ROLES = ("producer", "canceller", "gateway")
ROLES = (*CLIENT_ROLES, "worker", "ops")
_USER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PASSWORD_LENGTH_MIN = 16
_VARIABLE = "AMN_ACL_PASSWORD"


@click.command(short_help="Least rights for a producer, worker or operator.")
@click.argument("role", type=click.Choice(ROLES))
@click.option("--user", required=True, metavar="NAME", help="Name of the server's user.")
@click.option(
    "--client",
    default="",
    metavar="NAME",
    help="AMN_CLIENT of a producer, whose replies it may read. [default: the user's name]",
)
@options.partitions
@options.queue
def acl(role: str, user: str, client: str, partitions: int | None, queue: str | None) -> None:
    """Print the `user` line of ROLE, for the file that the server's `aclfile` names.

    The password is read from AMN_ACL_PASSWORD, else from standard input, and is in the line only as
    its SHA-256. docs/deploy.md says what each role may, and what an ACL cannot prevent.

    \b
    Examples:
      amn acl worker --user worker >> users.acl
      amn acl producer --user team-a >> users.acl      # its processes: AMN_CLIENT=team-a
    """
    if client and role not in CLIENT_ROLES:
        raise AclRefused(f"a {role} has no client name; --client goes with {' or '.join(CLIENT_ROLES)}")
    name = queue or "main"
    queues = (name,) if partitions is None else partition_queues(name, partitions)
    console.say(acl_line(role, queues=queues, user=user, password=_password(user), client=client))


def _password(user: str) -> str:
    if os.environ.get(_VARIABLE):
        return os.environ[_VARIABLE]
    if sys.stdin.isatty():
        return str(click.prompt(f"password of {user}", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\n")


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
    files = CLIENT_ROLES[: CLIENT_ROLES.index(role) + 1] if role in CLIENT_ROLES else (role,)
    rules = [rule for file in files for rule in _rules(file)]
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
