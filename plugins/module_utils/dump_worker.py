# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads one part of the keyspace over a connection of its own."""

from __future__ import annotations

import collections
import contextlib
import itertools
import threading
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import resp
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import DumpWriter
from ansible_collections.keyferry.redis.plugins.module_utils.dump_forms import (
    RESTORE,
    Form,
    restore,
    set_around,
    set_string,
)
from ansible_collections.keyferry.redis.plugins.module_utils.dump_wire import (
    HAS_PEXPIRETIME,
    STREAM_BYTES,
    Payloads,
    Question,
    Replies,
    Strings,
)
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.pace import Pace
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import FOOTER_BYTES
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_types import STRING
from ansible_collections.keyferry.redis.plugins.module_utils.server import (
    ConnectionLost,
    OtherProcess,
    Server,
    TemporaryRefusal,
)
from ansible_collections.keyferry.redis.plugins.module_utils.spool import Spool

# Where a client can say that its reading is no use of a key.
_HAS_NO_TOUCH = (7, 2)
# What one batch should bring at most: two of them are under way.
_BATCH_BYTES = 4 << 20
# Of the first keys, whose values may be of any size, so few are asked about at first, and then more and more: what a
# server has to say and cannot yet takes the memory of its data.
_FIRST_KEYS = 2
_MORE_KEYS = 2
# Written in pieces of about this size, so that a batch of large values is never held whole.
_WRITE_BYTES = 1 << 20
# What is read in one MULTI, in which the server serves nobody else: some 200 microseconds at most.
_MOST_TOGETHER = 32
_FIRST_TOGETHER = 4
_TOGETHER_BYTES = 128 << 10
# How long to wait after each time in a row that a connection was lost, before the next one is made.
RETRY_DELAYS_S: tuple[float, ...] = (0.1, 0.3, 1, 3, 5)
_CURSORS = "and to it the cursors of the one that the dump began with mean nothing"
_NO_BALANCER = "If the address is one of several servers (a reader endpoint), name one of them"

_NO_TOUCH = resp.command("CLIENT", "NO-TOUCH", "ON")
_READONLY = resp.command("READONLY")


class Source(t.NamedTuple):
    """What to read: database I(db) of I(server), the keys that match I(match) (all without it).

    I(workers) is None where the round trip to the server is to decide. I(eviction) is whether to keep when, or how
    often, a key was used, I(functions) whether to take the server's functions along.
    """

    server: Server
    db: int
    match: bytes | None = None
    batch_size: int = 1000
    workers: int | None = None
    max_keys_per_second: int | None = None
    max_latency_ms: float | None = None
    form: Form = RESTORE
    eviction: bool = False
    functions: bool = False


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


def version_of(footer: bytes | bytearray) -> int:
    """Give back the RDB version that the footer of a payload says."""
    return int.from_bytes(footer[:2], "little")


class _Seam:
    """The first keys of a part, which the worker of the part before may get too."""

    def __init__(self) -> None:
        self.known = threading.Event()
        self.keys: frozenset[bytes] = frozenset()


class Run:
    """What the workers of one dump share."""

    def __init__(
        self, source: Source, writer: DumpWriter, progress: Progress, pace: t.Callable[[threading.Event], Pace]
    ) -> None:
        server = source.server
        self.source = source
        self.writer = writer
        self.progress = progress
        # In cluster mode the low bits of a cursor name a slot, so there the keyspace is one part; and the keys of one
        # MULTI must be in one slot.
        is_cluster = server.is_cluster()
        workers = server.connections_wanted() if source.workers is None else source.workers
        parts = 1 if is_cluster else 1 << (workers - 1).bit_length()
        self.most_together = 1 if is_cluster else _MOST_TOGETHER
        self.seams = [_Seam() for _part in range(parts)]
        self.failed = threading.Event()
        self.failure: BaseException | None = None
        self.pace = pace(self.failed)
        version = server.version()
        self.payloads = Payloads(version, _access_name(server) if source.eviction else None)
        self.strings = _strings_of(source)
        # In cluster mode a replica sends a client to its primary otherwise.
        self.wishes = [_NO_TOUCH] * (version >= _HAS_NO_TOUCH) + [_READONLY] * is_cluster
        # Cursors of one server process mean nothing to another one, whose tables are in another order.
        self.run_id = server.run_id()

    def fail(self, failure: BaseException) -> None:
        self.failure = self.failure or failure
        self.failed.set()


class _Batch:
    """Keys that the server was asked about, so many in one MULTI. The first C(done) of them are in the dump, but for
    the C(rest), which are to be asked about by DUMP.

    I(scanned) keys came by the same SCAN as these, and I(size) bytes of their values are in the dump by now.
    """

    def __init__(self, question: Question, keys: list[bytes], together: int, scanned: int, size: int = 0) -> None:
        self.question = question
        self.keys = keys
        self.together = together
        self.scanned = scanned
        self.size_before = self.size = size
        self.done = self.strings = 0
        self.rest: list[bytes] = []


class Worker:
    """Reads one part of the keyspace over a connection of its own, and over another one where that breaks."""

    def __init__(self, run: Run, part: int) -> None:
        self._run = run
        self._part = part
        self._largest_count = min(run.source.batch_size, run.pace.burst(len(run.seams)) or run.source.batch_size)
        self._count = self._largest_count
        questions: list[Question] = [run.payloads] if run.strings is None else [run.payloads, run.strings]
        self._together = dict.fromkeys(questions, min(_FIRST_TOGETHER, run.most_together))
        # What to ask about the keys of the next SCAN.
        self._question = questions[-1]
        # The cursor of the SCAN whose reply is the next one, None after the last of the part.
        self._cursor: int | None = part
        # The keys of the first SCAN that are not asked about yet, and about how many to ask next.
        self._unasked: list[bytes] = []
        self._few = _FIRST_KEYS
        self._is_measured = False
        # What was asked for and is not in the dump yet.
        self._owed: collections.deque[_Batch] = collections.deque()
        # What was made of the first of it, and is not written yet.
        self._out = _Pieces()
        # What went wrong since the dump last came further; the first of it tells most.
        self._trouble: list[KeyferryError] = []
        self.type_bytes: collections.Counter[int] = collections.Counter()
        self.expired = 0
        self.payload_version: int | None = None

    def run(self) -> None:
        try:
            while not self._is_done():
                self._read_over_one_connection()
        except BaseException as error:  # handed to the thread that waits
            self._run.fail(error)
        finally:
            self._run.seams[self._part].known.set()

    def _is_done(self) -> bool:
        return self._run.failed.is_set() or (self._cursor is None and not self._owed and not self._unasked)

    def _read_over_one_connection(self) -> None:
        """Read as far as the connection goes; one that breaks is waited for, and what it owed is asked for again."""
        source = self._run.source
        try:
            with source.server.connection(source.db, self._run.run_id) as wire:
                self._read(Replies(source.server, wire))
        except OtherProcess as error:
            # Behind an endpoint of several servers, the next connection may lead to the one that the others lead to.
            if self._cursor != self._part or self._owed:
                raise KeyferryError(f"{error.msg}, {_CURSORS}. Nothing is left of the dump; dump again") from None
            self._back_off(KeyferryError(f"{error.msg}, {_CURSORS}. {_NO_BALANCER}"))
        except (ConnectionLost, TemporaryRefusal) as error:
            if self._owed:
                # What had arrived of it is whole keys.
                self._write(self._owed[0], self._out)
            self._back_off(error)

    def _back_off(self, trouble: KeyferryError) -> None:
        self._trouble.append(trouble)
        if len(self._trouble) > len(RETRY_DELAYS_S):
            first = self._trouble[0]
            raise KeyferryError(
                f"{first.msg}. It was tried {len(RETRY_DELAYS_S)} times again, at last with: {trouble.msg}"
            ) from trouble
        self._run.failed.wait(RETRY_DELAYS_S[len(self._trouble) - 1])

    def _read(self, replies: Replies) -> None:
        """Keep two batches under way: while the server works on one, the one before is written.

        What is left of a batch is asked for when the next one is under way already, so it arrives after that.
        """
        for wish in self._run.wishes:
            # Who may not say so reads all the same.
            replies.send(wish)
            replies.line()
        for batch in self._owed:
            replies.send(self._request(batch))
        self._carry_all(replies)
        self._measure(replies)
        if self._cursor is not None:
            replies.send(self._scan(self._cursor))
        busy_since = time.monotonic()
        while self._cursor is not None and not self._run.failed.is_set():
            batch = self._scanned(replies)
            self._run.pace.wait(len(batch.keys), time.monotonic() - busy_since)
            busy_since = time.monotonic()
            if not self._is_measured:
                self._unasked = batch.keys
                self._measure(replies)
                if self._cursor is not None:
                    replies.send(self._scan(self._cursor))
                continue
            self._owed.append(batch)
            # The SCAN goes first, so that the next keys are known while the payloads of these still arrive.
            scan = b"" if self._cursor is None else self._scan(self._cursor)
            replies.send(scan + self._request(batch))
            while self._owed[0] is not batch and not self._run.failed.is_set():
                self._carry(replies)
        self._carry_all(replies)

    def _carry_all(self, replies: Replies) -> None:
        while self._owed and not self._run.failed.is_set():
            self._carry(replies)

    def _measure(self, replies: Replies) -> None:
        """Ask about the first keys, few at a time and more as their values are small."""
        while self._unasked and not self._run.failed.is_set():
            few, self._unasked = self._unasked[: self._few], self._unasked[self._few :]
            self._owed.append(_Batch(self._question, few, self._together[self._question], len(few)))
            replies.send(self._request(self._owed[-1]))
            self._carry_all(replies)
            self._few = min(_MORE_KEYS * self._few, self._count)
            self._is_measured = True

    def _scan(self, cursor: int) -> bytes:
        match = () if self._run.source.match is None else ("MATCH", self._run.source.match)
        return resp.command("SCAN", cursor, *match, "COUNT", self._count)

    def _request(self, batch: _Batch) -> bytes:
        return batch.question.about(batch.keys[batch.done :], batch.together)

    def _scanned(self, replies: Replies) -> _Batch:
        """Take the reply to a SCAN, and give back the keys that are this worker's to read."""
        cursor, keys = replies.scanned()
        seam = self._run.seams[self._part]
        if not seam.known.is_set():
            seam.keys = frozenset(keys)
            seam.known.set()
        is_last = cursor == 0 or cursor & (len(self._run.seams) - 1) != self._part
        self._cursor = None if is_last else cursor
        self._trouble.clear()
        mine = self._without_seam(keys) if is_last else keys
        return _Batch(self._question, mine, self._together[self._question], len(mine))

    def _without_seam(self, keys: list[bytes]) -> list[bytes]:
        """Give back the keys of the last SCAN less those of the next part, whose worker reads them too."""
        following = next_part(self._part, len(self._run.seams))
        if following == 0:
            return keys
        seam = self._run.seams[following]
        seam.known.wait()
        return [key for key in keys if key not in seam.keys]

    def _carry(self, replies: Replies) -> None:
        """Write the batch that is owed first, whose replies arrive now, and ask for the rest of it."""
        batch = self._owed[0]
        out = self._carry_strings if batch.question is self._run.strings else self._carry_payloads
        self._write(batch, out(replies, batch))
        self._owed.popleft()
        self._adapt(batch)
        if batch.rest:
            question = self._run.payloads
            self._owed.append(_Batch(question, batch.rest, self._together[question], batch.scanned, batch.size))
            replies.send(self._request(self._owed[-1]))

    def _carry_strings(self, replies: Replies, batch: _Batch) -> _Pieces:
        """Make the commands of the strings of a batch, and note which keys have values of other types."""
        streams = self._run.source.form.streams
        keys = batch.keys
        out = self._out = _Pieces()
        buffer = replies.buffer
        for start in range(batch.done, len(keys), batch.together):
            together = keys[start : start + batch.together]
            replies.begin(batch.question, together)
            ttls = replies.ttls(together)
            position = replies.position
            for key, ttl in zip(together, ttls):
                line = buffer.find(b"\r\n", position)
                length = int(buffer[position + 1 : line]) if line >= 0 else 0
                if line < 0 or line + 4 + length > len(buffer):
                    replies.position = position
                    length = replies.length(key, streams)
                    position = replies.position
                    line = buffer.index(b"\r\n", position)
                if length > STREAM_BYTES and streams:
                    replies.position = position
                    out = self._write(batch, out)
                    self._carry_large_string(replies, batch, (key, ttl), length)
                    position = replies.position
                    continue
                if length < 0:
                    out.seen += 1
                    position = line + 2
                    if ttl == b"-2":
                        out.expired += 1
                    else:
                        out.rest.append(key)
                    continue
                position = line + 4 + length
                out.pieces += set_string(key, ttl, buffer[line + 2 : position - 2])
                out.strings += 1
                out.size += length
                if out.size >= _WRITE_BYTES:
                    out = self._write(batch, out)
            replies.position = position
        return out

    def _carry_payloads(self, replies: Replies, batch: _Batch) -> _Pieces:
        """Make the commands of a batch of any types."""
        question, form = self._run.payloads, self._run.source.form
        read, ttl_of, access_of, encode = question.reply.match, question.ttl_of, question.access_of, form.encode
        keys = batch.keys
        out = self._out = _Pieces()
        buffer = replies.buffer
        for start in range(batch.done, len(keys), batch.together):
            together = keys[start : start + batch.together]
            replies.begin(question, together)
            position = replies.position
            for key in together:
                head = read(buffer, position)
                if head is None or head.end() + int(head["length"]) + 2 > len(buffer):
                    replies.position = position
                    head = replies.of_key(question, key, form.streams)
                length = int(head["length"])
                ttl = ttl_of(head)
                payload = head.end()
                begins = head.start("length") - 1
                if length > STREAM_BYTES and form.streams:
                    replies.position = begins
                    access = access_of(head)
                    out = self._write(batch, out)
                    self._carry_large(replies, batch, (key, ttl, access), length)
                    position = replies.position
                    continue
                out.seen += 1
                # What does not exist has the length -1, and neither payload nor CRLF after it.
                position = payload + length + 2 if length >= 0 else payload
                if length < 0 or ttl == b"-2":
                    out.expired += 1
                    continue
                more, count = encode(key, ttl, buffer[begins:position], access_of(head))
                out.pieces += more
                out.commands += count
                out.types.append(buffer[payload])
                if self.payload_version is None:
                    end = position - len(resp.CRLF)
                    self._note_version(buffer[end - FOOTER_BYTES : end])
                out.size += length
                if out.size >= _WRITE_BYTES:
                    out = self._write(batch, out)
            replies.position = position
        return out

    def _carry_large(self, replies: Replies, batch: _Batch, key: tuple[bytes, bytes, bytes], length: int) -> None:
        """Write one RESTORE whose payload is too large to hold."""
        name, ttl, access = key
        with self._spooled(replies, batch, length) as spool:
            if ttl == b"-2":
                self.expired += 1
                return
            before, after = restore(name, ttl, access)
            head, end = before + b"$%d\r\n" % length, resp.CRLF + after
            self._run.writer.add_parts(itertools.chain((head,), spool.pieces(), (end,)), 1, 1)
            self.type_bytes[spool.read(0, 1)[0]] += 1
            self._note_version(spool.read(length - FOOTER_BYTES, FOOTER_BYTES))

    def _carry_large_string(self, replies: Replies, batch: _Batch, key: tuple[bytes, bytes], length: int) -> None:
        """Write the command of a string that is too large to hold."""
        before, after = set_around(*key, length)
        with self._spooled(replies, batch, length) as spool:
            self._run.writer.add_parts(itertools.chain(before, spool.pieces(), after), 1, 1)
        self.type_bytes[STRING] += 1

    @contextlib.contextmanager
    def _spooled(self, replies: Replies, batch: _Batch, length: int) -> t.Iterator[Spool]:
        """Give back the value of I(length) bytes that arrives now, on the disk.

        It waits there until it is whole, so that no half of it is in the dump when the connection breaks.
        """
        with Spool(self._run.writer.dest) as spool:
            for piece in replies.stream(length):
                spool.write(piece)
            yield spool
            batch.done += 1
            batch.size += length
            self._trouble.clear()

    def _note_version(self, footer: bytes) -> None:
        self.payload_version = version_of(footer)

    def _write(self, batch: _Batch, out: _Pieces) -> _Pieces:
        """Write what was made of keys of a batch, which are then not asked for again; give back room for more."""
        if out.pieces:
            self._run.writer.add(b"".join(out.pieces), len(out.types) + out.strings, out.commands + out.strings)
            self._run.progress(self._run.writer.keys, self._run.writer.bytes)
            self._trouble.clear()
        self.type_bytes.update(out.types)
        if out.strings:
            self.type_bytes[STRING] += out.strings
        self.expired += out.expired
        batch.done += out.seen + out.strings
        batch.rest += out.rest
        batch.size += out.size
        batch.strings += out.types.count(STRING) + out.strings
        self._out = _Pieces()
        return self._out

    def _adapt(self, batch: _Batch) -> None:
        """Ask for fewer keys at a time where they are large, so that a batch is not a flood, and MULTI no long wait.

        And ask for strings first where most keys are: elsewhere that is one question more.
        """
        keys = len(batch.keys) - len(batch.rest)
        if keys:
            fitting = _TOGETHER_BYTES * keys // max(batch.size - batch.size_before, 1)
            self._together[batch.question] = max(1, min(self._run.most_together, fitting))
        if batch.scanned and not batch.rest:
            self._count = max(1, min(self._largest_count, _BATCH_BYTES * batch.scanned // max(batch.size, 1)))
        if self._run.strings is not None and batch.scanned == len(batch.keys):
            self._question = self._run.strings if batch.strings * 2 >= batch.scanned else self._run.payloads


class _Pieces:
    """What was made of keys of a batch and is not written yet.

    I(strings) that came as they are, I(seen) other keys, those that have gone among them, and the I(rest), whose values
    are to be asked for by DUMP.
    """

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.rest: list[bytes] = []
        self.types = bytearray()
        self.commands = self.size = self.expired = self.seen = self.strings = 0


def _strings_of(source: Source) -> Strings | None:
    """Give back how to ask for strings, None where that is not possible or would not tell all that is wanted."""
    if source.eviction or source.server.version() < HAS_PEXPIRETIME:
        return None
    return Strings() if source.server.allows("MGET", "keyferry", db=source.db) else None


def _access_name(server: Server) -> str:
    """Give back what RESTORE and OBJECT call what the server keeps about the use of a key."""
    return "FREQ" if "lfu" in str(server.info("memory").get("maxmemory_policy")) else "IDLETIME"
