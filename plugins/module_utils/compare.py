# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compares a database here with a database there, key by key, and copies again what differs where that is wanted.

Both servers are asked at the same time, over several connections, so that what a comparison costs is their CPU. Most
keys are strings and are compared by MGET; the other types by DUMP, whose payload is the same on both sides where both
keep the value in the same way; what is left (a hash table, whose order differs from server to server) by its elements.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import math
import threading
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.compare_values import (
    WHOLE,
    normal,
    same_value,
    whole_value,
)
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import shown
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import (
    SERVICE_DB,
    SERVICE_KEY,
    batches,
    data_size,
)
from ansible_collections.keyferry.redis.plugins.module_utils.pair import Pair, Side, TooLarge, is_error
from ansible_collections.keyferry.redis.plugins.module_utils.rdb import TYPE_NAMES

OLDEST_SERVER = (7, 0)
EXAMPLES = 10
_SCAN_COUNT = 1000
# Keys asked for at a time, at first and at the most; what a batch should bring, and what it may.
_FIRST_BATCH = 64
_LARGEST_BATCH = 1000
_BATCH_BYTES = 2 << 20
_LIMIT_BYTES = 16 << 20
# A value with a larger payload than this is read in pieces.
_WHOLE_BYTES = 256 << 10
# A payload ends with its RDB version (2 bytes) and its CRC-64 (8 bytes), which differ from engine to engine.
_FOOTER_BYTES = 10
# Hashes some of whose fields may have TTLs of their own (redis and valkey, src/rdb.h).
_FIELD_TTL_TYPES = frozenset((22, 23, 24, 25))
_NO_KEY = -2

Progress = t.Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare, and how.

    C(sample_size): number of random keys of each side to look at; all of them without it. C(repair): copy again what
    differs; C(dry_run) then only counts what that would be.
    """

    source: Side
    target: Side
    ttl_tolerance_ms: int = 0
    sample_size: int | None = None
    repair: bool = False
    dry_run: bool = False
    workers: int | None = None
    max_keys_per_second: int | None = None


@dataclasses.dataclass
class Tally:
    """What was found so far."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[bytes]] = dataclasses.field(
        default_factory=lambda: {"missing": [], "extra": [], "different": []}
    )

    def note(self, how: str, key: bytes) -> None:
        self.counts[how] += 1
        if len(self.examples[how]) < EXAMPLES:
            self.examples[how].append(key)

    def add(self, other: Tally) -> None:
        self.counts.update(other.counts)
        for how, keys in other.examples.items():
            self.examples[how] = (self.examples[how] + keys)[:EXAMPLES]

    def result(self) -> dict[str, t.Any]:
        found = {how: self.counts[how] for how in self.examples}
        return {
            "equal": not any(found.values()),
            **found,
            **{name: self.counts[name] for name in ("compared", "expired", "repaired")},
            "examples": {how: [shown(key) for key in keys] for how, keys in self.examples.items()},
        }


def sample_size(confidence: float, damage: float) -> int:
    """Give back how many random keys find, with this confidence, at least one of a damaged share of all keys."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - damage))


def compare_counts(source: Side, target: Side) -> dict[str, t.Any]:
    """Give back the result of a comparison of nothing but the number of keys."""
    _refuse_itself(source, target)
    keys = {"keys_source": _size(source), "keys_target": _size(target)}
    surplus = keys["keys_target"] - keys["keys_source"]
    tally = Tally(collections.Counter(missing=max(-surplus, 0), extra=max(surplus, 0)))
    return {**tally.result(), **keys}


def compare(comparison: Comparison, progress: Progress) -> dict[str, t.Any]:
    """Compare, both ways; give back the counts and examples, and the number of keys of both sides before.

    I(progress) is told the number of keys looked at, both ways together. Raises KeyferryError when a side cannot be
    read, or the target not be repaired, naming the key where there is one.
    """
    sides = (comparison.source, comparison.target)
    _refuse_itself(*sides)
    for side in sides:
        _check_side(side)
    if comparison.repair:
        _check_repair(comparison)
    keys = {name: _size(side) for name, side in zip(("keys_source", "keys_target"), sides)}
    run = _Run(comparison)
    try:
        tally = run.walk(progress)
    finally:
        run.close()
    return {**tally.result(), **keys}


def _size(side: Side) -> int:
    return data_size(side.server, side.db)


def _refuse_itself(source: Side, target: Side) -> None:
    if source.db == target.db and source.server.run_id() == target.server.run_id():
        raise KeyferryError(
            f"Source and target are the same database {source.db} of the same server, reached as {source.server} and as"
            f" {target.server}; that would prove nothing. Check login_host, target_login_host and the ports"
        )


def _check_repair(comparison: Comparison) -> None:
    """Raise KeyferryError where repairing the target would write to the source."""
    source, target = (side.server for side in (comparison.source, comparison.target))
    replication_ids = {server.info("replication").get("master_replid") for server in (source, target)}
    if source.run_id() == target.run_id() or len(replication_ids) == 1:
        raise KeyferryError(
            f"The target at {target} and the source at {source} are the same server, or one is a replica of the other:"
            " a repair would write to the source. Nothing was done. Check target_login_host and target_login_port"
        )


def _check_side(side: Side) -> None:
    version = side.server.version()
    if version < OLDEST_SERVER:
        raise KeyferryError(
            f"Redis at {side.server} has version {'.'.join(map(str, version))}; comparing keys needs PEXPIRETIME, which"
            " came with 7.0. mode=count works there"
        )
    if side.server.is_cluster():
        raise KeyferryError(
            f"Redis at {side.server} is in cluster mode; keys are compared between servers without it. mode=count"
            " works on each shard"
        )


class _Run:
    """One comparison under way: reads names of keys, and has workers look at them in batches."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self._workers = threading.local()
        self._pairs: list[Pair] = []
        self.batch_size = _FIRST_BATCH
        # In a database 0 this is ElastiCache's own key, on either side.
        dbs = (comparison.source.db, comparison.target.db)
        self._ignored = SERVICE_KEY if SERVICE_DB in dbs else None

    def close(self) -> None:
        for pair in self._pairs:
            pair.close()

    def walk(self, progress: Progress) -> Tally:
        """Look at everything: at the source's keys, then at the target's where there may be extra ones."""
        tally = Tally()
        workers = self._worker_count()
        source, target = self.comparison.source, self.comparison.target
        keys_before = _size(source)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:

            def look_at(side: Side, look: t.Callable[[list[bytes]], Tally]) -> None:
                """Keep a few batches under way, not more, so that memory is bounded."""
                under_way: collections.deque[concurrent.futures.Future[Tally]] = collections.deque()
                for keys in self._paced(self._batches(side)):
                    under_way.append(pool.submit(look, keys))
                    if len(under_way) > workers:
                        tally.add(under_way.popleft().result())
                        progress(tally.counts["looked_at"])
                for batch in under_way:
                    tally.add(batch.result())

            look_at(source, self._look_forward)
            if not self._is_all_accounted(tally, keys_before):
                look_at(target, self._look_back)
        progress(tally.counts["looked_at"])
        return tally

    def _is_all_accounted(self, tally: Tally, keys_before: int) -> bool:
        """Tell whether the target is known to hold no key but those that the way forward has met there.

        The source held as many keys all the time as SCAN returned, so none came twice; as many as were met on the
        target are all that it holds.
        """
        source, target = self.comparison.source, self.comparison.target
        if self.comparison.sample_size is not None or tally.counts["compared"] != keys_before:
            return False
        met = tally.counts["compared"] - tally.counts["missing"] - tally.counts["expired"]
        return _size(source) == keys_before and _size(target) == met

    def _worker_count(self) -> int:
        if self.comparison.workers is not None:
            return self.comparison.workers
        # One more than keeps the servers busy: while one looks at replies, others wait for theirs.
        return 1 + max(side.server.connections_wanted() for side in (self.comparison.source, self.comparison.target))

    def _batches(self, side: Side) -> t.Iterator[list[bytes]]:
        for found in self._found_keys(side):
            keys = iter([key for key in found if key != self._ignored])
            while batch := list(itertools.islice(keys, self.batch_size)):
                yield batch

    def _found_keys(self, side: Side) -> t.Iterator[list[bytes]]:
        """Give back the keys to look at: all of the database, or as many random ones as the sample has."""
        size = self.comparison.sample_size
        with side.server.errors(side.db):
            if size is None or side.server.dbsize(side.db) <= size:
                yield from _scan(side)
            else:
                yield from _random(side, size)

    def _paced(self, key_batches: t.Iterator[list[bytes]]) -> t.Iterator[list[bytes]]:
        """Give back the batches no faster than C(max_keys_per_second) allows."""
        rate = self.comparison.max_keys_per_second
        due = time.monotonic()
        for keys in key_batches:
            yield keys
            if rate is not None:
                due = max(due, time.monotonic() - 1) + len(keys) / rate
                time.sleep(max(0.0, due - time.monotonic()))

    def _look_forward(self, keys: list[bytes]) -> Tally:
        return self._worker().look_forward(keys)

    def _look_back(self, keys: list[bytes]) -> Tally:
        return self._worker().look_back(keys)

    def _worker(self) -> _Worker:
        """Give back this thread's own worker."""
        if not hasattr(self._workers, "worker"):
            pair = Pair(self.comparison.source, self.comparison.target)
            self._pairs.append(pair)
            self._workers.worker = _Worker(self, pair)
        return t.cast("_Worker", self._workers.worker)


def _scan(side: Side) -> t.Iterator[list[bytes]]:
    cursor = -1
    while cursor:
        cursor, keys = side.server.client(side.db).scan(max(cursor, 0), count=_SCAN_COUNT)
        yield keys


def _random(side: Side, size: int) -> t.Iterator[list[bytes]]:
    for names in batches(itertools.repeat("RANDOMKEY", size), _LARGEST_BATCH):
        pipeline = side.server.client(side.db).pipeline(transaction=False)
        for name in names:
            pipeline.execute_command(name)
        yield [key for key in pipeline.execute() if key is not None]


class _Worker:
    """Looks at batches of keys over its own two connections."""

    def __init__(self, run: _Run, pair: Pair) -> None:
        self._run = run
        self._comparison = run.comparison
        self._pair = pair

    def look_forward(self, keys: list[bytes]) -> Tally:
        """Look at keys of the source: is each of them on the target, the same?"""
        tally = Tally(collections.Counter(looked_at=len(keys)))
        bad = self._compare_batch(keys, tally)
        self._repair(bad, tally)
        return tally

    def look_back(self, keys: list[bytes]) -> Tally:
        """Look at keys of the target: is each of them on the source?"""
        tally = Tally(collections.Counter(looked_at=len(keys)))
        if self._pair.source([("EXISTS", *keys)])[0] == len(keys):
            return tally
        exist, expiries = self._pair.exchange([("EXISTS", key) for key in keys], [("PEXPIRETIME", key) for key in keys])
        now = self._now()
        extra = []
        for key, is_there, expiry in zip(keys, exist, expiries):
            if is_there:
                continue
            if expiry == _NO_KEY or 0 <= expiry <= now:
                tally.counts["expired"] += 1
                continue
            tally.note("extra", key)
            extra.append(key)
        self._repair(extra, tally)
        return tally

    def _compare_batch(self, keys: list[bytes], tally: Tally) -> list[bytes]:
        """Note what differs; give back these keys. Splits the batch where it is too much to hold."""
        try:
            return self._compare_keys(keys, tally)
        except TooLarge:
            if len(keys) == 1:
                return self._compare_large(keys[0], tally)
        self._run.batch_size = middle = max(1, len(keys) // 2)
        return [*self._compare_batch(keys[:middle], tally), *self._compare_batch(keys[middle:], tally)]

    def _compare_keys(self, keys: list[bytes], tally: Tally) -> list[bytes]:
        """Note what differs, or raise TooLarge before anything is noted."""
        received = self._pair.received
        questions = [("MGET", *keys), *[("PEXPIRETIME", key) for key in keys]]
        (ours, *our_ttls), (theirs, *their_ttls) = self._pair.both(questions, _LIMIT_BYTES)
        # Nothing is a value of no string, too.
        others = [key for key, value, ttl in zip(keys, ours, our_ttls) if value is None and ttl != _NO_KEY]
        verdicts = self._compare_payloads(others) if others else {}
        self._adapt(len(keys), self._pair.received - received)
        tally.counts["compared"] += len(keys)
        if ours == theirs and our_ttls == their_ttls and not verdicts:
            tally.counts["expired"] += our_ttls.count(_NO_KEY)
            return []
        return self._judge(zip(keys, ours, theirs, our_ttls, their_ttls), verdicts, tally)

    def _judge(self, rows: t.Iterable[tuple[t.Any, ...]], verdicts: dict[bytes, str], tally: Tally) -> list[bytes]:
        """Note each key's verdict; give back the keys that differ."""
        now = self._now()
        bad = []
        for key, ours, theirs, our_ttl, their_ttl in rows:
            verdict = verdicts.get(key) or self._verdict(ours, theirs, our_ttl, their_ttl)
            if verdict is None:
                continue
            if _is_over(our_ttl, now) or (verdict == "gone" and _is_over(their_ttl, now)):
                tally.counts["expired"] += 1
            elif verdict != "gone":
                # What is gone from the source is an extra key of the target, which the way back counts.
                tally.note(verdict, key)
                bad.append(key)
        return bad

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
        return abs(ours - theirs) <= self._comparison.ttl_tolerance_ms

    def _compare_payloads(self, keys: list[bytes]) -> dict[bytes, str]:
        """Give back the verdict on each of these keys, none of which is a string, that is not the same."""
        ours, theirs = self._pair.both([("DUMP", key) for key in keys], _LIMIT_BYTES)
        verdicts = {}
        unsure: dict[str, list[bytes]] = collections.defaultdict(list)
        for key, our, their in zip(keys, ours, theirs):
            if our is None:
                verdicts[key] = "gone"
            elif their is None:
                verdicts[key] = "missing"
            elif our[:-_FOOTER_BYTES] != their[:-_FOOTER_BYTES]:
                kind = _common_kind(our, their)
                if kind is None:
                    verdicts[key] = "different"
                else:
                    unsure[kind if _is_small(our, their) and kind in WHOLE else f"large {kind}"].append(key)
        for kind, suspects in unsure.items():
            for key in self._really_different(kind, suspects):
                verdicts[key] = "different"
        return verdicts

    def _really_different(self, kind: str, keys: list[bytes]) -> list[bytes]:
        """Give back those of the keys whose values differ, not only the way they are kept."""
        if kind.startswith("large "):
            return [key for key in keys if not same_value(self._pair, kind[len("large ") :], key)]
        ours, theirs = self._pair.both([whole_value(kind, key) for key in keys])
        return [key for key, our, their in zip(keys, ours, theirs) if normal(kind, our) != normal(kind, their)]

    def _compare_large(self, key: bytes, tally: Tally) -> list[bytes]:
        """As _compare_keys, for one key that is too large to hold."""
        ours, theirs = self._pair.both([("TYPE", key), ("PEXPIRETIME", key)])
        tally.counts["compared"] += 1
        is_same = ours[0] == theirs[0] and ours[0] != b"none" and same_value(self._pair, ours[0].decode(), key)
        verdicts = {} if is_same or _NO_KEY in (ours[1], theirs[1]) else {key: "different"}
        return self._judge([(key, None, None, ours[1], theirs[1])], verdicts, tally)

    def _adapt(self, keys: int, size: int) -> None:
        """Ask for more keys at a time where they are small, for fewer where they are large."""
        wanted = _BATCH_BYTES * keys // max(size, 1)
        self._run.batch_size = max(1, min(wanted, 2 * self._run.batch_size, _LARGEST_BATCH))

    def _now(self) -> int:
        """Give back the later of the two servers' clocks, in ms, and as much later as TTLs may differ."""
        replies = self._pair.both([("TIME",)])
        clock = max(int(seconds) * 1000 + int(micros) // 1000 for ((seconds, micros),) in replies)
        return clock + self._comparison.ttl_tolerance_ms

    def _repair(self, keys: list[bytes], tally: Tally) -> None:
        """Make these keys on the target what they are on the source now; remove those that it has not."""
        if not keys or not self._comparison.repair:
            return
        tally.counts["repaired"] += len(keys)
        if self._comparison.dry_run:
            return
        replies = iter(
            self._pair.source([command for key in keys for command in (("DUMP", key), ("PEXPIRETIME", key))])
        )
        commands = [_copy(key, payload, expiry) for key, payload, expiry in zip(keys, replies, replies)]
        for key, reply in zip(keys, self._pair.write_target(commands)):
            if is_error(reply):
                raise KeyferryError(
                    f"Redis at {self._comparison.target.server}, database {self._comparison.target.db}, refused to"
                    f" repair key {shown(key)}: {reply}. Keys before it are repaired; what is right is left alone by"
                    " another run"
                )


def _copy(key: bytes, payload: bytes | None, expiry: int) -> tuple[t.Any, ...]:
    if payload is None or expiry == _NO_KEY:
        return ("UNLINK", key)
    if expiry < 0:
        return ("RESTORE", key, 0, payload, "REPLACE")
    return ("RESTORE", key, expiry, payload, "REPLACE", "ABSTTL")


def _is_over(expiry: int, now: int) -> bool:
    """Tell whether a key with this time of expiry is gone by now, or was when it was asked for."""
    return expiry == _NO_KEY or 0 <= expiry <= now


def _common_kind(ours: bytes, theirs: bytes) -> str | None:
    """Give back the type of two payloads, as TYPE calls it; None where they differ in it or it cannot be read."""
    kind = TYPE_NAMES.get(ours[0])
    return kind if kind == TYPE_NAMES.get(theirs[0]) and (kind in WHOLE or kind in ("stream", "string")) else None


def _is_small(*payloads: bytes) -> bool:
    """Tell whether a value is read whole; a hash whose fields have TTLs is not, since HGETALL does not tell these."""
    return all(len(payload) <= _WHOLE_BYTES and payload[0] not in _FIELD_TTL_TYPES for payload in payloads)
