# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How fast a dump may read: so many keys per second, and so few that the server stays quick for its other clients."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import threading
import time
import typing as t
from multiprocessing.sharedctypes import RawArray

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.ending import end_forked
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

# How many seconds the server's latency lies above its least.
Excess = t.Callable[[], float]

_PING = resp.command("PING")
_PING_EVERY_S = 0.02
# What the watching process shares: when it sent a PING that is not answered (0 for none), what the last one took, and
# the least that one took; all in seconds of the clock that all processes have in common.
_ASKED, _LAST, _LEAST = range(3)


class Pace:
    """Holds all workers together to a rate, and to a share of the server's time that falls with its latency."""

    # A burst is what fits into this time.
    BURST_S = 0.1
    # Small enough for the latency to be looked at often.
    CAREFUL_KEYS = 200
    # How often the share is decided, the least that it falls to, and the longest wait that follows from it.
    DECIDE_EVERY_S = 0.05
    LEAST_SHARE = 1 / 64
    LONGEST_WAIT_S = 1.0

    def __init__(
        self,
        keys_per_second: int | None,
        stop: threading.Event,
        excess: Excess | None = None,
        most_excess_s: float = 0.0,
    ) -> None:
        self.share = 1.0
        self._rate = keys_per_second
        self._stop = stop
        self._excess = excess
        self._most_excess = most_excess_s
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._decide_at = 0.0

    def burst(self, workers: int) -> int | None:
        """Give back how many keys one of I(workers) may ask for at once, None where there is no limit."""
        careful = [self.CAREFUL_KEYS] if self._excess else []
        rated = [] if self._rate is None else [max(1, int(self._rate * self.BURST_S / workers))]
        return min([*careful, *rated], default=None)

    def wait(self, keys: int, busy_s: float) -> None:
        """Wait until I(keys) more may be read by one whose last ones took I(busy_s)."""
        delay = max(self._until_rate(keys), self._until_share(busy_s))
        if delay > 0:
            self._stop.wait(delay)

    def _until_rate(self, keys: int) -> float:
        if self._rate is None:
            return 0.0
        with self._lock:
            now = time.monotonic()
            delay = self._free_at - now
            self._free_at = max(self._free_at, now) + keys / self._rate
        return delay

    def _until_share(self, busy_s: float) -> float:
        if self._excess is None:
            return 0.0
        with self._lock:
            if time.monotonic() >= self._decide_at:
                self._decide_at = time.monotonic() + self.DECIDE_EVERY_S
                # Down at once, and up by steps, as a TCP sender does.
                is_slow = self._excess() > self._most_excess
                self.share = max(self.share / 2, self.LEAST_SHARE) if is_slow else min(self.share * 1.25, 1.0)
        return min(busy_s * (1 / self.share - 1), self.LONGEST_WAIT_S)


@contextlib.contextmanager
def latency_of(server: Server) -> t.Iterator[Excess]:
    """Give back what tells by how much a PING takes longer than the shortest one: what any client would notice.

    A process of its own asks on a connection of its own, so that the interpreter's lock is no part of the time.
    """
    shared = RawArray("d", 3)
    process = multiprocessing.get_context("fork").Process(
        target=_watch, args=(server, shared, os.getpid()), daemon=True
    )
    process.start()

    def excess() -> float:
        asked = shared[_ASKED]
        waited = time.monotonic() - asked if asked else 0.0
        return max(shared[_LAST], waited) - shared[_LEAST]

    try:
        yield excess
    finally:
        end_forked(process)


def _watch(server: Server, shared: t.Any, parent: int) -> None:
    """Ask again and again until the parent is gone; a connection that breaks is made anew."""
    while os.getppid() == parent:
        with contextlib.suppress(KeyferryError), server.connection(0) as wire:
            while os.getppid() == parent:
                shared[_ASKED] = begin = time.monotonic()
                wire.sendall(_PING)
                _await_line(wire)
                shared[_LAST] = took = time.monotonic() - begin
                shared[_LEAST] = min(shared[_LEAST] or took, took)
                shared[_ASKED] = 0.0
                time.sleep(_PING_EVERY_S)
        time.sleep(_PING_EVERY_S)


def _await_line(wire: socket.socket) -> None:
    while not (data := wire.recv(4096)).endswith(resp.CRLF):
        if not data:
            raise ConnectionError("the server closed it")
