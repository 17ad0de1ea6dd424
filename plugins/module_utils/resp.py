# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The RESP2 wire, without any I/O: commands to bytes, replies and commands found in bytes.

Source of the protocol facts: the Redis serialization protocol specification (RESP2).
"""

from __future__ import annotations

import re
import typing as t

CRLF = b"\r\n"
_ARRAY_HEAD = re.compile(rb"\*([1-9]\d{0,8})\r\n")
_BULK_HEAD = re.compile(rb"\$(\d{1,9})\r\n")

Argument = t.Union[bytes, str, int]


class ProtocolError(Exception):
    """The bytes at C(offset) are not what the protocol has there; C(incomplete) when they only end too early."""

    def __init__(self, offset: int, expected: str, incomplete: bool = False) -> None:
        super().__init__(f"byte {offset}: expected {expected}")
        self.offset = offset
        self.expected = expected
        self.incomplete = incomplete


def bulk(value: Argument) -> bytes:
    """Give back one argument as a bulk string."""
    data = value if isinstance(value, bytes) else str(value).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


def content(bulk_string: bytes) -> bytes:
    """Give back what a bulk string holds."""
    return bulk_string[bulk_string.index(10) + 1 : -2]


def command(*arguments: Argument) -> bytes:
    """Give back one command as an array of bulk strings."""
    return b"*%d\r\n%b" % (len(arguments), b"".join([bulk(argument) for argument in arguments]))


class Command(t.NamedTuple):
    """Where one command stands in a buffer: [start, end), and [start, end) of each argument's bytes."""

    start: int
    end: int
    arguments: list[tuple[int, int]]


def read_command(buffer: t.Any, start: int, end: int) -> Command:
    """Give back the command that starts at I(start).

    I(buffer) is anything that regular expressions and slices work on (bytes, mmap).
    Raises ProtocolError with the offset where the command stops making sense.
    """
    head = _ARRAY_HEAD.match(buffer, start, end)
    if head is None:
        raise ProtocolError(start, "'*', a number of arguments and CRLF", incomplete=end - start < 12)
    position = head.end()
    arguments = []
    for _index in range(int(head[1])):
        size = _BULK_HEAD.match(buffer, position, end)
        if size is None:
            raise ProtocolError(position, "'$', a length in bytes and CRLF", incomplete=end - position < 12)
        first = size.end()
        last = first + int(size[1])
        position = last + 2
        if position > end:
            raise ProtocolError(first, f"{last - first} bytes and CRLF", incomplete=True)
        if buffer[last:position] != CRLF:
            raise ProtocolError(last, "CRLF after an argument")
        arguments.append((first, last))
    return Command(start, position, arguments)


class ReplyCounter:
    """Counts the replies in a stream that arrives in pieces, and keeps the errors among them.

    C(errors) maps the number of replies before an error to its text.
    """

    def __init__(self) -> None:
        self.replies = 0
        self.errors: dict[int, bytes] = {}
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece of the stream."""
        if self._rest:
            data = self._rest + data
        end = data.rfind(b"\n") + 1
        # What a pipeline of writes answers is almost always +OK and :N lines; they are counted at C speed.
        if data[:1] in (b"$", b"*", b"-") or b"\n$" in data or b"\n*" in data or b"\n-" in data:
            end = self._count_replies(data)
        else:
            self.replies += data.count(b"\n", 0, end)
        self._rest = data[end:]

    def _count_replies(self, data: bytes) -> int:
        position = 0
        while position < len(data):
            following = skip_reply(data, position)
            if following is None:
                break
            if (error := _first_error(data, position)) is not None:
                self.errors[self.replies] = error
            self.replies += 1
            position = following
        return position


def _first_error(data: bytes, position: int) -> bytes | None:
    """Give back the error that the whole reply at I(position) is, or has in it: EXEC gives back its commands' own."""
    if data[position] == 0x2D:
        return data[position + 1 : data.index(CRLF, position)]
    if data[position] != 0x2A:
        return None
    line = data.index(CRLF, position)
    element = line + 2
    for _index in range(int(data[position + 1 : line])):
        if (error := _first_error(data, element)) is not None:
            return error
        element = skip_reply(data, element) or 0
    return None


def skip_reply(data: bytes, position: int) -> int | None:
    """Give back where the reply at I(position) ends, or None while it is incomplete."""
    line = data.find(CRLF, position)
    if line < 0:
        return None
    kind = data[position]
    following = line + 2
    if kind in b"+-:":
        return following
    if kind not in b"$*":
        raise ProtocolError(position, "a reply that starts with one of + - : $ *")
    size = int(data[position + 1 : line])
    if kind == 0x24:
        following += size + 2 if size >= 0 else 0
        return following if following <= len(data) else None
    for _index in range(size):
        element = skip_reply(data, following)
        if element is None:
            return None
        following = element
    return following
