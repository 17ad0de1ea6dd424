# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""redis_follow in a process of its own, as Ansible has it in the background, and applications that write meanwhile."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from support.modules import module_process, run_module


class Follower:
    """One that follows in the background, and what a play asks of it."""

    def __init__(self, folder: Path, **args: Any) -> None:
        self.file = folder / "follow.json"
        self._args = {"progress_file": str(self.file), "settle_seconds": 0.3, **args}
        self._processes = contextlib.ExitStack()
        self.start()

    def start(self) -> None:
        self.end()
        self.file.unlink(missing_ok=True)
        self.process = self._processes.enter_context(module_process("redis_follow", **self._args))

    def ask(self, state: str, **args: Any) -> dict[str, Any]:
        return run_module("redis_follow", state=state, progress_file=str(self.file), **{"timeout": 120, **args})

    def ready(self) -> dict[str, Any]:
        found = self.ask("ready")
        assert "failed" not in found, found
        return found

    def stopped(self) -> dict[str, Any]:
        found = self.ask("stopped")
        assert "failed" not in found, found
        return found

    def result(self) -> dict[str, Any]:
        """What it returns itself at its end."""
        found = json.loads(self.process.stdout.read())
        self.process.wait()
        return dict(found)

    def end(self) -> None:
        self._processes.close()


@contextlib.contextmanager
def following(folder: Path, **args: Any) -> Iterator[Follower]:
    follower = Follower(folder, **args)
    try:
        yield follower
    finally:
        follower.end()


class Writer:
    """An application that changes keys of its own range without a pause, and knows which, in their order."""

    def __init__(
        self, client: redis.Redis, prefix: str = "w", keys: int = 400, seed: int = 1, expiring: bool = True
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._keys = keys
        self._random = random.Random(seed)
        self._kinds = [kind for kind in _WRITES if expiring or kind is not _short]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None
        self.log: list[bytes] = []

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()
        assert self._error is None, self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._client.pipeline(transaction=False) as pipeline:
                    keys = [self.write(pipeline) for _write in range(10)]
                    # Before they are sent: what is in no log was not written.
                    self.log += keys
                    pipeline.execute(raise_on_error=False)
                self._stop.wait(0.002)
        except Exception as error:
            self._error = error

    def write(self, pipeline: Any) -> bytes:
        """Change one key somehow; give back its name."""
        kind = self._random.choice(self._kinds)
        name = f"{self._prefix}:{kind.__name__}:{self._random.randrange(self._keys)}"
        kind(pipeline, name, self._random.randrange(1_000_000))
        return name.encode()


def _string(pipeline: Any, name: str, value: int) -> None:
    if value % 5 == 0:
        pipeline.delete(name)
    elif value % 5 == 1:
        pipeline.append(name, value)
    elif value % 5 == 2:
        pipeline.expire(name, 3600 + value)
    else:
        pipeline.set(name, value, px=value + 3_600_000 if value % 5 == 3 else None)


def _short(pipeline: Any, name: str, value: int) -> None:
    """It expires, and comes again: a counter for some time."""
    pipeline.set(name, value, px=1 + value % 300)


def _hash(pipeline: Any, name: str, value: int) -> None:
    pipeline.delete(name) if value % 10 == 0 else pipeline.hset(name, f"field{value % 20}", value)


def _list(pipeline: Any, name: str, value: int) -> None:
    pipeline.delete(name) if value % 10 == 0 else pipeline.rpush(name, value)


_WRITES: tuple[Callable[[Any, str, int], None], ...] = (_string, _short, _hash, _list)
