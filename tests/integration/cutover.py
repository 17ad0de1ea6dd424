# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs of the playbook migrate_db against a lab, as an operator starts them in the checkout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from support.modules import LabModules

from lab import Lab
from lab.nodes import wait_for
from lab.prove import Side, prove

TOP = Path(__file__).parents[2]
SOURCE = "shared-redis"
# No test lasts as long as this, so that what has a longer TTL cannot expire in it.
LONG_MS = 30 * 60 * 1000


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code, all that it printed, and the numbers of its recap."""

    code: int
    output: str

    @property
    def recap(self) -> dict[str, int]:
        line = re.search(r"^localhost +: (.*)$", self.output, re.MULTILINE)
        return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", line[1] if line else "")}

    @property
    def words(self) -> str:
        """What it printed, on one line: output wraps long messages."""
        return " ".join(self.output.split())


class Cutover:
    """One lab, and runs of the playbook against it."""

    def __init__(self, lab: Lab) -> None:
        self.aws = LabModules(lab)
        self.info = lab.info
        self.host = Path(self.info["dir"]) / "host"

    def run(self, *arguments: str, **extra: Any) -> Outcome:
        """Run the playbook to its end with `-e` for each of `extra`."""
        with self.start(*arguments, **extra) as running:
            return running.end()

    def succeed(self, *arguments: str, **extra: Any) -> Outcome:
        outcome = self.run(*arguments, **extra)
        assert outcome.code == 0, outcome.output
        return outcome

    def refuse(self, *words: str, arguments: tuple[str, ...] = (), **extra: Any) -> Outcome:
        """Run it where it must fail with all of these words, the source unchanged."""
        before = self.source_digest()
        outcome = self.run(*arguments, **extra)
        assert outcome.code != 0, outcome.output
        missing = [word for word in words if word not in outcome.words]
        assert not missing, f"{missing} not in: {outcome.output}"
        assert self.source_digest() == before
        assert not self.half_files()
        return outcome

    @contextlib.contextmanager
    def start(self, *arguments: str, file_limit: int | None = None, **extra: Any) -> Iterator[Running]:
        """Start a run; it is killed when it has not ended by the end of the context."""
        settings = [f"--extra-vars={json.dumps(extra)}"] if extra else []
        process = subprocess.Popen(
            [sys.executable, "-m", "ansible", "playbook", "playbooks/migrate_db.yml", *settings, *arguments],
            cwd=TOP,
            env={**os.environ, "KEYFERRY_LAB_DIR": self.info["dir"], "PYTHONUNBUFFERED": "1", "ANSIBLE_NOCOLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=None if file_limit is None else lambda: limit_files(file_limit),
        )
        running = Running(process)
        try:
            yield running
        finally:
            if process.poll() is None:
                running.kill()
            process.stdout.close()

    def half_files(self) -> list[Path]:
        """Files under a temporary name that are left on the migration host."""
        return list(self.host.glob("runs/*/*.part"))

    def run_dir(self, run_id: str = f"{SOURCE}-db1") -> Path:
        return self.host / "runs" / run_id

    def state(self, run_id: str = f"{SOURCE}-db1") -> dict[str, Any]:
        return dict(json.loads((self.run_dir(run_id) / "state.json").read_text()))

    def report(self, run_id: str = f"{SOURCE}-db1") -> dict[str, Any]:
        return dict(json.loads((self.run_dir(run_id) / "report.json").read_text()))

    def proof(self, source_db: int = 1, target: str = f"{SOURCE}-db1", target_db: int = 0, source: str = SOURCE) -> Any:
        """Whether the new group is equal to the old database, by the lab's own check."""
        return prove(self.info, source, source_db, target, target_db)

    def source_digest(self, group: str = SOURCE) -> dict[int, str]:
        """A digest of each database of a group, of the keys that cannot expire during a test."""
        facts = self.groups()[group]
        return {db: digest(Side(self.info, facts, db)) for db in range(16)}

    def source_client(self, db: int) -> redis.Redis:
        """A client of the source's primary."""
        return Side(self.info, self.groups()[SOURCE], db).primaries[0]

    def groups(self) -> dict[str, Any]:
        return dict(self.aws.lab("GET", "groups"))

    def snapshots(self) -> list[str]:
        found = self.aws.client("elasticache").describe_snapshots()["Snapshots"]
        return sorted(snapshot["SnapshotName"] for snapshot in found)

    def snapshot_status(self, name: str) -> str:
        found = self.aws.client("elasticache").describe_snapshots(SnapshotName=name)["Snapshots"]
        return str(found[0]["SnapshotStatus"])

    def objects(self) -> list[str]:
        found = self.aws.client("s3").list_objects_v2(Bucket=self.info["bucket"])
        return sorted(each["Key"] for each in found.get("Contents", []))

    def instance(self) -> redis.Redis:
        """A client of the migration host's own instance."""
        return redis.Redis(port=self.info["migration_host_port"])

    def end_host(self) -> None:
        """End the migration host's instance with its supervisor, as `make stop` does."""
        if (self.host / "supervisor.sock").exists():
            config = str(self.host / "supervisord.conf")
            shutdown = [sys.executable, "-m", "supervisor.supervisorctl", "-c", config, "shutdown"]
            subprocess.run(shutdown, check=False, capture_output=True)
        wait_for(lambda: not processes_of(self.host), f"every process of {self.host} to end")


class Running:
    """A run that is under way."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""

    def end(self) -> Outcome:
        """Wait for its end."""
        self.output += self.process.stdout.read()
        return Outcome(self.process.wait(), self.output)

    def reach(self, task: str) -> None:
        """Wait until it begins a task whose name has these words."""
        for line in self.process.stdout:
            self.output += line
            if line.startswith("TASK [") and task in line:
                return
        raise AssertionError(f"the run ended before the task {task!r}: {self.output}")

    def interrupt(self) -> None:
        """Press Ctrl-C, and see that none of its processes is left.

        Python loses it where it comes in the midst of a fork; then a person presses it again. What Ansible says of it
        depends on what it is at: that it was interrupted, an error of its own, or nothing.
        """
        processes: list[int] = []
        while self.process.poll() is None:
            processes += descendants(self.process.pid)
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                # So short that what follows the interrupted task is not done meanwhile.
                self.process.wait(2)
        outcome = self.end()
        assert outcome.code != 0, outcome.output
        wait_for(lambda: not any(map(is_running, processes)), "the end of all that it had started")

    def kill(self) -> None:
        """Kill it with all its processes at once, the modules' too, which have sessions of their own."""
        os.kill(self.process.pid, signal.SIGSTOP)
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def limit_files(size: int) -> None:
    """Let no file that this process writes grow above this size: a full disk, without root."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def descendants(pid: int) -> list[int]:
    """All processes that this one has started, and those that they have; not what has detached itself."""
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in thread.read_text().split()]
    return [each for child in found for each in (child, *descendants(child))]


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only what is left until somebody asks how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_of(directory: Path) -> list[str]:
    """The command lines of all processes that name this directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if f"{directory}/" in line else []
    return found


def digest(side: Side) -> str:
    """A digest of the keys, values and TTLs of one database that last, in no order."""
    total, soon = 0, time.time() * 1000 + LONG_MS
    for keys in side.key_batches():
        for key, (value, expiry) in zip(keys, side.facts(keys), strict=True):
            if expiry == -1 or expiry > soon:
                total ^= int.from_bytes(hashlib.sha256(repr((key, value, expiry)).encode()).digest(), "big")
    return f"{total:064x}"
