# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Talks to the one server that a redis.conf of this role describes, and to no other.

usage: python - state|wait|stop REDIS_CONF [SECONDS]

state prints {"state": "absent" | "busy" | "loading" | "ready", "keys": int}.
wait  returns when the server answers and has loaded its RDB; stop ends it without saving. Both print
      {"changed": bool} or, on failure, say why on stderr with the end of the server's log.

Port and password are read from redis.conf itself, so that no secret passes through an argument list.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

CONNECT_SECONDS = 2
POLL_SECONDS = 0.2

# A supervisor's pauses between its tries stay below this; a server gone for longer does not come back.
GONE_AFTER_SECONDS = 20
STARTS_BEFORE_GIVING_UP = 4
LOG_TAIL_LINES = 15


class Trouble(Exception):
    """What the reader is told."""


def settings(config: Path) -> dict[str, str]:
    """Give back the directives of redis.conf."""
    lines = [line.split(" ", 1) for line in config.read_text().splitlines() if line and not line.startswith("#")]
    return dict(lines)


def alive(pid: int) -> bool:
    """Say whether there is such a process, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Foreign(Trouble):
    """Another server has the port."""


class Instance:
    def __init__(self, config: Path) -> None:
        self.config = config
        self.settings = settings(config)
        self.host, self.port = self.settings["bind"], int(self.settings["port"])
        password = self.settings.get("requirepass")
        self.client = redis.Redis(
            host=self.host,
            port=self.port,
            password=json.loads(password) if password else None,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=10,
            retry=Retry(NoBackoff(), 0),
        )
        self.address = f"{self.host}:{self.port}"

    def state(self) -> dict[str, object]:
        """Give back how the server is; raise Trouble when another one answers at its port."""
        info = self.info()
        if not info:
            return {"state": "busy" if self.listens() else "absent", "keys": 0}
        keys = sum(value["keys"] for name, value in info.items() if re.fullmatch(r"db\d+", name))
        return {"state": "loading" if info["loading"] else "ready", "keys": keys}

    def listens(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), CONNECT_SECONDS).close()
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return True

    def info(self) -> dict[str, object]:
        """Give back what INFO says, nothing while there is no answer; raise Trouble when another server gives it."""
        try:
            info = self.client.info()
        except redis.AuthenticationError as exc:
            raise Trouble(f"{self.address} is taken by a server that refuses this instance's password: {exc}") from exc
        except (redis.ConnectionError, redis.TimeoutError):
            return {}
        except redis.RedisError as exc:
            raise Trouble(f"{self.address} is taken by a server that does not answer INFO: {exc}") from exc
        config_file = info.get("config_file", "")
        if not config_file or Path(config_file).resolve() != self.config.resolve():
            raise Foreign(
                f"{self.address} is taken by another server (its config_file is {config_file!r}, this instance's is "
                f"{str(self.config)!r}). Stop that server, or choose another migration_host_port."
            )
        return info

    def recorded_pid(self) -> int | None:
        """Give back the id that the server wrote down, or None when no such process is there."""
        try:
            pid = int(Path(self.settings["pidfile"]).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return pid if alive(pid) else None

    def wait(self, seconds: float) -> dict[str, object]:
        """Return when all is loaded; raise Trouble when it will not be, or not in time."""
        deadline = time.monotonic() + seconds
        gone_since = None
        pids = set()
        while (state := self.state()["state"]) != "ready":
            now = time.monotonic()
            pid = self.recorded_pid()
            if pid:
                pids.add(pid)
                gone_since = None
            elif gone_since is None:
                gone_since = now
            elif now - gone_since > GONE_AFTER_SECONDS:
                raise Trouble(f"The server for {self.config} does not run, and does not come back.")
            if len(pids) >= STARTS_BEFORE_GIVING_UP:
                raise Trouble(f"The server for {self.config} ends as soon as it is started.")
            if now > deadline:
                raise Trouble(
                    f"The server at {self.address} is not ready after {seconds:g} s; it is {state}. "
                    "If it is still loading a large RDB, give it more time: migration_host_start_timeout."
                )
            time.sleep(POLL_SECONDS)
        return {"changed": False}

    def stop(self, seconds: float) -> dict[str, object]:
        """Return when no server is left; raise Trouble when it does not go in time."""
        if not self.listens():
            return {"changed": False}
        deadline = time.monotonic() + seconds
        pid = None
        while self.listens() or (pid and alive(pid)):
            if time.monotonic() > deadline:
                raise Trouble(f"The server at {self.address} has not ended {seconds:g} s after SHUTDOWN NOSAVE.")
            try:
                info = self.info()
            except Foreign:
                return {"changed": False}
            if info:
                pid = info["process_id"]
                with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                    self.client.shutdown(nosave=True)
            time.sleep(POLL_SECONDS)
        return {"changed": True}

    def log_tail(self) -> str:
        """Give back the last lines of what the server wrote, in its log and before it had one."""
        text = []
        for name in (self.settings["logfile"], str(Path(self.settings["dir"]) / "server.out")):
            try:
                lines = Path(name).read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
            except OSError:
                continue
            if lines:
                text += [f"--- the end of {name}", *lines]
        return "\n".join(text)


def main(verb: str, config: str, seconds: str = "60") -> int:
    try:
        instance = Instance(Path(config))
    except FileNotFoundError:
        print(json.dumps({"state": "absent", "keys": 0, "changed": False}))
        return 0
    verbs = {
        "state": instance.state,
        "wait": lambda: instance.wait(float(seconds)),
        "stop": lambda: instance.stop(float(seconds)),
    }
    try:
        print(json.dumps(verbs[verb]()))
    except Trouble as exc:
        print(f"{exc}\n{instance.log_tail()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
