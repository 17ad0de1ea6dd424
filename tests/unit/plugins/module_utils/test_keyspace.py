# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A sample of a database is made an estimate of all of it."""

from __future__ import annotations

from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import batches, estimate


def test_estimates_by_share() -> None:
    found = estimate(1000, {"string": [100] * 9, "hash": [1100]})
    assert found == {"types": {"hash": 100, "string": 900}, "estimated_bytes": 200_000}


def test_estimates_without_sizes() -> None:
    assert estimate(10, {"string": [None, None]}) == {"types": {"string": 10}, "estimated_bytes": None}
    assert estimate(10, {}) == {"types": {}, "estimated_bytes": None}


def test_batches_are_full_but_the_last() -> None:
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []
