#!/usr/bin/python
# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: security_group_access
short_description: Let one security group of EC2 into others, and out again
version_added: 0.3.0
author:
  - The keyferry.redis authors (@keyferry)
description:
  - Adds an inbound rule for one TCP port to security groups, with another group as its source, and takes such rules
    away.
  - Touches nothing else of these groups, no other rule, description or tag, so that they may be somebody else's, such
    as those of an ElastiCache.
options:
  source_security_group_id:
    description:
      - The group that is let in.
    type: str
    required: true
  security_group_ids:
    description:
      - The groups that let it in. All of them must be there for O(state=present).
      - Required with O(state=present). Without it, O(state=absent) means every group of the region that lets it in.
    type: list
    elements: str
  port:
    description:
      - The TCP port. Required with O(state=present). A wider rule, such as one for all ports, is not taken for it.
      - Without it, O(state=absent) means every inbound rule whose source is that group, whatever its ports and
        protocol.
    type: int
  description:
    description:
      - Description of a rule that is added. That of a rule which is there already stays.
    type: str
  state:
    description:
      - Whether the rules are to be there.
      - V(absent) without O(security_group_ids) and O(port) leaves no inbound rule that refers to the group, for which
        EC2 would refuse to delete it.
    type: str
    choices: [present, absent]
    default: present
notes:
  - The credentials need C(ec2:DescribeSecurityGroups) and C(ec2:DescribeSecurityGroupRules), and, where there is
    something to change, C(ec2:AuthorizeSecurityGroupIngress) or C(ec2:RevokeSecurityGroupIngress) on the groups that
    let in.
  - Outbound rules that refer to the group are not looked at.
seealso:
  - module: amazon.aws.ec2_security_group
    description: Makes and removes groups. It knows no way to take away one rule but to be told all the others.
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
    support: full
  idempotent:
    support: full
"""

EXAMPLES = r"""
- name: Let the migration host into both ElastiCaches
  keyferry.redis.security_group_access:
    source_security_group_id: sg-0123456789abcdef0
    security_group_ids:
      - sg-0aaaaaaaaaaaaaaaa
      - sg-0bbbbbbbbbbbbbbbb
    port: 6379
    description: Migration host of keyferry.redis

- name: Let it in nowhere any more, so that its group can be deleted
  keyferry.redis.security_group_access:
    source_security_group_id: sg-0123456789abcdef0
    state: absent
"""

RETURN = r"""
rules:
  description:
    - The rules that were added or taken away, in check mode those that would be.
  returned: success
  type: list
  elements: dict
  contains:
    security_group_id:
      description: The group that has the rule.
      type: str
    protocol:
      description: Name or number of the IP protocol; V(-1) for all.
      type: str
    from_port:
      description: First port, or type of ICMP; V(-1) for all.
      type: int
    to_port:
      description: Last port, or code of ICMP; V(-1) for all.
      type: int
  sample:
    - security_group_id: sg-0aaaaaaaaaaaaaaaa
      protocol: tcp
      from_port: 6379
      to_port: 6379
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
from ansible_collections.keyferry.redis.plugins.module_utils.ansible_module import run
from ansible_collections.keyferry.redis.plugins.module_utils.aws import retrying_client
from ansible_collections.keyferry.redis.plugins.module_utils.security_groups import Rule, SecurityGroups


def work(module: AnsibleAWSModule) -> dict[str, t.Any]:
    """Bring the rules to the wanted state, and give back the module's result."""
    ec2 = SecurityGroups(retrying_client(module, "ec2"))
    return _present(ec2, module) if module.params["state"] == "present" else _absent(ec2, module)


def _present(ec2: SecurityGroups, module: AnsibleAWSModule) -> dict[str, t.Any]:
    params = module.params
    source, groups, port = params["source_security_group_id"], params["security_group_ids"], params["port"]
    ec2.refuse_missing(groups)
    before = ec2.rules(groups, source)
    closed = {*groups} - {rule.group for rule in before if rule.is_port(port)}
    added = [Rule(group, "tcp", port, port) for group in sorted(closed)]
    if not module.check_mode:
        for rule in added:
            ec2.add(rule, source, params["description"])
    return _result(added, before, sorted(before + added))


def _absent(ec2: SecurityGroups, module: AnsibleAWSModule) -> dict[str, t.Any]:
    params = module.params
    source, groups, port = params["source_security_group_id"], params["security_group_ids"], params["port"]
    before = ec2.rules(ec2.letting_in(source) if groups is None else groups, source)
    removed = [rule for rule in before if port is None or rule.is_port(port)]
    if not module.check_mode:
        for rule in removed:
            ec2.remove(rule, source)
    return _result(removed, before, [rule for rule in before if rule not in removed])


def _result(changes: list[Rule], before: list[Rule], after: list[Rule]) -> dict[str, t.Any]:
    shown = {"before": before, "after": after}
    return {
        "changed": bool(changes),
        "rules": [rule.facts() for rule in changes],
        "diff": {when: {"rules": [rule.facts() for rule in rules]} for when, rules in shown.items()},
    }


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "source_security_group_id": {"type": "str", "required": True},
            "security_group_ids": {"type": "list", "elements": "str"},
            "port": {"type": "int"},
            "description": {"type": "str"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("security_group_ids", "port"))],
        supports_check_mode=True,
    )
    run(module, work)


if __name__ == "__main__":
    main()
