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
  - Source and new files may be objects of S3. They come in parallel parts, are walked as they arrive, and are uploaded
    as they are written. Nothing of them is on the disk, and the module takes less than 150 MB of memory whatever their
    size, besides its O(workers).
  - The keys are copied as they are, byte for byte, with expiry, idle time and frequency; nothing is decoded. The new
    file has the version, the AUX fields that still hold (those of replication are left out), module data, the original
    counts of keys, and a checksum of its own.
  - The whole source is walked and its checksum verified in the same pass. Where it is damaged, cut short, or holds
    anything whose layout is not known, the module fails with the byte offset, and no O(dest) is touched.
  - A new file is written as O(dest) with C(.part) appended, synced, and then renamed. What an interrupted run has
    left is written over.
  - A new object appears when the source was walked to its end and its checksum is right. On any failure the upload is
    aborted. What a killed run has left is aborted by the next run that writes the same object.
  - Known are RDB versions 5 to 15 of Redis (up to 8.10) and 80 and 81 of Valkey. Refused are arrays and rate limiters
    of Redis 8.8, streams with idempotent producers (8.6), and files that Valkey 9.2 wrote without a fork.
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - keyferry.redis.progress
  - keyferry.redis.attributes
  - keyferry.redis.attributes.aws
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
      - An existing O(dest) is left alone if, by its SHA-256, it is what would be written. An object of S3 is
        recognized by its size, the CRC-64 that it ends with, and its encryption. O(force=true) writes it all the same.
requirements:
  - anycrc (Python library) >= 2.0.0
  - Linux
  - boto3 >= 1.34.0 and botocore >= 1.34.0, where an object of S3 is named
options:
  src:
    description:
      - The RDB file, on the host that the module runs on, or an object, as V(s3://BUCKET/KEY). It is only read.
      - An object that is replaced while it is read is noticed.
    type: path
    required: true
  dest:
    description:
      - The new RDB file, with mode C(0600). Its directory must exist. Or an object, as V(s3://BUCKET/KEY).
      - Another file or object that is there is replaced.
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
        description: The new RDB file or object.
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
        more than 4, as the one that writes cannot keep up with more.
      - Each takes about 20 MB of memory, whatever the size of the file.
    type: int
  server_side_encryption:
    description:
      - How S3 is to encrypt new objects. ElastiCache can be created only from objects with V(AES256) (SSE-S3).
    type: str
    choices: [AES256, aws:kms]
    default: AES256
    version_added: 0.2.0
  progress_file:
    version_added: 0.2.0
notes:
  - O(progress_file) counts bytes of the source.
  - From S3, the credentials need C(s3:GetObject) and C(s3:ListBucket). To S3, they need C(s3:PutObject),
    C(s3:GetObject), C(s3:ListBucket) and C(s3:AbortMultipartUpload), and, to end what a killed run has left,
    C(s3:ListBucketMultipartUploads).
seealso:
  - module: keyferry.redis.s3_transfer
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

- name: Make the seed of the new ElastiCache from the exported snapshot, from S3 to S3
  keyferry.redis.rdb_extract:
    src: s3://keyferry-exports/shared-redis-2026-11-22-0001.rdb
    db: 1
    dest: s3://keyferry-exports/orders.rdb
    region: eu-central-1
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
offset:
  description: Byte of the RDB at which it is damaged or unknown, or could not be read any more.
  returned: failure, where that is known
  type: int
  sample: 1873298432
error_code:
  description: The error code of AWS.
  returned: failure, where AWS has refused a call
  type: str
  sample: AccessDenied
request_id:
  description: What AWS calls the refused call, for its support.
  returned: failure, where AWS has refused a call
  type: str
  sample: 6f1d2f6e-0d3c-4a5b-8f4e-2f4c9b7d1a10
elapsed:
  description: Seconds that it took.
  returned: success
  type: float
  sample: 9.8
"""

import os
import typing as t
from collections import Counter

from ansible.module_utils.basic import missing_required_lib

from ansible_collections.amazon.aws.plugins.module_utils.botocore import HAS_BOTO3
from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.keyferry.redis.plugins.module_utils import extract_s3
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.extract import extract
from ansible_collections.keyferry.redis.plugins.module_utils.progress import progress_to
from ansible_collections.keyferry.redis.plugins.module_utils.rdb_pass import Wanted


def work(module: AnsibleAWSModule) -> dict[str, t.Any]:
    params = module.params
    if params["extract"] == []:
        raise KeyferryError("extract is an empty list: name a database and its dest in it, or give db and dest")
    several = params["extract"] or [{name: params[name] for name in ("db", "dest", "target_db")}]
    wanted = [Wanted(**each) for each in several]
    for each in wanted:
        if each.db < 0 or each.target_db < 0:
            raise KeyferryError(f"A database index below 0 was given for {each.dest}: they begin with 0")
    names = [params["src"], *(each.dest for each in wanted)]
    remote = s3(module) if any(map(extract_s3.is_url, names)) else None
    with progress_to(params["progress_file"], lambda: size_of(params["src"], remote)) as tell:
        result = extract(
            params["src"],
            wanted,
            functions=params["functions"],
            force=params["force"],
            dry=module.check_mode,
            workers=params["workers"],
            progress=tell,
            remote=remote,
        )
    return {**result, **summary(result["extracted"], single=not params["extract"])}


def s3(module: AnsibleAWSModule) -> extract_s3.S3:
    """Give back S3 as the module's options reach it. Raises KeyferryError where boto3 is missing."""
    if not HAS_BOTO3:
        raise KeyferryError(missing_required_lib("botocore and boto3", reason="for names that begin with s3://"))
    config = {
        "retries": {"mode": "standard", "max_attempts": 3},
        "max_pool_connections": extract_s3.CONNECTIONS,
    }
    return extract_s3.S3(module.client("s3", config=config), module.params["server_side_encryption"])


def size_of(src: str, remote: extract_s3.S3 | None) -> int | None:
    """Give back the bytes of the source; None where there is none, which is told elsewhere."""
    if remote and remote.is_url(src):
        return remote.size(src)
    return os.path.getsize(src) if os.path.isfile(src) else None


def summary(extracted: list[dict[str, t.Any]], single: bool) -> dict[str, t.Any]:
    """Give back the totals of all new files, and what tells the one where there is one."""
    types: Counter[str] = Counter()
    for each in extracted:
        types.update(each["types"])
    totals = {name: sum(each[name] for each in extracted) for name in ("keys", "expires", "bytes")}
    alone = {name: extracted[0][name] for name in ("dest", "sha256")} if single else {}
    return {**totals, "types": dict(types), **alone}


def main() -> None:
    module = AnsibleAWSModule(
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
            "server_side_encryption": {"type": "str", "choices": ["AES256", "aws:kms"], "default": "AES256"},
            "progress_file": {"type": "path"},
        },
        check_boto3=False,
        mutually_exclusive=[("extract", "db"), ("extract", "dest")],
        required_one_of=[("extract", "db")],
        required_together=[("db", "dest")],
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
