# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The RDB file, walked by its lengths: nothing is decoded that only has to be carried.

Pure: works on any buffer of bytes (bytes, memoryview, mmap), reads no file and knows nothing of Ansible.

Layout of the file (redis, src/rdb.c, rdbSaveRio): magic and version in 9 bytes, AUX fields, MODULE_AUX, functions,
then for each non-empty database SELECTDB, RESIZEDB and its records, then EOF and the CRC-64 of all bytes before it.
A record is: opcodes that belong to the key (expiry, idle time, frequency), the type byte, the key, the value.
"""

from __future__ import annotations

import functools
import itertools
import re
import struct
import sys
import typing as t
from collections import Counter

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

Buffer = t.Any  # bytes, memoryview or mmap: indexing gives an int, slicing gives bytes or a view

HEADER_BYTES = 9
CRC_BYTES = 8
# What a DUMP payload has behind the value: the RDB version (2 bytes) and a CRC-64.
FOOTER_BYTES = 2 + CRC_BYTES

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

# What an Item may be besides an opcode.
RECORDS = -1

# Where a walk ended.
AT_STOP = "stop"
AT_OPCODE = "opcode"
AT_SHORTAGE = "shortage"

# Length bytes: two bits say which form, 0x80 and 0x81 are followed by 4 and 8 bytes, big-endian; 0xC0... are encoded
# strings: integers of 1, 2 and 4 bytes, and LZF with its two lengths.
_LENGTH_32 = 0x80
_LENGTH_64 = 0x81
_EXPIRY = struct.Struct("<Q")
_INT_BYTES = {0xC0: 1, 0xC1: 2, 0xC2: 4}
_LZF = 0xC3

# Smaller than this is a type, larger an opcode.
_FIRST_OPCODE = 0xF0
_RUN = 128
_STRIDE = 1024
_SAMPLE = 256
# A guess passes so many records, or at least so few where they are large; it looks at so many bytes and beginnings.
_GUESS_RECORDS = 300
_GUESS_LEAST = 20
_GUESS_BYTES = 1 << 16
_GUESS_TRIES = 2000


class Damage(Exception):
    """What stands at a byte offset of the buffer is not what the format asks for there."""

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(offset, text)
        self.offset = offset
        self.text = text


class Item(t.NamedTuple):
    """A stretch of the file: an opcode with what it says, or a run of records.

    I(value): for C(AUX) name and value as bytes, for C(SELECTDB) the index, for C(RESIZEDB) keys and expires, for
    C(HASH_TEMPLATE) its id and number of fields, for C(RECORDS) a Tally, else None.
    """

    kind: int
    start: int
    end: int
    value: t.Any = None


class Tally:
    """Counts of a run of records: keys, keys with an expiry, and keys by type byte."""

    __slots__ = ("expires", "keys", "types")

    def __init__(self) -> None:
        self.keys = 0
        self.expires = 0
        # Plain strings (type 0) are not counted here one by one: they are what is left of the keys.
        self.types: Counter[int] = Counter()

    def add(self, other: Tally) -> None:
        self.keys += other.keys
        self.expires += other.expires
        self.types.update(other.types)

    def names(self) -> dict[str, int]:
        """Keys by what TYPE would call them."""
        found: Counter[str] = Counter({"string": self.keys - sum(self.types.values())})
        for kind, keys in self.types.items():
            found[TYPE_NAMES[kind]] += keys
        return {name: keys for name, keys in sorted(found.items()) if keys}


class Record(t.NamedTuple):
    """One key. RESTORE's payload is the type byte, C(buffer[value_start:value_end]), version and CRC-64.

    I(expire_ms) is absolute, I(idle) in seconds; both and I(freq) are None where the file does not say.
    """

    start: int
    expire_ms: int | None
    kind: int
    key: bytes
    value_start: int
    value_end: int
    idle: int | None
    freq: int | None


# -- lengths and strings ---------------------------------------------------------------------------------------------


def read_length(buf: Buffer, pos: int) -> tuple[int, int]:
    """Give back a length and the offset after it."""
    first = buf[pos]
    if first < 0x40:
        return first, pos + 1
    if first < 0x80:
        return (first & 0x3F) << 8 | buf[pos + 1], pos + 2
    if first == _LENGTH_32:
        return _big_endian(buf, pos + 1, 4), pos + 5
    if first == _LENGTH_64:
        return _big_endian(buf, pos + 1, 8), pos + 9
    raise Damage(pos, f"expected a length, found the byte 0x{first:02x}")


def _big_endian(buf: Buffer, pos: int, size: int) -> int:
    return int.from_bytes(_take(buf, pos, size), "big")


def _little_endian(buf: Buffer, pos: int, size: int) -> int:
    return int.from_bytes(_take(buf, pos, size), "little")


def _take(buf: Buffer, pos: int, size: int) -> bytes:
    if pos + size > len(buf):
        raise IndexError
    return bytes(buf[pos : pos + size])


def skip_string(buf: Buffer, pos: int) -> int:
    """Give back the offset after a string in any of its forms."""
    first = buf[pos]
    if first < 0x40:
        return pos + 1 + first
    if first < 0x80:
        return pos + 2 + ((first & 0x3F) << 8 | buf[pos + 1])
    if first == _LZF:
        compressed, pos = read_length(buf, pos + 1)
        return read_length(buf, pos)[1] + compressed
    if first in _INT_BYTES:
        return pos + 1 + _INT_BYTES[first]
    if first > 0xC3:
        raise Damage(pos, f"expected a string, found the byte 0x{first:02x}, an unknown encoding")
    length, pos = read_length(buf, pos)
    return pos + length


def read_string(buf: Buffer, pos: int) -> tuple[bytes, int]:
    """Give back a string, decoded, and the offset after it."""
    first = buf[pos]
    if first in _INT_BYTES:
        size = _INT_BYTES[first]
        return b"%d" % int.from_bytes(_take(buf, pos + 1, size), "little", signed=True), pos + 1 + size
    if first == _LZF:
        compressed, after = read_length(buf, pos + 1)
        length, after = read_length(buf, after)
        return _unpack_lzf(_take(buf, after, compressed), length, pos), after + compressed
    length, after = read_length(buf, pos)
    return _take(buf, after, length), after + length


def _unpack_lzf(packed: bytes, length: int, offset: int) -> bytes:
    """LZF: runs of literals (a byte below 32 says how many more) and references into what is already unpacked."""
    out = bytearray()
    pos = 0
    while pos < len(packed):
        control = packed[pos]
        pos += 1
        if control < 32:
            out += packed[pos : pos + control + 1]
            pos += control + 1
            continue
        size = control >> 5
        if size == 7:
            size += packed[pos]
            pos += 1
        begin = len(out) - ((control & 0x1F) << 8 | packed[pos]) - 1
        pos += 1
        if begin < 0:
            raise Damage(offset, "a compressed string refers to bytes before its beginning")
        for index in range(begin, begin + size + 2):
            out.append(out[index])
    if len(out) != length:
        raise Damage(offset, f"a compressed string of {length} bytes unpacks to {len(out)}")
    return bytes(out)


def write_length(length: int) -> bytes:
    """The shortest form of a length, as Redis writes it (rdbSaveLen)."""
    if length < 0x40:
        return bytes([length])
    if length < 0x4000:
        return (0x4000 | length).to_bytes(2, "big")
    if length < 1 << 32:
        return bytes([_LENGTH_32]) + length.to_bytes(4, "big")
    return bytes([_LENGTH_64]) + length.to_bytes(8, "big")


# -- values, each skipped by its lengths -----------------------------------------------------------------------------


def _skip_lengths(buf: Buffer, pos: int, count: int) -> int:
    for _unused in range(count):
        first = buf[pos]
        pos = pos + 1 if first < 0x40 else pos + 2 if first < 0x80 else read_length(buf, pos)[1]
    return pos


def _skip_strings(buf: Buffer, pos: int, count: int) -> int:
    for _unused in range(count):
        first = buf[pos]
        if first < 0x40:
            pos += first + 1
        else:
            pos = skip_string(buf, pos)
    return pos


def _skip_list(buf: Buffer, pos: int) -> int:
    count, pos = read_length(buf, pos)
    return _skip_strings(buf, pos, count)


def _skip_hash(buf: Buffer, pos: int) -> int:
    count, pos = read_length(buf, pos)
    return _skip_strings(buf, pos, 2 * count)


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
        pos = _skip_strings(buf, read_length(buf, pos)[1], 2)
    return pos


def _skip_hash_metadata(buf: Buffer, pos: int) -> int:
    return _skip_hash_pre_ga(buf, pos + 8)


def _skip_listpack_ex(buf: Buffer, pos: int) -> int:
    return skip_string(buf, pos + 8)


def _skip_hash_2(buf: Buffer, pos: int) -> int:
    """Valkey 9: an expiry of 8 bytes after each field and its value."""
    count, pos = read_length(buf, pos)
    for _unused in range(count):
        pos = _skip_strings(buf, pos, 2) + 8
    return pos


def _skip_stream(buf: Buffer, pos: int, version: int) -> int:
    """STREAM_LISTPACKS, 1 to 5 (redis, src/rdb.c, rdbSaveObject): nodes, totals, groups with their pending entries."""
    count, pos = read_length(buf, pos)
    pos = _skip_strings(buf, pos, 2 * count)
    pos = _skip_lengths(buf, pos, 8 if version >= 2 else 3)
    groups, pos = read_length(buf, pos)
    for _unused in range(groups):
        pos = _skip_group(buf, pos, version)
    if version < 4:
        return pos
    pos = _skip_lengths(buf, pos, 2)
    producers, after = read_length(buf, pos)
    if producers:
        raise Damage(pos, f"a stream holds {producers} idempotent producers, whose layout is not known to this version")
    return _skip_lengths(buf, after, 2)


def _skip_group(buf: Buffer, pos: int, version: int) -> int:
    pos = _skip_lengths(buf, skip_string(buf, pos), 3 if version >= 2 else 2)
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
    return _skip_module_fields(buf, read_length(buf, pos)[1])


def _skip_module_fields(buf: Buffer, pos: int) -> int:
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

_TYPES_OF_OLD: dict[int, Skip] = {
    0: skip_string,
    1: _skip_list,
    2: _skip_list,
    3: _skip_zset,
    4: _skip_hash,
    5: _skip_zset_2,
    7: _skip_module,
    9: skip_string,
    10: skip_string,
    11: skip_string,
    12: skip_string,
    13: skip_string,
    14: _skip_list,
    15: functools.partial(_skip_stream, version=1),
}
_TYPES_OF_10: dict[int, Skip] = {
    16: skip_string,
    17: skip_string,
    18: _skip_quicklist_2,
    19: functools.partial(_skip_stream, version=2),
}
_TYPES_OF_11: dict[int, Skip] = {20: skip_string, 21: functools.partial(_skip_stream, version=3)}
_TYPES_OF_REDIS_12: dict[int, Skip] = {
    22: _skip_hash_pre_ga,
    23: skip_string,
    24: _skip_hash_metadata,
    25: _skip_listpack_ex,
}
_TYPES_OF_VALKEY: dict[int, Skip] = {22: _skip_hash_2}

TYPE_NAMES = {
    **dict.fromkeys((0,), "string"),
    **dict.fromkeys((1, 10, 14, 18), "list"),
    **dict.fromkeys((2, 11, 20), "set"),
    **dict.fromkeys((3, 5, 12, 17), "zset"),
    **dict.fromkeys((4, 9, 13, 16, 22, 23, 24, 25, 30, 32), "hash"),
    **dict.fromkeys((15, 19, 21, 26, 27), "stream"),
    **dict.fromkeys((7,), "module"),
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
        self.skips: list[Skip | None] = [None] * _FIRST_OPCODE
        for kind, skip in self._types().items():
            self.skips[kind] = skip
        # Opcodes that may stand between the beginning of a record and its type byte.
        self.leads = {EXPIRETIME_MS, EXPIRETIME, IDLE, FREQ, SLOT_INFO}
        if magic == "REDIS" and version >= 13:
            self.leads.add(KEY_META)

    def _types(self) -> dict[int, Skip]:
        types = dict(_TYPES_OF_OLD)
        if self.version >= 10:
            types.update(_TYPES_OF_10)
        if self.version >= 11:
            types.update(_TYPES_OF_11)
        if self.magic == "VALKEY":
            types.update(_TYPES_OF_VALKEY)
            return types
        if self.version >= 12:
            types.update(_TYPES_OF_REDIS_12)
        if self.version >= 13:
            types[26] = functools.partial(_skip_stream, version=4)
        if self.version >= 14:
            types[27] = functools.partial(_skip_stream, version=5)
            types[30] = skip_string
            types[32] = self._skip_template_array
        return types

    def _skip_template_array(self, buf: Buffer, pos: int) -> int:
        template, after = read_length(buf, pos)
        if template not in self.templates:
            raise Damage(pos, f"expected the id of a hash template of this file, found {template}")
        return _skip_strings(buf, after, self.templates[template])

    def refusal(self, kind: int, offset: int) -> Damage:
        """Why a byte that should be a type or an opcode is neither."""
        known = _REFUSED.get((self.magic, kind))
        what = f"{kind} ({known}, whose layout is not known here)" if known else f"{kind} (0x{kind:02x})"
        return Damage(offset, f"expected a type or an opcode of {self}, found {what}")

    def __str__(self) -> str:
        return f"{self.magic} RDB version {self.version}"


_VERSIONS = {"REDIS": range(5, 16), "VALKEY": range(80, 82)}


def read_header(buf: Buffer) -> Format:
    """Tell magic and version from the first 9 bytes: C(REDIS) and 4 digits, or C(VALKEY) and 3."""
    header = bytes(buf[:HEADER_BYTES])
    match = re.fullmatch(rb"(REDIS)(\d{4})|(VALKEY)(\d{3})", header)
    if not match:
        raise KeyferryError(f"Not an RDB file: it begins with {header!r}, not with REDIS or VALKEY and a version")
    magic = (match[1] or match[3]).decode()
    version = int(match[2] or match[4])
    if version not in _VERSIONS[magic]:
        first, last = _VERSIONS[magic][0], _VERSIONS[magic][-1]
        raise KeyferryError(
            f"RDB version {version} of {magic} is not known, only {first} to {last}: a newer one may hold records that"
            " would be passed wrongly. Use a newer release of this collection"
        )
    return Format(magic, version)


# -- the walk --------------------------------------------------------------------------------------------------------


class Walker:
    """Walks the records and opcodes of one buffer.

    The buffer may be a whole file or a window of it: a walk that runs out of bytes ends before the record that is
    not there whole (C(AT_SHORTAGE)).
    """

    def __init__(self, buf: Buffer, form: Format) -> None:
        self.buf = buf
        self.form = form
        self._patterns: dict[tuple[bool, int, int], t.Any] = {}
        self._pattern: t.Any = None
        self._pattern_expires = False
        self._pattern_kind = 0
        self._patience = self._failures = 0

    def error(self, problem: Damage) -> KeyferryError:
        """What the user is told of damage."""
        return KeyferryError(
            f"Damaged or unknown RDB at byte {problem.offset}: {problem.text}. Nothing was taken from it; fetch the"
            " file again, or check it with redis-check-rdb",
            offset=problem.offset,
        )

    def truncated(self, pos: int) -> KeyferryError:
        """What the user is told of a file that ends too early."""
        return self.error(Damage(pos, f"what begins here goes on beyond the end of the file ({len(self.buf)} bytes)"))

    def walk(self, pos: int, stop: int, tally: Tally) -> tuple[int, str]:
        """Pass records up to the first that begins at or after I(stop), which is not beyond the buffer's end.

        Gives back where that is and why it ended: C(AT_STOP), C(AT_OPCODE) (what stands there is no record) or
        C(AT_SHORTAGE) (the record there is not whole). Counts what it passed into I(tally). Raises Damage.
        """
        most = _STRIDE
        while True:
            pos, why = self._stride(pos, stop, tally, most)
            if why:
                return pos, why
            passed = self._runs(pos, stop, tally)
            most = _RUN if passed > pos else _STRIDE
            if passed == pos:
                self._learn(pos)
            pos = passed

    def _stride(self, pos: int, stop: int, tally: Tally, most: int) -> tuple[int, str]:
        """Pass one record after the other, I(most) of them: the loop that everything hangs on."""
        buf, skips = self.buf, self.form.skips
        first = begin = pos
        keys = expires = 0
        others: list[int] = []
        why = ""
        try:
            for _unused in range(most):
                if pos >= stop:
                    why = AT_STOP
                    break
                begin = pos
                kind = buf[pos]
                pos += 1
                if kind == EXPIRETIME_MS:
                    kind = buf[pos + 8]
                    pos += 9
                    expires += 1
                if kind > 127:
                    if kind == FREQ:
                        kind = buf[pos + 1]
                        pos += 2
                    elif kind == IDLE:
                        pos = read_length(buf, pos)[1] + 1
                        kind = buf[pos - 1]
                    if kind > 127:
                        if pos == begin + 1 and kind not in self.form.leads:
                            pos, why = begin, AT_OPCODE
                            break
                        expires -= buf[begin] == EXPIRETIME_MS
                        kind, pos, expire_ms, _idle, _freq = self._lead(begin)
                        expires += expire_ms is not None
                length = buf[pos]
                if length < 64:
                    pos += length + 1
                elif length < 128:
                    pos += 2 + ((length & 63) << 8 | buf[pos + 1])
                else:
                    pos = skip_string(buf, pos)
                if kind:
                    skip = skips[kind]
                    if skip is None:
                        raise self.form.refusal(kind, begin)
                    pos = skip(buf, pos)
                    others.append(kind)
                else:
                    length = buf[pos]
                    if length < 64:
                        pos += length + 1
                    elif length < 128:
                        pos += 2 + ((length & 63) << 8 | buf[pos + 1])
                    else:
                        pos = skip_string(buf, pos)
                keys += 1
            if pos > len(buf):
                raise IndexError
        except IndexError:
            # The record at `begin` is not whole: count again what comes before it.
            return self._stride(first, begin, tally, most)[0], AT_SHORTAGE
        tally.keys += keys
        tally.expires += expires
        tally.types.update(others)
        return pos, why

    def _lead(self, pos: int) -> tuple[int, int, int | None, int | None, int | None]:
        """Read what stands before a key: give back its type, the offset after that, expiry, idle time, frequency."""
        buf = self.buf
        expire_ms = idle = freq = None
        while True:
            begin, kind = pos, buf[pos]
            pos += 1
            if kind < _FIRST_OPCODE:
                return kind, pos, expire_ms, idle, freq
            if kind not in self.form.leads:
                raise Damage(begin, f"expected the type of a key after its expiry or idle time, found 0x{kind:02x}")
            if kind == EXPIRETIME_MS:
                expire_ms = _little_endian(buf, pos, 8)
                pos += 8
            elif kind == EXPIRETIME:
                expire_ms = 1000 * _little_endian(buf, pos, 4)
                pos += 4
            elif kind == IDLE:
                idle, pos = read_length(buf, pos)
            elif kind == FREQ:
                freq = buf[pos]
                pos += 1
            elif kind == SLOT_INFO:
                pos = _skip_lengths(buf, pos, 3)
            else:
                classes, pos = read_length(buf, pos)
                for _unused in range(classes):
                    pos = _skip_module_fields(buf, pos + 4)

    def read(self, pos: int, stop: int, most: int) -> tuple[list[tuple[t.Any, ...]], int, str]:
        """Read up to I(most) records: for those who carry keys and values on.

        Gives back the records, each a plain tuple with the fields of Record (which would take twice the time), the
        offset after them, and why it ended as walk() does, or "" after I(most). Values are not touched: cut them out
        of the buffer by their offsets. Metadata that modules attach to a key (Redis 8.6) is between start and key, and
        in none of the fields. The buffer must be bytes or mmap. Raises Damage.
        """
        buf, skips, size = self.buf, self.form.skips, len(self.buf)
        read_expiry = _EXPIRY.unpack_from
        records: list[tuple[t.Any, ...]] = []
        begin = pos
        try:
            for _unused in range(most):
                if pos >= stop:
                    return records, pos, AT_STOP
                begin = pos
                kind = buf[pos]
                pos += 1
                expire_ms = idle = freq = None
                if kind == EXPIRETIME_MS:
                    expire_ms = read_expiry(buf, pos)[0]
                    kind = buf[pos + 8]
                    pos += 9
                if kind > 127:
                    if pos == begin + 1 and kind not in self.form.leads:
                        return records, begin, AT_OPCODE
                    kind, pos, expire_ms, idle, freq = self._lead(begin)
                length = buf[pos]
                if length < 64:
                    value = pos + 1 + length
                    key = buf[pos + 1 : value]
                else:
                    key, value = read_string(buf, pos)
                if kind:
                    skip = skips[kind]
                    if skip is None:
                        raise self.form.refusal(kind, begin)
                    pos = skip(buf, value)
                else:
                    length = buf[value]
                    if length < 64:
                        pos = value + length + 1
                    elif length < 128:
                        pos = value + 2 + ((length & 63) << 8 | buf[value + 1])
                    else:
                        pos = skip_string(buf, value)
                if pos > size:
                    return records, begin, AT_SHORTAGE
                records.append((begin, expire_ms, kind, key, value, pos, idle, freq))
        except (IndexError, struct.error):
            return records, begin, AT_SHORTAGE
        return records, pos, AT_STOP if pos >= stop else ""

    # -- runs of alike records, by a regular expression ---------------------------------------------------------------
    #
    # Where most records are of one kind (the same opcodes before them, the same type, a value of one string), a
    # pattern that has one alternative for each length passes 128 of them in one call, at twice the loop's speed. An
    # alternative is told by the length byte alone, so that a match is the only possible reading of these bytes.

    def _runs(self, pos: int, stop: int, tally: Tally) -> int:
        if self._pattern is None:
            return pos
        match, begin, runs = self._pattern.match, pos, 0
        while found := match(self.buf, pos, stop):
            pos = found.end()
            runs += 1
        if pos > begin:
            self._patience = self._failures = 0
            tally.keys += runs * _RUN
            tally.expires += runs * _RUN * self._pattern_expires
            if self._pattern_kind:
                tally.types[self._pattern_kind] += runs * _RUN
        return pos

    def _learn(self, pos: int) -> None:
        """Look at the records from I(pos) on and choose the pattern for them; seldom, where that did not help."""
        self._patience -= 1
        if self._patience > 0:
            return
        self._failures = min(self._failures + 1, 10)
        self._patience = 1 << self._failures
        records = [Record(*fields) for fields in self.read(pos, len(self.buf), _SAMPLE)[0]]
        alike = Counter(self._shape(record) for record in records if self.form.skips[record.kind] is skip_string)
        most = alike.most_common(1)
        if not most or most[0][1] < 0.9 * len(records):
            self._pattern = None
            return
        shape = most[0][0]
        if shape not in self._patterns:
            self._patterns[shape] = self._run_pattern(shape, [r for r in records if self._shape(r) == shape])
        self._pattern = self._patterns[shape]
        self._pattern_expires, _idle_or_freq, self._pattern_kind = shape

    def _shape(self, record: Record) -> tuple[bool, int, int]:
        """Whether a record has an expiry in milliseconds, which of IDLE and FREQ, and its type."""
        opcode = IDLE if record.idle is not None else FREQ if record.freq is not None else 0
        return record.expire_ms is not None, opcode, record.kind

    def _run_pattern(self, shape: tuple[bool, int, int], sample: list[Record]) -> t.Any:
        expires, opcode, kind = shape
        leads = {0: b"", IDLE: _byte(IDLE) + _LENGTH, FREQ: _byte(FREQ) + b"."}
        lead = (_byte(EXPIRETIME_MS) + b"." * 8 if expires else b"") + leads[opcode] + _byte(kind)
        keys = (self._lead(record.start)[1] for record in sample)
        key = _string_pattern([self.buf[start : start + 4] for start in keys])
        value = _string_pattern([self.buf[record.value_start : record.value_start + 4] for record in sample])
        return re.compile(_ATOM + lead + key + value + b"){%d}" % _RUN, re.DOTALL)

    # -- opcodes -------------------------------------------------------------------------------------------------------

    def head(self) -> tuple[list[Item], int]:
        """Read what comes before the first database, and where that begins.

        To be called before any other walk over a file: hash templates are learned here alone, so that a walk from a
        wrong guess cannot learn false ones.
        """
        items = []
        for item in self.items(HEADER_BYTES, len(self.buf)):
            if item.kind in (SELECTDB, EOF, RECORDS):
                return items, item.start
            if item.kind == HASH_TEMPLATE and item.value:
                template, fields = item.value
                self.form.templates[template] = fields
            items.append(item)
        raise self.truncated(HEADER_BYTES)

    def items(self, pos: int, stop: int) -> t.Iterator[Item]:
        """Give the items from I(pos) on, up to the first that begins at or after I(stop), or to the EOF opcode.

        Raises KeyferryError for damage, and where the buffer ends within an item.
        """
        try:
            while pos < stop:
                tally = Tally()
                end, why = self.walk(pos, stop, tally)
                if end > pos:
                    yield Item(RECORDS, pos, end, tally)
                if why == AT_STOP:
                    return
                if why == AT_SHORTAGE:
                    raise self.truncated(end)
                item = self._opcode(end)
                if item.end > len(self.buf):
                    raise self.truncated(end)
                yield item
                if item.kind == EOF:
                    return
                pos = item.end
        except Damage as problem:
            raise self.error(problem) from None

    def _opcode(self, begin: int) -> Item:
        try:
            kind, pos = self.buf[begin], begin + 1
            end, value = self._opcode_fields(kind, pos)
        except IndexError:
            raise self.truncated(begin) from None
        return Item(kind, begin, end, value)

    def _opcode_fields(self, kind: int, pos: int) -> tuple[int, t.Any]:
        buf = self.buf
        if kind == SELECTDB:
            index, pos = read_length(buf, pos)
            return pos, index
        if kind == RESIZEDB:
            keys, pos = read_length(buf, pos)
            expires, pos = read_length(buf, pos)
            return pos, (keys, expires)
        if kind == AUX:
            name, pos = read_string(buf, pos)
            value, pos = read_string(buf, pos)
            return pos, (name, value)
        if kind == EOF:
            return pos, None
        if kind == FUNCTION2 and self.form.version >= 10:
            return skip_string(buf, pos), None
        if kind == MODULE_AUX:
            return _skip_module_fields(buf, read_length(buf, pos)[1]), None
        if kind == HASH_TEMPLATE and self.form.magic == "REDIS" and self.form.version >= 14:
            template, pos = read_length(buf, pos)
            fields, pos = read_length(buf, pos)
            return _skip_strings(buf, pos, fields), (template, fields)
        if kind == SLOT_IMPORT and self.form.magic == "VALKEY":
            ranges, pos = read_length(buf, skip_string(buf, pos))
            return _skip_lengths(buf, pos, 2 * ranges), None
        raise self.form.refusal(kind, pos - 1)

    # -- a beginning in mid-file ---------------------------------------------------------------------------------------

    def guess(self, pos: int, stop: int) -> int | None:
        """Find a record or opcode near the beginning of a range, without knowing where one is; None without one.

        From the first offset where some hundred records in a row make sense, those are passed: had that offset been
        within a value, its false records would most likely have led to the true ones by then. Still it is a guess. It
        is right if a walk that is known to be right lands on it.
        """
        window = Walker(memoryview(self.buf)[: pos + 2 * _GUESS_BYTES], self.form)
        tries = itertools.islice(window._plausible(pos, min(stop, pos + _GUESS_BYTES)), _GUESS_TRIES)
        ends = (window._sensible_end(candidate) for candidate in tries)
        return next((end for end in ends if end is not None), None)

    def _plausible(self, pos: int, stop: int) -> t.Iterator[int]:
        kinds = [kind for kind, skip in enumerate(self.form.skips) if skip]
        first_bytes = re.compile(b"[" + b"".join(map(_byte, [*kinds, *self.form.leads, SELECTDB])) + b"]")
        for match in first_bytes.finditer(self.buf, pos, stop):
            yield match.start()

    def _sensible_end(self, pos: int) -> int | None:
        """Where the records that seem to begin at I(pos) lead, or None if they are none."""
        passed = 0
        try:
            while passed < _GUESS_RECORDS:
                tally = Tally()
                pos, why = self._stride(pos, len(self.buf), tally, _GUESS_RECORDS - passed)
                passed += tally.keys
                if why == AT_OPCODE and self.buf[pos] in (SELECTDB, RESIZEDB):
                    pos = self._opcode(pos).end
                elif why:
                    return pos if passed >= _GUESS_LEAST else None
        except (Damage, KeyferryError):
            return None
        return pos


# A run of records matches in one way only, and need not be tried in another: Python can be told so since 3.11. Within
# it plain groups are faster.
_ATOM, _ONCE = (b"(?>", b"+") if sys.version_info >= (3, 11) else (b"(?:", b"")


def _byte(value: int) -> bytes:
    return b"\\x%02x" % value


def _any(count: int) -> bytes:
    return b"." * count if count < 5 else b".{%d}" % count + _ONCE


def _one_of(alternatives: t.Iterable[bytes]) -> bytes:
    return b"(?:" + b"|".join(alternatives) + b")"


_LENGTH = _one_of([rb"[\x00-\x3f]", rb"[\x40-\x7f].", rb"\x80...."])


def _string_pattern(heads: list[bytes]) -> bytes:
    """A pattern of strings: those of the forms and lengths seen in a sample first, then other short ones.

    I(heads) are the first 4 bytes of the sample's strings.
    """
    raw = _lengths_pattern([head for head in heads if head[0] < _LENGTH_32], _any)
    packed = _lengths_pattern([head[1:] for head in heads if head[0] == _LZF], lambda size: _LENGTH + _any(size))
    integers = [_byte(first) + _any(size) for first, size in _INT_BYTES.items()]
    return _one_of([*raw, *integers, _byte(_LZF) + _one_of(packed)])


def _lengths_pattern(heads: list[bytes], tail: t.Callable[[int], bytes]) -> list[bytes]:
    """Alternatives for lengths of one or two bytes, each followed by its tail; the most frequent first."""
    first_bytes = Counter(head[0] for head in heads)
    alternatives = {length: _byte(length) + tail(length) for length in range(0x40)}
    for first in [first for first, _count in first_bytes.most_common() if 0x40 <= first < 0x80][:4]:
        seen = Counter(head[1] for head in heads if head[0] == first)
        lows = sorted(range(0x100), key=lambda low: -seen[low])
        tails = (_byte(low) + tail((first & 0x3F) << 8 | low) for low in lows)
        alternatives[first] = _byte(first) + _one_of(tails)
    return [alternatives[first] for first in sorted(alternatives, key=lambda first: -first_bytes[first])]
