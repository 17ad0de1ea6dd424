# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Gets a server's RDB as a replica does, and no more than that.

Source of the protocol: redis 7.0, src/replication.c (syncWithMaster, readSyncBulkPayload). After REPLCONF and PSYNC the
primary forks, sends newlines until it has something, then the RDB: C($<length>) and so many bytes, or, where it comes
straight from the fork, C($EOF:<40 bytes>) and bytes up to these 40.
"""

from __future__ import annotations

import contextlib
import socket
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.ending import raise_if_ended
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.part_file import PartFile
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

_RECEIVE_BYTES = 1 << 20
_MARK = b"$EOF:"
# What this replica can take; and (from 7.0 on) that it wants no commands after the RDB, so that none are kept for it.
# A server that does not know one of these says so, and goes on.
_ABILITIES = (("capa", "eof", "capa", "psync2"), ("rdb-only", "1"))


@contextlib.contextmanager
def replicated(server: Server, dest: str, progress: Progress) -> t.Iterator[str]:
    """Give back the path of the server's RDB, a file beside I(dest) that is gone after the context.

    Raises KeyferryError where the server does not give it, or not whole.
    """
    file = PartFile(f"{dest}.rdb")
    try:
        with server.connection(0) as wire:
            received = 0
            for data in _Primary(server, wire).rdb():
                file.write(data)
                received += len(data)
                progress(0, received)
        file.settle()
        yield file.path
    finally:
        file.discard()


class _Primary:
    """The server, as seen by a replica of it."""

    def __init__(self, server: Server, wire: socket.socket) -> None:
        self._server = server
        self._wire = wire
        self._rest = b""

    def rdb(self) -> t.Iterator[bytes]:
        """Ask for the RDB, and give it back piece by piece."""
        for ability in _ABILITIES:
            self._ask("REPLCONF", *ability)
        answer = self._ask("PSYNC", "?", "-1")
        if not answer.startswith(b"+FULLRESYNC"):
            raise self._refused(answer)
        head = self._line()
        if head.startswith(_MARK):
            return self._until(head[len(_MARK) :])
        if not head.startswith(b"$"):
            raise self._refused(head)
        return self._counted(int(head[1:]))

    def _ask(self, *arguments: str) -> bytes:
        self._wire.sendall(resp.command(*arguments))
        return self._line()

    def _line(self) -> bytes:
        """Give back the next line that is not empty: the empty ones only say that the primary is there."""
        while True:
            line, end, rest = self._rest.partition(b"\n")
            if not end:
                self._rest += self._receive()
                continue
            self._rest = rest
            if line.strip():
                return line.strip()

    def _counted(self, size: int) -> t.Iterator[bytes]:
        while size:
            data = self._next()[:size]
            size -= len(data)
            yield data

    def _until(self, mark: bytes) -> t.Iterator[bytes]:
        """Give back what comes before I(mark), which is the last that comes."""
        held = b""
        while held != mark:
            data = held + self._next()
            held = data[-len(mark) :]
            yield data[: -len(mark)]

    def _next(self) -> bytes:
        data, self._rest = self._rest or self._receive(), b""
        return data

    def _receive(self) -> bytes:
        raise_if_ended()
        data = self._wire.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed it before the RDB was here whole")
        return data

    def _refused(self, answer: bytes) -> KeyferryError:
        return KeyferryError(
            f"Redis at {self._server} does not replicate to this client:"
            f" {answer[1:].decode(errors='replace').rstrip('.')}. ElastiCache never allows it; on other servers the"
            " user needs +psync and +replconf, and a replica a link to its primary. Use source=scan, or the rdb of a"
            " snapshot"
        )
