# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_dump from a server that others write to, and whose connections do not last."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support.dumps import commands_of, dump, keys_of, load, many, must_dump
from support.keyspaces import contents
from support.proxies import Detour
from support.scripts import EndlessScript

from ansible_collections.keyferry.redis.plugins.module_utils import dump_wire, dump_worker, rdb_bytes
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.pace import Pace, latency_of
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Server
from lab.nodes import RedisServer, wait_for
from lab.sample_data import fill

Start = Callable[..., RedisServer]


@contextlib.contextmanager
def meanwhile(work: Callable[[], None], pause: float = 0.0) -> Iterator[None]:
    """Do something again and again, in a thread, until the context ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(pause):
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class TestValueAndTtl:
    """No value goes with the TTL of another one. The keys' names are so long that the server reads few at a time."""

    NAMES = tuple(f"{at:02d}" + "n" * 4000 for at in range(20))

    def write(self, server: RedisServer, start: int) -> Callable[[], None]:
        ends = iter(range(start, start + 10**9))
        client = server.client(1)

        def write() -> None:
            with client.pipeline(transaction=False) as pipeline:
                for name in self.NAMES:
                    end = next(ends)
                    pipeline.set(name, end, pxat=end)
                pipeline.execute()

        return write

    def torn(self, server: RedisServer, directory: Path) -> list[int]:
        """How far value and TTL of each key are apart, in ms, in twenty dumps."""
        found = []
        with meanwhile(self.write(server, 4_000_000_000_000)):
            for turn in range(20):
                path = directory / f"{turn}"
                dumped = dump(server, path, batch_size=100)
                assert not dumped.get("failed"), dumped
                for verb, _key, *arguments in commands_of(path):
                    if verb == b"SET":
                        value, _pxat, ttl = arguments
                    else:
                        ttl, value = arguments[0], rdb_bytes.read_string(arguments[1], 1)[0]
                    found.append(int(ttl) - int(value))
        return found

    def test_belong_together(self, redis_server: RedisServer, tmp_path: Path) -> None:
        found = self.torn(redis_server, tmp_path)
        assert len(found) >= 200 and set(found) == {0}

    def test_would_not_without_a_transaction(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The test above can tell."""
        monkeypatch.setattr(dump_wire, "_MULTI", b"")
        monkeypatch.setattr(dump_wire, "_EXEC", b"")
        monkeypatch.setattr(dump_wire.Replies, "begin", lambda *_args: None)
        with RedisServer(tmp_path / "server") as server:
            assert set(self.torn(server, tmp_path)) - {0}


@pytest.fixture
def detour(redis_server: RedisServer) -> Iterator[Detour]:
    with Detour(redis_server.port) as found:
        yield found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again as often as always, and sooner."""
    monkeypatch.setattr(dump_worker, "RETRY_DELAYS_S", (0.01,) * len(dump_worker.RETRY_DELAYS_S))


@pytest.mark.usefixtures("quick")
class TestConnectionsThatBreak:
    def test_killed_again_and_again_they_lose_no_key(self, redis_server: RedisServer, tmp_path: Path) -> None:
        many(redis_server, 50_000)
        killed = []
        killer = redis_server.client()
        own = killer.client_id()

        def kill() -> None:
            readers = [each for each in killer.client_list() if each["db"] == "1" and int(each["id"]) != own]
            killed.extend(readers)
            for reader in readers:
                with contextlib.suppress(redis.ResponseError):
                    killer.client_kill_filter(_id=reader["id"])

        with killer, meanwhile(kill, pause=0.1):
            dumped = dump(redis_server, tmp_path / "d", workers=2, batch_size=500, max_keys_per_second=20_000)
        assert not dumped.get("failed"), dumped
        assert len(killed) > 10
        keys = keys_of(tmp_path / "d")
        assert set(keys) == {b"key:%d" % at for at in range(50_000)}
        assert dumped["keys"] == dumped["commands"] == len(keys) == sum(dumped["types"].values())

    @pytest.mark.parametrize("workers", [1, 2])
    def test_cut_at_any_byte_they_lose_nothing(self, start_server: Start, tmp_path: Path, workers: int) -> None:
        source, target = start_server(), start_server()
        fill(("127.0.0.1", source.port), 400, 1)
        rng = random.Random(workers)
        with Detour(source.port) as detour:
            for turn in range(12):
                # The first connection is the module's own, for questions; then come the readers' ones.
                detour.limits = [1 << 20] + [10_000 + rng.randrange(400_000) for _connection in range(4)]
                path = tmp_path / f"{turn}"
                dumped = dump(source, path, login_port=detour.port, workers=workers, batch_size=50)
                assert not dumped.get("failed"), dumped
                assert dumped["expired"] == 0
                load(target, path)
                assert contents(target) == contents(source, 1)
                with target.client() as client:
                    client.flushdb()
            assert detour.connections > 12 * (1 + workers)

    def test_cut_within_a_large_value_they_lose_nothing(self, start_server: Start, tmp_path: Path) -> None:
        source, target = start_server(), start_server()
        rng = random.Random(7)
        with source.client(1) as client:
            client.mset({f"k{at}": at for at in range(50)})
            client.set("large", rng.randbytes(20 << 20), px=86_400_000)
        with Detour(source.port) as detour:
            detour.limits = [1 << 20, 9 << 20, 15 << 20]
            dumped = dump(source, tmp_path / "d", login_port=detour.port)
        assert (dumped["keys"], dumped["commands"], dumped["types"]) == (51, 51, {"string": 51}), dumped
        load(target, tmp_path / "d")
        assert contents(target) == contents(source, 1)
        assert {path.name for path in tmp_path.glob("*d*")} == {"d"}

    @pytest.mark.parametrize("kind", ["string", "hash"])
    def test_cut_within_each_large_value_they_go_on(self, redis_server: RedisServer, tmp_path: Path, kind: str) -> None:
        """It is more often than is tried in a row."""
        value = random.Random(7).randbytes(9 << 20)
        with redis_server.client(1) as client:
            for at in range(8):
                client.set(f"k{at}", value) if kind == "string" else client.hset(f"k{at}", "field", value)
        with Detour(redis_server.port) as detour:
            detour.limits = [1 << 20] + [13 << 20] * 7
            dumped = must_dump(redis_server, tmp_path / "d", login_port=detour.port)
            assert detour.limits == []
        assert dumped["types"] == {kind: 8}

    def test_cut_where_no_key_matches_they_go_on(self, redis_server: RedisServer, tmp_path: Path) -> None:
        many(redis_server, 100_000)
        with Detour(redis_server.port) as detour:
            detour.limits = [1 << 20] + [3_000] * 7
            dumped = must_dump(redis_server, tmp_path / "d", login_port=detour.port, match="none", batch_size=100)
            assert detour.limits == []
        assert dumped["keys"] == 0

    def test_of_a_server_that_is_busy_for_a_while_they_lose_nothing(
        self, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(("127.0.0.1", redis_server.port), 400, 1)
        requests = itertools.count(1)
        request, back_off = dump_worker.Worker._request, dump_worker.Worker._back_off
        refusals = []

        def start_script(worker: Any, batch: Any) -> Any:
            if next(requests) == 4:
                script.start()
            return request(worker, batch)

        def end_it(worker: Any, trouble: KeyferryError) -> None:
            refusals.append(trouble.msg)
            script.end()
            back_off(worker, trouble)

        monkeypatch.setattr(dump_worker.Worker, "_request", start_script)
        monkeypatch.setattr(dump_worker.Worker, "_back_off", end_it)
        with EndlessScript(redis_server) as script:
            must_dump(redis_server, tmp_path / "d", workers=1, batch_size=50)
        assert [": BUSY " in refusal for refusal in refusals] == [True], refusals
        load(redis_server, tmp_path / "d")
        assert contents(redis_server) == contents(redis_server, 1)

    def test_broken_for_good_they_are_told(self, redis_server: RedisServer, detour: Detour, tmp_path: Path) -> None:
        many(redis_server, 5_000)
        detour.limits = [1 << 20] + [20_000] + [5_000] * 20
        result = dump(redis_server, tmp_path / "d", login_port=detour.port)
        assert result["failed"] and "in the middle of the work" in result["msg"]
        assert "It was tried 5 times again, at last with: " in result["msg"]
        assert list(tmp_path.glob("d*")) == []

    def test_another_process_is_not_gone_on_with(self, start_server: Start, tmp_path: Path) -> None:
        """Its table has another order, so that its part from the cursor on is another one."""
        one, other = start_server(), start_server()
        many(one, 20_000)
        many(other, 20_000)
        with Detour(one.port) as detour:

            def fail_over() -> None:
                part = tmp_path / "d.part"
                wait_for(lambda: part.exists() and part.stat().st_size > 100_000, "the dump", interval=0.001)
                detour.target = other.port
                detour.cut()

            thread = threading.Thread(target=fail_over)
            thread.start()
            options = {"login_port": detour.port, "batch_size": 100, "max_keys_per_second": 20_000}
            result = dump(one, tmp_path / "d", **options)
            thread.join()
        assert result["failed"] and "Another server process answers" in result["msg"]
        assert "mean nothing. Nothing is left of the dump; dump again" in result["msg"]
        assert list(tmp_path.glob("d*")) == []

    def test_an_endpoint_of_several_servers_is_told(
        self, start_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Readers keep to the one that was asked first, and say so where they cannot reach it."""
        one, other = start_server(), start_server()
        many(one, 3_000)
        with Detour(one.port) as detour:
            seen = dump_worker.Run.__init__

            def spread(*args: Any) -> None:
                seen(*args)
                detour.target = other.port

            monkeypatch.setattr(dump_worker.Run, "__init__", spread)
            result = dump(one, tmp_path / "d", login_port=detour.port)
            assert result["failed"] and "(a reader endpoint), name one of them" in result["msg"]


@pytest.mark.parametrize("kind", ["strings", "hashes"])
def test_a_server_never_has_much_to_say_at_once(tmp_path: Path, kind: str) -> None:
    """What waits for a client takes the memory of the data: a server with an eviction policy drops keys for it.

    On Redis only: Valkey 9.1 has been seen to count more than was asked for.
    """
    with RedisServer(tmp_path / "s", "redis", "--client-output-buffer-limit", "normal 24mb 0 0") as server:
        with server.client(1) as client:
            for at in range(100):
                value = random.randbytes(1 << 20)
                if kind == "strings":
                    client.set(f"key:{at}", value)
                else:
                    client.hset(f"key:{at}", "field", value)
        assert must_dump(server, tmp_path / "d")["keys"] == 100
        assert "overcoming of output buffer limits" not in server.log.read_text()


def _watchers(client: redis.Redis) -> set[str]:
    """The connections that have asked how long a PING takes."""
    return {each["id"] for each in client.client_list() if each["cmd"] == "ping" and each["name"]}


class TestLatency:
    def test_it_gives_way_and_comes_back(
        self, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        many(redis_server, 100_000)
        shares: list[float] = []
        wait = Pace.wait
        monkeypatch.setattr(Pace, "wait", lambda *args: (wait(*args), shares.append(args[0].share)))
        # So that an idle server's own jitter is none.
        most_ms = 40

        def hold() -> None:
            # Another client keeps the server busy, from when its latency is known until the dump has noticed that.
            with redis_server.client() as client:
                wait_for(lambda: shares and _watchers(client), "the dump", interval=0.001)
                while thread.is_alive() and min(shares) > 0.25:
                    client.execute_command("DEBUG", "SLEEP", 0.1)

        dumped: dict[str, Any] = {}
        thread = threading.Thread(
            target=lambda: dumped.update(dump(redis_server, tmp_path / "d", max_latency_ms=most_ms))
        )
        thread.start()
        hold()
        thread.join()
        assert dumped["keys"] == 100_000, dumped
        lowest = shares.index(min(shares))
        assert shares[lowest] <= 0.25
        # With every batch after that, it takes more.
        assert shares[-1] > shares[lowest]

    def test_a_connection_that_is_killed_is_made_anew(self, redis_server: RedisServer) -> None:
        server = Server(Address("127.0.0.1", redis_server.port))
        with latency_of(server) as excess, redis_server.client() as client:
            first = wait_for(lambda: _watchers(client), "the first connection")
            client.client_kill_filter(_id=first.pop())
            wait_for(lambda: _watchers(client) - first, "another connection")
            wait_for(lambda: excess() < 5, "an answer")
        wait_for(lambda: not [each for each in redis_server.client().client_list() if each["name"]], "its end")

    @pytest.mark.parametrize("most", [0, -1.5])
    def test_limits_that_make_no_sense_are_told(self, redis_server: RedisServer, tmp_path: Path, most: float) -> None:
        result = dump(redis_server, tmp_path / "d", max_latency_ms=most)
        assert result["failed"] and "it must be more than 0" in result["msg"]
