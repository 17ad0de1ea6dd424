# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads one database of a live server into RESTORE commands: SCAN, and PEXPIRETIME and DUMP of every key, pipelined.

The server's CPU is the limit, so nothing is decoded on the way: the keys of a SCAN reply and the payloads of the DUMP
replies are carried as the bulk strings that they arrived as.
"""

from __future__ import annotations

import collections
import itertools
import re
import socket
import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import DumpWriter, shown
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

# PEXPIRETIME gives the absolute milliseconds that a dump must carry.
OLDEST_SERVER = (7, 0)
_RECEIVE_BYTES = 256 << 10
# A value larger than this goes from the socket to the disk in pieces.
_STREAM_BYTES = 8 << 20
# What one batch should bring at most: two of them are under way.
_BATCH_BYTES = 4 << 20
# Written in pieces of about this size, so that a batch of large values is never held whole.
_WRITE_BYTES = 1 << 20

_EXPIRETIME = b"*2\r\n$11\r\nPEXPIRETIME\r\n"
_DUMP = b"*2\r\n$4\r\nDUMP\r\n"
_RESTORE = b"*5\r\n$7\r\nRESTORE\r\n"
_NO_TTL = b"$1\r\n0\r\n"
_REPLACE = b"$7\r\nREPLACE\r\n"
_RESTORE_TTL = b"*6\r\n$7\r\nRESTORE\r\n"
_REPLACE_ABSTTL = b"$7\r\nREPLACE\r\n$6\r\nABSTTL\r\n"
# One key's two replies, up to where its payload begins.
_REPLY_PAIR = re.compile(rb":(-?\d+)\r\n\$(-?\d+)\r\n")
_SCAN_HEAD = re.compile(rb"\*2\r\n\$\d+\r\n(\d+)\r\n\*(\d+)\r\n")
_ERROR = re.compile(rb"(?::-?\d+\r\n)?-([^\r]*)\r\n")
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

Progress = t.Callable[[int, int], None]


class Source(t.NamedTuple):
    """What to read: database I(db) of I(server), the keys that match I(match) (all without it)."""

    server: Server
    db: int
    match: bytes | None
    batch_size: int
    workers: int


def check_source(server: Server, db: int) -> None:
    """Raise KeyferryError when I(db) of I(server) cannot be dumped."""
    version = server.version()
    if version < OLDEST_SERVER and server.engine() == "redis":
        raise KeyferryError(
            f"Redis at {server} has version {'.'.join(map(str, version))}; a dump needs PEXPIRETIME, which came"
            " with 7.0. Restore its RDB into a newer server and dump that one"
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
        "types": dict(sorted(sum((worker.types() for worker in workers), collections.Counter()).items())),
        "expired": sum(worker.expired for worker in workers),
        "payload_version": next((worker.payload_version for worker in workers if worker.payload_version), None),
    }


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
        parts = 1 if source.server.is_cluster() else 1 << max(source.workers - 1, 0).bit_length()
        self.seams = [_Seam() for _part in range(parts)]
        self.failed = threading.Event()


class _Worker:
    """Reads one part of the keyspace over its own connection."""

    def __init__(self, run: _Run, part: int) -> None:
        self._run = run
        self._part = part
        self._count = run.source.batch_size
        self._type_bytes: collections.Counter[int] = collections.Counter()
        self.expired = 0
        self.payload_version: int | None = None
        self.failure: BaseException | None = None

    def types(self) -> collections.Counter[str]:
        names: collections.Counter[str] = collections.Counter()
        for number, keys in self._type_bytes.items():
            names[_TYPE_NAMES.get(number, f"type {number}")] += keys
        return names

    def run(self) -> None:
        try:
            with self._run.source.server.connection(self._run.source.db) as wire:
                self._walk(_Replies(wire))
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
            request = b"".join([_EXPIRETIME + key + _DUMP + key for key in keys])
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
        """Write the RESTORE commands of a batch whose replies arrive now."""
        pieces: list[t.Any] = []
        types = bytearray()
        size = total = 0
        buffer = replies.buffer
        position = replies.position
        for key in keys:
            pair = _REPLY_PAIR.match(buffer, position)
            if pair is None or pair.end() + int(pair[2]) + 2 > len(buffer):
                replies.position = position
                pair = replies.pair(key)
            length = int(pair[2])
            ttl = pair[1]
            start = pair.start(2) - 1
            payload = pair.end()
            if length < 0:
                self.expired += 1
                position = payload
                continue
            if length > _STREAM_BYTES:
                replies.position = start
                self._write(pieces, types)
                pieces, types, size = [], bytearray(), 0
                self._carry_large(replies, key, ttl, length)
                position = replies.position
                continue
            position = payload + length + 2
            if ttl == b"-2":
                self.expired += 1
                continue
            if ttl == b"-1":
                pieces += (_RESTORE, key, _NO_TTL, buffer[start:position], _REPLACE)
            else:
                pieces += (
                    _RESTORE_TTL,
                    key,
                    b"$%d\r\n%b\r\n" % (len(ttl), ttl),
                    buffer[start:position],
                    _REPLACE_ABSTTL,
                )
            types.append(buffer[payload])
            size += length
            if size >= _WRITE_BYTES:
                self._write(pieces, types)
                total += size
                pieces, types, size = [], bytearray(), 0
        replies.position = position
        self._write(pieces, types)
        self._adapt(len(keys), total + size)

    def _carry_large(self, replies: _Replies, key: bytes, ttl: bytes, length: int) -> None:
        """Write one RESTORE whose payload is too large to hold, as it arrives."""
        if ttl == b"-2":
            self.expired += 1
            collections.deque(replies.stream(length), maxlen=0)
            return
        self._type_bytes[replies.type_byte()] += 1
        head = (_RESTORE, key, _NO_TTL) if ttl == b"-1" else (_RESTORE_TTL, key, resp.bulk(ttl))
        tail = _REPLACE if ttl == b"-1" else _REPLACE_ABSTTL
        self._run.writer.add_parts(itertools.chain(head, replies.stream(length), (tail,)), 1, 1)

    def _write(self, pieces: list[t.Any], types: bytearray) -> None:
        if not pieces:
            return
        if self.payload_version is None:
            # A payload ends with its RDB version (2 bytes) and its CRC-64 (8 bytes); here CRLF follows.
            self.payload_version = int.from_bytes(pieces[3][-12:-10], "little")
        self._type_bytes.update(types)
        self._run.writer.add(b"".join(pieces), len(types), len(types))
        self._run.progress(self._run.writer.keys, self._run.writer.bytes)

    def _adapt(self, keys: int, size: int) -> None:
        """Ask for fewer keys at a time where they are large, so that a batch is not a flood."""
        if keys:
            self._count = max(1, min(self._run.source.batch_size, _BATCH_BYTES * keys // max(size, 1)))


class _Replies:
    """What arrives on one connection, as bytes that are looked at in place."""

    def __init__(self, wire: socket.socket) -> None:
        self.wire = wire
        self.buffer = bytearray()
        self.position = 0

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

    def pair(self, key: bytes) -> re.Match[bytes]:
        """Wait for the replies about I(key); all of the payload is there then, or it is one to be streamed."""
        while True:
            pair = self._match(_REPLY_PAIR, f"key {shown(key[key.index(10) + 1 : -2])}")
            length = int(pair[2])
            end = pair.end() + length + 2
            if length > _STREAM_BYTES or end <= len(self.buffer):
                return pair
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
            yield piece

    def _match(self, pattern: re.Pattern[bytes], subject: str) -> re.Match[bytes]:
        while True:
            found = pattern.match(self.buffer, self.position)
            if found is not None:
                return found
            error = _ERROR.match(self.buffer, self.position)
            if error is not None:
                raise KeyferryError(f"The server refused {subject}: {error[1].decode(errors='replace')}")
            self._receive(1)

    def _receive(self, wanted: int) -> None:
        """Have at least I(wanted) bytes from C(position) on; what lies before it is gone then, and C(position) is 0."""
        del self.buffer[: self.position]
        self.position = 0
        while True:
            data = self.wire.recv(max(_RECEIVE_BYTES, min(wanted - len(self.buffer), _STREAM_BYTES)))
            if not data:
                raise ConnectionError("the server closed the connection in the middle of the dump")
            self.buffer += data
            if len(self.buffer) >= wanted:
                return
