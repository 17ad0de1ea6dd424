# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How one that follows in the background and those that ask for it find each other: by files beside its progress_file.

It holds a lock on C(.lock) as long as it lives, which the kernel opens however it ends; C(.stop) asks it to end.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.part_file import private, write_json
from ansible_collections.keyferry.redis.plugins.module_utils.progress import require_folder

# Neither a file nor a lock tells another process that it has changed: it has to be looked at.
_LOOK_EVERY_S = 0.2
# How long one that was just started may need before it holds the lock.
_START_S = 60
# The outcome of one that was ended before it followed.
_NOTHING: dict[str, t.Any] = {
    "round": {},
    "followed": 0,
    "copied": 0,
    "deleted": 0,
    "conflicts": 0,
    "examples": {"conflicts": []},
    "settled": False,
    "lost": False,
    "lost_reason": "",
}


class FollowFiles:
    """The files of one that follows, by the path of its progress_file."""

    def __init__(self, path: str) -> None:
        require_folder(path)
        self.path = path
        self._stop = f"{path}.stop"
        self._lock = f"{path}.lock"

    @contextlib.contextmanager
    def held(self) -> t.Iterator[None]:
        """Be the only one; raise KeyferryError where there is another one."""
        with open(self._lock, "w", encoding="ascii", opener=private) as lock:
            # Who looks whether it is held does so for a moment.
            deadline = time.monotonic() + 1
            while not _locked(lock, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise self._is_taken()
                time.sleep(_LOOK_EVERY_S)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._stop)
            yield

    def is_held(self) -> bool:
        """Tell whether there is one that follows."""
        with contextlib.suppress(FileNotFoundError), open(self._lock, "r+", encoding="ascii") as lock:
            return not _locked(lock, fcntl.LOCK_SH)
        return False

    def require_free(self) -> None:
        """Raise KeyferryError where there is one that follows; write nothing."""
        if self.is_held():
            raise self._is_taken()

    def _is_taken(self) -> KeyferryError:
        return KeyferryError(
            f"Another one follows already with this progress_file, {self.path}: end it with state=stopped"
        )

    def write(self, state: str, facts: dict[str, t.Any]) -> None:
        write_json(self.path, {"state": state, "pid": os.getpid(), **facts})

    def read(self) -> dict[str, t.Any]:
        """Give back what was written last; nothing where there is no such file."""
        with contextlib.suppress(FileNotFoundError), open(self.path, encoding="ascii") as file:
            return dict(json.load(file))
        return {}

    def ask_to_end(self, within: float) -> None:
        with open(self._stop, "w", encoding="ascii", opener=private) as file:
            file.write(f"{within}")

    def end_within(self) -> float | None:
        """Give back within how many seconds it is asked to end: infinity where nobody has said, None if it is not."""
        try:
            with open(self._stop, encoding="ascii") as file:
                return float(file.read() or "inf")
        except FileNotFoundError:
            return None

    def wait_ready(self, timeout: float) -> dict[str, t.Any]:
        """Give back what one that follows says of itself once it does.

        Raises KeyferryError, with C(running) in its result, when it has ended, or when I(timeout) seconds are over.
        """
        deadline = time.monotonic() + timeout
        start_by = time.monotonic() + min(timeout, _START_S)
        while True:
            # In this order: what it wrote last is read after it was seen to have ended.
            is_running = self.is_held()
            facts = self.read()
            if not is_running and facts:
                # One that has begun between the two looks holds its lock before it writes.
                is_running = self.is_held()
            if is_running and facts.get("state") == "following":
                return facts
            now = time.monotonic()
            if not is_running and (facts or now >= start_by):
                raise KeyferryError(f"Nothing follows: {_why(facts)}", running=False)
            if now >= deadline:
                raise KeyferryError(
                    f"It is not ready yet after timeout={timeout:g} seconds; {self.path} tells how far it is",
                    running=True,
                )
            time.sleep(_LOOK_EVERY_S)

    def wait_ended(self, timeout: float, within: float) -> dict[str, t.Any]:
        """Ask it to end, I(within) so many seconds even if the source is not quiet, and wait for I(timeout) at most.

        Gives back its outcome.
        """
        self.outcome()
        if self.is_held():
            self.ask_to_end(within)
        deadline = time.monotonic() + timeout
        while self.is_held():
            if time.monotonic() >= deadline:
                raise KeyferryError(f"It was asked to end and has not after timeout={timeout:g} seconds")
            time.sleep(_LOOK_EVERY_S)
        return self.outcome()

    def outcome(self) -> dict[str, t.Any]:
        """Give back what it has done so far, with C(lost) where it has ended by itself, before it was asked to.

        Raises KeyferryError where none was ever started.
        """
        # In this order: what it wrote last is read after it was seen to have ended.
        is_running = self.is_held()
        facts = self.read()
        if not facts:
            raise KeyferryError(f"There is no {self.path}: nothing was started with this progress_file")
        found = {name: facts.get(name, default) for name, default in _NOTHING.items()}
        if is_running or facts["state"] == "done":
            return found
        return {**found, "lost": True, "lost_reason": _why(facts)}


def _locked(file: t.IO[str], how: int) -> bool:
    """Lock the file and tell whether that was possible at once."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _why(facts: dict[str, t.Any]) -> str:
    """Give back why one does not follow any more, or never has."""
    if not facts:
        return "it was never started, or could not begin; see the result of the task that started it"
    return str(facts.get("msg") or facts.get("lost_reason") or "it was killed, or its host was restarted")
