#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: rdb_extract
short_description: Cut databases out of an RDB file, each into an RDB file of its own
version_added: 0.1.0
author: The keyferry.redis authors (@keyferry)
description:
  - Copies one or more databases of an RDB file into new RDB files, as database 0 or any other, without a Redis server.
  - The keys are copied as they are, byte for byte, with expiry, idle time and frequency; nothing is decoded. The new
    file has the version, the AUX fields that still hold (those of replication are left out), module data, the original
    counts of keys, and a checksum of its own.
  - The whole source is walked and its checksum verified in the same pass. Where it is damaged, cut short, or holds
    anything whose layout is not known, the module fails with the byte offset, and no O(dest) is touched.
  - A new file is written as O(dest) with C(.partial) appended, synced, and then renamed. What an interrupted run has
    left is written over.
  - Known are RDB versions 5 to 15 of Redis (up to 8.10) and 80 and 81 of Valkey. Refused are arrays and rate limiters
    of Redis 8.8, streams with idempotent producers (8.6), and files that Valkey 9.2 wrote without a fork.
extends_documentation_fragment:
  - keyferry.redis.attributes
attributes:
  check_mode:
    support: full
    details:
      - The source is walked all the same, so that everything that is returned is exact.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - An existing O(dest) is left alone if, by its SHA-256, it is what would be written. Unless O(force=true).
requirements:
  - anycrc
  - Linux
options:
  src:
    description: The RDB file, on the host that the module runs on. It is only read.
    type: path
    required: true
  dest:
    description:
      - The new RDB file, with mode C(0600). Its directory must exist.
      - Another file that is there is replaced.
    type: path
  db:
    description: The database to cut out.
    type: int
  target_db:
    description: The database that its keys are in, in the new file.
    type: int
    default: 0
  extract:
    description: Several databases to cut out in one pass, instead of O(db), O(dest) and O(target_db).
    type: list
    elements: dict
    suboptions:
      db:
        description: The database to cut out.
        type: int
        required: true
      dest:
        description: The new RDB file.
        type: path
        required: true
      target_db:
        description: The database that its keys are in, in the new file.
        type: int
        default: 0
  functions:
    description: Whether the new files get the functions (C(FUNCTION LOAD)), which belong to no database.
    type: bool
    default: false
  force:
    description: Whether to write O(dest) again although it is what would be written.
    type: bool
    default: false
  workers:
    description:
      - How many processes walk the file beside the one that writes. As many as there are CPUs unless given, but not
        more than 4, for the one that writes cannot follow more.
      - Each takes about 30 MB of memory, whatever the size of the file.
    type: int
seealso:
  - module: keyferry.redis.resp_dump
    description: Makes commands of an RDB file, for a server that exists already.
"""

EXAMPLES = r"""
- name: Cut database 1 out of the exported snapshot, as database 0
  keyferry.redis.rdb_extract:
    src: /var/lib/keyferry/shared-redis-0001.rdb
    db: 1
    dest: /var/lib/keyferry/orders.rdb

- name: Take the shared instance apart in one pass
  keyferry.redis.rdb_extract:
    src: /var/lib/keyferry/shared-redis-0001.rdb
    functions: true
    extract:
      - db: 1
        dest: /var/lib/keyferry/orders.rdb
      - db: 3
        dest: /var/lib/keyferry/sessions.rdb
"""

RETURN = r"""
dest:
  description: The new file; with O(extract) in RV(extracted) alone, as is RV(sha256).
  returned: success, with O(db)
  type: str
  sample: /var/lib/keyferry/orders.rdb
sha256:
  description: SHA-256 of the new file.
  returned: success, with O(db)
  type: str
  sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
keys:
  description: Keys copied. Those whose time has passed are among them, and a server drops them when it loads the file.
  returned: success
  type: int
  sample: 30000000
expires:
  description: How many of RV(keys) have an expiry.
  returned: success
  type: int
  sample: 29500000
bytes:
  description: Size of the new file, or of all of them.
  returned: success
  type: int
  sample: 4026531840
types:
  description: RV(keys) by type.
  returned: success
  type: dict
  sample: {"hash": 80000, "string": 920000}
rdb_version:
  description: Magic and version of the source, which are those of the new files too.
  returned: success
  type: str
  sample: REDIS0010
databases:
  description: Every database found in the source, with its keys and how many of them have an expiry.
  returned: success
  type: dict
  sample: {"0": {"expires": 0, "keys": 1200}, "1": {"expires": 29500000, "keys": 30000000}}
extracted:
  description: For each new file the same facts, in the order that was asked for.
  returned: success
  type: list
  elements: dict
  contains:
    db:
      description: The database it was in.
      type: int
      sample: 1
    target_db:
      description: The database it is in now.
      type: int
      sample: 0
    dest:
      description: The new file.
      type: str
      sample: /var/lib/keyferry/orders.rdb
    changed:
      description: Whether the file was written.
      type: bool
      sample: true
    keys:
      description: Keys copied.
      type: int
      sample: 30000000
    expires:
      description: How many of them have an expiry.
      type: int
      sample: 29500000
    types:
      description: Keys by type.
      type: dict
      sample: {"string": 30000000}
    bytes:
      description: Size of the file.
      type: int
      sample: 4026531840
    sha256:
      description: SHA-256 of the file.
      type: str
      sample: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
elapsed:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 9.8
"""

import typing as t
from collections import Counter

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.extract import Wanted, extract


def work(module: AnsibleModule) -> dict[str, t.Any]:
    params = module.params
    several = params["extract"] or [{name: params[name] for name in ("db", "dest", "target_db")}]
    wanted = [Wanted(**each) for each in several]
    for each in wanted:
        if each.db < 0 or each.target_db < 0:
            raise KeyferryError(f"A database index below 0 was given for {each.dest}: they begin with 0")
    result = extract(
        params["src"],
        wanted,
        functions=params["functions"],
        force=params["force"],
        dry=module.check_mode,
        workers=params["workers"],
    )
    return {**result, **summary(result["extracted"], single=not params["extract"])}


def summary(extracted: list[dict[str, t.Any]], single: bool) -> dict[str, t.Any]:
    """Give back the totals of all new files, and what tells the one where there is one."""
    types: Counter[str] = Counter()
    for each in extracted:
        types.update(each["types"])
    totals = {name: sum(each[name] for each in extracted) for name in ("keys", "expires", "bytes")}
    alone = {name: extracted[0][name] for name in ("dest", "sha256")} if single else {}
    return {**totals, "types": dict(types), **alone}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "src": {"type": "path", "required": True},
            "dest": {"type": "path"},
            "db": {"type": "int"},
            "target_db": {"type": "int", "default": 0},
            "extract": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "db": {"type": "int", "required": True},
                    "dest": {"type": "path", "required": True},
                    "target_db": {"type": "int", "default": 0},
                },
            },
            "functions": {"type": "bool", "default": False},
            "force": {"type": "bool", "default": False},
            "workers": {"type": "int"},
        },
        mutually_exclusive=[("extract", "db"), ("extract", "dest")],
        required_one_of=[("extract", "db")],
        required_together=[("db", "dest")],
        supports_check_mode=True,
    )
    try:
        result = work(module)
    except KeyferryError as error:
        module.fail_json(msg=error.msg, **error.result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
