#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_flushdb
short_description: Remove every key of chosen databases of a Redis server
version_added: 0.1.0
author: The keyferry.redis authors (@keyferry)
description:
  - Flushes one database or several, or all but some, and returns how many keys each one held.
  - Nothing is flushed unless every check that the options ask for has passed.
  - The key C(ElastiCacheMasterReplicationTimestamp), which ElastiCache keeps in database 0, is not counted as data; a
    database that holds nothing else is left alone.
extends_documentation_fragment:
  - keyferry.redis.connection
  - keyferry.redis.protected
  - keyferry.redis.attributes
  - keyferry.redis.attributes.redis
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  db:
    description: Databases to flush, one number or a list.
    type: list
    elements: int
  all_except:
    description: Flush every database that holds keys except these.
    type: list
    elements: int
  asynchronous:
    description: Whether the server frees the memory in the background. Otherwise it answers nobody until that is done.
    type: bool
    default: true
  max_keys:
    description: Refuse, and flush nothing, when the databases hold more keys than this together.
    type: int
notes:
  - An ACL user needs C(on ~* +@connection +info +dbsize +ttl +flushdb).
"""

EXAMPLES = r"""
- name: Empty database 0 of the migration host's own instance, and refuse to do so on the source
  keyferry.redis.redis_flushdb:
    login_port: 6390
    db: 0
    protected_run_ids: "{{ source_run_ids }}"

- name: Leave nothing but database 0
  keyferry.redis.redis_flushdb:
    login_port: 6390
    all_except: [0]

- name: Empty database 5, which should be nearly empty
  keyferry.redis.redis_flushdb:
    login_host: redis.example.com
    db: 5
    max_keys: 100
"""

RETURN = r"""
flushed:
  description: The databases that held keys, and how many keys of each were removed (or would be, in check mode).
  returned: success
  type: dict
  sample: {"0": 1, "2": 20512}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_redis import (
    PROTECTED_SPEC,
    connection_spec,
    refuse_protected,
    server_of,
)
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import data_keyspace, listed
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

HAS_SYNC = (6, 2)


def work(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    server = server_of(params)
    run_id = refuse_protected(server, params)
    keyspace = {db: facts.keys for db, facts in data_keyspace(server).databases.items()}
    wanted = set(keyspace) - set(params["all_except"]) if params["db"] is None else set(params["db"])
    held = {db: keyspace[db] for db in sorted(wanted & set(keyspace))}
    keys = sum(held.values())
    if params["max_keys"] is not None and keys > params["max_keys"]:
        databases = ", ".join(f"database {db}: {count}" for db, count in held.items())
        raise KeyferryError(
            f"Redis at {server} holds {keys} keys there ({databases}), more than max_keys={params['max_keys']};"
            " nothing was flushed. Is it the right server?"
        )
    for db in sorted(wanted):
        server.dbsize(db)
    if not module.check_mode:
        how = _how(server, params["asynchronous"])
        for db in held:
            server.call_process(run_id, "FLUSHDB", *how, db=db)
    after = {db: 0 if db in held else count for db, count in keyspace.items()}
    return {
        "changed": bool(held),
        "flushed": {str(db): count for db, count in held.items()},
        "diff": {"before": listed(keyspace), "after": listed(after)},
    }


def _how(server: Server, is_asynchronous: bool) -> tuple[str, ...]:
    """Give back the argument of FLUSHDB; before 6.2 it has none for what it does without one."""
    if is_asynchronous:
        return ("ASYNC",)
    return ("SYNC",) if server.version() >= HAS_SYNC else ()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **connection_spec(),
            **PROTECTED_SPEC,
            "db": {"type": "list", "elements": "int"},
            "all_except": {"type": "list", "elements": "int"},
            "asynchronous": {"type": "bool", "default": True},
            "max_keys": {"type": "int", "no_log": False},
        },
        required_one_of=[("db", "all_except")],
        mutually_exclusive=[("db", "all_except")],
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
