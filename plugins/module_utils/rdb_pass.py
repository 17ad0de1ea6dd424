# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One checked pass over a whole RDB, by several processes.

Processes walk the file chunk by chunk. Each begins its chunk at a guess (rdb_walk.Walker.guess) and ends at the first
record beyond it. The parent takes the chunks in order, and believes one only if the walk before it ended exactly where
it begins; else it walks that chunk itself. So a wrong guess costs time and never a wrong byte. The parent does what is
to be done with what is confirmed while the others walk on.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import multiprocessing.connection
import os
import struct
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import rdb_bytes, rdb_types, rdb_walk
from ansible_collections.keyferry.redis.plugins.module_utils.background import Background
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import combine, crc64
from ansible_collections.keyferry.redis.plugins.module_utils.ending import end_forked, raise_if_ended
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress

CHUNK = 8 << 20

# Said of the server that wrote the file, and wrong of any other: where its replicas were, and the database they had
# selected (redis, src/rdb.c, rdbSaveInfoAuxFields).
_STALE_AUX = (b"repl-id", b"repl-offset", b"repl-stream-db")

# Large enough that a thread which hashes or writes seldom needs the interpreter's lock, small enough to stay in memory.
_BLOCK = 4 << 20
# The parent, which hashes and writes, cannot follow more.
_ENOUGH_WORKERS = 4
INDEX = struct.Struct("<I")


class Wanted(t.NamedTuple):
    """One database to cut out, where to, and its index there."""

    db: int
    dest: str
    target_db: int = 0


class Span(t.NamedTuple):
    """What a walk over one chunk found: its items, each with its CRC-64, and the offset where it ended.

    I(problem) is what stopped the walk, as text and byte offset.
    """

    start: int
    end: int
    items: list[tuple[rdb_walk.Item, int]]
    problem: tuple[str, int | None] | None = None


class RdbFile:
    """An RDB file, mapped into memory. Pages are given back as they are done with, so that few stay resident."""

    # Whether the bytes come but once, so that what is to be written of them is written at once.
    is_stream = False

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # Open for as long as this is in use: close() ends it.
            self._file = open(path, "rb")  # noqa: SIM115
        except OSError as error:
            raise KeyferryError(f"Cannot read the RDB file {path}: {error.strerror}") from error
        self._stat = os.fstat(self._file.fileno())
        self.size = self._stat.st_size
        require_size(path, self.size)
        self.map = mmap.mmap(self._file.fileno(), self.size, prot=mmap.PROT_READ)
        self.view = memoryview(self.map)
        self.form = rdb_types.read_header(self.map)
        self.walker = rdb_walk.Walker(self.map, self.form)
        self.chunk = CHUNK
        self.chunks = -(-self.size // self.chunk)
        # What is done with confirmed bytes, beside the walk.
        self.later = Background()

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self.view.release()
        self.map.close()
        self._file.close()

    def learn_head(self) -> None:
        """Read what comes before the first database, ahead of all other walks."""
        self.walker.head()

    def chunks_to_walk(self) -> int:
        """A file descriptor to read the indices of the chunks from, as they can be walked."""
        return shared_indices(self.chunks)

    def begin(self) -> None:
        """Let the bytes come, now that no process will be forked any more."""

    def in_worker(self) -> None:
        """Give up, in a process that was forked, what belongs to its parent."""

    def wait_for(self, end: int) -> None:
        """Wait until all bytes before I(end) are there."""

    def release(self, end: int) -> None:
        """Let go of what is before I(end), once all that was given to C(later) by now is done."""

    def is_file(self, found: os.stat_result) -> bool:
        """Whether these are the facts of the very file that is read."""
        return os.path.samestat(found, self._stat)

    def check_unchanged(self) -> None:
        now = os.stat(self.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._stat.st_size, self._stat.st_mtime_ns):
            raise KeyferryError(f"{self.path} was written to while it was read: let that end, then run this again")

    def blocks(self, start: int, end: int) -> t.Iterator[memoryview]:
        """Give the bytes of a range in blocks, each forgotten when the next is asked for."""
        for begin in range(start, end, _BLOCK):
            with self.view[begin : min(begin + _BLOCK, end)] as block:
                yield block
            self.forget(begin, min(begin + _BLOCK, end))

    def forget(self, start: int, end: int) -> None:
        """Let go of the pages of a range; they stay in the page cache."""
        begin = max(start // mmap.PAGESIZE, 0) * mmap.PAGESIZE
        if end > begin:
            self.map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def end_of_chunk(self, index: int) -> int:
        return min((index + 1) * self.chunk, self.size - rdb_bytes.CRC_BYTES)

    def span(self, start: int, stop: int) -> Span:
        """Walk from a record or opcode at I(start) to the first that begins at or after I(stop)."""
        items: list[tuple[rdb_walk.Item, int]] = []
        end = start
        try:
            for item in self._items(start, stop):
                items.append((item, self._crc(item.start, item.end)))
                end = item.end
        except KeyferryError as error:
            return Span(start, end, items, (error.msg, error.result.get("offset")))
        return Span(start, end, items)

    def _items(self, start: int, stop: int) -> t.Iterator[rdb_walk.Item]:
        return self.walker.items(start, stop)

    def spans(self, start: int, stop: int) -> t.Iterator[Span]:
        """Walk as span() does, in as many spans as it takes."""
        yield self.span(start, stop)

    def guessed_span(self, index: int) -> Span | None:
        """Walk one chunk from where its first record seems to be; None if nothing in it looks like one."""
        begin, end = index * self.chunk, self.end_of_chunk(index)
        os.posix_fadvise(self.fileno(), begin, self.chunk, os.POSIX_FADV_WILLNEED)
        start = rdb_bytes.HEADER_BYTES if index == 0 else self.walker.guess(begin, end)
        return self.span(start, end) if start is not None and start < end else None

    def _crc(self, start: int, end: int) -> int:
        crc = 0
        for block in self.blocks(start, end):
            crc = crc64(block, crc)
        return crc


def require_size(name: str, size: int) -> None:
    """Raise KeyferryError where so few bytes are no RDB."""
    if size < rdb_bytes.HEADER_BYTES + 1 + rdb_bytes.CRC_BYTES:
        raise KeyferryError(f"{name} is not a complete RDB file: it has only {size} bytes")


def shared_indices(count: int) -> int:
    """A file descriptor from which forked processes read the numbers from 0 to I(count) - 1, each of them once."""
    indices = os.memfd_create("indices")
    os.write(indices, b"".join(map(INDEX.pack, range(count))))
    os.lseek(indices, 0, os.SEEK_SET)
    return indices


def next_index(indices: int) -> int | None:
    """The next of these, None after the last."""
    taken = os.read(indices, INDEX.size)
    return INDEX.unpack(taken)[0] if taken else None


def crew_size(workers: int | None) -> int:
    """Give back the number of processes: I(workers), or one a core without it."""
    cores = min(len(os.sched_getaffinity(0)), _ENOUGH_WORKERS)
    return max(1, cores if workers is None else workers)


class _Crew:
    """Processes that walk the chunks of a source, in no order; each reads the next index from what they all share."""

    def __init__(self, source: RdbFile, workers: int) -> None:
        context = multiprocessing.get_context("fork")
        indices = source.chunks_to_walk()
        self._processes = []
        self._results: list[multiprocessing.connection.Connection] = []
        self._spans: dict[int, Span | None] = {}
        for _unused in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            self._results.append(receiver)
            arguments = (source, indices, sender, self._results)
            process = context.Process(target=_walk_chunks, args=arguments, daemon=True)
            process.start()
            sender.close()
            self._processes.append(process)
        os.close(indices)

    def take(self, index: int) -> Span | None:
        """Wait for a chunk; None where nobody found a beginning in it, or died over it."""
        while index not in self._spans and self._results:
            for result in multiprocessing.connection.wait(self._results):
                self._receive(t.cast("multiprocessing.connection.Connection", result))
        return self._spans.pop(index, None)

    def _receive(self, result: multiprocessing.connection.Connection) -> None:
        try:
            index, span = result.recv()
        except EOFError:
            self._results.remove(result)
            return
        self._spans[index] = span

    def dismiss(self) -> None:
        for process in self._processes:
            end_forked(process)
        for result in self._results:
            result.close()


def _walk_chunks(
    source: RdbFile,
    indices: int,
    sender: multiprocessing.connection.Connection,
    receivers: list[multiprocessing.connection.Connection],
) -> None:
    # So that only the parent has them: a pipe whose reader is killed then ends what writes to it.
    for receiver in receivers:
        receiver.close()
    source.in_worker()
    with contextlib.suppress(BrokenPipeError):
        while (index := next_index(indices)) is not None:
            sender.send((index, source.guessed_span(index)))


def _confirmed_spans(source: RdbFile, workers: int) -> t.Iterator[Span]:
    """Walk the whole file: spans in order, each beginning where the one before it ended."""
    try:
        source.learn_head()
    except KeyferryError as error:
        raise KeyferryError(f"{source.path}: {error.msg}", **error.result) from None
    workers = min(workers, source.chunks)
    crew = _Crew(source, workers) if workers > 1 else None
    pos, last, ended = rdb_bytes.HEADER_BYTES, source.size - rdb_bytes.CRC_BYTES, False
    try:
        source.begin()
        while pos < last and not ended:
            for span in _spans_of_chunk(source, crew, pos):
                if span.problem:
                    raise KeyferryError(f"{source.path}: {span.problem[0]}", offset=span.problem[1])
                yield span
                pos = span.end
                if ended := span.items[-1][0].kind == rdb_types.EOF:
                    break
    finally:
        if crew:
            crew.dismiss()
    if not ended:
        raise KeyferryError(
            f"{source.path} is cut short: expected the end of an RDB (0xff) before the checksum at byte {pos}. Fetch it"
            " again",
            offset=pos,
        )
    if pos != last:
        raise KeyferryError(
            f"{source.path}: expected a checksum of {rdb_bytes.CRC_BYTES} bytes after the end of the RDB at byte {pos},"
            f" found {source.size - pos} bytes: two files in one, or a file cut short. Fetch it again",
            offset=pos,
        )


def _spans_of_chunk(source: RdbFile, crew: _Crew | None, pos: int) -> t.Iterator[Span]:
    """What leads from I(pos) to the end of its chunk: the crew's span if it can be reached, else an own walk."""
    index = pos // source.chunk
    stop = source.end_of_chunk(index)
    source.wait_for(stop)
    span = crew.take(index) if crew else None
    if span and pos < span.start:
        for gap in source.spans(pos, span.start):
            yield gap
            pos = gap.end
    if span and pos == span.start:
        yield span
        pos = span.end
    if pos < stop:
        yield from source.spans(pos, stop)


class Checksum:
    """The CRC-64 of parts as they are joined."""

    def __init__(self) -> None:
        self.value = 0
        self.bytes = 0

    def add(self, data: bytes) -> None:
        self.join(crc64(data), len(data))

    def join(self, crc: int, size: int) -> None:
        self.value = combine(self.value, crc, size) if self.bytes else crc
        self.bytes += size


class Taker(t.Protocol):
    """What a pass gives one database to, as it comes."""

    wanted: Wanted

    def begin(self, header: bytes) -> None: ...

    def append(self, item: rdb_walk.Item, crc: int) -> None: ...

    def end(self, tail: bytes) -> None: ...


class Pass:
    """One pass over a source: what each database holds, and the cuts of those that are wanted.

    I(may_be_empty) is whether a wanted database need not be there. C(head) is what comes before all databases and is
    kept.
    """

    def __init__(
        self, source: RdbFile, cuts: t.Sequence[Taker], keep_functions: bool, may_be_empty: bool = False
    ) -> None:
        self.source = source
        self.cuts = cuts
        self.databases: dict[int, rdb_walk.Tally] = {}
        self.head = [bytes(source.map[: rdb_bytes.HEADER_BYTES])]
        self._sizes: dict[int, tuple[int, int]] = {}
        self._keep_functions = keep_functions
        self._may_be_empty = may_be_empty
        self._db: int | None = None
        self._tail: list[bytes] = []

    def run(self, workers: int, progress: Progress) -> None:
        checksum = Checksum()
        checksum.add(self.head[0])
        for span in _confirmed_spans(self.source, workers):
            raise_if_ended()
            for item, crc in span.items:
                checksum.join(crc, item.end - item.start)
                self._take(item, crc)
            self.source.release(span.end)
            progress(span.end, span.end)
        self._check(checksum.value)
        progress(self.source.size, self.source.size)
        for cut in self.cuts:
            if cut.wanted.db not in self.databases and not self._may_be_empty:
                found = ", ".join(map(str, sorted(self.databases))) or "none"
                raise KeyferryError(
                    f"{self.source.path} has no keys in database {cut.wanted.db}; databases with keys: {found}. An RDB"
                    " does not list empty databases: is this the right snapshot, and db the right number?"
                )
            cut.end(b"".join(self._tail))
        self.source.check_unchanged()

    def _check(self, computed: int) -> None:
        """Compare with the file's own checksum; zero says that the server was told not to compute one."""
        begin = self.source.size - rdb_bytes.CRC_BYTES
        # It may begin behind the last part that was waited for.
        self.source.wait_for(self.source.size)
        stored = int.from_bytes(self.source.map[begin:], "little")
        if stored and stored != computed:
            raise KeyferryError(
                f"{self.source.path} is damaged: the checksum at byte {begin} is {stored:016x}, the bytes before it"
                f" have {computed:016x}. Nothing was written; fetch the file again",
                offset=begin,
            )

    def _take(self, item: rdb_walk.Item, crc: int) -> None:
        if item.kind == rdb_walk.RECORDS:
            self._take_records(item, crc)
        elif item.kind == rdb_types.SELECTDB:
            self._db = item.value
        elif item.kind == rdb_types.RESIZEDB and self._db is not None:
            self._sizes[self._db] = item.value
        elif self._is_kept(item):
            (self.head if self._db is None else self._tail).append(bytes(self.source.map[item.start : item.end]))

    def _is_kept(self, item: rdb_walk.Item) -> bool:
        if item.kind == rdb_types.AUX:
            return item.value[0] not in _STALE_AUX
        if item.kind == rdb_types.FUNCTION2:
            return self._keep_functions
        if item.kind == rdb_types.HASH_TEMPLATE:
            return self.source.form.magic == "REDIS"
        return item.kind == rdb_types.MODULE_AUX

    def _take_records(self, item: rdb_walk.Item, crc: int) -> None:
        if self._db is None:
            raise KeyferryError(
                f"{self.source.path}: expected a SELECTDB before the first key, found a key at byte {item.start}",
                offset=item.start,
            )
        is_first = self._db not in self.databases
        self.databases.setdefault(self._db, rdb_walk.Tally()).add(item.value)
        for cut in self.cuts:
            if cut.wanted.db != self._db:
                continue
            if is_first:
                cut.begin(self._header(cut.wanted.target_db))
            cut.append(item, crc)

    def _header(self, target_db: int) -> bytes:
        """Magic, version, AUX fields and functions as they are, then the database under its new index."""
        header = [*self.head, bytes([rdb_types.SELECTDB]), rdb_bytes.write_length(target_db)]
        if self._db in self._sizes:
            header += [bytes([rdb_types.RESIZEDB]), *map(rdb_bytes.write_length, self._sizes[self._db])]
        return b"".join(header)
