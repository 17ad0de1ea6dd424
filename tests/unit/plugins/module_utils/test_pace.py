# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers keep to a rate together, and give way to other clients."""

from __future__ import annotations

import threading
import time

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils.pace import Pace


def test_a_rate_holds_all_workers_together(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _self, timeout: waits.append(round(timeout, 3)))
    monkeypatch.setattr(time, "monotonic", lambda: 7.0)
    pace = Pace(1000, threading.Event())
    assert (pace.burst(1), pace.burst(8), Pace(1, threading.Event()).burst(4)) == (100, 12, 1)
    for _batch in range(4):
        pace.wait(50, 0.0)
    # The first batch is free, each further one waits for the ones before it.
    assert waits == [0.05, 0.1, 0.15]


def test_without_limits_nothing_waits() -> None:
    pace = Pace(None, threading.Event())
    pace.wait(10**9, 10.0)
    assert pace.burst(4) is None


class TestLatency:
    @pytest.fixture
    def waits(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """How long it waited each time, which takes no time here."""
        found: list[float] = []
        monkeypatch.setattr(threading.Event, "wait", lambda _self, timeout: found.append(timeout))
        monkeypatch.setattr(Pace, "DECIDE_EVERY_S", 0.0)
        return found

    def test_the_share_falls_at_once_and_rises_by_steps(self, waits: list[float]) -> None:
        excess = [0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
        pace = Pace(None, threading.Event(), lambda: excess.pop(0), 0.01)
        assert pace.burst(1) == Pace.CAREFUL_KEYS
        shares = []
        for _batch in range(9):
            pace.wait(100, 0.01)
            shares.append(pace.share)
        assert shares[:3] == [0.5, 0.25, 0.3125]
        assert shares == shares[:2] + sorted(shares[2:]) and shares[-1] == 1.0
        assert [round(wait, 6) for wait in waits[:3]] == [0.01, 0.03, 0.022]
        # With the whole of its share it does not wait.
        assert len(waits) < len(shares)

    def test_it_never_stops(self, waits: list[float]) -> None:
        pace = Pace(None, threading.Event(), lambda: 9.0, 0.01)
        for _batch in range(50):
            pace.wait(100, 1.0)
        assert (pace.share, max(waits)) == (Pace.LEAST_SHARE, Pace.LONGEST_WAIT_S)
