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
from ansible_collections.keyferry.redis.plugins.module_utils.load_commands import Buffer, gathered
from ansible_collections.keyferry.redis.plugins.module_utils.server import OtherProcess, Server

Node = tuple[str, int]

SLOTS = 16384
# Stands for the slot of a command that every primary is to have.
EVERYWHERE = -1
_ASKING = resp.command("ASKING")
_RECEIVE_BYTES = 256 << 10
# A slot that migrates, or a cluster that elects a primary, needs some time: so long at most for one more command.
_PATIENCE_S = 15.0
_WAIT_S = 0.1
_REDIRECTED_S = 0.005
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


class Lost(Exception):
    """The connection to a node could not be made or broke, before it answered the command with this index."""

    def __init__(self, node: Node, index: int, reason: str) -> None:
        super().__init__(node, index, reason)
        self.node = node
        self.index = index
        self.reason = reason


class Slots:
    """Which primary serves each slot, as far as is known; for all connections of one load."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._run_ids: dict[Node, str] = {}
        self._lost: set[Node] = set()
        self._nodes = self._told_by(server)
        if not self._nodes:
            raise KeyferryError(f"The cluster at {server} serves no slots yet: is it set up?")

    def _told_by(self, server: Server) -> dict[int, Node]:
        found: dict[int, Node] = {}
        for first, last, (host, port, *_facts), *_replicas in server.call("CLUSTER", "SLOTS"):
            found.update(dict.fromkeys(range(first, last + 1), self._node(host.decode(), port)))
        return found

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

    def run_id(self, node: Node) -> str:
        """Give back what the process at a node was called when it was first asked."""
        if node not in self._run_ids:
            self._run_ids[node] = self.server(node).run_id()
        return self._run_ids[node]

    def run_ids(self) -> str:
        """Give back what tells these processes, all primaries together, from all others."""
        return " ".join(sorted(map(self.run_id, self.nodes())))

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
        for server in map(self.server, self.nodes()):
            with contextlib.suppress(KeyferryError):
                server.run_id()
                return server
        return self._server

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
        # A node that does not know its own name is meant by the one that it was reached by.
        return host or self._server.address.host, port


# A command's slot, and the command in pieces.
Routed = tuple[int, list[Buffer]]


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

    def send(self, commands: t.Sequence[Routed]) -> None:
        """Send commands, each with its slot, and wait until all are done; those of one key keep their order.

        Raises Refused at the first that the cluster refuses for good, Lost where a node is lost, and OtherProcess
        where a node is not what it was.
        """
        for index, (slot, command) in enumerate(commands):
            if slot == EVERYWHERE:
                self._send_everywhere(index, command)
        left = [(index, each) for index, each in enumerate(commands) if each[0] != EVERYWHERE]
        asked: dict[int, Node] = {}
        give_up = time.monotonic() + _PATIENCE_S
        while left:
            before = len(left)
            left, asked, wait = self._round(left, asked)
            if len(left) < before:
                give_up = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > give_up:
                index, (slot, _command) = left[0]
                raise Refused(self._slots[slot], index, wait or b"still redirected after many attempts")
            if left:
                time.sleep(_WAIT_S if wait else _REDIRECTED_S)

    def _send_everywhere(self, index: int, command: list[Buffer]) -> None:
        for node in self._slots.nodes():
            self._send(node, index, command)
            for _index, error in self._errors(node, [index], {}):
                raise Refused(node, index, error)

    def _round(
        self, left: list[tuple[int, Routed]], asked: dict[int, Node]
    ) -> tuple[list[tuple[int, Routed]], dict[int, Node], bytes]:
        """Send all once; give back those that are left, where ASK sent some of them, and what said to wait, if any."""
        batches: dict[Node, list[int]] = {}
        pieces: dict[Node, list[Buffer]] = {}
        for index, (slot, command) in left:
            node = asked.get(index) or self._slots[slot]
            batches.setdefault(node, []).append(index)
            pieces.setdefault(node, []).extend((_ASKING, *command) if index in asked else command)
        for node, batch in pieces.items():
            self._send(node, batches[node][0], batch)
        again: set[int] = set()
        sent_on: dict[int, Node] = {}
        moved_from: set[Node] = set()
        wait = b""
        for node, indices in batches.items():
            for index, error in self._errors(node, indices, asked):
                again.add(index)
                if error.startswith(b"MOVED "):
                    self._slots.moved(error)
                    moved_from.add(node)
                elif error.startswith(b"ASK "):
                    sent_on[index] = self._slots.asked(error)
                elif error.startswith(_WAITS):
                    wait = error
                else:
                    raise Refused(node, index, error)
        for node in moved_from:
            self._slots.check_primary(node)
        return [item for item in left if item[0] in again], sent_on, wait

    def _send(self, node: Node, index: int, pieces: t.Iterable[Buffer]) -> None:
        with self._reached(node, index) as wire:
            for data in gathered(pieces):
                wire.sendall(data)

    def _errors(self, node: Node, indices: list[int], asked: dict[int, Node]) -> t.Iterator[tuple[int, bytes]]:
        """Wait for the replies of a node; give back the errors among them, each with its command's index."""
        # None stands for an ASKING.
        expected = [each for index in indices for each in ((None, index) if index in asked else (index,))]
        counter = resp.ReplyCounter()
        while counter.replies < len(expected):
            with self._reached(node, _first(expected[counter.replies :])) as wire:
                data = wire.recv(_RECEIVE_BYTES)
                if not data:
                    raise ConnectionError("it closed the connection")
            counter.feed(data)
        for position, error in counter.errors.items():
            index = expected[position]
            if index is None:
                raise Refused(node, _first(expected[position:]), error)
            yield index, error

    @contextlib.contextmanager
    def _reached(self, node: Node, index: int) -> t.Iterator[socket.socket]:
        """Give back the connection to a node, where the next that is to be answered is the command with I(index)."""
        try:
            if node not in self._wires:
                made = self._slots.server(node).connection(0, self._slots.run_id(node))
                self._wires[node] = self._open.enter_context(made)
            yield self._wires[node]
        except OtherProcess:
            raise
        except (OSError, KeyferryError) as error:
            self._slots.lost(node)
            raise Lost(node, index, str(error).rstrip(".")) from error


def _first(expected: t.Iterable[int | None]) -> int:
    """Give back the first command's index among what replies are expected to."""
    return next(index for index in expected if index is not None)
