#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: elasticache_snapshot
short_description: Take, export to S3 and delete snapshots of ElastiCache
version_added: 0.1.0
author:
  - The keyferry.redis authors (@keyferry)
description:
  - Takes a snapshot of an ElastiCache replication group or cache cluster and waits until it can be used.
  - Exports it to S3 and waits until every RDB file is there, whole.
  - Deletes it.
  - Each can be run again after a failure at any point and goes on from what is there.
    An existing snapshot is accepted only if it is of the same source. It is never replaced.
options:
  name:
    description:
      - Name of the snapshot. ElastiCache stores it in lower case.
    type: str
    required: true
  state:
    description:
      - V(present) takes the snapshot if there is none of this O(name).
      - V(exported) also copies it to O(bucket). Without a source, the snapshot must exist.
      - V(absent) deletes the snapshot. What was exported from it stays. Where a source or O(tags) are given, a snapshot
        of another source, or one that lacks any of them, is not deleted, which is an error with RV(kept).
    type: str
    choices: [present, exported, absent]
    default: present
  replication_group_id:
    description:
      - Replication group to take the snapshot of.
      - With cluster mode disabled, one node is read. That is a replica if one is available, as AWS recommends, else
        the primary, with a warning. RV(source) says which.
    type: str
  cache_cluster_id:
    description:
      - Cache cluster (node) to take the snapshot of, where the module is not to choose one.
    type: str
  bucket:
    description:
      - Bucket to export to, in the region of ElastiCache. Needed for O(state=exported).
      - Before anything is done, its existence, region and policy are checked as far as these credentials allow.
        If ElastiCache may not write to it, the error holds the policy statement to add.
    type: str
  target_name:
    description:
      - What the exported objects' names begin with. ElastiCache adds V(-0001.rdb) for the first shard, and so on.
      - Objects of that name which are older than the snapshot are an error.
      - The default is O(name).
    type: str
  wait:
    description:
      - Wait until the snapshot is available, exported or gone.
    type: bool
    default: true
  wait_timeout:
    description:
      - How many seconds to wait at most, for all that O(state) asks for together.
    type: int
    default: 3600
  progress_file:
    version_added: 0.2.0
  tags:
    description:
      - Tags of the snapshot. They are added or changed. Others are kept.
      - With O(state=absent), the tags that it must have to be deleted.
    type: dict
    aliases: [resource_tags]
  kms_key_id:
    description:
      - KMS key to encrypt the snapshot with when it is taken.
    type: str
notes:
  - O(progress_file) counts the seconds of waiting. There is no total, as AWS does not say how long it will take.
  - The credentials need C(elasticache:CreateSnapshot), C(elasticache:CopySnapshot), C(elasticache:DeleteSnapshot),
    C(elasticache:DescribeSnapshots), C(elasticache:DescribeReplicationGroups), C(elasticache:DescribeCacheClusters)
    and, for a failed snapshot's reasons, C(elasticache:DescribeEvents); with O(tags), also
    C(elasticache:AddTagsToResource) and C(elasticache:ListTagsForResource). To export, they need C(s3:ListBucket),
    C(s3:GetObject), C(s3:PutObject), C(s3:GetBucketLocation), C(s3:ListAllMyBuckets), and, for checks beforehand,
    C(s3:GetBucketPolicy), C(s3:GetBucketAcl) and C(s3:GetEncryptionConfiguration).
  - Snapshots of nodes with data tiering cannot be exported.
seealso:
  - module: keyferry.redis.elasticache_replication_group
  - module: keyferry.redis.s3_transfer
  - module: community.aws.elasticache_snapshot
    description: Creates snapshots without waiting for them, and without an idempotent export.
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
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Take a snapshot of a replica of the shared instance
  keyferry.redis.elasticache_snapshot:
    name: shared-redis-2026-11-22
    replication_group_id: shared-redis

- name: Have that snapshot in S3 as shared-redis-2026-11-22-0001.rdb
  keyferry.redis.elasticache_snapshot:
    name: shared-redis-2026-11-22
    replication_group_id: shared-redis
    state: exported
    bucket: keyferry-exports
  register: snapshot

- name: Say where it is
  ansible.builtin.debug:
    msg: "s3://{{ snapshot.exports[0].bucket }}/{{ snapshot.exports[0].key }}"

- name: Delete the snapshot
  keyferry.redis.elasticache_snapshot:
    name: shared-redis-2026-11-22
    state: absent
"""

RETURN = r"""
snapshot:
  description:
    - The snapshot as AWS describes it, its names in snake case. Empty if there is none (yet).
  returned: success
  type: dict
  sample:
    arn: arn:aws:elasticache:eu-central-1:123456789012:snapshot:shared-redis-2026-11-22
    cache_cluster_id: shared-redis-002
    engine: redis
    engine_version: 7.1.0
    node_snapshots:
      - cache_node_id: "0001"
        cache_size: 2 GB
        snapshot_create_time: "2026-11-22T20:50:56+00:00"
    snapshot_name: shared-redis-2026-11-22
    snapshot_source: manual
    snapshot_status: available
source:
  description:
    - What the snapshot is, or would be, taken of. C(role) is V(replica) or V(primary) where the module chose, V(null)
      where the snapshot was there and is of another node.
  returned: when O(replication_group_id) or O(cache_cluster_id) is given
  type: dict
  sample:
    cache_cluster_id: shared-redis-002
    replication_group_id: shared-redis
    role: replica
exports:
  description:
    - The exported RDB files, one for each shard, with their sizes in bytes. Empty while there is no whole export.
  returned: when O(state=exported)
  type: list
  elements: dict
  sample:
    - bucket: keyferry-exports
      key: shared-redis-2026-11-22-0001.rdb
      size: 1873298432
events:
  description: What AWS noted of the source and its nodes in the last two hours.
  returned: when the snapshot failed
  type: list
  elements: str
  sample:
    - "2026-11-22 20:50:56Z shared-redis-002: Snapshot failed"
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
  description: Seconds that the module took.
  returned: success
  type: float
  sample: 903.2
kept:
  version_added: 0.5.0
  description: That the snapshot was not deleted as it is of another source, or lacks one of O(tags).
  returned: failure, when O(state=absent)
  type: bool
  sample: true
policy_statement:
  description: The statement to add to the bucket's policy so that ElastiCache can export to it.
  returned: when it is certainly missing from the policy
  type: dict
  sample:
    Sid: ElastiCacheSnapshots
    Effect: Allow
    Principal:
      Service: eu-central-1.elasticache-snapshot.amazonaws.com
    Action:
      - s3:GetBucketAcl
      - s3:GetObject
      - s3:ListBucket
      - s3:ListBucketMultipartUploads
      - s3:ListMultipartUploadParts
      - s3:PutObject
    Resource:
      - arn:aws:s3:::keyferry-exports
      - arn:aws:s3:::keyferry-exports/*
"""

from ansible.module_utils.common.dict_transformations import camel_dict_to_snake_dict
from ansible.module_utils.common.warnings import warn

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_snapshots as snapshots
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.aws import Deadline, retrying_client
from ansible_collections.keyferry.redis.plugins.module_utils.elasticache import ElastiCache, Facts
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress, progress_to

ARGUMENT_SPEC = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "exported", "absent"], "default": "present"},
    "replication_group_id": {"type": "str"},
    "cache_cluster_id": {"type": "str"},
    "bucket": {"type": "str"},
    "target_name": {"type": "str"},
    "wait": {"type": "bool", "default": True},
    "wait_timeout": {"type": "int", "default": 3600},
    "progress_file": {"type": "path"},
    "tags": {"type": "dict", "aliases": ["resource_tags"]},
    "kms_key_id": {"type": "str"},
}


def work(module: AnsibleAWSModule) -> Facts:
    with progress_to(module.params["progress_file"], lambda: None) as progress:
        return _ensure_state(module, progress)


def _ensure_state(module: AnsibleAWSModule, progress: Progress) -> Facts:
    """Bring the snapshot to the wanted state, and give back the module's result."""
    params = module.params
    api = ElastiCache(retrying_client(module, "elasticache"))
    deadline = Deadline(params["wait_timeout"] if params["wait"] else 0, progress)
    # ElastiCache stores names in lower case.
    request = snapshots.Request(
        name=params["name"].lower(),
        kms_key_id=params["kms_key_id"],
        tags=params["tags"] or {},
        wait=params["wait"],
        check=module.check_mode,
    )
    if params["state"] == "absent":
        group, cluster = (
            params[name] and params[name].lower() for name in ("replication_group_id", "cache_cluster_id")
        )
        outcome = snapshots.absent(api, request, group, cluster, deadline)
        return _result(outcome, params, deadline)
    source = _source(api, params)
    if params["state"] == "present":
        outcome = snapshots.present(api, request, source, deadline)
    else:
        export = snapshots.Export(
            api, retrying_client(module, "s3"), request.name, params["bucket"], params["target_name"] or request.name
        )
        for warning in export.preflight():
            warn(warning)
        outcome = snapshots.exported(api, request, source, export, deadline)
    result = _result(outcome, params, deadline)
    if not source:
        return result
    for warning in source.warnings if outcome.before == "absent" else ():
        warn(warning)
    return {**result, "source": source.told(outcome.snapshot)}


def _source(api: ElastiCache, params: Facts) -> snapshots.SnapshotSource | None:
    if params["replication_group_id"]:
        return snapshots.source_of_replication_group(api, params["replication_group_id"].lower())
    if params["cache_cluster_id"]:
        return snapshots.source_of_cache_cluster(params["cache_cluster_id"].lower())
    return None


def _result(outcome: snapshots.Outcome, params: Facts, deadline: Deadline) -> Facts:
    retagged = {"tags": outcome.retagged} if outcome.retagged else {}
    result = {
        "changed": outcome.changed,
        "snapshot": camel_dict_to_snake_dict(outcome.snapshot or {}),
        "diff": {"before": {"state": outcome.before}, "after": {"state": params["state"], **retagged}},
        "elapsed": deadline.elapsed,
    }
    return {**result, "exports": outcome.exports} if params["state"] == "exported" else result


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec=ARGUMENT_SPEC,
        supports_check_mode=True,
        mutually_exclusive=[("replication_group_id", "cache_cluster_id")],
        required_if=[
            ("state", "present", ("replication_group_id", "cache_cluster_id"), True),
            ("state", "exported", ("bucket",)),
        ],
    )
    run(module, work)


if __name__ == "__main__":
    main()
