# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The line of progress fits what is counted."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.keyferry.redis.plugins.plugin_utils.progress import described


@pytest.mark.parametrize(
    "facts, expected",
    [
        ({}, "0 keys, 0 bytes, 0 a second"),
        ({"done": 1234, "bytes": 1023}, "1,234 keys, 1023 bytes, 0 a second"),
        ({"total": 0, "bytes": 1024}, "0 keys, 1.0 KiB, 0 a second"),
        (
            {"done": 12345678, "total": 30000000, "bytes": 5 << 29, "per_second": 310000, "seconds_left": 56.9},
            "12,345,678 of 30,000,000 keys (41%), 2.5 GiB, 310,000 a second, 0:57 left",
        ),
        # More keys came than there were when the dump began.
        (
            {"done": 12, "total": 10, "bytes": 3 << 20, "per_second": 6, "seconds_left": 0},
            "12 of 10 keys (100%), 3.0 MiB, 6 a second, 0:00 left",
        ),
        (
            {"done": 1, "total": 10**6, "per_second": 1, "seconds_left": 7265.4},
            "1 of 1,000,000 keys (0%), 0 bytes, 1 a second, 2:01:05 left",
        ),
    ],
)
def test_the_line_tells_how_far_it_is(facts: dict[str, Any], expected: str) -> None:
    nothing = {"done": 0, "total": None, "bytes": 0, "per_second": 0, "seconds_left": None}
    assert described({**nothing, **facts}, "keys") == expected


def test_the_line_fits_what_counts_bytes_or_waits() -> None:
    facts = {"done": 3 << 20, "total": 6 << 20, "bytes": 3 << 20, "per_second": 1 << 20, "seconds_left": 3.0}
    assert described(facts, "bytes") == "3.0 MiB of 6.0 MiB (50%), 1.0 MiB a second, 0:03 left"
    assert described({**facts, "total": None, "seconds_left": None}, "bytes") == "3.0 MiB, 1.0 MiB a second"
    assert described({"elapsed": 754.2}, "seconds") == "waiting for 12:34 so far"
