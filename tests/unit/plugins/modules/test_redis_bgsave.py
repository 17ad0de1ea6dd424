# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redis_bgsave has the server write what it holds, and tells where."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import redis
from support.keyspaces import contents, login
from support.modules import run_module

from ansible_collections.keyferry.redis.plugins.modules import redis_bgsave
from lab.nodes import RedisServer, wait_for
from lab.sample_data import fill


def test_writes_what_the_server_holds(redis_server: RedisServer) -> None:
    fill(("127.0.0.1", redis_server.port), 300, 0)
    before = contents(redis_server)
    started = int(time.time())
    result = run_module("redis_bgsave", **login(redis_server))
    assert result["changed"] and result["path"] == str(redis_server.rdb)
    assert result["size"] == redis_server.rdb.stat().st_size
    assert result["lastsave"] >= started
    redis_server.kill()
    redis_server.start()
    assert contents(redis_server) == before


def test_check_mode_saves_nothing(redis_server: RedisServer) -> None:
    result = run_module("redis_bgsave", **login(redis_server), _check=True)
    assert (result["changed"], result["path"], result["size"]) == (True, str(redis_server.rdb), None)
    assert not redis_server.rdb.exists()


def test_a_save_that_fails_is_told(redis_server: RedisServer) -> None:
    # The server cannot rename its file onto a folder.
    redis_server.rdb.mkdir()
    result = run_module("redis_bgsave", **login(redis_server))
    assert result["failed"] and f"could not write {redis_server.rdb}" in result["msg"]


def test_a_save_that_is_cut_short_is_told(start_server: Callable[..., RedisServer]) -> None:
    server = start_server("--rdb-key-save-delay", "20000")
    with server.client() as client:
        client.mset({f"k{at}": at for at in range(200)})
        # The server's start counts as a save, to the second.
        started = client.info("persistence")["rdb_last_save_time"]
        wait_for(lambda: client.time()[0] > started, "the second after the server's start")

        def flush_while_it_saves() -> None:
            with server.client() as other:
                wait_for(lambda: other.info("persistence")["rdb_bgsave_in_progress"], "the save", interval=0.01)
                other.flushall()

        flush = threading.Thread(target=flush_while_it_saves)
        flush.start()
        result = run_module("redis_bgsave", **login(server))
        flush.join()
    assert result["failed"] and f"ended the save of {server.rdb} before it was done" in result["msg"]


def test_a_server_that_is_started_anew_is_told(
    start_server: Callable[..., RedisServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same address, and between two looks at it."""
    server = start_server("--rdb-key-save-delay", "20000")
    with server.client() as client:
        client.mset({f"k{at}": at for at in range(200)})
        before = client.info("server")["run_id"]

    def start_anew(_seconds: float) -> None:
        with contextlib.suppress(redis.ConnectionError), server.client() as client:
            client.execute_command("DEBUG", "RESTART")
        wait_for(is_another, "the server to be there again")

    def is_another() -> bool:
        with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError), server.client() as client:
            return client.info("server")["run_id"] != before
        return False

    monkeypatch.setattr(redis_bgsave, "time", SimpleNamespace(monotonic=time.monotonic, sleep=start_anew))
    result = run_module("redis_bgsave", **login(server))
    assert result["failed"] and "was started anew while it saved" in result["msg"], result


def test_a_save_under_way_is_waited_for(start_server: Callable[..., RedisServer]) -> None:
    server = start_server("--rdb-key-save-delay", "2000")
    with server.client() as client:
        client.mset({f"k{at}": at for at in range(200)})
        client.bgsave()
    late = run_module("redis_bgsave", **login(server), wait_timeout=0)
    assert late["failed"] and "is still saving" in late["msg"]
    result = run_module("redis_bgsave", **login(server))
    assert not result.get("failed") and result["size"] > 200


def test_need_not_wait(redis_server: RedisServer) -> None:
    result = run_module("redis_bgsave", **login(redis_server), wait=False)
    assert result["changed"] and not result.get("failed")


def test_a_server_that_does_not_tell_where_is_saved(start_server: Callable[..., RedisServer]) -> None:
    server = start_server(config=["user saver on >pass ~* +@connection +info +bgsave"])
    result = run_module("redis_bgsave", **login(server), login_user="saver", login_password="pass")
    assert (result["changed"], result["path"], result["size"]) == (True, None, None)
