# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Writes to a target that others write to as well, and only to keys that none of these has written to.

A key is watched (WATCH); what was written until then is known by what the trackers tell after that; and the transaction
fails if somebody writes to the key before it. The transaction reads the key at its end, so that its connection is told
of every write that follows, even one in the same turn of the server's event loop, where a tracker names the key once
and does not say who wrote.
"""

from __future__ import annotations

import itertools
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.cluster import slot_of
from ansible_collections.keyferry.redis.plugins.module_utils.endpoint import Endpoint
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError, shown
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import batches
from ansible_collections.keyferry.redis.plugins.module_utils.pair import Command, Side, is_error
from ansible_collections.keyferry.redis.plugins.module_utils.tracking import Trackers, TrackingWire

# Connections to each node; in a cluster a transaction has the keys of one slot, so that it takes more of them.
_LANES = 8
_CLUSTER_LANES = 32
# A server does nothing else while a transaction is done.
_KEYS = 100

Commands = dict[bytes, Command]


class GuardedWriter:
    """Writes to keys that are neither in C(touched) nor in C(heard), to which it adds.

    C(touched): keys that others have written to; the caller adds to these. C(heard): keys that the trackers have told
    of since the caller has last looked, own writes excepted.
    """

    def __init__(self, target: Endpoint, trackers: Trackers) -> None:
        self._target = target
        self._trackers = trackers
        self._lanes: dict[Side, list[TrackingWire]] = {}
        self.touched: set[bytes] = set()
        self.heard: set[bytes] = set()

    def close(self) -> None:
        for lane in itertools.chain.from_iterable(self._lanes.values()):
            lane.close()

    def listen(self) -> None:
        """Take note of all that was written up to now."""
        self.heard |= self._trackers.take_all()

    def write(self, commands: Commands) -> dict[bytes, t.Any]:
        """Send each key's command; give back the replies of those that were done.

        Raises KeyferryError for a command that the target refuses.
        """
        done: dict[bytes, t.Any] = {}
        queues = self._groups(commands)
        while any(queues.values()):
            turn = []
            for side, groups in queues.items():
                turn += [(lane, groups.pop()) for lane in self._lanes_to(side, len(groups))]
            done.update(self._write_turn(turn, commands))
        return done

    def _groups(self, commands: Commands) -> dict[Side, list[list[bytes]]]:
        """Give back the keys by the side that they are on, in groups that can be written to in one transaction."""
        slots = self._target.slots
        if slots is None:
            return {self._target.sides()[0]: list(batches(commands, _KEYS))}
        found: dict[Side, dict[int, list[bytes]]] = {}
        for key in commands:
            slot = slot_of(key)
            found.setdefault(self._target.side(slots[slot]), {}).setdefault(slot, []).append(key)
        return {side: list(groups.values()) for side, groups in found.items()}

    def _lanes_to(self, side: Side, wanted: int) -> list[TrackingWire]:
        wanted = min(wanted, _LANES if self._target.slots is None else _CLUSTER_LANES)
        lanes = self._lanes.setdefault(side, [])
        while len(lanes) < wanted:
            lanes.append(TrackingWire(side))
        return lanes[:wanted]

    def _write_turn(self, turn: list[tuple[TrackingWire, list[bytes]]], commands: Commands) -> dict[bytes, t.Any]:
        """Write to one group of keys on each connection."""
        for lane, keys in turn:
            lane.begin([("WATCH", *keys)])
        for lane, keys in turn:
            self._raise_error(lane.finish(), keys)
        self.listen()
        allowed = [(lane, [key for key in keys if key not in self.touched | self.heard]) for lane, keys in turn]
        for lane, keys in allowed:
            questions: list[Command] = [part for key in keys for part in (commands[key], ("EXISTS", key))]
            lane.begin([("MULTI",), *questions, ("EXEC",)] if keys else [("UNWATCH",)])
        done: dict[bytes, t.Any] = {}
        for lane, keys in allowed:
            done.update(self._replies(lane.finish(), keys))
            # What other connections of this writer have done before.
            lane.told()
        # The trackers name the own writes as well; of these keys, the connections tell what came after.
        self.heard |= self._trackers.take_all() - done.keys()
        for lane, keys in allowed:
            lane.begin([("PING",)])
            lane.finish()
            self.heard |= lane.told() & done.keys() & set(keys)
        return done

    def _replies(self, replies: list[t.Any], keys: list[bytes]) -> dict[bytes, t.Any]:
        """Give back each key's reply; nothing where somebody has written to one of the keys."""
        self._raise_error(replies, keys)
        results = replies[-1]
        if not keys or results is None:
            return {}
        self._raise_error(results, [key for key in keys for _part in range(2)])
        return dict(zip(keys, results[::2]))

    def _raise_error(self, replies: list[t.Any], keys: list[bytes]) -> None:
        for at, reply in enumerate(replies):
            if is_error(reply):
                where = f"key {shown(keys[at])}" if len(replies) == len(keys) else f"one of the keys {shown(keys[0])} …"
                raise KeyferryError(f"{self._target} refused to write {where}: {reply}")
