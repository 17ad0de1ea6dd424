# Copyright (c) 2026, the keyferry.redis authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab keeps its contract: what unmodified boto3 and real Redis clients see of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from botocore.exceptions import ClientError, ConnectionError, HTTPClientError
from redis.backoff import NoBackoff
from redis.retry import Retry
from support.modules import LabModules

from lab import Lab, sample_data
from lab.buckets import CANONICAL_ID, EXPORT, export_policy
from lab.groups import TIMESTAMP_KEY
from lab.nodes import RedisServer, wait_for
from lab.prove import prove

SOURCE = "shared-redis"


class Account(LabModules):
    """What a user of the lab's AWS does, in short."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab)
        self.bucket = self.info["bucket"]
        self.ec = self.client("elasticache")
        self.s3 = self.client("s3")

    def snapshot_status(self, name: str) -> str:
        return str(self.ec.describe_snapshots(SnapshotName=name)["Snapshots"][0]["SnapshotStatus"])

    def group(self, group_id: str = SOURCE) -> dict[str, Any]:
        return dict(self.ec.describe_replication_groups(ReplicationGroupId=group_id)["ReplicationGroups"][0])

    def cluster_status(self, name: str) -> str:
        return str(self.ec.describe_cache_clusters(CacheClusterId=name)["CacheClusters"][0]["CacheClusterStatus"])

    def wait_snapshot(self, name: str, status: str = "available") -> None:
        wait_for(lambda: self.snapshot_status(name) == status, f"snapshot {name} to be {status}")

    def wait_group(self, group_id: str = SOURCE, status: str = "available") -> dict[str, Any]:
        wait_for(lambda: self.group(group_id)["Status"] == status, f"group {group_id} to be {status}")
        return self.group(group_id)

    def take(self, name: str, **source: str) -> None:
        self.ec.create_snapshot(SnapshotName=name, **(source or {"CacheClusterId": f"{SOURCE}-002"}))
        self.wait_snapshot(name)

    def ensure_snapshot(self, name: str = "kept") -> str:
        found = self.ec.describe_snapshots()["Snapshots"]
        if name not in {snapshot["SnapshotName"] for snapshot in found}:
            self.take(name)
        return name

    def create(self, group_id: str, **options: Any) -> None:
        required = {"ReplicationGroupDescription": "a test", "CacheNodeType": "cache.r7g.large"}
        self.ec.create_replication_group(ReplicationGroupId=group_id, **{**required, **options})

    def node(self, group_id: str = SOURCE, db: int = 0, at: int = 0, **options: Any) -> redis.Redis:
        """A client of the default user, as an application has it."""
        port = self.lab("GET", "groups")[group_id]["nodes"][at]["port"]
        return redis.Redis(port=port, db=db, retry=Retry(NoBackoff(), 0), **options)

    def admin(self, group_id: str = SOURCE, db: int = 0, at: int = 0, **options: Any) -> redis.Redis:
        login = {"username": self.info["admin_user"], "password": self.info["admin_password"]}
        return self.node(group_id, db, at, **login, **options)


@pytest.fixture(scope="module")
def aws(lab: Lab) -> Account:
    return Account(lab)


def refused(call: Callable[[], Any], code: str, status: int = 400, text: str = "") -> None:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] == code
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert text in caught.value.response["Error"]["Message"]


# The whole way, for both engines


def test_a_database_goes_through_snapshot_export_and_seed(tmp_path: Path, engine: str) -> None:
    with Lab(tmp_path / "lab", engine=engine, keys=2000, delay=0.05) as lab:
        aws = Account(lab)
        aws.take("before")
        aws.ec.copy_snapshot(SourceSnapshotName="before", TargetSnapshotName="Out", TargetBucket=aws.bucket)
        aws.wait_snapshot("before")
        aws.s3.download_file(aws.bucket, "out-0001.rdb", str(tmp_path / "out.rdb"))
        (tmp_path / "host").mkdir()
        (tmp_path / "out.rdb").rename(tmp_path / "host" / "dump.rdb")
        with RedisServer(tmp_path / "host", engine) as host:
            assert host.client(1).dbsize() in range(1935, 1942)
            host.client().save()
            aws.s3.upload_file(str(host.rdb), aws.bucket, "in.rdb")
        arn = f"arn:aws:s3:::{aws.bucket}/in.rdb"
        aws.create("own-redis", Engine=engine, NumCacheClusters=2, SnapshotArns=[arn])
        assert aws.group("own-redis")["Status"] == "creating"
        group = aws.wait_group("own-redis")
        assert (
            group["NodeGroups"][0]["PrimaryEndpoint"]["Port"]
            == aws.lab("GET", "groups")["own-redis"]["nodes"][0]["port"]
        )
        assert aws.node("own-redis", 0).exists(TIMESTAMP_KEY)
        assert aws.node("own-redis", 1, at=1).get(b"") == b"the empty key"
        for db in (0, 1, 15):
            verdict = prove(lab.info, SOURCE, db, "own-redis", db)
            assert verdict["equal"], verdict
            assert verdict["keys"] >= {0: 13, 1: 1936, 15: 12}[db]


def test_prove_finds_what_was_planted(tmp_path: Path, engine: str) -> None:
    with Lab(tmp_path, engine=engine, keys=500, delay=0.05) as lab:
        aws = Account(lab)
        aws.take("all")
        aws.create("copy", Engine=engine, SnapshotName="all")
        aws.wait_group("copy")
        source, copy = aws.node(db=1), aws.node("copy", db=1)
        source.set("gone", 1, px=1)
        copy.delete("int:0")
        copy.set(b"extra\xff", "1")
        copy.zadd("zset:extreme", {"m0": 1})
        copy.pexpire("stream:orders", 3_600_000)
        copy.xack("stream:orders", "billing", "1700000000000-5")
        copy.persist("large:compressible")
        verdict = prove(lab.info, SOURCE, 1, "copy", 1)
        assert not verdict["equal"]
        assert verdict["missing"] == ["int:0"]
        assert verdict["extra"] == ["extra\\xff"]
        assert sorted(verdict["different"]) == ["large:compressible", "stream:orders", "zset:extreme"]
        aws.node(db=2).flushdb()
        aws.node("copy", db=2).flushdb()
        for side in (source, copy):
            side.move("stream:emptied", 2)
        assert prove(lab.info, SOURCE, 2, "copy", 2)["equal"]
        copy = aws.node("copy", db=2)
        copy.xgroup_create("stream:emptied", "another", "0")
        assert prove(lab.info, SOURCE, 2, "copy", 2)["different"] == ["stream:emptied"]


# Snapshots


def test_a_snapshot_goes_through_its_states(aws: Account) -> None:
    aws.order({"op": "CreateSnapshot", "delay": 0.5})
    made = aws.ec.create_snapshot(SnapshotName="Slow-One", CacheClusterId=f"{SOURCE}-002")["Snapshot"]
    assert (made["SnapshotName"], made["SnapshotStatus"], made["SnapshotSource"]) == ("slow-one", "creating", "manual")
    assert aws.group()["Status"] == "snapshotting"
    assert aws.cluster_status(f"{SOURCE}-001") == "available"
    assert aws.cluster_status(f"{SOURCE}-002") == "snapshotting"
    refused(lambda: aws.take("other"), "InvalidCacheClusterState")
    refused(lambda: aws.take("other", ReplicationGroupId=SOURCE), "InvalidReplicationGroupState")
    refused(lambda: aws.ec.delete_snapshot(SnapshotName="slow-one"), "InvalidSnapshotState")
    refused(lambda: aws.ec.copy_snapshot(SourceSnapshotName="slow-one", TargetSnapshotName="x"), "InvalidSnapshotState")
    aws.wait_snapshot("slow-one")
    aws.wait_group()
    shown = aws.ec.describe_snapshots(SnapshotName="slow-one", ShowNodeGroupConfig=True)["Snapshots"][0]
    assert shown["CacheClusterId"] == f"{SOURCE}-002"
    assert shown["EngineVersion"] == "7.1.0"
    assert shown["NodeSnapshots"][0]["CacheSize"].endswith(" MB")
    assert shown["NodeSnapshots"][0]["NodeGroupConfiguration"]["Slots"] == "0-16383"
    aws.order({"op": "DeleteSnapshot", "delay": 0.3})
    assert aws.ec.delete_snapshot(SnapshotName="slow-one")["Snapshot"]["SnapshotStatus"] == "deleting"
    wait_for(lambda: not _has_snapshot(aws, "slow-one"), "the snapshot to go")


def _has_snapshot(aws: Account, name: str) -> bool:
    return name in {snapshot["SnapshotName"] for snapshot in aws.ec.describe_snapshots()["Snapshots"]}


def test_a_replica_is_saved_only_when_it_has_everything(aws: Account) -> None:
    with aws.node(db=9) as client:
        sample_data.fill(client, 3000, 9)
        aws.take("of-replica", ReplicationGroupId=SOURCE)
        aws.create("from-replica", SnapshotName="of-replica")
        assert aws.snapshot_status("of-replica") in ("restoring", "available")
        aws.wait_group("from-replica")
        assert aws.snapshot_status("of-replica") == "available"
        assert aws.node("from-replica", 9).dbsize() == 3000
        client.flushdb()


SNAPSHOT_ERRORS = [
    ("create_snapshot", {"SnapshotName": "x"}, "InvalidParameterCombination", 400),
    ("create_snapshot", {"SnapshotName": "x", "CacheClusterId": "nope"}, "CacheClusterNotFound", 404),
    ("create_snapshot", {"SnapshotName": "x", "ReplicationGroupId": "nope"}, "ReplicationGroupNotFoundFault", 404),
    (
        "create_snapshot",
        {"SnapshotName": "x", "ReplicationGroupId": SOURCE, "CacheClusterId": f"{SOURCE}-002"},
        "InvalidParameterCombination",
        400,
    ),
    *(
        ("create_snapshot", {"SnapshotName": name, "ReplicationGroupId": SOURCE}, "InvalidParameterValue", 400)
        for name in ("", "1st", "a--b", "a-", "a_b", "a" * 41)
    ),
    ("create_snapshot", {"SnapshotName": "Kept", "ReplicationGroupId": SOURCE}, "SnapshotAlreadyExistsFault", 400),
    ("copy_snapshot", {"SourceSnapshotName": "no", "TargetSnapshotName": "x"}, "SnapshotNotFoundFault", 404),
    ("copy_snapshot", {"SourceSnapshotName": "kept", "TargetSnapshotName": "kept"}, "SnapshotAlreadyExistsFault", 400),
    ("copy_snapshot", {"SourceSnapshotName": "kept", "TargetSnapshotName": "-"}, "InvalidParameterValue", 400),
    ("describe_snapshots", {"SnapshotName": "no"}, "SnapshotNotFoundFault", 404),
    ("describe_snapshots", {"MaxRecords": 51}, "InvalidParameterValue", 400),
    ("describe_snapshots", {"SnapshotSource": "mine"}, "InvalidParameterValue", 400),
    ("delete_snapshot", {"SnapshotName": "no"}, "SnapshotNotFoundFault", 404),
]


@pytest.mark.parametrize(("operation", "parameters", "code", "status"), SNAPSHOT_ERRORS)
def test_snapshot_errors(aws: Account, operation: str, parameters: dict[str, Any], code: str, status: int) -> None:
    aws.ensure_snapshot()
    aws.wait_group()
    refused(lambda: getattr(aws.ec, operation)(**parameters), code, status)


def test_an_error_is_caught_by_its_class(aws: Account) -> None:
    with pytest.raises(aws.ec.exceptions.SnapshotNotFoundFault):
        aws.ec.describe_snapshots(SnapshotName="no")
    with pytest.raises(aws.ec.exceptions.CacheClusterNotFoundFault):
        aws.ec.describe_cache_clusters(CacheClusterId="no")


def test_snapshots_of_a_node_are_limited_and_paged(aws: Account) -> None:
    aws.create("busy")
    aws.wait_group("busy")
    for number in range(20):
        aws.take(f"busy-{number}", CacheClusterId="busy-001")
        aws.wait_group("busy")
    aws.ec.delete_snapshot(SnapshotName="busy-0")
    refused(lambda: aws.take("busy-20", CacheClusterId="busy-001"), "SnapshotQuotaExceededFault")
    aws.ec.copy_snapshot(SourceSnapshotName="busy-1", TargetSnapshotName="busy-copy")
    aws.ec.copy_snapshot(SourceSnapshotName="busy-1", TargetSnapshotName="busy-copy-2")
    wait_for(lambda: not _has_snapshot(aws, "busy-0"), "the snapshot to go")
    pages = aws.ec.get_paginator("describe_snapshots").paginate(
        CacheClusterId="busy-001", PaginationConfig={"PageSize": 20}
    )
    sizes = [len(page["Snapshots"]) for page in pages]
    assert sizes == [20, 1]
    assert aws.ec.describe_snapshots(CacheClusterId="busy-001", SnapshotSource="system")["Snapshots"] == []


def test_a_copy_holds_the_same(aws: Account) -> None:
    aws.ensure_snapshot()
    aws.order({"op": "CopySnapshot", "delay": 0.3})
    made = aws.ec.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="kept-copy")["Snapshot"]
    assert (made["SnapshotName"], made["SnapshotStatus"]) == ("kept-copy", "creating")
    aws.wait_snapshot("kept-copy")
    aws.ec.delete_snapshot(SnapshotName="kept-copy")
    wait_for(lambda: not _has_snapshot(aws, "kept-copy"), "the copy to go")
    assert aws.snapshot_status("kept") == "available"


# Export


def test_a_snapshot_is_exporting_meanwhile(aws: Account) -> None:
    aws.ensure_snapshot()
    aws.order({"op": "CopySnapshot", "delay": 0.3})
    aws.ec.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="meanwhile", TargetBucket=aws.bucket)
    assert aws.snapshot_status("kept") == "exporting"
    refused(lambda: aws.ec.delete_snapshot(SnapshotName="kept"), "InvalidSnapshotState")
    aws.wait_snapshot("kept")
    assert aws.s3.head_object(Bucket=aws.bucket, Key="meanwhile-0001.rdb")["ContentLength"] > 1000
    assert not _has_snapshot(aws, "meanwhile")
    export = {"SourceSnapshotName": "kept", "TargetSnapshotName": "MEANWHILE", "TargetBucket": aws.bucket}
    refused(
        lambda: aws.ec.copy_snapshot(**export),
        "InvalidParameterValue",
        text=f"The S3 bucket {aws.bucket} already contains an object with key meanwhile-0001.rdb",
    )


def _bucket(aws: Account, name: str, region: str = "eu-central-1", policy: str | None = None) -> str:
    s3 = aws.client("s3", region)
    where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    s3.create_bucket(Bucket=name, **where)
    if policy:
        s3.put_bucket_policy(Bucket=name, Policy=policy)
    return name


def _policy(bucket: str, without: str = "", **statement: Any) -> str:
    policy = json.loads(export_policy(bucket, "eu-central-1"))
    policy["Statement"][0]["Action"].remove(without) if without else None
    policy["Statement"][0] |= statement
    return json.dumps(policy)


def _refuses_export(aws: Account, bucket: str, text: str) -> None:
    aws.ensure_snapshot()
    export = {"SourceSnapshotName": "kept", "TargetSnapshotName": "refused", "TargetBucket": bucket}
    refused(lambda: aws.ec.copy_snapshot(**export), "InvalidParameterValue", text=text)
    assert aws.snapshot_status("kept") == "available"


def test_a_bucket_must_be_there_and_in_the_region(aws: Account) -> None:
    _refuses_export(aws, "keyferry-nowhere", "The S3 bucket keyferry-nowhere does not exist")
    _bucket(aws, "keyferry-abroad", "us-east-1", _policy("keyferry-abroad"))
    _refuses_export(aws, "keyferry-abroad", "The S3 bucket keyferry-abroad is outside of the region")


def test_a_bucket_must_be_the_users_own(aws: Account) -> None:
    other = aws.client("s3")

    def from_another_account(request: Any, **_: Any) -> None:
        request.headers["x-moto-account-id"] = "999999999999"

    other.meta.events.register("before-send.s3", from_another_account)
    where = {"LocationConstraint": "eu-central-1"}
    other.create_bucket(Bucket="keyferry-others", CreateBucketConfiguration=where)
    _refuses_export(aws, "keyferry-others", "The S3 bucket keyferry-others is not owned by the authenticated user")


@pytest.mark.parametrize(
    ("permission", "action"), [(name, f"s3:{action}") for name, actions in EXPORT.items() for action in actions]
)
def test_a_bucket_must_grant_every_action(aws: Account, permission: str, action: str) -> None:
    bucket = f"keyferry-lacks-{action[3:].lower()}"
    _bucket(aws, bucket, policy=_policy(bucket, without=action))
    _refuses_export(aws, bucket, f"ElastiCache has not been granted {permission} permissions {action} on the S3 Bucket")


def test_a_bucket_policy_must_mean_elasticache(aws: Account) -> None:
    _bucket(aws, "keyferry-bare")
    _refuses_export(aws, "keyferry-bare", "ElastiCache has not been granted READ permissions")
    abroad = {"Service": "us-east-1.elasticache-snapshot.amazonaws.com"}
    _bucket(aws, "keyferry-principal", policy=_policy("keyferry-principal", Principal=abroad))
    _refuses_export(aws, "keyferry-principal", "ElastiCache has not been granted READ permissions")
    inside = "arn:aws:s3:::keyferry-objects/*"
    _bucket(aws, "keyferry-objects", policy=_policy("keyferry-objects", Resource=inside))
    _refuses_export(aws, "keyferry-objects", "s3:ListBucket")


def test_the_older_way_of_grants_serves_too(aws: Account) -> None:
    aws.ensure_snapshot()
    bucket = _bucket(aws, "keyferry-granted")
    grantee = f"id={CANONICAL_ID}"
    aws.s3.put_bucket_acl(Bucket=bucket, GrantRead=grantee, GrantWrite=grantee, GrantReadACP=grantee)
    aws.ec.copy_snapshot(SourceSnapshotName="kept", TargetSnapshotName="granted", TargetBucket=bucket)
    aws.wait_snapshot("kept")
    assert aws.s3.head_object(Bucket=bucket, Key="granted-0001.rdb")


# Seeds


def _refuses_seed(aws: Account, arn: str, text: str) -> None:
    refused(lambda: aws.create("seeded", SnapshotArns=[arn]), "InvalidParameterValue", text=text)


def test_a_seed_must_be_readable(aws: Account) -> None:
    aws.s3.put_object(Bucket=aws.bucket, Key="kms.rdb", Body=b"x", ServerSideEncryption="aws:kms")
    _refuses_seed(aws, f"arn:aws:s3:::{aws.bucket}/none.rdb", "does not exist")
    _refuses_seed(aws, f"arn:aws:s3:::{aws.bucket}/a,b.rdb", "comma")
    _refuses_seed(aws, f"arn:aws:s3:::{aws.bucket}/kms.rdb", "SSE-S3")
    _refuses_seed(aws, "arn:aws:s3:::keyferry-missing/x.rdb", "does not exist")
    _bucket(aws, "keyferry-seeds-abroad", "us-east-1")
    _refuses_seed(aws, "arn:aws:s3:::keyferry-seeds-abroad/x.rdb", "outside of the region")
    _bucket(aws, "keyferry-closed")
    aws.s3.put_object(Bucket="keyferry-closed", Key="x.rdb", Body=b"x")
    _refuses_seed(aws, "arn:aws:s3:::keyferry-closed/x.rdb", "No permission to access S3 object: keyferry-closed/x.rdb")


@pytest.mark.parametrize("damage", ["nonsense", "flipped", "cut"])
def test_a_damaged_seed_fails_as_the_server_refuses_it(aws: Account, tmp_path: Path, damage: str) -> None:
    with RedisServer(tmp_path) as server:
        sample_data.fill(server.client(), 100)
        server.client().save()
        rdb = bytearray(server.rdb.read_bytes())
    rdb[len(rdb) // 2] ^= 1
    body = {"nonsense": b"REDIS0010 nonsense", "flipped": bytes(rdb), "cut": bytes(rdb[: len(rdb) // 2])}[damage]
    aws.s3.put_object(Bucket=aws.bucket, Key=f"{damage}.rdb", Body=body)
    aws.create(f"from-{damage}", SnapshotArns=[f"arn:aws:s3:::{aws.bucket}/{damage}.rdb"])
    group = aws.wait_group(f"from-{damage}", "create-failed")
    assert group["NodeGroups"] == []
    assert aws.cluster_status(f"from-{damage}-001") == "restore-failed"
    aws.ec.delete_replication_group(ReplicationGroupId=f"from-{damage}")
    aws.ec.get_waiter("replication_group_deleted").wait(ReplicationGroupId=f"from-{damage}", WaiterConfig={"Delay": 1})


# Replication groups

GROUP_ERRORS = [
    ({"ReplicationGroupId": SOURCE}, "ReplicationGroupAlreadyExists", 400),
    ({"ReplicationGroupId": "a--b"}, "InvalidParameterValue", 400),
    ({"ReplicationGroupDescription": " "}, "InvalidParameterValue", 400),
    ({"CacheNodeType": "r7g.large"}, "InvalidParameterValue", 400),
    ({"Engine": "memcached"}, "InvalidParameterValue", 400),
    ({"EngineVersion": "3.0"}, "InvalidParameterCombination", 400),
    ({"CacheParameterGroupName": "none"}, "CacheParameterGroupNotFound", 404),
    ({"CacheParameterGroupName": "default.redis6.x"}, "InvalidParameterCombination", 400),
    ({"CacheSubnetGroupName": "none"}, "CacheSubnetGroupNotFoundFault", 400),
    ({"NumCacheClusters": 7}, "InvalidParameterValue", 400),
    ({"NumCacheClusters": 2, "ReplicasPerNodeGroup": 1}, "InvalidParameterCombination", 400),
    ({"AutomaticFailoverEnabled": True}, "InvalidParameterCombination", 400),
    ({"NumCacheClusters": 2, "MultiAZEnabled": True}, "InvalidParameterCombination", 400),
    ({"AuthToken": "0123456789abcdef"}, "InvalidParameterCombination", 400),
    ({"AuthToken": "short", "TransitEncryptionEnabled": True}, "InvalidParameterValue", 400),
    ({"SnapshotName": "none"}, "InvalidParameterValue", 400),
    ({"SnapshotName": "a", "SnapshotArns": ["b"]}, "InvalidParameterCombination", 400),
    ({"NumNodeGroups": 2}, "InvalidParameterCombination", 400),
    ({"NumNodeGroups": 91, "AutomaticFailoverEnabled": True}, "InvalidParameterValue", 400),
    ({"GlobalReplicationGroupId": "x"}, "InvalidParameterValue", 400),
    ({"UserGroupIds": ["none"]}, "UserGroupNotFound", 404),
    ({"CacheNodeType": "cache.r6gd.xlarge"}, "InvalidParameterCombination", 400),
    ({"DataTieringEnabled": True}, "InvalidParameterCombination", 400),
    ({"Engine": "valkey", "TransitEncryptionEnabled": True}, "InvalidParameterCombination", 400),
]


@pytest.mark.parametrize(("options", "code", "status"), GROUP_ERRORS)
def test_group_errors(aws: Account, options: dict[str, Any], code: str, status: int) -> None:
    refused(
        lambda: aws.create(**{"group_id": options.get("ReplicationGroupId", "wrong"), **_rest(options)}), code, status
    )


def _rest(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "ReplicationGroupId"}


def test_a_group_lives_and_ends(aws: Account) -> None:
    aws.create("mortal", NumCacheClusters=3, AutomaticFailoverEnabled=True, Tags=[{"Key": "team", "Value": "a"}])
    refused(lambda: aws.ec.delete_replication_group(ReplicationGroupId="mortal"), "InvalidReplicationGroupState")
    aws.ec.get_waiter("replication_group_available").wait(ReplicationGroupId="mortal", WaiterConfig={"Delay": 1})
    group = aws.group("mortal")
    assert group["MemberClusters"] == ["mortal-001", "mortal-002", "mortal-003"]
    assert [member["CurrentRole"] for member in group["NodeGroups"][0]["NodeGroupMembers"]] == [
        "primary",
        "replica",
        "replica",
    ]
    shown = aws.ec.describe_cache_clusters(CacheClusterId="mortal-003", ShowCacheNodeInfo=True)["CacheClusters"][0]
    replica = shown["CacheNodes"][0]["Endpoint"]
    assert (shown["EngineVersion"], replica["Address"]) == ("7.1.0", "127.0.0.1")
    aws.node("mortal").set("a", "b")
    reading = redis.Redis(port=replica["Port"])
    wait_for(lambda: reading.get("a") == b"b", "the replica to have it")
    with pytest.raises(redis.ReadOnlyError):
        reading.set("a", "c")
    assert aws.ec.list_tags_for_resource(ResourceName=group["ARN"])["TagList"] == [{"Key": "team", "Value": "a"}]
    pids = [node["pid"] for node in aws.lab("GET", "groups")["mortal"]["nodes"]]
    aws.ec.delete_replication_group(ReplicationGroupId="mortal", FinalSnapshotIdentifier="last-words")
    refused(lambda: aws.ec.delete_replication_group(ReplicationGroupId="mortal"), "InvalidReplicationGroupState")
    aws.ec.get_waiter("replication_group_deleted").wait(ReplicationGroupId="mortal", WaiterConfig={"Delay": 1})
    refused(lambda: aws.group("mortal"), "ReplicationGroupNotFoundFault", 404)
    assert not any(map(_is_alive, pids))
    assert aws.snapshot_status("last-words") == "available"
    aws.create("reborn", SnapshotName="last-words")
    aws.wait_group("reborn")
    assert aws.node("reborn").get("a") == b"b"
    messages = [event["Message"] for event in aws.ec.describe_events(SourceIdentifier="mortal")["Events"]]
    assert messages == ["Replication group mortal created", "Replication group mortal deleted"]


def test_a_group_is_modified(aws: Account) -> None:
    aws.create("changing", NumCacheClusters=2)
    aws.wait_group("changing")
    change = {
        "ReplicationGroupDescription": "new",
        "SnapshotRetentionLimit": 3,
        "SnapshottingClusterId": "changing-001",
    }
    asked = aws.ec.modify_replication_group(ReplicationGroupId="changing", ApplyImmediately=True, **change)
    assert asked["ReplicationGroup"]["Status"] == "modifying"
    group = aws.wait_group("changing")
    assert (group["Description"], group["SnapshotRetentionLimit"]) == ("new", 3)
    aws.take("of-primary", ReplicationGroupId="changing")
    shown = aws.ec.describe_snapshots(SnapshotName="of-primary")["Snapshots"][0]
    assert [node["CacheClusterId"] for node in shown["NodeSnapshots"]] == ["changing-001"]
    for change in ({"AuthToken": "0123456789abcdef"}, {"SnapshottingClusterId": f"{SOURCE}-001"}):
        aws.wait_group("changing")
        refused(
            lambda change=change: aws.ec.modify_replication_group(ReplicationGroupId="changing", **change),
            "InvalidParameterValue",
        )


def test_what_elasticache_forbids_is_forbidden(aws: Account) -> None:
    for command in (
        "BGSAVE",
        "CONFIG GET *",
        "DEBUG SLEEP 0",
        "REPLICAOF NO ONE",
        "SAVE",
        "ACL SETUSER x",
        "CLUSTER MEET a 1",
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            aws.node().execute_command(*command.split())
    assert aws.admin().config_get("databases") == {"databases": "16"}
    aws.node(db=15).swapdb(13, 14)


def test_the_timestamp_comes_back(aws: Account) -> None:
    aws.create("ticking")
    aws.wait_group("ticking")
    aws.node("ticking").delete(TIMESTAMP_KEY)
    wait_for(lambda: aws.node("ticking").exists(TIMESTAMP_KEY), "the key that ElastiCache writes")


def test_encryption_in_transit_and_auth(aws: Account) -> None:
    token = "a-token-of-sixteen-or-more"
    aws.ensure_snapshot()
    aws.create("closed", NumCacheClusters=2, TransitEncryptionEnabled=True, AuthToken=token, SnapshotName="kept")
    group = aws.wait_group("closed")
    assert group["TransitEncryptionEnabled"] and group["AuthTokenEnabled"]
    tls = {"ssl": True, "ssl_ca_certs": aws.info["ca_certs"]}
    assert aws.node("closed", 1, password=token, **tls).get(b"") == b"the empty key"
    with pytest.raises(redis.AuthenticationError):
        aws.node("closed", **tls).ping()
    with pytest.raises(redis.ConnectionError):
        aws.node("closed").ping()
    aws.take("closed-too", ReplicationGroupId="closed")
    assert prove(aws.info, SOURCE, 1, "closed", 1)["equal"]
    call = next(call for call in aws.lab("GET", "calls") if call["parameters"].get("ReplicationGroupId") == "closed")
    assert call["parameters"]["AuthToken"] == "***"


# Cluster mode


def test_a_user_group_says_who_logs_in(aws: Account) -> None:
    password = "a-password-of-more-than-16"
    for name, access in (("default", "off +@all"), ("reader", "on ~app:* +@read")):
        aws.ec.create_user(UserId=f"u-{name}", UserName=name, Engine="redis", AccessString=access, Passwords=[password])
    users = {"Engine": "redis", "UserIds": ["u-reader"]}
    refused(lambda: aws.ec.create_user_group(UserGroupId="team", **users), "DefaultUserRequired")
    users["UserIds"] = ["u-default", "u-reader"]
    aws.ec.create_user_group(UserGroupId="team", **users)
    with_users = {"UserGroupIds": ["team"], "Engine": "redis"}
    refused(lambda: aws.create("no-tls", **with_users), "InvalidParameterCombination", text="TransitEncryption")
    aws.create("with-users", TransitEncryptionEnabled=True, **with_users)
    assert aws.wait_group("with-users")["UserGroupIds"] == ["team"]
    tls = {"ssl": True, "ssl_ca_certs": aws.info["ca_certs"], "ssl_check_hostname": False}
    reader = aws.node("with-users", username="reader", password=password, **tls)
    assert reader.get("app:1") is None
    for forbidden in (lambda: reader.set("app:1", "x"), lambda: reader.get("other"), reader.bgsave):
        with pytest.raises(redis.exceptions.NoPermissionError):
            forbidden()
    with pytest.raises(redis.AuthenticationError):
        aws.node("with-users", username="reader", password="wrong", **tls).ping()
    assert password not in json.dumps(aws.lab("GET", "calls"))


def test_data_tiering_stays_where_its_nodes_are(aws: Account) -> None:
    aws.create("tiered", CacheNodeType="cache.r6gd.xlarge", DataTieringEnabled=True)
    assert aws.wait_group("tiered")["DataTiering"] == "enabled"
    aws.take("of-tiered", CacheClusterId="tiered-001")
    export = {"TargetSnapshotName": "out-of-tiered", "TargetBucket": aws.bucket}
    refused(lambda: aws.ec.copy_snapshot(SourceSnapshotName="of-tiered", **export), "InvalidParameterCombination")
    refused(lambda: aws.create("not-tiered", SnapshotName="of-tiered"), "InvalidParameterCombination", text="r6gd")


def test_serverless_caches_have_names(aws: Account) -> None:
    aws.ec.create_serverless_cache(ServerlessCacheName="on-demand", Engine="valkey")
    assert aws.ec.describe_serverless_caches()["ServerlessCaches"][0]["ServerlessCacheName"] == "on-demand"
    refused(lambda: aws.group("on-demand"), "ReplicationGroupNotFoundFault", 404)


def test_cluster_mode_is_seeded_by_slots(aws: Account, tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        sample_data.fill(server.client(), 500)
        server.client().save()
        aws.s3.upload_file(str(server.rdb), aws.bucket, "one-db.rdb")
    arn = [f"arn:aws:s3:::{aws.bucket}/one-db.rdb"]
    sharded = {"AutomaticFailoverEnabled": True, "NumNodeGroups": 2}
    refused(
        lambda: aws.create("shards", SnapshotArns=arn, **sharded),
        "InvalidParameterCombination",
        text="Slots must be provided when restoring from snapshot ARNs with cluster mode enabled",
    )
    holes = [{"Slots": "0-8000"}, {"Slots": "8002-16383"}]
    refused(
        lambda: aws.create("shards", SnapshotArns=arn, NodeGroupConfiguration=holes, **sharded), "InvalidParameterValue"
    )
    slots = [{"Slots": "0-999", "ReplicaCount": 1}, {"Slots": "1000-16383", "ReplicaCount": 1}]
    aws.create("shards", SnapshotArns=arn, NodeGroupConfiguration=slots, **sharded)
    group = aws.wait_group("shards")
    assert group["ClusterEnabled"] and "PrimaryEndpoint" not in group["NodeGroups"][0]
    assert [node_group["Slots"] for node_group in group["NodeGroups"]] == ["0-999", "1000-16383"]
    cluster = redis.RedisCluster(host="127.0.0.1", port=group["ConfigurationEndpoint"]["Port"])
    assert cluster.get(b"") == b"the empty key"
    assert _cluster_keys(cluster) == 500 + cluster.exists(TIMESTAMP_KEY)
    # Each shard is a file, a group with cluster mode disabled takes one only.
    aws.take("two-files", ReplicationGroupId="shards")
    aws.ec.copy_snapshot(SourceSnapshotName="two-files", TargetSnapshotName="two", TargetBucket=aws.bucket)
    aws.wait_snapshot("two-files")
    for key in ("two-0001.rdb", "two-0002.rdb"):
        assert aws.s3.head_object(Bucket=aws.bucket, Key=key)["ContentLength"]
    refused(lambda: aws.create("single", SnapshotName="two-files"), "InvalidParameterCombination")
    refused(lambda: aws.take("x", CacheClusterId="shards-0001-001"), "InvalidParameterCombination")
    aws.create("again", SnapshotName="two-files", **sharded)
    aws.wait_group("again")
    assert prove(aws.info, "shards", 0, "again", 0)["equal"]
    cluster.close()


def _cluster_keys(cluster: redis.RedisCluster) -> int:
    return sum(cluster.dbsize(target_nodes=node) for node in cluster.get_primaries())


def test_cluster_mode_refuses_several_databases(aws: Account) -> None:
    aws.ensure_snapshot()
    aws.create("one-only", SnapshotName="kept", NumNodeGroups=1, ClusterMode="enabled", AutomaticFailoverEnabled=True)
    aws.wait_group("one-only", "create-failed")
    assert aws.cluster_status("one-only-0001-001") == "restore-failed"
    assert aws.snapshot_status("kept") == "available"


def test_the_source_can_be_in_cluster_mode(tmp_path: Path) -> None:
    with Lab(tmp_path, keys=300, delay=0.05, shards=2) as lab:
        group = Account(lab).group()
        assert group["ClusterEnabled"] and len(group["NodeGroups"]) == 2
        with redis.RedisCluster(host="127.0.0.1", port=group["ConfigurationEndpoint"]["Port"]) as cluster:
            assert _cluster_keys(cluster) == 300 + cluster.exists(TIMESTAMP_KEY)


# Parameter groups, subnet groups, tags, events


def test_a_parameter_group_says_how_many_databases(aws: Account) -> None:
    pages = aws.ec.get_paginator("describe_cache_parameters").paginate(CacheParameterGroupName="default.redis7")
    values = {found["ParameterName"]: found.get("ParameterValue") for page in pages for found in page["Parameters"]}
    assert values["databases"] == "16"
    described = aws.ec.describe_cache_parameter_groups(CacheParameterGroupName="default.redis7")
    assert described["CacheParameterGroups"][0]["CacheParameterGroupFamily"] == "redis7"
    refused(
        lambda: aws.ec.describe_cache_parameters(CacheParameterGroupName="none"), "CacheParameterGroupNotFound", 404
    )
    new = {"CacheParameterGroupName": "many", "CacheParameterGroupFamily": "redis7", "Description": "many"}
    aws.ec.create_cache_parameter_group(**new)
    refused(lambda: aws.ec.create_cache_parameter_group(**new), "CacheParameterGroupAlreadyExists")
    change = {"ParameterNameValues": [{"ParameterName": "databases", "ParameterValue": "32"}]}
    aws.ec.modify_cache_parameter_group(CacheParameterGroupName="many", **change)
    aws.create("wide", CacheParameterGroupName="many")
    aws.wait_group("wide")
    aws.node("wide", db=31).ping()
    events = {"ParameterNameValues": [{"ParameterName": "notify-keyspace-events", "ParameterValue": "KEA"}]}
    aws.ec.modify_cache_parameter_group(CacheParameterGroupName="many", **events)
    assert set(aws.admin("wide").config_get("notify-keyspace-events")["notify-keyspace-events"]) == set("AKE")
    refused(
        lambda: aws.ec.modify_cache_parameter_group(CacheParameterGroupName="many", **change),
        "InvalidCacheParameterGroupState",
    )


def test_subnet_groups(aws: Account) -> None:
    new = {"CacheSubnetGroupName": "inner", "CacheSubnetGroupDescription": "inner", "SubnetIds": ["subnet-1"]}
    aws.ec.create_cache_subnet_group(**new)
    refused(lambda: aws.ec.create_cache_subnet_group(**new), "CacheSubnetGroupAlreadyExists")
    names = [found["CacheSubnetGroupName"] for found in aws.ec.describe_cache_subnet_groups()["CacheSubnetGroups"]]
    assert names == ["default", "inner"]
    refused(lambda: aws.ec.describe_cache_subnet_groups(CacheSubnetGroupName="none"), "CacheSubnetGroupNotFoundFault")


def test_tags(aws: Account) -> None:
    arn = aws.group()["ARN"]
    aws.ec.add_tags_to_resource(ResourceName=arn, Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    assert aws.ec.remove_tags_from_resource(ResourceName=arn, TagKeys=["a"])["TagList"] == [{"Key": "b", "Value": "2"}]
    refused(lambda: aws.ec.remove_tags_from_resource(ResourceName=arn, TagKeys=["a"]), "TagNotFound", 404)
    refused(lambda: aws.ec.list_tags_for_resource(ResourceName="arn:aws:x"), "InvalidARN")
    refused(lambda: aws.ec.list_tags_for_resource(ResourceName=f"{arn}x"), "ReplicationGroupNotFoundFault", 404)
    many = [{"Key": str(number), "Value": ""} for number in range(51)]
    refused(lambda: aws.ec.add_tags_to_resource(ResourceName=arn, Tags=many), "TagQuotaPerResourceExceeded")
    refused(
        lambda: aws.ec.create_snapshot(SnapshotName="tagged", CacheClusterId=f"{SOURCE}-002", Tags=many),
        "TagQuotaPerResourceExceeded",
    )
    assert not _has_snapshot(aws, "tagged")


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


def test_done_but_the_answer_is_lost(aws: Account) -> None:
    aws.order({"op": "CreateSnapshot", "after": True})
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


# The daemon


def _lab(verb: str, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lab", verb, "--dir", str(directory), *options]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "tests"}, timeout=60, check=False
    )


def _servers(info: dict[str, Any]) -> list[int]:
    with urllib.request.urlopen(f"{info['endpoint_url']}/_lab/groups") as answer:
        groups = json.load(answer)
    return [node["pid"] for group in groups.values() for node in group["nodes"]]


def _is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and only waits for its parent to ask does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_daemon_starts_once_and_ends_with_all_it_started(tmp_path: Path) -> None:
    assert _lab("status", tmp_path).returncode == 1
    assert _lab("stop", tmp_path).returncode == 0
    started = _lab("start", tmp_path, "--keys", "100", "--delay", "0.05")
    info = json.loads(started.stdout)
    assert started.returncode == 0, started.stderr
    assert info == json.loads((tmp_path / "lab.json").read_text())
    assert (tmp_path / "lab.json").stat().st_mode & 0o777 == 0o600
    for verb in ("start", "status"):
        assert json.loads(_lab(verb, tmp_path).stdout) == info
    servers = _servers(info)
    assert len(servers) == 2 and all(map(_is_alive, servers))
    commands = [Path(f"/proc/{server}/cmdline").read_bytes() for server in servers]
    assert not any(info["admin_password"].encode() in command for command in commands)
    same = ("--source-group", SOURCE, "--source-db", "1", "--target-group", SOURCE, "--target-db")
    assert _lab("prove", tmp_path, *same, "1").returncode == 0
    proven = _lab("prove", tmp_path, *same, "2")
    assert proven.returncode == 1 and not json.loads(proven.stdout)["equal"]
    assert _lab("stop", tmp_path).returncode == 0
    assert not any(map(_is_alive, servers))
    wait_for(lambda: not _is_alive(info["pid"]), "the last moment of the daemon", 1)
    assert not (tmp_path / "lab.json").exists()


def test_nothing_survives_a_daemon_that_is_killed(tmp_path: Path) -> None:
    info = json.loads(_lab("start", tmp_path, "--empty", "--delay", "0.05").stdout)
    servers = _servers(info)
    os.kill(info["pid"], signal.SIGKILL)
    wait_for(lambda: not any(map(_is_alive, servers)), "the servers to end")
    assert _lab("status", tmp_path).returncode == 1
    again = json.loads(_lab("start", tmp_path, "--empty", "--delay", "0.05").stdout)
    assert again["pid"] != info["pid"]
    assert _lab("stop", tmp_path).returncode == 0


def test_valkey_stands_in_where_there_is_no_redis_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with RedisServer(tmp_path, "redis") as server:
        assert server.client().info("server")["server_name"] == "valkey"


# The sample data


def test_sample_data_is_the_same_for_the_same_seed(start_server: Callable[..., RedisServer]) -> None:
    digests = []
    for seed in (1, 1, 2):
        with start_server() as server:
            assert sample_data.fill(("127.0.0.1", server.port), 400, 3, seed) == 400
            client = server.client(3)
            keys = sorted(client.scan_iter(count=1000))
            digests.append(client.execute_command("DEBUG", "DIGEST-VALUE", *keys))
    assert digests[0] == digests[1] != digests[2]


def test_sample_data_has_all_that_breaks_a_copy(redis_server: RedisServer) -> None:
    assert sample_data.fill_sample(redis_server.client(), 3100) == {1: 3000, 0: 20, 2: 20, 3: 20, 5: 20, 15: 20}
    client = redis_server.client(1)
    keys = list(client.scan_iter(count=1000))
    assert len(keys) in range(3000, 3006)
    kinds = {client.type(key) for key in keys}
    assert kinds == {b"string", b"hash", b"list", b"set", b"zset", b"stream"}
    encodings = {client.object("ENCODING", key) for key in keys}
    expected = "int embstr raw listpack hashtable quicklist intset skiplist stream"
    assert set(expected.encode().split()) <= encodings | {b"listpack"}
    lasting = [ttl for key in keys if (ttl := client.pttl(key)) > 61_000]
    assert 0.5 < len(lasting) / len(keys) < 0.7
    assert min(lasting) > 3_500_000 and max(lasting) <= 30 * 24 * 3_600_000
    assert {b"", sample_data.BINARY} <= set(keys)
    assert client.strlen("large:string") > 1_000_000 and client.hlen("large:hash") >= 20_000
    scores = dict(client.zrange("zset:extreme", 0, -1, withscores=True))
    assert {float("inf"), float("-inf"), 1e-300, 0.12345678901234567} <= set(scores.values())
    billing = next(group for group in client.xinfo_groups("stream:orders") if group["name"] == b"billing")
    assert (billing["consumers"], billing["pending"]) == (3, 23)
    assert client.xlen("stream:orders") == 297
