# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A promotion flushes and swaps what it must, and ends the same wherever it was stopped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import Keyspace
from ansible_collections.keyferry.redis.plugins.module_utils.promote import Plan, plan
from ansible_collections.keyferry.redis.plugins.module_utils.server import Database


def held(keys: dict[int, int], service_keys: int = 0) -> Keyspace:
    return Keyspace({db: Database(count, 0) for db, count in keys.items() if count}, service_keys)


@pytest.mark.parametrize(
    ("keys", "db", "target_db", "expected"),
    [
        ({0: 5, 1: 30, 2: 7}, 1, 0, Plan([0, 2], True, 30)),
        ({1: 30}, 1, 0, Plan([], True, 30)),
        ({0: 30}, 1, 0, Plan([], False, 30)),
        ({1: 30, 2: 40}, 1, 0, Plan([2], True, 30)),
        ({0: 30, 2: 40}, 0, 0, Plan([2], False, 30)),
        ({0: 30}, 0, 0, Plan([], False, 30)),
        ({1: 30, 3: 2}, 1, 3, Plan([3], True, 30)),
    ],
)
def test_the_plan_says_what_is_flushed_and_swapped(
    keys: dict[int, int], db: int, target_db: int, expected: Plan
) -> None:
    assert plan(held(keys), db, target_db, None) == expected


def test_the_key_of_elasticache_does_not_come_to_the_wrong_database() -> None:
    assert plan(held({1: 30}, 1), 1, 0, None) == Plan([0], True, 30)
    # Elsewhere it stays where it is, for the service makes it again.
    assert plan(held({1: 30}, 1), 1, 3, None) == Plan([], True, 30)
    assert plan(held({0: 30}, 1), 1, 0, None) == Plan([], False, 30)


@pytest.mark.parametrize(
    ("keys", "min_keys", "reason"),
    [
        ({}, None, "is empty"),
        ({2: 7}, None, "is empty"),
        ({0: 30, 2: 7}, None, "is empty"),
        ({0: 30, 1: 5}, None, "promoted before"),
        ({0: 30, 1: 5}, 20, "min_keys=20"),
        ({1: 5}, 6, "min_keys=6"),
        ({0: 5}, 6, "min_keys=6"),
    ],
)
def test_refuses_what_cannot_be_the_data(keys: dict[int, int], min_keys: int | None, reason: str) -> None:
    with pytest.raises(KeyferryError, match=reason):
        plan(held(keys), 1, 0, min_keys)


def test_min_keys_says_which_one_to_keep() -> None:
    assert plan(held({0: 30, 1: 5}), 1, 0, 5) == Plan([0], True, 5)


@given(st.dictionaries(st.integers(0, 5), st.integers(1, 9)), st.integers(0, 5), st.integers(0, 5), st.integers(0, 99))
def test_stopped_anywhere_it_ends_the_same(keys: dict[int, int], db: int, target_db: int, stop: int) -> None:
    """Also where the commands are not one transaction, any beginning of them leaves a state that a run completes."""
    if not keys.get(db):
        return
    state = dict(keys)

    def apply(commands: list[tuple[object, ...]]) -> None:
        selected = db
        for name, *arguments in commands:
            if name == "SELECT":
                selected = int(str(arguments[0]))
            elif name == "FLUSHDB":
                state.pop(selected)
            else:
                state[db], state[target_db] = state.get(target_db, 0), state.get(db, 0)

    commands = plan(held(state), db, target_db, 1).commands(db, target_db)
    apply(commands[: stop % (len(commands) + 1)])
    for _again in range(2):
        rest = plan(held({number: count for number, count in state.items() if count}), db, target_db, 1)
        apply(rest.commands(db, target_db))
        assert {number: count for number, count in state.items() if count} == {target_db: keys[db]}
    assert rest.commands(db, target_db) == []
