#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: elasticache_replication_group_info
short_description: List the replication groups of ElastiCache
version_added: 0.1.0
author:
  - The keyferry.redis authors (@keyferry)
description:
  - Returns state, engine, network, parameters, nodes and endpoints of one or all replication groups of a region, under
    the names of the options of M(keyferry.redis.elasticache_replication_group), so that one can be made like another.
options:
  replication_group_id:
    description:
      - Name of the replication group. Without it, all of the region are returned.
    type: str
notes:
  - The credentials need C(elasticache:DescribeReplicationGroups), C(elasticache:DescribeCacheClusters) and
    C(elasticache:DescribeCacheParameters).
seealso:
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
    details:
      - Changes nothing in any mode.
  diff_mode:
    support: N/A
    details:
      - Changes nothing.
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Look at the shared instance
  keyferry.redis.elasticache_replication_group_info:
    replication_group_id: shared-redis
  register: shared

- name: Say how many databases it has
  ansible.builtin.debug:
    msg: "{{ shared.replication_groups[0].databases }} databases, {{ shared.replication_groups[0].engine_version }}"
"""

RETURN = r"""
replication_groups:
  description:
    - The groups. Empty if there is none of that name.
    - Names and meanings are those of RV(keyferry.redis.elasticache_replication_group#module:replication_group), and
      C(databases) is how many databases the servers have, null where that is not known.
  returned: success
  type: list
  elements: dict
  sample:
    - arn: arn:aws:elasticache:eu-central-1:123456789012:replicationgroup:shared-redis
      at_rest_encryption: true
      auth_token_enabled: false
      automatic_failover: true
      cluster_mode: disabled
      data_tiering: false
      databases: 16
      description: Everybody's Redis
      endpoint:
        address: shared-redis.abc123.ng.0001.euc1.cache.amazonaws.com
        port: 6379
      engine: redis
      engine_version: 7.1.0
      kms_key_id: null
      maintenance_window: sun:05:00-sun:06:00
      multi_az: true
      node_type: cache.r7g.xlarge
      nodes:
        - availability_zone: eu-central-1a
          cache_cluster_id: shared-redis-001
          endpoint:
            address: shared-redis-001.abc123.0001.euc1.cache.amazonaws.com
            port: 6379
          node_group_id: "0001"
          role: primary
          slots: null
          status: available
      num_node_groups: 1
      parameter_group_name: default.redis7
      port: 6379
      reader_endpoint:
        address: shared-redis-ro.abc123.ng.0001.euc1.cache.amazonaws.com
        port: 6379
      replicas_per_node_group: 0
      replication_group_id: shared-redis
      security_group_ids:
        - sg-0123456789abcdef0
      snapshot_retention_limit: 1
      snapshot_window: 03:00-04:00
      status: available
      subnet_group_name: private
      transit_encryption: false
      transit_encryption_mode: null
      user_group_ids: []
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
from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_groups as groups
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.aws import retrying_client
from ansible_collections.keyferry.redis.plugins.module_utils.elasticache import ElastiCache


def work(module: AnsibleAWSModule) -> dict[str, t.Any]:
    name = (module.params["replication_group_id"] or "").lower()
    found = groups.described(ElastiCache(retrying_client(module, "elasticache")), name)
    return {"changed": False, "replication_groups": found}


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={"replication_group_id": {"type": "str"}},
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
