#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: resp_load
short_description: Load a dump of RESP commands into a Redis server
version_added: 0.1.0
author: The keyferry.redis authors (@keyferry)
description:
  - Sends the commands of a dump through full pipelines and matches every reply to its command. The first one that the
    server refuses fails the module, with its key, its number and its byte offset.
  - The whole file is checked before its first command is sent. A dump that was cut or altered, at whatever byte, is
    refused and nothing is written.
  - Payloads of a newer RDB version than the server reads are found before anything is sent. Where the server knows all
    types of values in the dump they are given a version that it reads; otherwise the module fails.
  - Commands that are newer than the server are replaced by older ones that it knows, one for one. Where Redis before
    5.0 has no C(ABSTTL), and Redis before 6.2 no C(PXAT), a script sets value and time of expiry at once, to the
    millisecond. How long ago or how often keys were used is left out for Redis before 5.0, the counters of streams
    before 7.0.
  - Takes the dumps of M(keyferry.redis.resp_dump), and files of RESP commands by other tools.
  - Fails where the server has evicted keys during the load (its memory is full, and its C(maxmemory-policy) is not
    V(noeviction)), as nobody can say which.
  - A connection that breaks is opened again, and what was under way on it is sent again, where the dump was made with
    C(format=restore) and O(replace=true). Any other load fails then. With C(format=commands), a list would become too
    long if the server also ran what it had received before the connection broke; once the server is well again,
    O(resume=true) goes on from there.
  - A server that is busy with a script, or loads its data, when the load begins is waited for, about 18 seconds. In the
    middle of a load it is treated like a connection that breaks.
requirements:
  - anycrc (Python library) >= 2.0.0, to load payloads of a newer version, and with O(replace=false)
extends_documentation_fragment:
  - keyferry.redis.connection
  - keyferry.redis.protected
  - keyferry.redis.progress
  - keyferry.redis.attributes
  - keyferry.redis.attributes.redis
attributes:
  check_mode:
    support: full
    details:
      - Checks the whole dump and the target, and sends nothing.
  diff_mode:
    support: none
  idempotent:
    support: partial
    details:
      - Loading again does no harm, and is reported as a change.
options:
  src:
    description: The dump.
    type: path
    required: true
  db:
    description: Database to load into. Without it, the one that the dump itself selects.
    type: int
  workers:
    description:
      - Number of connections that load at once. Without it, the measured round trip to the server decides.
      - A dump by another tool is loaded over one connection, in its own order.
    type: int
  batch_size:
    description:
      - Number of commands that a connection sends ahead of their replies, to spare a server that others use. Without
        it, as many as a few MiB hold, which is the fastest.
    type: int
  replace:
    description:
      - Whether a key that is there already is replaced.
      - With V(false) the first such key fails the module, and is not overwritten.
    type: bool
    default: true
  cluster:
    description:
      - Whether the server is a node of a cluster (cluster mode enabled). Each key is then sent to the primary of its
        slot, and redirections are followed, so that a slot may move during the load. Without it, the server is asked.
      - Where a replica takes over from a primary during the load, all is sent again, as the replica may not have what
        its primary had acknowledged. With a dump of C(format=commands) the load fails instead, and is to be run again.
      - The dump must be for database 0, or O(db=0).
    type: bool
  resume:
    description:
      - Whether to leave out what an earlier load that failed has got through. A load that fails writes that down beside
        the dump, in O(src) with C(.resume) at its end.
      - It counts for the same dump and the same server processes only (in a cluster, of all primaries), and where what
        was sent then is still there; otherwise everything is sent. A load without it removes that file.
    type: bool
    default: false
notes:
  - O(progress_file) counts commands of the dump.
  - An ACL user needs C(on ~* +@connection +info +dbsize +set +restore), with O(resume=true) also C(+exists), in cluster
    mode C(+cluster|slots), and for a dump with functions or of C(format=commands) C(+@write).
seealso:
  - module: keyferry.redis.resp_dump
"""

EXAMPLES = r"""
- name: Load a dump into the database that it names
  keyferry.redis.resp_load:
    login_port: 6390
    src: /var/lib/keyferry/db1.resp

- name: Load a dump into database 4 of an empty server, and overwrite nothing
  keyferry.redis.resp_load:
    login_host: redis.example.com
    src: /var/lib/keyferry/db1.resp
    db: 4
    replace: false
"""

RETURN = r"""
keys:
  description:
    - Keys in the dump, by its own account. For a dump by another tool, runs of commands on the same key.
  returned: success
  type: int
  sample: 30000000
commands:
  description: Commands in the dump that write a key.
  returned: success
  type: int
  sample: 30000000
replies:
  description:
    - Replies that came to them; each was matched to its command. Zero in check mode.
    - With O(resume=true), those to the commands that were left.
  returned: success
  type: int
  sample: 30000000
errors:
  description: Commands that the server refused. Always V(0), as the first one ends the load and fails the module.
  returned: success
  type: int
  sample: 0
dbsize_before:
  description: Keys in the database before the load; in all of the dump's databases where it has several.
  returned: success
  type: int
  sample: 0
dbsize_after:
  description:
    - Keys in the database after the load. Those whose TTL has passed since the dump are not among them, or only until
      the server removes them, as it does with any key that expires.
  returned: success
  type: int
  sample: 29999988
elapsed:
  description: Seconds that the work took.
  returned: success
  type: float
  sample: 88.4
"""

import functools
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_redis import (
    PROTECTED_SPEC,
    connection_spec,
    refuse_protected,
    require_positive,
    server_of,
)
from ansible_collections.keyferry.redis.plugins.module_utils.dump_file import Dump, open_dump
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.load import Loaded, load
from ansible_collections.keyferry.redis.plugins.module_utils.load_target import Target, check_target, dbsize
from ansible_collections.keyferry.redis.plugins.module_utils.progress import progress_to
from ansible_collections.keyferry.redis.plugins.module_utils.server import TemporaryRefusal


class Prepared(t.NamedTuple):
    """All that is known before the first command is sent; I(stamp) is what check_target() has given back."""

    dump: Dump
    target: Target
    stamp: int | None
    dbsize: int


def prepare(params: dict[str, t.Any]) -> Prepared:
    server = server_of(params)
    approve = functools.partial(refuse_protected, params=params)
    # Before all else; a connection that writes is looked at again.
    approve(server)
    dump = open_dump(params["src"])
    target = Target(
        server=server,
        db=params["db"],
        workers=params["workers"],
        replace=params["replace"],
        cluster=server.is_cluster() if params["cluster"] is None else params["cluster"],
        resume=params["resume"],
        batch_size=params["batch_size"],
        approve=approve,
    )
    return Prepared(dump, target, check_target(target, dump), dbsize(target, dump))


def work(module: AnsibleModule) -> dict[str, t.Any]:
    started = time.monotonic()
    params = module.params
    require_positive(params, "workers", "batch_size")
    try:
        dump, target, stamp, before = prepare(params)
    except TemporaryRefusal as error:
        raise KeyferryError(f"{error.msg}. Nothing was sent") from error
    loaded = Loaded(0, before)
    if not module.check_mode:
        with progress_to(params["progress_file"], lambda: dump.commands) as progress:
            loaded = load(target, dump, stamp, progress)
    return {
        "changed": dump.commands > 0,
        "keys": dump.keys,
        "commands": dump.commands,
        "replies": loaded.replies,
        "errors": 0,
        "dbsize_before": before,
        "dbsize_after": loaded.dbsize,
        "elapsed": round(time.monotonic() - started, 3),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **connection_spec(),
            **PROTECTED_SPEC,
            "src": {"type": "path", "required": True},
            "db": {"type": "int"},
            "workers": {"type": "int"},
            "batch_size": {"type": "int"},
            "replace": {"type": "bool", "default": True},
            "cluster": {"type": "bool"},
            "progress_file": {"type": "path"},
            "resume": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
