# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a file is a whole RDB, and which, without reading its keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import CRC_BYTES, HEADER_BYTES, read_magic
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_types import EOF

# Ended by a CRC-64 since RDB version 5; all zero where the server has rdbchecksum off (redis, src/rdb.c). The opcode of
# the end goes ahead of it.
_FIRST_VERSION_WITH_CRC = 5
_END_WITHOUT_CRC = bytes([EOF]) + bytes(CRC_BYTES)
END_BYTES = len(_END_WITHOUT_CRC)
_READ_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Content:
    """What a file or object holds, as far as it can be told without reading its keys.

    C(crc64) is 16 hexadecimal digits: the CRC-64 that the RDB itself ends with where that was verified, else that of
    the whole file. C(rdb_checksum) is C(verified), C(disabled) (the server wrote none), or None for another file.
    """

    size: int
    crc64: str
    rdb_version: int | None
    rdb_checksum: str | None


def rdb_version(head: bytes) -> int | None:
    """The RDB version that a file's first nine bytes name (REDIS0012 is 12, VALKEY080 is 80); None for another file."""
    found = read_magic(head)
    return found[1] if found else None


def judge(size: int, head: bytes, tail: bytes, whole_crc: int, name: str) -> Content:
    """Say what a file of these first and last nine bytes and this CRC-64 of all its bytes holds.

    The CRC-64 of data followed by its own CRC-64 (low byte first, as RDB has it) is zero, so that whole_crc alone tells
    whether an RDB is intact. Raises KeyferryError when it is not.
    """
    version = rdb_version(head)
    if version is None or version < _FIRST_VERSION_WITH_CRC:
        return Content(size, f"{whole_crc:016x}", version, None)
    trailer = int.from_bytes(tail[-CRC_BYTES:], "little")
    if tail == _END_WITHOUT_CRC:
        return Content(size, f"{whole_crc:016x}", version, "disabled")
    if trailer == 0 or whole_crc != 0:
        raise KeyferryError(
            f"{name} is not a whole RDB file (version {version}, {size} bytes): its last 8 bytes, {trailer:016x}, are"
            f" not the CRC-64 of the {max(size - CRC_BYTES, 0)} bytes before them. It was cut short or altered;"
            " export or copy it again."
        )
    return Content(size, f"{trailer:016x}", version, "verified")


def examine(path: Path) -> Content:
    """Read a file once and say what it holds. Raises KeyferryError for an RDB that is not intact."""
    crc, size, head, tail = 0, 0, b"", b""
    try:
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                crc = crc64(chunk, crc)
                size += len(chunk)
                head = head or chunk[:HEADER_BYTES]
                tail = (tail + chunk[-END_BYTES:])[-END_BYTES:]
    except OSError as error:
        raise KeyferryError(f"Could not read {path}: {error.strerror}") from error
    return judge(size, head, tail, crc, str(path))
