"""`amn acl`: a line for the server's ACL file."""

from __future__ import annotations

import os
import sys

import click

from ops import console
from ops.acl import CLIENT_ROLES, ROLES, acl_line
from ops.commands import options
from ops.errors import AclRefused
from producer.partitions import partition_queues

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
