# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""elasticache_preflight_info against the lab: it tells everything at once, and says what AWS would say."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError
from support.modules import LabModules

from ansible_collections.keyferry.redis.plugins.module_utils import elasticache_preflight as preflight
from ansible_collections.keyferry.redis.plugins.module_utils.aws import aws_errors

SOURCE = "shared-redis"
BUCKET = "keyferry-exports"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(aws: LabModules) -> Run:
    return lambda **args: aws.run("elasticache_preflight_info", **args)


def found(result: dict[str, Any]) -> dict[str, str]:
    """The problems by the check that found them."""
    assert result["changed"] is False, result
    return {each["check"]: each["problem"] for each in result["problems"]}


def test_a_plan_that_works_has_no_problem(run: Run) -> None:
    target = {"replication_group_id": "Orders", "databases": 16, "subnet_group_name": "default"}
    result = run(replication_group_id="Shared-Redis", snapshot_name="Run-1", bucket=BUCKET, target=target)
    assert (found(result), result["remarks"]) == ({}, [])
    assert result["source"]["role"] == "replica"
    assert found(run()) == {}


def test_everything_is_told_at_once(run: Run, aws: LabModules) -> None:
    client = aws.client("elasticache")
    client.create_replication_group(
        ReplicationGroupId="tiered",
        ReplicationGroupDescription="x",
        CacheNodeType="cache.r6gd.xlarge",
        DataTieringEnabled=True,
    )
    aws.run("elasticache_replication_group", replication_group_id="tiered", node_type="cache.r6gd.xlarge")
    aws.run("elasticache_snapshot", name="taken", replication_group_id=SOURCE)
    location = {"LocationConstraint": "eu-central-1"}
    aws.client("s3").create_bucket(Bucket="closed", CreateBucketConfiguration=location)
    aws.client("s3").put_object(Bucket="closed", Key="old-0001.rdb", Body=b"REDIS")
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms"}}
    aws.client("s3").put_bucket_encryption(Bucket="closed", ServerSideEncryptionConfiguration={"Rules": [rule]})
    result = run(
        replication_group_id="tiered",
        snapshot_name="taken",
        bucket="closed",
        target_name="old",
        target={
            "replication_group_id": SOURCE,
            "databases": 99,
            "parameter_group_name": "none",
            "subnet_group_name": "none",
            "user_group_ids": ["none"],
        },
    )
    problems = found(result)
    assert "whose snapshots AWS cannot export" in problems["data_tiering"]
    assert f"that snapshot is of {SOURCE}-002" in problems["snapshot_name"]
    assert "Add this statement to the bucket policy" in problems["bucket_policy"]
    assert "holds old-0001.rdb" in problems["export_name"]
    assert f"replication group {SOURCE} exists already" in problems["target_name"]
    assert "CacheParameterGroupNotFound" in problems["target_databases"]
    assert "CacheSubnetGroupNotFoundFault" in problems["target_subnet_group"]
    assert "UserGroupNotFound" in problems["target_user_group"]
    assert any("KMS" in remark for remark in result["remarks"])
    statement = next(each["policy_statement"] for each in result["problems"] if each["check"] == "bucket_policy")
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    aws.client("s3").put_bucket_policy(Bucket="closed", Policy=policy)
    assert found(run(replication_group_id=SOURCE, snapshot_name="new", bucket="closed")) == {}


def test_a_serverless_cache_is_no_source(run: Run, aws: LabModules) -> None:
    aws.client("elasticache").create_serverless_cache(ServerlessCacheName="on-demand", Engine="redis")
    assert "on-demand is a serverless cache" in found(run(replication_group_id="On-Demand"))["source"]
    assert "no replication group nothing" in found(run(replication_group_id="nothing"))["source"]
    assert "no cache cluster nothing-001" in found(run(cache_cluster_id="nothing-001"))["source"]
    assert found(run(cache_cluster_id=f"{SOURCE}-001", snapshot_name="x")) == {}


def test_the_quota_of_a_node_is_told(run: Run, aws: LabModules) -> None:
    aws.run("elasticache_replication_group", replication_group_id="busy", node_type="cache.t4g.small")
    client = aws.client("elasticache")
    for number in range(20):
        aws.run("elasticache_snapshot", name=f"busy-{number}", replication_group_id="busy")
    plan = {"replication_group_id": "busy", "snapshot_name": "busy-20"}
    assert "20 manual snapshots were taken of busy-001" in found(run(**plan))["snapshot_quota"]
    with pytest.raises(client.exceptions.SnapshotQuotaExceededFault):
        client.create_snapshot(SnapshotName="busy-20", CacheClusterId="busy-001")
    # One that is there already is not taken again.
    assert found(run(**{**plan, "snapshot_name": "busy-19"})) == {}


@pytest.mark.parametrize(
    ("name", "check"), [("a--b", "snapshot_name"), ("1a", "snapshot_name"), ("a" * 41, "snapshot_name")]
)
def test_names_that_aws_does_not_take_are_told(run: Run, name: str, check: str) -> None:
    assert "AWS takes no snapshot name" in found(run(replication_group_id=SOURCE, snapshot_name=name))[check]
    assert "AWS takes no replication group" in found(run(target={"replication_group_id": name}))["target_name"]


def test_a_bucket_that_cannot_be_is_told(run: Run, aws: LabModules) -> None:
    assert "does not exist" in found(run(bucket="there-is-none"))["bucket"]
    far = aws.client("s3", "us-west-2")
    far.create_bucket(Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    assert "is in us-west-2" in found(run(bucket="far-away"))["bucket"]


def test_subnets_without_room_and_security_groups_that_are_not_there_are_told(run: Run, aws: LabModules) -> None:
    ec2 = aws.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/24")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/28")["Subnet"]
    group = {"CacheSubnetGroupName": "narrow", "CacheSubnetGroupDescription": "x", "SubnetIds": [subnet["SubnetId"]]}
    aws.client("elasticache").create_cache_subnet_group(**group)
    free = subnet["AvailableIpAddressCount"]
    target = {"replication_group_id": "orders", "subnet_group_name": "narrow", "security_group_ids": ["sg-00000001"]}
    problems = found(run(target={**target, "nodes": free + 1}))
    assert f"({subnet['SubnetId']}) have {free} free addresses" in problems["target_addresses"]
    assert "sg-00000001" in problems["target_security_group"]
    assert "target_addresses" not in found(run(target={**target, "nodes": free}))


def test_more_nodes_than_the_region_may_have_are_told(run: Run, aws: LabModules) -> None:
    target = {"replication_group_id": "wide"}
    there = len(aws.client("elasticache").describe_cache_clusters()["CacheClusters"])
    problem = found(run(target={**target, "nodes": 301 - there}))["target_node_quota"]
    assert f"with the {there} that there are in eu-central-1 that is more than the 300" in problem
    assert found(run(target={**target, "nodes": 300 - there})) == {}
    wanted = {"NumNodeGroups": 75, "ReplicasPerNodeGroup": 3, "AutomaticFailoverEnabled": True}
    asked = {"ReplicationGroupId": "wide", "ReplicationGroupDescription": "x", "CacheNodeType": "cache.t4g.small"}
    client = aws.client("elasticache")
    with pytest.raises(client.exceptions.NodeQuotaForCustomerExceededFault):
        client.create_replication_group(**asked, **wanted, CacheParameterGroupName="default.redis7.cluster.on")


def test_a_kms_key_that_cannot_encrypt_is_told(run: Run, aws: LabModules) -> None:
    kms = aws.client("kms")
    made = kms.create_key()["KeyMetadata"]
    key = made["Arn"]
    target = {"replication_group_id": "orders", "kms_key_id": key}
    assert found(run(target=target)) == {}
    kms.disable_key(KeyId=made["KeyId"])
    assert f"{key} of the target is Disabled" in found(run(target=target))["target_kms_key"]
    gone = key[:-12] + "0" * 12
    assert "NotFoundException" in found(run(target={**target, "kms_key_id": gone}))["target_kms_key"]
    aws.order({"op": "kms:POST /", "code": "AccessDeniedException", "status": 400, "times": 0})
    result = run(target=target)
    assert found(result) == {} and any("Could not look at the KMS key" in each for each in result["remarks"])


def test_a_parameter_group_of_another_family_is_told_beforehand(run: Run) -> None:
    target = {"replication_group_id": "orders", "engine": "redis", "engine_version": "7.1"}
    for group, problem in (
        ("default.redis7", None),
        ("default.valkey8", "is of the family valkey8, and the target is to be redis 7.1"),
    ):
        told = found(run(target={**target, "parameter_group_name": group}))
        assert problem in told["target_parameter_group"] if problem else told == {}, told
    cluster = {**target, "cluster_mode": "enabled"}
    told = found(run(target={**cluster, "parameter_group_name": "default.redis7"}))
    assert "default.redis7.cluster.on, or none" in told["target_parameter_group"]
    assert found(run(target={**cluster, "parameter_group_name": "default.redis7.cluster.on"})) == {}


def test_rights_that_iam_does_not_give_are_told_beforehand(run: Run, aws: LabModules) -> None:
    iam = aws.client("iam")
    iam.create_user(UserName="operator")
    keys = iam.create_access_key(UserName="operator")["AccessKey"]
    allowed = [
        {"Action": ["elasticache:CreateSnapshot", "elasticache:CopySnapshot"], "Resource": "arn:aws:elasticache:*"},
        {"Action": ["s3:List*", "s3:GetObject"], "Resource": "*"},
        {"Action": "elasticache:AddTagsToResource", "Resource": "arn:aws:elasticache:*:*:replicationgroup:orders"},
    ]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **each} for each in allowed]}
    iam.put_user_policy(UserName="operator", PolicyName="night", PolicyDocument=json.dumps(policy))
    plan = {"replication_group_id": SOURCE, "snapshot_name": "rights", "bucket": BUCKET}
    plan |= {"target": {"replication_group_id": "orders"}}
    own = {"access_key": keys["AccessKeyId"], "secret_key": keys["SecretAccessKey"]}
    result = run(**plan, **own)
    problem = found(result)["rights"]
    assert "does not allow arn:aws:iam::123456789012:user/operator these:" in problem
    # The bucket's own policy may allow this.
    put = f"s3:PutObject on arn:aws:s3:::{BUCKET}/rights-0001.rdb"
    assert put not in problem and any(put in each for each in result["remarks"])
    assert "elasticache:CreateReplicationGroup on arn:aws:elasticache:eu-central-1:123456789012:" in problem
    for action in ("CreateSnapshot", "CopySnapshot", "ListBucket", "GetObject", "AddTagsToResource"):
        assert action not in problem
    # What hangs on the request cannot be told without it.
    policy["Statement"].append(
        {"Effect": "Allow", "Action": "*", "Resource": "arn:aws:s3:::none", "Condition": {"Bool": {"a": "b"}}}
    )
    iam.put_user_policy(UserName="operator", PolicyName="night", PolicyDocument=json.dumps(policy))
    assert "rights" not in found(run(**plan, **own))
    policy["Statement"].append({"Effect": "Deny", "Action": "s3:PutObject", "Resource": "*"})
    iam.put_user_policy(UserName="operator", PolicyName="night", PolicyDocument=json.dumps(policy))
    assert put in found(run(**plan, **own))["rights"]


def test_what_may_not_be_looked_at_is_a_remark(run: Run, aws: LabModules) -> None:
    aws.order({"op": "sts:POST /", "code": "AccessDenied", "status": 403, "times": 0})
    result = run(replication_group_id=SOURCE, snapshot_name="looked-at")
    assert found(result) == {}
    assert any("Not looked at before: Could not find out whose credentials" in each for each in result["remarks"])


def test_a_service_that_no_route_leads_to_is_a_remark() -> None:
    findings = preflight.Findings()
    for error in (EndpointConnectionError(endpoint_url="https://iam"), ConnectTimeoutError(endpoint_url="https://iam")):
        with findings.where_allowed("rights"), aws_errors("ask IAM what these credentials may do"):
            raise error
    assert findings.problems == []
    assert [each[:46] for each in findings.warnings] == ["Not looked at before: Could not ask IAM what t"] * 2


def test_a_snapshot_that_is_there_is_told_with_its_age(run: Run, aws: LabModules) -> None:
    aws.run("elasticache_snapshot", name="of-before", replication_group_id=SOURCE)
    remarks = run(replication_group_id=SOURCE, snapshot_name="of-before")["remarks"]
    year = datetime.now(timezone.utc).year
    assert any(each.startswith(f"The snapshot of-before is there already, begun {year}-") for each in remarks), remarks


def test_a_right_that_lacks_is_a_problem_too(run: Run, aws: LabModules) -> None:
    aws.order({"op": "DescribeReplicationGroups", "code": "AccessDenied", "status": 403, "times": 0})
    problems = run(replication_group_id=SOURCE)["problems"]
    assert problems[0]["check"] == "source" and problems[0]["error_code"] == "AccessDenied"


def test_a_source_that_is_busy_is_remarked(run: Run, aws: LabModules) -> None:
    aws.order({"op": "CreateSnapshot", "stuck": True})
    aws.run("elasticache_snapshot", name="under-way", cache_cluster_id=f"{SOURCE}-002", wait=False)
    remarks = run(replication_group_id=SOURCE)["remarks"]
    assert any("is snapshotting: its snapshot is not taken before it is available" in remark for remark in remarks)
