# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Start, find and end a lab. The lab itself is a process of its own (see server.py); this is its handle."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .nodes import spawn_tied, wait_for


class LabFailed(RuntimeError):
    """The lab did not start or did not end."""


class Lab:
    """A lab in `directory`. As a context manager it is started and ended, and dies with this process in any case.

    `info` is the object of `directory/lab.json`: endpoint_url, region, access_key, secret_key, account, bucket,
    source_replication_group_id, admin_user, admin_password, pid, engine, dir.
    """

    def __init__(self, directory: str | Path, **options: Any) -> None:
        """Options, as `python -m lab start` has them: engine, keys, empty, delay, shards."""
        self.directory = Path(directory).resolve()
        self.options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def info(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "lab.json").read_text()))

    def is_running(self) -> bool:
        """The lab's process holds a lock on `lab.lock`, and has its process id in there, as long as it lives."""
        path = self.directory / "lab.lock"
        if not path.exists():
            return False
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def start(self) -> None:
        """Start the lab as a daemon and wait until it serves; nothing happens where it already runs."""
        self._start(subprocess.Popen)

    def _start(self, spawn: Callable[..., subprocess.Popen[bytes]]) -> None:
        ready = (self.directory / "lab.json").exists
        if not self.is_running():
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / "lab.json").unlink(missing_ok=True)
            self._process = process = self._spawn(spawn)
            wait_for(lambda: self.is_running() or process.poll() is not None, "the lab to start")
        wait_for(lambda: ready() or not self.is_running(), "the lab to be ready", 600)
        if not ready():
            tail = (self.directory / "lab.log").read_text(errors="replace")[-2000:]
            raise LabFailed(f"the lab in {self.directory} did not start: {tail}")

    def _spawn(self, spawn: Callable[..., subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "lab", "serve", "--dir", str(self.directory)]
        for name, value in self.options.items():
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)] if value is not False else []
        here = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH", "")]))
        with (self.directory / "lab.log").open("w") as log:
            return spawn(
                command,
                env={**os.environ, "PYTHONPATH": path},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        """End the lab with all its servers and wait until they are gone; nothing happens where none runs."""
        for number, patience in ((signal.SIGTERM, 60), (signal.SIGKILL, 10)):
            if not self.is_running():
                break
            os.kill(int(wait_for((self.directory / "lab.lock").read_text, "the lab's process id")), number)
            with contextlib.suppress(TimeoutError):
                wait_for(lambda: not self.is_running(), "the lab to end", patience)
        if self.is_running():
            raise LabFailed(f"the lab in {self.directory} does not end")
        if self._process:
            self._process.wait()
        (self.directory / "lab.json").unlink(missing_ok=True)

    def __enter__(self) -> Lab:
        self._start(spawn_tied)
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
