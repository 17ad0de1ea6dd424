# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Cuts databases out of an RDB into RDBs of their own, byte for byte, with no server.

The parent hashes and writes what is confirmed while the others walk on (rdb_pass). Source and destinations are files
here, and objects of S3 in extract_s3.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import typing as t
from pathlib import Path

from ansible_collections.keyferry.redis.plugins.module_utils import rdb_bytes, rdb_types, rdb_walk
from ansible_collections.keyferry.redis.plugins.module_utils.ending import ended_by_signals, raise_if_ended
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.part_file import PartFile, free_bytes
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress, silent
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_pass import Checksum, Pass, RdbFile, Wanted, crew_size

_READ_BYTES = 4 << 20
_COPY_BYTES = 64 << 20


class Sink(t.Protocol):
    """What a new RDB is written to. It is visible under its name when commit() has ended, or not at all."""

    def write(self, data: bytes) -> None: ...

    def copy(self, source: RdbFile, start: int, end: int) -> None:
        """Append a range of the source."""

    def commit(self) -> None: ...

    def discard(self) -> None:
        """Leave nothing behind; nothing happens after commit()."""


class _FileSink(PartFile):
    """A new RDB on this host."""

    def copy(self, source: RdbFile, start: int, end: int) -> None:
        """Append a range of the source, which the kernel copies: half the CPU time of writing from the mapping."""
        for begin in range(start, end, _COPY_BYTES):
            size = min(begin + _COPY_BYTES, end) - begin
            self.put(
                size,
                lambda done, begin=begin, size=size: os.sendfile(self._fd, source.fileno(), begin + done, size - done),
            )


class Destination(t.Protocol):
    """Where a new RDB is to be: a path, or an object of S3. C(name) is what the user calls it."""

    name: str
    # The same for two names of one place.
    place: str

    def check(self, source: RdbFile) -> None:
        """Raise KeyferryError if it cannot be written, or is the source."""

    def exists(self) -> bool: ...

    def has_space(self, size: int) -> bool:
        """Whether so many bytes surely fit."""

    def holds(self, cut: Cut) -> bool:
        """Whether what is there already is what would be written."""

    def sink(self, most: int) -> Sink:
        """Begin to write; I(most) is a size in bytes that it will not pass."""


class _FileDestination:
    """A file of this host."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.place = os.path.realpath(name)

    def check(self, source: RdbFile) -> None:
        if os.path.exists(self.place) and source.is_file(os.stat(self.place)):
            raise KeyferryError(f"{self.name} is the source itself, which is only read: give another destination")
        if os.path.isdir(self.place):
            raise KeyferryError(f"{self.name} is a directory: give the path of a file")
        if not os.path.isdir(os.path.dirname(self.place)):
            raise KeyferryError(f"The directory of {self.name} does not exist: make it first")

    def exists(self) -> bool:
        return os.path.exists(self.name)

    def has_space(self, size: int) -> bool:
        return free_bytes(self.name) >= size

    def holds(self, cut: Cut) -> bool:
        """To the byte, by its SHA-256."""
        try:
            with open(self.name, "rb") as existing:
                if os.fstat(existing.fileno()).st_size != cut.bytes:
                    return False
                sha256 = hashlib.sha256()
                while block := existing.read(_READ_BYTES):
                    sha256.update(block)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise KeyferryError(f"Cannot read {self.name}: {error.strerror}") from error
        return sha256.hexdigest() == cut.sha256

    def sink(self, most: int) -> Sink:
        return _FileSink(self.name)


class Remote(t.Protocol):
    """What knows of places that are no files: extract_s3.S3."""

    def is_url(self, name: str) -> bool: ...

    def source(self, url: str) -> RdbFile: ...

    def destination(self, url: str) -> Destination: ...


class Cut:
    """One database on its way out: the bytes before its records, which ranges of the source they are, and what follows.

    Without a sink it only finds out what would be written.
    """

    def __init__(self, source: RdbFile, wanted: Wanted, dest: Destination, sink: Sink | None) -> None:
        self.source = source
        self.wanted = wanted
        self.dest = dest
        self.tally = rdb_walk.Tally()
        self.header = b""
        self.ranges: list[tuple[int, int]] = []
        self.trailer = b""
        self._sink = sink
        self._checksum = Checksum()
        self._sha256 = hashlib.sha256()

    @property
    def bytes(self) -> int:
        return len(self.header) + sum(end - start for start, end in self.ranges) + len(self.trailer)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def begin(self, header: bytes) -> None:
        self.header = header
        self._checksum.add(header)
        self.source.later.do(lambda: self._sha256.update(header))
        if self._sink:
            self._sink.write(header)

    def append(self, item: rdb_walk.Item, crc: int) -> None:
        start, end = item.start, item.end
        self.tally.add(item.value)
        self.ranges.append((start, end))
        self._checksum.join(crc, end - start)
        self.source.later.do(lambda: self._hash(start, end))
        if self._sink:
            self._sink.copy(self.source, start, end)

    def _hash(self, start: int, end: int) -> None:
        for block in self.source.blocks(start, end):
            self._sha256.update(block)

    def end(self, tail: bytes) -> None:
        """Close the RDB: I(tail), the EOF opcode and the checksum of everything."""
        tail += bytes([rdb_types.EOF])
        self._checksum.add(tail)
        self.trailer = tail + self._checksum.value.to_bytes(rdb_bytes.CRC_BYTES, "little")
        self.source.later.do(lambda: self._sha256.update(self.trailer))
        self.source.later.finish()
        if self._sink:
            self._sink.write(self.trailer)

    def commit(self) -> None:
        if self._sink:
            self._sink.commit()

    def discard(self) -> None:
        if self._sink:
            self._sink.discard()

    def write(self, sink: Sink) -> None:
        """Write what is known by now, without another walk."""
        sink.write(self.header)
        for start, end in self.ranges:
            raise_if_ended()
            sink.copy(self.source, start, end)
        sink.write(self.trailer)

    def facts(self) -> dict[str, t.Any]:
        return {
            "db": self.wanted.db,
            "target_db": self.wanted.target_db,
            "dest": self.wanted.dest,
            "keys": self.tally.keys,
            "expires": self.tally.expires,
            "types": self.tally.names(),
            "bytes": self.bytes,
            "sha256": self.sha256,
        }


def extract(
    src: str,
    wanted: list[Wanted],
    functions: bool = False,
    force: bool = False,
    dry: bool = False,
    workers: int | None = None,
    progress: Progress = silent,
    remote: Remote | None = None,
) -> dict[str, t.Any]:
    """Cut databases out of the RDB I(src), all in one pass; I(dry) only tells what would be done.

    An existing destination is left alone if it is what would be written; I(force) writes it again. Where source or
    destinations are no files, I(remote) knows of them.
    Gives back C(changed), C(rdb_version), C(databases), C(extracted) (one dict for each of I(wanted)) and C(elapsed)
    in seconds. Raises KeyferryError: no destination has been touched then, unless the last step failed for one of
    several, and others had got theirs before.
    """
    begin = time.monotonic()
    source = remote.source(src) if remote and remote.is_url(src) else RdbFile(src)
    cuts: list[Cut] = []
    try:
        places = [_destination(each.dest, remote) for each in wanted]
        _check_destinations(source, places)
        at_once = not dry and _is_written_at_once(source, places, force)
        with ended_by_signals():
            for each, place in zip(wanted, places):
                cuts.append(Cut(source, each, place, place.sink(source.size) if at_once else None))
            done = Pass(source, cuts, functions)
            done.run(crew_size(workers), progress)
            changed = [cut for cut in cuts if force or not cut.dest.holds(cut)]
            if at_once:
                for cut in changed:
                    cut.commit()
            elif not dry:
                _write(changed)
    except OSError as error:
        raise KeyferryError(
            f"Could not finish {error.filename or ', '.join(each.dest for each in wanted)}: {error}"
        ) from error
    finally:
        with contextlib.suppress(Exception):
            source.later.finish()
        for cut in cuts:
            cut.discard()
        source.close()
    return {
        "changed": bool(changed),
        "rdb_version": f"{source.form.magic}{source.form.version:0{rdb_bytes.HEADER_BYTES - len(source.form.magic)}d}",
        "databases": {
            str(db): {"keys": tally.keys, "expires": tally.expires} for db, tally in sorted(done.databases.items())
        },
        "extracted": [{**cut.facts(), "changed": cut in changed} for cut in cuts],
        "elapsed": time.monotonic() - begin,
    }


def _destination(name: str, remote: Remote | None) -> Destination:
    return remote.destination(name) if remote and remote.is_url(name) else _FileDestination(name)


def _check_destinations(source: RdbFile, places: list[Destination]) -> None:
    seen = set()
    for each in places:
        if each.place in seen:
            raise KeyferryError(f"{each.name} is the destination of two databases: give each its own file")
        seen.add(each.place)
        each.check(source)


def _is_written_at_once(source: RdbFile, places: list[Destination], force: bool) -> bool:
    """Whether the pass writes, rather than a second look at the source when it is known what is to be written."""
    if source.is_stream:
        for each in places:
            if not each.has_space(source.size):
                raise KeyferryError(
                    f"No space for {each.name}: it may get as large as {source.path}, {source.size} bytes"
                )
        return True
    return (force or not any(each.exists() for each in places)) and all(each.has_space(source.size) for each in places)


def _write(cuts: list[Cut]) -> None:
    """Write what a dry pass found, when it is known how much it is."""
    by_device: dict[int, list[Cut]] = {}
    for cut in cuts:
        if isinstance(cut.dest, _FileDestination):
            by_device.setdefault(os.stat(Path(cut.dest.name).parent).st_dev, []).append(cut)
    for device in by_device.values():
        needed, free = sum(cut.bytes for cut in device), free_bytes(device[0].dest.name)
        if needed > free:
            raise KeyferryError(
                f"No space for {device[0].dest.name}: {needed} bytes are to be written, {free} are free there"
            )
    for cut in cuts:
        sink = cut.dest.sink(cut.bytes)
        try:
            cut.write(sink)
            cut.source.check_unchanged()
            sink.commit()
        finally:
            sink.discard()
