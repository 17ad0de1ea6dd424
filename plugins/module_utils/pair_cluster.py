# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A line to a cluster: each command goes to the primary that serves its key, redirections are followed.

Source of the facts: the Redis cluster specification (MOVED and ASK, TRYAGAIN while a slot migrates; the keys of one
command are all in one slot).
"""

from __future__ import annotations

import itertools
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.cluster import Node, Slots, slot_of
from ansible_collections.keyferry.redis.plugins.module_utils.endpoint import Endpoint
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.pair import (
    Command,
    Each,
    Line,
    Pair,
    Question,
    TooLarge,
    Wire,
    WireLine,
    is_error,
    packed,
)
from ansible_collections.keyferry.redis.plugins.module_utils.server import PASSING_ERRORS

# A slot that migrates, or a cluster that elects a primary, needs some time.
_ROUNDS = 100
_ROUND_S = 0.1
# How to make one reply of those to a command's parts, each of which is about one key.
_JOIN: dict[t.Any, t.Callable[[list[t.Any]], t.Any]] = {
    "MGET": lambda replies: [value for (value,) in replies],
    "EXISTS": sum,
}
# Where the key stands in what has a subcommand before it; elsewhere it is the first argument.
_KEY_AT = {"XINFO": 2}


class ClusterLine:
    """A line to the primaries of a cluster, one connection to each, made as they are needed."""

    def __init__(self, endpoint: Endpoint, slots: Slots) -> None:
        self._endpoint = endpoint
        self._slots = slots
        self._wires: dict[Node, Wire] = {}
        self._questions: t.Sequence[Question] = ()
        # The questions' parts, their nodes where ASK named these, and which were sent to which node.
        self._parts: list[Command] = []
        self._asked: dict[int, Node] = {}
        self._sent: dict[Node, list[int]] = {}

    def reset(self) -> None:
        for wire in self._wires.values():
            wire.reset()

    def close(self) -> None:
        for wire in self._wires.values():
            wire.close()

    def wire(self, key: bytes) -> Wire:
        return self._wire_to(self._slots[slot_of(key)])

    def begin(self, questions: t.Sequence[Question]) -> None:
        self._questions = questions
        self._parts = [part for question in questions for part in _parts(question)]
        self._asked = {}
        self._send(range(len(self._parts)))

    def finish(self, limit: int | None) -> tuple[list[t.Any], int]:
        replies: list[t.Any] = [None] * len(self._parts)
        size = 0
        for _round in range(_ROUNDS):
            left, wait, more = self._receive(replies, limit)
            size += more
            if not left:
                return list(self._joined(replies)), size
            if wait:
                time.sleep(_ROUND_S)
            self._send(left)
        raise KeyferryError(
            f"{self._endpoint} still redirects, or says to try again, after {_ROUNDS} attempts: {replies[left[0]]}."
            " See CLUSTER INFO, and run this again"
        )

    def _send(self, indices: t.Iterable[int]) -> None:
        self._sent = {}
        for index in indices:
            self._sent.setdefault(self._asked.get(index) or self._node(self._parts[index]), []).append(index)
        for node, batch in self._sent.items():
            commands: list[Command] = []
            for index in batch:
                if index in self._asked:
                    commands.append(("ASKING",))
                commands.append(self._parts[index])
            self._wire_to(node).send(packed(commands))

    def _receive(self, replies: list[t.Any], limit: int | None) -> tuple[list[int], bool, int]:
        """Put the replies where they belong; give back what has to be sent again, whether to wait first, the bytes."""
        size = 0
        wait = False
        again = []
        was_asked, self._asked = self._asked, {}
        for node, batch in self._sent.items():
            count = len(batch) + sum(index in was_asked for index in batch)
            found, more = self._wire_to(node).receive(count, limit)
            size += more
            if limit is not None and size > limit:
                raise TooLarge
            following = iter(found)
            for index in batch:
                if index in was_asked:
                    next(following)
                replies[index] = reply = next(following)
                if is_error(reply) and self._is_passing(index, str(reply)):
                    again.append(index)
                    wait = wait or str(reply).startswith(PASSING_ERRORS)
        return again, wait, size

    def _is_passing(self, index: int, error: str) -> bool:
        """Tell whether to send it again; take note of where to, where the cluster says so."""
        if error.startswith("MOVED "):
            self._slots.moved(error.encode())
        elif error.startswith("ASK "):
            self._asked[index] = self._slots.asked(error.encode())
        else:
            return error.startswith(PASSING_ERRORS)
        return True

    def _joined(self, replies: list[t.Any]) -> t.Iterator[t.Any]:
        following = iter(replies)
        for question in self._questions:
            parts = list(itertools.islice(following, len(_parts(question))))
            if isinstance(question, Each):
                yield from parts
                continue
            errors = [part for part in parts if is_error(part)]
            if errors:
                yield errors[0]
            else:
                yield _JOIN[question[0]](parts) if question[0] in _JOIN else parts[0]

    def _node(self, command: Command) -> Node:
        key = command[_KEY_AT.get(str(command[0]), 1)] if len(command) > 1 else b""
        return self._slots[slot_of(key if isinstance(key, bytes) else str(key).encode())]

    def _wire_to(self, node: Node) -> Wire:
        if node not in self._wires:
            self._wires[node] = Wire(self._endpoint.side(node))
        return self._wires[node]


def _parts(question: Question) -> t.Sequence[Command]:
    """Give back what a question is sent as: its keys may be in several slots, where it is one about many of them."""
    if isinstance(question, Each):
        return [(question.name, key, *question.rest) for key in question.keys]
    return [(question[0], key) for key in question[1:]] if question[0] in _JOIN else (question,)


def line_to(endpoint: Endpoint) -> Line:
    if endpoint.slots is None:
        return WireLine(endpoint.sides()[0])
    return ClusterLine(endpoint, endpoint.slots)


def pair_of(source: Endpoint, target: Endpoint) -> Pair:
    """Give back new connections to both."""
    return Pair((line_to(source), line_to(target)), (str(source), str(target)))
