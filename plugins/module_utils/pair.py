# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two databases that are asked the same at the same time, in pipelines."""

from __future__ import annotations

import contextlib
import traceback
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

try:
    import hiredis
except ImportError:
    HIREDIS_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    HIREDIS_IMPORT_ERROR = None

_RECEIVE_BYTES = 256 << 10
# The key has another type than a moment before; it is gone; the server is older than the command.
_EXPECTED_ERRORS = ("WRONGTYPE", "ERR no such key", "NOGROUP", "ERR unknown command")

# What the reader gives back while a reply is incomplete.
_INCOMPLETE = object()

Command = tuple[t.Union[bytes, str, int], ...]


class TooLarge(Exception):
    """The replies are larger than the caller wants to hold. The connections are new ones then."""


class Side(t.NamedTuple):
    """A database of a server; with I(run_id), of no other process that may answer at its address one day."""

    server: Server
    db: int
    run_id: str | None = None


class Wire:
    """One connection to one database, which is never made anew unless it is told to."""

    def __init__(self, side: Side) -> None:
        if HIREDIS_IMPORT_ERROR is not None:
            raise KeyferryError(
                "The Python library hiredis is missing: install it for the Python that runs this module"
                " (pip install hiredis)",
                exception=HIREDIS_IMPORT_ERROR,
            )
        self._side = side
        self._open = contextlib.ExitStack()
        self.reset()

    def reset(self) -> None:
        """Begin anew on a new connection; the server drops what it still had to say on the old one."""
        self._open.close()
        self._socket = self._open.enter_context(self._side.server.connection(self._side.db, self._side.run_id))
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)

    def close(self) -> None:
        self._open.close()

    def send(self, request: bytes) -> None:
        with self._errors():
            self._socket.sendall(request)

    def receive(self, count: int, limit: int | None) -> tuple[list[t.Any], int]:
        """Give back the next I(count) replies, errors among them, and about how many bytes they took."""
        replies: list[t.Any] = []
        size = 0
        while len(replies) < count:
            if limit is not None and size > limit:
                raise TooLarge
            data = self._received()
            self._reader.feed(data)
            size += len(data)
            replies.extend(iter(self._reader.gets, _INCOMPLETE))
        return replies, size

    def _received(self) -> bytes:
        with self._errors():
            data = self._socket.recv(_RECEIVE_BYTES)
            if not data:
                raise ConnectionError("the server closed it")
            return data

    @contextlib.contextmanager
    def _errors(self) -> t.Iterator[None]:
        """Tell a broken connection by its own side: another one's may be in use around it."""
        try:
            yield
        except OSError as error:
            raise self._side.server.lost(self._side.db, error) from error


class Pair:
    """A source and a target, each by one connection; for one thread.

    Every method raises TooLarge when one side's replies are larger than I(limit) bytes (None: of any size).
    """

    def __init__(self, source: Side, target: Side) -> None:
        self._sides = (source, target)
        self._wires = (Wire(source), Wire(target))
        # Bytes received so far from the side that has sent more.
        self.received = 0

    def close(self) -> None:
        for wire in self._wires:
            wire.close()

    def both(self, commands: t.Sequence[Command], limit: int | None = None) -> tuple[list[t.Any], list[t.Any]]:
        """Ask both sides the same; give back the replies of the source and of the target."""
        return self.exchange(commands, commands, limit)

    def source(self, commands: t.Sequence[Command], limit: int | None = None) -> list[t.Any]:
        """Give back the source's replies; it is only ever asked what reads."""
        return _checked(self._sides[0], self._ask(0, commands, limit))

    def target(self, commands: t.Sequence[Command], limit: int | None = None) -> list[t.Any]:
        return _checked(self._sides[1], self._ask(1, commands, limit))

    def write_target(self, commands: t.Sequence[Command]) -> list[t.Any]:
        """Give back the target's replies, errors among them."""
        return self._ask(1, commands, None)

    def exchange(
        self, to_source: t.Sequence[Command], to_target: t.Sequence[Command], limit: int | None = None
    ) -> tuple[list[t.Any], list[t.Any]]:
        """Ask each side something of its own at the same time; give back the replies of both."""
        ours, theirs = self._wires
        request = packed(to_source)
        ours.send(request)
        theirs.send(request if to_target is to_source else packed(to_target))
        try:
            left, left_size = ours.receive(len(to_source), limit)
            right, right_size = theirs.receive(len(to_target), limit)
        except TooLarge:
            self._reset()
            raise
        self.received += max(left_size, right_size)
        return _checked(self._sides[0], left), _checked(self._sides[1], right)

    def _ask(self, which: int, commands: t.Sequence[Command], limit: int | None) -> list[t.Any]:
        wire = self._wires[which]
        wire.send(packed(commands))
        try:
            replies, size = wire.receive(len(commands), limit)
        except TooLarge:
            self._reset()
            raise
        self.received += size
        return replies

    def _reset(self) -> None:
        for wire in self._wires:
            wire.reset()


def packed(commands: t.Sequence[Command]) -> bytes:
    """Give back the commands as the bytes that go over the wire."""
    pack = hiredis.pack_command
    return b"".join([pack(command) for command in commands])


def is_error(reply: t.Any) -> bool:
    return isinstance(reply, hiredis.ReplyError)


def _checked(side: Side, replies: list[t.Any]) -> list[t.Any]:
    """Give back the replies. Raises KeyferryError for an error that a key's own change does not explain."""
    errors = [reply for reply in replies if is_error(reply)] if hiredis.ReplyError in map(type, replies) else []
    for error in errors:
        if not str(error).startswith(_EXPECTED_ERRORS):
            raise KeyferryError(
                f"Redis at {side.server}, database {side.db}, refused a command of the comparison: {error}."
                " Does the ACL allow this user to read all keys?"
            )
    return replies
