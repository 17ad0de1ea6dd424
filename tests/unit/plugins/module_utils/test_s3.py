# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils import s3
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
    assert s3.rdb_version(head) == version


def test_an_intact_rdb_is_verified_and_known_by_its_own_crc(tmp_path: Path) -> None:
    content = s3.examine(write(tmp_path / "dump.rdb", rdb()))
    assert content == s3.Content(len(BODY) + 8, f"{crc64(BODY):016x}", 11, "verified")


def test_an_rdb_without_a_checksum_is_accepted_and_said_so(tmp_path: Path) -> None:
    data = BODY + bytes(8)
    content = s3.examine(write(tmp_path / "dump.rdb", data))
    assert content == s3.Content(len(data), f"{crc64(data):016x}", 11, "disabled")


def test_zeros_at_the_cut_are_not_taken_for_a_checksum_that_is_disabled(tmp_path: Path) -> None:
    with pytest.raises(KeyferryError, match="not a whole RDB"):
        s3.examine(write(tmp_path / "dump.rdb", b"REDIS0011" + bytes(30)))


def test_a_file_that_is_no_rdb_is_known_by_the_crc_of_all_of_it(tmp_path: Path) -> None:
    content = s3.examine(write(tmp_path / "dump.resp", b"*2\r\n"))
    assert content == s3.Content(4, f"{crc64(b'*2' + bytes([13, 10])):016x}", None, None)


def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    assert s3.examine(write(tmp_path / "empty", b"")) == s3.Content(0, "0" * 16, None, None)


@pytest.mark.parametrize("length", range(9, len(BODY) + 8))
def test_an_rdb_that_is_cut_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(KeyferryError, match="not a whole RDB"):
        s3.examine(write(tmp_path / "dump.rdb", rdb()[:length]))


@given(st.integers(9, len(BODY) + 7), st.integers(1, 255))
def test_an_rdb_with_one_altered_byte_is_refused(position: int, difference: int) -> None:
    data = bytearray(rdb())
    data[position] ^= difference
    with pytest.raises(KeyferryError, match="not a whole RDB"):
        s3.judge(len(data), bytes(data[:9]), bytes(data[-9:]), crc64(data), "it")


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyferryError, match="No such file"):
        s3.examine(tmp_path / "nothing")


@given(data=st.binary(min_size=1, max_size=400), part=st.integers(1, 60), chunk=st.integers(1, 60), seed=st.integers())
def test_parts_in_any_order_give_the_crc_of_the_whole(data: bytes, part: int, chunk: int, seed: int) -> None:
    file = io.BytesIO()
    target = s3.ChecksummedFile(file, part)
    starts = list(range(0, len(data), part))
    order = random.Random(seed)
    order.shuffle(starts)
    for start in starts:
        # A part that broke off is tried again from its start, as the transfer manager does.
        for end in (min(start + order.randint(0, part), len(data)), min(start + part, len(data))):
            for offset in range(start, end, chunk):
                target.seek(offset)
                target.write(data[offset : min(offset + chunk, end)])
    assert (file.getvalue(), target.size, target.crc64()) == (data, len(data), crc64(data))


def test_bytes_that_overtake_others_are_an_error() -> None:
    target = s3.ChecksummedFile(io.BytesIO(), 100)
    target.write(b"0123456789")
    target.seek(20)
    with pytest.raises(KeyferryError, match="Byte 20"):
        target.write(b"x")


def test_room_that_is_not_there_is_told_with_mount_need_and_free(tmp_path: Path) -> None:
    mount = tmp_path
    while not os.path.ismount(mount):
        mount = mount.parent
    with pytest.raises(
        KeyferryError, match=rf"1000000000000000000 bytes are needed\. \d+ bytes are free.* at {mount}\."
    ):
        s3.require_space(tmp_path / "dump.rdb.part", 10**18)
    s3.require_space(tmp_path / "dump.rdb.part", 1)
