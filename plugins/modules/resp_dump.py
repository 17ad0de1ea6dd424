#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: resp_dump
short_description: Dump one database of a Redis server into a file of commands
version_added: 0.1.0
author: The keyferry.redis authors (@keyferry)
description:
  - Reads every key of one database by pipelined SCAN, PEXPIRETIME and DUMP, and writes a file of RESP commands that
    restores them exactly, with absolute TTLs in milliseconds.
  - Where most keys are strings, these are read by MGET, at less than half of what DUMP costs the server, and written as
    SET, with PXAT where they expire. The server must be Redis 7.0 or newer and let the user run MGET. Elsewhere, and
    with O(eviction=true), all is read by DUMP.
  - TTL and value of a key are read within one MULTI, some tens of keys in each, so that no other client can change the
    key between the two.
  - A connection that breaks is made anew, up to five times in a row, and the dump goes on where it was. Where another
    server process answers then (a restart, a failover), the module fails and leaves no dump, since the cursors of
    SCAN mean nothing to that one. For the same reason the address must be that of one server, not of several
    replicas by turns.
  - A replica is dumped as it is, but not one that has lost its primary, as it may lack what was written since.
  - A server in cluster mode is dumped where it is the only primary. A part of a cluster is not taken for the whole.
    Dump the RDB of each shard instead (O(rdb)), or copy by M(keyferry.redis.redis_compare) with C(repair=true), which
    reads all primaries.
  - An ACL user needs C(on ~* +client|setname +select +info +dbsize +scan +multi +exec +pexpiretime +dump), before Redis
    7.0 C(+time +pttl) instead of PEXPIRETIME. With C(+mget) also, strings are read by MGET. O(functions=true) needs
    C(+function|dump), too, O(eviction=true) C(+object), a server in cluster mode C(+cluster|slots), and a replica there
    C(+readonly). O(source=replication) needs C(on +client|setname +select +info +dbsize +psync +replconf) only, and
    C(+cluster|slots) in cluster mode.
  - A server older than Redis 7.0 has no PEXPIRETIME and is asked for TIME and PTTL instead. A TTL is then too short by
    the milliseconds that end between these two commands, which is none for nearly every key.
  - A connection that breaks is opened again, and a server that is busy with a script is waited for, about 10 seconds.
  - The file begins with a SELECT of O(target_db), so that nobody has to edit it, and holds in-band how many keys and
    commands it has and a SHA-256. M(keyferry.redis.resp_load) refuses it when it was cut or altered;
    C(redis-cli --pipe) takes it too, into Redis 6.2 or newer, or Valkey.
  - The file gets its name when it is complete. Until then it is O(dest) with C(.part) at its end.
requirements:
  - anycrc (Python library) >= 2.0.0, for O(rdb)
extends_documentation_fragment:
  - keyferry.redis.connection
  - keyferry.redis.attributes
  - keyferry.redis.attributes.redis
  - keyferry.redis.progress
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - A complete dump of the same database of the same server, or RDB file, in O(dest) is left alone unless
        O(force=true), also when the server's data has changed since. Any other file there fails the module.
options:
  db:
    description: Number of the database to dump.
    type: int
    required: true
  rdb:
    description:
      - An RDB file to read instead of a server. The connection options have no meaning then, and
        O(max_keys_per_second) and O(max_latency_ms) cannot be used.
      - The file is walked and its checksum compared before anything is written. Keys whose TTL has passed are dumped
        too; a server drops them when they are loaded.
    type: path
  source:
    description:
      - How to read the server.
      - V(scan) asks for one key after the other. Every server lets a client do this.
      - V(replication) asks for its RDB, as a replica does, and takes the keys out of that. All keys are of one moment
        then, and the server does no more than fork once and send the RDB with all its databases. It lies beside
        O(dest), with C(.rdb.part) at its end, until the module ends. ElastiCache does not allow it. O(max_latency_ms)
        and O(max_keys_per_second) cannot be used; keys whose TTL has passed are dumped too, as with O(rdb).
      - With V(replication) a user with an ACL needs V(+client|setname +select +info +dbsize +psync +replconf).
    type: str
    choices: [scan, replication]
    default: scan
    version_added: 0.2.0
  dest:
    description: File to write. Its folder must exist.
    type: path
    required: true
  target_db:
    description: Number of the database that the dump is to be loaded into.
    type: int
    default: 0
  format:
    description:
      - V(restore) writes one command a key, exact for every type. That is SET for most strings, which costs a target
        less, and RESTORE for all else. The target must read the source's payloads, which an older engine, or another
        one, may not.
      - V(commands) writes commands that every server from Redis 6.2 on takes (SET, HSET, RPUSH, SADD, ZADD, XADD and
        what else a stream needs), none with more than 3,999 arguments, so that ElastiCache Serverless takes them too.
        Each key is deleted first. Values of modules cannot be written so, and fail the module. What no command can set
        is lost, which is when a consumer of a stream was last seen. A stream from Redis 7.0 or newer needs a target of
        7.0 or newer, fields of a hash that expire one that knows HPEXPIREAT.
      - V(restore) is several times as fast.
    type: str
    choices: [restore, commands]
    default: restore
  match:
    description:
      - Glob pattern of the keys to dump, as SCAN takes it. All keys without it.
      - With O(rdb) it means the same.
    type: str
  eviction:
    description:
      - Whether to keep what the server knows about the use of each key, for the target to evict the same keys first.
        RESTORE is given V(FREQ) where the source's V(maxmemory-policy) is one of LFU, else V(IDLETIME), in seconds.
        With O(rdb), what the file says of each key.
      - From a server this asks for one more fact about each key, OBJECT FREQ or OBJECT IDLETIME. It cannot be used
        with O(format=commands), since no other command can set it.
    type: bool
    default: false
    version_added: 0.2.0
  functions:
    description:
      - Whether to take the server's functions along, which belong to no database. They replace those of the same names
        where the dump is loaded.
      - The dump begins with one FUNCTION RESTORE then; from O(rdb), or with O(format=commands), with one FUNCTION LOAD
        for each library. A server older than Redis 7.0 has none.
    type: bool
    default: false
    version_added: 0.2.0
  batch_size:
    description: Number of keys to ask for at a time. Fewer are asked for where values are large.
    type: int
    default: 1000
  workers:
    description:
      - Number of connections that read at once, each its own part of the keyspace; rounded up to a power of 2.
      - Without it, the measured round trip to the server decides. One keeps a server on the same host busy; across a
        network more hide the round trips.
      - With O(rdb) or O(source=replication), the number of processes, by default one for each core and four at the
        most.
    type: int
  max_keys_per_second:
    description: Read no more keys than this in a second, to spare a server in production. No limit without it.
    type: int
  max_latency_ms:
    description:
      - Read more slowly while the server takes longer than this to answer other clients. A PING is sent on a connection
        of its own 50 times a second, and what it takes longer than the shortest one is compared. Above this, the dump
        uses half as much of the time, and again half, down to 1/64; below it, it comes back by steps.
      - Without it, the dump reads as fast as the server gives.
    type: float
    version_added: 0.2.0
  force:
    description: Whether to write O(dest) anew when it is there already.
    type: bool
    default: false
notes:
  - O(progress_file) counts keys.
seealso:
  - module: keyferry.redis.resp_load
  - module: keyferry.redis.rdb_extract
"""

EXAMPLES = r"""
- name: Dump database 1 so that it loads as database 0
  keyferry.redis.resp_dump:
    login_port: 6390
    db: 1
    target_db: 0
    dest: /var/lib/keyferry/db1.resp

- name: Dump database 1 out of an exported snapshot, with no server
  keyferry.redis.resp_dump:
    rdb: /var/lib/keyferry/shared-0001.rdb
    db: 1
    dest: /var/lib/keyferry/db1.resp

- name: Dump it from a server in production, which must stay quick, with its functions and what its eviction goes by
  keyferry.redis.resp_dump:
    login_host: redis.example.com
    db: 1
    dest: /var/lib/keyferry/db1.resp
    max_latency_ms: 2
    eviction: true
    functions: true

- name: Dump database 1 as it is at one moment, from a server that lets this user replicate
  keyferry.redis.resp_dump:
    login_host: redis.example.com
    login_user: replicator
    login_password: "{{ replicator_password }}"
    db: 1
    source: replication
    dest: /var/lib/keyferry/db1.resp

- name: Dump the sessions out of an exported snapshot
  keyferry.redis.resp_dump:
    rdb: /var/lib/keyferry/shared-0001.rdb
    db: 1
    match: "session:*"
    dest: /var/lib/keyferry/sessions.resp

- name: Dump database 2 for a server of another make
  keyferry.redis.resp_dump:
    login_host: redis.example.com
    db: 2
    format: commands
    dest: /var/lib/keyferry/db2.resp

- name: Dump the sessions of database 3 across the network, from a server with TLS
  keyferry.redis.resp_dump:
    login_host: master.shared.example.euc1.cache.amazonaws.com
    login_password: "{{ auth_token }}"
    tls: true
    db: 3
    match: "session:*"
    workers: 8
    dest: /var/lib/keyferry/sessions.resp
"""

RETURN = r"""
dest:
  description: The dump.
  returned: success
  type: str
  sample: /var/lib/keyferry/db1.resp
keys:
  description:
    - Keys in the dump. In check mode, keys in the database.
    - A key that SCAN returned twice because the table was resized under it counts twice; it loads once.
  returned: success
  type: int
  sample: 30000000
commands:
  description: Commands in the dump that write a key, or functions.
  returned: when not in check mode
  type: int
  sample: 30000000
bytes:
  description: Size of the dump.
  returned: when not in check mode
  type: int
  sample: 7516192768
types:
  description: Number of keys of each type.
  returned: when not in check mode
  type: dict
  sample: {"hash": 2400000, "string": 27600000}
expired:
  description: Keys that SCAN returned and that had expired, or were deleted, when they were read.
  returned: when not in check mode
  type: int
  sample: 12
sha256:
  description: SHA-256 of the dump.
  returned: when not in check mode
  type: str
  sample: 86ab11c89fd9cc55901c08efc410b3eed88fe99abcc1fe0b7d64e31a7d158730
offset:
  description: Byte of the RDB at which it is damaged or unknown, or could not be read any more.
  returned: failure, where that is known
  type: int
  sample: 1873298432
elapsed:
  description: Seconds that the work took.
  returned: success
  type: float
  sample: 131.7
"""

import contextlib
import functools
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.keyferry.redis.plugins.module_utils import dump_file
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_redis import (
    connection_spec,
    require_positive,
    server_of,
)
from ansible_collections.keyferry.redis.plugins.module_utils.dump import check_source, dump
from ansible_collections.keyferry.redis.plugins.module_utils.dump_forms import COMMANDS, RESTORE
from ansible_collections.keyferry.redis.plugins.module_utils.dump_rdb import RdbSource
from ansible_collections.keyferry.redis.plugins.module_utils.dump_worker import Source
from ansible_collections.keyferry.redis.plugins.module_utils.ending import ended_by_signals
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress, progress_to
from ansible_collections.keyferry.redis.plugins.module_utils.replication import replicated
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

FORMS = {"restore": RESTORE, "commands": COMMANDS}


def work(module: AnsibleModule) -> dict[str, t.Any]:
    started = time.monotonic()
    params = module.params
    require_positive(params, "batch_size", "workers", "max_keys_per_second")
    if params["max_latency_ms"] is not None and params["max_latency_ms"] <= 0:
        raise KeyferryError(f"max_latency_ms is {params['max_latency_ms']}; it must be more than 0")
    if params["eviction"] and params["format"] == "commands":
        raise KeyferryError("eviction=true needs format=restore: no other command can say when a key was last used")
    if params["target_db"] < 0:
        raise KeyferryError(f"target_db is {params['target_db']}; databases are numbered from 0")
    dest = params["dest"]
    _check_source_option(params)
    # What is not asked for is not named, as in dumps of before there was such an option.
    asked = {name: params[name] or None for name in ("eviction", "functions")}
    description = {"format": params["format"], "db": params["db"], "match": params["match"], **asked}
    description["from"] = _origin(params)
    if os.path.exists(dest) and not params["force"]:
        return {**_existing(dest, {**description, "target_db": params["target_db"]}), "elapsed": _since(started)}
    read = _read_rdb if params["rdb"] is not None else _READ[params["source"]]
    if module.check_mode:
        return {"changed": True, "dest": dest, "keys": read(params, None)["keys"], "elapsed": _since(started)}
    with ended_by_signals(), dump_file.DumpWriter(dest, params["target_db"], description) as writer:
        summary = writer.commit(read(params, writer))
    return {"changed": True, "dest": dest, **_facts(summary), "elapsed": _since(started)}


def _read_server(params: dict[str, t.Any], writer: dump_file.DumpWriter | None) -> dict[str, t.Any]:
    """Read the database of the server; without a writer, give back the number of its C(keys) only."""
    server = server_of(params)
    check_source(server, params["db"])
    if writer is None:
        return {"keys": server.dbsize(params["db"])}
    names = ("batch_size", "max_keys_per_second", "max_latency_ms")
    source = Source(server=server, **_wanted(params), **{name: params[name] for name in names})
    with progress_to(params["progress_file"], functools.partial(_keys_to_dump, server, params)) as progress:
        return dump(source, writer, progress)


def _keys_to_dump(server: Server, params: dict[str, t.Any]) -> int | None:
    return server.dbsize(params["db"]) if params["match"] is None else None


def _read_replication(params: dict[str, t.Any], writer: dump_file.DumpWriter | None) -> dict[str, t.Any]:
    """As _read_server, out of the RDB that the server gives to a replica."""
    server = server_of(params)
    check_source(server, params["db"])
    if writer is None:
        return {"keys": server.dbsize(params["db"])}
    total = functools.partial(_keys_to_dump, server, params)
    with progress_to(params["progress_file"], total) as progress, _replica(server, params, progress) as source:
        return source.dump(writer, progress)


@contextlib.contextmanager
def _replica(server: Server, params: dict[str, t.Any], progress: Progress) -> t.Iterator[RdbSource]:
    """Give back the server's keys of this moment. An RDB does not say that a database is empty."""
    with (
        replicated(server, params["dest"], progress) as path,
        RdbSource(path, **_wanted(params), may_be_empty=True) as source,
    ):
        yield source


def _read_rdb(params: dict[str, t.Any], writer: dump_file.DumpWriter | None) -> dict[str, t.Any]:
    """Read the database out of the RDB file; without a writer, give back the number of its C(keys) only."""
    with RdbSource(params["rdb"], **_wanted(params)) as source:
        if writer is None:
            return {"keys": source.count()}
        with progress_to(params["progress_file"], source.count) as progress:
            return source.dump(writer, progress)


def _origin(params: dict[str, t.Any]) -> str:
    """Give back what the dump is made from, for its own first line."""
    return os.path.abspath(params["rdb"]) if params["rdb"] is not None else str(server_of(params))


_READ = {"scan": _read_server, "replication": _read_replication}


def _check_source_option(params: dict[str, t.Any]) -> None:
    if params["source"] == "scan":
        return
    unfit = [name for name in ("rdb", "max_keys_per_second", "max_latency_ms") if params[name] is not None]
    if unfit:
        raise KeyferryError(f"{unfit[0]} cannot be used with source=replication: leave out one of them")


def _wanted(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """Give back what Source and RdbSource have in common."""
    return {
        **{name: params[name] for name in ("db", "workers", "eviction", "functions")},
        "match": None if params["match"] is None else params["match"].encode(errors="surrogateescape"),
        "form": FORMS[params["format"]],
    }


def _existing(dest: str, wanted: dict[str, t.Any]) -> dict[str, t.Any]:
    """Give back the facts of the dump that is there already; refuse any other file."""
    found = dump_file.open_dump(dest)
    # Dumps of before 0.3.0 do not say what they were made from.
    wanted = {**wanted, "from": wanted["from"] if "from" in found.description else None}
    different = [name for name, value in wanted.items() if found.description.get(name) != value]
    if different:
        there = ", ".join(f"{name}={found.description.get(name)}" for name in different)
        raise KeyferryError(
            f"{dest} exists and is another dump ({there}): name another dest, or set force=true to replace it"
        )
    return {"changed": False, "dest": dest, **_facts(dump_file.whole_file(found))}


def _facts(summary: dict[str, t.Any]) -> dict[str, t.Any]:
    return {name: summary[name] for name in ("keys", "commands", "bytes", "types", "expired", "sha256")}


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **connection_spec(),
            "db": {"type": "int", "required": True},
            "rdb": {"type": "path"},
            "source": {"type": "str", "choices": ["scan", "replication"], "default": "scan"},
            "dest": {"type": "path", "required": True},
            "target_db": {"type": "int", "default": 0},
            "format": {"type": "str", "choices": ["restore", "commands"], "default": "restore"},
            "match": {"type": "str"},
            "eviction": {"type": "bool", "default": False},
            "functions": {"type": "bool", "default": False},
            "batch_size": {"type": "int", "default": 1000},
            "workers": {"type": "int"},
            "max_keys_per_second": {"type": "int", "no_log": False},
            "max_latency_ms": {"type": "float"},
            "progress_file": {"type": "path"},
            "force": {"type": "bool", "default": False},
        },
        mutually_exclusive=[("rdb", "max_keys_per_second"), ("rdb", "max_latency_ms")],
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
