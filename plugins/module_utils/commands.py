# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A DUMP payload as the commands that make the same key on any server: pure, no I/O.

Source of the layouts: redis 7.4 and valkey 9.0, src/rdb.c, listpack.c, ziplist.c, intset.c, t_stream.c.
"""

from __future__ import annotations

import itertools
import struct
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import rdb_bytes, rdb_types, resp
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

# ElastiCache Serverless takes no command with more.
MOST_ARGUMENTS = 3999
# Where a hash's field has no expiry of its own (valkey, src/expire.h; entries_read in redis, src/stream.h).
_NONE_64 = (1 << 64) - 1

_HASH_METADATA, _HASH_LISTPACK_EX = 24, 25
_STREAM_VERSIONS = {15: 1, 19: 2, 21: 3}
_DELETED, _SAME_FIELDS = 1, 2

Arguments = t.Sequence[t.Union[bytes, str, int]]
StreamId = tuple[int, int]


def commands(key: bytes, ttl: bytes, payload: bytes) -> list[bytes]:
    """Give back the commands, in RESP, that make I(key); I(ttl) is in absolute milliseconds, -1 for none.

    Whatever is there already is replaced. Raises KeyferryError for a value that only RESTORE can carry.
    """
    if payload[0] == 0:
        value, _end = rdb_bytes.read_string(payload, 1)
        expiry = () if ttl == b"-1" else ("PXAT", ttl)
        return [resp.command("SET", key, value, *expiry)]
    made = [resp.command("DEL", key)]
    made += [resp.command(*arguments) for arguments in _of_container(key, payload)]
    if ttl != b"-1":
        made.append(resp.command("PEXPIREAT", key, ttl))
    return made


def function_libraries(payload: bytes) -> list[bytes]:
    """Give back the code of each library in what FUNCTION DUMP gave: opcode and string by turns, before the footer."""
    found = []
    pos, end = 0, len(payload) - rdb_bytes.FOOTER_BYTES
    while pos < end:
        if payload[pos] != rdb_types.FUNCTION2:
            raise KeyferryError(f"FUNCTION DUMP gave what is not known here: 0x{payload[pos]:02x} at its byte {pos}")
        code, pos = rdb_bytes.read_string(payload, pos + 1)
        found.append(code)
    return found


def _of_container(key: bytes, payload: bytes) -> t.Iterator[Arguments]:
    kind = payload[0]
    is_valkey = int.from_bytes(payload[-rdb_bytes.FOOTER_BYTES : -rdb_bytes.CRC_BYTES], "little") >= 80
    if kind in _LISTS:
        return _chunks("RPUSH", key, _LISTS[kind](payload), 1)
    if kind in _SETS:
        return _chunks("SADD", key, _SETS[kind](payload), 1)
    if kind in _SORTED_SETS:
        return _chunks("ZADD", key, _scores_first(_SORTED_SETS[kind](payload)), 2)
    if kind in _HASHES:
        return _chunks("HSET", key, _HASHES[kind](payload), 2)
    if kind == 22 and is_valkey:
        return _hash_with_expiries(key, _hash_2(payload))
    if kind in (_HASH_METADATA, _HASH_LISTPACK_EX):
        read = _hash_metadata if kind == _HASH_METADATA else _hash_listpack_ex
        return _hash_with_expiries(key, read(payload))
    if kind in _STREAM_VERSIONS:
        return _Stream(payload, _STREAM_VERSIONS[kind]).commands(key)
    what = "of a module" if kind in (6, 7) else f"of type {kind}, which is not known as commands"
    raise KeyferryError(f"the value is {what}: only format=restore carries it")


def _chunks(verb: str, key: bytes, parts: t.Iterable[bytes], each: int) -> t.Iterator[Arguments]:
    """Give back as many commands as it takes; I(each) parts must not be torn."""
    most = (MOST_ARGUMENTS - 2) // each * each
    parts = iter(parts)
    while chunk := list(itertools.islice(parts, most)):
        yield (verb, key, *chunk)


# -- packed containers -----------------------------------------------------------------------------------------------


def listpack(data: bytes) -> t.Iterator[bytes]:
    """Give back the elements of a listpack, integers as text."""
    pos = 6
    while (first := data[pos]) != 0xFF:
        if first < 0x80:
            element, size = b"%d" % first, 1
        elif first < 0xC0:
            size = 1 + (first & 0x3F)
            element = data[pos + 1 : pos + size]
        elif first < 0xE0:
            number = (first & 0x1F) << 8 | data[pos + 1]
            element, size = b"%d" % (number - (1 << 13) if number >> 12 else number), 2
        elif first < 0xF0:
            size = 2 + ((first & 0x0F) << 8 | data[pos + 1])
            element = data[pos + 2 : pos + size]
        elif first == 0xF0:
            size = 5 + int.from_bytes(data[pos + 1 : pos + 5], "little")
            element = data[pos + 5 : pos + size]
        else:
            size = 1 + {0xF1: 2, 0xF2: 3, 0xF3: 4, 0xF4: 8}[first]
            element = _integer(data[pos + 1 : pos + size])
        yield element
        # Behind each element stands its size, 7 bits to a byte. Of 16383 and the like, Redis writes a zero before them,
        # Valkey 9.1 does not (lpEncodeBacklen).
        pos += size + (size.bit_length() + 6) // 7 + (data[pos + size] == 0)
    _check_end(data, pos)


def ziplist(data: bytes) -> t.Iterator[bytes]:
    """Give back the elements of a ziplist, integers as text."""
    pos = 10
    while data[pos] != 0xFF:
        pos += 5 if data[pos] == 0xFE else 1
        first = data[pos]
        if first < 0x40:
            start, size = pos + 1, first
        elif first < 0x80:
            start, size = pos + 2, (first & 0x3F) << 8 | data[pos + 1]
        elif first == 0x80:
            start, size = pos + 5, int.from_bytes(data[pos + 1 : pos + 5], "big")
        elif first > 0xF0 and first < 0xFE:
            yield b"%d" % (first - 0xF1)
            pos += 1
            continue
        else:
            size = {0xC0: 2, 0xD0: 4, 0xE0: 8, 0xF0: 3, 0xFE: 1}[first]
            yield _integer(data[pos + 1 : pos + 1 + size])
            pos += 1 + size
            continue
        yield data[start : start + size]
        pos = start + size
    _check_end(data, pos)


def _check_end(data: bytes, pos: int) -> None:
    if pos != len(data) - 1:
        raise KeyferryError(f"the value has an end at byte {pos} of a part of {len(data)} bytes: is it damaged?")


def intset(data: bytes) -> t.Iterator[bytes]:
    """Give back the elements of an intset, as text."""
    size, count = struct.unpack_from("<II", data)
    for at in range(8, 8 + size * count, size):
        yield _integer(data[at : at + size])


def _integer(data: bytes) -> bytes:
    return b"%d" % int.from_bytes(data, "little", signed=True)


# -- the layouts of each type ----------------------------------------------------------------------------------------


def _strings(payload: bytes, each: int = 1) -> t.Iterator[bytes]:
    """Give back I(each) strings for each of the counted elements."""
    count, pos = rdb_bytes.read_length(payload, 1)
    for _string in range(count * each):
        value, pos = rdb_bytes.read_string(payload, pos)
        yield value


def _packed(unpack: t.Callable[[bytes], t.Iterator[bytes]]) -> t.Callable[[bytes], t.Iterator[bytes]]:
    return lambda payload: unpack(rdb_bytes.read_string(payload, 1)[0])


def _quicklist(payload: bytes) -> t.Iterator[bytes]:
    for node in _strings(payload):
        yield from ziplist(node)


def _quicklist_2(payload: bytes) -> t.Iterator[bytes]:
    count, pos = rdb_bytes.read_length(payload, 1)
    for _node in range(count):
        container, pos = rdb_bytes.read_length(payload, pos)
        node, pos = rdb_bytes.read_string(payload, pos)
        if container == 1:
            yield node
        else:
            yield from listpack(node)


def _zset(payload: bytes) -> t.Iterator[bytes]:
    """Scores as text behind a length byte, of which 254 and 255 stand for the infinities."""
    count, pos = rdb_bytes.read_length(payload, 1)
    for _element in range(count):
        member, pos = rdb_bytes.read_string(payload, pos)
        size = payload[pos]
        pos += 1
        if size >= 254:
            score = b"inf" if size == 254 else b"-inf"
        else:
            score = payload[pos : pos + size]
            pos += size
        yield from (member, score)


def _zset_2(payload: bytes) -> t.Iterator[bytes]:
    count, pos = rdb_bytes.read_length(payload, 1)
    for _element in range(count):
        member, pos = rdb_bytes.read_string(payload, pos)
        (score,) = struct.unpack_from("<d", payload, pos)
        pos += 8
        # The shortest text that reads as the same number.
        yield from (member, repr(score).encode())


def _scores_first(pairs: t.Iterator[bytes]) -> t.Iterator[bytes]:
    for member, score in zip(pairs, pairs):
        yield score
        yield member


_Expiring = t.Iterator[tuple[bytes, bytes, t.Optional[int]]]


def _hash_2(payload: bytes) -> _Expiring:
    """Valkey 9: an expiry after each field and its value."""
    count, pos = rdb_bytes.read_length(payload, 1)
    for _field in range(count):
        field, pos = rdb_bytes.read_string(payload, pos)
        value, pos = rdb_bytes.read_string(payload, pos)
        expiry = int.from_bytes(payload[pos : pos + 8], "little")
        pos += 8
        yield field, value, None if expiry == _NONE_64 else expiry


def _hash_metadata(payload: bytes) -> _Expiring:
    """Redis 7.4: the soonest expiry, then each field's distance to it plus 1, 0 where it has none."""
    soonest = int.from_bytes(payload[1:9], "little")
    count, pos = rdb_bytes.read_length(payload, 9)
    for _field in range(count):
        distance, pos = rdb_bytes.read_length(payload, pos)
        field, pos = rdb_bytes.read_string(payload, pos)
        value, pos = rdb_bytes.read_string(payload, pos)
        yield field, value, soonest + distance - 1 if distance else None


def _hash_listpack_ex(payload: bytes) -> _Expiring:
    """Redis 7.4: field, value and expiry by turns, 0 where there is none, behind 8 bytes with the soonest."""
    parts = listpack(rdb_bytes.read_string(payload, 9)[0])
    for field, value, expiry in zip(parts, parts, parts):
        yield field, value, int(expiry) or None


def _hash_with_expiries(key: bytes, fields: _Expiring) -> t.Iterator[Arguments]:
    expiring: list[tuple[int, bytes]] = []

    def pairs() -> t.Iterator[bytes]:
        for field, value, expiry in fields:
            if expiry is not None:
                expiring.append((expiry, field))
            yield field
            yield value

    yield from _chunks("HSET", key, pairs(), 2)
    for expiry, group in itertools.groupby(sorted(expiring), lambda pair: pair[0]):
        names = [name for _expiry, name in group]
        for start in range(0, len(names), MOST_ARGUMENTS - 5):
            some = names[start : start + MOST_ARGUMENTS - 5]
            yield ("HPEXPIREAT", key, expiry, "FIELDS", len(some), *some)


_Layout = t.Callable[[bytes], t.Iterator[bytes]]
_LISTS: dict[int, _Layout] = {1: _strings, 10: _packed(ziplist), 14: _quicklist, 18: _quicklist_2}
_SETS: dict[int, _Layout] = {2: _strings, 11: _packed(intset), 20: _packed(listpack)}
_SORTED_SETS: dict[int, _Layout] = {3: _zset, 5: _zset_2, 12: _packed(ziplist), 17: _packed(listpack)}
_HASHES: dict[int, _Layout] = {
    4: lambda payload: _strings(payload, 2),
    13: _packed(ziplist),
    16: _packed(listpack),
}


# -- streams ---------------------------------------------------------------------------------------------------------


class _Pending(t.NamedTuple):
    delivered_ms: int
    deliveries: int


class _Group(t.NamedTuple):
    name: bytes
    last_id: StreamId
    entries_read: int | None
    pending: dict[StreamId, _Pending]
    consumers: list[tuple[bytes, list[StreamId]]]


class _Stream:
    """A stream's payload, read from begin to end."""

    def __init__(self, payload: bytes, version: int) -> None:
        self._payload = payload
        self._version = version
        self._pos = 1
        self.entries = dict(self._entries())
        length, *last = self._lengths(3)
        self.last_id: StreamId = (last[0], last[1])
        self.max_deleted_id: StreamId | None = None
        self.entries_added = length
        if version >= 2:
            _first_ms, _first_seq, deleted_ms, deleted_seq, self.entries_added = self._lengths(5)
            self.max_deleted_id = (deleted_ms, deleted_seq)
        self.groups = [self._group() for _group in range(self._length())]

    def commands(self, key: bytes) -> t.Iterator[Arguments]:
        """Give back what makes the stream.

        XCLAIM does not take what is no entry, so that the deleted entries that are still pending are made, claimed and
        removed again.
        """
        deleted = {entry for group in self.groups for entry in group.pending} - set(self.entries)
        for entry in sorted({*self.entries, *deleted}):
            yield ("XADD", key, _text(entry), *self.entries.get(entry, (b"-", b"-")))
        if not self.entries and not deleted:
            top = max(self.last_id, (0, 1))
            yield ("XADD", key, "MAXLEN", 0, _text(top), b"-", b"-")
        for group in self.groups:
            yield from self._of_group(key, group)
        yield from self._removals(key, deleted)
        totals: Arguments = ()
        if self.max_deleted_id is not None:
            totals = ("ENTRIESADDED", self.entries_added, "MAXDELETEDID", _text(self.max_deleted_id))
        yield ("XSETID", key, _text(self.last_id), *totals)

    def _removals(self, key: bytes, deleted: set[StreamId]) -> t.Iterator[Arguments]:
        """Give back what removes I(deleted): by XTRIM what was trimmed, as XDEL sets a MAXDELETEDID for good."""
        trimmed = self._trimmed(deleted)
        for entry in sorted(deleted - trimmed):
            yield ("XDEL", key, _text(entry))
        if trimmed:
            yield ("XTRIM", key, "MAXLEN", len(self.entries))

    def _trimmed(self, deleted: set[StreamId]) -> set[StreamId]:
        if self.max_deleted_id is None:
            return set()
        # Servers before 7.0 deleted entries in the middle without taking note.
        first = min(self.entries, default=(_NONE_64 + 1, 0))
        return {entry for entry in deleted if self.max_deleted_id < entry < first}

    def _of_group(self, key: bytes, group: _Group) -> t.Iterator[Arguments]:
        read = () if group.entries_read is None else ("ENTRIESREAD", group.entries_read)
        yield ("XGROUP", "CREATE", key, group.name, _text(group.last_id), *read)
        for consumer, pending in group.consumers:
            if not pending:
                yield ("XGROUP", "CREATECONSUMER", key, group.name, consumer)
            for entry in pending:
                facts = group.pending[entry]
                yield (
                    *("XCLAIM", key, group.name, consumer, 0, _text(entry)),
                    *("TIME", facts.delivered_ms, "RETRYCOUNT", facts.deliveries, "FORCE", "JUSTID"),
                )

    def _entries(self) -> t.Iterator[tuple[StreamId, list[bytes]]]:
        """Give back the entries that are not deleted: fields and values by turns."""
        for _node in range(self._length()):
            master_ms, master_seq = self._id(self._string())
            parts = list(listpack(self._string()))
            count, deleted, fields = map(int, parts[:3])
            names = parts[3 : 3 + fields]
            # After the names, and after each entry, stands a number that serves to walk backwards.
            at = 4 + fields
            for _entry in range(count + deleted):
                flags, ms, seq = map(int, parts[at : at + 3])
                at += 3
                if flags & _SAME_FIELDS:
                    values = parts[at : at + fields]
                    body = [part for pair in zip(names, values) for part in pair]
                    at += fields + 1
                else:
                    size = 2 * int(parts[at])
                    body = parts[at + 1 : at + 1 + size]
                    at += size + 2
                if not flags & _DELETED:
                    yield (master_ms + ms, master_seq + seq), body

    def _group(self) -> _Group:
        name = self._string()
        ms, seq = self._lengths(2)
        read = self._length() if self._version >= 2 else _NONE_64
        pending = {}
        for _entry in range(self._length()):
            entry = self._id(self._take(16))
            pending[entry] = _Pending(int.from_bytes(self._take(8), "little"), self._length())
        consumers = []
        for _consumer in range(self._length()):
            consumer = self._string()
            # When it was last seen and, since 7.2, active; no command sets these.
            self._take(16 if self._version >= 3 else 8)
            consumers.append((consumer, [self._id(self._take(16)) for _entry in range(self._length())]))
        return _Group(name, (ms, seq), None if read == _NONE_64 else read, pending, consumers)

    def _length(self) -> int:
        length, self._pos = rdb_bytes.read_length(self._payload, self._pos)
        return length

    def _lengths(self, count: int) -> list[int]:
        return [self._length() for _length in range(count)]

    def _string(self) -> bytes:
        value, self._pos = rdb_bytes.read_string(self._payload, self._pos)
        return value

    def _take(self, size: int) -> bytes:
        self._pos += size
        return self._payload[self._pos - size : self._pos]

    @staticmethod
    def _id(data: bytes) -> StreamId:
        ms, seq = struct.unpack(">QQ", data)
        return ms, seq


def _text(entry: StreamId) -> bytes:
    return b"%d-%d" % entry
