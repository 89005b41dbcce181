"""Errors that stop a command; `ops.app` prints the text as one line, and leaves with code 1."""

from amn.errors import FileRefused as FileRefused  # a room below refuses files too


class OpsError(Exception):
    """Base of this room's errors."""


class ServerMissing(OpsError):
    """No program to start as the embedded server."""


class ServerFailed(OpsError):
    """The embedded server did not start, or cannot be used as it was asked for."""


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


class MessageRefused(OpsError):
    """A saved message that no worker would answer."""


class JobsUnavailable(OpsError):
    """A server that the jobs cannot use."""


class RunStopped(OpsError):
    """A batch prediction ended before its last row; the same command goes on."""


class JobRefused(OpsError):
    """A job asks for another function than ours, or with other arguments."""
