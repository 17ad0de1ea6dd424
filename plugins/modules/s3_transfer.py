#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: s3_transfer
short_description: Bring RDB files and dumps from S3 to the disk, or back
version_added: 0.1.0
author:
  - The keyferry.redis authors (@keyferry)
description:
  - Transfers one large file in parallel parts, checks it, and only then gives it its name, so that there never is half
    a file. What was transferred already is not transferred again.
  - An RDB file is checked by the CRC-64 that it ends with. A damaged one is neither kept nor uploaded.
  - An upload stores the file's CRC-64 with the object, as the metadata C(keyferry-crc64), and each later
    transfer checks it.
options:
  mode:
    description:
      - V(get) brings the object to O(path). V(put) brings the file at O(path) to the bucket.
    type: str
    choices: [get, put]
    required: true
  bucket:
    description:
      - Name of the bucket.
    type: str
    required: true
  object:
    description:
      - Name of the object.
    type: str
    required: true
  path:
    description:
      - The file. When it is written, its directory must exist and have room for the object, as it is first
        written to a file of the same name with C(.part) added. Only its owner may read it.
    type: path
    required: true
  part_size_mb:
    description:
      - Size of a part in MiB. An object smaller than this goes in one piece.
    type: int
    default: 64
  parallel:
    description:
      - How many parts are under way at a time.
    type: int
    default: 8
  server_side_encryption:
    description:
      - How S3 is to encrypt what is uploaded. The default is the bucket's own.
      - ElastiCache can be created only from objects with V(AES256) (SSE-S3).
    type: str
    choices: [AES256, aws:kms]
  progress_file:
    version_added: 0.2.0
requirements:
  - anycrc (Python library) >= 2.0.0
notes:
  - O(progress_file) counts bytes of the file.
  - The credentials need C(s3:GetObject) and C(s3:ListBucket), to upload also C(s3:PutObject) and
    C(s3:AbortMultipartUpload).
  - An upload that is killed leaves invisible parts in the bucket. A lifecycle rule that aborts incomplete multipart
    uploads removes them.
seealso:
  - module: keyferry.redis.elasticache_snapshot
  - module: amazon.aws.s3_object
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - keyferry.redis.progress
  - keyferry.redis.attributes
  - keyferry.redis.attributes.aws
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - With O(mode=get), an object that has neither the CRC-64 of an RDB nor that of an earlier upload is transferred
        each time.
"""

EXAMPLES = r"""
- name: Fetch the exported RDB file
  keyferry.redis.s3_transfer:
    mode: get
    bucket: keyferry-exports
    object: shared-redis-2026-11-22-0001.rdb
    path: /var/lib/keyferry/dump.rdb

- name: Publish the RDB file that the new ElastiCache is to be created from
  keyferry.redis.s3_transfer:
    mode: put
    path: /var/lib/keyferry/orders.rdb
    bucket: keyferry-exports
    object: orders.rdb
    server_side_encryption: AES256
"""

RETURN = r"""
bucket:
  description: Name of the bucket.
  returned: success
  type: str
  sample: keyferry-exports
object:
  description: Name of the object.
  returned: success
  type: str
  sample: orders.rdb
path:
  description: The file.
  returned: success
  type: str
  sample: /var/lib/keyferry/orders.rdb
size:
  description: Size in bytes.
  returned: success
  type: int
  sample: 1873298432
crc64:
  description:
    - For an RDB file, the CRC-64 that it ends with. For another file, or an RDB without, the CRC-64 (as Redis has it)
      of all of it.
  returned: success, but not for a file that is yet to be downloaded in check mode
  type: str
  sample: 1f2e3d4c5b6a7988
rdb_version:
  description: Version that the RDB file says it is of, null for another file.
  returned: as RV(crc64)
  type: int
  sample: 10
rdb_checksum:
  description:
    - V(verified) if the RDB file's own CRC-64 is right, V(disabled) if the server that wrote it left it out, null for
      another file.
  returned: as RV(crc64)
  type: str
  sample: verified
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
  description: Seconds that the transfer took.
  returned: as RV(crc64), outside check mode
  type: float
  sample: 24.7
"""

import typing as t
from pathlib import Path

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.keyferry.redis.plugins.module_utils import s3
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError
from ansible_collections.keyferry.redis.plugins.module_utils.progress import progress_to

ARGUMENT_SPEC = {
    "mode": {"type": "str", "choices": ["get", "put"], "required": True},
    "bucket": {"type": "str", "required": True},
    "object": {"type": "str", "required": True},
    "path": {"type": "path", "required": True},
    "part_size_mb": {"type": "int", "default": 64},
    "parallel": {"type": "int", "default": 8},
    "server_side_encryption": {"type": "str", "choices": ["AES256", "aws:kms"]},
    "progress_file": {"type": "path"},
}
SMALLEST_PART_MB = 5


def work(module: AnsibleAWSModule) -> dict[str, t.Any]:
    """Transfer, and give back the module's result."""
    params = module.params
    if params["part_size_mb"] < SMALLEST_PART_MB or params["parallel"] < 1:
        raise KeyferryError(
            f"part_size_mb must be {SMALLEST_PART_MB} (the least of S3) or more, and parallel 1 or more."
        )
    tuning = s3.Tuning(params["part_size_mb"] * 1024 * 1024, params["parallel"])
    # The transfer manager uses the client from many threads; a connection for each of them, and one for the rest.
    config = {"retries": {"mode": "standard", "max_attempts": 6}, "max_pool_connections": params["parallel"] + 1}
    client = module.client("s3", config=config)
    bucket, key, path = params["bucket"], params["object"], Path(params["path"])
    is_get = params["mode"] == "get"
    with progress_to(
        params["progress_file"], lambda: s3.size_of(client, bucket, key) if is_get else size_of_file(path)
    ) as tell:
        if not is_get:
            encryption = params["server_side_encryption"]
            result = s3.put(client, bucket, key, path, tuning, encryption, module.check_mode, tell)
        elif module.check_mode:
            result = s3.look_before_get(client, bucket, key, path)
        else:
            result = s3.get(client, bucket, key, path, tuning, tell)
    return {"bucket": bucket, "object": key, "path": str(path), **result}


def size_of_file(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def main() -> None:
    module = AnsibleAWSModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    run(module, work)


if __name__ == "__main__":
    main()
