# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Sample data: every type and encoding, TTLs, binary keys and values, a few large values. The same for the same seed.

RESP is put together by hand and streamed in large pieces: a million keys take some twenty seconds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice

import redis

from .wire import Wire, encode

# DB 1 holds 30 of 31 keys, the others share the rest alike.
MAIN_DB = 1
SMALL_DBS = (0, 2, 3, 5, 15)

BINARY = b"\x00\xff\r\n$-1\r\n*0\r\n\x80 end"
HOUR = 3_600_000
Command = tuple[bytes, ...]
# A library of functions, which belongs to no DB.
LIBRARY = "#!lua name=sample\nredis.register_function('total', function(keys) return #redis.call('KEYS', '*') end)"


def shares(keys: int) -> dict[int, int]:
    """How many of `keys` keys each DB gets: DB 1 30/31 of them, the small ones the rest."""
    small = keys // 31
    each, more = divmod(small, len(SMALL_DBS))
    counts = {db: each + (index < more) for index, db in enumerate(SMALL_DBS)}
    return {MAIN_DB: keys - small, **counts}


def fill_sample(target: redis.Redis | tuple[str, int], keys: int, seed: int = 1) -> dict[int, int]:
    """Fill all DBs as `shares` says, with five more keys in DB 1 that live for seconds, and a library of functions.

    Gives keys per DB.

    The special keys, the large ones among them, are in DB 1.
    """
    counts = shares(keys)
    fill(target, counts[MAIN_DB], MAIN_DB, seed)
    for db in SMALL_DBS:
        _write(target, db, islice(_ordinary_keys(_rng(seed, db)), counts[db]))
    with _client(target, MAIN_DB) as client:
        for seconds in (5, 10, 20, 40, 60):
            client.set(f"lives:{seconds}s", seconds, ex=seconds)
        client.function_load(LIBRARY, replace=True)
    return counts


def fill(target: redis.Redis | tuple[str, int], keys: int, db: int = 0, seed: int = 1) -> int:
    """Write exactly `keys` keys into one empty DB, the special ones first; gives how many.

    `target` is a client (its address and login are used, its DB is not), or (host, port). About 60 % have a TTL of
    1 hour to 30 days, so that none expires meanwhile.
    """
    rng = _rng(seed, db)
    _write(target, db, islice(chain(_special_keys(rng, keys), _ordinary_keys(rng)), keys))
    return keys


def _rng(seed: int, db: int) -> random.Random:
    return random.Random(f"{seed}:{db}")


def _write(target: redis.Redis | tuple[str, int], db: int, keys: Iterator[list[Command]]) -> None:
    wire = Wire(_client(target, db))
    while batch := list(islice(keys, 500)):
        wire.ask([encode(*command) for commands in batch for command in commands])
    wire.close()


def _client(target: redis.Redis | tuple[str, int], db: int) -> redis.Redis:
    if isinstance(target, tuple):
        return redis.Redis(host=target[0], port=target[1], db=db)
    pool = target.connection_pool
    own = redis.ConnectionPool(connection_class=pool.connection_class, **{**pool.connection_kwargs, "db": db})
    return redis.Redis.from_pool(own)


def _ordinary_keys(rng: random.Random) -> Iterator[list[Command]]:
    """The commands of one key after another, without end."""
    now = int(time.time() * 1000)
    makers = [maker for maker, weight in _ORDINARY for _each in range(weight)]
    number = 0
    while True:
        number += 1
        key, commands = makers[int(rng.random() * len(makers))](rng, number)
        if rng.random() < 0.6:
            expires = now + int(HOUR + rng.random() * 719 * HOUR)
            commands.append((b"PEXPIREAT", key, b"%d" % expires))
        yield commands


def _string(rng: random.Random, number: int) -> tuple[bytes, list[Command]]:
    key = b"session:%d:%08x" % (number, rng.getrandbits(32))
    return key, [(b"SET", key, rng.randbytes(8 + int(rng.random() * 80)).hex().encode())]


def _int(rng: random.Random, number: int) -> tuple[bytes, list[Command]]:
    key = b"counter:%d" % number
    return key, [(b"SET", key, b"%d" % (rng.getrandbits(1 + int(rng.random() * 62)) - (1 << 20)))]


def _binary(rng: random.Random, number: int) -> tuple[bytes, list[Command]]:
    key = b"bin:\x00\r\n\xff:%d" % number
    return key, [(b"SET", key, rng.randbytes(int(rng.random() * 64)))]


def _hash(rng: random.Random, number: int) -> tuple[bytes, list[Command]]:
    key = b"user:%d" % number
    parts = [b"name", b"user %d" % number, b"mail", b"u%d@example.org" % number, b"visits", b"%d" % rng.getrandbits(16)]
    return key, [(b"HSET", key, *parts)]


def _list(rng: random.Random, number: int) -> tuple[bytes, list[Command]]:
    key = b"queue:%d" % number
    return key, [(b"RPUSH", key, *(b"job-%x" % rng.getrandbits(40) for _each in range(1 + int(rng.random() * 8))))]


def _intset(rng: random.Random, number: int) -> tuple[bytes, list[Command]]:
    key = b"ids:%d" % number
    return key, [(b"SADD", key, *(b"%d" % rng.getrandbits(32) for _each in range(1 + int(rng.random() * 8))))]


def _set(rng: random.Random, number: int) -> tuple[bytes, list[Command]]:
    key = b"tags:%d" % number
    return key, [(b"SADD", key, *(b"tag-%x" % rng.getrandbits(24) for _each in range(1 + int(rng.random() * 6))))]


def _zset(rng: random.Random, number: int) -> tuple[bytes, list[Command]]:
    key = b"board:%d" % number
    pairs = ((b"%r" % (rng.random() * 1e6), b"player-%d" % member) for member in range(1 + int(rng.random() * 6)))
    return key, [(b"ZADD", key, *(part for pair in pairs for part in pair))]


def _stream(rng: random.Random, number: int) -> tuple[bytes, list[Command]]:
    key = b"events:%d" % number
    entries = 1 + int(rng.random() * 4)
    return key, [(b"XADD", key, b"%d-%d" % (1700000000000 + at, at), b"at", b"%d" % at) for at in range(1, entries + 1)]


_ORDINARY: list[tuple[Callable[[random.Random, int], tuple[bytes, list[Command]]], int]] = [
    *((_string, 50), (_int, 8), (_binary, 2), (_hash, 15)),
    *((_list, 8), (_intset, 3), (_set, 4), (_zset, 7), (_stream, 3)),
]


def _special_keys(rng: random.Random, keys: int) -> Iterator[list[Command]]:
    """One key each: what breaks a copy that is not careful with bytes, numbers, encodings and sizes."""
    later = b"%d" % (int(time.time() * 1000) + 30 * 24 * HOUR - 1)
    yield [(b"SET", b"", b"the empty key")]
    yield [(b"SET", b"empty value", b"")]
    yield [(b"SET", BINARY, BINARY), (b"PEXPIREAT", BINARY, later)]
    yield [(b"HSET", b"hash:" + BINARY, BINARY, BINARY, b"", b"")]
    yield [(b"RPUSH", b"list:" + BINARY, BINARY, b"", b"-1", BINARY)]
    yield [(b"SADD", b"set:" + BINARY, BINARY, b"", b"0")]
    extremes = ("inf", "-inf", "1e-300", "-1e300", "0.1", "-0.0", "5e-324", "1.7976931348623157e308")
    extremes += ("0.12345678901234567", "9007199254740993")
    scores = [part for at, score in enumerate(extremes) for part in (score.encode(), b"m%d" % at)]
    yield [(b"ZADD", b"zset:extreme", *scores, b"1", BINARY)]
    for number in (0, -1, 127, 128, 32767, -32769, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)):
        yield [(b"SET", b"int:%d" % number, b"%d" % number)]
    yield [(b"SADD", b"intset:64", b"%d" % (2**63 - 1), b"%d" % -(2**63), b"0")]
    yield [(b"SETBIT", b"bitmap", b"100000", b"1")]
    yield [(b"PFADD", b"hyperloglog", *(b"%d" % item for item in range(2000)))]
    yield [(b"GEOADD", b"geo", b"8.68", b"50.11", b"Frankfurt", b"13.40", b"52.52", b"Berlin")]
    yield _stream_with_group(b"stream:orders", later)
    yield [
        (b"XADD", b"stream:emptied", b"5-0", b"a", b"b"),
        (b"XDEL", b"stream:emptied", b"5-0"),
        (b"XGROUP", b"CREATE", b"stream:emptied", BINARY, b"5-0"),
    ]
    # Large values: what takes several reads, and the encodings of big containers.
    yield [(b"SET", b"large:string", rng.randbytes(1_300_000))]
    yield [(b"SET", b"large:compressible", b"keyferry " * 20_000), (b"PEXPIREAT", b"large:compressible", later)]
    yield _large(
        b"HSET", b"large:hash", [part for n in range(20_000 + keys // 100) for part in (b"f%d" % n, b"v%d" % n)]
    )
    yield _large(b"RPUSH", b"large:list", [b"item-%d" % n for n in range(5_000)])
    yield _large(b"SADD", b"large:set", [b"member-%d" % n for n in range(5_000)])
    yield _large(
        b"ZADD", b"large:zset", [part for n in range(5_000) for part in (b"%r" % rng.gauss(0, 1e9), b"m%d" % n)]
    )


def _large(verb: bytes, key: bytes, parts: list[bytes]) -> list[Command]:
    return [(verb, key, *parts[at : at + 2000]) for at in range(0, len(parts), 2000)]


def _stream_with_group(key: bytes, expires: bytes) -> list[Command]:
    added = [(b"XADD", key, b"1700000000000-%d" % at, b"order", b"%d" % at, b"blob", BINARY) for at in range(1, 301)]
    return [
        *added,
        (b"XGROUP", b"CREATE", key, b"billing", b"0"),
        (b"XGROUP", b"CREATE", key, b"idle", b"$"),
        (b"XREADGROUP", b"GROUP", b"billing", b"alice", b"COUNT", b"20", b"STREAMS", key, b">"),
        (b"XREADGROUP", b"GROUP", b"billing", b"bob", b"COUNT", b"5", b"STREAMS", key, b">"),
        (b"XGROUP", b"CREATECONSUMER", key, b"billing", b"carol"),
        (b"XACK", key, b"billing", b"1700000000000-1", b"1700000000000-2"),
        # Deleted entries, one of them still pending.
        (b"XDEL", key, b"1700000000000-7", b"1700000000000-100", b"1700000000000-300"),
        (b"PEXPIREAT", key, expires),
    ]
