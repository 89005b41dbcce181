"""Errors that stop a command. `ops.cli` prints the text as one line and leaves with `exit_code`.

OpsError
├── ServerMissing     server_missing      no server program is installed
├── ServerFailed      server_failed       the embedded server did not start
├── ServerUnknown     server_unknown      nobody said which server is meant
├── RowsFailed        rows_failed         some rows of a file got no answer
├── RunFailed         run_failed          a request of `amn run` was not answered exactly once
├── LettersLeft       letters_left        some dead letters did not go back, or ended badly again
├── JobsUnavailable   jobs_unavailable    a server that RQ cannot use
├── SinksRefused      sinks_refused       sinks that cannot be used as they are described
├── AlertRefused      alert_refused       an alert or silence that is not there; a sink that refuses
├── AclRefused        acl_refused         a name or password that cannot go into an ACL
└── Unhealthy         unhealthy           `amn doctor` found something wrong
"""

from __future__ import annotations

import re

from amn.errors import FileRefused as FileRefused  # a room below refuses files too


class OpsError(Exception):
    """Base of this room's errors.

    Attributes:
        code: Stable name, made of the class's name.
        exit_code: The code that the process ends with.
    """

    code = "ops_error"
    exit_code = 1

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class ServerMissing(OpsError):
    """No program to start as the embedded server."""


class ServerFailed(OpsError):
    """The embedded server did not start."""


class ServerUnknown(OpsError):
    """A command needs a server, and nobody said which one is meant."""


class RowsFailed(OpsError):
    """The output is written; some of its rows are NaN."""


class RunFailed(OpsError):
    """Not every request got exactly one final answer."""


class Unhealthy(OpsError):
    """At least one check of the doctor failed."""


class LettersLeft(OpsError):
    """A replay did not bring every letter to an answer."""


class SinksRefused(OpsError):
    """A file of sinks, or a variable, that cannot be used."""


class AlertRefused(OpsError):
    """A request for an alert, a silence or a sink that cannot be done."""


class AclRefused(OpsError):
    """A name, or a password, that cannot go into a server's ACL."""


class JobsUnavailable(OpsError):
    """A server that the jobs cannot use."""


class JobRefused(OpsError):
    """A job asks for another function than ours, or with other arguments."""
