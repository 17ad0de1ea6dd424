# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Loads a dump into a server: whole blocks of the file go to the socket, and every reply is matched to its command."""

from __future__ import annotations

import bisect
import collections
import itertools
import os
import secrets
import socket
import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64_of_few
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import Block, Dump, shown
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

# Blocks that one connection has sent and not yet seen all replies of: the server works on one while the next arrives.
_BLOCKS_UNDER_WAY = 2
_RECEIVE_BYTES = 256 << 10

Progress = t.Callable[[int, int], None]


class Target(t.NamedTuple):
    """Where to load: I(server), into I(db) or, without it, where the dump's own SELECT says."""

    server: Server
    db: int | None
    workers: int
    replace: bool


def check_target(target: Target, dump: Dump) -> None:
    """Raise KeyferryError when the dump cannot be loaded there; nothing is written."""
    server = target.server
    databases = dump.databases
    if target.db is not None and len(databases) > 1:
        raise KeyferryError(
            f"{dump.path} selects the databases {_join(databases)}; db={target.db} would pour them into one."
            " Leave db out, or split the dump"
        )
    if dump.is_foreign and not target.replace:
        raise KeyferryError(
            f"{dump.path} was made by another tool, and its commands overwrite; replace=false cannot be kept."
            " Make the dump with resp_dump, or load it with replace=true into an empty database"
        )
    for db in {target.db} if target.db is not None else databases:
        server.dbsize(db)
    version = dump.summary.get("payload_version")
    if version is not None and not _takes_payload(server, version):
        raise KeyferryError(
            f"Redis at {server} (version {'.'.join(map(str, server.version()))}) cannot read the DUMP payloads in"
            f" {dump.path}: they have RDB version {version}, which is newer. Load into a newer engine"
        )


def load(target: Target, dump: Dump, progress: Progress) -> int:
    """Send every command; give back the number of replies, which is the number of commands.

    Raises KeyferryError at the first command that the server refuses, with its key, number and byte offset.
    """
    run = _Run(target, dump, progress)
    # Commands of another tool may depend on the ones before them; ours do so only within a block.
    workers = 1 if dump.is_foreign else min(target.workers, max(len(dump.blocks), 1))
    threads = [threading.Thread(target=run.work, daemon=True) for _worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if run.failure is not None:
        raise run.failure
    if run.replies != dump.commands:
        raise KeyferryError(f"{run.replies} replies came to the {dump.commands} commands of {dump.path}")
    return run.replies


class _Run:
    """What the connections of one load share."""

    def __init__(self, target: Target, dump: Dump, progress: Progress) -> None:
        self.target = target
        self.dump = dump
        self.replies = 0
        self.failure: BaseException | None = None
        self._progress = progress
        self._sent_bytes = 0
        self._lock = threading.Lock()
        self._blocks = iter(dump.blocks)

    def work(self) -> None:
        try:
            while (block := self.next_block()) is not None:
                self._work_on_database(block)
        except BaseException as error:  # handed to the thread that waits
            with self._lock:
                self.failure = self.failure or error

    def next_block(self) -> Block | None:
        """Give back a block that nobody has sent, or None when there is none or another connection has failed."""
        with self._lock:
            return None if self.failure is not None else next(self._blocks, None)

    def done(self, block: Block) -> None:
        with self._lock:
            self.replies += block.commands
            self._sent_bytes += block.size
            self._progress(self.replies, self._sent_bytes)

    def _work_on_database(self, first: Block) -> None:
        """Send blocks over one connection for as long as they are for the database of I(first)."""
        db = first.db if self.target.db is None else self.target.db
        with self.target.server.connection(db) as wire, open(self.dump.path, "rb") as file:
            lane = _Lane(self, wire, file)
            block: Block | None = first
            while block is not None and (self.target.db is not None or block.db == db):
                lane.send(block)
                block = self.next_block()
            lane.finish()
        if block is not None:
            self._work_on_database(block)


class _Lane:
    """One connection: sends blocks, and counts the replies to each."""

    def __init__(self, run: _Run, wire: socket.socket, file: t.BinaryIO) -> None:
        self._run = run
        self._wire = wire
        self._file = file
        self._counter = resp.ReplyCounter()
        self._under_way: collections.deque[tuple[Block, int]] = collections.deque()
        self._sent_commands = 0

    def send(self, block: Block) -> None:
        if len(self._under_way) == _BLOCKS_UNDER_WAY:
            self._await_first()
        self._under_way.append((block, self._sent_commands))
        self._sent_commands += block.commands
        if self._run.target.replace:
            self._wire.sendfile(self._file, block.offset, block.size)
        else:
            self._wire.sendall(self._without_replace(block))

    def finish(self) -> None:
        while self._under_way:
            self._await_first()

    def _await_first(self) -> None:
        block, before = self._under_way[0]
        while self._counter.replies < before + block.commands:
            data = self._wire.recv(_RECEIVE_BYTES)
            if not data:
                raise KeyferryError(
                    f"Redis at {self._run.target.server} closed the connection while it loaded {self._run.dump.path};"
                    f" the last reply was to {self._describe(self._counter.replies - 1)}. Is it out of memory, or gone?"
                    " Loading again does no harm"
                )
            self._counter.feed(data)
            if self._counter.error is not None:
                raise self._refused()
        self._under_way.popleft()
        self._run.done(block)

    def _refused(self) -> KeyferryError:
        reason = (self._counter.error or b"").decode(errors="replace").rstrip(".")
        hint = ""
        if reason.startswith("BUSYKEY"):
            hint = ". The key is there already and was not overwritten (replace=false)"
        return KeyferryError(
            f"Redis at {self._run.target.server} refused {self._describe(self._counter.error_index)}: {reason}{hint}"
        )

    def _describe(self, index: int) -> str:
        """Give back which command was the one with I(index) on this connection, for a message."""
        for block, before in self._under_way:
            if before <= index < before + block.commands:
                found, data = self._command(block, index - before)
                name = data[slice(*found.arguments[0])].decode(errors="replace")
                key = shown(data[slice(*found.arguments[1])]) if len(found.arguments) > 1 else "(no key)"
                number = index - before + 1 + sum(other.commands for other in self._blocks_before(block))
                return (
                    f"{name} of key {key}, command {number} of {self._run.dump.commands}"
                    f" at byte {block.offset + found.start} of {self._run.dump.path}"
                )
        return f"command {index + 1} of this connection"

    def _blocks_before(self, block: Block) -> list[Block]:
        blocks = self._run.dump.blocks
        return blocks[: bisect.bisect_left(blocks, block)]

    def _command(self, block: Block, index: int) -> tuple[resp.Command, bytes]:
        data = self._read(block)
        return next(itertools.islice(_commands(data), index, None)), data

    def _read(self, block: Block) -> bytes:
        return os.pread(self._file.fileno(), block.size, block.offset)

    def _without_replace(self, block: Block) -> bytes:
        """Give back the RESTORE commands of a block less their REPLACE, so that none overwrites."""
        data = self._read(block)
        out = []
        for found in _commands(data):
            arguments = [data[first:last] for first, last in found.arguments]
            out.append(resp.command(*arguments[:4], *(word for word in arguments[4:] if word != b"REPLACE")))
        return b"".join(out)


def _commands(data: bytes) -> t.Iterator[resp.Command]:
    position = 0
    while position < len(data):
        found = resp.read_command(data, position, len(data))
        yield found
        position = found.end


def _takes_payload(server: Server, version: int) -> bool:
    """Tell whether the server reads DUMP payloads of an RDB version, without writing anything.

    RESTORE checks version and checksum before the type (redis, src/cluster.c, restoreCommand), so a payload of a type
    that does not exist is told "Bad data format" where the version is good.
    """
    payload = b"\xff" + version.to_bytes(2, "little")
    payload += crc64_of_few(payload).to_bytes(8, "little")
    try:
        server.call("RESTORE", f"keyferry:probe:{secrets.token_hex(8)}", 0, payload)
    except KeyferryError as error:
        return "payload version or checksum" not in error.msg
    return True


def _join(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
