# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import collections
import threading
import time

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils import dump


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 64])
def test_parts_follow_the_reverse_binary_counter(parts: int) -> None:
    bits = parts.bit_length() - 1
    reversed_numbers = [int(f"{number:0{bits}b}"[::-1], 2) if bits else 0 for number in range(parts)]
    walk = [0]
    while (following := dump.next_part(walk[-1], parts)) != 0:
        walk.append(following)
    assert walk == reversed_numbers


def test_types_are_counted_by_name() -> None:
    counted = dump.count_types(collections.Counter({0: 3, 16: 1, 4: 1, 99: 2}))
    assert counted["types"] == {"hash": 2, "string": 3, "type 99": 2}
    assert counted["type_bytes"] == {"0": 3, "16": 1, "4": 1, "99": 2}


def test_pace_holds_all_workers_together() -> None:
    pace = dump._Pace(1000, threading.Event())
    assert (pace.burst(1), pace.burst(8), dump._Pace(1, threading.Event()).burst(4)) == (100, 12, 1)
    started = time.monotonic()
    for _batch in range(4):
        pace.wait(50)
    # The first batch is free, each further one waits for the ones before it.
    assert time.monotonic() - started >= 0.149


def test_without_a_rate_nothing_waits() -> None:
    pace = dump._Pace(None, threading.Event())
    pace.wait(10**9)
    assert pace.burst(4) is None
