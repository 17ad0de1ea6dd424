# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The option match with an RDB file: the same keys as the server itself finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dumps import dump, keys_of, many
from support.modules import run_module

from ansible_collections.keyferry.redis.plugins.module_utils.glob import matcher
from lab.nodes import RedisServer

# Few letters, so that patterns meet keys; all that a pattern has a meaning for, and bytes that are no text.
LETTERS = st.lists(st.sampled_from([bytes([each]) for each in b"abc]^-\\*?[\x00\n\xfe\xff"]), max_size=6).map(b"".join)
# A range with one end below 0x80 and one above it depends on the server's CPU.
PATTERNS = LETTERS.filter(
    lambda pattern: (
        not any(
            pattern[at] == 0x2D and (pattern[at - 1] < 0x80) != (pattern[at + 1] < 0x80)
            for at in range(1, len(pattern) - 1)
        )
    )
)


@pytest.mark.parametrize("command", ["KEYS", "SCAN"])
def test_a_pattern_means_what_it_means_to_the_server(redis_server: RedisServer, command: str) -> None:
    @settings(
        max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
    )
    @given(keys=st.sets(LETTERS, max_size=12), pattern=PATTERNS)
    def agree(keys: set[bytes], pattern: bytes) -> None:
        client.flushdb()
        if keys:
            client.mset(dict.fromkeys(keys, 1))
        found = client.keys(pattern) if command == "KEYS" else client.scan_iter(match=pattern, count=100)
        assert {key for key in keys if matcher(pattern)(key)} == set(found)

    with redis_server.client() as client:
        agree()


@pytest.mark.parametrize("form", ["restore", "commands"])
def test_only_what_matches_is_taken_from_a_file(redis_server: RedisServer, tmp_path: Path, form: str) -> None:
    many(redis_server, 500)
    with redis_server.client() as client:
        client.save()
    options = {"db": 1, "match": "key:[1-3]?", "format": form}
    wanted = {b"key:%d" % at for at in range(10, 40)}
    checked = run_module("resp_dump", rdb=str(redis_server.rdb), dest=str(tmp_path / "d"), **options, _check=True)
    assert (checked["keys"], checked["changed"]) == (30, True)
    dumped = run_module("resp_dump", rdb=str(redis_server.rdb), dest=str(tmp_path / "d"), **options)
    assert (dumped["keys"], dumped["commands"], dumped["types"]) == (30, 30, {"string": 30})
    assert set(keys_of(tmp_path / "d")) == wanted
    assert set(keys_of_server(redis_server, tmp_path / "e", options)) == wanted


def keys_of_server(server: RedisServer, path: Path, options: dict[str, object]) -> list[bytes]:
    dump(server, path, **options)
    return keys_of(path)
