# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_dump with source=replication: the server's RDB as a replica gets it, in both of its forms."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.dumps import dump, keys_of, load, many
from support.keyspaces import contents
from support.old_redis import OldRedis

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.progress import silent
from ansible_collections.keyferry.redis.plugins.module_utils.replication import replicated
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Server
from lab.nodes import RedisServer, wait_for
from lab.sample_data import fill
from lab.tls import make_tls

Start = Callable[..., RedisServer]


def replicate(server: RedisServer, dest: Path, **options: Any) -> dict[str, Any]:
    return dump(server, dest, source="replication", **options)


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_the_same_arrives_as_by_scan(start_server: Start, tmp_path: Path, diskless: str) -> None:
    source, target = start_server("--repl-diskless-sync", diskless), start_server()
    fill(("127.0.0.1", source.port), 2000, 1)
    fill(("127.0.0.1", source.port), 100, 0)
    dumped = replicate(source, tmp_path / "d")
    by_scan = dump(source, tmp_path / "e")
    for fact in ("keys", "commands", "types", "expired"):
        assert dumped[fact] == by_scan[fact]
    assert load(target, tmp_path / "d")["dbsize_after"] == 2000
    assert contents(target) == contents(source, 1)
    assert sorted(path.name for path in tmp_path.glob("[de]*")) == ["d", "e"]


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_an_old_server_gives_all_its_keys(tmp_path: Path, diskless: str) -> None:
    with OldRedis(tmp_path / "old", "redis", "--repl-diskless-sync", diskless) as old:
        fill(("127.0.0.1", old.port), 500, 1)
        assert replicate(old, tmp_path / "d")["keys"] == 500
        assert set(keys_of(tmp_path / "d")) == set(keys_of_database(old))


def keys_of_database(server: RedisServer) -> list[bytes]:
    with server.client(1) as client:
        return list(client.scan_iter(count=1000))


def test_a_server_with_tls_gives_all_its_keys(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "server", "redis", tls=make_tls(tmp_path / "tls")) as server:
        many(server, 5_000)
        assert replicate(server, tmp_path / "d")["keys"] == 5_000


def test_a_database_without_keys_is_dumped(redis_server: RedisServer, tmp_path: Path) -> None:
    with redis_server.client() as client:
        client.function_load("#!lua name=lib\nredis.register_function('f', function() return 1 end)")
    dumped = replicate(redis_server, tmp_path / "d", functions=True)
    assert (dumped["keys"], dumped["commands"]) == (0, 1)
    checked = replicate(redis_server, tmp_path / "e", _check=True)
    assert (checked["keys"], checked["changed"]) == (0, True)


def test_only_what_matches_is_dumped(redis_server: RedisServer, tmp_path: Path) -> None:
    many(redis_server, 100)
    replicate(redis_server, tmp_path / "d", match="key:?", progress_file=str(tmp_path / "progress"))
    assert set(keys_of(tmp_path / "d")) == {b"key:%d" % at for at in range(10)}


@pytest.mark.parametrize("config", [["rename-command PSYNC zzz"], ["user default on nopass ~* +@all -psync"]])
def test_a_server_that_forbids_it_is_told(start_server: Start, tmp_path: Path, config: list[str]) -> None:
    server = start_server(config=config)
    many(server, 10)
    result = replicate(server, tmp_path / "d")
    assert result["failed"] and "does not replicate to this client" in result["msg"]
    assert "Use source=scan, or the rdb of a snapshot" in result["msg"]
    assert list(tmp_path.glob("d*")) == []


def test_a_server_killed_in_the_middle_leaves_nothing(redis_server: RedisServer, tmp_path: Path) -> None:
    many(redis_server, 100_000)
    with redis_server.client() as client:
        # In microseconds; with it the RDB takes ten seconds.
        client.config_set("rdb-key-save-delay", 100)
    part = tmp_path / "d.rdb.part"

    def kill() -> None:
        wait_for(lambda: part.exists() and part.stat().st_size, "the RDB", interval=0.001)
        redis_server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    result = replicate(redis_server, tmp_path / "d")
    killer.join()
    assert result["failed"] and "in the middle of the work: the server closed it" in result["msg"]
    assert list(tmp_path.glob("d*")) == []


def test_what_a_killed_run_has_left_is_no_obstacle(redis_server: RedisServer, tmp_path: Path) -> None:
    many(redis_server, 10)
    (tmp_path / "d.rdb.part").write_bytes(b"left" * 10_000)
    assert replicate(redis_server, tmp_path / "d")["keys"] == 10
    assert {path.name for path in tmp_path.glob("d*")} == {"d"}


@pytest.mark.parametrize("option", [{"max_keys_per_second": 5}, {"max_latency_ms": 5.0}, {"rdb": "/x.rdb"}])
def test_options_that_do_not_fit_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with RedisServer(tmp_path / "server") as server:
        result = replicate(server, tmp_path / "d", **option)
    assert result["failed"] and f"{next(iter(option))} cannot be used with source=replication" in result["msg"]


class TestPrimary:
    """What a primary may send, in any pieces."""

    RDB = b"REDIS0010\n$EOF:" + bytes(range(256)) * 3
    MARK = b"0123456789" * 4

    @pytest.fixture
    def answers(self, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., bytes]]:
        """`answers(after_psync, size)` gives back the RDB out of this answer, sent in pieces of this size."""
        near, far = socket.socketpair()
        server = Server(Address("127.0.0.1", redis_server.port))
        original = server.connection

        @contextlib.contextmanager
        def connection(db: int) -> Iterator[socket.socket]:
            with original(db):
                yield near

        monkeypatch.setattr(server, "connection", connection)
        threads: list[threading.Thread] = []

        def answer(dest: str, sent: bytes, size: int) -> bytes:
            def send() -> None:
                for _option in range(2):
                    far.recv(1000)
                    far.sendall(b"+OK\r\n")
                far.recv(1000)
                for start in range(0, len(sent), size):
                    far.sendall(sent[start : start + size])
                far.shutdown(socket.SHUT_WR)

            threads.append(threading.Thread(target=send))
            threads[-1].start()
            with replicated(server, dest, silent) as path:
                return Path(path).read_bytes()

        yield answer
        for thread in threads:
            thread.join()
        near.close()
        far.close()

    @pytest.mark.parametrize("size", [1, 7, 1 << 16])
    @pytest.mark.parametrize("form", ["counted", "marked"])
    def test_an_rdb_in_any_pieces_is_whole(self, answers: Any, tmp_path: Path, form: str, size: int) -> None:
        body = b"$EOF:%b\r\n%b%b" % (self.MARK, self.RDB, self.MARK)
        if form == "counted":
            # Behind it come the commands that follow.
            body = b"$%d\r\n%b*1\r\n$4\r\nPING\r\n" % (len(self.RDB), self.RDB)
        sent = b"\n\n+FULLRESYNC 0123 0\r\n\n\n" + body
        assert answers(str(tmp_path / "d"), sent, size) == self.RDB

    @pytest.mark.parametrize(
        "sent",
        [
            b"+FULLRESYNC 0123 0\r\n\n-ERR the child failed\r\n",
            b"+FULLRESYNC 0123 0\r\n$500\r\nREDIS0010",
            b"+FULLRESYNC 0123 0\r\n$EOF:%b\r\nREDIS0010%b" % (MARK, MARK[:-1]),
            b"-NOMASTERLINK Can't SYNC while not connected with my master\r\n",
            b"",
        ],
    )
    def test_what_is_not_whole_is_refused(self, answers: Any, tmp_path: Path, sent: bytes) -> None:
        with pytest.raises(KeyferryError):
            answers(str(tmp_path / "d"), sent, 1000)
        assert list(tmp_path.glob("d*")) == []
