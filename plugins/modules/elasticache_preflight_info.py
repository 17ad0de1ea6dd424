#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: elasticache_preflight_info
short_description: Report all that would stop a snapshot, its export or a new ElastiCache
version_added: 0.2.0
author:
  - The keyferry.redis authors (@keyferry)
description:
  - Looks at source, snapshot name, bucket and target of a migration, and reports every problem at once, each with what
    to do about it. Nothing is changed, and what is left out is not looked at.
  - It does not fail because of a problem, so that a play can report them together with its own.
  - Only what is certainly wrong is a problem. Where these credentials may not look, AWS has the last word.
options:
  replication_group_id:
    description:
      - Replication group to take the snapshot of.
    type: str
  cache_cluster_id:
    description:
      - Cache cluster (node) to take the snapshot of instead.
    type: str
  snapshot_name:
    description:
      - Name that the snapshot is to have. One of the same source that is there already is no problem.
    type: str
  bucket:
    description:
      - Bucket to export to and to create the target from.
    type: str
  target_name:
    description:
      - What the exported objects' names begin with. The default is O(snapshot_name).
    type: str
  target:
    description:
      - The replication group to create.
    type: dict
    suboptions:
      replication_group_id:
        description: Its name.
        type: str
        required: true
      databases:
        description: How many databases it must have at least, one more than the highest that will be used.
        type: int
      parameter_group_name:
        description: Its cache parameter group.
        type: str
      subnet_group_name:
        description: Its cache subnet group.
        type: str
      user_group_ids:
        description: Its user group.
        type: list
        elements: str
      security_group_ids:
        description: Its security groups.
        type: list
        elements: str
      nodes:
        description: How many nodes it has, one address in its subnets for each.
        type: int
      kms_key_id:
        description: The KMS key that its data is to be encrypted with at rest.
        type: str
        version_added: 0.2.0
      engine:
        description: Its engine.
        type: str
        choices: [redis, valkey]
      engine_version:
        description: Version of the engine.
        type: str
      cluster_mode:
        description: Whether its data is spread over shards.
        type: str
        choices: [disabled, compatible, enabled]
notes:
  - The credentials need C(elasticache:DescribeReplicationGroups), C(elasticache:DescribeCacheClusters),
    C(elasticache:DescribeSnapshots), C(elasticache:DescribeCacheParameters), C(elasticache:DescribeCacheSubnetGroups),
    C(elasticache:DescribeUserGroups), C(s3:ListBucket), and, for what can be found out about the bucket,
    C(s3:GetBucketPolicy), C(s3:GetBucketAcl) and C(s3:GetEncryptionConfiguration).
  - With C(elasticache:DescribeServerlessCaches) a serverless cache that is named as the source is called that.
  - Free addresses, security groups, the quota of nodes, the KMS key, the parameter group's family and the credentials'
    own rights are looked at where C(ec2:DescribeSubnets), C(ec2:DescribeSecurityGroups),
    C(servicequotas:GetServiceQuota), C(kms:DescribeKey), C(elasticache:DescribeCacheParameterGroups), and
    C(iam:SimulatePrincipalPolicy) with C(iam:GetRole) are allowed.
seealso:
  - module: keyferry.redis.elasticache_snapshot
  - module: keyferry.redis.elasticache_replication_group
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
  - keyferry.redis.attributes
  - keyferry.redis.attributes.aws
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Find out what would stop the migration
  keyferry.redis.elasticache_preflight_info:
    replication_group_id: shared-redis
    snapshot_name: shared-redis-2026-11-22
    bucket: keyferry-exports
    target:
      replication_group_id: orders-redis
      parameter_group_name: default.redis7
      databases: 1
  register: preflight

- name: Stop here if anything would
  ansible.builtin.assert:
    that: preflight.problems | length == 0
    fail_msg: "{{ preflight.problems | map(attribute='problem') | join('\n') }}"
"""

RETURN = r"""
problems:
  description: What would stop it. Empty if nothing is known that would.
  returned: success
  type: list
  elements: dict
  contains:
    check:
      description:
        - What was looked at. One of V(source), V(data_tiering), V(snapshot_name), V(snapshot_quota), V(bucket),
          V(bucket_policy), V(export_name), V(target_name), V(target_node_quota), V(target_kms_key),
          V(target_databases), V(target_subnet_group), V(target_addresses), V(target_security_group),
          V(target_user_group) and V(rights).
      type: str
      sample: bucket
    problem:
      description: What is wrong, and what to do about it.
      type: str
      sample: "The bucket keyferry-exports does not exist. Create it, or correct its name."
    policy_statement:
      description: The statement to add to the bucket's policy, where that is what is missing.
      type: dict
      sample:
        Action: [s3:PutObject]
        Effect: Allow
        Principal: {Service: eu-central-1.elasticache-snapshot.amazonaws.com}
        Resource: [arn:aws:s3:::keyferry-exports, arn:aws:s3:::keyferry-exports/*]
        Sid: ElastiCacheSnapshots
    error_code:
      description: The error code of AWS, where the problem comes from AWS.
      type: str
      sample: CacheParameterGroupNotFound
  sample:
    - check: bucket
      problem: "The bucket keyferry-exports does not exist. Create it, or correct its name."
remarks:
  description: What stops nothing, but is good to know.
  returned: success
  type: list
  elements: str
  sample:
    - "shared-redis has no replica that is available: its primary shared-redis-001 is snapshotted."
source:
  description: What the snapshot would be taken of, as M(keyferry.redis.elasticache_snapshot) returns it.
  returned: when there is a source
  type: dict
  sample:
    cache_cluster_id: shared-redis-002
    replication_group_id: shared-redis
    role: replica
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
"""

import typing as t

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_preflight as preflight
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.aws import impatient_client, retrying_client
from ansible_collections.keyferry.redis.plugins.module_utils.elasticache import ElastiCache

TARGET_SPEC = {
    "replication_group_id": {"type": "str", "required": True},
    "databases": {"type": "int"},
    "parameter_group_name": {"type": "str"},
    "subnet_group_name": {"type": "str"},
    "user_group_ids": {"type": "list", "elements": "str"},
    "security_group_ids": {"type": "list", "elements": "str"},
    "nodes": {"type": "int"},
    "kms_key_id": {"type": "str"},
    "engine": {"type": "str", "choices": ["redis", "valkey"]},
    "engine_version": {"type": "str"},
    "cluster_mode": {"type": "str", "choices": ["disabled", "compatible", "enabled"]},
}
ARGUMENT_SPEC = {
    "replication_group_id": {"type": "str"},
    "cache_cluster_id": {"type": "str"},
    "snapshot_name": {"type": "str"},
    "bucket": {"type": "str"},
    "target_name": {"type": "str"},
    "target": {"type": "dict", "options": TARGET_SPEC},
}
# ElastiCache stores names in lower case.
NAMES = ("replication_group_id", "cache_cluster_id", "snapshot_name")


def work(module: AnsibleAWSModule) -> dict[str, t.Any]:
    """Look at everything, and give back the module's result."""
    params = module.params
    lowered = {name: params[name] and params[name].lower() for name in NAMES}
    plan = preflight.Plan(
        bucket=params["bucket"], target_name=params["target_name"], target=params["target"], **lowered
    )
    api = ElastiCache(retrying_client(module, "elasticache"))
    findings, source = preflight.look(
        api, retrying_client(module, "s3"), lambda service: impatient_client(module, service), plan
    )
    result = {"changed": False, "problems": findings.problems, "remarks": findings.warnings}
    return {**result, "source": source.facts} if source else result


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec=ARGUMENT_SPEC,
        supports_check_mode=True,
        mutually_exclusive=[("replication_group_id", "cache_cluster_id")],
    )
    run(module, work)


if __name__ == "__main__":
    main()
