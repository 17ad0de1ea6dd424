# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab reads requests as AWS does, has the services beside ElastiCache, and fails as it is ordered."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
from botocore.exceptions import ConnectionError, HTTPClientError
from integration.account import Account, refused
from integration.cutover import SOURCE

# The protocol, and the services beside it


def test_requests_are_read_strictly(aws: Account) -> None:
    scope = f"Credential={aws.info['access_key']}/20261122/eu-central-1/elasticache/aws4_request"

    def post(body: str) -> str:
        headers = {"Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"}
        request = urllib.request.Request(aws.info["endpoint_url"], body.encode(), headers)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as error:
            return error.read().decode()

    assert "InvalidAction" in post("Action=MakeCoffee&Version=2015-02-02")
    assert "InvalidAction" in post("Action=DescribeSnapshots&Version=1999-01-01")
    assert "no parameter Colour" in post("Action=DescribeSnapshots&Version=2015-02-02&Colour=red")
    assert "no parameter Tag" in post("Action=CopySnapshot&Version=2015-02-02&Tags.Tag.1.Tag=x")
    assert "required parameter SnapshotName" in post("Action=DeleteSnapshot&Version=2015-02-02")
    assert "not a integer" in post("Action=DescribeSnapshots&Version=2015-02-02&MaxRecords=many")


def test_what_the_lab_does_not_have_is_said(aws: Account) -> None:
    refused(aws.ec.describe_global_replication_groups, "InvalidAction")


def test_another_region_is_empty(aws: Account) -> None:
    assert aws.client("elasticache", "us-east-1").describe_replication_groups()["ReplicationGroups"] == []


def test_moto_answers_for_the_other_services(aws: Account) -> None:
    assert aws.client("sts").get_caller_identity()["Account"] == aws.info["account"]
    aws.client("ssm").put_parameter(Name="/redis/host", Value="new", Type="String")
    assert aws.client("ssm").get_parameter(Name="/redis/host")["Parameter"]["Value"] == "new"
    zone = aws.client("route53").create_hosted_zone(Name="example.org", CallerReference="1")["HostedZone"]["Id"]
    assert aws.client("route53").get_hosted_zone(Id=zone)["HostedZone"]["Name"] == "example.org."


def test_moto_has_what_a_migration_host_is_made_of(aws: Account) -> None:
    ec2, iam, secrets = aws.client("ec2"), aws.client("iam"), aws.client("secretsmanager")
    iam.create_role(RoleName="host", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="host")
    iam.add_role_to_instance_profile(InstanceProfileName="host", RoleName="host")
    subnet = ec2.describe_subnets()["Subnets"][0]
    group = ec2.create_security_group(GroupName="host", Description="host", VpcId=subnet["VpcId"])["GroupId"]
    volume = {"VolumeType": "gp3", "Iops": 16000, "Throughput": 1000, "VolumeSize": 100}
    made = ec2.run_instances(
        ImageId=ec2.describe_images()["Images"][0]["ImageId"],
        InstanceType="r7i.2xlarge",
        MinCount=1,
        MaxCount=1,
        SubnetId=subnet["SubnetId"],
        SecurityGroupIds=[group],
        IamInstanceProfile={"Name": "host"},
        BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": volume}],
    )["Instances"][0]["InstanceId"]
    found = ec2.describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"][0]
    assert (found["State"]["Name"], found["SecurityGroups"][0]["GroupId"]) == ("running", group)
    ec2.terminate_instances(InstanceIds=[made])
    secrets.create_secret(Name="token", SecretString="a-token-of-more-than-16")
    assert secrets.get_secret_value(SecretId="token")["SecretString"] == "a-token-of-more-than-16"


def test_a_security_group_that_another_one_refers_to_is_not_deleted(aws: Account) -> None:
    ec2 = aws.client("ec2")
    used, user = (
        ec2.create_security_group(GroupName=name, Description=name)["GroupId"] for name in ("used", "its-user")
    )
    rule = [{"IpProtocol": "tcp", "FromPort": 6379, "ToPort": 6379, "UserIdGroupPairs": [{"GroupId": used}]}]
    for way in ("ingress", "egress"):
        for group in (used, user):
            getattr(ec2, f"authorize_security_group_{way}")(GroupId=group, IpPermissions=rule)
        refused(lambda: ec2.delete_security_group(GroupId=used), "DependencyViolation")
        getattr(ec2, f"revoke_security_group_{way}")(GroupId=user, IpPermissions=rule)
    ec2.delete_security_group(GroupId=used)


# Faults


def test_throttling_is_retried_by_botocore(aws: Account) -> None:
    aws.order({"op": "DescribeSnapshots", "times": 2, "code": "Throttling"})
    before = len(aws.lab("GET", "calls"))
    aws.ec.describe_snapshots()
    calls = aws.lab("GET", "calls")[before:]
    assert [(call["op"], call["code"]) for call in calls] == [
        ("DescribeSnapshots", "Throttling"),
        ("DescribeSnapshots", "Throttling"),
        ("DescribeSnapshots", None),
    ]


def test_a_fault_meets_only_what_it_names(aws: Account) -> None:
    aws.order({"op": "Describe*", "match": {"SnapshotName": "other"}, "code": "Throttling", "status": 400, "times": 0})
    assert aws.ec.describe_snapshots()
    refused(
        lambda: aws.client("elasticache", retries={"total_max_attempts": 1}).describe_snapshots(SnapshotName="other"),
        "Throttling",
    )
    aws.forget_faults()
    refused(lambda: aws.ec.describe_snapshots(SnapshotName="other"), "SnapshotNotFoundFault", 404)
    with pytest.raises(urllib.error.HTTPError) as caught:
        aws.lab("POST", "faults", [{"op": "x", "explode": True}])
    caught.value.close()


def test_things_fail_when_it_is_ordered(aws: Account) -> None:
    aws.ensure_snapshot()
    aws.order({"op": "CreateSnapshot", "fail": True})
    aws.ec.create_snapshot(SnapshotName="ill", CacheClusterId=f"{SOURCE}-002")
    aws.wait_snapshot("ill", "failed")
    aws.wait_group()
    aws.ec.delete_snapshot(SnapshotName="ill")
    aws.ec.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="doomed")
    aws.wait_snapshot("doomed")
    aws.order({"op": "CopySnapshot", "fail": True})
    aws.ec.copy_snapshot(SourceSnapshotName="doomed", TargetSnapshotName="never", TargetBucket=aws.bucket)
    aws.wait_snapshot("doomed", "failed")
    aws.order({"op": "CreateReplicationGroup", "fail": True})
    aws.create("stillborn", SnapshotName="kept")
    aws.wait_group("stillborn", "create-failed")


def test_things_hang_when_it_is_ordered(aws: Account) -> None:
    aws.order({"op": "CreateReplicationGroup", "stuck": True})
    aws.create("hanging")
    aws.create("passing")
    aws.wait_group("passing")
    assert aws.group("hanging")["Status"] == "creating"


def test_what_is_done_stays_done_when_the_answer_is_lost(aws: Account) -> None:
    aws.order({"op": "CreateSnapshot", "after": True, "delay": 2})
    aws.wait_group()
    # botocore tries again after the 500, and meets its own work.
    refused(
        lambda: aws.ec.create_snapshot(SnapshotName="twice", CacheClusterId=f"{SOURCE}-002"), "InvalidCacheClusterState"
    )
    aws.wait_snapshot("twice")
    aws.wait_group()


def test_a_connection_breaks_and_an_answer_is_late(aws: Account) -> None:
    once = aws.client("elasticache", retries={"total_max_attempts": 1}, read_timeout=1)
    aws.order({"op": "DescribeSnapshots", "reset": True})
    with pytest.raises((ConnectionError, HTTPClientError)):
        once.describe_snapshots()
    aws.order({"op": "DescribeSnapshots", "late": 3})
    with pytest.raises((ConnectionError, HTTPClientError)):
        once.describe_snapshots()
    assert aws.ec.describe_snapshots()


def test_an_export_can_lack_its_object_or_a_part_of_it(aws: Account) -> None:
    aws.ensure_snapshot()
    aws.order({"op": "CopySnapshot", "missing": True})
    aws.ec.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="ghost", TargetBucket=aws.bucket)
    aws.wait_snapshot("kept")
    aws.order({"op": "CopySnapshot", "truncate": 100})
    aws.ec.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="stump", TargetBucket=aws.bucket)
    aws.wait_snapshot("kept")
    sizes = {found["Key"]: found["Size"] for found in aws.s3.list_objects_v2(Bucket=aws.bucket)["Contents"]}
    assert "ghost-0001.rdb" not in sizes
    assert sizes["stump-0001.rdb"] == 100


def test_s3_has_faults_too(aws: Account) -> None:
    once = aws.client("s3", retries={"total_max_attempts": 1})
    aws.order({"op": f"s3:GET /{aws.bucket}", "code": "SlowDown", "status": 503})
    refused(lambda: once.list_objects_v2(Bucket=aws.bucket), "SlowDown", 503)
    aws.order({"op": "s3:PUT *", "after": True})
    refused(lambda: once.put_object(Bucket=aws.bucket, Key="lost", Body=b"x"), "InternalFailure", 500)
    assert once.head_object(Bucket=aws.bucket, Key="lost")["ContentLength"] == 1
