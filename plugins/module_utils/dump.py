# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Reads one database of a live server into a dump: SCAN, then TTL and value of every key, pipelined.

The server's CPU is the limit. Strings are asked for by MGET, which costs it less than half of DUMP, and written as SET;
what is no string is asked for by DUMP. Nothing is decoded on the way: keys and values are carried as they arrived. Each
part of the keyspace has a worker (dump_worker).
"""

from __future__ import annotations

import collections
import contextlib
import threading
import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.cluster import Slots
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import DumpWriter
from ansible_collections.keyferry.redis.plugins.module_utils.dump_forms import count_types
from ansible_collections.keyferry.redis.plugins.module_utils.dump_worker import Run, Source, Worker, version_of
from ansible_collections.keyferry.redis.plugins.module_utils.ending import LOOK_S, raise_if_ended
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.pace import Pace, latency_of
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_bytes import FOOTER_BYTES
from ansible_collections.keyferry.redis.plugins.module_utils.server import HAS_FUNCTIONS, Server, version_text

# DUMP came with 2.6, the first one whose payloads are tried here is 4.0.
OLDEST_SERVER = (4, 0)


def check_source(server: Server, db: int) -> None:
    """Raise KeyferryError when I(db) of I(server) cannot be dumped."""
    version = server.version()
    if version < OLDEST_SERVER and server.engine() == "redis":
        raise KeyferryError(
            f"Redis at {server} has version {version_text(version)}, which is older than"
            f" {version_text(OLDEST_SERVER)}. Restore its RDB into a newer server and dump that one"
        )
    if server.is_cluster():
        if db:
            raise KeyferryError(f"Redis at {server} is in cluster mode, which has database 0 only: db must not be {db}")
        primaries = len(Slots(server).nodes())
        if primaries > 1:
            raise KeyferryError(
                f"Redis at {server} is in cluster mode and one of {primaries} primaries, each of which holds a part of"
                " the keys. Dump the RDB of each shard's snapshot to a file of its own (option rdb), or copy from the"
                " whole cluster by redis_compare with repair=true"
            )
    server.require_link()
    server.dbsize(db)


def dump(source: Source, writer: DumpWriter, progress: Progress) -> dict[str, t.Any]:
    """Read every key into I(writer); give back C(types), C(expired) (keys that went on the way) and C(payload_version).

    Raises KeyferryError, naming the key where there is one, on the first thing that cannot be carried.
    """
    functions = _function_dump(source.server) if source.functions else b""
    commands = source.form.functions(functions)
    writer.add_functions(commands)
    with _pace(source) as pace:
        run = Run(source, writer, progress, pace)
        workers = [Worker(run, part) for part in range(len(run.seams))]
        threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(LOOK_S)
                raise_if_ended()
    if run.failure is not None:
        raise run.failure
    type_bytes = sum((worker.type_bytes for worker in workers), collections.Counter())
    versions = [worker.payload_version for worker in workers]
    # Where all keys are strings, the functions are all that a target may be too old for.
    versions += [version_of(functions[-FOOTER_BYTES:])] if commands else []
    return {
        **count_types(type_bytes),
        "expired": sum(worker.expired for worker in workers),
        "payload_version": next(filter(None, versions), None),
    }


def _function_dump(server: Server) -> bytes:
    """Give back the payload of FUNCTION DUMP; nothing where a server is too old to have functions."""
    if server.version() < HAS_FUNCTIONS:
        return b""
    try:
        return bytes(server.call("FUNCTION", "DUMP"))
    except KeyferryError as error:
        raise KeyferryError(f"{error.msg}. To leave out the functions, set functions=false") from None


@contextlib.contextmanager
def _pace(source: Source) -> t.Iterator[t.Callable[[threading.Event], Pace]]:
    """Give back what makes the pace of one run from the event that ends it."""
    if source.max_latency_ms is None:
        yield lambda stop: Pace(source.max_keys_per_second, stop)
        return
    most = source.max_latency_ms / 1000
    with latency_of(source.server) as excess:
        yield lambda stop: Pace(source.max_keys_per_second, stop, excess, most)
