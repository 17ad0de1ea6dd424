# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loads a dump into a server: whole blocks of the file go to the socket, and every reply is matched to its command."""

from __future__ import annotations

import collections
import itertools
import mmap
import os
import socket
import threading
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.cluster import slot_of
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import Block, Dump
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError, shown
from ansible_collections.keyferry.redis.plugins.module_utils.load_cluster import EVERYWHERE, ClusterLane, Routed
from ansible_collections.keyferry.redis.plugins.module_utils.load_commands import (
    Buffer,
    Rewriter,
    gathered,
    key_at,
    module_hint,
    ttl_of,
)
from ansible_collections.keyferry.redis.plugins.module_utils.load_resume import (
    earlier_load,
    forget_progress,
    keep_progress,
)
from ansible_collections.keyferry.redis.plugins.module_utils.load_target import Target, dbsize, payload_stamp
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress
from ansible_collections.keyferry.redis.plugins.module_utils.server import (
    RECEIVE_BYTES,
    SETBACK_DELAYS_S,
    ConnectionLost,
    OtherProcess,
    TemporaryRefusal,
    refused,
)

# Blocks that one connection has sent and not yet seen all replies of: the server works on one while the next arrives.
_BLOCKS_UNDER_WAY = 2
# So few that they stay in the processor's cache until the server has read them.
_SENT_BYTES = 64 << 10
# In a cluster: a replica takes over when its primary was silent for cluster-node-timeout (15 s), and an election.
FAILOVER_DELAYS_S: tuple[float, ...] = (0.1, 0.5, 1, *[2.0] * 30)
# After a failover all is sent again; so many of them one load bears.
_FAILOVERS = 3
# Of so many blocks that an earlier load got through, the first key is looked for.
_LOOKED_AT = 100
# Which argument of RESTORE its payload is.
_PAYLOAD = 3


class Loaded(t.NamedTuple):
    """I(replies) came, as many as commands were sent; I(dbsize) keys are in the databases now."""

    replies: int
    dbsize: int


def load(target: Target, dump: Dump, stamp: int | None, progress: Progress) -> Loaded:
    """Send every command, and wait for every reply; I(stamp) is what check_target() has given back.

    Raises KeyferryError at the first command that the server refuses, with its key, number and byte offset.
    """
    if not target.resume:
        # What an earlier load got through is no longer known to be there.
        forget_progress(dump)
    run = _Run(target, dump, stamp, progress)
    run.go()
    for _failover in range(_FAILOVERS):
        if run.slots is None or not run.repeats_at_once or not isinstance(run.failure, OtherProcess):
            break
        # The replica may lack what its primary had acknowledged.
        target = target._replace(server=run.slots.one_that_answers(), resume=False)
        run = _Run(target, dump, payload_stamp(target.server, dump), progress)
        run.go()
    if run.failure is not None:
        raise run.explained(run.failure)
    if run.replies != run.commands:
        raise KeyferryError(f"{run.replies} replies came to {run.commands} commands of {dump.path}")
    forget_progress(dump)
    if lost := run.evicted():
        raise KeyferryError(
            f"Redis at {target.server} evicted {lost} keys while {dump.path} was loaded: it has too little memory"
            " (maxmemory), and its maxmemory-policy lets it drop keys in place of saying so. Give it more memory, and"
            " load all again"
        )
    return Loaded(run.replies, dbsize(target, dump))


class _Run:
    """What the connections of one load share."""

    def __init__(self, target: Target, dump: Dump, stamp: int | None, progress: Progress) -> None:
        self.target = target
        self.dump = dump
        self.replies = 0
        self.failure: BaseException | None = None
        self._progress = progress
        # For those who look: also of blocks that are not wholly answered, and may be sent again.
        self._answered = 0
        self._sent_bytes = 0
        self._lock = threading.Lock()
        self._failed = threading.Event()
        # A block may be sent a second time where each key in it begins with a command that replaces it.
        self.is_repeatable = target.replace and not dump.is_foreign
        self.is_one_command_a_key = not dump.is_foreign and dump.description.get("format") == "restore"
        # And at once where that command is the key's only one: what a server still takes from a connection that broke,
        # between those that are sent again, is the same key then, and otherwise half a list more.
        self.repeats_at_once = self.is_repeatable and self.is_one_command_a_key
        self.slots = target.slots()
        # Other processes at the same addresses (a restart, a failover) need not have what these have acknowledged.
        self.run_id = self.slots.run_ids() if self.slots else target.approve(target.server)
        self.rewriter = Rewriter(target.server.version(), stamp, target.replace)
        self._delays = SETBACK_DELAYS_S if self.slots is None else FAILOVER_DELAYS_S
        self._data = dump.mapped()
        self._view = memoryview(self._data)
        self._evicted_before = target.evicted(self.slots)
        blocks = self._blocks_left() if target.resume else dump.blocks
        self.commands = sum(block.commands for block in blocks)
        self._waiting = collections.deque(blocks)
        self._undone = set(blocks)

    def _blocks_left(self) -> list[Block]:
        """Give back the blocks to send: all, where what an earlier load got through is not there any more."""
        left, evicted_before = earlier_load(self.dump, self.run_id, self.target.db)
        done = sorted(set(self.dump.blocks).difference(left))
        looked_at: dict[Block, bool | None] = {}
        for block in done[:: len(done) // _LOOKED_AT + 1]:
            looked_at[block] = self._is_there(block)
            if looked_at[block] is False:
                return self.dump.blocks
        if True not in looked_at.values():
            return self.dump.blocks
        self._evicted_before.update(evicted_before)
        return sorted([*left, *(block for block, is_there in looked_at.items() if is_there is None)])

    def _is_there(self, block: Block) -> bool | None:
        """Tell whether the target has the first key of a block that has not expired; None where there is no such key.

        Not where it cannot be told.
        """
        for found in self._commands(block):
            at, ttl = key_at(self._data, found), ttl_of(self._data, found)
            if at and not (ttl and ttl < time.time() * 1000):
                return self._has(self._data[slice(*found.arguments[at])], block)
        return None

    def _has(self, key: bytes, block: Block) -> bool:
        try:
            server = self.target.server if self.slots is None else self.slots.server(self.slots[slot_of(key)])
            return bool(server.call("EXISTS", key, db=self.database(block)))
        except TemporaryRefusal:
            raise
        except KeyferryError:
            return False

    def evicted(self) -> int:
        """Give back how many keys the servers have evicted since the load, or the earlier one, began."""
        now = self.target.evicted(self.slots)
        return sum(max(now.get(server, 0) - before, 0) for server, before in self._evicted_before.items())

    def _connections_wanted(self) -> int:
        """Give back how many keep the target busy; each costs it some of its time (tests/benchmarks)."""
        wanted = self.target.server.connections_wanted()
        return wanted if wanted == 1 else wanted + 1

    def go(self) -> None:
        """Send all that there is, by as many connections as it takes, until it is done or there is a failure."""
        target = self.target
        wanted = self._connections_wanted() if target.workers is None else target.workers
        # Commands of another tool may depend on the ones before them; ours do so only within a block.
        workers = 1 if self.dump.is_foreign else min(wanted, max(len(self.dump.blocks), 1))
        threads = [threading.Thread(target=self.work, daemon=True) for _worker in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def work(self) -> None:
        try:
            self._work()
        except BaseException as error:  # handed to the thread that waits
            with self._lock:
                self.failure = self.failure or error
                self._failed.set()

    def _work(self) -> None:
        block = self.take()
        # What went wrong since the last block that got through; the first of it tells most.
        trouble: list[KeyferryError] = []
        while block is not None:
            lane = _Lane(self) if self.slots is None else ClusterLane(self, self.slots)
            try:
                block = lane.work(block)
            except (ConnectionLost, TemporaryRefusal) as error:
                trouble = [error] if lane.has_done_any else [*trouble, error]
                if not self.repeats_at_once or len(trouble) > len(self._delays):
                    raise trouble[0] from None
                self._failed.wait(self._delays[len(trouble) - 1])
                if self.slots is not None:
                    self.slots.look_again()
                self.answered(-lane.to_be_answered_again())
                block = self._give_back(lane.under_way())

    def take(self) -> Block | None:
        """Give back a block that nobody has sent, or None when there is none or another connection has failed."""
        with self._lock:
            return None if self._failed.is_set() or not self._waiting else self._waiting.popleft()

    def database(self, block: Block) -> int:
        return block.db if self.target.db is None else self.target.db

    def done(self, block: Block) -> None:
        with self._lock:
            self._undone.remove(block)
            self.replies += block.commands
            self._sent_bytes += block.size

    def answered(self, count: int) -> None:
        with self._lock:
            self._answered += count
            self._progress(self._answered, self._sent_bytes)

    def explained(self, failure: BaseException) -> BaseException:
        """Give back the failure with the way to go on, which is kept beside the dump."""
        if isinstance(failure, OtherProcess):
            return KeyferryError(
                f"{failure.msg}, and it may lack what was loaded before: load all again, which does no harm"
                if self.is_repeatable
                else f"{failure.msg}, and it may lack what was loaded before: empty it and load all again"
            )
        if not isinstance(failure, KeyferryError) or not self.is_repeatable:
            return failure
        undone = [block.offset for block in self._undone]
        keep_progress(self.dump, self.run_id, self.target.db, undone, self._evicted_before)
        return KeyferryError(
            f"{failure.msg}. At least {self._answered} of {self.commands} commands are done: when the cause is gone,"
            " load again with resume=true to send only what is not known to be, or all of it, which does no harm",
            **failure.result,
        )

    def described(self, block: Block, index: int) -> str:
        """Give back which command of a block is the one with I(index), for a message."""
        found = next(itertools.islice(self._commands(block), index, None))
        at = key_at(self._data, found)
        name = b" ".join(self._data[slice(*each)] for each in found.arguments[: at or 2]).decode(errors="replace")
        key = f" of key {shown(self._data[slice(*found.arguments[at])])}" if at else ""
        if name.upper() == "RESTORE" and len(found.arguments) > _PAYLOAD:
            key += module_hint(self._data, found.arguments[_PAYLOAD][0])
        number = index + 1 + sum(other.commands for other in self.dump.blocks if other.offset < block.offset)
        return f"{name}{key}, command {number} of {self.dump.commands} at byte {found.start} of {self.dump.path}"

    def refusal(self, where: str, which: str, error: bytes) -> KeyferryError:
        """Give back what to raise for a command that the server refused."""
        reason = error.decode(errors="replace").rstrip(".")
        hint = ""
        if reason.startswith("BUSYKEY"):
            hint = ". The key is there already and was not overwritten (replace=false)"
        if "Bad data format" in reason and "module type" not in which:
            hint = ". It does not take the value as the other engine has packed it: dump with format=commands"
        return refused(f"Redis at {where} refused {which}: {reason}{hint}", reason)

    def commands_of(self, block: Block) -> t.Iterator[list[Buffer]]:
        """Give back each command of a block in pieces, as it is to be sent."""
        for found in self._commands(block):
            yield self._pieces(found)
        self.forget(block)

    def routed(self, block: Block) -> t.Iterator[Routed]:
        """Give back each command of a block with its key."""
        for found in self._commands(block):
            at = key_at(self._data, found)
            key = self._data[slice(*found.arguments[at])] if at else b""
            yield Routed(slot_of(key) if at else EVERYWHERE, self._pieces(found), key)

    def forget(self, block: Block) -> None:
        """Let go of the pages of the file that a block was read from."""
        if hasattr(mmap, "MADV_DONTNEED"):
            start = block.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._data.madvise(mmap.MADV_DONTNEED, start, block.offset + block.size - start)

    def _commands(self, block: Block) -> t.Iterator[resp.Command]:
        position, end = block.offset, block.offset + block.size
        while position < end:
            found = resp.read_command(self._data, position, end)
            yield found
            position = found.end

    def _pieces(self, found: resp.Command) -> list[Buffer]:
        if self.rewriter.changes_nothing:
            return [self._view[found.start : found.end]]
        return self.rewriter.pieces([self._view[first:last] for first, last in found.arguments])

    def _give_back(self, blocks: list[Block]) -> Block | None:
        """Put blocks back among those that wait; give back one that waits."""
        with self._lock:
            self._waiting.extendleft(reversed(blocks))
        return self.take()


class _Lane:
    """One connection: sends blocks, and counts the replies to each."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._counter = resp.ReplyCounter()
        self._under_way: collections.deque[tuple[Block, int]] = collections.deque()
        self._next: Block | None = None
        self._sent_commands = 0
        self.has_done_any = False

    def work(self, first: Block) -> Block | None:
        """Send blocks for as long as they are for the database of I(first); give back the next one."""
        db = self._run.database(first)
        self._next = first
        with self._connected(db) as self._wire, self._run.dump.open() as self._file:
            while self._next is not None and self._run.database(self._next) == db:
                self._send(self._next)
                self._next = self._run.take()
            self._finish()
        return self._next

    def under_way(self) -> list[Block]:
        """Give back the blocks that this lane took and that are not wholly answered."""
        blocks = [block for block, _before in self._under_way]
        return blocks if self._next is None or self._next in blocks else [*blocks, self._next]

    def to_be_answered_again(self) -> int:
        """Give back how many replies came to blocks that this lane will not finish."""
        return self._done_commands() - self._under_way[0][1] if self._under_way else 0

    def _connected(self, db: int) -> t.ContextManager[socket.socket]:
        return self._run.target.server.connection(db, self._run.run_id)

    def _send(self, block: Block) -> None:
        if len(self._under_way) == _BLOCKS_UNDER_WAY:
            self._await_first()
        self._under_way.append((block, self._sent_commands))
        before, self._sent_commands = self._sent_commands, self._sent_commands + block.commands
        try:
            if self._run.target.batch_size is not None:
                self._send_batches(block, before)
            elif self._run.rewriter.changes_nothing:
                self._send_bytes(block)
            else:
                self._send_commands(self._run.commands_of(block))
        except OSError as error:
            # What made the server hang up may still be in what it has sent.
            while True:
                self._receive(error)

    def _send_bytes(self, block: Block) -> None:
        """Send a block as it stands in the file.

        Not by sendfile: the server would be the first to touch its pages, and its CPU is what limits a load.
        """
        offset, end = block.offset, block.offset + block.size
        while offset < end:
            data = os.pread(self._file.fileno(), min(_SENT_BYTES, end - offset), offset)
            if not data:
                raise KeyferryError(
                    f"{self._run.dump.path} was cut at byte {offset} while it was loaded. Dump again, and load that"
                )
            self._wire.sendall(data)
            offset += len(data)

    def _send_batches(self, block: Block, before: int) -> None:
        """Send a block a few commands at a time, each lot when the one before it is answered."""
        commands = self._run.commands_of(block)
        while batch := list(itertools.islice(commands, self._run.target.batch_size)):
            self._send_commands(batch)
            before += len(batch)
            while self._counter.replies < before:
                self._receive(None)

    def _send_commands(self, commands: t.Iterable[list[Buffer]]) -> None:
        for data in gathered(itertools.chain.from_iterable(commands)):
            self._wire.sendall(data)

    def _finish(self) -> None:
        while self._under_way:
            self._await_first()

    def _await_first(self) -> None:
        block, before = self._under_way[0]
        while self._counter.replies < before + block.commands:
            self._receive(None)
        self._under_way.popleft()
        self._run.done(block)
        self.has_done_any = True

    def _receive(self, broken: OSError | None) -> None:
        """Take what has arrived. Raises where the server refused a command, or the connection broke."""
        try:
            data = self._wire.recv(RECEIVE_BYTES)
        except OSError as error:
            raise self._lost(broken or error) from error
        if not data:
            raise self._lost(broken or ConnectionError("the server closed it"))
        before = self._done_commands()
        self._counter.feed(data)
        self._run.answered(self._done_commands() - before)
        if self._counter.errors:
            raise self._refused(*next(iter(self._counter.errors.items())))

    def _done_commands(self) -> int:
        return self._counter.replies - len(self._counter.errors)

    def _lost(self, error: OSError) -> ConnectionLost:
        answered = self._counter.replies
        after = f"after the reply to {self._describe(answered - 1)}" if answered else "before the first reply"
        return ConnectionLost(
            f"Redis at {self._run.target.server}: the connection broke {after}: {error}."
            " Is the server still up, and does it have memory left? See its log"
        )

    def _refused(self, index: int, error: bytes) -> KeyferryError:
        return self._run.refusal(str(self._run.target.server), self._describe(index), error)

    def _describe(self, index: int) -> str:
        """Give back which command was the one with I(index) on this connection, for a message."""
        for block, before in self._under_way:
            if before <= index < before + block.commands:
                return self._run.described(block, index - before)
        return f"command {index + 1} of this connection"
