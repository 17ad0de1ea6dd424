# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What consumer groups do to streams: of that alone a server tells nobody, so that it has to be asked.

Source of the fact: redis 7.0, src/t_stream.c, where XREADGROUP, XACK, XCLAIM and XGROUP do not signal a modified key.
"""

from __future__ import annotations

import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import batches
from ansible_collections.keyferry.redis.plugins.module_utils.pair import Pair, is_error

# Streams asked about at a time.
_BATCH = 100
# How long after a look at all streams the next one comes: so many times as long as that took, and not less than this.
_REST = 20
_LEAST_REST_S = 1.0
# Of when a consumer was seen, and of memory, nobody is to take note; the first pending entries say little.
_GROUP_FACTS = (b"name", b"last-delivered-id", b"pel-count", b"entries-read")
_CONSUMER_FACTS = (b"name", b"pel-count")

# What a stream's groups are like; None where there is no such stream, of which a server does tell.
State = t.Optional[tuple[t.Any, ...]]


class StreamGroups:
    """The groups of streams on both sides, and what they were like when they were last the same.

    C(streams): the keys to look at; add() may be called by any thread.
    """

    def __init__(self) -> None:
        self.streams: set[bytes] = set()
        self._known: dict[bytes, tuple[State, State]] = {}
        self._next_look = 0.0

    def add(self, keys: t.Iterable[bytes]) -> None:
        self.streams.update(keys)

    def with_groups(self) -> set[bytes]:
        """Give back the streams that had groups on either side when they were last looked at."""
        return {key for key, both in self._known.items() if any(both)}

    def is_due(self) -> bool:
        """Tell whether it is time to look at all streams again."""
        return time.monotonic() >= self._next_look

    def look_at_all(self, pair: Pair) -> tuple[set[bytes], set[bytes]]:
        """As look(), at all streams."""
        began = time.monotonic()
        found = self.look(pair, self.streams)
        ended = time.monotonic()
        self._next_look = ended + max(_LEAST_REST_S, _REST * (ended - began))
        return found

    def look(self, pair: Pair, keys: t.Iterable[bytes]) -> tuple[set[bytes], set[bytes]]:
        """Give back the streams whose groups have done something since the last time, on the source and on the target.

        What is looked at for the first time has done so on the source where it is not the same on both sides.
        """
        ours_changed, theirs_changed = set(), set()
        for key, ours, theirs in _states(pair, self.streams.intersection(keys)):
            before = self._known.get(key, (theirs, theirs))
            if ours != before[0]:
                ours_changed.add(key)
            if theirs is not None and theirs != before[1]:
                theirs_changed.add(key)
            self._known[key] = ours, before[1]
        return ours_changed, theirs_changed

    def note_copied(self, pair: Pair, keys: t.Iterable[bytes]) -> None:
        """Take what the groups of these streams are like on the target for what they were made."""
        for key, ours, theirs in _states(pair, self.streams.intersection(keys)):
            self._known[key] = self._known.get(key, (ours,))[0], theirs


def _states(pair: Pair, keys: t.Iterable[bytes]) -> t.Iterator[tuple[bytes, State, State]]:
    for some in batches(keys, _BATCH):
        replies = pair.both([("XINFO", "STREAM", key, "FULL", "COUNT", 1) for key in some])
        for key, ours, theirs in zip(some, *replies):
            yield key, _state(ours), _state(theirs)


def _state(reply: t.Any) -> State:
    """Give back what XINFO STREAM FULL says of the groups, less what changes by itself."""
    if is_error(reply):
        return None
    groups = [_pairs(group) for group in _pairs(reply)[b"groups"]]
    return tuple(
        (
            *(group.get(name) for name in _GROUP_FACTS),
            *(tuple(_pairs(each)[name] for name in _CONSUMER_FACTS) for each in group[b"consumers"]),
        )
        for group in groups
    )


def _pairs(reply: list[t.Any]) -> dict[bytes, t.Any]:
    return dict(zip(reply[::2], reply[1::2]))
