# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A cluster's topology: which slot a key is in, and which primary serves it.

Source of the facts: the Redis cluster specification (hash tags, redirections MOVED and ASK).
"""

from __future__ import annotations

import binascii
import contextlib
import dataclasses
import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import OtherProcess, Server

Node = tuple[str, int]

SLOTS = 16384


def slot_of(key: bytes) -> int:
    """Give back a key's slot: the CRC-16 (XMODEM) of the key, or of what stands between its first { and the next }."""
    start = key.find(b"{")
    end = key.find(b"}", start + 1) if start >= 0 else -1
    return binascii.crc_hqx(key[start + 1 : end] if end > start + 1 else key, 0) % SLOTS


class Slots:
    """Which primary serves each slot, as far as is known; for all connections of one task.

    I(approve) gives back the run_id of a node's process, or raises KeyferryError where it must not be written to.
    """

    def __init__(self, server: Server, approve: t.Callable[[Server], str] = Server.run_id) -> None:
        self._server = server
        self._approve = approve
        self._lock = threading.Lock()
        self._run_ids: dict[Node, str] = {}
        self._lost: set[Node] = set()
        self._nodes = self._told_by(server)
        if not self._nodes:
            raise KeyferryError(f"The cluster at {server} serves no slots yet: is it set up?")

    def _told_by(self, server: Server) -> dict[int, Node]:
        found: dict[int, Node] = {}
        for first, last, (host, port, *_facts), *_replicas in server.call("CLUSTER", "SLOTS"):
            found.update(dict.fromkeys(range(first, last + 1), self._node((host or b"").decode(), port)))
        return found

    def __getitem__(self, slot: int) -> Node:
        node = self._nodes.get(slot)
        if node is None:
            raise KeyferryError(f"No node of the cluster at {self._server} serves slot {slot}; see CLUSTER INFO")
        return node

    def moved(self, redirection: bytes) -> None:
        """Take what MOVED says."""
        _moved, slot, _address = redirection.decode().split()
        with self._lock:
            self._nodes[int(slot)] = self.asked(redirection)

    def asked(self, redirection: bytes) -> Node:
        """Give back the node that ASK, or MOVED, names."""
        host, _colon, port = redirection.decode().split()[2].rpartition(":")
        return self._node(host, int(port))

    def nodes(self) -> list[Node]:
        return sorted(set(self._nodes.values()))

    def owners(self) -> dict[int, Node]:
        """Give back each slot's primary."""
        return dict(self._nodes)

    def run_id(self, node: Node) -> str:
        """Give back what the process at a node was called when it was first asked."""
        if node not in self._run_ids:
            self._run_ids[node] = self._approve(self.server(node))
        return self._run_ids[node]

    def run_ids(self) -> str:
        """Give back what tells these processes, all primaries together, from all others."""
        return " ".join(sorted(map(self.run_id, self.nodes())))

    def approve_all(self) -> None:
        """Raise KeyferryError where one of the primaries must not be written to."""
        for node in self.nodes():
            self.run_id(node)

    def lost(self, node: Node) -> None:
        """Remember that a connection to this node broke."""
        self._lost.add(node)

    def check_primary(self, node: Node) -> None:
        """Raise OtherProcess where a node is no primary any more.

        What it had acknowledged may be lost then. After a failover by hand it is not, but that cannot be told.
        """
        role = "master"
        # Where it does not answer, the connection to it is lost too.
        with contextlib.suppress(KeyferryError):
            role = self.server(node).info("replication")["role"]
        if role != "master":
            raise OtherProcess(f"Redis at {node[0]}:{node[1]} is no primary of the cluster any more (a failover)")

    def one_that_answers(self) -> Server:
        """Give back a node of the cluster that can be asked; the first one where none answers."""
        return next((server for server in map(self.server, self.nodes()) if server.answers()), self._server)

    def look_again(self) -> None:
        """Ask a node who serves the slots now; where none answers, what is known stays.

        Raises OtherProcess where another node has taken over from one that was lost.
        """
        told: dict[int, Node] = {}
        with contextlib.suppress(KeyferryError):
            told = self._told_by(self.one_that_answers())
        if not told:
            return
        with self._lock:
            gone = self._lost - set(told.values())
            self._nodes.update(told)
        for host, port in gone:
            raise OtherProcess(f"Redis at {host}:{port} was lost, and another node of the cluster took over from it")

    def server(self, node: Node) -> Server:
        host, port = node
        return Server(dataclasses.replace(self._server.address, host=host, port=port))

    def dbsize(self) -> int:
        """Give back the number of keys in all primaries."""
        return sum(self.server(node).dbsize(0) for node in self.nodes())

    def _node(self, host: str, port: int) -> Node:
        # A node that does not know its own name, or is not to tell it, is meant by the one that it was reached by.
        return self._server.address.host if host in ("", "?") else host, port
