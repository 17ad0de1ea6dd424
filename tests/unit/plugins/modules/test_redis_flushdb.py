# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redis_flushdb empties the databases named, and nothing that it should not touch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.keyspaces import login, run_id, sizes
from support.modules import run_module
from support.proxies import switched_after_approval

from ansible_collections.keyferry.redis.plugins.modules import redis_flushdb
from lab.groups import TIMESTAMP_KEY
from lab.nodes import RedisServer, free_port


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    """Databases 0, 1 and 15 with 1, 2 and 16 keys."""
    for db in (0, 1, 15):
        with redis_server.client(db) as client:
            client.mset({f"k{at}": at for at in range(db + 1)})
    return redis_server


def flush(server: RedisServer, **options: Any) -> dict[str, Any]:
    return run_module("redis_flushdb", **{**login(server), **options})


@pytest.mark.parametrize("asynchronous", [True, False])
def test_flushes_the_databases_named(server: RedisServer, asynchronous: bool) -> None:
    result = flush(server, db=[1, 15], asynchronous=asynchronous)
    assert (result["changed"], result["flushed"]) == (True, {"1": 2, "15": 16})
    assert sizes(server) == {"db0": 1}
    again = flush(server, db=[1, 15])
    assert (again["changed"], again["flushed"]) == (False, {})


def test_flushes_all_but_those_named(server: RedisServer) -> None:
    assert flush(server, all_except=[15, 3])["flushed"] == {"0": 1, "1": 2}
    assert sizes(server) == {"db15": 16}


def test_one_number_will_do(server: RedisServer) -> None:
    assert flush(server, db=1)["flushed"] == {"1": 2}


def test_check_mode_shows_and_does_nothing(server: RedisServer) -> None:
    result = flush(server, db=[1], _check=True, _diff=True)
    assert (result["changed"], result["flushed"]) == (True, {"1": 2})
    assert result["diff"]["before"] == "database 0: 1 keys\ndatabase 1: 2 keys\ndatabase 15: 16 keys\n"
    assert result["diff"]["after"] == "database 0: 1 keys\ndatabase 1: 0 keys\ndatabase 15: 16 keys\n"
    assert sizes(server) == {"db0": 1, "db1": 2, "db15": 16}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"db": [1, 15], "max_keys": 17},
            "holds 18 keys there (database 1: 2, database 15: 16), more than max_keys=17",
        ),
        ({"db": [1, 16]}, "DB index is out of range"),
        ({"db": [-1]}, "DB index is out of range"),
        ({}, "one of the following is required: db, all_except"),
        ({"db": [0], "all_except": [1]}, "mutually exclusive"),
    ],
)
def test_nothing_is_flushed_where_it_refuses(server: RedisServer, options: dict[str, Any], said: str) -> None:
    result = flush(server, **options)
    assert result["failed"] and said in result["msg"]
    assert sizes(server) == {"db0": 1, "db1": 2, "db15": 16}


def test_a_protected_server_is_not_touched(server: RedisServer) -> None:
    result = flush(server, all_except=[], protected_run_ids=["0" * 40, run_id(server)])
    assert result["failed"] and "protected_run_ids forbids to write to" in result["msg"]
    assert sizes(server) == {"db0": 1, "db1": 2, "db15": 16}
    assert flush(server, all_except=[], protected_run_ids=["0" * 40])["changed"]


def test_another_server_that_answers_by_then_is_not_touched(
    server: RedisServer, start_server: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a name leads to another address after the server was found not to be the source."""
    with switched_after_approval(redis_flushdb, server, start_server(), monkeypatch) as (port, other):
        result = flush(server, login_port=port, all_except=[])
        assert result["failed"] and "Another server process answers at" in result["msg"]
        assert sizes(other) == {"db1": 1}


def test_the_key_of_elasticache_is_no_data(server: RedisServer) -> None:
    with server.client() as client:
        client.set(TIMESTAMP_KEY, "1")
    assert flush(server, db=0, max_keys=1)["flushed"] == {"0": 1}
    with server.client() as client:
        client.set(TIMESTAMP_KEY, "2")
    assert flush(server, all_except=[1, 15])["changed"] is False
    assert sizes(server) == {"db0": 1, "db1": 2, "db15": 16}


def test_a_replica_is_not_touched(server: RedisServer) -> None:
    with server.client() as client:
        client.replicaof("127.0.0.1", free_port())
    result = flush(server, db=[1])
    assert result["failed"] and "read only replica" in result["msg"]
    assert sizes(server) == {"db0": 1, "db1": 2, "db15": 16}
