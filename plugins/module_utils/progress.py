# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How far a long task is, in a file that other tools can read while it runs."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.part_file import write_json

Progress = t.Callable[[int, int], None]

INTERVAL_S = 1.0


def silent(_done: int, _bytes: int) -> None:
    """Tell nobody."""


@contextlib.contextmanager
def progress_to(path: str | None, total: t.Callable[[], int | None]) -> t.Iterator[Progress]:
    """Give back what a task calls with what it has done and its bytes so far; I(path) is None where nobody looks.

    I(total) gives how much there is to do, None where that is not known. It is asked only where somebody looks.
    Raises KeyferryError where there is no folder for the file.
    """
    if path is None:
        yield silent
        return
    require_folder(path)
    file = _ProgressFile(path, total())
    try:
        yield file
    except BaseException:
        file.write("failed")
        raise
    file.write("done")


def require_folder(path: str) -> None:
    """Raise KeyferryError where there is no folder for a progress_file."""
    if not os.path.isdir(os.path.dirname(path) or "."):
        raise KeyferryError(f"The folder of progress_file {path} does not exist: make it first, or name another file")


class _ProgressFile:
    """Keeps the file, and writes it once in a while; callable from several threads."""

    def __init__(self, path: str, total: int | None) -> None:
        self._path = path
        self._total = total
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._done = self._bytes = 0
        self.write("running")
        self._due = self._started + INTERVAL_S

    def __call__(self, done: int, size: int) -> None:
        self._done, self._bytes = max(done, self._done), max(size, self._bytes)
        # Who comes while another one writes has nothing new to tell.
        if time.monotonic() < self._due or not self._lock.acquire(blocking=False):
            return
        try:
            self._due = time.monotonic() + INTERVAL_S
            self.write("running")
        finally:
            self._lock.release()

    def write(self, state: str) -> None:
        elapsed = time.monotonic() - self._started
        rate = self._done / elapsed if elapsed else 0.0
        left = None if self._total is None or not rate else max(self._total - self._done, 0) / rate
        facts = {
            "state": state,
            "done": self._done,
            "total": self._total,
            "bytes": self._bytes,
            "per_second": round(rate),
            "seconds_left": None if left is None else round(left, 1),
            "elapsed": round(elapsed, 3),
        }
        # That nobody can look is no reason to end the task.
        with contextlib.suppress(OSError):
            write_json(self._path, facts)
