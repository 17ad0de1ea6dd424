# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Payloads that today's servers no longer write, or not these here; the others are in the integration tests."""

from __future__ import annotations

import struct

import pytest
from unit.plugins.module_utils.rdb_files import length, text

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.commands import commands
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError


def made(kind: int, body: bytes, ttl: bytes = b"-1", version: int = 10) -> list[list[bytes]]:
    payload = bytes([kind]) + body + version.to_bytes(2, "little") + bytes(8)
    result = []
    for data in commands(b"k", ttl, payload):
        found = resp.read_command(data, 0, len(data))
        assert found.end == len(data)
        result.append([data[first:last] for first, last in found.arguments])
    return result


def packed(*elements: bytes) -> bytes:
    """A listpack whose elements are all short strings."""
    body = b"".join(bytes([0x80 | len(part)]) + part + bytes([len(part) + 1]) for part in elements)
    return struct.pack("<IH", len(body) + 7, len(elements)) + body + b"\xff"


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        (1, length(2) + text(b"a") + b"\xc0\xff", [b"RPUSH", b"k", b"a", b"-1"]),
        (2, length(1) + text(b"m"), [b"SADD", b"k", b"m"]),
        (3, length(2) + text(b"m") + b"\x031.5" + text(b"n") + b"\xff", [b"ZADD", b"k", b"1.5", b"m", b"-inf", b"n"]),
        (5, length(1) + text(b"m") + struct.pack("<d", 0.1), [b"ZADD", b"k", b"0.1", b"m"]),
        (4, length(1) + text(b"f") + text(b"v"), [b"HSET", b"k", b"f", b"v"]),
    ],
)
def test_plain_containers_become_commands(kind: int, body: bytes, expected: list[bytes]) -> None:
    assert made(kind, body) == [[b"DEL", b"k"], expected]
    assert made(kind, body, b"99")[-1] == [b"PEXPIREAT", b"k", b"99"]


def test_a_string_keeps_its_ttl_in_one_command() -> None:
    assert made(0, text(b"v"), b"1700000000000") == [[b"SET", b"k", b"v", b"PXAT", b"1700000000000"]]


def test_no_command_is_too_long() -> None:
    found = made(4, length(5000) + b"".join(text(b"f%d" % at) + text(b"v") for at in range(5000)))
    assert [len(command) for command in found] == [2, 3998, 3998, 2 + 10000 - 2 * 3996]
    assert [part for command in found[1:] for part in command[2::2]] == [b"f%d" % at for at in range(5000)]


EXPIRING = [
    [b"DEL", b"k"],
    [b"HSET", b"k", b"a", b"1", b"b", b"2", b"c", b"3"],
    [b"HPEXPIREAT", b"k", b"1700000000000", b"FIELDS", b"2", b"a", b"c"],
]


def test_fields_that_expire_are_read_as_valkey_9_has_them() -> None:
    soon, never = struct.pack("<q", 1700000000000), struct.pack("<q", -1)
    fields = [text(b"a") + text(b"1") + soon, text(b"b") + text(b"2") + never, text(b"c") + text(b"3") + soon]
    assert made(22, length(3) + b"".join(fields), version=80) == EXPIRING


def test_fields_that_expire_are_read_as_redis_7_4_has_them() -> None:
    soonest = struct.pack("<Q", 1700000000000)
    fields = [
        length(1) + text(b"a") + text(b"1"),
        length(0) + text(b"b") + text(b"2"),
        length(1) + text(b"c") + text(b"3"),
    ]
    assert made(24, soonest + length(3) + b"".join(fields), version=12) == EXPIRING
    parts = (b"a", b"1", b"1700000000000", b"c", b"3", b"1700000000000", b"b", b"2", b"0")
    names = [b"HSET", b"k", b"a", b"1", b"c", b"3", b"b", b"2"]
    assert made(25, soonest + text(packed(*parts)), version=12) == [EXPIRING[0], names, EXPIRING[2]]


@pytest.mark.parametrize(("kind", "said"), [(7, "of a module"), (22, "of type 22"), (99, "of type 99")])
def test_what_is_no_command_is_refused(kind: int, said: str) -> None:
    with pytest.raises(KeyferryError, match=f"{said}.*only format=restore carries it"):
        made(kind, b"", version=12)


@pytest.mark.parametrize("kind", [16, 10])
def test_a_packed_value_that_ends_early_is_refused(kind: int) -> None:
    """0xff where an element should begin ends a listpack, and a ziplist too."""
    whole = packed(b"a", b"b") if kind == 16 else struct.pack("<IIH", 17, 13, 2) + b"\x00\x01a\x03\x01b\xff"
    assert made(kind, text(whole))[1][2:] == [b"a", b"b"]
    cut = whole.replace(b"\x81b" if kind == 16 else b"\x03\x01b", b"\xff\x01b")
    with pytest.raises(KeyferryError, match="has an end at byte"):
        made(kind, text(cut))
