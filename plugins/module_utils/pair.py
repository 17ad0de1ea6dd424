# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Two databases that are asked the same at the same time, in pipelines."""

from __future__ import annotations

import contextlib
import itertools
import re
import secrets
import traceback
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import (
    PASSING_ERRORS,
    RECEIVE_BYTES,
    Server,
    patiently,
    refused,
)

try:
    import hiredis
except ImportError:
    HIREDIS_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    HIREDIS_IMPORT_ERROR = None

# The key has another type than a moment before; it is gone; the server is older than the command. No other command may
# be unknown: two servers that both lack it would seem to hold the same.
_EXPECTED_ERRORS = re.compile("WRONGTYPE|ERR no such key|NOGROUP|ERR unknown command .HPEXPIRETIME", re.IGNORECASE)

# What the reader gives back while a reply is incomplete.
INCOMPLETE = object()

Command = tuple[t.Union[bytes, str, int], ...]


class Each(t.NamedTuple):
    """The same command about each of many keys, and what it gets after the key; as many replies as keys."""

    name: str
    keys: t.Sequence[bytes]
    rest: Command = ()


Question = t.Union[Command, Each]


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
        self.side = side
        self._open = contextlib.ExitStack()
        self.reset()

    def reset(self) -> None:
        """Begin anew on a new connection; the server drops what it still had to say on the old one."""
        self._open.close()
        self._socket = self._open.enter_context(self.side.server.connection(self.side.db, self.side.run_id))
        self._reader = hiredis.Reader(notEnoughData=INCOMPLETE)

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
            data = self.received()
            self._reader.feed(data)
            size += len(data)
            replies.extend(iter(self._reader.gets, INCOMPLETE))
        return replies, size

    def receive_until(self, end: bytes, count: int, limit: int | None) -> bytearray:
        """Give back I(count) replies as they are; the last one is I(end), or an error where the server refused that."""
        found = bytearray()
        while not (found.endswith(end) or (_ends_with_error(found) and len(_parsed(found)) == count)):
            if limit is not None and len(found) > limit:
                raise TooLarge
            found += self.received()
        return found

    def receive_bulk(self) -> tuple[int | None, t.Iterator[bytes]]:
        """Give back the length of the next reply, a bulk string, and its bytes in pieces; None where it is nil."""
        found = b""
        while b"\r\n" not in found:
            found += self.received()
        head, _crlf, first = found.partition(b"\r\n")
        if not head.startswith(b"$"):
            raise KeyferryError(f"Redis at {self.side.server} does not dump a key: {head.decode(errors='replace')}")
        length = int(head[1:])
        return (None, iter(())) if length < 0 else (length, self._pieces(first, length))

    def _pieces(self, first: bytes, length: int) -> t.Iterator[bytes]:
        """Give back I(length) bytes, beginning with what has come, and take the CRLF after them."""
        left = length + 2
        piece = first
        while True:
            yield piece[: max(0, left - 2)]
            left -= len(piece)
            if not left:
                return
            piece = self.received()

    def received(self) -> bytes:
        """Give back some more bytes."""
        with self._errors():
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionError("the server closed it")
            return data

    @contextlib.contextmanager
    def _errors(self) -> t.Iterator[None]:
        """Tell a broken connection by its own side: another one's may be in use around it."""
        try:
            yield
        except OSError as error:
            raise self.side.server.lost(self.side.db, error) from error


class Line(t.Protocol):
    """How one of the two is asked: by one connection, or by one to each primary of a cluster."""

    def begin(self, questions: t.Sequence[Question]) -> None:
        """Send the questions."""

    def finish(self, limit: int | None) -> tuple[list[t.Any], int]:
        """Give back their replies, errors among them, and about how many bytes they took; or raise TooLarge."""

    def wire(self, key: bytes) -> Wire:
        """Give back the connection to where I(key) is."""

    def reset(self) -> None:
        """Begin anew on new connections."""

    def close(self) -> None:
        """Close what is open."""


class WireLine:
    """A line to one server."""

    def __init__(self, side: Side) -> None:
        self.only_wire = Wire(side)
        self._count = 0
        self.reset, self.close = self.only_wire.reset, self.only_wire.close

    def begin(self, questions: t.Sequence[Question]) -> None:
        self._count = _count(questions)
        self.only_wire.send(packed(questions))

    def finish(self, limit: int | None) -> tuple[list[t.Any], int]:
        return self.only_wire.receive(self._count, limit)

    def wire(self, _key: bytes) -> Wire:
        return self.only_wire


class Pair:
    """A source and a target, each by a line of its own; for one thread. C(names) are theirs, for messages.

    Every method raises TooLarge when one side's replies are larger than I(limit) bytes (None: of any size). What reads
    is asked again, for a while, where a side is busy, and then raises TemporaryRefusal.
    """

    def __init__(self, lines: tuple[Line, Line], names: tuple[str, str]) -> None:
        self._lines = lines
        self.names = names
        self._wires = [line.only_wire for line in lines if isinstance(line, WireLine)]
        # No value ends with this by chance.
        self._mark = secrets.token_bytes(16)
        # Bytes received so far from the side that has sent more.
        self.received = 0
        if len(self._wires) == 2:
            # A server that refuses it would never send the mark that both() waits for.
            self.exchange([("ECHO", self._mark)], [("ECHO", self._mark)])

    def close(self) -> None:
        for line in self._lines:
            line.close()

    def both(self, questions: t.Sequence[Question], limit: int | None = None) -> tuple[list[t.Any], list[t.Any]]:
        """Ask both sides the same; give back the replies of the source and of the target.

        Replies that are the same byte for byte are parsed once, and given back as one and the same list.
        """
        if len(self._wires) < 2:
            return self.exchange(questions, questions, limit)
        return patiently(lambda: self._both(questions, limit))

    def _both(self, questions: t.Sequence[Question], limit: int | None) -> tuple[list[t.Any], list[t.Any]]:
        left, right = self._both_unparsed(questions, limit)
        replies = self._replies(0, left)
        return replies, replies if left == right else self._replies(1, right)

    def unlike(
        self, questions: t.Sequence[Question], limit: int | None = None
    ) -> tuple[list[t.Any], list[t.Any]] | None:
        """As both; but give back None, which is less work, where the replies are the same and none is an error."""
        if len(self._wires) < 2:
            return self.exchange(questions, questions, limit)
        return patiently(lambda: self._unlike(questions, limit))

    def _unlike(self, questions: t.Sequence[Question], limit: int | None) -> tuple[list[t.Any], list[t.Any]] | None:
        left, right = self._both_unparsed(questions, limit)
        if left == right and not left.startswith(b"-") and b"\r\n-" not in left:
            return None
        return self._replies(0, left), self._replies(1, right)

    def _replies(self, which: int, data: bytearray) -> list[t.Any]:
        """Give back the replies that the bytes are, less the last one, which is the mark."""
        return _checked(self.names[which], _parsed(data))[:-1]

    def _both_unparsed(self, questions: t.Sequence[Question], limit: int | None) -> tuple[bytearray, bytearray]:
        request = packed([*questions, ("ECHO", self._mark)])
        end = b"$%d\r\n%b\r\n" % (len(self._mark), self._mark)
        count = _count(questions) + 1
        try:
            for wire in self._wires:
                wire.send(request)
            left, right = (wire.receive_until(end, count, limit) for wire in self._wires)
        except TooLarge:
            self._reset()
            raise
        self.received += max(len(left), len(right))
        return left, right

    def source(self, questions: t.Sequence[Question], limit: int | None = None) -> list[t.Any]:
        """Give back the source's replies; it is only ever asked what reads."""
        return patiently(lambda: _checked(self.names[0], self._ask(0, questions, limit)))

    def target(self, questions: t.Sequence[Question], limit: int | None = None) -> list[t.Any]:
        return patiently(lambda: _checked(self.names[1], self._ask(1, questions, limit)))

    def write_target(self, commands: t.Sequence[Command]) -> list[t.Any]:
        """Give back the target's replies, errors among them."""
        return self._ask(1, commands, None)

    def copy(self, key: bytes, options: tuple[int, tuple[str, ...]]) -> t.Any:
        """Restore I(key) on the target as it is on the source, in pieces; give back the target's reply, maybe an error.

        I(options) are what RESTORE gets before and after the payload. Removes the key where the source has it no more.
        """
        reader, writer = (line.wire(key) for line in self._lines)
        reader.send(packed([("DUMP", key)]))
        length, pieces = reader.receive_bulk()
        if length is None:
            return self.write_target([("UNLINK", key)])[0]
        ttl, rest = options
        head = packed([("RESTORE", key, ttl, b"", *rest)])
        # The payload goes where the empty string is.
        at = head.rindex(b"$0\r\n\r\n")
        writer.send(head[:at] + b"$%d\r\n" % length)
        for piece in pieces:
            writer.send(piece)
        writer.send(b"\r\n" + head[at + len(b"$0\r\n\r\n") :])
        return writer.receive(1, None)[0][0]

    def exchange(
        self, to_source: t.Sequence[Question], to_target: t.Sequence[Question], limit: int | None = None
    ) -> tuple[list[t.Any], list[t.Any]]:
        """Ask each side something of its own, which reads, at the same time; give back the replies of both."""
        return patiently(lambda: self._exchange(to_source, to_target, limit))

    def _exchange(
        self, to_source: t.Sequence[Question], to_target: t.Sequence[Question], limit: int | None
    ) -> tuple[list[t.Any], list[t.Any]]:
        ours, theirs = self._lines
        ours.begin(to_source)
        theirs.begin(to_target)
        try:
            left, left_size = ours.finish(limit)
            right, right_size = theirs.finish(limit)
        except TooLarge:
            self._reset()
            raise
        self.received += max(left_size, right_size)
        return _checked(self.names[0], left), _checked(self.names[1], right)

    def _ask(self, which: int, questions: t.Sequence[Question], limit: int | None) -> list[t.Any]:
        line = self._lines[which]
        line.begin(questions)
        try:
            replies, size = line.finish(limit)
        except TooLarge:
            self._reset()
            raise
        self.received += size
        return replies

    def _reset(self) -> None:
        for line in self._lines:
            line.reset()


def packed(questions: t.Iterable[Question]) -> bytes:
    """Give back the questions as the bytes that go over the wire."""
    pack = hiredis.pack_command
    return b"".join([_packed_each(each) if isinstance(each, Each) else pack(each) for each in questions])


def _packed_each(each: Each) -> bytes:
    """Packs a command once for all keys in a row that are as long as each other, many times as fast as one by one."""
    head, _empty_key, tail = hiredis.pack_command((each.name, b"", *each.rest)).partition(b"$0\r\n\r\n")
    parts: list[bytes] = []
    for length, keys in itertools.groupby(each.keys, len):
        before, after = head + b"$%d\r\n" % length, b"\r\n" + tail
        parts += [before, (after + before).join(keys), after]
    return b"".join(parts)


def is_error(reply: t.Any) -> bool:
    return isinstance(reply, hiredis.ReplyError)


def is_unknown(reply: t.Any) -> bool:
    """Tell whether the server does not know the command."""
    return is_error(reply) and str(reply).startswith("ERR unknown command")


def _count(questions: t.Iterable[Question]) -> int:
    """Give back how many replies they get."""
    return sum(len(each.keys) if isinstance(each, Each) else 1 for each in questions)


def _ends_with_error(data: bytearray) -> bool:
    """Tell whether the last line looks like an error; it may be part of a value."""
    return data.endswith(b"\r\n") and data[data.rfind(b"\n", 0, -1) + 1 :].startswith(b"-")


def _parsed(data: bytearray) -> list[t.Any]:
    reader = hiredis.Reader(notEnoughData=INCOMPLETE)
    reader.feed(data)
    return list(iter(reader.gets, INCOMPLETE))


def _checked(name: str, replies: list[t.Any]) -> list[t.Any]:
    """Give back the replies. Raises KeyferryError for an error that a key's own change does not explain."""
    errors = [reply for reply in replies if is_error(reply)] if hiredis.ReplyError in map(type, replies) else []
    for error in errors:
        if not _EXPECTED_ERRORS.match(str(error)):
            # What follows are the arguments: keys and values.
            what = str(error).partition(", with args")[0]
            raise refused(f"{name} refused a command of the comparison: {what.rstrip('.')}{_hint(error)}", what)
    return replies


def _hint(error: t.Any) -> str:
    if str(error).startswith(PASSING_ERRORS):
        return ""
    return ". Is it renamed there?" if is_unknown(error) else ". Does the ACL allow this user to read all keys?"
