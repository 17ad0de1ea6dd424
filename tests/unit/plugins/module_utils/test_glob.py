# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A pattern matches what it matches in Redis."""

from __future__ import annotations

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils.glob import matcher


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (b"*", [b"", b"a", b"\n\xff\x00"], []),
        (b"", [b""], [b"a"]),
        (b"**", [b"a"], [b""]),
        (b"a*", [b"a", b"ab\n"], [b"", b"ba"]),
        (b"h?llo", [b"hello", b"h\nllo"], [b"hllo", b"heello"]),
        (b"h[ae]llo", [b"hallo", b"hello"], [b"hillo"]),
        (b"h[^e]llo", [b"hallo"], [b"hello", b"hllo"]),
        (b"h[a-c]llo", [b"hbllo"], [b"hdllo"]),
        (b"h[c-a]llo", [b"hbllo"], [b"hdllo"]),
        (b"h\\*llo", [b"h*llo"], [b"hello"]),
        (b"[\\]\\-]", [b"]", b"-"], [b"\\"]),
        (b"[]", [], [b"", b"]", b"a"]),
        (b"[^]", [b"]", b"a"], [b""]),
        (b"[ab", [b"a", b"b"], [b"[ab", b"c"]),
        (b"a\\", [b"a\\"], [b"a"]),
        (b"a.b(c|d)$", [b"a.b(c|d)$"], [b"axb(c|d)$"]),
        (b"*:1:*", [b"x:1:y", b":1:"], [b"x:2:y"]),
    ],
)
def test_it_matches_as_redis_does(pattern: bytes, matching: list[bytes], others: list[bytes]) -> None:
    matches = matcher(pattern)
    assert [key for key in matching if not matches(key)] == []
    assert [key for key in others if matches(key)] == []


def test_many_stars_take_no_time() -> None:
    """Tried in every way, this would not end."""
    assert not matcher(b"a*" * 30 + b"b")(b"a" * 20_000)
