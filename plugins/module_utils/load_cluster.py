# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a load into cluster mode needs: the slots, and one connection to each primary.

Source of the facts: the Redis cluster specification (redirections MOVED and ASK, TRYAGAIN while a slot migrates).
"""

from __future__ import annotations

import binascii
import contextlib
import dataclasses
import socket
import threading
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import ConnectionLost, Server

Node = tuple[str, int]

SLOTS = 16384
_ASKING = resp.command("ASKING")
_RECEIVE_BYTES = 256 << 10
# A slot that migrates, or a cluster that elects a primary, needs some time.
_ROUNDS = 100
_ROUND_S = 0.1
_WAITS = (b"TRYAGAIN", b"CLUSTERDOWN", b"LOADING", b"BUSY ", b"MASTERDOWN")


def slot_of(key: bytes) -> int:
    """Give back a key's slot: the CRC-16 (XMODEM) of the key, or of what stands between its first { and the next }."""
    start = key.find(b"{")
    end = key.find(b"}", start + 1) if start >= 0 else -1
    return binascii.crc_hqx(key[start + 1 : end] if end > start + 1 else key, 0) % SLOTS


class Refused(Exception):
    """The cluster refused the command with this index for good."""

    def __init__(self, node: Node, index: int, error: bytes) -> None:
        super().__init__(node, index, error)
        self.node = node
        self.index = index
        self.error = error


class Slots:
    """Which primary serves each slot, as far as is known; for all connections of one load."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._nodes: dict[int, Node] = {}
        for first, last, (host, port, *_facts), *_replicas in server.call("CLUSTER", "SLOTS"):
            node = self._node(host.decode(), port)
            self._nodes.update(dict.fromkeys(range(first, last + 1), node))
        if not self._nodes:
            raise KeyferryError(f"The cluster at {server} serves no slots yet: is it set up?")

    def __getitem__(self, slot: int) -> Node:
        node = self._nodes.get(slot)
        if node is None:
            raise KeyferryError(f"No node of the cluster at {self._server} serves slot {slot}; see CLUSTER INFO")
        return node

    def moved(self, redirection: bytes) -> Node:
        """Take what MOVED says; give back the node."""
        _moved, slot, _address = redirection.decode().split()
        with self._lock:
            self._nodes[int(slot)] = self.asked(redirection)
            return self._nodes[int(slot)]

    def asked(self, redirection: bytes) -> Node:
        """Give back the node that ASK, or MOVED, names."""
        host, _colon, port = redirection.decode().split()[2].rpartition(":")
        return self._node(host, int(port))

    def nodes(self) -> list[Node]:
        return sorted(set(self._nodes.values()))

    def server(self, node: Node) -> Server:
        host, port = node
        return Server(dataclasses.replace(self._server.address, host=host, port=port))

    def dbsize(self) -> int:
        """Give back the number of keys in all primaries."""
        return sum(self.server(node).dbsize(0) for node in self.nodes())

    def _node(self, host: str, port: int) -> Node:
        # A node that does not know its own name is meant by the one that it was reached by.
        return host or self._server.address.host, port


class Wires:
    """Connections to the primaries, made as they are needed; a context, for one thread."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._open = contextlib.ExitStack()
        self._wires: dict[Node, socket.socket] = {}

    def __enter__(self) -> Wires:
        return self

    def __exit__(self, *exception: t.Any) -> None:
        self._open.__exit__(*exception)

    def send(self, commands: t.Sequence[tuple[int, bytes]]) -> None:
        """Send commands, each with its slot, and wait until all are done; those of one key keep their order.

        Raises Refused at the first that the cluster refuses for good.
        """
        left = list(enumerate(commands))
        asked: dict[int, Node] = {}
        for _round in range(_ROUNDS):
            left, asked, wait = self._round(left, asked)
            if not left:
                return
            if wait:
                time.sleep(_ROUND_S)
        index, (slot, _command) = left[0]
        raise Refused(self._slots[slot], index, b"still redirected, or told to try again, after many attempts")

    def _round(
        self, left: list[tuple[int, tuple[int, bytes]]], asked: dict[int, Node]
    ) -> tuple[list[tuple[int, tuple[int, bytes]]], dict[int, Node], bool]:
        """Send all once; give back those that are left, where ASK sent some of them, and whether to wait first."""
        batches: dict[Node, list[int]] = {}
        pieces: dict[Node, list[bytes]] = {}
        for index, (slot, command) in left:
            node = asked.get(index) or self._slots[slot]
            batches.setdefault(node, []).append(index)
            pieces.setdefault(node, []).extend((_ASKING, command) if index in asked else (command,))
        for node, batch in pieces.items():
            self._wire(node).sendall(b"".join(batch))
        again: set[int] = set()
        sent_on: dict[int, Node] = {}
        wait = False
        for node, indices in batches.items():
            for index, error in self._errors(node, indices, asked):
                again.add(index)
                if error.startswith(b"MOVED "):
                    self._slots.moved(error)
                elif error.startswith(b"ASK "):
                    sent_on[index] = self._slots.asked(error)
                elif error.startswith(_WAITS):
                    wait = True
                else:
                    raise Refused(node, index, error)
        return [item for item in left if item[0] in again], sent_on, wait

    def _errors(self, node: Node, indices: list[int], asked: dict[int, Node]) -> t.Iterator[tuple[int, bytes]]:
        """Wait for the replies of a node; give back the errors among them, each with its command's index."""
        # None stands for an ASKING.
        expected = [each for index in indices for each in ((None, index) if index in asked else (index,))]
        counter = resp.ReplyCounter()
        while counter.replies < len(expected):
            data = self._wire(node).recv(_RECEIVE_BYTES)
            if not data:
                raise ConnectionLost(f"Redis at {node[0]}:{node[1]} closed the connection. Is it still up?")
            counter.feed(data)
        for position, error in counter.errors.items():
            index = expected[position]
            if index is None:
                raise Refused(node, t.cast("int", expected[position + 1]), error)
            yield index, error

    def _wire(self, node: Node) -> socket.socket:
        if node not in self._wires:
            self._wires[node] = self._open.enter_context(self._slots.server(node).connection(0))
        return self._wires[node]
