# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The inbound rules of EC2's security groups that let one other group in. No rule is written but these."""

from __future__ import annotations

import typing as t

from ansible_collections.keyferry.redis.plugins.module_utils.aws import RETRY, aws_errors, done_already
from ansible_collections.keyferry.redis.plugins.module_utils.errors import KeyferryError


class Rule(t.NamedTuple):
    """One inbound rule of a security group, whose source is another group."""

    group: str
    protocol: str
    from_port: int
    to_port: int
    # EC2's own name of the rule, by which it can be taken away and nothing else; none as long as it is not made.
    rule_id: str = ""

    def is_port(self, port: int) -> bool:
        """Whether it is for this TCP port and no other."""
        return (self.protocol, self.from_port, self.to_port) == ("tcp", port, port)

    def facts(self) -> dict[str, t.Any]:
        ports = {"from_port": self.from_port, "to_port": self.to_port}
        return {"security_group_id": self.group, "protocol": self.protocol, **ports}


class SecurityGroups:
    """The calls to EC2, by a client that aws.retrying_client gave. Everything here raises KeyferryError."""

    def __init__(self, client: t.Any) -> None:
        self._client = client

    def refuse_missing(self, groups: list[str]) -> None:
        with aws_errors(f"look at the security groups {', '.join(groups)}"):
            found = self._found("describe_security_groups", "SecurityGroups", "group-id", groups)
        missing = sorted({*groups} - {each["GroupId"] for each in found})
        if missing:
            raise KeyferryError(
                f"There is no security group {', '.join(missing)} in this region. Check security_group_ids and region."
                " Nothing was changed."
            )

    def letting_in(self, source: str) -> list[str]:
        """Every group of the region that has an inbound rule for I(source)."""
        with aws_errors(f"look for the security groups that let {source} in"):
            found = self._found("describe_security_groups", "SecurityGroups", "ip-permission.group-id", [source])
        return [each["GroupId"] for each in found]

    def rules(self, groups: list[str], source: str) -> list[Rule]:
        """The inbound rules of I(groups) for I(source)."""
        with aws_errors(f"look at the rules of {', '.join(groups)}"):
            found = self._found("describe_security_group_rules", "SecurityGroupRules", "group-id", groups)
        return sorted(
            _rule(each)
            for each in found
            if not each["IsEgress"] and each.get("ReferencedGroupInfo", {}).get("GroupId") == source
        )

    def add(self, rule: Rule, source: str, description: str | None) -> None:
        pair = {"GroupId": source, **({"Description": description} if description else {})}
        permission = {"IpProtocol": rule.protocol, "FromPort": rule.from_port, "ToPort": rule.to_port}
        with done_already("InvalidPermission.Duplicate"), aws_errors(f"let {source} into {rule.group}"):
            self._client.authorize_security_group_ingress(
                aws_retry=True, GroupId=rule.group, IpPermissions=[{**permission, "UserIdGroupPairs": [pair]}]
            )

    def remove(self, rule: Rule, source: str) -> None:
        doing = f"take away the rule {rule.rule_id} of {rule.group}, which lets {source} in"
        with done_already("InvalidSecurityGroupRuleId.NotFound"), aws_errors(doing):
            self._client.revoke_security_group_ingress(
                aws_retry=True, GroupId=rule.group, SecurityGroupRuleIds=[rule.rule_id]
            )

    @RETRY
    def _found(self, operation: str, key: str, name: str, values: list[str]) -> list[dict[str, t.Any]]:
        """All that EC2 has where I(name) is one of I(values)."""
        # EC2 takes no filter without values.
        if not values:
            return []
        pages = self._client.get_paginator(operation).paginate(Filters=[{"Name": name, "Values": values}])
        return [each for page in pages for each in page[key]]


def _rule(told: dict[str, t.Any]) -> Rule:
    # A protocol without ports has none, or -1.
    ports = told.get("FromPort", -1), told.get("ToPort", -1)
    return Rule(told["GroupId"], told["IpProtocol"], *ports, told["SecurityGroupRuleId"])
