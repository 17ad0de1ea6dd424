#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: elasticache_replication_group
short_description: Create and delete replication groups of ElastiCache
version_added: 0.1.0
author:
  - The keyferry.redis authors (@keyferry)
description:
  - Creates an ElastiCache replication group, empty or from an RDB file in S3 or a snapshot, and waits until it serves.
  - Never replaces or changes a group that exists, but for its tags. How such a group differs from what is asked is
    returned as RV(drift), shown as the diff, and reported as a warning.
  - A group that is made from something gets the tag C(keyferry:seed) that says from what. An existing group is taken
    for the wanted one only if its tag says the same. Anything else is an error, since AWS itself does not say what
    a group was made from.
  - Deletes a replication group, on request with a last snapshot.
options:
  replication_group_id:
    description:
      - Name of the replication group. ElastiCache stores it in lower case.
    type: str
    required: true
  state:
    description:
      - V(present) creates the group if there is none. V(absent) deletes it, with all its data.
    type: str
    choices: [present, absent]
    default: present
  description:
    description:
      - Description of the group. The default is O(replication_group_id).
    type: str
  snapshot_name:
    description:
      - Snapshot to create the group from. It is waited for if it is still being taken.
    type: str
  snapshot_arns:
    description:
      - ARNs of RDB files in S3 to create the group from, such as V(arn:aws:s3:::keyferry-exports/split-0001.rdb).
      - Before anything is done it is checked, as far as these credentials allow, that each object exists, that
        its bucket is in the region, that it is not encrypted with a KMS key, which ElastiCache cannot read, and that
        ElastiCache may read it. If it may not, the error holds the policy statement to add.
    type: list
    elements: str
  engine:
    description:
      - Engine of the servers. Without it, AWS chooses.
    type: str
    choices: [redis, valkey]
  engine_version:
    description:
      - Version of the engine, such as V(7.1). The last part of V(7.1.0), as AWS returns it, is left out when asking.
    type: str
  node_type:
    description:
      - Type of the nodes, such as V(cache.r7g.large). Needed to create a group.
      - Nodes of the family V(cache.r6gd) have data tiering, and take snapshots of such nodes.
    type: str
  port:
    description:
      - Port that the servers listen on. The default of AWS is 6379.
    type: int
  cluster_mode:
    description:
      - Whether the data is spread over shards. V(enabled) also needs a O(parameter_group_name) that has it enabled.
    type: str
    choices: [disabled, compatible, enabled]
  num_node_groups:
    description:
      - Number of node groups (shards). More than one needs O(cluster_mode=enabled). The default is 1.
      - When seeded from S3, each gets an even share of the slots.
    type: int
  replicas_per_node_group:
    description:
      - Number of replicas of each primary. The default is 0.
    type: int
  automatic_failover:
    description:
      - Let a replica take over when its primary fails. Needs one, and O(cluster_mode=enabled) needs this.
    type: bool
  multi_az:
    description:
      - Spread the nodes over availability zones. Needs O(automatic_failover=true).
    type: bool
  subnet_group_name:
    description:
      - Cache subnet group of the nodes.
    type: str
  security_group_ids:
    description:
      - VPC security groups of the nodes.
    type: list
    elements: str
  parameter_group_name:
    description:
      - Cache parameter group of the nodes. Its parameter C(databases) must be more than the highest database that the
        RDB file or snapshot holds.
    type: str
  databases:
    description:
      - How many databases the group must have at least, one more than the highest that will be used. The snapshot or
        RDB file that it is created from may need more than what is used in the end.
      - It is checked, before a group is created, against O(parameter_group_name), which alone says how many there are.
    type: int
    version_added: 0.2.0
  transit_encryption:
    description:
      - Offer TLS to clients.
    type: bool
  transit_encryption_mode:
    description:
      - Whether clients must use TLS.
    type: str
    choices: [preferred, required]
  auth_token:
    description:
      - Password of the default user. Needs O(transit_encryption=true).
    type: str
  user_group_ids:
    description:
      - User group whose users may log in, instead of O(auth_token). Needs O(transit_encryption=true).
    type: list
    elements: str
  at_rest_encryption:
    description:
      - Encrypt what the nodes and snapshots store. The default of AWS depends on the engine.
    type: bool
  kms_key_id:
    description:
      - KMS key for O(at_rest_encryption).
    type: str
  snapshot_retention_limit:
    description:
      - Days that automatic snapshots are kept. V(0) takes none.
    type: int
  snapshot_window:
    description:
      - Daily time (UTC) for automatic snapshots, such as V(03:00-04:00).
    type: str
  maintenance_window:
    description:
      - Weekly time (UTC) for maintenance, such as V(sun:05:00-sun:06:00).
    type: str
  final_snapshot_name:
    description:
      - Name of a snapshot to take before the group is deleted, with O(state=absent).
    type: str
  tags:
    description:
      - Tags of the group. They are added or changed, also on a group that exists. Others are kept.
    type: dict
    aliases: [resource_tags]
  wait:
    description:
      - Wait until the group is available or gone.
      - It ends at once, with AWS's events of the group and its nodes, when the group is C(create-failed), or one of its
        nodes C(restore-failed).
    type: bool
    default: true
  wait_timeout:
    description:
      - How many seconds to wait at most.
    type: int
    default: 3600
  progress_file:
    version_added: 0.2.0
notes:
  - O(progress_file) counts the seconds of waiting. There is no total, as AWS does not say how long it will take.
  - The credentials need C(elasticache:CreateReplicationGroup), C(elasticache:DeleteReplicationGroup),
    C(elasticache:DescribeReplicationGroups), C(elasticache:DescribeCacheClusters), C(elasticache:DescribeSnapshots),
    C(elasticache:AddTagsToResource), C(elasticache:ListTagsForResource) and, for a failed group's reasons,
    C(elasticache:DescribeEvents); with O(databases), also C(elasticache:DescribeCacheParameters). To create from S3
    they need C(s3:GetObject) and C(s3:ListBucket), and, for checks beforehand, C(s3:GetBucketPolicy),
    C(s3:GetBucketAcl) and C(s3:GetObjectAcl).
  - An O(auth_token) of a group that exists cannot be compared.
seealso:
  - module: keyferry.redis.elasticache_replication_group_info
  - module: keyferry.redis.elasticache_snapshot
  - module: keyferry.redis.s3_transfer
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
- name: Create the new ElastiCache from an RDB file in S3
  keyferry.redis.elasticache_replication_group:
    replication_group_id: orders-redis
    description: The database of orders, split off shared-redis
    snapshot_arns:
      - arn:aws:s3:::keyferry-exports/orders.rdb
    engine: redis
    engine_version: "7.1"
    node_type: cache.r7g.large
    replicas_per_node_group: 1
    automatic_failover: true
    multi_az: true
    subnet_group_name: private
    security_group_ids:
      - sg-0123456789abcdef0
    parameter_group_name: default.redis7
    transit_encryption: true
    auth_token: "{{ orders_redis_token }}"
    at_rest_encryption: true
    tags:
      service: orders
  register: target

- name: Say where it listens
  ansible.builtin.debug:
    msg: "{{ target.endpoint.address }}:{{ target.endpoint.port }}"

- name: Create one from a snapshot
  keyferry.redis.elasticache_replication_group:
    replication_group_id: orders-redis
    snapshot_name: shared-redis-2026-11-22
    node_type: cache.r7g.large

- name: Create an empty one with three shards
  keyferry.redis.elasticache_replication_group:
    replication_group_id: orders-cluster
    engine: valkey
    engine_version: "8.1"
    node_type: cache.r7g.large
    cluster_mode: enabled
    num_node_groups: 3
    replicas_per_node_group: 1
    automatic_failover: true
    parameter_group_name: default.valkey8.cluster.on

- name: Delete one and keep a last snapshot of it
  keyferry.redis.elasticache_replication_group:
    replication_group_id: orders-redis
    state: absent
    final_snapshot_name: orders-redis-last
"""

RETURN = r"""
replication_group:
  description:
    - The group under the names of this module's options, with its state, nodes and endpoints. What AWS does not say
      (yet) is null. Empty if there is no group (any more).
  returned: success
  type: dict
  sample:
    arn: arn:aws:elasticache:eu-central-1:123456789012:replicationgroup:orders-redis
    at_rest_encryption: true
    auth_token_enabled: true
    automatic_failover: true
    cluster_mode: disabled
    data_tiering: false
    description: The database of orders, split off shared-redis
    endpoint:
      address: master.orders-redis.abc123.euc1.cache.amazonaws.com
      port: 6379
    engine: redis
    engine_version: 7.1.0
    kms_key_id: null
    maintenance_window: sun:05:00-sun:06:00
    multi_az: true
    node_type: cache.r7g.large
    nodes:
      - availability_zone: eu-central-1a
        cache_cluster_id: orders-redis-001
        endpoint:
          address: orders-redis-001.orders-redis.abc123.euc1.cache.amazonaws.com
          port: 6379
        node_group_id: "0001"
        role: primary
        slots: null
        status: available
      - availability_zone: eu-central-1b
        cache_cluster_id: orders-redis-002
        endpoint:
          address: orders-redis-002.orders-redis.abc123.euc1.cache.amazonaws.com
          port: 6379
        node_group_id: "0001"
        role: replica
        slots: null
        status: available
    num_node_groups: 1
    parameter_group_name: default.redis7
    port: 6379
    reader_endpoint:
      address: replica.orders-redis.abc123.euc1.cache.amazonaws.com
      port: 6379
    replicas_per_node_group: 1
    replication_group_id: orders-redis
    security_group_ids:
      - sg-0123456789abcdef0
    snapshot_retention_limit: 0
    snapshot_window: 03:00-04:00
    status: available
    subnet_group_name: private
    transit_encryption: true
    transit_encryption_mode: required
    user_group_ids: []
endpoint:
  description:
    - Where to write, and to read what was written. The configuration endpoint in cluster mode, else the primary's.
  returned: when the group has one
  type: dict
  sample:
    address: master.orders-redis.abc123.euc1.cache.amazonaws.com
    port: 6379
reader_endpoint:
  description: Where to read from replicas. There is none in cluster mode.
  returned: when the group has one
  type: dict
  sample:
    address: replica.orders-redis.abc123.euc1.cache.amazonaws.com
    port: 6379
engine_version:
  description: Version that the servers run.
  returned: when AWS returns it
  type: str
  sample: 7.1.0
drift:
  description:
    - Each option that was given and that differs from the existing group, with what was asked and what was found.
  returned: when O(state=present)
  type: dict
  sample:
    node_type:
      asked: cache.r7g.large
      found: cache.r7g.xlarge
failed_nodes:
  description: The nodes that failed, with their states.
  returned: when the group failed
  type: dict
  sample:
    orders-redis-001: restore-failed
events:
  description: What AWS noted of the group and its nodes in the last two hours.
  returned: when the group failed
  type: list
  elements: str
  sample:
    - "2026-11-22 20:50:56Z orders-redis-001: Restore from snapshot failed"
status:
  description: State of the group.
  returned: when the group failed
  type: str
  sample: create-failed
policy_statement:
  description: The statement to add to the bucket's policy so that ElastiCache can read the RDB.
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
    Resource:
      - arn:aws:s3:::keyferry-exports
      - arn:aws:s3:::keyferry-exports/*
databases:
  description: How many databases the group would have.
  returned: when these are fewer than O(databases)
  type: int
  sample: 16
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
  sample: 871.9
"""

from ansible.module_utils.common.warnings import warn

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_groups as groups
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.aws import Deadline, retrying_client
from ansible_collections.keyferry.redis.plugins.module_utils.elasticache import ElastiCache, Facts
from ansible_collections.keyferry.redis.plugins.module_utils.progress import Progress, progress_to

ARGUMENT_SPEC = {
    "replication_group_id": {"type": "str", "required": True},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "description": {"type": "str"},
    "snapshot_name": {"type": "str"},
    "snapshot_arns": {"type": "list", "elements": "str"},
    "engine": {"type": "str", "choices": ["redis", "valkey"]},
    "engine_version": {"type": "str"},
    "node_type": {"type": "str"},
    "port": {"type": "int"},
    "cluster_mode": {"type": "str", "choices": ["disabled", "compatible", "enabled"]},
    "num_node_groups": {"type": "int"},
    "replicas_per_node_group": {"type": "int"},
    "automatic_failover": {"type": "bool"},
    "multi_az": {"type": "bool"},
    "subnet_group_name": {"type": "str"},
    "security_group_ids": {"type": "list", "elements": "str"},
    "parameter_group_name": {"type": "str"},
    "databases": {"type": "int"},
    "transit_encryption": {"type": "bool"},
    "transit_encryption_mode": {"type": "str", "choices": ["preferred", "required"]},
    "auth_token": {"type": "str", "no_log": True},
    "user_group_ids": {"type": "list", "elements": "str"},
    "at_rest_encryption": {"type": "bool"},
    "kms_key_id": {"type": "str"},
    "snapshot_retention_limit": {"type": "int"},
    "snapshot_window": {"type": "str"},
    "maintenance_window": {"type": "str"},
    "final_snapshot_name": {"type": "str"},
    "tags": {"type": "dict", "aliases": ["resource_tags"]},
    "wait": {"type": "bool", "default": True},
    "wait_timeout": {"type": "int", "default": 3600},
    "progress_file": {"type": "path"},
}


def work(module: AnsibleAWSModule) -> Facts:
    with progress_to(module.params["progress_file"], lambda: None) as progress:
        return _ensure_state(module, progress)


def _ensure_state(module: AnsibleAWSModule, progress: Progress) -> Facts:
    """Bring the group to the wanted state, and give back the module's result."""
    params = module.params
    api = ElastiCache(retrying_client(module, "elasticache"))
    deadline = Deadline(params["wait_timeout"] if params["wait"] else 0, progress)
    # ElastiCache stores names in lower case.
    lowered = {"snapshot_name": params["snapshot_name"] and params["snapshot_name"].lower()}
    request = groups.Request(
        name=params["replication_group_id"].lower(),
        options={**{option: params[option] for option in groups.OPTIONS}, **lowered},
        tags=params["tags"] or {},
        wait=params["wait"],
        check=module.check_mode,
    )
    if params["state"] == "absent":
        outcome = groups.absent(api, request, params["final_snapshot_name"], deadline)
        return {**_result(outcome, deadline), "diff": _state_diff(outcome, "absent")}
    s3_client = retrying_client(module, "s3") if params["snapshot_arns"] else None
    outcome = groups.present(api, s3_client, request, deadline)
    for option, values in outcome.drift.items():
        warn(f"{request.name} has {option}={values['found']}, not {values['asked']} as asked: it is left as it is.")
    return {**_result(outcome, deadline), "drift": outcome.drift, "diff": _diff(outcome)}


def _result(outcome: groups.Outcome, deadline: Deadline) -> Facts:
    group = outcome.group or {}
    told = {key: group[key] for key in ("endpoint", "reader_endpoint", "engine_version") if group.get(key)}
    return {"changed": outcome.changed, "replication_group": group, **told, "elapsed": deadline.elapsed}


def _diff(outcome: groups.Outcome) -> Facts:
    if outcome.created:
        return _state_diff(outcome, "present")
    before = {option: values["found"] for option, values in outcome.drift.items()}
    after = {option: values["asked"] for option, values in outcome.drift.items()}
    if outcome.retagged:
        after["tags"] = outcome.retagged
    return {"before": before, "after": after}


def _state_diff(outcome: groups.Outcome, wanted: str) -> Facts:
    other = "absent" if wanted == "present" else "present"
    return {"before": {"state": other if outcome.changed else wanted}, "after": {"state": wanted}}


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec=ARGUMENT_SPEC,
        supports_check_mode=True,
        mutually_exclusive=[("snapshot_name", "snapshot_arns")],
    )
    run(module, work)


if __name__ == "__main__":
    main()
