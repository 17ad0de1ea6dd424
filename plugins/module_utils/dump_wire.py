# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a dump asks a server about its keys, and the replies to that, looked at in the bytes that they arrived as.

Value and TTL of a key are asked for within one MULTI, so that no other client changes the key between the two. A few
keys share one: that costs the server less, and does not keep it from its other clients for long.
"""

from __future__ import annotations

import functools
import re
import socket
import sys
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError, shown
from ansible_collections.keyferry.redis.plugins.module_utils.server import RECEIVE_BYTES, Server, refused

# PEXPIRETIME gives the absolute milliseconds that a dump must carry. A server without it is asked for TIME and PTTL,
# which differ from that by no more than the milliseconds that pass between these two commands.
HAS_PEXPIRETIME = (7, 0)
# What is cut into lines at once, over and over until the last of them is there.
_LINES_BYTES = 1 << 20
# A value larger than this goes from the socket to the disk in pieces.
STREAM_BYTES = 8 << 20

_MULTI = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC = b"*1\r\n$4\r\nEXEC\r\n"
_PEXPIRETIME = b"*2\r\n$11\r\nPEXPIRETIME\r\n"
_TIME_PTTL = b"*1\r\n$4\r\nTIME\r\n*2\r\n$4\r\nPTTL\r\n"
_DUMP = b"*2\r\n$4\r\nDUMP\r\n"
_MGET = b"$4\r\nMGET\r\n"

# The replies about one key, up to where its payload begins. What does not exist has nil for OBJECT.
_ACCESS_REPLY = rb"(?::(?P<access>\d+)|\$-1)\r\n"
_TIME_REPLY = rb"\*2\r\n\$\d+\r\n(?P<seconds>\d+)\r\n\$\d+\r\n(?P<micros>\d+)\r\n"
_TTL_AND_LENGTH = rb":(?P<ttl>-?\d+)\r\n\$(?P<length>-?\d+)\r\n"
_ANY_ERROR = re.compile(
    rb"(?:(?::\d+|\$-1)\r\n)?(?:\*2\r\n\$\d+\r\n\d+\r\n\$\d+\r\n\d+\r\n)?(?::-?\d+\r\n)*-(?P<text>[^\r]*)\r\n"
)
_TTLS = re.compile(rb":((?:-?\d+\r\n:)*-?\d+)\r\n\*\d+\r\n")
_BULK_HEAD = re.compile(rb"\$(-?\d+)\r\n")
_SCAN_HEAD = re.compile(rb"\*2\r\n\$\d+\r\n(\d+)\r\n\*(\d+)\r\n")


class Payloads:
    """The question that any key can be asked: TTL and DUMP, and what comes back for it.

    I(access) is what RESTORE calls the key's eviction facts, V(IDLETIME) or V(FREQ), and so does OBJECT; None where
    nobody wants these. They are asked for first: DUMP is an access to the key.
    """

    def __init__(self, version: tuple[int, ...], access: str | None = None) -> None:
        self._ttl = _PEXPIRETIME if version >= HAS_PEXPIRETIME else _TIME_PTTL
        self._access = b"" if access is None else b"*3\r\n$6\r\nOBJECT\r\n" + resp.bulk(access)
        self._access_name = b"" if access is None else resp.bulk(access)
        has_time = self._ttl is _TIME_PTTL
        self._each = 2 + has_time + (access is not None)
        self.reply = re.compile(
            (_ACCESS_REPLY if access else rb"(?P<access>x\A)?")
            + (_TIME_REPLY if has_time else rb"(?P<seconds>x\A)?(?P<micros>x\A)?")
            + _TTL_AND_LENGTH
        )

    def about(self, keys: list[bytes], together: int) -> bytes:
        """Give back the commands that ask about I(keys) (bulk strings), I(together) of them in each MULTI."""
        ttl, access = self._ttl, self._access
        parts = []
        for start in range(0, len(keys), together):
            parts.append(_MULTI)
            if access:
                parts += [access + key + ttl + key + _DUMP + key for key in keys[start : start + together]]
            else:
                parts += [ttl + key + _DUMP + key for key in keys[start : start + together]]
            parts.append(_EXEC)
        return b"".join(parts)

    def commands(self, keys: int) -> int:
        """Give back the number of commands in a MULTI about so many keys."""
        return keys * self._each

    def about_which(self, command: int, _keys: int) -> int:
        """Give back which key the command with this index in such a MULTI is about."""
        return command // self._each

    def ttl_of(self, reply: re.Match[bytes]) -> bytes:
        """Give back the absolute TTL, as PEXPIRETIME does: -1 for none, -2 for no such key."""
        ttl = reply["ttl"]
        if reply["seconds"] is None or ttl[:1] == b"-":
            return ttl
        return b"%d" % (int(reply["seconds"]) * 1000 + int(reply["micros"]) // 1000 + int(ttl))

    def access_of(self, reply: re.Match[bytes]) -> bytes:
        """Give back the last arguments of RESTORE, bulk strings: nothing where they were not asked for."""
        return self._access_name + resp.bulk(reply["access"]) if reply["access"] is not None else b""


class Strings:
    """The question that costs the server half as much, and that strings answer: TTLs, and one MGET."""

    def about(self, keys: list[bytes], together: int) -> bytes:
        """Give back the commands that ask about I(keys) (bulk strings), I(together) of them in each MULTI."""
        parts = []
        for start in range(0, len(keys), together):
            some = keys[start : start + together]
            parts += [_MULTI, _PEXPIRETIME, _PEXPIRETIME.join(some)]
            parts += [b"*%d\r\n" % (len(some) + 1), _MGET, *some, _EXEC]
        return b"".join(parts)

    def commands(self, keys: int) -> int:
        """Give back the number of commands in a MULTI about so many keys."""
        return keys + 1

    def about_which(self, command: int, keys: int) -> int:
        """Give back which key the command with this index in such a MULTI is about, the first of them for MGET."""
        return command % keys


Question = t.Union[Payloads, Strings]


class Replies:
    """What arrives on one connection, as bytes that are looked at in place: in C(buffer) from C(position) on."""

    def __init__(self, server: Server, wire: socket.socket) -> None:
        self._server = server
        self._wire = wire
        self.buffer = bytearray()
        self.position = 0

    def send(self, request: bytes) -> None:
        self._wire.sendall(request)

    def line(self) -> bytes:
        """Give back the reply that begins here, up to the end of its first line."""
        while (end := self.buffer.find(b"\r\n", self.position)) < 0:
            self._receive(len(self.buffer) - self.position + 1)
        found = bytes(self.buffer[self.position : end])
        self.position = end + 2
        return found

    def scanned(self) -> tuple[int, list[bytes]]:
        """Give back the cursor of a SCAN reply, and its keys as the bulk strings they came as."""
        head = self._match(_SCAN_HEAD, "SCAN")
        self.position = head.end()
        cursor, count = int(head[1]), int(head[2])
        return cursor, self._keys_by_line(count) or [self._bulk() for _index in range(count)]

    def _keys_by_line(self, count: int) -> list[bytes]:
        """Take so many bulk strings that begin here, all at once; none where one has CRLF in it, or they are large."""
        while True:
            lines = bytes(self.buffer[self.position :]).split(resp.CRLF, 2 * count)
            if len(lines) > 2 * count:
                break
            if len(self.buffer) - self.position > _LINES_BYTES:
                return []
            self._receive(len(self.buffer) - self.position + 1)
        heads, names = lines[: 2 * count : 2], lines[1 : 2 * count : 2]
        if heads != [b"$%d" % len(name) for name in names]:
            return []
        self.position = len(self.buffer) - len(lines[-1])
        return [b"%b\r\n%b\r\n" % both for both in zip(heads, names)]

    def _bulk(self) -> bytes:
        """Wait for the bulk string that begins here, and take it."""
        while True:
            line = self.buffer.find(resp.CRLF, self.position)
            if line < 0:
                self._receive(len(self.buffer) - self.position + 1)
                continue
            end = line + 4 + int(self.buffer[self.position + 1 : line])
            if end <= len(self.buffer):
                bulk = bytes(self.buffer[self.position : end])
                self.position = end
                return bulk
            self._receive(end - self.position)

    def begin(self, question: Question, keys: list[bytes]) -> None:
        """Pass what the server says to one MULTI about I(keys) before the replies about the first of them."""
        expected = _beginning(question.commands(len(keys)))
        while not self.buffer.startswith(expected, self.position):
            if not expected.startswith(self.buffer[self.position : self.position + len(expected)]):
                raise self._refusal(question, keys)
            self._receive(len(self.buffer) - self.position + 1)
        self.position += len(expected)

    def of_key(self, question: Payloads, key: bytes, streams: bool) -> re.Match[bytes]:
        """Wait for the replies about I(key), a bulk string; of a payload to be streamed, for its first byte only."""
        largest = STREAM_BYTES if streams else sys.maxsize
        while True:
            head = self._match(question.reply, f"key {_name(key)}")
            length = int(head["length"])
            # What does not exist has no payload.
            end = head.end() + (length + 2 if 0 <= length <= largest else length > 0)
            if end <= len(self.buffer):
                return head
            self._receive(end - self.position)

    def ttls(self, keys: list[bytes]) -> list[bytes]:
        """Take the TTLs of I(keys), up to where the first of their values begins."""
        found = self._match(_TTLS, f"one of {len(keys)} keys, the first of them {_name(keys[0])}")
        self.position = found.end()
        return found[1].split(b"\r\n:")

    def length(self, key: bytes, streams: bool) -> int:
        """Wait for the bulk string that is the value of I(key), and give back its length, -1 for nil.

        Of one to be streamed, it waits for the first line only.
        """
        while True:
            length = int(self._match(_BULK_HEAD, f"key {_name(key)}")[1])
            end = self.buffer.index(10, self.position) + 1
            if length < 0 or (length > STREAM_BYTES and streams) or end + length + 2 <= len(self.buffer):
                return length
            self._receive(end - self.position + length + 2)

    def stream(self, length: int) -> t.Iterator[bytes]:
        """Give back, piece by piece, what the bulk string of I(length) bytes holds that begins here."""
        self.position = self.buffer.index(10, self.position) + 1
        missing = length
        while missing:
            if self.position == len(self.buffer):
                self._receive(1)
            piece = bytes(self.buffer[self.position : self.position + missing])
            self.position += len(piece)
            missing -= len(piece)
            yield piece
        if len(self.buffer) - self.position < len(resp.CRLF):
            self._receive(len(resp.CRLF))
        self.position += len(resp.CRLF)

    def _match(self, pattern: re.Pattern[bytes], subject: str) -> re.Match[bytes]:
        while True:
            found = pattern.match(self.buffer, self.position)
            if found is not None:
                return found
            error = _ANY_ERROR.match(self.buffer, self.position)
            if error is not None:
                raise self._refused(subject, error["text"])
            self._receive(len(self.buffer) - self.position + 1)

    def _refusal(self, question: Question, keys: list[bytes]) -> KeyferryError:
        """Give back what the server refused of one MULTI: it says so in place of QUEUED."""
        count = question.commands(len(keys))
        for index in range(count + 2):
            line = self.line()
            if line.startswith(b"-"):
                is_of_key = 0 < index <= count
                key = keys[question.about_which(index - 1, len(keys))] if is_of_key else b""
                return self._refused(f"key {_name(key)}" if is_of_key else "MULTI", _cause(line[1:]))
        return self._refused("MULTI", b"it answered " + line[:100])

    def _refused(self, subject: str, text: bytes) -> KeyferryError:
        reason = text.decode(errors="replace").rstrip(".")
        return refused(f"Redis at {self._server} refused {subject}: {reason}", reason)

    def _receive(self, wanted: int) -> None:
        """Have at least I(wanted) bytes from C(position) on; what lies before it is gone then, and C(position) is 0."""
        del self.buffer[: self.position]
        self.position = 0
        while True:
            data = self._wire.recv(max(RECEIVE_BYTES, min(wanted - len(self.buffer), STREAM_BYTES)))
            if not data:
                raise ConnectionError("the server closed it")
            self.buffer += data
            if len(self.buffer) >= wanted:
                return


@functools.cache
def _beginning(commands: int) -> bytes:
    return b"+OK\r\n" + b"+QUEUED\r\n" * commands + b"*%d\r\n" % commands


def _cause(error: bytes) -> bytes:
    """Give back the error that EXEC was refused for, which may pass, and which some servers wrap."""
    return error.partition(b" because of: ")[2] or error if error.startswith(b"EXECABORT") else error


def _name(key: bytes) -> str:
    return shown(resp.content(key))
