# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_dump with an RDB file as its source."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.dumps import many
from support.keyspaces import contents, login
from support.modules import group_is_gone, module_process, run_module

from ansible_collections.keyferry.redis.plugins.module_utils import dump_rdb, rdb_pass
from lab.nodes import RedisServer, wait_for
from lab.sample_data import fill

Start = Callable[..., RedisServer]


def dump(rdb: Path, dest: Path, **options: Any) -> dict[str, Any]:
    return run_module("resp_dump", **{"rdb": str(rdb), "db": 1, "dest": str(dest), **options})


@pytest.fixture
def saved(redis_server: RedisServer) -> RedisServer:
    """A server that has saved what it holds: 3,000 keys in database 1, 100 in database 0."""
    fill(("127.0.0.1", redis_server.port), 100, 0)
    fill(("127.0.0.1", redis_server.port), 3000, 1)
    with redis_server.client() as client:
        client.save()
    return redis_server


@pytest.mark.parametrize("form", ["restore", "commands"])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_arrives_as_from_the_server(
    start_server: Start, saved: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, workers: int
) -> None:
    monkeypatch.setattr(rdb_pass, "CHUNK", 1 << 18)
    dumped = dump(saved.rdb, tmp_path / "d", format=form, workers=workers)
    assert not dumped.get("failed"), dumped
    from_server = run_module("resp_dump", **login(saved), db=1, dest=str(tmp_path / "e"), format=form, workers=1)
    for fact in ("keys", "commands", "types", "expired"):
        assert dumped[fact] == from_server[fact]
    target = start_server()
    loaded = run_module("resp_load", **login(target), src=str(tmp_path / "d"))
    assert loaded["dbsize_after"] == 3000, loaded
    assert contents(target) == contents(saved, 1)


def test_large_values_are_carried(
    start_server: Start, saved: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump_rdb, "_STREAM_BYTES", 50_000)
    assert dump(saved.rdb, tmp_path / "d")["keys"] == 3000
    target = start_server()
    run_module("resp_load", **login(target), src=str(tmp_path / "d"))
    assert contents(target) == contents(saved, 1)


def test_what_has_expired_is_not_there_after_the_load(start_server: Start, saved: RedisServer, tmp_path: Path) -> None:
    with saved.client(1) as client:
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        client.set("brief", 1, px=1)
        client.save()
    assert dump(saved.rdb, tmp_path / "d")["keys"] == 3001
    assert run_module("resp_load", **login(start_server()), src=str(tmp_path / "d"))["dbsize_after"] == 3000


def test_check_mode_counts_and_writes_nothing(saved: RedisServer, tmp_path: Path) -> None:
    result = dump(saved.rdb, tmp_path / "d", _check=True)
    assert (result["changed"], result["keys"], list(tmp_path.glob("d*"))) == (True, 3000, [])
    assert dump(saved.rdb, tmp_path / "d")["changed"]
    assert not dump(saved.rdb, tmp_path / "d")["changed"]


def test_a_damaged_file_is_refused(saved: RedisServer, tmp_path: Path) -> None:
    whole = saved.rdb.read_bytes()
    rng = random.Random(4)
    for _try in range(8):
        at = rng.randrange(len(whole))
        saved.rdb.write_bytes(whole[:at] + bytes([whole[at] ^ 0x04]) + whole[at + 1 :])
        assert dump(saved.rdb, tmp_path / "d")["failed"]
        saved.rdb.write_bytes(whole[:at])
        assert dump(saved.rdb, tmp_path / "d")["failed"]
    assert list(tmp_path.glob("d*")) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"db": 7}, "has no keys in database 7; databases with keys: 0, 1"),
        ({"max_latency_ms": 2}, "mutually exclusive"),
    ],
)
def test_bad_options_are_told(saved: RedisServer, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    result = dump(saved.rdb, tmp_path / "d", **options)
    assert result["failed"] and said in result["msg"]


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    result = dump(tmp_path / "none.rdb", tmp_path / "d")
    assert result["failed"] and f"Cannot read the RDB file {tmp_path}/none.rdb: No such file" in result["msg"]


def test_a_process_that_is_killed_ends_the_dump(
    saved: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dump_rdb.RdbSource, "_encoded", lambda *_args: dump_rdb.os._exit(9))
    result = dump(saved.rdb, tmp_path / "d")
    assert result["failed"] and "A process that read the RDB file was killed" in result["msg"]
    assert list(tmp_path.glob("d*")) == []


def test_its_processes_end_with_it_when_it_is_killed(redis_server: RedisServer, tmp_path: Path) -> None:
    """They wait for room in a pipe then, that nobody empties any more."""
    many(redis_server, 500_000)
    with redis_server.client() as client:
        client.save()
    part = tmp_path / "d.part"
    options = {"rdb": str(redis_server.rdb), "db": 1, "dest": str(tmp_path / "d"), "workers": 3}
    with module_process("resp_dump", **options) as process:
        wait_for(lambda: part.exists() and part.stat().st_size > 1 << 20, "the dump to begin", interval=0.001)
        process.kill()
        process.wait()
        wait_for(lambda: group_is_gone(process), "its processes to end", interval=0.01)
