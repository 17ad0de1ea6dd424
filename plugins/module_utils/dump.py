# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads one database of a live server into a dump: SCAN, and PEXPIRETIME and DUMP of every key, pipelined.

The server's CPU is the limit, so nothing is decoded on the way: the keys of a SCAN reply and the payloads of the DUMP
replies are carried as the bulk strings that they arrived as.
"""

from __future__ import annotations

import collections
import itertools
import re
import socket
import sys
import threading
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.commands import commands as native_commands
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import DumpWriter, shown
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

# PEXPIRETIME gives the absolute milliseconds that a dump must carry. A server without it is asked for TIME and PTTL,
# which differ from that by no more than the milliseconds that pass between these two commands.
_HAS_PEXPIRETIME = (7, 0)
# DUMP came with 2.6, the first one whose payloads are tried here is 4.0.
OLDEST_SERVER = (4, 0)
_RECEIVE_BYTES = 256 << 10
# A value larger than this goes from the socket to the disk in pieces.
_STREAM_BYTES = 8 << 20
# What one batch should bring at most: two of them are under way.
_BATCH_BYTES = 4 << 20
# Written in pieces of about this size, so that a batch of large values is never held whole.
_WRITE_BYTES = 1 << 20
# A payload ends with its RDB version (2 bytes) and its CRC-64 (8 bytes); in a reply CRLF follows.
_FOOTER_BYTES = 12

_PEXPIRETIME = b"*2\r\n$11\r\nPEXPIRETIME\r\n"
_TIME_PTTL = b"*1\r\n$4\r\nTIME\r\n*2\r\n$4\r\nPTTL\r\n"
_DUMP = b"*2\r\n$4\r\nDUMP\r\n"
_RESTORE = b"*5\r\n$7\r\nRESTORE\r\n"
_NO_TTL = b"$1\r\n0\r\n"
_REPLACE = b"$7\r\nREPLACE\r\n"
_RESTORE_TTL = b"*6\r\n$7\r\nRESTORE\r\n"
_REPLACE_ABSTTL = b"$7\r\nREPLACE\r\n$6\r\nABSTTL\r\n"
# One key's replies, up to where its payload begins: seconds and microseconds of TIME where it was asked for, PTTL or
# PEXPIRETIME, length of the payload.
_TIME_REPLY = rb"(?:\*2\r\n\$\d+\r\n(\d+)\r\n\$\d+\r\n(\d+)\r\n)?"
_KEY_REPLIES = re.compile(_TIME_REPLY + rb":(-?\d+)\r\n\$(-?\d+)\r\n")
_SCAN_HEAD = re.compile(rb"\*2\r\n\$\d+\r\n(\d+)\r\n\*(\d+)\r\n")
_ERROR = re.compile(_TIME_REPLY + rb"(?::-?\d+\r\n)?-([^\r]*)\r\n")
# What the type byte of a payload stands for (redis and valkey, src/rdb.h).
_TYPES = {
    "string": (0,),
    "list": (1, 10, 14, 18),
    "set": (2, 11, 20),
    "zset": (3, 5, 12, 17),
    "hash": (4, 9, 13, 16, 22, 23, 24, 25),
    "stream": (15, 19, 21, 26, 27),
    "module": (6, 7),
}
_TYPE_NAMES = {number: name for name, numbers in _TYPES.items() for number in numbers}


class Form(t.NamedTuple):
    """How a key stands in the dump.

    C(encode) gives back the pieces of its commands, and their number, from its name and payload (bulk strings) and its
    TTL (-1 for none). C(streams) is whether the payload is only carried, so that a large one need not be held.
    """

    encode: t.Callable[[bytes, bytes, bytes], tuple[t.Sequence[bytes], int]]
    streams: bool


def _as_restore(key: bytes, ttl: bytes, payload: bytes) -> tuple[t.Sequence[bytes], int]:
    before, after = restore(key, ttl)
    return (before, payload, after), 1


def _as_commands(key: bytes, ttl: bytes, payload: bytes) -> tuple[t.Sequence[bytes], int]:
    name = content(key)
    try:
        made = native_commands(name, ttl, bytes(content(payload)))
    except KeyferryError as error:
        raise KeyferryError(f"Cannot write key {shown(name)} as commands: {error.msg}") from None
    return made, len(made)


RESTORE = Form(_as_restore, streams=True)
COMMANDS = Form(_as_commands, streams=False)


class Source(t.NamedTuple):
    """What to read: database I(db) of I(server), the keys that match I(match) (all without it).

    I(workers) is None where the round trip to the server is to decide.
    """

    server: Server
    db: int
    match: bytes | None = None
    batch_size: int = 1000
    workers: int | None = None
    max_keys_per_second: int | None = None
    form: Form = RESTORE


def check_source(server: Server, db: int) -> None:
    """Raise KeyferryError when I(db) of I(server) cannot be dumped."""
    version = server.version()
    if version < OLDEST_SERVER and server.engine() == "redis":
        raise KeyferryError(
            f"Redis at {server} has version {'.'.join(map(str, version))}, which is older than"
            f" {'.'.join(map(str, OLDEST_SERVER))}. Restore its RDB into a newer server and dump that one"
        )
    if server.is_cluster() and db:
        raise KeyferryError(f"Redis at {server} is in cluster mode, which has database 0 only: db must not be {db}")
    server.dbsize(db)


def dump(source: Source, writer: DumpWriter, progress: Progress) -> dict[str, t.Any]:
    """Read every key into I(writer); give back C(types), C(expired) (keys that went on the way) and C(payload_version).

    Raises KeyferryError, naming the key where there is one, on the first thing that cannot be carried.
    """
    run = _Run(source, writer, progress)
    workers = [_Worker(run, part) for part in range(len(run.seams))]
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        if worker.failure is not None:
            raise worker.failure
    return {
        **count_types(sum((worker.type_bytes for worker in workers), collections.Counter())),
        "expired": sum(worker.expired for worker in workers),
        "payload_version": next((worker.payload_version for worker in workers if worker.payload_version), None),
    }


def count_types(type_bytes: collections.Counter[int]) -> dict[str, t.Any]:
    """Give back C(types), keys by the name of their type, and C(type_bytes), keys by the payload's own type byte."""
    types: collections.Counter[str] = collections.Counter()
    for number, keys in type_bytes.items():
        types[_TYPE_NAMES.get(number, f"type {number}")] += keys
    return {
        "types": dict(sorted(types.items())),
        "type_bytes": {str(number): keys for number, keys in type_bytes.items()},
    }


def restore(key: bytes, ttl: bytes) -> tuple[bytes, bytes]:
    """Give back what stands before and after the payload in the command that restores a key.

    I(key) is a bulk string, as the payload between the two is; I(ttl) is -1 for none.
    """
    if ttl == b"-1":
        return _RESTORE + key + _NO_TTL, _REPLACE
    return b"%b%b$%d\r\n%b\r\n" % (_RESTORE_TTL, key, len(ttl), ttl), _REPLACE_ABSTTL


def content(bulk: bytes) -> bytes:
    """Give back what a bulk string holds."""
    return bulk[bulk.index(10) + 1 : -2]


def next_part(part: int, parts: int) -> int:
    """Give back the part of the keyspace that SCAN walks after I(part).

    The cursor is a reverse-binary counter (redis, src/dict.c, dictScan): its low bits name a part, counted from the
    highest of these bits down. After the last part it is 0 again, the part that SCAN begins with.
    """
    bit = parts >> 1
    while part & bit:
        part ^= bit
        bit >>= 1
    return part | bit


def _absolute(head: re.Match[bytes]) -> bytes:
    """Give back what PEXPIRETIME would, from the replies to TIME and PTTL."""
    ttl = int(head[3])
    if ttl < 0:
        return head[3]
    return b"%d" % (int(head[1]) * 1000 + int(head[2]) // 1000 + ttl)


class _Seam:
    """The first keys of a part, which the worker of the part before may get too."""

    def __init__(self) -> None:
        self.known = threading.Event()
        self.keys: frozenset[bytes] = frozenset()


class _Run:
    """What the workers of one dump share."""

    def __init__(self, source: Source, writer: DumpWriter, progress: Progress) -> None:
        self.source = source
        self.writer = writer
        self.progress = progress
        # In cluster mode the low bits of a cursor name a slot, so there the keyspace is one part.
        workers = source.server.connections_wanted() if source.workers is None else source.workers
        parts = 1 if source.server.is_cluster() else 1 << (workers - 1).bit_length()
        self.seams = [_Seam() for _part in range(parts)]
        self.failed = threading.Event()
        self.pace = _Pace(source.max_keys_per_second, self.failed)
        self.ask_ttl = _PEXPIRETIME if source.server.version() >= _HAS_PEXPIRETIME else _TIME_PTTL


class _Pace:
    """Holds all workers together to a number of keys per second."""

    # A burst is what fits into this time.
    BURST_S = 0.1

    def __init__(self, keys_per_second: int | None, failed: threading.Event) -> None:
        self._rate = keys_per_second
        self._failed = failed
        self._lock = threading.Lock()
        self._free_at = 0.0

    def burst(self, workers: int) -> int | None:
        """Give back how many keys one of I(workers) may ask for at once, None where there is no limit."""
        return None if self._rate is None else max(1, int(self._rate * self.BURST_S / workers))

    def wait(self, keys: int) -> None:
        """Wait until I(keys) more may be read."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            delay = self._free_at - now
            self._free_at = max(self._free_at, now) + keys / self._rate
        if delay > 0:
            self._failed.wait(delay)


class _Worker:
    """Reads one part of the keyspace over its own connection."""

    def __init__(self, run: _Run, part: int) -> None:
        self._run = run
        self._part = part
        self._largest_count = min(run.source.batch_size, run.pace.burst(len(run.seams)) or run.source.batch_size)
        self._count = self._largest_count
        self.type_bytes: collections.Counter[int] = collections.Counter()
        self.expired = 0
        self.payload_version: int | None = None
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            server = self._run.source.server
            with server.connection(self._run.source.db) as wire:
                self._walk(_Replies(server, wire))
        except BaseException as error:  # handed to the thread that waits
            self.failure = error
            self._run.failed.set()
        finally:
            self._run.seams[self._part].known.set()

    def _walk(self, replies: _Replies) -> None:
        """Keep two batches under way: while the server works on one, the one before is written."""
        replies.wire.sendall(self._scan(self._part))
        cursor, keys = replies.scanned()
        self._announce(keys)
        under_way: list[bytes] = []
        while not self._run.failed.is_set():
            is_last = self._is_past_part(cursor)
            if is_last:
                keys = self._without_seam(keys)
            self._run.pace.wait(len(keys))
            ask_ttl = self._run.ask_ttl
            request = b"".join([ask_ttl + key + _DUMP + key for key in keys])
            # The SCAN goes first, so that the next keys are known while the payloads of these still arrive.
            replies.wire.sendall(request if is_last else self._scan(cursor) + request)
            self._carry(replies, under_way)
            under_way = keys
            if is_last:
                self._carry(replies, under_way)
                return
            cursor, keys = replies.scanned()

    def _scan(self, cursor: int) -> bytes:
        match = () if self._run.source.match is None else ("MATCH", self._run.source.match)
        return resp.command("SCAN", cursor, *match, "COUNT", self._count)

    def _is_past_part(self, cursor: int) -> bool:
        return cursor == 0 or cursor & (len(self._run.seams) - 1) != self._part

    def _announce(self, keys: list[bytes]) -> None:
        seam = self._run.seams[self._part]
        seam.keys = frozenset(keys)
        seam.known.set()

    def _without_seam(self, keys: list[bytes]) -> list[bytes]:
        """Give back the keys of the last SCAN less those of the next part, whose worker reads them too."""
        following = next_part(self._part, len(self._run.seams))
        if following == 0:
            return keys
        seam = self._run.seams[following]
        seam.known.wait()
        return [key for key in keys if key not in seam.keys]

    def _carry(self, replies: _Replies, keys: list[bytes]) -> None:
        """Write the commands of a batch whose replies arrive now."""
        form = self._run.source.form
        pieces: list[bytes] = []
        types = bytearray()
        commands = 0
        size = total = 0
        buffer = replies.buffer
        position = replies.position
        for key in keys:
            head = _KEY_REPLIES.match(buffer, position)
            if head is None or head.end() + int(head[4]) + 2 > len(buffer):
                replies.position = position
                head = replies.of_key(key, form.streams)
            length = int(head[4])
            ttl = head[3] if head[1] is None else _absolute(head)
            payload = head.end()
            if length > _STREAM_BYTES and form.streams:
                replies.position = head.start(4) - 1
                self._write(pieces, types, commands)
                pieces, types, commands, size = [], bytearray(), 0, 0
                self._carry_large(replies, key, ttl, length)
                position = replies.position
                continue
            # What does not exist has the length -1, and neither payload nor CRLF after it.
            position = payload + length + 2 if length >= 0 else payload
            if length < 0 or ttl == b"-2":
                self.expired += 1
                continue
            more, count = form.encode(key, ttl, buffer[head.start(4) - 1 : position])
            pieces += more
            commands += count
            types.append(buffer[payload])
            if self.payload_version is None:
                self._note_version(buffer[position - _FOOTER_BYTES : position])
            size += length
            if size >= _WRITE_BYTES:
                self._write(pieces, types, commands)
                total += size
                pieces, types, commands, size = [], bytearray(), 0, 0
        if keys:
            replies.position = position
            self._write(pieces, types, commands)
            self._adapt(len(keys), total + size)

    def _carry_large(self, replies: _Replies, key: bytes, ttl: bytes, length: int) -> None:
        """Write one RESTORE whose payload is too large to hold, as it arrives."""
        if ttl == b"-2":
            self.expired += 1
            collections.deque(replies.stream(length), maxlen=0)
            return
        self.type_bytes[replies.type_byte()] += 1
        before, after = restore(key, ttl)
        self._run.writer.add_parts(itertools.chain((before,), replies.stream(length), (after,)), 1, 1)
        self._note_version(replies.streamed_end)

    def _note_version(self, footer: bytes) -> None:
        self.payload_version = int.from_bytes(footer[:2], "little")

    def _write(self, pieces: list[bytes], types: bytearray, commands: int) -> None:
        if not pieces:
            return
        self.type_bytes.update(types)
        self._run.writer.add(b"".join(pieces), len(types), commands)
        self._run.progress(self._run.writer.keys, self._run.writer.bytes)

    def _adapt(self, keys: int, size: int) -> None:
        """Ask for fewer keys at a time where they are large, so that a batch is not a flood."""
        if keys:
            self._count = max(1, min(self._largest_count, _BATCH_BYTES * keys // max(size, 1)))


class _Replies:
    """What arrives on one connection, as bytes that are looked at in place."""

    def __init__(self, server: Server, wire: socket.socket) -> None:
        self._server = server
        self.wire = wire
        self.buffer = bytearray()
        self.position = 0
        self.streamed_end = b""

    def scanned(self) -> tuple[int, list[bytes]]:
        """Give back the cursor of a SCAN reply, and its keys as the bulk strings they came as."""
        head = self._match(_SCAN_HEAD, "SCAN")
        self.position = head.end()
        cursor, keys = int(head[1]), []
        buffer, position = self.buffer, self.position
        for _index in range(int(head[2])):
            while True:
                line = buffer.find(b"\r\n", position)
                end = line + 4 + int(buffer[position + 1 : line]) if line >= 0 else len(buffer) + 1
                if end <= len(buffer):
                    break
                self.position = position
                self._receive(end - position)
                position = self.position
            keys.append(bytes(buffer[position:end]))
            position = end
        self.position = position
        return cursor, keys

    def of_key(self, key: bytes, streams: bool) -> re.Match[bytes]:
        """Wait for the replies about I(key), a bulk string; of a payload to be streamed, for its first byte only."""
        largest = _STREAM_BYTES if streams else sys.maxsize
        while True:
            head = self._match(_KEY_REPLIES, f"key {shown(content(key))}")
            length = int(head[4])
            # What does not exist has no payload.
            end = head.end() + (length + 2 if 0 <= length <= largest else length > 0)
            if end <= len(self.buffer):
                return head
            self._receive(end - self.position)

    def type_byte(self) -> int:
        """Give back the first byte of the payload whose bulk string begins here."""
        return self.buffer[self.buffer.index(10, self.position) + 1]

    def stream(self, length: int) -> t.Iterator[bytes]:
        """Give back, piece by piece, the bulk string of I(length) bytes that begins here."""
        missing = self.buffer.index(10, self.position) + 1 - self.position + length + 2
        while missing:
            if self.position == len(self.buffer):
                self._receive(1)
            piece = bytes(self.buffer[self.position : self.position + missing])
            self.position += len(piece)
            missing -= len(piece)
            self.streamed_end = (self.streamed_end + piece)[-_FOOTER_BYTES:]
            yield piece

    def _match(self, pattern: re.Pattern[bytes], subject: str) -> re.Match[bytes]:
        while True:
            found = pattern.match(self.buffer, self.position)
            if found is not None:
                return found
            error = _ERROR.match(self.buffer, self.position)
            if error is not None:
                raise KeyferryError(
                    f"Redis at {self._server} refused {subject}: {error[3].decode(errors='replace').rstrip('.')}"
                )
            self._receive(1)

    def _receive(self, wanted: int) -> None:
        """Have at least I(wanted) bytes from C(position) on; what lies before it is gone then, and C(position) is 0."""
        del self.buffer[: self.position]
        self.position = 0
        while True:
            data = self.wire.recv(max(_RECEIVE_BYTES, min(wanted - len(self.buffer), _STREAM_BYTES)))
            if not data:
                raise ConnectionError("the server closed it")
            self.buffer += data
            if len(self.buffer) >= wanted:
                return
