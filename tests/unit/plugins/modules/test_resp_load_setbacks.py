# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_load when a connection breaks, or the server is busy, restarted, killed or demoted in the middle of a load."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support.dumps import load, many, must_dump
from support.keyspaces import contents
from support.proxies import Detour
from support.scripts import EndlessScript

from ansible_collections.keyferry.redis.plugins.module_utils import load as load_module
from ansible_collections.keyferry.redis.plugins.module_utils import server as server_module
from lab.nodes import RedisServer, free_port, wait_for
from lab.sample_data import fill

Start = Callable[..., RedisServer]
BeforeTheSecondBlock = Callable[[Callable[[], object]], None]


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
        must_dump(redis_server, tmp_path / "d")
        target = start_server()
        with Detour(target.port, *[100_000] * 3) as detour:
            result = load(target, tmp_path / "d", login_port=detour.port, workers=2)
        assert not result.get("failed"), result
        assert (result["replies"], result["dbsize_after"]) == (3000, 3000)
        assert contents(target) == contents(redis_server, 1)

    def test_one_that_breaks_always_ends_in_an_error(self, redis_server: RedisServer, sample: Path) -> None:
        with Detour(redis_server.port, 30_000, *[2_000] * 99) as detour:
            result = load(redis_server, sample, login_port=detour.port, workers=1)
        assert result["failed"] and "the connection broke" in result["msg"]

    def test_resume_goes_on_where_it_failed(self, redis_server: RedisServer, tmp_path: Path) -> None:
        sample = tmp_path / "d"
        with redis_server.client(1) as client:
            client.execute_command("DEBUG", "POPULATE", 5_000)
        must_dump(redis_server, sample, batch_size=20)
        with Detour(redis_server.port, 30_000, *[2_000] * 99) as detour:
            failed = load(redis_server, sample, login_port=detour.port, workers=1)
        assert failed["failed"]
        resumed = load(redis_server, sample, resume=True)
        assert 0 < resumed["replies"] < 5_000 and resumed["dbsize_after"] == 5_000
        assert contents(redis_server) == contents(redis_server, 1)
        # What is written down has been used up.
        assert load(redis_server, sample, resume=True)["replies"] == 5_000

    @pytest.mark.parametrize("meanwhile", ["the target is emptied", "another load is killed"])
    def test_resume_sends_all_where_what_was_done_may_be_gone(
        self,
        redis_server: RedisServer,
        tmp_path: Path,
        before_the_second_block: BeforeTheSecondBlock,
        meanwhile: str,
    ) -> None:
        many(redis_server, 5_000)
        must_dump(redis_server, tmp_path / "d", batch_size=20)
        with Detour(redis_server.port, 30_000, *[2_000] * 99) as detour:
            assert load(redis_server, tmp_path / "d", login_port=detour.port, workers=1)["failed"]
        assert (tmp_path / "d.resume").exists()
        if meanwhile == "the target is emptied":
            with redis_server.client() as client:
                client.flushdb()
        else:
            # It writes down nothing any more, and must not leave what the one before it did.
            before_the_second_block(mock.Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                load(redis_server, tmp_path / "d", workers=1)
        resumed = load(redis_server, tmp_path / "d", resume=True)
        assert (resumed["replies"], resumed["dbsize_after"]) == (5_000, 5_000)

    def test_resume_is_not_misled_by_keys_that_have_expired(self, redis_server: RedisServer, tmp_path: Path) -> None:
        with redis_server.client(1) as client:
            pipe = client.pipeline(transaction=False)
            for at in range(5_000):
                pipe.set(f"key:{at}", "x" * 20, px=None if at % 50 == 0 else 8_000)
            pipe.execute()
        must_dump(redis_server, tmp_path / "d", batch_size=100)
        with Detour(redis_server.port, 30_000, *[2_000] * 99) as detour:
            assert load(redis_server, tmp_path / "d", login_port=detour.port, workers=1)["failed"]
        with redis_server.client() as client:
            client.flushdb()
        with redis_server.client(1) as client:
            wait_for(lambda: client.dbsize() == 100, "the keys to expire, by the same clock as in the dump")
        assert load(redis_server, tmp_path / "d", resume=True)["replies"] == 5_000
        with redis_server.client() as client:
            wait_for(lambda: client.dbsize() == 100, "the expired keys to go")

    def test_commands_are_not_sent_again_at_once(
        self, start_server: Start, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        """The server may not be done yet with those that it got before the connection broke."""
        with redis_server.client(1) as client:
            for at in range(300):
                client.rpush(f"list:{at}", *range(50))
        must_dump(redis_server, tmp_path / "d", format="commands", batch_size=20)
        target = start_server()
        with Detour(target.port, 30_000) as detour:
            failed = load(target, tmp_path / "d", login_port=detour.port, workers=1)
        assert failed["failed"] and "the connection broke" in failed["msg"]
        assert "load again with resume=true" in failed["msg"]
        resumed = load(target, tmp_path / "d", resume=True)
        assert 0 < resumed["replies"] < 600 and resumed["dbsize_after"] == 300
        assert contents(target) == contents(redis_server, 1)

    def test_resume_starts_anew_on_another_server(
        self, start_server: Start, redis_server: RedisServer, sample: Path
    ) -> None:
        with Detour(redis_server.port, 30_000, *[2_000] * 99) as detour:
            assert load(redis_server, sample, login_port=detour.port, workers=1)["failed"]
        assert load(start_server(), sample, resume=True)["replies"] == 40

    @pytest.mark.parametrize("text", ["", "{}", "[]", "1", '{"run_id": 1, "db": 0, "sha256": "", "undone": 5}'])
    def test_what_is_written_down_and_makes_no_sense_is_passed_over(
        self, redis_server: RedisServer, sample: Path, text: str
    ) -> None:
        sample.with_name("sample.resume").write_text(text)
        assert load(redis_server, sample, resume=True).get("replies") == 40

    def test_a_server_that_is_killed_is_told(
        self, start_server: Start, redis_server: RedisServer, tmp_path: Path
    ) -> None:
        with redis_server.client(1) as client:
            client.execute_command("DEBUG", "POPULATE", 100_000)
        must_dump(redis_server, tmp_path / "d")
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

    def test_one_that_was_restarted_meanwhile_is_not_gone_on_with(
        self, start_server: Start, redis_server: RedisServer, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the old process had acknowledged is gone, so that going on would lose it."""
        other = start_server()
        original = load_module._Run._give_back
        with Detour(redis_server.port, 30_000) as detour:

            def fail_over(run: Any, blocks: Any) -> Any:
                detour.target = other.port
                return original(run, blocks)

            monkeypatch.setattr(load_module._Run, "_give_back", fail_over)
            result = load(redis_server, sample, login_port=detour.port, workers=1)
        assert result["failed"] and "Another server process answers at" in result["msg"]
        assert "resume=true" not in result["msg"]

    def test_a_busy_server_is_waited_for(
        self,
        redis_server: RedisServer,
        sample: Path,
        before_the_second_block: BeforeTheSecondBlock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        give_back = load_module._Run._give_back

        def end_it(*args: Any) -> Any:
            script.end()
            return give_back(*args)

        with EndlessScript(redis_server) as script:
            before_the_second_block(script.start)
            monkeypatch.setattr(load_module._Run, "_give_back", end_it)
            result = load(redis_server, sample, workers=1)
        assert (result.get("replies"), result.get("dbsize_after")) == (40, 40), result
        assert contents(redis_server) == contents(redis_server, 1)

    def test_one_that_is_busy_before_is_waited_for(
        self, redis_server: RedisServer, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def delays() -> Iterator[float]:
            yield 0.01
            script.end()
            yield 0.01

        monkeypatch.setattr(server_module, "SETBACK_DELAYS_S", delays())
        with EndlessScript(redis_server) as script:
            script.start()
            result = load(redis_server, sample)
        assert (result.get("replies"), result.get("dbsize_after")) == (40, 40), result

    def test_of_one_that_stays_busy_it_is_told_that_nothing_was_sent(
        self, redis_server: RedisServer, sample: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(server_module, "SETBACK_DELAYS_S", (0.01, 0.01))
        with EndlessScript(redis_server) as script:
            script.start()
            result = load(redis_server, sample)
        assert result["failed"] and "database 0: BUSY " in result["msg"]
        assert result["msg"].endswith("It was waited for 0 s. Run again when that is over. Nothing was sent"), result
        assert contents(redis_server) == {}

    def test_a_server_that_loads_its_data_is_waited_for(
        self,
        redis_server: RedisServer,
        sample: Path,
        before_the_second_block: BeforeTheSecondBlock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(load_module, "SETBACK_DELAYS_S", (0.05, 0.3, 1, 5, 10, 10))
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

    def test_one_that_becomes_a_replica_is_told_with_the_key(
        self, start_server: Start, sample: Path, before_the_second_block: BeforeTheSecondBlock
    ) -> None:
        target = start_server()

        def demote() -> None:
            with target.client() as client:
                client.replicaof("127.0.0.1", free_port())

        before_the_second_block(demote)
        result = load(target, sample, workers=1)
        assert result["failed"] and ": READONLY You can't write against a read only replica" in result["msg"]
        assert re.search(r"refused (SET|RESTORE) of key '.* of 40 at byte", result["msg"]), result
        assert "load again with resume=true" in result["msg"]

    def test_a_dump_that_is_cut_meanwhile_is_told(
        self, redis_server: RedisServer, tmp_path: Path, before_the_second_block: BeforeTheSecondBlock
    ) -> None:
        many(redis_server, 300_000)
        must_dump(redis_server, tmp_path / "d")
        whole = (tmp_path / "d").stat().st_size
        before_the_second_block(lambda: os.truncate(tmp_path / "d", whole // 2))
        result = load(redis_server, tmp_path / "d", workers=1)
        assert result["failed"] and f"d was cut at byte {whole // 2} while it was loaded" in result["msg"], result

    def test_one_that_stops_reading_is_told(
        self,
        start_server: Start,
        sample: Path,
        before_the_second_block: BeforeTheSecondBlock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(server_module, "SILENCE_TIMEOUT_S", 2)
        monkeypatch.setattr(server_module, "CONNECT_TIMEOUT_S", 2)
        target = start_server()
        before_the_second_block(lambda: target.process.send_signal(signal.SIGSTOP))
        result = load(target, sample, workers=1)
        target.process.send_signal(signal.SIGCONT)
        assert result["failed"] and "timed out" in result["msg"]
        assert "load again with resume=true" in result["msg"]
