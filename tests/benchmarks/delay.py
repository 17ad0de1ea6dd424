# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A network between a client and a server of this machine: every byte arrives half a round trip later than sent.

All connections together may be held to a rate, in each direction. What is under way is limited to 16 MiB a connection,
as on a path whose TCP windows are wide enough.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import subprocess
import sys
from collections.abc import Iterator

_PIECE_BYTES = 256 << 10
_PIECES = 64


@contextlib.contextmanager
def delayed(port: int, round_trip_s: float, bytes_per_s: float = math.inf) -> Iterator[int]:
    """Give back a port of 127.0.0.1 that leads to `port` with this round trip, by a process of its own."""
    command = [sys.executable, __file__, str(port), str(round_trip_s), str(bytes_per_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as proxy:
        assert proxy.stdout
        try:
            yield int(proxy.stdout.readline())
        finally:
            proxy.terminate()


class _Line:
    """One direction: when what is put on it now will have arrived."""

    def __init__(self, delay_s: float, bytes_per_s: float) -> None:
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    def arrival(self, size: int) -> float:
        self._free_at = max(self._free_at, asyncio.get_running_loop().time()) + size / self._bytes_per_s
        return self._free_at + self._delay_s


async def _serve(port: int, delay_s: float, bytes_per_s: float) -> None:
    there, back = _Line(delay_s, bytes_per_s), _Line(delay_s, bytes_per_s)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port, limit=_PIECE_BYTES)
        await asyncio.gather(_carry(reader, far_writer, there), _carry(far_reader, writer, back))

    server = await asyncio.start_server(connect, "127.0.0.1", 0, limit=_PIECE_BYTES)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: _Line) -> None:
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_PIECES)
    delivery = asyncio.create_task(_deliver(under_way, writer))
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_PIECE_BYTES):
            await under_way.put((line.arrival(len(data)), data))
    await under_way.put((line.arrival(0), b""))
    with contextlib.suppress(ConnectionError):
        await delivery


async def _deliver(under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due, data = await under_way.get()
        await asyncio.sleep(max(0.0, due - loop.time()))
        if not data:
            writer.close()
            return
        writer.write(data)
        await writer.drain()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2]) / 2, float(sys.argv[3])))
