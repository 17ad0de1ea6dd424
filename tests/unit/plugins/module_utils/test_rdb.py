# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The walk over an RDB: every layout by its lengths, in strides, in runs, and over windows of a file."""

from __future__ import annotations

import mmap
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.plugins.module_utils.rdb_files import (
    aux,
    expiry,
    length,
    lzf,
    record,
    resize,
    sealed,
    select,
    string,
    text,
)

from ansible_collections.keyferry.redis.plugins.module_utils import rdb_bytes, rdb_types, rdb_walk
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

ID = bytes(range(16))
TIME = b"\x01" * 8


def stream(version: int, refused: int = 0) -> bytes:
    """A stream with one node, one group, one pending entry and one consumer that has it."""
    group = text(b"group") + length(1 << 40) + length(0)
    group += length(7) if version >= 2 else b""
    group += length(1) + ID + TIME + length(3)
    group += length(1) + text(b"consumer") + TIME + (TIME if version >= 3 else b"") + length(1) + ID
    group += length(refused) + ID * refused if version >= 5 else b""
    totals = length(1) + length(1 << 40) + length(0)
    totals += length(5) * 5 if version >= 2 else b""
    producers = length(100) + length(100) + length(0) + length(9) + length(1) if version >= 4 else b""
    return length(1) + text(ID) + text(b"listpack" * 20) + totals + length(1) + group + producers


MODULE = (
    length(1 << 60) + length(1) + length(70000) + length(2) + length(5) + length(3) + b"\0" * 4 + length(4) + b"\0" * 8
)
MODULE += length(5) + text(b"module's text" * 9) + length(0)
PAIR = text(b"field") + b"\xc1\x01\x02"

VALUES = {
    "string": (0, text(b"value"), 5),
    "string of 14-bit length": (0, text(b"v" * 300), 5),
    "string of 32-bit length": (0, text(b"v" * 20000), 5),
    "string of 64-bit length": (0, b"\x81" + (3).to_bytes(8, "big") + b"abc", 5),
    "int8": (0, b"\xc0\x7f", 5),
    "int16": (0, b"\xc1\x7f\x00", 5),
    "int32": (0, b"\xc2\x7f\x00\x00\x01", 5),
    "lzf": (0, lzf(b"compressed" * 50), 5),
    "list": (1, length(3) + text(b"a") + b"\xc0\x01" + lzf(b"abc"), 5),
    "set": (2, length(2) + text(b"a") + text(b"b" * 100), 5),
    "zset": (3, length(4) + b"".join(text(b"m") + score for score in (b"\x03" + b"1.5", b"\xfd", b"\xfe", b"\xff")), 5),
    "hash": (4, length(2) + PAIR * 2, 5),
    "zset 2": (5, length(2) + (text(b"m") + TIME) * 2, 8),
    "module": (7, MODULE, 8),
    "zipmap": (9, text(b"zipmap"), 5),
    "ziplist": (10, text(b"ziplist"), 5),
    "intset": (11, text(b"intset"), 5),
    "quicklist": (14, length(2) + text(b"ziplist") * 2, 7),
    "stream 1": (15, stream(1), 9),
    "hash listpack": (16, lzf(b"listpack" * 9), 10),
    "zset listpack": (17, text(b"listpack"), 10),
    "quicklist 2": (18, length(2) + length(1) + text(b"plain" * 99) + length(2) + text(b"packed"), 10),
    "stream 2": (19, stream(2), 10),
    "set listpack": (20, text(b"listpack"), 11),
    "stream 3": (21, stream(3), 11),
    "hash metadata before release": (22, length(2) + (length(1 << 41) + PAIR) * 2, 12),
    "hash listpack ex before release": (23, text(b"listpack"), 12),
    "hash metadata": (24, TIME + length(2) + (length(70) + PAIR) * 2, 12),
    "hash listpack ex": (25, TIME + text(b"listpack"), 12),
    "stream 4": (26, stream(4), 13),
    "stream 5": (27, stream(5, refused=1), 14),
    "template listpack": (30, text(b"listpack"), 14),
    "template array": (32, length(9) + text(b"one") + text(b"two"), 14),
    "valkey hash": (22, length(2) + (PAIR + TIME) * 2, 80),
}
TEMPLATE = b"\xf2" + length(9) + length(2) + text(b"f1") + text(b"f2")


def header_of(version: int) -> bytes:
    return b"VALKEY%03d" % version if version >= 80 else b"REDIS%04d" % version


def walk(data: bytes) -> list[rdb_walk.Item]:
    walker = rdb_walk.Walker(data, rdb_types.read_header(data))
    head, pos = walker.head()
    return [*head, *walker.items(pos, len(data))]


def records_of(data: bytes) -> list[rdb_walk.Record]:
    walker = rdb_walk.Walker(data, rdb_types.read_header(data))
    found = []
    for item in walker.items(walker.head()[1], len(data)):
        if item.kind == rdb_walk.RECORDS:
            records, pos, _why = walker.read(item.start, item.end, 1 << 20)
            assert pos == item.end
            found += [rdb_walk.Record(*fields) for fields in records]
    return found


@pytest.mark.parametrize("name", VALUES)
def test_every_value_is_passed_by_its_lengths(name: str) -> None:
    kind, value, version = VALUES[name]
    header = header_of(version)
    template = TEMPLATE if kind == 32 else b""
    data = sealed(template, select(1), string(b"a", b"1"), record(kind, b"k", value), string(b"z", b"2"), magic=header)
    (found,) = (item for item in walk(data) if item.kind == rdb_walk.RECORDS)
    assert found.value.keys == 3
    first, middle, last = records_of(data)
    assert (first.key, middle.key, last.key) == (b"a", b"k", b"z")
    assert data[middle.value_start : middle.value_end] == value
    assert middle.kind == kind


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_refused_where_it_ends_too_early(name: str) -> None:
    kind, value, version = VALUES[name]
    whole = header_of(version) + (TEMPLATE if kind == 32 else b"") + select(1) + record(kind, b"k", value)
    for size in range(rdb_bytes.HEADER_BYTES, len(whole)):
        form = rdb_types.read_header(whole)
        walker = rdb_walk.Walker(whole[:size], form)
        with pytest.raises(KeyferryError, match=r"at byte|beyond the end"):
            list(walker.items(rdb_bytes.HEADER_BYTES, size + 1))


@pytest.mark.parametrize(("magic", "kind"), [(b"REDIS0010", 20), (b"REDIS0011", 22), (b"VALKEY080", 24)])
def test_a_type_of_another_version_is_refused_with_its_offset(magic: bytes, kind: int) -> None:
    start = sealed(select(1), string(b"a", b"1"), magic=magic)[:-9]
    data = start + record(kind, b"k", text(b"listpack")) + b"\xff" + bytes(8)
    with pytest.raises(KeyferryError, match=f"at byte {len(start)}: expected a type") as caught:
        walk(data)
    assert caught.value.result["offset"] == len(start)


def test_the_same_number_means_different_things_in_redis_and_valkey() -> None:
    valkey = length(1) + PAIR + TIME
    redis = length(1) + length(1 << 41) + PAIR
    assert len(records_of(sealed(select(0), record(22, b"k", valkey), magic=b"VALKEY081"))) == 1
    assert len(records_of(sealed(select(0), record(22, b"k", redis), magic=b"REDIS0012"))) == 1
    importing = b"\xf3" + text(b"job") + length(2) + length(0) + length(99) + length(200) + length(16383)
    assert [item.kind for item in walk(sealed(importing, select(0), string(b"k", b"v"), magic=b"VALKEY080"))] == [
        rdb_types.SLOT_IMPORT,
        rdb_types.SELECTDB,
        rdb_walk.RECORDS,
        rdb_types.EOF,
    ]
    meta = b"\xf3" + length(1) + b"spec" + length(5) + text(b"metadata") + length(0)
    (found,) = records_of(sealed(select(0), string(b"k", b"v", expiry(5) + meta), magic=b"REDIS0013"))
    assert (found.expire_ms, found.key) == (5, b"k")


def test_what_stands_before_a_key_is_read() -> None:
    leads = {
        b"plain": b"",
        b"ms": expiry(1_700_000_000_123),
        b"seconds": b"\xfd" + (1_700_000_000).to_bytes(4, "little"),
        b"idle": b"\xf8" + length(3),
        b"idle for long": expiry(9) + b"\xf8" + length(100_000),
        b"freq": expiry(9) + b"\xf9\xfe",
        b"slot": b"\xf4" + length(5) + length(70000) + length(0) + b"\xf9\x01",
    }
    data = sealed(select(0), *(string(key, b"v", lead) for key, lead in leads.items()), magic=b"REDIS0012")
    found = {record.key: (record.expire_ms, record.idle, record.freq) for record in records_of(data)}
    assert found == {
        b"plain": (None, None, None),
        b"ms": (1_700_000_000_123, None, None),
        b"seconds": (1_700_000_000_000, None, None),
        b"idle": (None, 3, None),
        b"idle for long": (9, 100_000, None),
        b"freq": (9, None, 0xFE),
        b"slot": (None, None, 1),
    }
    (records,) = (item for item in walk(data) if item.kind == rdb_walk.RECORDS)
    assert (records.value.keys, records.value.expires) == (7, 4)


def test_opcodes_tell_what_they_say() -> None:
    module_aux = b"\xf7" + length(1 << 61) + length(2) + length(1) + length(5) + text(b"index") + length(0)
    data = sealed(
        aux(b"redis-ver", b"7.0.15"), b"\xfa" + text(b"ctime") + b"\xc2\x01\x00\x00\x00", module_aux,
        b"\xf5" + lzf(b"library" * 30),
        select(300), resize(70_000, 1), string(b"k", b"v"), module_aux,
    )  # fmt: skip
    found = [(item.kind, item.value) for item in walk(data) if item.kind != rdb_walk.RECORDS]
    assert found == [
        (rdb_types.AUX, (b"redis-ver", b"7.0.15")),
        (rdb_types.AUX, (b"ctime", b"1")),
        (rdb_types.MODULE_AUX, None),
        (rdb_types.FUNCTION2, None),
        (rdb_types.SELECTDB, 300),
        (rdb_types.RESIZEDB, (70_000, 1)),
        (rdb_types.MODULE_AUX, None),
        (rdb_types.EOF, None),
    ]


@pytest.mark.parametrize(
    ("broken", "expected"),
    [
        (record(0, b"k", b"\x82abc"), "expected a length"),
        (record(0, b"k", b"\xc4abc"), "expected a string"),
        (record(18, b"k", length(1) + length(3) + text(b"x")), "quicklist container"),
        (record(7, b"k", length(9) + length(6)), "module's field"),
        (record(8, b"k", text(b"v")), "expected a type or an opcode"),
        (record(6, b"k", text(b"v")), "before Redis 4.0"),
        (expiry(1) + select(2), "expected the type of a key"),
        (b"\xf6" + text(b"old library"), "expected a type or an opcode"),
        (b"\xf2" + text(b"of another version"), "expected a type or an opcode"),
    ],
)
def test_damage_is_told_with_what_was_expected(broken: bytes, expected: str) -> None:
    with pytest.raises(KeyferryError, match=expected):
        walk(sealed(select(0), string(b"a", b"1"), broken, string(b"z", b"2")))


def test_idempotent_producers_are_refused() -> None:
    value = stream(4)[:-3] + length(1) + text(b"pid") + length(0) * 3
    with pytest.raises(KeyferryError, match="1 idempotent producers"):
        walk(sealed(select(0), record(26, b"k", value), magic=b"REDIS0013"))


@pytest.mark.parametrize("magic", [b"REDIS0004", b"REDIS0016", b"VALKEY079", b"VALKEY082", b"RESP00100", b"REDIS00x0"])
def test_an_unknown_header_is_refused(magic: bytes) -> None:
    with pytest.raises(KeyferryError, match=r"is not known|Not an RDB"):
        rdb_types.read_header(magic)


@given(st.integers(0, (1 << 64) - 1))
def test_lengths_read_as_written(value: int) -> None:
    written = rdb_bytes.write_length(value)
    assert rdb_bytes.read_length(written, 0) == (value, len(written))


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        (text(b""), b""),
        (text(b"x" * 70), b"x" * 70),
        (b"\xc0\xff", b"-1"),
        (b"\xc1\x00\x80", b"-32768"),
        (b"\xc2\xff\xff\xff\x7f", b"2147483647"),
        (lzf(b"literals only" * 7), b"literals only" * 7),
        # One literal, then a reference of 7 + 255 + 2 bytes, one back: it overlaps what it writes.
        (b"\xc3" + length(5) + length(265) + b"\x00a\xe0\xff\x00", b"a" * 265),
    ],
)
def test_strings_are_decoded(packed: bytes, plain: bytes) -> None:
    assert rdb_bytes.read_string(packed, 0) == (plain, len(packed))
    assert rdb_bytes.skip_string(packed, 0) == len(packed)


def test_a_compressed_string_that_lies_is_damage() -> None:
    for packed in (b"\xc3\x03\x09\x01ab", b"\xc3\x02\x03\x20\x05"):
        with pytest.raises(rdb_bytes.Damage):
            rdb_bytes.read_string(packed, 0)


# -- runs, strides and windows ---------------------------------------------------------------------------------------

SHAPES = {
    "ttl": lambda: expiry(random.getrandbits(63)),
    "none": lambda: b"",
    "idle": lambda: expiry(9) + b"\xf8" + length(random.choice([1, 100, 100_000])),
    "freq": lambda: b"\xf9" + bytes([random.getrandbits(8)]),
}


def many(shape: str, count: int, odd_ones: float = 0.0, kind: int = 0) -> list[bytes]:
    """Records of one shape, with some of another kind among them."""
    built = []
    for index in range(count):
        if random.random() < odd_ones:
            built.append(record(2, b"set:%d" % index, length(2) + text(b"a") + text(b"b")))
            continue
        size = random.choice([0, 1, 5, 30, 63, 64, 65, 200, 255, 256, 257, 400, 600])
        value = random.choice([text(random.randbytes(size)), lzf(random.randbytes(size + 1)), b"\xc0\x05", b"\xc2abcd"])
        key = random.choice([text(b"key:%08d" % index), lzf(b"key:%030d" % index), b"\xc1" + random.randbytes(2)])
        built.append(SHAPES[shape]() + bytes([kind]) + key + value)
    return built


@pytest.mark.parametrize("odd_ones", [0.0, 0.001, 0.02, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_runs_find_what_strides_find(shape: str, odd_ones: float, monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(f"{shape} {odd_ones}")
    built = many(shape, 6000, odd_ones, kind=random.choice([0, 16]))
    data = sealed(select(1), *built)
    fast = walk(data)
    monkeypatch.setattr(rdb_walk.Walker, "_learn", lambda *_args: None)
    slow = walk(data)
    assert [item[:3] for item in fast] == [item[:3] for item in slow]
    counts = [
        (tally.keys, tally.expires, tally.names())
        for tally in (item.value for items in (fast, slow) for item in items if item.kind == rdb_walk.RECORDS)
    ]
    assert counts[0] == counts[1]
    assert counts[0][0] == 6000


def test_runs_are_really_taken() -> None:
    random.seed(1)
    data = sealed(select(1), *many("ttl", 6000))
    walker = rdb_walk.Walker(data, rdb_types.read_header(data))
    list(walker.items(rdb_bytes.HEADER_BYTES, len(data)))
    assert walker._pattern is not None


@pytest.mark.parametrize("count", [300, 3000])
def test_a_walk_ends_at_the_first_record_at_or_after_its_stop(count: int) -> None:
    random.seed(count)
    built = many("ttl", count)
    data = sealed(select(1), *built)
    ends = [rdb_bytes.HEADER_BYTES + 2]
    for each in built:
        ends.append(ends[-1] + len(each))
    walker = rdb_walk.Walker(data, rdb_types.read_header(data))
    for stop in random.sample(range(ends[0] + 1, ends[-1]), 200):
        tally = rdb_walk.Tally()
        end, why = walker.walk(ends[0], stop, tally)
        assert why == rdb_walk.AT_STOP
        assert end == min(offset for offset in ends if offset >= stop)
        assert tally.keys == tally.expires == ends.index(end)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_window_gives_whole_records_and_goes_on_where_it_ended(data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(VALUES.keys() - {"valkey hash", "template array"})), max_size=12))
    leads = st.sampled_from([b"", expiry(77), b"\xf8" + length(5000), b"\xf9\x05", expiry(5) + b"\xf9\x01"])
    built = [record(VALUES[n][0], data.draw(st.binary(max_size=70)), VALUES[n][1], data.draw(leads)) for n in names]
    content = b"".join(built)
    form = rdb_types.read_header(b"REDIS0014")
    pos, taken = 0, rdb_walk.Tally()
    while pos < len(content):
        window = data.draw(st.integers(1, len(content) - pos))
        walker = rdb_walk.Walker(content[pos : pos + window], form)
        tally = rdb_walk.Tally()
        end, why = walker.walk(0, window, tally)
        records, *ended = walker.read(0, window, 1 << 20)
        assert ended == [end, why]
        assert len(records) == tally.keys
        taken.add(tally)
        pos += end
        if end == 0:
            assert why == rdb_walk.AT_SHORTAGE
            pos = rdb_walk.Walker(content, form).walk(pos, pos + 1, taken)[0]
    assert taken.keys == len(built)
    assert sum(taken.names().values()) == len(built)
    assert taken.expires == sum(each.startswith(b"\xfc") for each in built)


@pytest.mark.parametrize("kind", ["bytes", "memoryview", "mmap"])
def test_any_buffer_will_do(kind: str, tmp_path) -> None:
    random.seed(5)
    data = sealed(select(1), *many("ttl", 2000))
    path = tmp_path / "dump.rdb"
    path.write_bytes(data)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        buffer = {"bytes": data, "memoryview": memoryview(data), "mmap": mapped}[kind]
        items = list(rdb_walk.Walker(buffer, rdb_types.read_header(buffer)).items(rdb_bytes.HEADER_BYTES, len(buffer)))
    assert items[1].value.keys == 2000


# -- guesses ---------------------------------------------------------------------------------------------------------


def test_a_guess_is_the_beginning_of_a_record() -> None:
    random.seed(6)
    built = many("none", 3000, odd_ones=0.1)
    data = sealed(select(1), *built, select(2), *built)
    starts, pos = set(), rdb_bytes.HEADER_BYTES
    for part in (select(1), *built, select(2), *built, b"\xff"):
        starts.add(pos)
        pos += len(part)
    walker = rdb_walk.Walker(data, rdb_types.read_header(data))
    guesses = [walker.guess(begin, len(data)) for begin in range(1000, len(data) - 100_000, len(data) // 50)]
    assert starts.issuperset(guesses)


def test_nothing_is_guessed_where_nothing_looks_like_a_record() -> None:
    data = sealed(select(1), string(b"k", b"\xc5" * 100_000))
    assert rdb_walk.Walker(data, rdb_types.read_header(data)).guess(100, 90_000) is None


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=400))
def test_bytes_that_are_no_rdb_only_ever_raise_our_error(noise: bytes) -> None:
    data = b"REDIS0011" + noise
    try:
        items = walk(data)
    except KeyferryError as error:
        assert 0 <= error.result["offset"] <= len(data)
    else:
        assert all(item.end <= len(data) for item in items)
