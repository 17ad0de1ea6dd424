# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads one database of an RDB file into a dump, with no server: an RDB's value is a DUMP payload less its footer.

First the whole file is walked and its checksum compared (rdb_pass). Then processes turn runs of records into commands,
each the next one that nobody has taken, and the parent takes these in order; a pipe that is full makes its process
wait.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import gc
import multiprocessing
import multiprocessing.connection
import operator
import os
import struct
import sys
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import rdb_bytes, rdb_pass, rdb_types, rdb_walk
from ansible_collections.keyferry.redis.plugins.module_utils.background import Background
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import calculator
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import DumpWriter
from ansible_collections.keyferry.redis.plugins.module_utils.dump_forms import (
    Form,
    count_types,
    function_load,
    pack_crc,
    restore,
    restore_in_pieces,
    set_templates,
    templates,
)
from ansible_collections.keyferry.redis.plugins.module_utils.ending import end_forked, raise_if_ended
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.glob import matcher
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress, silent
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_types import EXPIRETIME_MS, STRING
from ansible_collections.keyferry.redis.plugins.module_utils.resp import bulk

# A larger value is not held, but carried by the parent from the file to the dump.
_STREAM_BYTES = 8 << 20
# So few that they stay in a core's cache until their commands are joined.
_RECORDS_AT_ONCE = 1024
# What goes to the parent at a time, and how many of these may wait for it.
_PART_BYTES = 2 << 20
_PARTS_AHEAD = 4
_SWITCH_S = 0.0002
_TYPE_BYTES = [bytes([kind]) for kind in range(256)]

# The first byte of a length of two bytes, and of all longer ones.
_LENGTH_14 = 0x40
# Fields of rdb_walk.Record.
_KEY, _VALUE, _VALUE_END = 3, 4, 5
_kind_of = operator.itemgetter(2)
_EXPIRY = struct.Struct("<Q")
# Where a payload is only read here, nobody looks at its checksum.
_NO_CRC = bytes(8)

_PLAIN, _EXPIRING = templates(b"$%d\r\n%b\r\n")
_SET, _SET_UNTIL = set_templates(b"$%d\r\n%b\r\n")
# Until the year 2286 a TTL has as many digits.
_OF_13_DIGITS = range(10**12, 10**13)
_SET_UNTIL_13 = b"$13\r\n%d".join(_SET_UNTIL.rsplit(b"$%d\r\n%b", 1))

Run = tuple[int, int]


class Batch(t.NamedTuple):
    """What some records became. I(large) are the records that the parent carries; I(problem) ends the dump."""

    keys: int = 0
    commands: int = 0
    types: t.Mapping[int, int] = {}
    large: t.Sequence[t.Any] = ()
    problem: str | None = None


class _Runs:
    """Takes from the walk where the records of the database are."""

    def __init__(self, db: int) -> None:
        self.wanted = rdb_pass.Wanted(db, "")
        self.runs: list[Run] = []
        self.keys = 0
        self.functions: list[bytes] = []

    def begin(self, _header: bytes) -> None:
        """There is no header to write."""

    def append(self, item: rdb_walk.Item, _crc: int) -> None:
        self.runs.append((item.start, item.end))
        self.keys += item.value.keys

    def end(self, _tail: bytes) -> None:
        """There is no tail to write."""


class _Assignments:
    """Which process has taken a run; each says so before it sends what it has made of it."""

    def __init__(self, receivers: list[multiprocessing.connection.Connection]) -> None:
        self._idle = list(receivers)
        self._taken: dict[int, multiprocessing.connection.Connection] = {}

    def taker(self, index: int) -> multiprocessing.connection.Connection:
        """Give back what the one that has taken it sends through. Raises EOFError where nobody has."""
        while index not in self._taken:
            if not self._idle:
                raise EOFError
            for receiver in multiprocessing.connection.wait(self._idle):
                self._idle.remove(receiver)
                # One that has found none left has ended.
                with contextlib.suppress(EOFError):
                    self._taken[receiver.recv()] = receiver
        return self._taken.pop(index)

    def is_done(self, receiver: multiprocessing.connection.Connection) -> None:
        """Listen for what this one takes next."""
        self._idle.append(receiver)


class RdbSource:
    """Database I(db) of the RDB file I(path), the keys that match I(match) (all without it); a context, in which the
    file is open.

    I(workers) is the number of processes, None for one a core. I(eviction) is whether to keep when, or how often, a key
    was used, I(functions) whether to take the functions along. A database that is not in the file is an error, unless
    it I(may_be_empty): an RDB does not list empty ones.
    """

    def __init__(
        self,
        path: str,
        db: int,
        form: Form,
        workers: int | None = None,
        match: bytes | None = None,
        eviction: bool = False,
        functions: bool = False,
        may_be_empty: bool = False,
    ) -> None:
        self._path = path
        self._db = db
        self._form = form
        self._workers = rdb_pass.crew_size(workers)
        self._matches = None if match is None else matcher(match)
        self._eviction = eviction
        self._functions = functions
        self._may_be_empty = may_be_empty

    def __enter__(self) -> RdbSource:
        self._file = rdb_pass.RdbFile(self._path)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._file.close()

    def count(self) -> int:
        """Walk and check the whole file; give back the number of keys. Raises KeyferryError for a damaged file."""
        if self._matches is None:
            return self._walked.keys
        return sum(self._count_matching(start, end) for start, end in self._walked.runs)

    def dump(self, writer: DumpWriter, progress: Progress) -> dict[str, t.Any]:
        """Walk and check the whole file, then write every key; give back what dump.dump does.

        Keys whose TTL has passed are among them.
        """
        types: collections.Counter[int] = collections.Counter()
        writer.add_functions([function_load(code) for code in self._walked.functions])
        for batch, data in self._batches(self._walked.runs):
            if batch.problem is not None:
                raise KeyferryError(f"{self._path}: {batch.problem}")
            if batch.keys:
                writer.add(data, batch.keys, batch.commands)
            for record in batch.large:
                writer.add_parts(self._carried(record), 1, 1)
            types.update(batch.types)
            progress(writer.keys, writer.bytes)
        self._file.check_unchanged()
        return {**count_types(types), "expired": 0, "payload_version": self._file.form.version if types else None}

    @functools.cached_property
    def _walked(self) -> _Runs:
        """What a walk over the whole file found, and no damage."""
        runs = _Runs(self._db)
        walk = rdb_pass.Pass(self._file, [runs], self._functions, self._may_be_empty)
        walk.run(self._workers, silent)
        runs.functions = [rdb_bytes.read_string(part, 1)[0] for part in walk.head if part[0] == rdb_types.FUNCTION2]
        return runs

    def _count_matching(self, start: int, end: int) -> int:
        return sum(1 for records in self._records(start, end) for record in records if self._is_wanted(record))

    def _is_wanted(self, record: t.Any) -> bool:
        return self._matches is None or bool(self._matches(record[_KEY]))

    def _records(self, start: int, end: int) -> t.Iterator[list[t.Any]]:
        """Give back the records from I(start) to I(end), some at a time."""
        while start < end:
            records, start, _why = self._file.walker.read(start, end, _RECORDS_AT_ONCE)
            yield records

    def _batches(self, runs: list[Run]) -> t.Iterator[tuple[Batch, bytes]]:
        context = multiprocessing.get_context("fork")
        workers = min(self._workers, len(runs))
        receivers: list[multiprocessing.connection.Connection] = []
        processes = []
        indices = rdb_pass.shared_indices(len(runs))
        for _worker in range(workers):
            receiver, sender = context.Pipe(duplex=False)
            receivers.append(receiver)
            arguments = (runs, indices, sender, receivers)
            process = context.Process(target=self._encode_runs, args=arguments, daemon=True)
            process.start()
            sender.close()
            processes.append(process)
        os.close(indices)
        assignments = _Assignments(receivers)
        try:
            for index in range(len(runs)):
                receiver = assignments.taker(index)
                while (batch := receiver.recv()) is not None:
                    yield batch, receiver.recv_bytes()
                assignments.is_done(receiver)
        except EOFError:
            raise_if_ended()
            raise KeyferryError("A process that read the RDB file was killed: is there memory left?") from None
        finally:
            for process, receiver in zip(processes, receivers):
                receiver.close()
                end_forked(process)

    def _encode_runs(
        self,
        runs: list[Run],
        indices: int,
        sender: multiprocessing.connection.Connection,
        receivers: list[multiprocessing.connection.Connection],
    ) -> None:
        # So that only the parent has them: a pipe whose reader is killed then ends what writes to it.
        for receiver in receivers:
            receiver.close()
        # There are no cycles to be found among a run's records, only time to be lost.
        gc.disable()
        # This process works on while the parent takes what the others have; the thread that writes gets its turn soon.
        sys.setswitchinterval(_SWITCH_S)
        ahead = Background(_PARTS_AHEAD)
        with contextlib.suppress(BrokenPipeError):
            while (index := rdb_pass.next_index(indices)) is not None:
                start, end = runs[index]
                ahead.do(functools.partial(sender.send, index))
                try:
                    for part in _joined(self._encoded(start, end)):
                        ahead.do(functools.partial(_send, sender, *part))
                except (KeyferryError, rdb_bytes.Damage) as error:
                    ahead.do(functools.partial(_send, sender, Batch(problem=str(error)), b""))
                ahead.do(functools.partial(sender.send, None))
                self._file.forget(start, end)
            ahead.finish()

    def _encoded(self, start: int, end: int) -> t.Iterator[tuple[Batch, bytes]]:
        """Give back the commands of the records from I(start) to I(end), some at a time."""
        encode = self._restores if self._form.streams else self._commands
        while start < end:
            pieces: list[bytes] = []
            strings, records, start = self._read(start, end, pieces)
            if self._matches is not None:
                records = [record for record in records if self._is_wanted(record)]
            kinds = bytes(map(_kind_of, records))
            if not rdb_types.TEMPLATE_TYPES.isdisjoint(kinds):
                raise KeyferryError("hashes with templates (Redis 8.10) cannot be read from the file yet")
            large: list[t.Any] = []
            # Seldom are so few records as long as that.
            if self._form.streams and records and records[-1][_VALUE_END] - records[0][_VALUE] > _STREAM_BYTES:
                large = [record for record in records if record[_VALUE_END] - record[_VALUE] > _STREAM_BYTES]
                records = [record for record in records if record[_VALUE_END] - record[_VALUE] <= _STREAM_BYTES]
            types = collections.Counter(kinds) + collections.Counter({STRING: strings})
            commands = strings + encode(records, pieces)
            yield Batch(strings + len(records), commands, types, large), b"".join(pieces)

    def _read(self, start: int, end: int, pieces: list[bytes]) -> tuple[int, list[t.Any], int]:
        """Read some records; give back how many strings I(pieces) has been given, the other records, and the offset
        after all."""
        if self._form.streams and not self._eviction:
            return self._set_strings(start, end, pieces)
        records, after, _why = self._file.walker.read(start, end, _RECORDS_AT_ONCE)
        return 0, records, after

    def _set_strings(self, pos: int, end: int, pieces: list[bytes]) -> tuple[int, list[t.Any], int]:
        """As _read(), where strings become what set_string() makes of them, in one go: nothing else takes as much time.

        A string that is packed in the file (a number, or compressed) or long is among the others.
        """
        buffer, read, matches, append = self._file.map, self._file.walker.read, self._matches, pieces.append
        read_expiry = _EXPIRY.unpack_from
        others: list[t.Any] = []
        strings = 0
        for _record in range(_RECORDS_AT_ONCE):
            if pos >= end:
                break
            kind, lead = buffer[pos], pos + 1
            expire_ms = None
            if kind == EXPIRETIME_MS:
                expire_ms, kind, lead = read_expiry(buffer, lead)[0], buffer[pos + 9], pos + 10
            if kind == STRING:
                length = buffer[lead]
                if length < _LENGTH_14:
                    value = lead + 1 + length
                    key = buffer[lead + 1 : value]
                else:
                    key, value = rdb_bytes.read_string(buffer, lead)
                first = buffer[value]
                if first < rdb_bytes.LENGTH_32:
                    value += 1
                    if first < _LENGTH_14:
                        pos = value + first
                    else:
                        value += 1
                        pos = value + ((first & 0x3F) << 8 | buffer[value - 1])
                    text = buffer[value:pos]
                    if matches is not None and not matches(key):
                        continue
                    if expire_ms is None:
                        append(_SET % (len(key), key, len(text), text))
                    elif expire_ms in _OF_13_DIGITS:
                        append(_SET_UNTIL_13 % (len(key), key, len(text), text, expire_ms))
                    else:
                        ttl = b"%d" % expire_ms
                        append(_SET_UNTIL % (len(key), key, len(text), text, len(ttl), ttl))
                    strings += 1
                    continue
            found, pos, _why = read(pos, end, 1)
            others += found
        return strings, others, pos

    def _restores(self, records: list[t.Any], pieces: list[bytes]) -> int:
        """Append to I(pieces) what restore() would make of each record."""
        buffer, version, eviction, checksum = self._file.map, self._version(), self._eviction, calculator()
        append = pieces.append
        for _begin, expire_ms, kind, key, value, value_end, idle, freq in records:
            body = _TYPE_BYTES[kind] + buffer[value:value_end] + version
            crc = pack_crc(checksum(body))
            if eviction and (idle is not None or freq is not None):
                before, after = restore(bulk(key), _ttl(expire_ms), _access(idle, freq))
                append(b"%b$%d\r\n%b%b\r\n%b" % (before, len(body) + 8, body, crc, after))
            elif expire_ms is None:
                append(_PLAIN % (len(key), key, len(body) + 8, body, crc))
            else:
                ttl = b"%d" % expire_ms
                append(_EXPIRING % (len(key), key, len(ttl), ttl, len(body) + 8, body, crc))
        return len(records)

    def _commands(self, records: list[t.Any], pieces: list[bytes]) -> int:
        """Append to I(pieces) what makes the keys anew; give back the number of these commands."""
        buffer, version, encode = self._file.map, self._version(), self._form.encode
        commands = 0
        for _begin, expire_ms, kind, key, value, value_end, _idle, _freq in records:
            body = _TYPE_BYTES[kind] + buffer[value:value_end] + version
            more, count = encode(bulk(key), _ttl(expire_ms), bulk(body + _NO_CRC), b"")
            pieces += more
            commands += count
        return commands

    def _carried(self, record: t.Any) -> t.Iterator[bytes]:
        """Give back one RESTORE piece by piece."""
        _begin, expire_ms, kind, key, value, value_end, idle, freq = record
        around = restore(bulk(key), _ttl(expire_ms), _access(idle, freq) if self._eviction else b"")
        blocks = self._file.blocks(value, value_end)
        return restore_in_pieces(around, _TYPE_BYTES[kind], blocks, value_end - value, self._file.form.version)

    def _version(self) -> bytes:
        return self._file.form.version.to_bytes(2, "little")


def _joined(encoded: t.Iterable[tuple[Batch, bytes]]) -> t.Iterator[tuple[Batch, bytes]]:
    """Give back the same in larger parts: a thread that writes waits for the interpreter's lock after each."""
    batch, pieces, size = Batch(), [], 0
    for more, data in encoded:
        types = collections.Counter(batch.types) + collections.Counter(more.types)
        batch = Batch(batch.keys + more.keys, batch.commands + more.commands, types, [*batch.large, *more.large])
        pieces.append(data)
        size += len(data)
        if size >= _PART_BYTES:
            yield batch, b"".join(pieces)
            batch, pieces, size = Batch(), [], 0
    if batch.keys or batch.large:
        yield batch, b"".join(pieces)


def _send(sender: multiprocessing.connection.Connection, batch: Batch, data: bytes) -> None:
    sender.send(batch)
    sender.send_bytes(data)


def _ttl(expire_ms: int | None) -> bytes:
    return b"-1" if expire_ms is None else b"%d" % expire_ms


def _access(idle: int | None, freq: int | None) -> bytes:
    """Give back the last arguments of a RESTORE, nothing where the file does not say when or how often."""
    if freq is not None:
        return bulk("FREQ") + bulk(freq)
    return b"" if idle is None else bulk("IDLETIME") + bulk(idle)
