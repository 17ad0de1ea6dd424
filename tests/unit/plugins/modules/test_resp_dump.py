# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_dump and, for what its dumps are worth, resp_load: against real servers."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.dumps import dump, keys_of, load, many, must_dump
from support.keyspaces import contents, login
from support.modules import module_process, run_module

from ansible_collections.keyferry.redis.plugins.module_utils import dump_wire, dump_worker, resp
from ansible_collections.keyferry.redis.plugins.module_utils import server as server_module
from lab.nodes import RedisServer, free_port, wait_for
from lab.sample_data import fill
from lab.tls import make_tls

Start = Callable[..., RedisServer]


class TestFidelity:
    @pytest.mark.parametrize("workers", [1, 4])
    def test_every_type_and_ttl_arrives(self, start_server: Start, tmp_path: Path, workers: int) -> None:
        source, target = start_server(), start_server()
        fill((("127.0.0.1", source.port)), 3000, 1)
        before = contents(source, 1)
        dumped = dump(source, tmp_path / "d", workers=workers, batch_size=100)
        assert not dumped.get("failed"), dumped
        keys = dumped["keys"]
        # More where the table is still being resized when several begin.
        assert keys == 3000 or (workers > 1 and 3000 < keys < 3400)
        assert (dumped["commands"], dumped["expired"]) == (keys, 0)
        assert set(dumped["types"]) == {"hash", "list", "set", "stream", "string", "zset"}
        assert sum(dumped["types"].values()) == keys
        assert dumped["bytes"] == (tmp_path / "d").stat().st_size
        loaded = load(target, tmp_path / "d")
        assert (loaded["keys"], loaded["replies"], loaded["errors"]) == (keys, keys, 0)
        assert contents(target, 0) == before
        # The source has only been read.
        assert contents(source, 1) == before

    def test_redis_cli_takes_the_dump(self, start_server: Start, tmp_path: Path) -> None:
        source, target = start_server(), start_server()
        fill((("127.0.0.1", source.port)), 500, 1)
        dump(source, tmp_path / "d", target_db=7)
        with socket.create_connection(("127.0.0.1", target.port)) as wire:
            wire.sendall((tmp_path / "d").read_bytes() + resp.command("QUIT"))
            replies = resp.ReplyCounter()
            while data := wire.recv(1 << 16):
                replies.feed(data)
        # SELECT, two ECHOs and QUIT.
        assert (replies.replies, replies.errors) == (500 + 4, {})
        assert contents(target, 7) == contents(source, 1)

    def test_a_large_value_is_streamed(
        self, start_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, target = start_server(), start_server()
        rng = random.Random(3)
        with source.client(1) as client:
            client.set("large", rng.randbytes(9 << 20))
            client.set("large with ttl", rng.randbytes(9 << 20), px=86_400_000)
            client.set("small", 1)
        streamed: list[int] = []
        original = dump_wire.Replies.stream
        monkeypatch.setattr(
            dump_wire.Replies, "stream", lambda self, size: streamed.append(size) or original(self, size)
        )
        dumped = dump(source, tmp_path / "d")
        assert len(streamed) == 2
        assert dumped["types"] == {"string": 3}
        load(target, tmp_path / "d")
        assert contents(target) == contents(source, 1)

    def test_only_what_matches_is_dumped(self, redis_server: RedisServer, tmp_path: Path) -> None:
        many(redis_server, 500)
        dumped = dump(redis_server, tmp_path / "d", match="key:1*", batch_size=10)
        assert dumped["keys"] == 1 + 10 + 100
        assert all(key.startswith(b"key:1") for key in keys_of(tmp_path / "d"))

    def test_an_empty_database_is_dumped_and_loaded(self, start_server: Start, tmp_path: Path) -> None:
        source, target = start_server(), start_server()
        dumped = dump(source, tmp_path / "d")
        assert (dumped["keys"], dumped["types"]) == (0, {})
        loaded = load(target, tmp_path / "d")
        assert (loaded["changed"], loaded["replies"], loaded["dbsize_after"]) == (False, 0, 0)


class TestKeysThatGo:
    def test_a_ttl_of_a_few_ms_does_not_become_none(self, start_server: Start, tmp_path: Path) -> None:
        source, target = start_server(), start_server()
        with source.client(1) as client:
            client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
            for at in range(300):
                client.set(f"brief:{at}", at, px=1 + at)
            # So many that the server does not make its table smaller, where SCAN may give back a key twice.
            client.mset({f"stays:{at}": 1 for at in range(100)})
        dumped = dump(source, tmp_path / "d", batch_size=7)
        assert dumped["keys"] + dumped["expired"] <= 400
        load(target, tmp_path / "d")
        with target.client() as client:
            for key in client.scan_iter():
                assert key.startswith(b"stays:") or 0 <= client.pttl(key) <= 300 or not client.exists(key)

    @pytest.mark.parametrize("last_batch", [True, False])
    def test_those_gone_between_scan_and_dump_are_counted(
        self, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_batch: bool
    ) -> None:
        many(redis_server, 100)
        victims = [b"key:7", b"key:42"] if not last_batch else [b"key:%d" % at for at in range(100)]
        original = dump_wire.Replies.scanned

        def delete_then(self: Any) -> Any:
            cursor, keys = original(self)
            with redis_server.client(1) as client:
                client.delete(*victims)
            return cursor, keys

        monkeypatch.setattr(dump_wire.Replies, "scanned", delete_then)
        dumped = dump(redis_server, tmp_path / "d")
        assert (dumped["keys"], dumped["expired"]) == (100 - len(victims), len(victims))
        assert not set(keys_of(tmp_path / "d")) & set(victims)


class TestParallel:
    @pytest.mark.parametrize("change", ["still", "grows", "shrinks"])
    @pytest.mark.parametrize("workers", [2, 8])
    def test_no_key_is_missed(self, redis_server: RedisServer, tmp_path: Path, change: str, workers: int) -> None:
        """What is there all the while is dumped, while the table is resized again and again."""
        staying = {b"stays:%d" % at for at in range(20_000)}
        with redis_server.client(1) as client:
            client.mset(dict.fromkeys(staying, 1))
            if change == "shrinks":
                client.execute_command("DEBUG", "POPULATE", 150_000)
        ended = threading.Event()

        def write() -> None:
            with redis_server.client(1) as client:
                for start in range(0, 150_000, 2_000):
                    if ended.is_set():
                        return
                    names = [f"key:{at}" for at in range(start, start + 2_000)]
                    if change == "grows":
                        client.mset(dict.fromkeys(names, 1))
                    else:
                        client.delete(*names)

        writer = threading.Thread(target=write)
        if change != "still":
            writer.start()
        dumped = dump(redis_server, tmp_path / "d", workers=workers, batch_size=200)
        ended.set()
        if change != "still":
            writer.join()
        assert not dumped.get("failed"), dumped
        keys = keys_of(tmp_path / "d")
        assert staying <= set(keys)
        assert dumped["keys"] == len(keys)
        if change == "still":
            # What two neighbours get at their seam is written once, unless the table is still being resized there.
            assert len(keys) <= len(staying) + workers * 200

    def test_more_parts_than_buckets_miss_no_key(self, redis_server: RedisServer, tmp_path: Path) -> None:
        many(redis_server, 5)
        dumped = dump(redis_server, tmp_path / "d", workers=16)
        assert set(keys_of(tmp_path / "d")) == {b"key:%d" % at for at in range(5)}
        assert 5 <= dumped["keys"] <= 80

    def test_keys_written_meanwhile_are_whole(self, start_server: Start, tmp_path: Path) -> None:
        source, target = start_server(), start_server()
        with source.client(1) as client:
            client.mset({f"k:{at}": "0" * 50 for at in range(20_000)})
        ended = threading.Event()

        def write() -> None:
            rng = random.Random(1)
            with source.client(1) as client:
                while not ended.is_set():
                    client.mset({f"k:{rng.randrange(20_000)}": str(rng.randrange(10)) * 50 for _key in range(200)})

        writer = threading.Thread(target=write)
        writer.start()
        dumped = dump(source, tmp_path / "d", workers=2)
        ended.set()
        writer.join()
        load(target, tmp_path / "d")
        assert dumped["expired"] == 0
        with target.client() as client:
            keys = list(client.scan_iter(count=1000))
            assert len(keys) == 20_000
            assert all(len(set(value)) == 1 and len(value) == 50 for value in client.mget(keys))


class TestRefusals:
    def test_a_database_that_does_not_exist_is_told(self, redis_server: RedisServer, tmp_path: Path) -> None:
        result = dump(redis_server, tmp_path / "d", db=16)
        assert result["failed"] and "DB index is out of range" in result["msg"]
        assert list(tmp_path.glob("d*")) == []

    @pytest.mark.parametrize("option", ["batch_size", "workers", "max_keys_per_second"])
    def test_numbers_that_make_no_sense_are_told(self, redis_server: RedisServer, tmp_path: Path, option: str) -> None:
        result = dump(redis_server, tmp_path / "d", **{option: 0})
        assert result["msg"] == f"{option} is 0; it must be at least 1"
        assert "numbered from 0" in dump(redis_server, tmp_path / "d", target_db=-1)["msg"]

    def test_wrong_logins_are_told_without_the_password(self, start_server: Start, tmp_path: Path) -> None:
        server = start_server(config=["requirepass s3cret", "user reader on >pass ~* +@read +info +select"])
        wrong = dump(server, tmp_path / "d", login_password="not-it-either")
        none = dump(server, tmp_path / "d")
        limited = dump(server, tmp_path / "d", login_user="nobody", login_password="not-it-either")
        for result in (wrong, none, limited):
            assert result["failed"] and "Check login_user and login_password" in result["msg"]
            assert "not-it-either" not in str(result)
        assert dump(server, tmp_path / "d", login_password="s3cret")["keys"] == 0

    def test_wrong_addresses_are_told(self, redis_server: RedisServer, tmp_path: Path) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            result = dump(redis_server, tmp_path / "d", login_port=unused.getsockname()[1])
        assert result["failed"] and "Is the server up? Check login_host and login_port" in result["msg"]
        result = dump(redis_server, tmp_path / "d", login_host="no-such-host.invalid")
        assert result["failed"] and "no-such-host.invalid" in result["msg"]

    def test_tls_where_there_is_none_is_told(
        self, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server_module, "CONNECT_TIMEOUT_S", 0.5)
        result = dump(redis_server, tmp_path / "d", tls=True)
        assert result["failed"] and "Is tls right" in result["msg"]

    def test_cluster_mode_has_one_database(self, start_server: Start, tmp_path: Path) -> None:
        server = start_server("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
        result = dump(server, tmp_path / "d", db=1)
        assert result["failed"] and "cluster mode" in result["msg"]
        with server.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            wait_for(lambda: client.cluster("INFO")["cluster_state"] == "ok", "the cluster")
            client.set("a", 1)
        assert dump(server, tmp_path / "d", db=0, workers=8)["keys"] == 1

    def test_a_replica_in_cluster_mode_is_dumped(self, start_server: Start, tmp_path: Path) -> None:
        buses = [free_port(), free_port()]
        nodes = [start_server("--cluster-enabled", "yes", "--cluster-port", str(bus)) for bus in buses]
        with nodes[0].client() as primary, nodes[1].client() as replica:
            primary.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            replica.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, buses[0])
            name = primary.execute_command("CLUSTER", "MYID")
            wait_for(lambda: primary.cluster("INFO")["cluster_state"] == "ok", "the cluster")
            for at in range(20):
                primary.set(f"string:{at}", at)
                primary.rpush(f"list:{at}", at)
            wait_for(lambda: name.decode() in str(replica.execute_command("CLUSTER", "SLOTS")), "the primary")
            replica.execute_command("CLUSTER", "REPLICATE", name)
            wait_for(lambda: replica.info("replication")["master_link_status"] == "up", "the link")
            primary.wait(1, 10_000)
        assert must_dump(nodes[1], tmp_path / "d", db=0)["types"] == {"list": 20, "string": 20}

    def test_a_user_who_may_not_dump_is_told_with_the_key(self, start_server: Start, tmp_path: Path) -> None:
        server = start_server(
            config=["user reader on >pass ~* +@connection +info +dbsize +scan +multi +exec +pexpiretime"]
        )
        many(server, 3)
        result = dump(server, tmp_path / "d", login_user="reader", login_password="pass")
        assert result["failed"] and "refused key 'key:" in result["msg"] and "NOPERM" in result["msg"]
        assert list(tmp_path.glob("d*")) == []


def test_a_server_with_tls_is_dumped_where_it_is_trusted(tmp_path: Path) -> None:
    tls = make_tls(tmp_path / "tls")
    with RedisServer(tmp_path / "server", "redis", tls=tls) as server:
        many(server, 5_000)
        assert dump(server, tmp_path / "d", workers=2)["keys"] == 5_000
        assert load(server, tmp_path / "d", db=2)["dbsize_after"] == 5_000
        untrusted = dump(server, tmp_path / "e", ca_certs=None)
        assert "set ca_certs to the CA that signed it" in untrusted["msg"]
        unread = dump(server, tmp_path / "e", ca_certs=str(tmp_path / "gone"))
        assert unread["msg"] == f"ca_certs names {tmp_path}/gone, which is not there or cannot be read on this host"
        assert dump(server, tmp_path / "e", ca_certs=None, validate_certs=False)["keys"] == 5_000
        plain = dump(server, tmp_path / "f", tls=False, ca_certs=None)
        assert plain["failed"] and "a server with TLS hangs up like this" in plain["msg"]


class TestTheFile:
    def test_is_made_once(self, redis_server: RedisServer, tmp_path: Path) -> None:
        many(redis_server, 10)
        checked = run_module("resp_dump", **login(redis_server), db=1, dest=str(tmp_path / "d"), _check=True)
        assert (checked["changed"], checked["keys"], list(tmp_path.glob("d*"))) == (True, 10, [])
        first = dump(redis_server, tmp_path / "d")
        second = dump(redis_server, tmp_path / "d")
        assert {**second, "elapsed": 0} == {**first, "changed": False, "elapsed": 0}
        assert dump(redis_server, tmp_path / "d", force=True)["changed"]

    @pytest.mark.parametrize("other", [{"db": 2}, {"target_db": 4}, {"match": "a*"}])
    def test_of_another_dump_is_not_taken_for_it(
        self, redis_server: RedisServer, tmp_path: Path, other: dict[str, Any]
    ) -> None:
        many(redis_server, 10)
        dump(redis_server, tmp_path / "d")
        result = dump(redis_server, tmp_path / "d", **other)
        assert result["failed"] and f"is another dump ({next(iter(other))}=" in result["msg"]

    def test_of_another_server_is_not_taken_for_it(self, redis_server: RedisServer, tmp_path: Path) -> None:
        many(redis_server, 10)
        dump(redis_server, tmp_path / "d")
        with RedisServer(tmp_path / "other") as other:
            many(other, 10)
            result = dump(other, tmp_path / "d")
        origin = f"from=127.0.0.1:{redis_server.port}"
        assert result["failed"] and f"is another dump ({origin}): name another dest" in result["msg"]

    def test_a_full_disk_leaves_nothing(self, redis_server: RedisServer, tmp_path: Path) -> None:
        many(redis_server, 100)
        result = dump(redis_server, Path("/dev/full/d"))
        assert result["failed"] and "Cannot write /dev/full/d.part" in result["msg"]

    def test_a_server_that_is_killed_leaves_nothing(
        self, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        many(redis_server, 100_000)
        part = tmp_path / "d.part"
        monkeypatch.setattr(dump_worker, "RETRY_DELAYS_S", (0.01, 0.02))

        def kill() -> None:
            while not part.exists() or part.stat().st_size < 1 << 20:
                time.sleep(0.001)
            redis_server.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        result = dump(redis_server, tmp_path / "d", workers=2, max_keys_per_second=200_000)
        killer.join()
        assert result["failed"] and "in the middle of the work" in result["msg"]
        assert list(tmp_path.glob("d*")) == []

    @pytest.mark.parametrize(
        "read", [{"workers": 2, "max_keys_per_second": 100_000, "max_latency_ms": 99.0}, {"source": "replication"}]
    )
    def test_ended_by_sigterm_leaves_nothing(
        self, redis_server: RedisServer, tmp_path: Path, read: dict[str, Any]
    ) -> None:
        many(redis_server, 200_000)
        with redis_server.client() as client:
            # In microseconds; with it the RDB takes twenty seconds.
            client.config_set("rdb-key-save-delay", 100)
        part = tmp_path / ("d.rdb.part" if "source" in read else "d.part")
        with module_process("resp_dump", **login(redis_server), db=1, dest=str(tmp_path / "d"), **read) as process:
            wait_for(part.exists, "the dump to begin", interval=0.001)
            process.send_signal(signal.SIGTERM)
            result = json.loads(process.communicate(timeout=60)[0])
        assert result["failed"] and "Ended by SIGTERM" in result["msg"]
        assert list(tmp_path.glob("d*")) == []


def test_how_far_it_is_stands_in_a_file(redis_server: RedisServer, tmp_path: Path) -> None:
    many(redis_server, 500)
    path = tmp_path / "progress"
    dump(redis_server, tmp_path / "d", progress_file=str(path))
    facts = json.loads(path.read_text())
    assert (facts["state"], facts["done"], facts["total"]) == ("done", 500, 500)
    load(redis_server, tmp_path / "d", progress_file=str(path))
    facts = json.loads(path.read_text())
    assert (facts["state"], facts["done"], facts["total"]) == ("done", 500, 500)
    failed = dump(redis_server, tmp_path / "e", progress_file=str(tmp_path / "none" / "progress"))
    assert failed["failed"] and "The folder of progress_file" in failed["msg"]
    assert list(tmp_path.glob("e*")) == []
