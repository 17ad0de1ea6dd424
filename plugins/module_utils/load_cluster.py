# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loads into cluster mode: one connection to each primary.

Source of the facts: the Redis cluster specification (redirections MOVED and ASK, TRYAGAIN while a slot migrates).
"""

from __future__ import annotations

import contextlib
import socket
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.cluster import Node, Slots
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import Block
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.load_commands import Buffer, gathered
from ansible_collections.keyferry.redis.plugins.module_utils.load_target import Target
from ansible_collections.keyferry.redis.plugins.module_utils.server import (
    PASSING_ERRORS,
    RECEIVE_BYTES,
    ConnectionLost,
    OtherProcess,
    Protected,
)

# Stands for the slot of a command that every primary is to have.
EVERYWHERE = -1
_ASKING = resp.command("ASKING")
# A slot that migrates, or a cluster that elects a primary, needs some time: so long at most for one more command.
_PATIENCE_S = 15.0
_WAIT_S = 0.1
_REDIRECTED_S = 0.005


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


class Routed(t.NamedTuple):
    """A command in pieces, its key and the key's slot."""

    slot: int
    pieces: list[Buffer]
    key: bytes = b""


class Wires:
    """Connections to the primaries, made as they are needed; a context, for one thread.

    I(in_order) is whether commands of a key may depend on the ones before them.
    """

    def __init__(self, slots: Slots, in_order: bool) -> None:
        self._slots = slots
        self._in_order = in_order
        self._open = contextlib.ExitStack()
        self._wires: dict[Node, socket.socket] = {}

    def __enter__(self) -> Wires:
        return self

    def __exit__(self, *exception: t.Any) -> None:
        self._open.__exit__(*exception)

    def send(self, commands: t.Sequence[Routed]) -> None:
        """Send commands, each with its slot, and wait until all are done.

        Raises Refused at the first that the cluster refuses for good, or that it would do after one that depends on it,
        Lost where a node is lost, and OtherProcess where a node is not what it was.
        """
        routed: list[tuple[int, Routed]] = []
        for index, command in enumerate(commands):
            if command.slot != EVERYWHERE:
                routed.append((index, command))
                continue
            self._send_routed(routed)
            self._send_everywhere(index, command.pieces)
            routed = []
        self._send_routed(routed)

    def _send_routed(self, left: list[tuple[int, Routed]]) -> None:
        asked: dict[int, Node] = {}
        give_up = time.monotonic() + _PATIENCE_S
        while left:
            before = len(left)
            left, asked, wait = self._round(left, asked)
            if len(left) < before:
                give_up = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > give_up:
                index, first = left[0]
                raise Refused(self._slots[first.slot], index, wait or b"still redirected after many attempts")
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
        for index, command in left:
            node = asked.get(index) or self._slots[command.slot]
            batches.setdefault(node, []).append(index)
            pieces.setdefault(node, []).extend((_ASKING, *command.pieces) if index in asked else command.pieces)
        for node, batch in pieces.items():
            self._send(node, batches[node][0], batch)
        again: dict[int, tuple[Node, bytes]] = {}
        sent_on: dict[int, Node] = {}
        moved_from: set[Node] = set()
        wait = b""
        for node, indices in batches.items():
            for index, error in self._errors(node, indices, asked):
                again[index] = node, error
                if error.startswith(b"MOVED "):
                    self._slots.moved(error)
                    moved_from.add(node)
                elif error.startswith(b"ASK "):
                    sent_on[index] = self._slots.asked(error)
                elif error.decode(errors="replace").startswith(PASSING_ERRORS):
                    wait = error
                else:
                    raise Refused(node, index, error)
        for node in moved_from:
            self._slots.check_primary(node)
        if self._in_order:
            _check_order(left, again)
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
                data = wire.recv(RECEIVE_BYTES)
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
        except (OtherProcess, Protected):
            raise
        except (OSError, KeyferryError) as error:
            self._slots.lost(node)
            raise Lost(node, index, str(error).rstrip(".")) from error


class Load(t.Protocol):
    """What a lane asks of the load that it is part of: load._Run."""

    target: Target
    is_one_command_a_key: bool

    def take(self) -> Block | None: ...

    def routed(self, block: Block) -> t.Iterator[Routed]: ...

    def forget(self, block: Block) -> None: ...

    def done(self, block: Block) -> None: ...

    def answered(self, count: int) -> None: ...

    def described(self, block: Block, index: int) -> str: ...

    def refusal(self, where: str, which: str, error: bytes) -> KeyferryError: ...


class ClusterLane:
    """One connection to each primary of a cluster: sends a block's commands to where their keys belong."""

    def __init__(self, run: Load, slots: Slots) -> None:
        self._run = run
        self._slots = slots
        self._block: Block | None = None
        self.has_done_any = False

    def work(self, first: Block) -> Block | None:
        """Send blocks until there are no more."""
        self._block = first
        with Wires(self._slots, in_order=not self._run.is_one_command_a_key) as wires:
            while self._block is not None:
                self._send(wires, self._block)
                self._run.forget(self._block)
                self._run.done(self._block)
                self._run.answered(self._block.commands)
                self.has_done_any = True
                self._block = self._run.take()
        return None

    def under_way(self) -> list[Block]:
        return [] if self._block is None else [self._block]

    def to_be_answered_again(self) -> int:
        return 0

    def _send(self, wires: Wires, block: Block) -> None:
        commands = list(self._run.routed(block))
        size = self._run.target.batch_size or max(len(commands), 1)
        first = 0
        try:
            for first in range(0, len(commands), size):
                wires.send(commands[first : first + size])
        except Refused as refused:
            which = self._run.described(block, first + refused.index)
            raise self._run.refusal(_text(refused.node), which, refused.error) from None
        except Lost as lost:
            which = self._run.described(block, first + lost.index)
            raise ConnectionLost(
                f"Redis at {_text(lost.node)}, a primary of the cluster, was lost before it answered {which}:"
                f" {lost.reason}. Is it still up, and does it have a replica? Check CLUSTER NODES"
            ) from None


def _check_order(left: list[tuple[int, Routed]], again: dict[int, tuple[Node, bytes]]) -> None:
    """Raise Refused where a command is to be sent again, and a later one of its key is done."""
    waiting: dict[bytes, int] = {}
    for index, command in left:
        if index in again:
            waiting.setdefault(command.key, index)
        elif command.key in waiting:
            first = waiting[command.key]
            node, error = again[first]
            raise Refused(node, first, error + b", but not those that follow it")


def _text(node: Node) -> str:
    return f"{node[0]}:{node[1]}"


def _first(expected: t.Iterable[int | None]) -> int:
    """Give back the first command's index among what replies are expected to."""
    return next(index for index in expected if index is not None)
