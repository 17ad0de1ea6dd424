# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook provision_host against the lab's EC2 and IAM, by the unmodified modules of amazon.aws."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from integration.cutover import TOP
from integration.plays import Playbook
from jinja2 import Environment, StrictUndefined
from support.modules import LabModules

from lab import Lab

RUN = "shared-redis-db1"
NAME = f"keyferry-{RUN}"


def documented_rights() -> list[Any]:
    """The policy that docs/security.md shows, and what it adds for a KMS key."""
    text = (TOP / "docs/security.md").read_text()
    section = text.partition("## The migration host's rights")[2].partition("\n## ")[0]
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.DOTALL)]


def policy(source: str, target: str | list[str], bucket: str, kms_key_id: str = "") -> dict[str, Any]:
    """The policy that the role gives."""
    template = (TOP / "roles/migration_host_ec2/templates/policy.json.j2").read_text()
    names = {"source": source, "target": target, "bucket": bucket, "partition": "aws", "kms_key_id": kms_key_id}
    given = {f"migration_host_ec2_{name}": value for name, value in names.items()}
    return dict(json.loads(Environment(undefined=StrictUndefined).from_string(template).render(given)))


class Account:
    """What the lab's EC2 and IAM hold."""

    def __init__(self, lab: Lab) -> None:
        self.aws = LabModules(lab)
        self.ec2, self.iam = self.aws.client("ec2"), self.aws.client("iam")
        self.subnet = self.ec2.describe_subnets()["Subnets"][0]
        self.image = self.ec2.describe_images()["Images"][0]["ImageId"]

    def instances(self, name: str = NAME) -> list[dict[str, Any]]:
        named = [{"Name": "tag:Name", "Values": [name]}, {"Name": "instance-state-name", "Values": ["running"]}]
        found = self.ec2.describe_instances(Filters=named)["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]

    def groups(self) -> list[dict[str, Any]]:
        named = [{"Name": "group-name", "Values": [NAME]}]
        return list(self.ec2.describe_security_groups(Filters=named)["SecurityGroups"])

    def make_instance(self, name: str, **tags: str) -> str:
        tagged = [{"Key": key, "Value": value} for key, value in {"Name": name, **tags}.items()]
        made = self.ec2.run_instances(
            ImageId=self.image,
            MinCount=1,
            MaxCount=1,
            SubnetId=self.subnet["SubnetId"],
            TagSpecifications=[{"ResourceType": "instance", "Tags": tagged}],
        )
        return str(made["Instances"][0]["InstanceId"])

    def make_group(self, name: str, **where: str) -> str:
        made = self.ec2.create_security_group(GroupName=name, Description=f"{name}, by its owner", **where)
        return str(made["GroupId"])

    def let_in(self, group: str, source: str, port: int) -> None:
        pair = {"GroupId": source, "Description": "by hand"}
        permission = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port, "UserIdGroupPairs": [pair]}
        self.ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])

    def inbound(self, *groups: str) -> dict[str, list[dict[str, Any]]]:
        """What each of these groups lets in from other groups."""
        found = self.ec2.describe_security_groups(GroupIds=groups)["SecurityGroups"]
        return {
            group["GroupId"]: [
                {"port": rule["FromPort"], "from": pair["GroupId"], "why": pair.get("Description")}
                for rule in group["IpPermissions"]
                for pair in rule["UserIdGroupPairs"]
            ]
            for group in found
        }

    def policy(self, name: str = NAME) -> dict[str, Any]:
        return dict(self.iam.get_role_policy(RoleName=name, PolicyName="keyferry-redis")["PolicyDocument"])

    def roles(self) -> list[str]:
        return [role["RoleName"] for role in self.iam.list_roles()["Roles"]]

    def profiles(self) -> list[str]:
        return [each["InstanceProfileName"] for each in self.iam.list_instance_profiles()["InstanceProfiles"]]


@pytest.fixture(scope="module")
def account(lab: Lab) -> Account:
    return Account(lab)


@pytest.fixture(scope="module")
def provision(lab: Lab) -> Playbook:
    return Playbook(lab.info["dir"], TOP / "playbooks/provision_host.yml")


@pytest.fixture(scope="module")
def asked(account: Account) -> dict[str, Any]:
    # moto's instances answer nobody, so nothing is waited for.
    return {
        "src_db": 1,
        "host_subnet_id": account.subnet["SubnetId"],
        "host_image_id": account.image,
        "host_ssh_cidrs": ["10.0.0.0/16"],
        "host_timeout": 0,
    }


def test_the_documented_rights_are_those_that_it_gets() -> None:
    shown, for_a_key = documented_rights()
    names = ("shared-redis", "orders-redis", "example-keyferry-exports")
    assert policy(*names) == shown
    key = for_a_key[0]["Resource"]
    assert policy(*names, key) == {**shown, "Statement": shown["Statement"] + for_a_key}
    without_arn = policy(*names, key.rpartition("/")[2])["Statement"][-1]
    assert without_arn["Resource"] == f"arn:aws:kms:*:*:key/{key.rpartition('/')[2]}"


def test_it_must_know_where(provision: Playbook) -> None:
    provision.refuse("In which subnet? Set host_subnet_id. Nothing was changed.", src_db=1)


def test_check_mode_makes_nothing(provision: Playbook, account: Account, asked: dict[str, Any]) -> None:
    # A node of the lab's source holds 13.1 GiB.
    outcome = provision.succeed("--check", **asked)
    assert f"{NAME}: r7i.2xlarge with 40 GiB of gp3 (16000 IOPS, 1000 MiB/s) for 13.1 GiB of data" in outcome.words
    assert not account.instances() and not account.groups() and NAME not in account.roles()


def test_it_is_sized_from_a_snapshot(provision: Playbook, account: Account, asked: dict[str, Any]) -> None:
    provision.refuse("There is no snapshot nothing: say how many bytes", host_snapshot_name="nothing", **asked)
    assert not account.aws.client("elasticache").describe_snapshots()["Snapshots"]
    account.aws.run("elasticache_snapshot", name="last-night", replication_group_id="shared-redis")
    outcome = provision.succeed("--check", host_snapshot_name="last-night", **asked)
    # The lab's data are a few MB.
    assert f"{NAME}: r7i.large with 40 GiB of gp3 (16000 IOPS, 1000 MiB/s) for 0.0 GiB of data" in outcome.words


def test_it_is_made_once(provision: Playbook, account: Account, asked: dict[str, Any]) -> None:
    article = {"host_instance_type": "r7i.2xlarge", "host_data_bytes": 30 * 2**30, "host_connection": "ssm"}
    outcome = provision.succeed(**asked, **article)
    [instance], [group] = account.instances(), account.groups()
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert instance["InstanceType"] == "r7i.2xlarge" and tags["keyferry:run"] == RUN
    assert instance["IamInstanceProfile"]["Arn"].endswith(f"/{NAME}")
    assert [each["GroupId"] for each in instance["SecurityGroups"]] == [group["GroupId"]]
    disk = instance["BlockDeviceMappings"][0]["Ebs"]["VolumeId"]
    volume = account.ec2.describe_volumes(VolumeIds=[disk])["Volumes"][0]
    assert (volume["VolumeType"], volume["Size"], volume["Encrypted"]) == ("gp3", 65, True)
    [rule] = group["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"][0]["CidrIp"]) == (22, 22, "10.0.0.0/16")
    for words in (f"{NAME}:", "ansible_connection: amazon.aws.aws_ssm", f"instance_id: {instance['InstanceId']}"):
        assert words in outcome.words
    given = account.policy()
    assert given["Statement"].pop()["Sid"] == "ReachedBySsm"
    assert given == policy("shared-redis", RUN, account.aws.info["bucket"])
    again = provision.succeed(**asked, **article)
    assert again.recap["changed"] == 1, again.output  # add_host says so each time
    assert len(account.instances()) == 1


def test_it_is_taken_away_and_again(provision: Playbook, account: Account) -> None:
    provision.succeed("--check", run_id=RUN, state="absent")
    assert account.instances() and account.groups() and NAME in account.roles()
    run = Path(account.aws.info["dir"]) / "host/runs" / RUN
    run.mkdir(parents=True)
    about = {"source": "shared-redis", "src_db": 1, "dest_db": 0, "target": RUN, "strategy": "swap"}
    record = {"about": about, "phases": {"host": {"began": 1.0, "seconds": 1.0}}}
    (run / "state.json").write_text(json.dumps(record))
    cleanup = Playbook(account.aws.info["dir"], TOP / "playbooks/cleanup.yml")
    cleanup.succeed(src_db=1, remove_host=True, force=True)
    assert not account.instances() and not account.groups()
    assert NAME not in account.roles() and NAME not in account.profiles()
    outcome = provision.succeed(run_id=RUN, state="absent")
    assert outcome.recap["changed"] == 0, outcome.output
    assert f"There is no instance named {NAME}, so none was terminated." in outcome.words


@pytest.fixture(scope="module")
def caches(account: Account) -> list[str]:
    """The groups of two ElastiCaches, which let an application in."""
    made = [account.make_group(f"cache-{number}") for number in (1, 2)]
    application = account.make_group("application")
    for group in made:
        account.let_in(group, application, 6379)
    return made


def test_a_group_that_does_not_exist_is_told_before_anything_is_made(
    provision: Playbook, account: Account, asked: dict[str, Any], caches: list[str]
) -> None:
    before, nowhere = account.inbound(*caches), "sg-0123456789abcdef0"
    provision.refuse(
        f"There is no security group {nowhere} in this region.",
        "Nothing was made.",
        host_open_security_group_ids=[*caches, nowhere],
        **asked,
    )
    assert not account.instances() and not account.groups() and NAME not in account.roles()
    assert account.inbound(*caches) == before


def test_the_elasticaches_let_it_in_as_long_as_it_is_there(
    provision: Playbook, account: Account, asked: dict[str, Any], caches: list[str]
) -> None:
    opened = {**asked, "host_open_security_group_ids": caches, "host_open_port": 6380}
    before = account.inbound(*caches)
    outcome = provision.succeed("--check", **opened)
    assert f"{', '.join(caches)} will let it in on TCP port 6380" in outcome.words
    assert account.inbound(*caches) == before and not account.groups()

    provision.succeed(**opened)
    [group] = account.groups()
    rule = {"port": 6380, "from": group["GroupId"], "why": f"Migration host {NAME} of keyferry.redis"}
    assert account.inbound(*caches) == {each: [*rules, rule] for each, rules in before.items()}
    again = provision.succeed(**opened)
    assert again.recap["changed"] == 1, again.output  # add_host says so each time
    # Where its own group is there, --check knows what is still to be opened.
    other = account.make_group("cache-3")
    looked = provision.succeed("--check", **{**opened, "host_open_security_group_ids": other})
    assert looked.recap["changed"] == 1 and account.inbound(other) == {other: []}, looked.output

    # Nobody has to remember what was opened, or by whom.
    account.let_in(other, group["GroupId"], 6379)
    planned = provision.succeed("--check", run_id=RUN, state="absent")
    for each, port in {**dict.fromkeys(caches, 6380), other: 6379}.items():
        assert f"{each} let it in: tcp, ports {port} to {port}" in planned.words
    assert account.inbound(other) != {other: []}
    provision.succeed(run_id=RUN, state="absent")
    assert account.inbound(*caches, other) == {**before, other: []} and not account.groups()


def test_a_group_of_that_name_that_is_not_of_a_host_stays(provision: Playbook, account: Account) -> None:
    vpc = account.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    theirs, user = (account.make_group(name, VpcId=vpc) for name in (NAME, "its-user"))
    account.let_in(user, theirs, 6379)
    outcome = provision.succeed(run_id=RUN, state="absent")
    assert outcome.recap["changed"] == 0, outcome.output
    assert account.groups() and account.inbound(user)[user]
    for group in (user, theirs):
        account.ec2.delete_security_group(GroupId=group)


def test_one_host_serves_a_list_of_moves(provision: Playbook, account: Account, asked: dict[str, Any]) -> None:
    name, key = "keyferry-shared-redis-moves", "1234abcd-12ab-34cd-56ef-1234567890ab"
    moves = [{"src_db": 2, "target_replication_group_id": "sessions-redis"}, {"src_db": 3}]
    listed = {option: value for option, value in asked.items() if option != "src_db"}
    outcome = provision.succeed(moves=moves, target_kms_key_id=key, **listed)
    [instance] = account.instances(name)
    assert f"ansible_host: {instance['PrivateIpAddress']}" in outcome.words
    targets = ["sessions-redis", "shared-redis-db3"]
    assert account.policy(name) == policy("shared-redis", targets, account.aws.info["bucket"], key)


def test_a_name_that_no_host_has_is_told(provision: Playbook, account: Account) -> None:
    name, nowhere = "keyferry-shared-redis-moves", {"state": "absent", "source_replication_group_id": ""}
    provision.refuse("Which ElastiCache is the source?", src_db=1, **nowhere)
    outcome = provision.succeed(run_id="another", **nowhere)
    assert (
        "There is no instance named keyferry-another, so none was terminated. Migration hosts that there are:"
        f" {name}. Name the one that is meant" in outcome.words
    )
    assert outcome.recap["changed"] == 0 and account.instances(name), outcome.output
    provision.succeed(host_name=name, **nowhere)
    assert not account.instances(name) and name not in account.roles()


def test_what_somebody_else_has_made_under_that_name_stays(
    provision: Playbook, account: Account, asked: dict[str, Any]
) -> None:
    named = {**asked, "host_name": "web"}
    account.iam.create_role(RoleName="web", AssumeRolePolicyDocument="{}", Description="by its owner")
    account.iam.create_instance_profile(InstanceProfileName="web")
    account.iam.add_role_to_instance_profile(InstanceProfileName="web", RoleName="web")
    for instances in (0, 1):
        before = account.instances("web")
        theirs = f"{before[0]['InstanceId']}, the role" if before else "web is the name of the role"
        assert len(before) == instances
        for asked_for in (named, {**named, "state": "absent"}):
            words = "too, without the tag keyferry:run that all of a migration host has"
            provision.refuse(theirs, words, "Nothing was changed.", **asked_for)
        assert account.instances("web") == before
        assert account.iam.get_role(RoleName="web")["Role"]["Description"] == "by its owner"
        assert "web" in account.profiles()
        account.make_instance("web")


def test_one_of_several_is_not_chosen(provision: Playbook, account: Account, asked: dict[str, Any]) -> None:
    made = sorted(account.make_instance("twins", **{"keyferry:run": RUN}) for _each in range(2))
    for state in ("present", "absent"):
        words = f"Several instances are named twins: {', '.join(made)}."
        provision.refuse(words, host_name="twins", state=state, **asked)
    assert len(account.instances("twins")) == 2 and "twins" not in account.roles()


def test_a_group_of_that_name_keeps_its_rules(provision: Playbook, account: Account, asked: dict[str, Any]) -> None:
    theirs, user = (account.make_group(name, VpcId=account.subnet["VpcId"]) for name in ("backend", "its-user"))
    account.let_in(theirs, user, 8080)
    before = account.inbound(theirs)
    provision.refuse(
        "The security group backend of",
        "its description is 'backend, by its owner'. Name the host otherwise (host_name). Nothing was made.",
        host_name="backend",
        **asked,
    )
    assert account.inbound(theirs) == before and "backend" not in account.roles()
