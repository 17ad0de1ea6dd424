# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loads a dump into a server: whole blocks of the file go to the socket, and every reply is matched to its command."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import mmap
import os
import secrets
import socket
import string
import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import rdb_bytes, rdb_types, resp
from ansible_collections.keyferry.redis.plugins.module_utils.cluster import Slots, slot_of
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64_of_few
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import Block, Dump
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError, shown
from ansible_collections.keyferry.redis.plugins.module_utils.load_cluster import EVERYWHERE, Lost, Refused, Wires
from ansible_collections.keyferry.redis.plugins.module_utils.load_commands import (
    HAS_FUNCTIONS,
    Buffer,
    Rewriter,
    gathered,
)
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress
from ansible_collections.keyferry.redis.plugins.module_utils.server import (
    PASSING_ERRORS,
    ConnectionLost,
    OtherProcess,
    Server,
)

# Blocks that one connection has sent and not yet seen all replies of: the server works on one while the next arrives.
_BLOCKS_UNDER_WAY = 2
_RECEIVE_BYTES = 256 << 10
# How long to wait after each setback in a row, before the blocks that were under way are sent again.
SETBACK_DELAYS_S: tuple[float, ...] = (0.1, 0.5, 2, 5, 10)
# In a cluster: a replica takes over when its primary was silent for cluster-node-timeout (15 s), and an election.
FAILOVER_DELAYS_S: tuple[float, ...] = (0.1, 0.5, 1, *[2.0] * 30)
# After a failover all is sent again; so many of them one load bears.
_FAILOVERS = 3

# RDB versions that servers write, newest first.
_PAYLOAD_VERSIONS = (12, 11, 10, 9, 8, 7, 6)
# Keys to try until one is in a slot of the node that is asked.
_PROBES = 1000
# Their key stands behind a subcommand; those of the second kind have none.
_SUBCOMMANDS = (b"XGROUP", b"XINFO", b"OBJECT")
_KEYLESS = (b"FUNCTION", b"SCRIPT")
# Which argument of RESTORE its payload is, and what the name of a module's type is made of.
_PAYLOAD = 3
_MODULE_CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"


class Target(t.NamedTuple):
    """Where to load: I(server), into I(db) or, without it, where the dump's own SELECT says.

    I(cluster) is whether keys are spread over the primaries of a cluster, of which I(server) is any node.
    I(workers) is None where the round trip to the server is to decide. I(batch_size) is how many commands a connection
    sends ahead of their replies, None for as many as two blocks hold. I(resume) is whether to leave out what an
    earlier, failed load of the same dump into the same server process got through. I(approve) gives back the run_id of
    a server's process, or raises KeyferryError where that must not be written to.
    """

    server: Server
    db: int | None = None
    workers: int | None = None
    replace: bool = True
    cluster: bool = False
    resume: bool = False
    batch_size: int | None = None
    approve: t.Callable[[Server], str] = Server.run_id

    def slots(self) -> Slots | None:
        """Give back where keys go in the cluster, with every primary approved; None where it is none."""
        if not self.cluster:
            return None
        slots = Slots(self.server, self.approve)
        slots.run_ids()
        return slots


class Loaded(t.NamedTuple):
    """I(replies) came, as many as commands were sent; I(dbsize) keys are in the databases now."""

    replies: int
    dbsize: int


class TemporaryRefusal(KeyferryError):
    """The server refused a command in a way that passes."""


def check_target(target: Target, dump: Dump) -> None:
    """Raise KeyferryError when the dump cannot be loaded there; nothing is written."""
    server = target.server
    target.slots()
    databases = dump.databases
    if target.db is not None and len(databases) > 1:
        raise KeyferryError(
            f"{dump.path} selects the databases {_join(databases)}; db={target.db} would pour them into one."
            " Leave db out, or split the dump"
        )
    if not target.replace and dump.description.get("format") != "restore":
        raise KeyferryError(
            f"The commands of {dump.path} overwrite; replace=false cannot be kept. Make the dump with resp_dump and"
            " format=restore, or load it with replace=true into an empty database"
        )
    wanted = {target.db} if target.db is not None else set(databases)
    if target.cluster and wanted - {0}:
        raise KeyferryError(
            f"Redis at {server} is in cluster mode, which has database 0 only, and {dump.path} is for {_join(wanted)}:"
            " set db=0"
        )
    for db in wanted:
        server.dbsize(db)
    role = server.info("replication")
    if role["role"] != "master" and role.get("slave_read_only", 1):
        raise KeyferryError(
            f"Redis at {server} is a read-only replica of {role.get('master_host')}:{role.get('master_port')}."
            " Load into the primary"
        )
    if _holds_functions(dump) and server.version() < HAS_FUNCTIONS:
        raise KeyferryError(
            f"{dump.path} holds functions, which Redis at {server} (version {_version(server)}) does not have."
            " Nothing was sent. Dump again with functions=false"
        )
    payload_stamp(server, dump)


def payload_stamp(server: Server, dump: Dump) -> int | None:
    """Give back the RDB version that the dump's payloads must be given so that the server reads them, None for theirs.

    A server refuses a payload for its version alone, but reads it by its type; where it knows all types of the dump, a
    lower version changes nothing else. Raises KeyferryError where it does not.
    """
    version = dump.summary.get("payload_version")
    if dump.description.get("format") != "restore" or version is None or _takes_payload(server, version):
        return None
    taken = next((older for older in _PAYLOAD_VERSIONS if older < version and _takes_payload(server, older)), 0)
    kinds = map(int, dump.summary["type_bytes"])
    unknown = [kind for kind in kinds if rdb_types.SINCE_VERSION.get(kind, version) > taken]
    if not unknown:
        return taken
    raise KeyferryError(
        f"Redis at {server} (version {_version(server)}) reads DUMP payloads up to RDB version"
        f" {taken}; those in {dump.path} have version {version}, and among them are values of the types"
        f" {_join(unknown)}, which it does not know. Nothing was sent. Load into a newer engine, or dump again"
        " with format=commands"
    )


def dbsize(target: Target, dump: Dump) -> int:
    """Give back the number of keys in the databases that the dump is for, in all primaries of a cluster."""
    if target.cluster:
        return Slots(target.server).dbsize()
    return sum(target.server.dbsize(db) for db in (dump.databases if target.db is None else [target.db]))


def load(target: Target, dump: Dump, progress: Progress) -> Loaded:
    """Send every command, and wait for every reply.

    Raises KeyferryError at the first command that the server refuses, with its key, number and byte offset.
    """
    run = _Run(target, dump, progress)
    run.go()
    for _failover in range(_FAILOVERS):
        if run.slots is None or not run.repeats_at_once or not isinstance(run.failure, OtherProcess):
            break
        # The replica may lack what its primary had acknowledged.
        target = target._replace(server=run.slots.one_that_answers(), resume=False)
        run = _Run(target, dump, progress)
        run.go()
    if run.failure is not None:
        raise run.explained(run.failure)
    if run.replies != run.commands:
        raise KeyferryError(f"{run.replies} replies came to {run.commands} commands of {dump.path}")
    with contextlib.suppress(OSError):
        os.unlink(_progress_path(dump))
    return Loaded(run.replies, dbsize(target, dump))


class _Run:
    """What the connections of one load share."""

    def __init__(self, target: Target, dump: Dump, progress: Progress) -> None:
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
        # And at once where that command is the key's only one: what a server still takes from a connection that broke,
        # between those that are sent again, is the same key then, and otherwise half a list more.
        self.repeats_at_once = self.is_repeatable and dump.description.get("format") == "restore"
        self.slots = target.slots()
        # Other processes at the same addresses (a restart, a failover) need not have what these have acknowledged.
        self.run_id = self.slots.run_ids() if self.slots else target.approve(target.server)
        stamp = payload_stamp(target.server, dump)
        self.rewriter = Rewriter(target.server.version(), stamp, target.replace)
        self._delays = SETBACK_DELAYS_S if self.slots is None else FAILOVER_DELAYS_S
        blocks = _blocks_left(target, dump, self.run_id)
        self.commands = sum(block.commands for block in blocks)
        self._waiting = collections.deque(blocks)
        self._undone = set(blocks)
        self._data = _mapped(dump)
        self._view = memoryview(self._data)

    def go(self) -> None:
        """Send all that there is, by as many connections as it takes, until it is done or there is a failure."""
        target = self.target
        wanted = target.server.connections_wanted() + 1 if target.workers is None else target.workers
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
            lane = _Lane(self) if self.slots is None else _ClusterLane(self, self.slots)
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
        _keep_progress(self.dump, self.run_id, self.target.db, [block.offset for block in self._undone])
        return KeyferryError(
            f"{failure.msg}. {self.replies} of {self.commands} commands are done: when the cause is gone, load again"
            " with resume=true to send the others only, or all of them, which does no harm",
            **failure.result,
        )

    def described(self, block: Block, index: int) -> str:
        """Give back which command of a block is the one with I(index), for a message."""
        found = next(itertools.islice(self._commands(block), index, None))
        at = _key_at(self._data, found)
        name = b" ".join(self._data[slice(*each)] for each in found.arguments[: at or 2]).decode(errors="replace")
        key = f" of key {shown(self._data[slice(*found.arguments[at])])}" if at else ""
        if name.upper() == "RESTORE" and len(found.arguments) > _PAYLOAD:
            key += _module_hint(self._data, found.arguments[_PAYLOAD][0])
        number = index + 1 + sum(other.commands for other in self.dump.blocks if other.offset < block.offset)
        return f"{name}{key}, command {number} of {self.dump.commands} at byte {found.start} of {self.dump.path}"

    def commands_of(self, block: Block) -> t.Iterator[list[Buffer]]:
        """Give back each command of a block in pieces, as it is to be sent."""
        for found in self._commands(block):
            yield self._pieces(found)
        self.forget(block)

    def routed(self, block: Block) -> t.Iterator[tuple[int, list[Buffer]]]:
        """Give back each command of a block with the slot of its key."""
        for found in self._commands(block):
            at = _key_at(self._data, found)
            slot = slot_of(self._data[slice(*found.arguments[at])]) if at else EVERYWHERE
            yield slot, self._pieces(found)

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
        return self._counter.replies - self._under_way[0][1] if self._under_way else 0

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
                self._wire.sendfile(self._file, block.offset, block.size)
            else:
                self._send_commands(self._run.commands_of(block))
        except OSError as error:
            # What made the server hang up may still be in what it has sent.
            while True:
                self._receive(error)

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
            data = self._wire.recv(_RECEIVE_BYTES)
        except OSError as error:
            raise self._lost(broken or error) from error
        if not data:
            raise self._lost(broken or ConnectionError("the server closed it"))
        before = self._counter.replies
        self._counter.feed(data)
        self._run.answered(self._counter.replies - before)
        if self._counter.errors:
            raise self._refused(*next(iter(self._counter.errors.items())))

    def _lost(self, error: OSError) -> ConnectionLost:
        answered = self._counter.replies
        after = f"after the reply to {self._describe(answered - 1)}" if answered else "before the first reply"
        return ConnectionLost(
            f"Redis at {self._run.target.server}: the connection broke {after}: {error}."
            " Is the server still up, and has it memory left? Its own log says why"
        )

    def _refused(self, index: int, error: bytes) -> KeyferryError:
        return _refusal(str(self._run.target.server), self._describe(index), error)

    def _describe(self, index: int) -> str:
        """Give back which command was the one with I(index) on this connection, for a message."""
        for block, before in self._under_way:
            if before <= index < before + block.commands:
                return self._run.described(block, index - before)
        return f"command {index + 1} of this connection"


class _ClusterLane:
    """One connection to each primary of a cluster: sends a block's commands to where their keys belong."""

    def __init__(self, run: _Run, slots: Slots) -> None:
        self._run = run
        self._slots = slots
        self._block: Block | None = None
        self.has_done_any = False

    def work(self, first: Block) -> Block | None:
        """Send blocks until there are no more."""
        self._block = first
        with Wires(self._slots) as wires:
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
            raise _refusal(
                _text(refused.node), self._run.described(block, first + refused.index), refused.error
            ) from None
        except Lost as lost:
            which = self._run.described(block, first + lost.index)
            raise ConnectionLost(
                f"Redis at {_text(lost.node)}, a primary of the cluster, was lost before it answered {which}:"
                f" {lost.reason}. Is it still up, and has it a replica? CLUSTER NODES says so"
            ) from None


def _module_hint(data: t.Any, payload: int) -> str:
    """Give back what to say of the payload that begins there, where its value is a module's."""
    if data[payload] != rdb_types.MODULE:
        return ""
    number, _end = rdb_bytes.read_length(data, payload + 1)
    # Nine characters of 6 bits, and 10 bits for a version (redis, src/module.c, moduleTypeNameByID).
    name = "".join(_MODULE_CHARACTERS[number >> shift & 63] for shift in range(58, 9, -6))
    return f" (a value of the module type {name}, whose module the server must have loaded)"


def _refusal(where: str, which: str, error: bytes) -> KeyferryError:
    """Give back what to raise for a command that the server refused."""
    reason = error.decode(errors="replace").rstrip(".")
    hint = ""
    if reason.startswith("BUSYKEY"):
        hint = ". The key is there already and was not overwritten (replace=false)"
    kind = TemporaryRefusal if reason.startswith(PASSING_ERRORS) else KeyferryError
    return kind(f"Redis at {where} refused {which}: {reason}{hint}")


def _text(node: tuple[str, int]) -> str:
    return f"{node[0]}:{node[1]}"


def _mapped(dump: Dump) -> mmap.mmap:
    with dump.open() as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _holds_functions(dump: Dump) -> bool:
    """Tell whether a dump of ours brings functions, which come before all keys."""
    if dump.is_foreign or not dump.blocks:
        return False
    data = _mapped(dump)
    first, end = resp.read_command(data, dump.blocks[0].offset, len(data)).arguments[0]
    return data[first:end] == b"FUNCTION"


def _version(server: Server) -> str:
    return ".".join(map(str, server.version()))


def _key_at(data: t.Any, found: resp.Command) -> int:
    """Give back which argument of a command is its first key, 0 where it has none."""
    verb = data[slice(*found.arguments[0])].upper()
    at = 2 if verb in _SUBCOMMANDS else 1
    return 0 if verb in _KEYLESS or len(found.arguments) <= at else at


def _progress_path(dump: Dump) -> str:
    return f"{dump.path}.resume"


def _keep_progress(dump: Dump, run_id: str, db: int | None, undone: list[int]) -> None:
    """Write down which blocks are not loaded yet; where that is not possible, the next load sends all of them."""
    facts = {"run_id": run_id, "db": db, "sha256": dump.summary["sha256"], "undone": sorted(undone)}
    path = _progress_path(dump)
    with contextlib.suppress(OSError):
        with open(f"{path}.part", "w", encoding="ascii") as file:
            json.dump(facts, file)
        os.rename(f"{path}.part", path)


def _blocks_left(target: Target, dump: Dump, run_id: str) -> list[Block]:
    """Give back the blocks to send: all, less those that an earlier load into the same server process got through."""
    if not target.resume:
        return dump.blocks
    try:
        with open(_progress_path(dump), encoding="ascii") as file:
            facts = json.load(file)
        undone = set(facts["undone"])
        about = facts["run_id"], facts["db"], facts["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        # It is not there, or none of ours.
        return dump.blocks
    if about != (run_id, target.db, dump.summary.get("sha256")):
        return dump.blocks
    return [block for block in dump.blocks if block.offset in undone]


def _takes_payload(server: Server, version: int) -> bool:
    """Tell whether the server reads DUMP payloads of an RDB version, without writing anything.

    RESTORE checks version and checksum before the type (redis, src/cluster.c, restoreCommand), so a payload of a type
    that does not exist is told "Bad data format" where the version is good.
    """
    payload = b"\xff" + version.to_bytes(2, "little")
    payload += crc64_of_few(payload).to_bytes(8, "little")
    for _attempt in range(_PROBES):
        try:
            server.call("RESTORE", f"keyferry:probe:{secrets.token_hex(8)}", 0, payload)
        except KeyferryError as error:
            # In cluster mode, a key of another node.
            if "MOVED" not in error.msg:
                return "payload version or checksum" not in error.msg
    return True


def _join(numbers: t.Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))
