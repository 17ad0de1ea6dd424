# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A dump's commands as one server takes them: pure, no I/O, and a large value is never copied.

Source of what came when: the history of each command in Redis' own documentation (ABSTTL with 5.0; PXAT and XGROUP
CREATECONSUMER with 6.2; ENTRIESADDED, MAXDELETEDID, ENTRIESREAD and functions with 7.0).
"""

from __future__ import annotations

import string
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import read_length, write_length
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_types import MODULE, STRING

_HAS_COUNTED_STREAMS = (7, 0)
_HAS_PXAT = _HAS_CREATECONSUMER = (6, 2)
_HAS_ABSTTL = (5, 0)

Buffer = t.Union[bytes, memoryview]
# One argument, or what its parts are joined to.
Argument = t.Union[Buffer, tuple[Buffer, ...]]

# What is shorter is copied, to be sent with its neighbours.
_LARGE_BYTES = 64 << 10
_SEND_BYTES = 256 << 10
_VERSION_AT, _CRC_AT = -10, -8
_STRING_VERSION = 6

# Their key stands behind a subcommand; those of the second kind have none.
_SUBCOMMANDS = (b"XGROUP", b"XINFO", b"OBJECT")
_KEYLESS = (b"FUNCTION", b"SCRIPT")
# What the name of a module's type is made of.
_MODULE_CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"

# One command with one reply, so that no key is without its TTL at any time, and the time is the one that the dump says.
_SET_UNTIL = b"local r=redis.pcall('SET',KEYS[1],ARGV[1])"
_RESTORE_UNTIL = b"local r=redis.pcall('RESTORE',KEYS[1],'0',ARGV[1],unpack(ARGV,3))"
_UNTIL = b" if r.err then return r end redis.call('PEXPIREAT',KEYS[1],ARGV[2]) return r"


class Rewriter(t.NamedTuple):
    """What a server must be told in other words.

    I(version) is the server's. I(stamp) is the RDB version to give to payloads, None to leave theirs. I(replace) is
    whether a key that is there is replaced.
    """

    version: tuple[int, ...]
    stamp: int | None
    replace: bool

    @property
    def changes_nothing(self) -> bool:
        return self.replace and self.stamp is None and self.version >= _HAS_COUNTED_STREAMS

    def pieces(self, arguments: list[Buffer]) -> list[Buffer]:
        """Give back one command, from the arguments that the dump has, in pieces of what is to be sent."""
        rewrite = _REWRITES.get(bytes(arguments[0][:10]).upper())
        return _pieces(arguments if rewrite is None else rewrite(self, arguments))

    def _restore(self, arguments: list[Buffer]) -> t.Sequence[Argument]:
        _verb, key, ttl, payload, *options = arguments
        return self._restored((key, ttl, self._stamped(payload)), options)

    def _restored(self, value: tuple[Buffer, Buffer, Argument], options: list[Buffer]) -> t.Sequence[Argument]:
        key, ttl, payload = value
        kept = [option for option in options if self.replace or option != b"REPLACE"]
        if self.version >= _HAS_ABSTTL:
            return [b"RESTORE", key, ttl, payload, *kept]
        # IDLETIME and FREQ came with ABSTTL.
        replace = [option for option in kept if option == b"REPLACE"]
        if b"ABSTTL" not in options or ttl == b"0":
            return [b"RESTORE", key, ttl, payload, *replace]
        return [b"EVAL", _RESTORE_UNTIL + _UNTIL, b"1", key, payload, ttl, *replace]

    def _function(self, arguments: list[Buffer]) -> t.Sequence[Argument]:
        if arguments[1] != b"RESTORE":
            return arguments
        policy = [option for option in arguments[3:] if self.replace or option != b"REPLACE"]
        return [*arguments[:2], self._stamped(arguments[2]), *policy]

    def _set(self, arguments: list[Buffer]) -> t.Sequence[Argument]:
        if not self.replace:
            # SET would say of a key that is there that nothing was set, which is no error.
            _verb, key, value, *until = arguments
            ttl = until[1] if until else b"0"
            return self._restored((key, ttl, _string_payload(value)), [b"ABSTTL"])
        if self.version >= _HAS_PXAT or len(arguments) != 5 or arguments[3] != b"PXAT":
            return arguments
        _verb, key, value, _pxat, end = arguments
        return [b"EVAL", _SET_UNTIL + _UNTIL, b"1", key, value, end]

    def _xsetid(self, arguments: list[Buffer]) -> t.Sequence[Argument]:
        return arguments if self.version >= _HAS_COUNTED_STREAMS else arguments[:3]

    def _xgroup(self, arguments: list[Buffer]) -> t.Sequence[Argument]:
        what = arguments[1]
        if what == b"CREATECONSUMER" and self.version < _HAS_CREATECONSUMER:
            # To read what is pending for a consumer, which is nothing yet, makes it.
            _verb, _what, key, group, consumer = arguments
            return [b"XREADGROUP", b"GROUP", group, consumer, b"COUNT", b"1", b"STREAMS", key, b"0"]
        if what == b"CREATE" and self.version < _HAS_COUNTED_STREAMS and b"ENTRIESREAD" in arguments[5:]:
            at = arguments.index(b"ENTRIESREAD", 5)
            return [*arguments[:at], *arguments[at + 2 :]]
        return arguments

    def _stamped(self, payload: Buffer) -> Argument:
        if self.stamp is None:
            return payload
        body, version = payload[:_VERSION_AT], self.stamp.to_bytes(_CRC_AT - _VERSION_AT, "little")
        return body, version + crc64(version, crc64(body)).to_bytes(-_CRC_AT, "little")


_REWRITES: dict[bytes, t.Callable[[Rewriter, list[Buffer]], t.Sequence[Argument]]] = {
    b"RESTORE": Rewriter._restore,
    b"FUNCTION": Rewriter._function,
    b"SET": Rewriter._set,
    b"XSETID": Rewriter._xsetid,
    b"XGROUP": Rewriter._xgroup,
}


def _string_payload(value: Buffer) -> Argument:
    """Give back the payload of a string, of a version that every server reads: the form has never changed."""
    head = bytes([STRING]) + write_length(len(value))
    version = _STRING_VERSION.to_bytes(_CRC_AT - _VERSION_AT, "little")
    crc = crc64(version, crc64(value, crc64(head)))
    return head, value, version + crc.to_bytes(-_CRC_AT, "little")


def _pieces(arguments: t.Sequence[Argument]) -> list[Buffer]:
    found: list[Buffer] = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        parts = argument if isinstance(argument, tuple) else (argument,)
        found += [b"$%d\r\n" % sum(map(len, parts)), *parts, resp.CRLF]
    return found


def gathered(pieces: t.Iterable[Buffer]) -> t.Iterator[Buffer]:
    """Give back the same bytes in fewer pieces: small ones joined, large ones as they are."""
    waiting: list[Buffer] = []
    size = 0
    for piece in pieces:
        if len(piece) < _LARGE_BYTES:
            waiting.append(piece)
            size += len(piece)
        if waiting and (size >= _SEND_BYTES or len(piece) >= _LARGE_BYTES):
            yield b"".join(waiting)
            waiting, size = [], 0
        if len(piece) >= _LARGE_BYTES:
            yield piece
    if waiting:
        yield b"".join(waiting)


def key_at(data: t.Any, found: resp.Command) -> int:
    """Give back which argument of a command is its first key, 0 where it has none."""
    verb = data[slice(*found.arguments[0])].upper()
    at = 2 if verb in _SUBCOMMANDS else 1
    return 0 if verb in _KEYLESS or len(found.arguments) <= at else at


def ttl_of(data: t.Any, found: resp.Command) -> int | None:
    """Give back when the key of a SET or RESTORE expires, as the dump says it; None or 0 where it does not say so."""
    verb = data[slice(*found.arguments[0])].upper()
    at = {b"RESTORE": 2, b"SET": 4}.get(verb, 0)
    return int(data[slice(*found.arguments[at])]) if 0 < at < len(found.arguments) else None


def module_hint(data: t.Any, payload: int) -> str:
    """Give back what to say of the payload that begins there, where its value is a module's."""
    if data[payload] != MODULE:
        return ""
    number, _end = read_length(data, payload + 1)
    # Nine characters of 6 bits, and 10 bits for a version (redis, src/module.c, moduleTypeNameByID).
    name = "".join(_MODULE_CHARACTERS[number >> shift & 63] for shift in range(58, 9, -6))
    return f" (a value of the module type {name}, whose module the server must have loaded)"
