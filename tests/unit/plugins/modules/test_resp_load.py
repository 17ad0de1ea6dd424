# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.keyspaces import contents, login
from support.modules import run_module

from ansible_collections.keyferry.redis.plugins.module_utils import dump_file
from ansible_collections.keyferry.redis.plugins.module_utils import load as load_module
from ansible_collections.keyferry.redis.plugins.module_utils import server as server_module
from ansible_collections.keyferry.redis.plugins.module_utils.resp import command
from ansible_collections.keyferry.redis.plugins.modules import resp_load
from lab.nodes import RedisServer, free_port, wait_for
from lab.sample_data import fill

Start = Callable[..., RedisServer]
BeforeTheSecondBlock = Callable[[Callable[[], object]], None]


def dump(server: RedisServer, dest: Path, **options: Any) -> dict[str, Any]:
    result = run_module("resp_dump", **{**login(server), "db": 1, "dest": str(dest), "workers": 1, **options})
    assert not result.get("failed"), result
    return result


def load(server: RedisServer, src: Path, **options: Any) -> dict[str, Any]:
    return run_module("resp_load", **{**login(server), "src": str(src), **options})


def sizes(server: RedisServer) -> dict[str, int]:
    with server.client() as client:
        return {name: facts["keys"] for name, facts in client.info("keyspace").items()}


@pytest.fixture
def sample(redis_server: RedisServer, tmp_path: Path) -> Path:
    """A dump of 40 keys with an index of several blocks; its server keeps them in database 1."""
    fill(("127.0.0.1", redis_server.port), 40, 1)
    dump(redis_server, tmp_path / "sample")
    return tmp_path / "sample"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 4 KiB, so that a dump of a few keys has many."""
    monkeypatch.setattr(dump_file, "BLOCK_BYTES", 4096)


class TestOurs:
    @pytest.mark.usefixtures("small_blocks")
    @pytest.mark.parametrize("workers", [None, 1, 4])
    def test_into_the_database_it_names(
        self, start_server: Start, redis_server: RedisServer, tmp_path: Path, workers: int | None
    ) -> None:
        fill(("127.0.0.1", redis_server.port), 2000, 1)
        dump(redis_server, tmp_path / "d", target_db=9)
        target = start_server()
        result = load(target, tmp_path / "d", workers=workers)
        assert {**result, "elapsed": 0} == {
            **{"changed": True, "keys": 2000, "commands": 2000, "replies": 2000, "errors": 0},
            **{"dbsize_before": 0, "dbsize_after": 2000, "elapsed": 0, "invocation": result["invocation"]},
        }
        assert contents(target, 9) == contents(redis_server, 1)

    @pytest.mark.parametrize("batch_size", [1, 7, 5000])
    def test_a_few_commands_at_a_time(self, redis_server: RedisServer, sample: Path, batch_size: int) -> None:
        assert load(redis_server, sample, db=4, batch_size=batch_size)["replies"] == 40
        assert contents(redis_server, 4) == contents(redis_server, 1)
        again = load(redis_server, sample, db=4, batch_size=batch_size, replace=False)
        assert "command 1 of 40" in again["msg"] and "BUSYKEY" in again["msg"]
        assert "must be at least 1" in load(redis_server, sample, batch_size=0)["msg"]

    def test_into_another_database(self, redis_server: RedisServer, sample: Path) -> None:
        assert load(redis_server, sample, db=4)["dbsize_after"] == 40
        assert contents(redis_server, 4) == contents(redis_server, 1)
        assert sizes(redis_server) == {"db1": 40, "db4": 40}

    def test_again_does_no_harm(self, redis_server: RedisServer, sample: Path) -> None:
        load(redis_server, sample)
        again = load(redis_server, sample)
        assert (again["replies"], again["dbsize_before"], again["dbsize_after"]) == (40, 40, 40)
        assert contents(redis_server, 0) == contents(redis_server, 1)

    def test_check_mode_sends_nothing(self, redis_server: RedisServer, sample: Path) -> None:
        result = run_module("resp_load", **login(redis_server), src=str(sample), _check=True)
        assert (result["changed"], result["keys"], result["replies"]) == (True, 40, 0)
        assert sizes(redis_server) == {"db1": 40}

    def test_without_replace_stops_at_the_first_key(self, redis_server: RedisServer, sample: Path) -> None:
        with redis_server.client() as client:
            client.set("empty value", "mine")
        result = load(redis_server, sample, replace=False)
        assert result["failed"] and "RESTORE of key 'empty value', command " in result["msg"]
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
        dump(redis_server, tmp_path / "d")
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

    def test_a_dump_that_is_not_there(self, redis_server: RedisServer, tmp_path: Path) -> None:
        result = load(redis_server, tmp_path / "none")
        assert result["failed"] and "Cannot read the dump" in result["msg"]


class TestOfAnotherTool:
    def test_like_redis_dump_go(self, redis_server: RedisServer, tmp_path: Path) -> None:
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

    def test_like_an_append_only_file(self, redis_server: RedisServer, tmp_path: Path) -> None:
        """Several databases, transactions, and commands that answer with more than a line."""
        parts = [command("SELECT", 0), command("SET", "a", 1), command("SELECT", 5), command("MULTI")]
        parts += [command("INCRBY", "n", 5), command("LPUSH", "l", "x"), command("EXEC"), command("GETSET", "n", "9")]
        (tmp_path / "d").write_bytes(b"".join([*parts, command("SELECT", 0), command("APPEND", "a", 2)]))
        result = load(redis_server, tmp_path / "d")
        assert (result["replies"], result["dbsize_after"]) == (7, 3)
        assert sizes(redis_server) == {"db0": 1, "db5": 2}
        with redis_server.client() as client:
            assert client.get("a") == b"12"

    def test_many_selects(self, redis_server: RedisServer, tmp_path: Path) -> None:
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
    def test_a_protected_server(self, redis_server: RedisServer, sample: Path) -> None:
        with redis_server.client() as client:
            run_id = client.info("server")["run_id"]
        result = load(redis_server, sample, protected_run_ids=[run_id])
        assert result["failed"] and "protected_run_ids forbids" in result["msg"]
        assert sizes(redis_server) == {"db1": 40}

    def test_another_server_that_answers_by_then(
        self, start_server: Start, redis_server: RedisServer, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with switched_after_approval(resp_load, redis_server, start_server(), monkeypatch) as (port, other):
            result = load(redis_server, sample, login_port=port)
            assert result["failed"] and "Another server process answers at" in result["msg"]
            assert sizes(other) == {"db1": 1}

    def test_a_database_that_it_does_not_have(self, redis_server: RedisServer, sample: Path) -> None:
        result = load(redis_server, sample, db=99)
        assert result["failed"] and "DB index is out of range" in result["msg"]

    def test_a_replica(self, start_server: Start, redis_server: RedisServer, sample: Path) -> None:
        replica = start_server()
        with replica.client() as client:
            client.replicaof("127.0.0.1", redis_server.port)
        result = load(replica, sample)
        assert result["failed"]
        assert f"is a read-only replica of 127.0.0.1:{redis_server.port}. Load into the primary" in result["msg"]

    def test_one_without_memory(self, start_server: Start, redis_server: RedisServer, sample: Path) -> None:
        target = start_server("--maxmemory", "2000000", "--maxmemory-policy", "noeviction")
        result = load(target, sample)
        assert result["failed"] and "OOM command not allowed" in result["msg"]
        assert "RESTORE of key '" in result["msg"] and "of 40 at byte" in result["msg"]
        assert "commands are done: when the cause is gone, load again with resume=true" in result["msg"]

    def test_an_engine_too_old_for_the_payloads(self, tmp_path: Path) -> None:
        """Valkey 9 writes payloads of RDB version 80, which Redis 7.0 refuses."""
        with RedisServer(tmp_path / "valkey", "valkey") as new, RedisServer(tmp_path / "redis", "redis") as old:
            fill(("127.0.0.1", new.port), 40, 1)
            dump(new, tmp_path / "d")
            result = load(old, tmp_path / "d")
            assert result["failed"] and "reads DUMP payloads up to RDB version 10; those in" in result["msg"]
            assert "have version 80, and among them are values of the types 20, 21, which" in result["msg"]
            assert "version 7.0" in result["msg"] and "format=commands" in result["msg"]
            assert sizes(old) == {}
            fill(("127.0.0.1", old.port), 40, 1)
            dump(old, tmp_path / "e")
            assert load(new, tmp_path / "e")["dbsize_after"] == 40
            assert {key: ttl for key, (_digest, ttl) in contents(new).items()} == {
                key: ttl for key, (_digest, ttl) in contents(old, 1).items()
            }

    @pytest.mark.parametrize("replace", [True, False])
    def test_an_older_engine_that_knows_all_types(self, tmp_path: Path, replace: bool) -> None:
        """The version in each payload is lowered then; the server checks the new checksum."""
        with RedisServer(tmp_path / "valkey", "valkey") as new, RedisServer(tmp_path / "redis", "redis") as old:
            with new.client(1) as client:
                client.set("string", "x" * 3000, px=10**9)
                client.hset("hash", mapping={"f": "v"})
                client.rpush("list", "a", "b")
                client.zadd("zset", {"m": 1.5})
                client.sadd("numbers", 1, 2, 3)
            dump(new, tmp_path / "d")
            assert load(old, tmp_path / "d", replace=replace)["replies"] == 5
            if replace:
                load(old, tmp_path / "d")
            found, expected = contents(old), contents(new, 1)
            # The two engines do not write a score in the same way when they make a digest.
            assert found.pop(b"zset")[1] == expected.pop(b"zset")[1] == -1
            assert found == expected
            with old.client() as client:
                assert client.zscore("zset", "m") == 1.5


class Faulty:
    """A proxy before a server: the connection that first sends so many bytes is broken, then one after the next number
    of bytes, and so on; when the numbers are used up, none is."""

    def __init__(self, port: int, *after: int) -> None:
        self.upstream = port
        self._after = list(after)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.upstream))
            threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        sent = 0
        try:
            while data := source.recv(1 << 14):
                sink.sendall(data)
                sent += len(data)
                if counted and self._after and sent > self._after[0]:
                    del self._after[0]
                    break
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def switched_after_approval(
    module: Any, server: RedisServer, other: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, RedisServer]]:
    """A port that leads to a server until a module has approved of that, and then to another one, with one key."""
    proxy = Faulty(server.port)
    approve = module.refuse_protected

    def approve_and_switch(*args: Any, **options: Any) -> str:
        run_id = approve(*args, **options)
        proxy.upstream = other.port
        return str(run_id)

    with other.client(1) as client:
        client.set("key", "value")
    monkeypatch.setattr(module, "refuse_protected", approve_and_switch)
    yield proxy.port, other
    proxy.close()


@pytest.mark.usefixtures("small_blocks")
class TestSetbacks:
    @pytest.fixture
    def before_the_second_block(self, monkeypatch: pytest.MonkeyPatch) -> BeforeTheSecondBlock:
        """Have something happen in the middle of a load over one connection."""

        def when(happens: Callable[[], object]) -> None:
            blocks = itertools.count(1)
            original = load_module._Lane._send

            def send(lane: Any, block: Any) -> None:
                if next(blocks) == 2:
                    happens()
                original(lane, block)

            monkeypatch.setattr(load_module._Lane, "_send", send)

        return when

    @pytest.fixture(autouse=True)
    def short_delays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(load_module, "SETBACK_DELAYS_S", (0.05, 0.3, 1))

    def test_a_broken_connection_is_made_anew(
        self, start_server: Start, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        fill(("127.0.0.1", redis_server.port), 3000, 1)
        dump(redis_server, tmp_path / "d")
        target = start_server()
        proxy = Faulty(target.port, *[100_000] * 3)
        result = load(target, tmp_path / "d", login_port=proxy.port, workers=2)
        proxy.close()
        assert not result.get("failed"), result
        assert (result["replies"], result["dbsize_after"]) == (3000, 3000)
        assert contents(target) == contents(redis_server, 1)

    def test_one_that_breaks_always_ends_in_an_error(self, redis_server: RedisServer, sample: Path) -> None:
        proxy = Faulty(redis_server.port, 30_000, *[2_000] * 99)
        result = load(redis_server, sample, login_port=proxy.port, workers=1)
        proxy.close()
        assert result["failed"] and "the connection broke" in result["msg"]

    def test_goes_on_where_it_failed(self, redis_server: RedisServer, tmp_path: Path) -> None:
        sample = tmp_path / "d"
        with redis_server.client(1) as client:
            client.execute_command("DEBUG", "POPULATE", 5_000)
        dump(redis_server, sample, batch_size=20)
        proxy = Faulty(redis_server.port, 30_000, *[2_000] * 99)
        failed = load(redis_server, sample, login_port=proxy.port, workers=1)
        proxy.close()
        assert failed["failed"]
        resumed = load(redis_server, sample, resume=True)
        assert 0 < resumed["replies"] < 5_000 and resumed["dbsize_after"] == 5_000
        assert contents(redis_server) == contents(redis_server, 1)
        # What is written down has been used up.
        assert load(redis_server, sample, resume=True)["replies"] == 5_000

    def test_commands_are_not_sent_again_at_once(
        self, start_server: Start, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        """The server may not be done yet with those that it got before the connection broke."""
        with redis_server.client(1) as client:
            for at in range(300):
                client.rpush(f"list:{at}", *range(50))
        dump(redis_server, tmp_path / "d", format="commands", batch_size=20)
        target = start_server()
        proxy = Faulty(target.port, 30_000)
        failed = load(target, tmp_path / "d", login_port=proxy.port, workers=1)
        proxy.close()
        assert failed["failed"] and "the connection broke" in failed["msg"]
        assert "load again with resume=true" in failed["msg"]
        resumed = load(target, tmp_path / "d", resume=True)
        assert 0 < resumed["replies"] < 600 and resumed["dbsize_after"] == 300
        assert contents(target) == contents(redis_server, 1)

    def test_starts_anew_on_another_server(self, start_server: Start, redis_server: RedisServer, sample: Path) -> None:
        proxy = Faulty(redis_server.port, 30_000, *[2_000] * 99)
        assert load(redis_server, sample, login_port=proxy.port, workers=1)["failed"]
        proxy.close()
        assert load(start_server(), sample, resume=True)["replies"] == 40

    @pytest.mark.parametrize("text", ["", "{}", "[]", "1", '{"run_id": 1, "db": 0, "sha256": "", "undone": 5}'])
    def test_what_is_written_down_makes_no_sense(self, redis_server: RedisServer, sample: Path, text: str) -> None:
        sample.with_name("sample.resume").write_text(text)
        assert load(redis_server, sample, resume=True).get("replies") == 40

    def test_a_server_that_is_killed(self, start_server: Start, redis_server: RedisServer, tmp_path: Path) -> None:
        with redis_server.client(1) as client:
            client.execute_command("DEBUG", "POPULATE", 100_000)
        dump(redis_server, tmp_path / "d")
        target = start_server()

        def kill() -> None:
            with target.client() as client:
                while client.dbsize() < 1000:
                    time.sleep(0.001)
            target.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        result = load(target, tmp_path / "d", workers=1)
        killer.join()
        assert result["failed"] and "the connection broke" in result["msg"]

    def test_one_that_was_restarted_meanwhile(
        self, start_server: Start, redis_server: RedisServer, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the old process had acknowledged is gone, so that going on would lose it."""
        other = start_server()
        proxy = Faulty(redis_server.port, 30_000)
        original = load_module._Run._give_back

        def fail_over(run: Any, blocks: Any) -> Any:
            proxy.upstream = other.port
            return original(run, blocks)

        monkeypatch.setattr(load_module._Run, "_give_back", fail_over)
        result = load(redis_server, sample, login_port=proxy.port, workers=1)
        proxy.close()
        assert result["failed"] and "Another server process answers at" in result["msg"]
        assert "resume=true" not in result["msg"]

    def test_a_busy_server_is_waited_for(self, start_server: Start, sample: Path) -> None:
        target = start_server("--lua-time-limit", "10")
        started, refused = threading.Event(), threading.Event()
        send, give_back = load_module._Lane._send, load_module._Run._give_back

        def keep_busy() -> None:
            with target.client(socket_timeout=60) as client, pytest.raises(redis.ResponseError, match="killed"):
                client.eval("repeat until false", 0)

        def is_busy() -> bool:
            with target.client() as client, contextlib.suppress(redis.ResponseError):
                return not client.ping()
            return True

        def send_when_busy(lane: Any, block: Any) -> None:
            if not started.is_set():
                started.set()
                script.start()
                wait_for(is_busy, "the script", interval=0.005)
            send(lane, block)

        def note(*args: Any) -> Any:
            refused.set()
            return give_back(*args)

        def end_it() -> None:
            refused.wait(60)
            with target.client() as client:
                client.script_kill()

        script, end = threading.Thread(target=keep_busy), threading.Thread(target=end_it)
        end.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(load_module._Lane, "_send", send_when_busy)
            patch.setattr(load_module._Run, "_give_back", note)
            result = load(target, sample)
        end.join()
        script.join()
        assert not result.get("failed"), result
        assert result["dbsize_after"] == 40

    def test_a_server_that_loads_its_data_is_waited_for(
        self, redis_server: RedisServer, sample: Path, before_the_second_block: BeforeTheSecondBlock
    ) -> None:
        with redis_server.client(2) as client:
            client.execute_command("DEBUG", "POPULATE", 3000)
            client.config_set("key-load-delay", 100)
            client.config_set("loading-process-events-interval-bytes", 1024)

        def reload() -> None:
            with redis_server.client(socket_timeout=30) as client:
                client.execute_command("DEBUG", "RELOAD")

        reloading = threading.Thread(target=reload)

        def begin() -> None:
            reloading.start()
            with redis_server.client() as client:
                wait_for(lambda: client.info("persistence")["loading"], "the server to load", interval=0.005)

        before_the_second_block(begin)
        result = load(redis_server, sample, workers=1)
        reloading.join()
        assert (result.get("replies"), result.get("dbsize_after")) == (40, 40), result
        assert contents(redis_server) == contents(redis_server, 1)

    def test_one_that_becomes_a_replica(
        self, start_server: Start, sample: Path, before_the_second_block: BeforeTheSecondBlock
    ) -> None:
        target = start_server()

        def demote() -> None:
            with target.client() as client:
                client.replicaof("127.0.0.1", free_port())

        before_the_second_block(demote)
        result = load(target, sample, workers=1)
        assert result["failed"] and ": READONLY You can't write against a read only replica" in result["msg"]
        assert "refused RESTORE of key '" in result["msg"] and "of 40 at byte" in result["msg"]
        assert "load again with resume=true" in result["msg"]

    def test_one_that_stops_reading(
        self,
        start_server: Start,
        sample: Path,
        before_the_second_block: BeforeTheSecondBlock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(server_module, "SILENCE_TIMEOUT_S", 0.4)
        monkeypatch.setattr(server_module, "CONNECT_TIMEOUT_S", 0.4)
        target = start_server()
        before_the_second_block(lambda: target.process.send_signal(signal.SIGSTOP))
        result = load(target, sample, workers=1)
        target.process.send_signal(signal.SIGCONT)
        assert result["failed"] and "timed out" in result["msg"]
        assert "load again with resume=true" in result["msg"]

    def test_a_password_is_wanted_before_anything_else(self, start_server: Start, sample: Path) -> None:
        target = start_server("--requirepass", "good")
        result = load(target, sample)
        assert result["failed"] and "Check login_user and login_password" in result["msg"]
        assert load(target, sample, login_password="good")["replies"] == 40

    def test_a_user_who_may_not_write(self, redis_server: RedisServer, sample: Path) -> None:
        with redis_server.client() as client:
            client.execute_command("ACL", "SETUSER", "reader", "on", ">pass", "~*", "+@all", "-restore")
        result = load(redis_server, sample, login_user="reader", login_password="pass")
        assert result["failed"] and "NOPERM" in result["msg"]


BYTES = st.one_of(st.binary(max_size=12), st.integers(-(1 << 63), (1 << 63) - 1).map(lambda number: b"%d" % number))
BLOBS = st.one_of(
    BYTES, st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=9), st.integers(1, 90))
)
SCORES = st.floats(allow_nan=False).map(lambda score: b"%.17g" % score)
VALUES = st.one_of(
    st.tuples(st.just(b"SET"), st.lists(BLOBS, min_size=1, max_size=1)),
    st.tuples(st.sampled_from([b"RPUSH", b"SADD", b"PFADD"]), st.lists(BLOBS, min_size=1, max_size=150)),
    st.tuples(st.just(b"HSET"), st.lists(st.tuples(BLOBS, BLOBS), min_size=1, max_size=150).map(lambda p: sum(p, ()))),
    st.tuples(st.just(b"ZADD"), st.lists(st.tuples(SCORES, BLOBS), min_size=1, max_size=150).map(lambda p: sum(p, ()))),
    st.tuples(st.just(b"XADD"), st.tuples(BLOBS, BLOBS).map(lambda pair: (b"*", *pair))),
)
DATABASES = st.dictionaries(BYTES, st.tuples(VALUES, st.none() | st.integers(10**6, 10**11)), max_size=25)


def test_whole_databases_arrive(start_server: Start, tmp_path: Path) -> None:
    """Whatever the keys and values are, the copy is the same by the server's own digest, and expires in the same ms."""
    source, target = start_server(), start_server()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(DATABASES, st.sampled_from([1, 2, 8]))
    def moves(database: dict[bytes, Any], workers: int) -> None:
        with source.client() as one, target.client() as other:
            one.flushall()
            other.flushall()
        with source.client(1) as client, client.pipeline(transaction=False) as pipeline:
            for key, ((verb, args), ttl) in database.items():
                pipeline.execute_command(verb, key, *args)
                if ttl:
                    pipeline.execute_command("PEXPIRE", key, ttl)
            pipeline.execute()
        dumped = dump(source, tmp_path / "d", force=True, workers=workers, batch_size=10)
        loaded = load(target, tmp_path / "d")
        # A key that several workers get while the table is resized is there twice, and does no harm.
        assert dumped["keys"] == loaded["replies"] >= len(database)
        assert contents(target) == contents(source, 1)

    moves()
