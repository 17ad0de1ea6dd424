# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""security_group_access against the lab's EC2."""

from __future__ import annotations

from typing import Any

import pytest
from support.modules import LabModules

# What somebody else lets into a group.
WEB = {"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "in"}]}
NOWHERE = "sg-0123456789abcdef0"


class Groups:
    """Security groups of one test, and what they let in."""

    def __init__(self, aws: LabModules, name: str) -> None:
        self.aws, self.name, self.ec2 = aws, name, aws.client("ec2")
        self.vpc = self.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        self.host, self.application = self.make("host"), self.make("application")
        self.caches = sorted(self.make(f"cache-{number}") for number in (1, 2))
        for cache in self.caches:
            self.let_in(cache, self.application, 6379)
            self.ec2.authorize_security_group_ingress(GroupId=cache, IpPermissions=[WEB])

    def make(self, what: str) -> str:
        name = f"{self.name}-{what}"
        return str(self.ec2.create_security_group(GroupName=name, Description=what, VpcId=self.vpc)["GroupId"])

    def let_in(self, group: str, source: str, first: int, last: int = 0, protocol: str = "tcp") -> None:
        ports = {"IpProtocol": protocol, "FromPort": first, "ToPort": last or first}
        permissions = [{**ports, "UserIdGroupPairs": [{"GroupId": source, "Description": "by hand"}]}]
        self.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=permissions)

    def rules(self, group: str) -> dict[str, Any]:
        """All rules of a group, outbound ones too, by EC2's own names of them."""
        asked = [{"Name": "group-id", "Values": [group]}]
        found = self.ec2.describe_security_group_rules(Filters=asked)["SecurityGroupRules"]
        return {each["SecurityGroupRuleId"]: each for each in found}

    def all_rules(self) -> dict[str, Any]:
        return {name: rule for group in self.caches for name, rule in self.rules(group).items()}

    def run(self, **args: Any) -> dict[str, Any]:
        return self.aws.run("security_group_access", **{"source_security_group_id": self.host, **args})


def tcp(group: str, first: int, last: int = 0) -> dict[str, Any]:
    return {"security_group_id": group, "protocol": "tcp", "from_port": first, "to_port": last or first}


@pytest.fixture
def groups(aws: LabModules, request: pytest.FixtureRequest) -> Groups:
    return Groups(aws, request.node.name)


def test_one_rule_is_added_to_each_and_taken_away_and_nothing_else(groups: Groups) -> None:
    before = groups.all_rules()
    asked = {"security_group_ids": groups.caches, "port": 6379, "description": "migration host"}
    wanted = [tcp(group, 6379) for group in groups.caches]
    planned = groups.run(**asked, _check=True)
    assert planned["changed"] and planned["rules"] == wanted and groups.all_rules() == before
    added = groups.run(**asked)
    assert added["changed"] and added["rules"] == wanted
    assert added["diff"] == planned["diff"] == {"before": {"rules": []}, "after": {"rules": wanted}}
    new = {name: rule for name, rule in groups.all_rules().items() if name not in before}
    assert {rule["ReferencedGroupInfo"]["GroupId"] for rule in new.values()} == {groups.host} and len(new) == 2
    assert {name: groups.all_rules()[name] for name in before} == before
    again = groups.run(**{**asked, "description": "another"})
    assert not again["changed"] and again["rules"] == []

    gone = groups.run(state="absent", _check=True)
    assert gone["changed"] and gone["rules"] == wanted and {*groups.all_rules()} == {*before, *new}
    assert groups.run(state="absent") == {**gone, "diff": {"before": {"rules": wanted}, "after": {"rules": []}}}
    assert groups.all_rules() == before
    assert not groups.run(state="absent")["changed"]


def test_the_description_is_that_of_the_rule(groups: Groups) -> None:
    groups.run(security_group_ids=groups.caches[:1], port=6380, description="migration host")
    [group] = groups.ec2.describe_security_groups(GroupIds=groups.caches[:1])["SecurityGroups"]
    [pair] = [pair for each in group["IpPermissions"] if each["FromPort"] == 6380 for pair in each["UserIdGroupPairs"]]
    assert (pair["GroupId"], pair["Description"]) == (groups.host, "migration host")


def test_only_the_group_without_the_rule_gets_it(groups: Groups) -> None:
    closed, opened = groups.caches
    groups.let_in(opened, groups.host, 6379)
    # Wider ones, and another protocol, are other rules.
    groups.let_in(closed, groups.host, 6000, 7000)
    groups.let_in(closed, groups.host, 6379, protocol="udp")
    # As are those outwards.
    there = {"IpProtocol": "tcp", "FromPort": 6379, "ToPort": 6379, "UserIdGroupPairs": [{"GroupId": groups.host}]}
    groups.ec2.authorize_security_group_egress(GroupId=closed, IpPermissions=[there])
    outcome = groups.run(security_group_ids=[*groups.caches, closed], port=6379)
    assert outcome["rules"] == [tcp(closed, 6379)]
    assert [rule["from_port"] for rule in outcome["diff"]["before"]["rules"]] == [6000, 6379, 6379]


def test_what_is_taken_away_can_be_narrowed(groups: Groups) -> None:
    one, other = groups.caches
    for group in groups.caches:
        groups.let_in(group, groups.host, 6379)
        groups.let_in(group, groups.host, 6379, 6380)
        groups.let_in(group, groups.host, -1, protocol="-1")
    assert groups.run(state="absent", port=6379, security_group_ids=[one])["rules"] == [tcp(one, 6379)]
    assert groups.run(state="absent", security_group_ids=[])["rules"] == []
    assert groups.run(state="absent", port=6379)["rules"] == [tcp(other, 6379)]
    every = {"security_group_id": one, "protocol": "-1", "from_port": -1, "to_port": -1}
    assert groups.run(state="absent", security_group_ids=[one, NOWHERE])["rules"] == [every, tcp(one, 6379, 6380)]
    left = groups.run(state="absent")["rules"]
    assert [(rule["security_group_id"], rule["to_port"]) for rule in left] == [(other, -1), (other, 6380)]


def test_a_group_that_is_not_there_is_named_before_anything_is_changed(groups: Groups) -> None:
    before = groups.all_rules()
    for check in (True, False):
        refused = groups.run(security_group_ids=[*groups.caches, NOWHERE], port=6379, _check=check)
        assert refused["failed"]
        assert refused["msg"] == (
            f"There is no security group {NOWHERE} in this region. Check security_group_ids and region."
            " Nothing was changed."
        )
    assert groups.all_rules() == before


def test_a_lost_answer_is_no_failure(groups: Groups, aws: LabModules) -> None:
    for state, operation in (("present", "Authorize"), ("absent", "Revoke")):
        aws.order({"op": f"{operation}SecurityGroupIngress", "after": True})
        result = groups.run(state=state, security_group_ids=groups.caches[:1], port=6379)
        assert not result.get("failed") and result["changed"], result


def test_what_ec2_refuses_is_told(groups: Groups) -> None:
    lost = groups.run(source_security_group_id=NOWHERE, security_group_ids=groups.caches, port=6379)
    assert lost["failed"] and lost["error_code"] == "InvalidGroup.NotFound"
    assert lost["msg"].startswith(f"Could not let {NOWHERE} into {groups.caches[0]}: ")
    assert groups.run(port=6379)["msg"] == "state is present but all of the following are missing: security_group_ids"
