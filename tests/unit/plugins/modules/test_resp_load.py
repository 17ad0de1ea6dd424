# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_load into one server: what a dump holds arrives, and what cannot be loaded is told before or where it stops."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from support.dumps import load, many, must_dump
from support.keyspaces import contents, login, run_id, sizes
from support.modules import run_module
from support.proxies import switched_after_approval

from ansible_collections.keyferry.redis.plugins.module_utils.resp import command
from ansible_collections.keyferry.redis.plugins.modules import resp_load
from lab.nodes import RedisServer, wait_for
from lab.sample_data import fill

Start = Callable[..., RedisServer]


class TestOurs:
    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize("workers", [None, 1, 4])
    def test_go_into_the_database_they_name(
        self, start_server: Start, redis_server: RedisServer, tmp_path: Path, workers: int | None
    ) -> None:
        fill(("127.0.0.1", redis_server.port), 2000, 1)
        must_dump(redis_server, tmp_path / "d", target_db=9)
        target = start_server()
        result = load(target, tmp_path / "d", workers=workers)
        assert {**result, "elapsed": 0} == {
            **{"changed": True, "keys": 2000, "commands": 2000, "replies": 2000, "errors": 0},
            **{"dbsize_before": 0, "dbsize_after": 2000, "elapsed": 0, "invocation": result["invocation"]},
        }
        assert contents(target, 9) == contents(redis_server, 1)

    @pytest.mark.parametrize("batch_size", [1, 7, 5000])
    def test_are_sent_a_few_commands_at_a_time(self, redis_server: RedisServer, sample: Path, batch_size: int) -> None:
        assert load(redis_server, sample, db=4, batch_size=batch_size)["replies"] == 40
        assert contents(redis_server, 4) == contents(redis_server, 1)
        again = load(redis_server, sample, db=4, batch_size=batch_size, replace=False)
        assert "command 1 of 40" in again["msg"] and "BUSYKEY" in again["msg"]
        assert "must be at least 1" in load(redis_server, sample, batch_size=0)["msg"]

    def test_go_into_another_database(self, redis_server: RedisServer, sample: Path) -> None:
        assert load(redis_server, sample, db=4)["dbsize_after"] == 40
        assert contents(redis_server, 4) == contents(redis_server, 1)
        assert sizes(redis_server) == {"db1": 40, "db4": 40}

    def test_loaded_again_do_no_harm(self, redis_server: RedisServer, sample: Path) -> None:
        load(redis_server, sample)
        again = load(redis_server, sample)
        assert (again["replies"], again["dbsize_before"], again["dbsize_after"]) == (40, 40, 40)
        assert contents(redis_server, 0) == contents(redis_server, 1)

    def test_check_mode_sends_nothing(self, redis_server: RedisServer, sample: Path) -> None:
        result = run_module("resp_load", **login(redis_server), src=str(sample), _check=True)
        assert (result["changed"], result["keys"], result["replies"]) == (True, 40, 0)
        assert sizes(redis_server) == {"db1": 40}

    def test_without_replace_it_stops_at_the_first_key(self, redis_server: RedisServer, sample: Path) -> None:
        with redis_server.client() as client:
            client.set("empty value", "mine")
        result = load(redis_server, sample, replace=False)
        assert result["failed"] and re.search("(SET|RESTORE) of key 'empty value', command ", result["msg"]), result
        assert "BUSYKEY" in result["msg"] and "was not overwritten" in result["msg"]
        with redis_server.client() as client:
            assert client.get("empty value") == b"mine"
            client.flushdb()
        assert load(redis_server, sample, replace=False)["replies"] == 40
        assert contents(redis_server, 0) == contents(redis_server, 1)


class TestDamage:
    def test_nothing_of_a_dump_cut_or_changed_is_sent(
        self, start_server: Start, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        """At every byte dump_file refuses it (its unit tests); here the module does, before the first command."""
        with redis_server.client(1) as client:
            client.mset({"a": 1, "b": 2})
        must_dump(redis_server, tmp_path / "d")
        whole = (tmp_path / "d").read_bytes()
        target = start_server()
        broken = tmp_path / "broken"
        for at in range(0, len(whole), 17):
            broken.write_bytes(whole[:at])
            assert load(target, broken)["failed"]
            broken.write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
            assert load(target, broken)["failed"]
        assert sizes(target) == {}
        with target.client() as client:
            assert "cmdstat_restore" not in client.info("commandstats")

    @pytest.mark.parametrize("how", ["replaced", "written to"])
    def test_nothing_is_sent_of_a_file_that_was_not_read(
        self, redis_server: RedisServer, sample: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        """Its commands would begin elsewhere."""
        check = resp_load.check_target

        def check_and_change(*args: Any) -> int | None:
            stamp = check(*args)
            if how == "replaced":
                other = sample.with_name("other")
                other.write_bytes(sample.read_bytes())
                other.replace(sample)
            else:
                sample.write_bytes(command("SET", "strange", 1))
            return stamp

        monkeypatch.setattr(resp_load, "check_target", check_and_change)
        result = load(redis_server, sample)
        assert result["failed"] and f"{sample} was replaced or written to since" in result["msg"]
        assert sizes(redis_server) == {"db1": 40}

    def test_a_dump_that_is_not_there_is_told(self, redis_server: RedisServer, tmp_path: Path) -> None:
        result = load(redis_server, tmp_path / "none")
        assert result["failed"] and "Cannot read the dump" in result["msg"]


class TestOfAnotherTool:
    def test_a_dump_like_those_of_redis_dump_go_arrives(self, redis_server: RedisServer, tmp_path: Path) -> None:
        parts = [
            command("SELECT", 0),
            command("SET", "text", b"\xff\r\n*1\r\n"),
            command("EXPIREAT", "text", 4102444800),
        ]
        parts += [command("RPUSH", "list", *range(5)), command("ZADD", "board", "1.5", "a", "inf", "b")]
        (tmp_path / "d").write_bytes(b"".join(parts))
        result = load(redis_server, tmp_path / "d", db=3)
        assert (result["keys"], result["commands"], result["replies"], result["dbsize_after"]) == (3, 4, 4, 3)
        with redis_server.client(3) as client:
            assert (client.get("text"), client.expiretime("text")) == (b"\xff\r\n*1\r\n", 4102444800)
            assert client.lrange("list", 0, -1) == [b"0", b"1", b"2", b"3", b"4"]
            assert client.zscore("board", "b") == float("inf")

    def test_a_dump_like_an_append_only_file_arrives(self, redis_server: RedisServer, tmp_path: Path) -> None:
        """Several databases, transactions, and commands that answer with more than a line."""
        parts = [command("SELECT", 0), command("SET", "a", 1), command("SELECT", 5), command("MULTI")]
        parts += [command("INCRBY", "n", 5), command("LPUSH", "l", "x"), command("EXEC"), command("GETSET", "n", "9")]
        (tmp_path / "d").write_bytes(b"".join([*parts, command("SELECT", 0), command("APPEND", "a", 2)]))
        result = load(redis_server, tmp_path / "d")
        assert (result["replies"], result["dbsize_after"]) == (7, 3)
        assert sizes(redis_server) == {"db0": 1, "db5": 2}
        with redis_server.client() as client:
            assert client.get("a") == b"12"

    def test_many_selects_are_followed(self, redis_server: RedisServer, tmp_path: Path) -> None:
        parts = [command("SELECT", at % 16) + command("SET", f"k{at}", at) for at in range(300)]
        (tmp_path / "d").write_bytes(b"".join(parts))
        assert load(redis_server, tmp_path / "d")["replies"] == 300
        assert sum(sizes(redis_server).values()) == 300

    def test_the_first_refusal_is_named(self, redis_server: RedisServer, tmp_path: Path) -> None:
        parts = [command("SET", "text", 1), command("RPUSH", "text", 1), command("SET", "later", 1)]
        (tmp_path / "d").write_bytes(b"".join(parts))
        result = load(redis_server, tmp_path / "d")
        assert f"refused RPUSH of key 'text', command 2 of 3 at byte {len(parts[0])} of" in result["msg"]
        assert "WRONGTYPE" in result["msg"] and "resume=true" not in result["msg"]

    def test_what_it_cannot_keep_is_refused(self, redis_server: RedisServer, tmp_path: Path) -> None:
        (tmp_path / "d").write_bytes(command("SET", "a", 1) + command("SELECT", 2) + command("SET", "b", 1))
        several = load(redis_server, tmp_path / "d", db=4)
        assert "selects the databases 0, 2; db=4 would pour them into one" in several["msg"]
        keeping = load(redis_server, tmp_path / "d", replace=False)
        assert "replace=false cannot be kept" in keeping["msg"]
        assert sizes(redis_server) == {}


class TestTheTarget:
    def test_a_protected_server_is_not_written_to(self, redis_server: RedisServer, sample: Path) -> None:
        result = load(redis_server, sample, protected_run_ids=[run_id(redis_server)])
        assert result["failed"] and "protected_run_ids forbids" in result["msg"]
        assert sizes(redis_server) == {"db1": 40}

    def test_another_server_that_answers_by_then_is_not_written_to(
        self, start_server: Start, redis_server: RedisServer, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with switched_after_approval(resp_load, redis_server, start_server(), monkeypatch) as (port, other):
            result = load(redis_server, sample, login_port=port)
            assert result["failed"] and "Another server process answers at" in result["msg"]
            assert sizes(other) == {"db1": 1}

    def test_a_database_that_it_does_not_have_is_told(self, redis_server: RedisServer, sample: Path) -> None:
        result = load(redis_server, sample, db=99)
        assert result["failed"] and "DB index is out of range" in result["msg"]

    def test_a_replica_is_told_with_its_primary(
        self, start_server: Start, redis_server: RedisServer, sample: Path
    ) -> None:
        replica = start_server()
        with replica.client() as client:
            client.replicaof("127.0.0.1", redis_server.port)
        result = load(replica, sample)
        assert result["failed"]
        assert f"is a read-only replica of 127.0.0.1:{redis_server.port}. Load into the primary" in result["msg"]

    def test_one_without_memory_is_told_with_the_key(
        self, start_server: Start, redis_server: RedisServer, sample: Path
    ) -> None:
        target = start_server("--maxmemory", "2000000", "--maxmemory-policy", "noeviction")
        result = load(target, sample)
        assert result["failed"] and "OOM command not allowed" in result["msg"]
        assert re.search(r"refused (SET|RESTORE) of key '.* of 40 at byte", result["msg"]), result
        done = re.search(r"At least (\d+) of 40 commands are done: when the cause is gone, load again", result["msg"])
        with target.client() as client:
            assert done and int(done[1]) <= client.dbsize(), result

    def test_one_with_too_many_clients_is_told(self, start_server: Start, sample: Path) -> None:
        target = start_server("--maxclients", "1")

        def answers() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                return bool(client.ping())
            return False

        with target.client() as client:
            wait_for(answers, "the connection of the start to be gone", interval=0.01)
            result = load(target, sample)
        assert "max number of clients reached. Raise its maxclients, or use fewer workers" in result["msg"]

    def test_a_server_that_evicts_what_it_gets_is_told(
        self, start_server: Start, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        """It answers OK to every command."""
        many(redis_server, 20_000)
        must_dump(redis_server, tmp_path / "d")
        target = start_server("--maxmemory", "2000000", "--maxmemory-policy", "allkeys-lru")
        result = load(target, tmp_path / "d")
        assert result["failed"] and re.search(r"evicted \d+ keys while .*/d was loaded", result["msg"]), result

    def test_an_engine_too_old_for_the_payloads_is_sent_nothing(self, tmp_path: Path) -> None:
        """Valkey 9 writes payloads of RDB version 80, which Redis 7.0 refuses."""
        with RedisServer(tmp_path / "valkey", "valkey") as new, RedisServer(tmp_path / "redis", "redis") as old:
            fill(("127.0.0.1", new.port), 40, 1)
            must_dump(new, tmp_path / "d")
            result = load(old, tmp_path / "d")
            assert result["failed"] and "reads DUMP payloads up to RDB version 10; those in" in result["msg"]
            assert "have version 80, and among them are values of the types 20, 21, which" in result["msg"]
            assert "version 7.0" in result["msg"] and "format=commands" in result["msg"]
            assert sizes(old) == {}
            fill(("127.0.0.1", old.port), 40, 1)
            must_dump(old, tmp_path / "e")
            assert load(new, tmp_path / "e")["dbsize_after"] == 40
            assert {key: ttl for key, (_digest, ttl) in contents(new).items()} == {
                key: ttl for key, (_digest, ttl) in contents(old, 1).items()
            }

    @pytest.mark.parametrize("replace", [True, False])
    def test_an_older_engine_that_knows_all_types_takes_them(self, tmp_path: Path, replace: bool) -> None:
        """The version in each payload is lowered then; the server checks the new checksum."""
        with RedisServer(tmp_path / "valkey", "valkey") as new, RedisServer(tmp_path / "redis", "redis") as old:
            with new.client(1) as client:
                client.set("string", "x" * 3000, px=10**9)
                client.hset("hash", mapping={"f": "v"})
                client.rpush("list", "a", "b")
                client.zadd("zset", {"m": 1.5})
                client.sadd("numbers", 1, 2, 3)
            must_dump(new, tmp_path / "d")
            assert load(old, tmp_path / "d", replace=replace)["replies"] == 5
            if replace:
                load(old, tmp_path / "d")
            found, expected = contents(old), contents(new, 1)
            # The two engines do not write a score in the same way when they make a digest.
            assert found.pop(b"zset")[1] == expected.pop(b"zset")[1] == -1
            assert found == expected
            with old.client() as client:
                assert client.zscore("zset", "m") == 1.5

    def test_a_password_is_wanted_before_anything_else(self, start_server: Start, sample: Path) -> None:
        target = start_server("--requirepass", "good")
        result = load(target, sample)
        assert result["failed"] and "Check login_user and login_password" in result["msg"]
        assert load(target, sample, login_password="good")["replies"] == 40

    def test_a_user_who_may_not_write_is_told(self, redis_server: RedisServer, sample: Path) -> None:
        with redis_server.client() as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">pass", "~*", "+@all", "-restore")
        result = load(redis_server, sample, login_user="reader", login_password="pass")
        assert result["failed"] and "NOPERM" in result["msg"]
