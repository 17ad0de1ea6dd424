#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: redis_compare
short_description: Compare a database of one Redis server with a database of another, and repair what differs
version_added: 0.1.0
author: The keyferry.redis authors (@keyferry)
description:
  - Compares database O(db) of the source (O(login_host)) with database O(target_db) of the target
    (O(target_login_host)) both ways, so that extra keys are found too.
  - Keys are the same when type, value and TTL are. How a server keeps a value in memory, the order of a hash or a set,
    and when a consumer of a stream was last seen do not matter.
  - A key that is on one side only, and whose TTL is over by now, has expired on the way. It is counted in RV(expired)
    and is no difference.
  - The key C(ElastiCacheMasterReplicationTimestamp), which ElastiCache keeps in database 0, is left out.
  - The source is only read. Needs neither CONFIG nor DEBUG, so that it works on ElastiCache. Values are not logged.
  - Either side may be a cluster (cluster mode enabled), which the server itself reports. Give any of its nodes then, or
    the configuration endpoint. Each key is asked for at the primary of its slot, redirections are followed, and extra
    keys are looked for on every primary. Fails where slots have moved meanwhile, as keys may have been overlooked then.
  - Fails where a side is a replica that has lost its primary.
  - O(mode=full) and O(mode=sample) need Redis 7.0 or Valkey on both sides.
  - A value of any size is compared and copied in little memory, but an element of a list, hash, set, sorted set or
    stream is held whole.
extends_documentation_fragment:
  - keyferry.redis.connection
  - keyferry.redis.target_connection
  - keyferry.redis.protected
  - keyferry.redis.progress
  - keyferry.redis.attributes
  - keyferry.redis.attributes.redis
attributes:
  check_mode:
    support: full
    details:
      - The comparison is done; with O(repair=true), RV(repaired) and RV(deleted) are how many keys would be copied
        and removed.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  db:
    description: Number of the source's database.
    type: int
    required: true
  target_db:
    description: Number of the target's database.
    type: int
    default: 0
  mode:
    description:
      - V(count) compares nothing but the number of keys.
      - V(sample) looks at keys of both sides, as many as O(confidence) and O(damage) ask for. Each of them is drawn at
        random from all keys by the server itself (RANDOMKEY), in a cluster from every primary by how many keys it has.
        A database that has no more keys than that is looked at as a whole. RANDOMKEY draws nearly, not exactly, evenly,
        so O(confidence) is nearly what it says; differences that are to be found for certain need V(full).
      - V(full) looks at every key.
    type: str
    choices: [count, sample, full]
    default: full
  confidence:
    description: Probability with which O(mode=sample) must find a difference when the share O(damage) of keys differs.
    type: float
    default: 0.99
  damage:
    description:
      - Share of keys that differ and must be found.
      - The defaults make a sample of 4603 keys, whatever the size of the database. It is C(ln(1 - confidence) / ln(1 -
        damage)), rounded up.
    type: float
    default: 0.001
  ttl_tolerance_ms:
    description: By how many milliseconds two TTLs may differ, and two servers' clocks.
    type: int
    default: 0
  repair:
    description:
      - Whether to make each key that is missing or differs on the target what it is on the source (RESTORE with REPLACE
        and ABSTTL), and to remove the extra ones (UNLINK).
      - RV(equal) and the numbers say what was found before that. Compare again to see what is left.
      - Each key is read again from the source when it is repaired, and removed only if it is missing there then. What
        changes at that very moment is found by the next comparison. The module can be interrupted and run again.
      - Refused where the target is the source, or in replication with it.
    type: bool
    default: false
  max_repairs:
    description:
      - The module fails, before it has changed any key, where O(repair=true) would copy and remove more keys than this,
        all together. A guard against a target that is the wrong one.
      - The names of these keys are held in memory until the comparison is done; without it, keys are repaired at once.
    type: int
    version_added: 0.2.0
  progress_file:
    version_added: 0.2.0
  workers:
    description:
      - Number of connections to each side. Without it, as many as the round trips to the two servers need.
    type: int
  max_keys_per_second:
    description: Read no more keys than this per second, to spare a source in production. No limit without it.
    type: int
requirements:
  - hiredis (Python library) >= 3.0.0
notes:
  - O(progress_file) counts keys, both ways together. Where both sides hold as many keys, looking back from the target
    is not counted in the total, since it is hardly ever needed.
  - An ACL user needs C(on ~* +@read +@connection +time +info) on both sides, on the target with O(repair=true) also
    C(+restore +unlink). In cluster mode it needs C(+cluster|slots), too.
seealso:
  - module: keyferry.redis.redis_keyspace_info
"""

EXAMPLES = r"""
- name: Prove that the new ElastiCache holds what the source's database 1 holds
  keyferry.redis.redis_compare:
    login_host: replica.shared.example.euc1.cache.amazonaws.com
    login_password: "{{ auth_token }}"
    tls: true
    db: 1
    target_login_host: master.sessions.example.euc1.cache.amazonaws.com
    target_login_password: "{{ new_auth_token }}"
    target_tls: true
    target_db: 0
  register: proof
  failed_when: proof is failed or not proof.equal

- name: Look at random keys only, gently
  keyferry.redis.redis_compare:
    login_host: redis.example.com
    db: 1
    target_login_port: 6390
    mode: sample
    max_keys_per_second: 1000

- name: Copy again what was written since the snapshot, until a round finds fewer than 100 keys
  keyferry.redis.redis_compare:
    login_host: redis.example.com
    db: 1
    target_login_host: new-redis.example.com
    target_db: 0
    repair: true
    max_repairs: 1000000
    protected_run_ids: "{{ source_run_ids }}"
  register: round
  until: round is failed or round.repaired + round.deleted < 100
  retries: 10
  delay: 0
"""

RETURN = r"""
equal:
  description: Whether nothing was found that is missing, extra or different.
  returned: success, and where O(max_repairs) is exceeded
  type: bool
  sample: true
missing:
  description: Keys of the source that the target does not have.
  returned: success, and where O(max_repairs) is exceeded
  type: int
  sample: 0
extra:
  description: Keys of the target that the source does not have.
  returned: success, and where O(max_repairs) is exceeded
  type: int
  sample: 0
different:
  description: Keys that both have, with different types, values or TTLs.
  returned: success, and where O(max_repairs) is exceeded
  type: int
  sample: 0
repaired:
  description: Keys that were copied again (or would be, in check mode).
  returned: success, and where O(max_repairs) is exceeded
  type: int
  sample: 0
deleted:
  description: Keys that were removed from the target (or would be, in check mode).
  returned: success, and where O(max_repairs) is exceeded
  type: int
  version_added: 0.2.0
  sample: 0
sample:
  description:
    - How many random keys of each side O(mode=sample) looks at, or all where there are no more than that, and why so
      many. If nothing was found, then, with this confidence, a smaller share than C(damage) of the keys differs.
  returned: success, when O(mode=sample)
  type: dict
  version_added: 0.2.0
  sample: {"keys": 4603, "confidence": 0.99, "damage": 0.001}
expired:
  description: Keys that were on one side only, or gone from both when they were read, since their TTL was over.
  returned: success, and where O(max_repairs) is exceeded
  type: int
  sample: 41
compared:
  description:
    - Keys of the source that were looked at; V(0) with O(mode=count).
    - A key that SCAN returned twice because the table was resized under it counts twice, here and above.
  returned: success, and where O(max_repairs) is exceeded
  type: int
  sample: 29998267
keys_source:
  description: Keys in the source's database when the comparison began, including expired ones not removed yet.
  returned: success
  type: int
  sample: 29998267
keys_target:
  description: Keys in the target's database when the comparison began.
  returned: success
  type: int
  sample: 29998226
examples:
  description: At most ten keys of each kind of difference, odd bytes escaped.
  returned: success, and where O(max_repairs) is exceeded
  type: dict
  sample: {"missing": ["'session:42'"], "extra": [], "different": ["'cart:\\x00\\xff'"]}
elapsed:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 173.2
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
from ansible_collections.keyferry.redis.plugins.module_utils.compare import (
    Comparison,
    compare,
    compare_counts,
    keys_to_look_at,
    sample_size,
)
from ansible_collections.keyferry.redis.plugins.module_utils.endpoint import Endpoint
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.progress import progress_to
from ansible_collections.keyferry.redis.plugins.module_utils.server import Server

TARGET = "target_"


def work(module: AnsibleModule) -> dict[str, t.Any]:
    started = time.monotonic()
    params = module.params
    _check(params)
    source = Endpoint(server_of(params), params["db"])
    approve = functools.partial(refuse_protected, params=params) if params["repair"] else Server.run_id
    target = Endpoint(server_of(params, TARGET), params["target_db"], approve)
    if params["mode"] == "count":
        with progress_to(params["progress_file"], lambda: None):
            result = compare_counts(source, target)
    else:
        result = _compare_keys(source, target, params, module.check_mode)
    is_changed = result["repaired"] + result["deleted"] > 0
    return {"changed": is_changed, **result, "elapsed": round(time.monotonic() - started, 3)}


def _compare_keys(source: Endpoint, target: Endpoint, params: dict[str, t.Any], dry_run: bool) -> dict[str, t.Any]:
    sample = {name: params[name] for name in ("confidence", "damage")} if params["mode"] == "sample" else None
    comparison = Comparison(
        source,
        target,
        ttl_tolerance_ms=params["ttl_tolerance_ms"],
        sample_size=None if sample is None else sample_size(**sample),
        repair=params["repair"],
        max_repairs=params["max_repairs"],
        dry_run=dry_run,
        workers=params["workers"],
        max_keys_per_second=params["max_keys_per_second"],
    )
    with progress_to(params["progress_file"], lambda: keys_to_look_at(comparison)) as progress:
        result = compare(comparison, progress)
    return result if sample is None else {**result, "sample": {"keys": comparison.sample_size, **sample}}


def _check(params: dict[str, t.Any]) -> None:
    require_positive(params, "workers", "max_keys_per_second", "max_repairs")
    if params["ttl_tolerance_ms"] < 0:
        raise KeyferryError(f"ttl_tolerance_ms is {params['ttl_tolerance_ms']}; it must be at least 0")
    for name in ("confidence", "damage"):
        if not 0 < params[name] < 1:
            raise KeyferryError(f"{name} is {params[name]}; it must be between 0 and 1, for example 0.99 for 99 %")
    if params["repair"] and params["mode"] == "count":
        raise KeyferryError("repair=true needs mode=full or mode=sample: mode=count does not know which keys differ")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **connection_spec(),
            **connection_spec(TARGET),
            **PROTECTED_SPEC,
            "db": {"type": "int", "required": True},
            "target_db": {"type": "int", "default": 0},
            "mode": {"type": "str", "choices": ["count", "sample", "full"], "default": "full"},
            "confidence": {"type": "float", "default": 0.99},
            "damage": {"type": "float", "default": 0.001},
            "ttl_tolerance_ms": {"type": "int", "default": 0},
            "repair": {"type": "bool", "default": False},
            "max_repairs": {"type": "int"},
            "progress_file": {"type": "path"},
            "workers": {"type": "int"},
            "max_keys_per_second": {"type": "int", "no_log": False},
        },
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
