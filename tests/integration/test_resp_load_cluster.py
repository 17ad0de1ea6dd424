# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_load into a cluster of three primaries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import ENGINES
from integration.keyspaces import Contents, contents, login
from integration.modules import run_module

from ansible_collections.keyferry.redis.plugins.module_utils import load_cluster
from ansible_collections.keyferry.redis.plugins.module_utils.resp import command
from lab.nodes import RedisServer, free_port, wait_for
from lab.sample_data import fill

Start = Callable[..., RedisServer]
RANGES = ((0, 5460), (5461, 10922), (10923, 16383))


@pytest.fixture(scope="module", params=ENGINES)
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """Three primaries that share the slots as RANGES says; once for each engine, for it takes a while."""
    with contextlib.ExitStack() as stack:
        buses = [free_port() for _node in RANGES]
        folder = tmp_path_factory.mktemp("cluster")
        found = [
            stack.enter_context(
                RedisServer(folder / str(bus), request.param, "--cluster-enabled", "yes", "--cluster-port", str(bus))
            )
            for bus in buses
        ]
        for node, (first, last) in zip(found, RANGES, strict=True):
            with node.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        with found[0].client() as client:
            for node, bus in zip(found[1:], buses[1:], strict=True):
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        for node in found:
            with node.client() as client:
                wait_for(lambda client=client: _is_whole(client), "the cluster", interval=0.05)
        yield found


@pytest.fixture
def engine(nodes: list[RedisServer]) -> str:
    """The source is of the cluster's own engine."""
    return nodes[0].engine


@pytest.fixture
def cluster(nodes: list[RedisServer]) -> list[RedisServer]:
    """The cluster, empty."""
    for node in nodes:
        with node.client() as client:
            client.flushall()
    return nodes


def _is_whole(client: Any) -> bool:
    return client.cluster("INFO")["cluster_state"] == "ok" and len(client.execute_command("CLUSTER SLOTS")) == 3


def of_all(cluster: list[RedisServer]) -> Contents:
    return {key: value for node in cluster for key, value in contents(node).items()}


def load(node: RedisServer, src: Path, **options: Any) -> dict[str, Any]:
    return run_module("resp_load", **{**login(node), "src": str(src), **options})


@pytest.fixture
def source(start_server: Start) -> RedisServer:
    server = start_server()
    fill(("127.0.0.1", server.port), 2000, 1)
    return server


@pytest.mark.parametrize("form", ["restore", "commands"])
def test_each_key_goes_to_its_primary(
    cluster: list[RedisServer], source: RedisServer, tmp_path: Path, form: str
) -> None:
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"), format=form)
    result = load(cluster[1], tmp_path / "d")
    assert not result.get("failed"), result
    assert (result["replies"], result["dbsize_before"], result["dbsize_after"]) == (result["commands"], 0, 2000)
    assert of_all(cluster) == contents(source, 1)
    assert all(contents(node) for node in cluster)
    if form == "restore":
        again = load(cluster[1], tmp_path / "d", replace=False)
        assert again["failed"] and "BUSYKEY" in again["msg"] and "RESTORE of key '" in again["msg"]


def test_a_slot_that_has_moved_is_followed(
    cluster: list[RedisServer], source: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"))
    original = load_cluster.Slots.__init__

    def outdated(self: Any, server: Any) -> None:
        original(self, server)
        self._nodes = dict.fromkeys(range(16384), ("127.0.0.1", cluster[0].port))

    with monkeypatch.context() as patch:
        patch.setattr(load_cluster.Slots, "__init__", outdated)
        assert load(cluster[0], tmp_path / "d")["replies"] == 2000
    assert of_all(cluster) == contents(source, 1)


def test_a_slot_that_migrates_is_followed(cluster: list[RedisServer], start_server: Start, tmp_path: Path) -> None:
    source = start_server()
    with source.client(1) as client:
        client.mset({f"{{tag}}:{at}": at for at in range(500)})
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"))
    slot = load_cluster.slot_of(b"tag")
    at = next(index for index, (first, last) in enumerate(RANGES) if first <= slot <= last)
    old, new = cluster[at], cluster[(at + 1) % 3]
    with old.client() as from_node, new.client() as to_node:
        ids = [client.execute_command("CLUSTER", "MYID").decode() for client in (from_node, to_node)]
        to_node.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        from_node.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        assert load(old, tmp_path / "d")["replies"] == 500
        for client in (to_node, from_node):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    assert contents(new) == contents(source, 1)
    with old.client() as from_node, new.client() as to_node:
        to_node.flushall()
        for client in (from_node, to_node):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[0])


def test_a_dump_for_another_database_is_refused(
    cluster: list[RedisServer], source: RedisServer, tmp_path: Path
) -> None:
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"), target_db=3)
    result = load(cluster[0], tmp_path / "d")
    assert result["failed"] and "cluster mode, which has database 0 only" in result["msg"]
    assert load(cluster[0], tmp_path / "d", db=0)["dbsize_after"] == 2000


def test_the_first_refusal_is_named(cluster: list[RedisServer], tmp_path: Path) -> None:
    first = command("SET", "text", 1)
    (tmp_path / "d").write_bytes(first + command("RPUSH", "text", 1) + command("SET", "other", 1))
    result = load(cluster[0], tmp_path / "d")
    assert f"refused RPUSH of key 'text', command 2 of 3 at byte {len(first)} of" in result["msg"]


def test_slots_are_those_of_the_server(cluster: list[RedisServer]) -> None:
    with cluster[0].client() as client:
        for key in (b"", b"a", b"{a}b", b"x{a}{b}", b"{}a", b"a{b", b"}{a", b"\x00\xff{\r\n}", b"{{a}}"):
            assert load_cluster.slot_of(key) == client.execute_command("CLUSTER", "KEYSLOT", key)


def test_a_node_that_is_lost_ends_the_load(
    cluster: list[RedisServer], source: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"))
    dead = ("127.0.0.1", free_port())
    monkeypatch.setattr(load_cluster.Slots, "__getitem__", lambda _self, _slot: dead)
    result = load(cluster[0], tmp_path / "d")
    assert result["failed"] and f"127.0.0.1:{dead[1]}" in result["msg"] and "refused" in result["msg"]
    assert "resume=true" not in result["msg"]
