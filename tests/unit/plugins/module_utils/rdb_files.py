# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RDB files built by hand, part by part, for versions and records that no server at hand writes."""

from __future__ import annotations

from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import write_length as length

EOF = b"\xff"


def text(data: bytes) -> bytes:
    return length(len(data)) + data


def lzf(data: bytes) -> bytes:
    """A string in LZF's form, all of it literals."""
    packed = b"".join(bytes([len(part) - 1]) + part for part in (data[at : at + 32] for at in range(0, len(data), 32)))
    return b"\xc3" + length(len(packed)) + length(len(data)) + packed


def aux(name: bytes, value: bytes) -> bytes:
    return b"\xfa" + text(name) + text(value)


def select(db: int) -> bytes:
    return b"\xfe" + length(db)


def resize(keys: int, expires: int) -> bytes:
    return b"\xfb" + length(keys) + length(expires)


def expiry(ms: int) -> bytes:
    return b"\xfc" + ms.to_bytes(8, "little")


def record(kind: int, key: bytes, value: bytes, lead: bytes = b"") -> bytes:
    return lead + bytes([kind]) + text(key) + value


def string(key: bytes, value: bytes, lead: bytes = b"") -> bytes:
    return record(0, key, text(value), lead)


def sealed(*parts: bytes, magic: bytes = b"REDIS0010") -> bytes:
    """A whole file: header, the parts, EOF and the checksum."""
    body = magic + b"".join(parts) + EOF
    return body + crc64(body).to_bytes(8, "little")
