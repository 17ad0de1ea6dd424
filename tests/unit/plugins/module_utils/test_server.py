# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A missing library is told, a password is not, and the round trip says how many connections are wanted."""

from __future__ import annotations

import itertools

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils import server as module
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Server


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REDIS_IMPORT_ERROR", "the traceback")
    with pytest.raises(KeyferryError, match="pip install redis hiredis") as raised:
        Server(Address())
    assert raised.value.result == {"exception": "the traceback"}


def test_a_password_is_in_no_text() -> None:
    assert "s3cret" not in repr(Address(password="s3cret")) + str(Address(password="s3cret"))


@pytest.mark.parametrize(("round_trip", "connections"), [(0.0001, 1), (0.001, 2), (0.005, 4), (0.1, 8)])
def test_a_longer_round_trip_wants_more_connections(
    monkeypatch: pytest.MonkeyPatch, round_trip: float, connections: int
) -> None:
    times = itertools.chain([5.0], itertools.repeat(round_trip))
    monkeypatch.setattr(Server, "_round_trip", lambda _self: next(times))
    assert Server(Address()).connections_wanted() == connections
