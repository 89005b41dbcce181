"""Stands between clients and server, and cuts connections in the midst of a reply when told to.

Takes the server's socket as its only argument; prints its TCP port on loopback. "cut" on standard
input: each connection's next reply is delivered by half, and then the connection is reset.
"cut_large 1.5": the same for every large reply, for so many seconds, on new connections too.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import time

_READ_BYTES = 1 << 18
_LARGE_BYTES = 8_000
_RESET = struct.pack("ii", 1, 0)  # linger for no time: the client sees a reset, not an end


class Way:
    """What all connections share: until when large replies are cut, by the monotonic clock."""

    def __init__(self) -> None:
        self.narrow_until_s = 0.0


class Pair:
    """One client's connection and its counterpart."""

    def __init__(self, client: tuple[asyncio.StreamReader, asyncio.StreamWriter], way: Way) -> None:
        self.cut_next = False
        self._way = way
        self._reader, self._writer = client

    async def run(self, path: str) -> None:
        """Until either side ends."""
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(path, limit=_READ_BYTES)
        except OSError:
            self._writer.transport.abort()
            return
        ways = [self._forward(self._reader, server_writer), self._replies(server_reader)]
        tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in (self._writer, server_writer):
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_READ_BYTES):
            narrow = time.monotonic() < self._way.narrow_until_s
            if self.cut_next or (narrow and len(data) > _LARGE_BYTES):
                self._writer.write(data[: len(data) // 2])
                with contextlib.suppress(OSError, AttributeError):
                    self._writer.get_extra_info("socket").setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, _RESET
                    )
                return
            self._writer.write(data)
            await self._writer.drain()


async def serve(path: str) -> None:
    """Until standard input ends."""
    pairs: set[Pair] = set()
    way = Way()

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pair = Pair((reader, writer), way)
        pairs.add(pair)
        with contextlib.suppress(OSError):
            await pair.run(path)
        pairs.discard(pair)

    server = await asyncio.start_server(on_client, "127.0.0.1", 0, limit=_READ_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while line := await commands.readline():
        word, _, seconds = line.strip().partition(b" ")
        if word == b"cut":
            for pair in pairs:
                pair.cut_next = True
        if word == b"cut_large":
            way.narrow_until_s = time.monotonic() + float(seconds)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
