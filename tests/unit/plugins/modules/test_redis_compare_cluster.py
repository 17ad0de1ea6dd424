# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redis_compare with a database of a server on one side and a cluster of three primaries on the other."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ENGINES
from support.clusters import RANGES, of_all, start_cluster
from support.keyspaces import contents, differences, login, run_id
from support.modules import run_module

from ansible_collections.keyferry.redis.plugins.module_utils import compare as compare_module
from ansible_collections.keyferry.redis.plugins.module_utils.cluster import Slots, slot_of
from lab.nodes import RedisServer
from lab.sample_data import fill

SOURCE_DB = 1
KEYS = 3000


@pytest.fixture(scope="module", params=ENGINES)
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    with contextlib.ExitStack() as stack:
        yield start_cluster(stack, tmp_path_factory.mktemp("cluster"), request.param)


@pytest.fixture(scope="module")
def source(nodes: list[RedisServer], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of the cluster's own engine; no test changes what it holds."""
    with RedisServer(tmp_path_factory.mktemp("source"), nodes[0].engine) as server:
        fill(("127.0.0.1", server.port), KEYS, SOURCE_DB)
        yield server


@pytest.fixture(scope="module")
def filled(nodes: list[RedisServer], source: RedisServer) -> list[RedisServer]:
    """The cluster, with what the source holds; a test leaves it as it was."""
    result = compare(source, nodes[1], repair=True)
    assert (differences(result), result["repaired"]) == ((KEYS, 0, 0), KEYS)
    return nodes


def compare(source: RedisServer, node: RedisServer, /, **args: Any) -> dict[str, Any]:
    both = {**login(source), **login(node, "target_login_"), "db": SOURCE_DB, "target_db": 0}
    return run_module("redis_compare", **{**both, **args})


def back(node: RedisServer, source: RedisServer, **args: Any) -> dict[str, Any]:
    return compare(node, source, db=0, target_db=SOURCE_DB, **args)


def primary_of(cluster: list[RedisServer], key: bytes) -> RedisServer:
    return next(node for node, (first, last) in zip(cluster, RANGES, strict=True) if first <= slot_of(key) <= last)


def test_a_repair_puts_each_key_where_it_belongs(filled: list[RedisServer], source: RedisServer) -> None:
    assert of_all(filled) == contents(source, SOURCE_DB)
    assert all(contents(node) for node in filled)


def test_all_is_equal_both_ways_in_every_mode(filled: list[RedisServer], source: RedisServer) -> None:
    for mode, compared in (("full", KEYS), ("sample", 459), ("count", 0)):
        args = {"mode": mode, "damage": 0.01}
        for result in (compare(source, filled[0], **args), back(filled[2], source, **args)):
            assert differences(result) == (0, 0, 0)
            assert (result["keys_source"], result["keys_target"], result["compared"]) == (KEYS, KEYS, compared)


def test_finds_and_repairs_differences_on_every_primary(
    filled: list[RedisServer], source: RedisServer, tmp_path: Path
) -> None:
    for number in range(12):
        key = b"extra:%d" % number
        with primary_of(filled, key).client() as client:
            client.set(key, "1")
    for node in filled:
        with node.client() as client:
            for key in [key for key in client.scan_iter(count=100) if not key.startswith(b"extra:")][:5]:
                client.unlink(key)
            changed = next(key for key in client.scan_iter(count=100) if client.type(key) == b"hash")
            client.hset(changed, "changed", "1")
    assert differences(compare(source, filled[1])) == (15, 12, 3)
    assert differences(back(filled[1], source)) == (12, 15, 3)
    progress = tmp_path / "progress"
    repaired = compare(source, filled[1], repair=True, progress_file=str(progress))
    assert (repaired["repaired"], repaired["deleted"]) == (18, 12)
    assert of_all(filled) == contents(source, SOURCE_DB)
    told = json.loads(progress.read_text())
    # The way back meets those too that the way forward has copied.
    assert (told["state"], told["total"], told["done"]) == ("done", 2 * KEYS - 3, 2 * KEYS + 12)


def test_a_slot_that_has_moved_is_followed(
    filled: list[RedisServer], source: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Slots.__init__

    def outdated(self: Any, server: Any) -> None:
        original(self, server)
        nodes = self.nodes()
        # Every primary is known, for SCAN, but no slot is where it is believed to be.
        self._nodes = {slot: nodes[(nodes.index(node) + 1) % 3] for slot, node in self._nodes.items()}

    monkeypatch.setattr(Slots, "__init__", outdated)
    assert differences(compare(source, filled[0])) == (0, 0, 0)
    with filled[0].client() as client:
        client.flushall()
    repaired = compare(source, filled[0], repair=True)
    assert repaired["repaired"] == repaired["missing"] > 500
    assert of_all(filled) == contents(source, SOURCE_DB)


def test_a_slot_that_migrates_is_followed(
    filled: list[RedisServer],
    source: RedisServer,
    migrating: Callable[[bytes], contextlib.AbstractContextManager[None]],
) -> None:
    tag = b"tag"
    with source.client(SOURCE_DB) as client:
        keys = {b"{tag}:%d" % number: number for number in range(300)}
        client.mset(keys)
        with migrating(tag):
            # None of them is at the slot's old node, so all of them are asked for, and put, at the new one.
            assert compare(source, filled[0], repair=True)["repaired"] == 300
            assert differences(compare(source, filled[0], ttl_tolerance_ms=1)) == (0, 0, 0)
        client.unlink(*keys)


def test_slots_that_move_meanwhile_prove_nothing(
    filled: list[RedisServer], source: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    walk = compare_module._Run.walk
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(node.client()) for node in filled]
        # One of the first primary's that holds no key.
        slot = next(slot for slot in range(100) if not clients[0].execute_command("CLUSTER", "COUNTKEYSINSLOT", slot))

        def give_to(owner: Any) -> None:
            for client in (owner, *clients):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", owner.execute_command("CLUSTER", "MYID"))

        def walk_then_move(self: Any) -> Any:
            found = walk(self)
            give_to(clients[1])
            return found

        monkeypatch.setattr(compare_module._Run, "walk", walk_then_move)
        result = compare(source, filled[0])
        give_to(clients[0])
    assert result["failed"] and "have moved during the comparison" in result["msg"], result


@pytest.fixture
def migrating(filled: list[RedisServer]) -> Callable[[bytes], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def under_way(tag: bytes) -> Iterator[None]:
        """The slot of a tag is on its way to another primary, and what has arrived there goes when this ends."""
        old, slot = primary_of(filled, tag), slot_of(tag)
        new = filled[(filled.index(old) + 1) % 3]
        with old.client() as from_node, new.client() as to_node:
            ids = [client.execute_command("CLUSTER", "MYID").decode() for client in (from_node, to_node)]
            to_node.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
            from_node.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
            yield
            for key in [key for key in to_node.scan_iter(count=1000) if slot_of(key) == slot]:
                # ASKING counts for the next command of the same connection.
                connection = to_node.connection_pool.get_connection()
                for command in (("ASKING",), ("UNLINK", key)):
                    connection.send_command(*command)
                    connection.read_response()
                to_node.connection_pool.release(connection)
            for client in (from_node, to_node):
                client.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")

    return under_way


def test_large_values_go_to_the_right_primary(filled: list[RedisServer], source: RedisServer) -> None:
    key = b"a large string"
    with source.client(SOURCE_DB) as client:
        client.set(key, bytes(range(256)) * (24 << 12))
        result = compare(source, filled[0], repair=True)
        assert result["repaired"] == 1
        assert contents(primary_of(filled, key))[key] == contents(source, SOURCE_DB)[key]
        client.unlink(key)
    assert compare(source, filled[0], repair=True)["deleted"] == 1


def test_never_writes_to_the_source(filled: list[RedisServer], source: RedisServer) -> None:
    assert "protected_run_ids" in compare(source, filled[0], repair=True, protected_run_ids=[run_id(filled[2])])["msg"]
    assert "would prove nothing" in compare(filled[0], filled[1], db=0)["msg"]


def test_a_cluster_has_one_database(filled: list[RedisServer], source: RedisServer) -> None:
    assert ", database 3: " in compare(source, filled[0], target_db=3)["msg"]
