# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Walks the records and opcodes of a buffer: a whole RDB or a window of it."""

from __future__ import annotations

import itertools
import re
import struct
import typing as t
from collections import Counter

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import (
    HEADER_BYTES,
    Buffer,
    Damage,
    little_endian,
    read_length,
    read_string,
    skip_string,
)
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_runs import RUN, Shape, byte_pattern, run_pattern
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_types import (
    AUX,
    EOF,
    EXPIRETIME,
    EXPIRETIME_MS,
    FIRST_OPCODE,
    FREQ,
    FUNCTION2,
    HASH_TEMPLATE,
    IDLE,
    MODULE_AUX,
    RESIZEDB,
    SELECTDB,
    SLOT_IMPORT,
    SLOT_INFO,
    TYPE_NAMES,
    Format,
    skip_lengths,
    skip_module_fields,
    skip_strings,
)

# What an Item may be besides an opcode.
RECORDS = -1

# Where a walk ended.
AT_STOP = "stop"
AT_OPCODE = "opcode"
AT_SHORTAGE = "shortage"

_EXPIRY = struct.Struct("<Q")
_STRIDE = 1024
_SAMPLE = 256
# A guess passes so many records, or at least so few where they are large; it looks at so many bytes and beginnings.
_GUESS_RECORDS = 300
_GUESS_LEAST = 20
_GUESS_BYTES = 1 << 16
_GUESS_TRIES = 2000


class Item(t.NamedTuple):
    """A stretch of the file: an opcode with what it says, or a run of records.

    I(value): for C(AUX) name and value as bytes, for C(SELECTDB) the index, for C(RESIZEDB) keys and expires, for
    C(HASH_TEMPLATE) its id and number of fields, for C(RECORDS) a Tally, else None.
    """

    kind: int
    start: int
    end: int
    value: t.Any = None


class Tally:
    """Counts of a run of records: keys, keys with an expiry, and keys by type byte."""

    __slots__ = ("expires", "keys", "types")

    def __init__(self) -> None:
        self.keys = 0
        self.expires = 0
        # Plain strings (type 0) are not counted here one by one: they are what is left of the keys.
        self.types: Counter[int] = Counter()

    def add(self, other: Tally) -> None:
        self.keys += other.keys
        self.expires += other.expires
        self.types.update(other.types)

    def names(self) -> dict[str, int]:
        """Keys by what TYPE would call them."""
        found: Counter[str] = Counter({"string": self.keys - sum(self.types.values())})
        for kind, keys in self.types.items():
            found[TYPE_NAMES[kind]] += keys
        return {name: keys for name, keys in sorted(found.items()) if keys}


class Record(t.NamedTuple):
    """One key. RESTORE's payload is the type byte, C(buffer[value_start:value_end]), version and CRC-64.

    I(expire_ms) is absolute, I(idle) in seconds; both and I(freq) are None where the file does not say.
    """

    start: int
    expire_ms: int | None
    kind: int
    key: bytes
    value_start: int
    value_end: int
    idle: int | None
    freq: int | None


class Walker:
    """Walks the records and opcodes of one buffer.

    The buffer may be a whole file or a window of it: a walk that runs out of bytes ends before the record that is
    not there whole (C(AT_SHORTAGE)).
    """

    def __init__(self, buf: Buffer, form: Format) -> None:
        self.buf = buf
        self.form = form
        self._patterns: dict[Shape, t.Any] = {}
        self._pattern: t.Any = None
        self._pattern_expires = False
        self._pattern_kind = 0
        self._patience = self._failures = 0

    def error(self, problem: Damage) -> KeyferryError:
        """What the user is told of damage."""
        return KeyferryError(
            f"Damaged or unknown RDB at byte {problem.offset}: {problem.text}. Nothing was taken from it; fetch the"
            " file again, or check it with redis-check-rdb",
            offset=problem.offset,
        )

    def truncated(self, pos: int) -> KeyferryError:
        """What the user is told of a file that ends too early."""
        return self.error(Damage(pos, f"what begins here goes on beyond the end of the file ({len(self.buf)} bytes)"))

    def walk(self, pos: int, stop: int, tally: Tally) -> tuple[int, str]:
        """Pass records up to the first that begins at or after I(stop), which is not beyond the buffer's end.

        Gives back where that is and why it ended: C(AT_STOP), C(AT_OPCODE) (what stands there is no record) or
        C(AT_SHORTAGE) (the record there is not whole). Counts what it passed into I(tally). Raises Damage.
        """
        most = _STRIDE
        while True:
            pos, why = self._stride(pos, stop, tally, most)
            if why:
                return pos, why
            passed = self._runs(pos, stop, tally)
            most = RUN if passed > pos else _STRIDE
            if passed == pos:
                self._learn(pos)
            pos = passed

    def _stride(self, pos: int, stop: int, tally: Tally, most: int) -> tuple[int, str]:
        """Pass one record after the other, I(most) of them: the loop that everything hangs on."""
        buf, skips = self.buf, self.form.skips
        first = begin = pos
        keys = expires = 0
        others: list[int] = []
        why = ""
        try:
            for _unused in range(most):
                if pos >= stop:
                    why = AT_STOP
                    break
                begin = pos
                kind = buf[pos]
                pos += 1
                if kind == EXPIRETIME_MS:
                    kind = buf[pos + 8]
                    pos += 9
                    expires += 1
                if kind > 127:
                    if kind == FREQ:
                        kind = buf[pos + 1]
                        pos += 2
                    elif kind == IDLE:
                        pos = read_length(buf, pos)[1] + 1
                        kind = buf[pos - 1]
                    if kind > 127:
                        if pos == begin + 1 and kind not in self.form.leads:
                            pos, why = begin, AT_OPCODE
                            break
                        expires -= buf[begin] == EXPIRETIME_MS
                        kind, pos, expire_ms, _idle, _freq = self._lead(begin)
                        expires += expire_ms is not None
                length = buf[pos]
                if length < 64:
                    pos += length + 1
                elif length < 128:
                    pos += 2 + ((length & 63) << 8 | buf[pos + 1])
                else:
                    pos = skip_string(buf, pos)
                if kind:
                    skip = skips[kind]
                    if skip is None:
                        raise self.form.refusal(kind, begin)
                    pos = skip(buf, pos)
                    others.append(kind)
                else:
                    length = buf[pos]
                    if length < 64:
                        pos += length + 1
                    elif length < 128:
                        pos += 2 + ((length & 63) << 8 | buf[pos + 1])
                    else:
                        pos = skip_string(buf, pos)
                keys += 1
            if pos > len(buf):
                raise IndexError
        except IndexError:
            # The record at `begin` is not whole: count again what comes before it.
            return self._stride(first, begin, tally, most)[0], AT_SHORTAGE
        tally.keys += keys
        tally.expires += expires
        tally.types.update(others)
        return pos, why

    def _lead(self, pos: int) -> tuple[int, int, int | None, int | None, int | None]:
        """Read what stands before a key: give back its type, the offset after that, expiry, idle time, frequency."""
        buf = self.buf
        expire_ms = idle = freq = None
        while True:
            begin, kind = pos, buf[pos]
            pos += 1
            if kind < FIRST_OPCODE:
                return kind, pos, expire_ms, idle, freq
            if kind not in self.form.leads:
                raise Damage(begin, f"expected the type of a key after its expiry or idle time, found 0x{kind:02x}")
            if kind == EXPIRETIME_MS:
                expire_ms = little_endian(buf, pos, 8)
                pos += 8
            elif kind == EXPIRETIME:
                expire_ms = 1000 * little_endian(buf, pos, 4)
                pos += 4
            elif kind == IDLE:
                idle, pos = read_length(buf, pos)
            elif kind == FREQ:
                freq = buf[pos]
                pos += 1
            elif kind == SLOT_INFO:
                pos = skip_lengths(buf, pos, 3)
            else:
                classes, pos = read_length(buf, pos)
                for _unused in range(classes):
                    pos = skip_module_fields(buf, pos + 4)

    def read(self, pos: int, stop: int, most: int) -> tuple[list[tuple[t.Any, ...]], int, str]:
        """Read up to I(most) records: for those who carry keys and values on.

        Gives back the records, each a plain tuple with the fields of Record (which would take twice the time), the
        offset after them, and why it ended as walk() does, or "" after I(most). Values are not touched: cut them out
        of the buffer by their offsets. Metadata that modules attach to a key (Redis 8.6) is between start and key, and
        in none of the fields. The buffer must be bytes or mmap. Raises Damage.
        """
        buf, skips, size = self.buf, self.form.skips, len(self.buf)
        read_expiry = _EXPIRY.unpack_from
        records: list[tuple[t.Any, ...]] = []
        begin = pos
        try:
            for _unused in range(most):
                if pos >= stop:
                    return records, pos, AT_STOP
                begin = pos
                kind = buf[pos]
                pos += 1
                expire_ms = idle = freq = None
                if kind == EXPIRETIME_MS:
                    expire_ms = read_expiry(buf, pos)[0]
                    kind = buf[pos + 8]
                    pos += 9
                if kind > 127:
                    if pos == begin + 1 and kind not in self.form.leads:
                        return records, begin, AT_OPCODE
                    kind, pos, expire_ms, idle, freq = self._lead(begin)
                length = buf[pos]
                if length < 64:
                    value = pos + 1 + length
                    key = buf[pos + 1 : value]
                else:
                    key, value = read_string(buf, pos)
                if kind:
                    skip = skips[kind]
                    if skip is None:
                        raise self.form.refusal(kind, begin)
                    pos = skip(buf, value)
                else:
                    length = buf[value]
                    if length < 64:
                        pos = value + length + 1
                    elif length < 128:
                        pos = value + 2 + ((length & 63) << 8 | buf[value + 1])
                    else:
                        pos = skip_string(buf, value)
                if pos > size:
                    return records, begin, AT_SHORTAGE
                records.append((begin, expire_ms, kind, key, value, pos, idle, freq))
        except (IndexError, struct.error):
            return records, begin, AT_SHORTAGE
        return records, pos, AT_STOP if pos >= stop else ""

    # -- runs of alike records, by a regular expression ---------------------------------------------------------------

    def _runs(self, pos: int, stop: int, tally: Tally) -> int:
        if self._pattern is None:
            return pos
        match, begin, runs = self._pattern.match, pos, 0
        while found := match(self.buf, pos, stop):
            pos = found.end()
            runs += 1
        if pos > begin:
            self._patience = self._failures = 0
            tally.keys += runs * RUN
            tally.expires += runs * RUN * self._pattern_expires
            if self._pattern_kind:
                tally.types[self._pattern_kind] += runs * RUN
        return pos

    def _learn(self, pos: int) -> None:
        """Look at the records from I(pos) on and choose the pattern for them; seldom, where that did not help."""
        self._patience -= 1
        if self._patience > 0:
            return
        self._failures = min(self._failures + 1, 10)
        self._patience = 1 << self._failures
        records = [Record(*fields) for fields in self.read(pos, len(self.buf), _SAMPLE)[0]]
        alike = Counter(self._shape(record) for record in records if self.form.skips[record.kind] is skip_string)
        most = alike.most_common(1)
        if not most or most[0][1] < 0.9 * len(records):
            self._pattern = None
            return
        shape = most[0][0]
        if shape not in self._patterns:
            self._patterns[shape] = self._run_pattern(shape, [r for r in records if self._shape(r) == shape])
        self._pattern = self._patterns[shape]
        self._pattern_expires, _idle_or_freq, self._pattern_kind = shape

    def _shape(self, record: Record) -> Shape:
        opcode = IDLE if record.idle is not None else FREQ if record.freq is not None else 0
        return record.expire_ms is not None, opcode, record.kind

    def _run_pattern(self, shape: Shape, sample: list[Record]) -> t.Any:
        keys = (self._lead(record.start)[1] for record in sample)
        values = (record.value_start for record in sample)
        heads = ([self.buf[start : start + 4] for start in starts] for starts in (keys, values))
        return run_pattern(shape, *heads)

    # -- opcodes -------------------------------------------------------------------------------------------------------

    def head(self) -> tuple[list[Item], int]:
        """Read what comes before the first database, and where that begins.

        To be called before any other walk over a file: hash templates are learned here alone, so that a walk from a
        wrong guess cannot learn false ones.
        """
        items = []
        for item in self.items(HEADER_BYTES, len(self.buf)):
            if item.kind in (SELECTDB, EOF, RECORDS):
                return items, item.start
            if item.kind == HASH_TEMPLATE and item.value:
                template, fields = item.value
                self.form.templates[template] = fields
            items.append(item)
        raise self.truncated(HEADER_BYTES)

    def items(self, pos: int, stop: int) -> t.Iterator[Item]:
        """Give the items from I(pos) on, up to the first that begins at or after I(stop), or to the EOF opcode.

        Raises KeyferryError for damage, and where the buffer ends within an item.
        """
        try:
            while pos < stop:
                tally = Tally()
                end, why = self.walk(pos, stop, tally)
                if end > pos:
                    yield Item(RECORDS, pos, end, tally)
                if why == AT_STOP:
                    return
                if why == AT_SHORTAGE:
                    raise self.truncated(end)
                item = self._opcode(end)
                if item.end > len(self.buf):
                    raise self.truncated(end)
                yield item
                if item.kind == EOF:
                    return
                pos = item.end
        except Damage as problem:
            raise self.error(problem) from None

    def _opcode(self, begin: int) -> Item:
        try:
            kind, pos = self.buf[begin], begin + 1
            end, value = self._opcode_fields(kind, pos)
        except IndexError:
            raise self.truncated(begin) from None
        return Item(kind, begin, end, value)

    def _opcode_fields(self, kind: int, pos: int) -> tuple[int, t.Any]:
        buf = self.buf
        if kind == SELECTDB:
            index, pos = read_length(buf, pos)
            return pos, index
        if kind == RESIZEDB:
            keys, pos = read_length(buf, pos)
            expires, pos = read_length(buf, pos)
            return pos, (keys, expires)
        if kind == AUX:
            name, pos = read_string(buf, pos)
            value, pos = read_string(buf, pos)
            return pos, (name, value)
        if kind == EOF:
            return pos, None
        if kind == FUNCTION2 and self.form.version >= 10:
            return skip_string(buf, pos), None
        if kind == MODULE_AUX:
            return skip_module_fields(buf, read_length(buf, pos)[1]), None
        if kind == HASH_TEMPLATE and self.form.magic == "REDIS" and self.form.version >= 14:
            template, pos = read_length(buf, pos)
            fields, pos = read_length(buf, pos)
            return skip_strings(buf, pos, fields), (template, fields)
        if kind == SLOT_IMPORT and self.form.magic == "VALKEY":
            ranges, pos = read_length(buf, skip_string(buf, pos))
            return skip_lengths(buf, pos, 2 * ranges), None
        raise self.form.refusal(kind, pos - 1)

    # -- a beginning in mid-file ---------------------------------------------------------------------------------------

    def guess(self, pos: int, stop: int) -> int | None:
        """Find a record or opcode near the beginning of a range, without knowing where one is; None without one.

        From the first offset where some hundred records in a row make sense, those are passed: had that offset been
        within a value, its false records would most likely have led to the true ones by then. Still it is a guess. It
        is right if a walk that is known to be right lands on it.
        """
        window = Walker(memoryview(self.buf)[: pos + 2 * _GUESS_BYTES], self.form)
        tries = itertools.islice(window._plausible(pos, min(stop, pos + _GUESS_BYTES)), _GUESS_TRIES)
        ends = (window._sensible_end(candidate) for candidate in tries)
        return next((end for end in ends if end is not None), None)

    def _plausible(self, pos: int, stop: int) -> t.Iterator[int]:
        kinds = [kind for kind, skip in enumerate(self.form.skips) if skip]
        first_bytes = re.compile(b"[" + b"".join(map(byte_pattern, [*kinds, *self.form.leads, SELECTDB])) + b"]")
        for match in first_bytes.finditer(self.buf, pos, stop):
            yield match.start()

    def _sensible_end(self, pos: int) -> int | None:
        """Where the records that seem to begin at I(pos) lead, or None if they are none."""
        passed = 0
        try:
            while passed < _GUESS_RECORDS:
                tally = Tally()
                pos, why = self._stride(pos, len(self.buf), tally, _GUESS_RECORDS - passed)
                passed += tally.keys
                if why == AT_OPCODE and self.buf[pos] in (SELECTDB, RESIZEDB):
                    pos = self._opcode(pos).end
                elif why:
                    return pos if passed >= _GUESS_LEAST else None
        except (Damage, KeyferryError):
            return None
        return pos
