# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redis_compare finds every difference between two databases, and repairs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.keyspaces import contents, differences, login, run_id
from support.modules import run_module
from support.scripts import EndlessScript

from ansible_collections.keyferry.redis.plugins.module_utils import server as server_module
from ansible_collections.keyferry.redis.plugins.module_utils.compare_batch import Worker
from ansible_collections.keyferry.redis.plugins.module_utils.pace import Pace
from lab.groups import TIMESTAMP_KEY
from lab.nodes import RedisServer, wait_for
from lab.tls import make_tls

SOURCE_DB, TARGET_DB = 1, 0
# Servers that keep values in any other way than the defaults do.
OTHER_ENCODINGS = [
    option
    for name in ("hash-max-listpack-entries", "zset-max-listpack-entries", "set-max-intset-entries")
    for option in (f"--{name}", "1")
] + ["--list-max-listpack-size", "2"]

Start = Callable[..., RedisServer]


def compare(source: RedisServer, target: RedisServer, /, **args: Any) -> dict[str, Any]:
    both = {**login(source), **login(target, "target_login_")}
    return run_module("redis_compare", **{**both, "db": SOURCE_DB, "target_db": TARGET_DB, **args})


def fill(client: redis.Redis) -> None:
    """Every type, small and large, with and without TTL, and odd keys."""
    later = int(time.time() * 1000) + 3_600_000
    pipeline = client.pipeline(transaction=False)
    for number in range(3000):
        pipeline.set(f"string:{number}", b"\r\n\0\xff%d" % number, pxat=later + number if number % 2 else None)
    for key in (b"", b"\0", b"\r\n$5\r\n", b"\xff\xfe", "ключ".encode(), b"k" * 5000):
        pipeline.set(key, b"odd")
    pipeline.set("integer", 12345)
    for size in (3, 700):
        pipeline.hset(f"hash:{size}", mapping={f"field{at}": at for at in range(size)})
        pipeline.sadd(f"set:{size}", *[f"member{at}" for at in range(size)])
        pipeline.sadd(f"intset:{size}", *range(size))
        pipeline.rpush(f"list:{size}", *range(size))
        pipeline.zadd(f"zset:{size}", {f"member{at}": at / 7 for at in range(size)} | {"top": float("inf")})
        pipeline.pexpireat(f"hash:{size}", later)
    for at in range(1, 1300):
        pipeline.xadd("stream", {"at": at, "text": "idle"}, id=f"{at}-0")
    pipeline.xgroup_create("stream", "group", id="0")
    pipeline.xreadgroup("group", "reader", {"stream": ">"}, count=1100)
    pipeline.xdel("stream", "7-0")
    pipeline.hset("large:hash", mapping={f"field{at}": "x" * 100 for at in range(6000)})
    pipeline.sadd("large:set", *["m" * 60 + str(at) for at in range(6000)])
    pipeline.zadd("large:zset", {"m" * 60 + str(at): at for at in range(6000)})
    pipeline.rpush("large:list", *["x" * 100 + str(at) for at in range(6000)])
    pipeline.set("large:string", bytes(20 << 20))
    pipeline.rpush("large:elements", *[bytes([at]) * (3 << 20) for at in range(8)])
    pipeline.execute()


@pytest.fixture
def pair(start_server: Start) -> tuple[RedisServer, RedisServer]:
    return start_server(), start_server()


@pytest.fixture
def twins(start_server: Start, tmp_path: Path) -> tuple[RedisServer, RedisServer]:
    """Two servers with the same data, which the second has loaded from an RDB file and keeps in other encodings."""
    source = start_server()
    fill(source.client(SOURCE_DB))
    source.client().swapdb(SOURCE_DB, TARGET_DB)
    source.client().save()
    source.client().swapdb(SOURCE_DB, TARGET_DB)
    (tmp_path / "server-1").mkdir()
    source.rdb.rename(tmp_path / "server-1" / "dump.rdb")
    return source, start_server(*OTHER_ENCODINGS)


def test_the_same_data_in_other_encodings_is_equal(twins: tuple[RedisServer, RedisServer]) -> None:
    source, target = twins
    result = compare(*twins)
    assert differences(result) == (0, 0, 0)
    keys = source.client(SOURCE_DB).dbsize()
    assert result["keys_source"] == result["keys_target"] == result["compared"] == keys
    assert (result["changed"], result["repaired"]) == (False, 0)
    assert contents(source, SOURCE_DB) == contents(target, TARGET_DB)


# What makes each of these keys another one, in the smallest way.
CHANGES: dict[str, Callable[[redis.Redis], Any]] = {
    "string:1": lambda client: client.set("string:1", "changed", keepttl=True),
    "string:2": lambda client: client.expire("string:2", 100),
    "string:3": lambda client: client.persist("string:3"),
    "string:4": lambda client: (client.delete("string:4"), client.rpush("string:4", "list")),
    "integer": lambda client: client.incr("integer"),
    "hash:3": lambda client: client.hset("hash:3", "field1", "changed"),
    "hash:700": lambda client: (client.hdel("hash:700", "field1"), client.hset("hash:700", "field1b", 1)),
    "set:3": lambda client: (client.srem("set:3", "member1"), client.sadd("set:3", "changed")),
    "set:700": lambda client: (client.srem("set:700", "member1"), client.sadd("set:700", "changed")),
    "intset:700": lambda client: client.sadd("intset:700", 70000),
    "list:3": lambda client: client.lset("list:3", 1, "changed"),
    "list:700": lambda client: client.lset("list:700", 699, "changed"),
    "zset:3": lambda client: client.zincrby("zset:3", 1e-9, "member1"),
    "zset:700": lambda client: client.zincrby("zset:700", 1, "member699"),
    "large:hash": lambda client: client.hset("large:hash", "field5999", "changed"),
    "large:set": lambda client: (client.spop("large:set"), client.sadd("large:set", "changed")),
    "large:zset": lambda client: client.zincrby("large:zset", 0.5, "m" * 60 + "5999"),
    "large:list": lambda client: client.lset("large:list", -1, "changed"),
    "large:string": lambda client: client.setrange("large:string", (20 << 20) - 1, "x"),
    "large:elements": lambda client: client.lset("large:elements", 7, bytes(3 << 20)),
    "stream": lambda client: client.xack("stream", "group", "1099-0"),
}


def test_finds_and_repairs_the_smallest_difference_of_every_type(twins: tuple[RedisServer, RedisServer]) -> None:
    source, target = twins
    for change in CHANGES.values():
        change(target.client(TARGET_DB))
    result = compare(*twins)
    assert differences(result) == (0, 0, len(CHANGES))
    before = contents(target, TARGET_DB)
    predicted = compare(*twins, repair=True, _check=True)
    assert (predicted["changed"], predicted["repaired"]) == (True, len(CHANGES))
    assert contents(target, TARGET_DB) == before
    repaired = compare(*twins, repair=True)
    assert (repaired["changed"], repaired["repaired"], repaired["equal"]) == (True, len(CHANGES), False)
    assert contents(source, SOURCE_DB) == contents(target, TARGET_DB)
    again = compare(*twins, repair=True)
    assert differences(again) == (0, 0, 0)
    assert not again["changed"]


@pytest.mark.parametrize(
    "change",
    [
        lambda client: client.xadd("stream", {"a": 1}, id="9999-0"),
        lambda client: client.xdel("stream", "1200-0"),
        lambda client: client.xgroup_setid("stream", "group", "5-0"),
        lambda client: client.xgroup_create("stream", "other", id="0"),
        lambda client: client.xclaim("stream", "group", "thief", 0, ["1090-0"]),
        lambda client: client.execute_command("XSETID", "stream", "99999-0"),
    ],
)
def test_finds_what_is_different_in_a_stream(pair: tuple[RedisServer, RedisServer], change: Any) -> None:
    source, target = pair
    for server, db in ((source, SOURCE_DB), (target, TARGET_DB)):
        client = server.client(db)
        for at in range(1, 1300):
            client.xadd("stream", {"at": at}, id=f"{at}-0")
        client.xgroup_create("stream", "group", id="0")
        # The consumers are seen at different times, which is no difference.
        client.xreadgroup("group", "reader", {"stream": ">"}, count=1100)
    assert differences(compare(*pair)) == (0, 0, 0)
    change(target.client(TARGET_DB))
    assert differences(compare(*pair)) == (0, 0, 1)


def test_finds_missing_and_extra_keys(pair: tuple[RedisServer, RedisServer]) -> None:
    source, target = pair
    ours, theirs = source.client(SOURCE_DB), target.client(TARGET_DB)
    for number in range(25):
        ours.set(f"missing\n{number}", "1")
        theirs.set(b"extra\xff%d" % number, "1")
        for client in (ours, theirs):
            client.set(f"same:{number}", "1")
    result = compare(*pair)
    assert differences(result) == (25, 25, 0)
    assert len(result["examples"]["missing"]) == len(result["examples"]["extra"]) == 10
    assert all(key.startswith(r"'missing\n") for key in result["examples"]["missing"])
    assert all(key.startswith(r"'extra\xff") for key in result["examples"]["extra"])
    repaired = compare(*pair, repair=True)
    assert (repaired["repaired"], repaired["deleted"]) == (25, 25)
    assert contents(source, SOURCE_DB) == contents(target, TARGET_DB)


def test_fills_an_empty_target(pair: tuple[RedisServer, RedisServer]) -> None:
    source, target = pair
    fill(source.client(SOURCE_DB))
    before = contents(source, SOURCE_DB)
    result = compare(*pair, repair=True, workers=2, max_keys_per_second=1_000_000)
    assert differences(result) == (len(before), 0, 0)
    assert contents(target, TARGET_DB) == before == contents(source, SOURCE_DB)


def test_compares_and_repairs_from_redis_to_valkey(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis", "redis") as source, RedisServer(tmp_path / "valkey", "valkey") as target:
        fill(source.client(SOURCE_DB))
        compare(source, target, repair=True)
        here, there = contents(source, SOURCE_DB), contents(target, TARGET_DB)
        # The two write 1/7 in different ways, in digests as in replies.
        assert {key for key in here if here[key] != there.pop(key)} == {b"zset:700"}
        assert not there
        assert differences(compare(source, target)) == (0, 0, 0)
        for change in CHANGES.values():
            change(target.client(TARGET_DB))
        assert differences(compare(source, target)) == (0, 0, len(CHANGES))
        # A payload of the newer engine is nothing for the older one, and the message names the key.
        refused = compare(target, source, db=TARGET_DB, target_db=5, repair=True)
        assert refused["failed"]
        assert "refused to repair key '" in refused["msg"]
        assert "payload version" in refused["msg"]


def test_ttls_of_the_fields_of_a_hash_are_compared_and_repaired(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "source", "valkey") as source, RedisServer(tmp_path / "target", "valkey") as target:
        for server, db in ((source, SOURCE_DB), (target, TARGET_DB)):
            client = server.client(db)
            client.hset("hash", mapping={f"field{at}": at for at in range(1000)})
            client.execute_command("HPEXPIREAT", "hash", 4_000_000_000_000, "FIELDS", 1, "field7")
        assert differences(compare(source, target)) == (0, 0, 0)
        target.client(TARGET_DB).execute_command("HPEXPIREAT", "hash", 4_000_000_000_001, "FIELDS", 1, "field7")
        assert differences(compare(source, target)) == (0, 0, 1)
        compare(source, target, repair=True)
        assert differences(compare(source, target)) == (0, 0, 0)


def test_ttls_may_differ_by_the_tolerance(pair: tuple[RedisServer, RedisServer]) -> None:
    source, target = pair
    later = int(time.time() * 1000) + 3_600_000
    source.client(SOURCE_DB).set("key", "1", pxat=later)
    target.client(TARGET_DB).set("key", "1", pxat=later + 50)
    assert differences(compare(*pair, ttl_tolerance_ms=49)) == (0, 0, 1)
    assert differences(compare(*pair, ttl_tolerance_ms=50)) == (0, 0, 0)


def test_what_expires_is_no_difference(pair: tuple[RedisServer, RedisServer]) -> None:
    source, target = pair
    soon = int(time.time() * 1000) + 50_000
    source.client(SOURCE_DB).set("gone there", "1", pxat=soon)
    source.client(SOURCE_DB).rpush("gone there too", "1")
    source.client(SOURCE_DB).pexpireat("gone there too", soon)
    target.client(TARGET_DB).set("gone here", "1", pxat=soon)
    assert differences(compare(*pair)) == (2, 1, 0)
    # Within the tolerance the TTL is over for one of the clocks.
    result = compare(*pair, ttl_tolerance_ms=100_000, repair=True)
    assert differences(result) == (0, 0, 0)
    assert (result["expired"], result["repaired"]) == (3, 0)


def test_leaves_out_the_key_of_elasticache(pair: tuple[RedisServer, RedisServer]) -> None:
    source, target = pair
    target.client(0).set(TIMESTAMP_KEY, "1")
    for client in (source.client(SOURCE_DB), target.client(0)):
        client.set("key", "1")
    for mode in ("full", "sample", "count"):
        result = compare(*pair, mode=mode)
        assert differences(result) == (0, 0, 0)
        assert (result["keys_source"], result["keys_target"]) == (1, 1)
    assert target.client(0).exists(TIMESTAMP_KEY)


def test_counts(pair: tuple[RedisServer, RedisServer]) -> None:
    source, target = pair
    for number in range(3):
        source.client(SOURCE_DB).set(f"a{number}", 1)
    target.client(TARGET_DB).set("b", 1)
    assert differences(compare(*pair, mode="count")) == (2, 0, 0)
    assert differences(compare(target, source, mode="count", db=TARGET_DB, target_db=SOURCE_DB)) == (0, 2, 0)


def test_a_sample_finds_damage(pair: tuple[RedisServer, RedisServer]) -> None:
    source, target = pair
    for server, db in ((source, SOURCE_DB), (target, TARGET_DB)):
        pipeline = server.client(db).pipeline(transaction=False)
        for number in range(4000):
            # Every tenth differs: the chance to miss all of them is one in 10^9.
            pipeline.set(f"key:{number}", "changed" if db == TARGET_DB and number % 10 == 0 else "1")
        pipeline.execute()
    result = compare(*pair, mode="sample", confidence=0.999_999_999, damage=0.1)
    missing, extra, different = differences(result)
    assert (missing, extra) == (0, 0)
    assert 0 < different < 200
    assert result["compared"] == 197
    assert compare(*pair, mode="sample")["compared"] == 4000


def test_is_held_to_a_rate(pair: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch) -> None:
    source, _target = pair
    source.client(SOURCE_DB).mset({f"key:{number}": 1 for number in range(300)})
    waited: list[int] = []
    monkeypatch.setattr(Pace, "wait", lambda _self, keys, _busy_s: waited.append(keys))
    assert compare(*pair, max_keys_per_second=1000)["missing"] == 300
    # A tenth of a second's keys at a time, and for each of them it waits.
    assert sum(waited) >= 300 and max(waited) <= 100, waited


def test_never_writes_to_the_source(pair: tuple[RedisServer, RedisServer], start_server: Start) -> None:
    source, target = pair
    source.client(SOURCE_DB).set("key", "1")
    target.client(TARGET_DB).set("extra", "1")
    assert "protected_run_ids" in compare(*pair, repair=True, protected_run_ids=[run_id(target)])["msg"]
    assert "would write to the source" in compare(source, source, repair=True)["msg"]
    assert "would prove nothing" in compare(source, source, target_db=SOURCE_DB)["msg"]
    replica = start_server("--replicaof", f"127.0.0.1 {source.port}")
    wait_for(lambda: replica.client().info("replication")["master_link_status"] == "up", "the replica")
    assert "would write to the source" in compare(replica, source, repair=True)["msg"]
    assert differences(compare(replica, source, target_db=SOURCE_DB)) == (0, 0, 0)
    assert source.client(SOURCE_DB).get("key") == b"1"
    assert target.client(TARGET_DB).get("extra") == b"1"


def test_refuses_what_cannot_be_compared(pair: tuple[RedisServer, RedisServer]) -> None:
    assert "mode=count does not know" in compare(*pair, mode="count", repair=True)["msg"]
    assert compare(*pair, ttl_tolerance_ms=-1)["msg"] == "ttl_tolerance_ms is -1; it must be at least 0"
    assert "between 0 and 1" in compare(*pair, mode="sample", confidence=1)["msg"]
    assert "workers" in compare(*pair, workers=0)["msg"]
    _source, target = pair
    target.stop()
    down = compare(*pair)["msg"]
    assert f"127.0.0.1:{target.port}" in down
    assert "target_login_port" in down


def test_needs_no_more_than_a_user_of_elasticache_may(start_server: Start) -> None:
    acl = "user app on >secret ~* +@all -config -debug -bgsave -save -memory"
    source, target = start_server(config=[acl]), start_server()
    fill(source.client(SOURCE_DB))
    user = {"login_user": "app", "login_password": "secret"}
    compare(source, target, repair=True, **user)
    assert differences(compare(source, target, **user)) == (0, 0, 0)


def test_reaches_a_target_by_tls(tmp_path: Path) -> None:
    certificates = make_tls(tmp_path)
    with (
        RedisServer(tmp_path / "source", "redis") as source,
        RedisServer(tmp_path / "target", "redis", tls=certificates, config=["requirepass a-token"]) as target,
    ):
        source.client(SOURCE_DB).set("key", "1")
        by_tls = {"target_tls": True, "target_ca_certs": str(certificates.ca), "target_login_password": "a-token"}
        args = {**login(source), "target_login_host": "127.0.0.1", "target_login_port": target.port, "db": SOURCE_DB}
        assert run_module("redis_compare", **args, **by_tls, repair=True)["repaired"] == 1
        assert run_module("redis_compare", **args, **by_tls)["equal"]
        for wrong, option in (
            ({"target_ca_certs": None}, "target_ca_certs"),
            ({"target_tls": False}, "target_tls"),
            ({"target_login_password": "wrong-token"}, "target_login_password"),
        ):
            refused = run_module("redis_compare", **{**args, **by_tls, **wrong})["msg"]
            assert option in refused
            assert "-token" not in refused


@pytest.mark.parametrize("command", ["mget", "pexpiretime", "type", "llen", "lrange", "dump"])
@pytest.mark.parametrize("refuses", ["the source", "both"])
def test_names_what_the_acl_forbids(start_server: Start, command: str, refuses: str) -> None:
    acl = f"user app on >secret ~* +@all -{command}"
    source, target = start_server(config=[acl]), start_server(config=[acl] if refuses == "both" else ())
    for client in (source.client(SOURCE_DB), target.client(TARGET_DB)):
        client.hset("hash", "a", 1)
        client.rpush("list", "a")
        client.sadd("set", "a")
        client.zadd("zset", {"a": 1})
    user = {"login_user": "app", "login_password": "secret"}
    if refuses == "both":
        user |= {"target_login_user": "app", "target_login_password": "secret"}
    refused = compare(source, target, **user)
    # Two refusals that are the same bytes are no equal values.
    assert refused["failed"]
    assert command in refused["msg"]
    assert "secret" not in refused["msg"]


@pytest.mark.parametrize("command", ["echo", "mget", "pexpiretime", "hlen", "hgetall", "lrange", "smembers", "dump"])
@pytest.mark.parametrize("lacks", ["the target", "both"])
def test_names_what_a_server_does_not_know(start_server: Start, command: str, lacks: str) -> None:
    without = [f'rename-command {command} ""']
    source, target = start_server(config=without if lacks == "both" else ()), start_server(config=without)
    for client, value in ((source.client(SOURCE_DB), "1"), (target.client(TARGET_DB), "2")):
        client.hset("hash", "a", value)
        client.rpush("list", value)
        client.sadd("set", value)
        client.xadd("stream", {"a": value}, id="1-1")
    refused = compare(source, target)
    assert refused["failed"]
    assert f"unknown command '{command.upper()}'. Is it renamed there?" in refused["msg"]
    assert f"127.0.0.1:{(source if lacks == 'both' else target).port}" in refused["msg"]


@pytest.fixture
def end_writes(pair: tuple[RedisServer, RedisServer]) -> Iterator[Callable[[], None]]:
    """Something keeps changing the source until this is called."""
    stop = threading.Event()
    client = pair[0].client(SOURCE_DB)

    def write() -> None:
        at = 0
        while not stop.wait(0.001):
            at += 1
            client.hset(f"hash:{at % 50}", f"field{at}", at)
            client.set(f"new:{at}", at, px=5 if at % 3 == 0 else None)
            client.delete(f"old:{at}")

    client.mset({f"old:{number}": 1 for number in range(5000)})
    thread = threading.Thread(target=write)
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    yield end
    end()


def test_catches_up_with_a_source_that_changes(
    pair: tuple[RedisServer, RedisServer], end_writes: Callable[[], None]
) -> None:
    source, target = pair
    assert compare(*pair, repair=True)["missing"] > 3000
    for _round in range(3):
        assert "failed" not in compare(*pair, repair=True)
    end_writes()
    # What was written in the last round, and nothing when the writes have ended.
    wait_for(lambda: source.client(SOURCE_DB).info("keyspace")["db1"].get("expires", 0) == 0, "the short TTLs")
    compare(*pair, repair=True)
    assert differences(compare(*pair)) == (0, 0, 0)
    assert contents(source, SOURCE_DB) == contents(target, TARGET_DB)


def test_tells_which_side_broke(pair: tuple[RedisServer, RedisServer]) -> None:
    source, target = pair
    source.client(SOURCE_DB).mset({f"key:{number}": 1 for number in range(5000)})

    def kill_when_asked() -> None:
        wait_for(lambda: target.client().info("commandstats").get("cmdstat_mget"), "the comparison")
        target.kill()

    thread = threading.Thread(target=kill_when_asked)
    thread.start()
    # Held to a rate, so that it is still at work then.
    refused = compare(*pair, max_keys_per_second=2000)
    thread.join()
    assert refused["msg"].startswith(f"Redis at 127.0.0.1:{target.port}, database {TARGET_DB}: ")
    assert "Is the server still up" in refused["msg"]


@pytest.fixture
def busy_when_asked(pair: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch) -> Iterator[EndlessScript]:
    """The target becomes busy once the connections are made; that it is silent for long would not be waited for."""
    monkeypatch.setattr(server_module, "SILENCE_TIMEOUT_S", 3600)
    pair[0].client(SOURCE_DB).mset({"a": 1, "b": 2})
    pair[1].client(TARGET_DB).mset({"a": 1, "b": 2})
    look_forward = Worker.look_forward
    with EndlessScript(pair[1]) as script:

        def look(worker: Worker, keys: list[bytes]) -> Any:
            monkeypatch.setattr(Worker, "look_forward", look_forward)
            script.start()
            return look_forward(worker, keys)

        monkeypatch.setattr(Worker, "look_forward", look)
        yield script


@pytest.mark.usefixtures("busy_when_asked")
def test_a_side_that_stays_busy_is_told(pair: tuple[RedisServer, RedisServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SETBACK_DELAYS_S", (0.01, 0.01))
    refused = compare(*pair, workers=1)
    side = f"Redis at 127.0.0.1:{pair[1].port}, database {TARGET_DB}"
    assert refused["failed"] and refused["msg"].startswith(f"{side} refused a command of the comparison: BUSY "), (
        refused
    )
    assert refused["msg"].endswith(". It was waited for 0 s. Run again when that is over"), refused
    assert "ACL" not in refused["msg"]


def test_a_side_that_is_busy_for_a_while_is_waited_for(
    pair: tuple[RedisServer, RedisServer], busy_when_asked: EndlessScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Delays(tuple[float, ...]):
        def __iter__(self) -> Iterator[float]:
            yield 0.01
            if busy_when_asked.is_running:
                busy_when_asked.end()
            yield 0.01

    monkeypatch.setattr(server_module, "SETBACK_DELAYS_S", Delays())
    assert differences(compare(*pair, workers=1)) == (0, 0, 0)
    assert not busy_when_asked.is_running
