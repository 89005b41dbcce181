"""`amn wire`: a saved message looked at as a worker does, the table of all fields, functions for a server."""

from __future__ import annotations

from dataclasses import replace
from typing import BinaryIO

import click

from ops import console
from ops.commands import options
from ops.errors import MessageRefused
from producer.messages import BATCH_BYTES_MAX
from producer.partitions import partition_queues
from producer.protocol.tables import tables
from producer.settings import ProducerSettings
from producer.transport.library import LIBRARY, library, scripts
from workers.settings import WorkerSettings


@click.group(short_help="For clients in other languages: check a message, list all fields.")
def wire() -> None:
    """Help for whoever writes a client in another language, by docs/wire.md.

    \b
    Examples:
      amn wire check request.msgpack
      node client.mjs --print | amn wire check -
      amn wire fields > fields.json
      amn wire functions --load
    """


@wire.command()
@click.argument("file", metavar="FILE", type=click.File("rb"))
@options.as_json
def check(file: BinaryIO, as_json: bool) -> None:
    """Say of one saved request what a worker would say, and what is wrong with each of its fields.

    FILE holds the bytes of the message, as they go into the field `request` of the stream; `-` is standard
    input. Its deadline is not looked at. Exit code 1 when a worker would refuse it.

    \b
    Example:
      amn wire check request.msgpack --json
    """
    from ops.commands.wire.check import check as checked

    found = checked(file.read(BATCH_BYTES_MAX + 1), WorkerSettings(kind="amn"))
    failure = found.failure
    if as_json:
        verdict = {"code": failure.code, "message": failure.message, "told": found.told} if failure else None
        console.say_json({"refused": verdict, "fields": [one._asdict() for one in found.fields]})
    else:
        rows = ((one.name, one.type, one.value, one.problem or one.note) for one in found.fields)
        console.out().print(console.DataTable("field", "type", "value", "").filled(rows))
    if failure is not None:
        whom = "its client is told" if found.told else "nobody is told: there is no valid reply_to to read"
        raise MessageRefused(f"a worker refuses it as {failure.code}: {failure.message}; {whom}")


@wire.command()
def fields() -> None:
    """Print the fields of every message, with types, defaults and ranges, and the scripts, as JSON.

    \b
    Example:
      amn wire fields | python3 -m json.tool
    """
    console.say_json(tables() | {"scripts": scripts()}, indent=2)


@wire.command()
def asyncapi() -> None:
    """Print the same as an AsyncAPI 3 document: streams, messages, operations; docs/asyncapi.json is it.

    \b
    Example:
      amn wire asyncapi > docs/asyncapi.json
    """
    from ops.commands.wire.asyncapi import document

    console.say_json(document(), indent=1)


@wire.command()
@click.option("--load", is_flag=True, help="Load it into the server, in the place of an earlier one.")
@options.partitions
@options.server
def functions(settings: ProducerSettings, load: bool, partitions: int | None) -> None:
    """Print the scripts that clients run as a library of functions, or load it.

    The server keeps a library over its restarts and gives it to its replicas. Load it again after each
    update of this package. In a cluster, each master has its own: that of the queue, or those of its N
    partitions. It belongs to the whole server, so that the roles of `amn acl` may not load it: an
    administrator does.

    \b
    Examples:
      amn wire functions --load
      amn wire functions | redis-cli -x FUNCTION LOAD REPLACE
    """
    if not load:
        for line in library().splitlines():
            console.say(line)
        return
    queues = [settings.queue] if partitions is None else partition_queues(settings.queue, partitions)
    for queue in queues:
        with options.client(replace(settings, queue=queue)) as client:
            client.function_load(library(), replace=True)
    console.say(f"{LIBRARY} is loaded: {', '.join(str(one['function']) for one in scripts())}")
