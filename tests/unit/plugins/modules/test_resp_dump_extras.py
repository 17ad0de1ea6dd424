# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dump carries beside keys, values and TTLs: the facts that eviction goes by, and functions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.dumps import commands_of, dump, load, many, must_dump
from support.keyspaces import contents
from support.modules import run_module
from support.old_redis import OldRedis

from lab.nodes import RedisServer, wait_for

Start = Callable[..., RedisServer]

LIBRARY = "#!lua name=lib{name}\nredis.register_function('f{name}', function() return '{says}' end)"


def from_file(server: RedisServer, dest: Path, **options: Any) -> dict[str, Any]:
    """As dump, of what the server saves."""
    with server.client() as client:
        client.save()
    return run_module("resp_dump", **{"rdb": str(server.rdb), "db": 1, "dest": str(dest), **options})


FROM = pytest.mark.parametrize("dump_from", [dump, from_file])


# In seconds, as the keys are restored with them.
IDLE = {b"fresh": 0, b"day": 86_400, b"month": 30 * 86_400, b"with ttl": 5_000}


class TestEviction:
    def fill(self, server: RedisServer, how: str, facts: dict[bytes, int]) -> None:
        with server.client(1) as client:
            client.set("template", "v")
            payload = client.dump("template")
            client.delete("template")
            for key, value in facts.items():
                end = 4_000_000_000_000 if key == b"with ttl" else 0
                client.execute_command("RESTORE", key, end, payload, "ABSTTL", how, value)

    def facts(self, server: RedisServer, how: str, db: int) -> dict[bytes, int]:
        with server.client(db) as client:
            return {key: client.execute_command("OBJECT", how, key) for key in client.scan_iter()}

    @FROM
    def test_the_time_since_the_last_use_arrives(self, start_server: Start, tmp_path: Path, dump_from: Any) -> None:
        # An RDB has these facts where the policy goes by them.
        source = start_server("--maxmemory-policy", "allkeys-lru", "--maxmemory", "1gb")
        target = start_server("--maxmemory-policy", "allkeys-lru", "--maxmemory", "1gb")
        self.fill(source, "IDLETIME", IDLE)
        dumped = dump_from(source, tmp_path / "d", eviction=True)
        assert dumped["keys"] == 4, dumped
        assert load(target, tmp_path / "d")["dbsize_after"] == 4
        found = self.facts(target, "IDLETIME", 0)
        assert all(0 <= found[key] - idle < 60 for key, idle in IDLE.items())
        with target.client() as client:
            assert (client.pexpiretime("with ttl"), client.get("with ttl")) == (4_000_000_000_000, b"v")

    @FROM
    def test_the_frequency_arrives(self, start_server: Start, tmp_path: Path, dump_from: Any) -> None:
        source = start_server("--maxmemory-policy", "volatile-lfu", "--maxmemory", "1gb", "--lfu-decay-time", "0")
        target = start_server("--maxmemory-policy", "allkeys-lfu", "--maxmemory", "1gb", "--lfu-decay-time", "0")
        facts = {b"never": 0, b"often": 255, b"with ttl": 77}
        self.fill(source, "FREQ", facts)
        dumped = dump_from(source, tmp_path / "d", eviction=True)
        assert dumped["keys"] == 3, dumped
        load(target, tmp_path / "d")
        # Asking for it is a use of the key only where the dice say so, which for 0 they always do.
        assert self.facts(target, "FREQ", 0) == facts

    @FROM
    def test_nothing_of_it_is_dumped_without_being_asked(
        self, start_server: Start, tmp_path: Path, dump_from: Any
    ) -> None:
        source = start_server("--maxmemory-policy", "allkeys-lru", "--maxmemory", "1gb")
        self.fill(source, "IDLETIME", IDLE)
        dump_from(source, tmp_path / "d")
        assert not any(b"IDLETIME" in command for command in commands_of(tmp_path / "d"))
        again = dump_from(source, tmp_path / "d", eviction=True)
        assert again["failed"] and "is another dump (eviction=None)" in again["msg"]

    def test_a_key_that_goes_meanwhile_is_left_out(self, redis_server: RedisServer, tmp_path: Path) -> None:
        with redis_server.client(1) as client:
            client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
            client.set("stays", 1)
            client.set("brief", 1, px=1)
            now = time.monotonic()
            wait_for(lambda: time.monotonic() > now + 0.01, "the end of brief", interval=0.005)
        dumped = dump(redis_server, tmp_path / "d", eviction=True)
        assert dumped["keys"] == 1 and dumped["expired"] <= 1, dumped

    def test_an_old_server_tells_it_too(self, tmp_path: Path) -> None:
        with OldRedis(tmp_path / "old") as old:
            many(old, 50)
            dumped = dump(old, tmp_path / "d", eviction=True, functions=True)
            assert dumped["keys"] == 50
        assert all(command[-2] == b"IDLETIME" for command in commands_of(tmp_path / "d"))

    def test_other_commands_cannot_say_it(self, redis_server: RedisServer, tmp_path: Path) -> None:
        result = dump(redis_server, tmp_path / "d", eviction=True, format="commands")
        assert result["failed"] and "eviction=true needs format=restore" in result["msg"]

    def test_reading_is_no_use(self, tmp_path: Path) -> None:
        """Where the server lets a client say so."""
        with RedisServer(tmp_path / "server", "valkey") as server:
            self.fill(server, "IDLETIME", IDLE)
            dump(server, tmp_path / "d")
            assert self.facts(server, "IDLETIME", 1)[b"month"] >= IDLE[b"month"]


@pytest.mark.parametrize(("dump_from", "form"), [(dump, "restore"), (dump, "commands"), (from_file, "restore")])
def test_a_value_of_seventy_megabytes_arrives(tmp_path: Path, dump_from: Any, form: str) -> None:
    with RedisServer(tmp_path / "one") as source, RedisServer(tmp_path / "two") as target:
        with source.client(1) as client:
            client.set(b"\x00\r\n\xff", b"\xff\r\n\x00" + random.Random(5).randbytes(70 << 20), px=86_400_000)
            client.set("", "")
        dumped = dump_from(source, tmp_path / "d", format=form)
        assert (dumped["keys"], dumped["types"]) == (2, {"string": 2}), dumped
        load(target, tmp_path / "d")
        assert contents(target) == contents(source, 1)


class TestFunctions:
    @pytest.mark.parametrize("form", ["restore", "commands"])
    @FROM
    def test_arrive_before_the_keys(self, start_server: Start, tmp_path: Path, dump_from: Any, form: str) -> None:
        source, target = start_server(), start_server()
        many(source, 10)
        with source.client() as client:
            for name in "ab":
                client.function_load(LIBRARY.format(name=name, says="new" * 100))
        with target.client() as client:
            client.function_load(LIBRARY.format(name="b", says="old"))
        dumped = dump_from(source, tmp_path / "d", functions=True, format=form)
        assert dumped["keys"] == 10, dumped
        first = next(commands_of(tmp_path / "d"))
        as_dump = form == "restore" and dump_from is dump
        assert first[:2] == [b"FUNCTION", b"RESTORE" if as_dump else b"LOAD"]
        assert dumped["commands"] == 10 + (1 if as_dump else 2)
        assert load(target, tmp_path / "d")["replies"] == dumped["commands"]
        with target.client() as client:
            assert {client.fcall("fa", 0), client.fcall("fb", 0)} == {b"new" * 100}

    def test_an_older_engine_takes_them_beside_strings(self, tmp_path: Path) -> None:
        """These are no payloads, so that only the functions have a version that it may refuse."""
        with RedisServer(tmp_path / "valkey", "valkey") as new, RedisServer(tmp_path / "redis", "redis") as old:
            with new.client() as client:
                client.function_load(LIBRARY.format(name="a", says="x"))
            for keys in (0, 10):
                many(new, keys)
                must_dump(new, tmp_path / "d", functions=True, force=True)
                assert load(old, tmp_path / "d").get("replies") == 1 + keys
                with old.client() as client:
                    assert (client.fcall("fa", 0), client.dbsize()) == (b"x", keys)

    @FROM
    def test_none_are_dumped_where_there_are_none(
        self, redis_server: RedisServer, tmp_path: Path, dump_from: Any
    ) -> None:
        many(redis_server, 10)
        assert dump_from(redis_server, tmp_path / "d", functions=True)["commands"] == 10

    @FROM
    def test_nothing_of_it_is_dumped_without_being_asked(
        self, redis_server: RedisServer, tmp_path: Path, dump_from: Any
    ) -> None:
        many(redis_server, 10)
        with redis_server.client() as client:
            client.function_load(LIBRARY.format(name="a", says="x"))
        assert dump_from(redis_server, tmp_path / "d")["commands"] == 10

    def test_a_user_who_may_not_is_told_how_to_do_without(self, start_server: Start, tmp_path: Path) -> None:
        server = start_server(config=["user reader on >pass ~* +@all -function"])
        result = dump(server, tmp_path / "d", functions=True, login_user="reader", login_password="pass")
        assert result["failed"] and "To leave out the functions, set functions=false" in result["msg"]
