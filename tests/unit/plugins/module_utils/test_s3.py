# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of an object arrive whole, and where there is no room for them it is told."""

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
