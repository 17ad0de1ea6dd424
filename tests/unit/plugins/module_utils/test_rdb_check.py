# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An RDB file is known by its checksum, and refused where it is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils import rdb_check
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

BODY = b"REDIS0011\xfa\x09redis-ver\x057.0.15\xfe\x01\xff"


def rdb(body: bytes = BODY) -> bytes:
    return body + crc64(body).to_bytes(8, "little")


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("head", "version"),
    [
        (b"REDIS0006", 6),
        (b"REDIS0012", 12),
        (b"VALKEY080", 80),
        (b"VALKEY081", 81),
        (b"REDIS", None),
        (b"*2\r\n$", None),
    ],
)
def test_reads_the_version_that_an_rdb_names(head: bytes, version: int | None) -> None:
    assert rdb_check.rdb_version(head) == version


def test_an_intact_rdb_is_verified_and_known_by_its_own_crc(tmp_path: Path) -> None:
    content = rdb_check.examine(write(tmp_path / "dump.rdb", rdb()))
    assert content == rdb_check.Content(len(BODY) + 8, f"{crc64(BODY):016x}", 11, "verified")


def test_an_rdb_without_a_checksum_is_accepted_and_said_so(tmp_path: Path) -> None:
    data = BODY + bytes(8)
    content = rdb_check.examine(write(tmp_path / "dump.rdb", data))
    assert content == rdb_check.Content(len(data), f"{crc64(data):016x}", 11, "disabled")


def test_zeros_at_the_cut_are_not_taken_for_a_checksum_that_is_disabled(tmp_path: Path) -> None:
    with pytest.raises(KeyferryError, match="not a whole RDB"):
        rdb_check.examine(write(tmp_path / "dump.rdb", b"REDIS0011" + bytes(30)))


def test_a_file_that_is_no_rdb_is_known_by_the_crc_of_all_of_it(tmp_path: Path) -> None:
    content = rdb_check.examine(write(tmp_path / "dump.resp", b"*2\r\n"))
    assert content == rdb_check.Content(4, f"{crc64(b'*2' + bytes([13, 10])):016x}", None, None)


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    assert rdb_check.examine(write(tmp_path / "empty", b"")) == rdb_check.Content(0, "0" * 16, None, None)


@pytest.mark.parametrize("length", range(9, len(BODY) + 8))
def test_an_rdb_that_is_cut_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(KeyferryError, match="not a whole RDB"):
        rdb_check.examine(write(tmp_path / "dump.rdb", rdb()[:length]))


@given(st.integers(9, len(BODY) + 7), st.integers(1, 255))
def test_an_rdb_with_one_altered_byte_is_refused(position: int, difference: int) -> None:
    data = bytearray(rdb())
    data[position] ^= difference
    with pytest.raises(KeyferryError, match="not a whole RDB"):
        rdb_check.judge(len(data), bytes(data[:9]), bytes(data[-9:]), crc64(data), "it")


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyferryError, match="No such file"):
        rdb_check.examine(tmp_path / "nothing")
