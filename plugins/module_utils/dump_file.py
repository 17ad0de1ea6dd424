# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A dump on disk: RESP commands between two marks that say in-band what the file holds.

Layout, every part a RESP command, so that C(redis-cli --pipe) takes the file too::

    SELECT <target_db>
    ECHO "keyferry.redis dump <json: what it is, from where>"
    SET ..., RESTORE ... (the data; every key's commands together, in blocks)
    ECHO "keyferry.redis end <json: counts, blocks, sums of all before> <sha256 of this text> <this command's length>"

A file with one mark but not the other, or whose sums differ, was cut or altered. A file without any mark was made
by another tool; its commands are walked from end to end instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import mmap
import os
import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils import crc64, resp
from ansible_collections.keyferry.redis.plugins.module_utils.ending import raise_if_ended
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.part_file import PartFile

FORMAT_VERSION = 1
# Large enough that a block in flight hides a network's round trip, small enough to keep two per connection in memory.
BLOCK_BYTES = 4 << 20
_READ_BYTES = 1 << 20
_MARK_DUMP = b"keyferry.redis dump "
_MARK_END = b"keyferry.redis end "
_LENGTH_DIGITS = 12
_HEX_DIGEST = hashlib.sha256().digest_size * 2


class Block(t.NamedTuple):
    """A part of the file that begins and ends between two keys. C(db) is the database that the file selects for it."""

    offset: int
    size: int
    commands: int
    db: int


@dataclasses.dataclass(frozen=True)
class Dump:
    """A whole and unaltered dump. C(description) and C(summary) are the marks' contents, empty for another tool's.

    C(identity) tells the file that was read from any other, and from itself written to.
    """

    path: str
    blocks: list[Block]
    keys: int
    commands: int
    description: dict[str, t.Any]
    summary: dict[str, t.Any]
    identity: tuple[int, ...] = ()

    @property
    def databases(self) -> list[int]:
        """The databases that the dump's own SELECT commands name, where anything follows them."""
        return sorted({block.db for block in self.blocks})

    @property
    def is_foreign(self) -> bool:
        """Whether another tool made it, so that the order of its commands must be kept."""
        return not self.description

    @contextlib.contextmanager
    def open(self) -> t.Iterator[t.BinaryIO]:
        """Open the file again. Raises KeyferryError where it is not the one any more that was read."""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(self.path, "rb"))
            except OSError as error:
                raise KeyferryError(f"Cannot read the dump {self.path}: {error.strerror}") from error
            if _identity(file) != self.identity:
                raise KeyferryError(
                    f"{self.path} was replaced or written to since it was found to be whole: let that end, then run"
                    " this again"
                )
            yield file

    def mapped(self) -> mmap.mmap:
        """Open it as open() does, as one run of bytes."""
        with self.open() as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class DumpWriter:
    """Writes a dump beside I(dest) under a temporary name; C(commit) gives it its own.

    C(add) may be called from several threads. Leaving the context without C(commit) removes what was written.
    """

    def __init__(self, dest: str, target_db: int, description: dict[str, t.Any]) -> None:
        self.dest = dest
        self.keys = 0
        self.bytes = 0
        self._commands = 0
        self._blocks: list[tuple[int, int]] = []
        self._block = [0, 0]
        self._hash = hashlib.sha256()
        self._crc = 0
        self._lock = threading.Lock()
        self._preamble = resp.command("SELECT", target_db) + resp.command(
            "ECHO", _MARK_DUMP + _json({"version": FORMAT_VERSION, "target_db": target_db, **description})
        )

    def __enter__(self) -> DumpWriter:
        self._file = PartFile(self.dest)
        try:
            self._write(self._preamble)
        except BaseException:
            self._file.discard()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        # Threads may still add, where the one that waits for them has ended by a signal.
        with self._lock:
            self._file.discard()

    def add(self, data: t.Any, keys: int, commands: int) -> None:
        """Append whole keys: I(data) is all the commands of I(keys) keys."""
        self.add_parts([data], keys, commands)

    def add_functions(self, made: list[bytes]) -> None:
        """Put the commands that make functions, which are no keys, before all keys."""
        if made:
            self.add(b"".join(made), 0, len(made))

    def add_parts(self, parts: t.Iterable[t.Any], keys: int, commands: int) -> None:
        """Append whole keys that come in pieces, for what is too large to hold."""
        raise_if_ended()
        with self._lock:
            for part in parts:
                self._write(part)
                self._block[0] += len(part)
            self._block[1] += commands
            self.keys += keys
            self._commands += commands
            if self._block[0] >= BLOCK_BYTES:
                self._end_block()

    def commit(self, facts: dict[str, t.Any]) -> dict[str, t.Any]:
        """Complete the file with I(facts) in its end mark, sync it and rename it; give back the end mark's contents.

        C(sha256) and C(bytes) in what is given back are the whole file's.
        """
        self._end_block()
        summary = {
            **facts,
            "keys": self.keys,
            "commands": self._commands,
            "sha256": self._hash.hexdigest(),
            "blocks": self._blocks,
            **({"crc64": f"{self._crc:016x}"} if crc64.is_there() else {}),
        }
        self._write(_end_mark(summary))
        self._file.commit()
        return {**summary, "sha256": self._hash.hexdigest(), "bytes": self.bytes}

    def _write(self, data: t.Any) -> None:
        self._hash.update(data)
        if crc64.is_there():
            self._crc = crc64.crc64(data, self._crc)
        self._file.write(data)
        self.bytes += len(data)

    def _end_block(self) -> None:
        if self._block[0]:
            self._blocks.append((self._block[0], self._block[1]))
        self._block = [0, 0]


def open_dump(path: str) -> Dump:
    """Read the dump from end to end and give back what it holds.

    Raises KeyferryError, with the byte where it can be told, for a dump that was cut or altered.
    """
    try:
        with open(path, "rb") as file:
            identity = _identity(file)
            if os.fstat(file.fileno()).st_size == 0:
                raise KeyferryError(f"{path} is empty: it was cut, or nothing was ever written to it")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                preamble_end, description = _read_preamble(data)
                end = _find_end_mark(data)
                if not description and end is None:
                    found = _walk_foreign(path, data)
                else:
                    found = _open_own(path, data, preamble_end, description, end)
                return dataclasses.replace(found, identity=identity)
    except OSError as error:
        raise KeyferryError(f"Cannot read the dump {path}: {error.strerror}") from error


def _identity(file: t.BinaryIO) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def whole_file(dump: Dump) -> dict[str, t.Any]:
    """Give back the dump's summary with C(sha256) and C(bytes) of the whole file, end mark included."""
    digest = hashlib.sha256()
    with dump.open() as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
        return {**dump.summary, "sha256": digest.hexdigest(), "bytes": file.tell()}


def _open_own(path: str, data: mmap.mmap, start: int, description: dict[str, t.Any], end: int | None) -> Dump:
    if not description or end is None:
        which = "end" if description else "beginning"
        raise KeyferryError(
            f"{path} was cut or altered: the mark at its {which} is missing or damaged ({len(data)} bytes are there)."
            " Nothing of it was sent. Dump again"
        )
    summary = _read_end_mark(path, data, end)
    # Whichever is the fastest: the target waits for it.
    name = "crc64" if "crc64" in summary and crc64.is_there() else "sha256"
    if _sum(name, data, end) != summary[name]:
        raise KeyferryError(
            f"{path} was altered: the {name} of its first {end} bytes is not the one in its end mark."
            " Nothing of it was sent. Dump again"
        )
    blocks = []
    for size, commands in summary["blocks"]:
        blocks.append(Block(start, size, commands, description["target_db"]))
        start += size
    return Dump(path, blocks, summary["keys"], summary["commands"], description, summary)


def _sum(name: str, data: mmap.mmap, end: int) -> str:
    """Give back a sum of all before I(end), as the end mark has it."""
    digest, crc = hashlib.sha256(), 0
    for offset in range(0, end, _READ_BYTES):
        part = data[offset : min(end, offset + _READ_BYTES)]
        if name == "crc64":
            crc = crc64.crc64(part, crc)
        else:
            digest.update(part)
        _forget(data, offset)
    return f"{crc:016x}" if name == "crc64" else digest.hexdigest()


def _read_preamble(data: mmap.mmap) -> tuple[int, dict[str, t.Any]]:
    """Give back where the data begins and what the first mark says; nothing where there is no such mark."""
    with contextlib.suppress(resp.ProtocolError, ValueError):
        select = resp.read_command(data, 0, len(data))
        mark = resp.read_command(data, select.end, len(data))
        text = _text_of(data, mark)
        if text.startswith(_MARK_DUMP):
            return mark.end, json.loads(text[len(_MARK_DUMP) :])
    return 0, {}


def _find_end_mark(data: mmap.mmap) -> int | None:
    """Give back where the end mark begins, by the length that it ends with."""
    tail = data[-_LENGTH_DIGITS - 2 :]
    if not tail.endswith(resp.CRLF) or not tail[:_LENGTH_DIGITS].isdigit():
        return None
    start = len(data) - int(tail[:_LENGTH_DIGITS])
    if start < 0:
        return None
    with contextlib.suppress(resp.ProtocolError):
        mark = resp.read_command(data, start, len(data))
        if mark.end == len(data) and _text_of(data, mark).startswith(_MARK_END):
            return start
    return None


def _read_end_mark(path: str, data: mmap.mmap, start: int) -> dict[str, t.Any]:
    mark = resp.read_command(data, start, len(data))
    with contextlib.suppress(ValueError, KeyError):
        body = _text_of(data, mark)[len(_MARK_END) : -_LENGTH_DIGITS - _HEX_DIGEST - 2]
        summary = json.loads(body)
        # The mark is made anew from what it says: a mark that differs in any byte is not one of ours.
        if _end_mark(summary) == data[start:]:
            return summary
    raise KeyferryError(
        f"{path} was altered: its end mark at byte {start} is damaged. Nothing of it was sent. Dump again"
    )


def _end_mark(summary: dict[str, t.Any]) -> bytes:
    body = _MARK_END + _json(summary)
    text = b"%b %b " % (body, hashlib.sha256(body).hexdigest().encode())
    size = len(resp.command("ECHO", text + b"0" * _LENGTH_DIGITS))
    return resp.command("ECHO", text + b"%0*d" % (_LENGTH_DIGITS, size))


def _walk_foreign(path: str, data: mmap.mmap) -> Dump:
    """Walk the commands of a dump that another tool made, and cut it into blocks at SELECT and by size."""
    blocks: list[Block] = []
    position = start = count = keys = total = db = 0
    key = None
    while position < len(data):
        try:
            found = resp.read_command(data, position, len(data))
        except resp.ProtocolError as error:
            what = "is cut" if error.incomplete else "is damaged"
            raise KeyferryError(
                f"{path} {what}: at byte {error.offset}, in the command {total + 1} that begins at byte {position}:"
                f" expected {error.expected}. Nothing of it was sent"
            ) from None
        total += 1
        if _is_select(data, found):
            if count:
                blocks.append(Block(start, position - start, count, db))
            db, start, count, key = int(_argument(data, found, 1)), found.end, 0, None
        else:
            count += 1
            this = _argument(data, found, 1) if len(found.arguments) > 1 else None
            keys += this != key
            key = this
            if found.end - start >= BLOCK_BYTES:
                blocks.append(Block(start, found.end - start, count, db))
                start, count = found.end, 0
                _forget(data, position)
        position = found.end
    if count:
        blocks.append(Block(start, position - start, count, db))
    commands = sum(block.commands for block in blocks)
    if not commands:
        raise KeyferryError(f"{path} holds no command that writes a key ({len(data)} bytes): was it cut?")
    return Dump(path, blocks, keys, commands, {}, {})


def _is_select(data: t.Any, found: resp.Command) -> bool:
    return (
        len(found.arguments) == 2
        and _argument(data, found, 0).upper() == b"SELECT"
        and _argument(data, found, 1).isdigit()
    )


def _argument(data: t.Any, found: resp.Command, index: int) -> bytes:
    first, last = found.arguments[index]
    return data[first:last]


def _text_of(data: t.Any, mark: resp.Command) -> bytes:
    """Give back the text of an ECHO, or nothing where it is another command."""
    if len(mark.arguments) != 2 or _argument(data, mark, 0) != b"ECHO":
        return b""
    return _argument(data, mark, 1)


def _json(value: dict[str, t.Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _forget(data: mmap.mmap, before: int) -> None:
    """Give the pages before an offset back now and then, so that the memory does not grow with the file."""
    span = 64 * _READ_BYTES
    if before and before % span < BLOCK_BYTES and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED, 0, before // mmap.PAGESIZE * mmap.PAGESIZE)
