# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a key stands in a dump: as one RESTORE, or as the commands that make it anew; most strings as SET in either.

SET makes a string as RESTORE does, and costs a server a quarter less (tests/benchmarks). Pure, no I/O.
"""

from __future__ import annotations

import collections
import struct
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.commands import commands as native_commands
from ansible_collections.keyferry.redis.plugins.module_utils.commands import function_libraries
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError, shown
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import FOOTER_BYTES
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_types import TYPE_NAMES

_RESTORE = b"*5\r\n$7\r\nRESTORE\r\n"
_NO_TTL = b"$1\r\n0\r\n"
_REPLACE = b"$7\r\nREPLACE\r\n"
_RESTORE_TTL = b"*6\r\n$7\r\nRESTORE\r\n"
_REPLACE_ABSTTL = b"$7\r\nREPLACE\r\n$6\r\nABSTTL\r\n"
_SET = b"*3\r\n$3\r\nSET\r\n"
_SET_UNTIL = b"*5\r\n$3\r\nSET\r\n"
_UNTIL = b"\r\n$4\r\nPXAT\r\n"
pack_crc = struct.Struct("<Q").pack
# Strings are many, and their lengths few.
_BULK_HEADS = [b"$%d\r\n" % size for size in range(1024)]


class Form(t.NamedTuple):
    """How a key stands in the dump.

    C(encode) gives back the pieces of its commands, and their number, from its name and payload (bulk strings), its
    TTL (-1 for none) and the last arguments of its RESTORE (bulk strings). C(functions) gives back the commands that
    make the libraries of a FUNCTION DUMP. C(streams) is whether the payload is only carried, so that a large one need
    not be held.
    """

    encode: t.Callable[[bytes, bytes, bytes, bytes], tuple[t.Sequence[bytes], int]]
    functions: t.Callable[[bytes], list[bytes]]
    streams: bool


def _as_restore(key: bytes, ttl: bytes, payload: bytes, access: bytes) -> tuple[t.Sequence[bytes], int]:
    before, after = restore(key, ttl, access)
    return (before, payload, after), 1


def _as_commands(key: bytes, ttl: bytes, payload: bytes, _access: bytes) -> tuple[t.Sequence[bytes], int]:
    name = resp.content(key)
    try:
        made = native_commands(name, ttl, bytes(resp.content(payload)))
    except KeyferryError as error:
        raise KeyferryError(f"Cannot write key {shown(name)} as commands: {error.msg}") from None
    return made, len(made)


def _functions_as_restore(payload: bytes) -> list[bytes]:
    return [resp.command("FUNCTION", "RESTORE", payload, "REPLACE")] if function_libraries(payload) else []


def _functions_as_commands(payload: bytes) -> list[bytes]:
    return [function_load(code) for code in function_libraries(payload)]


RESTORE = Form(_as_restore, _functions_as_restore, streams=True)
COMMANDS = Form(_as_commands, _functions_as_commands, streams=False)


def count_types(type_bytes: collections.Counter[int]) -> dict[str, t.Any]:
    """Give back C(types), keys by the name of their type, and C(type_bytes), keys by the payload's own type byte."""
    types: collections.Counter[str] = collections.Counter()
    for number, keys in type_bytes.items():
        types[TYPE_NAMES.get(number, f"type {number}")] += keys
    return {
        "types": dict(sorted(types.items())),
        "type_bytes": {str(number): keys for number, keys in type_bytes.items()},
    }


def function_load(code: bytes) -> bytes:
    """Give back the command that makes a library of functions, or makes it anew."""
    return resp.command("FUNCTION", "LOAD", "REPLACE", code)


def restore(key: bytes, ttl: bytes, access: bytes = b"") -> tuple[bytes, bytes]:
    """Give back what stands before and after the payload in the command that restores a key.

    I(key) is a bulk string, as the payload between the two is; I(ttl) is -1 for none. I(access) is nothing, or IDLETIME
    or FREQ and its number, as bulk strings.
    """
    if access:
        before, after = restore(key, ttl)
        return b"*%d%b" % (7 if ttl == b"-1" else 8, before[2:]), after + access
    if ttl == b"-1":
        return _RESTORE + key + _NO_TTL, _REPLACE
    return b"%b%b$%d\r\n%b\r\n" % (_RESTORE_TTL, key, len(ttl), ttl), _REPLACE_ABSTTL


def restore_in_pieces(
    around: tuple[bytes, bytes], head: bytes, value: t.Iterable[t.Any], value_bytes: int, version: int
) -> t.Iterator[t.Any]:
    """Give back one RESTORE piece by piece: I(around) is what restore() gives, its payload I(head), I(value) and a
    footer."""
    before, after = around
    yield b"%b$%d\r\n%b" % (before, len(head) + value_bytes + FOOTER_BYTES, head)
    crc = crc64(head)
    for piece in value:
        crc = crc64(piece, crc)
        yield piece
    footer = version.to_bytes(2, "little")
    yield footer + pack_crc(crc64(footer, crc)) + resp.CRLF + after


def set_string(key: bytes, ttl: bytes, value: bytes) -> t.Sequence[bytes]:
    """Give back the pieces of the command that makes a string, from its name (a bulk string), its TTL and its bytes."""
    before, after = set_around(key, ttl, len(value))
    return (*before, value, *after)


def set_around(key: bytes, ttl: bytes, size: int) -> tuple[t.Sequence[bytes], t.Sequence[bytes]]:
    """Give back what stands before and after the I(size) bytes of a string in the command that makes it."""
    head = _BULK_HEADS[size] if size < len(_BULK_HEADS) else b"$%d\r\n" % size
    if ttl == b"-1":
        return (_SET, key, head), (resp.CRLF,)
    return (_SET_UNTIL, key, head), (_UNTIL, _BULK_HEADS[len(ttl)], ttl, resp.CRLF)


def templates(key: bytes) -> tuple[bytes, bytes]:
    """Give back RESTORE as restore() makes it, without and with a TTL, to be filled in.

    I(key) stands for the key; then come the TTL's length and bytes, the payload's length, and the payload in two parts.
    """
    payload = b"$%d\r\n%b%b\r\n"
    plain, expiring = (payload.join(restore(key, ttl)) for ttl in (b"-1", b"0"))
    return plain, expiring.replace(_NO_TTL, b"$%d\r\n%b\r\n")


def set_templates(key: bytes) -> tuple[bytes, bytes]:
    """As templates(), of set_string(): the key, the value's length and bytes, the TTL's length and bytes."""
    return b"%b%b$%%d\r\n%%b\r\n" % (_SET, key), b"%b%b$%%d\r\n%%b%b$%%d\r\n%%b\r\n" % (_SET_UNTIL, key, _UNTIL)
