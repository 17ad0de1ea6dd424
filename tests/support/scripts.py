# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A script that keeps a server busy until it is told to end."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

import pytest
import redis

from lab.nodes import RedisServer, wait_for


class EndlessScript:
    """The server says BUSY from start() to end(); a context that ends it in any case."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> EndlessScript:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.is_running:
            self.end()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        with self._server.client() as client:
            client.config_set("lua-time-limit", 10)
        self._thread.start()
        wait_for(self._is_busy, "the script", interval=0.005)

    def end(self) -> None:
        with self._server.client() as client:
            client.script_kill()
        self._thread.join()

    def _run(self) -> None:
        with self._server.client(socket_timeout=60) as client, pytest.raises(redis.ResponseError, match="killed"):
            client.eval("repeat until false", 0)

    def _is_busy(self) -> bool:
        with self._server.client() as client, contextlib.suppress(redis.ResponseError):
            return not client.ping()
        return True
