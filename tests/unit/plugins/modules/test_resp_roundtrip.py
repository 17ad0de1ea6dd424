# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever a database holds, resp_dump and resp_load carry it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.dumps import load, must_dump
from support.keyspaces import contents

from lab.nodes import RedisServer

Start = Callable[..., RedisServer]

BYTES = st.one_of(st.binary(max_size=12), st.integers(-(1 << 63), (1 << 63) - 1).map(lambda number: b"%d" % number))
BLOBS = st.one_of(
    BYTES, st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=9), st.integers(1, 90))
)
SCORES = st.floats(allow_nan=False).map(lambda score: b"%.17g" % score)
VALUES = st.one_of(
    st.tuples(st.just(b"SET"), st.lists(BLOBS, min_size=1, max_size=1)),
    st.tuples(st.sampled_from([b"RPUSH", b"SADD", b"PFADD"]), st.lists(BLOBS, min_size=1, max_size=150)),
    st.tuples(st.just(b"HSET"), st.lists(st.tuples(BLOBS, BLOBS), min_size=1, max_size=150).map(lambda p: sum(p, ()))),
    st.tuples(st.just(b"ZADD"), st.lists(st.tuples(SCORES, BLOBS), min_size=1, max_size=150).map(lambda p: sum(p, ()))),
    st.tuples(st.just(b"XADD"), st.tuples(BLOBS, BLOBS).map(lambda pair: (b"*", *pair))),
)
DATABASES = st.dictionaries(BYTES, st.tuples(VALUES, st.none() | st.integers(10**6, 10**11)), max_size=25)


def test_whole_databases_arrive(start_server: Start, tmp_path: Path) -> None:
    """Whatever the keys and values are, the copy is the same by the server's own digest, and expires in the same ms."""
    source, target = start_server(), start_server()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(DATABASES, st.sampled_from([1, 2, 8]))
    def moves(database: dict[bytes, Any], workers: int) -> None:
        with source.client() as one, target.client() as other:
            one.flushall()
            other.flushall()
        with source.client(1) as client, client.pipeline(transaction=False) as pipeline:
            for key, ((verb, args), ttl) in database.items():
                pipeline.execute_command(verb, key, *args)
                if ttl:
                    pipeline.execute_command("PEXPIRE", key, ttl)
            pipeline.execute()
        dumped = must_dump(source, tmp_path / "d", force=True, workers=workers, batch_size=10)
        loaded = load(target, tmp_path / "d")
        # A key that several workers get while the table is resized is there twice, and does no harm.
        assert dumped["keys"] == loaded["replies"] >= len(database)
        assert contents(target) == contents(source, 1)

    moves()
