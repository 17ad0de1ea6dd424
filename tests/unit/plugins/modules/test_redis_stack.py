# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Redis 7.4 with its modules: values of modules, fields that expire, and its RDB version 12."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.dumps import load, must_dump
from support.keyspaces import contents
from support.modules import run_module

from lab.nodes import RedisServer
from lab.sample_data import fill

MODULE_KEYS = 4


@pytest.fixture
def source(tmp_path: Path) -> Iterator[RedisServer]:
    """A server with values of every loaded module, hashes whose fields expire, and plain ones, in database 1."""
    with RedisServer(tmp_path / "source", "redis-stack") as server:
        fill(("127.0.0.1", server.port), 300, 1)
        with server.client(1) as client:
            client.execute_command("JSON.SET", "json", "$", '{"a": [1, 2.5, null, "é"], "b": {"c": true}}')
            client.execute_command("BF.RESERVE", "bloom", 0.01, 1000)
            client.execute_command("BF.MADD", "bloom", *range(500))
            client.execute_command("CF.ADD", "cuckoo", "x")
            client.execute_command("TS.CREATE", "series", "LABELS", "unit", "ms")
            for at in range(1, 200):
                client.execute_command("TS.ADD", "series", at, at * 1.5)
            expire_fields(client)
        yield server


def expire_fields(client: Any) -> None:
    """A small hash (a listpack) and a large one (a table), some of whose fields expire."""
    now = int(time.time() * 1000)
    for name, size in (("hash:small", 5), ("hash:large", 900)):
        client.hset(name, mapping={f"f{at}": f"v{at}" for at in range(size)})
        for at in range(0, size, 2):
            client.execute_command("HPEXPIREAT", name, now + 10**8 + at, "FIELDS", 1, f"f{at}")


def facts(server: RedisServer, db: int) -> dict[str, Any]:
    """What the modules and the hashes answer: not all modules can make a digest."""
    with server.client(db) as client:
        found: dict[str, Any] = {
            "json": client.execute_command("JSON.GET", "json", "$"),
            "bloom": client.execute_command("BF.MEXISTS", "bloom", *range(600)),
            "cuckoo": client.execute_command("CF.EXISTS", "cuckoo", "x"),
            "series": client.execute_command("TS.RANGE", "series", "-", "+"),
        }
        found |= expiries(client)
    return found


def expiries(client: Any) -> dict[str, Any]:
    found = {}
    for name in ("hash:small", "hash:large"):
        fields = sorted(client.hgetall(name).items())
        ends = client.execute_command("HPEXPIRETIME", name, "FIELDS", len(fields), *(field for field, _value in fields))
        found[name] = (fields, ends)
    return found


def plain(server: RedisServer, db: int) -> dict[bytes, Any]:
    return {key: value for key, value in contents(server, db).items() if key not in (b"cuckoo", b"bloom", b"series")}


def test_values_of_modules_are_carried(source: RedisServer, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "target", "redis-stack") as target:
        dumped = must_dump(source, tmp_path / "d")
        loaded = load(target, tmp_path / "d")
        assert loaded.get("replies") == dumped["keys"] == 300 + MODULE_KEYS + 2, loaded
        assert facts(target, 0) == facts(source, 1)
        assert plain(target, 0) == plain(source, 1)


def test_an_rdb_file_of_version_12_is_dumped_and_cut(source: RedisServer, tmp_path: Path) -> None:
    """As a dump's source, and cut by rdb_extract: the same values either way."""
    with source.client() as client:
        client.save()
    rdb = tmp_path / "export.rdb"
    shutil.copy(source.rdb, rdb)
    dumped = run_module("resp_dump", rdb=str(rdb), db=1, dest=str(tmp_path / "d"))
    assert dumped.get("keys") == 300 + MODULE_KEYS + 2, dumped
    with RedisServer(tmp_path / "target", "redis-stack") as target:
        loaded = load(target, tmp_path / "d")
        assert loaded.get("replies") == dumped["keys"], loaded
        assert facts(target, 0) == facts(source, 1)
        assert plain(target, 0) == plain(source, 1)
    (tmp_path / "cut").mkdir()
    cut = run_module("rdb_extract", src=str(rdb), dest=str(tmp_path / "cut" / "dump.rdb"), db=1, target_db=3)
    assert (cut.get("keys"), cut.get("rdb_version")) == (300 + MODULE_KEYS + 2, "REDIS0012"), cut
    with RedisServer(tmp_path / "cut", "redis-stack") as target:
        assert facts(target, 3) == facts(source, 1)
        assert plain(target, 3) == plain(source, 1)


@pytest.mark.parametrize("engine", ["redis-stack", "redis", "valkey"])
def test_fields_that_expire_arrive_as_commands_or_are_refused(tmp_path: Path, engine: str) -> None:
    with RedisServer(tmp_path / "source", "redis-stack") as source, RedisServer(tmp_path / "target", engine) as target:
        with source.client(1) as client:
            expire_fields(client)
            client.set("k", "v")
            before = expiries(client)
        must_dump(source, tmp_path / "d", format="commands")
        result = load(target, tmp_path / "d")
        if engine == "redis":
            # 7.0 has no fields that expire, and must not have them for ever instead.
            assert result["failed"] and "HPEXPIREAT of key 'hash:" in result["msg"]
            assert "unknown command" in result["msg"]
            return
        assert result.get("dbsize_after") == 3, result
        with target.client() as client:
            assert expiries(client) == before


def test_a_server_without_the_module_is_found_out_first(source: RedisServer, tmp_path: Path) -> None:
    must_dump(source, tmp_path / "d")
    with RedisServer(tmp_path / "target", "redis") as target:
        result = load(target, tmp_path / "d")
        assert result["failed"] and "Nothing was sent" in result["msg"], result
        with target.client() as client:
            assert client.dbsize() == 0


def test_one_of_the_same_version_but_without_it_is_told_with_the_key(tmp_path: Path) -> None:
    """It reads the payloads' version, so that only the module tells them apart."""
    with RedisServer(tmp_path / "source", "redis-stack") as source, source.client(1) as client:
        client.execute_command("JSON.SET", "a document", "$", "{}")
        must_dump(source, tmp_path / "d")
    with RedisServer(tmp_path / "target", "redis-7.4") as target:
        result = load(target, tmp_path / "d")
        assert result["failed"] and "refused RESTORE of key 'a document' (a value of the module type" in result["msg"]
        assert "type ReJSON-RL, whose module the server must have loaded), command 1 of 1 at byte" in result["msg"]
        with target.client() as client:
            assert client.dbsize() == 0
