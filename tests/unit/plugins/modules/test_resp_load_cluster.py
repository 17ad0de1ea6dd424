# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""resp_load into a cluster of three primaries."""

from __future__ import annotations

import contextlib
import itertools
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import redis
from conftest import ENGINES
from support.clusters import RANGES, of_all, start_cluster
from support.dumps import load
from support.keyspaces import contents, login, run_id
from support.modules import run_module

from ansible_collections.keyferry.redis.plugins.module_utils import cluster as cluster_module
from ansible_collections.keyferry.redis.plugins.module_utils import dump_file, load_cluster, load_target
from ansible_collections.keyferry.redis.plugins.module_utils import load as load_module
from ansible_collections.keyferry.redis.plugins.module_utils.resp import command
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Server
from lab.nodes import RedisServer, free_port, wait_for
from lab.sample_data import fill

Start = Callable[..., RedisServer]


@pytest.fixture(scope="module", params=ENGINES)
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """Three primaries that share the slots as RANGES says; once for each engine, for it takes a while."""
    with contextlib.ExitStack() as stack:
        yield start_cluster(stack, tmp_path_factory.mktemp("cluster"), request.param)


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


def address(node: RedisServer) -> tuple[str, int]:
    return "127.0.0.1", node.port


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
        assert again["failed"] and "BUSYKEY" in again["msg"]
        assert re.search("refused (SET|RESTORE) of key '", again["msg"]), again


def test_a_slot_that_has_moved_is_followed(
    cluster: list[RedisServer], source: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"))
    original = cluster_module.Slots.__init__

    def outdated(self: Any, *args: Any) -> None:
        original(self, *args)
        self._nodes = dict.fromkeys(range(16384), ("127.0.0.1", cluster[0].port))

    with monkeypatch.context() as patch:
        patch.setattr(cluster_module.Slots, "__init__", outdated)
        assert load(cluster[0], tmp_path / "d")["replies"] == 2000
    assert of_all(cluster) == contents(source, 1)


def test_no_primary_may_be_a_protected_server(cluster: list[RedisServer], source: RedisServer, tmp_path: Path) -> None:
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"))
    for check in (True, False):
        result = load(cluster[0], tmp_path / "d", protected_run_ids=[run_id(cluster[2])], _check=check)
        assert result["failed"]
        assert f"127.0.0.1:{cluster[2].port} is a server that protected_run_ids forbids to write to" in result["msg"]
    assert of_all(cluster) == {}


def test_a_protected_server_that_is_heard_of_during_the_load_is_not_written_to(
    cluster: list[RedisServer], source: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"))
    monkeypatch.setattr(cluster_module.Slots, "_told_by", lambda *_: dict.fromkeys(range(16384), address(cluster[0])))
    result = load(cluster[0], tmp_path / "d", protected_run_ids=[run_id(cluster[2])])
    assert result["failed"]
    assert f"127.0.0.1:{cluster[2].port} is a server that protected_run_ids forbids to write to" in result["msg"]
    assert contents(cluster[2]) == {}


def test_a_slot_that_migrates_is_followed(cluster: list[RedisServer], start_server: Start, tmp_path: Path) -> None:
    source = start_server()
    with source.client(1) as client:
        client.mset({f"{{tag}}:{at}": at for at in range(500)})
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"))
    slot = cluster_module.slot_of(b"tag")
    at = next(index for index, (first, last) in enumerate(RANGES) if first <= slot <= last)
    old, new = cluster[at], cluster[(at + 1) % 3]
    with old.client() as from_node, new.client() as to_node:
        ids = [client.execute_command("CLUSTER", "MYID").decode() for client in (from_node, to_node)]
        to_node.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        from_node.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        assert load(old, tmp_path / "d")["replies"] == 500
    _migrate(slot, old, new, cluster)
    assert contents(new) == contents(source, 1)
    _migrate(slot, new, old, cluster)


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


@pytest.mark.parametrize("endpoint", ["unknown-endpoint", "hostname"])
def test_nodes_that_do_not_say_their_names_are_found(
    cluster: list[RedisServer], source: RedisServer, tmp_path: Path, endpoint: str
) -> None:
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"))
    for node in cluster:
        with node.client() as client:
            client.config_set("cluster-preferred-endpoint-type", endpoint)
    loaded = load(cluster[0], tmp_path / "d")
    for node in cluster:
        with node.client() as client:
            client.config_set("cluster-preferred-endpoint-type", "ip")
    assert loaded.get("dbsize_after") == 2000, loaded


def test_each_node_says_which_payloads_it_takes(cluster: list[RedisServer]) -> None:
    for node in cluster:
        server = Server(Address(port=node.port))
        assert [load_target._takes_payload(server, version) for version in (9, 99)] == [True, False]


@pytest.mark.parametrize("read", ["scan", "replication"])
def test_one_primary_of_several_is_not_dumped_as_the_whole(
    cluster: list[RedisServer], tmp_path: Path, read: str
) -> None:
    result = run_module("resp_dump", **login(cluster[1]), db=0, dest=str(tmp_path / "d"), source=read)
    assert result["failed"] and "is in cluster mode and one of 3 primaries" in result["msg"]
    assert list(tmp_path.glob("d*")) == []


def test_slots_are_those_of_the_server(cluster: list[RedisServer]) -> None:
    with cluster[0].client() as client:
        for key in (b"", b"a", b"{a}b", b"x{a}{b}", b"{}a", b"a{b", b"}{a", b"\x00\xff{\r\n}", b"{{a}}"):
            assert cluster_module.slot_of(key) == client.execute_command("CLUSTER", "KEYSLOT", key)


def test_a_slot_that_migrates_back_and_forth_during_the_load_loses_nothing(
    cluster: list[RedisServer], start_server: Start, tmp_path: Path
) -> None:
    """Keys are moved by MIGRATE and the slot's owner changes while commands for that slot are under way."""
    source = start_server()
    with source.client(1) as client:
        client.mset({f"{{tag}}:{at}": at for at in range(3000)})
    run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"))
    slot = cluster_module.slot_of(b"tag")
    at = next(index for index, (first, last) in enumerate(RANGES) if first <= slot <= last)
    pair = [cluster[at], cluster[(at + 1) % 3]]
    over = threading.Event()
    moves: list[int] = []

    def migrate() -> None:
        # An even number of times, so that the slot ends where it began.
        while not over.is_set() or len(moves) % 2:
            old, new = pair if len(moves) % 2 == 0 else reversed(pair)
            moves.append(_migrate(slot, old, new, cluster))

    migrator = threading.Thread(target=migrate)
    migrator.start()
    try:
        for _load in range(3):
            result = load(cluster[0], tmp_path / "d", batch_size=50, workers=2)
            assert not result.get("failed"), result
    finally:
        over.set()
        migrator.join()
    assert result["replies"] == 3000
    assert len(moves) >= 2 and sum(moves) > 0
    assert of_all(cluster) == contents(source, 1)
    # None is left behind at the other one.
    assert sum(len(contents(node)) for node in cluster) == 3000


def _owner(client: redis.Redis, slot: int) -> int:
    """The port of the node that a node takes for the slot's owner."""
    ranges = client.execute_command("CLUSTER", "SLOTS")
    return next(primary[1] for first, last, primary, *_replicas in ranges if first <= slot <= last)


def _migrate(slot: int, here: RedisServer, there: RedisServer, cluster: list[RedisServer]) -> int:
    """Move a slot as redis-cli does, until all nodes know of it; give back how many keys were moved."""
    moved = 0
    with here.client() as giver, there.client() as taker:
        ids = [client.execute_command("CLUSTER", "MYID").decode() for client in (giver, taker)]
        taker.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        giver.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        while keys := giver.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            moved += len(keys)
            giver.execute_command("MIGRATE", "127.0.0.1", there.port, "", 0, 5000, "REPLACE", "KEYS", *keys)
        for client in (taker, giver):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
    # A node that does not know of it yet could take the next move for an older one.
    for node in cluster:
        with node.client() as client:
            wait_for(lambda client=client: _owner(client, slot) == there.port, "the nodes to agree", interval=0.01)
    return moved


@pytest.mark.parametrize("form", ["restore", "commands"])
def test_functions_go_to_every_primary(
    cluster: list[RedisServer], source: RedisServer, tmp_path: Path, form: str
) -> None:
    library = "#!lua name=lib\nredis.register_function('one', function() return 1 end)"
    for node in (source, *cluster):
        with node.client() as client:
            client.execute_command("FUNCTION", "FLUSH")
    with source.client() as client:
        client.function_load(library)
    dumped = run_module("resp_dump", **login(source), db=1, dest=str(tmp_path / "d"), format=form, functions=True)
    assert not dumped.get("failed"), dumped
    result = load(cluster[1], tmp_path / "d")
    assert (result["replies"], result["dbsize_after"]) == (dumped["commands"], 2000), result
    for node in cluster:
        with node.client() as client:
            assert client.execute_command("FCALL", "one", 0) == 1
    assert of_all(cluster) == contents(source, 1)
    if form == "restore":
        again = load(cluster[1], tmp_path / "d", replace=False)
        assert "refused FUNCTION RESTORE, command 1 of" in again["msg"] and "already exists" in again["msg"]
    for node in cluster:
        with node.client() as client:
            client.execute_command("FUNCTION", "FLUSH")


class BusyNode:
    """Stands for the only node of a cluster: it answers each line that it gets by the next one of `answers`."""

    def __init__(self, *answers: bytes) -> None:
        self.lines: list[bytes] = []
        ours, self._theirs = socket.socketpair()
        self.connection = contextlib.closing(ours)
        self.slots = mock.MagicMock(**{"nodes.return_value": [("node", 1)], "__getitem__.return_value": ("node", 1)})
        self.slots.server.return_value.connection.return_value = self.connection
        self._thread = threading.Thread(target=self._answer, args=(answers,), daemon=True)
        self._thread.start()

    def _answer(self, answers: tuple[bytes, ...]) -> None:
        with self._theirs.makefile("rb") as lines:
            for answer in answers:
                self.lines.append(next(lines).strip())
                self._theirs.sendall(answer + b"\r\n")
        self._theirs.close()


class TestRefusedForAMoment:
    """No real node can be had to end a script just between two commands of one pipeline."""

    ANSWERS = (b"-BUSY a script runs", b"+OK", b"+OK")

    def test_a_key_is_not_deleted_after_it_was_made(self) -> None:
        node = BusyNode(*self.ANSWERS)
        commands = [
            load_cluster.Routed(5, [b"DEL k\n"], b"k"),
            load_cluster.Routed(5, [b"HSET k f v\n"], b"k"),
            load_cluster.Routed(6, [b"DEL l\n"], b"l"),
        ]
        with load_cluster.Wires(node.slots, in_order=True) as wires, pytest.raises(load_cluster.Refused) as refused:
            wires.send(commands)
        assert refused.value.index == 0
        assert refused.value.error == b"BUSY a script runs, but not those that follow it"
        assert node.lines == [b"DEL k", b"HSET k f v", b"DEL l"]

    def test_keys_that_are_one_command_each_are_made_in_any_order(self) -> None:
        node = BusyNode(*self.ANSWERS)
        with load_cluster.Wires(node.slots, in_order=False) as wires:
            wires.send([load_cluster.Routed(5, [b"RESTORE k\n"], b"k"), load_cluster.Routed(5, [b"SET k\n"], b"k")])
        assert node.lines == [b"RESTORE k", b"SET k", b"RESTORE k"]

    def test_of_other_keys_of_its_slot_it_does_not_depend(self) -> None:
        node = BusyNode(*self.ANSWERS)
        with load_cluster.Wires(node.slots, in_order=True) as wires:
            wires.send([load_cluster.Routed(5, [b"DEL k\n"], b"k"), load_cluster.Routed(5, [b"DEL l\n"], b"l")])
        assert node.lines == [b"DEL k", b"DEL l", b"DEL k"]

    def test_what_every_primary_is_to_have_comes_in_its_turn(self) -> None:
        node = BusyNode(b"+OK", b"+OK", b"+OK")
        slots = {b"SET a": 5, b"FLUSHALL": load_cluster.EVERYWHERE, b"SET b": 5}
        with load_cluster.Wires(node.slots, in_order=True) as wires:
            wires.send([load_cluster.Routed(slot, [line + b"\n"], line[-1:]) for line, slot in slots.items()])
        assert node.lines == [b"SET a", b"FLUSHALL", b"SET b"]


def _known(node: RedisServer) -> int:
    """How many nodes of the cluster a node is on terms with."""
    with node.client() as client:
        lines = client.execute_command("CLUSTER NODES").values()
        return sum("handshake" not in facts["flags"] and facts["connected"] for facts in lines)


class TestALostNode:
    """Of a cluster of its own, with one replica, and of one engine: what is tested is not the engine's."""

    @pytest.fixture
    def engine(self) -> str:
        return "redis"

    @pytest.fixture
    def small(self, tmp_path: Path) -> Iterator[list[RedisServer]]:
        """Three primaries; the fourth node is the first one's replica."""
        with contextlib.ExitStack() as stack:
            found = start_cluster(stack, tmp_path / "small", "redis", "--cluster-node-timeout", "3000")
            bus = free_port()
            options = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "3000")
            replica = stack.enter_context(RedisServer(tmp_path / "replica", "redis", *options))
            with found[0].client() as first, replica.client() as client:
                name = first.execute_command("CLUSTER", "MYID").decode()
                first.execute_command("CLUSTER", "MEET", "127.0.0.1", replica.port, bus)
                wait_for(
                    lambda: name in str(client.execute_command("CLUSTER NODES")), "the replica to know its primary"
                )
                client.execute_command("CLUSTER", "REPLICATE", name)
                wait_for(lambda: client.info("replication").get("master_link_status") == "up", "the replica")
                wait_for(lambda: first.info("replication")["connected_slaves"] == 1, "the replica")
            nodes = [*found, replica]
            # They learn of the replica from the first one, and do not vote for a node that they never heard of.
            wait_for(lambda: all(_known(node) == len(nodes) for node in nodes), "all nodes to know each other")
            yield nodes

    @pytest.fixture
    def dump(self, start_server: Start, tmp_path: Path) -> Path:
        """A dump whose server is started last, so that the nodes of the cluster are not it."""
        server = start_server()
        with server.client(1) as client:
            client.execute_command("DEBUG", "POPULATE", 3000)
        run_module("resp_dump", **login(server), db=1, dest=str(tmp_path / "d"), workers=1)
        self.expected = contents(server, 1)
        return tmp_path / "d"

    @pytest.fixture
    def at_the_tenth_batch(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
        """Have something happen in the middle of a load."""

        def when(happens: Callable[[], object]) -> None:
            batches = itertools.count(1)
            original = load_cluster.Wires.send

            def send(wires: Any, commands: Any) -> None:
                original(wires, commands)
                if next(batches) == 10:
                    happens()

            monkeypatch.setattr(load_cluster.Wires, "send", send)

        monkeypatch.setattr(load_module, "FAILOVER_DELAYS_S", (0.2,) * 150)
        return when

    def test_its_replica_takes_over(
        self, small: list[RedisServer], dump: Path, at_the_tenth_batch: Callable[[Callable[[], object]], None]
    ) -> None:
        """The node that was lost is also the one that the task names."""
        at_the_tenth_batch(small[0].kill)
        result = load(small[0], dump, batch_size=50, workers=2)
        assert (result.get("failed"), result.get("replies"), result.get("dbsize_after")) == (None, 3000, 3000), result
        assert of_all(small[1:]) == self.expected

    def test_a_failover_by_hand_is_followed(
        self, small: list[RedisServer], dump: Path, at_the_tenth_batch: Callable[[Callable[[], object]], None]
    ) -> None:
        def fail_over() -> None:
            with small[3].client() as client:
                client.execute_command("CLUSTER", "FAILOVER")
                wait_for(lambda: client.info("replication")["role"] == "master", "the failover")

        at_the_tenth_batch(fail_over)
        result = load(small[1], dump, batch_size=50, workers=1)
        assert (result.get("failed"), result.get("replies"), result.get("dbsize_after")) == (None, 3000, 3000), result
        assert of_all(small[1:]) == self.expected

    def test_where_nobody_takes_over_it_is_told_with_the_key(
        self,
        small: list[RedisServer],
        dump: Path,
        at_the_tenth_batch: Callable[[Callable[[], object]], None],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        at_the_tenth_batch(small[1].kill)
        monkeypatch.setattr(load_module, "FAILOVER_DELAYS_S", (0.1, 0.1))
        failed = load(small[0], dump, batch_size=50, workers=1)
        assert failed["failed"]
        lost = rf"Redis at 127\.0\.0\.1:{small[1].port}, a primary of the cluster, was lost before it answered"
        assert re.match(lost + r" SET of key 'key:\d+', command \d+ of 3000 at byte \d+ of ", failed["msg"]), failed[
            "msg"
        ]
        assert "load again with resume=true" in failed["msg"]

    def test_a_dump_that_cannot_be_sent_twice_is_not(
        self, small: list[RedisServer], dump: Path, at_the_tenth_batch: Callable[[Callable[[], object]], None]
    ) -> None:
        at_the_tenth_batch(small[0].kill)
        result = load(small[1], dump, batch_size=50, workers=1, replace=False)
        assert result["failed"] and "was lost before it answered SET of key 'key:" in result["msg"]
        assert "resume=true" not in result["msg"]

    def test_resume_goes_on_with_the_same_processes(
        self, small: list[RedisServer], start_server: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Memory was short at one node; when the cause is gone, resume sends what is left."""
        monkeypatch.setattr(dump_file, "BLOCK_BYTES", 4096)
        server = start_server()
        with server.client(1) as client:
            client.execute_command("DEBUG", "POPULATE", 3000)
        run_module("resp_dump", **login(server), db=1, dest=str(tmp_path / "d"), workers=1, batch_size=20)
        batches = itertools.count(1)
        original = load_cluster.Wires.send

        def send(wires: Any, commands: Any) -> None:
            original(wires, commands)
            if next(batches) == 10:
                with small[2].client() as client:
                    client.config_set("maxmemory", 1)

        monkeypatch.setattr(load_cluster.Wires, "send", send)
        failed = load(small[0], tmp_path / "d", workers=1)
        assert failed["failed"] and "OOM" in failed["msg"] and "resume=true" in failed["msg"]
        with small[2].client() as client:
            client.config_set("maxmemory", 0)
        resumed = load(small[1], tmp_path / "d", resume=True)
        assert 0 < resumed["replies"] < 3000 and resumed["dbsize_after"] == 3000, resumed
        assert of_all(small[:3]) == contents(server, 1)
