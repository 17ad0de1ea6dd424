# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ports that lead to a server: their connections break when a test wants it, and they can lead to another one."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lab.nodes import RedisServer


class Detour:
    """A port that leads to a server, whose connections a test can cut.

    The connection that first sends more bytes than the first of `after` is broken, then one that sends more than the
    next number, and so on; when the numbers are used up, none is.
    """

    def __init__(self, port: int, *after: int) -> None:
        self.target = port
        self.connections = 0
        # How many bytes of replies the next connections let through, then nothing is left of them.
        self.limits: list[int] = []
        self._after = list(after)
        self._wires: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Detour:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections."""
        for wire in self._wires:
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)
        self._wires.clear()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _address = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.connections += 1
                self._wires += [near, far]
                limit = self.limits.pop(0) if self.limits else sys.maxsize
                threading.Thread(target=self._carry, args=(near, far, sys.maxsize, self._after), daemon=True).start()
                threading.Thread(target=self._carry, args=(far, near, limit, []), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, limit: int, after: list[int]) -> None:
        carried = 0
        with contextlib.suppress(OSError):
            while carried < limit and (data := source.recv(min(1 << 14, limit - carried))):
                sink.sendall(data)
                carried += len(data)
                if after and carried > after[0]:
                    del after[0]
                    break
        for wire in (source, sink):
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def switched_after_approval(
    module: Any, server: RedisServer, other: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, RedisServer]]:
    """A port that leads to a server until a module has approved of that, and then to another one, with one key."""
    approve = module.refuse_protected
    with other.client(1) as client:
        client.set("key", "value")
    with Detour(server.port) as detour:

        def approve_and_switch(*args: Any, **options: Any) -> str:
            run_id = approve(*args, **options)
            detour.target = other.port
            return str(run_id)

        monkeypatch.setattr(module, "refuse_protected", approve_and_switch)
        yield detour.port, other
