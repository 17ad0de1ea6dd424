# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One database as its clients see it: a server's, or that of a cluster whose primaries share its keys by slot."""

from __future__ import annotations

import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.cluster import Node, Slots
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import key_count
from ansible_collections.keyferry.redis.plugins.module_utils.pair import Side
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server


class Endpoint:
    """A database, found out about when this is made: C(slots) is None where it is one server's.

    I(approve) gives back the run_id of a server's process, or raises KeyferryError where that must not be written to.
    """

    def __init__(self, server: Server, db: int, approve: t.Callable[[Server], str] = Server.run_id) -> None:
        self.server = server
        self.db = db
        self._approve = approve
        self.slots = Slots(server) if server.is_cluster() else None
        self._lock = threading.Lock()
        self._sides: dict[Node, Side] = {}
        self.sides()

    def __str__(self) -> str:
        where = "the cluster" if self.slots else "Redis"
        return f"{where} at {self.server}, database {self.db}"

    def side(self, node: Node) -> Side:
        """Give back the part that is on one node, as the process that was there when it was first asked for."""
        with self._lock:
            if node not in self._sides:
                server = self.server if self.slots is None else self.slots.server(node)
                self._sides[node] = Side(server, self.db, self._approve(server))
            return self._sides[node]

    def sides(self) -> list[Side]:
        """Give back every part: one, or one of each primary."""
        own = (self.server.address.host, self.server.address.port)
        return [self.side(node) for node in ([own] if self.slots is None else self.slots.nodes())]

    def key_counts(self) -> list[int]:
        """Give back the number of keys in each part, less the key that ElastiCache keeps for itself."""
        return [key_count(side.server, side.db) for side in self.sides()]

    def key_count(self) -> int:
        return sum(self.key_counts())

    def run_ids(self) -> set[str | None]:
        return {side.run_id for side in self.sides()}

    def replication_ids(self) -> set[str | None]:
        """Give back what is the same for all servers that are in replication with one of this one's."""
        return {side.server.info("replication").get("master_replid") for side in self.sides()}

    def owners(self) -> dict[int, Node]:
        """Ask which primary has each slot now; nothing where it is no cluster."""
        return {} if self.slots is None else Slots(self.server).owners()

    def primary_silence(self) -> float:
        """Give back for how many seconds one of the servers, being a replica, has not heard from its primary."""
        return max(side.server.primary_silence() for side in self.sides())

    def flush_calls(self) -> int:
        return sum(side.server.flush_calls() for side in self.sides())

    def version(self) -> tuple[int, ...]:
        """Give back the version of the oldest server."""
        return min(side.server.version() for side in self.sides())

    def connections_wanted(self) -> int:
        return max(side.server.connections_wanted() for side in self.sides())
