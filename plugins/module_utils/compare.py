# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compares a database here with a database there, both ways, and copies again what differs where that is wanted.

Names of keys are read from one side and looked at on both by workers, each over connections of its own: while one of
them looks at replies, the servers are busy with the batches of the others.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
import random
import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.compare_batch import Differences, Worker
from ansible_collections.keyferry.redis.plugins.module_utils.endpoint import Endpoint
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import SERVICE_DB, SERVICE_KEY, batches
from ansible_collections.keyferry.redis.plugins.module_utils.pace import Pace
from ansible_collections.keyferry.redis.plugins.module_utils.pair import Pair, Side
from ansible_collections.keyferry.redis.plugins.module_utils.pair_cluster import pair_of
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress
from ansible_collections.keyferry.redis.plugins.module_utils.server import version_text

OLDEST_SERVER = (7, 0)
_SCAN_COUNT = 1000
# Keys asked for at a time, at first and at the most; what a batch should bring. The first one tells how large values
# are, so that a server is never asked for many huge ones at once.
_FIRST_BATCH = 1
_LARGEST_BATCH = 1000
_BATCH_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What to compare, and how.

    I(sample_size): number of random keys of each side to look at; all of them without it. I(repair): copy again what
    differs, and remove what is extra; not if these are more keys than I(max_repairs). I(dry_run) then only counts what
    that would be. I(streams): what is told the source's keys that are streams.
    """

    source: Endpoint
    target: Endpoint
    ttl_tolerance_ms: int = 0
    sample_size: int | None = None
    repair: bool = False
    max_repairs: int | None = None
    dry_run: bool = False
    workers: int | None = None
    max_keys_per_second: int | None = None
    streams: t.Callable[[t.Iterable[bytes]], None] | None = None


def sample_size(confidence: float, damage: float) -> int:
    """Give back how many random keys find, with this confidence, at least one of a damaged share of all keys."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - damage))


def compare_counts(source: Endpoint, target: Endpoint) -> dict[str, t.Any]:
    """Give back the result of a comparison of nothing but the number of keys."""
    _refuse_itself(source, target)
    _check_links((source, target))
    keys = {"keys_source": source.key_count(), "keys_target": target.key_count()}
    surplus = keys["keys_target"] - keys["keys_source"]
    differences = Differences(collections.Counter(missing=max(-surplus, 0), extra=max(surplus, 0)))
    return {**differences.result(), **keys}


def keys_to_look_at(comparison: Comparison) -> int:
    """Give back how many keys a comparison looks at, both ways together, as far as can be told beforehand.

    Where both sides hold as many keys, the way back to the source is most likely not needed.
    """
    counts = [comparison.source.key_count(), comparison.target.key_count()]
    if comparison.sample_size is not None:
        return sum(min(count, comparison.sample_size) for count in counts)
    return counts[0] if counts[0] == counts[1] else sum(counts)


def compare(comparison: Comparison, progress: Progress) -> dict[str, t.Any]:
    """Compare, both ways; give back the counts and examples, and the number of keys of both sides before.

    I(progress) is told the number of keys looked at, both ways together, and the bytes that came from the side that
    sent more. Raises KeyferryError when a side cannot be read, or the target not be repaired, naming the key where
    there is one.
    """
    sides = (comparison.source, comparison.target)
    _refuse_itself(*sides)
    for side in sides:
        _check_version(side)
    if comparison.repair:
        _check_repair(comparison)
    with _still_the_same(sides):
        keys = {name: side.key_count() for name, side in zip(("keys_source", "keys_target"), sides)}
        with contextlib.closing(_Run(comparison, progress)) as run:
            differences = run.walk()
    if comparison.repair and comparison.dry_run:
        found = differences.counts
        found.update(repaired=found["missing"] + found["different"], deleted=found["extra"])
    return {**differences.result(), **keys}


def _refuse_itself(source: Endpoint, target: Endpoint) -> None:
    if source.db == target.db and source.run_ids() & target.run_ids():
        raise KeyferryError(
            f"Source and target are the same database {source.db} of the same server, reached as {source.server} and as"
            f" {target.server}; that would prove nothing. Check login_host, target_login_host and the ports"
        )


def _check_repair(comparison: Comparison) -> None:
    """Raise KeyferryError where repairing the target would write to the source, or cannot be done."""
    source, target = comparison.source, comparison.target
    if source.run_ids() & target.run_ids() or source.replication_ids() & target.replication_ids():
        raise KeyferryError(
            f"The target at {target.server} and the source at {source.server} are the same server, or one is a replica"
            " of the other: a repair would write to the source. Nothing was done. Check target_login_host and"
            " target_login_port"
        )


def _check_version(side: Endpoint) -> None:
    version = side.version()
    if version < OLDEST_SERVER:
        raise KeyferryError(
            f"Redis at {side.server} has version {version_text(version)}; comparing keys needs PEXPIRETIME, which"
            " came with 7.0. mode=count works there"
        )


@contextlib.contextmanager
def _still_the_same(sides: t.Sequence[Endpoint]) -> t.Iterator[None]:
    """Raise KeyferryError where a side does not have, before and after this, all that it is asked for."""
    owners = [side.slots.owners() if side.slots else {} for side in sides]
    _check_links(sides)
    yield
    _check_links(sides)
    for side, before in zip(sides, owners):
        if side.owners() != before:
            raise KeyferryError(
                f"Slots of {side} have moved during the comparison, which may have overlooked their keys: compare again"
            )


def _check_links(sides: t.Sequence[Endpoint]) -> None:
    for side in sides:
        for part in side.sides():
            part.server.require_link()


class _Run:
    """One comparison under way: reads names of keys, and has workers look at them in batches."""

    def __init__(self, comparison: Comparison, progress: Progress) -> None:
        self._comparison = comparison
        self._progress = progress
        self._workers = threading.local()
        self._pairs: list[Pair] = []
        self._differences = Differences()
        self._batch_size = _FIRST_BATCH
        self._pace = Pace(comparison.max_keys_per_second, threading.Event())
        # What is found to be different is kept until all of it is known, where there may be too much of it.
        self._to_repair: list[bytes] = []
        # In a database 0 this is ElastiCache's own key, on either side.
        dbs = (comparison.source.db, comparison.target.db)
        self._ignored = SERVICE_KEY if SERVICE_DB in dbs else None

    def close(self) -> None:
        for pair in self._pairs:
            pair.close()

    def walk(self) -> Differences:
        """Look at everything: at the source's keys, then at the target's where there may be extra ones."""
        source, target = self._comparison.source, self._comparison.target
        keys_before = source.key_count()
        workers = self._worker_count()
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            self._have_done(pool, workers, self._batches(source), self._look_forward)
            if not self._is_all_accounted(keys_before):
                self._have_done(pool, workers, self._batches(target), self._look_back)
            if not self._comparison.dry_run:
                self._have_done(pool, workers, batches(self._to_repair, _LARGEST_BATCH), self._repair)
        return self._differences

    def _look_forward(self, keys: list[bytes]) -> Differences:
        return self._repaired_at_once(self._worker().look_forward(keys))

    def _look_back(self, keys: list[bytes]) -> Differences:
        return self._repaired_at_once(self._worker().look_back(keys))

    def _repair(self, keys: list[bytes]) -> Differences:
        return self._worker().repair(keys)

    def _repaired_at_once(self, found: Differences) -> Differences:
        """Repair what was found, where that need not wait until all of it is known."""
        comparison = self._comparison
        if found.bad and comparison.repair and not comparison.dry_run and comparison.max_repairs is None:
            found.add(self._repair(found.bad))
        return found

    def _have_done(
        self,
        pool: concurrent.futures.Executor,
        workers: int,
        key_batches: t.Iterator[list[bytes]],
        work: t.Callable[[list[bytes]], Differences],
    ) -> None:
        """Keep a few batches under way, not more, so that memory is bounded."""
        under_way: collections.deque[concurrent.futures.Future[Differences]] = collections.deque()
        for keys in self._paced(key_batches):
            under_way.append(pool.submit(work, keys))
            if len(under_way) > workers:
                self._add(under_way.popleft().result())
        while under_way:
            self._add(under_way.popleft().result())

    def _add(self, found: Differences) -> None:
        self._differences.add(found)
        counts = found.counts
        self._progress(self._differences.counts["looked_at"], self._differences.counts["bytes"])
        if counts["looked_at"]:
            # More keys at a time where they are small, fewer where they are large.
            wanted = _BATCH_BYTES * counts["looked_at"] // max(counts["bytes"], 1)
            self._batch_size = max(1, min(wanted, 2 * self._batch_size, self._largest_batch()))
        limit = self._comparison.max_repairs
        if limit is not None:
            self._keep(found.bad, limit)

    def _keep(self, keys: list[bytes], limit: int) -> None:
        self._to_repair += keys
        if len(self._to_repair) > limit:
            raise KeyferryError(
                f"More than max_repairs={limit} keys of {self._comparison.target} are not what they are in"
                f" {self._comparison.source}; nothing was repaired. Is it the right target? If so, raise max_repairs",
                **self._differences.result(),
            )

    def _is_all_accounted(self, keys_before: int) -> bool:
        """Tell whether the target is known to hold no key but those that the way forward has met there.

        The source held as many keys all the time as SCAN returned, so none came twice; as many as were met on the
        target are all that it holds.
        """
        source, target, counts = self._comparison.source, self._comparison.target, self._differences.counts
        if self._comparison.sample_size is not None or counts["compared"] != keys_before:
            return False
        met = counts["compared"] - counts["missing"] - counts["expired"]
        return source.key_count() == keys_before and target.key_count() == met

    def _worker_count(self) -> int:
        if self._comparison.workers is not None:
            return self._comparison.workers
        # One more than keeps the servers busy: while one looks at replies, others wait for theirs.
        return 1 + max(side.connections_wanted() for side in (self._comparison.source, self._comparison.target))

    def _largest_batch(self) -> int:
        return min(_LARGEST_BATCH, self._pace.burst(1) or _LARGEST_BATCH)

    def _batches(self, endpoint: Endpoint) -> t.Iterator[list[bytes]]:
        for found in self._found_keys(endpoint):
            keys = [key for key in found if key != self._ignored]
            at = 0
            while at < len(keys):
                # SCAN gives back a few keys more than it was asked for: in as many batches, but larger ones.
                left = len(keys) - at
                size = math.ceil(left / max(1, round(left / self._batch_size)))
                # Commands about keys that are as long as each other are put together in one go.
                yield sorted(keys[at : at + size], key=len)
                at += size

    def _found_keys(self, endpoint: Endpoint) -> t.Iterator[list[bytes]]:
        """Give back the keys to look at: all of the database, or as many random ones as the sample has."""
        size = self._comparison.sample_size
        counts = endpoint.key_counts()
        if size is None or sum(counts) <= size:
            for side in endpoint.sides():
                yield from _scan(side)
            return
        # Every key of a cluster is as likely as any other, on whichever primary it is.
        drawn = collections.Counter(random.choices(range(len(counts)), counts, k=size))
        for at, side in enumerate(endpoint.sides()):
            yield from _random(side, drawn[at])

    def _paced(self, key_batches: t.Iterator[list[bytes]]) -> t.Iterator[list[bytes]]:
        """Give back the batches no faster than C(max_keys_per_second) allows."""
        for keys in key_batches:
            self._pace.wait(len(keys), 0.0)
            yield keys

    def _worker(self) -> Worker:
        """Give back this thread's own worker."""
        if not hasattr(self._workers, "worker"):
            pair = pair_of(self._comparison.source, self._comparison.target)
            self._pairs.append(pair)
            self._workers.worker = Worker(pair, self._comparison.ttl_tolerance_ms, self._comparison.streams)
        return t.cast("Worker", self._workers.worker)


def _scan(side: Side) -> t.Iterator[list[bytes]]:
    cursor = -1
    while cursor:
        cursor, keys = side.server.call("SCAN", max(cursor, 0), "COUNT", _SCAN_COUNT, db=side.db)
        yield keys


def _random(side: Side, size: int) -> t.Iterator[list[bytes]]:
    for names in batches(itertools.repeat("RANDOMKEY", size), _LARGEST_BATCH):
        pipeline = side.server.client(side.db).pipeline(transaction=False)
        for name in names:
            pipeline.execute_command(name)
        with side.server.errors(side.db):
            keys = pipeline.execute()
        yield [key for key in keys if key is not None]
