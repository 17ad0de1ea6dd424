# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Lengths and strings of an RDB: read, passed, written.

Pure, as all of the RDB is: works on any buffer of bytes (bytes, memoryview, mmap), reads no file and knows nothing of
Ansible.

Layout of the file (redis, src/rdb.c, rdbSaveRio): magic and version in 9 bytes, AUX fields, MODULE_AUX, functions,
then for each non-empty database SELECTDB, RESIZEDB and its records, then EOF and the CRC-64 of all bytes before it.
A record is: opcodes that belong to the key (expiry, idle time, frequency), the type byte, the key, the value.
"""

from __future__ import annotations

import re
import typing as t

Buffer = t.Any  # bytes, memoryview or mmap: indexing gives an int, slicing gives bytes or a view

HEADER_BYTES = 9
CRC_BYTES = 8
# What a DUMP payload has behind the value: the RDB version (2 bytes) and a CRC-64.
FOOTER_BYTES = 2 + CRC_BYTES

# Length bytes: two bits say which form, 0x80 and 0x81 are followed by 4 and 8 bytes, big-endian; 0xC0... are encoded
# strings: integers of 1, 2 and 4 bytes, and LZF with its two lengths.
LENGTH_32 = 0x80
_LENGTH_64 = 0x81
INT_BYTES = {0xC0: 1, 0xC1: 2, 0xC2: 4}
LZF = 0xC3

_MAGIC = re.compile(rb"(REDIS)(\d{4})|(VALKEY)(\d{3})")


class Damage(Exception):
    """What stands at a byte offset of the buffer is not what the format asks for there."""

    def __init__(self, offset: int, text: str) -> None:
        super().__init__(offset, text)
        self.offset = offset
        self.text = text


def read_magic(buf: Buffer) -> tuple[str, int] | None:
    """Tell magic and version from the first 9 bytes: C(REDIS) and 4 digits, or C(VALKEY) and 3; None for no RDB."""
    match = _MAGIC.match(bytes(buf[:HEADER_BYTES]))
    return ((match[1] or match[3]).decode(), int(match[2] or match[4])) if match else None


def read_length(buf: Buffer, pos: int) -> tuple[int, int]:
    """Give back a length and the offset after it."""
    first = buf[pos]
    if first < 0x40:
        return first, pos + 1
    if first < 0x80:
        return (first & 0x3F) << 8 | buf[pos + 1], pos + 2
    if first == LENGTH_32:
        return _big_endian(buf, pos + 1, 4), pos + 5
    if first == _LENGTH_64:
        return _big_endian(buf, pos + 1, 8), pos + 9
    raise Damage(pos, f"expected a length, found the byte 0x{first:02x}")


def _big_endian(buf: Buffer, pos: int, size: int) -> int:
    return int.from_bytes(_take(buf, pos, size), "big")


def little_endian(buf: Buffer, pos: int, size: int) -> int:
    """Give back a number of I(size) bytes."""
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
    if first == LZF:
        compressed, pos = read_length(buf, pos + 1)
        return read_length(buf, pos)[1] + compressed
    if first in INT_BYTES:
        return pos + 1 + INT_BYTES[first]
    if first > 0xC3:
        raise Damage(pos, f"expected a string, found the byte 0x{first:02x}, an unknown encoding")
    length, pos = read_length(buf, pos)
    return pos + length


def read_string(buf: Buffer, pos: int) -> tuple[bytes, int]:
    """Give back a string, decoded, and the offset after it."""
    first = buf[pos]
    if first in INT_BYTES:
        size = INT_BYTES[first]
        return b"%d" % int.from_bytes(_take(buf, pos + 1, size), "little", signed=True), pos + 1 + size
    if first == LZF:
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
        return bytes([LENGTH_32]) + length.to_bytes(4, "big")
    return bytes([_LENGTH_64]) + length.to_bytes(8, "big")
