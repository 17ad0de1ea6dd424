# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How resp_dump reads strings, by MGET: the same arrives as by DUMP, whatever becomes of a key meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.dumps import commands_of, dump, load, many
from support.keyspaces import contents
from support.old_redis import OldRedis

from ansible_collections.keyferry.redis.plugins.module_utils import dump_wire, dump_worker
from lab.nodes import RedisServer, free_port, wait_for
from lab.sample_data import fill

Start = Callable[..., RedisServer]
FORMATS = pytest.mark.parametrize("form", ["restore", "commands"])

# Where the head of a string in an RDB changes its size, and where Redis changes how it keeps one.
SIZES = (0, 1, 11, 12, 20, 21, 43, 44, 45, 63, 64, 65, 16_383, 16_384, 16_385, 1 << 20)
NUMBERS = (0, 9_999, 10_000, -1, 127, -128, 1 << 31, -(1 << 63), (1 << 63) - 1, 1 << 63, "007", "+1", "1.5", "-0")


def calls(server: RedisServer, command: str) -> int:
    with server.client() as client:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


def encodings(server: RedisServer, db: int) -> dict[bytes, bytes]:
    with server.client(db) as client:
        return {key: client.object("encoding", key) for key in client.scan_iter(count=1000)}


@FORMATS
def test_strings_of_any_size_and_kind_arrive(start_server: Start, tmp_path: Path, form: str) -> None:
    source, target = start_server(), start_server()
    rng = random.Random(11)
    with source.client(1) as client:
        for size in SIZES:
            client.set(f"size:{size}", rng.randbytes(size), px=rng.choice([None, 10**8]))
            client.set(f"one byte, {size} times", b"\xff" * size)
        for number in NUMBERS:
            client.set(f"number:{number}", number)
        client.setbit("bits", 5000, 1)
        client.pfadd("hyperloglog", *range(1000))
    dumped = dump(source, tmp_path / "d", format=form)
    count = 2 * len(SIZES) + len(NUMBERS) + 2
    assert (dumped["keys"], dumped["types"], calls(source, "dump")) == (count, {"string": count}, 0), dumped
    load(target, tmp_path / "d")
    assert contents(target) == contents(source, 1)
    # Redis keeps a string that was changed in place with room behind it, and its copy without.
    changed = {b"bits", b"hyperloglog"}
    assert {key: how for key, how in encodings(target, 0).items() if key not in changed} == {
        key: how for key, how in encodings(source, 1).items() if key not in changed
    }
    with target.client() as client:
        assert client.pfcount("hyperloglog") == source.client(1).pfcount("hyperloglog")


@FORMATS
def test_a_key_whose_type_changes_between_the_two_questions_is_dumped_as_it_is_then(
    start_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    source, target = start_server(), start_server()
    names = [f"{kind}:{at}" for at in range(40) for kind in ("a list", "one that goes", "one that ends", "string")]
    with source.client(1) as client:
        for name in names:
            client.set(name, "x") if name.startswith("string") else client.rpush(name, "x", "y")
    about, asked = dump_wire.Payloads.about, []

    def change_first(self: Any, keys: list[bytes], together: int) -> bytes:
        with source.client(1) as client:
            for name in names:
                if name.startswith("a list"):
                    client.set(name, "a string now", pxat=4_000_000_000_000)
                if name.startswith("one that goes"):
                    client.delete(name)
                if name.startswith("one that ends"):
                    client.pexpireat(name, 1)
        asked.append(len(keys))
        return about(self, keys, together)

    monkeypatch.setattr(dump_wire.Payloads, "about", change_first)
    # All keys are asked about at once, so that the second question is the only one by DUMP.
    monkeypatch.setattr(dump_worker, "_FIRST_KEYS", 1000)
    monkeypatch.setattr(dump_worker.Worker, "_adapt", lambda *_args: None)
    dumped = dump(source, tmp_path / "d", format=form)
    assert asked == [120]
    assert (dumped["keys"], dumped["expired"], dumped["types"]) == (80, 80, {"string": 80}), dumped
    load(target, tmp_path / "d")
    assert contents(target) == contents(source, 1)


def test_most_keys_are_asked_once(redis_server: RedisServer, tmp_path: Path) -> None:
    """What a server holds decides what it is asked first."""
    with redis_server.client(1) as client, client.pipeline(transaction=False) as pipeline:
        for at in range(5_000):
            pipeline.rpush(f"list:{at}", at)
        pipeline.execute()
    many(redis_server, 100)
    assert dump(redis_server, tmp_path / "d", batch_size=100)["keys"] == 5_100
    # About the first hundred keys or two, before it is known that most are none.
    assert calls(redis_server, "dump") > 4_900 and calls(redis_server, "pexpiretime") < 5_600
    with redis_server.client(1) as client:
        client.config_resetstat()
    many(redis_server, 100_000)
    assert dump(redis_server, tmp_path / "e", batch_size=100)["keys"] == 105_000
    assert calls(redis_server, "dump") < 20_000


class TestWhereItIsNotPossible:
    def test_a_user_who_may_not_asks_by_dump(self, start_server: Start, tmp_path: Path) -> None:
        rights = "+@connection +info +dbsize +scan +multi +exec +pexpiretime +dump"
        server = start_server(config=[f"user old on >pass ~* {rights}", f"user new on >pass ~* {rights} +mget"])
        many(server, 50)
        for user, dumps in (("old", 50), ("new", 50)):
            result = dump(server, tmp_path / user, login_user=user, login_password="pass")
            assert (result.get("keys"), calls(server, "dump")) == (50, dumps), result
        old, new = (sorted(commands_of(tmp_path / user), key=lambda each: each[1]) for user in ("old", "new"))
        assert [(b"RESTORE", each[1]) for each in new] == [(each[0], each[1]) for each in old]
        assert {each[0] for each in new} == {b"SET"}

    def test_a_server_that_has_renamed_it_is_asked_by_dump(self, start_server: Start, tmp_path: Path) -> None:
        server = start_server("--rename-command", "MGET", "hidden")
        many(server, 50)
        assert (dump(server, tmp_path / "d").get("keys"), calls(server, "dump")) == (50, 50)

    def test_keys_of_a_cluster_are_asked_for_one_by_one(self, start_server: Start, tmp_path: Path) -> None:
        source = start_server("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
        with source.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_for(lambda: client.cluster("INFO")["cluster_state"] == "ok", "the cluster")
        fill(("127.0.0.1", source.port), 300, 0)
        assert dump(source, tmp_path / "d", db=0)["keys"] == 300
        assert calls(source, "mget") > 100
        target = start_server()
        load(target, tmp_path / "d")
        assert contents(target) == contents(source)


def test_a_dump_of_strings_fits_every_server(tmp_path: Path) -> None:
    """They have no payload, whatever server they came from."""
    with RedisServer(tmp_path / "new", "valkey") as source, OldRedis(tmp_path / "old", "redis-5") as target:
        many(source, 200)
        with source.client(1) as client:
            client.set("ends", 1, pxat=4_000_000_000_000)
        dump(source, tmp_path / "d")
        loaded = load(target, tmp_path / "d")
        assert loaded["dbsize_after"] == 201, loaded
        with target.client() as client:
            assert client.pttl("ends") > 0 and client.get("key:7") == b"value:7"
