# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each module's page says that an ACL user needs is enough, and none of it can be left out."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.clusters import start_cluster
from support.dumps import dump, many, must_dump
from support.keyspaces import login
from support.modules import run_module
from support.old_redis import OldRedis

from lab.nodes import RedisServer
from lab.sample_data import fill

Start = Callable[..., RedisServer]
DB = 1
LIBRARY = "#!lua name=lib\nredis.register_function('f', function() return 1 end)"
LOGIN = {"login_user": "app", "login_password": "secret"}
TARGET_LOGIN = {f"target_{name}": value for name, value in LOGIN.items()}


def rights(module: str) -> list[list[str]]:
    """The access strings of a module's page, in their words: the first is needed always, the others for more."""
    page = importlib.import_module(f"ansible_collections.keyferry.redis.plugins.modules.{module}").DOCUMENTATION
    [note] = re.findall(r"^  - (An ACL user needs .*?)^(?:  - |\w|\Z)", page, re.MULTILINE | re.DOTALL)
    return [text.split() for text in re.findall(r"C\(((?:on )?[~+][^)]*)\)", note)]


def let_in(server: RedisServer, words: list[str]) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", *words)


@pytest.fixture
def server(start_server: Start) -> RedisServer:
    """One with a user whose rights are given later, and keys of all types in two databases."""
    made = start_server()
    refill(made)
    return made


def refill(server: RedisServer) -> None:
    for db in (0, DB):
        fill(("127.0.0.1", server.port), 300, db)


def needs_all(server: RedisServer, words: list[str], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run with these rights, and before that with each of them left out, which must be told or be seen."""
    for word in words[1:] if words[0] == "on" else words:
        let_in(server, [each for each in words if each != word])
        result = run()
        assert result.get("failed") or None in result.values(), (word, result)
    let_in(server, words)
    result = run()
    assert "failed" not in result and None not in result.values(), result
    return result


def test_redis_keyspace_info(server: RedisServer) -> None:
    always, sampling, counting = rights("redis_keyspace_info")
    let_in(server, always)
    assert "types" not in run_module("redis_keyspace_info", **login(server), **LOGIN)["databases"]["1"]

    def run(samples: int = 5) -> dict[str, Any]:
        result = run_module("redis_keyspace_info", **login(server), **LOGIN, samples=samples)
        return {**result, **result.get("databases", {}).get("1", {})}

    found = needs_all(server, [*always, *(each for each in sampling if each != "+scan"), *counting], run)
    assert found["estimated_bytes"] and found["database_count"] == 16
    needs_all(server, [*always, *(each for each in sampling if each != "+randomkey"), *counting], lambda: run(1000))


def test_redis_bgsave(server: RedisServer) -> None:
    always, path = rights("redis_bgsave")
    needs_all(server, [*always, *path], lambda: run_module("redis_bgsave", **login(server), **LOGIN))


def test_redis_flushdb(server: RedisServer) -> None:
    [always] = rights("redis_flushdb")
    result = needs_all(server, always, lambda: run_module("redis_flushdb", **login(server), **LOGIN, db=DB))
    assert result["flushed"] == {"1": 300}


def test_redis_promote_db(server: RedisServer) -> None:
    [always] = rights("redis_promote_db")
    result = needs_all(server, always, lambda: run_module("redis_promote_db", **login(server), **LOGIN, db=DB))
    assert result["flushed"] == {"0": 300}


def test_redis_compare(server: RedisServer, start_server: Start) -> None:
    both, repairing = rights("redis_compare")[:2]
    target = start_server()

    def run(**args: Any) -> dict[str, Any]:
        where = {**login(server), **LOGIN, **login(target, "target_login_"), **TARGET_LOGIN}
        return run_module("redis_compare", **where, db=DB, target_db=DB, **args)

    let_in(target, both)
    needs_all(server, both, run)
    with target.client(DB) as client:
        client.set("an extra one", "1")
    # What it may not remove it has copied by then.
    assert needs_all(target, [*both, *repairing], lambda: run(repair=True))["deleted"] == 1
    let_in(target, both)
    for mode in ("count", "sample", "full"):
        assert run(mode=mode)["equal"]


def test_resp_dump(server: RedisServer, tmp_path: Path) -> None:
    always, _old, strings, functions, using, _cluster, _replica, replicating = rights("resp_dump")[:8]

    def run(**args: Any) -> dict[str, Any]:
        return dump(server, tmp_path / "d", force=True, **LOGIN, **args)

    assert needs_all(server, always, run)["keys"] == 300
    let_in(server, [*always, *strings])
    assert run()["keys"] == 300
    needs_all(server, [*always, *functions, *using], lambda: run(functions=True, eviction=True))
    # A server whose user may not say REPLCONF takes it for an older replica.
    needs_all(server, [word for word in replicating if word != "+replconf"], lambda: run(source="replication"))
    let_in(server, replicating)
    assert run(source="replication")["keys"] == 300


def test_resp_dump_of_before_pexpiretime(tmp_path: Path) -> None:
    always, old = rights("resp_dump")[:2]
    with OldRedis(tmp_path / "old") as server:
        many(server, 10)
        words = [*(word for word in always if word != "+pexpiretime"), *old]
        assert needs_all(server, words, lambda: dump(server, tmp_path / "d", force=True, **LOGIN))["keys"] == 10


@pytest.mark.parametrize("form", ["restore", "commands"])
def test_resp_load(server: RedisServer, start_server: Start, tmp_path: Path, form: str) -> None:
    always, resuming, _cluster, writing = rights("resp_load")
    target = start_server()
    load = {"src": str(tmp_path / "dump"), **login(target), **LOGIN, "workers": 1}
    must_dump(server, tmp_path / "dump", format=form)
    if form == "restore":
        needs_all(target, always, lambda: run_module("resp_load", **load))
    with server.client() as client:
        client.function_load(LIBRARY)
    must_dump(server, tmp_path / "dump", format=form, functions=True, force=True)
    let_in(target, always)
    assert "FUNCTION" in run_module("resp_load", **load)["msg"]
    let_in(target, [*always, *writing, *resuming])
    assert "failed" not in run_module("resp_load", **load, resume=True)


def test_in_cluster_mode(engine: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        nodes = start_cluster(stack, tmp_path / "cluster", engine)
        source = stack.enter_context(RedisServer(tmp_path / "source", engine))
        refill(source)
        must_dump(source, tmp_path / "dump")
        load = {"src": str(tmp_path / "dump"), "db": 0, **login(nodes[0]), **LOGIN}
        compare = {**login(source), "db": DB, **login(nodes[1], "target_login_"), **TARGET_LOGIN, "repair": True}
        for name, args in {"resp_load": load, "redis_compare": compare}.items():
            words = [*itertools.chain(*rights(name))]
            for is_enough in (False, True):
                for node in nodes:
                    let_in(node, [word for word in words if is_enough or word != "+cluster|slots"])
                result = run_module(name, **args)
                assert ("failed" not in result) is is_enough, result
