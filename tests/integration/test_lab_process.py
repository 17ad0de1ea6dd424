# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab from its start to its end: a database's whole way through it, its own proof, its daemon and sample data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.account import Account
from integration.cutover import SOURCE, is_running

from lab import Lab, sample_data
from lab.groups import TIMESTAMP_KEY
from lab.nodes import RedisServer, wait_for
from lab.prove import prove

# The whole way, for both engines


def test_a_database_goes_through_snapshot_export_and_seed(tmp_path: Path, engine: str) -> None:
    with Lab(tmp_path / "lab", engine=engine, keys=2000, delay=0.05) as lab:
        aws = Account(lab)
        aws.take("before")
        aws.ec.copy_snapshot(SourceSnapshotName="before", TargetSnapshotName="Out", TargetBucket=aws.bucket)
        aws.wait_snapshot("before")
        aws.s3.download_file(aws.bucket, "out-0001.rdb", str(tmp_path / "out.rdb"))
        (tmp_path / "host").mkdir()
        (tmp_path / "out.rdb").rename(tmp_path / "host" / "dump.rdb")
        with RedisServer(tmp_path / "host", engine) as host:
            assert host.client(1).dbsize() in range(1935, 1942)
            host.client().save()
            aws.s3.upload_file(str(host.rdb), aws.bucket, "in.rdb")
        arn = f"arn:aws:s3:::{aws.bucket}/in.rdb"
        aws.create("own-redis", Engine=engine, NumCacheClusters=2, SnapshotArns=[arn])
        assert aws.group("own-redis")["Status"] == "creating"
        group = aws.wait_group("own-redis")
        assert (
            group["NodeGroups"][0]["PrimaryEndpoint"]["Port"]
            == aws.lab("GET", "groups")["own-redis"]["nodes"][0]["port"]
        )
        assert aws.node("own-redis", 0).exists(TIMESTAMP_KEY)
        assert aws.node("own-redis", 1, at=1).get(b"") == b"the empty key"
        for db in (0, 1, 15):
            verdict = prove(lab.info, SOURCE, db, "own-redis", db)
            assert verdict["equal"], verdict
            assert verdict["keys"] >= {0: 13, 1: 1936, 15: 12}[db]


def test_prove_finds_what_was_planted(tmp_path: Path, engine: str) -> None:
    with Lab(tmp_path, engine=engine, keys=500, delay=0.05) as lab:
        aws = Account(lab)
        aws.take("all")
        aws.create("copy", Engine=engine, SnapshotName="all")
        aws.wait_group("copy")
        source, copy = aws.node(db=1), aws.node("copy", db=1)
        source.set("gone", 1, px=1)
        copy.delete("int:0")
        copy.set(b"extra\xff", "1")
        copy.zadd("zset:extreme", {"m0": 1})
        copy.pexpire("stream:orders", 3_600_000)
        copy.xack("stream:orders", "billing", "1700000000000-5")
        copy.persist("large:compressible")
        verdict = prove(lab.info, SOURCE, 1, "copy", 1)
        assert not verdict["equal"]
        assert verdict["missing"] == ["int:0"]
        assert verdict["extra"] == ["extra\\xff"]
        assert sorted(verdict["different"]) == ["large:compressible", "stream:orders", "zset:extreme"]
        aws.node(db=2).flushdb()
        aws.node("copy", db=2).flushdb()
        for side in (source, copy):
            side.move("stream:emptied", 2)
        assert prove(lab.info, SOURCE, 2, "copy", 2)["equal"]
        copy = aws.node("copy", db=2)
        copy.xgroup_create("stream:emptied", "another", "0")
        assert prove(lab.info, SOURCE, 2, "copy", 2)["different"] == ["stream:emptied"]


# The daemon


def _lab(verb: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lab", verb, "--dir", str(directory), *options]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "tests"}, timeout=60, check=False
    )


def _servers(info: dict[str, Any]) -> list[int]:
    with urllib.request.urlopen(f"{info['endpoint_url']}/_lab/groups") as answer:
        groups = json.load(answer)
    return [node["pid"] for group in groups.values() for node in group["nodes"]]


def test_the_daemon_starts_once_and_ends_with_all_it_started(tmp_path: Path) -> None:
    assert _lab("status", tmp_path).returncode == 1
    assert _lab("stop", tmp_path).returncode == 0
    started = _lab("start", tmp_path, "--keys", "100", "--delay", "0.05")
    info = json.loads(started.stdout)
    assert started.returncode == 0, started.stderr
    assert info == json.loads((tmp_path / "lab.json").read_text())
    assert (tmp_path / "lab.json").stat().st_mode & 0o777 == 0o600
    for verb in ("start", "status"):
        assert json.loads(_lab(verb, tmp_path).stdout) == info
    servers = _servers(info)
    assert len(servers) == 2 and all(map(is_running, servers))
    commands = [Path(f"/proc/{server}/cmdline").read_bytes() for server in servers]
    assert not any(info["admin_password"].encode() in command for command in commands)
    same = ("--source-group", SOURCE, "--source-db", "1", "--target-group", SOURCE, "--target-db")
    assert _lab("prove", tmp_path, *same, "1").returncode == 0
    proven = _lab("prove", tmp_path, *same, "2")
    assert proven.returncode == 1 and not json.loads(proven.stdout)["equal"]
    assert _lab("stop", tmp_path).returncode == 0
    assert not any(map(is_running, servers))
    wait_for(lambda: not is_running(info["pid"]), "the last moment of the daemon")
    assert not (tmp_path / "lab.json").exists()


def test_nothing_survives_a_daemon_that_is_killed(tmp_path: Path) -> None:
    info = json.loads(_lab("start", tmp_path, "--empty", "--delay", "0.05").stdout)
    servers = _servers(info)
    os.kill(info["pid"], signal.SIGKILL)
    wait_for(lambda: not any(map(is_running, servers)), "the servers to end")
    assert _lab("status", tmp_path).returncode == 1
    again = json.loads(_lab("start", tmp_path, "--empty", "--delay", "0.05").stdout)
    assert again["pid"] != info["pid"]
    assert _lab("stop", tmp_path).returncode == 0


def test_valkey_stands_in_where_there_is_no_redis_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with RedisServer(tmp_path, "redis") as server:
        assert server.client().info("server")["server_name"] == "valkey"


# The sample data


def test_sample_data_is_the_same_for_the_same_seed(start_server: Callable[..., RedisServer]) -> None:
    digests = []
    for seed in (1, 1, 2):
        with start_server() as server:
            assert sample_data.fill(("127.0.0.1", server.port), 400, 3, seed) == 400
            client = server.client(3)
            keys = sorted(client.scan_iter(count=1000))
            digests.append(client.execute_command("DEBUG", "DIGEST-VALUE", *keys))
    assert digests[0] == digests[1] != digests[2]


def test_sample_data_has_all_that_breaks_a_copy(redis_server: RedisServer) -> None:
    assert sample_data.fill_sample(redis_server.client(), 3100) == {1: 3000, 0: 20, 2: 20, 3: 20, 5: 20, 15: 20}
    client = redis_server.client(1)
    keys = list(client.scan_iter(count=1000))
    assert len(keys) in range(3000, 3006)
    kinds = {client.type(key) for key in keys if not key.startswith(b"lives:")}
    assert kinds == {b"string", b"hash", b"list", b"set", b"zset", b"stream"}
    encodings = {client.object("ENCODING", key) for key in keys}
    expected = "int embstr raw listpack hashtable quicklist intset skiplist stream"
    assert set(expected.encode().split()) <= encodings | {b"listpack"}
    lasting = [ttl for key in keys if (ttl := client.pttl(key)) > 61_000]
    assert 0.5 < len(lasting) / len(keys) < 0.7
    assert min(lasting) > 3_500_000 and max(lasting) <= 30 * 24 * 3_600_000
    assert {b"", sample_data.BINARY} <= set(keys)
    assert client.strlen("large:string") > 1_000_000 and client.hlen("large:hash") >= 20_000
    scores = dict(client.zrange("zset:extreme", 0, -1, withscores=True))
    assert {float("inf"), float("-inf"), 1e-300, 0.12345678901234567} <= set(scores.values())
    billing = next(group for group in client.xinfo_groups("stream:orders") if group["name"] == b"billing")
    assert (billing["consumers"], billing["pending"]) == (3, 23)
    assert client.xlen("stream:orders") == 297
