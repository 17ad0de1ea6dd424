# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a server holds, database by database, without touching any of it. Needs neither CONFIG nor DEBUG."""

from __future__ import annotations

import collections
import itertools
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import Database, Server, version_text

# ElastiCache keeps this key in database 0 of every cluster and makes it again when it is gone: it is nobody's data.
SERVICE_KEY = b"ElastiCacheMasterReplicationTimestamp"
SERVICE_DB = 0
# ElastiCache changes a cluster to cluster mode from this version on (Redis OSS 7.0, Valkey 7.2).
_OLDEST_FOR_CLUSTER_MODE = (7, 0)
_BATCH = 500

T = t.TypeVar("T")


class Keyspace(t.NamedTuple):
    """The databases that hold data, and how many keys there are that the service keeps for itself."""

    databases: dict[int, Database]
    service_keys: int

    @property
    def keys(self) -> int:
        return sum(facts.keys for facts in self.databases.values())


def data_keyspace(server: Server) -> Keyspace:
    """Give back what INFO keyspace says, less the key that ElastiCache keeps for itself."""
    databases = server.keyspace()
    ttl = _service_key_ttl(server) if SERVICE_DB in databases else -2
    if ttl == -2:
        return Keyspace(databases, 0)
    keys, expires = databases.pop(SERVICE_DB)
    data = Database(keys - 1, expires - (ttl >= 0))
    held = {SERVICE_DB: data, **databases} if data.keys > 0 else databases
    return Keyspace(held, 1)


def key_count(server: Server, db: int) -> int:
    """Give back the number of keys of I(db), less the key that ElastiCache keeps for itself."""
    return server.dbsize(db) - (db == SERVICE_DB and _service_key_ttl(server) != -2)


def listed(keys: dict[int, int]) -> str:
    """Give back the number of keys of each database as lines, for a module's diff."""
    return "".join(f"database {db}: {count} keys\n" for db, count in keys.items())


def describe(server: Server, samples: int) -> dict[str, t.Any]:
    """Give back the return values of M(keyferry.redis.redis_keyspace_info)."""
    replication, memory, persistence = (server.info(section) for section in ("replication", "memory", "persistence"))
    keyspace = data_keyspace(server)
    is_cluster = server.is_cluster()
    version = server.version()
    is_replicated = replication["role"] != "master" or bool(replication.get("connected_slaves"))
    return {
        "run_id": server.run_id(),
        "replication_id": replication.get("master_replid"),
        "engine": server.engine(),
        "version": version_text(version),
        "role": replication["role"],
        "cluster_enabled": is_cluster,
        "databases": {str(db): _describe(server, db, facts, samples) for db, facts in keyspace.databases.items()},
        "keys": keyspace.keys,
        "service_keys": keyspace.service_keys,
        "used_memory": memory.get("used_memory"),
        "maxmemory": memory.get("maxmemory"),
        "database_count": _database_count(server, is_cluster),
        "cluster_mode": eligibility([] if is_cluster else _obstacles(keyspace.databases, version, is_replicated)),
        "rdb_last_load_keys_expired": persistence.get("rdb_last_load_keys_expired"),
        "rdb_last_load_keys_loaded": persistence.get("rdb_last_load_keys_loaded"),
    }


def eligibility(obstacles: list[str]) -> dict[str, t.Any]:
    return {"eligible": not obstacles, "reasons": obstacles}


def _obstacles(databases: dict[int, Database], version: tuple[int, ...], is_replicated: bool) -> list[str]:
    """Give back what stops ElastiCache from changing this server to cluster mode as it is.

    From "Modifying cluster mode" in the ElastiCache User Guide; whether automatic failover is on, only AWS knows.
    """
    obstacles = [
        f"database {db} holds {facts.keys} keys, and cluster mode has database 0 only"
        for db, facts in databases.items()
        if db != 0
    ]
    if version < _OLDEST_FOR_CLUSTER_MODE:
        obstacles.append(f"the engine's version is {version_text(version)}, and the change needs 7.0 or newer")
    if not is_replicated:
        obstacles.append("there is no replica, and the change needs one, with automatic failover")
    return obstacles


def _describe(server: Server, db: int, facts: Database, samples: int) -> dict[str, t.Any]:
    described: dict[str, t.Any] = {"keys": facts.keys, "expires": facts.expires}
    if not samples:
        return described
    sizes = collections.defaultdict(list)
    for kind, size in _sampled(server, db, facts.keys, samples):
        sizes[kind].append(size)
    return {**described, **estimate(facts.keys, sizes)}


def estimate(keys: int, sizes: dict[str, list[int | None]]) -> dict[str, t.Any]:
    """Give back C(types) and C(estimated_bytes) of I(keys) keys from the sizes of some, by type.

    The bytes are None where the server did not tell them. Where all keys were looked at, the numbers are no estimates.
    """
    looked_at = sum(map(len, sizes.values()))
    known = [size for found in sizes.values() for size in found if size is not None]
    return {
        "types": {kind: round(keys * len(found) / looked_at) for kind, found in sorted(sizes.items())},
        "estimated_bytes": round(keys * sum(known) / len(known)) if known else None,
    }


def _sampled(server: Server, db: int, keys: int, samples: int) -> t.Iterator[tuple[str, int | None]]:
    """Give back type and bytes of I(samples) random keys, or of all where there are no more than that."""
    found = _all_keys(server, db) if keys <= samples else _random_keys(server, db, samples)
    data = (key for key in found if (db, key) != (SERVICE_DB, SERVICE_KEY))
    for batch in batches(data, _BATCH):
        replies = iter(_pipelined(server, db, [c for key in batch for c in (("TYPE", key), ("MEMORY USAGE", key))]))
        for kind, size in zip(replies, replies):
            if isinstance(kind, Exception):
                raise KeyferryError(f"Redis at {server}, database {db}, refused TYPE to a sampling: {kind}") from kind
            if kind != b"none":
                # MEMORY is not there on ElastiCache Serverless.
                yield kind.decode(), size if isinstance(size, int) else None


def _all_keys(server: Server, db: int) -> t.Iterator[bytes]:
    with server.errors(db):
        yield from server.client(db).scan_iter(count=_BATCH)


def _random_keys(server: Server, db: int, samples: int) -> t.Iterator[bytes]:
    for batch in batches(itertools.repeat("RANDOMKEY", samples), _BATCH):
        yield from (key for key in _pipelined(server, db, [(name,) for name in batch]) if isinstance(key, bytes))


def _pipelined(server: Server, db: int, commands: t.Iterable[tuple[t.Any, ...]]) -> list[t.Any]:
    """Give back the replies to I(commands), errors among them."""
    pipeline = server.client(db).pipeline(transaction=False)
    # In cluster mode a replica sends every key to its primary unless it is told so; others refuse it, which is as well.
    for command in itertools.chain([("READONLY",)], commands):
        pipeline.execute_command(*command)
    with server.errors(db):
        return list(pipeline.execute(raise_on_error=False))[1:]


def batches(items: t.Iterable[T], size: int) -> t.Iterator[list[T]]:
    """Give back the items in lists of I(size), the last one shorter."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _service_key_ttl(server: Server) -> int:
    """Give back the TTL of ElastiCache's own key; -2 without the key, -1 without a TTL."""
    if not server.is_cluster():
        return int(server.call("TTL", SERVICE_KEY, db=SERVICE_DB))
    reply = _pipelined(server, SERVICE_DB, [("TTL", SERVICE_KEY)])[0]
    # Its slot may be another shard's.
    return reply if isinstance(reply, int) else -2


def _database_count(server: Server, is_cluster: bool) -> int | None:
    """Give back how many databases may be selected, or None where the server does not tell (ACL, ElastiCache)."""
    try:
        # Valkey 9 has databases in cluster mode too; every other engine has one there.
        reply = server.call("CONFIG", "GET", "cluster-databases" if is_cluster else "databases")
    except KeyferryError:
        return None
    values = list(reply.values() if isinstance(reply, dict) else reply[1::2])
    return int(values[0]) if values else 1
