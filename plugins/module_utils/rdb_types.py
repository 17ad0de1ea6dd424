# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a type byte means in each version of Redis and Valkey, and how its value is passed: by its lengths.

Nothing is decoded that only has to be carried.
"""

from __future__ import annotations

import functools
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import (
    HEADER_BYTES,
    Buffer,
    Damage,
    read_length,
    read_magic,
    skip_string,
)

# Opcodes (redis and valkey, src/rdb.h). 242 and 243 mean different things in the two and are kept per magic below.
SLOT_INFO = 0xF4
FUNCTION2 = 0xF5
MODULE_AUX = 0xF7
IDLE = 0xF8
FREQ = 0xF9
AUX = 0xFA
RESIZEDB = 0xFB
EXPIRETIME_MS = 0xFC
EXPIRETIME = 0xFD
SELECTDB = 0xFE
EOF = 0xFF
HASH_TEMPLATE = 0xF2  # REDIS, from version 14
KEY_META = 0xF3  # REDIS, from version 13
SLOT_IMPORT = 0xF3  # VALKEY

# Smaller than this is a type, larger an opcode.
FIRST_OPCODE = 0xF0

# Types that more than this file has to know.
STRING = 0
MODULE = 7
# Hashes some of whose fields may have TTLs of their own.
FIELD_TTL_TYPES = frozenset((22, 23, 24, 25))
# Hashes whose field names stand elsewhere in the file (Redis 8.10).
TEMPLATE_TYPES = frozenset(range(29, 33))


def skip_lengths(buf: Buffer, pos: int, count: int) -> int:
    """Give back the offset after I(count) lengths."""
    for _unused in range(count):
        first = buf[pos]
        pos = pos + 1 if first < 0x40 else pos + 2 if first < 0x80 else read_length(buf, pos)[1]
    return pos


def skip_strings(buf: Buffer, pos: int, count: int) -> int:
    """Give back the offset after I(count) strings."""
    for _unused in range(count):
        first = buf[pos]
        if first < 0x40:
            pos += first + 1
        else:
            pos = skip_string(buf, pos)
    return pos


def _skip_list(buf: Buffer, pos: int) -> int:
    count, pos = read_length(buf, pos)
    return skip_strings(buf, pos, count)


def _skip_hash(buf: Buffer, pos: int) -> int:
    count, pos = read_length(buf, pos)
    return skip_strings(buf, pos, 2 * count)


def _skip_zset(buf: Buffer, pos: int) -> int:
    """Scores as text behind a length byte, of which 253, 254 and 255 stand for nan, inf and -inf."""
    count, pos = read_length(buf, pos)
    for _unused in range(count):
        pos = skip_string(buf, pos)
        pos += 1 + (buf[pos] if buf[pos] < 253 else 0)
    return pos


def _skip_zset_2(buf: Buffer, pos: int) -> int:
    count, pos = read_length(buf, pos)
    for _unused in range(count):
        pos = skip_string(buf, pos) + 8
    return pos


def _skip_quicklist_2(buf: Buffer, pos: int) -> int:
    count, pos = read_length(buf, pos)
    for _unused in range(count):
        container, after = read_length(buf, pos)
        if container not in (1, 2):
            raise Damage(pos, f"expected a quicklist container, 1 (plain) or 2 (packed), found {container}")
        pos = skip_string(buf, after)
    return pos


def _skip_hash_pre_ga(buf: Buffer, pos: int) -> int:
    """Redis 7.4 before its release: an expiry before each field."""
    count, pos = read_length(buf, pos)
    for _unused in range(count):
        pos = skip_strings(buf, read_length(buf, pos)[1], 2)
    return pos


def _skip_hash_metadata(buf: Buffer, pos: int) -> int:
    return _skip_hash_pre_ga(buf, pos + 8)


def _skip_listpack_ex(buf: Buffer, pos: int) -> int:
    return skip_string(buf, pos + 8)


def _skip_hash_2(buf: Buffer, pos: int) -> int:
    """Valkey 9: an expiry of 8 bytes after each field and its value."""
    count, pos = read_length(buf, pos)
    for _unused in range(count):
        pos = skip_strings(buf, pos, 2) + 8
    return pos


def _skip_stream(buf: Buffer, pos: int, version: int) -> int:
    """STREAM_LISTPACKS, 1 to 5 (redis, src/rdb.c, rdbSaveObject): nodes, totals, groups with their pending entries."""
    count, pos = read_length(buf, pos)
    pos = skip_strings(buf, pos, 2 * count)
    pos = skip_lengths(buf, pos, 8 if version >= 2 else 3)
    groups, pos = read_length(buf, pos)
    for _unused in range(groups):
        pos = _skip_group(buf, pos, version)
    if version < 4:
        return pos
    pos = skip_lengths(buf, pos, 2)
    producers, after = read_length(buf, pos)
    if producers:
        raise Damage(pos, f"a stream holds {producers} idempotent producers, whose layout is not known to this version")
    return skip_lengths(buf, after, 2)


def _skip_group(buf: Buffer, pos: int, version: int) -> int:
    pos = skip_lengths(buf, skip_string(buf, pos), 3 if version >= 2 else 2)
    pending, pos = read_length(buf, pos)
    for _unused in range(pending):
        pos = read_length(buf, pos + 24)[1]
    consumers, pos = read_length(buf, pos)
    for _unused in range(consumers):
        pos = skip_string(buf, pos) + (16 if version >= 3 else 8)
        owned, pos = read_length(buf, pos)
        pos += 16 * owned
    if version >= 5:
        refused, pos = read_length(buf, pos)
        pos += 16 * refused
    return pos


def _skip_module(buf: Buffer, pos: int) -> int:
    return skip_module_fields(buf, read_length(buf, pos)[1])


def skip_module_fields(buf: Buffer, pos: int) -> int:
    """Fields that say their own kind, up to the closing zero (RDB_MODULE_OPCODE_*)."""
    while True:
        kind, after = read_length(buf, pos)
        if kind == 0:
            return after
        if kind in (1, 2):
            pos = read_length(buf, after)[1]
        elif kind == 3:
            pos = after + 4
        elif kind == 4:
            pos = after + 8
        elif kind == 5:
            pos = skip_string(buf, after)
        else:
            raise Damage(pos, f"expected a module's field of kind 0 to 5, found {kind}")


Skip = t.Callable[[Buffer, int], int]

# What passes a value of each type, by the RDB version that it came with (redis, src/rdb.h of 4.0 to 7.4). Two have
# none: what the data of a module means may depend on more than that, and zipmaps are of before Redis 2.6.
_SKIPS_OF_ANY: dict[int, Skip] = {MODULE: _skip_module, 9: skip_string}
_SKIPS_SINCE: dict[int, dict[int, Skip]] = {
    6: {
        STRING: skip_string,
        1: _skip_list,
        2: _skip_list,
        3: _skip_zset,
        4: _skip_hash,
        10: skip_string,
        11: skip_string,
        12: skip_string,
        13: skip_string,
    },
    7: {14: _skip_list},
    8: {5: _skip_zset_2},
    9: {15: functools.partial(_skip_stream, version=1)},
    10: {
        16: skip_string,
        17: skip_string,
        18: _skip_quicklist_2,
        19: functools.partial(_skip_stream, version=2),
    },
    11: {20: skip_string, 21: functools.partial(_skip_stream, version=3)},
}
# From here on the two go their own ways.
_SKIPS_OF_REDIS: dict[int, dict[int, Skip]] = {
    12: {22: _skip_hash_pre_ga, 23: skip_string, 24: _skip_hash_metadata, 25: _skip_listpack_ex},
    13: {26: functools.partial(_skip_stream, version=4)},
    14: {27: functools.partial(_skip_stream, version=5), 30: skip_string},
}
_SKIPS_OF_VALKEY: dict[int, dict[int, Skip]] = {80: {22: _skip_hash_2}}
# Files of before this version are not held to what their own version had.
_LAST_OLD = 9

# The RDB version that each type came with which Redis and Valkey have in common.
SINCE_VERSION = {kind: version for version, skips in _SKIPS_SINCE.items() for kind in skips}

TYPE_NAMES = {
    STRING: "string",
    **dict.fromkeys((1, 10, 14, 18), "list"),
    **dict.fromkeys((2, 11, 20), "set"),
    **dict.fromkeys((3, 5, 12, 17), "zset"),
    **dict.fromkeys((4, 9, 13, 16, 22, 23, 24, 25, 30, 32), "hash"),
    **dict.fromkeys((15, 19, 21, 26, 27), "stream"),
    MODULE: "module",
}

# Seen in no file, or of a layout that is not public; the name makes the refusal clearer.
_REFUSED = {
    ("REDIS", 6): "a module value of before Redis 4.0's release",
    ("REDIS", 28): "an array of Redis 8.8",
    ("REDIS", 33): "a GCRA limiter of Redis 8.8",
    ("VALKEY", 23): "a path hash of Valkey 9.2",
}


class Format:
    """What the bytes of a file mean: tables for one magic and version.

    I(skips) has, for each type byte, what passes a value of that type, or None.
    """

    def __init__(self, magic: str, version: int) -> None:
        self.magic = magic
        self.version = version
        # Number of fields of each hash template by its id; Walker.head() fills this.
        self.templates: dict[int, int] = {}
        self.skips: list[Skip | None] = [None] * FIRST_OPCODE
        for kind, skip in self._types().items():
            self.skips[kind] = skip
        # Opcodes that may stand between the beginning of a record and its type byte.
        self.leads = {EXPIRETIME_MS, EXPIRETIME, IDLE, FREQ, SLOT_INFO}
        if magic == "REDIS" and version >= 13:
            self.leads.add(KEY_META)

    def _types(self) -> dict[int, Skip]:
        types = dict(_SKIPS_OF_ANY)
        tables = {**_SKIPS_SINCE, **(_SKIPS_OF_VALKEY if self.magic == "VALKEY" else _SKIPS_OF_REDIS)}
        for version, skips in tables.items():
            if version <= max(self.version, _LAST_OLD):
                types.update(skips)
        if self.magic == "REDIS" and self.version >= 14:
            types[32] = self._skip_template_array
        return types

    def _skip_template_array(self, buf: Buffer, pos: int) -> int:
        template, after = read_length(buf, pos)
        if template not in self.templates:
            raise Damage(pos, f"expected the id of a hash template of this file, found {template}")
        return skip_strings(buf, after, self.templates[template])

    def refusal(self, kind: int, offset: int) -> Damage:
        """Why a byte that should be a type or an opcode is neither."""
        known = _REFUSED.get((self.magic, kind))
        what = f"{kind} ({known}, whose layout is not known here)" if known else f"{kind} (0x{kind:02x})"
        return Damage(offset, f"expected a type or an opcode of {self}, found {what}")

    def __str__(self) -> str:
        return f"{self.magic} RDB version {self.version}"


_VERSIONS = {"REDIS": range(5, 16), "VALKEY": range(80, 82)}


def read_header(buf: Buffer) -> Format:
    """Give back what the bytes of a file mean that begins so. Raises KeyferryError for what is not known."""
    found = read_magic(buf)
    if found is None:
        raise KeyferryError(
            f"Not an RDB file: it begins with {bytes(buf[:HEADER_BYTES])!r}, not with REDIS or VALKEY and a version"
        )
    magic, version = found
    if version not in _VERSIONS[magic]:
        first, last = _VERSIONS[magic][0], _VERSIONS[magic][-1]
        raise KeyferryError(
            f"RDB version {version} of {magic} is not known, only {first} to {last}: a newer one may hold records that"
            " would be passed wrongly. Use a newer release of this collection"
        )
    return Format(magic, version)
