# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redis_keyspace_info tells what a server holds, and what is in the way of cluster mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.modules import run_module

from lab.groups import TIMESTAMP_KEY, Group, Settings, Shard
from lab.nodes import RedisServer, free_port, wait_for


def info(server: RedisServer, **args: Any) -> dict[str, Any]:
    return run_module("redis_keyspace_info", login_host="127.0.0.1", login_port=server.port, **args)


def fill(server: RedisServer, db: int, strings: int, hashes: int = 0) -> None:
    pipeline = server.client(db).pipeline(transaction=False)
    for number in range(strings):
        pipeline.set(f"string:{number}", "x" * 100, ex=3600 if number % 2 else None)
    for number in range(hashes):
        pipeline.hset(f"hash:{number}", mapping={"a": 1, "b": 2})
    pipeline.execute()


def test_tells_databases_and_who_the_server_is(redis_server: RedisServer, engine: str) -> None:
    fill(redis_server, 1, 10)
    fill(redis_server, 3, 4, 2)
    result = info(redis_server)
    assert result["databases"] == {"1": {"keys": 10, "expires": 5}, "3": {"keys": 6, "expires": 2}}
    assert result["keys"] == 16
    assert result["engine"] == engine
    assert int(result["version"].split(".")[0]) >= 7
    assert result["role"] == "master"
    assert result["run_id"] == redis_server.client().info("server")["run_id"]
    assert result["replication_id"] == redis_server.client().info("replication")["master_replid"]
    assert result["database_count"] == 16
    assert result["used_memory"] > 0
    assert not result["changed"]


def test_leaves_out_the_key_of_elasticache(redis_server: RedisServer) -> None:
    redis_server.client().set(TIMESTAMP_KEY, "1")
    fill(redis_server, 1, 2)
    result = info(redis_server, samples=10)
    assert list(result["databases"]) == ["1"]
    assert (result["keys"], result["service_keys"]) == (2, 1)
    fill(redis_server, 0, 3)
    redis_server.client().expire(TIMESTAMP_KEY, 1000)
    result = info(redis_server, samples=10)
    assert result["databases"]["0"]["types"] == {"string": 3}
    assert (result["databases"]["0"]["keys"], result["databases"]["0"]["expires"]) == (3, 1)


def test_looks_at_a_small_database_whole(redis_server: RedisServer) -> None:
    fill(redis_server, 1, 70, 30)
    redis_server.client(1).set(b"\xff\r\n\0", "odd")
    facts = info(redis_server, samples=101)["databases"]["1"]
    assert facts["types"] == {"hash": 30, "string": 71}
    client = redis_server.client(1)
    assert facts["estimated_bytes"] == sum(client.memory_usage(key) or 0 for key in client.scan_iter())


def test_estimates_from_a_sample(redis_server: RedisServer) -> None:
    fill(redis_server, 1, 4000, 1000)
    facts = info(redis_server, samples=1200)["databases"]["1"]
    assert sum(facts["types"].values()) == 5000
    assert 700 < facts["types"]["hash"] < 1300
    client = redis_server.client(1)
    string, other = (client.memory_usage(key) or 0 for key in ("string:0", "hash:0"))
    assert facts["estimated_bytes"] == pytest.approx(4000 * string + 1000 * other, rel=0.1)


def test_tells_what_stops_cluster_mode(start_server: Callable[..., RedisServer]) -> None:
    server = start_server()
    fill(server, 1, 5)
    reasons = info(server)["cluster_mode"]["reasons"]
    assert [reason.split(",")[0] for reason in reasons] == ["database 1 holds 5 keys", "there is no replica"]
    server.client().flushall()
    replica = start_server("--replicaof", f"127.0.0.1 {server.port}")
    wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up", "the replica")
    assert info(server)["cluster_mode"] == {"eligible": True, "reasons": []}
    assert info(replica)["role"] == "slave"
    assert info(replica)["replication_id"] == info(server)["replication_id"]


def test_tells_of_a_node_in_cluster_mode(start_server: Callable[..., RedisServer]) -> None:
    server = start_server("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    result = info(server, samples=5)
    assert result["cluster_enabled"]
    assert result["cluster_mode"]["eligible"]
    assert result["database_count"] == 1
    assert result["databases"] == {}
    server.client().execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "8191")
    wait_for(lambda: server.client().cluster("info")["cluster_slots_assigned"] == "8192", "the slots")
    server.client().config_set("cluster-require-full-coverage", "no")
    # The slots of this one (12539) and of ElastiCache's own key are apart.
    wait_for(lambda: server.client().cluster("info")["cluster_state"] == "ok", "the cluster")
    server.client().set("bar", "1")
    assert info(server, samples=5)["databases"]["0"]["types"] == {"string": 1}


def test_a_replica_in_cluster_mode_tells_the_same(tmp_path: Path, engine: str) -> None:
    shard = Shard("0001", "0-16383", ("primary", "replica"))
    group = Group(tmp_path, Settings(engine, ("admin", "secret"), (shard,), cluster=True))
    try:
        group.start([])
        for keys in (0, 3):
            fill(group.nodes["primary"], 0, keys)
            group.wait_synced()
            for node in group.nodes.values():
                result = info(node, samples=5)
                assert (result["keys"], result["service_keys"]) == (keys, 1)
                assert [facts["types"] for facts in result["databases"].values()] == [{"string": 3}][:keys]
    finally:
        group.kill()


def test_does_without_what_elasticache_forbids(start_server: Callable[..., RedisServer]) -> None:
    acl = "user app on >secret ~* +@all -config -debug -memory"
    server = start_server(config=[acl])
    fill(server, 1, 5)
    result = info(server, samples=3, login_user="app", login_password="secret")
    assert result["database_count"] is None
    assert result["databases"]["1"] == {"keys": 5, "expires": 2, "types": {"string": 5}, "estimated_bytes": None}


def test_tells_what_expired_at_start(start_server: Callable[..., RedisServer]) -> None:
    server = start_server()
    client = server.client(1)
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    client.set("gone", "1", px=1)
    client.set("kept", "1")
    client.save()
    server.stop()
    server.start()
    result = info(server)
    assert (result["rdb_last_load_keys_loaded"], result["rdb_last_load_keys_expired"]) == (1, 1)


def test_fails_with_one_line_when_nobody_answers(start_server: Callable[..., RedisServer]) -> None:
    server = start_server()
    server.stop()
    result = info(server)
    assert result["failed"]
    assert f"127.0.0.1:{server.port}" in result["msg"]
    assert info(start_server(), samples=-1)["msg"] == "samples must be 0 or more, not -1"
