# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data sets for the benchmarks: the same keys in every run, put into a live server or kept as that server's RDB.

str: short strings, all with a TTL, in DB 1 (5M of them are a file of about 670 MB).
mix: in DB 1, 85 % strings (30-byte keys, values of 20 to 200 bytes, 60 % with a TTL), 8 % hashes of 5 to 30 fields,
3 % sets, 2 % lists and 1.5 % sorted sets of 5 to 100 elements, 0.5 % streams, and three big keys; a few keys in DB 0
(1M keys are a file of about 270 MB).
"""

from __future__ import annotations

import random
import shutil
import socket
import string
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lab.nodes import RedisServer

# The name of what was made before tells one version of the data from another.
VERSION = 2
CACHE = Path(__file__).resolve().parents[2] / ".build" / "bench"
DB = 1
_EXPIRES_AT = 4_000_000_000_000  # ms; far enough ahead for the files to be kept
_MARK = b"the benchmark's data is all there"
_BATCH = 2000


def command(*args: bytes) -> bytes:
    """One command in RESP."""
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args)


class _Text:
    """Random text that costs next to nothing: slices of one long text."""

    def __init__(self, rnd: random.Random) -> None:
        self._rnd = rnd
        self._text = "".join(rnd.choices(string.ascii_letters + string.digits, k=1 << 17)).encode()

    def __call__(self, size: int) -> bytes:
        start = int(self._rnd.random() * ((1 << 17) - size))
        return self._text[start : start + size]


def str_commands(keys: int) -> Iterator[bytes]:
    rnd = random.Random(1)
    text = _Text(rnd)
    for index in range(keys):
        value = text(60 + int(rnd.random() * 60))
        expiry = b"%d" % (_EXPIRES_AT + index * 7)
        yield command(b"SET", b"session:%016x:%05d" % (index * 0x9E3779B1, index % 99991), value, b"PXAT", expiry)


def mix_commands(keys: int) -> Iterator[bytes]:
    rnd = random.Random(2)
    text = _Text(rnd)

    def some() -> int:
        return rnd.randint(5, 100)

    makers: list[tuple[float, Callable[[bytes], bytes]]] = [
        (0.51, lambda key: command(b"SET", key, text(rnd.randint(20, 200)), b"PXAT", b"%d" % rnd.randint(*_SPAN))),
        (0.85, lambda key: command(b"SET", key, text(rnd.randint(20, 200)))),
        (0.93, lambda key: command(b"HSET", key, *_pairs(text, rnd.randint(5, 30)))),
        (0.96, lambda key: command(b"SADD", key, *(text(12) for _each in range(some())))),
        (0.98, lambda key: command(b"RPUSH", key, *(text(rnd.randint(5, 60)) for _each in range(some())))),
        (0.995, lambda key: command(b"ZADD", key, *_scores(rnd, text, some()))),
        (1.0, lambda key: command(b"XADD", key, b"*", *_pairs(text, 3))),
    ]
    for index in range(keys):
        which = rnd.random()
        maker = next((maker for limit, maker in makers if which < limit), makers[-1][1])
        yield maker(b"entity:%08x:%014d" % (index * 0x9E3779B1 % (1 << 32), index))
    for start in range(0, keys // 5, 1000):
        yield command(b"HSET", b"big:hash", *(b"field-%d" % i for n in range(start, start + 1000) for i in (n, n)))
    for start in range(0, keys // 10, 1000):
        members = (part for n in range(start, start + 1000) for part in (b"%d.5" % n, b"member-%d" % n))
        yield command(b"ZADD", b"big:zset", *members)
    yield command(b"SET", b"big:string", text(1 << 16) * max(1, keys * 20 // (1 << 16)))


_SPAN = (_EXPIRES_AT, _EXPIRES_AT + 10**10)
DATASETS: dict[str, Callable[[int], Iterator[bytes]]] = {"str": str_commands, "mix": mix_commands}


def _pairs(text: _Text, count: int) -> Iterator[bytes]:
    for index in range(count):
        yield b"field%d" % index
        yield text(15)


def _scores(rnd: random.Random, text: _Text, count: int) -> Iterator[bytes]:
    for _unused in range(count):
        yield b"%.3f" % (rnd.random() * 1000)
        yield text(14)


def fill(port: int, name: str, keys: int) -> None:
    """Put a data set into a live server of this machine; raises RuntimeError with the server's first error."""
    other = (command(b"SET", b"other:%d" % index, b"stays behind") for index in range(1000))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        replies: list[bytes] = []
        reader = threading.Thread(target=_read_replies, args=(connection, replies), daemon=True)
        reader.start()
        _send(connection, [command(b"SELECT", b"0"), *other, command(b"SELECT", b"%d" % DB)])
        _send(connection, DATASETS[name](keys))
        _send(connection, [command(b"ECHO", _MARK)])
        reader.join()
    if replies:
        raise RuntimeError(f"the server refused a part of the data: {replies[0]!r}")


def _send(connection: socket.socket, commands: Iterable[bytes]) -> None:
    batch: list[bytes] = []
    for each in commands:
        batch.append(each)
        if len(batch) == _BATCH:
            connection.sendall(b"".join(batch))
            batch.clear()
    connection.sendall(b"".join(batch))


def _read_replies(connection: socket.socket, errors: list[bytes]) -> None:
    """Read until the marker comes back, keeping the first error."""
    tail = b"\r\n"
    while data := connection.recv(1 << 20):
        tail += data
        if not errors and (at := tail.find(b"\r\n-")) >= 0:
            errors.append(tail[at + 2 : at + 200])
        if _MARK in tail:
            return
        tail = tail[-len(_MARK) :]


def make_dataset(name: str, keys: int) -> Path:
    """The RDB of a data set as redis-server writes it; made once, then taken from the cache."""
    path = CACHE / f"{name}-{keys}-v{VERSION}.rdb"
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory, RedisServer(Path(directory)) as server:
        fill(server.port, name, keys)
        with server.client(socket_timeout=600) as client:
            client.save()
        shutil.move(server.rdb, path)
    return path
