# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RESP by hand: what redis-py is too slow for."""

from __future__ import annotations

from typing import Any

import hiredis
import redis


def encode(*parts: bytes) -> bytes:
    """One command in RESP."""
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class Wire:
    """A connection of its own to where a redis-py client connects: redis-py logs in, hiredis alone reads replies."""

    def __init__(self, client: redis.Redis) -> None:
        pool = client.connection_pool
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._connection.connect()
        self._socket = self._connection._sock
        self._reader = hiredis.Reader()

    def ask(self, commands: list[bytes]) -> list[Any]:
        """Send encoded commands in one go and give their replies; raises on the first that is an error."""
        self._socket.sendall(b"".join(commands))
        return [self._reply() for _each in commands]

    def _reply(self) -> Any:
        while (reply := self._reader.gets()) is False:
            if not (data := self._socket.recv(1 << 18)):
                raise ConnectionError("the server closed the connection")
            self._reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise redis.ResponseError(str(reply))
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()
