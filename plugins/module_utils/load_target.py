# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whether a target takes a dump, asked before anything is sent."""

from __future__ import annotations

import secrets
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.cluster import Slots
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64_of_few
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import Dump
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_types import SINCE_VERSION
from ansible_collections.keyferry.redis.plugins.module_utils.server import (
    HAS_FUNCTIONS,
    Server,
    TemporaryRefusal,
    is_redirection,
    version_text,
)

# RDB versions that servers write, newest first.
_PAYLOAD_VERSIONS = (12, 11, 10, 9, 8, 7, 6)
# Keys to try until one is in a slot of the node that is asked.
_PROBES = 1000


class Target(t.NamedTuple):
    """Where to load: I(server), into I(db) or, without it, where the dump's own SELECT says.

    I(cluster) is whether keys are spread over the primaries of a cluster, of which I(server) is any node.
    I(workers) is None where the round trip to the server is to decide. I(batch_size) is how many commands a connection
    sends ahead of their replies, None for as many as two blocks hold. I(resume) is whether to leave out what an
    earlier, failed load of the same dump into the same server process got through. I(approve) gives back the run_id of
    a server's process, or raises KeyferryError where that must not be written to.
    """

    server: Server
    db: int | None = None
    workers: int | None = None
    replace: bool = True
    cluster: bool = False
    resume: bool = False
    batch_size: int | None = None
    approve: t.Callable[[Server], str] = Server.run_id

    def slots(self) -> Slots | None:
        """Give back where keys go in the cluster, with every primary approved; None where it is none."""
        if not self.cluster:
            return None
        slots = Slots(self.server, self.approve)
        slots.approve_all()
        return slots

    def evicted(self, slots: Slots | None) -> dict[str, int]:
        """Give back how many keys the server, or each primary of a cluster, has evicted since it started."""
        servers = [self.server] if slots is None else map(slots.server, slots.nodes())
        return {str(server): server.info("stats").get("evicted_keys", 0) for server in servers}


def check_target(target: Target, dump: Dump) -> int | None:
    """Raise KeyferryError when the dump cannot be loaded there; nothing is written. Gives back its payload_stamp()."""
    server = target.server
    target.slots()
    databases = dump.databases
    if target.db is not None and len(databases) > 1:
        raise KeyferryError(
            f"{dump.path} selects the databases {_join(databases)}; db={target.db} would pour them into one."
            " Leave db out, or split the dump"
        )
    if not target.replace and dump.description.get("format") != "restore":
        raise KeyferryError(
            f"The commands of {dump.path} overwrite; replace=false cannot be kept. Make the dump with resp_dump and"
            " format=restore, or load it with replace=true into an empty database"
        )
    wanted = {target.db} if target.db is not None else set(databases)
    if target.cluster and wanted - {0}:
        raise KeyferryError(
            f"Redis at {server} is in cluster mode, which has database 0 only, and {dump.path} is for {_join(wanted)}:"
            " set db=0"
        )
    for db in wanted:
        server.dbsize(db)
    role = server.info("replication")
    if role["role"] != "master" and role.get("slave_read_only", 1):
        raise KeyferryError(
            f"Redis at {server} is a read-only replica of {role.get('master_host')}:{role.get('master_port')}."
            " Load into the primary"
        )
    if _holds_functions(dump) and server.version() < HAS_FUNCTIONS:
        raise KeyferryError(
            f"{dump.path} holds functions, which Redis at {server} (version {version_text(server.version())}) does not"
            " have. Nothing was sent. Dump again with functions=false"
        )
    return payload_stamp(server, dump)


def payload_stamp(server: Server, dump: Dump) -> int | None:
    """Give back the RDB version that the dump's payloads must be given so that the server reads them, None for theirs.

    A server refuses a payload for its version alone, but reads it by its type; where it knows all types of the dump, a
    lower version changes nothing else. Raises KeyferryError where it does not.
    """
    version = dump.summary.get("payload_version")
    if dump.description.get("format") != "restore" or version is None or _takes_payload(server, version):
        return None
    taken = next((older for older in _PAYLOAD_VERSIONS if older < version and _takes_payload(server, older)), 0)
    kinds = map(int, dump.summary["type_bytes"])
    unknown = [kind for kind in kinds if SINCE_VERSION.get(kind, version) > taken]
    if not unknown:
        return taken
    raise KeyferryError(
        f"Redis at {server} (version {version_text(server.version())}) reads DUMP payloads up to RDB version"
        f" {taken}; those in {dump.path} have version {version}, and among them are values of the types"
        f" {_join(unknown)}, which it does not know. Nothing was sent. Load into a newer engine, or dump again"
        " with format=commands"
    )


def dbsize(target: Target, dump: Dump) -> int:
    """Give back the number of keys in the databases that the dump is for, in all primaries of a cluster."""
    if target.cluster:
        return Slots(target.server).dbsize()
    return sum(target.server.dbsize(db) for db in (dump.databases if target.db is None else [target.db]))


def _holds_functions(dump: Dump) -> bool:
    """Tell whether a dump of ours brings functions, which come before all keys."""
    if dump.is_foreign or not dump.blocks:
        return False
    data = dump.mapped()
    first, end = resp.read_command(data, dump.blocks[0].offset, len(data)).arguments[0]
    return data[first:end] == b"FUNCTION"


def _takes_payload(server: Server, version: int) -> bool:
    """Tell whether the server reads DUMP payloads of an RDB version, without writing anything.

    RESTORE checks version and checksum before the type (redis, src/cluster.c, restoreCommand), so a payload of a type
    that does not exist is told "Bad data format" where the version is good.
    """
    payload = b"\xff" + version.to_bytes(2, "little")
    payload += crc64_of_few(payload).to_bytes(8, "little")
    for _attempt in range(_PROBES):
        try:
            server.call("RESTORE", f"keyferry:probe:{secrets.token_hex(8)}", 0, payload)
        except TemporaryRefusal:
            raise
        except KeyferryError as error:
            if not is_redirection(error):
                return "payload version or checksum" not in error.msg
    return True


def _join(numbers: t.Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
