# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A Redis or Valkey server: connected to in one place, asked for facts in one place."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import socket
import time
import traceback
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError:
    REDIS_IMPORT_ERROR: str | None = traceback.format_exc()
else:
    REDIS_IMPORT_ERROR = None

CONNECT_TIMEOUT_S = 10
# How long a server may stay silent on a connection that has work under way.
SILENCE_TIMEOUT_S = 120
# So many connections for a round trip shorter than so many seconds.
_CONNECTIONS = ((1, 0.0007), (2, 0.003), (4, 0.02))
_MOST_CONNECTIONS = 8
# How an error begins that a server will not say for long: it is busy, or its cluster is changing.
PASSING_ERRORS = ("BUSY ", "LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN")
# How long to wait after each setback in a row, before what the server has not done is asked again.
SETBACK_DELAYS_S: tuple[float, ...] = (0.1, 0.5, 2, 5, 10)
# The version that functions came with.
HAS_FUNCTIONS = (7, 0)
# What to ask a socket for at a time.
RECEIVE_BYTES = 256 << 10
_T = t.TypeVar("_T")
_KEYSPACE_LINE = re.compile(r"db(\d+)$")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server is and how to log in; the options of every Redis module."""

    host: str = "localhost"
    port: int = 6379
    user: str | None = None
    password: str | None = dataclasses.field(default=None, repr=False)
    tls: bool = False
    validate_certs: bool = True
    ca_certs: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None
    # What the names of the options begin with, for messages.
    prefix: str = ""

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class ConnectionLost(KeyferryError):
    """A connection could not be made, or broke with work under way; another one may do that work."""


class TemporaryRefusal(KeyferryError):
    """The server refused a command, which it has not run then, in a way that passes."""


class OtherProcess(KeyferryError):
    """The server process is not the one that the work began with."""


class Protected(KeyferryError):
    """The server is one that must not be written to."""


class Database(t.NamedTuple):
    """One line of INFO keyspace."""

    keys: int
    expires: int


class Server:
    """One server, by its address. Every method raises KeyferryError that names the server when it cannot answer.

    One that is busy or loading its data is waited for, SETBACK_DELAYS_S, before that.
    """

    def __init__(self, address: Address) -> None:
        if REDIS_IMPORT_ERROR is not None:
            raise KeyferryError(
                "The Python library redis is missing: install it for the Python that runs this module"
                " (pip install redis hiredis)",
                exception=REDIS_IMPORT_ERROR,
            )
        self.address = address
        self._clients: dict[int, redis.Redis] = {}

    def __str__(self) -> str:
        return str(self.address)

    def client(self, db: int = 0) -> redis.Redis:
        """Give back the redis-py client for database I(db); its replies are bytes."""
        if db not in self._clients:
            self._clients[db] = redis.Redis(**self._client_options(db))
        return self._clients[db]

    def call(self, *arguments: t.Any, db: int = 0) -> t.Any:
        """Give back the server's reply to one command, as redis-py parses it."""
        return self._patiently(db, lambda: self.client(db).execute_command(*arguments))

    def call_process(self, run_id: str, *arguments: t.Any, db: int = 0) -> t.Any:
        """As call(), of the process I(run_id) only."""
        with self._connected(db, run_id) as connection, self.errors(db):
            connection.send_command(*arguments)
            return connection.read_response()

    def answers(self) -> bool:
        """Tell whether the server answers at once; not one that is busy or loading its data."""
        with contextlib.suppress(KeyferryError), self.errors(0):
            return bool(self.client().execute_command("PING"))
        return False

    def allows(self, *arguments: t.Any, db: int = 0) -> bool:
        """Tell whether the server has a command and the ACL lets this user run it, by running it."""

        def run() -> bool:
            try:
                self.client(db).execute_command(*arguments)
            except redis.exceptions.AskError:
                # In cluster mode, a key of another node (MOVED and ASK).
                return True
            except redis.ResponseError as error:
                if _is_passing(error):
                    raise
                return False
            return True

        return self._patiently(db, run)

    @contextlib.contextmanager
    def connection(self, db: int, run_id: str | None = None) -> t.Iterator[socket.socket]:
        """Give back a socket that is logged in and has I(db) selected, for the data path.

        redis-py does TLS, the login and SELECT; the bytes after that are ours. Raises ConnectionLost where the
        connection cannot be made, or breaks, and OtherProcess where its other end is not the process I(run_id).
        """
        try:
            with self._connected(db, run_id) as connection:
                # redis-py has no public way to hand out its socket.
                yield connection._sock
        except OSError as error:
            raise self.lost(db, error) from error

    @contextlib.contextmanager
    def _connected(self, db: int, run_id: str | None) -> t.Iterator[redis.Connection]:
        connection = self.client(db).connection_pool.make_connection()
        try:
            try:
                connection.connect()
                if run_id is not None and f"run_id:{run_id}\r\n".encode() not in _ask(connection, "INFO", "server"):
                    raise OtherProcess(f"Another server process answers at {self} now (a restart, or a failover)")
            except redis.RedisError as error:
                raise ConnectionLost(self._explain(error, db)) from error
            yield connection
        finally:
            connection.disconnect()

    def lost(self, db: int, error: OSError) -> ConnectionLost:
        """Give back what to raise when a connection broke with I(error)."""
        return ConnectionLost(
            f"Redis at {self}, database {db}: the connection broke in the middle of the work: {_reason(error)}."
            " Is the server still up, and does it have memory left? See its log"
        )

    def info(self, section: str) -> dict[str, t.Any]:
        """Give back one section of INFO."""
        return self._patiently(0, lambda: self.client().info(section))

    def version(self) -> tuple[int, ...]:
        """Give back the engine's version, for example (7, 0, 15); Valkey's own number where it is Valkey."""
        facts = self.info("server")
        return tuple(int(part) for part in str(facts.get("valkey_version") or facts["redis_version"]).split(".")[:3])

    def engine(self) -> str:
        """Give back V(redis) or V(valkey)."""
        return "valkey" if "valkey_version" in self.info("server") else "redis"

    def run_id(self) -> str:
        """Give back what tells this process from every other Redis process."""
        return str(self.info("server")["run_id"])

    def primary_silence(self) -> float:
        """Give back for how many seconds, rounded up, a replica has not heard from its primary.

        That is endless where the link between them is down, and 0 where the server is no replica.
        """
        facts = self.info("replication")
        if facts["role"] != "slave":
            return 0
        return 1 + int(facts["master_last_io_seconds_ago"]) if facts["master_link_status"] == "up" else math.inf

    def require_link(self) -> None:
        """Raise KeyferryError where the server is a replica that has lost its primary."""
        if self.primary_silence() == math.inf:
            raise KeyferryError(
                f"Redis at {self} is a replica that has lost its primary, and may lack what was written since. Use the"
                " primary, or wait until the link between them is up (INFO replication)"
            )

    def flush_calls(self) -> int:
        """Give back how often FLUSHDB and FLUSHALL were called, by a primary too."""
        return sum(
            facts["calls"]
            for name, facts in self.info("commandstats").items()
            if name in ("cmdstat_flushdb", "cmdstat_flushall")
        )

    def is_cluster(self) -> bool:
        """Tell whether the server is in cluster mode, where there is one database only."""
        return bool(int(self.info("cluster").get("cluster_enabled", 0)))

    def keyspace(self) -> dict[int, Database]:
        """Give back every database that holds keys, by its number."""
        databases = {}
        for name, facts in self.info("keyspace").items():
            line = _KEYSPACE_LINE.match(name)
            if line:
                databases[int(line[1])] = Database(facts["keys"], facts["expires"])
        return dict(sorted(databases.items()))

    def connections_wanted(self) -> int:
        """Give back how many connections at once keep this server busy in spite of the round trip to it.

        One fills a server on the same host; each further one hides a round trip of the length that it was measured to
        hide (tests/benchmarks).
        """
        round_trip = min(self._round_trip() for _attempt in range(3))
        return next((count for count, at_most in _CONNECTIONS if round_trip < at_most), _MOST_CONNECTIONS)

    def _round_trip(self) -> float:
        started = time.monotonic()
        self.call("DBSIZE")
        return time.monotonic() - started

    def dbsize(self, db: int) -> int:
        """Give back the number of keys in I(db), those that have expired but were not yet removed included."""
        return int(self.call("DBSIZE", db=db))

    @contextlib.contextmanager
    def errors(self, db: int) -> t.Iterator[None]:
        """Turn whatever the client library or the socket raises into a KeyferryError that names the server."""
        try:
            yield
        except (redis.RedisError, OSError) as error:
            kind = TemporaryRefusal if _is_passing(error) else KeyferryError
            raise kind(self._explain(error, db)) from error

    def _patiently(self, db: int, ask: t.Callable[[], t.Any]) -> t.Any:
        """As patiently(), of what raises as the client library does."""

        def once() -> t.Any:
            with self.errors(db):
                return ask()

        return patiently(once)

    def _client_options(self, db: int) -> dict[str, t.Any]:
        options: dict[str, t.Any] = {
            "host": self.address.host,
            "port": self.address.port,
            "db": db,
            "username": self.address.user,
            "password": self.address.password,
            "protocol": 2,
            "socket_connect_timeout": CONNECT_TIMEOUT_S,
            "socket_timeout": CONNECT_TIMEOUT_S,
            "redis_connect_func": _log_in,
            "retry": Retry(NoBackoff(), 0),
            "client_name": "keyferry",
        }
        if self.address.tls:
            options.update(
                ssl=True,
                ssl_cert_reqs="required" if self.address.validate_certs else "none",
                ssl_check_hostname=self.address.validate_certs,
                ssl_ca_certs=self.address.ca_certs,
                ssl_certfile=self.address.client_cert_file,
                ssl_keyfile=self.address.client_key_file,
            )
        return options

    def _explain(self, error: Exception, db: int) -> str:
        reason = _reason(error)
        return f"Redis at {self}, database {db}: {reason}{_hint(error, reason, self.address)}"


def refused(words: str, error: str) -> KeyferryError:
    """Give back what to raise where a server refused something with I(error), which I(words) tell of."""
    return (TemporaryRefusal if error.startswith(PASSING_ERRORS) else KeyferryError)(words)


def is_redirection(error: KeyferryError) -> bool:
    """Tell whether a node in cluster mode has said that the key is another one's (MOVED and ASK)."""
    return isinstance(error.__cause__, redis.exceptions.AskError)


def patiently(ask: t.Callable[[], _T]) -> _T:
    """Give back what I(ask) does, once no server refuses it in a way that passes."""
    for delay in SETBACK_DELAYS_S:
        with contextlib.suppress(TemporaryRefusal):
            return ask()
        time.sleep(delay)
    try:
        return ask()
    except TemporaryRefusal as error:
        waited = sum(SETBACK_DELAYS_S)
        raise TemporaryRefusal(f"{error.msg}. It was waited for {waited:.0f} s. Run again when that is over") from error


def version_text(version: tuple[int, ...]) -> str:
    """Give back a version as people write it."""
    return ".".join(map(str, version))


def _log_in(connection: redis.Connection) -> None:
    """Log in within the time of a connect; a server at work may then be silent for longer."""
    connection.on_connect()
    connection._sock.settimeout(SILENCE_TIMEOUT_S)


def _ask(connection: redis.Connection, *arguments: str) -> bytes:
    connection.send_command(*arguments)
    return bytes(connection.read_response(disable_decoding=True))


def _is_passing(error: Exception) -> bool:
    """Tell whether a server has said one of PASSING_ERRORS; redis-py has classes of its own for most of them."""
    return str(error).startswith(PASSING_ERRORS) or isinstance(
        error,
        (
            redis.BusyLoadingError,
            redis.exceptions.TryAgainError,
            redis.exceptions.ClusterDownError,
            redis.exceptions.MasterDownError,
        ),
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _hint(error: Exception, reason: str, address: Address) -> str:
    """Give back what to do about an error, as the end of a sentence; empty where the server's word is enough."""
    prefix = address.prefix
    if _is_passing(error):
        return ""
    if isinstance(error, (redis.AuthenticationError, redis.exceptions.NoPermissionError)) or "NOAUTH" in reason:
        return f". Check {prefix}login_user and {prefix}login_password, and what the ACL allows this user"
    if "DB index is out of range" in reason:
        return ". The server has fewer databases; check the option that names the database"
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return f". The server's certificate is not trusted: set {prefix}ca_certs to the CA that signed it"
    if "SSL" in reason or "WRONG_VERSION_NUMBER" in reason:
        return f". The server does not speak TLS here. Is {prefix}tls right, and {prefix}login_port?"
    if isinstance(error, (redis.TimeoutError, TimeoutError)):
        return ". Is it reachable from this host (security groups), and not busy with one long command?" + (
            f" Is {prefix}tls right? A server without TLS is silent like this" if address.tls else ""
        )
    if "max number of clients" in reason:
        return ". Raise its maxclients, or use fewer workers"
    if "refused" in reason or "not known" in reason:
        return f". Is the server up? Check {prefix}login_host and {prefix}login_port"
    if isinstance(error, (redis.ConnectionError, ConnectionError)):
        return f". Check {prefix}login_host, {prefix}login_port" + (
            "" if address.tls else f" and {prefix}tls: a server with TLS hangs up like this"
        )
    return ""
