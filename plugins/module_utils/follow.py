# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keeps a target equal to a source that is written to, while the application moves from one to the other.

The source tells which keys are written to, from before a comparison that repairs the target. After that each of these
keys is looked at again and copied or removed, but for those that somebody else has written to on the target.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.compare import Comparison, compare
from ansible_collections.keyferry.redis.plugins.module_utils.compare_batch import (
    EXAMPLES,
    Worker,
    copy_command,
    copy_questions,
)
from ansible_collections.keyferry.redis.plugins.module_utils.endpoint import Endpoint
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError, shown
from ansible_collections.keyferry.redis.plugins.module_utils.guarded import GuardedWriter
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import SERVICE_DB, SERVICE_KEY, batches
from ansible_collections.keyferry.redis.plugins.module_utils.pair import TooLarge
from ansible_collections.keyferry.redis.plugins.module_utils.pair_cluster import pair_of
from ansible_collections.keyferry.redis.plugins.module_utils.stream_groups import StreamGroups
from ansible_collections.keyferry.redis.plugins.module_utils.tracking import Incomplete, Trackers

# Keys looked at together, and what their payloads may take before they are asked for in parts.
_BATCH = 1000
_LIMIT_BYTES = 4 << 20
# How long to wait where nothing was written.
_IDLE_S = 0.05
_TELL_EVERY_S = 0.5
# A server may count the call of a flush only when the memory is free.
_FLUSH_CALL_S = 10.0
# By how much two servers' clocks may differ where one has expired a key already.
_CLOCKS_MS = 1000
_NO_TTL = -1
_COUNTS = ("followed", "copied", "deleted", "conflicts")


@dataclasses.dataclass(frozen=True)
class Following:
    """What to follow, and for how long.

    I(comparison): what is compared and repaired first. I(max_keys): names to keep of each side. It ends once it is
    asked to and nothing has differed for I(settle_seconds), or after I(settle_timeout) more, or as many as it is asked
    with where these are fewer; or after I(timeout).
    """

    comparison: Comparison
    max_keys: int
    settle_seconds: float
    settle_timeout: float
    timeout: float


# Is told V(comparing) or V(following), again and again, and the counts so far.
Report = t.Callable[[str, dict[str, t.Any]], None]


def check(*endpoints: Endpoint) -> None:
    """Raise KeyferryError where a server does not tell which keys are written to."""
    for endpoint in endpoints:
        Trackers(endpoint.sides(), 1).close()


# Gives None, or within how many seconds it is to end.
EndWithin = t.Callable[[], "float | None"]


def follow(plan: Following, report: Report, end_within: EndWithin) -> dict[str, t.Any]:
    """Compare, repair and follow until I(end_within) says so; give back the counts.

    Raises KeyferryError for what goes wrong before it follows. What goes wrong later ends it too, and is told as
    C(lost) in the result.
    """
    follower = _Follower(plan, report, end_within)
    try:
        follower.compare()
        follower.begin()
        follower.follow()
    finally:
        follower.close()
    return follower.result()


class _Follower:
    def __init__(self, plan: Following, report: Report, end_within: EndWithin) -> None:
        self._plan = plan
        self._report = report
        self._end_within = end_within
        self._source = plan.comparison.source
        self._target = plan.comparison.target
        self._ignored = {SERVICE_KEY} if SERVICE_DB in (self._source.db, self._target.db) else set()
        self._counts: collections.Counter[str] = collections.Counter()
        self._conflicts: set[bytes] = set()
        self._examples: list[bytes] = []
        self._lost = ""
        self._settled = False
        self._round: dict[str, t.Any] = {}
        # Keys that the source has told of, to be looked at.
        self._dirty: set[bytes] = set()
        self._groups = StreamGroups()
        # Whether all streams with groups were looked at, and are the same, since something was last copied.
        self._has_looked_at_streams = False
        self._began_at = self._changed_at = time.monotonic()
        # When it was asked to end, and when the source was first known to have all that was written until then.
        self._asked_at: float | None = None
        self._complete_at: float | None = None
        self._told: tuple[str, float] = ("", 0.0)
        self._open = contextlib.ExitStack()
        # Now and not after the comparison, which may take long.
        check(self._target)
        self._flushes, self._flush_calls = 0, self._source.flush_calls()
        self._ours = self._trackers(self._source)
        self._source_keys = self._source.key_count()

    def close(self) -> None:
        self._open.close()

    def result(self) -> dict[str, t.Any]:
        return {
            "round": self._round,
            **{name: self._counts[name] for name in _COUNTS},
            "examples": {"conflicts": [shown(key) for key in self._examples]},
            "settled": self._settled,
            "lost": bool(self._lost),
            "lost_reason": self._lost,
        }

    def compare(self) -> None:
        """Make the target what the source is, but for what is written meanwhile."""
        began = time.time()

        def tell(_done: int, _size: int) -> None:
            self._tell("comparing")
            if self._end_within() is not None:
                raise KeyferryError("It was asked to end before the comparison was done, which is to be made again")

        self._tell("comparing")
        found = compare(dataclasses.replace(self._plan.comparison, streams=self._groups.add), tell)
        self._round = {**found, "began": round(began, 3), "seconds": round(time.time() - began, 3)}

    def begin(self) -> None:
        """Bring in line what was written during the comparison."""
        self._theirs = self._trackers(self._target)
        self._removed = (self._theirs.removed(),) * 2
        self._writer = GuardedWriter(self._target, self._theirs)
        self._open.callback(self._writer.close)
        self._pair = pair_of(self._source, self._target)
        self._open.callback(self._pair.close)
        self._worker = Worker(self._pair, self._plan.comparison.ttl_tolerance_ms, self._groups.add)
        self._look_at_source()
        self._look_at_groups()
        for _part in range(0, len(self._dirty), _BATCH):
            self._step()
            self._tell("comparing")

    def follow(self) -> None:
        """Look at what is written until it is time to end."""
        try:
            while not self._is_over():
                self._step()
                self._tell("following")
                if not self._dirty:
                    time.sleep(_IDLE_S)
        except KeyferryError as error:
            self._lost = error.msg

    def _is_over(self) -> bool:
        """Tell whether it was asked to end and has settled, or waited long enough for that."""
        plan, now, within = self._plan, time.monotonic(), self._end_within()
        if within is None:
            if now - self._began_at > plan.timeout:
                raise Incomplete(f"It was not asked to end within timeout={plan.timeout:g} seconds")
            return False
        self._asked_at = self._asked_at or now
        # A replica knows no more than its primary has told it: what it hears later comes after all of that.
        if self._complete_at is None and now - self._source.primary_silence() >= self._asked_at:
            self._complete_at = now
        quiet_since = max(self._complete_at or now, self._changed_at)
        # What has come and was not looked at may have to be copied.
        is_quiet = self._complete_at is not None and not self._dirty and now - quiet_since >= plan.settle_seconds
        self._settled = is_quiet and self._has_looked_at_streams
        if is_quiet and not self._has_looked_at_streams:
            self._look_at_groups()
            self._dirty |= self._groups.with_groups() - self._writer.touched
            self._has_looked_at_streams = True
        return self._settled or now - self._asked_at >= min(plan.settle_timeout, within)

    def _trackers(self, endpoint: Endpoint) -> Trackers:
        found = Trackers(endpoint.sides(), self._plan.max_keys)
        self._open.callback(found.close)
        return found

    def _step(self) -> None:
        """Look at a batch of the keys that were written to, and bring them in line."""
        self._look_at_target()
        self._look_at_source()
        if self._groups.is_due():
            self._look_at_groups()
        keys = [self._dirty.pop() for _key in range(min(_BATCH, len(self._dirty)))]
        if not keys:
            return
        self._counts["followed"] += len(keys)
        different = self._worker.look_forward(keys).bad
        # What is gone from the source is an extra key of the target.
        gone = self._worker.look_back(keys).bad
        touched = self._writer.touched
        touched |= self._groups.look(self._pair, [*different, *gone])[1]
        self._note_conflicts([key for key in different if key in touched])
        self._copy([key for key in [*different, *gone] if key not in touched])

    def _look_at_source(self) -> None:
        """Take the names that have come; make out whether a flush was one of this database."""
        keys = self._source.key_count()
        self._dirty |= self._ours.take_all() - self._ignored
        if len(self._dirty) > self._plan.max_keys:
            raise Incomplete(
                f"More than max_keys={self._plan.max_keys} keys of {self._source} wait to be looked at: they are"
                " written to faster than that can be done"
            )
        if self._ours.flushes() == self._flushes:
            # As many as before any flush to come.
            self._source_keys = keys
            return
        self._flushes = self._ours.flushes()
        if not self._were_called():
            raise Incomplete(f"{self._source} was loaded anew from its primary, or from a file")
        before, named = self._source_keys, len(self._dirty)
        # Every key that no flush has taken is there, or its name has come.
        if before and (self._source.key_count() < before - named or before <= 2 * named):
            raise Incomplete(f"{self._source} may have been flushed")

    def _were_called(self) -> bool:
        """Tell whether all flushes that have come were calls of FLUSHDB or FLUSHALL, or that cannot be told."""
        give_up = time.monotonic() + _FLUSH_CALL_S
        while (calls := self._source.flush_calls() - self._flush_calls) < self._flushes:
            # Where somebody has reset the counter, it tells nothing.
            if calls < 0 or time.monotonic() > give_up:
                return calls < 0
            # No server says when it has counted a call.
            time.sleep(_IDLE_S)
        return True

    def _look_at_groups(self) -> None:
        """Make out what consumer groups have done to streams on either side."""
        ours, theirs = self._groups.look_at_all(self._pair)
        self._dirty |= ours
        self._writer.touched |= theirs
        if len(self._groups.streams) > self._plan.max_keys:
            raise Incomplete(f"{self._source} has more than max_keys={self._plan.max_keys} streams")

    def _look_at_target(self) -> None:
        """Make out which keys others have written to, of those that the target has told of.

        It tells of what has expired, too, and says how many keys it has removed by itself. A key that is gone while
        that number has grown may be one of these, where it is gone from the source as well, or the source has written
        to it since, so that its name has come.
        """
        writer = self._writer
        writer.listen()
        if self._theirs.flushes():
            raise Incomplete(f"{self._target}, or another database of that server, was flushed by somebody else")
        # A name comes at the end of the turn in which its key is counted, maybe after an answer of that turn.
        (older, newer), removed = self._removed, self._theirs.removed()
        self._removed = (newer, removed)
        heard, writer.heard = writer.heard - writer.touched - self._ignored, set()
        for keys in batches(heard, _BATCH):
            touched = set(keys)
            if removed > older:
                absent = self._absent(keys)
                lasting = self._lasting(absent)
                self._look_at_source()
                touched = touched.difference(absent) | (lasting - self._dirty)
            writer.touched |= touched
        if len(writer.touched) > self._plan.max_keys:
            raise Incomplete(
                f"More than max_keys={self._plan.max_keys} keys of {self._target} were written to by others"
            )

    def _absent(self, keys: list[bytes]) -> list[bytes]:
        """Give back those keys that the target has not."""
        found = self._pair.target([("EXISTS", key) for key in keys])
        return [key for key, is_there in zip(keys, found) if not is_there]

    def _lasting(self, keys: list[bytes]) -> set[bytes]:
        """Give back those keys that the source has, and that do not expire at about this time."""
        if not keys:
            return set()
        *expiries, (seconds, _micros) = self._pair.source([*(("PEXPIRETIME", key) for key in keys), ("TIME",)])
        soon = int(seconds) * 1000 + _CLOCKS_MS + self._plan.comparison.ttl_tolerance_ms
        return {key for key, expiry in zip(keys, expiries) if expiry == _NO_TTL or expiry > soon}

    def _note_conflicts(self, keys: list[bytes]) -> None:
        new = [key for key in keys if key not in self._conflicts]
        self._conflicts.update(new)
        self._counts["conflicts"] += len(new)
        self._examples += new[: EXAMPLES - len(self._examples)]
        if keys:
            self._changed_at = time.monotonic()

    def _copy(self, keys: list[bytes]) -> None:
        """Copy the keys as they are at the source now, a large one by itself; remove those that it has not."""
        if not keys:
            return
        try:
            replies = iter(self._pair.source(copy_questions(keys), None if len(keys) == 1 else _LIMIT_BYTES))
        except TooLarge:
            middle = len(keys) // 2
            self._copy(keys[:middle])
            self._copy(keys[middle:])
            return
        commands = {key: copy_command(key, payload, expiry) for key, payload, expiry in zip(keys, replies, replies)}
        done = self._writer.write(commands)
        self._groups.note_copied(self._pair, done)
        self._changed_at = time.monotonic()
        self._has_looked_at_streams = False
        copied = list(done.values()).count(b"OK")
        # UNLINK tells how many keys it has removed.
        self._counts.update(copied=copied, deleted=sum(reply for reply in done.values() if reply != b"OK"))
        self._dirty.update(commands.keys() - done.keys())

    def _tell(self, state: str) -> None:
        now = time.monotonic()
        before, told_at = self._told
        if state != before or now - told_at >= _TELL_EVERY_S:
            self._told = (state, now)
            # A disk that is full is no reason to follow no more.
            with contextlib.suppress(OSError):
                self._report(state, self.result())
