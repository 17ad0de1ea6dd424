# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which keys of a server are written to, as the server itself tells (CLIENT TRACKING, Redis 6.0 and later).

Facts, from the Redis documentation of client side caching and seen on Redis 7.0 and 7.4 and on Valkey: with BCAST the
names of all keys that are modified, expired or evicted come as RESP3 pushes, those of every database of the server and
without its number. They come at the end of the event loop's turn, so before the reply to any command that is sent after
a reply of that turn. A flush comes as a null. SWAPDB does not come at all. A replica tells of what is replicated to it,
and of a full resynchronization as of a flush. Without BCAST, a client is told once of each key that it has read.
"""

from __future__ import annotations

import collections
import contextlib
import re
import socket
import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.pair import (
    INCOMPLETE,
    Command,
    Side,
    Wire,
    is_error,
    packed,
)
from ansible_collections.keyferry.redis.plugins.module_utils.server import RECEIVE_BYTES, SILENCE_TIMEOUT_S

with contextlib.suppress(ImportError):
    # Where it is missing, Wire says so.
    import hiredis

# How often a tracker that hears nothing looks for what it is asked.
_LOOK_EVERY_S = 0.002
# What a server has removed by itself.
_REMOVED = re.compile(rb"(?:expired|evicted)_keys:(\d+)")


class NotTracked(KeyferryError):
    """The server does not tell which keys are written to."""


class Incomplete(KeyferryError):
    """Some writes may have been overlooked."""


def _refused(side: Side, error: t.Any) -> NotTracked:
    return NotTracked(
        f"Redis at {side.server} does not tell which keys are written to: {error}. Following needs CLIENT TRACKING"
        " (Redis 6.0, any Valkey; not ElastiCache Serverless), and that the ACL allows the user +client|tracking +info",
        supported=False,
    )


class TrackingWire:
    """A connection whose client is told, once, of each key that it has read and another one has written to since.

    It is for one thread. Wants RESP3.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._wire = Wire(side)
        self._reader = hiredis.Reader(notEnoughData=INCOMPLETE)
        self._told: set[bytes] = set()
        self.begin([("HELLO", 3), ("CLIENT", "TRACKING", "ON", "NOLOOP")])
        for reply in self.finish():
            if is_error(reply):
                self.close()
                raise _refused(side, reply)

    def begin(self, commands: t.Sequence[Command]) -> None:
        """Send the commands."""
        self._count = len(commands)
        self._wire.send(packed(commands))

    def finish(self) -> list[t.Any]:
        """Give back their replies, errors among them."""
        replies: list[t.Any] = []
        while len(replies) < self._count:
            found = self._reader.gets()
            if found is INCOMPLETE:
                self._reader.feed(self._wire.received())
            elif _is_push(found):
                self._told.update(found[1] or ())
            else:
                replies.append(found)
        return replies

    def told(self) -> set[bytes]:
        """Give back what it was told of so far, each once."""
        found, self._told = self._told, set()
        return found

    def close(self) -> None:
        self._wire.close()


class Tracker:
    """Collects the names of all keys that are written to on one server, in a thread of its own.

    More than I(most) names that nobody takes, or a connection that breaks, make it incomplete: take_all() and flushes()
    raise Incomplete from then on.
    """

    def __init__(self, side: Side, most: int) -> None:
        self._side = side
        self._most = most
        self._changed = threading.Condition()
        # Names that have come, and those that had when it was last asked what came up to now.
        self._names: set[bytes] = set()
        self._known: set[bytes] = set()
        self._flushes = 0
        self._lost: str | None = None
        self._is_open = True
        # How often it was asked what came up to now, how often the server was, and how often that has answered.
        self._wanted = self._asked = self._answered = 0
        # How many keys the server has removed by itself.
        self._removed = 0
        self._ready = threading.Event()
        self._refusal: KeyferryError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._refusal is not None:
            raise self._refusal

    def take_all(self) -> set[bytes]:
        """Give back the names of all that was written up to now, since the last time."""
        with self._changed:
            self._wanted += 1
            wanted = self._wanted
            is_there = self._changed.wait_for(
                lambda: self._answered >= wanted or self._lost is not None, SILENCE_TIMEOUT_S
            )
            self._check()
            if not is_there:
                raise Incomplete(f"Redis at {self._side.server} has been silent for {SILENCE_TIMEOUT_S} s")
            found, self._known = self._known, set()
            return found

    def flushes(self) -> int:
        """Give back how many flushes, of whichever database, it was told of."""
        with self._changed:
            self._check()
            return self._flushes

    def removed(self) -> int:
        """Give back how many keys the server has expired or evicted until the last take_all."""
        return self._removed

    def close(self) -> None:
        self._is_open = False
        self._thread.join()

    def _check(self) -> None:
        if self._lost is not None:
            raise Incomplete(self._lost)

    def _run(self) -> None:
        """Begin, then listen to the end; whatever happens is left for the other threads to find."""
        try:
            with self._side.server.connection(self._side.db, self._side.run_id) as wire:
                wire.sendall(packed([("HELLO", 3), ("CLIENT", "TRACKING", "ON", "BCAST")]))
                self._listen(wire)
        except KeyferryError as error:
            self._end(error)
        except hiredis.HiredisError as error:
            self._end(KeyferryError(f"Redis at {self._side.server} said what is no RESP: {error}"))
        finally:
            self._ready.set()

    def _end(self, error: KeyferryError) -> None:
        if self._ready.is_set():
            self._lose(error.msg)
        else:
            self._refusal = error

    def _listen(self, wire: t.Any) -> None:
        reader = hiredis.Reader(notEnoughData=INCOMPLETE)
        # The replies to come: of HELLO, of CLIENT, then of one INFO at a time.
        expected = collections.deque((None, None))
        wire.settimeout(SILENCE_TIMEOUT_S)
        while self._is_open and self._lost is None:
            if self._asked < self._wanted:
                self._asked = self._wanted
                expected.append(self._asked)
                wire.sendall(packed([("INFO", "stats")]))
            try:
                data = wire.recv(RECEIVE_BYTES)
            except socket.timeout:
                if not self._ready.is_set():
                    raise
                continue
            if not data:
                raise ConnectionError("the server closed it")
            reader.feed(data)
            for found in iter(reader.gets, INCOMPLETE):
                if _is_push(found):
                    self._note(found[1])
                    continue
                if is_error(found):
                    raise _refused(self._side, found)
                answered = expected.popleft()
                if answered is not None:
                    self._answer(answered, found)
                elif not expected:
                    wire.settimeout(_LOOK_EVERY_S)
                    self._ready.set()

    def _note(self, names: list[bytes] | None) -> None:
        with self._changed:
            if names is None:
                self._flushes += 1
                return
            self._names.update(names)
        if len(self._names) + len(self._known) > self._most:
            self._lose(
                f"More than max_keys={self._most} different keys of Redis at {self._side.server}, all its databases"
                " together, were written to before they could be looked at"
            )

    def _answer(self, answered: int, stats: t.Any) -> None:
        with self._changed:
            self._known |= self._names
            self._names = set()
            self._removed = sum(map(int, _REMOVED.findall(stats)))
            self._answered = answered
            self._changed.notify_all()

    def _lose(self, reason: str) -> None:
        with self._changed:
            self._lost = reason
            self._names = self._known = set()
            self._changed.notify_all()


class Trackers:
    """The trackers of every part of a database."""

    def __init__(self, sides: t.Iterable[Side], most: int) -> None:
        self._trackers: list[Tracker] = []
        try:
            for side in sides:
                self._trackers.append(Tracker(side, most))
        except KeyferryError:
            self.close()
            raise

    def take_all(self) -> set[bytes]:
        """Give back the names of all that was written up to now, since the last time."""
        return set().union(*[tracker.take_all() for tracker in self._trackers])

    def flushes(self) -> int:
        return sum(tracker.flushes() for tracker in self._trackers)

    def removed(self) -> int:
        return sum(tracker.removed() for tracker in self._trackers)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def _is_push(found: t.Any) -> bool:
    """Tell a push from a reply; hiredis before 3.0 gives both back as lists. No reply here begins like this."""
    return isinstance(found, list) and bool(found) and found[0] == b"invalidate"
