# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The server processes of one replication group: primaries, replicas, cluster mode, snapshots and seeds."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import redis
from redis.crc import key_slot

from .nodes import RedisServer, ServerFailed, Tls, free_port, wait_for

# ElastiCache keeps this key in DB 0 of every group it serves, and writes it again and again.
TIMESTAMP_KEY = b"ElastiCacheMasterReplicationTimestamp"

# What a user of ElastiCache cannot call (its page "Supported and restricted commands").
FORBIDDEN = (
    *("acl|setuser", "acl|load", "acl|save", "acl|deluser", "bgrewriteaof", "bgsave", "config", "debug", "migrate"),
    *("psync", "replicaof", "save", "shutdown", "slaveof", "sync", "cluster|addslots", "cluster|addslotsrange"),
    *("cluster|bumpepoch", "cluster|count-failure-reports", "cluster|delslots", "cluster|delslotsrange"),
    *("cluster|failover", "cluster|flushslots", "cluster|forget", "cluster|meet", "cluster|replicate"),
    *("cluster|reset", "cluster|saveconfig", "cluster|set-config-epoch", "cluster|setslot"),
)


@dataclass(frozen=True)
class Shard:
    """One node group: its id (0001), its slots (0-8191; all of them with cluster mode disabled), its cluster ids."""

    id: str
    slots: str
    members: tuple[str, ...]

    def slot_ranges(self) -> list[tuple[int, int]]:
        """(first, last) of each range in `slots`, such as 0-100,200."""
        bounds = [part.split("-") for part in self.slots.split(",")]
        return [(int(part[0]), int(part[-1])) for part in bounds]


@dataclass(frozen=True)
class Settings:
    """What the servers of a group are started with. `parameters` are redis.conf settings of the parameter group."""

    engine: str
    admin: tuple[str, str]
    shards: tuple[Shard, ...]
    cluster: bool = False
    parameters: dict[str, str] = field(default_factory=dict)
    auth_token: str | None = None
    tls: Tls | None = None
    # User name -> its rules, where the group has a user group.
    users: dict[str, str] = field(default_factory=dict)


class Group:
    """The processes of one replication group, each in `directory/CLUSTER_ID`. `nodes` maps cluster id to server."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.directory = directory
        self.settings = settings
        self.nodes: dict[str, RedisServer] = {}

    def start(self, seeds: list[Path]) -> None:
        """Start all nodes, from RDB files when there are any. Raises ServerFailed when a server refuses its seed."""
        try:
            for shard in self.settings.shards:
                primary, *replicas = shard.members
                self._start_node(primary, seeds if not self.settings.cluster else [])
                for replica in replicas:
                    self._start_node(replica, [], [] if self.settings.cluster else [self._replicaof(primary)])
            if self.settings.cluster:
                self._form_cluster()
                for seed in seeds:
                    self.distribute(seed)
            self.wait_synced()
            self.write_timestamp()
        except Exception:
            self.kill()
            raise

    def kill(self) -> None:
        """End all processes at once."""
        for server in self.nodes.values():
            server.kill()

    def primaries(self) -> list[RedisServer]:
        """The primary of each shard."""
        return [self.nodes[shard.members[0]] for shard in self.settings.shards]

    def _start_node(self, name: str, seeds: list[Path], config: Iterable[str] = ()) -> None:
        directory = self.directory / name
        directory.mkdir(parents=True)
        for seed in seeds:
            # A link will do: a server that saves puts a new file into the place of this one.
            os.link(seed, directory / "dump.rdb")
        cluster = ["--cluster-enabled", "yes", "--cluster-port", str(free_port())] if self.settings.cluster else []
        self.nodes[name] = RedisServer(
            directory,
            self.settings.engine,
            *cluster,
            config=[*self._config(), *config],
            admin=self.settings.admin,
            tls=self.settings.tls,
        )

    def _config(self) -> list[str]:
        user, password = self.settings.admin
        token = self.settings.auth_token
        secret = f"resetpass #{_sha256(token)}" if token else "nopass"
        denied = " ".join(f"-{command}" for command in FORBIDDEN)
        users = self.settings.users or {"default": f"on {secret} ~* &* +@all"}
        return [
            *(f"user {name} {rules} {denied}" for name, rules in ({"default": "off"} | users).items()),
            f"user {user} on #{_sha256(password)} ~* &* +@all",
            f"masteruser {user}",
            f"masterauth {password}",
            *(["tls-cluster yes"] if self.settings.tls and self.settings.cluster else []),
            *(f'{name} "{value}"' for name, value in self.settings.parameters.items()),
        ]

    def _replicaof(self, primary: str) -> str:
        return f"replicaof 127.0.0.1 {self.nodes[primary].port}"

    def _form_cluster(self) -> None:
        ids = {name: _call(server, "CLUSTER", "MYID").decode() for name, server in self.nodes.items()}
        first = next(iter(self.nodes.values()))
        for server in self.nodes.values():
            if server is not first:
                _call(first, "CLUSTER", "MEET", "127.0.0.1", server.port, server.option("--cluster-port"))
        for shard in self.settings.shards:
            bounds = [bound for pair in shard.slot_ranges() for bound in pair]
            _call(self.nodes[shard.members[0]], "CLUSTER", "ADDSLOTSRANGE", *bounds)
        for server in self.nodes.values():
            wait_for(partial(_knows, server, set(ids.values())), "the nodes to meet")
        for shard in self.settings.shards:
            for replica in shard.members[1:]:
                _call(self.nodes[replica], "CLUSTER", "REPLICATE", ids[shard.members[0]])
        for server in self.nodes.values():
            wait_for(partial(_sees, server, "cluster_state", "ok"), "the cluster to be ok")

    def distribute(self, seed: Path) -> None:
        """Give each shard its keys of an RDB. A server with a single DB reads it first, since cluster mode has no more
        than that: it refuses a file that names another DB, as ElastiCache does."""
        directory = self.directory / "seed"
        directory.mkdir(exist_ok=True)
        os.link(seed, directory / "dump.rdb")
        owners = {
            slot: self.nodes[shard.members[0]]
            for shard in self.settings.shards
            for first, last in shard.slot_ranges()
            for slot in range(first, last + 1)
        }
        with RedisServer(directory, self.settings.engine, "--databases", "1") as source:
            (directory / "dump.rdb").unlink()
            for keys in batches(source.client().scan_iter(count=1000), 1000):
                _copy(source.client(), keys, lambda key: owners[key_slot(key)])

    def wait_synced(self) -> None:
        """Wait until each replica holds what its primary holds: without that, its snapshot is valid and lacks keys."""
        for shard in self.settings.shards:
            primary, *replicas = (self.nodes[name] for name in shard.members)
            for replica in replicas:
                wait_for(partial(_is_synced, primary, replica), f"the replica of {shard.members[0]}", 300)

    def configure(self, parameters: dict[str, str]) -> None:
        """Set redis.conf parameters on all servers that run."""
        for server in self.nodes.values():
            for name, value in parameters.items():
                server.client().config_set(name, value)

    def write_timestamp(self) -> None:
        """Write the key that ElastiCache keeps in DB 0; in cluster mode the shard that owns its slot has it."""
        for server in self.primaries():
            try:
                server.client(socket_timeout=5).set(TIMESTAMP_KEY, str(int(time.time() * 1000)))
            except redis.RedisError:
                continue

    def snapshot(self, cluster_id: str, destination: Path) -> tuple[int, int]:
        """BGSAVE on a node, its RDB moved to `destination`; gives (bytes in memory, bytes of the file)."""
        self.wait_synced()
        server = self.nodes[cluster_id]
        client = server.client()
        wait_for(lambda: _begin_save(client), "another save to end", 600)
        wait_for(lambda: not _info(client, "persistence")["rdb_bgsave_in_progress"], "the save to end", 600)
        if _info(client, "persistence")["rdb_last_bgsave_status"] != "ok":
            raise ServerFailed(f"BGSAVE of {cluster_id} failed: {server.log_tail()}")
        os.replace(server.rdb, destination)
        return int(_info(client, "memory")["used_memory"]), destination.stat().st_size


def even_slots(count: int) -> list[str]:
    """The 16384 slots in `count` ranges of one size, such as 0-8191 and 8192-16383."""
    bounds = [16384 * part // count for part in range(count + 1)]
    return [f"{first}-{end - 1}" for first, end in zip(bounds, bounds[1:], strict=False)]


def batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """The items in lists of `size`."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _call(server: RedisServer, *command: Any) -> Any:
    return server.client().execute_command(*command)


def _info(client: redis.Redis, section: str) -> dict[str, Any]:
    return cast("dict[str, Any]", client.info(section))


def _sees(server: RedisServer, fact: str, value: str) -> bool:
    """Whether a node of a cluster says this in CLUSTER INFO."""
    return bool(server.client().cluster("INFO")[fact] == value)


def _knows(server: RedisServer, ids: set[str]) -> bool:
    """Whether a node of a cluster knows these; one that it still shakes hands with has another id until then."""
    return {node["node_id"] for node in server.client().cluster("NODES").values()} == ids


def _begin_save(client: redis.Redis) -> bool:
    try:
        return bool(client.bgsave())
    except redis.ResponseError as error:
        if "in progress" not in str(error):
            raise
        return False


def _is_synced(primary: RedisServer, replica: RedisServer) -> bool:
    # The replica first: its offset can then only be behind.
    behind = _info(replica.client(), "replication")
    return bool(
        behind.get("master_link_status") == "up"
        and behind["slave_repl_offset"] >= _info(primary.client(), "replication")["master_repl_offset"]
    )


def _copy(source: redis.Redis, keys: list[bytes], owner: Callable[[bytes], RedisServer]) -> None:
    read = source.pipeline(transaction=False)
    for key in keys:
        read.dump(key).execute_command("PEXPIRETIME", key)
    replies = read.execute()
    writes: dict[int, Any] = {}
    for key, value, expires in zip(keys, replies[::2], replies[1::2], strict=True):
        if value is None:
            continue
        server = owner(key)
        write = writes.setdefault(server.port, server.client().pipeline(transaction=False))
        write.restore(key, max(expires, 0), value, replace=True, absttl=True)
    for write in writes.values():
        write.execute()
