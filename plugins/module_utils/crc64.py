# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""CRC-64 as Redis computes it: Jones polynomial, reflected, no final xor (redis, src/crc64.c)."""

from __future__ import annotations

import traceback
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

try:
    import anycrc
except ImportError:
    ANYCRC_IMPORT_ERROR: str | None = traceback.format_exc()
    _MODEL = None
else:
    ANYCRC_IMPORT_ERROR = None
    _MODEL = anycrc.Model("CRC64-REDIS")

# 0xad93d23594c935a9, the bits in reverse.
_REFLECTED_POLYNOMIAL = 0x95AC9329AC4BC9B5


def is_there() -> bool:
    """Tell whether the library is there that computes it."""
    return _MODEL is not None


def crc64(data: bytes | bytearray | memoryview, crc: int = 0) -> int:
    """Give back the CRC-64 of I(data), or of what C(crc) was computed over followed by I(data).

    Raises KeyferryError where anycrc is missing.
    """
    return _model().calc(data, crc)


def calculator() -> t.Callable[[bytes], int]:
    """Give back what computes the CRC-64 of bytes, with nothing around it: for millions of small ones."""
    return _model().calc


def combine(first: int, second: int, second_bytes: int) -> int:
    """Give back the CRC-64 of two joined parts from their own ones and the length of the second in bytes."""
    return _model().combine(first, second, second_bytes)


def crc64_of_few(data: bytes) -> int:
    """Give back the CRC-64 of a few bytes, bit by bit, where no library is wanted for it."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _bit in range(8):
            crc = (crc >> 1) ^ (_REFLECTED_POLYNOMIAL if crc & 1 else 0)
    return crc


def _model():
    if _MODEL is None:
        raise KeyferryError(
            "The Python library anycrc is missing, which checksums RDB files: install it for the Python that runs"
            " this module (pip install anycrc)",
            exception=ANYCRC_IMPORT_ERROR,
        )
    return _MODEL
