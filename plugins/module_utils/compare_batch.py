# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Looks at batches of keys on both sides at once, and copies keys.

Most keys are strings and are compared by MGET, with their TTLs; a batch whose replies are the same bytes on both sides
is done with that. Of the other types, what has few elements is read whole, or compared by DUMP where that is less work
for a server: its payload is the same on both sides where both keep the value in the same way. What is left (a payload
that differs, or a value that would be long work for a server in one go) is compared by its elements.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.compare_values import (
    can_read,
    has_whole,
    knows_field_ttls,
    normal,
    same_value,
    whole_values,
)
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError, shown
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import batches
from ansible_collections.keyferry.redis.plugins.module_utils.pair import (
    Command,
    Each,
    Pair,
    Question,
    TooLarge,
    is_error,
)
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import FOOTER_BYTES
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_types import FIELD_TTL_TYPES

EXAMPLES = 10
# What one batch may bring before it is asked for in parts.
_LIMIT_BYTES = 4 << 20
# Keys of one MGET, whose TTLs are asked for next: while they are still in the server's processor's cache, and without
# keeping the server from its other clients for long.
_KEYS_AT_ONCE = 100
# A string that is longer than this, in a batch that brings too much, is read in pieces.
_LONG_STRING_BYTES = 256 << 10
# How to ask for the number of elements.
_LENGTHS = {"hash": "HLEN", "list": "LLEN", "set": "SCARD", "zset": "ZCARD", "stream": "XLEN"}
# What has more elements is not dumped in one go, which would keep a server from its other clients meanwhile.
_FEW = 5000
# Types to read whole together: where servers tell values in the same order, the same bytes are soon seen to be equal.
_USUAL_ORDERS = (("list", "hash"), ("set", "zset"))
_NO_KEY = -2


@dataclasses.dataclass
class Differences:
    """What was found so far; C(bad) are the keys of one batch that are not what they should be."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[bytes]] = dataclasses.field(
        default_factory=lambda: {"missing": [], "extra": [], "different": []}
    )
    bad: list[bytes] = dataclasses.field(default_factory=list)

    def note(self, how: str, key: bytes) -> None:
        self.counts[how] += 1
        self.bad.append(key)
        if len(self.examples[how]) < EXAMPLES:
            self.examples[how].append(key)

    def add(self, other: Differences) -> None:
        """Add the counts and examples of another batch."""
        self.counts.update(other.counts)
        for how, keys in other.examples.items():
            self.examples[how] = (self.examples[how] + keys)[:EXAMPLES]

    def result(self) -> dict[str, t.Any]:
        found = {how: self.counts[how] for how in self.examples}
        return {
            "equal": not any(found.values()),
            **found,
            **{name: self.counts[name] for name in ("compared", "expired", "repaired", "deleted")},
            "examples": {how: [shown(key) for key in keys] for how, keys in self.examples.items()},
        }


class Worker:
    """Looks at batches of keys over connections of its own; I(streams) is told the streams among the source's keys."""

    def __init__(
        self, pair: Pair, ttl_tolerance_ms: int, streams: t.Callable[[t.Iterable[bytes]], None] | None = None
    ) -> None:
        self._pair = pair
        self._streams = streams
        self._ttl_tolerance_ms = ttl_tolerance_ms
        # The types to read whole. DUMP compresses what these hold, and a server has more work with that than with
        # telling it; scores of a sorted set it would have to write as text.
        self._read_whole = ("list", "set") if knows_field_ttls(pair) else ("list", "set", "hash")

    def look_forward(self, keys: list[bytes]) -> Differences:
        """Look at keys of the source: is each of them on the target, the same?"""
        received = self._pair.received
        differences = Differences(collections.Counter(looked_at=len(keys)))
        self._compare_batch(keys, differences)
        differences.counts["bytes"] = self._pair.received - received
        return differences

    def look_back(self, keys: list[bytes]) -> Differences:
        """Look at keys of the target: is each of them on the source?"""
        differences = Differences(collections.Counter(looked_at=len(keys)))
        if self._pair.source([("EXISTS", *keys)])[0] == len(keys):
            return differences
        exist, expiries = self._pair.exchange([Each("EXISTS", keys)], [Each("PEXPIRETIME", keys)])
        now = self._now()
        for key, is_there, expiry in zip(keys, exist, expiries):
            if is_there:
                continue
            if _is_over(expiry, now):
                differences.counts["expired"] += 1
            else:
                differences.note("extra", key)
        return differences

    def _compare_batch(self, keys: list[bytes], differences: Differences) -> None:
        """Note what differs. Looks at large strings one by one, and at the rest again, where they are too much."""
        try:
            self._compare_keys(keys, differences)
        except TooLarge:
            long = self._long_strings(keys)
            for key in long:
                self._compare_large(key, differences)
            rest = [key for key in keys if key not in long]
            # Without a long one it is many that are too much together.
            middle = len(rest) if long else len(rest) // 2
            for part in (rest[:middle], rest[middle:]):
                if part:
                    self._compare_batch(part, differences)

    def _long_strings(self, keys: list[bytes]) -> frozenset[bytes]:
        """Give back the keys that are too large to be asked for with others, on either side."""
        lengths = zip(keys, *self._pair.both([Each("STRLEN", keys)]))
        return frozenset(
            key
            for key, *both in lengths
            if len(keys) == 1 or any(isinstance(length, int) and length > _LONG_STRING_BYTES for length in both)
        )

    def _compare_keys(self, keys: list[bytes], differences: Differences) -> None:
        """Note what differs, or raise TooLarge before anything is noted."""
        chunks = list(batches(keys, _KEYS_AT_ONCE))
        questions = [question for chunk in chunks for question in (("MGET", *chunk), Each("PEXPIRETIME", chunk))]
        replies = self._pair.both(questions, _LIMIT_BYTES)
        ours, our_ttls = _values_and_ttls(chunks, replies[0])
        is_alike = replies[0] is replies[1]
        theirs, their_ttls = (ours, our_ttls) if is_alike else _values_and_ttls(chunks, replies[1])
        # Nothing is a value of no string, too.
        others = [key for key, value, ttl in zip(keys, ours, our_ttls) if value is None and ttl != _NO_KEY]
        verdicts = self._compare_others(others) if others else {}
        differences.counts["compared"] += len(keys)
        if ours == theirs and our_ttls == their_ttls and not verdicts:
            differences.counts["expired"] += our_ttls.count(_NO_KEY)
            return
        self._judge(zip(keys, ours, theirs, our_ttls, their_ttls), verdicts, differences)

    def _judge(self, rows: t.Iterable[tuple[t.Any, ...]], verdicts: dict[bytes, str], differences: Differences) -> None:
        """Note each key's verdict."""
        now = self._now()
        for key, ours, theirs, our_ttl, their_ttl in rows:
            verdict = verdicts.get(key) or self._verdict(ours, theirs, our_ttl, their_ttl)
            if verdict is None:
                continue
            if _is_over(our_ttl, now) or (verdict == "gone" and _is_over(their_ttl, now)):
                differences.counts["expired"] += 1
            elif verdict != "gone":
                # What is gone from the source is an extra key of the target, which the way back counts.
                differences.note(verdict, key)

    def _verdict(self, ours: bytes | None, theirs: bytes | None, our_ttl: int, their_ttl: int) -> str | None:
        """Give back C(gone) (from the source), C(missing), C(different), or None where both are the same."""
        if our_ttl == _NO_KEY:
            return "gone"
        if their_ttl == _NO_KEY:
            return "missing"
        return "different" if ours != theirs or not self._is_same_ttl(our_ttl, their_ttl) else None

    def _is_same_ttl(self, ours: int, theirs: int) -> bool:
        if ours < 0 or theirs < 0:
            return ours == theirs
        return abs(ours - theirs) <= self._ttl_tolerance_ms

    def _compare_others(self, keys: list[bytes]) -> dict[bytes, str]:
        """Give back the verdict on each of these keys, none of which was a string, that is not the same."""
        verdicts: dict[bytes, str] = {}
        by_kind: dict[bytes, list[bytes]] = collections.defaultdict(list)
        types = self._pair.both([Each("TYPE", keys)])
        if self._streams is not None:
            self._streams(key for key, kind in zip(keys, types[0]) if kind == b"stream")
        for key, ours, theirs in zip(keys, *types):
            if ours == theirs and ours != b"none":
                by_kind[ours].append(key)
            else:
                verdicts[key] = "gone" if ours == b"none" else "missing" if theirs == b"none" else "different"
        for key in self._different_values({kind.decode(): found for kind, found in by_kind.items()}):
            verdicts[key] = "different"
        return verdicts

    def _different_values(self, keys: dict[str, list[bytes]]) -> list[bytes]:
        """Give back those of the keys, by the type that each of them has on both sides, whose values differ."""
        different, few, many = self._by_length(keys)
        whole = {kind: few.pop(kind) for kind in self._read_whole if kind in few}
        dumps = {kind: Each("DUMP", found) for kind, found in few.items() if found}
        for kind, key, ours, theirs in _rows(self._pair.unlike, dumps):
            if _without_footer(ours) == _without_footer(theirs):
                continue
            if ours is None or theirs is None or not can_read(kind):
                different.append(key)
            elif has_whole(kind) and ours[0] not in FIELD_TTL_TYPES and theirs[0] not in FIELD_TTL_TYPES:
                whole.setdefault(kind, []).append(key)
            else:
                many.append((kind, key))
        for kinds in _USUAL_ORDERS:
            values = {kind: whole_values(kind, whole[kind]) for kind in kinds if kind in whole}
            for kind, key, ours, theirs in _rows(self._pair.unlike, values):
                # What has another type by now is looked at again. Two errors are no equal values.
                if is_error(ours) or is_error(theirs) or normal(kind, ours) != normal(kind, theirs):
                    different.append(key)
        return different + [key for kind, key in many if not same_value(self._pair, kind, key)]

    def _by_length(
        self, keys: dict[str, list[bytes]]
    ) -> tuple[list[bytes], dict[str, list[bytes]], list[tuple[str, bytes]]]:
        """Give back the keys whose numbers of elements differ, those to read in one go, by type, and the others."""
        different = []
        few = {kind: [] if kind in _LENGTHS else found for kind, found in keys.items()}
        # A string is one that has come in place of something.
        many = [("string", key) for key in few.pop("string", ())]
        asked = {kind: Each(_LENGTHS[kind], found) for kind, found in keys.items() if kind in _LENGTHS}
        for kind, key, ours, theirs in _rows(self._pair.both, asked):
            if ours != theirs or not isinstance(ours, int):
                different.append(key)
            elif ours > _FEW:
                many.append((kind, key))
            else:
                few[kind].append(key)
        return different, few, many

    def _compare_large(self, key: bytes, differences: Differences) -> None:
        """As _compare_keys, for one key that is too large to hold."""
        ours, theirs = self._pair.both([("TYPE", key), ("PEXPIRETIME", key)])
        differences.counts["compared"] += 1
        kind = ours[0].decode()
        if kind == "stream" and self._streams is not None:
            self._streams([key])
        is_same = ours[0] == theirs[0] and can_read(kind) and same_value(self._pair, kind, key)
        verdicts = {} if is_same or _NO_KEY in (ours[1], theirs[1]) else {key: "different"}
        self._judge([(key, None, None, ours[1], theirs[1])], verdicts, differences)

    def _now(self) -> int:
        """Give back the later of the two servers' clocks, in ms, and as much later as TTLs may differ."""
        replies = self._pair.both([("TIME",)])
        clock = max(int(seconds) * 1000 + int(micros) // 1000 for ((seconds, micros),) in replies)
        return clock + self._ttl_tolerance_ms

    def repair(self, keys: list[bytes]) -> Differences:
        """Make these keys on the target what they are on the source now; remove those that it has not."""
        differences = Differences()
        self._repair_batch(keys, differences)
        return differences

    def _repair_batch(self, keys: list[bytes], differences: Differences) -> None:
        """Copy the keys, a large one by itself and in pieces."""
        try:
            replies = iter(self._pair.source(copy_questions(keys), _LIMIT_BYTES))
        except TooLarge:
            if len(keys) == 1:
                # Whoever is asked for a key first knows by then where in a cluster it is.
                self._pair.target([("EXISTS", keys[0])])
                expiry = self._pair.source([("PEXPIRETIME", keys[0])])[0]
                self._note_repair(keys[0], self._pair.copy(keys[0], restore_options(expiry)), differences)
                return
            middle = len(keys) // 2
            self._repair_batch(keys[:middle], differences)
            self._repair_batch(keys[middle:], differences)
            return
        commands = [copy_command(key, payload, expiry) for key, payload, expiry in zip(keys, replies, replies)]
        for key, reply in zip(keys, self._pair.write_target(commands)):
            self._note_repair(key, reply, differences)

    def _note_repair(self, key: bytes, reply: t.Any, differences: Differences) -> None:
        if is_error(reply):
            raise KeyferryError(
                f"{self._pair.names[1]} refused to repair key {shown(key)}: {reply}. Keys before it are repaired; what"
                " is right is left alone by another run"
            )
        # UNLINK tells how many keys it has removed, which may be gone by themselves.
        differences.counts.update(repaired=1) if reply == b"OK" else differences.counts.update(deleted=reply)


def _values_and_ttls(chunks: list[list[bytes]], replies: list[t.Any]) -> tuple[list[bytes | None], list[int]]:
    """Give back the values and the TTLs of all keys, from the replies to MGET and PEXPIRETIME of each chunk of them."""
    values: list[bytes | None] = []
    ttls: list[int] = []
    at = 0
    for chunk in chunks:
        values += replies[at]
        ttls += replies[at + 1 : at + 1 + len(chunk)]
        at += 1 + len(chunk)
    return values, ttls


def _rows(
    ask: t.Callable[[list[Question], int], tuple[list[t.Any], list[t.Any]] | None], questions: dict[str, Each]
) -> list[tuple[str, bytes, t.Any, t.Any]]:
    """Ask both sides; give back type, key and both replies of each; nothing where I(ask) finds nothing to look at."""
    replies = ask(list(questions.values()), _LIMIT_BYTES) if questions else None
    if replies is None:
        return []
    asked = [(kind, key) for kind, each in questions.items() for key in each.keys]
    return [(kind, key, ours, theirs) for (kind, key), ours, theirs in zip(asked, *replies)]


def _without_footer(payload: bytes | None) -> bytes | None:
    """Give back what does not differ from engine to engine."""
    return None if payload is None else payload[:-FOOTER_BYTES]


def copy_questions(keys: t.Iterable[bytes]) -> list[Command]:
    """Give back what to ask for keys that are to be copied: one right after the other, for what changes meanwhile."""
    return [command for key in keys for command in (("DUMP", key), ("PEXPIRETIME", key))]


def copy_command(key: bytes, payload: bytes | None, expiry: int) -> Command:
    """Give back the command that makes a key what the answers to copy_questions() say, or removes it."""
    if payload is None or expiry == _NO_KEY:
        return ("UNLINK", key)
    ttl, options = restore_options(expiry)
    return ("RESTORE", key, ttl, payload, *options)


def restore_options(expiry: int) -> tuple[int, tuple[str, ...]]:
    """Give back what RESTORE gets before and after the payload, by what PEXPIRETIME says."""
    return (0, ("REPLACE",)) if expiry < 0 else (expiry, ("REPLACE", "ABSTTL"))


def _is_over(expiry: int, now: int) -> bool:
    """Tell whether a key with this time of expiry is gone by now, or was when it was asked for."""
    return expiry == _NO_KEY or 0 <= expiry <= now
