# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A comparison samples enough keys, takes values for what they mean, and counts all differences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils.compare import sample_size
from ansible_collections.keyferry.redis.plugins.module_utils.compare_batch import Differences
from ansible_collections.keyferry.redis.plugins.module_utils.compare_values import normal, whole_values
from ansible_collections.keyferry.redis.plugins.module_utils.pair import Each, packed


@pytest.mark.parametrize(("confidence", "damage", "keys"), [(0.99, 0.001, 4603), (0.5, 0.5, 1), (0.999, 0.0001, 69075)])
def test_the_sample_is_large_enough(confidence: float, damage: float, keys: int) -> None:
    assert sample_size(confidence, damage) == keys
    assert 1 - (1 - damage) ** keys >= confidence


def test_what_has_no_order_is_equal_in_any() -> None:
    assert normal("hash", [b"a", b"1", b"b", b"2"]) == normal("hash", [b"b", b"2", b"a", b"1"])
    assert normal("set", [b"a", b"b"]) == normal("set", [b"b", b"a"])
    assert normal("list", [b"a", b"b"]) != normal("list", [b"b", b"a"])


def test_scores_are_numbers() -> None:
    written = normal("zset", [b"a", b"0.10000000000000001", b"b", b"inf"])
    assert written == normal("zset", [b"a", b"0.1", b"b", b"inf"])
    assert written != normal("zset", [b"a", b"0.2", b"b", b"inf"])


def test_a_whole_zset_is_asked_with_its_scores() -> None:
    assert whole_values("zset", [b"key"]) == ("ZRANGE", [b"key"], (0, -1, "WITHSCORES"))


@given(
    st.lists(st.one_of(st.binary(max_size=30), st.just(b"$0\r\n\r\n"))),
    st.lists(st.one_of(st.integers(), st.binary(max_size=3), st.text(max_size=3))).map(tuple),
)
def test_packs_one_command_for_many_keys_as_many_commands(
    keys: list[bytes], rest: tuple[int | bytes | str, ...]
) -> None:
    assert packed([Each("NAME", keys, rest)]) == packed([("NAME", key, *rest) for key in keys])


def test_keeps_few_examples_and_counts_all() -> None:
    differences = Differences()
    for part in range(3):
        found = Differences()
        for number in range(6):
            found.note("missing", b"%d\0%d" % (part, number))
        differences.add(found)
    result = differences.result()
    assert result["missing"] == 18
    assert not result["equal"]
    assert len(result["examples"]["missing"]) == 10
    assert result["examples"]["missing"][0] == r"'0\x000'"
