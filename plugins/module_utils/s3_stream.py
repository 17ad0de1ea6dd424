# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An RDB in S3, walked as it arrives: nothing on the disk, and little in memory.

It is a file in memory, sparse and as large as the object. Threads bring its parts to their places, some ahead of the
walk; walkers, hash and upload see one mapping, as of a file; what is done with becomes a hole again. So it is only the
parts between hole and hole that take memory.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import typing as t

# rdb_extract says what is missing before any of this runs.
with contextlib.suppress(ImportError):
    import urllib3.exceptions
    from botocore.exceptions import BotoCoreError, ClientError

from ansible_collections.keyferry.redis.plugins.module_utils import rdb_types, rdb_walk, s3
from ansible_collections.keyferry.redis.plugins.module_utils.aws import aws_errors, error_code
from ansible_collections.keyferry.redis.plugins.module_utils.background import Background
from ansible_collections.keyferry.redis.plugins.module_utils.ending import LOOK_S, raise_if_ended
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_pass import INDEX, RdbFile, Span, require_size

PARALLEL = 8
# A multiple of the page size, so that a part can be made a hole.
PART = 3 << 20
# Parts that are in memory at a time: those on their way, and some that wait for the walk.
WINDOW = PARALLEL + 2
TRIES = 6
LONGEST_PAUSE = 5.0
_READ_BYTES = 256 << 10
# Of the block that a value too large for the window is walked in.
_LOOK_BYTES = 4 << 20


class _Object:
    """An object, read by ranges; what takes its place meanwhile is noticed by its ETag.

    Not by its version: to read that takes a right of its own (s3:GetObjectVersion).
    """

    def __init__(self, client: t.Any, bucket: str, key: str) -> None:
        self.url = f"s3://{bucket}/{key}"
        self.bucket, self.key = bucket, key
        self._client = client
        found = s3.head(client, self.bucket, self.key)
        if found is None:
            raise KeyferryError(f"There is no object {self.key} in the bucket {self.bucket}")
        self.size: int = found["ContentLength"]
        self.etag: str = found["ETag"]
        self.closing = threading.Event()

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill I(view) with the bytes at I(offset). What breaks off is gone on with, a few times."""
        done = tries = 0
        while done < len(view) and not self.closing.is_set():
            problem: Exception | str
            try:
                for block in self._blocks(offset + done, offset + len(view)):
                    view[done : done + len(block)] = block
                    done += len(block)
                problem = f"only {offset + done} bytes came, instead of {offset + len(view)}"
            except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
                problem = error
            except ClientError as error:
                if not _is_passing(error):
                    raise self._refusal(error) from None
                problem = error
            if done < len(view):
                tries += 1
                if tries == TRIES:
                    raise KeyferryError(
                        f"Could not read {self.url} at byte {offset + done}, tried {TRIES} times: {problem}",
                        offset=offset + done,
                    )
                self.closing.wait(min(0.1 * 2**tries, LONGEST_PAUSE))

    def _blocks(self, start: int, end: int) -> t.Iterator[bytes]:
        """Give the bytes of one reply, and not more than were asked for."""
        span = f"bytes={start}-{end - 1}"
        reply = self._client.get_object(Bucket=self.bucket, Key=self.key, Range=span, IfMatch=self.etag)
        with contextlib.closing(reply["Body"]) as body:
            if not reply.get("ContentRange", "").startswith(f"bytes {start}-"):
                raise OSError(f"asked for {span}, S3 answered with {reply.get('ContentRange') or 'no range'}")
            left = end - start
            while left and (block := body.read(min(left, _READ_BYTES))):
                left -= len(block)
                yield block

    def _refusal(self, error: ClientError) -> KeyferryError:
        if error_code(error) in ("PreconditionFailed", "412", "NoSuchKey", "NoSuchVersion"):
            return KeyferryError(
                f"{self.url} was replaced or deleted while it was read. Nothing was written; run it again"
            )
        try:
            with aws_errors(f"read {self.url}"):
                raise error
        except KeyferryError as told:
            return told


def _is_passing(error: ClientError) -> bool:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 or error_code(error) in ("SlowDown", "RequestTimeout", "Throttling")


class _Shortage(KeyferryError):
    """A record goes on beyond what is there by now."""


class _Walker(rdb_walk.Walker):
    """Walks a window of the source, which ends where the bytes that are there do."""

    whole = 0

    def truncated(self, pos: int) -> KeyferryError:
        error = super().truncated(pos)
        return error if len(self.buf) == self.whole else _Shortage(error.msg, **error.result)


class _Looks:
    """The object as a buffer that fetches what is looked at, block by block; slow, and for one walk forward."""

    def __init__(self, remote: _Object) -> None:
        self._remote = remote
        self._start = 0
        self._block = b""

    def __len__(self) -> int:
        return self._remote.size

    def __getitem__(self, at: t.Any) -> t.Any:
        if isinstance(at, slice):
            start, stop, _step = at.indices(len(self))
            return b"".join(self._bytes(start, stop))
        offset = at - self._start
        if 0 <= offset < len(self._block):
            return self._block[offset]
        if at >= len(self):
            raise IndexError(at)
        self._fetch(at)
        return self._block[0]

    def _bytes(self, start: int, stop: int) -> t.Iterator[bytes]:
        while start < stop:
            if not 0 <= start - self._start < len(self._block):
                self._fetch(start)
            found = self._block[start - self._start : stop - self._start]
            yield found
            start += len(found)

    def _fetch(self, at: int) -> None:
        block = bytearray(min(_LOOK_BYTES, len(self) - at))
        self._remote.read_into(memoryview(block), at)
        self._start, self._block = at, bytes(block)


class S3Source(RdbFile):
    """An RDB that is an object of S3, in memory in parts, and only while they are needed."""

    is_stream = True

    def __init__(self, client: t.Any, bucket: str, key: str) -> None:
        self._object = _Object(client, bucket, key)
        self.path = self._object.url
        self.size = self._object.size
        require_size(self.path, self.size)
        self.chunk = PART
        self.chunks = -(-self.size // self.chunk)
        # What waits for room, or for parts that wait for it, must not wait for what has failed.
        self.later = Background(failed=self._fail)
        self._fd = os.memfd_create("rdb")
        os.ftruncate(self._fd, self.size)
        self.map = mmap.mmap(self._fd, self.size)
        self.view = memoryview(self.map)
        # Indices of the parts that came, to the processes that walk them.
        self._arrivals: tuple[int, int] | None = None
        self._changed = threading.Condition()
        # Parts: the next to fetch, the first that is not there, the first that is no hole, and who came ahead.
        self._next = self._there = self._kept = 0
        self._ahead: set[int] = set()
        self._problem: BaseException | None = None
        self._threads: list[threading.Thread] = []
        try:
            self._bring_next()
            self.form = rdb_types.read_header(self.map)
            self.walker = _Walker(self.map, self.form)
            self.walker.whole = self.size
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        self._object.closing.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(LONGEST_PAUSE)
        if any(thread.is_alive() for thread in self._threads):
            # One that hangs on the network still has the mapping; all ends with the process.
            return
        for end in self._arrivals or ():
            os.close(end)
        self.view.release()
        self.map.close()
        os.close(self._fd)

    def is_file(self, found: os.stat_result) -> bool:
        return False

    def is_object(self, bucket: str, key: str) -> bool:
        return (bucket, key) == (self._object.bucket, self._object.key)

    def check_unchanged(self) -> None:
        """Nothing to do: each part was asked for under the same ETag."""

    # -- parts as they come --------------------------------------------------------------------------------------------

    def _bring_next(self) -> bool:
        """Fetch the next part here and now; False if there is none."""
        index, self._next = self._next, self._next + 1
        if index >= self.chunks:
            return False
        self._bring(index)
        return True

    def _bring(self, index: int) -> None:
        start, end = index * self.chunk, min((index + 1) * self.chunk, self.size)
        with self.view[start:end] as place:
            self._object.read_into(place, start)
        with self._changed:
            self._ahead.add(index)
            while self._there in self._ahead:
                self._ahead.remove(self._there)
                self._there += 1
            self._changed.notify_all()
        if self._arrivals:
            # There always is room, unless nobody reads any more.
            with contextlib.suppress(BlockingIOError):
                os.write(self._arrivals[1], INDEX.pack(index))

    def _bring_all(self) -> None:
        try:
            while (index := self._take_next()) is not None:
                self._bring(index)
        except BaseException as problem:
            self._fail(problem)

    def _fail(self, problem: BaseException) -> None:
        with self._changed:
            self._problem = self._problem or problem
            self._changed.notify_all()

    def _take_next(self) -> int | None:
        """Wait for room, and take the index of a part to fetch; None when there is no more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_done() or self._next < self._kept + WINDOW)
            if self._is_done():
                return None
            self._next += 1
            return self._next - 1

    def _is_done(self) -> bool:
        return self._next >= self.chunks or self._problem is not None or self._object.closing.is_set()

    def learn_head(self) -> None:
        self.walker.buf = self._window(self._end_there())
        try:
            self.walker.head()
        except _Shortage:
            if not self._bring_next():
                raise
            self.learn_head()

    def chunks_to_walk(self) -> int:
        self._arrivals = os.pipe()
        os.set_blocking(self._arrivals[1], False)
        for index in range(self._there):
            os.write(self._arrivals[1], INDEX.pack(index))
        return os.dup(self._arrivals[0])

    def in_worker(self) -> None:
        # So that the workers end when the parent does, even if it is killed.
        os.close(t.cast("tuple[int, int]", self._arrivals)[1])

    def begin(self) -> None:
        for _unused in range(min(PARALLEL, self.chunks - self._next)):
            thread = threading.Thread(target=self._bring_all, daemon=True)
            thread.start()
            self._threads.append(thread)

    def wait_for(self, end: int) -> None:
        with self._changed:
            while not self._changed.wait_for(lambda: self._end_there() >= end or self._problem, LOOK_S):
                raise_if_ended()
            if self._end_there() < end:
                raise t.cast("BaseException", self._problem)

    def _end_there(self) -> int:
        return min(self._there * self.chunk, self.size)

    def release(self, end: int) -> None:
        """Give the memory of all parts before I(end) back, and let others come."""
        if end // self.chunk > self._kept:
            self.later.do(lambda: self._punch(end // self.chunk))

    def _punch(self, index: int) -> None:
        if index <= self._kept:
            return
        start = self._kept * self.chunk
        self.map.madvise(mmap.MADV_REMOVE, start, index * self.chunk - start)
        with self._changed:
            self._kept = index
            self._changed.notify_all()

    # -- walks ---------------------------------------------------------------------------------------------------------

    def _window(self, end: int) -> mmap.mmap:
        """The source up to I(end), beyond which there is nothing to be read yet."""
        return mmap.mmap(self._fd, end, prot=mmap.PROT_READ)

    def _items(self, start: int, stop: int) -> t.Iterator[rdb_walk.Item]:
        with contextlib.suppress(_Shortage):
            yield from self.walker.items(start, stop)

    def guessed_span(self, index: int) -> Span | None:
        self.walker.buf = self._window(self.end_of_chunk(index))
        span = super().guessed_span(index)
        # What stopped it may be the end of the chunk: the parent, who has what follows, walks on from here.
        return span._replace(problem=None) if span and span.items else None

    def spans(self, start: int, stop: int) -> t.Iterator[Span]:
        while start < stop:
            there = self._end_there()
            self.walker.buf = self._window(there)
            span = self.span(start, stop)
            if span.items or span.problem:
                yield span
                start = span.end
            elif there < min((start // self.chunk + WINDOW) * self.chunk, self.size):
                self.wait_for(there + 1)
            else:
                for span in self._large(start):
                    yield span
                    start = span.end

    def _large(self, start: int) -> t.Iterator[Span]:
        """What begins at I(start) and is larger than the window: walk it by looks, then take it piece by piece."""
        walker = _Walker(_Looks(self._object), self.form)
        walker.whole = self.size
        try:
            item = next(walker.items(start, start + 1), None)
        except KeyferryError as error:
            yield Span(start, start, [], (error.msg, error.result.get("offset")))
            return
        if item.kind != rdb_walk.RECORDS:
            problem = f"What begins at byte {start} is no key, and has {item.end - start} bytes: too much to be kept"
            yield Span(start, start, [], (f"{problem}. Fetch the file, and give its path as src", start))
            return
        for begin in range(start, item.end, self.chunk):
            end = min(begin + self.chunk, item.end)
            self.wait_for(end)
            piece = rdb_walk.Item(rdb_walk.RECORDS, begin, end, item.value if end == item.end else rdb_walk.Tally())
            yield Span(begin, end, [(piece, self._crc(begin, end))])
