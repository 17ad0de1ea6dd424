# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_dump and resp_load with a server that is older than the commands they like best."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.keyspaces import login
from support.modules import run_module
from support.old_redis import OldRedis

from lab.nodes import RedisServer
from lab.sample_data import fill


@pytest.fixture
def old(tmp_path: Path) -> Iterator[OldRedis]:
    with OldRedis(tmp_path / "old") as server:
        yield server


def digests(server: RedisServer, db: int) -> dict[bytes, bytes]:
    with server.client(db) as client:
        return {key: client.execute_command("DEBUG", "DIGEST-VALUE", key)[0] for key in client.scan_iter(count=500)}


@pytest.fixture
def new(tmp_path: Path) -> Iterator[RedisServer]:
    # Of the same family, whose digest of a sorted set writes its scores in the same way.
    with RedisServer(tmp_path / "new", "redis") as server:
        yield server


def test_what_an_old_server_holds_arrives(old: OldRedis, new: RedisServer, tmp_path: Path) -> None:
    fill(("127.0.0.1", old.port), 1000, 1)
    ends = {b"ends:%d" % at: int(time.time() * 1000) + 3_600_000 + at * 7 for at in range(300)}
    with old.client(1) as client:
        for key, end in ends.items():
            client.set(key, 1)
            client.pexpireat(key, end)
    dumped = run_module("resp_dump", **login(old), db=1, dest=str(tmp_path / "d"), workers=1, batch_size=50)
    assert (dumped["keys"], dumped["expired"]) == (1300, 0), dumped
    loaded = run_module("resp_load", **login(new), src=str(tmp_path / "d"))
    assert loaded["dbsize_after"] == 1300, loaded
    with new.client() as client:
        early = [end - client.pexpiretime(key) for key, end in ends.items()]
        assert client.ttl("empty value") == -1
    # TIME and PTTL are asked one after the other: a millisecond may end between them, and on a busy host some more.
    assert min(early) == 0 and max(early) < 100
    assert early.count(0) > 200
    assert digests(new, 0) == digests(old, 1)


def test_gone_keys_of_an_old_server_are_counted(old: OldRedis, tmp_path: Path) -> None:
    with old.client(1) as client:
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        client.mset({f"k{at}": at for at in range(50)})
        for at in range(20):
            client.pexpire(f"k{at}", 1)
    time.sleep(0.01)
    dumped = run_module("resp_dump", **login(old), db=1, dest=str(tmp_path / "d"), workers=1)
    assert (dumped["keys"], dumped["types"]) == (30, {"string": 30})


def test_a_refusal_by_an_old_server_names_the_key(old: OldRedis, tmp_path: Path) -> None:
    with old.client(1) as client:
        client.set("k", 1)
        client.execute_command("ACL", "SETUSER", "reader", "on", ">pass", "~*", "+@all", "-dump")
    options = {"login_user": "reader", "login_password": "pass"}
    result = run_module("resp_dump", **login(old), **options, db=1, dest=str(tmp_path / "d"), workers=1)
    assert result["failed"] and "refused key 'k': NOPERM" in result["msg"]


@pytest.mark.parametrize("engine", ["redis-5", "redis"])
def test_the_commands_of_a_new_server_are_put_in_old_words(engine: str, new: RedisServer, tmp_path: Path) -> None:
    """Times of expiry, and streams with groups, whose counters came with 7.0."""
    fill(("127.0.0.1", new.port), 500, 1)
    with OldRedis(tmp_path / "older", engine) as old:
        _move_by_commands(new, old, tmp_path / "d")


def _move_by_commands(new: RedisServer, old: OldRedis, path: Path) -> None:
    with new.client(1) as client:
        client.xadd("empty", {"f": "v"}, id="5-1")
        client.xdel("empty", "5-1")
        client.xgroup_create("empty", "group", id="5-1", entries_read=1)
        client.xgroup_createconsumer("empty", "group", "idle")
        client.xadd("trimmed", {"f": "v"}, id="1-1")
        client.xgroup_create("trimmed", "group", id="0")
        client.xreadgroup("group", "reader", {"trimmed": ">"})
        client.xadd("trimmed", {"f": "v"}, id="2-1", maxlen=1, approximate=False)
        ends = {key: client.pexpiretime(key) for key in client.scan_iter(count=1000)}
        ends = {key: end for key, end in ends.items() if end > 0}
    dumped = run_module("resp_dump", **login(new), db=1, dest=str(path), format="commands")
    loaded = run_module("resp_load", **login(old), src=str(path))
    assert (loaded.get("replies"), loaded.get("dbsize_after")) == (dumped["commands"], 502), loaded
    found, expected = digests(old, 0), digests(new, 1)
    assert found == expected
    with old.client() as client:
        pipe = client.pipeline(transaction=False)
        for key in ends:
            pipe.time().pttl(key)
        replies = pipe.execute()
        clocks = [seconds * 1000 + micros // 1000 for seconds, micros in replies[::2]]
        lives = {key: clock + ttl for key, clock, ttl in zip(ends, clocks, replies[1::2], strict=True)}
        assert client.xinfo_stream("empty")["last-generated-id"] == b"5-1"
        assert client.xinfo_consumers("empty", "group")[0]["name"] == b"idle"
    # The clock is read a little before each key's time to live, and both are cut to whole milliseconds.
    assert ends and all(abs(lives[key] - end) < 2000 for key, end in ends.items())


def test_functions_for_a_server_without_them_are_found_out_first(
    old: OldRedis, new: RedisServer, tmp_path: Path
) -> None:
    with new.client(1) as client:
        client.set("k", 1)
        client.function_load("#!lua name=lib\nredis.register_function('one', function() return 1 end)")
    run_module("resp_dump", **login(new), db=1, dest=str(tmp_path / "d"), functions=True)
    result = run_module("resp_load", **login(old), src=str(tmp_path / "d"))
    assert result["failed"] and "holds functions, which Redis at" in result["msg"]
    assert "(version 6.2.5) does not have. Nothing was sent. Dump again with functions=false" in result["msg"]


def test_the_oldest_takes_the_types_that_it_knows(tmp_path: Path, new: RedisServer) -> None:
    """Into a server that knows all the types, though not their version."""
    with OldRedis(tmp_path / "5", "redis-5") as oldest, new.client(1) as client:
        client.mset({f"k{at}": "v" * at for at in range(1, 200)})
        client.set("ends", "v", px=10**8)
        run_module("resp_dump", **login(new), db=1, dest=str(tmp_path / "d"))
        result = run_module("resp_load", **login(oldest), src=str(tmp_path / "d"))
        assert result.get("dbsize_after") == 200, result
        assert digests(oldest, 0) == digests(new, 1)
        client.hset("hash", "f", "v")
        run_module("resp_dump", **login(new), db=1, dest=str(tmp_path / "d"), force=True)
        result = run_module("resp_load", **login(oldest), src=str(tmp_path / "d"))
        assert "(version 5.0.6) reads DUMP payloads up to RDB version 9" in result["msg"]
