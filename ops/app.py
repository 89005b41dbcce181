"""The command group, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

import errno
import itertools
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from amn.output import drop_output, flushed, ready_streams, without_surrogates
from ops import console
from ops.commands.acl import acl
from ops.commands.alerts import alerts
from ops.commands.bank import bank
from ops.commands.capacity import capacity
from ops.commands.dlq import dlq
from ops.commands.doctor import doctor
from ops.commands.drift.group import drift
from ops.commands.explain import explain
from ops.commands.jobs import jobs
from ops.commands.models import data, evaluate, fit, quickstart, train
from ops.commands.policy import policy
from ops.commands.predict import predict
from ops.commands.run import run as run_command
from ops.commands.up import up
from ops.commands.web import dashboard, gateway, metrics
from ops.commands.wire.group import wire
from ops.errors import OpsError
from ops.local.beside import unless_ignored
from ops.settings import service, with_origin
from producer.errors import QueueError, ServerUnavailable

_USAGE, _FAILURE, _INTERRUPTED = 2, 1, 130
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
#: A value that Kubernetes and Docker put into AMN_UP_PORT for a service of theirs that is called amn-up.
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


class _Sections(click.Group):
    """A group whose help shows its commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            rows = [(command.name or "", command.get_short_help_str(76)) for command in commands]
            with formatter.section(title):
                formatter.write_dl(rows, col_max=20)


@click.group(
    cls=_Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="amn-queue", prog_name="amn")
def app(debug: bool) -> None:
    """A queue that serves the Attention Mixture Network: five vectors in, the next one out.

    \b
    amn run                          the main job, measured, on a server of its own
    amn up                           server and workers until Ctrl-C
    amn predict FILE --out FOLDER    a file of vectors through the queue
    amn doctor                       is it well?
    amn dlq list                     what nobody could answer

    The server is --url, else REDIS_URL, else the `amn up` that runs in this folder; never another
    one. Each option can also be set by environment: AMN_<COMMAND>_<OPTION>, for example
    AMN_RUN_RATE=250.
    Exit codes: 0 well, 1 failure, 2 wrong usage, 130 interrupted.
    """


def _worker() -> click.Command:
    from workers.commands import worker

    worker.short_help = "One worker, for machines of your own."
    for command in worker.commands.values():
        for option in command.params:
            if option.name == "url":
                option.default = lambda: service().url
    return worker


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Serve": (run_command, up, _worker(), gateway),
    "Send": (predict, wire),
    "Operate": (doctor, dashboard, dlq, jobs, drift, alerts, metrics, capacity, acl),
    "Gate and bank": (policy, explain, bank, fit.calibrate, fit.slices),
    "Models": (
        data.data,
        quickstart.quickstart,
        train.train,
        evaluate.evaluate,
        evaluate.ratio,
        evaluate.card,
        evaluate.promote,
        evaluate.rollback,
        evaluate.import_published,
        train.reproduce,
        train.leave_out,
        fit.sample,
        fit.training_vectors,
    ),
}
for command in itertools.chain(*SECTIONS.values()):
    app.add_command(command)


class _Text(click.types.StringParamType):
    """Text that is stored and sent; bytes of another encoding become replacement characters."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return without_surrogates(super().convert(value, param, ctx))


def _prepare(group: click.Group, prefix: str) -> None:
    """Names each option's variable after the option, not after its parameter, and shows its default."""
    for command in group.commands.values():
        name = f"{prefix}_{command.name}"
        for option in command.params:
            if type(option.type) is click.types.StringParamType:
                option.type = _Text()
            if isinstance(option, click.Option) and option.envvar is None:
                longest = max(option.opts, key=len).lstrip("-")
                option.envvar = f"{name}_{longest}".upper().replace("-", "_")
            if isinstance(option, click.Option) and option.show_default is None:
                plain = isinstance(option.default, str | int | float | Path)
                option.show_default = plain and bool(option.default)
        if isinstance(command, click.Group):
            _prepare(command, name)


_prepare(app, "AMN")


def run(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code. Errors end as one line on standard error."""
    ready_streams()
    _forget_service_links()
    unless_ignored(_terminated, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed
    code, text = _ended(arguments)
    lost = flushed()
    if lost is not None:  # "": whoever read our output has gone, and need not hear of it
        code, text = code or _FAILURE, f"standard output cannot be written: {lost}" if lost else text
    if text:
        console.say(f"amn: {' '.join(text.split())}", err=True)
    return code


def _ended(arguments: Sequence[str]) -> tuple[int, str]:
    """Runs the command line; returns the exit code and the text of the error."""
    debug = "--debug" in arguments or os.environ.get("AMN_DEBUG", "0") not in ("", "0")
    try:
        result = app.main(list(arguments), prog_name="amn", standalone_mode=False, auto_envvar_prefix="AMN")
        return result if isinstance(result, int) else 0, ""
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return _USAGE, ""
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "amn"
        return _USAGE, f"{error.format_message()} (see `{path} --help`)"
    except (click.exceptions.Abort, KeyboardInterrupt):
        return _INTERRUPTED, "interrupted"
    except click.ClickException as error:
        return error.exit_code, error.format_message()
    except BrokenPipeError:
        drop_output()
        return _FAILURE, ""
    except Exception as error:
        if debug:
            raise
        return _FAILURE, _sentence(error)


def _sentence(error: Exception) -> str:
    from amn.errors import AmnError
    from workers.errors import NotReady

    if isinstance(error, ServerUnavailable):
        return with_origin(str(error))
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is missing; install it with: pip install 'amn-queue[ops]'"
    if isinstance(error, OSError) and error.filename is None and error.errno in _FULL:
        return f"standard output cannot be written: {error.strerror}"  # what we write by name is named
    if isinstance(error, OpsError | QueueError | AmnError | NotReady | ValueError | OSError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error} (run `amn --debug ...` for the traceback)"


def _forget_service_links() -> None:
    """Removes the variables of Kubernetes services whose names look like our options, also for children."""
    for name, value in list(os.environ.items()):
        if name.startswith("AMN_") and _SERVICE_LINK.fullmatch(value):
            del os.environ[name]


def _terminated(number: int, _: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that servers and workers are stopped on the way out."""
    raise SystemExit(128 + number)
