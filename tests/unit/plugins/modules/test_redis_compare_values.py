# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever two databases hold, the comparison says what a look at both says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ansible_collections.keyferry.redis.plugins.module_utils.compare import Comparison, compare
from ansible_collections.keyferry.redis.plugins.module_utils.endpoint import Endpoint
from ansible_collections.keyferry.redis.plugins.module_utils.progress import silent
from ansible_collections.keyferry.redis.plugins.module_utils.server import Address, Server
from lab.nodes import RedisServer

# In a database 0 a key of the name that ElastiCache uses is left out.
DB = 1
KINDS = ("string", "list", "set", "hash", "zset", "stream")
EXPIRIES = (None, 4_000_000_000_000, 4_000_000_000_001)
# What looks like a number, like nothing, or like a reply of the server.
TEXTS = st.one_of(
    st.sampled_from([b"", b"0", b"123", b"0123", b"1e2", b"none", b"$-1\r\n", b":-2\r\n", b"\r\n-ERR no such key\r\n"]),
    st.binary(max_size=40),
)


class Value(NamedTuple):
    """What a key holds: elements as they are sent, a type, and when the key expires."""

    kind: str
    elements: tuple[bytes, ...]
    expiry: int | None


VALUES = st.builds(
    Value,
    st.sampled_from(KINDS),
    st.lists(TEXTS, min_size=1, max_size=4).map(tuple),
    st.sampled_from(EXPIRIES),
)
DATABASES = st.dictionaries(TEXTS, VALUES, max_size=12)


@pytest.fixture(scope="module", params=["redis", "valkey"])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisServer]]:
    """A Redis, and another Redis or a Valkey."""
    folder: Path = tmp_path_factory.mktemp("values")
    with RedisServer(folder / "source") as source, RedisServer(folder / "target", request.param) as target:
        yield [source, target]


def fill(server: RedisServer, database: dict[bytes, Value]) -> None:
    client = server.client(DB)
    client.flushdb()
    pipeline = client.pipeline(transaction=False)
    for key, (kind, elements, expiry) in database.items():
        first = elements[0]
        if kind == "string":
            pipeline.set(key, first)
        elif kind == "list":
            pipeline.rpush(key, *elements)
        elif kind == "set":
            pipeline.sadd(key, *elements)
        elif kind == "hash":
            pipeline.hset(key, mapping={element: first for element in elements})
        elif kind == "zset":
            pipeline.zadd(key, {element: len(first) + 0.5 for element in elements})
        else:
            pipeline.xadd(key, {element: first for element in elements}, id="1-1")
        if expiry is not None:
            pipeline.pexpireat(key, expiry)
    pipeline.execute()


def held(value: Value) -> Any:
    """Give back what is equal where two values are."""
    kind, elements, expiry = value
    first = elements[0]
    what: Any = {"string": first, "list": elements, "set": frozenset(elements), "stream": list(dict.fromkeys(elements))}
    what["hash"] = what["zset"] = (frozenset(elements), first if kind == "hash" else len(first))
    return kind, what[kind], expiry, first if kind == "stream" else None


def endpoint(server: RedisServer) -> Endpoint:
    return Endpoint(Server(Address("127.0.0.1", server.port)), DB)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(common=DATABASES, ours=DATABASES, theirs=DATABASES)
@example({}, {b"k": Value("string", (b"123",), None)}, {b"k": Value("string", (b"0123",), None)})
@example({}, {b"k": Value("string", (b"",), None)}, {})
@example({}, {}, {b"": Value("string", (b"",), None)})
@example({}, {b"k": Value("string", (b"a",), None)}, {b"k": Value("list", (b"a",), None)})
@example({}, {b"k": Value("set", (b"a",), None)}, {b"k": Value("hash", (b"a",), None)})
@example({}, {b"k": Value("list", (b"a",), EXPIRIES[1])}, {b"k": Value("list", (b"a",), EXPIRIES[2])})
@example({b"k": Value("list", (b"\r\n-WRONGTYPE",), None)}, {b"a": Value("set", (b"a",), None)}, {})
def test_says_what_both_hold(
    sides: list[RedisServer], common: dict[bytes, Value], ours: dict[bytes, Value], theirs: dict[bytes, Value]
) -> None:
    left, right = {**common, **ours}, {**common, **theirs}
    fill(sides[0], left)
    fill(sides[1], right)
    both = left.keys() & right.keys()
    expected = {
        "missing": len(left) - len(both),
        "extra": len(right) - len(both),
        "different": sum(held(left[key]) != held(right[key]) for key in both),
    }
    result = compare(Comparison(*map(endpoint, sides)), silent)
    assert {how: result[how] for how in expected} == expected
    assert result["equal"] == (not any(expected.values()))
    assert (result["compared"], result["expired"]) == (len(left), 0)
