#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_keyspace_info
short_description: See what a Redis server holds, database by database
version_added: 0.1.0
author: The keyferry.redis authors (@keyferry)
description:
  - Returns which databases of a server hold how many keys, of which types and about how many bytes, who the server is,
    and whether ElastiCache could change it to cluster mode as it is.
  - Only reads. Needs neither CONFIG nor DEBUG, so that it works on ElastiCache.
  - The key C(ElastiCacheMasterReplicationTimestamp), which ElastiCache keeps in database 0, is not counted as data.
  - In cluster mode it returns what this one node holds.
extends_documentation_fragment:
  - keyferry.redis.connection
  - keyferry.redis.attributes
  - keyferry.redis.attributes.redis
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  samples:
    description:
      - Number of random keys of each database to ask for type and size, by RANDOMKEY, TYPE and MEMORY USAGE in
        pipelines. A database with no more keys than this is looked at whole.
      - 1000 take the server a few milliseconds a database, and give a share of 10 % to within about 2 %.
      - The bytes of a few huge keys are easily missed by a sample; RV(used_memory) is exact, for all databases
        together.
      - V(0) asks for none, and leaves RV(databases) without types and bytes.
    type: int
    default: 0
notes:
  - An ACL user needs C(on ~* +@connection +info +ttl), with O(samples) also C(+scan +randomkey +type +memory|usage),
    and for RV(database_count) C(+config|get).
seealso:
  - module: keyferry.redis.redis_compare
  - module: keyferry.redis.redis_promote_db
"""

EXAMPLES = r"""
- name: See which database is the one worth moving
  keyferry.redis.redis_keyspace_info:
    login_host: replica.shared.example.euc1.cache.amazonaws.com
    login_password: "{{ auth_token }}"
    tls: true
    samples: 1000
  register: source

- name: Remember who the source is, so that nothing writes to it
  ansible.builtin.set_fact:
    source_run_ids: ["{{ source.run_id }}"]

- name: Show what keeps it from cluster mode
  ansible.builtin.debug:
    var: source.cluster_mode.reasons
"""

RETURN = r"""
run_id:
  description: >-
    What distinguishes this server process from every other, as
    O(keyferry.redis.redis_flushdb#module:protected_run_ids) takes it.
  returned: success
  type: str
  sample: 5f4dcc3b5aa765d61d8327deb882cf99b2e0c6a1
replication_id:
  description: What a primary and its replicas have in common; V(null) where the server does not say.
  returned: success
  type: str
  sample: 8371b4fb1155b71f4a04d3e1bc3e18c4a990aeeb
engine:
  description: V(redis) or V(valkey).
  returned: success
  type: str
  sample: redis
version:
  description: The engine's own version.
  returned: success
  type: str
  sample: 7.1.0
role:
  description: V(master) or V(slave), in the words of INFO.
  returned: success
  type: str
  sample: master
cluster_enabled:
  description: Whether the server is in cluster mode.
  returned: success
  type: bool
  sample: false
databases:
  description: The databases that hold data, by their number.
  returned: success
  type: dict
  sample:
    "0": {"keys": 20512, "expires": 12, "types": {"string": 20512}, "estimated_bytes": 4183040}
    "1":
      keys: 30000000
      expires: 18012311
      types: {"hash": 2400000, "string": 27600000}
      estimated_bytes: 8120000000
  contains:
    keys:
      description: Keys, including those that have expired but were not removed yet.
      returned: always
      type: int
    expires:
      description: Keys with a TTL.
      returned: always
      type: int
    types:
      description: Number of keys of each type, estimated from the sample.
      returned: when O(samples) is not V(0)
      type: dict
    estimated_bytes:
      description: Memory that the keys take, estimated from the sample; V(null) where MEMORY USAGE is not allowed.
      returned: when O(samples) is not V(0)
      type: int
keys:
  description: Keys of all databases together.
  returned: success
  type: int
  sample: 30020512
service_keys:
  description: Keys that ElastiCache keeps for itself; they are in none of the other numbers.
  returned: success
  type: int
  sample: 1
used_memory:
  description: Bytes of memory that the server uses.
  returned: success
  type: int
  sample: 9210044416
maxmemory:
  description: Bytes of memory that it may use, V(0) for no limit.
  returned: success
  type: int
  sample: 13958643712
database_count:
  description: How many databases may be selected; V(null) where CONFIG is not allowed, as on ElastiCache.
  returned: success
  type: int
  sample: 16
cluster_mode:
  description:
    - Whether ElastiCache could change this server to cluster mode as it is, as far as the server itself knows.
      Automatic failover, which that needs too, is known to AWS only.
  returned: success
  type: dict
  contains:
    eligible:
      description: Whether nothing was found that prevents it. True where cluster mode is on already.
      type: bool
    reasons:
      description: All that prevents it, a sentence each.
      type: list
      elements: str
  sample:
    eligible: false
    reasons: ["database 1 holds 30000000 keys, and cluster mode has database 0 only"]
rdb_last_load_keys_expired:
  description:
    - Keys of the RDB file that the server left out when it started, since they had expired; V(null) where it does not
      say. They are no losses.
  returned: success
  type: int
  sample: 1733
rdb_last_load_keys_loaded:
  description: Keys that the server loaded from the RDB file when it started; V(null) where it does not say.
  returned: success
  type: int
  sample: 29998267
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_redis import connection_spec, server_of
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.keyspace import describe


def work(module: AnsibleModule) -> dict[str, t.Any]:
    samples = module.params["samples"]
    if samples < 0:
        raise KeyferryError(f"samples must be 0 or more, not {samples}")
    return {"changed": False, **describe(server_of(module.params), samples)}


def main() -> None:
    module = AnsibleModule(
        argument_spec={**connection_spec(), "samples": {"type": "int", "default": 0}},
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
