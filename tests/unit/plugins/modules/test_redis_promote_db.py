# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redis_promote_db leaves one database under the number wanted, wherever it was stopped before."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from support.keyspaces import contents, login, run_id, sizes
from support.modules import run_module
from support.proxies import switched_after_approval

from ansible_collections.keyferry.redis.plugins.module_utils import promote
from ansible_collections.keyferry.redis.plugins.modules import redis_promote_db
from lab.groups import TIMESTAMP_KEY
from lab.nodes import RedisServer, free_port, wait_for

Start = Callable[..., RedisServer]


class Killed(Exception):
    """Stands for the end of the module's process."""


def run(server: RedisServer, **args: Any) -> dict[str, Any]:
    return run_module("redis_promote_db", **{**login(server), "db": 1, **args})


def fill(server: RedisServer) -> dict[bytes, tuple[bytes, int]]:
    later = int(time.time() * 1000) + 3_600_000
    for db, keys in ((0, 3), (1, 50), (2, 70), (7, 1)):
        client = server.client(db)
        for number in range(keys):
            client.set(b"key\xff\r\n:%d" % number, db, pxat=later + number)
        client.hset("hash", "db", str(db))
    server.client(0).set(TIMESTAMP_KEY, "1")
    return contents(server, 1)


def test_promotes_and_leaves_it_so(redis_server: RedisServer) -> None:
    data = fill(redis_server)
    predicted = run(redis_server, _check=True)
    assert sizes(redis_server) == {"db0": 5, "db1": 51, "db2": 71, "db7": 2}
    result = run(redis_server)
    assert result["changed"]
    assert result["keys"] == 51
    assert result["flushed"] == {"0": 4, "2": 71, "7": 2}
    assert {**predicted, "elapsed": 0, "invocation": {}} == {**result, "elapsed": 0, "invocation": {}}
    assert result["diff"]["before"].splitlines()[1] == "database 1: 51 keys"
    assert result["diff"]["after"] == "database 0: 51 keys\n"
    assert sizes(redis_server) == {"db0": 51}
    assert contents(redis_server) == data
    # ElastiCache makes its key again.
    redis_server.client(0).set(TIMESTAMP_KEY, "2")
    again = run(redis_server)
    assert (again["changed"], again["keys"], again["flushed"]) == (False, 51, {})
    assert again["diff"]["before"] == again["diff"]["after"]
    assert sizes(redis_server) == {"db0": 52}


def test_promotes_into_another_database_and_in_place(redis_server: RedisServer) -> None:
    data = fill(redis_server)
    assert run(redis_server, target_db=3)["keys"] == 51
    redis_server.client(0).delete(TIMESTAMP_KEY)
    assert sizes(redis_server) == {"db3": 51}
    redis_server.client(4).set("key", "1")
    assert run(redis_server, db=3, target_db=3)["flushed"] == {"4": 1}
    assert contents(redis_server, 3) == data


@pytest.mark.parametrize("sent", [True, False])
def test_killed_at_any_command_the_next_run_completes_it(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, sent: bool
) -> None:
    ask = promote._ask
    commands = 0
    done = None
    for last in range(100):
        redis_server.client().flushall()
        data = fill(redis_server)
        left = last

        def ask_until_killed(wire: Any, command: Any) -> Any:
            nonlocal left
            if left == 0:
                if sent:
                    wire.send(promote.packed([command]))
                raise Killed
            left -= 1
            return ask(wire, command)

        with monkeypatch.context() as patch:
            patch.setattr(promote, "_ask", ask_until_killed)
            try:
                done = run(redis_server)
            except Killed:
                commands += 1
        if done:
            break
        result = run(redis_server)
        assert "failed" not in result, result
        assert result["keys"] == 51
        assert sizes(redis_server) == {"db0": 51}
        assert contents(redis_server) == data
    # MULTI, three times SELECT and FLUSHDB, SWAPDB, EXEC.
    assert commands == 9


def test_goes_on_where_someone_stopped_by_hand(redis_server: RedisServer) -> None:
    by_hand = [(7, "FLUSHDB"), (2, "FLUSHDB"), (0, "FLUSHDB"), (0, "SWAPDB", 1, 0)]
    for stop in range(len(by_hand) + 1):
        redis_server.client().flushall()
        data = fill(redis_server)
        for db, *command in by_hand[:stop]:
            redis_server.client(db).execute_command(*command)
        assert run(redis_server)["changed"] == (stop < len(by_hand))
        assert sizes(redis_server) == {"db0": 51}
        assert contents(redis_server) == data


def test_never_takes_stray_keys_for_the_data(redis_server: RedisServer) -> None:
    data = fill(redis_server)
    run(redis_server)
    redis_server.client(1).set("stray", "1")
    for guard in ({}, {"min_keys": 50}):
        assert "Nothing was changed" in run(redis_server, **guard)["msg"]
    assert contents(redis_server) == data
    # A wrong number is not taken for work that was done.
    assert "Database 5 is empty" in run(redis_server, db=5)["msg"]


@pytest.mark.parametrize("command", ["swapdb", "flushdb", "select", "multi"])
def test_refused_where_a_command_is_forbidden_or_renamed(start_server: Start, command: str) -> None:
    forbidden = start_server(config=[f"user app on >secret ~* +@all -{command}"])
    fill(forbidden)
    before = sizes(forbidden)
    user = {"login_user": "app", "login_password": "secret"}
    for check in (False, True):
        refused = run(forbidden, **user, _check=check)
        assert refused["failed"]
        assert command in refused["msg"].lower()
        assert "secret" not in refused["msg"]
    assert sizes(forbidden) == before
    renamed = start_server(config=[f"rename-command {command} hidden"])
    if command != "select":
        for db in (0, 1, 2):
            renamed.client(db).set("key", "1")
        refused = run(renamed)
        assert refused["failed"]
        assert command in refused["msg"].lower()
        assert sizes(renamed) == {"db0": 1, "db1": 1, "db2": 1}


def test_refused_where_it_cannot_work(start_server: Start) -> None:
    server = start_server()
    fill(server)
    before = sizes(server)
    assert "protected_run_ids" in run(server, protected_run_ids=[run_id(server)])["msg"]
    assert "out of range" in run(server, target_db=99)["msg"]
    assert "min_keys is 0" in run(server, min_keys=0)["msg"]
    assert "fewer than min_keys=52" in run(server, min_keys=52)["msg"]
    replica = start_server("--replicaof", f"127.0.0.1 {server.port}")
    wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up", "the replica")
    assert "is a replica" in run(replica)["msg"]
    assert sizes(server) == before
    cluster = start_server("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    assert "is in cluster mode, as every serverless cache is" in run(cluster, db=0)["msg"]
    assert "is empty" in run(start_server())["msg"]


def test_another_server_that_answers_by_then_is_not_touched(
    start_server: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server()
    fill(server)
    before = sizes(server)
    with switched_after_approval(redis_promote_db, server, start_server(), monkeypatch) as (port, other):
        result = run(server, login_port=port)
        assert result["failed"] and "Another server process answers at" in result["msg"]
        assert (sizes(server), sizes(other)) == (before, {"db1": 1})


def test_reaches_the_replica_at_once(start_server: Start) -> None:
    server = start_server()
    data = fill(server)
    replica = start_server("--replicaof", f"127.0.0.1 {server.port}")
    wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up", "the replica")
    run(server)
    wait_for(lambda: sizes(replica) == {"db0": 51}, "the replica to follow")
    assert contents(replica) == data
