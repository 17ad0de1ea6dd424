# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of a scan follow its cursor."""

from __future__ import annotations

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils.dump_worker import next_part


@pytest.mark.parametrize("parts", [1, 2, 4, 8, 64])
def test_parts_follow_the_reverse_binary_counter(parts: int) -> None:
    bits = parts.bit_length() - 1
    reversed_numbers = [int(f"{number:0{bits}b}"[::-1], 2) if bits else 0 for number in range(parts)]
    walk = [0]
    while (following := next_part(walk[-1], parts)) != 0:
        walk.append(following)
    assert walk == reversed_numbers
