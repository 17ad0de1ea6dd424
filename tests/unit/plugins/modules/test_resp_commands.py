# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Dumps of format=commands: what any server takes, and what it has then is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.keyspaces import contents, differences, login
from support.modules import run_module
from support.old_redis import OldRedis

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import open_dump
from lab.nodes import RedisServer
from lab.sample_data import fill

# Of when a consumer was seen no command knows; how a stream lies in memory does not matter.
VOLATILE = {b"radix-tree-keys", b"radix-tree-nodes", b"seen-time", b"active-time"}


def move(source: RedisServer, target: RedisServer, path: Path, db: int = 1) -> dict[str, Any]:
    dumped = run_module("resp_dump", **login(source), db=db, dest=str(path), format="commands", workers=2)
    assert not dumped.get("failed"), dumped
    loaded = run_module("resp_load", **login(target), src=str(path))
    assert not loaded.get("failed"), loaded
    assert (loaded["keys"], loaded["replies"]) == (dumped["keys"], dumped["commands"])
    return dumped


def streams(server: RedisServer, db: int) -> dict[bytes, Any]:
    """All that the server tells of each stream."""

    def stable(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: stable(part) for name, part in value.items() if name not in VOLATILE}
        return [stable(part) for part in value] if isinstance(value, list) else value

    with server.client(db) as client:
        keys = sorted(client.scan_iter(count=1000, _type="stream"))
        return {key: stable(client.execute_command("XINFO", "STREAM", key, "FULL", "COUNT", 0)) for key in keys}


def test_every_type_arrives(start_server: Any, tmp_path: Path) -> None:
    source, target = start_server(), start_server()
    fill(("127.0.0.1", source.port), 2000, 1)
    with source.client(1) as client:
        client.config_set("list-max-listpack-size", 5)
        client.rpush("list:plain node", "x" * 9000, "y", "z" * 70_000, -5, 300, 70_000, 2**40, -(2**20))
        client.config_set("set-max-intset-entries", 4)
        client.sadd("set:of numbers", *range(-9, 9))
        client.zadd(
            "zset:numbers", {f"m{at}": score for at, score in enumerate((-1, 0, 4095, -4096, 4096, 2**31, 2**33))}
        )
        client.hset("hash:sizes", mapping={"s" * size: "v" * size for size in (0, 1, 63, 64, 65, 127)})
        # Around the sizes from which on a listpack's element has a longer length behind it; its head has 5 bytes.
        for size in (127 - 2, 16383 - 5, 2097151 - 5):
            for length in (size - 1, size, size + 1):
                client.xadd(f"stream:{length}", {"a": "v" * length, "b": length}, id="1-1")
        client.config_set("list-max-listpack-size", -5)
        client.rpush("list:long", *("v" * (16383 - 5 + more) for more in (-1, 0, 1)), "last")
    move(source, target, tmp_path / "d")
    assert contents(target) == contents(source, 1)
    assert streams(target, 0) == streams(source, 1)
    # Once more, onto what is there now.
    run_module("resp_load", **login(target), src=str(tmp_path / "d"))
    assert contents(target) == contents(source, 1)


def test_what_another_engine_packs_in_another_way_is_told_and_arrives(tmp_path: Path) -> None:
    """Valkey 9.1 refuses the payload of a Redis whose listpack has an element of 16378 bytes."""
    dump = str(tmp_path / "dump")
    with RedisServer(tmp_path / "source", "redis") as source, RedisServer(tmp_path / "target", "valkey") as target:
        with source.client(1) as client:
            client.xadd("k", {"a": "v" * 16378, "b": "y"}, id="1-1")
        run_module("resp_dump", **login(source), db=1, dest=dump)
        refused = run_module("resp_load", **login(target), src=dump)
        assert refused["failed"] and "Bad data format" in refused["msg"] and "of key 'k'" in refused["msg"], refused
        assert "dump with format=commands" in refused["msg"], refused
        move(source, target, tmp_path / "commands")
        assert streams(target, 0) == streams(source, 1)


def test_pending_entries_that_were_deleted_arrive(start_server: Any, tmp_path: Path) -> None:
    source, target = start_server(), start_server()
    with source.client(1) as client:
        for at in range(1, 8):
            client.xadd("s", {"f": at}, id=f"{at}-0")
        client.xgroup_create("s", "g", 0)
        client.xreadgroup("g", "reader", {"s": ">"}, count=5)
        client.xdel("s", "2-0", "5-0", "7-0")
        client.xgroup_createconsumer("s", "g", "idle")
        client.xgroup_create("only a group", "g", 0, mkstream=True)
        client.xadd("all deleted", {"f": 1}, id="9-9")
        client.xgroup_create("all deleted", "g", 0)
        client.xreadgroup("g", "reader", {"all deleted": ">"})
        client.xdel("all deleted", "9-9")
    move(source, target, tmp_path / "d")
    assert streams(target, 0) == streams(source, 1)
    with target.client() as client:
        assert client.xpending("s", "g")["pending"] == 5


def test_pending_entries_that_were_trimmed_arrive(start_server: Any, tmp_path: Path) -> None:
    """XTRIM leaves max-deleted-entry-id alone, XDEL does not."""
    source, target = start_server(), start_server()
    with source.client(1) as client:
        for key, left, deleted in (
            ("s", 3, ()),
            ("all", 0, ()),
            ("also deleted", 4, ("2-0", "6-0")),
            ("low", 4, ("1-0",)),
        ):
            for at in range(1, 9):
                client.xadd(key, {"f": at}, id=f"{at}-0")
            client.xgroup_create(key, "g", 0)
            client.xreadgroup("g", "reader", {key: ">"}, count=6)
            if deleted:
                client.xdel(key, *deleted)
            client.xtrim(key, maxlen=left, approximate=False)
        assert client.xinfo_stream("s")["max-deleted-entry-id"] == b"0-0"
    move(source, target, tmp_path / "d")
    assert streams(target, 0) == streams(source, 1)
    both = {**login(source), **login(target, "target_login_")}
    assert differences(run_module("redis_compare", **both, db=1, target_db=0)) == (0, 0, 0)


def test_values_arrive_from_and_at_an_old_server(tmp_path: Path) -> None:
    """Ziplists, and streams without the totals that came with 7.0."""
    with OldRedis(tmp_path / "old") as old, RedisServer(tmp_path / "new", "valkey") as new:
        with old.client(1) as client:
            client.hset("hash", mapping={"f": "v", "n": -1, "m": 12, "big": 2**40, "mid": 70_000, "long": "x" * 60})
            client.zadd("zset", {"a": 1.5, "b": 3, "c": float("-inf")})
            client.rpush("list", "a", -100, 1000, 10**6, "x" * 300, "y" * 20_000, 5)
            client.sadd("set", "a", "b")
            client.xadd("stream", {"f": "v"}, id="5-5")
            client.set("string", "abc" * 200, px=10**8)
        move(old, new, tmp_path / "d")
        with old.client(1) as before, new.client() as after:
            assert after.hgetall("hash") == before.hgetall("hash")
            assert after.zrange("zset", 0, -1, withscores=True) == before.zrange("zset", 0, -1, withscores=True)
            assert after.lrange("list", 0, -1) == before.lrange("list", 0, -1)
            assert after.smembers("set") == before.smembers("set")
            assert after.xrange("stream") == before.xrange("stream")
            assert after.get("string") == before.get("string")
            # What Valkey 9 dumps is far too new for Redis 6.2, except as commands.
            after.delete("stream")
        moved = move(new, old, tmp_path / "e", db=0)
        assert moved["keys"] == 5
        with old.client(0) as after, old.client(1) as before:
            assert after.lrange("list", 0, -1) == before.lrange("list", 0, -1)
            assert after.hgetall("hash") == before.hgetall("hash")


def test_fields_that_expire_do_so_there(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "one", "valkey") as source, RedisServer(tmp_path / "two", "valkey") as target:
        with source.client(1) as client:
            client.hset("h", mapping={"a": 1, "b": 2, "c": 3})
            client.execute_command("HPEXPIREAT", "h", 4_000_000_000_000, "FIELDS", 2, "a", "c")
        move(source, target, tmp_path / "d")
        with target.client() as client:
            times = client.execute_command("HPEXPIRETIME", "h", "FIELDS", 3, "a", "b", "c")
            assert (times, client.hgetall("h")) == (
                [4_000_000_000_000, -1, 4_000_000_000_000],
                {b"a": b"1", b"b": b"2", b"c": b"3"},
            )


def test_no_command_has_too_many_arguments(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_server.client(1) as client:
        client.rpush("list", *range(10_000))
        client.sadd("set", *(f"m{at}" for at in range(5_000)))
    run_module("resp_dump", **login(redis_server), db=1, dest=str(tmp_path / "d"), format="commands")
    data = (tmp_path / "d").read_bytes()
    block = open_dump(str(tmp_path / "d")).blocks[0]
    position, most = block.offset, 0
    for _command in range(block.commands):
        found = resp.read_command(data, position, len(data))
        most = max(most, len(found.arguments))
        position = found.end
    assert 3000 < most <= 3999


@pytest.mark.parametrize("dest_exists", [False, True])
def test_it_cannot_keep_what_is_there(redis_server: RedisServer, tmp_path: Path, dest_exists: bool) -> None:
    run_module("resp_dump", **login(redis_server), db=1, dest=str(tmp_path / "d"), format="commands")
    if dest_exists:
        result = run_module("resp_dump", **login(redis_server), db=1, dest=str(tmp_path / "d"))
        assert result["failed"] and "is another dump (format=" in result["msg"]
    else:
        result = run_module("resp_load", **login(redis_server), src=str(tmp_path / "d"), replace=False)
        assert result["failed"] and "replace=false cannot be kept" in result["msg"]
