# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of a dump are put so that the server that gets them knows them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from ansible_collections.keyferry.redis.plugins.module_utils.load_commands import Rewriter, gathered
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import read_string
from ansible_collections.keyferry.redis.plugins.module_utils.resp import read_command

PAYLOAD = b"\x00\x01v" + b"\x0c\x00" + crc64(b"\x00\x01v\x0c\x00").to_bytes(8, "little")


def sent(rewriter: Rewriter, *arguments: bytes) -> list[bytes]:
    """The arguments that the server gets."""
    data = b"".join(rewriter.pieces([memoryview(each) for each in arguments]))
    found = read_command(data, 0, len(data))
    assert found.end == len(data)
    return [data[first:last] for first, last in found.arguments]


RESTORE = (b"RESTORE", b"k", b"1700000000123", PAYLOAD, b"REPLACE", b"ABSTTL", b"IDLETIME", b"7")


@pytest.mark.parametrize("version, changes_nothing", [((6, 2, 5), False), ((7, 0), True), ((7, 2, 4), True)])
def test_a_new_server_takes_all_as_it_is(version: tuple[int, ...], changes_nothing: bool) -> None:
    assert Rewriter(version, None, True).changes_nothing == changes_nothing
    assert not Rewriter(version, 11, True).changes_nothing
    assert not Rewriter(version, None, False).changes_nothing


def test_restore_is_put_otherwise_where_there_is_no_absttl() -> None:
    old = Rewriter((4, 0, 14), None, True)
    verb, script, *rest = sent(old, *RESTORE)
    assert verb == b"EVAL" and b"'RESTORE'" in script and b"'PEXPIREAT'" in script
    assert rest == [b"1", b"k", PAYLOAD, b"1700000000123", b"REPLACE"]
    assert sent(old._replace(replace=False), *RESTORE)[2:] == [b"1", b"k", PAYLOAD, b"1700000000123"]
    for_ever = (b"RESTORE", b"k", b"0", PAYLOAD, b"REPLACE", b"ABSTTL", b"FREQ", b"3")
    assert sent(old, *for_ever) == [b"RESTORE", b"k", b"0", PAYLOAD, b"REPLACE"]
    relative = (b"restore", b"k", b"500", PAYLOAD)
    assert sent(old, *relative) == [b"RESTORE", *relative[1:]]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 16_383, 16_384])
def test_a_string_that_must_not_replace_is_restored(size: int) -> None:
    """SET has no error for a key that is there."""
    value = b"v" * size
    keeping = Rewriter((7, 0), None, False)
    verb, key, ttl, payload, *options = sent(keeping, b"SET", b"k", value, b"PXAT", b"1700000000123")
    assert (verb, key, ttl, options) == (b"RESTORE", b"k", b"1700000000123", [b"ABSTTL"])
    assert payload[0] == 0 and read_string(payload, 1) == (value, len(payload) - 10)
    assert (payload[-10:-8], int.from_bytes(payload[-8:], "little")) == (b"\x06\x00", crc64(payload[:-8]))
    assert sent(keeping, b"SET", b"k", value) == [b"RESTORE", b"k", b"0", payload, b"ABSTTL"]
    assert sent(keeping._replace(version=(4, 0)), b"SET", b"k", value) == [b"RESTORE", b"k", b"0", payload]
    assert sent(keeping._replace(replace=True), b"SET", b"k", value) == [b"SET", b"k", value]


def test_restore_stays_as_it_is_where_there_is_absttl() -> None:
    assert sent(Rewriter((5, 0), None, True), *RESTORE) == [*RESTORE]
    kept = [b"RESTORE", b"k", b"1700000000123", PAYLOAD, b"ABSTTL", b"IDLETIME", b"7"]
    assert sent(Rewriter((7, 0), None, False), *RESTORE) == kept


def test_a_stamp_and_its_checksum_are_rewritten() -> None:
    stamped = b"\x00\x01v\x0a\x00" + crc64(b"\x00\x01v\x0a\x00").to_bytes(8, "little")
    rewriter = Rewriter((7, 0), 10, True)
    assert sent(rewriter, *RESTORE)[3] == stamped
    assert sent(rewriter, b"FUNCTION", b"RESTORE", PAYLOAD, b"REPLACE") == [
        *(b"FUNCTION", b"RESTORE", stamped, b"REPLACE"),
    ]
    assert sent(rewriter._replace(replace=False), b"FUNCTION", b"RESTORE", PAYLOAD, b"REPLACE")[3:] == []
    assert sent(rewriter, b"FUNCTION", b"LOAD", b"REPLACE", b"code") == [b"FUNCTION", b"LOAD", b"REPLACE", b"code"]


@pytest.mark.parametrize(
    "since, command, before",
    [
        ((6, 2), b"SET k v PXAT 17", None),
        ((6, 2), b"SET k v PX 17", b"SET k v PX 17"),
        ((6, 2), b"SET k v", b"SET k v"),
        ((6, 2), b"XGROUP CREATECONSUMER k g c", b"XREADGROUP GROUP g c COUNT 1 STREAMS k 0"),
        ((7, 0), b"XGROUP CREATE k g 5-1 ENTRIESREAD 3", b"XGROUP CREATE k g 5-1"),
        ((7, 0), b"XGROUP CREATE k g 5-1 MKSTREAM ENTRIESREAD 3", b"XGROUP CREATE k g 5-1 MKSTREAM"),
        ((7, 0), b"XGROUP CREATE k g 5-1", b"XGROUP CREATE k g 5-1"),
        ((7, 0), b"XSETID k 5-1 ENTRIESADDED 3 MAXDELETEDID 4-1", b"XSETID k 5-1"),
        ((7, 0), b"HSET k f v", b"HSET k f v"),
    ],
)
def test_what_came_later_is_put_in_older_words(since: tuple[int, int], command: bytes, before: bytes | None) -> None:
    arguments = command.split()
    assert sent(Rewriter(since, None, True), *arguments) == arguments
    older = sent(Rewriter((since[0], since[1] - 1) if since[1] else (since[0] - 1, 9), None, True), *arguments)
    if before is None:
        assert older[0] == b"EVAL" and older[2:] == [b"1", b"k", b"v", b"17"]
    else:
        assert older == before.split()


@given(st.lists(st.integers(0, 1 << 17).map(lambda size: bytes([size % 251]) * size), max_size=12))
def test_gathered_pieces_are_the_same_bytes(pieces: list[bytes]) -> None:
    found = list(gathered(pieces))
    assert b"".join(found) == b"".join(pieces)
    assert all(len(piece) < (256 + 64) << 10 for piece in found)
    # What is large is not copied.
    assert all(any(piece is other for other in found) for piece in pieces if len(piece) >= 64 << 10)
