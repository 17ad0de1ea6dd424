#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_promote_db
short_description: Make one database the only data of a Redis server
version_added: 0.1.0
author: The keyferry.redis authors (@keyferry)
description:
  - Flushes every database but O(db), and swaps that with O(target_db), within milliseconds whatever its size. What
    O(target_db) held before is gone.
  - It is one transaction. Whenever it is interrupted, all of it is done or none of it, and it can be run again.
  - Where O(db) is empty and O(target_db) is the only database with keys, it was promoted already, and nothing is done.
    Where O(db) is empty and others hold keys, the module fails.
  - The key C(ElastiCacheMasterReplicationTimestamp), which ElastiCache keeps in database 0, is not counted as data.
  - Refused, before anything is changed, in cluster mode (and so on ElastiCache Serverless), on a replica, and where
    FLUSHDB, SWAPDB, SELECT or MULTI are renamed or forbidden.
extends_documentation_fragment:
  - keyferry.redis.connection
  - keyferry.redis.protected
  - keyferry.redis.attributes
  - keyferry.redis.attributes.redis
attributes:
  check_mode:
    support: full
    details:
      - The commands are queued, so that the server says whether it takes them, and discarded.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  db:
    description: Number of the database to keep.
    type: int
    required: true
  target_db:
    description: Number that it is to have.
    type: int
    default: 0
  min_keys:
    description:
      - Refuse, and change nothing, when the database to keep holds fewer keys than this.
      - It is the best guard against an incomplete snapshot and a wrong O(db), so give it where the number is known.
        Without it, a O(target_db) with more keys than O(db) is not replaced.
    type: int
requirements:
  - hiredis (Python library) >= 3.0.0
notes:
  - An ACL user needs C(on ~* +@connection +@transaction +info +dbsize +ttl +flushdb +swapdb).
seealso:
  - module: keyferry.redis.redis_flushdb
  - module: keyferry.redis.redis_keyspace_info
"""

EXAMPLES = r"""
- name: Make database 1 of the new ElastiCache its only one, and refuse to do so on the source
  keyferry.redis.redis_promote_db:
    login_host: master.sessions.example.euc1.cache.amazonaws.com
    login_password: "{{ auth_token }}"
    tls: true
    db: 1
    target_db: 0
    min_keys: 29000000
    protected_run_ids: "{{ source_run_ids }}"
"""

RETURN = r"""
keys:
  description: Keys in O(target_db) (or that would be, in check mode).
  returned: success
  type: int
  sample: 29998267
flushed:
  description: The databases that held keys, and how many keys of each were removed (or would be, in check mode).
  returned: success
  type: dict
  sample: {"0": 20512, "2": 7}
elapsed:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 0.013
"""

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
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import listed
from ansible_collections.keyferry.redis.plugins.module_utils.promote import promote


def work(module: AnsibleModule) -> dict[str, t.Any]:
    started = time.monotonic()
    params = module.params
    require_positive(params, "min_keys")
    server = server_of(params)
    run_id = refuse_protected(server, params)
    result = promote(server, run_id, params["db"], params["target_db"], params["min_keys"], module.check_mode)
    before, after = (listed(result.pop(name)) for name in ("before", "after"))
    elapsed = round(time.monotonic() - started, 3)
    return {**result, "diff": {"before": before, "after": after}, "elapsed": elapsed}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **connection_spec(),
            **PROTECTED_SPEC,
            "db": {"type": "int", "required": True},
            "target_db": {"type": "int", "default": 0},
            "min_keys": {"type": "int", "no_log": False},
        },
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
