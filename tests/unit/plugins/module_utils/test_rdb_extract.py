# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cutting databases out of files built by hand: what is written, what is refused, and walkers that meet or do not."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unit.plugins.module_utils.rdb_files import aux, expiry, length, record, resize, sealed, select, string, text

from ansible_collections.keyferry.redis.plugins.module_utils import extract as extraction
from ansible_collections.keyferry.redis.plugins.module_utils import part_file, rdb_pass
from ansible_collections.keyferry.redis.plugins.module_utils.crc64 import crc64
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.extract import extract
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_pass import Wanted

MIB = 1 << 20
VERSION = aux(b"redis-ver", b"7.0.15")
CTIME = b"\xfa" + text(b"ctime") + b"\xc2\x7e\x56\x03\x6b"
STALE = aux(b"repl-stream-db", b"0") + aux(b"repl-id", b"f" * 40) + aux(b"repl-offset", b"123")
MODULE_AUX = b"\xf7" + length(1 << 61) + length(2) + length(1) + length(5) + text(b"index") + length(0)
FUNCTION = b"\xf5" + text(b"#!lua name=lib")
RECORDS = {
    0: [string(b"stays", b"behind")],
    1: [
        string(b"a", b"1", expiry(99)),
        record(4, b"h", length(1) + text(b"f") + text(b"v")),
        string(b"b", b"2", b"\xf9\x05"),
    ],
    3: [string(b"c", b"3"), string(b"d", b"4", expiry(4_000_000_000_000))],
}
SMALL = sealed(
    VERSION, STALE, CTIME, MODULE_AUX, FUNCTION,
    select(0), resize(1, 0), *RECORDS[0],
    select(1), resize(3, 1), *RECORDS[1],
    select(3), resize(2, 1), *RECORDS[3], MODULE_AUX,
)  # fmt: skip
DB_1 = sealed(VERSION, CTIME, MODULE_AUX, select(0), resize(3, 1), *RECORDS[1], MODULE_AUX)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    path = tmp_path / "source.rdb"
    path.write_bytes(SMALL)
    return path


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "dest.rdb"


def cut(src: Path, dest: Path, db: int = 1, target_db: int = 0, **options: Any) -> dict[str, Any]:
    return extract(str(src), [Wanted(db, str(dest), target_db)], **options)


def test_the_new_file_is_the_old_one_without_the_rest(src: Path, dest: Path) -> None:
    result = cut(src, dest)
    assert dest.read_bytes() == DB_1
    assert dest.stat().st_mode & 0o777 == 0o600
    assert result.pop("elapsed") > 0
    assert result == {
        "changed": True,
        "rdb_version": "REDIS0010",
        "databases": {
            "0": {"keys": 1, "expires": 0},
            "1": {"keys": 3, "expires": 1},
            "3": {"keys": 2, "expires": 1},
        },
        "extracted": [
            {
                "db": 1,
                "target_db": 0,
                "dest": str(dest),
                "changed": True,
                "keys": 3,
                "expires": 1,
                "types": {"hash": 1, "string": 2},
                "bytes": len(DB_1),
                "sha256": hashlib.sha256(DB_1).hexdigest(),
            }
        ],
    }


def test_it_tells_how_far_it_is(tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdb_pass, "CHUNK", 40_000)
    content, _records = big_file(1, [])
    src = tmp_path / "plain.rdb"
    src.write_bytes(content)
    told: list[tuple[int, int]] = []
    cut(src, dest, progress=lambda *done: told.append(done))
    assert len(told) > 5
    assert told == sorted(told)
    assert told[-1] == (len(content), len(content))


def test_functions_come_along_into_the_target_db(src: Path, dest: Path) -> None:
    cut(src, dest, target_db=300, functions=True)
    expected = sealed(VERSION, CTIME, MODULE_AUX, FUNCTION, select(300), resize(3, 1), *RECORDS[1], MODULE_AUX)
    assert dest.read_bytes() == expected


def test_several_databases_are_cut_in_one_pass(src: Path, tmp_path: Path) -> None:
    wanted = [Wanted(db, str(tmp_path / f"db-{db}.rdb"), db) for db in (3, 1)]
    result = extract(str(src), wanted)
    assert [each["keys"] for each in result["extracted"]] == [2, 3]
    for db, keys, expires in ((1, 3, 1), (3, 2, 1)):
        parts = (VERSION, CTIME, MODULE_AUX, select(db), resize(keys, expires), *RECORDS[db], MODULE_AUX)
        assert (tmp_path / f"db-{db}.rdb").read_bytes() == sealed(*parts)


def test_a_database_that_is_selected_twice_is_one(tmp_path: Path, dest: Path) -> None:
    src = tmp_path / "twice.rdb"
    src.write_bytes(sealed(select(1), string(b"a", b"1"), select(2), string(b"x", b"9"), select(1), string(b"b", b"2")))
    assert cut(src, dest)["extracted"][0]["keys"] == 2
    assert dest.read_bytes() == sealed(select(0), string(b"a", b"1"), string(b"b", b"2"))


@pytest.mark.parametrize("workers", [1, 3])
def test_hash_templates_go_with_the_hashes(
    tmp_path: Path, dest: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdb_pass, "CHUNK", 10_000)
    template = b"\xf2" + length(9) + length(2) + text(b"f1") + text(b"f2")
    hashes = [record(32, b"h%d" % i, length(9) + text(b"one" * 9) + text(b"two")) for i in range(2000)]
    # Within a value, what would be another template of the same number.
    hashes.insert(1000, string(b"s", (b"\xf2" + length(9) + length(1) + text(b"f1") + hashes[0]) * 2000))
    src = tmp_path / "templates.rdb"
    src.write_bytes(sealed(template, select(1), *hashes, magic=b"REDIS0015"))
    assert cut(src, dest, workers=workers)["extracted"][0]["types"] == {"hash": 2000, "string": 1}
    assert dest.read_bytes() == sealed(template, select(0), *hashes, magic=b"REDIS0015")


def test_the_second_run_changes_nothing(src: Path, dest: Path) -> None:
    cut(src, dest)
    before = dest.stat()
    result = cut(src, dest)
    assert not result["changed"]
    assert dest.stat() == before
    assert result["extracted"][0]["sha256"] == hashlib.sha256(DB_1).hexdigest()


def test_force_writes_again(src: Path, dest: Path) -> None:
    cut(src, dest)
    before = dest.stat().st_ino
    assert cut(src, dest, force=True)["changed"]
    assert dest.stat().st_ino != before


@pytest.mark.parametrize("there", [b"", b"something else", SMALL, DB_1[:-1] + b"\x00"])
def test_another_file_under_the_name_is_replaced(src: Path, dest: Path, there: bytes) -> None:
    dest.write_bytes(there)
    assert cut(src, dest)["changed"]
    assert dest.read_bytes() == DB_1


def test_only_what_is_missing_is_written(src: Path, tmp_path: Path) -> None:
    wanted = [Wanted(db, str(tmp_path / f"db-{db}.rdb")) for db in (1, 3)]
    extract(str(src), wanted[:1])
    assert [each["changed"] for each in extract(str(src), wanted)["extracted"]] == [False, True]


@pytest.mark.parametrize("there", [None, b"old", DB_1])
def test_check_mode_tells_all_and_touches_nothing(src: Path, dest: Path, there: bytes | None) -> None:
    if there is not None:
        dest.write_bytes(there)
    before = sorted(os.listdir(dest.parent))
    result = cut(src, dest, dry=True)
    assert result["changed"] == (there != DB_1)
    assert result["extracted"][0]["sha256"] == hashlib.sha256(DB_1).hexdigest()
    assert sorted(os.listdir(dest.parent)) == before
    assert (dest.read_bytes() if dest.exists() else None) == there


def test_what_an_interrupted_run_left_is_written_over(src: Path, dest: Path) -> None:
    partial = Path(f"{dest}{part_file.SUFFIX}")
    partial.write_bytes(b"half of it" * 1000)
    cut(src, dest)
    assert dest.read_bytes() == DB_1
    assert not partial.exists()


# -- what is refused -------------------------------------------------------------------------------------------------


def refuse(src: Path, dest: Path, match: str, **options: Any) -> KeyferryError:
    with pytest.raises(KeyferryError, match=match) as caught:
        cut(src, dest, **options)
    assert {path.name for path in dest.parent.iterdir()} <= {src.name, "source.rdb"}
    return caught.value


def test_cut_at_any_byte_it_is_refused(src: Path, dest: Path) -> None:
    for size in range(len(SMALL)):
        src.write_bytes(SMALL[:size])
        refuse(src, dest, "source.rdb|Not an RDB")


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_with_any_byte_changed_it_is_refused(src: Path, dest: Path, bit: int) -> None:
    for at in range(len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[at] ^= 1 << bit
        src.write_bytes(damaged)
        refuse(src, dest, "source.rdb|Not an RDB|is not known")


def test_a_wrong_checksum_is_told(src: Path, dest: Path) -> None:
    src.write_bytes(SMALL[:-1] + bytes([SMALL[-1] ^ 1]))
    error = refuse(src, dest, "is damaged: the checksum at byte")
    assert error.result["offset"] == len(SMALL) - 8


def test_a_checksum_of_zero_is_none_and_the_new_file_has_one(src: Path, dest: Path) -> None:
    src.write_bytes(SMALL[:-8] + bytes(8))
    cut(src, dest)
    assert dest.read_bytes() == DB_1


def test_bytes_after_the_end_are_refused(src: Path, dest: Path) -> None:
    src.write_bytes(SMALL + SMALL)
    refuse(src, dest, "two files in one")
    body = SMALL[:-8] + b"\x00"
    src.write_bytes(body + crc64(body).to_bytes(8, "little"))
    refuse(src, dest, "after the end of the RDB")


def test_a_database_without_keys_is_named(src: Path, dest: Path) -> None:
    refuse(src, dest, "no keys in database 2; databases with keys: 0, 1, 3", db=2)


def test_keys_before_any_database_are_refused(src: Path, dest: Path) -> None:
    src.write_bytes(sealed(string(b"a", b"1")))
    refuse(src, dest, "expected a SELECTDB before the first key")


def test_the_source_is_never_the_destination(src: Path, dest: Path) -> None:
    refuse(src, src, "the source itself")
    dest.hardlink_to(src)
    with pytest.raises(KeyferryError, match="the source itself"):
        cut(src, dest)
    assert src.read_bytes() == SMALL


def test_destinations_are_checked_before_the_walk(src: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyferryError, match="does not exist"):
        cut(src, tmp_path / "none" / "dest.rdb")
    with pytest.raises(KeyferryError, match="is a directory"):
        cut(src, tmp_path)
    with pytest.raises(KeyferryError, match="destination of two"):
        extract(str(src), [Wanted(0, str(tmp_path / "x")), Wanted(1, str(tmp_path / "." / "x"))])
    with pytest.raises(KeyferryError, match="Cannot read the RDB file"):
        cut(tmp_path / "none.rdb", tmp_path / "dest.rdb")


def test_two_runs_at_once_do_not_mix(src: Path, dest: Path) -> None:
    partial = part_file.PartFile(str(dest))
    try:
        with pytest.raises(KeyferryError, match="Another run is writing"):
            cut(src, dest)
    finally:
        partial.discard()


def test_without_space_nothing_is_begun(src: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "free_bytes", lambda _wanted: len(DB_1) - 1)
    refuse(src, dest, f"No space for .*: {len(DB_1)} bytes are to be written, {len(DB_1) - 1} are free")
    monkeypatch.setattr(extraction, "free_bytes", lambda _wanted: len(DB_1))
    cut(src, dest)
    assert dest.read_bytes() == DB_1


def test_what_a_killed_run_has_left_is_room(dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_file, "_free", lambda _path: 1000)
    assert part_file.free_bytes(str(dest)) == 1000
    Path(f"{dest}.part").write_bytes(b"x" * MIB)
    assert part_file.free_bytes(str(dest)) >= 1000 + MIB


def test_a_source_that_is_written_to_in_its_place_is_noticed(
    src: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the pass and the writing, where what was there before had to be looked at."""
    dest.write_bytes(b"an older one")
    holds = extraction._FileDestination.holds

    def write_and_hold(self: Any, cut: Any) -> bool:
        src.write_bytes(SMALL.replace(b"behind", b"before"))
        return holds(self, cut)

    monkeypatch.setattr(extraction._FileDestination, "holds", write_and_hold)
    with pytest.raises(KeyferryError, match="was written to while it was read"):
        cut(src, dest)
    assert dest.read_bytes() == b"an older one"
    assert {path.name for path in dest.parent.iterdir()} == {src.name, dest.name}


# -- walkers that meet -----------------------------------------------------------------------------------------------


def hostile_values() -> dict[str, bytes]:
    """Values that look like what they are not, when one begins to read in their middle."""
    alike = b"".join(string(b"fake:%d" % index, b"v" * 40, expiry(1)) for index in range(3000))
    return {
        "records": alike,
        "a whole RDB": sealed(VERSION, select(1), resize(9, 9), alike),
        "an end of file": sealed(select(1), string(b"k", b"v")) * 500,
        "zeros": bytes(100_000),
        "lists without end": b"\x01\x01k\x80\xff\xff\xff\xff" * 10_000,
        "opcodes": b"\xfc\xfd\xf8\xf9\xfe\xfb" * 20_000,
        "noise": random.Random(3).randbytes(200_000),
    }


def big_file(seed: int, hostile: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Three databases; the records of DB 1 beside it, hostile values among them."""
    rnd = random.Random(seed)
    records = [string(b"key:%06d" % i, rnd.randbytes(rnd.randint(0, 90)), expiry(i)) for i in range(4000)]
    for value in hostile:
        records.insert(rnd.randrange(len(records)), string(b"hostile:%d" % rnd.getrandbits(60), value))
    others = [string(b"other:%06d" % i, b"o" * 40) for i in range(2000)]
    parts = (select(0), resize(2000, 0), *others, select(1), *records, select(2), *others)
    return sealed(VERSION, *parts), records


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("name", [*hostile_values(), "all of them"])
def test_guesses_never_change_the_result(
    name: str, workers: int, tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdb_pass, "CHUNK", 40_000)
    values = hostile_values()
    content, records = big_file(7, list(values.values()) if name == "all of them" else [values[name]] * 3)
    src = tmp_path / "hostile.rdb"
    src.write_bytes(content)
    result = cut(src, dest, workers=workers)
    assert dest.read_bytes() == sealed(VERSION, select(0), *records)
    assert result["databases"] == {
        "0": {"keys": 2000, "expires": 0},
        "1": {"keys": len(records), "expires": 4000},
        "2": {"keys": 2000, "expires": 0},
    }


def test_walkers_do_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdb_pass, "CHUNK", 100_000)
    path = tmp_path / "plain.rdb"
    path.write_bytes(big_file(8, [])[0])
    source = rdb_pass.RdbFile(str(path))
    walked = []
    walk = rdb_pass.RdbFile.span
    try:
        monkeypatch.setattr(rdb_pass.RdbFile, "span", lambda *args: walked.append(args[1:]) or walk(*args))
        spans = list(rdb_pass._confirmed_spans(source, 2))
    finally:
        source.close()
    # Of each chunk but the first, the parent walks only what lies before the place where its walker began.
    assert len(walked) == source.chunks - 1
    assert sum(stop - start for start, stop in walked) < source.size / 2
    assert [span.start for span in spans[1:]] == [span.end for span in spans[:-1]]


def test_damage_far_into_the_file_is_found_by_any_number_of_workers(
    tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rdb_pass, "CHUNK", 40_000)
    content, _records = big_file(9, [])
    at = content.index(b"key:003000") - 2
    src = tmp_path / "damaged.rdb"
    src.write_bytes(content[:at] + b"\xee" + content[at + 1 :])
    errors = {refuse(src, dest, "expected the type of a key|expected a type", workers=n).msg for n in (1, 2, 4)}
    assert len(errors) == 1


def test_a_worker_that_dies_is_done_without(tmp_path: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdb_pass, "CHUNK", 40_000)
    content, records = big_file(10, [])
    src = tmp_path / "plain.rdb"
    src.write_bytes(content)
    guessed_span = rdb_pass.RdbFile.guessed_span

    def dying_span(*args: Any) -> Any:
        if args[1] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return guessed_span(*args)

    monkeypatch.setattr(rdb_pass.RdbFile, "guessed_span", dying_span)
    cut(src, dest, workers=2)
    assert dest.read_bytes() == sealed(VERSION, select(0), *records)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_databases_come_out_as_they_went_in(tmp_path: Path, data: st.DataObject) -> None:
    lead = st.sampled_from([b"", expiry(1), b"\xf9\x01", expiry(2) + b"\xf8\x05"])
    value = st.one_of(st.binary(max_size=300), st.just(SMALL), st.just(string(b"k", b"v") * 100))
    some = st.lists(st.tuples(st.binary(max_size=20), value, lead), min_size=1, max_size=20)
    dbs = data.draw(st.dictionaries(st.integers(0, 20000), some, min_size=1, max_size=4))
    built = {db: [string(*each) for each in each_db] for db, each_db in sorted(dbs.items())}
    src = tmp_path / "any.rdb"
    src.write_bytes(sealed(VERSION, *(part for db, records in built.items() for part in (select(db), *records))))
    wanted = [Wanted(db, str(tmp_path / f"{db}.rdb"), db // 2) for db in built]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rdb_pass, "CHUNK", data.draw(st.integers(50, 5000)))
        extract(str(src), wanted, workers=data.draw(st.integers(1, 3)), force=True)
    for db, records in built.items():
        assert (tmp_path / f"{db}.rdb").read_bytes() == sealed(VERSION, select(db // 2), *records)
