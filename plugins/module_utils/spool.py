# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A value too large for memory, on the disk without a name."""

from __future__ import annotations

import contextlib
import os
import tempfile
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

_READ_BYTES = 1 << 20


class Spool:
    """A file without a name on the disk of I(dest); a context, in which it exists."""

    def __init__(self, dest: str) -> None:
        self._folder = os.path.dirname(dest) or "."

    def __enter__(self) -> Spool:
        with self._disk():
            self._file = tempfile.TemporaryFile(dir=self._folder)
        return self

    def __exit__(self, *_exception: object) -> None:
        # What a full disk had no room for is not needed any more.
        with contextlib.suppress(OSError):
            self._file.close()

    def write(self, piece: bytes) -> None:
        with self._disk():
            self._file.write(piece)

    def read(self, offset: int, size: int) -> bytes:
        with self._disk():
            self._file.flush()
            return os.pread(self._file.fileno(), size, offset)

    def pieces(self) -> t.Iterator[bytes]:
        """Give back what was written."""
        offset = 0
        while piece := self.read(offset, _READ_BYTES):
            yield piece
            offset += len(piece)

    @contextlib.contextmanager
    def _disk(self) -> t.Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KeyferryError(f"Cannot write in {self._folder}: {error.strerror}") from error
