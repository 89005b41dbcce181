"""The state of a forked child: none of its parent's connections, and no waiting callers.

A child that closed, or only lost, a connection which it shares with its parent would end it for the parent
too: by a shutdown of the socket, the farewell of TLS, a command on the way out, or by taking it from the
event loop's selector, which both share. So its copies become /dev/null before any code of the child runs.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any
from weakref import WeakSet

_CONNECTIONS: WeakSet[Any] = WeakSet()
_TOLD: WeakSet[Any] = WeakSet()


class Kept:
    """Mixin of the driver's connections: a child of a fork lets go of them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        _CONNECTIONS.add(self)


def tell(one: Any) -> None:
    """Calls `one.forked()` in each child, for as long as it exists."""
    _TOLD.add(one)


def let_go(connections: Any) -> None:
    """Puts /dev/null in the place of each connection's descriptor; nothing is sent, no event loop is asked.

    The number stays taken until the socket's object is closed, so that no other file can get it meanwhile.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for connection in connections:
        writer = getattr(connection, "_writer", None)  # of asyncio
        held = writer.get_extra_info("socket") if writer else getattr(connection, "_sock", None)
        if held is not None and held.fileno() >= 0:
            os.dup2(null, held.fileno(), inheritable=False)
    os.close(null)


def _after_fork() -> None:
    connections = list(_CONNECTIONS)
    let_go(connections)
    for connection in connections:
        if hasattr(connection, "_sock"):  # one of asyncio belongs to a loop, which is the parent's
            with contextlib.suppress(Exception):
                connection.disconnect()  # so that whoever may use it here opens a new one
    for one in list(_TOLD):
        with contextlib.suppress(Exception):  # one that cannot be told is no reason not to tell the next
            one.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
