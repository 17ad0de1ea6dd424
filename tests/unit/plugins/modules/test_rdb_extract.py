# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""rdb_extract on files of real servers: the new file loads, and holds what SWAPDB would have left."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from support import old_redis
from support.modules import PACKAGE, run_module
from unit.plugins.module_utils import rdb_files

from ansible_collections.keyferry.redis.plugins.module_utils import rdb_pass
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from lab.nodes import RedisServer, server_binary

DB = 1
FAR = 4_000_000_000_000
Start = Callable[..., RedisServer]


def fill(client: redis.Redis, engine: str) -> None:
    """Every type in every encoding that this server writes."""
    rnd = random.Random(4)
    if engine != "redis-6.2":
        client.execute_command("DEBUG", "QUICKLIST-PACKED-THRESHOLD", "1K")
    pipe = client.pipeline(transaction=False)
    pipe.set("", "the empty key")
    pipe.set(bytes(range(256)), bytes(range(256)))
    for index, value in enumerate((0, -1, 127, 128, -32768, 32768, 2**31 - 1, 2**31, 2**63 - 1, "1.5", "")):
        pipe.set(f"number:{index}", value)
        pipe.set(value, "an integer as a key")
    for size in (63, 64, 16383, 16384, 100_000):
        pipe.set(f"noise:{size}", rnd.randbytes(size))
        pipe.set(f"compressed:{size}", b"again and " * (size // 10), pxat=FAR + size)
        pipe.set(b"long key, compressed " * (size // 200 + 2), rnd.randbytes(size % 1000))
    pipe.sadd("set:intset", *range(100))
    pipe.sadd("set:listpack", "a", "b", 1)
    pipe.sadd("set:hashtable", *(rnd.randbytes(80) for _each in range(600)))
    pipe.zadd("zset:listpack", {"a": 1.5, "b": float("inf"), "c": float("-inf"), "d": -0.0})
    pipe.zadd("zset:skiplist", {f"member {n}": n / 7 for n in range(1000)})
    pipe.hset("hash:listpack", mapping={"f": "v", "n": 12})
    pipe.hset("hash:hashtable", mapping={f"field {n}": rnd.randbytes(100) for n in range(700)})
    pipe.rpush("list:one node", *range(10))
    pipe.rpush("list:nodes", *(f"element {n}" * 20 for n in range(500)))
    pipe.rpush("list:plain", b"x" * 20_000, b"small", rnd.randbytes(70_000))
    for index in range(300):
        pipe.xadd("stream", {"field": index, "other": "x" * (index % 50)}, id=f"{index + 1}-{index}")
    pipe.xgroup_create("stream", "readers", id="0")
    pipe.xgroup_create("stream", "idle", id="$")
    pipe.xreadgroup("readers", "first", {"stream": ">"}, count=120)
    pipe.xreadgroup("readers", "second", {"stream": ">"}, count=20)
    pipe.xack("stream", "readers", "3-2", "4-3")
    pipe.xdel("stream", "5-4", "299-298")
    pipe.xgroup_createconsumer("stream", "idle", "waiting")
    pipe.xadd("stream:empty", {"a": 1})
    pipe.xtrim("stream:empty", maxlen=0, approximate=False)
    for index in range(2000):
        pipe.set(f"session:{index:012d}", rnd.randbytes(rnd.randint(0, 120)), pxat=FAR + index)
    pipe.execute()
    if engine == "valkey":
        client.hset("hash:with ttl", mapping={f"field {n}": "v" * n for n in range(50)})
        client.execute_command("HPEXPIREAT", "hash:with ttl", FAR, "FIELDS", 2, "field 1", "field 2")


@pytest.fixture
def source(start_server: Start, engine: str) -> RedisServer:
    """A server with data in three databases, functions, and plain list nodes; its file is written."""
    server = start_server("--list-max-listpack-size", "10")
    for db in (0, DB, 5):
        with server.client(db=db) as client:
            if db == DB:
                fill(client, engine)
            else:
                client.mset({f"other:{n}": "stays" for n in range(300)})
    with server.client() as client:
        client.function_load("#!lua name=mylib\nredis.register_function('f', function() return 1 end)")
        client.save()
    return server


def load(rdb: Path, start_server: Start, directory: Path) -> RedisServer:
    directory.mkdir()
    server = start_server("--dir", str(directory))
    server.stop()
    shutil.copy(rdb, directory / "dump.rdb")
    server.start()
    return server


def digest_as_promoted(server: RedisServer) -> bytes:
    """The data set's digest once DB N has become DB 0 on the server itself, and all else is gone."""
    with server.client() as client:
        client.swapdb(0, DB)
        for db in (DB, 5):
            with server.client(db=db) as other:
                other.flushdb()
        return client.execute_command("DEBUG", "DIGEST")


def check_rdb(engine: str, path: Path) -> None:
    """The server's own checker, which is the server under another name."""
    command = [f"{engine.partition('-')[0]}-check-rdb", str(path)]
    done = subprocess.run(command, executable=server_binary(engine), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "Checksum OK" in done.stdout


def extract(server: RedisServer, dest: Path, **args: Any) -> dict[str, Any]:
    return run_module("rdb_extract", src=str(server.rdb), dest=str(dest), db=DB, **args)


@pytest.mark.parametrize("chunk", [rdb_pass.CHUNK, 30_000])
def test_the_new_file_holds_what_swapdb_would_leave(
    source: RedisServer, start_server: Start, engine: str, tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdb_pass, "CHUNK", chunk)
    dest = tmp_path / "cut.rdb"
    result = extract(source, dest, workers=3)
    assert not result.get("failed"), result
    check_rdb(engine, dest)
    with source.client(db=DB) as client:
        keyspace = client.info("keyspace")
        types = {"hash": 0, "list": 0, "set": 0, "stream": 0, "string": 0, "zset": 0}
        for key in client.scan_iter(count=1000):
            types[client.type(key).decode()] += 1
    assert result["changed"]
    assert result["databases"] == {
        name[2:]: {"keys": facts["keys"], "expires": facts["expires"]} for name, facts in keyspace.items()
    }
    assert (result["keys"], result["expires"]) == (keyspace[f"db{DB}"]["keys"], keyspace[f"db{DB}"]["expires"])
    assert result["types"] == types
    assert result["rdb_version"] == {"redis": "REDIS0010", "valkey": "VALKEY080"}[engine]
    assert result["bytes"] == dest.stat().st_size
    target = load(dest, start_server, tmp_path / "target")
    with target.client() as client:
        assert client.info("keyspace").keys() == {"db0"}
        digest = client.execute_command("DEBUG", "DIGEST")
        assert digest == digest_as_promoted(source) != b"0" * 40
        assert client.function_list() == []


def test_a_file_of_redis_6_2_loads_there_and_in_newer_ones(start_server: Start, engine: str, tmp_path: Path) -> None:
    dest = tmp_path / "cut.rdb"
    with old_redis.OldRedis(tmp_path / "source", "redis-6.2") as source:
        with source.client(db=DB) as client, source.client(db=5) as other:
            fill(client, "redis-6.2")
            other.set("stays", "behind")
            client.save()
        result = extract(source, dest)
        assert result["rdb_version"] == "REDIS0009"
        promoted = digest_as_promoted(source)
    check_rdb("redis-6.2", dest)
    check_rdb(engine, dest)
    with load(dest, start_server, tmp_path / "newer").client() as client:
        assert client.dbsize() == result["keys"]
        # Streams have got more fields since, so that digests of two versions differ.
        assert client.xlen("stream") == 298
    directory = tmp_path / "same"
    directory.mkdir()
    shutil.copy(dest, directory / "dump.rdb")
    with old_redis.OldRedis(directory, "redis-6.2") as target, target.client() as client:
        assert client.execute_command("DEBUG", "DIGEST") == promoted != b"0" * 40


def test_functions_come_along_into_another_database(
    source: RedisServer, start_server: Start, engine: str, tmp_path: Path
) -> None:
    dest = tmp_path / "cut.rdb"
    result = extract(source, dest, target_db=7, functions=True)
    assert result["dest"] == str(dest)
    check_rdb(engine, dest)
    target = load(dest, start_server, tmp_path / "target")
    with target.client() as client:
        assert client.info("keyspace")["db7"]["keys"] == result["keys"]
        assert len(client.function_list()) == 1


def test_several_databases_are_cut_in_one_pass(
    source: RedisServer, start_server: Start, engine: str, tmp_path: Path
) -> None:
    parts = [{"db": db, "dest": str(tmp_path / f"{db}.rdb"), "target_db": target} for db, target in ((0, 0), (5, 2))]
    result = run_module("rdb_extract", src=str(source.rdb), extract=parts)
    assert [each["keys"] for each in result["extracted"]] == [300, 300]
    assert (result["keys"], result["types"]) == (600, {"string": 600})
    for part in parts:
        check_rdb(engine, Path(part["dest"]))


@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-lfu"])
def test_idle_times_and_frequencies_stay(start_server: Start, engine: str, tmp_path: Path, policy: str) -> None:
    # A frequency falls by the minute otherwise, maybe between the looks at the two.
    policies = ("--maxmemory-policy", policy, "--lfu-decay-time", "0")
    server = start_server(*policies)
    with server.client(db=DB) as client:
        fill(client, engine)
        for _unused in range(50):
            client.get("number:0")
        client.save()
    dest = tmp_path / "cut.rdb"
    result = extract(server, dest)
    directory = tmp_path / "target"
    directory.mkdir()
    shutil.copy(dest, directory / "dump.rdb")
    target = start_server("--dir", str(directory), *policies)
    with target.client() as client, server.client(db=DB) as before:
        assert client.dbsize() == result["keys"]
        if policy == "allkeys-lfu":
            assert client.object("freq", "number:0") == before.object("freq", "number:0") > 5
        assert client.execute_command("DEBUG", "DIGEST") == digest_as_promoted(server)


def large_file(path: Path, mebibytes: int) -> int:
    """Write an RDB of short strings with a TTL, the same again and again, and give back how many there are."""
    some = [rdb_files.string(b"session:%021d" % n, b"v" * 70, rdb_files.expiry(FAR + n)) for n in range(10_000)]
    block = b"".join(some)
    times = -(-(mebibytes << 20) // len(block))
    crc = 0
    with path.open("wb") as file:
        for part in (b"REDIS0010" + rdb_files.select(DB), *[block] * times, rdb_files.EOF):
            file.write(part)
            crc = crc64(part, crc)
        file.write(crc.to_bytes(8, "little"))
    return len(some) * times


def proportional_megabytes(pid: int) -> float:
    """Memory of a process and its children, what they share counted once (PSS)."""
    kibibytes = 0
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *children):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text().splitlines()
            kibibytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kibibytes / 1024


def test_a_large_file_takes_little_memory(tmp_path: Path) -> None:
    src, dest = tmp_path / "large.rdb", tmp_path / "cut.rdb"
    keys = large_file(src, 300)
    args = {"src": str(src), "dest": str(dest), "db": DB, "workers": 4}
    command = [sys.executable, "-m", f"{PACKAGE}.rdb_extract", json.dumps({"ANSIBLE_MODULE_ARGS": args})]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    most = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        while process.poll() is None:
            most = max(most, proportional_megabytes(process.pid))
        assert process.stdout
        result = json.loads(process.stdout.read())
    assert result["keys"] == result["expires"] == keys
    assert dest.stat().st_size == src.stat().st_size > 300 << 20
    assert 20 < most < 150


def test_check_mode_foresees_and_the_second_run_changes_nothing(source: RedisServer, tmp_path: Path) -> None:
    dest = tmp_path / "cut.rdb"
    foreseen = extract(source, dest, _check=True)
    assert foreseen["changed"]
    assert not dest.exists()
    done = extract(source, dest)
    for fact in ("changed", "keys", "types", "bytes", "sha256"):
        assert done[fact] == foreseen[fact]
    assert not extract(source, dest)["changed"]
    assert not extract(source, dest, _check=True)["changed"]
    assert extract(source, dest, force=True)["changed"]
    # A new file under the old name: the snapshot after this one.
    with source.client(db=DB) as client:
        client.set("later", "and more")
        client.save()
    assert extract(source, dest)["keys"] == done["keys"] + 1


def test_what_cannot_work_is_told(source: RedisServer, tmp_path: Path) -> None:
    dest = tmp_path / "cut.rdb"
    for args, message in (
        ({"db": 4}, "has no keys in database 4; databases with keys: 0, 1, 5"),
        ({"db": -1}, "index below 0"),
        ({"dest": str(source.rdb)}, "is the source itself"),
        ({"src": str(source.log)}, "Not an RDB file"),
    ):
        result = run_module("rdb_extract", **{"src": str(source.rdb), "db": DB, "dest": str(dest), **args})
        assert result["failed"]
        assert message in result["msg"]
    nothing = run_module("rdb_extract", src=str(source.rdb), extract=[])
    assert nothing["failed"] and "extract is an empty list" in nothing["msg"]
    cut_short = tmp_path / "short.rdb"
    cut_short.write_bytes(source.rdb.read_bytes()[:-2000])
    result = run_module("rdb_extract", src=str(cut_short), db=DB, dest=str(dest))
    assert result["failed"]
    assert result["offset"] > 0
    assert not dest.exists()
