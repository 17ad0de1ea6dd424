# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checksum is that of Redis, in pieces as in one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import combine, crc64, crc64_of_few


def test_is_the_crc_of_redis() -> None:
    # The check value in redis, src/crc64.c.
    assert crc64(b"123456789") == 0xE9C6D914C4B8D9CA


@given(st.binary(max_size=200))
def test_bit_by_bit_is_the_same(data: bytes) -> None:
    assert crc64_of_few(data) == crc64(data)


@given(st.binary(), st.binary())
def test_goes_on_from_an_earlier_one(first: bytes, second: bytes) -> None:
    assert crc64(second, crc64(first)) == crc64(first + second)


@given(st.binary(), st.binary())
def test_combines_two_parts(first: bytes, second: bytes) -> None:
    assert combine(crc64(first), crc64(second), len(second)) == crc64(first + second)


@given(st.binary())
def test_of_data_and_its_own_crc_is_zero(data: bytes) -> None:
    assert crc64(data + crc64(data).to_bytes(8, "little")) == 0
