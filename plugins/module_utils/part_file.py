# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A new file that gets its name when it is whole and on the disk."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.background import Background
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

SUFFIX = ".part"
_FLUSH_BYTES = 64 << 20
# What the size on the disk is counted in, whatever the file system's own blocks are (man 2 stat).
_BLOCK_BYTES = 512


class PartFile:
    """The file that becomes I(dest) when it is whole; until then C(.part) is added, and one process alone has it.

    Only its owner may read it. Raises KeyferryError for whatever keeps it from being written.
    """

    def __init__(self, dest: str) -> None:
        self.dest = dest
        self.path = dest + SUFFIX
        with self._errors():
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._lock()
            with self._errors():
                os.fchmod(self._fd, 0o600)
                os.ftruncate(self._fd, 0)
        except BaseException:
            os.close(self._fd)
            raise
        self._unflushed = 0
        self._flusher = Background()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # One that has just ended has renamed what was opened here: that is its result, and not to be touched.
            is_mine = os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except OSError:
            is_mine = False
        if not is_mine:
            raise KeyferryError(f"Another run is writing {self.path}: wait for it to end, or end it") from None

    def fileno(self) -> int:
        return self._fd

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Have the next write() go there."""
        return os.lseek(self._fd, offset, whence)

    def write(self, data: t.Any) -> None:
        """Append bytes, or anything that a memoryview can be made of."""
        view = memoryview(data)
        self.put(len(view), lambda done: os.write(self._fd, view[done:]))

    def put(self, size: int, put: t.Callable[[int], int]) -> None:
        """Have I(put) append I(size) bytes; it is told how many are done, and gives back how many more it has done."""
        done = 0
        with self._errors():
            while done < size:
                if not (written := put(done)):
                    raise KeyferryError(f"The source of {self.dest} was cut short while it was read: run this again")
                done += written
            self._unflushed += size
            if self._unflushed >= _FLUSH_BYTES:
                # The disk begins while the work goes on, so that little is left to wait for at the end.
                self._unflushed = 0
                self._flusher.do(lambda: os.fdatasync(self._fd))

    def settle(self) -> None:
        """Have no thread at work until more is written, so that processes can be forked."""
        with self._errors():
            self._flusher.finish()

    def commit(self) -> None:
        """Give it its name, with all of it on the disk."""
        self.settle()
        with self._errors():
            os.fsync(self._fd)
            os.rename(self.path, self.dest)
            os.close(self._fd)
            self._fd = -1
            # The name, too.
            folder = os.open(os.path.dirname(self.dest) or ".", os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def discard(self) -> None:
        """Leave nothing behind; nothing happens after commit()."""
        if self._fd < 0:
            return
        with contextlib.suppress(OSError):
            self._flusher.finish()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        os.close(self._fd)
        self._fd = -1

    @contextlib.contextmanager
    def _errors(self) -> t.Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KeyferryError(f"Cannot write {self.path}: {error.strerror}{_room(self.dest)}") from error


def write_json(path: str, facts: dict[str, t.Any]) -> None:
    """Write a small file anew, so that who looks at it sees it whole; only its owner may read it."""
    with open(path + SUFFIX, "w", encoding="ascii", opener=private) as file:
        # One that was left there may be readable to others.
        os.fchmod(file.fileno(), 0o600)
        json.dump(facts, file)
    os.rename(path + SUFFIX, path)


def private(path: str, flags: int) -> int:
    """Open a file, made such that nobody else reads it: names of keys may tell something."""
    return os.open(path, flags, 0o600)


def free_bytes(path: str) -> int:
    """How much a file of this path may still get: what a killed run has left of it gives way."""
    left = 0
    with contextlib.suppress(OSError):
        left = os.stat(path + SUFFIX).st_blocks * _BLOCK_BYTES
    return _free(path) + left


def _free(path: str) -> int:
    return shutil.disk_usage(os.path.dirname(path) or ".").free


def _room(dest: str) -> str:
    with contextlib.suppress(OSError):
        return f" ({_free(dest) >> 20} MiB are free in {os.path.dirname(dest) or '.'}). Nothing is left of it"
    return ""
