# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A dump says what it holds, and one that was cut, changed or is not whole is refused."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ansible_collections.keyferry.redis.plugins.module_utils import crc64, dump_file
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import DumpWriter, open_dump
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError, shown
from ansible_collections.keyferry.redis.plugins.module_utils.resp import command, read_command
from ansible_collections.keyferry.redis.plugins.module_utils.spool import Spool


def write(path: Path, keys: list[bytes], **facts: object) -> dict[str, object]:
    with DumpWriter(str(path), 3, {"format": "restore", "db": 1}) as writer:
        for key in keys:
            writer.add(command("RESTORE", key, 0, b"payload of " + key, "REPLACE"), 1, 1)
        return writer.commit({"expired": 0, **facts})


def test_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    summary = write(path, [b"a", b"b"], types={"string": 2})
    data = path.read_bytes()
    assert summary["sha256"] == hashlib.sha256(data).hexdigest()
    assert summary["bytes"] == len(data)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = open_dump(str(path))
    assert (found.keys, found.commands, found.databases, found.is_foreign) == (2, 2, [3], False)
    assert found.description == {"version": 1, "target_db": 3, "format": "restore", "db": 1}
    assert found.summary["types"] == {"string": 2}
    assert dump_file.whole_file(found) == {**found.summary, "sha256": summary["sha256"], "bytes": len(data)}
    assert data.startswith(command("SELECT", 3))
    assert list(tmp_path.iterdir()) == [path]


def test_blocks_lie_between_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dump_file, "BLOCK_BYTES", 100)
    path = tmp_path / "dump"
    write(path, [b"key-%d" % at for at in range(50)])
    found = open_dump(str(path))
    data = path.read_bytes()
    assert len(found.blocks) > 10
    assert sum(block.commands for block in found.blocks) == 50
    for block in found.blocks:
        position = block.offset
        for _command in range(block.commands):
            position = read_command(data, position, len(data)).end
        assert position == block.offset + block.size


def test_one_without_keys_is_whole(tmp_path: Path) -> None:
    write(tmp_path / "dump", [])
    found = open_dump(str(tmp_path / "dump"))
    assert (found.keys, found.blocks) == (0, [])


def test_cut_at_every_byte_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    write(path, [b"a", b"b\r\n*1\r\n"])
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(KeyferryError):
            # Cut within its first two commands it cannot be told from another tool's, which is cut there too.
            assert open_dump(str(path)).commands == 0


@pytest.fixture(params=[(True, True), (False, True), (True, False)], ids=["both", "reader", "writer"])
def anycrc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The library is there where the dump is written, and after a call of this where it is read, or at one of them."""
    at_writer, at_reader = request.param
    monkeypatch.setattr(crc64, "is_there", lambda: at_writer)
    return lambda: monkeypatch.setattr(crc64, "is_there", lambda: at_reader)


def test_changed_at_every_byte_it_is_refused(tmp_path: Path, anycrc: Callable[[], None]) -> None:
    path = tmp_path / "dump"
    write(path, [b"a", b"b"])
    anycrc()
    assert open_dump(str(path)).keys == 2
    whole = bytearray(path.read_bytes())
    for at in range(len(whole)):
        for flip in (0x01, 0x20, 0xFF):
            changed = bytearray(whole)
            changed[at] ^= flip
            path.write_bytes(changed)
            with pytest.raises(KeyferryError):
                open_dump(str(path))


def test_bytes_added_or_moved_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    write(path, [b"a", b"b"])
    whole = path.read_bytes()
    for other in (whole + b"\r\n", whole + whole, whole[len(command("SELECT", 3)) :], whole + command("PING")):
        path.write_bytes(other)
        with pytest.raises(KeyferryError):
            open_dump(str(path))


def test_random_bytes_of_a_large_one_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    rng = random.Random(5)
    write(path, [rng.randbytes(1 << 14) for _key in range(200)])
    size = path.stat().st_size
    with open(path, "r+b") as file:
        for at in [rng.randrange(size) for _try in range(30)]:
            byte = os.pread(file.fileno(), 1, at)
            os.pwrite(file.fileno(), bytes([byte[0] ^ 0x10]), at)
            with pytest.raises(KeyferryError):
                open_dump(str(path))
            os.pwrite(file.fileno(), byte, at)
    assert open_dump(str(path)).keys == 200


def test_nothing_is_left_of_one_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(b"what was here before")
    with pytest.raises(RuntimeError), DumpWriter(str(path), 0, {}) as writer:
        writer.add(b"part", 1, 1)
        raise RuntimeError
    assert path.read_bytes() == b"what was here before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    Path(f"{path}.part").write_bytes(b"half of an older dump")
    write(path, [b"a"])
    assert open_dump(str(path)).keys == 1


def test_two_runs_do_not_write_one_dump(tmp_path: Path) -> None:
    path = str(tmp_path / "dump")
    with DumpWriter(path, 0, {}) as writer:
        with pytest.raises(KeyferryError, match="Another run is writing"), DumpWriter(path, 0, {}):
            pass
        writer.commit({})
    assert open_dump(path).keys == 0


@pytest.fixture
def little_room() -> Iterator[None]:
    """No file of this process may become larger than 64 KiB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("little_room")
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyferryError, match=r"Cannot write .*dump\.part: .*MiB are free"):
        write(tmp_path / "dump", [b"k" * 1000] * 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("little_room")
def test_a_disk_that_is_full_with_the_last_of_a_large_value_is_told(tmp_path: Path) -> None:
    """It is still in a buffer then; an OSError would be taken for one of the connection."""
    with pytest.raises(KeyferryError, match=r"Cannot write in .*: File too large"), Spool(str(tmp_path / "d")) as spool:
        spool.write(b"v" * (1 << 16))
        spool.write(b"v")
        list(spool.pieces())


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(KeyferryError, match="No such file or directory"):
        write(tmp_path / "none" / "dump", [b"a"])
    with pytest.raises(KeyferryError, match="Cannot read the dump"):
        open_dump(str(tmp_path / "none"))


class TestOfAnotherTool:
    def test_blocks_follow_its_selects(self, tmp_path: Path) -> None:
        path = tmp_path / "dump"
        parts = [
            [command("SET", "before any select", 1)],
            [command("select", 1), command("SET", "a", 1), command("EXPIREAT", "a", 2), command("SET", "b", 1)],
            [command("SELECT", 0), command("SELECT", 12), command("RPUSH", "c", *range(9))],
        ]
        path.write_bytes(b"".join(b"".join(part) for part in parts))
        found = open_dump(str(path))
        assert found.is_foreign
        assert [(block.db, block.commands) for block in found.blocks] == [(0, 1), (1, 3), (12, 1)]
        assert (found.keys, found.commands, found.databases) == (4, 5, [0, 1, 12])

    def test_cut_within_a_command_it_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "dump"
        first = command("SET", "key", "value")
        whole = first + command("SET", "other", "value")
        for size in range(len(first) + 1, len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(KeyferryError, match=f"command 2 that begins at byte {len(first)}"):
                open_dump(str(path))

    @pytest.mark.parametrize(
        ("data", "said"),
        [
            (b"", "is empty"),
            (command("SELECT", 1), "holds no command that writes a key"),
            (b"REDIS0009\xfa", "expected '\\*'"),
            (b"SET inline 1\r\nSET inline 2\r\n", "expected '\\*'"),
        ],
    )
    def test_what_is_no_dump_is_told(self, tmp_path: Path, data: bytes, said: str) -> None:
        path = tmp_path / "dump"
        path.write_bytes(data)
        with pytest.raises(KeyferryError, match=said):
            open_dump(str(path))


def test_a_key_is_shown_in_ascii() -> None:
    assert shown(b"a\x00\xff\r\n'") == r'''"a\x00\xff\r\n'"'''
    assert shown(b"x" * 200) == f"'{'x' * 120}'... (200 bytes)"
